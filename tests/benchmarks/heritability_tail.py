"""The tail of the tests of heritability in a scan: many genes of one design, nothing genetic.

    python tests/benchmarks/heritability_tail.py [--genes 100000] [--minutes 12] [--keep FILE]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Genes come in blocks
of 5,000, seeded by setting and number of the block, and are kept in a file of their own; a run goes
on where the last one ended, stops after so many minutes, and writes ``heritability_tail.md`` beside
this file of all there is.

Donors, kinship (one for all genes), covariates and numbers of cells are those of one data set of
``heritability_levels.py``; every gene has effects of donors (e = .11, W = .08), noise and errors of
its measured variance (coefficient of variation .45) of its own.  P values are those that
``fit_genes(kinship=K)`` has: of the null fit of the gene, by the law of many donors.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from heritability_levels import E, Setting, W, measured, model_of

from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.genetic_score import genetic_design, genetic_test

OUT = Path(__file__).with_suffix(".md")
SETTINGS = [Setting(100), Setting(200, kinship="sibs")]
ALPHAS = (0.01, 1e-3, 1e-4)
BLOCK = 5000
TESTS = ("any", "shared", "specific", "types")


def block(setting: Setting, number: int) -> dict[str, int]:
    """Genes of one block, and how many p values of every test are below every level."""
    model = model_of(setting, np.random.default_rng([23, setting.N]))
    design = genetic_design(model, 0, whole=False)
    rng = np.random.default_rng(list(f"{setting} {number}".encode()))
    donor, celltype, n = model.row_donor, model.H.argmax(axis=1), model.n_cells.astype(int)
    found: Counter[str] = Counter(genes=0, failed=0)
    for _ in range(BLOCK):
        own = math.sqrt(E) * rng.normal(size=(setting.N, 1))
        effects = own + math.sqrt(W) * rng.normal(size=(setting.N, setting.C))
        y, nu, _ = measured(effects[donor, celltype], n, setting, rng)
        found["genes"] += 1
        try:
            test = genetic_test(model.with_response(y, nu), design)
        except CTMMError:
            found["failed"] += 1
            continue
        logs = {"any": [test.any], "shared": [test.shared.log], "specific": [test.specific],
                "types": [one.log for one in test.types]}  # fmt: skip
        for name, values in logs.items():
            for alpha in ALPHAS:
                found[f"{name} {alpha:g}"] += int((np.array(values) < math.log(alpha)).sum())
    return dict(found)


def line(setting: Setting, blocks: list[dict[str, int]]) -> str:
    """Rates with binomial standard errors."""
    total: Counter[str] = Counter()
    for one in blocks:
        total.update(one)
    genes, cells = total["genes"], []
    for name in TESTS:
        count = genes * (setting.C if name == "types" else 1)
        for alpha in ALPHAS:
            rate = total[f"{name} {alpha:g}"] / count
            se = math.sqrt(max(rate, 1.0 / count) / count)
            digits = 5 if alpha < 1e-3 else 4
            cells.append(f"{rate:.{digits}f} ± {se:.{digits}f}")
    return f"| {setting} | {genes:,} | {total['failed']} | {' | '.join(cells)} |"


TITLE = """# The tail of the tests of heritability

Written by `heritability_tail.py`, seeded: shares of genes with p below .01, .001 and .0001 where
nothing is genetic, with binomial standard errors, by the law of many donors as in scans with one
kinship; *types* are p values of single cell types, which of a gene depend on each other.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genes", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--keep", type=Path, default=OUT.with_suffix(".blocks.jsonl"))
    options = parser.parse_args()
    begin, done = time.monotonic(), defaultdict(dict)
    for text in options.keep.read_text().splitlines() if options.keep.exists() else []:
        name, number, found = json.loads(text)
        done[name][number] = found
    for setting in SETTINGS:
        for number in range(-(-options.genes // BLOCK)):
            if number in done[str(setting)] or time.monotonic() - begin > 60.0 * options.minutes:
                continue
            found = done[str(setting)][number] = block(setting, number)
            with options.keep.open("a") as file:
                file.write(json.dumps([str(setting), number, found]) + "\n")
    levels = [f"{name} {alpha:g}" for name in TESTS for alpha in ALPHAS]
    head = ["setting", "genes", "failed", *levels]
    rows = [line(one, list(done[str(one)].values())) for one in SETTINGS if done[str(one)]]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]
    OUT.write_text("\n".join([TITLE, *table, ""]))


if __name__ == "__main__":
    main()
