"""Kinships at the door, heritability and its tests, against dense algebra and goldens."""

import gzip
import json
from dataclasses import replace

import dense
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from test_he import close, make
from test_kinship import GOLDENS, KERNELS, family, golden_model, golden_set, related

import ctmm_formula as ctmm
from ctmm_formula.design.kinship import match_kinship
from ctmm_formula.engine import related_likelihood, related_moments
from ctmm_formula.engine.relatedness import Kernel
from ctmm_formula.errors import ConvergenceError
from ctmm_formula.inference import genetic_score
from ctmm_formula.inference.cumulants import mixture
from ctmm_formula.inference.tails import tail
from ctmm_formula.results.heritability import _ratio
from ctmm_formula.structures import resolve

FORMULA = "expr ~ C(celltype) + sex"


@pytest.fixture(scope="module")
def df():
    return ctmm.load_example()


@pytest.fixture(scope="module")
def donors(df):
    return list(df["donor"].unique())


@pytest.fixture(scope="module")
def K(donors):
    return pd.DataFrame(family(len(donors), 3), donors, donors)


@pytest.fixture(scope="module")
def G(donors):
    values = np.random.default_rng(1).binomial(2, 0.3, (len(donors), 20)).astype(float)
    return pd.DataFrame(values, donors, [f"rs{k}" for k in range(20)])


@pytest.fixture(scope="module")
def res(df, K):
    return ctmm.fit(FORMULA, random="batch", structure="iid", kinship=K, method="he", data=df)


# ---------------------------------------------------------------------------------------------
# fits


def test_components_and_labels(res):
    names = ["hom", "V", "batch", "genetic:hom", "genetic:V"]
    assert list(res.vcomp.index) == names
    assert list(res.params.index[-5:]) == names
    assert list(res.cov_params().columns[-5:]) == names
    assert res.method == "he" and res.bounds == "none"
    assert res.tidy()["component"].tolist()[-3:] == ["random", "genetic", "genetic"]
    assert "Kinship:         genetic (iid)" in str(res.summary())
    for text in (res.summary().as_html(), res.summary().as_latex()):
        assert "genetic:hom" in text


def test_the_default_is_weighted_by_kinship_and_pooled_noise(df, K):
    res = ctmm.fit(FORMULA, structure="iid", kinship=K, data=df)
    assert res.method == "robust" and res.bounds == "none"
    assert res.notes[0].startswith("method: robust by default, as there is a kinship")
    how = related_moments.fit(res.arrays)
    close(res.estimate.theta, how.theta, 1e-12)
    p = len(res.fe_params)
    close(res.cov_params().to_numpy()[p:, p:], np.linalg.inv(how.information), 1e-9)
    assert "inverse expected information" in str(res.summary())
    # Fieller's reach is that of variances, whatever fixed effects have
    rows = res.heritability().table
    low, high = res.conf_int().loc["genetic:hom"]
    reach = (high - low) / 2 / res.bse["genetic:hom"]
    assert reach == pytest.approx(stats.t.isf(0.025, res.df_resid))
    assert rows["h2"].notna().all() and (rows["conf_low"] < rows["h2"]).all()


def test_donors_are_matched_by_label_never_by_position(df, K, res):
    rng = np.random.default_rng(0)
    others = [f"other{k}" for k in range(5)]
    more = pd.DataFrame(np.eye(len(K) + 5), [*K.index, *others], [*K.index, *others])
    more.iloc[: len(K), : len(K)] = K.to_numpy()
    shuffled = more.loc[rng.permutation(more.index), rng.permutation(more.columns)]
    rows = df.sample(frac=1.0, random_state=1)
    again = ctmm.fit(
        FORMULA, random="batch", structure="iid", kinship=shuffled, method="he", data=rows
    )
    pd.testing.assert_series_equal(again.vcomp, res.vcomp, rtol=1e-9)


def test_several_kinships_and_another_structure(df, K, G):
    res = ctmm.fit(
        FORMULA, structure="free", genetic_structure="hom", kinship={"cis": G, "trans": K}, data=df
    )
    assert list(res.vcomp.index[-2:]) == ["cis:hom", "trans:hom"]
    assert "Kinship:" in str(res.summary()) and "cis (hom, 20 variants)" in str(res.summary())
    table = res.heritability().table
    assert list(table.index.get_level_values(0).unique()) == ["cis", "trans"]
    with pytest.raises(ctmm.CTMMError, match=r"which kinship\? test_heritability\('cis'\)"):
        res.test_heritability()
    assert 0 < res.test_heritability("trans").pvalue <= 1
    assert "no kinship has any variance" in res.test_heritability("cis").note
    with pytest.raises(ctmm.CTMMError, match="kinship"):
        res.test_heritability("gene")


def test_genotypes_are_a_kinship(df, G):
    by_window = ctmm.fit(FORMULA, structure="hom", kinship=G, data=df)
    Z = ((G - G.mean()) / G.std(ddof=0)).to_numpy()
    whole = pd.DataFrame(Z @ Z.T / 20, G.index, G.index)
    pd.testing.assert_series_equal(
        by_window.vcomp, ctmm.fit(FORMULA, structure="hom", kinship=whole, data=df).vcomp
    )
    holes = G.copy()
    holes.iloc[3, 4] = np.nan
    holes["same"] = 1.0
    res = ctmm.fit(FORMULA, structure="hom", kinship=holes, data=df)
    note = next(note for note in res.notes if note.startswith("kinship 'genetic'"))
    assert "20 columns" in note and "1 that do not vary" in note and "1 missing genotypes" in note


def test_one_cell_type(df, K):
    one = df[df["celltype"] == "day1"]
    res = ctmm.fit("expr ~ sex", structure="hom", celltype="celltype", kinship=K, data=one)
    assert res.heritability().table.index.get_level_values(1).tolist() == ["total", "day1"]
    test = res.test_heritability()
    assert 0 < test.pvalue < 1 and np.isnan(test.extra["specific"])
    assert test.note == "no test of specific: there is one cell type"


def test_a_type_of_few_rows_says_why_it_has_no_test(df, K):
    few = df[(df["celltype"] != "day1") | df["donor"].isin(df["donor"].unique()[:3])]
    test = ctmm.fit(FORMULA, structure="hom", kinship=K, data=few).test_heritability()
    by_type = test.extra["celltype"]
    assert [name for name, p in by_type.items() if np.isnan(p)] == ["day1"]
    assert "no test of 'day1': too few rows, by themselves" in test.note


def test_json_and_pickle_keep_it(res, G, df, tmp_path):
    for one in (res, ctmm.fit(FORMULA, kinship=G, structure="hom", data=df)):
        again = ctmm.CTMMResults.from_json(one.to_json(tmp_path / "fit.json"))
        pd.testing.assert_frame_equal(again.heritability().table, one.heritability().table)
        assert again.test_heritability() == one.test_heritability()
        assert str(again.summary()) == str(one.summary())
    content = json.loads(res.to_json())
    content["parts"] = json.loads(json.dumps(content["parts"]).replace('"genetic"', '"cis"'))
    with pytest.raises(ctmm.DataError, match="damaged or was edited"):
        ctmm.CTMMResults.from_json(json.dumps(content))


METHODS = ["reml", "ml", "robust"]


@pytest.mark.filterwarnings("ignore::ctmm_formula.BoundaryWarning")
@pytest.mark.parametrize("method", METHODS)
def test_other_methods(df, K, G, method, tmp_path):
    res = ctmm.fit(FORMULA, structure="iid", kinship={"cis": G, "trans": K}, method=method, data=df)
    likely = method != "robust"
    assert res.method == method and res.cov_type == "model"
    by = {"reml": "kenward-roger", "ml": "model", "robust": "model"}[method]
    assert by in res.test_mean().method
    assert res.bounds == ("nonnegative" if likely else "none")
    assert ("weighed by the measured noise" in " ".join(res.notes)) == likely
    if likely:
        assert res.aic == pytest.approx(-2 * res.llf + 2 * len(res.params))
        null = ctmm.fit(FORMULA, structure="iid", kinship={"one": K}, method=method, data=df)
        test = res.compare_lr_test(null)
        assert test.df == 2 and "null lies on a bound" in test.note
        other = ctmm.fit(FORMULA, structure="iid", kinship=2 * K, method=method, data=df)
        with pytest.raises(ctmm.CTMMError, match="lacks a kinship of"):
            res.compare_lr_test(other)
        assert 0 <= res.test_variance("lrt").pvalue < 0.05
        if method == "reml":
            more = res.cov_params("kenward-roger") - res.cov_params("model")
            assert np.linalg.eigvalsh(more)[-1] > 0
            df = res.effects("sex").table["df"]
            assert (df > 20).all() and abs(df.iloc[0] - res.df_resid) > 1
        else:
            with pytest.raises(ctmm.CTMMError, match="adjusts fits by REML"):
                res.cov_params("kenward-roger")
        assert "inverse average information" in str(res.summary())
        with pytest.raises(
            ctmm.CTMMError, match="one_step= of a likelihood takes donors as unrelated"
        ):
            res.jackknife(one_step=True)
        assert "information of the model" in res.heritability().target
    blocks = res.jackknife(blocks=6)
    assert np.isfinite(blocks.bse).all()
    assert "other donors of this population" in res.heritability(blocks).target
    if not likely:
        with pytest.raises(ctmm.CTMMError, match="no robust errors, as related donors are no"):
            res.heritability("robust")
    assert res.heritability().table["h2"].notna().all() and 0 < res.test_mean().pvalue < 0.01
    assert res.test_heritability("trans").pvalue < 1 and res.conf_int().shape == (11, 2)
    assert len(res.genetic_values()) == 2 * len(K) and res.effects("sex").table.notna().all(
        axis=None
    )
    again = ctmm.CTMMResults.from_json(res.to_json(tmp_path / "fit.json"))
    assert str(again.summary()) == str(res.summary())
    pd.testing.assert_frame_equal(again.heritability().table, res.heritability().table)


@pytest.mark.filterwarnings("ignore::ctmm_formula.BoundaryWarning")
def test_bounds_ask_for_a_likelihood(df, K, genes):
    res = ctmm.fit(FORMULA, structure="hom", kinship=K, bounds="psd", data=df)
    assert res.method == "reml" and "as bounds are named" in res.notes[0]
    scan = ctmm.fit_genes("~ C(celltype)", **genes, structure="hom", kinship=K, bounds="psd")
    assert "reml by default, as bounds are named" in str(scan)
    assert scan.table["llf"].notna().all()


@pytest.mark.filterwarnings("ignore::ctmm_formula.BoundaryWarning")
def test_a_kinship_of_too_high_a_rank(df, K, monkeypatch):
    monkeypatch.setitem(related_likelihood.ORDERS, "reml", (100, 100))
    with pytest.raises(ctmm.CTMMError, match=r"kinship of rank 72 with 4 cell types.*'he'"):
        ctmm.fit(FORMULA, structure="free", kinship=K, method="reml", data=df)
    assert ctmm.fit(FORMULA, structure="hom", kinship=K, method="reml", data=df).converged
    whole = df[df.groupby("donor")["donor"].transform("size") == 4]
    res = ctmm.fit(FORMULA, structure="free", kinship=K, method="reml", data=whole)
    assert res.converged and "donors rotated" in res.estimate.convergence.message
    assert any("quasi-likelihood of rotated donors" in note for note in res.notes)
    assert not any("as if it were known" in note for note in res.notes)
    assert res.heritability().table["genetic"].notna().all() and res.test_mean().pvalue < 0.05
    assert len(res.genetic_values()) == whole["donor"].nunique()
    monkeypatch.setitem(related_likelihood.ORDERS, "robust", (100, 100))
    turned = ctmm.fit(FORMULA, structure="free", kinship=K, data=whole)
    assert turned.method == "robust" and any(n.startswith("rotated donors") for n in turned.notes)
    assert turned.test_mean().df[1] > 5 and turned.bse.notna().all()
    plain = ctmm.fit(FORMULA, structure="free", kinship=K, data=df)
    assert plain.method == "he" and "he by default, as weights would know" in plain.notes[0]
    assert "of 288 x 288" in plain.notes[0]
    plain = ctmm.fit(FORMULA, structure="free", bounds="nonnegative", method="reml", data=whole)
    with pytest.raises(ctmm.CTMMError, match=r"that of rotated donors.*not comparable"):
        res.compare_lr_test(plain)
    again = ctmm.CTMMResults.from_json(res.to_json())
    assert str(again.summary()) == str(res.summary())


def test_what_cannot_be_had_says_so(df, K, res):
    with pytest.raises(ctmm.CTMMError, match="genetic_structure= is that of a kinship"):
        ctmm.fit(FORMULA, genetic_structure="hom", data=df)
    assert "takes donors as unrelated" in res.test_variance().note
    robust = res.test_mean("robust")
    assert np.isnan(robust.pvalue) and "related donors" in robust.note
    plain = ctmm.fit(FORMULA, data=df)
    with pytest.raises(ctmm.CTMMError, match="there is no kinship: fit with kinship="):
        plain.heritability()
    assert plain.test_heritability().note == "there is no kinship: fit with kinship="
    with pytest.raises(ctmm.DataError, match="without by= or within="):
        ctmm.fit(FORMULA, kinship=K, data=df, by="sex")
    apart = {donor: 1.0 + k for k, donor in enumerate(K.index)}
    for ask in (
        res.outliers,
        lambda: ctmm.scan_donors(res, pd.Series(apart, name="x").to_frame()),
        lambda: res.plot("residuals"),
    ):
        with pytest.raises(ctmm.CTMMError, match="takes donors as unrelated, and the fit"):
            ask()
    assert res.effects("sex").table["p_value"].notna().all()
    overall = df.drop_duplicates("donor").drop(columns="celltype")
    overall = overall.assign(p=np.linspace(0.2, 0.7, len(overall)), q=lambda t: 1 - t["p"])
    with pytest.raises(ctmm.DataError, match="without proportions="):
        ctmm.fit("expr ~ sex", kinship=K, data=overall, proportions=["p", "q"])


def test_fixed_effects_count_relatives(df, K, res):
    """To the jackknife comes the positive part of what is between donors; the model has all."""
    a = dense.arrays(res.arrays)
    hat = np.linalg.pinv(a.X)
    theta, p = res.estimate.theta, len(res.fe_params)
    model = res.cov_params("model").to_numpy()[:p, :p]
    close(model, hat @ dense.covariance(a, theta) @ hat.T, 1e-9)
    genetic = np.tensordot(theta[-2:], a.parts[-2:], axes=1)
    between = hat @ np.where(a.donor[:, None] == a.donor, 0.0, genetic) @ hat.T
    size, axes = np.linalg.eigh(between)
    jackknife = res.jackknife().cov_params().to_numpy().copy()
    jackknife[:p, :p] += (axes * np.maximum(size, 0.0)) @ axes.T
    close(res.cov_params().to_numpy(), jackknife, 1e-9)
    assert size.max() > 1e-4  # sibs add something here
    assert res.test_mean().method == "wald (jackknife)"


def test_shares_and_icc(res, K):
    shares = res.variance_explained()
    scale = res.design.kinship[0].kernel.scale
    at = res.design.proportions
    g, v = res.vcomp["genetic:hom"], res.vcomp["genetic:V"]
    square = (at**2).sum(axis=1).mean()
    assert shares.loc["genetic", "variance"] == pytest.approx(scale * (g + v * square))
    assert shares["variance"].iloc[:-1].sum() == pytest.approx(shares.loc["total", "variance"])
    donor = res.vcomp["hom"] + res.vcomp["V"] + scale * (g + v)
    assert res.icc()["donor"].to_numpy() == pytest.approx(donor)


@pytest.mark.parametrize("negative", [False, True])
def test_predicted_effects_are_those_of_henderson(df, K, G, negative):
    """G Z' P y and its errors by n x n matrices, where the fit is no covariance at its part."""
    res = ctmm.fit(
        FORMULA, random="batch", structure="iid", genetic_structure="hom",
        kinship={"cis": G, "trans": K}, data=df,
    )  # fmt: skip
    theta = np.array([0.3, 0.2, 0.1, 0.4, -0.9 if negative else 0.25])
    res = ctmm.CTMMResults(
        res.design, res.structure_, res.domain, replace(res.estimate, theta=theta)
    )
    assert res.definite == (not negative)
    model = res.arrays
    at = np.where(theta > 0, theta, 0.0)
    a = dense.arrays(model)
    _, P = dense.projection(dense.covariance(a, at), a.X)
    r, donor, N, C = P @ a.y, a.donor, model.n_donors, model.H.shape[1]
    D = np.eye(N)[donor]
    tables = res.random_effects
    assert list(tables) == ["shared", "specific", "batch", "cis", "trans"]
    fitted = model.X @ res.estimate.beta
    back = np.argsort(model.donors)
    L = (D[:, :, None] * a.H[:, None, :]).reshape(len(a.y), N * C)
    for name, part in {
        "shared": at[0] * np.kron(np.eye(N), np.ones((C, C))),
        "specific": at[1] * np.eye(N * C),
        "cis": at[3] * np.kron(model.kinship[0].kernel.whole, np.ones((C, C))),
        "trans": at[4] * np.kron(model.kinship[1].kernel.whole, np.ones((C, C))),
    }.items():
        value = (part @ L.T @ r).reshape(N, C)
        se = np.sqrt(np.abs(np.diag(part - part @ L.T @ P @ L @ part))).reshape(N, C)
        fitted = fitted + L @ value.ravel()
        columns = slice(0, 1) if name == "shared" else slice(None)
        close(tables[name]["estimate"], value[back][:, columns].ravel(), 1e-8)
        close(tables[name]["std_error"], se[back][:, columns].ravel(), 1e-6)
    batch = at[2] * a.levels[0].T @ r
    close(tables["batch"]["estimate"], batch, 1e-8)
    fitted = fitted + a.levels[0] @ batch
    close(res.arrays.unsort(fitted), res.fittedvalues, 1e-8)
    close(res.predict(random="all"), res.fittedvalues, 1e-8)
    close(res.resid, df["expr"] - res.fittedvalues, 1e-8)
    assert len(res.augment()) == len(df)
    unknown = df.head(3).assign(donor="new")
    close(res.predict(unknown, ["cis"]), res.predict(unknown), 1e-12)


@pytest.mark.parametrize("kind", ["kinship", "genotypes"])
def test_genetic_values_of_donors_without_expression(df, donors, K, G, kind):
    """Those of the same model with rows of theirs that say nothing."""
    some = df[~df["donor"].isin(donors[:3])]
    given = K if kind == "kinship" else G
    res = ctmm.fit(FORMULA, structure="hom", kinship=given, data=some)
    theta = np.array([0.3, 0.4])
    estimate = replace(res.estimate, theta=theta)
    res = ctmm.CTMMResults(res.design, res.structure_, res.domain, estimate)
    found = res.genetic_values(given).loc["genetic"]
    assert list(found.index) == list(given.index) and list(found) == list(res.celltypes)
    own = res.genetic_values().loc["genetic"]
    close(found.loc[own.index].to_numpy(), own.to_numpy(), 1e-9)
    known = res.random_effects["genetic"]["estimate"].unstack(sort=False)
    close(own.to_numpy(), known.loc[own.index, list(own)].to_numpy(), 1e-9)
    blank = df.assign(nu=np.where(df["donor"].isin(donors[:3]), 1e12, df["nu"]))
    if kind == "genotypes":  # standardised over the donors of the fit
        there = G.loc[list(res.donors)]
        Z = ((G - there.mean()) / there.std(ddof=0)).to_numpy() / np.sqrt(20)
        given = pd.DataFrame(Z @ Z.T, donors, donors)
    whole = ctmm.fit(FORMULA, structure="hom", kinship=given, data=blank)
    whole = ctmm.CTMMResults(
        whole.design, whole.structure_, whole.domain, replace(whole.estimate, theta=theta)
    )
    again = whole.genetic_values().loc["genetic"]
    close(found.loc[again.index].to_numpy(), again.to_numpy(), 1e-5)
    with pytest.raises(ctmm.CTMMError, match="the fit has the kinships genetic"):
        res.genetic_values({"cis": K})
    with pytest.raises(ctmm.DataError, match="has no row for"):
        res.genetic_values(given.iloc[:9, :9] if kind == "kinship" else G.iloc[:9])


def test_draws_are_of_the_fit(df, G):
    res = ctmm.fit(FORMULA, structure="hom", kinship=G, data=df)
    with pytest.raises(ctmm.CTMMError, match=r"cannot draw.*by method='reml'"):
        res.simulate(1, 2)
    with pytest.warns(ctmm.BoundaryWarning):
        bounded = ctmm.fit(FORMULA, structure="hom", kinship=G, data=df, method="reml")
    assert bounded.simulate(1, 2).notna().all(axis=None)
    theta = np.array([0.2, 0.4])
    drawn = ctmm.CTMMResults(
        res.design, res.structure_, res.domain,
        type(res.estimate)(**{**vars(res.estimate), "theta": theta}),
    )  # fmt: skip
    assert drawn.simulate(1, 3).notna().all(axis=None)


# ---------------------------------------------------------------------------------------------
# heritability


def test_genetic_values_are_of_the_kinship_that_was_fitted(df, K, G, res):
    with pytest.raises(ctmm.DataError, match="otherwise than the fit has it"):
        res.genetic_values(2.0 * K)
    with pytest.raises(ctmm.DataError, match="otherwise than the fit has it"):
        ctmm.fit(FORMULA, kinship=G, data=df).genetic_values(G.iloc[:, :10])
    assert len(res.genetic_values(K)) == len(K)


def test_a_part_that_the_structure_lacks_has_no_error(df, K):
    res = ctmm.fit(FORMULA, genetic_structure="hom", kinship=K, data=df)
    row = res.heritability().table.loc[("genetic", "specific")]
    assert row["h2"] == 0.0 and np.isnan(row["std_error"]) and np.isnan(row["conf_high"])
    assert row["note"] == "the genetic structure has no such part"
    pairs = res.heritability(alpha=0.5).correlations
    assert (pairs["correlation"] == 1.0).all() and pairs["std_error"].isna().all()
    assert set(pairs["note"]) == {"1 by the genetic structure"}


def test_units_of_a_kinship_change_no_heritability(df, K, res):
    settings = {"random": "batch", "structure": "iid", "method": "he", "data": df}
    own = ctmm.fit(FORMULA, kinship=1e-12 * K, **settings).heritability().table
    theirs = res.heritability().table
    assert own["note"].equals(theirs["note"])
    np.testing.assert_allclose(own["h2"], theirs["h2"], rtol=1e-6)
    np.testing.assert_allclose(own["std_error"], theirs["std_error"], rtol=1e-6)


def test_variants_of_one_name_are_named(df, G):
    twice = pd.concat([G, G[["rs3"]]], axis=1)
    with pytest.raises(ctmm.DataError, match="several columns 'rs3'"):
        ctmm.fit(FORMULA, kinship=twice, data=df)


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens_of_heritability_and_p_values(name):
    """The definitions and the p values of cigma 1.1.0, run as a black box."""
    data, K, _, cigma = golden_set(name)
    res = ctmm.fit("y ~ 0 + C(celltype) + x1", kinship=K, method="he", data=data)
    types, scale = res.celltypes, res.design.kinship[0].kernel.scale
    T = res.heritability().table.loc["genetic"]
    for part in ("shared", "specific"):
        total = T.loc["total", "genetic"] / scale + T.loc["total", "environment"]
        found = T.loc[part, "genetic"] / scale / total
        assert found == pytest.approx(cigma[f"{part}_h2"], rel=1e-9)
    p = {"hom_g2": "genetic:hom", "hom_e2": "hom"}
    for key, component in p.items():
        assert res.test_component(component).pvalue == pytest.approx(cigma["p"][key], rel=1e-8)
    for celltype, expected in zip(types, cigma["p"]["vc"], strict=True):
        found = res.test_component(f"genetic:V[{celltype}]").pvalue
        assert found == pytest.approx(expected, rel=1e-8)
    V = ", ".join(f"genetic:V[{c}] = 0" for c in types)
    assert res.wald_test(V).pvalue == pytest.approx(cigma["p"]["V"], rel=1e-8)
    assert res.test_variance("jackknife").pvalue == pytest.approx(cigma["p"]["W"], rel=1e-8)


@pytest.mark.parametrize("size", [1e-40, 1e40])
def test_the_scale_of_a_kinship_is_no_doubt(df, K, res, size):
    again = ctmm.fit(FORMULA, random="batch", structure="iid", kinship=size * K, data=df)
    assert not any("identity" in note for note in again.notes)
    assert again.test_heritability().pvalue == pytest.approx(res.test_heritability().pvalue)


def test_heritability_is_made_of_components(res):
    table, scale = res.heritability().table.loc["genetic"], res.design.kinship[0].kernel.scale
    v = res.vcomp
    g, V, e, W = scale * v["genetic:hom"], scale * v["genetic:V"], v["hom"], v["V"]
    whole = g + V + e + W
    assert table.loc["shared", "genetic"] == pytest.approx(g)
    for part, value in {"shared": g, "specific": V, "total": g + V, "day0": g + V}.items():
        if np.isfinite(table.loc[part, "h2"]):
            assert table.loc[part, "h2"] == pytest.approx(value / whole)
    assert table.loc["day0", "environment"] == pytest.approx(e + W)


def test_errors_by_the_delta_method_and_intervals_by_fieller():
    rng = np.random.default_rng(0)
    theta, half = np.array([0.3, 1.0]), rng.normal(size=(2, 2)) * 0.1
    cov, reach = half @ half.T, 2.0
    top, whole = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    h, se, low, high, note = _ratio(top, whole, theta, cov, reach)
    assert (h, note) == (pytest.approx(0.3 / 1.3), "")
    step = optimize.approx_fprime(theta, lambda t: top @ t / (whole @ t), 1e-7)
    assert se == pytest.approx(np.sqrt(step @ cov @ step), rel=1e-5)
    for end in (low, high):  # where the t statistic of top - h whole is the quantile
        row = top - end * whole
        assert abs(row @ theta) / np.sqrt(row @ cov @ row) == pytest.approx(reach)
    values = _ratio(top, whole, theta, 1e4 * cov, reach)
    assert np.isnan(values[:4]).all() and "not clearly positive" in values[4]
    assert "no residual degrees of freedom" in _ratio(top, whole, theta, cov, np.nan)[4]
    assert "no standard errors" in _ratio(top, whole, theta, np.nan * cov, reach)[4]


# what all donors share is a part of the means then, and known no better than its variance
@pytest.mark.filterwarnings("ignore:4 of 5 fixed effects have no test")
@pytest.mark.parametrize("method", ["he", "robust"])
def test_a_constant_of_the_kinship_changes_nothing(df, K, method):
    res, again = (
        ctmm.fit(FORMULA, random="batch", structure="iid", kinship=one, method=method, data=df)
        for one in (K, K + 0.4)
    )
    columns = ["genetic", "environment", "h2"]
    pd.testing.assert_frame_equal(
        again.heritability().table[columns], res.heritability().table[columns], rtol=1e-8
    )


def test_correlations(df, K):
    rng = np.random.default_rng(5)
    N, C = 400, 3
    names = [f"d{i}" for i in range(N)]
    A = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.2], [0.2, 0.2, 1.0]])
    big = family(N, 8) * 2 - np.eye(N) * 0.98  # nearly clones in eights
    g = np.linalg.cholesky(big) @ rng.normal(size=(N, C)) @ np.linalg.cholesky(A).T
    y = g + rng.normal(size=(N, C)) * 0.3
    data = pd.DataFrame(
        {"donor": np.repeat(names, C), "celltype": np.tile(list("abc"), N), "expr": y.ravel(),
         "nu": 0.05, "n_cells": 50.0}
    )  # fmt: skip
    frame = pd.DataFrame(big, names, names)
    res = ctmm.fit("expr ~ C(celltype)", structure="full", kinship=frame, data=data)
    found = res.heritability().correlations.loc["genetic"]
    assert (found["note"] == "").all()
    expected = [0.5, 0.2, 0.2]
    assert ((found["conf_low"] < expected) & (expected < found["conf_high"])).all()
    assert found["std_error"].between(0.02, 0.2).all()
    text = str(res.heritability())
    assert "genetic correlations" in text and "effects of variants drawn anew" in text
    he = ctmm.fit("expr ~ C(celltype)", structure="full", kinship=frame, method="he", data=data)
    assert "other donors of this population" in str(he.heritability())


# ---------------------------------------------------------------------------------------------
# scores


@pytest.mark.parametrize("name", GOLDENS)
def test_goldens_of_scores(name):
    data, K, python, _ = golden_set(name)
    model = golden_model(data, K, "free")
    model = replace(model, n_cells=data["n_cells"].to_numpy(float)[model.order])
    C = model.H.shape[1]
    free = resolve("free", [str(c) for c in range(C)]).basis
    design = genetic_score._pooled(model.unrelated.with_basis(free))
    null = genetic_score._null_of(design, model.y, model.nu)
    related = genetic_score.Related(model.kinship[0].kernel)
    close(null.P.theta, python["score"]["theta_null"], 1e-6)
    H = np.hstack([model.H.sum(axis=1, keepdims=True), model.H])
    for known, P, V in (
        (python["score"]["any"], null.P, H),
        (python["score"]["specific"], genetic_score._within(null.P), model.H),
    ):
        (scores,) = genetic_score.scores_of([(P, null, V)], related, True)
        close(scores.T, known["T"], 1e-7)
        close(scores.mean, known["mean"], 1e-7)
        close(scores.cov, known["cov"], 1e-7)
        own = range(V.shape[1] - C, V.shape[1])
        found = [np.exp(scores.test([k]).log) for k in range(V.shape[1])]
        close(found, known["p_exact_saddlepoint"], 0.08)  # a saddlepoint approximates
        assert np.exp(scores.test(own).log) == pytest.approx(known["p_sum"], rel=0.15)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("random", ["none", "batch", "celltype-specific"])
def test_scores_are_those_of_dense_matrices(kernels, random):
    model = related(make("ctp", "free", random, True), KERNELS[kernels](30))
    model = replace(model, n_cells=np.linspace(5, 60, len(model.y)))
    free = resolve("free", ["a", "b", "c"]).basis
    design = genetic_score._pooled(model.unrelated.with_basis(free))
    null = genetic_score._null_of(design, model.y, model.nu)
    bare = model.unrelated.with_basis(free)
    w = dense.working_noise(bare)
    a = dense.arrays(bare)
    effects = dense.covariance(a, null.P.theta) - a.D
    S = np.linalg.inv(effects + np.diag(w))
    D = np.eye(30)[a.donor]
    for X, P in ((a.X, null.P), (np.hstack([a.X, D]), genetic_score._within(null.P))):
        left, size, _ = np.linalg.svd(X, full_matrices=False)
        Q = left[:, size > 1e-9]
        dense_P = S - S @ Q @ np.linalg.solve(Q.T @ S @ Q, Q.T @ S)
        for term in model.kinship:
            K0 = term.kernel.whole - np.diag(term.kernel.diagonal)
            (scores,) = genetic_score.scores_of(
                [(P, null, model.H)], genetic_score.Related(term.kernel), True
            )
            Sigma = dense_P @ (effects + np.diag(model.nu)) @ dense_P
            loads = [D * h[:, None] for h in model.H.T]  # (n, N) of every type
            A = [L @ K0 @ L.T for L in loads]
            close(scores.T, [a.y @ dense_P @ B @ dense_P @ a.y for B in A], 1e-8)
            close(scores.mean, [np.trace(B @ Sigma) for B in A], 1e-8)
            cov = [[2 * np.trace(B @ Sigma @ C @ Sigma) for C in A] for B in A]
            close(scores.cov, cov, 1e-8)
            # the law of the sum, by the eigenvalues of all rows
            size, axes = np.linalg.eigh(Sigma)
            root = axes * np.sqrt(np.maximum(size, 0.0))
            lam = np.linalg.eigvalsh(root.T @ sum(A) @ root)
            value = float(scores.T.sum())
            found = scores.test(range(3))
            assert np.exp(found.log) == pytest.approx(dense.imhof(value, lam), rel=1e-4, abs=1e-7)


def test_the_law_of_many_donors_is_near_that_of_all_eigenvalues():
    model = related(make("ctp", "free", "none", True, 60), KERNELS["family"](60))
    whole, shape = (
        genetic_score.genetic_test(model, genetic_score.genetic_design(model, 0, way))
        for way in (True, False)
    )
    assert whole.whole and not shape.whole
    assert shape.any == pytest.approx(whole.any, abs=0.1)
    assert shape.specific == pytest.approx(whole.specific, abs=0.1)


@pytest.mark.parametrize("missing", [False, True])
def test_a_design_takes_another_kernel(missing):
    first = related(make("ctp", "free", "batch", missing), KERNELS["window"](30))
    other = related(make("ctp", "free", "batch", missing), KERNELS["family"](30))
    design = genetic_score.genetic_design(first, 0).with_kernel(other.kinship[0].kernel)
    fresh = genetic_score.genetic_design(other, 0)
    own = genetic_score.genetic_test(other, design)
    assert own == genetic_score.genetic_test(other, fresh)


@pytest.mark.parametrize("part", [1.0, 0.6])
def test_the_spectrum_of_a_window_is_next_to_that_of_all_eigenvalues(part):
    """Variants in blocks, as of a window: tails of laws by the largest eigenvalues and moments."""
    rng = np.random.default_rng(5)
    latent = np.repeat(rng.normal(size=(2, 600, 40)), 12, axis=2) + rng.normal(size=(2, 600, 480))
    G = (latent < -0.5).sum(axis=0).astype(float)
    kernel = Kernel(None, (G - G.mean(axis=0)) / G.std(axis=0) / np.sqrt(480))
    donors = np.sort(rng.permutation(600)[: int(600 * part)])
    related = genetic_score.Related(kernel)
    exact, near = np.linalg.eigvalsh(related.of(donors)), related.spectrum(donors)
    assert len(near) == len(donors) and near.sum() == pytest.approx(0.0, abs=1e-8)
    assert near @ near == pytest.approx(exact @ exact, rel=1e-6)
    for z in (1.6, 4.0, 8.0):
        logs = [tail(float(w.sum()) + z * np.sqrt(2 * w @ w), mixture(w))[0] for w in (exact, near)]
        assert logs[1] == pytest.approx(logs[0], rel=0.01)


@pytest.mark.parametrize("m", [6, 40, 200])
@pytest.mark.parametrize("part", [1.0, 0.95])
def test_the_spectrum_of_a_window_is_not_that_of_its_rounding(m, part):
    """The same variants in another order; fewer of them than directions leave none to chance."""
    rng = np.random.default_rng(m)
    G = rng.standard_normal((340, m)) / np.sqrt(m)
    donors = np.sort(rng.permutation(340)[: int(340 * part)])
    one, other = (
        genetic_score.Related(Kernel(None, root)).spectrum(donors)
        for root in (G, np.ascontiguousarray(G[:, ::-1]))
    )
    close(other, one, 1e-12)


def test_noise_has_no_say(df, K):
    """Other noise, y as it was: the products of different donors are the same."""
    res = ctmm.fit(FORMULA, structure="free", kinship=K, data=df)
    wild = df.assign(nu=df["nu"] * np.random.default_rng(0).uniform(0.5, 1.5, len(df)))
    again = ctmm.fit(FORMULA, structure="free", kinship=K, data=wild)
    assert again.test_heritability().statistic == pytest.approx(
        res.test_heritability().statistic, abs=0.1
    )


def test_the_test_says_what_it_found(res):
    test = res.test_heritability()
    assert list(test.extra) == ["shared", "specific", "celltype"]
    assert list(test.extra["celltype"]) == list(res.celltypes)
    assert "cross-donor score" in str(test) and test.log_pvalue == pytest.approx(
        np.log(test.pvalue)
    )


# ---------------------------------------------------------------------------------------------
# scans


@pytest.fixture(scope="module")
def genes(df):
    """The example and the same with other responses, one with missing pairs."""
    rng = np.random.default_rng(2)
    E = pd.DataFrame({"first": df["expr"], "second": rng.permutation(df["expr"]), "third": 0.0})
    E["third"] = df["expr"] + rng.normal(size=len(df))
    E.loc[rng.choice(len(df), 20, replace=False), "third"] = np.nan
    nu = pd.DataFrame({name: df["nu"] for name in E})
    return {"data": df.drop(columns=["expr", "nu"]), "expr": E, "nu": nu}


def test_a_scan_has_the_numbers_of_single_fits(df, genes, K, tmp_path):
    options = {"random": "batch", "structure": "iid", "kinship": K}
    path = tmp_path / "scan.parquet"
    asked = ["heritability", "jackknife", "mean", "component:genetic:hom"]
    scan = ctmm.fit_genes(
        "~ C(celltype) + sex", **genes, **options, tests=asked, shares=True, out=path
    )
    assert scan.table["status"].tolist() == ["ok"] * 3, scan.table["reason"].tolist()
    for name in genes["expr"]:
        data = df.assign(expr=genes["expr"][name])
        res = ctmm.fit(FORMULA, method="he", data=data.dropna(subset="expr"), **options)
        row = scan.table.set_index("gene").loc[name]
        close(row[list(res.vcomp.index)].to_numpy(float), res.vcomp, 1e-9)
        close(scan.gene(name).vcomp, res.vcomp, 1e-9)
        errors = [row[f"se_jackknife[{own}]"] for own in res.params.index[-5:]]
        close(errors, res.bse.iloc[-5:], 1e-8)
        assert row["p_mean"] == pytest.approx(res.test_mean().pvalue, rel=1e-7)
        found = res.test_component("genetic:hom").pvalue
        assert row["p_component:genetic:hom"] == pytest.approx(found, rel=1e-7)
        shares = res.variance_explained()["share"]
        assert row["share[genetic]"] == pytest.approx(shares["genetic"], rel=1e-8)
        table = res.heritability().table.loc["genetic"]
        for part in table.index:
            known = table.loc[part, ["h2", "std_error"]].to_numpy(float)
            found = row[[f"h2[{part}]", f"se_h2[{part}]"]].to_numpy(float)
            np.testing.assert_allclose(found, known, rtol=1e-6)
        test = res.test_heritability()
        assert row["stat_heritability"] == pytest.approx(test.statistic, rel=1e-6)
        for end in ("", "_shared", "_specific", "[day0]", "[day3]"):
            detail = end.strip("_[]")
            p = test.extra["celltype"].get(detail, test.extra.get(detail, test.pvalue))
            assert row[f"p_heritability{end}"] == pytest.approx(p, rel=0.15), end
    assert scan.summary().index[0] == "heritability"
    again = ctmm.read_scan(path)
    pd.testing.assert_frame_equal(again.table, scan.table)
    with pytest.raises(ctmm.DataError, match="the scan took a kinship"):
        ctmm.read_scan(path, **genes)
    close(ctmm.read_scan(path, **genes, kinship=K).gene("first").vcomp, scan.vcomp.iloc[0], 1e-9)
    with pytest.raises(ctmm.DataError):  # another kinship is another scan
        ctmm.fit_genes("~ C(celltype) + sex", **genes, **{**options, "kinship": K + np.eye(len(K))},
                       tests=asked, shares=True, out=path)  # fmt: skip


@pytest.mark.filterwarnings("ignore::ctmm_formula.BoundaryWarning")
@pytest.mark.parametrize("method", ["robust", "reml", "ml"])
def test_scans_by_other_methods_have_the_numbers_of_single_fits(df, genes, K, method, tmp_path):
    options = {"structure": "iid", "kinship": K, "method": method}
    asked = ["heritability", "mean", "component:genetic:hom"]
    asked += ["lrt"] if method != "robust" else []
    path = tmp_path / "scan.parquet"
    scan = ctmm.fit_genes("~ C(celltype) + sex", **genes, **options, tests=asked, out=path)
    assert scan.table["status"].isin(["ok", "boundary"]).all()
    for name in list(genes["expr"])[:2]:
        data = df.assign(expr=genes["expr"][name])
        res = ctmm.fit(FORMULA, data=data.dropna(subset="expr"), **options)
        row = scan.table.set_index("gene").loc[name]
        close(row[list(res.vcomp.index)].to_numpy(float), res.vcomp, 1e-9)
        close([row[f"se[{own}]"] for own in res.vcomp.index], res.bse.iloc[-4:], 1e-8)
        assert row["p_mean"] == pytest.approx(res.test_mean().pvalue, rel=1e-7)
        known = res.heritability().table.loc["genetic", ["h2", "std_error"]]
        for part in known.index:
            own = row[[f"h2[{part}]", f"se_h2[{part}]"]].to_numpy(float)
            np.testing.assert_allclose(own, known.loc[part].to_numpy(float), rtol=1e-6)
        if method != "robust":
            assert row["p_lrt"] == pytest.approx(res.test_variance("lrt").pvalue, rel=1e-6)
        close(scan.gene(name).vcomp, res.vcomp, 1e-9)
    again = ctmm.fit_genes("~ C(celltype) + sex", **genes, **options, tests=asked, out=path)
    pd.testing.assert_frame_equal(again.table, scan.table)


def test_a_scan_of_weighted_moments_takes_one_step(df, genes, K):
    options = {"structure": "iid", "kinship": K, "method": "robust"}
    scan = ctmm.fit_genes(
        "~ C(celltype) + sex", **genes, **options, genes=["first"], tests="jackknife",
        one_step=True,
    )  # fmt: skip
    run = ctmm.fit(FORMULA, data=df, **options).jackknife(one_step=True)
    row = scan.table.iloc[0]
    own = [name for name in run.bse.index if f"se_jackknife[{name}]" in row]
    assert len(own) == 4
    close([row[f"se_jackknife[{name}]"] for name in own], run.bse[own], 1e-8)
    assert row["error_jackknife"] == pytest.approx(run.error, rel=1e-6)
    assert scan.gene("first").one_step


def test_what_a_scan_with_a_kinship_refuses(genes, K, monkeypatch):
    with pytest.raises(ctmm.CTMMError, match="'heritability' is of fits with kinship="):
        ctmm.fit_genes("~ C(celltype)", **genes, tests=["heritability"])
    with pytest.raises(ctmm.CTMMError, match="'score' of V = 0 takes donors as unrelated"):
        ctmm.fit_genes("~ C(celltype)", **genes, kinship=K, tests=["score"])
    with pytest.raises(ctmm.CTMMError, match=r"method='he' .*no test 'lrt'.*'reml' or 'ml'"):
        ctmm.fit_genes("~ C(celltype)", **genes, kinship=K, tests="lrt")
    with pytest.raises(ctmm.CTMMError, match="one_step= of a likelihood takes donors"):
        ctmm.fit_genes(
            "~ C(celltype)", **genes, kinship=K, method="reml", tests="jackknife", one_step=True
        )
    monkeypatch.setitem(related_likelihood.ORDERS, "robust", (10, 10))
    with pytest.raises(ctmm.CTMMError, match="matrices of 288 x 288"):
        ctmm.fit_genes("~ C(celltype)", **genes, kinship=K, method="robust")
    default = ctmm.fit_genes("~ C(celltype)", **genes, kinship=K, structure="iid")
    assert "p_heritability_specific_bh" in default.table
    again = ctmm.fit_genes("~ C(celltype)", **genes, kinship=K, structure="iid", n_jobs=2)
    pd.testing.assert_frame_equal(again.table, default.table)


# ---------------------------------------------------------------------------------------------
# bad kinships


def edit(frame, **cells):
    out = frame.copy()
    for (i, j), value in cells.pop("at").items():
        out.iloc[i, j] = value
    return out


def genotypes_of(K, codes):
    drawn = np.random.default_rng(0).integers(0, 3, (len(K), 5))
    return pd.DataFrame(np.array(codes)[drawn], K.index, [f"rs{k}" for k in range(5)])


def numbered(K):
    return K.reset_index(drop=True)


BAD = {
    "tiny": (lambda K: 1e-200 * K, "mean diagonal of 1e-200"),
    "complex": (lambda K: K + 0.1j, "has complex numbers"),
    "numpy": (lambda K: K.to_numpy(), "must be a DataFrame with the donors' labels"),
    "none of them": (lambda K: K.rename(index=lambda d: "x" + d, columns=lambda d: "x" + d),
                     "none of the donors .* never by position"),
    "one missing": (lambda K: K.iloc[1:, 1:], "has no row for 1 of 72 donors"),
    "numbered": (numbered, "its rows are numbered: pd.DataFrame"),
    "labels in a column": (lambda K: K.rename_axis("id").reset_index(), r"set_index\('id'\)"),
    "square, other columns": (lambda K: K.set_axis([f"c{k}" for k in range(len(K))], axis=1),
                              "is square, but its columns"),
    "rows of some": (lambda K: pd.concat([K, K[["d"]] if "d" in K else K.iloc[:, :1].set_axis(
        ["more"], axis=1)], axis=1), "columns for donors that have no row"),
    "twice": (lambda K: pd.concat([K, K.iloc[:1]]), "several rows for donor "),
    "asymmetric": (lambda K: edit(K, at={(0, 5): 0.7}), "is not symmetric: 0.7 for"),
    "triangle": (lambda K: pd.DataFrame(np.tril(K), K.index, K.columns), "fill in the other half"),
    "missing": (lambda K: edit(K, at={(2, 2): np.nan}), "missing or infinite for donor "),
    "a donor missing": (lambda K: K.drop(index=K.index[5]).reindex(K.index),
                        "missing or infinite for donor 'donor06'$"),
    "infinite": (lambda K: edit(K, at={(2, 2): np.inf}), "missing or infinite for donor "),
    "indefinite": (lambda K: edit(K, at={(0, 9): 3.0, (9, 0): 3.0}), "is no covariance"),
    "distances": (lambda K: 1.0 - K, "is no covariance"),
    "zeros": (lambda K: 0.0 * K, "is 0 between all"),
    "text": (lambda K: K.assign(**{str(K.columns[0]): "a"}), "are not numbers"),
    "empty dict": (lambda K: {}, "is an empty dict"),
    "a name with a colon": (lambda K: {"a:b": K}, "a text without ':'"),
    "a reserved name": (lambda K: {"shared": K}, "has the name of a part of the variance"),
    "no such file": (lambda K: "nowhere.grm.bin", "there is no file 'nowhere.grm.bin'"),
    "no such kind": (lambda K: "nowhere.xlsx", "is no kinship: a file ends in"),
    "blanks": (lambda K: K.rename(index=lambda d: d + " ", columns=lambda d: d + " "),
               "they are the same without blanks at their ends: rename them"),
    "capitals": (lambda K: K.rename(index=str.upper, columns=str.upper),
                 "they are the same but for upper and lower case"),
    "families": (lambda K: K.rename(index=lambda d: f"f_{d}", columns=lambda d: f"f_{d}"),
                 "they are the same behind a family ID"),
    "transposed": (lambda K: genotypes_of(K, [0, 1, 2]).T, r"give the transpose, \.T"),
    "a code of missing ones": (lambda K: genotypes_of(K, [0, 1, -9]),
                               "columns 'rs0', 'rs1', .* hold -9: no count of an allele"),
    "letters": (lambda K: genotypes_of(K, ["AA", "AG", "GG"]), "are not numbers"),
    "genotypes of nothing": (lambda K: pd.DataFrame(index=K.index), "have no variant"),
    "constant genotypes": (lambda K: pd.DataFrame({"rs1": np.ones(len(K))}, K.index),
                           "do not vary between these"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_kinship_says_what_is_wrong(case, df, K):
    make_bad, message = BAD[case]
    with pytest.raises(ctmm.DataError, match=message):
        ctmm.fit(FORMULA, structure="hom", kinship=make_bad(K), data=df)


def test_what_is_no_code_is_taken(df, K):
    """Dosages, and columns that were standardised before."""
    G = genotypes_of(K, [0.0, 0.7, 2.0])
    for given in (G, (G - G.mean()) / G.std()):
        assert ctmm.fit(FORMULA, structure="hom", kinship=given, data=df).converged


CSV = {
    "semicolons": (lambda K, path: K.to_csv(path, sep=";"), "has one column: its values must be"),
    "decimal commas": (lambda K, path: K.to_csv(path, sep=";", decimal=","), "decimals by points"),
    "no labels of rows": (lambda K, path: K.to_csv(path, index=False),
                          r"no labels of rows: its first column, .* numbers \('1.0', '0.5'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_a_table_that_is_written_another_way(case, df, K, tmp_path):
    write_it, message = CSV[case]
    write_it(K, tmp_path / "K.csv")
    with pytest.raises(ctmm.DataError, match=message):
        ctmm.fit(FORMULA, structure="hom", kinship=tmp_path / "K.csv", data=df)


@pytest.mark.parametrize("value", [np.eye, lambda n: np.eye(n) + 0.5, lambda n: 3 * np.eye(n)])
def test_the_identity_cannot_be_told_from_the_environment(value, df, donors):
    K = pd.DataFrame(value(len(donors)), donors, donors)
    with pytest.raises(ConvergenceError, match=r"'hom', .*multiple of the identity"):
        ctmm.fit(FORMULA, structure="free", kinship=K, data=df)


def test_next_to_the_identity_and_the_same_person_are_warned_of(df, donors, K):
    noise = np.random.default_rng(0).normal(size=(len(donors),) * 2) * 0.003
    near = pd.DataFrame(np.eye(len(donors)) + noise + noise.T, donors, donors)
    with pytest.warns(ctmm.CTMMWarning, match="next to a multiple of the identity"):
        ctmm.fit(FORMULA, structure="hom", kinship=near, data=df)
    few = np.random.default_rng(0).binomial(2, 0.3, (len(donors), 20_000))
    with pytest.warns(ctmm.CTMMWarning, match="next to a multiple of the identity"):
        ctmm.fit(FORMULA, structure="hom", kinship=pd.DataFrame(few, donors), data=df)
    twins = edit(K, at={(0, 1): 0.99, (1, 0): 0.99, (0, 2): 0.5, (2, 0): 0.5})
    with pytest.warns(ctmm.CTMMWarning, match="are all but the same person"):
        ctmm.fit(FORMULA, structure="hom", kinship=twins, data=df)


def test_a_kinship_may_not_have_the_name_of_a_random_effect(df, K):
    with pytest.raises(ctmm.DataError, match="has the name of a random effect"):
        ctmm.fit(FORMULA, random="batch", structure="hom", kinship={"batch": K}, data=df)


# ---------------------------------------------------------------------------------------------
# files


def write(folder, K, kind):
    ids = "".join(f"f{k} {d}\n" for k, d in enumerate(K.index))
    lower = K.to_numpy()[np.tril_indices(len(K))]
    if kind == "grm":
        lower.astype("<f4").tofile(folder / "c.grm.bin")
        (folder / "c.grm.id").write_text(ids)
        return folder / "c.grm.bin"
    if kind in ("rel", "triangle"):
        rows = K.to_numpy() if kind == "rel" else [r[: k + 1] for k, r in enumerate(K.to_numpy())]
        (folder / "c.rel").write_text("\n".join("\t".join(map(str, row)) for row in rows))
        (folder / "c.rel.id").write_text("#FID IID\n" + ids if kind == "rel" else ids)
        return folder / "c.rel"
    if kind == "grm.gz":
        (folder / "c.grm.id").write_text(ids)
        i, j = np.tril_indices(len(K))
        pairs = pd.DataFrame({"i": i + 1, "j": j + 1, "m": 1000, "K": K.to_numpy()[i, j]})
        pairs.to_csv(folder / "c.grm.gz", sep="\t", header=False, index=False)
        return folder / "c.grm.gz"
    path = folder / f"c.{kind}"
    K.to_csv(path, sep="\t" if "tsv" in kind else ",")
    return path


@pytest.mark.parametrize("kind", ["grm", "grm.gz", "rel", "triangle", "csv", "tsv", "csv.gz"])
def test_files(kind, K, tmp_path):
    path = write(tmp_path, K, kind)
    pd.testing.assert_frame_equal(ctmm.read_kinship(path), K, check_names=False)
    pd.testing.assert_frame_equal(ctmm.read_kinship(str(tmp_path / "c")), K, check_names=False)
    structure = resolve("hom", ["a", "b"])
    found = match_kinship(path, list(K.index)[:9], structure).kinship[0]
    close(found.kernel.whole, K.iloc[:9, :9].to_numpy(), 1e-7)


def test_a_compressed_file_that_was_cut_or_damaged(K, tmp_path):
    path = write(tmp_path, K, "csv.gz")
    whole = path.read_bytes()
    for bad in (whole[:-20], whole[:40] + b"0123456789" + whole[50:]):
        path.write_bytes(bad)
        with pytest.raises(ctmm.DataError, match="could not be read as a kinship"):
            ctmm.read_kinship(path)


@pytest.mark.parametrize(("how", "message"), [
    ({"header": False}, "no labels of columns: its first row"),
    ({"index": False}, "no labels of rows: its first column"),
    ({"stray": True}, "numbers its rows before their labels"),
    ({"sep": ";"}, "must be separated by commas"),
])  # fmt: skip
def test_a_table_without_its_labels(K, how, message, tmp_path):
    path = tmp_path / "c.csv"
    table = K.rename_axis("id").reset_index() if how.pop("stray", False) else K
    table.to_csv(path, **how)
    with pytest.raises(ctmm.DataError, match=message):
        ctmm.read_kinship(path)


LABELS = {
    "zeros": [f"{k:03d}" for k in range(1, 7)],
    "whole": ["1", "2", "10", "11", "20", "21"],
    "decimals": ["1.5", "2.5", "3.0", "4.10", "0.5", "7.25"],
    "what is missing elsewhere": ["NA", "None", "nan", "null", "N/A", "d1"],
}


@pytest.mark.parametrize("header", ["named", "empty", "none"])
@pytest.mark.parametrize("case", LABELS)
def test_labels_of_a_table_are_read_as_they_are_written(case, header, K, tmp_path):
    """With a name of the labels in the first row, an empty one, or none, as R writes it."""
    path, own = tmp_path / "c.csv", LABELS[case]
    table = pd.DataFrame(K.to_numpy()[:6, :6], own, own)
    table.to_csv(path, index_label={"named": "id", "empty": "", "none": False}[header])
    found = ctmm.read_kinship(path)
    pd.testing.assert_frame_equal(found, table, check_names=False, rtol=1e-15)
    matched = match_kinship(path, own[::-1], resolve("hom", ["a", "b"])).kinship[0]
    close(matched.kernel.whole, table.to_numpy()[::-1, ::-1], 1e-12)


def test_donors_by_number_find_their_kinship_in_a_file(df, K, tmp_path):
    number = {donor: k for k, donor in enumerate(sorted(set(df["donor"])), 1)}
    path, data = tmp_path / "c.csv", df.assign(donor=df["donor"].map(number))
    K.rename(index=number, columns=number).to_csv(path)
    fits = [
        ctmm.fit(FORMULA, structure="hom", kinship=kinship, method="he", data=table)
        for kinship, table in ((path, data), (K, df))
    ]
    close(fits[0].vcomp, fits[1].vcomp, 1e-10)
    zeros = {donor: f"{k:03d}" for donor, k in number.items()}
    K.rename(index=zeros, columns=zeros).to_csv(path)
    with pytest.raises(ctmm.DataError, match="they are the same as numbers: rename them"):
        ctmm.fit(FORMULA, structure="hom", kinship=path, data=data)
    K.rename(index=zeros, columns=zeros).rename_axis("id").reset_index().to_csv(path)
    with pytest.raises(ctmm.DataError, match="numbers its rows before their labels"):
        ctmm.read_kinship(path)


@pytest.mark.parametrize("value", ["1.5", "NA"])
def test_pairs_of_a_text_are_of_whole_numbers(value, K, tmp_path):
    path = write(tmp_path, K.iloc[:5, :5], "grm.gz")
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[3] = "\t".join([value, *lines[3].split()[1:]])
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    shown = "nan" if value == "NA" else value
    with pytest.raises(ctmm.DataError, match=rf"line 4 of .*c.grm.gz' is of the pair {shown} 1"):
        ctmm.read_kinship(path)


def test_what_is_missing_of_other_donors_is_nothing_to_a_fit(df, K, res):
    more = K.reindex(index=[*K.index, "other"], columns=[*K.columns, "other"])
    found = ctmm.fit(FORMULA, random="batch", structure="iid", kinship=more, method="he", data=df)
    pd.testing.assert_series_equal(found.vcomp, res.vcomp)
    with pytest.raises(ctmm.DataError, match="missing or infinite for donor 'other'"):
        found.genetic_values(kinship=more)


def test_donors_without_genotypes_are_warned_of(df, K):
    G = genotypes_of(K, [0.0, 1.0, 2.0])
    G.loc[K.index[4], "rs0":"rs2"] = np.nan
    with pytest.warns(ctmm.CTMMWarning, match="donors 'donor05' lack most of their genotypes"):
        ctmm.fit(FORMULA, kinship=G, structure="hom", genetic_structure="hom", data=df)


def test_files_that_do_not_go_together(K, tmp_path):
    path = write(tmp_path, K, "grm")
    (tmp_path / "c.grm.id").write_text("f a\nf b\n")
    with pytest.raises(ctmm.DataError, match="no kinship of the 2 donors of its ID file"):
        ctmm.read_kinship(path)
    (tmp_path / "c.grm.id").unlink()
    with pytest.raises(ctmm.DataError, match=r"no file .*c.grm.id"):
        ctmm.read_kinship(path)
    path = write(tmp_path, K.iloc[:5, :5], "grm.gz")
    (tmp_path / "c.grm.id").write_text("f a\nf b\n")
    with pytest.raises(ctmm.DataError, match="15 numbers, which is no kinship of the 2 donors"):
        ctmm.read_kinship(path)
    path = write(tmp_path, K, "rel")
    path.write_text("1 2\n3 x\n")
    with pytest.raises(ctmm.DataError, match="could not be read as a kinship"):
        ctmm.read_kinship(path)
    with pytest.raises(ctmm.DataError, match="is no name of a file"):
        ctmm.read_kinship(3)
