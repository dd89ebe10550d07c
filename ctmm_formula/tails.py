"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

_POINTS = 4096
_FAR = 1e-7  # below this the inversion's absolute error counts: saddlepoint from here on


def upper_tail(value: float, weights: np.ndarray) -> float:
    """P(sum_j lambda_j chi2_1 > value).

    The characteristic function is inverted numerically (Imhof 1961, Davies 1980); far in the
    tail, where only relative accuracy means anything, the Lugannani-Rice saddlepoint is used
    (Kuonen 1999).

    Parameters
    ----------
    value : float
    weights : ndarray, shape (m,)
        lambda, of either sign.

    Examples
    --------
    >>> round(upper_tail(3.841458820694124, np.array([1.0])), 6)
    0.05
    >>> round(upper_tail(2 * 11.070497693516351, np.full(5, 2.0)), 6)
    0.05
    """
    lam = np.asarray(weights, dtype=float)
    size = np.abs(lam).max(initial=0.0)
    if size == 0.0:
        return 1.0 if value < 0.0 else 0.0 if value > 0.0 else math.nan
    lam = lam[np.abs(lam) > 1e-10 * size] / size
    value = value / size
    if value >= 0.0 and (lam < 0.0).all():
        return 0.0
    if value <= 0.0 and (lam > 0.0).all():
        return 1.0
    rough = saddlepoint(value, cumulants(lam))
    if rough < _FAR:
        return rough
    exact = inversion(value, lam)
    return exact if math.isfinite(exact) and 0.0 < exact < 1.0 else rough


def inversion(value: float, lam: np.ndarray) -> float:
    """Imhof's integral 1/2 + 1/pi int sin(theta(u)) / (u rho(u)) du, by Davies' trapezoid rule.

    The step keeps the aliases more than twelve standard deviations and a chi-square tail away;
    the range ends where rho makes the integrand negligible.  NaN where that takes too long.
    """
    sd = math.sqrt(2.0 * float(lam @ lam))
    reach = abs(value - float(lam.sum())) + 12.0 * sd + 40.0 * float(np.abs(lam).max())
    step = math.pi / reach
    u = (np.arange(_POINTS) + 0.5) * step
    total, start = 0.0, 0
    for start in range(0, _POINTS, 256):
        part = u[start : start + 256]
        scaled = 2.0 * np.outer(part, lam)
        log_rho = 0.25 * np.log1p(scaled**2).sum(axis=1)
        angle = 0.5 * np.arctan(scaled).sum(axis=1) - part * value
        total += float((np.sin(angle) * np.exp(-log_rho) / part).sum()) * step
        if math.exp(-log_rho[-1]) < 1e-12:
            return 0.5 + total / math.pi
    return math.nan


def cumulants(lam: np.ndarray) -> Callable[[float], tuple[float, float, float]]:
    """s -> K, K', K'' of sum_j lambda_j chi2_1, K(s) = -1/2 sum log(1 - 2 s lambda)."""

    def at(s: float) -> tuple[float, float, float]:
        shrink = 1.0 - 2.0 * s * lam
        if not (shrink > 0.0).all():
            return math.nan, math.nan, math.nan
        scaled = lam / shrink
        return (
            -0.5 * float(np.log(shrink).sum()),
            float(scaled.sum()),
            2.0 * float(scaled @ scaled),
        )

    return at


def saddlepoint(value: float, at: Callable[[float], tuple[float, float, float]]) -> float:
    """Lugannani-Rice upper tail of the variable with cumulants `at` (Kuonen 1999)."""
    _, mean, variance = at(0.0)
    sd = math.sqrt(variance)
    h = 1e-4 / sd
    skew = (at(h)[2] - at(-h)[2]) / (2.0 * h * sd**3)
    z = (value - mean) / sd
    if abs(z) < 1e-3:
        return 0.5 - (skew / 6.0 + z) / math.sqrt(2.0 * math.pi)
    s, k, curve = _solve(value, at)
    if not math.isfinite(s):  # the root is beyond the end of the support
        return 0.0 if z > 0.0 else 1.0
    w = math.copysign(math.sqrt(max(2.0 * (s * value - k), 0.0)), s)
    v = s * math.sqrt(curve)
    return float(norm.sf(w + math.log(v / w) / w))


def _solve(
    value: float, at: Callable[[float], tuple[float, float, float]]
) -> tuple[float, float, float]:
    """(s, K(s), K''(s)) with K'(s) = value: Newton kept on the near side of every pole."""
    s = 0.0
    k, slope, curve = at(s)
    for _ in range(200):
        step = (value - slope) / curve
        if abs(step) * math.sqrt(curve) < 1e-9:
            return s, k, curve
        for _ in range(60):
            new_k, new_slope, new_curve = at(s + step)
            onward = (new_slope - slope) * step > 0.0  # K' grows with s up to the pole
            if math.isfinite(new_k) and new_curve > 0.0 and onward:
                break
            step *= 0.5
        else:
            return (s, k, curve) if abs(value - slope) < 1e-6 * abs(value) else (math.nan,) * 3
        s, k, slope, curve = s + step, new_k, new_slope, new_curve
    return math.nan, math.nan, math.nan
