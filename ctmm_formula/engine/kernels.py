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

from .lanes import (
    add_to_rows,
    add_totals,
    aligned,
    all_positive,
    load,
    root,
    spread,
    store,
    together,
    total,
    zeros_together,
)
from .lanes import zeros as zeros
from .model import LANES, Blocks
from .options import called, inlined, kept, kept_callback
from .references import referred

_TILES = 8  # tiles whose products are summed at once

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
def _whole(width):
    """The multiple of LANES at or above `width`."""
    return -(-width // LANES) * LANES


@called
def zero_rows(n, width):
    """Zeros (n, w), where w is the multiple of LANES at or above `width`."""
    out = aligned((n, _whole(width)))
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
        out[c, c] = 1.0 / low[c, c]
    for c in range(p):
        for i in range(c):
            out[c, i] = 0.0
        for i in range(c + 1, p):
            s = 0.0
            for k in range(c, i):
                s -= low[i, k] * out[c, k]
            out[c, i] = s * out[i, i]


@called
def _turned(gram):
    """What makes [U, P y] of [X y]: [[L_x^-T, -b], [0, 1]], as wide as whole lanes."""
    turn = zero_rows(len(gram), len(gram))
    _inverse_root(gram, len(gram), turn)
    return turn


# -- one tile: LANES donors of at most m rows ----------------------------------------------------


@inlined
def _four(j, last):
    """Number j and the next three, or the last again where there are not so many."""
    return j, min(j + 1, last), min(j + 2, last), min(j + 3, last)


@inlined
def _none():
    """Four sums of nothing."""
    return spread(0.0), spread(0.0), spread(0.0), spread(0.0)


@inlined
def _at(A, four, r):
    """A[four, r]."""
    j, k, h, g = four
    return load(A, (j, r)), load(A, (k, r)), load(A, (h, r)), load(A, (g, r))


@inlined
def _put(A, four, r, values):
    """A[four, r] = four values."""
    store(A, (four[0], r), values[0])
    store(A, (four[1], r), values[1])
    store(A, (four[2], r), values[2])
    store(A, (four[3], r), values[3])


@inlined
def _add(values, f, others):
    """Four values and f times four others."""
    s, t, u, v = values
    return s + f * others[0], t + f * others[1], u + f * others[2], v + f * others[3]


@inlined
def _each(values, others):
    """Four products."""
    s, t, u, v = values
    return s * others[0], t * others[1], u * others[2], v * others[3]


@inlined
def _along(A, a, four):
    """A[a, four]."""
    j, k, h, g = four
    return load(A, (a, j)), load(A, (a, k)), load(A, (a, h)), load(A, (a, g))


@inlined
def _put_along(A, a, four, values):
    """A[a, four] = four values."""
    store(A, (a, four[0]), values[0])
    store(A, (a, four[1]), values[1])
    store(A, (a, four[2]), values[2])
    store(A, (a, four[3]), values[3])


@inlined
def _covariance(V, nu, mask, phi, span, low):
    """low = sum_r phi_r w_r w_r' + D of every donor; the identity where the mask is zero."""
    for a in range(low.shape[0]):
        for c in range(a):
            store(low, (a, c), spread(0.0))
        store(low, (a, a), load(nu, a) * mask + (1.0 - mask))
    for r in range(len(span)):
        weight = phi[r] * mask
        for a in range(span[r, 0], span[r, 1]):
            f = weight * load(V, (r, a))
            for c in range(span[r, 0], a + 1):
                store(low, (a, c), load(low, (a, c)) + f * load(V, (r, c)))


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
        for a in range(j + 1, m, 4):
            rows = _four(a, m - 1)
            values = _at(low, rows, j)
            for k in range(j):
                values = _add(values, -1.0 * load(low, (j, k)), _at(low, rows, k))
            _put(low, rows, j, _add(_none(), d, values))
    return definite, product


@inlined
def _whiten(low, V, first):
    """Columns V[first:] <- L^-1 V, two rows of four at a time."""
    for i in range(first, V.shape[0], 4):
        columns = _four(i, V.shape[0] - 1)
        for a in range(0, V.shape[1], 2):
            b = min(a + 1, V.shape[1] - 1)
            one, two = _at(V, columns, a), _at(V, columns, b)
            for c in range(a):
                before = _at(V, columns, c)
                one = _add(one, -1.0 * load(low, (a, c)), before)
                two = _add(two, -1.0 * load(low, (b, c)), before)
            one = _add(_none(), load(low, (a, a)), one)
            two = _add(two, -1.0 * load(low, (b, a)), one)
            _put(V, columns, b, _add(_none(), load(low, (b, b)), two))
            _put(V, columns, a, one)  # in place of the other if that is no row of its own


@inlined
def _inner(V, i, j):
    """Inner product of two columns, donor by donor."""
    s = load(V, (i, 0)) * load(V, (j, 0))
    for a in range(1, V.shape[1]):
        s += load(V, (i, a)) * load(V, (j, a))
    return s


@inlined
def _products(V, i, begin, columns):
    """Inner products of column i, 0 before row `begin`, and four columns, donor by donor."""
    values = _none()
    for a in range(begin, V.shape[1]):
        values = _add(values, load(V, (i, a)), _at(V, columns, a))
    return values


@inlined
def _of_two(V, i, j, begin, columns):
    """The same of columns i and j."""
    one, two = _none(), _none()
    for a in range(begin, V.shape[1]):
        others = _at(V, columns, a)
        one = _add(one, load(V, (i, a)), others)
        two = _add(two, load(V, (j, a)), others)
    return one, two


@inlined
def _two_across(A, rows, i, j, columns):
    """Sums over rows, from one to another, of products of columns i and j and four others."""
    one, two = _none(), _none()
    for a in range(rows[0], rows[1]):
        others = _along(A, a, columns)
        one = _add(one, load(A, (a, i)), others)
        two = _add(two, load(A, (a, j)), others)
    return one, two


@inlined
def _project(V, x0, turn):
    """Columns [X y] (from x0) <- [X y] turn, two of four rows at a time: [U, P y]."""
    for a in range(0, V.shape[1], 4):
        rows = _four(a, V.shape[1] - 1)
        for j in range(len(turn) - 1, -1, -2):
            i = max(j - 1, 0)
            one, two = _none(), _none()
            for k in range(j + 1):
                before = _along(V, x0 + k, rows)
                one = _add(one, turn[k, i], before)
                two = _add(two, turn[k, j], before)
            _put_along(V, x0 + i, rows, one)
            _put_along(V, x0 + j, rows, two)


@called
def _scatter(values, out, rows, column):
    """Add four values of every donor to its row of `out`, from a column on."""
    add_to_rows(out, rows, column, values)


@called
def _project_rows(rows, turn):
    """The same for rows [X y] of levels; both as wide as whole lanes."""
    for x in range(len(rows)):
        for c in range(rows.shape[1] - LANES, -1, -LANES):
            s = spread(0.0)
            for k in range(min(c + LANES, len(turn))):
                s += rows[x, k] * load(turn, (k, c))
            store(rows, (x, c), s)


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
    square = most, most
    M, K, T, g, column, row = together((square, square, square, (most,), (most,), (ZV.shape[1],)))
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
def _places(four, step, first):
    """Four times a step, from the first on."""
    j, k, h, g = four
    return first + j * step, first + k * step, first + h * step, first + g * step


@inlined
def _times(A, q, B, first, out):
    """out = A B for A (q, q) and rows `first` to `first` + q of B, as wide as whole lanes."""
    for x in range(q):
        for c in range(0, B.shape[1], LANES):
            s = spread(0.0)
            for w in range(q):
                s += A[x, w] * load(B, (first + w, c))
            store(out, (x, c), s)


@called
def _levels(
    blocks, M_all, K_all, ZV, trace_p, full, G_all, E_all, score, average, expected, moves, YY
):
    """The random effects' part of score and information, and their cross terms with the donors.

    ZV holds Z' D^-1 [U, P y]; G_all (pairs, R) and E_all (q, R w), with w = ZV.shape[1], the sums
    over donors of g g' and g [w'U, tau] with g = Z' D^-1 w, for every factor w.
    """
    R, p, wide, across = blocks.R, blocks.p, ZV.shape[1], G_all.shape[1]
    most = 0
    for b in range(len(blocks.level_ptr) - 1):
        most = max(most, blocks.level_ptr[b + 1] - blocks.level_ptr[b])
    more = most if full else 0
    square, pairs, own = (most, most), (more, most * across), (more, R * wide)
    M, K, N, out, zx, KG, NG, KE, NE = together(
        (square, square, square, square, (most, wide), pairs, pairs, E_all.shape, own)
    )
    of_x, of_y = zeros_together(((wide,), (wide,)))  # what U, and P y, weigh
    for j in range(p):
        of_x[j] = trace_p
    of_y[p] = 1.0
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
        _times(N, q, ZV, l0, zx)  # Z' Sigma^-1 [U, y - X b]
        for x in range(q):
            f = R + comp[x]
            zeta = zx[x, p]
            for w in range(0 if full else x, q if full else x + 1):
                h = R + comp[w]
                s = spread(0.0)
                for c in range(0, wide, LANES):
                    s += load(of_x, c) * load(zx, (x, c)) * load(zx, (w, c))
                through_x = total(s)
                if x == w:
                    score[f] += zeta * zeta - out[x, x] + through_x
                if full and h <= f:
                    average[f, h] += zeta * out[x, w] * zx[w, p]
                    expected[f, h] += out[x, w] * (out[x, w] - 2.0 * through_x)
        if not full:
            continue
        G = G_all[start : start + q * q].reshape(q, q * across)
        _times(K, q, G, 0, KG)
        _times(K, q, E_all, l0, KE[l0 : l0 + q])
        # cross terms with the levels: h_i = (N g_i')_l, and its product with U U'
        _times(N, q, G, 0, NG)
        _times(N, q, E_all, l0, NE)
        for x in range(q):
            f = R + comp[x]
            for c in range(0, wide, LANES):
                s = load(zx, (x, c))
                for j in range(p):
                    at = f, j, c
                    store(YY, at, load(YY, at) + zx[x, j] * load(of_x, c) * s)
                for r in range(R):
                    t = s * load(NE, (x, r * wide + c))
                    average[f, r] += total(t * load(of_y, c))
                    expected[f, r] -= 2.0 * total(t * load(of_x, c))
            for j in range(p):
                moves[f, j] += zx[x, p] * zx[x, j]
            for w in range(q):
                for r in range(R):
                    expected[f, r] += N[x, w] * NG[x, w * across + r]
                for c in range(0, across, LANES):
                    s = load(KG, (w, x * across + c))
                    for r in range(R):
                        t = load(expected, (r, c)) + KG[x, w * across + r] * s
                        store(expected, (r, c), t)
    for r in range(R if full else 0):
        for s_ in range(r + 1):
            for c in range(0, wide, LANES):
                both = spread(0.0)
                for x in range(len(KE)):
                    both += load(E_all, (x, r * wide + c)) * load(KE, (x, s_ * wide + c))
                average[r, s_] -= total(both * load(of_y, c))
                expected[r, s_] += 2.0 * total(both * load(of_x, c))


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
        _covariance(blocks.design[t], nu[t], mask, phi, blocks.span, low)
        if not _factor(low)[0]:
            return False
    return True


@called
def whitened(phi, y, nu, blocks, active, first, full, V_all, A_all, M_all, K_all, ZV, KZ, gram):
    """Columns V = L^-1 [W X y Z] of all donors, and what they sum up to.

    Columns from `first` on, of as many tiles as V_all has; M_all and K_all the pairs of levels of
    all blocks, ZV = Z'D^-1 [X y], KZ = K ZV, gram = [X y]'Sigma^-1 [X y], all out.

    Returns
    -------
    (whether Sigma is positive definite, log|Sigma|, rows in use)
    """
    R, p, span = blocks.R, blocks.p, blocks.span
    design, level = blocks.design, blocks.level
    n_tiles, columns, m = design.shape[0], design.shape[1], design.shape[2]
    p1 = p + 1
    x0 = R
    z0 = R + p1
    d = columns + 1 - z0
    low, touch, sums = together(((m, m, LANES), (1 + d, LANES), (p1 + 1, ZV.shape[1])))
    fill(sums, 0.0)
    levels = np.empty(LANES, np.int64)
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
        _covariance(V, nu[t], mask, phi, span, low)
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
        for r in range(0, R if len(A_all) > 0 else 0, 2):
            s_ = min(r + 1, R - 1)
            begin = min(span[r, 0], span[s_, 0])
            if not full:
                store(A_all, (t, r, r), _inner(V, r, r))
                store(A_all, (t, s_, s_), _inner(V, s_, s_))
            for j in range(0 if full else x0, columns + 1, 4):
                four = _four(j, columns)
                one, two = _of_two(V, r, s_, begin, four)
                _put(A_all[t], four, r, one)
                _put(A_all[t], four, s_, two)
        for j in range(0, p1, 2):
            last = min(j + 1, p)
            for k in range(0, last + 1, 4):
                one, two = _of_two(V, x0 + j, x0 + last, 0, _four(x0 + k, x0 + last))
                add_totals(sums, (j, k), one)
                add_totals(sums, (j + 1, k), two)
        for e in range(d):
            for i in range(LANES):
                levels[i] = max(level[donor + i, e], 0)  # of weight 0 if there is none
            for j in range(0, p1, 4):
                values = _products(V, z0 + e, 0, _four(x0 + j, x0 + p))
                _scatter(values, ZV, levels, j)
            for h in range(d):
                store(touch, h, _inner(V, z0 + e, z0 + h))
            for i in range(LANES):
                own = level[donor + i, e]
                pair = _pair(blocks, donor + i, own)
                for h in range(d if own >= 0 else 0):
                    if level[donor + i, h] >= 0:
                        M_all[pair + level[donor + i, h]] += touch[h, i]
    logdet += 2.0 * math.log(product)
    for j in range(p1):
        for k in range(j + 1):
            gram[j, k] = sums[j, k]
    definite = True
    if len(ZV) > 0:
        definite, part = _eliminate(phi, blocks, M_all, K_all, ZV, KZ, gram)
        logdet += part
    return definite, logdet, nobs


@called
def profiled(gram):
    """[X y]'Sigma^-1 [X y] to its Cholesky factor, the last pivot 1; (definite, y'Py)."""
    p = len(gram) - 1
    if not cholesky(gram, p):
        return False, math.inf
    ypy = gram[p, p]
    for j in range(p):
        gram[p, j] = (gram[p, j] - _dot(gram[p], gram[j], j)) / gram[j, j]
        ypy -= gram[p, j] * gram[p, j]
    gram[p, p] = 1.0
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
    full = depth > 1

    # -- pass 1: whiten every donor, collect the Gram matrix of [X y] ------------------------
    # V'W of whitened columns, then [Q | Y | tau | Z part]
    A_all = aligned((n_tiles if depth > 0 else 0, width, R, LANES))
    V_all = aligned((1, width, m, LANES))
    wide, most = _whole(p1), _whole(F)
    ZV, KZ, M_all, K_all = zeros_together(
        ((n_levels, wide), (n_levels, wide), (n_pairs,), (n_pairs,))
    )
    first = 0 if depth > 0 else R
    definite, logdet, nobs = whitened(
        phi, y, nu, blocks, active, first, full, V_all, A_all, M_all, K_all, ZV, KZ, gram
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
    for r in range(F):
        score[r] = 0.0
    turn = _turned(gram)
    _project_rows(ZV, turn)
    _times_levels(blocks, K_all, ZV, KZ)
    # rows of KZ and entries of K of each donor's levels
    gK, near_KZ, near_K = together(((d, R, LANES), (d, p1, LANES), (d, d, LANES)))
    flat = A_all.reshape(n_tiles, width * R, LANES)
    fill(moves, 0.0)
    factors, pairs, n = (F, n_pairs, n_levels) if full else (0, 0, 0)
    rows, squares = (factors, most), (factors, p1 + 1, wide)
    sums, traces, YY, G_all, E_all = zeros_together(
        (rows, rows, squares, (pairs, _whole(R)), (n, R * wide))
    )
    levels = np.empty(LANES, np.int64)
    for t in range(n_tiles):
        A = A_all[t]
        donor = t * LANES
        _project(A, x0, turn)
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
            for e in range(d):
                f = load(A, (z0 + e, r))
                for j in range(p1):
                    s = load(A, (x0 + j, r)) - f * load(near_KZ, (e, j))
                    store(A, (x0 + j, r), s)
                s = spread(0.0)
                for h in range(d):
                    s += load(A, (z0 + h, r)) * load(near_K, (h, e))
                store(gK, (e, r), s)
            tau = load(A, (x0 + p, r))
            s = tau * tau - load(A, (r, r))
            for j in range(x0, x0 + p if reml else x0):
                s += load(A, (j, r)) * load(A, (j, r))
            for e in range(d):
                s += load(gK, (e, r)) * load(A, (z0 + e, r))
            score[r] += total(s)
            for s_ in range(0, r + 1 if full else 0, 4):
                four = _four(s_, r)
                Q = _at(A, four, r)
                rest = Q  # less twice what random and fixed effects take from w' P w
                for j in range(x0, x0 + p if reml else x0):
                    rest = _add(rest, -2.0 * load(A, (j, r)), _along(A, j, four))
                for e in range(d):
                    rest = _add(rest, -2.0 * load(gK, (e, r)), _along(A, z0 + e, four))
                taus = _add(_none(), tau, _along(A, x0 + p, four))
                add_totals(sums, (r, s_), _each(Q, taus))
                add_totals(traces, (r, s_), _each(Q, rest))
        for e in range(d if full else 0):
            for i in range(LANES):
                levels[i] = max(level[donor + i, e], 0)
            for r in range(R):
                f = load(A, (z0 + e, r))
                for j in range(0, p1, 4):
                    values = _add(_none(), f, _at(A, _four(x0 + j, x0 + p), r))
                    _scatter(values, E_all, levels, r * wide + j)
            for h in range(d):
                for i in range(LANES):
                    own, w = level[donor + i, e], level[donor + i, h]
                    levels[i] = _pair(blocks, donor + i, own) + w if min(own, w) >= 0 else 0
                for r in range(0, R, 4):
                    four = _four(r, R - 1)
                    values = _each(_along(A, z0 + e, four), _along(A, z0 + h, four))
                    _scatter(values, G_all, levels, r)
        if full and (t % _TILES == _TILES - 1 or t == n_tiles - 1):
            tiles = t // _TILES * _TILES, t + 1
            for r in range(R):
                for j in range(0 if reml else p, p1, 2):
                    last = min(j + 1, p)
                    for k in range(0, last + 1, 4):
                        four = _places(_four(x0 + k, x0 + last), R, r)
                        i, own = (x0 + j) * R + r, (x0 + last) * R + r
                        one, two = _two_across(flat, tiles, i, own, four)
                        add_totals(YY, (r, j, k), one)
                        add_totals(YY, (r, j + 1, k), two)
    for r in range(R if full else 0):
        for j in range(p):
            moves[r, j] = YY[r, p, j]
            for k in range(j):
                YY[r, k, j] = YY[r, j, k]
            for k in range(p, wide):
                YY[r, j, k] = 0.0
    if n_levels > 0:
        _levels(
            blocks, M_all, K_all, ZV, trace_p, full, G_all, E_all,
            score, sums, traces, moves, YY,
        )  # fmt: skip
    for r in range(F):
        score[r] *= 0.5
    for r in range(factors):
        for s_ in range(r + 1):
            product = spread(0.0)
            for j in range(p):
                for c in range(0, wide, LANES):
                    product += load(YY, (r, j, c)) * load(YY, (s_, j, c))
            average[r, s_] = 0.5 * (sums[r, s_] - _dot(moves[r], moves[s_], p))
            average[s_, r] = average[r, s_]
            expected[r, s_] = 0.5 * (traces[r, s_] + total(product))
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
    types.NamedTuple((_F4, types.int64, types.int64, _I1, _I1, _I2, _I1, _I1, _I1, _I2), Blocks)
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
