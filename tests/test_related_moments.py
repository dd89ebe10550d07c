"""Weighted moments of related donors against dense algebra."""

from dataclasses import replace

import dense
import numpy as np
import pytest
from conftest import quick_first
from test_he import close, make
from test_kinship import KERNELS, related

from ctmm_formula.engine import he, related_moments, robust
from ctmm_formula.engine.blup import covariance_part
from ctmm_formula.inference.jackknife import jackknife


def equations(model, S):
    """theta and b of the weighted moment equations, at a working covariance S (n x n)."""
    a = dense.arrays(model)
    M, P = dense.projection(S, a.X)
    F = np.array([[np.trace(P @ A @ P @ B) for B in a.parts] for A in a.parts])
    q = [a.y @ P @ A @ P @ a.y - np.trace(P @ A @ P @ a.D) for A in a.parts]
    return np.linalg.solve(F, q), np.linalg.solve(a.X.T @ M @ a.X, a.X.T @ M @ a.y)


def working(model, shared):
    """The working covariance, by the robust fit without the kinship."""
    found = robust.fit(model.unrelated)
    A = model.effect_covariance(covariance_part(found.theta, model.basis))
    keep, donor = model.active_rows, model.row_donor
    S = (model.H @ A @ model.H.T) * (donor[:, None] == donor)
    S = S if shared else np.diag(np.diag(S))
    return (S + np.diag(dense.working_noise(model.unrelated)))[np.ix_(keep, keep)]


@pytest.mark.parametrize("kernels", quick_first(KERNELS, 2))
@pytest.mark.parametrize("random", quick_first(["batch", "none", "crossed", "celltype-specific"]))
def test_equations(kernels, random):
    model = related(make("ctp", "free", random, True), KERNELS[kernels](30))
    model = replace(model, n_cells=np.linspace(5, 60, len(model.y)))
    star = related_moments.weighted(model)
    spread = [c.codes != c.codes[model.row_ptr[model.row_donor]] for c in model.random]
    S = working(model, not np.any(spread))
    found = related_moments.fit(model)
    theta, beta = equations(model, S)
    close(found.theta, theta, 1e-8)
    close(found.beta, beta, 1e-8)
    a = dense.arrays(model)
    M = np.linalg.inv(S)
    hat = np.linalg.solve(a.X.T @ M @ a.X, a.X.T @ M)
    close(found.cov_beta, hat @ dense.covariance(a, theta) @ hat.T, 1e-8)
    # left out at the weights of all donors
    run = jackknife(star, found)
    for donor in (0, 7, 20):
        part, rows = model.without([donor]), model.row_donor != donor
        theta, beta = equations(part, S[np.ix_(rows, rows)])
        close(run.theta[donor], theta, 1e-7)
        close(run.beta[donor], beta, 1e-7)


def test_equal_weights_are_haseman_elston(monkeypatch):
    model = related(make(), KERNELS["family"](30))
    flat = replace(robust.fit(model.unrelated), theta=np.zeros(len(model.S)))
    monkeypatch.setattr(related_moments, "weigh", lambda _: type("F", (), {"estimate": flat}))
    monkeypatch.setattr(related_moments, "working_noise", lambda nu, *_: np.full(len(nu), 2.0))
    close(related_moments.fit(model).theta, he.fit(model).theta, 1e-9)
