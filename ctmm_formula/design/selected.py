"""Designs of some rows of a design, where nothing else of it changes: no formula is read again.

Genes of a scan that miss pairs of their own have as many designs as there are genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ..engine.model import Model, RandomComponent, build_model
from ..structures import Structure
from . import arrays
from .labelled import Design
from .prepare import Prepared


@dataclass(frozen=True)
class Selected:
    """Some rows of a design; what takes the table is made for those who ask.

    Attributes
    ----------
    chosen : Selection
    positions : int ndarray
        Rows of the table that were asked for, in order.
    at : int ndarray, shape (n,)
        Which rows of the whole design are theirs.
    donors : int ndarray, shape (N,)
        Numbers of the donors in the whole design.
    donor_codes : int ndarray, shape (n,)
    random : tuple of RandomComponent
    """

    chosen: Selection
    positions: np.ndarray
    at: np.ndarray
    donors: np.ndarray
    donor_codes: np.ndarray
    random: tuple[RandomComponent, ...]

    @property
    def rows(self) -> np.ndarray:
        """Rows of the table (n,)."""
        return self.chosen.design.rows[self.at]

    @property
    def mean_rows(self) -> np.ndarray:
        """``Design.mean_rows``."""
        every = self.chosen.every
        if every.shape[1] == 1:
            return every[:, 0]
        share = np.zeros(every.shape[1])
        share[self.at] = 1.0 / len(self.at)
        return share @ every

    def models(self, structures: Sequence[Structure]) -> tuple[Model, ...]:
        """``Design.model`` of each structure."""
        whole, at = self.chosen.design, self.at
        first = build_model(
            whole.y[at], whole.nu[at], whole.X.take(at, axis=0), whole.H.take(at, axis=0),
            self.donor_codes, structures[0].basis, self.random, self._taken(whole.n_cells),
            self._taken(whole.nu2),
        )  # fmt: skip
        return (first, *(first.with_basis(one.basis) for one in structures[1:]))

    def _taken(self, values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[self.at]

    @cached_property
    def design(self) -> Design:
        """The design that these rows have by themselves."""
        whole, at, coding = self.chosen.design, self.at, self.chosen.design.coding
        counts, H = self._taken(whole.n_cells), whole.H[at]
        frame = whole.frame.iloc[at].reset_index(drop=True)
        return replace(
            whole,
            coding=coding and coding.of(frame[list(coding.frame.columns)]),
            known_effects={},
            frame=frame,
            rows=np.searchsorted(self.positions, whole.rows[at]),
            index=whole.index[at],
            donors=tuple(whole.donors[k] for k in self.donors),
            donor_codes=self.donor_codes,
            y=whole.y[at],
            nu=whole.nu[at],
            nu2=self._taken(whole.nu2),
            X=whole.X[at],
            H=H,
            n_cells=counts,
            random=self.random,
            proportions=None if counts is None else arrays.shares_of(self.donor_codes, counts, H),
            dropped={},
            notes=(),
            doubts=(),
            known_means=self.mean_rows,
        )


@dataclass(frozen=True)
class Selection:
    """A design and what it takes to have that of some of its rows; made by :func:`selection`.

    Attributes
    ----------
    design : Design
    every : ndarray, shape (C, n or 1, p)
        Rows of the fixed part in every cell type.
    factors : list of (ndarray, shape (n,); int)
        Codes of the factors of the fixed part, and how many levels they have.
    types : int ndarray, shape (n,)
        Cell types by number.
    """

    design: Design
    every: np.ndarray
    factors: list[tuple[np.ndarray, int]]
    types: np.ndarray

    def of(self, positions: np.ndarray) -> Selected | None:
        """Some rows of the table.

        None where more changes than the rows: levels or whole cell types are gone.  What is left
        may still not tell all effects apart.

        Parameters
        ----------
        positions : int ndarray
            Rows of the table, in order.
        """
        whole = self.design
        asked = np.zeros(max(whole.rows[-1], positions[-1]) + 1, dtype=bool)
        asked[positions] = True
        at = np.flatnonzero(asked[whole.rows])
        codes = whole.donor_codes[at]
        there = np.bincount(codes, minlength=len(whole.donors)) > 0
        donors = np.flatnonzero(there)
        codes = (np.cumsum(there) - 1)[codes]
        gone = any(not np.bincount(own[at], minlength=count).all() for own, count in self.factors)
        few = np.bincount(self.types[at], minlength=len(whole.celltypes)).min() < 2
        if gone or few or len(donors) < 2 or len(at) <= whole.X.shape[1]:
            return None
        random = [RandomComponent(one.codes[at], one.values[at]) for one in whole.random]
        for component, levels in zip(random, map(len, whole.random_levels), strict=True):
            used = np.bincount(component.codes[component.values != 0.0], minlength=levels)
            if not used.all() or levels == len(at):
                return None
            if levels == len(donors) == len(np.unique(codes * levels + component.codes)):
                return None
        return Selected(self, positions, at, donors, codes, tuple(random))


def selection(design: Design, ready: Prepared) -> Selection | None:
    """What gives designs of some rows of this one; None where they must be made anew.

    That is, where rows change more than themselves: columns that are functions of all rows,
    numbers of cells that are filled in, shares, groups, conditions, relatives.
    """
    roles, coding = ready.roles, design.coding
    if roles.celltype is None or roles.celltype not in roles.fixed or roles.share is not None:
        return None
    if roles.by is not None or roles.within is not None or design.kinship or design.alone:
        return None
    if coding is None or coding.kept is not None or not coding.by_row:
        return None
    given = arrays.counts(ready)
    if given is not None and not np.isfinite(given).all():
        return None
    every = arrays.in_every_type(coding, roles.celltype, design.celltypes)
    factors = [
        (column.cat.codes.to_numpy(), len(column.cat.categories))
        for _, column in coding.frame.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    ]
    every = every.reshape(len(design.celltypes), -1, design.X.shape[1])
    return Selection(design, every, factors, design.H.argmax(axis=1))
