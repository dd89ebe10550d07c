"""Moment estimates of many genes and without each group of donors, against brute force."""

import pickle
import warnings

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import quick_first

import ctmm_formula as ctmm
from ctmm_formula.engine import he, left_out_moments
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.left_out_moments import LeftOutMoments
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.errors import ConvergenceError
from ctmm_formula.inference.jackknife import MomentJackknife, jackknife
from ctmm_formula.structures import resolve

pytestmark = pytest.mark.slow

EXACT = 1e-9
"""Relative: brute force squares the condition of the moment equations."""
SAME = 1e-11
"""Relative: the same equations, summed in another order."""
CELLTYPES = ["a", "b", "c"]
RANDOM = ["none", "batch", "crossed", "celltype-specific"]


def make(kind="ctp", structure="free", random="batch", missing=False, n_donors=30, seed=0):
    """Rows in no order, donor covariates, batches that may cross sites; y of variance one."""
    rng = np.random.default_rng([seed, n_donors, missing, RANDOM.index(random)])
    size = len(CELLTYPES)
    present = rng.random((n_donors, size)) > (0.25 if missing else -1)
    present[present.sum(axis=1) < 1] = True
    donor, celltype = np.nonzero(present)
    H = np.eye(size)[celltype]
    if kind == "op":
        donor = np.arange(n_donors)
        H = rng.dirichlet([1.0] * size, n_donors)
    shuffle = rng.permutation(len(donor))
    donor, H = donor[shuffle], H[shuffle]
    n = len(donor)
    X = np.hstack([H, np.c_[rng.normal(size=n_donors), np.arange(n_donors) % 3 == 0][donor]])
    batch, site = (rng.permutation(np.arange(n_donors) % k)[donor] for k in (5, 3))
    parts = [RandomComponent(batch, np.ones(n))] if random != "none" else []
    if random == "crossed":
        parts.append(RandomComponent(site, np.ones(n)))
    if random == "celltype-specific":
        parts += [RandomComponent(site, H[:, c]) for c in range(size)]
    basis = resolve(structure, CELLTYPES).basis
    y, nu = rng.normal(size=n), rng.uniform(0.05, 0.3, n)
    return build_model(y + 0.5 * rng.normal(size=n_donors)[donor], nu, X, H, donor, basis, parts)


def responses(model, count=3, seed=1):
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=(len(model.y), count))
    return Y, rng.uniform(0.05, 0.3, Y.shape)


def close(actual, desired, tolerance):
    """Relative to the largest entry; the same NaN."""
    desired = np.asarray(desired)
    size = np.nanmax(np.abs(desired), initial=1e-6)
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance * size)


def check_refits(model, groups, count=2):
    """theta and b of every response without each group are those of the dense definition."""
    Y, NU = responses(model, count)
    left = LeftOutMoments(model, groups)
    thetas = left.theta(Y, NU)
    assert thetas.shape == (count, len(groups), model.n_components)
    for j in range(count):
        gene = model.with_response(Y[:, j], NU[:, j])
        gls, ols = left.gls(gene, thetas[j]), left.ols(gene, thetas[j])
        for g, group in enumerate(groups):
            part = gene.without(group)
            theta, condition = dense.haseman_elston(part)
            close(thetas[j, g], theta, max(EXACT, 1e-14 * condition))
            close(ols[g], dense.ols(part), EXACT)
            if he.fit(part).beta_by == "gls":  # each donor's own covariance is definite too
                close(gls[g], dense.gls(part, thetas[j, g])[0], EXACT)
            else:
                assert np.isnan(gls[g]).all()
    return left


@pytest.mark.slow
@pytest.mark.parametrize("structure", quick_first(["free", "hom", "iid", "full"]))
@pytest.mark.parametrize("random", RANDOM)
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_without_each_donor(structure, random, missing):
    model = make("ctp", structure, random, missing)
    left = check_refits(model, list(np.arange(30)[:, None]))
    assert len(left.near) == 30  # all by the update


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["hom", "iid", "free"])
@pytest.mark.parametrize("random", ["none", "crossed"])
def test_overall_pseudobulk(structure, random):
    check_refits(make("op", structure, random, n_donors=40), list(np.arange(40)[:, None]))


@pytest.mark.parametrize("random", RANDOM)
@pytest.mark.parametrize("largest", [left_out_moments._LARGEST, 1], ids=["update", "afresh"])
def test_groups_of_donors(random, largest, monkeypatch):
    monkeypatch.setattr(left_out_moments, "_LARGEST", largest)
    model = make("ctp", "free", random, True)
    left = check_refits(model, list(np.array_split(np.arange(30), 7)))
    assert len(left.near) == (7 if largest > 1 else 0)


def test_of_a_model_with_donors_left_out():
    model = make("ctp", "free", "crossed", True).without([3, 8])
    check_refits(model, [np.array([i]) for i in np.flatnonzero(model.active)])


def test_no_fixed_effects():
    model = make("ctp", "free", "batch", True)
    bare = build_model(
        model.y, model.nu, model.X[:, :0], model.H, model.row_donor, model.basis, model.random
    )
    left = LeftOutMoments(bare, [np.array([2]), np.array([5, 7])])
    theta = left.theta(bare.y[:, None], bare.nu[:, None])[0]
    for g, group in enumerate(left.groups):
        close(theta[g], dense.haseman_elston(bare.without(group))[0], EXACT)
    assert left.gls(bare, theta).shape == left.ols(bare, theta).shape == (2, 0)


def test_a_donor_that_all_but_holds_a_covariate_and_one_that_does():
    base = make()
    for value, aliased in ((1e-3, False), (0.0, True)):
        spike = np.where(base.row_donor == 4, 1.0, 0.0)
        spike[base.row_donor == 9] = value
        X = np.column_stack([base.X, spike])
        model = build_model(base.y, base.nu, X, base.H, base.row_donor, base.basis, base.random)
        donor = int(np.flatnonzero(model.donors == 4)[0])
        left = LeftOutMoments(model, list(np.arange(30)[:, None]))
        assert np.flatnonzero(left.aliased).tolist() == [donor] * aliased
        assert donor not in left.near
        theta = left.theta(model.y[:, None], model.nu[:, None])[0]
        if aliased:
            assert np.isnan(theta[donor]).all() and np.isfinite(np.delete(theta, donor, 0)).all()
        else:
            close(theta[donor], dense.haseman_elston(model.without(donor))[0], EXACT)


def test_a_donor_without_whom_components_cannot_be_told_apart():
    """Cell type c is there for two donors only: the variance between them is all there is."""
    base = make(random="none")
    keep = (base.H[:, 2] == 0) | np.isin(base.row_donor, [3, 9])
    model = build_model(
        base.y[keep], base.nu[keep], base.X[keep], base.H[keep], base.row_donor[keep], base.basis
    )
    fit = estimate(model, "he")
    assert np.isfinite(LeftOutMoments(model, [np.array([5])]).theta(*_own(model))).all()
    jack = jackknife(model, fit)
    failed = {int(model.donors[g]): reason for g, reason in jack.failed}
    assert set(failed) == {3, 9}
    assert all("cannot be told apart" in reason for reason in failed.values())
    for g, _ in jack.failed:
        assert np.isnan(jack.theta[g]).all() and np.isnan(jack.beta[g]).all()
        with pytest.raises(ConvergenceError, match="cannot be told apart"):
            estimate(model.without(g), "he")


def _own(model):
    return model.y[:, None], model.nu[:, None]


@pytest.mark.parametrize("blocks", [None, 6])
@pytest.mark.parametrize("scale", [1.0, 0.05], ids=["gls", "ols"])
def test_jackknife_is_made_of_fits(blocks, scale):
    """b by the rule of the full fit; none where that rule cannot be followed."""
    model = make("ctp", "free", "batch", True)
    model = model.with_response(scale * model.y, model.nu)
    fit = estimate(model, "he")
    assert fit.beta_by == ("gls" if scale == 1.0 else "ols")
    jack = jackknife(model, fit, blocks=blocks, one_step=True)
    assert jack.kind == ("donor" if blocks is None else "block") and jack.error == 0.0
    failed = dict(jack.failed)
    for g, group in enumerate(jack.left_out):
        part = model.without(group)
        alone = he.fit(part)
        close(jack.theta[g], alone.theta, SAME)
        assert (g in failed) == (fit.beta_by == "gls" != alone.beta_by)
        if g not in failed:
            close(jack.beta[g], alone.beta if fit.beta_by == "gls" else he.ols(part), SAME)
    G, both = len(jack.left_out), np.hstack([jack.beta, jack.theta])
    close(jack.cov, (G - 1) ** 2 / G * np.cov(both.T), SAME)


def test_many_genes_are_single_genes():
    model = make("ctp", "free", "crossed", True)
    Y, NU = responses(model, 40)
    Y[3, 1], Y[:, 2], Y[:, 5] = np.nan, 7.0, Y[:, 5] + 1e6  # broken, constant, far from zero
    genes = [model.with_response(y, nu) for y, nu in zip(Y.T, NU.T, strict=True)]
    together = he.moments(model).solve(Y, NU)
    fits = [he.complete(gene, theta) for gene, theta in zip(genes, together, strict=True)]
    shared = MomentJackknife(model)
    thetas = shared.theta(Y, NU)
    for j in (0, 3, 5, 39):
        gene = model.with_response(Y[:, j], NU[:, j])
        alone = he.fit(gene)
        tolerance = 1e-7 if j == 5 else SAME  # digits of the mean
        close(fits[j].theta, alone.theta, tolerance)
        close(fits[j].beta, alone.beta, SAME)
        assert fits[j].beta_by == alone.beta_by
        one, other = jackknife(gene, alone), shared(gene, fits[j], theta=thetas[j])
        close(other.cov, one.cov, tolerance)
        assert one.failed == other.failed
    assert np.isnan(fits[1].theta).all() and np.isnan(thetas[1]).all()
    assert np.isfinite(fits[2].theta).all()


def test_blocks_of_genes_change_nothing(monkeypatch):
    model = make("ctp", "full", "batch", True)
    Y, NU = responses(model, 7)
    left = LeftOutMoments(model, list(np.arange(30)[:, None]))
    whole = left.theta(Y, NU)
    monkeypatch.setattr(left_out_moments, "_CHUNK", 1)
    close(left.theta(Y, NU), whole, SAME)


def test_moments_that_do_not_identify_the_components():
    base = make()
    model = build_model(
        base.y, base.nu, base.X, base.H, base.row_donor, base.basis, [*base.random, *base.random]
    )
    with pytest.raises(ConvergenceError, match="cannot be told apart"):
        he.moments(model).solve(*responses(model))
    left = LeftOutMoments(model, [np.array([2])])
    assert np.isnan(left.theta(*responses(model))).all()


def test_scans_with_any_number_of_workers():
    """Bit for bit, also where what genes share has been sent to another process."""
    obs, expr, nu = ctmm.load_genes()
    data = {"data": obs, "expr": expr.iloc[:, :120], "nu": nu.iloc[:, :120]}
    settings = {"random": "batch", "method": "he", "tests": ["jackknife", "mean_jackknife"]}
    one = ctmm.fit_genes("~ C(celltype) + sex", **data, **settings, n_jobs=1).table
    two = ctmm.fit_genes("~ C(celltype) + sex", **data, **settings, n_jobs=2).table
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    model = make()
    shared = MomentJackknife(model)
    sent = pickle.loads(pickle.dumps(shared))
    Y, NU = responses(model)
    np.testing.assert_array_equal(sent.theta(Y, NU), shared.theta(Y, NU))


def test_effects_are_gls_wherever_blocks_of_donors_are_definite():
    """Also where donors alone are not; of random components, by eigenvalues of all of Sigma."""
    rng = np.random.default_rng(5)
    kinds = {"donors": 0, "blocks": 0, "none": 0}
    for trial in range(150):
        celltype, donor = np.tile(np.arange(2), 8), np.repeat(np.arange(8), 2)
        H, batch = np.eye(2)[celltype], rng.integers(6, size=8)[donor]
        level = np.unique(batch, return_inverse=True)[1]
        random = [RandomComponent(level, H[:, c].copy()) for c in range(2)]
        y, nu = rng.normal(size=16), rng.uniform(0.05, 0.3, 16)
        model = build_model(y, nu, H, H, donor, np.ones((1, 2, 2)), random)
        theta = np.append(-rng.uniform(0.02, 0.1), rng.uniform(-0.05, 0.4, 2))
        sigma = dense.covariance(dense.arrays(model), theta)
        at = he.complete(model, theta)
        definite = np.linalg.eigvalsh(sigma)[0] > 0
        assert at.beta_by == ("gls" if definite else "ols"), trial
        want, cov = dense.gls(model, theta)
        alone = all(
            np.linalg.eigvalsh(theta[0] + np.diag(model.nu[model.row_donor == i]))[0] > 0
            for i in range(8)
        )
        kinds["none" if not definite else "donors" if alone else "blocks"] += 1
        if definite:
            np.testing.assert_allclose(at.beta, want, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(at.cov_beta, cov, rtol=1e-8, atol=1e-12)
            left = LeftOutMoments(model, [np.array([i]) for i in range(8)])
            betas = left.gls(model, np.tile(theta, (8, 1)))
            for i in range(8):
                part = model.without(np.array([i]))
                inside = np.linalg.eigvalsh(dense.covariance(dense.arrays(part), theta))[0] > 0
                rank = np.linalg.matrix_rank(part.X[part.active_rows]) == 2
                assert inside and rank
                np.testing.assert_allclose(betas[i], dense.gls(part, theta)[0], rtol=1e-7)
    assert min(kinds.values()) > 10, kinds


@pytest.mark.parametrize("method", ["he", "reml", "ml", "robust"])
def test_no_residual_without_a_donor_is_no_estimate(method):
    """Eight rows and six effects: six rows without any donor."""
    rng = np.random.default_rng(0)
    data = {name: rng.normal(size=8) for name in ("x", "z", "w", "v", "y")}
    data |= {"donor": np.repeat(list("abcd"), 2), "celltype": list("BT") * 4, "nu": 0.1}
    data |= {"n_cells": rng.integers(10, 50, 8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.BoundaryWarning)  # of ML
        res = ctmm.fit("y ~ C(celltype) + x + z + w + v", data=data, structure="hom", method=method)
    run = res.jackknife()
    assert run.estimates["hom"].isna().all() and len(run.failed) == 4
    assert set(run.failed.values()) == {
        "the variance components cannot be told apart without these donors"
    }
    test = res.test_component("hom", "jackknife")
    assert np.isnan(test.pvalue) and test.note
