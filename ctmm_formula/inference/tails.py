"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

# trapezoid in x, see upper_tail; |s| grows like exp(x)
_FIRST_STEP, _LAST_STEP, _REACH = 0.32, 0.02, 12.0
_DIGITS = 1e-12  # relative error at which the step is fine enough
_NOTHING = 1e-4  # of that, where the integrand has ended


def upper_tail(value: float, weights: np.ndarray) -> float:
    """P(sum_j lambda_j chi2_1 > value), to about ten digits however small it is.

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
    signed = [(lam[lam > 0.0], -2.0 * math.pi), (lam[lam < 0.0], 2.0 * math.pi)]

    def log_moment(start: float, s: np.ndarray) -> np.ndarray:
        del start
        parts = [_log_pairs(s[:, None], part, turn) for part, turn in signed]
        return -0.5 * (parts[0] + parts[1])

    pole = 0.5 / (lam.max() if value > lam.sum() else lam.min())
    return contour_tail(value, cumulants(lam), log_moment, lam, _DIGITS, pole)


def contour_tail(
    value: float,
    at: Callable[[float], tuple[float, float, float]],
    log_moment: Callable[[float, np.ndarray], np.ndarray],
    weights: np.ndarray,
    digits: float,
    pole: float = math.inf,
) -> float:
    """Upper tail of the variable with cumulant function K.

    It is (2 pi i)^-1 int exp(K(s) - s value) / s ds along any path that crosses the real axis
    between 0 and the first pole.  The path goes through the saddlepoint K'(s) = value and is bent,
    as a hyperbola, to the side where exp(-s value) vanishes, so that a trapezoid sum converges
    exponentially and loses nothing in the far tail.  (Imhof 1961 and Davies 1980 integrate along
    the imaginary axis, where only the absolute error is small.)

    Parameters
    ----------
    value : float
    at : callable
        s -> K, K', K'' on the real axis, NaN beyond a pole.
    log_moment : callable
        K at complex s (k,) along a path, given where it starts on the real axis.
    weights : ndarray
        Weights whose K comes close to this one; they say where the integral ends.
    digits : float
        Relative error at which the step is fine enough.
    pole : float
        Of K' on the side of `value`, if it is known, about; the saddlepoint is then found sooner.
    """
    mean = at(0.0)[1]
    saddle, _, curve = _solve(value, at, pole)
    if not math.isfinite(saddle):
        return 0.0 if value > mean else 1.0
    width = 1.0 / math.sqrt(curve)
    cross = saddle
    if abs(saddle) < 0.5 * width:  # keep off the pole at zero, on the side of the saddlepoint
        cross = math.copysign(0.5 * width, saddle)
        while not math.isfinite(at(cross)[0]):
            cross *= 0.5
    bend = 0.5 * np.sign(value)

    def path(x: np.ndarray) -> np.ndarray:
        return cross + width * (1j * np.sinh(x) + bend * (np.cosh(x) - 1.0))

    def integrand(x: np.ndarray) -> np.ndarray:
        s = path(x)
        slope = width * (1j * np.cosh(x) + bend * np.sinh(x))
        return np.imag(np.exp(log_moment(cross, s) - s * value) / s * slope)

    x = np.arange(0.0, _REACH, _FIRST_STEP)  # where does it end?  Absolute values will do
    s = path(x)
    square = np.square(1.0 - 2.0 * s.real[:, None] * weights)
    square += np.square(2.0 * s.imag[:, None] * weights)
    size = x - 0.25 * np.log(square).sum(axis=1) - s.real * value
    end = x[size > size.max() + math.log(_NOTHING * digits)].max() + _FIRST_STEP
    tail = _trapezoid(integrand, end, digits) / math.pi
    return min(max(tail if cross > 0.0 else 1.0 + tail, 0.0), 1.0)


def _log_pairs(s: np.ndarray, lam: np.ndarray, turn: float) -> np.ndarray:
    """Sum of log(1 - 2 s lambda) over weights of one sign, s (., 1) in the upper half-plane.

    A pair goes through one logarithm: both arguments lie on the same side of the real axis, so
    that a sum of the wrong sign is a whole turn off.
    """
    even = np.append(lam, 0.0) if len(lam) % 2 else lam
    first, second = even[0::2], even[1::2]
    log = np.log(1.0 + s * (-2.0 * (first + second)) + s * s * (4.0 * first * second))
    wrong = (log.imag * turn < 0.0).sum(axis=1)
    return log.sum(axis=1) + 1j * turn * wrong


def _trapezoid(integrand: Callable[[np.ndarray], np.ndarray], end: float, digits: float) -> float:
    """Integral from 0 to `end`, where it has vanished; the step halved until it matters no more."""
    step = _FIRST_STEP
    f = integrand(np.arange(0.0, end, step))
    total = step * float(f.sum() - 0.5 * f[0])
    while True:
        step *= 0.5
        finer = 0.5 * total + step * float(integrand(np.arange(step, end, 2.0 * step)).sum())
        # the error falls with the square from one step to the next
        if abs(finer - total) <= math.sqrt(digits) * abs(finer) or step < _LAST_STEP:
            return finer
        total = finer


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


def _solve(
    value: float, at: Callable[[float], tuple[float, float, float]], pole: float = math.inf
) -> tuple[float, float, float]:
    """(s, K(s), K''(s)) with K'(s) = value: Newton kept on the near side of every pole.

    A pole that is known enters as K'(s) ~ c + a / (pole - s), which is what K' looks like there.
    """
    s = 0.0
    k, slope, curve = at(s)
    for _ in range(200):
        step = (value - slope) / curve
        if abs(step) * math.sqrt(curve) < 1e-9:
            return s, k, curve
        ahead = pole - s
        if math.isfinite(pole) and ahead * step > 0.0:
            step = step * ahead / (ahead + step)
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
