"""Level and power of the score test on counts of cells, from genes almost never seen upwards.

    python tests/benchmarks/score_counts.py [--genes 1000] [--workers 1] [--only few]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``score_counts.md`` beside this file, a line at a time.

Every gene is its own data set: negative binomial counts, dispersion .1, .5 or 1.5; library sizes
lognormal (log sd .4) about 5,000; cells as log(1 + counts per 10,000).  All four cell types share
the gene's mean and the donor's log-fold effect (sd .3 or .6), so V = 0 on every scale; under the
alternative each pair has a log-fold effect of its own.  Gaussian cells: donor effects sd .5, the
variance between cells 2 times a gamma variable of coefficient of variation .4.  Noise variances nu
and unbiased estimates nu2 of their squares come from the cells.

Three tests: with nu = 0 replaced by the noise pooled over the cell type, with zeros kept, and with
zeros kept and nu2 (the test as pseudobulk from cells has it).
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import bench_fit
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ctmm_formula.cells.tables import pooled_noise
from ctmm_formula.engine.model import Model, build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.score import score_test
from ctmm_formula.simulate.counts import measured_cells
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
BASIS = resolve("free", ["A", "B", "C", "D"]).basis
DISPERSIONS, EFFECTS = (0.1, 0.5, 1.5), (0.3, 0.6)
LIBRARY, SPREAD = 5000.0, 0.4
TESTS = ("pooled", "zeros", "nu2")


class Setting(NamedTuple):
    """Cells "few" (11-15), "mid" (11-120), "one" (600 in one type, 14 in the others), "uneven"
    (medians 600 to 16); mean counts of a cell, 0 for Gaussian cells; sd of the pairs' own log-fold
    (Gaussian: of their own) effects."""

    cells: str
    donors: int
    mean: float
    own: float = 0.0


NULL = [Setting(c, n, m) for c in ("few", "mid", "one") for n in (20, 50) for m in (0.02, 0.1, 0.5)]
NULL += [Setting(c, 50, m) for c in ("few", "mid", "one") for m in (0.05, 0.2, 2.0, 10.0)]
NULL += [Setting("few", 20, 0.005), Setting("few", 20, 0.01), Setting("few", 50, 0.005)]
NULL += [Setting("uneven", 50, 0.1), Setting("uneven", 50, 2.0)]
NULL += [Setting("mid", n, 0.0) for n in (20, 50)]
POWER = [Setting("few", 50, m, 0.4) for m in (0.02, 0.05, 0.1, 0.2)]
POWER += [Setting("mid", 50, m, 0.3) for m in (0.02, 0.05, 0.1, 0.2)]
POWER += [Setting("mid", n, 0.0, 0.3) for n in (20, 50)]


def numbers(rng: np.random.Generator, s: Setting) -> np.ndarray:
    """Cells of each pair, (donors x 4,)."""
    shape = (s.donors, 4)
    if s.cells == "few":
        return rng.integers(11, 16, shape).ravel()
    if s.cells == "mid":
        return np.rint(np.exp(rng.uniform(np.log(11), np.log(120), shape))).astype(int).ravel()
    one = s.cells == "one"
    median = np.array([600.0, 14, 14, 14] if one else [600.0, 180, 55, 16])
    donor, pair = (0.0, 0.15) if one else (0.4, 0.3)
    size = median * np.exp(donor * rng.normal(size=(s.donors, 1)) + pair * rng.normal(size=shape))
    return np.maximum(np.rint(size), 5).astype(int).ravel()


def expression(rng: np.random.Generator, s: Setting, n: np.ndarray) -> np.ndarray:
    """Values of all cells, pair by pair."""
    pairs = (s.donors, 4)
    if s.mean == 0.0:
        level = 0.5 * rng.normal(size=(s.donors, 1)) + s.own * rng.normal(size=pairs)
        sd = np.sqrt(2.0 * rng.gamma(0.4**-2, 0.4**2, pairs))
        return np.repeat(level.ravel(), n) + np.repeat(sd.ravel(), n) * rng.normal(size=n.sum())
    dispersion, effect = rng.choice(DISPERSIONS), rng.choice(EFFECTS)
    library = LIBRARY * np.exp(SPREAD * rng.normal(size=n.sum()))
    fold = np.exp(effect * rng.normal(size=(s.donors, 1)) + s.own * rng.normal(size=pairs))
    expected = s.mean * np.repeat(fold.ravel(), n) * library / LIBRARY
    counts = rng.poisson(expected * rng.gamma(1 / dispersion, dispersion, len(library)))
    return np.log1p(1e4 * counts / library)


def gene(s: Setting, number: int) -> Model:
    """One data set."""
    rng = np.random.default_rng([s.donors, round(1e3 * s.mean), round(1e3 * s.own), number])
    n = numbers(rng, s)
    y, nu, nu2 = measured_cells(expression(rng, s, n), n)
    H, donor = np.tile(np.eye(4), (s.donors, 1)), np.repeat(np.arange(s.donors), 4)
    return build_model(y, nu, H, H, donor, BASIS, n_cells=n.astype(float), nu2=nu2)


def one(s: Setting, number: int) -> np.ndarray:
    """Share of zeros; p values (sum, Cauchy, types) of the three tests; NaN where there is none."""
    model = gene(s, number)
    types = model.H.argmax(axis=1)
    pooled = pooled_noise(model.nu[:, None], model.n_cells, types)[:, 0]
    plain = replace(model, nu2=None)
    out = np.full((3, 6), np.nan)
    for k, each in enumerate((replace(plain, nu=pooled), plain, model)):
        if np.ptp(each.y) > 0 and (k > 0 or (pooled > 0).all()):
            with suppress(CTMMError):  # hardly any pair has noise
                test = score_test(each)
                out[k] = test.pvalue_sum, test.pvalue_cauchy, *test.pvalue_celltype
    return np.concatenate([[(model.nu == 0.0).mean()], out.ravel()])


def rate(p: np.ndarray, level: float) -> str:
    """Share of p values at most `level` and its standard error; missing ones do not reject."""
    share = (p <= level).mean()
    return f"{share:.3f} ({np.sqrt(share * (1 - share) / p.shape[0]):.3f})"


def row(s: Setting, found: np.ndarray) -> dict[str, object]:
    """One line of the table."""
    p = found[:, 1:].reshape(len(found), 3, 6)
    out: dict[str, object] = {
        "cells": s.cells, "donors": s.donors, "mean": s.mean or "Gaussian",
        "genes": len(found), "zero nu": f"{found[:, 0].mean():.2f}",
    }  # fmt: skip
    if s.own:
        out["own sd"] = s.own
    for level in (0.05, 0.01):
        out |= {f"{name}, {level:g}": rate(p[:, k, 0], level) for k, name in enumerate(TESTS)}
    out |= {f"Cauchy of nu2, {level:g}": rate(p[:, 2, 1], level) for level in (0.05, 0.01)}
    if not s.own:
        out["one type, nu2, .05"] = rate(p[:, 2, 2:], 0.05)
    return out | {"no test": int(np.isnan(p[:, 2, 0]).sum())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", default="", help="settings with these cells")
    parser.add_argument("--out", default=str(HERE / "score_counts.md"))
    args = parser.parse_args()
    parts = [
        "# The score test on counts of cells",
        "Written by `score_counts.py`, seeded by donors, mean, effect and number of the gene; "
        "standard errors in brackets.  "
        "Rejections at .05 and .01 by the test of all types: nu = 0 replaced by the pooled noise "
        "(*pooled*), zeros kept (*zeros*), zeros kept and unbiased squares (*nu2*).  *zero nu*: "
        "share of pairs whose cells are all alike.",
    ]
    tables: dict[str, list[dict[str, object]]] = {}
    for title, settings in (("Level: V = 0", NULL), ("Power", POWER)):
        for s in settings:
            if args.only in ("", s.cells):
                jobs = (delayed(one)(s, number) for number in range(args.genes))
                found = np.array(Parallel(args.workers)(jobs))
                tables.setdefault(title, []).append(row(s, found))
                sys.stderr.write(f"{tables[title][-1]}\n")
            text = [
                f"## {name}\n\n{bench_fit.markdown(pd.DataFrame(rows))}"
                for name, rows in tables.items()
            ]
            Path(args.out).write_text("\n\n".join([*parts, *text]) + "\n")


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
