"""What score tests sum over donors, compiled: cross products of a null, and what P is made of.

Under the null Sigma_i = H_i A H_i' + diag(w) for donor i, with levels Z of random effects and fixed
effects X between donors.  S = Sigma_i^-1, and M_0 = S (Sigma_i + E) S = S + S E S where
the measured noise has E = diag(nu - w) beyond the working noise.  All that a form needs of a donor
are products of H_i and B_i = [Z_i, X_i] by S and M_0, whatever the direction.  Beside it

    P = S - S B K B'S,   K = (B'S B + G^-1)^-1,   G the variances of levels, no bound for X

which is taken apart: levels of a block by themselves, then x = root'(X - K_Z Z)'S s for what is
left of the fixed effects, root root' = (X'S X without the levels)^-1.

Donors go through in tiles, LANES of them at once (:mod:`ctmm_formula.engine.lanes`).  With
A = L'L and v = w^-1/2 H_i l for the rows l of L, one after the other,

    (1 + v v')^-1/2 = 1 - c v v',   c = 1 / (root (1 + root)),   root = (1 + v'v)^1/2

turns what is left, v among it, so that no covariance is ever made or factored.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple, cast

import numpy as np

from ..engine.kernels import _inner, empty, fill, zeros
from ..engine.lanes import POINTS, aligned, load, root, spread, store, total
from ..engine.model import LANES, Model, from_tiles, in_lanes, tile
from ..engine.options import called, inlined, kept
from ..engine.references import held
from .cumulants import inverse_of

_ROUNDING = 1e-15  # of what a pivot was
NOTHING = 1e-8  # share of a direction's information that the null's components leave
SILENT = 1e-9  # of the variance by the working noise: what is left is rounding


class Layout(NamedTuple):
    """Rows in use, donors in order of their blocks, and in a block of the levels they touch.

    n rows, N donors, b = d + p columns: weights of the at most d levels of a donor, fixed effects.

    Attributes
    ----------
    rows : int ndarray, shape (n,)
        Which rows of the model.
    ptr : int ndarray, shape (N + 1,)
    design : ndarray, shape (T, C + b, m, LANES)
        [H, B] of the rows, in :class:`~ctmm_formula.engine.model.Tiles` of the donors.
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
    design: np.ndarray
    slot: np.ndarray
    block: np.ndarray
    cell: np.ndarray
    columns: np.ndarray
    component: np.ndarray


class Products(NamedTuple):
    """Cross products of donors and blocks under a null; k = 2 b columns as in :class:`Layout`.

    HS, HM (N, C, C) by S and M_0; HB (N, C, k), and zeros for whole lanes of fixed effects;
    Hy (N, C) by S; fixed (blocks, W, W) as in :class:`.cumulants.Law`; Zy (blocks, q), Xy (p,)
    by S; packed (T, pairs, LANES), products of columns of [H, B, y] by S in the tiles of the
    layout, of column j and k <= j at j (j + 1) / 2 + k; columns (T, C + b, m, LANES), S [H, B]
    there, if asked for.
    """

    HS: np.ndarray
    HM: np.ndarray
    HB: np.ndarray
    Hy: np.ndarray
    fixed: np.ndarray
    Zy: np.ndarray
    Xy: np.ndarray
    packed: np.ndarray
    columns: np.ndarray


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


class Through(NamedTuple):
    """What P takes through levels and fixed effects, in E directions: C columns h of H, components.

    For a column s of rows of one donor, with z = Z'S s and x = root'(X - K_Z Z)'S s, the sum over
    donors of (h'P s)^2, or over a component's levels of (z'P s)^2, is

        z'inner_e z + 2 z'outer_e x + x'fixed_e x,

    and h'S s (h'S s - 2 z_h'K z - 2 x_h'x) of the donor itself.

    inner (E, blocks, q, q); outer (E, blocks, q, p); fixed (E, p, p); KX (blocks, q, p); root
    (p, p).
    """

    inner: np.ndarray
    outer: np.ndarray
    fixed: np.ndarray
    KX: np.ndarray
    root: np.ndarray


class Efficient(NamedTuple):
    """What the null leaves of the scores of C types and of their sum, beside `through`.

    a (1 + Kr, C) parts of the null's components in the scores; left and whole (C + 1,) information
    that is left and that there was.
    """

    a: np.ndarray
    left: np.ndarray
    whole: np.ndarray
    through: Through


class Memory(NamedTuple):
    """What there is of a null, and its efficient scores of C types and of their sum.

    value (C + 1,), inner (C + 1, C, C) and level (C + 1, blocks, q) of the forms, see
    :class:`~ctmm_formula.inference.score_law.Forms`; least (C + 1,) variances that are none of
    rounding, NaN where a score has nothing left: by the information that the null's components
    leave; four times that is the variance, were the working noise that of the data.
    """

    found: Products
    solved: Solved
    efficient: Efficient
    value: np.ndarray
    inner: np.ndarray
    level: np.ndarray
    least: np.ndarray


def lay_out(model: Model, H: np.ndarray) -> Layout:
    """The layout of a model's rows in use, with H (n, C) in the place of its own."""
    b = model.blocks
    p = b.p
    used = np.flatnonzero(model.active)
    # without levels donors have only fixed effects in common: one block
    block = np.zeros(len(used), dtype=np.int64)
    if model.random:
        own = model.donor_block[used]
        block[1:] = np.cumsum(own[1:] != own[:-1])
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
    layout = Layout(
        rows, ptr, tile(ptr).put(np.hstack([H, Z, model.Q])[rows]), slot, block, cell,
        np.ascontiguousarray(np.hstack([own, q + own, fixed])), component,
    )  # fmt: skip
    return cast(Layout, held(layout))


_KEPT = threading.local()


def memory_for(layout: Layout) -> tuple[Products, Solved]:
    """Memory of what :func:`sums_of` finds."""
    (N, d), (T, width, m, _) = layout.slot.shape, layout.design.shape
    (blocks, q), b = layout.component.shape, layout.columns.shape[1] // 2
    C, p = width - b, b - d
    # fixed effects by whole lanes, wherever they begin
    wide = -(-(2 * d - (-2 * p // POINTS) * POINTS) // POINTS) * POINTS
    pairs, columns = in_lanes(T, (width + 1) * (width + 2) // 2), in_lanes(T, width, m)
    room, W = np.empty, 2 * (q + p)
    products = Products(
        room((N, C, C)), room((N, C, C)), np.zeros((N, C, wide)), room((N, C)),
        room((blocks, W, W)), room((blocks, q)), room(p), pairs, columns,
    )  # fmt: skip
    solved = Solved(
        room((blocks, q)), room((blocks, q, q)), room((blocks, q, p)), room((blocks, q, q)),
        room((p, p)), room((N, C)), room((C, C)), room((blocks, q)),
    )  # fmt: skip
    return products, solved


def score_memory(layout: Layout, components: int) -> Memory:
    """Memory of what :func:`scores_of` finds under a null of so many variance components."""
    found, solved = memory_for(layout)
    C, p, (blocks, q) = found.Hy.shape[1] - 1, len(found.Xy), layout.component.shape
    E, D, room = C + components, C + 1, np.empty
    through = Through(
        room((E, blocks, q, q)), room((E, blocks, q, p)), room((E, p, p)), room((blocks, q, p)),
        room((p, p)),
    )  # fmt: skip
    left = Efficient(room((components, C)), room(D), room(D), through)
    forms = room(D), np.zeros((D, C, C)), room((D, blocks, q))
    return Memory(found, solved, left, *forms, room(D))


def memory_of_thread(layout: Layout, components: int) -> tuple[Memory, Products]:
    """The same, and its products, for one response after the other, there until the next.

    Taken from the system for every response, its pages would cost as much as what is done there.
    """
    # types and fixed effects apart: the design has their sum only
    shapes = (
        layout.design.shape, layout.slot.shape, layout.columns.shape[1], layout.component.shape,
        components,
    )  # fmt: skip
    if getattr(_KEPT, "shapes", None) != shapes:
        memory = score_memory(layout, components)
        _KEPT.memory, _KEPT.shapes = (held(memory), held(memory.found)), shapes
    found: tuple[Memory, Products] = _KEPT.memory
    return found


def _levels(model: Model, used: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels of donors numbered within their blocks (N, d), and their components (blocks, q)."""
    level = model.blocks.level[used] if model.random else np.empty((len(used), 0), dtype=np.int64)
    there, n_blocks = level >= 0, int(block.max()) + 1
    block_of_level = np.full(len(model.blocks.level_comp) + 1, -1)  # the last for no level
    block_of_level[np.where(there, level, -1)] = np.where(there, block[:, None], -1)
    found = np.flatnonzero(block_of_level >= 0)  # in the order of their blocks
    own = block_of_level[found]
    number = np.arange(len(found)) - np.searchsorted(own, np.arange(n_blocks))[own]
    number_of_level = np.full(len(block_of_level), -1)
    number_of_level[found] = number
    component = np.full((n_blocks, int(number.max(initial=-1)) + 1), -1)
    component[own, number] = model.blocks.level_comp[found]
    return number_of_level[level], component


@called
def root_of(A, out):
    """Lower triangular `out` (n, n) with A = out out', columns of 0 for what is rounding."""
    n = len(A)
    for a in range(n):
        for b in range(n):
            value = A[a, b]
            for c in range(min(a, b)):
                value -= out[a, c] * out[b, c]
            if a == b:
                out[a, a] = math.sqrt(value) if value > _ROUNDING * A[a, a] else 0.0
            elif b < a:
                out[a, b] = value / out[b, b] if out[b, b] > 0.0 else 0.0
            else:
                out[a, b] = 0.0


@inlined
def _turn(v, r, size, V, j):
    """Column j <- (1 + v v')^-1/2 column, for v = v[r] (m, LANES), its c at `size`."""
    along = load(v, (r, 0)) * load(V, (j, 0))
    for a in range(1, V.shape[1]):
        along += load(v, (r, a)) * load(V, (j, a))
    along = along * load(size, r)
    for a in range(V.shape[1]):
        store(V, (j, a), load(V, (j, a)) - along * load(v, (r, a)))


@called
def _products(layout, loads, w, excess, y, found, columns_too):
    """Cross products under a null, see :func:`sums_of`."""
    T, width, m, _ = layout.design.shape
    (R, C), (N, d) = loads.shape, layout.slot.shape
    p = width - C - d
    fill(found.Zy, 0.0)
    for at in range(len(found.fixed)):
        fill(found.fixed[at], 0.0)
    for k in range(p):
        found.Xy[k] = 0.0
    V, v = aligned((width + 1, m, LANES)), aligned((R, m, LANES))
    weight, beyond, own = aligned((m, LANES)), aligned((m, LANES)), aligned((m, LANES))
    size, by_M = aligned((R, LANES)), aligned((found.packed.shape[1], LANES))
    cell = 0
    for t in range(T):
        S, by_S = found.columns[t if columns_too else 0], found.packed[t]
        first, stop = t * LANES, min(t * LANES + LANES, N)
        fill(weight, 0.0)
        fill(beyond, 0.0)
        fill(V[width], 0.0)
        for i in range(first, stop):
            for row in range(layout.ptr[i], layout.ptr[i + 1]):
                a = row - layout.ptr[i]
                weight[a, i - first] = 1.0 / math.sqrt(w[row])
                beyond[a, i - first] = excess[row]
                V[width, a, i - first] = y[row]
        for j in range(width + 1):
            for a in range(m):
                row = load(layout.design, (t, j, a)) if j < width else load(V, (j, a))
                store(V, (j, a), row * load(weight, a))
        for r in range(R):
            for a in range(m):
                row = spread(0.0)
                for c in range(C):
                    if loads[r, c] != 0.0:
                        row += loads[r, c] * load(V, (c, a))
                store(v, (r, a), row)
            for s in range(r):
                _turn(v, s, size, v, r)
            length = root(1.0 + _inner(v, r, r))
            store(size, r, 1.0 / (length * (1.0 + length)))
        for j in range(width + 1):
            for r in range(R):
                _turn(v, r, size, V, j)
        for j in range(width):
            for a in range(m):
                store(S, (j, a), load(V, (j, a)))
            for s in range(R):
                _turn(v, R - 1 - s, size, S, j)
            for a in range(m):
                store(S, (j, a), load(S, (j, a)) * load(weight, a))
        pair = 0
        for j in range(width + 1):
            if j < width:
                for a in range(m):
                    store(own, a, load(S, (j, a)) * load(beyond, a))
            for k in range(min(j + 1, width)):
                product = _inner(V, j, k)
                store(by_S, pair, product)
                if j < width:
                    for a in range(m):
                        product += load(own, a) * load(S, (k, a))
                    store(by_M, pair, product)
                pair += 1
        for i in range(first, stop):
            _take(by_S, i - first, C, d, p, found.HS[i], found.HB[i], d, 2 * d + p)
            _take(by_M, i - first, C, d, p, found.HM[i], found.HB[i], 0, 2 * d)
            _take_response(layout, by_S, i, i - first, found.Hy, found.Zy, found.Xy)
        _take_fixed(layout, first, stop, cell, C, by_S, by_M, found.fixed)
        while layout.cell[cell + 1] < stop:
            cell += 1


@called
def _take(packed, lane, C, d, p, HH, HB, of_Z, of_X):
    """H'H (C, C) and columns of H'B of a donor from all pairs of columns of [H, Z, X]."""
    pair = 0
    for j in range(C):
        for k in range(j + 1):
            HH[j, k] = HH[k, j] = packed[pair, lane]
            pair += 1
    for j in range(d + p):
        for k in range(C):
            HB[k, of_Z + j if j < d else of_X + j - d] = packed[pair + k, lane]
        pair += C + j + 1


@called
def _take_response(layout, packed, i, lane, Hy, Zy, Xy):
    """Products of a donor's columns with y, which are the last of the pairs."""
    C, d = Hy.shape[1], layout.slot.shape[1]
    pair = (C + d + len(Xy)) * (C + d + len(Xy) + 1) // 2
    for k in range(C):
        Hy[i, k] = packed[pair + k, lane]
    for k in range(d):
        if layout.slot[i, k] >= 0:
            Zy[layout.block[i], layout.slot[i, k]] += packed[pair + C + k, lane]
    for k in range(len(Xy)):
        Xy[k] += packed[pair + C + d + k, lane]


@called
def _take_fixed(layout, first, stop, cell, C, by_S, by_M, fixed):
    """Products of columns of B, of a tile of donors that begins in a cell."""
    d = layout.slot.shape[1]
    b = layout.columns.shape[1] // 2
    i = first
    while i < stop:
        last = min(layout.cell[cell + 1], stop)
        at = layout.block[i]
        for j in range(b):
            for k in range(j + 1):
                pair = (C + j) * (C + j + 1) // 2 + C + k
                S, M = 0.0, 0.0
                for lane in range(i - first, last - first):
                    S += by_S[pair, lane]
                    M += by_M[pair, lane]
                for swap in range(1 if j == k else 2):
                    down, along = (j, k) if swap == 0 else (k, j)
                    row = layout.columns[cell, down if down < d else d + down]
                    column = along if along < d else d + along
                    other = layout.columns[cell, column + (d if along < d else b - d)]
                    fixed[at, row, layout.columns[cell, column]] += M
                    fixed[at, row, other] += S
                    fixed[at, other, row] += S
        i = last
        cell += 1


@called
def _solve(layout, found, variances, solved):
    """:class:`Solved` under variances (Kr,) of the random effects."""
    (blocks, q), (N, d) = layout.component.shape, layout.slot.shape
    C, p = found.HB.shape[1], len(found.Xy)
    gain, G, GX, K = solved.gain, solved.G, solved.GX, solved.K
    KX, v = zeros((blocks, q, p)), zeros((blocks, q))
    XX, right, inner = zeros((p, p)), found.Xy.copy(), empty((q, q))
    for at in range(blocks):
        for k in range(q):
            there = layout.component[at, k] >= 0
            gain[at, k] = variances[layout.component[at, k]] if there else 0.0
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
            solved.inverse[k, m] = inverse[k, m]
            b[k] += inverse[k, m] * right[m]
    Zy, pull, scores = solved.Zy, solved.pull, solved.scores
    for at in range(blocks):
        for k in range(q):
            Zy[at, k] = found.Zy[at, k]
            for m in range(p):
                v[at, k] -= KX[at, k, m] * b[m]
        for k in range(q):
            for m in range(q):
                Zy[at, k] -= G[at, k, m] * v[at, m]
            for m in range(p):
                Zy[at, k] -= GX[at, k, m] * b[m]
    fill(scores, 0.0)
    for i in range(N):
        for c in range(C):
            pull[i, c] = found.Hy[i, c]
            for k in range(d):
                if layout.slot[i, k] >= 0:
                    pull[i, c] -= found.HB[i, c, d + k] * v[layout.block[i], layout.slot[i, k]]
            for k in range(p):
                pull[i, c] -= found.HB[i, c, 2 * d + p + k] * b[k]
        for c in range(C):
            for k in range(C):
                scores[c, k] += pull[i, c] * pull[i, k]


@called
def _is_finite(A):
    """Whether all entries of A (n, m) are."""
    for row in range(A.shape[0]):
        for column in range(A.shape[1]):
            if not math.isfinite(A[row, column]):
                return False
    return True


@kept
def _sums_of(layout, loads, variances, w, excess, y, found, solved):
    """See :func:`sums_of`: whatever comes back from compiled code by itself takes a microsecond."""
    _products(layout, loads, w, excess, y, found, True)
    _solve(layout, found, variances, solved)
    return _is_finite(solved.inverse)


def sums_of(
    layout: Layout,
    loads: np.ndarray,
    variances: np.ndarray,
    w: np.ndarray,
    excess: np.ndarray,
    y: np.ndarray,
) -> tuple[Products, Solved]:
    """:class:`Products` and :class:`Solved` under a null.

    Parameters
    ----------
    layout : Layout
    loads : (r, C), rows whose products add up to A
    variances : (Kr,) of the random effects
    w, excess, y : (n,) working noise, what the measured noise has beyond it, and residuals, by row
        of the layout

    Raises
    ------
    numpy.linalg.LinAlgError
    """
    memory = memory_for(layout)
    if not _sums_of(layout, loads, variances, w, excess, y, *memory):
        raise np.linalg.LinAlgError("Singular matrix")
    return memory


@called
def _turned(rest, z, KX, root, x, c):
    """x[c] (p, LANES) = root'(rest - K_Z z[c]) for `rest` (p, LANES), changed, and z[c] (d, LANES).

    KX (d, p, LANES).
    """
    p = len(root)
    for k in range(p):
        for r in range(z.shape[1]):
            store(rest, k, load(rest, k) - load(KX, (r, k)) * load(z, (c, r)))
    for k in range(p):
        along = root[k, k] * load(rest, k)
        for r in range(k + 1, p):
            along += root[r, k] * load(rest, r)
        store(x, (c, k), along)


@called
def _near(layout, of_levels, first, stop, out):
    """Rows (blocks, q, p) at the levels of a tile's donors, (d, p, LANES), or 0."""
    for k in range(out.shape[0]):
        for lane in range(LANES):
            row = layout.slot[first + lane, k] if first + lane < stop else -1
            for r in range(out.shape[1]):
                there = of_levels[layout.block[first + lane], row, r] if row >= 0 else 0.0
                out[k, r, lane] = there


@called
def _near_pairs(layout, of_levels, first, stop, out):
    """Entries (blocks, q, q) at the levels of a tile's donors, (d, d, LANES)."""
    d = len(out)
    for k in range(d):
        for r in range(d):
            for lane in range(LANES):
                out[k, r, lane] = 0.0
                if first + lane < stop:
                    row, column = layout.slot[first + lane, k], layout.slot[first + lane, r]
                    if row >= 0 and column >= 0:
                        out[k, r, lane] = of_levels[layout.block[first + lane], row, column]


@called
def _add_donors(layout, found, K, KX, root, inner, outer, fixed, fisher):
    """Sums over donors of z z', z x' and x x' of the columns of H, and their own information."""
    (N, C), d, p = found.Hy.shape, layout.slot.shape[1], len(root)
    z, Kz, x = aligned((C, d, LANES)), aligned((C, d, LANES)), aligned((C, p, LANES))
    near_K, near_KX = aligned((d, d, LANES)), aligned((d, p, LANES))
    rest, sums = aligned((p, LANES)), aligned((C * (C + 1) // 2, LANES))
    squares = aligned((C, p * (p + 1) // 2, LANES))
    fill(sums, 0.0)
    for c in range(C):
        for k in range(squares.shape[1]):
            store(squares, (c, k), spread(0.0))
    for t in range(len(found.packed)):
        first, stop = t * LANES, min(t * LANES + LANES, N)
        _near_pairs(layout, K, first, stop, near_K)
        _near(layout, KX, first, stop, near_KX)
        for c in range(C):
            for k in range(d):
                store(z, (c, k), load(found.packed, (t, _pair(C + k, c))))
            for k in range(p):
                store(rest, k, load(found.packed, (t, _pair(C + d + k, c))))
            _turned(rest, z, near_KX, root, x, c)
            for k in range(d):
                total_k = spread(0.0)
                for r in range(d):
                    total_k += load(near_K, (k, r)) * load(z, (c, r))
                store(Kz, (c, k), total_k)
            for k in range(p):
                for r in range(k + 1):
                    at = _pair(k, r)
                    more = load(x, (c, k)) * load(x, (c, r))
                    store(squares, (c, at), load(squares, (c, at)) + more)
            for k in range(c + 1):
                through = spread(0.0)
                for r in range(d):
                    through += load(z, (k, r)) * load(Kz, (c, r))
                for r in range(p):
                    through += load(x, (k, r)) * load(x, (c, r))
                own = load(found.packed, (t, _pair(c, k)))
                more = own * (own - 2.0 * through)
                store(sums, _pair(c, k), load(sums, _pair(c, k)) + more)
        for i in range(first, stop):
            at = layout.block[i]
            for c in range(C):
                for k in range(d):
                    row = layout.slot[i, k]
                    if row >= 0:
                        for r in range(d):
                            if layout.slot[i, r] >= 0:
                                both = z[c, k, i - first] * z[c, r, i - first]
                                inner[c, at, row, layout.slot[i, r]] += both
                        for r in range(p):
                            outer[c, at, row, r] += z[c, k, i - first] * x[c, r, i - first]
    for c in range(C):
        for k in range(c + 1):
            fisher[c, k] += total(load(sums, _pair(c, k)))
        for k in range(p):
            for r in range(k + 1):
                fixed[c, k, r] = fixed[c, r, k] = total(load(squares, (c, _pair(k, r))))


@called
def _pair(j, k):
    """Where j >= k lie among pairs."""
    return j * (j + 1) // 2 + k


@called
def _add_levels(layout, solved, root, at, C, inner, outer, fixed, fisher):
    """The same of the levels of a block, by component, into rows from C on.

    With N = 1 - G K a level has z'P s = (N Z'S s)_z - (N GX root x)_z in its own block, and the
    second alone in others.
    """
    q, p = layout.component.shape[1], len(root)
    N, whole, left = empty((q, q)), zeros((q, q)), zeros((q, p))
    NX = zeros((q, p))
    for k in range(q):
        for m in range(q):
            N[k, m] = 1.0 if k == m else 0.0
            for r in range(q):
                N[k, m] -= solved.G[at, k, r] * solved.K[at, r, m]
    for k in range(q):
        for r in range(q):
            for m in range(q):
                whole[k, m] += N[k, r] * solved.G[at, r, m]
            for m in range(p):
                NX[k, m] += N[k, r] * solved.GX[at, r, m]
        for r in range(p):
            for m in range(r + 1):
                left[k, m] += NX[k, r] * root[r, m]
    for k in range(q):
        e = layout.component[at, k]
        if e < 0:
            continue
        for m in range(p):
            for r in range(p):
                fixed[C + e, m, r] += left[k, m] * left[k, r]
        for m in range(q):
            for r in range(q):
                inner[C + e, at, m, r] += N[k, m] * N[k, r]
            for r in range(p):
                outer[C + e, at, m, r] -= N[k, m] * left[k, r]
            f = layout.component[at, m]
            if f >= 0:
                through = 0.0
                for r in range(p):
                    through += left[k, r] * left[m, r]
                fisher[C + e, C + f] += whole[k, m] * (whole[k, m] - 2.0 * through)


@called
def _add_inner(A, B, weight, out):
    """out[e, c] += weight A_e B_c for rows of A (E, l) and B (C, l), c <= e."""
    for e in range(len(A)):
        for c in range(min(e + 1, len(B))):
            along = 0.0
            for k in range(A.shape[1]):
                along += A[e, k] * B[c, k]
            out[e, c] += weight * along


@called
def _information(layout, found, solved, through):
    """tr(P D_e P D_f) of the directions (E, E), and :class:`Through`."""
    C, (blocks, q), p = found.Hy.shape[1], layout.component.shape, len(found.Xy)
    KX, root = through.KX, through.root
    inner, outer, fixed = through.inner, through.outer, through.fixed
    E = len(fixed)
    root_of(solved.inverse, root)
    sums, sums_x = zeros((C, blocks, q, q)), zeros((C, blocks, q, p))
    fisher, half = zeros((E, E)), empty(q)
    for e in range(E):
        fill(fixed[e], 0.0)
        for at in range(blocks):
            fill(inner[e, at], 0.0)
            fill(outer[e, at], 0.0)
    for at in range(blocks):
        fill(KX[at], 0.0)
        for k in range(q):
            for r in range(q):
                for m in range(p):
                    KX[at, k, m] += solved.K[at, k, r] * solved.GX[at, r, m]
    _add_donors(layout, found, solved.K, KX, root, sums, sums_x, fixed, fisher)
    for at in range(blocks):
        _add_levels(layout, solved, root, at, C, inner, outer, fixed, fisher)
        for c in range(C):
            for k in range(q):
                for m in range(q):
                    half[m] = 0.0
                for r in range(q):
                    for m in range(q):
                        half[m] += solved.K[at, k, r] * sums[c, at, r, m]
                    for m in range(p):
                        outer[c, at, k, m] += solved.K[at, k, r] * sums_x[c, at, r, m]
                for r in range(q):
                    for m in range(q):
                        inner[c, at, k, m] += half[r] * solved.K[at, r, m]
    _add_inner(inner.reshape(E, blocks * q * q), sums.reshape(C, blocks * q * q), 1.0, fisher)
    _add_inner(outer.reshape(E, blocks * q * p), sums_x.reshape(C, blocks * q * p), 2.0, fisher)
    _add_inner(fixed.reshape(E, p * p), fixed.reshape(E, p * p), 1.0, fisher)
    for e in range(E):
        for f in range(e):
            fisher[f, e] = fisher[e, f]
    return fisher


@called
def _efficient(fisher, explained, w, a, left, whole):
    """What the null's components leave of the scores of the types and of their sum.

    `fisher` (E, E) has the C types first, then what the null has; the types that fixed effects have
    `explained` (C,) have none; `w` (C,) weighs the sum.  For the others see :class:`Efficient`.
    """
    C = len(w)
    m = len(fisher) - C
    null, cross = empty((m, m)), zeros((m, C))
    for k in range(m):
        for r in range(m):
            null[k, r] = 0.5 * fisher[C + k, C + r]
        for c in range(C):
            if not explained[c]:
                cross[k, c] = 0.5 * fisher[C + k, c]
    inverse, _, _ = inverse_of(null)
    left[C] = whole[C] = 0.0
    for c in range(C):
        left[c] = whole[c] = 0.0
        for k in range(m):
            a[k, c] = 0.0
            for r in range(m):
                a[k, c] += inverse[k, r] * cross[r, c]
    for c in range(C):
        for k in range(C):
            if not (explained[c] or explained[k]):
                own = rest = 0.5 * fisher[c, k]
                for r in range(m):
                    rest -= cross[r, c] * a[r, k]
                if c == k:
                    left[c], whole[c] = rest, own
                left[C] += w[c] * rest * w[k]
                whole[C] += w[c] * own * w[k]


@called
def _forms(layout, solved, a, w, value, inner, level):
    """Values, inner and weights of levels of the scores of the types and of their sum.

    As in :class:`~ctmm_formula.inference.score_law.Forms`; the last column of H is the sum of the
    others.  A type's inner is e e' - a 1 1', of rank two by that column.
    """
    C = len(w)
    blocks, q = layout.component.shape
    value[C] = 0.0
    fill(inner[C], 0.0)
    fill(level[C], 0.0)
    for c in range(C):
        fill(level[c], 0.0)
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


@kept
def scores_of(layout, theta, w, nu, y, explained, weights, columns_too, memory):
    """Efficient scores of C types and of their sum, to `memory`, and whether there are any.

    Parameters
    ----------
    layout : Layout
        With all types together as one more column of H.
    theta : (1 + Kr,) of the null, the shared variance first
    w, nu, y : (n,) working and measured noise, and residuals, by row of the layout
    explained, weights : (C,) as for :func:`_efficient`
    columns_too : bool
        Whether :class:`Products` have `columns` of all tiles.
    """
    found, solved, parts, C = memory.found, memory.solved, memory.efficient, len(weights)
    loads, excess = zeros((1, C + 1)), empty(len(w))
    loads[0, C] = math.sqrt(theta[0])
    for row in range(len(w)):
        excess[row] = nu[row] - w[row]
    _products(layout, loads, w, excess, y, found, columns_too)
    _solve(layout, found, theta[1:], solved)
    if not _is_finite(solved.inverse):
        return False
    fisher = _information(layout, found, solved, parts.through)
    _efficient(fisher, explained, weights, parts.a, parts.left, parts.whole)
    _forms(layout, solved, parts.a, weights, memory.value, memory.inner, memory.level)
    for d in range(C + 1):
        there = parts.left[d] > NOTHING * parts.whole[d] and parts.whole[d] > 0.0
        memory.least[d] = 4.0 * SILENT * parts.left[d] if there else math.nan
    return _is_finite(parts.a)


@kept
def beyond_squares(layout, found, solved, efficient, w, excess):
    """2 sum_a (P Delta P)_aa^2 excess_a of the scores of the types and of their sum, (C + 1,).

    `excess` (n,) by row of the layout; `w` (C,) weighs the sum.
    """
    through = efficient.through
    C, (N, d), p = len(w), layout.slot.shape, len(through.root)
    E, m = len(through.fixed), layout.design.shape[2]
    out = zeros(C + 1)
    inner, outer = aligned((E, d, d, LANES)), aligned((E, d, p, LANES))
    z, Kz, x = aligned((C + 2, d, LANES)), aligned((C + 1, d, LANES)), aligned((C + 2, p, LANES))
    near_K, near_KX, rest = aligned((d, d, LANES)), aligned((d, p, LANES)), aligned((p, LANES))
    parts, sums, weight = aligned((E, LANES)), aligned((C + 1, LANES)), aligned((m, LANES))
    fill(sums, 0.0)
    row = C + 1  # the place of what the row has, after what all columns of H have
    for t in range(len(layout.design)):
        first, stop = t * LANES, min(t * LANES + LANES, N)
        fill(weight, 0.0)
        for i in range(first, stop):
            for a in range(layout.ptr[i], layout.ptr[i + 1]):
                weight[a - layout.ptr[i], i - first] = 2.0 * excess[a]
        _near_pairs(layout, solved.K, first, stop, near_K)
        _near(layout, through.KX, first, stop, near_KX)
        for e in range(E):
            _near_pairs(layout, through.inner[e], first, stop, inner[e])
            _near(layout, through.outer[e], first, stop, outer[e])
        for c in range(C + 1):
            for k in range(d):
                store(z, (c, k), load(found.packed, (t, _pair(C + 1 + k, c))))
            for k in range(p):
                store(rest, k, load(found.packed, (t, _pair(C + 1 + d + k, c))))
            _turned(rest, z, near_KX, through.root, x, c)
            for k in range(d):
                along = spread(0.0)
                for r in range(d):
                    along += load(near_K, (k, r)) * load(z, (c, r))
                store(Kz, (c, k), along)
        for a in range(m):
            for k in range(d):
                store(z, (row, k), load(found.columns, (t, C + 1 + k, a)))
            for k in range(p):
                store(rest, k, load(found.columns, (t, C + 1 + d + k, a)))
            _turned(rest, z, near_KX, through.root, x, row)
            for e in range(E):
                part = spread(0.0)
                for k in range(d):
                    along = spread(0.0)
                    for r in range(d):
                        along += load(inner, (e, k, r)) * load(z, (row, r))
                    for r in range(p):
                        along += 2.0 * load(outer, (e, k, r)) * load(x, (row, r))
                    part += along * load(z, (row, k))
                for k in range(p):
                    along = through.fixed[e, k, k] * load(x, (row, k))
                    for r in range(k):
                        along += 2.0 * through.fixed[e, k, r] * load(x, (row, r))
                    part += along * load(x, (row, k))
                if e <= C:
                    own = load(found.columns, (t, e, a))
                    along = spread(0.0)
                    for k in range(d):
                        along += load(Kz, (e, k)) * load(z, (row, k))
                    for k in range(p):
                        along += load(x, (e, k)) * load(x, (row, k))
                    part += own * (own - 2.0 * along)
                store(parts, e, part)
            all_types = spread(0.0)
            for c in range(C):
                part = load(parts, c)
                for k in range(E - C):
                    part -= efficient.a[k, c] * load(parts, C + k)
                all_types += w[c] * part
                store(sums, c, load(sums, c) + part * part * load(weight, a))
            store(sums, C, load(sums, C) + all_types * all_types * load(weight, a))
    for c in range(C + 1):
        out[c] = total(load(sums, c))
    return out
