"""The normal with missing blocks: EM against a brute-force maximiser, and what must not matter."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from ctmm_formula.cells.mvn import em_step, fit_normal, patterns, start
from ctmm_formula.cells.stacks import scaling
from ctmm_formula.errors import ConvergenceError, CTMMError, DataError

MAXIMUM = 1e-6
"""Log-likelihood: EM stops within this of the maximum, a general optimiser too."""
ESTIMATE = 2e-4
"""Absolute, in standard deviations: the likelihood is flat to MAXIMUM over this distance."""
FINE = {"tol": 1e-10, "max_steps": 20_000}


def draw(seed=0, N=60, C=3, holes=0.2):
    rng = np.random.default_rng(seed)
    root = np.tril(rng.normal(size=(C, C))) + np.eye(C)
    Y = rng.normal(size=(N, C)) @ root.T + rng.normal(size=C) * 5.0
    missing = rng.random((N, C)) < holes
    missing[missing.all(axis=1), 0] = False
    Y[missing] = np.nan
    return Y


def standard(Y):
    seen = ~np.isnan(Y)
    return np.where(seen, scaling(Y[None], seen).apply(Y[None]), 0.0), seen


def brute_force(W, seen, prior):
    """Maximum over mean and Cholesky factor, row by row with scipy's density."""
    C = W.shape[1]
    lower = np.tril_indices(C)

    def unpack(x):
        L = np.zeros((C, C))
        L[lower] = x[C:]
        return x[:C], L @ L.T

    def negative(x):
        mean, cov = unpack(x)
        value = -0.5 * prior * (np.linalg.slogdet(cov)[1] + np.trace(np.linalg.inv(cov)))
        for row, o in zip(W, seen, strict=True):
            if o.any():
                value += multivariate_normal.logpdf(row[o], mean[o], cov[np.ix_(o, o)])
        return -value

    found = minimize(negative, np.r_[np.zeros(C), np.eye(C)[lower]], method="BFGS")
    return -found.fun, *unpack(found.x)


def log_likelihood(W, observed, mean, cov, prior=0.0):
    """Penalised log-likelihood of the observed entries, shape (B,)."""
    inverse = np.linalg.inv(cov) if prior else np.zeros_like(cov)
    value = -0.5 * prior * (np.linalg.slogdet(cov)[1] + np.trace(inverse, axis1=1, axis2=2))
    for rows, o, _ in patterns(observed):
        sigma = cov[:, o[:, None], o]
        deviation = W[:, rows[:, None], o] - mean[:, None, o]
        solved = np.linalg.solve(sigma, deviation.swapaxes(1, 2)).swapaxes(1, 2)
        logdet = np.linalg.slogdet(sigma)[1] + len(o) * np.log(2.0 * np.pi)
        value = value - 0.5 * (len(rows) * logdet + (deviation * solved).sum(axis=(1, 2)))
    return value


@pytest.mark.slow
@pytest.mark.parametrize("prior", [0.0, 2.5])
def test_em_finds_the_maximum(prior):
    W, seen = standard(draw(N=25))
    best, mean, cov = brute_force(W[0], seen, prior)
    found = fit_normal(np.where(seen, W[0], np.nan), prior=prior, **FINE)
    # W is standardised already, so the units are those of the brute force
    reached = log_likelihood(W, seen, found.mean, found.cov, prior)[0]
    assert reached == pytest.approx(best, abs=MAXIMUM)
    np.testing.assert_allclose(found.mean[0], mean, atol=ESTIMATE)
    np.testing.assert_allclose(found.cov[0], cov, atol=ESTIMATE)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_em_never_lowers_the_likelihood(prior):
    W, seen = standard(draw(1, N=30, C=4, holes=0.35))
    mean, cov = start(W, seen)
    values = []
    for _ in range(60):
        values.append(log_likelihood(W, seen, mean, cov, prior)[0])
        _, mean, cov = em_step(W, seen, mean, cov, prior)
    steps = np.diff(values)
    assert (steps > -1e-10).all() and steps[0] > 1.0


def test_filled_values_are_conditional_means():
    Y = draw(2)
    found = fit_normal(Y)
    mean, cov = found.mean[0], found.cov[0]
    for rows, o, m in patterns(~np.isnan(Y)):
        if not len(m):
            continue
        slope = np.linalg.solve(cov[np.ix_(o, o)], cov[np.ix_(o, m)])
        expected = mean[m] + (Y[np.ix_(rows, o)] - mean[o]) @ slope
        np.testing.assert_allclose(found.values[0][np.ix_(rows, m)], expected, atol=1e-9)
    seen = ~np.isnan(Y)
    assert (found.values[0][seen] == Y[seen]).all()


@pytest.mark.parametrize("factor", [0.01, 1e-6, 1e6])
def test_units_do_not_matter(factor):
    Y = draw(3)
    found, scaled = fit_normal(Y), fit_normal(factor * Y)
    np.testing.assert_allclose(scaled.values, factor * found.values, rtol=1e-9)
    np.testing.assert_allclose(scaled.cov, factor**2 * found.cov, rtol=1e-9)
    # column by column, and shifted
    units, shift = np.array([1.0, 10.0, 0.1]), np.array([0.0, 100.0, -3.0])
    mixed = fit_normal(units * Y + shift)
    np.testing.assert_allclose(mixed.values, units * found.values + shift, rtol=1e-7)


def test_order_of_rows_and_columns_does_not_matter():
    Y = draw(4)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(len(Y)), rng.permutation(3)
    found = fit_normal(Y, **FINE).values[0]
    shuffled = fit_normal(Y[rows][:, columns], **FINE).values[0]
    np.testing.assert_allclose(shuffled, found[rows][:, columns], atol=1e-8)


def test_complete_data_give_sample_moments():
    Y = draw(5, holes=0.0)
    found = fit_normal(Y, prior=0.0)
    np.testing.assert_allclose(found.mean[0], Y.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found.cov[0], np.cov(Y.T, ddof=0), rtol=1e-10)
    assert (found.values[0] == Y).all()


def test_a_row_without_values_gets_the_mean():
    Y = draw(6)
    Y[7] = np.nan
    found = fit_normal(Y)
    np.testing.assert_allclose(found.values[0, 7], found.mean[0], atol=1e-12)


def test_a_stack_is_estimated_matrix_by_matrix():
    holes = np.isnan(draw(7))
    rng = np.random.default_rng(0)
    stack = np.where(holes, np.nan, rng.normal(size=(5, *holes.shape)).cumsum(axis=2))
    together = fit_normal(stack)
    assert together.converged.all()
    for b in range(5):
        alone = fit_normal(stack[b])
        np.testing.assert_allclose(together.values[b], alone.values[0], atol=1e-12)
        np.testing.assert_allclose(together.cov[b], alone.cov[0], atol=1e-12)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_a_constant_column_is_filled_with_its_constant(prior):
    Y = draw(8)
    Y[~np.isnan(Y[:, 1]), 1] = 4.0
    assert (fit_normal(Y, prior=prior).values[0, :, 1] == 4.0).all()


def test_a_column_that_repeats_another_is_filled_from_it():
    Y = draw(8, holes=0.0)
    Y[:, 1] = 2.0 * Y[:, 0] - 1.0
    hidden, Y[3, 1] = Y[3, 1], np.nan
    assert fit_normal(Y, prior=0.0).values[0, 3, 1] == pytest.approx(hidden, abs=1e-3)


def test_a_singular_covariance_is_told():
    W, seen = standard(draw())
    with pytest.raises(ConvergenceError, match="prior > 0"):
        em_step(W, seen, np.zeros((1, 3)), np.zeros((1, 3, 3)), 0.0)


def test_fewer_donors_than_cell_types():
    Y = draw(9, N=5, C=8, holes=0.1)
    Y[0] = np.where(np.isnan(Y[0]), 0.0, Y[0])
    found = fit_normal(Y)
    assert np.isfinite(found.values).all() and found.converged.all()
    assert np.linalg.eigvalsh(found.cov[0])[0] > 0.0


def test_steps_that_run_out_are_told():
    assert not fit_normal(draw(10), max_steps=2).converged.any()


def test_bad_input():
    Y = draw(11)
    Y[:, 2] = np.nan
    with pytest.raises(DataError, match=r"columns \[2\] have no value"):
        fit_normal(Y)
    Y[0, 0] = np.inf
    with pytest.raises(DataError, match="infinite"):
        fit_normal(Y)
    for prior in (-1.0, np.nan):
        with pytest.raises(CTMMError, match="prior"):
            fit_normal(draw(), prior=prior)
