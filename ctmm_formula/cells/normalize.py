"""Counts of cells to logarithms, block by block; arrays only."""

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


def normalise(block: Any, used: np.ndarray, size: np.ndarray, method: str) -> Normalised:
    """Scale every cell to the same number of counts and take log(1 + x).

    Parameters
    ----------
    block : CSR, CSC or ndarray, (cells, genes)
    used : bool ndarray, shape (cells,)
        Cells that count; the others become zero.
    size : ndarray, shape (cells,)
        All counts of each cell, in genes of the block or not.
    method : {"log_cp10k", "log2_cpm"}
    """
    per, base = SCALES[method]
    with np.errstate(invalid="ignore"):
        scale = np.where(used & (size > 0), per / np.where(size > 0, size, 1.0), 0.0)
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
    np.log1p(values, out=values)
    values /= base
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
