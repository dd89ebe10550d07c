"""Weighted moments of related donors against dense algebra."""

from dataclasses import replace

import dense
import numpy as np
import pytest
from conftest import quick_first
from test_he import close, make
from test_kinship import KERNELS, related
from test_related_likelihood import of_means, point

from ctmm_formula.engine import he, related_likelihood, related_moments
from ctmm_formula.engine.blup import covariance_parts
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.left_out_related import left_out
from ctmm_formula.engine.model import build_model
from ctmm_formula.engine.related_joined import Joined
from ctmm_formula.engine.related_spectral import Rotated
from ctmm_formula.errors import ConvergenceError, CTMMError
from ctmm_formula.inference.jackknife import jackknife


def working(model, theta, noise):
    """The working covariance of the rows in use (n x n)."""
    a = dense.arrays(model)
    return np.tensordot(theta, a.parts, axes=1) + np.diag(noise[model.active_rows])


def equations(model, S):
    """F, q - h, b and its covariance, at a working covariance S (n x n), nu that of the model."""
    a = dense.arrays(model)
    M, P = dense.projection(S, a.X)
    F = np.array([[np.trace(P @ A @ P @ B) for B in a.parts] for A in a.parts])
    right = np.array([a.y @ P @ A @ P @ a.y - np.trace(P @ A @ P @ a.D) for A in a.parts])
    hat = np.linalg.solve(a.X.T @ M @ a.X, a.X.T @ M)
    return F, right, hat @ a.y, hat


def counted(model):
    return replace(model, n_cells=np.linspace(5, 60, len(model.y)))


@pytest.mark.parametrize("kernels", quick_first(KERNELS, 3))
@pytest.mark.parametrize("random", quick_first(["batch", "none", "crossed", "celltype-specific"]))
def test_equations_of_joined_donors(kernels, random):
    """Missing pairs, donors left out, components of 0."""
    model = counted(related(make("ctp", "free", random, True), KERNELS[kernels](30)))
    model = model.without([4, 9])
    theta = np.abs(point(model))
    theta[[1, -1]] = 0.0
    own = related_moments.pooled_noise(model)
    found = Joined(own).equations(theta, model.nu)
    F, right, beta, hat = equations(model, working(model, theta, own.nu))
    close(found.traces, F, 1e-9)
    close(found.right, right, 1e-9)
    close(model.back @ found.beta, beta, 1e-8)
    root = np.linalg.solve(found.low, model.back.T)
    S = working(model, theta, model.nu)  # weights differ from the noise that is
    close(root.T @ found.spread @ root, hat @ S @ hat.T, 1e-8)


@pytest.mark.parametrize("structure", ["free", "full"])
@pytest.mark.parametrize("kernels", ["family", "wide window"])
def test_equations_of_rotated_donors(kernels, structure):
    model = related(make(random="none"), KERNELS[kernels](30), structure).without([4, 9])
    theta = np.abs(point(model))
    found = Rotated(model).equations(theta, model.nu)
    mean = of_means(model).nu
    F, right, beta, hat = equations(model, working(model, theta, mean))
    close(found.traces, F, 1e-9)
    close(found.right, right, 1e-9)
    close(model.back @ found.beta, beta, 1e-8)
    root = np.linalg.solve(found.low, model.back.T)
    close(root.T @ found.spread @ root, hat @ working(model, theta, model.nu) @ hat.T, 1e-8)


@pytest.mark.parametrize("light", [0, 600], ids=["rotated", "joined"])
def test_a_fit_is_these_equations_over_and_over(light, monkeypatch):
    monkeypatch.setitem(related_likelihood.ORDERS, "robust", (light, 1500))
    model = counted(related(make(random="none"), KERNELS["family"](30)))
    noise = related_moments.pooled_noise(model).nu if light else of_means(model).nu
    theta = he.fit(model).theta
    weights = covariance_parts(model, theta)
    for _ in range(related_moments.REWEIGHTINGS):
        F, right, beta, hat = equations(model, working(model, weights, noise))
        theta = np.linalg.solve(F, right)
        last, weights = weights, 0.5 * (weights + covariance_parts(model, theta))
    found = related_moments.fit(model)
    close(found.theta, theta, 1e-7)
    close(found.beta, beta, 1e-7)
    close(found.information, 0.5 * F, 1e-7)
    close(found.cov_beta, hat @ working(model, last, model.nu) @ hat.T, 1e-7)
    assert ("donors rotated" in found.convergence.message) == (light == 0)


def test_units_do_not_matter():
    model = counted(related(make(random="batch"), KERNELS["both"](30)))
    found = related_moments.fit(model)
    other = related_moments.fit(model.with_response(100 * model.y, 1e4 * model.nu))
    close(other.theta, 1e4 * found.theta, 1e-6)
    close(other.cov_beta, 1e4 * found.cov_beta, 1e-6)
    close(other.information, 1e-8 * found.information, 1e-6)


def test_without_its_own_noise_and_covariance_it_is_haseman_elston(monkeypatch):
    """All rows weigh alike where no component has any part in the weights."""
    model = related(make(), KERNELS["family"](30))
    monkeypatch.setattr(related_moments, "covariance_parts", lambda m, theta: 0.0 * theta)
    monkeypatch.setattr(related_moments, "working_noise", lambda nu, *_: np.full(len(nu), 2.0))
    close(related_moments.fit(model).theta, he.fit(model).theta, 1e-9)


def test_the_jackknife_refits():
    model = counted(related(make(random="none"), KERNELS["window"](30)))
    found = related_moments.fit(model)
    run = jackknife(model, found, blocks=4)
    part = related_moments.fit(model.without(run.left_out[2]), start=found.theta)
    close(run.theta[2], part.theta, 1e-12)
    close(run.beta[2], part.beta, 1e-12)
    assert run.kind == "block" and not run.failed
    reml = related_likelihood.fit(model, "reml", Domain("nonnegative"))
    with pytest.raises(CTMMError, match="one_step= of a likelihood takes donors as unrelated"):
        jackknife(model, reml, one_step=True)


@pytest.mark.parametrize("rotated", [False, True])
def test_without_each_donor_at_the_weights_of_all(rotated, monkeypatch):
    """Against dense algebra of the other donors; blocks of donors too."""
    random = "none" if rotated else "batch"
    model = counted(related(make("ctp", "free", random, not rotated), KERNELS["window"](30)))
    if rotated:
        monkeypatch.setitem(related_likelihood.ORDERS, "robust", (0, 50))
    found = related_moments.fit(model)
    own, at = related_moments.working(model, found)
    noise = own.nu
    if rotated:
        types = model.H.argmax(axis=1)
        noise = np.array([model.nu[types == c].mean() for c in range(model.H.shape[1])])[types]
    groups = [np.array(own) for own in ([0], [4], [7, 12])]
    theta, beta = left_out(model, found, groups)

    def solved(part):
        F, right, b, _ = equations(part, working(part, at.theta, noise))
        return np.linalg.solve(F, right), b

    whole, b = solved(model)
    for g, group in enumerate(groups):
        some, without = solved(model.without(group))
        close(theta[g] - found.theta, some - whole, 1e-7)
        close(beta[g] - found.beta, without - b, 1e-7)
    run = jackknife(model, found, one_step=True)
    close(run.theta[[0, 4]], theta[:2], 1e-10)
    assert run.name == "jackknife, one step" and 0.0 < run.error < 1.0


def test_a_fixed_effect_of_one_donor_is_not_had_without_it():
    model = counted(related(make(random="none"), KERNELS["window"](30)))
    X = np.column_stack([model.X, model.row_donor == 3])
    model = build_model(
        model.y, model.nu, X, model.H, model.row_donor, model.basis, n_cells=model.n_cells,
        kinship=model.kinship,
    )  # fmt: skip
    run = jackknife(model, related_moments.fit(model), one_step=True)
    assert [g for g, _ in run.failed] == [3] and "a fixed effect rests on" in run.failed[0][1]


def test_too_large_says_so(monkeypatch):
    monkeypatch.setitem(related_likelihood.ORDERS, "robust", (20, 50))
    model = related(make(random="batch"), KERNELS["family"](30))
    with pytest.raises(ConvergenceError, match=r"at most 50, .*use method='he'"):
        related_moments.fit(model)
