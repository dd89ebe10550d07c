"""What an independent unit adds to the noise-robust estimate: compiled loops over its rows.

A unit is a donor, or a block of donors joined through levels of random effects.  S is the inverse
of its working covariance, D = diag(nu) its measured noise, r a residual, Sigma_f the derivative of
the covariance for factor f (see :mod:`ctmm_formula.engine.model`).  All there is to know about the
units are the sums (:class:`Sums`) of

    X'SX, X'Sr                                               fixed effects
    tr(S Sigma_f S Sigma_g), X'S Sigma_f S Sigma_g S X,
    X'S Sigma_f S X, X'S Sigma_f S r, r'S Sigma_f S r        moments of the response
    tr(S Sigma_f S D), X'S Sigma_f S D S X, X'S D S X        moments of the noise

from which :mod:`ctmm_formula.engine.sweeps` makes the estimate.  Donors enter through their two
cross products [W X r Z]'Sigma_i^-1 [W X r Z] and the same with Sigma_i^-1 D Sigma_i^-1, LANES of
them at once (:mod:`ctmm_formula.engine.lanes`).  A donor without levels is a unit, and these hold
its sums; for blocks see :mod:`ctmm_formula.engine.block_sums`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kernels import _factor, _inner, _whiten, empty, zeros
from .lanes import load, spread, store, total
from .model import LANES
from .options import called, inlined


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


@called
def make_tile(layout):
    """Memory for one tile."""
    c, m, C = layout.columns.shape[1], layout.columns.shape[2], layout.H.shape[1]
    return Tile(
        empty((m, m, LANES)), empty((c, m, LANES)), empty((c, m, LANES)),
        empty((C, LANES)), empty((c, c, LANES)), zeros((c, c, LANES)),
    )  # fmt: skip


def size_of(F: int, p: int) -> int:
    """Length of the vector that holds the sums."""
    pairs = F * (F + 1) // 2
    return 2 * p * p + p + pairs * (1 + p * p) + F * (2 * p * p + p + 2)


@called
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


@called
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


@called
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


@inlined
def _put(sums, rest, index, value):
    """rest = sums - value, lane by lane, or, where rest is sums, sums += value of all lanes."""
    if rest.ndim == sums.ndim:  # known when this is compiled
        sums[index] += total(value)
    else:
        store(rest, index, sums[index] - value)


@called
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
