"""Cells to pairs: count, mean and sum of squares of every pair and gene, block by block.

Arrays only.  Each block is passed twice, for its means and then for the squares about them
(Welford's two-pass way), and joins what came before by the update of Chan, Golub and LeVeque (Am
Stat 37:242, 1983).  Every term is a square, so nothing cancels: a mean of 1e6 with a variance of 1
keeps its digits, which E[x^2] - E[x]^2 does not.  The zeros a sparse matrix does not store enter
as what they are, n - k cells at distance `mean`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from scipy import sparse

from ..engine.options import EXACT

EPS = np.finfo(float).eps / 2
"""A sum of n values of one sign is off by less than n times this share of it."""


class BadValue(NamedTuple):
    """A value that no expression can have: row and gene within the block."""

    row: int
    gene: int
    value: float


class Moments:
    """Running moments of pairs x genes.

    Parameters
    ----------
    n_pairs, n_genes : int
    lowest : float
        Smallest value allowed; 0, or minus the largest float where values may be negative.

    Attributes
    ----------
    count : int64 ndarray, shape (n_pairs,)
    mean, m2 : ndarray, shape (n_pairs, n_genes)
        Means, and sums of squares about them.
    top : float
        Largest value seen.
    whole : bool
        Whether all values seen were whole numbers.
    """

    def __init__(self, n_pairs: int, n_genes: int, lowest: float = 0.0) -> None:
        self.count = np.zeros(n_pairs, dtype=np.int64)
        self.mean = np.zeros((n_pairs, n_genes))
        self.m2 = np.zeros((n_pairs, n_genes))
        self.lowest = lowest
        self.top = -math.inf
        self.whole = True

    def add_cells(self, block: Any, codes: np.ndarray) -> BadValue | None:
        """Add a block of cells with all their genes.

        Parameters
        ----------
        block : C-ordered ndarray or CSR without duplicates, float32 or float64, (cells, genes)
        codes : int ndarray, shape (cells,)
            Pair of each cell; cells with -1 are not looked at.

        Returns
        -------
        BadValue or None
            A value that is not finite or below `lowest`; the moments are then of no use.
        """
        size = np.bincount(codes[codes >= 0], minlength=len(self.count))
        order = np.argsort(codes, kind="stable")[len(codes) - size.sum() :]
        start = np.concatenate([[0], np.cumsum(size)])
        state = (self.count, self.mean, self.m2, self.lowest)
        if sparse.issparse(block):
            indptr = block.indptr.astype(np.int64)
            seen = _add_sparse(block.data, block.indices, indptr, order, start, *state)
        else:
            seen = _add_dense(block, order, start, *state)
        self.count += size
        return self._note(seen, block)

    def add_genes(self, block: Any, codes: np.ndarray, targets: np.ndarray) -> BadValue | None:
        """Set the moments of a block of genes, over all cells at once.

        Parameters
        ----------
        block : CSC without duplicates, float32 or float64, (cells, genes of the block)
        codes : int ndarray, shape (cells,)
        targets : int ndarray, shape (genes of the block,)
            Their columns in `mean` and `m2`.
        """
        self.count = np.bincount(codes[codes >= 0], minlength=len(self.count))
        seen = _set_columns(
            block.data, block.indices, block.indptr.astype(np.int64), codes, targets,
            self.count, self.mean, self.m2, self.lowest,
        )  # fmt: skip
        return self._note(seen, block)

    def _note(self, seen: tuple[float, bool, int, int], block: Any) -> BadValue | None:
        """Keep what was seen; a bad value is returned with its place."""
        top, whole, row, gene = seen
        self.top = max(self.top, top)
        self.whole = self.whole and bool(whole)
        if row < 0:
            return None
        return BadValue(int(row), int(gene), float(block[int(row), int(gene)]))

    def noise(self) -> np.ndarray:
        """Squared standard errors, sample variance (ddof 1) / n; overwrites `m2`.

        Pairs of fewer than two cells have none: NaN.  Where all cells are alike it is zero, not
        the rounding of their mean.
        """
        for cells, mean, m2 in zip(self.count, self.mean, self.m2, strict=True):
            rounding = cells * EPS * np.abs(mean)
            m2[m2 <= cells * rounding * rounding] = 0.0
        n = np.where(self.count > 1, self.count, np.nan)
        self.m2 /= (n * (n - 1.0))[:, None]
        return self.m2


@njit(**EXACT)
def _join(n_old, n_new, mean, m2, k, s, q):
    """Join block moments with what came before; s holds the block's means, k its stored values."""
    n = n_old + n_new
    weight = n_new / n
    for j in range(mean.shape[0]):
        squares = q[j] + (n_new - k[j]) * s[j] * s[j]
        if n_old == 0:
            mean[j] = s[j]
            m2[j] = squares
        else:
            delta = s[j] - mean[j]
            mean[j] += delta * weight
            m2[j] += squares + delta * delta * (n_old * weight)


@njit(**EXACT)
def _add_sparse(data, indices, indptr, order, start, count, mean, m2, lowest):
    """Rows of a CSR block, pair by pair, so that one pair's sums stay in the cache."""
    genes = mean.shape[1]
    s, q, k = np.zeros(genes), np.zeros(genes), np.zeros(genes, np.int64)
    top, whole = -np.inf, True
    for pair in range(mean.shape[0]):
        n = start[pair + 1] - start[pair]
        if n == 0:
            continue
        rows = order[start[pair] : start[pair + 1]]
        s[:] = 0.0
        q[:] = 0.0
        k[:] = 0
        for r in rows:
            for t in range(indptr[r], indptr[r + 1]):
                x = np.float64(data[t])
                j = indices[t]
                if not (lowest <= x < np.inf):
                    return top, whole, r, np.int64(j)
                if x > top:
                    top = x
                if whole and x != np.floor(x):
                    whole = False
                s[j] += x
                k[j] += 1
        s /= n
        for r in rows:
            for t in range(indptr[r], indptr[r + 1]):
                j = indices[t]
                d = np.float64(data[t]) - s[j]
                q[j] += d * d
        _join(count[pair], n, mean[pair], m2[pair], k, s, q)
    return top, whole, np.int64(-1), np.int64(-1)


@njit(**EXACT)
def _add_dense(block, order, start, count, mean, m2, lowest):
    """Rows of a dense block, pair by pair."""
    genes = mean.shape[1]
    s, q, k = np.zeros(genes), np.zeros(genes), np.zeros(genes, np.int64)
    top, whole = -np.inf, True
    for pair in range(mean.shape[0]):
        n = start[pair + 1] - start[pair]
        if n == 0:
            continue
        rows = order[start[pair] : start[pair + 1]]
        s[:] = 0.0
        q[:] = 0.0
        k[:] = n
        for r in rows:
            bad, fractions = 0, 0
            for j in range(genes):
                x = np.float64(block[r, j])
                bad += not (lowest <= x < np.inf)
                fractions += x != np.floor(x)
                top = max(top, x)
                s[j] += x
            if fractions:
                whole = False
            if bad:
                for j in range(genes):
                    if not (lowest <= block[r, j] < np.inf):
                        return top, whole, r, np.int64(j)
        s /= n
        for r in rows:
            for j in range(genes):
                d = np.float64(block[r, j]) - s[j]
                q[j] += d * d
        _join(count[pair], n, mean[pair], m2[pair], k, s, q)
    return top, whole, np.int64(-1), np.int64(-1)


@njit(**EXACT)
def _set_columns(data, indices, indptr, codes, targets, count, mean, m2, lowest):
    """Columns of a CSC block, each over all cells."""
    pairs = mean.shape[0]
    s, q, k = np.zeros(pairs), np.zeros(pairs), np.zeros(pairs, np.int64)
    top, whole = -np.inf, True
    for j in range(targets.shape[0]):
        s[:] = 0.0
        q[:] = 0.0
        k[:] = 0
        for t in range(indptr[j], indptr[j + 1]):
            pair = codes[indices[t]]
            if pair < 0:
                continue
            x = np.float64(data[t])
            if not (lowest <= x < np.inf):
                return top, whole, np.int64(indices[t]), np.int64(j)
            if x > top:
                top = x
            if whole and x != np.floor(x):
                whole = False
            s[pair] += x
            k[pair] += 1
        for i in range(pairs):
            s[i] = s[i] / count[i] if count[i] else 0.0
        for t in range(indptr[j], indptr[j + 1]):
            pair = codes[indices[t]]
            if pair >= 0:
                d = np.float64(data[t]) - s[pair]
                q[pair] += d * d
        for i in range(pairs):
            mean[i, targets[j]] = s[i]
            m2[i, targets[j]] = q[i] + (count[i] - k[i]) * s[i] * s[i]
    return top, whole, np.int64(-1), np.int64(-1)
