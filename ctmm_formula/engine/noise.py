"""Working noise: weights that do not depend on the errors of the measured noise.

The measured nu_ic is the squared standard error of the mean of n_ic cells, taken from the same
cells as the mean itself.  For counts it rises with y, so whatever is weighted by it is biased.
The working noise pools the variance between cells over donors and keeps of a pair only its number
of cells; nu itself, which is unbiased, is left to centre what the weights have produced.
"""

from __future__ import annotations

import numpy as np

from .model import Model


def noise_groups(model: Model) -> np.ndarray:
    """Rows whose cells are pooled, as codes (n,): of one cell type, or all together where rows of
    H differ throughout (overall pseudobulk).
    """  # fmt: skip
    patterns, code = np.unique(model.H, axis=0, return_inverse=True)
    if len(patterns) > model.H.shape[1]:
        return np.zeros(len(model.y), dtype=np.int64)
    return code.ravel().astype(np.int64)


def working_noise(model: Model, groups: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """w (n,) and how it was made: pooled cell variance / n_cells, or the mean noise.

    w_ic = s_c^2 / n_ic with s_c^2 = mean_i n_ic nu_ic over the rows of a group.

    Parameters
    ----------
    model : Model
    groups : int ndarray, shape (n,), optional
        :func:`noise_groups`, where many responses share them.
    """
    code = noise_groups(model) if groups is None else groups
    rows = model.active_rows
    cells = model.n_cells
    counted = cells is not None and bool(np.isfinite(cells[rows]).all() and (cells[rows] > 0).all())
    per_cell = np.where(rows, cells, 1.0) if counted and cells is not None else np.ones(len(code))
    total = np.bincount(code[rows], weights=(per_cell * model.nu)[rows], minlength=code.max() + 1)
    count = np.bincount(code[rows], minlength=code.max() + 1)
    pooled = total / np.maximum(count, 1)
    return pooled[code] / per_cell, "n_cells" if counted else "mean noise"
