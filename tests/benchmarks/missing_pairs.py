"""Missing pairs: fit the rows there are, or impute and fit all?  Bias, positive rates, power.

    python tests/benchmarks/missing_pairs.py [--studies 300] [--settings 0 1 2] [--jobs 1]

A study has 60 donors, 4 cell types and 60 genes, half of them with V = 0 (null), half with
V = diag(.05, .02, .02, .05); shared variance .25 and equal means for all.  Half of each variance
comes from factors that genes have in common (5 of the donors, 3 of each cell type), so that other
genes can tell something about a missing pair.  Cells per pair are log-normal around type-specific
numbers; pairs with at most 10 cells are missing, whatever their expression.  Noise: variance
between cells gamma with mean 3 and CV .4 over the number of cells; the fit sees it as measured in
these cells, which by itself biases V upward where cells are few, or as it is.

Imputation sees all genes, mean and noise apart, lambda by cross-validation, negative noise by the
largest of gene and cell type.  Two null and two other genes of each study are fitted: free
structure, REML, noise bounds.  Tests at .05: of V = 0 by score, likelihood ratio and jackknife; of
equal means by Wald F.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import chi2, f

from ctmm_formula.cells.fill import Options, fill
from ctmm_formula.cells.impute import mend
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.inference.score import score_test
from ctmm_formula.structures import resolve

N, C, G = 60, 4, 60
HOM2, NULL, OTHER = 0.25, np.zeros(4), np.array([0.05, 0.02, 0.02, 0.05])
COMMON = 0.5
TYPES = ["A", "B", "C", "D"]
HOM, FREE = (resolve(name, TYPES).basis for name in ("hom", "free"))
BOUNDS = Domain("noise", 0.1)
FEW, MANY = (80, 55, 40, 12), (40, 18, 14, 10)
"""Typical numbers of cells of the types, so that some 10 % and 25 % of the pairs are missing."""
SETTINGS = ((FEW, "measured"), (MANY, "measured"), (MANY, "known"))
"""Cells, and whether the fit sees noise variances as measured or as they are."""
METHODS = {
    "observed pairs": None,
    "complete donors": None,
    "soft-impute": Options(),
    "normal by gene": Options(method="mvn", by="gene"),
    "means": Options(method="mean", by="gene"),
}
MEASURES = (
    "hom2", "V_A", "V_B", "V_C", "V_D", "score", "LRT", "jackknife", "means",
)  # fmt: skip


def unit(rng, *shape):
    """Loadings of length one along the first axis."""
    L = rng.normal(size=shape)
    return L / np.linalg.norm(L, axis=0)


def study(cells, noise, rng):
    """y, nu (N, C, G) with NaN in missing pairs, and numbers of cells (N, C)."""
    spread = 0.4 * rng.normal(size=(N, 1)) + 0.4 * rng.normal(size=(N, C))
    n = np.maximum(np.round(np.exp(np.log(cells) + spread)), 2)
    missing = n <= 10
    missing[missing.all(axis=1), 0] = False
    V = np.where(np.arange(G)[:, None] % 2, OTHER, NULL)  # (G, C)

    def mixed(factors):
        common = rng.normal(size=(N, factors)) @ unit(rng, factors, G)
        return np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * rng.normal(size=(N, G))

    y = np.sqrt(HOM2) * mixed(5)[:, None] + np.zeros((N, C, G))
    for c in range(C):
        y[:, c] += np.sqrt(V[:, c]) * mixed(3)
    variance = rng.gamma(1 / 0.16, 3 * 0.16, (N, C, G))
    y += np.sqrt(variance / n[:, :, None]) * rng.normal(size=y.shape)
    df = n[:, :, None] - 1
    nu = variance / n[:, :, None]
    if noise == "measured":
        nu *= rng.chisquare(np.broadcast_to(df, y.shape)) / df
    y[missing], nu[missing] = np.nan, np.nan
    return y, nu, n


def model_of(y, nu, n, rows):
    """Free model of one gene on the chosen pairs (N, C)."""
    donor, celltype = np.nonzero(rows)
    H = np.eye(C)[celltype]
    return build_model(y[rows], nu[rows], H, H, donor, FREE, n_cells=n[rows])


def measures(model):
    """Estimates and p values of one fit."""
    free = estimate(model, "reml", BOUNDS)
    hom = estimate(model.with_basis(HOM), "reml", BOUNDS)
    df = model.n_donors - 2 * C - 1
    V = free.theta[1:]
    jack = jackknife(model, free, BOUNDS)
    L = np.eye(C)[1:] - np.eye(C)[0]
    contrast, cov = L @ free.beta, L @ free.cov_beta @ L.T
    return [
        *free.theta,
        score_test(model).pvalue_sum,
        chi2.sf(max(2 * (free.llf - hom.llf), 0.0), C),
        f.sf(V @ np.linalg.solve(jack.cov[-C:, -C:], V) / C, C, df),
        f.sf(contrast @ np.linalg.solve(cov, contrast) / (C - 1), C - 1, model.n_donors - C),
    ]


def one_study(cells, noise, stream):
    """Measures (methods, 4 genes, measures) of one study, NaN where a fit failed; share missing."""
    rng = np.random.default_rng(stream)
    y, nu, n = study(np.array(cells), noise, rng)
    seen = ~np.isnan(y[:, :, 0])
    everything = np.ones_like(seen)
    out = np.full((len(METHODS), 4, len(MEASURES)), np.nan)
    for m, (name, options) in enumerate(METHODS.items()):
        rows = seen if name == "observed pairs" else everything
        if name == "complete donors":
            rows = seen & seen.all(axis=1, keepdims=True)
        Y, NU = y, nu
        if options is not None:
            Y = fill(y, options, rng).values
            NU, _ = mend(nu, fill(nu, options, rng).values, "max")
        for gene in range(4):
            try:
                out[m, gene] = measures(model_of(Y[:, :, gene], NU[:, :, gene], n, rows))
            except (CTMMError, np.linalg.LinAlgError):
                continue
    return out, 1.0 - seen.mean()


def table(results, share, noise, seconds):
    """The table of one setting."""
    values = np.array(results)  # (studies, methods, 4, measures)
    failed = np.isnan(values[..., 0]).sum(axis=(0, 2))
    rate = (values < 0.05).astype(float)
    rate[np.isnan(values)] = np.nan
    lines = [
        f"## {share:.0%} of pairs missing, noise {noise} ({len(results)} studies, {seconds:.0f} s)",
        "",
        "| genes | method | hom2 - truth | V_A - truth | V_B - truth | V_C - truth | V_D - truth | "
        "score | LRT | jackknife | means | failed |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, genes, V in (("V = 0", [0, 2], NULL), ("V > 0", [1, 3], OTHER)):
        truth = np.r_[HOM2, V]
        for m, name in enumerate(METHODS):
            theta = values[:, m, genes, :5].reshape(-1, 5)
            error = np.nanstd(theta, axis=0) / np.sqrt(len(theta))
            bias = np.nanmean(theta, axis=0) - truth
            cells = [f"{b:+.3f} ± {e:.3f}" for b, e in zip(bias, error, strict=True)]
            rates = np.nanmean(rate[:, m, genes, 5:].reshape(-1, 4), axis=0)
            cells += [f"{r:.3f}" for r in rates]
            lines.append(f"| {label} | {name} | " + " | ".join(cells) + f" | {failed[m]} |")
    return [*lines, ""]


def main() -> None:
    """Run the settings and write the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--settings", type=int, nargs="+", default=range(len(SETTINGS)))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".md")))
    args = parser.parse_args()
    lines = [
        "# Missing pairs: fit what is there, or impute?",
        "",
        f"Written by `missing_pairs.py`; settings in the script.  {args.studies} studies, two "
        "genes of each kind fitted in each.  Bias ± its standard error; rates of p < .05, whose "
        f"standard error is {np.sqrt(0.05 * 0.95 / (2 * args.studies)):.3f} near .05.  For V = 0 "
        "the rates of score, LRT and jackknife are false positives, for V > 0 they are power; "
        "means are equal in truth, so `means` is a rate of false positives everywhere.  D is the "
        "rarest cell type.  Noise measured in few cells biases V upward by itself, also in "
        "complete data; with known noise only the treatment of missing pairs is left.",
        "",
    ]
    for number, (cells, noise) in enumerate(SETTINGS):
        if number not in args.settings:
            continue
        start = time.perf_counter()
        streams = np.random.SeedSequence(500 + number).spawn(args.studies)
        done = Parallel(n_jobs=args.jobs)(delayed(one_study)(cells, noise, s) for s in streams)
        share = float(np.mean([d[1] for d in done]))
        lines += table([d[0] for d in done], share, noise, time.perf_counter() - start)
        Path(args.out).write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
