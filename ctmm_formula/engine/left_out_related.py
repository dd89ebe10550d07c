"""Weighted moments of related donors without each group of them, at the weights of all.

To leave out rows g is to give each a fixed effect of its own.  With P of all rows, A = (P_gg)^-1,
a = A (P y)_g and T_k = P Sigma_k P, the equations of :mod:`ctmm_formula.engine.related_moments`
become

    q_k  less  2 a' (P Sigma_k P y)_g - a' T_k,gg a
    F_kl less  2 tr A (P Sigma_k P Sigma_l P)_gg - tr A T_k,gg A T_l,gg
    h_k  less  2 tr A (P Sigma_k P D P)_gg - tr A T_k,gg A (P D P)_gg,   D = diag(nu)

and b less (X'Sigma^-1 X)^-1 X'Sigma^-1 E_g a.  What a refit gains by weights of its own is left
out: a step from the full fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import ConvergenceError
from . import he
from .estimate import Estimate
from .left_out_moments import ALIASED, inverses
from .model import Model
from .related_joined import Joined
from .related_likelihood import is_rotated
from .related_moments import working
from .related_spectral import Rotated

_AT_ONCE = 256  # rows of groups whose columns of P are had together


def left_out(
    model: Model, estimate: Estimate, groups: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Components (G, K) and fixed effects (G, p) without each group of donors.

    NaN where a fixed effect or the components rest on a group alone.

    Raises
    ------
    ConvergenceError
        The weights of the fit are no covariance.
    """
    pooled, at = working(model, estimate)
    related = Rotated(model) if is_rotated(model, "robust") else Joined(pooled)
    fixed, whole = related.fixed(at.theta), related.equations(at.theta, model.nu)
    if fixed is None or whole is None:
        raise ConvergenceError("the covariance of the data is not positive definite")
    low, U = fixed.low, fixed.U
    factors, S = he.factors_of_model(model), he.components_to_factors(model)
    n, K = len(model.y), len(S)
    y, nu = (np.where(model.active_rows, one, 0.0) for one in (model.y, model.nu))
    solution = np.linalg.solve(whole.traces, whole.right)
    theta = np.full((len(groups), K), math.nan)
    beta = np.full((len(groups), len(estimate.beta)), math.nan)

    def project(Y: np.ndarray) -> np.ndarray:
        return fixed.solve(Y) - U @ (U.T @ Y)

    for some, rows in _chunks(model, groups):
        every = np.concatenate(rows)
        P = np.zeros((n, len(every)))
        P[every, np.arange(len(every))] = 1.0
        P = project(P)
        moved = np.tensordot(S, factors.times(P), axes=1).transpose(1, 0, 2)  # Sigma_k P
        met = project(moved.reshape(n, -1)).reshape(moved.shape)
        ends = np.cumsum([len(own) for own in rows])
        for g, own, end in zip(some, rows, ends, strict=True):
            part = slice(end - len(own), end)
            p, Y, Z = P[:, part], moved[:, :, part], met[:, :, part]
            size = np.linalg.eigvalsh(p[own])
            if not size[0] > ALIASED * size[-1]:
                continue
            A = np.linalg.inv(p[own])
            T, Dp, a = Z[own].transpose(1, 0, 2), nu[:, None] * p, A @ (y @ p)
            AT = A @ T
            ZA, Y = (one.transpose(1, 0, 2).reshape(K, -1) for one in (Z @ A, Y))
            through = ZA @ Y.T
            gram = whole.traces - through - through.T
            gram += AT.reshape(K, -1) @ AT.transpose(0, 2, 1).reshape(K, -1).T
            right = whole.right + (T @ a) @ a - 2.0 * np.tensordot(y, Z, axes=1) @ a
            right += 2.0 * ZA @ Dp.ravel() - np.tensordot(AT, (A @ (p.T @ Dp)).T)
            theta[g] = estimate.theta + inverses(gram, whole.traces) @ right - solution
            beta[g] = estimate.beta - model.back @ np.linalg.solve(low.T, U[own].T @ a)
    return theta, beta


def _chunks(
    model: Model, groups: Sequence[np.ndarray]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Groups by number, and the rows of each, so many together."""
    numbers: list[int] = []
    rows: list[np.ndarray] = []
    for g, group in enumerate(groups):
        own = np.concatenate([np.arange(*model.row_ptr[i : i + 2]) for i in group])
        if numbers and sum(map(len, rows)) + len(own) > _AT_ONCE:
            yield numbers, rows
            numbers, rows = [], []
        numbers.append(g)
        rows.append(own)
    yield numbers, rows
