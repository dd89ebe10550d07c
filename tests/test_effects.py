"""Effects of a variable by cell type: rows by hand, dense algebra, statsmodels and metafor."""

import json
import warnings

import dense_kr
import dense_robust
import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from conftest import SHARED, not_here

import ctmm_formula as ctmm
from ctmm_formula.design.grids import differences
from ctmm_formula.inference.differences import independent
from ctmm_formula.inference.testing import TestResult

SAME = 1e-9  # the same algebra in another order
METAFOR = 5.1e-5  # four digits printed
KANG = "data/kang_isg15.csv"


def close(got, want, rtol=SAME):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-12)


@pytest.fixture(scope="module")
def df():
    """The example with three arms and an age, some donors without some types."""
    table = ctmm.load_example()
    number = table["donor"].astype("category").cat.codes.to_numpy()
    arms = np.array(["control", "mild", "severe"])
    return table.assign(arm=arms[number % 3], age=30.0 + (number * 7) % 41)


def fit(formula, df, **options):
    return ctmm.fit(f"expr ~ {formula}", data=df, **options)


def rows_of(res, changes):
    """Rows of the effects by patsy's columns of new data, one per cell type."""
    new = [
        {name: [value] * len(res.celltypes) for name, value in at.items()} for at in changes
    ]  # fmt: skip
    X = [res.design.matrix({"celltype": list(res.celltypes), **at})[0] for at in new]
    return X[1] - X[0]


FORMULAS = (
    "C(celltype) * sex + PC1", "0 + C(celltype) + C(celltype):sex + PC1",
    "C(celltype, Sum) * C(sex, Helmert) + PC1",
)  # fmt: skip


@pytest.mark.parametrize("formula", FORMULAS[:2])
@pytest.mark.parametrize("counted", [True, False])
def test_tables_and_tests_are_those_of_dense_algebra(df, formula, counted):
    """Robust where numbers of cells are known, whatever the fit; else Kenward and Roger."""
    table = df if counted else df.drop(columns="n_cells")
    res = fit(formula, table, random="batch", method="reml")
    found = res.effects("sex")
    L = rows_of(res, [{"sex": "F", "PC1": 0.0}, {"sex": "M", "PC1": 0.0}])
    unlike, mean = L[1:] - L[0], L.mean(axis=0, keepdims=True)
    if counted:
        want = dense_robust.fit(res.arrays)

        def f(L):
            test = dense_robust.cr2(want, L)
            return test.F, test.df_denom

        one = dense_robust.cr2(want, L)
        value, se, t, df_ = L @ want.beta, np.sqrt(np.diag(one.cov)), one.t, one.df
    else:
        at, b = dense_kr.adjusted(res.arrays, res.estimate.theta), res.fe_params.to_numpy()

        def f(L):
            return dense_kr.scaled_f(at, L, b)[:2]

        value, se = L @ b, np.sqrt(np.diag(L @ at.cov @ L.T))
        t, df_ = value / se, [dense_kr.satterthwaite(at, row) for row in L]
    own = found.table
    assert list(own.index) == list(res.celltypes)
    close(own["estimate"], value)
    close(own["std_error"], se)
    close(own["statistic"], t)
    close(own["df"], df_)
    for test, rows in ((found.omnibus, L), (found.heterogeneity, unlike)):
        F, denominator = f(rows)
        close([test.statistic, test.df[1]], [F, denominator], rtol=1e-7)
        assert test.df[0] == len(rows)
    F = f(mean)[0]
    close(found.mean_test.statistic**2, F, rtol=1e-7)
    close(found.mean["statistic"], found.mean_test.statistic)
    close(found.mean["estimate"], value.mean())
    for name, test in found.by_celltype.items():
        close([test.estimate, test.std_error, test.statistic, test.pvalue],
              own.loc[name, ["estimate", "std_error", "statistic", "p_value"]])  # fmt: skip


@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
@pytest.mark.parametrize("method", ["robust", "reml"])
def test_any_parametrisation_has_the_same_effects(df, engine, method):
    first, *others = (
        fit(one, df, method=method, formula_engine=engine).effects("sex") for one in FORMULAS
    )
    for other in others:
        assert list(other.mean.index) == ["M - F"]
        close(other.table, first.table, rtol=1e-6)
        for name, test in first.tests.items():
            close(other.tests[name].pvalue, test.pvalue, rtol=1e-6)


def test_levels_are_compared_with_the_reference(df):
    res = fit("C(celltype) * arm", df)
    found = res.effects("arm")
    assert list(found.mean.index) == ["mild - control", "severe - control"]
    assert found.omnibus.df[0] == 8 and found.heterogeneity.df[0] == 6
    assert found.mean_test.df[0] == 2 and found.by_celltype["day1"].df[0] == 2
    b = res.fe_params
    own = b["arm[T.severe]"] + b["C(celltype)[T.day2]:arm[T.severe]"]
    assert found.table.loc[("severe - control", "day2"), "estimate"] == pytest.approx(own)
    # a joint test does not depend on the reference; one comparison is the other turned round
    back = res.effects("arm", values=["severe", "mild", "control"])
    close(back.omnibus.pvalue, found.omnibus.pvalue)
    close(back.heterogeneity.pvalue, found.heterogeneity.pvalue)
    pair = res.effects("arm", values=["severe", "control"])
    close(pair.table["estimate"], -found.table.loc["severe - control", "estimate"])
    close(pair.table["p_value"], found.table.loc["severe - control", "p_value"])
    words = "C(celltype)[T.day2]:arm[T.severe] + arm[T.severe] = 0, "
    words += "C(celltype)[T.day2]:arm[T.mild] + arm[T.mild] = 0"
    close(found.by_celltype["day2"].pvalue, res.wald_test(words).pvalue)


def test_a_number_has_a_slope_and_a_bent_one_needs_values(df):
    res = fit("C(celltype) * age + sex", df)
    found = res.effects("age")
    assert list(found.mean.index) == ["age"]
    close(found.table.loc["day1", "estimate"],
          res.fe_params["age"] + res.fe_params["C(celltype)[T.day1]:age"])  # fmt: skip
    decades = res.effects("age", values=(30, 60))
    assert list(decades.mean.index) == ["60 - 30"]
    close(decades.table["estimate"], 30 * found.table["estimate"])
    close(decades.table["p_value"], found.table["p_value"], rtol=1e-7)
    curve = fit("C(celltype) + bs(age, df=3)", df)
    with pytest.raises(ctmm.FormulaError, match=r"no straight line in 'age'.*values=\(30, 70\)"):
        curve.effects("age")
    own = curve.effects("age", values=(35, 45, 65)).mean["estimate"]
    new = {"celltype": ["day0"] * 3, "age": [35, 45, 65]}
    predicted = curve.predict(new).to_numpy()
    close(own, predicted[1:] - predicted[0])


def test_what_the_effect_depends_on_is_held_and_said(df):
    res = fit("C(celltype) * sex + sex:age + arm", df)
    b, mean = res.fe_params, res.design.frame["age"].mean()
    own = b["sex[T.M]"] + b["C(celltype)[T.day1]:sex[T.M]"]
    averaged, fifty = res.effects("sex"), res.effects("sex", at={"age": 50})
    assert averaged.at == "averaged over 'age' of the rows of the fit" in repr(averaged)
    assert fifty.at == "at age = 50"
    slope = b[[name for name in b.index if name.startswith("sex") and name.endswith(":age")]]
    slope = slope["sex[M]:age"] - slope["sex[F]:age"] if len(slope) == 2 else slope.iloc[0]
    close(averaged.table.loc["day1", "estimate"], own + mean * slope)
    close(fifty.table.loc["day1", "estimate"], own + 50 * slope)
    assert res.effects("arm").at == ""


def test_one_common_effect_says_so(df):
    res = fit("C(celltype) + sex", df)
    found = res.effects("sex")
    assert found.table["estimate"].nunique() == 1
    assert found.omnibus.df[0] == 1
    close(found.omnibus.pvalue, found.mean_test.pvalue)
    close(found.omnibus.pvalue, res.wald_test("sex[T.M]").pvalue)
    assert np.isnan(found.heterogeneity.pvalue)
    assert "the formula gives all cell types the same effect" in repr(found)


def test_types_in_two_classes_differ_by_one_degree(df):
    """Two effects for four types."""
    res = fit("C(celltype) + sex + I((celltype == 'day3') * (sex == 'M'))", df)
    last = res.design.names[-1]
    found = res.effects("sex")
    assert found.omnibus.df[0] == 2 and found.heterogeneity.df[0] == 1
    close(found.heterogeneity.pvalue, res.wald_test({last: 0}).pvalue)
    close(found.omnibus.pvalue, res.wald_test({last: 0, "sex[T.M]": 0}).pvalue)


def test_one_cell_type_with_one_noise_is_the_analysis_of_variance():
    """Sigma^2 + nu is the mean square of residuals: F of ordinary least squares, exactly."""
    rng = np.random.default_rng(4)
    table = pd.DataFrame(
        {"donor": [f"d{k}" for k in range(24)], "celltype": "T", "nu": 0.05,
         "arm": np.tile(["a", "b", "c"], 8), "age": rng.normal(size=24),
         "expr": rng.normal(size=24)}
    )  # fmt: skip
    res = ctmm.fit("expr ~ arm + age", data=table, structure="hom", method="reml")
    ols = smf.ols("expr ~ arm + age", data=table).fit()
    found = res.effects("arm")
    test = ols.f_test("arm[T.b] = 0, arm[T.c] = 0")
    close([found.omnibus.statistic, found.omnibus.df[1]], [float(test.fvalue), 20], rtol=1e-6)
    close(found.table["p_value"], ols.pvalues[["arm[T.b]", "arm[T.c]"]], rtol=1e-6)
    close(found.table[["conf_low", "conf_high"]],
          ols.conf_int().loc[["arm[T.b]", "arm[T.c]"]], rtol=1e-6)  # fmt: skip
    assert "one cell type" in found.heterogeneity.note


@pytest.mark.skipif(bool(not_here(KANG)), reason=not_here(KANG) or "there")
def test_kang_as_metafor():
    table = pd.read_csv(SHARED / KANG).astype({"ind": str})
    res = ctmm.fit("y ~ 0 + C(celltype) + C(celltype):stim", random="ind", structure="iid",
                   method="reml", bounds="nonnegative", data=table)  # fmt: skip
    own = res.effects("stim", covariance="model").table[["estimate", "std_error"]]
    for name, published in (
        ("CD8 T cells", (2.9907, 0.1297)),
        ("CD14+ Monocytes", (5.7893, 0.1066)),
    ):
        assert own.loc[name].tolist() == pytest.approx(published, abs=METAFOR)
    assert own["estimate"].idxmin() == "CD8 T cells"
    assert own["estimate"].idxmax() == "CD14+ Monocytes"


@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
@pytest.mark.parametrize("lost", ["day0", "day2"])
def test_a_type_without_cases_is_nan_with_a_reason(df, lost, engine):
    table = df[(df["celltype"] != lost) | (df["sex"] != "M")]
    with pytest.warns(ctmm.CTMMWarning, match="no rows for combinations .* is NaN"):
        res = fit("C(celltype) * sex", table, structure="hom", formula_engine=engine)
    found = res.effects("sex")
    assert found.notes == (f"{lost}: no rows with sex = 'M'",)
    assert found.table.loc[lost].isna().all()
    assert found.by_celltype[lost].note == "no rows with sex = 'M'"
    assert found.omnibus.df[0] == 3 and found.omnibus.note == f"without {found.notes[0]}"
    assert found.mean_test.note == found.omnibus.note
    others = [name for name in res.celltypes if name != lost]
    close(found.mean["estimate"], found.table.loc[others, "estimate"].mean())
    # as with a column less, whatever the coding
    X = "0 + C(celltype) + " + " + ".join(f"I((celltype == '{c}') * (sex == 'M'))" for c in others)
    same = fit(X, table, structure="hom")
    close(found.table.loc[others, "estimate"], same.fe_params.iloc[4:])
    close(found.table.loc[others, "p_value"], same.pvalues.iloc[4:7], rtol=1e-6)
    assert np.isnan(res.means().loc[lost, "estimate"])
    assert "do not tell the mean of every cell type" in res.test_mean().note
    new = {"celltype": [lost, lost, others[0]], "sex": ["F", "M", "M"]}
    assert np.isnan(res.predict(new)).tolist() == [False, True, False]
    again = ctmm.CTMMResults.from_json(res.to_json())
    assert again.effects("sex").table.equals(found.table)
    with pytest.raises(ctmm.DataError, match="not of full rank"):
        fit("C(celltype) * sex + I(2 * PC1) + PC1", table)


@pytest.mark.parametrize(("name", "case"), [("sex", "M"), ("arm", "severe")])
def test_a_type_of_one_case_leaves_the_others_their_joint_tests(df, name, case):
    """Its effect has no robust error; the others' tests are those of their own rows."""
    one = df["donor"][(df[name] == case) & (df["celltype"] == "day3")].iloc[0]
    table = df[(df["celltype"] != "day3") | (df[name] != case) | (df["donor"] == one)]
    res = fit(f"C(celltype) * {name}", table, structure="hom")
    found, why = res.effects(name), "a fixed effect rests on one donor"
    lost = found.table.xs("day3", level="celltype") if name == "arm" else found.table.loc[["day3"]]
    assert lost["estimate"].notna().all() and np.isnan(lost["std_error"].iloc[-1])
    assert np.isnan(found.by_celltype["day3"].pvalue) and why in found.by_celltype["day3"].note
    assert any(note.startswith(f"day3: {why}") for note in found.notes)
    rows = differences(res.design, name).rows[:, :3]
    p, K = rows.shape[2], len(res.vcomp)
    alone = {
        "omnibus": rows.reshape(-1, p), "heterogeneity": (rows[:, :2] - rows[:, 2:]).reshape(-1, p),
        "mean": rows.mean(axis=1),
    }  # fmt: skip
    for kind, L in alone.items():
        test, want = found.tests[kind], res.wald_test(np.pad(L, ((0, 0), (0, K))), "robust")
        close(test.pvalue, want.pvalue, rtol=1e-6)
        assert f"without day3: {why}" in test.note
    close(found.mean["estimate"], alone["mean"] @ res.fe_params)
    assert found.mean.notna().all(axis=None)
    scan = ctmm.fit_genes(
        f"~ C(celltype) * {name}", data=table.drop(columns=["expr", "nu"]), expr=table[["expr"]],
        nu=table[["nu"]].set_axis(["expr"], axis=1), structure="hom", tests=f"effects:{name}",
    )  # fmt: skip
    close(scan.table[f"p_effects:{name}"].iloc[0], found.omnibus.pvalue, rtol=1e-6)
    close(scan.table[f"p_effects:{name}_mean"].iloc[0], found.mean_test.pvalue, rtol=1e-6)


def test_overall_pseudobulk_has_effects_by_type_where_the_formula_has(df):
    table = df.pivot_table(index="donor", values=["expr", "nu", "PC1"]).reset_index()
    sex = df.drop_duplicates("donor").set_index("donor")["sex"]
    rng = np.random.default_rng(2)
    share = rng.dirichlet([5.0, 5.0], len(table))
    table = table.assign(sex=table["donor"].map(sex).astype(str), pT=share[:, 0], pB=share[:, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        res = ctmm.fit("expr ~ sex + PC1", data=table, proportions=["pT", "pB"], structure="hom")
    found = res.effects("sex")
    assert list(found.table.index) == list(res.celltypes)
    close(found.table["estimate"], [res.fe_params["sex[T.M]"]] * 2)
    assert np.isnan(found.heterogeneity.pvalue)


def test_what_cannot_be_asked_names_the_choices(df):
    res = fit("C(celltype) * sex + age", df)
    with pytest.raises(ctmm.CTMMError, match=r"unknown variable 'sexx' .*'sex', 'age'"):
        res.effects("sexx")
    with pytest.raises(ctmm.CTMMError, match="for cell types see means"):
        res.effects("celltype")
    with pytest.raises(ctmm.CTMMError, match="'sex' has no level 'X': choose from 'F', 'M'"):
        res.effects("sex", values=["F", "X"])
    with pytest.raises(ctmm.CTMMError, match="two or more different values"):
        res.effects("sex", values=["F", "F"])
    with pytest.raises(ctmm.CTMMError, match="at= cannot hold 'sex'"):
        res.effects("sex", at={"sex": "F"})
    with pytest.raises(ctmm.CTMMError, match="'age' holds numbers"):
        res.effects("sex", at={"age": "old"})
    with pytest.raises(ctmm.CTMMError, match="at= takes values by column"):
        res.effects("sex", at=50)
    with pytest.raises(ctmm.CTMMError, match="alpha"):
        res.effects("sex", alpha=2)


def test_effects_show_themselves_and_become_plain_values(df):
    found = fit("C(celltype) * arm", df, structure="hom").effects("arm")
    text, page = repr(found), found._repr_html_()
    for word in ("mild - control", "day3", "(mean)", "in all cell types", "robust"):
        assert word in text and word in page
    plain = json.loads(json.dumps(found.to_dict()))
    assert TestResult.from_dict(plain["tests"]["omnibus"]).pvalue == found.omnibus.pvalue
    assert len(plain["table"]) == 8 and plain["table"][0]["celltype"] == "day0"


def test_rows_that_say_the_same_are_one():
    L = np.array([[1.0, 0.0, 2e6], [0.0, 1.0, 0.0], [1.0, 1.0, 2e6]])
    kept = independent(L)
    assert kept.shape == (2, 3)
    close(np.linalg.lstsq((kept / [1, 1, 2e6]).T, (L / [1, 1, 2e6]).T, rcond=None)[0].T
          @ kept / [1, 1, 2e6], L / [1, 1, 2e6])  # fmt: skip
    assert independent(L[:2]) is not None and (independent(L[:2]) == L[:2]).all()
    assert len(independent(np.zeros((2, 3)))) == 0


def unlike(seed, factor, few=18, donors=60):
    """Normal pseudobulk of three types; the last `few` donors vary more."""
    rng = np.random.default_rng(seed)
    case = np.arange(donors) >= donors - few
    effect = 0.5 * rng.normal(size=(donors, 1)) + 0.3 * rng.normal(size=(donors, 3))
    effect *= np.where(case, np.sqrt(factor), 1.0)[:, None]
    donor, celltype = np.divmod(np.arange(3 * donors), 3)
    cells = rng.integers(20, 100, len(donor))
    nu = 4.0 / cells * rng.chisquare(cells - 1) / (cells - 1)
    y = effect[donor, celltype] + np.sqrt(4.0 / cells) * rng.normal(size=len(donor))
    return pd.DataFrame(
        {"donor": donor, "celltype": np.array(["B", "NK", "T"])[celltype], "expr": y, "nu": nu,
         "n_cells": cells, "x": rng.normal(size=donors)[donor], "row": np.arange(len(donor)) % 2,
         "status": np.where(case, "case", "control")[donor]}
    )  # fmt: skip


def test_effects_say_when_groups_vary_unlike():
    table = unlike(1, 6.0)
    table["status"] = pd.Categorical(table["status"], ["control", "case"])
    res = fit("C(celltype) * status", table)
    said = res.effects("status").notes
    p = fit("C(celltype) * status", table, by="status").test_groups().pvalue
    assert len(said) == 1 and p < 0.05
    assert said[0].startswith("donors of case vary more than those of control (test of groups, p =")
    assert f"p = {p:.2g}" in said[0] and "robust to it" in said[0] and "by='status'" in said[0]
    assert said[0] in repr(res.effects("status"))
    model = fit("C(celltype) * status", table, method="reml").effects(
        "status", covariance="kenward-roger"
    )
    assert "may be too small" in model.notes[0]
    moments = fit("C(celltype) * status", table, method="he")
    assert "robust to it" in moments.effects("status", covariance="jackknife").notes[0]
    # groups that are fitted each by itself, numbers, and what differs within donors say nothing
    assert not fit("C(celltype) * status", table, by="status").effects("status").notes
    assert not fit("C(celltype) * x", table).effects("x").notes
    assert not fit("C(celltype) + C(row)", table).effects("row").notes
    assert not fit("C(celltype) * status", unlike(2, 1.0)).effects("status").notes


def test_of_three_groups_the_one_that_differs_is_named():
    table = unlike(3, 6.0, few=20)
    third = (table["donor"] < 20) & (table["status"] == "control")
    table["arm"] = np.where(third, "mild", table["status"])
    said = fit("C(celltype) * arm", table).effects("arm").notes
    assert len(said) == 1 and "than those of the others (test of groups" in said[0]


@pytest.mark.parametrize("name", [["sex"], -1, None, np.zeros((2, 2))], ids=str)
def test_what_is_no_name_of_a_variable_is_refused(name):
    res = ctmm.fit("expr ~ C(celltype) * sex", data=ctmm.load_example())
    with pytest.raises(ctmm.CTMMError, match="unknown variable"):
        res.effects(name)


def test_groups_of_two_numbers_are_groups():
    """Donors of one vary more: said of 0 and 1 as of two texts, after any fit."""
    rng = np.random.default_rng(3)
    donor, celltype = np.divmod(np.arange(300), 3)
    st = donor % 2
    sd = np.where(st == 1, 2.0, 1.0)
    y = sd * (rng.normal(size=100)[donor] + 0.5 * rng.normal(size=300)) + 0.2 * rng.normal(size=300)
    table = pd.DataFrame(
        {"donor": [f"d{k:03d}" for k in donor], "celltype": np.array(list("BTX"))[celltype],
         "st": st, "expr": y, "nu": 0.04, "n_cells": 40.0}
    )  # fmt: skip
    for data in (table, table.drop(columns="n_cells")):
        for formula, name in (("C(celltype) * st", "st"), ("C(celltype) * C(st)", "st")):
            (note,) = fit(formula, data).effects(name).notes
            assert note.startswith("donors of 1 vary more than those of 0")


def test_a_type_with_the_name_of_another_test(df):
    table = df.assign(celltype=df["celltype"].replace({"day0": "mean"}))
    found = fit("C(celltype) * sex", table).effects("sex")
    assert found.tests["mean"] is found.mean_test
    assert found.tests["celltype mean"] is found.by_celltype["mean"]


def test_a_type_with_the_name_of_a_level_and_a_type():
    rng = np.random.default_rng(2)
    donor, celltype = np.divmod(np.arange(90), 3)
    types = np.array(["T", "b,T", "X"])
    table = pd.DataFrame(
        {"donor": [f"d{k}" for k in donor], "celltype": types[celltype], "nu": 0.1, "n_cells": 40.0,
         "arm": np.array(list("abc"))[donor % 3], "expr": rng.normal(size=90)}
    )  # fmt: skip
    res = fit("C(celltype) * arm", table)
    said = r"'arm\[b,T\]' would be the effect of level 'b' in cell type 'T' and another one: rename"
    with pytest.raises(ctmm.CTMMError, match=said):
        res.effects("arm")
    genes = {name: table[[column]].set_axis(["g"], axis=1)
             for name, column in (("expr", "expr"), ("nu", "nu"))}  # fmt: skip
    with pytest.raises(ctmm.CTMMError, match=f"effects:arm.*{said}"):
        ctmm.fit_genes("~ C(celltype) * arm", data=table, tests=["effects:arm"], **genes)
    two = table.assign(arm=table["arm"].replace("c", "b"))
    assert "b,T" in fit("C(celltype) * arm", two).effects("arm").by_celltype


def test_weights_that_are_missing_or_series(df):
    res = fit("C(celltype) * sex", df)
    with pytest.raises(ctmm.CTMMError, match="the weight of 'day3' is missing"):
        res.contrast({"day3": np.nan, "day0": -1.0})
    with pytest.raises(ctmm.CTMMError, match="the weight of 'day3' is missing"):
        res.contrast({"late": {"day3": np.nan, "day0": -1.0}})
    weights = {"day3": 1.0, "day0": -1.0}
    one = res.contrast({"late": weights})
    pd.testing.assert_frame_equal(one, res.contrast({"late": pd.Series(weights)}))


def test_contrasts_are_named_whatever_cell_types_are_called():
    """Commas in a name part no contrasts; an empty list of values is no value."""
    table = ctmm.load_example().replace(
        {"celltype": {"day3": "CD4+ T, naive", "day0": "CD14- M/DC"}}
    )
    res = ctmm.fit("expr ~ C(celltype) * sex", data=table)
    found = res.contrast(
        "CD4+ T, naive|M - CD4+ T, naive|F = CD14- M/DC|M - CD14- M/DC|F, day1 = 2"
    )
    assert found.index[1] == "day1 = 2" and found.index[0].count("CD4+ T, naive") == 2
    plain = ctmm.fit("expr ~ C(celltype) * sex", data=ctmm.load_example())
    same = plain.contrast(["day3|M - day3|F = day0|M - day0|F", "day1 = 2"])
    np.testing.assert_allclose(found["p_value"], same["p_value"], rtol=1e-8)
    with pytest.raises(ctmm.CTMMError, match="at= has no values for 'sex'"):
        res.means(at={"sex": []})


def test_names_with_two_blanks_in_a_scan(df):
    obs, expr, nu = ctmm.load_genes()
    obs = obs.assign(celltype=obs["celltype"].astype(str).replace({"day0": "day  0"}))
    scan = ctmm.fit_genes(
        "~ C(celltype)", data=obs, expr=expr.iloc[:, :2], nu=nu.iloc[:, :2],
        tests=["contrast:day  0 - day1"],
    )  # fmt: skip
    assert scan.table.filter(like="day  0 - day1").notna().any().any()
