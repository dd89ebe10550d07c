"""Names that users of statsmodels type, against its MixedLM where the models are the same.

With the noise variance of all rows at the residual variance that MixedLM estimates, its model is
that of structure "hom".
"""

import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMError, DataError

FORMULA = "expr ~ C(celltype) + sex + PC1"


@pytest.fixture(scope="module")
def theirs():
    df = ctmm.load_example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its search
        return smf.mixedlm(FORMULA, df, groups="donor").fit(reml=True, gtol=1e-10)


@pytest.fixture(scope="module")
def res(theirs):
    df = ctmm.load_example().assign(nu=theirs.scale).drop(columns="n_cells", errors="ignore")
    return ctmm.fit(FORMULA, data=df, structure="hom", method="reml")


def test_estimates_are_those_of_mixedlm(res, theirs):
    np.testing.assert_allclose(res.fe_params, theirs.fe_params, rtol=1e-5)
    np.testing.assert_allclose(res.bse_fe, theirs.bse_fe, rtol=1e-4)
    np.testing.assert_allclose(res.cov_re.to_numpy(), float(theirs.cov_re.iloc[0, 0]), rtol=1e-3)
    assert list(res.bse_re.index) == list(res.vcomp.index)
    assert res.bse_re.equals(res.bse[res.vcomp.index])


def test_model_holds_what_mixedlm_holds(res, theirs):
    ours, model = res.model, theirs.model
    np.testing.assert_array_equal(ours.endog, model.endog)
    np.testing.assert_array_equal(ours.exog, model.exog)
    assert (ours.endog_names, ours.exog_names) == (model.endog_names, model.exog_names)
    assert ours.group_labels == list(model.group_labels)
    assert (ours.n_groups, ours.nobs, ours.k_fe) == (model.n_groups, model.nobs, model.k_fe)
    assert ours.groups.tolist() == ours.frame["donor"].tolist()
    assert ours.endog is res.design.y and ours.exog is res.design.X  # no copies


def test_model_holds_random_effects_as_mixedlm_does():
    df = ctmm.load_example().iloc[::-1]
    design = {"groups": "donor", "re_formula": "0 + C(celltype)"}
    model = smf.mixedlm(FORMULA, df, **design)
    df["site"] = df["donor"].str[-1]
    ours = ctmm.fit(FORMULA, random=["batch", "site"], data=df).model
    np.testing.assert_array_equal(ours.exog_re, model.exog_re)
    assert ours.exog_re_names == ["day0", "day1", "day2", "day3"]
    assert (ours.k_re, ours.k_vc) == (model.k_re, 2)
    assert ours.row_labels.equals(df.index)


def test_terms_are_tested_as_by_mixedlm(res, theirs):
    ours = res.wald_test_terms(covariance="model").table
    want = theirs.wald_test_terms(scalar=True).table  # chi2, without a denominator
    assert list(ours.index) == list(want.index)
    count = want["df_constraint"].to_numpy(dtype=float)
    np.testing.assert_allclose(
        ours["statistic"] * count, want["statistic"].astype(float), rtol=2e-4
    )
    np.testing.assert_array_equal(ours["df_constraint"], count)
    one = res.f_test("sex[T.M] = 0", covariance="model")
    assert one.pvalue == pytest.approx(ours.loc["sex", "pvalue"], rel=1e-12)
    assert list(res.wald_test_terms(skip_single=True).table.index) == ["C(celltype)"]


def test_terms_and_pairs_that_have_no_test_say_why():
    df = ctmm.load_example()
    first = df["donor"].eq(df["donor"].iloc[0])
    own = df.assign(site=np.where(first, "one", "other"))
    fit = ctmm.fit("expr ~ C(celltype) + site", data=own)
    terms, pairs = fit.wald_test_terms(), fit.t_test_pairwise("site")
    assert terms.table["pvalue"].isna().tolist() == [bool(note) for note in terms.notes]
    assert "\nsite: a fixed effect rests on one donor" in str(terms)
    assert np.isnan(pairs.result_frame["P>|t|"].iloc[0])
    assert "\nother-one: a fixed effect rests on one donor" in repr(pairs)


def test_pairs_are_those_of_gls(res):
    """MixedLM has no pairs of its own: its method of that name fails."""
    ours = res.t_test_pairwise("C(celltype)", ["hs", "fdr_bh"], covariance="model")
    donor = res.model.groups
    Sigma = res.vcomp["hom"] * (donor[:, None] == donor) + np.diag(res.model.noise)
    gls = smf.gls(FORMULA, res.model.frame, sigma=Sigma).fit(cov_type="fixed scale")
    want = gls.t_test_pairwise("C(celltype)", ["hs", "fdr_bh"]).result_frame
    frame = ours.result_frame
    assert list(frame.index) == list(want.index)
    assert list(frame.columns)[:2] == list(want.columns)[:2] == ["coef", "std err"]
    assert set(want.columns) >= {"pvalue-hs", "reject-hs"} <= set(frame.columns)
    np.testing.assert_allclose(frame["coef"], want["coef"], rtol=1e-8)
    np.testing.assert_allclose(frame["std err"], want["std err"], rtol=1e-8)
    assert "day1-day0" in repr(ours) and "<table" in ours._repr_html_()
    sex = res.t_test_pairwise("sex", "none", factor_labels=["women", "men"]).result_frame
    assert sex["coef"].to_dict() == {"men-women": pytest.approx(res.params["sex[T.M]"])}


@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
def test_terms_of_both_engines(engine):
    formula = "expr ~ PC1 * sex + C(celltype)"
    res = ctmm.fit(formula, data=ctmm.load_example(), formula_engine=engine, structure="hom")
    terms = res.design.coding.terms
    assert list(terms) == ["Intercept", "sex", "C(celltype)", "PC1", "PC1:sex"]
    assert sorted(k for columns in terms.values() for k in columns) == list(range(7))
    assert [res.model.exog_names[k] for k in terms["C(celltype)"]] == [
        f"C(celltype)[T.day{k}]" for k in (1, 2, 3)
    ]
    table = res.wald_test_terms().table
    assert table.loc["PC1:sex", "pvalue"] == pytest.approx(res.f_test("PC1:sex[T.M]").pvalue)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.t_test_pairwise("nosuch"), "unknown term 'nosuch': choose from Intercept"),
        (lambda r: r.t_test_pairwise("PC1"), "'PC1' holds numbers"),
        (lambda r: r.t_test_pairwise("Intercept"), "is not one factor"),
        (
            lambda r: r.t_test_pairwise("sex", factor_labels=["a"]),
            "needs 2 different names, for F, M",
        ),
        (lambda r: r.t_test_pairwise("sex", "nosuch"), "adjust='nosuch'"),
    ],
)
def test_what_is_no_factor_is_refused(res, call, said):
    with pytest.raises(CTMMError, match=re.escape(said)):
        call(res)


def test_saved_and_loaded(res, tmp_path):
    path = tmp_path / "fit.pickle"
    res.save(path)
    back = ctmm.CTMMResults.load(path)
    pd.testing.assert_frame_equal(back.table(), res.table())
    assert back.test_mean() == res.test_mean()
    data = path.read_bytes()
    assert pickle.loads(data).params.equals(res.params)  # as any pickle
    with pytest.raises(DataError, match=r"cannot be read: .*No such file"):
        ctmm.CTMMResults.load(tmp_path / "absent")
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(DataError, match="was damaged since it was written"):
        ctmm.CTMMResults.load(path)
    path.write_bytes(data[:at])
    with pytest.raises(DataError, match="holds no pickled fit"):
        ctmm.CTMMResults.load(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="holds no fit but a dict"):
        ctmm.CTMMResults.load(path)
    with pytest.raises(DataError, match="cannot be written"):
        res.save(tmp_path / "no" / "such" / "place")


def test_removed_data_are_made_again():
    res = ctmm.fit(FORMULA, random="batch", data=ctmm.load_example(), method="reml")
    before, summary = res.test_variance("jackknife"), str(res.summary())
    kept = len(pickle.dumps(res))
    res.remove_data()
    assert len(pickle.dumps(res)) < kept and "arrays" not in vars(res)
    assert str(res.summary()) == summary
    assert res.test_variance("jackknife") == before


def test_terms_beside_proportions_are_their_own():
    """Columns of X start with the proportions there; each covariate by itself says the same."""
    types = ctmm.load_example()["celltype"].unique()
    res = ctmm.fit(
        "expr ~ sex + PC1", proportions=[f"prop_{name}" for name in types], structure="hom",
        method="reml", data=ctmm.load_example(kind="op"),
    )  # fmt: skip
    table = res.wald_test_terms().table
    assert list(table.index) == ["celltype", "sex", "PC1"]
    assert table.loc["PC1", "pvalue"] == pytest.approx(res.f_test("PC1 = 0").pvalue)
    assert table.loc["sex", "pvalue"] == pytest.approx(res.f_test("sex[T.M] = 0").pvalue)
    assert table.loc["celltype", "df_constraint"] == len(types)
    frame = res.t_test_pairwise("sex").result_frame
    assert frame["pvalue-hs"].iloc[0] == pytest.approx(table.loc["sex", "pvalue"])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.t_test_pairwise("C(celltype):sex"), "is not one factor"),
        (lambda r: r.t_test_pairwise("sex", factor_labels=3), "factor_labels= must be a list"),
        (lambda r: r.t_test_pairwise("sex", factor_labels=["a", "a"]), "2 different names"),
        (lambda r: r.t_test_pairwise("sex", method=None), "method= must be a list"),
        (lambda r: r.wald_test_terms(skip_single="no"), "skip_single="),
    ],
)
def test_what_terms_refuse(ask, message):
    res = ctmm.fit("expr ~ C(celltype) * sex", data=ctmm.load_example())
    with pytest.raises(ctmm.CTMMError, match=message):
        ask(res)


def test_maketables_shows_fits_side_by_side():
    mt = pytest.importorskip("maketables")
    from maketables.extractors import PluginExtractor

    df = ctmm.load_example()
    reml = ctmm.fit(FORMULA, random="batch", data=df, method="reml")
    robust = ctmm.fit(FORMULA, data=df, structure="hom")
    table = mt.ETable([reml, robust], coef_fmt="b:.4f (se:.4f)")
    text = " ".join(map(str, table.df.to_numpy().ravel()))
    for res in (reml, robust):
        for name in ("PC1", "hom"):
            assert f"{res.params[name]:.4f}" in text and f"({res.bse[name]:.4f})" in text
    # its extractor of statsmodels' names comes first; that of the attributes finds the same
    own = PluginExtractor()
    assert own.can_handle(reml)
    shown = own.coef_table(reml)
    assert shown.index.name == "Coefficient" and list(shown.index) == list(reml.params.index)
    assert (shown["b"] == reml.params).all() and (shown["p"] == reml.pvalues).all()
    assert (shown["ci95u"] == reml.conf_int()["conf_high"]).all()
    assert own.depvar(reml) == "expr" and own.vcov_info(robust)["vcov_type"] == "robust"
    labels, default = own.stat_labels(reml), own.default_stat_keys(reml)
    assert set(default) <= set(labels)
    values = {key: own.stat(reml, key) for key in [*labels, "se_type", "r2"]}
    assert values == {
        "N": 275, "n_donors": 72, "n_celltypes": 4, "structure": "free", "method": "reml",
        "ll": reml.llf, "aic": reml.aic, "bic": reml.bic, "se_type": "model", "r2": None,
    }  # fmt: skip
    assert own.stat(robust, "aic") is None
