"""One design for all genes that miss the same rows; in the usual case, one for all genes.

A gene may lack values (NaN) where others have them.  Its design is then that of the rows it has,
exactly as if it were fitted alone; designs are kept by their pattern of missing rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd

from ..design.formula import FormulaSpec
from ..design.labelled import Design, build_design
from ..design.size import check_size
from ..design.table import listing
from ..engine import he
from ..engine.model import Model
from ..errors import CTMMError, DataError
from ..inference.jackknife import LikelihoodJackknife, MomentJackknife
from ..structures import Structure

_KEPT = 16  # patterns kept by one worker: a block of genes seldom has more


@dataclass(frozen=True)
class Pattern:
    """The models of all genes with the same rows.

    Attributes
    ----------
    rows : int ndarray, shape (n,)
        Rows of the table in use, in the order of the design.
    models : tuple of Model
        One for each structure, with no response.
    mean_rows : ndarray, shape (C, p)
        ``mean_rows @ b`` are the cell type means.
    """

    rows: np.ndarray
    models: tuple[Model, ...]
    mean_rows: np.ndarray

    @cached_property
    def moments(self) -> tuple[he.Moments, ...]:
        """What the moment estimates of all genes share, for each structure."""
        return tuple(he.moments(model) for model in self.models)

    @cached_property
    def exact_jackknife(self) -> LikelihoodJackknife:
        """Left-out donors of the main structure, for ML and REML."""
        return LikelihoodJackknife(self.models[0])

    @cached_property
    def one_step_jackknife(self) -> LikelihoodJackknife:
        """The same by one step from the full fit."""
        return LikelihoodJackknife(self.models[0], kind="one-step")

    @cached_property
    def moment_jackknife(self) -> MomentJackknife:
        """What their jackknives share, for the first structure."""
        return MomentJackknife(self.models[0])


class Maker(Protocol):
    """Makes designs of some rows of a table; picklable."""

    @property
    def count(self) -> int:
        """Rows of the table."""

    def __call__(self, rows: np.ndarray) -> Design:
        """The design of these rows of the table, without response."""


@dataclass(frozen=True)
class FromTable:
    """Designs by a formula on the rows of a table.

    Attributes
    ----------
    spec : FormulaSpec
        Without response.
    table : DataFrame
    options : dict
        Arguments of :func:`~ctmm_formula.design.labelled.build_design`.
    """

    spec: FormulaSpec
    table: pd.DataFrame
    options: Mapping[str, Any]

    @property
    def count(self) -> int:
        """Rows of the table."""
        return len(self.table)

    def __call__(self, rows: np.ndarray) -> Design:
        """The design of these rows of the table."""
        return build_design(self.spec, self.table.iloc[rows], noise=None, **self.options)

    def less(self, design: Design) -> FromTable:
        """The same with no column and no name that the design does not use: what workers get."""
        used = [name for name in self.table.columns if name in set(design.frame.columns)]
        options = {**self.options, "env": design.context}
        return FromTable(self.spec, self.table[used], options)


@dataclass(eq=False)
class Patterns:
    """Designs by pattern of rows; picklable, its store of patterns stays behind.

    Attributes
    ----------
    make : Maker
    structures : tuple of Structure
    names : dict
        What the designs of all patterns must have alike: cell types, fixed and random effects.
    """

    make: Maker
    structures: tuple[Structure, ...]
    names: dict[str, tuple[str, ...]]
    _first: tuple[bytes, Pattern]
    _seen: OrderedDict[bytes, Pattern | str] = field(default_factory=OrderedDict)

    @classmethod
    def start(
        cls, make: Maker, base: np.ndarray, design: Design, structures: tuple[Structure, ...]
    ) -> Patterns:
        """With the design of the `base` rows, which says how all others must look."""
        first = _key(base, make.count), _pattern(design, base, structures)
        return cls(make, structures, _names(design), first)

    def prepare(self, jackknife: bool) -> None:
        """Let workers find what the moment estimates of most genes share, not compute it anew."""
        with suppress(CTMMError):  # a reason that every gene will have
            _ = self._first[1].moments
            if jackknife:
                _ = self._first[1].moment_jackknife

    def of(self, rows: np.ndarray) -> Pattern:
        """The models of these rows of the table.

        Raises
        ------
        CTMMError
            These rows cannot carry the model, and why.
        """
        key = _key(rows, self.make.count)
        if key == self._first[0]:
            return self._first[1]
        found = self._seen.get(key)
        if found is None:
            try:
                found = self._build(rows)
            except CTMMError as error:
                found = str(error)
            self._seen[key] = found
            while len(self._seen) > _KEPT:
                try:
                    self._seen.popitem(last=False)
                except KeyError:  # another thread was faster
                    break
        if isinstance(found, str):
            raise DataError(found)
        return found

    def _build(self, rows: np.ndarray) -> Pattern:
        if not len(rows):
            raise DataError("no row has both an expression and a noise variance")
        design = self.make(rows)
        for what, own in _names(design).items():
            if own != self.names[what]:
                lost = [name for name in self.names[what] if name not in own]
                which = f": {listing(lost)} is missing" if lost else ""
                raise DataError(
                    f"the rows of this gene leave other {what} than those of the scan{which}"
                )
        return _pattern(design, rows, self.structures)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": OrderedDict()}


def _names(design: Design) -> dict[str, tuple[str, ...]]:
    return {
        "cell types": design.celltypes,
        "fixed effects": design.names,
        "random effects": design.random_names,
    }


def _pattern(design: Design, rows: np.ndarray, structures: tuple[Structure, ...]) -> Pattern:
    for structure in structures:
        check_size(design, structure)
    models = tuple(design.model(structure) for structure in structures)
    return Pattern(rows[design.rows], models, design.mean_rows)


def _key(rows: np.ndarray, count: int) -> bytes:
    mask = np.zeros(count, dtype=bool)
    mask[rows] = True
    return np.packbits(mask).tobytes()
