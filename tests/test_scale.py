"""Scales of pseudobulk: logarithms of means, and what is said of a scale."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import ctmm_formula as ctmm
from ctmm_formula.cells.scale import (
    FEW_COUNTS,
    LARGE_RATIO,
    level_notes,
    level_ratio,
    type_errors,
    type_means,
)
from ctmm_formula.errors import CTMMError, DataError
from ctmm_formula.simulate import CountCells

ad = pytest.importorskip("anndata")

LOOSE = {"min_cells": 1, "min_cells_donor": 1}
MEANING = "V is what donors do to single cell types beyond a factor shared by all"


def counts(donors=12, genes=8, seed=0, low=0.3):
    """Counts of cells, and their labels; type B has `low` of the counts of T."""
    rng = np.random.default_rng(seed)
    n = 80 * donors
    obs = pd.DataFrame(
        {"donor": rng.integers(donors, size=n), "celltype": rng.choice(["B", "T"], n)}
    )
    obs["donor"] = obs["donor"].map("d{:02d}".format)
    obs.index = obs.index.astype(str)
    level = np.where(obs["celltype"] == "T", 1.0, low)[:, None] * np.geomspace(0.1, 8, genes)
    K = rng.poisson(level * rng.gamma(2.0, 0.5, (n, genes))).astype(float)
    frame = pd.DataFrame(K, index=obs.index, columns=[f"g{k}" for k in range(genes)])
    return frame.assign(rest=rng.integers(500, 3000, n).astype(float)), obs


def by_hand(K, obs, per=1e4):
    """Mean, its noise and half a count of each pair, in the order of the grid."""
    library = K.sum(axis=1)
    groups = [obs["donor"], obs["celltype"]]
    X = K.mul(per / library, axis=0)
    n = K.groupby(groups).size()
    mean = X.groupby(groups).mean()
    noise = X.groupby(groups).var().div(n, axis=0)
    half = 0.5 * (per / library).groupby(groups).mean() / n
    return mean.to_numpy(), noise.to_numpy(), half.to_numpy()[:, None]


@pytest.mark.parametrize("form", ["table", "csr", "csc", "dense", "h5ad"])
@pytest.mark.parametrize("normalize", [None, "log2_cpm"])
def test_log_mean_is_the_logarithm_of_the_mean_by_hand(form, normalize, tmp_path):
    K, obs = counts()
    per, base = (1e4, 1.0) if normalize is None else (1e6, np.log(2))
    mean, noise, half = by_hand(K, obs, per)
    data, options = K, {"obs": obs}
    if form != "table":
        make = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}.get(form, np.array)
        var = pd.DataFrame(index=K.columns)
        data, options = ad.AnnData(make(K.to_numpy()), obs=obs.copy(), var=var), {}
    if form == "h5ad":
        data.write_h5ad(tmp_path / "cells.h5ad")
        data = tmp_path / "cells.h5ad"
    pb = ctmm.pseudobulk(
        data, **options, **LOOSE, summary="log_mean", normalize=normalize, block_size=7
    )
    nu = np.where(mean > 0, noise / np.where(mean > 0, mean * (mean + half), 1.0), 0.0)
    np.testing.assert_allclose(pb.layers["nu"], nu / base**2, rtol=1e-10)
    np.testing.assert_allclose(pb.X, (np.log(mean + half) + nu / 2) / base, rtol=1e-10)
    np.testing.assert_allclose(pb.layers["counts"], mean / (2 * half), rtol=1e-10)
    with pytest.warns(ctmm.CTMMWarning, match="too large for a logarithm"):
        raw = ctmm.pseudobulk(K.mul(per / K.sum(axis=1), axis=0) / 3.7, obs=obs, **LOOSE)
    ratio = pb.layers["nu2"] / np.where(nu > 0, pb.layers["nu"], 1.0) ** 2
    noise2 = raw.layers["nu2"] / np.where(nu > 0, raw.layers["nu"], 1.0) ** 2
    np.testing.assert_allclose(ratio, noise2, rtol=1e-8, atol=1e-10)


def test_poisson_counts_have_the_variance_of_a_half_count_logarithm():
    # 1 / (K + 1/2), over n / (n - 1) for the estimated variance of the cells
    rng = np.random.default_rng(3)
    X = rng.poisson(0.5, (4000, 1)).astype(float)
    K = pd.DataFrame(np.hstack([X, 1000 - X]), columns=["g", "rest"])
    obs = pd.DataFrame({"donor": np.arange(4000) // 40, "celltype": "t"})
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, summary="log_mean")
    total = X.reshape(100, 40).sum(axis=1)
    np.testing.assert_allclose(pb.layers["counts"][:, 0], total)
    np.testing.assert_allclose(
        pb.X[:, 0] - pb.layers["nu"][:, 0] / 2, np.log((total + 0.5) * 10 / 40)
    )
    ratio = pb.layers["nu"][:, 0] * (total + 0.5)
    assert ratio.mean() == pytest.approx(1.0, abs=3 * ratio.std() / 10)


def test_a_common_factor_is_a_common_shift():
    K, obs = counts(donors=1)
    K["rest"] = 1e6 - K.drop(columns="rest").sum(axis=1)  # a library that factors do not change
    twice = 2 * K.assign(rest=0.0)
    twice["rest"] = 1e6 - twice.sum(axis=1)
    data = pd.concat([K, twice], ignore_index=True)
    labels = pd.concat([obs, obs.assign(donor="two")], ignore_index=True)
    genes = [name for name in K if name != "rest"]
    shift = {}
    for summary in ("mean", "log_mean"):
        pb = ctmm.pseudobulk(
            data, obs=labels, **LOOSE, normalize="log_cp10k", summary=summary
        ).to_df()[genes]
        shift[summary] = pb.loc[["two|B", "two|T"]].to_numpy() - pb.iloc[:2].to_numpy()
    # half a count is little beside 50 and more of them
    np.testing.assert_allclose(shift["log_mean"][:, 5:], np.log(2), atol=0.02)
    assert (np.abs(shift["mean"][1] - shift["mean"][0]) > 0.2 * shift["mean"].max(axis=0)).any()


def test_pairs_without_counts_in_any_cell_are_missing():
    K, obs = counts()
    K[((obs["donor"] == "d03") & (obs["celltype"] == "T")).to_numpy()] = 0.0
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, summary="log_mean")
    gone = np.isnan(pb.X).all(axis=1)
    assert pb.obs_names[gone].tolist() == ["d03|T"]
    assert np.isnan(pb.layers["nu"]).all(axis=1).tolist() == gone.tolist()
    assert np.isfinite(pb.X[~gone]).all()
    assert any("'d03|T'" in note for note in pb.uns["ctmm"]["notes"])
    ctmm.overall(pb)


def test_genes_with_few_counts_are_named():
    K, obs = counts()
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, summary="log_mean")
    by_type = pd.DataFrame(pb.layers["counts"]).groupby(pb.obs["celltype"].to_numpy()).mean()
    np.testing.assert_allclose(pb.var["min_counts"], by_type.min(), rtol=1e-12)
    few = pb.var["min_counts"] < FEW_COUNTS
    assert pb.var["few_counts"].tolist() == few.tolist()
    assert 0 < few.sum() < len(few)
    note = pb.uns["ctmm"]["notes"][-1]
    assert note.startswith(f"{few.sum()} of 9 genes have fewer than 5 counts a pair in some cell")
    assert f"'B ({few.sum()})'" in note


def test_the_result_says_on_which_scale_it_is(tmp_path):
    K, obs = counts()
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, summary="log_mean")
    assert pb.uns["ctmm"]["summary"] == "log_mean"
    assert pb.uns["ctmm"]["source"]["normalize"] == "log_cp10k"
    pb.write_h5ad(tmp_path / "pb.h5ad")
    back = ad.read_h5ad(tmp_path / "pb.h5ad")
    for name in ("nu", "nu2", "counts"):
        np.testing.assert_array_equal(back.layers[name], pb.layers[name])
    fits = [ctmm.fit("g6 ~ C(celltype)", data=one) for one in (pb, back)]
    assert fits[0].notes == fits[1].notes
    assert any(MEANING in note for note in fits[0].notes)
    assert MEANING in str(fits[0].summary()).replace("\n", " ")
    low = ctmm.fit("g0 ~ C(celltype)", data=pb)
    assert any("fewer than 5 counts a pair" in note and "'g0'" in note for note in low.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scans = [
            ctmm.fit_genes("~ C(celltype)", data=one, genes=["g0", "g6"])
            for one in (pb, tmp_path / "pb.h5ad")
        ]
    assert scans[0].notes == scans[1].notes
    np.testing.assert_array_equal(scans[0].table["p_score"], scans[1].table["p_score"])
    assert MEANING in str(scans[0])
    assert "1 of 2 genes have fewer than 5 counts a pair" in str(scans[0])
    assert scans[0].gene("g6").notes == fits[0].notes
    scans[0].to_parquet(tmp_path / "scan.parquet")
    assert MEANING in str(ctmm.read_scan(tmp_path / "scan.parquet"))
    assert ctmm.read_scan(tmp_path / "scan.parquet", pb).notes == scans[0].notes


def test_shares_of_a_factor():
    # log(1 + x) moves by x / (1 + x) of a log factor
    x = np.array([[0.2, 3.0], [5.0, 5.0], [50.0, 80.0]])
    share = x / (1 + x)
    np.testing.assert_allclose(level_ratio(np.log1p(x)), share.max(axis=1) / share.min(axis=1))
    with_hole = np.array([[0.5, np.nan, 1.0], [np.nan, np.nan, np.nan], [0.0, 1.0, 1.0]])
    found = level_ratio(with_hole)
    assert found[0] == pytest.approx(-np.expm1(-1.0) / -np.expm1(-0.5))
    assert np.isnan(found[1:]).all()
    for small in (found[1:], np.array([1.0, LARGE_RATIO - 1e-9])):
        assert level_notes(small, small) == []
    large = np.array([1.0, np.nan, LARGE_RATIO])
    assert level_notes(large, large)[0].startswith("in 1 of 3 genes")


def test_levels_differ_beyond_the_errors_of_their_means():
    """Types alike, 11 to 15 cells of a low gene: by chance means differ more than 1.2-fold."""
    rng = np.random.default_rng(2)
    said, large = [], []
    for mean, apart in ((0.02, 1.0), (0.1, 1.0), (0.1, 3.0)):
        values = np.empty((80, 100))
        n, observed = rng.integers(11, 16, 80), np.ones((20, 4), dtype=bool)
        fold = np.where(np.arange(80) % 4 == 3, np.log(apart), 0.0)
        for g in range(100):
            values[:, g] = CountCells(mean).measure(rng, fold, n, np.arange(80) // 4).mean
        means = type_means(values, observed)
        errors = type_errors(values, observed, means)
        by_type = values.reshape(20, 4, 100)
        np.testing.assert_allclose(errors, by_type.std(axis=0, ddof=1).T / np.sqrt(20))
        ratio, low = level_ratio(means), level_ratio(means, errors)
        assert ((low >= 1.0) & (low <= ratio))[np.isfinite(ratio)].all()
        large.append(np.mean(ratio >= LARGE_RATIO))
        said.append(np.mean(low >= LARGE_RATIO))
    assert min(large) > 0.8
    assert max(said[:2]) <= 0.05 and said[2] > 0.5
    # means within errors of each other, and far from them
    narrow, wide = np.full((1, 2), 0.01), np.full((1, 2), 0.2)
    m = np.array([[0.3, 0.6]])
    assert level_ratio(m, wide)[0] == 1.0
    expected = np.expm1(-0.58) / np.expm1(-0.32)
    np.testing.assert_allclose(level_ratio(m, narrow), expected)


def test_types_that_differ_in_level_are_named_on_log1p():
    K, obs = counts()
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, normalize="log_cp10k")
    by_type = pb.to_df().groupby(pb.obs["celltype"].to_numpy()).mean().to_numpy().T
    np.testing.assert_allclose(pb.var["level_ratio"], level_ratio(by_type), rtol=1e-12)
    large = int((pb.var["level_ratio_low"] >= LARGE_RATIO).sum())
    assert 0 < large < 9
    assert pb.uns["ctmm"]["notes"][-1].startswith(f"in {large} of 9 genes cell types differ in")
    gene, other = pb.var["level_ratio"].idxmax(), pb.var["level_ratio"].idxmin()
    note = "fold in what a factor does to their means"
    for data in (pb, ctmm.standardize(pb), ctmm.overall(pb)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits = [ctmm.fit(f"{name} ~ 1", data=data, structure="hom") for name in (gene, other)]
        assert [any(note in text for text in fit.notes) for fit in fits] == [True, False]


def test_tables_are_judged_by_fitted_means():
    K, obs = counts()
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, normalize="log_cp10k")
    gene, other = pb.var["level_ratio"].idxmax(), pb.var["level_ratio"].idxmin()
    note = "fold in what a factor does to their means"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, told in ((gene, True), (other, False)):
            table = ctmm.to_long(pb, name, name="y", zero_noise="pool")
            fit = ctmm.fit("y ~ C(celltype)", data=table)
            assert any(note in text for text in fit.notes) == told
        tables = [pd.DataFrame(v, pb.obs_names, pb.var_names) for v in (pb.X, pb.layers["nu"])]
        scan = ctmm.fit_genes(
            "~ C(celltype)", data=pb.obs, expr=tables[0], nu=tables[1].clip(1e-6), tests=[]
        )
    names = [f"mean[{name}]" for name in pb.obs["celltype"].unique()]
    fitted, errors = (scan.table[part].to_numpy() for part in (names, [f"se[{n}]" for n in names]))
    large = int((level_ratio(fitted, errors) >= LARGE_RATIO).sum())
    assert 0 < large < (level_ratio(fitted) >= LARGE_RATIO).sum()  # beyond their standard errors
    assert scan.notes[0].startswith("method: robust by default, as there are numbers of cells")
    assert scan.notes[1].startswith(f"in {large} of 9 genes")
    # what has no standard errors tells no level from chance
    moments = ctmm.fit_genes(
        "~ C(celltype)", data=pb.obs, expr=tables[0], nu=tables[1].clip(1e-6), tests=[], method="he"
    )
    assert moments.notes == () and set(names) <= set(moments.table)
    # simulated expression, with means below zero, is not on such a scale
    assert ctmm.fit("expr ~ C(celltype)", method="reml", data=ctmm.load_example()).notes == ()


def test_genes_are_filtered_by_counts_where_logarithms_have_no_zero():
    K, obs = counts()
    K["none"] = 0.0
    K["one"] = np.where(np.arange(len(K)) == 5, 1.0, 0.0)
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, summary="log_mean")
    assert list(ctmm.filter_genes(pb).var_names) == [n for n in K if n not in ("none", "one")]
    with pytest.raises(DataError, match=r"no zero: filter the genes before ctmm.overall"):
        ctmm.filter_genes(ctmm.overall(pb))


def test_what_a_scale_asks_for():
    K, obs = counts()
    with pytest.raises(CTMMError, match=r"summary.*'median'.*log_mean"):
        ctmm.pseudobulk(K, obs=obs, summary="median")
    with pytest.raises(DataError, match="look like logarithms already"):
        ctmm.pseudobulk(np.log1p(K), obs=obs, **LOOSE, summary="log_mean")
    soup = ctmm.pseudobulk(K * 0.9, obs=obs, **LOOSE, summary="log_mean")
    assert any("counts are not whole numbers" in note for note in soup.uns["ctmm"]["notes"])


def test_genes_without_counts_fail_and_few_counts_are_a_reason():
    """The number of cells is no expression."""
    K, obs = counts()
    K.insert(0, "never", 0.0)
    pb = ctmm.pseudobulk(K, obs=obs, **LOOSE, summary="log_mean")
    assert np.nanstd(pb.X[:, 0]) < 1e-12 < np.nanstd(pb.X[:, 1])
    assert any("1 of 10 genes have no counts at all" in note for note in pb.uns["ctmm"]["notes"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = ctmm.fit_genes("~ C(celltype)", data=pb, tests=["mean"]).table
    few = pb.var["few_counts"].to_numpy()
    assert table["status"][0] == "failed" and few.any() and not few.all()
    assert "constant" in table["reason"][0]
    said = table["reason"].str.contains("too few for their logarithm")
    assert said[1:].tolist() == few[1:].tolist()
