"""Where expression and noise of all genes come from, some genes at a time.

A pseudobulk AnnData in memory, backed, or a .h5ad or .zarr file; or a table of rows with two more
of expression and noise, one column per gene.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_scalar

from ..arguments import name_list
from ..cells.files import lazy, open_file, read
from ..cells.tables import PREFIX, counted, in_var, is_anndata, real, stored_kind, types_of
from ..design.table import as_frame, label, listing, near
from ..errors import DataError


@dataclass(frozen=True)
class Responses:
    """Expression and noise of all genes.

    Attributes
    ----------
    obs : DataFrame, n rows
        What is known of the rows: donor, cell type, covariates.
    genes : tuple of str
    places : int ndarray
        Column of each gene in `expr` and `nu`.
    expr, nu : arrays with rows and columns, in memory or in a file; shape (n, genes)
    nu2 : the same, or None
        Unbiased estimates of the squares of the noise variances.
    proportions : list of str, or None
        Their columns in `obs`, for overall pseudobulk.
    uns : mapping, or None
        What an AnnData says of itself.
    var : DataFrame, or None
        What it says of its genes, one row for each column of `expr`.
    """

    obs: pd.DataFrame
    genes: tuple[str, ...]
    places: np.ndarray
    expr: Any
    nu: Any
    nu2: Any = None
    proportions: list[str] | None = None
    uns: Any = None
    var: pd.DataFrame | None = None

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Expression, noise and its squares (or None) of genes start ... stop - 1, (n, g) each."""
        places = self.places[start:stop]
        NU2 = None if self.nu2 is None else _columns(self.nu2, places)
        return _columns(self.expr, places), _columns(self.nu, places), NU2

    def chosen(self, genes: Sequence[str] | None) -> Responses:
        """Only these genes, in this order."""
        if genes is None:
            return self
        if isinstance(genes, str):
            raise DataError(f"genes= is a list of names: genes=[{genes!r}]")
        where = dict(zip(self.genes, self.places, strict=True))
        names = tuple(label(name) for name in name_list("genes", genes))
        if not names:
            raise DataError("genes= is empty: name genes, or leave it out for all")
        absent = [name for name in names if name not in where]
        if absent:
            elsewhere = "" if self.var is None else in_var(absent[0], self.var)
            hint = elsewhere or near(absent[0], self.genes)
            raise DataError(f"there is no gene {listing(absent)}{hint}")
        again = _twice(names)
        if again:
            raise DataError(f"genes= names {listing(again)} twice")
        places = np.array([where[name] for name in names], dtype=np.int64)
        return replace(self, genes=names, places=places)


def open_responses(
    data: object, expr: object = None, nu: object = None, nu2: object = None, noise: str = "nu"
) -> Responses:
    """Find expression and noise.

    Parameters
    ----------
    data : AnnData, path of a .h5ad or .zarr file, an object with obs, expr and nu (as
        :func:`ctmm_formula.load_genes` returns), or a table of rows
    expr, nu, nu2 : DataFrame or array, shape (rows, genes)
        With a table; nu2 may be absent.
    noise : str
        Layer of an AnnData that holds the noise variances; their squares are in the layer of that
        name with a 2, if there is one.

    Raises
    ------
    DataError
        What is missing or does not fit together.
    """
    parts = [getattr(data, name, None) for name in ("obs", "expr", "nu")]
    if expr is None and nu is None and all(part is not None for part in parts):
        nu2 = getattr(data, "nu2", None) if nu2 is None else nu2
        data, expr, nu = parts
    if isinstance(data, (str, PathLike)):
        _none("expr=, nu= and nu2= belong to a table", expr, nu, nu2)
        return _from_file(Path(fspath(data)), noise)
    if is_anndata(data):
        _none(
            "an AnnData holds expression and noise itself: leave expr=, nu= and nu2= out",
            expr, nu, nu2,
        )  # fmt: skip
        return _from_anndata(data, noise)
    table = as_frame(data)
    if expr is None or nu is None:
        raise DataError(
            "fit_genes needs the expression and the noise variance of every gene: data= a "
            "pseudobulk AnnData, or data=table, expr=frame, nu=frame with one column per gene"
        )
    return _from_tables(table, {"expr": expr, "nu": nu, "nu2": nu2})


def _none(message: str, *values: object) -> None:
    if any(value is not None for value in values):
        raise DataError(message)


# ---------------------------------------------------------------------------------------------
# tables


def _from_tables(obs: pd.DataFrame, given: dict[str, object]) -> Responses:
    """`given` matrices by name, expr first; nu2 may be None."""
    given = {name: value for name, value in given.items() if value is not None}
    frames = {name: _matrix(value, name) for name, value in given.items()}
    for name, frame in frames.items():
        if len(frame) != len(obs):
            turned = f"; its columns are: give {name}.T" if frame.shape[1] == len(obs) else ""
            raise DataError(
                f"{name} has {len(frame)} rows and data {len(obs)}: they must be alike{turned}"
            )
        if isinstance(given[name], pd.DataFrame) and not frame.index.equals(obs.index):
            raise DataError(
                f"the index of {name} is not that of data: bring the rows into one order, "
                f"{name}.loc[data.index]"
            )
    # the first that names its genes names them for all
    first = next((name for name in frames if isinstance(given[name], pd.DataFrame)), "expr")
    names = _gene_names(frames[first].columns)
    for name, frame in frames.items():
        if name == first:
            continue
        if not isinstance(given[name], pd.DataFrame):
            if frame.shape[1] != len(names):
                raise DataError(
                    f"{first} has {len(names)} genes and {name} {frame.shape[1]}: give them the "
                    "same"
                )
            continue
        columns = _gene_names(frame.columns, f" in {name}")
        if columns != names:
            absent = [gene for gene in names if gene not in set(columns)]
            if absent:
                raise DataError(f"{name} has no column for genes {listing(absent)}")
            frames[name] = frame.set_axis(list(columns), axis=1)[list(names)]
    return Responses(
        obs, names, np.arange(len(names)), frames["expr"], frames["nu"], frames.get("nu2")
    )


def _matrix(value: object, name: str) -> pd.DataFrame:
    """Rows x genes; an array's genes are called gene1, gene2, ..."""
    if isinstance(value, pd.DataFrame):
        if all(getattr(kind, "isnative", True) for kind in value.dtypes):
            return value
        return pd.DataFrame(real(value, name), value.index, value.columns)  # pandas takes no others
    array = real(value, name)
    if array.ndim != 2:
        raise DataError(f"{name} must have rows and one column per gene, got shape {array.shape}")
    columns = [f"gene{k}" for k in range(1, array.shape[1] + 1)]
    return pd.DataFrame(array, columns=columns)


def _gene_names(columns: Iterable[Any], where: str = "") -> tuple[str, ...]:
    """Their names as text, all there and all different."""
    names = []
    for place, name in enumerate(columns):
        names.append("" if is_scalar(name) and pd.isna(name) else label(name))
        if not names[-1]:
            raise DataError(f"gene number {place + 1}{where} has no name ({name!r}): give it one")
    again = _twice(names)
    if again:
        raise DataError(
            f"genes {listing(again)} occur more than once{where}: give them different names "
            "(AnnData: pb.var_names_make_unique())"
        )
    if not names:
        raise DataError("there are no genes")
    return tuple(names)


def _twice(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _columns(source: Any, places: np.ndarray) -> np.ndarray:
    """Some columns as float64, rows first."""
    run = len(places) and np.array_equal(places, np.arange(places[0], places[0] + len(places)))
    at = slice(int(places[0]), int(places[-1]) + 1) if run else places
    if isinstance(source, pd.DataFrame):
        frame = source.iloc[:, at]
        try:
            if any(kind.kind == "c" for kind in frame.dtypes):
                raise TypeError("they are complex")
            return np.ascontiguousarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))
        except (TypeError, ValueError, OverflowError) as error:
            names = [label(name) for name in frame.columns]
            raise DataError(f"genes {listing(names, 2)} do not hold numbers: {error}") from None
    what = "expression or noise"
    if run:
        part = real(source[:, at], what)
    else:  # files want their columns in order
        order = np.argsort(places, kind="stable")
        part = real(source[:, places[order]], what)[:, np.argsort(order, kind="stable")]
    return np.ascontiguousarray(part)


# ---------------------------------------------------------------------------------------------
# AnnData


def _from_anndata(data: Any, noise: str) -> Responses:
    if getattr(data, "isbacked", False) and not getattr(data, "is_view", False):
        return _from_file(Path(data.filename), noise)
    if data.X is None:
        raise DataError("the AnnData has no X of expression: make pseudobulk from the cells anew")
    if noise not in data.layers:
        raise DataError(_no_layer(noise, list(data.layers)))
    names = _gene_names(data.var_names)
    shares = data.obsm.get("proportions")
    nu, nu2 = data.layers[noise], data.layers.get(f"{noise}2")
    out = _pseudobulk(data.obs, names, data.X, nu, nu2, data.uns, shares)
    return replace(out, uns=data.uns, var=data.var)


def _no_layer(noise: str, there: list[str]) -> str:
    return (
        f"the AnnData has no layer {noise!r} of noise variances"
        + (f"; its layers are {listing(there)}" if there else "")
        + ": name it by noise=, or make pseudobulk from the cells first"
    )


def _pseudobulk(
    obs: pd.DataFrame, genes: tuple[str, ...], expr: Any, nu: Any, nu2: Any, uns: Any, shares: Any
) -> Responses:
    kind = stored_kind(uns, obs, isinstance(shares, pd.DataFrame))
    obs = counted(obs)
    if kind == "ctp":
        return Responses(obs, genes, np.arange(len(genes)), expr, nu, nu2)
    names = types_of(shares.columns)
    columns = {f"{PREFIX}{name}": shares.iloc[:, k].to_numpy() for k, name in enumerate(names)}
    obs = obs.assign(**columns)
    return Responses(obs, genes, np.arange(len(genes)), expr, nu, nu2, list(columns))


def _from_file(path: Path, noise: str) -> Responses:
    """Rows and genes of a file; its numbers are read when they are needed."""
    root, _ = open_file(path)
    if "obs" not in root or "X" not in root:
        raise DataError(f"{str(path)!r} is no AnnData file: it has no obs or no X")
    layers = root.get("layers", {})
    if noise not in layers:
        raise DataError(_no_layer(noise, list(layers)))
    var = read(root["var"])
    genes = _gene_names(var.index)
    uns = read(root["uns"]) if "uns" in root else {}
    shares = None
    if "obsm" in root and "proportions" in root["obsm"]:
        shares = read(root["obsm"]["proportions"])
    square = f"{noise}2"
    expr, nu = lazy(root["X"]), lazy(layers[noise])
    nu2 = lazy(layers[square]) if square in layers else None
    out = _pseudobulk(read(root["obs"]), genes, expr, nu, nu2, uns, shares)
    return replace(out, uns=uns, var=var)
