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
from typing import Any

import numpy as np
import pandas as pd

from ..design.design import Design, build_design
from ..design.formula import FormulaSpec
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


@dataclass(eq=False)
class Patterns:
    """Designs by pattern of rows; picklable, its store of patterns stays behind.

    Attributes
    ----------
    spec : FormulaSpec
        Without response.
    table : DataFrame
        One row per row of the responses.
    options : dict
        Arguments of :func:`~ctmm_formula.design.design.build_design`.
    base : int ndarray
        Rows of the table that some gene has.
    structures : tuple of Structure, or names of structures
        Resolved when :meth:`start` knows the cell types.
    """

    spec: FormulaSpec
    table: pd.DataFrame
    options: Mapping[str, Any]
    base: np.ndarray
    structures: tuple[Structure, ...] = ()
    names: tuple[str, ...] = ()
    celltypes: tuple[str, ...] = ()
    random_names: tuple[str, ...] = ()
    _first: tuple[bytes, Pattern] | None = None
    _seen: OrderedDict[bytes, Pattern | str] = field(default_factory=OrderedDict)

    def start(self, design: Design, structures: tuple[Structure, ...]) -> Patterns:
        """With the design of the base rows, which says how all others must look."""
        for structure in structures:
            check_size(design, structure)
        first = _pattern(design, self.base, structures)
        return Patterns(
            self.spec,
            self.table[[name for name in self.table.columns if name in set(design.frame.columns)]],
            {**self.options, "env": design.coding.context},
            self.base,
            structures,
            design.names,
            design.celltypes,
            design.random_names,
            (_key(self.base, len(self.table)), first),
        )

    def design(self, rows: np.ndarray) -> Design:
        """The design of these rows of the table."""
        return build_design(self.spec, self.table.iloc[rows], noise=None, **self.options)

    def prepare(self, jackknife: bool) -> None:
        """Let workers find what the moment estimates of most genes share, not compute it anew."""
        if self._first is not None:
            with suppress(CTMMError):  # a reason that every gene will have
                _ = self._first[1].moments
                _ = self._first[1].moment_jackknife if jackknife else None

    def of(self, rows: np.ndarray) -> Pattern:
        """The models of these rows of the table.

        Raises
        ------
        CTMMError
            These rows cannot carry the model, and why.
        """
        key = _key(rows, len(self.table))
        if self._first is not None and self._first[0] == key:
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
        design = self.design(rows)
        for what, own, whole in (
            ("cell types", design.celltypes, self.celltypes),
            ("fixed effects", design.names, self.names),
            ("random effects", design.random_names, self.random_names),
        ):
            if own != whole:
                lost = [name for name in whole if name not in own]
                raise DataError(
                    f"the rows of this gene leave other {what} than those of the scan"
                    + f": {listing(lost)} is missing" * bool(lost)
                )
        for structure in self.structures:
            check_size(design, structure)
        return _pattern(design, rows, self.structures)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": OrderedDict()}


def _pattern(design: Design, rows: np.ndarray, structures: tuple[Structure, ...]) -> Pattern:
    models = tuple(design.model(structure) for structure in structures)
    return Pattern(rows[design.rows], models, design.mean_rows)


def _key(rows: np.ndarray, count: int) -> bytes:
    mask = np.zeros(count, dtype=bool)
    mask[rows] = True
    return np.packbits(mask).tobytes()
