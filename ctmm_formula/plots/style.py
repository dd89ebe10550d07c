"""What all pictures share: colours, names, sizes, and errors about what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd

from ..errors import CTMMError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.legend import Legend

PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000",
)  # fmt: skip
"""Distinguishable with any colour vision (Okabe & Ito 2008)."""
SHARED, SPECIFIC, MARK, MUTED, LINE = "#4D4D4D", "#0072B2", "#D55E00", "#BBBBBB", "#666666"
SMALL = 8
"""Points: labels and ticks, readable where a picture is one column wide."""


F = TypeVar("F", bound=Callable[..., Any])


def picture(draw: F) -> F:
    """The function, with an error that says how to get matplotlib where there is none."""

    @wraps(draw)
    def drawn(*given: Any, **options: Any) -> Any:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise CTMMError("pictures need matplotlib: pip install 'ctmm-formula[plots]'") from None
        return draw(*given, **options)

    return cast(F, drawn)


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
        return _given(ax)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def _given(ax: object) -> Axes:
    """`ax`, if it is one."""
    from matplotlib.axes import Axes

    if isinstance(ax, Axes):
        return ax
    raise CTMMError(
        f"ax= takes one matplotlib Axes, got {type(ax).__name__}: of a figure give "
        "ax=figure.subplots(), of several axes one, ax=axes[0]"
    )


def panels(ax: Sequence[Axes] | None, count: int, width: float, height: float) -> list[Axes]:
    """Axes side by side, those given or new ones."""
    if ax is None:
        from matplotlib.figure import Figure

        return list(Figure(figsize=(width, height), layout="constrained").subplots(1, count))
    given = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(given) != count:
        raise CTMMError(
            f"ax= must be {count} Axes, one per panel, got {len(given)}: give "
            f"ax=figure.subplots(1, {count})"
        )
    return [_given(one) for one in given]


def finish(ax: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """Labels, small ticks, no box."""
    if xlabel:
        ax.set_xlabel(xlabel, fontsize=SMALL + 1, wrap=True)  # where it is longer than the page
    if ylabel:
        ax.set_ylabel(ylabel, fontsize=SMALL + 1, wrap=True)
    if title:
        ax.set_title(title, fontsize=SMALL + 2)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def note(ax: Axes, text: str, above: float = 0.0) -> None:
    """A remark above the picture, such as how many genes are not in it; `above` in points."""
    if text:
        ax.annotate(
            text, (1.0, 1.0), xycoords="axes fraction", xytext=(0, 3 + above),
            textcoords="offset points", ha="right", va="bottom", fontsize=SMALL - 1, alpha=0.6,
        )  # fmt: skip


def remarks(*given: tuple[object, str]) -> str:
    """Remarks for :func:`note`, one a line; each is given with what must be true of it.

    >>> remarks((2, "2 left out"), (0, "0 at the edge"))
    '2 left out'
    """
    return "\n".join(text for holds, text in given if holds)


def count(number: int, thing: str) -> str:
    """Number and name of things.

    >>> count(1, "gene"), count(2, "gene")
    ('1 gene', '2 genes')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def require(table: pd.DataFrame, columns: Iterable[str], fix: str) -> None:
    """An error that names the columns a picture lacks and what gives them."""
    there = list(table.columns)  # of which lists, too, are none
    lost = [name for name in columns if name not in there]
    if lost:
        raise CTMMError(f"there is no column {', '.join(map(repr, lost))}: {fix}")


def fitted(res: object) -> Any:
    """`res`, if it is a fit."""
    if all(hasattr(res, name) for name in ("design", "vcomp", "estimate")):
        return res
    raise CTMMError(f"expected a fit, what ctmm.fit returns, got {type(res).__name__}")


def inches(ax: Axes) -> tuple[float, float]:
    """Width and height of the figure, or part of one, that holds the axes."""
    box = ax.figure.bbox
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def cell(ax: Axes) -> tuple[float, float]:
    """Width and height of what the axes share with no others, in inches."""
    width, height = inches(ax)
    spec = ax.get_subplotspec()
    if spec is None:
        return width, height
    box, pars = spec.get_position(ax.figure), ax.figure.subplotpars  # type: ignore[arg-type]
    across, up = box.width / (pars.right - pars.left), box.height / (pars.top - pars.bottom)
    return width * min(across, 1.0), height * min(up, 1.0)


def room(ax: Axes, count: float, axis: int = 0) -> float:
    """Inches that each of `count` things has on the x axis (0) or y axis (1)."""
    whole, own = inches(ax)[axis], cell(ax)[axis]
    # of axes beside others a layout takes some for the names of these
    part = ax.get_position().size[axis] * ((0.75, 0.6)[axis] if own < 0.99 * whole else 1.0)
    return part * whole / max(count, 1)


def slope_below(ax: Axes, count: int) -> tuple[float, float]:
    """Degrees at which so many names below the axes do not touch, and inches each may take."""
    slope = 90.0 if room(ax, count) < 0.2 else 40.0
    return slope, 0.42 * cell(ax)[1] / np.sin(np.deg2rad(slope))


def names_below(ax: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Names along the x axis, slanted where they would touch, upright where these would too."""
    slope, longest = slope_below(ax, len(names))
    upright = slope == 90.0
    names = shortened(names, longest)
    ax.set_xticks(list(places), names, parse_math=False)
    if extent(names, SMALL) + 0.1 > room(ax, len(names)):
        for text in ax.get_xticklabels():
            side = "center" if upright else "right"
            text.set(rotation=slope, ha=side, rotation_mode="default" if upright else "anchor")


def names_beside(ax: Axes, names: Sequence[str], ends: Sequence[str] | None = None) -> None:
    """Names along the y axis, from place 0, with these ends, which are never shortened.

    Smaller ones where they would touch, to be called after :func:`finish`.
    """
    ends = [""] * len(names) if ends is None else ends
    short = shortened(names, 0.45 * cell(ax)[0] - extent(ends, SMALL))
    whole = [f"{name}{end}" for name, end in zip(short, ends, strict=True)]
    ax.set_yticks(range(len(names)), whole, parse_math=False)
    ax.tick_params(axis="y", labelsize=np.clip(72 * room(ax, len(names), 1) / 1.1, 5.0, SMALL))


def shortened(names: Sequence[str], inches: float, size: float = SMALL) -> list[str]:
    """Names as long as this, or as they must be to differ: longer ones lose ends of words.

    Where that is not enough, as in a single word, they lose a part inside.

    >>> shortened(["CD4 effector memory", "NK", "ENSG00000187608"], 0.9)
    ['CD4 eff. mem.', 'NK', 'ENSG00000…7608']
    """
    most = max(int(inches / extent(["x"], size)), 8)
    for length in range(most, max(map(len, names), default=0)):
        for words, tail in product((True, False), (length // 3, 2 * length // 3, 1)):
            short = [n if len(n) <= length else _cut(n, length, words, tail) for n in names]
            if len(set(short)) == len(set(names)):
                return short
    return list(names)


def _cut(name: str, length: int, words: bool, tail: int) -> str:
    """A name of this length: its words cut alike to 3 letters or more, or what comes after them.

    Else, as of a single word, what comes before its tail.
    """
    for letters in range(length, 2, -1) if words else ():
        # whole words only: numbers, and letters beside them, tell names apart
        long = rf"(?<![^\W_])([^\W\d_]{{{letters}}})[^\W\d_]{{2,}}(?![^\W_])"
        if len(short := re.sub(long, r"\1.", name)) <= length:
            return short
    if words and re.search(r"[\W_]", name):
        return f"{name[: length - 1].rstrip()}…"
    return f"{name[: length - tail - 1]}…{name[-tail:]}"


def key(ax: Axes, where: str = "right", markerscale: float = 1.0) -> None:
    """Legend outside the axes: above them, or to the right; below where the names are long."""
    from matplotlib.transforms import ScaledTranslation

    handles: Any
    handles, names = ax.get_legend_handles_labels()
    size = SMALL - 1 if len(names) <= len(PALETTE) else SMALL - 2
    width = cell(ax)[0]
    names = shortened(names, 0.5 * width - 0.3, size)
    longest = extent(names, size) + 0.3  # with its sign
    if where == "right" and longest > width / 3:
        where = "below"
    spots: Any = {
        "above": ("lower right", (1.0, 1.0)),
        "right": ("upper left", (1.0, 1.0)),
        "below": ("upper right", (1.0, 0.0)),
    }
    loc, anchor = spots[where]
    down = -0.42 if where == "below" else 0.0  # inches: the axis and its label
    shifted = ax.transAxes + ScaledTranslation(0.0, down, ax.figure.dpi_scale_trans)
    columns = 1 if where == "right" else max(1, int(width / longest))
    lines = -(-len(names) // columns)
    key_of = ax.legend(
        handles, names, loc=loc, bbox_to_anchor=anchor, bbox_transform=shifted, borderaxespad=0.3,
        handlelength=1.2, columnspacing=0.8, labelspacing=0.3, handletextpad=0.5, frameon=False,
        fontsize=size, ncols=max(1, -(-len(names) // max(1, lines))), markerscale=markerscale,
    )  # fmt: skip
    literal(key_of)


def in_key(name: str) -> str:
    """A name as a key shows it: matplotlib leaves out those that begin with an underscore.

    >>> in_key("NK"), in_key("_other")
    ('NK', ' _other')
    """
    return f" {name}" if name.startswith("_") else name


def literal(key_of: Legend) -> None:
    """No formulas in a key: a dollar is a dollar."""
    for text in key_of.get_texts():
        text.set_parse_math(False)


def plain(axis: Axis) -> None:
    """Numbers of a logarithmic axis as 20, 50, 100, fewer where these touch, or powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = sorted(axis.get_view_interval())
    if low <= 0 or high / low > 1e3:
        return
    upright = int(axis is axis.axes.yaxis)
    each = room(axis.axes, 3 * np.log10(high / low), upright)
    touch = each < (0.3, 0.15)[upright]  # inches
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if touch else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def extent(names: Sequence[str], size: float) -> float:
    """Width in inches of the longest of the names."""
    return 0.55 * size / 72 * max(map(len, names), default=0)
