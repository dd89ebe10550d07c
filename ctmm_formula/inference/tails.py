"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1, compiled.

The form y'A y with y ~ N(0, M) is known by its cumulant function, in the shape that it has when A
and M are sums over groups of rows but for a low-rank part (see :class:`Law`); plain weights lambda
are the case without one.  P(form > value) is

    (2 pi i)^-1 int exp(K(s) - s value) / s ds

along any path that crosses the real axis between 0 and the first pole of K.  The path goes through
the saddlepoint K'(s) = value and is bent, as a hyperbola, to the side where exp(-s value) vanishes,
so that a trapezoid sum converges exponentially and loses nothing in the far tail.  (Imhof 1961 and
Davies 1980 integrate along the imaginary axis, where only the absolute error is small.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from ..engine.options import EXACT, EXACT_INNER

# trapezoid in x along the path; |s| grows like exp(x)
_FIRST_STEP, _LAST_STEP, _REACH = 0.32, 0.02, 12.0
_DIGITS = 1e-10  # relative error at which the step is fine enough
_NOTHING = 1e-4  # of that, where the integrand has ended
_NEAR = 1.5  # to a group's pole, in widths
_ASIDE = 1e-3  # step into the complex plane for K', in widths
_KNOWN = 0.01  # of the law's variance, below which a variance is not known
_CLOSE = 0.05  # to the saddlepoint, in widths
_APART = 0.5  # of the path from the pole of the integrand at 0, in widths


class Law(NamedTuple):
    """A quadratic form by its cumulant function, with a part of low rank w.

        K(s) = -1/2 [sum_j log(1 - 2 s l_j) + log det(I - 2 s G(s) core)]
        G(s) = fixed + 2 s sum_j c_j c_j' / (1 - 2 s l_j)

    Attributes
    ----------
    values : ndarray, shape (g, r)
        l_j, in groups.
    loads : ndarray, shape (g, r, k)
        c_j in the columns that a group touches; columns : int ndarray, shape (g, k), which.
    fixed, core : ndarray, shape (w, w), symmetric
    root : ndarray, shape (w, w'), signs : ndarray, shape (w',)
        core = root diag(signs) root', w' its rank.
    """

    values: np.ndarray
    loads: np.ndarray
    columns: np.ndarray
    fixed: np.ndarray
    core: np.ndarray
    root: np.ndarray
    signs: np.ndarray


@njit(**EXACT_INNER)
def _products(law):
    """c_j c_j' of every j, lower triangles, (g, r, k (k + 1) / 2)."""
    groups, r, k = law.loads.shape
    out = np.empty((groups, r, k * (k + 1) // 2))
    for g in range(groups):
        for j in range(r):
            at = 0
            for a in range(k):
                for b in range(a + 1):
                    out[g, j, at] = law.loads[g, j, a] * law.loads[g, j, b]
                    at += 1
    return out


@njit(**EXACT_INNER)
def _low_rank(law, products, s):
    """G(s) at complex s (n,), shape (2 n, w, w): real parts, then imaginary parts."""
    n, w, k = len(s), len(law.fixed), law.columns.shape[1]
    out = np.zeros((2 * n, w, w))
    if w == 0:
        return out
    out[:n] = law.fixed
    weight = np.empty((2 * n, law.values.shape[1]))
    for g in range(law.values.shape[0]):
        for i in range(n):
            for j in range(weight.shape[1]):
                z = 2.0 * s[i] / (1.0 - 2.0 * s[i] * law.values[g, j])
                weight[i, j] = z.real
                weight[n + i, j] = z.imag
        sums = np.dot(weight, products[g])
        for i in range(2 * n):
            at = 0
            for a in range(k):
                row = law.columns[g, a]
                for b in range(a + 1):
                    column = law.columns[g, b]
                    out[i, row, column] += sums[i, at]
                    if a != b:
                        out[i, column, row] += sums[i, at]
                    at += 1
    return out


@njit(**EXACT_INNER)
def _log_determinants(law, s, G, near_to):
    """log|.| and phase of det(I - 2 s Delta M) at complex s (n,), given G(s).

    Factors of groups with a pole between 0 and real `near_to` may be none of the whole: det R
    takes them back, and only the product with it has a phase that starts at zero and changes
    slowly along a path.  That phase is returned apart, in (-pi, pi].
    """
    n, w = len(s), len(law.fixed)
    size = np.zeros(n)
    phase = np.zeros(n)
    slow = np.zeros(n)
    R = np.empty((w, w), dtype=np.complex128)
    C = np.dot(G.reshape(-1, w), law.core).reshape(G.shape) if w > 0 else G
    for i in range(n):
        near = complex(1.0, 0.0)
        product = 1.0  # one logarithm for many factors
        for g in range(law.values.shape[0]):
            for j in range(law.values.shape[1]):
                value = law.values[g, j]
                z = 1.0 - 2.0 * s[i] * value
                square = z.real * z.real + z.imag * z.imag
                product *= square
                if not 1e-150 < product < 1e150:
                    size[i] += 0.5 * math.log(product)
                    product = 1.0
                if 2.0 * near_to * value > 1.0:
                    near *= z / math.sqrt(square)
                else:
                    phase[i] += math.atan2(z.imag, z.real)
        size[i] += 0.5 * math.log(product)
        if w > 0:
            for a in range(w):
                for b in range(w):
                    R[a, b] = -2.0 * s[i] * complex(C[i, a, b], C[n + i, a, b])
                R[a, a] += 1.0
            sign, logdet = np.linalg.slogdet(R)
            near *= sign
            size[i] += logdet.real
        slow[i] = math.atan2(near.imag, near.real)
    return size, phase, slow


@njit(**EXACT_INNER)
def _moments(law, products):
    """Mean and variance of the form: G(s) = fixed + 2 s second + ..."""
    w, k = len(law.fixed), law.columns.shape[1]
    mean = law.values.sum()
    variance = 2.0 * np.square(law.values).sum()
    first = np.zeros((w, w))
    for a in range(w):
        for b in range(w):
            for c in range(w):
                first[a, b] += law.fixed[a, c] * law.core[c, b]
        mean += first[a, a]
    for a in range(w):
        for b in range(w):
            variance += 2.0 * first[a, b] * first[b, a]
    for g in range(products.shape[0]):
        at = 0
        for a in range(k):
            for b in range(a + 1):
                weight = law.core[law.columns[g, a], law.columns[g, b]]
                weight *= 4.0 if a == b else 8.0
                total = 0.0
                for j in range(products.shape[1]):
                    total += products[g, j, at]
                variance += weight * total
                at += 1
    return mean, variance


@njit(**EXACT_INNER)
def _within(law, s, G):
    """Whether no eigenvalue of Delta M has its pole between 0 and real s, by Sylvester's law."""
    passed = 0
    for value in law.values.ravel():
        if 2.0 * s * value > 1.0:
            passed += 1
    if passed == 0 or len(law.fixed) == 0:
        return passed == 0
    whole = np.diag(law.signs / (2.0 * s)) - np.dot(np.dot(law.root.T, G), law.root)
    new = (np.linalg.eigvalsh(whole) < 0.0).sum() - (law.signs / s < 0.0).sum()
    return passed + (new if s > 0.0 else -new) == 0


@njit(**EXACT_INNER)
def _slope(law, products, s, value, width):
    """K'(s) at real s where it is about `value`; NaN beyond a pole."""
    aside = _ASIDE * min(width, 10.0 / max(abs(value), 1e-300))
    beside = np.array([complex(s, aside)])
    G = _low_rank(law, products, beside)
    _, phase, slow = _log_determinants(law, beside, G, 0.0)
    turn = phase[0] + slow[0]
    turn -= 2.0 * math.pi * round(turn / (2.0 * math.pi))
    if abs(turn) < 1.0 and _within(law, s, G[0]):
        return -0.5 * turn / aside
    return math.nan


@njit(**EXACT_INNER)
def _crossing(law, products, value, mean, variance):
    """Where the path crosses the real axis, and K'' there; NaN where K' never is `value`.

    That is about the saddlepoint, or half a width from the pole at 0.  K' - mean is taken for
    a s / (1 - b s), which is what it looks like on the way to a pole, through zero and the last
    two points, within the bounds that they are known to set.
    """
    side = math.copysign(1.0, value - mean)
    target = max(abs(value - mean), _APART * math.sqrt(variance))
    end = law.values.max() if side > 0.0 else -law.values.min()
    a, b = variance, max(2.0 * end, 0.0)
    s = target / (a + b * target)
    low, high, bottom = 0.0, math.inf, 0.0
    before, x_before = 0.0, 0.0
    for _ in range(200):
        x = _slope(law, products, side * s, value, (1.0 - b * s) / math.sqrt(a))
        x = side * (x - mean)
        if not x > bottom:  # beyond a pole
            high = s
            s = 0.5 * (low + high)
            continue
        if before == 0.0:
            b = (1.0 - a * s / x) / s
        else:
            b = (x / s - x_before / before) / (x - x_before)
            a = x / s - b * x
        curve = a / (1.0 - b * s) ** 2
        if abs(x - target) < _CLOSE * math.sqrt(curve):
            return side * s, curve
        if x < target:
            low, bottom = s, x
        else:
            high = s
        before, x_before = s, x
        s = target / (a + b * target)
        if not low < s < high:
            s = 0.5 * (low + high) if math.isfinite(high) else 2.0 * low
    return math.nan, math.nan


@njit(**EXACT_INNER)
def _integrand(law, products, value, cross, width, bend, x):
    """Imaginary part of the integrand at nodes x (n,) of the path."""
    s = cross + width * (1j * np.sinh(x) + bend * (np.cosh(x) - 1.0))
    slope = width * (1j * np.cosh(x) + bend * np.sinh(x))
    near_to = cross + math.copysign(_NEAR * width, cross) if len(law.fixed) > 0 else 0.0
    G = _low_rank(law, products, s)
    size, phase, slow = _log_determinants(law, s, G, near_to)
    out = np.empty(len(x))
    before = 0.0
    for i in range(len(x)):
        turn = slow[i] - before
        before += turn - 2.0 * math.pi * round(turn / (2.0 * math.pi))
        log = -0.5 * complex(size[i], phase[i] + before) - s[i] * value
        out[i] = (np.exp(log) / s[i] * slope[i]).imag
    return out


@njit(**EXACT_INNER)
def _end(law, value, cross, width, bend):
    """Where along the path the integrand has vanished; absolute values will do."""
    most = -math.inf
    end = 0.0
    x = 0.0
    while x < _REACH:
        real = cross + width * bend * (math.cosh(x) - 1.0)
        imaginary = width * math.sinh(x)
        size = x - real * value
        product = 1.0
        for weight in law.values.ravel():
            u, v = 1.0 - 2.0 * real * weight, 2.0 * imaginary * weight
            product *= u * u + v * v
            if not 1e-150 < product < 1e150:
                size -= 0.25 * math.log(product)
                product = 1.0
        size -= 0.25 * math.log(product)
        most = max(most, size)
        if size > most + math.log(_NOTHING * _DIGITS):
            end = x
        x += _FIRST_STEP
    return end + _FIRST_STEP


@njit(**EXACT)
def tail(value, law, more=0.0, least=0.0):
    """P(form > value) for a :class:`Law`, and the mean and variance of the form.

    `more` is what the variance of the form has beyond the law's: the law then is that of its shape,
    and a distance from the mean counts in standard deviations.  There is no tail where the law has
    no more variance than `least`, or the form next to none of the law's.
    """
    products = _products(law)
    mean, own = _moments(law, products)
    variance = own + more
    if not (own > least and variance > _KNOWN * own):
        return math.nan, mean, variance
    value = mean + (value - mean) * math.sqrt(own / variance)
    cross, curve = _crossing(law, products, value, mean, own)
    if math.isnan(cross):
        return (0.0 if value > mean else 1.0), mean, variance
    width = 1.0 / math.sqrt(curve)
    bend = 0.5 * np.sign(value)
    end = _end(law, value, cross, width, bend)
    # the integral from 0 to `end`; the step is halved until it matters no more
    step = _FIRST_STEP
    f = _integrand(law, products, value, cross, width, bend, np.arange(0.0, end, step))
    total = step * (f.sum() - 0.5 * f[0])
    while True:
        step *= 0.5
        x = np.arange(step, end, 2.0 * step)
        f = _integrand(law, products, value, cross, width, bend, x)
        finer = 0.5 * total + step * f.sum()
        # the error falls with the square from one step to the next
        done = abs(finer - total) <= math.sqrt(_DIGITS) * abs(finer) or step < _LAST_STEP
        total = finer
        if done:
            break
    p = total / math.pi if cross > 0.0 else 1.0 + total / math.pi
    return min(max(p, 0.0), 1.0), mean, variance
