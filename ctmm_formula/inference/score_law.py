"""What the score test sums over donors, compiled: cross products of a null and laws of its forms.

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
from ..engine.model import LANES, Model, from_tiles
from ..engine.options import called, called_exact, kept, kept_exact
from ..engine.symmetric import rotate_lanes
from .tails import Law, inverse_of, log_tail, zero_of

load_few, few = load_of(POINTS), spread_of(POINTS)

_AGREE = 5e-4  # of sums at a step and at twice that: errors are some 1e-8, and 2e-6 far out at most
_ROUNDING = 1e-13  # of the largest entry: added to a covariance that may be singular
_NOTHING = 1e-11  # of the largest eigenvalue: none
_HIGH = 0.99  # what a p value counts at most in a combination
_FAR = -600.0  # logarithm of a p value next to which others do not count in a combination
_ALONE = -23.0  # logarithm of a combination that no p value of its own, of four digits, moves


class Layout(NamedTuple):
    """Rows in use, donors in order of their blocks, and in a block of the levels they touch.

    n rows, N donors, b = d + p columns: weights of the at most d levels of a donor, fixed effects.

    Attributes
    ----------
    rows : int ndarray, shape (n,)
        Which rows of the model.
    ptr : int ndarray, shape (N + 1,); H : ndarray, shape (n, C); B : ndarray, shape (n, b)
    slot : int ndarray, shape (N, d)
        Number of every level within its block, -1 where there is none.
    block : int ndarray, shape (N,)
    cell : int ndarray, shape (cells + 1,)
        First donor of every cell: donors that touch the same levels.
    columns : int ndarray, shape (cells, 2 b)
        Where columns [M_0 Z, S Z, M_0 X, S X] of a cell's donors lie in those of its block.
    component : int ndarray, shape (blocks, q)
        Random component of every level; -1 where there is none.
    """

    rows: np.ndarray
    ptr: np.ndarray
    H: np.ndarray
    B: np.ndarray
    slot: np.ndarray
    block: np.ndarray
    cell: np.ndarray
    columns: np.ndarray
    component: np.ndarray


class Products(NamedTuple):
    """Cross products of donors and blocks under a null; k = 2 b columns as in :class:`Layout`.

    HS, HM (N, C, C) by S and M_0; HB (N, C, k), and zeros up to whole lanes; Hy (N, C) by S; fixed
    (blocks, W, W) as in :class:`~ctmm_formula.inference.tails.Law`; Zy (blocks, q), Xy (p,) by S;
    SH (n, C), SB (n, b).
    """

    HS: np.ndarray
    HM: np.ndarray
    HB: np.ndarray
    Hy: np.ndarray
    fixed: np.ndarray
    Zy: np.ndarray
    Xy: np.ndarray
    SH: np.ndarray
    SB: np.ndarray


class Solved(NamedTuple):
    """P y, and what P is made of, by the levels of every block and the fixed effects.

    gain (blocks, q) variances of levels; G (blocks, q, q) and GX (blocks, q, p), Z'SZ and Z'SX; K
    (blocks, q, q), (gain^-1 + G)^-1; inverse (p, p) of X'S X without the levels; pull (N, C),
    H_i'(P y)_i; scores (C, C), their products summed over donors; Zy (blocks, q), Z'P y.
    """

    gain: np.ndarray
    G: np.ndarray
    GX: np.ndarray
    K: np.ndarray
    inverse: np.ndarray
    pull: np.ndarray
    scores: np.ndarray
    Zy: np.ndarray


class Forms(NamedTuple):
    """D forms y'A y with A = P Delta P, Delta_i = H_i R' inner R H_i' beside levels.

    value (D,); R (D, r, C) and inner (D, r, r), of which the first rank (D,) rows count; level
    (D, blocks, q) weights of levels; more (D,), what the variances have beyond the laws'.
    """

    value: np.ndarray
    R: np.ndarray
    inner: np.ndarray
    rank: np.ndarray
    level: np.ndarray
    more: np.ndarray


def lay_out(model: Model, H: np.ndarray) -> Layout:
    """The layout of a model's rows in use, with H (n, C) in the place of its own."""
    b = model.blocks
    p = b.p
    used = np.flatnonzero(model.active)
    # without levels donors have only fixed effects in common: one block
    block = np.zeros(len(used), dtype=np.int64)
    if model.random:
        _, block = np.unique(model.donor_block[used], return_inverse=True)
    slot, component = _levels(model, used, block)
    order = np.lexsort((*slot.T[::-1], block))
    used, block, slot = used[order], block[order], slot[order]
    sizes = np.diff(model.row_ptr)[used]
    ptr = np.append(0, np.cumsum(sizes))
    rows = np.repeat(model.row_ptr[used] - ptr[:-1], sizes) + np.arange(ptr[-1])
    Z = from_tiles(b.design[:, b.R + p :], model.tiles)
    new = np.append(True, (np.diff(block) != 0) | (np.diff(slot, axis=0) != 0).any(axis=1))
    cell = np.append(np.flatnonzero(new), len(used))
    q = component.shape[1]
    own = np.maximum(slot[cell[:-1]], 0)
    fixed = np.broadcast_to(2 * q + np.arange(2 * p), (len(own), 2 * p))
    return Layout(
        rows, ptr, np.ascontiguousarray(H[rows]),
        np.ascontiguousarray(np.hstack([Z, model.Q])[rows]), slot, block, cell,
        np.ascontiguousarray(np.hstack([own, q + own, fixed])), component,
    )  # fmt: skip


def _levels(model: Model, used: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels of donors numbered within their blocks (N, d), and their components (blocks, q)."""
    level = model.blocks.level[used] if model.random else np.empty((len(used), 0), dtype=np.int64)
    slot = np.full(level.shape, -1)
    there = level >= 0
    pairs = np.broadcast_to(block[:, None], level.shape)[there], level[there]
    found, at = np.unique(np.array(pairs), axis=1, return_inverse=True)
    first = np.searchsorted(found[0], np.arange(block.max() + 1))
    number = np.arange(found.shape[1]) - first[found[0]]
    slot[there] = number[at.ravel()]
    q = int(number.max(initial=-1)) + 1
    component = np.full((len(first), q), -1)
    component[found[0], number] = model.blocks.level_comp[found[1]]
    return slot, component


@called
def _cholesky(A, m):
    """The lower factor of A's first m rows, in place; 0 below where rounding leaves no pivot."""
    for a in range(m):
        for b in range(a + 1):
            total = A[a, b]
            for c in range(b):
                total -= A[a, c] * A[b, c]
            if a == b:
                A[a, a] = math.sqrt(max(total, 0.0))
            else:
                A[a, b] = total / A[b, b] if A[b, b] > 0.0 else 0.0
        for b in range(a + 1, m):
            A[a, b] = 0.0


@called
def _solve(low, out, m):
    """Solve for the first m rows of `out`, whole lanes, in place by their lower factor."""
    for at in range(0, out.shape[1], POINTS):
        for step in range(2 * m):
            a = step if step < m else 2 * m - 1 - step
            first, stop = (0, a) if step < m else (a + 1, m)
            total = load_few(out, (a, at))
            for c in range(first, stop):
                factor = low[a, c] if step < m else low[c, a]
                total -= factor * load_few(out, (c, at))
            store(out, (a, at), total / low[a, a])


@kept
def products(layout, A, w, excess, y):
    """Cross products under a null with covariance A; w, nu - w and y by row of the layout."""
    n, C = layout.H.shape
    b, N, d = layout.B.shape[1], len(layout.slot), layout.slot.shape[1]
    p = b - d
    blocks, q = layout.component.shape
    SH, SB = empty((n, C)), empty((n, b))
    wide = -(-2 * b // POINTS) * POINTS
    HS, HM, HB = zeros((N, C, C)), zeros((N, C, C)), zeros((N, C, wide))
    Hy, fixed = zeros((N, C)), zeros((blocks, 2 * (q + p), 2 * (q + p)))
    Zy, Xy = zeros((blocks, q)), zeros(p)
    room = -(-(C + b) // POINTS) * POINTS
    first, second = empty((b, b)), empty((b, b))
    by_S, by_E = empty((C + b, room)), empty((C + b, room))
    place = np.empty((2, b), dtype=np.int64)
    most = 1
    for i in range(N):
        most = max(most, layout.ptr[i + 1] - layout.ptr[i])
    low, HA = empty((most, most)), empty((most, C))
    L, SL = empty((most, C + b)), zeros((most, room))
    for cell in range(len(layout.columns)):
        for i in range(d):
            place[0, i], place[1, i] = layout.columns[cell, i], layout.columns[cell, d + i]
        for i in range(p):
            place[0, d + i] = layout.columns[cell, 2 * d + i]
            place[1, d + i] = layout.columns[cell, 2 * d + p + i]
        fill(first, 0.0)
        fill(second, 0.0)
        for i in range(layout.cell[cell], layout.cell[cell + 1]):
            start, stop = layout.ptr[i], layout.ptr[i + 1]
            m = stop - start
            for a in range(m):
                for c in range(C):
                    HA[a, c] = 0.0
                for k in range(C):
                    H = layout.H[start + a, k]
                    if H != 0.0:
                        for c in range(C):
                            HA[a, c] += H * A[k, c]
                for r in range(a + 1):
                    total = 0.0
                    for c in range(C):
                        total += HA[a, c] * layout.H[start + r, c]
                    low[a, r] = total
                low[a, a] += w[start + a]
            _cholesky(low, m)
            for a in range(m):
                for c in range(C):
                    L[a, c] = SL[a, c] = layout.H[start + a, c]
                for c in range(b):
                    L[a, C + c] = SL[a, C + c] = layout.B[start + a, c]
            _solve(low, SL, m)
            for c in range(C + b):
                for at in range(0, room, POINTS):
                    by, beyond = few(0.0), few(0.0)
                    for a in range(m):
                        own = load_few(SL, (a, at))
                        by += L[a, c] * own
                        beyond += excess[start + a] * SL[a, c] * own
                    store(by_S, (c, at), by)
                    store(by_E, (c, at), beyond)
            at = layout.block[i]
            for a in range(m):
                response = y[start + a]
                for c in range(C):
                    SH[start + a, c] = SL[a, c]
                    Hy[i, c] += SL[a, c] * response
                for c in range(b):
                    SB[start + a, c] = SL[a, C + c]
                for k in range(d):
                    if layout.slot[i, k] >= 0:
                        Zy[at, layout.slot[i, k]] += SL[a, C + k] * response
                for k in range(p):
                    Xy[k] += SL[a, C + d + k] * response
            for c in range(C):
                for k in range(C):
                    HS[i, c, k], HM[i, c, k] = by_S[c, k], by_S[c, k] + by_E[c, k]
                for k in range(d):
                    HB[i, c, k] = by_S[c, C + k] + by_E[c, C + k]
                    HB[i, c, d + k] = by_S[c, C + k]
                for k in range(C + d, C + b):
                    HB[i, c, d - C + k] = by_S[c, k] + by_E[c, k]
                    HB[i, c, b - C + k] = by_S[c, k]
            for c in range(b):
                for k in range(b):
                    first[c, k] += by_S[C + c, C + k]
                    second[c, k] += by_E[C + c, C + k]
        at = layout.block[layout.cell[cell]]
        for c in range(b):
            for k in range(b):
                fixed[at, place[0, c], place[0, k]] += first[c, k] + second[c, k]
                fixed[at, place[0, c], place[1, k]] += first[c, k]
                fixed[at, place[1, k], place[0, c]] += first[c, k]
    return Products(HS, HM, HB, Hy, fixed, Zy, Xy, SH, SB)


@called
def _sandwich(R, M, i, half, out):
    """R M_i R' of a symmetric M_i; `half` (C,) is room."""
    C = len(half)
    for a in range(len(R)):
        for d in range(C):
            half[d] = 0.0
        for c in range(C):
            if R[a, c] != 0.0:
                for d in range(C):
                    half[d] += R[a, c] * M[i, c, d]
        for b in range(a + 1):
            total = 0.0
            for c in range(C):
                total += half[c] * R[b, c]
            out[a, b] = out[b, a] = total


@kept
def solve(layout, found, variances):
    """:class:`Solved` under variances (Kr,) of the random effects."""
    (blocks, q), (N, d) = layout.component.shape, layout.slot.shape
    C, p = found.HB.shape[1], len(found.Xy)
    gain, G, GX = zeros((blocks, q)), empty((blocks, q, q)), empty((blocks, q, p))
    K, KX, v = empty((blocks, q, q)), zeros((blocks, q, p)), zeros((blocks, q))
    XX, right, inner = zeros((p, p)), found.Xy.copy(), empty((q, q))
    for at in range(blocks):
        for k in range(q):
            if layout.component[at, k] >= 0:
                gain[at, k] = variances[layout.component[at, k]]
        for k in range(q):
            for m in range(q):
                G[at, k, m] = found.fixed[at, k, q + m]
                inner[k, m] = (1.0 if k == m else 0.0) + gain[at, k] * G[at, k, m]
            for m in range(p):
                GX[at, k, m] = found.fixed[at, k, 2 * q + p + m]
        if q > 0:
            left, _, _ = inverse_of(inner.copy())
            for k in range(q):
                for m in range(q):
                    K[at, k, m] = left[k, m] * gain[at, m]
                    v[at, k] += K[at, k, m] * found.Zy[at, m]
                    for r in range(p):
                        KX[at, k, r] += K[at, k, m] * GX[at, m, r]
        for k in range(p):
            for m in range(p):
                XX[k, m] += found.fixed[at, 2 * q + k, 2 * q + p + m]
                for r in range(q):
                    XX[k, m] -= GX[at, r, k] * KX[at, r, m]
            for r in range(q):
                right[k] -= KX[at, r, k] * found.Zy[at, r]
    inverse, _, _ = inverse_of(XX)
    b = zeros(p)
    for k in range(p):
        for m in range(p):
            b[k] += inverse[k, m] * right[m]
    Zy = found.Zy.copy()
    for at in range(blocks):
        for k in range(q):
            for m in range(p):
                v[at, k] -= KX[at, k, m] * b[m]
        for k in range(q):
            for m in range(q):
                Zy[at, k] -= G[at, k, m] * v[at, m]
            for m in range(p):
                Zy[at, k] -= GX[at, k, m] * b[m]
    pull, scores = found.Hy.copy(), zeros((C, C))
    for i in range(N):
        for c in range(C):
            for k in range(d):
                if layout.slot[i, k] >= 0:
                    pull[i, c] -= found.HB[i, c, d + k] * v[layout.block[i], layout.slot[i, k]]
            for k in range(p):
                pull[i, c] -= found.HB[i, c, 2 * d + p + k] * b[k]
        for c in range(C):
            for k in range(C):
                scores[c, k] += pull[i, c] * pull[i, k]
    return Solved(gain, G, GX, K, inverse, pull, scores, Zy)


@kept
def efficient(fisher, explained, w):
    """What the null's components leave of the scores of the types and of their sum.

    `fisher` has the shared component first, then those of the C types and of the levels; the types
    that fixed effects have `explained` (C,) have none; `w` (C,) weighs the sum.  Returns a
    (1 + Kr, C), and the informations that are left and that there were, (C + 1,).
    """
    C = len(w)
    m = len(fisher) - C
    null, cross, a = empty((m, m)), zeros((m, C)), zeros((m, C))
    for k in range(m):
        row = k if k == 0 else C + k
        for r in range(m):
            null[k, r] = fisher[row, r if r == 0 else C + r]
        for c in range(C):
            if not explained[c]:
                cross[k, c] = fisher[row, 1 + c]
    inverse, _, _ = inverse_of(null)
    left, whole = zeros(C + 1), zeros(C + 1)
    for c in range(C):
        for k in range(m):
            for r in range(m):
                a[k, c] += inverse[k, r] * cross[r, c]
    for c in range(C):
        for k in range(C):
            if not (explained[c] or explained[k]):
                own = rest = fisher[1 + c, 1 + k]
                for r in range(m):
                    rest -= cross[r, c] * a[r, k]
                if c == k:
                    left[c], whole[c] = rest, own
                left[C] += w[c] * rest * w[k]
                whole[C] += w[c] * own * w[k]
    return a, left, whole


@kept
def forms_of(layout, solved, a, w):
    """Values, inner and weights of levels of the scores of the types and of their sum.

    As in :class:`Forms`; the last column of H is the sum of the others.  A type's inner is
    e e' - a 1 1', of rank two by that column.
    """
    C = len(w)
    blocks, q = layout.component.shape
    value, inner, level = zeros(C + 1), zeros((C + 1, C, C)), zeros((C + 1, blocks, q))
    for c in range(C):
        inner[c, 0, 0], inner[c, 1, 1] = 1.0, -a[0, c]
        value[c] = solved.scores[c, c] - a[0, c] * solved.scores[C, C]
        for at in range(blocks):
            for k in range(q):
                if layout.component[at, k] >= 0:
                    level[c, at, k] = -a[1 + layout.component[at, k], c]
                    level[C, at, k] += w[c] * level[c, at, k]
                    value[c] += level[c, at, k] * solved.Zy[at, k] ** 2
        value[C] += w[c] * value[c]
        inner[C, c, c] += w[c]
        for k in range(C):
            for m in range(C):
                inner[C, k, m] -= w[c] * a[0, c]
    return value, inner, level


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
def _by_donor(found, R, inner):
    """With F M_0 F' = G G' in every donor, the eigenvalues (N, r) of G' D G, and Q G' (N, r, r).

    The rows of Q are eigenvectors, D is `inner`.
    """
    N, r = len(found.HB), len(R)
    sizes, turned = empty((N, r)), empty((N, r, r))
    one, half, least = empty((r, r)), empty(R.shape[1]), aligned((1, LANES))
    G, DG = aligned((r, r, LANES)), aligned((r, r, LANES))
    whole, axes = aligned((r, r, LANES)), aligned((r, r, LANES))
    fill(G, 0.0)
    fill(least, 1e-300)
    for first in range(0, N, LANES):
        stop = min(first + LANES, N)
        for i in range(first, stop):
            _sandwich(R, found.HM, i, half, one)
            # a donor without measured noise may have none at all: then this is rounding of F S F'
            size = 1e-300
            for a in range(r):
                scale = 0.0
                for c in range(len(half)):
                    scale += R[a, c] * R[a, c] * found.HS[i, c, c]
                size = max(size, one[a, a], scale)
            least[0, i - first] = 1e-3 * _ROUNDING * size
            for a in range(r):
                for b in range(r):
                    G[a, b, i - first] = one[a, b] + (_ROUNDING * size if a == b else 0.0)
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
                for c in range(b + 1):
                    total += load(G, (b, c)) * load(axes, (a, c))
                store(DG, (a, b), total)
        for i in range(first, stop):
            for a in range(r):
                sizes[i, a] = whole[a, a, i - first]
                for b in range(r):
                    turned[i, a, b] = DG[a, b, i - first]
    return sizes, turned


@called
def _law_of(layout, found, zero, R, inner, gain, level):
    """The law of the form with Delta_i = H_i R' D R H_i', D `inner`, levels weighing `level`.

    In a donor F = R H_i': with F M_0 F' = G G' its part of Delta M has the eigenvalues l of
    G' D G = Q' diag(l) Q, and 2 s F'(D^-1 - 2 s F M_0 F')^-1 F between columns of L is
    2 s D + 4 s^2 c c' / (1 - 2 s l) with c = Q G' D F L.
    """
    (N, C, wide), k = found.HB.shape, layout.columns.shape[1]
    r = len(R)
    blocks, q = gain.shape
    mine = k - found.fixed.shape[1] + 2 * q
    values, vectors = empty(N * r), empty((N * r, max(mine + zero.last.shape[1], wide)))
    linear, whole = zeros((blocks, found.fixed.shape[1], 2 * q)), zeros(zero.whole.shape)
    FL, DFL = empty((r, wide)), empty((r, wide))
    both, levels = zeros((k, wide)), empty((mine, wide))
    sizes, turned = _by_donor(found, R, inner)
    largest = 0.0
    for i in range(N):
        for a in range(r):
            largest = max(largest, abs(sizes[i, a]))
    start = np.empty(len(layout.cell), dtype=np.int64)
    start[0] = j = 0
    for cell in range(len(layout.columns)):
        fill(levels, 0.0)
        for i in range(layout.cell[cell], layout.cell[cell + 1]):
            for a in range(r):
                for at in range(0, wide, POINTS):
                    store(FL, (a, at), few(0.0))
                    store(DFL, (a, at), few(0.0))
                for c in range(C):
                    if R[a, c] != 0.0:
                        for at in range(0, wide, POINTS):
                            own = R[a, c] * load_few(found.HB, (i, c, at))
                            store(FL, (a, at), load_few(FL, (a, at)) + own)
            for a in range(r):
                for c in range(r):
                    if inner[a, c] != 0.0:
                        for at in range(0, wide, POINTS):
                            own = inner[a, c] * load_few(FL, (c, at))
                            store(DFL, (a, at), load_few(DFL, (a, at)) + own)
            for b in range(mine):
                for at in range(0, k, POINTS):
                    total = load_few(levels, (b, at))
                    for a in range(r):
                        total += FL[a, b] * load_few(DFL, (a, at))
                    store(levels, (b, at), total)
            for at in range(0, k, POINTS):  # the lower triangle
                for b in range(max(at, mine), k):
                    total = load_few(both, (b, at))
                    for a in range(r):
                        total += FL[a, b] * load_few(DFL, (a, at))
                    store(both, (b, at), total)
            for a in range(r):
                if not abs(sizes[i, a]) >= _NOTHING * largest:
                    continue  # a donor has not all types
                values[j] = sizes[i, a]
                for at in range(0, wide, POINTS):
                    total = few(0.0)
                    for b in range(r):
                        total += turned[i, a, b] * load_few(DFL, (b, at))
                    store(vectors, (j, at), total)
                for b in range(k, vectors.shape[1]):
                    vectors[j, b] = 0.0
                j += 1
        start[cell + 1] = j
        at = layout.block[layout.cell[cell]]
        for a in range(mine):
            for c in range(a, k):
                down, along = layout.columns[cell, a], layout.columns[cell, c]
                linear[at, max(down, along), min(down, along)] += levels[a, c]
    for a in range(len(whole)):
        for c in range(a + 1):
            whole[a, c] = both[mine + a, mine + c]
    return Law(
        values[:j], vectors[:j], start, layout.columns, layout.block[layout.cell[:-1]],
        found.fixed, linear, whole, gain, level, zero,
    )  # fmt: skip


@kept
def law_of(layout, found, R, inner, gain, level):
    """:func:`_law_of`, outside of compiled code."""
    return _law_of(layout, found, zero_of(found.fixed, gain), R, inner, gain, level)


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


@kept_exact
def tails_of(layout, found, gain, forms, least, above):
    """Logarithms of upper tails of the scores of the types and their sum, means and variances.

    (C + 1, 3), and the logarithm of their Cauchy combination.  `forms` is a :class:`Forms`, `least`
    (C + 1,) and `above` are those of :func:`~ctmm_formula.inference.tails.tail`; nothing is known
    where `least` is NaN.  Where the combination is not above either, and not of one p value alone,
    all tails have all digits.
    """
    out = np.full((len(forms.value), 3), math.nan)
    combined, zero = math.nan, zero_of(found.fixed, gain)
    sure = np.zeros(len(out), dtype=np.bool_)
    for again in range(2):
        for d in range(len(out)):
            if math.isnan(least[d]) or sure[d]:
                continue
            r = forms.rank[d]
            law = _law_of(
                layout, found, zero, forms.R[d, :r], forms.inner[d, :r, :r], gain, forms.level[d]
            )
            to = above if again == 0 else 0.0
            # one by one: assigning a row compiles its message on shapes, for seconds
            out[d, 0], out[d, 1], out[d, 2], sure[d] = log_tail(
                forms.value[d], law, forms.more[d], least[d], _AGREE, to
            )
        combined = _with_sum(out[:, 0])
        if not _ALONE < combined < above:
            break
    return out, combined


@kept
def diagonals(layout, found, K, inverse, G, GX, components):
    """Diagonals of P h h' P for columns h of H, over donors, and of P Z_m Z_m' P, (C + Kr, n).

    With s the row's column of S, P has s - S Z K Z's - (S X - S Z K GX) x there, x = inverse
    (X's - GX' K Z's), of which other donors lack s and other blocks all but the last.
    """
    n, C = layout.H.shape
    b, N, d = layout.B.shape[1], len(layout.slot), layout.slot.shape[1]
    p, (blocks, q) = b - d, layout.component.shape
    LL, LX = zeros((C, blocks, q, q)), zeros((C, blocks, q, p))
    XX = zeros((C, p, p))
    hB = zeros((N, C, b))
    KX, left = empty(GX.shape), empty(GX.shape)
    for at in range(blocks):
        for k in range(q):
            for m in range(p):
                KX[at, k, m] = 0.0
                for r in range(q):
                    KX[at, k, m] += K[at, k, r] * GX[at, r, m]
        for k in range(q):
            for m in range(p):
                left[at, k, m] = GX[at, k, m]
                for r in range(q):
                    left[at, k, m] -= G[at, k, r] * KX[at, r, m]
    for i in range(N):
        at = layout.block[i]
        for c in range(C):
            for k in range(p):
                hB[i, c, d + k] = found.HB[i, c, 2 * d + p + k]
            for k in range(d):
                hB[i, c, k] = found.HB[i, c, d + k]
                if layout.slot[i, k] >= 0:
                    for m in range(p):
                        hB[i, c, d + m] -= hB[i, c, k] * KX[at, layout.slot[i, k], m]
        for c in range(C):
            for k in range(d):
                row = layout.slot[i, k]
                if row >= 0:
                    for m in range(d):
                        if layout.slot[i, m] >= 0:
                            LL[c, at, row, layout.slot[i, m]] += hB[i, c, k] * hB[i, c, m]
                    for m in range(p):
                        LX[c, at, row, m] += hB[i, c, k] * hB[i, c, d + m]
            for k in range(p):
                for m in range(p):
                    XX[c, k, m] += hB[i, c, d + k] * hB[i, c, d + m]
    ZX, whole = zeros((components, blocks, p, p)), zeros((components, p, p))
    for at in range(blocks):
        for k in range(q):
            m = layout.component[at, k]
            if m >= 0:
                for row in range(p):
                    for column in range(p):
                        both = left[at, k, row] * left[at, k, column]
                        ZX[m, at, row, column] += both
                        whole[m, row, column] += both
    out = zeros((C + components, n))
    zs, v, x, rest = empty(q), empty(q), empty(p), empty(p)
    for i in range(N):
        at = layout.block[i]
        for a in range(layout.ptr[i], layout.ptr[i + 1]):
            for k in range(q):
                zs[k] = 0.0
            for k in range(d):
                if layout.slot[i, k] >= 0:
                    zs[layout.slot[i, k]] = found.SB[a, k]
            for k in range(q):
                v[k] = 0.0
                for r in range(q):
                    v[k] += K[at, k, r] * zs[r]
            for k in range(p):
                rest[k] = found.SB[a, d + k]
                for r in range(q):
                    rest[k] -= KX[at, r, k] * zs[r]
            for k in range(p):
                x[k] = 0.0
                for m in range(p):
                    x[k] += inverse[k, m] * rest[m]
            for c in range(C):
                own, cross = found.SH[a, c], 0.0
                for k in range(d):
                    if layout.slot[i, k] >= 0:
                        cross += hB[i, c, k] * v[layout.slot[i, k]]
                for k in range(p):
                    cross += hB[i, c, d + k] * x[k]
                total = own * (own - 2.0 * cross)
                for k in range(q):
                    for m in range(q):
                        total += v[k] * LL[c, at, k, m] * v[m]
                    for m in range(p):
                        total += 2.0 * v[k] * LX[c, at, k, m] * x[m]
                for k in range(p):
                    for m in range(p):
                        total += x[k] * XX[c, k, m] * x[m]
                out[c, a] = total
            for k in range(q):
                m = layout.component[at, k]
                if m >= 0:
                    total = zs[k]
                    for r in range(q):
                        total -= G[at, k, r] * v[r]
                    for r in range(p):
                        total -= left[at, k, r] * x[r]
                    out[C + m, a] += total * total
            for m in range(components):
                for row in range(p):
                    for column in range(p):
                        others = whole[m, row, column] - ZX[m, at, row, column]
                        out[C + m, a] += x[row] * others * x[column]
    return out
