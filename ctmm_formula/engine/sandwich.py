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

A matrix of q rows from little more than q units costs a joint test most of its power, where the
working covariance has a few parameters.  So V is moved towards what that says of it, as it would be
by q + 1 more units that follow it (as many as give an inverse Wishart matrix a mean), up to a
factor that all rows share: of rows with E V = I

    V <- (1 - w) V + w tr(V) / q I,   w = (q + 1) / (eta + q + 1)
    eta <- eta q / (1 + (1 - w)^2 (q - 1))

All of Var(V_st) sums up to q (q + 1) / eta.  Were a factor all that the working covariance does not
know, 2 / eta of it would not shrink by (1 - w)^2; were it the variance of every row, 2 q / eta;
taken is what lies halfway, (q + 1) / eta.  The more units the less w; of one row nothing moves.
Where the working covariance is wrong in more than variances, V lies between it and the truth, and
comes closer with every unit.

The noise is that which the pairs have halfway to where the hypothesis holds
(:mod:`ctmm_formula.engine.moving_noise`): with rows that have L K L' = I and L M L' there, V_L
becomes (L M L')^1/2 V_L (L M L')^1/2.  An interval holds the values that its test does not reject.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from .kernels import empty, zeros
from .lanes import aligned, load, spread, store, total
from .model import LANES
from .moving_noise import MovingNoise, covariance_under
from .options import called, kept
from .robust import ONE_UNIT, RobustFit
from .symmetric import rotate

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
        endless = np.isinf(reach) | ((level == 1.0) & (self.df > 0))  # NaN before scipy 1.15
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
    part = _spread(fit, np.eye(p))
    return np.full((p, p), math.nan) if isinstance(part, str) else part.cov


def contrasts(fit: RobustFit, L: np.ndarray) -> Contrasts:
    """L b with its CR2 covariance and the degrees of freedom of every row.

    Parameters
    ----------
    fit : RobustFit
    L : ndarray, shape (q, p), about the columns of ``model.X``
    """
    value, q = L @ fit.estimate.beta, len(L)
    part = _spread(fit, L)
    if isinstance(part, str):
        none, across = np.full((q, q), math.nan), _in_axes(fit, L)
        return Contrasts(value, none, np.full(q, math.nan), part, fit.moving, across)
    return Contrasts(value, part.cov, part.df, "", fit.moving, part.across)


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
    ndarray, shape (q, q) : covariance of L b by the noise halfway to where it is `null`
    str : why there is no test, and these are NaN; or ""
    """
    none = math.nan, np.full((len(L), len(L)), math.nan)
    if fit.n_units < 2:
        return *none, ONE_UNIT
    away = L @ fit.estimate.beta - null
    df, cov, wrong = _jointly(*_by_unit(fit, L), away, fit.moving)
    return (*none, _WRONG[wrong]) if wrong else (df, cov, "")


def _no_test(note: str) -> ApproximateHotelling:
    return ApproximateHotelling(math.nan, math.nan, math.nan, math.nan, note)


class _Spread(NamedTuple):
    """Rows of L over all units: across (p, q) root'L'; cov (q, q) V_L; df (q,) of each row."""

    across: np.ndarray
    cov: np.ndarray
    df: np.ndarray


def _in_axes(fit: RobustFit, L: np.ndarray) -> np.ndarray:
    """root'L', (p, q)."""
    return np.ascontiguousarray((L @ fit.back @ fit.state.root).T)


def _by_unit(
    fit: RobustFit, L: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shares, axes and scores of units, and root'L' (p, q)."""
    return *fit.units, _in_axes(fit, L)


def _spread(fit: RobustFit, L: np.ndarray) -> _Spread | str:
    """Rows of L over units, or why there is no covariance of them."""
    if fit.n_units < 2:
        return ONE_UNIT
    given = _by_unit(fit, L)
    cov, df, rests = _each(*given)
    return ALONE if rests else _Spread(given[-1], cov, df)


_DONE, _IS_DEPENDENT, _RESTS, _HAS_FEW = 0, 1, 2, 3
_WRONG = {
    _IS_DEPENDENT: "the hypotheses are linearly dependent",
    _RESTS: ALONE,
    _HAS_FEW: TOO_FEW,
}


@kept
def _each(share, axes, turned, across):
    """V_L (q, q), df of every row (q,), and whether one rests on one unit alone."""
    cov, df, _, rests = _over_units(share, axes, turned, across, False)
    return cov, df, rests


@kept
def _jointly(share, axes, turned, across, away, moving):
    """df and covariance (q, q) of L b, `away` (q,) from the hypothesis, by the noise halfway to it.

    The last is how it went: :data:`_DONE`, or what is wrong.
    """
    p, q = across.shape
    gram, turn = zeros((q, q)), empty((q, q))
    for s in range(q):
        for t in range(q):
            for j in range(p):
                gram[s, t] += across[j, s] * across[j, t]
    rotate(gram, turn)
    least, most = math.inf, 0.0
    for s in range(q):
        least, most = min(least, gram[s, s]), max(most, gram[s, s])
    if not least > _DEPENDENT * most:
        return math.nan, gram, _IS_DEPENDENT
    even, to_even = zeros((p, q)), zeros(q)  # rows with L K L' = I
    for s in range(q):
        size = math.sqrt(gram[s, s])
        for t in range(q):
            to_even[s] += turn[s, t] * away[t] / size
            for j in range(p):
                even[j, s] += across[j, t] * turn[s, t] / size
    cov, _, variance, rests = _over_units(share, axes, turned, even, True)
    if rests:
        return math.nan, gram, _RESTS
    eta = q * (q + 1) / variance
    if not eta > q - 1.0:
        return math.nan, gram, _HAS_FEW
    left = eta / (eta + q + 1.0)  # 1 - w
    eta *= q / (1.0 + left * left * (q - 1))
    mean = 0.0
    for s in range(q):
        mean += cov[s, s] / q
    for s in range(q):
        for t in range(q):
            cov[s, t] *= left
        cov[s, s] += (1.0 - left) * mean
    back = zeros((q, q))  # the rows themselves are turn' size^1/2 times the even ones
    if moving.slope == 0.0:
        for s in range(q):
            for t in range(q):
                back[t, s] = turn[s, t] * math.sqrt(gram[s, s])
    else:
        M = covariance_under(moving, even, to_even)
        to = empty((q, q))
        rotate(M, to)
        for s in range(q):
            for t in range(q):
                root = 0.0
                for k in range(q):
                    root += to[k, s] * math.sqrt(M[k, k]) * to[k, t]
                for k in range(q):
                    back[k, t] += turn[s, k] * math.sqrt(gram[s, s]) * root
    out = zeros((q, q))
    for s in range(q):
        for t in range(q):
            along = 0.0
            for k in range(q):
                along += back[s, k] * cov[k, t]
            for k in range(q):
                out[s, k] += along * back[k, t]
    return eta - q + 1.0, out, _DONE


@called
def _over_units(share, axes, turned, across, together):
    """V_L (q, q), the rows' df (q,), the variance of V_L, whether a row rests on one unit.

    In the axes of each unit's share of X'SX, with K = root root', root'G_u root = T T',
    T'T = diag(l) and loads z = T' root' L' (k, q),

        e_u = root (root'L' + T z / (sqrt(1 - l) + 1 - l)),   root'h_u = T (1 - l)^-1/2 z

    Where l = 1 the generalised root leaves the axis out: e_u has T z taken off and h_u nothing.

    Parameters
    ----------
    share : (T, k, LANES), l; axes : (T, p, k, LANES), T; turned : (T, p, LANES), root's_u
    across : (p, q)
    together : bool
        Whether all entries of V_L are asked for, or the rows one by one.
    """
    tiles, most = share.shape[0], share.shape[1]
    p, q = across.shape
    cov, h = zeros((q, q)), aligned((q * p, tiles, LANES))
    lanes, z, g = aligned((q, q, LANES)), aligned((most, q, LANES)), aligned((q, LANES))
    scale, inflate, alone = aligned((most, LANES)), aligned((most, LANES)), aligned((most, LANES))
    sums = aligned((3, q, LANES))  # what is expected, its square, how much rests on units alone
    varying = spread(0.0)
    for s in range(q):
        for u in range(q):
            store(lanes, (s, u), spread(0.0))
        for i in range(3):
            store(sums, (i, s), spread(0.0))
    for tile in range(tiles):
        for s in range(q):
            away = spread(0.0)
            for j in range(p):
                away += load(turned, (tile, j)) * across[j, s]
            store(g, s, away)
        for i in range(most):
            for lane in range(LANES):
                left = 1.0 - share[tile, i, lane]
                alone[i, lane] = 1.0 if left == 0.0 else 0.0
                scale[i, lane] = -1.0 if left == 0.0 else 1.0 / (math.sqrt(left) + left)
                inflate[i, lane] = 0.0 if left == 0.0 else 1.0 / math.sqrt(left)
            along = spread(0.0)
            for j in range(p):
                along += load(turned, (tile, j)) * load(axes, (tile, j, i))
            for s in range(q):
                on = load(axes, (tile, 0, i)) * across[0, s]
                for j in range(1, p):
                    on += load(axes, (tile, j, i)) * across[j, s]
                store(g, s, load(g, s) + load(scale, i) * along * on)
                store(sums, (2, s), load(sums, (2, s)) + load(alone, i) * on * on)
                store(z, (i, s), on * load(inflate, i))
        trace, trace_left = spread(0.0), spread(0.0)
        for s in range(q):
            for t in range(s + 1):
                store(lanes, (s, t), load(lanes, (s, t)) + load(g, s) * load(g, t))
                d, k = spread(0.0), spread(0.0)
                for i in range(most):
                    both = load(z, (i, s)) * load(z, (i, t))
                    d += both
                    k += load(share, (tile, i)) * both
                both = d * (d - 2.0 * k)
                if s == t:
                    store(sums, (0, s), load(sums, (0, s)) + d - k)
                    store(sums, (1, s), load(sums, (1, s)) + both)
                    trace += d
                    trace_left += d - 2.0 * k
                    varying += both
                else:
                    varying += 2.0 * both
            for j in range(p):
                on = spread(0.0)
                for i in range(most):
                    on += load(axes, (tile, j, i)) * load(z, (i, s))
                store(h, (s * p + j, tile), on)
        varying += trace * trace_left
    variance, H, square = total(varying), empty((p, p)), empty(q)
    for s in range(q):
        square[s] = total(load(sums, (1, s)))
        for t in range(s + 1):
            cov[s, t] = cov[t, s] = total(load(lanes, (s, t)))
            if t == s or together:
                straight = turn = 0.0
                for a in range(p):
                    for b in range(p):
                        on = spread(0.0)
                        for tile in range(tiles):
                            on += load(h, (s * p + a, tile)) * load(h, (t * p + b, tile))
                        H[a, b] = total(on)
                for a in range(p):
                    for b in range(p):
                        straight += H[a, b] * H[a, b]
                        turn += H[a, b] * H[b, a]
                variance += (straight + turn) * (1.0 if s == t else 2.0)
                if s == t:
                    square[s] += straight
    df, rests = np.full(q, math.nan), False
    for s in range(q):
        size = 0.0
        for j in range(p):
            size += across[j, s] * across[j, s]
        rests = rests or total(load(sums, (2, s))) > _TOUCHES * size
        # where nothing is left that could vary there are no degrees of freedom
        if square[s] > 0.0:
            df[s] = total(load(sums, (0, s))) ** 2 / square[s]
    return cov, df, variance if together else math.nan, rests
