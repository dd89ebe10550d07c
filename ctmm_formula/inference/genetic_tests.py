"""Tests of heritability of a fit, as results: a row of the registry of tests."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import CTMMError
from .fit import Fit
from .genetic_score import genetic_design, genetic_test
from .group_score import SHARED, SPECIFIC
from .testing import TestResult

NO_KINSHIP = "there is no kinship: fit with kinship="
"""Why nothing can be said of heritabilities."""


def heritable(fit: Fit, ask: Any) -> TestResult:
    """Noise-robust score test, by products of different donors, that nothing is genetic."""
    blank = TestResult(
        "heritability", "no variance between donors is genetic", "cross-donor score",
        distribution="chi2 mixture",
    )  # fmt: skip
    if not fit.model.kinship:
        return blank.without(NO_KINSHIP)
    number = max(ask.component, 0)
    try:
        known = fit.genetic_designs
        design = genetic_design(fit.model, number) if known is None else known[number]
        test = genetic_test(fit.model, design)
    except (CTMMError, np.linalg.LinAlgError) as error:
        return blank.without(str(error))
    if math.isnan(test.any):
        return blank.without("the score has no variance, or its tail could not be computed")
    notes = []
    if test.weights != "n_cells":
        notes.append(f"no numbers of cells: weighted by {test.weights}")
    if not test.whole:
        notes.append("many donors: laws by the eigenvalues of the kinship, their mean and variance")
    if len(fit.model.kinship) > 1:
        notes.append(
            "the hypothesis is that no kinship has any variance: what goes with another may show "
            "where they are alike"
        )
    types = dict(zip(fit.structure.celltypes, test.types, strict=True))
    lost = [SPECIFIC] if math.isnan(test.specific) else []
    lost += [repr(name) for name, one in types.items() if math.isnan(one.log)]
    if lost:
        why = "there is one cell type" if len(types) == 1 else "too few rows, by themselves"
        notes.append(f"no test of {', '.join(lost)}: {why}")
    logs = {
        SHARED: test.shared.log, SPECIFIC: test.specific,
        "celltype": {name: one.log for name, one in types.items()},
    }  # fmt: skip
    return replace(
        blank, statistic=test.shared.statistic, pvalue=math.exp(test.any), log_pvalue=test.any,
        note="; ".join(notes),
        extra={
            SHARED: math.exp(test.shared.log), SPECIFIC: math.exp(test.specific),
            "celltype": {name: math.exp(one.log) for name, one in types.items()},
        },
        log_details=logs,
    )  # fmt: skip
