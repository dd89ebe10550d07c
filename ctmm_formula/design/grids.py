"""Rows of the design at values of its columns: means of cell types there, and their differences.

Rows come from the formula itself, as for new data: every row of the fit once per cell type, some
columns set to a value, the others as observed.  No coding of the fixed part is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from ..arguments import iterable
from ..errors import CTMMError, FormulaError
from ..inference.differences import Differences
from . import arrays
from .labelled import Design
from .table import label, listing

_SAME = 1e-9  # relative to the largest entry of the rows

Settings = Mapping[str, object]
"""Column -> its value."""


def variables(design: Design) -> list[str]:
    """Columns of the fixed part beside cell types and their proportions."""
    taken = {design.celltype_col, *design.proportion_cols}
    return [str(name) for name in design.coded().frame.columns if name not in taken]


def levels_of(design: Design, name: str) -> list[object]:
    """Values of a factor in their order, none of a number."""
    column = design.coded().frame[name]
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.categories)
    return [False, True] if column.dtype == bool else []


def variable(design: Design, name: object) -> str:
    """A column of the fixed part, or an error that lists them.

    Raises
    ------
    CTMMError
    """
    names = variables(design)
    if not isinstance(name, str) or name not in names:
        own = isinstance(name, str) and name == design.celltype_col
        of = "; for cell types see means() and contrasts()" if own else ""
        raise CTMMError(
            f"unknown variable {name!r:.80} of the fixed part: choose from "
            f"{listing(names, 20) if names else 'none, it has no covariates'}{of}"
        )
    return name


def rows_at(design: Design, at: Settings, held: Settings | None = None) -> np.ndarray:
    """Design rows of every row of the fit in every cell type, columns `at` set, (C, n, p).

    `held` are more of them.
    """
    coding, size = design.coded(), len(design.celltypes)
    frame = coding.frame.copy()
    for name, value in {**(held or {}), **at}.items():
        frame[name] = _column(design, variable(design, name), value)
    n = len(frame)
    frame = pd.concat([frame] * size, ignore_index=True)
    codes = np.repeat(np.arange(size), n)
    own = design.celltype_col
    if own in frame.columns:
        kind = pd.CategoricalDtype(pd.Index(design.celltypes, dtype=object))
        frame[own] = pd.Categorical.from_codes(codes, dtype=kind)
    P = None
    if own is None:
        P = np.eye(size)[codes]
        for k, name in enumerate(design.proportion_cols):
            if name in frame.columns:
                frame[name] = P[:, k]
    return arrays.design_rows(coding, frame, P).reshape(size, n, -1)


def _column(design: Design, name: str, value: object) -> Any:
    """A column of one value, coded as in the fit."""
    trained = design.coded().frame[name]
    size = len(trained)
    if isinstance(trained.dtype, pd.CategoricalDtype):
        known = [label(one) for one in trained.cat.categories]
        if label(value) not in known:
            raise _unknown(name, value, known)
        codes = np.full(size, known.index(label(value)))
        return pd.Categorical.from_codes(codes, dtype=trained.dtype)
    if trained.dtype == bool:
        if value not in (False, True):
            raise _unknown(name, value, ["False", "True"])
        return np.full(size, bool(value))
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not good or not np.isfinite(float(value)):  # type: ignore[arg-type]
        raise CTMMError(f"{name!r} holds numbers, and one is needed here, got {value!r}")
    return np.full(size, float(value))  # type: ignore[arg-type]


def _unknown(name: str, value: object, known: Sequence[str]) -> CTMMError:
    return CTMMError(f"{name!r} has no level {value!r}: choose from {listing(known, 20)}")


def settings(at: object) -> dict[str, Any]:
    """``at=`` as a dict, or an error."""
    if at is None:
        return {}
    if not isinstance(at, Mapping):
        raise CTMMError(
            f"at= takes values by column, such as {{'age': 50}}, got {type(at).__name__}"
        )
    return {str(name): value for name, value in at.items()}


def grid(at: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns that take several values, and all combinations of values.

    >>> grid({"status": ["case", "control"], "age": 50})[0]
    ['status']
    """
    several = [n for n, v in at.items() if iterable(v) and not isinstance(v, (str, bytes))]
    lists = [list(v) if n in several else [v] for n, v in at.items()]
    if not all(lists):
        raise CTMMError(f"at= has no values for {list(at)[lists.index([])]!r}: give at least one")
    return several, [dict(zip(at, values, strict=True)) for values in product(*lists)]


def differences(
    design: Design, name: str, values: Iterable[object] | None = None, at: object = None
) -> Differences:
    """Effects of a variable in every cell type, as differences of rows of the design.

    Parameters
    ----------
    design : Design
    name : str
        A column of the fixed part.
    values : sequence, optional
        Two or more values to compare, the first is the reference; by default all levels of a
        factor in their order, and one unit more of a number.
    at : dict, optional
        Values of other columns; the others are as observed, and the effect is that of their mean.

    Raises
    ------
    CTMMError
        No such column or level.
    FormulaError
        A number that the formula bends, without `values`.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> design = ctmm.fit("expr ~ C(celltype) * sex", data=ctmm.load_example()).design
    >>> found = differences(design, "sex")
    >>> found.comparisons, found.rows[0, 1].tolist()
    (('M - F',), [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    """
    known = design.known_effects.get(name) if isinstance(name, str) else None
    if known is not None and values is None and not at:
        return known
    name, held = variable(design, name), settings(at)
    if name in held:
        raise CTMMError(f"at= cannot hold {name!r}, whose effect is asked for")
    levels: list[Any] = levels_of(design, name)
    asked: list[Any] = []
    steps: tuple[str, ...] = (name,)
    reference = ""
    if values is None and not levels:
        rows = _slope(design, name, held)[None]
    else:
        asked = levels if values is None else _values(values)
        own = [rows_at(design, {name: value}, held) for value in asked]
        rows = np.array([one - own[0] for one in own[1:]])
        reference, *rest = [_shown(value) for value in asked]
        steps = tuple(rest)
    mean = rows.mean(axis=2)
    unknown = np.isnan(mean).any(axis=(0, 2))
    missing = {
        celltype: _unseen(design, celltype, name, asked)
        for celltype, gone in zip(design.celltypes, unknown, strict=True)
        if gone
    }
    where = _held(design, name, asked, held, rows)
    return Differences(name, reference, steps, design.celltypes, mean, missing, where)


def _unseen(design: Design, celltype: str, name: str, values: Sequence[object]) -> str:
    """Why the effects in a cell type are not known."""
    frame = design.frame
    rows = frame[name][frame[design.celltype_col] == celltype]
    absent = [_shown(value) for value in values if not (rows == value).any()]
    if absent:
        return f"no rows with {name} = {listing(absent)}"
    return "some combinations of the covariates have no rows"


def _values(values: object) -> list[Any]:
    good = iterable(values) and not isinstance(values, (str, bytes))
    found: list[Any] = list(values) if good else []  # type: ignore[call-overload]
    if len(found) < 2 or len({_shown(value) for value in found}) < len(found):
        raise CTMMError(
            "values= needs two or more different values to compare, the first is the reference, "
            f"got {values!r}"
        )
    return found


def _shown(value: object) -> str:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return f"{value:g}" if number else label(value)


def _slope(design: Design, name: str, held: Settings) -> np.ndarray:
    """Rows (C, n, p) of one unit more, where the formula is linear in it."""
    column = design.coded().frame[name].to_numpy(dtype=float)
    low, high = float(column.min()), float(column.max())
    middle = low + 0.5 * (high - low)
    first, second, third = (rows_at(design, {name: x}, held) for x in (low, middle, high))
    bend = np.nanmax(np.abs((third - second) - (second - first)), initial=0.0)
    if bend > _SAME * np.nanmax(np.abs([first, third])):
        raise FormulaError(
            f"the formula is no straight line in {name!r}, so that its effect depends on the "
            f"values that are compared: name them, values=({low:g}, {high:g})"
        )
    return (third - first) / (high - low)


def _held(
    design: Design, name: str, levels: Sequence[object], held: Settings, rows: np.ndarray
) -> str:
    """What the effect is taken at, in words."""
    parts = [f"{key} = {_shown(value)}" for key, value in held.items()]
    said = f"at {', '.join(parts)}" if parts else ""
    scale = _SAME * max(np.nanmax(np.abs(rows), initial=0.0), 1e-300)
    known = rows[np.isfinite(rows).all(axis=(2, 3))]
    if (np.ptp(known, axis=1) <= scale).all():
        return said
    column = design.coded().frame[name]
    ends = [levels[0], levels[-1]] if levels else [column.min(), column.max()]
    frame, matter = design.coded().frame, []
    for other in variables(design):
        if other == name or other in held:
            continue
        fixed = {**held, other: frame[other].iloc[0]}
        low, high = (rows_at(design, {name: value}, fixed) for value in ends)
        before, after = (rows_at(design, {name: value}, held) for value in ends)
        if np.nanmax(np.abs((high - low) - (after - before)), initial=0.0) > scale:
            matter.append(other)
    mean = f"averaged over {listing(matter, 20)} of the rows of the fit"
    return ", ".join(filter(None, (said, mean)))


def cells(design: Design, at: object = None) -> dict[str, np.ndarray]:
    """Rows (p,) of the means that contrasts can name.

    Cell types as in ``means()``, ``T``; and in them every level of a factor, ``T|case`` (or
    ``T|status=case``, where two factors have the level).

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) * sex", data=ctmm.load_example(), structure="hom")
    >>> list(cells(res.design))[3:6]
    ['day3', 'day0|F', 'day0|M']
    """
    held = settings(at)
    if design.coding is None:
        return design.known_cells | dict(zip(design.celltypes, design.mean_rows, strict=True))
    rows = rows_at(design, held).mean(axis=1) if held else design.mean_rows
    out = dict(zip(design.celltypes, rows, strict=True))
    factors = {n: levels_of(design, n) for n in variables(design) if n not in held}
    texts = [_shown(value) for levels in factors.values() for value in levels]
    for name, levels in factors.items():
        found = [rows_at(design, {name: value}, held).mean(axis=1) for value in levels]
        for c, celltype in enumerate(design.celltypes):
            for value, own in zip(levels, found, strict=True):
                text = _shown(value)
                unclear = texts.count(text) > 1
                end = f"{name}={text}" if unclear else text
                out.setdefault(f"{celltype}|{end}", own[c])
    return out
