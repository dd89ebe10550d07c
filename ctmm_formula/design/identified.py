"""Whether the rows of a design can tell all variance components apart, whatever the response."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.he import confounded
from ..engine.model import Model
from ..errors import ConvergenceError
from ..structures import ARGUMENTS, STRUCTURES, Structure, resolve
from .table import listing


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
