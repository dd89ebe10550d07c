"""Tests of groups and of responses of a fit, as results: rows of the registry of tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..errors import CTMMError
from .fit import Fit
from .group_score import (
    FEW,
    OVERALL,
    SHARED,
    SPECIFIC,
    GroupDesign,
    ResponseDesign,
    group_design,
    group_test,
    of_type,
    response_design,
    response_test,
)
from .testing import TestResult


def _blank(name: str, null: str) -> TestResult:
    return TestResult(name, null, "score", distribution="chi2 mixture")


def groups(fit: Fit, ask: object) -> TestResult:
    """Noise-robust score test of a covariance that differs between groups of donors."""
    crossed = fit.structure.crossed
    blank = _blank("variance by groups", "the same covariance between donors in all groups")
    if crossed is None or crossed.crossing.kind == "within":
        return blank.without("there are no groups of donors: fit with by=")
    shared = fit.group_design
    own = shared if isinstance(shared, GroupDesign) else group_design(fit.model, fit.structure)
    types = crossed.inner.celltypes
    try:
        test = group_test(fit.model, own, types)
    except (CTMMError, np.linalg.LinAlgError) as error:
        return blank.without(str(error))
    if math.isnan(test.combined[OVERALL]):
        return blank.without(
            "the score has no variance (few counts, or no variance between donors), or its tail "
            "could not be computed"
        )
    levels = own.levels
    best = int(np.nanargmin(test.chosen[OVERALL]))
    notes = [
        f"the larger of both laws' p values, as a group has fewer than {FEW} donors"
        if test.few
        else "p values by the empirical law"
    ]
    if len(levels) > 1:
        notes.append("every group against the others, combined")
    more, column = test.tested[OVERALL][best].statistic > 0, crossed.crossing.column
    if crossed.crossing.kind == "trend":
        notes.append(f"donors vary {'more' if more else 'less'} where {column!r} is larger")
    else:
        notes.append(f"donors of {levels[best]!r} vary {'more' if more else 'less'}")
    if all(math.isnan(one.empirical) for one in test.tested[OVERALL]):
        notes.append("no empirical law, as there are too few independent units")
    notes += _untested(types, [test.combined[of_type(name)] for name in types], "group")
    extra: dict[str, object] = {
        SHARED: math.exp(test.combined[SHARED]),
        "celltype": {name: math.exp(test.combined[of_type(name)]) for name in types},
    }
    logs: dict[str, object] = {
        SHARED: test.combined[SHARED],
        "celltype": {name: test.combined[of_type(name)] for name in types},
    }  # fmt: skip
    if len(levels) > 1:
        extra["group"] = {
            level: math.exp(log) for level, log in zip(levels, test.chosen[OVERALL], strict=True)
        }
    for what in ("law", "empirical"):
        extra[what] = {
            _short(name): math.exp(getattr(one, what)) for name, one in test.together.items()
        }
    return replace(
        blank, statistic=test.tested[OVERALL][best].statistic,
        pvalue=math.exp(test.combined[OVERALL]), log_pvalue=test.combined[OVERALL],
        note="; ".join(notes), extra=extra, log_details=logs,
    )  # fmt: skip


def _short(name: str) -> str:
    """The name of a cell type alone, unless it is that of another question."""
    short = name.removeprefix(of_type(""))
    return name if short in (OVERALL, SHARED) else short


def _untested(types: Sequence[str], logs: Iterable[float], what: str) -> list[str]:
    """Why cell types have no test of their own, if any has none."""
    lost = [name for name, log in zip(types, logs, strict=True) if math.isnan(log)]
    if len(lost) == len(types):
        return ["no cell type has rows of its own with which it could be tested"]
    if not lost:
        return []
    names = ", ".join(map(repr, lost))
    return [
        f"no test of {names}: too few rows of its own, or in one {what} only, or what "
        f"a {what} adds is explained by the fixed effects"
    ]


def response(fit: Fit, ask: object) -> TestResult:
    """Noise-robust score test of variance between donors in how they respond to conditions."""
    crossed = fit.structure.crossed
    blank = _blank("variance of responses", "all donors respond alike")
    if crossed is None or crossed.crossing.kind != "within":
        return blank.without("there are no conditions of the same donors: fit with within=")
    shared = fit.group_design
    own = shared if isinstance(shared, ResponseDesign) else None
    try:
        test = response_test(fit.model, own or response_design(fit.model, fit.structure))
    except (CTMMError, np.linalg.LinAlgError) as error:
        return blank.without(str(error))
    if math.isnan(test.overall):
        return blank.without(
            "the score has no variance (few counts, or no variance between donors), or its tail "
            "could not be computed"
        )
    types = crossed.inner.celltypes
    logs = {name: one.upper for name, one in zip(types, test.types, strict=True)}
    notes = ["every cell type by its own rows alone", *_untested(types, logs.values(), "condition")]
    if len(types) == 1:
        notes = ["of one cell type there is nothing shared or specific"]
    elif math.isnan(test.shared.upper) and math.isnan(test.specific.upper):
        notes.append("the rows do not tell what types share of responses from what is specific")
    return replace(
        blank, statistic=test.specific.statistic, pvalue=math.exp(test.overall),
        log_pvalue=test.overall, note="; ".join(notes),
        extra={SHARED: math.exp(test.shared.upper), SPECIFIC: math.exp(test.specific.upper),
               "celltype": {name: math.exp(log) for name, log in logs.items()}},
        log_details={SHARED: test.shared.upper, SPECIFIC: test.specific.upper, "celltype": logs},
    )  # fmt: skip
