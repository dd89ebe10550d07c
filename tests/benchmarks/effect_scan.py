"""One scan of genes for effects of a condition and for variances of groups, beside limma.

    python tests/benchmarks/effect_scan.py [--genes 10000] [--keep folder]

Run with the package installed, or from the repository with PYTHONPATH=. set; needs R with limma.
Writes ``effect_scan.md`` and ``effect_scan.png`` beside this file; with `--keep` an interrupted run
goes on where it stopped.

One study: 24 cases and 24 controls, 4 cell types, medians of 120 down to 16 cells, cases with a
third of the cells, 5 % of the pairs missing.  Negative binomial counts of genes whose mean in a
cell is lognormal (median .4, sd of logarithms 1.3), dispersion .1, .5 or 1.5, log-fold effects of
donors of sd .3 that all types share and .15 of each type; log(1 + counts per 10,000).  All but the
last 1,000 genes have no effect of the condition; 500 have a log-fold effect of .5 in the last type
but one, 500 of .3 in all types.

limma: each cell type by itself, ``lmFit`` and ``eBayes`` on the same pseudobulk; "trend" with
``trend = TRUE``; "cells" with numbers of cells as weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd
from scan_null import inflation, picture

import ctmm_formula as ctmm
from ctmm_formula.results.estimates import adjusted
from ctmm_formula.simulate import CountCells

OUT = Path(__file__).with_suffix(".md")
DONORS, TYPES = 48, ("A", "B", "C", "D")
EFFECTS = 1000  # genes with one, half of each kind
LEVELS = (0.05, 0.01, 0.001)
LIMMA = """
library(limma)
folder <- commandArgs(TRUE)[1]
read <- function(name) as.matrix(read.csv(file.path(folder, name), row.names = 1))
obs <- read.csv(file.path(folder, "obs.csv"))
E <- t(read("expr.csv"))
for (type in unique(obs$celltype)) {
  own <- obs$celltype == type
  X <- cbind(1, obs$status[own] == "case")
  n <- matrix(obs$n_cells[own], nrow(E), sum(own), byrow = TRUE)
  fits <- list(limma = eBayes(lmFit(E[, own], X)), trend = eBayes(lmFit(E[, own], X), trend = TRUE),
               cells = eBayes(lmFit(E[, own], X, weights = n)))
  p <- sapply(fits, function(fit) fit$p.value[, 2])
  write.csv(p, file.path(folder, paste0("limma_", type, ".csv")))
}
"""


def study(genes: int, seed: int = 1) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """Rows, and expression, noise and its squares of the genes."""
    rng = np.random.default_rng(seed)
    case = np.arange(DONORS) % 2
    size = np.geomspace(120, 16, 4) * np.exp(0.4 * rng.normal(size=(DONORS, 1)))
    size = size * np.exp(0.3 * rng.normal(size=(DONORS, 4))) * np.where(case, 1 / 3, 1.0)[:, None]
    size = np.maximum(np.rint(size), 5).astype(int)
    donor, celltype = np.nonzero(rng.random(size.shape) >= 0.05)
    n = size[donor, celltype]
    effect = np.zeros((genes, 4))
    effect[-EFFECTS : -EFFECTS // 2, 2] = 0.5
    effect[-EFFECTS // 2 :] = 0.3
    parts: list[list[np.ndarray]] = [[], [], []]
    for g in range(genes):
        fold = 0.3 * rng.normal(size=(DONORS, 1)) + 0.15 * rng.normal(size=(DONORS, 4))
        fold = fold + case[:, None] * effect[g] * rng.choice([-1.0, 1.0])
        mean, dispersion = 0.4 * np.exp(1.3 * rng.normal()), float(rng.choice([0.1, 0.5, 1.5]))
        found = CountCells(min(mean, 100.0), dispersion).measure(
            rng, fold[donor, celltype], n, donor
        )
        for part, value in zip(parts, (found.mean, found.nu, found.nu2), strict=True):
            part.append(value)
    names = [f"g{g}" for g in range(genes)]
    obs = pd.DataFrame(
        {"donor": [f"d{i:02d}" for i in donor], "celltype": np.array(TYPES)[celltype],
         "status": np.where(case, "case", "control")[donor], "n_cells": n}
    )  # fmt: skip
    tables = {
        key: pd.DataFrame(np.array(part).T, columns=names)
        for key, part in zip(("expr", "nu", "nu2"), parts, strict=True)
    }
    return obs, tables


def limma(obs: pd.DataFrame, expr: pd.DataFrame, folder: Path) -> dict[str, np.ndarray]:
    """P values (genes, types) by kind."""
    obs.to_csv(folder / "obs.csv", index=False)
    expr.to_csv(folder / "expr.csv")
    (folder / "limma.R").write_text(LIMMA)
    subprocess.run(["Rscript", "--vanilla", folder / "limma.R", folder], check=True)
    found = [pd.read_csv(folder / f"limma_{t}.csv", index_col=0) for t in TYPES]
    return {name: np.column_stack([one[name] for one in found]) for name in found[0]}


def bh(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's p values, column by column."""
    return np.column_stack([
        adjusted(column, "fdr_bh") for column in p.reshape(len(p), -1).T
    ])  # fmt: skip


def run(genes: int, folder: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """P values by name, of types (genes, types), and what they cost."""
    obs, tables = study(genes)
    out, notes = {}, []
    scans = {"effects:status": {}, "groups": {"by": "status"}}
    for test, more in scans.items():
        name = test.partition(":")[0]
        cost, begin = folder / f"{name}.txt", time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scan = ctmm.fit_genes(
                "~ C(celltype) * status", data=obs, **tables, tests=[test], n_jobs=1,
                out=folder / f"{name}.parquet", **more,
            )  # fmt: skip
        spent = time.process_time() - begin
        if not cost.exists():  # what is gone on with says what it took
            cost.write_text(
                f"{test}: {spent:.0f} s of CPU for {genes:,} genes, {1e3 * spent / genes:.1f} ms "
                f"each, with the fit; {scan.counts()}"
            )
        notes.append(cost.read_text())
        sys.stderr.write(notes[-1] + "\n")
        ends = {"": "", "mean": "_mean", "differences": "_heterogeneity", "shared": "_shared"}
        for what, end in ends.items():
            if f"p_{test}{end}" in scan.table:
                out[f"{name} {what}".strip()] = scan.table[f"p_{test}{end}"].to_numpy()
        types = [f"p_{test}[{t}]" for t in TYPES]
        out[f"{name} types"] = scan.table[types].to_numpy(dtype=float)
    found = limma(obs, tables["expr"], folder)
    out |= {f"limma{'' if k == 'limma' else f', {k}'} types": p for k, p in found.items()}
    return out, notes


def levels(found: dict[str, np.ndarray], null: np.ndarray) -> pd.DataFrame:
    rows = []
    for name, p in found.items():
        own = p[null].reshape(null.sum(), -1)
        known = own[np.isfinite(own)]
        row = {"test": name, "genes": int(np.isfinite(own).any(axis=1).sum())}
        row |= {"lambda_GC": f"{inflation(known):.3f}"}
        rows.append(row | {f"p < {level:g}": f"{(known < level).mean():.4f}" for level in LEVELS})
    return pd.DataFrame(rows)


def power(found: dict[str, np.ndarray], null: np.ndarray) -> pd.DataFrame:
    """Share of genes with BH below .05, and of the null ones among those found."""
    rows = []
    one, everywhere = np.zeros((2, len(null)), dtype=bool)
    one[-EFFECTS : -EFFECTS // 2], everywhere[-EFFECTS // 2 :] = True, True
    for name, p in found.items():
        if name.startswith("groups"):
            continue
        hit = bh(p) < 0.05
        label = name
        if p.ndim == 2:
            label = f"{name}: any"
            types = {"one type": hit[one][:, 2].mean(), "all types": hit[everywhere].mean()}
            rows.append({
                "test": f"{name}: each", **{k: f"{v:.3f}" for k, v in types.items()},
                "false among found": f"{hit[null].sum() / max(hit.sum(), 1):.3f}",
            })  # fmt: skip
            hit = hit.any(axis=1)
        hit = hit.ravel()
        rows.append({
            "test": label, "one type": f"{hit[one].mean():.3f}",
            "all types": f"{hit[everywhere].mean():.3f}",
            "false among found": f"{(hit & null).sum() / max(hit.sum(), 1):.3f}",
        })  # fmt: skip
    return pd.DataFrame(rows)


def panels(found: dict[str, np.ndarray], null: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """P values of null genes by panel of the picture and name."""
    starts = {"effects": "effects", "limma, by type": "limma", "variances of groups": "groups"}
    return {
        title: {name: p[null].ravel() for name, p in found.items() if name.startswith(start)}
        for title, start in starts.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=10_000, help="without an effect")
    parser.add_argument("--keep")
    args = parser.parse_args()
    genes = args.genes + EFFECTS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(exist_ok=True)
        found, notes = run(genes, folder)
    null = np.arange(genes) < args.genes
    picture(panels(found, null), OUT.with_suffix(".png"), 8.0)
    error = np.sqrt(0.05 * 0.95 / args.genes)
    parts = [
        "# A scan for effects and for variances of groups",
        f"Written by `effect_scan.py`, which says what is simulated: {args.genes:,} genes without "
        f"an effect, {EFFECTS:,} with one, from counts of cells.",
        "## Genes without an effect",
        f"Standard error of a rate near .05: {error:.4f}; of types together, whose tests depend on "
        "each other, between that and half of it.",
        bench_fit.markdown(levels(found, null)),
        f"![QQ plots]({OUT.with_suffix('.png').name})",
        "## Genes with an effect",
        "Share with a Benjamini-Hochberg p below .05 over all genes: *each*, in the types that "
        "have the effect; *any*, in at least one type.",
        bench_fit.markdown(power(found, null)),
        "## Cost",
        "; ".join(notes) + ".",
    ]
    OUT.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
