"""Stacks of matrices (B, donors, columns) with common holes: checked, scaled, made smaller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import CTMMError, DataError


def as_stack(Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One matrix or a stack as (B, n, m), and the common pattern (n, m) of observed entries."""
    Y = np.asarray(Y, dtype=float)
    Y = Y[None] if Y.ndim == 2 else Y
    if Y.ndim != 3 or not Y.size:
        raise DataError(f"need a matrix (n, m) or a stack (B, n, m), got shape {Y.shape}")
    if np.isinf(Y).any():
        where = tuple(int(i) for i in np.argwhere(np.isinf(Y))[0])
        raise DataError(f"infinite value at {where}: only numbers, or NaN for missing, can be used")
    missing = np.isnan(Y)
    if (missing != missing[0]).any():
        raise DataError("the matrices of a stack must miss the same entries: pass them one by one")
    return Y, ~missing[0]


def positive(penalty: float | np.ndarray, B: int) -> np.ndarray:
    """The penalties of a stack, shape (B,)."""
    penalty = np.asarray(penalty, dtype=float)
    if not np.isfinite(penalty).all() or (penalty <= 0.0).any():
        raise CTMMError(f"the penalty lambda must be positive and finite, got {penalty}")
    return np.broadcast_to(penalty, (B,)).copy()


@dataclass(frozen=True)
class Scaling:
    """Centre and scale of columns, each (B, 1, m)."""

    centre: np.ndarray
    scale: np.ndarray

    def apply(self, Y: np.ndarray) -> np.ndarray:
        """(Y - centre) / scale."""
        return (Y - self.centre) / self.scale

    def undo(self, Z: np.ndarray) -> np.ndarray:
        """Z in the units of Y."""
        return Z * self.scale + self.centre


def scaling(
    Y: np.ndarray, observed: np.ndarray, *, centre: bool = True, scale: bool = True
) -> Scaling:
    """Mean and standard deviation (ddof 1) of the observed entries of each column.

    A column with one value or without variance keeps its scale, one without values its centre.
    """
    n = observed.sum(axis=0)
    mean = np.where(observed, Y, 0.0).sum(axis=1, keepdims=True) / np.maximum(n, 1)
    sd = np.ones_like(mean)
    if scale:
        deviation = np.where(observed, Y - mean, 0.0)
        squares = np.einsum("bnm,bnm->bm", deviation, deviation)[:, None]
        sd = np.sqrt(squares / np.maximum(n - 1, 1))
        # rounding leaves some 1e-16 of the mean in a column of equal values
        sd[sd <= 1e-12 * np.abs(mean)] = 1.0
    return Scaling(mean if centre else np.zeros_like(mean), sd)


@dataclass(frozen=True)
class Rotated:
    """A stack whose columns with the same rows observed are rotated together and cut.

    `values` (B, n, k) is zero where not observed; `bases` lists (columns of Y, columns of
    `values`, Q (B, columns of Y, columns of values)); the last `len(kept)` columns are those of Y
    that stay as they are.
    """

    values: np.ndarray
    observed: np.ndarray
    held: np.ndarray
    bases: list[tuple[np.ndarray, slice, np.ndarray]]
    kept: np.ndarray
    n_columns: int

    def restore(self, Z: np.ndarray) -> np.ndarray:
        """Back to the columns of Y: (B, n, k) -> (B, n, m)."""
        full = np.empty((*Z.shape[:2], self.n_columns))
        for columns, place, Q in self.bases:
            full[:, :, columns] = Z[:, :, place] @ Q.swapaxes(1, 2)
        full[:, :, self.kept] = Z[:, :, Z.shape[2] - len(self.kept) :]
        return full


def rotate(Y: np.ndarray, observed: np.ndarray, held: np.ndarray | None = None) -> Rotated:
    """Replace columns that share their rows observed (and held out) by fewer."""
    if held is None:
        held = np.zeros_like(observed)
    pattern = np.packbits(np.vstack([observed, held]), axis=0)
    _, first, group, size = np.unique(
        pattern, axis=1, return_index=True, return_inverse=True, return_counts=True
    )
    group = group.ravel()
    filled = np.where(observed, Y, 0.0)
    many = np.flatnonzero(size > observed[:, first].sum(axis=0))
    values, seen, kept_out, bases, start = [], [], [], [], 0
    for g in many:
        columns, rows = np.flatnonzero(group == g), observed[:, first[g]]
        part = filled[:, :, columns]
        Q, R = np.linalg.qr(part[:, rows].swapaxes(1, 2))
        block = np.zeros((*part.shape[:2], R.shape[1]))
        block[:, rows] = R.swapaxes(1, 2)
        values.append(block)
        seen.append(np.repeat(observed[:, first[g], None], block.shape[2], axis=1))
        kept_out.append(np.repeat(held[:, first[g], None], block.shape[2], axis=1))
        bases.append((columns, slice(start, start + block.shape[2]), Q))
        start += block.shape[2]
    kept = np.flatnonzero(~np.isin(group, many))
    return Rotated(
        values=np.concatenate([*values, filled[:, :, kept]], axis=2),
        observed=np.concatenate([*seen, observed[:, kept]], axis=1),
        held=np.concatenate([*kept_out, held[:, kept]], axis=1),
        bases=bases,
        kept=kept,
        n_columns=Y.shape[2],
    )
