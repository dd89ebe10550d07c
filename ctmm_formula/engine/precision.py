"""P of a fitted model in numpy, for predictions, score tests and leave-out scores.

    P = D - Phi Omega Phi',   Phi = [D Z, U],   Omega = blockdiag(K, I)

D is block diagonal, the inverse covariances of donors or of whole blocks of them.  Levels Z of
random effects that are not in D enter by the Woodbury identity, all together, and U takes out the
fixed effects: K and U as in :mod:`ctmm_formula.engine.kernels`, which the likelihood itself uses.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from ..errors import ConvergenceError
from .model import Model, refuse_related


class Projection:
    """P, from its blocks, the levels between them and the fixed effects.

    Parameters
    ----------
    rows, mask : ndarray, shape (g, m)
        Rows of each block, padded by repeats; which are real.
    inverse : ndarray, shape (g, m, m)
        D of each block, zero where padded.
    Z : ndarray, shape (n, q); g : ndarray, shape (q,)
        Levels that are not in D, and their variances.
    X : ndarray, shape (n, p)
        Fixed effects, zero in rows that are not in use.

    Attributes
    ----------
    phi : ndarray, shape (n, q + p); omega : ndarray, shape (q + p, q + p)
    U : ndarray, shape (n, p)
        Sigma^-1 X L^-T with L L' = X' Sigma^-1 X, so that P = Sigma^-1 - U U'.
    root : ndarray, shape (p, p)
        L^-T.
    """

    def __init__(
        self,
        rows: np.ndarray,
        mask: np.ndarray,
        inverse: np.ndarray,
        Z: np.ndarray,
        g: np.ndarray,
        X: np.ndarray,
    ) -> None:
        self.rows, self.mask, self.inverse = rows, mask, inverse
        self.Z, self.g, self.X = Z, g, X
        q, p = Z.shape[1], X.shape[1]
        DZ = self.within(Z)
        K = np.linalg.solve(np.eye(q) + g[:, None] * (Z.T @ DZ), np.diag(g))
        SX = self.within(X) - DZ @ (K @ (DZ.T @ X))
        self.root = np.linalg.inv(np.linalg.cholesky(X.T @ SX)).T
        self.U = SX @ self.root
        self.phi = np.hstack([DZ, self.U])
        self.omega = np.eye(q + p)
        self.omega[:q, :q] = K

    def spread(self, B: np.ndarray) -> np.ndarray:
        """B (n, j) by blocks, (g, m, j); zeros where padded."""
        return np.where(self.mask[..., None], B[self.rows], 0.0)

    def within(self, B: np.ndarray) -> np.ndarray:
        """D B for B (n, j)."""
        out = np.zeros_like(B)
        part = self.inverse @ self.spread(B)
        out[self.rows[self.mask]] = part[self.mask]
        return out

    def project(self, B: np.ndarray) -> np.ndarray:
        """P B for B (n, j)."""
        return self.within(B) - self.phi @ (self.omega @ (self.phi.T @ B))

    def blocks(self, B: np.ndarray) -> np.ndarray:
        """B_g' P_gg B_g of every block for B (n, j), shape (g, j, j)."""
        B, phi = self.spread(B), self.spread(self.phi)
        F = B.swapaxes(1, 2) @ phi
        return B.swapaxes(1, 2) @ self.inverse @ B - F @ self.omega @ F.swapaxes(1, 2)

    @cached_property
    def diagonal(self) -> np.ndarray:
        """Diagonal of P, shape (n,)."""
        out = np.zeros(len(self.phi))
        out[self.rows[self.mask]] = np.diagonal(self.inverse, axis1=1, axis2=2)[self.mask]
        return out - ((self.phi @ self.omega) * self.phi).sum(axis=1)


class Precision(Projection):
    """P of a model at given variance components, its blocks the donors in use.

    Parameters
    ----------
    model : Model
    theta : ndarray, shape (K,)

    Attributes
    ----------
    donors : int ndarray, shape (N,)
        Kernel number of each block.
    level_component, level_code : int ndarray, shape (q,)
        Random component of every level, and its code there.

    Raises
    ------
    ConvergenceError
        Sigma is not positive definite, or donors are related.
    """

    def __init__(self, model: Model, theta: np.ndarray) -> None:
        refuse_related(model)
        self.model, self.theta = model, np.asarray(theta, dtype=float)
        self.donors = np.flatnonzero(model.active)
        size = np.diff(model.row_ptr)[self.donors]
        offsets = np.arange(size.max())
        mask = offsets < size[:, None]
        rows = model.row_ptr[self.donors][:, None] + np.where(mask, offsets, 0)
        H = np.where(mask[..., None], model.H[rows], 0.0)
        sigma = H @ model.effect_covariance(theta) @ H.transpose(0, 2, 1)
        index = np.arange(sigma.shape[1])
        sigma[:, index, index] += np.where(mask, model.noise[rows], 1.0)
        below = 0  # eigenvalues of D
        try:
            np.linalg.cholesky(sigma)
        except np.linalg.LinAlgError as error:
            below = int((np.linalg.eigvalsh(sigma) <= 0.0).sum())
            if not len(model.random):
                raise ConvergenceError("a donor's covariance is not positive definite") from error
        inverse = np.linalg.inv(sigma) * (mask[:, :, None] & mask[:, None, :])
        Z, self.level_component, self.level_code = level_matrix(model)
        g = self.theta[model.n_donor_components :][self.level_component]
        X = np.where(model.active_rows[:, None], model.Q, 0.0)
        super().__init__(rows, mask, inverse, Z, g, X)
        if below or (g < 0.0).any():
            self._check(below)

    def _check(self, below: int) -> None:
        """Sigma = D + Z G Z' may be definite though D is not, and the other way round.

        By Haynsworth's inertia of [D, Z; Z', -G^-1] it has as many negative eigenvalues as D, and
        G^-1 + Z' D^-1 Z positive ones, less the positive ones of G.
        """
        used = self.g != 0.0
        g, size = self.g[used], np.sqrt(np.abs(self.g[used]))
        within = self.Z[:, used].T @ self.phi[:, : len(self.g)][:, used]
        inner = np.linalg.eigvalsh(np.diag(np.sign(g)) + size[:, None] * within * size)
        if below + (inner > 0.0).sum() != (g > 0.0).sum():
            raise ConvergenceError("the covariance of a block of donors is not positive definite")

    def effects(self, y: np.ndarray) -> np.ndarray:
        """GLS effects (p,) of the orthonormal fixed columns on y (n,)."""
        return self.root @ (self.U.T @ y)

    @cached_property
    def Py(self) -> np.ndarray:
        """P y, shape (n,)."""
        y = np.where(self.model.active_rows, self.model.y, 0.0)
        return self.project(y[:, None])[:, 0]


def level_matrix(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z (n, q) of all levels with data, the component and the code of every level."""
    columns, component, code = [np.zeros((len(model.y), 0))], [], []
    for k, (codes, values) in enumerate(model.random):
        values = np.where(model.active_rows, values, 0.0)
        rows = np.flatnonzero(values)
        levels, column = np.unique(codes[rows], return_inverse=True)
        Z = np.zeros((len(values), len(levels)))
        Z[rows, column] = values[rows]
        columns.append(Z)
        component += [k] * len(levels)
        code += levels.tolist()
    return np.hstack(columns), np.array(component, dtype=np.int64), np.array(code, dtype=np.int64)
