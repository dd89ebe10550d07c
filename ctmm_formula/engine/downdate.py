"""Scores without some of the donors, from the sums over all of them.

The score of the other donors at a given theta needs no new pass over them.  With A = [X y],
c = (-b; 1), S = Sigma^-1 and Sigma_f the derivatives of Sigma,

    score_f = 1/2 [c' C_f c - t_f + tr((X'SX)^-1 X'S Sigma_f S X)]       (ML: without the last)
    db/df   = -(X'SX)^-1 X'S Sigma_f S (y - X b)
    C_f     = A'S Sigma_f S A,   t_f = tr(S Sigma_f)

and all of these are sums over blocks, a block's from sums over its donors (D = Sigma_i^-1,
M = Z'DZ, K = (I + G M)^-1 G, a factor w of a donor, F_ab = a'D w w'D b):

    A'S A   = A'DA - A'DZ K Z'DA
    C_w     = F_AA - A'DZ K F_ZA - (A'DZ K F_ZA)' + A'DZ K F_ZZ K Z'DA,   t_w = w'Dw - tr(K F_ZZ)
    C_level = A'S z z'S A,  S z z'S by Z'SA = (I - M K) Z'DA,             t_level = (M - M K M)_zz

So without a donor its part is taken from the sums of its block, and that block is done anew: the
cost of all donors is linear in their number.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from .kernels import _OPTIONS, _PART, _fill, _inverse_root, _woodbury, cholesky
from .model import LANES
from .optimize import Problem, _factors


class Scores(NamedTuple):
    """Score at one theta without each of G groups of donors.

    grad (G, K); beta (G, p) fixed effects at this theta and slope (G, K, p) their derivatives;
    found (G,): the others determine the fixed effects and leave Sigma positive definite.
    """

    grad: np.ndarray
    beta: np.ndarray
    slope: np.ndarray
    found: np.ndarray


class _Sums(NamedTuple):
    """Of each donor: w'Dw (N, R), w'D [A Z] (N, R, P + d), [A Z]'D [A Z] (N, P + d, P + d)."""

    trace: np.ndarray
    rows: np.ndarray
    gram: np.ndarray


class _Block(NamedTuple):
    """Sums of one block: M (q, q), Z'DA (q, P), F_ZA (R, q, P), F_ZZ (R, q, q)."""

    M: np.ndarray
    ZA: np.ndarray
    FZA: np.ndarray
    FZZ: np.ndarray


class _Room(NamedTuple):
    """Buffers: K (q, q), K Z'DA (q, P) and what the inversion needs."""

    K: np.ndarray
    KA: np.ndarray
    T: np.ndarray
    g: np.ndarray
    column: np.ndarray
    order: np.ndarray


class _Total(NamedTuple):
    """gram (P, P), C (F, P, P) and t (F,) of all donors, or of all but some."""

    gram: np.ndarray
    C: np.ndarray
    t: np.ndarray


@njit(**_PART)
def _donor_sums(pr, phi, i, low, V, sums):
    """Whiten [W | X | y | Z] of donor i and take its inner products."""
    R, p = pr.blocks.R, pr.blocks.p
    tile, lane = i // LANES, i % LANES
    m = pr.blocks.n_rows[i]
    width = pr.blocks.design.shape[1] + 1
    for a in range(m):
        for j in range(width - 1):
            V[j + (j >= R + p), a] = pr.blocks.design[tile, j, a, lane]
        V[R + p, a] = pr.y[tile, a, lane]
    for a in range(m):
        for b in range(a + 1):
            s = pr.nu[tile, a, lane] if a == b else 0.0
            for r in range(R):
                s += phi[r] * V[r, a] * V[r, b]
            low[a, b] = s
    if not cholesky(low, m):
        return False
    for j in range(width):
        for a in range(m):
            s = V[j, a]
            for b in range(a):
                s -= low[a, b] * V[j, b]
            V[j, a] = s / low[a, a]
    for r in range(R):
        s = 0.0
        for a in range(m):
            s += V[r, a] * V[r, a]
        sums.trace[i, r] = s
        for j in range(width - R):
            s = 0.0
            for a in range(m):
                s += V[r, a] * V[R + j, a]
            sums.rows[i, r, j] = s
    for j in range(width - R):
        for k in range(j + 1):
            s = 0.0
            for a in range(m):
                s += V[R + j, a] * V[R + k, a]
            sums.gram[i, j, k] = s
            sums.gram[i, k, j] = s
    return True


@njit(**_PART)
def _add_donor(pr, i, sign, sums, total):
    """Add a donor's own part to the totals, or take it from them."""
    P = pr.blocks.p + 1
    for j in range(P):
        for k in range(j + 1):
            total.gram[j, k] += sign * sums.gram[i, j, k]
    for r in range(pr.blocks.R):
        total.t[r] += sign * sums.trace[i, r]
        for j in range(P):
            f = sign * sums.rows[i, r, j]
            for k in range(j + 1):
                total.C[r, j, k] += f * sums.rows[i, r, k]


@njit(**_PART)
def _add_to_block(pr, i, sign, sums, block):
    """Add what a donor brings to its block's levels, or take it away."""
    P, d = pr.blocks.p + 1, pr.blocks.level.shape[1]
    l0 = pr.blocks.level_ptr[pr.blocks.block[i]]
    for e in range(d):
        x = pr.blocks.level[i, e] - l0
        if pr.blocks.level[i, e] < 0:
            continue
        for j in range(P):
            block.ZA[x, j] += sign * sums.gram[i, P + e, j]
        for r in range(pr.blocks.R):
            f = sign * sums.rows[i, r, P + e]
            for j in range(P):
                block.FZA[r, x, j] += f * sums.rows[i, r, j]
        for h in range(d):
            w = pr.blocks.level[i, h] - l0
            if pr.blocks.level[i, h] < 0:
                continue
            block.M[x, w] += sign * sums.gram[i, P + e, P + h]
            for r in range(pr.blocks.R):
                f = sign * sums.rows[i, r, P + e]
                block.FZZ[r, x, w] += f * sums.rows[i, r, P + h]


@njit(**_PART)
def _block_sums(pr, b, first, last, sums, block):
    """Sums of block b, whose donors are first to last - 1."""
    q = pr.blocks.level_ptr[b + 1] - pr.blocks.level_ptr[b]
    for x in range(q):
        block.M[x, :q] = 0.0
        block.ZA[x] = 0.0
        for r in range(pr.blocks.R):
            block.FZA[r, x] = 0.0
            block.FZZ[r, x, :q] = 0.0
    for i in range(first, last):
        if pr.active[i]:
            _add_to_block(pr, i, 1.0, sums, block)


@njit(**_PART)
def _add_levels(pr, phi, b, sign, block, room, total):
    """Add what the levels of block b change, or take it back; False if it is not definite."""
    R, P = pr.blocks.R, pr.blocks.p + 1
    l0 = pr.blocks.level_ptr[b]
    q = pr.blocks.level_ptr[b + 1] - l0
    K, KA = room.K, room.KA
    for x in range(q):
        room.g[x] = phi[R + pr.blocks.level_comp[l0 + x]]
    definite, _ = _woodbury(room.g, block.M, q, room.T, room.column, room.order, K)
    if not definite:
        return False
    for x in range(q):
        for j in range(P):
            KA[x, j] = 0.0
        for w in range(q):
            for j in range(P):
                KA[x, j] += K[x, w] * block.ZA[w, j]
    for x in range(q):
        for j in range(P):
            f = sign * KA[x, j]
            for k in range(j + 1):
                total.gram[j, k] -= f * block.ZA[x, k]
    half = room.column  # of one level: F_ZZ K Z'DA / 2 - F_ZA, or Z'SA
    for r in range(R):
        for x in range(q):
            for j in range(P):
                half[j] = -block.FZA[r, x, j]
            for w in range(q):
                total.t[r] -= sign * K[x, w] * block.FZZ[r, w, x]
                f = 0.5 * block.FZZ[r, x, w]
                for j in range(P):
                    half[j] += f * KA[w, j]
            for j in range(P):
                for k in range(j + 1):
                    total.C[r, j, k] += sign * (KA[x, j] * half[k] + half[j] * KA[x, k])
    for x in range(q):
        f = R + pr.blocks.level_comp[l0 + x]
        for j in range(P):
            half[j] = block.ZA[x, j]
        s = block.M[x, x]
        for w in range(q):
            for j in range(P):
                half[j] -= block.M[x, w] * KA[w, j]
            u = 0.0
            for v in range(q):
                u += K[w, v] * block.M[v, x]
            s -= block.M[x, w] * u
        total.t[f] += sign * s
        for j in range(P):
            for k in range(j + 1):
                total.C[f, j, k] += sign * half[j] * half[k]
    return True


@njit(**_PART)
def _copy(start, total):
    """total[:] = start."""
    for j in range(len(start.gram)):
        for k in range(j + 1):
            total.gram[j, k] = start.gram[j, k]
    for f in range(len(start.t)):
        total.t[f] = start.t[f]
        for j in range(len(start.gram)):
            for k in range(j + 1):
                total.C[f, j, k] = start.C[f, j, k]


@njit(**_PART)
def _score(pr, total, inverse, turn, grad, beta, slope):
    """Score of the components, b and its derivatives from the totals, whose Gram is overwritten."""
    p = pr.blocks.p
    if not cholesky(total.gram, p):
        return False
    _inverse_root(total.gram, p, turn)
    for j in range(p):
        beta[j] = 0.0
        for k in range(p):
            s = 0.0
            for h in range(max(j, k), p):
                s += turn[j, h] * turn[k, h]
            inverse[j, k] = s
            beta[j] += s * total.gram[p, k]
    _fill(slope, 0.0)
    change = np.empty(p)
    for k in range(len(grad)):
        grad[k] = 0.0
    for f in range(len(total.t)):
        C = total.C[f]
        score = C[p, p] - total.t[f]
        for j in range(p):
            change[j] = -C[p, j]  # half of the derivative's right-hand side
            for k in range(p):
                change[j] += (C[j, k] if k <= j else C[k, j]) * beta[k]
            score += beta[j] * (change[j] - C[p, j])
            if pr.reml:
                for k in range(j):
                    score += 2.0 * inverse[j, k] * C[j, k]
                score += inverse[j, j] * C[j, j]
        for k in range(len(grad)):
            if pr.S[k, f] != 0.0:
                grad[k] += 0.5 * pr.S[k, f] * score
                for j in range(p):
                    slope[k, j] += pr.S[k, f] * change[j]
    for k in range(len(grad)):
        for j in range(p):
            change[j] = slope[k, j]
        for j in range(p):
            slope[k, j] = _row_times(inverse, j, change, p)
    return True


@njit(**_PART)
def _room_for_block(R, q, P):
    return _Block(np.zeros((q, q)), np.zeros((q, P)), np.zeros((R, q, P)), np.zeros((R, q, q)))


@njit(**_PART)
def _copy_block(pr, b, start, block):
    """block[:] = start for block b."""
    q = pr.blocks.level_ptr[b + 1] - pr.blocks.level_ptr[b]
    for x in range(q):
        for w in range(q):
            block.M[x, w] = start.M[x, w]
        for j in range(start.ZA.shape[1]):
            block.ZA[x, j] = start.ZA[x, j]
        for r in range(pr.blocks.R):
            for w in range(q):
                block.FZZ[r, x, w] = start.FZZ[r, x, w]
            for j in range(start.ZA.shape[1]):
                block.FZA[r, x, j] = start.FZA[r, x, j]


@njit(**_PART)
def _row_times(matrix, j, vector, p):
    s = 0.0
    for k in range(p):
        s += matrix[j, k] * vector[k]
    return s


@njit(**_PART)
def _zeros(F, P):
    return _Total(np.zeros((P, P)), np.zeros((F, P, P)), np.zeros(F))


@njit(**_OPTIONS)
def _scores(pr, theta, groups, group_ptr, grad, beta, slope, found):
    """Fill the arrays of :class:`Scores`."""
    b = pr.blocks
    phi = _factors(pr.S, theta)
    R, P, F, N, d = b.R, b.p + 1, len(phi), len(pr.active), b.level.shape[1]
    m, width = b.design.shape[2], P + d
    n_blocks = len(b.level_ptr) - 1 if len(b.level_comp) else 0
    sums = _Sums(np.zeros((N, R)), np.zeros((N, R, width)), np.zeros((N, width, width)))
    total, rest, one = _zeros(F, P), _zeros(F, P), _zeros(F, P)
    low, V = np.zeros((m, m)), np.zeros((R + width, m))
    first, last = np.full(n_blocks, N), np.zeros(n_blocks, np.int64)
    found[:] = False
    for i in range(N):
        if not pr.active[i]:
            continue
        if not _donor_sums(pr, phi, i, low, V, sums):
            return
        _add_donor(pr, i, 1.0, sums, total)
        if n_blocks:
            first[b.block[i]] = min(first[b.block[i]], i)
            last[b.block[i]] = i + 1
    q = 0
    for x in range(n_blocks):
        q = max(q, b.level_ptr[x + 1] - b.level_ptr[x])
    whole, block = _room_for_block(R, q, P), _room_for_block(R, q, P)
    room = _Room(
        np.zeros((q, q)), np.zeros((q, P)), np.zeros((q, q)), np.zeros(q), np.zeros(max(q, P)),
        np.zeros(q, np.int64),
    )  # fmt: skip
    for x in range(n_blocks):
        _block_sums(pr, x, first[x], last[x], sums, whole)
        if not _add_levels(pr, phi, x, 1.0, whole, room, total):
            return
    inverse, turn = np.zeros((P - 1, P - 1)), np.zeros((P - 1, P - 1))
    done = np.full(n_blocks, -1)  # the last group that a block was done for
    kept = n_blocks - 1  # `whole` are the sums of this block,
    around = -1  # `rest` is the total less the levels of this one
    for g in range(len(group_ptr) - 1):
        members = groups[group_ptr[g] : group_ptr[g + 1]]
        several = False
        for i in members:
            several = several or b.block[i] != b.block[members[0]]
        nested = n_blocks > 0 and not several
        if not nested:
            _copy(total, one)
        definite = True
        for i in members:
            x = b.block[i]
            if n_blocks == 0 or done[x] == g:
                continue
            done[x] = g
            if kept != x:
                kept = x
                _block_sums(pr, x, first[x], last[x], sums, whole)
            _copy_block(pr, x, whole, block)
            for other in members:
                if b.block[other] == x:
                    _add_to_block(pr, other, -1.0, sums, block)
            if nested:
                _copy(rest if around == x else total, one)
            for anew in range(nested and around == x, 2):  # its levels out, and in again
                levels, sign = (block, 1.0) if anew else (whole, -1.0)
                definite = _add_levels(pr, phi, x, sign, levels, room, one) and definite
                if nested and not anew:
                    around = x
                    _copy(one, rest)
        for i in members:
            _add_donor(pr, i, -1.0, sums, one)
        found[g] = definite and _score(pr, one, inverse, turn, grad[g], beta[g], slope[g])


def left_out_scores(pr: Problem, theta: np.ndarray, groups: list[np.ndarray], p: int) -> Scores:
    """Score and fixed effects at `theta` (K,) without each group of donors, linear in donors."""
    G, K = len(groups), len(theta)
    out = Scores(np.zeros((G, K)), np.zeros((G, p)), np.zeros((G, K, p)), np.zeros(G, dtype=bool))
    _scores(pr, theta, *packed(groups), *out)
    return out


def packed(groups: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Groups of donors one after the other, and where each begins (G + 1,)."""
    ptr = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    return np.concatenate(groups).astype(np.int64), ptr.astype(np.int64)
