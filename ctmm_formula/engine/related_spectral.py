"""Likelihoods of one kinship of any rank where no pair is missing: donors are rotated.

With all rows of donors alike in H, K = O diag(k) O' and noise of a cell type the same for all
donors, D = diag(d), the rows O'y of rotated donors do not depend on each other,

    Sigma_j = k_j A_g + A_e + D   (of the cell types),   A_e + D = L L',
    L^-1 A_g L^-T = V diag(a) V',

and with T = V'L^-1 on the cell types neither do these: variances are 1 + k_j a_c.  A likelihood
with score and information costs O(N C (N p + C^2 + p^2)), whatever the rank.

The noise nu of donors differs.  D is its mean in each cell type, a working noise that has no errors
of single pairs in its weights, and what it leaves, E = diag(nu) - D, is left to centre the score:

    2 score_k = r'Sigma_k r - tr(P Sigma_k) - tr(P Sigma_k P E),   r = P y,

which is unbiased whatever nu is, and the gradient of the log-likelihood with 1/2 tr(P E) added.  So
where nu is the same for all donors this is the exact likelihood, else a quasi-likelihood.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from .estimate import At, Equations, Fixed
from .model import Model

_LOG_2PI = math.log(2.0 * math.pi)


def rotates(model: Model) -> bool:
    """Whether a model has one kinship, no other random effects, and all pairs.

    >>> from ctmm_formula.engine.model import build_model
    >>> from ctmm_formula.engine.relatedness import Kernel, KernelTerm
    >>> H, one = np.tile(np.eye(2), (3, 1)), np.ones((1, 2, 2))
    >>> build = lambda n: build_model(
    ...     np.arange(6.0)[:n], np.ones(n), H[:n], H[:n], np.repeat([0, 1, 2], 2)[:n], one,
    ...     kinship=[KernelTerm(Kernel(np.eye(3), None), one)])
    >>> rotates(build(6)), rotates(build(5))
    (True, False)
    """
    if len(model.kinship) != 1 or model.random:
        return False
    size = np.diff(model.row_ptr)[model.active]
    if not (size == size[0]).all():
        return False
    return not np.ptp(model.H[_rows(model)], axis=0).any()


def _rows(model: Model) -> np.ndarray:
    """Rows of the donors in use, (N, r), those of a donor in the order of H."""
    rows = np.flatnonzero(model.active_rows)
    order = np.lexsort((*model.H[rows].T, model.row_donor[rows]))
    return rows[order].reshape(model.n_donors, -1)


class _Projected(NamedTuple):
    """P = diag(w) - U U' of rotated donors (N, r), whose types are turned by T (r, r).

    logdet log|Sigma|; low low' = X'Sigma^-1 X; U (N, r, p); beta (p,); y and Py (N, r).
    """

    T: np.ndarray
    w: np.ndarray
    logdet: float
    low: np.ndarray
    U: np.ndarray
    beta: np.ndarray
    y: np.ndarray
    Py: np.ndarray


class Rotated:
    """The likelihood of a model that rotates.

    Parameters
    ----------
    model : Model
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        (term,), rows, donors = model.kinship, _rows(model), np.flatnonzero(model.active)
        self.rows = rows
        kernel = term.kernel if len(donors) == len(model.active) else term.kernel.of(donors)
        self.size, self.axes = kernel.spectrum
        nu, H = model.nu[rows], model.H[rows[0]]
        self.noise = nu.mean(axis=0)
        self.excess = nu - self.noise
        self.turned = np.square(self.axes).T @ self.excess  # (O o O)'E
        self.y = self._turn(model.y[rows][..., None])
        self.X = self._turn(model.Q[rows])
        self.own = H @ model.basis @ H.T
        self.related = H @ term.basis @ H.T

    def _turn(self, values: np.ndarray) -> np.ndarray:
        """Values (N, r, j) of donors as those of rotated ones."""
        return (self.axes.T @ values.reshape(len(values), -1)).reshape(values.shape)

    def _back(self, values: np.ndarray) -> np.ndarray:
        """And back."""
        return (self.axes @ values.reshape(len(values), -1)).reshape(values.shape)

    def _by_row(self, values: np.ndarray) -> np.ndarray:
        """And back, by row of the model (n, j), zero in rows that are not in use."""
        out = np.zeros((len(self.model.y), values.shape[2]))
        out[self.rows] = self._back(values)
        return out

    def at(self, theta: np.ndarray, reml: bool, full: bool = True) -> At | None:
        """The likelihood at theta (K,), None where Sigma is not positive definite."""
        found = self._projected(theta)
        if found is None:
            return None
        T, w, logdet, root, U, beta, y, e = found
        N, r, p = U.shape
        back = self._back(T.T @ U)
        EU = self.excess[..., None] * back
        core = np.tensordot(back, EU, axes=([0, 1], [0, 1]))  # U'E U
        log = logdet + float((y * e).sum()) + (N * r - (p if reml else 0)) * _LOG_2PI
        log += 2.0 * float(np.log(root.diagonal()).sum()) if reml else 0.0
        log -= float((w * (self.turned @ np.square(T).T)).sum() - np.trace(core))  # tr(P E)
        nan = np.full((len(theta),) * 2, math.nan)
        if not full:
            return At(-0.5 * log, nan[0], nan, beta, root @ root.T)
        EU = w[..., None] * (T @ self._turn(EU))
        SES = w[:, :, None] * ((T * self.turned[:, None]) @ T.T) * w[:, None]
        score, F = [], []
        for size, parts in ((np.ones(N), self.own), (self.size, self.related)):
            sized = size[:, None, None] * U
            inner = np.diag(size @ w) + np.tensordot(size, SES, axes=1)  # blocks of P + P E P
            inner += np.tensordot(sized, U @ core - 2.0 * EU, axes=([0, 2], [0, 2]))
            if reml:
                inner -= np.tensordot(sized, U, axes=([0, 2], [0, 2]))
            for B in T @ parts @ T.T:
                F.append(size[:, None] * (e @ B))
                score.append(0.5 * float((F[-1] * e).sum() - (B * inner).sum()))
        flat, U = np.array(F).reshape(len(F), -1), U.reshape(-1, p)
        PF = flat * w.ravel() - (flat @ U) @ U.T
        return At(-0.5 * log, np.array(score), 0.5 * flat @ PF.T, beta, root @ root.T)

    def equations(self, theta: np.ndarray, nu: np.ndarray) -> Equations | None:
        """Moments weighted at theta, None where Sigma is not positive definite.

        With tr(P Sigma_k) = tr(P Sigma_k P Sigma) they are those at theta and twice the score.
        """
        del nu  # it is that of the model
        found, at = self._projected(theta), self.at(theta, True)
        if found is None or at is None:
            return None
        T, w, _, root, U, beta, *_ = found
        N, _, p = U.shape
        sizes = np.repeat([np.ones(N), self.size], [len(self.own), len(self.related)], axis=0)
        B = T @ np.concatenate([self.own, self.related]) @ T.T
        moved = B[:, None] @ (sizes[..., None, None] * U)  # Sigma_k U
        inner = np.tensordot(moved, U, axes=([1, 2], [0, 1]))  # U' Sigma_k U, (K, p, p)
        flat, over = moved.reshape(len(B), -1), (w[..., None] * moved).reshape(len(B), -1)
        traces = inner.reshape(len(B), -1) @ inner.reshape(len(B), -1).T - 2.0 * flat @ over.T
        blocks = sizes[:, :, None, None] * (w[..., None] * B[:, None])  # diag(w) Sigma_k, by donor
        turned = blocks.transpose(0, 1, 3, 2).reshape(len(B), -1)
        traces += blocks.reshape(len(B), -1) @ turned.T
        back = self._back(T.T @ U)
        core = np.tensordot(back, self.excess[..., None] * back, axes=([0, 1], [0, 1]))
        return Equations(traces, traces @ theta + 2.0 * at.score, beta, root, np.eye(p) + core)

    def fixed(self, theta: np.ndarray) -> Fixed | None:
        """What the fixed effects move with at theta, None where Sigma is not positive definite."""
        k = len(self.own)
        found = self._types(theta[:k], theta[k:])
        if found is None:
            return None
        T, w, _ = found
        X = T @ self.X
        SX = (w[..., None] * X).reshape(-1, X.shape[2])
        low = np.linalg.cholesky(X.reshape(SX.shape).T @ SX)
        U = np.linalg.solve(low, SX.T).T
        turned = T.T @ U.reshape(X.shape)
        moved = [B @ turned for B in self.own]
        moved += [self.size[:, None, None] * (B @ turned) for B in self.related]

        def solve(Y: np.ndarray) -> np.ndarray:
            return self._by_row(T.T @ (w[..., None] * (T @ self._turn(Y[self.rows]))))

        return Fixed(low, self._by_row(turned), np.array([*map(self._by_row, moved)]), solve)

    def _projected(self, theta: np.ndarray) -> _Projected | None:
        """P = diag(w) - U U' at theta, None where Sigma is not positive definite."""
        k = len(self.own)
        found = self._types(theta[:k], theta[k:])
        if found is None:
            return None
        T, w, logdet = found
        X, y = T @ self.X, (T @ self.y)[..., 0]
        (N, r, p), SX = X.shape, w[..., None] * X
        low, failed = lapack.dpotrf(np.tensordot(X, SX, axes=([0, 1], [0, 1])), lower=1)
        if failed:
            return None
        U = lapack.dtrtrs(low, SX.reshape(-1, p).T, lower=1)[0].T
        by = U.T @ y.ravel()
        beta = lapack.dtrtrs(low, by, lower=1, trans=1)[0]
        Py = w * y - (U @ by).reshape(N, r)
        return _Projected(T, w, logdet, low, U.reshape(N, r, p), beta, y, Py)

    def _types(
        self, own: np.ndarray, related: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float] | None:
        """T (r, r), inverse variances (N, r) of rotated donors and types, log|Sigma|."""
        A = np.tensordot(own, self.own, axes=1) + np.diag(self.noise)
        root, failed = lapack.dpotrf(A, lower=1)
        if failed:
            return None
        inverse = lapack.dtrtri(root, lower=1)[0]
        genetic = inverse @ np.tensordot(related, self.related, axes=1) @ inverse.T
        a, V = np.linalg.eigh(genetic)
        variance = 1.0 + np.outer(self.size, a)
        if not variance.min() > 0.0:
            return None
        logdet = float(np.log(variance).sum())
        logdet += 2.0 * len(variance) * float(np.log(root.diagonal()).sum())
        return V.T @ inverse, 1.0 / variance, logdet
