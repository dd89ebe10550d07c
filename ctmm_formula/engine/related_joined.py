"""The covariance of related donors, exact, by what kernels add to the blocks of donors.

With Sigma_e the block-diagonal part (environment and noise of every donor), K_s = G_s G_s' and B
the columns of all kernels and of the levels of random effects,

    Sigma = Sigma_e + B T B',   B = [.. G_s (x) (what rows have of cell types) .., Z],
    T = blockdiag(.. I (x) A_s .., diag(r))

so with T = R s R' (s of signs, as components may be negative), S = Sigma_e^-1 and W = B'SB

    Sigma^-1 = S - S B Gamma B' S,  Gamma = R (s + R'WR)^-1 R',
    log|Sigma| = log|Sigma_e| + log|det(s + R'WR)|

and Sigma is positive definite where Sigma_e is, and s + R'WR has the inertia of s.  A matrix of
order M = sum_s rank(K_s) rank(A_s) + levels is all that is inverted: of n x n where a kernel has
full rank.  Blocks of P come of N x M products, so the score costs as much as the value.

The equations of moments weighted by P take fixed effects for columns of B whose variance has no
bounds, and the measured noise for one more component:

    P = S - S B Omega B' S,   [M] = B'MB,   tr(P Sigma_k P Sigma_l) of block-diagonal ones
        = tr(S Sigma_k S Sigma_l) - 2 tr(S (B Omega B') S Sigma_k S Sigma_l)
          + tr(Omega [S Sigma_k S] Omega [S Sigma_l S])
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from .estimate import At, Equations, Fixed
from .model import Model
from .precision import level_matrix

_SMALL = 1e-3  # of the largest root of A_s: smaller ones cost its inverse too many digits
_AT_ONCE = 2**17  # numbers: products of pairs of columns stay in the cache
_LOG_2PI = math.log(2.0 * math.pi)


class Term(NamedTuple):
    """A kernel: root (N, m) of donors in use, load (N, r, c) of their rows, basis (k, c, c)."""

    root: np.ndarray
    load: np.ndarray
    basis: np.ndarray


class _Part(NamedTuple):
    """Columns of B, those of a cell type following each other, and basis (k, c, c) of these."""

    columns: np.ndarray
    basis: np.ndarray

    def squares(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """tr(left (I (x) B_k) right') of every basis matrix, (k,), for left and right (j, M)."""
        c = self.basis.shape[1]
        a, b = (
            one[:, self.columns].reshape(len(one), c, -1).transpose(1, 0, 2).reshape(c, -1)
            for one in (left, right)
        )
        return np.asarray(np.tensordot(self.basis, a @ b.T))

    def products(self, Q: np.ndarray, other: _Part) -> np.ndarray:
        """tr(Q_st (I (x) B_l) Q_ts (I (x) B_k)) of two parts of a symmetric Q (M, M), (k, l)."""
        c, d = self.basis.shape[1], other.basis.shape[1]
        block = Q[np.ix_(self.columns, other.columns)].reshape(c, len(self.columns) // c, d, -1)
        flat = block.transpose(0, 2, 1, 3).reshape(c * d, -1)
        gram = (flat @ flat.T).reshape(c, d, c, d)
        return np.einsum("kab,lde,adbe->kl", self.basis, other.basis, gram, optimize=True)


class Joined:
    """The covariance of a model with a kinship.

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

    def equations(self, theta: np.ndarray, nu: np.ndarray) -> Equations | None:
        """Moments weighted at theta, centred by noise nu (n,); None where Sigma is not definite."""
        inner = _Inner.of(self, theta)
        if inner is None:
            return None
        model, S, M = self.model, inner.inverse, int(self.ptr[-1])
        loads, Z = [term.load for term in self.terms], np.hstack([self.Z, self.X])
        W = _inner_products(self, S, loads, Z)
        turn = np.vstack([-inner.gamma @ W[:M, M:], np.eye(len(W) - M)])
        low = np.linalg.cholesky(W[M:] @ turn)  # of X'Sigma^-1 X
        turn = lapack.dtrtrs(low, turn.T, lower=1)[0].T
        omega = turn @ turn.T
        omega[:M, :M] += inner.gamma
        E = np.empty((len(model.basis) + 1, *S.shape))  # blocks of components, and of the noise
        E[:-1] = self.H @ model.basis[:, None] @ self.H.transpose(0, 2, 1)
        E[-1] = self.spread(nu[:, None]) * np.eye(S.shape[1])
        SE, TE = S @ E, _of_donors(self, omega, S, Z) @ E
        psi = np.eye(len(W), M) - omega @ W[:, :M]
        parts, met, sides = self._parts, [], []
        for own in SE:
            C = _inner_products(self, own @ S, loads, Z)
            met.append(omega @ C)
            C = C @ psi
            sides.append(np.concatenate([part.squares(psi, C) for part in parts]))
        side, both = np.array(sides), SE.transpose(0, 1, 3, 2).reshape(len(E), -1)
        blocks = (SE - 2.0 * TE).reshape(both.shape) @ both.T
        both = np.array(met)
        blocks += both.reshape(len(E), -1) @ both.transpose(0, 2, 1).reshape(len(E), -1).T
        Q = W[:M] @ psi
        inside = np.block([[one.products(Q, other) for other in parts] for one in parts])
        traces = np.block([[blocks[:-1, :-1], side[:-1]], [side[:-1].T, inside]])
        y = np.where(model.active_rows, model.y, 0.0)
        U = lapack.dtrtrs(low, inner.solve(self.X).T, lower=1)[0].T
        r = (inner.solve(y[:, None])[:, 0] - U @ (U.T @ y))[:, None]
        u = self.spread(r).transpose(0, 2, 1) @ self.H
        v = self.cross(r).T
        squares = [np.tensordot(model.basis, np.tensordot(u, u, axes=([0, 1], [0, 1])))]
        squares += [part.squares(v, v) for part in parts]
        right = np.concatenate(squares) - np.append(blocks[:-1, -1], side[-1])
        excess = np.where(model.active_rows, nu - model.noise, 0.0)
        spread = np.eye(len(low)) + U.T @ (excess[:, None] * U)
        beta = lapack.dtrtrs(low, U.T @ y, lower=1, trans=1)[0]
        return Equations(traces, right, beta, low, spread)

    @cached_property
    def _parts(self) -> list[_Part]:
        """The columns of B of every random effect and term."""
        first, one = int(self.ptr[-2]), np.ones((1, 1, 1))
        out = [_Part(first + np.flatnonzero(self.component == k), one)
               for k in range(len(self.model.random))]  # fmt: skip
        columns = np.arange(self.ptr[-1])
        return out + [_Part(columns[self.part(s)], own.basis) for s, own in enumerate(self.terms)]

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
        return np.asarray(out - _of_donors(joined, self.gamma, HS, joined.Z).sum(axis=0))


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
    first = int(joined.ptr[-2])
    last = slice(first, first + Z.shape[1])
    W = np.empty((last.stop,) * 2)
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


def _of_donors(joined: Joined, gamma: np.ndarray, left: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """Blocks L_i (B gamma B')_ii L_i' of every donor, (N, a, a), for L (N, a, r)."""
    first = int(joined.ptr[-2])
    last = slice(first, first + Z.shape[1])
    LZ = left @ joined.spread(Z)  # (N, a, q)
    out = LZ @ gamma[last, last] @ LZ.transpose(0, 2, 1)
    for s, (root, load, _) in enumerate(joined.terms):
        N, m, c = *root.shape, load.shape[2]
        own = left @ load  # (N, a, c)
        met = gamma[joined.part(s), last].reshape(c, m, -1)
        by = np.array([root @ one for one in met])  # (c, N, q)
        cross = own @ (by.transpose(1, 0, 2) @ LZ.transpose(0, 2, 1))
        out += cross + cross.transpose(0, 2, 1)
        for t in range(s, len(joined.terms)):
            other, load_t, _ = joined.terms[t]
            block = gamma[joined.part(s), joined.part(t)]
            block = block.reshape(c, m, load_t.shape[2], -1)
            if s == t:
                inner = _by_donor(root, block)
            else:
                turned = np.array([root @ one.reshape(m, -1) for one in block])
                turned = turned.reshape(c, N, *block.shape[2:])
                inner = np.einsum("aibj,ij->iab", turned, other)
            part = own @ inner @ (left @ load_t).transpose(0, 2, 1)
            out += part if s == t else part + part.transpose(0, 2, 1)
    return out


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
        half, _ = lapack.dpotri(root, lower=1, overwrite_c=1)  # zeros above the diagonal
        inverse = half + half.T
        inverse.flat[:: len(V) + 1] *= 0.5
        return inverse, logdet
    other = ~positive
    below = V[np.ix_(positive, other)]
    try:
        root = np.linalg.cholesky(V[np.ix_(positive, positive)])
        half = np.linalg.solve(root, below)
        np.linalg.cholesky(half.T @ half - V[np.ix_(other, other)])
    except np.linalg.LinAlgError:
        return None
    return np.linalg.inv(V), float(np.linalg.slogdet(V)[1])
