"""Upper tails of t, F, chi2 and Cauchy by the special functions of scipy, and standard errors.

The numbers are those of scipy.stats, whose import alone would take a good part of a first fit.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special


def standard_errors(variances: np.ndarray | float) -> np.ndarray:
    """Square roots of variances; NaN where negative components leave none.

    >>> standard_errors(np.array([4.0, -1e-3])).tolist()
    [2.0, nan]
    """
    return np.sqrt(np.where(np.asarray(variances) >= 0.0, variances, np.nan))


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
    out, df = -special.stdtrit(df, p), np.asarray(df, dtype=float)
    if not p < 1e-200:
        return out
    # scipy gives up there: NaN or an infinity of either sign, where x = df / t^2 is next to nothing
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_p = math.log(p) if p else -math.inf
        log_x = (log_p + np.log(df) + special.betaln(0.5 * df, 0.5)) / (0.5 * df)
        far = np.sqrt(df) * np.exp(-0.5 * log_x)
    return np.where(np.isfinite(out) | ~(df > 0), out, far)


def variance_interval(
    value: np.ndarray,
    se: np.ndarray,
    df: np.ndarray | float,
    tail: float,
    df_se: np.ndarray | float | None = None,
) -> np.ndarray:
    """Intervals (K, 2) of variance components, by t on the scale of log(value + c).

    The standard error of a variance component rises with it, as se = (2 / df)^1/2 (value + c)
    where noise adds c: estimates that happen to be small come with small errors, and value -+ t se
    misses larger truths.  c is what the standard error says it is, and at least 0; ends may be
    negative, as components may.  t has `df_se` degrees of freedom, those of the standard error,
    where they are fewer than the df of the units.

    >>> variance_interval(np.array([0.2]), np.array([0.1]), 19, 0.025).round(3)
    array([[0.048, 0.5  ]])
    """
    value, se = np.asarray(value, dtype=float), np.asarray(se, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        whole = np.maximum(value, se * np.sqrt(np.asarray(df) / 2.0))
        part = t_reach(tail, df if df_se is None else df_se) * se / whole
        ends = value[..., None] + whole[..., None] * np.expm1(part[..., None] * [-1.0, 1.0])
    return ends


def log_interval(
    value: np.ndarray, se: np.ndarray, df: np.ndarray | float, tail: float
) -> np.ndarray:
    """Intervals (K, 2) of positive values, by t on the scale of their logarithm; else NaN.

    >>> log_interval(np.array([0.2, -0.1]), np.array([0.1, 0.1]), 19, 0.025).round(3)
    array([[0.07, 0.57],
           [ nan,  nan]])
    """
    value = np.where(np.asarray(value) > 0, value, np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        part = t_reach(tail, np.where(np.greater(df, 0), df, np.nan)) * se / value
        return value[..., None] * np.exp(part[..., None] * [-1.0, 1.0])


def f_tail(F: float, q: float, df: float) -> float:
    """P(F(q, df) > F) for F >= 0; chi2(q) / q where df is infinite."""
    if df == np.inf:
        return chi2_tail(q * F, q)
    return float(special.fdtrc(q, df, F))


def chi2_tail(x: float, df: float) -> float:
    """P(chi2(df) > x) for x >= 0."""
    return float(special.chdtrc(df, x))


def chi2_reach(tail: float, df: float) -> float:
    """The x that chi2(df) exceeds with probability `tail`.

    >>> round(chi2_reach(0.05, 1), 4)
    3.8415
    """
    return float(special.chdtri(df, tail))


def cauchy_tail(x: float) -> float:
    """P(C > x) of a standard Cauchy variable."""
    return float(np.arctan2(1.0, x) / np.pi)


# logarithms, where the tails themselves are below the smallest number

_TINY = 1e-290  # tails above have their logarithm taken


def log_of(p: float) -> float:
    """log p, and -inf of 0.

    >>> log_of(0.0), log_of(1.0)
    (-inf, 0.0)
    """
    return math.log(p) if p > 0.0 else math.nan if math.isnan(p) else -math.inf


def log_t_tail(t: float, df: float) -> float:
    """log P(T > t).

    >>> round(log_t_tail(1e30, 100) / math.log(10), 2)
    -2901.4
    """
    p = float(t_tail(t, df))
    if not p < _TINY or not t < math.inf:
        return log_of(p)
    if df == math.inf:
        return float(special.log_ndtr(-t))
    return _log_beta(2.0 * math.log(t) - math.log(df), 0.5 * df, 0.5) - math.log(2.0)


def log_f_tail(F: float, q: float, df: float) -> float:
    """log P(F(q, df) > F) for F >= 0.

    >>> round(log_f_tail(1e60, 3, 100) / math.log(10), 2)
    -2922.95
    """
    if df == math.inf:
        return log_chi2_tail(q * F, q)
    p = f_tail(F, q, df)
    if not p < _TINY or not math.inf > F:
        return log_of(p)
    return _log_beta(math.log(q) + math.log(F) - math.log(df), 0.5 * df, 0.5 * q)


def log_chi2_tail(x: float, df: float) -> float:
    """log P(chi2(df) > x) for x >= 0, far out by Legendre's continued fraction.

    >>> round(log_chi2_tail(14000.0, 2), 6)
    -7000.0
    """
    p = chi2_tail(x, df)
    if not p < _TINY or not x < math.inf:
        return log_of(p)
    a, z = 0.5 * df, 0.5 * x
    fraction = z
    for k in range(60, 0, -1):
        fraction = z + (k - a) / (1.0 + k / fraction)
    return a * math.log(z) - z - float(special.gammaln(a)) - math.log(fraction)


def _log_beta(log_odds: float, a: float, b: float) -> float:
    """log I_x(a, b) of the incomplete beta function, (1 - x) / x given, by a series."""
    log_x, log_rest = -np.logaddexp(0.0, log_odds), -np.logaddexp(0.0, -log_odds)
    x, term, total, k = math.exp(log_x), 1.0, 1.0, 0
    while term > 1e-17 * total:
        term *= x * (a + b + k) / (a + 1.0 + k)
        total += term
        k += 1
    front = a * log_x + b * log_rest - math.log(a) - float(special.betaln(a, b))
    return float(front + math.log(total))
