"""Counts of cells to a common library size and to logarithms; arrays only."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from .aggregate import BadValue

SCALES = {"log_cp10k": (1e4, 1.0), "log2_cpm": (1e6, math.log(2.0))}
"""Counts per so many, and the logarithm of the base: ln(CP10K + 1), log2(CPM + 1)."""

LARGEST_LOG = 20.0
"""No log2(CPM + 1) is larger (log2(1e6 + 1) = 19.9)."""


FEW_GENES, FEW_COUNTS = 1000, 200
"""Cells with fewer genes and, in the middle, fewer counts are hardly whole transcriptomes."""


class Normalised(NamedTuple):
    """One block after normalisation, and what its counts were like."""

    block: Any
    top: float
    whole: bool
    bad: BadValue | None


def libraries(block: Any) -> np.ndarray:
    """Sum of all counts of each cell; (cells,)."""
    if sparse.issparse(block):
        if block.format == "csc":
            return np.bincount(block.indices, weights=block.data, minlength=block.shape[0])
        block = type(block)(
            (block.data.astype(np.float64), block.indices, block.indptr), block.shape
        )
        return np.asarray(block @ np.ones(block.shape[1]))
    return np.asarray(block.sum(axis=1, dtype=np.float64))


def scales(used: np.ndarray, size: np.ndarray, method: str) -> np.ndarray:
    """What one count of each cell becomes, 0 for cells not in use or without counts; (cells,)."""
    per, _ = SCALES[method]
    with np.errstate(invalid="ignore"):
        return np.where(used & (size > 0), per / np.where(size > 0, size, 1.0), 0.0)


def half_counts(scale: np.ndarray, codes: np.ndarray, count: np.ndarray) -> np.ndarray:
    """What half a count, spread over the cells of each pair, adds to their mean; (pairs,).

    Parameters
    ----------
    scale : ndarray, shape (cells,)
        What one count of each cell becomes, 0 for cells without counts.
    codes : int ndarray, shape (cells,)
        Pair of each cell, -1 for none.
    count : int ndarray, shape (pairs,)
        Cells of each pair.  NaN where none of them has counts.

    Examples
    --------
    >>> half_counts(np.array([2.0, 4.0, 0.0]), np.array([0, 0, 0]), np.array([3])).tolist()
    [0.5]
    """
    on = (codes >= 0) & (scale > 0)
    total = np.bincount(codes[on], weights=scale[on], minlength=len(count))
    with np.errstate(divide="ignore", invalid="ignore"):
        return 0.5 * total / np.bincount(codes[on], minlength=len(count)) / count


def normalise(
    block: Any, used: np.ndarray, size: np.ndarray, method: str, *, log: bool = True
) -> Normalised:
    """Scale every cell to the same number of counts, and take log(1 + x) if asked.

    Parameters
    ----------
    block : CSR, CSC or ndarray, (cells, genes)
    used : bool ndarray, shape (cells,)
        Cells that count; the others become zero.
    size : ndarray, shape (cells,)
        All counts of each cell, in genes of the block or not.
    method : {"log_cp10k", "log2_cpm"}
    """
    scale = scales(used, size, method)
    if sparse.issparse(block):
        values = block.data.astype(np.float64)
        rows = block.indices
        if block.format == "csr":
            rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        on, factor = used[rows], scale[rows]
    else:
        values = block.astype(np.float64)
        on, factor = np.broadcast_to(used[:, None], values.shape), scale[:, None]
    good = (values >= 0) & (values < np.inf)
    wrong = np.flatnonzero(on & ~good)
    if len(wrong):
        return Normalised(block, 0.0, True, _place(block, int(wrong[0])))
    top = float(values.max(where=on & good, initial=-math.inf))
    whole = bool(((values == np.floor(values)) | ~on).all())
    values *= factor
    values[~on] = 0.0
    if log:
        np.log1p(values, out=values)
        values /= SCALES[method][1]
    if sparse.issparse(block):
        values = type(block)((values, block.indices, block.indptr), block.shape)
    return Normalised(values, top, whole, None)


def _place(block: Any, at: int) -> BadValue:
    """Row, gene and value of one stored element."""
    if not sparse.issparse(block):
        row, gene = divmod(at, block.shape[1])
        return BadValue(row, gene, float(block[row, gene]))
    major = int(np.searchsorted(block.indptr, at, side="right")) - 1
    minor = int(block.indices[at])
    row, gene = (major, minor) if block.format == "csr" else (minor, major)
    return BadValue(row, gene, float(block.data[at]))


class LogMeans(NamedTuple):
    """Pairs x genes on the scale of the logarithm of their means."""

    y: np.ndarray
    nu: np.ndarray
    nu2: np.ndarray
    counts: np.ndarray


def log_means(
    mean: np.ndarray, nu: np.ndarray, nu2: np.ndarray, half: np.ndarray, method: str
) -> LogMeans:
    """Logarithms of mean counts per so many, with their noise by the delta method.

    With m the mean of a pair and h what half a count adds to it,

        y = log(m + h) + nu_y / 2,   nu_y = nu / (m (m + h)),   nu2_y = nu2 / (m (m + h))^2,

    in units of the base of the logarithm.  The second term of y takes back that the logarithm of a
    mean with noise is too small on average.  Of K Poisson counts nu_y is 1 / (K + 1/2), as Anscombe
    (Biometrika 43:461, 1956) and Gart and Zweifel (Biometrika 54:181, 1967) have it for log(K +
    1/2): by m^2 it is too large, by (m + h)^2 too small.  Without any count it is 0 as nu is.

    Parameters
    ----------
    mean, nu, nu2 : ndarray, shape (pairs, genes)
        Of cells scaled to the same number of counts; overwritten.
    half : ndarray, shape (pairs,)
        Half a count, spread over the cells of the pair, in units of `mean`.
    method : {"log_cp10k", "log2_cpm"}

    Returns
    -------
    y, nu, nu2 : ndarray, shape (pairs, genes)
        `mean`, `nu` and `nu2`, overwritten.
    counts : ndarray, shape (pairs, genes)
        Counts that make the mean, m / 2h: the sum of the pair's counts, where its cells have
        libraries of one size.
    """
    base = SCALES[method][1]
    counts = mean / (2.0 * half[:, None])
    square = np.where(mean == 0.0, 1.0, mean * (mean + half[:, None]))
    nu /= square
    nu2 /= np.square(square)
    mean += half[:, None]
    np.log(mean, out=mean)
    mean += 0.5 * nu
    for values, unit in ((mean, base), (nu, base**2), (nu2, base**4)):
        values /= unit
    return LogMeans(mean, nu, nu2, counts)
