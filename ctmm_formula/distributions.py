"""Upper tails of t, F, chi2 and Cauchy by the special functions of scipy.

The numbers are those of scipy.stats, whose import alone would take a good part of a first fit.
"""

from __future__ import annotations

import numpy as np
from scipy import special


def t_tail(t: np.ndarray | float, df: np.ndarray | float) -> np.ndarray:
    """P(T > t).

    >>> t_tail(0.0, 5).item()
    0.5
    """
    return special.stdtr(df, -np.asarray(t))


def t_reach(p: float, df: np.ndarray | float) -> np.ndarray:
    """The t with P(T > t) = p.

    >>> t_reach(0.025, 60).round(4).item()
    2.0003
    """
    return -special.stdtrit(df, p)


def variance_interval(
    value: np.ndarray, se: np.ndarray, df: np.ndarray | float, tail: float
) -> np.ndarray:
    """Intervals (K, 2) of variance components, by t on the scale of log(value + c).

    The standard error of a variance component rises with it, as se = (2 / df)^1/2 (value + c)
    where noise adds c: estimates that happen to be small come with small errors, and value -+ t se
    misses larger truths.  c is what the standard error says it is, and at least 0; ends may be
    negative, as components may.

    >>> variance_interval(np.array([0.2]), np.array([0.1]), 19, 0.025).round(3)
    array([[0.048, 0.5  ]])
    """
    value, se = np.asarray(value, dtype=float), np.asarray(se, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.maximum(value, se * np.sqrt(np.asarray(df) / 2.0))
        part = t_reach(tail, df) * se / whole
        ends = value[..., None] + whole[..., None] * np.expm1(part[..., None] * [-1.0, 1.0])
    return ends


def f_tail(F: float, q: float, df: float) -> float:
    """P(F(q, df) > F) for F >= 0; chi2(q) / q where df is infinite."""
    if df == np.inf:
        return chi2_tail(q * F, q)
    return float(special.fdtrc(q, df, F))


def chi2_tail(x: float, df: float) -> float:
    """P(chi2(df) > x) for x >= 0."""
    return float(special.chdtrc(df, x))


def cauchy_tail(x: float) -> float:
    """P(C > x) of a standard Cauchy variable."""
    return float(np.arctan2(1.0, x) / np.pi)
