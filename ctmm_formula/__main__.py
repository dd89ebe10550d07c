"""``python -m ctmm_formula compile``: compile ahead of the first use, for images and clusters."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import sparse

from .api import fit
from .arguments import Bounds, Method
from .cells.aggregate import Moments
from .datasets import load_example
from .engine.options import where_kept
from .errors import CTMMWarning
from .inference.score import log_cauchy_combination
from .results.fitted import CTMMResults
from .simulate import CountCells, simulate_genes


def _fit(method: Method) -> CTMMResults:
    formula = "expr ~ C(celltype) + sex"
    return fit(formula, random="batch", method=method, data=load_example())


def _on_counts(method: Method, by: str | None = None) -> CTMMResults:
    """A fit of counts of cells, on the edge of its domain by REML."""
    study = simulate_genes(1, 20, 3, counts=CountCells(mean=1.0), rng=1)
    values = {name: getattr(study, name).iloc[:, 0] for name in ("expr", "nu", "nu2")}
    data = study.obs.assign(**values)
    bounds: Bounds | None = "psd" if method == "reml" else None
    return fit("expr ~ C(celltype) + sex", method=method, bounds=bounds, by=by, data=data)


def _score_tests() -> None:
    _fit("reml").test_variance("score")
    _on_counts("robust").test_variance("score")
    _on_counts("robust", "sex").test_groups()
    log_cauchy_combination(np.zeros(2))


def _jackknives() -> None:
    _fit("reml").jackknife()
    _on_counts("reml").jackknife()


def _robust() -> None:
    _fit("robust").test_mean()
    _on_counts("robust").summary()


def _pseudobulk() -> None:
    """Both kinds of blocks of cells, as they are read, and blocks of genes."""
    codes = np.zeros(4, dtype=np.int64)
    for kind in (np.float32, np.float64):
        block = np.eye(4, dtype=kind)
        for form in (np.asarray, sparse.csr_matrix):
            Moments(1, 4).add_cells(form(block), codes)
        moments = Moments(1, 4)
        moments.add_genes(sparse.csc_matrix(block), codes, np.arange(4))
        moments.noise()


WORK: dict[str, Callable[[], object]] = {
    "fits": partial(_fit, "reml"),
    "score tests": _score_tests,
    "jackknives": _jackknives,
    "noise-robust fits": _robust,
    "moments": lambda: _fit("he").jackknife(),
    "pseudobulk": _pseudobulk,
}
"""What is compiled -> a small call that needs it; done before, it takes no time."""


def main(arguments: list[str] | None = None) -> None:
    """The command: compiles, with a line for each part, and says where the code is kept."""
    parser = argparse.ArgumentParser("python -m ctmm_formula", description=__doc__)
    parser.add_argument("command", choices=["compile"])
    parser.parse_args(arguments)
    for number, (what, call) in enumerate(WORK.items(), start=1):
        sys.stderr.write(f"{number} of {len(WORK)}: {what} ... ")
        sys.stderr.flush()
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CTMMWarning)
            call()
        sys.stderr.write(f"{time.perf_counter() - begin:.1f} s\n")
    folders, why = where_kept()
    if why:
        parser.exit(
            1,
            f"the compiled code cannot be kept ({why}): set the environment variable "
            "NUMBA_CACHE_DIR to a directory that can be written, here and where it is used\n",
        )
    sys.stderr.write(f"compiled code is kept in {', '.join(folders)}\n")


if __name__ == "__main__":
    main()
