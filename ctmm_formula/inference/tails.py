"""Upper tails of quadratic forms in normal variables, sum_j lambda_j chi2_1, compiled.

The form y'A y with y ~ N(0, M) is known by its cumulant function K, in the shape that it has when A
and M are sums over donors but for levels of random effects and fixed effects (see :class:`Law`);
plain weights lambda are the case without them.  P(form > value) is

    (2 pi i)^-1 int exp(K(s) - s value) / s ds

along any path that crosses the real axis between 0 and the first pole of K.  The path goes through
the saddlepoint K'(s) = value and is bent, as a hyperbola, to where K turns least, so that the
integrand is almost a normal density: eight points of a trapezoid sum give six digits and more as
a rule (two and a half where eigenvalues are few), sixteen twice as many.  How far sums at twice
and three times the step are from it tells its error.
The pole at 0 leaves a known trace in such a sum, which is taken out.  Sizes are kept as logarithms:
nothing is lost however small the tail.  (Imhof 1961 and Davies 1980 integrate along the imaginary
axis, where only the absolute error is small.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.kernels import empty, zeros
from ..engine.lanes import POINTS, all_positive, larger, load_of, root, signed, spread_of, store
from ..engine.options import called_exact, inlined, kept_exact

load, spread = load_of(POINTS), spread_of(POINTS)

# trapezoid in x, along the path in widths: of a normal density eight points leave 1e-7, and sums
# at twice and three times the step are off by errors of which one is that power of the other
_STEP, _NORMAL = 0.72, 4.0 / 9.0
_MOST = 32, 96  # nodes from a guess and from a saddlepoint, before steps are halved
_LAST_STEP = 0.2, 0.01  # from a guess and from a saddlepoint no step is halved that is less
AGREE = 1e-5  # of one sum with that of twice the step, whose error is about the root of its own
_ASIDE, _BESIDE = 1e-6, 0.25  # steps into the complex plane for derivatives of K, in widths
_WIDER = 10.0  # next step for derivatives, where one was lost in rounding
_KNOWN = 0.01  # of the law's variance, below which a variance is not known
_CLOSE, _LIKE = 0.1, 0.2  # to the saddlepoint, in widths and of the target
_ASTRAY = 1.0  # slope of a guess from the target, in widths, from where it is none
_ROUGH = 2e-2  # root of the relative error where four digits will do
_HOPELESS = 0.02  # two sums apart, where a better saddlepoint is worth its while
_PIVOT = 0.64  # of one row, in units of the largest off the diagonal
_FAR = 1e9  # the form is never beyond a value whose saddlepoint is
_ABREAST, _NEAR = 4, 128  # products at a time, and of how many j one after the other
_ROWS = 32  # of levels at a time
_MIDDLE = POINTS // 2 - 1  # of points around one
_TOGETHER, _SMALL = 8, 1e-50  # factors between two looks at their size, and what then is small
_APART = 0.6  # of the path from the pole of the integrand at 0, in widths
_LEAST_BEND = 0.2  # to where exp(-s value) vanishes
_SPREAD, _WIDEST = 0.25, 0.38  # how fast the path widens, of the fourth by the second cumulant


class Zero(NamedTuple):
    """What the eliminations of :class:`Law` are at s = 0: all forms under one null share it.

    Attributes
    ----------
    size, sign : float
        log|.| and the sign of the determinants.
    whole : ndarray, shape (2 p, 2 p)
        Sum over blocks of the fixed effects' columns of `fixed`, the lower triangle.
    inverse : ndarray, shape (blocks, 2 q, 2 q)
        (I - mu_b LL)^-1.
    right : ndarray, shape (blocks, 2 q, 2 p)
        `inverse` mu_b LX, and zeros up to whole lanes.
    last : ndarray, shape (2 p, 2 p)
        X^-1, and zeros up to whole lanes.
    """

    size: float
    sign: float
    whole: np.ndarray
    inverse: np.ndarray
    right: np.ndarray
    last: np.ndarray


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
    values : ndarray, shape (J,)
        l_j, cells in order: donors that touch the same 2 d columns of levels.
    vectors : ndarray, shape (J, 2 d + 2 p)
        c_j, by the columns of the levels and of the fixed effects, the latter up to whole lanes.
    start : int ndarray, shape (cells + 1,)
        First j of every cell.
    columns : int ndarray, shape (cells, 2 d + 2 p); block : int ndarray, shape (cells,)
        Which columns of which block, blocks in order.
    fixed : ndarray, shape (blocks, W, W)
        Lower triangles.
    linear : ndarray, shape (blocks, W, 2 q); whole : ndarray, shape (2 p, 2 p)
        The columns of the levels, and the sum over blocks of those of the fixed effects; lower
        triangles.
    gain, level : ndarray, shape (blocks, q)
        Variance of every level, and its weight in the form; 0 where there is none.
    zero : Zero
    """

    values: np.ndarray
    vectors: np.ndarray
    start: np.ndarray
    columns: np.ndarray
    block: np.ndarray
    fixed: np.ndarray
    linear: np.ndarray
    whole: np.ndarray
    gain: np.ndarray
    level: np.ndarray
    zero: Zero


def mixture(weights: np.ndarray) -> Law:
    """The law of sum_j weights_j chi2_1."""
    none, flat = np.zeros((1, 0, 0)), np.zeros((0, 0))
    return Law(
        np.asarray(weights, dtype=float), np.zeros((len(weights), 0)),
        np.array([0, len(weights)]), np.zeros((1, 0), dtype=np.int64), np.zeros(1, dtype=np.int64),
        none, none, flat, np.zeros((1, 0)), np.zeros((1, 0)),
        Zero(0.0, 1.0, flat, none, none, flat),
    )  # fmt: skip


@inlined
def _subtract(real, imag, A, a, k, out, row, column):
    """out[row, column] -= (real + i imag) A[a, k]."""
    x, y = load(A, (0, a, k)), load(A, (1, a, k))
    store(out, (0, row, column), load(out, (0, row, column)) - (real * x - imag * y))
    store(out, (1, row, column), load(out, (1, row, column)) - (real * y + imag * x))


@called_exact
def _pivot(A, B, c, n, room):
    """The largest of rows c on of column c to row c, at each of n points.

    The first row of `room` is the sign of the exchange, or 1.  None where that of row c is no less
    than half of it at all points.
    """
    unit = spread(1.0)
    store(room, 0, unit)
    largest = spread(0.0)
    for a in range(c + 1, A.shape[1]):
        x, y = load(A, (0, a, c)), load(A, (1, a, c))
        largest = larger(largest, signed(x, unit) + signed(y, unit))
    x, y = load(A, (0, c, c)), load(A, (1, c, c))
    if all_positive(2.0 * (signed(x, unit) + signed(y, unit)) - largest):
        return
    for i in range(n):
        best, most = c, abs(A[0, c, c, i]) + abs(A[1, c, c, i])
        for a in range(c + 1, A.shape[1]):
            large = abs(A[0, a, c, i]) + abs(A[1, a, c, i])
            if large > most:
                best, most = a, large
        if best != c:
            room[0, i] = -1.0
            for part in range(2):
                for k in range(c, A.shape[1]):
                    kept = A[part, c, k, i]
                    A[part, c, k, i], A[part, best, k, i] = A[part, best, k, i], kept
                for k in range(B.shape[2]):
                    kept = B[part, c, k, i]
                    B[part, c, k, i], B[part, best, k, i] = B[part, best, k, i], kept


@called_exact
def _eliminate(A, B, size, phase, room):
    """Solve A (2, m, m, POINTS) for B (2, m, r, POINTS) in place; factors of the determinant.

    As many lanes are points as `size` has, real and imaginary parts come first.  log|det| is added
    to it, and the determinant's phase in (-pi, pi] is `phase`; `room` is (3, POINTS).
    """
    m, r, n = A.shape[1], B.shape[2], len(size)
    own, own_i, squares = spread(1.0), spread(0.0), spread(1.0)
    for c in range(m):
        _pivot(A, B, c, n, room)
        sign = load(room, 0)
        x, y = load(A, (0, c, c)), load(A, (1, c, c))
        modulus = x * x + y * y
        squares *= modulus
        if c % _TOGETHER == _TOGETHER - 1 or c == m - 1:
            store(room, 1, squares)
            squares = spread(1.0)
            for i in range(n):
                size[i] += 0.5 * math.log(room[1, i])
        scale = sign / root(modulus)
        own, own_i = scale * (own * x - own_i * y), scale * (own * y + own_i * x)
        x, y = x / modulus, (0.0 - y) / modulus
        store(A, (0, c, c), x)
        store(A, (1, c, c), y)
        for a in range(c + 1, m):
            u, v = load(A, (0, a, c)), load(A, (1, a, c))
            real, imag = u * x - v * y, u * y + v * x
            for k in range(c + 1, m):
                _subtract(real, imag, A, c, k, A, a, k)
            for k in range(r):
                _subtract(real, imag, B, c, k, B, a, k)
    for c in range(m - 1, -1, -1):
        x, y = load(A, (0, c, c)), load(A, (1, c, c))
        for k in range(r):
            for a in range(c + 1, m):
                _subtract(load(A, (0, c, a)), load(A, (1, c, a)), B, a, k, B, c, k)
            u, v = load(B, (0, c, k)), load(B, (1, c, k))
            store(B, (0, c, k), u * x - v * y)
            store(B, (1, c, k), u * y + v * x)
    store(room, 1, own)
    store(room, 2, own_i)
    for i in range(n):
        phase[i] = math.atan2(room[2, i], room[1, i])


@called_exact
def _fold(T, s, gain, level, at, left, right, size, phase, A, B, room):
    """Take the levels of a block out; factors of det.

    T (2, W, 2 q, POINTS) are the columns of the levels, s (2, POINTS).  What is to be added to
    X is the product of rows of `left` and `right` (2, rows, 2 p, POINTS) from `at` on.  A
    (2, 2 q, 2 q, POINTS), B (2, 2 q, 2 p, POINTS) and `room` are room.
    """
    q, rest = len(gain), T.shape[1] - T.shape[2]
    for r in range(q):
        g = gain[r]
        step, step_i = 2.0 * level[r] * load(s, 0), 2.0 * level[r] * load(s, 1)
        for k in range(2 * q + rest):
            row, column = max(r, k), min(r, k)
            up, up_i = load(T, (0, row, column)), load(T, (1, row, column))
            row, column = max(q + r, k), min(q + r, k)
            low, low_i = load(T, (0, row, column)), load(T, (1, row, column))
            first = g * low - (step * up - step_i * up_i)
            first_i = g * low_i - (step * up_i + step_i * up)
            last, last_i = g * (up - low), g * (up_i - low_i)
            if k < 2 * q:
                store(A, (0, r, k), first + (1.0 if k == r else 0.0))
                store(A, (1, r, k), first_i)
                store(A, (0, q + r, k), last + (1.0 if k == q + r else 0.0))
                store(A, (1, q + r, k), last_i)
            else:
                store(B, (0, r, k - 2 * q), 0.0 - first)
                store(B, (1, r, k - 2 * q), 0.0 - first_i)
                store(B, (0, q + r, k - 2 * q), 0.0 - last)
                store(B, (1, q + r, k - 2 * q), 0.0 - last_i)
    _eliminate(A, B, size, phase, room)
    for r in range(2 * q):
        for part in range(2):
            for a in range(rest):
                store(left, (part, at + r, a), load(T, (part, 2 * q + a, r)))
                store(right, (part, at + r, a), load(B, (part, r, a)))


@called_exact
def _multiply(left, right, rows, X):
    """Add left' right of so many rows to the lower triangle of X (2, 2 p, 2 p, POINTS)."""
    for a in range(0, X.shape[1], 2):
        for b in range(0, a + 1, 2):
            u, u_i = load(X, (0, a, b)), load(X, (1, a, b))
            v, v_i = load(X, (0, a + 1, b)), load(X, (1, a + 1, b))
            w, w_i = load(X, (0, a, b + 1)), load(X, (1, a, b + 1))
            x, x_i = load(X, (0, a + 1, b + 1)), load(X, (1, a + 1, b + 1))
            for k in range(rows):
                c, c_i = load(left, (0, k, a)), load(left, (1, k, a))
                d, d_i = load(left, (0, k, a + 1)), load(left, (1, k, a + 1))
                e, e_i = load(right, (0, k, b)), load(right, (1, k, b))
                u, u_i = u + c * e - c_i * e_i, u_i + c * e_i + c_i * e
                v, v_i = v + d * e - d_i * e_i, v_i + d * e_i + d_i * e
                e, e_i = load(right, (0, k, b + 1)), load(right, (1, k, b + 1))
                w, w_i = w + c * e - c_i * e_i, w_i + c * e_i + c_i * e
                x, x_i = x + d * e - d_i * e_i, x_i + d * e_i + d_i * e
            store(X, (0, a, b), u)
            store(X, (1, a, b), u_i)
            store(X, (0, a + 1, b), v)
            store(X, (1, a + 1, b), v_i)
            store(X, (0, a, b + 1), w)
            store(X, (1, a, b + 1), w_i)
            store(X, (0, a + 1, b + 1), x)
            store(X, (1, a + 1, b + 1), x_i)


@called_exact
def _weights(law, s):
    """4 s^2 / (1 - 2 s l_j) at the points of s (2, POINTS), (J, 2, POINTS)."""
    out = empty((len(law.values), 2, POINTS))
    x, y = load(s, 0), load(s, 1)
    up, up_i = 4.0 * (x * x - y * y), 8.0 * x * y
    for j in range(len(law.values)):
        twice = -2.0 * law.values[j]
        real, imag = 1.0 + twice * x, twice * y
        square = 1.0 / (real * real + imag * imag)
        store(out, (j, 0), square * (up * real + up_i * imag))
        store(out, (j, 1), square * (up_i * real - up * imag))
    return out


@called_exact
def _sums(law, start, stop, first, last, weights, out):
    """Add c_j c_j' by their weights, j from `start` to `stop`: columns from `first` to `last`.

    The lower triangle by columns, (entries, 2, POINTS).
    """
    k = law.columns.shape[1]
    for begin in range(start, stop, _NEAR):
        end = min(begin + _NEAR, stop)
        at = 0
        for b in range(first, last):
            a = b
            while a + _ABREAST <= k:
                u, u_i = load(out, (at, 0)), load(out, (at, 1))
                v, v_i = load(out, (at + 1, 0)), load(out, (at + 1, 1))
                w, w_i = load(out, (at + 2, 0)), load(out, (at + 2, 1))
                x, x_i = load(out, (at + 3, 0)), load(out, (at + 3, 1))
                for j in range(begin, end):
                    c = law.vectors[j, b]
                    real, imag = c * load(weights, (j, 0)), c * load(weights, (j, 1))
                    c = law.vectors[j, a]
                    u, u_i = u + c * real, u_i + c * imag
                    c = law.vectors[j, a + 1]
                    v, v_i = v + c * real, v_i + c * imag
                    c = law.vectors[j, a + 2]
                    w, w_i = w + c * real, w_i + c * imag
                    c = law.vectors[j, a + 3]
                    x, x_i = x + c * real, x_i + c * imag
                store(out, (at, 0), u)
                store(out, (at, 1), u_i)
                store(out, (at + 1, 0), v)
                store(out, (at + 1, 1), v_i)
                store(out, (at + 2, 0), w)
                store(out, (at + 2, 1), w_i)
                store(out, (at + 3, 0), x)
                store(out, (at + 3, 1), x_i)
                at += _ABREAST
                a += _ABREAST
            while a < k:
                u, u_i = load(out, (at, 0)), load(out, (at, 1))
                for j in range(begin, end):
                    c = law.vectors[j, a] * law.vectors[j, b]
                    u += c * load(weights, (j, 0))
                    u_i += c * load(weights, (j, 1))
                store(out, (at, 0), u)
                store(out, (at, 1), u_i)
                at += 1
                a += 1


@inlined
def _add(sums, at, T, row, column):
    """T[row, column] += sums[at]."""
    store(T, (0, row, column), load(T, (0, row, column)) + load(sums, (at, 0)))
    store(T, (1, row, column), load(T, (1, row, column)) + load(sums, (at, 1)))


@called_exact
def _block(law, b, cell, s, weights, sums, T):
    """Columns of levels of T_b(s) to T (2, W, 2 q, POINTS), the lower triangle.

    `cell` is the block's first, and returned is the one after it; `sums` is room.
    """
    W, levels = T.shape[1], T.shape[2]
    k = law.columns.shape[1]
    own = k - W + levels
    for a in range(W):
        for c in range(min(a + 1, levels)):
            twice = 2.0 * law.linear[b, a, c]
            store(T, (0, a, c), law.fixed[b, a, c] + twice * load(s, 0))
            store(T, (1, a, c), twice * load(s, 1))
    while cell < len(law.block) and law.block[cell] == b:
        for at in range(own * k - own * (own - 1) // 2):
            store(sums, (at, 0), spread(0.0))
            store(sums, (at, 1), spread(0.0))
        _sums(law, law.start[cell], law.start[cell + 1], 0, own, weights, sums)
        at = 0
        for c in range(own):
            for a in range(c, k):
                row, column = law.columns[cell, a], law.columns[cell, c]
                _add(sums, at, T, max(row, column), min(row, column))
                at += 1
        cell += 1
    return cell


@called_exact
def _of_donors(law, s, size, phase):
    """Factors of det of the donors: their log|.| is added to `size`, the phase starts at 0.

    As many lanes of s (2, POINTS) are points as `size` has.
    """
    z, turns = empty((2, POINTS)), empty(POINTS)
    real, imag, count = spread(1.0), spread(0.0), spread(0.0)
    x, y = load(s, 0), load(s, 1)
    for j in range(len(law.values)):
        twice = -2.0 * law.values[j]
        up, right = 1.0 + twice * x, twice * y
        # across the negative axis, half a sheet on: with it where the factor turns that way
        before = signed(spread(1.0), imag)
        real, imag = real * up - imag * right, real * right + imag * up
        after, way = signed(spread(1.0), imag), signed(spread(1.0), right)
        count += (before - after) * (1.0 + way * before)
        if j % _TOGETHER == _TOGETHER - 1:
            squares = real * real + imag * imag
            if all_positive(squares - _SMALL) and all_positive(1.0 / _SMALL - squares):
                continue
            store(z, 0, real)
            store(z, 1, imag)
            for i in range(len(size)):
                square = z[0, i] * z[0, i] + z[1, i] * z[1, i]
                size[i] += 0.5 * math.log(square)
                square = 1.0 / math.sqrt(square)
                z[0, i], z[1, i] = z[0, i] * square, z[1, i] * square
            for i in range(len(size), POINTS):
                z[0, i], z[1, i] = z[0, len(size) - 1], z[1, len(size) - 1]
            real, imag = load(z, 0), load(z, 1)
    store(z, 0, real)
    store(z, 1, imag)
    store(turns, 0, count)
    for i in range(len(size)):
        size[i] += 0.5 * math.log(z[0, i] * z[0, i] + z[1, i] * z[1, i])
        phase[i] = math.atan2(z[1, i], z[0, i]) + 0.5 * math.pi * turns[i]


@called_exact
def _log_determinants(law, s, passed):
    """log|.| and the phase of det(I - 2 s A M) at complex s (2, n), in parts.

    That of donors, which starts at 0 on the real axis where no pole of a donor lies between it and
    0; and in (-pi, pi] those of every block's levels and of the fixed effects, (blocks + 1, n),
    which change slowly.  :func:`_passed` is added to `passed` for each of the first of s that it
    has, which are real or almost so.
    """
    n = s.shape[1]
    size, phase = empty(n), empty(n)
    for i in range(n):
        size[i] = -law.zero.size
    slow = zeros((len(law.fixed) + 1, n))
    lanes, angles = empty((2, POINTS)), zeros((len(slow), POINTS))
    for first in range(0, n, POINTS):
        m = min(n - first, POINTS)
        for i in range(POINTS):
            at = first + min(i, m - 1)
            lanes[0, i], lanes[1, i] = s[0, at], s[1, at]
        _of_donors(law, lanes, size[first : first + m], phase[first : first + m])
        counted = passed if first == 0 else passed[:0]
        _add_slow(law, lanes, size[first : first + m], angles, counted)
        for b in range(len(slow)):
            for i in range(m):
                slow[b, first + i] = angles[b, i]
    if law.zero.sign < 0.0:
        for i in range(n):
            slow[-1, i] -= math.copysign(math.pi, slow[-1, i])
    return size, phase, slow


@called_exact
def _add_slow(law, s, size, slow, passed):
    """What is not of donors by themselves at s (2, POINTS), see :func:`_log_determinants`."""
    blocks, q = law.gain.shape
    W = law.fixed.shape[1]
    if W == 0:
        return
    X, T = zeros((2, W - 2 * q, W - 2 * q, POINTS)), empty((2, W, 2 * q, POINTS))
    k = law.columns.shape[1]
    weights, sums = _weights(law, s), zeros((k * (k + 1) // 2, 2, POINTS))
    most = min(2 * q * blocks, max(_ROWS, 2 * q))
    left, right = empty((2, most, W - 2 * q, POINTS)), empty((2, most, W - 2 * q, POINTS))
    A, B = empty((2, 2 * q, 2 * q, POINTS)), empty((2, 2 * q, W - 2 * q, POINTS))
    room = empty((3, POINTS))
    cell = rows = 0
    for b in range(blocks):
        if q > 0:
            cell = _block(law, b, cell, s, weights, sums, T)
            for i in range(len(passed)):
                passed[i] += _passed(T, i, s[0, i], law.gain[b], law.level[b])
            _fold(T, s, law.gain[b], law.level[b], rows, left, right, size, slow[b], A, B, room)
            rows += 2 * q
            if rows + 2 * q > most or b == blocks - 1:
                _multiply(left, right, rows, X)
                rows = 0
    at = 0
    for i in range(len(X[0]) * (len(X[0]) + 1) // 2):
        store(sums, (i, 0), spread(0.0))
        store(sums, (i, 1), spread(0.0))
    _sums(law, 0, len(law.values), k - len(X[0]), k, weights, sums)
    for c in range(len(X[0])):
        for a in range(c, len(X[0])):
            first, twice = law.zero.whole[a, c], 2.0 * law.whole[a, c]
            store(X, (0, a, c), first + twice * load(s, 0) + load(X, (0, a, c)))
            store(X, (1, a, c), twice * load(s, 1) + load(X, (1, a, c)))
            _add(sums, at, X, a, c)
            at += 1
    for a in range(len(X[0])):
        for c in range(a):
            store(X, (0, c, a), load(X, (0, a, c)))
            store(X, (1, c, a), load(X, (1, a, c)))
    for i in range(len(passed)):  # as many of one sign as of the other at s = 0
        passed[i] += _inertia(-X[0, :, :, i]) - X.shape[1] // 2
    _eliminate(X, empty((2, W - 2 * q, 0, POINTS)), size, slow[blocks], room)


@called_exact
def inverse_of(A):
    """The inverse of A (n, n), with log|det| and the determinant's sign; A is overwritten."""
    n = len(A)
    B = zeros((n, n))
    size, sign = 0.0, 1.0
    for c in range(n):
        B[c, c] = 1.0
    for c in range(n):
        best = c
        for r in range(c + 1, n):
            if abs(A[r, c]) > abs(A[best, c]):
                best = r
        if best != c:
            sign = -sign
            for k in range(n):
                A[c, k], A[best, k] = A[best, k], A[c, k]
                B[c, k], B[best, k] = B[best, k], B[c, k]
        pivot = A[c, c]
        size += math.log(abs(pivot))
        sign = math.copysign(sign, sign * pivot)
        for k in range(n):
            A[c, k] /= pivot
            B[c, k] /= pivot
        for r in range(n):
            if r != c:
                factor = A[r, c]
                for k in range(n):
                    A[r, k] -= factor * A[c, k]
                    B[r, k] -= factor * B[c, k]
    return B, size, sign


@called_exact
def zero_of(fixed, gain):
    """:class:`Zero` of laws with these."""
    (blocks, q), W = gain.shape, fixed.shape[1]
    rest = W - 2 * q
    wide = -(-rest // POINTS) * POINTS
    whole, X = zeros((rest, rest)), zeros((rest, rest))
    inverse, right = empty((blocks, 2 * q, 2 * q)), zeros((blocks, 2 * q, wide))
    A, B = empty((2 * q, 2 * q)), empty((2 * q, rest))
    size, sign = 0.0, 1.0
    for b in range(blocks):
        for a in range(rest):
            for c in range(a + 1):
                whole[a, c] += fixed[b, 2 * q + a, 2 * q + c]
        if q == 0:
            continue
        for r in range(q):
            for k in range(W):
                up, low = fixed[b, max(r, k), min(r, k)], fixed[b, max(q + r, k), min(q + r, k)]
                if k < 2 * q:
                    A[r, k] = gain[b, r] * low + (1.0 if k == r else 0.0)
                    A[q + r, k] = gain[b, r] * (up - low) + (1.0 if k == q + r else 0.0)
                else:
                    B[r, k - 2 * q] = -gain[b, r] * low
                    B[q + r, k - 2 * q] = gain[b, r] * (low - up)
        own, start, turn = inverse_of(A)
        size += start
        sign *= turn
        for r in range(2 * q):
            for c in range(2 * q):
                inverse[b, r, c] = own[r, c]
                for k in range(rest):
                    right[b, r, k] += own[r, c] * B[c, k]
        for a in range(rest):
            for r in range(2 * q):
                for k in range(rest):
                    X[a, k] += fixed[b, 2 * q + a, r] * right[b, r, k]
    for a in range(rest):
        for c in range(rest):
            X[a, c] += whole[max(a, c), min(a, c)]
    one, start, turn = inverse_of(X)
    last = zeros((rest, wide))
    for a in range(rest):
        for c in range(rest):
            last[a, c] = one[a, c]
    return Zero(size + start, sign * turn, whole, inverse, right, last)


@called_exact
def _rows_of(law, b, cell, U):
    """Rows of a block's levels in T_b, coefficients of 1, s and s^2, (3, 2 q, 2 q + 2 p ...).

    `cell` is the block's first, and returned is the one after it.
    """
    k, levels, W = law.columns.shape[1], U.shape[1], law.fixed.shape[1]
    own = k - W + levels
    for r in range(levels):
        for c in range(W):
            row, column = max(r, c), min(r, c)
            U[0, r, c], U[1, r, c] = law.fixed[b, row, column], 2.0 * law.linear[b, row, column]
            U[2, r, c] = 0.0
    while cell < len(law.block) and law.block[cell] == b:
        for a in range(own):
            row = law.columns[cell, a]
            for c in range(own):
                total = 0.0
                for j in range(law.start[cell], law.start[cell + 1]):
                    total += law.vectors[j, a] * law.vectors[j, c]
                U[2, row, law.columns[cell, c]] += 4.0 * total
            for at in range(0, W - levels, POINTS):
                total = spread(0.0)
                for j in range(law.start[cell], law.start[cell + 1]):
                    total += law.vectors[j, a] * load(law.vectors, (j, own + at))
                place = (2, row, levels + at)
                store(U, place, load(U, place) + 4.0 * total)
        cell += 1
    return cell


@called_exact
def _squares(law, own, X):
    """Sum over all j of 4 c_j c_j' by the columns of the fixed effects, from `own` on, to X[1]."""
    rest = X.shape[1]
    for begin in range(0, len(law.values), _NEAR):
        end = min(begin + _NEAR, len(law.values))
        for at in range(0, rest, POINTS):
            for a in range(at, rest, 2):  # the lower triangle
                u, v = load(X, (1, a, at)), load(X, (1, a + 1, at))
                for j in range(begin, end):
                    c = load(law.vectors, (j, own + at))
                    u += 4.0 * law.vectors[j, own + a] * c
                    v += 4.0 * law.vectors[j, own + a + 1] * c
                store(X, (1, a, at), u)
                store(X, (1, a + 1, at), v)
    for a in range(rest):
        for c in range(a):
            X[1, c, a] = X[1, a, c]


@called_exact
def _times(A, at, B, to, out):
    """out[to] -= A[at] B for the first columns of A[at] (n, n ...) and whole lanes of B (n, m)."""
    n = B.shape[0]
    for r in range(n):
        for k in range(0, B.shape[1], POINTS):
            total = load(out, (to, r, k))
            for c in range(n):
                total -= A[at, r, c] * load(B, (c, k))
            store(out, (to, r, k), total)


@called_exact
def _moments(law):
    """Mean and variance of the form: power series of the same eliminations."""
    blocks, q = law.gain.shape
    W = law.fixed.shape[1]
    levels, rest = 2 * q, W - 2 * q
    mean = variance = 0.0
    for value in law.values:
        mean += value
        variance += 2.0 * value * value
    if W == 0:
        return mean, variance
    own = law.columns.shape[1] - rest
    wide = law.zero.last.shape[1]
    X, right = zeros((2, rest, wide)), zeros((3, levels, wide))
    U, V = zeros((3, levels, levels + wide)), zeros((3, levels, levels + wide))
    A = zeros((3, levels, levels))
    for a in range(rest):
        for c in range(rest):
            X[0, a, c] = 2.0 * law.whole[max(a, c), min(a, c)]
    _squares(law, own, X)
    cell = 0
    for b in range(blocks if q > 0 else 0):
        cell = _rows_of(law, b, cell, U)
        for o in range(1, 3):
            for r in range(q):
                g, twice = law.gain[b, r], 2.0 * law.level[b, r]
                for k in range(levels + rest):
                    low = U[o, q + r, k]
                    V[o, r, k] = g * low - twice * U[o - 1, r, k]
                    V[o, q + r, k] = g * (U[o, r, k] - low)
        # A_o = inverse V_o by the levels' columns, right_o = -inverse (V_o + sum A_i right_o-i)
        for o in range(1, 3):
            for r in range(levels):
                for k in range(levels):
                    A[o, r, k] = 0.0
                    for c in range(levels):
                        A[o, r, k] += law.zero.inverse[b, r, c] * V[o, c, k]
        for r in range(levels):
            for at in range(0, wide, POINTS):
                store(right, (0, r, at), load(law.zero.right, (b, r, at)))
                one, two = spread(0.0), spread(0.0)
                for c in range(levels):
                    one -= law.zero.inverse[b, r, c] * load(V, (1, c, levels + at))
                    two -= law.zero.inverse[b, r, c] * load(V, (2, c, levels + at))
                store(right, (1, r, at), one)
                store(right, (2, r, at), two)
        _times(A, 1, right[0], 1, right)
        _times(A, 1, right[1], 2, right)
        _times(A, 2, right[0], 2, right)
        for r in range(levels):
            mean -= 0.5 * A[1, r, r]
            variance -= A[2, r, r]
            for c in range(levels):
                variance += 0.5 * A[1, r, c] * A[1, c, r]
        for a in range(rest):
            for at in range(0, wide, POINTS):
                one, two = load(X, (0, a, at)), load(X, (1, a, at))
                for r in range(levels):
                    u, v, w = U[0, r, levels + a], U[1, r, levels + a], U[2, r, levels + a]
                    x, y = load(right, (0, r, at)), load(right, (1, r, at))
                    one += u * y + v * x
                    two += u * load(right, (2, r, at)) + v * y + w * x
                store(X, (0, a, at), one)
                store(X, (1, a, at), two)
    last = empty((rest, wide))
    for a in range(rest):
        for at in range(0, wide, POINTS):
            total = spread(0.0)
            for c in range(rest):
                total += law.zero.last[a, c] * load(X, (0, c, at))
            store(last, (a, at), total)
    for a in range(rest):
        mean -= 0.5 * last[a, a]
        for c in range(rest):
            variance += 0.5 * last[a, c] * last[c, a] - law.zero.last[a, c] * X[1, c, a]
    return mean, variance


@called_exact
def _inertia(A):
    """Negative eigenvalues of symmetric A (n, n), which is overwritten.

    By elimination with pivots of one row and, where they are small, of two (Bunch and Parlett).
    """
    count, n = 0, len(A)
    left = np.empty(n, dtype=np.int64)
    for a in range(n):
        left[a] = a
    while n > 0:
        one, first, second = 0, 0, 0
        off = 0.0
        for a in range(n):
            if abs(A[left[a], left[a]]) > abs(A[left[one], left[one]]):
                one = a
            for b in range(a):
                if abs(A[left[a], left[b]]) > off:
                    off, first, second = abs(A[left[a], left[b]]), a, b
        if abs(A[left[one], left[one]]) >= _PIVOT * off:
            at = left[one]
            pivot = A[at, at]
            if pivot == 0.0:
                break
            count += pivot < 0.0
            n -= 1
            left[one] = left[n]
            for i in range(n):
                a = left[i]
                factor = A[a, at] / pivot
                for k in range(n):
                    A[a, left[k]] -= factor * A[at, left[k]]
        else:  # one eigenvalue of each sign
            up, down = left[first], left[second]
            upper, lower, both = A[up, up], A[down, down], A[up, down]
            det = upper * lower - both * both
            count += 1
            left[first] = left[n - 1]  # the one that lies further on goes first
            left[second] = left[n - 2]
            n -= 2
            for i in range(n):
                a = left[i]
                x = (lower * A[a, up] - both * A[a, down]) / det
                y = (upper * A[a, down] - both * A[a, up]) / det
                for k in range(n):
                    b = left[k]
                    A[a, b] -= x * A[up, b] + y * A[down, b]
    return count


@called_exact
def _passed(T, lane, s, gain, level):
    """Negative eigenvalues of a block's levels at real s, less those at s = 0 of its side.

    A level has three equations, which at 0 have one and, where its weight is of the other sign than
    s, another.  T (2, W, 2 q, POINTS) has s in one of its lanes.
    """
    q = len(gain)
    R = zeros((3 * q, 3 * q))
    place, scale = np.empty(3 * q, dtype=np.int64), empty(3 * q)
    before = q
    for r in range(q):
        root, step = math.sqrt(gain[r]), 2.0 * s * level[r]
        place[r], place[q + r], place[2 * q + r] = r, r, q + r
        scale[r], scale[q + r], scale[2 * q + r] = root, math.sqrt(abs(step)), root
        R[r, r] = R[r, 2 * q + r] = R[2 * q + r, r] = -1.0
        R[q + r, q + r] = -1.0 if step < 0.0 else 1.0  # 1 / step, scaled
        before += step < 0.0
    for a in range(3 * q):
        for c in range(3 * q):
            row, column = max(place[a], place[c]), min(place[a], place[c])
            R[a, c] -= scale[a] * scale[c] * T[0, row, column, lane]
    return _inertia(R) - before


@called_exact
def _of_donors_passed(law, s):
    """Poles of donors by themselves between 0 and real s (n,)."""
    passed = np.zeros(len(s), dtype=np.int64)
    for i in range(len(s)):
        for value in law.values:
            passed[i] += 2.0 * s[i] * value > 1.0
    return passed


@called_exact
def _until(law, s, variance, count):
    """:func:`_log_determinants`, and by Sylvester's law how many poles the first of s are beyond.

    That is, how many lie between 0 and the real part of each of so many.  None can where 2 s is
    below what the variance, twice the sum of squares of eigenvalues, allows to one.
    """
    passed = _of_donors_passed(law, s[0, :count])
    known = True
    for i in range(count):
        known = known and passed[i] == 0 and 2.0 * s[0, i] * s[0, i] * variance < 1.0
    size, phase, slow = _log_determinants(law, s, passed[:0] if known else passed)
    return size, phase, slow, passed


class _Point(NamedTuple):
    """A real s, and K and its first three derivatives there, the last two to some per cent."""

    s: float
    K: float
    slope: float
    curve: float
    third: float


@called_exact
def _around(law, places, width, variance, slopes):
    """A point in the middle of real `places`, where `width` is about K''^-1/2, and slopes at all.

    The next one is the same again.  Slopes are NaN beyond a pole.
    """
    near, far = _ASIDE * width, _BESIDE * width
    s = empty((2, POINTS))
    for i in range(POINTS):
        s[0, i], s[1, i] = places[i], near
    s[1, _MIDDLE + 1] = far
    size, phase, slow, passed = _until(law, s, variance, POINTS)
    for i in range(POINTS):
        for b in range(len(slow)):
            phase[i] += slow[b, i]
        phase[i] -= 2.0 * math.pi * round(phase[i] / (2.0 * math.pi))
        slopes[i] = math.nan
        if abs(phase[i]) < 1.0 and passed[i] == 0:
            slopes[i] = -0.5 * phase[i] / near
    at, slope = places[_MIDDLE], slopes[_MIDDLE]
    if math.isnan(slope):
        return _Point(at, math.nan, math.nan, math.nan, math.nan)
    K = -0.5 * size[_MIDDLE]
    turn = 0.5 * phase[_MIDDLE + 1] + far * slope
    turn -= math.pi * round(turn / math.pi)
    curve = (2.0 * K + size[_MIDDLE + 1]) / (far * far)
    return _Point(at, K, slope, curve, 6.0 * turn / (far * far * far))


@called_exact
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


@called_exact
def _aim(value, mean, variance):
    """On which side of 0 the saddlepoint lies, and |K' - mean| there: not too near that pole."""
    target, least = abs(value - mean), _APART * math.sqrt(variance)
    if target < least:
        return math.copysign(1.0, value), least
    return math.copysign(1.0, value - mean), target


@called_exact
def _ratio(law, variance):
    """The variance in that of the donors' part."""
    donors = 0.0
    for weight in law.values:
        donors += 2.0 * weight * weight
    return variance / donors


@called_exact
def _guess(law, side, target, mean, variance):
    """Where K' - mean has the target, were it a multiple of the donors' part of it.

    K and its true derivatives are not known there.  Where donors by themselves never have the
    target the whole may: the point then is none to start from, and its slope NaN.
    """
    ratio, unit = _ratio(law, variance), 1.0 / math.sqrt(variance)
    s, slope = _donors_alone(law, side, target / ratio, 0.0, math.inf, unit), mean + side * target
    if not s < _FAR * unit:
        s, slope = unit, math.nan
    curve = third = 0.0
    for weight in law.values:
        z = weight / (1.0 - 2.0 * side * weight * s)
        curve += 2.0 * ratio * z * z
        third += 8.0 * ratio * z * z * z
    return _Point(side * s, math.nan, slope, curve, third)


@called_exact
def _crossing(law, first, side, target, mean, variance):
    """The saddlepoint, or a point not far from the pole at 0; NaN where K' never has the target.

    K' - mean is taken for a s / (1 - b s), which is what it looks like on the way to a pole,
    through the last two points below the target or zero, within the bounds that points beside them
    set.
    """
    low, high, before = 0.0, math.inf, 0.0
    x_low = x_before = 0.0
    width = unit = 1.0 / math.sqrt(variance)
    places, slopes = empty(POINTS), empty(POINTS)
    s = side * first
    if not 0.0 < s < _FAR * unit:
        s = unit
    for _ in range(100):
        if not s < _FAR * unit:
            break
        step = min(width, s)
        down, up = s - low, high - s if math.isfinite(high) else 4.0 * s
        places[_MIDDLE] = places[_MIDDLE + 1] = side * s
        share = 0.5
        for i in range(_MIDDLE):  # ever nearer to it on both sides
            places[i], places[POINTS - 1 - i] = side * (s - share * down), side * (s + share * up)
            share *= 0.125
        at = _around(law, places, step, variance, slopes)
        for i in range(POINTS):
            x = side * (slopes[i] - mean)
            if i != _MIDDLE + 1 and not x_low < x < target:  # above it, or beyond a pole
                high = side * places[i]
                break
            if i != _MIDDLE + 1:
                before, x_before, low, x_low = low, x_low, side * places[i], x
        for _ in range(8):  # until the step is right for the derivatives
            gap = abs(side * (at.slope - mean) - target)
            # no curve is what rounding leaves of it where the step is too small to see it
            width = 1.0 / math.sqrt(at.curve) if at.curve > 0.0 else _WIDER * step
            if not (gap * width < _CLOSE and gap < _LIKE * target):
                break
            if 0.5 * step < min(width, s) < 2.0 * step:
                return at
            step = min(width, s)
            at = _around(law, places, step, variance, slopes)
        if low == 0.0:
            s = 0.5 * high
            continue
        if before == 0.0:
            a, b = variance, (1.0 - variance * low / x_low) / low
        else:
            b = (x_low / low - x_before / before) / (x_low - x_before)
            a = x_low / low - b * x_low
        s = target / (a + b * target)
        if not low < s < high:
            s = 0.5 * (low + high) if math.isfinite(high) else 2.0 * low
        elif a > 0.0:
            width = abs(1.0 - b * s) / math.sqrt(a)
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


@called_exact
def _path(law, value, at):
    """The path through a crossing: how it widens and bends follows from the cumulants there."""
    width = 1.0 / math.sqrt(at.curve)
    second = fourth = 0.0
    for weight in law.values:
        t = 2.0 * weight * width / (1.0 - 2.0 * at.s * weight)
        second += t * t
        fourth += t * t * t * t
        if 2.0 * at.s * weight >= 1.0:
            fourth = math.inf  # beyond the pole of a donor by itself, which says nothing then
            break
    skew = at.third * width * width * width
    fast = max(fourth / second, 0.25 * skew * skew)
    fast = max(min(math.sqrt(_SPREAD * fast), _WIDEST), 1e-3)
    bend = skew / (3.0 * fast) * math.copysign(1.0, value)
    bend = math.copysign(min(max(bend, _LEAST_BEND), 1.0), value)
    return _Path(at.s, width, fast, bend, at.K - at.s * value, (at.slope - value) * width)


@called_exact
def _places(path, x):
    """s (2, n) at x (n,) of the path."""
    s = empty((2, len(x)))
    reach = path.width / path.fast
    for i in range(len(x)):
        s[0, i] = path.cross + reach * path.bend * (math.cosh(path.fast * x[i]) - 1.0)
        s[1, i] = reach * math.sinh(path.fast * x[i])
    return s


@called_exact
def _factors(law, s):
    """Rows of all that :func:`_log_determinants` says at s (2, n): (2 + blocks + 1, n)."""
    size, phase, slow = _log_determinants(law, s, np.zeros(0, dtype=np.int64))
    return _rows(size, phase, slow)


@called_exact
def _rows(size, phase, slow):
    rows = empty((2 + len(slow), len(size)))
    for i in range(len(size)):
        rows[0, i], rows[1, i] = size[i], phase[i]
        for b in range(len(slow)):
            rows[2 + b, i] = slow[b, i]
    return rows


@called_exact
def _integrand(value, path, x, rows):
    """The integrand at x (n,) of the path from 0 on, less the size exp(start); `rows` of it all.

    What is known of a phase but for multiples of 2 pi is continued from node to node: that of the
    whole, which hardly turns where the integrand is large, and slow parts of it each by itself.
    Then the sum of the integrand's sizes where the two differ, so that its sign is in doubt; and
    what of its absolute values lies beyond the last, were they to fall as they do up to it.
    """
    n, s = len(x), _places(path, x)
    phase = rows[1].copy()
    for b in range(2, len(rows)):
        rate, now = 0.0, 0.0
        for i in range(1, n):
            step, before, now = x[i] - x[i - 1], now, rows[b, i]
            if i > 1:
                now -= 2.0 * math.pi * round((now - before - rate * step) / (2.0 * math.pi))
                rate = (now - before) / step
            phase[i] += now
    out = empty(n)
    turn, rate, start, doubt = 0.0, path.turn / path.width, 0.0, 0.0
    first = second = last = 0.0
    for i in range(n):
        halves = 0.0
        if i > 0:
            step, before = s[1, i] - s[1, i - 1], turn
            turn = -0.5 * phase[i] - s[1, i] * value
            halves = round((turn - before - rate * step) / math.pi)
            turn -= math.pi * halves
            rate = (turn - before) / step
            start = halves if i == 1 else start
        sinh, cosh = math.sinh(path.fast * x[i]), math.cosh(path.fast * x[i])
        slope, slope_i = path.width * path.bend * sinh, path.width * cosh
        at = -0.5 * rows[0, i] - s[0, i] * value - path.start
        cos, sin = math.cos(turn), math.sin(turn)
        up = cos * slope - sin * slope_i
        up_i = cos * slope_i + sin * slope
        square = s[0, i] * s[0, i] + s[1, i] * s[1, i]
        large = math.exp(at) / (math.pi * square)
        out[i] = large * (up_i * s[0, i] - up * s[1, i])
        first, second = second, last
        last = large * math.sqrt(square * (slope * slope + slope_i * slope_i))
        if i > 0 and (halves - start) % 2.0 != 0.0:
            doubt += abs(out[i])
    left = 0.0 if last == 0.0 else math.inf
    if 0.0 < last < second:
        falls = last / second
        falls *= min(falls * first / second, 1.0)  # as those of a normal density do, ever faster
        left = last * falls / (1.0 - falls)
    return out, doubt, left


@called_exact
def _from(law, value, at, variance):
    """The path through a point of which K may be unknown, and the first of :func:`_factors` of it.

    There are none where a pole lies between 0 and the point, or its slope is another.
    """
    path, x = _path(law, value, at), _nodes(0.0, _STEP, POINTS)
    none = empty((0, 0))
    if math.isnan(at.slope):
        return path, none
    s = _places(path, x)
    near = _ASIDE * path.width
    s[1, 0] = near  # where the phase tells the slope
    size, phase, slow, passed = _until(law, s, variance, 1)
    around = phase[0]
    for b in range(len(slow)):
        around += slow[b, 0]
    around -= 2.0 * math.pi * round(around / (2.0 * math.pi))
    slope = -0.5 * around / near
    if not (passed[0] == 0 and abs(slope - at.slope) * path.width < _ASTRAY):
        return path, none
    path = _Path(
        path.cross, path.width, path.fast, path.bend, -0.5 * size[0] - at.s * value,
        (slope - value) * path.width,
    )  # fmt: skip
    return path, _rows(size, phase, slow)


@called_exact
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


@called_exact
def _nodes(start, step, n):
    x = empty(n)
    for i in range(n):
        x[i] = start + i * step
    return x


@called_exact
def _sum(f, stride):
    total = -0.5 * f[0]
    for i in range(0, len(f), stride):
        total += f[i]
    return total


def tail(
    value: float,
    law: Law,
    more: float = 0.0,
    least: float = 0.0,
    agree: float = AGREE,
    above: float = 0.0,
) -> tuple[float, float, float]:
    """log P(form > value) for a :class:`Law`, and the mean and variance of the form.

    `more` is what the variance of the form has beyond the law's: the law then is that of its shape,
    and a distance from the mean counts in standard deviations.  There is no tail where the law has
    no more variance than `least`, or the form next to none of the law's, or where rounding leaves
    less than four digits.  `agree` is about the root of the relative error; a logarithm greater
    than `above` has four digits as a rule, and two and a half as far as seen, at half the cost.
    """
    return _tail(value, law, more, least, agree, above)


class _Sums(NamedTuple):
    """The sum of the integrand at a step, and how far those of twice and three times that are.

    All without what the pole at 0 adds.  `doubt` is what nodes of unknown sign may add, `left` what
    those beyond the last would.
    """

    total: float
    twice: float
    thrice: float
    doubt: float
    left: float


@called_exact
def _sums_of(value, path, rows, step):
    """Sums by factors at nodes of a step."""
    f, doubt, left = _integrand(value, path, _nodes(0.0, step, rows.shape[1]), rows)
    total = step * _sum(f, 1) - _trace(path, step)
    twice = 2.0 * step * _sum(f, 2) - _trace(path, 2.0 * step)
    thrice = 3.0 * step * _sum(f, 3) - _trace(path, 3.0 * step)
    return _Sums(total, abs(total - twice), abs(total - thrice), 2.0 * step * doubt, step * left)


@called_exact
def _logarithm(path, total):
    """log P by the whole sum."""
    if path.cross > 0.0:
        return min(path.start + math.log(max(total, 0.0)), 0.0)
    return math.log1p(max(math.exp(path.start) * min(total, 0.0), -1.0))


@called_exact
def _finer(law, path, step, rows):
    """Factors at nodes of half the step: those there are, and others between them."""
    n = rows.shape[1]
    between = _factors(law, _places(path, _nodes(0.5 * step, step, n)))
    out = empty((len(rows), 2 * n))
    for a in range(len(out)):
        for i in range(n):
            out[a, 2 * i], out[a, 2 * i + 1] = rows[a, i], between[a, i]
    return out


@called_exact
def _further(law, path, step, rows):
    """Factors at the nodes there are, and at some beyond them."""
    n = rows.shape[1]
    beyond = _factors(law, _places(path, _nodes(n * step, step, POINTS)))
    out = empty((len(rows), n + POINTS))
    for a in range(len(out)):
        for i in range(n + POINTS):
            out[a, i] = rows[a, i] if i < n else beyond[a, i - n]
    return out


@called_exact
def log_tail(value, law, more, least, agree, above):
    """:func:`tail`, for compiled code, and whether the logarithm has all digits."""
    mean, own = _moments(law)
    variance = own + more
    if not (own > least and variance > _KNOWN * own):
        return math.nan, mean, variance, True
    value = mean + (value - mean) * math.sqrt(own / variance)
    side, target = _aim(value, mean, own)
    accident = 2.0 * (0.5 * agree) ** _NORMAL
    # most guesses are good enough for a path, and what comes of it tells of the others
    at = _guess(law, side, target, mean, own)
    for again in range(2):
        if again == 1:
            at = _crossing(law, at.s, side, target, mean, own)
            if math.isnan(at.s):
                return (-math.inf if value > mean else 0.0), mean, variance, True
        step = _STEP
        path, rows = _from(law, value, at, own)
        if len(rows) == 0:
            continue
        sums = _sums_of(value, path, rows, step)
        while True:
            nothing = _ROUGH if _logarithm(path, sums.total) > above else agree
            ends = sums.left < nothing**2 * abs(sums.total)
            if ends or rows.shape[1] >= _MOST[again]:
                break
            rows = _further(law, path, step, rows)
            sums = _sums_of(value, path, rows, step)
        if again == 0 and not ends:
            continue
        # the error falls with the square from one step to the next
        while True:
            size = abs(sums.total)
            log = _logarithm(path, sums.total)
            if (
                sums.twice < agree * size and sums.doubt < agree**2 * size
                and (sums.thrice < accident * size or step < 0.5 * _STEP)
            ):  # fmt: skip
                return log, mean, variance, sums.left < agree**2 * size
            if log > above and sums.twice < _ROUGH * size and sums.doubt < _ROUGH**2 * size:
                return log, mean, variance, False
            if not step > _LAST_STEP[again] or (
                again == 0 and step < _STEP and not sums.twice < _HOPELESS * size
            ):
                break
            rows = _finer(law, path, step, rows)
            step *= 0.5
            sums = _sums_of(value, path, rows, step)
        # as far as rounding lets sums agree, in units of P
        if again == 1 and (sums.twice + sums.doubt) * math.exp(path.start - log) < _ROUGH**2:
            return log, mean, variance, True
    return math.nan, mean, variance, True


@kept_exact
def _tail(value, law, more, least, agree, above):
    log, mean, variance, _ = log_tail(value, law, more, least, agree, above)
    return log, mean, variance
