"""Tables to labelled arrays: coding, mask, observation matrix, random components, new data."""

from __future__ import annotations

import math
import pickle
import sys

import numpy as np
import pandas as pd
import patsy
import pytest
from conftest import quick_first

from ctmm_formula.design.arrays import aliased
from ctmm_formula.design.formula import parse
from ctmm_formula.design.labelled import build_design
from ctmm_formula.design.matrix import ALWAYS, Coding
from ctmm_formula.errors import DataError, FormulaError
from ctmm_formula.structures import resolve

EXACT = 1e-12  # the same algebra in another library
PRODUCTS = 1e-9  # absolute: products of centred columns that reach 1e5
ENGINES = ["patsy", "formulaic"]
TYPES = ["NK", "B", "T"]


def long_table(n_donors=12, seed=1):
    """One row per donor and cell type, with every kind of covariate."""
    rng = np.random.default_rng(seed)
    donors = np.repeat([f"d{k:02d}" for k in range(n_donors)], len(TYPES))
    n = len(donors)
    per_donor = lambda values: np.repeat(values, len(TYPES))  # noqa: E731
    return pd.DataFrame(
        {
            "donor": donors,
            "celltype": pd.Categorical(TYPES * n_donors, categories=TYPES),
            "expr": rng.normal(5, 1, n),
            "nu": rng.uniform(0.05, 0.2, n),
            "n_cells": rng.integers(10, 100, n),
            "batch": per_donor([f"b{k % 4}" for k in range(n_donors)]),
            "site": per_donor([f"s{k % 4 // 2}" for k in range(n_donors)]),
            "sex": per_donor(np.resize(["F", "M", "M", "F", "F"], n_donors)),
            "PC1": per_donor(rng.normal(0, 1000, n_donors)),
            "age": per_donor(rng.uniform(20, 80, n_donors)),
            "smoker": per_donor(np.resize([True, False, False, True, True, True, False], n_donors)),
            "year": per_donor(np.resize([2019, 2020, 2021], n_donors)),
            "stage": pd.Categorical(
                per_donor(np.resize(["mid", "low", "high", "low"], n_donors)),
                categories=["low", "mid", "high"],
                ordered=True,
            ),
            "HLA-A": rng.normal(size=n),
            "x": rng.normal(size=n),
        }
    )


def design(formula, data=None, random=None, **kwargs):
    return build_design(parse(formula, random), long_table() if data is None else data, **kwargs)


FORMULAS = [
    "C(celltype)",
    "celltype",
    "0 + celltype",
    "C(celltype) - 1",
    "C(celltype) + sex + PC1",
    "PC1 + PC1:sex + sex",
    "C(celltype, Treatment('B')) + age",
    "C(celltype, Treatment(reference='T')):x",
    "C(celltype, Sum) + sex",
    "C(celltype, Helmert)",
    "C(celltype, Poly) + sex",
    "C(celltype, Diff) + sex",
    "C(celltype, Treatment(2))",
    "0 + C(celltype, Sum):sex",
    "C(stage, Helmert):x + celltype",
    "0 + C(stage, Poly) + celltype",
    "C(celltype, levels=['T', 'NK', 'B'])",
    "celltype + I(x**2)",
    "celltype + np.log(age)",
    "celltype + np.log( age )+x",
    "celltype * sex",
    "celltype:sex",
    "0 + celltype:sex",
    "celltype + celltype:age",
    "celltype / x",
    "(celltype + sex + x)**2",
    "x*age*sex",
    "age:x + celltype:x",
    "celltype + bs(x, df=4)",
    "celltype + bs(x, df=5, degree=2)",
    "celltype + bs(x, knots=[-0.5, 0.5])",
    "cr(x, df=3) - 1",
    'celltype + Q("HLA-A")',
    "celltype + Q('HLA-A'):sex",
    "celltype + smoker",
    "0 + smoker",
    "celltype + smoker:x",
    "C(smoker)",
    "celltype + center(age)",
    "celltype + standardize(age)",
    "celltype + scale(PC1):sex",
    "celltype + stage",
    "C(stage, Sum) + sex",
    "celltype + C(year)",
    "celltype + year",
    "celltype + I(x > 0)",
    "celltype + C(x > 0)",
    "celltype + I(sex == 'F'):x",
    "sex",
    "1",
]


@pytest.mark.slow
@pytest.mark.parametrize("fixed", FORMULAS)
def test_both_engines_give_the_same_matrix_names_and_predictions(fixed):
    ours, other = (design(f"expr ~ {fixed}", engine=engine) for engine in ENGINES)
    assert ours.names == other.names
    np.testing.assert_allclose(other.X, ours.X, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(other.mean_rows, ours.mean_rows, rtol=EXACT, atol=EXACT)
    new = long_table(seed=2).sample(frac=1, random_state=3).iloc[:7]
    new["x"] = np.clip(new["x"], ours.frame.get("x", new["x"]).min(), None)  # inside the splines
    new["x"] = np.clip(new["x"], None, ours.frame.get("x", new["x"]).max())
    np.testing.assert_allclose(other.matrix(new)[0], ours.matrix(new)[0], rtol=EXACT, atol=EXACT)


def random_formula(seed):
    """A few interactions of any kinds of factors, with or without intercept."""
    rng = np.random.default_rng(seed)
    pool = ["celltype", "sex", "x", "age", "np.log(age)", "stage", "smoker", "bs(x, df=3)",
            "C(year)", "I(x > 0)", 'Q("HLA-A")', "C(celltype, Sum)", "center(x)",
            "C(stage, Helmert)", "C(stage, Poly)", "C(celltype, Diff)", "scale(age)"]  # fmt: skip
    terms = [
        rng.choice([":", "*"]).join(rng.choice(pool, size=rng.integers(1, 4), replace=False))
        for _ in range(rng.integers(1, 4))
    ]
    return rng.choice(["", "0 + "]) + " + ".join(terms)


@pytest.mark.parametrize("seed", quick_first(range(60), 10))
def test_both_engines_code_random_formulas_alike(seed):
    """Also where the matrix is not of full rank."""
    fixed = random_formula(seed)
    frame = design("expr ~ sex + " + " + ".join(["C(year)", "x", "age", "stage", "smoker"])).frame
    frame = frame.assign(**{"HLA-A": long_table()["HLA-A"]})
    ours, other = (Coding(fixed, frame, ALWAYS, engine) for engine in ENGINES)
    assert ours.names == other.names
    np.testing.assert_allclose(other.matrix(frame), ours.matrix(frame), rtol=EXACT, atol=PRODUCTS)


@pytest.mark.parametrize("fixed", [f for f in FORMULAS if "year" not in f])
def test_the_matrix_is_what_patsy_gives_on_the_clean_table(fixed):
    ours = design(f"expr ~ {fixed}")
    theirs = patsy.dmatrix(fixed, long_table(), return_type="dataframe")
    assert list(ours.names) == list(theirs.columns)
    np.testing.assert_array_equal(ours.X, theirs.to_numpy())


@pytest.mark.parametrize("engine", ENGINES)
def test_column_types_do_not_change_the_design(engine):
    """Text, nullable, object, integral floats, duplicated index, dict: the same numbers."""
    formula = "expr ~ celltype + sex + smoker + age + C(year) + x"
    plain = design(formula, random="batch", engine=engine)
    data = long_table()
    data["x"] = data["x"].astype("Float64")
    data["expr"] = data["expr"].astype(object)
    data["year"] = data["year"].astype(float)
    data["n_cells"] = data["n_cells"].astype("Int64")
    data["smoker"] = data["smoker"].astype("boolean")
    data["sex"] = data["sex"].astype("string")
    data["batch"] = data["batch"].astype("category")
    data.index = [7] * len(data)
    other = design(formula, data, random="batch", engine=engine)
    columns = {name: data[name].array for name in data.columns}
    for again in (other, design(formula, columns, random="batch", engine=engine)):
        assert again.names == plain.names
        np.testing.assert_array_equal(again.X, plain.X)
        np.testing.assert_array_equal(again.y, plain.y)
        np.testing.assert_array_equal(again.n_cells, plain.n_cells)
        assert again.random_levels == plain.random_levels
    assert list(other.index) == [7] * len(data)


def test_tables_that_turn_into_pandas_are_read():
    class Other:
        def to_pandas(self):
            return long_table()

    np.testing.assert_array_equal(design("expr ~ sex", Other()).X, design("expr ~ sex").X)


def test_levels_keep_their_order_and_text_is_sorted():
    data = long_table()
    assert design("expr ~ celltype", data).celltypes == ("NK", "B", "T")
    data["celltype"] = data["celltype"].astype(str)
    assert design("expr ~ celltype", data).celltypes == ("B", "NK", "T")
    data["celltype"] = data["celltype"].map({"B": 10, "NK": 2, "T": 1.0})
    by_number = design("expr ~ celltype", data)
    assert by_number.celltypes == ("1", "2", "10")
    assert by_number.names == ("Intercept", "celltype[T.2]", "celltype[T.10]")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_mask_over_all_columns_and_unused_levels_go(engine):
    data = long_table()
    data["expr"] = data["expr"].astype("Float64")
    where = {"expr": 0, "sex": 4, "batch": 8, "donor": 12, "celltype": 16, "nu": 20, "age": 24}
    data["age"] = data["age"].astype("Float64")
    for name, row in where.items():
        data.loc[row, name] = None
    data.loc[0, "nu"] = None  # counted once, under the first reason
    data.loc[28, "n_cells"] = None  # no reason to drop
    data.loc[[30, 31, 32, 33, 34, 35], "year"] = 1999
    data.loc[data["year"] == 1999, "x"] = np.nan
    out = design("expr ~ celltype + sex + age + C(year) + x", data, random="batch", engine=engine)
    gone = sorted([*where.values(), *range(30, 36)])
    np.testing.assert_array_equal(out.rows, np.setdiff1d(np.arange(len(data)), gone))
    reasons = {f"missing {name}": 1 for name in where} | {"missing x": 6}
    assert out.dropped == reasons
    assert "13 rows dropped" in out.notes[0]
    assert not any("1999" in name for name in out.names)
    assert out.frame.index.equals(pd.RangeIndex(len(out.rows)))
    np.testing.assert_array_equal(out.y, data["expr"].to_numpy(float, na_value=np.nan)[out.rows])
    kept = list(out.rows).index(28)
    assert np.isnan(out.frame["n_cells"][kept]) and np.isfinite(out.n_cells).all()
    np.testing.assert_allclose(out.proportions.sum(axis=1), 1.0, rtol=EXACT)
    assert out.X.shape == (len(out.rows), len(out.names))


def test_labels_and_observation_matrix():
    data = long_table().sample(frac=1, random_state=0).drop(columns="n_cells")
    out = design("np.log(expr) ~ celltype", data)
    assert out.kind == "ctp"
    assert out.donors == tuple(f"d{k:02d}" for k in range(12))
    np.testing.assert_array_equal(np.array(out.donors)[out.donor_codes], data["donor"])
    np.testing.assert_array_equal(np.array(out.celltypes)[out.H.argmax(axis=1)], data["celltype"])
    np.testing.assert_array_equal(out.H.sum(axis=1), 1.0)
    np.testing.assert_array_equal(out.y, np.log(data["expr"]))
    np.testing.assert_array_equal(out.nu, data["nu"])
    assert out.n_cells is None
    assert list(out.index) == list(data.index)
    assert out.response_name == "np.log(expr)"


def test_the_cell_type_column_is_found():
    data = long_table().rename(columns={"celltype": "kind"})
    assert design("expr ~ C(kind) + sex + C(year)", data).celltype_col == "kind"
    assert design("expr ~ sex", data, celltype="kind").celltype_col == "kind"
    data["day"] = data["kind"].cat.codes
    assert design("expr ~ C(day) + sex", data).celltypes == ("0", "1", "2")
    with pytest.raises(DataError, match=r"which column.*'day', 'kind' would all do"):
        design("expr ~ C(day) + kind", data)
    with pytest.raises(DataError, match=r"which column.*no factor of the formula fits"):
        design("expr ~ sex + age", data)


def test_shares_come_from_cells_or_a_column():
    data = long_table()
    data["share"] = data["n_cells"] / data.groupby("donor")["n_cells"].transform("sum")
    wide = data.pivot(index="donor", columns="celltype", values="share").to_numpy()
    np.testing.assert_allclose(design("expr ~ sex", data).proportions, wide, rtol=EXACT)
    by_column = design("expr ~ sex", data, proportions="share")
    assert by_column.kind == "ctp"
    np.testing.assert_allclose(by_column.proportions, wide, rtol=EXACT)
    few = design("expr ~ sex", data.iloc[1:])  # a missing pair has no share
    assert few.proportions[0, 0] == 0
    np.testing.assert_allclose(few.proportions.sum(axis=1), 1.0, rtol=EXACT)


# ---------------------------------------------------------------------------------------------
# means


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "fixed",
    ["celltype*sex + age", "0 + celltype + age", "C(celltype, Sum):sex + np.log(age)", "sex",
     "C(celltype, Treatment('B'))*bs(x, df=4)"],
)  # fmt: skip
def test_mean_rows_average_the_prediction_over_all_rows(fixed, engine):
    data = long_table().iloc[2:]
    out = design(f"expr ~ {fixed}", data, engine=engine)
    b = np.random.default_rng(0).normal(size=len(out.names))
    for c, name in enumerate(out.celltypes):
        moved = data.assign(celltype=name)
        assert out.mean_rows[c] @ b == pytest.approx((out.matrix(moved)[0] @ b).mean(), abs=1e-9)


def test_mean_rows_without_covariates_are_the_cell_types():
    np.testing.assert_array_equal(design("expr ~ 0 + celltype").mean_rows, np.eye(3))
    out = design("expr ~ sex")
    np.testing.assert_array_equal(out.mean_rows, np.tile(out.X.mean(axis=0), (3, 1)))


def test_a_fixed_part_without_means_names_the_cell_type_column():
    data = long_table()
    assert design("expr ~ sex").one_mean == "celltype"
    assert design("expr ~ celltype").one_mean == ""
    # columns that say the cell type do as well as the cell type; fewer do not
    dummies = {name: (data["celltype"] == name) * 1.0 for name in data["celltype"].unique()}
    data = data.assign(**{f"is_{k}": v for k, v in enumerate(dummies.values())})
    assert design("expr ~ is_0 + is_1 + sex", data).one_mean == ""
    assert design("expr ~ is_0 + sex", data).one_mean == "celltype"


# ---------------------------------------------------------------------------------------------
# random effects


def test_random_components_by_hand():
    data = long_table()
    out = design("expr ~ celltype + (1|site/batch) + (celltype|batch)", data)
    assert out.random_names == ("site", "site:batch", "batch[NK]", "batch[B]", "batch[T]")
    levels = dict(zip(out.random_names, out.random_levels, strict=True))
    assert levels["site"] == ("s0", "s1")
    assert levels["site:batch"] == ("s0:b0", "s0:b1", "s1:b2", "s1:b3")
    crossed = data["site"] + ":" + data["batch"]
    for name, component in zip(out.random_names, out.random, strict=True):
        label = np.array(levels[name])[component.codes]
        cell = name.partition("[")[2].rstrip("]")
        expected = {"site": data["site"], "site:batch": crossed}.get(name, data["batch"])
        on = np.ones(len(data)) if not cell else (data["celltype"] == cell).to_numpy(float)
        np.testing.assert_array_equal(component.values, on)
        np.testing.assert_array_equal(label[on > 0], expected[on > 0])


def test_levels_absent_from_a_cell_type_have_no_effect_there():
    data = long_table()
    data = data[~((data["batch"] == "b1") & (data["celltype"] == "B"))]
    out = design("expr ~ celltype", data, {"batch": "celltype"})
    assert out.random_levels[1] == ("b0", "b2", "b3")
    assert out.random_levels[0] == out.random_levels[2] == ("b0", "b1", "b2", "b3")
    component, used = out.random[1], out.H[:, 1] > 0
    label = np.array(out.random_levels[1])[component.codes[used]]
    np.testing.assert_array_equal(label, data["batch"][used])
    assert component.codes.max() == 2


def test_group_labels_from_numbers_read_as_whole_numbers():
    data = long_table()
    data["batch"] = data["batch"].str[1:].astype(float) + 9
    assert design("expr ~ sex", data, "batch").random_levels == (("9", "10", "11", "12"),)


def test_a_covariate_that_separates_batches_is_fine():
    data = long_table()
    data["lab"] = data["batch"].isin(["b0", "b1"]).astype(float)
    assert design("expr ~ celltype + lab", data, "batch").random_names == ("batch",)


@pytest.mark.parametrize("structure", ["hom", "free"])
def test_the_model_has_the_rows_in_its_own_order(structure):
    data = long_table().sample(frac=1, random_state=5)
    out = design("expr ~ celltype + (1|batch)", data)
    model = out.model(resolve(structure, out.celltypes))
    np.testing.assert_array_equal(model.unsort(model.y), out.y)
    np.testing.assert_array_equal(model.unsort(model.X), out.X)
    np.testing.assert_array_equal(model.unsort(model.donors[model.row_donor]), out.donor_codes)
    assert (model.nobs, model.n_donors) == (len(data), 12)
    assert model.n_components == {"hom": 2, "free": 5}[structure]


# ---------------------------------------------------------------------------------------------
# overall pseudobulk


def overall_table(n_donors=12, seed=4):
    rng = np.random.default_rng(seed)
    data = long_table(n_donors)[::3].drop(columns="celltype").reset_index(drop=True)
    P = rng.dirichlet([3.0, 2.0, 1.0], n_donors)
    return data.assign(**{f"prop_{name}": P[:, k] for k, name in enumerate(TYPES)})


PROPS = [f"prop_{name}" for name in TYPES]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fixed", ["sex + age", "0 + sex + age", "age + sex - 1"])
def test_overall_pseudobulk_has_proportions_for_an_intercept(fixed, engine):
    data = overall_table()
    out = design(f"expr ~ {fixed}", data, "batch", proportions=PROPS, engine=engine)
    P = data[PROPS].to_numpy()
    assert out.kind == "op"
    assert out.celltype_col is None
    assert out.celltypes == ("NK", "B", "T")
    assert out.names == ("celltype[NK]", "celltype[B]", "celltype[T]", "sex[T.M]", "age")
    np.testing.assert_array_equal(out.H, P)
    np.testing.assert_allclose(out.proportions, P, rtol=1e-15)
    male = (data["sex"] == "M").to_numpy(float)
    np.testing.assert_array_equal(out.X, np.column_stack([P, male, data["age"]]))
    means = np.hstack([np.eye(3), np.tile([male.mean(), data["age"].mean()], (3, 1))])
    np.testing.assert_allclose(out.mean_rows, means, rtol=EXACT)
    X, frame = out.matrix(data[::-1])
    np.testing.assert_array_equal(X, out.X[::-1])
    assert list(frame.index) == list(data.index[::-1])
    with pytest.raises(DataError, match=r"must sum to one.*row 1"):
        out.matrix(data.iloc[[3, 0]].assign(prop_T=[data["prop_T"][3], 0.99]))


def test_proportions_from_a_table_of_donors_by_cell_types():
    data = overall_table()
    table = data.set_index("donor")[PROPS].rename(columns=lambda name: name.removeprefix("prop_"))
    shuffled = table.sample(frac=1, random_state=1)
    by_columns = design("expr ~ sex", data, proportions=PROPS)
    for proportions in (shuffled, shuffled.reset_index()):
        out = design("expr ~ sex", data[::-1], proportions=proportions)
        assert out.names == by_columns.names
        np.testing.assert_array_equal(out.X, by_columns.X[::-1])
    with pytest.raises(DataError, match="no row for donor 'd03'"):
        design("expr ~ sex", data, proportions=shuffled.drop(index="d03"))
    with pytest.raises(DataError, match="several rows for one donor"):
        design("expr ~ sex", data, proportions=pd.concat([table, table.iloc[:1]]))


def test_celltype_specific_random_effects_in_overall_pseudobulk_weigh_by_proportion():
    data = overall_table()
    out = design("expr ~ 1", data, "(celltype|batch)", proportions=PROPS)
    assert out.random_names == ("batch[NK]", "batch[B]", "batch[T]")
    for component, name in zip(out.random, PROPS, strict=True):
        np.testing.assert_array_equal(component.values, data[name])
        np.testing.assert_array_equal(
            np.array(out.random_levels[0])[component.codes], data["batch"]
        )


def test_missing_proportions_are_a_reason_to_drop():
    data = overall_table()
    data.loc[2, "prop_B"] = np.nan
    out = design("expr ~ sex", data, proportions=PROPS)
    assert out.dropped == {"missing prop_B": 1}
    assert len(out.donors) == 11


# ---------------------------------------------------------------------------------------------
# new data and storage


@pytest.mark.parametrize("engine", ENGINES)
def test_new_data_are_coded_as_the_training_rows_were(engine):
    data = long_table()
    out = design(
        "expr ~ C(celltype) + standardize(age) + C(year) + smoker + bs(x, df=3)", data,
        engine=engine,
    )  # fmt: skip
    part = data.iloc[[5]].drop(columns=["expr", "nu", "donor", "n_cells"])
    part["celltype"] = part["celltype"].astype(str)
    part["year"] = part["year"].astype(float)
    part["smoker"] = part["smoker"].astype(object)
    X, frame = out.matrix(part)
    np.testing.assert_allclose(X, out.X[[5]], rtol=EXACT, atol=EXACT)
    assert list(frame.index) == [5]
    X, _ = out.matrix({name: part[name].to_list() for name in part.columns})
    np.testing.assert_allclose(X, out.X[[5]], rtol=EXACT, atol=EXACT)


def test_missing_covariates_of_new_data_give_rows_of_nan():
    out = design("expr ~ celltype + age + sex")
    new = long_table().iloc[:4].copy()
    new.loc[1, "age"] = np.nan
    new.loc[3, "sex"] = None
    X, frame = out.matrix(new)
    assert np.isnan(X).all(axis=1).tolist() == [False, True, False, True]
    np.testing.assert_array_equal(X[[0, 2]], out.X[[0, 2]])
    assert list(frame["donor"]) == list(new["donor"])


@pytest.mark.parametrize("engine", ENGINES)
def test_new_data_that_cannot_be_used(engine):
    out = design("expr ~ celltype + PC1", engine=engine)
    new = long_table().head(3)
    with pytest.raises(DataError, match=r"newdata has no column 'PC1'.*did you mean 'pc1'"):
        out.matrix(new.rename(columns={"PC1": "pc1"}))
    with pytest.raises(DataError, match=r"'celltype'.*it is in the index: use newdata.reset_index"):
        out.matrix(new.set_index("celltype"))
    with pytest.raises(DataError, match=r"'PC1' is inf in row 1"):
        out.matrix(new.assign(PC1=[0.0, np.inf, 1.0]))
    with pytest.raises(DataError, match="newdata must be a pandas DataFrame"):
        out.matrix(5)
    X, frame = out.matrix(new.head(0))
    assert X.shape == (0, 4) and len(frame) == 0


def test_observation_rows_of_new_data():
    out = design("expr ~ celltype + PC1")
    new = long_table().head(4).drop(columns="expr")
    new["celltype"] = ["T", "B", None, "NK"]
    H = [[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(out.observation(out.matrix(new)[1]), H)
    np.testing.assert_array_equal(out.observation(out.frame), out.H)
    bare = design("expr ~ PC1")
    with pytest.raises(DataError, match=r"newdata has no column 'celltype'.*random='none'"):
        bare.observation(bare.matrix(new[["PC1"]])[1])
    assert out.n_possible == design("expr ~ celltype", long_table().iloc[1:]).n_possible == 36


def test_observation_rows_of_mixtures():
    data = overall_table()
    out = design("expr ~ sex", data, proportions=PROPS)
    np.testing.assert_array_equal(out.observation(out.matrix(data)[1]), out.H)
    assert out.n_possible == len(data)


def test_donors_and_groups_of_new_data_are_labels_and_may_be_new():
    data = long_table()
    data["batch"] = data["batch"].str[1:].astype(float)
    out = design("expr ~ sex", data, "batch")
    new = data.iloc[[0, 3]].assign(donor=["d00", "new"], batch=[3.0, 17.0])
    _, frame = out.matrix(new)
    assert list(frame["donor"]) == ["d00", "new"]
    assert list(frame["batch"]) == ["3", "17"]
    assert out.random_levels == (("0", "1", "2", "3"),)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "fixed, name, value",
    [
        ("celltype + sex", "sex", "X"),
        ("celltype + C(year)", "year", 1999),
        ("sex", "celltype", "Mono"),
        ("celltype + stage", "stage", "worst"),
    ],
)
def test_unseen_levels_are_errors(fixed, name, value, engine):
    out = design(f"expr ~ {fixed}", engine=engine)
    new = long_table().iloc[:4].copy()
    new[name] = new[name].astype(object)
    new.iloc[2, new.columns.get_loc(name)] = value
    seen = "; the fit has seen '"
    with pytest.raises(FormulaError, match=f"column '{name}' .*: '{value}' in row 2{seen}"):
        out.matrix(new)


@pytest.mark.parametrize("engine", ENGINES)
def test_unseen_levels_of_a_column_used_both_ways_are_errors(engine):
    out = design("expr ~ celltype + C(year) + x:np.log(year)", engine=engine)
    new = long_table().iloc[:4].copy()
    new["year"] = 1999
    with pytest.raises(FormulaError, match=r"cannot be computed.*1999"):
        out.matrix(new)


def shifted(values):
    return values - 1


@pytest.mark.parametrize("engine", ENGINES)
def test_designs_can_be_stored(engine):
    env = {"shifted": shifted, "math": math, "ref": "T", "C": 5, "unused": sys}
    formula = "I(expr * math.pi) ~ C(celltype, Treatment(ref)) + shifted(age) + center(x)"
    out = design(formula, random="batch", engine=engine, env=env)
    assert "C(celltype, Treatment(ref))[T.NK]" in out.names
    assert set(out.coding.context) == {"np", "numpy", "shifted", "math", "ref"}
    again = pickle.loads(pickle.dumps(out))
    for name in ("y", "nu", "X", "H", "mean_rows", "rows"):
        np.testing.assert_array_equal(getattr(again, name), getattr(out, name))
    assert again.names == out.names
    assert again.coding.names == out.names
    new = long_table(seed=9)
    np.testing.assert_array_equal(again.matrix(new)[0], out.matrix(new)[0])


def test_functions_that_cannot_be_stored_are_named():
    out = design("expr ~ celltype + f(age)", env={"f": lambda v: v + 1})
    with pytest.raises(DataError, match="'f', a lambda"):
        pickle.dumps(out)


def test_a_design_without_response_or_noise_waits_for_them():
    spec = parse("~ celltype + sex", "batch", response_required=False)
    out = build_design(spec, long_table().drop(columns=["expr", "nu"]), noise=None)
    assert np.isnan(out.y).all()
    assert np.isnan(out.nu).all()
    assert out.model(resolve("hom", out.celltypes)).nobs == len(out.y)


def test_the_users_table_is_not_touched():
    data = long_table()
    before = data.copy(deep=True)
    out = design("expr ~ celltype * sex + C(year)", data, "batch")
    out.frame["expr"] = 0.0
    out.y[:] = 0.0
    pd.testing.assert_frame_equal(data, before)


def test_formulaic_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "formulaic", None)
    with pytest.raises(DataError, match="pip install formulaic"):
        design("expr ~ sex", engine="formulaic")
    assert design("expr ~ sex").names == ("Intercept", "sex[T.M]")


# ---------------------------------------------------------------------------------------------
# rank


def test_units_do_not_make_columns_collinear():
    data = long_table()
    for name, unit in (("PC1", 1e9), ("age", 1e-9), ("x", 1e-12)):
        data[name] = data[name] * unit
    assert design("expr ~ celltype + PC1 + age + x + sex + C(year)", data).X.shape[1] == 9


def test_aliased_columns_are_named_with_what_they_depend_on():
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(2, 20))
    X = np.column_stack([np.ones(20), x, 1e-6 * z, 1e6 * (x + z), np.full(20, 3.0), np.zeros(20)])
    found = aliased(X, ["Intercept", "x", "z", "sum", "flat", "none"])
    assert found == {
        "sum": "depends on 'x', 'z'",
        "flat": "is constant",
        "none": "is zero in every row",
    }
    X[:, 3] += 1e-3 * rng.normal(size=20)  # not a combination any more, by a billionth
    assert "sum" not in aliased(X, ["Intercept", "x", "z", "sum", "flat", "none"])
