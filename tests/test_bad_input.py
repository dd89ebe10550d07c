"""Bad input: every message names what is wrong, where, and what to do.

``CASES`` is a table; ``broken(case)`` gives the call, so that every function that takes a
formula and a table can be run through the same cases.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.design.arrays import bad_square
from ctmm_formula.design.formula import parse
from ctmm_formula.design.labelled import build_design
from ctmm_formula.engine.noise import unbiased_square
from ctmm_formula.errors import CTMMError, CTMMWarning, DataError, FormulaError

GOOD = "expr ~ C(celltype) + sex + PC1"
TYPES = ["B", "Mono", "T"]
PROPS = ["prop_B", "prop_Mono", "prop_T"]


def good_table(seed=0):
    """Twelve donors, three cell types, four batches."""
    rng = np.random.default_rng(seed)
    n_donors = 12
    data = pd.DataFrame(
        {
            "donor": np.repeat([f"d{k:02d}" for k in range(n_donors)], 3),
            "celltype": TYPES * n_donors,
            "expr": rng.normal(size=3 * n_donors),
            "nu": rng.uniform(0.05, 0.2, 3 * n_donors),
            "n_cells": rng.integers(10, 100, 3 * n_donors),
            "batch": np.repeat([f"b{k % 4}" for k in range(n_donors)], 3),
            "sex": np.repeat(np.resize(["F", "M", "M", "F", "F"], n_donors), 3),
            "PC1": np.repeat(rng.normal(size=n_donors), 3),
        }
    )
    return data


def overall_table():
    """The same donors as overall pseudobulk."""
    P = np.random.default_rng(1).dirichlet([2, 3, 4], 12)
    data = good_table().iloc[::3].drop(columns="celltype").reset_index(drop=True)
    return data.assign(**dict(zip(PROPS, P.T, strict=True)))


@dataclass(frozen=True)
class Case:
    """One way to go wrong: what changes, the class of the error, patterns of its message."""

    name: str
    error: type[CTMMError]
    patterns: list[str]
    formula: str = GOOD
    call: dict = field(default_factory=dict)
    change: Callable[[pd.DataFrame], object] = lambda data: data
    overall: bool = False


def broken(case: Case) -> tuple[str, dict, object]:
    """Formula, keyword arguments and data of a case."""
    call = {"proportions": PROPS, **case.call} if case.overall else dict(case.call)
    return case.formula, call, case.change(overall_table() if case.overall else good_table())


def run(formula, call, data):
    call = dict(call)
    return build_design(parse(formula, call.pop("random", None)), data, **call)


def put(column, rows, value):
    """Set some cells of one column."""

    def change(data):
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            data[column] = data[column].astype(object)
        data.loc[rows, column] = value
        return data

    return change


def assign(**columns):
    return lambda data: data.assign(**columns)


def cells(data):
    return pd.concat([data] * 20, ignore_index=True)


OVERALL = "expr ~ sex"
CASES = [
    # columns that are not there
    Case(
        "no noise",
        DataError,
        ["'nu'", "noise=", "pseudobulk"],
        change=lambda d: d.drop(columns="nu"),
    ),
    Case("mistyped noise", DataError, ["'Nu'", "did you mean 'nu'"], call={"noise": "Nu"}),
    Case(
        "mistyped covariate",
        DataError,
        ["'secs'", "did you mean 'sex'"],
        "expr ~ C(celltype) + secs",
    ),
    Case(
        "mistyped response",
        DataError,
        ["'exprs'", "response", "did you mean 'expr'"],
        "exprs ~ C(celltype)",
    ),
    Case("case of a name", DataError, ["'pc1'", "did you mean 'PC1'"], "expr ~ pc1"),
    Case(
        "mistyped batch",
        DataError,
        ["'bach'", "random effect", "did you mean 'batch'"],
        call={"random": "bach"},
    ),
    Case(
        "mistyped donor",
        DataError,
        ["'doner'", "did you mean 'donor'", "donor="],
        call={"donor": "doner"},
    ),
    Case(
        "mistyped cell type",
        DataError,
        ["'celtype'", "did you mean 'celltype'"],
        call={"celltype": "celtype"},
    ),
    Case(
        "mistyped number of cells",
        DataError,
        ["'cells'", "did you mean 'n_cells'"],
        call={"n_cells": "cells"},
    ),
    Case(
        "no cell type",
        DataError,
        ["which column", "celltype="],
        "expr ~ sex + PC1",
        change=lambda d: d.drop(columns="celltype"),
    ),
    Case(
        "no cell type, one row per donor",
        DataError,
        ["one row", "proportions="],
        OVERALL,
        change=lambda d: overall_table(),
    ),
    Case(
        "name with a dash",
        FormulaError,
        ["A is taken away but not there", 'one column is written Q\\("HLA-A"\\)'],
        "expr ~ sex + HLA-A",
        change=lambda d: d.rename(columns={"PC1": "HLA-A"}),
    ),
    Case(
        "same name twice",
        DataError,
        ["'expr'", "2 times"],
        change=lambda d: pd.concat([d, d[["expr"]]], axis=1),
    ),
    # names of functions
    Case("column named C", DataError, ["'C'", "rename"], change=assign(C=1.0)),
    Case("column named Q", DataError, ["'Q'", "rename"], 'expr ~ Q("PC1")', change=assign(Q=1.0)),
    Case(
        "column named Sum",
        DataError,
        ["'Sum'", "rename"],
        "expr ~ C(celltype, Sum)",
        change=assign(Sum=1.0),
    ),
    Case(
        "column named np",
        DataError,
        ["'np'", "rename"],
        "expr ~ np.abs(PC1)",
        change=assign(np=1.0),
    ),
    Case(
        "column used as function",
        DataError,
        ["'sex'", "rename", r"\+ is missing"],
        "expr ~ sex(PC1)",
    ),
    Case("unknown function", FormulaError, ["'logg'", "formulas know"], "expr ~ logg(PC1)"),
    Case("function of numpy", FormulaError, ["'log'", r"np\.log"], "expr ~ log(PC1)"),
    Case("function of R", FormulaError, ["'factor'", "mean C"], "expr ~ factor(sex)"),
    Case("unknown module", FormulaError, ["'scipy'"], "expr ~ scipy.log(PC1)"),
    Case(
        "function that fails",
        FormulaError,
        ["np.linalg.inv|cannot be computed"],
        "expr ~ np.linalg.inv(PC1)",
    ),
    # random terms in the wrong place
    Case(
        "interaction with a random term",
        FormulaError,
        [r"\^", "stands alone"],
        "expr ~ sex:(1|batch)",
    ),
    Case(
        "product with a random term", FormulaError, [r"\^", "stands alone"], "expr ~ sex*(1|batch)"
    ),
    Case("random term taken away", FormulaError, [r"\^", "stands alone"], "expr ~ sex - (1|batch)"),
    Case("double bar", FormulaError, [r"\^", r"\|\|"], "expr ~ sex + (1||batch)"),
    Case("no parentheses", FormulaError, [r"\^", "parentheses"], "expr ~ sex + 1|batch"),
    Case("random term on the left", FormulaError, [r"\^", "right"], "(1|batch) ~ sex"),
    Case("plus missing", FormulaError, [r"\^", r"\+ is missing"], "expr ~ sex (1|batch)"),
    Case("random slope", FormulaError, ["PC1", "celltype", "slopes"], "expr ~ sex + (PC1|batch)"),
    Case(
        "given twice",
        FormulaError,
        ["batch", "twice"],
        "expr ~ sex + (1|batch)",
        {"random": "batch"},
    ),
    Case("response on both sides", FormulaError, ["'expr'", "response"], "expr ~ sex + expr"),
    Case("no fixed effect", FormulaError, ["fixed effect", "intercept"], "expr ~ 0"),
    # random effects that cannot be estimated
    Case("random donor", FormulaError, ["donor", "structure="], call={"random": "donor"}),
    Case(
        "batch is donor",
        DataError,
        ["'lot'", "one level per donor"],
        call={"random": "lot"},
        change=lambda d: d.assign(lot="lot" + d["donor"]),
    ),
    Case(
        "batch is row",
        DataError,
        ["'lot'", "one level per row", "iid"],
        call={"random": "lot"},
        change=lambda d: d.assign(lot=np.arange(len(d))),
    ),
    Case(
        "one batch",
        DataError,
        ["'batch'", "one level", "'b0'"],
        call={"random": "batch"},
        change=assign(batch="b0"),
    ),
    Case(
        "one batch in one cell type",
        DataError,
        [r"'batch\[B\]'", "one level"],
        call={"random": "(celltype|batch)"},
        change=lambda d: d[(d["celltype"] != "B") | (d["batch"] == "b1")],
    ),
    Case(
        "batch fixed and random",
        FormulaError,
        ["'batch'", "fixed", "random"],
        "expr ~ C(celltype) + C(batch)",
        {"random": "batch"},
    ),
    Case(
        "batch explained by the fixed part",
        DataError,
        ["'batch'", "fully explained"],
        "expr ~ C(celltype) + C(lab)",
        {"random": "batch"},
        change=lambda d: d.assign(lab="lab of " + d["batch"]),
    ),
    # fixed effects that cannot be estimated
    Case(
        "collinear covariates",
        DataError,
        ["'PC2'", "depends on 'PC1'"],
        "expr ~ C(celltype) + PC1 + PC2",
        change=lambda d: d.assign(PC2=3 * d["PC1"]),
    ),
    Case(
        "collinear with cell types",
        DataError,
        ["'lineage", "depends on", r"C\(celltype\)"],
        "expr ~ C(celltype) + lineage",
        change=lambda d: d.assign(lineage=d["celltype"].map(dict(B="L", T="L", Mono="M"))),
    ),
    Case(
        "squares that overflow",
        DataError,
        [r"response 'expr' has values up to 1e\+300", "rescale"],
        change=lambda d: d.assign(expr=1e300 * (d["donor"] == "d01")),
    ),
    Case("constant covariate", DataError, ["'PC1'", "is constant"], change=assign(PC1=2.5)),
    Case("one sex", DataError, ["'sex'", "one level", "'F'"], change=assign(sex="F")),
    Case(
        "one sex left",
        DataError,
        ["'sex'", "one level once rows are left out"],
        change=lambda d: d.assign(PC1=d["PC1"].where(d["sex"] == "F")),
    ),
    Case(
        "more effects than rows",
        DataError,
        ["6 rows cannot estimate 6", "fewer covariates"],
        "expr ~ C(celltype)*C(batch)",
        change=lambda d: d.iloc[:6],
    ),
    Case(
        "many collinear columns",
        DataError,
        ["not of full rank", "15 in all"],
        "expr ~ C(celltype)*C(batch)*sex*PC1",
    ),
    Case(
        "infinite covariate",
        DataError,
        ["'PC1'", "inf", "rows 2, 5"],
        change=put("PC1", [2, 5], np.inf),
    ),
    Case(
        "log of a negative covariate",
        DataError,
        [r"np\.log\(PC1\)", "nan", "rows"],
        "expr ~ np.log(PC1)",
    ),
    # rows
    Case(
        "rows are cells", DataError, ["720 rows for 36 pairs", "aggregate the cells"], change=cells
    ),
    Case(
        "rows are cells, without noise",
        DataError,
        ["either celltype='celltype' or donor='donor'", "aggregate the cells to one row"],
        change=lambda d: cells(d).drop(columns="nu"),
    ),
    Case(
        "pair twice",
        DataError,
        ["d00, B", "rows 0, 36", "donor and cell type"],
        change=lambda d: pd.concat([d, d.iloc[:1]]),
    ),
    Case(
        "one donor",
        DataError,
        ["one donor", "'d00'"],
        "expr ~ C(celltype)",
        change=lambda d: d.iloc[:3],
    ),
    Case(
        "one cell type",
        DataError,
        ["'celltype'", "one level", "'T'"],
        change=lambda d: d[d["celltype"] == "T"],
    ),
    Case("no rows", DataError, ["no rows"], change=lambda d: d.iloc[:0]),
    Case(
        "no complete row",
        DataError,
        ["no row of 36", "missing expr: 16", "missing nu: 20"],
        change=lambda d: d.assign(
            expr=d["expr"].where(d.index < 20), nu=d["nu"].where(d.index >= 20)
        ),
    ),
    Case("no donor known", DataError, ["missing donor: 36"], change=assign(donor=np.nan)),
    # response
    Case("constant response", DataError, ["'expr'", "constant"], change=assign(expr=1.5)),
    Case("infinite response", DataError, ["'expr'", "inf", "row 3"], change=put("expr", 3, np.inf)),
    Case(
        "log of zero",
        DataError,
        [r"np\.log\(expr\)", "-inf", "row 3"],
        "np.log(expr) ~ sex",
        change=lambda d: put("expr", 3, 0.0)(d.assign(expr=np.abs(d["expr"]))),
    ),
    Case(
        "boolean response",
        DataError,
        ["'expr'", "true/false"],
        change=lambda d: d.assign(expr=d["expr"] > 0),
    ),
    Case("condition as response", DataError, ["expr > 0", "true/false"], "I(expr > 0) ~ sex"),
    Case(
        "complex response",
        DataError,
        ["'expr'", "complex"],
        change=lambda d: d.assign(expr=d["expr"] + 1j),
    ),
    Case(
        "object response",
        DataError,
        ["'expr'", "list"],
        change=lambda d: d.assign(expr=[[v] for v in d["expr"]]),
    ),
    Case(
        "text response",
        DataError,
        ["'expr'", "'high' in row 2", "numbers"],
        change=put("expr", 2, "high"),
    ),
    Case("two responses", FormulaError, [r"I\(\.\.\.\)"], "expr + PC1 ~ sex"),
    Case(
        "matrix response",
        DataError,
        ["one column", r"\(36, 2\)"],
        "np.column_stack([expr, nu]) ~ sex",
    ),
    Case("response without a column", FormulaError, ["no column"], "np.arange(36) ~ sex"),
    # noise and numbers of cells
    Case(
        "zero noise without numbers of cells",
        DataError,
        ["'nu'", "positive", "row 4", "'d01'", "0 is believed .* n_cells="],
        change=lambda data: put("nu", 4, 0.0)(data).drop(columns="n_cells"),
    ),
    Case(
        "zero noise of one cell",
        DataError,
        ["'n_cells'", "row 4", "one cell has no measured variance"],
        change=lambda data: put("n_cells", 4, 1)(put("nu", 4, 0.0)(data)),
    ),
    Case(
        "infinite square",
        DataError,
        ["'nu2'", "found inf", "rows 4, 7", "NaN"],
        change=lambda data: put("nu2", [4, 7], np.inf)(data.assign(nu2=data["nu"] ** 2)),
    ),
    Case(
        "negative noise",
        DataError,
        ["'nu'", "positive", "rows 4, 7", "'d01', 'd02'"],
        change=put("nu", [4, 7], -0.1),
    ),
    Case(
        "infinite noise",
        DataError,
        ["'nu'", "finite", "row 4", "'d01'"],
        change=put("nu", 4, np.inf),
    ),
    Case(
        "noise as text",
        DataError,
        ["'nu'", "'0,1' in row 0", "decimal comma"],
        change=put("nu", [0, 1], "0,1"),
    ),
    Case(
        "noise as numbers in text",
        DataError,
        ["'nu'", "to_numeric"],
        change=lambda d: d.assign(nu=d["nu"].astype(str)),
    ),
    Case("zero cells", DataError, ["'n_cells'", "2 or more", "row 9"], change=put("n_cells", 9, 0)),
    # values
    Case(
        "decimal comma",
        DataError,
        ["'PC1'", "'1,5' in row 3", "to_numeric"],
        change=lambda d: put("PC1", 3, "1,5")(d.assign(PC1=d["PC1"].astype(str))),
    ),
    Case(
        "mixed covariate",
        DataError,
        ["'PC1'", "numbers and text", "'1,5' in row 3"],
        change=put("PC1", 3, "1,5"),
    ),
    Case(
        "mixed donors",
        DataError,
        ["'donor'", "text and numbers", "7 in row 4"],
        change=lambda d: d.assign(donor=[7 if k == 4 else v for k, v in enumerate(d["donor"])]),
    ),
    Case(
        "dates",
        DataError,
        ["'day'", "dates"],
        "expr ~ C(celltype) + day",
        change=lambda d: d.assign(day=pd.Timestamp("2020-01-01")),
    ),
    Case(
        "R's missing integer",
        DataError,
        ["'age'", "row 5", "R's missing integer"],
        "expr ~ C(celltype) + age",
        change=lambda d: put("age", 5, -2147483648)(d.assign(age=np.arange(len(d)))),
    ),
    Case(
        "R's missing integer as float",
        DataError,
        ["'nu'", "row 5", "R's missing integer"],
        change=put("nu", 5, -2147483648.0),
    ),
    Case(
        "R's missing integer as batch",
        DataError,
        ["'batch'", "row 5", "R's missing integer"],
        call={"random": "batch"},
        change=lambda d: put("batch", 5, -2147483648)(d.assign(batch=np.arange(36) % 4)),
    ),
    Case(
        "R's missing integer in C",
        DataError,
        ["'year'", "row 5", "R's missing integer"],
        "expr ~ C(celltype) + C(year)",
        change=lambda d: put("year", 5, -2147483648)(d.assign(year=np.arange(36) % 4)),
    ),
    # tables
    Case("not a table", DataError, ["data must be", "ndarray"], change=lambda d: d.to_numpy()),
    Case("ragged dict", DataError, ["dict"], change=lambda d: {"expr": [1.0, 2.0], "nu": [1.0]}),
    Case(
        "two rows of names",
        DataError,
        ["MultiIndex"],
        change=lambda d: d.set_axis(pd.MultiIndex.from_product([["a"], d.columns]), axis=1),
    ),
    # overall pseudobulk
    Case(
        "proportions do not sum to one",
        DataError,
        ["sum to one", "rows 2, 3", "0.8|1.2"],
        OVERALL,
        change=lambda d: d.assign(**{p: d[p].where(~d.index.isin([2, 3]), 0.4) for p in PROPS}),
        overall=True,
    ),
    Case(
        "negative proportion",
        DataError,
        ["between 0 and 1", "row 2"],
        OVERALL,
        change=put("prop_B", 2, -0.1),
        overall=True,
    ),
    Case(
        "one proportion",
        DataError,
        ["must sum to one", "name all cell types"],
        OVERALL,
        {"proportions": ["prop_B"]},
        overall=True,
    ),
    Case(
        "no proportion",
        DataError,
        ["names no column"],
        OVERALL,
        {"proportions": []},
        overall=True,
    ),
    Case(
        "mistyped proportion",
        DataError,
        ["'prop_X'", "proportion", "did you mean"],
        OVERALL,
        {"proportions": ["prop_B", "prop_X"]},
        overall=True,
    ),
    Case(
        "proportion twice",
        DataError,
        ["twice"],
        OVERALL,
        {"proportions": [*PROPS, "prop_B"]},
        overall=True,
    ),
    Case(
        "absent cell type",
        DataError,
        ["'prop_T'", "0 in every donor"],
        OVERALL,
        change=lambda d: d.assign(prop_T=0.0, prop_B=1 - d["prop_Mono"]),
        overall=True,
    ),
    Case(
        "donors sampled twice",
        DataError,
        [
            "rows 0,",
            "differ in 'time'",
            "within='time'",
            "a column of samples, donor='sample'",
            "random='donor'",
            r"^(?!.*average)",
        ],
        "expr ~ C(celltype) + time",
        change=lambda d: pd.concat([d.assign(time="pre"), d.assign(time="post")]),
    ),
    Case(
        "several rows for one donor",
        DataError,
        ["d00", "rows 0, 12", "one row per donor"],
        OVERALL,
        change=lambda d: pd.concat([d, d.iloc[:1]]),
        overall=True,
    ),
    Case(
        "cell type in the formula",
        DataError,
        ["'celltype'", "leave the cell type out"],
        "expr ~ C(celltype)",
        overall=True,
    ),
    Case(
        "both kinds asked for",
        DataError,
        ["celltype=", "proportions="],
        OVERALL,
        {"celltype": "sex"},
        overall=True,
    ),
    Case(
        "proportions of the wrong kind",
        DataError,
        ["proportions", "int"],
        OVERALL,
        {"proportions": 3},
        overall=True,
    ),
    # arguments that are no names
    *(
        Case(
            f"{argument} is a {type(value).__name__}",
            DataError,
            [f"{argument}= must be the name of a column", type(value).__name__],
            call={argument: value},
        )
        for argument in ("donor", "celltype", "noise", "n_cells")
        for value in (["d"], 0.1, pd.Series([0.1] * 36), {"a": 1})
    ),
    # names that are there in another way
    Case(
        "donor and cell type in the index",
        DataError,
        ["no column 'celltype'", r"in the index: use data\.reset_index\(\)"],
        change=lambda d: d.set_index(["donor", "celltype"]),
    ),
    Case(
        "a number as column name",
        DataError,
        [r"data\.columns\.astype\(str\)"],
        'expr ~ C(celltype) + Q("0")',
        change=lambda d: d.rename(columns={"PC1": 0}),
    ),
    Case("record array", DataError, [r"data=pandas\.DataFrame"], change=lambda d: d.to_records()),
    Case(
        "list of dicts",
        DataError,
        ["got list", r"data=pandas\.DataFrame"],
        change=lambda d: d.to_dict("records"),
    ),
    Case(
        "decimal commas",
        DataError,
        [r"decimal=','"],
        change=lambda d: d.assign(PC1=d["PC1"].map(lambda v: f"{v:.3f}".replace(".", ","))),
    ),
    Case(
        "decimal commas in the noise",
        DataError,
        [r"decimal=','"],
        change=lambda d: d.assign(nu=d["nu"].map(lambda v: f"{v:.3f}".replace(".", ","))),
    ),
    Case(
        "an array of the caller as a term",
        DataError,
        ["'k' is known where you call", "put it into data"],
        GOOD + " + k",
        call={"env": {"k": np.arange(36.0)}},
    ),
    Case(
        "proportions in percent",
        DataError,
        ["percent, divide by 100", "rows 0, 1"],
        OVERALL,
        change=lambda d: d.assign(**{name: 100 * d[name] for name in PROPS}),
        overall=True,
    ),
    Case(
        "a proportion out of range",
        DataError,
        [r"found 1\.5, .* in row 2: correct the values"],
        OVERALL,
        change=put("prop_B", 2, 1.5),
        overall=True,
    ),
    Case(
        "proportion as covariate",
        DataError,
        ["'prop_B'", "anything else"],
        "expr ~ prop_B",
        overall=True,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_the_reason(case):
    formula, call, data = broken(case)
    with pytest.raises(case.error) as caught:
        run(formula, call, data)
    assert type(caught.value) is case.error
    message = str(caught.value)
    for pattern in case.patterns:
        assert re.search(pattern, message), message


def test_the_table_of_cases_is_what_breaks_the_call():
    """Unbroken, the same tables and formulas are fine."""
    assert run(GOOD, {"random": "batch"}, good_table()).dropped == {}
    assert run(OVERALL, {"random": "batch", "proportions": PROPS}, overall_table()).dropped == {}
    assert len({case.name for case in CASES}) == len(CASES)


def test_an_unknown_engine_lists_the_known():
    with pytest.raises(CTMMError, match="choose from patsy, formulaic"):
        run(GOOD, {"engine": "patsi"}, good_table())


# ---------------------------------------------------------------------------------------------
# what looks bad but is not


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_tiny_and_huge_units_work(scale):
    data, plain = good_table(), run(GOOD, {"random": "batch"}, good_table())
    data = data.assign(expr=data["expr"] * scale, nu=data["nu"] * scale**2, PC1=data["PC1"] * scale)
    out = run(GOOD, {"random": "batch"}, data)
    np.testing.assert_allclose(out.y, plain.y * scale, rtol=1e-15)
    np.testing.assert_array_equal(out.X[:, -1], data["PC1"])


def test_missing_noise_is_a_missing_row_and_missing_cells_are_not():
    data = good_table()
    data["n_cells"] = data["n_cells"].astype(float)
    data.loc[[3, 8], "nu"] = np.nan
    data.loc[5, "n_cells"] = np.nan
    out = run(GOOD, {}, data)
    assert out.dropped == {"missing nu": 2}
    assert out.notes == (
        "2 rows dropped: missing nu (2)",
        "column 'n_cells' is missing in row 5: taken there as the mean of the cell type",
    )
    assert len(out.y) == 34
    kept = data["nu"].notna()
    mean = data.loc[kept & (data["celltype"] == "T"), "n_cells"].mean()
    expected = data.loc[kept, "n_cells"].fillna(mean).to_numpy()
    np.testing.assert_allclose(out.n_cells, expected, rtol=1e-15)
    donor = expected[3:5]  # d01 has lost its first row
    np.testing.assert_allclose(out.proportions[1], [0.0, *(donor / donor.sum())], rtol=1e-15)


def test_a_cell_type_without_any_count_takes_the_mean_of_all():
    data = good_table().astype({"n_cells": float})
    data.loc[data["celltype"] == "T", "n_cells"] = np.nan
    out = run(GOOD, {}, data)
    np.testing.assert_allclose(out.n_cells[2::3], data["n_cells"].mean(), rtol=1e-15)


def test_one_lost_row_is_one_row():
    assert run(GOOD, {}, put("nu", 3, np.nan)(good_table())).notes == (
        "1 row dropped: missing nu (1)",
    )


@pytest.mark.parametrize("call", [{"n_cells": None}, {}])
def test_equal_weights_of_the_shares_are_noted(call):
    data = good_table() if call else good_table().assign(n_cells=np.nan)
    note = "cell types count equally in the shares of variance: name n_cells= or proportions="
    assert run(GOOD, call, data).notes == (note,)
    assert run(GOOD, {}, good_table()).notes == ()
    share = {**call, "proportions": "share"}
    assert run(GOOD, share, data.assign(share=1 / 3)).notes == ()
    assert run(OVERALL, {"proportions": PROPS}, overall_table()).notes == ()


def test_a_cell_type_in_two_donors_is_noted():
    data = good_table()
    few = data[(data["celltype"] != "Mono") | data["donor"].isin(["d02", "d04"])]
    (note,) = run(GOOD, {}, few).notes
    assert note.startswith("cell type 'Mono' is observed in 2 donors ('d02', 'd04')")


def test_labels_that_differ_only_by_blanks_are_noted():
    data = good_table()
    data.loc[:2, "donor"] = "d01 "
    data.loc[data["sex"] == "F", "sex"] = np.resize(["F", " F"], (data["sex"] == "F").sum())
    first, second = run(GOOD, {}, data).notes
    assert "'donor' has levels that differ only by blanks: 'd01', 'd01 '" in second + first
    assert "'sex' has levels that differ only by blanks: ' F', 'F'" in second + first


def test_text_that_may_mean_missing_is_refused_and_a_category_noted():
    data = good_table()
    data.loc[6:8, "batch"] = "NA"
    with pytest.raises(DataError, match=r"'batch' .* has the text 'NA' in rows 6, 7, 8: .*missing"):
        run(GOOD, {"random": "batch"}, data)
    with pytest.raises(DataError, match=r"'sex' .* has the text 'NA' in row 4"):
        run(GOOD, {}, data.assign(sex=data["sex"].where(data.index != 4, "NA")))
    data["batch"] = data["batch"].astype("category")
    assert (
        "'batch' has a level 'NA' (rows 6, 7, 8)" in run(GOOD, {"random": "batch"}, data).notes[0]
    )


def test_whole_numbers_as_text_are_labels():
    data = good_table()
    data["batch"] = data["batch"].str[1:]
    assert run("expr ~ C(celltype) + batch", {}, data).names[-1] == "batch[T.3]"
    data["version"] = np.resize(["1.0", "1.1", "2.0"], 12).repeat(3)
    assert run("expr ~ C(version)", {}, data).names[-1] == "C(version)[T.2.0]"


class Broken:
    """A table of a package that fails to convert it."""

    def to_pandas(self):
        raise ZeroDivisionError("no rows\nat all")


HUGE = pd.Series([10**400] * 36, dtype=object)
RAW = {
    "a number beyond floats": (lambda d: d.assign(nu=HUGE), "column 'nu'.*beyond 1e308: rescale"),
    "a covariate beyond floats": (lambda d: d.assign(PC1=HUGE), "column 'PC1'.*beyond 1e308"),
    "a label beyond floats": (lambda d: d.assign(donor=HUGE), "column 'donor'.*beyond 1e308"),
    "half a character": (
        lambda d: d.assign(celltype="\ud800" + d["celltype"].astype(object)),
        r"column 'celltype'.*half a character \('\\ud800.*encoding='utf-8'",
    ),
    "a conversion that fails": (
        lambda d: Broken(),
        r"to_pandas\(\) failed \(ZeroDivisionError: no rows at all\)",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_nothing_of_pandas_or_python_comes_through(name):
    change, words = RAW[name]
    with pytest.raises(DataError, match=words):
        build_design(parse(GOOD), change(good_table()))


def told(call, message=None):
    with pytest.raises(CTMMError, match=message):
        call()


class _Experiment(dict):
    """tiledbsoma's are mappings: obs and ms are no columns."""

    __module__ = "tiledbsoma._experiment"


class _Kind:
    """Something that a package of that name calls so."""

    def __init__(self, module, **attributes):
        self.__class__ = type("Thing", (), {"__module__": module, **attributes})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["a.h5ad", "b.h5ad"], r"one at a time.*anndata\.concat"),
        ("table.csv", r"read the file first, pandas\.read_csv"),
        ("https://example.org/cells.h5ad", "addresses are not read: download"),
        (_Kind("polars", collect=print), r"not computed yet: data=table\.collect\(\)"),
        (_Kind("dask", compute=print), r"not computed yet: data=table\.compute\(\)"),
        (_Kind("tiledbsoma._dataframe"), r"axis_query\(\.\.\.\)\.to_anndata"),
        (_Experiment(obs=[1], ms=[2]), r"axis_query\(\.\.\.\)\.to_anndata"),
        (_Kind("mudata", mod={}), r"one modality, data=mdata\.mod\['rna'\]"),
        (np.ones((3, 2)), r"try data=pandas\.DataFrame\(\.\.\.\) of it"),
    ],
)
def test_other_data_are_refused_with_what_to_do(data, message):
    told(lambda: ctmm.fit(GOOD, data=data), message)
    if isinstance(data, str):
        message = "is an address: download" if "://" in data else r"no h5ad file|there is no file"
    several = isinstance(data, list)
    told(lambda: ctmm.pseudobulk(data), "there is no file" if several else message)
    told(lambda: ctmm.fit_genes("~ 1", data=data), message)


@pytest.mark.parametrize("kind", ["directory", "empty zarr", "zarr of nothing", "empty file"])
def test_files_that_hold_no_cells(tmp_path, kind):
    path = tmp_path / ("cells.zarr" if "zarr" in kind else "cells.h5ad")
    if kind == "empty file":
        path.touch()
    elif kind == "zarr of nothing":
        pytest.importorskip("zarr").open_group(str(path), mode="w")
    else:
        path.mkdir()
    told(lambda: ctmm.pseudobulk(path), re.escape(path.name))
    told(lambda: ctmm.fit_genes("~ 1", data=path), re.escape(path.name))


def test_the_folder_of_a_soma_experiment(tmp_path):
    path = tmp_path / "cells.soma"
    path.mkdir()
    (path / "__tiledb_group.tdb").touch()
    told(lambda: ctmm.pseudobulk(path), r"'.*cells\.soma' is a SOMA.*axis_query")
    told(lambda: ctmm.fit_genes("~ 1", data=path), r"'.*cells\.soma' is a SOMA.*axis_query")


def test_structures_whose_products_are_no_numbers():
    own = {"all": np.ones((3, 3)), "own": 1e200 * np.eye(3)}
    told(lambda: ctmm.fit(GOOD, data=good_table(), structure=own), "'own' has entries up to 1e.200")


@pytest.mark.parametrize("name", ["n" * 400, "a\0b", ".", "nowhere/x", ""])
def test_names_that_no_file_has(name):
    told(lambda: ctmm.pseudobulk(name))
    told(lambda: ctmm.fit_genes("~ 1", data=name))
    told(lambda: ctmm.read_scan(name))
    told(lambda: ctmm.CTMMResults.from_json(name))


@pytest.mark.parametrize(
    "formula",
    ["expr ~ " + "-" * 5000 + "PC1", "expr ~ I(" + "-" * 20000 + "PC1)",
     "expr ~ " + "+".join(["PC1"] * 3000)],
    ids=["signs", "inside", "terms"],
)  # fmt: skip
def test_formulas_without_end(formula):
    told(lambda: ctmm.fit(formula, data=good_table()), "formula|Python expression")


def test_half_characters_are_named_so_that_they_can_be_printed():
    with pytest.raises(FormulaError, match="half a character") as error:
        ctmm.fit("expr ~ \ud800", data=good_table())
    str(error.value).encode()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_donors": 10**400}, "n_donors= must be at most 1,000,000"),
        ({"V": 10**400}, "V must be finite numbers"),
        ({"counts": 1e9}, "up to the 5,000 counts of a cell in all"),
        ({"counts": None, "dispersion": 0.3}, "dispersion= is of counts: leave it out"),
        ({"alpha": 10**400}, "alpha="),
    ],
)
def test_settings_of_power_that_no_study_has(settings, message):
    told(lambda: ctmm.power(**settings, n_sim=1), message)


def test_alpha_beyond_floats():
    res = ctmm.fit(GOOD, data=good_table(), structure="hom", method="he")
    told(lambda: res.conf_int(10**400), "alpha must lie between 0 and 1")


@pytest.mark.parametrize("cells", [1, 0, -3, 0.4, 30.5, np.inf])
def test_numbers_of_cells_are_whole_and_two_or_more(cells):
    """One cell has no measured variance; shares are no numbers of cells."""
    data = good_table()
    data["n_cells"] = data["n_cells"].astype(float)
    data.loc[4, "n_cells"] = cells
    told(lambda: ctmm.fit(GOOD, data=data), r"'n_cells' .*2 or more.*row 4: use NaN")
    data.loc[4, "n_cells"] = np.nan
    assert ctmm.fit(GOOD, data=data, structure="hom").nobs == len(data)


@pytest.mark.parametrize("share", [-0.5, 6.5, np.inf])
def test_squares_of_the_noise_that_no_cells_have(share):
    data = good_table()
    data["nu2"] = data["nu"] ** 2
    data.loc[7, "nu2"] = share * data["nu"][7] ** 2
    told(lambda: ctmm.fit(GOOD, data=data), r"'nu2'.*row 7.*0 or more, and at most 6 times")
    expr, nu = data[["expr"]], data[["nu"]].set_axis(["expr"], axis=1)
    square = data[["nu2"]].set_axis(["expr"], axis=1)
    with pytest.warns(ctmm.CTMMWarning, match="failed"):
        scan = ctmm.fit_genes("~ C(celltype)", data=data, expr=expr, nu=nu, nu2=square)
    assert "at most 6 times" in scan.table["reason"][0]
    ctmm.fit(GOOD, data=data, nu2=None, structure="hom")  # as it says


def test_squares_of_four_cells_reach_the_bound_and_none_is_beyond():
    """All orders of magnitude of unequal cells, by the estimate itself."""
    rng = np.random.default_rng(0)
    most = 0.0
    for n in (4, 5, 8, 40):
        x = np.exp(rng.normal(size=(500, n)) * rng.uniform(0, 4, (500, 1))) * rng.choice(
            [0, 1], (500, n)
        )
        x[0] = np.arange(n) % 2
        d = x - x.mean(axis=1, keepdims=True)
        S2, S4 = (d**2).sum(axis=1), (d**4).sum(axis=1)
        nu, nu2 = S2 / (n * (n - 1)), unbiased_square(float(n), S2, S4)
        assert not len(bad_square(nu2, nu))
        ratio = nu2[nu > 0] / nu[nu > 0] ** 2
        assert ratio.max() <= n * (n - 1) / ((n - 2) * (n - 3)) * (1 + 1e-9)
        most = max(most, ratio.max())
    assert most > 1.4


def test_covariances_of_tests_of_means_are_listed_with_robust():
    res = ctmm.fit(GOOD, data=good_table(), structure="hom", method="reml")
    told(lambda: res.test_mean("median"), "choose from robust, model, kenward-roger, jackknife")
    assert res.test_mean("robust").pvalue > 0
    told(lambda: res.conf_int(covariance="robust"), "fit by method='robust'")


def test_lists_from_r_say_that_the_order_of_levels_is_lost(monkeypatch):
    """reticulate makes texts of the factors in a list, but not of those in a data frame."""
    data = good_table()
    lists = {name: column.tolist() for name, column in data.items()}
    build_design(parse(GOOD), lists)  # from Python nothing is lost
    monkeypatch.setitem(sys.modules, "rpytools", sys)
    with pytest.warns(CTMMWarning, match="the first is 'B' of 'celltype', 'F' of 'sex'"):
        build_design(parse(GOOD), lists)
    for name in ("celltype", "sex"):
        lists[name] = pd.Categorical(lists[name], data[name].unique()[::-1])
    assert build_design(parse(GOOD), lists).celltypes == tuple(TYPES[::-1])
    build_design(parse(GOOD), data)
