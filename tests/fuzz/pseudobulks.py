"""AnnData: cells that are aggregated, and pseudobulk that is prepared, fitted and written.

CELLS is what is done to cells, PSEUDOBULK to an AnnData of pseudobulk, STEPS is what is asked of
it.
Means and numbers of cells are compared with those that plain numpy finds in the same cells.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import ctmm_formula as ctmm

from .harness import Try
from .tables import VALUES, pick, wrong_fit, wrong_scan, wrong_test

Rng = np.random.Generator
GENES = ["A", "B-1", "C", "MT-D", "E"]


def cells(rng: Rng) -> anndata.AnnData:
    """Some hundred cells of ten donors and three cell types, logarithms of counts."""
    n, donors = 600, 10
    donor = rng.integers(0, donors, n)
    kind = rng.integers(0, 3, n)
    obs = pd.DataFrame(
        {
            "donor": [f"d{k}" for k in donor],
            "celltype": np.array(["B", "NK", "T"])[kind],
            "sex": np.where(donor % 2, "F", "M"),
            "batch": [f"b{k % 3}" for k in donor],
            "age": 20 + 3 * donor,
            "run": [f"r{k}" for k in rng.integers(0, 2, n)],
        },
        index=[f"cell{k}" for k in range(n)],
    )
    mean = 0.5 + kind[:, None] * 0.3 + rng.normal(0, 0.3, (donors, 1))[donor]
    counts = rng.poisson(np.exp(mean) * np.arange(1, len(GENES) + 1))
    out = anndata.AnnData(np.log1p(counts).astype(float), obs, pd.DataFrame(index=GENES))
    out.layers["counts"] = counts.astype(float)
    return out


def _values(data: Any, rng: Rng) -> Any:
    X = np.array(data.X, dtype=float)
    value = pick(rng, (np.nan, np.inf, -np.inf, -1.0, 1e300, 1e-300, 0.0, 1e80))
    X[rng.random(X.shape) < pick(rng, (0.001, 0.1, 1.0))] = value
    data.X = X
    return data


def _stored(data: Any, rng: Rng) -> Any:
    X = np.asarray(data.X, dtype=float)
    ways = (
        sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array, np.asfortranarray,
        lambda X: X.astype(np.float32), lambda X: X.astype(np.int8), lambda X: X > 0,
        lambda X: X.astype(np.float16), lambda X: X.astype(np.uint16), lambda X: X.astype(complex),
        lambda X: sp.csr_matrix(X.astype(np.int64)), lambda X: None,
    )  # fmt: skip
    data.X = pick(rng, ways)(X)
    return data


def _obs(data: Any, rng: Rng) -> Any:
    name, value = str(pick(rng, list(data.obs.columns))), pick(rng, VALUES)
    column = data.obs[name].astype(object).copy()
    rows = rng.random(len(column)) < pick(rng, (0.01, 0.3, 1.0))
    column[rows] = pd.Series([value] * int(rows.sum()), column.index[rows], dtype=object)
    data.obs[name] = column
    return data


def _obs_kind(data: Any, rng: Rng) -> Any:
    name = str(pick(rng, list(data.obs.columns)))
    kind = pick(rng, ("category", "str", "object", "string", "Int64", "float32", "bool", "int8"))
    data.obs[name] = data.obs[name].astype(kind)
    return data


def _columns(data: Any, rng: Rng) -> Any:
    name = str(pick(rng, list(data.obs.columns)))
    if rng.random() < 0.5:
        del data.obs[name]
    else:
        data.obs = data.obs.rename(
            columns={name: str(pick(rng, ("nu", "n_cells", "A", "a b", "")))}
        )
    return data


def _rows(data: Any, rng: Rng) -> Any:
    return data[rng.random(len(data)) < pick(rng, (0.0, 0.02, 0.2, 0.7))].copy()


def _view(data: Any, rng: Rng) -> Any:
    return data[rng.permutation(len(data)), rng.permutation(data.n_vars)[: rng.integers(0, 5)]]


def _var(data: Any, rng: Rng) -> Any:
    names = list(data.var_names)
    ways = (["A"] * len(names), [f"{k}" for k in range(len(names))], ["celltype", *names[1:]],
            ["nu", *names[1:]], ["", *names[1:]], [*names[1:], "x" * 200],
            ["a b", *names[1:]])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.var_names = pick(rng, ways)[: len(names)]
    return data


def _junk(data: Any, rng: Rng) -> Any:
    uns = ({}, {"log1p": {"base": 2}}, {"ctmm_formula": 3}, {"ctmm_formula": {"kind": "x"}},
           {"ctmm": None}, {"log1p": 1})  # fmt: skip
    data.uns = dict(pick(rng, uns))
    if rng.random() < 0.5:
        data.obsm["proportions"] = rng.random((data.n_obs, 3))
    if rng.random() < 0.5:
        data.raw = data
    return data


def _changed(data: Any, change: Callable[[Any, Rng], Any], rng: Rng) -> Any:
    """The AnnData after a change, or None where anndata itself refuses that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return change(data, rng)
        except Exception:
            return None


CELLS = (_values, _stored, _obs, _obs_kind, _columns, _rows, _view, _var, _junk, lambda d, r: d)
OPTIONS: dict[str, tuple[Any, ...]] = {
    "donor": ("batch", "sex", "run", "celltype"), "celltype": ("run", "batch", "donor"),
    "layer": ("counts", "x"), "raw": (True, False), "genes": (["A"], ["A", "A"], ["E", "A"], []),
    "normalize": ("log1p", "none", "cp10k", "log1p_cp10k"), "summary": ("mean", "log_mean", "sum"),
    "min_cells": (1, 2, 30, 100), "min_cells_donor": (0, 1, 1000),
    "min_donor_share": (0.5, 1.0, 1.5),
    "experiment": ("run", "batch", "sex"), "replicate": ("largest", "first", "x"),
    "covariates": (["sex"], ["run"], ["age", "sex"], [], "sex"), "negative": ("error", "keep"),
    "block_size": (1, 7, 100_000),
}  # fmt: skip


def aggregation(folder: Path) -> Callable[[Rng], Try]:
    """``pseudobulk`` of changed cells, against means and counts by hand."""
    good = cells(np.random.default_rng(3))

    def attempt(rng: Rng) -> Try:
        data, options = good.copy(), {"min_cells": 2, "min_cells_donor": 2}
        done = []
        for _ in range(int(rng.integers(1, 3))):
            if rng.random() < 0.4:
                name = str(pick(rng, list(OPTIONS)))
                options[name] = pick(rng, VALUES if rng.random() < 0.2 else OPTIONS[name])
            else:
                change = pick(rng, CELLS)
                done.append(change.__name__)
                data = _changed(data, change, rng)
                data = good.copy() if data is None else data

        def work() -> str:
            pb = ctmm.pseudobulk(data, **options)
            return (
                ""
                if {*options} - {"min_cells", "min_cells_donor", "block_size", "genes"}
                else (_wrong_means(pb, data, options))
            )

        return Try("pseudobulk", work, (options, done))

    return attempt


def _text(value: Any) -> str:
    """A label as it is written: numbers by their decimals."""
    return repr(float(value)) if isinstance(value, Fraction) else str(value)


def _wrong_means(pb: Any, data: Any, options: dict[str, Any]) -> str:
    """Whether a mean, a noise variance or a number of cells is another than plain numpy's."""
    X = np.asarray(data.X.toarray() if sp.issparse(data.X) else data.X, dtype=float)
    X = X[:, [list(data.var_names).index(gene) for gene in pb.var_names]]
    donor = data.obs["donor"].astype(object).map(_text).to_numpy()
    kind = data.obs["celltype"].astype(object).map(_text).to_numpy()
    for row in range(pb.n_obs):
        own = (donor == str(pb.obs["donor"].iloc[row])) & (
            kind == str(pb.obs["celltype"].iloc[row])
        )
        if own.sum() != pb.obs["n_cells"].iloc[row]:
            return f"n_cells {pb.obs['n_cells'].iloc[row]}, there are {own.sum()}"
        if own.sum() <= options["min_cells"]:
            if not np.isnan(pb.X[row]).all():
                return "too few cells have a mean"
            continue
        size = np.abs(X[own]).max(axis=0)
        if not np.allclose(pb.X[row], X[own].mean(axis=0), rtol=1e-9, atol=1e-12 * size.max()):
            return "another mean"
        with np.errstate(over="ignore"):
            nu = X[own].var(axis=0, ddof=1) / own.sum()
        size = np.minimum(size, 1e150)
        if (np.abs(pb.layers["nu"][row] - nu) > 1e-9 * nu + 1e-14 * size**2).any():
            return "another noise variance"
    return ""


def _layer(pb: Any, rng: Rng) -> Any:
    name = str(pick(rng, list(pb.layers)))
    if rng.random() < 0.2:
        del pb.layers[name]
        return pb
    value = pick(rng, (np.nan, 0.0, -1.0, np.inf, 1e200, 1e-200))
    layer = np.array(pb.layers[name], dtype=float)
    layer[rng.random(layer.shape) < pick(rng, (0.02, 0.3, 1.0))] = value
    pb.layers[name] = layer
    return pb


def _joined(pb: Any, rng: Rng) -> Any:
    other = pb.copy()
    if rng.random() < 0.5:
        other.obs["donor"] = "x" + other.obs["donor"].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.concat([pb, other], merge=pick(rng, (None, "same")))


PSEUDOBULK = (*CELLS, _layer, _layer, _joined)


def _file(pb: Any, rng: Rng, folder: Path) -> Any:
    path = folder / "pb.h5ad"
    pb.write_h5ad(path)
    return path


STEPS: tuple[Callable[[Any, Rng, Path], str], ...] = (
    lambda pb, rng, _: _read(ctmm.fit(f"{pick(rng, GENES[:1])} ~ C(celltype) + sex", data=pb)),
    lambda pb, rng, _: _read(
        ctmm.fit("A ~ celltype", "batch", data=pb, structure="hom", method="reml")
    ),
    lambda pb, rng, _: _read(ctmm.fit("E ~ sex", data=ctmm.overall(pb), structure="hom")),
    lambda pb, rng, _: wrong_scan(
        ctmm.fit_genes("~ C(celltype)", data=pb, tests=["score", "mean"])
    ),
    lambda pb, rng, _: wrong_scan(ctmm.fit_genes("~ sex", data=ctmm.overall(pb), tests=["mean"])),
    lambda pb, rng, _: _pb(ctmm.impute(pb, pick(rng, ("softimpute", "mvn", "mean")), rng=1)),
    lambda pb, rng, _: _pb(ctmm.standardize(pb, missing=pick(rng, ("observed", "all")))),
    lambda pb, rng, _: _pb(ctmm.overall(pb)),
    lambda pb, rng, _: _pb(ctmm.filter_genes(pb, min_share=pick(rng, (0.1, 0.9, 2)))),
    lambda pb, rng, _: _pb(ctmm.principal_components(pb, pick(rng, (0, 1, 2, 9)))),
    lambda pb, rng, _: str(len(ctmm.to_frame(pb)))[:0],
    lambda pb, rng, _: str(len(ctmm.to_long(pb, "A")))[:0],
    lambda pb, rng, _: str(ctmm.evaluate_imputation(pb, ["mean"], repeats=1, rng=1))[:0],
)  # fmt: skip


def _pb(pb: Any) -> str:
    return "" if isinstance(pb, anndata.AnnData) and pb.X is not None else "no pseudobulk"


def _read(fit: Any) -> str:
    return wrong_fit(fit, None, {}) or wrong_test(fit.test_variance())


def steps(folder: Path) -> Callable[[Rng], Try]:
    """A changed pseudobulk in one of the functions that take it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        made = ctmm.pseudobulk(cells(np.random.default_rng(3)), min_cells=2, min_cells_donor=2)
    for step in STEPS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                step(made.copy(), np.random.default_rng(0), folder)
            except ctmm.CTMMError:
                continue

    def attempt(rng: Rng) -> Try:
        pb, done = made.copy(), []
        for _ in range(int(rng.integers(1, 3))):
            change = pick(rng, PSEUDOBULK)
            done.append(change.__name__)
            pb = _changed(pb, change, rng)
            pb = made.copy() if pb is None else pb
        at = int(rng.integers(len(STEPS)))
        return Try("AnnData", lambda: STEPS[at](pb, rng, folder), (at, done))

    return attempt
