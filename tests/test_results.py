"""Results: every accessor's labels, shapes and numbers against the bare estimate."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import dense_kr
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import ctmm_formula as ctmm
from ctmm_formula import CTMMResults
from ctmm_formula.design.matrix import known_names
from ctmm_formula.design.vouched import FUNCTIONS, NUMPY, vouch
from ctmm_formula.errors import ConvergenceError, CTMMError, DataError, FormulaError
from ctmm_formula.results import serialize
from ctmm_formula.results.estimates import adjusted, estimates

EXACT = 1e-12  # the same arithmetic in another order
FORMULA = "expr ~ C(celltype) + sex + PC1"
TYPES = ["day0", "day1", "day2", "day3"]
FIXED = ["Intercept", *(f"C(celltype)[T.{c}]" for c in TYPES[1:]), "sex[T.M]", "PC1"]
VARIANCES = ["hom", *(f"V[{c}]" for c in TYPES), "batch"]


@pytest.fixture(scope="module")
def table():
    df = ctmm.load_example()
    df.index = pd.Index([f"row{k}" for k in range(len(df))], name="sample")
    return df


@pytest.fixture(scope="module")
def res(table):
    return ctmm.fit(FORMULA, random="batch", data=table, method="reml")


@pytest.fixture(scope="module")
def he(table):
    return ctmm.fit(FORMULA, random="batch", data=table, method="he")


@pytest.fixture(scope="module")
def overall():
    df = ctmm.load_example(kind="op")
    columns = [f"prop_{c}" for c in TYPES]
    return ctmm.fit(
        "expr ~ sex + PC1", "batch", data=df, proportions=columns, structure="hom", method="reml"
    )


@pytest.fixture(scope="module")
def covarying():
    """Simulated with covariances between cell types and a batch effect on each cell type."""
    V = np.array([[0.6, 0.2, 0.1], [0.2, 0.5, 0.2], [0.1, 0.2, 0.4]])
    df = ctmm.simulate_pseudobulk(
        80, ["B", "NK", "T"], sigma2=0.2, V=V, beta=[0, 1, 2], n_batches=10, rng=3, missing=0.1
    ).ctp
    rng = np.random.default_rng(5)
    shift = rng.normal(size=(10, 3))
    df["expr"] += shift[pd.factorize(df["batch"])[0], pd.factorize(df["celltype"])[0]]
    return ctmm.fit(
        "expr ~ celltype + PC1 + (celltype|batch)", structure="full", data=df, method="reml"
    )


def test_sizes(res, overall):
    assert (res.nobs, res.n_donors, res.n_celltypes, res.n_possible) == (275, 72, 4, 288)
    assert (res.df_model, res.df_resid) == (12, 72 - 12)
    assert (res.structure, res.method, res.bounds, res.kind) == ("free", "reml", "noise", "ctp")
    assert res.formula == "expr ~ C(celltype) + sex + PC1 + (1 | batch)"
    assert res.converged is True
    assert res.boundary is False
    assert res.dropped == {}
    assert (overall.kind, overall.bounds, overall.n_possible) == ("op", "psd", 72)


def test_parameters_are_the_estimate_with_names(res):
    assert list(res.fe_params.index) == FIXED
    assert list(res.vcomp.index) == VARIANCES
    assert list(res.params.index) == FIXED + VARIANCES
    assert np.array_equal(res.params, np.r_[res.estimate.beta, res.estimate.theta])


def test_covariance_from_information(res):
    cov = res.cov_params()
    assert list(cov.index) == list(cov.columns) == FIXED + VARIANCES
    assert np.array_equal(cov.loc[FIXED, FIXED], res.estimate.cov_beta)
    information = cov.loc[VARIANCES, VARIANCES].to_numpy() @ res.estimate.information
    assert np.abs(information - np.eye(6)).max() < 1e-9  # condition number times rounding
    assert (cov.loc[FIXED, VARIANCES] == 0).all(axis=None)
    assert np.array_equal(res.bse, np.sqrt(np.diag(cov)))
    assert list(res.bse_fe.index) == FIXED


def test_covariance_from_jackknife(res):
    """By hand: (N - 1)/N times the squares of the leave-out estimates about their mean."""
    own = res.jackknife()
    left = own.estimates - own.estimates.mean()
    cov = res.cov_params("jackknife")
    assert np.allclose(cov, 71 / 72 * left.T @ left, rtol=1e-9, atol=1e-15)
    assert cov.equals(own.cov_params())
    assert np.array_equal(own.bse, np.sqrt(np.diag(cov)))
    assert own.conf_int(0.1).equals(res.conf_int(0.1, "jackknife"))


def test_leave_out_estimates_are_labelled(res, table):
    own = res.jackknife()
    assert list(own.estimates.columns) == FIXED + VARIANCES
    assert tuple(own.estimates.index) == res.donors
    without = ctmm.fit(
        FORMULA, random="batch", data=table[table["donor"] != "donor40"], method="reml"
    )
    assert np.allclose(own.estimates.loc["donor40"], without.params, rtol=1e-4, atol=1e-6)
    assert (own.kind, own.error, own.failed) == ("donor", 0.0, {})
    assert repr(own) == "<Jackknife: leave out one donor, 72 refits, none failed>"
    assert "<td>" in own._repr_html_()
    five = res.jackknife(5)
    assert sum(len(name.split(", ")) for name in five.estimates.index) == 72


def test_other_jackknives_do_not_replace_the_exact_one(table):
    res = ctmm.fit(FORMULA, random="batch", data=table, method="reml")
    before = [res.test_variance(), res.test_mean(), str(res.summary("jackknife"))]
    five, step = res.jackknife(5), res.jackknife(one_step=True)
    assert (five.kind, step.kind) == ("block", "one-step")
    assert step.error > 0
    assert [res.test_variance(), res.test_mean(), str(res.summary("jackknife"))] == before
    assert res.jackknife().kind == "donor"
    assert res.jackknife(5).estimates.equals(five.estimates)


def test_a_jackknife_is_given_as_covariance(res):
    """G groups leave at most G - q degrees of freedom; the method says which jackknife."""
    ten = res.jackknife(10)
    test = res.test_variance(covariance=ten)
    assert (test.method, test.df) == ("wald (jackknife, 10 blocks)", (4.0, 6.0))
    V = VARIANCES[1:5]
    value, cov = res.vcomp[V], ten.cov_params().loc[V, V]
    F = value @ np.linalg.solve(cov, value) / 4
    assert test.pvalue == pytest.approx(stats.f.sf(F, 4, 6), rel=1e-9)
    assert res.test_mean(ten).df == (3.0, 7.0)
    assert res.wald_test("PC1 = 0", ten).df == (1.0, 9.0)
    assert res.test_component("hom", covariance=ten).df == 9.0
    assert res.t_test("PC1 = 0", ten).df_denom == 9.0
    t = res.params["PC1"] / ten.bse["PC1"]
    assert res.table(ten).loc["PC1", "p_value"] == pytest.approx(2 * stats.t.sf(abs(t), 9))
    assert "jackknife over donors, 10 blocks." in str(res.summary(ten))
    assert "by t with 9 df (blocks less one)" in str(res.summary(ten))
    few = res.test_variance(covariance=res.jackknife(4))
    assert np.isnan(few.pvalue)
    assert "4 groups of donors cannot test 4 hypotheses" in few.note
    step = res.jackknife(one_step=True)
    assert res.test_mean(step).method == "wald (jackknife, one step)"
    assert res.test_mean(step).df == (3.0, 60.0)


def test_a_jackknife_of_another_fit_is_refused(res, table):
    other = ctmm.fit(FORMULA, random="batch", data=table.iloc[8:], method="reml").jackknife(5)
    with pytest.raises(CTMMError, match="of another fit"):
        res.test_mean(other)
    with pytest.raises(CTMMError, match="takes what jackknife"):
        res.test_variance("score", covariance=res.jackknife())


@pytest.mark.parametrize(
    "wrong", [{"blocks": "a"}, {"blocks": 2.5}, {"blocks": 1}, {"blocks": 73}, {"one_step": "yes"},
              {"n_jobs": 0}, {"n_jobs": "a"}, {"progress": 1}],
)  # fmt: skip
def test_jackknife_refuses(res, wrong):
    with pytest.raises(CTMMError, match=next(iter(wrong))):
        res.jackknife(**wrong)


def test_progress(table, capsys):
    res = ctmm.fit("expr ~ C(celltype)", structure="hom", data=table)
    res.jackknife(9, progress=True)
    assert "9/9" in capsys.readouterr().err


def test_p_values_and_intervals(res):
    t = res.params / res.bse
    adjusted = dense_kr.adjusted(res.arrays, res.estimate.theta)
    df = [dense_kr.satterthwaite(adjusted, row) for row in np.eye(len(FIXED))]
    df = pd.Series(df + 6 * [60.0], res.params.index)
    assert np.allclose(res.tvalues, t, rtol=EXACT)
    p = 2 * stats.t.sf(np.abs(t[FIXED]), df[FIXED])
    assert np.allclose(res.pvalues[FIXED], p, rtol=1e-8)
    assert np.allclose(res.pvalues[VARIANCES], stats.t.sf(t[VARIANCES], 60), rtol=EXACT)
    ends = res.conf_int(0.1)
    assert list(ends.columns) == ["conf_low", "conf_high"]
    reach = stats.t.ppf(0.95, df) * res.bse
    assert np.allclose(ends["conf_high"], res.params + reach, rtol=1e-8)
    assert np.allclose(ends["conf_low"], res.params - reach, rtol=1e-8)


def test_no_degrees_of_freedom_no_p_values():
    out = estimates(np.array([1.0]), np.array([0.5]), 0, 0.05)[0]
    assert out[:3].tolist() == [1.0, 0.5, 2.0]
    assert np.isnan(out[3:]).all()


def test_alpha_is_checked(res):
    with pytest.raises(CTMMError, match="alpha must lie between 0 and 1"):
        res.conf_int(95)


def test_unknown_covariance_lists_the_choices(res):
    with pytest.raises(CTMMError, match="choose from model, kenward-roger, jackknife"):
        res.cov_params("sandwich")


def test_information_criteria(res):
    assert res.aic == -2 * res.llf + 2 * 12
    assert res.bic == pytest.approx(-2 * res.llf + np.log(275 - 6) * 12, rel=EXACT)


def test_matrices(res, covarying):
    A = res.vcomp["hom"] + np.diag(res.vcomp[[f"V[{c}]" for c in TYPES]])
    assert list(res.A.index) == list(res.A.columns) == TYPES
    assert np.allclose(res.A, A, rtol=EXACT)
    assert np.allclose(res.V, A - res.vcomp["hom"], atol=EXACT)
    assert np.allclose(np.diag(res.corr), 1.0, rtol=EXACT)
    assert res.corr.loc["day0", "day3"] == pytest.approx(A[0, 3] / np.sqrt(A[0, 0] * A[3, 3]))
    # full: the shared variance is part of V
    assert covarying.V.loc["T", "B"] == covarying.vcomp["V[T,B]"]
    assert covarying.V.equals(covarying.A)


def test_correlation_is_missing_where_a_variance_is_not_positive(res):
    theta = res.estimate.theta.copy()
    theta[VARIANCES.index("V[day1]")] = -2 * theta[0]
    bad = replace_theta(res, theta)
    assert bad.corr.loc["day1"].isna().all()
    assert bad.corr.drop("day1").drop(columns="day1").notna().all(axis=None)


def replace_theta(res, theta):
    return CTMMResults(
        res.design, res.structure_, res.domain, replace(res.estimate, theta=theta), res.notes
    )


def test_names_that_collide_are_told_apart(table):
    df = table.rename(columns={"PC1": "hom", "batch": "V"}).assign(fixed=table["batch"])
    res = ctmm.fit("expr ~ C(celltype) + hom", random="V", structure="iid", data=df)
    assert list(res.vcomp.index) == ["var(hom)", "V", "random(V)"]
    assert list(res.random_effects) == ["shared", "specific", "random(V)"]
    assert res.params.index.is_unique
    named = ctmm.fit("expr ~ C(celltype)", random="fixed", structure="iid", data=df)
    assert list(named.random_effects) == ["shared", "specific", "random(fixed)"]
    assert named.vcomp.index[-1] == "random(fixed)"
    assert named.variance_explained().index.is_unique


# ---------------------------------------------------------------------------------------------
# means


def test_means_are_predictions_at_mean_covariates(res, table):
    men, PC1 = (table["sex"] == "M").mean(), table["PC1"].mean()
    b = res.fe_params
    expected = [
        b["Intercept"] + men * b["sex[T.M]"] + PC1 * b["PC1"] + b.get(f"C(celltype)[T.{c}]", 0.0)
        for c in TYPES
    ]
    means = res.means()
    assert list(means.index) == TYPES
    assert list(means.columns) == ["estimate", "std_error", "conf_low", "conf_high"]
    assert np.allclose(means["estimate"], expected, rtol=EXACT)


def test_contrasts(res):
    pairs = res.contrasts(adjust="bonferroni")
    assert list(pairs.index) == [f"{b} - {a}" for i, a in enumerate(TYPES) for b in TYPES[i + 1 :]]
    row = pairs.loc["day2 - day0"]
    name = "C(celltype)[T.day2]"
    assert row["estimate"] == pytest.approx(res.fe_params[name], rel=EXACT)
    assert row["std_error"] == pytest.approx(res.bse[name], rel=EXACT)
    assert row["p_value"] == pytest.approx(res.pvalues[name], rel=EXACT)
    assert np.allclose(pairs["p_adjusted"], np.minimum(6 * pairs["p_value"], 1), rtol=EXACT)
    reference = res.contrasts("reference", adjust="none")
    assert list(reference.index) == [f"{c} - day0" for c in TYPES[1:]]
    assert reference["p_adjusted"].equals(reference["p_value"])
    with pytest.raises(CTMMError, match="pairwise, reference"):
        res.contrasts("all")
    with pytest.raises(CTMMError, match=r"adjust='nonsense' .*choose from none, .*fdr_bh.* holm"):
        res.contrasts(adjust="nonsense")


def test_missing_p_values_stay_missing_and_do_not_count(res):
    assert np.array_equal(
        adjusted(np.array([0.01, np.nan, 0.03]), "bonferroni"), [0.02, np.nan, 0.06], True
    )
    assert np.isnan(adjusted(np.array([np.nan]), "holm")).all()


# ---------------------------------------------------------------------------------------------
# shares


@pytest.mark.parametrize("name", ["res", "he", "overall", "covarying"])
def test_shares_sum_to_the_total(name, request):
    fit = request.getfixturevalue(name)
    whole, split = fit.variance_explained(), fit.variance_explained(by_celltype=True)
    for table in (whole, split):
        assert table["variance"].iloc[:-1].sum() == pytest.approx(table.loc["total", "variance"])
        assert table["share"].iloc[:-1].sum() == pytest.approx(1.0, rel=EXACT)
    own = [row for row in split.index if row.startswith("specific")]
    assert len(own) == fit.n_celltypes + (name == "covarying")
    assert split.loc[own, "variance"].sum() == pytest.approx(whole.loc["specific", "variance"])


def test_shares_by_hand(res, table):
    """Overall pseudobulk is sum_c P_ic y_ic with P the shares of the cells."""
    wide = table.pivot(index="donor", columns="celltype", values="n_cells").fillna(0).to_numpy()
    P = wide / wide.sum(axis=1, keepdims=True)
    nu = table.pivot(index="donor", columns="celltype", values="nu").fillna(0).to_numpy()
    donor = table.groupby("donor").first()
    fixed = (donor["sex"] == "M") * res.fe_params["sex[T.M]"] + donor["PC1"] * res.fe_params["PC1"]
    v = res.vcomp[[f"V[{c}]" for c in TYPES]].to_numpy()
    expected = {
        "means": (P @ res.means()["estimate"]).var(ddof=1),
        "fixed": fixed.var(ddof=1),
        "shared": res.vcomp["hom"],
        "specific": (P**2 @ v).mean(),
        "batch": res.vcomp["batch"],
        "noise": (P**2 * nu).sum(axis=1).mean(),
    }
    got = res.variance_explained()["variance"]
    assert list(got.index) == [*expected, "total"]
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-10), name
    split = res.variance_explained(by_celltype=True)["variance"]
    assert split["specific[day3]"] == pytest.approx(v[3] * (P[:, 3] ** 2).mean(), rel=1e-10)
    means = res.variance_explained(ddof=0)["variance"]["means"]
    assert means == pytest.approx(expected["means"] * 71 / 72, rel=1e-10)


def test_shares_with_covariances_by_hand(covarying):
    weights = covarying.design.proportions
    V = covarying.V.to_numpy()
    got = covarying.variance_explained(by_celltype=True)["variance"]
    total = np.einsum("ic,cd,id->i", weights, V, weights).mean()
    own = sum(V[c, c] * (weights[:, c] ** 2).mean() for c in range(3))
    assert got["specific[covariances]"] == pytest.approx(total - own, rel=1e-10)
    assert got["shared"] == 0.0
    assert got["batch[NK]"] == pytest.approx(
        covarying.vcomp["batch[NK]"] * (weights[:, 1] ** 2).mean(), rel=1e-10
    )


def test_icc(res, table):
    icc = res.icc()
    noise = table.groupby("celltype")["nu"].mean()
    A = np.diag(res.A)
    assert np.allclose(icc["icc"], A / (A + res.vcomp["batch"] + noise), rtol=1e-10)
    assert np.allclose(icc["shared"], res.vcomp["hom"] / A, rtol=EXACT)


# ---------------------------------------------------------------------------------------------
# effects and predictions


def test_random_effects_labels(res, covarying):
    effects = res.random_effects
    assert list(effects) == ["shared", "specific", "batch"]
    assert tuple(effects["shared"].index) == res.donors
    assert effects["specific"].shape == (72 * 4, 2)
    assert effects["specific"].index.names == ["donor", "celltype"]
    assert len(effects["batch"]) == 24
    for frame in effects.values():
        assert list(frame.columns) == ["estimate", "std_error"]
        assert frame.notna().all(axis=None)
    # no shared component, and one variance of the batch per cell type
    assert list(covarying.random_effects) == ["specific", "batch[B]", "batch[NK]", "batch[T]"]


def test_effects_solve_the_mixed_model_equations(res):
    """u = G Z' Sigma^-1 (y - X b), by dense matrices."""
    d, theta = res.design, res.vcomp
    onehot = np.eye(len(d.donors))[d.donor_codes]
    batch = np.eye(24)[d.random[0].codes]
    own = np.einsum("nd,nc->ndc", onehot, d.H).reshape(len(d.y), -1)
    G_own = np.tile([theta[f"V[{c}]"] for c in TYPES], len(d.donors))
    Sigma = theta["hom"] * onehot @ onehot.T + theta["batch"] * batch @ batch.T
    Sigma += own * G_own @ own.T + np.diag(d.nu)
    r = np.linalg.solve(Sigma, d.y - d.X @ res.estimate.beta)
    effects = {name: frame["estimate"].to_numpy() for name, frame in res.random_effects.items()}
    assert np.allclose(effects["shared"], theta["hom"] * onehot.T @ r, atol=1e-10)
    assert np.allclose(effects["batch"], theta["batch"] * batch.T @ r, atol=1e-10)
    assert np.allclose(effects["specific"], G_own * (own.T @ r), atol=1e-10)


@pytest.mark.parametrize("name", ["res", "overall", "covarying"])
def test_rows_are_on_the_index_of_the_data(name, request):
    fit = request.getfixturevalue(name)
    for series in (fit.fittedvalues, fit.resid, fit.marginal):
        assert series.index.equals(fit.design.index)
    assert np.allclose(fit.fittedvalues + fit.resid, fit.design.y, atol=1e-12)
    assert np.array_equal(fit.marginal, fit.design.X @ fit.estimate.beta)


@pytest.mark.parametrize("name", ["res", "overall", "covarying"])
def test_predictions_of_the_rows_of_the_fit(name, request):
    fit = request.getfixturevalue(name)
    data = fit.design.frame
    assert np.array_equal(fit.predict(), fit.marginal)
    assert np.allclose(fit.predict(data), fit.marginal, atol=EXACT)
    assert np.allclose(fit.predict(random="all"), fit.fittedvalues, atol=1e-10)
    assert np.allclose(fit.predict(data, "all"), fit.fittedvalues, atol=1e-10)


def test_prediction_by_hand(res):
    new = pd.DataFrame(
        {
            "celltype": ["day3", "day0", "day2"],
            "sex": ["M", "F", "F"],
            "PC1": [2.0, -1.0, np.nan],
            "donor": ["donor05", "a new donor", "donor05"],
            "batch": ["batch02", "batch02", None],
        },
        index=["a", "b", "c"],
    )
    b, u = res.fe_params, res.random_effects
    a = b["Intercept"] + b["C(celltype)[T.day3]"] + b["sex[T.M]"] + 2 * b["PC1"]
    fixed = res.predict(new)
    assert list(fixed.index) == ["a", "b", "c"]
    assert fixed["a"] == pytest.approx(a, rel=EXACT)
    assert fixed["b"] == pytest.approx(b["Intercept"] - b["PC1"], rel=EXACT)
    assert np.isnan(fixed["c"])  # a covariate is missing
    batch = u["batch"].loc["batch02", "estimate"]
    own = u["shared"].loc["donor05", "estimate"]
    own += u["specific"].loc[("donor05", "day3"), "estimate"]
    everything = res.predict(new, "all")
    assert everything["a"] == pytest.approx(a + own + batch, rel=EXACT)
    assert everything["b"] == pytest.approx(fixed["b"] + batch, rel=EXACT)  # new donor: 0
    assert res.predict(new, ["batch"])["a"] == pytest.approx(a + batch, rel=EXACT)
    assert res.predict(new, "batch").equals(res.predict(new, ["batch"]))


def test_crossed_groups_are_predicted(table):
    df = table.assign(site=np.where(table["donor"].str[-1] < "5", 1, 2))
    res = ctmm.fit("expr ~ C(celltype) + (1|site:batch)", structure="hom", data=df)
    assert np.allclose(res.predict(df, "all"), res.fittedvalues, atol=1e-10)
    assert "1:batch01" in res.random_effects["site:batch"].index


def test_numbers_as_labels_and_repeated_index(table):
    """Donors 1, 2, ... and batches 1.0, 2.0, ...; every row called 0."""
    df = table.assign(donor=table["donor"].str[-2:].astype(int))
    df["batch"] = df["batch"].str[-2:].astype(float)
    df.index = [0] * len(df)
    res = ctmm.fit(FORMULA, random="batch", data=df, method="reml")
    assert np.allclose(res.predict(df, "all"), res.fittedvalues, atol=1e-10)
    assert res.random_effects["batch"].index[0] == "1"
    assert len(res.augment()) == len(df)


def test_predictions_refuse(res, table):
    new = table.head(3)
    with pytest.raises(FormulaError, match="'day9'"):
        res.predict(new.assign(celltype="day9"))
    with pytest.raises(DataError, match=r"no column 'batch'.*random='none'"):
        res.predict(new.drop(columns="batch"), "all")
    with pytest.raises(CTMMError, match="choose from none, all, shared, specific, batch"):
        res.predict(new, ["site"])


# ---------------------------------------------------------------------------------------------
# resampling


def test_simulate(res):
    one = res.simulate(rng=1, n=3)
    assert one.shape == (275, 3)
    assert one.index.equals(res.design.index)
    assert one.equals(res.simulate(rng=1, n=3))
    assert not one[0].equals(one[1])
    assert not one.equals(res.simulate(rng=2, n=3))


@pytest.mark.slow
def test_simulated_data_have_the_fitted_moments(res):
    draws = res.simulate(rng=0, n=4000).to_numpy()
    wanted = res.A.loc["day0", "day0"] + res.vcomp["batch"] + res.design.nu[0]
    # 5 standard errors of a mean and of a variance of 4000 draws
    assert abs(draws[0].mean() - res.marginal.iloc[0]) < 5 * np.sqrt(wanted / 4000)
    assert abs(draws[0].var() / wanted - 1) < 5 * np.sqrt(2 / 4000)


def test_bootstrap(res):
    boot = res.bootstrap(12, rng=1)
    assert boot.replicates.shape == (12, 12)
    assert list(boot.replicates.columns) == list(res.params.index)
    assert boot.failed == ()
    assert repr(boot) == "<Bootstrap: 12 refits, none failed>"
    assert "<td>" in boot._repr_html_()
    again = res.bootstrap(12, rng=1, n_jobs=2)
    assert again.replicates.equals(boot.replicates)
    assert np.allclose(boot.bse, boot.replicates.std(), rtol=EXACT)
    assert np.allclose(np.diag(boot.cov_params()), boot.bse**2, rtol=1e-10)
    ends = boot.conf_int(0.5)
    assert np.allclose(ends["conf_low"], boot.replicates.quantile(0.25), rtol=EXACT)
    assert list(ends.columns) == ["conf_low", "conf_high"]


# ---------------------------------------------------------------------------------------------
# tests


def test_wald_test(res):
    one = res.wald_test("PC1 = 0.02", "model")
    t = (res.params["PC1"] - 0.02) / res.bse["PC1"]
    assert one.statistic == pytest.approx(t**2, rel=1e-10)
    adjusted = dense_kr.adjusted(res.arrays, res.estimate.theta)
    df = dense_kr.satterthwaite(adjusted, np.eye(len(FIXED))[FIXED.index("PC1")])
    assert one.df == pytest.approx((1, df), rel=1e-8)
    assert one.null == "PC1 = 0.02"
    both = res.wald_test("V[day0] = V[day1], hom - 2 * batch = 0")
    assert both.df == (2, 60)
    assert both.null == "V[day0] - V[day1] = 0, hom - 2 batch = 0"
    L = np.zeros((1, 12))
    L[0, FIXED.index("PC1")] = 1
    by_model = res.wald_test(L, "model").statistic
    assert by_model == pytest.approx(res.tvalues["PC1"] ** 2, rel=1e-10)
    with pytest.raises(CTMMError, match="the parameters are Intercept"):
        res.wald_test("PC7 = 0")


def test_hypotheses_by_name_of_the_column(res):
    """A frame is read by its columns, in any order; those left out count 0."""
    wanted = res.wald_test("PC1 - sex[T.M] = 0, hom = 0")
    L = pd.DataFrame({"hom": [0, 1], "sex[T.M]": [-1, 0], "PC1": [1, 0]})
    assert res.wald_test(L).pvalue == pytest.approx(wanted.pvalue, rel=1e-10)
    whole = L.reindex(columns=res.params.index, fill_value=0)
    assert res.wald_test(whole).pvalue == pytest.approx(wanted.pvalue, rel=1e-10)
    one = res.wald_test("PC1 - sex[T.M] = 0")
    assert res.wald_test(L.iloc[0]).statistic == pytest.approx(one.statistic, rel=1e-10)
    assert res.t_test(whole).tvalue[1] == pytest.approx(res.tvalues["hom"], rel=1e-10)
    with pytest.raises(CTMMError, match="unknown parameters in the hypothesis: PC9"):
        res.wald_test(L.rename(columns={"hom": "PC9"}))


def test_hypotheses_with_their_values_are_a_tuple(res):
    """As in statsmodels, (L, q) is L b = q; two rows are two rows."""
    L = pd.DataFrame(0.0, [0, 1], res.params.index)
    L.loc[0, "PC1"], L.loc[1, ["PC1", "sex[T.M]"]] = 1.0, [1.0, -2.0]
    rows, wanted = L.to_numpy(), res.t_test("PC1 = 0.5, PC1 - 2 * sex[T.M] = -1")
    for given in [(rows, [0.5, -1.0]), (rows.tolist(), np.array([[0.5], [-1.0]])), (L, [0.5, -1])]:
        np.testing.assert_allclose(res.t_test(given).tvalue, wanted.tvalue, rtol=1e-12)
    assert res.t_test((rows[0], 0.5)).tvalue[0] == wanted.tvalue[0]
    assert res.wald_test((rows[:1], 0.5)).null == "PC1 = 0.5"
    two = res.wald_test(tuple(rows))
    assert two.pvalue == res.wald_test(rows).pvalue


@pytest.mark.parametrize(
    "wrong", [(np.eye(12)[:2], [1.0, 2.0, 3.0]), (np.eye(12)[:2], "x"), (np.eye(12)[0], np.nan),
              None, 5, {"PC1": "a"}, {"PC1": None}, ["PC1", None], np.zeros((1, 12)), b"PC1",
              np.array(3.0), pd.DataFrame({"PC1": ["a"]}), pd.DataFrame()],
)  # fmt: skip
def test_hypotheses_that_are_none(res, wrong):
    with pytest.raises(CTMMError):
        res.wald_test(wrong)


def test_no_negative_zero(res):
    assert res.wald_test("PC1").null == "PC1 = 0"


def test_t_test(res):
    tests = res.t_test("PC1 = 0, sex[T.M] = 1", covariance="jackknife")
    table = res.table("jackknife")
    assert tests.tvalue[0] == pytest.approx(table.loc["PC1", "statistic"], rel=1e-10)
    assert tests.pvalue[0] == pytest.approx(table.loc["PC1", "p_value"], rel=1e-10)
    sex = table.loc["sex[T.M]"]
    assert tests.tvalue[1] == pytest.approx((sex["estimate"] - 1) / sex["std_error"], rel=1e-10)
    assert tests.conf_int()[1] == pytest.approx(sex[["conf_low", "conf_high"]].to_numpy())


def test_named_tests(res):
    assert res.test_variance() == res.test_variance("score")
    jack = res.jackknife()
    assert res.test_variance(covariance=jack) == res.test_variance("jackknife")
    variance = res.test_variance("jackknife")
    assert variance.df == (4, 60)
    assert variance.pvalue < 1e-4
    assert res.test_variance("wald").method == "wald (model)"
    assert res.test_mean("model").method == "wald (model)"
    assert set(res.test_variance("score").extra["celltype"]) == set(TYPES)
    mean = res.test_mean("jackknife")
    assert mean.df == (3, 60)
    joint = [f"C(celltype)[T.{c}] = 0" for c in TYPES[1:]]
    for covariance in ("model", None):
        test = res.wald_test(joint, covariance)
        assert res.test_mean(covariance).statistic == pytest.approx(test.statistic, rel=1e-10)
    batch = res.test_component("batch")
    assert batch.pvalue == pytest.approx(res.pvalues["batch"], rel=1e-10)
    by_jackknife = res.test_component("V[day3]", "jackknife")
    assert res.test_component("V[day3]", covariance=jack) == by_jackknife
    expected = res.table("jackknife").loc["V[day3]", "p_value"]
    assert by_jackknife.pvalue == pytest.approx(expected, rel=1e-10)
    with pytest.raises(CTMMError, match="choose from hom, V"):
        res.test_component("pool")
    with pytest.raises(CTMMError, match="choose from wald, jackknife, exact"):
        res.test_component("batch", "score")


def test_likelihood_ratio_is_that_of_anova(res, table):
    hom = ctmm.fit(FORMULA, random="batch", structure="hom", data=table, method="reml")
    test = res.compare_lr_test(hom)
    assert test.statistic == pytest.approx(2 * (res.llf - hom.llf), rel=1e-10)
    assert test.df == 4
    assert test.pvalue == ctmm.anova(hom, res).table["pvalue"].iloc[1]
    assert test.pvalue == pytest.approx(res.test_variance("lrt").pvalue, rel=1e-6)
    with pytest.raises(CTMMError, match="call compare_lr_test on the larger model"):
        hom.compare_lr_test(res)


def test_moments_have_no_likelihood(he, res):
    for name in ("llf", "aic", "bic"):
        with pytest.raises(ConvergenceError, match=r"no likelihood.*method='reml' or 'ml'"):
            getattr(he, name)
    with pytest.raises(CTMMError, match="no likelihood"):
        he.compare_lr_test(he)
    assert he.bounds == "none"
    assert he.cov_type == "jackknife"
    assert he.bse.notna().all()
    assert he.cov_params("model").loc["hom"].drop(FIXED).isna().all()
    assert he.glance()[["log_lik", "aic", "bic"]].isna().all(axis=None)
    assert np.isnan(he.test_variance("lrt").pvalue)
    assert he.test_variance("jackknife").pvalue < 0.01


# ---------------------------------------------------------------------------------------------
# tables and files


def test_broom_tables(res, table):
    tidy = res.tidy()
    assert list(tidy.columns) == [
        "effect", "component", "term", "estimate", "std_error", "statistic", "p_value",
        "conf_low", "conf_high",
    ]  # fmt: skip
    assert tidy["effect"].tolist() == ["fixed"] * 6 + ["variance"] * 6
    assert tidy["component"].tolist() == ["fixed"] * 6 + ["donor"] * 5 + ["random"]
    assert tidy["term"].tolist() == FIXED + VARIANCES
    glance = res.glance()
    assert glance.shape[0] == 1
    assert glance.loc[0, "log_lik"] == res.llf
    augmented = res.augment()
    assert augmented.index.equals(table.index)
    assert np.allclose(augmented[".fitted"] + augmented[".resid"], table["expr"], atol=EXACT)


def test_json_brings_everything_back(res, table, tmp_path):
    res.jackknife()
    path = tmp_path / "fit.json"
    text = res.to_json(path)
    for source in (text, path, str(path)):
        back = CTMMResults.from_json(source)
        assert back.to_json() == text
    assert json.loads(text)["version"] == 7
    assert back.params.equals(res.params)
    assert back.cov_params("jackknife").equals(res.cov_params("jackknife"))
    assert back.llf == res.llf
    assert str(back.summary()) == str(res.summary())
    assert back.fittedvalues.equals(res.fittedvalues)
    assert back.predict(table, "all").equals(res.predict(table, "all"))
    for name, frame in res.random_effects.items():
        assert back.random_effects[name].equals(frame)


def test_json_is_strict(he):
    """NaN of HE is null or text, which every reader of JSON understands."""

    def refuse(name):
        raise AssertionError(name)

    json.loads(he.to_json(), parse_constant=refuse)
    back = CTMMResults.from_json(he.to_json())
    assert np.isnan(back.estimate.llf)
    assert back.params.equals(he.params)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(3, 3 + 40),
        pd.Index(np.arange(40) * 2, name="n"),
        pd.date_range("2020-01-01", periods=40),
        pd.MultiIndex.from_product([["x", "y"], range(20)], names=["a", None]),
    ],
    ids=["range", "numbers", "dates", "multi"],
)
def test_json_keeps_columns_and_index(engine, index):
    df = ctmm.simulate_pseudobulk(20, ["B", "T"], rng=4).ctp.set_index(index)
    df["age"] = np.arange(40) % 7
    df["old"] = df["age"] > 3
    df["sex"] = pd.Categorical(df["sex"], categories=["M", "F", "other"])
    formula = "expr ~ celltype + center(age) + old + C(sex)"
    res = ctmm.fit(formula, structure="hom", data=df, formula_engine=engine)
    back = CTMMResults.from_json(res.to_json())
    assert back.predict(df.head(4)).equals(res.predict(df.head(4)))
    if not isinstance(index, pd.DatetimeIndex):  # dates come back as text
        assert back.design.index.equals(index)
    for name in res.design.frame:
        # text categories are str or object, which is pandas' own affair
        pd.testing.assert_series_equal(
            back.design.frame[name], res.design.frame[name], check_categorical=False
        )


def sealed(content):
    """The file of someone who edits a fit and knows how to make its checksum."""
    return json.dumps(
        {**content, "checksum": serialize.checksum(content["parts"])}, ensure_ascii=False
    )


def double(x):
    return 2 * x


def test_functions_of_the_caller_are_pickled_but_no_json(table):
    factor = 3.0
    res = ctmm.fit("expr ~ C(celltype) + I(factor * PC1)", structure="hom", data=table)
    back = CTMMResults.from_json(res.to_json())  # a number is kept
    assert back.predict(table.head()).equals(res.predict(table.head()))
    assert factor == 3.0
    res = ctmm.fit("expr ~ C(celltype) + double(PC1)", structure="hom", data=table)
    with pytest.raises(DataError, match=r"'double'.*pickle the results"):
        res.to_json()
    back = pickle.loads(pickle.dumps(res))
    assert back.predict(table.head()).equals(res.predict(table.head()))


def test_what_is_written_into_a_covariance_stays_outside(res):
    before = res.bse.copy()
    for held in (res.cov_params(), res.cov_params("jackknife"), res.jackknife().cov_params()):
        held.iloc[:] = 0.0
    assert res.bse.equals(before)
    assert (res.jackknife().bse > 0).all() and (res.cov_params().to_numpy() != 0).any()


def test_files_that_are_no_fit():
    with pytest.raises(DataError, match="not a fit stored by to_json"):
        CTMMResults.from_json('{"a": 1}')
    with pytest.raises(DataError, match="version 99"):
        CTMMResults.from_json('{"format": "ctmm_formula fit", "version": 99}')


def test_a_file_names_no_other_class(res):
    content = json.loads(res.to_json())
    content["parts"][2]["record"] = "Popen"
    with pytest.raises(DataError, match="not a fit stored by to_json"):
        CTMMResults.from_json(sealed(content))


def test_names_and_random_effects_of_a_file_are_as_many(res):
    content = json.loads(res.to_json())
    content["parts"][0]["design"]["random_names"].append("batch")
    with pytest.raises(DataError, match="names of random effects"):
        CTMMResults.from_json(sealed(content))


def test_a_formula_of_other_columns_is_said(res):
    content = json.loads(res.to_json())
    content["parts"][0]["design"]["coding"]["fixed"] = "C(celltype) + sex"
    back = CTMMResults.from_json(sealed(content))
    with pytest.raises(DataError, match="another number of fixed effects"):
        back.predict(back.design.frame.head(2))


@pytest.mark.parametrize("name", ["res", "he", "overall", "covarying"])
def test_pickle(name, request):
    fit = request.getfixturevalue(name)
    fit.random_effects  # noqa: B018  (what is cached is not stored)
    back = pickle.loads(pickle.dumps(fit))
    assert back.params.equals(fit.params)
    assert back.notes == fit.notes
    assert back.to_json() == fit.to_json()
    assert back.predict(random="all").equals(fit.predict(random="all"))


def test_one_line(res):
    assert repr(res) == (
        "<CTMMResults: expr ~ C(celltype) + sex + PC1 + (1 | batch), free by REML, 72 donors, "
        "4 cell types, 275 rows>"
    )
    assert "<table" in res._repr_html_()


# ---------------------------------------------------------------------------------------------
# files from others


POISON = "C(celltype) + I(PC1 + 0 * __import__('os').mkdir('poisoned'))"


@pytest.mark.slow
def test_who_looks_at_a_file_runs_none_of_it(res, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = json.loads(res.to_json())
    content["parts"][0]["design"]["coding"]["fixed"] = POISON
    back = CTMMResults.from_json(sealed(content))
    assert back.to_json() == sealed(content)
    assert str(back.summary()) == str(res.summary())
    assert back._repr_html_() == res._repr_html_()
    assert back.means().equals(res.means())
    assert back.contrasts().equals(res.contrasts())
    assert back.test_mean() == res.test_mean()
    assert back.test_variance() == res.test_variance()
    assert back.test_variance("score").pvalue == res.test_variance("score").pvalue
    assert back.variance_explained().equals(res.variance_explained())
    assert back.predict(random="all").equals(res.predict(random="all"))
    assert back.bootstrap(2, rng=1).failed == ()
    assert not (tmp_path / "poisoned").exists()
    overall = ctmm.load_example(kind="op")
    columns = [f"prop_{c}" for c in TYPES]
    op = ctmm.fit("expr ~ sex", data=overall, proportions=columns, structure="hom", method="reml")
    content = json.loads(op.to_json())
    content["parts"][0]["design"]["coding"]["fixed"] = POISON
    assert CTMMResults.from_json(sealed(content))._repr_html_() == op._repr_html_()
    assert not (tmp_path / "poisoned").exists()
    with pytest.raises(FormulaError, match=r"__import__\(.os.\).*is not evaluated.*trust=True"):
        back.predict(back.design.frame.head(2))
    assert not (tmp_path / "poisoned").exists()
    content = json.loads(res.to_json())
    content["parts"][0]["design"]["coding"]["fixed"] = POISON
    trusted = CTMMResults.from_json(sealed(content), trust=True)
    with pytest.raises(FormulaError):  # other columns, but it has run
        trusted.predict(back.design.frame.head(2))
    assert (tmp_path / "poisoned").exists()


VOUCHED = [
    "x", "Q('a b')", "C(x, Treatment(reference='a'))", "C(x, Sum)", "C(x, levels=['a', 'b'])",
    "np.log(x)", "numpy.power(x, 2)", "np.where(x > 0, 1, y)", "I(x**2 + 3 * y / k)", "-x",
    "I(x**2 > 1e300)", "bs(x, df=4, knots=(1, 2))", "cr(x, df=3, constraints='center')",
    "scale(np.log1p(x))", "I((x > 0) & (y == 'a'))", "I(x > 0 and not y)", "I(text == x)",
    "f(x)", "I(x / 100000)",
]  # fmt: skip
REFUSED = [
    "__import__('os')", "x.sum()", "x.__class__", "np.load('a')", "np.fromfile('a')", "open('a')",
    "np.log(x, y)", "np.log(x, out=y)", "np.where(x)", "g(x)", "f(*[x])", "I(**{'x': x})", "z",
    "(lambda: x)()", "[x for x in y]", "x if y else x", "x[0]", "f'{x}'", "I((y := x))", "np",
    "9**9**9", "I(x * 9**9**9)", "'a' * 10**9", "I('a' * 1000)", "bs(x, df=10**9)", "C(eval)",
    "bs(x, df=1000000000)", "bs(x, df=99999 + 1)", "getattr(x, 'y')", "np.linalg.inv(x)", "C.f(x)",
    "I(x @ y)", "I('%s' % x)", "k(x)", "bs(x, df=large)", "np.log.__self__(x)", "1e5j", "C(np.log)",
    "((" * 40 + "x" + "))" * 40 + ".y", "-" * 5000 + "x",
]  # fmt: skip


@pytest.mark.parametrize("code", VOUCHED)
def test_what_a_formula_of_a_file_may_hold(code):
    vouch(code, ["x", "y", "a b"], {"k": 2.0, "text": "a"}, ["f"])


@pytest.mark.parametrize("code", REFUSED, ids=lambda code: code[:30])
def test_what_it_may_not_hold(code):
    with pytest.raises(FormulaError):
        vouch(code, ["x", "y", "a b"], {"k": 2.0, "text": "a", "large": 10**9}, ["f"])


def test_every_listed_function_is_there():
    assert all(hasattr(np, name) for name in NUMPY)
    known = known_names("patsy") | known_names("formulaic") | {"abs"}
    assert not FUNCTIONS - known


@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
def test_usual_formulas_predict_after_a_file(table, engine):
    formula = (
        "expr ~ C(celltype, Sum) + np.log(PC1**2 + 1) + bs(PC2, df=4) + scale(PC3) + I(PC1 > 0)"
    )
    fit = ctmm.fit(formula, structure="hom", method="he", data=table, formula_engine=engine)
    back = CTMMResults.from_json(fit.to_json())
    new = table.head(9)
    assert back.predict(new).equals(fit.predict(new))
    again = pickle.loads(pickle.dumps(back))
    assert again.predict(new).equals(fit.predict(new))


def test_a_number_that_was_edited_is_an_error(res, tmp_path):
    content = json.loads(res.to_json())
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(content, indent=2, sort_keys=True))  # laid out anew: the same values
    assert CTMMResults.from_json(path).params.equals(res.params)
    content["parts"][3]["content"]["theta"]["array"]["data"][0] += 1e-9
    for text in (json.dumps(content), json.dumps({**content, "checksum": 3})):
        with pytest.raises(DataError, match="damaged or was edited"):
            CTMMResults.from_json(text)
    del content["checksum"]
    with pytest.raises(DataError, match="not a fit stored by to_json"):
        CTMMResults.from_json(json.dumps(content))


def _set(*where, to):
    def edit(content):
        for key in where[:-1]:
            content = content[key]
        content[where[-1]] = to

    return edit


_D = ("parts", 0, "design")
GREEDY = {
    "codes": _set(*_D, "donor_codes", "array", "data", 0, to=2**35),
    "random": _set(*_D, "random", 0, "content", "codes", "array", "data", 0, to=2**35),
    "negative": _set(*_D, "donor_codes", "array", "data", 0, to=-1),
    "text array": _set(*_D, "y", "array", "type", to="<U1000000000"),
    "shape": _set(*_D, "X", "array", "shape", to=[2**35, 4]),
    "rows": _set(*_D, "frame", "frame", to={"rows": 2**35, "columns": []}),
    "index": _set(*_D, "index", to={"range": [0, 2**40, 1, None]}),
    "huge": _set("parts", 3, "content", "llf", to=10**400),
    "kind": _set(*_D, "kind", to="zz"),
    "method": _set("parts", 3, "content", "method", to=["reml"]),
    "nan": _set(*_D, "X", "array", "data", 0, to="nan"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_sizes_of_a_file_are_checked_before_they_are_used(res, name):
    content = json.loads(res.to_json())
    GREEDY[name](content)
    with pytest.raises(DataError, match="not a fit stored by to_json"):
        CTMMResults.from_json(sealed(content))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format":' * 100_000, "{" + " " * 9])
def test_deep_or_cut_texts(text):
    with pytest.raises(DataError, match="not a fit stored by to_json"):
        CTMMResults.from_json(text)


def test_to_json_writes_a_whole_file_or_none(res, tmp_path, monkeypatch):
    path = tmp_path / "fit.json"
    path.write_text("old")

    def full(self, text, **settings):
        with self.open("w") as file:
            file.write(text[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"fit\.json' cannot be written .*No space left"):
        res.to_json(path)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["fit.json"]
    with pytest.raises(DataError, match="cannot be written"):
        res.to_json(tmp_path)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    text = res.to_json(link)
    assert link.is_symlink() and path.read_text(encoding="utf-8") == text


def test_what_moments_do_not_have_is_no_attribute(he, res):
    for name in ("llf", "aic", "bic"):
        assert not hasattr(he, name)
        assert hasattr(res, name)
        with pytest.raises(ctmm.ConvergenceError, match="no likelihood"):
            getattr(he, name)


def test_versions_are_those_that_made_the_numbers(res):
    content = json.loads(res.to_json())
    content["parts"][5] = {"dict": [["ctmm-formula", "0.0.1"], ["numpy", "1.0"]]}
    back = CTMMResults.from_json(sealed(content))
    assert str(back.summary()).endswith("ctmm-formula 0.0.1, numpy 1.0.")
    again = CTMMResults.from_json(back.to_json())
    assert again.versions == back.versions == {"ctmm-formula": "0.0.1", "numpy": "1.0"}
    assert pickle.loads(pickle.dumps(back)).versions == back.versions


@pytest.mark.parametrize(
    "source", ["[]", "", "nonsense", "a" * 5000, 5, None, b"{}", {}, "{", "a\0b"], ids=repr
)
def test_sources_that_are_no_file(source):
    with pytest.raises(DataError):
        CTMMResults.from_json(source)


def test_broken_files(res):
    good = json.loads(res.to_json())
    for k in range(len(good["parts"])):
        for wrong in (None, 3, "a", [], {}, {"array": {}}, {"nonsense": 1}):
            parts = [*good["parts"][:k], wrong, *good["parts"][k + 1 :]]
            if wrong == [] and isinstance(good["parts"][k], list):
                continue  # no notes, no jackknives
            with pytest.raises(DataError, match="not a fit stored by to_json"):
                CTMMResults.from_json(sealed({**good, "parts": parts}))
    short = json.loads(res.to_json())
    theta = short["parts"][3]["content"]["theta"]["array"]
    theta["data"], theta["shape"] = theta["data"][:-1], [5]
    with pytest.raises(DataError, match="theta has shape"):
        CTMMResults.from_json(sealed(short))


# ---------------------------------------------------------------------------------------------
# estimates on the edge, fits that did not settle


def test_correlations_need_a_covariance(res):
    """V = -hom + rounding: variances of 1e-9 would give correlations of 1e8."""
    theta = res.estimate.theta.copy()
    theta[1:5] = -theta[0] * (1 - 1e-9)
    bad = replace_theta(res, theta)
    assert bad.corr.isna().all(axis=None)
    assert bad.icc()["shared"].isna().all()
    assert "correlations" in str(bad.summary())
    assert res.corr.notna().all(axis=None)
    theta[1:5] = 0.0  # V = 0: singular, but a covariance
    assert np.allclose(replace_theta(res, theta).corr, 1.0)


def test_what_is_handed_out_is_a_copy(res):
    before = res.predict(random="all")
    for frame in res.random_effects.values():
        frame.loc[:, "estimate"] = 0.0
    assert res.predict(random="all").equals(before)
    assert res.random_effects["batch"]["estimate"].abs().sum() > 0


def stalled(res):
    record = replace(res.estimate.convergence, converged=False, message="too long")
    return CTMMResults(
        res.design, res.structure_, res.domain, replace(res.estimate, convergence=record)
    )


def test_no_p_values_of_variances_that_did_not_settle(res):
    bad = stalled(res)
    assert bad.pvalues[VARIANCES].isna().all()
    assert bad.pvalues[FIXED].equals(res.pvalues[FIXED])
    tests = [bad.test_variance(m, n=2) for m in ("jackknife", "wald", "lrt", "bootstrap")]
    tests += [bad.test_component("hom"), bad.test_component("hom", "jackknife")]
    tests += [bad.wald_test("hom = batch"), bad.compare_lr_test(smaller(res))]
    for test in tests:
        assert np.isnan(test.pvalue), test
        assert "not converge" in test.note
    assert np.isnan(bad.t_test("hom = 0").pvalue).all()
    assert bad.wald_test("PC1 = 0") == res.wald_test("PC1 = 0")
    assert "no p values, as the fit did not converge" in " ".join(str(bad.summary()).split())


def smaller(res):
    return ctmm.fit(FORMULA, random="batch", structure="hom", data=res.design.frame, method="reml")


def test_shares_without_proportions(table):
    """Equal weights: the means' part is 0, not their rounding, and the summary says why."""
    full = table[table.groupby("donor")["expr"].transform("size") == 4]
    res = ctmm.fit(FORMULA, data=full.drop(columns="n_cells"))
    assert res.variance_explained().loc["means", "variance"] == 0.0
    text = str(res.summary())
    assert "count equally" in text
    assert [line.split() for line in text.splitlines() if line.startswith("means")] == [
        ["means", "0", "0.0", "%"]
    ]
    assert "count equally" not in str(ctmm.fit(FORMULA, data=full).summary())


def test_advice_on_the_jackknife(res, he):
    """Advice comes with small p values of the jackknife, and only there."""
    assert "confirm by test_variance('score')" in res.test_variance("jackknife").note
    assert res.test_variance("wald").note == he.test_variance("jackknife").note == ""


# ---------------------------------------------------------------------------------------------
# arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.predict(random=True),
        lambda r: r.predict(random=["none"]),
        lambda r: r.predict(random=["all"]),
        lambda r: r.conf_int("a"),
        lambda r: r.conf_int(True),
        lambda r: r.contrasts(adjust=None),
        lambda r: r.bootstrap(2, rng=1).conf_int(3),
        lambda r: r.bootstrap(0),
        lambda r: r.bootstrap(-1),
        lambda r: r.bootstrap(2.5),
        lambda r: r.bootstrap(2, rng="a"),
        lambda r: r.bootstrap(2, n_jobs=0),
        lambda r: r.simulate(n=-1),
        lambda r: r.simulate(rng=-1),
        lambda r: r.test_variance("bootstrap", n=0),
        lambda r: r.test_variance("bootstrap", n=2, rng="a"),
        lambda r: r.test_variance(n_jobs="a"),
        lambda r: r.test_component("hom", "exact", n=0.5),
        lambda r: r.test_mean("wald"),
        lambda r: r.compare_lr_test(None),
        lambda r: r.compare_lr_test("hom"),
        lambda r: r.variance_explained(ddof=100),
        lambda r: r.variance_explained(ddof="a"),
    ],
)
def test_arguments_are_checked(res, call):
    with pytest.raises(CTMMError):
        call(res)


def test_none_is_no_random_effect(res):
    assert res.predict(random=None).equals(res.predict())


def test_effects_of_what_is_no_covariance_are_those_of_its_part_that_is(he):
    """Negative components shrunk together to where A is a covariance, as by dense algebra."""
    theta = np.array([0.4, -1.5, 0.3, -0.5, 0.2, -0.3])  # hom, V of four types, batch
    res = replace_theta(he, theta)
    assert not res.definite and he.definite

    def A(share):
        own = np.where(theta[:5] > 0, theta[:5], share * theta[:5])
        return own[0] + np.diag(own[1:])

    share = optimize.brentq(lambda t: np.linalg.eigvalsh(A(t))[0], 0.0, 1.0, xtol=1e-14)
    d = res.design
    G = np.equal.outer(d.donor_codes, d.donor_codes) * (d.H @ A(share) @ d.H.T)
    y, X = d.y, d.X
    inverse = np.linalg.inv(G + np.diag(d.nu))
    P = inverse - inverse @ X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse)
    want = X @ res.estimate.beta + G @ P @ y
    np.testing.assert_allclose(res.fittedvalues, want, rtol=1e-8, atol=1e-8)
    assert (res.random_effects["batch"]["estimate"] == 0.0).all()
    nothing = replace_theta(he, np.full(6, -1.0))
    assert nothing.fittedvalues.equals(nothing.marginal.rename("fittedvalues"))


def test_any_default_fit_of_three_donors_has_effects_and_says_what_they_are():
    rng = np.random.default_rng(0)
    said = 0
    for _ in range(20):
        rows = {"donor": np.repeat(list("abc"), 3), "celltype": list("BTM") * 3, "nu": 0.05,
                "n_cells": rng.integers(20, 90, 9), "y": rng.normal(size=9) * 0.3}  # fmt: skip
        res = ctmm.fit("y ~ C(celltype)", data=rows)
        assert res.method == "robust" and np.isfinite(res.fittedvalues).all()
        A = res.A.to_numpy()
        definite = np.linalg.eigvalsh(A + 0.05 * np.eye(3))[0] > 0
        assert definite == res.definite
        noted = any("is not positive definite: random effects" in note for note in res.notes)
        assert noted != definite
        said += noted
    assert 0 < said < 20


def test_moments_without_noise_have_no_effects_and_say_what_to_do(he):
    still = replace_theta(he, np.full(6, -1.0))
    still = replace(still, design=replace(still.design, nu=np.zeros(len(still.design.nu))))
    message = r"\(donor01, donor02, donor03, \.\.\.\); .*method='reml'.*random='none'"
    with pytest.raises(ConvergenceError, match=message):
        _ = still.random_effects


def test_errors_that_a_failed_jackknife_lacks_are_said(res):
    """One donor holds most of what is known of day0."""
    df = ctmm.load_example()
    first = df["donor"].unique()[:2]
    part = df[(df.celltype != "day0") | df.donor.isin(first)]
    few = ctmm.fit("expr ~ C(celltype)", data=part, method="he")
    with pytest.warns(ctmm.CTMMWarning, match=r"errors are missing, as 2 of 72 refits .*failed"):
        assert few.bse.isna().any()
    assert "Standard errors are missing, as 2 of 72" in " ".join(str(few.summary()).split())
    assert few.bse.isna().any()  # told once


def test_note_and_summary_of_no_residual_df_agree():
    df = ctmm.load_example()
    part = df[df.donor.isin(df.donor.unique()[:8])]
    few = ctmm.fit("expr ~ C(celltype) + PC1", data=part, method="he")
    text = " ".join(str(few.summary()).split())
    assert few.df_resid < 1 and "P values by t" not in text
    assert "No p values and intervals, as there are no residual df" in text
    assert "of variance components but by test_variance('score'); of fixed effects none but" in text
    assert np.isfinite(few.test_mean().pvalue) and np.isfinite(few.test_variance().pvalue)
    assert few.pvalues.isna().all()
