"""Whether the rows of a design can tell all variance components apart, whatever the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..engine.he import confounded
from ..engine.model import Model
from ..errors import ConvergenceError, DataError
from ..structures import ARGUMENTS, STRUCTURES, Structure, resolve
from .table import listing


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
    for name, donor in alone.items():
        c = structure.celltypes.index(name)
        others = np.delete(np.delete(structure.basis, c, axis=1), c, axis=2)
        own = structure.basis[:, c].any(axis=1) & ~others.any(axis=(1, 2))
        if own.any():
            raise DataError(
                f"cell type {name!r} is observed in one donor, {donor!r}: its variance between "
                f"donors cannot be estimated; leave it out, or share the variance between cell "
                "types, structure='iid' or 'hom'"
            )


def check_components(model: Model, structure: Structure, random: Sequence[str]) -> None:
    """Refuse components that no method can tell apart, and say what would do.

    What counts is the rank of their moment matrix tr(Pi Sigma_k Pi Sigma_l), Pi the projection off
    the fixed effects: rows and pairs of rows, not donors.

    Parameters
    ----------
    model : Model
    structure : Structure
    random : sequence of str
        Names of the random variances.

    Raises
    ------
    ConvergenceError
        Names them.
    """
    wrong = confounded(model)
    if not wrong:
        return
    names = [[*structure.labels, *random][k] for k in wrong]
    named = [name for name in STRUCTURES if name not in ARGUMENTS]
    # of one cell type all structures are the same
    known = [resolve(name, structure.celltypes) for name in named if len(structure.celltypes) > 1]
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
