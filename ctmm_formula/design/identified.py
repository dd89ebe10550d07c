"""Whether the rows of a design can tell all variance components apart, whatever the response."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..engine.he import confounded, moment_matrix
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError, DataError
from ..structures import ARGUMENTS, STRUCTURES, Structure
from .table import listing

if TYPE_CHECKING:
    from .labelled import Design

_FAR = 1e-6
"""Share of a column, or of a component, that is its own, from which no closer look is due."""
_LARGEST = 1e100  # of a basis matrix: products of more are no numbers


def check_alone(alone: Mapping[str, str], structure: Structure) -> None:
    """Refuse variances of cell types that are seen in one donor.

    Parameters
    ----------
    alone : dict
        Cell types seen in one donor -> that donor.
    structure : Structure

    Raises
    ------
    DataError
        Names them and the structures that share variances.
    """
    for name in lone(alone, structure):
        raise DataError(
            f"cell type {name!r} is observed in one donor, {alone[name]!r}: its variance between "
            f"donors cannot be estimated; leave it out, or share the variance between cell "
            "types, structure='iid' or 'hom'"
        )


def lone(alone: Mapping[str, str], structure: Structure) -> list[str]:
    """Cell types seen in one donor to which `structure` gives a variance of their own.

    >>> from ctmm_formula.structures import resolve
    >>> lone({"B": "d1"}, resolve("free", ["B", "T"])), lone({"B": "d1"}, resolve("iid", "BT"))
    (['B'], [])
    """
    out = []
    for name in alone:
        c = structure.celltypes.index(name)
        others = np.delete(np.delete(structure.basis, c, axis=1), c, axis=2)
        own = structure.basis[:, c].any(axis=1) & ~others.any(axis=(1, 2))
        out += [name] if own.any() else []
    return out


def identified(
    make: Callable[[Sequence[str]], Design], structures: Sequence[object]
) -> tuple[Design, list[str]]:
    """A design without cell types whose own variance cannot be estimated; and which these are.

    Parameters
    ----------
    make : callable
        The design without the cell types it gets.
    structures : sequence
        As users give them.  Only names say what the others of fewer cell types are, so with
        matrices nothing is left out; nor where rows are donors.
    """
    without: list[str] = []
    while True:
        design = make(without)
        if design.kind != "ctp" or not all(isinstance(one, str) for one in structures):
            return design, without
        known = [design.structure(one) for one in structures]
        found = [name for one in known for name in lone(design.alone, one)]
        if not found or len(set(found)) == len(design.effects):
            return design, without
        without += dict.fromkeys(found)


def check_components(model: Model, structure: Structure, random: Sequence[str]) -> None:
    """Refuse components that no method can tell apart, and say what would do.

    What counts is the rank of their moment matrix tr(Pi Sigma_k Pi Sigma_l), Pi the projection off
    the fixed effects: rows and pairs of rows, not donors.

    Parameters
    ----------
    model : Model
    structure : Structure
    random : sequence of str
        Names of the random variances, and of the kinship's.

    Raises
    ------
    CTMMError
        A basis matrix has entries whose products are no numbers.
    ConvergenceError
        Components that cannot be told apart: it names them.
    """
    for label, basis in zip(structure.labels, model.basis, strict=True):
        largest = np.abs(basis).max()
        if largest > _LARGEST:
            raise CTMMError(f"basis matrix {label!r} has entries up to {largest:.3g}: rescale it")
    wrong = confounded(model)
    if not wrong:
        return
    names = [[*structure.labels, *random][k] for k in wrong]
    if wrong[-1] >= len(model.S):
        raise ConvergenceError(
            f"variance components cannot be told apart in {model.n_donors} donors: "
            f"{listing(names, 20)}; between these donors the kinship is a multiple of the identity "
            "(all equally related), that of another name or a random effect, or they are too few"
        )
    named = [name for name in STRUCTURES if name not in ARGUMENTS]
    # of one cell type all structures are the same
    known = [structure.of(name) for name in named if len(structure.celltypes) > 1]
    smaller = [s for s in known if s.labels != structure.labels and structure.contains(s)]
    able = [s for s in smaller if not confounded(model.with_basis(s.basis))]
    best = max(able, key=lambda s: len(s.labels), default=None)
    fix = "use fewer covariates or random effects"
    if best is not None:
        fix = f"try structure={best.name!r}"
    raise ConvergenceError(
        f"variance components cannot be told apart in {model.nobs} rows of {model.n_donors} donors "
        f"with {model.X.shape[1]} fixed effects: {listing(names, 20)}; {fix}"
    )


def surely(model: Model, whole: np.ndarray) -> bool:
    """Whether fixed effects and components can be told apart, without a doubt.

    If not, they may be, which :func:`check_components` and the checks of the fixed part can tell.
    Random effects have something beside the fixed part then too: a share s of q levels leaves
    s^2 q of their moment.

    Parameters
    ----------
    model : Model
    whole : ndarray, shape (K,)
        Moments of the components without projection, of these rows or of more.
    """
    length = np.sqrt(np.square(model.X).sum(axis=0))
    own = np.abs(model.back.diagonal()) * length  # 1 / share of a column
    if not ((own > 0.0) & (own < 1.0 / _FAR)).all():
        return False
    gram = moment_matrix(model)
    if not (gram.diagonal() > _FAR * whole).all():
        return False
    size = np.sqrt(gram.diagonal())
    return bool(np.linalg.eigvalsh(gram / np.outer(size, size))[0] > _FAR)
