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
levels): that is the size of the eigenproblem; with many donors the cumulants come from
determinants over donors instead, at a cost linear in N.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.stats import cauchy

from ..engine.domain import Domain
from ..engine.likelihood import evaluate, fit
from ..engine.model import Model
from ..engine.precision import Precision
from .tails import saddlepoint, upper_tail

_DENSE_LEVELS = 60  # from more levels on, donors touch few of them: sparse products
_NOTHING = 1e-8  # share of a direction's information that the null's components leave
_EXACT = 400  # factors up to which the eigenproblem is solved; its tail is exact, not a saddlepoint


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
    w, weights = working_noise(model)
    null = replace(model.with_basis(np.ones((1, C, C))), nu=w)
    theta = fit(null, "reml", Domain("nonnegative")).theta
    directions = np.concatenate([np.ones((1, C, C)), np.array([np.diag(e) for e in np.eye(C)])])
    at = np.concatenate([theta[:1], np.zeros(C), theta[1:]])
    fisher = evaluate(model.with_basis(directions).with_response(model.y, w), at, "reml").expected
    kept = np.r_[0, 1 + C : len(at)]
    types = np.arange(1, 1 + C)
    a = np.linalg.solve(fisher[np.ix_(kept, kept)], fisher[np.ix_(kept, types)])  # (1 + Kr, C)

    pre = Precision(null, theta)
    excess = np.where(model.active_rows, model.nu - w, 0.0)
    shared = [_Direction(pre, excess, np.eye(C)[c], a[0, c], a[1:, c]) for c in range(C)]
    shared.append(_Direction(pre, excess, np.ones(C), a[0].sum(), a[1:].sum(axis=1)))
    inner = fisher[np.ix_(types, types)]
    efficient = inner - fisher[np.ix_(types, kept)] @ a
    share = np.append(np.diag(efficient) / np.diag(inner), efficient.sum() / inner.sum())
    # where the null's own components explain a direction there is nothing left to test
    statistic, pvalue = np.array(
        [d.test() if s > _NOTHING else (np.nan, np.nan) for d, s in zip(shared, share, strict=True)]
    ).T
    return ScoreTest(
        statistic=statistic[:C],
        pvalue_celltype=pvalue[:C],
        statistic_sum=float(statistic[C]),
        pvalue_sum=float(pvalue[C]),
        pvalue_cauchy=cauchy_combination(pvalue[:C]),
        theta_null=theta,
        weights=weights,
    )


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


class _Direction:
    """One efficient score: Delta = sum_c d_c Sigma_c - a Sigma_shared - sum_m a_m Z_m Z_m'.

    A = P Delta P.  Its null law has the eigenvalues of Delta M, M = P Sigma^ P = P + P E P with
    E = diag(nu - w): exactly from the factors of Delta where they are few, else through
    determinants that are products over donors times one of the size of the low-rank part.
    """

    def __init__(
        self, pre: Precision, excess: np.ndarray, d: np.ndarray, a: float, a_levels: np.ndarray
    ) -> None:
        self.pre, self.excess = pre, excess
        self.inner = np.diag(d) - a  # Delta of a donor is H_i inner H_i'
        self.levels = -a_levels[pre.level_component] if len(pre.g) else np.zeros(0)

    def test(self) -> tuple[float, float]:
        """Standardised statistic and upper-tail p value."""
        value = float(self.pre.Py @ self.apply(self.pre.Py))
        signs, axes = np.linalg.eigh(self.inner)
        axes, signs = axes[:, abs(signs) > 1e-12], signs[abs(signs) > 1e-12]
        if len(self.pre.donors) * len(signs) + len(self.levels) <= _EXACT:
            lam = self._weights(axes, signs)
            mean, spread = lam.sum(), np.sqrt(2.0 * np.square(lam).sum())
            return (value - mean) / spread, upper_tail(value, lam)
        implicit = _Implicit(self)
        _, mean, variance = implicit.at(0.0)
        return (value - mean) / np.sqrt(variance), saddlepoint(value, implicit.at)

    def _weights(self, axes: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """Eigenvalues of Delta M from Delta = F diag(f) F' with few columns F."""
        model, pre = self.pre.model, self.pre
        rows = np.flatnonzero(model.active_rows)
        loadings = np.zeros((len(model.y), len(pre.donors), len(signs)))
        donor = np.searchsorted(pre.donors, model.row_donor[rows])
        loadings[rows, donor] = model.H[rows] @ axes
        F = np.hstack([loadings.reshape(len(model.y), -1), pre.Z])
        f = np.concatenate([np.tile(signs, len(pre.donors)), self.levels])
        PF = pre.project(F)
        G = F.T @ PF + PF.T @ (self.excess[:, None] * PF)
        values, vectors = np.linalg.eigh(G)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return np.linalg.eigvalsh(root.T @ (f[:, None] * root))

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Delta x, shape (n,)."""
        model = self.pre.model
        donors = sp.csr_matrix(
            (np.ones(len(x)), (model.row_donor, np.arange(len(x)))), (len(model.active), len(x))
        )
        pull = donors @ (model.H * x[:, None])
        own = np.einsum("nc,cd,nd->n", model.H, self.inner, pull[model.row_donor])
        return own + self.pre.Z @ (self.levels * (self.pre.Z.T @ x))


class _Implicit:
    """Cumulants of the eigenvalues of Delta M without forming it, linear in donors.

    M = M_0 + L Theta L' with M_0 block-diagonal over donors and L = [S Z, U, S E S Z, S E U] of
    2 (p + q) columns, and M_0 Z = L T.  So Delta M = Delta_0 M_0 + [Delta_0 L, Z] Psi L', and with
    every donor's block diagonalised (eigenvalues l_j)

        det(I - 2 s Delta M) = prod_j (1 - 2 s l_j) det R(s)
        R(s) = I - 2 s sum_j b_j a_j' Psi / (1 - 2 s l_j)

    where b_j are rows of L and a_j of [Delta_0 L, Z], both sparse when there are many levels.
    """

    def __init__(self, direction: _Direction) -> None:
        pre, mask = direction.pre, direction.pre.mask
        real = mask[..., None]
        rows = pre.rows
        H = np.where(real, pre.model.H[rows], 0.0)
        E = np.where(mask, direction.excess[rows], 0.0)
        S = pre.inverse
        delta = H @ direction.inner @ H.transpose(0, 2, 1)
        index = np.arange(S.shape[1])
        M0 = S + S @ (E[:, :, None] * S)
        M0[:, index, index] += ~mask  # padding: any positive value, Delta is zero there
        root = np.linalg.cholesky(M0)
        values, axes = np.linalg.eigh(root.transpose(0, 2, 1) @ delta @ root)
        self.values = values.ravel()
        # P = S - Phi Omega Phi' over the donors, Phi = [S Z, U] as in Precision.project
        q, p = pre.DZ.shape[1], pre.U.shape[1]
        phi = np.hstack([pre.DZ, pre.U])
        omega = np.zeros((q + p, q + p))
        omega[:q, :q], omega[q:, q:] = pre.K, np.eye(p)
        ep = direction.excess[:, None] * phi
        L = np.hstack([phi, pre.solve_donors(ep)])
        theta = np.block(
            [[omega @ (phi.T @ ep) @ omega - omega, -omega], [-omega, np.zeros_like(omega)]]
        )
        T = np.zeros((2 * (p + q), q))
        T[:q], T[p + q : p + 2 * q] = np.eye(q), np.eye(q)
        through_levels = direction.levels[:, None] * (T.T + pre.Z.T @ L @ theta)
        self.psi = np.vstack([theta, through_levels])
        turn = axes.transpose(0, 2, 1)
        lead = delta @ np.where(real, L[rows], 0.0)
        A = np.concatenate([lead, np.where(real, pre.Z[rows], 0.0)], axis=2)
        A = (turn @ root.transpose(0, 2, 1) @ A).reshape(-1, A.shape[2])
        B = (turn @ np.linalg.solve(root, np.where(real, L[rows], 0.0))).reshape(-1, L.shape[1])
        many = q > _DENSE_LEVELS
        self.A: np.ndarray | sp.csr_matrix = sp.csr_matrix(A) if many else A
        self.B_t: np.ndarray | sp.csc_matrix = sp.csr_matrix(B).T if many else B.T

    def _inner(self, weight: np.ndarray) -> np.ndarray:
        """sum_j weight_j b_j a_j' Psi, shape (r, r)."""
        if sp.issparse(self.A):
            return (self.B_t @ (sp.diags(weight) @ self.A)) @ self.psi
        return (self.B_t @ (weight[:, None] * self.A)) @ self.psi

    def at(self, s: float) -> tuple[float, float, float]:
        """K(s), K'(s), K''(s); NaN beyond a pole."""
        shrink = 1.0 - 2.0 * s * self.values
        if not (shrink > 0.0).all():
            return np.nan, np.nan, np.nan
        R = np.eye(len(self.psi[0])) - 2.0 * s * self._inner(1.0 / shrink)
        sign, logdet = np.linalg.slogdet(R)
        if sign <= 0.0:
            return np.nan, np.nan, np.nan
        R1 = -2.0 * self._inner(1.0 / shrink**2)
        R2 = -8.0 * self._inner(self.values / shrink**3)
        first, second = np.split(np.linalg.solve(R, np.hstack([R1, R2])), 2, axis=1)
        scaled = self.values / shrink
        return (
            -0.5 * float(np.log(shrink).sum() + logdet),
            float(scaled.sum() - 0.5 * np.trace(first)),
            float(
                2.0 * np.square(scaled).sum()
                - 0.5 * (np.trace(second) - np.einsum("ab,ba->", first, first))
            ),
        )
