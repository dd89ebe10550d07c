"""Kenward and Roger's (1997) covariance, degrees of freedom and F by n x n matrices."""

from __future__ import annotations

from types import SimpleNamespace

import dense
import numpy as np


def held(model, theta: np.ndarray, floor: float | None = None) -> np.ndarray:
    """Directions that leave variance where donors' covariances have none, (m, K).

    Of the covariance above the share `floor` of the noise, or (None) of the true expression.
    """
    out = []
    for i in np.unique(model.row_donor):
        k = np.flatnonzero(model.row_donor == i)
        H = model.H[k]
        moves = np.array([H @ B @ H.T for B in model.basis])
        M = np.tensordot(theta[: len(moves)], moves, axes=1)
        if floor is not None:
            M = M + (1 - floor) * np.diag(model.nu[k])
        size, axes = np.linalg.eigh(M)
        none = axes[:, size < 1e-5 * np.abs(size).max()]
        pairs = [(v, u) for v in none.T for u in none.T]
        out += [[v @ move @ u for move in moves] for v, u in pairs]
    own = np.array(out).reshape(len(out), len(model.basis))
    return np.pad(own, ((0, 0), (0, len(theta) - own.shape[1])))


def adjusted(
    model, theta: np.ndarray, method: str = "reml", free=None, held=None
) -> SimpleNamespace:
    """Phi, Phi_A, W and the P_k of the components that are `free` (all of them by default).

    held: combinations of components (m, K) that keep their value, by Lagrange's equations.
    """
    a = dense.arrays(model)
    free = np.ones(len(theta), dtype=bool) if free is None else free
    S = np.linalg.inv(dense.covariance(a, theta))
    Phi = np.linalg.inv(a.X.T @ S @ a.X)
    information = dense.expected_information(model, theta, method)[np.ix_(free, free)]
    W = np.linalg.inv(information)
    if held is not None:
        N = held[:, free] / np.linalg.norm(held[:, free], axis=1, keepdims=True)
        N = N * np.sqrt(np.abs(np.diag(information)).max())
        whole = np.block([[information, N.T], [N, np.zeros((len(N), len(N)))]])
        W = np.linalg.pinv(whole, rcond=1e-7)[: len(W), : len(W)]
    G = [S @ part @ S for part, used in zip(a.parts, free, strict=True) if used]
    P = [-a.X.T @ g @ a.X for g in G]
    middle = np.zeros_like(Phi)
    for k, first in enumerate(G):
        for h, second in enumerate(G):
            Q = a.X.T @ first @ dense.covariance(a, theta) @ second @ a.X
            middle += W[k, h] * (Q - P[k] @ Phi @ P[h])
    return SimpleNamespace(Phi=Phi, cov=Phi + 2 * Phi @ middle @ Phi, W=W, P=P)


def traces(at: SimpleNamespace, L: np.ndarray) -> tuple[float, float]:
    """A1 and A2 of the hypotheses L b = c."""
    Theta = L.T @ np.linalg.solve(L @ at.Phi @ L.T, L)
    turned = [Theta @ at.Phi @ P @ at.Phi for P in at.P]
    first = sum(
        w * np.trace(s) * np.trace(t)
        for row, s in zip(at.W, turned, strict=True)
        for w, t in zip(row, turned, strict=True)
    )
    second = sum(
        w * np.trace(s @ t)
        for row, s in zip(at.W, turned, strict=True)
        for w, t in zip(row, turned, strict=True)
    )
    return float(first), float(second)


def satterthwaite(at: SimpleNamespace, row: np.ndarray) -> float:
    """2 (l'Phi l)^2 / Var(l'Phi l)."""
    g = np.array([row @ at.Phi @ P @ at.Phi @ row for P in at.P])
    return float(2 * (row @ at.Phi @ row) ** 2 / (g @ at.W @ g))


def scaled_f(at: SimpleNamespace, L: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """lambda F, m and lambda, the statistic, denominator and scale of Kenward and Roger."""
    q = len(L)
    A1, A2 = traces(at, L)
    B = (A1 + 6 * A2) / (2 * q)
    g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
    below = 3 * q + 2 * (1 - g)
    c1, c2, c3 = g / below, (q - g) / below, (q + 2 - g) / below
    E = 1 / (1 - A2 / q)
    V = 2 / q * (1 + c1 * B) / ((1 - c2 * B) ** 2 * (1 - c3 * B))
    rho = V / (2 * E**2)
    m = 4 + (q + 2) / (q * rho - 1)
    scale = m / (E * (m - 2))
    F = (L @ b) @ np.linalg.solve(L @ at.cov @ L.T, L @ b) / q
    return float(scale * F), float(m), float(scale)
