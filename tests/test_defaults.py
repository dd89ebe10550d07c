"""What runs where no method is named, and by what errors fixed effects are tested."""

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.engine import robust
from ctmm_formula.errors import ConvergenceError, CTMMError

FORMULA = "expr ~ C(celltype) + sex"
LIKELY = ["reml", "ml"]


@pytest.fixture(scope="module")
def counted():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def uncounted(counted):
    return counted.drop(columns="n_cells")


@pytest.fixture(scope="module")
def crossed(counted):
    """Two random effects that join all donors to one block."""
    donor = counted["donor"].astype("category").cat.codes
    return counted.assign(site=(donor % 2).astype(str), plate=(donor // 2 % 6).astype(str))


@pytest.fixture(scope="module")
def by_robust(counted):
    return ctmm.fit(FORMULA, random="batch", method="robust", data=counted)


def genes_of(df):
    """The table as the only gene of a scan."""
    rest = df.drop(columns=["expr", "nu"])
    return {"data": rest, "expr": df[["expr"]], "nu": df[["nu"]].set_axis(["expr"], axis=1)}


def test_counts_are_fitted_by_what_they_do_not_bias(counted, by_robust):
    res = ctmm.fit(FORMULA, random="batch", data=counted)
    assert res.method == "robust" and res.params.equals(by_robust.params)
    assert res.notes[0].startswith("method: robust by default, as there are numbers of cells")
    assert "Method: robust by default" in str(res.summary())
    assert not any(note.startswith("method:") for note in by_robust.notes)
    scan = ctmm.fit_genes("~ C(celltype) + sex", "batch", **genes_of(counted), tests=["mean"])
    assert scan.call["method"] == "robust"
    np.testing.assert_allclose(scan.table["p_mean"], res.test_mean().pvalue, rtol=1e-10)
    op = ctmm.load_example(kind="op")
    shares = [name for name in op if name.startswith("prop_")]
    assert ctmm.fit("expr ~ sex", data=op, proportions=shares, structure="hom").method == "robust"


@pytest.mark.parametrize(
    ("table", "more", "reason"),
    [
        ("uncounted", {}, "no numbers of cells"),
        ("counted", {"n_cells": None}, "no numbers of cells"),
        ("counted", {"bounds": "psd"}, "bounds are named"),
        ("crossed", {"random": ["site", "plate"]}, "random effects join all donors to one block"),
    ],
)
def test_where_it_cannot_be_had_reml_is_named_with_the_reason(table, more, reason, request):
    df = request.getfixturevalue(table)
    res = ctmm.fit(FORMULA, data=df, structure="hom", **more)
    assert res.method == "reml" and reason in res.notes[0]
    assert "Method: reml by default" in str(res.summary())
    scan = ctmm.fit_genes("~ C(celltype) + sex", **genes_of(df), structure="hom", tests=[], **more)
    assert scan.call["method"] == "reml"


@pytest.mark.parametrize("method", [*LIKELY, "he"])
def test_fixed_effects_are_tested_alike_after_every_method(counted, by_robust, method):
    res = ctmm.fit(FORMULA, random="batch", method=method, data=counted)
    assert res.test_mean() == by_robust.test_mean()
    two = "sex[T.M] = 0, C(celltype)[T.day1] = -0.5"
    assert res.wald_test(two) == by_robust.wald_test(two)
    one, own = res.t_test("sex[T.M] = 0.1"), by_robust.t_test("sex[T.M] = 0.1")
    for name in ("effect", "sd", "tvalue", "pvalue", "df_denom"):
        np.testing.assert_array_equal(getattr(one, name), getattr(own, name))
    # what is no test of fixed effects alone keeps to the fit, and so does what is named
    kept = {"jackknife"} if method == "he" else {"model", "jackknife"}
    assert res.cov_type in kept
    assert res.wald_test("hom = batch").method == f"wald ({res.cov_type})"
    assert res.wald_test("sex[T.M] = hom").method == f"wald ({res.cov_type})"
    for covariance in kept:
        assert res.test_mean(covariance).method == f"wald ({covariance})"
        assert res.wald_test(two, covariance).method == f"wald ({covariance})"
    note = "go by the robust estimate"
    assert note in " ".join(str(res.summary()).split()) and note not in str(by_robust.summary())
    with pytest.raises(CTMMError, match="covariance='robust' comes with another estimate"):
        res.means("robust")
    with pytest.raises(CTMMError, match="covariance='robust' comes with another estimate"):
        res.wald_test("hom = batch", "robust")


@pytest.mark.parametrize("method", [*LIKELY, "he"])
def test_a_scan_by_another_method_has_the_robust_test_of_means(counted, by_robust, method):
    scan = ctmm.fit_genes(
        "~ C(celltype) + sex", "batch", **genes_of(counted), method=method,
        tests=["mean", "mean_jackknife"],
    )  # fmt: skip
    res = ctmm.fit(FORMULA, random="batch", method=method, data=counted)
    row = scan.table.iloc[0]
    assert row["p_mean"] == pytest.approx(by_robust.test_mean().pvalue, rel=1e-10)
    assert row["p_mean_jackknife"] == pytest.approx(res.test_mean("jackknife").pvalue, rel=1e-10)
    assert row["mean[day0]"] == pytest.approx(res.means().loc["day0", "estimate"], rel=1e-10)


@pytest.mark.parametrize("method", [*LIKELY, "he"])
def test_without_numbers_of_cells_means_are_tested_by_the_fit(uncounted, method):
    res = ctmm.fit(FORMULA, random="batch", method=method, data=uncounted)
    expected = "kenward-roger" if method == "reml" else "jackknife"
    assert res.test_mean().method == f"wald ({expected})"
    assert res.test_mean("robust").method == "wald (robust)"
    assert res.wald_test("sex[T.M] = 0").method == f"wald ({res.cov_type})"
    assert "robust estimate" not in str(res.summary())


def test_no_robust_estimate_is_a_reason(counted, monkeypatch):
    def none(*given):
        raise ConvergenceError("the moments cannot be told apart")

    monkeypatch.setattr("ctmm_formula.inference.fit.weigh", none)
    res = ctmm.fit(FORMULA, method="reml", data=counted)
    for test in (res.test_mean(), res.wald_test("sex[T.M] = 0")):
        assert np.isnan(test.pvalue) and test.note == "the moments cannot be told apart"
    assert np.isnan(res.t_test("sex[T.M] = 0").pvalue).all()
    assert np.isfinite(res.test_mean("model").pvalue)


def test_likelihoods_say_to_fit_by_reml(counted):
    res = ctmm.fit(FORMULA, data=counted)
    for name in ("llf", "aic", "bic"):
        with pytest.raises(ConvergenceError, match="fit by method='reml' or 'ml'"):
            getattr(res, name)
    hom = ctmm.fit(FORMULA, structure="hom", data=counted)
    for compare in (lambda: ctmm.anova(hom, res), lambda: res.compare_lr_test(hom)):
        with pytest.raises(CTMMError, match="fitted by robust, which has no likelihood"):
            compare()
    for name in ("lrt", "bootstrap"):
        test = res.test_variance(name)
        assert np.isnan(test.pvalue) and "fit by reml or ml" in test.note


def test_stored_fits_keep_their_tests(counted):
    res = ctmm.fit(FORMULA, method="reml", data=counted)
    again = ctmm.CTMMResults.from_json(res.to_json())
    assert again.test_mean() == res.test_mean()
    default = ctmm.fit(FORMULA, data=counted)
    again = ctmm.CTMMResults.from_json(default.to_json())
    assert again.notes == default.notes and again.test_mean() == default.test_mean()


def test_a_scan_lays_out_the_robust_design_once(counted, monkeypatch):
    """All genes share it."""
    laid = []
    lay_out = robust.lay_out
    monkeypatch.setattr(robust, "lay_out", lambda model: laid.append(1) or lay_out(model))
    expr = pd.concat([counted["expr"].rename(k) for k in "ab"], axis=1)
    nu = pd.concat([counted["nu"].rename(k) for k in "ab"], axis=1)
    data = counted.drop(columns=["expr", "nu"])
    ctmm.fit_genes("~ C(celltype)", data=data, expr=expr, nu=nu, method="reml", tests=["mean"])
    assert len(laid) == 1
