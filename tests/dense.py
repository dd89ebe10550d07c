"""The model by brute force: n x n matrices, plain numpy, nothing shared with the package.

Everything the engine gets from sums over donors is written down here as in the textbook.  Only
the arrays of a Model are read: y, nu, X, H, basis, random, kinship, row_donor, active_rows and
n_cells.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from ctmm_formula.inference.cumulants import mixture
from ctmm_formula.inference.tails import tail


def arrays(model) -> SimpleNamespace:
    """Rows in use, the derivatives Sigma_k (n x n) and the incidence matrices of the levels."""
    keep = model.active_rows
    donor = model.row_donor[keep]
    H = model.H[keep]
    same = donor[:, None] == donor[None, :]
    parts = [same * (H @ B @ H.T) for B in model.basis]
    levels = []
    for codes, values in model.random:
        Z = np.zeros((len(model.y), int(codes.max()) + 1))
        Z[np.arange(len(model.y)), codes] = values
        levels.append(Z[keep])
        parts.append(Z[keep] @ Z[keep].T)
    for kernel, basis in model.kinship:
        K = kernel.matrix if kernel.root is None else kernel.root @ kernel.root.T
        parts += [K[np.ix_(donor, donor)] * (H @ B @ H.T) for B in basis]
    return SimpleNamespace(
        y=model.y[keep], D=np.diag(model.nu[keep]), X=model.X[keep], H=H, donor=donor,
        parts=np.array(parts), levels=levels,
    )  # fmt: skip


def covariance(a: SimpleNamespace, theta: np.ndarray) -> np.ndarray:
    """Sigma = D + sum_k theta_k Sigma_k."""
    return a.D + np.tensordot(theta, a.parts, axes=1)


def projection(Sigma: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """M = Sigma^-1 and P = M - M X (X'M X)^-1 X'M."""
    M = np.linalg.inv(Sigma)
    return M, M - M @ X @ np.linalg.solve(X.T @ M @ X, X.T @ M)


def gls(model, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """b = (X'M X)^-1 X'M y and its covariance."""
    a = arrays(model)
    M = np.linalg.inv(covariance(a, theta))
    cov = np.linalg.inv(a.X.T @ M @ a.X)
    return cov @ a.X.T @ M @ a.y, cov


def ols(model) -> np.ndarray:
    """b = (X'X)^-1 X'y."""
    a = arrays(model)
    return np.linalg.lstsq(a.X, a.y, rcond=None)[0]


def llf(model, theta: np.ndarray, method: str) -> float:
    """Log-likelihood with all constants; -inf where Sigma is not positive definite."""
    a = arrays(model)
    Sigma = covariance(a, theta)
    if np.linalg.eigvalsh(Sigma)[0] <= 0:
        return -np.inf
    M, P = projection(Sigma, a.X)
    n, p = a.X.shape
    out = np.linalg.slogdet(Sigma)[1] + a.y @ P @ a.y + n * np.log(2 * np.pi)
    if method == "reml":
        out += np.linalg.slogdet(a.X.T @ M @ a.X)[1] - np.linalg.slogdet(a.X.T @ a.X)[1]
        out -= p * np.log(2 * np.pi)
    return -0.5 * float(out)


def score(model, theta: np.ndarray, method: str) -> np.ndarray:
    """Gradient of the log-likelihood, 1/2 (r'Sigma_k r - tr P Sigma_k)."""
    a = arrays(model)
    M, P = projection(covariance(a, theta), a.X)
    r, W = P @ a.y, P if method == "reml" else M
    return np.array([0.5 * (r @ S @ r - np.sum(W * S)) for S in a.parts])


def score_numerical(model, theta: np.ndarray, method: str, step: float = 2e-3) -> np.ndarray:
    """The same by central differences with two Richardson steps, error O(step^6)."""
    out = []
    for e in np.eye(len(theta)):
        t = [
            (llf(model, theta + h * e, method) - llf(model, theta - h * e, method)) / (2 * h)
            for h in (step, step / 2, step / 4)
        ]
        first = [(4 * t[1] - t[0]) / 3, (4 * t[2] - t[1]) / 3]
        out.append((16 * first[1] - first[0]) / 15)
    return np.array(out)


def average_information(model, theta: np.ndarray) -> np.ndarray:
    """AI_kl = 1/2 (Sigma_k r)' P (Sigma_l r)."""
    a = arrays(model)
    _, P = projection(covariance(a, theta), a.X)
    F = a.parts @ (P @ a.y)
    return 0.5 * F @ P @ F.T


def expected_information(model, theta: np.ndarray, method: str) -> np.ndarray:
    """Fisher_kl = 1/2 tr(P Sigma_k P Sigma_l); ML has Sigma^-1 for P."""
    a = arrays(model)
    M, P = projection(covariance(a, theta), a.X)
    F = np.array([(P if method == "reml" else M) @ S for S in a.parts])
    return 0.5 * np.einsum("kij,lji->kl", F, F)


def haseman_elston(model) -> tuple[np.ndarray, float]:
    """Least squares of Pi (yy' - D) Pi on {Pi Sigma_k Pi}, and the condition of its Gram matrix."""
    a = arrays(model)
    Pi = np.eye(len(a.y)) - a.X @ np.linalg.pinv(a.X)
    F = (Pi @ a.parts @ Pi).reshape(len(a.parts), -1)
    target = Pi @ (np.outer(a.y, a.y) - a.D) @ Pi
    return np.linalg.solve(F @ F.T, F @ target.ravel()), float(np.linalg.cond(F @ F.T))


def blups(model, theta: np.ndarray, shared: int | None) -> SimpleNamespace:
    """Predictions G Z'P y of (alpha, Gamma, levels) and sqrt diag(G - G Z'P Z G), in blocks.

    `shared` is the index of the component alpha_i belongs to; None: all of A belongs to Gamma.
    """
    a = arrays(model)
    _, P = projection(covariance(a, theta), a.X)
    N, C, K = len(model.donors), model.H.shape[1], len(model.basis)
    sigma2 = 0.0 if shared is None else theta[shared]
    V = np.tensordot(theta[:K], model.basis, axes=1) - sigma2
    Z_shared, Z_specific = np.zeros((len(a.y), N)), np.zeros((len(a.y), N, C))
    rows = np.arange(len(a.y))
    Z_shared[rows, a.donor], Z_specific[rows, a.donor] = a.H.sum(axis=1), a.H
    Z = [Z_shared, Z_specific.reshape(len(a.y), -1), *a.levels]
    G = [sigma2 * np.eye(N), np.kron(np.eye(N), V)]
    G += [g * np.eye(L.shape[1]) for g, L in zip(theta[K:], a.levels, strict=True)]
    values = [g @ z.T @ P @ a.y for g, z in zip(G, Z, strict=True)]
    variances = [np.diag(g - g @ z.T @ P @ z @ g) for g, z in zip(G, Z, strict=True)]
    with np.errstate(invalid="ignore"):  # a negative component has no standard error
        errors = [np.sqrt(v) for v in variances]
    fitted = a.X @ gls(model, theta)[0] + sum(z @ u for z, u in zip(Z, values, strict=True))
    return SimpleNamespace(
        shared=values[0], shared_se=errors[0],
        specific=values[1].reshape(N, C), specific_se=errors[1].reshape(N, C),
        random=values[2:], random_se=errors[2:], fitted=fitted,
    )  # fmt: skip


def working_noise(model) -> np.ndarray:
    """w_ic = (mean_i n_ic nu_ic) / n_ic per cell type; over all rows of overall pseudobulk."""
    one_hot = ((model.H == 0) | (model.H == 1)).all()
    kind = model.H.argmax(axis=1) if one_hot else np.zeros(len(model.y), dtype=int)
    cells = np.ones(len(model.y)) if model.n_cells is None else model.n_cells
    s2 = np.array([np.mean((cells * model.nu)[kind == c]) for c in range(kind.max() + 1)])
    return s2[kind] / cells


def null_fit(model, steps: int = 200, start=1.0) -> np.ndarray:
    """REML by Fisher scoring with step halving, components held >= 0 (active set).

    `start` is in units of .3 times the variance of the response.
    """
    theta = np.full(len(model.basis) + len(model.random), 0.3 * np.var(model.y)) * start
    for _ in range(steps):
        g, F = score(model, theta, "reml"), expected_information(model, theta, "reml")
        free = (theta > 0) | (g > 0)
        move = np.zeros_like(theta)
        move[free] = np.linalg.solve(F[np.ix_(free, free)], g[free])
        size, now = 1.0, llf(model, theta, "reml")
        while llf(model, np.maximum(theta + size * move, 0), "reml") < now and size > 1e-3:
            size /= 2
        theta = np.maximum(theta + size * move, 0)
        if move @ F @ move < 1e-16 or size < 1e-3:  # no step in sight of rounding helps
            break
    return theta


def best_null(model, hom_basis: np.ndarray) -> np.ndarray:
    """The null fit of the score test from several starts: a likelihood may have several maxima."""
    null = model.with_basis(hom_basis).with_response(model.y, working_noise(model))
    starts = [1.0, *(0.05 + 3.0 * np.eye(len(hom_basis) + len(model.random)))]
    return max(
        (null_fit(null, start=start) for start in starts), key=lambda t: llf(null, t, "reml")
    )


def score_test(model, hom_basis: np.ndarray, theta=None) -> SimpleNamespace:
    """The noise-robust score test of V_c = 0 and of their sum: T / sd, p values by Imhof."""
    null = model.with_basis(hom_basis).with_response(model.y, working_noise(model))
    theta = null_fit(null) if theta is None else theta
    a = arrays(null)
    _, P = projection(covariance(a, theta), a.X)
    Sigma = covariance(a, theta) - a.D + np.diag(model.nu)  # null covariance, raw noise
    same = a.donor[:, None] == a.donor[None, :]
    direction = [same * np.outer(h, h) for h in a.H.T]
    trace = np.einsum("kij,lji->kl", P @ a.parts, P @ a.parts)
    size, axes = np.linalg.eigh(Sigma)  # may be singular where no noise was measured
    root = axes * np.sqrt(np.maximum(size, 0.0))
    A = []
    for S in direction:
        coef = np.linalg.solve(trace, [np.sum((P @ T) * (P @ S).T) for T in a.parts])
        A.append(P @ (S - np.tensordot(coef, a.parts, axes=1)) @ P)
    out = SimpleNamespace(theta=theta, statistic=[], pvalue=[], form=[], A=[])
    for Ac in [*A, np.tensordot(sum_weights(model), A, axes=1)]:
        lam = np.linalg.eigvalsh(root.T @ Ac @ root)
        q = a.y @ Ac @ a.y
        out.statistic.append((q - np.sum(Ac * Sigma)) / np.sqrt(2 * np.sum(lam**2)))
        out.form.append((q, lam))
        out.A.append(Ac)
        out.pvalue.append(imhof(q, lam))
    return out


def sum_weights(model) -> np.ndarray:
    """Of the types in the sum of scores: their variance between cells where squares are known."""
    C, rows = model.H.shape[1], model.active_rows
    own = model.H[rows].argmax(axis=1)
    if model.nu2 is None or not np.array_equal(model.H[rows], np.eye(C)[own]):
        return np.ones(C)
    between = (model.n_cells * model.nu)[rows]
    s2 = np.array([between[own == c].mean() for c in range(C)])
    means = np.array([model.y[rows][own == c].mean() for c in range(C)])
    return s2 / s2.max() if np.cov(means, s2)[0, 1] > 0.0 else np.ones(C)


def score_variance(model, A: np.ndarray, hom_basis: np.ndarray, theta: np.ndarray) -> float:
    """Variance of y'A y - tr(A Sigma^) with unbiased squares nu2, entry by entry of A (n x n).

    Effects are normal with the null's components, the noise of a row has variance nu; the square
    of a row's noise less nu has variance 2 nu2 n / (n - 1).
    """
    a = arrays(model.with_basis(hom_basis))
    effects = covariance(a, theta) - a.D
    nu, keep = np.diag(a.D), model.active_rows
    n = model.n_cells[keep]
    square = np.outer(nu, nu)
    np.fill_diagonal(
        square, np.where(np.isnan(model.nu2[keep]), nu**2, model.nu2[keep] * n / (n - 1))
    )
    mixed = 4.0 * np.trace(A @ effects @ A @ a.D)
    return 2.0 * np.trace(A @ effects @ A @ effects) + mixed + 2.0 * np.sum(A**2 * square)


def counted_noise(model, shared: float) -> SimpleNamespace:
    """What the noise of rows in use is as counts: pooled w, slope k, rho, squares and with effects.

    By regressions of the variance between cells on the mean, weighted by cells, type by type.
    """
    keep = model.active_rows
    y, nu, nu2, n = (one[keep] for one in (model.y, model.nu, model.nu2, model.n_cells))
    patterns, code = np.unique(model.types[keep], axis=0, return_inverse=True)
    code = np.zeros(len(y), int) if len(patterns) > model.H.shape[1] else code.ravel()
    w, k, square, product = np.zeros((4, len(y)))
    for c in np.unique(code):
        at = np.flatnonzero(code == c)
        x, W = (n * nu)[at], np.diag(n[at])
        D = np.column_stack([np.ones(len(at)), y[at] - np.average(y[at], weights=n[at])])
        # the slope as of variances about their plain mean
        b = np.linalg.solve(D.T @ W @ D, D.T @ W @ (x - x.mean()))[1]
        e = x - x.mean() - b * D[:, 1]
        error = np.linalg.inv(D.T @ W @ D)[1] @ D.T @ W @ np.diag(e)
        other = ~np.eye(len(at), dtype=bool)
        w[at], k[at] = x.mean() / n[at], b / x.mean()
        square[at] = (b**2 - error @ error) / x.mean() ** 2
        product[at] = np.outer(x, x)[other].mean() / n[at] ** 2
    rho, c = 1.0 / (1.0 + np.maximum(square, 0.0) * w), square * shared
    part = np.where(np.isnan(nu2), 0.0, rho**2)
    squares = part * np.nan_to_num(nu2) + (1.0 - part) * product * (1.0 + c)
    return SimpleNamespace(
        w=w, k=k, rho=rho, square=squares * n / (n - 1), effect=shared * w * (3.0 * c + c**2),
    )  # fmt: skip


def counted_variances(model, hom_basis: np.ndarray, theta: np.ndarray) -> list[float]:
    """Variances of the scores of all types and of their sum, as the noise of counts moves.

    Where pairs of a donor count, with the donor's part in place of all that A = P Delta P has.
    """
    null = model.with_basis(hom_basis).with_response(model.y, working_noise(model))
    a = arrays(null)
    _, P = projection(covariance(a, theta), a.X)
    same = a.donor[:, None] == a.donor[None, :]
    S = np.linalg.inv(np.where(same, theta[0] * a.parts[0], 0.0) + a.D)
    own = P * same
    effects = covariance(a, theta) - a.D
    noise, nu = counted_noise(model, theta[0]), model.nu[model.active_rows]
    expected = np.outer(noise.w, noise.w) * (1.0 + theta[0] * np.outer(noise.k, noise.k))
    rest = (1.0 - np.outer(noise.rho, noise.rho)) * (expected - np.outer(nu, nu)) * same
    np.fill_diagonal(rest, 0.0)
    trace = np.einsum("kij,lji->kl", P @ a.parts, P @ a.parts)
    load = a.H.sum(axis=1)
    touched = [P @ Z * (same @ (Z != 0.0)) for Z in a.levels]  # by levels that the donor has
    forms, parts = [], []
    for h in a.H.T:
        T = same * np.outer(h, h)
        coef = np.linalg.solve(trace, [np.sum((P @ D) * (P @ T).T) for D in a.parts])
        forms.append(P @ (T - np.tensordot(coef, a.parts, axes=1)) @ P)
        half = own @ (T - coef[0] * a.parts[0]) @ S
        of_levels = sum(g * U @ U.T for g, U in zip(coef[1:], touched, strict=True))
        parts.append((half + half.T) / 2.0 - of_levels * same)
    w, out = sum_weights(model), []
    forms.append(np.tensordot(w, forms, axes=1))
    parts.append(np.tensordot(w, parts, axes=1))
    for A, B in zip(forms, parts, strict=True):
        square = np.outer(nu, nu)
        np.fill_diagonal(square, noise.square)
        variance = 2.0 * np.trace(A @ effects @ A @ effects)
        variance += 4.0 * np.trace(A @ effects @ A @ np.diag(nu)) + 2.0 * np.sum(A**2 * square)
        variance += 2.0 * np.sum(B**2 * rest) + 4.0 * np.square(B @ load) @ noise.effect
        out.append(float(variance))
    return out


def imhof(q: float, lam: np.ndarray) -> float:
    """P(sum_j lam_j chi2_1 > q) by numerical inversion (Imhof 1961)."""
    lam = lam[np.abs(lam) > 1e-12 * np.abs(lam).max()]
    scale = np.abs(lam).max()
    lam, q = lam / scale, q / scale

    # beyond u the integral is below 2 / (k rho(u)) for k eigenvalues: stop at 1e-8
    edges = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 120)])
    bound = np.exp(-0.25 * np.log1p(np.outer(edges, lam) ** 2).sum(axis=1))
    stop = int(np.argmax(bound < 1e-8))
    node, weight = np.polynomial.legendre.leggauss(20)  # in pieces of less than a turn
    parts = []
    for low, high in pairwise(edges[: stop + 1]):
        turn = 0.5 * (abs(q) + np.abs(lam).sum()) * (high - low)
        cut = np.linspace(low, high, 2 + int(turn / 4))
        half = np.diff(cut)[:, None] / 2
        u = cut[:-1, None] + half * (1 + node)
        x = u[..., None] * lam
        angle = 0.5 * np.arctan(x).sum(axis=-1) - 0.5 * q * u
        value = np.sin(angle) / (u * np.exp(0.25 * np.log1p(x**2).sum(axis=-1)))
        parts.append(np.sum(half * weight * value))
    return float(0.5 + sum(parts) / np.pi)


def upper_tail(value: float, lam: np.ndarray) -> float:
    """P(sum_j lam_j chi2_1 > value) by the compiled contour, of weights alone."""
    lam = lam[np.abs(lam) > 1e-12 * np.abs(lam).max()]
    return float(np.exp(tail(value, mixture(lam), 0.0, 0.0, 1e-8)[0]))


def tilted(q: float, lam: np.ndarray, draws: int, rng) -> tuple[float, float]:
    """P(sum_j lam_j chi2_1 > q) far in the tail by importance sampling, and its standard error.

    Draws come from the exponentially tilted variables, whose mean is q, and are weighted back.
    """
    lam = lam[np.abs(lam) > 1e-8 * np.abs(lam).max()]
    low, high = 0.0, 0.5 / lam.max()
    for _ in range(200):
        s = 0.5 * (low + high)
        low, high = (s, high) if np.sum(lam / (1 - 2 * s * lam)) < q else (low, s)
    Q = rng.chisquare(1, (draws, len(lam))) @ (lam / (1 - 2 * s * lam))
    shift = -0.5 * np.sum(np.log1p(-2 * s * lam)) - s * q
    value = np.where(q < Q, np.exp(-s * (Q - q)), 0.0)
    scale = np.exp(shift)
    return float(scale * value.mean()), float(scale * value.std() / draws**0.5)
