"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import norm

_STEP, _REACH = 0.04, 12.0  # trapezoid in x, see upper_tail; |s| grows like exp(x)


def upper_tail(value: float, weights: np.ndarray) -> float:
    """P(sum_j lambda_j chi2_1 > value), to about ten digits however small.

    With cumulant function K the tail is (2 pi i)^-1 int exp(K(s) - s value) / s ds along any path
    that crosses the real axis between 0 and the first pole.  It is taken through the saddlepoint
    K'(s) = value and bent, as a hyperbola, to the side where exp(-s value) vanishes, so that a
    trapezoid sum converges exponentially and loses nothing in the far tail.  (Imhof 1961 and
    Davies 1980 integrate along the imaginary axis, where only the absolute error is small.)

    Parameters
    ----------
    value : float
    weights : ndarray, shape (m,)
        lambda, of either sign.

    Examples
    --------
    >>> round(upper_tail(3.841458820694124, np.array([1.0])), 10)
    0.05
    >>> from scipy.stats import chi2
    >>> bool(abs(upper_tail(400.0, np.full(5, 2.0)) / chi2.sf(200.0, 5) - 1.0) < 1e-8)
    True
    """
    lam = np.asarray(weights, dtype=float)
    size = np.abs(lam).max(initial=0.0)
    if not size > 0.0:
        return math.nan if size != 0.0 or value == 0.0 else float(value < 0.0)
    lam = lam[np.abs(lam) > 1e-12 * size] / size
    value = value / size
    if value >= 0.0 and (lam < 0.0).all():
        return 0.0
    if value <= 0.0 and (lam > 0.0).all():
        return 1.0
    at = cumulants(lam)
    saddle, _, curve = _solve(value, at)
    if not math.isfinite(saddle):
        return 0.0 if value > lam.sum() else 1.0
    width = 1.0 / math.sqrt(curve)
    cross = saddle
    if abs(saddle) < 0.5 * width:  # keep off the pole at zero, on the side of the saddlepoint
        cross = math.copysign(0.5 * width, saddle)
        while not math.isfinite(at(cross)[0]):
            cross *= 0.5
    x = np.arange(0.0, _REACH, _STEP)
    bend = 0.5 * np.sign(value)
    s = cross + width * (1j * np.sinh(x) + bend * (np.cosh(x) - 1.0))
    slope = width * (1j * np.cosh(x) + bend * np.sinh(x))
    k = -0.5 * np.log(1.0 - 2.0 * s[:, None] * lam).sum(axis=1)
    integrand = np.imag(np.exp(k - s * value) / s * slope)
    integrand[0] *= 0.5
    tail = float(integrand.sum()) * _STEP / math.pi
    return min(max(tail if cross > 0.0 else 1.0 + tail, 0.0), 1.0)


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
