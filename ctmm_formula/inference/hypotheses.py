"""Linear hypotheses in words: "sex[T.M] = 0, PC1 = 2 * PC2" to a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from patsy import DesignInfo, PatsyError

from ..errors import CTMMError


def constraints(
    names: Sequence[str], hypotheses: str | Sequence[str] | Mapping[str, float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Linear hypotheses L b = q about parameters with these names.

    Parameters
    ----------
    names : sequence of str, length p
    hypotheses : str, list of str, dict name -> value, or array of shape (p,) or (q, p)
        As in statsmodels: "a = 0, b = 2 * c"; a part without "=" means "= 0".  Rows of an array
        are tested against 0.

    Returns
    -------
    L : ndarray, shape (q, p);  q : ndarray, shape (q,)

    Raises
    ------
    CTMMError
        An unknown name, an array of another width, or nothing to test.

    Examples
    --------
    >>> L, q = constraints(["sex[T.M]", "PC1", "PC2"], "sex[T.M] = 1, PC1 = 2 * PC2")
    >>> L.tolist(), q.tolist()
    ([[1.0, 0.0, 0.0], [0.0, 1.0, -2.0]], [1.0, 0.0])
    """
    names = [str(name) for name in names]
    if isinstance(hypotheses, Mapping):
        return _from_values(names, hypotheses)
    parts = [hypotheses] if isinstance(hypotheses, str) else list(hypotheses)
    if not parts or any(isinstance(part, str) and not part.strip() for part in parts):
        raise CTMMError("there is no hypothesis to test: give say 'PC1 = 0'")
    if isinstance(parts[0], str):
        return _from_text(names, parts)
    return _from_array(names, parts)


def _from_values(names: list[str], values: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    unknown = [str(name) for name in values if name not in names]
    if unknown or not values:
        raise CTMMError(
            f"unknown parameters in the hypothesis: {', '.join(unknown) or 'none given'}; the "
            f"parameters are {', '.join(names)}"
        )
    L = np.eye(len(names))[[names.index(name) for name in values]]
    return L, np.array(list(values.values()), dtype=float)


def _from_array(names: list[str], parts: Sequence) -> tuple[np.ndarray, np.ndarray]:
    try:
        L = np.atleast_2d(np.array(parts, dtype=float))
    except (TypeError, ValueError):
        raise CTMMError("hypotheses must be text or an array of numbers") from None
    if L.ndim != 2 or L.shape[1] != len(names) or not np.isfinite(L).all():
        raise CTMMError(
            f"a matrix of hypotheses needs one finite column per parameter, {len(names)} "
            f"({', '.join(names)}), got shape {L.shape}"
        )
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
