"""Tables as the authors' package takes them, against the long tables they were made from."""

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.errors import DataError


@pytest.fixture(scope="module")
def drawn():
    V = 0.4 * np.eye(3)
    types = ["B", "NK", "T"]
    return ctmm.simulate_pseudobulk(30, types, sigma2=0.3, V=V, n_batches=5, rng=1).ctp


@pytest.fixture
def wide(drawn):
    out = {
        name: drawn.pivot(index="donor", columns="celltype", values=name) for name in ("expr", "nu")
    }
    out["P"] = pd.DataFrame([[0.2, 0.3, 0.5]] * 30, out["nu"].index, out["nu"].columns)
    return out


def test_files_give_the_fit_of_the_long_table(drawn, wide, tmp_path):
    batch = drawn.groupby("donor", sort=True)["batch"].first()
    for name, table in {**wide, "batch": pd.get_dummies(batch).astype(int)}.items():
        np.savetxt(tmp_path / f"{name}.txt", table)
    files = [tmp_path / "expr.txt", tmp_path / "P.txt", str(tmp_path / "nu.txt")]
    long = ctmm.from_ctmm(*files, random={"batch": tmp_path / "batch.txt"})
    got = ctmm.fit("expr ~ C(celltype)", random="batch", data=long, method="reml")
    want = ctmm.fit("expr ~ C(celltype)", random="batch", data=drawn, method="reml", n_cells=None)
    np.testing.assert_allclose(got.params, want.params, rtol=1e-8)
    assert got.celltypes == ("type1", "type2", "type3") and got.donors[0] == "donor01"


def test_frames_keep_their_names_and_missing_pairs(drawn, wide):
    y = wide["expr"].copy()
    y.iloc[2, 1] = np.nan
    long = ctmm.from_ctmm(y, wide["P"], wide["nu"])
    assert list(long["donor"].iloc[::3]) == list(y.index)
    assert list(long["celltype"].iloc[:3]) == list(y.columns)
    res = ctmm.fit("expr ~ C(celltype)", data=long, method="reml", proportions="proportion")
    assert res.nobs == 89 and sum(res.dropped.values()) == 1


def test_overall_pseudobulk_has_the_noise_of_its_mixture(wide):
    P, nu = wide["P"].to_numpy(), wide["nu"].to_numpy()
    y = (P * wide["expr"].to_numpy()).sum(axis=1)
    age = np.arange(60.0).reshape(30, 2)
    table = ctmm.from_ctmm(y, P, nu, fixed={"age": age}, celltypes=["B", "NK", "T"])
    assert list(table) == ["donor", "expr", "nu", "prop_B", "prop_NK", "prop_T", "age1", "age2"]
    np.testing.assert_allclose(table["nu"], (P**2 * nu).sum(axis=1), rtol=1e-14)
    known = ctmm.from_ctmm(y, P, table["nu"])
    np.testing.assert_allclose(known["nu"], table["nu"])


def test_what_does_not_fit_is_refused(wide, tmp_path):
    y, P, nu = wide["expr"], wide["P"], wide["nu"]
    (tmp_path / "header.txt").write_text("a b\n1 2\n")
    for call, said in [
        (lambda: ctmm.from_ctmm(tmp_path / "absent", P, nu), "y is no table of numbers"),
        (lambda: ctmm.from_ctmm(tmp_path / "header.txt", P, nu), "without a header"),
        (lambda: ctmm.from_ctmm(y.iloc[:5], P, nu), r"y has shape \(5, 3\) and P \(30, 3\)"),
        (lambda: ctmm.from_ctmm(y, P, nu.iloc[:, 0]), r"nu has shape \(30, 1\)"),
        (lambda: ctmm.from_ctmm(y, P, nu, fixed={"sex": [1, 2]}), "'sex' has 2 rows, and P 30"),
        (lambda: ctmm.from_ctmm(y, P, nu, fixed={"nu": np.ones(30)}), "is named 'nu'"),
        (lambda: ctmm.from_ctmm(y, P, nu, random={"b": np.ones((30, 2))}), "row 1 has none or"),
        (lambda: ctmm.from_ctmm(y, P, nu, celltypes=["a"]), "celltypes= needs 3 different"),
    ]:
        with pytest.raises(DataError, match=said):
            call()


ONE = np.ones(30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"P": w["P"].iloc[:, ::-1]}, "y and P have other cell types, or in another"),
        (lambda w: {"nu": w["nu"].iloc[::-1]}, "nu and P have other donors, or in another order"),
        (lambda w: {"fixed": {"a": np.ones((30, 2)), "a1": ONE}}, "two covariates 'a1'"),
        (
            lambda w: {"fixed": {"b": np.ones(30)}, "random": {"b": np.ones((30, 1))}},
            "covariates 'b'",
        ),
        (lambda w: {"fixed": w["P"]}, "fixed= takes tables by name"),
        (lambda w: {"random": {3: ONE[:, None]}}, "random= takes tables by name"),
        (lambda w: {"celltypes": 3}, "celltypes= must be a list"),
        (lambda w: {"y": w["expr"].to_numpy() * 1j}, "they are complex"),
    ],
)
def test_what_is_mixed_up_is_told(wide, change, message):
    call = {"y": wide["expr"], "P": wide["P"], "nu": wide["nu"], **change(wide)}
    with pytest.raises(ctmm.CTMMError, match=message):
        ctmm.from_ctmm(**call)
