"""The fuzzers of tests/fuzz, in short; by hand they run for long (``python tests/fuzz --help``)."""

from __future__ import annotations

import warnings
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from conftest import quick_first

pytest.importorskip("pyarrow")
pytest.importorskip("anndata")
pytest.importorskip("formulaic")

from fuzz import FUZZERS, files, harness, pseudobulks, tables

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMError, DataError, FormulaError

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness hears them all

TRIES = {"differential": 100, "scans": 20, "kills": 6}
"""Of each fuzzer in a test; 40 where nothing is said."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", FUZZERS)
def test_fuzz(name, seed):
    found = harness.run({name: FUZZERS[name]}, seed, TRIES.get(name, 40))
    assert harness.faults(found) == {}
    assert sum(found.values()) == TRIES.get(name, 40)


# the harness itself: what it must see


def _wait() -> str:
    while True:
        pass


def _warn() -> str:
    warnings.warn("leaked", RuntimeWarning, stacklevel=1)
    return ""


def _refuse(error: Exception) -> str:
    raise error


OUTCOMES = {
    "result": lambda: "",
    "refused": lambda: _refuse(DataError("column 'nu' is missing")),
    "refused ": lambda: _refuse(ImportError("no plots: pip install matplotlib")),
    "ACCEPTED other values": lambda: "other values",
    "ACCEPTED an error without a word": lambda: _refuse(DataError("")),
    "RAW KeyError": lambda: _refuse(KeyError("nu")),
    "RAW RuntimeWarning": _warn,
    "RAW ImportError": lambda: _refuse(ImportError("no plots")),
    "HANG": _wait,
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_the_harness_tells_outcomes_apart(name):
    assert harness.outcome(OUTCOMES[name], seconds=1).startswith(name.strip())


def test_counts_and_faults():
    found = Counter({"fit: result": 3, "fit: refused": 2, "fit: RAW KeyError: 'x'": 1})
    assert harness.faults(found) == {"fit: RAW KeyError: 'x'": 1}
    _, fit, total = harness.closing(found)
    assert fit.split() == ["fit", "6", "3", "2", "1", "0", "0"]
    assert total.split() == ["all", "6", "3", "2", "1", "0", "0"]


def test_a_try_can_be_had_again():
    first, again = (
        tables._call(np.random.default_rng([1, 5, *b"fits"])) for _ in range(2)
    )  # fmt: skip
    assert str(first) == str(again)


def test_rows_that_are_lost_and_values_outside_are_seen():
    data = tables.table(np.random.default_rng(1))
    fit = ctmm.fit("expr ~ celltype", structure="hom", method="reml", data=data)
    assert tables.wrong_fit(fit, data, {}) == ""
    assert "rows given" in tables.wrong_fit(fit, pd.concat([data, data.head(1)]), {})
    assert "misread" in tables.wrong_fit(fit, data.assign(expr=data["expr"] + 1), {})
    assert "joined or parted" in tables.wrong_fit(fit, data.assign(donor="d"), {})
    fit.estimate.theta[0] = -5.0
    assert "outside the domain" in tables.wrong_fit(fit, data, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "number", "method"),
    [
        (5, 1030, "he"),  # -117.008 and -116.185
        (3, 189, "robust"),  # -82.459, where the first climb ends, and -82.351
    ],
)
def test_null_fits_with_two_maxima(seed, number, method):
    """The restricted log-likelihood of these null models has two maxima: both sides find the higher
    one."""
    found = harness.run({"differential": FUZZERS["differential"]}, seed, 1, first=number)
    assert found == {f"differential {method} ctp: result": 1}


# what the fuzzers found, each kind once


@pytest.fixture(scope="module")
def table():
    return tables.table(np.random.default_rng(3))


NAMES = {"missing": pd.NA, "array": np.zeros(2), "list": [1], "number": 7}


@pytest.mark.parametrize("name", NAMES)
def test_columns_named_by_no_text(table, name):
    data = pd.concat([table, table[["age"]].set_axis(range(1), axis=1)], axis=1)
    data.columns = pd.Index([*table.columns, NAMES[name]], dtype=object, tupleize_cols=False)
    if name in ("array", "list"):
        with pytest.raises(DataError, match=r"data has a column named by a (ndarray|list)"):
            ctmm.fit("expr ~ celltype", structure="hom", method="he", data=data)
    else:
        fit = ctmm.fit("expr ~ celltype", structure="hom", method="he", data=data)
        own = ctmm.fit("expr ~ celltype", structure="hom", method="he", data=table)
        assert fit.params.equals(own.params)
    with pytest.raises(DataError):
        ctmm.fit("expr ~ celltype + agee", structure="hom", method="he", data=data)


@pytest.mark.parametrize("by", quick_first([1e100, 1e-100]))
@pytest.mark.parametrize("method", ["reml", "he", "robust"])
def test_sizes_whose_fourth_powers_are_no_numbers(table, by, method):
    ask = {"structure": "hom", "method": method}
    table = table.drop(columns="nu2")  # whose size would be another
    with pytest.raises(DataError, match=r"'expr' has (values up to|no values further).*rescale"):
        ctmm.fit("expr ~ celltype", data=table.assign(expr=table["expr"] * by), **ask)
    with pytest.raises(DataError, match=r"'nu'.*must be positive and finite.*rescale the response"):
        ctmm.fit("expr ~ celltype", data=table.assign(nu=table["nu"] * by**2), **ask)
    fine = by**0.5
    fit = ctmm.fit(
        "expr ~ celltype", **ask,
        data=table.assign(expr=table["expr"] * fine, nu=table["nu"] * fine**2),
    )  # fmt: skip
    own = ctmm.fit("expr ~ celltype", data=table, **ask)
    np.testing.assert_allclose(fit.params[:3] / fine, own.params[:3], rtol=1e-6)


def test_a_gene_of_such_a_size_is_a_row_with_the_reason(table):
    good = pd.DataFrame({"a": table["expr"], "b": table["expr"] * 1e80, "c": table["expr"] * 1e-80})
    nu = pd.DataFrame({name: table["nu"] for name in "abc"})
    scan = ctmm.fit_genes(
        "~ celltype", data=table, expr=good, nu=nu, structure="hom", method="he", tests=[]
    )
    assert scan.table["status"].tolist() == ["ok", "failed", "failed"]
    assert scan.table["reason"].str.contains("rescale").tolist() == [False, True, True]


@pytest.fixture(scope="module")
def pb():
    cells = pseudobulks.cells(np.random.default_rng(3))
    return ctmm.pseudobulk(cells, min_cells=2, min_cells_donor=2)


@pytest.fixture(scope="module")
def fit(table):
    return ctmm.fit("expr ~ celltype", "batch", structure="hom", method="reml", data=table)


SINGLE = np.array(2.0)  # says that it can be gone through
HUGE = 10**400  # no float holds it, and nobody waits for it
ASKED = {
    "predict, arrays": (lambda fit, pb: fit.predict(random=np.eye(2)), "unknown random effect"),
    "a gene": (lambda fit, pb: ctmm.fit_genes("~ 1", data=pb, genes=[HUGE]), "beyond 1e308"),
    "a gene of it": (lambda fit, pb: ctmm.to_frame(pb, [HUGE]), "beyond 1e308"),
    "to_frame, arrays": (lambda fit, pb: ctmm.to_frame(pb, [SINGLE]), "has no gene '2.0'"),
    "by_celltype": (
        lambda fit, pb: fit.variance_explained(by_celltype=np.eye(2)), "by_celltype= must be True",
    ),
    "n_batches": (lambda fit, pb: ctmm.power(12, 2, n_batches=np.eye(2)), "n_batches= must be a"),
    "penalty": (
        lambda fit, pb: ctmm.impute(pb, "softimpute", penalty=HUGE), "penalty must .* 401 digits",
    ),
    "structure": (
        lambda fit, pb: ctmm.fit("expr ~ 1", structure=[[[HUGE]]], data=fit.design.frame),
        "must be .*numbers|matrix",
    ),
    "V": (lambda fit, pb: ctmm.simulate_pseudobulk(10, 2, V=[1e308, 0]), "within 1e100"),
    "layer": (
        lambda fit, pb: ctmm.pseudobulk(pseudobulks.cells(np.random.default_rng(3)), layer=[""]),
        "layer= must be the name of a layer",
    ),
    "n_jobs": (lambda fit, pb: fit.bootstrap(2, n_jobs=2**53), "n_jobs= must be a number"),
    "bootstrap": (lambda fit, pb: fit.bootstrap(HUGE), "n= must be at most 1,000,000, got a whole"),
    "simulate": (lambda fit, pb: fit.simulate(n=10**9), "n= must be at most 1,000,000"),
    "exact": (
        lambda fit, pb: ctmm.fit(
            "expr ~ celltype", structure="hom", method="reml", data=fit.design.frame
        ).test_component("hom", "exact", n=10**9),
        "n= must be at most 100,000,000",
    ),
    "n_bootstrap": (
        lambda fit, pb: ctmm.fit_genes("~ 1", data=pb, n_bootstrap=HUGE), "n_bootstrap= must be at",
    ),
    "n_sim": (lambda fit, pb: ctmm.power(12, 2, n_sim=HUGE), "n_sim= must be at most 1,000,000"),
    "n_donors": (lambda fit, pb: ctmm.power(HUGE, 2), "n_donors= must be at most 1,000,000"),
    "celltypes": (lambda fit, pb: ctmm.power(12, 10**6), "celltypes= must be at most 200, got"),
    "donors": (
        lambda fit, pb: ctmm.simulate_pseudobulk(10**6, 10**4), "n_donors=1,000,000 x col",
    ),
    "genes": (
        lambda fit, pb: ctmm.simulate.simulate_genes(10**6, 1000, 2), "n_genes=1,000,000 x rows=",
    ),
    "cells": (
        lambda fit, pb: ctmm.simulate.simulate_cells(10, 20, 2, cells=1e9), "n_genes=10 x cells=",
    ),
    "predict": (lambda fit, pb: fit.predict(random=SINGLE), "random= must be"),
    "tests": (lambda fit, pb: ctmm.fit_genes("~ 1", data=pb, tests=SINGLE), "tests= must be a"),
    "one gene": (lambda fit, pb: ctmm.fit_genes("~ 1", data=pb, genes=3), "genes= must be a list"),
    "to_frame": (lambda fit, pb: ctmm.to_frame(pb, 0), "genes= must be a list"),
    "proportions": (
        lambda fit, pb: ctmm.fit("expr ~ 1", data=fit.design.frame, proportions=SINGLE),
        "proportions must be a list",
    ),
    "methods": (
        lambda fit, pb: ctmm.evaluate_imputation(pb, pd.NaT, hide="random"), "methods= must be",
    ),
    "labels": (lambda fit, pb: ctmm.anova(fit, fit, labels=1.0), "labels= must be a list"),
    "name": (lambda fit, pb: ctmm.to_long(pb, "A", name=1), "name= must be the name of a column"),
    "noise": (
        lambda fit, pb: ctmm.fit_genes("~ 1", data=pb, noise=np.zeros(0)), "noise= must be",
    ),
    "fraction": (
        lambda fit, pb: ctmm.evaluate_imputation(pb, hide="random", fraction="x"), "fraction= must",
    ),
    "gene": (lambda fit, pb: ctmm.load_example(["B"]), "unknown gene"),
    "alpha": (lambda fit, pb: fit.conf_int(alpha=10**400), "alpha must lie"),
    "covariance": (lambda fit, pb: fit.conf_int(covariance=np.eye(2)), "unknown covariance"),
    "covariance of a test": (lambda fit, pb: fit.wald_test("hom = 0", np.eye(2)), "unknown cov"),
    "covariance of means": (lambda fit, pb: fit.test_mean(np.eye(2)), "unknown covariance"),
    "covariates": (
        lambda fit, pb: ctmm.pseudobulk(
            pseudobulks.cells(np.random.default_rng(3)), covariates=[1], min_cells_donor=2,
        ),
        "covariates= names 1, not a column",
    ),
    "batch_variance": (
        lambda fit, pb: ctmm.power(12, 2, n_batches=3, batch_variance=1e15, n_sim=2, rng=1),
        "no simulated study can be fitted with .*too large to draw",
    ),
    "expr": (
        lambda fit, pb: ctmm.fit_genes("~ 1", data=fit.design.frame, expr=[[1], [1, 2]], nu=SINGLE),
        "values of expr are no real numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_arguments_that_are_none(fit, pb, name):
    ask, message = ASKED[name]
    with pytest.raises(CTMMError, match=message):
        ask(fit, pb)


def test_fractions_are_numbers(pb):
    third = ctmm.filter_genes(pb, min_share=Fraction(1, 3), above=Fraction(1, 2))
    assert third.var_names.equals(ctmm.filter_genes(pb, min_share=1 / 3, above=0.5).var_names)
    with pytest.raises(DataError, match=r"no gene is left.*a share of at most 0.333333"):
        ctmm.filter_genes(pb, min_share=Fraction(1, 3), above=Fraction(99))


def changed(pb, change):
    out = pb.copy()
    change(out)
    return out


SPOILED = {
    "many cells": (lambda pb: pb.obs.__setitem__("n_cells", 1e308), r"'n_cells'. is 1e.308 in 'd0"),
    "no X": (lambda pb: setattr(pb, "X", None), "has lost X"),
    "complex": (lambda pb: setattr(pb, "X", pb.X.astype(complex)), "are complex"),
    "infinite": (
        lambda pb: pb.X.__setitem__((0, 1), np.inf),
        "X is inf in 'd0.B', gene 'B-1'",
    ),
    "shares": (lambda pb: pb.obs.__setitem__("proportion", "x"), "'proportion'.*must hold numbers"),
    "cells": (lambda pb: pb.obs.__setitem__("n_cells", "x"), "'n_cells'.*must hold numbers"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_pseudobulk_that_is_none(pb, name):
    change, message = SPOILED[name]
    with pytest.raises(DataError, match=message):
        ctmm.impute(changed(pb, change), "mean")


@pytest.mark.parametrize(
    "step", [ctmm.overall, ctmm.standardize, ctmm.filter_genes, ctmm.impute, ctmm.to_frame]
)
def test_pseudobulk_without_rows(pb, step):
    with pytest.raises(DataError, match="the pseudobulk has no rows"):
        step(pb[:0].copy())


def test_cells_labelled_by_lists_and_covariates_beyond_floats():
    cells = pseudobulks.cells(np.random.default_rng(3))
    lists = cells.copy()
    lists.obs["donor"] = pd.Series([{}] * len(cells), cells.obs_names, dtype=object)
    with pytest.raises(DataError, match=r"'donor'.*holds dict values"):
        ctmm.pseudobulk(lists)
    cells.obs["run"] = pd.Series([10**400] * len(cells), cells.obs_names, dtype=object)
    made = ctmm.pseudobulk(cells, min_cells=2, min_cells_donor=2)
    assert made.obs["run"].tolist() == [hex(10**400)] * len(made)


def test_fixed_effects_whose_variance_by_the_model_is_negative():
    """Moments of two kinships; the first gene of the fuzzer's scan."""
    G = ctmm.simulate.simulate_genotypes(24, 60, rng=1)
    own = ctmm.simulate.Heredity(G, cis=0.3)
    genes = ctmm.simulate.simulate_genes(files.GENES, 24, 2, heredity=own, rng=2)
    related = {"genotypes": G, "positions": genes.positions, "kinship": {"trans": G.kinship()}}
    ask = {"data": genes, "structure": "hom", "window": 10**6, "maf": 0.05, "tests": [], **related}
    scan = files.quiet(ctmm.fit_genes, "~ C(celltype)", **ask)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        fit = scan.gene("g1")
        first = fit.params.index[0]
        with pytest.warns(ctmm.CTMMWarning, match="negative components make the variance"):
            assert fit.cov_params("model").loc[first, first] < 0
        errors = fit.table("model")["std_error"]
        test = fit.t_test(np.eye(2, len(fit.params)), covariance="model")
        assert "Negative components make the variance" in str(fit.summary(covariance="model"))
    assert np.isnan(errors.iloc[:2]).tolist() == [True, False]
    assert np.isnan(test.sd.ravel()).tolist() == [True, False]
    assert "variance of a tested combination negative" in test.notes[0] and test.notes[1] == ""
    assert str(test).endswith(f"c0: {test.notes[0]}")
    assert fit.bse.iloc[0] > 0  # of the jackknife


# formulas of files


@pytest.mark.parametrize("by", ["json", "scan"])
@pytest.mark.parametrize("code", quick_first(files.POISON, 3))
def test_no_formula_of_a_file_runs_code_under_a_right_checksum(tmp_path_factory, by, code):
    """The whitelist stops what the checksum cannot: it was computed anew."""
    mark, read = poisoned(tmp_path_factory)[by]
    with pytest.raises(FormulaError, match=r"comes from a file|is not a Python expression|cannot"):
        read(code.replace("{mark}", str(mark)))
    assert not mark.exists()


_MADE: dict = {}


def poisoned(tmp_path_factory):
    """Made once: the files are the same for all formulas."""
    if not _MADE:
        folder = tmp_path_factory.mktemp("poison")
        by_json, by_scan = files.poisonable(folder)
        _MADE.update(json=(folder / "ran", by_json), scan=(folder / "ran", by_scan))
    return _MADE


def test_what_is_vouched_for_is_read_from_such_a_file(tmp_path_factory):
    """The same edit by a harmless formula is evaluated: it is the whitelist that refuses."""
    for _, read in poisoned(tmp_path_factory).values():
        read("np.log(PC1 - PC1 + 2.5 + PC1**2)")


@pytest.mark.parametrize("by", [1e200, 1e-200])
def test_covariates_whose_squares_are_no_numbers(table, by):
    with pytest.raises(DataError, match=r"'PC1' of the fixed part has values up to .*: rescale"):
        ctmm.fit("expr ~ celltype + PC1", data=table.assign(PC1=table["PC1"] * by))


def test_numbers_of_cells_beyond_any_study(table):
    with pytest.raises(DataError, match=r"at most 1e\+15, found 1e\+308"):
        ctmm.fit("expr ~ celltype", data=table.assign(n_cells=1e308))


@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
def test_levels_that_leave_one_out_are_refused_without_another_word(table, engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormulaError, match=r"cannot be computed.*'M'"):
            ctmm.fit("expr ~ C(sex, levels=['F'])", data=table, formula_engine=engine)


@pytest.mark.parametrize("by", [True, -1e308, ["p"], print])
def test_columns_that_are_none_are_refused_by_top(table, by):
    expr, nu = pd.DataFrame({"g": table["expr"]}), pd.DataFrame({"g": table["nu"]})
    scan = ctmm.fit_genes("~ celltype", data=table, expr=expr, nu=nu, method="he", tests=[])
    with pytest.raises(CTMMError, match="unknown column"):
        scan.top(by=by)


@pytest.mark.parametrize("kind", [object, "int64"])
def test_whole_numbers_that_no_float_holds_are_labels(kind):
    data = pseudobulks.cells(np.random.default_rng(1))
    first = 2**53
    data.obs["donor"] = pd.Series(
        [first + int(name[1:]) for name in data.obs["donor"]], data.obs.index, dtype=kind
    )
    pb = ctmm.pseudobulk(data, min_cells=2, min_cells_donor=2)
    assert set(pb.obs["donor"]) == {str(first + k) for k in range(10)}


def test_intervals_are_no_labels():
    data = pseudobulks.cells(np.random.default_rng(1))
    data.obs["celltype"] = pd.Series([pd.Interval(0, 1)] * len(data), data.obs.index, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        with pytest.raises(DataError, match="Interval values: labels must be text or numbers"):
            ctmm.pseudobulk(data)
