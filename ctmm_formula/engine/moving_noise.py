"""Covariance of fixed effects between estimate and hypothesis, for noise that moves with the mean.

The noise of counts rises with their mean.  A mean that comes out too small by chance brings noise
that is too small with it, one that comes out too large noise that is too large: what is divided by
a variance at the estimates is skewed, the more so the fewer counts there are.  Divided by what the
variance were if the hypothesis L b = c held it is skewed the other way, and tests lose power where
a mean is lower than that.  Halfway (:data:`WAY`) is where a square root would put Poisson counts,
whose variance it makes constant.  With n_ic cells of a pair, s_c^2 their pooled
variance and residuals r_ic, the variance between cells moves with the mean by

    slope = WAY sum n r (n nu - s^2) / sum n r^2

over all pairs on the way there, and the hypothesis moves the pair's mean by x_ic'(b0 - b), so that

    b0 = b - M L'(L M L')^-1 (L b - c)
    moved = slope x'(b0 - b) / n          (never below -:data:`MOST` of the working noise)
    M = K + K X'S diag(moved) S X K       K = (X'SX)^-1, S the inverse working covariance

:data:`TIMES` times, from M = K.  L M L' next to L K L' is how much the covariance of L b changes.
Where numbers of cells are not known nothing moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kernels import cholesky, cholesky_solve, empty, zeros
from .noise import COUNTED, Pooling
from .options import called, kept
from .sweeps import State
from .unit_sums import Layout

WAY = 0.5
"""Share of the way from the estimates to a hypothesis on which the noise is taken."""

TIMES = 3
"""As a rule the last one moves a variance by a few hundredths of itself."""

MOST = 0.8
"""A hypothesis takes away no more of a pair's noise."""


class MovingNoise(NamedTuple):
    """How noise moves with hypotheses about the fixed effects, in axes with (X'SX)^-1 = I.

    Attributes
    ----------
    columns, solved : ndarray, shape (n, p)
        Fixed effects X root, and S X root.
    slope : float
        Of the variance between cells on the mean, times :data:`WAY`; 0 where nothing moves.
    cells, noise : ndarray, shape (n,)
        Numbers of cells and working noise.
    """

    columns: np.ndarray
    solved: np.ndarray
    slope: float
    cells: np.ndarray
    noise: np.ndarray

    def singly(self, rows: np.ndarray, away: np.ndarray) -> np.ndarray:
        """Variance (q,) of each row (q, p) of length 1 under its own hypothesis, `away` (q,)."""
        if self.slope == 0.0:
            return np.ones(len(rows))
        across = np.ascontiguousarray(rows.T)
        return _each(*self, across, np.asarray(away, dtype=float))


@kept
def _each(columns, solved, slope, cells, noise, across, away):
    """Variances (q,) of rows `across` (p, q), each `away` from its hypothesis (q,)."""
    cov = covariance_under(columns, solved, slope, cells, noise, across, away, False)
    out = empty(len(cov))
    for s in range(len(cov)):
        out[s] = cov[s, s]
    return out


@called
def covariance_under(columns, solved, slope, cells, noise, across, away, together):
    """Covariance (q, q) of rows `across` (p, q), jointly `away` (q,) or each by itself.

    Orthonormal rows, or of length 1; each by itself has the diagonal only.
    """
    n, p = columns.shape
    q = across.shape[1]
    moved, out = across.copy(), zeros((q, q))
    low, shift = empty((q, q)), zeros((p, q))
    load, step = empty(q), empty(q)
    for time in range(TIMES + 1):
        for s in range(q):
            for t in range(s + 1):
                total = 0.0
                for j in range(p):
                    total += 0.5 * (across[j, s] * moved[j, t] + across[j, t] * moved[j, s])
                out[s, t] = out[t, s] = total
        if time == TIMES:
            break
        for s in range(q):
            step[s] = away[s]
            for t in range(q):
                low[s, t] = out[s, t]
        if together:
            cholesky(low, q)
            cholesky_solve(low, q, step)
        for j in range(p):
            shift[j, 0] = 0.0
            for s in range(q):
                if together:
                    shift[j, 0] -= moved[j, s] * step[s]
                else:
                    shift[j, s] = -moved[j, s] * away[s] / out[s, s]
        for j in range(p):
            for s in range(q):
                moved[j, s] = across[j, s]
        for a in range(n):
            least = -MOST * noise[a]
            for s in range(q):
                load[s] = more = 0.0
                for j in range(p):
                    load[s] += solved[a, j] * across[j, s]
                    more += columns[a, j] * shift[j, 0 if together else s]
                load[s] *= max(slope / cells[a] * more, least)
            for j in range(p):
                for s in range(q):
                    moved[j, s] += solved[a, j] * load[s]
    return out


def moving_noise(
    layout: Layout,
    how: Pooling,
    cells: np.ndarray,
    state: State,
    inputs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> MovingNoise:
    """How the noise of a fit moves.

    Parameters
    ----------
    layout : Layout; how : Pooling; cells : ndarray, shape (T, m, LANES)
    state : State
        Of the fit.
    inputs : tuple of ndarray, shape (T, m, LANES)
        Working noise, measured noise and residual before the fit.
    """
    R, p = layout.R, layout.p
    noise, nu, start = (part.ravel() for part in inputs)
    n = cells.ravel()
    columns = _by_row(layout.columns[:, R : R + p])
    slope = 0.0
    if how.weights == COUNTED and nu.any():
        r = start - columns @ state.beta
        size = float(n @ np.square(r))
        slope = WAY * float((n * r) @ (n * (nu - noise))) / size if size > 0.0 else 0.0
    solved = _by_row(state.solved[:, :p])
    if len(layout.level_comp):
        solved = solved - _through_levels(layout, state)
    return MovingNoise(columns @ state.root, solved @ state.root, slope, n, noise)


def _by_row(columns: np.ndarray) -> np.ndarray:
    """(T, k, m, LANES) as (T m LANES, k), rows in the order of (T, m, LANES)."""
    k = columns.shape[1]
    return columns.transpose(0, 2, 3, 1).reshape(-1, k)


def _through_levels(layout: Layout, state: State) -> np.ndarray:
    """What levels of random effects take off the donors' own Sigma_i^-1 X, (T m LANES, p)."""
    p, (T, _, m, lanes) = layout.p, state.solved.shape
    out = np.zeros((T, m, lanes, p))
    weights = np.zeros((T * lanes, p))
    for a in range(layout.level.shape[1]):
        there = layout.level[:, a] >= 0
        weights[: len(there)] = np.where(there[:, None], state.through[layout.level[:, a], :p], 0.0)
        out += state.solved[:, p + a][..., None] * weights.reshape(T, 1, lanes, p)
    return out.reshape(-1, p)
