"""Degrees of freedom and covariances of fixed effects at few donors; what small tables carry.

By brute force (:mod:`dense_kr`), by pbkrtest and lmerTest where their model is ours, by metafor on
small real tables.
"""

from __future__ import annotations

import io
import subprocess
from contextlib import nullcontext
from dataclasses import replace

import dense
import dense_kr
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, not_here, quick_first
from scipy import stats
from test_live_r import SCRIPTS, need

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMError, CTMMWarning
from ctmm_formula.inference.small_sample import NO_LAW, information_cov
from ctmm_formula.inference.testing import wald

DENSE = 1e-8
"""Relative, by n x n matrices at the same theta."""
PEER = 1e-6
"""Relative, numbers that follow from estimates which two optimisers place within 1e-8."""


def close(ours, theirs, rtol=DENSE):
    theirs = np.asarray(theirs, dtype=float)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max())


def study(donors: int, types: int, seed: int, keep: float = 1.0, V: float = 0.2) -> pd.DataFrame:
    """Two arms and two crossed groups of donors."""
    rng = np.random.default_rng(seed)
    donor, celltype = np.divmod(np.arange(donors * types), types)
    nu = 4.0 / rng.integers(10, 120, donors * types)
    batch, site = donor // 2 % 4, donor % 3
    y = (
        rng.normal(scale=0.6, size=donors)[donor]
        + rng.normal(scale=0.4, size=4)[batch]
        + rng.normal(scale=0.4, size=3)[site]
        + rng.normal(size=donors * types) * np.sqrt(V + nu)
    )
    out = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": batch, "site": site})
    out = out.astype(str).apply(lambda column: column.name[0] + column)
    out = out.assign(cond=donor % 2 * 1.0, expr=y, nu=nu, n_cells=4.0 / nu)
    return out[rng.random(len(out)) < keep].reset_index(drop=True)


def mixed(donors: int, seed: int) -> dict:
    """Overall pseudobulk of three cell types: arguments of fit."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet([4, 3, 2], donors)
    names, batch = ["p_A", "p_B", "p_C"], np.arange(donors) % 5
    data = pd.DataFrame(P, columns=names).assign(
        donor=[f"d{k}" for k in range(donors)], cond=np.arange(donors) % 2 * 1.0, nu=0.05,
        batch=[f"b{k}" for k in batch],
        expr=rng.normal(size=donors) + 2 * rng.normal(size=donors) * P[:, 0]
        + rng.normal(size=5)[batch],
    )  # fmt: skip
    return {"formula": "expr ~ cond", "data": data, "proportions": names}


FORMULA = "expr ~ 0 + C(celltype) + C(celltype):cond"
CASES = {
    "free": {"data": study(16, 3, 1)},
    "missing": {"data": study(20, 3, 2, keep=0.8)},
    "batch": {"data": study(16, 3, 3), "random": "batch"},
    "crossed": {"data": study(24, 3, 4, keep=0.9), "random": ["batch", "site"]},
    "by type": {"data": study(24, 3, 5), "random": {"batch": "celltype"}},
    "hom": {"data": study(8, 4, 6), "structure": "hom"},
    "iid": {"data": study(8, 4, 7, keep=0.9), "structure": "iid", "random": "batch"},
    "full": {"data": study(24, 3, 8, keep=0.9), "structure": "full"},
    "banded": {"data": study(24, 4, 9), "structure": ctmm.banded(1)},
    "ml": {"data": study(16, 3, 10), "method": "ml"},
    "op": {**mixed(60, 11), "structure": "iid"},
    "op batch": {**mixed(60, 12), "random": "batch", "structure": "hom"},
}
pytestmark = pytest.mark.filterwarnings("ignore:the estimate lies on the edge")


def fitted(case: dict) -> ctmm.CTMMResults:
    return ctmm.fit(**{"formula": FORMULA, "method": "reml", **case})


def hypotheses(res) -> np.ndarray:
    """Three random ones and one of a single effect."""
    p = len(res.fe_params)
    return np.vstack([np.random.default_rng(p).normal(size=(3, p)), np.eye(p)[-1:]])


def padded(res, L):
    return np.pad(L, ((0, 0), (0, len(res.vcomp))))


@pytest.mark.parametrize("name", quick_first(CASES, 5))
def test_dense(name):
    res = fitted(CASES[name])
    theta, p = res.estimate.theta, len(res.fe_params)
    by_hand = dense_kr.adjusted(res.arrays, theta, res.method)
    L = hypotheses(res)
    close(res.cov_params().to_numpy()[:p, :p], by_hand.Phi)
    df = [dense_kr.satterthwaite(by_hand, row) for row in L]
    close(res.numbers.model_errors.df(padded(res, L)), df)
    one = res.wald_test(padded(res, L[:1]), "model")
    close(one.df[1], df[0])
    t = res.t_test(padded(res, L), "model")
    close(t.pvalue, 2 * stats.t.sf(np.abs(t.tvalue), df))
    many = res.wald_test(padded(res, L[:3]), "model")
    b = res.fe_params.to_numpy()
    F = (L[:3] @ b) @ np.linalg.solve(L[:3] @ by_hand.Phi @ L[:3].T, L[:3] @ b) / 3
    close([many.statistic, many.df[1]], [F, 2 * 3 / dense_kr.traces(by_hand, L[:3])[1]])
    if res.method == "ml":
        return
    close(res.cov_params("kenward-roger").to_numpy()[:p, :p], by_hand.cov)
    own = res.t_test(padded(res, L), "kenward-roger")
    close(own.sd, np.sqrt(np.einsum("ij,jk,ik->i", L, by_hand.cov, L)))
    close(own.df_denom, df)
    test = res.wald_test(padded(res, L[:3]), "kenward-roger")
    F, m, _ = dense_kr.scaled_f(by_hand, L[:3], b)
    close([test.statistic, test.df[1]], [F, m])
    assert test.pvalue == pytest.approx(stats.f.sf(F, 3, m), rel=DENSE)
    close(res.wald_test(padded(res, L[:1]), "kenward-roger").df[1], df[0])


def test_accessors_agree():
    res = fitted(CASES["missing"])
    by_hand = dense_kr.adjusted(res.arrays, res.estimate.theta)
    table, means = res.table("kenward-roger"), res.means("kenward-roger")
    p = len(res.fe_params)
    close(table["std_error"].iloc[:p], np.sqrt(np.diag(by_hand.cov)))
    close(table["std_error"].iloc[p:], res.table()["std_error"].iloc[p:])
    close(res.conf_int(covariance="kenward-roger"), table[["conf_low", "conf_high"]])
    rows = res.design.mean_rows
    se = np.sqrt(np.diag(rows @ by_hand.cov @ rows.T))
    close(means["std_error"], se)
    df = [dense_kr.satterthwaite(by_hand, row) for row in rows]
    close(means["conf_high"] - means["estimate"], stats.t.ppf(0.975, df) * se)
    pairs = res.contrasts(covariance="kenward-roger")
    close(pairs["std_error"].iloc[0] ** 2, (rows[1] - rows[0]) @ by_hand.cov @ (rows[1] - rows[0]))
    test = res.test_mean("kenward-roger")
    F, m, _ = dense_kr.scaled_f(by_hand, rows[1:] - rows[0], res.fe_params.to_numpy())
    close([test.statistic, test.df[1]], [F, m])
    assert test.method == "wald (kenward-roger)"
    assert "Kenward and Roger's" in str(res.summary("kenward-roger"))


@pytest.mark.parametrize("covariance", ["model", "kenward-roger"])
def test_invariances(covariance):
    """How hypotheses are written, units, order of rows: nothing of it matters."""
    data = CASES["missing"]["data"]
    res = fitted({"data": data, "random": "batch"})
    L = padded(res, hypotheses(res)[:3])
    test = res.wald_test(L, covariance)
    turn = np.random.default_rng(0).normal(size=(3, 3))
    again = res.wald_test(turn @ L, covariance)
    close([again.statistic, again.df[1]], [test.statistic, test.df[1]])
    shuffled = data.assign(expr=1e3 * data["expr"], nu=1e6 * data["nu"]).sample(
        frac=1, random_state=1
    )
    other = fitted({"data": shuffled, "random": "batch"}).wald_test(L, covariance)
    close([other.statistic, other.df[1]], [test.statistic, test.df[1]], 1e-6)


def test_components_on_a_lower_bound_count_as_known():
    res = fitted({"data": study(12, 3, 5, V=0.0), "bounds": "nonnegative"})
    theta = res.estimate.theta
    assert (theta == 0).any() and (theta > 0).any()
    by_hand = dense_kr.adjusted(res.arrays, theta, free=theta > 0)
    L = hypotheses(res)
    close(res.numbers.model_errors.df(padded(res, L)),
          [dense_kr.satterthwaite(by_hand, row) for row in L])  # fmt: skip
    p = len(res.fe_params)
    close(res.cov_params("kenward-roger").to_numpy()[:p, :p], by_hand.cov)
    assert any("take what the edge holds for known" in note for note in res.notes)


def test_all_components_on_a_bound_leave_a_known_covariance():
    data = study(12, 3, 5)
    flat = data.assign(
        expr=0.3 * np.sqrt(data["nu"]) * np.random.default_rng(1).normal(size=len(data))
    )
    res = fitted({"data": flat, "bounds": "nonnegative"})
    assert (res.vcomp == 0).all()
    close(res.cov_params("kenward-roger"), res.cov_params())
    p = len(res.fe_params)
    test = res.wald_test(np.eye(p, res.df_model)[3:], "kenward-roger")
    assert test.df == (3, np.inf)
    assert test.pvalue == pytest.approx(stats.chi2.sf(3 * test.statistic, 3), rel=1e-10)
    assert ctmm.inference.testing.TestResult.from_dict(test.to_dict()) == test
    z = res.fe_params / res.bse_fe
    close(res.pvalues[:p], 2 * stats.norm.sf(np.abs(z)))


@pytest.mark.parametrize("bounds", ["noise", "psd"])
@pytest.mark.parametrize("structure", ["full", "free"])
def test_on_the_edge_of_a_determinant_components_move_along_it(structure, bounds):
    data = study(10, 3, 12, V=0.0)
    res = fitted({"data": data, "structure": structure, "bounds": bounds})
    check_on_the_edge(res, bounds)


def check_on_the_edge(res, bounds):
    """Degrees of freedom and adjusted errors are those of Lagrange's equations."""
    assert res.boundary
    floor = 0.1 if bounds == "noise" else None
    by_walls = dense_kr.held(res.arrays, res.estimate.theta, floor)
    assert len(by_walls)
    by_hand = dense_kr.adjusted(res.arrays, res.estimate.theta, held=by_walls)
    L = hypotheses(res)
    df = [dense_kr.satterthwaite(by_hand, row) for row in L]
    close(res.numbers.model_errors.df(padded(res, L)), df, 1e-4)
    p = len(res.fe_params)
    close(res.cov_params("kenward-roger").to_numpy()[:p, :p], by_hand.cov, 1e-5)
    free = dense_kr.adjusted(res.arrays, res.estimate.theta)
    assert (np.array(df) > [dense_kr.satterthwaite(free, row) for row in L]).all()
    assert any("take what the edge holds for known" in note for note in res.notes)


@pytest.mark.parametrize("bounds", ["noise", "psd"])
def test_donors_who_respond_alike_are_on_the_edge(bounds):
    """The same donors under two conditions: variances of responses can hardly be told from 0."""
    rng = np.random.default_rng(5)
    donor, rest = np.divmod(np.arange(10 * 6), 6)
    data = pd.DataFrame(
        {"donor": donor, "stim": np.where(rest < 3, "no", "yes"), "celltype": rest % 3,
         "nu": 4.0 / rng.integers(10, 120, 60)}
    ).astype({"donor": str, "celltype": str})  # fmt: skip
    own = rng.normal(scale=0.5, size=(10, 1)) + rng.normal(scale=0.3, size=(10, 3))
    data["expr"] = own[donor, rest % 3] + rng.normal(size=60) * np.sqrt(data["nu"])
    formula = "expr ~ 0 + C(celltype) + C(celltype):stim"
    res = fitted({"formula": formula, "data": data, "within": "stim", "bounds": bounds})
    check_on_the_edge(res, bounds)
    found = res.effects("stim", covariance="kenward-roger")
    assert (found.table["df"] > 3).all()
    assert all(0 < test.pvalue < 1 and not test.note for test in found.tests.values())
    few = fitted({"formula": formula, "data": data[donor < 5], "within": "stim", "bounds": bounds})
    crowded = "3 hypotheses from 5 donors: an F test by the model may find too much"
    for covariance, said in (("kenward-roger", True), ("model", True), ("robust", False)):
        test = few.effects("stim", covariance=covariance).omnibus
        assert (crowded in test.note) == (said and np.isfinite(test.pvalue))


@pytest.mark.parametrize(("donors", "known"), [(5, False), (5, True), (10, False)])
def test_scans_say_where_donors_are_few_for_an_f_test_by_the_model(donors, known, tmp_path):
    rng = np.random.default_rng(6)
    donor, rest = np.divmod(np.arange(donors * 6), 6)
    obs = pd.DataFrame(
        {"donor": donor, "stim": np.where(rest < 3, "no", "yes"), "celltype": rest % 3}
    ).astype(str)
    obs = obs.assign(n_cells=50) if known else obs
    y = 0.5 * rng.normal(size=(donors, 1))[donor] + 0.2 * rng.normal(size=(len(obs), 2))
    expr = pd.DataFrame(y, columns=["g1", "g2"])
    path = tmp_path / "scan.csv"
    scan = ctmm.fit_genes(
        "~ C(celltype) * stim", within="stim", method="reml", data=obs, expr=expr,
        nu=0.0 * expr + 0.02, tests=["effects:stim"], out=path,
    )  # fmt: skip
    said = [note for note in scan.notes if "an F test by the model may find too much" in note]
    assert bool(said) == (donors == 5 and not known)
    assert ctmm.read_scan(path).notes == scan.notes
    if said:
        assert said[0].startswith("'effects:stim': 3 hypotheses from 5 donors")
        assert said[0].endswith("method='robust' does not") and said[0] in str(scan)


def test_reasons():
    res = fitted(CASES["ml"])
    with pytest.raises(CTMMError, match="adjusts fits by REML, this one is by method='ml'"):
        res.table("kenward-roger")
    for method, name in (("he", "HE"), ("robust", "method='robust'")):
        other = fitted({**CASES["free"], "method": method})
        with pytest.raises(CTMMError, match=f"this one is by {name}: fit by method='reml'"):
            other.wald_test("hom = 0", "kenward-roger")
    he = fitted({**CASES["free"], "method": "he"})
    assert set(he.numbers.model_errors.df(np.eye(he.df_model))) == {he.df_resid}

    res = fitted(CASES["free"])
    broken = replace(res.estimate, information=np.ones((4, 4)))
    fit = replace(res.numbers, estimate=broken)
    assert np.isnan(fit.model_errors.df(np.eye(fit.n_params))[:6]).all()
    law = fit.errors("kenward-roger").law(np.eye(6, 10)[:2])
    test = wald(fit.params, fit.model_errors.cov, np.eye(6, 10)[:2], 6, law=law)
    assert np.isnan(test.pvalue) and "information" in test.note
    twice = np.eye(6, 10)[[0, 0]]
    assert "singular" in res.wald_test(twice, "model").note
    assert "singular" in res.wald_test(twice, "kenward-roger").note


def test_less_than_one_degree_of_freedom_is_none():
    """On the edge few donors decide the variances: t of a tenth of a df has ends at 1e7."""
    rng = np.random.default_rng([8, 4, 2])
    donor, celltype = np.divmod(np.arange(32), 4)
    nu = rng.uniform(0.02, 0.4, 32)
    y = 0.5 * rng.normal(size=8)[donor] + np.sqrt(nu) * rng.normal(size=32)
    table = pd.DataFrame({"donor": donor, "celltype": celltype, "expr": y, "nu": nu})
    table = table.astype({"donor": str, "celltype": str})
    res = ctmm.fit("expr ~ C(celltype)", method="reml", data=table)
    with pytest.warns(CTMMWarning, match=r"^a fixed effect has no test and no interval: less than"):
        found = res.table()
    fixed = found.iloc[: len(res.fe_params)]
    lost = fixed["p_value"].isna().to_numpy()
    assert lost.sum() == 1 and fixed.loc[lost, ["conf_low", "conf_high"]].isna().all(axis=None)
    assert np.isfinite(fixed[["estimate", "std_error"]]).all(axis=None)
    assert found["conf_high"].abs().max() < 2.0
    name = fixed.index[lost][0]
    test = res.wald_test(f"{name} = 0", covariance="model")
    assert np.isnan(test.pvalue) and test.note.startswith("less than one degree of freedom")
    assert "A fixed effect has no test and no interval: less" in str(res.summary())
    others = res.errors().df(np.eye(len(found)))[: len(lost)][~lost]
    assert (others >= 1.0).all()


def test_hypotheses_that_kenward_and_roger_have_no_f_for():
    """Variances by cell type are hardly known from 25 donors' overall pseudobulk."""
    res = fitted(mixed(25, 3))
    by_hand = dense_kr.adjusted(res.arrays, res.estimate.theta)
    L = hypotheses(res)[:3]
    assert dense_kr.traces(by_hand, L)[1] > 2 and dense_kr.scaled_f(by_hand, L, L[0])[2] < 0.8
    test = res.wald_test(padded(res, L), "kenward-roger")
    assert np.isnan(test.pvalue) and test.note == NO_LAW
    assert 0 <= res.wald_test(padded(res, L), "model").pvalue <= 1


def test_four_samples_of_five_types():
    """As muscat has them: two samples an arm."""
    data = study(4, 5, 21)
    for method in ("reml", "ml", "he", "robust"):
        res = fitted({"data": data, "method": method})
        assert np.isfinite(res.params).all()
    for bounds in ("noise", "nonnegative", "psd"):
        res = fitted({"data": data, "bounds": bounds})
        table = res.table("kenward-roger").iloc[:10]
        assert np.isfinite(table).all(axis=None) and table["p_value"].between(0, 1).all()
        assert res.vcomp.notna().all() and res.pvalues[10:].isna().all()
        assert any("no tests and intervals of variance" in note for note in res.notes)


@pytest.mark.slow
def test_power_of_a_two_sample_t_test():
    """20 donors, 6 types, an effect of 1.2 in one of them."""
    hits, expected = [], []
    for seed in range(60):
        data = study(20, 6, seed)
        data.loc[data["celltype"] == "c1", "expr"] += 1.4 * data["cond"]
        one = data[data["celltype"] == "c1"]
        arms = [one.loc[one["cond"] == arm, "expr"] for arm in (0, 1)]
        expected.append(stats.ttest_ind(*arms).pvalue < 0.05)
        hits.append(fitted({"data": data}).pvalues["C(celltype)[c1]:cond"] < 0.05)
    assert np.mean(expected) > 0.7
    assert np.mean(hits) >= np.mean(expected) - 0.1


# ---------------------------------------------------------------------------------------------
# other programs


def run_r(script: str, *arguments: str) -> dict[str, np.ndarray]:
    """Columns name, value of what a script prints."""
    call = subprocess.run(
        ["Rscript", "--vanilla", str(SCRIPTS / script), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert call.returncode == 0, call.stderr
    table = pd.read_csv(io.StringIO(call.stdout))
    return {str(name): part.to_numpy() for name, part in table.groupby("name")["value"]}


@pytest.mark.r
@pytest.mark.parametrize(("batch", "keep"), [(False, 1.0), (False, 0.8), (True, 0.9)])
def test_pbkrtest(batch, keep, tmp_path):
    """Noise that is the same everywhere is part of a residual variance: iid, V = residual - nu."""
    need("pbkrtest")
    need("lmerTest")
    data = study(18, 3, 31, keep).assign(nu=0.05)
    L = np.eye(6)[3:]
    data.to_csv(tmp_path / "data.csv", index=False, float_format="%.17g")
    np.savetxt(tmp_path / "L.csv", L, delimiter=",")
    paths = str(tmp_path / "data.csv"), str(tmp_path / "L.csv")
    theirs = run_r("small_samples.R", *paths, str(int(batch)))
    res = fitted({"data": data, "structure": "iid", "random": "batch" if batch else None})
    shift = np.array([0.0, 0.05, 0.0])[: 2 + batch]
    close(res.vcomp.to_numpy() + shift, theirs["theta"], PEER)
    close(res.fe_params, theirs["beta"], PEER)
    close(res.cov_params("kenward-roger").to_numpy()[:6, :6].ravel("F"), theirs["adjusted"], PEER)
    errors = res.numbers.errors("kenward-roger")
    close(errors.df(padded(res, L)), theirs["df"], PEER)
    test = res.wald_test(padded(res, L), "kenward-roger")
    close([test.statistic, *test.df[1:], errors.law(padded(res, L)).scale], theirs["F"], PEER)
    if keep == 1.0 and not batch:  # lmerTest takes the observed information: here the same
        close(res.numbers.model_errors.df(padded(res, L)), theirs["satterthwaite"], 1e-4)
        close(res.wald_test(padded(res, L), "model").statistic, theirs["joint"][0], PEER)


@pytest.mark.r
def test_a_singular_fit_has_the_degrees_of_freedom_of_lmertest(tmp_path):
    """The variance that all types share is 0: rows are what is left.

    pbkrtest has the same of one row; in tests of several it counts the component as free.
    """
    need("pbkrtest")
    need("lmerTest")
    data = study(18, 3, 31).assign(nu=0.05)
    data["expr"] = np.random.default_rng(3).normal(scale=0.5, size=len(data))
    L = np.eye(6)[3:]
    data.to_csv(tmp_path / "data.csv", index=False, float_format="%.17g")
    np.savetxt(tmp_path / "L.csv", L, delimiter=",")
    theirs = run_r("small_samples.R", str(tmp_path / "data.csv"), str(tmp_path / "L.csv"), "0")
    res = fitted({"data": data, "structure": "iid", "bounds": "nonnegative"})
    assert res.vcomp["hom"] == 0.0 and theirs["theta"][0] < 1e-12
    df = res.numbers.errors("kenward-roger").df(padded(res, L))
    close(df, theirs["satterthwaite"], PEER)
    close(df, theirs["df"], PEER)
    close(df, np.full(3, 48.0))


@pytest.mark.r
def test_one_cell_type_is_a_meta_analysis():
    need("metafor")
    need("metadat")
    theirs = run_r("small_tables.R", "bcg")
    y, nu = theirs["y"], theirs["nu"]
    data = pd.DataFrame({"donor": [f"s{k}" for k in range(len(y))], "celltype": "all"})
    res = ctmm.fit("y ~ 1", data=data.assign(y=y, nu=nu), structure="hom", method="reml")
    compared(res, theirs)
    assert res.vcomp["hom"] == pytest.approx(0.3132, abs=5e-5)
    assert res.fe_params["Intercept"] == pytest.approx(-0.7145, abs=5e-5)
    robust = ctmm.fit("y ~ 1", data=data.assign(y=y, nu=nu), structure="hom", method="robust")
    assert robust.pvalues["Intercept"] < 0.01


def compared(res, theirs):
    """Estimates by two optimisers; likelihoods by brute force and each other."""
    assert res.llf >= theirs["llf"][0] - 1e-8
    assert res.llf == pytest.approx(theirs["llf"][0], abs=1e-6)
    assert dense.llf(res.arrays, res.estimate.theta, "reml") == pytest.approx(res.llf, abs=1e-8)
    close(res.vcomp, theirs["theta"], 2e-3)
    close(res.fe_params, theirs["beta"], 1e-4)
    close(res.bse_fe, theirs["se"], 1e-3)


KANG = "data/kang_isg15.csv"
AIRWAY = "data/small_airway_gene.csv"
TABLES = {
    "kang": (
        KANG, "y ~ 0 + C(celltype) + C(celltype):C(stim)", {"random": "ind", "structure": "iid"},
        {"hom": 0.0030, "V": 0.0129, "ind": 0.0275}, "CD8 T cells", (2.9907, 0.1297),
    ),
    "airway": (
        AIRWAY, "y ~ 0 + C(celltype) + C(celltype):C(Genotype)", {"structure": "free"},
        {"hom": 0.0167, "V[Endothelial cell]": 0.0316, "V[Immune cell]": 0.0238,
         "V[Secretory cell]": 0.0148}, "Endothelial cell", (-0.3238, 0.1698),
    ),
}  # fmt: skip


def small_table(name: str) -> tuple:
    path, formula, options, *published = TABLES[name]
    reason = not_here(path)
    if reason:
        pytest.skip(reason)
    data = pd.read_csv(SHARED / path)
    return data, {"formula": formula, "data": data, **options}, *published


@pytest.mark.parametrize("name", TABLES)
def test_published_values_of_small_tables(name):
    _, case, components, celltype, (effect, se) = small_table(name)
    res = fitted({**case, "bounds": "nonnegative"})
    for label, value in components.items():
        assert res.vcomp[label] == pytest.approx(value, abs=5.1e-5)
    row = next(k for k in res.fe_params.index if celltype in k and ":" in k)
    assert res.fe_params[row] == pytest.approx(effect, abs=5.1e-5)
    assert res.bse[row] == pytest.approx(se, abs=5.1e-5)
    kr = res.table("kenward-roger").loc[row]
    assert kr["std_error"] > res.bse[row] and 0 < kr["p_value"] < 1
    assert fitted(case).llf >= res.llf - 1e-8  # the wider domain
    robust = fitted({**case, "method": "robust"})
    gaps = robust.errors().gaps  # a type of one donor under one condition
    assert ("rests on one donor" in gaps) == (name == "kang")
    with pytest.warns(CTMMWarning, match=gaps) if gaps else nullcontext():
        assert np.isfinite(robust.params).all() and 0 < robust.pvalues[row] < 1


@pytest.mark.r
@pytest.mark.parametrize("name", TABLES)
def test_small_tables_by_metafor(name):
    need("metafor")
    _, case, *_ = small_table(name)
    theirs = run_r("small_tables.R", name, str(SHARED / TABLES[name][0]))
    compared(fitted({**case, "bounds": "nonnegative"}), theirs)


def test_informations_of_many_responses_are_inverted_as_those_of_one():
    rng = np.random.default_rng(8)
    A = rng.normal(size=(5, 3, 6)) * [[1.0], [1e3], [1e-4]]
    A = A @ A.swapaxes(1, 2)
    A[1, 0] = A[1, :, 0] = A[1, 1] * 2.0  # of rank two
    A[1, 0, 0] = 4.0 * A[1, 1, 1]
    A[3, 2, 2] = np.nan
    got = information_cov(A)
    for one, own in zip(got, A, strict=True):
        np.testing.assert_array_equal(one, information_cov(own))
    for k in (0, 2, 4):
        scale = np.sqrt(A[k].diagonal())
        np.testing.assert_allclose(
            (got[k] @ A[k]) * np.outer(scale, 1.0 / scale), np.eye(3), rtol=0, atol=1e-9
        )
    assert np.isnan(got[[1, 3]]).all()
