"""The compiled loops: likelihood, score and information, a tile of donors at a time.

Notation of :mod:`ctmm_formula.engine.model`.  For donor i with Cholesky factor L_i of Sigma_i and a
tilde for L_i^-1 (.), a block with levels Z, variances G = diag(g), M = sum_i Z~'Z~:

    K           = (I + G M)^-1 G                               (q_b x q_b)
    Sigma^-1    = D^-1 - D^-1 Z K Z' D^-1                      D = blockdiag(Sigma_i)
    P           = Sigma^-1 - U U',   U = Sigma^-1 X L_x^-T,    L_x L_x' = X' Sigma^-1 X
    tau         = w' P y                                        per factor w (donor or level)
    score       = 1/2 (tau^2 - w' P w)                          summed over donors or levels
    average     = 1/2 (tau w)' P (tau w)                        average information
    expected    = 1/2 (w' P w)^2 over pairs of factors          Fisher information

(ML replaces P by Sigma^-1 in the traces, not in tau.)  Cross-donor terms go through the low-rank
parts only, so everything is linear in N.  All functions work in factor space; components are
``S @ factors``.  Donors go through in tiles, a vector of LANES donors for every entry of their
matrices (:mod:`ctmm_formula.engine.lanes`).  Nothing here allocates more than a few arrays of the
size of the data.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .lanes import aligned, all_positive, load, root, spread, store, total
from .lanes import zeros as zeros
from .model import LANES, Blocks
from .options import called, inlined, kept, kept_callback
from .references import referred

DEFINITE, VALUE, SCORE, INFORMATION = -1, 0, 1, 2
"""How much :func:`evaluate` computes; DEFINITE: 0, or -inf where Sigma is not positive definite."""


@called
def cholesky(a, m):
    """Factor the leading m x m of `a` in place (lower); False if not positive definite."""
    for j in range(m):
        d = a[j, j]
        for k in range(j):
            d -= a[j, k] * a[j, k]
        if not d > 0.0 or d == math.inf:
            return False
        d = math.sqrt(d)
        a[j, j] = d
        for i in range(j + 1, m):
            s = a[i, j]
            for k in range(j):
                s -= a[i, k] * a[j, k]
            a[i, j] = s / d
    return True


@called
def cholesky_solve(low, m, b):
    """Solve (L L') x = b in place."""
    for i in range(m):
        s = b[i]
        for k in range(i):
            s -= low[i, k] * b[k]
        b[i] = s / low[i, i]
    for i in range(m - 1, -1, -1):
        s = b[i]
        for k in range(i + 1, m):
            s -= low[k, i] * b[k]
        b[i] = s / low[i, i]


@called
def fill(a, value):
    """a[:] = value for a matrix."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            a[i, j] = value


empty = aligned


@called
def zero_rows(n, width):
    """Zeros (n, w), where w is the multiple of LANES at or above `width`."""
    out = aligned((n, -(-width // LANES) * LANES))
    fill(out, 0.0)
    return out


@called
def copy(out, a):
    """out[:] = a for a vector."""
    for j in range(len(out)):
        out[j] = a[j]


@called
def move(out, base, size, step):
    """out[:] = base + size step for vectors."""
    for j in range(len(out)):
        out[j] = base[j] + size * step[j]


@called
def _dot(a, b, n):
    s = 0.0
    for j in range(n):
        s += a[j] * b[j]
    return s


@called
def _multiply(A, q, B, first, width, out):
    """out = A B for A (q, q) and rows `first` to `first` + q of B."""
    for x in range(q):
        for j in range(width):
            out[x, j] = 0.0
        for w in range(q):
            f = A[x, w]
            if f != 0.0:
                for j in range(width):
                    out[x, j] += f * B[first + w, j]


@called
def _inverse_root(low, p, out):
    """out = L^-T for the leading p x p of `low` (upper triangular)."""
    for c in range(p):
        for i in range(c):
            out[c, i] = 0.0
        for i in range(c, p):
            s = 1.0 if i == c else 0.0
            for k in range(c, i):
                s -= low[i, k] * out[c, k]
            out[c, i] = s / low[i, i]


# -- one tile: LANES donors of at most m rows ----------------------------------------------------


@inlined
def _covariance(V, nu, mask, phi, R, low):
    """low = sum_r phi_r w_r w_r' + D of every donor; the identity where the mask is zero."""
    for a in range(low.shape[0]):
        for c in range(a + 1):
            s = spread(0.0)
            for r in range(R):
                s += phi[r] * load(V, (r, a)) * load(V, (r, c))
            s = s * mask
            if a == c:
                s += load(nu, a) * mask + (1.0 - mask)
            store(low, (a, c), s)


@inlined
def _factor(low):
    """Cholesky factors in place, inverse pivots on the diagonal; (definite, product of pivots)."""
    m = low.shape[0]
    definite = True
    product = spread(1.0)
    for j in range(m):
        d = load(low, (j, j))
        for k in range(j):
            f = load(low, (j, k))
            d -= f * f
        definite = definite and all_positive(d)
        d = root(d)
        product = product * d
        d = 1.0 / d
        store(low, (j, j), d)
        for a in range(j + 1, m):
            s = load(low, (a, j))
            for k in range(j):
                s -= load(low, (a, k)) * load(low, (j, k))
            store(low, (a, j), s * d)
    return definite, product


@inlined
def _whiten(low, V, first):
    """Columns V[first:] <- L^-1 V, four at a time; the last again where there are not so many."""
    last = V.shape[0] - 1
    for i in range(first, V.shape[0], 4):
        j, k, h = min(i + 1, last), min(i + 2, last), min(i + 3, last)
        for a in range(V.shape[1]):
            s, t, u, v = load(V, (i, a)), load(V, (j, a)), load(V, (k, a)), load(V, (h, a))
            for b in range(a):
                f = load(low, (a, b))
                s -= f * load(V, (i, b))
                t -= f * load(V, (j, b))
                u -= f * load(V, (k, b))
                v -= f * load(V, (h, b))
            f = load(low, (a, a))
            store(V, (i, a), s * f)
            store(V, (j, a), t * f)
            store(V, (k, a), u * f)
            store(V, (h, a), v * f)


@inlined
def _inner(V, i, j):
    """Inner product of two columns, donor by donor."""
    s = load(V, (i, 0)) * load(V, (j, 0))
    for a in range(1, V.shape[1]):
        s += load(V, (i, a)) * load(V, (j, a))
    return s


@inlined
def _project(V, x0, p, turn, gram):
    """Columns [X y] (from x0) <- [X turn, y - X turn (turn' X'y)]: then X is U and y is P y."""
    for a in range(V.shape[1]):
        for j in range(p - 1, -1, -1):
            s = load(V, (x0 + j, a)) * turn[j, j]
            for k in range(j):
                s += load(V, (x0 + k, a)) * turn[k, j]
            store(V, (x0 + j, a), s)
        s = load(V, (x0 + p, a))
        for j in range(p):
            s -= load(V, (x0 + j, a)) * gram[p, j]
        store(V, (x0 + p, a), s)


@called
def _touched(level, donor, e, levels, lanes):
    """Number of different e-th levels in a tile, the levels (LANES,), lanes (LANES, LANES) of each.

    Those are 1 for its donors and else 0.
    """
    count = 0
    for i in range(LANES):
        own = level[donor + i, e]
        if own < 0:
            continue
        k = count - 1  # donors with the same level mostly follow each other
        while k >= 0 and levels[k] != own:
            k -= 1
        if k < 0:
            k = count
            levels[k] = own
            store(lanes, k, spread(0.0))
            count += 1
        lanes[k, i] = 1.0
    return count


@called
def _project_rows(rows, p, turn, gram):
    """The same for rows [X y] of levels."""
    for x in range(rows.shape[0]):
        for j in range(p - 1, -1, -1):
            s = rows[x, j] * turn[j, j]
            for k in range(j):
                s += rows[x, k] * turn[k, j]
            rows[x, j] = s
        for j in range(p):
            rows[x, p] -= rows[x, j] * gram[p, j]


# -- random effects: one block of q levels after the other ---------------------------------------


@called
def _woodbury(g, M, q, T, column, order, K):
    """K = (I + G M)^-1 G and log|I + G M|; False if the block is not positive definite.

    With g = s^2 e, e = +-1: K = S (E + S M S)^-1 S, and Sigma is positive definite exactly when
    E + S M S has as many negative eigenvalues as E.  Positive g are eliminated first.
    T (q, q), column (q,) and order (q,) are overwritten.
    """
    count = 0
    for x in range(q):
        if g[x] >= 0.0:
            order[count] = x
            count += 1
    for x in range(q):
        if g[x] < 0.0:
            order[count] = x
            count += 1
    for x in range(q):
        gx = g[order[x]]
        for y in range(x + 1):
            gy = g[order[y]]
            T[x, y] = math.sqrt(abs(gx * gy)) * M[order[x], order[y]]
        T[x, x] += 1.0 if gx >= 0.0 else -1.0
    logdet = 0.0
    for j in range(q):  # L D L' without pivoting
        d = T[j, j]
        for k in range(j):
            d -= T[j, k] * T[j, k] * T[k, k]
        if g[order[j]] >= 0.0:
            if not d > 0.0:
                return False, 0.0
        elif not d < 0.0:
            return False, 0.0
        T[j, j] = d
        logdet += math.log(abs(d))
        for i in range(j + 1, q):
            s = T[i, j]
            for k in range(j):
                s -= T[i, k] * T[j, k] * T[k, k]
            T[i, j] = s / d
    for c in range(q):
        for i in range(q):
            column[i] = 0.0
        column[c] = math.sqrt(abs(g[order[c]]))
        for i in range(c, q):
            s = column[i]
            for k in range(c, i):
                s -= T[i, k] * column[k]
            column[i] = s
        for i in range(q - 1, -1, -1):
            s = column[i] / T[i, i]
            for k in range(i + 1, q):
                s -= T[k, i] * column[k]
            column[i] = s
        for i in range(q):
            K[order[i], order[c]] = math.sqrt(abs(g[order[i]])) * column[i]
    return True, logdet


@called
def _unpack(flat, start, q, out):
    """out (q, q) = the pairs of one block."""
    for x in range(q):
        for w in range(q):
            out[x, w] = flat[start + x * q + w]


@called
def _times_levels(blocks, K_all, ZV, KZ):
    """KZ = K ZV for all blocks."""
    for b in range(len(blocks.level_ptr) - 1):
        l0 = blocks.level_ptr[b]
        q = blocks.level_ptr[b + 1] - l0
        for x in range(q):
            for j in range(ZV.shape[1]):
                KZ[l0 + x, j] = 0.0
            for w in range(q):
                f = K_all[blocks.pair_ptr[b] + x * q + w]
                for j in range(ZV.shape[1]):
                    KZ[l0 + x, j] += f * ZV[l0 + w, j]


@called
def _eliminate(phi, blocks, M_all, K_all, ZV, KZ, gram):
    """Levels out of the Gram matrix; (definite, log-determinant) of I + G M of all blocks."""
    most = 0
    for b in range(len(blocks.level_ptr) - 1):
        most = max(most, blocks.level_ptr[b + 1] - blocks.level_ptr[b])
    M = empty((most, most))
    K = empty((most, most))
    T = empty((most, most))
    g = empty(most)
    column = empty(most)
    order = np.empty(most, np.int64)
    logdet = 0.0
    for b in range(len(blocks.level_ptr) - 1):
        l0 = blocks.level_ptr[b]
        q = blocks.level_ptr[b + 1] - l0
        start = blocks.pair_ptr[b]
        for x in range(q):
            g[x] = phi[blocks.R + blocks.level_comp[l0 + x]]
        _unpack(M_all, start, q, M)
        definite, part = _woodbury(g, M, q, T, column, order, K)
        if not definite:
            return False, logdet
        logdet += part
        for x in range(q):
            for w in range(q):
                K_all[start + x * q + w] = K[x, w]
    _times_levels(blocks, K_all, ZV, KZ)
    row = aligned((ZV.shape[1],))
    for j in range(len(gram)):
        for c in range(0, len(row), LANES):
            s = spread(0.0)
            for x in range(len(ZV)):
                s += ZV[x, j] * load(KZ, (x, c))
            store(row, c, s)
        for k in range(j + 1):
            gram[j, k] -= row[k]
    return True, logdet


@inlined
def _along(a, i, b, j, used):
    """a[i]'b[j] of entries in use, for i, j (row, first column); used (w,) is 1 for these, else 0.

    w is a multiple of LANES.
    """
    s = spread(0.0)
    for c in range(0, len(used), LANES):
        s += load(used, c) * load(a, (i[0], i[1] + c)) * load(b, (j[0], j[1] + c))
    return total(s)


@called
def _levels(
    blocks, M_all, K_all, ZV, trace_p, full, G_all, E_all, score, average, expected, moves, YY
):
    """The random effects' part of score and information, and their cross terms with the donors.

    ZV holds Z' D^-1 [U, P y]; G_all (pairs, R) and E_all (q, R w), with w = ZV.shape[1], the sums
    over donors of g g' and g [w'U, tau] with g = Z' D^-1 w, for every factor w.
    """
    R, p, wide = blocks.R, blocks.p, ZV.shape[1]
    most = 0
    for b in range(len(blocks.level_ptr) - 1):
        most = max(most, blocks.level_ptr[b + 1] - blocks.level_ptr[b])
    M = empty((most, most))
    K = empty((most, most))
    N = empty((most, most))
    out = empty((most, most))
    zx = aligned((most, wide))
    more = most if full else 0
    KG, NG = empty((more, most * R)), empty((more, most * R))
    KE, NE = aligned((more, R * wide)), aligned((more, R * wide))
    used = aligned((wide,))
    for j in range(wide):
        used[j] = 1.0 if j < p else 0.0
    for b in range(len(blocks.level_ptr) - 1):
        l0 = blocks.level_ptr[b]
        q = blocks.level_ptr[b + 1] - l0
        start = blocks.pair_ptr[b]
        comp = blocks.level_comp[l0 : l0 + q]
        _unpack(M_all, start, q, M)
        _unpack(K_all, start, q, K)
        _multiply(M, q, K, 0, q, N)
        for x in range(q):
            for w in range(q):
                N[x, w] = (1.0 if x == w else 0.0) - N[x, w]
        _multiply(N, q, M, 0, q, out)  # Z' Sigma^-1 Z = M - M K M
        _multiply(N, q, ZV, l0, wide, zx)  # Z' Sigma^-1 [U, y - X b]
        for x in range(q):
            f = R + comp[x]
            zeta = zx[x, p]
            through_x = trace_p * _along(zx, (x, 0), zx, (x, 0), used)
            score[f] += zeta * zeta - out[x, x] + through_x
            if not full:
                continue
            for j in range(p):
                moves[f, j] += zeta * zx[x, j]
                for c in range(0, wide, LANES):
                    s = load(zx, (x, c)) * load(used, c)
                    store(YY, (f, j, c), load(YY, (f, j, c)) + (trace_p * zx[x, j]) * s)
            for w in range(q):
                h = R + comp[w]
                if h <= f:
                    average[f, h] += zeta * out[x, w] * zx[w, p]
                    through_x = trace_p * _along(zx, (x, 0), zx, (w, 0), used)
                    expected[f, h] += out[x, w] * (out[x, w] - 2.0 * through_x)
        if not full:
            continue
        G = G_all[start : start + q * q].reshape(q, q * R)
        _multiply(K, q, G, 0, q * R, KG)
        _multiply(K, q, E_all, l0, R * wide, KE)
        # cross terms with the levels: h_i = (N g_i')_l, and its product with U U'
        _multiply(N, q, G, 0, q * R, NG)
        _multiply(N, q, E_all, l0, R * wide, NE)
        for x in range(q):
            f = R + comp[x]
            for r in range(R):
                average[f, r] += NE[x, r * wide + p] * zx[x, p]
                cross = -2.0 * trace_p * _along(NE, (x, r * wide), zx, (x, 0), used)
                for w in range(q):
                    cross += NG[x, w * R + r] * N[x, w]
                expected[f, r] += cross
            for r in range(R):
                for s_ in range(r + 1):
                    u = E_all[l0 + x, r * wide + p] * KE[x, s_ * wide + p]
                    t = _along(E_all, (l0 + x, r * wide), KE, (x, s_ * wide), used)
                    t *= 2.0 * trace_p
                    for w in range(q):
                        t += KG[x, w * R + r] * KG[w, x * R + s_]
                    average[r, s_] -= u
                    expected[r, s_] += t


@inlined
def _mask(active, donor, row):
    """1 for the donors of a tile in use, else 0; row (1, LANES) is overwritten."""
    for i in range(LANES):
        row[0, i] = 1.0 if active[donor + i] else 0.0
    return load(row, 0)


@called
def _are_definite(phi, nu, blocks, active):
    """Whether the covariance of every donor is positive definite, random effects aside."""
    m = blocks.design.shape[2]
    low, row = aligned((m, m, LANES)), aligned((1, LANES))
    for t in range(len(blocks.design)):
        mask = _mask(active, t * LANES, row)
        _covariance(blocks.design[t], nu[t], mask, phi, blocks.R, low)
        if not _factor(low)[0]:
            return False
    return True


@called
def whitened(phi, y, nu, blocks, active, first, V_all, M_all, K_all, ZV, KZ, gram):
    """Columns V = L^-1 [W X y Z] of all donors, and what they sum up to.

    Columns from `first` on, of as many tiles as V_all has; M_all and K_all the pairs of levels of
    all blocks, ZV = Z'D^-1 [X y], KZ = K ZV, gram = [X y]'Sigma^-1 [X y], all out.

    Returns
    -------
    (whether Sigma is positive definite, log|Sigma|, rows in use)
    """
    R, p = blocks.R, blocks.p
    design, level = blocks.design, blocks.level
    n_tiles, columns, m = design.shape[0], design.shape[1], design.shape[2]
    p1 = p + 1
    x0 = R
    z0 = R + p1
    d = columns + 1 - z0
    low = aligned((m, m, LANES))
    touch = aligned((1 + d, LANES))
    levels, lanes = np.empty(LANES, np.int64), aligned((LANES, LANES))
    fill(gram, 0.0)
    logdet = 0.0
    product = 1.0
    nobs = 0
    for t in range(n_tiles):
        V = V_all[min(t, len(V_all) - 1)]
        donor = t * LANES
        mask = _mask(active, donor, touch)
        for i in range(LANES):
            nobs += blocks.n_rows[donor + i] if active[donor + i] else 0
        for j in range(columns):
            for a in range(m):
                store(V, (j + (j >= R + p), a), load(design, (t, j, a)) * mask)
        for a in range(m):
            store(V, (R + p, a), load(y, (t, a)) * mask)
        _covariance(V, nu[t], mask, phi, R, low)
        definite, pivots = _factor(low)
        if not definite:
            return False, logdet, nobs
        store(touch, 0, pivots)
        for i in range(LANES):
            product *= touch[0, i]  # one logarithm for many pivots
            if not 1e-150 < product < 1e150:
                logdet += 2.0 * math.log(product)
                product = 1.0
        _whiten(low, V, first)
        for j in range(p1):
            for k in range(j + 1):
                gram[j, k] += total(_inner(V, x0 + j, x0 + k))
        for e in range(d):
            count = _touched(level, donor, e, levels, lanes)
            for j in range(p1):
                f = _inner(V, z0 + e, x0 + j)
                for k in range(count):
                    ZV[levels[k], j] += total(load(lanes, k) * f)
            for h in range(d):
                store(touch, h, _inner(V, z0 + e, z0 + h))
            for i in range(LANES):
                own = level[donor + i, e]
                pair = _pair(blocks, donor + i, own)
                for h in range(d if own >= 0 else 0):
                    if level[donor + i, h] >= 0:
                        M_all[pair + level[donor + i, h]] += touch[h, i]
    logdet += 2.0 * math.log(product)
    definite = True
    if len(ZV) > 0:
        definite, part = _eliminate(phi, blocks, M_all, K_all, ZV, KZ, gram)
        logdet += part
    return definite, logdet, nobs


@called
def profiled(gram):
    """[X y]'Sigma^-1 [X y] to its Cholesky factor, but for the last pivot; (definite, y'Py)."""
    p = len(gram) - 1
    if not cholesky(gram, p):
        return False, math.inf
    ypy = gram[p, p]
    for j in range(p):
        gram[p, j] = (gram[p, j] - _dot(gram[p], gram[j], j)) / gram[j, j]
        ypy -= gram[p, j] * gram[p, j]
    return True, ypy


def _evaluate(phi, y, nu, blocks, active, reml, depth, score, average, expected, beta, gram, moves):
    """Log-likelihood at factor variances phi and, by `depth`, score and information.

    Parameters
    ----------
    phi : (R + Kr,) factor variances S' theta
    y, nu : (T, m, LANES); blocks : Blocks; active : (T LANES,) bool; reml : bool
    depth : DEFINITE, VALUE, SCORE or INFORMATION
    score : (F,) out; average, expected : (F, F) out, F = R + Kr
    beta : (p,) out, for the orthonormal X; gram : (p + 1, p + 1) out, lower Cholesky factor of
        [X y]' Sigma^-1 [X y]
    moves : (F, p) out, for INFORMATION: U'Sigma_f P y, which moves L_x'beta down as phi_f grows

    Returns
    -------
    float : log-likelihood, or for DEFINITE a number; -inf where Sigma is not positive definite
    """
    R, p = blocks.R, blocks.p
    design, level = blocks.design, blocks.level
    n_tiles, columns, m = design.shape[0], design.shape[1], design.shape[2]
    p1 = p + 1
    x0 = R  # columns of the working matrix V = [W | X | y | Z]
    z0 = R + p1
    width = columns + 1
    d = width - z0
    n_levels = len(blocks.level_comp)
    n_pairs = blocks.pair_ptr[-1]
    F = len(phi)
    if depth == DEFINITE:
        added = True  # random effects whose variances are not negative only add to a covariance
        for f in range(R, F):
            added = added and phi[f] >= 0.0
        if added:
            return 0.0 if _are_definite(phi, nu, blocks, active) else -math.inf
    kept = n_tiles if depth > 0 else 1

    # -- pass 1: whiten every donor, collect the Gram matrix of [X y] ------------------------
    V_all = aligned((kept, width, m, LANES))
    ZV, KZ = zero_rows(n_levels, p1), zero_rows(n_levels, p1)
    wide = ZV.shape[1]  # of rows of levels, in whole lanes
    M_all = zeros(n_pairs)
    K_all = zeros(n_pairs)
    first = 0 if depth > 0 else R
    definite, logdet, nobs = whitened(
        phi, y, nu, blocks, active, first, V_all, M_all, K_all, ZV, KZ, gram
    )
    if not definite:
        return -math.inf

    # -- fixed effects profiled out ----------------------------------------------------------
    definite, ypy = profiled(gram)
    if not definite:
        return -math.inf
    logdet_x = 0.0
    for j in range(p):
        logdet_x += 2.0 * math.log(gram[j, j])
    for j in range(p - 1, -1, -1):
        s = gram[p, j]
        for k in range(j + 1, p):
            s -= gram[k, j] * beta[k]
        beta[j] = s / gram[j, j]
    df = nobs - p if reml else nobs
    llf = -0.5 * (df * math.log(2.0 * math.pi) + logdet + ypy)
    if reml:
        llf -= 0.5 * logdet_x
    if depth <= VALUE:
        return llf

    # -- pass 2: P y, diagonal blocks of P, and the cross terms through low-rank parts -------
    trace_p = 1.0 if reml else 0.0  # weight of the U U' part of P in the traces
    full = depth > 1
    for r in range(F):
        score[r] = 0.0
    if full:
        fill(average, 0.0)
        fill(expected, 0.0)
    turn = empty((p, p))
    _inverse_root(gram, p, turn)
    _project_rows(ZV, p, turn, gram)
    _times_levels(blocks, K_all, ZV, KZ)
    A = aligned((R, width, LANES))  # W~'V~, then [Q | Y | tau | Z part]
    gK = aligned((R, d, LANES))
    near_KZ = aligned((d, p1, LANES))  # rows of KZ and entries of K of each donor's levels
    near_K = aligned((d, d, LANES))
    fill(moves, 0.0)
    YY = aligned((F if full else 0, p, wide))
    for f in range(len(YY)):
        fill(YY[f], 0.0)
    factors = R if full else 0
    G_all, E_all = zeros((n_pairs, factors)), zero_rows(n_levels, factors * wide)
    levels, lanes = np.empty(LANES, np.int64), aligned((LANES, LANES))
    for t in range(n_tiles):
        V = V_all[t]
        donor = t * LANES
        _project(V, x0, p, turn, gram)
        for e in range(d):
            for i in range(LANES):
                own = level[donor + i, e]
                for j in range(p1):
                    near_KZ[e, j, i] = KZ[own, j] if own >= 0 else 0.0
                pair = _pair(blocks, donor + i, own)
                for h in range(d):
                    w = level[donor + i, h]
                    near_K[e, h, i] = K_all[pair + w] if own >= 0 and w >= 0 else 0.0
        for r in range(R):
            for j in range(0 if full else r, width):
                if j <= r or j >= x0:
                    store(A, (r, j), _inner(V, r, j))
            for e in range(d):
                f = load(A, (r, z0 + e))
                for j in range(p1):
                    s = load(A, (r, x0 + j)) - f * load(near_KZ, (e, j))
                    store(A, (r, x0 + j), s)
                s = spread(0.0)
                for h in range(d):
                    s += load(A, (r, z0 + h)) * load(near_K, (h, e))
                store(gK, (r, e), s)
            tau = load(A, (r, x0 + p))
            for s_ in range(0 if full else r, r + 1):
                through = spread(0.0)  # what random and fixed effects take from w' P w
                for e in range(d):
                    through += load(gK, (r, e)) * load(A, (s_, z0 + e))
                if reml:
                    for j in range(x0, x0 + p):
                        through += load(A, (r, j)) * load(A, (s_, j))
                Q = load(A, (r, s_))
                if s_ == r:
                    score[r] += total(tau * tau - Q + through)
                if full:
                    average[r, s_] += total(tau * load(A, (s_, x0 + p)) * Q)
                    expected[r, s_] += total(Q * (Q - 2.0 * through))
            if not full:
                continue
            for j in range(p):
                f = load(A, (r, x0 + j))
                moves[r, j] += total(tau * f)
                if reml:
                    for k in range(j + 1):
                        YY[r, j, k] += total(f * load(A, (r, x0 + k)))
        for e in range(d if full else 0):
            count = _touched(level, donor, e, levels, lanes)
            for k in range(count):
                for r in range(R):
                    f = load(A, (r, z0 + e)) * load(lanes, k)
                    for j in range(p1):
                        E_all[levels[k], r * wide + j] += total(f * load(A, (r, x0 + j)))
            for i in range(LANES):
                own = level[donor + i, e]
                pair = _pair(blocks, donor + i, own)
                for h in range(d if own >= 0 else 0):
                    w = level[donor + i, h]
                    for r in range(R if w >= 0 else 0):
                        G_all[pair + w, r] += A[r, z0 + e, i] * A[r, z0 + h, i]
    if n_levels > 0:
        _levels(
            blocks, M_all, K_all, ZV, trace_p, full, G_all, E_all,
            score, average, expected, moves, YY,
        )  # fmt: skip
    for r in range(F):
        score[r] *= 0.5
    if full:
        for r in range(F):
            for j in range(p):
                for k in range(j):
                    YY[r, k, j] = YY[r, j, k]
            for s_ in range(r + 1):
                product = spread(0.0)
                for j in range(p):
                    for c in range(0, wide, LANES):
                        product += load(YY, (r, j, c)) * load(YY, (s_, j, c))
                both = total(product)
                average[r, s_] = 0.5 * (average[r, s_] - _dot(moves[r], moves[s_], p))
                average[s_, r] = average[r, s_]
                expected[r, s_] = 0.5 * (expected[r, s_] + both)
                expected[s_, r] = expected[r, s_]
    return llf


@inlined
def _pair(blocks, donor, level):
    """Place of (level, 0) among the pairs of levels of the donor's block."""
    b = blocks.block[donor]
    l0 = blocks.level_ptr[b]
    return blocks.pair_ptr[b] + (level - l0) * (blocks.level_ptr[b + 1] - l0) - l0


_F1, _F2, _F3, _F4 = (types.Array(types.float64, k, "C") for k in (1, 2, 3, 4))
_I1, _I2 = types.int64[::1], types.int64[:, ::1]
_BLOCKS = referred(
    types.NamedTuple((_F4, types.int64, types.int64, _I1, _I1, _I2, _I1, _I1, _I1), Blocks)
)
_SIGNATURE = types.float64(
    _F1, _F3, _F3, _BLOCKS, types.boolean[::1], types.boolean, types.int64,
    _F1, _F2, _F2, _F1, _F2, _F2,
)  # fmt: skip


@functools.cache
def kernel_address() -> int:
    """Address of the compiled :func:`_evaluate`; compiled once, at first use, then cached on disk.

    Callers reach it through a pointer: linked into each of them it would be optimised anew for
    every one, which costs more than all other compilation together.
    """
    return kept_callback(_SIGNATURE, _evaluate).address


@intrinsic
def _call(typingctx, address, arguments):
    """Call the kernel at `address` with a tuple of arguments."""

    def codegen(context, builder, signature, values):
        kinds = _SIGNATURE.args
        parts = [
            context.cast(builder, builder.extract_value(values[1], i), given, wanted)
            for i, (given, wanted) in enumerate(zip(signature.args[1].types, kinds, strict=True))
        ]
        function = ir.FunctionType(
            context.get_value_type(types.float64), [context.get_value_type(t) for t in kinds]
        )
        return builder.call(builder.inttoptr(values[0], function.as_pointer()), parts)

    return types.float64(types.int64, arguments), codegen


@called
def evaluate_at(
    address, phi, y, nu, blocks, active, reml, depth, score, average, expected, beta, gram, moves
):
    """:func:`_evaluate` through its address, see :func:`kernel_address`."""
    return _call(
        address,
        (phi, y, nu, blocks, active, reml, depth, score, average, expected, beta, gram, moves),
    )


@kept
def evaluate(
    address, phi, y, nu, blocks, active, reml, depth, score, average, expected, beta, gram
):
    """The same, called from Python."""
    return evaluate_at(
        address, phi, y, nu, blocks, active, reml, depth, score, average, expected, beta, gram,
        empty((len(phi), blocks.p)),
    )  # fmt: skip
