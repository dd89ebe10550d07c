"""Moment estimates without each group of donors, from the quantities of all donors.

To leave out rows g is to give each a fixed effect of its own.  With Pi the residual projection of
all rows, e = Pi y, A = (Pi_gg)^-1, a = A e_g and T_k = Pi Sigma_k Pi, the projection without them
is Pi - Pi_.g A Pi_g. and the moment equations of :mod:`ctmm_formula.engine.he` become

    q_k  less  2 a' (Pi Sigma_k e)_g - a' T_k,gg a
    G_kl less  2 tr A (Pi Sigma_k Pi Sigma_l Pi)_gg - tr A T_k,gg A T_l,gg
    C_k nu less  2 tr A (T_k D Pi)_gg - tr A T_k,gg A (Pi D Pi)_gg,   D = diag(nu)

Pi is the identity less Q Q', so each group costs a few small matrices of its own rows, whatever
the number of donors.  G and the weights of nu hold no response: once per group for all genes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse as sp

from ..errors import ConvergenceError
from . import he, kernels
from .he import Factors, Moments
from .kernels import VALUE, evaluate
from .left_out_fits import packed
from .likelihood import residual
from .model import Blocks, Model
from .options import kept

ALIASED = 1e-10
"""Smallest eigenvalue of Pi_gg, below which the other rows do not identify all fixed effects."""
_FAR = 1e-3  # smaller eigenvalues than this cost the update too many digits
_NOTHING = 1e-8  # of the diagonal of all rows: what is left is the rounding of no residuals
_LARGEST = 128  # rows of a group from which its moments are computed from the rows left
_CHUNK = 2**21  # numbers in the largest array per block of genes


class LeftOutMoments:
    """Moment estimates without each group of donors of one design, for any number of responses.

    Parameters
    ----------
    model : Model
        Its response is not used.
    groups : sequence of int ndarray
        Donors (kernel numbers) to leave out together.
    design : Moments, optional
        ``moments(model)``, where it is known.

    Attributes
    ----------
    aliased : bool ndarray, shape (g,)
        Groups without which a fixed effect cannot be estimated: no estimates.
    """

    def __init__(
        self, model: Model, groups: Sequence[np.ndarray], design: Moments | None = None
    ) -> None:
        self.model, self.groups = model, list(groups)
        self.design = he.moments(model) if design is None else design
        donors, ptr = packed(self.groups)
        count = np.diff(model.row_ptr)[donors]
        ptr = np.concatenate([[0], np.cumsum(count)])[ptr]  # rows of every group
        rows = np.repeat(model.row_ptr[donors + 1] - np.cumsum(count), count)
        rows += np.arange(len(rows))
        smallest = _smallest(self.design.Q, rows, ptr)
        self.aliased = smallest < ALIASED
        near = (np.diff(ptr) <= _LARGEST) & (smallest >= _FAR)
        self.near = np.flatnonzero(near)
        if len(self.near):
            self._update = _Update(self.design, model, *_padded(rows, ptr, self.near))
        self._others: dict[int, Moments] = {}
        for g in np.flatnonzero(~self.aliased & ~near):
            try:
                part = he.moments(model.without(self.groups[g]))
            except ConvergenceError:  # not even without rounding
                continue
            if np.isfinite(inverses(part.gram, self.design.gram)).all():
                self._others[int(g)] = part

    def theta(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """Variance components (G, g, K) of responses and noise variances (n, G)."""
        out = np.full((Y.shape[1], len(self.groups), len(self.design.S)), math.nan)
        size = max(_CHUNK // (len(self.design.S) * len(Y)), 1)
        for start in range(0, Y.shape[1], size):
            some = slice(start, start + size)
            if len(self.near):
                out[some, self.near] = self._update.theta(Y[:, some], NU[:, some])
        for g, part in self._others.items():
            out[:, g] = part.solve(Y, NU)
        return out

    def gls(self, model: Model, theta: np.ndarray) -> np.ndarray:
        """b (g, p) by GLS at theta (g, K); NaN where the covariance is not positive definite.

        Parameters
        ----------
        model : Model of one response
        theta : ndarray, shape (g, K), NaN where there is no estimate
        """
        beta = np.full((len(self.groups), model.X.shape[1]), math.nan)
        some = np.flatnonzero(np.isfinite(theta).all(axis=1))
        ptr = np.cumsum([0] + [len(self.groups[g]) for g in some])
        if len(some):
            donors = np.concatenate([self.groups[g] for g in some])
            at = np.zeros((len(some), beta.shape[1]))
            definite = np.zeros(len(some), dtype=bool)
            _gls_without(
                kernels.kernel_address(), theta[some] @ model.S, model.tiles.put(residual(model)),
                model.tiles.put(model.noise, 1.0), model.blocks,
                model.tiles.donors(model.active, False), donors, ptr, at, definite,
            )  # fmt: skip
            for k in np.flatnonzero(~definite):
                part = model.without(self.groups[some[k]])
                known = he.over_blocks(part, theta[some[k]])
                at[k] = math.nan if known is None else known.effects(residual(model))
            beta[some] = (at + model.Q.T @ model.y) @ model.back.T
        return beta

    def ols(self, model: Model, theta: np.ndarray) -> np.ndarray:
        """b (g, p) by OLS; NaN where there is no theta (g, K)."""
        beta = np.full((len(self.groups), model.X.shape[1]), math.nan)
        if len(self.near):
            rows = self.design.rows
            back = np.linalg.lstsq(model.X[rows], self.design.Q[rows], rcond=None)[0]
            beta[self.near] = self._update.ols(model.y) @ back.T
        for g in self._others:
            beta[g] = he.ols(model.without(self.groups[g]))
        beta[np.isnan(theta).any(axis=1)] = math.nan
        return beta


@kept
def _gls_without(
    kernel: int,
    phi: np.ndarray,
    y: np.ndarray,
    nu: np.ndarray,
    blocks: Blocks,
    active: np.ndarray,
    donors: np.ndarray,
    ptr: np.ndarray,
    betas: np.ndarray,
    definite: np.ndarray,
) -> None:
    """Fixed effects (g, p) of the orthonormal X at factor variances phi (g, F), by group."""
    F, p = phi.shape[1], betas.shape[1]
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    gram = np.zeros((p + 1, p + 1))
    for g in range(len(ptr) - 1):
        for x in range(ptr[g], ptr[g + 1]):
            active[donors[x]] = False
        llf = evaluate(
            kernel, phi[g], y, nu, blocks, active, True, VALUE, score, average, expected,
            betas[g], gram,
        )  # fmt: skip
        definite[g] = llf > -math.inf
        for x in range(ptr[g], ptr[g + 1]):
            active[donors[x]] = True


def inverses(gram: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Inverse moment matrices (..., K, K), NaN where they do not tell components apart.

    Components must keep some of what they had in the matrix of all rows, `whole` (K, K).
    """
    left = np.diagonal(gram, axis1=-2, axis2=-1) > _NOTHING * np.diag(whole)
    scale = 1.0 / np.sqrt(np.maximum(np.diag(whole), np.finfo(float).tiny))
    scaled = gram * np.outer(scale, scale)
    known = left.all(axis=-1) & (np.linalg.slogdet(scaled)[0] > 0.0)
    out = np.full_like(gram, math.nan)
    out[known] = np.linalg.inv(scaled[known])
    size, inverse = (np.linalg.norm(one, axis=(-2, -1)) for one in (scaled, out))
    out[~(size * inverse <= he.CONFOUNDED)] = math.nan
    return out * np.outer(scale, scale)


def _smallest(Q: np.ndarray, rows: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """Smallest eigenvalues of I - Q Q' of groups of rows, (g,)."""
    sizes, p = np.diff(ptr), Q.shape[1]
    out = np.ones(len(sizes))
    for size in np.unique(sizes[sizes > 0]) if p else ():
        some = np.flatnonzero(sizes == size)
        own = Q[_padded(rows, ptr, some)[0]]
        turned = own.transpose(0, 2, 1)
        gram = own @ turned if size < p else turned @ own
        out[some] -= np.linalg.eigvalsh(gram)[:, -1]
    return out


def _padded(rows: np.ndarray, ptr: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of some groups (g, m), 0 beyond their own, and which are."""
    sizes = np.diff(ptr)[some]
    offset = np.arange(sizes.max())
    mask = offset < sizes[:, None]
    return np.where(mask, rows[np.where(mask, ptr[some, None] + offset, 0)], 0), mask


class _Update:
    """The differences that groups of rows make, all groups together.

    Groups are padded to m rows; (g, m, .) are values in their rows, zero where there is none, and
    (g, m, K, .) those of every component, which a group meets in one product.
    """

    def __init__(self, design: Moments, model: Model, rows: np.ndarray, mask: np.ndarray) -> None:
        self.design, self.rows, self.mask = design, rows, mask
        n, p = design.Q.shape
        m = rows.shape[1]
        self.upper = np.triu_indices(p)
        group = np.nonzero(mask)[0]
        at = group, self.rows[self.mask]
        self.members = sp.csr_array((np.ones(len(group)), at), (len(rows), n))
        donor, first = np.unique(model.row_donor[at[1]], return_index=True)
        self.single = len(donor) == len(rows)  # every group is one donor
        at = group[first], donor
        self.donors = sp.csr_array((np.ones(len(donor)), at), (len(rows), len(model.active)))

        Q = self._take(design.Q)
        self.A = np.linalg.inv(np.eye(m) - Q @ Q.transpose(0, 2, 1))
        AQ = self.A @ Q
        SQ = np.tensordot(design.S, design.factors.times(design.Q), axes=1)
        SQ = SQ.transpose(1, 0, 2).reshape(
            n, len(design.S) * p
        )  # Sigma_k Q of every component, Pi Sigma_k Q
        PSQ = SQ - design.Q @ (design.Q.T @ SQ)
        sigma, K = self._blocks(model), len(design.S)
        own, left = (self._take(one).reshape(*rows.shape, K, p) for one in (SQ, PSQ))
        back = Q.transpose(0, 2, 1)
        self.T = sigma - _right(left, back) - _right(own, back).transpose(0, 3, 2, 1)
        self.alone = len(model.basis)  # components that join no rows of different donors
        AT = _left(self.A, self.T)
        self._equations(model, sigma, SQ, PSQ, own, AQ, AT)
        self._noise(sigma, own, left, Q, AQ, AT)

    def _take(self, values: np.ndarray) -> np.ndarray:
        """Values by row (n, j) as (g, m, j)."""
        return values[self.rows] * self.mask[..., None]

    def _blocks(self, model: Model) -> np.ndarray:
        """Sigma_k,gg of every component, (g, m, K, m)."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        donor, H = model.row_donor[self.rows], model.H[self.rows]
        back = H.transpose(0, 2, 1)

        def of_donors(basis: np.ndarray, weight: np.ndarray) -> np.ndarray:
            C = H.shape[2]
            loads = H @ basis.transpose(1, 0, 2).reshape(C, -1)
            loads = loads.reshape(*self.rows.shape, len(basis), C)
            return _right(loads, back) * weight[:, :, None]

        parts = [of_donors(model.basis, both & (donor[:, :, None] == donor[:, None, :]))]
        for codes, values in model.random:
            code, value = codes[self.rows], values[self.rows]
            shared = both & (code[:, :, None] == code[:, None, :])
            parts.append((shared * value[:, :, None] * value[:, None, :])[:, :, None])
        for kernel, basis in model.kinship:
            related = (
                kernel.diagonal[donor][:, :, None]
                if self.single
                else kernel.whole[donor[:, :, None], donor[:, None, :]]
            )
            parts.append(of_donors(basis, both * related))
        return np.concatenate(parts, axis=2)

    def _equations(
        self,
        model: Model,
        sigma: np.ndarray,
        SQ: np.ndarray,
        PSQ: np.ndarray,
        near: np.ndarray,
        AQ: np.ndarray,
        AT: np.ndarray,
    ) -> None:
        """Inverse normal matrices (g, K, K), NaN where components cannot be told apart."""
        design, K = self.design, len(self.design.S)
        through = _traces(_left(self.A, sigma), sigma)  # tr A (Sigma_k Sigma_l)_gg
        if self.alone < K:
            through[:, self.alone :, self.alone :] = self._across(model)
        through -= _inner(_left(self.A, near), near)
        rows, p = self._scatter(AQ), AQ.shape[2]
        U = design.factors.weigh(design.factors.Z @ PSQ)
        far = self._meet(rows, U.reshape(len(U), K, p), range(len(design.cores)))
        far = np.tensordot(far, design.S, axes=(0, 1))
        through -= far + far.transpose(0, 2, 1)
        inner = (SQ.T @ PSQ).reshape(K, p, K, p).transpose(1, 3, 2, 0)  # Q'Sigma_l Pi Sigma_k Q
        small = self._take(design.Q).transpose(0, 2, 1) @ AQ
        through += np.tensordot(small, inner, axes=([1, 2], [0, 1]))
        self.inverse = inverses(design.gram - 2.0 * through + _traces(AT, AT), design.gram)

    def _across(self, model: Model) -> np.ndarray:
        """tr A (Sigma_k Sigma_l)_gg of components that join donors, whose rows meet outside of g.

        (g, k, l), summed over the entries z_a (K_f Z_f' Z_g K_g)_ab z_b of pairs of factors.
        """
        factors, donor = self.design.factors, model.row_donor[self.rows]
        first, levels = factors.of_levels.start, len(model.random)
        S, count = self.design.S[self.alone :, first:], len(factors.kernels) - first
        out = np.empty((len(self.rows), count, count))
        weight = factors.weight[first:, self.rows] * self.mask
        for f in range(levels):
            for g in range(count):
                value = _entries(factors, first + f, first + g, self.rows)
                met = np.einsum("ga,gab,gb,gab->g", weight[f], value, weight[g], self.A)
                out[:, f, g] = out[:, g, f] = met
        if count > levels:
            both = weight[levels:]
            if self.single:
                own = both.transpose(1, 0, 2)
                met = own @ self.A @ own.transpose(0, 2, 1)
                out[:, levels:, levels:] = met * self.design.across[donor[:, 0]]
            else:
                out[:, levels:, levels:] = np.einsum(
                    "fga,gab,gabfh,hgb->gfh", both, self.A, self._between(model, donor), both,
                    optimize=True,
                )  # fmt: skip
        return S @ out @ S.T

    def _between(self, model: Model, donor: np.ndarray) -> np.ndarray:
        """(K_f d K_h)_ij, d = Z_f' Z_h, of the donors i, j of rows (g, m), (g, m, m, f, h)."""
        factors = self.design.factors
        N, F, _ = self.design.across.shape
        pairs, where = np.unique(donor[:, :, None] * N + donor[:, None, :], return_inverse=True)
        i, j = np.divmod(pairs, N)
        own = list(factors.by_kernel())
        first = own[0][1][0]
        weight = factors.weight[first:]
        d = np.array([np.add.reduceat(one * weight, model.row_ptr[:-1], axis=1) for one in weight])
        values, step = np.empty((len(pairs), F, F)), max(_CHUNK // N, 1)
        parts = [(kernel.whole, np.array(at) - first) for kernel, at in own]
        for start in range(0, len(pairs), step):
            some = slice(start, start + step)
            for one, f in parts:
                for other, h in parts:
                    turned = (one[i[some]] * other[j[some]]) @ d[np.ix_(f, h)].reshape(-1, N).T
                    values[some, f[:, None], h] = turned.reshape(-1, len(f), len(h))
        return values[where].reshape(*self.A.shape, F, F)

    def _meet(self, rows: np.ndarray, U: np.ndarray, factors: Iterable[int]) -> np.ndarray:
        """Sums over the rows of g of (Z_f U_f) rows, (F, g, k), of rows (n, p) and U (L, k, p)."""
        known, out = self.design.factors, []
        loads = known.Z @ rows
        for f in factors:
            own = known.part(f)
            if known.of_levels.start <= f < known.of_levels.stop:
                of_rows = U[own][known.level[f]] * known.weight[f][:, None, None]
                out.append(self.members @ (of_rows @ rows[:, :, None])[..., 0])
            else:
                out.append(self.donors @ (U[own] @ loads[own][:, :, None])[..., 0])
        return np.array(out)

    def _noise(
        self,
        sigma: np.ndarray,
        SQ: np.ndarray,
        PSQ: np.ndarray,
        Q: np.ndarray,
        AQ: np.ndarray,
        AT: np.ndarray,
    ) -> None:
        """What takes nu to the differences of C nu: its own rows, Q'DQ, Z'DQ of every factor.

        SQ and PSQ in the rows of groups, (g, m, K, p).
        """
        design, A = self.design, self.A
        ATA = _right(AT, A)
        ATAQ = _right(ATA, Q)
        near = np.einsum("gakp,gap->gak", SQ, AQ)
        near += np.einsum("gakp,gap->gak", _left(A, PSQ) - ATAQ, Q)
        alone = _right(sigma[:, :, : self.alone], AQ)
        near[:, :, : self.alone] += np.einsum("gakp,gap->gak", alone, Q)
        own = np.einsum("gaka->gak", ATA) - 2.0 * np.einsum("gab,gakb->gak", A, sigma) + 2.0 * near
        K, n = own.shape[2], len(design.Q)
        ptr = np.concatenate([[0], np.cumsum(np.tile(self.mask.sum(axis=1), K))])
        at = np.tile(self.rows[self.mask], K)
        self.own = sp.csr_array((own[self.mask].T.ravel(), at, ptr), (len(ptr) - 1, n))
        inner = _left(Q.transpose(0, 2, 1), ATAQ) - 2.0 * _left(AQ.transpose(0, 2, 1), PSQ)
        self.inner = _pack(inner.transpose(2, 0, 1, 3), self.upper)  # (K, g, h)
        self.small = (Q.transpose(0, 2, 1) @ AQ)[(slice(None), *self.upper)]
        self.products = design.Q[:, self.upper[0]] * design.Q[:, self.upper[1]]
        self.joining = np.flatnonzero(design.S[self.alone :].any(axis=0)).tolist()
        self.rows_of = self._scatter(AQ)

    def theta(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """Variance components (G, g, K) of responses and noise variances (n, G)."""
        design, S = self.design, self.design.S
        E = design.residual(Y)
        a = self.A @ self._take(E)  # residuals of the rows of g from the fit to all others
        rows = self._scatter(a)
        factors = design.factors
        sums = factors.Z @ E
        spread = factors.weigh(sums)
        full = S @ factors.sums(sums * spread) - design.noise @ NU
        loads = (factors.Z @ rows) * spread
        Q, parts = factors.Z @ design.Q, range(len(factors.kernels))
        means = np.array([Q[own].T @ spread[own] for own in map(factors.part, parts)])
        cross = np.array(
            [
                self.members @ (rows * factors.spread(f, spread))
                if factors.of_levels.start <= f < factors.of_levels.stop
                else self.donors @ loads[factors.part(f)]
                for f in parts
            ]
        )
        turned = self._take(design.Q).transpose(0, 2, 1) @ a
        cross -= np.einsum("gpG,fpG->fgG", turned, means)
        right = full[:, None] - 2.0 * np.tensordot(S, cross, axes=1)
        right += (_right(self.T, a) * a[:, :, None]).sum(axis=1).transpose(1, 0, 2)
        right -= self._noise_of(NU)
        return (self.inverse @ right.transpose(1, 0, 2)).transpose(2, 0, 1)

    def ols(self, y: np.ndarray) -> np.ndarray:
        """Fixed effects (g, p) of the orthonormal columns, of a response (n,)."""
        design = self.design
        a = self.A @ self._take(design.residual(y[:, None]))
        moved = self._take(design.Q).transpose(0, 2, 1) @ a
        return design.Q.T @ np.where(design.rows, y, 0.0) - moved[..., 0]

    def _noise_of(self, NU: np.ndarray) -> np.ndarray:
        """Differences of C nu, (K, g, G)."""
        design, S = self.design, self.design.S
        K, groups = self.inner.shape[:2]
        p, G = design.Q.shape[1], NU.shape[1]
        out = (self.own @ NU).reshape(K, groups, G)
        out += self.inner @ (self.products.T @ NU)
        factors, n = design.factors, len(NU)
        Q = factors.Z @ design.Q
        spread = factors.Z @ (NU[:, :, None] * design.Q[:, None]).reshape(n, -1)
        spread = factors.weigh(spread)
        spread = spread.reshape(len(spread), G, p)
        parts = map(factors.part, range(len(factors.kernels)))
        V = np.array([np.tensordot(Q[own].T, spread[own], axes=1) for own in parts])
        if self.joining:
            far = self._meet(self.rows_of, spread, self.joining)
            out += 2.0 * np.tensordot(S[:, self.joining], far, axes=1)
        packed = _pack(np.moveaxis(np.tensordot(S, V, axes=1), 2, 1), self.upper)
        out -= 2.0 * (self.small @ packed.transpose(0, 2, 1))
        return out

    def _scatter(self, values: np.ndarray) -> np.ndarray:
        """Values (g, m, j) by row, (n, j); zero in rows of no group."""
        out = np.zeros((self.design.Q.shape[0], values.shape[2]))
        out[self.rows[self.mask]] = values[self.mask]
        return out


def _left(A: np.ndarray, T: np.ndarray) -> np.ndarray:
    """A T_k of every component, (g, i, K, j), for A (g, i, m) and T (g, m, K, j)."""
    K, j = T.shape[2:]  # named, for none of some is no -1
    return (A @ T.reshape(*T.shape[:2], K * j)).reshape(*A.shape[:2], K, j)


def _right(T: np.ndarray, B: np.ndarray) -> np.ndarray:
    """T_k B of every component, (g, m, K, i), for T (g, m, K, j) and B (g, j, i)."""
    g, m, K, j = T.shape
    return (T.reshape(g, m * K, j) @ B).reshape(g, m, K, B.shape[2])


def _traces(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """tr L_kg R_lg, (g, K, K), of (g, m, K, m)."""
    return _inner(left, right.transpose(0, 3, 2, 1))


def _inner(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sums of products of the entries of L_kg and R_lg, (g, K, K), of (g, ., K, .)."""
    g, m, K, j = left.shape
    rows, others = (one.transpose(0, 2, 1, 3).reshape(g, K, m * j) for one in (left, right))
    return rows @ others.transpose(0, 2, 1)


def _pack(matrices: np.ndarray, upper: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Upper triangles (..., h) of M + M', diagonals halved: inner products with symmetric ones."""
    i, j = upper
    both = matrices[..., i, j] + matrices[..., j, i]
    return both * np.where(i == j, 0.5, 1.0)


def _entries(factors: Factors, f: int, g: int, rows: np.ndarray) -> np.ndarray:
    """Entries of K_f Z_f' Z_g K_g at the levels of rows (G, m) of f and of g, f a random effect's.

    (G, m, m)
    """
    i, j = factors.level[f][rows][:, :, None], factors.level[g][rows][:, None, :]
    M = factors.Z[factors.part(f)] @ factors.Z[factors.part(g)].T
    kernel = factors.kernels[g]
    if kernel is not None:
        return np.asarray((M @ kernel.whole)[i, j])
    wanted = i * M.shape[1] + j
    M = M.tocsr()
    M.sort_indices()
    if not M.nnz:
        return np.zeros(wanted.shape)
    keys = np.repeat(np.arange(M.shape[0]), np.diff(M.indptr)) * M.shape[1] + M.indices
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, M.data[at], 0.0)
