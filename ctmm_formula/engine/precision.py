"""Sigma^-1 and P of a fitted model, in numpy, for predictions and score tests.

Donors are stacked (padded to the largest number of rows), random effects enter by the Woodbury
identity with all levels together.  The likelihood itself uses :mod:`ctmm_formula.engine.kernels`.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..errors import ConvergenceError
from .model import Model


class Precision:
    """Products with Sigma^-1 and P at given variance components.

    Parameters
    ----------
    model : Model
    theta : ndarray, shape (K,)

    Attributes
    ----------
    rows : ndarray, shape (N, m)
        Row of each donor's observations, padded by repeats; `mask` (N, m) says which are real.
    Z : ndarray, shape (n, q)
        Levels of all random effects; `level_component` (q,), `level_code` (q,).

    Raises
    ------
    ConvergenceError
        Sigma is not positive definite.
    """

    def __init__(self, model: Model, theta: np.ndarray) -> None:
        self.model, self.theta = model, np.asarray(theta, dtype=float)
        count = model.n_donor_components
        ptr = model.row_ptr
        donors = np.flatnonzero(model.active)
        size = np.diff(ptr)[donors]
        offsets = np.arange(size.max())
        self.donors = donors
        self.mask = offsets < size[:, None]
        self.rows = ptr[donors][:, None] + np.where(self.mask, offsets, 0)
        H = np.where(self.mask[..., None], model.H[self.rows], 0.0)
        sigma = H @ model.effect_covariance(theta) @ H.transpose(0, 2, 1)
        index = np.arange(sigma.shape[1])
        sigma[:, index, index] += np.where(self.mask, model.nu[self.rows], 1.0)
        try:
            np.linalg.cholesky(sigma)
        except np.linalg.LinAlgError as error:
            raise ConvergenceError("a donor's covariance is not positive definite") from error
        inverse = np.linalg.inv(sigma)
        self.inverse = inverse * (self.mask[:, :, None] & self.mask[:, None, :])
        self.Z, self.level_component, self.level_code = level_matrix(model)
        self.g = self.theta[count:][self.level_component]
        self.DZ = self.solve_donors(self.Z)
        inner = np.eye(len(self.g)) + self.g[:, None] * (self.Z.T @ self.DZ)
        self.K = np.linalg.solve(inner, np.diag(self.g)) if len(self.g) else np.zeros((0, 0))

    def solve_donors(self, B: np.ndarray) -> np.ndarray:
        """blockdiag(Sigma_i)^-1 B for B (n, j)."""
        out = np.zeros_like(B)
        part = self.inverse @ B[self.rows]
        out[self.rows[self.mask]] = part[self.mask]
        return out

    def solve(self, B: np.ndarray) -> np.ndarray:
        """Sigma^-1 B, shape (n, j)."""
        DB = self.solve_donors(B)
        return DB - self.DZ @ (self.K @ (self.DZ.T @ B))

    @cached_property
    def U(self) -> np.ndarray:
        """Sigma^-1 X L^-T with L L' = X' Sigma^-1 X, so that P = Sigma^-1 - U U'; (n, p)."""
        X = np.where(self.model.active_rows[:, None], self.model.Q, 0.0)
        SX = self.solve(X)
        if X.shape[1] == 0:
            return SX
        low = np.linalg.cholesky(X.T @ SX)
        return np.linalg.solve(low, SX.T).T

    def project(self, B: np.ndarray) -> np.ndarray:
        """P B, shape (n, j)."""
        return self.solve(B) - self.U @ (self.U.T @ B)

    @cached_property
    def Py(self) -> np.ndarray:
        """P y, shape (n,)."""
        y = np.where(self.model.active_rows, self.model.y, 0.0)
        return self.project(y[:, None])[:, 0]

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Diagonal of P, shape (n,)."""
        out = np.zeros(len(self.model.y))
        own = np.diagonal(self.inverse, axis1=1, axis2=2)
        out[self.rows[self.mask]] = own[self.mask]
        return out - ((self.DZ @ self.K) * self.DZ).sum(axis=1) - (self.U**2).sum(axis=1)

    def donor_blocks(self) -> np.ndarray:
        """H_i' P_ii H_i for every donor in use, shape (N, C, C)."""
        H = np.where(self.mask[..., None], self.model.H[self.rows], 0.0)
        Ht = H.transpose(0, 2, 1)
        out = Ht @ self.inverse @ H
        if len(self.g):
            F = Ht @ np.where(self.mask[..., None], self.DZ[self.rows], 0.0)
            out -= F @ self.K @ F.transpose(0, 2, 1)
        Y = Ht @ np.where(self.mask[..., None], self.U[self.rows], 0.0)
        return out - Y @ Y.transpose(0, 2, 1)


def level_matrix(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z (n, q) of all levels with data, the component and the code of every level."""
    columns, component, code = [], [], []
    active = model.active_rows
    for k, (codes, values) in enumerate(model.random):
        for level in np.unique(codes[(values != 0) & active]):
            columns.append(np.where((codes == level) & active, values, 0.0))
            component.append(k)
            code.append(level)
    Z = np.array(columns).T if columns else np.zeros((len(model.y), 0))
    return Z, np.array(component, dtype=np.int64), np.array(code, dtype=np.int64)
