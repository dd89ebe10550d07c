"""The compiled loops: likelihood, score, information and the Newton step, block by block.

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
``S @ factors``.  Nothing here allocates more than a few arrays of the size of the data.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from .model import Blocks

_FAST = {"reassoc", "contract", "nsz", "arcp"}  # lets sums vectorise; keeps NaN and inf exact
_OPTIONS = {"cache": True, "nogil": True, "fastmath": _FAST, "error_model": "numpy"}
# called from compiled code only: no wrapper for Python, which is much of the compile time
_INNER = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

VALUE, SCORE, INFORMATION = 0, 1, 2
"""How much :func:`evaluate` computes."""


@njit(**_INNER)
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


@njit(**_INNER)
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


@njit(**_INNER)
def _whiten(low, m, V, start, first):
    """V[start:start+m, first:] <- L^-1 V, row by row so that columns vectorise."""
    width = V.shape[1]
    for a in range(m):
        for b in range(a):
            f = low[a, b]
            for j in range(first, width):
                V[start + a, j] -= f * V[start + b, j]
        f = 1.0 / low[a, a]
        for j in range(first, width):
            V[start + a, j] *= f


@njit(**_INNER)
def _cross(V, start, m, i0, i1, j0, j1, out):
    """out += V[rows, i0:i1]' V[rows, j0:j1], four rows at a time."""
    stop = start + m
    a = start
    while a + 4 <= stop:
        for i in range(i0, i1):
            f0 = V[a, i]
            f1 = V[a + 1, i]
            f2 = V[a + 2, i]
            f3 = V[a + 3, i]
            for j in range(j0, j1):
                out[i - i0, j - j0] += (
                    f0 * V[a, j] + f1 * V[a + 1, j] + f2 * V[a + 2, j] + f3 * V[a + 3, j]
                )
        a += 4
    while a < stop:
        for i in range(i0, i1):
            f0 = V[a, i]
            for j in range(j0, j1):
                out[i - i0, j - j0] += f0 * V[a, j]
        a += 1


@njit(**_INNER)
def _product(A, B, sign, out):
    """out += sign A B."""
    for i in range(A.shape[0]):
        for k in range(A.shape[1]):
            f = sign * A[i, k]
            if f != 0.0:
                for j in range(B.shape[1]):
                    out[i, j] += f * B[k, j]


@njit(**_INNER)
def _project(root, gram, p, rows, n_rows, x0, spare, right):
    """Rows [w' S^-1 X, w' S^-1 y] (from column x0) to w' U in place and w' P y in `right`.

    root = L_x^-T, so that U = S^-1 X root; `spare` (p,) is overwritten.
    """
    for r in range(n_rows):
        for j in range(p):
            spare[j] = 0.0
        k = 0
        while k + 4 <= p:
            f0 = rows[r, x0 + k]
            f1 = rows[r, x0 + k + 1]
            f2 = rows[r, x0 + k + 2]
            f3 = rows[r, x0 + k + 3]
            for j in range(k, p):
                spare[j] += (
                    f0 * root[k, j]
                    + f1 * root[k + 1, j]
                    + f2 * root[k + 2, j]
                    + f3 * root[k + 3, j]
                )
            k += 4
        while k < p:
            f0 = rows[r, x0 + k]
            for j in range(k, p):
                spare[j] += f0 * root[k, j]
            k += 1
        res = rows[r, x0 + p]
        for j in range(p):
            rows[r, x0 + j] = spare[j]
            res -= spare[j] * gram[p, j]
        right[r] = res


@njit(**_INNER)
def _inverse_root(low, p, root):
    """root = L^-T for the leading p x p of `low` (upper triangular)."""
    for c in range(p):
        for i in range(c):
            root[c, i] = 0.0
        for i in range(c, p):
            s = 1.0 if i == c else 0.0
            for k in range(c, i):
                s -= low[i, k] * root[c, k]
            root[c, i] = s / low[i, i]


@njit(**_INNER)
def _fill(a, value):
    """a[:] = value for a matrix."""
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            a[i, j] = value


@njit(**_INNER)
def _dot(a, b, n):
    s = 0.0
    for j in range(n):
        s += a[j] * b[j]
    return s


@njit(**_INNER)
def _woodbury(g, M, q, K):
    """K = (I + G M)^-1 G and log|I + G M|; False if the block is not positive definite.

    With g = s^2 e, e = +-1: K = S (E + S M S)^-1 S, and Sigma is positive definite exactly when
    E + S M S has as many negative eigenvalues as E.  Positive g are eliminated first.
    """
    T = np.empty((q, q))
    perm = np.empty(q, np.int64)
    count = 0
    for x in range(q):
        if g[x] >= 0.0:
            perm[count] = x
            count += 1
    for x in range(q):
        if g[x] < 0.0:
            perm[count] = x
            count += 1
    for x in range(q):
        gx = g[perm[x]]
        for y in range(x + 1):
            gy = g[perm[y]]
            T[x, y] = math.sqrt(abs(gx * gy)) * M[perm[x], perm[y]]
        T[x, x] += 1.0 if gx >= 0.0 else -1.0
    logdet = 0.0
    for j in range(q):  # L D L' without pivoting
        d = T[j, j]
        for k in range(j):
            d -= T[j, k] * T[j, k] * T[k, k]
        if g[perm[j]] >= 0.0:
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
    column = np.empty(q)
    for c in range(q):
        for i in range(q):
            column[i] = 0.0
        column[c] = math.sqrt(abs(g[perm[c]]))
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
            K[perm[i], perm[c]] = math.sqrt(abs(g[perm[i]])) * column[i]
    return True, logdet


def _evaluate(phi, y, nu, blocks, active, reml, level, score, average, expected, beta, gram):
    """Log-likelihood at factor variances phi and, by `level`, score and information.

    Parameters
    ----------
    phi : (R + Kr,) factor variances S' theta
    y, nu : (n,); blocks : Blocks; active : (N,) bool; reml : bool
    level : VALUE, SCORE or INFORMATION
    score : (F,) out; average, expected : (F, F) out, F = R + Kr
    beta : (p,) out, for the orthonormal X; gram : (p + 1, p + 1) out, lower Cholesky factor of
        [X y]' Sigma^-1 [X y]

    Returns
    -------
    float : log-likelihood, -inf where Sigma is not positive definite
    """
    design, R, p = blocks.design, blocks.R, blocks.p
    row_ptr, block_ptr, level_ptr = blocks.row_ptr, blocks.block_ptr, blocks.level_ptr
    local = blocks.local
    n = design.shape[0]
    d = local.shape[1]
    p1 = p + 1
    x0 = R  # columns of the working matrix V = [W | X | y | Z]
    z0 = R + p1
    width = z0 + d
    n_blocks = len(block_ptr) - 1
    n_levels = len(blocks.level_comp)
    F = len(phi)

    # -- pass 1: whiten every donor, collect the Gram matrix of [X y] ------------------------
    V = np.empty((n, width))
    ZV = np.zeros((n_levels, p1))
    KZ = np.zeros((n_levels, p1))
    m_max = 1
    for i in range(len(row_ptr) - 1):
        m_max = max(m_max, row_ptr[i + 1] - row_ptr[i])
    low = np.empty((m_max, m_max))
    start = np.zeros(n_blocks + 1, np.int64)
    for b in range(n_blocks):
        start[b + 1] = start[b] + (level_ptr[b + 1] - level_ptr[b]) ** 2
    M_all = np.zeros(start[n_blocks])
    K_all = np.zeros(start[n_blocks])
    touch = np.empty((d, p1 + d))
    _fill(gram, 0.0)
    logdet = 0.0
    product = 1.0
    nobs = 0
    first = 0 if level > 0 else R
    for b in range(n_blocks):
        l0 = level_ptr[b]
        q = level_ptr[b + 1] - l0
        M = M_all[start[b] : start[b + 1]].reshape(q, q)
        for i in range(block_ptr[b], block_ptr[b + 1]):
            if not active[i]:
                continue
            r0 = row_ptr[i]
            m = row_ptr[i + 1] - r0
            nobs += m
            for a in range(r0, r0 + m):
                for c in range(r0, a + 1):
                    s = 0.0
                    for r in range(R):
                        s += phi[r] * design[a, r] * design[c, r]
                    low[a - r0, c - r0] = s
                low[a - r0, a - r0] += nu[a]
                for j in range(z0 - 1):
                    V[a, j] = design[a, j]
                V[a, z0 - 1] = y[a]
                for j in range(d):
                    V[a, z0 + j] = design[a, z0 - 1 + j]
            if not cholesky(low, m):
                return -math.inf
            for a in range(m):
                product *= low[a, a]  # one logarithm for many pivots
            if not 1e-200 < product < 1e200:
                logdet += 2.0 * math.log(product)
                product = 1.0
            _whiten(low, m, V, r0, first)
            _cross(V, r0, m, x0, z0, x0, z0, gram)
            if d > 0:
                _fill(touch, 0.0)
                _cross(V, r0, m, z0, width, x0, width, touch)
                for e in range(d):
                    le = local[i, e]
                    if le < 0:
                        break
                    for j in range(p1):
                        ZV[l0 + le, j] += touch[e, j]
                    for h in range(d):
                        if local[i, h] >= 0:
                            M[le, local[i, h]] += touch[e, p1 + h]
        if q > 0:
            K = K_all[start[b] : start[b + 1]].reshape(q, q)
            g = np.empty(q)
            for x in range(q):
                g[x] = phi[R + blocks.level_comp[l0 + x]]
            ok, ld = _woodbury(g, M, q, K)
            if not ok:
                return -math.inf
            logdet += ld
            _product(K, ZV[l0 : l0 + q], 1.0, KZ[l0 : l0 + q])
            for x in range(l0, l0 + q):
                for j in range(p1):
                    f = ZV[x, j]
                    for k in range(j + 1):
                        gram[j, k] -= f * KZ[x, k]

    logdet += 2.0 * math.log(product)

    # -- fixed effects profiled out ----------------------------------------------------------
    if not cholesky(gram, p):
        return -math.inf
    logdet_x = 0.0
    ypy = gram[p, p]
    for j in range(p):
        logdet_x += 2.0 * math.log(gram[j, j])
        gram[p, j] = (gram[p, j] - _dot(gram[p], gram[j], j)) / gram[j, j]
        ypy -= gram[p, j] * gram[p, j]
    for j in range(p - 1, -1, -1):
        s = gram[p, j]
        for k in range(j + 1, p):
            s -= gram[k, j] * beta[k]
        beta[j] = s / gram[j, j]
    df = nobs - p if reml else nobs
    llf = -0.5 * (df * math.log(2.0 * math.pi) + logdet + ypy)
    if reml:
        llf -= 0.5 * logdet_x
    if level == 0:
        return llf

    # -- pass 2: P y, diagonal blocks of P, and the cross terms through low-rank parts -------
    trace_p = 1.0 if reml else 0.0  # weight of the U U' part of P in the traces
    full = level > 1
    for r in range(F):
        score[r] = 0.0
    if full:
        _fill(average, 0.0)
        _fill(expected, 0.0)
    tau = np.empty(R)
    spare = np.empty(p)
    root = np.empty((p, p))
    _inverse_root(gram, p, root)
    A = np.empty((R, width))  # W~'V~, then [Q | Y | . | Z part]
    gK = np.empty((R, d))
    c_all = np.zeros((F, p))
    YY = np.zeros((F, p, p)) if full else np.zeros((0, p, p))
    for b in range(n_blocks):
        l0 = level_ptr[b]
        q = level_ptr[b + 1] - l0
        M = M_all[start[b] : start[b + 1]].reshape(q, q)
        K = K_all[start[b] : start[b + 1]].reshape(q, q)
        G_b = np.zeros((R, q, q)) if full else np.zeros((0, q, q))
        E_b = np.zeros((R, q, p1)) if full else np.zeros((0, q, p1))
        for i in range(block_ptr[b], block_ptr[b + 1]):
            if not active[i]:
                continue
            r0 = row_ptr[i]
            m = row_ptr[i + 1] - r0
            _fill(A, 0.0)
            _cross(V, r0, m, 0, R, 0, width, A)
            for r in range(R):
                for e in range(d):
                    gK[r, e] = 0.0
                for e in range(d):
                    le = local[i, e]
                    if le < 0:
                        break
                    f = A[r, z0 + e]
                    for j in range(p1):
                        A[r, x0 + j] -= f * KZ[l0 + le, j]
                    for h in range(d):
                        if local[i, h] >= 0:
                            gK[r, h] += f * K[le, local[i, h]]
            _project(root, gram, p, A, R, x0, spare, tau)
            for r in range(R):
                low_s = 0 if full else r
                for s_ in range(low_s, r + 1):
                    t = 0.0
                    for e in range(d):
                        t += gK[r, e] * A[s_, z0 + e]
                    u = 0.0
                    for j in range(x0, x0 + p):
                        u += A[r, j] * A[s_, j]
                    u *= trace_p
                    Q = A[r, s_]
                    if s_ == r:
                        score[r] += tau[r] * tau[r] - Q + t + u
                    if full:
                        average[r, s_] += tau[r] * tau[s_] * Q
                        expected[r, s_] += Q * (Q - 2.0 * (t + u))
            if full:
                for r in range(R):
                    for j in range(p):
                        f = A[r, x0 + j]
                        c_all[r, j] += tau[r] * f
                        f *= trace_p
                        for k in range(p):
                            YY[r, j, k] += f * A[r, x0 + k]
                    A[r, x0 + p] = tau[r]  # E_b's last column: sum tau g
                    for e in range(d):
                        le = local[i, e]
                        if le < 0:
                            break
                        f = A[r, z0 + e]
                        for h in range(d):
                            if local[i, h] >= 0:
                                G_b[r, le, local[i, h]] += f * A[r, z0 + h]
                        for j in range(p1):
                            E_b[r, le, j] += f * A[r, x0 + j]
        if q > 0:
            _levels(
                blocks.level_comp[l0 : l0 + q], R, p, M, K, ZV[l0 : l0 + q], root,
                gram, spare, trace_p, full, G_b, E_b, score, average, expected, c_all, YY,
            )  # fmt: skip
    for r in range(F):
        score[r] *= 0.5
    if full:
        for r in range(F):
            for s_ in range(r + 1):
                t = 0.0
                for j in range(p):
                    t += _dot(YY[r, j], YY[s_, j], p)
                average[r, s_] = 0.5 * (average[r, s_] - _dot(c_all[r], c_all[s_], p))
                average[s_, r] = average[r, s_]
                expected[r, s_] = 0.5 * (expected[r, s_] + t)
                expected[s_, r] = expected[r, s_]
    return llf


_F1, _F2, _I1 = types.float64[::1], types.float64[:, ::1], types.int64[::1]
_BLOCKS = types.NamedTuple(
    (_F2, types.int64, types.int64, _I1, _I1, _I1, _I1, types.int64[:, ::1]), Blocks
)
_SIGNATURE = types.float64(
    _F1, _F1, _F1, _BLOCKS, types.boolean[::1], types.boolean, types.int64,
    _F1, _F2, _F2, _F1, _F2,
)  # fmt: skip


@functools.cache
def kernel_address() -> int:
    """Address of the compiled :func:`_evaluate`; compiled once, at first use, then cached on disk.

    Callers reach it through a pointer: linked into each of them it would be optimised anew for
    every one, which costs more than all other compilation together.
    """
    options = {name: _OPTIONS[name] for name in ("cache", "fastmath", "error_model")}
    return cfunc(_SIGNATURE, **options)(_evaluate).address


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


@njit(**_OPTIONS)
def evaluate(
    address, phi, y, nu, blocks, active, reml, level, score, average, expected, beta, gram
):
    """:func:`_evaluate` through its address, see :func:`kernel_address`."""
    return _call(
        address,
        (phi, y, nu, blocks, active, reml, level, score, average, expected, beta, gram),
    )


@njit(**_INNER)
def _levels(
    comp, R, p, M, K, ZV, root, gram, spare, trace_p, full, G_b, E_b,
    score, average, expected, c_all, YY,
):  # fmt: skip
    """The random effects' part of one block: score, information and cross terms."""
    q = M.shape[0]
    N = np.zeros((q, q))  # I - M K
    for x in range(q):
        N[x, x] = 1.0
    _product(M, K, -1.0, N)
    out = np.zeros((q, q))  # Z' Sigma^-1 Z = M - M K M
    _product(N, M, 1.0, out)
    zx = np.zeros((q, p + 1))  # Z' Sigma^-1 [X y] = N Z' D^-1 [X y], then Z' U
    _product(N, ZV, 1.0, zx)
    zeta = np.empty(q)
    _project(root, gram, p, zx, q, 0, spare, zeta)
    for x in range(q):
        f = R + comp[x]
        score[f] += zeta[x] * zeta[x] - out[x, x] + trace_p * _dot(zx[x], zx[x], p)
    if not full:
        return
    for x in range(q):
        f = R + comp[x]
        for j in range(p):
            c_all[f, j] += zeta[x] * zx[x, j]
            for k in range(p):
                YY[f, j, k] += trace_p * zx[x, j] * zx[x, k]
        for w in range(q):
            h = R + comp[w]
            if h <= f:
                average[f, h] += zeta[x] * out[x, w] * zeta[w]
                through_x = trace_p * _dot(zx[x], zx[w], p)
                expected[f, h] += out[x, w] * (out[x, w] - 2.0 * through_x)
    KG = np.zeros((R, q, q))
    KE = np.zeros((R, q, p + 1))
    NG = np.zeros((q, q))
    NE = np.zeros((q, p + 1))
    for r in range(R):
        _product(K, G_b[r], 1.0, KG[r])
        _product(K, E_b[r], 1.0, KE[r])
    for r in range(R):
        for s_ in range(r + 1):
            t = 0.0
            u = 0.0
            for x in range(q):
                u += E_b[r, x, p] * KE[s_, x, p]
                t += 2.0 * trace_p * _dot(E_b[r, x], KE[s_, x], p)
                for w in range(q):
                    t += KG[r, x, w] * KG[s_, w, x]
            average[r, s_] -= u
            expected[r, s_] += t
        # cross terms with the levels: h_i = (N g_i')_l, and its product with U U'
        _fill(NG, 0.0)
        _fill(NE, 0.0)
        _product(N, G_b[r], 1.0, NG)
        _product(N, E_b[r], 1.0, NE)
        for x in range(q):
            f = R + comp[x]
            average[f, r] += NE[x, p] * zeta[x]
            cross = trace_p * _dot(NE[x], zx[x], p)
            expected[f, r] += _dot(NG[x], N[x], q) - 2.0 * cross
