"""Shared helpers: where golden data live, and a Model straight from a long table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.structures import resolve

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[1].parent / "shared"
"""Real data that may not be copied into the project; tests that need it skip without it."""


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the real gene is not kept with the project")
    return SHARED


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
