"""What levels of random effects add to the sums over donors: compiled loops over blocks.

The sums are those of :mod:`ctmm_formula.engine.unit_sums`.  The covariance of a block of donors is
blockdiag(Sigma_i) + Z G Z', so with D = blockdiag(Sigma_i^-1) and M = Z'D Z,

    S = D - D Z K Z'D,    K = (I + G M)^-1 G
    S [X r] = D ([X r] - Z L),    L = K Z'D [X r],    S Z = D Z (I - K M)

Pairs of donors meet in the levels only, so the cost is linear in donors, whatever the size of the
block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kernels import _woodbury, empty, zeros
from .model import LANES
from .options import called


class Levels(NamedTuple):
    """Of q levels, and of all pairs of those of a block, block by block, row by row.

    With M = Z'D Z: K, keep = I - M K, N = Z'D D_nu D Z, NK = N K and SZ = Z'S Z of pairs; own (q,)
    z'S D_nu S z; E = Z'D [X r] and L (q, p + 1); through (q, p) Z'D D_nu D (X - Z L).  Of the
    factors f of donors, with g = Z'D f: GG sum of g g' and GK = GG K (R pairs), block by block; VG
    (R, q, p) sum of g v', KV and kept (R, q, p) K VG and keep VG, met (R, q) sum of (f'S z)^2.  Of
    the levels as factors: V and T (q, p), e (q,); ahead, turned (q, p) E and `through`.  All are
    turned as v and t are.
    """

    K: np.ndarray
    keep: np.ndarray
    N: np.ndarray
    NK: np.ndarray
    SZ: np.ndarray
    own: np.ndarray
    E: np.ndarray
    L: np.ndarray
    through: np.ndarray
    GG: np.ndarray
    VG: np.ndarray
    GK: np.ndarray
    KV: np.ndarray
    kept: np.ndarray
    met: np.ndarray
    V: np.ndarray
    T: np.ndarray
    e: np.ndarray
    ahead: np.ndarray
    turned: np.ndarray


@called
def make_levels(layout):
    """Memory for levels."""
    q, pairs, R, p = len(layout.level_comp), layout.pair_ptr[-1], layout.R, layout.p
    return Levels(
        empty(pairs), empty(pairs), empty(pairs), empty(pairs), empty(pairs), empty(q),
        empty((q, p + 1)), empty((q, p + 1)), empty((q, p)), empty(R * pairs), zeros((R, q, p)),
        empty(R * pairs), zeros((R, q, p)), zeros((R, q, p)), empty((R, q)),
        empty((q, p)), empty((q, p)), empty(q), empty((q, p)), zeros((q, p)),
    )  # fmt: skip


@called
def _square(pairs, at, q):
    """The matrix of a unit's pairs, (q, q)."""
    return pairs[at : at + q * q].reshape(q, q)


@called
def _squares(pairs, at, q, R):
    """The matrices of a unit's pairs, of each factor one, (R, q, q)."""
    return pairs[R * at : R * (at + q * q)].reshape(R, q, q)


@called
def eliminate(layout, u, gram, noise, g, levels):
    """M, N, K, E, L and `through` of the levels of a unit from the cross products of its donors."""
    p, x0 = layout.p, layout.R
    z0 = x0 + p + 1
    d, first = layout.level.shape[1], layout.level_start[u]
    q, at = layout.level_stop[u] - first, layout.pair_ptr[u]
    M, N, K, T = zeros((q, q)), zeros((q, q)), empty((q, q)), empty((q, q))
    E, L, through = levels.E[first:], levels.L[first:], levels.through[first:]
    for x in range(q):
        for j in range(p):
            E[x, j] = through[x, j] = 0.0
        E[x, p] = 0.0
    for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
        t, lane = i // LANES, i % LANES
        for a in range(d):
            x = layout.level[i, a] - first
            if x < 0:
                continue
            for j in range(p):
                E[x, j] += gram[t, z0 + a, x0 + j, lane]
                through[x, j] += noise[t, z0 + a, x0 + j, lane]
            E[x, p] += gram[t, z0 + a, x0 + p, lane]
            for b in range(a + 1):
                y = layout.level[i, b] - first
                if y >= 0:
                    M[x, y] += gram[t, z0 + a, z0 + b, lane]
                    N[x, y] += noise[t, z0 + a, z0 + b, lane]
                    if a != b:
                        M[y, x] += gram[t, z0 + a, z0 + b, lane]
                        N[y, x] += noise[t, z0 + a, z0 + b, lane]
    variances = empty(q)
    for x in range(q):
        variances[x] = g[layout.level_comp[first + x]]
    _woodbury(variances, M, q, T, empty(q), np.empty(q, np.int64), K)
    for x in range(q):
        for j in range(p + 1):
            s = 0.0
            for y in range(q):
                s += K[x, y] * E[y, j]
            L[x, j] = s
        for y in range(q):
            s, n = 1.0 if x == y else 0.0, 0.0
            for z in range(q):
                s -= K[x, z] * M[y, z]
                n += N[x, z] * K[y, z]
            T[y, x], levels.NK[at + x * q + y] = s, n
            levels.K[at + x * q + y], levels.N[at + x * q + y] = K[x, y], N[x, y]
            levels.keep[at + y * q + x] = s
    for x in range(q):
        levels.own[first + x] = 0.0
        for y in range(q):
            s, n = 0.0, 0.0
            for z in range(q):
                s += M[x, z] * T[y, z]
                n += N[y, z] * T[x, z]
            levels.SZ[at + x * q + y] = s
            levels.own[first + x] += T[x, y] * n
            for j in range(p):
                through[x, j] -= N[x, y] * L[y, j]


@called
def take_levels(layout, u, levels, gram, score, noise):
    """Take what goes through levels off X'SX, X'Sr and X'S D_nu S X of a unit's donors."""
    first, last, p = layout.level_start[u], layout.level_stop[u], layout.p
    q, at = last - first, layout.pair_ptr[u]
    for x in range(first, last):
        for j in range(p):
            score[j] -= levels.E[x, j] * levels.L[x, p]
            both = levels.through[x, j]  # of Z'D D_nu D X too
            for y in range(first, last):
                both += 0.5 * levels.N[at + (x - first) * q + y - first] * levels.L[y, j]
            for k in range(p):
                gram[j, k] -= levels.E[x, j] * levels.L[x, k]
                noise[j, k] -= both * levels.L[x, k]
                noise[k, j] -= both * levels.L[x, k]


@called
def clear(layout, first, last, levels):
    """GG and VG of units first to last <- 0."""
    for at in range(layout.R * layout.pair_ptr[first], layout.R * layout.pair_ptr[last]):
        levels.GG[at] = 0.0
    for u in range(first, last):
        for x in range(layout.level_start[u], layout.level_stop[u]):
            for f in range(layout.R):
                for j in range(layout.p):
                    levels.VG[f, x, j] = 0.0


@called
def meet(layout, t, low, high, gram, v, levels):
    """Add donors `low` to `high`, as far as they are in tile t, to GG and VG."""
    d, R, p = layout.level.shape[1], layout.R, layout.p
    z0 = R + p + 1
    for i in range(max(low, t * LANES), min(high, (t + 1) * LANES)):
        lane, u = i - t * LANES, layout.unit[i]
        first = layout.level_start[u]
        q = layout.level_stop[u] - first
        for a in range(d):
            x = layout.level[i, a]
            if x < 0:
                continue
            for f in range(R):
                along = gram[t, z0 + a, f, lane]
                for j in range(p):
                    levels.VG[f, x, j] += along * v[t, f, j, lane]
                for b in range(d):
                    y = layout.level[i, b]
                    if y >= 0:
                        at = R * layout.pair_ptr[u] + (f * q + x - first) * q + y - first
                        levels.GG[at] += along * gram[t, z0 + b, f, lane]


@called
def _add_product(out, at, lane, scale, x, a, y, b, n):
    """out[at, :, lane] += scale times the symmetric part of sum_i x[a + i] y[b + i]', or its trace.

    The sum is over n rows.
    """
    p = x.shape[1]
    if out.shape[1] == 1:
        s = 0.0
        for q in range(n):
            for j in range(p):
                s += x[a + q, j] * y[b + q, j]
        out[at, 0, lane] += scale * s
        return
    row = out[at].reshape(out.shape[1])  # matrices are had of all units together
    for q in range(n):
        i = 0
        for j in range(p):
            f, g = 0.5 * scale * x[a + q, j], 0.5 * scale * y[b + q, j]
            for k in range(j + 1):
                row[i + k] += f * y[b + q, k] + g * x[a + q, k]
            i += j + 1


@called
def _solve_levels(layout, u, beta, root, lane, levels):
    """Products of a unit's levels with K and keep, and their own V, T and e."""
    p, R, first, last = layout.p, layout.R, layout.level_start[u], layout.level_stop[u]
    at, q = layout.pair_ptr[u], last - first
    for x in range(first, last):
        levels.e[x] = 0.0
        for j in range(p):
            levels.V[x, j] = levels.T[x, j] = levels.turned[x, j] = levels.ahead[x, j] = 0.0
            for k in range(j + 1):
                levels.turned[x, j] += root[k, j, lane] * levels.through[x, k]
                levels.ahead[x, j] += root[k, j, lane] * levels.E[x, k]
            for f in range(R):
                levels.KV[f, x, j] = levels.kept[f, x, j] = 0.0
    K, keep = _square(levels.K, at, q), _square(levels.keep, at, q)
    GG, GK = _squares(levels.GG, at, q, R), _squares(levels.GK, at, q, R)
    for f in range(R):
        for x in range(q):
            met = 0.0
            for y in range(q):
                s = u = 0.0
                for z in range(q):
                    s += GG[f, x, z] * K[y, z]
                    u += GG[f, y, z] * keep[x, z]
                GK[f, x, y] = s
                met += keep[x, y] * u
                for j in range(p):
                    levels.KV[f, first + x, j] += K[x, y] * levels.VG[f, first + y, j]
                    levels.kept[f, first + x, j] += keep[x, y] * levels.VG[f, first + y, j]
            levels.met[f, first + x] = met
    for x in range(q):
        for y in range(q):
            residual = levels.E[first + y, p]
            for j in range(p):
                residual -= levels.E[first + y, j] * beta[j, lane]
                levels.V[first + x, j] += keep[x, y] * levels.ahead[first + y, j]
                levels.T[first + x, j] += keep[x, y] * levels.turned[first + y, j]
            levels.e[first + x] += keep[x, y] * residual


@called
def add_levels(layout, units, beta, root, lane, levels, sums):
    """Add to the sums in `lane` what goes through levels: between donors, and levels as factors.

    Of units units[0] to units[1].  beta (p, LANES) fixed effects of r; root (p, p, LANES) turns v
    and t.
    """
    p, R, trace, cross = layout.p, layout.R, sums.trace, sums.cross
    for u in range(*units):
        _solve_levels(layout, u, beta, root, lane, levels)
    begin, end = layout.level_start[units[0]], layout.level_stop[units[1] - 1]
    for f in range(R):
        KV, n = levels.KV[f], end - begin
        _add_product(sums.noise_cross, f, lane, -1.0, KV, begin, levels.turned, begin, n)
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            _add_product(cross, pair, lane, -1.0, KV, begin, levels.VG[h], begin, n)
    for u in range(*units):
        first, at = layout.level_start[u], layout.pair_ptr[u]
        q = layout.level_stop[u] - first
        GK, NK = _squares(levels.GK, at, q, R), _square(levels.NK, at, q)
        for f in range(R):
            for x in range(q):
                for y in range(q):
                    sums.excess[f, lane] -= NK[x, y] * GK[f, y, x]
            for h in range(f + 1):
                s = 0.0
                for x in range(q):
                    for y in range(q):
                        s += GK[f, x, y] * GK[h, y, x]
                trace[f * (f + 1) // 2 + h, lane] += s
        for x in range(q):
            f, own, V = R + layout.level_comp[first + x], first + x, levels.V
            residual = levels.e[own]
            sums.excess[f, lane] += residual * residual - levels.own[own]
            i = 0
            for j in range(p):
                sums.mixed[f, j, lane] += residual * V[own, j]
                for k in range(j + 1):
                    sums.square[f, i, lane] += V[own, j] * V[own, k]
                    i += 1
            _add_product(sums.noise_cross, f, lane, 1.0, V, own, levels.T, own, 1)
            for h in range(R):  # the level and all donors
                pair = f * (f + 1) // 2 + h
                trace[pair, lane] += levels.met[h, own]
                _add_product(cross, pair, lane, 1.0, V, own, levels.kept[h], own, 1)
            for y in range(q):
                h = R + layout.level_comp[first + y]
                if h <= f:
                    pair, s = f * (f + 1) // 2 + h, levels.SZ[at + x * q + y]
                    trace[pair, lane] += s * s
                    _add_product(cross, pair, lane, s, V, own, V, first + y, 1)
