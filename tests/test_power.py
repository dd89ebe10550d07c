"""Power by simulation: rates are those of the tests, whatever the workers, and errors are clear."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMError, CTMMWarning
from ctmm_formula.planning import (
    CASES,
    PER_STUDY,
    SETTINGS,
    condition_of,
    positive_rate,
    pvalues_of,
    simulate_setting,
)
from ctmm_formula.simulate import Condition, CountCells, simulate_genes

# with a fixed seed a test passes or fails for ever; 4.5 leaves 1 in 150,000 to bad luck
Z_MAX = 4.5
EFFECT = (0.3, 0.1, 0.1, 0.1)


@pytest.fixture(scope="module")
def table():
    return ctmm.power(
        [20, 60], V=[0, EFFECT], noise_cv=[0.0, 0.45], tests=["score", "score_celltype", "lrt"],
        n_sim=40, counts=None, kurtosis=None, rng=1,
    )  # fmt: skip


def rate(table, **where):
    keep = np.logical_and.reduce([table[name] == value for name, value in where.items()])
    assert keep.sum() == 1
    return table.loc[keep, "rate"].item()


@pytest.mark.slow
def test_a_row_for_each_combination_and_test(table):
    assert list(table) == [*SETTINGS, "test", "alpha", "rate", "se", "n", "n_failed"]
    assert len(table) == 2 * 2 * 2 * 6
    tests = ["score", *(f"score[T{c}]" for c in range(1, 5)), "lrt"]
    assert table["test"].unique().tolist() == tests
    assert table["V"].unique().tolist() == ["0", "0.3, 0.1, 0.1, 0.1"]
    assert (table["n"] + table["n_failed"] == 40).all()
    assert table["rate"].between(0, 1).all() and (table["se"] > 0).all()


@pytest.mark.slow
def test_power_grows_with_donors_and_effect_and_errors_of_noise_fool_the_lrt(table):
    label = "0.3, 0.1, 0.1, 0.1"
    for test in ("score", "score[T1]"):
        where = {"n_donors": 60, "noise_cv": 0.0, "test": test}
        null, effect = (rate(table, V=V, **where) for V in ("0", label))
        assert effect > null + 0.5
    # T1 has three times the variance of T2
    first, second = (rate(table, n_donors=20, V=label, noise_cv=0.0, test=f"score[T{c}]")
                     for c in (1, 2))  # fmt: skip
    assert first >= second
    assert rate(table, n_donors=60, V="0", noise_cv=0.45, test="lrt") > 0.3
    assert rate(table, n_donors=60, V="0", noise_cv=0.45, test="score") < 0.25


@pytest.mark.slow
def test_same_numbers_for_any_workers_and_a_new_setting_changes_no_other():
    options = {"tests": ["score", "he:jackknife"], "n_sim": PER_STUDY + 3, "rng": 5}
    alone = ctmm.power([15, 25], 2, **options)
    pd.testing.assert_frame_equal(alone, ctmm.power([15, 25], 2, n_jobs=2, **options))
    first = alone[alone["n_donors"] == 15]
    pd.testing.assert_frame_equal(first, ctmm.power(15, 2, **options))
    rng = np.random.default_rng(5)
    moved = [ctmm.power(15, 2, **{**options, "rng": rng})["rate"].tolist() for _ in range(2)]
    assert moved[0] == first["rate"].tolist() and moved[0] != moved[1]


def test_every_test_is_the_one_a_scan_makes():
    genes = simulate_genes(4, 25, 3, V=0.2, n_batches=5, rng=2)
    tests = ["score", "score_cauchy", "score_celltype", "lrt", "wald", "jackknife", "mean"]
    tests += ["mean_jackknife", "ml:lrt", "ml:wald", "he:jackknife", "he:mean_jackknife"]
    found = pvalues_of(genes, tests, random="batch")
    columns = {"score_cauchy": "p_score_cauchy"}
    for method in ("reml", "ml", "he"):
        mine = [name for name in found if name.partition(":")[0] == method]
        mine += [name for name in found if ":" not in name] if method == "reml" else []
        asked = {name.rpartition(":")[2].split("[")[0].removesuffix("_cauchy") for name in mine}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ctmm.CTMMWarning)
            scan = ctmm.fit_genes("~ C(celltype)", "batch", data=genes, method=method,
                                  tests=sorted(asked))  # fmt: skip
        for name in mine:
            column = columns.get(name, f"p_{name.rpartition(':')[2]}")
            np.testing.assert_array_equal(found[name], scan.table[column].to_numpy())
    assert "score[T3]" in found


def setting(**changes):
    values = {"n_donors": 400, "celltypes": 2, "V": (0.6, 0.1), "sigma2": 0.4, "beta": (1.0, -1.0),
              "cells": 40.0, "fold": 1.0, "counts": None, "dispersion": 0.5, "cell_variance": 4.0,
              "cell_cv": 0.0, "noise_cv": 0.0, "kurtosis": None,
              "missing": 0.0, "n_batches": 0, "batch_variance": 0.5,
              "kind": "ctp", "structure": "free", **CASES}  # fmt: skip
    assert set(values) == set(SETTINGS)
    return values | changes


def simulated(**changes):
    return simulate_setting(setting(**changes), 20, np.random.default_rng(3))


def test_a_setting_simulates_what_it_says():
    genes = simulated()
    y = genes.expr.to_numpy().reshape(400, 2, 20).transpose(2, 0, 1).reshape(-1, 2)
    assert (genes.obs["n_cells"] == 40).all() and np.allclose(genes.nu, 0.1)
    expected = 0.4 + np.diag([0.7, 0.2])  # no batches: their variance does not count
    S = np.cov(y.T)
    d = np.diag(expected)
    assert (np.abs(S - expected) / np.sqrt((np.outer(d, d) + expected**2) / 8000) < Z_MAX).all()
    assert (np.abs(y.mean(axis=0) - [1, -1]) / np.sqrt(d / 8000) < Z_MAX).all()


@pytest.mark.parametrize(
    ("changes", "cv"),
    [
        ({}, 0.0),
        ({"noise_cv": 0.3}, 0.3),
        ({"kurtosis": 0.0}, np.sqrt(2 / 39)),
        # (1 + a)(1 + b) - 1 for the two errors
        ({"kurtosis": 6.0, "noise_cv": 0.3}, np.sqrt((1 + 2 / 39 + 6 / 40) * 1.09 - 1)),
        ({"cell_cv": 0.4}, 0.4),
    ],
)
def test_noise_is_off_by_as_much_as_asked(changes, cv):
    ratio = simulated(**changes).nu.to_numpy() / 0.1
    assert abs(ratio.mean() - 1) < max(Z_MAX * cv / np.sqrt(ratio.size), 1e-12)
    squares = (ratio - 1) ** 2
    assert abs(squares.mean() - cv**2) <= Z_MAX * squares.std() / np.sqrt(ratio.size) + 1e-12


def test_missing_uneven_batches_and_overall():
    genes = simulated(missing=0.2, fold=10.0, n_batches=20)
    n_cells = genes.obs["n_cells"]
    assert abs(len(genes.obs) / 800 - 0.8) < Z_MAX * np.sqrt(0.8 * 0.2 / 800)
    assert n_cells.max() / n_cells.min() > 9 and genes.obs["batch"].nunique() == 20
    between = genes.expr.groupby(genes.obs["batch"]).mean().var().mean()
    assert between > 0.3  # 0.5 and what donors leave
    overall = simulated(kind="op", fold=10.0)
    assert overall.proportions == ["prop_T1", "prop_T2"] and len(overall.obs) == 400
    rates = ctmm.power(30, 2, V=[0.0], kind="op", fold=5.0, tests=["score", "lrt"], n_sim=2, rng=1)
    assert rates["n"].tolist() == [2, 2]


def test_rates_and_their_standard_errors():
    p = np.array([0.001, 0.04, 0.3, 0.9, np.nan])
    found = positive_rate(p, 0.05)
    assert found["rate"] == 0.5 and found["n"] == 4 and found["n_failed"] == 1
    assert found["se"] == pytest.approx(np.sqrt(0.25 / 8))
    assert positive_rate(p, 0.01)["rate"] == 0.25
    assert positive_rate(np.zeros(0))["n"] == 0 and np.isnan(positive_rate(np.zeros(0))["rate"])
    many = positive_rate(np.linspace(0, 1, 10_000))
    assert many["se"] == pytest.approx(np.sqrt(0.05 * 0.95 / 10_000), rel=0.01)


@pytest.mark.slow
def test_null_rates_of_the_score_test_are_the_level():
    found = ctmm.power(
        40, 3, tests="score", n_sim=400, counts=None, cell_cv=0.4, fold=5.0, n_jobs=2, rng=4
    )
    positives = round(found["rate"].item() * 400)
    assert stats.binomtest(positives, 400, 0.05).pvalue > 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tests": "t-test"}, "unknown test 't-test': choose from score, "),
        ({"tests": []}, "tests= is empty: choose from score"),
        ({"alpha": 5}, "alpha= must be a level above 0 and below 1, got 5"),
        ({"n_sim": 0}, "n_sim"),
        ({"n_donors": 2}, "n_donors"),
        ({"n_donors": []}, "n_donors= is an empty list"),
        ({"V": (0.1, 0.2)}, r"V= has shape \(2,\) for 4 cell types"),
        ({"V": -0.1}, "V= must not be negative"),
        ({"beta": [(0.1, 0.2)]}, r"beta= has shape \(2,\)"),
        ({"noise_cv": 1.5}, "noise_cv= must be 0 or more and below 1, got 1.5"),
        ({"missing": [0.1, 1.0]}, "missing= must be a share"),
        ({"cells": 1}, "cells= must be 2 or more, up to 1e12, got 1; a list gives several values"),
        ({"kurtosis": -1.0}, "kurtosis= must be from 0 to 1,000, or None, got -1.0"),
        ({"kurtosis": (0.0, 6.0)}, "a list gives several values"),
        ({"kind": "cells"}, "unknown kind 'cells': choose from ctp, op"),
        ({"kind": "op"}, "kind='op' needs fold= above 1"),
        ({"structure": "fre"}, "unknown structure 'fre'"),
        ({"rng": "one"}, "rng= must be a seed"),
        ({"rng": np.random.RandomState(1)}, "rng= must be a seed"),
        ({"tests": 5}, "unknown test 5: choose from score"),
        ({"V": "a"}, "V must be finite numbers, got 'a'"),
        ({"V": [((1.0, 0.5), (0.1,))]}, "V must be finite numbers"),
        ({"beta": float("nan")}, "beta must be finite numbers"),
        ({"cell_cv": 1e300}, "cell_cv= must be from 0 to 10, got 1e.300; a list gives"),
        ({"sigma2": 10**400}, "sigma2= must be 0 or more"),
        ({"noise_cv": True}, "noise_cv= must be 0 or more and below 1, got True"),
        ({"V": "0.1"}, "V must be finite numbers, got '0.1'"),
        ({"batch_variance": [0.0, 0.5]}, "batch_variance=0.5 needs batches: set n_batches= above"),
        ({"n_batches": 1}, "n_batches= must be 0, or from 2 to below the 20 donors, got 1"),
        ({"n_batches": [0, 20]}, "from 2 to below the 20 donors, got 20"),
        ({"n_batches": "all"}, "n_batches= must be a whole number of at least 0, got 'all'"),
        (
            {"n_donors": [50, 3], "celltypes": 8, "missing": 0.8, "rng": 0},
            "can be fitted with n_donors=3: ",
        ),
        ({"V": 1e308}, "V= must lie within 1e100"),
        ({"beta": (0.0, 0.0, 0.0, -1e200)}, "beta= must lie within 1e100"),
        ({"alpha": "0.05"}, "alpha= must be a level above 0 and below 1, got '0.05'"),
        ({"one_step": "no"}, "one_step= must be True or False, got 'no'"),
        ({"progress": pd.Series([1, 2])}, "progress= must be True or False"),
        ({"structure": np.array(3)}, "structure must be a name"),
        ({"missing": 0.99}, "pairs of donor and cell type are too few"),
        ({"tests": "bootstrap", "n_bootstrap": 19}, "n_bootstrap= must be .* at least 20, got 19"),
        ({"tests": "bootstrap", "alpha": 1e-4}, "n_bootstrap= must be .* at least 10000, got 199"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(CTMMError, match=message):
        ctmm.power(**{"n_donors": 20, "n_sim": 2, **arguments})


def test_without_any_variance_between_donors():
    found = ctmm.power(20, 2, sigma2=0.0, counts=None, kurtosis=[None, 0.0], n_sim=5, rng=1)
    assert list(found["n"]) == [5, 5]
    assert list(found["kurtosis"]) == ["none", "0"]


def test_counts_are_those_of_the_settings():
    """Shared by construction; means and noise of the cells by a formula of their own."""
    changes = {"counts": 3.0, "V": (0.0, 0.0), "sigma2": 0.0, "beta": (0.0, np.log(2.0))}
    genes = simulated(**changes, cells=200.0, dispersion=0.25)
    one = genes.obs["celltype"].to_numpy() == "T1"
    # counts per 10,000: the library is lognormal, and the counts have the mean of its share
    rng = np.random.default_rng(1)
    for rows, mean in ((one, 3.0), (~one, 6.0)):
        library = 5000.0 * np.exp(0.4 * rng.normal(size=400_000))
        expected = mean * library / 5000.0
        size = 1 / 0.25
        x = np.log1p(1e4 * rng.negative_binomial(size, size / (size + expected)) / library)
        assert genes.expr[rows].to_numpy().mean() == pytest.approx(x.mean(), rel=5e-3)
        assert genes.nu[rows].to_numpy().mean() == pytest.approx(x.var() / 200, rel=1e-2)
        square = (x.var() / 200) ** 2
        assert genes.nu2[rows].to_numpy().mean() == pytest.approx(square, rel=2e-2)


def test_counts_or_any_other_distribution():
    for name in ("cell_variance", "cell_cv", "noise_cv", "kurtosis"):
        with pytest.raises(CTMMError, match=f"{name}= is of cells that are not counted"):
            ctmm.power(20, 2, n_sim=2, **{name: 0.3})
    with pytest.raises(CTMMError, match="leave out cell_cv="):
        simulate_genes(2, 5, 2, counts=CountCells(), cell_cv=0.3)
    with pytest.raises(CTMMError, match=r"expected counts of up to .* are too large"):
        simulate_genes(1, 40, 2, counts=CountCells(), sigma2=1e4, rng=1)
    genes = simulate_genes(2, 12, 2, counts=CountCells(0.2, 0.0), cells=30, missing=0.2, rng=1)
    pb = genes.to_anndata()
    assert np.isnan(pb.layers["nu2"]).any() and "nu2" in genes.gene("g1")
    assert genes.overall().nu2 is None
    donors = simulate_genes(
        200, 4, 1, counts=CountCells(5.0, depth_sd=1.0), sigma2=0.0, cells=50, rng=1
    )
    plain = simulate_genes(200, 4, 1, counts=CountCells(5.0), sigma2=0.0, cells=50, rng=1)
    uneven, even = (g.nu.std().mean() / g.nu.mean().mean() for g in (donors, plain))
    assert uneven > 1.5 * even  # fewer counts, more noise
    ambient = CountCells(5.0, ambient=1.0)
    alike = simulate_genes(50, 40, 2, counts=ambient, V=1.0, cells=500, beta=(0.0, 3.0), rng=1)
    assert alike.expr.std().mean() < 0.1


@pytest.mark.slow
def test_settings_are_columns_that_can_be_sorted_and_kept():
    J = np.ones((2, 2))
    structure = ["free", {"hom": J, "T": np.eye(2)}, (J, np.eye(2))]
    found = ctmm.power(
        15, 2, V=[0, 0.25, (0.3, 0.1)], structure=structure, noise_cv=[1e-300, 0.2],
        counts=None, cell_cv=[np.int64(2)], n_batches=[0, 3], batch_variance=0.2, n_sim=1, rng=1,
    )  # fmt: skip
    assert found["V"].unique().tolist() == ["0", "0.25", "0.3, 0.1"]
    assert found["structure"].unique().tolist() == ["free", "hom, T", "1, 1; 1, 1; 1, 0; 0, 1"]
    found = found.sort_values(list(SETTINGS), ascending=False)
    assert found["V"].iloc[0] == "0.3, 0.1" and found["noise_cv"].dtype == float
    assert (found["n"] == 1).all()


@pytest.mark.slow
def test_studies_that_cannot_be_fitted_are_counted():
    # of 14 donors without 80 % of the pairs hardly any has two
    with pytest.warns(CTMMWarning, match=r"1 of 4 simulated studies could not be fitted.* count"):
        found = ctmm.power(14, 4, missing=0.8, n_sim=3 * PER_STUDY + 5, rng=0)
    assert found[["n", "n_failed"]].to_numpy().tolist() == [[2 * PER_STUDY + 5, PER_STUDY]]


def test_progress(capsys):
    ctmm.power(20, 2, n_sim=2, rng=1, progress=True)
    assert "study" in capsys.readouterr().err


# conditions


def test_a_condition_has_the_moments_it_says():
    """Normal cells, no noise to speak of: means, variances and covariances of both groups."""
    effect, A = (0.5, -0.2), 0.3 + np.diag([0.4, 0.1])
    case = Condition(effect, share=0.25, cells=0.5, variance=3.0)
    genes = simulate_genes(
        30, 400, 2, sigma2=0.3, V=(0.4, 0.1), condition=case, cells=40.0, cell_variance=1e-6,
        n_batches=0, rng=2,
    )  # fmt: skip
    obs = genes.obs
    assert (obs.groupby("status", observed=True)["donor"].nunique() == [300, 100]).all()
    assert obs["status"].cat.categories.tolist() == ["control", "case"]
    assert (obs["n_cells"] == np.where(obs["status"] == "case", 20, 40)).all()
    assert genes.truth[["effect[T1]", "effect[T2]"]].tolist() == list(effect)
    for level, mean, factor, n in (("control", (0.0, 0.0), 1.0, 9000), ("case", effect, 3.0, 3000)):
        rows = (obs["status"] == level).to_numpy()
        y = genes.expr.to_numpy()[rows].reshape(-1, 2, 30).transpose(0, 2, 1).reshape(-1, 2)
        S, d = factor * A, np.diag(factor * A)
        assert (np.abs(y.mean(axis=0) - mean) / np.sqrt(d / n) < Z_MAX).all()
        error = np.sqrt((np.outer(d, d) + S**2) / n)
        assert (np.abs(np.cov(y.T) - S) / error < Z_MAX).all()


def test_donors_under_both_conditions_have_responses():
    own = Condition(0.3, response=(0.5, 0.1), paired=True)
    genes = simulate_genes(
        30, 300, 2, sigma2=0.3, V=(0.4, 0.1), condition=own, cells=40.0, cell_variance=1e-6,
        n_batches=0, rng=3,
    )  # fmt: skip
    assert (
        len(genes.obs) == 1200 and not genes.obs.duplicated(["donor", "status", "celltype"]).any()
    )
    y = genes.expr.to_numpy().reshape(300, 4, 30).transpose(0, 2, 1).reshape(-1, 4)
    A = 0.3 + np.diag([0.4, 0.1])
    S = np.block([[A, A], [A, A]]) + np.diag([0.5, 0.1] * 2)
    d = np.diag(S)
    assert (np.abs(np.cov(y.T) - S) / np.sqrt((np.outer(d, d) + S**2) / 9000) < Z_MAX).all()
    shared = Condition(response=0.2, paired=True).covariance(A)
    np.testing.assert_allclose(shared[:2, :2] - shared[:2, 2:], 0.2)
    for wrong in (genes.overall, genes.to_anndata):
        with pytest.raises(CTMMError, match="seen under two conditions"):
            wrong()
    with pytest.raises(CTMMError, match=r"simulate\.Condition"):
        simulate_genes(2, 10, 2, condition=3)


def test_tests_of_a_condition_are_those_of_a_scan():
    case = Condition(0.4, variance=2.0)
    genes = simulate_genes(3, 30, 3, V=0.2, condition=case, counts=CountCells(2.0), rng=2)
    found = pvalues_of(genes, ["effects", "effects_mean", "effects_celltype", "groups", "mean",
                               "effects_heterogeneity", "groups_shared", "lrt"])  # fmt: skip
    options = {"data": genes, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        alike = ctmm.fit_genes("~ C(celltype) * status", tests=["effects:status", "mean", "lrt"],
                               method="reml", **options).table  # fmt: skip
        by = ctmm.fit_genes("~ C(celltype) * status", by="status", tests=["groups"], **options)
    columns = {"effects": "p_effects:status", "effects_mean": "p_effects:status_mean",
               "effects[T2]": "p_effects:status[T2]", "mean": "p_mean", "lrt": "p_lrt",
               "effects_heterogeneity": "p_effects:status_heterogeneity"}  # fmt: skip
    for name, column in columns.items():
        np.testing.assert_array_equal(found[name], alike[column].to_numpy())
    for name in ("groups", "groups_shared"):
        np.testing.assert_array_equal(found[name], by.table[f"p_{name}"].to_numpy())
    paired = simulate_genes(2, 25, 3, V=0.2, condition=Condition(paired=True), rng=2)
    found = pvalues_of(paired, ["response", "response_celltype", "effects"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        scan = ctmm.fit_genes("~ C(celltype) * status", within="status", data=paired,
                              tests=["response", "effects:status"])  # fmt: skip
    np.testing.assert_array_equal(found["response"], scan.table["p_response"].to_numpy())
    np.testing.assert_array_equal(found["response[T2]"], scan.table["p_response[T2]"].to_numpy())
    np.testing.assert_array_equal(found["effects"], scan.table["p_effects:status"].to_numpy())


@pytest.mark.slow
def test_power_of_effects_groups_and_responses():
    common = {"cells": 50, "n_sim": 40, "rng": 1}
    tests = ["effects", "effects_heterogeneity", "effects_mean"]
    table = ctmm.power(40, effect=[0.0, (0.6, 0, 0, 0), 0.4], tests=tests, **common)
    rates = table.pivot(index="effect", columns="test", values="rate")
    assert (rates.loc["0"] <= 0.2).all()
    assert rates.loc["0.6, 0, 0, 0", "effects_heterogeneity"] > 0.8
    assert rates.loc["0.4", "effects_mean"] > 0.6
    assert rates.loc["0.4", "effects_heterogeneity"] < 0.3
    table = ctmm.power(80, case_variance=[1.0, 3.0], tests="groups", **common)
    assert table["rate"].iloc[0] <= 0.2 and table["rate"].iloc[1] > 0.6
    table = ctmm.power(30, paired=True, response=[0.0, 0.1], tests="response", **common)
    assert table["rate"].iloc[0] <= 0.2 and table["rate"].iloc[1] > 0.6


def test_a_study_has_a_condition_where_it_is_asked_for():
    assert condition_of(setting(), ["score", "mean"]) is None
    assert condition_of(setting(), ["effects"]) == Condition()
    assert condition_of(setting(effect=(0.1, 0.0)), ["score"]) == Condition((0.1, 0.0))
    assert condition_of(setting(case_cells=0.5), ["score"]).cells == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 0.01}, r"cases=0\.01 makes 0 cases of 50 donors"),
        ({"cases": 1.0}, "cases= must be a share"),
        ({"response": 0.1}, r"same donors under both conditions: paired=True"),
        ({"paired": True, "cases": 0.3}, r"cases= is of groups of donors"),
        ({"paired": True, "tests": "groups"}, r"'groups' is of donors who are seen once"),
        ({"paired": True, "tests": "score"}, r"'score' is of donors who are seen once"),
        ({"tests": "response"}, r"'response' is of the same donors .*paired=True"),
        ({"effect": (0.1, 0.2)}, r"effect= has shape \(2,\) for 4 cell types"),
        ({"paired": True, "response": -0.1}, r"response= must not be negative"),
        ({"paired": 1}, r"paired= must be True or False"),
        ({"case_variance": -1.0}, r"case_variance= must be from 0"),
        ({"kind": "op", "fold": 5.0, "tests": "effects"}, r"kind='ctp'"),
    ],
)
def test_conditions_that_are_none(options, message):
    with pytest.raises(CTMMError, match=message):
        ctmm.power(**{"n_sim": 2, "tests": "effects", "rng": 1, **options})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 2.0}, "share of the condition= must be a share above 0"),
        ({"cells": -1.0}, "cells of the condition="),
        ({"cells": float("nan")}, "cells of the condition="),
        ({"variance": (1.0, 2.0)}, "variance of the condition="),
        ({"paired": "x"}, "paired of the condition="),
        ({"response": (0.1, 0.2, 0.3), "paired": True}, r"has shape \(3,\) for 2 cell types"),
        ({"response": -0.1, "paired": True}, "is a variance"),
        ({"effect": "much"}, "effect of the condition"),
    ],
)
def test_simulated_conditions_that_are_none(given, message):
    with pytest.raises(CTMMError, match=message):
        simulate_genes(1, 12, 2, condition=Condition(**given), rng=1)
