"""Best linear unbiased predictions of the random effects, with prediction standard errors.

With r = P y (Henderson): the shared effect of donor i is sigma^2 1' H_i' r_i, the cell
type-specific ones V H_i' r_i, a level's g_k z' r; the prediction error variance of an effect u
with covariance G is G - G Z' P Z G, which counts the uncertainty of the fixed effects.

With a kinship P is n x n, one block of all donors, and genetic values are K L' r A with L' the rows
of every donor; all parts are then taken at :func:`covariance_parts`.

Moment estimates may give a Sigma that is no covariance, and with it no prediction.  Effects are
then those of :func:`covariance_part`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..distributions import standard_errors
from ..errors import ConvergenceError
from .model import Model
from .precision import Precision

_ROUNDING = 1e-10


@dataclass(frozen=True)
class Effects:
    """Predicted random effects (kernel order of donors and rows).

    Attributes
    ----------
    shared, shared_se : ndarray, shape (N, C)
        alpha_i, of the components that cell types share (zero where the structure has none): the
        same for all of them, but for groups or conditions.
    specific, specific_se : ndarray, shape (N, C)
        Gamma_ic, of all other basis matrices.
    random : tuple of (values, se), each (levels,)
        One pair per random component, by level code; levels without data have value 0.
    marginal, fitted : ndarray, shape (n,)
        X b, and X b plus all predicted effects.
    fitted_se : ndarray, shape (n,)
        Prediction standard errors of the latter: with noise D the residual is D P y, and that of
        fitted less true expression has variance D - D P D.
    genetic : tuple of (values, se), each (N, C)
        One pair per kinship.
    pull : tuple of ndarray, each (N, C)
        L' r A of every kinship: its product with K_ij gives the genetic values of any donors i.
    """

    shared: np.ndarray
    shared_se: np.ndarray
    specific: np.ndarray
    specific_se: np.ndarray
    random: tuple[tuple[np.ndarray, np.ndarray], ...]
    marginal: np.ndarray
    fitted: np.ndarray
    fitted_se: np.ndarray
    genetic: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    pull: tuple[np.ndarray, ...] = ()


def effects(model: Model, theta: np.ndarray, beta: np.ndarray, shared: np.ndarray) -> Effects:
    """BLUPs at `theta`; `shared` are the indices of the components that cell types share.

    Where Sigma(theta) is not positive definite (possible for moments), at its part that is a
    covariance.  Donors left out by ``model.active`` get NaN.

    Raises
    ------
    ConvergenceError
        Not even that is positive definite, as there is no noise.
    """
    theta = np.asarray(theta, dtype=float)
    if model.kinship:
        return _of_related(model, theta, beta, shared)
    try:
        pre = Precision(model, theta)
    except (ConvergenceError, np.linalg.LinAlgError):
        theta = covariance_part(theta, model.basis)
        pre = Precision(model, theta)
    n_donors, C = len(model.active), model.H.shape[1]
    common = np.tensordot(theta[shared], model.basis[shared], axes=1)
    V = model.effect_covariance(theta) - common
    pull = np.einsum("imc,imj->ic", pre.spread(model.H), pre.spread(pre.Py[:, None]))  # H_i' r_i
    spread = pre.blocks(model.H)
    alpha, alpha_se, gamma, gamma_se = np.full((4, n_donors, C), np.nan)
    for value, se, part in ((alpha, alpha_se, common), (gamma, gamma_se, V)):
        value[pre.donors] = pull @ part
        left = np.diag(part) - np.einsum("cd,ide,ec->ic", part, spread, part)
        se[pre.donors] = standard_errors(left)

    levels, u = [], pre.g * (pre.Z.T @ pre.Py)
    u_se = standard_errors(pre.g - pre.g**2 * np.einsum("nq,nq->q", pre.Z, pre.project(pre.Z)))
    for k, (codes, _) in enumerate(model.random):
        variance = theta[model.n_donor_components + k]
        value, se = np.zeros(codes.max() + 1), np.full(codes.max() + 1, standard_errors(variance))
        mine = pre.level_component == k
        value[pre.level_code[mine]], se[pre.level_code[mine]] = u[mine], u_se[mine]
        levels.append((value, se))

    marginal = model.X @ beta
    total = np.nan_to_num(alpha) + np.nan_to_num(gamma)
    fitted = marginal + np.einsum("nc,nc->n", model.H, total[model.row_donor]) + pre.Z @ u
    noise = model.noise
    fitted_se = np.where(
        model.active_rows, standard_errors(noise - noise**2 * pre.diagonal), np.nan
    )
    return Effects(alpha, alpha_se, gamma, gamma_se, tuple(levels), marginal, fitted, fitted_se)


def _of_related(model: Model, theta: np.ndarray, beta: np.ndarray, shared: np.ndarray) -> Effects:
    """The same with a kinship, by n x n matrices; all donors are in use."""
    theta = covariance_parts(model, theta)
    try:
        root = np.linalg.inv(np.linalg.cholesky(_covariance(model, theta)))
    except np.linalg.LinAlgError:
        raise ConvergenceError("the covariance of the donors is not positive definite") from None
    S = root.T @ root
    SQ = S @ model.Q
    P = S - SQ @ np.linalg.solve(model.Q.T @ SQ, SQ.T)
    r, H, donor = P @ model.y, model.H, model.row_donor
    N, C = len(model.active), H.shape[1]
    rows = np.arange(len(H))
    L = (np.eye(N)[donor][:, :, None] * H[:, None, :]).reshape(len(H), N * C)
    pull = (L.T @ r).reshape(N, C)
    inner = (L.T @ P @ L).reshape(N, C, N, C)
    own = inner[np.arange(N), :, np.arange(N), :]
    common = np.tensordot(theta[shared], model.basis[shared], axes=1)
    V = model.effect_covariance(theta) - common
    donors = []
    for part in (common, V):
        left = np.diag(part) - np.einsum("cd,ide,ec->ic", part, own, part)
        donors.append((pull @ part, standard_errors(left)))
    genetic = []
    for term, A in zip(model.kinship, model.genetic_covariances(theta), strict=True):
        K = term.kernel.whole
        turned = np.tensordot(K, np.tensordot(inner, A, axes=(1, 0)), axes=(1, 0))  # (N, N, C, C)
        both = np.einsum("ijdc,ji,de->ice", turned, K, A, optimize=True)
        left = np.outer(np.diag(K), np.diag(A)) - np.diagonal(both, axis1=1, axis2=2)
        genetic.append((K @ pull @ A, standard_errors(left)))
    levels, fitted = [], model.X @ beta
    marginal = fitted.copy()
    for (codes, values), g in zip(model.random, model.random_variances(theta), strict=True):
        Z = np.zeros((len(H), codes.max() + 1))
        Z[rows, codes] = values
        u = g * (Z.T @ r)
        levels.append(
            (u, standard_errors(g - g**2 * np.einsum("nq,nm,mq->q", Z, P, Z, optimize=True)))
        )
        fitted += Z @ u
    total = sum(value for value, _ in (*donors, *genetic))
    fitted += (H * total[donor]).sum(axis=1)
    noise = model.noise
    fitted_se = standard_errors(noise - noise**2 * np.diag(P))
    every = tuple(pull @ A for A in model.genetic_covariances(theta))
    return Effects(
        *donors[0], *donors[1], tuple(levels), marginal, fitted, fitted_se, tuple(genetic), every
    )


def _covariance(model: Model, theta: np.ndarray) -> np.ndarray:
    """Sigma, (n, n)."""
    H, donor = model.H, model.row_donor
    out = (H @ model.effect_covariance(theta) @ H.T) * (donor[:, None] == donor)
    for (codes, values), g in zip(model.random, model.random_variances(theta), strict=True):
        out += g * np.outer(values, values) * (codes[:, None] == codes)
    for term, A in zip(model.kinship, model.genetic_covariances(theta), strict=True):
        out += (H @ A @ H.T) * term.kernel.whole[np.ix_(donor, donor)]
    return out + np.diag(model.noise)


def covariance_parts(model: Model, theta: np.ndarray) -> np.ndarray:
    """Components of what is no covariance, of donors or of a kinship, shrunk until it is one."""
    own = covariance_part(theta[: len(model.S)], model.basis)
    terms = zip(model.kinship, model.kinship_slices, strict=True)
    return np.concatenate([own, *(covariance_part(theta[at], one.basis) for one, at in terms)])


def covariance_part(theta: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Components with what is negative of them shrunk until A is a covariance; (K + Kr,).

    Those of basis matrices (K, C, C) go together, on the line to the point where each that is a
    variance is 0 or more and the others are 0, and no further than A needs; random effects' are 0
    or more.

    >>> covariance_part(np.array([1.0, -0.4, 2.0, -0.1]), np.array(
    ...     [np.ones((2, 2)), np.diag([1.0, 0.0]), np.diag([0.0, 1.0])])).round(3).tolist()
    [1.0, -0.4, 2.0, 0.0]
    >>> covariance_part(np.array([-1.0, 2.0]), np.array([np.ones((2, 2)), np.eye(2)])).tolist()
    [-1.0, 2.0]
    """
    own, rest = theta[: len(basis)], theta[len(basis) :]
    size = np.linalg.eigvalsh(basis)
    variance = size[:, 0] >= -_ROUNDING * np.abs(size).max(axis=1)
    safe = np.where(variance, np.maximum(own, 0.0), 0.0)
    low, high = 0.0, 1.0
    for _ in range(50):
        share = high if low == 0.0 == 1.0 - high else 0.5 * (low + high)
        at = np.linalg.eigvalsh(np.tensordot(safe + share * (own - safe), basis, axes=1))
        good = at[0] >= -_ROUNDING * np.abs(at).max()
        if good and share == 1.0:
            return np.concatenate([own, np.maximum(rest, 0.0)])
        low, high = (share, high) if good else (low, share)
    return np.concatenate([safe + low * (own - safe), np.maximum(rest, 0.0)])
