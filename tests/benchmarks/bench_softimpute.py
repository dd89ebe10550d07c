"""Soft-impute: time against the R package, growth with genes, and what the choice of lambda costs.

    python tests/benchmarks/bench_softimpute.py [--quick]

Run with the package installed, or from the repository with PYTHONPATH=. set; R with the package
softImpute for the comparison.  Prints the tables and writes ``softimpute_speed.md`` beside this
file (three minutes; --quick leaves out the largest sizes and writes nothing).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from ctmm_formula.cells.fill import Options, fill
from ctmm_formula.cells.softimpute import certificate, complete, largest_penalty
from ctmm_formula.cells.stacks import scaling

HERE = Path(__file__).parent
DONORS, TYPES = 94, 4
R_SCRIPT = """
suppressMessages(library(softImpute))
a <- commandArgs(TRUE)
x <- matrix(readBin(a[1], "double", 94 * as.integer(a[2])), 94)
t <- proc.time()
fit <- softImpute(x, rank.max = 93, lambda = as.numeric(a[3]), type = a[4],
                  thresh = as.numeric(a[5]), maxit = as.integer(a[6]))
t <- proc.time() - t
writeBin(as.vector(fit$u %*% (fit$d * t(fit$v))), a[7])
cat(t[["user.self"]] + t[["sys.self"]])
"""


def simulate(genes: int, seed: int = 0, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Donors x cell types x genes and its missing pairs, 10 %: 6 factors shared, 3 of each type."""
    rng = np.random.default_rng([seed, genes])
    shared = rng.normal(size=(DONORS, 6)) @ rng.normal(size=(6, genes)) / np.sqrt(6)
    Y = np.empty((DONORS, TYPES, genes))
    for c in range(TYPES):
        own = rng.normal(size=(DONORS, 3)) @ rng.normal(size=(3, genes)) / np.sqrt(3)
        Y[:, c] = shared + 0.6 * own + noise * rng.normal(size=(DONORS, genes))
    Y *= np.exp(0.3 * rng.normal(size=genes))
    missing = rng.random((DONORS, TYPES)) < 0.1 * np.array([0.4, 0.8, 1.2, 1.6])
    missing[missing.all(axis=1), 0] = False
    return Y, missing


def with_holes(Y: np.ndarray, missing: np.ndarray) -> np.ndarray:
    Y = Y.copy()
    Y[missing] = np.nan
    return Y


def rmse(filled: np.ndarray, truth: np.ndarray, missing: np.ndarray) -> float:
    """Error on the missing entries in standard deviations of their columns."""
    return float(np.sqrt(np.mean(((filled - truth) / truth.std(axis=0))[missing] ** 2)))


def cpu(function, *arguments, **keywords):
    """CPU seconds and the result."""
    start = time.process_time()
    result = function(*arguments, **keywords)
    return time.process_time() - start, result


def in_r(x: np.ndarray, penalty: float, kind: str, thresh: float, maxit: int):
    """CPU seconds within R, without reading and writing, and Z."""
    with tempfile.TemporaryDirectory() as folder:
        script, data, out = (Path(folder) / name for name in ("fit.R", "x.bin", "z.bin"))
        script.write_text(R_SCRIPT, encoding="utf-8")
        x.ravel(order="F").tofile(data)
        values = [data, x.shape[1], penalty, kind, thresh, maxit, out]
        call = ["Rscript", str(script), *[str(value) for value in values]]
        shown = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        return float(shown), np.fromfile(out).reshape(x.shape, order="F")


def have_softimpute() -> bool:
    if shutil.which("Rscript") is None:
        return False
    test = "quit(status = !requireNamespace('softImpute', quietly = TRUE))"
    return not subprocess.run(["Rscript", "-e", test], capture_output=True, check=False).returncode


def against_r(genes: int) -> list[str]:
    """One matrix, one lambda: our default, and R at its default and at tight tolerance."""
    truth, missing = simulate(genes)
    matrix = with_holes(truth, missing).reshape(1, DONORS, -1)
    x = scaling(matrix, ~np.isnan(matrix[0])).apply(matrix)
    largest = largest_penalty(x)[0]
    lines = [
        f"## {DONORS} x {TYPES * genes:,}, one lambda, columns scaled",
        "",
        "| lambda / largest | program | CPU s | our time / theirs | f above the minimum, at most "
        "(relative) | f / f of ours - 1 |",
        "|---|---|---|---|---|---|",
    ]
    for share in (0.3, 0.1, 0.03):
        penalty = np.array([share * largest])
        seconds, ours = cpu(complete, x, penalty)
        f = ours.objective[0]
        lines.append(f"| {share} | ours | {seconds:.2f} | | {ours.gap[0] / f:.1e} | |")
        programs = [("R als, default", "als", 1e-5, 100), ("R svd, default", "svd", 1e-5, 100)]
        if share == 0.1:
            programs.append(("R als, thresh 1e-9, at most 300 steps", "als", 1e-9, 300))
        for label, kind, thresh, maxit in programs:
            theirs, Z = in_r(x[0], penalty[0], kind, thresh, maxit)
            value, gap = certificate(x, Z[None], penalty)
            lines.append(
                f"| {share} | {label} | {theirs:.2f} | {seconds / theirs:.3f} | "
                f"{gap[0] / value[0]:.1e} | {value[0] / f - 1:.1e} |"
            )
    return [*lines, ""]


def growth(sizes: list[int]) -> list[str]:
    """Time of one lambda, of cross-validation, and of the other methods, by genes."""
    lines = [
        "## Growth with genes",
        "",
        f"{DONORS} donors, {TYPES} cell types, 10 % of pairs missing.  Whole: 5 folds x 30 lambda, "
        "then the fit.  Peak: largest memory of the process so far.",
        "",
        "| genes | columns | one lambda s | whole s | soft-impute gene by gene, whole s | normal, "
        "gene by gene s | peak GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for genes in sizes:
        truth, missing = simulate(genes)
        Y = with_holes(truth, missing)
        del truth
        rng = np.random.default_rng(0)
        whole, chosen = cpu(fill, Y, Options(), rng)
        one, _ = cpu(fill, Y, Options(penalty=float(chosen.penalty[0])), rng)
        by_gene, _ = cpu(fill, Y, Options(by="gene"), rng)
        normal, _ = cpu(fill, Y, Options(method="mvn", by="gene"), rng)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        lines.append(
            f"| {genes:,} | {TYPES * genes:,} | {one:.1f} | {whole:.1f} | {by_gene:.1f} | "
            f"{normal:.1f} | {peak:.2f} |"
        )
    return [*lines, ""]


def choice(genes: int, seeds: range) -> list[str]:
    """What the chosen lambda loses against the best of the grid, by kind of hold-out."""
    lines = [
        f"## Choice of lambda, {genes} genes",
        "",
        "Root mean squared error on the missing pairs, in standard deviations of their columns.  "
        "Loss: error with the chosen lambda over that with the best of the grid, less 1.",
        "",
        "| noise sd | seed | best of the grid | loss, whole pairs held out | loss, random entries "
        "held out | gene by gene | normal | means |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for noise in (0.7, 2.0):
        for seed in seeds:
            truth, missing = simulate(genes, seed, noise)
            Y = with_holes(truth, missing)

            def error(Y=Y, truth=truth, missing=missing, **settings):
                filled = fill(Y, Options(**settings), np.random.default_rng(0))
                return rmse(filled.values, truth, missing), filled

            pairs, filled = error()
            entries, _ = error(holdout="entries")
            top = filled.penalty[0] / filled.grid[np.nanargmin(filled.loss)]
            best = min(error(penalty=float(top * share), tol=1e-4)[0] for share in filled.grid)
            others = [
                error(method=method, by="gene")[0] for method in ("softimpute", "mvn", "mean")
            ]
            lines.append(
                f"| {noise} | {seed} | {best:.3f} | {pairs / best - 1:.1%} | "
                f"{entries / best - 1:.1%} | " + " | ".join(f"{x:.3f}" for x in others) + " |"
            )
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    lines = [
        "# Soft-impute: speed and choice of lambda",
        "",
        "Written by `bench_softimpute.py`.  CPU seconds, one thread.  R is timed inside R, without "
        "start and data transfer.  Columns that miss the same donors are rotated into at most as "
        "many columns as there are donors, so only the rotation grows with the genes.",
        "",
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
        "",
    ]
    if have_softimpute():
        lines += against_r(200 if quick else 2000)
    lines += growth([200, 500] if quick else [500, 2000, 5000, 11_250])
    lines += choice(100 if quick else 300, range(1 if quick else 3))
    text = "\n".join(lines)
    print(text)
    if not quick:
        (HERE / "softimpute_speed.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
