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

Groups of donors and conditions of the same donors are more of the same: a donor's effects are
copied G times, a row sees the copies by its loads z (one-hot group or condition), H_i becomes
z (x) H_i, and every B_k becomes one matrix for each part of the crossing (:data:`CROSSINGS`):

==========  ======================  ===========================  =======================
crossing    loads z of a row        parts (x) B_k                labels
==========  ======================  ===========================  =======================
by          e_g, group of a donor   E_gg                         hom[case], V[T|case]
trend       (1, sqrt(x))            E_00, E_11: A_0 + x A_1      hom, V[T]; hom:age, ...
within      e_g, condition          J_G shared, I_G response     hom, V[T]; hom:stim, ...
==========  ======================  ===========================  =======================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from typing import Any, Literal, NamedTuple, NewType, TypeAlias

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
        Names of a donor's effects: cell types, or of a crossing those in every level, ``T|case``.
    labels : tuple of str, length K
    basis : ndarray, shape (K, C, C)
        Symmetric and linearly independent.
    crossed : Crossed, optional
        What it is made of, where it is one of groups or conditions.
    """

    name: str
    celltypes: tuple[str, ...]
    labels: tuple[str, ...]
    basis: np.ndarray
    crossed: Crossed | None = None

    def __repr__(self) -> str:
        return f"<Structure {self.name}: {', '.join(self.labels)}>"

    @cached_property
    def shared(self) -> np.ndarray:
        """Indices of the components that all cell types share: whose matrix is (made of) J."""
        if self.crossed is None:
            return np.flatnonzero((self.basis == 1.0).all(axis=(1, 2)))
        inner = self.crossed.inner
        own = np.array(self.crossed.kept) % len(inner.labels)
        return np.flatnonzero(np.isin(own, inner.shared))

    @cached_property
    def specific(self) -> np.ndarray:
        """Indices of the components of V, the cell type-specific covariance."""
        return np.setdiff1d(np.arange(len(self.labels)), self.shared)

    @property
    def inner(self) -> Structure:
        """The structure of the cell types: itself, but for groups or conditions."""
        return self if self.crossed is None else self.crossed.inner

    @property
    def given(self) -> object:
        """What a user would ask for to have it: its name, or itself where no name says it."""
        return self.inner.name if self.name.partition("(")[0] in STRUCTURES else self.inner

    def of(self, structure: object) -> Structure:
        """Another structure of the same effects, as users name it."""
        if self.crossed is None:
            return resolve(structure, self.celltypes)
        inner, crossing, _ = self.crossed
        return cross(inner.of(structure), crossing, self.celltypes)

    def covariance(self, theta: np.ndarray) -> np.ndarray:
        """A = sum_k theta_k B_k, shape (C, C)."""
        return np.tensordot(theta, self.basis, axes=1)

    def common(self, theta: np.ndarray) -> np.ndarray:
        """What of A all cell types share, shape (C, C)."""
        return np.tensordot(theta[self.shared], self.basis[self.shared], axes=1)

    @cached_property
    def null_contrast(self) -> np.ndarray:
        """L with L theta = 0 exactly when A is a multiple of J ("V = 0"); shape (df, K).

        For free this picks V_1 ... V_C; for full it says that all entries of A are equal.
        """
        count, size, _ = self.basis.shape
        ones = np.full((size, size), 1.0 / size)
        flat = self.basis.reshape(count, -1)
        outside = flat - np.outer(flat @ ones.ravel(), ones.ravel())  # part of B_k orthogonal to J
        if len(self.shared):
            return np.eye(count)[self.specific]
        if self.crossed is not None:
            inner, crossing, kept = self.crossed
            rows = np.kron(np.eye(len(crossing.parts)), inner.null_contrast)[:, kept]
            return rows[rows.any(axis=1)]
        _, singular, right = np.linalg.svd(outside.T, full_matrices=False)
        return right[singular > 1e-10 * max(singular[0], 1e-300)]

    def contains(self, other: Structure) -> bool:
        """Whether every covariance of `other` is one of this structure's (nesting).

        One of groups or conditions contains those that know no groups.
        """
        basis = other.basis
        if self.crossed is not None and other.celltypes == self.crossed.inner.celltypes:
            basis = self.crossed.common(basis, self.celltypes)
        elif self.celltypes != other.celltypes:
            return False
        mine = _unit_columns(self.basis)  # their span does not depend on the matrices' scale
        theirs = _unit_columns(basis)
        coef = np.linalg.lstsq(mine, theirs, rcond=None)[0]
        return bool(np.abs(mine @ coef - theirs).max() < 1e-10)

    def null(self) -> Structure:
        """The structure of "V = 0": the shared variance alone, for the same cell types.

        >>> resolve("free", ["T", "B"]).null().labels
        ('hom',)
        """
        return self.of(NULL)


class Crossing(NamedTuple):
    """What the effects of a donor are crossed with.

    kind: a name in :data:`CROSSINGS`; column: of groups or conditions, for labels; levels: names of
    the G copies of a donor's effects, "" where a copy goes by the names of the cell types; span:
    values of a trend's column at x = 0 and 1.
    """

    kind: str
    column: str
    levels: tuple[str, ...]
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def parts(self) -> list[tuple[Callable[[str], str], np.ndarray]]:
        """Labels of components, from those of the structure, and matrices (G, G)."""
        return CROSSINGS[self.kind].parts(self)

    def effects(self, celltypes: Sequence[str]) -> list[str]:
        """Names of a donor's effects: ``T|case``."""
        return [f"{name}|{level}" if level else name for level in self.levels for name in celltypes]


class Crossed(NamedTuple):
    """The structure of cell types, what it is crossed with, and which products are kept.

    kept: numbers of components, part by part; products that no row sees, or that are combinations
    of others in the effects that rows see, are left out.
    """

    inner: Structure
    crossing: Crossing
    kept: tuple[int, ...]

    def common(self, basis: np.ndarray, effects: Sequence[str]) -> np.ndarray:
        """Matrices (K, C, C) as if there were no groups or conditions, (K, E, E)."""
        whole = np.kron(CROSSINGS[self.crossing.kind].common(len(self.crossing.levels)), basis)
        return _among(whole, self.crossing.effects(self.inner.celltypes), effects)

    def tested(self, basis: np.ndarray, effects: Sequence[str]) -> dict[str, np.ndarray]:
        """Matrices of what groups or conditions add, (K, E, E) for every group or the column."""
        kind, names = CROSSINGS[self.crossing.kind], self.crossing.effects(self.inner.celltypes)
        return {
            name: _among(np.kron(part, basis), names, effects)
            for name, part in kind.tested(self.crossing).items()
        }

    @property
    def left_out(self) -> list[str]:
        """Labels of the components that are not kept."""
        labels = [f(label) for f, _ in self.crossing.parts for label in self.inner.labels]
        return [label for k, label in enumerate(labels) if k not in self.kept]


class Kind(NamedTuple):
    """A row of :data:`CROSSINGS`: matrices (G, G) of its parts, and of donors without any.

    parts: of a Crossing, labels and matrices; common: of G, where there are no groups; tested: of a
    Crossing, what there may be beyond that, by name.
    """

    parts: Callable[[Crossing], list[tuple[Callable[[str], str], np.ndarray]]]
    common: Callable[[int], np.ndarray]
    tested: Callable[[Crossing], dict[str, np.ndarray]]


def _in_level(label: str, level: str) -> str:
    """``hom[case]``, ``V[T|case]``."""
    return f"{label[:-1]}|{level}]" if label.endswith("]") else f"{label}[{level}]"


def _times(label: str, column: str) -> str:
    return f"{label}:{column}"


def _units(size: int) -> list[np.ndarray]:
    return [_unit(size, g, g) for g in range(size)]


CROSSINGS: dict[str, Kind] = {
    "by": Kind(
        lambda c: [
            (partial(_in_level, level=level), part)
            for level, part in zip(c.levels, _units(len(c.levels)), strict=True)
        ],
        np.eye,
        lambda c: dict(zip(c.levels, _units(len(c.levels)), strict=True)),
    ),
    "trend": Kind(
        lambda c: [(str, _unit(2, 0, 0)), (partial(_times, column=c.column), _unit(2, 1, 1))],
        lambda G: _unit(G, 0, 0),
        lambda c: {c.column: _unit(2, 1, 1)},
    ),
    "within": Kind(
        lambda c: [
            (str, np.ones((len(c.levels),) * 2)),
            (partial(_times, column=c.column), np.eye(len(c.levels))),
        ],
        lambda G: np.ones((G, G)),
        lambda c: {c.column: np.eye(len(c.levels))},
    ),
}
"""How effects of donors are crossed: groups of donors, a trend over donors, conditions."""


def cross(inner: Structure, crossing: Crossing, seen: Sequence[str]) -> Structure:
    """The structure of groups or conditions.

    Parameters
    ----------
    inner : Structure
        Of the cell types.
    crossing : Crossing
    seen : sequence of str
        Names of the effects that some row has.

    Examples
    --------
    >>> by = Crossing("by", "status", ("ctrl", "case"))
    >>> cross(resolve("free", ["T", "B"]), by, ["T|ctrl", "B|ctrl", "T|case"]).labels
    ('hom[ctrl]', 'V[T|ctrl]', 'V[B|ctrl]', 'hom[case]')
    >>> cross(resolve("iid", ["T", "B"]), Crossing("within", "stim", ("no", "yes")),
    ...       ["T|no", "B|no", "T|yes", "B|yes"]).labels
    ('hom', 'V', 'hom:stim', 'V:stim')
    """
    names = crossing.effects(inner.celltypes)
    labels = [rename(label) for rename, _ in crossing.parts for label in inner.labels]
    whole = np.concatenate([np.kron(part, inner.basis) for _, part in crossing.parts])
    basis = _among(whole, names, seen)
    kept = _independent(basis)
    parts = [(labels[k], basis[k]) for k in kept]
    _check_basis(parts)
    return Structure(
        inner.name, tuple(seen), tuple(labels[k] for k in kept), basis[list(kept)],
        Crossed(inner, crossing, kept),
    )  # fmt: skip


def _among(matrices: np.ndarray, names: Sequence[str], seen: Sequence[str]) -> np.ndarray:
    """Matrices (K, E, E) of effects `names`, of those that are seen."""
    at = [names.index(name) for name in seen]
    return np.ascontiguousarray(matrices[:, at][:, :, at])


def _independent(basis: np.ndarray) -> tuple[int, ...]:
    """Numbers of matrices that are no combinations of those before."""
    columns = _unit_columns(basis)
    kept: list[int] = []
    Q = np.zeros((len(columns), 0))
    for k, column in enumerate(columns.T):
        rest = column - Q @ (Q.T @ column)
        rest -= Q @ (Q.T @ rest)
        size = np.linalg.norm(rest)
        if size > 1e-8:
            Q = np.column_stack([Q, rest / size])
            kept.append(k)
    return tuple(kept)


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


Band = NewType("Band", str)
"""What :func:`banded` returns, apart from other text for checkers of types."""


def banded(width: int) -> Band:
    """The banded structure: V_cd is free where `|c - d| <= width`, zero elsewhere.

    >>> banded(1)
    'banded(1)'
    """
    number = isinstance(width, Real) and not isinstance(width, bool)
    if not (number and 0 <= width < np.inf and int(width) == width):
        raise CTMMError(f"banded(width): width must be an integer >= 0, got {width!r}")
    return Band(f"banded({int(width)})")


class Tree(NamedTuple):
    """Clades of cell types by name, made by :func:`tree`."""

    clades: tuple[tuple[str, tuple[str, ...]], ...]

    def matrices(self, names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
        """J, the ones of every clade, and the diagonal, with labels.

        Raises
        ------
        CTMMError
            A clade with cell types that are not there.
        """
        parts = []
        for clade, types in self.clades:
            unknown = [name for name in types if name not in names]
            if unknown:
                raise CTMMError(
                    f"tree: clade {clade!r} has {unknown[0]!r}, which is no cell type of the data "
                    f"({', '.join(names)})"
                )
            own = np.isin(names, types).astype(float)
            parts.append((f"V[{clade}]", np.outer(own, own)))
        return _shared(names) + parts + _band(names, 0)


def tree(clades: Mapping[str, object]) -> Tree:
    """The structure of cell types on a tree: variances of all, of every clade, of every type.

    A = hom J + sum_S V[S] 1_S 1_S' + diag(V[c]): types of a clade have what they share with each
    other beyond what all share.

    Parameters
    ----------
    clades : dict
        Name of a clade -> list of its cell types, or dict of the clades inside it, or a list of
        both.  Types in no clade stand by themselves.

    Raises
    ------
    CTMMError
        A clade of fewer than two cell types, or two of the same; a name that occurs twice.

    Examples
    --------
    >>> lineages = tree({"lymphoid": ["T", "B"], "myeloid": ["mono", "DC"]})
    >>> resolve(lineages, ["B", "DC", "T", "mono"]).labels
    ('hom', 'V[lymphoid]', 'V[myeloid]', 'V[B]', 'V[DC]', 'V[T]', 'V[mono]')
    >>> resolve(tree({"lymphoid": ["B", {"T/NK": ["T", "NK"]}]}), ["B", "NK", "T", "mono"]).labels
    ('hom', 'V[lymphoid]', 'V[T/NK]', 'V[B]', 'V[NK]', 'V[T]', 'V[mono]')
    """
    if not isinstance(clades, Mapping) or not clades:
        raise CTMMError("tree: clades are a dict, tree({'lymphoid': ['T', 'B'], ...})")
    found: list[tuple[str, tuple[str, ...]]] = []

    def within(inside: object) -> list[str]:
        if isinstance(inside, Mapping):
            return [t for key, own in inside.items() for t in leaves(str(key), own)]
        return [str(inside)]

    def leaves(name: str, inside: object) -> tuple[str, ...]:
        at = len(found)
        parts = [inside] if isinstance(inside, Mapping) else inside
        if not isinstance(parts, Sequence) or isinstance(parts, (str, bytes)):
            raise CTMMError(
                f"tree: clade {name!r} must be a list of cell types or a dict of clades"
            )
        types = tuple(t for one in parts for t in within(one))
        if len(types) < 2 or len(set(types)) < len(types):
            raise CTMMError(f"tree: clade {name!r} needs two different cell types or more")
        found.insert(at, (name, types))
        return types

    every = within(clades)
    names = [name for name, _ in found] + every
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CTMMError(
            f"tree: {twice[0]!r} occurs twice among clades and cell types; a clade inside another "
            "is written there, {'lymphoid': ['B', {'T/NK': ['T', 'NK']}]}"
        )
    return Tree(tuple(found))


StructureLike: TypeAlias = (
    Literal["hom", "iid", "free", "full"]
    | Band
    | Tree
    | Structure
    | np.ndarray
    | list[Any]
    | tuple[Any, ...]
    | Mapping[str, Any]
)
"""What ``structure=`` takes."""


def resolve(structure: object, celltypes: Sequence[str]) -> Structure:
    """Turn what the user gave into a :class:`Structure`.

    Parameters
    ----------
    structure : str, or list of (C, C) matrices, or dict label -> matrix, or what tree() returns
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
    elif isinstance(structure, Tree):
        title, parts = "tree", structure.matrices(names)
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
