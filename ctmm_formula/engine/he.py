"""Haseman-Elston regression: the method of moments.

Least squares of Pi (y y' - D) Pi on Pi Sigma_k Pi under the Frobenius inner product, Pi the OLS
residual projection: theta = G^-1 (q - C nu) with

    G_kl = tr(Pi Sigma_k Pi Sigma_l),  q_k = (Pi y)' Sigma_k (Pi y),  C_ka = (Pi Sigma_k Pi)_aa

G and C hold neither y nor nu: one :class:`Moments` serves every gene of a design.  The estimate
is unbiased whatever the distribution of the noise, may be negative, and has no likelihood.

Sigma_k is a sum of factors Z K Z': Z (n x levels) has one entry a row, K is the identity for donors
and for levels of random effects, and the kernel of a kinship.  With T = Z'Q and M = Z_f' Z_g

    tr(Pi S_f Pi S_g) = tr(K_f M K_g M') - 2 <K_f T_f, M K_g T_g> + <T_f' K_f T_f, T_g' K_g T_g>

and between two kernels of donors M = diag(d), tr(K_f M K_g M') = d' (K_f o K_g) d: no n x n matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.linalg import block_diag

from ..errors import ConvergenceError
from . import kernels
from .domain import Domain
from .estimate import Convergence, Estimate
from .likelihood import evaluate, residual
from .model import Model, factors_of
from .precision import Precision
from .relatedness import Kernel

CONFOUNDED = 1e12
"""Condition number of G from which the components cannot be told apart."""

_NOTHING = 1e-10  # of a diagonal, or the smallest eigenvalue of a correlation matrix
_INVOLVED = 1e-4  # entry of an eigenvector


class Factor(NamedTuple):
    """Sigma_f = Z K Z'.

    Z : sparse (levels, n)
        Z', zero in rows that are not in use.
    kernel : Kernel over the levels, or None for the identity
    """

    Z: sp.csr_array
    kernel: Kernel | None = None

    def weigh(self, B: np.ndarray) -> np.ndarray:
        """K B for B (levels, j)."""
        return B if self.kernel is None else self.kernel.times(B)

    def times(self, B: np.ndarray) -> np.ndarray:
        """Z K Z' B for B (n, j)."""
        return self.Z.T @ self.weigh(self.Z @ B)

    def squares(self, B: np.ndarray) -> np.ndarray:
        """B_j' Z K Z' B_j of every column of B (n, j)."""
        own = self.Z @ B
        return np.asarray((own * self.weigh(own)).sum(axis=0))


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
    factors : tuple of Factor
        Donor loadings, random effects, kinship.
    S : ndarray, shape (K, F)
        Components to factors.
    rows : bool ndarray, shape (n,)
        Rows in use.
    cores : ndarray, shape (F, p, p)
        Q' Sigma_f Q of every factor.
    back : ndarray, shape (p, p)
        Fixed effects of X from those of Q.
    """

    gram: np.ndarray
    noise: np.ndarray
    Q: np.ndarray
    factors: tuple[Factor, ...]
    S: np.ndarray
    rows: np.ndarray
    cores: np.ndarray
    back: np.ndarray

    def residual(self, Y: np.ndarray) -> np.ndarray:
        """Pi Y of responses (n, G), zero in rows that are not in use."""
        Y = np.where(self.rows[:, None], Y, 0.0)
        return Y - self.Q @ (self.Q.T @ Y)

    def squares(self, E: np.ndarray) -> np.ndarray:
        """E' Sigma_k E of each residual (n, G), shape (K, G)."""
        return self.S @ np.array([factor.squares(E) for factor in self.factors])

    def solve(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """theta (G, K) of responses and noise variances (n, G).

        Raises
        ------
        ConvergenceError
            The components cannot be told apart in this design.
        """
        if np.linalg.cond(self.gram) > CONFOUNDED:
            raise ConvergenceError(
                "variance components cannot be told apart: singular moment matrix"
            )
        moments = self.squares(self.residual(Y)) - self.noise @ NU
        return np.linalg.solve(self.gram, moments).T


def moment_matrix(model: Model, projected: bool = True) -> np.ndarray:
    """tr(Pi Sigma_k Pi Sigma_l), (K, K), in O(n K p); without Pi if not `projected`.

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    F = model.S.shape[1]
    p = model.X.shape[1]
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    # P at Sigma = I is Pi, so the Fisher information there is half the normal matrix
    shape = model.tiles.shape
    llf = kernels.evaluate(
        kernels.kernel_address(), np.zeros(F), np.zeros(shape), np.ones(shape), model.blocks,
        model.tiles.donors(model.active, False), projected, kernels.INFORMATION,
        score, average, expected, np.zeros(p), np.zeros((p + 1, p + 1)),
    )  # fmt: skip
    if llf == -math.inf:
        raise ConvergenceError("the fixed effects are collinear in the donors in use")
    gram = np.asarray(2.0 * model.S @ expected @ model.S.T)
    return _with_kinship(model, gram, projected) if model.kinship else gram


def _with_kinship(model: Model, gram: np.ndarray, projected: bool) -> np.ndarray:
    """The matrix (K, K) of all components, from that of those without the kinship's."""
    Q = orthonormal(model) if projected else np.zeros((len(model.y), 0))
    known = [_Seen(factor, Q) for factor in (*_factors(model), *_kinship_factors(model))]
    first, R = model.S.shape[1], model.W.shape[1]
    meet, traces = _Meeting(), np.zeros((len(known), len(known)))
    for g in range(first, len(known)):
        for f in range(g + 1):
            donors = f < R or f >= first
            traces[f, g] = traces[g, f] = meet(known[f], known[g], donors)
    S = components_to_factors(model)
    out = S @ traces @ S.T
    out[: len(gram), : len(gram)] = gram
    return np.asarray(out)


class _Seen:
    """A factor and what the fixed effects take of it: T = Z'Q, K T, T' K T."""

    def __init__(self, factor: Factor, Q: np.ndarray) -> None:
        self.Z, self.kernel, self.T = factor.Z, factor.kernel, factor.Z @ Q
        self.KT = factor.weigh(self.T)
        self.core = self.T.T @ self.KT


class _Meeting:
    """tr(Pi Sigma_f Pi Sigma_g), g a kernel's, f of `donors` or levels; keeps K_f o K_g."""

    def __init__(self) -> None:
        self.products: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, f: _Seen, g: _Seen, donors: bool) -> float:
        M, K = f.Z @ g.Z.T, g.kernel
        assert K is not None
        if not donors:  # levels of a random effect: tr(M K M')
            whole = float((M @ K.whole * M.toarray()).sum())
        else:
            d = M.diagonal()
            Kd = d * K.diagonal if f.kernel is None else self.product(f.kernel, K) @ d
            whole = float(d @ Kd)
        return whole - 2.0 * float((f.KT * (M @ g.KT)).sum()) + float((f.core * g.core).sum())

    def product(self, one: Kernel, other: Kernel) -> np.ndarray:
        """K_f o K_g."""
        key = id(one), id(other)
        if key not in self.products:
            self.products[key] = one.whole * other.whole
        return self.products[key]


def components_to_factors(model: Model) -> np.ndarray:
    """S of all components (K, F), those of the kinship among them."""
    parts = [model.S, *(factors_of(term.basis)[1] for term in model.kinship)]
    return np.asarray(block_diag(*parts))


def orthonormal(model: Model) -> np.ndarray:
    """Fixed effects (n, p) orthonormal in the rows in use, zero elsewhere."""
    Q = np.where(model.active_rows[:, None], model.Q, 0.0)
    if Q.shape[1] and model.n_donors < len(model.active):
        Q = np.linalg.solve(np.linalg.cholesky(Q.T @ Q), Q.T).T
    return Q


def confounded(model: Model) -> list[int]:
    """Components that no method can tell apart or from the fixed effects, by number.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H, basis = np.tile(np.eye(2), (3, 1)), np.array([np.ones((2, 2)), np.eye(2)])
    >>> build = lambda H, donor: build_model(np.arange(6.), np.ones(6), H, H, donor, basis)
    >>> confounded(build(H, np.repeat([0, 1, 2], 2))), confounded(build(H, np.arange(6)))
    ([], [0, 1])
    """
    gram, whole = moment_matrix(model), np.diag(moment_matrix(model, projected=False))
    left = np.diag(gram) > _NOTHING * whole
    size = np.sqrt(np.diag(gram)[left])
    values, axes = np.linalg.eigh(gram[np.ix_(left, left)] / np.outer(size, size))
    null = np.abs(axes[:, values < _NOTHING]).max(axis=1, initial=0.0) > _INVOLVED
    return sorted([*np.flatnonzero(~left).tolist(), *np.flatnonzero(left)[null].tolist()])


def moments(model: Model) -> Moments:
    """Normal matrix and noise weights of the design of `model`, in O(n K p).

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    gram, Q = moment_matrix(model), orthonormal(model)
    back = model.back
    if len(back) and model.n_donors < len(model.active):
        back = back @ np.linalg.lstsq(model.Q[model.active_rows], Q[model.active_rows])[0]
    factors = (*_factors(model), *_kinship_factors(model))
    S = components_to_factors(model)
    known = [_noise_weights(factor, Q) for factor in factors]
    noise, cores = (np.array(part) for part in zip(*known, strict=True))
    return Moments(gram, S @ noise, Q, factors, S, model.active_rows, cores, back)


def fit(model: Model, method: str = "he", domain: Domain | None = None) -> Estimate:
    """Moment estimate of one response; b by GLS where Sigma is positive definite, else by OLS.

    Many responses of one design share :func:`moments`: ``complete(gene, theta)`` for each gene and
    row of ``moments(model).solve(Y, NU)`` are their estimates.

    Raises
    ------
    ConvergenceError
        The components cannot be told apart in this design.
    """
    del method, domain  # moments know no bounds
    design = moments(model)
    return complete(model, design.solve(model.y[:, None], model.nu[:, None])[0], design)


def between_donors(model: Model, theta: np.ndarray) -> np.ndarray:
    """What related donors add to the covariance (p, p) of b by OLS, where that is more.

    The positive part of (X'X)^-1 X' (Sigma between different donors) X (X'X)^-1.
    """
    B = model.Q @ model.back.T  # b = B'y
    if model.n_donors < len(model.active):
        B = np.linalg.pinv(np.where(model.active_rows[:, None], model.X, 0.0)).T
    phi = (theta @ components_to_factors(model))[model.S.shape[1] :]
    out = np.zeros((B.shape[1],) * 2)
    for factor, size in zip(_kinship_factors(model), phi, strict=True):
        T, kernel = factor.Z @ B, factor.kernel
        assert kernel is not None
        out += size * T.T @ (kernel.times(T) - kernel.diagonal[:, None] * T)
    values, axes = np.linalg.eigh(out)
    return np.asarray((axes * np.maximum(values, 0.0)) @ axes.T)


def ols(model: Model) -> np.ndarray:
    """b = (X'X)^-1 X'y of the rows in use, shape (p,)."""
    rows = model.active_rows
    return np.linalg.lstsq(model.X[rows], model.y[rows], rcond=None)[0]


def complete(model: Model, theta: np.ndarray, design: Moments | None = None) -> Estimate:
    """The estimate of one response with these variance components: b, and how it was had.

    With a kinship b is by OLS, its covariance (X'X)^-1 X' Sigma X (X'X)^-1; `design` is
    ``moments(model)``, where it is known.
    """
    K, p = len(theta), model.X.shape[1]
    nan = np.full((K, K), math.nan)
    if model.kinship:
        own = moments(model) if design is None else design
        noise = np.where(own.rows, model.nu, 0.0)
        cov = np.tensordot(theta @ own.S, own.cores, axes=1)
        cov += own.Q.T @ (noise[:, None] * own.Q)
        beta, cov = own.back @ (own.Q.T @ model.y), own.back @ cov @ own.back.T
        how = Convergence(True, False, 0.0, 1, 1, "closed form")
        return Estimate("he", theta, beta, cov, "ols", nan, nan, math.nan, how)
    at = evaluate(model, theta, "reml", full=False)
    gls, beta, cov_beta = math.isfinite(at.llf), at.beta, at.cov_beta
    if not gls and (known := over_blocks(model, theta)) is not None:
        # donors alone have no definite covariance, their blocks have
        gls, beta = True, model.back @ (known.effects(residual(model)) + model.Q.T @ model.y)
        turn = model.back @ known.root
        cov_beta = turn @ turn.T
    return Estimate(
        method="he",
        theta=theta,
        beta=beta if gls else ols(model),
        cov_beta=cov_beta if gls else np.full((p, p), math.nan),
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


def over_blocks(model: Model, theta: np.ndarray) -> Precision | None:
    """P at these components, where Sigma is positive definite by blocks of donors, else None.

    The compiled loops take donors first, and so need a definite covariance of every donor alone.
    """
    if not model.random or not np.isfinite(theta).all():
        return None
    try:
        return Precision(model, theta)
    except (ConvergenceError, np.linalg.LinAlgError):
        return None


def _factors(model: Model) -> list[Factor]:
    """Factors of donors' loadings, then of random effects."""
    loadings = [_incidence(model.row_donor, w, model.active_rows) for w in model.W.T]
    levels = [_incidence(*component, model.active_rows) for component in model.random]
    return [Factor(Z) for Z in (*loadings, *levels)]


def _kinship_factors(model: Model) -> list[Factor]:
    """Factors of the kinship: donors' loadings with a kernel between donors."""
    return [
        Factor(_incidence(model.row_donor, w, model.active_rows, len(model.active)), term.kernel)
        for term in model.kinship
        for w in (model.H @ factors_of(term.basis)[0]).T
    ]


def _incidence(
    codes: np.ndarray, weights: np.ndarray, rows: np.ndarray, levels: int = 0
) -> sp.csr_array:
    used = np.flatnonzero(rows & (weights != 0.0))
    used = used[np.argsort(codes[used], kind="stable")]
    levels = levels or int(codes.max()) + 1
    ptr = np.concatenate([[0], np.bincount(codes[used], minlength=levels).cumsum()])
    return sp.csr_array((weights[used], used, ptr), (len(ptr) - 1, len(codes)))


def _noise_weights(factor: Factor, Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Diagonal of Pi Z K Z' Pi, (n,), and Q' Z K Z' Q.

    Of every row z' K z - 2 z' K T q + q' T' K T q, T = Z'Q.
    """
    Z, own = factor.Z, factor.Z.data**2
    if factor.kernel is not None:
        own = own * np.repeat(factor.kernel.diagonal, np.diff(Z.indptr))
    T = Z @ Q
    KT = factor.weigh(T)
    core = T.T @ KT
    half = 0.5 * Q @ core - Z.T @ KT
    return np.bincount(Z.indices, own, len(Q)) + 2.0 * (half * Q).sum(axis=1), core
