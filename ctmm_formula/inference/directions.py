"""Score tests in any direction: what a covariance between donors has beyond a null.

The null is A = sum_m theta_m B_m, fitted by REML (components >= 0) under working noise that is
pooled per cell type; a direction is a matrix D (E, E) of the donors' effects.  As in
:mod:`ctmm_formula.inference.score`, with m the null's components and levels,

    Delta_i = H_i (D - sum_m a_m B_m) H_i',   a = I_mm^-1 I_md
    T = (P y)'Delta P y - tr(Delta P Sigma^ P),   Sigma^ with the measured noise.

T has two reference laws.  Of normal donors that of the quadratic form (``law``): exact, and wrong
where donors have heavy tails, as a variance's error has the kurtosis of what varies.  The other is
empirical: T = sum_u t_u over independent units u (donors, or blocks that share levels), whose mean
is tested by Student's t with U - 1 degrees of freedom, means of several directions by Hotelling's
test.  (Against the sum of squares about 0, which holds what T has to say, few units could hardly
reject.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..distributions import log_f_tail
from ..engine.domain import Domain
from ..engine.likelihood import evaluate, fit, residual, response_scale
from ..engine.model import Model, from_tiles, tile
from ..engine.noise import Pooling, working_noise
from .cumulants import Law
from .score import (
    Part,
    Sizes,
    by_level,
    loadings,
    part_of,
    refuse_alike,
    sizes_of,
    solved_sums,
    square_excess,
)
from .score_law import law_of
from .score_sums import NOTHING, SILENT, Layout, Products, Solved, lay_out
from .tails import tail

_UNITS = 10  # independent units below which there is no empirical law
_SAME = 1e-6  # smallest eigenvalue of the correlations of directions that are none of others


class Direction(NamedTuple):
    """What a direction adds: weights of the design's matrices beyond the null's.

    name; weights (X,); scale (X, K) where they are those of the null's components.
    """

    name: str
    weights: np.ndarray
    scale: np.ndarray


class DirectionDesign(NamedTuple):
    """What all responses of a design share.

    how the noise is pooled; layout of the compiled sums; rows of the model that are in it (all:
    None); the model under the null, and with the X matrices of directions beside; their sizes; the
    directions; fewest donors of a group.
    """

    how: Pooling
    layout: Layout
    rows: np.ndarray | None
    null: Model
    beside: Model
    sizes: Sizes
    directions: tuple[Direction, ...]
    fewest: int = 0


class Tested(NamedTuple):
    """One direction: statistic in standard deviations, and logarithms of p values.

    law and empirical (t; NaN where there is none), and of the upper tail alone; terms (U,) of
    independent units, of which the empirical law is made (two-sided tests have them).
    """

    statistic: float
    law: float
    empirical: float
    upper: float
    terms: np.ndarray = np.zeros(0)


NOT_THERE = Tested(math.nan, math.nan, math.nan, math.nan)


def directions_of(
    model: Model, null: np.ndarray, beyond: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]
) -> DirectionDesign:
    """The design of directions D.

    Parameters
    ----------
    model : Model
        Its basis is not used.
    null : ndarray, shape (K, E, E)
        Matrices of the null.
    beyond : dict of str to ndarray, shape (E, E)
        Directions.
    like : dict of str to ndarray, shape (K, E, E)
        Directions sum_k theta_k B_k at the null's components: they scale what the null has.
    """
    K = len(null)
    extra = [*beyond.values(), *(B for own in like.values() for B in own)]
    X = len(extra)
    alone = np.eye(len(beyond), X)
    out = [Direction(name, row, np.zeros((X, K))) for name, row in zip(beyond, alone, strict=True)]
    for g, name in enumerate(like):
        scale = np.zeros((X, K))
        scale[len(beyond) + g * K + np.arange(K), np.arange(K)] = 1.0
        out.append(Direction(name, np.zeros(X), scale))
    beside = model.with_basis(np.array([*null, *extra]))
    return DirectionDesign(
        model.pooling, lay_out(model, model.H), None,
        model.with_basis(null), beside, sizes_of(beside, np.arange(K, K + X)), tuple(out),
    )  # fmt: skip


def rows_of_type(model: Model, c: int) -> Part | None:
    """The rows of cell type number `c`; None where there are too few of rows or donors."""
    return part_of(model, np.flatnonzero((model.types[:, c] == 1.0) & model.active_rows))


def score_directions(model: Model, design: DirectionDesign, two_sided: bool) -> dict[str, Tested]:
    """Score tests of every direction of a design, by name.

    Raises
    ------
    ConvergenceError
        The null model cannot be fitted.
    CTMMError
        Hardly any row has noise (:data:`~ctmm_formula.inference.score.ALIKE`).
    """
    at = slice(None) if design.rows is None else design.rows
    nu = model.nu[at]
    own = design.null.with_response(model.y[at], nu, None if model.nu2 is None else model.nu2[at])
    refuse_alike(nu[own.active_rows])
    noise = working_noise(nu, design.how, response_scale(own) ** 2)
    null = directed(own, noise, design)
    out = {}
    for d, direction in enumerate(design.directions):
        out[direction.name] = null.test(d, two_sided) if null.share[d] > NOTHING else NOT_THERE
    return out


@dataclass(frozen=True)
class Directed:
    """The null fitted under working noise, and what is left of the directions.

    Attributes
    ----------
    layout : Layout; found : Products; solved : Solved
    excess : ndarray, shape (n,), or None
        What the squares of the noise have beyond those of nu, where they are known.
    theta : ndarray, shape (K + Kr,)
    inner : ndarray, shape (D, E, E); weights : ndarray, shape (D, Kr)
        Efficient directions, of donors and of levels.
    expected, share : ndarray, shape (D,)
        Variance of the score, were the working noise that of the data, and the share of its
        information that the null's components leave.
    """

    layout: Layout
    found: Products
    solved: Solved
    excess: np.ndarray | None
    theta: np.ndarray
    inner: np.ndarray
    weights: np.ndarray
    expected: np.ndarray
    share: np.ndarray

    def form(self, d: int, sign: float = 1.0) -> tuple[float, Law]:
        """Value and law of a direction, or of its negative."""
        level = by_level(self.layout, sign * self.weights[d])
        own = loadings(sign * self.inner[d])
        law = law_of(self.layout, self.found, *own, self.solved.gain, level)
        value = sign * np.sum(self.inner[d] * self.solved.scores)
        return float(value + np.sum(level * self.solved.Zy**2)), law

    def test(self, d: int, two_sided: bool) -> Tested:
        """Both laws of one direction."""
        least = SILENT * self.expected[d]
        value, law = self.form(d)
        more = 0.0
        if self.excess is not None:
            more = 2.0 * float(np.square(self.diagonal(d)) @ self.excess)
        upper, mean, variance = tail(value, law, more, least)
        if math.isnan(upper):
            return NOT_THERE
        statistic = (value - mean) / math.sqrt(variance)
        if not two_sided:
            return Tested(statistic, math.nan, math.nan, upper)
        both = upper
        if upper > math.log(0.5):  # a small lower tail keeps its digits as an upper one
            value, law = self.form(d, -1.0)
            both = tail(value, law, more, least)[0]
        terms = self.terms(d)
        log = min(both + math.log(2.0), 0.0)
        return Tested(statistic, log, empirical(terms[:, None]), upper, terms)

    def terms(self, d: int) -> np.ndarray:
        """The score less its expectation, by independent units (U,)."""
        layout, (own, levels) = self.layout, self.second_moments
        donor = np.einsum("nc,cd,nd->n", self.solved.pull, self.inner[d], self.solved.pull)
        donor -= np.einsum("cd,ncd->n", self.inner[d], own)
        if not len(self.weights[d]):
            return donor
        weight = by_level(layout, self.weights[d])
        block = (weight * (self.solved.Zy**2 - levels)).sum(axis=1)
        return block + np.bincount(layout.block, donor, len(block))

    def diagonal(self, d: int) -> np.ndarray:
        """Diagonal of P Delta P, (n,).

        A column of P is S e - S B K B'S e in the row's donor, in others but the second part.
        """
        layout, D = self.layout, self.inner[d]
        SH, SB, HS, _, GS, _, K = self.columns
        donor = np.repeat(np.arange(len(layout.ptr) - 1), np.diff(layout.ptr))
        k = SB @ K
        own = SH - np.einsum("aeq,aq->ae", HS[donor], k)
        each = HS.transpose(0, 2, 1) @ (D @ HS)
        others = each.sum(axis=0) - each[donor]
        out = np.einsum("ae,ef,af->a", own, D, own) + np.einsum("aq,aqr,ar->a", k, others, k)
        if len(self.weights[d]):
            L = layout.component.size
            weight = by_level(layout, self.weights[d]).ravel()
            out += np.square(SB[:, :L] - k @ GS[:, :L]) @ weight
        return out

    @cached_property
    def columns(self) -> tuple[np.ndarray, ...]:
        """All levels and fixed effects B = [Z, X], Q columns.

        S H (n, E) and S B (n, Q); H'S B and H'M_0 B (N, E, Q); B'S B, B'M_0 B and K (Q, Q), of
        which a level without variance has none.
        """
        layout, found = self.layout, self.found
        (blocks, q), d = layout.component.shape, layout.slot.shape[1]
        p, N, L = len(found.Xy), len(layout.slot), blocks * q
        GS, GM = np.zeros((2, L + p, L + p))
        by_M, by_S = slice(2 * q, 2 * q + p), slice(2 * q + p, 2 * (q + p))
        GM[L:, L:], GS[L:, L:] = (found.fixed[:, by_M, y].sum(axis=0) for y in (by_M, by_S))
        for b in range(blocks if q else 0):
            at = np.r_[b * q : (b + 1) * q, L : L + p]
            first, second = np.r_[:q, 2 * q : 2 * q + p], np.r_[q : 2 * q, 2 * q + p : 2 * (q + p)]
            GS[np.ix_(at[:q], at)] = found.fixed[b][np.ix_(first[:q], second)]
            GM[np.ix_(at[:q], at)] = found.fixed[b][np.ix_(first[:q], first)]
            GS[L:, at[:q]], GM[L:, at[:q]] = GS[at[:q], L:].T, GM[at[:q], L:].T
        HS, HM = np.zeros((2, N, found.HB.shape[1], L + p))
        S = from_tiles(found.columns, tile(layout.ptr))
        SH, S = np.split(S, [found.HB.shape[1]], axis=1)
        SB = np.zeros((len(S), L + p))
        donor = np.repeat(np.arange(N), np.diff(layout.ptr))
        for k in range(d):
            there = np.flatnonzero(layout.slot[:, k] >= 0)
            column = layout.block[there] * q + layout.slot[there, k]
            HM[there, :, column] = found.HB[there, :, k]
            HS[there, :, column] = found.HB[there, :, d + k]
            rows = np.flatnonzero(layout.slot[donor, k] >= 0)
            own = layout.block[donor[rows]] * q + layout.slot[donor[rows], k]
            SB[rows, own] = S[rows, k]
        HM[:, :, L:] = found.HB[:, :, 2 * d : 2 * d + p]
        HS[:, :, L:] = found.HB[:, :, 2 * d + p : 2 * (d + p)]
        SB[:, L:] = S[:, d:]
        gain = np.concatenate([self.solved.gain.ravel(), np.zeros(p)])
        used = np.flatnonzero((gain > 0.0) | (np.arange(L + p) >= L))
        prior = np.where(used < L, 1.0 / np.where(gain[used] > 0.0, gain[used], 1.0), 0.0)
        K = np.zeros((L + p, L + p))
        K[np.ix_(used, used)] = np.linalg.inv(GS[np.ix_(used, used)] + np.diag(prior))
        return SH, SB, HS, HM, GS, GM, K

    @cached_property
    def second_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """H_i'P Sigma^ P H_i of donors (N, E, E), and z'P Sigma^ P z of levels (blocks, q).

        P = S - S B K B'S, Sigma^ the null's covariance with the measured noise, so that
        P Sigma^ P = P + P (Sigma^ - Sigma) P.
        """
        _, _, HS, HM, GS, GM, K = self.columns
        L = self.layout.component.size
        own = _moments(self.found.HM, HS, HM, GS, GM, K)
        levels = _moments(
            np.diag(GM)[:L, None, None], GS[:L, None, :], GM[:L, None, :], GS, GM, K
        )  # fmt: skip
        return own, levels.reshape(self.layout.component.shape)


def empirical(terms: np.ndarray) -> float:
    """Logarithm of the p value of the means of independent terms (U, r) of r directions.

    Hotelling's, two-sided: of one direction that of Student's t.  Directions that are combinations
    of others count once; NaN of few units, or where nothing varies.

    >>> x = np.arange(12.0)
    >>> round(math.exp(empirical(np.column_stack([x - 4.0, 4.0 - x]))), 4)  # one direction
    0.1774
    """
    U = len(terms)
    if U < _UNITS:
        return math.nan
    mean = terms.mean(axis=0)
    deviation = (terms - mean).std(axis=0, ddof=1)
    known = deviation > 0.0
    if not known.any():
        return math.nan
    scaled = (terms - mean)[:, known] / deviation[known]
    size, axes = np.linalg.eigh(scaled.T @ scaled / (U - 1))
    kept = size > _SAME * size[-1]
    r = int(kept.sum())
    if r > U // 3:
        return math.nan
    away = axes.T[kept] @ (mean[known] / deviation[known]) / np.sqrt(size[kept])
    F = U * float(away @ away) * (U - r) / ((U - 1) * r)
    return min(log_f_tail(F, r, U - r), 0.0)


def _moments(
    M: np.ndarray, S_B: np.ndarray, M_B: np.ndarray, GS: np.ndarray, GM: np.ndarray, K: np.ndarray
) -> np.ndarray:
    """F'P Sigma^ P F from F'M_0 F (N, e, e), F'S B and F'M_0 B (N, e, Q), B'S B, B'M_0 B."""
    SK = S_B @ K
    cross = (M_B - S_B) @ SK.transpose(0, 2, 1)
    whole = M - SK @ S_B.transpose(0, 2, 1) - cross - cross.transpose(0, 2, 1)
    return whole + SK @ (GM - GS) @ SK.transpose(0, 2, 1)


def directed(model: Model, noise: np.ndarray, design: DirectionDesign) -> Directed:
    """Fit the null under working noise, and find what of the directions it leaves."""
    K = len(model.basis)
    theta = fit(design.null.with_response(model.y, noise), "reml", Domain("nonnegative")).theta
    X = len(design.beside.basis) - K
    at = np.concatenate([theta[:K], np.zeros(X), theta[K:]])
    fisher = evaluate(design.beside.with_response(model.y, noise), at, "reml").expected
    kept, new = np.r_[0:K, K + X : len(at)], np.arange(K, K + X)
    mix = np.array([d.weights + d.scale @ theta[:K] for d in design.directions])
    cross = fisher[np.ix_(kept, new)] @ mix.T
    a = np.linalg.lstsq(fisher[np.ix_(kept, kept)], cross, rcond=1e-12)[0]
    whole = np.einsum("dx,xy,dy->d", mix, fisher[np.ix_(new, new)], mix)
    left = whole - np.einsum("kd,kd->d", cross, a)
    there = (whole > 0.0) & ~design.sizes.explained(mix)
    share = np.divide(left, whole, np.zeros(len(whole)), where=there)
    inner = np.tensordot(mix, design.beside.basis[K:], axes=1)
    inner -= np.tensordot(a[:K].T, model.basis, axes=1)
    layout = design.layout
    rows = layout.rows
    covariance = np.tensordot(theta[:K], model.basis, axes=1)
    excess = model.nu[rows] - noise[rows]
    own = noise[rows], excess, residual(model)[rows]
    found, solved = solved_sums(layout, covariance, theta[K:], *own)
    squares = None if model.nu2 is None else square_excess(model)[rows]
    return Directed(
        layout, found, solved, squares, theta, inner, -a[K:].T, 4.0 * left, share
    )  # fmt: skip
