"""Scores without each group of donors, from quantities of the full fit: compiled loops.

To leave out the rows I of a group of donors is to give each of them a mean of its own.  With
P = D^-1 - Phi Omega Phi', Phi = [D^-1 Z, U], Omega = blockdiag(K, 1) of the full data (see
:mod:`ctmm_formula.engine.kernels`), let B be the rows I of Phi and v those of P y, both whitened
by the covariances of the donors.  At the same theta, in the rows of the others,

    C           = 1 - B Omega B',   N = B'C^-1 B,   t = B'C^-1 v
    P(-I)       = D^-1 - Phi (Omega + Omega N Omega) Phi'
    P(-I) y     = P y + Phi Omega t
    U(-I)       = U + Phi Omega N_U
    b(-I)       = L^-T (U'y - t_U)
    db(-I) / dtheta_f = -L^-T U(-I)' Sigma_f P(-I) y

(ML has Sigma^-1 in place of P in the traces, so of N only what levels have.)  With Sigma_f the sum
of f f' over columns f, one for each donor and factor, or level of a random effect, all that is
asked are sums over columns of h h' and h f'P y, h = Phi'f.  Those of all donors are made once, and
what the group has in them is taken off: the cost of all groups is linear in donors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .kernels import (
    _factor,
    _inner,
    _multiply,
    _pair,
    _project,
    _project_rows,
    _times_levels,
    _turned,
    _unpack,
    _whiten,
    empty,
    profiled,
    whitened,
    zero_rows,
    zeros,
)
from .lanes import aligned, load, spread, store, total
from .model import LANES, Model
from .optimize import Problem, factors
from .options import called, kept

_ALONE = 1e-9  # share of a row's precision that is left where the fixed effects rest on the group


class Scores(NamedTuple):
    """Score at one theta without each of G groups of donors.

    grad (G, K); beta (G, p) fixed effects of the problem's response at this theta and slope
    (G, K, p) their derivatives; found (G,): the others determine the fixed effects.
    """

    grad: np.ndarray
    beta: np.ndarray
    slope: np.ndarray
    found: np.ndarray

    def part(self, which: np.ndarray) -> Scores:
        """Of some of the groups."""
        return Scores(*(values[which] for values in self))


class Groups(NamedTuple):
    """Groups of donors to leave out, as padded arrays; made by :func:`grouped`.

    donors (G, j) kernel numbers; levels (G, b) that they touch; place (G, j, d) of the levels of a
    donor among these; -1 where there is none.
    """

    donors: np.ndarray
    levels: np.ndarray
    place: np.ndarray


class _Sums(NamedTuple):
    """Sums of all donors for F = R + Kr factors f, those of levels multiplied by Omega.

    size (F,) of (f'P y)^2 - f'P f; inner (F, p, p + 1) = U'[Sigma_f U, Sigma_f P y]; of levels, in
    the order of blocks, pairs (F, pairs) and with the fixed effects and P y across (F, q, p + 1).
    """

    size: np.ndarray
    inner: np.ndarray
    pairs: np.ndarray
    across: np.ndarray


class _Own(NamedTuple):
    """Memory for LANES groups of j donors, k = b + p columns; LANES in the last axis.

    Of one donor of each group W (R, m), Y (k + 1, m) = [B v], X (k, m) = Omega B', rest (k + 1, m)
    [B v] without the donors before and low (m, m); K (b, b); h (R, j, k + 1) = W'[B v] and size
    (R, j) of W'W by donor; N, and traced (k, k) what the traces take of it; t, x, moved (k,);
    pairs (b, b) and across (b, p + 1) of one factor; at (b, b) where pairs of levels lie, or -1.
    """

    W: np.ndarray
    Y: np.ndarray
    X: np.ndarray
    rest: np.ndarray
    low: np.ndarray
    K: np.ndarray
    h: np.ndarray
    size: np.ndarray
    N: np.ndarray
    traced: np.ndarray
    t: np.ndarray
    x: np.ndarray
    moved: np.ndarray
    pairs: np.ndarray
    across: np.ndarray
    at: np.ndarray


def grouped(model: Model, groups: Sequence[np.ndarray]) -> Groups:
    """Groups of donors (kernel numbers) of a model; the same for all responses."""
    level = model.blocks.level
    own = [np.unique(level[group][level[group] >= 0]) for group in groups]
    donors, levels = _padded(groups), _padded(own)
    place = np.full((*donors.shape, level.shape[1]), -1)
    for g, group in enumerate(groups):
        there = level[group]
        place[g, : len(group)] = np.where(there >= 0, np.searchsorted(own[g], there), -1)
    return Groups(donors, levels, place)


def _padded(lists: Sequence[np.ndarray]) -> np.ndarray:
    """Lists of numbers as rows of a matrix, -1 where a list has ended."""
    size = np.array([len(part) for part in lists])
    real = np.arange(size.max(initial=0)) < size[:, None]
    out = np.full(real.shape, -1, dtype=np.int64)
    out[real] = np.concatenate(lists)
    return out


def left_out_scores(pr: Problem, theta: np.ndarray, groups: Groups) -> Scores:
    """Score and fixed effects at `theta` (K,) of a problem without each group of donors."""
    F, p, G = pr.S.shape[1], pr.blocks.p, len(groups.donors)
    grad, beta, slope = np.empty((G, F)), np.empty((G, p)), np.empty((G, F, p))
    found, root = np.zeros(G, dtype=bool), np.zeros((p, p))
    _left_out(pr, theta, *groups, grad, beta, slope, found, root)
    slope = (slope.reshape(-1, p) @ root.T).reshape(slope.shape)
    return Scores(0.5 * grad @ pr.S.T, beta @ root.T, pr.S @ slope, found)


@called
def _make_own(R, p, b, m, j):
    k = b + p
    return _Own(
        aligned((R, m, LANES)), aligned((k + 1, m, LANES)), aligned((k, m, LANES)),
        aligned((k + 1, m, LANES)), aligned((m, m, LANES)), aligned((b, b, LANES)),
        aligned((R, j, k + 1, LANES)), aligned((R, j, LANES)), aligned((k, k, LANES)),
        aligned((k, k, LANES)), aligned((k, LANES)), aligned((k, LANES)), aligned((k, LANES)),
        aligned((b, b, LANES)), aligned((b, p + 1, LANES)), np.empty((b, b, LANES), np.int64),
    )  # fmt: skip


@called
def _sum_donors(pr, V_all, K_all, KZ, turn, sums):
    """Sums over the factors of donors; V becomes [W U P y Z], whitened, levels taken off."""
    blocks = pr.blocks
    R, p, level = blocks.R, blocks.p, blocks.level
    d, z0 = level.shape[1], R + p + 1
    h = aligned((p + 1 + d, LANES))
    near_KZ, near_K = aligned((d, p + 1, LANES)), aligned((d, d, LANES))
    for t in range(len(V_all)):
        V = V_all[t]
        _project(V, R, turn)
        for e in range(d):
            for i in range(LANES):
                donor = t * LANES + i
                own = level[donor, e]
                for j in range(p + 1):
                    near_KZ[e, j, i] = KZ[own, j] if own >= 0 else 0.0
                pair = _pair(blocks, donor, own)
                for c in range(d):
                    w = level[donor, c]
                    near_K[e, c, i] = K_all[pair + w] if own >= 0 and w >= 0 else 0.0
            for j in range(p + 1):
                for a in range(V.shape[1]):
                    s = load(V, (R + j, a)) - load(near_KZ, (e, j)) * load(V, (z0 + e, a))
                    store(V, (R + j, a), s)
        for r in range(R):
            for j in range(p + 1 + d):
                store(h, j, _inner(V, r, R + j))
            tau = load(h, p)
            s = tau * tau - _inner(V, r, r)
            for e in range(d):
                for c in range(d):
                    s += load(near_K, (e, c)) * load(h, p + 1 + e) * load(h, p + 1 + c)
            for j in range(p):
                u = load(h, j)
                if pr.reml:
                    s += u * u
                for k in range(j + 1):
                    sums.inner[r, j, k] += total(u * load(h, k))
                sums.inner[r, j, p] += total(u * tau)
            sums.size[r] += total(s)
            for e in range(d):
                for i in range(LANES):
                    donor = t * LANES + i
                    own = level[donor, e]
                    if own < 0:
                        continue
                    f = h[p + 1 + e, i]
                    for j in range(p + 1):
                        sums.across[r, own, j] += f * h[j, i]
                    pair = _pair(blocks, donor, own)
                    for c in range(d):
                        if level[donor, c] >= 0:
                            sums.pairs[r, pair + level[donor, c]] += f * h[p + 1 + c, i]


@called
def _sum_levels(pr, M_all, K_all, ZV, sums):
    """Those of donors multiplied by K, and those over levels as factors."""
    blocks = pr.blocks
    R, p, ptr = blocks.R, blocks.p, blocks.level_ptr
    most = 0
    for b in range(len(ptr) - 1):
        most = max(most, ptr[b + 1] - ptr[b])
    M, K, N = empty((most, most)), empty((most, most)), empty((most, most))
    one, two = empty((most, most)), empty((most, most))
    rows = empty((most, p + 1))
    for b in range(len(ptr) - 1):
        l0, start = ptr[b], blocks.pair_ptr[b]
        q = ptr[b + 1] - l0
        _unpack(M_all, start, q, M)
        _unpack(K_all, start, q, K)
        for r in range(R):
            _unpack(sums.pairs[r], start, q, one)
            _multiply(K, q, one, 0, q, two)
            _multiply(two, q, K, 0, q, one)
            for x in range(q):
                for w in range(q):
                    sums.pairs[r, start + x * q + w] = one[x, w]
            _multiply(K, q, sums.across[r], l0, p + 1, rows)
            for x in range(q):
                for j in range(p + 1):
                    sums.across[r, l0 + x, j] = rows[x, j]
        _multiply(M, q, K, 0, q, N)
        for x in range(q):
            for w in range(q):
                N[x, w] = (1.0 if x == w else 0.0) - N[x, w]
        _multiply(N, q, M, 0, q, one)  # Z'Sigma^-1 Z
        _multiply(N, q, ZV, l0, p + 1, rows)  # Z'Sigma^-1 [U, y - X b]
        for x in range(q):
            f = R + blocks.level_comp[l0 + x]
            sums.size[f] += rows[x, p] * rows[x, p] - one[x, x]
            for j in range(p):
                if pr.reml:
                    sums.size[f] += rows[x, j] * rows[x, j]
                for k in range(j + 1):
                    sums.inner[f, j, k] += rows[x, j] * rows[x, k]
                sums.inner[f, j, p] += rows[x, j] * rows[x, p]
            for w in range(q):
                for j in range(p + 1):
                    sums.across[f, l0 + w, j] -= N[x, w] * rows[x, j]
                for v in range(q):
                    sums.pairs[f, start + w * q + v] += N[x, w] * N[x, v]


@called
def _start(blocks, K_all, levels, first, own):
    """K of the levels of LANES groups; nothing is left out yet."""
    for lane in range(LANES):
        g = first + lane
        for e in range(len(own.K)):
            x = levels[g, e] if g < len(levels) else -1
            for c in range(len(own.K)):
                w = levels[g, c] if g < len(levels) else -1
                at = _pair_of(blocks, x, w)
                own.at[e, c, lane] = at
                own.K[e, c, lane] = K_all[at] if at >= 0 else 0.0
    for c in range(len(own.t)):
        store(own.t, c, spread(0.0))
        store(own.moved, c, spread(0.0))
        for e in range(len(own.t)):
            store(own.N, (c, e), spread(0.0))
            store(own.traced, (c, e), spread(0.0))


@called
def _gather(pr, V_all, donors, place, first, i, own):
    """[W B v] of the i-th donor of LANES groups, and what factors have with [B v]."""
    R, p, b = pr.blocks.R, pr.blocks.p, len(own.K)
    k, m = b + p, own.Y.shape[1]
    for a in range(m):
        for c in range(b):
            store(own.Y, (c, a), spread(0.0))
    for lane in range(LANES):
        g = first + lane
        donor = donors[g, i] if g < len(donors) else -1
        V, at = V_all[max(donor, 0) // LANES], max(donor, 0) % LANES
        for a in range(m):
            for r in range(R):
                own.W[r, a, lane] = V[r, a, at] if donor >= 0 else 0.0
            for j in range(p + 1):
                own.Y[b + j, a, lane] = V[R + j, a, at] if donor >= 0 else 0.0
            for e in range(place.shape[2] if donor >= 0 else 0):
                if place[g, i, e] >= 0:
                    own.Y[place[g, i, e], a, lane] = V[R + p + 1 + e, a, at]
    for r in range(R):
        store(own.size, (r, i), _inner(own.W, r, r))
        for c in range(k + 1):
            s = load(own.W, (r, 0)) * load(own.Y, (c, 0))
            for a in range(1, m):
                s += load(own.W, (r, a)) * load(own.Y, (c, a))
            store(own.h, (r, i, c), s)


@called
def _pair_of(blocks, x, w):
    """Place of two levels among the pairs; -1 if one is, or they are of different blocks."""
    ptr = blocks.level_ptr
    low, high = 0, len(ptr) - 1
    while high - low > 1:  # the block of level x
        middle = (low + high) // 2
        if ptr[middle] <= x:
            low = middle
        else:
            high = middle
    q = ptr[low + 1] - ptr[low]
    if x < 0 or not ptr[low] <= w < ptr[low + 1]:
        return -1
    return blocks.pair_ptr[low] + (x - ptr[low]) * q + w - ptr[low]


@called
def _take_off(own, i, used, N, t, found):
    """Add the i-th donor to N and t, of the first `used` columns of B; found (LANES,).

    Without the donors before it, Omega is Omega + Omega N Omega and v is v + B Omega t.
    """
    b, k, m = len(own.K), len(N), own.Y.shape[1]
    for a in range(m):
        for c in range(used):
            s = load(own.Y, (c, a)) if c >= b else spread(0.0)
            for e in range(b if c < b else 0):
                s += load(own.K, (c, e)) * load(own.Y, (e, a))
            store(own.X, (c, a), s)
        last = load(own.Y, (k, a))
        for c in range(used):
            s = load(own.Y, (c, a))
            for e in range(used if i > 0 else 0):
                s += load(N, (c, e)) * load(own.X, (e, a))
            store(own.rest, (c, a), s)
            last += load(own.X, (c, a)) * load(t, c)
        store(own.rest, (used, a), last)
    for a in range(m):
        for e in range(a + 1):
            s = spread(1.0 if e == a else 0.0)
            for c in range(used):
                s -= load(own.X, (c, a)) * load(own.rest, (c, e))
            store(own.low, (a, e), s)
    _factor(own.low)
    for lane in range(LANES):
        for a in range(m):
            pivot = own.low[a, a, lane]
            found[lane] = found[lane] and pivot * pivot * _ALONE < 1.0
    _whiten(own.low, own.rest, 0)
    for c in range(used):
        store(t, c, load(t, c) + _inner(own.rest, c, used))
        for e in range(c + 1):
            s = load(N, (c, e)) + _inner(own.rest, c, e)
            store(N, (c, e), s)
            store(N, (e, c), s)


@called
def _one_factor(f, first, levels, sums, own, traced, value, slope):
    """Score for factor f, twice, and slopes, before what the groups' own columns take off."""
    p, b = len(slope), len(own.K)
    for lane in range(LANES):
        g = first + lane
        for e in range(b):
            x = levels[g, e] if g < len(levels) else -1
            for j in range(p + 1):
                own.across[e, j, lane] = sums.across[f, x, j] if x >= 0 else 0.0
            for c in range(b):
                at = own.at[e, c, lane]
                own.pairs[e, c, lane] = sums.pairs[f, at] if at >= 0 else 0.0
    out = spread(sums.size[f])
    for e in range(b):
        s, through = spread(0.0), load(own.across, (e, p))
        for c in range(b):
            s += load(own.pairs, (e, c)) * load(own.t, c)
            out += load(own.pairs, (e, c)) * load(traced, (e, c))
        for j in range(p):
            s += load(own.across, (e, j)) * load(own.t, b + j)
            out += 2.0 * load(own.across, (e, j)) * load(traced, (e, b + j))
        store(own.moved, e, s + through)
        out += load(own.t, e) * (s + 2.0 * through)
    for j in range(p):
        s, through = spread(0.0), sums.inner[f, j, p]
        for e in range(b):
            s += load(own.across, (e, j)) * load(own.t, e)
        for k in range(p):
            high, low = max(j, k), min(j, k)
            s += sums.inner[f, high, low] * load(own.t, b + k)
        for k in range(j):
            out += 2.0 * sums.inner[f, j, k] * load(traced, (b + j, b + k))
        out += sums.inner[f, j, j] * load(traced, (b + j, b + j))
        store(own.moved, b + j, s + through)
        out += load(own.t, b + j) * (s + 2.0 * through)
    for j in range(p):
        s = load(own.moved, b + j)
        for c in range(b + p):
            s += load(own.N, (b + j, c)) * load(own.moved, c)
        store(slope, j, -1.0 * s)
    store(value, 0, out)


@called
def _own_columns(r, reml, own, traced, value, slope):
    """Take off what the groups' own columns of factor r have in the sums."""
    p, b = len(slope), len(own.K)
    k = b + p
    out = load(value, 0)
    for i in range(own.size.shape[1]):
        tau = load(own.h, (r, i, k))
        for c in range(k):
            s = load(own.h, (r, i, c)) if c >= b else spread(0.0)
            for e in range(b if c < b else 0):
                s += load(own.K, (c, e)) * load(own.h, (r, i, e))
            store(own.x, c, s)
            tau += s * load(own.t, c)
            if c < b or reml:
                out -= s * load(own.h, (r, i, c))
        out += load(own.size, (r, i)) - tau * tau
        for c in range(k):
            s, through = spread(0.0), spread(0.0)
            for e in range(k):
                s += load(own.N, (c, e)) * load(own.x, e)
                through += load(traced, (c, e)) * load(own.x, e)
            out -= load(own.x, c) * through
            if c >= b:
                s += load(own.h, (r, i, c))
                store(slope, c - b, load(slope, c - b) + tau * s)
    store(value, 0, out)


@kept
def _left_out(pr, theta, donors, levels, place, grad, beta, slope, found, root):
    """Scores, twice, by factor (G, F), effects and slopes (G, F, p) in terms of U; root L^-T."""
    blocks = pr.blocks
    R, p = blocks.R, blocks.p
    n_tiles, columns, m = blocks.design.shape[:3]
    F, q, n_pairs = pr.S.shape[1], len(blocks.level_comp), blocks.pair_ptr[-1]
    G, b = levels.shape
    phi, gram = empty(F), empty((p + 1, p + 1))
    factors(pr.S, theta, phi)
    V_all = aligned((n_tiles, columns + 1, m, LANES))
    ZV, KZ, M_all, K_all = zero_rows(q, p + 1), zero_rows(q, p + 1), zeros(n_pairs), zeros(n_pairs)
    nothing = aligned((0, 0, 0, LANES))
    definite, _, _ = whitened(
        phi, pr.y, pr.nu, blocks, pr.active, 0, True, V_all, nothing, M_all, K_all, ZV, KZ, gram
    )
    if not definite or not profiled(gram)[0]:
        return
    turn = _turned(gram)
    for j in range(p):
        for k in range(p):
            root[j, k] = turn[j, k]
    _project_rows(ZV, turn)
    _times_levels(blocks, K_all, ZV, KZ)
    sums = _Sums(zeros(F), zeros((F, p, p + 1)), zeros((F, n_pairs)), zeros((F, q, p + 1)))
    _sum_donors(pr, V_all, K_all, KZ, turn, sums)
    _sum_levels(pr, M_all, K_all, ZV, sums)
    own = _make_own(R, p, b, m, donors.shape[1])
    value, sloping = aligned((1, LANES)), aligned((p, LANES))
    there = np.empty(LANES, np.bool_)
    for first in range(0, G, LANES):
        used = min(LANES, G - first)
        there[:] = True
        _start(blocks, K_all, levels, first, own)
        for i in range(donors.shape[1]):
            _gather(pr, V_all, donors, place, first, i, own)
            _take_off(own, i, b + p, own.N, own.t, there)
            if not pr.reml:
                _take_off(own, i, b, own.traced, own.moved, there)
        traced = own.N if pr.reml else own.traced
        for lane in range(used):
            found[first + lane] = there[lane]
            for j in range(p):
                beta[first + lane, j] = gram[p, j] - own.t[b + j, lane]
        for f in range(F):
            _one_factor(f, first, levels, sums, own, traced, value, sloping)
            if f < R:
                _own_columns(f, pr.reml, own, traced, value, sloping)
            for lane in range(used):
                grad[first + lane, f] = value[0, lane]
                for j in range(p):
                    slope[first + lane, f, j] = sloping[j, lane]
