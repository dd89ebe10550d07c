"""Fits and leave-one-out estimates from sums over units: the compiled loops.

With the sums of :mod:`ctmm_formula.engine.unit_sums` and K = root root' = (X'SX)^-1,

    beta  = K X'Sr
    q_f   = r'P Sigma_f P r,  F_fg = tr(P Sigma_f P Sigma_g),  h_f = tr(P Sigma_f P D)
    theta = (S F S')^-1 S (q - h),    P = S - S X K X'S

(S on the left and right of F takes components to factors.)  Subtract a unit's own sums and the
same function gives the estimate without it, LANES units at once: the jackknife at fixed weights
costs one more pass.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .block_sums import block_sums
from .kernels import _inverse_root, cholesky, empty, zeros
from .lanes import load, root, spread, store
from .leverages import without
from .model import LANES
from .options import called, inlined, kept
from .symmetric import rotate
from .unit_sums import (
    Layout,
    cross_products,
    donor_sums,
    lane_parts,
    make_tile,
    parts,
    size_of,
)

DONE, COLLINEAR, CONFOUNDED, SINGULAR = 0, 1, 2, 3
"""How a fit ends: an estimate; X, or the moment matrix, lacks rank; a covariance is singular."""

_RANK = 1e-11  # smallest pivot of a matrix that has full rank, in units of its diagonal, or of
# what that would be without fixed effects


class State(NamedTuple):
    """A fit, its weights and its sums; filled by :func:`sweep`.

    theta, before (K,) estimate and the one that its weights are made of; beta (p,) fixed effects
    of r; F (K, K) moment matrix; A (C, C), g (Kr,) working covariance; root (p, p) with
    root root' = (X'SX)^-1; flat, the memory of the sums; donor_gram, donor_noise (N, c, c) cross
    products of donors, kept where random effects join them; unit_gram (U, p, p), unit_score (U, p)
    each unit's X'SX and X'Sr; solved (T, p + d, m, LANES) the donors' own Sigma_i^-1 [X Z].
    """

    theta: np.ndarray
    before: np.ndarray
    beta: np.ndarray
    F: np.ndarray
    A: np.ndarray
    g: np.ndarray
    root: np.ndarray
    flat: np.ndarray
    donor_gram: np.ndarray
    donor_noise: np.ndarray
    unit_gram: np.ndarray
    unit_score: np.ndarray
    solved: np.ndarray


class Solution(NamedTuple):
    """Memory of :func:`_solve`, LANES in the last axis of all.

    K (p, p) in; turned (F + 1, p, p); Fisher (F, F); excess (F,); beta (p,) and theta (K,) out;
    across (K, F); F (K, K) out; low (K, K); size (K,) diagonal of F were there no fixed effects.
    """

    K: np.ndarray
    turned: np.ndarray
    Fisher: np.ndarray
    excess: np.ndarray
    beta: np.ndarray
    theta: np.ndarray
    across: np.ndarray
    F: np.ndarray
    low: np.ndarray
    size: np.ndarray


def make_state(layout: Layout) -> State:
    """Memory of a fit."""
    K, F = layout.S.shape
    C, p, count = layout.H.shape[1], layout.p, layout.columns.shape[1]
    N, U = len(layout.level), len(layout.level_start)
    kept = N if len(layout.level_comp) else 0
    return State(
        theta=np.zeros(K),
        before=np.zeros(K),
        beta=np.zeros(p),
        F=np.zeros((K, K)),
        A=np.zeros((C, C)),
        g=np.zeros(K - len(layout.basis)),
        root=np.zeros((p, p)),
        flat=np.zeros(size_of(F, p)),
        donor_gram=np.empty((kept, count, count)),
        donor_noise=np.empty((kept, count, count)),
        unit_gram=np.empty((U, p, p)),
        unit_score=np.empty((U, p)),
        solved=np.empty((len(layout.columns), count - layout.R - 1, *layout.columns.shape[2:])),
    )


@called
def _make_solution(K, F, p):
    return Solution(
        zeros((p, p, LANES)),
        empty((F + 1, p, p, LANES)), empty((F, F, LANES)), empty((F, LANES)),
        empty((p, LANES)), empty((K, LANES)), empty((K, F, LANES)),
        empty((K, K, LANES)), empty((K, K, LANES)), empty((K, LANES)),
    )  # fmt: skip


@called
def _product(K, square, out, p):
    """out = K square."""
    for j in range(p):
        for k in range(p):
            s = spread(0.0)
            for i in range(p):
                s += load(K, (j, i)) * load(square, (i, k))
            store(out, (j, k), s)


@inlined
def _trace(a, b, p):
    """tr(a'b)."""
    s = spread(0.0)
    for j in range(p):
        for k in range(p):
            s += load(a, (j, k)) * load(b, (j, k))
    return s


@inlined
def _trace_product(a, b, p):
    """tr(a b)."""
    s = spread(0.0)
    for j in range(p):
        for k in range(p):
            s += load(a, (j, k)) * load(b, (k, j))
    return s


@called
def _solve(sums, S, sol):
    """theta and beta from LANES sets of sums and their K; NaN where components are confounded."""
    count, p = len(sums.value), len(sums.score)
    for j in range(p):
        s = spread(0.0)
        for k in range(p):
            s += load(sol.K, (j, k)) * load(sums.score, k)
        store(sol.beta, j, s)
    for f in range(count + 1):  # K X'S Sigma_f S X; last, of the noise
        _product(sol.K, sums.square[f] if f < count else sums.noise_gram, sol.turned[f], p)
    for f in range(count):
        s = load(sums.value, f) - load(sums.noise, f)
        s += 2.0 * _trace(sol.K, sums.noise_cross[f], p)
        s -= _trace_product(sol.turned[f], sol.turned[count], p)
        for j in range(p):
            along = -2.0 * load(sums.mixed, (f, j))
            for k in range(p):
                along += load(sums.square, (f, j, k)) * load(sol.beta, k)
            s += load(sol.beta, j) * along
        store(sol.excess, f, s)
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            s = load(sums.trace, pair) - 2.0 * _trace(sol.K, sums.cross[pair], p)
            s += _trace_product(sol.turned[f], sol.turned[h], p)
            store(sol.Fisher, (f, h), s)
            store(sol.Fisher, (h, f), s)
    _to_components(S, sums.trace, sol)
    _divide(sol)


@called
def _to_components(S, trace, sol):
    """F = S Fisher S', theta = S excess, size = diag(S trace S')."""
    K, count = S.shape
    for k in range(K):
        s = spread(0.0)
        for f in range(count):
            for h in range(f + 1):
                twice = S[k, f] * S[k, h] * (1.0 if f == h else 2.0)
                s += twice * load(trace, f * (f + 1) // 2 + h)
        store(sol.size, k, s)
        s = spread(0.0)
        for f in range(count):
            s += S[k, f] * load(sol.excess, f)
        store(sol.theta, k, s)
        for h in range(count):
            s = spread(0.0)
            for f in range(count):
                s += S[k, f] * load(sol.Fisher, (f, h))
            store(sol.across, (k, h), s)
    for k in range(K):
        for i in range(K):
            s = spread(0.0)
            for h in range(count):
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
def _keep_products(wk, t, gram, noise):
    """A tile's cross products, donor by donor."""
    count = len(wk.gram)
    for lane in range(min(LANES, len(gram) - t * LANES)):
        for j in range(count):
            for k in range(count):
                gram[t * LANES + lane, j, k] = wk.gram[j, k, lane]
                noise[t * LANES + lane, j, k] = wk.noise[j, k, lane]


@called
def _keep_solved(layout, wk, t, solved):
    """A tile's Sigma_i^-1 [X Z]."""
    R, p = layout.R, layout.p
    for j in range(len(solved[t])):
        column = R + j if j < p else R + j + 1  # the residual lies between
        for a in range(solved.shape[2]):
            store(solved, (t, j, a), load(wk.B, (column, a)))


@kept
def sweep(layout, w, nu, r, steps, state, share, turned, theta, beta):
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
    share, turned : (U, k), (U, p, k)
        Of :func:`ctmm_formula.engine.leverages.leverages`, turned = root T; no rows in a fit.
    theta : (U, K) out, NaN where the components cannot be told apart without the unit
    beta : (U, p) out, NaN where a fixed effect rests on the unit (theta is then without the effect)

    Returns
    -------
    int : DONE, or what is wrong with the fit
    """
    K, p, units = len(layout.S), layout.p, len(state.unit_gram)
    count, size = layout.S.shape[1], len(state.flat)
    joined = len(layout.level_comp) > 0
    wk, sol = make_tile(layout), _make_solution(K, count, p)
    rest, one = empty((size, LANES)), empty(size)
    rest_sums, one_sums = lane_parts(rest, count, p), parts(one, count, p)
    v, t, low = empty((layout.R, p + 1)), empty((layout.R, p)), empty((p, p))
    sums = parts(state.flat, count, p)
    noise = np.ones(w.shape)
    for step in range(max(steps, 1)):
        if steps > 0:
            if step > 0:
                _working(layout, state.theta, state.A, state.g)
            for j in range(size):
                state.flat[j] = 0.0
        if step > 0 or steps == 0:
            noise = w
        if joined and steps > 0:
            for tile in range(len(w)):
                if not cross_products(layout, tile, state.A, noise, nu, r, wk):
                    return SINGULAR
                _keep_products(wk, tile, state.donor_gram, state.donor_noise)
                _keep_solved(layout, wk, tile, state.solved)
        for first in range(0, units, LANES):
            used = min(LANES, units - first)
            if joined:
                for lane in range(used):
                    for j in range(size):
                        one[j] = 0.0
                    block_sums(
                        layout, first + lane, state.donor_gram, state.donor_noise, state.g,
                        one_sums, v, t,
                    )  # fmt: skip
                    _add_block(one, one_sums, first + lane, steps > 0, state, rest[:, lane])
            else:
                if not cross_products(layout, first // LANES, state.A, noise, nu, r, wk):
                    return SINGULAR
                if steps > 0:
                    donor_sums(layout, wk, sums, sums)
                else:
                    donor_sums(layout, wk, sums, rest_sums)
                if step == steps - 1:
                    _keep_solved(layout, wk, first // LANES, state.solved)
                    for lane in range(used):
                        _keep_effects(layout, wk, lane, first + lane, state)
            if steps > 0:
                continue
            without(share[first : first + used], turned[first : first + used], state.root, sol.K)
            _solve(rest_sums, layout.S, sol)
            for lane in range(used):
                u = first + lane
                _write(sol, lane, share[u], theta[u], beta[u])
        if steps == 0:
            return DONE
        if not _root(sums.gram, low, state.root):
            return COLLINEAR
        for j in range(size):
            store(rest, j, spread(state.flat[j]))
        without(share, turned, state.root, sol.K)
        _solve(rest_sums, layout.S, sol)
        for k in range(K):
            if math.isnan(sol.theta[k, 0]):
                return CONFOUNDED
            state.before[k], state.theta[k] = state.theta[k], sol.theta[k, 0]
            for i in range(K):
                state.F[k, i] = sol.F[k, i, 0]
        for j in range(p):
            state.beta[j] = sol.beta[j, 0]
    return DONE


@called
def _add_block(one, one_sums, u, adding, state, rest):
    """Add a block to the sums and keep its X'SX and X'Sr, or rest = the sums without it."""
    for j in range(len(one)):
        if adding:
            state.flat[j] += one[j]
        else:
            rest[j] = state.flat[j] - one[j]
    if adding:
        for j in range(len(one_sums.score)):
            state.unit_score[u, j] = one_sums.score[j]
            for k in range(len(one_sums.score)):
                state.unit_gram[u, j, k] = one_sums.gram[j, k]


@called
def _keep_effects(layout, wk, lane, u, state):
    """X'SX and X'Sr of a donor without levels."""
    x0, p = layout.R, layout.p
    for j in range(p):
        state.unit_score[u, j] = wk.gram[x0 + j, x0 + p, lane]
        for k in range(p):
            state.unit_gram[u, j, k] = wk.gram[x0 + j, x0 + k, lane]


@called
def _write(sol, lane, share, theta, beta):
    """The estimate of one lane; no beta where a fixed effect rests on the unit alone."""
    alone = False
    for j in range(len(share)):
        alone = alone or share[j] == 1.0
    for k in range(len(theta)):
        theta[k] = sol.theta[k, lane]
    for j in range(len(beta)):
        beta[j] = math.nan if alone else sol.beta[j, lane]
