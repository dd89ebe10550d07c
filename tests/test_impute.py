"""Imputation of pseudobulk: what is filled, what stays, what is recorded and refused."""

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.cells.evaluation import COMPARED
from ctmm_formula.errors import CTMMError, CTMMWarning, DataError

anndata = pytest.importorskip("anndata")

EQUIVARIANT = 1e-9
"""Relative: the same steps in other units."""
METHODS = [
    {"method": "softimpute", "penalty": 2.0},
    {"method": "softimpute", "by": "gene", "penalty": 0.5},
    {"method": "mvn"},
    {"method": "mean"},
]
NAMES = ["transcriptome", "gene", "mvn", "mean"]


def simulated(seed=0, N=30, C=3, G=20, holes=0.15):
    """Pseudobulk AnnData, format 1, with whole pairs missing; and the values under the holes."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(N, 4)) @ rng.normal(size=(4, G))
    mean = np.stack(
        [shared + 0.5 * rng.normal(size=(N, 2)) @ rng.normal(size=(2, G)) for _ in range(C)], axis=1
    )
    mean += 0.3 * rng.normal(size=mean.shape) + 3.0
    n_cells = rng.integers(11, 80, (N, C))
    missing = rng.random((N, C)) < holes
    missing[missing.all(axis=1), 0] = False
    n_cells[missing] = rng.integers(1, 10, missing.sum())
    nu = rng.gamma(6.0, 0.5, (N, C, G)) / np.maximum(n_cells, 5)[:, :, None]
    donors, types = [f"d{i:02d}" for i in range(N)], [f"type{c}" for c in range(C)]
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(np.repeat(donors, C)),
            "celltype": pd.Categorical(np.tile(types, N)),
            "n_cells": n_cells.ravel(),
            "proportion": (n_cells / n_cells.sum(axis=1, keepdims=True)).ravel(),
            "sex": np.repeat(np.where(np.arange(N) % 2, "F", "M"), C),
        },
        index=[f"{d}|{c}" for d in donors for c in types],
    )
    X, noise = (values.reshape(N * C, G).copy() for values in (mean, nu))
    X[missing.ravel()], noise[missing.ravel()] = np.nan, np.nan
    pb = anndata.AnnData(
        X, obs=obs, var=pd.DataFrame(index=[f"g{k}" for k in range(G)]), layers={"nu": noise},
        uns={"ctmm": {"format": 1, "kind": "ctp", "filters": {"min_cells": 10}}},
    )  # fmt: skip
    return pb, mean.reshape(N * C, G), nu.reshape(N * C, G)


@pytest.fixture(scope="module")
def pb():
    return simulated()[0]


@pytest.mark.parametrize("settings", METHODS, ids=NAMES)
def test_only_missing_pairs_are_filled(pb, settings):
    before = pb.copy()
    full = ctmm.impute(pb, rng=0, **settings)
    missing = np.isnan(pb.X).all(axis=1)
    for old, new in ((pb.X, full.X), (pb.layers["nu"], full.layers["nu"])):
        assert np.isfinite(new).all()
        assert (new[~missing] == old[~missing]).all()
    assert full.obs["imputed"].tolist() == missing.tolist()
    assert full.uns["ctmm"]["imputed"]["pairs"] == missing.sum()
    assert full.uns["ctmm"]["filters"] == {"min_cells": 10}
    # the argument is as it was
    np.testing.assert_array_equal(pb.X, before.X)
    assert "imputed" not in pb.obs and "imputed" not in pb.uns["ctmm"]


@pytest.mark.slow
def test_imputed_pairs_have_no_square_of_noise(pb):
    pb = pb.copy()
    pb.layers["nu2"] = pb.layers["nu"] ** 2
    full = ctmm.impute(pb, method="mean")
    assert np.isnan(full.layers["nu2"]).all(axis=1).tolist() == full.obs["imputed"].tolist()
    op = ctmm.overall(full)
    assert np.isnan(op.layers["nu2"]).all(axis=1).tolist() == [
        full.obs["imputed"][full.obs["donor"] == name].any() for name in op.obs_names
    ]


def test_imputed_values_are_near_the_hidden_ones():
    pb, mean, _ = simulated(1, N=40, G=60)
    missing = np.isnan(pb.X).all(axis=1)
    error = {}
    for name, settings in zip(NAMES, METHODS, strict=True):
        settings = {key: value for key, value in settings.items() if key != "penalty"}
        full = ctmm.impute(pb, rng=0, **settings)
        error[name] = np.sqrt(np.mean((full.X - mean)[missing] ** 2))
    assert error["transcriptome"] < error["gene"] < 0.7 * error["mean"]
    assert error["mvn"] < 0.7 * error["mean"]


@pytest.mark.parametrize("settings", METHODS, ids=NAMES)
def test_units_of_genes_do_not_matter(pb, settings):
    full = ctmm.impute(pb, rng=0, negative="keep", **settings)
    scale = np.geomspace(0.01, 100.0, pb.n_vars)
    other = pb.copy()
    other.X = pb.X * scale
    other.layers["nu"] = pb.layers["nu"] * scale**2
    scaled = ctmm.impute(other, rng=0, negative="keep", **settings)
    np.testing.assert_allclose(scaled.X, full.X * scale, rtol=EQUIVARIANT)
    np.testing.assert_allclose(
        scaled.layers["nu"], full.layers["nu"] * scale**2, rtol=EQUIVARIANT, atol=1e-12
    )


@pytest.mark.slow
def test_a_seed_gives_the_same_again(pb):
    first, second = (ctmm.impute(pb, rng=7) for _ in range(2))
    np.testing.assert_array_equal(first.X, second.X)
    assert first.uns["ctmm"]["imputed"]["mean"]["penalty"] > 0.0


def test_numbers_of_numpy_will_do(pb):
    full = ctmm.impute(pb, folds=np.int64(3), penalty=np.float32(2.0), rng=np.random.default_rng(0))
    assert full.uns["ctmm"]["imputed"]["mean"]["penalty"] == 2.0


def test_mean_and_noise_are_filled_apart(pb):
    full = ctmm.impute(pb, penalty=(3.0, 8.0))
    record = full.uns["ctmm"]["imputed"]
    assert (record["mean"]["penalty"], record["noise"]["penalty"]) == (3.0, 8.0)
    other = pb.copy()
    other.layers["nu"] = pb.layers["nu"] * np.linspace(1.0, 2.0, pb.n_vars) + 1.0
    np.testing.assert_array_equal(ctmm.impute(other, penalty=(3.0, 8.0)).X, full.X)


@pytest.mark.slow
def test_cross_validation_is_recorded(pb):
    record = ctmm.impute(pb, rng=0).uns["ctmm"]["imputed"]["mean"]
    grid, loss = record["relative_grid"], record["cv_loss"]
    assert grid[0] == 1.0 and (np.diff(grid) < 0.0).all() and len(loss) == len(grid)
    assert 0 < np.nanargmin(loss) < len(grid) and record["converged"]
    by_gene = ctmm.impute(pb, by="gene", rng=0).uns["ctmm"]["imputed"]["mean"]
    assert by_gene["penalty"].shape == (pb.n_vars,) and len(set(by_gene["penalty"])) > 5


def negative_noise():
    """Noise exponential in one factor of the donors: straight lines through it go below zero."""
    pb, _, _ = simulated(2, N=40)
    missing = np.isnan(pb.X).all(axis=1)
    donor = np.repeat(np.linspace(-1.0, 1.0, 40), 3)
    pb.layers["nu"] = np.exp(np.outer(donor, np.linspace(2.0, 4.0, pb.n_vars)))
    pb.layers["nu"][1::3] **= 2
    missing[0:12:3] = True  # the smallest, of the first cell type
    missing[1:12:3] = False
    pb.X[~missing] = np.nan_to_num(pb.X[~missing])
    pb.X[missing], pb.layers["nu"][missing] = np.nan, np.nan
    return pb


def test_negative_noise_is_mended_and_counted():
    pb = negative_noise()
    settings = {"method": "mvn"}
    kept, top, zero = (
        ctmm.impute(pb, negative=rule, **settings) for rule in ("keep", "max", "zero")
    )
    below = kept.layers["nu"] < 0.0
    assert 0 < below.sum() == top.uns["ctmm"]["imputed"]["negative_noise"]
    assert (zero.layers["nu"][below] == 0.0).all()
    for c in range(3):
        rows = np.arange(len(pb)) % 3 == c
        largest = np.broadcast_to(
            kept.layers["nu"][rows].max(axis=0), kept.layers["nu"][rows].shape
        )
        np.testing.assert_array_equal(top.layers["nu"][rows][below[rows]], largest[below[rows]])
    for full in (top, zero):
        np.testing.assert_array_equal(full.layers["nu"][~below], kept.layers["nu"][~below])


@pytest.mark.slow
def test_the_record_survives_h5ad(pb, tmp_path):
    for settings in ({}, {"by": "gene"}, {"method": "mvn"}):
        full = ctmm.impute(pb, rng=0, **settings)
        full.write_h5ad(tmp_path / "full.h5ad")
        back = anndata.read_h5ad(tmp_path / "full.h5ad")
        np.testing.assert_array_equal(back.X, full.X)
        assert back.obs["imputed"].tolist() == full.obs["imputed"].tolist()
        record = back.uns["ctmm"]["imputed"]
        assert record["pairs"] == full.uns["ctmm"]["imputed"]["pairs"]
        np.testing.assert_array_equal(
            record["mean"]["penalty"], full.uns["ctmm"]["imputed"]["mean"]["penalty"]
        )


@pytest.mark.slow
def test_a_fit_without_the_imputed_pairs_is_the_fit_before(pb):
    full = ctmm.impute(pb, rng=0)
    formula = "g0 ~ C(celltype) + sex"
    before = ctmm.fit(formula, data=ctmm.to_long(pb, "g0"), method="reml")
    after = ctmm.fit(formula, data=ctmm.to_long(full, "g0").query("~imputed"), method="reml")
    assert before.llf == pytest.approx(after.llf, rel=1e-12)
    assert (
        ctmm.fit(formula, data=ctmm.to_long(full, "g0"), method="reml").nobs
        == pb.n_obs
        > after.nobs
    )


def test_nothing_missing_changes_nothing():
    pb, _, _ = simulated(3, holes=0.0)
    for settings in METHODS:
        full = ctmm.impute(pb, **settings)
        np.testing.assert_array_equal(full.X, pb.X)
        assert not full.obs["imputed"].any()


@pytest.mark.slow
def test_imputing_again_keeps_the_marks(pb):
    once = ctmm.impute(pb, rng=0)
    twice = ctmm.impute(once, rng=0)
    assert twice.obs["imputed"].tolist() == once.obs["imputed"].tolist()
    np.testing.assert_array_equal(twice.X, once.X)


def test_donors_and_cell_types_without_pairs_stay_missing(pb):
    other = pb.copy()
    rows = other.obs["donor"].isin(["d03", "d08"]) | (other.obs["celltype"] == "type2")
    other.X[rows.to_numpy()] = np.nan
    other.layers["nu"][rows.to_numpy()] = np.nan
    with pytest.warns(
        CTMMWarning, match=r"donors 'd03', 'd08' have no .*cell types 'type2' have no"
    ):
        full = ctmm.impute(other, rng=0)
    assert np.isnan(full.X[rows]).all() and np.isfinite(full.X[~rows]).all()
    assert not full.obs.loc[rows, "imputed"].any()
    assert full.uns["ctmm"]["imputed"]["pairs_left_missing"] == rows.sum()


@pytest.mark.slow
def test_a_gene_that_is_zero_everywhere_is_filled_with_zero(pb):
    other = pb.copy()
    gone = np.isnan(other.X[:, 0])
    other.X[~gone, 4] = 0.0
    other.layers["nu"][~gone, 4] = 0.0
    for settings in [*METHODS, {}, {"by": "gene"}]:
        full = ctmm.impute(other, rng=0, **settings)
        np.testing.assert_allclose(full.X[:, 4], 0.0, atol=1e-12)
        np.testing.assert_allclose(full.layers["nu"][:, 4], 0.0, atol=1e-12)
        assert np.isfinite(full.X).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "knn"}, "unknown method 'knn'"),
        ({"by": "cell"}, "unknown by 'cell'"),
        ({"method": "mvn", "by": "transcriptome"}, "gene by gene"),
        ({"holdout": "rows"}, "unknown holdout"),
        ({"negative": "clip"}, "unknown negative"),
        ({"engine": "matlab"}, "unknown engine"),
        ({"engine": "r", "method": "mvn"}, "is for method='softimpute'"),
        ({"folds": 1}, "folds"),
        ({"folds": 2.5}, "folds"),
        ({"folds": True}, "folds"),
        ({"penalty": "auto"}, "penalty must be"),
        ({"penalty": 0.0}, "penalty must be"),
        ({"penalty": -1.0}, "penalty must be"),
        ({"penalty": np.nan}, "penalty must be"),
        ({"penalty": (1.0, 2.0, 3.0)}, "penalty must be"),
        ({"penalty": 1.0, "method": "mvn"}, "has none"),
        ({"prior": -1.0}, "prior"),
        ({"prior": "weak"}, "prior"),
    ],
)
def test_settings_that_make_no_sense(pb, settings, message):
    with pytest.raises(CTMMError, match=message):
        ctmm.impute(pb, **settings)


def test_bad_data(pb):
    other = pb.copy()
    seen = int(np.flatnonzero(np.isfinite(pb.X[:, 0]))[0])
    other.X[seen, 2] = np.inf
    with pytest.raises(DataError, match=r"X is inf in 'd00\|type0', gene 'g2'"):
        ctmm.impute(other)
    other = pb.copy()
    other.layers["nu"][seen, 3] = np.nan
    with pytest.raises(DataError, match=r'layers\["nu"\] has values where'):
        ctmm.impute(other)
    with pytest.raises(DataError, match="only 1"):
        ctmm.impute(pb[:3].copy())
    with pytest.raises(CTMMError):
        ctmm.impute(pb[1:].copy())
    with pytest.raises(CTMMError):
        ctmm.impute(pd.DataFrame({"a": [1.0]}))


@pytest.mark.slow
def test_evaluation_compares_on_hidden_pairs():
    pb, _, _ = simulated(4)
    table = ctmm.evaluate_imputation(pb, repeats=3, rng=0)
    assert list(table.columns) == [
        "method", "quantity", "gene", "celltype", "mse", "correlation", "repeats",
    ]  # fmt: skip
    assert set(table["method"]) == set(COMPARED)
    assert not table.duplicated(["method", "quantity", "gene", "celltype"]).any()
    medians = table.groupby(["quantity", "method"])[["mse", "correlation"]].median()
    mse = medians.loc["mean", "mse"]
    assert mse["softimpute"] < mse["mvn"] < mse["mean"]
    assert mse["softimpute"] < mse["softimpute by gene"] < mse["mean"]
    assert mse["mean"] == pytest.approx(1.0, abs=0.35)
    assert medians.loc[("mean", "softimpute"), "correlation"] > 0.7
    assert np.isnan(medians.loc[("mean", "mean"), "correlation"])


def test_evaluation_by_hand():
    pb, _, _ = simulated(5, N=12, C=2, G=3)
    table = ctmm.evaluate_imputation(pb, ["mean"], repeats=1, rng=3)
    # the same draws, step by step
    from ctmm_formula.cells.holes import copied_holes

    missing = np.isnan(pb.X[:, 0]).reshape(12, 2)
    hidden = copied_holes(~missing, 0.1, np.random.default_rng(3))
    Y = pb.X.reshape(12, 2, 3)
    for row in table[table["quantity"] == "mean"].itertuples():
        c, g = int(row.celltype[-1]), int(row.gene[1:])
        seen, kept = Y[~missing[:, c], c, g], Y[~missing[:, c] & ~hidden[:, c], c, g]
        error = np.mean((Y[hidden[:, c], c, g] - kept.mean()) ** 2) / seen.var(ddof=1)
        assert row.mse == pytest.approx(error, rel=1e-12) and row.repeats == 1
    assert set(table["celltype"]) == {f"type{c}" for c in range(2) if hidden[:, c].sum() > 1}


def test_evaluation_of_own_settings_and_random_pairs():
    pb, _, _ = simulated(6, holes=0.0)
    settings = {"weak": {"penalty": 0.5}, "strong": {"penalty": 50.0}}
    table = ctmm.evaluate_imputation(pb, settings, hide="random", repeats=2, rng=0)
    mse = table.groupby(["quantity", "method"])["mse"].median()["mean"]
    assert mse["weak"] < mse["strong"]
    with pytest.raises(DataError, match="use hide='random'"):
        ctmm.evaluate_imputation(pb)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["knn"]}, "unknown method"),
        ({"methods": []}, "methods is empty"),
        ({"hide": "all"}, "unknown hide"),
        ({"repeats": 0}, "repeats"),
        ({"fraction": 0.0}, "fraction"),
        ({"hide": "random", "fraction": 0.9}, "fraction"),
    ],
)
def test_evaluation_settings_that_make_no_sense(pb, settings, message):
    with pytest.raises(CTMMError, match=message):
        ctmm.evaluate_imputation(pb, **settings)


@pytest.mark.slow
def test_a_fit_takes_imputed_pairs_whatever_their_number_of_cells():
    """Their values come from no cells, so they have no number of cells."""
    pb = simulated()[0]
    hole = np.flatnonzero(np.isnan(pb.X[:, 0]))[0]
    pb.obs.iloc[hole, pb.obs.columns.get_loc("n_cells")] = 0
    imputed = ctmm.impute(pb)
    table = ctmm.to_long(imputed, imputed.var_names[0])
    filled = table["imputed"]
    assert filled.any()
    assert table["n_cells"].isna().tolist() == filled.tolist()
    formula = f"{imputed.var_names[0]} ~ C(celltype)"
    res = ctmm.fit(formula, data=imputed)
    scan = ctmm.fit_genes("~ C(celltype)", data=imputed, genes=[imputed.var_names[0]])
    assert res.nobs == len(table) == scan.table["n_obs"].item()
    assert np.isfinite(res.test_variance("score").pvalue)
    assert scan.table["p_score"].item() == res.test_variance("score").pvalue
