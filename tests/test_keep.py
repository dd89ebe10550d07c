"""What a fit keeps: everything, rows alone, or tables that do not grow with the rows."""

import inspect
import pickle

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.results.kept import KEPT

FORMULA = "expr ~ C(celltype) + sex"
TYPES = ["day0", "day1", "day2", "day3"]


def kinship():
    donors = ctmm.load_example()["donor"].unique()
    sibs = np.arange(len(donors)) // 3
    K = 0.5 * (np.equal.outer(sibs, sibs) + np.eye(len(donors)))
    return pd.DataFrame(K, donors, donors)


FITS = {
    "robust": lambda **more: ctmm.fit(FORMULA, "batch", data=ctmm.load_example(), **more),
    "reml": lambda **more: ctmm.fit(
        FORMULA, "batch", data=ctmm.load_example(), method="reml", **more
    ),
    "he": lambda **more: ctmm.fit(
        FORMULA, data=ctmm.load_example(), method="he", structure="hom", **more
    ),
    "groups": lambda **more: ctmm.fit(
        "expr ~ C(celltype) * sex", by="sex", data=ctmm.load_example(), **more
    ),
    "trend": lambda **more: ctmm.fit(
        "expr ~ C(celltype) + PC1", by="PC1", data=ctmm.load_example(), structure="iid", **more
    ),
    "related": lambda **more: ctmm.fit(
        FORMULA, kinship=kinship(), data=ctmm.load_example(), structure="iid", **more
    ),
    "overall": lambda **more: ctmm.fit(
        "expr ~ sex", proportions=[f"prop_{name}" for name in TYPES], structure="hom",
        data=ctmm.load_example(kind="op"), method="ml", **more,
    ),
}  # fmt: skip


def said(res, name):
    """What a fit says under a name, as text, or its error."""
    try:
        value = getattr(res, name)
        value = value() if callable(value) else value
    except ctmm.CTMMError as error:
        return type(error), str(error)
    return value.to_json(double_precision=15) if hasattr(value, "to_json") else repr(value)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.filterwarnings("ignore:the estimate lies on the edge")
def test_tables_say_what_the_whole_fit_says(name):
    whole, small = FITS[name](), FITS[name](keep="tables")
    follow = ("vcomp", "A", "V", "corr", "cov_re", "bse", "bse_fe", "bse_re", "tvalues", "pvalues")
    follow += ("conf_int", "tidy", "cov_type", "converged", "notes", "celltypes", "formula")
    expected = {one: said(whole, one) for one in (*KEPT, *follow, "__repr__", "_repr_html_")}
    for stage in (small, pickle.loads(pickle.dumps(small))):
        assert {one: said(stage, one) for one in expected} == expected
    small.remove_data()  # which has nothing left to forget
    small.remove_data(keep="tables")
    assert {one: said(small, one) for one in expected} == expected
    assert "Converged" in str(small.summary())


def test_tables_do_not_grow_with_the_rows():
    df = ctmm.load_example()
    more = pd.concat([df.assign(donor=df["donor"] + end) for end in "abcdefgh"])
    sizes = {
        (keep, len(data)): len(pickle.dumps(ctmm.fit(FORMULA, data=data, method="ml", keep=keep)))
        for keep in ("all", "tables")
        for data in (df, more)
    }
    assert sizes["tables", len(df)] < sizes["all", len(df)] / 2
    assert sizes["tables", len(more)] < 1.05 * sizes["tables", len(df)]
    assert sizes["all", len(more)] > 5 * sizes["all", len(df)]


@pytest.fixture(scope="module")
def small():
    return FITS["reml"](keep="tables")


ROWS = {
    "endog": lambda res: res.model.endog,
    "donors": lambda res: res.donors,
    "fittedvalues": lambda res: res.fittedvalues,
    "random_effects": lambda res: res.random_effects,
    "augment": lambda res: res.augment(),
    "predict": lambda res: res.predict(ctmm.load_example(), random="none"),
    "plot_data": lambda res: res.plot_data("gene"),
    "to_json": lambda res: res.to_json(),
    "simulate": lambda res: res.simulate(1),
    "jackknife": lambda res: res.jackknife(),
    "bootstrap": lambda res: res.bootstrap(2),
    "contrasts": lambda res: res.contrasts(),
    "wald_test": lambda res: res.wald_test("sex[T.M] = 0"),
    "test_component": lambda res: res.test_component("batch"),
    "compare_lr_test": lambda res: res.compare_lr_test(FITS["reml"]()),
    "another test": lambda res: res.test_variance("lrt"),
    "another covariance": lambda res: res.table("jackknife"),
    "another level": lambda res: res.summary(alpha=0.1),
    "an option": lambda res: res.variance_explained(by_celltype=True),
    "other intervals": lambda res: res.conf_int(method="profile"),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_needs_rows_says_so(small, name):
    with pytest.raises(ctmm.DataError, match=r"needs rows .* keep='tables' has forgotten: fit"):
        ROWS[name](small)


def test_defaults_may_be_spelled_out(small):
    assert small.table(covariance=None, alpha=0.05).equals(small.table())
    assert small.means(None).equals(small.means())


def test_answers_are_copies(small):
    table = small.table()
    table["estimate"] = 0.0
    assert small.table().loc["batch", "estimate"] == small.vcomp["batch"] > 0.0


def test_rows_are_all_that_is_needed():
    whole, lean = FITS["reml"](), FITS["reml"](keep="rows")
    made = {"arrays", "numbers"}
    assert made <= vars(whole).keys() and not made & vars(lean).keys()
    assert lean.fittedvalues.equals(whole.fittedvalues)
    assert lean.to_json() == whole.to_json()


def test_kept_methods_have_defaults():
    """What is asked by default must be answerable without arguments."""
    for name in KEPT:
        value = inspect.getattr_static(ctmm.CTMMResults, name)
        if inspect.isfunction(value):
            _, *rest = inspect.signature(value).parameters.values()
            assert all(one.default is not inspect.Parameter.empty for one in rest), name


def test_there_is_no_other_word():
    with pytest.raises(ctmm.CTMMError, match="unknown keep 'none': choose from all, rows, tables"):
        ctmm.fit(FORMULA, data=ctmm.load_example(), keep="none")
