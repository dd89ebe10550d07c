"""Speed and memory of a scan of all genes, its growth, its workers, ten kills and broken genes.

    python tests/benchmarks/bench_scan.py [--genes 200] [--large 16] [--parts ipsc workers ...]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Times of `--genes`
genes are scaled to 11,231 (10,000 for the large study); ``--genes 11231`` runs them all.  Prints
the tables and writes ``scan_speed.md`` beside this file, where other parts stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import bench_fit
import joblib
import numpy as np
import pandas as pd

import ctmm_formula as ctmm

HERE = Path(__file__).parent
ALL = 11_231
REPEATS = 3
STUDY = {"donors": 94, "types": 4, "batches": 24, "covariates": 8}
LARGE = {"donors": 980, "types": 8, "batches": 75, "covariates": 8}
KINDS = {
    "robust (the default), test of means, score": {
        "method": "robust", "tests": ["mean", "score"],
    },
    "free REML": {"tests": []},
    "free REML + score": {"tests": ["score"]},
    "free REML + exact jackknife + score + mean": {"tests": ["score", "jackknife", "mean"]},
    "free HE + exact jackknife": {"method": "he", "tests": ["jackknife"]},
    "free HE + exact jackknife + score + mean": {
        "method": "he", "tests": ["score", "jackknife", "mean"],
    },
    "hom, free and full REML with their likelihood ratios": {
        "tests": [], "models": ["hom", "full"],
    },
}  # fmt: skip


def simulate(genes: int, donors: int, types: int, batches: int, covariates: int, seed: int = 0):
    """A study: rows, expression and noise (rows x genes); free truth, 10 to 120 cells a pair."""
    rng = np.random.default_rng([seed, donors, types])
    donor, celltype = np.divmod(np.arange(donors * types), types)
    batch = rng.permutation(np.arange(donors) % max(batches, 1))
    x = rng.normal(size=(donors, covariates))
    n = np.round(np.exp(rng.uniform(np.log(10), np.log(120), donors * types)))
    per_cell = rng.gamma(6.0, 0.5, (types, genes))[celltype]
    nu = per_cell * rng.chisquare(n[:, None] - 1, (len(n), genes)) / (n[:, None] - 1) / n[:, None]
    V = rng.choice([0.0, 0.1, 0.4], (types, genes))[celltype]
    y = (
        rng.normal(size=(types, genes))[celltype]
        + (0.5 * rng.normal(size=(donors, genes)))[donor]
        + rng.normal(size=nu.shape) * np.sqrt(V + per_cell / n[:, None])
        + (0.3 * rng.normal(size=(max(batches, 1), genes)))[batch[donor]]
        + x[donor] @ rng.normal(scale=0.2, size=(covariates, genes))
    )
    obs = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": batch[donor]})
    for name in obs:
        obs[name] = name[0] + obs[name].astype(str).str.zfill(4)
    for k in range(covariates):
        obs[f"x{k + 1}"] = x[donor, k]
    names = [f"g{k}" for k in range(genes)]
    frames = (pd.DataFrame(values, columns=names) for values in (y, nu))
    expr, noise = frames
    return {"data": obs.assign(n_cells=n), "expr": expr, "nu": noise}


def scan(data: dict, method: str = "reml", **settings: object) -> ctmm.Scan:
    covariates = [name for name in data["data"] if name.startswith("x")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        return ctmm.fit_genes(
            " + ".join(["~ C(celltype)", *covariates]), **data, method=method,
            random="batch" if data["data"]["batch"].nunique() > 1 else None, **settings,
        )  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def clock(text: float) -> str:
    return (
        f"{text:.0f} s"
        if text < 120
        else f"{text / 60:.1f} min"
        if text < 7200
        else f"{text / 3600:.1f} h"
    )


def cold(settings: dict) -> tuple[float, float]:
    """Seconds of the scan and peak memory (MB) in a process of its own, compiled code cached."""
    result = in_child(settings, dict(os.environ))
    return result["seconds"], result["memory"]


def in_child(settings: dict, environment: dict[str, str]) -> dict[str, float]:
    """What a scan took in a process of its own with these environment variables."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import bench_scan as b; "
    code += f"b.child({settings!r})"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(out.stdout.splitlines()[-1])


def child(settings: dict) -> None:
    """One scan; what it took, as JSON."""
    import resource

    study, genes, more = settings["study"], settings["genes"], settings["more"]
    scan(simulate(2, **study), **more, n_jobs=1)  # loads the compiled code
    data = simulate(genes, **study)
    begin = time.process_time()
    took = seconds(lambda: scan(data, **more, n_jobs=settings["n_jobs"]))
    cpu = time.process_time() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(json.dumps({"seconds": took, "cpu": cpu, "memory": memory}) + "\n")


def table_of_kinds(genes: int, large: int) -> pd.DataFrame:
    """94 donors, 4 cell types, 24 batches, 8 covariates; two workers."""
    rows = []
    for label, more in KINDS.items():
        took, memory = cold({"study": STUDY, "genes": genes, "more": more, "n_jobs": 2})
        rows.append(
            {
                "scan": label,
                "genes run": genes,
                "s": took,
                "ms per gene": 1e3 * took / genes,
                f"{ALL:,} genes": clock(took * ALL / genes),
                "peak MB": memory,
            }
        )
    return pd.DataFrame(rows)


def table_of_defaults(genes: int, large: int) -> pd.DataFrame:
    """Robust estimates with their test of means beside REML by the model's covariance, in turn."""
    kinds = {
        "REML, variances by the model's covariance": {"method": "reml", "tests": ["wald"]},
        "robust (the default), test of means": {"method": "robust", "tests": ["mean"]},
        "robust, test of means, score": {"method": "robust", "tests": ["mean", "score"]},
        "REML, score": {"method": "reml", "tests": ["score"]},
    }
    rows = []
    for batches in (STUDY["batches"], 0):
        study = STUDY | {"batches": batches}
        took: dict[str, list[float]] = {label: [] for label in kinds}
        for _ in range(REPEATS):
            for label, more in kinds.items():
                run = {"study": study, "genes": genes, "more": more, "n_jobs": 1}
                took[label].append(in_child(run, dict(os.environ))["cpu"])
        first = float(np.median(next(iter(took.values()))))
        rows += [
            {
                "batches": batches, "scan": label, "genes run": genes,
                "CPU ms per gene": 1e3 * float(np.median(own)) / genes,
                "ratio to the first": float(np.median(own)) / first,
            }
            for label, own in took.items()
        ]  # fmt: skip
    return pd.DataFrame(rows)


def table_of_large(genes: int, large: int) -> pd.DataFrame:
    """980 donors, 8 cell types, 75 pools; free REML + score + one-step jackknife."""
    more = {"tests": ["score", "jackknife", "mean"], "one_step": True}
    rows = []
    for label, settings in (("free REML", {"tests": []}), ("+ score + one-step jackknife", more)):
        took, memory = cold({"study": LARGE, "genes": large, "more": settings, "n_jobs": 2})
        rows.append(
            {
                "scan": label, "genes run": large, "s": took, "s per gene": took / large,
                "10,000 genes": clock(took * 10_000 / large), "peak MB": memory,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def table_of_growth(genes: int, large: int) -> pd.DataFrame:
    """Log-log slopes of the seconds of free REML + score + one-step jackknife, one worker."""
    base = {"donors": 100, "types": 4, "batches": 20, "covariates": 4, "genes": 24}
    more = {"tests": ["score", "jackknife"], "one_step": True, "n_jobs": 1}
    rows = []
    for name, sizes in {
        "genes": (24, 48, 96),
        "donors": (100, 200, 400),
        "types": (3, 6, 12),
    }.items():
        took = []
        for size in sizes:
            data = simulate(**(base | {name: size, "genes": size if name == "genes" else 12}))
            took.append(min(seconds(lambda d=data: scan(d, **more)) for _ in range(2)))
        rows.append(
            {
                "growth in": name,
                "sizes": ", ".join(map(str, sizes)),
                "s": ", ".join(f"{t:.2f}" for t in took),
                "slope": bench_fit.slope(list(sizes), took),
            }
        )
    return pd.DataFrame(rows)


def table_of_workers(genes: int, large: int) -> pd.DataFrame:
    """One and two workers, threads, processes and dask: times, efficiency, equal tables."""
    data = simulate(max(genes, 200), **STUDY)
    rows = []
    for label, tests in (("free REML + score", ["score"]), ("+ jackknife", ["jackknife", "mean"])):
        run = lambda tests=tests, **more: scan(data, tests=tests, **more).table  # noqa: E731
        tables: dict[str, pd.DataFrame] = {}
        took = {"1": seconds(lambda: tables.update(one=run(n_jobs=1)))}  # noqa: B023
        took["2 threads"] = seconds(lambda: tables.update(threads=run(n_jobs=2)))  # noqa: B023
        with joblib.parallel_config("loky", n_jobs=2):
            scan(simulate(100, **STUDY), tests=[])  # processes start and load
            took["2 processes"] = seconds(lambda: tables.update(processes=run()))  # noqa: B023
        if dask := _dask():
            with dask:
                scan(simulate(100, **STUDY), tests=[])
                took["dask, 2 processes"] = seconds(lambda: tables.update(dask=run()))  # noqa: B023
        for (workers, time_), table in zip(took.items(), tables.values(), strict=True):
            rows.append(
                {
                    "scan": label,
                    "workers": workers,
                    "s": time_,
                    "efficiency": took["1"] / time_ / (1 if workers == "1" else 2),
                    "bit for bit": table.equals(tables["one"]),
                }
            )
    return pd.DataFrame(rows)


def table_of_threads(genes: int, large: int) -> pd.DataFrame:
    """With nothing set and with OPENBLAS_NUM_THREADS=1, in turn: medians."""
    names = [name for name in os.environ if name.endswith("_NUM_THREADS")]
    nothing = {name: text for name, text in os.environ.items() if name not in names}
    cases = {"nothing": nothing, "OPENBLAS_NUM_THREADS=1": nothing | {"OPENBLAS_NUM_THREADS": "1"}}
    rows = []
    for label, tests in (("free REML + score", ["score"]), ("+ jackknife", ["jackknife", "mean"])):
        for n_jobs in (1, 2):
            run = {"study": STUDY, "genes": genes, "more": {"tests": tests}, "n_jobs": n_jobs}
            took = [[in_child(run, case) for case in cases.values()] for _ in range(REPEATS)]
            for k, case in enumerate(cases):
                own = {"scan": label, "n_jobs": n_jobs, "set": case}
                for name in ("seconds", "cpu"):
                    middle = [float(np.median([t[j][name] for t in took])) for j in (k, 1)]
                    own |= {name: middle[0], f"{name}, ratio": middle[0] / middle[1]}
                rows.append(own)
    return pd.DataFrame(rows)


def _dask():
    """A local cluster of two processes as joblib's workers, where dask is there."""
    try:
        import distributed
    except ImportError:
        return None
    from contextlib import ExitStack

    stack = ExitStack()
    cluster = stack.enter_context(
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
    )
    stack.enter_context(distributed.Client(cluster))
    stack.enter_context(joblib.parallel_config("dask"))
    return stack


def table_of_kills(genes: int, large: int) -> pd.DataFrame:
    """kill -9 ten times at random moments: blocks kept at each, and the table in the end."""
    rng = np.random.default_rng()
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import bench_scan as b; "
        "b.scan(b.simulate(2500, **b.STUDY), tests=['lrt'], out=sys.argv[1], n_jobs=2)"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.parquet"
        parts = path.with_name("scan.parquet.parts")
        kept = []
        for _ in range(10):
            process = subprocess.Popen([sys.executable, "-c", code, str(path)])
            before = len(list(parts.glob("block-*")))
            while process.poll() is None and len(list(parts.glob("block-*"))) == before:
                time.sleep(0.002)  # it has begun to write
            time.sleep(rng.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kept.append(len(list(parts.glob("block-*"))))
        left = len(list(parts.glob(".*.tmp")))
        ended = path.exists()
        data = simulate(2500, **STUDY)
        resumed = scan(data, tests=["lrt"], out=path)
        equal = resumed.table.equals(scan(data, tests=["lrt"]).table)
    return pd.DataFrame(
        [
            {
                "kills": 10,
                "blocks after each": ", ".join(map(str, kept)),
                "half-written files left": left,
                "ended before the last kill": ended,
                "resumed table equals the uninterrupted one": equal,
            }
        ]
    )


def table_of_broken(genes: int, large: int) -> pd.DataFrame:
    """10,000 genes of which 50 cannot be fitted, every cheap test; what comes of them."""
    data = simulate(10_000, **STUDY)
    rng = np.random.default_rng(1)
    bad = np.sort(rng.choice(10_000, 50, replace=False))
    expr, nu = data["expr"].to_numpy(), data["nu"].to_numpy()
    donor = data["data"]["donor"].to_numpy()
    ways = {
        "constant": lambda k: expr[:, k].fill(3.0),
        "all missing": lambda k: expr[:, k].fill(np.nan),
        "noise all zero": lambda k: nu[:, k].fill(0.0),
        "one donor left": lambda k: np.putmask(expr[:, k], donor != donor[0], np.nan),
        "absurd scale": lambda k: np.multiply(expr[:, k], 1e200, out=expr[:, k]),
    }
    kind = np.array(list(ways))[np.arange(50) % len(ways)]
    for k, name in zip(bad, kind, strict=True):
        ways[name](k)
    names = list(data["expr"])
    data |= {key: pd.DataFrame(a, columns=names) for key, a in (("expr", expr), ("nu", nu))}
    covariates = [name for name in data["data"] if name.startswith("x")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = ctmm.fit_genes(
            " + ".join(["~ C(celltype)", *covariates]), **data, random="batch",
            tests=["lrt", "wald"], models=["hom"], n_jobs=2,
        )  # fmt: skip
    failed = (run.table["status"] == "failed").to_numpy()
    fine = run.table[~failed]
    rows = []
    for name in ways:
        reasons = run.table["reason"].iloc[bad[kind == name]]
        rows.append(
            {
                "50 of 10,000 genes": name,
                "genes": len(reasons),
                "failed": int(failed[bad[kind == name]].sum()),
                "reasons": reasons.str.replace(r"[\d.e+-]+", "#", regex=True).nunique(),
                "the first": reasons.iloc[0][:60],
            }
        )
    tested = [f"{name}_bh" for name in run.layout.tested]
    finite = np.isfinite(fine[tested]).all(axis=1)
    silent = int((~finite & (fine["reason"] == "")).sum())
    whole = (
        f"{len(caught)} warning; of the others {finite.sum():,} with all adjusted p values finite, "
        f"{(~finite).sum()} with the reason why one is not, {silent} without"
    )
    rows.append(
        {
            "50 of 10,000 genes": "all", "genes": 50, "failed": int(failed.sum()), "reasons": "",
            "the first": whole,
        }
    )  # fmt: skip
    return pd.DataFrame(rows)


def table_of_peers(genes: int, large: int) -> pd.DataFrame:
    """Per gene against a loop over lme4 with the residual pinned, same data."""
    rows = []
    data = simulate(100, **STUDY)
    scan(simulate(2, **STUDY), tests=["jackknife"])  # loads the compiled code
    own = seconds(lambda: scan(data, tests=[], n_jobs=1)) / 100
    frame = data["data"].assign(expr=data["expr"]["g0"], nu=data["nu"]["g0"])
    whole, _, _ = bench_fit.lme4(frame, True, 5)
    rows.append(
        {
            "fit": "free REML, 94 donors, one worker",
            "scan ms per gene": 1e3 * own,
            "lme4 ms per gene": 1e3 * whole,
            "ratio": whole / own,
        }
    )
    run = {"tests": ["jackknife"], "n_jobs": 1}
    some = {**data, "expr": data["expr"].iloc[:, :20], "nu": data["nu"].iloc[:, :20]}
    jack = seconds(lambda: scan(some, **run)) / 20
    rows.append(
        {
            "fit": "with the exact jackknife (lme4: 95 fits)",
            "scan ms per gene": 1e3 * jack,
            "lme4 ms per gene": 1e3 * whole * 95,
            "ratio": whole * 95 / jack,
        }
    )
    return pd.DataFrame(rows)


PARTS = {
    "ipsc": ("94 donors, 4 cell types, 24 batches, 8 covariates, two threads", table_of_kinds),
    "defaults": (
        "The defaults beside REML: 94 donors, 4 cell types, 8 covariates, one thread",
        table_of_defaults,
    ),
    "workers": ("Workers", table_of_workers),
    "threads": ("Threads of BLAS", table_of_threads),
    "large": ("980 donors, 8 cell types, 75 pools, 8 covariates, two threads", table_of_large),
    "growth": ("Growth of free REML + score + one-step jackknife, one worker", table_of_growth),
    "peers": ("Against lme4", table_of_peers),
    "kills": ("Ten kills", table_of_kills),
    "broken": ("Broken genes", table_of_broken),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--large", type=int, default=16)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--out", default=str(HERE / "scan_speed.md"))
    args = parser.parse_args()
    out = Path(args.out)
    before = out.read_text() if out.exists() else ""
    parts = [
        "# Speed of a scan",
        "Written by `bench_scan.py`: simulated genes, free truth, 10 to 120 cells a pair; every "
        "scan in a process of its own, warm, elapsed time, reading excluded; one BLAS thread.  "
        "Times of fewer genes are scaled.",
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
    ]
    for key, (title, make) in PARTS.items():
        text = before.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()
        if key in args.parts:
            text = bench_fit.markdown(make(args.genes, args.large))
            sys.stdout.write(f"\n## {title}\n{text}\n")
            sys.stdout.flush()
        if text:
            parts.append(f"## {title}\n\n{text}")
    out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
