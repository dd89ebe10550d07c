"""Jackknife: what a left-out donor can take with it, and what the answer must not depend on."""

import numpy as np
import pytest

from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.structures import resolve

REFIT = 1e-5  # refits stop this far, in standard errors, from the optimum


def example(rng, n_donors=24, n_types=3, extra=None, keep=None, structure="free"):
    """Complete data with cell type means, a batch effect and an optional donor covariate."""
    donor = np.repeat(np.arange(n_donors), n_types)
    H = np.tile(np.eye(n_types), (n_donors, 1))
    n = len(donor)
    X = H if extra is None else np.column_stack([H, extra[donor]])
    batch = (np.arange(n_donors) % 5)[donor]
    nu = rng.uniform(0.05, 0.2, n)
    y = (
        rng.normal(size=n_donors)[donor]
        + 0.5 * rng.normal(size=n)
        + np.sqrt(nu) * rng.normal(size=n)
    )
    rows = np.ones(n, dtype=bool) if keep is None else keep(donor, H)
    basis = resolve(structure, [f"c{k}" for k in range(n_types)]).basis
    batches = RandomComponent(batch[rows], np.ones(rows.sum()))
    return build_model(y[rows], nu[rows], X[rows], H[rows], donor[rows], basis, [batches])


@pytest.mark.parametrize("method", ["reml", "ml", "he"])
def test_a_donor_alone_in_a_covariate_level(method):
    extra = np.zeros(24)
    extra[7] = 1.0
    model = example(np.random.default_rng(0), extra=extra)
    fit = estimate(model, method)
    jack = jackknife(model, fit)
    alone = int(np.flatnonzero(model.donors == 7)[0])
    assert [g for g, _ in jack.failed] == [alone]
    assert "rests on these donors alone" in jack.failed[0][1]
    np.testing.assert_array_equal(np.isnan(jack.beta[alone]), [False, False, False, True])
    np.testing.assert_array_equal(np.isnan(np.diag(jack.cov_beta)), [False, False, False, True])
    # without that donor the covariate is gone: the same fit as without the column
    bare = build_model(
        model.y, model.nu, model.H, model.H, model.row_donor, model.basis, model.random
    )
    there = int(np.flatnonzero(bare.donors == alone)[0])
    other = estimate(bare.without(there), method)
    np.testing.assert_allclose(jack.theta[alone], other.theta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jack.beta[alone, :3], other.beta, rtol=1e-6, atol=1e-8)
    assert np.isfinite(jack.cov_theta).all()


def test_a_cell_type_left_to_one_donor():
    rng = np.random.default_rng(1)
    model = example(rng, keep=lambda donor, H: (H[:, 2] == 0) | np.isin(donor, [3, 9]))
    jack = jackknife(model, estimate(model, "reml"))
    failed = {int(model.donors[g]): reason for g, reason in jack.failed}
    assert set(failed) == {3, 9}
    assert all("cannot be told apart" in reason for reason in failed.values())
    assert np.isnan(jack.cov_theta).all()


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("blocks", [None, 7])
def test_threads_do_not_change_the_answer(one_step, blocks):
    model = example(np.random.default_rng(2), n_donors=30)
    fit = estimate(model, "reml")
    first = jackknife(model, fit, blocks=blocks, one_step=one_step)
    for n_jobs in (2, 30):
        other = jackknife(model, fit, blocks=blocks, one_step=one_step, n_jobs=n_jobs)
        np.testing.assert_array_equal(other.theta, first.theta)
        np.testing.assert_array_equal(other.beta, first.beta)


def test_one_step_reports_its_distance_from_the_exact_jackknife():
    model = example(np.random.default_rng(3), n_donors=40)
    fit = estimate(model, "reml")
    exact, rough = jackknife(model, fit), jackknife(model, fit, one_step=True)
    se = np.sqrt(np.diag(rough.cov))
    apart = np.abs(np.hstack([exact.theta - rough.theta, exact.beta - rough.beta]) / se)
    assert rough.kind == "one-step" and exact.error == 0.0
    assert 0.0 < rough.error <= apart.max() * (1 + 1e-6)
    assert rough.error > 0.5 * apart.max()  # the donors checked are the ones that move


@pytest.mark.parametrize("bounds", ["noise", "psd", "nonnegative"])
@pytest.mark.parametrize("structure", ["free", "full"])
def test_replicates_are_fits_of_the_other_donors(bounds, structure):
    model = example(np.random.default_rng(4), structure=structure)
    domain = Domain(bounds)
    fit = estimate(model, "reml", domain)
    jack = jackknife(model, fit, domain)
    se = np.sqrt(np.diag(jack.cov_theta))
    for i in range(0, 24, 5):
        alone = estimate(model.without(i), "reml", domain)
        if not alone.convergence.boundary:
            assert np.abs((alone.theta - jack.theta[i]) / se).max() < REFIT


def test_expression_far_from_zero():
    rng = np.random.default_rng(5)
    model = example(rng)
    shifted = model.with_response(model.y + 1e6, model.nu)
    fit, other = estimate(model, "reml"), estimate(shifted, "reml")
    assert other.llf == pytest.approx(fit.llf, abs=1e-6)
    np.testing.assert_allclose(other.theta, fit.theta, rtol=1e-6)
    np.testing.assert_allclose(
        jackknife(shifted, other).cov_theta, jackknife(model, fit).cov_theta, rtol=1e-4
    )
