"""Pseudobulk of cells: time and memory against scanpy, and their growth on files.

Run with the package installed, or from the repository with PYTHONPATH=. set:
``python tests/benchmarks/bench_pseudobulk.py`` (some three minutes); ``--large`` adds a file of a
million cells (2 GB in the folder for temporary files, deleted afterwards).
Prints the tables and writes ``pseudobulk_speed.md`` beside this file.

Every measurement is a process of its own: loading and a first small call (imports, compiled code)
come before the clock starts and the peak is reset.  Linux only.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

HERE = Path(__file__).parent
GENES, DENSITY, DONORS, TYPES = 5000, 0.08, 100, 8
REPEATS = 3
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def rows(n: int, genes: int, seed: int) -> sparse.csr_matrix:
    """Cells with about 8 % of their genes expressed."""
    rng = np.random.default_rng(seed)
    found = rng.random((n, genes), dtype=np.float32) < DENSITY
    indptr = np.concatenate([[0], np.cumsum(found.sum(axis=1))])
    indices = np.nonzero(found)[1].astype(np.int32)
    values = rng.gamma(2.0, size=len(indices))
    return sparse.csr_matrix((values, indices, indptr), shape=(n, genes))


def labels(n: int) -> pd.DataFrame:
    """Cells of 100 donors and 8 types in random order."""
    rng = np.random.default_rng(1)
    donor, celltype = rng.integers(DONORS, size=n), rng.integers(TYPES, size=n)
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"d{k:02d}" for k in donor]),
            "celltype": pd.Categorical([f"t{k}" for k in celltype]),
        },
        index=pd.RangeIndex(n).astype(str),
    )
    pair = obs["donor"].astype(str) + "|" + obs["celltype"].astype(str)
    return obs.assign(pair=pair.astype("category"))


def write_file(path: Path, n: int, genes: int) -> None:
    """An h5ad file of CSR float64, written block by block."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        write_elem(file, "obs", labels(n))
        write_elem(file, "var", pd.DataFrame(index=[f"g{k}" for k in range(genes)]))
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        X.attrs["shape"] = np.array([n, genes])
        for name, kind in (("data", "f8"), ("indices", "i4")):
            X.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**17,))
        counts = [np.zeros(1, dtype=np.int64)]
        for first in range(0, n, 10_000):
            block = rows(min(10_000, n - first), genes, first)
            old = len(X["data"])
            for name, values in (("data", block.data), ("indices", block.indices)):
                X[name].resize((old + block.nnz,))
                X[name][old:] = values
            counts.append(np.diff(block.indptr))
        X["indptr"] = np.cumsum(np.concatenate(counts))


# ---------------------------------------------------------------------------------------------
# one measurement, in its own process


def status(name: str) -> float:
    """A line of /proc/self/status in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def measure(task: str, form: str, n: int, genes: int, path: str) -> dict[str, float]:
    """CPU seconds (best of a few) and extra peak memory (of the first run)."""
    import anndata as ad

    if task == "scanpy":
        import scanpy

        def run(data):
            return scanpy.get.aggregate(data, "pair", ["mean", "var"])
    else:
        import ctmm_formula as ctmm

        def run(data):
            return ctmm.pseudobulk(data, min_cells=1, min_cells_donor=1, covariates=[])

    def as_form(X):
        X = X.astype(np.float32) if form.endswith("32") else X
        return X.tocsc() if form.startswith("csc") else X.toarray() if form == "dense" else X

    if path:
        with tempfile.TemporaryDirectory() as folder:
            write_file(Path(folder) / "small.h5ad", 5000, 50)
            run(Path(folder) / "small.h5ad")
        data = Path(path)
    else:
        run(ad.AnnData(as_form(rows(5000, 50, 0)), obs=labels(5000)))
        data = ad.AnnData(as_form(rows(n, genes, 0)), obs=labels(n))
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    cpu, wall = [], []
    for k in range(1 if path else REPEATS):
        start, clock = time.process_time(), time.perf_counter()
        run(data)
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
        if k == 0:
            peak = status("VmHWM") - base
    return {"cpu": min(cpu), "wall": min(wall), "peak": peak}


def apart(task: str, form: str, n: int, genes: int, path: str = "") -> dict[str, float]:
    """`measure` in a new process."""
    words = ["--measure", task, form, str(n), str(genes), path]
    done = subprocess.run(
        [sys.executable, __file__, *words], env=os.environ | ONE_THREAD, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------
# tables


def against_scanpy() -> list[str]:
    """Both on the same cells in memory."""
    lines = [
        "| cells x genes | matrix | CPU s | scanpy CPU s | ratio | peak MB | scanpy MB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    cases = [
        (20_000, "csr"),
        (20_000, "csc"),
        (20_000, "dense"),
        (100_000, "csr"),
        (100_000, "csr 32"),
    ]
    for n, form in cases:
        ours, theirs = apart("ctmm", form, n, GENES), apart("scanpy", form, n, GENES)
        lines.append(
            f"| {n:,} x {GENES:,} | {form} | {ours['cpu']:.2f} | {theirs['cpu']:.2f} | "
            f"{ours['cpu'] / theirs['cpu']:.2f} | {ours['peak']:.0f} | {theirs['peak']:.0f} | "
            f"{ours['peak'] / theirs['peak']:.2f} |"
        )
    return lines


def growth(large: bool) -> list[str]:
    """Files that are streamed."""
    lines = [
        "| cells x genes | file MB | CPU s | wall s | CPU per cell, microseconds | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    sizes = [(62_500, 2000), (125_000, 2000), (250_000, 2000), (125_000, 1000), (125_000, 4000)]
    for n, genes in sizes + [(1_000_000, 2000)] * large:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cells.h5ad"
            write_file(path, n, genes)
            out = apart("ctmm", "csr", n, genes, str(path))
            size = path.stat().st_size / 2**20
        lines.append(
            f"| {n:,} x {genes:,} | {size:,.0f} | {out['cpu']:.2f} | {out['wall']:.2f} | "
            f"{1e6 * out['cpu'] / n:.1f} | {out['peak']:.0f} |"
        )
    return lines


def threads() -> list[str]:
    """Wall time of two threads, by where the cells are and what is made of them."""
    import anndata as ad

    import ctmm_formula as ctmm

    lines = ["| 100,000 x 2,000 cells | summary | one thread, s | two, s | ratio | bit for bit |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    X = rows(100_000, 2000, 0)
    X.data = np.ceil(3.0 * X.data)
    cells = ad.AnnData(X, obs=labels(100_000))
    with tempfile.TemporaryDirectory() as folder:
        places: dict[str, object] = {"in memory": cells}
        for name, options in (("h5ad", {}), ("h5ad, gzip", {"compression": "gzip"})):
            places[name] = Path(folder) / f"{len(places)}.h5ad"
            cells.write_h5ad(places[name], **options)
        places["zarr"] = Path(folder) / "cells.zarr"
        cells.write_zarr(places["zarr"])
        for name, data in places.items():
            for summary in ("mean", "log_mean"):
                asked = {"normalize": "log_cp10k", "summary": summary, "covariates": []}
                found, spent = [], []
                for n_jobs in (1, 2):
                    took = []
                    for _ in range(REPEATS):
                        clock = time.perf_counter()
                        out = ctmm.pseudobulk(data, **asked, n_jobs=n_jobs)
                        took.append(time.perf_counter() - clock)
                    spent.append(min(took))
                    found.append(out)
                one, two = found
                same = np.array_equal(one.X, two.X, equal_nan=True) and all(
                    np.array_equal(one.layers[k], two.layers[k], equal_nan=True) for k in one.layers
                )
                lines.append(
                    f"| {name} | {summary} | {spent[0]:.2f} | {spent[1]:.2f} | "
                    f"{spent[0] / spent[1]:.2f} | {same} |"
                )
    return lines


def main(large: bool) -> None:
    found = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "anndata", "scanpy"))
    text = [
        "# Pseudobulk: time and memory", "",
        f"{platform.machine()}, {os.cpu_count()} processors, one thread; Python "
        f"{platform.python_version()}, {found}.", "",
        "## Cells in memory, against scanpy.get.aggregate", "",
        f"Mean and variance of {DONORS * TYPES} pairs, {DENSITY:.0%} of the values not zero, cells "
        f"in random order.  CPU: best of {REPEATS}; peak: memory of the first run, above what the "
        "cells take.  Each in a process of its own.", "",
        *against_scanpy(), "",
        "## Cells in an h5ad file, streamed", "",
        f"CSR, float64, {DONORS * TYPES} pairs; one run each, reading included.  Of the peak, the "
        "result takes 24 bytes for each pair and gene (38 MB for 2,000 genes).", "",
        *growth(large), "",
        "## Two threads", "",
        "Counts, scaled and averaged by `pseudobulk(n_jobs=)`; warm, the best of "
        f"{REPEATS}, wall time.", "",
        *threads(), "",
    ]  # fmt: skip
    print("\n".join(text))
    (HERE / "pseudobulk_speed.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    if "--measure" in sys.argv:
        task, form, n, genes, path = sys.argv[2:]
        print(json.dumps(measure(task, form, int(n), int(genes), path)))
    else:
        main("--large" in sys.argv)
