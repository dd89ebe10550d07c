"""Fits by metafor (simulated data and the real gene) and by the lme4 kernel, variances >= 0.

Both hold every variance component at zero or above, as ``bounds="nonnegative"`` does, and their
golden files were made elsewhere.  Where another program ends lower, ours must be higher.
"""

from __future__ import annotations

import json
from pathlib import Path

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import GOLDEN, SHARED, not_here

from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate

ORACLE = 1e-9
"""Absolute, log-likelihood of the same numbers by metafor and by brute force (13 digits given)."""
LLF = 1e-6
"""Absolute, how far below another program's log-likelihood ours may end."""
ESTIMATES = 2e-3
"""Relative to the largest entry, where log-likelihoods agree to 1e-6: theta then agrees only to
about sqrt(1e-6) standard errors, which are as large as the components themselves."""

NONNEGATIVE = Domain("nonnegative", 0.1)
FILES = ("sim_complete", "sim_batch_cov", "sim_missing", "ipsc_gene")
QUICK = 8
MISSING = not_here("golden/ipsc_gene.metafor.json", "data/ipsc_gene_ctp.csv")


def load(name: str) -> list[tuple]:
    """(file, number of the fit) of one golden file; the real gene is skipped where it is not."""
    if name == "ipsc_gene" and MISSING:
        return [pytest.param(name, 0, marks=pytest.mark.skip(reason=MISSING))]
    fits = json.loads(golden_path(name).read_text())["fits"]
    return [
        pytest.param(name, i, id="-".join([name, *label(fit)]), marks=quick(i))
        for i, fit in enumerate(fits)
    ]


def quick(number: int) -> tuple:
    """The first fits of a file are tried by quick tests."""
    return () if number < QUICK else (pytest.mark.slow,)


def golden_path(name: str) -> Path:
    folder = SHARED / "golden" if name == "ipsc_gene" else GOLDEN
    return folder / f"{name}.metafor.json"


def label(fit: dict) -> list[str]:
    return [fit["structure"], fit["method"], fit["covariates"], "batch" if fit["batch"] else "0"]


def components(fit: dict) -> np.ndarray:
    """metafor's sigma2, tau2 and G in our order of components."""
    sigma2, tau2 = np.atleast_1d(fit["sigma2"]), np.atleast_1d(fit["tau2"])
    if fit["structure"] == "full":
        G = np.array(fit["G"])
        parts = [G[np.tril_indices(len(G))], sigma2 if fit["batch"] else []]
    else:
        keep = {"hom": 0, "iid": 1, "free": len(tau2)}[fit["structure"]]
        parts = [sigma2[:1], tau2[:keep], sigma2[1:]]
    return np.concatenate(parts)


@pytest.mark.parametrize(("name", "number"), [case for name in FILES for case in load(name)])
def test_metafor(name, number, make_model):
    fit = json.loads(golden_path(name).read_text())["fits"][number]
    table = SHARED / "data/ipsc_gene_ctp.csv" if name == "ipsc_gene" else GOLDEN / f"{name}.csv"
    frame = pd.read_csv(table)
    covariates = [c for c in frame if c.startswith(("cov", "PC"))]
    model = make_model(
        frame, fit["structure"],
        covariates=covariates if fit["covariates"] == "cov" else (),
        batch="batch" if fit["batch"] else None,
    )  # fmt: skip
    method, theirs = fit["method"].lower(), components(fit)
    assert dense.llf(model, theirs, method) == pytest.approx(fit["llf"], abs=ORACLE)

    got = estimate(model, method, NONNEGATIVE)
    compare(model, got, fit["llf"], theirs, np.array(fit["beta"]), np.array(fit["se_beta"]))


def compare(model, got, llf: float, theta: np.ndarray, beta: np.ndarray, se: np.ndarray) -> None:
    """Ours is at least as high and, at the same height, the same fit."""
    assert got.convergence.converged
    assert got.llf == pytest.approx(dense.llf(model, got.theta, got.method), abs=ORACLE)
    assert got.llf >= llf - LLF
    K = len(model.basis)
    assert (np.diagonal(model.effect_covariance(got.theta)) >= -1e-12).all()
    assert (got.theta[K:] >= 0).all()
    if got.llf <= llf + LLF:
        np.testing.assert_allclose(got.theta, theta, rtol=0, atol=ESTIMATES * theta.max())
        np.testing.assert_allclose(got.beta, beta, rtol=0, atol=ESTIMATES * np.abs(beta).max())
        np.testing.assert_allclose(np.sqrt(np.diag(got.cov_beta)), se, rtol=ESTIMATES)


def lme4_cases() -> list:
    table = pd.read_csv(GOLDEN / "r/golden.csv")
    keys = ["fixture", "structure", "method", "batch"]
    cases = table[keys].drop_duplicates().itertuples(index=False, name=None)
    return [pytest.param(*case, marks=quick(i)) for i, case in enumerate(cases)]


@pytest.mark.parametrize(("fixture", "structure", "method", "batch"), lme4_cases())
def test_lme4_kernel(fixture, structure, method, batch, make_model):
    table = pd.read_csv(GOLDEN / "r/golden.csv")
    rows = table[
        (table.fixture == fixture)
        & (table.structure == structure)
        & (table.method == method)
        & (table.batch == batch)
    ]
    value = dict(zip(rows["name"], rows["value"], strict=True))
    frame = pd.read_csv(GOLDEN / "r" / fixture)
    frame["sexM"] = (frame["sex"] == "M").astype(float)
    model = make_model(
        frame, structure, y="y", nu="v",
        covariates=["sexM", "PC1"], batch="batch" if batch else None,
    )  # fmt: skip
    llf = value["loglik"] + (0.5 * value["logdetXtX"] if method == "REML" else 0.0)
    size = model.H.shape[1]
    V = [f"V.{r}.{c}" for r in range(1, size + 1) for c in range(1, r + 1)]
    names = {
        "hom": ["hom"],
        "iid": ["hom", "V"],
        "free": ["hom", *(f"V.{c}.{c}" for c in range(1, size + 1))],
        "full": V,
    }[structure] + (["batch"] if batch else [])
    theirs = np.array([value[k] for k in names])
    beta = np.array([v for k, v in value.items() if k.startswith("beta:")])
    se = np.array([v for k, v in value.items() if k.startswith("se:")])
    method = method.lower()
    assert dense.llf(model, theirs, method) == pytest.approx(llf, abs=1e-7)  # 12 digits given
    compare(model, estimate(model, method, NONNEGATIVE), llf, theirs, beta, se)
