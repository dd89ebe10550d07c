"""What all pictures share: colours, names, sizes, and errors about what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import CTMMError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000",
)  # fmt: skip
"""Distinguishable with any colour vision (Okabe & Ito 2008)."""
SHARED, SPECIFIC, MARK, MUTED, LINE = "#4D4D4D", "#0072B2", "#D55E00", "#BBBBBB", "#666666"
SMALL = 8
"""Points: labels and ticks, readable where a picture is one column wide."""


def colors(names: Sequence[str]) -> dict[str, str | tuple[float, ...]]:
    """One colour per name, in order; beyond the palette's length from a perceptual map."""
    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE, strict=False))
    from matplotlib import colormaps

    steps = colormaps["viridis"](np.linspace(0.0, 0.92, len(names)))
    return {name: tuple(step) for name, step in zip(names, steps, strict=True)}


def axes(ax: Axes | None, width: float = 4.5, height: float = 3.4) -> Axes:
    """`ax`, or new ones of this size in inches on a figure that no window manager knows."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def finish(ax: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """Labels, small ticks, no box."""
    if xlabel:
        ax.set_xlabel(xlabel, fontsize=SMALL + 1)
    if ylabel:
        ax.set_ylabel(ylabel, fontsize=SMALL + 1)
    if title:
        ax.set_title(title, fontsize=SMALL + 2)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def note(ax: Axes, text: str) -> None:
    """A remark below the picture, such as how many genes are not in it."""
    if text:
        ax.annotate(
            text, (1.0, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points",
            ha="right", va="bottom", fontsize=SMALL - 1, color=LINE,
        )  # fmt: skip


def require(table: pd.DataFrame, columns: Iterable[str], fix: str) -> None:
    """An error that names the columns a picture lacks and what gives them."""
    lost = [name for name in columns if name not in table.columns]
    if lost:
        raise CTMMError(f"there is no column {', '.join(map(repr, lost))}: {fix}")
