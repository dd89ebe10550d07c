"""What donors and their levels say about a noise-robust estimate: compiled loops over its rows.

An independent unit is a donor, or a block of donors joined through levels of random effects.  S is
the inverse of its working covariance, D = diag(nu) its measured noise, e = r - X beta a residual,
Sigma_f the derivative of the covariance for factor f (see :mod:`ctmm_formula.engine.model`), the
sum of f f' over its columns f, one for each donor, or level of a random effect.  With

    v = turn'X'S f,   t = turn'X'S D S f,   e_f = f'S e

of every column, where turn turn' is a covariance of the fixed effects, all that an estimate needs
are sums over columns and over pairs of them (:class:`Sums`).  Donors enter through their two cross
products [W X r Z]'Sigma_i^-1 [W X r Z] and the same with Sigma_i^-1 D Sigma_i^-1, LANES of them at
once (:mod:`ctmm_formula.engine.lanes`); what joins them is in
:mod:`ctmm_formula.engine.block_sums`, and :mod:`ctmm_formula.engine.sweeps` makes the estimate.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kernels import _factor, _inner, _whiten
from .lanes import aligned, load, spread, store
from .model import LANES
from .options import called, inlined


class Layout(NamedTuple):
    """What all responses of a design share; N donors in use, in :class:`~.model.Tiles` of LANES.

    columns (T, R + p + 1 + d, m, LANES) = [W | X | . | Z]: factor loadings, orthonormal fixed
    effects, the place of the residual, weights of the at most d levels of a donor; H
    (T, C, m, LANES); R, p; unit_ptr (U + 1,) donors of each unit; unit (N,) unit of each donor;
    level (N, d) levels of a donor or -1; level_start, level_stop (U,) levels of each unit; pair_ptr
    (U + 1,) pairs of levels of each unit; level_comp (q,) random component of a level; S
    (K + Kr, R + Kr) components to factors; basis (K, C, C); variance (K,) whether a component is a
    variance, to be held >= 0 by itself in the weights.
    """

    columns: np.ndarray
    H: np.ndarray
    R: int
    p: int
    unit_ptr: np.ndarray
    unit: np.ndarray
    level: np.ndarray
    level_start: np.ndarray
    level_stop: np.ndarray
    pair_ptr: np.ndarray
    level_comp: np.ndarray
    S: np.ndarray
    basis: np.ndarray
    variance: np.ndarray


class Sums(NamedTuple):
    """Sums over columns, F = R + Kr factors, with LANES of them, or one, in the last axis.

    excess (F,) of e_f^2 - f'S D S f; mixed (F, p) of v e_f; trace (P,) of (f'S g)^2 over pairs of
    factors f >= g packed as f (f + 1) / 2 + g; cross (P, w) of (f'S g) v_f v_g'; square (F, p') of
    v v'; noise_cross (F, w) of v t'.  Matrices stand for their symmetric part, whose lower triangle
    has p' = p (p + 1) / 2 entries; where w = 1, only their trace is kept.
    """

    excess: np.ndarray
    mixed: np.ndarray
    trace: np.ndarray
    cross: np.ndarray
    square: np.ndarray
    noise_cross: np.ndarray


class Tile(NamedTuple):
    """Memory for one tile of donors, LANES in the last axis.

    low (m, m), V and B (c, m): factor of Sigma_i, whitened columns, Sigma_i^-1 times the columns;
    HA (C,); K (d, d) and L (d, p + 1) at the levels of the donors.
    """

    low: np.ndarray
    V: np.ndarray
    B: np.ndarray
    HA: np.ndarray
    K: np.ndarray
    L: np.ndarray


class Effects(NamedTuple):
    """What the factors of donors have with the fixed effects and levels, tile by tile.

    v and t (T, R, p, LANES), e (T, R, LANES); Kg (T, R, d, LANES) K times Z'S f at the levels.
    """

    v: np.ndarray
    t: np.ndarray
    e: np.ndarray
    Kg: np.ndarray


@called
def make_tile(layout):
    """Memory for one tile."""
    c, m, C = layout.columns.shape[1], layout.columns.shape[2], layout.H.shape[1]
    p, d = layout.p, layout.level.shape[1]
    return Tile(
        aligned((m, m, LANES)), aligned((c, m, LANES)), aligned((c, m, LANES)), aligned((C, LANES)),
        aligned((d, d, LANES)), aligned((d, p + 1, LANES)),
    )  # fmt: skip


@called
def make_effects(layout, v, t):
    """Memory for the effects of all tiles; that for v and t is given."""
    T, R, d = len(layout.columns), layout.R, layout.level.shape[1]
    return Effects(v, t, aligned((T, R, LANES)), aligned((T, R, d, LANES)))


@called
def size_of(F, p, wide):
    """Length of the vectors that hold the sums, with matrices or, where not `wide`, traces."""
    pairs, packed = F * (F + 1) // 2, p * (p + 1) // 2
    width = packed if wide else 1
    return F * (1 + p + packed + width) + pairs * (1 + width)


@called
def parts(flat, F, p, wide):
    """The sums as parts of vectors (size, LANES), or of one (size, 1), which are one array."""
    pairs, packed, n = F * (F + 1) // 2, p * (p + 1) // 2, flat.shape[1]
    width = packed if wide else 1
    a = F + F * p
    b = a + pairs
    c = b + pairs * width
    d = c + F * packed
    return Sums(
        flat[:F], flat[F:a].reshape(F, p, n), flat[a:b], flat[b:c].reshape(pairs, width, n),
        flat[c:d].reshape(F, packed, n), flat[d : d + F * width].reshape(F, width, n),
    )  # fmt: skip


@called
def cross_products(layout, t, A, w, nu, r, wk, gram, noise):
    """The two cross products of tile t of donors; False if a Sigma_i is not positive definite.

    Their lower triangles, in gram and noise (T, c, c, LANES).  Of the residual only what it has
    with factors, effects and levels is made, with the noise nothing; and with the noise nothing of
    different columns of W.
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
        for k in range(j if j == at else j + 1):
            store(gram, (t, j, k), _inner(wk.V, j, k))
        for a in range(m - 1, -1, -1):
            s = load(wk.V, (j, a))
            for b in range(a + 1, m):
                s -= load(wk.low, (b, a)) * load(wk.B, (j, b))
            store(wk.B, (j, a), s * load(wk.low, (a, a)))
    for j in range(count):
        if j == at:
            continue
        for a in range(m):  # V is free: it now holds D Sigma_i^-1 times the columns
            store(wk.V, (j, a), load(nu, (t, a)) * load(wk.B, (j, a)))
        for k in range(j if j < R else 0, j + 1):
            if k == at:
                continue
            s = load(wk.V, (j, 0)) * load(wk.B, (k, 0))
            for a in range(1, m):
                s += load(wk.V, (j, a)) * load(wk.B, (k, a))
            store(noise, (t, j, k), s)
    return True


@called
def effects_of(layout, t, gram, noise, levels, beta, root, turning, wk, effects):
    """Effects of the factors of tile t of donors, turned by root if `turning`.

    beta (p, LANES): fixed effects of r; root (p, p, LANES) is upper triangular.
    """
    R, p, d = layout.R, layout.p, layout.level.shape[1]
    r = R + p
    z0 = r + 1
    gather(layout, t, levels, wk)
    for f in range(R):
        residual = load(gram, (t, r, f))
        for a in range(d):
            residual -= load(gram, (t, z0 + a, f)) * load(wk.L, (a, p))
            s = spread(0.0)
            for b in range(d):
                s += load(wk.K, (a, b)) * load(gram, (t, z0 + b, f))
            store(effects.Kg, (t, f, a), s)
        for j in range(p):
            s, u = load(gram, (t, R + j, f)), load(noise, (t, R + j, f))
            for a in range(d):
                share = load(wk.L, (a, j))
                s -= load(gram, (t, z0 + a, f)) * share
                u -= load(noise, (t, z0 + a, f)) * share
            store(effects.v, (t, f, j), s)
            store(effects.t, (t, f, j), u)
            residual -= s * load(beta, j)
        store(effects.e, (t, f), residual)
        for j in range(p - 1 if turning else -1, -1, -1):
            turned = load(root, (j, j))
            s, u = turned * load(effects.v, (t, f, j)), turned * load(effects.t, (t, f, j))
            for k in range(j):
                turned = load(root, (k, j))
                s += turned * load(effects.v, (t, f, k))
                u += turned * load(effects.t, (t, f, k))
            store(effects.v, (t, f, j), s)
            store(effects.t, (t, f, j), u)


@called
def gather(layout, t, levels, wk):
    """K and L at the levels of a tile of donors; zero where a donor has none."""
    d, p = layout.level.shape[1], layout.p
    for lane in range(LANES if d > 0 else 0):
        i = t * LANES + lane
        there = i < len(layout.level)
        u = layout.unit[i] if there else 0
        first = layout.level_start[u]
        q = layout.level_stop[u] - first
        for a in range(d):
            x = layout.level[i, a] if there else -1
            for j in range(p + 1):
                wk.L[a, j, lane] = levels.L[x, j] if x >= 0 else 0.0
            for b in range(d):
                y = layout.level[i, b] if there else -1
                wk.K[a, b, lane] = 0.0
                if x >= 0 and y >= 0:
                    at = layout.pair_ptr[u] + (x - first) * q + y - first
                    wk.K[a, b, lane] = levels.K[at]


@inlined
def _add(out, index, value):
    store(out, index, load(out, index) + value)


@called
def add_donors(layout, first, last, gram, noise, effects, sums):
    """Add the factors of donors in tiles `first` to `last` to the sums, lane by lane."""
    R, p, d = layout.R, layout.p, layout.level.shape[1]
    v, u, wide = effects.v, effects.t, sums.cross.shape[1] != 1
    z0 = R + p + 1
    pair = 0
    for f in range(R):
        s, c = spread(0.0), spread(0.0)
        for t in range(first, last):
            residual = load(effects.e, (t, f))
            s += residual * residual - load(noise, (t, f, f))
            for a in range(d):
                s += 2.0 * load(effects.Kg, (t, f, a)) * load(noise, (t, z0 + a, f))
            for j in range(0 if wide else p):
                c += load(v, (t, f, j)) * load(u, (t, f, j))
        _add(sums.excess, f, s)
        if not wide:
            _add(sums.noise_cross, (f, 0), c)
        i = 0
        for j in range(p):
            s = spread(0.0)
            for t in range(first, last):
                s += load(effects.e, (t, f)) * load(v, (t, f, j))
            _add(sums.mixed, (f, j), s)
            for k in range(j + 1):
                s, c = spread(0.0), spread(0.0)
                for t in range(first, last):
                    s += load(v, (t, f, j)) * load(v, (t, f, k))
                    if wide:
                        c += load(v, (t, f, j)) * load(u, (t, f, k))
                        c += load(v, (t, f, k)) * load(u, (t, f, j))
                _add(sums.square, (f, i), s)
                if wide:
                    _add(sums.noise_cross, (f, i), 0.5 * c)
                i += 1
        for h in range(f + 1):
            s, c = spread(0.0), spread(0.0)
            for t in range(first, last):
                shared = load(gram, (t, f, h))
                own = shared
                for a in range(d):
                    own -= 2.0 * load(effects.Kg, (t, h, a)) * load(gram, (t, z0 + a, f))
                s += shared * own
                own = spread(0.0)
                for j in range(0 if wide else p):
                    own += load(v, (t, f, j)) * load(v, (t, h, j))
                c += shared * own
            _add(sums.trace, pair, s)
            if not wide:
                _add(sums.cross, (pair, 0), c)
            i = 0
            for j in range(p if wide else 0):
                for k in range(j + 1):
                    s = spread(0.0)
                    for t in range(first, last):
                        own = load(v, (t, f, j)) * load(v, (t, h, k))
                        own += load(v, (t, f, k)) * load(v, (t, h, j))
                        s += load(gram, (t, f, h)) * own
                    _add(sums.cross, (pair, i), 0.5 * s)
                    i += 1
            pair += 1
