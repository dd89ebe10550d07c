"""What an independent unit adds to the noise-robust estimate: compiled loops over its rows.

A unit is a donor, or a block of donors joined through levels of random effects.  S is the inverse
of its working covariance, D = diag(nu) its measured noise, r a residual, Sigma_f the derivative of
the covariance for factor f (see :mod:`ctmm_formula.engine.model`).  All there is to know about the
units are the sums (:class:`Sums`) of

    X'SX, X'Sr                                               fixed effects
    tr(S Sigma_f S Sigma_g), X'S Sigma_f S Sigma_g S X,
    X'S Sigma_f S X, X'S Sigma_f S r, r'S Sigma_f S r        moments of the response
    tr(S Sigma_f S D), X'S Sigma_f S D S X, X'S D S X        moments of the noise

from which :mod:`ctmm_formula.engine.sweeps` makes the estimate.  A unit's covariance is
blockdiag(Sigma_i) + Z G Z', so with M = sum_i Z_i'Sigma_i^-1 Z_i,

    S = blockdiag(Sigma_i^-1) - (Sigma^-1 Z) K (Sigma^-1 Z)',    K = (I + G M)^-1 G

and S [X r] = Sigma^-1 ([X r] - Z L), L = K Z'Sigma^-1 [X r]; S Z = Sigma^-1 Z (I - K M).  Donors
enter through their two cross products [W X r Z]'Sigma_i^-1 [W X r Z] and the same with
Sigma_i^-1 D Sigma_i^-1, LANES of them at once (:mod:`ctmm_formula.engine.lanes`); the cost is
linear in donors, whatever the size of the blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .kernels import _INNER, _PART, _factor, _inner, _whiten, _woodbury
from .lanes import load, spread, store, total
from .model import LANES


class Layout(NamedTuple):
    """What all responses of a design share; N donors in use, in :class:`~.model.Tiles` of LANES.

    columns (T, R + p + 1 + d, m, LANES) = [W | X | . | Z]: factor loadings, orthonormal fixed
    effects, the place of the residual, weights of the at most d levels of a donor; H
    (T, C, m, LANES); R, p; unit_ptr (U + 1,) donors of each unit; level (N, d) levels of a donor
    or -1; level_start, level_stop (U,) levels of each unit; level_comp (q,) random component of a
    level; S (K + Kr, R + Kr) components to factors; basis (K, C, C); variance (K,) whether a
    component is a variance, to be held >= 0 by itself in the weights.
    """

    columns: np.ndarray
    H: np.ndarray
    R: int
    p: int
    unit_ptr: np.ndarray
    level: np.ndarray
    level_start: np.ndarray
    level_stop: np.ndarray
    level_comp: np.ndarray
    S: np.ndarray
    basis: np.ndarray
    variance: np.ndarray


class Sums(NamedTuple):
    """Sums over units, F = R + Kr factors; pairs f >= g packed as f (f + 1) / 2 + g.

    gram (p, p) X'SX; score (p,) X'Sr; trace (P,) tr(S Sigma_f S Sigma_g); cross (P, p, p)
    X'S Sigma_f S Sigma_g S X; square (F, p, p) X'S Sigma_f S X; mixed (F, p) X'S Sigma_f S r;
    value (F,) r'S Sigma_f S r; noise (F,) tr(S Sigma_f S D); noise_cross (F, p, p)
    X'S Sigma_f S D S X; noise_gram (p, p) X'S D S X.  Cross products enter traces with symmetric
    matrices only, so which side is which does not matter.  Of a tile of units each has one more
    axis, the LANES.
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


class Tile(NamedTuple):
    """Memory for one tile of donors, LANES in the last axis.

    low (m, m), V and B (c, m): factor of Sigma_i, whitened columns, Sigma_i^-1 times the columns;
    HA (C,); gram and noise (c, c): the two cross products.
    """

    low: np.ndarray
    V: np.ndarray
    B: np.ndarray
    HA: np.ndarray
    gram: np.ndarray
    noise: np.ndarray


@njit(**_PART)
def make_tile(layout):
    """Memory for one tile."""
    c, m, C = layout.columns.shape[1], layout.columns.shape[2], layout.H.shape[1]
    return Tile(
        np.empty((m, m, LANES)), np.empty((c, m, LANES)), np.empty((c, m, LANES)),
        np.empty((C, LANES)), np.empty((c, c, LANES)), np.zeros((c, c, LANES)),
    )  # fmt: skip


def size_of(F: int, p: int) -> int:
    """Length of the vector that holds the sums."""
    pairs = F * (F + 1) // 2
    return 2 * p * p + p + pairs * (1 + p * p) + F * (2 * p * p + p + 2)


@njit(**_PART)
def parts(flat, F, p):
    """The sums as parts of one vector (size,), so that it can be copied as a whole."""
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
def lane_parts(flat, F, p):
    """The same of a tile of units, (size, LANES)."""
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
        flat[:a].reshape(p, p, LANES), flat[a:b], flat[b:c], flat[c:d].reshape(P, p, p, LANES),
        flat[d:e].reshape(F, p, p, LANES), flat[e:f].reshape(F, p, LANES), flat[f:g], flat[g:h],
        flat[h:i].reshape(F, p, p, LANES), flat[i : i + p * p].reshape(p, p, LANES),
    )  # fmt: skip


# -- a tile of donors ----------------------------------------------------------------------------


@njit(**_INNER)
def cross_products(layout, t, A, w, nu, r, wk):
    """The two cross products of a tile of donors; False if a Sigma_i is not positive definite.

    Of the one with the noise, entries between different columns of W are not made.
    """
    count, m = layout.columns.shape[1], layout.columns.shape[2]
    C, R, at = layout.H.shape[1], layout.R, layout.R + layout.p
    for a in range(m):
        for c in range(C):
            s = spread(0.0)
            for e in range(C):
                s += load(layout.H, (t, e, a)) * A[e, c]
            store(wk.HA, c, s)
        for b in range(a + 1):
            s = spread(0.0)
            for c in range(C):
                s += load(wk.HA, c) * load(layout.H, (t, c, b))
            if a == b:
                s += load(w, (t, a))
            store(wk.low, (a, b), s)
        for j in range(count):
            store(wk.V, (j, a), load(layout.columns, (t, j, a)))
        store(wk.V, (at, a), load(r, (t, a)))
    definite, _ = _factor(wk.low)
    if not definite:
        return False
    _whiten(wk.low, wk.V, 0)
    for j in range(count):
        for k in range(j + 1):
            s = _inner(wk.V, j, k)
            store(wk.gram, (j, k), s)
            store(wk.gram, (k, j), s)
        for a in range(m - 1, -1, -1):
            s = load(wk.V, (j, a))
            for b in range(a + 1, m):
                s -= load(wk.low, (b, a)) * load(wk.B, (j, b))
            store(wk.B, (j, a), s * load(wk.low, (a, a)))
    for j in range(count):
        for a in range(m):  # V is free: it now holds D Sigma_i^-1 times the columns
            store(wk.V, (j, a), load(nu, (t, a)) * load(wk.B, (j, a)))
        first = j if j < R else 0
        for k in range(first, j + 1):
            s = load(wk.V, (j, 0)) * load(wk.B, (k, 0))
            for a in range(1, m):
                s += load(wk.V, (j, a)) * load(wk.B, (k, a))
            store(wk.noise, (j, k), s)
            store(wk.noise, (k, j), s)
    return True


@njit(**_PART)
def _put(sums, rest, index, value):
    """rest = sums - value, lane by lane, or, where rest is sums, sums += value of all lanes."""
    if rest.ndim == sums.ndim:  # known when this is compiled
        sums[index] += total(value)
    else:
        store(rest, index, sums[index] - value)


@njit(**_INNER)
def donor_sums(layout, wk, sums, rest):
    """Sums of a tile of units that are single donors without levels.

    They are added to sums if rest is sums, else rest is what is left of sums without each unit.
    """
    R, p = layout.R, layout.p
    r = R + p
    pair = 0
    for j in range(p):
        _put(sums.score, rest.score, j, load(wk.gram, (R + j, r)))
        for k in range(p):
            _put(sums.gram, rest.gram, (j, k), load(wk.gram, (R + j, R + k)))
            _put(sums.noise_gram, rest.noise_gram, (j, k), load(wk.noise, (R + j, R + k)))
    for f in range(R):
        residual = load(wk.gram, (f, r))
        _put(sums.value, rest.value, f, residual * residual)
        _put(sums.noise, rest.noise, f, load(wk.noise, (f, f)))
        for j in range(p):
            along = load(wk.gram, (f, R + j))
            _put(sums.mixed, rest.mixed, (f, j), residual * along)
            for k in range(p):
                at = f, j, k
                _put(sums.square, rest.square, at, along * load(wk.gram, (f, R + k)))
                _put(sums.noise_cross, rest.noise_cross, at, along * load(wk.noise, (f, R + k)))
        for h in range(f + 1):
            shared = load(wk.gram, (f, h))
            _put(sums.trace, rest.trace, pair, shared * shared)
            for j in range(p):
                along = shared * load(wk.gram, (f, R + j))
                for k in range(p):
                    at = pair, j, k
                    _put(sums.cross, rest.cross, at, along * load(wk.gram, (h, R + k)))
            pair += 1


# -- a block of donors with levels ---------------------------------------------------------------


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
def _add_donor(layout, i, gram, noise, sums, v, t):
    """A donor's moments, of v = W'S [X r] and t = W'S D S X; see :func:`block_sums`."""
    R, p = layout.R, layout.p
    pair = 0
    for f in range(R):
        residual = v[f, p]
        sums.value[f] += residual * v[f, p]
        for j in range(p):
            along = v[f, j]
            sums.mixed[f, j] += residual * v[f, j]
            for k in range(p):
                sums.square[f, j, k] += along * v[f, k]
                sums.noise_cross[f, j, k] += along * t[f, k]
        for h in range(f + 1):
            m = gram[i, f, h]
            sums.trace[pair] += m * gram[i, f, h]
            for j in range(p):
                along = m * v[f, j]
                for k in range(p):
                    sums.cross[pair, j, k] += along * v[h, k]
            pair += 1
        sums.noise[f] += noise[i, f, f]


@njit(**_INNER)
def block_sums(layout, u, gram, noise, g, sums, v, t):
    """Sums of one unit, with or without levels, from the cross products (N, c, c) of its donors.

    v (R, p + 1) and t (R, p) are overwritten.
    """
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
            sums.score[j] -= E[x, j] * L[x, p]
            for k in range(p):
                sums.gram[j, k] -= E[x, j] * L[x, k]
    for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
        for j in range(p):
            sums.score[j] += gram[i, x0 + j, x0 + p]
            for k in range(p):
                sums.gram[j, k] += gram[i, x0 + j, x0 + k]
                sums.noise_gram[j, k] += noise[i, x0 + j, x0 + k]
    for x in range(q):
        for j in range(p):
            for k in range(p):
                s = L[x, j] * (N[x, q + k] + through[x, k]) + L[x, k] * (
                    N[x, q + j] + through[x, j]
                )
                sums.noise_gram[j, k] -= 0.5 * s

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
                sums.noise[f] -= 2.0 * Kg[f, a] * noise[i, z0 + a, f]
            for h in range(f + 1):
                for a in range(d):
                    s = gram[i, f, h] * Kg[h, a] * gram[i, f, z0 + a]
                    sums.trace[f * (f + 1) // 2 + h] -= 2.0 * s
        _add_donor(layout, i, gram, noise, sums, v, t)
        for a in range(d):
            x = layout.level[i, a] - l0
            if x >= 0:
                for f in range(R):
                    for j in range(p):
                        VG[f, j, x] += v[f, j] * gram[i, f, z0 + a]
    _add_levels(layout, l0, M, E, N, K, L, through, GG, VG, sums)


@njit(**_INNER)
def _add_levels(layout, l0, M, E, N, K, L, through, GG, VG, sums):
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
                sums.noise_cross[f, j, k] -= taken[vf + j, k]
        for x in range(q):
            for y in range(q):
                sums.noise[f] += both[q + x, y] * both[gf + y, x]
        for h in range(f + 1):
            pair, gh, vh = f * (f + 1) // 2 + h, g0 + h * q, p + h * p
            for j in range(p):
                for k in range(p):
                    sums.cross[pair, j, k] -= taken[vf + j, vh + k]
            for x in range(q):
                for y in range(q):
                    sums.trace[pair] += both[gf + x, y] * both[gh + y, x]
        for x in range(q):  # a level and all donors
            level = R + layout.level_comp[l0 + x]
            pair = level * (level + 1) // 2 + f
            for y in range(q):
                sums.trace[pair] += sides[y, q + x] * both[gf + y, q + x]
            for j in range(p):
                for k in range(p):
                    sums.cross[pair, j, k] += V[x, j] * both[v0 + vf + k, q + x]
    for x in range(q):
        f = R + layout.level_comp[l0 + x]
        sums.value[f] += V[x, p] * V[x, p]
        for y in range(q):
            sums.noise[f] += sides[y, q + x] * both[q + y, q + x]
        for j in range(p):
            sums.mixed[f, j] += V[x, j] * V[x, p]
            for k in range(p):
                sums.square[f, j, k] += V[x, j] * V[x, k]
                sums.noise_cross[f, j, k] += V[x, j] * V[x, p + 1 + k]
        for y in range(q):
            h = R + layout.level_comp[l0 + y]
            if h <= f:
                pair, s = f * (f + 1) // 2 + h, both[x, q + y]
                sums.trace[pair] += s * both[x, q + y]
                for j in range(p):
                    for k in range(p):
                        sums.cross[pair, j, k] += s * V[x, j] * V[y, k]
