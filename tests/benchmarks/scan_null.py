"""Every test of a scan under the null: QQ plot, genomic inflation and positive rates.

    python tests/benchmarks/scan_null.py [--genes 10000] [--donors 94] [--keep folder]

Genes with V = 0 and the same mean in all cell types: 4 cell types, 24 batches, 2 covariates, shared
variance .25, batch variance .1, 10 to 120 cells a pair, variance between cells gamma with mean 3
and CV .4.  "exact nu": the noise variance is known.  "noisy nu": it is estimated from the cells
(chi2, n - 1 degrees of freedom) and off by a further (1 +- e), e ~ Beta(2, 3), sd .33.  With
`--keep` an interrupted run goes on where it stopped.  Writes ``scan_null.md`` and
``scan_null.png``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd
from scipy.stats import beta, chi2

import ctmm_formula as ctmm

HERE = Path(__file__).parent
TYPES, BATCHES, COVARIATES = 4, 24, 2
NOISES = {"exact nu": False, "noisy nu": True}
SCANS = {
    "REML": {"tests": ["score", "lrt", "wald", "jackknife", "mean"]},
    "HE": {"method": "he", "tests": ["jackknife", "mean"]},
}
LEVELS = (0.05, 0.01, 0.001)


def simulate(genes: int, donors: int, noisy: bool, seed: int = 0) -> dict:
    """Rows, expression and noise of null genes."""
    rng = np.random.default_rng([seed, donors, noisy])
    donor, celltype = np.divmod(np.arange(donors * TYPES), TYPES)
    batch = rng.permutation(np.arange(donors) % BATCHES)
    x = rng.normal(size=(donors, COVARIATES))
    n = np.round(np.exp(rng.uniform(np.log(10), np.log(120), len(donor))))
    shape = (len(donor), genes)
    nu = rng.gamma(1 / 0.16, 3 * 0.16, shape) / n[:, None]
    y = (
        (0.5 * rng.normal(size=(donors, genes)))[donor]
        + (np.sqrt(0.1) * rng.normal(size=(BATCHES, genes)))[batch[donor]]
        + np.sqrt(nu) * rng.normal(size=shape)
        + x[donor] @ rng.normal(scale=0.2, size=(COVARIATES, genes))
    )
    if noisy:
        nu = nu * rng.chisquare(n[:, None] - 1, shape) / (n[:, None] - 1)
        nu = nu * (1 + rng.choice([-1.0, 1.0], shape) * rng.beta(2.0, 3.0, shape))
    obs = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": batch[donor]})
    for name in obs:
        obs[name] = name[0] + obs[name].astype(str).str.zfill(4)
    for k in range(COVARIATES):
        obs[f"x{k + 1}"] = x[donor, k]
    names = [f"g{k}" for k in range(genes)]
    expr, noise = (pd.DataFrame(values, columns=names) for values in (y, nu))
    return {"data": obs.assign(n_cells=n), "expr": expr, "nu": noise}


def run(genes: int, donors: int, folder: Path, jobs: int) -> dict[str, dict[str, np.ndarray]]:
    """P values by kind of noise and test."""
    out: dict[str, dict[str, np.ndarray]] = {}
    for noise, noisy in NOISES.items():
        data = simulate(genes, donors, noisy)
        out[noise] = {}
        for label, settings in SCANS.items():
            begin = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ctmm.CTMMWarning)
                scan = ctmm.fit_genes(
                    "~ C(celltype) + x1 + x2", **data, random="batch", n_jobs=jobs,
                    out=folder / f"null_{label}_{noise.split()[0]}.parquet", **settings,
                )  # fmt: skip
            for column in scan.layout.tested:
                name = f"{label} {column[2:]}".replace("REML score", "score")
                name = name.replace("_cauchy", ", Cauchy")
                out[noise][name] = scan.table[column].to_numpy()
            sys.stdout.write(
                f"{noise}, {label}: {time.perf_counter() - begin:.0f} s, {scan.counts()}\n"
            )
            sys.stdout.flush()
    return out


def inflation(p: np.ndarray) -> float:
    """Median of the chi2 of one degree of freedom with these p values, over that of the null."""
    return float(np.median(chi2.isf(p, 1)) / chi2.median(1))


def table(found: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    rows = []
    for noise, tests in found.items():
        for name, p in tests.items():
            p = p[np.isfinite(p)]
            row = {"noise": noise, "test": name, "genes tested": len(p), "lambda_GC": inflation(p)}
            rows.append(row | {f"p < {level:g}": (p < level).mean() for level in LEVELS})
    return pd.DataFrame(rows)


def quantiles(ax, tests: dict[str, np.ndarray], title: str, top: float) -> None:
    """QQ plot of the p values of null genes, by name, with the band of 95 %."""
    longest = 0
    for name, p in tests.items():
        p = np.sort(p[np.isfinite(p)])
        longest = max(longest, len(p))
        expected = (np.arange(len(p)) + 0.5) / len(p)
        value = -np.log10(np.maximum(p, 1e-300))
        ax.plot(-np.log10(expected), value, ".", ms=3, label=f"{name} ({inflation(p):.2f})")
    rank = np.unique(np.geomspace(1, longest, 200).astype(int))
    at = -np.log10((rank - 0.5) / longest)
    low, high = (beta.ppf(q, rank, longest + 1 - rank) for q in (0.975, 0.025))
    ax.fill_between(at, -np.log10(low), -np.log10(high), color="0.85", zorder=0)
    ax.plot(at, at, color="0.3", lw=0.8)
    ax.set(xlabel="expected -log10 p", title=title, ylim=(0, top))
    ax.legend(fontsize=7, title="test (lambda_GC)", title_fontsize=7, loc="upper left")


def picture(found: dict[str, dict[str, np.ndarray]], path: Path, top: float = 10.0) -> None:
    """QQ plots side by side: p values of tests by panel and name, up to 10^-top."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(5 * len(found), 4.6), sharey=True)
    for ax, (title, tests) in zip(axes, found.items(), strict=True):
        quantiles(ax, tests, title, top)
    axes[0].set_ylabel(f"observed -log10 p (cut at {top:g})")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--donors", type=int, default=94)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", default=None)
    parser.add_argument("--out", default=str(HERE / "scan_null.md"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(exist_ok=True)
        found = run(args.genes, args.donors, folder, args.jobs)
    out = Path(args.out)
    picture(found, out.with_suffix(".png"))
    text = bench_fit.markdown(table(found))
    sys.stdout.write(text + "\n")
    error = np.sqrt(0.05 * 0.95 / args.genes)
    out.write_text(
        "# A scan of null genes\n\n"
        f"Written by `scan_null.py`: {args.genes:,} genes with V = 0 and equal means, "
        f"{args.donors} donors; settings in the script.  Standard error of a rate near .05: "
        f"{error:.4f}.  Genes without a p value (fits on an edge, see the scan's `reason`) do not "
        f"count.\n\n{text}\n\n![QQ plots]({out.with_suffix('.png').name})\n"
    )


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
