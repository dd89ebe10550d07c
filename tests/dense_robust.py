"""The noise-robust estimator by brute force: n x n matrices and the textbook's formulas.

Nothing is shared with the package but the arrays of a Model.  Units are left out by taking their
rows out; square roots are those of symmetric matrices by their eigenvectors.
"""

from __future__ import annotations

from types import SimpleNamespace

import dense
import numpy as np
from scipy import linalg, stats

ALONE = 1e-9


def power(A: np.ndarray, exponent: float, cut: float = 0.0) -> np.ndarray:
    """Power of a symmetric matrix, generalised: eigenvalues up to `cut` count as zero."""
    size, axes = np.linalg.eigh(A)
    kept = size > cut
    return (axes[:, kept] * size[kept] ** exponent) @ axes[:, kept].T


def working(model, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the true expression and variances of random effects, as weights take them."""
    K = len(model.basis)
    smallest = np.array([np.linalg.eigvalsh(B)[0] for B in model.basis])
    if (smallest > -1e-12).all():
        A = np.tensordot(np.maximum(theta[:K], 0), model.basis, axes=1)
    else:
        shared = np.array([bool((B == 1).all()) for B in model.basis])
        rest = np.tensordot(theta[:K][~shared], model.basis[~shared], axes=1)
        A = np.tensordot(np.maximum(theta[:K][shared], 0), model.basis[shared], axes=1)
        A = A + power(rest, 1.0)
    return A, np.maximum(theta[K:], 0)


def units(a: SimpleNamespace) -> np.ndarray:
    """Number of the unit of every row: donors that share levels, directly or through others."""
    joined = a.donor[:, None] == a.donor[None, :]
    for Z in a.levels:
        joined = joined | (Z @ Z.T != 0)
    for _ in range(int(np.ceil(np.log2(len(joined))))):  # paths twice as long each time
        joined = (joined.astype(float) @ joined) > 0
    return np.unique(joined.argmax(axis=1), return_inverse=True)[1]


def solve(Sigma, X, y, D, parts) -> SimpleNamespace:
    """b and theta at fixed weights Sigma^-1; X may lack rank, and theta is NaN where F does."""
    S = np.linalg.inv(Sigma)
    K = np.linalg.pinv(X.T @ S @ X, rcond=1e-10, hermitian=True)
    P = S - S @ X @ K @ X.T @ S
    PA = P @ parts
    F = np.einsum("kab,lba->kl", PA, PA)
    excess = np.array([y @ M @ P @ y - np.trace(M @ P @ D) for M in PA])
    condition = np.linalg.cond(F)
    theta = np.linalg.solve(F, excess) if condition < 1e15 else np.full(len(F), np.nan)
    return SimpleNamespace(theta=theta, beta=K @ X.T @ S @ y, K=K, S=S, F=F, condition=condition)


def fit(model, reweightings: int = 4) -> SimpleNamespace:
    """The estimate with its weights, from equal ones on."""
    a = dense.arrays(model)
    w = dense.working_noise(model)[model.active_rows]
    w = np.maximum(w, 1e-3 * w.mean())
    Sigma, worst, out = np.eye(len(a.y)), 0.0, None
    at = np.zeros(len(a.parts))
    same = a.donor[:, None] == a.donor[None, :]
    for step in range(reweightings + 1):
        if step:
            at = out.theta
            A, g = working(model, at)
            Sigma = same * (a.H @ A @ a.H.T) + np.diag(w)
            Sigma = Sigma + sum(v * Z @ Z.T for v, Z in zip(g, a.levels, strict=True))
        out = solve(Sigma, a.X, a.y, a.D, a.parts)
        worst = max(worst, out.condition)
    cells = None if model.n_cells is None else model.n_cells[model.active_rows]
    return SimpleNamespace(
        **vars(out) | {"condition": worst}, a=a, Sigma=Sigma, unit=units(a), w=w, cells=cells,
        free=free(model, at),
    )  # fmt: skip


def jackknife(f: SimpleNamespace) -> list[SimpleNamespace]:
    """The same equations without the rows of each unit."""
    a, out = f.a, []
    for u in range(f.unit.max() + 1):
        k = f.unit != u
        part = np.ix_(k, k)
        parts = np.array([A[part] for A in a.parts])
        out.append(solve(f.Sigma[part], a.X[k], a.y[k], a.D[part], parts))
    return out


def error_df(theta: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the jackknife's variances of replicates (U, K), by k statistics."""
    spread = np.array([2.0 * stats.kstat(t, 2) ** 2 / stats.kstatvar(t, 2) for t in theta.T])
    most = 1.0 / (len(theta) - 1)
    own = np.where(spread > 0, np.maximum(1.0 / spread, most), most)
    return 1.0 / np.maximum(own, own.mean())


def moved(f: SimpleNamespace, L: np.ndarray, null: np.ndarray | float) -> np.ndarray:
    """Covariance of L b with the noise that the rows have halfway to where L b is `null`."""
    a, n = f.a, f.cells
    if n is None:
        return L @ f.K @ L.T
    r = a.y - a.X @ f.beta
    slope = 0.5 * np.sum(n * r * (n * np.diag(a.D) - n * f.w)) / np.sum(n * r**2)
    back, M = f.K @ a.X.T @ f.S, f.K
    for _ in range(3):
        there = f.beta - M @ L.T @ np.linalg.pinv(L @ M @ L.T) @ (L @ f.beta - null)
        extra = np.maximum(slope * (a.X @ (there - f.beta)) / n, -0.8 * f.w)
        M = back @ (f.Sigma + np.diag(extra)) @ back.T
    return L @ M @ L.T


def marchenko_pastur(ratio: float, ridge: float) -> tuple[float, float]:
    """Mean of (1 + ridge) / (l + ridge), and its mean square over that squared, by quadrature.

    l follows the law of Marchenko and Pastur, whose atom at 0 is there where ratio > 1.
    """
    if ratio < 1e-12:
        return 1.0, 1.0
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    node, weight = np.polynomial.chebyshev.chebgauss(4000)
    at = 0.5 * (low + high) + 0.5 * (high - low) * node
    density = weight * (0.5 * (high - low)) ** 2 * (1 - node**2) / (2 * np.pi * ratio * at)
    atom = max(1 - 1 / ratio, 0)
    first, second = (density @ (at + ridge) ** -k + atom * ridge**-k for k in (1.0, 2.0))
    return (1 + ridge) * first, second / first**2


def by_components(f: SimpleNamespace, L: np.ndarray) -> float:
    """Variance of the shape of L K L' = I (q, q), as components of the weights are estimates."""
    back = L @ f.K @ f.a.X.T @ f.S
    each = back @ np.tensordot(f.free.T, f.a.parts, axes=1) @ back.T
    shape = each - np.einsum("kss,ab->kab", each, np.eye(len(L))) / len(L)
    W = 2.0 * np.linalg.inv(f.free.T @ f.F @ f.free)
    return float(np.einsum("kl,kab,lab", W, shape, shape)) / len(L)


def free(model, theta: np.ndarray) -> np.ndarray:
    """Directions (K, r) in which the covariance of :func:`working` moves."""
    K = len(model.basis)
    out = np.eye(len(theta))
    smallest = np.array([np.linalg.eigvalsh(B)[0] for B in model.basis])
    together = np.zeros(len(theta), dtype=bool)
    if (smallest <= -1e-12).any():
        together[:K] = [not (B == 1).all() for B in model.basis]
    held = [row for row, t, own in zip(out, theta, together, strict=True) if t <= 0 and not own]
    size, axes = np.linalg.eigh(np.tensordot(np.where(together, theta, 0)[:K], model.basis, axes=1))
    cut = axes[:, size <= 0].T if together.any() else []
    for u in cut:
        for v in cut:
            held.append(np.append([u @ B @ v for B in model.basis], np.zeros(len(theta) - K)))
            held[-1] = held[-1] * together
    if not held:
        return np.eye(len(theta))
    return linalg.null_space(np.array(held), rcond=1e-9)


def ends(f: SimpleNamespace, row: np.ndarray, alpha: float, low: float, high: float) -> np.ndarray:
    """t tests of both ends of an interval, in units of the quantile they should be at."""
    own = [cr2(f, row[None], end) for end in (low, high)]
    quantile = stats.t.isf(alpha / 2, own[0].df[0])
    return np.array([one.t[0] / quantile for one in own])


def cr2(f: SimpleNamespace, L: np.ndarray, null: np.ndarray | float = 0.0) -> SimpleNamespace:
    """CR2 covariance, Satterthwaite df and HTZ test from the n x n covariance of residuals.

    Tests go by the noise that the rows have where L b is `null`.  units (q, U, n): what makes of y
    the terms of rows with E V = I.
    """
    a, n, q = f.a, len(f.a.y), len(L)
    values = np.broadcast_to(null, q)
    count = f.unit.max() + 1
    g = np.zeros((q, n, count))
    for u in range(count):
        k = np.flatnonzero(f.unit == u)
        part = np.ix_(k, k)
        root = power(f.Sigma[part], 0.5)
        back = np.linalg.inv(root)
        H = back @ a.X[k] @ f.K @ a.X[k].T @ back
        adjust = root @ power(np.eye(len(k)) - H, -0.5, ALONE) @ back
        g[:, k, u] = (adjust.T @ f.S[part] @ a.X[k] @ f.K @ L.T).T
    residual = a.y - a.X @ f.beta
    each = np.einsum("snu,n->su", g, residual)
    V = each @ each.T
    covariance = f.Sigma - a.X @ f.K @ a.X.T
    G = np.einsum("snu,nm,tmv->stuv", g, covariance, g, optimize=True)
    df = np.array([np.trace(G[s, s]) ** 2 / np.square(G[s, s]).sum() for s in range(q)])
    expected = np.array([[np.trace(G[s, t]) for t in range(q)] for s in range(q)])
    half = power(expected, -0.5)
    G = np.einsum("as,bt,stuv->abuv", half, half, G)
    var = [
        np.sum(G[s, s] * G[t, t]) + np.sum(G[s, t] * G[t, s])
        for s in range(q) for t in range(q)
    ]  # fmt: skip
    of_trace = 2.0 * np.square(G).sum()
    shape, phi = (sum(var) - of_trace / q) / q, of_trace / q**2
    kappa = min(by_components(f, half @ L), shape)
    away, back = L @ f.beta - null, np.linalg.inv(half)
    at = power(half @ moved(f, L, null) @ half, 0.5)
    w, even = shape / (1 + shape), half @ V @ half
    there = back @ at @ ((1 - w) * even + w * np.trace(even) / q * np.eye(q)) @ at @ back
    mean, square = (part / (1 - kappa) for part in marchenko_pastur(shape - kappa, shape))
    excess = square - 1
    few = excess / (4 * excess + q + 2)
    df_denom = 1 / (few + phi / 2)
    F = away @ np.linalg.pinv(there) @ away / q / mean / (1 - 2 * few)
    if not (q * (q + 1) / sum(var) > q - 1 and kappa < 1):
        F = df_denom = np.nan
    alone = [moved(f, L[[k]], away_from)[0, 0] for k, away_from in enumerate(values)]
    t = away / np.sqrt(np.diag(V) * alone / np.diag(expected))
    maker = (half @ np.moveaxis(g, 1, 2).reshape(q, -1)).reshape(q, count, n)
    maker = maker - maker @ a.X @ f.K @ a.X.T @ f.S
    return SimpleNamespace(
        cov=V, df=df, F=F, df_denom=df_denom, scale=1 / mean / (1 - 2 * few), expected=expected,
        t=t, units=maker, shape=shape, phi=phi,
    )  # fmt: skip
