"""Columns of the cells that belong to donors, cell types or pairs, and so survive aggregation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..arguments import name_list
from ..design.table import label, listing, near
from ..errors import DataError
from .pairs import Pairs
from .tables import VARIES

OWN = ("donor", "celltype", "n_cells", "proportion", "nu")
"""Columns that pseudobulk makes itself, and the name of the noise."""
TWICE = "several columns have this name"
HEAD = 10_000
"""Cells that are looked at first: most columns of quality measures show there that they vary."""


def carry(
    obs: pd.DataFrame, pairs: Pairs, taken: Sequence[str], wanted: Sequence[str] | None = None
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Covariates of the pairs.

    A column is carried along if it is constant within donors (sex, age), within cell types
    (lineage), or within pairs (batch of a sort); donors first, so pairs without cells have the
    donor's or the cell type's value, and only for the last kind none.  Missing values do not
    count against being constant.

    Parameters
    ----------
    obs : DataFrame, one row per cell
    pairs : Pairs
    taken : sequence of str
        Columns in use as donor and cell type.
    wanted : sequence of str, optional
        Columns that must be carried along, and no others.

    Returns
    -------
    frame : DataFrame, one row per pair of the grid, RangeIndex; donor-constant columns first
    left_out : dict column -> reason

    Raises
    ------
    DataError
        A wanted column does not exist, varies within pairs, or holds nothing to carry.
    """
    names = _names(obs, taken, wanted)
    N, C = pairs.n_cells.shape
    donor, celltype = np.divmod(np.arange(N * C), C)
    cell = pairs.place
    kinds = (
        ("donor", np.where(cell >= 0, pairs.donor, -1), donor),
        ("cell type", np.where(cell >= 0, pairs.celltype, -1), celltype),
        ("pair", cell, np.arange(N * C)),
    )
    found: dict[str, dict[str, pd.Series]] = {kind: {} for kind, _, _ in kinds}
    columns = list(obs.columns)
    left_out = {} if wanted else {c: TWICE for c in columns if columns.count(c) > 1}
    for name in names:
        if name in OWN:
            left_out[name] = "its name is that of a column of the result"
            continue
        column = obs[name].reset_index(drop=True)
        try:
            if wanted is None and _varies(column.iloc[:HEAD], cell[:HEAD], N * C):
                left_out[name] = VARIES
                continue
            codes, known = pd.factorize(_plain(column))
        except TypeError:
            left_out[name] = "its values are objects"
            continue
        values = list(known)
        if not (codes[cell >= 0] >= 0).any():
            left_out[name] = "it is missing in all cells"
            continue
        for kind, groups, rows in kinds:
            first = _constant(codes, groups, int(rows.max()) + 1)
            if first is not None:
                found[kind][name] = _column(column, values, first[rows])
                break
        else:
            left_out[name] = VARIES
            if wanted is not None:
                _refuse(name, codes, values, pairs)
    if wanted is not None and left_out:
        name, reason = next(iter(left_out.items()))
        raise DataError(f"covariates= names {name!r}, which cannot be carried along: {reason}")
    carried = {name: c for kind in found.values() for name, c in kind.items()}
    return pd.DataFrame(carried, index=pd.RangeIndex(N * C)), left_out


FEW_LEVELS = 6
COMMON = 0.1
"""Share of a pair's cells above which a level is one that the donor was sampled at."""
OF_CELLS = {"phase", "leiden", "louvain", "cluster", "clusters", "seurat_clusters", "doublet",
            "predicted_doublet"}  # fmt: skip
"""Columns that say what a cell is, by their usual names."""


def pooled(obs: pd.DataFrame, pairs: Pairs, taken: Sequence[str]) -> dict[str, list[str]]:
    """Columns that look like conditions of which donors have several, and their levels.

    They have few levels and are no numbers with fractions; most cells are in pairs with two levels
    or more; and the levels are not those of a finer cell type.

    Examples
    --------
    >>> from ctmm_formula.cells.pairs import Thresholds, find_pairs
    >>> obs = pd.DataFrame({"donor": ["a", "b"] * 8, "celltype": "T", "age": [30, 40] * 8,
    ...                     "time": np.repeat(["pre", "post"], 8)})
    >>> pairs = find_pairs(obs, "donor", "celltype", Thresholds(1, 1))
    >>> pooled(obs, pairs, ["donor", "celltype"])
    {'time': ['post', 'pre']}
    """
    place = pairs.place
    on = place >= 0
    C, total = pairs.n_cells.shape[1], pairs.n_cells.ravel()
    out = {}
    for name in obs.columns[~obs.columns.duplicated(keep=False)]:
        column = obs[name].reset_index(drop=True)
        if name in taken or str(name).lower() in OF_CELLS or column.dtype.kind in "fcmM":
            continue
        try:
            if column.iloc[:HEAD].nunique() > FEW_LEVELS:
                continue
            codes, known = pd.factorize(_plain(column[on]))
        except TypeError:  # values are objects
            continue
        levels = [_text(value) for value in known]
        if not 2 <= len(levels) <= FEW_LEVELS:
            continue
        table = np.zeros((len(total), len(levels)), dtype=np.int64)
        np.add.at(table, (place[on][codes >= 0], codes[codes >= 0]), 1)
        several = ((table > COMMON * total[:, None]).sum(axis=1) > 1) @ total > total.sum() / 2
        types = table.reshape(-1, C, len(levels)).sum(axis=0)
        finer = C > 1 and bool(((types > COMMON * types.sum(axis=0)).sum(axis=0) == 1).any())
        if several and not finer:
            out[str(name)] = sorted(levels)
    return out


def _names(obs: pd.DataFrame, taken: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Columns to look at."""
    columns = list(obs.columns)
    names = [c for c in columns if c not in taken and columns.count(c) == 1]
    if wanted is None:
        return names
    if isinstance(wanted, str):
        wanted = [wanted]
    for name in name_list("covariates", wanted):
        if not isinstance(name, str) or name not in columns:
            raise DataError(f"covariates= names {name!r}, not a column of obs{near(name, columns)}")
        if columns.count(name) > 1:
            raise DataError(f"covariates= names {name!r}: {TWICE} in obs, rename them")
        if name in OWN and name not in taken:
            raise DataError(
                f"covariates= names {name!r}, a column that pseudobulk makes itself: rename yours"
            )
    return [name for name in names if name in list(wanted)]


def _varies(column: pd.Series, cell: np.ndarray, size: int) -> bool:
    """Whether a column has two values in one pair."""
    return _constant(pd.factorize(_plain(column))[0], cell, size) is None


def _plain(column: pd.Series) -> Any:
    """A column whose objects pandas takes as they are.

    In a Series pandas 2.2 looks for dates among them, and stops at numbers beyond floats.
    """
    return column.to_numpy() if column.dtype == object else column


def _constant(codes: np.ndarray, groups: np.ndarray, size: int) -> np.ndarray | None:
    """Code of each group (-1: unknown), or None where some group has two."""
    on = np.flatnonzero((groups >= 0) & (codes >= 0))
    first = np.full(size, -1)
    first[groups[on]] = codes[on]
    return first if (first[groups[on]] == codes[on]).all() else None


def _column(column: pd.Series, values: list[Any], codes: np.ndarray) -> pd.Series:
    """Values of the pairs in the column's own type; texts and dates become categories."""
    kind: Any = column.dtype
    if isinstance(kind, pd.CategoricalDtype):
        out = pd.Series(pd.Categorical(_take(values, codes), dtype=kind)).cat
        return _as_text(out.remove_unused_categories())
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_numeric_dtype(kind):
        if (codes >= 0).all():
            return pd.Series(_take(values, codes)).astype(kind)
        if not pd.api.types.is_extension_array_dtype(kind):
            kind = "boolean" if pd.api.types.is_bool_dtype(kind) else "float64"
        return pd.Series(_take(values, codes)).astype(kind)
    texts = [None if code < 0 else _text(values[code]) for code in codes]
    return pd.Series(pd.Categorical(texts))


def _as_text(column: pd.Series) -> pd.Series:
    """Categories that no file holds, such as intervals of age, become texts."""
    categories = column.cat.categories
    texts = [_text(value) for value in categories]
    if pd.api.types.is_numeric_dtype(categories.dtype) or len(set(texts)) < len(texts):
        return column
    return column.cat.rename_categories(texts)


def _text(value: Any) -> str:
    """The value as labels are written; whole numbers beyond 1e308, which are none, to base 16."""
    try:
        return label(value)
    except DataError:
        return hex(value)


def _take(values: list[Any], codes: np.ndarray) -> list[Any]:
    """Values by code, None where the code is -1."""
    return [values[code] if code >= 0 else None for code in codes]


def _refuse(name: str, codes: np.ndarray, values: list[Any], pairs: Pairs) -> None:
    """A covariate that was asked for and varies among the cells of one pair."""
    place = pairs.place
    on = (place >= 0) & (codes >= 0)
    low = np.full(pairs.n_cells.size, len(codes))
    high = np.full(pairs.n_cells.size, -1)
    np.minimum.at(low, place[on], codes[on])
    np.maximum.at(high, place[on], codes[on])
    at = int(np.flatnonzero(high > low)[0])
    i, c = divmod(at, len(pairs.celltypes))
    both = [values[low[at]], values[high[at]]]
    raise DataError(
        f"covariates= names {name!r}, which varies within pairs of donor and cell type: "
        f"{listing(both)} in cells of donor {pairs.donors[i]!r}, cell type {pairs.celltypes[c]!r}"
    )
