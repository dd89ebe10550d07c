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
from .lanes import aligned, larger, load, spread, store, total
from .model import LANES
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
    """How noise moves with hypotheses about the fixed effects.

    Attributes
    ----------
    columns : ndarray, shape (T, k, m, LANES)
        Fixed effects X among others, from column R.
    R : int
    solved : ndarray, shape (T, k', m, LANES)
        S X, in the first p columns.
    root : ndarray, shape (p, p)
        root root' = (X'SX)^-1.
    slope : float
        Of the variance between cells on the mean, times :data:`WAY`; 0 where nothing moves.
    cells, noise : ndarray, shape (T, m, LANES)
        Numbers of cells and working noise.
    """

    columns: np.ndarray
    R: int
    solved: np.ndarray
    root: np.ndarray
    slope: float
    cells: np.ndarray
    noise: np.ndarray

    def singly(self, rows: np.ndarray, away: np.ndarray) -> np.ndarray:
        """Variance (q,) of each row (q, p) of length 1 under its own hypothesis, `away` (q,).

        Rows are those of L root.
        """
        if self.slope == 0.0:
            return np.ones(len(rows))
        return _singly(self, np.ascontiguousarray(rows.T), np.asarray(away, dtype=float))


@kept
def _singly(moving, across, away):
    """Variances (q,) of rows `across` (p, q), each `away` from its hypothesis (q,)."""
    p, q = across.shape
    out, row, distance = empty(q), empty((p, 1)), empty(1)
    for s in range(q):
        distance[0] = away[s]
        for j in range(p):
            row[j, 0] = across[j, s]
        out[s] = covariance_under(moving, row, distance)[0, 0]
    return out


@called
def covariance_under(moving, across, away):
    """Covariance (q, q) of orthonormal rows `across` (p, q) of L root, jointly `away` (q,)."""
    columns, solved, cells, noise = moving.columns, moving.solved, moving.cells, moving.noise
    tiles, m = cells.shape[0], cells.shape[1]
    p, q = across.shape
    loads, change = aligned((tiles, m, q, LANES)), aligned((tiles, m, LANES))  # S X root across
    rows, out, low = zeros((p, q)), zeros((q, q)), empty((q, q))
    step, moved, turned, shift = empty(q), empty(p), empty(p), empty(p)
    for j in range(p):
        for k in range(p):
            for s in range(q):
                rows[j, s] += moving.root[j, k] * across[k, s]
    for s in range(q):
        for t in range(q):
            for j in range(p):
                out[s, t] += across[j, s] * across[j, t]
    own = out.copy()
    for t in range(tiles):
        for a in range(m):
            store(change, (t, a), spread(0.0))
            for s in range(q):
                on = spread(0.0)
                for j in range(p):
                    on += load(solved, (t, j, a)) * rows[j, s]
                store(loads, (t, a, s), on)
    for _ in range(TIMES):
        for s in range(q):
            step[s] = away[s]
            for t in range(q):
                low[s, t] = out[s, t]
        cholesky(low, q)
        cholesky_solve(low, q, step)
        for j in range(p):
            on = spread(0.0)
            for t in range(tiles):
                for a in range(m):
                    along = load(solved, (t, j, a)) * load(change, (t, a))
                    for s in range(q):
                        on += along * load(loads, (t, a, s)) * step[s]
            moved[j] = total(on)
        for j in range(p):
            turned[j] = 0.0
            for s in range(q):
                turned[j] -= across[j, s] * step[s]
            for k in range(p):
                turned[j] -= moving.root[k, j] * moved[k]
        for j in range(p):  # b0 - b
            shift[j] = 0.0
            for k in range(p):
                shift[j] += moving.root[j, k] * turned[k]
        for t in range(tiles):
            for a in range(m):
                on = spread(0.0)
                for j in range(p):
                    on += load(columns, (t, moving.R + j, a)) * shift[j]
                on = on * moving.slope / load(cells, (t, a))
                store(change, (t, a), larger(on, -MOST * load(noise, (t, a))))
        for s in range(q):
            for u in range(s + 1):
                on = spread(0.0)
                for t in range(tiles):
                    for a in range(m):
                        both = load(loads, (t, a, s)) * load(loads, (t, a, u))
                        on += load(change, (t, a)) * both
                out[s, u] = out[u, s] = own[s, u] + total(on)
    return out


def moving_noise(
    layout: Layout,
    how: Pooling,
    cells: np.ndarray,
    state: State,
    inputs: tuple[np.ndarray, ...],
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
    noise, R = inputs[0], layout.R
    slope = _slope(layout.columns, R, state.beta, cells, *inputs) if how.weights == COUNTED else 0.0
    return MovingNoise(layout.columns, R, state.solved, state.root, slope, cells, noise)


@kept
def _slope(columns, R, beta, cells, noise, nu, start):
    """How much of the variance between cells goes with the mean, times WAY."""
    size, both, measured = spread(0.0), spread(0.0), spread(0.0)
    for t in range(cells.shape[0]):
        for a in range(cells.shape[1]):
            r, n = load(start, (t, a)), load(cells, (t, a))
            for j in range(len(beta)):
                r -= load(columns, (t, R + j, a)) * beta[j]
            size += n * r * r
            both += n * r * n * (load(nu, (t, a)) - load(noise, (t, a)))
            measured += load(nu, (t, a))
    if not (total(size) > 0.0 and total(measured) > 0.0):
        return 0.0
    return WAY * total(both) / total(size)
