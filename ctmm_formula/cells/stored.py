"""Matrices of cells as they are stored: cut into blocks, and one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse


def cut(matrix: Any, here: slice, by_genes: bool) -> Any:
    """Some cells (genes); of a sparse matrix in memory without copying its values."""
    if not sparse.issparse(matrix):
        return matrix[:, here] if by_genes else matrix[here]
    start, stop = matrix.indptr[here.start], matrix.indptr[here.stop]
    indptr = matrix.indptr[here.start : here.stop + 1] - start
    n = here.stop - here.start
    shape = (matrix.shape[0], n) if by_genes else (n, matrix.shape[1])
    parts = (matrix.data[start:stop], matrix.indices[start:stop], indptr)
    return type(matrix)(parts, shape=shape)


def in_memory(block: Any) -> Any:
    """A block that may be lazy."""
    return block.compute() if hasattr(block, "compute") else block


class Rows:
    """Matrices of cells, dense or CSR, one below the other; slices give their rows in memory.

    Attributes
    ----------
    shape : tuple of int; dtype : dtype
    format : "csr", or None where all are dense
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)]).tolist()
        self.shape = self.starts[-1], parts[0].shape[1]
        self.dtype = np.result_type(*(part.dtype for part in parts))
        kinds = {getattr(part, "format", None) for part in parts}
        self.format = "csr" if "csr" in kinds else None

    def __getitem__(self, here: slice) -> Any:
        """Rows, some at least."""
        own = []
        for part, first, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
            a, b = max(here.start, first), min(here.stop, stop)
            if a < b:
                own.append(in_memory(cut(part, slice(a - first, b - first), False)))
        if any(sparse.issparse(rows) for rows in own):
            return sparse.vstack([sparse.csr_matrix(rows) for rows in own], format="csr")
        return np.concatenate(own)
