"""Speed of one fit, the exact jackknife and their growth, against lme4 with the residual pinned.

Run with the package installed, or from the repository with PYTHONPATH=. set:
``python tests/benchmarks/bench_fit.py`` (two minutes; R with lme4 for the comparison).
Prints the tables and writes ``fit_speed.md`` beside this file.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import ctmm_formula as ctmm
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
NONNEGATIVE, NOISE = Domain("nonnegative", 0.1), Domain("noise", 0.1)
BATCHES, COVARIATES = 24, 8


def simulate(donors: int, types: int, seed: int = 0) -> pd.DataFrame:
    """Free truth, a batch effect, 8 covariates and noise of 10 to 120 cells a pair."""
    rng = np.random.default_rng([seed, donors, types])
    donor, celltype = np.divmod(np.arange(donors * types), types)
    batch = rng.permutation(np.arange(donors) % BATCHES)
    x = rng.normal(size=(donors, COVARIATES))
    n_cells = np.exp(rng.uniform(np.log(10), np.log(120), donors * types))
    nu = 4.0 / n_cells
    V = np.array([0.4, 0.2, 0.3, 0.15])[celltype % 4]
    y = (
        rng.normal(size=types)[celltype]
        + (0.5 * rng.normal(size=donors))[donor]
        + rng.normal(size=donors * types) * np.sqrt(V + nu)
        + (0.4 * rng.normal(size=BATCHES))[batch[donor]]
        + x[donor] @ rng.normal(scale=0.2, size=COVARIATES)
    )
    frame = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": batch[donor]})
    for name in frame:
        frame[name] = name[0] + frame[name].astype(str).str.zfill(4)
    for k in range(COVARIATES):
        frame[f"x{k + 1}"] = x[donor, k]
    return frame.assign(expr=y, nu=nu, n_cells=np.round(n_cells))


def arrays(frame: pd.DataFrame, full: bool) -> tuple:
    """What a formula on `frame` comes to: build_model's arguments; `full` adds batch and x."""
    codes, names = pd.factorize(frame["celltype"], sort=True)
    H = np.eye(len(names))[codes]
    X, random = H, []
    if full:
        X = np.hstack([H, frame[[f"x{k + 1}" for k in range(COVARIATES)]].to_numpy()])
        random = [RandomComponent(pd.factorize(frame["batch"])[0], np.ones(len(frame)))]
    return (
        frame["expr"].to_numpy(), frame["nu"].to_numpy(), X, H, pd.factorize(frame["donor"])[0],
        resolve("free", names).basis, random,
    )  # fmt: skip


def build(frame: pd.DataFrame, full: bool) -> Model:
    """The model of `frame`."""
    return build_model(*arrays(frame, full))


def formula(full: bool) -> str:
    extra = "".join(f" + x{k + 1}" for k in range(COVARIATES)) + " + (1 | batch)"
    return "expr ~ 0 + celltype" + extra * full


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median over repeats, after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def lme4(frame: pd.DataFrame, full: bool, repeats: int) -> tuple[float, float, float]:
    """Median seconds of the whole fit and of the optimisation, and the log-likelihood."""
    if shutil.which("Rscript") is None:
        return (float("nan"),) * 3
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "data.csv"
        frame.to_csv(table, index=False, float_format="%.17g")
        script = ["Rscript", "--vanilla", str(HERE.parent / "r" / "lme4_pinned.R"), str(table)]
        arguments = [str(int(full)), str(COVARIATES * full), str(repeats)]
        out = subprocess.run([*script, *arguments], capture_output=True, text=True, check=True)
    result = pd.read_csv(io.StringIO(out.stdout))
    return result["total"].median(), result["optimise"].median(), result["llf"].iloc[0]


def table_of_fits(sizes: tuple[int, ...] = (50, 100, 300, 1000)) -> pd.DataFrame:
    """One free REML fit at C = 4, both sides with every component >= 0."""
    rows = []
    for full in (False, True):
        for donors in sizes:
            frame = simulate(donors, 4)
            repeats = 9 if donors <= 300 else 5
            model = build(frame, full)
            ready = arrays(frame, full)
            ours = seconds(
                lambda a=ready: estimate(build_model(*a), "reml", NONNEGATIVE), 5 * repeats
            )
            core = seconds(lambda m=model: estimate(m, "reml", NONNEGATIVE), 5 * repeats)
            default = seconds(lambda m=model: estimate(m, "reml", NOISE), 5 * repeats)
            whole = float("nan")
            if hasattr(ctmm, "fit"):
                text = formula(full)
                whole = seconds(lambda f=frame, t=text: ctmm.fit(t, data=f), repeats)
            total, optimise, llf = lme4(frame, full, repeats)
            fit = estimate(model, "reml", NONNEGATIVE)
            rows.append(
                {
                    "model": "24 batches + 8 covariates" if full else "no batch",
                    "donors": donors,
                    "fit() ms": 1e3 * whole,
                    "build + estimate ms": 1e3 * ours,
                    "estimate ms": 1e3 * core,
                    "estimate, noise bounds ms": 1e3 * default,
                    "evaluations": fit.convergence.n_evaluations,
                    "lme4 whole ms": 1e3 * total,
                    "lme4 optimise ms": 1e3 * optimise,
                    "ratio fit()": total / whole,
                    "ratio build + estimate": total / ours,
                    "ratio estimate": optimise / core,
                    "llf - lme4": fit.llf - llf,
                }
            )
    return pd.DataFrame(rows)


def table_of_jackknives() -> pd.DataFrame:
    """Exact delete-one-donor jackknife, free REML, C = 4."""
    rows = []
    for donors, full in ((50, False), (94, True)):
        frame = simulate(donors, 4)
        model = build(frame, full)
        fit = estimate(model, "reml", NOISE)
        result = jackknife(model, fit, NOISE)
        took = seconds(lambda m=model, f=fit: jackknife(m, f, NOISE), 9)
        total = lme4(frame, full, 5)[0]
        rows.append(
            {
                "model": "24 batches + 8 covariates" if full else "no batch",
                "donors": donors,
                "jackknife s": took,
                "per refit ms": 1e3 * took / donors,
                "failed": len(result.failed),
                "lme4 looped s (refits x one fit)": total * donors,
                "ratio": total * donors / took,
            }
        )
    return pd.DataFrame(rows)


def table_of_growth() -> pd.DataFrame:
    """Seconds of one free REML fit and log-log slopes, batch and covariates."""
    rows = []
    for label, settings in {
        "donors, C = 4": [(n, 4) for n in (300, 1000, 3000)],
        "cell types, N = 300": [(300, c) for c in (4, 8, 16)],
    }.items():
        took, evaluations = [], []
        for donors, types in settings:
            frame = simulate(donors, types)
            model = build(frame, True)
            ready = arrays(frame, True)
            took.append(seconds(lambda a=ready: estimate(build_model(*a), "reml", NOISE), 5))
            evaluations.append(estimate(model, "reml", NOISE).convergence.n_evaluations)
        sizes = [max(s) if "donors" in label else s[1] for s in settings]
        per_call = np.array(took) / np.array(evaluations)
        rows.append(
            {
                "growth in": label,
                "sizes": ", ".join(map(str, sizes)),
                "build + estimate ms": ", ".join(f"{1e3 * t:.1f}" for t in took),
                "evaluations": ", ".join(map(str, evaluations)),
                "slope": slope(sizes, took),
                "slope per evaluation": slope(sizes, per_call),
            }
        )
    return pd.DataFrame(rows)


def slope(sizes: list[int], values: object) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table_of_starts() -> pd.DataFrame:
    """Fresh processes: import, and import plus a first fit, compiled code cached and not."""
    first = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import bench_fit as b; "
        "b.estimate(b.build(b.simulate(50, 4), True), 'reml', b.NOISE)"
    )
    rows = []
    for label, code in (
        ("python, nothing else", "pass"),
        ("import numpy, pandas", "import numpy, pandas"),
        ("import ctmm_formula", "import ctmm_formula"),
        ("first fit, compiled code cached", first),
    ):
        rows.append({"fresh process": label, "s": fresh(code, 5)})
    with tempfile.TemporaryDirectory() as folder:
        rows.append({"fresh process": "first fit ever (compiles)", "s": fresh(first, 1, folder)})
    return pd.DataFrame(rows)


def fresh(code: str, repeats: int, cache: str | None = None) -> float:
    environment = os.environ | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    environment["PYTHONPATH"] = str(HERE.parents[1])
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        times.append(time.perf_counter() - begin)
    return min(times)


def markdown(table: pd.DataFrame) -> str:
    def cell(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"
        return str(value)

    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * table.shape[1]]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines)


def main() -> None:
    tables = {
        "One free REML fit, C = 4, every component >= 0 on both sides": table_of_fits,
        "Exact jackknife": table_of_jackknives,
        "Growth of one free REML fit, 24 batches + 8 covariates": table_of_growth,
        "Start-up, seconds": table_of_starts,
    }
    parts = [
        "# Speed of a fit",
        "Written by `bench_fit.py`.  Warm, one thread, median of repeats, elapsed time.  lme4: "
        "residual sd pinned at 1, one start, its own default optimiser (nlopt); whole = formula, "
        "set-up, optimisation, without loading R.  `fit()` is ours from the formula to the result "
        "(default bounds), `build + estimate` the whole fit after formula handling, "
        "from arrays, `estimate` "
        "from a model already laid out.  "
        "Ratios: lme4 whole / `fit()`, lme4 whole / `build + estimate`, lme4 optimise / "
        "`estimate`.",
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
    ]
    for title, make in tables.items():
        text = markdown(make())
        sys.stdout.write(f"\n## {title}\n{text}\n")
        parts.append(f"## {title}\n\n{text}")
    (HERE / "fit_speed.md").write_text("\n\n".join(parts) + "\n")


def one_thread() -> None:
    """Start again with one thread: numpy reads this when it is loaded."""
    wanted = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    if wanted.items() <= os.environ.items() and "OPENBLAS_CORETYPE" not in os.environ:
        return
    environment = os.environ | wanted
    environment.pop("OPENBLAS_CORETYPE", None)
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


if __name__ == "__main__":
    one_thread()
    main()
