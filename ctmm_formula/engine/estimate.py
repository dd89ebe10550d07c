"""What an estimator returns: numbers only, no labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class Convergence:
    """How the optimisation ended.

    Attributes
    ----------
    converged : bool
    boundary : bool
        The estimate lies on the edge of its domain.
    gradient_norm : float
        Newton decrement, sqrt(g' H^-1 g): distance to the stationary point in standard errors.
    n_evaluations : int
    n_starts : int
    message : str
    """

    converged: bool
    boundary: bool
    gradient_norm: float
    n_evaluations: int
    n_starts: int
    message: str


@dataclass(frozen=True)
class At:
    """The likelihood of related donors at one point.

    llf; score (K,); average (K, K) information; beta (p,) of the orthonormal X, its gram (p, p).
    """

    llf: float
    score: np.ndarray
    average: np.ndarray
    beta: np.ndarray
    gram: np.ndarray


class Fixed(NamedTuple):
    """Fixed effects at one theta, whose X'Sigma^-1 X is low low'.

    low (p, p); U (n, p), Sigma^-1 X low'^-1; moved (K, n, p), Sigma_k U of every component; solve:
    Sigma^-1 Y of Y (n, j).
    """

    low: np.ndarray
    U: np.ndarray
    moved: np.ndarray
    solve: Callable[[np.ndarray], np.ndarray]


class Equations(NamedTuple):
    """Moments of related donors weighted by P at one theta: traces t = right.

    traces (K, K), tr(P Sigma_k P Sigma_l); right (K,), y'P Sigma_k P y - tr(P Sigma_k P diag(nu));
    beta (p,), low (p, p) with X'Sigma^-1 X = low low', and spread (p, p) of low'beta.
    """

    traces: np.ndarray
    right: np.ndarray
    beta: np.ndarray
    low: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """Fitted parameters of a :class:`~ctmm_formula.engine.model.Model`.

    Attributes
    ----------
    method : str
        "ml", "reml", "he" or "robust".
    theta : ndarray, shape (K,)
        Variance components: the donor-level ones, then the random effects'.
    beta : ndarray, shape (p,)
        Fixed effects, for the columns of ``model.X``.
    cov_beta : ndarray, shape (p, p)
        Model covariance of beta, (X' Sigma^-1 X)^-1, by the working covariance for "robust"; NaN
        where beta is by OLS.
    beta_by : str
        "gls" or "ols".
    information : ndarray, shape (K, K)
        Expected (Fisher) information of theta, of the working covariance for "robust"; the average
        information of likelihoods with a kinship; NaN for HE.
    observed : ndarray, shape (K, K)
        Observed information of theta, the curvature of the log-likelihood; NaN without one, and
        with a kinship.
    llf : float
        Log-likelihood with all constants (restricted for REML); NaN without one.
    convergence : Convergence
    """

    method: str
    theta: np.ndarray
    beta: np.ndarray
    cov_beta: np.ndarray
    beta_by: str
    information: np.ndarray
    observed: np.ndarray
    llf: float
    convergence: Convergence

    def __repr__(self) -> str:
        ended = self.convergence.message or "closed form"
        theta = np.array2string(self.theta, precision=4, separator=", ")
        return (
            f"<Estimate by {self.method}: theta {theta}, {len(self.beta)} fixed effects; {ended}>"
        )
