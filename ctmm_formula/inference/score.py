"""Noise-robust score test of V = 0 from the null fit alone.

LRT and Wald weight the data by the measured noise nu and are inflated by its errors; here the
weights are independent of those errors and nu itself, which is unbiased, only centres the
statistic.

1. Working noise w_ic = s_c^2 / n_ic with s_c^2 = mean_i n_ic nu_ic, the variance between cells
   pooled over donors.  The null (shared variance and random effects, all >= 0) is fitted by REML
   under w; P is its projection.
2. For cell type c the efficient score A_c = P (Sigma_c - sum_m a_m Sigma_m) P with
   a = I_mm^-1 I_mc from the Fisher information, and T_c = y'A_c y - tr(A_c Sigma^), Sigma^ the
   null covariance with the measured nu in place of w.
3. Under the null y'A_c y ~ sum_j lambda_j chi2_1, lambda the eigenvalues of
   Sigma^^1/2 A_c Sigma^^1/2; upper tail by :func:`ctmm_formula.inference.tails.upper_tail`.

The omnibus test sums A_c over cell types.  The rank of A_c is at most 2 N + q (donor loadings and
levels): that is the size of the eigenproblem; with many donors the tail comes from determinants
over blocks instead, as exact and at a cost linear in N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from scipy.linalg import blas, lapack
from scipy.sparse.linalg import LinearOperator, eigs
from scipy.stats import cauchy

from ..engine.domain import Domain
from ..engine.likelihood import evaluate, fit
from ..engine.model import Model
from ..engine.precision import Precision
from .tails import contour_tail, upper_tail

_DENSE_LEVELS = 60  # from more levels on, donors touch few of them: sparse products
_NOTHING = 1e-8  # share of a direction's information that the null's components leave
_EXACT = 300  # size up to which all eigenvalues are cheaper than determinants
_DIGITS = 1e-8  # relative error of a tail from determinants
_FAR = 6.0  # standard deviations beyond which the way to a pole is worth knowing
_NEAR = 0.93  # of the way to a pole
_BLOCK = 256  # rows up to which a block goes through whole, its levels eliminated


@dataclass(frozen=True)
class ScoreTest:
    """Result of :func:`score_test`.

    Attributes
    ----------
    statistic : ndarray, shape (C,)
        Centred efficient scores T_c in their null standard deviations.
    pvalue_celltype : ndarray, shape (C,)
        Upper-tail p value per cell type.
    statistic_sum, pvalue_sum : float
        Omnibus, from the sum of the scores.
    pvalue_cauchy : float
        Cauchy combination of the p values per cell type.
    theta_null : ndarray, shape (1 + Kr,)
        Null variance components: shared, then the random effects.
    weights : str
        "n_cells", or "mean noise" where cell counts are missing.
    """

    statistic: np.ndarray
    pvalue_celltype: np.ndarray
    statistic_sum: float
    pvalue_sum: float
    pvalue_cauchy: float
    theta_null: np.ndarray
    weights: str


def working_noise(model: Model) -> tuple[np.ndarray, str]:
    """w (n,) and how it was made: pooled cell variance / n_cells, or the mean noise.

    Rows are pooled with those of the same row of H (one cell type), or all together where rows
    of H differ throughout (overall pseudobulk).
    """
    patterns, code = np.unique(model.H, axis=0, return_inverse=True)
    if len(patterns) > model.H.shape[1]:
        code = np.zeros(len(model.y), dtype=np.int64)
    code = code.ravel()
    rows = model.active_rows
    cells = model.n_cells
    counted = cells is not None and bool(np.isfinite(cells[rows]).all() and (cells[rows] > 0).all())
    per_cell = np.where(rows, cells, 1.0) if counted and cells is not None else np.ones(len(code))
    total = np.bincount(code[rows], weights=(per_cell * model.nu)[rows], minlength=code.max() + 1)
    count = np.bincount(code[rows], minlength=code.max() + 1)
    pooled = total / np.maximum(count, 1)
    return pooled[code] / per_cell, "n_cells" if counted else "mean noise"


def score_test(model: Model) -> ScoreTest:
    """Test V = 0 against a cell type-specific variance in any cell type.

    Parameters
    ----------
    model : Model
        Its basis is not used: the null is the shared variance, the directions are E_cc.

    Raises
    ------
    ConvergenceError
        The null model cannot be fitted.
    """
    C = model.H.shape[1]
    noise, weights = working_noise(model)
    directions, share = _directions(model, noise)
    # where the null's own components explain a direction there is nothing left to test
    statistic, pvalue = np.array(
        [
            direction.test() if left > _NOTHING else (np.nan, np.nan)
            for direction, left in zip(directions, share, strict=True)
        ]
    ).T
    return ScoreTest(
        statistic=statistic[:C],
        pvalue_celltype=pvalue[:C],
        statistic_sum=float(statistic[C]),
        pvalue_sum=float(pvalue[C]),
        pvalue_cauchy=cauchy_combination(pvalue[:C]),
        theta_null=directions[0].law.pre.theta,
        weights=weights,
    )


def _directions(model: Model, noise: np.ndarray) -> tuple[list[_Direction], np.ndarray]:
    """Efficient scores of every cell type and of their sum, under the null fitted with `noise`.

    Also the share of each one's information that the null's components leave, (C + 1,).
    """
    C = model.H.shape[1]
    null = replace(model.with_basis(np.ones((1, C, C))), nu=noise)
    theta = fit(null, "reml", Domain("nonnegative")).theta
    axes = np.concatenate([np.ones((1, C, C)), np.array([np.diag(e) for e in np.eye(C)])])
    at = np.concatenate([theta[:1], np.zeros(C), theta[1:]])
    fisher = evaluate(replace(model.with_basis(axes), nu=noise), at, "reml").expected
    kept = np.r_[0, 1 + C : len(at)]
    types = np.arange(1, 1 + C)
    a = np.linalg.solve(fisher[np.ix_(kept, kept)], fisher[np.ix_(kept, types)])  # (1 + Kr, C)
    law = _Null(Precision(null, theta), model.nu)
    directions = [_Direction(law, np.eye(C)[c], a[0, c], a[1:, c]) for c in range(C)]
    directions.append(_Direction(law, np.ones(C), a[0].sum(), a[1:].sum(axis=1)))
    inner = fisher[np.ix_(types, types)]
    efficient = inner - fisher[np.ix_(types, kept)] @ a
    share = np.append(np.diag(efficient) / np.diag(inner), efficient.sum() / inner.sum())
    return directions, share


def cauchy_combination(pvalues: np.ndarray) -> float:
    """Cauchy combination of p values, valid under dependence (Liu & Xie 2020).

    >>> round(cauchy_combination(np.array([0.01, 0.5, 0.9])), 4)
    0.0331
    """
    p = np.clip(np.asarray(pvalues, dtype=float), 0.0, 1.0 - 1e-16)
    tiny = p < 1e-15
    scores = np.where(tiny, 1.0 / (np.maximum(p, 1e-300) * np.pi), np.tan((0.5 - p) * np.pi))
    mean = scores.mean()
    return float(1.0 / (mean * np.pi)) if mean > 1e15 else float(cauchy.sf(mean))


class _Null:
    """The law of P y under the null: mean zero, covariance M = P Sigma^ P = P + P E P.

    E = diag(nu - w) is what the measured noise has beyond the working noise.  With S = Sigma^-1
    of groups of rows (:class:`_Groups`) and q levels that remain,

        M = M_0 + L Theta L',  M_0 = S + S E S,  L = [S Z, U, S E S Z, S E U]

    Attributes
    ----------
    rows : int ndarray, shape (n',)
        Rows in use.
    donor : int ndarray, shape (n',)
        Donor in use of each of them, from 0 on.
    M0 : ndarray, shape (g, m, m); the identity where a group is padded
    L : ndarray, shape (n, 2 (p + q)); theta : ndarray, shape (2 (p + q), 2 (p + q))
    """

    def __init__(self, pre: Precision, nu: np.ndarray) -> None:
        model = pre.model
        self.pre = pre
        self.rows = np.flatnonzero(model.active_rows)
        self.donor = np.searchsorted(pre.donors, model.row_donor[self.rows])
        self.groups = groups = _Groups(pre)
        excess = np.where(model.active_rows, nu - model.nu, 0.0)
        S, E = groups.inverse, np.where(groups.mask, excess[groups.rows], 0.0)
        index = np.arange(S.shape[1])
        self.M0 = S + S @ (E[:, :, None] * S)
        self.M0[:, index, index] += ~groups.mask
        # P = S - Phi Omega Phi' over the groups, Phi = [S Z, U] as in Precision.project
        q, p = groups.Z.shape[1], pre.U.shape[1]
        phi = np.hstack([groups.DZ, pre.U])
        omega = np.zeros((q + p, q + p))
        omega[:q, :q], omega[q:, q:] = groups.K, np.eye(p)
        ep = excess[:, None] * phi
        self.L = np.hstack([phi, groups.solve(ep)])
        self.theta = np.block(
            [[omega @ (phi.T @ ep) @ omega - omega, -omega], [-omega, np.zeros_like(omega)]]
        )

    @cached_property
    def covariance(self) -> np.ndarray:
        """M of the rows in use, dense, shape (n', n')."""
        groups = self.groups
        out = (self.L @ self.theta) @ self.L.T
        i, a, b = np.nonzero(groups.mask[:, :, None] & groups.mask[:, None, :])
        out[groups.rows[i, a], groups.rows[i, b]] += self.M0[i, a, b]
        return out if len(self.rows) == len(out) else out[np.ix_(self.rows, self.rows)]


class _Direction:
    """One efficient score A = P Delta P, whose null law has the eigenvalues of Delta M.

    Delta = sum_c d_c Sigma_c - a Sigma_shared - sum_m a_m Z_m Z_m' = F' diag(f) F, one row of F
    for every donor and axis of diag(d) - a, and for every level.
    """

    def __init__(self, law: _Null, d: np.ndarray, a: float, a_levels: np.ndarray) -> None:
        pre = law.pre
        self.law = law
        self.inner = np.diag(d) - a  # Delta of a donor is H_i inner H_i'
        self.levels = -a_levels[pre.level_component] if len(pre.g) else np.zeros(0)
        signs, axes = np.linalg.eigh(self.inner)
        kept = np.abs(signs) > 1e-12
        loadings = pre.model.H[law.rows] @ axes[:, kept]
        n, N, k = len(law.rows), len(pre.donors), int(kept.sum())
        level, row = np.nonzero(pre.Z[law.rows].T)
        weight = pre.Z[law.rows[row], level]
        which = np.concatenate([(law.donor[:, None] + N * np.arange(k)).ravel(), N * k + level])
        place = np.concatenate([np.repeat(np.arange(n), k), row])
        values = np.concatenate([loadings.ravel(), weight])
        self.f = np.concatenate([np.repeat(signs[kept], N), self.levels])
        self.F = sp.csr_matrix((values, (which, place)), shape=(len(self.f), n))

    def test(self) -> tuple[float, float]:
        """Standardised statistic and upper-tail p value."""
        value = float(self.f @ np.square(self.F @ self.law.pre.Py[self.law.rows]))
        if min(self.F.shape) <= _EXACT:
            lam = self._eigenvalues()
            mean, spread = lam.sum(), np.sqrt(2.0 * np.square(lam).sum())
            return (value - mean) / spread, upper_tail(value, lam)
        law = _Implicit(self)
        _, mean, variance = law.at(0.0)
        z = (value - mean) / np.sqrt(variance)
        pole = law.pole("LR") if z > _FAR else math.inf
        return z, contour_tail(value, law.at, law.log_moment, law.values, _DIGITS, pole)

    def _eigenvalues(self) -> np.ndarray:
        """Eigenvalues of Delta M that can differ from zero, by its smaller side.

        With |f|^1/2 F M F' |f|^1/2 = B B' they are those of B' sign(f) B = B'B - 2 B_-'B_-.
        """
        M = self.law.covariance
        if self.F.shape[0] <= 1.1 * self.F.shape[1]:
            size = np.sqrt(np.abs(self.f))
            B, order = _root((self.F @ (self.F @ M).T) * size * size[:, None])
            sign = np.sign(self.f[order])
        else:
            B, order = _root(M)
            B = self.F[:, order] @ B * np.sqrt(np.abs(self.f))[:, None]
            sign = np.sign(self.f)
        A = blas.dsyrk(1.0, B, trans=1)
        A = blas.dsyrk(-2.0, B[sign < 0.0], trans=1, beta=1.0, c=A, overwrite_c=1)
        return np.linalg.eigvalsh(A.T, UPLO="L")


def _root(G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B and order with B B' = G[order][:, order], G positive semidefinite, B of full rank."""
    factor, pivot, rank, _ = lapack.dpstrf(G.T)
    return np.triu(factor)[:rank].T, pivot - 1


class _Groups:
    """Donors, or whole blocks with their levels where these are small: independent given X.

    Attributes
    ----------
    rows, mask : ndarray, shape (g, m)
        Rows of each group, padded; which are real.
    inverse : ndarray, shape (g, m, m)
        Sigma^-1 of each group, without the levels that remain.
    Z, DZ, K : ndarray
        Levels that remain, as in :class:`~ctmm_formula.engine.precision.Precision`.
    """

    def __init__(self, pre: Precision) -> None:
        model = pre.model
        rows = np.flatnonzero(model.active_rows)
        block = model.donor_block[model.row_donor[rows]]
        self.Z, self.DZ, self.K = pre.Z, pre.DZ, pre.K
        if not len(pre.g) or np.bincount(block).max() > _BLOCK:
            self.rows, self.mask, self.inverse = pre.rows, pre.mask, pre.inverse
            return
        size = np.bincount(np.unique(block, return_inverse=True)[1])
        first = np.cumsum(size) - size
        offset = np.arange(size.max())
        self.mask = offset < size[:, None]
        self.rows = rows[first[:, None] + np.where(self.mask, offset, 0)]
        # donors of a block lie side by side: their inverses fill its diagonal
        place = np.zeros(len(model.y), dtype=np.int64)
        group = np.zeros(len(model.y), dtype=np.int64)
        place[self.rows[self.mask]] = np.nonzero(self.mask)[1]
        group[self.rows[self.mask]] = np.nonzero(self.mask)[0]
        self.inverse = np.zeros((*self.mask.shape, self.mask.shape[1]))
        i, a, b = np.nonzero(pre.mask[:, :, None] & pre.mask[:, None, :])
        left, right = pre.rows[i, a], pre.rows[i, b]
        self.inverse[group[left], place[left], place[right]] = pre.inverse[i, a, b]
        DZ = np.where(self.mask[..., None], pre.DZ[self.rows], 0.0)
        self.inverse -= DZ @ pre.K @ DZ.transpose(0, 2, 1)
        self.Z, self.DZ, self.K = pre.Z[:, :0], pre.DZ[:, :0], pre.K[:0, :0]

    def solve(self, B: np.ndarray) -> np.ndarray:
        """inverse B for B (n, j)."""
        out = np.zeros_like(B)
        part = self.inverse @ np.where(self.mask[..., None], B[self.rows], 0.0)
        out[self.rows[self.mask]] = part[self.mask]
        return out


class _Implicit:
    """Cumulants of the eigenvalues of Delta M without forming it, linear in donors.

    M = M_0 + L Theta L' as in :class:`_Null` and M_0 Z = L T for the levels that remain, so
    Delta M = Delta_0 M_0 + [Delta_0 L, Z] Psi L', and with every group's block diagonalised
    (eigenvalues l_j)

        det(I - 2 s Delta M) = prod_j (1 - 2 s l_j) det R(s)
        R(s) = I - 2 s sum_j b_j a_j' Psi / (1 - 2 s l_j)

    where b_j are rows of L and a_j of [Delta_0 L, Z], both sparse when there are many levels.
    K ends at the poles of Delta M, which may lie beyond those of its groups.
    """

    def __init__(self, direction: _Direction) -> None:
        self.direction = direction
        self._poles: dict[str, float] = {}
        law, groups = direction.law, direction.law.groups
        pre, rows, L = law.pre, groups.rows, law.L
        real = groups.mask[..., None]
        q, p = groups.Z.shape[1], pre.U.shape[1]
        H = np.where(real, pre.model.H[rows], 0.0)
        donor = pre.model.row_donor[rows]
        delta = (H @ direction.inner @ H.transpose(0, 2, 1)) * (donor[:, :, None] == donor[:, None])
        if not q and len(pre.g):
            Z = np.where(real, pre.Z[rows], 0.0)
            delta += (Z * direction.levels) @ Z.transpose(0, 2, 1)
        root = np.linalg.cholesky(law.M0)
        values, axes = np.linalg.eigh(root.transpose(0, 2, 1) @ delta @ root)
        T = np.zeros((2 * (p + q), q))
        T[:q], T[p + q : p + 2 * q] = np.eye(q), np.eye(q)
        through_levels = direction.levels[:q, None] * (T.T + groups.Z.T @ L @ law.theta)
        turn = axes.transpose(0, 2, 1)
        lead = delta @ np.where(real, L[rows], 0.0)
        A = np.concatenate([lead, np.where(real, groups.Z[rows], 0.0)], axis=2)
        A = (turn @ root.transpose(0, 2, 1) @ A).reshape(-1, A.shape[2])
        B = (turn @ np.linalg.solve(root, np.where(real, L[rows], 0.0))).reshape(-1, L.shape[1])
        # rows without a part in Delta or the levels add nothing
        used = (np.abs(A).max(axis=1, initial=0.0) > 0.0) | (values.ravel() != 0.0)
        self.values, A, B = values.ravel()[used], A[used], B[used]
        self.psi = np.vstack([law.theta, through_levels])
        many = q > _DENSE_LEVELS
        self.A: np.ndarray | sp.csr_matrix = sp.csr_matrix(A) if many else A
        self.B_t: np.ndarray | sp.csc_matrix = sp.csr_matrix(B).T if many else B.T

    def _inner(self, weights: np.ndarray) -> np.ndarray:
        """sum_j weight_j b_j a_j' Psi for each row of weights (k, .), shape (k, r, r)."""
        if sp.issparse(self.A):
            sums = [(self.B_t @ (sp.diags(weight) @ self.A)).toarray() for weight in weights]
            return np.array(sums) @ self.psi
        return (self.B_t @ (weights[:, :, None] * self.A)) @ self.psi

    def pole(self, end: str) -> float:
        """The pole of Delta M next to zero above ("LR") or below ("SR"), to a per cent.

        Rather too far than too near.
        """
        if end not in self._poles:
            self._poles[end] = self._find_pole(end)
        return self._poles[end]

    def _find_pole(self, end: str) -> float:
        law, F, f = self.direction.law, self.direction.F, self.direction.f
        groups, L, back = law.groups, law.L[law.rows], self.direction.F.T.tocsr()
        place = np.searchsorted(law.rows, groups.rows)

        def product(x: np.ndarray) -> np.ndarray:
            out = L @ (law.theta @ (x.ravel() @ L))
            part = law.M0 @ np.where(groups.mask, x.ravel()[place], 0.0)[..., None]
            out[place[groups.mask]] += part[groups.mask, 0]
            return back @ (f * (F @ out))

        operator = LinearOperator((F.shape[1],) * 2, matvec=product, dtype=float)
        start = np.ones(F.shape[1])
        found = eigs(operator, 1, which=end, v0=start, tol=1e-2, return_eigenvectors=False)
        size, sign = float(found[0].real), 1.0 if end == "LR" else -1.0
        return 0.5 / size if size * sign > 0.0 else sign * math.inf

    def log_moment(self, start: float, s: np.ndarray) -> np.ndarray:
        """K at complex s (k,) along a path from `start` on the real axis."""
        shrink = 1.0 - 2.0 * s[:, None] * self.values
        weight = s[:, None] / shrink
        real, imaginary = np.split(self._inner(np.concatenate([weight.real, weight.imag])), 2)
        R = np.eye(len(self.psi[0])) - 2.0 * (real + 1j * imaginary)
        sign, size = np.linalg.slogdet(R)
        # poles of groups near the start, or before it, are none of Delta M: det R takes them back,
        # and only the product with it has a phase that starts at zero and changes slowly
        near = 2.0 * start * self.values > _NEAR
        turned = sign * np.prod(shrink[:, near] / np.abs(shrink[:, near]), axis=1)
        phase = np.unwrap(np.append(0.0, np.angle(turned)))[1:]
        rest = np.log(shrink[:, ~near]).sum(axis=1)
        return -0.5 * (rest + np.log(np.abs(shrink[:, near])).sum(axis=1) + size + 1j * phase)

    def at(self, s: float) -> tuple[float, float, float]:
        """K(s), K'(s), K''(s); NaN beyond a pole."""
        shrink = 1.0 - 2.0 * s * self.values
        outside = (math.nan,) * 3
        if not (shrink > 0.0).all() and not abs(s) < abs(self.pole("LR" if s > 0.0 else "SR")):
            return outside
        first, second, third = self._inner(
            np.array([s / shrink, 1.0 / shrink**2, self.values / shrink**3])
        )
        R = np.eye(len(self.psi[0])) - 2.0 * first
        sign, logdet = np.linalg.slogdet(R)
        if sign * (-1.0) ** (shrink < 0.0).sum() <= 0.0:  # just beyond the pole
            return outside
        both = np.hstack([-2.0 * second, -8.0 * third])
        first, second = np.split(np.linalg.solve(R, both), 2, axis=1)
        scaled = self.values / shrink
        return (
            -0.5 * float(np.log(np.abs(shrink)).sum() + logdet),
            float(scaled.sum() - 0.5 * np.trace(first)),
            float(
                2.0 * np.square(scaled).sum()
                - 0.5 * (np.trace(second) - np.einsum("ab,ba->", first, first))
            ),
        )
