"""Cells to pairs: count, mean and central moments of every pair and gene, block by block.

Arrays only.  Each block is passed twice, for its means and then for the powers about them
(Welford's two-pass way), and joins what came before by the update of Chan, Golub and LeVeque (Am
Stat 37:242, 1983), for third and fourth powers that of Pebay (Sandia report SAND2008-6212).  All
powers are of distances from a mean, so nothing cancels: a mean of 1e6 with a variance of 1 keeps
its digits, which E[x^2] - E[x]^2 does not.  The zeros a sparse matrix does not store enter as what
they are, n - k cells at distance `mean`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from ..engine.noise import unbiased_square
from ..engine.options import called_exact, kept_exact

EPS = np.finfo(float).eps / 2
"""A sum of n values of one sign is off by less than n times this share of it."""
TILE = 8
"""Genes of a CSC block that are written together: a cache line of each pair's row."""


Seen = tuple[float, bool, int, int]
"""Largest value, whether all were whole numbers, and row and gene of a bad one (row < 0: none)."""


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
    n_jobs : int
        Threads, each with pairs (genes, where these are stored together) of its own.

    Attributes
    ----------
    count : int64 ndarray, shape (n_pairs,)
    mean, m2, m3, m4 : ndarray, shape (n_pairs, n_genes)
        Means, and sums of squares, third and fourth powers about them; `m3` serves the joining of
        blocks of cells only, and is left at zero by :meth:`add_genes`.
    top : float
        Largest value seen.
    whole : bool
        Whether all values seen were whole numbers.
    """

    def __init__(self, n_pairs: int, n_genes: int, lowest: float = 0.0, n_jobs: int = 1) -> None:
        self.count = np.zeros(n_pairs, dtype=np.int64)
        self.mean = np.zeros((n_pairs, n_genes))
        self.m2 = np.zeros((n_pairs, n_genes))
        self.m3 = np.zeros((n_pairs, n_genes))
        self.m4 = np.zeros((n_pairs, n_genes))
        self.lowest, self.n_jobs = lowest, n_jobs
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
        state = (self.count, self.mean, self.m2, self.m3, self.m4)
        matrix: tuple[np.ndarray, ...] = (block,)
        add = _add_dense
        if sparse.issparse(block):
            matrix, add = (block.data, block.indices, block.indptr.astype(np.int64)), _add_sparse

        def some(a: int, b: int) -> Seen:
            own = (part[a:b] for part in state)
            return add(*matrix, order, start[a : b + 1], *own, self.lowest)

        seen = self._in_parts(some, start)
        self.count += size
        return self._note(seen, block)

    def _in_parts(self, some: Callable[[int, int], Seen], start: np.ndarray) -> Seen:
        """`some` of all pairs or genes, in as many parts of like work as there are threads."""
        n = len(start) - 1
        if self.n_jobs == 1:
            return some(0, n)
        cuts = np.searchsorted(start, np.linspace(start[0], start[-1], self.n_jobs + 1)[1:-1])
        edges = np.unique([0, *cuts, n])
        with ThreadPoolExecutor(self.n_jobs) as pool:
            parts = list(pool.map(some, edges[:-1], edges[1:]))
        for part in parts:
            if part[2] >= 0:
                return part
        return max(part[0] for part in parts), all(part[1] for part in parts), -1, -1

    def add_genes(self, block: Any, codes: np.ndarray, targets: np.ndarray) -> BadValue | None:
        """Set the moments of a block of genes, over all cells at once.

        Parameters
        ----------
        block : CSC without duplicates, float32 or float64, (cells, genes of the block)
        codes : int ndarray, shape (cells,)
        targets : int ndarray, shape (genes of the block,)
            Their columns in `mean`, `m2` and `m4`.
        """
        self.count = np.bincount(codes[codes >= 0], minlength=len(self.count))
        indptr = block.indptr.astype(np.int64)

        def some(a: int, b: int) -> Seen:
            top, whole, row, gene = _set_columns(
                block.data, block.indices, indptr[a : b + 1], codes, targets[a:b],
                self.count, self.mean, self.m2, self.m4, self.lowest,
            )  # fmt: skip
            return top, whole, row, a + gene

        return self._note(self._in_parts(some, indptr), block)

    def _note(self, seen: Seen, block: Any) -> BadValue | None:
        """Keep what was seen; a bad value is returned with its place."""
        top, whole, row, gene = seen
        self.top = max(self.top, top)
        self.whole = self.whole and bool(whole)
        if row < 0:
            return None
        return BadValue(int(row), int(gene), float(block[int(row), int(gene)]))

    def noise(self) -> tuple[np.ndarray, np.ndarray]:
        """Squared standard errors nu, and unbiased estimates of their squares, nu^2.

        nu is the sample variance (ddof 1) / n; its square as
        :func:`ctmm_formula.engine.noise.unbiased_square` has it.

        Returns
        -------
        nu : ndarray, shape (n_pairs, n_genes)
            `m2`, overwritten.  NaN in pairs of fewer than two cells.  Where all cells are alike it
            is zero, not the rounding of their mean.
        nu2 : ndarray, shape (n_pairs, n_genes)
            `m4`, overwritten.  NaN in pairs of fewer than four cells, which have no such estimate.
            Zero where no choice of four cells has two pairs that differ: at most one cell is
            unlike the others.
        """
        _finish(self.count, self.mean, self.m2, self.m4)
        return self.m2, self.m4


_square = called_exact(unbiased_square)


@kept_exact
def _finish(count, mean, m2, m4):
    """Turn m2 into nu and m4 into unbiased nu^2."""
    for i in range(count.shape[0]):
        n = np.float64(count[i])
        for j in range(mean.shape[1]):
            rounding = n * EPS * mean[i, j]
            squares = m2[i, j] if m2[i, j] > n * rounding * rounding else 0.0
            m2[i, j] = squares / (n * (n - 1.0)) if n > 1.0 else np.nan
            m4[i, j] = _square(n, squares, m4[i, j]) if n > 3.0 else np.nan


@called_exact
def _join(n_old, n_new, mean, m2, m3, m4, k, s, q, c, f):
    """Join a block with what came before.

    s holds the block's means, k its stored values, and q, c, f their squares, cubes and fourth
    powers about s, to which the zeros not stored are added here.
    """
    n = n_old + n_new
    old, new = n_old / n, n_new / n
    for j in range(mean.shape[0]):
        x = s[j]
        zeros = n_new - k[j]
        squares = q[j] + zeros * x * x
        cubes = c[j] - zeros * x * x * x
        fourths = f[j] + zeros * (x * x) * (x * x)
        if n_old == 0:
            mean[j], m2[j], m3[j], m4[j] = x, squares, cubes, fourths
        else:
            d = x - mean[j]
            m4[j] += (
                fourths
                + 4.0 * d * (old * cubes - new * m3[j])
                + 6.0 * d * d * (old * old * squares + new * new * m2[j])
                + d * d * d * d * (n * old * new * (old * old - old * new + new * new))
            )
            m3[j] += (
                cubes
                + 3.0 * d * (old * squares - new * m2[j])
                + d * d * d * (n * old * new * (old - new))
            )
            m2[j] += squares + d * d * (n * old * new)
            mean[j] += d * new


@kept_exact
def _add_sparse(data, indices, indptr, order, start, count, mean, m2, m3, m4, lowest):
    """Rows of a CSR block, pair by pair, so that one pair's sums stay in the cache."""
    genes = mean.shape[1]
    s, k = np.zeros(genes), np.zeros(genes, np.int64)
    q, c, f = np.zeros(genes), np.zeros(genes), np.zeros(genes)
    top, whole = -np.inf, True
    for pair in range(mean.shape[0]):
        n = start[pair + 1] - start[pair]
        if n == 0:
            continue
        rows = order[start[pair] : start[pair + 1]]
        s[:], q[:], c[:], f[:] = 0.0, 0.0, 0.0, 0.0
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
                dd = d * d
                q[j] += dd
                c[j] += dd * d
                f[j] += dd * dd
        _join(count[pair], n, mean[pair], m2[pair], m3[pair], m4[pair], k, s, q, c, f)
    return top, whole, np.int64(-1), np.int64(-1)


@kept_exact
def _add_dense(block, order, start, count, mean, m2, m3, m4, lowest):
    """Rows of a dense block, pair by pair."""
    genes = mean.shape[1]
    s, k = np.zeros(genes), np.zeros(genes, np.int64)
    q, c, f = np.zeros(genes), np.zeros(genes), np.zeros(genes)
    top, whole = -np.inf, True
    for pair in range(mean.shape[0]):
        n = start[pair + 1] - start[pair]
        if n == 0:
            continue
        rows = order[start[pair] : start[pair + 1]]
        s[:], q[:], c[:], f[:] = 0.0, 0.0, 0.0, 0.0
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
                dd = d * d
                q[j] += dd
                c[j] += dd * d
                f[j] += dd * dd
        _join(count[pair], n, mean[pair], m2[pair], m3[pair], m4[pair], k, s, q, c, f)
    return top, whole, np.int64(-1), np.int64(-1)


@kept_exact
def _set_columns(data, indices, indptr, codes, targets, count, mean, m2, m4, lowest):
    """Columns of a CSC block, each over all cells; written some at a time, row by row."""
    pairs, genes = mean.shape[0], targets.shape[0]
    s, k = np.zeros(pairs), np.zeros(pairs, np.int64)
    q, f = np.zeros(pairs), np.zeros(pairs)
    done = np.zeros((pairs, 3, TILE))
    top, whole = -np.inf, True
    for j in range(genes):
        s[:], q[:], f[:] = 0.0, 0.0, 0.0
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
                dd = d * d
                q[pair] += dd
                f[pair] += dd * dd
        at = j % TILE
        for i in range(pairs):
            square = s[i] * s[i]
            done[i, 0, at] = s[i]
            done[i, 1, at] = q[i] + (count[i] - k[i]) * square
            done[i, 2, at] = f[i] + (count[i] - k[i]) * square * square
        if at == TILE - 1 or j == genes - 1:
            for i in range(pairs):
                for b in range(at + 1):
                    to = targets[j - at + b]
                    mean[i, to], m2[i, to], m4[i, to] = done[i, 0, b], done[i, 1, b], done[i, 2, b]
    return top, whole, np.int64(-1), np.int64(-1)
