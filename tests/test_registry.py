"""The registry of tests is what fit, scan, power and R know: every row, and one added by trial."""

import json
import math

import numpy as np
import pytest
from test_r_package import library, run_r  # noqa: F401 (a fixture)
from test_wire import call, make_request, stored

import ctmm_formula as ctmm
from ctmm_formula.inference.fit import JACKKNIFE
from ctmm_formula.inference.testing import TestResult
from ctmm_formula.inference.tests import (
    COMPONENT_TESTS,
    DRAWS,
    LIKELIHOOD,
    TESTS,
    Test,
    named,
    run_test,
)
from ctmm_formula.planning import known_tests
from ctmm_formula.structures import STRUCTURES

FORMULA = "expr ~ C(celltype) + sex"
DRAWN = 19
SAME = 1e-9


@pytest.fixture(scope="module")
def df():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def res(df):
    return ctmm.fit(FORMULA, random="batch", data=df, method="reml")


@pytest.fixture(scope="module")
def gene(df):
    """The same rows as the only gene of a scan."""
    rest = df.drop(columns=["expr", "nu"])
    return {"data": rest, "expr": df[["expr"]], "nu": df[["nu"]].set_axis(["expr"], axis=1)}


def asked(res, name, **options):
    if TESTS[name].question == "mean":
        return res.test_mean("jackknife" if JACKKNIFE in TESTS[name].needs else None)
    return res.test_variance(name, n=DRAWN, rng=1, **options)


def through_wire(df, res, name):
    sent = make_request(df, res)
    fit = stored(sent, {"value": call("fit", sent)})
    ask = {"fit": fit, "n_jobs": 1, "what": TESTS[name].question}
    if ask["what"] == "variance":
        ask |= {"method": name, "n": DRAWN, "seed": 1}
    elif JACKKNIFE in TESTS[name].needs:
        ask["covariance"] = "jackknife"
    return call("test", ask)


def agree(df, res, gene, name):
    """The test of that name has one p value wherever it is asked for."""
    fit = asked(res, name)
    assert 0.0 <= fit.pvalue <= 1.0, fit.note
    assert through_wire(df, res, name)["pvalue"] == pytest.approx(fit.pvalue, rel=SAME)
    options = {"random": "batch", "tests": [name], "n_bootstrap": DRAWN, "rng": 1}
    row = ctmm.fit_genes("~ C(celltype) + sex", **gene, **options, method="reml").table.iloc[0]
    if DRAWS in TESTS[name].needs:  # a gene of a scan has a stream of its own
        assert 0.0 <= row[f"p_{name}"] <= 1.0
    else:
        assert row[f"p_{name}"] == pytest.approx(fit.pvalue, rel=SAME)
    for detail in TESTS[name].details:
        found = fit.extra[detail]
        if detail == "celltype":
            assert list(found) == list(res.celltypes)
            for celltype, p in found.items():
                assert row[f"p_{name}[{celltype}]"] == pytest.approx(p, rel=SAME)
        else:
            assert row[f"p_{name}_{detail}"] == pytest.approx(found, rel=SAME)


@pytest.mark.parametrize("name", TESTS)
def test_a_row_is_the_same_test_in_fit_scan_and_wire(df, res, gene, name):
    agree(df, res, gene, name)


@pytest.mark.parametrize("name", TESTS)
def test_a_row_is_a_test_of_power(name):
    details = [f"{name}_{d}" for d in TESTS[name].details]
    table = ctmm.power(20, 2, tests=[name, *details], n_sim=2, n_bootstrap=20, rng=1)
    rows = {f"{name}[T1]", f"{name}[T2]"} if "celltype" in TESTS[name].details else set()
    plain = [d for d in details if not d.endswith("_celltype")]
    assert set(table["test"]) == {name, *plain, *rows}
    assert (table["n"] == 2).all()


def test_what_a_row_needs_is_asked_for_before_anything_is_fitted(gene):
    for name, test in TESTS.items():
        if LIKELIHOOD in test.needs:
            with pytest.raises(ctmm.CTMMError, match=f"no likelihood and so no test '{name}'"):
                ctmm.fit_genes("~ C(celltype)", **gene, method="he", tests=[name])
            assert f"he:{name}" not in known_tests()
            with pytest.raises(ctmm.CTMMError, match=f"method='robust' .*'{name}'"):
                ctmm.fit_genes("~ C(celltype)", **gene, method="robust", tests=[name])
        scan = ctmm.fit_genes("~ C(celltype)", **gene, tests=[name], n_bootstrap=2, method="reml")
        assert ("se_jackknife[hom]" in scan.table) == (JACKKNIFE in test.needs)


def test_rows_say_what_they_assert():
    for test in [*TESTS.values(), *COMPONENT_TESTS.values()]:
        assert test.asserts and test.run.__doc__
        assert test.needs <= {"likelihood", "jackknife", "fixed", "draws", "cells"}


@pytest.mark.parametrize("name", COMPONENT_TESTS)
def test_a_row_of_components_is_the_same_test_in_fit_and_wire(df, name):
    res = ctmm.fit(FORMULA, structure="hom", data=df, method="reml")
    sent = make_request(df, res)
    ask = {"fit": stored(sent, {"value": call("fit", sent)}), "what": "component", "name": "hom"}
    found = call("test", ask | {"method": name, "n": DRAWN, "seed": 1})
    expected = res.test_component("hom", name, n=DRAWN, rng=1)
    assert found["pvalue"] == pytest.approx(expected.pvalue, rel=SAME)


# ---------------------------------------------------------------------------------------------
# a test of V = 0 by trial: one function and one row


def largest(fit, ask):
    """The largest V in its jackknife standard errors, and every cell type's own."""
    at = fit.n_fixed + 1 + np.arange(len(fit.structure.celltypes))
    z = fit.params[at] / np.sqrt(np.diag(ask.errors.cov)[at])
    p = [0.5 * math.erfc(value / math.sqrt(2)) for value in z]
    by_type = dict(zip(fit.structure.celltypes, p, strict=True))
    return TestResult(
        "variance differentiation", "V = 0", "largest", float(z.max()), math.nan,
        min(1.0, len(p) * min(p)), "normal", extra={"celltype": by_type},
    )  # fmt: skip


ROW = Test("variance", largest, frozenset({JACKKNIFE}), ("celltype",), "some V_c is above 0")


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.setitem(TESTS, "largest", ROW)


def test_one_row_is_a_new_test_everywhere(trial, df, res, gene, tmp_path):
    assert "largest" in named("variance")
    agree(df, res, gene, "largest")
    blocks = res.jackknife(8)
    other = res.test_variance("largest", covariance=blocks)
    assert other.pvalue != asked(res, "largest").pvalue
    assert other == run_test("largest", res.numbers, errors=lambda kind: res.errors(blocks))
    path = tmp_path / "scan.parquet"
    options = {"random": "batch", "tests": ["largest", "score"]}
    scan = ctmm.fit_genes("~ C(celltype) + sex", **gene, **options, out=path, method="reml")
    assert list(scan.summary().index) == ["largest", "score", "score_cauchy"]
    assert ctmm.read_scan(path).table.equals(scan.table)
    power = ctmm.power(20, 2, tests=["largest", "he:largest", "largest_celltype"], n_sim=3, rng=1)
    assert list(power["test"]) == ["largest", "he:largest", "largest[T1]", "largest[T2]"]
    assert (power["n"] == 3).all()


def test_a_scan_of_an_unknown_test_can_be_read(monkeypatch, gene, tmp_path):
    """Written where the row was, read where it is not: the columns are those of the file."""
    with monkeypatch.context() as patch:
        patch.setitem(TESTS, "largest", ROW)
        path = tmp_path / "scan.parquet"
        scan = ctmm.fit_genes("~ C(celltype)", **gene, tests=["largest"], out=path)
    assert ctmm.read_scan(path).table.equals(scan.table)


def test_one_row_is_a_new_structure_everywhere(monkeypatch, df, gene):
    """Early and late cell types: two variances, as matrices of one's own have them."""

    def rows(names):
        early = (np.arange(len(names)) < len(names) / 2).astype(float)
        V = [("V[early]", np.diag(early)), ("V[late]", np.diag(1 - early))]
        return [("hom", np.ones((len(names), len(names)))), *V]

    monkeypatch.setitem(STRUCTURES, "halves", rows)
    own = ctmm.fit(FORMULA, structure=dict(rows(range(4))), data=df, method="reml")
    res = ctmm.fit(FORMULA, structure="halves", data=df, method="reml")
    assert res.vcomp.equals(own.vcomp)
    scan = ctmm.fit_genes(
        "~ C(celltype) + sex", **gene, structure="halves", models=["hom", "free"], method="reml"
    )
    assert scan.vcomp.loc["expr"].to_dict() == pytest.approx(res.vcomp.to_dict(), rel=SAME)
    assert {"p_lrt[hom:halves]", "p_lrt[halves:free]"} <= set(scan.table)
    sent = make_request(df, res)
    assert call("fit", sent)["labels"] == ["hom", "V[early]", "V[late]"]
    assert len(ctmm.power(20, 4, structure="halves", tests="lrt", n_sim=2, rng=1)) == 1


def test_one_row_is_a_new_picture(monkeypatch, res, gene):
    """Of a fit and of a scan: asked for by name, with its numbers."""
    pytest.importorskip("matplotlib").use("Agg")
    from ctmm_formula.plots.fits import OF_A_FIT
    from ctmm_formula.plots.scans import OF_A_SCAN

    def numbers(thing):
        return thing.vcomp.to_frame() if thing is res else thing.vcomp

    def draw(thing, ax=None):
        return numbers(thing).plot.bar(ax=ax)

    scan = ctmm.fit_genes("~ C(celltype)", **gene, tests=[])
    for rows, thing in ((OF_A_FIT, res), (OF_A_SCAN, scan)):
        monkeypatch.setitem(rows, "bars", (draw, numbers))
        assert thing.plot("bars").patches
        assert thing.plot_data("bars").equals(numbers(thing))


R_CODE = """
library(ctmmFormula)
reticulate::py_run_string("
import sys
sys.path.insert(0, {tests!r})
from test_registry import ROW
from ctmm_formula.inference.tests import TESTS
TESTS['largest'] = ROW
")
fit <- ctmm(expr ~ celltype + sex, random = ~ batch, method = "reml", data = pseudobulk)
names <- c({names})
one <- vapply(names, function(name)
  if (name == "mean") test_mean(fit)$p.value
  else if (name == "mean_jackknife") test_mean(fit, "jackknife")$p.value
  else test_variance(fit, name, n = {drawn}, seed = 1)$p.value, 0)
genes <- ctmm_genes(~ celltype + sex, random = ~ batch, method = "reml", tests = names,
                    n_bootstrap = {drawn},
                    data = subset(pseudobulk, select = -c(expr, nu)), seed = 1,
                    expr = rbind(expr = pseudobulk$expr), nu = rbind(expr = pseudobulk$nu))
all <- unlist(genes[1L, paste0("p_", names)])
types <- unlist(genes[1L, paste0("p_largest[", levels(pseudobulk$celltype), "]")])
cat("\\nFOUND [[", paste(format(one, digits = 15), collapse = ","), "],[",
    paste(format(all, digits = 15), collapse = ","), "],[",
    paste(format(types, digits = 15), collapse = ","), "]]\\n", sep = "")
"""


@pytest.mark.r
def test_every_row_and_the_one_by_trial_in_r(trial, df, res, library):  # noqa: F811
    from pathlib import Path

    quoted = ", ".join(f'"{name}"' for name in TESTS)
    code = R_CODE.format(tests=str(Path(__file__).parent), names=quoted, drawn=DRAWN)
    shown = run_r(library, code)
    line = next(row for row in shown.splitlines() if row.startswith("FOUND "))
    one, genes, types = json.loads(line.removeprefix("FOUND "))
    for name, p, of_scan in zip(TESTS, one, genes, strict=True):
        expected = asked(res, name)
        assert p == pytest.approx(expected.pvalue, rel=1e-8), name
        if DRAWS not in TESTS[name].needs:
            assert of_scan == pytest.approx(expected.pvalue, rel=1e-8), name
    by_type = asked(res, "largest").extra["celltype"]
    assert types == pytest.approx(list(by_type.values()), rel=1e-8)
