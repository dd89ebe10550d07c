"""Effects of all genes of a scan: a volcano per cell type, and a map of genes and cell types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import check_alpha, choose, whole_number
from ..design.table import near
from ..errors import CTMMError
from . import style
from .pvalues import at_edge, minus_log10

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREFIX = "effects:"
"""What the name of a scan's test of effects begins with."""
_ACROSS = 4  # panels side by side
_DIFFER = "★"


@style.picture
def volcano(
    scan: object,
    effect: str | None = None,
    *,
    celltypes: str | Sequence[str] | None = None,
    genes: int | Sequence[str] = 3,
    alpha: float = 0.05,
    ax: Any = None,
) -> Any:
    """Draw effects against their p values, one volcano per cell type.

    Parameters
    ----------
    scan : Scan
        With ``tests=["effects:status"]``.
    effect : str, optional
        The variable (``"status"``), by default the first that has effects; of one with several
        comparisons a level before the cell types, ``"status[severe]"``.
    celltypes : str or sequence of str, optional
        By default all, or the mean where the formula gives them the same effect.
    genes : int or list of str
        Genes to name; a number: those with the smallest p values among what is found.
    alpha : float
        Genes with Benjamini-Hochberg p below it are in colour, the others grey.
    ax : Axes, or one per cell type, optional

    Returns
    -------
    Axes, or an array of one per cell type
        Genes without an effect are left out; p values of exactly 0 stand at the edge; the note
        counts both.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype) * sex", data=ctmm.load_genes(), tests="effects:sex",
    ...                       genes=["gene001", "gene002", "gene101", "gene102"])
    >>> [ax.get_title("left") for ax in scan.plot("volcano")]
    ['day0', 'day1', 'day2', 'day3']
    """
    from .names import name_points

    check_alpha(alpha)
    table = volcano_data(scan, effect, celltypes=celltypes)
    types = list(dict.fromkeys(table["celltype"]))
    places = _panels(ax, len(types))
    for own, celltype in zip(places, types, strict=True):
        every = table[table["celltype"] == celltype].reset_index(drop=True)
        shown = every[every[["estimate", "y"]].notna().all(axis=1)].reset_index(drop=True)
        if shown.empty:
            raise CTMMError(f"no gene has an effect in {celltype}: see reason in scan.table")
        infinite = np.isinf(shown["y"].to_numpy())
        place = np.column_stack([shown["estimate"], at_edge(shown["y"], 1.0)])
        found = shown["p_bh"].to_numpy() < alpha
        for some, marker in ((~infinite, "o"), (infinite, "^")):
            for part, color in ((~found, style.MUTED), (found, style.SPECIFIC)):
                at = place[some & part]
                own.scatter(at[:, 0], at[:, 1], s=9, c=color, marker=marker, linewidths=0,
                            rasterized=True)  # fmt: skip
        own.axvline(0.0, color=style.LINE, linewidth=0.6)
        own.margins(0.08)
        style.finish(own, "effect", "−log10 p")
        title = style.shortened([celltype], 0.5 * style.cell(own)[0])[0]
        own.set_title(title, loc="left", fontsize=style.SMALL + 2, parse_math=False)
        named = _chosen(shown, found, genes)
        name_points(own, place[named], shown["gene"].iloc[named].tolist())
        lost = len(every) - len(shown)
        style.note(own, style.remarks(
            (True, f"{found.sum()} of {len(shown)} at {alpha:g}"),
            (lost, f"{style.count(lost, 'gene')} without effect left out"),
            (infinite.any(), f"{infinite.sum()} with p = 0 at the edge (▲)"),
        ).replace("\n", ", "))  # fmt: skip
    return places[0] if len(places) == 1 else places


def volcano_data(
    scan: object,
    effect: str | None = None,
    *,
    celltypes: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Numbers that :func:`volcano` draws.

    Returns
    -------
    DataFrame
        One row per cell type and gene: celltype, gene, estimate, std_error, p_value, p_bh, y
        (-log10 p).
    """
    found, test, level = _asked(scan, effect)
    known = _types(found, test, level)
    given = [celltypes] if isinstance(celltypes, str) else celltypes
    wanted = list(known) if given is None else [choose("cell type", n, known) for n in given]
    if given is None and len(known) > 1:
        wanted = [name for name in wanted if name != "mean"]
    table, parts = found.table, []
    for name in wanted:
        column = f"{test}{known[name]}"
        parts.append(
            pd.DataFrame(
                {"celltype": name, "gene": table["gene"].astype(str),
                 "estimate": table[f"estimate_{column}"], "std_error": table[f"se_{column}"],
                 "p_value": table[f"p_{column}"], "p_bh": table[f"p_{column}_bh"]}
            )
        )  # fmt: skip
    out = pd.concat(parts, ignore_index=True)
    return out.assign(y=minus_log10(out["p_value"].to_numpy()))


@style.picture
def effects(
    scan: object,
    effect: str | None = None,
    *,
    genes: int | Sequence[str] = 20,
    alpha: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effects of genes in all cell types, with stars where cell types respond differently.

    Parameters
    ----------
    scan : Scan
        With ``tests=["effects:status"]`` and an interaction of status with cell types.
    effect : str, optional
        As in :func:`volcano`.
    genes : int or list of str
        Genes to draw; a number: those with the smallest p values of the omnibus test.
    alpha : float
        A dot: the gene's effect in the cell type has a Benjamini-Hochberg p below it.  A star at
        the gene: so has its test of heterogeneity.
    ax : Axes, optional

    Returns
    -------
    Axes
        Genes from top to bottom, cell types and their mean from left to right.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype) * sex", data=ctmm.load_genes(), tests="effects:sex",
    ...                       genes=["gene001", "gene002", "gene101", "gene102"])
    >>> ax = scan.plot("effects", genes=2)
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['day0', 'day1', 'day2', 'day3', 'mean']
    """
    check_alpha(alpha)
    table = effects_data(scan, effect, genes=genes)
    names = list(dict.fromkeys(table["gene"]))
    types = list(dict.fromkeys(table["celltype"]))
    grid = table.pivot(index="gene", columns="celltype", values="estimate").loc[names, types]
    below = table.assign(p=table["p_bh"] < alpha)
    dots = below.pivot(index="gene", columns="celltype", values="p").loc[names, types]
    values = grid.to_numpy(dtype=float)
    if not np.isfinite(values).any():
        raise CTMMError("no gene has an effect: see reason in scan.table")
    reach = float(np.nanmax(np.abs(values))) or 1.0
    ax = style.axes(ax, 2.4 + 0.36 * len(types), 1.5 + 0.19 * len(names))
    image = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    rows, columns = np.nonzero(dots.to_numpy(dtype=bool))
    dark = np.abs(values[rows, columns]) > 0.6 * reach
    ax.scatter(columns, rows, s=7, c=np.where(dark, "white", "black"), linewidths=0)
    if types[-1:] == ["mean"] and len(types) > 1:
        ax.axvline(len(types) - 1.5, color=ax.get_facecolor(), linewidth=3)
    differ = table.drop_duplicates("gene").set_index("gene")["heterogeneity_bh"].loc[names] < alpha
    ends = [f" {_DIFFER}" if own else "" for own in differ]
    style.finish(ax)
    style.names_beside(ax, names, ends)
    ax.set_xticks(range(len(types)), types, rotation=40, ha="right", rotation_mode="anchor",
                  parse_math=False)  # fmt: skip
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03)
    bar.set_label("effect", fontsize=style.SMALL + 1)
    bar.ax.tick_params(labelsize=style.SMALL)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=style.SMALL)
    text = f"● BH p < {alpha:g}"
    text += f", {_DIFFER} types differ" if np.isfinite(table["heterogeneity_bh"]).any() else ""
    style.note(ax, text)
    return ax


def effects_data(
    scan: object, effect: str | None = None, *, genes: int | Sequence[str] = 20
) -> pd.DataFrame:
    """Numbers that :func:`effects` draws.

    Returns
    -------
    DataFrame
        One row per gene and cell type (and mean): gene, celltype, estimate, std_error, p_value,
        p_bh, omnibus (p), heterogeneity_bh; genes in the order of the picture.
    """
    found, test, level = _asked(scan, effect)
    known, table = _types(found, test, level), found.table
    column = f"p_{test}_heterogeneity_bh"
    about = pd.DataFrame(
        {"gene": table["gene"].astype(str), "omnibus": table[f"p_{test}"],
         "heterogeneity_bh": table.get(column, np.nan)}
    ).set_index("gene")  # fmt: skip
    order = about["omnibus"].sort_values(kind="stable").dropna().index
    if np.ndim(genes) == 0 and not isinstance(genes, str):
        chosen = list(order[: whole_number("genes", genes, 1)])
    else:
        chosen = [genes] if isinstance(genes, str) else [str(name) for name in genes]  # type: ignore
        for name in chosen:
            if name not in about.index:
                raise CTMMError(f"genes=: there is no gene {name!r}{near(name, list(order))}")
    parts = volcano_data(found, test.removeprefix(PREFIX) + level, celltypes=list(known))
    wide = parts.set_index(["gene", "celltype"])
    keys = pd.MultiIndex.from_product([chosen, list(known)], names=["gene", "celltype"])
    out = wide.loc[keys, ["estimate", "std_error", "p_value", "p_bh"]].reset_index()
    return out.join(about, on="gene")


def _asked(scan: object, effect: str | None) -> tuple[Any, str, str]:
    """The scan, its test of effects, and "[level]" or ""."""
    found: Any = scan
    if not all(hasattr(scan, name) for name in ("table", "layout")):
        raise CTMMError(f"expected a scan, what ctmm.fit_genes returns, got {type(scan).__name__}")
    tests = [name for name in found.layout.parts if name.startswith(PREFIX)]
    if not tests:
        raise CTMMError('the scan has no effects: fit_genes(..., tests=["effects:VARIABLE"])')
    choices: dict[str, tuple[str, str]] = {}
    for test in tests:
        levels = [end[5:] for end in found.layout.parts[test] if end.startswith("_mean[")]
        choices |= {f"{test.removeprefix(PREFIX)}{end}": (test, end) for end in levels or [""]}
    name = next(iter(choices)) if effect is None else choose("effect", effect, choices)
    return found, *choices[name]


def _types(scan: Any, test: str, level: str) -> dict[str, str]:
    """Cell types and "mean" -> the end of the name of their effect."""
    singles = [end for end, single in scan.layout.parts[test].items() if single]
    head = f"{level[:-1]}," if level else "["
    out = {name: f"{head}{name}]" for name in scan.layout.celltypes}
    return {n: end for n, end in {**out, "mean": f"_mean{level}"}.items() if end in singles}


def _panels(ax: Any, count: int) -> np.ndarray:
    """Axes in rows of up to four, those given or new ones."""
    out = np.empty(count, dtype=object)
    if count == 1:
        out[:] = [style.axes(ax, 3.4, 3.2)]
        return out
    if ax is None:
        from matplotlib.figure import Figure

        across = min(count, _ACROSS)
        down = -(-count // across)
        figure = Figure(figsize=(2.3 * across + 0.4, 2.4 * down + 0.2), layout="constrained")
        every = np.ravel(figure.subplots(down, across, squeeze=False))
        for unused in every[count:]:
            unused.remove()
        return every[:count]
    out[:] = style.panels(ax, count, 0.0, 0.0)
    return out


def _chosen(shown: pd.DataFrame, found: np.ndarray, genes: int | Sequence[str]) -> list[int]:
    """Rows of the genes to name."""
    if np.ndim(genes) == 0 and not isinstance(genes, str):
        best = shown[found].sort_values("p_value", kind="stable").index
        return [int(k) for k in best[: whole_number("genes", genes, 0)]]
    wanted = [genes] if isinstance(genes, str) else [str(name) for name in genes]  # type: ignore
    row = {name: k for k, name in enumerate(shown["gene"])}
    for name in wanted:
        if name not in row:
            raise CTMMError(f"genes=: there is no effect of a gene {name!r}{near(name, list(row))}")
    return [row[name] for name in wanted]
