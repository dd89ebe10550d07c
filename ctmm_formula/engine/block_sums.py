"""Sums of a block of donors that random effects join: compiled loops over its donors and levels.

The sums are those of :mod:`ctmm_formula.engine.unit_sums`, made from the cross products of the
block's donors.  Its covariance is blockdiag(Sigma_i) + Z G Z', so with D = blockdiag(Sigma_i^-1)
and M = Z'D Z,

    S = D - D Z K Z'D,    K = (I + G M)^-1 G
    S [X r] = D ([X r] - Z L),    L = K Z'D [X r],    S Z = D Z (I - K M)

Pairs of donors meet in the levels only, so the cost is linear in donors, whatever the size of the
block.
"""

from __future__ import annotations

import numpy as np

from .kernels import _woodbury, empty, zeros
from .options import called


@called
def _product(A, B):
    """A B; loops, as BLAS costs more to call than such small matrices do."""
    n, k, m = A.shape[0], A.shape[1], B.shape[1]
    out = zeros((n, m))
    for x in range(n):
        for y in range(k):
            f = A[x, y]
            for z in range(m):
                out[x, z] += f * B[y, z]
    return out


@called
def _turned(A):
    """A' as an array of its own."""
    out = empty((A.shape[1], A.shape[0]))
    for x in range(A.shape[0]):
        for y in range(A.shape[1]):
            out[y, x] = A[x, y]
    return out


@called
def _eliminate_levels(layout, u, gram, noise, g):
    """M = Z'D Z, E = Z'D [X r], N = Z'D D_nu D [Z X], K and L of a unit, D = blockdiag(Sigma_i^-1).

    None of them has rows where the unit has no levels.
    """
    p, x0 = layout.p, layout.R
    z0 = x0 + p + 1
    d, l0 = layout.level.shape[1], layout.level_start[u]
    q = layout.level_stop[u] - l0
    M, E, N = zeros((q, q)), zeros((q, p + 1)), zeros((q, q + p))
    K, T = empty((q, q)), empty((q, q))
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
    variances = empty(q)
    for x in range(q):
        variances[x] = g[layout.level_comp[l0 + x]]
    _woodbury(variances, M, q, T, empty(q), np.empty(q, np.int64), K)
    return M, E, N, K, _product(K, E)


@called
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


@called
def block_sums(layout, u, gram, noise, g, sums, v, t):
    """Sums of one unit, with or without levels, from the cross products (N, c, c) of its donors.

    v (R, p + 1) and t (R, p) are overwritten.
    """
    p, R, x0 = layout.p, layout.R, layout.R
    z0 = x0 + p + 1
    d, l0 = layout.level.shape[1], layout.level_start[u]
    q = layout.level_stop[u] - l0
    M, E, N, K, L = _eliminate_levels(layout, u, gram, noise, g)
    through = empty((q, p))  # Z'D D_nu S X
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
    GG, VG, Kg = zeros((R, q, q)), zeros((R, p, q)), zeros((R, d))
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


@called
def _add_levels(layout, l0, M, E, N, K, L, through, GG, VG, sums):
    """What goes through the levels of a unit: between its donors, and the levels as factors.

    With keep = I - K M, S Z = D Z keep.  Products share one call each, which is what there is to
    compile: rows [M; N; G_1 ...; VG_1 ...] by columns [K | keep].
    """
    p, R, q = layout.p, layout.R, len(M)
    sides, rows = empty((q, 2 * q)), empty((2 * q + R * (q + p), q))
    right, spread = empty((q, 2 * p + 1)), empty((q, p + R * p))
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
