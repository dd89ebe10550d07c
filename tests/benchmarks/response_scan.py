"""One scan of genes in donors under two conditions: responses that differ, and effects.

    python tests/benchmarks/response_scan.py [--genes 10000] [--keep folder] [--pieces 3]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``response_scan.md`` and ``response_scan.png`` beside this file.  Genes come in pieces of 500; with
`--keep` an interrupted run goes on where it stopped, with `--pieces` it makes so many and ends.

One study: 24 donors under both conditions, 4 cell types, medians of 120 down to 16 cells, a third
of them under the second condition, 5 % of the pairs and the second condition of two donors missing.
Negative binomial counts of genes whose mean in a cell is lognormal (median .4, sd of logarithms
1.3), dispersion .1, .5 or 1.5; log-fold effects of donors, of sd .3 that all types share and .15 of
each type, are the same under both conditions: donors respond alike, and not at all.
log(1 + counts per 10,000).
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
from scan_null import inflation, picture

import ctmm_formula as ctmm
from ctmm_formula.simulate import CountCells

OUT = Path(__file__).with_suffix(".md")
DONORS, TYPES, PIECE = 24, ("A", "B", "C", "D"), 500
LEVELS = (0.05, 0.01, 0.001)
PANELS = {"responses": "response", "effects": "effects:stim"}


def pairs() -> pd.DataFrame:
    """Rows of the study."""
    rng = np.random.default_rng(1)
    size = np.geomspace(120, 16, 4) * np.exp(0.4 * rng.normal(size=(DONORS, 1, 1)))
    size = size * np.exp(0.3 * rng.normal(size=(DONORS, 2, 4))) / np.array([1.0, 3.0])[:, None]
    keep = rng.random(size.shape) >= 0.05
    keep[:2, 1] = False
    donor, stim, celltype = np.nonzero(keep)
    n = np.maximum(np.rint(size[keep]), 5).astype(int)
    return pd.DataFrame(
        {"donor": donor, "stim": np.array(["no", "yes"])[stim], "code": celltype,
         "celltype": np.array(TYPES)[celltype], "n_cells": n}
    )  # fmt: skip


def piece(number: int, genes: int) -> pd.DataFrame:
    """P values of a piece's genes, and CPU seconds of the scan."""
    obs, rng = pairs(), np.random.default_rng([2, number])
    donor, celltype, n = (obs[name].to_numpy() for name in ("donor", "code", "n_cells"))
    parts: list[list[np.ndarray]] = [[], [], []]
    for _ in range(genes):
        fold = 0.3 * rng.normal(size=(DONORS, 1)) + 0.15 * rng.normal(size=(DONORS, 4))
        mean, dispersion = 0.4 * np.exp(1.3 * rng.normal()), float(rng.choice([0.1, 0.5, 1.5]))
        found = CountCells(min(mean, 100.0), dispersion).measure(
            rng, fold[donor, celltype], n, donor
        )
        for part, value in zip(parts, (found.mean, found.nu, found.nu2), strict=True):
            part.append(value)
    names = [f"g{number * PIECE + g}" for g in range(genes)]
    tables = {
        key: pd.DataFrame(np.array(part).T, columns=names)
        for key, part in zip(("expr", "nu", "nu2"), parts, strict=True)
    }
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        scan = ctmm.fit_genes(
            "~ C(celltype) * stim", data=obs.astype({"donor": str}).drop(columns="code"), **tables,
            within="stim", tests=["response", "effects:stim"], n_jobs=1,
        )  # fmt: skip
    seconds = time.process_time() - begin
    p = scan.table.filter(regex="^p_(?!.*_(bonferroni|bh)$)").set_axis(names)
    return p.assign(seconds=seconds / genes)


def levels(found: pd.DataFrame) -> pd.DataFrame:
    """Rates of rejection, types together."""
    rows = []
    for name, p in grouped(found).items():
        p = p[np.isfinite(p)]
        row = {"test": name, "p values": len(p), "lambda_GC": f"{inflation(p):.3f}"}
        rows.append(row | {f"p < {level:g}": f"{(p < level).mean():.4f}" for level in LEVELS})
    return pd.DataFrame(rows)


def grouped(found: pd.DataFrame) -> dict[str, np.ndarray]:
    """P values by question; those of types are one."""
    out: dict[str, list[np.ndarray]] = {}
    for column in found.columns.drop("seconds"):
        name = column.removeprefix("p_")
        if name.endswith("]"):
            name = name.partition("[")[0] + ", types"
        out.setdefault(name, []).append(found[column].to_numpy(dtype=float))
    return {name: np.concatenate(parts) for name, parts in out.items()}


def panels(found: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """P values by panel of the picture and name."""
    every = grouped(found)
    return {
        title: {name: p for name, p in every.items() if name.startswith(start)}
        for title, start in PANELS.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--keep")
    parser.add_argument("--pieces", type=int, default=10**6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.keep or scratch)
        folder.mkdir(exist_ok=True)
        made, parts = 0, []
        for number in range(-(-args.genes // PIECE)):
            size = min(PIECE, args.genes - number * PIECE)
            path = folder / f"piece_{number}_{size}.csv"
            if not path.exists():
                if made == args.pieces:
                    return
                piece(number, size).to_csv(path)
                made += 1
                sys.stderr.write(f"{path.name}\n")
            parts.append(pd.read_csv(path, index_col=0))
    found = pd.concat(parts)
    picture(panels(found), OUT.with_suffix(".png"), 6.0)
    error = np.sqrt(0.05 * 0.95 / args.genes)
    OUT.write_text(
        "# A scan of null genes in donors under two conditions\n\n"
        f"Written by `response_scan.py`, which says what is simulated: {args.genes:,} genes from "
        "counts of cells whose donors respond alike, and not at all.  Standard error of a rate "
        f"near .05: {error:.4f}; of types together, whose tests depend on each other, between that "
        f"and half of it.\n\n{bench_fit.markdown(levels(found))}\n\n"
        f"![QQ plots]({OUT.with_suffix('.png').name})\n\nBoth tests with their fit: "
        f"{1e3 * found['seconds'].mean():.1f} ms of CPU a gene.\n"
    )


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
