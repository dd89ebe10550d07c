"""Working noise: weights that do not depend on the errors of the measured noise.

The measured nu_ic is the squared standard error of the mean of n_ic cells, taken from the same
cells as the mean itself.  For counts it rises with y, so whatever is weighted by it is biased.
The working noise pools the variance between cells over donors and keeps of a pair only its number
of cells; nu itself, which is unbiased, is left to centre what the weights have produced.
"""

from __future__ import annotations

import numpy as np

from .model import Model


def working_noise(model: Model) -> tuple[np.ndarray, str]:
    """w (n,) and how it was made: pooled cell variance / n_cells, or the mean noise.

    w_ic = s_c^2 / n_ic with s_c^2 = mean_i n_ic nu_ic.  Rows are pooled with those of the same
    row of H (one cell type), or all together where rows of H differ throughout (overall
    pseudobulk).
    """
    patterns, code = np.unique(model.H, axis=0, return_inverse=True)
    if len(patterns) > model.H.shape[1]:
        code = np.zeros(len(model.y), dtype=np.int64)
    code = code.ravel()
    rows = model.active_rows
    cells = model.n_cells
    counted = cells is not None and bool(np.isfinite(cells[rows]).all() and (cells[rows] > 0).all())
    per_cell = np.where(rows, cells, 1.0) if counted and cells is not None else np.ones(len(code))
    total = np.bincount(code[rows], weights=(per_cell * model.nu)[rows], minlength=code.max() + 1)
    count = np.bincount(code[rows], minlength=code.max() + 1)
    pooled = total / np.maximum(count, 1)
    return pooled[code] / per_cell, "n_cells" if counted else "mean noise"
