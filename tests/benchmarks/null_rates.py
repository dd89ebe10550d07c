"""Positive rates of the tests of V = 0: under the null by donors and errors of nu, and power.

    python tests/benchmarks/null_rates.py [--sets 1000] [--jobs 1] [--out null_rates.md]

C = 4 cell types, shared variance .25, cells per pair log-uniform 10-120, variance between cells
gamma with mean 3 and CV .4, nu = variance / cells.  The fit sees nu (1 +- e) with e ~ Beta(2, b),
random sign; b = 3 and 2 give errors of standard deviation .33 and .45.  Power: V = diag(.05, .02,
.02, .02).  Every data set is tested by every method at level .05.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import chi2, f

from ctmm_formula.engine import he
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.jackknife import MomentJackknife, covariance, jackknife
from ctmm_formula.inference.score import score_test
from ctmm_formula.structures import resolve

TYPES = ["A", "B", "C", "D"]
HOM, FREE = (resolve(name, TYPES).basis for name in ("hom", "free"))
BETA = {0.0: None, 0.33: 3.0, 0.45: 2.0}
NULL, POWER = np.zeros(4), np.array([0.05, 0.02, 0.02, 0.02])
METHODS = ("score", "score, Cauchy", "LRT", "Wald (Fisher)", "jackknife REML", "jackknife HE")


def template(n_donors):
    """The design: complete data, cell type means."""
    H = np.tile(np.eye(4), (n_donors, 1))
    n = len(H)
    donor = np.repeat(np.arange(n_donors), 4)
    return build_model(np.zeros(n), np.ones(n), H, H, donor, FREE, n_cells=np.ones(n))


def draw(model, V, cv, rng):
    """One data set: the model with y, measured nu and cell counts."""
    n, N = len(model.y), len(model.active)
    cells = np.round(np.exp(rng.uniform(np.log(10), np.log(120), n)))
    nu = rng.gamma(1 / 0.16, 3 * 0.16, n) / cells
    y = 0.5 * rng.normal(size=N)[model.row_donor]
    y += np.sqrt(model.H @ V) * rng.normal(size=n) + np.sqrt(nu) * rng.normal(size=n)
    if BETA[cv]:
        nu = nu * (1 + rng.choice([-1.0, 1.0], n) * rng.beta(2.0, BETA[cv], n))
    return replace(model, y=y, nu=nu, n_cells=cells)


def wald(v, cov, df):
    """Two-sided F test of four components."""
    return f.sf(v @ np.linalg.solve(cov, v) / 4, 4, df)


def pvalues(model, design):
    """p value of every method on one data set, and whether the free fit is on the edge."""
    N = model.n_donors
    df = N - 9
    score = score_test(model)
    free = estimate(model, "reml")
    hom = estimate(model.with_basis(HOM), "reml")
    jack = jackknife(model, free)
    moment = he.fit(model).theta
    left = design.theta(model.y[:, None], model.nu[:, None])[0]
    return [
        score.pvalue_sum,
        score.pvalue_cauchy,
        chi2.sf(2 * (free.llf - hom.llf), 4),
        wald(free.theta[1:], np.linalg.inv(free.information)[1:, 1:], df),
        wald(free.theta[1:], jack.cov_theta[1:, 1:], df),
        wald(moment[1:], covariance(left)[1:, 1:], df),
    ], free.convergence.boundary


def cell(n_donors, cv, V, sets, seed, jobs):
    """Positive rates (methods,), share on the edge, failures of one cell of the table."""
    model = template(n_donors)
    design = MomentJackknife(model)

    def one(stream):
        try:
            return pvalues(draw(model, V, cv, np.random.default_rng(stream)), design)
        except (CTMMError, np.linalg.LinAlgError) as error:
            return error

    streams = np.random.SeedSequence(seed).spawn(sets)
    done = Parallel(n_jobs=jobs)(delayed(one)(stream) for stream in streams)
    good = [d for d in done if not isinstance(d, Exception)]
    p = np.array([d[0] for d in good])
    return (p < 0.05).mean(axis=0), np.mean([d[1] for d in good]), sets - len(good)


def main() -> None:
    """Run all cells and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".md")))
    args = parser.parse_args()
    cells = [("null", N, cv, NULL) for N in (20, 50, 100) for cv in BETA]
    cells += [
        ("V = diag(.05, .02, .02, .02)", N, cv, POWER) for N in (20, 50) for cv in (0.0, 0.33)
    ]
    head = [
        "truth",
        "donors",
        "sd of nu's error",
        *METHODS,
        "free fit on edge",
        "failed",
        "seconds",
    ]
    lines = [
        "# Positive rates at .05 of the tests of V = 0",
        "",
        f"Written by `null_rates.py`: {args.sets} data sets a cell, so the standard error of a "
        f"rate near .05 is {np.sqrt(0.05 * 0.95 / args.sets):.3f}. Settings in the script.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for number, (truth, N, cv, V) in enumerate(cells):
        start = time.perf_counter()
        rates, edge, failed = cell(N, cv, V, args.sets, 1000 + number, args.jobs)
        row = [truth, N, cv, *(f"{r:.3f}" for r in rates), f"{edge:.2f}", failed]
        lines.append(
            "| " + " | ".join(map(str, [*row, f"{time.perf_counter() - start:.0f}"])) + " |"
        )
        Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
