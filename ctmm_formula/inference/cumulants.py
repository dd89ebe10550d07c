"""Cumulant functions of quadratic forms in normal variables, compiled.

A form y'A y with y ~ N(0, M) has K(s) = -1/2 log det(I - 2 s A M).  Where A and M are sums over
donors but for levels of random effects and fixed effects, the determinant is that of small systems,
at a cost linear in the donors (see :class:`Law`); its series at s = 0 has the mean and variance.
POINTS values of s go through at a time (:mod:`ctmm_formula.engine.lanes`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.kernels import empty, zeros
from ..engine.lanes import (
    POINTS,
    aligned,
    all_positive,
    larger,
    load_of,
    root,
    signed,
    spread_of,
    store,
    total,
)
from ..engine.options import called_exact, inlined

load, spread = load_of(POINTS), spread_of(POINTS)

_PIVOT = 0.64  # of one row, in units of the largest off the diagonal
_NEAR = 128  # of how many j products are taken one after the other
_REACH = 8.0  # of s on a path, in standard deviations of the donors' part
_THIN = 0.1  # 2 s l across half an interval of a group
_SPANS, _FEW, _MANY = 64, 100, 16  # intervals at most, and j of one: no more, worth a group
_EXACT = 1e-10  # relative error of what is interpolated
_ROWS = 32  # of levels at a time
_TOGETHER, _SMALL = 8, 1e-50  # factors between two looks at their size, and what then is small
_NODES = np.cos((np.arange(POINTS) + 0.5) * math.pi / POINTS)  # Chebyshev's, in [-1, 1]


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


class Groups(NamedTuple):
    """Eigenvalues of donors that lie together, with what donors have of the 2 p fixed effects.

    Where there are many in an interval, c_j c_j' / (1 - 2 s l_j) summed over them is interpolated
    between POINTS Chebyshev nodes in l: the relative error is at most 1 / |T(z)|, T the polynomial
    of that degree and z the pole 1 / (2 s) in units of the interval.

    Attributes
    ----------
    values : ndarray, shape (J,); vectors : ndarray, shape (J, 2 p ...)
        In order of the groups; of the first group nothing is interpolated.
    start : int ndarray, shape (groups + 1,)
    middle, half : ndarray, shape (groups,)
        Of the intervals.
    squares : ndarray, shape (groups, 2 p, 2 p ..., POINTS)
        Sums of c_j c_j' by weights of the nodes, the lower triangles by columns.
    """

    values: np.ndarray
    vectors: np.ndarray
    start: np.ndarray
    middle: np.ndarray
    half: np.ndarray
    squares: np.ndarray


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
    groups : Groups
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
    groups: Groups


def mixture(weights: np.ndarray) -> Law:
    """The law of sum_j weights_j chi2_1."""
    none, flat = np.zeros((1, 0, 0)), np.zeros((0, 0))
    values, nothing, ends = np.asarray(weights, dtype=float), np.zeros(0), np.zeros(1, np.int64)
    return Law(
        values, np.zeros((len(weights), 0)),
        np.array([0, len(weights)]), np.zeros((1, 0), dtype=np.int64), np.zeros(1, dtype=np.int64),
        none, none, flat, np.zeros((1, 0)), np.zeros((1, 0)),
        Zero(0.0, 1.0, flat, none, none, flat),
        Groups(values, flat, ends, nothing, nothing, np.zeros((0, 0, 0, POINTS))),
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
def _eliminate(A, B, size, phase, at, room):
    """Solve A (2, m, m, POINTS) for B (2, m, r, POINTS) in place; factors of the determinant.

    As many lanes are points as `size` has, real and imaginary parts come first.  log|det| is added
    to it, and the determinant's phase in (-pi, pi] is phase[at]; `room` is (3, POINTS).
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
        phase[at, i] = math.atan2(room[2, i], room[1, i])


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
def _weights(values, start, stop, s, out):
    """4 s^2 / (1 - 2 s l_j) at the points of s (2, POINTS), out (2, J, POINTS)."""
    x, y = load(s, 0), load(s, 1)
    up, up_i = 4.0 * (x * x - y * y), 8.0 * x * y
    for j in range(start, stop):
        twice = -2.0 * values[j]
        real, imag = 1.0 + twice * x, twice * y
        square = 1.0 / (real * real + imag * imag)
        store(out, (0, j), square * (up * real + up_i * imag))
        store(out, (1, j), square * (up_i * real - up * imag))


@called_exact
def _sums(vectors, start, stop, first, columns, rows, weights, part, out, to):
    """Add c_j c_j' by weights[part] (J, POINTS), j from `start` to `stop`, to out[to].

    Columns and rows count from column `first`: (columns, rows ..., POINTS), the lower triangle, and
    what whole steps of four rows and two columns have beside it; `vectors` have as many columns.
    """
    for begin in range(start, stop, _NEAR):
        end = min(begin + _NEAR, stop)
        for b in range(0, columns, 2):
            for a in range(b - b % 4, rows, 4):
                e, u = load(out, (to, b, a)), load(out, (to, b + 1, a))
                f, v = load(out, (to, b, a + 1)), load(out, (to, b + 1, a + 1))
                g, w = load(out, (to, b, a + 2)), load(out, (to, b + 1, a + 2))
                h, x = load(out, (to, b, a + 3)), load(out, (to, b + 1, a + 3))
                for j in range(begin, end):
                    weight = load(weights, (part, j))
                    left, right = vectors[j, first + b] * weight, vectors[j, first + b + 1] * weight
                    c = vectors[j, first + a]
                    e, u = e + c * left, u + c * right
                    c = vectors[j, first + a + 1]
                    f, v = f + c * left, v + c * right
                    c = vectors[j, first + a + 2]
                    g, w = g + c * left, w + c * right
                    c = vectors[j, first + a + 3]
                    h, x = h + c * left, x + c * right
                store(out, (to, b, a), e)
                store(out, (to, b + 1, a), u)
                store(out, (to, b, a + 1), f)
                store(out, (to, b + 1, a + 1), v)
                store(out, (to, b, a + 2), g)
                store(out, (to, b + 1, a + 2), w)
                store(out, (to, b, a + 3), h)
                store(out, (to, b + 1, a + 3), x)


@called_exact
def _nothing(columns, rows, out):
    """Zeros for :func:`_sums`."""
    for part in range(len(out)):
        for b in range(columns):
            for a in range(rows + -rows % 4):
                store(out, (part, b, a), spread(0.0))


@called_exact
def _at_nodes(squares, group, rows, weights, out):
    """Add a group's squares by weights (2, POINTS nodes, POINTS) to out (2, rows, rows ...)."""
    for b in range(rows):
        for a in range(b - b % 4, rows, 4):
            e, u = load(out, (0, b, a)), load(out, (1, b, a))
            f, v = load(out, (0, b, a + 1)), load(out, (1, b, a + 1))
            g, w = load(out, (0, b, a + 2)), load(out, (1, b, a + 2))
            h, x = load(out, (0, b, a + 3)), load(out, (1, b, a + 3))
            for k in range(POINTS):
                real, imag = load(weights, (0, k)), load(weights, (1, k))
                c = squares[group, b, a, k]
                e, u = e + c * real, u + c * imag
                c = squares[group, b, a + 1, k]
                f, v = f + c * real, v + c * imag
                c = squares[group, b, a + 2, k]
                g, w = g + c * real, w + c * imag
                c = squares[group, b, a + 3, k]
                h, x = h + c * real, x + c * imag
            store(out, (0, b, a), e)
            store(out, (1, b, a), u)
            store(out, (0, b, a + 1), f)
            store(out, (1, b, a + 1), v)
            store(out, (0, b, a + 2), g)
            store(out, (1, b, a + 2), w)
            store(out, (0, b, a + 3), h)
            store(out, (1, b, a + 3), x)


@called_exact
def grouped(values, vectors, own, rest):
    """:class:`Groups` of eigenvalues (J,), by columns of `vectors` from `own` on."""
    J = len(values)
    low = high = variance = 0.0
    for value in values:
        low, high = min(low, value), max(high, value)
        variance += 2.0 * value * value
    spans = int((high - low) * _REACH / (_THIN * math.sqrt(variance))) + 1
    spans = min(max(spans, J // _FEW), _SPANS) if rest > 0 else 0
    wide = (high - low) * (1.0 + 1e-12) / max(spans, 1)
    count, number = np.zeros(spans, dtype=np.int64), np.zeros(spans, dtype=np.int64)
    for j in range(J if spans > 0 else 0):
        count[int((values[j] - low) / wide)] += 1
    groups = 1
    for span in range(spans):
        if count[span] >= _MANY:
            number[span] = groups
            groups += 1
    at = np.zeros(groups + 1, dtype=np.int64)
    middle, half = zeros(groups), zeros(groups)
    for span in range(spans):
        group = number[span]
        at[group + 1] += count[span]
        middle[group], half[group] = low + (span + 0.5) * wide, 0.5 * wide
    for group in range(groups):
        at[group + 1] += at[group]
    start = at.copy()
    size, more = empty(J), empty((J, -(-rest // POINTS) * POINTS))
    for j in range(J if spans > 0 else 0):
        group = number[int((values[j] - low) / wide)]
        to = at[group]
        at[group] += 1
        size[to] = values[j]
        for a in range(0, more.shape[1], POINTS):
            store(more, (to, a), load(vectors, (j, own + a)))
    squares = aligned((groups, rest, rest + -rest % 4, POINTS))
    _nothing(rest, rest, squares)
    weights, nodes = aligned((1, J, POINTS)), empty(POINTS)
    for k in range(POINTS):
        nodes[k] = _NODES[k]
    for group in range(1, groups):
        for j in range(start[group], start[group + 1]):
            x = (size[j] - middle[group]) / half[group]
            # T_m(x) T_m(node) over all m: the weights of nodes in a polynomial's value at x
            at_x, last, each = x, 1.0, spread(0.5)
            at_nodes, before = load(nodes, 0), spread(1.0)
            for _ in range(1, POINTS):
                each += at_x * at_nodes
                last, at_x = at_x, 2.0 * x * at_x - last
                before, at_nodes = at_nodes, 2.0 * load(nodes, 0) * at_nodes - before
            store(weights, (0, j), each * (2.0 / POINTS))
        _sums(more, start[group], start[group + 1], 0, rest, rest, weights, 0, squares, group)
    return Groups(size, more, start, middle, half, squares)


@called_exact
def _far(s, middle, half):
    """Whether 1 / (1 - 2 s l) at s (2, POINTS) is a polynomial in an interval of l."""
    x, y = load(s, 0), load(s, 1)
    square = 2.0 * half * (x * x + y * y)
    real, imag = x / square - middle / half, (0.0 - y) / square
    for _ in range(3):  # T_2 of T_2 of T_2
        real, imag = 2.0 * (real * real - imag * imag) - 1.0, 4.0 * real * imag
    return all_positive(real * real + imag * imag - 1.0 / _EXACT**2)


@called_exact
def _of_fixed(groups, s, rest, weights, sums):
    """4 s^2 sum_j c_j c_j' / (1 - 2 s l_j) of the fixed effects to sums (2, 2 p, 2 p ..., POINTS).

    `weights` (2, J and as many as POINTS, POINTS) is room.
    """
    _nothing(rest, rest, sums)
    nodes = empty(POINTS)
    for group in range(len(groups.middle)):
        start, stop = groups.start[group], groups.start[group + 1]
        if group > 0 and _far(s, groups.middle[group], groups.half[group]):
            for k in range(POINTS):
                nodes[k] = groups.middle[group] + groups.half[group] * _NODES[k]
            _weights(nodes, 0, POINTS, s, weights)
            _at_nodes(groups.squares, group, rest, weights, sums)
        else:
            _weights(groups.values, start, stop, s, weights)
            for part in range(2):
                _sums(groups.vectors, start, stop, 0, rest, rest, weights, part, sums, part)


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
def log_determinants(law, s, passed):
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
def _of_levels(
    fixed, linear, vectors, columns, start, block, gain, level, s, weights, sums, size, slow,
    passed, X,
):  # fmt: skip
    """Take the levels of all blocks of a :class:`Law` out: factors of det, and what is X's of them.

    X (2, 2 p, 2 p, POINTS) has the lower triangle, `weights` are those of :func:`_weights`; see
    :func:`_add_slow`.  `sums` is room.
    """
    # all in one function, as calls with arrays in every block cost more than what they do
    (blocks, q), W, k = gain.shape, fixed.shape[1], columns.shape[1]
    rest = W - 2 * q
    own, most = k - rest, min(2 * q * blocks, max(_ROWS, 2 * q))
    T, R, room = empty((2, W, 2 * q, POINTS)), empty((3 * q, 3 * q)), empty((3, POINTS))
    left, right = empty((2, most, rest, POINTS)), empty((2, most, rest, POINTS))
    A, B = empty((2, 2 * q, 2 * q, POINTS)), empty((2, 2 * q, rest, POINTS))
    cell = rows = 0
    for b in range(blocks):
        # columns of the levels in T_b, the lower triangle
        for a in range(W):
            for c in range(min(a + 1, 2 * q)):
                twice = 2.0 * linear[b, a, c]
                store(T, (0, a, c), fixed[b, a, c] + twice * load(s, 0))
                store(T, (1, a, c), twice * load(s, 1))
        while cell < len(block) and block[cell] == b:
            _nothing(own, k, sums)
            for part in range(2):
                _sums(vectors, start[cell], start[cell + 1], 0, own, k, weights, part, sums, part)
                for c in range(own):
                    for a in range(c, k):
                        row, column = columns[cell, a], columns[cell, c]
                        to = (part, max(row, column), min(row, column))
                        store(T, to, load(T, to) + load(sums, (part, c, a)))
            cell += 1
        for i in range(len(passed)):
            passed[i] += _passed(T, i, s[0, i], gain, level, b, R)
        for r in range(q):
            g = gain[b, r]
            step, step_i = 2.0 * level[b, r] * load(s, 0), 2.0 * level[b, r] * load(s, 1)
            for c in range(2 * q + rest):
                row, column = max(r, c), min(r, c)
                up, up_i = load(T, (0, row, column)), load(T, (1, row, column))
                row, column = max(q + r, c), min(q + r, c)
                low, low_i = load(T, (0, row, column)), load(T, (1, row, column))
                first = g * low - (step * up - step_i * up_i)
                first_i = g * low_i - (step * up_i + step_i * up)
                last, last_i = g * (up - low), g * (up_i - low_i)
                if c < 2 * q:
                    store(A, (0, r, c), first + (1.0 if c == r else 0.0))
                    store(A, (1, r, c), first_i)
                    store(A, (0, q + r, c), last + (1.0 if c == q + r else 0.0))
                    store(A, (1, q + r, c), last_i)
                else:
                    store(B, (0, r, c - 2 * q), 0.0 - first)
                    store(B, (1, r, c - 2 * q), 0.0 - first_i)
                    store(B, (0, q + r, c - 2 * q), 0.0 - last)
                    store(B, (1, q + r, c - 2 * q), 0.0 - last_i)
        _eliminate(A, B, size, slow, b, room)
        for r in range(2 * q):
            for part in range(2):
                for a in range(rest):
                    store(left, (part, rows + r, a), load(T, (part, 2 * q + a, r)))
                    store(right, (part, rows + r, a), load(B, (part, r, a)))
        rows += 2 * q
        if rows + 2 * q > most or b == blocks - 1:
            _multiply(left, right, rows, X)
            rows = 0


@called_exact
def _add_slow(law, s, size, slow, passed):
    """What is not of donors by themselves at s (2, POINTS), see :func:`log_determinants`."""
    blocks, q = law.gain.shape
    W = law.fixed.shape[1]
    if W == 0:
        return
    k, rest, J = law.columns.shape[1], W - 2 * q, len(law.values)
    X, room = zeros((2, rest, rest, POINTS)), empty((3, POINTS))
    weights = aligned((2, J + POINTS, POINTS))
    sums = aligned((2, max(k - rest, rest), k + 4, POINTS))
    if q > 0:
        _weights(law.values, 0, J, s, weights)
        _of_levels(
            law.fixed, law.linear, law.vectors, law.columns, law.start, law.block, law.gain,
            law.level, s, weights, sums, size, slow, passed, X,
        )  # fmt: skip
    _of_fixed(law.groups, s, rest, weights, sums)
    for c in range(rest):
        for a in range(c, rest):
            first, twice = law.zero.whole[a, c], 2.0 * law.whole[a, c]
            real = first + twice * load(s, 0) + load(X, (0, a, c)) + load(sums, (0, c, a))
            imag = twice * load(s, 1) + load(X, (1, a, c)) + load(sums, (1, c, a))
            store(X, (0, a, c), real)
            store(X, (0, c, a), real)
            store(X, (1, a, c), imag)
            store(X, (1, c, a), imag)
    for i in range(len(passed)):  # as many of one sign as of the other at s = 0
        passed[i] += _inertia(-X[0, :, :, i]) - X.shape[1] // 2
    _eliminate(X, X[:, :, :0], size, slow, blocks, room)


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
def squares(left, right, start, stop, first, rows, lower, out):
    """Add sum_j left_ja right_jb, j from `start` to `stop`, to out (rows, whole lanes).

    a and b count from column `first`, and there are so many rows a, an even number; of a lower
    triangle those lanes of b that it reaches.
    """
    for begin in range(start, stop, _NEAR):
        end = min(begin + _NEAR, stop)
        for at in range(0, out.shape[1], POINTS):
            for a in range(at if lower else 0, rows, 2):
                u, v = load(out, (a, at)), load(out, (a + 1, at))
                for j in range(begin, end):
                    c = load(right, (j, first + at))
                    u += left[j, first + a] * c
                    v += left[j, first + a + 1] * c
                store(out, (a, at), u)
                store(out, (a + 1, at), v)


@called_exact
def _rows_of(law, b, cell, own, U):
    """Rows of a block's levels in T_b, coefficients of 1, s and s^2, (3, 2 q, 2 q + 2 p ...).

    `cell` is the block's first, and returned is the one after it; `own` is room.
    """
    k, levels, W = law.columns.shape[1], U.shape[1], law.fixed.shape[1]
    fixed, linear, columns = law.fixed, law.linear, law.columns
    for r in range(levels):
        for c in range(W):
            row, column = max(r, c), min(r, c)
            U[0, r, c], U[1, r, c] = fixed[b, row, column], 2.0 * linear[b, row, column]
            U[2, r, c] = 0.0
    while cell < len(law.block) and law.block[cell] == b:
        for a in range(len(own)):
            for c in range(own.shape[1]):
                own[a, c] = 0.0
        j, end = law.start[cell], law.start[cell + 1]
        squares(law.vectors, law.vectors, j, end, 0, len(own), False, own)
        for a in range(len(own)):
            for c in range(k):
                U[2, columns[cell, a], columns[cell, c]] += 4.0 * own[a, c]
        cell += 1
    return cell


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
def moments(law):
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
    groups = law.groups
    squares(groups.vectors, groups.vectors, 0, groups.start[1], 0, rest, True, X[1])
    for a in range(rest):
        for c in range(a + 1):
            each = spread(0.0)
            for group in range(1, len(groups.middle)):
                each += load(groups.squares, (group, c, a))
            X[1, c, a] = X[1, a, c] = 4.0 * (X[1, a, c] + total(each))
    levels_too = empty((own, -(-law.columns.shape[1] // POINTS) * POINTS))
    cell = 0
    for b in range(blocks if q > 0 else 0):
        cell = _rows_of(law, b, cell, levels_too, U)
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
            each = spread(0.0)
            for c in range(rest):
                each += law.zero.last[a, c] * load(X, (0, c, at))
            store(last, (a, at), each)
    for a in range(rest):
        mean -= 0.5 * last[a, a]
        for c in range(rest):
            variance += 0.5 * last[a, c] * last[c, a] - law.zero.last[a, c] * X[1, c, a]
    return mean, variance


@called_exact
def _inertia(A):
    """Negative eigenvalues of symmetric A (n, n), which is overwritten.

    By elimination with pivots of one row: the largest, where its column has none much larger.
    Elsewhere they are of two (Bunch and Parlett), which takes a look at all entries.
    """
    count, n = 0, len(A)
    left = np.empty(n, dtype=np.int64)
    for a in range(n):
        left[a] = a
    while n > 0:
        one, off = 0, 0.0
        for a in range(n):
            if abs(A[left[a], left[a]]) > abs(A[left[one], left[one]]):
                one = a
        at = left[one]
        for a in range(n):
            if a != one:
                off = max(off, abs(A[left[a], at]))
        if n == 1 or abs(A[at, at]) >= _PIVOT * off:
            pivot = A[at, at]
            n -= 1
            left[one] = left[n]
            if pivot == 0.0:
                continue  # of this row nothing is left
            count += pivot < 0.0
            for i in range(n):
                a = left[i]
                factor = A[a, at] / pivot
                for k in range(n):
                    A[a, left[k]] -= factor * A[at, left[k]]
        else:  # one eigenvalue of each sign
            off, first, second = 0.0, 0, 0
            for a in range(n):
                for b in range(a):
                    if abs(A[left[a], left[b]]) > off:
                        off, first, second = abs(A[left[a], left[b]]), a, b
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
def _passed(T, lane, s, gain, level, b, R):
    """Negative eigenvalues of a block's levels at real s, less those at s = 0 of its side.

    A level has three equations, which at 0 have one and, where its weight is of the other sign than
    s, another.  T (2, W, 2 q, POINTS) has s in one of its lanes; R (3 q, 3 q) is room.
    """
    q = gain.shape[1]
    before = q
    for a in range(3 * q):
        third, r = a // q, a % q
        size = abs(2.0 * s * level[b, r]) if third == 1 else gain[b, r]
        for c in range(a + 1):
            other, u = c // q, c % q
            both = math.sqrt(size * (abs(2.0 * s * level[b, u]) if other == 1 else gain[b, u]))
            row, column = (q + r if third == 2 else r), (q + u if other == 2 else u)
            R[a, c] = -both * T[0, max(row, column), min(row, column), lane]
        if third == 1:  # 1 / step, scaled
            R[a, a] += -1.0 if s * level[b, r] < 0.0 else 1.0
            before += s * level[b, r] < 0.0
        elif third == 0:
            R[a, a] -= 1.0
        else:
            R[a, r] -= 1.0
    for a in range(3 * q):
        for c in range(a):
            R[c, a] = R[a, c]
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
def until(law, s, variance, count):
    """:func:`log_determinants`, and by Sylvester's law how many poles the first of s are beyond.

    That is, how many lie between 0 and the real part of each of so many.  None can where 2 s is
    below what the variance, twice the sum of squares of eigenvalues, allows to one.
    """
    passed = _of_donors_passed(law, s[0, :count])
    known = True
    for i in range(count):
        known = known and passed[i] == 0 and 2.0 * s[0, i] * s[0, i] * variance < 1.0
    size, phase, slow = log_determinants(law, s, passed[:0] if known else passed)
    return size, phase, slow, passed
