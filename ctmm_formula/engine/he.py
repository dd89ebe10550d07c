"""Haseman-Elston regression: the method of moments.

Least squares of Pi (y y' - D) Pi on Pi Sigma_k Pi under the Frobenius inner product, Pi the OLS
residual projection: theta = G^-1 (q - C nu) with

    G_kl = tr(Pi Sigma_k Pi Sigma_l),  q_k = (Pi y)' Sigma_k (Pi y),  C_ka = (Pi Sigma_k Pi)_aa

G and C hold neither y nor nu: one :class:`Moments` serves every gene of a design.  The estimate
is unbiased whatever the distribution of the noise, may be negative, and has no likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..errors import ConvergenceError
from . import kernels
from .domain import Domain
from .estimate import Convergence, Estimate
from .likelihood import evaluate, residual
from .model import Model
from .precision import Precision

CONFOUNDED = 1e12
"""Condition number of G from which the components cannot be told apart."""

_NOTHING = 1e-10  # of a diagonal, or the smallest eigenvalue of a correlation matrix
_INVOLVED = 1e-4  # entry of an eigenvector


@dataclass(frozen=True)
class Moments:
    """The response-free part of the moment equations.

    Attributes
    ----------
    gram : ndarray, shape (K, K)
    noise : ndarray, shape (K, n)
        Weight of each row's noise variance.
    Q : ndarray, shape (n, p)
        Orthonormal fixed effects of the rows in use, zero elsewhere.
    factors : tuple of sparse (levels, n)
        Z' of each factor (donor loadings, random effects), so that Sigma_f = Z Z'; zero in rows
        that are not in use.
    S : ndarray, shape (K, F)
        Components to factors.
    rows : bool ndarray, shape (n,)
        Rows in use.
    """

    gram: np.ndarray
    noise: np.ndarray
    Q: np.ndarray
    factors: tuple[sp.csr_array, ...]
    S: np.ndarray
    rows: np.ndarray

    def residual(self, Y: np.ndarray) -> np.ndarray:
        """Pi Y of responses (n, G), zero in rows that are not in use."""
        Y = np.where(self.rows[:, None], Y, 0.0)
        return Y - self.Q @ (self.Q.T @ Y)

    def squares(self, E: np.ndarray) -> np.ndarray:
        """E' Sigma_k E of each residual (n, G), shape (K, G)."""
        return self.S @ np.array([np.square(Z @ E).sum(axis=0) for Z in self.factors])

    def solve(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """theta (G, K) of responses and noise variances (n, G).

        Raises
        ------
        ConvergenceError
            The components cannot be told apart in this design.
        """
        if np.linalg.cond(self.gram) > CONFOUNDED:
            raise ConvergenceError(
                "variance components cannot be told apart: singular moment matrix"
            )
        moments = self.squares(self.residual(Y)) - self.noise @ NU
        return np.linalg.solve(self.gram, moments).T


def moment_matrix(model: Model, projected: bool = True) -> np.ndarray:
    """tr(Pi Sigma_k Pi Sigma_l), (K, K), in O(n K p); without Pi if not `projected`.

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    F = model.S.shape[1]
    p = model.X.shape[1]
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    # P at Sigma = I is Pi, so the Fisher information there is half the normal matrix
    shape = model.tiles.shape
    llf = kernels.evaluate(
        kernels.kernel_address(), np.zeros(F), np.zeros(shape), np.ones(shape), model.blocks,
        model.tiles.donors(model.active, False), projected, kernels.INFORMATION,
        score, average, expected, np.zeros(p), np.zeros((p + 1, p + 1)),
    )  # fmt: skip
    if llf == -math.inf:
        raise ConvergenceError("the fixed effects are collinear in the donors in use")
    return np.asarray(2.0 * model.S @ expected @ model.S.T)


def confounded(model: Model) -> list[int]:
    """Components that no method can tell apart or from the fixed effects, by number.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H, basis = np.tile(np.eye(2), (3, 1)), np.array([np.ones((2, 2)), np.eye(2)])
    >>> build = lambda H, donor: build_model(np.arange(6.), np.ones(6), H, H, donor, basis)
    >>> confounded(build(H, np.repeat([0, 1, 2], 2))), confounded(build(H, np.arange(6)))
    ([], [0, 1])
    """
    gram, whole = moment_matrix(model), np.diag(moment_matrix(model, projected=False))
    left = np.diag(gram) > _NOTHING * whole
    size = np.sqrt(np.diag(gram)[left])
    values, axes = np.linalg.eigh(gram[np.ix_(left, left)] / np.outer(size, size))
    null = np.abs(axes[:, values < _NOTHING]).max(axis=1, initial=0.0) > _INVOLVED
    return sorted([*np.flatnonzero(~left).tolist(), *np.flatnonzero(left)[null].tolist()])


def moments(model: Model) -> Moments:
    """Normal matrix and noise weights of the design of `model`, in O(n K p).

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    p = model.X.shape[1]
    gram = moment_matrix(model)
    Q = np.where(model.active_rows[:, None], model.Q, 0.0)
    if p and model.n_donors < len(model.active):  # orthonormal in the rows in use
        Q = np.linalg.solve(np.linalg.cholesky(Q.T @ Q), Q.T).T
    factors = tuple(_factors(model))
    noise = np.array([_noise_weights(Z, Q) for Z in factors])
    return Moments(gram, model.S @ noise, Q, factors, model.S, model.active_rows)


def fit(model: Model, method: str = "he", domain: Domain | None = None) -> Estimate:
    """Moment estimate of one response; b by GLS where Sigma is positive definite, else by OLS.

    Many responses of one design share :func:`moments`: ``complete(gene, theta)`` for each gene and
    row of ``moments(model).solve(Y, NU)`` are their estimates.

    Raises
    ------
    ConvergenceError
        The components cannot be told apart in this design.
    """
    del method, domain  # moments know no bounds
    return complete(model, moments(model).solve(model.y[:, None], model.nu[:, None])[0])


def ols(model: Model) -> np.ndarray:
    """b = (X'X)^-1 X'y of the rows in use, shape (p,)."""
    rows = model.active_rows
    return np.linalg.lstsq(model.X[rows], model.y[rows], rcond=None)[0]


def complete(model: Model, theta: np.ndarray) -> Estimate:
    """The estimate of one response with these variance components: b, and how it was had."""
    K, p = len(theta), model.X.shape[1]
    at = evaluate(model, theta, "reml", full=False)
    gls, beta, cov_beta = math.isfinite(at.llf), at.beta, at.cov_beta
    if not gls and (known := over_blocks(model, theta)) is not None:
        # donors alone have no definite covariance, their blocks have
        gls, beta = True, model.back @ (known.effects(residual(model)) + model.Q.T @ model.y)
        turn = model.back @ known.root
        cov_beta = turn @ turn.T
    nan = np.full((K, K), math.nan)
    return Estimate(
        method="he",
        theta=theta,
        beta=beta if gls else ols(model),
        cov_beta=cov_beta if gls else np.full((p, p), math.nan),
        beta_by="gls" if gls else "ols",
        information=nan,
        observed=nan,
        llf=math.nan,
        convergence=Convergence(
            converged=True,
            boundary=False,
            gradient_norm=0.0,
            n_evaluations=1,
            n_starts=1,
            message="closed form"
            if gls
            else "closed form; covariance not positive definite, fixed effects by OLS",
        ),
    )


def over_blocks(model: Model, theta: np.ndarray) -> Precision | None:
    """P at these components, where Sigma is positive definite by blocks of donors, else None.

    The compiled loops take donors first, and so need a definite covariance of every donor alone.
    """
    if not model.random or not np.isfinite(theta).all():
        return None
    try:
        return Precision(model, theta)
    except (ConvergenceError, np.linalg.LinAlgError):
        return None


def _factors(model: Model) -> list[sp.csr_array]:
    """Z' (levels, n) of every factor: donor loadings, then random effects."""
    loadings = [_incidence(model.row_donor, w, model.active_rows) for w in model.W.T]
    return loadings + [_incidence(*component, model.active_rows) for component in model.random]


def _incidence(codes: np.ndarray, weights: np.ndarray, rows: np.ndarray) -> sp.csr_array:
    used = np.flatnonzero(rows & (weights != 0.0))
    used = used[np.argsort(codes[used], kind="stable")]
    ptr = np.concatenate([[0], np.bincount(codes[used], minlength=codes.max() + 1).cumsum()])
    return sp.csr_array((weights[used], used, ptr), (len(ptr) - 1, len(codes)))


def _noise_weights(Z: sp.csr_array, Q: np.ndarray) -> np.ndarray:
    """Diagonal of Pi Z Z' Pi, (n,): sum over levels of (z - Q Y)^2 with Y = Z'Q."""
    Y = Z @ Q
    half = 0.5 * Q @ (Y.T @ Y) - Z.T @ Y
    return np.bincount(Z.indices, Z.data**2, len(Q)) + 2.0 * (half * Q).sum(axis=1)
