"""Two tests of all genes against each other: what differs in mean, in variance, or in both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import check_alpha, whole_number
from ..design.table import near
from ..errors import CTMMError
from . import style
from .pvalues import at_edge, columns_of, sizes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@style.picture
def differentiation(
    scan: object,
    x: str = "mean",
    y: str | None = None,
    *,
    genes: int | Sequence[str] = 5,
    alpha: float = 0.05,
    ax: Axes | None = None,
) -> Axes:
    """Draw -log10 p of two tests against each other, by default means against variances.

    Parameters
    ----------
    scan : Scan or DataFrame
        A table with columns ``gene`` and ``p_<test>`` will do, such as that of two scans merged.
    x, y : str
        Tests; `y` by default the first of the scan's tests that is not `x`.
    genes : int or list of str
        Genes to name; a number: those with the smallest p values of `y` below its threshold.
    alpha : float
        Dashed lines: p = alpha over the number of genes tested (Bonferroni).
    ax : Axes, optional

    Returns
    -------
    Axes
        The lighter a point, the more genes are near it.  Genes without one of the p values are
        left out; p values of exactly 0 stand at the edge; the note counts both.  Names find their
        places when the picture is drawn: of many, some stand elsewhere at another size or
        resolution.

    Notes
    -----
    Figure 4 of Chen and Dahl, Nat Commun 15:5229 (2024).

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), tests=["score", "mean"],
    ...                       genes=["gene001", "gene002", "gene101", "gene102"])
    >>> scan.plot("differentiation").get_ylabel()
    '−log10 p (score)'
    """
    from matplotlib.colors import to_rgb

    from .names import name_points

    check_alpha(alpha)
    table = differentiation_data(scan, x, y)
    x, y = (name.removeprefix("p_") for name in table.columns[1:3])
    shown = table[table[["x", "y"]].notna().all(axis=1)].reset_index(drop=True)
    if shown.empty:
        raise CTMMError(f"no gene has p values of both {x} and {y}: see reason in the table")
    named = _chosen(shown, table, y, genes, alpha)
    ax = style.axes(ax, 4.2, 3.6)
    infinite = np.isinf(shown[["x", "y"]].to_numpy()).any(axis=1)
    cuts = -np.log10(alpha / table[["x", "y"]].notna().sum())
    place = np.column_stack([at_edge(shown[name], cuts[name]) for name in ("x", "y")])
    # few genes are dark on light pages, but to be seen on dark ones
    darkest = 0.0 if np.mean(to_rgb(ax.get_facecolor())) > 0.5 else -0.5
    order = np.argsort(density := _density(place), kind="stable")
    for some, marker in ((~infinite, "o"), (infinite, "^")):
        own = order[some[order]]
        ax.scatter(
            place[own, 0], place[own, 1], s=9, c=density[own], cmap="viridis", marker=marker,
            vmin=darkest, vmax=1.0, linewidths=0, rasterized=True,
        )  # fmt: skip
    ax.axvline(cuts["x"], color=style.LINE, linewidth=0.8, linestyle="--")
    ax.axhline(cuts["y"], color=style.LINE, linewidth=0.8, linestyle="--")
    ax.margins(0.06)
    style.finish(ax, f"−log10 p ({x})", f"−log10 p ({y})")
    name_points(ax, place[named], shown["gene"].iloc[named].tolist())
    lost = len(table) - len(shown)
    remarks = style.remarks(
        (lost, f"{lost} of {len(table)} genes without p left out"),
        (infinite.any(), f"{infinite.sum()} with p = 0 at the edge (▲)"),
    )
    style.note(ax, remarks)
    return ax


def differentiation_data(scan: object, x: str = "mean", y: str | None = None) -> pd.DataFrame:
    """Numbers that :func:`differentiation` draws.

    Returns
    -------
    DataFrame
        One row per gene: gene, p_<x>, p_<y>, x, y (their -log10; infinite where p is 0, NaN where
        there is none).
    """
    if y is None:
        tests = [name for name in columns_of(scan) if name != x]
        # the test of variances that was asked for first
        y = tests[0] if tests else "score"
    found = columns_of(scan, [x, y])
    if x == y:
        raise CTMMError(f"x and y are the same test, {x!r}")
    table: Any = getattr(scan, "table", scan)
    style.require(table, ["gene"], "the names of the genes")
    out = pd.DataFrame({"gene": table["gene"].astype(str).to_numpy()})
    for name, p in found.items():
        out[f"p_{name}"] = p
    sizes = sizes_of(scan, found)
    return out.assign(x=sizes[x], y=sizes[y])


def _chosen(
    shown: pd.DataFrame, table: pd.DataFrame, y: str, genes: int | Sequence[str], alpha: float
) -> list[int]:
    """Rows of the genes to name."""
    if np.ndim(genes) == 0 and not isinstance(genes, str):
        count = whole_number("genes", genes, 0)
        cut = -np.log10(alpha / table["y"].notna().sum())
        best = shown["y"].sort_values(ascending=False, kind="stable")
        return [int(k) for k in best[best >= cut].index[:count]]
    wanted = [genes] if isinstance(genes, str) else [str(name) for name in genes]  # type: ignore
    everything = set(table["gene"])
    for name in wanted:
        if name not in everything:
            close = near(name, sorted(everything)).replace("; the columns are", "; there are")
            raise CTMMError(f"genes=: there is no gene {name!r}{close}")
    row = {name: k for k, name in enumerate(shown["gene"])}
    without = [name for name in wanted if name not in row]
    if without:
        raise CTMMError(f"genes=: {', '.join(without)} has no p value of {y} or of the other test")
    return [row[name] for name in dict.fromkeys(wanted)]


def _density(place: np.ndarray) -> np.ndarray:
    """How many points are near each, from 0 to 1: a smoothed histogram, fast for any number."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    bins = 80
    low, high = place.min(axis=0), place.max(axis=0)
    span = np.where(high > low, high - low, 1.0)
    scaled = (place - low) / span * (bins - 1)
    edges = np.arange(bins + 1) - 0.5
    counts = np.histogram2d(scaled[:, 0], scaled[:, 1], bins=[edges, edges])[0]
    near_by = map_coordinates(gaussian_filter(counts, 1.5), scaled.T, order=1, mode="nearest")
    logs = np.log1p(near_by - near_by.min())
    return logs / (logs.max() or 1.0)
