"""Tails against scipy.stats, from the middle to where doubles end."""

import numpy as np
import pytest
from scipy import stats

from ctmm_formula import distributions
from ctmm_formula.distributions import (
    cauchy_tail,
    chi2_tail,
    f_tail,
    log_chi2_tail,
    log_f_tail,
    log_t_tail,
    t_reach,
    t_tail,
)  # fmt: skip
from ctmm_formula.inference.score import cauchy_combination, log_cauchy_combination

ROUNDING = 1e-14
DF = [0.5, 1.0, 2.0, 3.7, 10.0, 94.0, 980.0, 1e5]
FAR = np.concatenate([[0.0], np.geomspace(1e-12, 1e12, 97), [np.inf]])


def same(got, want):
    np.testing.assert_allclose(got, want, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("df", DF)
def test_t(df):
    t = np.concatenate([-FAR, FAR, [np.nan]])
    same(t_tail(t, df), stats.t.sf(t, df))
    p = np.concatenate([np.geomspace(1e-300, 0.5, 50), 1.0 - np.geomspace(1e-10, 0.5, 20)])
    got, want = np.array([t_reach(each, df) for each in p]), stats.t.isf(p, df)
    told = np.isfinite(want)  # of the smallest p scipy has -inf or NaN
    same(got[told], want[told])
    back = p[~told] / stats.t.sf(got[~told], df)
    np.testing.assert_allclose(back, 1.0, rtol=1e-12)


@pytest.mark.parametrize("df", DF)
def test_f_and_chi2(df):
    for q in (1.0, 2.0, 5.0, 40.0):
        same([f_tail(F, q, df) for F in FAR], stats.f.sf(FAR, q, df))
    same([chi2_tail(x, df) for x in FAR], stats.chi2.sf(FAR, df))


def test_cauchy():
    x = np.concatenate([-FAR, FAR, [1e300]])
    ours = [cauchy_tail(each) for each in x]
    np.testing.assert_allclose(ours, stats.cauchy.sf(x), rtol=1e-14, atol=2e-16)  # of old scipy
    far = x > 1e8
    same(np.array(ours)[far], 1.0 / (np.pi * x[far]))


@pytest.mark.parametrize("always", [False, True], ids=["as they are", "by series"])
def test_logarithms_of_tails(always, monkeypatch):
    """The logarithm of a tail, and the series that takes over where there is none, agree."""
    if always:
        monkeypatch.setattr(distributions, "_TINY", 1.0)
    near = {"rtol": 1e-12, "atol": 0}
    for x in (20.0, 300.0, 1200.0):
        for df in (1, 2, 3, 8):
            np.testing.assert_allclose(log_chi2_tail(x, df), stats.chi2.logsf(x, df), **near)
    for F in (5.0, 80.0, 3000.0):
        for q, df in ((1, 12), (3, 94), (7, 980)):
            t = np.sqrt(F)
            for got, p in (
                (log_f_tail(F, q, df), stats.f.sf(F, q, df)),
                (log_t_tail(t, df), stats.t.sf(t, df)),
            ):
                if p > 0.0:  # else there is nothing to compare with
                    np.testing.assert_allclose(got, np.log(p), **near)


def test_logarithms_of_tails_to_1e_3000():
    """Closed forms: chi2 with 2 df, F with 2 over any df, t with 2 df; and the normal limit."""
    assert log_chi2_tail(14_000.0, 2) == pytest.approx(-7000.0, rel=1e-14)
    for F, df in ((1e60, 100.0), (1e10, 700.0)):
        want = -0.5 * df * np.log1p(2.0 * F / df)  # P(F(2, df) > F)
        assert log_f_tail(F, 2.0, df) == pytest.approx(want, rel=1e-13)
        assert want < -2300
    t = 1e200  # P(T_2 > t) = 1 / (2 t^2) far out
    assert log_t_tail(t, 2.0) == pytest.approx(-2.0 * np.log(t) - np.log(2.0), rel=1e-14)
    assert log_t_tail(120.0, np.inf) == pytest.approx(stats.norm.logsf(120.0), rel=1e-13)
    assert log_f_tail(np.inf, 2.0, 9.0) == -np.inf
    assert np.isnan(log_f_tail(np.nan, 2.0, 9.0))


def test_cauchy_combinations_of_logarithms():
    """As of p values where these are numbers; far out n over the sum of 1 / p."""
    rng = np.random.default_rng(1)
    for p in (rng.random(5), 10.0 ** rng.uniform(-250, 0, 6), np.array([1e-300, 0.5, 1.0])):
        got = np.exp(log_cauchy_combination(np.log(p)))
        scores = np.tan((0.5 - np.minimum(p, 0.99)) * np.pi)
        scores = np.where(p < 1e-15, 1.0 / (p * np.pi), scores)
        assert got == pytest.approx(np.arctan2(1.0, scores.mean()) / np.pi, rel=1e-12)
        assert cauchy_combination(p) == pytest.approx(got, rel=1e-12)
    far = np.array([-7000.0, -7001.0, -1.0])
    want = np.log(3.0) - 7001.0 - np.log1p(np.exp(-1.0))
    assert log_cauchy_combination(far) == pytest.approx(want, rel=1e-15)
    assert log_cauchy_combination(np.array([-np.inf, -1.0])) == -np.inf
