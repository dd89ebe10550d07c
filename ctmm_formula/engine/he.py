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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import NamedTuple
from weakref import WeakKeyDictionary

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
"""Condition number of G, its diagonal ones, from which components cannot be told apart."""

_RANK = 1e-14  # of the largest singular value: what is below is rounding
_NOTHING = 1e-10  # of a diagonal, or the smallest eigenvalue of a correlation matrix
_INVOLVED = 1e-4  # entry of an eigenvector


class Factors(NamedTuple):
    """Sigma_f = Z_f K_f Z_f' of all factors of a model, their levels one after another.

    Donors' loadings come first, then random effects, then loadings with a kernel between donors.

    Z : sparse (L, n)
        Every Z_f', zero in rows that are not in use.
    ptr : int ndarray, shape (F + 1,)
        Where the levels of a factor start.
    level : int ndarray, shape (F, n); weight : ndarray, shape (F, n)
        The level of every row, and what it has of it.
    kernels : tuple, length F
        The Kernel over the levels, or None for the identity.
    of_levels : slice
        Factors of random effects: the others are of donors.
    """

    Z: sp.csr_array
    ptr: np.ndarray
    level: np.ndarray
    weight: np.ndarray
    kernels: tuple[Kernel | None, ...]
    of_levels: slice

    def part(self, f: int) -> slice:
        """The levels of one factor among all."""
        return slice(int(self.ptr[f]), int(self.ptr[f + 1]))

    def by_kernel(self) -> Iterator[tuple[Kernel, range]]:
        """Every kernel and its factors, which follow each other."""
        first = self.of_levels.stop
        for kernel, own in groupby(range(first, len(self.kernels)), lambda f: self.kernels[f]):
            if kernel is not None:
                numbers = list(own)
                yield kernel, range(numbers[0], numbers[-1] + 1)

    def weigh(self, B: np.ndarray) -> np.ndarray:
        """K B of every factor, for B (L, ...)."""
        if not self.kernels[self.of_levels.stop :]:
            return B
        parts = [B[: self.part(self.of_levels.stop).start]]
        for kernel, own in self.by_kernel():
            columns = B.reshape(len(B), math.prod(B.shape[1:]))
            parts.append(below(own, kernel.times(self.beside(own, columns))))
        return np.concatenate([part.reshape(len(part), *B.shape[1:]) for part in parts])

    def beside(self, own: range, B: np.ndarray) -> np.ndarray:
        """B (L, j) of factors that follow each other, of N levels each, as (N, factors j)."""
        part = B[self.part(own[0]).start : self.part(own[-1]).stop]
        size, width = len(part) // len(own), part.shape[1]
        part = part.reshape(len(own), size, width).swapaxes(0, 1)
        return part.reshape(size, len(own) * width)

    def spread(self, f: int, U: np.ndarray) -> np.ndarray:
        """Z_f U_f for U (L, j), (n, j)."""
        return self.weight[f][:, None] * U[self.part(f)][self.level[f]]

    def times(self, B: np.ndarray) -> np.ndarray:
        """Z K Z' B of every factor for B (n, j), (F, n, j)."""
        U = self.weigh(self.Z @ B)
        return np.array([self.spread(f, U) for f in range(len(self.kernels))])

    def entries(self, f: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows that have something of a factor, its level there, and how much."""
        first, last = self.Z.indptr[self.ptr[f]], self.Z.indptr[self.ptr[f + 1]]
        row = self.Z.indices[first:last]
        return row, self.level[f, row], self.weight[f, row]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums over the levels of each factor of values (L, j), (F, j)."""
        return np.add.reduceat(values, self.ptr[:-1])


def below(own: range, B: np.ndarray) -> np.ndarray:
    """What :meth:`Factors.beside` has as (N, factors j) as (factors N, j) again."""
    size, width = len(B), B.shape[1] // len(own)
    return B.reshape(size, len(own), width).swapaxes(0, 1).reshape(len(own) * size, width)


class Span(NamedTuple):
    """Columns (N, j) as axes (N, r) times back (r, j), with no more axes than it takes."""

    axes: np.ndarray
    back: np.ndarray


def span_of(D: np.ndarray) -> Span:
    """The span of the columns of D (N, j).

    >>> span_of(np.array([[1.0, 2.0], [2.0, 4.0]])).axes.shape
    (2, 1)
    """
    left, size, right = np.linalg.svd(D, full_matrices=False)
    some = size > _RANK * size.max(initial=0.0)
    return Span(left[:, some], size[some, None] * right[some])


@dataclass(frozen=True)
class Layout:
    """What the moments of a design rest on, whatever its kernels.

    Attributes
    ----------
    Q : ndarray, shape (n, p)
        Orthonormal fixed effects of the rows in use, zero elsewhere.
    factors : Factors
        Their kernels may be others.
    T : ndarray, shape (L, p)
        Z'Q.
    d : ndarray, shape (N, F', F')
        Z_f' Z_g of the factors of donors, those with kernels last.
    gram : ndarray, shape (K', K')
        The normal matrix of the components without a kernel.
    noise : ndarray, shape (F, n)
        Of factors without a kernel, weight of each row's noise variance.
    met : tuple of Span
        Of every kernel: d of its and all kernels' factors.
    sides : tuple of Span
        Of every kernel: T of its factors; none where it is not worth the while.
    """

    Q: np.ndarray
    factors: Factors
    T: np.ndarray
    d: np.ndarray
    gram: np.ndarray
    noise: np.ndarray
    met: tuple[Span, ...]
    sides: tuple[Span, ...]

    @property
    def donors(self) -> list[int]:
        """The factors of donors, those with kernels last."""
        levels = self.factors.of_levels
        return [*range(levels.start), *range(levels.stop, len(self.factors.kernels))]


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
    factors : Factors
    S : ndarray, shape (K, F)
        Components to factors.
    rows : bool ndarray, shape (n,)
        Rows in use.
    cores : ndarray, shape (F, p, p)
        Q' Sigma_f Q of every factor.
    back : ndarray, shape (p, p)
        Fixed effects of X from those of Q.
    across : ndarray, shape (N, F', F')
        Of factors f, h with kernels (K_f d K_h)_ii of every donor i, d = Z_f' Z_h.
    """

    gram: np.ndarray
    noise: np.ndarray
    Q: np.ndarray
    factors: Factors
    S: np.ndarray
    rows: np.ndarray
    cores: np.ndarray
    back: np.ndarray
    across: np.ndarray

    def residual(self, Y: np.ndarray) -> np.ndarray:
        """Pi Y of responses (n, G), zero in rows that are not in use."""
        Y = np.where(self.rows[:, None], Y, 0.0)
        return Y - self.Q @ (self.Q.T @ Y)

    def squares(self, E: np.ndarray) -> np.ndarray:
        """E' Sigma_k E of each residual (n, G), shape (K, G)."""
        U = self.factors.Z @ E
        return self.S @ self.factors.sums(U * self.factors.weigh(U))

    def solve(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """theta (G, K) of responses and noise variances (n, G).

        Raises
        ------
        ConvergenceError
            The components cannot be told apart in this design.
        """
        size = 1.0 / np.sqrt(np.maximum(self.gram.diagonal(), np.finfo(float).tiny))
        gram = self.gram * np.outer(size, size)  # whatever the units of a kernel
        if np.linalg.cond(gram) > CONFOUNDED:
            raise ConvergenceError(
                "variance components cannot be told apart: singular moment matrix"
            )
        moments = self.squares(self.residual(Y)) - self.noise @ NU
        return (size[:, None] * np.linalg.solve(gram, size[:, None] * moments)).T


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
    return _Seen(model, lay_out(model, projected)).gram if model.kinship else gram


def lay_out(model: Model, projected: bool = True, many: bool = False) -> Layout:
    """What the moments of a design rest on, whatever its kernels; without Pi if not `projected`.

    For `many` kernels, not the model's alone, it is worth the while to find what T spans.

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    gram = moment_matrix(model.unrelated, projected)
    Q = orthonormal(model) if projected else np.zeros((len(model.y), 0))
    factors, alone = factors_of_model(model), model.W.shape[1]
    T, levels = factors.Z @ Q, factors.of_levels
    weight = np.delete(factors.weight, levels, axis=0).T
    d = np.add.reduceat(weight[:, :, None] * weight[:, None, :], model.row_ptr[:-1])
    noise = np.square(factors.weight[: levels.stop])
    for f in range(levels.stop):
        own = T[factors.part(f)]
        noise[f] += _through(factors, f, Q, own, own.T @ own)
    kernels = [own for _, own in factors.by_kernel()]
    at = [np.array(own) - levels.stop + alone for own in kernels]
    return Layout(
        Q, factors, T, d, gram, noise,
        tuple(span_of(d[:, own, alone:].reshape(len(d), -1)) for own in at),
        tuple(span_of(factors.beside(own, T)) for own in kernels if many),
    )  # fmt: skip


def _through(
    factors: Factors, f: int, Q: np.ndarray, KT: np.ndarray, core: np.ndarray
) -> np.ndarray:
    """Diagonal (n,) of Pi Z K Z' Pi less that of Z K Z': of every row q' T'K T q - 2 z' K T q."""
    row, level, weight = factors.entries(f)
    out = np.einsum("ij,ij->i", Q @ core, Q)
    out[row] -= 2.0 * weight * np.einsum("ij,ij->i", KT[level], Q[row])
    return np.asarray(out)


class _Seen:
    """What a design and its kernels make of each other.

    factors; KT = K T (L, p); cores, gram, noise and across as :class:`Moments` has them.
    """

    def __init__(self, model: Model, laid: Layout) -> None:
        self.laid, self.S = laid, components_to_factors(model)
        self.factors = laid.factors._replace(kernels=_kernels(model))
        factors, T = self.factors, laid.T
        if laid.sides:
            parts = [T[: int(factors.ptr[factors.of_levels.stop])]]
            for (kernel, own), span in zip(factors.by_kernel(), laid.sides, strict=True):
                parts.append(below(own, kernel.times(span.axes) @ span.back))
            self.KT = np.concatenate(parts)
        else:
            self.KT = factors.weigh(T)
        each = [factors.part(f) for f in range(len(factors.kernels))]
        self.cores = np.array([T[own].T @ self.KT[own] for own in each])

    @cached_property
    def across(self) -> np.ndarray:
        """Of factors f, h with kernels (K_f d K_h)_ii of every donor i, d = Z_f' Z_h."""
        kernels = list(self.factors.by_kernel())
        first = self.factors.of_levels.stop
        size = len(self.factors.kernels) - first
        out = np.empty((len(self.laid.d), size, size))
        for (one, own), span in zip(kernels, self.laid.met, strict=True):
            back = span.back.reshape(-1, len(own), size)
            for other, at in kernels:
                f, g = (slice(some[0] - first, some[-1] + 1 - first) for some in (own, at))
                out[:, f, g] = np.tensordot(one.meets(other, span.axes), back[:, :, g], axes=1)
        return out

    @cached_property
    def gram(self) -> np.ndarray:
        """The normal matrix of all components, (K, K)."""
        laid, levels, donors = self.laid, self.factors.of_levels, self.laid.donors
        alone = levels.start
        KT = np.array([self.KT[self.factors.part(f)] for f in donors]).transpose(1, 0, 2)
        between = np.zeros((len(donors),) * 2)
        met = laid.d[:, :, alone:] * (KT @ KT[:, alone:].swapaxes(1, 2))
        between[:, alone:] = -2.0 * met.sum(axis=0)
        for kernel, own in self.factors.by_kernel():
            at = np.array(own) - levels.stop + alone
            between[:alone, at] += np.tensordot(
                kernel.diagonal, np.square(laid.d[:, :alone, at]), axes=1
            )
        between[alone:, alone:] += (laid.d[:, alone:, alone:] * self.across).sum(axis=0)
        traces = np.tensordot(self.cores, self.cores, axes=([1, 2], [1, 2]))
        traces[np.ix_(donors, donors)] += between
        for f in range(levels.start, levels.stop):
            for kernel, others in self.factors.by_kernel():
                for g in others:
                    traces[f, g] += self._meeting(f, g, kernel)
        traces[levels.stop :, : levels.stop] = traces[: levels.stop, levels.stop :].T
        out = self.S @ traces @ self.S.T
        out[: len(laid.gram), : len(laid.gram)] = laid.gram
        return np.asarray(out)

    def _meeting(self, f: int, g: int, kernel: Kernel) -> float:
        """tr(Pi Sigma_f Pi Sigma_g) less that of the cores, f a random effect's, g a kernel's."""
        Z, one, other = self.factors.Z, self.factors.part(f), self.factors.part(g)
        M = Z[one] @ Z[other].T
        whole = float((M @ kernel.whole * M.toarray()).sum())
        return whole - 2.0 * float((self.KT[one] * (M @ self.KT[other])).sum())

    @property
    def noise(self) -> np.ndarray:
        """Weight of each row's noise variance in every component, (K, n)."""
        factors, out = self.factors, np.empty_like(self.factors.weight)
        out[: len(self.laid.noise)] = self.laid.noise
        for kernel, own in factors.by_kernel():
            for f in own:
                out[f] = np.square(factors.weight[f]) * kernel.diagonal[factors.level[f]]
                KT = self.KT[factors.part(f)]
                out[f] += _through(factors, f, self.laid.Q, KT, self.cores[f])
        return np.asarray(self.S @ out)


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


_KEPT: WeakKeyDictionary[Model, Moments] = WeakKeyDictionary()


def moments(model: Model, laid: Layout | None = None) -> Moments:
    """Normal matrix and noise weights of the design of `model`, in O(n K p).

    `laid` is that of the same design, if its kernels are not the first.  Kept as long as the model:
    its jackknife takes those of its fit.

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    if model in _KEPT:
        return _KEPT[model]
    laid = lay_out(model) if laid is None else laid
    seen, back = _Seen(model, laid), model.back
    if len(back) and model.n_donors < len(model.active):
        back = back @ np.linalg.lstsq(model.Q[model.active_rows], laid.Q[model.active_rows])[0]
    found = Moments(
        seen.gram, seen.noise, laid.Q, seen.factors, seen.S, model.active_rows, seen.cores, back,
        seen.across,
    )  # fmt: skip
    _KEPT[model] = found
    return found


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
    phi, factors = theta @ components_to_factors(model), factors_of_model(model)
    T, out = factors.Z @ B, np.zeros((B.shape[1],) * 2)
    for kernel, own in factors.by_kernel():
        for f in own:
            part = T[factors.part(f)]
            out += phi[f] * part.T @ (kernel.times(part) - kernel.diagonal[:, None] * part)
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


def factors_of_model(model: Model) -> Factors:
    """Factors of donors' loadings, of random effects, and of the kinship."""
    N, random, R = len(model.active), model.random, model.W.shape[1]
    loadings = [model.H @ factors_of(term.basis)[0] for term in model.kinship]
    of_random = [component.values[None] for component in random]
    weight = np.concatenate([model.W.T, *of_random, *(own.T for own in loadings)])
    weight = np.where(model.active_rows, weight, 0.0)
    level = np.tile(model.row_donor, (len(weight), 1))
    for k, component in enumerate(random):
        level[R + k] = component.codes
    sizes = np.full(len(weight), N)
    sizes[R : R + len(random)] = [int(component.codes.max()) + 1 for component in random]
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    factor, row = np.nonzero(weight)
    at = ptr[factor] + level[factor, row]
    order = np.argsort(at, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=ptr[-1]))])
    Z = sp.csr_array((weight[factor, row][order], row[order], start), (int(ptr[-1]), len(model.y)))
    return Factors(Z, ptr, level, weight, _kernels(model), slice(R, R + len(random)))


def _kernels(model: Model) -> tuple[Kernel | None, ...]:
    """The kernel of every factor of a model, None for the identity."""
    each = [(term.kernel,) * factors_of(term.basis)[0].shape[1] for term in model.kinship]
    return (*(None,) * (model.W.shape[1] + len(model.random)), *chain.from_iterable(each))
