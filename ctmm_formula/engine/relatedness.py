"""Kernels: how donors are related, and the terms of a model that are made of them.

A term adds to the covariance of the rows of donors i and j

    K_ij w_i' A w_j,   A = sum_k theta_k B_k   (C x C)

with K the kernel (a kinship, or of a window of the genome) and w = H_i' e_a what a row has of each
cell type.  The environment of :mod:`ctmm_formula.engine.model` is the same with K = I.  A kernel
joins all donors to one block, so it stays outside of the compiled loops over blocks: whatever needs
it meets N x N matrices only through products with N x p ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, eq=False)
class Kernel:
    """A symmetric N x N matrix over donors, whole or of low rank: K = matrix, or root root'.

    Both where both are known.

    Attributes
    ----------
    matrix : ndarray, shape (N, N), or None
    root : ndarray, shape (N, m), or None
        Standardised genotypes over the root of their number.

    Examples
    --------
    >>> low = Kernel(None, np.array([[1.0], [2.0]]))
    >>> low.whole.tolist(), low.diagonal.tolist(), low.times(np.eye(2)[:, :1]).ravel().tolist()
    ([[1.0, 2.0], [2.0, 4.0]], [1.0, 4.0], [1.0, 2.0])
    """

    matrix: np.ndarray | None
    root: np.ndarray | None

    def __len__(self) -> int:
        return len(self._stored)

    def __getstate__(self) -> dict[str, Any]:
        return {name: own for name, own in self.__dict__.items() if name != "squares"}

    @property
    def _stored(self) -> np.ndarray:
        stored = self.matrix if self.root is None else self.root
        assert stored is not None
        return stored

    @cached_property
    def whole(self) -> np.ndarray:
        """K, (N, N)."""
        if self.matrix is not None:
            return self.matrix
        return self._stored @ self._stored.T

    @cached_property
    def diagonal(self) -> np.ndarray:
        """K_ii, (N,)."""
        return np.diag(self.whole) if self.root is None else np.square(self.root).sum(axis=1)

    @cached_property
    def squares(self) -> np.ndarray:
        """K_ij^2 of different donors, 0 on the diagonal, (N, N)."""
        out = np.square(self.whole)
        np.fill_diagonal(out, 0.0)
        return out

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (N,), rising, and axes (N, N) of K."""
        return np.linalg.eigh(self.whole)

    @cached_property
    def columns(self) -> np.ndarray:
        """G (N, m) with K = G G', what is negative of K taken for 0; m is N or less."""
        if self.root is not None and self.root.shape[1] <= len(self):
            return self.root
        size, axes = self.spectrum
        some = size > 1e-12 * size[-1]
        return np.asarray(axes[:, some] * np.sqrt(size[some]))

    @cached_property
    def half(self) -> np.ndarray:
        """Some matrix whose product with its transpose is K: `root`, or the symmetric root."""
        if self.root is not None:
            return self.root
        size, axes = self.spectrum
        return np.asarray((axes * np.sqrt(np.maximum(size, 0.0))) @ axes.T)

    def times(self, B: np.ndarray) -> np.ndarray:
        """K B for B (N, j)."""
        root = self.root
        if root is None or not by_root(root):
            return np.asarray((B.T @ self.whole).T)  # faster than K B, where j is small
        return np.asarray(root @ (root.T @ B))

    def meets(self, other: Kernel, D: np.ndarray) -> np.ndarray:
        """(K diag(d) K')_ii of every donor and column d of D (N, j), with another kernel K'.

        Of few columns, where ranks are low, N x N matrices are not needed.

        >>> low = Kernel(None, np.array([[1.0], [2.0]]))
        >>> low.meets(low, np.array([[1.0, 2.0], [0.0, 0.0]])).tolist()
        [[1.0, 2.0], [4.0, 8.0]]
        """
        G, R = self.root, other.root
        if G is None or R is None or 4 * D.shape[1] * min(G.shape[1], R.shape[1]) > len(G):
            if self is not other:
                return np.asarray((self.whole * other.whole) @ D)
            return np.asarray(self.squares @ D + np.square(self.diagonal)[:, None] * D)
        out = np.empty(D.shape)
        for column, d in zip(out.T, D.T, strict=True):
            column[:] = ((G @ (G.T @ (d[:, None] * R))) * R).sum(axis=1)
        return out

    def of(self, donors: np.ndarray) -> Kernel:
        """The kernel of these donors, in their order."""
        if self.root is not None:
            return Kernel(None, self.root[donors])
        return Kernel(self.whole[np.ix_(donors, donors)], None)

    @cached_property
    def scale(self) -> float:
        """Mean K_ii less mean K_ij: variance between the donors of what has the covariance K.

        The same for K and K + c: a constant is no difference between donors.

        >>> Kernel(np.eye(3) + 5.0, None).scale
        1.0
        """
        N, trace = len(self), float(self.diagonal.sum())
        others = (float(self.times(np.ones((N, 1))).sum()) - trace) / max(N * (N - 1), 1)
        return trace / N - others


def by_root(root: np.ndarray) -> bool:
    """Whether products with K = root root' (N, m) are best had by its root."""
    return 4 * root.shape[1] <= len(root)


class KernelTerm(NamedTuple):
    """One term: a kernel over the model's donors, in their order, and basis matrices (K, C, C)."""

    kernel: Kernel
    basis: np.ndarray
