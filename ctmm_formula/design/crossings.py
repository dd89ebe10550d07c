"""Groups of donors and conditions of the same donors: what every row has of a donor's effects.

A column of groups (``by=``) or of conditions (``within=``) copies the effects of a donor, see
:mod:`ctmm_formula.structures`; here it becomes a :class:`~ctmm_formula.structures.Crossing` and
the loads z (n, G) by which rows see the copies.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..errors import DataError
from ..structures import Crossing
from .prepare import Prepared
from .table import listing, rows


def crossing_of(ready: Prepared) -> tuple[Crossing | None, np.ndarray | None]:
    """What the effects of donors are crossed with, and the loads of the rows, or None.

    Raises
    ------
    DataError
        The column of donors or cell types, one group or condition, a group that differs within a
        donor, or no donor with two conditions.
    """
    roles = ready.roles
    if roles.by is None and roles.within is None:
        return None, None
    kind, column = ("by", roles.by) if roles.within is None else ("within", roles.within)
    column = str(column)
    if column in (roles.donor, roles.celltype):
        what = "donors" if column == roles.donor else "cell types"
        raise DataError(
            f"{kind}={column!r} is the column of {what}: name the column of "
            f"{'groups' if kind == 'by' else 'conditions'}, or leave {kind}= out"
        )
    values = ready.labels.get(column)
    donors = ready.labels[roles.donor]
    if values is None:
        x = ready.frame[column].to_numpy(dtype=float)
        _check_constant(x, column, donors, ready.keep)
        low, high = float(x.min()), float(x.max())
        if not np.isfinite([low, high]).all() or low == high:
            raise DataError(
                f"by={column!r}: the column is {'constant' if low == high else 'not finite'} "
                f"({high:g}): leave by= out, or correct it"
            )
        crossing = Crossing("trend", column, ("", column), (low, high))
        return crossing, loads_of(crossing, pd.Series(x))
    levels = tuple(values.categories)
    if len(levels) < 2:
        left = f" once rows are left out ({ready.left_out})" if ready.dropped else ""
        raise DataError(
            f"{kind}={column!r}: the column has one level, {levels[0]!r}{left}: leave it out"
        )
    if kind == "by":
        _check_constant(np.asarray(values.codes), column, donors, ready.keep)
    else:
        pairs = pd.DataFrame({"donor": donors.codes, "level": values.codes}).drop_duplicates()
        if not pairs["donor"].duplicated().any():
            raise DataError(
                f"within={column!r}: no donor has two of {listing(levels)}: the levels are groups "
                f"of donors, by={column!r}"
            )
    crossing = Crossing(kind, column, levels)
    return crossing, loads_of(crossing, pd.Series(values))


def _check_constant(
    values: np.ndarray, column: str, donors: pd.Categorical, keep: np.ndarray
) -> None:
    """A group belongs to a donor."""
    first = pd.Series(values).groupby(np.asarray(donors.codes)).transform("first").to_numpy()
    bad = np.flatnonzero(values != first)
    if len(bad):
        own = np.flatnonzero(donors == donors[bad[0]])
        raise DataError(
            f"by={column!r} names groups of donors, but the column differs within donor "
            f"{str(donors[bad[0]])!r} ({rows(keep[own])}): conditions of the same donors are "
            f"within={column!r}"
        )


def loads_of(crossing: Crossing, values: pd.Series) -> np.ndarray:
    """Loads (m, G) of rows with these values of the column; zeros where they are not known.

    >>> loads_of(Crossing("by", "status", ("ctrl", "case")), pd.Series(["case", None])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    >>> loads_of(Crossing("trend", "age", ("", "age"), (20.0, 60.0)), pd.Series([30.0])).tolist()
    [[1.0, 0.5]]
    """
    if crossing.kind == "trend":
        low, high = crossing.span
        x = (values.to_numpy(dtype=float) - low) / (high - low)
        known = np.isfinite(x)
        return np.where(
            known[:, None], np.column_stack([np.ones(len(x)), np.sqrt(np.maximum(x, 0.0))]), 0.0
        )
    texts = values.astype(object).to_numpy()
    return (texts[:, None] == np.array(crossing.levels, dtype=object)).astype(np.float64)


def crossed_rows(loads: np.ndarray | None, H: np.ndarray) -> np.ndarray:
    """Rows z (x) h of loads (n, G) and cell types (n, C); all of `H` where there are none.

    >>> crossed_rows(np.array([[0.0, 1.0]]), np.array([[0.3, 0.7]])).tolist()
    [[0.0, 0.0, 0.3, 0.7]]
    """
    if loads is None:
        return H
    return np.ascontiguousarray((loads[:, :, None] * H[:, None, :]).reshape(len(H), -1))
