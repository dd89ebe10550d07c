"""What is done with every gene of a scan, read off the registry of tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arguments import name_list
from ..design.kinship import Kinship
from ..design.labelled import Design
from ..design.table import listing
from ..engine.domain import Domain
from ..engine.likelihood import LIKELIHOODS
from ..engine.robust import CLUSTERED
from ..errors import CTMMError, DataError
from ..inference.fit import JACKKNIFE, MODEL, ROBUST, errors_of_fixed, own_errors_of
from ..inference.jackknife import NO_ONE_STEP
from ..inference.tests import (
    ARGUMENTS,
    BY,
    KINSHIP,
    LIKELIHOOD,
    SCANNED,
    WITHIN,
    Test,
    errors_of,
    test_about,
)
from ..results.heritability import names_of
from ..results.labels import Labels
from ..results.questions import About, known_form, read_test
from ..results.shares import PARTS
from ..structures import Crossing, Structure
from .columns import Layout, nested_pairs


@dataclass(frozen=True)
class Plan:
    """What to do with every gene.

    ``tests`` are the rows of its tests for the design of the scan, ``fixed_by`` is the kind of
    errors that tests of fixed effects use, ``one_step`` stands for the
    one-step jackknife in place of the exact one, ``draws`` is for every test that draws,
    ``entropy`` the seed of the scan, ``why`` the reason for a method that nobody named.
    """

    layout: Layout
    method: str
    domain: Domain
    fixed_by: str
    one_step: bool
    draws: int
    entropy: int
    tests: Mapping[str, Test] = field(default_factory=dict)
    why: str = ""

    @property
    def shared(self) -> bool:
        """Whether genes share work of their fits: not where weights of each know a kinship."""
        return self.method == "he" or not self.layout.genetic

    @property
    def resampled(self) -> bool:
        """Whether some test needs the jackknife."""
        return JACKKNIFE in kinds_of_errors(self.tests.values(), self.fixed_by)

    @property
    def beside(self) -> bool:
        """Whether some test needs the robust estimate beside another."""
        return self.method not in CLUSTERED and ROBUST in kinds_of_errors(
            self.tests.values(), self.fixed_by
        )


def kinds_of_errors(tests: Iterable[Test], fixed_by: str) -> set[str]:
    """Kinds of errors that some of these tests need."""
    return {errors_of(test, fixed_by) for test in tests}


def asked_tests(tests: str | Sequence[str]) -> tuple[str, ...]:
    """Names of tests in the order asked for, each once; an error for unknown ones."""
    names = [tests] if isinstance(tests, str) else name_list("tests", tests)
    return tuple(dict.fromkeys(map(known_form, names)))


def fixed_by(design: Design, method: str) -> str:
    """Kind of errors that tests of fixed effects use."""
    robust = design.n_cells is not None and design.n_units > 1
    return errors_of_fixed(method, robust, bool(design.kinship))


def read_tests(
    names: Iterable[str], design: Design, structure: Structure, method: str
) -> dict[str, Test]:
    """The tests of these names for a design.

    Raises
    ------
    CTMMError
        Naming the choices of what is not there.
    """
    components = Labels.of(design, structure).components
    about = About(design, components, method, fixed_by(design, method) == ROBUST)
    return {name: read_test(name, about) for name in names}


HERITABILITY = test_about(KINSHIP)


def of_heritability(test: str) -> bool:
    """Whether a test is of one kinship or all.

    >>> of_heritability("heritability:cis"), of_heritability("score")
    (True, False)
    """
    return test.partition(":")[0] == HERITABILITY


def of_each_kinship(tests: Sequence[str], kinship: Sequence[Kinship]) -> tuple[str, ...]:
    """The same tests, of heritability for every kinship where there are several."""
    if len(kinship) < 2:
        return tuple(tests)
    own = [f"{HERITABILITY}:{one.name}" for one in kinship]
    every = [name for test in tests for name in (own if test == HERITABILITY else [test])]
    return tuple(dict.fromkeys(every))


def default_tests(by: object, within: object, kinship: object = None) -> tuple[str, ...]:
    """What a scan tests unless told.

    >>> default_tests(None, None), default_tests("status", None), default_tests(None, "stim")
    (('score',), ('groups',), ('response',))
    """
    asked = ((KINSHIP, kinship), (BY, by), (WITHIN, within))
    given = [test_about(argument) for argument, value in asked if value is not None]
    return (given[0] if given else "score",)


def check_tests(
    tests: Mapping[str, Test],
    n_structures: int,
    method: str,
    why: str,
    crossing: Crossing | None = None,
    kinship: Sequence[Kinship] = (),
) -> None:
    """Refuse what `method`, the default for the reason `why` or "", or the design cannot have.

    Raises
    ------
    CTMMError
    """
    given = None if crossing is None else WITHIN if crossing.kind == WITHIN else BY
    there = {given, KINSHIP if kinship else None}
    for name, row in tests.items():
        for argument in row.needs.intersection(ARGUMENTS) - there:
            fix = "give one" if argument == KINSHIP else f"name the column, {argument}='...'"
            raise CTMMError(f"test {name!r} is of fits with {argument}=: {fix}")
    if given is not None and "score" in tests:
        raise CTMMError(
            f"test 'score' of V = 0 knows no groups or conditions ({given}=): ask for "
            f"{test_about(given)!r}, or scan each by itself"
        )
    if kinship and "score" in tests:
        raise CTMMError(
            f"test 'score' of V = 0 takes donors as unrelated: ask for {HERITABILITY!r}, or scan "
            "without kinship="
        )
    if method in LIKELIHOODS:
        return
    where = "with kinship=" if kinship else "where there are numbers of cells"
    called = f"method={method!r}" + f" (the default {where})" * bool(why)
    for name, row in tests.items():
        if LIKELIHOOD in row.needs:
            known = [n for n, test in SCANNED.items() if LIKELIHOOD not in test.needs]
            others = [repr(n) for n in known if not (kinship and n == "score")]
            raise CTMMError(
                f"{called} has no likelihood and so no test {name!r}: use "
                f"{', '.join(others[:-1])} and {others[-1]}, or fit by method='reml' or 'ml'"
            )
    if why and n_structures > 1:
        raise CTMMError(
            f"models= are compared by likelihood ratios, and {called} has none: say "
            f"method='reml' or 'ml', or method={method!r} to fit them without a comparison"
        )


def all_structures(given: Sequence[object], design: Design) -> tuple[Structure, ...]:
    """The structures of a scan, each once; an error where two of one name differ."""
    resolved: dict[str, Structure] = {}
    for one in given:
        structure = design.structure(one)
        if structure.name in resolved and not np.array_equal(
            structure.basis, resolved[structure.name].basis
        ):
            raise CTMMError(f"models= holds two structures called {structure.name!r}: scan twice")
        resolved.setdefault(structure.name, structure)
    return tuple(resolved.values())


def make_plan(
    design: Design,
    structures: tuple[Structure, ...],
    method: str,
    domain: Domain,
    tests: Mapping[str, Test],
    *,
    one_step: bool,
    draws: int,
    entropy: int,
    shares: bool = False,
    windows: bool = False,
    why: str = "",
) -> Plan:
    """The plan of a scan with this design, and the columns of its table."""
    likelihood, joined = method in LIKELIHOODS, method in CLUSTERED and bool(design.kinship)
    own = fixed_by(design, method)
    resampled = JACKKNIFE in kinds_of_errors(tests.values(), own)
    errors = (["se"] if likelihood or method in CLUSTERED else []) + (
        ["se_jackknife"] if resampled else []
    )
    if one_step and likelihood and resampled and design.kinship:
        raise CTMMError(f"{NO_ONE_STEP}: leave one_step= out, or scan by method='he'")
    labels = [Labels.of(design, structure) for structure in structures]
    components = tuple(tuple(own.components) for own in labels)
    layout = Layout(
        design.celltypes,
        design.names,
        structures,
        components,
        {name: test.details for name, test in tests.items()},
        tuple(errors),
        nested_pairs(structures) if likelihood else (),
        one_step and (likelihood or joined) and resampled,
        {name: dict(test.parts) for name, test in tests.items() if test.parts},
        (*PARTS, *labels[0].random, *(one.name for one in design.kinship), "noise")
        if shares
        else (),
        _heritabilities(design) if resampled or own_errors_of(method, True) == MODEL else (),
        tuple((one.name, one.structure) for one in design.kinship),
        windows,
    )
    if layout.clashes:
        raise DataError(
            f"the table of the scan would have several columns {listing(layout.clashes)}: rename "
            "the columns of data that random effects or variables of tests are called by, or scan "
            "twice"
        )
    return Plan(layout, method, domain, own, one_step, draws, entropy, tests, why)


def _heritabilities(design: Design) -> tuple[str, ...]:
    """Names of the parts that have one, of several kinships with theirs: ``cis:shared``."""
    names = names_of(design.celltypes)
    if len(design.kinship) < 2:
        return tuple(names) if design.kinship else ()
    return tuple(f"{one.name}:{name}" for one in design.kinship for name in names)
