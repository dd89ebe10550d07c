"""One design for all genes that miss the same rows; in the usual case, one for all genes.

A gene may lack values (NaN) where others have them.  Its design is then that of the rows it has,
exactly as if it were fitted alone; designs are kept by their pattern of missing rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from ..design.formula import FormulaSpec
from ..design.identified import check_alone, check_components, surely
from ..design.labelled import Design, build_design, prepared_design
from ..design.matrix import Coding
from ..design.prepare import Prepared, prepare
from ..design.selected import Selected, Selection, selection
from ..design.table import listing
from ..engine import he, likelihood, robust
from ..engine.he import moment_matrix
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..engine.related_likelihood import is_rotated
from ..engine.relatedness import Kernel
from ..engine.robust import CLUSTERED
from ..errors import CTMMError, DataError
from ..inference.genetic_score import GeneticDesign, genetic_design
from ..inference.group_score import GroupDesign, ResponseDesign, group_design, response_design
from ..inference.jackknife import LikelihoodJackknife, MomentJackknife
from ..inference.score import ScoreDesign, design_of
from ..inference.tests import SCANNED, Test
from ..results.shares import Weights
from .plan import Plan, of_heritability, read_tests

SHARED: dict[str, Callable[[Model, Plan], Any]] = {
    "he": lambda model, plan: he.moments(model),
    "robust": lambda model, plan: robust.lay_out(model),
    **dict.fromkeys(
        LIKELIHOODS, lambda model, plan: likelihood.lay_out(model, plan.method, plan.domain)
    ),
}
"""Estimators -> what all responses of a model share."""

_CODING = ("engine", "kinship", "genetic_structure")
"""Options of the second half of a design."""
_ABOVE = math.log(0.06)  # p value above which four digits of a score test will do
_KEPT = 16  # patterns kept by one worker: a block of genes seldom has more


@dataclass(frozen=True)
class Pattern:
    """The models of all genes with the same rows, one for each structure, without response.

    ``rows`` are those of the table in use, in the order of the design, ``mean_rows @ b`` the cell
    type means, ``tests`` the tests of the scan on these rows, ``donors`` the number of each of its
    donors among those of the scan, ``weights`` what shares of variance need, if they are asked for,
    ``base``, of a gene with a kernel of its own, the pattern that knows what rests on rows alone.
    """

    plan: Plan
    rows: np.ndarray
    models: tuple[Model, ...]
    mean_rows: np.ndarray
    tests: Mapping[str, Test]
    donors: np.ndarray
    weights: Weights | None = None
    base: Pattern | None = None

    def of_kernel(self, kernel: Kernel) -> Pattern:
        """The pattern of a gene whose first kinship is its own, of :attr:`related` donors."""
        models = tuple(
            replace(one, kinship=(one.kinship[0]._replace(kernel=kernel), *one.kinship[1:]))
            for one in self.models
        )
        return replace(self, models=models, base=self)

    @property
    def related(self) -> np.ndarray:
        """The donors of the models, in their order, by number among those of the scan."""
        return self.donors[self.models[0].donors]

    @cached_property
    def shared(self) -> tuple[Any, ...]:
        """What the estimates of all genes share, for each structure."""
        if self.base is not None:
            return tuple(map(he.moments, self.models, self.base.laid))
        return tuple(SHARED[self.plan.method](model, self.plan) for model in self.models)

    @cached_property
    def laid(self) -> tuple[he.Layout, ...]:
        """What moments rest on whatever the kernel of a gene, for each structure."""
        return tuple(he.lay_out(model, many=True) for model in self.models)

    @cached_property
    def robust(self) -> robust.SharedDesign:
        """What the robust estimates of all genes share, beside another estimate."""
        return robust.lay_out(self.models[0])

    @cached_property
    def score(self) -> ScoreDesign | None:
        """What the score tests of all genes share, if they are asked for."""
        asked = "score" in self.plan.layout.tests
        return design_of(self.models[0], _ABOVE) if asked else None

    @cached_property
    def groups(self) -> GroupDesign | ResponseDesign | None:
        """What the tests of groups or responses of all genes share, if they can be had."""
        structure, tests = self.plan.layout.structures[0], self.plan.layout.tests
        if structure.crossed is None:
            return None
        if structure.crossed.crossing.kind == "within":
            return response_design(self.models[0], structure) if "response" in tests else None
        return group_design(self.models[0], structure) if "groups" in tests else None

    @cached_property
    def genetic(self) -> tuple[GeneticDesign, ...] | None:
        """What the tests of heritability of all genes share, of every kinship, if asked for."""
        if not any(map(of_heritability, self.plan.layout.tests)):
            return None
        first, *others = self.models[0].kinship
        if self.base is not None and self.base.genetic is not None:
            own, *known = self.base.genetic
            return (own.with_kernel(first.kernel), *known)
        own = genetic_design(self.models[0], 0, whole=False)
        return (own, *(own.with_kernel(term.kernel) for term in others))

    @cached_property
    def jackknife(self) -> LikelihoodJackknife | MomentJackknife:
        """What the jackknives of all genes share, for the main structure."""
        if self.plan.method not in LIKELIHOODS:
            return MomentJackknife(self.models[0])
        kind = "one-step" if self.plan.one_step else "donor"
        return LikelihoodJackknife(self.models[0], kind=kind)


@dataclass(frozen=True)
class FromTable:
    """Designs by a formula without response on the rows of a table.

    `options` are arguments of :func:`~ctmm_formula.design.labelled.build_design`.
    """

    spec: FormulaSpec
    table: pd.DataFrame
    options: Mapping[str, Any]

    def __call__(self, rows: np.ndarray) -> Design:
        """The design of these rows of the table."""
        return build_design(self.spec, self.table.iloc[rows], noise=None, nu2=None, **self.options)

    def less(self, design: Design) -> CleanTable:
        """The same with no column and no name that the design does not use: what workers get."""
        used = [name for name in self.table.columns if name in set(design.frame.columns)]
        options = {**self.options, "env": design.context, "celltype": design.celltype_col}
        return CleanTable(self.spec, self.table[used], options, design.coding)


@dataclass(frozen=True)
class CleanTable(FromTable):
    """The same designs, of a table that is cleaned, and as a rule coded, once for all of them."""

    coding: Coding | None

    def __call__(self, rows: np.ndarray) -> Design:
        """The design of these rows of the table."""
        if self._whole is None:
            return super().__call__(rows)
        return self._coded(self._whole.of(rows))

    def selected(self, rows: np.ndarray) -> Selected | None:
        """These rows of the table, if nothing else of the design of all changes."""
        return None if self._selection is None else self._selection.of(rows)

    def _coded(self, ready: Prepared) -> Design:
        options = {name: self.options[name] for name in _CODING}
        return prepared_design(self.spec, ready, like=self.coding, **options)

    @cached_property
    def _selection(self) -> Selection | None:
        if self._whole is None:
            return None
        try:
            return selection(self._coded(self._whole), self._whole)
        except CTMMError:  # of rows that are not in the scan
            return None

    @cached_property
    def _whole(self) -> Prepared | None:
        options = {name: own for name, own in self.options.items() if name not in _CODING[1:]}
        try:
            return prepare(self.spec, self.table, noise=None, nu2=None, **options)
        except CTMMError:  # of rows that are not in the scan
            return None


class Patterns:
    """Designs by pattern of rows; picklable, all but the first pattern stay behind.

    `make` makes designs of some rows of a table, without response; all must have the cell types,
    fixed and random effects of `design`, that of the `base` rows.
    """

    def __init__(
        self, plan: Plan, make: Callable[[np.ndarray], Design], base: np.ndarray, design: Design
    ) -> None:
        self.plan, self.make, self.names = plan, make, _names(design)
        self.donors = design.donors
        self._key, self._first = base.tobytes(), self._pattern(design, base)

    def _pattern(self, design: Design, rows: np.ndarray) -> Pattern:
        structures = self.plan.layout.structures
        models = tuple(design.model(structure) for structure in structures)
        for model, structure in zip(models, structures, strict=True):
            for one in (structure, *(own.structure for own in design.kinship)):
                check_alone(design.alone, one)
            first = int(self.plan.layout.windows)  # a gene's own kernel is not there yet
            model = replace(model, kinship=model.kinship[first:])
            genetic = [name for one in design.kinship[first:] for name in one.labels]
            check_components(model, structure, (*design.random_names, *genetic))
            if not self.plan.shared:
                is_rotated(model, self.plan.method)  # or it is too large, of whatever gene
        tests = read_tests(self.plan.tests, design, structures[0], self.plan.method)
        weights = Weights.of(design) if self.plan.layout.shares else None
        donors = _numbers(design.donors, self.donors)
        return Pattern(
            self.plan, rows[design.rows], models, design.mean_rows, tests, donors, weights
        )

    def _selected(self, rows: np.ndarray) -> Pattern | None:
        """The pattern of some rows, where it is beyond doubt that it is like the first."""
        chosen = self.make.selected(rows) if isinstance(self.make, CleanTable) else None
        if chosen is None:
            return None
        models = chosen.models(self.plan.layout.structures)
        if not all(map(surely, models, self._whole)):
            return None
        tests, layout = self.plan.tests, self.plan.layout
        if not all(name in SCANNED for name in tests):  # questions, which are read of the rows
            tests = read_tests(tests, chosen.design, layout.structures[0], self.plan.method)
        weights = Weights.of(chosen.design) if layout.shares else None
        donors = _numbers(chosen.chosen.design.donors, self.donors)[chosen.donors]
        return Pattern(self.plan, chosen.rows, models, chosen.mean_rows, tests, donors, weights)

    @cached_property
    def _whole(self) -> tuple[np.ndarray, ...]:
        """Moments of the components of each structure in all rows, without projection."""
        return tuple(moment_matrix(own, projected=False).diagonal() for own in self._first.models)

    def prepare(self) -> None:
        """Let workers find what the moment estimates of most genes share, not compute it anew."""
        if not self.plan.shared or self.plan.method in LIKELIHOODS or self.plan.layout.windows:
            return
        with suppress(CTMMError):  # a reason that every gene will have
            _ = self._first.shared
            if self.plan.resampled and self.plan.method not in CLUSTERED:
                _ = self._first.jackknife

    def of(self, rows: np.ndarray) -> Pattern | str:
        """The models of these rows of the table, or why they cannot carry the model."""
        key = rows.tobytes()
        return self._first if key == self._key else self._found(key)

    @cached_property
    def _found(self) -> Callable[[bytes], Pattern | str]:
        return lru_cache(_KEPT)(self._build)

    def _build(self, key: bytes) -> Pattern | str:
        rows = np.frombuffer(key, dtype=np.intp)
        try:
            if not len(rows):
                raise DataError("no row has both an expression and a noise variance")
            found = self._selected(rows)
            if found is not None:
                return found
            design = self.make(rows)
            for what, own in _names(design).items():
                if own != self.names[what]:
                    lost = [name for name in self.names[what] if name not in own]
                    which = f": {listing(lost)} is missing" if lost else ""
                    raise DataError(
                        f"the rows of this gene leave other {what} than those of the scan{which}"
                    )
            return self._pattern(design, rows)
        except CTMMError as error:
            return str(error)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_found"}


@lru_cache(maxsize=4)
def _numbers(names: tuple[str, ...], among: tuple[str, ...]) -> np.ndarray:
    """Places of these names, (N,)."""
    place = {name: k for k, name in enumerate(among)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _names(design: Design) -> dict[str, tuple[str, ...]]:
    return {
        "cell types": design.celltypes,
        "fixed effects": design.names,
        "random effects": design.random_names,
        "effects of donors": design.effects,
        "kinship": design.genetic_names,
    }
