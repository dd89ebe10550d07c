"""Tails against scipy.stats, from the middle to where doubles end."""

import numpy as np
import pytest
from scipy import stats

from ctmm_formula.distributions import cauchy_tail, chi2_tail, f_tail, t_reach, t_tail

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
    same([t_reach(each, df) for each in p], stats.t.isf(p, df))


@pytest.mark.parametrize("df", DF)
def test_f_and_chi2(df):
    for q in (1.0, 2.0, 5.0, 40.0):
        same([f_tail(F, q, df) for F in FAR], stats.f.sf(FAR, q, df))
    same([chi2_tail(x, df) for x in FAR], stats.chi2.sf(FAR, df))


def test_cauchy():
    x = np.concatenate([-FAR, FAR, [1e300]])
    same([cauchy_tail(each) for each in x], stats.cauchy.sf(x))
