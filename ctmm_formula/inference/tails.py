"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1, compiled.

The form y'A y with y ~ N(0, M) is known by its cumulant function K, in the shape that it has when A
and M are sums over donors but for levels of random effects and fixed effects (see :class:`Law`);
plain weights lambda are the case without them.  P(form > value) is

    (2 pi i)^-1 int exp(K(s) - s value) / s ds

along any path that crosses the real axis between 0 and the first pole of K.  The path goes through
the saddlepoint K'(s) = value and is bent, as a hyperbola, to where K turns least, so that the
integrand is almost a normal density and ten points of a trapezoid sum give eight digits and more.
The pole at 0 leaves a known trace in such a sum, which is taken out.  Sizes are kept as logarithms:
nothing is lost however small the tail.  (Imhof 1961 and Davies 1980 integrate along the imaginary
axis, where only the absolute error is small.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from ..engine.options import EXACT_INNER, kept_exact

# trapezoid in x, along the path in widths
_STEP, _LAST_STEP, _REACH = 0.6, 0.005, 60.0
_AGREE = 1e-5  # of one sum with that of twice the step, whose error is about the root of its own
_NOTHING = 1e-2  # of the error, where the integrand has ended
_ASIDE, _BESIDE = 1e-6, 0.25  # steps into the complex plane for derivatives of K, in widths
_KNOWN = 0.01  # of the law's variance, below which a variance is not known
_CLOSE, _LIKE = 0.1, 0.2  # to the saddlepoint, in widths and of the target
_FAR = 1e30  # the form is never beyond a value whose saddlepoint is
_APART = 0.6  # of the path from the pole of the integrand at 0, in widths
_LEAST_BEND = 0.2  # to where exp(-s value) vanishes
_SPREAD, _WIDEST = 0.3, 0.6  # how fast the path widens, of the fourth by the second cumulant


class Law(NamedTuple):
    """A quadratic form by its cumulant function.

    Donors are eliminated from one system of equations, then levels of random effects, block by
    block, then p fixed effects:

        K(s) = -1/2 [sum_j log(1 - 2 s l_j) + sum_b log det(I - mu_b T_b) + log det X],
        T_b(s) = fixed_b + 2 s linear_b + 4 s^2 sum_j c_j c_j' / (1 - 2 s l_j),
        X(s) = sum_b XX + XL (I - mu_b LL)^-1 mu_b LX,   T_b = [LL, LX; XL, XX],
        mu_b = [2 s level, -gain; -gain, gain],

    less what this is at s = 0.  The first 2 q of the W = 2 (q + p) columns of T_b are the block's
    levels, two by two halves, the others those of the fixed effects.

    Attributes
    ----------
    values : ndarray, shape (J,); products : ndarray, shape (J, k (k + 1) / 2)
        l_j and the lower triangle of c_j c_j', in the k columns that the cell touches.
    start : int ndarray, shape (cells + 1,)
        First j of every cell: donors that touch the same levels.
    columns : int ndarray, shape (cells, k); block : int ndarray, shape (cells,)
        Which columns of which block, blocks in order.
    fixed, linear : ndarray, shape (blocks, W, W)
    gain, level : ndarray, shape (blocks, q)
        Variance of every level, and its weight in the form; 0 where there is none.
    """

    values: np.ndarray
    products: np.ndarray
    start: np.ndarray
    columns: np.ndarray
    block: np.ndarray
    fixed: np.ndarray
    linear: np.ndarray
    gain: np.ndarray
    level: np.ndarray


def mixture(weights: np.ndarray) -> Law:
    """The law of sum_j weights_j chi2_1."""
    none = np.zeros((1, 0, 0))
    return Law(
        np.asarray(weights, dtype=float), np.zeros((len(weights), 0)),
        np.array([0, len(weights)]), np.zeros((1, 0), dtype=np.int64), np.zeros(1, dtype=np.int64),
        none, none, np.zeros((1, 0)), np.zeros((1, 0)),
    )  # fmt: skip


@njit(**EXACT_INNER)
def _size(z):
    return abs(z.real) + abs(z.imag)


@njit(**EXACT_INNER)
def _eliminate(A, B, n):
    """Solve the first n rows and columns of A for those of B, in place; the determinant's factors.

    Returns log|det| and the unit number det / |det|.
    """
    size, unit = 0.0, np.ones(1, dtype=A.dtype)[0]
    for c in range(n):
        best = c
        for r in range(c + 1, n):
            if _size(A[r, c]) > _size(A[best, c]):
                best = r
        if best != c:
            unit = -unit
            for k in range(c, n):
                A[c, k], A[best, k] = A[best, k], A[c, k]
            for k in range(B.shape[1]):
                B[c, k], B[best, k] = B[best, k], B[c, k]
        pivot = A[c, c]
        modulus = abs(pivot)
        size += math.log(modulus)
        unit *= pivot / modulus
        for r in range(c + 1, n):
            factor = A[r, c] / pivot
            for k in range(c + 1, n):
                A[r, k] -= factor * A[c, k]
            for k in range(B.shape[1]):
                B[r, k] -= factor * B[c, k]
    for c in range(n - 1, -1, -1):
        for k in range(B.shape[1]):
            total = B[c, k]
            for r in range(c + 1, n):
                total -= A[c, r] * B[r, k]
            B[c, k] = total / A[c, c]
    return size, unit


@njit(**EXACT_INNER)
def _fold(T, s, gain, level, X):
    """Take the levels of a block out of T (W, W) and add what is left to X; factors of det.

    Of T and X, which are symmetric, the lower triangles.
    """
    q, rest = len(gain), len(X)
    if q == 0:
        for a in range(rest):
            for b in range(a + 1):
                X[a, b] += T[a, b]
        return 0.0, s * 0.0 + 1.0
    A = np.empty((2 * q, 2 * q), dtype=T.dtype)
    B = np.empty((2 * q, rest), dtype=T.dtype)
    for r in range(q):
        twice, g = 2.0 * s * level[r], gain[r]
        for k in range(2 * q):
            up = T[max(r, k), min(r, k)]
            down = T[max(q + r, k), min(q + r, k)]
            A[r, k] = g * down - twice * up
            A[q + r, k] = g * (up - down)
        A[r, r] += 1.0
        A[q + r, q + r] += 1.0
        for k in range(rest):
            up, down = T[2 * q + k, r], T[2 * q + k, q + r]
            B[r, k] = twice * up - g * down
            B[q + r, k] = g * (down - up)
    size, unit = _eliminate(A, B, 2 * q)
    for a in range(rest):
        for b in range(a + 1):
            total = T[2 * q + a, 2 * q + b]
            for r in range(2 * q):
                total += T[2 * q + a, r] * B[r, b]
            X[a, b] += total
    return size, unit


@njit(**EXACT_INNER)
def _last(X):
    """Factors of det of the fixed effects' symmetric X, given below its diagonal."""
    rest = len(X)
    for a in range(rest):
        for b in range(a):
            X[b, a] = X[a, b]
    return _eliminate(X, np.empty((rest, 0), dtype=X.dtype), rest)


@njit(**EXACT_INNER)
def _start(law):
    """log|.| and the sign of the determinants at s = 0."""
    rest = law.fixed.shape[1] - 2 * law.gain.shape[1]
    X = np.zeros((rest, rest))
    size, unit = 0.0, 1.0
    for b in range(len(law.fixed)):
        more, turn = _fold(law.fixed[b], 0.0, law.gain[b], law.level[b], X)
        size += more
        unit *= turn
    more, turn = _last(X)
    return size + more, unit * turn


@njit(**EXACT_INNER)
def _add(T, columns, parts):
    """Add a lower triangle (k (k + 1) / 2,) in some columns to the lower triangle of T."""
    at = 0
    for a in range(len(columns)):
        row = columns[a]
        for c in range(a + 1):
            column = columns[c]
            T[max(row, column), min(row, column)] += parts[at]
            at += 1


@njit(**EXACT_INNER)
def _log_determinants(law, zero, s):
    """log|.| and the phase of det(I - 2 s A M) at complex s (n,), in parts.

    That of donors, which starts at 0 on the real axis where no pole of a donor lies between it and
    0; and in (-pi, pi] those of every block's levels and of the fixed effects, (blocks + 1, n),
    which change slowly.
    """
    n, W = len(s), law.fixed.shape[1]
    rest = W - 2 * law.gain.shape[1]
    size = np.full(n, -zero[0])
    slow = np.empty((len(law.fixed) + 1, n))
    X = np.zeros((n, rest, rest), dtype=np.complex128)
    T = np.empty((n, W, W), dtype=np.complex128)
    parts = np.empty(law.products.shape[1], dtype=np.complex128)
    cell = 0
    for b in range(len(law.fixed)):
        for i in range(n):
            for a in range(W):
                for c in range(a + 1):
                    T[i, a, c] = law.fixed[b, a, c] + 2.0 * s[i] * law.linear[b, a, c]
        while cell < len(law.block) and law.block[cell] == b:
            first, stop = law.start[cell], law.start[cell + 1]
            weight = np.empty((2 * n, stop - first))
            for i in range(n):
                for j in range(first, stop):
                    z = 4.0 * s[i] * s[i] / (1.0 - 2.0 * s[i] * law.values[j])
                    weight[i, j - first] = z.real
                    weight[n + i, j - first] = z.imag
            sums = np.dot(weight, law.products[first:stop])
            for i in range(n):
                for k in range(len(parts)):
                    parts[k] = complex(sums[i, k], sums[n + i, k])
                _add(T[i], law.columns[cell], parts)
            cell += 1
        for i in range(n):
            more, turn = _fold(T[i], s[i], law.gain[b], law.level[b], X[i])
            size[i] += more
            slow[b, i] = math.atan2(turn.imag, turn.real)
    phase = np.empty(n)
    for i in range(n):
        more, turn = _last(X[i])
        turn *= zero[1]
        size[i] += more
        slow[len(law.fixed), i] = math.atan2(turn.imag, turn.real)
        product, turns = complex(1.0, 0.0), 0
        for value in law.values:
            z = 1.0 - 2.0 * s[i] * value
            before = product.imag
            product *= z
            if before > 0.0 > product.imag and z.imag > 0.0:
                turns += 1
            elif before < 0.0 < product.imag and z.imag < 0.0:
                turns -= 1
            square = product.real * product.real + product.imag * product.imag
            if not 1e-200 < square < 1e200:
                size[i] += 0.5 * math.log(square)
                product /= math.sqrt(square)
        size[i] += math.log(abs(product))
        phase[i] = math.atan2(product.imag, product.real) + 2.0 * math.pi * turns
    return size, phase, slow


@njit(**EXACT_INNER)
def _series(A, B):
    """Power series (3, n, n) and (3, n, m): B becomes A^-1 B, and log det A less its constant.

    Returns the coefficients of s and s^2.
    """
    n, m = A.shape[1], B.shape[2]
    inverse, start, one = np.zeros((n, n)), np.empty((n, n)), np.zeros((n, n))
    for a in range(n):
        inverse[a, a] = 1.0
        for b in range(n):
            start[a, b] = A[0, a, b]
    _eliminate(start, inverse, n)
    first, second = 0.0, 0.0
    for a in range(n):
        for b in range(n):
            for c in range(n):
                one[a, b] += inverse[a, c] * A[1, c, b]
    for a in range(n):
        first += one[a, a]
        for b in range(n):
            second += inverse[a, b] * A[2, b, a] - 0.5 * one[a, b] * one[b, a]
    old = np.empty((n, m))
    for o in range(3):
        for a in range(n):
            for k in range(m):
                old[a, k] = B[o, a, k]
                B[o, a, k] = 0.0
        for i in range(1, o + 1):
            for a in range(n):
                for c in range(n):
                    for k in range(m):
                        old[a, k] -= A[i, a, c] * B[o - i, c, k]
        for a in range(n):
            for c in range(n):
                for k in range(m):
                    B[o, a, k] += inverse[a, c] * old[c, k]
    return first, second


@njit(**EXACT_INNER)
def _moments(law):
    """Mean and variance of the form: power series of the same eliminations."""
    blocks, q = law.gain.shape
    W = law.fixed.shape[1]
    rest = W - 2 * q
    mean = variance = 0.0
    for value in law.values:
        mean += value
        variance += 2.0 * value * value
    X = np.zeros((3, rest, rest))
    T = np.zeros((3, W, W))
    A, B = np.empty((3, 2 * q, 2 * q)), np.empty((3, 2 * q, rest))
    sums = np.empty(law.products.shape[1])
    cell = 0
    for b in range(blocks):
        for a in range(W):
            for c in range(a + 1):
                T[0, a, c], T[1, a, c] = law.fixed[b, a, c], 2.0 * law.linear[b, a, c]
                T[2, a, c] = 0.0
        while cell < len(law.block) and law.block[cell] == b:
            for k in range(len(sums)):
                sums[k] = 0.0
            for j in range(law.start[cell], law.start[cell + 1]):
                for k in range(len(sums)):
                    sums[k] += 4.0 * law.products[j, k]
            _add(T[2], law.columns[cell], sums)
            cell += 1
        for o in range(3):
            for a in range(W):
                for c in range(a):
                    T[o, c, a] = T[o, a, c]
        for o in range(3):
            for a in range(rest):
                for c in range(rest):
                    X[o, a, c] += T[o, 2 * q + a, 2 * q + c]
            for r in range(q):
                g, twice = law.gain[b, r], 2.0 * law.level[b, r] if o > 0 else 0.0
                for k in range(W):
                    up = g * T[o, q + r, k] - twice * T[o - 1, r, k]
                    down = g * (T[o, r, k] - T[o, q + r, k])
                    if k < 2 * q:
                        A[o, r, k], A[o, q + r, k] = up, down
                    else:
                        B[o, r, k - 2 * q], B[o, q + r, k - 2 * q] = -up, -down
        for r in range(2 * q):
            A[0, r, r] += 1.0
        first, second = _series(A, B)
        mean -= 0.5 * first
        variance -= second
        for o in range(3):
            for i in range(o + 1):
                for a in range(rest):
                    for r in range(2 * q):
                        for k in range(rest):
                            X[o, a, k] += T[i, 2 * q + a, r] * B[o - i, r, k]
    first, second = _series(X, np.empty((3, rest, 0)))
    return mean - 0.5 * first, variance - second


@njit(**EXACT_INNER)
def _negative(law, s, sign):
    """Negative eigenvalues of all that is left when the donors are out, at real s.

    At s = 0 of the side `sign`.  Levels count by their three equations.
    """
    q = law.gain.shape[1]
    W = law.fixed.shape[1]
    rest = W - 2 * q
    X = np.zeros((rest, rest))
    R = np.zeros((3 * q, 3 * q))
    place = np.empty(3 * q, dtype=np.int64)
    scale = np.empty(3 * q)
    count = 0
    cell = 0
    for b in range(len(law.fixed)):
        T = law.fixed[b] + 2.0 * s * law.linear[b]
        while cell < len(law.block) and law.block[cell] == b:
            for j in range(law.start[cell], law.start[cell + 1]):
                weight = 4.0 * s * s / (1.0 - 2.0 * s * law.values[j])
                _add(T, law.columns[cell], weight * law.products[j])
            cell += 1
        R[:] = 0.0
        for r in range(q):
            root, step = math.sqrt(law.gain[b, r]), 2.0 * s * law.level[b, r]
            place[r], place[q + r], place[2 * q + r] = r, r, q + r
            scale[r], scale[q + r], scale[2 * q + r] = root, math.sqrt(abs(step)), root
            R[r, r] = R[r, 2 * q + r] = R[2 * q + r, r] = -1.0
            R[q + r, q + r] = -1.0 if sign * law.level[b, r] < 0.0 else 1.0  # 1 / step, scaled
        for a in range(3 * q):
            for c in range(3 * q):
                row, column = max(place[a], place[c]), min(place[a], place[c])
                R[a, c] -= scale[a] * scale[c] * T[row, column]
        count += (np.linalg.eigvalsh(R) < 0.0).sum()
        _fold(T, s, law.gain[b], law.level[b], X)
    return count + (np.linalg.eigvalsh(X) > 0.0).sum()


@njit(**EXACT_INNER)
def _within(law, s):
    """Whether no eigenvalue of A M has its pole between 0 and real s, by Sylvester's law.

    Where a pole is, one of the donors has been before, but for those of levels with weights of the
    sign of s.
    """
    passed, sign = 0, math.copysign(1.0, s)
    for value in law.values:
        if 2.0 * s * value > 1.0:
            passed += 1
    alone = True
    for level in law.level.ravel():
        if sign * level > 0.0:
            alone = False
    if law.fixed.shape[1] == 0 or (passed == 0 and alone):
        return passed == 0
    return passed + _negative(law, s, sign) - _negative(law, 0.0, sign) == 0


class _Point(NamedTuple):
    """A real s, and K and its first three derivatives there, the last two to some per cent."""

    s: float
    K: float
    slope: float
    curve: float
    third: float


@njit(**EXACT_INNER)
def _point(law, zero, s, width):
    """A point at real s where `width` is about K''^-1/2; its slope is NaN beyond a pole."""
    near, far = _ASIDE * width, _BESIDE * width
    both = np.array([complex(s, near), complex(s, far)])
    size, phase, slow = _log_determinants(law, zero, both)
    for i in range(2):
        phase[i] += slow[:, i].sum()
        phase[i] -= 2.0 * math.pi * round(phase[i] / (2.0 * math.pi))
    if abs(phase[0]) < 1.0 and _within(law, s):
        K, slope = -0.5 * size[0], -0.5 * phase[0] / near
        turn = 0.5 * phase[1] + far * slope
        turn -= math.pi * round(turn / math.pi)
        return _Point(s, K, slope, (2.0 * K + size[1]) / far**2, 6.0 * turn / far**3)
    return _Point(s, math.nan, math.nan, math.nan, math.nan)


@njit(**EXACT_INNER)
def _donors_alone(law, side, target, low, high, unit):
    """The s of (low, high) where the donors' part of K' - mean is the target.

    Infinite where there is none below `_FAR` times `unit`.
    """
    end = high
    for value in law.values:
        if 2.0 * side * value * end > 1.0:
            end = 0.5 / (side * value)
    if not end < math.inf:
        end, total = unit, -1.0
        while total < target:
            if end > _FAR * unit:
                return math.inf
            end *= 4.0
            total = 0.0
            for value in law.values:
                total += side * value / (1.0 - 2.0 * side * value * end) - side * value
    s = 0.5 * (low + end)
    for _ in range(60):
        total, slope = -target, 0.0
        for value in law.values:
            z = 1.0 / (1.0 - 2.0 * side * value * s)
            total += side * value * (z - 1.0)
            slope += 2.0 * value * value * z * z
        if total < 0.0:
            low = s
        else:
            end = s
        before = s
        s -= total / slope
        if not low < s < end:
            s = 0.5 * (low + end)
        if abs(s - before) < 1e-3 * s:
            break
    return s


@njit(**EXACT_INNER)
def _crossing(law, zero, value, mean, variance):
    """The saddlepoint, or a point not far from the pole at 0; s is NaN where K' never is `value`.

    K' - mean is taken for a multiple of the donors' part of it; where that fails, as poles of
    donors may be none of the whole, for a s / (1 - b s), which is what it looks like on the way to
    a pole, through zero and the last two points, within the bounds that they set.
    """
    side = math.copysign(1.0, value - mean)
    target, least = abs(value - mean), _APART * math.sqrt(variance)
    if target < least:
        side, target = math.copysign(1.0, value), least
    low, high, bottom = 0.0, math.inf, 0.0
    before, x_before = 0.0, 0.0
    width = unit = 1.0 / math.sqrt(variance)
    ratio = 0.0
    for weight in law.values:
        ratio += 2.0 * weight * weight
    ratio = variance / ratio
    s = _donors_alone(law, side, target / ratio, low, high, unit)
    if law.fixed.shape[1] > 0 and not s < _FAR * unit:
        s = unit  # what donors by themselves never are the whole may be
    for count in range(200):
        if not s < _FAR * unit:
            break
        donors, curve = 0.0, 0.0
        for weight in law.values:
            z = side * weight / (1.0 - 2.0 * side * weight * s)
            donors += z - side * weight
            curve += 2.0 * ratio * z * z
            if 2.0 * side * weight * s >= 1.0:
                curve = math.inf
        if curve < math.inf:
            width = 1.0 / math.sqrt(curve)
        for _ in range(8):  # until the step is right for the derivatives
            step = min(width, s)
            at = _point(law, zero, side * s, step)
            width = 1.0 / math.sqrt(at.curve) if at.curve > 0.0 else 0.5 * step
            if not at.curve <= math.inf or 0.5 * step < min(width, s) < 2.0 * step:
                break
        x = side * (at.slope - mean)
        if not x > bottom:  # beyond a pole
            high = s
            s = 0.5 * (low + high)
            continue
        gap = abs(x - target)
        if gap * width < _CLOSE and gap < _LIKE * target:
            return at
        if x < target:
            low, bottom = s, x
        else:
            high = s
        if before == 0.0:
            a, b = variance, (1.0 - variance * s / x) / s
        else:
            b = (x / s - x_before / before) / (x - x_before)
            a = x / s - b * x
        before, x_before = s, x
        s = target / (a + b * target)
        if count < 3 and donors > 0.0:
            ratio = x / donors
            again = _donors_alone(law, side, target / ratio, low, high, unit)
            s = again if again < _FAR * unit else s
        if not low < s < high:
            s = 0.5 * (low + high) if math.isfinite(high) else 2.0 * low
    return _Point(math.nan, math.nan, math.nan, math.nan, math.nan)


class _Path(NamedTuple):
    """s(x) = cross + width / fast (i sinh(fast x) + bend (cosh(fast x) - 1)).

    `start` is K(cross) - cross value, `turn` the derivative of its phase at 0.
    """

    cross: float
    width: float
    fast: float
    bend: float
    start: float
    turn: float


@njit(**EXACT_INNER)
def _path(law, value, at):
    """The path through a crossing: how it widens and bends follows from the cumulants there."""
    width = 1.0 / math.sqrt(at.curve)
    second = fourth = 0.0
    for weight in law.values:
        t = 2.0 * weight * width / (1.0 - 2.0 * at.s * weight)
        second += t * t
        fourth += t**4
        if 2.0 * at.s * weight >= 1.0:
            fourth = math.inf  # beyond the pole of a donor by itself, which says nothing then
            break
    skew = at.third * width**3
    fast = max(fourth / second, 0.25 * skew * skew)
    fast = max(min(math.sqrt(_SPREAD * fast), _WIDEST), 1e-3)
    bend = skew / (3.0 * fast) * math.copysign(1.0, value)
    bend = math.copysign(min(max(bend, _LEAST_BEND), 1.0), value)
    return _Path(at.s, width, fast, bend, at.K - at.s * value, (at.slope - value) * width)


@njit(**EXACT_INNER)
def _integrand(law, zero, value, path, x):
    """The integrand at x (n,) of the path, less the size exp(start)."""
    n = len(x)
    s, slope = np.empty(n, dtype=np.complex128), np.empty(n, dtype=np.complex128)
    for i in range(n):
        sinh, cosh = math.sinh(path.fast * x[i]), math.cosh(path.fast * x[i])
        reach = path.width / path.fast
        s[i] = complex(path.cross + reach * path.bend * (cosh - 1.0), reach * sinh)
        slope[i] = complex(path.width * path.bend * sinh, path.width * cosh)
    size, phase, slow = _log_determinants(law, zero, s)
    first = 1 if x[0] == 0.0 else 0  # at 0 K is real
    # slow parts are known but for multiples of 2 pi: each is followed by itself,
    for part in slow:
        rate = 0.0
        for i in range(first, n):
            if i > first:
                guess = part[i - 1] + rate * (x[i] - x[i - 1])
                part[i] -= 2.0 * math.pi * round((part[i] - guess) / (2.0 * math.pi))
                rate = (part[i] - part[i - 1]) / (x[i] - x[i - 1])
            phase[i] += part[i]
    # and all of them start from the whole, which hardly turns at first
    whole = 0.0
    if n > first:
        whole = phase[first] + 2.0 * (path.turn * x[first] + s[first].imag * value)
        whole = 2.0 * math.pi * round(whole / (2.0 * math.pi))
    if first == 1:
        phase[0] = whole
    out = np.empty(n)
    for i in range(n):
        turn = -0.5 * (phase[i] - whole) - s[i].imag * value
        at = -0.5 * size[i] - s[i].real * value - path.start
        unit = complex(math.cos(turn), math.sin(turn))
        out[i] = math.exp(at) * (unit / s[i] * slope[i]).imag / math.pi
    return out


@njit(**EXACT_INNER)
def _end(law, value, path, nothing):
    """Where along the path the integrand has vanished; absolute values of donors will do."""
    most = -math.inf
    x = end = 0.0
    while x < _REACH:
        sinh, cosh = math.sinh(path.fast * x), math.cosh(path.fast * x)
        real = path.cross + path.width / path.fast * path.bend * (cosh - 1.0)
        imaginary = path.width / path.fast * sinh
        size = path.fast * x - real * value
        product = 1.0
        for weight in law.values:
            u, v = 1.0 - 2.0 * real * weight, 2.0 * imaginary * weight
            product *= u * u + v * v
            if not 1e-150 < product < 1e150:
                size -= 0.25 * math.log(product)
                product = 1.0
        size -= 0.25 * math.log(product)
        most = max(most, size)
        if size < most + nothing:
            break
        end = x
        x += 2.0 * _STEP
    return end + _STEP


@njit(**EXACT_INNER)
def _trace(path, step):
    """What the pole at 0 adds to a sum of this step, less the size exp(start).

    The pole lies at i times some distance in x; a sum of step h has too much of its residue, by
    1 / (exp(2 pi distance / h) - 1).
    """
    z = (path.cross / path.width * path.fast - path.bend) / math.hypot(1.0, path.bend)
    if abs(z) >= 1.0:
        return 0.0  # too far to be seen
    distance = (math.asin(z) + math.atan(path.bend)) / path.fast
    far = 2.0 * math.pi * abs(distance) / step
    if -path.start > 0.5 * far:
        return 0.0  # other errors of the sum are larger, and of the other sign
    return math.copysign(math.exp(-far - path.start) / -math.expm1(-far), path.cross)


@njit(**EXACT_INNER)
def _nodes(start, end, step):
    x = np.empty(max(math.ceil((end - start) / step), 1))
    for i in range(len(x)):
        x[i] = start + i * step
    return x


@njit(**EXACT_INNER)
def _sum(f, stride):
    total = 0.0
    for i in range(0, len(f), stride):
        total += f[i]
    return total


def tail(
    value: float, law: Law, more: float = 0.0, least: float = 0.0, agree: float = _AGREE
) -> tuple[float, float, float]:
    """log P(form > value) for a :class:`Law`, and the mean and variance of the form.

    `more` is what the variance of the form has beyond the law's: the law then is that of its shape,
    and a distance from the mean counts in standard deviations.  There is no tail where the law has
    no more variance than `least`, or the form next to none of the law's.  `agree` is about the root
    of the relative error.
    """
    return _tail(value, law, more, least, agree)


@kept_exact
def _tail(value, law, more, least, agree):
    mean, own = _moments(law)
    variance = own + more
    if not (own > least and variance > _KNOWN * own):
        return math.nan, mean, variance
    value = mean + (value - mean) * math.sqrt(own / variance)
    zero = _start(law)
    at = _crossing(law, zero, value, mean, own)
    if math.isnan(at.s):
        return (-math.inf if value > mean else 0.0), mean, variance
    path = _path(law, value, at)
    end = _end(law, value, path, math.log(_NOTHING * agree**2))
    step = _STEP
    f = _integrand(law, zero, value, path, _nodes(0.0, end, step))
    coarse = 2.0 * step * (_sum(f, 2) - 0.5 * f[0]) - _trace(path, 2.0 * step)
    sums = step * (_sum(f, 1) - 0.5 * f[0])
    total = sums - _trace(path, step)
    # the error falls with the square from one step to the next
    while abs(total - coarse) > agree * abs(total) and step > _LAST_STEP:
        coarse = total
        step *= 0.5
        f = _integrand(law, zero, value, path, _nodes(step, end, 2.0 * step))
        sums = 0.5 * sums + step * _sum(f, 1)
        total = sums - _trace(path, step)
    if at.s > 0.0:
        log = path.start + math.log(max(total, 0.0))
        return min(log, 0.0), mean, variance
    return math.log1p(max(math.exp(path.start) * min(total, 0.0), -1.0)), mean, variance
