"""Fresh simulated data fitted here and by metafor, the lme4 kernel and glmmTMB, side by side.

Skipped without Rscript or a package; with CTMM_REQUIRE_R=1 in the environment that is a failure.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import dense
import numpy as np
import pandas as pd
import pytest

from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate

pytestmark = pytest.mark.r

SCRIPTS = Path(__file__).parent / "r"
TOOLS = ("metafor", "lme4", "glmmTMB")
LLF = 1e-6
"""Absolute, log-likelihood at an interior optimum (the tools stop within 1e-8 of each other)."""
ESTIMATES = 2e-3
"""Relative to the largest entry: equal to 1e-6 in log-likelihood is 1e-3 in standard errors."""
STRUCTURES = ("hom", "iid", "free", "full")
NONNEGATIVE = Domain("nonnegative", 0.1)


@cache
def missing_r(package: str) -> str:
    """Why this R package cannot be used, or nothing."""
    if shutil.which("Rscript") is None:
        return "Rscript is not installed"
    test = f"quit(status = !requireNamespace('{package}', quietly = TRUE))"
    call = subprocess.run(["Rscript", "--vanilla", "-e", test], capture_output=True, check=False)
    return f"R package {package} is not installed" if call.returncode else ""


def need(package: str) -> None:
    reason = missing_r(package)
    if reason and os.environ.get("CTMM_REQUIRE_R") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def simulate(missing: bool, seed: int, donors: int = 48) -> pd.DataFrame:
    """A long table with 8 batches and noise that differs 10-fold between pairs."""
    rng = np.random.default_rng(seed)
    types = 4
    batch = rng.permutation(np.arange(donors) % 8)
    donor, celltype = np.divmod(np.arange(donors * types), types)
    nu = 0.3 * 10 ** rng.uniform(-1, 0, donors * types)
    V = np.array([0.6, 0.3, 0.2, 0.4])
    y = (
        np.array([1.0, 0.2, -0.3, -1.0])[celltype]
        + rng.normal(scale=0.6, size=donors)[donor]
        + rng.normal(size=donors * types) * np.sqrt(V[celltype] + nu)
        + rng.normal(scale=0.5, size=8)[batch[donor]]
    )
    frame = pd.DataFrame(
        {
            "donor": [f"d{i:02d}" for i in donor],
            "celltype": [f"T{c + 1}" for c in celltype],
            "batch": [f"b{b}" for b in batch[donor]],
            "expr": y,
            "nu": nu,
        }
    )
    keep = rng.random(len(frame)) > (0.15 if missing else -1)
    return frame[keep].reset_index(drop=True)


def run_r(tool: str, frame: pd.DataFrame, method: str, batch: bool, folder: Path) -> pd.DataFrame:
    table = folder / "data.csv"
    frame.to_csv(table, index=False, float_format="%.17g")
    command = ["Rscript", "--vanilla", str(SCRIPTS / "fit.R"), tool, str(table), method]
    call = subprocess.run(
        [*command, str(int(batch))], capture_output=True, text=True, timeout=300, check=False
    )
    assert call.returncode == 0, call.stderr
    return pd.read_csv(io.StringIO(call.stdout))


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("method", "batch", "missing"),
    [("reml", True, True), ("reml", False, False), ("ml", True, False)],
)
def test_same_fit(tool, method, batch, missing, tmp_path, make_model):
    need(tool)
    frame = simulate(missing, seed=7 + batch + 2 * missing)
    theirs = run_r(tool, frame, method, batch, tmp_path)
    for structure in STRUCTURES:
        rows = theirs[theirs["structure"] == structure]
        value = {name: part.to_numpy() for name, part in rows.groupby("name")["value"]}
        model = make_model(frame, structure, batch="batch" if batch else None)
        ours = estimate(model, method, NONNEGATIVE)
        llf = value["llf"][0]
        assert ours.convergence.converged
        assert ours.llf == pytest.approx(llf, abs=LLF)
        if tool == "glmmTMB":  # compared by its log-likelihood only
            continue
        # their own numbers, by brute force: we mean the same model
        assert dense.llf(model, value["theta"], method) == pytest.approx(llf, abs=LLF)
        compare(ours.theta, value["theta"])
        compare(ours.beta, value["beta"])
        compare(np.sqrt(np.diag(ours.cov_beta)), value["se"])


def compare(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ESTIMATES * np.abs(theirs).max())
