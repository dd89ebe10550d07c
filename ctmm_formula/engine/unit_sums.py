"""The compiled loops of the noise-robust estimator: sums over independent units.

A unit is a donor, or a block of donors joined through levels of random effects.  S is the inverse
of its working covariance, D = diag(nu) its measured noise, r a residual, Sigma_f the derivative of
the covariance for factor f (see :mod:`ctmm_formula.engine.model`).  All there is to know about the
units are the sums (:class:`Sums`) of

    X'SX, X'Sr                                               fixed effects
    tr(S Sigma_f S Sigma_g), X'S Sigma_f S Sigma_g S X,
    X'S Sigma_f S X, X'S Sigma_f S r, r'S Sigma_f S r        moments of the response
    tr(S Sigma_f S D), X'S Sigma_f S D S X, X'S D S X        moments of the noise

from which :func:`_solve` makes the estimate.  Subtract a unit and the same function gives the
estimate without it: the jackknife costs one more pass.

A unit's covariance is blockdiag(Sigma_i) + Z G Z', so with M = sum_i Z_i'Sigma_i^-1 Z_i,

    S = blockdiag(Sigma_i^-1) - (Sigma^-1 Z) K (Sigma^-1 Z)',    K = (I + G M)^-1 G

and S [X r] = Sigma^-1 ([X r] - Z L), L = K Z'Sigma^-1 [X r]; S Z = Sigma^-1 Z (I - K M).  Donors
enter through their two cross products [W X r Z]'Sigma_i^-1 [W X r Z] and the same with
Sigma_i^-1 D Sigma_i^-1; the cost is linear in donors, whatever the size of the blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .kernels import _INNER, _OPTIONS, _PART, _inverse_root, _woodbury, cholesky

DONE, COLLINEAR, CONFOUNDED, SINGULAR = 0, 1, 2, 3
"""How a pass ends: an estimate; X, or the moment matrix, lacks rank; a covariance is singular."""

_RANK = 1e-11  # smallest pivot of a matrix that has full rank, in units of its diagonal
_ALONE = 1e-9  # 1 - leverage where a fixed effect rests on one unit
_JACOBI = 8  # size up to which rotations are faster than LAPACK
_SWEEPS = 30  # most of these: each squares what is off the diagonal
_SMALL = 1e-30  # sum of squares off the diagonal, in units of that on it, where they are done


class Layout(NamedTuple):
    """What all responses of a design share; n rows and N donors, of which those in use are named.

    columns (n, R + p + 1 + d) = [W | X | . | Z]: factor loadings, orthonormal fixed effects, the
    place of the residual, weights of the at most d levels of a donor; H (n, C); R, p; start, stop
    (N',) rows of each donor in use; unit_ptr (U + 1,) donors of each unit; level (N', d) levels of
    a donor or -1; level_start, level_stop (U,) levels of each unit; level_comp (q,) random
    component of a level; S (K + Kr, R + Kr) components to factors; basis (K, C, C); variance (K,)
    whether a component is a variance, to be held >= 0 by itself in the weights; groups (n,) rows
    whose cells are pooled.
    """

    columns: np.ndarray
    H: np.ndarray
    R: int
    p: int
    start: np.ndarray
    stop: np.ndarray
    unit_ptr: np.ndarray
    level: np.ndarray
    level_start: np.ndarray
    level_stop: np.ndarray
    level_comp: np.ndarray
    S: np.ndarray
    basis: np.ndarray
    variance: np.ndarray
    groups: np.ndarray


class Sums(NamedTuple):
    """Sums over units, F = R + Kr factors; pairs f >= g packed as f (f + 1) / 2 + g.

    gram (p, p) X'SX; score (p,) X'Sr; trace (P,) tr(S Sigma_f S Sigma_g); cross (P, p, p)
    X'S Sigma_f S Sigma_g S X; square (F, p, p) X'S Sigma_f S X; mixed (F, p) X'S Sigma_f S r;
    value (F,) r'S Sigma_f S r; noise (F,) tr(S Sigma_f S D); noise_cross (F, p, p)
    X'S Sigma_f S D S X; noise_gram (p, p) X'S D S X.  Cross products enter traces with symmetric
    matrices only, so which side is which does not matter.
    """

    gram: np.ndarray
    score: np.ndarray
    trace: np.ndarray
    cross: np.ndarray
    square: np.ndarray
    mixed: np.ndarray
    value: np.ndarray
    noise: np.ndarray
    noise_cross: np.ndarray
    noise_gram: np.ndarray


class State(NamedTuple):
    """A fit, its weights and its sums; filled by :func:`sweep`.

    theta, before (K,) estimate and the one that its weights are made of; beta (p,) fixed effects
    of r; F (K, K) moment matrix; A (C, C), g (Kr,) working covariance; root (p, p) with
    root root' = (X'SX)^-1; flat, the memory of :class:`Sums`; donor_gram, donor_noise
    (N', c, c) cross products of donors; unit_gram (U, p, p), unit_score (U, p) each unit's X'SX
    and X'Sr.
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


def make_state(layout: Layout) -> State:
    """Memory of a fit."""
    K, F = layout.S.shape
    C, p, count = layout.H.shape[1], layout.p, layout.columns.shape[1]
    N, U = len(layout.start), len(layout.level_start)
    pairs = F * (F + 1) // 2
    size = 2 * p * p + p + pairs * (1 + p * p) + F * (2 * p * p + p + 2)
    return State(
        theta=np.zeros(K),
        before=np.zeros(K),
        beta=np.zeros(p),
        F=np.zeros((K, K)),
        A=np.zeros((C, C)),
        g=np.zeros(K - len(layout.basis)),
        root=np.zeros((p, p)),
        flat=np.zeros(size),
        donor_gram=np.empty((N, count, count)),
        donor_noise=np.empty((N, count, count)),
        unit_gram=np.empty((U, p, p)),
        unit_score=np.empty((U, p)),
    )


@njit(**_PART)
def _parts(flat, F, p):
    """The sums as parts of one vector, so that it can be copied as a whole."""
    P = F * (F + 1) // 2
    a = p * p
    b = a + p
    c = b + P
    d = c + P * p * p
    e = d + F * p * p
    f = e + F * p
    g = f + F
    h = g + F
    i = h + F * p * p
    return Sums(
        flat[:a].reshape(p, p), flat[a:b], flat[b:c], flat[c:d].reshape(P, p, p),
        flat[d:e].reshape(F, p, p), flat[e:f].reshape(F, p), flat[f:g], flat[g:h],
        flat[h:i].reshape(F, p, p), flat[i : i + p * p].reshape(p, p),
    )  # fmt: skip


@njit(**_PART)
def _trace(a, b, p):
    """tr(a'b)."""
    s = 0.0
    for j in range(p):
        for k in range(p):
            s += a[j, k] * b[j, k]
    return s


# -- one donor -----------------------------------------------------------------------------------


@njit(**_INNER)
def _donors(layout, A, w, nu, r, gram, noise):
    """[W X r Z]'Sigma_i^-1 [W X r Z] of every donor and, but for W'W off its diagonal and for r,
    [W X r Z]'Sigma_i^-1 D Sigma_i^-1 [W X r Z]; False if a Sigma_i is not positive definite.
    """  # fmt: skip
    count = layout.columns.shape[1]
    C, R, at = layout.H.shape[1], layout.R, layout.R + layout.p
    most = 0
    for i in range(len(layout.start)):
        most = max(most, layout.stop[i] - layout.start[i])
    low = np.empty((most, most))
    V = np.empty((most, count))
    HA = np.empty(C)
    for i in range(len(layout.start)):
        first = layout.start[i]
        m = layout.stop[i] - first
        for a in range(m):
            for c in range(C):
                HA[c] = 0.0
            for e in range(C):
                h = layout.H[first + a, e]
                if h != 0.0:
                    for c in range(C):
                        HA[c] += h * A[e, c]
            for b in range(a + 1):
                s = 0.0
                for c in range(C):
                    s += HA[c] * layout.H[first + b, c]
                low[a, b] = s
            low[a, a] += w[first + a]
        if not cholesky(low, m):
            return False
        own, other = gram[i], noise[i]
        for j in range(count):
            for k in range(count):
                own[j, k] = 0.0
                other[j, k] = 0.0
        for a in range(m):
            for j in range(count):
                V[a, j] = layout.columns[first + a, j]
            V[a, at] = r[first + a]
            for b in range(a):
                f = low[a, b]
                for j in range(count):
                    V[a, j] -= f * V[b, j]
            f = 1.0 / low[a, a]
            for j in range(count):
                V[a, j] *= f
            for j in range(count):
                f = V[a, j]
                for k in range(count):
                    own[j, k] += f * V[a, k]
        for a in range(m - 1, -1, -1):
            for b in range(a + 1, m):
                f = low[b, a]
                for j in range(count):
                    V[a, j] -= f * V[b, j]
            f = 1.0 / low[a, a]
            for j in range(count):
                V[a, j] *= f
            d = nu[first + a]
            for j in range(R):
                other[j, j] += d * V[a, j] * V[a, j]
            for j in range(R, count):
                f = d * V[a, j]
                if j != at:
                    for k in range(count):
                        other[j, k] += f * V[a, k]
    return True


# -- one unit ------------------------------------------------------------------------------------


@njit(**_INNER)
def _product(A, B):
    """A B; loops, as BLAS costs more to call than such small matrices do."""
    n, k, m = A.shape[0], A.shape[1], B.shape[1]
    out = np.zeros((n, m))
    for x in range(n):
        for y in range(k):
            f = A[x, y]
            for z in range(m):
                out[x, z] += f * B[y, z]
    return out


@njit(**_INNER)
def _turned(A):
    """A' as an array of its own."""
    out = np.empty((A.shape[1], A.shape[0]))
    for x in range(A.shape[0]):
        for y in range(A.shape[1]):
            out[y, x] = A[x, y]
    return out


@njit(**_INNER)
def _eliminate_levels(layout, u, gram, noise, g):
    """M = Z'D Z, E = Z'D [X r], N = Z'D D_nu D [Z X], K and L of a unit, D = blockdiag(Sigma_i^-1).

    None of them has rows where the unit has no levels.
    """
    p, x0 = layout.p, layout.R
    z0 = x0 + p + 1
    d, l0 = layout.level.shape[1], layout.level_start[u]
    q = layout.level_stop[u] - l0
    M, E, N = np.zeros((q, q)), np.zeros((q, p + 1)), np.zeros((q, q + p))
    K, T = np.empty((q, q)), np.empty((q, q))
    for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
        for a in range(d):
            x = layout.level[i, a] - l0
            if x < 0:
                continue
            for j in range(p + 1):
                E[x, j] += gram[i, z0 + a, x0 + j]
            for j in range(p):
                N[x, q + j] += noise[i, z0 + a, x0 + j]
            for b in range(d):
                y = layout.level[i, b] - l0
                if y >= 0:
                    M[x, y] += gram[i, z0 + a, z0 + b]
                    N[x, y] += noise[i, z0 + a, z0 + b]
    variances = np.empty(q)
    for x in range(q):
        variances[x] = g[layout.level_comp[l0 + x]]
    _woodbury(variances, M, q, T, np.empty(q), np.empty(q, np.int64), K)
    return M, E, N, K, _product(K, E)


@njit(**_PART)
def _add_donor(layout, i, gram, noise, sign, sums, v, t):
    """A donor's moments, of v = W'S [X r] and t = W'S D S X; see :func:`_add_unit`."""
    R, p = layout.R, layout.p
    pair = 0
    for f in range(R):
        residual = sign * v[f, p]
        sums.value[f] += residual * v[f, p]
        for j in range(p):
            along = sign * v[f, j]
            sums.mixed[f, j] += residual * v[f, j]
            for k in range(p):
                sums.square[f, j, k] += along * v[f, k]
                sums.noise_cross[f, j, k] += along * t[f, k]
        for h in range(f + 1):
            m = sign * gram[i, f, h]
            sums.trace[pair] += m * gram[i, f, h]
            for j in range(p):
                along = m * v[f, j]
                for k in range(p):
                    sums.cross[pair, j, k] += along * v[h, k]
            pair += 1
        sums.noise[f] += sign * noise[i, f, f]


@njit(**_INNER)
def _add_unit(layout, u, gram, noise, g, sign, sums, own_gram, own_score, v, t):
    """Add (sign = 1) a unit to the sums or take it out (-1); own_gram, own_score: its X'S [X r].

    v (R, p + 1) and t (R, p) are overwritten.
    """
    p, R, x0 = layout.p, layout.R, layout.R
    for j in range(p):
        own_score[j] = 0.0
        for k in range(p):
            own_gram[j, k] = 0.0
    for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
        for j in range(p):
            own_score[j] += gram[i, x0 + j, x0 + p]
            for k in range(p):
                own_gram[j, k] += gram[i, x0 + j, x0 + k]
                sums.noise_gram[j, k] += sign * noise[i, x0 + j, x0 + k]
    if layout.level_stop[u] > layout.level_start[u]:
        _add_block(layout, u, gram, noise, g, sign, sums, own_gram, own_score, v, t)
    else:
        for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
            for f in range(R):
                for j in range(p):
                    v[f, j] = gram[i, f, x0 + j]
                    t[f, j] = noise[i, x0 + j, f]
                v[f, p] = gram[i, f, x0 + p]
            _add_donor(layout, i, gram, noise, sign, sums, v, t)
    for j in range(p):
        sums.score[j] += sign * own_score[j]
        for k in range(p):
            sums.gram[j, k] += sign * own_gram[j, k]


@njit(**_INNER)
def _add_block(layout, u, gram, noise, g, sign, sums, own_gram, own_score, v, t):
    """The moments of a unit with levels, and what these take from its X'S [X r]."""
    p, R, x0 = layout.p, layout.R, layout.R
    z0 = x0 + p + 1
    d, l0 = layout.level.shape[1], layout.level_start[u]
    q = layout.level_stop[u] - l0
    M, E, N, K, L = _eliminate_levels(layout, u, gram, noise, g)
    through = np.empty((q, p))  # Z'D D_nu S X
    for x in range(q):
        for j in range(p):
            s = N[x, q + j]
            for y in range(q):
                s -= N[x, y] * L[y, j]
            through[x, j] = s
            own_score[j] -= E[x, j] * L[x, p]
            for k in range(p):
                own_gram[j, k] -= E[x, j] * L[x, k]
    for x in range(q):
        for j in range(p):
            for k in range(p):
                s = L[x, j] * (N[x, q + k] + through[x, k]) + L[x, k] * (N[x, q + j] + through[x, j])
                sums.noise_gram[j, k] -= sign * 0.5 * s

    # GG = sum of g g' and VG = sum of v g' over donors, g = Z'D w
    GG, VG, Kg = np.zeros((R, q, q)), np.zeros((R, p, q)), np.zeros((R, d))
    for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
        for f in range(R):
            for j in range(p):
                v[f, j] = gram[i, f, x0 + j]
                t[f, j] = noise[i, x0 + j, f]
            v[f, p] = gram[i, f, x0 + p]
            for a in range(d):
                x = layout.level[i, a] - l0
                Kg[f, a] = 0.0
                if x < 0:
                    continue
                for j in range(p):
                    v[f, j] -= gram[i, f, z0 + a] * L[x, j]
                    t[f, j] -= noise[i, z0 + a, f] * L[x, j]
                v[f, p] -= gram[i, f, z0 + a] * L[x, p]
                for b in range(d):
                    y = layout.level[i, b] - l0
                    if y >= 0:
                        Kg[f, a] += K[x, y] * gram[i, f, z0 + b]
                        GG[f, x, y] += gram[i, f, z0 + a] * gram[i, f, z0 + b]
                sums.noise[f] -= sign * 2.0 * Kg[f, a] * noise[i, z0 + a, f]
            for h in range(f + 1):
                for a in range(d):
                    s = gram[i, f, h] * Kg[h, a] * gram[i, f, z0 + a]
                    sums.trace[f * (f + 1) // 2 + h] -= sign * 2.0 * s
        _add_donor(layout, i, gram, noise, sign, sums, v, t)
        for a in range(d):
            x = layout.level[i, a] - l0
            if x >= 0:
                for f in range(R):
                    for j in range(p):
                        VG[f, j, x] += v[f, j] * gram[i, f, z0 + a]
    _add_levels(layout, l0, M, E, N, K, L, through, GG, VG, sign, sums)


@njit(**_INNER)
def _add_levels(layout, l0, M, E, N, K, L, through, GG, VG, sign, sums):
    """What goes through the levels of a unit: between its donors, and the levels as factors.

    With keep = I - K M, S Z = D Z keep.  Products share one call each, which is what there is to
    compile: rows [M; N; G_1 ...; VG_1 ...] by columns [K | keep].
    """
    p, R, q = layout.p, layout.R, len(M)
    sides, rows = np.empty((q, 2 * q)), np.empty((2 * q + R * (q + p), q))
    right, spread = np.empty((q, 2 * p + 1)), np.empty((q, p + R * p))
    KM = _product(K, M)
    g0, v0 = 2 * q, 2 * q + R * q
    for x in range(q):
        for y in range(q):
            sides[x, y] = K[x, y]
            sides[x, q + y] = (1.0 if x == y else 0.0) - KM[x, y]
            rows[x, y], rows[q + x, y] = M[x, y], N[x, y]
            for f in range(R):
                rows[g0 + f * q + x, y] = GG[f, x, y]
        for j in range(p + 1):
            right[x, j] = E[x, j]
        for j in range(p):
            right[x, p + 1 + j] = through[x, j]
            spread[x, j] = through[x, j]
            for f in range(R):
                rows[v0 + f * p + j, x] = VG[f, j, x]
                spread[x, p + f * p + j] = VG[f, j, x]
    both = _product(rows, sides)
    V = _product(_turned(sides[:, q:]), right)  # Z'S [X r | D_nu S X]
    taken = _product(both[v0:, :q], spread)
    for f in range(R):
        gf, vf = g0 + f * q, f * p
        for j in range(p):
            for k in range(p):
                sums.noise_cross[f, j, k] -= sign * taken[vf + j, k]
        for x in range(q):
            for y in range(q):
                sums.noise[f] += sign * both[q + x, y] * both[gf + y, x]
        for h in range(f + 1):
            pair, gh, vh = f * (f + 1) // 2 + h, g0 + h * q, p + h * p
            for j in range(p):
                for k in range(p):
                    sums.cross[pair, j, k] -= sign * taken[vf + j, vh + k]
            for x in range(q):
                for y in range(q):
                    sums.trace[pair] += sign * both[gf + x, y] * both[gh + y, x]
        for x in range(q):  # a level and all donors
            level = R + layout.level_comp[l0 + x]
            pair = level * (level + 1) // 2 + f
            for y in range(q):
                sums.trace[pair] += sign * sides[y, q + x] * both[gf + y, q + x]
            for j in range(p):
                for k in range(p):
                    sums.cross[pair, j, k] += sign * V[x, j] * both[v0 + vf + k, q + x]
    for x in range(q):
        f = R + layout.level_comp[l0 + x]
        sums.value[f] += sign * V[x, p] * V[x, p]
        for y in range(q):
            sums.noise[f] += sign * sides[y, q + x] * both[q + y, q + x]
        for j in range(p):
            sums.mixed[f, j] += sign * V[x, j] * V[x, p]
            for k in range(p):
                sums.square[f, j, k] += sign * V[x, j] * V[x, k]
                sums.noise_cross[f, j, k] += sign * V[x, j] * V[x, p + 1 + k]
        for y in range(q):
            h = R + layout.level_comp[l0 + y]
            if h <= f:
                pair, s = f * (f + 1) // 2 + h, sign * both[x, q + y]
                sums.trace[pair] += s * both[x, q + y]
                for j in range(p):
                    for k in range(p):
                        sums.cross[pair, j, k] += s * V[x, j] * V[y, k]


# -- all units -----------------------------------------------------------------------------------


@njit(**_INNER)
def _solve(sums, root, S, F, theta, beta):
    """theta and beta from the sums, with K = root root' an inverse of X'SX.

        beta = K X'Sr
        q_f  = r'P Sigma_f P r,  F_fg = tr(P Sigma_f P Sigma_g),  h_f = tr(P Sigma_f P D)
        theta = (S F S')^-1 S (q - h),    P = S - S X K X'S

    False if the components cannot be told apart.
    """
    count, p = len(sums.value), len(sums.score)
    back = _turned(root)
    K = _product(root, back)
    Fisher, excess = np.empty((count, count)), np.empty(count)
    turned = np.empty((count + 1, p, p))  # root'(X'S Sigma_f S X)root; last, of the noise
    for j in range(p):
        s = 0.0
        for k in range(p):
            s += K[j, k] * sums.score[k]
        beta[j] = s
    turned[count] = _product(back, _product(sums.noise_gram, root))
    for f in range(count):
        turned[f] = _product(back, _product(sums.square[f], root))
    for f in range(count):
        s = sums.value[f] - sums.noise[f] + 2.0 * _trace(K, sums.noise_cross[f], p)
        s -= _trace(turned[f], turned[count], p)
        for j in range(p):
            along = 0.0
            for k in range(p):
                along += sums.square[f, j, k] * beta[k]
            s += beta[j] * (along - 2.0 * sums.mixed[f, j])
        excess[f] = s
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            s = sums.trace[pair] - 2.0 * _trace(K, sums.cross[pair], p)
            s += _trace(turned[f], turned[h], p)
            Fisher[f, h] = s
            Fisher[h, f] = s
    F[:] = _product(_product(S, Fisher), _turned(S))
    for k in range(len(theta)):
        theta[k] = 0.0
        for f in range(count):
            theta[k] += S[k, f] * excess[f]
    return _divide(F, theta)


@njit(**_INNER)
def _divide(F, x):
    """x <- F^-1 x for a positive definite F; False if it lacks rank."""
    n = len(x)
    low = F.copy()
    for j in range(n):
        pivot = low[j, j]
        for k in range(j):
            pivot -= low[j, k] * low[j, k]
        if not pivot > _RANK * F[j, j]:
            return False
        low[j, j] = math.sqrt(pivot)
        for i in range(j + 1, n):
            s = low[i, j]
            for k in range(j):
                s -= low[i, k] * low[j, k]
            low[i, j] = s / low[j, j]
    for i in range(n):
        for k in range(i):
            x[i] -= low[i, k] * x[k]
        x[i] /= low[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            x[i] -= low[k, i] * x[k]
        x[i] /= low[i, i]
    return True


@njit(**_INNER)
def _rotate(B, axes):
    """Eigenvalues of B on its diagonal, eigenvectors as columns, by Jacobi's rotations."""
    p = len(B)
    for j in range(p):
        for k in range(p):
            axes[j, k] = 1.0 if j == k else 0.0
    for _ in range(_SWEEPS):
        off, total = 0.0, 0.0
        for j in range(p):
            total += B[j, j] * B[j, j]
            for k in range(j):
                off += B[j, k] * B[j, k]
        if not off > _SMALL * total:
            return
        for j in range(p - 1):
            for k in range(j + 1, p):
                if B[j, k] == 0.0:
                    continue
                h = 0.5 * (B[k, k] - B[j, j]) / B[j, k]
                t = 1.0 / (abs(h) + math.sqrt(1.0 + h * h))
                if h < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(1.0 + t * t)
                s = t * c
                for i in range(p):
                    left, right = B[i, j], B[i, k]
                    B[i, j] = c * left - s * right
                    B[i, k] = s * left + c * right
                for i in range(p):
                    left, right = B[j, i], B[k, i]
                    B[j, i] = c * left - s * right
                    B[k, i] = s * left + c * right
                B[j, k] = B[k, j] = 0.0
                for i in range(p):
                    left, right = axes[i, j], axes[i, k]
                    axes[i, j] = c * left - s * right
                    axes[i, k] = s * left + c * right


@njit(**_INNER)
def _working(layout, theta, A, g):
    """Working covariance of these components: variances held >= 0, the rest positive semidefinite.

    A component whose basis matrix is no covariance belongs with all but the shared one: of their
    sum the negative eigenvalues are cut off.
    """
    C, K = len(A), len(layout.basis)
    rest, axes = np.zeros((C, C)), np.empty((C, C))
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
        _rotate(rest, axes)
        for a in range(C):
            for c in range(C):
                for e in range(C):
                    A[c, e] += max(rest[a, a], 0.0) * axes[c, a] * axes[e, a]
    for k in range(len(g)):
        g[k] = max(theta[K + k], 0.0)


@njit(**_PART)
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


@njit(**_OPTIONS)
def sweep(layout, w, nu, r, steps, state, remains, turned, theta, beta):
    """Fit by `steps` passes, or, where there are none, the estimates without each unit.

    Every pass adds units to the sums, or takes one out, and solves: in one loop, as each call of
    :func:`_add_unit` is compiled anew.

    Parameters
    ----------
    layout : Layout; w, nu, r : (n,) working noise, measured noise, residual
    steps : int
        Passes of a fit: the first at equal weights (Haseman and Elston's estimate), each other at
        those of the estimate before.
    state : State, out of a fit
    remains, turned : (U, p), (U, p, p)
        Of :func:`leverages`.
    theta : (U, K) out, NaN where the components cannot be told apart without the unit
    beta : (U, p) out, NaN where a fixed effect rests on the unit (theta is then without the effect)

    Returns
    -------
    int : DONE, or what is wrong with the fit
    """
    K, p, units = len(layout.S), layout.p, len(state.unit_gram)
    flat = state.flat if steps > 0 else np.empty(len(state.flat))
    sums = _parts(flat, layout.S.shape[1], p)
    root = state.root if steps > 0 else np.empty((p, p))
    F = state.F if steps > 0 else np.empty((K, K))
    v, t = np.empty((layout.R, p + 1)), np.empty((layout.R, p))
    low, own_gram, own_score = np.empty((p, p)), np.empty((p, p)), np.empty(p)
    new_theta, new_beta = np.empty(K), np.empty(p)
    even = np.ones(len(w))
    for step in range(steps if steps > 0 else units):
        if steps > 0:
            first, last, sign = 0, units, 1.0
            if step > 0:
                _working(layout, state.theta, state.A, state.g)
            noise = w if step > 0 else even
            if not _donors(layout, state.A, noise, nu, r, state.donor_gram, state.donor_noise):
                return SINGULAR
            for j in range(len(flat)):
                flat[j] = 0.0
        else:
            first, last, sign = step, step + 1, -1.0
            for j in range(len(flat)):
                flat[j] = state.flat[j]
        for u in range(first, last):
            _add_unit(
                layout, u, state.donor_gram, state.donor_noise, state.g, sign, sums,
                own_gram, own_score, v, t,
            )  # fmt: skip
            for j in range(p):
                state.unit_score[u, j] = own_score[j]
                for k in range(p):
                    state.unit_gram[u, j, k] = own_gram[j, k]
        alone = False
        if steps > 0:
            if not _root(sums.gram, low, root):
                return COLLINEAR
        else:
            for j in range(p):
                alone = alone or remains[step, j] == 0.0
                size = 1.0 / math.sqrt(remains[step, j]) if remains[step, j] > 0.0 else 0.0
                for k in range(p):
                    root[k, j] = turned[step, k, j] * size
        found = _solve(sums, root, layout.S, F, new_theta, new_beta)
        if steps > 0:
            if not found:
                return CONFOUNDED
            for k in range(K):
                state.before[k], state.theta[k] = state.theta[k], new_theta[k]
            for j in range(p):
                state.beta[j] = new_beta[j]
        else:
            for k in range(K):
                theta[step, k] = new_theta[k] if found else math.nan
            for j in range(p):
                beta[step, j] = math.nan if alone else new_beta[j]
    return DONE


def leverages(unit_gram: np.ndarray, root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and axes of each unit's share of X'SX.

    With K = root root' and root'(X_u'S_u X_u)root = Q diag(l) Q' this gives remains (U, p) = 1 - l,
    zero where a fixed effect rests on the unit alone, and axes (U, p, p) = Q, so that with
    turned = root Q

        turned turned' = K,    turned remains^-1 turned' = (X'SX - X_u'S_u X_u)^-1
    """
    share = root.T @ unit_gram @ root
    if len(root) > _JACOBI:
        size, axes = np.linalg.eigh(share)
    else:
        size, axes = np.empty(share.shape[:2]), np.empty_like(share)
        _axes(share, size, axes)
    remains = 1.0 - size
    return np.where(remains < _ALONE, 0.0, remains), axes


@njit(**_OPTIONS)
def _axes(share, size, axes):
    """Eigenvalues (U, p) and eigenvectors (U, p, p) of matrices (U, p, p), which are overwritten."""
    for u in range(len(share)):
        _rotate(share[u], axes[u])
        for j in range(len(share[u])):
            size[u, j] = share[u, j, j]
