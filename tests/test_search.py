"""REML finds the maximum where its first climb does not: points better than a first end, kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, not_here

import ctmm_formula as ctmm
from ctmm_formula.engine.estimators import estimate

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
import reml_maximum
import score_speed

BEATEN = reml_maximum.BEATEN
BETTER = {
    5: 60.292220733421956,
    226: -10.510835797089316,
    283: -535.2388339059897,
    550: -33.85749816233864,
    594: 59.29213299081821,
    693: 268.74207719564157,
    1026: -50.011356348075886,
    1140: 101.84700088575916,
    1615: 11.392491791408604,
}
"""Number of a random design -> log-likelihood, by dense algebra, of a point of its domain that some
of a hundred random starts reached and a climb from the variance split alone does not."""


@pytest.mark.parametrize("seed", BETTER)
def test_designs_whose_first_maximum_is_not_the_maximum(seed):
    model, domain, _ = reml_maximum.design(seed)
    fit = estimate(model, "reml", domain)
    assert fit.convergence.converged
    assert fit.llf == pytest.approx(dense.llf(model, fit.theta, "reml"), abs=1e-6)
    assert fit.llf >= BETTER[seed] - BEATEN


INTERPOLATED = {
    288: -805.662401356744,
    863: -391.45752597725567,
    2396: -714.1501372432957,
    3616: -181.19606336238232,
    6549: -667.2842369347637,
    7696: -370.1148900925899,
}
"""Designs of many rows whose edge, near an interior maximum, has a higher one: log-likelihood."""
ANOTHER_EDGE = {
    1954: -326.0656644640383,
    2112: -839.0751452782666,
    3218: -559.2373134886759,
    3340: -408.6886435112448,
    4963: -422.6040992303684,
}
"""Designs whose maximum lies near the edge that the climb behind a barrier ends on: of the best of
400 climbs that began with little of a barrier."""


@pytest.mark.parametrize("seed", INTERPOLATED | ANOTHER_EDGE)
def test_a_near_edge_is_looked_at_where_rows_are_many(seed):
    model, domain, _ = reml_maximum.many_rows(seed)
    fit = estimate(model, "reml", domain)
    assert fit.convergence.converged
    assert fit.convergence.boundary
    assert fit.llf == pytest.approx(dense.llf(model, fit.theta, "reml"), abs=1e-6)
    assert fit.llf >= (INTERPOLATED | ANOTHER_EDGE)[seed] - BEATEN


@pytest.mark.parametrize("seed", range(0, 400, 4))
def test_no_start_near_an_edge_is_better_for_genes_of_scans(seed):
    model, domain, _ = reml_maximum.of_scan(seed)
    assert reml_maximum.shortfall(model, domain, "reml", 4, seed, True)[1] <= BEATEN


FAR_OFF = {
    56: -216.80094347698733,
    92: -184.04774906511565,
    131: -206.69273253716165,
    146: -175.2658877785742,
}
"""Designs of many rows, donors far off: the edge where a climb behind a barrier ends is lower."""


@pytest.mark.parametrize("seed", FAR_OFF)
def test_corners_are_looked_at_where_the_first_climbs_end_on_the_edge(seed):
    model, domain, _ = reml_maximum.with_outliers(seed)
    fit = estimate(model, "reml", domain)
    assert fit.llf == pytest.approx(dense.llf(model, fit.theta, "reml"), abs=1e-6)
    assert fit.llf >= FAR_OFF[seed] - BEATEN


ANOTHER_INSIDE = {
    ("with_outliers", 73): -265.40660721776504,
    ("with_outliers", 93): -275.4280058137891,
    ("with_outliers", 135): -222.94516013308308,
    ("of_scan_with_outliers", 284): -432.60172833445284,
    ("of_scan_with_outliers", 1118): -395.42807423777157,
    ("of_scan_with_outliers", 2027): -537.2986613039893,
}
"""Of many rows, some far off: where the first climb ends, inside, is lower, by up to 24."""


@pytest.mark.parametrize(("kind", "seed"), ANOTHER_INSIDE)
def test_all_starts_climb_where_rows_are_far_off(kind, seed):
    model, domain, _ = getattr(reml_maximum, kind)(seed)
    fit = estimate(model, "reml", domain)
    assert fit.llf == pytest.approx(dense.llf(model, fit.theta, "reml"), abs=1e-6)
    assert fit.llf >= ANOTHER_INSIDE[kind, seed] - BEATEN


@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.BoundaryWarning")
def test_a_singular_covariance_is_not_inside():
    def between(*types: int) -> np.ndarray:
        there = np.isin(np.arange(4), types).astype(float)
        return np.outer(there, there)

    structure = {"hom": between(0, 1, 2, 3), **{f"v{c}": between(c) for c in range(4)}}
    structure["c"] = between(2, 3) - between(2) - between(3)
    given = score_speed.simulate(30, 4, 0, False, 200)
    data = given["data"].assign(y=given["expr"]["g104"], nu=given["nu"]["g104"]).dropna()
    settings = {"structure": structure, "bounds": "nonnegative", "method": "reml"}
    fit = ctmm.fit("y ~ C(celltype)", data=data, **settings)
    assert 0.0 < fit.vcomp["v1"] < 1e-8


CASES = "cases/reml/reml_cases.json"
MISSING = not_here(CASES)
KEPT = [] if MISSING else json.loads((SHARED / CASES).read_text())


@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.BoundaryWarning")
@pytest.mark.filterwarnings("ignore:no cell type in the fixed part")
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
@pytest.mark.parametrize("case", KEPT, ids=[str(case["seed"]) for case in KEPT])
def test_cases_of_users(case):
    data = pd.read_csv(SHARED / f"cases/reml/reml_{case['seed']}.csv", dtype={"donor": str})
    fit = ctmm.fit(case["formula"], data=data, **case["kw"])
    assert fit.converged
    assert fit.llf == pytest.approx(dense.llf(fit.arrays, fit.vcomp.to_numpy(), "reml"), abs=1e-6)
    assert fit.llf >= dense.llf(fit.arrays, np.array(case["better"]), "reml") - BEATEN


@pytest.mark.slow
@pytest.mark.parametrize("method", ["reml", "ml"])
def test_no_random_start_is_better(method):
    for seed in range(2000, 2020):
        model, domain, what = reml_maximum.design(seed)
        assert reml_maximum.shortfall(model, domain, method, 30, seed)[1] <= BEATEN, (seed, what)
