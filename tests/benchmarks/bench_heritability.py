"""Heritability of one gene with the kinship of a window: time by donors, cell types and variants.

    python tests/benchmarks/bench_heritability.py          writes heritability_speed.md

Run with the package installed, or from the repository with PYTHONPATH=. set.  Milliseconds of a
processor, the best of up to five, of arrays that nothing is known of: all pairs there, two
covariates, variants in linkage disequilibrium, g = .13 and V = .04 of every type genetic.  The test
is that of a scan with one kinship: *any*, *shared*, *specific* and every type, with its null fit;
what it takes of the kinship is had once.  REML has components >= 0.  Memory is the most that a
process of its own held, which imports the package and fits by REML.
"""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from heritability_levels import Setting, model_of, window

from ctmm_formula.engine import he
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import Model, build_model
from ctmm_formula.engine.relatedness import Kernel, KernelTerm
from ctmm_formula.inference.genetic_score import genetic_design, genetic_test
from ctmm_formula.inference.jackknife import jackknife

SETTINGS = [
    *((N, 4, 100) for N in (100, 200, 500, 1000)),
    *((500, C, 100) for C in (2, 8)),
    *((500, 4, m) for m in (25, 50, 200)),
    *((1000, 8, m) for m in (50, 100)),
]
"""Donors, cell types, variants."""
G, V = 0.13, 0.04
LARGE = 1000  # donors from which memory is measured
HEAD = ["donors", "cell types", "variants", "moments", "and jackknife", "weighted moments", "REML",
        "evaluations", "tests", "of a kinship, once", "peak MB"]  # fmt: skip


def gene(N: int, C: int, m: int) -> Model:
    """One gene of these sizes."""
    rng = np.random.default_rng([19, N, C, m])
    model, root = model_of(Setting(N, C), rng), window(N, False, rng, m)
    drawn = math.sqrt(G) * rng.normal(size=(m, 1)) + math.sqrt(V) * rng.normal(size=(m, C))
    y = model.y + (root[:, :m] @ drawn[: root.shape[1]])[model.row_donor, model.H.argmax(axis=1)]
    return anew(model, y, root)


def anew(model: Model, y: np.ndarray, root: np.ndarray) -> Model:
    """The same with a kernel, of which nothing is kept."""
    return build_model(
        y, model.nu, model.X, model.H, model.row_donor, model.basis, n_cells=model.n_cells,
        kinship=[KernelTerm(Kernel(None, root), model.basis)],
    )  # fmt: skip


def best(work: Callable[[Model], object], model: Model) -> float:
    """Milliseconds of a processor."""
    took: list[float] = []
    root = model.kinship[0].kernel.root
    while len(took) < 5 and sum(took) < 5.0:
        fresh = anew(model, model.y, root.copy())
        begin = time.process_time()
        work(fresh)
        took.append(time.process_time() - begin)
    return 1e3 * min(took)


def by_reml(model: Model) -> object:
    return estimate(model, "reml", Domain("nonnegative"))


def peak(N: int, C: int, m: int) -> float:
    """MB of a process that fits by REML."""
    call = [sys.executable, __file__, *map(str, (N, C, m))]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def row(N: int, C: int, m: int) -> str:
    """Times of one setting."""
    model = gene(N, C, m)
    design = genetic_design(model, 0, whole=False)
    genetic_test(model, design)
    times = [
        best(he.fit, model),
        best(lambda one: jackknife(one, he.fit(one)), model),
        best(lambda one: estimate(one, "robust"), model),
        best(by_reml, model),
        by_reml(model).convergence.n_evaluations,
        best(lambda one: genetic_test(one, design), model),
        best(lambda one: genetic_design(one, 0, whole=False), model),
    ]
    cells = [np.format_float_positional(own, 3, fractional=False, trim="-") for own in times]
    cells += [f"{peak(N, C, m):.0f}" if N >= LARGE else ""]
    return f"| {N} | {C} | {m} | {' | '.join(cells)} |"


def main() -> None:
    if len(sys.argv) > 1:
        by_reml(gene(*map(int, sys.argv[1:])))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    about = f"Python {platform.python_version()}, numpy {np.__version__}, one thread."
    lines = [
        "# Speed of heritability",
        "",
        "Written by `bench_heritability.py`.",
        *str(__doc__).split("\n\n", 2)[2:],
        about,
        "",
    ]
    lines += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for setting in sorted(SETTINGS):
        lines.append(row(*setting))
        print(lines[-1], flush=True)
    out = Path(__file__).with_name("heritability_speed.md")
    out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
