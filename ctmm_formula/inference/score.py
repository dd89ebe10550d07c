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
   Sigma^^1/2 A_c Sigma^^1/2; upper tail by :func:`ctmm_formula.inference.tails.tail`.
4. Sigma^ holds nu where the law needs its square: E nu^2 is above the square of the true noise,
   and far above where few cells of a pair have counts, so that the test would never reject there.
   Where the squares are estimated without bias (nu2), T_c is taken in its true standard deviation,
   that of

       2 tr(A Sigma^ A Sigma^) + 2 sum_a A_aa^2 [nu2_a n_a / (n_a - 1) - nu_a^2]

   (products of nu of different pairs have no bias), and the law of 3 gives the shape.

A pair whose cells are all alike has nu = 0, and is centred by it: whatever stood in for it would
put the mean of T_c below zero.

The omnibus test sums A_c over cell types.  No lambda is ever computed: their law comes from
eigenvalues of single blocks of donors and determinants of low rank, at a cost linear in N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..distributions import cauchy_tail
from ..engine.domain import Domain
from ..engine.likelihood import evaluate, fit, response_scale
from ..engine.model import Model
from ..engine.noise import pooling, working_noise
from ..engine.precision import Precision
from ..errors import CTMMError
from .tails import Law, tail

ALIKE = 0.9
"""Share of rows without noise (all cells alike) above which there is no test: a handful of counts
that happen to meet in one pair would decide it (``tests/benchmarks/score_counts.md``)."""
_NOTHING = 1e-8  # share of a direction's information that the null's components leave
_SILENT = 1e-9  # of the variance by the working noise: what is left is rounding
_BLOCK = 256  # rows up to which a block goes through whole, its levels eliminated
_HIGH = 0.99  # what a p value counts at most in a combination
_ROUNDING = 1e-13  # of the largest entry: added to a covariance that may be singular


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
        Cauchy combination of `pvalue_sum`, strongest where all cell types vary, with that of the
        cell types, strongest where one does.
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
    CTMMError
        Hardly any row has noise (:data:`ALIKE`).
    """
    C = model.H.shape[1]
    if (model.nu[model.active_rows] == 0.0).mean() > ALIKE:
        raise CTMMError(
            f"in more than {ALIKE:.0%} of the pairs all cells are alike: too few counts to test V"
        )
    how = pooling(model.H, model.n_cells, model.active_rows)
    noise = working_noise(model.nu, how, response_scale(model) ** 2)
    law, forms, expected, share = _forms(model, noise)
    statistic, pvalue = np.full((2, C + 1), np.nan)
    for c, form in enumerate(forms):
        if share[c] > _NOTHING:  # else the null's own components explain it
            least = _SILENT * expected[c]
            pvalue[c], mean, variance = tail(form.value, form.law, form.more, least)
            if not math.isnan(pvalue[c]):
                statistic[c] = (form.value - mean) / math.sqrt(variance)
    return ScoreTest(
        statistic=statistic[:C],
        pvalue_celltype=pvalue[:C],
        statistic_sum=float(statistic[C]),
        pvalue_sum=float(pvalue[C]),
        pvalue_cauchy=cauchy_combination(np.array([pvalue[C], cauchy_combination(pvalue[:C])])),
        theta_null=law.pre.theta,
        weights=how.weights,
    )


def _forms(model: Model, noise: np.ndarray) -> tuple[_Null, list[_Form], np.ndarray, np.ndarray]:
    """Efficient scores of every cell type and of their sum, under the null fitted with `noise`.

    Also the variance of each, were `noise` that of the data, and the share of its information that
    the null's components leave, (C + 1,).
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
    law = _Null(Precision(null, theta), model)
    inner = axes[1:] - a[0][:, None, None]  # of a donor: Delta = H_i inner H_i'
    levels = -a[1:].T[:, law.pre.level_component]
    forms = law.forms(inner, levels)
    forms += law.forms(inner.sum(axis=0)[None], levels.sum(axis=0)[None])
    own = fisher[np.ix_(types, types)]
    efficient = own - fisher[np.ix_(types, kept)] @ a
    left, whole = (np.append(np.diag(part), part.sum()) for part in (efficient, own))
    return law, forms, 4.0 * left, np.divide(left, whole, np.zeros(C + 1), where=whole > 0.0)


def cauchy_combination(pvalues: np.ndarray) -> float:
    """Cauchy combination of p values, valid under dependence (Liu & Xie 2020).

    P values near 1 count as .99, as one of them could undo any other; missing ones do not count.

    >>> round(cauchy_combination(np.array([0.01, 0.5, 0.9])), 4)
    0.0331
    >>> round(cauchy_combination(np.array([0.001, 0.5, 1.0])), 4)
    0.0033
    """
    p = np.asarray(pvalues, dtype=float)
    p = np.clip(p[~np.isnan(p)], 0.0, _HIGH)
    if not len(p):
        return math.nan
    tiny = p < 1e-15
    scores = np.where(tiny, 1.0 / (np.maximum(p, 1e-300) * np.pi), np.tan((0.5 - p) * np.pi))
    return cauchy_tail(float(scores.mean()))


class _Form(NamedTuple):
    """A score y'A y: its value, its law for normal noise, and what its variance has beyond that."""

    value: float
    law: Law
    more: float


class _Null:
    """The law of P y under the null: mean zero, covariance M = P Sigma^ P = P + P E P.

    E = diag(nu - w) is what the measured noise has beyond the working noise.  With S = Sigma^-1
    of groups of rows (:class:`_Groups`) and q levels that remain,

        M = M_0 + L theta L',  M_0 = S + S E S,  L = [S Z, U, S E S Z, S E U],  M_0 Z = L T

    Attributes
    ----------
    M0 : ndarray, shape (g, m, m)
    L : ndarray, shape (n, 2 (p + q)); theta : ndarray, shape (2 (p + q), 2 (p + q))
    core : ndarray, shape (w, w), w = 2 (p + q) + q
        Covariance of [L, Z] beyond M_0: with J = [F L, 0; 0, I] for loadings F of the groups,
        [F; Z'] M [F; Z']' = diag(F M_0 F', 0) + J core J'.
    """

    def __init__(self, pre: Precision, model: Model) -> None:
        self.pre, self.model = pre, model
        self.groups = groups = _Groups(pre)
        P = groups.P
        excess = np.where(model.active_rows, model.nu - pre.model.nu, 0.0)[:, None]
        self.M0 = P.inverse + P.inverse @ (P.spread(excess) * P.inverse)
        q, p, omega = P.Z.shape[1], P.X.shape[1], P.omega
        ep = excess * P.phi
        self.L = np.hstack([P.phi, P.within(ep)])
        self.theta = np.block(
            [[omega @ (P.phi.T @ ep) @ omega - omega, -omega], [-omega, np.zeros_like(omega)]]
        )
        T = np.zeros((len(self.theta), q))
        T[:q], T[p + q : p + 2 * q] = np.eye(q), np.eye(q)
        LZ = self.L.T @ P.Z
        across = self.theta @ LZ + T
        self.core = np.block([[self.theta, across], [across.T, LZ.T @ across]])
        size, axes = np.linalg.eigh(self.core)
        kept = np.abs(size) > _ROUNDING * np.abs(size).max(initial=0.0)
        self.root, self.signs = axes[:, kept] * np.sqrt(np.abs(size[kept])), np.sign(size[kept])

    def forms(self, inner: np.ndarray, levels: np.ndarray) -> list[_Form]:
        """The form (P y)' Delta P y, Delta = sum_i H_i inner H_i' + Z diag(levels) Z'.

        Parameters
        ----------
        inner : ndarray, shape (d, C, C); levels : ndarray, shape (d, q)
            Of d directions, whose `inner` have the same rank.

        Notes
        -----
        In a group Delta = F' sign F; with F M_0 F' = B B' its part of Delta M has the eigenvalues
        l of B' sign B = Q diag(l) Q', and 2 s F'(sign^-1 - 2 s F M_0 F')^-1 F between columns of
        L is sign + 2 s c c' / (1 - 2 s l) with c = Q' B' sign F L.
        """
        groups, P = self.groups, self.groups.P
        F, sign = groups.loadings(inner, levels)
        FL = F @ P.spread(self.L)
        signed = sign[..., None] * FL
        N = F @ self.M0 @ F.swapaxes(-1, -2)
        index = np.arange(N.shape[-1])
        # a donor without measured noise may have none at all: then N is the rounding of F S F'
        size = np.maximum(N[..., index, index], ((F @ P.inverse) * F).sum(axis=-1))
        N[..., index, index] += _ROUNDING * size.max(axis=-1, initial=1e-300)[..., None]
        Bt = np.linalg.cholesky(N).swapaxes(-1, -2)
        values, Q = np.linalg.eigh(Bt @ (sign[..., None] * Bt.swapaxes(-1, -2)))
        loads = Q.swapaxes(-1, -2) @ (Bt @ signed)
        w, q = FL.shape[-1], P.Z.shape[1]
        fixed = np.zeros((len(F), w + q, w + q))
        fixed[:, :w, :w] = (FL.swapaxes(-1, -2) @ signed).sum(axis=1)
        fixed[:, w + np.arange(q), w + np.arange(q)] = levels[:, :q]
        Py = self.pre.Py[:, None]
        value = np.sum(sign * np.square(F @ P.spread(Py))[..., 0], axis=(1, 2))
        value += levels[:, :q] @ np.square(P.Z.T @ Py)[:, 0]
        columns = groups.columns()
        loads = np.take_along_axis(loads, columns[None, :, None], axis=-1)
        if (columns == columns[0]).all():  # all groups touch the same: one group
            values = values.reshape(len(F), 1, -1)
            loads = loads.reshape(len(F), 1, -1, loads.shape[-1])
            columns = columns[:1]
        more = self._more(F, sign, FL, levels)
        return [
            _Form(float(value[d]), Law(
                values[d], loads[d], columns, fixed[d], self.core, self.root, self.signs,
            ), float(more[d]))
            for d in range(len(F))
        ]  # fmt: skip

    def _more(
        self, F: np.ndarray, sign: np.ndarray, FL: np.ndarray, levels: np.ndarray
    ) -> np.ndarray:
        """What the variances of forms have beyond their laws' for normal noise, (d,).

        The law squares nu where it should square the true noise variance, and takes an error of
        nu for none: see :func:`_square_excess`.
        """
        if self.model.nu2 is None:
            return np.zeros(len(F))
        rows, mask = self.groups.P.rows, self.groups.P.mask
        A = self._own_entries(F, sign, FL, levels)
        diagonal = np.diagonal(A, axis1=-2, axis2=-1)
        excess = np.where(mask, _square_excess(self.model)[rows], 0.0)
        return 2.0 * (np.square(diagonal) * excess).sum(axis=(1, 2))

    def _own_entries(
        self, F: np.ndarray, sign: np.ndarray, FL: np.ndarray, levels: np.ndarray
    ) -> np.ndarray:
        """Entries of A = P Delta P within every group, (d, g, m, m).

        With P = D - Phi Omega Phi' and Delta_h = F_h' sign F_h, rows a and b of group g have

            sum_h [F_h P]_a' sign [F_h P]_b,   F_h P = [h = g] F D - F_h Phi Omega Phi'
        """
        P = self.groups.P
        q = P.Z.shape[1]
        G = FL[..., : q + P.X.shape[1]]  # F Phi
        signed = sign[..., None] * G
        phi = P.spread(P.phi) @ P.omega
        across = G.swapaxes(-1, -2) @ signed
        across = across.sum(axis=1, keepdims=True) - across  # of the other groups
        FP = F @ P.inverse - G @ phi.swapaxes(-1, -2)
        A = FP.swapaxes(-1, -2) @ (sign[..., None] * FP) + phi @ across @ phi.swapaxes(-1, -2)
        PZ = P.spread(P.project(P.Z))
        return A + (PZ * levels[:, None, None, :q]) @ PZ.swapaxes(-1, -2)


def _square_excess(model: Model) -> np.ndarray:
    """Variance of y^2 - nu of a pair from its noise, less what normal noise nu would give, (n,).

    About the null mean y^2 - nu is sum_{s != t} x_s x_t / (n (n - 1)) over the n cells of the pair,
    so its variance from noise is 2 sigma^4 / (n (n - 1)) whatever the distribution of cells, and
    nu2 estimates sigma^4 / n^2 without bias.  Half of it, as the square of nu.  0 where there is no
    nu2: nu stands in for the true variance there.
    """
    if model.nu2 is None:
        return np.zeros(len(model.nu))
    n = np.full(len(model.nu), np.inf) if model.n_cells is None else model.n_cells
    known = np.flatnonzero(np.isfinite(model.nu2) & (n > 1.0))
    out = np.zeros(len(n))
    out[known] = model.nu2[known] * (1.0 + 1.0 / (n[known] - 1.0)) - np.square(model.nu[known])
    return out


class _Groups:
    """Donors, or whole blocks with their levels where these are small: independent given X.

    Attributes
    ----------
    P : Projection
        Its blocks are the groups.
    own : ndarray, shape (g, e, m); own_levels : int ndarray, shape (g, e)
        The levels that are in its D, of each group, padded by zeros; which they are.
    donors : ndarray, shape (g, j, m)
        One row per donor of the group, true at its rows.
    """

    def __init__(self, pre: Precision) -> None:
        self.model = model = pre.model
        block = model.donor_block[model.row_donor[model.active_rows]]
        whole = len(pre.g) > 0 and np.bincount(block).max() <= _BLOCK
        self.P = P = pre.joined() if whole else pre
        Z = P.spread(pre.Z[:, P.Z.shape[1] :])
        self.own_levels = _padded((Z != 0.0).any(axis=1))
        self.own = np.take_along_axis(Z, self.own_levels[:, None], axis=2).swapaxes(1, 2)
        start = np.where(P.mask, model.row_donor[P.rows], -1)
        number = np.cumsum(np.diff(start, axis=1, prepend=start[:, :1]) != 0, axis=1)
        most = int(number[P.mask].max()) + 1
        self.donors = (number[:, None, :] == np.arange(most)[:, None]) & P.mask[:, None, :]

    def columns(self) -> np.ndarray:
        """Columns of [S Z, U, S E S Z, S E U] that a group touches, (g, k); may repeat."""
        q, p = self.P.Z.shape[1], self.P.X.shape[1]
        levels = _padded((self.P.spread(self.P.Z) != 0.0).any(axis=1))
        fixed = np.broadcast_to(q + np.arange(p), (len(levels), p))
        half = np.hstack([levels, fixed])
        return np.hstack([half, q + p + half])

    def loadings(self, inner: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """F (d, g, r, m) and sign (d, g, r): Delta of a group is F' sign F.

        One row for every donor and axis of `inner` (d, C, C), and for every level of its own.
        """
        size, axes = np.linalg.eigh(inner)
        rank = (np.abs(size) > 1e-12 * np.abs(size).max(axis=1, keepdims=True)).sum(axis=1).max()
        kept = np.argsort(-np.abs(size), axis=1)[:, :rank]
        size = np.take_along_axis(size, kept, axis=1)
        axes = np.take_along_axis(axes, kept[:, None], axis=2) * np.sqrt(np.abs(size))[:, None]
        H = self.P.spread(self.model.H)
        load = (H @ axes[:, None]).swapaxes(-1, -2)  # (d, g, rank, m)
        F = self.donors[None, :, :, None, :] * load[:, :, None]
        d, g, j, _, m = F.shape
        sign = np.broadcast_to(np.sign(size)[:, None, None], (d, g, j, rank))
        F, sign = F.reshape(d, g, j * rank, m), sign.reshape(d, g, j * rank)
        if not self.own.size:
            return F, sign
        level = levels[:, self.own_levels]
        own = np.sqrt(np.abs(level))[..., None] * self.own
        return np.concatenate([F, own], axis=2), np.concatenate([sign, np.sign(level)], axis=2)


def _padded(used: np.ndarray) -> np.ndarray:
    """Numbers of the true entries of every row, padded by those of false ones to a matrix."""
    most = int(used.sum(axis=1).max(initial=0))
    return np.argsort(~used, axis=1, kind="stable")[:, :most]
