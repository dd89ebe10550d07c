"""Level, bias and coverage of the noise-robust estimator on counts of cells.

    python tests/benchmarks/robust_levels.py [--genes 600] [--workers 1]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``robust_levels.md`` beside this file.

Every gene is its own data set: negative binomial counts, dispersion .1, .5 or 1.5; library sizes
lognormal (log sd .4) about 5,000; cells as log(1 + counts per 10,000).  Four cell types with uneven
numbers of cells: medians 600, 180, 55 and 16, times exp(.4 z) for the donor and exp(.3 z) for the
pair.  All types share the gene's mean and the donor's log-fold effect (sd .3 or .6), so means are
equal and V = 0 on every scale; the true mean and shared variance come from quadrature.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats

from ctmm_formula.engine import robust, sandwich
from ctmm_formula.engine.model import Model, build_model
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
DONORS, MEANS = (12, 20, 50), (0.02, 0.1, 0.5, 2.0)
MEDIANS = np.array([600.0, 180.0, 55.0, 16.0])
DISPERSIONS, EFFECTS = (0.1, 0.5, 1.5), (0.3, 0.6)
LIBRARY, SPREAD = 5000.0, 0.4
BASIS = resolve("free", ["A", "B", "C", "D"]).basis
EQUAL = np.eye(4)[:3] - np.eye(4)[1:]


@cache
def truth(mean: float, dispersion: float, effect: float) -> tuple[float, float]:
    """Mean and shared variance of log1p expression: quadrature over donors and libraries."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()
    library = LIBRARY * np.exp(SPREAD * nodes)
    counts = np.arange(3000)
    value = np.log1p(1e4 * counts[None, :] / library[:, None])
    given = []
    for fold in np.exp(effect * nodes):
        size = 1.0 / dispersion
        expected = mean * fold * library[:, None] / LIBRARY
        pmf = stats.nbinom.pmf(counts, size, size / (size + expected))
        given.append(weights @ (pmf * value).sum(axis=1))
    first = float(weights @ given)
    return first, float(weights @ np.square(given)) - first**2


def gene(N: int, mean: float, number: int) -> tuple[Model, float, float]:
    """One data set, its true mean and shared variance."""
    rng = np.random.default_rng([N, round(1000 * mean), number])
    dispersion, effect = rng.choice(DISPERSIONS), rng.choice(EFFECTS)
    size = MEDIANS * np.exp(0.4 * rng.normal(size=(N, 1)) + 0.3 * rng.normal(size=(N, 4)))
    cells = np.maximum(np.rint(size), 5).astype(int).ravel()
    library = LIBRARY * np.exp(SPREAD * rng.normal(size=cells.sum()))
    fold = np.exp(effect * rng.normal(size=N))
    expected = mean * np.repeat(np.repeat(fold, 4), cells) * library / LIBRARY
    x = np.log1p(
        1e4 * rng.poisson(expected * rng.gamma(1 / dispersion, dispersion, len(library))) / library
    )
    start = np.concatenate([[0], np.cumsum(cells)[:-1]])
    y = np.add.reduceat(x, start) / cells
    nu = np.add.reduceat(np.square(x - np.repeat(y, cells)), start) / (cells - 1) / cells
    H = np.tile(np.eye(4), (N, 1))
    donor = np.repeat(np.arange(N), 4)
    model = build_model(y, nu, H, H, donor, BASIS, n_cells=cells.astype(float))
    return model, *truth(mean, float(dispersion), float(effect))


def one(N: int, mean: float, number: int) -> dict[str, np.ndarray]:
    """Errors and coverage of one gene; NaN where it cannot be fitted."""
    model, centre, shared = gene(N, mean, number)
    fit = robust.weigh(model)
    rows = sandwich.contrasts(fit, np.eye(4))
    low, high = rows.intervals().T
    theta, interval = fit.estimate.theta, fit.component_intervals()
    target = np.array([shared, 0, 0, 0, 0])
    return {
        "p": np.array([sandwich.hotelling(fit, EQUAL).pvalue]),
        "mean": rows.value / centre - 1.0,
        "mean covered": (low <= centre) & (centre <= high),
        "theta": (theta - target) / shared,
        "covered": (interval[:, 0] <= target) & (target <= interval[:, 1]),
        "step": np.array([fit.estimate.convergence.gradient_norm]),
    }


def rate(hits: np.ndarray) -> str:
    """Share and its standard error."""
    share = hits.mean()
    return f"{share:.3f} ({np.sqrt(share * (1 - share) / len(hits)):.3f})"


def error(values: np.ndarray) -> str:
    """Mean and its standard error."""
    return f"{values.mean():+.3f} ({values.std(ddof=1) / np.sqrt(len(values)):.3f})"


def row(N: int, mean: float, results: list[dict[str, np.ndarray]]) -> dict[str, object]:
    """One line of the table."""
    all_of = {name: np.array([r[name] for r in results]) for name in results[0]}
    p = all_of["p"].ravel()
    return {
        "donors": N,
        "mean": mean,
        "level at .05": rate(p <= 0.05),
        "level at .01": rate(p <= 0.01),
        "no test": int(np.isnan(p).sum()),
        "bias of the means, %, by type": " ".join(
            f"{100 * v:+.1f}" for v in all_of["mean"].mean(axis=0)
        ),
        "rmse of the means, %": f"{100 * np.sqrt(np.square(all_of['mean']).mean()):.1f}",
        "coverage of the means": rate(all_of["mean covered"].mean(axis=1)),
        "bias of hom / hom": error(all_of["theta"][:, 0]),
        "coverage of hom": rate(all_of["covered"][:, 0]),
        "bias of V / hom": error(all_of["theta"][:, 1:].mean(axis=1)),
        "of the rarest type": error(all_of["theta"][:, 4]),
        "coverage of V": rate(all_of["covered"][:, 1:].mean(axis=1)),
        "largest last step, se": f"{all_of['step'].max():.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=600)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default=str(HERE / "robust_levels.md"))
    args = parser.parse_args()
    rows = []
    for N in DONORS:
        for mean in MEANS:
            jobs = (delayed(one)(N, mean, number) for number in range(args.genes))
            rows.append(row(N, mean, Parallel(args.workers)(jobs)))
            sys.stderr.write(f"{rows[-1]}\n")
    parts = [
        "# Noise-robust estimates on counts of cells",
        f"Written by `robust_levels.py`, {args.genes} genes a line, seeded by donors, mean and "
        "number of the gene; standard errors in brackets (those of coverages of several types "
        "take them for one).  Equal means and V = 0 in four cell types with medians of 600, 180, "
        "55 and 16 cells.  The test is that of equal means, 95 % intervals are Satterthwaite's t "
        "for means and the larger of jackknife and 2F^-1 for components; V / hom is averaged over "
        "types.",
        bench_fit.markdown(pd.DataFrame(rows)),
    ]
    text = "\n\n".join(parts) + "\n"
    Path(args.out).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
