"""What is done with every gene of a scan, read off the registry of tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arguments import choose
from ..design.labelled import Design
from ..engine.domain import Domain
from ..engine.likelihood import LIKELIHOODS
from ..engine.robust import CLUSTERED
from ..errors import CTMMError
from ..inference.tests import JACKKNIFE, LIKELIHOOD, TESTS, needs_of
from ..results.labels import component_names
from ..structures import Structure, resolve
from .columns import Layout, nested_pairs


@dataclass(frozen=True)
class Plan:
    """What to do with every gene.

    ``one_step`` stands for the one-step jackknife in place of the exact one, ``draws`` is for
    every test that draws, ``entropy`` the seed of the scan.
    """

    layout: Layout
    method: str
    domain: Domain
    one_step: bool
    draws: int
    entropy: int

    @property
    def resampled(self) -> bool:
        """Whether some test needs the jackknife."""
        return JACKKNIFE in needs_of(self.layout.tests, self.method)


def asked_tests(tests: str | Sequence[str], method: str) -> tuple[str, ...]:
    """Names of tests in the order asked for, each once.

    Raises
    ------
    CTMMError
        Unknown tests, or one that `method` cannot have.
    """
    names = [tests] if isinstance(tests, str) else name_list("tests", tests)
    for name in names:
        if LIKELIHOOD in TESTS[choose("test", name, TESTS)].needs and method not in LIKELIHOODS:
            others = [repr(n) for n, test in TESTS.items() if LIKELIHOOD not in test.needs]
            raise CTMMError(
                f"method={method!r} has no likelihood and so no test {name!r}: use "
                f"{', '.join(others[:-1])} and {others[-1]}, or fit by reml or ml"
            )
    return tuple(dict.fromkeys(names))


def name_list(name: str, values: object) -> list[Any]:
    """The values of an argument that takes a list."""
    if not isinstance(values, Iterable):
        raise CTMMError(f"{name}= must be a list of names, and [] for none, got {values!r}")
    return list(values)


def all_structures(given: Sequence[object], celltypes: Sequence[str]) -> tuple[Structure, ...]:
    """The structures of a scan, each once; an error where two of one name differ."""
    resolved: dict[str, Structure] = {}
    for one in given:
        structure = resolve(one, celltypes)
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
    tests: tuple[str, ...],
    *,
    one_step: bool,
    draws: int,
    entropy: int,
) -> Plan:
    """The plan of a scan with this design, and the columns of its table."""
    likelihood = method in LIKELIHOODS
    resampled = JACKKNIFE in needs_of(tests, method)
    errors = (["se"] if likelihood or method in CLUSTERED else []) + (
        ["se_jackknife"] if resampled else []
    )
    layout = Layout(
        design.celltypes,
        design.names,
        structures,
        tuple(component_names(s.labels, design.names, design.random_names) for s in structures),
        {name: TESTS[name].details for name in tests},
        tuple(errors),
        nested_pairs(structures) if likelihood else (),
        one_step and likelihood and resampled,
    )
    return Plan(layout, method, domain, one_step, draws, entropy)
