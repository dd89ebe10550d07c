"""The bridge to R: the same results where R is there, a clear word where it is not.

Tests that need R and rpy2 are skipped without them; those that need softImpute as well.
"""

import builtins
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula import r
from ctmm_formula.cells import softimpute
from ctmm_formula.errors import CTMMError, DataError

ROOT = Path(__file__).parents[1]
OBJECTIVE = 1e-6
"""Relative, as golden; both engines stop near the minimum."""
COMPLETED = 1e-4
"""Absolute, entries of standard deviation 2."""
FINE = {"tol": 1e-14, "max_steps": 100_000}


def why_not(*packages):
    try:
        r.check(*packages)
    except r.RUnavailableError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def engine():
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def soft(engine):
    reason = why_not("softImpute")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def matrix(golden):
    return np.genfromtxt(golden / "softimpute_input.csv", delimiter=",")


@pytest.fixture
def without_rpy2(monkeypatch):
    """Imports of rpy2 fail, as where it is not installed."""
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] == "rpy2":
            raise ModuleNotFoundError(f"No module named {name!r}", name="rpy2")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


def failing_start(monkeypatch, error):
    """Imports of rpy2 raise this, as where it cannot start R."""
    real = builtins.__import__

    def importing(name, *args, **kwargs):
        if name.partition(".")[0] == "rpy2":
            os.environ["LD_LIBRARY_PATH"] = "/left/by/rpy2"
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)


CALLS = [
    lambda: r.check(),
    lambda: r.softimpute(np.eye(4), 1.0),
    lambda: r.to_r(pd.DataFrame({"a": [1.0]})),
    lambda: r.from_r(None),
]


@pytest.mark.parametrize("call", CALLS, ids=["check", "softimpute", "to_r", "from_r"])
def test_without_rpy2_the_error_says_what_to_install(without_rpy2, monkeypatch, call):
    monkeypatch.setattr(r.shutil, "which", lambda name: "/usr/bin/R")
    with pytest.raises(r.RUnavailableError, match=r"needs the Python package rpy2: pip install"):
        call()
    monkeypatch.setattr(r.shutil, "which", lambda name: None)
    with pytest.raises(r.RUnavailableError, match=r"install R .* then pip install"):
        call()


def test_a_broken_package_that_is_not_rpy2_is_not_blamed_on_it(monkeypatch):
    failing_start(monkeypatch, ModuleNotFoundError("No module named 'cffi'", name="cffi"))
    with pytest.raises(ModuleNotFoundError, match="cffi"):
        r.check()


@pytest.mark.parametrize(
    "error",
    [ValueError("r_home is None"), RuntimeError("R_HOME"), OSError("no libR.so"), ImportError("x")],
)
def test_without_r_the_error_says_so(monkeypatch, error):
    monkeypatch.delenv("R_HOME", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    failing_start(monkeypatch, error)
    monkeypatch.setattr(r.shutil, "which", lambda name: None)
    with pytest.raises(r.RUnavailableError, match="rpy2 is installed but R is not found"):
        r.check()
    monkeypatch.setattr(r.shutil, "which", lambda name: "/usr/bin/R")
    with pytest.raises(r.RUnavailableError, match=r"rpy2 cannot start R \(.*must fit each other"):
        r.check()
    assert "LD_LIBRARY_PATH" not in os.environ


def test_impute_passes_the_message_on(without_rpy2):
    anndata = pytest.importorskip("anndata")
    with pytest.raises(r.RUnavailableError, match="rpy2"):
        ctmm.impute(anndata.AnnData(np.eye(3)), engine="r")


def test_bad_arguments_are_told_before_r_is_needed(without_rpy2):
    with pytest.raises(CTMMError, match="unknown type"):
        r.softimpute(np.eye(4), 1.0, type="qr")
    with pytest.raises(CTMMError, match="must be positive"):
        r.softimpute(np.eye(4), 0.0)
    with pytest.raises(DataError, match="3 rows and columns"):
        r.softimpute(np.eye(2), 1.0)
    with pytest.raises(DataError, match="infinite"):
        r.softimpute(np.full((4, 4), np.inf), 1.0)


def test_importing_the_package_and_the_bridge_starts_no_r():
    code = "import sys, ctmm_formula; ctmm_formula.r.check; print('rpy2' in sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert shown.strip() == "False"


@pytest.mark.r
def test_check_names_a_missing_package(engine):
    assert set(r.check("stats")) == {"R", "rpy2", "stats"}
    with pytest.raises(r.RUnavailableError, match=r"noSuchPackage is not installed in .*install\."):
        r.check("stats", "noSuchPackage")


@pytest.mark.r
def test_environment_is_left_as_found(engine):
    """In a fresh process: there rpy2 is imported for the first time."""
    code = (
        "import os, subprocess, sys\n"
        "before = dict(os.environ)\n"
        "from ctmm_formula import r\n"
        "r.check()\n"
        "assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())\n"
        "child = [sys.executable, '-c', 'import os; print(os.environ.get(\"LD_LIBRARY_PATH\"))']\n"
        "print(subprocess.run(child, capture_output=True, text=True).stdout)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("LD_LIBRARY_PATH", None)
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert shown.stdout.strip() == "None", shown.stderr


@pytest.mark.r
@pytest.mark.parametrize("k", range(6))
def test_the_r_package_through_the_bridge(soft, golden, matrix, k):
    expected = json.loads((golden / "softimpute_expected.json").read_text(encoding="utf-8"))
    fit = expected["fits"][k]
    found = r.softimpute(matrix, fit["lambda"], type=fit["type"], **FINE)
    assert found.converged.all()
    assert found.objective[0] == pytest.approx(fit["objective"], rel=OBJECTIVE)
    np.testing.assert_allclose(found.values[0], fit["completed"], rtol=0.0, atol=COMPLETED)
    ours = softimpute.complete(matrix, fit["lambda"])
    assert ours.objective[0] <= found.objective[0] * (1.0 + OBJECTIVE)
    np.testing.assert_allclose(ours.values, found.values, rtol=0.0, atol=COMPLETED)
    assert 0.0 <= found.objective[0] - ours.objective[0] + 1e-9 <= found.gap[0] + 1e-9


@pytest.mark.r
def test_a_stack_through_the_bridge(soft):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(3, 12, 5))
    stack[:, 2, 3] = np.nan
    penalty = np.array([0.5, 1.0, 2.0])
    ours = softimpute.complete(stack, penalty)
    theirs = r.softimpute(stack, penalty, **FINE)
    # R allows at most rank 4 here
    assert (theirs.objective >= ours.objective * (1.0 - OBJECTIVE)).all()
    np.testing.assert_allclose(ours.values[2], theirs.values[2], atol=COMPLETED)


@pytest.mark.r
def test_r_that_runs_out_of_steps_says_so_without_a_word(soft, matrix, capfd):
    assert not r.softimpute(matrix, 0.5, max_steps=2).converged.any()
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


@pytest.mark.r
def test_random_states_stay(soft, matrix):
    import rpy2.robjects as robjects

    robjects.r("set.seed(5)")
    expected = robjects.r("runif(1)")[0]
    robjects.r("set.seed(5)")
    random.seed(1)
    state = random.getstate()
    r.softimpute(matrix, 6.0)
    assert robjects.r("runif(1)")[0] == expected
    assert random.getstate() == state


@pytest.mark.r
def test_impute_with_either_engine(soft):
    anndata = pytest.importorskip("anndata")
    del anndata
    from test_impute import simulated

    pb, _, _ = simulated(8, N=25, G=15)
    # cross-validation is ours: the same lambda for both
    native, theirs = (ctmm.impute(pb, engine=engine, penalty=4.0) for engine in ("native", "r"))
    np.testing.assert_allclose(theirs.X, native.X, atol=COMPLETED)
    np.testing.assert_allclose(theirs.layers["nu"], native.layers["nu"], atol=COMPLETED)
    assert theirs.uns["ctmm"]["imputed"]["engine"] == "r"


@pytest.mark.r
def test_other_threads_may_call(engine):
    found = []
    thread = threading.Thread(target=lambda: found.append(r.check("stats")))
    thread.start()
    thread.join()
    assert found == [r.check("stats")]


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "expr": [0.5, np.nan, -1e300],
            "donor": ["d1", None, "ä"],
            "type": pd.Categorical(["T", None, "B"], categories=["T", "unused", "B"]),
            "dose": pd.Categorical(["low", "high", "low"], ["low", "high"], ordered=True),
            "count": [1, -5, 3],
            "sex": [True, False, True],
            "age": pd.array([30, None, 50], dtype="Int64"),
            "case": pd.array([True, None, False], dtype="boolean"),
        },
        index=["a", "b", "c"],
    )


@pytest.mark.r
def test_a_table_to_r_and_back(engine, frame):
    back = r.from_r(r.to_r(frame))
    pd.testing.assert_frame_equal(
        back.astype({"donor": object}), frame.astype({"donor": object}), check_index_type=False
    )


@pytest.mark.r
def test_what_r_sees(engine, frame):
    import rpy2.robjects as robjects

    table = r.to_r(frame)
    seen = {name: table.rx2(name) for name in frame}
    assert {name: column.rclass[-1] for name, column in seen.items()} == {
        "expr": "numeric", "donor": "character", "type": "factor", "dose": "factor",
        "count": "integer", "sex": "logical", "age": "integer", "case": "logical",
    }  # fmt: skip
    assert list(robjects.r["levels"](seen["type"])) == ["T", "unused", "B"]
    assert robjects.r["is.ordered"](seen["dose"])[0]
    missing = [sum(robjects.r["is.na"](column)) for column in seen.values()]
    assert missing == [1, 1, 1, 0, 0, 0, 1, 1]
    assert list(table.rownames) == ["a", "b", "c"]


@pytest.mark.r
def test_odd_column_names_stay(engine):
    frame = pd.DataFrame({"a b": [1.0], "check_names": [2.0], "1x": [3.0], "ä": [4.0]})
    assert list(r.to_r(frame).colnames) == list(frame.columns)
    assert list(r.from_r(r.to_r(frame)).columns) == list(frame.columns)


@pytest.mark.r
def test_large_integers_become_numbers(engine):
    table = r.to_r(pd.DataFrame({"n": [2**40, 1]}))
    assert table.rx2("n").rclass[0] == "numeric"
    assert r.from_r(table)["n"].tolist() == [2.0**40, 1.0]


@pytest.mark.r
def test_what_does_not_fit_into_r(engine):
    for column in ([object()], [1j], pd.to_datetime(["2020-01-01"])):
        with pytest.raises(DataError, match="no counterpart in R"):
            r.to_r(pd.DataFrame({"x": column}))
    with pytest.raises(DataError, match="need a data frame of R"):
        r.from_r(pd.DataFrame())


@pytest.mark.r
def test_a_matrix_in_a_table_of_r(engine):
    import rpy2.robjects as robjects

    table = robjects.r("data.frame(a = I(list(1, 'x')))")
    with pytest.raises(DataError, match="column 'a' is no plain vector"):
        r.from_r(table)
