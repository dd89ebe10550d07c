"""Overall pseudobulk, standardisation, principal components and the gene filter."""

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.errors import CTMMError, DataError

ad = pytest.importorskip("anndata")

# values above 20, which no logarithm of expression has
pytestmark = pytest.mark.filterwarnings("ignore:the largest value is .*:UserWarning")
ROUNDING = 1e-12
SAME_FIT = 1e-6
"""Estimates of one likelihood in two units differ by the tolerance of the optimisation."""


@pytest.fixture
def pb():
    """Thirty donors, three cell types with means 1, 5, 9, complete; 20 genes."""
    return make()


def make(donors=30, genes=20, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(11, 60, (donors, 3))
    donor, celltype = (np.repeat(part.ravel(), sizes.ravel()) for part in np.indices(sizes.shape))
    effect = rng.normal(size=(donors, 2)) @ rng.normal(size=(2, genes))
    X = 20 + effect[donor] + np.array([1.0, 5.0, 9.0])[celltype][:, None]
    X = X + 0.5 * rng.normal(size=(donors, 3, genes))[donor, celltype]
    X = X + rng.normal(size=X.shape)
    obs = pd.DataFrame(
        {
            "donor": [f"d{k:02d}" for k in donor],
            "celltype": [f"t{k}" for k in celltype],
            "age": 20 + donor,
            "sort": [f"{d}-{t}" for d, t in zip(donor, celltype, strict=True)],
        },
        index=[f"c{k}" for k in range(len(donor))],
    )
    cells = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{k}" for k in range(genes)]))
    return ctmm.pseudobulk(cells, min_cells_donor=1)


def lose(pb, *pairs):
    """The same with missing pairs."""
    pb = pb.copy()
    at = [pb.obs_names.get_loc(pair) for pair in pairs]
    pb.X[at] = np.nan
    pb.layers["nu"][at] = np.nan
    return pb


def arrays(pb):
    donors = pb.obs["donor"].nunique()
    return (
        pb.obs["proportion"].to_numpy().reshape(donors, -1, 1),
        pb.X.reshape(donors, -1, pb.n_vars),
        pb.layers["nu"].reshape(donors, -1, pb.n_vars),
    )


# ---------------------------------------------------------------------------------------------
# overall


def test_overall_is_the_weighted_sum(pb):
    op = ctmm.overall(pb)
    P, y, nu = arrays(pb)
    np.testing.assert_allclose(op.X, (P * y).sum(axis=1), rtol=ROUNDING)
    np.testing.assert_allclose(op.layers["nu"], (P**2 * nu).sum(axis=1), rtol=ROUNDING)
    nu2 = pb.layers["nu2"].reshape(nu.shape)
    pairs = sum(
        (P[:, c] * P[:, d]) ** 2 * (nu2[:, c] if c == d else nu[:, c] * nu[:, d])
        for c in range(3)
        for d in range(3)
    )
    np.testing.assert_allclose(op.layers["nu2"], pairs, rtol=ROUNDING)
    np.testing.assert_allclose(op.obsm["proportions"], P[:, :, 0], rtol=ROUNDING)
    assert op.obs_names.tolist() == op.obs["donor"].tolist() == [f"d{k:02d}" for k in range(30)]
    assert op.obs["n_cells"].sum() == pb.obs["n_cells"].sum()
    assert op.obs["age"].tolist() == list(range(20, 50))
    assert op.uns["ctmm"]["kind"] == "op"
    assert op.uns["ctmm"]["overall"]["columns_left_out"].tolist() == ["sort"]
    assert pb.uns["ctmm"]["kind"] == "ctp"


def test_pairs_without_a_number_of_cells_are_named(pb):
    pb.obs["n_cells"] = pb.obs["n_cells"].astype(float)
    pb.obs.loc["d03|t1", "n_cells"] = np.nan
    with pytest.raises(DataError, match=r"obs\['n_cells'\] has no value in pairs 'd03\|t1'"):
        ctmm.overall(pb)


@pytest.mark.parametrize("step", [ctmm.overall, ctmm.standardize])
def test_square_of_noise_where_it_is_not_known(pb, step):
    without = pb.copy()
    del without.layers["nu2"]
    assert "nu2" not in step(without).layers
    gap = pb.copy()
    gap.layers["nu2"][pb.obs_names.get_loc("d03|t1")] = np.nan
    out = step(gap)
    name = "d03" if step is ctmm.overall else "d03|t1"
    unknown = np.isnan(out.layers["nu2"])
    assert unknown.all(axis=1).sum() == unknown.any(axis=1).sum() == 1
    assert unknown[out.obs_names.get_loc(name)].all()


def test_square_of_noise_has_the_scale_of_the_fourth_power(pb):
    scaled = ctmm.standardize(pb)
    sd = scaled.var["op_sd"].to_numpy()
    np.testing.assert_allclose(scaled.layers["nu2"] * sd**4, pb.layers["nu2"], rtol=ROUNDING)
    ratio = [one.layers["nu2"] / one.layers["nu"] ** 2 for one in (scaled, pb)]
    np.testing.assert_allclose(*ratio, rtol=ROUNDING)


def test_overall_pseudobulk_survives_h5ad(pb, tmp_path):
    op = ctmm.standardize(ctmm.principal_components(ctmm.overall(lose(pb, "d03|t1")), 2))
    op.write_h5ad(tmp_path / "op.h5ad")
    back = ad.read_h5ad(tmp_path / "op.h5ad")
    # with pandas 3 texts come back as str
    pd.testing.assert_frame_equal(
        back.obs, op.obs, check_index_type=False, check_dtype=False, check_categorical=False
    )
    shares = (data.obsm["proportions"] for data in (back, op))
    pd.testing.assert_frame_equal(*shares, check_index_type=False, check_column_type=False)
    np.testing.assert_equal(back.uns["ctmm"], op.uns["ctmm"])
    one, two = (ctmm.fit("g1 ~ age", data=data, structure="hom") for data in (op, back))
    np.testing.assert_array_equal(one.params, two.params)


def test_a_missing_pair_is_never_zero(pb):
    """The published step adds nothing for it, which shifts the donor by P times the mean."""
    holed = lose(pb, "d03|t2")
    P, y, nu = (part[3] for part in arrays(pb))
    shares = P[:2] / P[:2].sum()
    op = ctmm.overall(holed)
    np.testing.assert_allclose(op["d03"].X[0], (shares * y[:2]).sum(axis=0), rtol=ROUNDING)
    np.testing.assert_allclose(
        op["d03"].layers["nu"][0], (shares**2 * nu[:2]).sum(axis=0), rtol=ROUNDING
    )
    assert op.obsm["proportions"].loc["d03"].tolist() == [*shares[:, 0], 0.0]
    assert op.obs.loc["d03", "n_cells"] == pb.obs.loc[["d03|t0", "d03|t1"], "n_cells"].sum()
    as_published = np.nansum((P * y)[:2], axis=0)
    assert (np.abs(op["d03"].X[0] - as_published) > 3).all()
    others = [k for k in range(30) if k != 3]
    np.testing.assert_array_equal(op.X[others], ctmm.overall(pb).X[others])
    assert op.uns["ctmm"]["notes"][-1] == (
        "overall: 1 of 30 donors miss pairs, 'd03': their proportions are rescaled to the observed "
        "cell types"
    )


def test_rescaled_proportions_obey_the_model():
    """A third of the pairs of one type missing: the fit of what is left finds the same means."""
    full = make(donors=200, genes=1, seed=4)
    lost = [name for name in full.obs_names if name.endswith("t2") and int(name[1:-3]) % 3 == 0]
    means = [
        ctmm.fit("g0 ~ 1", data=ctmm.overall(data), structure="hom").means()
        for data in (full, lose(full, *lost))
    ]
    error = means[0]["estimate"] - means[1]["estimate"]
    assert (error.abs() < 3 * means[1]["std_error"]).all()


def test_missing_pairs_left_out_or_refused(pb):
    holed = lose(pb, "d03|t2", "d07|t0")
    op = ctmm.overall(holed, missing="complete")
    assert op.n_obs == 28
    assert not {"d03", "d07"} & set(op.obs_names)
    assert "they are left out" in op.uns["ctmm"]["notes"][-1]
    for step in (ctmm.overall, ctmm.standardize, ctmm.principal_components):
        with pytest.raises(DataError, match=r"2 of 30 donors miss pairs, 'd03', 'd07': impute"):
            step(holed, missing="error")
    with pytest.raises(DataError, match="no donor is left"):
        ctmm.overall(lose(pb, *[f"d{k:02d}|t0" for k in range(30)]), missing="complete")
    with pytest.raises(CTMMError, match="unknown missing 'zero'"):
        ctmm.overall(pb, missing="zero")


def test_a_pair_without_cells_is_no_gap(pb):
    holed = lose(pb, "d03|t2")
    rows = ["d03|t0", "d03|t1", "d03|t2"]
    holed.obs.loc[rows, "proportion"] = [0.25, 0.75, 0.0]
    op = ctmm.overall(holed, missing="error")
    np.testing.assert_allclose(
        op["d03"].X[0], np.array([0.25, 0.75]) @ pb[rows[:2]].X, rtol=ROUNDING
    )


# ---------------------------------------------------------------------------------------------
# standardize


@pytest.mark.parametrize("missing", ["observed", "complete"])
@pytest.mark.parametrize("holes", [(), ("d03|t2", "d07|t0", "d08|t1")])
def test_overall_has_mean_0_and_variance_1(pb, holes, missing):
    scaled = ctmm.standardize(lose(pb, *holes), missing=missing)
    op = ctmm.overall(scaled, missing=missing).X
    np.testing.assert_allclose(op.mean(axis=0), 0, atol=ROUNDING)
    np.testing.assert_allclose(op.var(axis=0, ddof=1), 1, rtol=ROUNDING)
    record = scaled.uns["ctmm"]["standardized"]
    used = 27 if holes and missing == "complete" else 30
    assert record == {"ddof": 1, "missing": missing, "donors": used}


def test_by_the_published_formulas(pb):
    scaled = ctmm.standardize(pb)
    P, y, _ = arrays(pb)
    op = (P * y).sum(axis=1)
    m, s = op.mean(axis=0), op.std(axis=0, ddof=1)
    np.testing.assert_allclose(scaled.X, (pb.X - m) / s, rtol=1e-10)  # after subtracting
    np.testing.assert_allclose(scaled.layers["nu"], pb.layers["nu"] / s**2, rtol=ROUNDING)
    np.testing.assert_allclose(scaled.var["op_mean"], m, rtol=ROUNDING)
    np.testing.assert_allclose(scaled.var["op_sd"], s, rtol=ROUNDING)


def test_before_or_after_overall_is_the_same(pb):
    holed = lose(pb, "d03|t2")
    one = ctmm.standardize(ctmm.overall(holed))
    two = ctmm.overall(ctmm.standardize(holed))
    np.testing.assert_allclose(one.X, two.X, rtol=0, atol=1e-10)
    np.testing.assert_allclose(one.layers["nu"], two.layers["nu"], rtol=1e-10)


def test_results_can_be_put_back(pb):
    scaled = ctmm.standardize(lose(pb, "d03|t2"))
    before = ctmm.fit("g4 ~ C(celltype) + age", data=lose(pb, "d03|t2"))
    after = ctmm.fit("g4 ~ C(celltype) + age", data=scaled)
    m, s = scaled.var.loc["g4", ["op_mean", "op_sd"]]
    np.testing.assert_allclose(after.vcomp * s**2, before.vcomp, rtol=SAME_FIT, atol=SAME_FIT)
    np.testing.assert_allclose(after.fe_params["age"] * s, before.fe_params["age"], rtol=SAME_FIT)
    np.testing.assert_allclose(
        after.means()["estimate"] * s + m, before.means()["estimate"], rtol=SAME_FIT
    )
    back = scaled.X * scaled.var["op_sd"].to_numpy() + scaled.var["op_mean"].to_numpy()
    np.testing.assert_allclose(back, lose(pb, "d03|t2").X, rtol=ROUNDING)


def test_what_cannot_be_standardised(pb):
    with pytest.raises(DataError, match="standardised already"):
        ctmm.standardize(ctmm.standardize(pb))
    flat = pb.copy()
    flat.X[:, [2, 5]] = [[0.0, 1 / 3]]
    with pytest.raises(DataError, match=r"no variance between donors, 'g2', 'g5': leave them out"):
        ctmm.standardize(flat)
    ctmm.standardize(ctmm.filter_genes(flat))
    with pytest.raises(DataError, match="a variance needs two"):
        ctmm.standardize(pb[:3].copy())


def test_steps_leave_their_input_alone(pb):
    before = pb.copy()
    ctmm.standardize(pb)
    ctmm.overall(pb)
    ctmm.principal_components(pb, 2)
    ctmm.filter_genes(pb)
    np.testing.assert_array_equal(pb.X, before.X)
    np.testing.assert_array_equal(pb.layers["nu"], before.layers["nu"])
    pd.testing.assert_frame_equal(pb.obs, before.obs)
    pd.testing.assert_frame_equal(pb.var, before.var)
    np.testing.assert_equal(pb.uns["ctmm"], before.uns["ctmm"])


# ---------------------------------------------------------------------------------------------
# principal components


def test_components_are_those_of_the_singular_values(pb):
    out = ctmm.principal_components(pb, 3)
    op = ctmm.overall(pb).X
    Z = (op - op.mean(axis=0)) / op.std(axis=0)
    U, d, Vt = np.linalg.svd(Z, full_matrices=False)
    scores = out.obs[["PC1", "PC2", "PC3"]].to_numpy().reshape(30, 3, 3)
    assert (scores == scores[:, :1]).all()  # one value per donor
    expected = U[:, :3] * d[:3]
    signs = np.sign((expected * scores[:, 0]).sum(axis=0))
    np.testing.assert_allclose(scores[:, 0], expected * signs, atol=1e-9)
    for k in range(3):  # the largest loading is positive
        assert (Vt[k] * signs[k])[np.abs(Vt[k]).argmax()] > 0
    ratio = out.uns["ctmm"]["principal_components"]["variance_ratio"]
    np.testing.assert_allclose(ratio, (d**2 / (d**2).sum())[:3], rtol=1e-9)


def test_components_of_both_kinds_and_any_scale_agree(pb):
    names = ["PC1", "PC2"]
    holed = lose(pb, "d03|t2")
    one = ctmm.principal_components(holed, 2).obs[names].to_numpy()[::3]
    for other in (
        ctmm.principal_components(ctmm.overall(holed), 2),
        ctmm.principal_components(ctmm.overall(ctmm.standardize(holed)), 2),
    ):
        np.testing.assert_allclose(other.obs[names], one, atol=1e-9)


def test_order_of_donors_and_genes_does_not_turn_components(pb):
    rng = np.random.default_rng(1)
    names = ["PC1", "PC2", "PC3"]
    rows = (3 * rng.permutation(30)[:, None] + np.arange(3)).ravel()
    moved = pb[rows, rng.permutation(20)].copy()
    one, two = (ctmm.principal_components(data, 3).obs[names] for data in (pb, moved))
    np.testing.assert_allclose(two.loc[one.index], one, atol=1e-9)


def test_components_of_complete_donors_only(pb):
    out = ctmm.principal_components(lose(pb, "d03|t2"), 2, missing="complete")
    gone = out.obs["PC1"].isna()
    assert set(out.obs.loc[gone, "donor"]) == {"d03"}
    others = ctmm.principal_components(pb[pb.obs["donor"] != "d03"].copy(), 2)
    np.testing.assert_allclose(out.obs.loc[~gone, "PC1"], others.obs["PC1"], atol=1e-9)


def test_components_go_into_the_formula(pb):
    res = ctmm.fit("g1 ~ C(celltype) + PC1 + PC2", data=ctmm.principal_components(pb, 2))
    assert abs(res.tvalues["PC1"]) > 5  # the factor that made the donors differ


def test_constant_genes_take_no_part(pb):
    flat = pb.copy()
    flat.X[:, 2] = 1 / 3
    one = ctmm.principal_components(flat, 2)
    two = ctmm.principal_components(flat[:, flat.var_names != "g2"].copy(), 2)
    np.testing.assert_allclose(one.obs["PC2"], two.obs["PC2"], atol=1e-9)
    assert one.uns["ctmm"]["principal_components"]["genes"] == 19


def test_components_that_do_not_exist(pb):
    with pytest.raises(DataError, match=r"have at most 20 components, not 21"):
        ctmm.principal_components(pb, 21)
    with pytest.raises(DataError, match=r"4 donors and 20 genes that vary have at most 3"):
        ctmm.principal_components(pb[:12].copy(), 4)
    with pytest.raises(CTMMError, match="n= must be a whole number"):
        ctmm.principal_components(pb, 0)
    assert ctmm.principal_components(pb, 2.0).obs.equals(ctmm.principal_components(pb, 2).obs)
    with pytest.raises(DataError, match="obs has columns 'PC1', 'PC2' already"):
        ctmm.principal_components(ctmm.principal_components(pb, 2), 3)


# ---------------------------------------------------------------------------------------------
# genes


def filtered(pb, **options):
    return set(ctmm.filter_genes(pb, **options).var_names)


def test_genes_expressed_in_more_than_a_share_of_the_donors(pb):
    rows = np.arange(90).reshape(30, 3)
    pb.X[rows[:, 1], 0] = 0  # zero in every donor of one type
    pb.X[rows[3:, 1], 1] = 0  # in 3 of 30 donors: not more than 10 %
    pb.X[rows[4:, 1], 2] = 0  # in 4
    pb.X[:, 3] = 0
    pb.X[:, 4] = 0.25  # everywhere, no variance
    every = {f"g{k}" for k in range(20)} - {"g0", "g1", "g3", "g4"}
    assert filtered(pb) == every
    assert filtered(pb, celltypes="any") == every | {"g0", "g1"}
    assert filtered(pb, min_share=0.09) == every | {"g1"}
    assert filtered(pb, above=0.25, min_share=0.0) == every | {"g1"}
    out = ctmm.filter_genes(pb)
    assert out.uns["ctmm"]["genes"] == {
        "min_share": 0.1, "celltypes": "every", "above": 0.0, "genes": 20, "kept": 16,
        "not_expressed": 3, "constant": 1, "low": 0,
    }  # fmt: skip
    assert out.uns["ctmm"]["notes"][-1] == (
        "filter_genes: 3 of 20 genes are left out, they are expressed in a share of at most 0.1 of "
        "the donors in some cell type; 1 more do not vary between donors"
    )
    np.testing.assert_array_equal(out.layers["nu"], pb[:, out.var_names].layers["nu"])


def test_missing_pairs_do_not_count_as_donors(pb):
    rows = np.arange(90).reshape(30, 3)
    pb.X[rows[3:, 1], 1] = 0  # in 3 of 30 donors
    assert "g1" not in filtered(pb)
    assert "g1" in filtered(lose(pb, *[f"d{k}|t1" for k in range(20, 30)]))  # in 3 of 20


def test_a_cell_type_of_one_donor_or_none_takes_no_gene(pb):
    pb.X[:, 4] = 0.25
    rare = [f"d{k:02d}|t2" for k in range(30)]
    for lost in (rare[1:], rare):
        assert filtered(lose(pb, *lost)) == {f"g{k}" for k in range(20)} - {"g4"}


def test_genes_of_overall_pseudobulk(pb):
    op = ctmm.overall(pb)
    op.X[3:, 1] = 0
    assert filtered(op) == {f"g{k}" for k in range(20)} - {"g1"}


def test_no_gene_left(pb):
    pb.X[:] = 0
    with pytest.raises(DataError, match=r"no gene is left: 20 of 20 genes are left out"):
        ctmm.filter_genes(pb)
    with pytest.raises(DataError, match="min_share= must be a share"):
        ctmm.filter_genes(pb, min_share=10)
    with pytest.raises(DataError, match="min_share= must be a share"):
        ctmm.filter_genes(pb, min_share="0.1")
    with pytest.raises(DataError, match="above= must be a number"):
        ctmm.filter_genes(pb, above=np.nan)


# ---------------------------------------------------------------------------------------------
# reading


def test_a_grid_with_holes_or_in_another_order_is_refused(pb):
    for part in (pb[1:].copy(), pb[::-1].copy()[:-1].copy(), pb[[0, 1, 2, 5, 4, 3]].copy()):
        with pytest.raises(DataError, match=r"no full grid of \d+ donors x 3 cell types"):
            ctmm.overall(part)
    whole = ctmm.overall(pb[pb.obs["celltype"] != "t1"].copy())  # a whole cell type may go
    assert list(whole.obsm["proportions"]) == ["t0", "t2"]
    np.testing.assert_allclose(whole.obsm["proportions"].sum(axis=1), 1)


def test_a_pair_missing_in_some_genes_is_refused(pb):
    pb.X[4, [1, 3]] = np.nan
    with pytest.raises(
        DataError, match=r"pair 'd01\|t1' is missing in some genes only, 'g1', 'g3'"
    ):
        ctmm.overall(pb)


def test_proportions_and_noise_that_are_none_are_refused(pb):
    other = pb.copy()
    other.obs.loc["d01|t1", "proportion"] = np.nan
    other.obs.loc["d02|t1", "proportion"] = -0.1
    lone = pb.copy()
    lone.layers["nu"][4, 3] = np.nan
    for step in (ctmm.overall, ctmm.standardize, ctmm.principal_components, ctmm.filter_genes):
        with pytest.raises(DataError, match=r"'proportion'\] is nan in pairs 'd01\|t1', 'd02\|t1'"):
            step(other)
        with pytest.raises(DataError, match=r"nu\"\] has values where .*none .*, in 'd01\|t1'"):
            step(lone)


def test_steps_know_their_kind(pb):
    with pytest.raises(DataError, match="not overall pseudobulk"):
        ctmm.overall(ctmm.overall(pb))


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_slashes_in_cell_types_survive_every_file(tmp_path):
    cells = pytest.importorskip("anndata")
    pytest.importorskip("zarr")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"donor": np.repeat(list("abcdefgh"), 30), "celltype": rng.choice(["T/NK", "B"], 240)}
    )
    counts = pd.DataFrame(rng.gamma(2.0, size=(240, 2)), columns=["g", "h"])
    pb = ctmm.pseudobulk(counts, obs=obs, min_cells=3, min_cells_donor=1)
    op = ctmm.overall(pb)
    want = ctmm.fit("g ~ 1", data=op, structure="hom", method="he")
    assert want.celltypes == ("B", "T/NK")
    for kind, read in (("zarr", cells.read_zarr), ("h5ad", cells.read_h5ad)):
        path = tmp_path / f"op.{kind}"
        getattr(op, f"write_{kind}")(path)  # warnings are errors
        again = ctmm.fit("g ~ 1", data=read(path), structure="hom", method="he")
        pd.testing.assert_series_equal(again.params, want.params)
        scan = ctmm.fit_genes("~ 1", data=path, structure="hom", method="he", tests=[])
        assert scan.gene("g").celltypes == ("B", "T/NK")
    assert "prop_T/NK" in ctmm.to_long(op, "g")


def test_what_a_pseudobulk_has_lost_is_told():
    cells = pytest.importorskip("anndata")
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor": np.repeat(list("abcdefgh"), 30), "celltype": ["T", "B", "B"] * 80})
    obs["age"] = 30.0 + rng.normal(size=240)
    obs.index = obs.index.astype(str)
    var = pd.DataFrame({"feature_name": ["CD3E", "CD19"]}, index=["ENSG1.1", "ENSG2.3"])
    adata = cells.AnnData(rng.gamma(2.0, size=(240, 2)), obs=obs, var=var)
    options = {"min_cells": 3, "min_cells_donor": 1}
    pb = ctmm.pseudobulk(adata, **options)
    for call in (
        lambda: ctmm.fit("Q('ENSG1.1') ~ C(celltype) + age", data=pb),
        lambda: ctmm.fit("Q('ENSG1.1') ~ C(celltype) + (1|age)", data=pb),
        lambda: ctmm.fit_genes("~ C(celltype) + age", data=pb),
    ):
        with pytest.raises(
            DataError, match=r"pseudobulk left it out: it varies within pairs; give"
        ):
            call()
    adata.obs["age"] = adata.obs.groupby("donor")["age"].transform("mean")  # as it says
    again = ctmm.pseudobulk(adata, **options)
    ctmm.fit("Q('ENSG1.1') ~ C(celltype) + age", data=again, structure="hom")
    for call in (
        lambda: ctmm.fit("CD3E ~ C(celltype)", data=pb),
        lambda: ctmm.to_long(pb, "CD3E"),
        lambda: ctmm.fit_genes("~ C(celltype)", data=pb, genes=["CD3E"]),
        lambda: ctmm.pseudobulk(adata, genes=["CD3E"], **options),
    ):
        with pytest.raises(DataError, match=r"var\['feature_name'\], of gene 'ENSG1.1': name that"):
            call()
    named = pb.copy()
    named.var_names = named.var["feature_name"]
    ctmm.fit("CD3E ~ C(celltype)", data=named, structure="hom")
    other = pb.copy()
    other.obs_names = "x" + other.obs_names
    other.obs["donor"] = "x" + other.obs["donor"].astype(str)
    with pytest.raises(DataError, match=r"anndata\.concat\(\[\.\.\.\], uns_merge='first'"):
        ctmm.fit("Q('ENSG1.1') ~ C(celltype)", data=cells.concat([pb, other]))
    joined = cells.concat([pb, other], uns_merge="first", merge="same")
    assert ctmm.fit("Q('ENSG1.1') ~ C(celltype)", data=joined, structure="hom").n_donors == 16
