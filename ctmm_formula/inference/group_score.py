"""Score tests of groups and conditions: does the covariance between donors differ, is there more.

The null is one covariance for all, with noise pooled per cell type over groups; directions
(:mod:`ctmm_formula.inference.directions`) say what a group or condition adds.

Of groups, two-sided: A^ itself, the fitted covariance, in one group (all of it scaled), J (the
shared variance), and of every cell type its whole variance, by its own rows alone, so that no other
type's difference is taken for its own.  With fewer than :data:`FEW` donors in a group the larger of
both laws' p values counts, as the empirical one is then liberal, else the empirical
(``tests/benchmarks/group_levels.md``).

Of responses, one-sided as V is: J beside a response of every type's own, the sum of these beside
what all share, and of every cell type all of its response, again by its own rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..engine.he import moment_matrix
from ..engine.model import Model, build_model
from ..errors import CTMMError
from ..structures import CROSSINGS, Crossed, Structure
from .directions import (
    NOT_THERE,
    DirectionDesign,
    Tested,
    directions_of,
    empirical,
    rows_of_type,
    score_directions,
)
from .score import ROUNDING, log_cauchy_combination

FEW = 40
"""Donors in a group below which the larger of the two p values counts."""
OVERALL, SHARED, SPECIFIC = "overall", "shared", "specific"


# ---------------------------------------------------------------------------------------------
# groups


class GroupDesign(NamedTuple):
    """What tests of groups of all responses share.

    both: overall ("like") and shared directions of all rows; types: of the rows of every cell type,
    or None where a type is not in two groups; levels that are tested.
    """

    both: DirectionDesign
    types: tuple[DirectionDesign | None, ...]
    levels: tuple[str, ...]


class GroupTest(NamedTuple):
    """What was found, by question: "overall", "shared", then :func:`of_type` in their order.

    tested: of every level that is tested; chosen: logarithm of the p value that counts, (levels,);
    together: both laws of all levels together; combined: the p value of them that counts; few:
    whether that is the larger one.
    """

    tested: dict[str, list[Tested]]
    chosen: dict[str, np.ndarray]
    together: dict[str, Tested]
    combined: dict[str, float]
    few: bool


def group_design(model: Model, structure: Structure) -> GroupDesign:
    """What the tests of groups of all responses of a model's design share."""
    crossed = structure.crossed
    if crossed is None or crossed.crossing.kind == "within":
        raise CTMMError("there are no groups of donors: fit with by=")
    effects, inner = structure.celltypes, crossed.inner
    C = len(inner.celltypes)
    null = crossed.common(inner.basis, effects)
    J = crossed.tested(np.ones((1, C, C)), effects)
    scaled = crossed.tested(inner.basis, effects)
    names = _tested_levels(crossed)
    both = directions_of(
        model, null, {f"shared|{g}": J[g][0] for g in names},
        {f"overall|{g}": scaled[g] for g in names},
    )  # fmt: skip
    types = types_alone(model, crossed, effects, names)
    fewest = min(_sizes(model, crossed, effects))
    return GroupDesign(both._replace(fewest=fewest), types, names)


def _tested_levels(crossed: Crossed) -> tuple[str, ...]:
    """Groups against the others; of two, the second."""
    crossing = crossed.crossing
    if crossing.kind == "trend":
        return (crossing.column,)
    return crossing.levels if len(crossing.levels) > 2 else crossing.levels[1:]


def _loads(model: Model, crossed: Crossed, effects: Sequence[str]) -> np.ndarray:
    """Loads z (n, G) of rows of one cell type each, from z (x) h."""
    names = crossed.crossing.effects(crossed.inner.celltypes)
    H = np.zeros((len(model.H), len(names)))
    H[:, [names.index(name) for name in effects]] = model.H
    return H.reshape(len(H), len(crossed.crossing.levels), -1).sum(axis=2)


def _sizes(model: Model, crossed: Crossed, effects: Sequence[str]) -> tuple[int, ...]:
    """Donors in every group; of a trend half of them at either end."""
    if crossed.crossing.kind == "trend":
        return (model.n_donors // 2,) * 2
    seen = np.zeros((len(model.active), len(crossed.crossing.levels)))
    rows, at = model.active_rows, _levels_of(crossed, effects)
    np.maximum.at(seen, (model.row_donor[rows][:, None], at[None]), np.abs(model.H[rows]))
    return tuple(int(n) for n in (seen > 0.0).sum(axis=0))


def _levels_of(crossed: Crossed, effects: Sequence[str]) -> np.ndarray:
    """Number of the level of every effect, (E,)."""
    names = crossed.crossing.effects(crossed.inner.celltypes)
    return np.array([names.index(name) for name in effects]) // len(crossed.inner.celltypes)


def types_alone(
    model: Model, crossed: Crossed, effects: Sequence[str], levels: Sequence[str]
) -> tuple[DirectionDesign | None, ...]:
    """Designs of the rows of every cell type alone, None where it has too few or there are none."""
    C = len(crossed.inner.celltypes)
    one_hot = model.types.shape[1] == C and bool((model.types.max(axis=1) == 1.0).all())
    return tuple(
        _of_type(model, crossed, effects, c, levels) if one_hot else None for c in range(C)
    )


def _alone(model: Model, own: DirectionDesign | None, two_sided: bool) -> dict[str, Tested]:
    """Tests of the rows of one cell type, none where they cannot be had."""
    try:
        return {} if own is None else score_directions(model, own, two_sided)
    except CTMMError:  # of the rows of this type alone
        return {}


def _of_type(
    model: Model, crossed: Crossed, effects: Sequence[str], c: int, levels: Sequence[str]
) -> DirectionDesign | None:
    """The design of the rows of one cell type, where some of the groups have it."""
    part = rows_of_type(model, c)
    if part is None:
        return None
    rows = part.rows
    loads = _loads(model, crossed, effects)[rows]
    seen = np.asarray(loads.any(axis=0))
    if seen.sum() < 2:
        return None
    kind = CROSSINGS[crossed.crossing.kind]

    def among(part: np.ndarray) -> np.ndarray:
        return part[np.ix_(seen, seen)]

    null = among(kind.common(seen.size))[None]
    parts = {g: among(B) for g, B in kind.tested(crossed.crossing).items() if g in levels}
    parts = {g: B for g, B in parts.items() if B.any()}
    own = build_model(
        model.y[rows], model.nu[rows], part.X, loads[:, seen], part.donor, null, part.random,
        None if model.n_cells is None else model.n_cells[rows], None, np.ones((len(rows), 1)),
    )  # fmt: skip
    fewest = len(part.donors) // 2
    if crossed.crossing.kind == "by":
        fewest = int(np.array(loads[:, seen] > 0.0).sum(axis=0).min())  # a row a donor
    return directions_of(own, null, parts, {})._replace(rows=rows[own.order], fewest=fewest)


def group_test(model: Model, design: GroupDesign, celltypes: Sequence[str]) -> GroupTest:
    """Test that the covariance between donors is the same in all groups.

    Raises
    ------
    ConvergenceError, CTMMError
        As :func:`score_directions`.
    """
    found = score_directions(model, design.both, True)
    names = [of_type(name) for name in celltypes]
    for name, own in zip(names, design.types, strict=True):
        tested = _alone(model, own, True)
        found |= {_key(name, level): one for level, one in tested.items()}
    designs = (design.both, design.both, *design.types)
    few = {
        name: one is None or one.fewest < FEW
        for name, one in zip((OVERALL, SHARED, *names), designs, strict=True)
    }
    tested_of = {
        name: [found.get(_key(name, level), NOT_THERE) for level in design.levels]
        for name in (OVERALL, SHARED, *names)
    }
    chosen = {
        name: np.array([_chosen(one, few[name]) for one in own]) for name, own in tested_of.items()
    }
    together = {name: _together(own) for name, own in tested_of.items()}
    combined = {name: _chosen(one, few[name]) for name, one in together.items()}
    return GroupTest(tested_of, chosen, together, combined, few[OVERALL])


def of_type(name: str) -> str:
    """The question of a cell type, whatever it is called."""
    return f"celltype {name}"


def _key(name: str, level: str) -> str:
    return f"{name}|{level}"


def _chosen(one: Tested, few: bool) -> float:
    """The p value that counts: of few donors the larger, else the empirical, where there is one."""
    if few or math.isnan(one.empirical):
        return float(np.fmax(one.law, one.empirical))
    return one.empirical


def _together(levels: Sequence[Tested]) -> Tested:
    """Both laws of all levels together; the empirical one is one test of them all."""
    if len(levels) == 1:
        return levels[0]
    terms = [one.terms for one in levels if len(one.terms)]
    law = log_cauchy_combination(np.array([one.law for one in levels]))
    joint = empirical(np.column_stack(terms)) if terms else math.nan
    return Tested(math.nan, law, joint, math.nan)


# ---------------------------------------------------------------------------------------------
# responses


class ResponseDesign(NamedTuple):
    """What tests of responses of all genes share.

    shared: beside a response of every type's own; specific: of all types' own together, beside what
    they share; types: of the rows of every cell type alone, or None where it has too few.
    """

    shared: DirectionDesign
    specific: DirectionDesign
    types: tuple[DirectionDesign | None, ...]


class ResponseTest(NamedTuple):
    """Statistics and logarithms of one-sided p values, and all together in `overall`."""

    shared: Tested
    specific: Tested
    types: tuple[Tested, ...]
    overall: float


def response_design(model: Model, structure: Structure) -> ResponseDesign:
    """What the tests of responses of all responses of a model's design share."""
    crossed = structure.crossed
    if crossed is None or crossed.crossing.kind != "within":
        raise CTMMError("there are no conditions of the same donors: fit with within=")
    effects, C = structure.celltypes, len(crossed.inner.celltypes)
    column = crossed.crossing.column
    # from behind: where no donor has two types, what they share is the sum of their own and leaves
    null = crossed.common(_with_types(crossed.inner.basis), effects)
    null = told_apart(model, null[::-1])[::-1]
    J = crossed.tested(np.ones((1, C, C)), effects)[column]
    units = crossed.tested(np.array([np.diag(e) for e in np.eye(C)]), effects)[column]
    # under one condition a type's response is the variance that it has anyway
    alone = told_apart(model, np.concatenate([null, units]))
    beside = told_apart(model, np.concatenate([null, J]))
    return ResponseDesign(
        directions_of(model, alone, {SHARED: J[0]}, {}),
        directions_of(model, beside, {SPECIFIC: alone[len(null) :].sum(axis=0)}, {}),
        types_alone(model, crossed, effects, (column,)),
    )


def told_apart(model: Model, matrices: np.ndarray) -> np.ndarray:
    """Matrices (K, E, E) that the rows tell from those before and from the fixed effects.

    What counts is the rank of tr(M D_k M D_l), M = I - X (X'X)^-1 X', as of moments: there is no
    other where a condition has no rows of a type, nor where fixed effects explain those it has.
    """
    own, K = model.with_basis(matrices), len(matrices)
    left, whole = (moment_matrix(own, projected)[:K, :K] for projected in (True, False))
    kept: list[int] = []
    for k, size in enumerate(np.diag(whole)):
        given = left[np.ix_(kept, kept)]
        rest = left[k, k] - left[k, kept] @ np.linalg.solve(given, left[kept, k])
        if rest > ROUNDING * size:
            kept.append(k)
    return matrices[kept]


def _with_types(basis: np.ndarray) -> np.ndarray:
    """Matrices (K, C, C) with a variance of every type's own, where they have none.

    Whatever the fit takes for nothing, what types have under all conditions is no response.
    """

    def rank(matrices: list[np.ndarray]) -> int:
        return int(np.linalg.matrix_rank(np.array(matrices).reshape(len(matrices), -1)))

    C = basis.shape[1]
    own = [np.diag(e) for e in np.eye(C)]
    if rank([*basis, *own]) == rank([*basis]):
        return basis
    out = [np.ones((C, C)), *own] if C > 1 else own
    for B in basis:
        if rank([*out, B]) > len(out):
            out.append(B)
    return np.array(out)


def response_test(model: Model, design: ResponseDesign) -> ResponseTest:
    """Test that donors respond alike.

    Raises
    ------
    ConvergenceError, CTMMError
        As :func:`score_directions`.
    """
    shared = score_directions(model, design.shared, False)[SHARED]
    specific = score_directions(model, design.specific, False)[SPECIFIC]
    types = tuple(next(iter(_alone(model, own, False).values()), NOT_THERE) for own in design.types)
    logs = np.array([one.upper for one in (shared, specific, *types)])
    return ResponseTest(shared, specific, types, log_cauchy_combination(logs))
