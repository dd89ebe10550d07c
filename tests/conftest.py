"""Shared helpers: where golden data live, and a Model straight from a long table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.structures import resolve

# the workers of pytest-xdist inherit it: threads of BLAS would only wait for each other there
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("CTMM_SHARED") or Path(__file__).parents[2] / "shared")
"""Published numbers of a real gene, which may not be copied into the project."""


def not_here(*names: str) -> str:
    """Which published numbers are missing, and where they belong; nothing if all are there."""
    missing = [name for name in names if not (SHARED / name).is_file()]
    where = f"{SHARED} (another folder: CTMM_SHARED)"
    return f"published numbers: no {', '.join(missing)} in {where}" if missing else ""


def pytest_report_header() -> str:
    return f"published numbers: {SHARED if SHARED.is_dir() else 'not here'} (CTMM_SHARED)"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not compared, however quiet the run; -rs shows each skip with its reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("published numbers: " in str(report.longrepr) for report in skipped)
    if count:
        where = f"not all in {SHARED} (another folder: CTMM_SHARED)"
        terminalreporter.line(f"published numbers: {where}, {count} tests skipped")


def quick_first(values: Iterable, quick: int = 1) -> list:
    """Parameters of which the first are tried by quick tests, and all by the slow ones."""
    values = list(values)
    return [*values[:quick], *(pytest.param(v, marks=pytest.mark.slow) for v in values[quick:])]


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


def frame_model(
    frame: pd.DataFrame,
    structure: object,
    *,
    y: str = "expr",
    nu: str = "nu",
    covariates: Sequence[str] = (),
    batch: str | None = None,
    proportions: Sequence[str] | None = None,
) -> Model:
    """~ 0 + celltype + covariates (+ 1 | batch); overall pseudobulk if proportions are named."""
    if proportions is None:
        dummies = pd.get_dummies(frame["celltype"], dtype=float)
        names, H = list(dummies.columns), dummies.to_numpy()
    else:
        names, H = list(proportions), frame[list(proportions)].to_numpy(dtype=float)
    X = np.hstack([H, frame[list(covariates)].to_numpy(dtype=float)])
    random = []
    if batch is not None:
        random = [RandomComponent(pd.factorize(frame[batch])[0], np.ones(len(frame)))]
    return build_model(
        frame[y].to_numpy(), frame[nu].to_numpy(), X, H, pd.factorize(frame["donor"])[0],
        resolve(structure, names).basis, random,
        frame["n_cells"].to_numpy(dtype=float) if "n_cells" in frame else None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Model]:
    return frame_model
