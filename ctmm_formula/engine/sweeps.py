"""Fits and leave-one-out estimates from sums over units: the compiled loops.

With the sums of :mod:`ctmm_formula.engine.unit_sums` and K = root root' = (X'SX)^-1,

    beta  = K X'Sr
    q_f   = r'P Sigma_f P r,  F_fg = tr(P Sigma_f P Sigma_g),  h_f = tr(P Sigma_f P D)
    theta = (S F S')^-1 S (q - h),    P = S - S X K X'S

(S on the left and right of F takes components to factors.)  Turned by root, K is the identity:

    F_fg = trace_fg - 2 tr cross_fg + <square_f, square_g>
    q_f - h_f = excess_f + 2 tr noise_cross_f - <square_f, root'X'S D S X root>

Without a unit K is another: <K, cross_fg> of all units, which takes the matrices, less what the
unit itself has, turned by its own root, LANES units at once.  The jackknife at fixed weights costs
two more passes over the donors.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import numpy as np

from .block_sums import add_levels, clear, eliminate, make_levels, meet, take_levels
from .kernels import _inverse_root, cholesky, empty, zeros
from .lanes import aligned, load, root, spread, store, total
from .model import LANES, in_lanes
from .options import called, kept
from .symmetric import rotate
from .unit_sums import (
    Layout,
    Sums,
    add_donors,
    cross_products,
    effects_of,
    gather,
    make_effects,
    make_tile,
    parts,
    size_of,
)

DONE, COLLINEAR, CONFOUNDED, SINGULAR = 0, 1, 2, 3
"""How a fit ends: an estimate; X, or the moment matrix, lacks rank; a covariance is singular."""

_RANK = 1e-11  # smallest pivot of a matrix that has full rank, in units of its diagonal, or of
# what that would be without fixed effects
_NEAR = 8  # tiles at a time: what they hold of two factors stays in the nearest cache
_ALONE = 1e-9  # share of a pivot of X'SX that is left where a fixed effect rests on one unit


class State(NamedTuple):
    """A fit, its weights and its sums; filled by :func:`sweep`.

    theta, before (K,) estimate and the one that its weights are made of; beta (p,) fixed effects
    of r; F (K, K) moment matrix; A (C, C), g (Kr,) working covariance; root (p, p) with
    root root' = (X'SX)^-1; unit_gram, unit_noise (U, p, p), unit_score (U, p) each unit's X'SX,
    X'S D S X and X'Sr; solved (T, p + d, m, LANES) S X, and the donors' own Sigma_i^-1 Z.
    """

    theta: np.ndarray
    before: np.ndarray
    beta: np.ndarray
    F: np.ndarray
    A: np.ndarray
    g: np.ndarray
    root: np.ndarray
    unit_gram: np.ndarray
    unit_noise: np.ndarray
    unit_score: np.ndarray
    solved: np.ndarray


class Solution(NamedTuple):
    """Memory of an estimate, LANES in the last axis of all.

    turned (F + 1, p') root' square_f root, and last that of the noise, packed so that <A, B> is an
    inner product; trace (P,); Fisher (F, F); excess (F,); beta (p,) and theta (K,) out; across
    (K, F); F (K, K) out; low (K, K); size (K,) diagonal of F were there no fixed effects.
    """

    turned: np.ndarray
    trace: np.ndarray
    Fisher: np.ndarray
    excess: np.ndarray
    beta: np.ndarray
    theta: np.ndarray
    across: np.ndarray
    F: np.ndarray
    low: np.ndarray
    size: np.ndarray


class LeftOut(NamedTuple):
    """Memory of LANES sets of all units but one, LANES in the last axis of all.

    root (p, p) with root root' = K; low (p, p) for a triangle; K (p',) packed, twice what is off
    the diagonal; beta, rest (p,) and X'Sr; moved (p,) beta of all units less this one; noise (p, p)
    X'S D S X.
    """

    root: np.ndarray
    low: np.ndarray
    K: np.ndarray
    beta: np.ndarray
    rest: np.ndarray
    moved: np.ndarray
    noise: np.ndarray


class OneTile(NamedTuple):
    """Memory for a tile of donors of several units: out, the units' of each donor; flat, sums."""

    out: LeftOut
    flat: np.ndarray
    sums: Sums


_KEPT = threading.local()


def scratch(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Memory of :func:`sweep` that grows with donors, the same for every fit of a thread.

    Taken from the system for every fit, its pages would cost as much as what is done there.

    Returns
    -------
    ndarray, shape (2, T, c, c, LANES), for cross products; ndarray, shape (2, T, R, p, LANES)
    """
    T, c = layout.columns.shape[:2]
    shapes = (2, T, c, c, LANES), (2, T, layout.R, layout.p, LANES)
    sizes = [math.prod(shape) for shape in shapes]
    if len(getattr(_KEPT, "room", ())) < sum(sizes):
        _KEPT.room = in_lanes(sum(sizes) // LANES).ravel()
    first, second = _KEPT.room[: sizes[0]], _KEPT.room[sizes[0] : sum(sizes)]
    return first.reshape(shapes[0]), second.reshape(shapes[1])


def make_state(layout: Layout) -> State:
    """Memory of a fit."""
    K = len(layout.S)
    C, p, count = layout.H.shape[1], layout.p, layout.columns.shape[1]
    U = len(layout.level_start)
    return State(
        theta=np.zeros(K),
        before=np.zeros(K),
        beta=np.zeros(p),
        F=np.zeros((K, K)),
        A=np.zeros((C, C)),
        g=np.zeros(K - len(layout.basis)),
        root=np.zeros((p, p)),
        unit_gram=np.empty((U, p, p)),
        unit_noise=np.empty((U, p, p)),
        unit_score=np.empty((U, p)),
        solved=in_lanes(len(layout.columns), count - layout.R - 1, layout.columns.shape[2]),
    )


@called
def _make_solution(K, F, p):
    packed, pairs = p * (p + 1) // 2, F * (F + 1) // 2
    return Solution(
        aligned((F + 1, packed, LANES)), aligned((pairs, LANES)), aligned((F, F, LANES)),
        aligned((F, LANES)), aligned((p, LANES)), aligned((K, LANES)), aligned((K, F, LANES)),
        aligned((K, K, LANES)), aligned((K, K, LANES)), aligned((K, LANES)),
    )  # fmt: skip


@called
def _make_left_out(p):
    return LeftOut(
        aligned((p, p, LANES)), aligned((p, p, LANES)), aligned((p * (p + 1) // 2, LANES)),
        aligned((p, LANES)), aligned((p, LANES)), aligned((p, LANES)), aligned((p, p, LANES)),
    )  # fmt: skip


@called
def _finish(S, sol):
    """theta from what is turned and the rest of F and q - h; NaN where that is singular."""
    count, packed = len(sol.excess), sol.turned.shape[1]
    for f in range(count):
        s = load(sol.excess, f)
        for i in range(packed):
            s -= load(sol.turned, (f, i)) * load(sol.turned, (count, i))
        store(sol.excess, f, s)
        for h in range(f + 1):
            s = load(sol.Fisher, (f, h))
            for i in range(packed):
                s += load(sol.turned, (f, i)) * load(sol.turned, (h, i))
            store(sol.Fisher, (f, h), s)
            store(sol.Fisher, (h, f), s)
    _to_components(S, sol.trace, sol)
    _divide(sol)


@called
def _whole(sums, noise, root, sol):
    """What :func:`_finish` takes from the traces of all units; noise (p, p) X'S D S X."""
    count, p = len(sums.excess), len(noise)
    for f in range(count):
        store(sol.excess, f, spread(sums.excess[f, 0] + 2.0 * sums.noise_cross[f, 0, 0]))
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            store(sol.trace, pair, spread(sums.trace[pair, 0]))
            store(sol.Fisher, (f, h), spread(sums.trace[pair, 0] - 2.0 * sums.cross[pair, 0, 0]))
    i = 0
    for j in range(p):
        for k in range(j + 1):
            scale = 1.0 if j == k else math.sqrt(2.0)
            s = 0.0
            for a in range(j + 1):
                for b in range(k + 1):
                    s += root[a, j] * noise[a, b] * root[b, k]
            store(sol.turned, (count, i), spread(scale * s))
            for f in range(count):
                store(sol.turned, (f, i), spread(scale * sums.square[f, i, 0]))
            i += 1


@called
def _to_components(S, trace, sol):
    """F = S Fisher S', theta = S excess, size = diag(S trace S')."""
    K, count = S.shape
    for k in range(K):
        s = spread(0.0)
        for f in range(count):
            for h in range(f + 1):
                twice = S[k, f] * S[k, h] * (1.0 if f == h else 2.0)
                if twice != 0.0:  # as are most
                    s += twice * load(trace, f * (f + 1) // 2 + h)
        store(sol.size, k, s)
        s = spread(0.0)
        for f in range(count):
            s += S[k, f] * load(sol.excess, f)
        store(sol.theta, k, s)
        for h in range(count):
            s = spread(0.0)
            for f in range(count):
                if S[k, f] != 0.0:
                    s += S[k, f] * load(sol.Fisher, (f, h))
            store(sol.across, (k, h), s)
    for k in range(K):
        for i in range(K):
            s = spread(0.0)
            for h in range(count):
                if S[i, h] != 0.0:
                    s += S[i, h] * load(sol.across, (k, h))
            store(sol.F, (k, i), s)


@called
def _divide(sol):
    """theta <- F^-1 theta for positive definite F; NaN if F lacks rank."""
    K = len(sol.theta)
    for j in range(K):
        pivot = load(sol.F, (j, j))
        least = _RANK * load(sol.size, j)
        for k in range(j):
            f = load(sol.low, (j, k))
            pivot -= f * f
        scale = 1.0 / (root(pivot) + 0.0 * root(pivot - least))  # NaN below the least
        store(sol.low, (j, j), scale)
        for i in range(j + 1, K):
            s = load(sol.F, (i, j))
            for k in range(j):
                s -= load(sol.low, (i, k)) * load(sol.low, (j, k))
            store(sol.low, (i, j), s * scale)
    for i in range(K):
        s = load(sol.theta, i)
        for k in range(i):
            s -= load(sol.low, (i, k)) * load(sol.theta, k)
        store(sol.theta, i, s * load(sol.low, (i, i)))
    for i in range(K - 1, -1, -1):
        s = load(sol.theta, i)
        for k in range(i + 1, K):
            s -= load(sol.low, (k, i)) * load(sol.theta, k)
        store(sol.theta, i, s * load(sol.low, (i, i)))


@called
def _working(layout, theta, A, g):
    """Working covariance of these components: variances held >= 0, the rest positive semidefinite.

    A component whose basis matrix is no covariance belongs with all but the shared one: of their
    sum the negative eigenvalues are cut off.
    """
    C, K = len(A), len(layout.basis)
    rest, axes = zeros((C, C)), empty((C, C))
    joint = False
    for c in range(C):
        for e in range(C):
            A[c, e] = 0.0
    for k in range(K):
        alone = layout.variance[k]
        joint = joint or not alone
        for c in range(C):
            for e in range(C):
                if alone:
                    A[c, e] += max(theta[k], 0.0) * layout.basis[k, c, e]
                else:
                    rest[c, e] += theta[k] * layout.basis[k, c, e]
    if joint:
        rotate(rest, axes)
        for a in range(C):
            for c in range(C):
                for e in range(C):
                    A[c, e] += max(rest[a, a], 0.0) * axes[a, c] * axes[a, e]
    for k in range(len(g)):
        g[k] = max(theta[K + k], 0.0)


@called
def _root(gram, low, root):
    """root root' = gram^-1; False if gram lacks rank."""
    p = len(gram)
    for j in range(p):
        for k in range(p):
            low[j, k] = gram[j, k]
    if not cholesky(low, p):
        return False
    for j in range(p):
        if not low[j, j] * low[j, j] > _RANK * gram[j, j]:
            return False
    _inverse_root(low, p, root)
    return True


@called
def _without(first, used, state, gram, score, noise, out, sol, alone):
    """K, its root, beta and root' X'S D S X root of all units but one, for `used` of them.

    Where a fixed effect rests on the unit alone it is left out: alone (LANES,) bool.
    """
    p = len(gram)
    count = len(sol.turned) - 1
    for lane in range(LANES):
        u = first + min(lane, used - 1)
        alone[lane] = False
        for j in range(p):
            out.rest[j, lane] = score[j] - state.unit_score[u, j]
            for k in range(j + 1):
                out.low[j, k, lane] = gram[j, k] - state.unit_gram[u, j, k]
                left = noise[j, k] - state.unit_noise[u, j, k]
                out.noise[j, k, lane] = out.noise[k, j, lane] = left
    for j in range(p):  # Cholesky, with inverse pivots
        pivot = load(out.low, (j, j))
        for k in range(j):
            f = load(out.low, (j, k))
            pivot -= f * f
        store(out.low, (j, j), pivot)
        for lane in range(LANES):
            size, whole = out.low[j, j, lane], state.root[j, j]
            some = size * whole * whole > _ALONE
            out.low[j, j, lane] = 1.0 / math.sqrt(size) if some else 0.0
            alone[lane] = alone[lane] or not some
        scale = load(out.low, (j, j))
        for i in range(j + 1, p):
            s = load(out.low, (i, j))
            for k in range(j):
                s -= load(out.low, (i, k)) * load(out.low, (j, k))
            store(out.low, (i, j), s * scale)
    for c in range(p):
        for i in range(c, p):
            s = spread(1.0 if i == c else 0.0)
            for k in range(c, i):
                s -= load(out.low, (i, k)) * load(out.root, (c, k))
            store(out.root, (c, i), s * load(out.low, (i, i)))
    i = 0
    for j in range(p):
        for k in range(j + 1):
            s = spread(0.0)
            for a in range(j, p):
                s += load(out.root, (j, a)) * load(out.root, (k, a))
            store(out.K, i, s if j == k else 2.0 * s)
            i += 1
    for j in range(p):  # rest <- root' rest
        s = spread(0.0)
        for k in range(j + 1):
            s += load(out.root, (k, j)) * load(out.rest, k)
        store(sol.beta, j, s)
    for j in range(p):
        s = spread(0.0)
        for k in range(j, p):
            s += load(out.root, (j, k)) * load(sol.beta, k)
        store(out.beta, j, s)
        store(out.moved, j, state.beta[j] - s)
    for j in range(p):
        store(sol.beta, j, load(out.beta, j))
    for k in range(p):
        for j in range(k + 1):
            s = spread(0.0)
            for a in range(k + 1):
                s += load(out.noise, (j, a)) * load(out.root, (a, k))
            store(out.low, (j, k), s)
    _turned(out, sol.turned, count)


@called
def _turned(out, turned, f):
    """turned[f] = root' times the upper triangle of low, packed as an inner product takes it."""
    p, i = len(out.root), 0
    for k in range(p):
        for j in range(k + 1):
            s = load(out.root, (0, j)) * load(out.low, (0, k))
            for a in range(1, j + 1):
                s += load(out.root, (a, j)) * load(out.low, (a, k))
            store(turned, (f, i), s if j == k else math.sqrt(2.0) * s)
            i += 1


@called
def _rest(sums, own, out, sol):
    """What :func:`_finish` takes of all units but one.

    sums: of all units, with matrices, not turned; own: traces of the unit, turned by its own root.
    """
    count, p, packed = len(sums.excess), len(out.root), len(out.K)
    for f in range(count):
        for k in range(p):
            for j in range(k + 1):
                s = spread(0.0)
                for a in range(k + 1):
                    high, low = max(a, j), min(a, j)
                    s += sums.square[f, high * (high + 1) // 2 + low, 0] * load(out.root, (a, k))
                store(out.low, (j, k), s)
        _turned(out, sol.turned, f)
        s = sums.excess[f, 0] - load(own.excess, f) - 2.0 * load(own.noise_cross, (f, 0))
        i = 0
        for j in range(p):
            along = spread(2.0 * sums.mixed[f, j, 0])
            for k in range(p):
                high, low = max(j, k), min(j, k)
                along += sums.square[f, high * (high + 1) // 2 + low, 0] * load(out.moved, k)
            s += along * load(out.moved, j)
            for k in range(j + 1):
                scale = 1.0 if j == k else math.sqrt(2.0)
                less = load(sol.turned, (f, i)) - scale * load(own.square, (f, i))
                store(sol.turned, (f, i), less)
                s += (2.0 * sums.noise_cross[f, i, 0]) * load(out.K, i)
                i += 1
        store(sol.excess, f, s)
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            left = sums.trace[pair, 0] - load(own.trace, pair)
            # of all: where nothing but rounding is left, there is nothing without the unit
            store(sol.trace, pair, spread(sums.trace[pair, 0]))
            s = spread(0.0)
            for i in range(packed):
                s += sums.cross[pair, i, 0] * load(out.K, i)
            store(sol.Fisher, (f, h), left - 2.0 * (s - load(own.cross, (pair, 0))))


@called
def _clear(flat):
    for j in range(len(flat)):
        store(flat, j, spread(0.0))


@called
def _together(layout, gram, noise, levels, out, turning, wk, effects, flat, sums, whole, totals):
    """Totals of all units, in whole (size, 1), turned by root or not; flat is memory."""
    N, units, T = len(layout.unit), len(layout.level_start), len(layout.columns)
    joined = len(layout.level_comp) > 0
    _clear(flat)
    for t in range(T):
        effects_of(layout, t, gram, noise, levels, out.beta, out.root, turning, wk, effects)
    for t in range(0, T, _NEAR):
        add_donors(layout, t, min(t + _NEAR, T), gram, noise, effects, sums)
    for j in range(len(flat)):
        whole[j, 0] = total(load(flat, j))
    if joined:
        clear(layout, 0, units, levels)
        for t in range(T):
            meet(layout, t, 0, N, gram, effects.v, levels)
        add_levels(layout, (0, units), out.beta, out.root, 0, levels, totals)


@called
def _each(layout, first, used, gram, noise, levels, out, wk, effects, flat, sums, one):
    """Sums of each of some units, turned by its own root, in the lanes of sums."""
    _clear(flat)
    if len(layout.level_comp) == 0:
        t = first // LANES
        effects_of(layout, t, gram, noise, levels, out.beta, out.root, True, wk, effects)
        add_donors(layout, t, t + 1, gram, noise, effects, sums)
        return
    p, low, high = layout.p, layout.unit_ptr[first], layout.unit_ptr[first + used]
    clear(layout, first, first + used, levels)
    for t in range(low // LANES, (high - 1) // LANES + 1):
        begin, end = max(low, t * LANES), min(high, (t + 1) * LANES)
        for i in range(begin, end):
            lane, u = i - t * LANES, layout.unit[i] - first
            for j in range(p):
                one.out.beta[j, lane] = out.beta[j, u]
                for k in range(j + 1):
                    one.out.root[k, j, lane] = out.root[k, j, u]
        _clear(one.flat)
        effects_of(layout, t, gram, noise, levels, one.out.beta, one.out.root, True, wk, effects)
        add_donors(layout, t, t + 1, gram, noise, effects, one.sums)
        while begin < end:  # its units, one after the other
            u = layout.unit[begin]
            stop = min(end, layout.unit_ptr[u + 1])
            for j in range(len(flat)):
                for i in range(begin, stop):  # what other lanes hold may not even be a number
                    flat[j, u - first] += one.flat[j, i - t * LANES]
            begin = stop
        meet(layout, t, low, high, gram, effects.v, levels)
    for u in range(used):
        add_levels(layout, (first + u, first + u + 1), out.beta, out.root, u, levels, sums)


@called
def _effects(layout, gram, noise, levels, keep, state, XX, Xr, XDX):
    """X'SX, X'Sr and X'S D S X, and, to `keep`, each unit's own."""
    p, x0, units = layout.p, layout.R, len(layout.level_start)
    for j in range(p):
        s = spread(0.0)
        for t in range(len(gram)):
            s += load(gram, (t, x0 + p, x0 + j))
        Xr[j] = total(s)
        for k in range(j + 1):
            s, u = spread(0.0), spread(0.0)
            for t in range(len(gram)):
                s += load(gram, (t, x0 + j, x0 + k))
                u += load(noise, (t, x0 + j, x0 + k))
            XX[j, k] = XX[k, j] = total(s)
            XDX[j, k] = XDX[k, j] = total(u)
    if keep:
        for u in range(units):
            for j in range(p):
                state.unit_score[u, j] = 0.0
                for k in range(p):
                    state.unit_gram[u, j, k] = state.unit_noise[u, j, k] = 0.0
        begin = 0
        while begin < len(layout.unit):  # what a tile has of a unit lies together
            t, u = begin // LANES, layout.unit[begin]
            first, stop = begin % LANES, min(layout.unit_ptr[u + 1], (t + 1) * LANES) - t * LANES
            for j in range(p):
                for lane in range(first, stop):
                    state.unit_score[u, j] += gram[t, x0 + p, x0 + j, lane]
                for k in range(j + 1):
                    a, b = 0.0, 0.0
                    for lane in range(first, stop):
                        a += gram[t, x0 + j, x0 + k, lane]
                        b += noise[t, x0 + j, x0 + k, lane]
                    state.unit_gram[u, j, k] += a
                    state.unit_noise[u, j, k] += b
            begin = t * LANES + stop
        for u in range(units):
            for j in range(p):
                for k in range(j):
                    state.unit_gram[u, k, j] = state.unit_gram[u, j, k]
                    state.unit_noise[u, k, j] = state.unit_noise[u, j, k]
    for u in range(units if len(layout.level_comp) else 0):
        take_levels(layout, u, levels, XX, Xr, XDX)
        if keep:
            own = state.unit_gram[u], state.unit_score[u], state.unit_noise[u]
            take_levels(layout, u, levels, *own)


@called
def _keep_solved(layout, wk, t, solved):
    """A tile's Sigma_i^-1 [X Z]."""
    R, p = layout.R, layout.p
    for j in range(solved.shape[1]):
        column = R + j if j < p else R + j + 1  # the residual lies between
        for a in range(solved.shape[2]):
            store(solved, (t, j, a), load(wk.B, (column, a)))


@called
def _take_through(layout, t, levels, wk, solved):
    """Of a tile, Sigma_i^-1 X <- S X: less what goes through levels."""
    p, d = layout.p, layout.level.shape[1]
    gather(layout, t, levels, wk)
    for j in range(p):
        for a in range(solved.shape[2]):
            s = load(solved, (t, j, a))
            for b in range(d):
                s -= load(solved, (t, p + b, a)) * load(wk.L, (b, j))
            store(solved, (t, j, a), s)


@kept
def sweep(layout, w, nu, r, steps, state, memory, theta, beta):
    """Fit by `steps` passes, or, where there are none, the estimates without each unit.

    Both in one loop, as each caller of a function is compiled with a copy of it.

    Parameters
    ----------
    layout : Layout
    w, nu, r : (T, m, LANES)
        Working noise, measured noise, residual.
    steps : int
        Passes of a fit: the first at equal weights (Haseman and Elston's estimate), each other at
        those of the estimate before.
    state : State, out of a fit
    memory : tuple of ndarray
        :func:`scratch`.
    theta : (U, K) out, NaN where the components cannot be told apart without the unit
    beta : (U, p) out, NaN where a fixed effect rests on the unit (theta is then without the effect)

    Returns
    -------
    int : DONE, or what is wrong with the fit
    """
    K, p, units = len(layout.S), layout.p, len(state.unit_gram)
    count, leaving = layout.S.shape[1], steps == 0
    size = size_of(count, p, leaving)
    gram, noise = memory[0][0], memory[0][1]
    wk, sol, out = make_tile(layout), _make_solution(K, count, p), _make_left_out(p)
    levels, effects = make_levels(layout), make_effects(layout, memory[1][0], memory[1][1])
    flat, whole = aligned((size, LANES)), empty((size, 1))
    totals = parts(whole, count, p, leaving)
    into = flat, parts(flat, count, p, leaving), whole, totals
    XX, Xr, XDX, low = empty((p, p)), empty(p), empty((p, p)), empty((p, p))
    weights = w if leaving else np.ones(w.shape)
    for step in range(max(steps, 1)):
        if step > 0:
            _working(layout, state.theta, state.A, state.g)
            weights = w
        last = step == steps - 1
        for t in range(len(w)):
            if not cross_products(layout, t, state.A, weights, nu, r, wk, gram, noise):
                return SINGULAR
            if last:
                _keep_solved(layout, wk, t, state.solved)
        for u in range(units if len(layout.level_comp) else 0):
            eliminate(layout, u, gram, noise, state.g, levels)
        for t in range(len(w) if last else 0):
            _take_through(layout, t, levels, wk, state.solved)
        _effects(layout, gram, noise, levels, last, state, XX, Xr, XDX)
        if leaving:
            break
        if not _root(XX, low, state.root):
            return COLLINEAR
        for j in range(p):
            s = 0.0
            for k in range(j + 1):
                s += state.root[k, j] * Xr[k]
                store(out.root, (k, j), spread(state.root[k, j]))
            out.rest[j, 0] = s
        for j in range(p):
            s = 0.0
            for k in range(j, p):
                s += state.root[j, k] * out.rest[k, 0]
            state.beta[j] = s
            store(out.beta, j, spread(s))
        _together(layout, gram, noise, levels, out, True, wk, effects, *into)
        _whole(totals, XDX, state.root, sol)
        _finish(layout.S, sol)
        for k in range(K):
            if math.isnan(sol.theta[k, 0]):
                return CONFOUNDED
            state.before[k], state.theta[k] = state.theta[k], sol.theta[k, 0]
            for i in range(K):
                state.F[k, i] = sol.F[k, i, 0]
    if not leaving:
        return DONE
    for j in range(p):
        store(out.beta, j, spread(state.beta[j]))
        for k in range(p):
            store(out.root, (j, k), spread(1.0 if j == k else 0.0))
    _together(layout, gram, noise, levels, out, False, wk, effects, *into)
    size = size_of(count, p, False)
    own_flat, one_flat = aligned((size, LANES)), aligned((size, LANES))
    own, alone = parts(own_flat, count, p, False), np.empty(LANES, np.bool_)
    sums = parts(one_flat, count, p, False)
    one = OneTile(_make_left_out(p), one_flat, sums)
    for first in range(0, units, LANES):
        used = min(LANES, units - first)
        _without(first, used, state, XX, Xr, XDX, out, sol, alone)
        _each(layout, first, used, gram, noise, levels, out, wk, effects, own_flat, own, one)
        _rest(totals, own, out, sol)
        _finish(layout.S, sol)
        for lane in range(used):
            for k in range(K):
                theta[first + lane, k] = sol.theta[k, lane]
            for j in range(p):
                beta[first + lane, j] = math.nan if alone[lane] else sol.beta[j, lane]
    return DONE
