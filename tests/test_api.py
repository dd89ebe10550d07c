"""fit and anova: arguments, choices, errors, warnings, notes."""

import inspect
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dense_kr
import numpy as np
import pandas as pd
import pytest
from conftest import quick_first
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula import api
from ctmm_formula.errors import (
    BoundaryWarning,
    ConvergenceError,
    CTMMError,
    CTMMWarning,
    DataError,
    FormulaError,
)

FORMULA = "expr ~ C(celltype) + sex + PC1"


@pytest.fixture(scope="module")
def table():
    return ctmm.load_example()


@pytest.fixture
def small():
    """6 donors, 2 cell types: as many donors as free needs with 3 fixed effects."""
    return ctmm.simulate_pseudobulk(6, ["B", "T"], V=1.0, rng=5).ctp


@pytest.fixture(scope="module")
def edge(golden):
    """A gene without cell type-specific variance whose REML estimate lies on the edge."""
    genes = pd.read_csv(golden / "hard_n20.csv")
    return genes[genes["gene"] == "g04"]


def test_arguments_and_their_order():
    parameters = inspect.signature(ctmm.fit).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "formula": inspect.Parameter.empty,
        "random": None,
        "structure": "free",
        "method": None,
        "data": None,
        "donor": "donor",
        "celltype": None,
        "noise": "nu",
        "nu2": "nu2",
        "n_cells": "n_cells",
        "proportions": None,
        "by": None,
        "within": None,
        "kinship": None,
        "genetic_structure": None,
        "bounds": None,
        "noise_floor": 0.1,
        "formula_engine": "patsy",
        "keep": "all",
    }
    keyword = [n for n, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert keyword == list(parameters)[2:]


def test_random_effects_in_every_spelling(table):
    texts = [
        ctmm.fit(formula, random=random, structure="hom", data=table).to_json()
        for formula, random in [
            (FORMULA, "batch"),
            (FORMULA, ["batch"]),
            (FORMULA, "~ batch"),
            (FORMULA, {"batch": "1"}),
            (FORMULA + " + (1|batch)", None),
        ]
    ]
    assert len(set(texts)) == 1


def test_engines_agree(table):
    fits = [
        ctmm.fit(FORMULA + " + PC2:C(celltype)", data=table, formula_engine=engine)
        for engine in ("patsy", "formulaic")
    ]
    assert list(fits[0].params.index) == list(fits[1].params.index)
    assert np.array_equal(fits[0].params, fits[1].params)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"structure": "fre"}, r"unknown structure 'fre': choose from hom, iid, free, full, ban"),
        ({"method": "mle"}, "unknown method 'mle': choose from ml, reml, he"),
        ({"method": 3}, "unknown method 3: choose from ml, reml, he, robust"),
        ({"bounds": "none"}, "unknown bounds 'none': choose from noise, psd, nonnegative"),
        ({"noise_floor": 1.5}, "noise_floor must lie strictly between 0 and 1"),
        ({"formula_engine": "R"}, "unknown formula engine 'R': choose from patsy, formulaic"),
        ({"noise": None}, "noise= must be the name of a column"),
    ],
)
def test_wrong_choices_are_refused_before_any_data_work(wrong, message):
    with pytest.raises(CTMMError, match=message):
        ctmm.fit("no formula at all", data=object(), **wrong)


def test_method_in_capitals(table):
    assert ctmm.fit(FORMULA, data=table, structure="hom", method="REML").method == "reml"


def test_anndata_of_cells_is_refused_with_the_way_out():
    adata = SimpleNamespace(obs=pd.DataFrame(), layers={}, uns={}, var_names=pd.Index([]))
    with pytest.raises(DataError, match=r"is no pseudobulk.*pb = ctmm\.pseudobulk\(adata"):
        ctmm.fit(FORMULA, data=adata)


@pytest.mark.filterwarnings("ignore:the estimate lies on the edge")
def test_more_parameters_than_donors(small):
    """Rows count: 12 of them carry 4 fixed effects and 2 or 3 variances of 6 donors."""
    formula = "expr ~ C(celltype) + PC1 + PC2"
    for structure in ("iid", "free"):
        res = ctmm.fit(formula, data=small, structure=structure, bounds="nonnegative")
        adjusted = dense_kr.adjusted(res.arrays, res.estimate.theta, free=res.estimate.theta > 0)
        df = [dense_kr.satterthwaite(adjusted, row) for row in np.eye(4)]
        p = 2 * stats.t.sf(np.abs(res.fe_params / res.bse_fe), df)
        assert np.allclose(res.pvalues[:4], p, rtol=1e-8)
        assert res.pvalues[4:].isna().all() and res.bse[4:].notna().all()
        assert any("no tests and intervals of variance components" in n for n in res.notes)
        assert 0 < res.wald_test("PC1 = 0, PC2 = 0").pvalue < 1
        assert "residual degrees of freedom" in res.wald_test("hom = 0").note


@pytest.mark.parametrize("method", ["reml", "ml", "he", "robust"])
def test_components_that_the_rows_cannot_tell_apart_are_named(small, method):
    one_each = small[small.groupby("donor").cumcount() == pd.factorize(small["donor"])[0] % 2]
    message = (
        "told apart in 6 rows of 6 donors with 1 fixed effects: 'hom', 'V'; try structure='hom'"
    )
    with pytest.raises(ConvergenceError, match=message):
        ctmm.fit("expr ~ 1", data=one_each, structure="iid", method=method)
    with pytest.raises(
        ConvergenceError, match=r"12 rows .*: 'hom'; use fewer covariates or random"
    ):
        ctmm.fit("expr ~ C(celltype) + C(donor)", data=small, structure="iid", method=method)


def test_one_cell_type(small):
    """The random effects model of a meta-analysis."""
    one = small[small["celltype"] == "B"]
    res = ctmm.fit("expr ~ 1", data=one, structure="hom", method="reml")
    overall = ctmm.fit(
        "expr ~ 1", data=one.assign(p=1.0), proportions=["p"], structure="hom", bounds="noise"
    )
    assert res.llf == pytest.approx(overall.llf, abs=1e-10)
    assert "one cell type" in res.test_variance().note
    assert res.test_mean("model").note == "there is nothing to test"
    with pytest.raises(CTMMError, match="with one cell type use structure='hom'"):
        ctmm.fit("expr ~ 1", data=one)
    with pytest.raises(DataError, match="'celltype' has one level, 'B'"):
        ctmm.fit("expr ~ C(celltype)", data=one, structure="hom")


def test_no_residual_degrees_of_freedom_is_a_note(small):
    res = ctmm.fit("expr ~ C(celltype) + PC1 + PC2", structure="iid", data=small, method="he")
    assert res.df_resid == 0
    assert any("no residual degrees of freedom" in note for note in res.notes)
    assert res.pvalues.isna().all()
    assert "no residual degrees of freedom" in str(res.summary())
    assert np.isnan(res.test_variance("jackknife").pvalue)


def test_bounds_by_kind_of_data(table):
    overall = ctmm.load_example(kind="op")
    proportions = [name for name in overall if name.startswith("prop_")]
    op = ctmm.fit(
        "expr ~ sex", data=overall, proportions=proportions, structure="hom", method="reml"
    )
    ctp = ctmm.fit(FORMULA, data=table, structure="hom", method="reml")
    assert (op.bounds, ctp.bounds) == ("psd", "noise")
    named = ctmm.fit(FORMULA, data=table, structure="hom", bounds="nonnegative")
    assert named.bounds == "nonnegative"
    floor = ctmm.fit(FORMULA, data=table, structure="hom", noise_floor=0.3, method="reml")
    assert floor.domain.noise_floor == 0.3


def test_edge_warns_once_and_is_noted(edge):
    with pytest.warns(BoundaryWarning) as caught:
        res = ctmm.fit("expr ~ C(celltype)", data=edge, method="reml")
    assert len(caught) == 1
    assert "bounds='noise'" in str(caught[0].message)
    assert caught[0].filename == __file__  # points at the caller
    assert res.boundary
    assert any("edge of its domain" in note for note in res.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing more comes later
        assert "edge of its domain" in str(res.summary())
        assert "edge" in res.test_variance("wald").note


def test_no_convergence_warns_once(table, monkeypatch):
    def stalled(*arguments):
        found = real(*arguments)
        record = replace(found.convergence, converged=False, boundary=True, message="stalled")
        return replace(found, convergence=record)

    real = api.estimate
    monkeypatch.setattr(api, "estimate", stalled)
    with pytest.warns(CTMMWarning, match="did not converge: stalled") as caught:
        res = ctmm.fit(FORMULA, structure="hom", data=table)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not issubclass(caught[0].category, BoundaryWarning)
    assert "the optimisation did not converge: stalled" in res.notes
    assert "Converged:       no" in str(res.summary())


def test_dropped_rows_are_counted_and_shown(table):
    df = table.copy()
    df.loc[3, "expr"] = np.nan
    df.loc[[5, 6], "sex"] = None
    res = ctmm.fit(FORMULA, structure="hom", data=df)
    assert res.dropped == {"missing expr": 1, "missing sex": 2}
    assert res.nobs == len(table) - 3
    assert res.glance().loc[0, "n_dropped"] == 3
    text = str(res.summary())
    assert "Rows dropped:  missing expr (1), missing sex (2)" in text
    assert list(res.fittedvalues.index) == [k for k in range(275) if k not in (3, 5, 6)]


@pytest.mark.parametrize("response", ["expr", 'Q("expr")', "np.exp(expr)", "I(expr - PC1)"])
def test_noise_of_a_computed_response_is_a_note(response):
    res = ctmm.fit(f"{response} ~ C(celltype)", data=ctmm.load_example())
    note = f"the noise variances 'nu' are taken as those of {response} itself"
    computed = "(expr" in response
    assert (note in res.notes) == computed
    assert (f"T{note[1:]}." in " ".join(str(res.summary()).split())) == computed


def test_missing_cell_numbers_are_noted(table):
    res = ctmm.fit(FORMULA, structure="hom", data=table.drop(columns="n_cells"), method="reml")
    assert any("no numbers of cells" in note for note in res.notes)
    assert ctmm.fit(FORMULA, structure="hom", data=table, method="reml").notes == ()


def test_functions_of_the_caller(table):
    def squeeze(x):
        return np.arcsinh(x)

    res = ctmm.fit("expr ~ C(celltype) + squeeze(PC1)", structure="hom", data=table)
    assert "squeeze(PC1)" in res.fe_params.index
    assert np.array_equal(res.design.X[:, -1], squeeze(table["PC1"]))
    with pytest.raises(FormulaError, match="unknown_function"):
        ctmm.fit("expr ~ unknown_function(PC1)", structure="hom", data=table)


def test_structures_of_the_user(table):
    ones, late = np.ones((4, 4)), np.diag([0.0, 0.0, 1.0, 1.0])
    res = ctmm.fit(FORMULA, structure={"hom": ones, "late": late}, data=table)
    assert list(res.vcomp.index) == ["hom", "late"]
    assert res.structure == "user"
    banded = ctmm.fit(FORMULA, structure=ctmm.banded(0), data=table, method="reml")
    free = ctmm.fit(FORMULA, structure="free", data=table, method="reml")
    assert np.array_equal(banded.params, free.params)


def test_other_column_names(table):
    renamed = table.rename(
        columns={"donor": "id", "celltype": "day", "nu": "sem2", "n_cells": "count"}
    )
    res = ctmm.fit(
        "expr ~ C(day) + sex",
        data=renamed,
        donor="id",
        noise="sem2",
        n_cells="count",
        method="reml",
    )
    same = ctmm.fit("expr ~ C(celltype) + sex", data=table, method="reml")
    assert res.celltypes == same.celltypes
    assert np.array_equal(res.params, same.params)
    with pytest.raises(DataError, match="no column 'nu'"):
        ctmm.fit("expr ~ C(day)", data=renamed, donor="id")


@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.BoundaryWarning")
@pytest.mark.parametrize("file", quick_first(["sim_complete", "sim_missing", "sim_batch_cov"]))
def test_formulas_reach_the_fits_of_metafor(golden, file):
    """The whole way from a formula; what metafor's own optimum is worth is tested elsewhere."""
    data = pd.read_csv(golden / f"{file}.csv")
    covariates = "".join(f" + {name}" for name in data if name.startswith(("cov", "PC")))
    fits = json.loads((golden / f"{file}.metafor.json").read_text())["fits"]
    for known in fits:
        if known["structure"] == "full":
            continue  # there metafor often stops short of the maximum
        res = ctmm.fit(
            f"expr ~ 0 + celltype{covariates if known['covariates'] == 'cov' else ''}",
            random="batch" if known["batch"] else None,
            structure=known["structure"],
            method=known["method"],
            data=data,
            bounds="nonnegative",
        )
        assert res.llf == pytest.approx(known["llf"], abs=1e-6)
        # estimates at two optima equal to 1e-6 in log-likelihood: sqrt of that in standard errors
        gap = np.abs(res.fe_params.to_numpy() - known["beta"]) / res.bse_fe
        assert gap.max() < 2e-3
        assert res.nobs == known["k"]


# ---------------------------------------------------------------------------------------------
# anova


@pytest.fixture(scope="module")
def fits(table):
    return {
        name: ctmm.fit(FORMULA, structure=name, data=table, method="reml")
        for name in ("hom", "iid", "free")
    }


def test_anova_sorts_and_tests(fits):
    result = ctmm.anova(fits["free"], fits["hom"], fits["iid"])
    assert list(result.table.index) == ["hom", "iid", "free"]
    assert result.table["df"].tolist()[1:] == [1, 3]
    gain = 2 * np.diff([fits[name].llf for name in ("hom", "iid", "free")])
    assert np.allclose(result.table["statistic"].iloc[1:], gain, rtol=1e-10)
    assert np.allclose(result.table["aic"], [fits[n].aic for n in result.table.index], rtol=1e-12)
    assert np.allclose(result.table["bic"], [fits[n].bic for n in result.table.index], rtol=1e-12)
    assert str(result) == repr(result) == result.summary().as_text()
    assert "<table" in result._repr_html_()


def test_anova_names_fits_apart(table):
    small = ctmm.fit("expr ~ C(celltype)", structure="hom", method="ml", data=table)
    large = ctmm.fit("expr ~ C(celltype) + sex", structure="hom", method="ml", data=table)
    both = ctmm.fit("expr ~ C(celltype) + sex", structure="iid", method="ml", data=table)
    assert list(ctmm.anova(small, large).table.index) == [small.formula, large.formula]
    assert ctmm.anova(small, large, both).table.index.is_unique
    named = ctmm.anova(small, large, labels=["without", "with sex"])
    assert list(named.table.index) == ["without", "with sex"]
    with pytest.raises(CTMMError, match="one name for each of the 2 fits"):
        ctmm.anova(small, large, labels=["a"])


def test_anova_takes_a_list_and_fits_only(fits):
    one, two = list(fits.values())[:2]
    assert ctmm.anova([one, two]).table.equals(ctmm.anova(one, two).table)
    for wrong in ((1, 2), ([one, "hom"],), (None,)):
        with pytest.raises(CTMMError, match="results of fit"):
            ctmm.anova(*wrong)


def test_anova_notes_bounds(table):
    """The null of a variance lies on its bound, where chi2 is not its distribution."""
    options = {"structure": "hom", "data": table, "bounds": "nonnegative"}
    without = ctmm.fit(FORMULA, **options, method="reml")
    batch = ctmm.fit(FORMULA, "batch", **options, method="reml")
    assert "bounds='nonnegative'" in ctmm.anova(without, batch).table["note"].iloc[1]
    assert "bounds='nonnegative'" in batch.compare_lr_test(without).note
    free = ctmm.fit(FORMULA, **{**options, "structure": "free"}, method="reml")
    assert "on a bound" in free.test_variance("lrt").note
    unbounded = ctmm.fit(FORMULA, "batch", structure="hom", data=table, method="reml")
    assert (
        "on a bound"
        not in unbounded.compare_lr_test(
            ctmm.fit(FORMULA, structure="hom", data=table, method="reml")
        ).note
    )
    assert "different bounds" in unbounded.compare_lr_test(without).note


def test_a_table_in_place_of_random_effects(table):
    for arguments in ({}, {"data": table}):
        with pytest.raises(DataError, match="did you mean data="):
            ctmm.fit(FORMULA, table, **arguments)
    with pytest.raises(DataError, match="data= is missing"):
        ctmm.fit(FORMULA)


def test_anova_refuses(fits, table):
    other = ctmm.fit("expr ~ C(celltype)", data=table, method="reml")
    with pytest.raises(CTMMError, match=r"fixed parts.*method='ml'"):
        ctmm.anova(fits["hom"], other)
    he = ctmm.fit(FORMULA, data=table, method="he")
    with pytest.raises(CTMMError, match="no likelihood"):
        ctmm.anova(fits["hom"], he)
    ml = ctmm.fit(FORMULA, data=table, method="ml")
    with pytest.raises(CTMMError, match="fitted by ml"):
        ctmm.anova(fits["hom"], ml)
    fewer = ctmm.fit(FORMULA, data=table.iloc[4:], method="reml")
    with pytest.raises(CTMMError, match="different data"):
        ctmm.anova(fits["hom"], fewer)
    with pytest.raises(CTMMError, match="at least two"):
        ctmm.anova(fits["hom"])
    with pytest.raises(ConvergenceError, match="no likelihood"):
        _ = he.llf


# ---------------------------------------------------------------------------------------------
# the package


def test_public_names():
    assert sorted(ctmm.__all__) == [
        "BoundaryWarning", "CTMMError", "CTMMResults", "CTMMWarning", "ConvergenceError",
        "DataError", "FormulaError", "Genotypes", "Scan", "__version__", "anova", "banded",
        "errors", "evaluate_imputation", "filter_genes", "fit", "fit_genes", "from_ctmm", "impute",
        "load_example", "load_genes", "load_truth", "overall", "plots", "power",
        "principal_components", "pseudobulk", "r", "read_kinship", "read_scan", "scan_donors",
        "show_versions", "simulate", "simulate_pseudobulk", "standardize", "to_frame",
        "to_long", "tree",
    ]  # fmt: skip
    assert set(ctmm.__all__) <= set(dir(ctmm))
    for name in ctmm.__all__:
        assert getattr(ctmm, name) is not None
    assert ctmm.errors.DataError is DataError
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = ctmm.fitt


def test_import_brings_nothing_heavy():
    code = "import sys, ctmm_formula; print(*{name.split('.')[0] for name in sys.modules})"
    root = str(Path(__file__).parents[1])
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "ctmm_formula" in loaded
    assert not {"numba", "numpy", "pandas", "scipy", "statsmodels", "patsy"} & set(loaded)


def test_public_names_are_documented():
    for name in ctmm.__all__:
        value = getattr(ctmm, name)
        if callable(value):
            assert inspect.getdoc(value), name
    for name, member in inspect.getmembers(ctmm.CTMMResults):
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


@pytest.mark.parametrize("structure", ["free", "iid", "full"])
def test_v_without_means_of_the_cell_types_warns_with_the_fix(table, structure):
    with pytest.warns(ctmm.CTMMWarning, match="no cell type.*add celltype to the formula") as got:
        res = ctmm.fit("expr ~ sex", data=table, structure=structure, method="he")
    assert len(got) == 1
    assert sum("share one mean" in note for note in res.notes) == 1
    assert "share one mean, so that V holds" in " ".join(str(res.summary()).split())
    named = table.rename(columns={"celltype": "cell type"})
    with pytest.warns(ctmm.CTMMWarning, match=re.escape('add Q("cell type") to')):
        ctmm.fit("expr ~ sex", data=named, celltype="cell type", structure=structure, method="he")


def test_one_mean_of_the_cell_types_is_a_note_where_there_is_no_v(table):
    res = ctmm.fit("expr ~ sex", data=table, structure="hom")  # warnings are errors
    assert res.notes[-1] == "no cell type in the fixed part: the cell types share one mean"


def test_a_cell_type_in_one_donor_blocks_its_own_variance_only(table):
    """Its row has a mean of its own: the others are fitted as without it."""
    donor = table["donor"].iloc[0]
    lone = table[(table["celltype"] != "day0") | (table["donor"] == donor)]
    rest = table[table["celltype"] != "day0"]
    formula = "expr ~ 0 + C(celltype)"
    for structure in ("hom", "iid"):
        res = ctmm.fit(formula, data=lone, structure=structure, method="reml")
        other = ctmm.fit(formula, data=rest, structure=structure, method="reml")
        np.testing.assert_allclose(res.vcomp, other.vcomp, rtol=1e-6)
        np.testing.assert_allclose(res.fe_params.iloc[1:], other.fe_params, rtol=1e-6)
        assert any(f"'day0' is observed in one donor, {donor!r}" in note for note in res.notes)
    with pytest.warns(ctmm.CTMMWarning, match="a fixed effect rests on one donor"):
        robust = ctmm.fit(formula, data=lone, structure="hom").table()
    assert np.isnan(robust["std_error"].iloc[0]) and robust["std_error"].iloc[1:].notna().all()
    for structure in ("free", "full", "banded(1)"):
        with pytest.warns(ctmm.CTMMWarning, match=rf"'day0' is observed in one donor, {donor!r}"):
            res = ctmm.fit(formula, data=lone, structure=structure, method="reml")
        other = ctmm.fit(formula, data=rest, structure=structure, method="reml")
        pd.testing.assert_series_equal(res.params, other.params)
        assert res.dropped == {"cell type 'day0' of one donor": 1}
        assert any("'day0' is observed in one donor" in note for note in res.notes)
    with pytest.raises(DataError, match=r"'day0' is observed in one donor.*'iid' or 'hom'"):
        ctmm.fit(formula, data=lone, structure={"a": np.ones((4, 4)), "b": np.diag([1, 0, 0, 0])})


def test_cell_types_in_one_donor_are_left_out_until_none_is_left(table):
    """day1 of the donor that alone has day0 and day1, and so loses it."""
    first, second = table["donor"].unique()[:2]
    kept = {"day0": [first], "day1": [first, second]}
    lone = table[
        [c not in kept or d in kept[c] for c, d in zip(table.celltype, table.donor, strict=True)]
    ].copy()
    lone.loc[(lone.donor == second) & (lone.celltype == "day1"), "nu"] = np.nan
    with pytest.warns(ctmm.CTMMWarning) as got:
        res = ctmm.fit("expr ~ C(celltype)", data=lone)
    assert [f"'day{k}' is observed" in str(w.message) for k, w in enumerate(got)] == [True, True]
    assert res.celltypes == ("day2", "day3") and res.nobs == len(lone) - 3


def test_one_row_per_outcome_is_a_three_level_model(table):
    """Donors and what is left of their rows, as by dense algebra; no means are missed."""
    own = table.assign(outcome=np.arange(len(table)).astype(str))
    res = ctmm.fit("expr ~ sex", data=own, celltype="outcome", structure="iid", method="reml")
    assert not any("share one mean" in note for note in res.notes)
    assert sum("observed in one donor each" in note for note in res.notes) == 1
    X = np.column_stack([np.ones(len(own)), own.sex == "M"])
    same = np.equal.outer(own.donor.to_numpy(), own.donor.to_numpy())
    sigma = res.vcomp["hom"] * same + np.diag(res.vcomp["V"] + own.nu)
    assert res.llf == pytest.approx(reml(own.expr.to_numpy(), X, sigma), rel=1e-9)
    for name, step in (("hom", same.astype(float)), ("V", np.eye(len(own)))):
        for sign in (-1, 1):
            moved = reml(own.expr.to_numpy(), X, sigma + sign * 0.01 * step)
            assert moved < res.llf, name


def reml(y, X, sigma):
    """Restricted log-likelihood with all constants."""
    inverse = np.linalg.inv(sigma)
    gram = X.T @ inverse @ X
    P = inverse - inverse @ X @ np.linalg.solve(gram, X.T @ inverse)
    dets = [np.linalg.slogdet(m)[1] for m in (sigma, gram, X.T @ X)]
    return -0.5 * (
        (len(y) - X.shape[1]) * np.log(2 * np.pi) + dets[0] + dets[1] - dets[2] + y @ P @ y
    )


def test_a_measure_as_random_effect_warns_with_the_number_of_levels(table):
    ages = dict(zip(table.donor.unique(), np.arange(72) * 61 // 72 + 20, strict=True))
    aged = table.assign(age=table.donor.map(ages))
    with pytest.warns(ctmm.CTMMWarning, match=r"'age' has 61 levels.*72 donors.*\+ age"):
        res = ctmm.fit("expr ~ C(celltype) + (1|age)", data=aged, structure="hom", method="he")
    assert sum("61 levels" in note for note in res.notes) == 1
    text = aged.assign(age=aged.age.astype(str), batch=aged.age // 20)  # warnings are errors
    ctmm.fit("expr ~ C(celltype) + (1|age) + (1|batch)", data=text, structure="hom", method="he")


def test_crossed_levels_of_one_spelling_stay_apart():
    """("a", "b:c") and ("a:b", "c") are two levels."""
    rng = np.random.default_rng(1)
    rows = [
        (f"d{i:02d}", f"c{c}", ["a", "a:b"][i % 2], ["b:c", "c"][i // 2 % 2])
        for i in range(24)
        for c in range(2)
    ]
    df = pd.DataFrame(rows, columns=["donor", "celltype", "g", "h"]).assign(nu=0.1)
    effect = {("a", "b:c"): 5, ("a:b", "c"): -5, ("a", "c"): 1, ("a:b", "b:c"): -1}
    df["expr"] = [effect[pair] for pair in zip(df["g"], df["h"], strict=True)]
    df["expr"] += rng.normal(size=len(df))
    res = ctmm.fit("expr ~ C(celltype) + (1|g:h)", data=df, structure="hom", method="reml")
    estimates = res.random_effects["g:h"]["estimate"]
    assert estimates.index.is_unique
    assert estimates['a:"b:c"'] > 3 > -3 > estimates['"a:b":c']
    np.testing.assert_allclose(res.predict(df, random="all"), res.fittedvalues, rtol=1e-10)
    renamed = df.replace({"g": {"a:b": "x"}, "h": {"b:c": "y"}})
    same = ctmm.fit("expr ~ C(celltype) + (1|g:h)", data=renamed, structure="hom", method="reml")
    np.testing.assert_allclose(
        res.predict(df, random="all"), same.predict(renamed, random="all"), rtol=1e-6
    )


def test_a_proportion_in_one_donor_has_no_variance_of_its_own(table):
    overall = ctmm.load_example(kind="op")
    proportions = [c for c in overall if c.startswith("prop_")]
    first, second, *_ = proportions
    lone = np.arange(len(overall)) == 3
    overall[second] += overall[first].where(~lone, 0.0)
    overall[first] = overall[first].where(lone, 0.0)
    donor, name = overall["donor"].iloc[3], first.removeprefix("prop_")
    with pytest.raises(DataError, match=rf"{name!r} is observed in one donor, {donor!r}"):
        ctmm.fit("expr ~ sex", data=overall, proportions=proportions)
