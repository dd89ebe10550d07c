"""A scan of genes whose kinships are of their own windows: time a gene, and for 10,000 of them.

    python tests/benchmarks/window_scan.py          writes window_scan.md

Variants in blocks of 20 that go together, 2,500 base pairs apart; 8 cell types, a tenth of the
pairs missing, two covariates, the test of heritability alone (components by moments come with it).
Processor time of one thread, without the first genes, which compile; of 10,000 genes on two cores
it is extrapolated: blocks do not wait for each other.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import ctmm_formula as ctmm
from ctmm_formula import simulate
from ctmm_formula.results.summary import installed

SETTINGS = [(1000, 1000, 60), (1000, 500, 60), (500, 1000, 80), (200, 1000, 200), (200, 200, 200)]
"""Donors, variants of a window, genes."""
SPACING, BLOCK, TYPES = 2500, 20, 8
FIRST = 4
TARGET = 20.0  # minutes, of 10,000 genes at 1,000 donors


def one(donors: int, variants: int, n_genes: int) -> dict[str, Any]:
    """Times of one setting."""
    G = simulate.simulate_genotypes(
        donors, 4 * variants, chromosomes=1, block=BLOCK, spacing=SPACING, missing=0.01, rng=1
    )
    window = variants * SPACING // 2
    own = simulate.Heredity(G, cis=0.1, window=window)
    genes = simulate.simulate_genes(
        n_genes + FIRST, donors, TYPES, V=0.1, missing=0.1, heredity=own, rng=2
    )
    options = {"genotypes": G, "window": window, "maf": 0.05, "positions": genes.positions}

    def scan(names: list[str]) -> Any:
        return ctmm.fit_genes("~ C(celltype) + PC1 + PC2", data=genes, genes=names, **options)

    names = list(genes.expr.columns)
    scan(names[:FIRST])
    start = time.process_time()
    found = scan(names[FIRST:])
    each = (time.process_time() - start) / n_genes
    assert found.counts() == {"ok": n_genes}
    return {
        "donors": donors, "variants": int(found.table["n_snps"].median()), "genes": n_genes,
        "ms": 1e3 * each, "minutes": each * 10_000 / 2 / 60,
    }  # fmt: skip


def main() -> None:
    rows = [one(*setting) for setting in SETTINGS]
    head = "donors", "variants (median)", "genes timed", "ms a gene", "minutes of 10,000, two cores"
    about = (
        f"numpy {installed('numpy')}, scipy {installed('scipy')}.  The target is {TARGET:g} "
        "minutes for 10,000 genes at 1,000 donors; minutes are extrapolated."
    )
    lines = ["# Scans of genes with windows of their own", "", *str(__doc__).split("\n\n")[2:]]
    lines += [about, "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = row["donors"], row["variants"], row["genes"], f"{row['ms']:.0f}"
        lines.append(f"| {' | '.join(map(str, cells))} | {row['minutes']:.1f} |")
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
