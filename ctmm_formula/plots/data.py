"""Pictures of the data of a fit: which pairs are there, and how noisy they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..cells.tables import cell_variance, counted, is_anndata, kind_of, to_long
from ..design.table import as_frame, labels, numbers, pick
from ..errors import DataError
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVERALL = "overall"
"""Stands for the cell type in overall pseudobulk."""
_ROLES = {
    "donor": "donor", "celltype": "cell type", "n_cells": "number of cells",
    "nu": "noise variance", "value": "response",
}  # fmt: skip
_MARKS = ("o", "^", "s", "D")


@style.picture
def missing(
    data: object,
    *,
    value: str | None = None,
    donor: str = "donor",
    celltype: str = "celltype",
    n_cells: str = "n_cells",
    ax: Axes | None = None,
) -> Axes:
    """Draw which pairs of donor and cell type are there, shaded by their numbers of cells.

    Parameters
    ----------
    data : DataFrame, pseudobulk AnnData, genes (obs, expr, nu), or CTMMResults
        One row per pair.  Pairs without a row are missing.
    value : str, optional
        Column (of AnnData and genes: gene) whose missing values make a pair missing.  Default: of
        AnnData and genes the pairs that are missing for all genes, of tables none.
    donor, celltype, n_cells : str
        Columns of a table; `n_cells` may be absent, then pairs are there or not.
    ax : Axes, optional

    Returns
    -------
    Axes
        Cell types with their numbers of donors from top to bottom, donors from left to right,
        complete ones first.

    Raises
    ------
    DataError
        Columns that are not there, pairs with two rows, or overall pseudobulk, which has no pairs.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> ax = ctmm.plots.missing(ctmm.load_example())
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['day0 (70)', 'day1 (68)', 'day2 (70)', 'day3 (67)']
    """
    from matplotlib.colors import ListedColormap, LogNorm

    table = missing_data(data, value=value, donor=donor, celltype=celltype, n_cells=n_cells)
    wide = table.pivot(index="celltype", columns="donor", values="observed")
    # donors that miss the same cell types stand together
    values = wide.to_numpy(dtype=bool)
    order = wide.columns[np.lexsort((*~values[::-1], -values.sum(axis=0)))]
    there = wide[order].to_numpy(dtype=bool)
    C, N = there.shape
    ax = style.axes(ax, 5.5, max(1.6, 0.9 + 0.22 * C))
    shown = table.pivot(index="celltype", columns="donor", values="n_cells")[order].to_numpy(float)
    shades = np.where(there & (shown > 0), shown, np.nan)
    known = bool(np.isfinite(shades).any())
    edges = np.arange(N + 1) - 0.5, np.arange(C + 1) - 0.5
    if not (known and np.isfinite(shades[there]).all()):  # under the shades, or all there is
        plain = ListedColormap([style.MUTED if known else style.SPECIFIC])
        ax.pcolormesh(*edges, np.where(there, 1.0, np.nan), cmap=plain, rasterized=True)
    if known:
        image = ax.pcolormesh(*edges, shades, cmap="viridis_r", norm=LogNorm(), rasterized=True)
        bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
        style.plain(bar.ax.yaxis)
        bar.ax.tick_params(labelsize=style.SMALL)
        bar.set_label("cells", fontsize=style.SMALL + 1)
    ax.invert_yaxis()
    counts = [f" ({count})" for count in there.sum(axis=1)]
    ax.set_yticks(np.arange(0.5, C - 1), minor=True)
    ax.grid(which="minor", axis="y", color=ax.get_facecolor(), linewidth=1.5)
    ax.tick_params(which="both", length=0)
    style.finish(ax, style.count(N, "donor"))
    style.names_beside(ax, [str(name) for name in wide.index], counts)
    ax.spines[:].set_visible(False)
    if 0.45 * style.cell(ax)[0] > N * (style.SMALL - 2) / 72:  # else they would touch
        ax.set_xticks(range(N), [str(name) for name in order], rotation=90, parse_math=False)
        ax.tick_params(axis="x", labelsize=style.SMALL - 2)
    else:
        ax.set_xticks([])
    lost = int((~there).sum())
    style.note(ax, f"{lost} of {there.size} pairs missing (blank)" if lost else "no pair missing")
    return ax


def missing_data(
    data: object,
    *,
    value: str | None = None,
    donor: str = "donor",
    celltype: str = "celltype",
    n_cells: str = "n_cells",
) -> pd.DataFrame:
    """Numbers that :func:`missing` draws.

    Returns
    -------
    DataFrame
        One row per possible pair: celltype, donor, observed, n_cells (NaN where unknown).
    """
    table = _rows(data, donor=donor, celltype=celltype, n_cells=n_cells, value=value, gene=value)
    if (table["celltype"] == OVERALL).all() and table.attrs.get("kind") == "op":
        raise DataError(
            "overall pseudobulk has one row per donor, no pairs of donor and cell type: draw the "
            "table of pairs it was made of"
        )
    twice = table.duplicated(["donor", "celltype"])
    if twice.any():
        who = table[twice].iloc[0]
        raise DataError(
            f"donor {who['donor']!r} has several rows of cell type {who['celltype']!r}: choose one "
            "gene, or name the columns by donor= and celltype="
        )
    pairs = pd.MultiIndex.from_product(
        [table[name].cat.categories for name in ("celltype", "donor")], names=["celltype", "donor"]
    )
    out = table.set_index(["celltype", "donor"])[["observed", "n_cells"]].reindex(pairs)
    out["observed"] = out["observed"].eq(True)
    out = out.reset_index()
    for name in ("celltype", "donor"):
        out[name] = pd.Categorical(out[name], table[name].cat.categories)
    return out


@style.picture
def noise(
    data: object,
    *,
    gene: str | None = None,
    nu: str = "nu",
    donor: str = "donor",
    celltype: str | None = "celltype",
    n_cells: str = "n_cells",
    ax: Axes | None = None,
) -> Axes:
    """Draw noise variances against numbers of cells, with the line of a pooled cell variance.

    Under equal variance s^2 between the cells of all donors, nu = s^2 / n but for sampling:
    points scatter about a line of slope -1.  What lies far above it has unusual cells, and what
    lies far below (few cells that happen to be alike) weighs too much in a fit.

    Parameters
    ----------
    data : DataFrame, pseudobulk AnnData, genes (obs, expr, nu), or CTMMResults
    gene : str, optional
        Of AnnData and genes: which gene.
    nu, donor, celltype, n_cells : str
        Columns of a table; ``celltype=None`` for one of overall pseudobulk.
    ax : Axes, optional

    Returns
    -------
    Axes
        Logarithmic; one colour and line per cell type.

    Raises
    ------
    DataError
        There are no numbers of cells, or no noise variances above 0.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> ax = ctmm.plots.noise(ctmm.load_example())
    >>> ax.get_xlabel(), ax.get_xscale()
    ('cells', 'log')
    """
    table = noise_data(data, gene=gene, nu=nu, donor=donor, celltype=celltype, n_cells=n_cells)
    drawn = table[(table["nu"] > 0) & (table["n_cells"] > 0)]
    if drawn.empty:
        raise DataError("no row has a noise variance above 0 and a number of cells")
    ax = style.axes(ax, 5.2, 3.6)
    names = [str(name) for name in table["celltype"].cat.categories]
    for k, name in enumerate(names):
        round_ = k // len(style.PALETTE)  # colours repeat with another mark
        own = drawn[drawn["celltype"] == name].sort_values("n_cells")
        ax.plot(
            own["n_cells"], own["nu"], _MARKS[round_ % len(_MARKS)], ms=3, mew=0, alpha=0.6,
            color=style.PALETTE[k % len(style.PALETTE)], label=style.in_key(name),
        )  # fmt: skip
        ax.plot(
            own["n_cells"], own["pooled"], linewidth=1.2, linestyle="--" if round_ % 2 else "-",
            color=style.PALETTE[k % len(style.PALETTE)],
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    style.plain(ax.xaxis)
    style.plain(ax.yaxis)
    style.finish(ax, "cells", "noise variance\n(expression²)")
    lost = len(table) - len(drawn)
    some = f"; {style.count(lost, 'row')} without noise or cells" if lost else ""
    style.note(ax, f"line: pooled s²/n{some}")
    if len(names) > 1:
        style.key(ax, markerscale=1.6)
    return ax


def noise_data(
    data: object,
    *,
    gene: str | None = None,
    nu: str = "nu",
    donor: str = "donor",
    celltype: str | None = "celltype",
    n_cells: str = "n_cells",
) -> pd.DataFrame:
    """Numbers that :func:`noise` draws.

    Returns
    -------
    DataFrame
        One row per pair (of overall pseudobulk, per donor): celltype, donor, n_cells, nu, and
        pooled = s^2 / n with s^2 the cell type's variance between cells, pooled over donors with
        n - 1 degrees of freedom each.
    """
    held: Any = data
    names: Any = held.var_names if is_anndata(data) else held.nu.columns if _is_genes(data) else ()
    if gene is None and len(names):
        raise DataError(f"noise is that of one gene: name it, such as gene={str(names[0])!r}")
    columns = {"donor": donor, "celltype": celltype, "n_cells": n_cells, "nu": nu}
    table = _rows(data, gene=gene, **columns)
    if table["n_cells"].isna().all():
        raise DataError(
            "there are no numbers of cells to draw noise against: the data need a column of them "
            f"(n_cells={n_cells!r})"
        )
    n = table["n_cells"]
    s2 = cell_variance(table[["nu"]].to_numpy(), n.to_numpy(), table["celltype"])[:, 0]
    return table[["celltype", "donor", "n_cells", "nu"]].assign(pooled=s2 / n)


def _rows(data: object, *, gene: str | None = None, **columns: str | None) -> pd.DataFrame:
    """Donor, celltype, n_cells, nu and observed of every row, from whatever holds them."""
    if hasattr(data, "design") and hasattr(data, "vcomp"):
        return _rows_of_fit(data)
    if is_anndata(data):
        pb: Any = data
        kind = kind_of(pb)
        frame = counted(pb.obs) if gene is None else to_long(pb, gene, name="expr")
        if gene is None:  # missing pairs are NaN throughout
            X = pb.X.toarray() if hasattr(pb.X, "toarray") else np.asarray(pb.X)
            frame = frame.assign(expr=np.where(np.isnan(X).all(axis=1), np.nan, 0.0))
        columns = {"n_cells": "n_cells", "donor": "donor", "celltype": "celltype", "value": "expr"}
        columns |= {"nu": "nu"} if gene is not None else {}
    else:
        overall = columns["celltype"] is None or getattr(data, "proportions", None) is not None
        kind = "op" if overall else "ctp"
        if _is_genes(data):
            frame, columns = _of_genes(data, gene), columns | {"value": "expr"}
        else:
            frame = as_frame(data)
    out = pd.DataFrame(index=range(len(frame)))
    for name in ("donor", "celltype"):
        column = str(columns[name])
        if name == "celltype" and kind == "op":
            out[name] = pd.Categorical([OVERALL] * len(frame))
            continue
        out[name] = labels(pick(frame, column, _ROLES[name]), column, _ROLES[name])
    for name in ("n_cells", "nu", "value"):
        given = columns.get(name)
        absent = name == "n_cells" and given == "n_cells" and given not in frame
        if given is None or absent:
            out[name] = np.nan
        else:
            out[name] = numbers(pick(frame, given, _ROLES[name]), given, _ROLES[name])
    out["observed"] = True if columns.get("value") is None else out["value"].notna()
    lost = np.flatnonzero(out[["donor", "celltype"]].isna().any(axis=1))
    if len(lost):
        raise DataError(f"donor or cell type is missing in row {lost[0]}: drop or name such rows")
    out.attrs["kind"] = kind
    return out


def _is_genes(data: object) -> bool:
    """Whether `data` holds obs, expr and nu, as :func:`ctmm_formula.load_genes` returns them."""
    parts = (getattr(data, name, None) for name in ("obs", "expr", "nu"))
    return all(isinstance(part, pd.DataFrame) for part in parts)


def _of_genes(genes: Any, gene: str | None) -> pd.DataFrame:
    """The rows, with expr and nu of one gene; without a gene expr is NaN where all genes are."""
    if gene is None:
        return genes.obs.assign(expr=np.where(genes.expr.isna().all(axis=1), np.nan, 0.0))
    parts = {name: pick(getattr(genes, name), gene, "gene", what=name) for name in ("expr", "nu")}
    return genes.obs.assign(**{name: values.to_numpy() for name, values in parts.items()})


def _rows_of_fit(res: Any) -> pd.DataFrame:
    d = res.design
    names: Any = [OVERALL] if d.kind == "op" else list(d.celltypes)
    codes: Any = np.zeros(len(d.y), dtype=int) if d.kind == "op" else d.H.argmax(axis=1)
    out = pd.DataFrame(index=range(len(d.y)))
    out["donor"] = pd.Categorical.from_codes(d.donor_codes, pd.Index(d.donors, dtype=object))
    if d.crossing is not None and d.crossing.kind == "within":  # a donor under a condition
        levels = np.array(d.crossing.levels, dtype=object)[d.loads.argmax(axis=1)]
        samples = out["donor"].astype(str) + "|" + levels
        out["donor"] = pd.Categorical(samples, samples.unique())
    out["celltype"] = pd.Categorical.from_codes(codes, pd.Index(names, dtype=object))
    out["n_cells"] = np.nan if d.n_cells is None else d.n_cells
    out["nu"], out["observed"] = d.nu, True
    out.attrs["kind"] = d.kind
    return out
