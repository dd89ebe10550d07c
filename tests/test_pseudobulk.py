"""Cells to pseudobulk: equal to plain formulas and to scanpy, whatever the cells come in."""

import logging
import tracemalloc
import warnings
from importlib.metadata import version
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import GOLDEN, quick_first
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import ctmm_formula as ctmm
from ctmm_formula.cells.aggregate import Moments
from ctmm_formula.cells.source import blocks, open_source
from ctmm_formula.design.table import amount
from ctmm_formula.errors import CTMMError, CTMMWarning, DataError

ad = pytest.importorskip("anndata")
sc = pytest.importorskip("scanpy")

ROUNDING = 1e-12
"""Sums of some hundred values in another order differ by less."""
LOOSE = {"min_cells": 1, "min_cells_donor": 1}
# these cells have few genes, and some of them values no logarithm has
pytestmark = [
    pytest.mark.filterwarnings("ignore:cells are scaled .* is this a selection:UserWarning"),
    # scanpy of groups of one cell
    pytest.mark.filterwarnings("ignore:Group counts matches dof:RuntimeWarning"),
]
no_logarithms = pytest.mark.filterwarnings("ignore:the largest value is .*:UserWarning")
"""All pairs of two cells and more."""
FORMS = [
    "csr", "csc", "csr_array", "dense", "fortran", "layer", "raw", "view", "backed", "backed csc",
    "h5ad", "h5ad dense", "h5ad layer", "h5ad raw", "zarr", "zarr dense", "table", "sparse table",
]  # fmt: skip


def same_table(one, two):
    """The same but for the type of texts, which anndata reads as it likes."""

    def plain_texts(table):
        table = table.set_axis(table.index.astype(object)).set_axis(
            table.columns.astype(object), axis=1
        )
        for name in table.columns[[isinstance(k, pd.CategoricalDtype) for k in table.dtypes]]:
            texts = table[name].cat.categories.astype(object)
            table[name] = table[name].cat.rename_categories(texts)
        return table

    pd.testing.assert_frame_equal(plain_texts(one), plain_texts(two))


def cells(n=400, genes=7, donors=5, celltypes=3, seed=0, dtype=np.float64):
    """Sparse log expression and labels of cells in random order."""
    rng = np.random.default_rng(seed)
    X = rng.gamma(2.0, size=(n, genes)) * (rng.random((n, genes)) < 0.3)
    donor = rng.integers(donors, size=n)
    obs = pd.DataFrame(
        {
            "donor": [f"d{k}" for k in donor],
            "celltype": rng.choice([f"t{k}" for k in range(celltypes)], n),
            "sex": np.where(donor % 2, "M", "F"),
            "depth": rng.random(n),
        },
        index=[f"cell{k}" for k in range(n)],
    )
    return X.astype(dtype), obs, [f"g{k}" for k in range(genes)]


def adata_of(X, obs, genes, **parts):
    return ad.AnnData(X, obs=obs.copy(), var=pd.DataFrame(index=genes), **parts)


def in_form(form, X, obs, genes, folder):
    """The same cells in one of FORMS, and the arguments that find them."""
    csr = sparse.csr_matrix(X)
    simple = {
        "csr": csr, "csc": sparse.csc_matrix(X), "csr_array": sparse.csr_array(X), "dense": X,
        "fortran": np.asfortranarray(X),
    }  # fmt: skip
    if form in simple:
        return adata_of(simple[form], obs, genes), {}
    if form == "table":
        return pd.DataFrame(X, index=obs.index, columns=genes), {"obs": obs}
    if form == "sparse table":
        table = pd.DataFrame.sparse.from_spmatrix(csr, index=obs.index, columns=genes)
        return table, {"obs": obs}
    base = adata_of(X if "dense" in form else csr, obs, genes)
    options = {}
    if form.endswith("layer"):
        base.layers["logs"], base.X = base.X, csr * 0
        options = {"layer": "logs"}
    if form.endswith("raw"):
        base.raw = base.copy()
        base = base[:, :3].copy()
        base.X = -base.X
        options = {"raw": True}
    if form == "view":
        more = ad.concat([base, base], index_unique="-")
        return more[: len(obs)], options
    if form == "backed csc":
        base.X = base.X.tocsc()
    if form.startswith("zarr"):
        path = folder / "cells.zarr"
        with warnings.catch_warnings():
            # anndata 0.12 on the version it will write by default; ours is to read either
            warnings.filterwarnings("ignore", "Writing zarr v2 data", UserWarning)
            base.write_zarr(path)
        return path, options
    if form.startswith(("backed", "h5ad")):
        path = folder / "cells.h5ad"
        base.write_h5ad(path)
        return (ad.read_h5ad(path, backed="r") if form.startswith("backed") else path), options
    return base, options


def plain(X, obs, min_cells=1):
    """Mean, nu, nu2 and n of each pair by the textbook formulas, on the full grid."""
    donors, types = sorted(set(obs["donor"])), sorted(set(obs["celltype"]))
    mean, nu, nu2, count = [], [], [], []
    for d in donors:
        for t in types:
            part = X[(obs["donor"] == d).to_numpy() & (obs["celltype"] == t).to_numpy()]
            count.append(len(part))
            if len(part) > min_cells:
                part = part.astype(np.float64)
                mean.append(part.mean(axis=0))
                nu.append(part.var(axis=0, ddof=1) / len(part))
                nu2.append(fourth_power(part) / len(part) ** 2)
            else:
                for values in (mean, nu, nu2):
                    values.append(np.full(X.shape[1], np.nan))
    return np.array(mean), np.array(nu), np.array(nu2), np.array(count)


def fourth_power(cells):
    """sigma^4 without bias, from the expectations of m2^2 and m4: two equations in mu4, sigma^4."""
    k = len(cells)
    if k < 4:
        return np.full(cells.shape[1], np.nan)
    d = cells - cells.mean(axis=0)
    expected = np.array(
        [[(k - 1) ** 2, (k - 1) * (k * k - 2 * k + 3)],
         [(k - 1) * (k * k - 3 * k + 3), 3 * (k - 1) * (2 * k - 3)]]
    ) / k**3  # fmt: skip
    return np.linalg.solve(expected, [(d**2).mean(axis=0) ** 2, (d**4).mean(axis=0)])[1]


def same(pb, mean, nu, nu2, count):
    np.testing.assert_allclose(pb.X, mean, rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(pb.layers["nu"], nu, rtol=ROUNDING, atol=ROUNDING)
    # in units of nu^2: of cells that are zero but for two, nu2 is a small difference
    np.testing.assert_allclose(
        pb.layers["nu2"] / np.where(nu > 0, nu, 1) ** 2, nu2 / np.where(nu > 0, nu, 1) ** 2,
        rtol=ROUNDING, atol=10 * ROUNDING,
    )  # fmt: skip
    np.testing.assert_array_equal(pb.obs["n_cells"], count)


def by_scanpy(adata):
    """scanpy's mean and variance / n in the order of our grid (pairs without cells left out)."""
    adata.obs["pair"] = pd.Categorical(adata.obs["donor"].str.cat(adata.obs["celltype"], sep="|"))
    with np.errstate(divide="ignore", invalid="ignore"):  # it divides pairs of one cell by zero
        out = sc.get.aggregate(adata, "pair", ["mean", "var"])
    n = adata.obs["pair"].value_counts()[out.obs_names].to_numpy()
    return out.obs_names, out.layers["mean"], out.layers["var"] / n[:, None], n


# ---------------------------------------------------------------------------------------------
# numbers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", quick_first([np.float64, np.float32]))
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_cells_give_the_plain_formulas(form, dtype, tmp_path):
    X, obs, genes = cells(dtype=dtype)
    data, options = in_form(form, X, obs, genes, tmp_path)
    pb = ctmm.pseudobulk(data, **options, **LOOSE)
    same(pb, *plain(X, obs))
    assert list(pb.var_names) == genes
    assert pb.X.dtype == pb.layers["nu"].dtype == np.float64


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [7, 37, 400])
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "h5ad", "backed csc"])
def test_blocks_of_any_size(form, block_size, tmp_path):
    X, obs, genes = cells()
    data, options = in_form(form, X, obs, genes, tmp_path)
    pb = ctmm.pseudobulk(data, **options, **LOOSE, block_size=block_size)
    same(pb, *plain(X, obs))


def test_blocks_learn_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("ctmm_formula.cells.source.BLOCK", 2000)
    X, obs, genes = cells()
    path, _ = in_form("h5ad", X, obs, genes, tmp_path)
    source = open_source(path, None, None, False, None)
    sizes = list(blocks(source, then=lambda first, block: block.shape[0]))
    source.close()
    assert sum(sizes) == len(X)
    assert len(sizes) > 3
    assert sizes[1] > sizes[0]  # zeros take no room
    same(ctmm.pseudobulk(path, **LOOSE), *plain(X, obs))


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "h5ad", "zarr", "table"])
@pytest.mark.parametrize("options", [{}, {"normalize": "log_cp10k"}, {"summary": "log_mean"}])
@pytest.mark.filterwarnings("ignore:all values are whole numbers")
def test_threads_give_the_same_bits(form, options, tmp_path, monkeypatch):
    if form == "zarr":
        pytest.importorskip("zarr")
    monkeypatch.setattr("ctmm_formula.cells.source.BLOCK", 3000)
    X, obs, genes = cells()
    X = np.ceil(4 * X)
    data, more = in_form(form, X, obs, genes, tmp_path)
    one, *others = (
        ctmm.pseudobulk(data, **{**LOOSE, **more, **options}, n_jobs=n) for n in (1, 2, 3, -1)
    )
    for two in others:
        assert one.uns["ctmm"]["notes"].tolist() == two.uns["ctmm"]["notes"].tolist()
        np.testing.assert_array_equal(one.X, two.X)
        for name in one.layers:
            np.testing.assert_array_equal(one.layers[name], two.layers[name])


def test_threads_say_what_is_wrong(tmp_path):
    X, obs, genes = cells()
    X[17, 2], X[150, 1] = -1.0, np.nan
    for form in ("csr", "csc", "dense"):
        data, _ = in_form(form, X, obs, genes, tmp_path)
        said = []
        for n_jobs in (1, 3):
            with pytest.raises(DataError) as error:
                ctmm.pseudobulk(data, **LOOSE, n_jobs=n_jobs, block_size=50)
            said.append(str(error.value))
        assert said[0] == said[1], form
    with pytest.raises(CTMMError, match="n_jobs= must be a number of threads"):
        ctmm.pseudobulk(data, **LOOSE, n_jobs=0)


def in_pieces(X, obs, genes, tmp_path, kinds=("csr", "dense", "csr")):
    """The same cells in three h5ad files, and in memory."""
    edges = [0, 40, 41, len(X)]
    parts = [
        in_form(kind, X[a:b], obs[a:b], genes, tmp_path)[0]
        for kind, a, b in zip(kinds, edges, edges[1:], strict=False)
    ]
    paths = [tmp_path / f"part{k}.h5ad" for k in range(3)]
    for part, path in zip(parts, paths, strict=True):
        part.write_h5ad(path)
    return parts, paths


@pytest.mark.parametrize("n_jobs", [1, 2])
@pytest.mark.parametrize("kinds", [("csr", "dense", "csr"), ("dense",) * 3])
def test_several_files_are_one_below_the_other(kinds, n_jobs, tmp_path):
    X, obs, genes = cells()
    parts, paths = in_pieces(X, obs, genes, tmp_path, kinds)
    for data in (paths, parts, tuple(map(str, paths)), [paths[0], *parts[1:]]):
        for more in ({}, {"block_size": 7}, {"genes": [genes[2], genes[0]]}):
            pb = ctmm.pseudobulk(data, **LOOSE, n_jobs=n_jobs, **more)
            own = [genes.index(name) for name in pb.var_names]
            same(pb, *plain(X[:, own], obs))


def test_several_files_that_differ(tmp_path):
    X, obs, genes = cells()
    parts, paths = in_pieces(X, obs, genes, tmp_path)
    with pytest.raises(DataError, match=r"part0\.h5ad' twice: its cells would count twice"):
        ctmm.pseudobulk([*paths, str(paths[0])], **LOOSE)
    with pytest.raises(DataError, match=r"data\[1\] has not the genes of data\[0\], their order"):
        ctmm.pseudobulk([parts[0], parts[1][:, ::-1].copy()], **LOOSE)
    with pytest.raises(DataError, match=r"'g\d+' are in one of them only: give all of data="):
        ctmm.pseudobulk([parts[0], parts[1][:, 1:].copy()], **LOOSE)
    parts[2].X = sparse.csc_matrix(parts[2].X)
    with pytest.raises(DataError, match=r"data\[2\] is stored gene by gene"):
        ctmm.pseudobulk(parts, **LOOSE)
    with pytest.raises(DataError, match="there is no file"):
        ctmm.pseudobulk([paths[0], tmp_path / "none.h5ad"], **LOOSE)
    parts[1].obs["lane"] = "a"
    notes = ctmm.pseudobulk(parts[:2], **LOOSE).uns["ctmm"]["notes"]
    assert "obs columns 'lane' are left out: not all of data= have them" in notes


@pytest.mark.parametrize(
    "chunk", [None, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array]
)
def test_lazy_arrays(chunk):
    da = pytest.importorskip("dask.array")
    X, obs, genes = cells()
    lazy = da.from_array(X, chunks=(50, 3 if chunk is None else -1))
    adata = adata_of(lazy if chunk is None else lazy.map_blocks(chunk), obs, genes)
    same(ctmm.pseudobulk(adata, **LOOSE), *plain(X, obs))


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_lazy_anndata(form, tmp_path):
    pytest.importorskip("xarray")
    X, obs, genes = cells()
    adata, _ = in_form(form, X, obs, genes, tmp_path)
    adata.write_h5ad(tmp_path / "lazy.h5ad")
    lazy = ad.experimental.read_lazy(tmp_path / "lazy.h5ad")
    same(ctmm.pseudobulk(lazy, **LOOSE), *plain(X, obs))
    lazy.file.close()


def test_lazy_pseudobulk_is_taken_into_memory_first(tmp_path):
    pytest.importorskip("xarray")
    X, obs, genes = cells()
    pb = ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE)
    pb.write_h5ad(tmp_path / "pb.h5ad")
    lazy = ad.experimental.read_lazy(tmp_path / "pb.h5ad")
    for way in (
        lambda: ctmm.fit(f"{genes[0]} ~ celltype", data=lazy),
        lambda: ctmm.fit_genes("~ celltype", data=lazy),
        lambda: ctmm.filter_genes(lazy),
        lambda: ctmm.overall(lazy),
    ):
        with pytest.raises(DataError, match=r"lazily.*pb\.to_memory\(\)"):
            way()
    lazy.file.close()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("kinds", [(np.int64, np.int64), (np.int64, np.int32)])
def test_indices_of_huge_matrices(form, kinds, tmp_path):
    # above 2^31 stored values they have 64 bits; anndata on disk may mix them
    X, obs, genes = cells()
    adata, _ = in_form(form, X, obs, genes, tmp_path)
    adata.X.indptr, adata.X.indices = (
        part.astype(kind)
        for part, kind in zip((adata.X.indptr, adata.X.indices), kinds, strict=True)
    )
    for more in ({}, {"block_size": 3}, {"genes": genes}):
        same(ctmm.pseudobulk(adata, **LOOSE, **more), *plain(X, obs))


def test_parts_of_a_backed_file(tmp_path):
    X, obs, genes = cells()
    adata, _ = in_form("csr", X, obs, genes, tmp_path)
    adata.raw, adata.layers["logs"] = adata.copy(), adata.X.copy()
    adata.write_h5ad(tmp_path / "parts.h5ad")
    backed = ad.read_h5ad(tmp_path / "parts.h5ad", backed="r")
    for options in ({"raw": True}, {"layer": "logs"}):
        same(ctmm.pseudobulk(backed, **options, **LOOSE), *plain(X, obs))
    half = (np.arange(len(obs)) % 2).astype(bool)
    view = backed[half, ["g3", "g1"]]
    same(ctmm.pseudobulk(view, **LOOSE), *plain(X[half][:, [3, 1]], obs[half]))
    backed.file.close()


@pytest.mark.parametrize("kind", [np.float16, ">f4", ">f8"])
def test_floats_of_other_kinds(kind):
    X, obs, genes = cells()
    X = X.astype(kind)
    same(ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE), *plain(X, obs))


def test_arrays_that_may_not_be_written():
    X, obs, genes = cells()
    csr = sparse.csr_matrix(X)
    for part in (X, csr.data, csr.indices, csr.indptr):
        part.flags.writeable = False
    for data in (X, csr):
        for more in ({}, {"block_size": 7}):
            same(ctmm.pseudobulk(adata_of(data, obs, genes), **LOOSE, **more), *plain(X, obs))


@no_logarithms
@pytest.mark.parametrize("case", ["normalize", "genes", "csc normalize", "unsorted", "plain"])
def test_cells_in_memory_are_not_copied(case, monkeypatch):
    # counted in blocks: the bound is a few of them, a copy of the matrix would be ten
    block = 2**18
    monkeypatch.setattr("ctmm_formula.cells.source.BLOCK", block)
    rng = np.random.default_rng(8)
    X = sparse.random(6000, 400, density=0.1, format="csr", rng=rng)
    X.data = np.ceil(30 * X.data)
    options = {}
    if case == "genes":
        options["genes"] = [f"g{k}" for k in range(399)]
    if case.endswith("normalize"):
        options["normalize"] = "log_cp10k"
    else:
        X.data += 0.5
    if case == "unsorted":
        rows = zip(X.indptr[:-1], X.indptr[1:], strict=True)
        X.indices = np.concatenate([X.indices[a:b][::-1] for a, b in rows])
        X = sparse.csr_matrix((X.data, X.indices, X.indptr), shape=X.shape)
    if case.startswith("csc"):
        X = X.tocsc()
    assert X.data.nbytes + X.indices.nbytes > 10 * block
    obs = pd.DataFrame({"donor": "a", "celltype": "t"}, index=map(str, range(6000)))
    adata = adata_of(X, obs, [f"g{k}" for k in range(400)])
    ctmm.pseudobulk(adata[:50].copy(), **LOOSE, **options)  # compiled
    tracemalloc.start()
    ctmm.pseudobulk(adata, **LOOSE, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    labels_and_result = 2**20
    assert peak < 6 * block + labels_and_result


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint16, bool])
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_whole_numbers_and_truth_values(form, kind, tmp_path):
    X, obs, genes = cells()
    X = (X > 0.5).astype(kind)
    data, options = in_form(form, X, obs, genes, tmp_path)
    same(ctmm.pseudobulk(data, **options, **LOOSE), *plain(X, obs))


@no_logarithms
@pytest.mark.filterwarnings("ignore:cell type .* is observed in one donor")
@pytest.mark.parametrize("use", ["X", "raw"])
def test_as_scanpy_on_its_own_cells(use):
    adata = sc.datasets.pbmc68k_reduced()
    adata.obs["celltype"] = adata.obs["bulk_labels"].astype(str)
    rng = np.random.default_rng(68)
    adata.obs["donor"] = rng.choice([f"d{k}" for k in range(8)], adata.n_obs)
    options = {"raw": True} if use == "raw" else {"negative": "keep"}  # X is scaled
    pb = ctmm.pseudobulk(adata, **options, min_cells=3, min_cells_donor=50)
    if use == "raw":
        adata = adata.raw.to_adata()
    adata.X = adata.X.astype(np.float64)
    names, mean, nu, n = by_scanpy(adata)
    kept = np.flatnonzero(n > 3)
    ours = pb[names[kept]]
    assert (~np.isnan(pb.X)).all(axis=1).sum() == len(kept) > 40
    np.testing.assert_array_equal(ours.obs["n_cells"], n[kept])
    np.testing.assert_allclose(ours.X, mean[kept], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(ours.layers["nu"], nu[kept], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.array])
def test_as_scanpy_on_random_cells(make):
    X, obs, genes = cells(n=3000, genes=50, donors=20, seed=1)
    adata = adata_of(make(X), obs, genes)
    pb = ctmm.pseudobulk(adata, **LOOSE)
    names, mean, nu, n = by_scanpy(adata)
    ours = pb[names]
    np.testing.assert_array_equal(ours.obs["n_cells"], n)
    np.testing.assert_allclose(ours.X, mean, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(ours.layers["nu"], nu, rtol=0, atol=ROUNDING)


@no_logarithms
@pytest.mark.parametrize("block_size", [None, 100])
@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.array])
def test_variance_does_not_cancel(make, block_size):
    rng = np.random.default_rng(2)
    n = 2000
    X = 1e6 + rng.normal(size=(n, 3))
    X[:, 2] *= rng.random(n) < 0.5  # zeros among huge numbers
    obs = pd.DataFrame(
        {"donor": rng.choice(["a", "b"], n), "celltype": "t"}, index=map(str, range(n))
    )
    pb = ctmm.pseudobulk(adata_of(make(X), obs, list("abc")), block_size=block_size)
    for k, d in enumerate("ab"):
        part = X[obs["donor"] == d]
        expected = part.var(axis=0, ddof=1) / len(part)  # numpy's own two passes
        # the values themselves are rounded to 1e-10, their squares would be to 1e-4
        np.testing.assert_allclose(pb.layers["nu"][k], expected, rtol=1e-9)
        assert pb.layers["nu"][k][0] == pytest.approx(1 / len(part), rel=0.2)
        np.testing.assert_allclose(
            pb.layers["nu2"][k], fourth_power(part) / len(part) ** 2, rtol=1e-8
        )


@no_logarithms
def test_variances_do_not_cancel():
    # E[x^2] - E[x]^2 of 1e6 +- 0.01 has no digit left, in scanpy before 1.12
    rng = np.random.default_rng(3)
    X = 1e6 + 0.01 * rng.normal(size=(500, 1))
    obs = pd.DataFrame({"donor": "a", "celltype": "t"}, index=map(str, range(500)))
    adata = adata_of(X, obs, ["g"])
    truth = X.var(ddof=1) / 500
    ours = ctmm.pseudobulk(adata).layers["nu"][0, 0]
    assert ours == pytest.approx(truth, rel=1e-6)
    if tuple(map(int, version("scanpy").split(".")[:2])) < (1, 12):
        assert by_scanpy(adata)[2][0, 0] != pytest.approx(truth, rel=0.1)


def test_stored_duplicates_and_zeros_of_a_sparse_matrix():
    _, obs, genes = cells(n=30, genes=2, donors=1, celltypes=1)
    row, column = np.arange(30).repeat(2), np.tile([0, 0], 30)
    values = np.tile([0.25, 0.0], 30) + np.arange(60) % 7
    X = sparse.coo_matrix((values, (row, column)), shape=(30, 2))
    twice = sparse.csr_matrix((values, column, np.arange(0, 61, 2)), shape=(30, 2))
    pb = ctmm.pseudobulk(adata_of(twice, obs, genes), **LOOSE)
    same(pb, *plain(X.toarray(), obs))
    assert twice.nnz == 60  # the user's matrix is left as it was


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.array])
@pytest.mark.parametrize("block_size", [None, 20])
def test_cells_that_are_all_alike_have_no_noise(make, block_size):
    # 0.1 is no binary number: its mean is off by a rounding, which would be noise of 1e-35
    _, obs, genes = cells()
    X = np.full((len(obs), len(genes)), 0.1)
    X[:, 1] = np.where(np.arange(len(obs)) % 2, 0.1, np.nextafter(0.1, 1) + 1e-12)
    pb = ctmm.pseudobulk(adata_of(make(X), obs, genes), **LOOSE, block_size=block_size)
    assert (pb.layers["nu"][:, [0, *range(2, 7)]] == 0).all()
    np.testing.assert_allclose(pb.layers["nu"][:, 1], plain(X, obs)[1][:, 1], rtol=1e-3)
    varied = pb.copy()
    varied.X[:, 1] = np.arange(pb.n_obs)
    assert list(ctmm.filter_genes(varied).var_names) == ["g1"]


def test_moments_join_in_any_division():
    rng = np.random.default_rng(4)
    X, codes = rng.normal(5.0, size=(200, 4)), rng.integers(-1, 3, 200)
    whole, parts = Moments(3, 4, -np.inf), Moments(3, 4, -np.inf)
    whole.add_cells(X, codes)
    for at in np.array_split(np.arange(200), [1, 2, 90, 90]):
        parts.add_cells(X[at], codes[at])
    np.testing.assert_array_equal(parts.count, whole.count)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=ROUNDING)
    for name in ("m2", "m3", "m4"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(whole, name), rtol=ROUNDING, atol=1e-10
        )
    for k in range(3):
        d = X[codes == k] - X[codes == k].mean(axis=0)
        for power in (2, 3, 4):
            expected = (d**power).sum(axis=0)
            np.testing.assert_allclose(getattr(whole, f"m{power}")[k], expected, atol=1e-10)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 60), form=st.sampled_from(["csr", "dense"]))
def test_order_and_names_of_cells_and_donors_do_not_matter(seed, size, form):
    X, obs, genes = cells(n=150, genes=4, donors=4, seed=seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(X))
    new = dict(
        zip([f"d{k}" for k in range(4)], rng.permutation([f"x{k}" for k in range(4)]), strict=True)
    )
    moved = obs.iloc[order].assign(donor=lambda f: f["donor"].map(new))
    moved.index = [f"other{k}" for k in range(len(X))]
    make = sparse.csr_matrix if form == "csr" else np.array
    one = ctmm.pseudobulk(adata_of(make(X), obs, genes), **LOOSE)
    two = ctmm.pseudobulk(adata_of(make(X[order]), moved, genes), **LOOSE, block_size=size)
    match = two[
        [f"{new[d]}|{t}" for d, t in zip(one.obs["donor"], one.obs["celltype"], strict=True)]
    ]
    np.testing.assert_allclose(match.X, one.X, rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(match.layers["nu"], one.layers["nu"], rtol=ROUNDING, atol=ROUNDING)
    assert match.obs["n_cells"].tolist() == one.obs["n_cells"].tolist()
    assert match.obs["sex"].tolist() == one.obs["sex"].tolist()


# ---------------------------------------------------------------------------------------------
# the square of the noise variance


def one_type(X, per_donor):
    """Every `per_donor` cells a donor of their own."""
    obs = pd.DataFrame({"donor": np.arange(len(X)) // per_donor, "celltype": "t"})
    return ctmm.pseudobulk(pd.DataFrame(X).add_prefix("g"), obs=obs, **LOOSE)


@pytest.mark.parametrize("n", [4, 5, 9])
def test_square_of_noise_is_the_mean_over_all_choices_of_two_pairs_of_cells(n):
    X = np.random.default_rng(n).gamma(0.3, size=(n, 3)) + 0.01
    kernel = [
        (X[a] - X[b]) ** 2 * (X[c] - X[d]) ** 2 / 4 for a, b, c, d in permutations(range(n), 4)
    ]
    pb = one_type(X, n)
    np.testing.assert_allclose(pb.layers["nu2"][0], np.mean(kernel, axis=0) / n**2, rtol=1e-10)


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("kind", ["counts", "gamma"])
def test_square_of_noise_is_right_on_average(kind, n):
    """Where the square of nu is far too large."""
    rng = np.random.default_rng(n)
    size = (20_000 * n, 1)
    if kind == "counts":  # negative binomial, mean .2, variance .2 + 1.5 * .2^2
        X, variance = rng.poisson(0.2 * rng.gamma(1 / 1.5, 1.5, size)) / 2, 0.26 / 4
    else:
        X, variance = rng.gamma(0.25, size=size), 0.25
    pb = one_type(X, n)
    truth = (variance / n) ** 2
    for values, right in ((pb.layers["nu2"], True), (pb.layers["nu"] ** 2, False)):
        error = values.mean() - truth
        assert (abs(error) < 3 * values.std() / np.sqrt(len(values))) == right
    assert (pb.layers["nu"] ** 2).mean() > 1.5 * truth


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.array])
def test_square_of_noise_of_pairs_with_little_in_them(make):
    X = np.zeros((20, 4))
    X[3, 1] = X[13, 1] = 0.7  # one cell unlike the others: no two pairs of cells differ
    X[[3, 4, 13, 14], 2] = [0.1, 3.3, 0.1, 3.3]
    X[:, 3] = 0.1
    obs = pd.DataFrame(
        {"donor": ["a"] * 10 + ["b"] * 10, "celltype": "t"}, index=map(str, range(20))
    )
    for size in (None, 4):
        pb = ctmm.pseudobulk(adata_of(make(X), obs, list("wxyz")), **LOOSE, block_size=size)
        assert (pb.layers["nu2"][:, [0, 1, 3]] == 0).all()
        np.testing.assert_allclose(
            pb.layers["nu2"][:, 2], fourth_power(X[:10])[2] / 100, rtol=1e-10
        )


def test_pairs_of_two_or_three_cells_have_no_square_of_noise():
    pb = ctmm.pseudobulk(sized({("a", f"t{n}"): n for n in (2, 3, 4)}), **LOOSE)
    assert np.isnan(pb.layers["nu2"][:, 0]).tolist() == [True, True, False]
    assert not np.isnan(pb.layers["nu"]).any()


# ---------------------------------------------------------------------------------------------
# layout


def sized(sizes, **columns):
    """Cells with given numbers {(donor, celltype): n}, one gene."""
    rng = np.random.default_rng(5)
    pairs = [pair for pair, n in sizes.items() for _ in range(n)]
    obs = pd.DataFrame(pairs, columns=["donor", "celltype"]).assign(**columns)
    obs.index = [f"c{k}" for k in range(len(obs))]
    return adata_of(rng.gamma(2.0, size=(len(obs), 1)), obs, ["g"])


def test_grid_is_full_and_in_donor_order():
    pb = ctmm.pseudobulk(sized({("b", "T"): 200, ("b", "B"): 11, ("a", "T"): 101}))
    assert pb.obs_names.tolist() == ["a|B", "a|T", "b|B", "b|T"]
    assert pb.obs["n_cells"].tolist() == [0, 101, 11, 200]
    assert pb.obs["proportion"].tolist() == [0, 1, 11 / 211, 200 / 211]
    assert np.isnan(pb.X[:, 0]).tolist() == [True, False, False, False]
    assert np.isnan(pb.layers["nu"][:, 0]).tolist() == [True, False, False, False]
    assert pb.uns["ctmm"]["format"] == 1
    assert pb.uns["ctmm"]["kind"] == "ctp"


def test_filters_want_strictly_more():
    sizes = {("at", "T"): 100, ("above", "T"): 90, ("above", "B"): 11, ("other", "T"): 101,
             ("other", "B"): 10}  # fmt: skip
    pb = ctmm.pseudobulk(sized(sizes))
    filters = pb.uns["ctmm"]["filters"]
    assert list(pb.obs["donor"].cat.categories) == ["above", "other"]
    assert filters["donors_left_out"].tolist() == ["at"]
    assert pb.obs_names[np.isnan(pb.X[:, 0])].tolist() == ["other|B"]
    assert pb.obs.loc["other|B", "n_cells"] == 10
    assert pb.obs.loc["other|B", "proportion"] == 10 / 111
    parts = ["cells_without_label", "cells_of_other_experiments", "cells_of_donors_left_out",
             "cells_of_celltypes_left_out", "cells_of_missing_pairs", "cells_used"]  # fmt: skip
    assert [filters[part] for part in parts] == [0, 0, 100, 0, 10, 202]
    assert sum(filters[part] for part in parts) == filters["cells"]
    assert pb.uns["ctmm"]["notes"].tolist() == [
        "1 of 3 donors are left out, they have at most 100 cells: 'at'",
        "1 of 4 pairs of donor and cell type are missing, they have at most 10 cells",
        "cell type 'B' is observed in one donor, 'above': it has no variance between donors, and "
        "fits with one for each cell type leave it out; so does min_donor_share=",
    ]


def test_one_cell_has_no_variance():
    pb = ctmm.pseudobulk(
        sized({("a", "T"): 1, ("a", "B"): 2, ("b", "T"): 2}), min_cells=0, min_cells_donor=0
    )
    assert np.isnan(pb["a|T"].X).all()
    assert np.isnan(pb["a|T"].layers["nu"]).all()
    assert (pb["a|B"].layers["nu"] > 0).all()


def test_cell_types_in_few_donors_and_shares_of_the_rest():
    sizes = {(f"d{k}", "T"): 60 for k in range(4)} | {(f"d{k}", "B"): 60 for k in range(4)}
    sizes |= {("d0", "rare"): 50, ("d1", "rare"): 50, ("d2", "none"): 5}
    pb = ctmm.pseudobulk(sized(sizes), min_donor_share=0.5)
    assert list(pb.obs["celltype"].cat.categories) == ["B", "T"]
    assert (pb.obs["proportion"] == 0.5).all()
    assert pb.uns["ctmm"]["filters"]["celltypes_left_out"].tolist() == ["none", "rare"]
    assert pb.uns["ctmm"]["filters"]["cells_of_celltypes_left_out"] == 105
    # by default only what nobody has
    assert list(ctmm.pseudobulk(sized(sizes)).obs["celltype"].cat.categories) == ["B", "T", "rare"]


def test_donor_with_many_cells_but_no_pair():
    sizes = {("thin", f"t{k}"): 10 for k in range(11)} | {("full", f"t{k}"): 20 for k in range(11)}
    pb = ctmm.pseudobulk(sized(sizes))
    assert list(pb.obs["donor"].cat.categories) == ["full"]
    assert "1 donor is left out, no pair has enough cells: 'thin'" in " ".join(
        pb.uns["ctmm"]["notes"]
    )


def test_order_of_categories_is_kept_and_unused_ones_go():
    adata = sized({(d, t): 60 for d in "ab" for t in ("naive", "memory")})
    adata.obs["celltype"] = pd.Categorical(
        adata.obs["celltype"], categories=["naive", "unseen", "memory"]
    )
    adata.obs["donor"] = pd.Categorical(adata.obs["donor"], categories=["b", "a"])
    pb = ctmm.pseudobulk(adata)
    assert pb.obs_names.tolist() == ["b|naive", "b|memory", "a|naive", "a|memory"]
    assert list(pb.obs["celltype"].cat.categories) == ["naive", "memory"]


def test_numbers_as_labels_sort_as_numbers():
    adata = sized({(d, t): 60 for d in (10, 9) for t in (0, 1)})
    assert ctmm.pseudobulk(adata).obs_names.tolist() == ["9|0", "9|1", "10|0", "10|1"]


def test_covariates_of_donors_cell_types_and_pairs():
    adata = sized({("a", "T"): 60, ("a", "B"): 60, ("b", "T"): 120})
    obs = adata.obs
    obs["age"] = obs["donor"].map({"a": 30, "b": 41})
    obs["sex"] = pd.Categorical(obs["donor"].map({"a": "F", "b": "M"}), categories=["M", "F", "X"])
    obs["lineage"] = obs["celltype"].map({"T": "lymphoid T", "B": "lymphoid B"})
    obs["sort"] = obs["donor"].astype(str) + obs["celltype"].astype(str)
    obs["treated"] = obs["donor"] == "a"
    obs["bmi"] = np.where(np.arange(len(obs)) % 2, obs["age"] / 2.0, np.nan)
    obs["depth"] = np.arange(len(obs)) * 1.0
    obs["n_cells"] = 3
    obs["nothing"] = np.nan
    pb = ctmm.pseudobulk(adata)
    assert pb.obs["age"].tolist() == [30, 30, 41, 41]
    assert pb.obs["age"].dtype == obs["age"].dtype
    assert pb.obs["sex"].tolist() == ["F", "F", "M", "M"]
    assert list(pb.obs["sex"].cat.categories) == ["M", "F"]
    assert pb.obs["treated"].tolist() == [True, True, False, False]
    assert pb.obs["treated"].dtype == bool
    assert pb.obs["bmi"].tolist() == [15.0, 15.0, 20.5, 20.5]
    # b has no B cells: its cell type is known all the same, its sort is not
    assert pb.obs["lineage"].tolist() == ["lymphoid B", "lymphoid T"] * 2
    assert pb.obs["sort"].tolist()[:2] + pb.obs["sort"].tolist()[3:] == ["aB", "aT", "bT"]
    assert pd.isna(pb.obs["sort"].iloc[2])
    assert set(pb.uns["ctmm"]["columns_left_out"]) == {"depth", "n_cells", "nothing"}
    notes = " ".join(pb.uns["ctmm"]["notes"])
    assert "obs column 'depth' is left out: it varies within pairs" in notes
    assert "obs column 'n_cells' is left out: its name is that of a column of the result" in notes


def test_intervals_become_texts(tmp_path):
    X, obs, genes = cells()
    obs["age"] = pd.cut(obs["donor"].str[1:].astype(int), [-1, 2, 9])
    pb = ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE)
    assert list(pb.obs["age"].cat.categories) == ["(-1, 2]", "(2, 9]"]
    assert pb.obs["age"].cat.ordered
    pb.write_h5ad(tmp_path / "pb.h5ad")


def test_columns_that_vary_late_are_found_too(monkeypatch):
    X, obs, genes = cells()
    obs["late"] = 1.0
    obs.iloc[-1, -1] = 2.0
    monkeypatch.setattr("ctmm_formula.cells.covariates.HEAD", 10)
    pb = ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE)
    assert pb.uns["ctmm"]["columns_left_out"].tolist() == ["depth", "late"]
    assert "sex" in pb.obs


def test_types_of_covariates_survive_h5ad(tmp_path):
    X, obs, genes = cells()
    obs = obs.assign(
        age=pd.array([30] * 400, dtype="Int64"), ok=pd.array([True] * 400, dtype="boolean"),
        site=pd.array(["x"] * 400, dtype="string"), day=pd.Timestamp("2020-02-01"),
        boxes=[[1]] * 400,
    )  # fmt: skip
    table = pd.DataFrame(X, index=obs.index, columns=genes)
    pb = ctmm.pseudobulk(table, obs=obs, **LOOSE)
    pb.write_h5ad(tmp_path / "pb.h5ad")
    same_table(ad.read_h5ad(tmp_path / "pb.h5ad").obs, pb.obs)
    kept = pb.obs[["age", "ok", "site", "day"]]
    assert kept.iloc[0].tolist() == [30, True, "x", "2020-02-01"]
    assert "obs column 'boxes' is left out: its values are objects" in pb.uns["ctmm"]["notes"]


def test_covariates_by_name():
    X, obs, genes = cells()
    adata = adata_of(X, obs, genes)
    assert "sex" not in ctmm.pseudobulk(adata, **LOOSE, covariates=[]).obs
    assert "sex" in ctmm.pseudobulk(adata, **LOOSE, covariates=["sex"]).obs
    with pytest.raises(DataError, match=r"'depth', which varies within pairs.*donor 'd0', cell ty"):
        ctmm.pseudobulk(adata, **LOOSE, covariates=["depth"])
    with pytest.raises(
        DataError, match=r"covariates= names 'sx', not a column.*did you mean 'sex'"
    ):
        ctmm.pseudobulk(adata, **LOOSE, covariates=["sx"])
    adata.obs["boxes"] = [[1]] * len(obs)
    adata.obs["nothing"] = np.nan
    for name, reason in (("boxes", "its values are objects"), ("nothing", "missing in all cells")):
        with pytest.raises(DataError, match=rf"names '{name}', which cannot be .*{reason}"):
            ctmm.pseudobulk(adata, **LOOSE, covariates=[name, "sex"])


def test_columns_of_one_name_are_left_out_and_said():
    X, obs, genes = cells()
    adata = adata_of(X, pd.concat([obs, obs[["sex"]]], axis=1), genes)
    pb = ctmm.pseudobulk(adata, **LOOSE)
    assert "sex" not in pb.obs
    assert "obs column 'sex' is left out: several columns have this name" in pb.uns["ctmm"]["notes"]
    with pytest.raises(DataError, match="'sex': several columns have this name"):
        ctmm.pseudobulk(adata, **LOOSE, covariates=["sex"])


def test_nothing_is_lost_without_a_word(caplog):
    X, obs, genes = cells()
    with caplog.at_level(logging.INFO, "ctmm_formula"):
        pb = ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE)
    said = [record.getMessage().removeprefix("pseudobulk: ") for record in caplog.records]
    assert said == pb.uns["ctmm"]["notes"].tolist()
    assert said == ["obs column 'depth' is left out: it varies within pairs"]


def test_survives_h5ad(tmp_path):
    sizes = {("b", "T"): 200, ("b", "B"): 11, ("a", "T"): 101, ("c", "T"): 3}
    adata = sized(sizes)
    adata.obs["sex"] = adata.obs["donor"].map({"a": "F", "b": "M", "c": "F"})
    pb = ctmm.pseudobulk(adata)
    pb.write_h5ad(tmp_path / "pb.h5ad")
    back = ad.read_h5ad(tmp_path / "pb.h5ad")
    same_table(back.obs, pb.obs)
    np.testing.assert_array_equal(back.X, pb.X)
    np.testing.assert_array_equal(back.layers["nu"], pb.layers["nu"])
    np.testing.assert_equal(back.uns["ctmm"], pb.uns["ctmm"])
    # again, and every later step reads it
    back.write_h5ad(tmp_path / "again.h5ad")
    same_table(
        ctmm.overall(ad.read_h5ad(tmp_path / "again.h5ad")).to_df(), ctmm.overall(pb).to_df()
    )


@pytest.mark.slow
def test_survives_zarr(pb, tmp_path):
    steps = ctmm.principal_components(ctmm.standardize(pb), 2)
    for k, data in enumerate((steps, ctmm.overall(steps))):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Writing zarr v2 data", UserWarning)
            data.write_zarr(tmp_path / f"{k}.zarr")
        back = ad.read_zarr(tmp_path / f"{k}.zarr")
        same_table(back.obs, data.obs)
        np.testing.assert_equal(back.uns["ctmm"], data.uns["ctmm"])
        one, two = (ctmm.fit("g25 ~ C(celltype)" if k == 0 else "g25 ~ 1", data=d, structure="hom")
                    for d in (data, back))  # fmt: skip
        np.testing.assert_array_equal(one.params, two.params)


@pytest.mark.slow
def test_genes_can_be_chosen_in_any_form(tmp_path):
    X, obs, genes = cells()
    whole = ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE)
    for form in ("csr", "csc", "dense", "h5ad", "backed csc", "table"):
        data, options = in_form(form, X, obs, genes, tmp_path)
        pb = ctmm.pseudobulk(data, **options, **LOOSE, genes=["g5", "g0"], block_size=3)
        assert list(pb.var_names) == ["g5", "g0"]
        np.testing.assert_allclose(pb.X, whole[:, ["g5", "g0"]].X, rtol=ROUNDING, atol=ROUNDING)


def test_one_table_with_labels_and_genes():
    X, obs, genes = cells()
    table = pd.concat([obs, pd.DataFrame(X, index=obs.index, columns=genes)], axis=1)
    pb = ctmm.pseudobulk(table, genes=genes, **LOOSE)
    same(pb, *plain(X, obs))
    assert "sex" in pb.obs
    with pytest.raises(DataError, match=r"which columns are genes"):
        ctmm.pseudobulk(table, **LOOSE)


def test_columns_whose_names_are_numbers():
    X, obs, _ = cells()
    table = pd.DataFrame(X, index=obs.index)
    same(ctmm.pseudobulk(pd.concat([obs, table], axis=1), genes=range(7), **LOOSE), *plain(X, obs))
    assert list(ctmm.pseudobulk(table, obs=obs, genes=[5, 0], **LOOSE).var_names) == ["5", "0"]


def test_sparse_tables_whose_gaps_are_no_zeros():
    X, obs, genes = cells()
    table = pd.DataFrame(np.where(X == 0, np.nan, X), index=obs.index, columns=genes)
    table = table.astype(pd.SparseDtype(float, np.nan))
    with pytest.raises(DataError, match=r"expression is nan in cell 'cell\d+'"):
        ctmm.pseudobulk(table, obs=obs, **LOOSE)


def test_table_and_obs_meet_by_cell():
    X, obs, genes = cells()
    table = pd.DataFrame(X, index=obs.index, columns=genes)
    same(ctmm.pseudobulk(table, obs=obs.iloc[::-1], **LOOSE), *plain(X, obs))
    same(ctmm.pseudobulk(table, obs=pd.concat([obs, obs.set_index(obs.index + "x")]), **LOOSE),
         *plain(X, obs))  # fmt: skip
    with pytest.raises(DataError, match=r"obs has no row for cells 'cell0'"):
        ctmm.pseudobulk(table, obs=obs.iloc[1:], **LOOSE)
    with pytest.raises(DataError, match=r"cells have the same name in obs, 'cell3'"):
        ctmm.pseudobulk(table, obs=obs.rename(index={"cell4": "cell3"}), **LOOSE)


# ---------------------------------------------------------------------------------------------
# normalisation


def counts(seed=6, n=300, genes=6):
    X, obs, names = cells(n=n, genes=genes, seed=seed)
    rng = np.random.default_rng(seed)
    return rng.poisson(3.0 * X * rng.lognormal(size=(n, 1))).astype(float), obs, names


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "h5ad", "backed csc", "table"])
@pytest.mark.parametrize("method", ["log_cp10k", "log2_cpm"])
def test_counts_are_normalised_by_all_genes_of_the_cell(form, method, tmp_path):
    X, obs, genes = counts()
    X[7] = 0
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(X / X.sum(axis=1, keepdims=True))
    expected = np.log1p(1e4 * share) if method == "log_cp10k" else np.log2(1e6 * share + 1)
    data, options = in_form(form, X, obs, genes, tmp_path)
    pb = ctmm.pseudobulk(data, **options, **LOOSE, normalize=method, block_size=50)
    same(pb, *plain(expected, obs))
    assert any("have no counts" in note for note in pb.uns["ctmm"]["notes"])
    part = ctmm.pseudobulk(data, **options, **LOOSE, normalize=method, genes=["g2"])
    np.testing.assert_allclose(part.X, pb[:, "g2"].X, rtol=ROUNDING)


@pytest.mark.parametrize("form", ["memory", "file"])
def test_counts_of_a_selection_of_genes_are_pointed_out(form, tmp_path):
    X, obs, genes = counts()
    adata = adata_of(sparse.csr_matrix(X), obs, genes)
    adata.raw = adata.copy()
    whole = adata
    part = adata[:, :4].copy()
    for data, known in ((whole, True), (part, False)):
        if form == "file":
            data.write_h5ad(tmp_path / "cells.h5ad")
            data = tmp_path / "cells.h5ad"
        if known:
            ctmm.pseudobulk(data, **LOOSE, normalize="log_cp10k")
            ctmm.pseudobulk(data, **LOOSE, normalize="log_cp10k", raw=True, genes=["g1"])
            continue
        message = r"by their counts in 4 genes, but raw has 6: normalise before.*of raw"
        with pytest.warns(CTMMWarning, match=message) as caught:
            pb = ctmm.pseudobulk(data, **LOOSE, normalize="log_cp10k")
        assert caught[0].filename == __file__
        assert any("but raw has 6" in note for note in pb.uns["ctmm"]["notes"])


def test_normalised_as_scanpy_does():
    X, obs, genes = counts()
    X[:, 0] += 1  # scanpy warns of cells without counts
    adata = adata_of(sparse.csr_matrix(X), obs, genes)
    pb = ctmm.pseudobulk(adata, **LOOSE, normalize="log_cp10k")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    same(pb, *plain(adata.X.toarray(), obs))


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_logarithms_are_not_normalised_again(form, tmp_path):
    X, obs, genes = counts()
    data, options = in_form(form, np.log1p(X), obs, genes, tmp_path)
    with pytest.raises(DataError, match=r"look like logarithms already \(not whole, the largest"):
        ctmm.pseudobulk(data, **options, **LOOSE, normalize="log_cp10k")


def test_estimated_counts_with_fractions_are_counts():
    X, obs, genes = counts()
    X *= 20.5
    ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE, normalize="log_cp10k")


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "table"])
def test_counts_without_normalisation_are_pointed_out(form, tmp_path):
    X, obs, genes = counts()
    data, options = in_form(form, X, obs, genes, tmp_path)
    with pytest.warns(
        CTMMWarning, match=r"all values are whole numbers .*normalize='log_cp10k'"
    ) as caught:
        pb = ctmm.pseudobulk(data, **options, **LOOSE)
    assert caught[0].filename == __file__
    assert "raw counts?" in pb.uns["ctmm"]["notes"][-1]


@pytest.mark.parametrize("form", ["csr", "csc", "dense", "table"])
def test_scaled_counts_without_logarithms_are_pointed_out(form, tmp_path):
    """CP10K without log1p; the fix that the warning names gives what log1p by hand gives."""
    X, obs, genes = counts()
    X[:, 0] += 1
    X = 1e4 * X / X.sum(axis=1, keepdims=True)
    data, options = in_form(form, X, obs, genes, tmp_path)
    with pytest.warns(CTMMWarning, match=r"the largest value is \d+.*too large for a log") as said:
        pb = ctmm.pseudobulk(data, **options, **LOOSE)
    assert len(said) == 1 and said[0].filename == __file__
    assert "normalize='log_cp10k'" in pb.uns["ctmm"]["notes"][-1]
    assert pb.var["level_ratio"].isna().all()
    fixed = ctmm.pseudobulk(data, **options, **LOOSE, normalize="log_cp10k")
    right = ctmm.pseudobulk(adata_of(np.log1p(X), obs, genes), **LOOSE)  # says nothing
    np.testing.assert_allclose(fixed.X, right.X, rtol=1e-9)


def test_a_view_of_genes_has_no_totals():
    """Scaling by the counts in three of 200 genes; genes= scales by all."""
    rng = np.random.default_rng(0)
    genes = [f"g{k}" for k in range(200)]
    obs = pd.DataFrame({"donor": np.repeat(list("abcdef"), 50), "celltype": ["B", "T"] * 150})
    obs.index = obs.index.astype(str)
    adata = adata_of(rng.poisson(3.0, (300, 200)).astype(float), obs, genes)
    options = {**LOOSE, "normalize": "log_cp10k"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = ctmm.pseudobulk(adata, genes=genes[:3], **options)
        ctmm.pseudobulk(adata[obs["donor"] != "a"], **options)  # a view of cells has their totals
    message = (
        r"by their counts in 3 genes, but the AnnData that it is a view of has 200: norm.*genes="
    )
    with pytest.warns(CTMMWarning, match=message) as said:
        pb = ctmm.pseudobulk(adata[:, genes[:3]], **options)
    assert len(said) == 1 and said[0].filename == __file__
    assert (pb.X > right.X + 1).all()
    few = r"in 3 genes, \d+ in half of the cells or less: is this a selection\?"
    with pytest.warns(CTMMWarning, match=few):
        pb = ctmm.pseudobulk(adata[:, genes[:3]].copy(), **options)
    assert any("is this a selection?" in note for note in pb.uns["ctmm"]["notes"])


# ---------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize("empty", [None, np.nan, "", " ", "nan", "None", "<NA>"])
@pytest.mark.parametrize("column", ["donor", "celltype"])
def test_cells_without_label_are_left_out_and_counted(column, empty):
    X, obs, genes = cells()
    obs.iloc[:30, obs.columns.get_loc(column)] = empty
    expected = plain(X[30:], obs.iloc[30:])
    for labels in (obs, obs.astype({column: "category"})):
        pb = ctmm.pseudobulk(adata_of(X, labels, genes), **LOOSE)
        same(pb, *expected)
        assert pb.uns["ctmm"]["filters"]["cells_without_label"] == 30
        note = f"30 of 400 cells are left out, they have no label in column '{column}'"
        assert note in pb.uns["ctmm"]["notes"]


def test_bad_values_of_cells_left_out_do_no_harm():
    X, obs, genes = cells()
    X[:30] = np.nan
    obs.iloc[:30, 0] = None
    same(ctmm.pseudobulk(adata_of(X, obs, genes), **LOOSE), *plain(X[30:], obs.iloc[30:]))


@pytest.mark.parametrize("value", [-0.5, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "h5ad", "table"])
def test_values_that_no_expression_has(form, value, tmp_path):
    X, obs, genes = cells()
    X[123, 4] = value
    data, options = in_form(form, X, obs, genes, tmp_path)
    what = r"negative, -0\.5" if np.isfinite(value) else str(value)
    for more in ({}, {"block_size": 5}, {"genes": ["g4", "g1"]}):
        with pytest.raises(DataError, match=rf"{what} in cell 'cell123', gene 'g4'"):
            ctmm.pseudobulk(data, **options, **LOOSE, **more)
    X = np.floor(20 * X)
    data, options = in_form(form, X, obs, genes, tmp_path)
    with pytest.raises(DataError, match=r"in cell 'cell123', gene 'g4'"):
        ctmm.pseudobulk(data, **options, **LOOSE, normalize="log_cp10k")


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_negative_values_can_be_kept(form, tmp_path):
    X, obs, genes = cells()
    data, options = in_form(form, X - 0.5 * (X > 0), obs, genes, tmp_path)
    pb = ctmm.pseudobulk(data, **options, **LOOSE, negative="keep")
    same(pb, *plain(X - 0.5 * (X > 0), obs))
    data, options = in_form(form, np.where(np.equal(X, X.max()), np.nan, X), obs, genes, tmp_path)
    with pytest.raises(DataError, match="expression is nan"):
        ctmm.pseudobulk(data, **options, **LOOSE, negative="keep")


def test_a_gene_zero_everywhere():
    X, obs, genes = cells()
    X[:, 2] = 0
    pb = ctmm.pseudobulk(adata_of(sparse.csr_matrix(X), obs, genes), **LOOSE)
    assert (pb[:, "g2"].X == 0).all()
    assert (pb[:, "g2"].layers["nu"] == 0).all()
    assert "g2" not in ctmm.filter_genes(pb).var_names
    with pytest.raises(DataError, match=r"the response 'g2' is constant \(0.0\)"):
        ctmm.fit("g2 ~ C(celltype)", data=pb)


def test_names_of_cells_may_be_double_names_of_genes_not():
    X, obs, genes = cells()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own remark
        twice = adata_of(X, obs.set_axis(["c"] * len(obs)), genes)
        same(ctmm.pseudobulk(twice, **LOOSE), *plain(X, obs))
        bad = adata_of(X, obs, ["g0", "g0", *genes[2:]])
    with pytest.raises(DataError, match=r"genes have the same name, 'g0'.*var_names_make_unique"):
        ctmm.pseudobulk(bad, **LOOSE)


def test_nothing_left_says_which_filter_took_what():
    adata = sized({("a", "T"): 9, ("a", "B"): 100, ("b", "T"): 30})
    adata.obs["donor"] = adata.obs["donor"].astype(object)
    adata.obs.iloc[:5, 0] = None
    with pytest.raises(DataError) as caught:
        ctmm.pseudobulk(adata, min_cells=200)
    assert str(caught.value) == (
        "no pair of donor and cell type is left of 139 cells: 5 have no label in 'donor'; 1 of 2 "
        "donors have at most min_cells_donor=100 cells (the largest has 104); 2 of the 2 pairs of "
        "the other donors have at most min_cells=200 cells (the largest has 100)"
    )
    with pytest.raises(DataError, match=r"left of 139 cells: 139 have no label in 'donor'$"):
        adata.obs["donor"] = None
        ctmm.pseudobulk(adata)


def test_donors_in_several_experiments():
    adata = sized({("a", "T"): 300, ("b", "T"): 200, ("c", "T"): 150})
    run = np.array(["r1"] * 650, dtype=object)
    run[100:300] = "r2"  # a: 100 in r1, 200 in r2
    run[400:500] = "r2"  # b: 100 in each: the first
    run[500:510] = None
    adata.obs["run"] = run
    with pytest.warns(CTMMWarning, match="keeps 'r1' of 2 donors, 'r2' of 1 donors"):
        pb = ctmm.pseudobulk(adata, experiment="run")
    filters = pb.uns["ctmm"]["filters"]
    assert filters["cells_of_other_experiments"] == 200
    assert filters["cells_without_label"] == 10
    assert filters["donors_left_out"].tolist() == ["b"]  # 100 cells are not more than 100
    assert pb.obs["run"].tolist() == ["r2", "r1"]
    assert pb.obs["n_cells"].tolist() == [200, 140]
    with pytest.raises(
        DataError, match=r"2 donors are in several experiments, 'a', 'b': 'a' in 'r1'"
    ):
        ctmm.pseudobulk(adata, experiment="run", replicate="error")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"donor": "doner"}, r"obs has no column 'doner' \(donor\); did you mean.*by donor="),
        ({"celltype": "donor"}, r"donor= and celltype= name the same column, 'donor'"),
        ({"celltype": ["celltype"]}, r"celltype= must be the name of a column"),
        ({"layer": "counts"}, r"the AnnData has no layer 'counts'; did you mean 'count'"),
        ({"raw": True}, r"the AnnData has no raw"),
        ({"raw": True, "layer": "count"}, r"name two matrices"),
        ({"genes": ["g9"]}, r"genes= names 'g9', not in the data; did you mean"),
        ({"genes": []}, r"genes= is empty"),
        ({"normalize": "cpm"}, r"unknown normalize 'cpm': choose from log_cp10k, log2_cpm"),
        ({"min_cells": -1}, r"min_cells= must be a whole number of at least 0, got -1"),
        ({"min_cells_donor": 2.5}, r"min_cells_donor= must be a whole number"),
        ({"min_donor_share": 1.0}, r"min_donor_share= must be a share"),
        ({"block_size": 0}, r"block_size= must be a whole number of at least 1"),
        ({"replicate": "mean"}, r"unknown replicate"),
        ({"negative": "drop"}, r"unknown negative"),
        ({"obs": pd.DataFrame({"donor": [1]})}, r"obs= is for tables"),
    ],
)
def test_wrong_arguments(wrong, message):
    X, obs, genes = cells()
    adata = adata_of(X, obs, genes, layers={"count": X})
    with pytest.raises(CTMMError, match=message):
        ctmm.pseudobulk(adata, **{**LOOSE, **wrong})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda X: X.astype(complex), "holds complex128 values"),
        (lambda X: X[:0], "the data have 0 cells"),
    ],
)
def test_matrices_that_hold_no_expression(make, message):
    X, obs, genes = cells()
    X = make(X)
    with pytest.raises(DataError, match=message):
        ctmm.pseudobulk(adata_of(X, obs.iloc[: len(X)], genes), **LOOSE)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.h5ad"):
        ctmm.pseudobulk(tmp_path / "nowhere.h5ad")
    (tmp_path / "text.h5ad").write_text("cells")
    with pytest.raises(DataError, match=r"is no h5ad file.*read other formats into an AnnData"):
        ctmm.pseudobulk(tmp_path / "text.h5ad")
    with pytest.raises(DataError, match=r"is no zarr file"):
        ctmm.pseudobulk(tmp_path)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["X"] = np.ones((3, 3))
    with pytest.raises(DataError, match=r"other\.h5' has no obs; it holds no AnnData"):
        ctmm.pseudobulk(tmp_path / "other.h5")
    path, _ = in_form("h5ad", *cells(), tmp_path)
    with pytest.raises(DataError, match=r"has no layers/counts"):
        ctmm.pseudobulk(path, layer="counts")
    ad.read_h5ad(path, backed="r+").file.close()  # nobody holds it open


def test_masked_values_are_no_expression():
    X, obs, genes = cells()
    masked = np.ma.masked_array(X, mask=np.arange(X.size).reshape(X.shape) == 123 * 7 + 4)
    with pytest.raises(DataError, match=r"expression is nan in cell 'cell123', gene 'g4'"):
        ctmm.pseudobulk(adata_of(masked, obs, genes), **LOOSE)


def test_path_from_home(tmp_path, monkeypatch):
    X, obs, genes = cells()
    in_form("h5ad", X, obs, genes, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    same(ctmm.pseudobulk("~/cells.h5ad", **LOOSE), *plain(X, obs))


def test_labels_that_would_read_the_same():
    adata = sized({("a|b", "c"): 60, ("a", "b|c"): 60, ("a|b", "b|c"): 60, ("a", "c"): 60})
    with pytest.raises(DataError, match=r"labels with '\|'"):
        ctmm.pseudobulk(adata)


# ---------------------------------------------------------------------------------------------
# to tables, to a fit


@pytest.fixture(scope="module")
def pb():
    """Forty donors, three cell types, one of them scarce; 30 genes of log-normalised counts."""
    rng = np.random.default_rng(7)
    donors, types = 40, ["B", "NK", "T"]
    donor = np.repeat(np.arange(donors), rng.integers(110, 200, donors))
    celltype = rng.choice(types, len(donor), p=[0.4, 0.12, 0.48])
    level = (
        rng.normal(0.0, 0.3, (donors, 30))[donor]
        + rng.normal(0, 0.5, (3, 30))[pd.Categorical(celltype).codes]
    )
    X = np.log1p(rng.poisson(np.exp(level + np.linspace(-3, 1, 30))))
    obs = pd.DataFrame(
        {"donor": [f"d{k:02d}" for k in donor], "celltype": celltype,
         "sex": np.where(donor % 2, "M", "F"), "batch": [f"b{k % 7}" for k in donor]},
        index=[f"c{k}" for k in range(len(donor))],
    )  # fmt: skip
    genes = [f"g{k}" for k in range(29)] + ["HLA-A"]
    return ctmm.pseudobulk(adata_of(sparse.csr_matrix(X), obs, genes))


def test_fit_takes_pseudobulk_itself(pb):
    assert np.isnan(pb.X).any()
    one = ctmm.fit("g25 ~ C(celltype) + sex", random="batch", data=pb)
    two = ctmm.fit("g25 ~ C(celltype) + sex", random="batch", data=ctmm.to_long(pb, "g25"))
    three = ctmm.fit("expr ~ C(celltype) + sex", random="batch",
                     data=ctmm.to_frame(pb).query("gene == 'g25'"))  # fmt: skip
    for other in (two, three):
        np.testing.assert_array_equal(one.params, other.params)
    assert one.n_donors == 40
    assert one.nobs == int((~np.isnan(pb.X[:, 0])).sum()) < pb.n_obs
    assert not any("alike" in note for note in one.notes)


def test_fit_takes_overall_pseudobulk_and_finds_the_proportions(pb):
    op = ctmm.overall(pb)
    one = ctmm.fit("g25 ~ sex", data=op, structure="hom")
    assert list(one.celltypes) == ["B", "NK", "T"]
    table = ctmm.to_long(op, "g25")
    columns = ["prop_B", "prop_NK", "prop_T"]
    two = ctmm.fit("g25 ~ sex", data=table, proportions=columns, structure="hom")
    three = ctmm.fit("g25 ~ sex", data=op, proportions=op.obsm["proportions"], structure="hom")
    for other in (two, three):
        np.testing.assert_array_equal(one.params, other.params)


def test_genes_with_names_that_are_no_python(pb):
    res = ctmm.fit("Q('HLA-A') ~ C(celltype)", data=pb)
    np.testing.assert_array_equal(
        res.params, ctmm.fit("y ~ C(celltype)", data=ctmm.to_long(pb, "HLA-A", name="y")).params
    )


def test_zero_noise_is_pooled_and_said(pb):
    at = np.flatnonzero(((pb.layers["nu"] == 0).any(axis=0)) & (pb.var_names != "HLA-A"))
    gene = str(pb.var_names[at[-1]])
    zero = pb.layers["nu"][:, at[-1]] == 0
    table = ctmm.to_long(pb, gene, zero_noise="pool")
    n, celltype = pb.obs["n_cells"].to_numpy(), pb.obs["celltype"].to_numpy()
    for k in np.flatnonzero(zero):
        rows = (celltype == celltype[k]) & ~np.isnan(pb.X[:, 0])
        s2 = n[rows] * pb.layers["nu"][rows, at[-1]]
        expected = np.average(s2, weights=n[rows] - 1) / n[k]
        assert table["nu"].iloc[k] == pytest.approx(expected, rel=ROUNDING)
    np.testing.assert_array_equal(table["nu"][~zero], pb.layers["nu"][~zero, at[-1]])
    assert (ctmm.to_long(pb, gene)["nu"] == 0).sum() == zero.sum() > 0
    res = ctmm.fit(f"{gene} ~ C(celltype)", data=pb, structure="hom", method="reml")
    said = amount(zero.sum(), "row has", "rows have")
    assert sum(f"{said} noise variance 0" in note for note in res.notes) == 1
    np.testing.assert_array_equal(res.design.nu[zero[res.design.rows]], 0.0)


def test_squares_of_the_noise_go_with_it(pb):
    """To tables, standardised, and of overall pseudobulk: of a sum of independent noises."""
    pb = pb.copy()
    pb.layers["nu2"] = 1.3 * pb.layers["nu"] ** 2
    table = ctmm.to_long(pb, "g2")
    np.testing.assert_array_equal(table["nu2"], pb[:, "g2"].layers["nu2"][:, 0])
    both = ctmm.to_frame(pb, ["g2", "g5"])
    np.testing.assert_array_equal(both.loc[both["gene"] == "g2", "nu2"], table["nu2"])
    scaled = ctmm.standardize(pb)
    sd = scaled.var["op_sd"].to_numpy()
    np.testing.assert_allclose(scaled.layers["nu2"], pb.layers["nu2"] / sd**4, rtol=ROUNDING)
    op = ctmm.overall(pb)
    rows = pb.obs["donor"] == op.obs_names[0]
    nu, square, P = pb.layers["nu"][rows], pb.layers["nu2"][rows], op.obsm["proportions"].iloc[0]
    expected = 0.0
    for c in np.flatnonzero(P > 0):
        for d in np.flatnonzero(P > 0):
            expected += P.iloc[c] ** 2 * P.iloc[d] ** 2 * (square[c] if c == d else nu[c] * nu[d])
    np.testing.assert_allclose(op.layers["nu2"][0], expected, rtol=1e-9, atol=1e-12)
    assert "nu2" in ctmm.to_long(op, "g2")


def test_filters_show_how_low_genes_are(pb):
    kept = ctmm.filter_genes(pb, min_share=0, celltypes="any")
    there = ~np.isnan(pb[:, kept.var_names].X)
    zero = pb[:, kept.var_names].layers["nu"] == 0
    np.testing.assert_allclose(kept.var["mean"], np.nanmean(kept.X, axis=0), rtol=ROUNDING)
    np.testing.assert_allclose(kept.var["zero_noise"], zero.sum(axis=0) / there.sum(axis=0))
    assert kept.uns["ctmm"]["genes"]["low"] == (kept.var["zero_noise"] > 0.5).sum()


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("nogene ~ C(celltype)", r"the pseudobulk has no gene 'nogene'"),
        ("g1 + g2 ~ C(celltype)", r"the response must be one column"),
        ("I(g1 + g2) ~ C(celltype)", r"the response names 2 genes, 'g1', 'g2'"),
    ],
)
def test_responses_that_are_no_gene(pb, formula, message):
    with pytest.raises(CTMMError, match=message):
        ctmm.fit(formula, data=pb)


def test_cells_are_no_pseudobulk():
    adata = adata_of(*cells())
    message = r"is no pseudobulk.*pb = ctmm\.pseudobulk\(adata, donor=\.\.\., celltype=\.\.\.\)"
    for step in (
        lambda: ctmm.fit("g1 ~ C(celltype)", data=adata),
        lambda: ctmm.to_long(adata, "g1"),
        lambda: ctmm.to_frame(adata),
        lambda: ctmm.overall(adata),
        lambda: ctmm.standardize(adata),
        lambda: ctmm.filter_genes(adata),
        lambda: ctmm.principal_components(adata),
    ):
        with pytest.raises(DataError, match=message):
            step()
    with pytest.raises(DataError, match=r"expected a pseudobulk AnnData.*got DataFrame"):
        ctmm.overall(pd.DataFrame())


def test_pseudobulk_that_lost_its_parts(pb):
    part = pb.copy()
    del part.layers["nu"]
    with pytest.raises(DataError, match=r"has lost layers\['nu'\]"):
        ctmm.to_long(part, "g1")
    part = pb.copy()
    part.uns["ctmm"]["format"] = 2
    with pytest.raises(DataError, match=r"has format 2, this version reads 1"):
        ctmm.to_long(part, "g1")


def test_tables(pb):
    table = ctmm.to_long(pb, "g3", name="expr")
    assert list(table) == [*pb.obs, "expr", "nu", "nu2"]
    np.testing.assert_array_equal(table["expr"], pb[:, "g3"].X[:, 0])
    frame = ctmm.to_frame(pb, ["g3", "g1"])
    assert frame["gene"].unique().tolist() == ["g3", "g1"]
    assert frame["celltype"].dtype == pb.obs["celltype"].dtype
    pd.testing.assert_frame_equal(
        frame.iloc[: len(table)].drop(columns="gene"), table.reset_index(drop=True)
    )
    other = pb.copy()
    other.obs["g3"] = 1.0
    with pytest.raises(
        DataError, match=r"has a column 'g3' in obs already: give the expression an"
    ):
        ctmm.to_long(other, "g3")
    with pytest.raises(DataError, match=r"gene= must be one name, got list: ctmm\.to_frame"):
        ctmm.to_long(pb, ["g3", "g1"])


def test_a_gene_called_nu(pb):
    other = pb.copy()
    other.var_names = ["nu", *pb.var_names[1:]]
    for step in (
        lambda: ctmm.to_long(other, "nu"),
        lambda: ctmm.fit("nu ~ C(celltype)", data=other),
        lambda: ctmm.to_long(other, "g1", name="nu"),
    ):
        with pytest.raises(DataError, match=r"'nu' is a column of noise variances: give .*name="):
            step()
    table = ctmm.to_long(other, "nu", name="y")
    np.testing.assert_array_equal(table["y"], pb.X[:, 0])
    np.testing.assert_array_equal(table["nu"], pb.layers["nu"][:, 0])


def test_without_anndata_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    with pytest.raises(CTMMError, match=r"pip install 'ctmm-formula\[anndata\]'"):
        ctmm.pseudobulk(Path("cells.h5ad"))


def test_the_authors_package_has_the_same_pseudobulk():
    """Where the two agree: pairs of one cell, which it drops in one of two ways, are left out."""
    cells = pd.read_csv(GOLDEN / "pseudobulk_cells.csv", index_col=0)
    theirs = pd.read_csv(GOLDEN / "pseudobulk_ctmm.csv")
    genes = sorted(theirs["gene"].unique())
    pb = ctmm.pseudobulk(
        cells[genes], obs=cells[["donor", "celltype"]], min_cells=5, min_cells_donor=10
    )
    ours = ctmm.to_frame(pb).merge(
        theirs, on=["donor", "celltype", "gene"], how="outer", suffixes=("", "_theirs")
    )
    missing = ours["nu_theirs"].isna()
    assert missing.sum() == ours["expr"].isna().sum() == 5 * int((pb.obs["n_cells"] <= 5).sum()) > 0
    kept = ours[~missing]
    for name, other in [("expr", "mean"), ("nu", "nu_theirs"), ("proportion", "proportion_theirs")]:
        np.testing.assert_allclose(kept[name], kept[other], rtol=1e-12)
    assert (kept["n_cells"] == kept["n_cells_theirs"]).all()


# ---------------------------------------------------------------------------------------------
# donors sampled several times


def pre_post(name="donor"):
    """8 people, sampled before and after a treatment, two cell types."""
    rng = np.random.default_rng(0)
    of_pair = [(f"p{p}", time, t) for p in range(8) for time in ("pre", "post") for t in "BT"]
    obs = pd.DataFrame(
        [row for row in of_pair for _ in range(rng.integers(40, 90))],
        columns=[name, "time", "celltype"],
    )
    obs.index = obs.index.astype(str)
    rate = np.where(obs["time"] == "post", 20, 1)[:, None]
    return adata_of(np.log1p(rng.poisson(rate, (len(obs), 2)).astype(float)), obs, ["g", "h"])


@pytest.mark.parametrize("name", ["donor", "subject"])
def test_a_condition_within_donors_is_named_with_the_way(name):
    adata = pre_post(name)
    message = rf"differ in obs column 'time' \('post', 'pre'\) and are pooled.*obs\[{name!r}\]"
    with pytest.warns(CTMMWarning, match=message) as said:
        pb = ctmm.pseudobulk(adata, donor=name)
    assert len(said) == 1 and said[0].filename == __file__
    assert str(said[0].message) in list(pb.uns["ctmm"]["notes"])
    # the way: what the message says, letter by letter
    text, obs = str(said[0].message), adata.obs
    for line in text.split("own, ")[1].split(", pseudobulk(")[0].split(", "):
        exec(line, {"obs": obs})
    person = "person" if name == "donor" else name
    assert f"donor={person!r}, within='time'" in text
    pb = ctmm.pseudobulk(adata, donor="sample", min_cells_donor=50)  # says nothing
    assert pb.obs["donor"].nunique() == 16
    res = ctmm.fit("g ~ C(celltype) * C(time)", data=pb, donor=person, within="time")
    assert res.n_donors == 8 and list(res.vcomp.index)[3:] == ["hom:time", "V[B]:time", "V[T]:time"]
    wanted = adata.to_df()["g"].groupby(obs["time"]).mean()
    assert res.fe_params["C(time)[T.pre]"] == pytest.approx(wanted["pre"] - wanted["post"], abs=0.1)


def test_experiments_that_mix_conditions_are_named():
    with pytest.warns(CTMMWarning, match=r"experiment='time' keeps 'post' of \d .* 'pre' of \d"):
        pb = ctmm.pseudobulk(pre_post(), experiment="time")
    assert pb.obs["time"].nunique() == 2
    obs = pre_post().obs
    obs["run"] = obs["donor"].astype(str) + obs["time"].astype(str)  # an experiment is no condition
    obs["one"] = np.where(obs["donor"] == "p0", obs["time"], "pre")  # most donors have one
    adata = pre_post()
    adata.obs = obs.drop(columns="time")
    ctmm.pseudobulk(adata, experiment="run")
    ctmm.pseudobulk(adata, experiment="one")


@pytest.mark.parametrize(
    "column",
    [
        lambda o, rng: rng.normal(size=len(o)),  # a measure of quality
        lambda o, rng: rng.integers(0, 40, len(o)).astype(str),  # many levels
        lambda o, rng: o["celltype"] + rng.choice(["1", "2"], len(o)),  # a finer cell type
        lambda o, rng: rng.random(len(o)) < 0.03,  # rare
        lambda o, rng: np.where(o["celltype"].isin(["B1", "B2"]), "b", "t"),  # a lineage
        lambda o, rng: np.where(o["donor"].isin(["p0", "p1"]), rng.choice(["a", "b"], len(o)), "a"),
    ],
)
def test_columns_that_are_no_conditions_are_no_matter(column):
    adata = pre_post()
    adata.obs = adata.obs.drop(columns="time")
    adata.obs["celltype"] += np.where(np.arange(len(adata.obs)) % 2, "1", "2")
    adata.obs["column"] = column(adata.obs, np.random.default_rng(1))
    ctmm.pseudobulk(adata)  # warnings are errors


def test_a_file_of_old_anndata_is_refused_with_the_way(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "old.h5ad"
    with h5py.File(path, "w") as file:  # as anndata 0.6 wrote it
        file["X"] = np.ones((2, 1))
        file["obs"] = np.array([(b"c0", 0), (b"c1", 0)], dtype=[("index", "S2"), ("donor", "i1")])
        file["var"] = np.array([(b"g0",)], dtype=[("index", "S2")])
    with pytest.raises(DataError, match=r"before 0\.7: write it anew, anndata\.read_h5ad\('.*old"):
        ctmm.pseudobulk(path)


def test_a_cell_type_in_one_donor_is_told():
    adata = sized({("a", "T"): 300, ("b", "T"): 200, ("b", "B"): 150})
    pb = ctmm.pseudobulk(adata)
    said = [note for note in pb.uns["ctmm"]["notes"] if "observed in one donor" in note]
    assert len(said) == 1 and said[0].startswith("cell type 'B' is observed in one donor, 'b'")
    assert "min_donor_share=" in said[0]
    pb = ctmm.pseudobulk(adata, min_donor_share=0.5)
    assert not any("in one donor" in note for note in pb.uns["ctmm"]["notes"])
    more = {("a", "T"): 300, ("b", "T"): 200, ("c", "T"): 200, ("b", "B"): 150}
    with pytest.warns(ctmm.CTMMWarning, match="cell type 'B' is observed in one donor, 'b'"):
        pb = ctmm.pseudobulk(sized(more))
    assert sum("in one donor" in note for note in pb.uns["ctmm"]["notes"]) == 1
