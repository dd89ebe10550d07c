"""Levels of the score test of V = 0 on two scales, where a factor is shared by all cell types.

    python tests/benchmarks/log_mean_levels.py [--genes 500] [--workers 1]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``log_mean_levels.md`` beside this file.

Counts are negative binomial, dispersion .1, .5 or 1.5 by gene; library sizes lognormal (log sd .4)
about 5,000.  Four cell types differ in level (sd .7 of the logarithm, where not said otherwise),
and every donor multiplies the expression of all of them by the same factor (sd .3 of its
logarithm), so V = 0 on the scale of logarithms.  Cells of a pair: log-uniform between two bounds,
or uneven, medians of 600, 180, 55 and 16 times exp(.4 z) for the donor and exp(.3 z) for the pair.
25 genes have their cells in common; the rest of a library is one more gene, left out.  Everything
goes the way of a user: `pseudobulk` of counts, then `fit_genes`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMWarning

HERE = Path(__file__).parent
GENES, C = 25, 4
DISPERSIONS = (0.1, 0.5, 1.5)
MEDIANS = np.array([600.0, 180.0, 55.0, 16.0])
SCALES = {
    "log1p": {"normalize": "log_cp10k"},
    "log_mean": {"normalize": "log_cp10k", "summary": "log_mean"},
}


@dataclass(frozen=True)
class Setting:
    """One line: bounds of the cells of a pair (none: uneven), donors, mean counts of a cell.

    factor, level: sd of the donors' factors and of the levels of types, on the log scale;
    V: sd of effects specific to a type; depth: sd of the donors' log depths; ambient: mean share
    of counts that come from the donor's mean over types, uniform from 0 to twice that by donor.
    """

    cells: tuple[int, int] | None = (30, 120)
    N: int = 50
    mean: float = 2.0
    factor: float = 0.3
    level: float = 0.7
    V: float = 0.0
    depth: float = 0.0
    ambient: float = 0.0

    @property
    def name(self) -> str:
        """In the table."""
        given = "uneven" if self.cells is None else "{}-{}".format(*self.cells)
        more = [
            f"{what} {value:g}"
            for what, value, usual in (
                ("factor", self.factor, 0.3), ("levels", self.level, 0.7), ("V sd", self.V, 0.0),
                ("depth", self.depth, 0.0), ("ambient", self.ambient, 0.0),
            )
            if value != usual
        ]  # fmt: skip
        return ", ".join([given, *more])


MEAN_OF_CELLS = [Setting(mean=m) for m in (0.1, 0.3, 0.5, 1.0, 2.0, 10.0)]
SETTINGS = [
    *MEAN_OF_CELLS,
    Setting(N=20), Setting(N=100), Setting(N=100, mean=10.0),
    Setting(cells=(11, 120)), Setting(cells=None), Setting(cells=None, mean=0.5),
    Setting(factor=0.6), Setting(level=0.0), Setting(level=0.0, mean=0.3),
    Setting(factor=0.0, depth=0.5), Setting(factor=0.0, depth=0.5, mean=0.3),
    Setting(factor=0.0, ambient=0.1), Setting(factor=0.0, ambient=0.1, mean=0.3),
    Setting(V=0.15), Setting(V=0.15, mean=0.3), Setting(V=0.3, mean=0.1),
]  # fmt: skip


def study(at: Setting, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts of GENES genes and the rest of each library; labels of the cells."""
    rng = np.random.default_rng([SETTINGS.index(at), number])
    if at.cells is None:
        size = MEDIANS * np.exp(0.4 * rng.normal(size=(at.N, 1)) + 0.3 * rng.normal(size=(at.N, C)))
    else:
        size = np.exp(rng.uniform(*np.log(at.cells), (at.N, C)))
    cells = np.maximum(np.rint(size), 5).astype(int).ravel()
    pair = np.repeat(np.arange(at.N * C), cells)
    depth = np.repeat(np.exp(at.depth * rng.normal(size=at.N)), C)
    library = 5000.0 * np.exp(0.4 * rng.normal(size=len(pair))) * depth[pair]
    log_rate = (
        at.factor * rng.normal(size=(at.N, 1, GENES))
        + at.level * rng.normal(size=(1, C, GENES))
        + at.V * rng.normal(size=(at.N, C, GENES))
    )
    rate = at.mean * np.exp(log_rate)
    if at.ambient:
        soup = rng.uniform(0.0, 2 * at.ambient, (at.N, 1, 1))
        rate = (1 - soup) * rate + soup * rate.mean(axis=1, keepdims=True)
    rate = rate.reshape(at.N * C, GENES)
    counts = np.empty((len(pair), GENES + 1))
    for g, spread in enumerate(rng.choice(DISPERSIONS, GENES)):
        noise = rng.gamma(1 / spread, spread, len(pair))
        counts[:, g] = rng.poisson(rate[pair, g] * noise * library / 5000.0)
    counts[:, -1] = np.maximum(np.rint(library) - counts[:, :-1].sum(axis=1), 0)
    names = [*(f"g{g}" for g in range(GENES)), "rest"]
    obs = pd.DataFrame({"donor": pair // C, "celltype": [f"t{k}" for k in pair % C]})
    return pd.DataFrame(counts, columns=names), obs


def one(at: Setting, number: int) -> pd.DataFrame:
    """P values, V and hom of every gene and scale, with what the scales say of the gene."""
    counts, obs = study(at, number)
    out = []
    for scale, options in SCALES.items():
        pb = ctmm.pseudobulk(counts, obs=obs, min_cells=4, min_cells_donor=0, **options)
        pb = pb[:, :GENES].copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CTMMWarning)
            test = ctmm.fit_genes("~ C(celltype)", data=pb, tests=["score"]).table
            fit = ctmm.fit_genes("~ C(celltype)", data=pb, tests=[], method="robust").table
        found = pd.DataFrame({"p": test["p_score"], "hom": fit["hom"]})
        found["V"] = fit[[name for name in fit if name.startswith("V[")]].mean(axis=1)
        found["scale"], found["setting"] = scale, SETTINGS.index(at)
        for name in ("level_ratio", "min_counts"):
            found[name] = pb.var[name].to_numpy() if name in pb.var else np.nan
        out.append(found)
    for name in ("level_ratio", "min_counts"):  # of either scale, for both
        known = next(part[name] for part in out if part[name].notna().any())
        for part in out:
            part[name] = known
    return pd.concat(out)


def rate(p: pd.Series, level: float) -> str:
    """Share below the level, and its standard error."""
    if not len(p):
        return ""
    share = float((p < level).mean())
    return f"{share:.3f} ({np.sqrt(share * (1 - share) / len(p)):.3f})"


def line(found: pd.DataFrame, shared: bool = True) -> dict[str, str]:
    """What one set of genes has on both scales; V in units of hom where there is any."""
    out = {}
    for scale in SCALES:
        own = found[found["scale"] == scale]
        p = own["p"].dropna()
        out |= {f"{scale}: .05": rate(p, 0.05), f"{scale}: .01": rate(p, 0.01)}
        ratio = own["V"].mean() / own["hom"].mean()
        out[f"{scale}: V / hom"] = f"{ratio:+.3f}" if shared else ""
    return out


def binned(found: pd.DataFrame, name: str, edges: list[float]) -> pd.DataFrame:
    """Levels by what a scale says of its genes."""
    lines = []
    for low, high in pairwise(edges):
        part = found[(found[name] >= low) & (found[name] < high)]
        n = int((part["scale"] == "log1p").sum())
        if n:
            top = " and more" if np.isinf(high) else f" to {high:g}"
            lines.append({name: f"{low:g}{top}", "genes": n, **line(part)})
    return pd.DataFrame(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default=str(HERE / "log_mean_levels.md"))
    args = parser.parse_args()
    studies, rows, everything = args.genes // GENES, [], []
    for at in SETTINGS:
        jobs = (delayed(one)(at, number) for number in range(studies))
        found = pd.concat(Parallel(args.workers)(jobs))
        everything.append(found)
        head = {"cells of a pair": at.name, "donors": at.N, "mean": at.mean}
        rows.append(head | line(found, at.factor > 0))
        sys.stderr.write(f"{rows[-1]}\n")
    found = pd.concat(everything)
    null = [k for k, at in enumerate(SETTINGS) if at.V == at.depth == at.ambient == 0]
    found = found[found["setting"].isin(null)]
    parts = [
        "# The score test of V = 0 on two scales, where a factor is shared by all cell types",
        f"Written by `log_mean_levels.py`, {studies * GENES} genes a line, seeded by setting and "
        "number of the study; standard errors in brackets.  log1p: means over cells of log(1 + "
        'CP10K), `summary="mean"`; log_mean: logarithm of the mean CP10K, `summary="log_mean"`.  '
        "Share of p values below .05 and .01: a level, but with 'V sd' a power.  V / hom: means "
        "of the robust estimates, over genes and types.",
        bench_fit.markdown(pd.DataFrame(rows)),
        "## By counts",
        "All genes without V, depth and ambient counts, by `min_counts`: mean counts of a pair in "
        "the cell type with the smallest.",
        bench_fit.markdown(binned(found, "min_counts", [0, 2, 5, 10, 15, 20, 30, 50, 100, np.inf])),
        "## By levels",
        "The same genes by `level_ratio`: how unlike a factor moves the types on log1p.",
        bench_fit.markdown(
            binned(found, "level_ratio", [1, 1.1, 1.2, 1.35, 1.5, 1.75, 2, 3, np.inf])
        ),
    ]
    text = "\n\n".join(parts) + "\n"
    Path(args.out).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
