"""Outliers, predicted expression and scans of donors' variables: dense algebra and statsmodels."""

import time
import warnings

import dense
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula.engine.blup import covariance_part

FORMULA = "expr ~ C(celltype) + sex"


def close(got, want, rtol=1e-8):
    np.testing.assert_allclose(got, want, rtol=rtol, atol=1e-10)


@pytest.fixture(scope="module")
def df():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def table(df):
    """A dosage, a rare allele, a laboratory value far from 0; donors in another order, and more."""
    rng = np.random.default_rng(5)
    donors = [*reversed(df["donor"].unique()), "somebody else"]
    n = len(donors)
    return pd.DataFrame(
        {"rs1": rng.binomial(2, 0.4, n), "rs2": rng.binomial(1, 0.08, n),
         "lab": 1e5 + rng.normal(size=n)}, index=donors,
    )  # fmt: skip


def fitted(df, method="reml", **options):
    options = {"random": "batch", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ctmm.fit(FORMULA, data=df, method=method, **options)


def brute(res):
    """P, Sigma and the arrays of the model, by the weights that the fit has."""
    model, theta = res.arrays, res.estimate.theta
    if res.method == "robust":
        model = model.with_response(model.y, dense.working_noise(model))
        theta = covariance_part(theta, model.basis)
    a = dense.arrays(model)
    Sigma = dense.covariance(a, theta)
    return a, Sigma, dense.projection(Sigma, a.X)[1]


def values_of(res, table, name):
    """A variable by row of the model."""
    by_donor = table[name].reindex(list(res.donors)).to_numpy(dtype=float)
    return by_donor[res.arrays.donors[res.arrays.row_donor]]


def tail(x, q, d):
    return stats.f.sf(x / (d - x) * (d - q) / q, q, d - q)


SETTINGS = {
    "batches": {}, "robust": {"method": "robust"}, "full": {"structure": "full", "random": None},
    "moments": {"method": "he"},
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_scan_is_generalised_least_squares_one_by_one(df, table, setting):
    res = fitted(df, **SETTINGS[setting])
    found = ctmm.scan_donors(res, table)
    a, Sigma, P = brute(res)
    y, H, C = a.y, a.H, a.H.shape[1]
    M = np.linalg.inv(Sigma)
    d = np.array([
        (H[:, c] > 0).sum() * (H[:, c] @ np.diag(P)) / (H[:, c] @ np.diag(M)) for c in range(C)
    ])  # fmt: skip
    assert list(found.index) == ["rs1", "rs2", "lab"] and (found["reason"] == "").all()
    for name in table:
        g = values_of(res, table, name)
        if name == "lab":
            g = g - 1e5  # the means of the cell types take it
        Z = g[:, None] * H
        gls = sm.GLS(y, np.hstack([a.X, Z]), sigma=Sigma).fit()
        b = gls.params[-C:]
        V = np.linalg.inv(np.asarray(gls.normalized_cov_params)[-C:, -C:])
        se = np.sqrt(np.diag(np.linalg.inv(V)))
        own = found.loc[name]
        types = list(res.celltypes)
        close(own[[f"estimate[{c}]" for c in types]].astype(float), b, rtol=1e-6)
        close(own[[f"se[{c}]" for c in types]].astype(float), se, rtol=1e-6)
        close(own[[f"p[{c}]" for c in types]].astype(float), tail((b / se) ** 2, 1, d), rtol=1e-5)
        one = np.ones(C) / C
        error = np.sqrt(one @ np.linalg.inv(V) @ one)
        close([own["estimate_mean"], own["se_mean"]], [b.mean(), error], rtol=1e-6)
        close(own["p_mean"], tail((b.mean() / error) ** 2, 1, d.mean()), rtol=1e-5)
        close(own["p_omnibus"], tail(b @ V @ b, C, d.sum()), rtol=1e-5)
        L = np.eye(C)[1:] - np.eye(C)[0]
        Q = L @ b @ np.linalg.solve(L @ np.linalg.inv(V) @ L.T, L @ b)
        close(own["p_heterogeneity"], tail(Q, C - 1, d.sum()), rtol=1e-5)


def one_type(df):
    """One cell type, equal noise: the model is ordinary least squares."""
    own = df[df["celltype"] == "day2"].assign(nu=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return own, ctmm.fit("expr ~ sex + PC1", data=own, method="reml", structure="hom")


def test_with_one_type_and_equal_noise_it_is_the_t_test_of_least_squares(df, table):
    own, res = one_type(df)
    found = ctmm.scan_donors(res, table)
    for name in ("rs1", "rs2"):
        X = pd.get_dummies(own["sex"], drop_first=True, dtype=float)
        X = sm.add_constant(X.assign(PC1=own["PC1"], g=own["donor"].map(table[name])))
        ols = sm.OLS(own["expr"], X.astype(float)).fit()
        close(found.loc[name, "estimate[day2]"], ols.params["g"], rtol=1e-6)
        close(found.loc[name, ["p[day2]", "p_mean", "p_omnibus"]].astype(float), ols.pvalues["g"],
              rtol=1e-6)  # fmt: skip


def test_with_one_type_and_equal_noise_residuals_are_studentised(df):
    own, res = one_type(df)
    X = pd.get_dummies(own["sex"], drop_first=True, dtype=float).assign(PC1=own["PC1"])
    ols = sm.OLS(own["expr"], sm.add_constant(X.astype(float))).fit()
    want = ols.get_influence().resid_studentized_internal
    rows = res.outliers().rows
    close(rows["residual"], want, rtol=1e-6)
    assert list(rows.index) == list(own.index)
    close(rows["p_value"], 2 * stats.norm.sf(np.abs(want)), rtol=1e-5)


@pytest.mark.parametrize("setting", ["batches", "robust"])
def test_outliers_are_what_the_other_rows_say(df, setting):
    """Of one row, and of one donor, left out of the dense fit at the same covariance."""
    res = fitted(df, **SETTINGS[setting])
    found = res.outliers()
    a, Sigma, _ = brute(res)
    residual = found.rows["residual"].to_numpy()[res.arrays.order]

    def away(at):
        rest = np.setdiff1d(np.arange(len(a.y)), at)
        S = np.linalg.inv(Sigma[np.ix_(rest, rest)])
        X, cross = a.X[rest], Sigma[np.ix_(at, rest)]
        K = np.linalg.inv(X.T @ S @ X)
        b = K @ X.T @ S @ a.y[rest]
        e = a.y[at] - a.X[at] @ b - cross @ S @ (a.y[rest] - X @ b)
        left = a.X[at] - cross @ S @ X
        return e, Sigma[np.ix_(at, at)] - cross @ S @ cross.T + left @ K @ left.T

    for i in (0, 7, 100):
        e, cov = away(np.array([i]))
        close(residual[i], e[0] / np.sqrt(cov[0, 0]), rtol=1e-6)
    for code in (0, 40):
        donor = found.donors.loc[res.donors[res.arrays.donors[code]]]
        at = np.flatnonzero(a.donor == code)
        e, cov = away(at)
        close(donor["statistic"], e @ np.linalg.solve(cov, e), rtol=1e-6)
        assert donor["df"] == len(at)
        close(donor["p_value"], stats.chi2.sf(donor["statistic"], len(at)))
    assert "smallest p values" in repr(found) and "<table" in found._repr_html_()


def test_a_wrong_row_and_a_wrong_donor_are_found(df):
    bad = df.copy()
    bad.loc[bad.index[5], "expr"] += 6.0
    donor = bad["donor"] == "donor30"
    bad.loc[donor, "expr"] += np.array([2.5, -2.5, 2.5, -2.5])[: donor.sum()]
    found = fitted(bad).outliers()
    assert found.rows["p_value"].idxmin() == bad.index[5]
    assert "donor30" in found.donors.sort_values("p_value").head(3).index


def test_a_row_that_alone_tells_an_effect_has_no_residual(df):
    alone = df.assign(odd=(np.arange(len(df)) == 3).astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        res = ctmm.fit("expr ~ C(celltype) + odd", data=alone, method="reml")
    found = res.outliers()
    assert np.isnan(found.rows["residual"].iloc[3]) and found.rows["residual"].isna().sum() == 1
    assert (
        found.donors.loc[df["donor"].iloc[3], "df"]
        == (df["donor"] == df["donor"].iloc[3]).sum() - 1
    )


@pytest.mark.parametrize("options", [{}, {"structure": "full", "random": None}])
def test_predicted_expression_is_the_fit_with_its_error(df, options):
    res = fitted(df, **options)
    with pytest.warns(ctmm.CTMMWarning, match="bad phenotype|as a phenotype"):
        found = res.predicted_expression()
    close(found["predicted"], res.fittedvalues)
    close(found["observed"], df["expr"])
    a, Sigma, P = brute(res)
    truth = Sigma - a.D  # covariance of true expression
    # predicted less true: (I - D P) y - m, by its definition
    W = np.eye(len(a.y)) - a.D @ P
    cov = W @ Sigma @ W.T - W @ truth - truth @ W.T + truth
    got = found["std_error"].to_numpy()[res.arrays.order]
    close(got, np.sqrt(np.diag(cov)), rtol=1e-6)
    assert (got**2 < np.diag(a.D)).all()


def test_variables_that_cannot_be_tested_say_why(df):
    res = fitted(df)
    sex = df.groupby("donor")["sex"].first().eq("M")
    table = pd.DataFrame({"sex": sex, "alike": 3.0, "good": np.arange(72.0) % 5})
    found = ctmm.scan_donors(res, table)
    assert found.loc["alike", "reason"] == "all donors have the same value"
    assert found.loc["sex", "reason"].startswith("the fixed effects of the fit hold it")
    assert found.loc["good", "reason"] == ""
    numbers = found.drop(columns=["reason", "n_missing"])
    assert numbers.loc[["sex", "alike"]].isna().all(axis=None)
    assert numbers.loc["good"].notna().all()
    close(found.loc["good", "p_omnibus_adjusted"], found.loc["good", "p_omnibus"])


def test_a_type_where_a_variable_does_not_vary_stands_aside(df):
    """Its carriers lack the type: the others are tested as if the type were not there."""
    carriers = df["donor"].unique()[:6]
    own = df[~(df["donor"].isin(carriers) & (df["celltype"] == "day0"))]
    res = fitted(own, random=None)
    table = pd.DataFrame({"rs": df["donor"].drop_duplicates().isin(carriers).to_numpy(dtype=float)},
                         index=df["donor"].unique())  # fmt: skip
    found = ctmm.scan_donors(res, table).loc["rs"]
    assert np.isnan(found["estimate[day0]"]) and np.isnan(found["p[day0]"])
    assert found["reason"].startswith("no test of 'day0': all donors with it have the same value")
    a, Sigma, _ = brute(res)
    Z = values_of(res, table, "rs")[:, None] * a.H[:, 1:]
    gls = sm.GLS(a.y, np.hstack([a.X, Z]), sigma=Sigma).fit()
    close([found[f"estimate[{c}]"] for c in res.celltypes[1:]], gls.params[-3:], rtol=1e-6)
    close(found["estimate_mean"], gls.params[-3:].mean(), rtol=1e-6)


def test_missing_values_are_refused_or_filled_and_counted(df, table):
    res = fitted(df)
    gaps = table.astype(float)
    gaps.loc[list(res.donors[:2]), "rs1"] = np.nan
    with pytest.raises(ctmm.DataError, match=r"'rs1' of donor .*missing='mean'"):
        ctmm.scan_donors(res, gaps)
    found = ctmm.scan_donors(res, gaps, missing="mean")
    assert found["n_missing"].tolist() == [2, 0, 0]
    filled = gaps.copy()
    filled["rs1"] = filled["rs1"].fillna(gaps.loc[list(res.donors), "rs1"].mean())
    close(found["p_omnibus"], ctmm.scan_donors(res, filled)["p_omnibus"])
    none = ctmm.scan_donors(res, gaps.assign(rs2=np.nan), missing="mean").loc["rs2"]
    assert none["reason"] == "no donor has a value" and none["n_missing"] == res.n_donors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.iloc[5:],
            r"no row of 5 of the fit's 72 donors, .*leave these donors out of the fit",
        ),
        (lambda t: t.reset_index(drop=True), r"no row of 72 .*give a column 'donor'"),
        (lambda t: pd.concat([t, t.iloc[:1]]), r"several rows of donor"),
        (lambda t: t.assign(text="a"), r"'text'.*numbers"),
        (lambda t: t.assign(lab=np.inf), r"'lab' has infinite values"),
        (lambda t: t[[]], "table has no columns"),
        (lambda t: t.set_axis(["a", "a", "b"], axis=1), r"several columns 'a'"),
        (lambda t: 3, "table must be a pandas DataFrame"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(df, table, change, message):
    res = fitted(df)
    changed = change(table.iloc[:-1])
    with pytest.raises(ctmm.DataError, match=message):
        ctmm.scan_donors(res, changed)


def test_a_column_may_name_the_donors_and_truth_values_are_numbers(df, table):
    res = fitted(df)
    own = table.assign(carrier=table["rs2"] > 0).astype({"rs1": "Int64"})
    named = own.rename_axis("donor").reset_index()
    close(ctmm.scan_donors(res, named)["p_omnibus"][:3], ctmm.scan_donors(res, table)["p_omnibus"])
    close(ctmm.scan_donors(res, table["lab"])["p_mean"], ctmm.scan_donors(res, table)["p_mean"][2:])
    found = ctmm.scan_donors(res, own)
    close(found.loc["carrier", "p_omnibus"], found.loc["rs2", "p_omnibus"])
    with pytest.raises(ctmm.CTMMError, match="needs a result of fit"):
        ctmm.scan_donors(df, table)


def test_overall_pseudobulk_and_conditions_have_effects_by_cell_type(df, table):
    op = ctmm.load_example(kind="op")
    names = [name for name in op if name.startswith("prop_")]
    res = ctmm.fit("expr ~ sex", data=op, proportions=names, method="reml", structure="iid")
    assert ctmm.scan_donors(res, table).filter(like="estimate[").notna().all(axis=None)
    two = pd.concat([df.assign(stim="no"), df.assign(stim="yes", expr=df["expr"] + 0.1)])
    two["expr"] += np.random.default_rng(1).normal(size=len(two)) * np.sqrt(two["nu"])
    within = ctmm.fit("expr ~ C(celltype) * stim", data=two.reset_index(drop=True), within="stim")
    found = ctmm.scan_donors(within, table)
    assert list(found.filter(like="estimate[")) == [f"estimate[{c}]" for c in within.celltypes]
    rows = within.outliers().rows
    assert list(rows.columns[:3]) == ["donor", "celltype", "stim"] and len(rows) == len(two)


@pytest.mark.slow
def test_a_thousand_variables_take_milliseconds(df):
    res = fitted(df)
    rng = np.random.default_rng(1)
    many = pd.DataFrame(rng.binomial(2, 0.3, (72, 20_000)), list(res.donors))
    ctmm.scan_donors(res, many.iloc[:, :10])
    start = time.process_time()
    found = ctmm.scan_donors(res, many)
    assert (time.process_time() - start) / 20_000 < 2e-4
    assert found["p_omnibus"].notna().all()
    assert abs((found["p_omnibus"] < 0.05).mean() - 0.05) < 0.03


def test_columns_of_the_tables_are_not_overwritten():
    df = ctmm.load_example().rename(columns={"celltype": "observed"})
    res = ctmm.fit("expr ~ C(observed)", celltype="observed", data=df)
    with (
        pytest.raises(ctmm.DataError, match="a column 'observed' of its own"),
        pytest.warns(ctmm.CTMMWarning),
    ):
        res.predicted_expression()
    assert "observed" in res.outliers().rows
