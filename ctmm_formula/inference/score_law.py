"""Laws of the forms of score tests, compiled, from what donors have of a null.

Under the null Sigma_i = H_i A H_i' + diag(w) for donor i, with levels Z of random effects and fixed
effects X between donors.  S = Sigma_i^-1, and M_0 = S (Sigma_i + E) S = S + S E S where
the measured noise has E = diag(nu - w) beyond the working noise.  All that a form needs of a donor
are products of H_i and B_i = [Z_i, X_i] by S and M_0, whatever the direction.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.kernels import empty, fill, zeros
from ..engine.lanes import (
    POINTS,
    aligned,
    larger,
    load,
    load_of,
    root,
    spread,
    spread_of,
    store,
)
from ..engine.model import LANES
from ..engine.options import called, called_exact, kept, kept_exact
from ..engine.symmetric import rotate_lanes
from .cumulants import Law, Zero, grouped, squares, zero_of
from .tails import log_tail

load_few, few = load_of(POINTS), spread_of(POINTS)

_AGREE = 2e-4  # of sums at a step and at twice that: errors are some 1e-8, and below 1e-6 as seen
_ROUNDING = 1e-13  # of the largest entry: added to a covariance that may be singular
_NOTHING = 1e-11  # of the largest eigenvalue: none
_HIGH = 0.99  # what a p value counts at most in a combination
_FAR = -600.0  # logarithm of a p value next to which others do not count in a combination
_ALONE = -23.0  # logarithm of a combination that no p value of its own, of four digits, moves


class Forms(NamedTuple):
    """D forms y'A y with A = P Delta P, Delta_i = H_i R' inner R H_i' beside levels.

    value (D,); R (D, r, C) and inner (D, r, r), of which the first rank (D,) rows count; level
    (D, blocks, q) weights of levels; more (D,), what the variances have beyond the laws'; weights
    (D - 1,) of the others in the last, which is their sum.
    """

    value: np.ndarray
    R: np.ndarray
    inner: np.ndarray
    rank: np.ndarray
    level: np.ndarray
    more: np.ndarray
    weights: np.ndarray


@called
def _entries(R):
    """Columns (r, C) of what is not 0 in the rows of R (r, C), and how many (r,)."""
    r, C = R.shape
    columns, count = np.empty((r, C), dtype=np.int64), np.zeros(r, dtype=np.int64)
    for a in range(r):
        for c in range(C):
            if R[a, c] != 0.0:
                columns[a, count[a]] = c
                count[a] += 1
    return columns, count


@called
def _factor(A, least):
    """Lower factors of LANES symmetric A (r, r, LANES) in place, and 0 above them.

    No pivot is less than `least` (LANES,).
    """
    r = len(A)
    for b in range(r):
        pivot = load(A, (b, b))
        for c in range(b):
            pivot -= load(A, (b, c)) * load(A, (b, c))
        pivot = root(larger(pivot, load(least, 0)))
        store(A, (b, b), pivot)
        for a in range(b + 1, r):
            total = load(A, (a, b))
            for c in range(b):
                total -= load(A, (a, c)) * load(A, (b, c))
            store(A, (a, b), total / pivot)
            store(A, (b, a), spread(0.0))


@called
def _by_donor(HS, HM, R, inner):
    """With F M_0 F' = G G' in every donor, the eigenvalues (N, r) of G' D G, and Q G' D (N, r, r).

    The rows of Q are eigenvectors, D is `inner`.
    """
    N, r = len(HM), len(R)
    columns, count = _entries(R)
    sizes, turned = empty((N, r)), empty((N, r, r))
    least = aligned((1, LANES))
    G, DG = aligned((r, r, LANES)), aligned((r, r, LANES))
    whole, axes = aligned((r, r, LANES)), aligned((r, r, LANES))
    fill(G, 0.0)
    fill(least, 1e-300)
    for first in range(0, N, LANES):
        stop = min(first + LANES, N)
        for i in range(first, stop):
            # a donor without measured noise may have none at all: then this is rounding of F S F'
            size = 1e-300
            for a in range(r):
                scale = 0.0
                for k in range(count[a]):
                    c = columns[a, k]
                    scale += R[a, c] * R[a, c] * HS[i, c, c]
                for b in range(a + 1):
                    total = 0.0
                    for k in range(count[a]):
                        for m in range(count[b]):
                            c, d = columns[a, k], columns[b, m]
                            total += R[a, c] * HM[i, c, d] * R[b, d]
                    G[a, b, i - first] = total
                size = max(size, G[a, a, i - first], scale)
            for a in range(r):
                G[a, a, i - first] += _ROUNDING * size
            least[0, i - first] = 1e-3 * _ROUNDING * size
        _factor(G, least)
        for a in range(r):
            for b in range(r):
                total = spread(0.0)
                for c in range(b, r):
                    if inner[a, c] != 0.0:
                        total += inner[a, c] * load(G, (c, b))
                store(DG, (a, b), total)
        for a in range(r):
            for b in range(a + 1):
                total = spread(0.0)
                for c in range(a, r):
                    total += load(G, (c, a)) * load(DG, (c, b))
                store(whole, (a, b), total)
        rotate_lanes(whole, axes)
        for a in range(r):
            for b in range(r):
                total = spread(0.0)
                for c in range(r):
                    total += load(axes, (a, c)) * load(DG, (b, c))
                store(G, (a, b), total)
        for i in range(first, stop):
            for a in range(r):
                sizes[i, a] = whole[a, a, i - first]
                for b in range(r):
                    turned[i, a, b] = G[a, b, i - first]
    return sizes, turned


@called
def _squares(layout, W, q, left, right, n):
    """Sums over donors of products of n rows `left` and `right` (N, n wide) of columns of B.

    Of the levels' columns by block (n, blocks, W, 2 q), and of those of the fixed effects
    (n, 2 p, 2 p ...), lower triangles.
    """
    k, wide = layout.columns.shape[1], left.shape[1] // n
    blocks, rest = len(layout.component), W - 2 * q
    mine = k - rest
    levels, fixed = zeros((n, blocks, W, 2 * q)), zeros((n, rest, -(-rest // POINTS) * POINTS))
    own = empty((mine, wide))
    cell_of, columns, block_of = layout.cell, layout.columns, layout.block
    for a in range(n):
        squares(left, right, 0, len(left), a * wide + mine, rest, True, fixed[a])
        for cell in range(len(columns) if mine > 0 else 0):
            fill(own, 0.0)
            first = cell_of[cell]
            squares(left, right, first, cell_of[cell + 1], a * wide, mine, False, own)
            at = block_of[first]
            for b in range(mine):
                for c in range(b, k):
                    down, along = columns[cell, b], columns[cell, c]
                    levels[a, at, max(down, along), min(down, along)] += own[b, c]
    return levels, fixed


@called
def _mixed(parts, weights, out):
    """out = sum_a weights_a parts_a."""
    for at in range(len(out)):
        out[at] = 0.0
    for a in range(len(weights)):
        if weights[a] != 0.0:
            for at in range(len(out)):
                out[at] += weights[a] * parts[a, at]


@called
def _law_of(layout, found, zero, R, inner, gain, level, squares_of, weights):
    """The law of the form with Delta_i = H_i R' D R H_i', D `inner`, levels weighing `level`.

    In a donor F = R H_i': with F M_0 F' = G G' its part of Delta M has the eigenvalues l of
    G' D G = Q' diag(l) Q, and 2 s F'(D^-1 - 2 s F M_0 F')^-1 F between columns of L is
    2 s D + 4 s^2 c c' / (1 - 2 s l) with c = Q G' D F L.  The sum of the first is that of
    `squares_of`, see :func:`_squares`, by `weights`.
    """
    HB = found.HB
    (N, _, wide), r, W = HB.shape, len(R), found.fixed.shape[1]
    (blocks, q), rest = gain.shape, len(zero.last)
    k = layout.columns.shape[1]
    values, vectors = empty(N * r), empty((N * r, wide))
    linear, whole = empty((blocks, W, 2 * q)), empty((rest, squares_of[1].shape[2]))
    _mixed(squares_of[0].reshape(len(weights), linear.size), weights, linear.reshape(linear.size))
    _mixed(squares_of[1].reshape(len(weights), whole.size), weights, whole.reshape(whole.size))
    columns, count = _entries(R)
    FL = empty((r, wide))
    sizes, turned = _by_donor(found.HS, found.HM, R, inner)
    largest = 0.0
    for i in range(N):
        for a in range(r):
            largest = max(largest, abs(sizes[i, a]))
    cell_of = layout.cell
    start = np.empty(len(cell_of), dtype=np.int64)
    start[0] = j = 0
    for cell in range(len(cell_of) - 1):
        for i in range(cell_of[cell], cell_of[cell + 1]):
            for a in range(r):
                for at in range(0, wide, POINTS):
                    total = few(0.0)
                    for b in range(count[a]):
                        c = columns[a, b]
                        total += R[a, c] * load_few(HB, (i, c, at))
                    store(FL, (a, at), total)
            for a in range(r):
                if not abs(sizes[i, a]) >= _NOTHING * largest:
                    continue  # a donor has not all types
                values[j] = sizes[i, a]
                for at in range(0, wide, POINTS):
                    total = few(0.0)
                    for b in range(r):
                        total += turned[i, a, b] * load_few(FL, (b, at))
                    store(vectors, (j, at), total)
                j += 1
        start[cell + 1] = j
    # a tuple of the law's own: the one that was given need not outlive this call
    own = Zero(zero.size, zero.sign, zero.whole, zero.inverse, zero.right, zero.last)
    return Law(
        values[:j], vectors[:j], start, layout.columns, layout.block[cell_of[:-1]],
        found.fixed, linear, whole, gain, level, own,
        grouped(values[:j], vectors[:j], k - rest, rest),
    )  # fmt: skip


@kept
def law_of(layout, found, R, inner, gain, level):
    """:func:`_law_of`, outside of compiled code."""
    (N, C, wide), r, HB = found.HB.shape, len(R), found.HB
    F, DF, one = zeros((N, r * wide)), zeros((N, r * wide)), empty(r)
    for i in range(N):
        for a in range(r):
            one[a] = 1.0
            for c in range(C):
                for at in range(wide):
                    F[i, a * wide + at] += R[a, c] * HB[i, c, at]
        for a in range(r):
            for b in range(r):
                for at in range(wide):
                    DF[i, a * wide + at] += inner[a, b] * F[i, b * wide + at]
    both = _squares(layout, found.fixed.shape[1], gain.shape[1], F, DF, r)
    zero = zero_of(found.fixed, gain)
    return _law_of(layout, found, zero, R, inner, gain, level, both, one)


@kept_exact
def log_combination(logs):
    """Cauchy combination of p values by their logarithms (m,), to the logarithm; NaN are none."""
    count, least = 0, 0.0
    for log in logs:
        if not math.isnan(log):
            count += 1
            least = min(least, log)
    if count == 0 or least == -math.inf:
        return least if count > 0 else math.nan
    total = 0.0
    for log in logs:
        if not math.isnan(log):
            log = min(log, math.log(_HIGH))
            # far out 1 / (p pi) is both the score of p and, of their mean, its inverse: others are
            # nothing
            if least < _FAR:
                total += math.exp(least - log)
            elif log < math.log(1e-15):
                total += 1.0 / (math.exp(log) * math.pi)
            else:
                total += math.tan((0.5 - math.exp(log)) * math.pi)
    if least < _FAR:
        return math.log(count) + least - math.log(total)
    return math.log(math.atan2(1.0, total / count) / math.pi)


@called_exact
def _with_sum(logs):
    """The combination of the sum's, the last of logs (C + 1,), with that of the cell types."""
    both = empty(2)
    both[0], both[1] = logs[-1], log_combination(logs[:-1])
    return log_combination(both)


@called
def _of_columns(forms, C):
    """Weights (D, C) of columns h of H in the forms, Delta_i = sum_c weights_c h_c h_c'.

    The types' rows R are columns, and `inner` weighs them; the last form is a sum of the others.
    """
    D = len(forms.value)
    out = zeros((D, C))
    for d in range(D - 1):
        for a in range(forms.rank[d]):
            for c in range(C):
                out[d, c] += forms.R[d, a, c] * forms.inner[d, a, a]
        for c in range(C):
            out[D - 1, c] += forms.weights[d] * out[d, c]
    return out


@kept_exact
def tails_of(layout, found, gain, forms, least, above):
    """Logarithms of upper tails of the scores of the types and their sum, means and variances.

    (C + 1, 3), and the logarithm of their Cauchy combination.  `forms` is a :class:`Forms`, `least`
    (C + 1,) and `above` are those of :func:`~ctmm_formula.inference.tails.tail`; nothing is known
    where `least` is NaN.  Where the combination is not above either, and not of one p value alone,
    all tails have all digits.
    """
    D, (N, C, wide) = len(forms.value), found.HB.shape
    out = np.full((D, 3), math.nan)
    combined, zero = math.nan, zero_of(found.fixed, gain)
    rows = found.HB.reshape(N, C * wide)
    both = _squares(layout, found.fixed.shape[1], gain.shape[1], rows, rows, C)
    weights = _of_columns(forms, C)
    sure = np.zeros(D, dtype=np.bool_)
    for again in range(2):
        for d in range(D):
            if math.isnan(least[d]) or sure[d]:
                continue
            r = forms.rank[d]
            law = _law_of(
                layout, found, zero, forms.R[d, :r], forms.inner[d, :r, :r], gain, forms.level[d],
                both, weights[d],
            )  # fmt: skip
            to = above if again == 0 else 0.0
            # one by one: assigning a row compiles its message on shapes, for seconds
            out[d, 0], out[d, 1], out[d, 2], sure[d] = log_tail(
                forms.value[d], law, forms.more[d], least[d], _AGREE, to
            )
        combined = _with_sum(out[:, 0])
        if not _ALONE < combined < above:
            break
    return out, combined
