"""One design for all genes that miss the same rows; in the usual case, one for all genes.

A gene may lack values (NaN) where others have them.  Its design is then that of the rows it has,
exactly as if it were fitted alone; designs are kept by their pattern of missing rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

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

    def __call__(self, rows: np.ndarray) -> Design:
        """The design of these rows of the table."""
        return build_design(self.spec, self.table.iloc[rows], noise=None, **self.options)

    def less(self, design: Design) -> FromTable:
        """The same with no column and no name that the design does not use: what workers get."""
        used = [name for name in self.table.columns if name in set(design.frame.columns)]
        options = {**self.options, "env": design.context}
        return FromTable(self.spec, self.table[used], options)


class Patterns:
    """Designs by pattern of rows; picklable, all but the first pattern stay behind.

    Parameters
    ----------
    make : callable, rows -> Design
        Makes designs of some rows of a table, without response; picklable.
    base : int ndarray
        Rows of the first pattern.
    design : Design
        Of these rows; all others must have its cell types, fixed and random effects.
    structures : tuple of Structure
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Design],
        base: np.ndarray,
        design: Design,
        structures: tuple[Structure, ...],
    ) -> None:
        self.make, self.structures, self.names = make, structures, _names(design)
        self._key, self._first = base.tobytes(), _pattern(design, base, structures)

    def prepare(self, jackknife: bool) -> None:
        """Let workers find what the moment estimates of most genes share, not compute it anew."""
        with suppress(CTMMError):  # a reason that every gene will have
            _ = self._first.moments
            if jackknife:
                _ = self._first.moment_jackknife

    def of(self, rows: np.ndarray) -> Pattern:
        """The models of these rows of the table.

        Raises
        ------
        CTMMError
            These rows cannot carry the model, and why.
        """
        key = rows.tobytes()
        found = self._first if key == self._key else self._found(key)
        if isinstance(found, str):
            raise DataError(found)
        return found

    @cached_property
    def _found(self) -> Callable[[bytes], Pattern | str]:
        """Patterns by their rows, or why there is none."""
        return lru_cache(_KEPT)(self._build)

    def _build(self, key: bytes) -> Pattern | str:
        rows = np.frombuffer(key, dtype=np.intp)
        if not len(rows):
            return "no row has both an expression and a noise variance"
        try:
            design = self.make(rows)
            for what, own in _names(design).items():
                if own != self.names[what]:
                    lost = [name for name in self.names[what] if name not in own]
                    which = f": {listing(lost)} is missing" if lost else ""
                    return f"the rows of this gene leave other {what} than those of the scan{which}"
            return _pattern(design, rows, self.structures)
        except CTMMError as error:
            return str(error)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_found"}


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
