"""ML and REML where donors are related: exact, by what kernels add to the blocks of donors.

With Sigma_e the block-diagonal part (environment and noise of every donor), K_s = G_s G_s' and B
the columns of all kernels and of the levels of random effects,

    Sigma = Sigma_e + B T B',   B = [.. G_s (x) (what rows have of cell types) .., Z],
    T = blockdiag(.. I (x) A_s .., diag(r))

so with T = R s R' (s of signs, as components may be negative), S = Sigma_e^-1 and W = B'SB

    Sigma^-1 = S - S B Gamma B' S,  Gamma = R (s + R'WR)^-1 R',
    log|Sigma| = log|Sigma_e| + log|det(s + R'WR)|

and Sigma is positive definite where Sigma_e is, and s + R'WR has the inertia of s.  A matrix of
order M = sum_s rank(K_s) rank(A_s) + levels is all that is inverted: of n x n where a kernel has
full rank.  Blocks of P come of N x M products, so the score costs as much as the value; steps are
by the average information and secants.  From M = :data:`LARGEST` up donors are rotated instead,
where no pair is missing (:mod:`ctmm_formula.engine.related_spectral`).

The domain is that of :mod:`ctmm_formula.engine.domain`, of the environment as without a kinship.
Every A_s >= 0, but under "nonnegative", where those of its components that are variances are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from ..arguments import choose
from ..errors import ConvergenceError
from . import he, kernels
from .blup import covariance_parts
from .domain import Constraint, Domain, constrain, constrain_genetic, lower_bounds
from .estimate import At, Convergence, Estimate
from .likelihood import (
    LIKELIHOODS,
    MESSAGES,
    centre,
    coding_constant,
    fixed_effects,
    refuse_no_noise,
    residual,
    response_scale,
)
from .model import Model
from .optimize import EDGE, INTERIOR, STALLED
from .precision import level_matrix
from .related_spectral import Fixed, Rotated, rotates

LARGEST = 3000
"""Order M of the largest matrix that is inverted: a fit takes half a minute there."""
_STEPS = 100
_SMALL = 1e-3  # of the largest root of A_s: smaller ones cost its inverse too many digits
_TOLERANCE = 1e-10  # squared decrement
_PATIENCE = 3  # steps that the domain cuts short before a climb turns to the edge
_BARRIER = tuple(10.0**-k for k in range(1, 9))
_AT_ONCE = 2**17  # numbers: products of pairs of columns stay in the cache
_LOG_2PI = math.log(2.0 * math.pi)


def is_rotated(model: Model) -> bool:
    """Whether a likelihood of this model is that of rotated donors, of noise alike for all.

    Raises
    ------
    ConvergenceError
        It is too large for any.
    """
    ranks = [term.kernel.columns.shape[1] for term in model.kinship]
    parts = [np.linalg.matrix_rank(np.hstack(list(term.basis))) for term in model.kinship]
    levels = sum(len(np.unique(one.codes[model.active_rows])) for one in model.random)
    M = int(np.dot(ranks, parts)) + levels
    if M <= LARGEST or rotates(model):
        return M > LARGEST
    raise ConvergenceError(
        f"kinship of rank {' and '.join(map(str, ranks))} with {model.H.shape[1]} cell types: a "
        f"likelihood would invert matrices of {M} x {M} in every step (at most {LARGEST}, but for "
        "one kinship without missing pairs and random effects): use method='he' or 'robust', fewer "
        "cell types, genetic_structure='hom', or a kernel of lower rank"
    )


class Term(NamedTuple):
    """A kernel: root (N, m) of donors in use, load (N, r, c) of their rows, basis (k, c, c)."""

    root: np.ndarray
    load: np.ndarray
    basis: np.ndarray


class Joined:
    """The likelihood of a model with a kinship.

    Parameters
    ----------
    model : Model
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        donors = np.flatnonzero(model.active)
        size = np.diff(model.row_ptr)[donors]
        offsets = np.arange(size.max())
        self.mask = offsets < size[:, None]
        self.rows = model.row_ptr[donors][:, None] + np.where(self.mask, offsets, 0)
        self.H = self.spread(model.H)
        self.noise = np.where(self.mask, model.noise[self.rows], 1.0)
        self.X = np.where(model.active_rows[:, None], model.Q, 0.0)
        self.Z, self.component, _ = level_matrix(model)
        self.terms = [self._term(term.kernel.columns[donors], term.basis) for term in model.kinship]
        sizes = [term.root.shape[1] * term.load.shape[2] for term in self.terms]
        self.ptr = np.concatenate([[0], np.cumsum([*sizes, self.Z.shape[1]])])

    def _term(self, root: np.ndarray, basis: np.ndarray) -> Term:
        size, axes = np.linalg.eigh((basis @ basis).sum(axis=0))
        axes = axes[:, size > 1e-10 * size[-1]]
        left, length, _ = np.linalg.svd(root, full_matrices=False)
        some = length > 1e-8 * length[0]
        return Term(left[:, some] * length[some], self.H @ axes, axes.T @ basis @ axes)

    def spread(self, B: np.ndarray) -> np.ndarray:
        """B (n, j) by donors, (N, r, j); zeros where padded."""
        return np.where(self.mask[..., None], B[self.rows], 0.0)

    def gather(self, B: np.ndarray) -> np.ndarray:
        """B (N, r, j) by row, (n, j)."""
        out = np.zeros((len(self.X), B.shape[2]))
        out[self.rows[self.mask]] = B[self.mask]
        return out

    def part(self, s: int) -> slice:
        """Columns of B of a term, or of the random effects."""
        return slice(int(self.ptr[s]), int(self.ptr[s + 1]))

    def cross(self, Y: np.ndarray) -> np.ndarray:
        """B'Y of Y (n, j), (M, j); those of a term by cell type, then by column of its root."""
        own, out, j = self.spread(Y), [], Y.shape[1]
        for root, load, _ in self.terms:
            met = load.transpose(0, 2, 1) @ own
            met = root.T @ met.reshape(len(met), load.shape[2] * j)
            met = met.reshape(root.shape[1], load.shape[2], j).transpose(1, 0, 2)
            out.append(met.reshape(root.shape[1] * load.shape[2], j))
        return np.concatenate([*out, self.Z.T @ Y])

    def back(self, V: np.ndarray) -> np.ndarray:
        """B V of V (M, j), (n, j)."""
        out, j = self.Z @ V[self.ptr[-2] :], V.shape[1]
        for s, (root, load, _) in enumerate(self.terms):
            m, c = root.shape[1], load.shape[2]
            own = V[self.part(s)].reshape(c, m, j).transpose(1, 0, 2).reshape(m, c * j)
            out += self.gather(load @ (root @ own).reshape(len(root), c, j))
        return out

    def at(self, theta: np.ndarray, reml: bool, full: bool = True) -> At | None:
        """The likelihood at theta (K,), None where Sigma is not positive definite."""
        model, y = self.model, np.where(self.model.active_rows, self.model.y, 0.0)
        inner = _Inner.of(self, theta)
        if inner is None:
            return None
        X = self.X
        SX = inner.solve(X)
        root, failed = lapack.dpotrf(X.T @ SX, lower=1)
        if failed:
            return None
        U = lapack.dtrtrs(root, SX.T, lower=1)[0].T
        r = inner.solve(y[:, None])[:, 0]
        r -= U @ (U.T @ y)
        log = inner.logdet + float(y @ r)
        log += 2.0 * float(np.log(root.diagonal()).sum()) if reml else 0.0
        llf = -0.5 * (log + (model.nobs - (X.shape[1] if reml else 0)) * _LOG_2PI)
        beta = lapack.dtrtrs(root, U.T @ y, lower=1, trans=1)[0]
        nan = np.full((len(theta),) * 2, math.nan)
        if not full:
            return At(llf, nan[0], nan, beta, root @ root.T)
        traces = inner.traces(U if reml else U[:, :0])
        F = self._moved(r[:, None])[..., 0].T
        PF = inner.solve(F) - U @ (U.T @ F)
        return At(llf, 0.5 * (F.T @ r - traces), 0.5 * F.T @ PF, beta, root @ root.T)

    def fixed(self, theta: np.ndarray) -> Fixed | None:
        """What the fixed effects move with at theta, None where Sigma is not positive definite."""
        inner = _Inner.of(self, theta)
        if inner is None:
            return None
        SX = inner.solve(self.X)
        low = np.linalg.cholesky(self.X.T @ SX)
        U = np.linalg.solve(low, SX.T).T
        return Fixed(low, U, self._moved(U), inner.solve)

    def _moved(self, R: np.ndarray) -> np.ndarray:
        """Sigma_k R of every component for R (n, j), (K, n, j)."""
        model, own = self.model, self.spread(R)
        u = self.H.transpose(0, 2, 1) @ own
        out = [self.gather(self.H @ (B @ u)) for B in model.basis]
        for k in range(len(model.random)):
            Z = self.Z[:, self.component == k]
            out.append(Z @ (Z.T @ R))
        for root, load, basis in self.terms:
            met = load.transpose(0, 2, 1) @ own  # (N, c, j)
            met = (root @ (root.T @ met.reshape(len(met), -1))).reshape(met.shape)
            out += [self.gather(load @ (B @ met)) for B in basis]
        return np.array(out)


@dataclass(frozen=True)
class _Inner:
    """Sigma at one point: S (N, r, r), R, s (M,), (s + R'WR)^-1, Gamma (M, M), log|Sigma|."""

    joined: Joined
    inverse: np.ndarray
    turn: _Turn
    signs: np.ndarray
    middle: np.ndarray
    gamma: np.ndarray
    logdet: float

    @staticmethod
    def of(joined: Joined, theta: np.ndarray) -> _Inner | None:
        """None where Sigma is not positive definite."""
        model, H, mask = joined.model, joined.H, joined.mask
        sigma = H @ model.effect_covariance(theta) @ H.transpose(0, 2, 1)
        index = np.arange(sigma.shape[1])
        sigma[:, index, index] += joined.noise
        try:
            root = np.linalg.cholesky(sigma)
        except np.linalg.LinAlgError:
            return None
        logdet = 2.0 * float(np.log(root[:, index, index]).sum())
        inverse = np.linalg.inv(sigma) * (mask[:, :, None] & mask[:, None, :])
        roots, signs, at = [], [], len(model.S)
        for term in joined.terms:
            k = len(term.basis)
            size, axes = np.linalg.eigh(np.tensordot(theta[at : at + k], term.basis, axes=1))
            at += k
            roots.append(axes * np.sqrt(np.abs(size)))
            signs.append(np.repeat(np.where(size < 0.0, -1.0, 1.0), term.root.shape[1]))
        g = model.random_variances(theta)[joined.component]
        signs.append(np.where(g < 0.0, -1.0, 1.0))
        turn = _Turn(joined, roots, np.sqrt(np.abs(g)))
        loads = [term.load @ root for term, root in zip(joined.terms, roots, strict=True)]
        inside = _inner_products(joined, inverse, loads, joined.Z * turn.levels)
        sign = np.concatenate(signs)
        found = _inverted(inside, sign)
        if found is None:
            return None
        middle = found[0]
        gamma = turn.left(turn.left(middle).T)
        return _Inner(joined, inverse, turn, sign, middle, gamma, logdet + found[1])

    @cached_property
    def whole(self) -> tuple[np.ndarray, np.ndarray]:
        """W and Gamma W, (M, M): where components are 0, and R has no inverse."""
        loads = [term.load for term in self.joined.terms]
        W = _inner_products(self.joined, self.inverse, loads, self.joined.Z)
        return W, self.gamma @ W

    def within(self, Y: np.ndarray) -> np.ndarray:
        """S Y of Y (n, j)."""
        return self.joined.gather(self.inverse @ self.joined.spread(Y))

    def solve(self, Y: np.ndarray) -> np.ndarray:
        """Sigma^-1 Y of Y (n, j)."""
        SY = self.within(Y)
        return SY - self.within(self.joined.back(self.gamma @ self.joined.cross(SY)))

    def traces(self, U: np.ndarray) -> np.ndarray:
        """tr((Sigma^-1 - U U') Sigma_k) of every component, (K,)."""
        joined, model = self.joined, self.joined.model
        TH = self._blocks(U)
        out = [float((TH * B).sum()) for B in model.basis]
        BU = joined.cross(U)
        last = joined.part(len(joined.terms))
        levels = self._of_levels(last) - np.square(BU[last]).sum(axis=1)
        out += [float(levels[joined.component == k].sum()) for k in range(len(model.random))]
        for s, (root, load, basis) in enumerate(joined.terms):
            part = BU[joined.part(s)].reshape(load.shape[2], -1)
            inner = self._of_term(s, root.shape[1], load.shape[2]) - part @ part.T
            out += [float((inner * B).sum()) for B in basis]
        return np.array(out)

    def _of_levels(self, last: slice) -> np.ndarray:
        """z'Sigma^-1 z of every level, (q,)."""
        size = self.turn.levels
        if size.min(initial=math.inf) > _SMALL * size.max(initial=0.0):
            signs = self.signs[last]
            return np.asarray((signs - self.middle[last, last].diagonal()) / size**2)
        W, GW = self.whole
        return np.asarray(W[last, last].diagonal() - (W[last] * GW[:, last].T).sum(axis=1))

    def _of_term(self, s: int, m: int, c: int) -> np.ndarray:
        """Sum of the diagonal blocks (c, c) of B'Sigma^-1 B of a term: of W - W Gamma W.

        R'(W - W Gamma W)R = s - s (s + R'WR)^-1 s.
        """
        own, root = self.joined.part(s), self.turn.roots[s]
        size = np.linalg.norm(root, axis=0)
        if size.min() > _SMALL * size.max():
            signs = self.signs[own].reshape(c, m)[:, 0]
            blocks = np.einsum("ajbj->ab", self.middle[own, own].reshape(c, m, c, m))
            inner = np.diag(m * signs) - np.outer(signs, signs) * blocks
            back = np.linalg.inv(root)
            return np.asarray(back.T @ inner @ back)
        W, GW = self.whole
        blocks = np.einsum("ajbj->ab", W[own, own].reshape(c, m, c, m))
        return np.asarray(blocks - W[own].reshape(c, -1) @ GW[:, own].T.reshape(c, -1).T)

    def _blocks(self, U: np.ndarray) -> np.ndarray:
        """Sum over donors of H_i'(Sigma^-1 - U U')_ii H_i, (C, C)."""
        joined, H = self.joined, self.joined.H
        HS = H.transpose(0, 2, 1) @ self.inverse
        HU = H.transpose(0, 2, 1) @ joined.spread(U)
        out = (HS @ H).sum(axis=0) - np.tensordot(HU, HU, axes=([0, 2], [0, 2]))
        last = joined.part(len(joined.terms))
        HZ = HS @ joined.spread(joined.Z)  # (N, C, q)
        out -= np.tensordot(HZ @ self.gamma[last, last], HZ, axes=([0, 2], [0, 2]))
        for s, (root, load, _) in enumerate(joined.terms):
            N, m, c = *root.shape, load.shape[2]
            own = HS @ load  # (N, C, c)
            met = self.gamma[joined.part(s), last].reshape(c, m, -1)
            by = np.array([root @ one for one in met])  # (c, N, q)
            cross = np.einsum("iCa,aiq,iDq->CD", own, by, HZ, optimize=True)
            out -= cross + cross.T
            for t in range(s, len(joined.terms)):
                other, load_t, _ = joined.terms[t]
                block = self.gamma[joined.part(s), joined.part(t)]
                block = block.reshape(c, m, load_t.shape[2], -1)
                if s == t:
                    inner = _by_donor(root, block)
                else:
                    turned = np.array([root @ one.reshape(m, -1) for one in block])
                    turned = turned.reshape(c, N, *block.shape[2:])
                    inner = np.einsum("aibj,ij->iab", turned, other)
                part = np.einsum("iCa,iab,iDb->CD", own, inner, HS @ load_t, optimize=True)
                out -= part if s == t else part + part.T
        return out


class _Turn(NamedTuple):
    """R, by its terms (c, c) and the roots (q,) of the variances of levels."""

    joined: Joined
    roots: list[np.ndarray]
    levels: np.ndarray

    def left(self, Y: np.ndarray) -> np.ndarray:
        """R Y of Y (M, j)."""
        out, last = np.empty_like(Y, order="C"), self.joined.part(len(self.roots))
        for s, root in enumerate(self.roots):
            own = self.joined.part(s)
            part = Y[own]
            out[own] = (root @ part.reshape(len(root), -1)).reshape(part.shape)
        out[last] = self.levels[:, None] * Y[last]
        return out


def _inner_products(
    joined: Joined, inverse: np.ndarray, loads: list[np.ndarray], Z: np.ndarray
) -> np.ndarray:
    """B'SB, (M, M), of columns B of these loads (N, r, c) of every term and levels Z (n, q)."""
    M = int(joined.ptr[-1])
    W, last = np.empty((M, M)), joined.part(len(joined.terms))
    SZ = inverse @ joined.spread(Z)
    W[last, last] = Z.T @ joined.gather(SZ)
    q = Z.shape[1]
    for s, (term, load) in enumerate(zip(joined.terms, loads, strict=True)):
        root, own = term.root, joined.part(s)
        met = (load.transpose(0, 2, 1) @ SZ).reshape(len(root), load.shape[2] * q)
        met = (root.T @ met).reshape(root.shape[1], load.shape[2], q).transpose(1, 0, 2)
        W[own, last] = met.reshape(root.shape[1] * load.shape[2], q)
        W[last, own] = W[own, last].T
        left, (m, c) = inverse @ load, (root.shape[1], load.shape[2])
        W[own, own] = _within(root, left.transpose(0, 2, 1) @ load)
        for t in range(s + 1, len(joined.terms)):
            other, load_t = joined.terms[t].root, loads[t]
            core = left.transpose(0, 2, 1) @ load_t  # (N, c, d)
            for a in range(c):
                right = (core[:, a, :, None] * other[:, None]).reshape(len(root), -1)
                rows, columns = slice(own.start + a * m, own.start + (a + 1) * m), joined.part(t)
                W[rows, columns] = root.T @ right
                W[columns, rows] = W[rows, columns].T
    return W


def _products(root: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Products of pairs of columns of a root (N, m): some columns j, with all from the first of j.

    (j, m - j.start, N); what is symmetric between columns is had of half of the pairs.
    """
    N, m = root.shape
    columns, step = np.ascontiguousarray(root.T), max(_AT_ONCE // max(N * m, 1), 1)
    for first in range(0, m, step):
        j = slice(first, min(first + step, m))
        yield j, columns[j, None] * columns[first:]


def _within(root: np.ndarray, core: np.ndarray) -> np.ndarray:
    """Sum over donors of core_i (x) g_i g_i', (c m, c m), of symmetric core (N, c, c)."""
    (N, m), c = root.shape, core.shape[1]
    a, b = np.triu_indices(c)
    packed, blocks = np.ascontiguousarray(core[:, a, b]), np.empty((len(a), m, m))
    for j, products in _products(root):
        met = (products.reshape(-1, N) @ packed).T.reshape(len(a), j.stop - j.start, -1)
        blocks[:, j, j.start :] = met
        blocks[:, j.start :, j] = met.transpose(0, 2, 1)
    out = np.empty((c, m, c, m))
    out[a, :, b] = out[b, :, a] = blocks
    return out.reshape(c * m, c * m)


def _by_donor(root: np.ndarray, block: np.ndarray) -> np.ndarray:
    """g_i' block_ab g_i of every donor, (N, c, c), of a symmetric block (c, m, c, m)."""
    N, c = len(root), len(block)
    a, b = np.triu_indices(c)
    both = block[a, :, b]
    both = both + both.transpose(0, 2, 1)
    met = np.zeros((len(a), N))
    for j, products in _products(root):
        part = both[:, j, j.start :]
        part[:, :, : j.stop - j.start] *= 0.5  # these pairs are there in both orders
        met += part.reshape(len(a), -1) @ products.reshape(-1, N)
    out = np.empty((N, c, c))
    out[:, a, b] = out[:, b, a] = met.T
    return out


def _inverted(V: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(s + V)^-1 and log|det(s + V)|, None without the inertia of s."""
    V = V.copy(order="F")
    V.flat[:: len(V) + 1] += signs
    positive = signs > 0.0
    if positive.all():
        if not len(V):
            return V, 0.0
        root, failed = lapack.dpotrf(V, lower=1, overwrite_a=1)
        if failed:
            return None
        logdet = 2.0 * float(np.log(root.diagonal()).sum())
        inverse, _ = lapack.dpotri(root, lower=1, overwrite_c=1)
        return np.tril(inverse, -1).T + np.tril(inverse), logdet
    other = ~positive
    below = V[np.ix_(positive, other)]
    try:
        root = np.linalg.cholesky(V[np.ix_(positive, positive)])
        half = np.linalg.solve(root, below)
        np.linalg.cholesky(half.T @ half - V[np.ix_(other, other)])
    except np.linalg.LinAlgError:
        return None
    return np.linalg.inv(V), float(np.linalg.slogdet(V)[1])


# ---------------------------------------------------------------------------------------------
# the domain, and the way to the maximum


class _Walls:
    """The domain: lower bounds, and determinants of a :class:`Constraint` that stay positive."""

    def __init__(self, model: Model, domain: Domain) -> None:
        own = constrain(model.unrelated, domain)
        genetic = [constrain_genetic(term.basis, domain) for term in model.kinship]
        self.lower = lower_bounds(model, domain)
        places = [slice(0, len(model.S)), *model.kinship_slices]
        every = zip([own, *genetic], places, strict=True)
        self.parts = [(one, at) for one, at in every if len(one.active)]

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Sum of log determinants, -inf outside; its gradient (K,) and curvature (K, K)."""
        total, grad, curvature = 0.0, np.zeros(len(theta)), np.zeros((len(theta),) * 2)
        for constraint, at in self.parts:
            levels = slice(constraint.blocks.R, constraint.S.shape[1])
            phi = constraint.S.T @ theta[at]
            # a block's determinant hides the walls of the donors in it: these enter once more
            for alone in (False, True) if len(constraint.blocks.level_comp) else (False,):
                phi[levels] *= not alone
                value, score, expected = _log_determinant(constraint, phi)
                if value == -math.inf:
                    return value, grad, curvature
                if alone:
                    score[levels], expected[levels], expected[:, levels] = 0.0, 0.0, 0.0
                total += value
                grad[at] += constraint.S @ score
                curvature[at, at] += constraint.S @ expected @ constraint.S.T
        return total, grad, curvature


def _log_determinant(
    constraint: Constraint, phi: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Of factors phi (F,), its gradient (F,) and curvature (F, F); -inf where not definite."""
    F, shape = len(phi), constraint.tiles.shape
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    value = kernels.evaluate(
        kernels.kernel_address(), phi, np.zeros(shape), constraint.tiles.put(constraint.nu, 1.0),
        constraint.blocks, constraint.tiles.donors(constraint.active, False), False,
        kernels.INFORMATION, score, average, expected, np.zeros(0), np.zeros((1, 1)),
    )  # fmt: skip
    return -2.0 * value if value > -math.inf else value, -2.0 * score, 2.0 * expected


class _Objective:
    """Log-likelihood with a barrier of weight `mu`, counting its evaluations."""

    def __init__(self, related: Joined | Rotated, walls: _Walls, reml: bool) -> None:
        self.related, self.walls, self.reml, self.count = related, walls, reml, 0

    def __call__(self, theta: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray, At]:
        """Value, gradient, information and the likelihood itself; raises outside the domain."""
        barrier, grad, curvature = self.walls(theta)
        if barrier == -math.inf:
            raise _OutsideError
        self.count += 1
        found = self.related.at(theta, self.reml)
        if found is None or not math.isfinite(found.llf):
            raise _OutsideError
        value = found.llf + (mu * barrier if mu else 0.0)
        information = found.average + (mu * curvature if mu else 0.0)
        return value, found.score + (mu * grad if mu else 0.0), information, found


class _OutsideError(Exception):
    """A point outside the domain."""


class _End(NamedTuple):
    """Where a climb ended.

    theta, the likelihood there, squared decrement, whether it settled, and whether on the edge.
    """

    theta: np.ndarray
    at: At
    decrement: float
    settled: bool
    edge: bool


def _climb(
    f: _Objective, theta: np.ndarray, mu: float, tolerance: float, patience: int = _STEPS
) -> _End:
    """Up from a point inside the domain, by average information and the last secant."""
    lower = f.walls.lower
    value, grad, information, found = f(theta, mu)
    before: tuple[np.ndarray, np.ndarray] | None = None
    decrement, cut = math.inf, 0
    for _ in range(_STEPS):
        step, decrement = _direction(theta, lower, grad, _secant(information, theta, grad, before))
        if decrement < tolerance:
            return _End(theta, found, decrement, True, bool((theta <= lower).any()))
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(step < 0.0, (lower - theta) / step, math.inf)
        size, outside, accepted = min(1.0, float(room.min(initial=math.inf))), False, False
        for _ in range(30):
            trial = np.maximum(theta + size * step, lower)
            try:
                new = f(trial, mu)
            except _OutsideError:
                outside, size = True, 0.5 * size
                continue
            if new[0] >= value + 1e-4 * size * decrement - 1e-10 * (1.0 + abs(value)):
                accepted = True
                break
            size *= 0.5
        if not accepted:
            return _End(theta, found, decrement, decrement < 1e-6, bool((theta <= lower).any()))
        before = (theta, grad) if decrement < 1.0 else None
        theta, (value, grad, information, found) = trial, new
        cut += outside
        if cut >= patience:
            break
    return _End(theta, found, decrement, False, bool((theta <= lower).any()))


def _secant(
    information: np.ndarray,
    theta: np.ndarray,
    grad: np.ndarray,
    before: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """The information with the curvature that the last step has shown (BFGS)."""
    if before is None:
        return information
    s, y = theta - before[0], before[1] - grad
    Hs = information @ s
    if not (s @ y > 1e-3 * abs(s @ Hs) > 0.0):
        return information
    return np.asarray(information - np.outer(Hs, Hs) / (s @ Hs) + np.outer(y, y) / (s @ y))


def _direction(
    theta: np.ndarray, lower: np.ndarray, grad: np.ndarray, information: np.ndarray
) -> tuple[np.ndarray, float]:
    """Step and squared decrement; components on their bound that would leave are held."""
    held = (theta <= lower) & (grad <= 0.0)
    step = np.zeros(len(theta))
    for _ in range(len(theta) + 1):
        free = np.flatnonzero(~held)
        part = information[np.ix_(free, free)].copy()
        size = np.sqrt(np.maximum(part.diagonal(), 1e-300))
        part /= np.outer(size, size)
        step[:] = 0.0
        for ridge in (0.0, 1e-10, 1e-6, 1e-3, 1e-1, 1.0):
            root, failed = lapack.dpotrf(part + ridge * np.eye(len(free)), lower=1)
            if not failed and len(free):
                step[free] = lapack.dpotrs(root, grad[free] / size, lower=1)[0] / size
                break
        again = ~held & (theta <= lower) & (step < 0.0)
        if not again.any():
            break
        held |= again
    return step, float(grad @ step)


def evaluate(model: Model, theta: np.ndarray, reml: bool, full: bool = True) -> At | None:
    """The likelihood of a model at theta (K,); None where Sigma is not positive definite."""
    own = _centred(model, 1.0)
    related = Rotated(own) if is_rotated(own) else Joined(own)
    at = related.at(np.asarray(theta, dtype=float), reml, full)
    if at is None or not reml:
        return at
    return replace(at, llf=at.llf + coding_constant(model))


class Moves(NamedTuple):
    """How the covariance of the fixed effects moves with theta, see ``engine.variation``.

    root (p, p); slopes (K, p, p); inflation (p, p).
    """

    root: np.ndarray
    slopes: np.ndarray
    inflation: np.ndarray


def variation(model: Model, theta: np.ndarray, W: np.ndarray) -> Moves:
    """Derivatives at `theta`, whose estimate has the covariance `W` (K, K).

    Raises
    ------
    ConvergenceError
        Sigma is not positive definite.
    """
    found = (Rotated(model) if is_rotated(model) else Joined(model)).fixed(theta)
    if found is None:
        raise ConvergenceError("the covariance of the data is not positive definite")
    values, axes = np.linalg.eigh(W)
    half = (axes * np.sqrt(np.clip(values, 0.0, None))).T
    slopes = np.tensordot(half, found.U.T @ found.moved, axes=1)
    moved = np.tensordot(half, found.moved, axes=1).transpose(1, 0, 2)  # (n, K, p)
    met = found.solve(moved.reshape(len(moved), -1)).reshape(moved.shape)
    C = np.tensordot(moved, met, axes=([0, 1], [0, 1])) - (slopes @ slopes).sum(axis=0)
    return Moves(np.linalg.solve(found.low, model.back.T).T, slopes, C + C.T)


def _centred(model: Model, scale: float) -> Model:
    """The model of (y less its least-squares fit) / scale."""
    return model.with_response(residual(model) / scale, model.nu / scale**2)


def fit(model: Model, method: str, domain: Domain, start: np.ndarray | None = None) -> Estimate:
    """Maximise the likelihood over `domain`, from moments and from the middle of the domain.

    Parameters
    ----------
    model : Model; method : "ml" or "reml"; domain : Domain
    start : ndarray, shape (K,), optional
        A point near the maximum, from which alone it climbs.

    Raises
    ------
    ConvergenceError
        The kernels have too many levels and donors do not rotate, components cannot be told apart,
        no point of the domain
        was found, or a cell type has no noise.
    """
    reml, scale = choose("method", method, LIKELIHOODS) == "reml", response_scale(model)
    refuse_no_noise(model)
    if he.confounded(model):
        raise ConvergenceError(
            "variance components cannot be told apart: their information is singular"
        )
    own = _centred(model, scale)
    walls, rotated = _Walls(own, domain), is_rotated(own)
    f = _Objective(Rotated(own) if rotated else Joined(own), walls, reml)
    middle = centre(own, 1.0)
    starts = _starts(own, middle) if start is None else [start / scale**2]
    ends: list[_End] = []
    for one in starts:
        end = _climb(
            f, _inside(f, one, middle), 0.0, _TOLERANCE, _PATIENCE if walls.parts else _STEPS
        )
        if not end.settled and walls.parts:
            end = _along_the_edge(f, _inside(f, 0.5 * (one + middle), middle))
        ends.append(end)
        if end.settled:
            break
    best = max(ends, key=lambda end: end.at.llf)
    p = model.X.shape[1]
    df = model.nobs - p if reml else model.nobs
    beta, cov = fixed_effects(model, best.at.beta, np.linalg.cholesky(best.at.gram), scale)
    return Estimate(
        method=method,
        theta=best.theta * scale**2,
        beta=beta,
        cov_beta=cov,
        beta_by="gls",
        information=best.at.average / scale**4,
        observed=np.full_like(best.at.average, math.nan),
        llf=best.at.llf - df * math.log(scale) + (coding_constant(model) if reml else 0.0),
        convergence=Convergence(
            converged=best.settled,
            boundary=best.edge,
            gradient_norm=math.sqrt(max(best.decrement, 0.0)),
            n_evaluations=f.count,
            n_starts=len(ends),
            message=MESSAGES[STALLED if not best.settled else EDGE if best.edge else INTERIOR]
            + ("; donors rotated, noise by its mean in each cell type" if rotated else ""),
        ),
    )


def _starts(model: Model, middle: np.ndarray) -> list[np.ndarray]:
    """Moments as far as they are a covariance, and the middle."""
    try:
        theta = covariance_parts(model, he.fit(model).theta)
    except (ConvergenceError, np.linalg.LinAlgError):
        return [middle]
    return [0.9 * theta + 0.1 * middle, middle]


def _inside(f: _Objective, theta: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """A point inside the domain on the line to its middle."""
    for share in (1.0, 0.9, 0.7, 0.4, 0.2, 0.1, 0.0):
        at = np.maximum(share * theta + (1.0 - share) * middle, f.walls.lower)
        if f.walls(at)[0] > -math.inf and f.related.at(at, f.reml, False) is not None:
            return at
    raise ConvergenceError(
        "no starting point lies inside the bounds for this structure; use another bound or add a "
        "component that is a variance"
    )


def _along_the_edge(f: _Objective, theta: np.ndarray) -> _End:
    """Behind a barrier whose weight vanishes in stages."""
    end = _climb(f, theta, _BARRIER[0], 0.03 * _BARRIER[0])
    for mu in _BARRIER[1:]:
        end = _climb(f, end.theta, mu, 0.03 * mu)
    last = _climb(f, end.theta, 0.0, _TOLERANCE, 2)
    return last if last.settled else end._replace(edge=True)
