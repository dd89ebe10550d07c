"""Whether a design has donors enough for a structure."""

from __future__ import annotations

from ..errors import DataError
from ..structures import ARGUMENTS, STRUCTURES, Structure, resolve
from .labelled import Design


def n_parameters(design: Design, structure: Structure) -> int:
    """Number of all fixed effects and variance components."""
    return len(design.names) + len(structure.labels) + len(design.random)


def check_size(design: Design, structure: Structure) -> None:
    """Refuse more parameters than donors, and say what would do."""
    donors, count = len(design.donors), n_parameters(design, structure)
    if donors >= count:
        return
    smaller = [resolve(name, design.celltypes) for name in STRUCTURES if name not in ARGUMENTS]
    fitting = [s for s in smaller if n_parameters(design, s) <= donors and structure.contains(s)]
    if fitting:
        best = max(fitting, key=lambda s: len(s.labels))
        fix = f"try structure={best.name!r} ({n_parameters(design, best)} parameters)"
    else:
        fix = "use fewer covariates or random effects"
    raise DataError(
        f"{donors} donors cannot estimate {count} parameters ({len(design.names)} fixed effects, "
        f"{len(structure.labels)} of structure {structure.name!r}, {len(design.random)} random "
        f"variances): {fix}"
    )
