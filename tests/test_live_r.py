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

import ctmm_formula as ctmm
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


def test_metafor_with_a_kinship(tmp_path):
    """A kinship shared by cell types and one of every type, as `rma.mv(R=)` has them."""
    need("metafor")
    rng = np.random.default_rng(5)
    N, types = 24, ["T1", "T2"]
    names = [f"d{i:02d}" for i in range(N)]
    K = np.where(np.arange(N)[:, None] // 4 == np.arange(N) // 4, 0.5, 0.02) + 0.48 * np.eye(N)
    root = np.linalg.cholesky(K)
    y = 0.8 * (root @ rng.normal(size=(N, 1))) + 0.8 * (root @ rng.normal(size=(N, 2)))
    y += 0.6 * rng.normal(size=(N, 1))
    donor, celltype = np.divmod(np.arange(2 * N), 2)
    nu = 0.3 * 10 ** rng.uniform(-1, 0, 2 * N)
    data = pd.DataFrame(
        {
            "donor": np.array(names)[donor],
            "celltype": np.array(types)[celltype],
            "expr": y.ravel() + rng.normal(size=2 * N) * np.sqrt(nu),
            "nu": nu,
        }
    ).drop(index=[3, 17])
    files = tmp_path / "data.csv", tmp_path / "K.csv"
    frame = pd.DataFrame(K, names, names)
    data.to_csv(files[0], index=False)
    frame.to_csv(files[1])
    script = ["Rscript", "--vanilla", str(SCRIPTS / "metafor_kinship.R"), *map(str, files)]
    out = subprocess.run(script, capture_output=True, check=True, text=True).stdout
    llf, g, e, *rest = map(float, out.split())
    res = ctmm.fit(
        "expr ~ 0 + C(celltype)", structure="hom", genetic_structure="free", kinship=frame,
        method="reml", data=data,
    )  # fmt: skip
    assert res.llf == pytest.approx(llf, abs=LLF)
    theirs = np.array([e, g, *rest[:2]])
    assert np.abs(res.vcomp - theirs).max() < ESTIMATES * theirs.max()
    assert np.abs(res.fe_params - rest[2:]).max() < ESTIMATES
