"""Which cells make which pair of donor and cell type, and what the filters leave out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..design.table import amount, labels, listing, pick
from ..errors import DataError

NO_LABEL = {"", "nan", "None", "<NA>"}
"""Texts that missing labels turn into: cells with these have no label."""


FEW_EXPERIMENTS = 6
"""So many experiments, or fewer, may be conditions under which donors were sampled."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The grid of kept donors x kept cell types, N x C.

    Attributes
    ----------
    donors, celltypes : Index of str, length N, C
    donor, celltype : int ndarray, shape (cells,)
        Codes of each cell on the grid, -1 for cells left out.
    n_cells : int ndarray, shape (N, C)
    observed : bool ndarray, shape (N, C)
        Pairs with enough cells.
    filters : dict
        Thresholds, and what each of them took.
    notes : list of str
    lone : list of str
        What to say of cell types observed in one of several donors.
    mixed : str
        Which of few experiments is kept of how many donors, where most are in several.
    """

    donors: pd.Index
    celltypes: pd.Index
    donor: np.ndarray
    celltype: np.ndarray
    n_cells: np.ndarray
    observed: np.ndarray
    filters: dict[str, object]
    notes: list[str]
    lone: list[str]
    mixed: str = ""

    @property
    def used(self) -> np.ndarray:
        """Place on the flattened grid of cells in observed pairs, else -1; shape (cells,)."""
        place = self.place
        return np.where((place >= 0) & self.observed.ravel()[place], place, -1)

    @property
    def place(self) -> np.ndarray:
        """Place on the flattened grid of each cell, -1 for cells off the grid; shape (cells,)."""
        on = (self.donor >= 0) & (self.celltype >= 0)
        return np.where(on, self.donor * len(self.celltypes) + self.celltype, -1)


@dataclass(frozen=True)
class Thresholds:
    """What a donor, a pair and a cell type must have strictly more of."""

    min_cells: int = 10
    min_cells_donor: int = 100
    min_donor_share: float = 0.0


def find_pairs(
    obs: pd.DataFrame,
    donor: str,
    celltype: str,
    thresholds: Thresholds,
    experiment: str | None = None,
    replicate: str = "largest",
) -> Pairs:
    """Sort cells into pairs and filter: labels, experiments, donors, pairs, cell types.

    Parameters
    ----------
    obs : DataFrame, one row per cell
    donor, celltype : str
        Columns of labels.
    thresholds : Thresholds
    experiment : str, optional
        Column of experiments, for donors that were measured more than once.
    replicate : {"largest", "error"}
        What to do with these.

    Raises
    ------
    DataError
        No such column, a donor in several experiments (``replicate="error"``), or no pair left.
    """
    cells = _label(obs, donor, celltype, experiment, replicate)
    d, t, notes = cells.donor, cells.celltype, cells.notes
    counts = np.zeros((len(cells.donors), len(cells.celltypes)), dtype=np.int64)
    np.add.at(counts, (d[d >= 0], t[d >= 0]), 1)
    grid = _filter(counts, thresholds)
    filters: dict[str, object] = {
        **vars(thresholds),
        "cells": len(obs),
        "cells_without_label": sum(cells.unlabelled.values()),
        "cells_of_other_experiments": cells.others,
        "cells_of_donors_left_out": int(counts[~grid.donors].sum()),
        "cells_of_celltypes_left_out": int(counts[grid.donors][:, ~grid.celltypes].sum()),
        "cells_of_missing_pairs": int(counts[grid.rows][~grid.observed].sum()),
        "cells_used": int(counts[grid.rows][grid.observed].sum()),
        "donors_left_out": _texts(cells.donors[~grid.donors]),
        "celltypes_left_out": _texts(cells.celltypes[~grid.celltypes]),
        "pairs": int(grid.observed.size),
        "pairs_missing": int((~grid.observed).sum()),
    }
    if not grid.observed.any():
        raise DataError(_nothing_left(obs, counts, cells, thresholds))
    return Pairs(
        donors=cells.donors[grid.donors],
        celltypes=cells.celltypes[grid.celltypes],
        donor=_renumber(grid.donors)[d],
        celltype=_renumber(grid.celltypes)[t],
        n_cells=counts[grid.rows],
        observed=grid.observed,
        filters=filters,
        notes=notes + _filter_notes(counts, cells.donors, cells.celltypes, grid, thresholds),
        lone=_lone_notes(cells.donors, cells.celltypes, grid),
        mixed=cells.mixed,
    )


@dataclass(frozen=True, eq=False)
class _Cells:
    """Codes of the cells, -1 in both for those without a label or of other experiments."""

    donor: np.ndarray
    celltype: np.ndarray
    donors: pd.Index
    celltypes: pd.Index
    unlabelled: dict[str, int]
    others: int
    notes: list[str]
    mixed: str


def _label(
    obs: pd.DataFrame, donor: str, celltype: str, experiment: str | None, replicate: str
) -> _Cells:
    """Donor and cell type of each cell that has both, from one experiment per donor."""
    d, donors = _codes(obs, donor, "donor")
    t, celltypes = _codes(obs, celltype, "cell type")
    kept = (d >= 0) & (t >= 0)
    unlabelled = {donor: int((d < 0).sum()), celltype: int(((t < 0) & (d >= 0)).sum())}
    others, repeats, mixed = 0, [], ""
    if experiment is not None:
        e, experiments = _codes(obs, experiment, "experiment")
        unlabelled[experiment] = int((kept & (e < 0)).sum())
        labelled = kept & (e >= 0)
        kept, twice = _one_experiment(d, e, labelled, donors, experiments, replicate)
        others = int(labelled.sum() - kept.sum())
        if twice:
            repeats.append(
                f"{amount(len(twice), 'donor is', 'donors are')} in several experiments (column "
                f"{experiment!r}): the one with most cells is kept, "
                f"{amount(others, 'cell', 'cells')} of the others left out: "
                f"{listing(twice)}"
            )
            mixed = _mixed(d, e, kept, donors, experiments, experiment)
    notes = [
        f"{count} of {len(obs)} cells are left out, they have no label in column {name!r}"
        for name, count in unlabelled.items()
        if count
    ]
    d, t = np.where(kept, d, -1), np.where(kept, t, -1)
    return _Cells(d, t, donors, celltypes, unlabelled, others, notes + repeats, mixed)


def _mixed(
    d: np.ndarray,
    e: np.ndarray,
    kept: np.ndarray,
    donors: pd.Index,
    experiments: pd.Index,
    name: str,
) -> str:
    """What to say of few experiments that most donors share: they may be conditions."""
    there = np.zeros((len(donors), len(experiments)), dtype=bool)
    there[d[(d >= 0) & (e >= 0)], e[(d >= 0) & (e >= 0)]] = True
    held = np.zeros_like(there)
    held[d[kept], e[kept]] = True
    of = held.sum(axis=0)
    if len(of) > FEW_EXPERIMENTS or (of > 0).sum() < 2 or (there.sum(axis=1) > 1).mean() <= 0.5:
        return ""
    parts = [f"{k!r} of {n} donors" for k, n in zip(experiments, of, strict=True) if n]
    return f"experiment={name!r} keeps {', '.join(parts)}"


def _codes(obs: pd.DataFrame, name: str, role: str) -> tuple[np.ndarray, pd.Index]:
    """Codes (-1: no label) and labels in use, in the order of the categories, else sorted."""
    hint = f"; name the column by {role.replace(' ', '')}="
    column = pick(obs, name, role, hint, what="obs")
    if isinstance(column.dtype, pd.CategoricalDtype):
        coded = labels(column, name, role)
        codes, texts = np.asarray(coded.codes, dtype=np.int64), np.asarray(coded.categories)
    else:
        # labels of each value once: a million cells have few donors
        try:
            place, values = pd.factorize(column)
        except TypeError:  # of lists and the like, whose kind is named
            labels(column, name, role)
            raise
        first = np.full(len(values), -1)
        known = np.flatnonzero(place >= 0)
        first[place[known][::-1]] = known[::-1]
        coded = labels(pd.Series(values, index=first, dtype=values.dtype), name, role)
        codes = np.append(np.asarray(coded.codes, dtype=np.int64), -1)[place]
        texts = np.asarray(coded.categories)
    real = np.array([text.strip() not in NO_LABEL for text in texts], dtype=bool)
    used = real & (np.bincount(codes[codes >= 0], minlength=len(texts)) > 0)
    return _renumber(used)[codes], pd.Index(texts[used], dtype=object)


def _renumber(keep: np.ndarray) -> np.ndarray:
    """New number of each kept code, -1 for the others and, at the end, for code -1."""
    return np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)


def _one_experiment(
    d: np.ndarray,
    e: np.ndarray,
    labelled: np.ndarray,
    donors: pd.Index,
    experiments: pd.Index,
    replicate: str,
) -> tuple[np.ndarray, list[str]]:
    """Cells of the experiment with most cells of each donor (the first of equals)."""
    counts = np.zeros((len(donors), len(experiments)), dtype=np.int64)
    np.add.at(counts, (d[labelled], e[labelled]), 1)
    several = np.flatnonzero((counts > 0).sum(axis=1) > 1)
    if len(several) and replicate == "error":
        at = several[0]
        raise DataError(
            f"{amount(len(several), 'donor is', 'donors are')} in several experiments, "
            f"{listing(list(donors[several]))}: "
            f"{donors[at]!r} in {listing(list(experiments[counts[at] > 0]))}; "
            "replicate='largest' keeps the one with most cells"
        )
    largest = counts.argmax(axis=1)
    return labelled & (largest[d] == e), list(donors[several])


@dataclass(frozen=True, eq=False)
class _Grid:
    """Donors and cell types kept, of all there are, and the pairs observed among the kept."""

    donors: np.ndarray
    celltypes: np.ndarray
    observed: np.ndarray

    @property
    def rows(self) -> tuple[np.ndarray, ...]:
        return np.ix_(self.donors, self.celltypes)


def _filter(counts: np.ndarray, thresholds: Thresholds) -> _Grid:
    """Donors by their cells, pairs by theirs, cell types by their donors, then empty donors."""
    keep = counts.sum(axis=1) > thresholds.min_cells_donor
    # one cell has no variance
    observed = keep[:, None] & (counts > max(thresholds.min_cells, 1))
    share = observed.sum(axis=0) / max(int(keep.sum()), 1)
    types = share > thresholds.min_donor_share
    keep = keep & observed[:, types].any(axis=1)
    types = types & observed[keep].any(axis=0)
    return _Grid(keep, types, observed[np.ix_(keep, types)])


def _filter_notes(
    counts: np.ndarray,
    donors: pd.Index,
    celltypes: pd.Index,
    grid: _Grid,
    thresholds: Thresholds,
) -> list[str]:
    """What the filters took, in words."""
    few = counts.sum(axis=1) <= thresholds.min_cells_donor
    empty = ~grid.donors & ~few
    missing = int((~grid.observed).sum())
    texts = []
    if few.any():
        texts.append(
            f"{few.sum()} of {len(few)} donors are left out, they have at most "
            f"{thresholds.min_cells_donor} cells: {listing(list(donors[few]))}"
        )
    if empty.any():
        texts.append(
            f"{amount(empty.sum(), 'donor is', 'donors are')} left out, no pair has enough cells: "
            f"{listing(list(donors[empty]))}"
        )
    if not grid.celltypes.all():
        gone = list(celltypes[~grid.celltypes])
        share = thresholds.min_donor_share
        why = f"a share of at most {share:g} of the donors has" if share else "no donor has"
        texts.append(f"cell types are left out, {why} enough of their cells: {listing(gone)}")
    if missing:
        texts.append(
            f"{missing} of {grid.observed.size} pairs of donor and cell type are missing, they "
            f"have at most {max(thresholds.min_cells, 1)} cells"
        )
    return texts


def _lone_notes(donors: pd.Index, celltypes: pd.Index, grid: _Grid) -> list[str]:
    """What to say of kept cell types that one of several donors has."""
    found = [
        (name, donors[grid.donors][at][0])
        for name, at in zip(celltypes[grid.celltypes], grid.observed.T, strict=True)
        if at.sum() == 1 < len(at)
    ]
    return [
        f"cell type {name!r} is observed in one donor, {donor!r}: it has no variance between "
        "donors, and fits with one for each cell type leave it out; so does min_donor_share="
        for name, donor in found
    ]


def _nothing_left(
    obs: pd.DataFrame, counts: np.ndarray, cells: _Cells, thresholds: Thresholds
) -> str:
    """Which filter took what, where nothing is left."""
    total = counts.sum(axis=1)
    parts = [f"{n} have no label in {name!r}" for name, n in cells.unlabelled.items() if n]
    if cells.others:
        parts.append(f"{cells.others} are of other experiments")
    if counts.size and counts.sum():
        few = total <= thresholds.min_cells_donor
        parts.append(
            f"{few.sum()} of {len(few)} donors have at most min_cells_donor="
            f"{thresholds.min_cells_donor} cells (the largest has {total.max()})"
        )
        rest = counts[~few]
        if rest.size:
            pairs = rest[rest > 0]
            low = int((pairs <= max(thresholds.min_cells, 1)).sum())
            parts.append(
                f"{low} of the {len(pairs)} pairs of the other donors have at most min_cells="
                f"{thresholds.min_cells} cells (the largest has {pairs.max()})"
            )
        if thresholds.min_donor_share:
            parts.append(
                f"cell types need enough cells in a share of more than "
                f"min_donor_share={thresholds.min_donor_share:g} of the donors"
            )
    return f"no pair of donor and cell type is left of {len(obs)} cells: {'; '.join(parts)}"


def _texts(values: pd.Index) -> np.ndarray:
    """Labels as an array that h5ad can hold."""
    return np.array(list(values), dtype=object)
