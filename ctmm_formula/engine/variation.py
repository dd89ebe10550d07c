"""How the covariance of the fixed effects moves with the variance components.

Phi = (X'Sigma^-1 X)^-1 is a function of theta, whose estimate has the covariance W (the inverse of
its expected information).  With Phi = root root' and every matrix in the coordinates of root,

    slope_k = root^-1 (dPhi / dtheta_k) root^-T = root' P_k root           (S = Sigma^-1)
    C       = 2 root' sum_kl W_kl (Q_kl - P_k Phi P_l) root
    P_k     = X'S Sigma_k S X,   Q_kl = X'S Sigma_k S Sigma_l S X

Phi takes estimated components for true ones, and is itself biased; Kenward and Roger (1997) add
both up to root (I + C) root' (Sigma is linear in theta, so that theirs has no further term).  The
slopes give Satterthwaite's and their degrees of freedom:
:mod:`ctmm_formula.inference.small_sample`.

Sigma_k is a sum of f f' over columns f, one for each donor and factor, or level of a random effect.
The first term of C is a sum over pairs of them, of W (f'S g) (X'S f) (X'S g)': within a donor, and
between donors through the levels that they share, so that everything is linear in donors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .model import Model
from .precision import Precision


@dataclass(frozen=True)
class Variation:
    """First derivatives of Phi at one theta, and what they add up to.

    Attributes
    ----------
    model : Model
    P : Precision
        At theta.
    W : ndarray, shape (K, K)
        Covariance of the estimate of theta; zero where a component is taken for known.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (3, 1))
    >>> model = build_model(np.arange(6.), np.ones(6), H, H, np.repeat([0, 1, 2], 2),
    ...                     np.ones((1, 2, 2)))
    >>> at = variation(model, np.array([1.0]), np.array([[1.0]]))
    >>> (at.root @ at.root.T).round(3).tolist()
    [[0.667, 0.333], [0.333, 0.667]]
    >>> (at.root @ at.slopes[0] @ at.root.T).round(3).tolist()  # of Phi = (theta J + I) / 3
    [[0.333, 0.333], [0.333, 0.333]]
    """

    model: Model
    P: Precision
    W: np.ndarray

    @cached_property
    def root(self) -> np.ndarray:
        """Phi = root root' for the columns of ``model.X``, (p, p)."""
        low = self.P.X.T @ self.P.U
        return np.linalg.solve(low, self.model.back.T).T

    @cached_property
    def slopes(self) -> np.ndarray:
        """sum_k half_kj slope_k with W = half half', (K, p, p): of components of covariance I."""
        values, axes = np.linalg.eigh(self.W)
        half = axes * np.sqrt(np.clip(values, 0.0, None))
        v, u = self._donors, self._levels
        count, q = len(self.model.S), self.model.n_donor_components
        part = np.empty((self.model.S.shape[1], *self.root.shape))
        part[: v.shape[1]] = v.transpose(1, 2, 0) @ v.transpose(1, 0, 2)
        for k in range(count - q):
            own = u[self.P.level_component == k]
            part[v.shape[1] + k] = own.T @ own
        return np.tensordot(half.T @ self.model.S, part, axes=1)

    @cached_property
    def inflation(self) -> np.ndarray:
        """C, (p, p)."""
        model, P, v, u = self.model, self.P, self._donors, self._levels
        weight = model.S.T @ self.W @ model.S  # of pairs of factors
        R, level = v.shape[1], v.shape[1] + P.level_component
        F = self._factors
        DF = P.inverse @ F
        inner = F.swapaxes(1, 2) @ DF
        flat = v.reshape(-1, v.shape[2])
        out = flat.T @ ((weight[:R, :R] * inner) @ v).reshape(flat.shape)
        if len(level):
            through = DF.swapaxes(1, 2) @ P.spread(P.Z)  # f'D^-1 Z
            met = v.transpose(1, 2, 0) @ through.transpose(1, 0, 2)
            K = P.omega[: len(level), : len(level)]
            M = P.Z.T @ P.within(P.Z)
            keep = np.eye(len(level)) - K @ M
            out -= np.einsum("fg,fax,gbx->ab", weight[:R, :R], met @ K, met, optimize=True)
            across = np.einsum("fx,fax,xb->ab", weight[:R, level], met @ keep, u, optimize=True)
            out += across + across.T + u.T @ (weight[np.ix_(level, level)] * (M @ keep)) @ u
        out -= np.einsum("jab,jbc->ac", self.slopes, self.slopes)
        return out + out.T

    @cached_property
    def _factors(self) -> np.ndarray:
        """Columns of every donor, (N, m, R)."""
        return self.P.spread(self.model.W)

    @cached_property
    def _donors(self) -> np.ndarray:
        """root'X'S f of every donor and factor, (N, R, p)."""
        return self._factors.swapaxes(1, 2) @ self.P.spread(self.P.U)

    @cached_property
    def _levels(self) -> np.ndarray:
        """root'X'S f of every level, (q, p)."""
        return self.P.Z.T @ self.P.U


def variation(model: Model, theta: np.ndarray, W: np.ndarray) -> Variation:
    """Derivatives at `theta`, whose estimate has the covariance `W`.

    Raises
    ------
    ConvergenceError
        Sigma is not positive definite.
    """
    return Variation(model, Precision(model, theta), W)
