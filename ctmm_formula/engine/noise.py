"""Working noise: weights that do not depend on the errors of the measured noise.

The measured nu_ic is the squared standard error of the mean of n_ic cells, taken from the same
cells as the mean itself.  For counts it rises with y, so whatever is weighted by it is biased.
The working noise pools the variance between cells over donors and keeps of a pair only its number
of cells; nu itself, which is unbiased, is left to centre what the weights have produced.

A pair whose cells are all alike (mostly: all zero) has nu = 0.  As a centre this is a value like
any other; as a weight it is none, and a likelihood takes the working noise of these pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .options import kept_exact

_FLOOR = 1e-3  # of the mean working noise: a pair without any measured noise weighs no more
_EPS = float(np.finfo(float).eps)
FAR = 1e3
"""Variance between cells, in the median of the cell type, beyond which it is hardly one of cells:
among counts some ten times were seen."""
COUNTED = "n_cells"
"""How weights call themselves where numbers of cells are known."""


class Pooling(NamedTuple):
    """How the noise of a design is pooled, whatever the response; made by :func:`pooling`.

    code (n,) groups of rows; per_cell (n,) number of cells, or ones; sizes (groups,) rows of a
    group in use; rows (n,) which are; weights: "n_cells", or "mean noise" where cell counts are
    missing; whole: whether all rows are in use.
    """

    code: np.ndarray
    per_cell: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    weights: str
    whole: bool


def pooling(H: np.ndarray, n_cells: np.ndarray | None, rows: np.ndarray) -> Pooling:
    """How the noise of these rows is pooled.

    Rows go with those of the same row of H (one cell type), or all together where rows of H
    differ throughout (overall pseudobulk).

    Parameters
    ----------
    H : ndarray, shape (n, C); n_cells : ndarray, shape (n,), or None
    rows : bool ndarray, shape (n,)
        Rows in use.
    """
    code = np.empty(len(H), dtype=np.int64)
    if not _of_one_type(np.ascontiguousarray(H, dtype=np.float64), code):
        patterns, code = np.unique(H, axis=0, return_inverse=True)
        code = code.ravel() if len(patterns) <= H.shape[1] else np.zeros(len(H), dtype=np.int64)
    per_cell = np.ones(len(code))
    counted = n_cells is not None and bool((np.isfinite(n_cells) & (n_cells > 0))[rows].all())
    if counted and n_cells is not None:
        per_cell[rows] = n_cells[rows]
    sizes = np.maximum(np.bincount(code[rows], minlength=code.max() + 1), 1)
    weights = COUNTED if counted else "mean noise"
    return Pooling(code, per_cell, sizes, rows, weights, bool(rows.all()))


@kept_exact
def _of_one_type(H: np.ndarray, code: np.ndarray) -> bool:
    """Whether all rows of H (n, C) are those of a unit matrix, their columns to `code` (n,)."""
    for row in range(len(H)):
        code[row] = -1
        for c in range(H.shape[1]):
            if H[row, c] == 1.0 and code[row] < 0:
                code[row] = c
            elif H[row, c] != 0.0:
                return False
        if code[row] < 0:
            return False
    return True


def one_type_each(H: np.ndarray) -> bool:
    """Whether all rows of H (n, C) are those of a unit matrix."""
    return bool(
        _of_one_type(np.ascontiguousarray(H, dtype=np.float64), np.empty(len(H), dtype=np.int64))
    )


@kept_exact
def _pool(
    nu: np.ndarray, code: np.ndarray, per_cell: np.ndarray, sizes: np.ndarray, rows: np.ndarray,
    between: np.ndarray, out: np.ndarray,
) -> float:  # fmt: skip
    """:func:`pooled` noise `out` (n,), of `between` (groups,) cells; its mean over rows in use."""
    for group in range(len(sizes)):
        between[group] = 0.0
    for a in range(len(nu)):
        if rows[a]:
            between[code[a]] += per_cell[a] * nu[a]
    for group in range(len(sizes)):
        between[group] /= sizes[group]
    total, used = 0.0, 0
    for a in range(len(nu)):
        out[a] = between[code[a]] / per_cell[a]
        if rows[a]:
            total += out[a]
            used += 1
    return total / used


def pooled(nu: np.ndarray, how: Pooling) -> np.ndarray:
    """s_c^2 / n_ic with s_c^2 = mean_i n_ic nu_ic over the rows of a group in use, (n,)."""
    out = np.empty(len(nu))
    _pool(nu, how.code, how.per_cell, how.sizes, how.rows, np.empty(len(how.sizes)), out)
    return out


def weighed(nu: np.ndarray, how: Pooling, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Working noise (n,), see :func:`working_noise`, and s_c^2 of every group (groups,)."""
    noise, between = np.empty(len(nu)), np.empty(len(how.sizes))
    mean = _pool(nu, how.code, how.per_cell, how.sizes, how.rows, between, noise)
    if mean > 0.0:
        np.maximum(noise, _FLOOR * mean, out=noise)
    else:
        noise[:] = size or 1.0
    return noise, between


def working_noise(nu: np.ndarray, how: Pooling, size: float) -> np.ndarray:
    """Working noise w (n,): pooled, and nowhere much below its mean.

    `size` stands in where nothing was measured to vary: all rows weigh alike, in squared units of
    the response.
    """
    return weighed(nu, how, size)[0]


def far_off(nu: np.ndarray, how: Pooling) -> np.ndarray:
    """Rows whose variance between cells is :data:`FAR` times that usual in their group, (k,) int.

    Usual is the median of the rows that vary.

    >>> how = pooling(np.ones((5, 1)), None, np.ones(5, dtype=bool))
    >>> far_off(np.array([0.0, 0.1, 0.2, 0.1, 1e6]), how).tolist()
    [4]
    """
    between, out = np.where(how.rows, how.per_cell * nu, 0.0), []
    for group in range(len(how.sizes)):
        own = np.flatnonzero((how.code == group) & (between > 0.0))
        if len(own):
            out.append(own[between[own] > FAR * np.median(between[own])])
    return np.sort(np.concatenate(out)) if out else np.empty(0, dtype=np.int64)


def weighable(nu: np.ndarray, H: np.ndarray, n_cells: np.ndarray | None) -> np.ndarray:
    """Noise that a likelihood can weigh by: nu, and where that is 0 what is pooled, (n,).

    `nu` itself where none is 0.  Still 0 where it is in every row of a cell type.

    >>> weighable(np.array([0.5, 0.0, 0.25]), np.ones((3, 1)), np.array([2.0, 4.0, 4.0]))
    array([0.5       , 0.16666667, 0.25      ])
    """
    if np.count_nonzero(nu) == len(nu):
        return nu
    return np.where(nu == 0.0, pooled(nu, pooling(H, n_cells, np.isfinite(nu))), nu)


def unbiased_square(n: Any, S2: Any, S4: Any) -> Any:
    """Unbiased estimate of nu^2 from the sums of squares and fourth powers of n > 3 cells.

    With S2 and S4 about the mean, sigma^4 / n^2 = nu^2 is

        ((n^2 - 3 n + 3) S2^2 - n (n - 1) S4) / (n^3 (n - 1) (n - 2) (n - 3)),

    the mean of (x_a - x_b)^2 (x_c - x_d)^2 / 4 over all choices of four cells over n^2, whatever
    their distribution; so never below zero, and zero where at most one cell is unlike the others.
    Numbers or arrays, and compiled where cells are streamed.

    >>> round(unbiased_square(4.0, 4.0, 4.0), 4)  # of 0, 0, 2, 2: two of three pairings give 4
    0.1667
    """
    top = (n * n - 3.0 * n + 3.0) * S2 * S2
    rest = top - n * (n - 1.0) * S4
    return rest * (rest > 4.0 * n * _EPS * top) / (n * n * n * (n - 1.0) * (n - 2.0) * (n - 3.0))
