"""Tables as the authors' package ctmm takes them, by position and without names, to a long one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
import pandas as pd

from ..arguments import name_list
from ..design.table import listing
from ..errors import DataError
from ..paths import file_path, said

_FIXED = {"donor", "celltype", "expr", "nu", "proportion"}


def from_ctmm(
    y: object,
    P: object,
    nu: object,
    *,
    fixed: Mapping[str, object] | None = None,
    random: Mapping[str, object] | None = None,
    celltypes: Sequence[str] | None = None,
    donors: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Long table of the inputs of the authors' package ctmm.

    Every table is a file of numbers without a header (separated by spaces), an array or a
    DataFrame, whose rows are donors in one order.  N donors, C cell types.

    Parameters
    ----------
    y : table, shape (N, C) or (N,)
        Cell type-specific pseudobulk (``ctp``), or overall pseudobulk (``op``); NaN where a donor
        lacks a cell type.
    P : table, shape (N, C)
        Proportions of cell types.
    nu : table, shape (N, C) or (N,)
        Noise variances of `y`.  Of overall pseudobulk (N, C) are those of the cell types, of
        which it has sum_c P_c^2 nu_c.
    fixed : dict name -> table, optional
        Covariates, (N,) or (N, k): columns ``name``, or ``name1`` to ``namek``.
    random : dict name -> table, optional
        Indicators of the levels of random effects, (N, levels): a column ``name`` of levels.
    celltypes, donors : sequence of str, optional
        Their names; by default those of the DataFrames `P` or `y`, else ``type1``, ``donor1``, ...

    Returns
    -------
    DataFrame
        For cell type-specific pseudobulk one row per donor and cell type: donor, celltype, expr,
        nu, proportion and the covariates, with NaN where `y` has none (fits leave such rows out
        and say so).  For overall pseudobulk one row per donor, with proportions as ``prop_NAME``.

    Raises
    ------
    DataError
        A file that cannot be read as numbers, shapes that do not fit together, indicators that are
        none.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> y, P = [[1.0, 2.0], [0.5, 1.5]], [[0.25, 0.75], [0.5, 0.5]]
    >>> ctmm.from_ctmm(y, P, [[0.1, 0.2], [0.3, 0.4]], fixed={"sex": [0, 1]}, celltypes=["B", "T"])
        donor celltype  expr   nu  proportion  sex
    0  donor1        B   1.0  0.1        0.25  0.0
    1  donor1        T   2.0  0.2        0.75  0.0
    2  donor2        B   0.5  0.3        0.50  1.0
    3  donor2        T   1.5  0.4        0.50  1.0
    """
    named = P if isinstance(P, pd.DataFrame) else y
    Y, shares, noise = _table("y", y), _table("P", P), _table("nu", nu)
    N, C = shares.shape
    overall = Y.shape[1] == 1 and C > 1
    if Y.shape not in {(N, C), (N, 1)}:
        raise DataError(f"y has shape {Y.shape} and P {shares.shape}: both are donors x cell types")
    if noise.shape not in ({(N, 1), (N, C)} if overall else {(N, C)}):
        raise DataError(f"nu has shape {noise.shape}: it needs {Y.shape}, as y has")
    if isinstance(named, pd.DataFrame):
        donors = list(named.index) if donors is None else donors
        celltypes = list(named.columns) if celltypes is None else celltypes
    _same_labels({"P": P, "y": y, "nu": nu})
    people = _names("donors", donors, N, "donor")
    types = _names("celltypes", celltypes, C, "type")
    covariates = _covariates(_by_name("fixed", fixed), N)
    for name, table in _by_name("random", random).items():
        _once(name, covariates)
        covariates[name] = _levels(name, _rows(f"random {name!r}", table, N))
    taken = (_FIXED | {f"prop_{name}" for name in types}).intersection(covariates)
    if taken:
        raise DataError(f"a covariate is named {sorted(taken)[0]!r} as a column of its own: rename")
    if overall:
        if noise.shape[1] > 1:
            noise = (shares**2 * noise).sum(axis=1, keepdims=True)
        out = pd.DataFrame({"donor": people, "expr": Y[:, 0], "nu": noise[:, 0]})
        props = {f"prop_{name}": shares[:, c] for c, name in enumerate(types)}
        return out.assign(**props, **covariates)
    out = pd.DataFrame(
        {
            "donor": np.repeat(people, C),
            "celltype": types * N,
            "expr": Y.ravel(),
            "nu": noise.ravel(),
            "proportion": shares.ravel(),
        }
    )
    return out.assign(**{name: np.repeat(values, C) for name, values in covariates.items()})


def _same_labels(tables: Mapping[str, object]) -> None:
    """DataFrames must have their donors and cell types in one order; the first says which."""
    frames = {name: one for name, one in tables.items() if isinstance(one, pd.DataFrame)}
    first, *others = frames.items() or [("", pd.DataFrame())]
    for name, one in others:
        for axis, what in enumerate(("donors", "cell types")):
            own, known = list(one.axes[axis]), list(first[1].axes[axis])
            if len(own) == len(known) and own != known:  # y of overall pseudobulk has one column
                raise DataError(
                    f"{name} and {first[0]} have other {what}, or in another order, "
                    f"{listing(own, 3)} and {listing(known, 3)}: tables are matched by position, "
                    "so give them alike"
                )


def _table(what: str, given: object) -> np.ndarray:
    """A table as numbers (rows, columns)."""
    try:
        if isinstance(given, (str, PathLike)):
            given = np.loadtxt(file_path(what, given), ndmin=1)
        out = np.asarray(given)
        if out.dtype.kind == "c":
            raise TypeError("they are complex")
        out = out.astype(float)
    except DataError:
        raise
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{what} is no table of numbers ({said(error)}): give a file without a header, "
            "separated by spaces, an array or a DataFrame"
        ) from None
    if out.ndim not in (1, 2) or not out.size:
        raise DataError(f"{what} needs donors in rows, got shape {out.shape}")
    return out.reshape(len(out), -1)


def _rows(what: str, given: object, N: int) -> np.ndarray:
    out = _table(what, given)
    if len(out) != N:
        raise DataError(f"{what} has {len(out)} rows, and P {N}: a row for every donor")
    return out


def _covariates(fixed: Mapping[str, object], N: int) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, given in fixed.items():
        table = _rows(f"fixed {name!r}", given, N)
        k = table.shape[1]
        for c in range(k):
            column = name if k == 1 else f"{name}{c + 1}"
            _once(column, out)
            out[column] = table[:, c]
    return out


def _once(name: str, known: Mapping[str, object]) -> None:
    if name in known:
        raise DataError(f"there are two covariates {name!r}: give each a name of its own")


def _by_name(what: str, given: object) -> Mapping[str, object]:
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise DataError(
            f"{what}= takes tables by name, {what}={{'name': table}}, got {type(given).__name__}"
        )
    return given


def _levels(name: str, indicators: np.ndarray) -> np.ndarray:
    """Names of the levels of donors, (N,), of their indicators (N, levels)."""
    ones = (indicators == 1.0).sum(axis=1) == 1
    bad = np.flatnonzero(~(ones & ((indicators == 0.0) | (indicators == 1.0)).all(axis=1)))
    if len(bad):
        raise DataError(
            f"random {name!r} needs one 1 in every row, else 0; row {bad[0] + 1} has none or "
            "several: give the indicators of its levels"
        )
    width = len(str(indicators.shape[1]))
    return np.array([f"{name}{k + 1:0{width}d}" for k in indicators.argmax(axis=1)], dtype=object)


def _names(what: str, given: Sequence[object] | None, count: int, stem: str) -> list[str]:
    width = len(str(count))
    names = [f"{stem}{k + 1:0{width}d}" for k in range(count)] if given is None else given
    out = [str(name) for name in name_list(what, names)]
    if len(out) != count or len(set(out)) < count:
        raise DataError(f"{what}= needs {count} different names, got {len(out)}")
    return out
