"""Haseman-Elston regression: the method of moments.

Least squares of Pi (y y' - D) Pi on Pi Sigma_k Pi under the Frobenius inner product, Pi the OLS
residual projection: theta = G^-1 (q - C nu) with

    G_kl = tr(Pi Sigma_k Pi Sigma_l),  q_k = (Pi y)' Sigma_k (Pi y),  C_ka = (Pi Sigma_k Pi)_aa

G and C hold neither y nor nu: one :class:`Moments` serves every gene of a design.  The estimate
is unbiased whatever the distribution of the noise, may be negative, and has no likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from ..errors import ConvergenceError
from . import kernels
from .domain import Domain
from .estimate import Convergence, Estimate
from .likelihood import evaluate
from .model import Model


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
    """

    gram: np.ndarray
    noise: np.ndarray
    Q: np.ndarray


def moments(model: Model) -> Moments:
    """Normal matrix and noise weights of the design of `model`, in O(n K p)."""
    F = model.S.shape[1]
    p = model.X.shape[1]
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    # P at Sigma = I is Pi, so the Fisher information there is half the normal matrix
    shape = model.tiles.shape
    llf = kernels.evaluate(
        kernels.kernel_address(), np.zeros(F), np.zeros(shape), np.ones(shape), model.blocks,
        model.tiles.donors(model.active, False), True, kernels.INFORMATION,
        score, average, expected, np.zeros(p), np.zeros((p + 1, p + 1)),
    )  # fmt: skip
    if llf == -math.inf:
        raise ConvergenceError("the fixed effects are collinear in the donors in use")
    Q = np.where(model.active_rows[:, None], model.Q, 0.0)
    if p and model.n_donors < len(model.active):  # orthonormal in the rows in use
        Q = np.linalg.solve(np.linalg.cholesky(Q.T @ Q), Q.T).T
    noise = _noise_weights(model, Q)
    return Moments(2.0 * model.S @ expected @ model.S.T, model.S @ noise, Q)


def solve(model: Model, design: Moments) -> np.ndarray:
    """theta of the response of `model`, shape (K,)."""
    e = np.where(model.active_rows, model.y, 0.0)
    e = e - design.Q @ (design.Q.T @ e)
    q = [float(np.square(group @ (w * e)).sum()) for group, w in _factors(model)]
    return np.linalg.solve(design.gram, model.S @ q - design.noise @ model.nu)


def fit(model: Model, method: str = "he", domain: Domain | None = None) -> Estimate:
    """Moment estimate; b by GLS where Sigma is positive definite there, else by OLS.

    Raises
    ------
    ConvergenceError
        The components cannot be told apart in this design.
    """
    del domain  # moments know no bounds
    design = moments(model)
    if np.linalg.cond(design.gram) > 1e12:
        raise ConvergenceError("variance components cannot be told apart: singular moment matrix")
    theta = solve(model, design)
    K, p = len(theta), model.X.shape[1]
    at = evaluate(model, theta, "reml", full=False)
    gls = math.isfinite(at.llf)
    rows = model.active_rows
    beta = at.beta if gls else np.linalg.lstsq(model.X[rows], model.y[rows], rcond=None)[0]
    nan = np.full((K, K), math.nan)
    return Estimate(
        method=method,
        theta=theta,
        beta=beta,
        cov_beta=at.cov_beta if gls else np.full((p, p), math.nan),
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


def _factors(model: Model) -> Iterator[tuple[sp.csr_matrix, np.ndarray]]:
    """(sums over groups (g, n), weights (n,)) of each factor: donor loadings, random effects."""
    donors = _group_sums(model.row_donor)
    for r in range(model.W.shape[1]):
        yield donors, model.W[:, r]
    for component in model.random:
        yield _group_sums(component.codes), component.values


def _group_sums(codes: np.ndarray) -> sp.csr_matrix:
    n = len(codes)
    return sp.csr_matrix((np.ones(n), (codes, np.arange(n))), (codes.max() + 1, n))


def _noise_weights(model: Model, Q: np.ndarray) -> np.ndarray:
    """Diagonals of Pi W W' Pi, (F, n), for the group factors W: sum_g (w_ga - q_a' Y_g)^2."""
    out = []
    for group, weight in _factors(model):
        w = np.where(model.active_rows, weight, 0.0)
        Y = group @ (w[:, None] * Q)
        cross = w * np.einsum("np,np->n", group.T @ Y, Q)
        out.append(w**2 - 2.0 * cross + np.einsum("np,np->n", Q @ (Y.T @ Y), Q))
    return np.array(out)
