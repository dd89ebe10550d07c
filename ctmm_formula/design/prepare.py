"""Which columns play which role, and the one mask that decides which rows are used.

Every column that takes part is found, checked and cleaned; rows that miss any of response,
covariates, random groups, donor, cell type, noise or proportions are dropped together and
counted by reason.
"""

from __future__ import annotations

import builtins
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..arguments import iterable
from ..errors import CTMMWarning, DataError, FormulaError
from .expressions import column_of, names_in, quote
from .formula import FormulaSpec
from .matrix import context_for, known_names
from .table import (
    as_frame,
    covariate,
    crossed,
    donors_named,
    label,
    labels,
    listing,
    number_levels,
    numbers,
    pick,
    rows,
)

DEFAULT_CELLTYPE = "celltype"
CELLS_PER_PAIR = 3.0  # rows per donor and cell type from which the rows are taken for cells
MEASURED = 0.6
"""Levels of numbers over donors, or rows where they differ within donors, from which the numbers
seem to measure something and not to name it."""
_HINTS = {
    "noise": "; every row needs its noise variance (squared standard error of the pseudobulk "
    "mean): name its column by noise=; from cells, aggregate the cells to one row per donor and "
    "cell type, nu = variance of the cells / number of cells",
    "donor": "; name the column of donors by donor=",
    "cell type": "; name the column of cell types by celltype=",
}


@dataclass(frozen=True)
class Roles:
    """Column names by role."""

    response: tuple[str, ...]
    fixed: tuple[str, ...]
    groups: tuple[str, ...]
    donor: str
    celltype: str | None
    noise: str | None
    nu2: str | None
    n_cells: str | None
    share: str | None
    proportions: tuple[str, ...]
    by: str | None = None
    within: str | None = None


@dataclass(frozen=True)
class Prepared:
    """Clean columns of the kept rows.

    Attributes
    ----------
    roles : Roles
    frame : DataFrame, n rows, RangeIndex
    labels : dict column -> Categorical, length n
        Donor, cell type and random groups; only levels in use.
    keep : int ndarray, shape (n,)
        Kept rows as positions in the user's table.
    index : Index, length n
    dropped : dict reason -> number of rows
    notes, doubts : tuple of str
        What to know of the data; what of it to warn of.
    context : dict
        Functions and values of the caller that the formula uses.
    """

    roles: Roles
    frame: pd.DataFrame
    labels: dict[str, pd.Categorical]
    keep: np.ndarray
    index: pd.Index
    dropped: dict[str, int]
    notes: tuple[str, ...]
    context: dict[str, object]
    doubts: tuple[str, ...] = ()

    @property
    def left_out(self) -> str:
        """Why rows are not there, and how many, in words."""
        return ", ".join(f"{reason}: {count}" for reason, count in self.dropped.items())

    def of(self, positions: np.ndarray) -> Prepared:
        """What :func:`prepare` makes of some rows of the same table, but for notes.

        Parameters
        ----------
        positions : int ndarray
            Rows of the table, in order.
        """
        at = np.flatnonzero(np.isin(self.keep, positions, assume_unique=True))
        frame = self.frame.iloc[at].reset_index(drop=True)
        for name in frame.columns:
            if isinstance(frame[name].dtype, pd.CategoricalDtype):
                frame[name] = frame[name].cat.remove_unused_categories()
        return replace(
            self,
            frame=frame,
            labels={name: own[at].remove_unused_categories() for name, own in self.labels.items()},
            keep=np.searchsorted(positions, self.keep[at]),
            index=self.index[at],
            dropped={},
            notes=(),
            doubts=(),
        )


def prepare(
    spec: FormulaSpec,
    data: object,
    *,
    donor: str,
    celltype: str | None,
    noise: str | None,
    nu2: str | None,
    n_cells: str | None,
    proportions: str | Sequence[str] | pd.DataFrame | None,
    by: str | None = None,
    within: str | None = None,
    engine: str,
    env: Mapping[str, object],
    without: Sequence[str] = (),
    gone: Mapping[str, str] | None = None,
) -> Prepared:
    """Find, check and clean the columns, and drop incomplete rows.

    Parameters are those of :func:`~ctmm_formula.design.labelled.build_design`.
    """
    table = as_frame(data)
    share = proportions if isinstance(proportions, str) else None
    overall = proportions is not None and share is None
    if overall and celltype is not None:
        raise DataError(
            "celltype= is for one row per donor and cell type, proportions= for one row per "
            "donor: give one of them"
        )
    present = {str(name) for name in table.columns}
    context = context_for(spec, env, present, engine)
    gone = gone or {}
    response, fixed = _formula_columns(spec, table, present, context, engine, overall, gone)
    donors = labels(pick(table, donor, "donor", _HINTS["donor"]), donor, "donor")
    extra = _proportion_columns(proportions, table, donor, donors) if overall else {}
    groups: dict[str, pd.Categorical] = {}
    if by is not None and not _is_measure(pick(table, by, "groups of donors", gone.get(by, ""))):
        groups[by] = labels(pick(table, by, "groups of donors"), by, "groups of donors")
    if within is not None:
        column = pick(table, within, "conditions of donors", gone.get(within, ""))
        groups[within] = labels(column, within, "conditions of donors")
    samples = donors if within is None else _samples(donors, groups[within])
    if not overall and celltype is None:
        celltype = find_celltype(spec, table, present, donor, samples)
    roles = Roles(
        response,
        fixed,
        tuple(dict.fromkeys(name for term in spec.random for name in term.groups)),
        donor,
        celltype,
        noise,
        None if nu2 == "nu2" and nu2 not in present else nu2,
        None if n_cells == "n_cells" and n_cells not in present else n_cells,
        share,
        tuple(extra),
        by,
        within,
    )
    known = {donor: donors, **groups}
    if celltype is not None:
        column = pick(table, celltype, "cell type", _HINTS["cell type"])
        known[celltype] = labels(column, celltype, "cell type")
        _refuse_cells(samples, known[celltype], donor, celltype)
    for name in roles.groups:
        if name not in known:
            column = pick(table, name, "random effect", gone.get(name, ""))
            known[name] = labels(column, name, "random effect")
    frame = _clean(spec, table, roles, known, extra)
    keep, dropped = _one_mask(frame, known, roles)
    lone, keep = _leave_out(without, known, roles, keep)
    dropped |= {f"cell type {name!r} of one donor": 1 for name in lone}
    frame = frame.iloc[keep].reset_index(drop=True)
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = frame[name].cat.remove_unused_categories()
    known = {name: values[keep].remove_unused_categories() for name, values in known.items()}
    factors = {
        str(name): column.array
        for name, column in frame.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    }
    measures = [name for name in roles.groups if pd.api.types.is_numeric_dtype(table[name].dtype)]
    doubts = (*lone.values(), *_measured(measures, known, donor))
    notes = (*_notes({**factors, **known}, dropped), *doubts)
    if isinstance(data, Mapping) and "rpytools" in sys.modules:  # called from R by reticulate
        _warn_of_levels(table, {name: factors[name] for name in fixed if name in factors})
    return Prepared(
        roles, frame, known, keep, table.index[keep], dropped, notes, context, doubts=doubts
    )


def _is_measure(column: pd.Series) -> bool:
    """Whether groups are numbers of more than two values: a trend."""
    kind = column.dtype
    if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_bool_dtype(kind):
        return False
    return column.nunique() > 2


def _samples(donors: pd.Categorical, conditions: pd.Categorical) -> pd.Categorical:
    """Donors in each of their conditions."""
    missing = np.asarray(donors.isna()) | np.asarray(conditions.isna())
    parts = zip(donors, conditions, missing, strict=True)
    return pd.Categorical([None if gone else crossed([str(d), str(c)]) for d, c, gone in parts])


def _warn_of_levels(table: pd.DataFrame, factors: Mapping[str, pd.Categorical]) -> None:
    """A factor in a list of R arrives as text, without the order of its levels."""
    texts = {
        name: f
        for name, f in factors.items()
        if not isinstance(kind := table[name].dtype, pd.CategoricalDtype) and kind.kind == "O"
    }
    if texts:
        first = ", ".join(f"{f.categories[0]!r} of {name!r}" for name, f in texts.items())
        warnings.warn(
            "in a list from R factors arrive as text, without the order of their levels: they are "
            f"taken in alphabetical order, the first is {first}; a factor f keeps its order as a "
            "data frame's column, or as pandas$Categorical(as.character(f), levels(f))",
            CTMMWarning,
            stacklevel=2,
        )


# ---------------------------------------------------------------------------------------------
# roles


def _formula_columns(
    spec: FormulaSpec,
    table: pd.DataFrame,
    present: set[str],
    context: Mapping[str, object],
    engine: str,
    overall: bool,
    gone: Mapping[str, str],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Columns of the response and of the fixed part; every other name must be known."""
    found: dict[str, dict[str, None]] = {"response": {}, "covariate": {}}
    codes = [(spec.response, "response")] if spec.response else []
    for code, role in [*codes, *((code, "covariate") for code in spec.factors)]:
        names = names_in(code)
        bare = column_of(code)
        for name in (*names.variables, *(root for root in names.roots if root in present)):
            if name in present:
                found[role][name] = None
            elif name == bare or not _is_known(name, context, engine):
                hint = gone.get(name) or _name_hint(name, present, overall)
                if name in context:
                    hint = (
                        f"; {name!r} is known where you call, but what is not a column can only be "
                        f"a number or function inside a call: put it into data"
                    )
                pick(table, name, role, hint)
    if spec.response and not found["response"]:
        raise FormulaError(f"the response {spec.response!r} uses no column of data")
    return tuple(found["response"]), tuple(found["covariate"])


def _is_known(name: str, context: Mapping[str, object], engine: str) -> bool:
    return name in context or name in known_names(engine) or hasattr(builtins, name)


def _name_hint(name: str, present: set[str], overall: bool) -> str:
    """What may be meant by a name of the formula that is no column."""
    if overall and "type" in name.lower():
        return (
            "; with proportions= the cell type means are in the model already: leave the cell "
            "type out of the formula"
        )
    odd = [c for c in sorted(present) if quote(c) != c and name in re.split(r"\W+", c)]
    return f"; a column {odd[0]!r} is written {quote(odd[0])}" if odd else ""


def find_celltype(
    spec: FormulaSpec, table: pd.DataFrame, present: set[str], donor: str, donors: pd.Categorical
) -> str:
    """The cell type column when none is named: "celltype", else the one factor that fits."""
    if DEFAULT_CELLTYPE in present:
        return DEFAULT_CELLTYPE
    candidates = []
    for code in spec.factors:
        name = column_of(code)
        if name is None or name == donor or name in candidates:
            continue
        column = pick(table, name, "covariate")
        in_c = "C" in names_in(code).called
        if in_c or not pd.api.types.is_numeric_dtype(column.dtype):
            candidates.append(name)
    fitting = []
    for name in candidates:
        pairs = pd.DataFrame({"donor": donors, "level": table[name].to_numpy()}).dropna()
        if pairs["donor"].duplicated().any() and not pairs.duplicated().any():
            fitting.append(name)
    if len(fitting) == 1:
        return fitting[0]
    if not pd.Series(donors).duplicated().any():
        raise DataError(
            f"every donor has one row (column {donor!r}) and there is no column "
            f"{DEFAULT_CELLTYPE!r}: for overall pseudobulk name the cell type proportions, "
            "proportions=['prop_T', 'prop_B', ...]; else name the cell types by celltype=, or, of "
            "one tissue, add a column of one type, data.assign(celltype='all'), structure='hom'"
        )
    which = f"{listing(fitting)} would all do" if fitting else "no factor of the formula fits"
    raise DataError(
        f"which column holds the cell types? There is no column {DEFAULT_CELLTYPE!r} and {which}: "
        "name it by celltype="
    )


def _proportion_columns(
    proportions: object, table: pd.DataFrame, donor: str, donors: pd.Categorical
) -> dict[str, np.ndarray]:
    """Proportions per row, one column per cell type."""
    if not isinstance(proportions, pd.DataFrame):
        listed = isinstance(proportions, (Sequence, pd.Index, np.ndarray))
        if not (listed and iterable(proportions)):
            raise DataError(
                "proportions must be a list of columns or a DataFrame of donors by cell types, "
                f"got {type(proportions).__name__}"
            )
        names = [str(name) for name in proportions]
        if len(set(names)) < len(names):
            raise DataError(f"proportions= names a column twice: {listing(names, 10)}")
        return {
            name: numbers(pick(table, name, "proportion"), name, "proportion") for name in names
        }
    by_donor = proportions.set_index(donor) if donor in proportions.columns else proportions
    known = [label(value) for value in by_donor.index]
    if len(set(known)) < len(known):
        raise DataError("the proportions table has several rows for one donor")
    absent = [name for name in donors.categories if name not in set(known)]
    if absent:
        raise DataError(
            f"the proportions table has no row for {donors_named(absent)}: its index must hold "
            f"the values of column {donor!r}"
        )
    where = pd.Index(known).get_indexer(pd.Index(donors.astype(object)))
    out = {}
    for name in by_donor.columns:
        values = numbers(pick(by_donor, name, "proportion"), str(name), "proportion")
        out[str(name)] = np.where(where >= 0, values[where], np.nan)
    return out


def _refuse_cells(
    donors: pd.Categorical, celltypes: pd.Categorical, donor: str, celltype: str
) -> None:
    """A table of cells is refused before anything else is asked of it."""
    pairs = pd.DataFrame({"donor": donors, "celltype": celltypes}).dropna()
    distinct = len(pairs.drop_duplicates())
    if distinct and len(pairs) / distinct >= CELLS_PER_PAIR:
        raise DataError(
            f"data has {len(pairs)} rows for {distinct} pairs of {donor!r} and {celltype!r}: "
            f"either celltype={celltype!r} or donor={donor!r} is the wrong column, or the rows are "
            "cells: then aggregate the cells to one row per donor and cell type"
        )


# ---------------------------------------------------------------------------------------------
# columns and rows


def _clean(
    spec: FormulaSpec,
    table: pd.DataFrame,
    roles: Roles,
    known: Mapping[str, pd.Categorical],
    extra: Mapping[str, np.ndarray],
) -> pd.DataFrame:
    """Every column in use, all rows."""
    columns: dict[str, object] = {}
    for name in roles.response:
        columns[name] = numbers(pick(table, name, "response"), name, "response")
    for name in roles.fixed:
        if name in (roles.donor, roles.celltype):
            columns[name] = known[name]
        elif name not in columns:
            columns[name] = _covariate(spec, pick(table, name, "covariate"), name).array
    for name, values in known.items():
        columns.setdefault(name, values)
    if roles.by is not None and roles.by not in columns:
        columns[roles.by] = numbers(pick(table, roles.by, "trend"), roles.by, "trend")
    if roles.noise is not None:
        hint = _HINTS["noise"]
        columns[roles.noise] = numbers(
            pick(table, roles.noise, "noise", hint), roles.noise, "noise"
        )
    roles_of = {
        roles.nu2: "square of the noise variance",
        roles.n_cells: "number of cells",
        roles.share: "proportion",
    }
    for optional, role in roles_of.items():
        if optional is not None:
            columns[optional] = numbers(pick(table, optional, role), optional, role)
    for name, share in extra.items():
        if name in columns:
            raise DataError(f"{name!r} is a proportion and cannot be used as anything else")
        columns[name] = share
    return pd.DataFrame(columns, index=pd.RangeIndex(len(table)))


def _covariate(spec: FormulaSpec, column: pd.Series, name: str) -> pd.Series:
    """A covariate as the formula uses it: levels where every use is a factor."""
    uses = [code for code in spec.factors if name in _all_names(code)]
    as_levels = all(column_of(code) == name for code in uses)
    if not (as_levels and all("C" in names_in(code).called for code in uses)):
        return covariate(column, name, as_levels=as_levels)
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return number_levels(covariate(column, name, as_levels=True))
    given = column[column.notna()]
    if len(given) and all(isinstance(value, str) for value in given):
        is_category = isinstance(column.dtype, pd.CategoricalDtype)
        return column if is_category else pd.Series(labels(column, name, "covariate"))
    return covariate(column, name, as_levels=True)


def _all_names(code: str) -> tuple[str, ...]:
    names = names_in(code)
    return names.variables + names.roots


def _one_mask(
    frame: pd.DataFrame, known: Mapping[str, pd.Categorical], roles: Roles
) -> tuple[np.ndarray, dict[str, int]]:
    """Rows with nothing missing, and how many each column cost (first reason counts)."""
    order = [*roles.response, *roles.fixed, *roles.groups, roles.donor, roles.celltype]
    order += [roles.by, roles.within, roles.noise, *roles.proportions]
    keep = np.ones(len(frame), dtype=bool)
    dropped: dict[str, int] = {}
    for name in dict.fromkeys(name for name in order if name is not None):
        missing = frame[name].isna().to_numpy(dtype=bool)
        if name in known:
            missing = missing | np.asarray(known[name].isna())
        lost = int((missing & keep).sum())
        if lost:
            dropped[f"missing {name}"] = lost
        keep &= ~missing
    if not keep.any():
        counts = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise DataError(f"no row of {len(frame)} is complete ({counts}): correct these columns")
    return np.flatnonzero(keep), dropped


def _leave_out(
    names: Sequence[str], known: Mapping[str, pd.Categorical], roles: Roles, keep: np.ndarray
) -> tuple[dict[str, str], np.ndarray]:
    """What to say of cell types that are left out, by name, and the rows that are kept."""
    said = {}
    effects = known[str(roles.celltype)].astype(object) if names else np.zeros(0)
    groups = known.get(str(roles.by), known.get(str(roles.within)))
    if names and groups is not None:
        effects = np.array([f"{c}|{g}" for c, g in zip(effects, groups, strict=True)], dtype=object)
    for name in names:
        own = np.asarray(effects[keep] == name)
        donor = known[roles.donor][keep[own]][0]
        said[name] = (
            f"cell type {name!r} is observed in one donor, {donor!r}: its own variance between "
            "donors cannot be estimated, so the type is left out; structure='iid' or 'hom' keeps "
            "it, where it shares the variance of the other types"
        )
        keep = keep[~own]
    return said, keep


def _measured(
    names: Sequence[str], known: Mapping[str, pd.Categorical], donor: str
) -> Iterator[str]:
    """What to say of random effects whose levels are numbers, with hardly more than a row each."""
    for name in names:
        pairs = np.unique(np.column_stack([known[donor].codes, known[name].codes]), axis=0)
        levels = len(known[name].categories)
        if levels > MEASURED * len(pairs) and levels < len(pairs):
            yield (
                f"random effect {name!r} has {levels} levels, and they are numbers of "
                f"{len(pairs)} donors or rows: each number is a level of its own, without order "
                f"or distance; a measure such as age is a fixed effect, + {quote(name)}; names "
                f"that are numbers are best made text, data[{name!r}].astype(str)"
            )


def _notes(known: Mapping[str, pd.Categorical], dropped: Mapping[str, int]) -> tuple[str, ...]:
    notes = []
    if dropped:
        counts = ", ".join(f"{reason} ({count})" for reason, count in dropped.items())
        total = sum(dropped.values())
        notes.append(f"{total} {'row' if total == 1 else 'rows'} dropped: {counts}")
    for name, values in known.items():
        texts = pd.Series([v for v in values.categories if isinstance(v, str)], dtype=object)
        plain = texts.str.split().str.join(" ")
        alike = texts[plain.duplicated(keep=False)].to_list()
        if alike:
            notes.append(
                f"column {name!r} has levels that differ only by blanks: {listing(alike)}; if they "
                "are the same, use .str.strip()"
            )
        if "NA" in values.categories:
            where = np.flatnonzero(np.asarray(values.astype(object)) == "NA")
            notes.append(
                f"column {name!r} has a level 'NA' ({rows(where)}): if this means missing, use NaN"
            )
    return tuple(notes)
