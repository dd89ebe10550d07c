"""Covariance structures: a name is a list of symmetric basis matrices with labels.

The donor-level covariance of the true expression of C cell types is

    A = sum_k theta_k B_k            (C x C)

==========  ==========================================  =================  ==============
structure   basis B_k                                   labels             parameters
==========  ==========================================  =================  ==============
hom         J                                           hom                1
iid         J, I                                        hom, V             2
free        J, E_11 ... E_CC                            hom, V[c]          1 + C
full        E_cc, E_cd + E_dc                           V[c], V[c,d]       C(C + 1)/2
banded(w)   J, E_cc, E_cd + E_dc for |c - d| <= w       hom, V[c], V[c,d]  1 + C + ...
==========  ==========================================  =================  ==============

J is the matrix of ones (a variance shared by all cell types), E_cd a single one.  A user's own
structure is a list, or a dict label -> matrix, of symmetric C x C matrices; a positive multiple of
J among them is stored as J itself, so that its component is the shared variance.  This file is
the only place that knows the names; everything else sees a :class:`Structure`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np

from .errors import CTMMError

SHARED = "hom"
"""Label of the shared variance component (basis matrix J)."""


@dataclass(frozen=True)
class Structure:
    """Basis matrices of one covariance structure for given cell types.

    Attributes
    ----------
    name : str
        As in the registry, ``free`` or ``banded(1)``; ``user`` for a user's own matrices.
    celltypes : tuple of str, length C
    labels : tuple of str, length K
    basis : ndarray, shape (K, C, C)
        Symmetric and linearly independent.
    """

    name: str
    celltypes: tuple[str, ...]
    labels: tuple[str, ...]
    basis: np.ndarray

    @cached_property
    def shared(self) -> int | None:
        """Index of the component whose basis matrix is J, or None."""
        hits = np.flatnonzero((self.basis == 1.0).all(axis=(1, 2)))
        return int(hits[0]) if len(hits) else None

    @cached_property
    def specific(self) -> np.ndarray:
        """Indices of the components of V, the cell type-specific covariance."""
        return np.array([k for k in range(len(self.labels)) if k != self.shared], dtype=np.int64)

    def covariance(self, theta: np.ndarray) -> np.ndarray:
        """A = sum_k theta_k B_k, shape (C, C)."""
        return np.tensordot(theta, self.basis, axes=1)

    @cached_property
    def null_contrast(self) -> np.ndarray:
        """L with L theta = 0 exactly when A is a multiple of J ("V = 0"); shape (df, K).

        For free this picks V_1 ... V_C; for full it says that all entries of A are equal.
        """
        count, size, _ = self.basis.shape
        ones = np.full((size, size), 1.0 / size)
        flat = self.basis.reshape(count, -1)
        outside = flat - np.outer(flat @ ones.ravel(), ones.ravel())  # part of B_k orthogonal to J
        if self.shared is not None:
            return np.eye(count)[self.specific]
        _, singular, right = np.linalg.svd(outside.T, full_matrices=False)
        return right[singular > 1e-10 * max(singular[0], 1e-300)]

    def contains(self, other: Structure) -> bool:
        """Whether every covariance of `other` is one of this structure's (nesting)."""
        mine = _unit_columns(self.basis)  # their span does not depend on the matrices' scale
        theirs = _unit_columns(other.basis)
        if mine.shape[0] != theirs.shape[0]:
            return False
        coef = np.linalg.lstsq(mine, theirs, rcond=None)[0]
        return bool(np.abs(mine @ coef - theirs).max() < 1e-10)

    def null(self) -> Structure:
        """The structure of "V = 0": the shared variance alone, for the same cell types.

        >>> resolve("free", ["T", "B"]).null().labels
        ('hom',)
        """
        return resolve(NULL, self.celltypes)


def _unit_columns(basis: np.ndarray) -> np.ndarray:
    """Basis matrices as columns of length one; shape (C * C, K)."""
    flat = basis.reshape(len(basis), -1).T
    largest = np.abs(flat).max(axis=0)  # squares of huge or tiny numbers would be lost
    flat = flat / np.where(largest > 0, largest, 1.0)
    return flat / np.where(largest > 0, np.linalg.norm(flat, axis=0), 1.0)


def _unit(size: int, row: int, col: int) -> np.ndarray:
    out = np.zeros((size, size))
    out[row, col] = out[col, row] = 1.0
    return out


def _shared(names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    return [(SHARED, np.ones((len(names), len(names))))]


def _band(names: Sequence[str], width: int) -> list[tuple[str, np.ndarray]]:
    """Entries of V within `width` of the diagonal, lower triangle row by row."""
    size = len(names)
    return [
        (f"V[{names[r]}]" if r == c else f"V[{names[r]},{names[c]}]", _unit(size, r, c))
        for r in range(size)
        for c in range(max(0, r - width), r + 1)
    ]


def _banded(names: Sequence[str], width: int) -> list[tuple[str, np.ndarray]]:
    if width >= len(names) - 1:  # J lies in the span: the shared variance is absorbed
        return _band(names, width)
    return _shared(names) + _band(names, width)


STRUCTURES: dict[str, Callable[..., list[tuple[str, np.ndarray]]]] = {
    "hom": lambda names: _shared(names),
    "iid": lambda names: [*_shared(names), ("V", np.eye(len(names)))],
    "free": lambda names: _shared(names) + _band(names, 0),
    "full": lambda names: _band(names, len(names) - 1),
    "banded": _banded,
}
"""Registry: name -> function(cell type names, *integer arguments) -> [(label, basis matrix)]."""

NULL = "hom"
"""The structure of no cell type-specific variance."""

ARGUMENTS: dict[str, str] = {"banded": "width"}
"""Structures that take one non-negative integer, and what it is called."""


def banded(width: int) -> str:
    """The banded structure: V_cd is free where |c - d| <= width, zero elsewhere.

    >>> banded(1)
    'banded(1)'
    """
    number = isinstance(width, Real) and not isinstance(width, bool)
    if not (number and 0 <= width < np.inf and int(width) == width):
        raise CTMMError(f"banded(width): width must be an integer >= 0, got {width!r}")
    return f"banded({int(width)})"


def resolve(structure: object, celltypes: Sequence[str]) -> Structure:
    """Turn what the user gave into a :class:`Structure`.

    Parameters
    ----------
    structure : str, or list of (C, C) matrices, or dict label -> matrix
    celltypes : sequence of str, length C

    Raises
    ------
    CTMMError
        Unknown name, wrong shape, asymmetric or linearly dependent matrices.

    Examples
    --------
    >>> resolve("free", ["T", "B"]).labels
    ('hom', 'V[T]', 'V[B]')
    >>> resolve("banded(1)", ["d0", "d1", "d2"]).labels
    ('hom', 'V[d0]', 'V[d1,d0]', 'V[d1]', 'V[d2,d1]', 'V[d2]')
    """
    names = tuple(str(name) for name in celltypes)
    if isinstance(structure, np.ndarray) and not structure.ndim:
        structure = structure.item()  # a number, which is no structure
    if isinstance(structure, Structure):
        if structure.celltypes != names:
            raise CTMMError("the Structure was built for other cell types than the data have")
        return structure
    if isinstance(structure, str):
        title, parts = _from_registry(structure, names)
    elif isinstance(structure, Mapping):
        title, parts = "user", [(str(k), _matrix(v, str(k), names)) for k, v in structure.items()]
    elif isinstance(structure, (Sequence, np.ndarray)) and not isinstance(structure, bytes):
        matrices = [_matrix(v, f"V{i}", names) for i, v in enumerate(structure, 1)]
        title, parts = (
            "user",
            [(SHARED if (m == 1.0).all() else f"V{i}", m) for i, m in enumerate(matrices, 1)],
        )
    else:
        raise CTMMError(
            f"structure must be a name ({', '.join(_choices())}), a list of matrices or a dict "
            f"label -> matrix, got {type(structure).__name__}"
        )
    _check_basis(parts)
    basis = np.array([matrix for _, matrix in parts])
    return Structure(title, names, tuple(label for label, _ in parts), basis)


def _choices() -> list[str]:
    return [f"{k}({ARGUMENTS[k]})" if k in ARGUMENTS else k for k in STRUCTURES]


def _from_registry(text: str, names: tuple[str, ...]) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The structure's name as the registry writes it, and its labelled matrices."""
    match = re.fullmatch(r"\s*([A-Za-z_]+)\s*(?:\(\s*(\d+)\s*\))?\s*", text)
    name = match.group(1).lower() if match else ""
    argument = match.group(2) if match else None
    if name not in STRUCTURES or (name in ARGUMENTS) != (argument is not None):
        raise CTMMError(
            f"unknown structure {text!r}: choose from {', '.join(_choices())}, "
            "or give a list of basis matrices"
        )
    if argument is None:
        return name, STRUCTURES[name](names)
    return f"{name}({int(argument)})", STRUCTURES[name](names, int(argument))


def _matrix(value: object, label: str, names: tuple[str, ...]) -> np.ndarray:
    """One basis matrix of the user as real numbers, C x C; a positive multiple of J becomes J."""
    size = len(names)
    fix = f"with cell types {', '.join(names)} it must be a ({size}, {size}) matrix of real numbers"
    if isinstance(value, str):
        raise CTMMError(f"basis matrix {label!r} is the text {value!r}; {fix}")
    try:
        given = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise CTMMError(f"basis matrix {label!r} has rows of different lengths; {fix}") from None
    if given.dtype.kind == "c":
        raise CTMMError(f"basis matrix {label!r} is complex; {fix}")
    try:
        matrix = given.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise CTMMError(f"basis matrix {label!r} does not hold numbers; {fix}") from None
    if matrix.shape != (size, size):
        raise CTMMError(f"basis matrix {label!r} has shape {matrix.shape}; {fix}")
    scale = matrix.flat[0] if size else 0.0
    if scale > 0 and np.isfinite(scale) and np.allclose(matrix, scale, rtol=1e-12, atol=0):
        return np.ones((size, size))
    return matrix


def _check_basis(parts: list[tuple[str, np.ndarray]]) -> None:
    """Finite, symmetric, told apart by label and by what they span."""
    if not parts:
        raise CTMMError("structure has no basis matrix")
    for label, matrix in parts:
        if not np.isfinite(matrix).all() or not np.allclose(
            matrix, matrix.T, rtol=0, atol=1e-12 * np.abs(matrix).max()
        ):
            raise CTMMError(f"basis matrix {label!r} must be finite and symmetric")
    labels = [label for label, _ in parts]
    if len(set(labels)) < len(labels):
        raise CTMMError(f"labels of the basis matrices are not unique: {', '.join(labels)}")
    if np.linalg.matrix_rank(_unit_columns(np.array([m for _, m in parts]))) < len(parts):
        alone = len(parts[0][1]) == 1
        raise CTMMError(
            f"basis matrices {', '.join(labels)} are linearly dependent: "
            "their variance components cannot be told apart"
            + ("; with one cell type use structure='hom'" if alone else "")
        )
