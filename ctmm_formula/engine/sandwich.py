"""Cluster-robust covariance of the fixed effects and its small-sample tests.

Clusters are the independent units of a :class:`~ctmm_formula.engine.robust.RobustFit`: donors, or
blocks of donors joined by random effects.  With K = (X'SX)^-1, G_u = X_u'S_u X_u, s_u =
X_u'S_u (y_u - X_u b) and the bias-reduced linearisation CR2 (Bell & McCaffrey 2002) of the data
whitened by the working covariance,

    V_L = sum_u (e_u's_u)(e_u's_u)',   e_u = (I - K G_u)^-1/2 K L'

E V_L = L K L' exactly where the working covariance is the true one, and V_L is consistent in the
number of units whatever the truth.  The square root of I - K G_u is the one of root root' = K, so
no choice of coordinates enters, and it needs p x p matrices only, however large the unit is.

The distribution of V_L is that of a Wishart matrix with as many degrees of freedom as give its
entries the variance they have under the working covariance: for one row of L Satterthwaite's
2 E(V)^2 / Var(V), for q rows Pustejovsky & Tipton's (2018) eta = q (q + 1) / sum_st Var(V_st) of
rows with E V_L = I, and

    F = (eta - q + 1) / (eta q) (L b - c)' V_L^-1 (L b - c)   on q and eta - q + 1

(approximate Hotelling, "HTZ").  With d_u = e_u'G_u e_u, h_u = G_u e_u, k_u = h_u'K h_u (q x q) and
H_st = sum_u h_us h_ut' the covariances of the residuals of all pairs of units sum up to

    Var(V_st) = sum_u (d_ss d_tt - d_ss k_tt - d_tt k_ss + d_st^2 - 2 d_st k_st)
                + tr(K H_st K H_st') + tr(K H_ts K H_ts)

which is linear in the number of units.

The noise is that which the pairs have where the hypothesis holds
(:mod:`ctmm_formula.engine.moving_noise`): with rows that have L K L' = I and L M L' there, V_L
becomes (L M L')^1/2 V_L (L M L')^1/2.  An interval holds the values that its test does not reject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special

from .moving_noise import MovingNoise
from .robust import ONE_UNIT, RobustFit, Units

_TOUCHES = 1e-8  # share of a row's variance, from which it rests on what one unit alone determines
_DEPENDENT = 1e-13  # smallest eigenvalue of L K L', next to the largest
_STEPS, _CLOSE = 200, 1e-10  # most steps to the end of an interval, and the last, relative
ALONE = "a fixed effect rests on one donor or block alone: its variance cannot be estimated"
TOO_FEW = "too few independent donors or blocks for this many hypotheses"


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Linear combinations L b with their cluster-robust covariance.

    Attributes
    ----------
    value : ndarray, shape (q,); cov : ndarray, shape (q, q)
    df : ndarray, shape (q,)
        Satterthwaite degrees of freedom of each row's t statistic.
    note : str
        Why `cov` and `df` are NaN; empty if they are not.
    moving : MovingNoise; across : ndarray, shape (p, q)
        How the noise moves with hypotheses, and the rows in its axes.
    """

    value: np.ndarray
    cov: np.ndarray
    df: np.ndarray
    note: str
    moving: MovingNoise
    across: np.ndarray

    def variances(self, null: np.ndarray | float = 0.0) -> np.ndarray:
        """Variance of each row where it is `null`, (q,)."""
        own = np.diag(self.cov)
        size = np.sqrt(np.square(self.across).sum(axis=0))
        if not size.all():
            return own
        return own * self.moving.singly((self.across / size).T, (self.value - null) / size)

    def statistics(self, null: np.ndarray | float = 0.0) -> np.ndarray:
        """t of each row, (q,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return (self.value - null) / np.sqrt(self.variances(null))

    def pvalues(self, null: np.ndarray | float = 0.0) -> np.ndarray:
        """Two-sided t tests of L b = null, row by row, (q,)."""
        return 2.0 * special.stdtr(self.df, -np.abs(self.statistics(null)))

    def intervals(self, level: float = 0.95) -> np.ndarray:
        """Confidence intervals (q, 2) of L b: the values that :meth:`pvalues` does not reject."""
        reach = special.stdtrit(self.df, 0.5 * (1.0 + level))
        endless = np.isinf(reach)  # a level of 1, to rounding
        reach, ends = np.where(endless, 0.0, reach), []
        for side in (-1.0, 1.0):
            distance = reach * np.sqrt(np.diag(self.cov))
            for _ in range(_STEPS):
                # steps to reach sqrt(variances) itself may overshoot, half of them cannot
                there = reach * np.sqrt(self.variances(self.value + side * distance))
                step = 0.5 * (there - distance)
                distance = distance + step
                if not (np.abs(step) > _CLOSE * distance).any():
                    break
            ends.append(self.value + side * np.where(endless, np.inf, distance))
        return np.column_stack(ends)


@dataclass(frozen=True)
class ApproximateHotelling:
    """Test of L b = c by an approximate Hotelling T^2; NaN with the reason in `note`.

    Attributes
    ----------
    statistic : float
        F.
    df_num, df_denom : float
    pvalue : float
    note : str
    """

    statistic: float
    df_num: float
    df_denom: float
    pvalue: float
    note: str


def covariance(fit: RobustFit) -> np.ndarray:
    """CR2 covariance of b, (p, p); NaN where an effect rests on one unit.  V_L is L V L'."""
    p = len(fit.back)
    part = _loads(fit, np.eye(p))
    return np.full((p, p), math.nan) if isinstance(part, str) else part.cov()


def contrasts(fit: RobustFit, L: np.ndarray) -> Contrasts:
    """L b with its CR2 covariance and the degrees of freedom of every row.

    Parameters
    ----------
    fit : RobustFit
    L : ndarray, shape (q, p), about the columns of ``model.X``
    """
    value, q = L @ fit.estimate.beta, len(L)
    part, across = _loads(fit, L), (L @ fit.back @ fit.state.root).T
    if isinstance(part, str):
        none = np.full((q, q), math.nan)
        return Contrasts(value, none, np.full(q, math.nan), part, fit.moving, across)
    cov = part.cov()
    d, k, h = part.variances()
    own = np.arange(q)
    expected = (d - k)[:, own, own].sum(axis=0)
    H = np.einsum("uas,ubs->sab", h, h)
    variance = 2.0 * ((d * (d - 2.0 * k))[:, own, own].sum(axis=0) + np.square(H).sum(axis=(1, 2)))
    # where nothing is left that could vary there are no degrees of freedom
    df = np.divide(2.0 * expected**2, variance, np.full(q, math.nan), where=variance > 0.0)
    return Contrasts(value, cov, df, "", fit.moving, across)


def hotelling(
    fit: RobustFit, L: np.ndarray, null: np.ndarray | float = 0.0
) -> ApproximateHotelling:
    """Test L b = null.

    Parameters
    ----------
    fit : RobustFit
    L : ndarray, shape (q, p), of full row rank, about the columns of ``model.X``
    null : ndarray, shape (q,), or float
    """
    q = len(L)
    df, cov, note = joint(fit, L, null)
    if note:
        return _no_test(note)
    try:
        low = np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        return _no_test(TOO_FEW)
    away = L @ fit.estimate.beta - null
    distance = float(np.square(np.linalg.solve(low, away)).sum())
    statistic = df / ((df + q - 1.0) * q) * distance
    return ApproximateHotelling(statistic, q, df, float(special.fdtrc(q, df, statistic)), "")


def joint(
    fit: RobustFit, L: np.ndarray, null: np.ndarray | float = 0.0
) -> tuple[float, np.ndarray, str]:
    """What :func:`hotelling` is made of.

    Returns
    -------
    float : degrees of freedom eta - q + 1
    ndarray, shape (q, q) : covariance of L b where it is `null`
    str : why there is no test, and these are NaN; or ""
    """
    found = _denominator(fit, L)
    if isinstance(found, str):
        return math.nan, np.full((len(L), len(L)), math.nan), found
    df, even, part = found
    away = even.T @ (L @ fit.estimate.beta - null)
    size, axes = np.linalg.eigh(fit.moving.jointly(part.across.T, away))
    # of the rows themselves: they are even'^-1 times the even ones
    turn = np.linalg.solve(even.T, (axes * np.sqrt(size)) @ axes.T)
    return df, turn @ part.cov() @ turn.T, ""


def _denominator(fit: RobustFit, L: np.ndarray) -> tuple[float, np.ndarray, _Loads] | str:
    """Degrees of freedom, the turn (q, q) of the rows to E V_L = I, and these by unit."""
    q = len(L)
    turn = L @ fit.back @ fit.state.root
    size, axes = np.linalg.eigh(turn @ turn.T)
    if not size[0] > _DEPENDENT * size[-1]:
        return "the hypotheses are linearly dependent"
    even = axes / np.sqrt(size)
    part = _loads(fit, even.T @ L)
    if isinstance(part, str):
        return part
    d, k, h = part.variances()
    ds, ks = np.einsum("uss->us", d), np.einsum("uss->us", k)
    # sums over all s and t at once
    within = (ds.sum(axis=1) * (ds - 2.0 * ks).sum(axis=1)).sum() + (d * (d - 2.0 * k)).sum()
    flat = h.reshape(len(h), -1)
    H = (flat.T @ flat).reshape(*h.shape[1:], *h.shape[1:])  # [a, s, b, t]
    across = np.square(H).sum() + (H * H.transpose(2, 1, 0, 3)).sum()
    df = q * (q + 1) / (within + across) - q + 1.0
    return (df, even, part) if df > 0.0 else TOO_FEW


def _no_test(note: str) -> ApproximateHotelling:
    return ApproximateHotelling(math.nan, math.nan, math.nan, math.nan, note)


@dataclass(frozen=True)
class _Loads:
    """Rows of L in the axes of each unit's share of X'SX.

    With K = root root', root'G_u root = T T', T'T = diag(l) and loads z = T' root' L' (U, k, q)

        e_u = root (root'L' + T z / (sqrt(1 - l) + 1 - l)),   root'h_u = T (1 - l)^-1/2 z

    Where l = 1 the generalised root leaves the axis out: e_u has T z taken off and h_u nothing.
    """

    units: Units
    across: np.ndarray  # root'L', (p, q)
    loads: np.ndarray

    @cached_property
    def alone(self) -> np.ndarray:
        """Axes in which a fixed effect rests on the unit, (U, k)."""
        return self.units.share == 1.0

    @cached_property
    def left(self) -> np.ndarray:
        """1 - l, and 1 where that is zero."""
        return np.where(self.alone, 1.0, 1.0 - self.units.share)

    def cov(self) -> np.ndarray:
        """V_L, shape (q, q)."""
        units = self.units
        turned = units.score @ units.root
        scale = np.where(self.alone, -1.0, 1.0 / (np.sqrt(self.left) + self.left))
        along = (turned[:, None, :] @ units.axes) * scale[:, None, :]
        g = turned @ self.across + (along @ self.loads)[:, 0]
        return g.T @ g

    def variances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """d, k (U, q, q) and root'h (U, p, q)."""
        inflate = np.where(self.alone, 0.0, 1.0 / np.sqrt(self.left))
        scaled = inflate[..., None] * self.loads
        across = scaled.swapaxes(1, 2)
        k = across @ (self.units.share[..., None] * scaled)
        return across @ scaled, k, self.units.axes @ scaled


def _loads(fit: RobustFit, L: np.ndarray) -> _Loads | str:
    """Rows of L by unit, or why there is no covariance of them."""
    if fit.n_units < 2:
        return ONE_UNIT
    units = fit.units
    across = units.root.T @ (L @ fit.back).T
    part = _Loads(units, across, units.axes.swapaxes(1, 2) @ across)
    if part.alone.any():
        resting = np.square(np.where(part.alone[..., None], part.loads, 0.0)).sum(axis=1)
        if (resting > _TOUCHES * np.square(across).sum(axis=0)).any():
            return ALONE
    return part
