"""Linear hypotheses in words: "sex[T.M] = 0, PC1 = 2 * PC2" to a matrix."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from patsy import DesignInfo, PatsyError

from ..errors import CTMMError

Hypotheses: TypeAlias = (
    str | Sequence[Any] | Mapping[str, float] | np.ndarray | pd.DataFrame | pd.Series
)

_LARGEST = 1e50
"""Of weights: variances of variances have their fourth powers."""


def constraints(names: Sequence[str], hypotheses: Hypotheses) -> tuple[np.ndarray, np.ndarray]:
    """Linear hypotheses L b = q about parameters with these names.

    Parameters
    ----------
    names : sequence of str, length p
    hypotheses : str, list of str, dict name -> value, array of shape (p,) or (q, p), or frame
        As in statsmodels: "a = 0, b = 2 * c"; a part without "=" means "= 0".  Rows of an array
        are tested against 0, and so are those of a DataFrame, whose columns are parameters in
        any order (those left out count 0); a Series is one such row.  A tuple of such rows and
        values, ``(L, q)``, is L b = q.

    Returns
    -------
    L : ndarray, shape (q, p);  q : ndarray, shape (q,)

    Raises
    ------
    CTMMError
        An unknown name, an array of another width, weights beyond 1e50, or nothing to test.

    Examples
    --------
    >>> L, q = constraints(["sex[T.M]", "PC1", "PC2"], "sex[T.M] = 1, PC1 = 2 * PC2")
    >>> L.tolist(), q.tolist()
    ([[1.0, 0.0, 0.0], [0.0, 1.0, -2.0]], [1.0, 0.0])
    """
    L, rhs = _read([str(name) for name in names], hypotheses)
    size = np.abs(L).max(axis=1)
    most = np.maximum(size, np.abs(rhs))
    odd = np.flatnonzero((most > _LARGEST) | (size < 1.0 / _LARGEST))
    if len(odd):
        at = most[odd[0]]
        raise CTMMError(
            f"hypothesis {odd[0] + 1} has weights or values of {at:.1g}: squares of its variance "
            "are no numbers, rescale it"
        )
    return L, rhs


def _read(names: list[str], hypotheses: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(hypotheses, Mapping):
        return _from_values(names, hypotheses)
    if isinstance(hypotheses, pd.Series):
        hypotheses = hypotheses.to_frame().T
    if isinstance(hypotheses, pd.DataFrame):
        return _from_frame(names, hypotheses)
    if not isinstance(hypotheses, (str, Iterable)) or isinstance(hypotheses, (bytes, set)):
        raise CTMMError(
            "hypotheses must be text such as 'PC1 = 0', a dict, an array or a DataFrame, got "
            f"{type(hypotheses).__name__}"
        )
    if isinstance(hypotheses, np.ndarray):
        return _from_array(names, hypotheses)
    if isinstance(hypotheses, tuple) and len(hypotheses) == 2 and _is_matrix(*hypotheses):
        return _against(names, *hypotheses)
    parts: list[Any] = [hypotheses] if isinstance(hypotheses, str) else list(hypotheses)
    if not parts or any(isinstance(part, str) and not part.strip() for part in parts):
        raise CTMMError("there is no hypothesis to test: give say 'PC1 = 0'")
    if all(isinstance(part, str) for part in parts):
        return _from_text(names, parts)
    return _from_array(names, parts)


def _is_matrix(rows: Any, values: Any) -> bool:
    """Whether a tuple is one of rows and their values, not of two rows or texts."""
    if isinstance(rows, (pd.DataFrame, pd.Series)):
        return True
    try:
        return np.ndim(rows) == 2 or (np.ndim(rows) == 1 and np.ndim(values) == 0)
    except ValueError:  # rows of unlike length
        return False


def _against(names: list[str], rows: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of weights, and the value that each is tested against."""
    L = _read(names, rows if isinstance(rows, (pd.DataFrame, pd.Series)) else np.array(rows))[0]
    try:
        rhs = np.array(np.broadcast_to(np.asarray(values, dtype=float).ravel(), len(L)))
    except (TypeError, ValueError, OverflowError):
        rhs = np.array([np.nan])
    if not np.isfinite(rhs).all():
        raise CTMMError(f"(L, q) needs a finite number q for each of {len(L)} rows, got {values!r}")
    return L, rhs


def _from_values(names: list[str], values: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    L = np.eye(len(names))[_places(names, values)]
    try:
        rhs = np.array(list(values.values()), dtype=float)
    except (TypeError, ValueError, OverflowError):
        rhs = np.array([np.nan])
    if rhs.ndim != 1 or not np.isfinite(rhs).all():
        raise CTMMError(
            f"values of a hypothesis must be finite numbers, got {dict(values)!r}: write say "
            "{'PC1': 0}"
        )
    return L, rhs


def _from_frame(names: list[str], frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of weights by the names of their columns."""
    columns = [str(name) for name in frame.columns]
    places = _places(names, columns, len(frame))
    if len(set(columns)) < len(columns):
        raise CTMMError("a column of the hypotheses occurs twice: give every parameter once")
    try:
        weights = frame.to_numpy(dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise CTMMError("a DataFrame of hypotheses must hold numbers, the weights") from None
    L = np.zeros((len(frame), len(names)))
    L[:, places] = weights
    return _from_array(names, list(L))


def _places(names: list[str], used: Collection[str], rows: int = 1) -> list[int]:
    """Numbers of the parameters that hypotheses in so many rows use."""
    unknown = [str(name) for name in used if name not in names]
    if unknown or not used or not rows:
        raise CTMMError(
            f"unknown parameters in the hypothesis: {', '.join(unknown) or 'none given'}; the "
            f"parameters are {', '.join(names)}"
        )
    return [names.index(name) for name in used]


def _from_array(names: list[str], parts: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        L = np.atleast_2d(np.array(parts, dtype=float))
    except (TypeError, ValueError, OverflowError):
        raise CTMMError("hypotheses must be text or an array of numbers") from None
    if L.ndim != 2 or L.shape[1] != len(names) or not np.isfinite(L).all():
        raise CTMMError(
            f"a matrix of hypotheses needs one finite column per parameter, {len(names)} "
            f"({', '.join(names)}), got shape {L.shape}"
        )
    if not len(L) or not L.any(axis=1).all():
        raise CTMMError("a row of the hypotheses has no weight on any parameter: leave it out")
    return L, np.zeros(len(L))


def _from_text(names: list[str], parts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    try:
        found = DesignInfo(names).linear_constraint(parts)
    except PatsyError as error:
        text = str(error.origin.code) if error.origin is not None else ", ".join(parts)
        where = f" at {text[error.origin.start :]!r}" if error.origin is not None else ""
        raise CTMMError(
            f"cannot read the hypothesis {text!r}{where}: {error.message}; the parameters are "
            f"{', '.join(names)}"
        ) from error
    return np.asarray(found.coefs, dtype=float), np.asarray(found.constants, dtype=float).ravel()


def in_words(L: np.ndarray, rhs: np.ndarray, names: Sequence[str]) -> str:
    """Linear hypotheses L b = rhs as equations.

    >>> in_words(np.array([[0.0, -2.0], [1.0, 1.0]]), np.zeros(2), ["a", "b"])
    '- 2 b = 0, a + b = 0'
    """
    return ", ".join(equations(L, rhs, names))


def equations(L: np.ndarray, rhs: np.ndarray, names: Sequence[str]) -> list[str]:
    """The same one by one, whatever the names are."""
    rows = []
    for row, value in zip(L, rhs, strict=True):
        terms = ""
        for weight, name in zip(row, names, strict=True):
            times = "" if abs(weight) == 1.0 else f"{abs(weight):g} "
            terms += f" {'-' if weight < 0 else '+'} {times}{name}" if weight else ""
        rows.append(f"{terms[1:].removeprefix('+ ')} = {value + 0.0:g}")  # no -0
    return rows
