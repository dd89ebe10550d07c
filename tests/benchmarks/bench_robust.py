"""Speed of noise-robust estimates: fit, test of equal means, jackknife of one gene.

    python tests/benchmarks/bench_robust.py [--runs 100]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``robust_speed.md`` beside this file; warm, one thread, elapsed time, the best of many runs of a few
milliseconds each, as others may use the machine.  The design is laid out once, as in a scan.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd

from ctmm_formula.engine import robust, sandwich
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
STUDIES = [
    *({"donors": N} for N in (100, 200, 400, 800, 1600)),
    {"donors": 100, "covariates": 8},
    {"donors": 100, "structure": "full"},
    {"donors": 100, "types": 8},
    {"donors": 100, "batches": 25},
    {"donors": 400, "batches": 100},
    {"donors": 100, "batches": 25, "crossed": True},
]


def study(
    donors: int, types: int = 4, structure: str = "free", covariates: int = 0, batches: int = 0,
    crossed: bool = False,
) -> Model:  # fmt: skip
    """Complete data; ``crossed`` joins all donors through ten more levels."""
    rng = np.random.default_rng([donors, types])
    donor = np.repeat(np.arange(donors), types)
    H = np.tile(np.eye(types), (donors, 1))
    n = len(donor)
    cells = rng.integers(11, 120, n).astype(float)
    nu = rng.uniform(0.5, 2.0, n) / cells
    y = 0.5 * rng.normal(size=donors)[donor] + rng.normal(size=n) * np.sqrt(0.05 + nu)
    X = np.hstack([H, rng.normal(size=(donors, covariates))[donor]])
    levels = [rng.permutation(np.arange(donors) % batches)] if batches else []
    levels += [rng.permutation(np.arange(donors) % 10)] if crossed else []
    random = [RandomComponent(level[donor], np.ones(n)) for level in levels]
    basis = resolve(structure, [f"c{k}" for k in range(types)]).basis
    return build_model(y, nu, X, H, donor, basis, random, cells)


def milliseconds(work: Callable[[], object], runs: int) -> float:
    """Of one call: the best run, after two calls to warm up."""
    work()
    begin = time.perf_counter()
    work()
    repeats = max(round(3e-3 / (time.perf_counter() - begin)), 1)
    best = np.inf
    for _ in range(runs):
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        best = min(best, (time.perf_counter() - begin) / repeats)
    return 1e3 * best


def times(settings: dict[str, object], runs: int) -> dict[str, object]:
    """One line of the table."""
    model = study(**settings)
    donors, types = int(model.n_donors), model.H.shape[1]
    design = robust.lay_out(model)
    fit = robust.weigh(model, design)
    L = np.zeros((types - 1, model.X.shape[1]))
    L[:, :types] = np.diff(np.eye(types), axis=0)

    def gene() -> None:
        fit = robust.weigh(model, design)
        sandwich.hotelling(fit, L)
        fit.component_errors()

    whole = milliseconds(gene, runs)
    return {
        "donors": donors,
        "cell types": types,
        "structure": settings.get("structure", "free"),
        "fixed effects": model.X.shape[1],
        "units": fit.n_units,
        "fit": milliseconds(lambda: robust.weigh(model, design), runs),
        "test of means": milliseconds(lambda: sandwich.hotelling(replace(fit), L), runs),
        "jackknife": milliseconds(lambda: replace(fit).replicates, runs),
        "all three": whole,
        "all, us a donor": 1e3 * whole / donors,
        "REML fit": milliseconds(lambda: estimate(model, "reml"), runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    args = parser.parse_args()
    table = pd.DataFrame([times(settings, args.runs) for settings in STUDIES])
    text = [
        "# Speed of noise-robust estimates",
        "Written by `bench_robust.py`.  Milliseconds a gene, warm, one thread, the best of "
        f"{args.runs} runs; the design laid out once, as in a scan.  The leverages of the units "
        "are in the test and in the jackknife, but once in all three.",
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
        bench_fit.markdown(table),
    ]
    (HERE / "robust_speed.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
