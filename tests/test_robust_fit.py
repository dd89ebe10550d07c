"""``method="robust"`` wherever a fit can be asked: tables, tests, scans, files, the wire.

Numbers are compared with brute force (:mod:`dense_robust`); what cannot be had is NaN with a
reason.
"""

from __future__ import annotations

import pickle
import warnings

import dense_robust
import numpy as np
import pandas as pd
import pytest
from conftest import quick_first
from scipy import stats
from test_wire import call, make_request, stored

import ctmm_formula as ctmm
from ctmm_formula.datasets import CELLTYPES
from ctmm_formula.engine import robust, sandwich
from ctmm_formula.engine.noise import far_off, pooling
from ctmm_formula.engine.robust import ONE_UNIT
from ctmm_formula.errors import ConvergenceError, CTMMError
from ctmm_formula.results.fitted import CTMMResults
from ctmm_formula.simulate import CountCells, overall_table
from ctmm_formula.wire import codec

EXACT = 1e-8  # relative: both sides are exact, only rounding is between them
SAME = 1e-10
FORMULA = "expr ~ C(celltype) + sex + PC1"
PROPORTIONS = [f"prop_{name}" for name in CELLTYPES]
RANDOM = {"donors": None, "batches": "batch", "by type": {"batch": "celltype"}}


@pytest.fixture(scope="module")
def df():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def fits(df):
    """By what joins the donors; the example lacks some pairs."""
    return {
        name: ctmm.fit(FORMULA, random=random, data=df, method="robust")
        for name, random in RANDOM.items()
    }


@pytest.fixture(scope="module")
def few(df):
    """Ten donors of two cell types in batches, complete."""
    rows = df["donor"].isin(df["donor"].unique()[:10]) & df["celltype"].isin(CELLTYPES[:2])
    return df[rows].reset_index(drop=True)


def close(value, expected, rtol=EXACT):
    np.testing.assert_allclose(value, expected, rtol=rtol, atol=0, equal_nan=True)


def component_errors(dense):
    """Jackknife covariance of theta, the larger of its errors and the working model's, their df."""
    parts = [part.theta for part in dense_robust.jackknife(dense)]
    cov = (len(parts) - 1) ** 2 / len(parts) * np.cov(np.transpose(parts))
    working = np.diag(2.0 * np.linalg.inv(dense.F))
    df = dense_robust.error_df(np.array(parts))
    return cov, np.sqrt(np.maximum(np.diag(cov), working)), df


random = pytest.mark.parametrize("name", quick_first(RANDOM))


@pytest.mark.slow
@random
def test_table_by_brute_force(fits, name):
    res = fits[name]
    dense = dense_robust.fit(res.arrays)
    p, units = len(res.fe_params), dense.unit.max() + 1
    assert res.df_resid == units - 1 == (71 if name == "donors" else 23)
    table, cr2 = res.table(), dense_robust.cr2(dense, np.eye(p))
    cov, se, df_se = component_errors(dense)
    close(table["estimate"], [*dense.beta, *dense.theta])
    close(table["std_error"], [*np.sqrt(np.diag(cr2.cov)), *se])
    df = np.append(cr2.df, np.full(len(se), units - 1))
    t = np.append(cr2.t, (table["estimate"] / table["std_error"])[p:])
    close(table["statistic"], t)
    p_values = np.where(np.arange(len(df)) < p, 2 * stats.t.sf(abs(t), df), stats.t.sf(t, df))
    close(table["p_value"], p_values)
    expected = table[["conf_low", "conf_high"]].to_numpy()
    for row, (low, high) in zip(np.eye(p), expected[:p], strict=True):
        np.testing.assert_allclose(dense_robust.ends(dense, row, 0.05, low, high), [1, -1], 1e-6)
    # of components by t on the scale of log(theta + c), where se = sqrt(2 / df) (theta + c)
    c = np.maximum(se / np.sqrt(2.0 / df[p:]) - dense.theta, 0.0)
    reach = stats.t.ppf(0.975, df_se) * se / (dense.theta + c)
    expected[p:] = np.transpose([(dense.theta + c) * np.exp(s * reach) - c for s in (-1, 1)])
    close(table[["conf_low", "conf_high"]], expected)
    own = res.cov_params().to_numpy()
    close(own[:p, :p], cr2.cov)
    ratio = se / np.sqrt(np.diag(cov))
    close(own[p:, p:], cov * np.outer(ratio, ratio))
    np.testing.assert_array_equal(own, own.T)
    assert res.tidy()["p_value"].equals(table["p_value"].reset_index(drop=True))
    assert res.bse.equals(table["std_error"]) and res.pvalues.equals(table["p_value"])


@random
def test_means_contrasts_and_tests_by_brute_force(fits, name):
    res = fits[name]
    dense = dense_robust.fit(res.arrays)
    L = res.design.mean_rows
    means, want = res.means(alpha=0.1), dense_robust.cr2(dense, L)
    close(means["std_error"], np.sqrt(np.diag(want.cov)))
    for row, own in zip(L, means[["conf_low", "conf_high"]].to_numpy(), strict=True):
        np.testing.assert_allclose(dense_robust.ends(dense, row, 0.1, *own), [1, -1], 1e-6)
    pairs = np.array([L[b] - L[a] for a in range(4) for b in range(a + 1, 4)])
    contrasts, want = res.contrasts(), dense_robust.cr2(dense, pairs)
    close(contrasts["statistic"], want.t)
    close(contrasts["p_value"], 2 * stats.t.sf(abs(want.t), want.df))
    equal = dense_robust.cr2(dense, L[:-1] - L[-1])
    for test in (res.test_mean(), res.test_mean("robust"), res.test_mean(None)):
        assert test.method == "wald (robust)"
        close([test.statistic, *test.df], [equal.F, 3, equal.df_denom])
        close(test.pvalue, stats.f.sf(equal.F, 3, equal.df_denom))
    at = np.zeros((2, len(dense.beta)))
    at[0, 4] = at[1, 5] = 1
    both = dense_robust.cr2(dense, at, np.array([0.1, 0.0]))
    test = res.wald_test("sex[T.M] = 0.1, PC1 = 0")
    close([test.statistic, test.df[1]], [both.F, both.df_denom])
    one = res.wald_test("PC1 = 0")
    close([one.pvalue, one.df[1]], [res.pvalues["PC1"], both.df[1]])
    each = res.t_test("sex[T.M] = 0.1, PC1 = 0")
    close(each.df_denom, both.df)
    close(each.tvalue, both.t)
    close(each.pvalue, 2 * stats.t.sf(abs(each.tvalue.ravel()), both.df))


def test_tests_of_variance_components(fits):
    res = fits["batches"]
    table = res.table().loc["hom"]
    own = res.test_component("hom")
    assert (own.method, own.df) == ("wald (robust)", 23.0)
    close([own.statistic, own.pvalue], table[["statistic", "p_value"]].astype(float))
    assert res.test_component("hom", "jackknife").method == "wald (jackknife, 24 blocks)"
    assert "no information matrix" in res.test_component("hom", "wald").note
    test = res.wald_test("hom = 0, sex[T.M] = 0")
    assert test.df == (2.0, 22.0) and 0 < test.pvalue < 1
    V = res.test_variance("jackknife")
    assert V.df == (4.0, 20.0) and "test_variance('score')" in V.note
    reml = ctmm.fit(FORMULA, random="batch", data=ctmm.load_example(), method="reml")
    assert res.test_variance().pvalue == reml.test_variance().pvalue  # no estimate in it
    for name in ("lrt", "bootstrap", "wald"):
        test = res.test_variance(name)
        assert np.isnan(test.pvalue) and test.note.startswith("method='robust' has no ")


def test_jackknife_of_units(fits):
    for name, left in (("donors", "one donor"), ("batches", "24 blocks of donors")):
        res = fits[name]
        jack = res.jackknife()
        assert f"leave out {left}" in repr(jack)
        weighed = robust.weigh(res.arrays)
        first = weighed.donors[0]
        donors = np.sort(res.arrays.donors[first])
        row = jack.estimates.loc[", ".join(res.donors[code] for code in donors)]
        close(row, [*weighed.replicates.beta[0], *weighed.replicates.theta[0]], SAME)
        p = len(res.fe_params)
        cov = weighed.replicates.covariance()
        K = len(res.vcomp)
        order = [*range(K, K + p), *range(K)]
        close(jack.cov_params(), cov[np.ix_(order, order)], SAME)
        assert res.bse["hom"] >= jack.bse["hom"] * (1 - SAME)
        close(res.table("jackknife")["std_error"], jack.bse, SAME)
    mean = fits["batches"].test_mean("jackknife")
    assert mean.df == (3.0, 21.0)
    assert fits["batches"].jackknife(one_step=True).kind == "block"
    with pytest.raises(CTMMError, match="between 2 and the 24 independent blocks"):
        fits["batches"].jackknife(blocks=25)


def test_jackknife_of_groups_of_units_refits(df):
    res = ctmm.fit(FORMULA, data=df, method="robust")
    jack = res.jackknife(blocks=6)
    group = jack.estimates.index[2]
    rest = df[~df["donor"].isin(group.split(", "))]
    close(jack.estimates.loc[group], ctmm.fit(FORMULA, data=rest, method="robust").params)
    assert res.test_mean(jack).df == (3.0, 3.0)


def test_without_a_likelihood(fits):
    res = fits["donors"]
    assert (res.bounds, res.cov_type, res.converged, res.boundary) == (
        "none",
        "robust",
        True,
        False,
    )
    for name in ("llf", "aic", "bic"):
        with pytest.raises(ConvergenceError, match="method='robust' matches moments"):
            getattr(res, name)
    assert res.glance()[["log_lik", "aic", "bic"]].isna().all(axis=None)
    with pytest.raises(CTMMError, match="fitted by robust, which has no likelihood"):
        ctmm.anova(res, ctmm.fit(FORMULA, structure="hom", data=ctmm.load_example(), method="reml"))
    model = res.table("model")
    assert model["std_error"].iloc[:6].notna().all() and model["p_value"].iloc[6:].isna().all()
    with pytest.raises(CTMMError, match="another estimate than that by 'reml'"):
        ctmm.fit(FORMULA, data=ctmm.load_example(), method="reml").table("robust")


def test_effects_and_draws(fits):
    res = fits["batches"]
    assert np.isfinite(res.fittedvalues).all()
    assert res.variance_explained()["share"].iloc[-1] == pytest.approx(1.0)
    boot = res.bootstrap(3, rng=1)
    assert boot.replicates.notna().all(axis=None)
    drawn = res.numbers.refit(res.numbers.draw(2))
    assert drawn.estimate.method == "robust"
    assert not np.array_equal(drawn.own_errors.cov, res.numbers.own_errors.cov)


def test_summary(fits):
    text = str(fits["batches"].summary())
    for part in ("robust", "cluster-robust (CR2)", "Satterthwaite's", "Residual df:     23"):
        assert part in text
    assert "blocks of donors joined by random effects" in " ".join(text.split())
    by_jackknife = str(fits["batches"].summary("jackknife"))
    assert "jackknife over donors, 24 blocks" in by_jackknife and "CR2" not in by_jackknife


@random
def test_files(fits, name):
    res = fits[name]
    res.jackknife()
    for back in (CTMMResults.from_json(res.to_json()), pickle.loads(pickle.dumps(res))):
        assert back.table().equals(res.table())
        assert back.test_mean() == res.test_mean()
        assert back.to_json() == res.to_json()


def test_the_wire(df, fits):
    res = fits["batches"]
    sent = make_request(df, res)
    reply = call("fit", sent)
    np.testing.assert_array_equal(codec.decode(reply["df"]), res.errors().df(np.eye(12)))
    close(codec.decode(reply["table"]["columns"]["p_value"]), res.pvalues, SAME)
    fit = stored(sent, {"value": reply})
    test = call("test", {"fit": fit, "n_jobs": 1, "what": "mean"})
    close([test["pvalue"], test["df"][1]], [res.test_mean().pvalue, res.test_mean().df[1]], SAME)
    L = res.design.mean_rows[:-1] - res.design.mean_rows[-1]
    linear = call("linear", {"fit": fit, "L": codec.encode(L), "joint": True})
    close(linear["test"]["pvalue"], res.test_mean().pvalue, SAME)
    rows, sent_back = sandwich_of(res, L), codec.decode(linear["table"])
    close(sent_back[:, 1], np.sqrt(np.diag(rows.cov)), SAME)
    close(sent_back[:, 2:4], np.transpose([rows.statistics(), rows.pvalues()]), SAME)
    np.testing.assert_allclose(sent_back[:, 4:], rows.intervals(), 1e-9)
    close(codec.decode(linear["df"]), rows.df, SAME)


def sandwich_of(res, L):
    return sandwich.contrasts(robust.weigh(res.arrays), L)


# ---------------------------------------------------------------------------------------------
# scans


@pytest.mark.parametrize("kind", ["ctp", "op"])
def test_a_scan_has_all_numbers_of_single_fits(df, kind):
    data = df if kind == "ctp" else overall_table(df, CELLTYPES)
    fixed, more = ("~ C(celltype) + sex", {}) if kind == "ctp" else ("~ sex", {})
    if kind == "op":
        more = {"proportions": PROPORTIONS, "structure": "iid"}
    genes = pd.DataFrame({"a": data["expr"], "b": data["expr"] + np.sin(np.arange(len(data)))})
    genes.loc[[3, 9], "b"] = np.nan
    nu = pd.DataFrame({"a": data["nu"], "b": data["nu"]})
    rest = data.drop(columns=["expr", "nu"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        scan = ctmm.fit_genes(
            fixed, data=rest, expr=genes, nu=nu, method="robust", tests=["score", "mean"], **more
        )
    assert not any("jackknife" in name for name in scan.table)  # none was needed
    for k, gene in enumerate(genes):
        row, table = scan.table.iloc[k], rest.assign(expr=genes[gene], nu=nu[gene])
        res = ctmm.fit(f"expr {fixed}", data=table, method="robust", **more)
        names = [*(f"se[{name}]" for name in res.vcomp.index),
                 *(f"se[b[{name}]]" for name in res.fe_params.index)]  # fmt: skip
        se = [*res.bse[res.vcomp.index], *res.bse_fe]
        close(row[names].astype(float), se, SAME)
        means = row[[f"se[mean[{name}]]" for name in CELLTYPES]].astype(float)
        close(means, res.means()["std_error"], SAME)
        close([row["p_mean"], row["stat_mean"]],
              [res.test_mean().pvalue, res.test_mean().statistic], SAME)  # fmt: skip
        score = res.test_variance().pvalue
        close(row["p_score"], score, SAME if score < 0.06 else 1e-4)  # a scan has four digits above
        assert scan.gene(gene).test_mean() == res.test_mean()


def test_power_knows_it():
    table = ctmm.power(
        12, 2, tests=["mean", "robust:jackknife", "robust:mean_jackknife"], n_sim=3, rng=1
    )
    assert list(table["test"]) == ["mean", "robust:jackknife", "robust:mean_jackknife"]
    assert (table["n"] == 3).all()


# ---------------------------------------------------------------------------------------------
# what cannot be had


def test_one_unit(df):
    """Two batches crossed with sex, say, join all donors."""
    data = df.assign(half=df["donor"].str[-1].astype(int) % 2)
    res = ctmm.fit("expr ~ C(celltype)", random=["batch", "half"], data=data, method="robust")
    assert res.df_resid == 0 and any(ONE_UNIT in note for note in res.notes)
    table = res.table()
    assert table["estimate"].notna().all()
    assert table[["statistic"]].iloc[4:].notna().all(axis=None)  # the working model's errors
    assert table[["p_value", "conf_low", "conf_high"]].isna().all(axis=None)
    tests = [res.test_mean(), res.test_mean("jackknife"), res.test_variance("jackknife")]
    tests += [res.test_component("hom"), res.test_component("hom", "jackknife")]
    tests += [res.wald_test("hom = 0"), res.wald_test("hom = 0, Intercept = 0")]
    for test in tests:
        assert np.isnan(test.pvalue), test
        assert ONE_UNIT in test.note or "jackknife().failed" in test.note, test
    assert set(res.jackknife().failed.values()) == {ONE_UNIT}
    assert res.contrasts()["p_value"].isna().all() and res.means()["conf_low"].isna().all()
    assert np.isnan(res.t_test("hom = 0").pvalue).all()
    assert ONE_UNIT in " ".join(str(res.summary()).split()).lower()
    assert 0 <= res.test_variance().pvalue <= 1  # the score test needs no units


def test_an_effect_that_rests_on_one_donor(df):
    data = df.assign(odd=(df["donor"] == "donor05").astype(float))
    res = ctmm.fit("expr ~ C(celltype) + odd", data=data, method="robust")
    plain = dense_robust.cr2(dense_robust.fit(res.arrays), np.eye(5)[:4])
    with pytest.warns(ctmm.CTMMWarning, match=f"^{sandwich.ALONE}$"):
        table = res.table()
    assert sandwich.ALONE in " ".join(str(res.summary()).split()).lower()
    assert np.isnan(table.loc["odd", ["std_error", "p_value"]].astype(float)).all()
    close(table["std_error"].iloc[:4], np.sqrt(np.diag(plain.cov)))
    test = res.wald_test("odd = 0")
    assert np.isnan(test.pvalue) and test.note == sandwich.ALONE
    assert res.test_mean().pvalue < 1e-6
    assert np.isfinite(table["std_error"].iloc[5:]).all()
    assert list(res.jackknife().failed) == ["donor05"]


def test_more_parameters_than_donors(few):
    """Rows count, not donors."""
    formula, options = "expr ~ 0 + C(celltype) + C(celltype):PC1", {"structure": "free"}
    data = few[few["donor"].isin(few["donor"].unique()[:6])].reset_index(drop=True)
    res = ctmm.fit(formula, data=data, method="robust", **options)
    assert res.df_resid == 5 and np.isfinite(res.bse).all()
    assert not any("no residual degrees" in note for note in res.notes)
    assert 0 < res.test_mean().pvalue < 1
    many = res.wald_test(np.eye(7)[:4])
    assert np.isnan(many.pvalue) and many.note == sandwich.TOO_FEW


def test_no_numbers_of_cells(few):
    res = ctmm.fit("expr ~ C(celltype)", data=few.drop(columns="n_cells"), method="robust")
    assert any("fit and score test are weighted by the mean noise" in note for note in res.notes)
    assert np.isfinite(res.table()).all(axis=None)


def test_hypotheses_that_depend_on_each_other(fits):
    test = fits["donors"].wald_test(["PC1 = 0", "2 * PC1 = 0"])
    assert np.isnan(test.pvalue) and "dependent" in test.note


def test_noise_far_from_that_of_other_pairs_is_named():
    """It takes over what is pooled, and nothing else would show it."""
    df = ctmm.load_example()
    at = df.index[df["celltype"] == "day1"][3]
    odd = df.assign(nu=df["nu"].where(df.index != at, 1e6))
    name = f"{df.loc[at, 'donor']}|day1"
    for method in ("robust", "reml"):
        plain, res = (
            ctmm.fit("expr ~ C(celltype)", method=method, data=data) for data in (df, odd)
        )
        found = [note for note in res.notes if f"noise variance of {name!r} is more than" in note]
        assert len(found) == 1 and not any("that usual in the" in note for note in plain.notes)
    # counts of a gene that is hardly seen differ by less
    rng = np.random.default_rng(5)
    donor, celltype = np.divmod(np.arange(200), 4)
    n = np.array([600, 180, 55, 16])[celltype]
    for mean in (0.005, 0.02, 0.1, 2.0):
        for _ in range(5):
            found = CountCells(mean, 1.5).measure(rng, 0.6 * rng.normal(size=50)[donor], n, donor)
            how = pooling(np.eye(4)[celltype], n.astype(float), np.ones(200, dtype=bool))
            assert not len(far_off(found.nu, how))
