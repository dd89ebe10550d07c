"""How often tests are positive, by the settings of a study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..design.table import numbers
from ..errors import CTMMError, DataError
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_COUNTS = ("n", "n_failed", "alpha")
_LABELS = {
    "n_donors": "donors", "cells": "cells per donor and cell type", "celltypes": "cell types",
    "noise_cv": "CV of measured noise variances", "rate": "positive rate",
}  # fmt: skip


@style.picture
def power_curves(
    table: pd.DataFrame,
    x: str = "n_donors",
    y: str = "rate",
    *,
    error: str | None = "se",
    by: str = "test",
    split: str | Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw positive rates by one setting, with bars of one standard error to either side.

    Curves stand a little beside each other, so that those that coincide are all seen.

    Parameters
    ----------
    table : DataFrame
        One row per setting and test: what :func:`ctmm_formula.power` returns, or any such table.
    x, y, error : str
        Columns of the setting along the axis, the rate and its standard error (None: no bars).
    by : str
        Column that gets colours.
    split : str or list of str, optional
        Columns that get lines and markers; default all others that vary.
    ax : Axes, optional

    Returns
    -------
    Axes
        Dashed grey: the level of the tests, where the column ``alpha`` has one value.  Bars that
        reach beyond 0 or 1 are drawn in full: cut off they would look like smaller errors.

    Examples
    --------
    >>> import pandas as pd
    >>> import ctmm_formula as ctmm
    >>> table = pd.DataFrame({"n_donors": [25, 50] * 2, "test": ["score"] * 2 + ["lrt"] * 2,
    ...                       "rate": [0.3, 0.6, 0.4, 0.7], "se": 0.02})
    >>> ctmm.plots.power_curves(table).get_xlabel()
    'donors'
    """
    from matplotlib.transforms import ScaledTranslation

    data = power_curves_data(table, x, y, error=error, by=by, split=split)
    ax = style.axes(ax, 4.6, 3.2)
    tests, lines = (list(dict.fromkeys(data[name])) for name in ("series", "line"))
    places = _places(data["x"])
    names = style.colors(tests)
    shapes = {line: (_LINES[k % 4], _MARKS[k % 8]) for k, line in enumerate(lines)}
    curves = list(data.groupby(["line", "series"], sort=False))
    values = list(places.values())
    shifts = _shifts(ax, values, len(curves))
    for ((line, test), own), shift in zip(curves, shifts, strict=True):
        dash, mark = shapes[str(line)]
        at = [places[value] for value in own["x"]]
        ax.errorbar(
            at, own["y"], None if error is None else own["error"], color=names[str(test)],
            linestyle=dash, marker=mark, ms=4, linewidth=1.3, capsize=2, elinewidth=0.9,
            transform=ax.transData + ScaledTranslation(shift, 0.0, ax.figure.dpi_scale_trans),
        )  # fmt: skip
    alpha = table["alpha"] if "alpha" in table.columns else pd.Series(dtype=float)
    levels = np.unique(numbers(alpha, "alpha", "level"))
    if len(levels) == 1 and np.isfinite(levels[0]):
        ax.axhline(float(levels[0]), color=style.LINE, linewidth=0.8, linestyle=(0, (4, 3)))
    for test in tests:
        ax.plot([], [], color=names[test], linewidth=2, label=style.in_key(test))
    if len(lines) > 1:
        for line, (dash, mark) in shapes.items():
            shape: Any = {"linestyle": dash, "marker": mark, "ms": 4}
            ax.plot([], [], color=style.LINE, label=style.in_key(line), **shape)
    if any(place != value for value, place in places.items()):
        style.names_below(ax, values, [_text(value) for value in places])
    elif len(values) <= 8:
        shown = _apart(ax, values)
        ax.set_xticks(shown, [f"{value:g}" for value in shown])
    reach = data["error"].fillna(0.0)
    low, high = float((data["y"] - reach).min()), float((data["y"] + reach).max())
    ends = min(low, 0.0), max(high, 1.0 if high > 0.5 else 0.055)
    margin = 0.03 * (ends[1] - ends[0])
    ax.set_ylim(ends[0] - margin, ends[1] + margin)
    drawn = _LABELS.get(y, y)
    style.finish(ax, _LABELS.get(x, x), f"{drawn} ± 1 SE" if error else drawn)
    lost = int(data["y"].isna().sum())
    style.note(ax, f"{style.count(lost, 'setting')} without a rate left out" if lost else "")
    if len(tests) + len(lines) > 2:
        style.key(ax)
    return ax


def power_curves_data(
    table: pd.DataFrame,
    x: str = "n_donors",
    y: str = "rate",
    *,
    error: str | None = "se",
    by: str = "test",
    split: str | Sequence[str] | None = None,
) -> pd.DataFrame:
    """Numbers that :func:`power_curves` draws.

    Returns
    -------
    DataFrame
        series (value of `by`), line (values of `split` as text), x, y, error; sorted by x.
    """
    if not isinstance(table, pd.DataFrame):
        raise CTMMError(f"expected a table, what ctmm.power returns, got {type(table).__name__}")
    given: Any = [] if split is None else split
    wanted = list(given) if np.iterable(given) and not isinstance(given, str) else [given]
    used = [x, y, by, *([error] if error else [])]
    style.require(table, [*used, *wanted], "name the columns by x=, y=, error=, by= and split=")
    rates = [numbers(table[name], name, "rate") for name in (y, error or y)]
    if any(np.isinf(values).any() for values in rates) or (error and (rates[1] < 0.0).any()):
        raise DataError(f"{y!r} and {error!r} must be finite, and errors not negative")
    if np.isnan(rates[0]).all():
        raise CTMMError(f"all of {y!r} are missing: there is nothing to draw")
    if split is None:
        others = [c for c in table.columns if c not in {*used, *_COUNTS}]
        wanted = [c for c in others if table[c].map(_text).nunique() > 1]
    at = ["none" if pd.isna(value) is True else value for value in table[x]]
    lines = [", ".join(f"{c} {_text(row[c])}" for c in wanted) for _, row in table.iterrows()]
    out = pd.DataFrame(
        {"series": table[by].map(_text).to_numpy(), "line": lines, "x": pd.Series(at).to_numpy(),
         "y": rates[0], "error": rates[1] if error else np.nan}
    )  # fmt: skip
    keys = out.assign(x=out["x"].map(_text))
    twice = keys.duplicated(["series", "line", "x"])
    if twice.any():
        first = keys[twice].iloc[0]
        raise DataError(
            f"{by} {first['series']!r} has several rows at {x} {first['x']}: name the columns "
            "that tell them apart by split="
        )
    places = _places(out["x"])
    order = np.argsort([places[value] for value in out["x"]], kind="stable")
    return out.iloc[order].reset_index(drop=True)


def _shifts(ax: Axes, values: Sequence[float], count: int) -> np.ndarray:
    """Inches that each curve stands to the side, nearer to its setting than to the next one.

    Sets the limits of x, which shifted curves do not find.
    """
    apart, width = np.diff(np.unique(values)), style.room(ax, 1)
    span = float(np.ptp(values)) or 1.0
    nearest = apart.min(initial=span) / span * width
    shifts = (np.arange(count) - (count - 1) / 2) * min(3 / 72, 0.6 * nearest / count)
    margin = span * (0.05 + 1.3 * shifts[-1] / width)  # the key takes some of the width
    ax.set_xlim(min(values) - margin, max(values) + margin)
    return shifts


def _apart(ax: Axes, values: Sequence[float]) -> list[float]:
    """Those of the values whose numbers do not touch on the x axis, the first and what follows."""
    low, high = ax.get_xlim()
    per_inch = (high - low) / style.room(ax, 1)
    shown: list[float] = []
    for value in sorted(values):
        number = style.extent([f"{value:g}"], style.SMALL) + 0.08
        if not shown or value - shown[-1] >= number * per_inch:
            shown.append(value)
    return shown


def _places(values: pd.Series) -> dict[object, float]:
    """Where each value stands: numbers at themselves, others side by side as they come."""
    try:
        return {value: float(value) for value in values}
    except (TypeError, ValueError, OverflowError):
        return {value: float(k) for k, value in enumerate(dict.fromkeys(values))}


def _text(value: object) -> str:
    """Short text of a setting."""
    if isinstance(value, (float, np.floating)):
        return f"{value:g}"
    if isinstance(value, (tuple, list, np.ndarray)):
        return "(" + ", ".join(map(_text, value)) + ")"
    return str(value)
