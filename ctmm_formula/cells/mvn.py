"""Multivariate normal with missing blocks: EM estimates and conditional means.

Rows (donors) are independent N(mu, Sigma); each is seen in some of its C entries (cell types).
With Sigma estimated, a missing entry is its conditional mean given the row's observed entries.

    E  row with o seen and m missing:  Y_m = mu_m + (y_o - mu_o) Sigma_oo^-1 Sigma_om
       and the conditional covariance  Sigma_mm - Sigma_mo Sigma_oo^-1 Sigma_om
    M  mu = mean of the completed rows,
       Sigma = (their centred cross-product + conditional covariances + w I) / (N + w)

The columns are standardised first, so the result follows any change of units column by column,
and w (``prior``) counts donors that would speak for uncorrelated columns of unit variance: it
keeps Sigma regular where donors are few.  EM never lowers the penalised likelihood of what was
observed, log L(mu, Sigma) - w/2 (log |Sigma| + tr Sigma^-1); w = 0 is maximum likelihood
(Little & Rubin, Statistical Analysis with Missing Data, section 11.2).

Stacks (B, N, C) are estimated together, one normal each; they share the pattern of holes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import ConvergenceError, CTMMError, DataError
from .stacks import as_stack, scaling


@dataclass(frozen=True)
class Normal:
    """Completed rows and the estimated normal of each matrix of a stack.

    Attributes
    ----------
    values : ndarray, shape (B, N, C)
        Observed entries as they were, the others conditional means.
    mean : ndarray, shape (B, C)
    cov : ndarray, shape (B, C, C)
    steps : int
        Steps of the slowest.
    converged : ndarray of bool, shape (B,)
    """

    values: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    steps: int
    converged: np.ndarray


def fit_normal(
    Y: np.ndarray, *, prior: float = 1.0, tol: float = 1e-6, max_steps: int = 1000
) -> Normal:
    """Estimate a normal by EM and fill the holes with conditional means.

    Parameters
    ----------
    Y : array, shape (N, C) or (B, N, C)
        NaN where missing; all matrices of a stack miss the same entries.
    prior : float, default 1
        Weight w of uncorrelated columns in donors; 0 for maximum likelihood.
    tol : float, default 1e-6
        Stop when no filled value and no entry of Sigma moves by more (in standard deviations).
    max_steps : int

    Returns
    -------
    Normal
        A row without any observed entry gets the mean.

    Raises
    ------
    DataError
        Infinite values, a column without any, holes that differ within a stack.
    ConvergenceError
        Sigma became singular, which only ``prior=0`` allows.
    CTMMError
        A negative prior.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = rng.multivariate_normal([0, 1], [[1, 0.9], [0.9, 1]], size=500)
    >>> Y[0] = [2.0, np.nan]
    >>> fit_normal(Y).values[0, 0].round(1).tolist()
    [2.0, 2.8]
    """
    Y, observed = as_stack(Y)
    if not observed.any(axis=0).all():
        columns = np.flatnonzero(~observed.any(axis=0)).tolist()
        raise DataError(f"columns {columns} have no value at all: leave them out")
    if not prior >= 0.0:
        raise CTMMError(f"the prior weight must be zero or positive, got {prior}")
    units = scaling(Y, observed)
    W = np.where(observed, units.apply(Y), 0.0)
    mean, cov = start(W, observed)
    mean, cov, W, converged, steps = _iterate(W, observed, mean, cov, prior, tol, max_steps)
    sd = units.scale[:, 0]
    return Normal(
        values=np.where(observed, Y, units.undo(W)),
        mean=units.undo(mean[:, None])[:, 0],
        cov=cov * sd[:, :, None] * sd[:, None, :],
        steps=steps,
        converged=converged,
    )


def start(W: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised columns: mean 0 and 0.9 of the covariance with holes at 0, 0.1 of identity."""
    C = W.shape[2]
    cov = W.swapaxes(1, 2) @ W / max(W.shape[1] - 1, 1)
    return np.zeros((len(W), C)), 0.9 * cov + 0.1 * np.eye(C)


def em_step(
    W: np.ndarray, observed: np.ndarray, mean: np.ndarray, cov: np.ndarray, prior: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One E and M step: completed rows (B, N, C), new mean, new covariance."""
    filled = W.copy()
    spread = np.zeros_like(cov)
    for rows, o, m in patterns(observed):
        if not len(m):
            continue
        slope = _solve(cov[:, o[:, None], o], cov[:, o[:, None], m])
        conditional = (W[:, rows[:, None], o] - mean[:, None, o]) @ slope
        filled[:, rows[:, None], m] = mean[:, None, m] + conditional
        spread[:, m[:, None], m] += len(rows) * (
            cov[:, m[:, None], m] - cov[:, m[:, None], o] @ slope
        )
    mean = filled.mean(axis=1)
    centred = filled - mean[:, None]
    N, C = observed.shape
    cov = centred.swapaxes(1, 2) @ centred + spread + prior * np.eye(C)
    return filled, mean, cov / (N + prior)


def patterns(observed: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows with the same entries observed, those entries, and the missing ones."""
    kinds, of_row = np.unique(observed, axis=0, return_inverse=True)
    of_row = of_row.ravel()
    for k, seen in enumerate(kinds):
        yield np.flatnonzero(of_row == k), np.flatnonzero(seen), np.flatnonzero(~seen)


def _iterate(
    W: np.ndarray,
    observed: np.ndarray,
    mean: np.ndarray,
    cov: np.ndarray,
    prior: float,
    tol: float,
    max_steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """EM until every problem of the stack stands still; finished ones are set aside."""
    filled, live, steps = W.copy(), np.arange(len(W)), 0
    mean, cov = mean.copy(), cov.copy()
    while len(live) and steps < max_steps:
        steps += 1
        new, mu, sigma = em_step(W[live], observed, mean[live], cov[live], prior)
        moved = np.maximum(
            np.abs(new - filled[live]).max(axis=(1, 2)), np.abs(sigma - cov[live]).max(axis=(1, 2))
        )
        filled[live], mean[live], cov[live] = new, mu, sigma
        live = live[moved > tol]
    # conditional means at the final estimate
    filled, _, _ = em_step(W, observed, mean, cov, prior)
    return mean, cov, filled, ~np.isin(np.arange(len(W)), live), steps


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Solve a stack of covariances, or say that one is singular."""
    try:
        return np.linalg.solve(a, b)
    except np.linalg.LinAlgError:
        raise ConvergenceError(
            "the covariance between cell types is singular: too few donors, or a constant column; "
            "use prior > 0 or leave the column out"
        ) from None
