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
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from ..errors import ConvergenceError
from . import he, kernels
from .he import Factor, Moments
from .kernels import VALUE, evaluate
from .likelihood import residual
from .model import Blocks, Model
from .options import kept
from .relatedness import Kernel

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
        spans = list(pairwise(model.row_ptr))
        own = [np.concatenate([np.arange(*spans[i]) for i in group]) for group in self.groups]
        smallest = np.array([_smallest(self.design.Q[rows]) for rows in own])
        self.aliased = smallest < ALIASED
        few = np.array([len(rows) <= _LARGEST for rows in own])
        self.near = np.flatnonzero(few & (smallest >= _FAR))
        near = [own[g] for g in self.near]
        self._update = _Update(self.design, model, near) if near else None
        self._others: dict[int, Moments] = {}
        for g in np.flatnonzero(~self.aliased & ~(few & (smallest >= _FAR))):
            try:
                part = he.moments(model.without(self.groups[g]))
            except ConvergenceError:  # not even without rounding
                continue
            if _known(part.gram, self.design.gram):
                self._others[int(g)] = part

    def theta(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """Variance components (G, g, K) of responses and noise variances (n, G)."""
        out = np.full((Y.shape[1], len(self.groups), len(self.design.S)), math.nan)
        size = max(_CHUNK // (len(self.design.S) * len(Y)), 1)
        for start in range(0, Y.shape[1], size):
            some = slice(start, start + size)
            if self._update is not None:
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
        if self._update is not None:
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


def _known(gram: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Whether moment equations (..., K, K) tell components apart, beside those of all rows."""
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    left = (diagonal > _NOTHING * np.diag(whole)).all(axis=-1)
    return np.asarray(left & (np.linalg.cond(gram) <= he.CONFOUNDED))


def _smallest(Q: np.ndarray) -> float:
    """Smallest eigenvalue of I - Q Q' of some rows."""
    gram = Q @ Q.T if len(Q) < Q.shape[1] else Q.T @ Q
    return 1.0 - float(np.linalg.eigvalsh(gram)[-1]) if len(gram) else 1.0


class _Update:
    """The differences that groups of rows make, all groups together.

    Groups are padded to m rows; (g, m, .) are values in their rows, zero where there is none.
    """

    def __init__(self, design: Moments, model: Model, rows: list[np.ndarray]) -> None:
        self.design = design
        n, p = design.Q.shape
        m = max((len(own) for own in rows), default=0)
        self.mask = np.arange(m) < np.array([[len(own)] for own in rows]).reshape(-1, 1)
        self.rows = np.zeros((len(rows), m), dtype=np.int64)
        self.rows[self.mask] = np.concatenate([*rows, np.zeros(0, dtype=np.int64)])
        self.upper = np.triu_indices(p)
        group = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        self.members = sp.csr_array(
            (np.ones(len(group)), (group, self.rows[self.mask])), (len(rows), n)
        )

        Q = self._take(design.Q)
        self.A = np.linalg.inv(np.eye(m) - Q @ Q.transpose(0, 2, 1))
        AQ = self.A @ Q
        SQ = _times(design, design.Q)  # Sigma_k Q and Pi Sigma_k Q
        PSQ = SQ - design.Q @ (design.Q.T @ SQ)
        sigma = self._blocks(model)
        left = self._take(PSQ) @ Q.transpose(0, 2, 1)
        self.T = sigma - Q @ self._take(SQ).transpose(0, 1, 3, 2) - left
        self.alone = len(model.basis)  # components that join no rows of different donors
        self._equations(model, sigma, SQ, PSQ, Q, AQ)
        self._noise(sigma, SQ, PSQ, Q, AQ)

    def _take(self, values: np.ndarray) -> np.ndarray:
        """Values by row (..., n, j) as (..., g, m, j)."""
        return values[..., self.rows, :] * self.mask[..., None]

    def _blocks(self, model: Model) -> np.ndarray:
        """Sigma_k,gg of every component, (K, g, m, m)."""
        both = self.mask[:, :, None] & self.mask[:, None, :]
        donor = model.row_donor[self.rows]
        same = both & (donor[:, :, None] == donor[:, None, :])
        K, R = len(model.basis), model.W.shape[1]
        W = model.W[self.rows]
        weighted = np.einsum("kr,gmr->kgmr", model.S[:K, :R], W)
        parts = [same * (weighted @ W.transpose(0, 2, 1))]
        for codes, values in model.random:
            code, value = codes[self.rows], values[self.rows]
            shared = both & (code[:, :, None] == code[:, None, :])
            parts.append((shared * value[:, :, None] * value[:, None, :])[None])
        for term in model.kinship:
            related = both * term.kernel.whole[donor[:, :, None], donor[:, None, :]]
            H = model.H[self.rows]
            parts.append(related * (H @ term.basis[:, None] @ H.transpose(0, 2, 1)))
        return np.concatenate(parts)

    def _equations(
        self,
        model: Model,
        sigma: np.ndarray,
        SQ: np.ndarray,
        PSQ: np.ndarray,
        Q: np.ndarray,
        AQ: np.ndarray,
    ) -> None:
        """Inverse normal matrices (g, K, K), NaN where components cannot be told apart."""
        design, K = self.design, len(self.design.S)
        through = _traces(self.A @ sigma, sigma)  # tr A (Sigma_k Sigma_l)_gg
        if self.alone < K:
            through[:, self.alone :, self.alone :] = self._across(model)
        near = self._take(SQ)
        through -= _inner(self.A @ near, near)
        rows = self._scatter(AQ)
        small = (Q.transpose(0, 2, 1) @ AQ).reshape(len(Q), -1)
        for k in range(K):
            far = np.einsum("np,lnp->nl", rows, _times(design, PSQ[k]))
            far = self.members @ far
            through[:, k] -= far
            through[:, :, k] -= far
            through[:, k] += small @ (SQ.transpose(0, 2, 1) @ PSQ[k]).reshape(K, -1).T
        AT = self.A @ self.T
        gram = design.gram - 2.0 * through + _traces(AT, AT)
        known = _known(gram, design.gram)
        self.inverse = np.full_like(gram, math.nan)
        self.inverse[known] = np.linalg.inv(gram[known])

    def _across(self, model: Model) -> np.ndarray:
        """tr A (Sigma_k Sigma_l)_gg of components that join donors, whose rows meet outside of g.

        (g, k, l), summed over the entries z_a (K_f Z_f' Z_g K_g)_ab z_b of pairs of factors.
        """
        first, levels = model.W.shape[1], len(model.random)
        factors, S = self.design.factors[first:], self.design.S[self.alone :, first:]
        out = np.empty((len(self.rows), len(factors), len(factors)))
        at = [_entry_of_rows(factor, self.rows, self.mask) for factor in factors]
        for f, (i, left) in enumerate(at):
            for g, (j, right) in enumerate(at):
                if min(f, g) < levels:
                    value = _meet(factors[f], factors[g], i[:, :, None], j[:, None, :])
                    out[:, f, g] = np.einsum("ga,gab,gb,gab->g", left, value, right, self.A)
        if len(factors) > levels:
            weights = np.stack([weight for _, weight in at[levels:]], axis=-1)
            out[:, levels:, levels:] = self._between(
                [factor.kernel for factor in factors[levels:] if factor.kernel is not None],
                [factor.Z for factor in factors[levels:]], weights, model.row_donor[self.rows],
            )  # fmt: skip
        return S @ out @ S.T

    def _between(
        self, kernels: list[Kernel], Z: list[sp.csr_array], weights: np.ndarray, donor: np.ndarray
    ) -> np.ndarray:
        """The same between kernels of donors, (g, f, h): sum_l K_f,il d_l K_h,lj, d = Z_f' Z_h."""
        N, F = len(kernels[0]), len(kernels)
        d = np.array([(f @ h.T).diagonal() for f in Z for h in Z])
        pairs, where = np.unique(donor[:, :, None] * N + donor[:, None, :], return_inverse=True)
        values = np.empty((len(pairs), F * F))
        number = np.arange(F * F).reshape(F, F)
        parts = [np.array([one is own for one in kernels]) for own in dict.fromkeys(kernels)]
        step = max(_CHUNK // N, 1)
        for start in range(0, len(pairs), step):
            i, j = np.divmod(pairs[start : start + step], N)
            for some in parts:
                for others in parts:
                    at = number[np.ix_(some, others)].ravel()
                    first, second = kernels[some.argmax()], kernels[others.argmax()]
                    K = first.whole[i] * second.whole[j]
                    values[start : start + step, at] = K @ d[at].T
        met = values[where].reshape(*self.A.shape, F, F) * self.A[..., None, None]
        return np.einsum("gaf,gabfh,gbh->gfh", weights, met, weights, optimize=True)

    def _noise(
        self,
        sigma: np.ndarray,
        SQ: np.ndarray,
        PSQ: np.ndarray,
        Q: np.ndarray,
        AQ: np.ndarray,
    ) -> None:
        """What takes nu to the differences of C nu: its own rows, Q'DQ, Z'DQ of every factor."""
        design, A = self.design, self.A
        n = len(design.Q)
        ATA = A @ self.T @ A
        near = AQ * self._take(SQ) + (A @ self._take(PSQ)) * Q - (ATA @ Q) * Q
        near[: self.alone] += (sigma[: self.alone] @ AQ) * Q
        own = np.einsum("kgaa->kga", ATA - 2.0 * (A @ sigma)) + 2.0 * near.sum(axis=-1)
        K, groups = own.shape[:2]
        kinds, group = np.meshgrid(np.arange(K), np.nonzero(self.mask)[0], indexing="ij")
        at = (kinds * groups + group).ravel()
        self.own = sp.csr_array(
            (own[:, self.mask].ravel(), (at, np.tile(self.rows[self.mask], K))), (K * groups, n)
        )
        Qt = Q.transpose(0, 2, 1)
        inner = Qt @ ATA @ Q - 2.0 * self._take(PSQ).transpose(0, 1, 3, 2) @ AQ
        self.inner = _pack(inner, self.upper)  # (K, g, h)
        self.small = (Qt @ AQ)[(slice(None), *self.upper)]
        self.products = design.Q[:, self.upper[0]] * design.Q[:, self.upper[1]]
        self.maps = [_spread(factor.Z, design.Q) for factor in design.factors]
        rows = self._scatter(AQ)
        joining = design.S[self.alone :].any(axis=0)
        self.far = {
            int(f): self.members @ _spread(design.factors[f].Z, rows).T
            for f in np.flatnonzero(joining)
        }

    def theta(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """Variance components (G, g, K) of responses and noise variances (n, G)."""
        design, S = self.design, self.design.S
        E = design.residual(Y)
        a = self.A @ self._take(E)  # residuals of the rows of g from the fit to all others
        rows = self._scatter(a)
        sums = [factor.Z @ E for factor in design.factors]
        spread = [factor.weigh(u) for factor, u in zip(design.factors, sums, strict=True)]
        squares = [(u * Ku).sum(axis=0) for u, Ku in zip(sums, spread, strict=True)]
        full = S @ np.array(squares) - design.noise @ NU
        pairs = [(factor.Z, Ku) for factor, Ku in zip(design.factors, spread, strict=True)]
        cross = np.array([self.members @ (rows * (Z.T @ Ku)) for Z, Ku in pairs])
        means = np.array([(Z @ design.Q).T @ Ku for Z, Ku in pairs])
        turned = self._take(design.Q).transpose(0, 2, 1) @ a
        cross -= np.einsum("gpG,fpG->fgG", turned, means)
        right = full[:, None] - 2.0 * np.tensordot(S, cross, axes=1)
        right += ((self.T @ a) * a).sum(axis=2)
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
        V = np.empty((len(design.factors), p, p, G))
        for f, (factor, to) in enumerate(zip(design.factors, self.maps, strict=True)):
            levels = factor.Z.shape[0]
            spread = factor.weigh((to @ NU).reshape(levels, p * G))
            V[f] = np.tensordot((factor.Z @ design.Q).T, spread.reshape(levels, p, G), axes=1)
            if f in self.far:
                far = 2.0 * (self.far[f] @ spread.reshape(levels * p, G))
                out += S[:, f, None, None] * far
        packed = _pack(np.moveaxis(np.tensordot(S, V, axes=1), -1, 1), self.upper)
        out -= 2.0 * (self.small @ packed.transpose(0, 2, 1))
        return out

    def _scatter(self, values: np.ndarray) -> np.ndarray:
        """Values (g, m, j) by row, (n, j); zero in rows of no group."""
        out = np.zeros((self.design.Q.shape[0], values.shape[2]))
        out[self.rows[self.mask]] = values[self.mask]
        return out


def _times(design: Moments, B: np.ndarray) -> np.ndarray:
    """Sigma_k B of every component, (K, n, j)."""
    return np.tensordot(design.S, np.array([factor.times(B) for factor in design.factors]), axes=1)


def _traces(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """tr L_kg R_lg, (g, K, K), of (K, g, m, m)."""
    return _inner(left, right.transpose(0, 1, 3, 2))


def _inner(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Sums of products of the entries of L_kg and R_lg, (g, K, K), of (K, g, ., .)."""
    K, groups = left.shape[:2]
    rows = left.transpose(1, 0, 2, 3).reshape(groups, K, -1)
    return rows @ right.transpose(1, 2, 3, 0).reshape(groups, -1, K)


def _pack(matrices: np.ndarray, upper: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Upper triangles (..., h) of M + M', diagonals halved: inner products with symmetric ones."""
    i, j = upper
    both = matrices[..., i, j] + matrices[..., j, i]
    return both * np.where(i == j, 0.5, 1.0)


def _spread(Z: sp.csr_array, Q: np.ndarray) -> sp.csr_array:
    """Takes nu (n,) to Z' diag(nu) Q, as (levels p, n)."""
    entries = Z.tocoo()
    level, row = entries.coords
    p = Q.shape[1]
    at = level[:, None] * p + np.arange(p)
    values = entries.data[:, None] * Q[row]
    index = at.ravel(), np.repeat(row, p)
    return sp.csr_array((values.ravel(), index), (Z.shape[0] * p, Z.shape[1]))


def _entries(M: sp.csr_array, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """M[i, j] for arrays of indices."""
    wanted = i * M.shape[1] + j
    M = M.tocsr()
    M.sort_indices()
    if not M.nnz:
        return np.zeros(wanted.shape)
    keys = np.repeat(np.arange(M.shape[0]), np.diff(M.indptr)) * M.shape[1] + M.indices
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, M.data[at], 0.0)


def _entry_of_rows(
    factor: Factor, rows: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Level of every row (g, m) and what it has of it: the one entry of its column of Z'."""
    level, weight = np.zeros((2, factor.Z.shape[1]))
    entries = factor.Z.tocoo()
    level[entries.coords[1]], weight[entries.coords[1]] = entries.coords[0], entries.data
    return level.astype(np.int64)[rows], weight[rows] * mask


def _meet(f: Factor, g: Factor, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Entries of K_f Z_f' Z_g K_g at levels i of f and j of g, one of them a random effect's."""
    M = f.Z @ g.Z.T
    if f.kernel is not None:
        return np.asarray((M.T @ f.kernel.whole).T[i, j])
    if g.kernel is not None:
        return np.asarray((M @ g.kernel.whole)[i, j])
    return _entries(M, i, j)
