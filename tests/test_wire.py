"""The wire: the same numbers as the formula interface, in plain values only."""

from __future__ import annotations

import json
import signal
import warnings

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.design.grids import differences
from ctmm_formula.errors import DataError
from ctmm_formula.wire import calls, codec

EXACT = 1e-12  # relative: the same arrays through the same code
FORMULA = "expr ~ C(celltype) + sex + PC1"


@pytest.fixture(scope="module")
def df():
    return ctmm.load_example()


def factor(name, values):
    values = pd.Categorical(values)
    codes = np.asarray(values.codes, dtype=np.int32)
    return {
        "name": name,
        "codes": codec.encode(codes),
        "levels": [str(v) for v in values.categories],
    }


def make_request(df, res, **settings):
    """The request that a caller makes of the design of `res`."""
    design = res.design
    op = design.kind == "op"
    model = {
        "formula": res.formula,
        "response": "expr",
        "fixed": design.spec.fixed,
        "rows": codec.encode(design.rows + 1),
        "y": codec.encode(design.y),
        "X": codec.encode(design.X),
        "names": list(design.names),
        "donor": "donor",
        "celltype": None if op else "celltype",
        "noise": {"name": "nu", "values": codec.encode(design.nu)},
        "n_cells": {"name": "n_cells", "values": codec.encode(design.n_cells)},
        "share": None,
        "proportions": None,
        "factors": [factor("donor", df["donor"]), factor("batch", df["batch"])],
        "fixed_factors": [],
        "random": [{"left": t.left, "groups": list(t.groups)} for t in design.spec.random],
        "mean_rows": codec.encode(design.mean_rows),
        "dropped": {},
        "notes": [],
    }
    if op:
        columns = list(design.proportion_cols)
        values = codec.encode(df[columns].to_numpy())
        model["proportions"] = {"names": columns, "values": values}
    else:
        model["factors"].append(factor("celltype", df["celltype"]))
    return {
        "model": model,
        "structure": res.structure,
        "method": res.method,
        "bounds": None,
        "noise_floor": 0.1,
    } | settings


def stored(sent, reply):
    """A fit as callers give it back."""
    value = reply["value"]
    keep = {key: sent[key] for key in ("model", "structure", "noise_floor")}
    return keep | {"bounds": value["bounds"], "estimate": value["estimate"]}


def plain(value):
    """Whether a value is made of what every language has."""
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool, bytearray)


def call(name, sent):
    reply = calls.call(name, sent)
    assert plain(reply)
    assert reply["ok"], reply["message"]
    return reply["value"]


def fitted(method):
    """A table and its fit by formula."""
    if method == "op":
        df = ctmm.load_example(kind="op")
        props = [c for c in df if c.startswith("prop_")]
        return df, ctmm.fit(
            "expr ~ sex + PC1", data=df, proportions=props, structure="hom", method="reml"
        )
    df = ctmm.load_example()
    return df, ctmm.fit(FORMULA, random="batch", method=method, data=df)


@pytest.fixture(scope="module", params=["reml", "ml", "he", "op"])
def case(request):
    df, res = fitted(request.param)
    sent = make_request(df, res)
    return res, sent, calls.call("fit", sent)


def test_effects_cross_as_rows(df):
    """The caller makes the rows; what comes back is what Python says of the same formula."""
    table = df.assign(arm=df["donor"].astype("category").cat.codes % 3)
    res = ctmm.fit("expr ~ C(celltype) * C(arm)", data=table, method="reml")
    found = res.effects("arm")
    asked = differences(res.design, "arm")
    sent = make_request(table, res)
    fit = stored(sent, {"value": call("fit", sent)})
    rows = {
        "name": "arm", "reference": asked.reference, "steps": list(asked.steps),
        "rows": codec.encode(asked.rows), "missing": {}, "at": "",
    }  # fmt: skip
    reply = call("effects", {"fit": fit, "effects": rows})
    np.testing.assert_allclose(codec.decode(reply["table"]), found.table, rtol=1e-9)
    np.testing.assert_allclose(codec.decode(reply["mean"]), found.mean, rtol=1e-9)
    assert list(reply["tests"]) == ["omnibus", "heterogeneity", "mean", *res.celltypes]
    for name, test in found.tests.items():
        assert reply["tests"][name]["pvalue"] == pytest.approx(test.pvalue, rel=1e-9)
        assert "parts" not in reply["tests"][name]


def test_fit_is_that_of_the_formula(case):
    res, _, reply = case
    assert reply["ok"], reply
    assert plain(reply)
    assert not reply["warnings"]
    value = reply["value"]
    at = value["estimate"]
    for key in ("theta", "beta", "cov_beta", "information", "observed"):
        expected = getattr(res.estimate, key)
        np.testing.assert_allclose(codec.decode(at[key]), expected, rtol=EXACT, equal_nan=True)
    np.testing.assert_equal(at["llf"], float(res.estimate.llf))
    assert value["names"] == list(res.params.index)
    table = {name: codec.decode(column) for name, column in value["table"]["columns"].items()}
    for name, column in res.table().items():
        np.testing.assert_allclose(table[name], column, rtol=EXACT)
    np.testing.assert_allclose(codec.decode(value["cov"]), res.cov_params(), rtol=EXACT)
    np.testing.assert_allclose(codec.decode(value["fitted"]), res.fittedvalues, rtol=EXACT)
    shares = codec.decode(value["shares"]["columns"]["share"])
    np.testing.assert_allclose(shares, res.variance_explained(by_celltype=True)["share"])
    for name, frame in res.random_effects.items():
        np.testing.assert_allclose(codec.decode(value["effects"][name]), frame, rtol=EXACT)
    assert value["notes"] == list(res.notes)


def test_a_fit_that_was_sent_out_answers_like_the_one_that_stayed(case):
    res, sent, reply = case
    fit = stored(sent, reply)
    for ask, expected in [
        ({"what": "variance"}, lambda: res.test_variance()),
        ({"what": "variance", "method": "jackknife"}, lambda: res.test_variance("jackknife")),
        ({"what": "variance", "method": "score"}, lambda: res.test_variance("score")),
        ({"what": "mean", "covariance": "model"}, lambda: res.test_mean("model")),
        ({"what": "component", "name": "hom"}, lambda: res.test_component("hom")),
    ]:
        got = call("test", {"fit": fit, "n_jobs": 1} | ask)
        expected = expected().to_dict()
        df = got.pop("df")
        np.testing.assert_equal(df, np.atleast_1d(expected.pop("df")).tolist())
        for key in ("statistic", "pvalue", "log_pvalue"):
            np.testing.assert_allclose(got.pop(key), expected.pop(key), rtol=1e-9)
        np.testing.assert_equal(got, expected)
    jack = call("jackknife", {"fit": fit, "blocks": None, "one_step": False, "n_jobs": 2})
    own = res.jackknife()
    np.testing.assert_allclose(codec.decode(jack["cov"]), own.cov_params(), rtol=1e-9)
    assert jack["left_out"] == list(own.estimates.index)
    ask = {"fit": fit, "what": "mean", "covariance": jack}
    assert call("test", ask)["pvalue"] == pytest.approx(res.test_mean(own).pvalue, rel=1e-9)


def test_a_bootstrap_may_be_asked_piece_by_piece(df):
    res = ctmm.fit(FORMULA, structure="hom", data=df, method="reml")
    sent = make_request(df, res)
    fit = stored(sent, calls.call("fit", sent))
    ask = {"fit": fit, "seed": 3, "n_jobs": 2}
    pieces = [
        codec.decode(call("bootstrap", ask | {"start": a, "stop": b})["replicates"])
        for a, b in [(0, 3), (3, 5)]
    ]
    expected = res.bootstrap(5, rng=3).replicates
    np.testing.assert_allclose(np.vstack(pieces), expected, rtol=EXACT)


def test_anova_is_that_of_results(df):
    fits = [ctmm.fit(FORMULA, structure=name, data=df, method="reml") for name in ("free", "hom")]
    asked = []
    for res in fits:
        sent = make_request(df, res)
        asked.append(stored(sent, calls.call("fit", sent)))
    got = call("anova", {"fits": asked, "labels": ["large", "small"]})
    assert got["index"] == ["small", "large"]
    expected = ctmm.anova(*fits).table["statistic"]
    np.testing.assert_allclose(codec.decode(got["columns"]["statistic"]), expected, rtol=EXACT)


def test_matrices_of_the_caller(df):
    named = ctmm.fit(FORMULA, structure="free", data=df, method="reml")
    labels, basis = named.structure_.labels, named.structure_.basis
    matrices = {label: codec.encode(B) for label, B in zip(labels, basis, strict=True)}
    got = call("fit", make_request(df, named, structure=matrices))
    np.testing.assert_allclose(codec.decode(got["estimate"]["theta"]), named.vcomp, rtol=1e-8)


def test_errors_and_warnings_are_part_of_the_reply(df):
    res = ctmm.fit(FORMULA, data=df, method="reml")
    reply = calls.call("fit", make_request(df, res, method="magic"))
    assert not reply["ok"]
    assert reply["classes"] == ["CTMMError", "ValueError", "Exception"]
    assert "choose from ml, reml, he" in reply["message"]
    sent = make_request(df, res)
    sent["model"]["noise"]["values"] = codec.encode(np.where(np.arange(275) == 6, -1.0, df["nu"]))
    reply = calls.call("fit", sent)
    assert reply["type"] == "DataError"
    assert "row 7" in reply["message"]  # as the caller counts
    X = res.design.X.copy()
    X[:, 1] = X[:, 2]
    sent = make_request(df, res)
    sent["model"]["X"] = codec.encode(X)
    assert "not of full rank" in calls.call("fit", sent)["message"]
    sent = make_request(df, res)
    del sent["model"]["y"]
    reply = calls.call("fit", sent)
    assert (reply["ok"], reply["type"]) == (False, "KeyError")

    y = np.sin(np.arange(275)) / 50  # less variance than noise
    sent = make_request(df, res)
    sent["model"]["y"] = codec.encode(y)
    reply = calls.call("fit", sent)
    assert reply["ok"]
    assert [note["classes"][0] for note in reply["warnings"]] == ["BoundaryWarning"]


def test_a_call_can_be_interrupted(monkeypatch):
    """Ctrl-C is an exception in a call, whatever handler the caller has, which is put back."""

    def pressed(request):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    def theirs(number, frame):
        raise AssertionError("the caller's handler must not be asked in a call")

    monkeypatch.setitem(calls.CALLS, "fit", pressed)
    before = signal.signal(signal.SIGINT, theirs)
    try:
        assert calls.call("fit", {})["type"] == "KeyboardInterrupt"
        assert signal.getsignal(signal.SIGINT) is theirs
        with pytest.raises(AssertionError, match="the caller's handler"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, np.nan, np.inf, -0.0]),
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((0, 3)),
    ],
)
def test_arrays_survive_the_wire(array):
    sent = codec.encode(array)
    assert type(sent["data"]) is bytearray
    json.dumps(sent["shape"])
    back = codec.decode(sent)
    np.testing.assert_array_equal(back, array)
    assert (np.signbit(back) == np.signbit(array)).all()


def test_what_does_not_fit_is_refused():
    sent = codec.encode(np.arange(6.0))
    with pytest.raises(ctmm.CTMMError, match=r"6 numbers arrived for an array of shape \(2, 4\)"):
        codec.decode(sent | {"shape": [2, 4]})
    assert codec.decode(sent | {"shape": 6}).shape == (6,)


def test_a_design_of_a_caller_codes_no_new_rows(df):
    """It has columns of X and no formula: predicting is the caller's, and a file cannot hold it."""
    res = ctmm.fit(FORMULA, data=df, method="reml")
    sent = make_request(df, res)
    there = calls._stored(stored(sent, calls.call("fit", sent)))
    assert there.predict().equals(there.marginal)
    np.testing.assert_allclose(there.means(), res.means(), rtol=1e-9)
    with pytest.raises(DataError, match="predict where it was fitted"):
        there.predict(df.head(3))
    with pytest.raises(DataError, match="keep it where it was fitted"):
        there.to_json()


def test_missing_means_of_the_cell_types_cross_once():
    df = ctmm.load_example()
    with pytest.warns(ctmm.CTMMWarning, match="no cell type"):
        res = ctmm.fit("expr ~ sex", data=df, method="he")
    sent = make_request(df, res)
    reply = calls.call("fit", sent)
    assert [note["message"] for note in reply["warnings"]] == [res.notes[-1]]
    assert reply["warnings"][0]["classes"][0] == "CTMMWarning"
    assert reply["value"]["notes"] == list(res.notes)
    y = codec.decode(sent["model"]["y"])[None, :]
    more = {"genes": ["a"], "expr": codec.encode(y), "nu": codec.encode(df["nu"].to_numpy()[None])}
    settings = {"models": [], "tests": [], "one_step": False, "n_bootstrap": 1, "seed": 1}
    reply = calls.call("genes", sent | more | settings | {"n_jobs": 1})
    assert [note["message"] for note in reply["warnings"]] == [res.notes[-1]]
    assert reply["value"]["notes"][-1] == res.notes[-1]


def test_genes_with_windows_of_their_own():
    """The numbers of a scan here, genes in the caller's order, genotypes as a table."""
    df = ctmm.load_example()
    donors = list(df["donor"].unique())
    counts = np.random.default_rng(4).binomial(2, 0.3, (len(donors), 20)).astype(float)
    table = pd.DataFrame(counts, donors, [f"rs{k}" for k in range(20)])
    places = pd.DataFrame({"chromosome": "1", "position": 1000.0 * np.arange(20)}, table.columns)
    where = pd.DataFrame({"chromosome": "1", "tss": [14_000.0, 4000.0]}, ["late", "early"])
    sent = make_request(df, ctmm.fit("expr ~ C(celltype)", structure="hom", method="he", data=df))
    y = np.array([df["expr"], df["expr"][::-1]])
    nu = np.array([df["nu"], df["nu"]])
    sent["model"] |= {"genetic_structure": "hom", "genotypes": {
        "rows": donors, "columns": list(table), "values": codec.encode(counts),
        "chromosome": ["1"] * 20, "position": codec.encode(places["position"].to_numpy()),
    }}  # fmt: skip
    sent |= {"method": None, "window": 4000, "maf": 0.05, "positions": {
        "genes": list(where.index), "chromosome": ["1", "1"],
        "tss": codec.encode(where["tss"].to_numpy()),
    }}  # fmt: skip
    sent |= {
        "models": [],
        "tests": ["heritability"],
        "one_step": False,
        "n_bootstrap": 1,
        "seed": 1,
    }
    sent |= {"genes": list(where.index), "expr": codec.encode(y), "nu": codec.encode(nu)}
    sent |= {"seed": 1, "n_jobs": 1}
    found = call("genes", sent)["columns"]
    genes = {
        "expr": pd.DataFrame(y.T, columns=where.index),
        "nu": pd.DataFrame(nu.T, columns=where.index),
    }
    scan = ctmm.fit_genes(
        "~ C(celltype)", data=df.drop(columns=["expr", "nu"]), **genes, structure="hom",
        genotypes=ctmm.Genotypes(table, places), window=4000, maf=0.05, positions=where,
    ).table  # fmt: skip
    assert found["gene"] == ["late", "early"] == scan["gene"].tolist()
    for name in ("cis:hom", "hom", "stat_heritability", "p_heritability", "n_snps"):
        np.testing.assert_allclose(codec.decode(found[name]), scan[name], rtol=1e-9)
    again = {**sent["model"], "kinship": [{"name": "cis", "file": "K.csv"}]}
    reply = calls.call("genes", sent | {"model": again})
    assert not reply["ok"] and "every gene's own window" in reply["message"]


def test_missing_values_of_r_are_quiet():
    """NA_real_ is a signalling NaN, of which a cast warns."""
    data = np.array([0x7FF00000000007A2, 0x3FF0000000000000], dtype="<u8").tobytes()
    found = codec.decode({"dtype": "f8", "shape": [2], "data": data})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(found.astype(np.float32), [np.nan, 1.0])
