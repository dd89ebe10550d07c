"""Cluster-robust covariance of the fixed effects and its small-sample tests.

Clusters are the independent units of a :class:`~ctmm_formula.engine.robust.RobustFit`: donors, or
blocks of donors joined by random effects.  With K = (X'SX)^-1, G_u = X_u'S_u X_u, s_u =
X_u'S_u (y_u - X_u b) and the bias-reduced linearisation CR2 (Bell & McCaffrey 2002) of the data
whitened by the working covariance,

    V_L = sum_u (e_u's_u)(e_u's_u)',   e_u = (I - K G_u)^-1/2 K L'

E V_L = L K L' exactly where the working covariance is the true one, and V_L is consistent in the
number of units whatever the truth.  The square root of I - K G_u is the one of root root' = K, so
no choice of coordinates enters, and it needs p x p matrices only, however large the unit is.

How much V_L varies is taken from the working covariance.  With d_u = e_u'G_u e_u, h_u = G_u e_u,
k_u = h_u'K h_u (q x q) and H_st = sum_u h_us h_ut' the covariances of the residuals of all pairs of
units sum up to

    Var(V_st) = sum_u (d_ss d_tt - d_ss k_tt - d_tt k_ss + d_st^2 - 2 d_st k_st)
                + tr(K H_st K H_st') + tr(K H_ts K H_ts)
    Var(tr V) = 2 sum_st (sum_u (d_st^2 - 2 d_st k_st) + tr(K H_ss K H_tt))

which is linear in the number of units.  A t test of one row has Satterthwaite's 2 E(V)^2 / Var(V)
degrees of freedom.  Several rows are tested by T^2 = (L b - c)' V^-1 (L b - c).

A matrix of q rows from little more than q units costs that most of its power, where the working
covariance has a few parameters.  So V moves towards it.  Of rows with L K L' = I, V is a factor
tr(V) / q times a shape, whose eigenvalues are off 1 by a mean square

    Lambda = lambda + kappa = sum_st Var(V_st) / q - phi,   phi = Var(tr V) / q^2

kappa of it is what the working covariance is off itself, as its positive components are estimates
with covariance W = 2 F^-1: with M_k = L (dK / dtheta_k) L'

    kappa = sum_kl W_kl (tr(M_k M_l) - tr(M_k) tr(M_l) / q) / q

and lambda is left for how far the two are apart, as an efficient estimate does not correlate with
its difference from another (Hausman 1978).  The factor stays, and the shape moves as if there were
q + 1 more units that follow the working covariance, as Lambda of a Wishart matrix is about q + 1
over its degrees of freedom:

    V <- (1 - w) V + w tr(V) / q I,   w = Lambda / (1 + Lambda)

The more units the less w; where the working covariance is wrong in more than a factor, V lies
between it and the truth, and comes closer with every unit.

This is a regularised Hotelling's T^2 (Chen, Paul, Prentice & Wang 2011).  The eigenvalues of a
shape off by lambda have the law of Marchenko & Pastur with that ratio, under which the weights of
T^2, the eigenvalues of V^-1, have the mean and excess of the mean square over the squared mean

    m = 2 / (1 + kappa + sqrt((1 + kappa)^2 + 4 lambda Lambda))
    mean = (1 + Lambda) m,   1 + excess = (1 + lambda m) / (m (1 + kappa + 2 lambda Lambda m))

Without moving both would be 1 / (1 - lambda), and for the working covariance's own part they are
1 / (1 - kappa): with both parts multiplied, T^2 has the mean and variance of q scale F on q and f
degrees of freedom,

    f = 4 + (q + 2) / excess,   scale = mean (1 - 2 / f)

and as its factor has 2 / phi of them, the denominator has 1 / (1 / f + phi / 2).  One row has
Lambda = 0 and is Satterthwaite's t.  Pustejovsky & Tipton's (2018) approximate Hotelling takes V
for a Wishart matrix with eta = q (q + 1) / sum_st Var(V_st) degrees of freedom, and as with theirs
there is no test where eta <= q - 1; a V that moved has not the small eigenvalues of such a matrix.

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
_MORE = 1.0 + 1e-9  # times q - 1: of q even units eta is that but for rounding
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
    df, scale, cov, note = joint(fit, L, null)
    if note:
        return _no_test(note)
    try:
        low = np.linalg.cholesky(cov)
    except np.linalg.LinAlgError:
        return _no_test(TOO_FEW)
    away = L @ fit.estimate.beta - null
    statistic = scale / q * float(np.square(np.linalg.solve(low, away)).sum())
    return ApproximateHotelling(statistic, q, df, float(special.fdtrc(q, df, statistic)), "")


def joint(
    fit: RobustFit, L: np.ndarray, null: np.ndarray | float = 0.0
) -> tuple[float, float, np.ndarray, str]:
    """What :func:`hotelling` is made of.

    Returns
    -------
    float : degrees of freedom of the denominator
    float : scale of F
    ndarray, shape (q, q) : covariance of L b by the noise halfway to where it is `null`
    str : why there is no test, and these are NaN; or ""
    """
    none = math.nan, math.nan, np.full((len(L), len(L)), math.nan)
    if fit.n_units < 2:
        return *none, ONE_UNIT
    away = L @ fit.estimate.beta - null
    df, scale, cov, wrong = _jointly(*_by_unit(fit, L), away, fit.moving, fit.components)
    return (*none, _WRONG[wrong]) if wrong else (df, scale, cov, "")


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
    cov, df, _, _, rests = _over_units(share, axes, turned, across, False)
    return cov, df, rests


@kept
def _jointly(share, axes, turned, across, away, moving, components):
    """df, scale of F and covariance (q, q) of L b by the noise halfway to where `away` (q,) is 0.

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
        return math.nan, math.nan, gram, _IS_DEPENDENT
    even, to_even = zeros((p, q)), zeros(q)  # rows with L K L' = I
    for s in range(q):
        size = math.sqrt(gram[s, s])
        for t in range(q):
            to_even[s] += turn[s, t] * away[t] / size
            for j in range(p):
                even[j, s] += across[j, t] * turn[s, t] / size
    cov, _, variance, of_trace, rests = _over_units(share, axes, turned, even, True)
    if rests:
        return math.nan, math.nan, gram, _RESTS
    shape = (variance - of_trace / q) / q
    kappa = min(_by_components(components, even), shape)
    if not (variance > 0.0 and _MORE * (q - 1) * variance < q * (q + 1) and kappa < 1.0):
        return math.nan, math.nan, gram, _HAS_FEW
    df, scale, w = _law(q, of_trace / q**2, shape, kappa)
    mean = 0.0
    for s in range(q):
        mean += cov[s, s] / q
    for s in range(q):
        for t in range(q):
            cov[s, t] *= 1.0 - w
        cov[s, s] += w * mean
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
    return df, scale, out, _DONE


@called
def _law(q, phi, shape, kappa):
    """Degrees of freedom and scale of F, and w; shape is Lambda."""
    apart = shape - kappa
    m = 2.0 / (1.0 + kappa + math.sqrt((1.0 + kappa) ** 2 + 4.0 * apart * shape))
    mean = (1.0 + shape) * m / (1.0 - kappa)
    square = (1.0 + apart * m) / (m * (1.0 + kappa + 2.0 * apart * shape * m)) / (1.0 - kappa)
    of_shape = (square - 1.0) / (4.0 * (square - 1.0) + q + 2.0)  # 1 / f
    scale = 1.0 / (mean * (1.0 - 2.0 * of_shape))
    return 1.0 / (of_shape + 0.5 * phi), scale, shape / (1.0 + shape)


@called
def _by_components(components, across):
    """Variance kappa of the shape of L K L' (q, q), as components are estimates; L K L' = I.

    across (p, q): rows of L root.
    """
    layout, solved, directions = components.layout, components.solved, components.directions
    R, p, d = layout.R, layout.p, layout.level.shape[1]
    tiles, m, q = layout.columns.shape[0], layout.columns.shape[2], across.shape[1]
    F, D = directions.shape
    rows, at_levels = zeros((p, q)), zeros((len(layout.level_comp), q))
    loads, v = aligned((m, q, LANES)), aligned((q, LANES))
    lanes, M = aligned((F, q, q, LANES)), zeros((F, q, q))  # dK / dphi_f, of donors in lanes
    for j in range(p):
        for k in range(p):
            for s in range(q):
                rows[j, s] += components.root[j, k] * across[k, s]
    for f in range(R):
        for s in range(q):
            for t in range(s + 1):
                store(lanes, (f, s, t), spread(0.0))
    for tile in range(tiles):
        for a in range(m):
            for s in range(q):
                on = spread(0.0)
                for j in range(p):
                    on += load(solved, (tile, j, a)) * rows[j, s]
                store(loads, (a, s), on)
        for f in range(R):
            for s in range(q):
                on = spread(0.0)
                for a in range(m):
                    on += load(layout.columns, (tile, f, a)) * load(loads, (a, s))
                store(v, s, on)
                for t in range(s + 1):
                    store(lanes, (f, s, t), load(lanes, (f, s, t)) + on * load(v, t))
        for b in range(d):
            for s in range(q):
                on = spread(0.0)
                for a in range(m):
                    on += load(layout.columns, (tile, R + p + 1 + b, a)) * load(loads, (a, s))
                store(v, s, on)
            for lane in range(LANES):
                i = tile * LANES + lane
                x = layout.level[i, b] if i < len(layout.level) else -1
                for s in range(q if x >= 0 else 0):
                    at_levels[x, s] += v[s, lane]
    for s in range(q):
        for t in range(s + 1):
            for f in range(R):
                M[f, s, t] = total(load(lanes, (f, s, t)))
            for x in range(len(at_levels)):
                M[R + layout.level_comp[x], s, t] += at_levels[x, s] * at_levels[x, t]
    kappa = 0.0
    for k in range(D):
        trace = 0.0
        for s in range(q):
            for t in range(s + 1):
                on = 0.0
                for f in range(F):
                    on += directions[f, k] * M[f, s, t]
                kappa += on * on * (1.0 if s == t else 2.0)
                trace += on if s == t else 0.0
        kappa -= trace * trace / q
    return kappa / q


@called
def _over_units(share, axes, turned, across, together):
    """V_L, the rows' df (q,), variances of V_L and of its trace, whether a row rests on one unit.

    In the axes of each unit's share of X'SX, with K = root root', root'G_u root = T T',
    T'T = diag(l) and loads z = T' root' L' (k, q),

        e_u = root (root'L' + T z / (sqrt(1 - l) + 1 - l)),   root'h_u = T (1 - l)^-1/2 z

    Where l = 1 the generalised root leaves the axis out: e_u has T z taken off and h_u nothing.

    Parameters
    ----------
    share : (T, k, LANES), l; axes : (T, p, k, LANES), T; turned : (T, p, LANES), root's_u
    across : (p, q)
    together : bool
        Whether variances of all of V_L are asked for, or those of the rows one by one.
    """
    tiles, most = share.shape[0], share.shape[1]
    p, q = across.shape
    cov, h = zeros((q, q)), aligned((q * p, tiles, LANES))
    lanes, z, g = aligned((q, q, LANES)), aligned((most, q, LANES)), aligned((q, LANES))
    scale, inflate, alone = aligned((most, LANES)), aligned((most, LANES)), aligned((most, LANES))
    sums = aligned((3, q, LANES))  # what is expected, its square, how much rests on units alone
    varying, along_trace = spread(0.0), spread(0.0)
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
                    along_trace += both
                else:
                    along_trace += 2.0 * both
            for j in range(p):
                on = spread(0.0)
                for i in range(most):
                    on += load(axes, (tile, j, i)) * load(z, (i, s))
                store(h, (s * p + j, tile), on)
        varying += trace * trace_left
    of_trace = total(along_trace)
    variance, H, square = total(varying) + of_trace, empty((p, p)), empty(q)
    own = zeros((p, p))  # sum of H_ss
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
                        own[a, b] += H[a, b] if s == t else 0.0
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
    for a in range(p):
        for b in range(p):
            of_trace += own[a, b] * own[a, b]
    return cov, df, variance, 2.0 * of_trace, rests
