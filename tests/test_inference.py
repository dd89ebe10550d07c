"""Tests of a fit against closed forms, brute force, published p values and their own null."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, not_here
from scipy import stats

import ctmm_formula as ctmm
import ctmm_formula.inference.fit as fit_module
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.draws import draw
from ctmm_formula.engine.estimate import Convergence, Estimate
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.errors import ConvergenceError, CTMMError
from ctmm_formula.inference.bootstrap import bootstrap_ratio
from ctmm_formula.inference.comparison import Labelled, compare, null_on_bound
from ctmm_formula.inference.fit import Fit
from ctmm_formula.inference.hypotheses import constraints
from ctmm_formula.inference.jackknife import JackknifeRun
from ctmm_formula.inference.score import score_test
from ctmm_formula.inference.testing import (
    TestResult,
    likelihood_ratio,
    mean_differentiation,
    one_sided_t,
    wald,
)
from ctmm_formula.inference.tests import COMPONENT_TESTS, TESTS, run_test
from ctmm_formula.structures import resolve

EXACT = 1e-12
"""Relative: the same closed form in double precision."""
TAIL = 1e-9
"""Relative, p values down to 1e-300: the tail functions lose some digits, not more."""
OPTIMUM = 1e-5
"""Relative: optima of the same likelihood found along other paths."""
PUBLISHED = 1e-3
"""Relative: published p values at estimates short by up to 1e-6 in log-likelihood."""
PUBLISHED_JACKKNIFE = 2e-3
"""Relative: 51 published fits, each stopped a little short."""
NOISE = Domain("noise", 0.1)
NAMES = ("T", "B", "NK")


def ctp(n_donors=30, seed=1, V=(0.5, 0.2, 0.1), sigma2=0.4, nu_range=1.0, batch=0, y_scale=1.0):
    """Arrays of complete cell type-specific data with known components."""
    rng = np.random.default_rng(seed)
    C = len(V)
    donor = np.repeat(np.arange(n_donors), C)
    H = np.tile(np.eye(C), (n_donors, 1))
    nu = 0.2 * 10 ** rng.uniform(-nu_range, 0, len(donor))
    y = (
        rng.normal(scale=math.sqrt(sigma2), size=n_donors)[donor]
        + rng.normal(size=len(donor)) * np.sqrt(np.tile(V, n_donors) + nu)
        + H @ np.arange(C)
    )
    random = []
    if batch:
        codes = donor % batch
        y = y + rng.normal(scale=0.5, size=batch)[codes]
        random = [RandomComponent(codes, np.ones(len(donor)))]
    return {
        "y": y_scale * y, "nu": y_scale**2 * nu, "X": H, "H": H, "donor": donor, "random": random,
    }  # fmt: skip


def fitted(structure="free", method="reml", names=NAMES, domain=NOISE, **changes):
    """A fit of `ctp` data with some arrays changed."""
    data = changes.pop("data", None) or ctp(**changes)
    resolved = resolve(structure, names)
    model = build_model(**data, basis=resolved.basis)
    means = np.eye(model.X.shape[1])[: model.H.shape[1]]
    return Fit(model, resolved, domain, estimate(model, method, domain), means)


def with_theta_cov(fit, cov):
    """Errors of a jackknife that found this covariance of the variance components."""
    N, p = fit.model.n_donors, fit.n_fixed
    K = len(cov)
    run = JackknifeRun(
        "donor", np.zeros((N, K)), np.zeros((N, p)), tuple(np.arange(N)[:, None]),
        np.pad(cov, (p, 0)), (), 0.0,
    )  # fmt: skip
    return lambda kind: fit.jackknife_errors(run)


def ask(fit, name, cov=None, **options):
    """The test of that name, by the fit's own jackknife or by its covariance of components."""
    errors = None if cov is None else with_theta_cov(fit, cov)
    return run_test(name, fit, errors=errors, **options)


def component(fit, k, name="wald", cov=None, **options):
    errors = None if cov is None else with_theta_cov(fit, cov)
    return run_test(name, fit, registry=COMPONENT_TESTS, component=k, errors=errors, **options)


def made_up(theta, information=None, *, boundary=False, method="reml", llf=-1.0, p=1):
    """An Estimate by hand."""
    theta = np.asarray(theta, dtype=float)
    info = np.eye(len(theta)) if information is None else np.asarray(information, dtype=float)
    return Estimate(
        method, theta, np.zeros(p), np.eye(p), "gls", info, info, llf,
        Convergence(True, boundary, 0.0, 1, 1, ""),
    )  # fmt: skip


# elementary tests


def test_wald_by_hand():
    """d'C^-1 d = 26/3, and the tail of F(2, m) is (1 + 2 F / m)^(-m/2)."""
    test = wald([3.0, 4.0], [[2.0, 1.0], [1.0, 2.0]], np.eye(2), 10)
    assert test.statistic == pytest.approx(13 / 3, rel=EXACT)
    assert test.df == (2.0, 10.0)
    assert test.pvalue == pytest.approx((1 + 26 / 30) ** -5, rel=EXACT)
    assert test.distribution == "F"
    assert test.note == ""
    shifted = wald([3.0, 4.0], np.eye(2), [[1.0, 1.0]], 10, rhs=5.0)
    assert shifted.statistic == pytest.approx((7 - 5) ** 2 / 2, rel=EXACT)


@pytest.mark.parametrize("p", [1e-5, 1e-30, 1e-200])
def test_wald_tail(p):
    m = 40
    F = m / 2 * (p ** (-2 / m) - 1)
    assert wald([math.sqrt(2 * F), 0.0], np.eye(2), np.eye(2), m).pvalue == pytest.approx(
        p, rel=TAIL
    )


def test_wald_does_not_depend_on_units_or_on_how_the_hypothesis_is_written():
    rng = np.random.default_rng(0)
    t, root, L = rng.normal(size=4), rng.normal(size=(4, 4)), rng.normal(size=(2, 4))
    cov = root @ root.T
    expected = wald(t, cov, L, 20)
    units = np.diag([1e9, 1e-9, 1.0, 1e4])
    again = wald(units @ t, units @ cov @ units, L @ np.linalg.inv(units), 20)
    assert again.pvalue == pytest.approx(expected.pvalue, rel=TAIL)
    mixed = wald(t, cov, np.array([[1.0, 2.0], [3.0, 4.0]]) @ L, 20)
    assert mixed.pvalue == pytest.approx(expected.pvalue, rel=TAIL)


def test_wald_ignores_what_is_not_tested():
    cov = np.array([[4.0, math.nan], [math.nan, math.nan]])
    assert wald([2.0, math.nan], cov, [[1.0, 0.0]], 10).statistic == 1.0


@pytest.mark.parametrize(
    ("cov", "L", "df", "reason"),
    [
        (np.full((2, 2), math.nan), np.eye(2), 10, "could not be computed"),
        (np.ones((2, 2)), np.eye(2), 10, "singular"),
        (1e-30 * np.ones((2, 2)), np.eye(2), 10, "singular"),
        (np.diag([1.0, 0.0]), np.eye(2), 10, "no variance"),
        ([[1.0, 2.0], [2.0, 1.0]], np.eye(2), 10, "singular"),
        (np.eye(2), np.ones((2, 2)), 10, "singular"),
        (np.eye(2), np.zeros((0, 2)), 10, "nothing to test"),
        (np.eye(2), np.eye(2), 0, "0 residual degrees of freedom"),
        (np.eye(2), np.eye(2), -5, "-5 residual degrees of freedom"),
    ],
)
def test_wald_that_cannot_be_had(cov, L, df, reason):
    test = wald([1.0, 2.0], cov, L, df, note="something else")
    assert math.isnan(test.pvalue)
    assert math.isnan(test.statistic)
    assert reason in test.note


def test_one_sided_t_by_hand():
    """t on 1 and 2 degrees of freedom have closed forms; on 2 the tail is 1 / (2 t^2)."""
    assert one_sided_t(3.0, 2.0, 1).pvalue == pytest.approx(
        0.5 - math.atan(1.5) / math.pi, rel=EXACT
    )
    assert one_sided_t(-3.0, 2.0, 2).pvalue == pytest.approx(
        0.5 * (1 + 1.5 / math.sqrt(2 + 2.25)), rel=EXACT
    )
    assert one_sided_t(1e15, 1.0, 2).pvalue == pytest.approx(0.5e-30, rel=TAIL)


@pytest.mark.parametrize(
    ("value", "se", "df", "reason"),
    [
        (1.0, 0.0, 5, "no variance"),
        (1.0, math.nan, 5, "could not be computed"),
        (math.nan, 1.0, 5, "could not be computed"),
        (1.0, 1.0, 0, "degrees of freedom"),
    ],
)
def test_t_that_cannot_be_had(value, se, df, reason):
    test = one_sided_t(value, se, df)
    assert math.isnan(test.pvalue)
    assert reason in test.note


def test_likelihood_ratio_by_hand():
    """The tail of chi2 on 2 degrees of freedom is exp(-x / 2)."""
    assert likelihood_ratio(-110.0, -100.0, 2).pvalue == pytest.approx(math.exp(-10), rel=EXACT)
    assert likelihood_ratio(-100.0, -100.0 - 1e-8, 2).pvalue == 1.0
    short = likelihood_ratio(-100.0, -100.01, 2)
    assert math.isnan(short.pvalue)
    assert "has not found its maximum" in short.note
    assert math.isnan(likelihood_ratio(math.nan, -100.0, 2).pvalue)
    assert math.isnan(likelihood_ratio(-100.0, -99.0, 0).pvalue)


def test_result_shows_itself():
    test = TestResult(
        "variance differentiation", "V = 0", "wald (jackknife)", 7.5, (4.0, 41.0), 1.351e-4, "F",
        "a <note>", {"celltype": {"T": 0.01, "B": 0.25}},
    )  # fmt: skip
    assert str(test).splitlines() == [
        "variance differentiation: wald (jackknife)",
        "  null hypothesis: V = 0",
        "  F(4, 41) = 7.5, p = 0.0001351",
        "  note: a <note>",
        "  celltype: T 0.01, B 0.25",
    ]
    page = test._repr_html_()
    assert "a &lt;note&gt;" in page
    assert "0.0001351" in page
    with pytest.raises(FrozenInstanceError):
        test.pvalue = 0.0
    assert json.loads(json.dumps(test.to_dict()))["df"] == [4.0, 41.0]
    assert TestResult.from_dict(json.loads(json.dumps(test.to_dict()))) == test


def test_result_without_numbers_survives_a_file():
    test = TestResult("a", "b", "c", math.nan, math.nan, math.nan, "bootstrap", "reason")
    text = json.dumps(test.to_dict()).replace("NaN", "null")
    again = TestResult.from_dict(json.loads(text))
    assert math.isnan(again.pvalue)
    assert math.isnan(again.df)
    assert again.note == "reason"
    assert "statistic = nan, p = nan" in str(again)
    numpy_inside = replace(test, extra={"a": np.float64(1.5), "b": {"c": np.arange(2)}})
    assert json.loads(json.dumps(numpy_inside.to_dict()["extra"])) == {"a": 1.5, "b": {"c": [0, 1]}}


# mean differentiation


def test_mean_differentiation_by_hand():
    """Independent means of variance v: between-group sum of squares over v (C - 1)."""
    means, v = np.array([1.0, 2.0, 6.0]), 0.5
    test = mean_differentiation(np.eye(3), means, v * np.eye(3), 20)
    assert test.statistic == pytest.approx(np.sum((means - 3.0) ** 2) / v / 2, rel=EXACT)
    assert test.df == (2.0, 20.0)


def test_mean_differentiation_does_not_depend_on_coding():
    """Treatment contrasts, another order, a covariate in other units and off its mean."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(4, 4))
    beta, cov = rng.normal(size=4), root @ root.T
    L = np.column_stack([np.eye(3), np.full(3, 40.0 / 3)])
    expected = mean_differentiation(L, beta, cov, 15).pvalue
    T = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0.3, 0, 0, 1e6]], dtype=float)
    back = np.linalg.inv(T)  # beta = T gamma
    recoded = mean_differentiation(L @ T, back @ beta, back @ cov @ back.T, 15)
    assert recoded.pvalue == pytest.approx(expected, rel=TAIL)
    reordered = mean_differentiation(L[[2, 0, 1]], beta, cov, 15)
    assert reordered.pvalue == pytest.approx(expected, rel=TAIL)


@pytest.mark.parametrize(
    "L", [np.ones((3, 1)), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.full((3, 2), 1e9 / 3)]
)
def test_equal_means_by_design(L):
    test = mean_differentiation(L, np.ones(L.shape[1]), np.eye(L.shape[1]), 15)
    assert math.isnan(test.pvalue)
    assert "own mean" in test.note


def test_a_single_cell_type_has_no_mean_differentiation():
    assert "nothing to test" in mean_differentiation([[1.0]], [1.0], [[1.0]], 15).note


# variance differentiation


def test_variance_wald_by_hand():
    """free with a random effect: F of V alone, with covariances of everything else present."""
    fit = fitted(batch=5)
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    cov = root @ root.T
    at = made_up([0.4, 0.5, 0.2, 0.1, 0.3], np.linalg.inv(cov), p=3)
    fit = replace(fit, estimate=at)
    V, C = at.theta[1:4], cov[1:4, 1:4]
    F = V @ np.linalg.solve(C, V) / 3
    expected = stats.f.sf(F, 3, 30 - 5 - 3)
    for test in (
        ask(fit, "jackknife", cov),
        ask(fit, "wald"),
    ):
        assert test.df == (3.0, 22.0)
        assert test.pvalue == pytest.approx(expected, rel=TAIL)
    t = component(fit, 4, label="batch")
    assert t.pvalue == pytest.approx(stats.t.sf(0.3 / math.sqrt(cov[4, 4]), 22), rel=TAIL)
    assert t.null == "batch = 0"


def test_variance_wald_where_the_shared_component_is_absorbed():
    """full: all entries of A are equal, whatever basis says so."""
    fit = fitted("full", n_donors=40)
    at, test = fit.estimate, ask(fit, "wald")
    equal = np.array([[-1, 1, 0, 0, 0, 0], [-1, 0, 1, 0, 0, 0], [-1, 0, 0, 1, 0, 0],
                      [-1, 0, 0, 0, 1, 0], [-1, 0, 0, 0, 0, 1]], dtype=float)  # fmt: skip
    by_hand = wald(at.theta, np.linalg.inv(at.information), equal, fit.df_resid)
    assert test.df == (5.0, 40.0 - 6 - 3)
    assert test.pvalue == pytest.approx(by_hand.pvalue, rel=TAIL)


def test_lrt_is_the_difference_of_dense_likelihoods():
    fit, null = fitted(nu_range=0.3), fitted("hom", nu_range=0.3)
    test = ask(fit, "lrt")
    llf = [dense.llf(one.model, one.estimate.theta, "reml") for one in (fit, null)]
    ratio = 2 * (llf[0] - llf[1])
    assert test.statistic == pytest.approx(ratio, abs=1e-6)
    assert test.df == 3.0
    assert test.pvalue == pytest.approx(stats.chi2.sf(ratio, 3), rel=OPTIMUM)
    assert test.note == ""


def test_lrt_says_when_chi2_is_approximate():
    domain = Domain("nonnegative", 0.1)
    fit = fitted(V=(0.5, 0.0, 0.0), nu_range=0.3, domain=domain, seed=3)
    assert fit.on_edge
    test = ask(fit, "lrt")
    assert test.pvalue < 1
    assert "the full fit on the edge of its domain" in test.note
    assert "edge" in ask(fit, "wald").note
    assert "edge" in component(fit, 1).note
    assert "edge" in ask(fit, "jackknife", np.eye(4)).note


@pytest.mark.parametrize("method", ["lrt", "bootstrap"])
def test_a_failed_fit_is_never_p_1(method):
    fit = fitted()
    low = replace(fit.estimate, llf=fit.estimate.llf - 1000)
    test = ask(replace(fit, estimate=low), method, n=3, rng=0)
    assert math.isnan(test.pvalue)
    assert "has not found its maximum" in test.note


def test_moments_have_a_jackknife_only():
    fit = fitted(method="he")
    for method, reason in (("wald", "information"), ("lrt", "likelihood"),
                           ("bootstrap", "likelihood")):  # fmt: skip
        test = ask(fit, method)
        assert math.isnan(test.pvalue)
        assert reason in test.note
    assert "information" in component(fit, 0).note
    test = ask(fit, "jackknife")
    V, C = fit.estimate.theta[1:], fit.jackknife().cov[4:, 4:]
    F = V @ np.linalg.solve(C, V) / 3
    assert test.pvalue == pytest.approx(stats.f.sf(F, 3, 30 - 7), rel=TAIL)


@pytest.mark.parametrize("method", ["jackknife", "wald", "lrt", "bootstrap"])
def test_hom_has_no_V(method):
    test = ask(fitted("hom"), method, np.eye(1))
    assert math.isnan(test.pvalue)
    assert test.note == "structure hom has no V to test"


def test_score_test_works_from_any_fit():
    for structure in ("hom", "free"):
        fit = fitted(structure)
        test, expected = ask(fit, "score"), score_test(fit.model)
        assert test.pvalue == expected.pvalue_sum
        assert test.extra["celltype"] == dict(
            zip(NAMES, expected.pvalue_celltype.tolist(), strict=True)
        )
        assert test.extra["cauchy"] == expected.pvalue_cauchy
        assert test.note == "no numbers of cells: weighted by mean noise"
        assert test.to_dict() == json.loads(json.dumps(test.to_dict())) | {"df": test.df}


def test_lrt_of_a_structure_without_hom():
    test = ask(fitted([np.eye(3)]), "lrt")
    assert math.isnan(test.pvalue)
    assert "not nested" in test.note


def test_too_few_donors():
    fit = fitted(n_donors=7)
    assert fit.df_resid == 0
    test = ask(fit, "wald")
    assert "0 residual degrees of freedom" in test.note


def test_singular_information():
    fit = replace(fitted(), estimate=made_up(np.ones(4), np.ones((4, 4)), p=3))
    assert "singular" in ask(fit, "wald").note
    assert "singular" in component(fit, 0).note


def test_failed_jackknife():
    fit, cov = fitted(), np.full((4, 4), math.nan)
    for test in (ask(fit, "jackknife", cov), component(fit, 0, "jackknife", cov)):
        assert math.isnan(test.pvalue)
        assert "refit without some donors failed" in test.note


def test_misuse_is_an_error():
    fit = fitted()
    with pytest.raises(CTMMError, match="score, jackknife, wald, lrt, bootstrap, mean"):
        ask(fit, "fisher")
    with pytest.raises(CTMMError, match="no variance component 9"):
        component(fit, 9)
    with pytest.raises(CTMMError, match="wald, jackknife, exact"):
        component(fit, 0, "score")


def test_few_groups_leave_few_degrees_of_freedom():
    cov = np.eye(3)
    test = wald([1.0, 2.0, 3.0], cov, np.eye(3), 60, groups=5)
    assert test.df == (3.0, 2.0)
    assert test.pvalue == pytest.approx(stats.f.sf(14 / 3, 3, 2), rel=TAIL)
    assert "3 groups" in wald([1.0, 2.0, 3.0], cov, np.eye(3), 60, groups=3).note
    assert one_sided_t(2.0, 1.0, 60, groups=5).df == 4.0
    assert one_sided_t(2.0, 1.0, 3, groups=5).df == 3.0


@pytest.mark.parametrize(
    ("small", "large", "bounds", "edge"),
    [
        ("hom", "free", "noise", False),
        ("hom", "free", "nonnegative", True),
        ("hom", "free", "psd", True),
        ("hom", "full", "psd", True),
        ("iid", "free", "nonnegative", False),
        ("free", "full", "psd", False),
    ],
)
def test_nulls_on_a_bound(small, large, bounds, edge):
    structures = [resolve(name, NAMES) for name in (small, large)]
    assert null_on_bound(*structures, bounds) is edge


# bootstrap


def test_bootstrap_counts_refits_of_draws_from_the_null():
    fit = fitted("iid", names=NAMES[:2], V=(0.02, 0.02), n_donors=15)
    model, null_model = fit.model, fit.model.with_basis(np.ones((1, 2, 2)))
    null = estimate(null_model, "reml", NOISE)
    ratios = []
    for stream in np.random.default_rng(7).spawn(19):
        y = draw(null_model, null.theta, null.beta, stream)
        fits = [estimate(m.with_response(y, m.nu), "reml", NOISE) for m in (null_model, model)]
        ratios.append(2 * (fits[1].llf - fits[0].llf))
    T = 2 * (fit.estimate.llf - null.llf)
    test = ask(fit, "bootstrap", rng=7, n=19)
    assert test.statistic == pytest.approx(T, rel=EXACT)
    assert test.pvalue == (1 + sum(r >= T for r in ratios)) / 20
    assert 1 / 20 < test.pvalue < 1  # both outcomes occur
    assert ask(fit, "bootstrap", rng=7, n=19, n_jobs=2) == test


@pytest.mark.slow
def test_bootstrap_is_uniform_under_the_null():
    """Skewed noise, few donors: 80 null data sets, KS test at 1 %."""
    data = ctp(n_donors=12, V=(0.0, 0.0))
    iid = resolve("iid", NAMES[:2])
    model = build_model(**data, basis=iid.basis)
    null_model = model.with_basis(np.ones((1, 2, 2)))
    pvalues = []
    for stream in np.random.default_rng(5).spawn(80):
        y = draw(null_model, [0.4], [0.0, 1.0], stream)
        one = model.with_response(y, model.nu)
        fit = Fit(one, iid, NOISE, estimate(one, "reml", NOISE), np.eye(2))
        test = ask(fit, "bootstrap", rng=stream, n=39)
        pvalues.append(test.pvalue - 0.5 / 40)  # middle of its step
    assert stats.kstest(pvalues, "uniform").pvalue > 0.01


def test_bootstrap_counts_its_failures(monkeypatch):
    fit = fitted(n_donors=15)
    calls = iter(range(1000))

    def sometimes(*args):
        if next(calls) % 5 == 1:  # the first is the fit of the null model to the data
            raise ConvergenceError("no fit")
        return estimate(*args)

    monkeypatch.setattr(fit_module, "estimate", sometimes)
    test = ask(fit, "bootstrap", rng=1, n=20)
    assert test.extra["draws"] < 20
    assert test.note.startswith(f"{20 - test.extra['draws']} of 20 draws could not be fitted")

    calls = iter(range(1000))

    def only_the_null(*args):
        if next(calls):
            raise ConvergenceError("no fit")
        return estimate(*args)

    monkeypatch.setattr(fit_module, "estimate", only_the_null)
    test = ask(fit, "bootstrap", rng=1, n=5)
    assert math.isnan(test.pvalue)
    assert test.note == "no draw could be fitted"


def test_bootstrap_draws_no_negative_random_effect():
    """Batches of opposite donors: their variance is estimated below zero."""
    data = ctp(n_donors=16, V=(0.05, 0.05), sigma2=1.0)
    sign = np.where(data["donor"] % 2, 1.0, -1.0)
    data["y"] = data["y"] + sign
    data["random"] = [RandomComponent(data["donor"] // 2, np.ones(32))]
    fit = fitted(names=NAMES[:2], data=data)
    assert fit.null().estimate.theta[-1] < 0
    test = ask(fit, "bootstrap", rng=1, n=5)
    assert "negative variance of a random effect was set to 0" in test.note
    assert 0 < test.pvalue <= 1


def test_bootstrap_needs_a_likelihood_and_draws():
    fit, he = fitted(), fitted(method="he")
    with pytest.raises(CTMMError, match="same likelihood"):
        bootstrap_ratio(he, he)
    with pytest.raises(CTMMError, match="n= must be a whole number of at least 1"):
        bootstrap_ratio(fit, fit, n=0)


# invariance


def all_tests(fit):
    """p values of every test of one fit."""
    errors = fit.jackknife_errors(fit.jackknife())
    out = [ask(fit, name, rng=3, n=19).pvalue for name in TESTS]
    out += [component(fit, 0, name).pvalue for name in ("wald", "jackknife")]
    p = fit.n_fixed
    for cov in (fit.estimate.cov_beta, errors.cov[:p, :p]):
        test = mean_differentiation(fit.mean_rows, fit.estimate.beta, cov, fit.df_resid)
        out.append(test.pvalue)
    return np.array(out)


def test_units_of_expression_do_not_matter():
    expected = all_tests(fitted(batch=6))
    again = all_tests(fitted(batch=6, y_scale=1000.0))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(again, expected, rtol=OPTIMUM)


def test_order_of_cell_types_does_not_matter():
    data = ctp()
    expected = all_tests(fitted(data=data))
    order = [2, 0, 1]
    data["H"] = data["X"] = data["H"][:, order]
    again = all_tests(fitted(data=data, names=[NAMES[c] for c in order]))
    np.testing.assert_allclose(again, expected, rtol=OPTIMUM)


# nested fits


def light(label, structure, method="reml", names=NAMES, random_names=(), **changes):
    return Labelled(label, fitted(structure, method, names, **changes), random_names)


def test_table_of_nested_fits():
    fits = [light(name, name) for name in ("full", "hom", "free", "iid")]
    rows = compare(fits)
    pd.testing.assert_frame_equal(
        pd.DataFrame(rows), pd.DataFrame(compare(fits[::-1])), check_exact=True
    )
    assert [row["label"] for row in rows] == ["hom", "iid", "free", "full"]
    assert [row["n_params"] for row in rows] == [4, 5, 7, 9]
    assert [row["df"] for row in rows[1:]] == [1, 2, 2]
    llf = {one.label: one.fit.estimate.llf for one in fits}
    for before, row in pairwise(rows):
        ratio = 2 * (llf[row["label"]] - llf[before["label"]])
        assert row["statistic"] == pytest.approx(ratio, rel=EXACT)
        assert row["pvalue"] == pytest.approx(stats.chi2.sf(ratio, row["df"]), rel=EXACT)
    assert math.isnan(rows[0]["pvalue"])
    # 90 rows, 3 fixed effects
    assert rows[0]["aic"] == pytest.approx(-2 * llf["hom"] + 8, rel=EXACT)
    assert rows[0]["bic"] == pytest.approx(-2 * llf["hom"] + 4 * math.log(87), rel=EXACT)
    ml = compare([light("a", "hom", "ml"), light("b", "iid", "ml")])
    assert ml[0]["bic"] - ml[0]["aic"] == pytest.approx(4 * math.log(90) - 8, rel=TAIL)


def test_criteria_by_hand():
    fit = fitted("hom", "ml")  # 90 rows, 3 fixed effects, 1 variance
    ml = replace(fit, estimate=made_up([0.4], method="ml", llf=-10.0, p=3))
    assert ml.aic == 28.0
    assert ml.bic == pytest.approx(20 + 4 * math.log(90), rel=EXACT)
    reml = replace(fit, estimate=made_up([0.4], llf=-10.0, p=3))
    assert reml.bic == pytest.approx(20 + 4 * math.log(87), rel=EXACT)


def test_same_fixed_part_in_another_coding():
    data = ctp()
    treatment = data | {"X": data["X"] @ np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1.0]])}
    rows = compare([light("a", "hom", data=data), light("b", "free", data=treatment)])
    same = compare([light("a", "hom", data=data), light("b", "free", data=data)])
    assert rows[1]["statistic"] == pytest.approx(same[1]["statistic"], rel=OPTIMUM)


def test_fixed_parts_by_ml():
    data = ctp()
    sex = (data["donor"] % 2).astype(float)
    more = data | {"X": np.column_stack([5 - 3 * sex, data["X"]])}
    small, large = light("a", "free", "ml", data=data), light("b", "free", "ml", data=more)
    rows = compare([large, small])
    assert rows[1]["df"] == 1
    assert rows[1]["pvalue"] == pytest.approx(
        stats.chi2.sf(2 * (large.fit.estimate.llf - small.fit.estimate.llf), 1), rel=EXACT
    )
    with pytest.raises(CTMMError, match=r"different fixed parts.*method='ml'"):
        compare([light("a", "free", data=data), light("b", "hom", data=more)])
    # without one cell type, with a slope that varies within donors
    other = data | {"X": np.column_stack([data["X"][:, 1:], sex, np.arange(90.0)])}
    with pytest.raises(CTMMError, match="fixed part of 'b' is no special case of that of 'c'"):
        compare([light("b", "hom", "ml", data=more), light("c", "iid", "ml", data=other)])


def test_random_effects_are_told_by_what_they_are():
    data = ctp(n_donors=36)
    ones = np.ones(len(data["donor"]))
    site = RandomComponent(data["donor"] % 4, ones)
    renamed = RandomComponent(7 - (data["donor"] % 4), ones)
    batch = RandomComponent(data["donor"] % 9, ones)

    def fit(label, structure, components, names):
        return light(label, structure, data=data | {"random": components}, random_names=names)

    rows = compare([
        fit("both", "hom", [batch, renamed], ("batch", "place")),
        fit("site", "hom", [site], ("site",)),
        fit("none", "hom", [], ()),
    ])  # fmt: skip
    assert [row["label"] for row in rows] == ["none", "site", "both"]
    assert [row["df"] for row in rows[1:]] == [1, 1]
    with pytest.raises(CTMMError, match="'batch' lacks the random effect site of 'site'"):
        compare([fit("site", "hom", [site], ("site",)), fit("batch", "iid", [batch], ("batch",))])


@pytest.mark.parametrize(
    ("fits", "message"),
    [
        (lambda: [light("a", "hom")], "at least two"),
        (lambda: [light("a", "hom"), light("b", "free", "ml")], "by ml and 'a' by reml"),
        (lambda: [light("a", "hom"), light("b", "free", "he")], "'b' was fitted by he"),
        (lambda: [light("a", "hom"), light("b", "free", seed=2)], "different data"),
        (lambda: [light("a", "hom"), light("b", "free", n_donors=29)], "90 rows|87 rows"),
        (lambda: [light("a", "hom"), light("b", "hom")], "same number of parameters"),
        (lambda: [light("a", "free"), light("b", "full"), light("c", "banded(1)")], "same number"),
        (
            lambda: [light("a", [np.ones((3, 3)), np.diag([1.0, 2, 3])]), light("b", "free")],
            None,
        ),
        (
            lambda: [
                light("a", [np.ones((3, 3)), np.eye(3) + np.eye(3)[::-1]]),
                light("b", "free"),
            ],
            "structure user of 'a' is no special case of free",
        ),
    ],
)
def test_what_cannot_be_compared(fits, message):
    if message is None:
        assert compare(fits())[1]["df"] == 2
        return
    with pytest.raises(CTMMError, match=message):
        compare(fits())


def test_donors_left_out_are_other_data():
    fit, hom = fitted(), fitted("hom")
    less = replace(hom, model=hom.model.without(3))
    with pytest.raises(CTMMError, match="different data"):
        compare([Labelled("free", fit), Labelled("hom", less)])


def test_table_says_when_a_fit_is_on_the_edge():
    a, b = light("a", "hom"), light("b", "free")
    at = b.fit.estimate
    edge = made_up(at.theta, boundary=True, llf=at.llf, p=3)
    pair = [a, Labelled("b", replace(b.fit, estimate=edge))]
    assert "b on the edge" in compare(pair)[1]["note"]
    low = replace(at, llf=a.fit.estimate.llf - 1)
    row = compare([a, Labelled("b", replace(b.fit, estimate=low))])[1]
    assert math.isnan(row["pvalue"])
    assert "has not found its maximum" in row["note"]


# linear hypotheses


PARAMETERS = ["C(ct)[T.B]", "sex[T.M]", "C(ct)[T.B]:sex[T.M]", "PC1", "PC10"]


@pytest.mark.parametrize(
    ("hypotheses", "L", "q"),
    [
        ("sex[T.M] = 0, PC1 = 0", [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]], [0, 0]),
        ("PC10 = 2 * PC1 + 1", [[0, 0, 0, -2, 1]], [1]),
        ("C(ct)[T.B]:sex[T.M]", [[0, 0, 1, 0, 0]], [0]),
        (["PC1 = 3", "C(ct)[T.B] = sex[T.M]"], [[0, 0, 0, 1, 0], [1, -1, 0, 0, 0]], [3, 0]),
        ({"PC10": 1.0}, [[0, 0, 0, 0, 1]], [1]),
        (np.array([0, 0, 0, 1.0, -1.0]), [[0, 0, 0, 1, -1]], [0]),
        (np.eye(5)[:2], np.eye(5)[:2].tolist(), [0, 0]),
    ],
)
def test_constraints(hypotheses, L, q):
    got = constraints(PARAMETERS, hypotheses)
    assert got[0].tolist() == L
    assert got[1].tolist() == q


@pytest.mark.parametrize(
    ("hypotheses", "message"),
    [
        ("PC1 + PC2 = 0", "'PC2 = 0'.*parameters are C"),
        ({"PC2": 0.0}, "PC2"),
        ("", "no hypothesis"),
        (
            np.full((1, len(PARAMETERS)), 1e200),
            "hypothesis 1 has weights or values of 1e.200.*rescale it",
        ),
        (f"{PARAMETERS[0]} = 1e99", "of 1e.99"),
        (
            f"{PARAMETERS[0]}, 1e-90 * {PARAMETERS[1]}",
            "hypothesis 2 has weights or values of 1e-90",
        ),
        ({PARAMETERS[0]: 10**400}, "values of a hypothesis must be finite"),
        ([], "no hypothesis"),
        ({}, "none given"),
        (np.eye(4), "one finite column per parameter, 5"),
        ("1 = 1", "cannot read"),
        ("PC1 * PC10 = 0", "cannot read"),
        ([object()], "text or an array"),
    ],
)
def test_constraints_that_cannot_be_read(hypotheses, message):
    with pytest.raises(CTMMError, match=message):
        constraints(PARAMETERS, hypotheses)


# the published analysis


REFERENCE, GENE = "golden/ipsc_gene_reference.json", "data/ipsc_gene_ctp.csv"
MISSING = not_here(REFERENCE, GENE)
needs_published = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture(scope="module")
def published():
    fits = json.loads((SHARED / REFERENCE).read_text())["fits"]
    return {
        (f["structure"], f["method"].lower(), f["jackknife"]): f["p"]
        for f in fits
        if f["level"] == "ctp" and f["covariates"] == "none"
    }


@pytest.fixture(scope="module")
def gene():
    return pd.read_csv(SHARED / GENE)


def published_fit(frame, make_model, structure, method):
    model = make_model(frame, structure)
    resolved = resolve(structure, sorted(frame["celltype"].unique()))
    return Fit(model, resolved, NOISE, estimate(model, method, NOISE), np.eye(4))


@needs_published
@pytest.mark.parametrize("structure", ["hom", "iid", "free"])
@pytest.mark.parametrize("method", ["ml", "reml"])
def test_published_fisher_tests(structure, method, published, gene, make_model):
    fit = published_fit(gene, make_model, structure, method)
    p = published[structure, method, False]
    got = {
        "hom2": component(fit, 0).pvalue,
        "ct_beta": run_test("mean", fit, errors=lambda kind: fit.model_errors).pvalue,
    }
    if structure == "iid":  # published one-sided
        got["V"] = component(fit, 1).pvalue
    if structure == "free":
        got["V"] = ask(fit, "wald").pvalue
    early = {("free", "reml"): 2 * PUBLISHED}  # 2.8e-7 short: p of the means moves by 1.2e-3
    assert got == pytest.approx(p, rel=early.get((structure, method), PUBLISHED))


@needs_published
@pytest.mark.parametrize(
    ("method", "tolerance"), [("reml", PUBLISHED_JACKKNIFE), ("he", PUBLISHED)]
)
def test_published_jackknife_tests(method, tolerance, published, gene, make_model):
    fit = published_fit(gene, make_model, "free", method)
    p = published["free", method, True]
    got = {
        "hom2": component(fit, 0, "jackknife").pvalue,
        "V": ask(fit, "jackknife").pvalue,
    }
    assert got == pytest.approx({key: p[key] for key in got}, rel=tolerance)


def silent_table(silent):
    """Counts of four types, of which some have none."""
    rng, rows = np.random.default_rng(0), []
    for i in range(40):
        a = 0.3 * rng.normal()
        for c in range(4):
            n = int(rng.integers(20, 100))
            rate = 0.0 if c in silent else np.exp(a + 0.4 * rng.normal())
            x = np.log1p(2 * rng.poisson(rate, n))
            rows.append((f"d{i}", f"t{c}", x.mean(), x.var(ddof=1) / n, n, f"b{i % 5}"))
    return pd.DataFrame(rows, columns=["donor", "celltype", "expr", "nu", "n_cells", "batch"])


@pytest.mark.parametrize("silent", [(3,), (0, 2)])
@pytest.mark.parametrize("random", [None, "batch", "(celltype|batch)"])
def test_types_without_counts_are_left_out_of_the_score_test(silent, random):
    """They say that nothing varies, to any precision, which the shared variance would obey."""
    table = silent_table(silent)
    test = ctmm.fit("expr ~ C(celltype)", random=random, data=table).test_variance()
    names = [f"t{c}" for c in silent]
    seen = table[~table["celltype"].isin(names)]
    alone = ctmm.fit("expr ~ C(celltype)", random=random, data=seen).test_variance()
    assert test.log_pvalue == pytest.approx(alone.log_pvalue, rel=1e-6)
    for name, p in test.extra["celltype"].items():
        if name in names:
            assert np.isnan(p) and f"{name!r}" in test.note
        else:
            assert p == pytest.approx(alone.extra["celltype"][name], rel=1e-5)
    assert "no unbiased squares" not in test.note


def explained_table(genes):
    """Cell type D in one man and one woman: sex in every type leaves nothing of it."""
    rng = np.random.default_rng(0)
    rows = [
        (f"d{i:02d}", kind, "MF"[i % 2], int(rng.integers(10, 60)))
        for i in range(28) for kind in ("ABCD" if i < 2 else "ABC")
    ]  # fmt: skip
    obs = pd.DataFrame(rows, columns=["donor", "celltype", "sex", "n_cells"])
    cells, donor = obs["n_cells"].to_numpy(), obs["donor"].str[1:].astype(int).to_numpy()
    shared, noise = rng.normal(size=(genes, 28)), rng.normal(size=(genes, len(obs)))
    y = 10.0 + 0.3 * shared[:, donor] + noise * np.sqrt(4 / cells)
    nu = 4 / cells * rng.chisquare(cells - 1, (genes, len(obs))) / (cells - 1)
    names = [f"g{k}" for k in range(genes)]
    return obs, pd.DataFrame(y.T, columns=names), pd.DataFrame(nu.T, columns=names)


@pytest.mark.parametrize("structure", ["hom", "iid"])
def test_a_type_that_fixed_effects_explain_has_no_score(structure):
    """What is left of it is rounding, which no share of itself tells: no p value, 0 or other."""
    obs, expr, nu = explained_table(60)
    how = {"structure": structure, "method": "robust"}
    scan = ctmm.fit_genes(
        "~ C(celltype)*sex", data=obs, expr=expr, nu=nu, tests=["score"], **how
    ).table
    assert scan["p_score[D]"].isna().all() and scan["p_score[C]"].notna().all()
    assert scan["reason"].str.contains("without 'D', which the fixed effects explain").all()
    assert (scan["p_score_cauchy"] > 1e-6).all()
    for k in range(3):
        table = obs.assign(y=expr[f"g{k}"], nu=nu[f"g{k}"])
        test = ctmm.fit("y ~ C(celltype)*sex", data=table, **how).test_variance("score")
        assert np.isnan(test.extra["celltype"]["D"])
        assert "without 'D', which the fixed effects explain wholly" in test.note
        # the rows that are explained say nothing
        seen = table[table["celltype"] != "D"]
        alone = ctmm.fit("y ~ C(celltype)*sex", data=seen, **how).test_variance("score")
        assert test.log_pvalue == pytest.approx(alone.log_pvalue, rel=1e-6)
        assert test.extra["cauchy"] == pytest.approx(alone.extra["cauchy"], rel=1e-6)


def test_what_fixed_effects_nearly_explain_keeps_its_score():
    """Two donors of a type with one mean between them, as different as may be in cells."""
    obs, expr, nu = explained_table(1)
    table = obs.assign(y=expr["g0"], nu=nu["g0"])
    at = table.index[table["celltype"] == "D"]
    table.loc[at, "n_cells"] = [10, 100_000]
    table.loc[at, "nu"] = 4 / table.loc[at, "n_cells"]
    test = ctmm.fit("y ~ C(celltype) + sex", structure="hom", data=table).test_variance("score")
    assert 0.0 < test.extra["celltype"]["D"] < 1.0 and not test.note


def test_a_type_in_which_a_gene_is_low_is_named_where_it_takes_the_sum():
    table = silent_table(())
    low = table["celltype"] == "t2"
    table.loc[low, "expr"] *= 0.1
    table.loc[low, "nu"] *= 0.01
    fits = (
        ctmm.fit("expr ~ C(celltype)", data=table),
        ctmm.fit("expr ~ C(celltype)", data=table.assign(nu2=0.9 * table["nu"] ** 2), nu2="nu2"),
    )
    notes = [fit.test_variance().note for fit in fits]
    assert "cells hardly vary in 't2', which takes the sum" in notes[0]
    assert "hardly vary" not in notes[1]
    alike = ctmm.fit("expr ~ C(celltype)", data=silent_table(()))
    assert "hardly vary" not in alike.test_variance().note


def test_counts_in_one_type_only_have_no_score_test():
    test = ctmm.fit("expr ~ C(celltype)", data=silent_table((0, 1, 2))).test_variance()
    assert np.isnan(test.pvalue) and "in all cell types but 1: too few counts" in test.note


def test_score_tests_of_one_thread_do_not_share_what_does_not_fit():
    """Designs of as many types and fixed effects together, but not of each, one after the other."""
    models = {}
    for C, formula in ((3, "expr ~ C(celltype) + x"), (4, "expr ~ x + z")):  # three rows a donor
        rng = np.random.default_rng(C)
        donor = np.repeat(np.arange(30), 3)
        kind = np.array([rng.permutation(C)[:3] for _ in range(30)]).ravel()
        effect, x, z = rng.normal(size=(3, 30))
        df = pd.DataFrame(
            {
                "donor": [f"d{i:02d}" for i in donor], "celltype": np.array(list("ABCD"))[kind],
                "expr": effect[donor] + 0.6 * rng.normal(size=90), "x": x[donor], "z": z[donor],
                "nu": 0.05 * rng.chisquare(10, 90) / 10, "n_cells": 20,
            }
        )  # fmt: skip
        models[C] = ctmm.fit(formula, structure="hom", method="reml", data=df).arrays

    def pvalues(C: int) -> list[float]:
        found = score_test(models[C])
        return [found.log_pvalue_sum, *found.log_pvalue_celltype]

    alone = {C: ThreadPoolExecutor(1).submit(pvalues, C).result() for C in models}
    assert np.isfinite([*alone[3], *alone[4]]).all()
    for C in (3, 4, 3, 4):
        assert pvalues(C) == alone[C]
