"""The compiled loops of the noise-robust estimator: sums over independent units.

A unit is a donor, or a block of donors joined through levels of random effects.  S is the inverse
of its working covariance, D = diag(nu) its measured noise, r a residual, Sigma_f the derivative of
the covariance for factor f (see :mod:`ctmm_formula.engine.model`).  All there is to know about the
units are the sums (:class:`Sums`) of

    X'SX, X'Sr                                               fixed effects
    tr(S Sigma_f S Sigma_g), X'S Sigma_f S Sigma_g S X,
    X'S Sigma_f S X, X'S Sigma_f S r, r'S Sigma_f S r        moments of the response
    tr(S Sigma_f S D), X'S Sigma_f S D S X, X'S D S X        moments of the noise

from which :func:`_solve` makes the estimate.  Subtract a unit and the same function gives the
estimate without it: the jackknife costs one more pass.

A unit's covariance is blockdiag(Sigma_i) + Z G Z', so with M = sum_i Z_i'Sigma_i^-1 Z_i,

    S = blockdiag(Sigma_i^-1) - (Sigma^-1 Z) K (Sigma^-1 Z)',    K = (I + G M)^-1 G

and S [X r] = Sigma^-1 ([X r] - Z L), L = K Z'Sigma^-1 [X r]; S Z = Sigma^-1 Z (I - K M).  Donors
enter through their two cross products [W X r Z]'Sigma_i^-1 [W X r Z] and the same with
Sigma_i^-1 D Sigma_i^-1; the cost is linear in donors, whatever the size of the blocks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .kernels import _INNER, _OPTIONS, _PART, _inverse_root, cholesky

DONE, COLLINEAR, CONFOUNDED, SINGULAR = 0, 1, 2, 3
"""How a pass ends: an estimate; X, or the moment matrix, lacks rank; a covariance is singular."""

_RANK = 1e-11  # smallest pivot of a matrix that has full rank, in units of its diagonal
_ALONE = 1e-9  # 1 - leverage where a fixed effect rests on one unit
_JACOBI = 8  # size up to which rotations are faster than LAPACK
_SWEEPS = 30  # most of these: each squares what is off the diagonal


class Layout(NamedTuple):
    """What all responses of a design share; n rows and N donors, of which those in use are named.

    columns (n, R + p + 1 + d) = [W | X | . | Z]: factor loadings, orthonormal fixed effects, the
    place of the residual, weights of the at most d levels of a donor; H (n, C); R, p; start, stop
    (N',) rows of each donor in use; unit_ptr (U + 1,) donors of each unit; level (N', d) levels of
    a donor or -1; level_start, level_stop (U,) levels of each unit; level_comp (q,) random
    component of a level; S (K + Kr, R + Kr) components to factors; basis (K, C, C); variance (K,)
    whether a component is a variance, to be held >= 0 by itself in the weights.
    """

    columns: np.ndarray
    H: np.ndarray
    R: int
    p: int
    start: np.ndarray
    stop: np.ndarray
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
    matrices only, so which side is which does not matter.
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


class State(NamedTuple):
    """A fit, its weights and its sums; filled by :func:`reweight`.

    theta, before (K,) estimate and the one that its weights are made of; beta (p,) fixed effects
    of r; F (K, K) moment matrix; A (C, C), g (Kr,) working covariance; root (p, p) with
    root root' = (X'SX)^-1; flat, the memory of :class:`Sums`; donor_gram, donor_noise
    (N', c, c) cross products of donors; unit_gram (U, p, p), unit_score (U, p) each unit's X'SX
    and X'S(r - X beta).
    """

    theta: np.ndarray
    before: np.ndarray
    beta: np.ndarray
    F: np.ndarray
    A: np.ndarray
    g: np.ndarray
    root: np.ndarray
    flat: np.ndarray
    donor_gram: np.ndarray
    donor_noise: np.ndarray
    unit_gram: np.ndarray
    unit_score: np.ndarray


def make_state(layout: Layout) -> State:
    """Memory of a fit."""
    K, F = layout.S.shape
    C, p, count = layout.H.shape[1], layout.p, layout.columns.shape[1]
    N, U = len(layout.start), len(layout.level_start)
    pairs = F * (F + 1) // 2
    size = 2 * p * p + p + pairs * (1 + p * p) + F * (2 * p * p + p + 2)
    return State(
        theta=np.zeros(K),
        before=np.zeros(K),
        beta=np.zeros(p),
        F=np.zeros((K, K)),
        A=np.zeros((C, C)),
        g=np.zeros(K - len(layout.basis)),
        root=np.zeros((p, p)),
        flat=np.zeros(size),
        donor_gram=np.empty((N, count, count)),
        donor_noise=np.empty((N, count, count)),
        unit_gram=np.empty((U, p, p)),
        unit_score=np.empty((U, p)),
    )


@njit(**_PART)
def _parts(flat, F, p):
    """The sums as parts of one vector, so that it can be copied as a whole."""
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
def _add_outer(out, weight, a, b, p):
    """out += weight a b'."""
    for j in range(p):
        f = weight * a[j]
        for k in range(p):
            out[j, k] += f * b[k]


@njit(**_PART)
def _trace(a, b, p):
    """tr(a'b)."""
    s = 0.0
    for j in range(p):
        for k in range(p):
            s += a[j, k] * b[j, k]
    return s


# -- one donor -----------------------------------------------------------------------------------


@njit(**_INNER)
def _donors(layout, A, w, nu, r, gram, noise):
    """[W X r Z]'Sigma_i^-1 [W X r Z] of every donor and, but for W'W off its diagonal and for r,
    [W X r Z]'Sigma_i^-1 D Sigma_i^-1 [W X r Z]; False if a Sigma_i is not positive definite.
    """  # fmt: skip
    count = layout.columns.shape[1]
    C, R, at = layout.H.shape[1], layout.R, layout.R + layout.p
    most = 0
    for i in range(len(layout.start)):
        most = max(most, layout.stop[i] - layout.start[i])
    low = np.empty((most, most))
    V = np.empty((most, count))
    HA = np.empty(C)
    for i in range(len(layout.start)):
        first = layout.start[i]
        m = layout.stop[i] - first
        for a in range(m):
            for c in range(C):
                HA[c] = 0.0
            for e in range(C):
                h = layout.H[first + a, e]
                if h != 0.0:
                    for c in range(C):
                        HA[c] += h * A[e, c]
            for b in range(a + 1):
                s = 0.0
                for c in range(C):
                    s += HA[c] * layout.H[first + b, c]
                low[a, b] = s
            low[a, a] += w[first + a]
        if not cholesky(low, m):
            return False
        own, other = gram[i], noise[i]
        for j in range(count):
            for k in range(count):
                own[j, k] = 0.0
                other[j, k] = 0.0
        for a in range(m):
            for j in range(count):
                V[a, j] = layout.columns[first + a, j]
            V[a, at] = r[first + a]
            for b in range(a):
                f = low[a, b]
                for j in range(count):
                    V[a, j] -= f * V[b, j]
            f = 1.0 / low[a, a]
            for j in range(count):
                V[a, j] *= f
            for j in range(count):
                f = V[a, j]
                for k in range(count):
                    own[j, k] += f * V[a, k]
        for a in range(m - 1, -1, -1):
            for b in range(a + 1, m):
                f = low[b, a]
                for j in range(count):
                    V[a, j] -= f * V[b, j]
            f = 1.0 / low[a, a]
            for j in range(count):
                V[a, j] *= f
            d = nu[first + a]
            for j in range(R):
                other[j, j] += d * V[a, j] * V[a, j]
            for j in range(R, count):
                f = d * V[a, j]
                if j != at:
                    for k in range(count):
                        other[j, k] += f * V[a, k]
    return True


# -- one unit ------------------------------------------------------------------------------------


@njit(**_PART)
def _from_levels(layout, u, gram, noise, MZ, ME, NZ, NX):
    """Z'Sigma^-1 Z, Z'Sigma^-1 [X r], Z'Sigma^-1 D Sigma^-1 Z, Z'Sigma^-1 D Sigma^-1 X of a unit."""
    p, x0 = layout.p, layout.R
    z0 = x0 + p + 1
    d, l0 = layout.level.shape[1], layout.level_start[u]
    for i in range(layout.unit_ptr[u], layout.unit_ptr[u + 1]):
        for a in range(d):
            x = layout.level[i, a] - l0
            if x < 0:
                continue
            for j in range(p + 1):
                ME[x, j] += gram[i, z0 + a, x0 + j]
            for j in range(p):
                NX[x, j] += noise[i, z0 + a, x0 + j]
            for b in range(d):
                y = layout.level[i, b] - l0
                if y >= 0:
                    MZ[x, y] += gram[i, z0 + a, z0 + b]
                    NZ[x, y] += noise[i, z0 + a, z0 + b]


@njit(**_INNER)
def _inverse_levels(M, g):
    """K = (I + G M)^-1 G for variances g >= 0, symmetric."""
    q = len(g)
    inner = np.eye(q)
    for x in range(q):
        for y in range(q):
            inner[x, y] += math.sqrt(g[x] * g[y]) * M[x, y]
    K = np.ascontiguousarray(np.linalg.inv(inner))
    for x in range(q):
        for y in range(q):
            K[x, y] *= math.sqrt(g[x] * g[y])
    return K


@njit(**_INNER)
def _add_unit(layout, u, gram, noise, g, sign, sums, own_gram, own_score):
    """Add (sign = 1) a unit to the sums or take it out (-1); own_gram, own_score: its X'S [X r]."""
    p, R, x0 = layout.p, layout.R, layout.R
    z0 = x0 + p + 1
    d, l0 = layout.level.shape[1], layout.level_start[u]
    q = layout.level_stop[u] - l0
    first, last = layout.unit_ptr[u], layout.unit_ptr[u + 1]
    many = R if q > 0 else 0
    MZ, NZ = np.zeros((q, q)), np.zeros((q, q))
    ME, NX = np.zeros((q, p + 1)), np.zeros((q, p))
    GK, YK = np.zeros((many, q, q)), np.zeros((many, p, q))
    comp = layout.level_comp[l0 : l0 + q]
    K, L = np.zeros((q, q)), np.zeros((q, p + 1))
    if q > 0:
        _from_levels(layout, u, gram, noise, MZ, ME, NZ, NX)
        variances = np.empty(q)
        for x in range(q):
            variances[x] = g[comp[x]]
        K = _inverse_levels(MZ, variances)
        L = K @ ME

    for j in range(p):
        own_score[j] = 0.0
        for k in range(p):
            own_gram[j, k] = 0.0
    for i in range(first, last):
        for j in range(p):
            own_score[j] += gram[i, x0 + j, x0 + p]
            for k in range(p):
                own_gram[j, k] += gram[i, x0 + j, x0 + k]
                sums.noise_gram[j, k] += sign * noise[i, x0 + j, x0 + k]
    if q > 0:
        LX = np.ascontiguousarray(L[:, :p])
        NX_left = NX - NZ @ LX  # Z'Sigma^-1 D S X
        through = LX.T @ NX
        through = through + LX.T @ NX_left
        for j in range(p):
            for k in range(p):
                sums.noise_gram[j, k] -= sign * 0.5 * (through[j, k] + through[k, j])
        for x in range(q):
            for j in range(p):
                own_score[j] -= ME[x, j] * L[x, p]
                for k in range(p):
                    own_gram[j, k] -= ME[x, j] * L[x, k]
    for j in range(p):
        sums.score[j] += sign * own_score[j]
        for k in range(p):
            sums.gram[j, k] += sign * own_gram[j, k]

    v, t, Kg = np.empty((R, p + 1)), np.empty((R, p)), np.empty((R, d))
    for i in range(first, last):
        for f in range(R):  # v = W'S [X r], t = W'S D S X but for what goes through all levels
            for j in range(p + 1):
                v[f, j] = gram[i, f, x0 + j]
            for j in range(p):
                t[f, j] = noise[i, x0 + j, f]
            within = noise[i, f, f]
            for a in range(d):
                x = layout.level[i, a] - l0
                Kg[f, a] = 0.0
                if x < 0:
                    continue
                weight = gram[i, f, z0 + a]
                for j in range(p + 1):
                    v[f, j] -= weight * L[x, j]
                for j in range(p):
                    t[f, j] -= noise[i, z0 + a, f] * L[x, j]
                for b in range(d):
                    y = layout.level[i, b] - l0
                    if y >= 0:
                        Kg[f, a] += K[x, y] * gram[i, f, z0 + b]
                within -= 2.0 * Kg[f, a] * noise[i, z0 + a, f]
            sums.noise[f] += sign * within
            sums.value[f] += sign * v[f, p] * v[f, p]
            for j in range(p):
                sums.mixed[f, j] += sign * v[f, j] * v[f, p]
            _add_outer(sums.square[f], sign, v[f], v[f], p)
            _add_outer(sums.noise_cross[f], sign, v[f], t[f], p)
            for h in range(f + 1):
                m = gram[i, f, h]
                twice = m
                for a in range(d):
                    twice -= 2.0 * Kg[h, a] * gram[i, f, z0 + a]
                sums.trace[f * (f + 1) // 2 + h] += sign * m * twice
                _add_outer(sums.cross[f * (f + 1) // 2 + h], sign * m, v[f], v[h], p)
            for a in range(d):
                x = layout.level[i, a] - l0
                if x < 0:
                    continue
                for j in range(p):
                    YK[f, j, x] += v[f, j] * gram[i, f, z0 + a]
                for b in range(d):
                    y = layout.level[i, b] - l0
                    if y >= 0:
                        GK[f, x, y] += gram[i, f, z0 + a] * gram[i, f, z0 + b]
    if q > 0:
        _add_levels(p, R, comp, MZ, ME, NZ, NX_left, GK, YK, K, L, sign, sums)


@njit(**_INNER)
def _add_levels(p, R, comp, M, ME, NZ, NX, GK, YK, K, L, sign, sums):
    """What goes through the levels of a unit: between its donors, and the levels as factors.

    GK (R, q, q) sums over donors of g g', YK (R, p, q) of v g', with g = Z'Sigma^-1 w and
    v = X'S w; NX (q, p) = Z'Sigma^-1 D S X.
    """
    q = len(comp)
    C = np.eye(q) - K @ M  # S Z = Sigma^-1 Z C
    S = M @ C
    KNK = K @ NZ @ K
    for f in range(R):
        YK_f = YK[f] @ K
        KG_f = K @ GK[f]
        sums.noise[f] += sign * np.sum(KNK * GK[f])
        sums.noise_cross[f] -= sign * (YK_f @ NX)
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            sums.trace[pair] += sign * np.sum(KG_f * (K @ GK[h]).T)
            sums.cross[pair] -= sign * (YK_f @ YK[h].T)
        # a level times the donors: rows of C'Z'Sigma^-1 w
        GC = C.T @ GK[f] @ C
        YC = np.ascontiguousarray((YK[f] @ C).T)
        for x in range(q):
            pair = (R + comp[x]) * (R + comp[x] + 1) // 2 + f
            sums.trace[pair] += sign * GC[x, x]
            V = ME[x] - M[x] @ L
            _add_outer(sums.cross[pair], sign, V, YC[x], p)
    V = ME - M @ L  # Z'S [X r]
    t = C.T @ NX
    N = C.T @ NZ @ C
    for x in range(q):
        f = R + comp[x]
        sums.noise[f] += sign * N[x, x]
        sums.value[f] += sign * V[x, p] * V[x, p]
        for j in range(p):
            sums.mixed[f, j] += sign * V[x, j] * V[x, p]
        _add_outer(sums.square[f], sign, V[x], V[x], p)
        _add_outer(sums.noise_cross[f], sign, V[x], t[x], p)
        for y in range(q):
            h = R + comp[y]
            if h <= f:
                pair = f * (f + 1) // 2 + h
                sums.trace[pair] += sign * S[x, y] * S[x, y]
                _add_outer(sums.cross[pair], sign * S[x, y], V[x], V[y], p)


# -- all units -----------------------------------------------------------------------------------


@njit(**_INNER)
def _solve(sums, root, S, F, theta, beta):
    """theta and beta from the sums, with K = root root' an inverse of X'SX.

        beta = K X'Sr
        q_f  = r'P Sigma_f P r,  F_fg = tr(P Sigma_f P Sigma_g),  h_f = tr(P Sigma_f P D)
        theta = (S F S')^-1 S (q - h),    P = S - S X K X'S

    False if the components cannot be told apart.
    """
    count, p = len(sums.value), len(sums.score)
    K = root @ root.T
    Fisher, excess = np.empty((count, count)), np.empty(count)
    turned = np.empty((count + 1, p, p))  # root'(X'S Sigma_f S X)root; last, of the noise
    for j in range(p):
        s = 0.0
        for k in range(p):
            s += K[j, k] * sums.score[k]
        beta[j] = s
    turned[count] = root.T @ (sums.noise_gram @ root)
    for f in range(count):
        turned[f] = root.T @ (sums.square[f] @ root)
    for f in range(count):
        s = sums.value[f] - sums.noise[f] + 2.0 * _trace(K, sums.noise_cross[f], p)
        s -= _trace(turned[f], turned[count], p)
        for j in range(p):
            along = 0.0
            for k in range(p):
                along += sums.square[f, j, k] * beta[k]
            s += beta[j] * (along - 2.0 * sums.mixed[f, j])
        excess[f] = s
        for h in range(f + 1):
            pair = f * (f + 1) // 2 + h
            s = sums.trace[pair] - 2.0 * _trace(K, sums.cross[pair], p)
            s += _trace(turned[f], turned[h], p)
            Fisher[f, h] = s
            Fisher[h, f] = s
    F[:] = S @ Fisher @ S.T
    theta[:] = S @ excess
    return _divide(F, theta)


@njit(**_INNER)
def _divide(F, x):
    """x <- F^-1 x for a positive definite F; False if it lacks rank."""
    n = len(x)
    low = F.copy()
    for j in range(n):
        pivot = low[j, j]
        for k in range(j):
            pivot -= low[j, k] * low[j, k]
        if not pivot > _RANK * F[j, j]:
            return False
        low[j, j] = math.sqrt(pivot)
        for i in range(j + 1, n):
            s = low[i, j]
            for k in range(j):
                s -= low[i, k] * low[j, k]
            low[i, j] = s / low[j, j]
    for i in range(n):
        for k in range(i):
            x[i] -= low[i, k] * x[k]
        x[i] /= low[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            x[i] -= low[k, i] * x[k]
        x[i] /= low[i, i]
    return True


@njit(**_INNER)
def _working(layout, theta, A, g):
    """Working covariance of these components: variances held >= 0, the rest positive semidefinite.

    A component whose basis matrix is no covariance belongs with all but the shared one: of their
    sum the negative eigenvalues are cut off.
    """
    C, K = len(A), len(layout.basis)
    rest = np.zeros((C, C))
    A[:] = 0.0
    for k in range(K):
        if layout.variance[k]:
            A += max(theta[k], 0.0) * layout.basis[k]
        else:
            rest += theta[k] * layout.basis[k]
    if not layout.variance.all():
        size, axes = np.linalg.eigh(rest)
        for c in range(C):
            if size[c] > 0.0:
                _add_outer(A, size[c], axes[:, c], axes[:, c], C)
    for k in range(len(g)):
        g[k] = max(theta[K + k], 0.0)


@njit(**_OPTIONS)
def reweight(layout, w, nu, r, steps, state):
    """The estimate after this many reweightings, from equal weights (the first is HE's).

    Parameters
    ----------
    layout : Layout; w, nu, r : (n,) working noise, measured noise, residual
    steps : int; state : State out

    Returns
    -------
    int : DONE, or what is wrong
    """
    F, p = layout.S.shape[1], layout.p
    low = np.empty((p, p))
    sums = _parts(state.flat, F, p)
    even = np.ones(len(w))
    for step in range(steps + 1):
        state.before[:] = state.theta
        if step > 0:
            _working(layout, state.theta, state.A, state.g)
        noise = w if step > 0 else even
        if not _donors(layout, state.A, noise, nu, r, state.donor_gram, state.donor_noise):
            return SINGULAR
        state.flat[:] = 0.0
        for u in range(len(state.unit_gram)):
            _add_unit(
                layout, u, state.donor_gram, state.donor_noise, state.g, 1.0, sums,
                state.unit_gram[u], state.unit_score[u],
            )  # fmt: skip
        low[:] = sums.gram
        if not cholesky(low, p):
            return COLLINEAR
        for j in range(p):
            if not low[j, j] * low[j, j] > _RANK * sums.gram[j, j]:
                return COLLINEAR
        _inverse_root(low, p, state.root)
        if not _solve(sums, state.root, layout.S, state.F, state.theta, state.beta):
            return CONFOUNDED
    for u in range(len(state.unit_gram)):
        for j in range(p):
            for k in range(p):
                state.unit_score[u, j] -= state.unit_gram[u, j, k] * state.beta[k]
    return DONE


@njit(**_OPTIONS)
def leverages(unit_gram, root, remains, turned):
    """Eigenvalues and axes of each unit's share of X'SX.

    With K = root root' and root'(X_u'S_u X_u)root = Q diag(l) Q' this gives remains (U, p) = 1 - l,
    zero where a fixed effect rests on the unit alone, and turned (U, p, p) = root Q, so that

        turned turned' = K,    turned remains^-1 turned' = (X'SX - X_u'S_u X_u)^-1
    """
    p = len(root)
    axes = np.empty((p, p))
    for u in range(len(unit_gram)):
        B = root.T @ (unit_gram[u] @ root)
        if p > _JACOBI:
            for j in range(p):
                for k in range(j):
                    B[j, k] = B[k, j]
            size, axes = np.linalg.eigh(B)
            remains[u] = 1.0 - size
        else:
            _rotate(B, axes)
            for j in range(p):
                remains[u, j] = 1.0 - B[j, j]
        for j in range(p):
            if remains[u, j] < _ALONE:
                remains[u, j] = 0.0
        turned[u] = root @ axes


@njit(**_INNER)
def _rotate(B, axes):
    """Eigenvalues of B on its diagonal, eigenvectors as columns, by Jacobi's rotations."""
    p = len(B)
    for j in range(p):
        for k in range(p):
            axes[j, k] = 1.0 if j == k else 0.0
    for _ in range(_SWEEPS):
        off, total = 0.0, 0.0
        for j in range(p):
            total += B[j, j] * B[j, j]
            for k in range(j):
                off += B[j, k] * B[j, k]
        if not off > 1e-32 * total:
            return
        for j in range(p - 1):
            for k in range(j + 1, p):
                if B[j, k] == 0.0:
                    continue
                h = 0.5 * (B[k, k] - B[j, j]) / B[j, k]
                t = 1.0 / (abs(h) + math.sqrt(1.0 + h * h))
                if h < 0.0:
                    t = -t
                c = 1.0 / math.sqrt(1.0 + t * t)
                s = t * c
                for i in range(p):
                    left, right = B[i, j], B[i, k]
                    B[i, j] = c * left - s * right
                    B[i, k] = s * left + c * right
                for i in range(p):
                    left, right = B[j, i], B[k, i]
                    B[j, i] = c * left - s * right
                    B[k, i] = s * left + c * right
                    left, right = axes[i, j], axes[i, k]
                    axes[i, j] = c * left - s * right
                    axes[i, k] = s * left + c * right


@njit(**_OPTIONS)
def delete_units(layout, state, remains, turned, theta, beta):
    """Estimates without each unit, at the weights of the fit: the sums less its own.

    theta (U, K) out, NaN where the components cannot be told apart without the unit; beta (U, p)
    out, NaN where a fixed effect rests on the unit (theta is then that without the effect).
    """
    F, p = layout.S.shape[1], layout.p
    flat = np.empty(len(state.flat))
    part = _parts(flat, F, p)
    root, Fisher = np.empty((p, p)), np.empty(state.F.shape)
    own_gram, own_score = np.empty((p, p)), np.empty(p)
    for u in range(len(remains)):
        flat[:] = state.flat
        _add_unit(
            layout, u, state.donor_gram, state.donor_noise, state.g, -1.0, part,
            own_gram, own_score,
        )  # fmt: skip
        alone = False
        for j in range(p):
            alone = alone or remains[u, j] == 0.0
            size = 1.0 / math.sqrt(remains[u, j]) if remains[u, j] > 0.0 else 0.0
            for k in range(p):
                root[k, j] = turned[u, k, j] * size
        if not _solve(part, root, layout.S, Fisher, theta[u], beta[u]):
            theta[u] = math.nan
        if alone:
            beta[u] = math.nan
