"""Many genes through the R package against Python, and memory of the R process over many calls.

    python tests/benchmarks/bench_r.py [--genes 1000]

Run with R, the packages that r_bridge/README.md names and ctmmFormula installed, and with
ctmm_formula installed or PYTHONPATH=. set.  Both languages take the same genes in processes of
their own, in turn.  Writes ``r_speed.md`` beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd

import ctmm_formula as ctmm

HERE = Path(__file__).parent
TESTS: dict[tuple[str, ...], int] = {(): 5, ("jackknife", "mean"): 2, ("score",): 1}
"""Tests and how often they are run; without any, what it costs to cross weighs most."""
CALLS = (10, 50, 100)


def study(genes: int, folder: Path) -> None:
    """The genes of the box, as often as needed, each time with another little noise."""
    obs, expr, nu = ctmm.load_genes()
    at = np.arange(genes) % expr.shape[1]
    E, N = expr.to_numpy()[:, at], nu.to_numpy()[:, at]
    E = E + 0.1 * np.sqrt(N) * np.random.default_rng(1).normal(size=E.shape)
    obs.to_csv(folder / "obs.csv", index=False, float_format="%.17g")
    (folder / "size.txt").write_text(f"{genes} {len(obs)}\n")
    for name, values in (("expr", E), ("nu", N)):
        (folder / f"{name}.bin").write_bytes(values.T.astype("<f8").tobytes("F"))


def in_python(folder: Path, tests: tuple[str, ...], threads: int) -> tuple[float, float, float]:
    """Elapsed and CPU seconds, and the sum of one column to see that the work is the same."""
    obs = pd.read_csv(folder / "obs.csv", float_precision="round_trip")
    genes = int((folder / "size.txt").read_text().split()[0])
    names = [f"gene{k + 1:04d}" for k in range(genes)]
    E, N = (
        pd.DataFrame(np.fromfile(folder / f"{name}.bin").reshape(-1, genes), columns=names)
        for name in ("expr", "nu")
    )

    def run(count: int) -> ctmm.Scan:
        return ctmm.fit_genes(
            "~ C(celltype) + sex + PC1", data=obs, expr=E.iloc[:, :count], nu=N.iloc[:, :count],
            random="batch", tests=list(tests), n_jobs=threads,
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        run(20)
        start, used = time.perf_counter(), time.process_time()
        scan = run(genes)
    return time.perf_counter() - start, time.process_time() - used, float(scan.table["hom"].sum())


def child(command: list[str], folder: Path, *arguments: object) -> list[list[float]]:
    """Numbers that a process prints, line by line."""
    environment = os.environ | {"RETICULATE_PYTHON": sys.executable}
    call = subprocess.run(
        [*command, str(folder), *map(str, arguments)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    if call.returncode:
        raise SystemExit(call.stderr)
    return [[float(value) for value in line.split()] for line in call.stdout.splitlines()]


IN_R = ["Rscript", "--vanilla", str(HERE / "bench_r.R")]
IN_PYTHON = [sys.executable, str(Path(__file__).resolve())]


def speed(folder: Path, genes: int) -> pd.DataFrame:
    """The fastest of some rounds in turn."""
    rows = []
    for tests, rounds in TESTS.items():
        names = ",".join(tests) or "none"
        took: dict[str, list[list[float]]] = {"R": [], "Python": []}
        for _ in range(rounds):
            took["Python"] += child(IN_PYTHON, folder, "genes", names, 1)
            took["R"] += child(IN_R, folder, "genes", names, 1)
        sums = {round(one[2], 6) for runs in took.values() for one in runs}
        assert len(sums) == 1, f"the two did not do the same: {sums}"
        best = {name: np.min(runs, axis=0) for name, runs in took.items()}
        rows.append(
            {
                "tests": ", ".join(tests) or "none",
                "genes": genes,
                "rounds": rounds,
                "Python, s": best["Python"][0],
                "R, s": best["R"][0],
                "ratio": best["R"][0] / best["Python"][0],
                "Python, CPU s": best["Python"][1],
                "R, CPU s": best["R"][1],
                "CPU ratio": best["R"][1] / best["Python"][1],
            }
        )
    return pd.DataFrame(rows)


def memory(folder: Path) -> pd.DataFrame:
    """RSS of the R process, Python within it."""
    found = child(IN_R, folder, "memory", *CALLS)
    names = ["ctmm(), 275 rows", "ctmm_genes(), 20 genes"]
    rows = [found[: len(CALLS)], found[len(CALLS) :]]
    return pd.DataFrame(
        [
            {"call": name} | {f"after {int(k)} calls, MB": round(mb) for k, mb in row}
            for name, row in zip(names, rows, strict=True)
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("child", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--out", default=str(HERE / "r_speed.md"))
    args = parser.parse_args()
    if args.child:
        _, tests, threads = args.child
        asked = () if tests == "none" else tuple(tests.split(","))
        took = in_python(Path(args.folder), asked, int(threads))
        sys.stdout.write(" ".join(map(repr, took)) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study(args.genes, folder)
        tables = [speed(folder, args.genes), memory(folder)]
    load = os.getloadavg()[0]
    parts = [
        "# From R: speed and memory",
        f"Written by `bench_r.py`: `ctmm_genes()` in R against `fit_genes()` in Python on the same "
        f"{args.genes:,} genes (275 rows, 72 donors, 24 batches, REML, `free`), one thread, in "
        "processes of their own, in turn; the fastest round.  CPU seconds depend little on what "
        "else the machine does.",
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores, load {load:.1f} at the end.",
        bench_fit.markdown(tables[0]),
        "## Memory of the R process (RSS) with Python within it",
        bench_fit.markdown(tables[1]),
    ]
    text = "\n\n".join(parts) + "\n"
    Path(args.out).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
