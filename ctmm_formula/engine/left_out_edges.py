"""Likelihood fits without each group of donors where the edge of the domain holds them.

A bound holds a component, and the edge of a covariance M(theta) (a donor's, or that of its true
expression, see :mod:`ctmm_formula.engine.domain`) leaves no variance in some directions V.  With U
the other directions and M_k = dM / dtheta_k the edge is where

    c       = V'M V - V'M U (U'M U)^-1 U'M V                            = 0
    dc_k    = V'M_k V
    d2c_kl  = -V'M_k U (U'M U)^-1 U'M_l V, and that with k and l exchanged

A refit takes Newton's steps to score + sum z dc = 0 and c = 0 at once.  With the rows of dc made
orthonormal, dc = L Q, steps go by Q' onto the edge and by 1 - Q'Q along it.  What they go beyond is
held from then on, and what has a multiplier z below zero is let go.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .kernels import (
    INFORMATION,
    cholesky,
    cholesky_solve,
    copy,
    empty,
    evaluate_at,
    fill,
    move,
    zeros,
)
from .left_out_fits import grade, move_effects, observe
from .model import LANES
from .optimize import factors, is_inside
from .options import called, kept
from .symmetric import rotate

_GONE = 1e-5  # share of a variance that counts as none
_LAST = 1e-5  # squared decrement of a refit before its last step
_DEPENDENT = 1e-6  # what is left of a row of dc that follows from others
_STEPS = 20
_FAR = 1e3  # squared decrement of a step that leads nowhere
_RESTORE = 3  # steps onto the edge alone, in the end
_ROUNDING = 1e-6  # of the largest multiplier
_NOTHING, _BOUND, _COVARIANCE, _UNKNOWN = 0, 1, 2, 3  # what is let go


class _Edge(NamedTuple):
    """What holds theta: n = (equations, rows of Q).

    held (K,) bool components on their bounds; rank (N',) directions without variance of each
    covariance; what (E, 3) of every equation its covariance, or -1, and two directions; c, z (E,)
    values and multipliers; L (E, K); Q (K, K); bent (E, K, K) d2c; low (K, K) root of L'L.  Of one
    covariance M (m, m), its axes (m, m) and their order (m,) by variance, seen (F, m) loadings of
    factors along the axes, slopes (K, m, m) = v_a'M_k v_b.
    """

    n: np.ndarray
    held: np.ndarray
    rank: np.ndarray
    what: np.ndarray
    c: np.ndarray
    z: np.ndarray
    L: np.ndarray
    Q: np.ndarray
    bent: np.ndarray
    low: np.ndarray
    M: np.ndarray
    axes: np.ndarray
    order: np.ndarray
    seen: np.ndarray
    slopes: np.ndarray


@called
def _make_edge(K, count, R, m):
    most = 2 * K + m * (m + 1) // 2
    return _Edge(
        np.zeros(2, np.int64), np.zeros(K, np.bool_), np.zeros(count, np.int64),
        np.zeros((most, 3), np.int64), zeros(most), zeros(most), zeros((most, K)), zeros((K, K)),
        zeros((most, K, K)), zeros((K, K)), zeros((m, m)), zeros((m, m)), np.zeros(m, np.int64),
        zeros((R, m)), zeros((K, m, m)),
    )  # fmt: skip


@called
def _decompose(pr, phi, donor, edge):
    """Variances and axes of a covariance at the factors phi; the number of variances gone."""
    t, i, m = donor // LANES, donor % LANES, len(edge.M)
    W = pr.cblocks.design
    size = 0.0
    for a in range(m):
        for b in range(a + 1):
            s = pr.cnu[t, a, i] if a == b else 0.0
            most = s
            for f in range(pr.cblocks.R):
                part = phi[f] * W[t, f, a, i] * W[t, f, b, i]
                s += part
                most += abs(part)
            edge.M[a, b] = edge.M[b, a] = s
            size = max(size, most)
    rotate(edge.M, edge.axes)
    gone = 0
    for a in range(m):
        gone += edge.M[a, a] < _GONE * size
        b = a
        while b > 0 and edge.M[edge.order[b - 1], edge.order[b - 1]] > edge.M[a, a]:
            edge.order[b] = edge.order[b - 1]
            b -= 1
        edge.order[b] = a
    return gone


@called
def _slopes(pr, donor, edge):
    """slopes[k, a, b] = v_a'M_k v_b."""
    t, i, m = donor // LANES, donor % LANES, len(edge.M)
    for f in range(pr.cblocks.R):
        for e in range(m):
            s = 0.0
            for a in range(m):
                s += edge.axes[edge.order[e], a] * pr.cblocks.design[t, f, a, i]
            edge.seen[f, e] = s
    for k in range(len(edge.slopes)):
        fill(edge.slopes[k], 0.0)
        for f in range(pr.cblocks.R):
            if pr.cS[k, f] != 0.0:
                for a in range(m):
                    for b in range(m):
                        edge.slopes[k, a, b] += pr.cS[k, f] * edge.seen[f, a] * edge.seen[f, b]


@called
def _take(edge, row, c, donor, a, b):
    """Add the equation c + row'(.) = 0; its number, -1 where there is no room."""
    K, n, rows = len(row), edge.n[0], edge.n[1]
    if n == len(edge.c):
        return -1
    before, after = 0.0, 0.0
    for k in range(K):
        before += row[k] * row[k]
        edge.L[n, k] = 0.0
    for _ in range(2):  # again, against rounding
        for j in range(rows):
            s = 0.0
            for k in range(K):
                s += row[k] * edge.Q[j, k]
            edge.L[n, j] += s
            for k in range(K):
                row[k] -= s * edge.Q[j, k]
    for k in range(K):
        after += row[k] * row[k]
    if rows < K and after > _DEPENDENT * _DEPENDENT * before:
        edge.L[n, rows] = math.sqrt(after)
        for k in range(K):
            edge.Q[rows, k] = row[k] / edge.L[n, rows]
        edge.n[1] = rows + 1
    edge.c[n] = c
    edge.what[n, 0], edge.what[n, 1], edge.what[n, 2] = donor, a, b
    fill(edge.bent[n], 0.0)
    edge.n[0] = n + 1
    return n


@called
def _equations(pr, theta, edge, wk):
    """What holds at theta."""
    K, m = len(theta), len(edge.M)
    row = empty(K)
    edge.n[0] = edge.n[1] = 0
    for k in range(K):
        if edge.held[k]:
            for h in range(K):
                row[h] = 1.0 if h == k else 0.0
            _take(edge, row, theta[k] - pr.lower[k], -1, k, k)
    factors(pr.cS, theta, wk.cphi)
    for donor in range(len(edge.rank)):
        r = edge.rank[donor]
        if r == 0:
            continue
        _decompose(pr, wk.cphi, donor, edge)
        _slopes(pr, donor, edge)
        for a in range(r):
            own = edge.M[edge.order[a], edge.order[a]]
            for b in range(a + 1):
                weight = 1.0 if a == b else math.sqrt(2.0)  # twice in a matrix
                for k in range(K):
                    row[k] = weight * edge.slopes[k, a, b]
                n = _take(edge, row, own if a == b else 0.0, donor, a, b)
                for u in range(r, m if n >= 0 else r):
                    scale = weight / (edge.M[edge.order[u], edge.order[u]] - own)
                    for k in range(K):
                        first, second = edge.slopes[k, a, u], edge.slopes[k, b, u]
                        for h in range(K):
                            both = first * edge.slopes[h, b, u] + second * edge.slopes[h, a, u]
                            edge.bent[n, k, h] -= scale * both
    for i in range(edge.n[1]):
        for j in range(i + 1):
            s = 0.0
            for n in range(edge.n[0]):
                s += edge.L[n, i] * edge.L[n, j]
            edge.low[i, j] = s
    cholesky(edge.low, edge.n[1])


@called
def _multipliers(grad, edge):
    """z, the least that fit."""
    n, rows = edge.n
    y = empty(rows)
    for j in range(rows):
        y[j] = 0.0
        for k in range(len(grad)):
            y[j] -= edge.Q[j, k] * grad[k]
    cholesky_solve(edge.low, rows, y)
    for i in range(n):
        edge.z[i] = 0.0
        for j in range(rows):
            edge.z[i] += edge.L[i, j] * y[j]


@called
def _onto(edge, step):
    """step = the shortest onto the edge."""
    n, rows = edge.n
    y = empty(rows)
    for j in range(rows):
        y[j] = 0.0
        for i in range(n):
            y[j] -= edge.L[i, j] * edge.c[i]
    cholesky_solve(edge.low, rows, y)
    for k in range(len(step)):
        step[k] = 0.0
        for j in range(rows):
            step[k] += y[j] * edge.Q[j, k]


@called
def _along(edge, x):
    """x <- (1 - Q'Q) x."""
    for j in range(edge.n[1]):
        s = 0.0
        for k in range(len(x)):
            s += edge.Q[j, k] * x[k]
        for k in range(len(x)):
            x[k] -= s * edge.Q[j, k]


@called
def _newton(edge, info, grad, chol, step):
    """step onto the edge and along it, and its squared decrement; -1 where there is no maximum.

    info (K, K) is changed to that along the edge.
    """
    K = len(step)
    for j in range(edge.n[0]):
        for k in range(K):
            for h in range(K):
                info[k, h] -= edge.z[j] * edge.bent[j, k, h]
    _onto(edge, step)
    rest = empty(K)
    for k in range(K):
        rest[k] = grad[k]
        for h in range(K):
            rest[k] -= info[k, h] * step[h]
    _along(edge, rest)
    size = 0.0
    for k in range(K):
        size = max(size, abs(info[k, k]))
        copy(chol[k], info[k])
        _along(edge, chol[k])
    for k in range(K):
        for h in range(k):
            chol[k, h], chol[h, k] = chol[h, k], chol[k, h]
    for k in range(K):
        _along(edge, chol[k])
        for j in range(edge.n[1]):
            for h in range(K):
                chol[k, h] += size * edge.Q[j, k] * edge.Q[j, h]
    if not cholesky(chol, K):
        return -1.0
    cholesky_solve(chol, K, rest)
    _along(edge, rest)
    decrement = 0.0
    for k in range(K):
        step[k] += rest[k]
    for k in range(K):
        for h in range(K):
            decrement += step[k] * info[k, h] * step[h]
    return abs(decrement)


@called
def _meet(pr, theta, edge, others, wk):
    """Hold theta by what it has left: 1, or 0 if by nothing, or -1 where that is a whole block."""
    met = 0
    for k in range(len(theta)):
        if theta[k] < pr.lower[k]:
            theta[k] = pr.lower[k]
            edge.held[k] = True
            met = 1
    found = _more(pr, theta, edge, True, wk)
    for donor in range(len(edge.rank)):
        others[donor] = pr.cactive[donor]
        pr.cactive[donor] = others[donor] and edge.rank[donor] == 0
    inside = is_inside(pr, theta, wk)
    for donor in range(len(edge.rank)):
        pr.cactive[donor] = others[donor]
    if not inside and not _more(pr, theta, edge, False, wk):
        return -1
    return 1 if found or not inside else met


@called
def _more(pr, theta, edge, known, wk):
    """Whether covariances that hold theta, or others, have lost more directions than they hold."""
    found = False
    factors(pr.cS, theta, wk.cphi)
    for donor in range(len(edge.rank)):
        if pr.cactive[donor] and (edge.rank[donor] > 0) == known:
            _decompose(pr, wk.cphi, donor, edge)
            lost = 0
            for a in range(len(edge.M)):
                lost += edge.M[a, a] < 0.0
            if lost > edge.rank[donor]:
                edge.rank[donor] = lost
                found = True
    return found


@called
def _let_go(edge):
    """Let go of what has the least multiplier below zero: what it was."""
    least, which = 0.0, -1
    for j in range(edge.n[0]):
        donor = edge.what[j, 0]
        if donor >= 0 and edge.rank[donor] > 1:
            if not _are_positive(edge, donor):
                return _UNKNOWN
        elif edge.z[j] < least:
            least, which = edge.z[j], j
    if which < 0:
        return _NOTHING
    if edge.what[which, 0] < 0:
        edge.held[edge.what[which, 1]] = False
        return _BOUND
    edge.rank[edge.what[which, 0]] = 0
    return _COVARIANCE


@called
def _are_positive(edge, donor):
    """Whether the multipliers of all directions of a covariance are a covariance themselves."""
    r = edge.rank[donor]
    Z, axes = zeros((r, r)), empty((r, r))
    for i in range(edge.n[0]):
        if edge.what[i, 0] == donor:
            a, b = edge.what[i, 1], edge.what[i, 2]
            Z[a, b] = Z[b, a] = edge.z[i] if a == b else edge.z[i] / math.sqrt(2.0)
    rotate(Z, axes)
    least, most = 0.0, 0.0
    for a in range(r):
        least, most = min(least, Z[a, a]), max(most, Z[a, a])
    return least >= -_ROUNDING * most


@called
def _settle(pr, theta, edge, others, concave, wk):
    """To an optimum over the domain: (whether it came there, whether all was concave on the way).

    wk.grad and wk.observed are those at the first `theta`, which is changed in place.
    """
    start = theta.copy()
    for it in range(_STEPS):
        if it > 0:
            factors(pr.S, theta, wk.phi)
            llf = evaluate_at(
                pr.kernel, wk.phi, pr.y, pr.nu, pr.blocks, pr.active, pr.reml, INFORMATION,
                wk.score, wk.average, wk.expected, wk.beta, wk.gram, wk.moves,
            )  # fmt: skip
            if llf == -math.inf:
                return False, concave
            grade(pr, wk)
            observe(pr, wk)
            copy(start, theta)
            concave = _is_definite(wk.observed, wk.chol) and concave
        _equations(pr, theta, edge, wk)
        _multipliers(wk.grad, edge)
        decrement = _newton(edge, wk.observed, wk.grad, wk.chol, wk.step)
        if not 0.0 <= decrement < _FAR:
            return False, concave
        move(theta, theta, 1.0, wk.step)
        met = _meet(pr, theta, edge, others, wk)
        if met < 0:
            return False, concave
        if it == 0 or met > 0 or decrement > _LAST:
            continue
        gone = _let_go(edge)
        if gone == _UNKNOWN:
            return False, concave
        if gone != _NOTHING:
            concave = concave and gone == _BOUND
            continue
        for _ in range(_RESTORE):
            _equations(pr, theta, edge, wk)
            _onto(edge, wk.step)
            move(theta, theta, 1.0, wk.step)
        if not _more(pr, theta, edge, True, wk):
            move(wk.step, theta, -1.0, start)
            move_effects(pr, wk)
            return True, concave
    return False, concave


@called
def _is_definite(matrix, chol):
    for k in range(len(matrix)):
        copy(chol[k], matrix[k])
    return cholesky(chol, len(matrix))


@kept
def left_out_edges(pr, groups, group_ptr, grads, curvature, wk, at, which, thetas, betas, ended):
    """Refit without some groups of donors along the edge of the domain.

    Parameters
    ----------
    groups : (sum of sizes,) donors; group_ptr : (G + 1,)
    grads : (G, K) scores at the full fit `at` (K,) without each group
    curvature : (K, K) information there; which : (G,) bool, those to refit
    thetas : (G, K), betas : (G, p) out
    ended : (G, 4) bool out: whether each came to an optimum, whether there may be others, as not
        all was concave on the way, whether a covariance holds it, and several it or the full fit
    """
    K, count = len(at), len(pr.cactive)
    full = _make_edge(K, count, pr.cblocks.R, pr.cblocks.design.shape[2])
    edge = _make_edge(K, count, pr.cblocks.R, pr.cblocks.design.shape[2])
    others = np.zeros(count, np.bool_)
    concave = _is_definite(curvature, wk.chol)
    factors(pr.cS, at, wk.cphi)
    for donor in range(count):
        if pr.cactive[donor]:
            full.rank[donor] = _decompose(pr, wk.cphi, donor, full)
    for g in range(len(group_ptr) - 1):
        if not which[g]:
            continue
        for donor in range(count):
            edge.rank[donor] = full.rank[donor]
        for x in range(group_ptr[g], group_ptr[g + 1]):
            pr.active[groups[x]] = False
            if pr.by_donor:
                pr.cactive[groups[x]] = False
                edge.rank[groups[x]] = 0
        for k in range(K):
            edge.held[k] = at[k] <= pr.lower[k]
            copy(wk.observed[k], curvature[k])
        copy(wk.grad, grads[g])
        copy(thetas[g], at)
        found, smooth = _settle(pr, thetas[g], edge, others, concave, wk)
        own, all_own = 0, 0
        for donor in range(count):
            own += edge.rank[donor] > 0
            all_own += full.rank[donor] > 0
        ended[g, 0], ended[g, 1], ended[g, 2] = found, not smooth, own > 0
        ended[g, 3] = max(own, all_own) > 1
        copy(betas[g], wk.beta)
        for x in range(group_ptr[g], group_ptr[g + 1]):
            pr.active[groups[x]] = True
            if pr.by_donor:
                pr.cactive[groups[x]] = True
