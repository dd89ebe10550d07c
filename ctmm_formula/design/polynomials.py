"""Orthogonal polynomials for patsy, which has none; formulaic's and R's ``poly`` are the same.

Columns 1 ... degree of the polynomials that are orthonormal over the training rows, by the
three-term recurrence (Forsythe, J SIAM 5:74, 1957), whose coefficients serve new rows as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import patsy

from ..errors import FormulaError


class Polynomials:
    """The stateful transform ``poly(x, degree=1, raw=False)``.

    Examples
    --------
    >>> scope = patsy.EvalEnvironment([{"poly": poly}])
    >>> found = patsy.dmatrix("0 + poly(x, 2)", {"x": [1.0, 2.0, 4.0]}, eval_env=scope)
    >>> (np.asarray(found).T @ found).round(12).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._steps: list[tuple[float, float, float]] = []

    def memorize_chunk(self, x: Any, degree: Any = 1, raw: bool = False) -> None:
        """Training rows."""
        self._chunks.append(np.asarray(x, dtype=float).ravel())
        self._degree = degree

    def memorize_finish(self) -> None:
        """What takes a polynomial and the one before to the next, and its length."""
        x, degree = np.concatenate(self._chunks), self._degree
        if not isinstance(degree, (int, np.integer)) or isinstance(degree, bool) or degree < 1:
            raise FormulaError(
                f"poly(x, degree): degree must be a whole number of 1 or more, got {degree!r}"
            )
        count = len(np.unique(x))
        if degree >= count:
            raise FormulaError(
                f"poly(x, {degree}): {count} different values have polynomials up to degree "
                f"{count - 1}: use a smaller degree"
            )
        before, now = np.zeros_like(x), np.ones_like(x)
        last = np.inf  # the first has none before it
        for _ in range(degree):
            size = float(now @ now)
            centre, ratio, last = float(x * now @ now) / size, size / last, size
            before, now = now, (x - centre) * now - ratio * before
            self._steps.append((centre, ratio, float(np.sqrt(now @ now))))

    def transform(self, x: Any, degree: Any = 1, raw: bool = False) -> np.ndarray:
        """Columns of any rows, (n, degree)."""
        x = np.asarray(x, dtype=float).ravel()
        if raw:
            return np.column_stack([x**power for power in range(1, degree + 1)])
        before, now, out = np.zeros_like(x), np.ones_like(x), []
        for centre, ratio, size in self._steps:
            before, now = now, (x - centre) * now - ratio * before
            out.append(now / size)
        return np.column_stack(out)


poly = patsy.stateful_transform(Polynomials)
