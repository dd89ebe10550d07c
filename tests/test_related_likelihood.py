"""Likelihoods of related donors against dense algebra and goldens of another author and metafor."""

import json
from itertools import pairwise

import dense
import dense_kr
import numpy as np
import pytest
from conftest import SHARED, quick_first
from test_he import close, make
from test_kinship import GOLDENS, KERNELS, golden_model, golden_set, related

from ctmm_formula.engine import related_likelihood
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.likelihood import coding_constant
from ctmm_formula.engine.related_spectral import Rotated, rotates


def point(model, negative=False):
    """A point inside the domain."""
    theta = np.random.default_rng(0).uniform(0.1, 0.6, model.n_components)
    if negative:
        for term, at in zip(model.kinship, model.kinship_slices, strict=True):
            theta[at.stop - 1] = -0.03 / np.linalg.norm(term.kernel.whole, 2)
    return theta


def of_means(model):
    """The same with the noise of every cell type at its mean."""
    rows, types = model.active_rows, model.H.argmax(axis=1)
    mean = np.bincount(types[rows], model.nu[rows]) / np.bincount(types[rows])
    return model.with_response(model.y, mean[types])


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("kernels", quick_first(KERNELS, 2))
@pytest.mark.parametrize("random", quick_first(["batch", "none", "crossed", "celltype-specific"]))
def test_value_score_and_information(kernels, random, method, negative):
    model = related(make("ctp", "free", random, True), KERNELS[kernels](30))
    theta = point(model, negative)
    at = related_likelihood.evaluate(model, theta, method == "reml")
    assert at.llf == pytest.approx(dense.llf(model, theta, method), abs=1e-8)
    close(at.score, dense.score(model, theta, method), 1e-8)
    close(at.average, dense.average_information(model, theta), 1e-8)


@pytest.mark.parametrize("structure", ["full", "iid", "hom"])
def test_structures(structure):
    model = related(make("ctp", "iid", "batch", True), KERNELS["both"](30), structure)
    theta = point(model)
    if structure == "full":
        theta[3:] = [*(full := [0.5, 0.2, 0.4, 0.1, 0.05, 0.6]), *full]
    at = related_likelihood.evaluate(model, theta, True)
    assert at.llf == pytest.approx(dense.llf(model, theta, "reml"), abs=1e-8)
    close(at.score, dense.score(model, theta, "reml"), 1e-8)


def test_of_donors_left_out():
    model = related(make(missing=True), KERNELS["both"](30)).without([3, 8])
    theta = point(model)
    at = related_likelihood.evaluate(model, theta, True)
    assert at.llf == pytest.approx(dense.llf(model, theta, "reml"), abs=1e-8)
    close(at.score, dense.score(model, theta, "reml"), 1e-8)


@pytest.mark.parametrize(
    ("kernels", "random", "limit"),
    [("family", "none", 0), ("wide window", "none", 0), ("both", "batch", 3000),
     ("family", "crossed", 3000), ("window", "celltype-specific", 3000)],
)  # fmt: skip
def test_how_the_fixed_effects_move(kernels, random, limit, monkeypatch):
    """Kenward and Roger's covariance and Satterthwaite's degrees of freedom by n x n matrices."""
    monkeypatch.setitem(related_likelihood.ORDERS, "reml", (limit, limit))
    model = related(make(random=random, missing=limit > 0), KERNELS[kernels](30))
    model = model if limit else of_means(model)
    assert related_likelihood.is_rotated(model) == (limit == 0)
    theta = point(model)
    known = dense_kr.adjusted(model, theta)
    found = related_likelihood.variation(model, theta, known.W)
    close(found.root @ found.root.T, known.Phi, 1e-9)
    adjusted = found.root @ (np.eye(len(found.root)) + found.inflation) @ found.root.T
    close(adjusted, known.cov, 1e-9)
    assert np.abs(found.inflation).max() > 1e-3
    for row in np.eye(len(known.Phi)):
        z = row @ found.root
        moves = np.einsum("i,kij,j->k", z, found.slopes, z)
        df = 2.0 * (z @ z) ** 2 / (moves @ moves)
        assert df == pytest.approx(dense_kr.satterthwaite(known, row), rel=1e-8)


def test_outside():
    model = related(make(), KERNELS["family"](30))
    theta = point(model)
    for k in (0, -1):
        far = theta.copy()
        far[k] = -5.0
        assert dense.llf(model, far, "reml") == -np.inf
        assert related_likelihood.evaluate(model, far, True) is None


@pytest.mark.parametrize("structure", ["hom", "free"])
@pytest.mark.parametrize("name", GOLDENS)
def test_goldens(name, structure):
    data, K, python, _ = golden_set(name)
    model = golden_model(data, K, structure)
    k = len(model.basis)
    order = np.r_[k : 2 * k, :k]  # genetic components first there
    for known in python[structure]["at_points"]:
        theta = np.array(known["theta"])[np.argsort(order)]
        at = related_likelihood.evaluate(model, theta, True)
        assert at.llf == pytest.approx(known["llf"], abs=1e-7)
        close(at.score[order], known["score"], 1e-8)
        close(at.average[np.ix_(order, order)], known["average_information"], 1e-8)
    metafor = json.loads((SHARED / f"golden/kinship/{name}_metafor.json").read_text())[structure]
    for bounds, key in (("nonnegative", "reml_nonnegative"), ("noise", "reml_unbounded")):
        known = python[structure][key]
        found = estimate(model, "reml", Domain(bounds))
        assert found.convergence.converged, found.convergence
        for theirs in (known, metafor) if bounds == "nonnegative" else (known,):
            assert found.llf == pytest.approx(theirs["llf"], abs=1e-6)
            close(found.theta[order], theirs["theta"], 1e-5)
            if "beta" in theirs:
                close(found.beta, theirs["beta"], 1e-5)
                close(np.sqrt(np.diag(found.cov_beta)), theirs["se_beta"], 1e-5)


BOUNDS = ["nonnegative", "psd", "noise"]


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("structure", quick_first(["free", "full", "hom"]))
def test_nothing_in_the_domain_is_better(structure, bounds, method):
    """By the same likelihood in dense algebra: stationary, or no way up that stays inside."""
    base = make("ctp", "free", "batch", missing=True, n_donors=40)
    model = related(base, KERNELS["family"](40), structure)
    found = estimate(model, method, Domain(bounds))
    assert found.convergence.converged, found.convergence
    assert found.llf == pytest.approx(dense.llf(model, found.theta, method), abs=1e-7)
    score, size = dense.score(model, found.theta, method), np.abs(found.theta).max()
    if not found.convergence.boundary:
        step = np.linalg.solve(dense.average_information(model, found.theta), score)
        assert np.abs(step).max() < 1e-4 * size
    walls = related_likelihood._Walls(model, Domain(bounds))
    rng = np.random.default_rng(1)
    for spread in (1e-3, 1e-2, 0.1):
        for _ in range(40):
            near = found.theta + spread * size * rng.normal(size=len(found.theta))
            near = np.maximum(near, walls.lower)
            if walls(near)[0] > -np.inf:
                assert dense.llf(model, near, method) <= found.llf + 1e-5


@pytest.mark.parametrize("bounds", ["psd", "noise"])
def test_a_stage_of_the_barrier_begins_near_its_end(bounds, monkeypatch):
    """The way to the edge is short, and no point of it is far from where a stage ends."""
    model = related(make("ctp", "free", n_donors=40), KERNELS["window"](40))
    ahead, climbed = related_likelihood._ahead, []

    def watched(f, end, mu, following):
        climbed.append((end.theta, ahead(f, end, mu, following), following))
        return climbed[-1][1]

    monkeypatch.setattr(related_likelihood, "_ahead", watched)
    found = estimate(model, "reml", Domain(bounds))
    assert found.convergence.boundary and found.convergence.n_evaluations < 50
    for (end, start, _), (after, *_) in pairwise(climbed[2:]):
        assert np.abs(start - after).max() < 0.2 * np.abs(end - after).max()


# ---------------------------------------------------------------------------------------------
# rotated donors


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("structure", ["free", "full"])
@pytest.mark.parametrize("kernels", ["family", "window", "wide window"])
def test_rotated_donors(kernels, structure, method):
    """Exact where donors have the same noise; else centred by what was measured."""
    model = related(make(random="none"), KERNELS[kernels](30), structure).without([4, 9])
    theta = point(model)
    if structure == "full":
        theta[4:] = [0.5, 0.2, 0.4, 0.1, 0.05, 0.6]
    even = of_means(model)
    assert rotates(even)
    reml = method == "reml"
    own = [related_likelihood.centred(one, 1.0) for one in (even, model)]
    same, other = (Rotated(one).at(theta, reml) for one in own)
    constant = coding_constant(model) if reml else 0.0
    assert same.llf + constant == pytest.approx(dense.llf(even, theta, method), abs=1e-8)
    close(same.score, dense.score(even, theta, method), 1e-8)
    close(same.average, dense.average_information(even, theta), 1e-8)

    a = dense.arrays(even)
    P = dense.projection(dense.covariance(a, theta), a.X)[1]
    PEP = P @ np.diag(model.nu - even.nu)[np.ix_(model.active_rows, model.active_rows)] @ P
    centre = np.array([np.vdot(part, PEP) for part in a.parts])
    assert np.abs(centre).max() > 1e-3
    close(other.score, dense.score(even, theta, method) - 0.5 * centre, 1e-8)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("method", ["reml", "ml"])
def test_rotated_donors_have_the_same_maximum(method, bounds, monkeypatch):
    model = of_means(related(make(random="none", n_donors=60), KERNELS["family"](60)))
    exact = estimate(model, method, Domain(bounds))
    for one in ("reml", "ml"):
        monkeypatch.setitem(related_likelihood.ORDERS, one, (100, 100))
    found = estimate(model, method, Domain(bounds))
    assert found.convergence.converged and "donors rotated" in found.convergence.message
    assert found.llf == pytest.approx(exact.llf, abs=1e-6)
    close(found.theta, exact.theta, 1e-4)
    close(found.beta, exact.beta, 1e-5)
    close(found.cov_beta, exact.cov_beta, 1e-5)
    again = related_likelihood.evaluate(model, found.theta, method == "reml")
    assert again.llf == pytest.approx(found.llf, rel=1e-12)


def test_what_does_not_rotate():
    assert rotates(related(make(random="none"), KERNELS["family"](30)))
    for random, kernels, missing in (
        ("batch", "family", False), ("none", "both", False), ("none", "family", True)
    ):  # fmt: skip
        assert not rotates(related(make(random=random, missing=missing), KERNELS[kernels](30)))
