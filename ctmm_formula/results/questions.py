"""Tests that are asked for in words: effects, contrasts, components, linear hypotheses.

A question is a row of ``QUESTIONS``: how its text is read, once per design, into a row of the
registry of tests (:class:`ctmm_formula.inference.tests.Test`), which ``fit_genes`` and R run as any
other test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from ..arguments import choose
from ..design.grids import cells, differences
from ..design.labelled import Design
from ..distributions import standard_errors
from ..engine.likelihood import LIKELIHOODS
from ..engine.robust import CLUSTERED
from ..errors import CTMMError
from ..inference.differences import Differences, each, linear, padded, test_differences
from ..inference.fit import JACKKNIFE, Fit
from ..inference.hypotheses import constraints, equations, in_words
from ..inference.testing import TestResult
from ..inference.tests import (
    COMPONENT_TESTS,
    FIXED,
    GENETIC_TESTS,
    LIKELIHOOD,
    SCANNED,
    Ask,
    Test,
)

ASKED = "hypothesis"
"""The question of a test that is read from text."""


class About(NamedTuple):
    """What a text is read against.

    Attributes
    ----------
    design : Design
    components : sequence of str
        Names of the variance components.
    method : str
        Of estimation.
    robust : bool
        Whether tests of fixed effects are robust.
    """

    design: Design
    components: Sequence[str]
    method: str
    robust: bool

    @property
    def own(self) -> frozenset[str]:
        """What a test by the fit's own errors needs."""
        if self.method in CLUSTERED:
            return frozenset({FIXED})
        return frozenset({LIKELIHOOD if self.method in LIKELIHOODS else JACKKNIFE})


@dataclass(frozen=True)
class Question:
    """A row of ``QUESTIONS``.

    Attributes
    ----------
    read : callable (str, About) -> Test
    form : str
        How it is written, for messages.
    asserts : str
        What a small p value says.
    """

    read: Callable[[str, About], Test]
    form: str
    asserts: str


def known_form(name: object) -> str:
    """The name of a test, one of the registry or a question, or an error that lists the choices.

    >>> known_form("effects: status")
    'effects:status'
    """
    if isinstance(name, str) and name not in SCANNED:
        head, colon, rest = name.partition(":")
        if colon and head.strip() in QUESTIONS and rest.strip():
            return spelled(name)
    return choose("test", name, [*SCANNED, *(row.form for row in QUESTIONS.values())])


def spelled(name: str) -> str:
    """A name without blanks about its colon; what is no text as it is.

    The rest stays as it is written: names of columns and levels may hold blanks and "=".
    """
    if not isinstance(name, str):
        return name
    head, colon, rest = name.partition(":")
    if not (colon and head.strip() in QUESTIONS):
        return name
    return f"{head.strip()}:{rest.strip()}"


def read_test(name: str, about: About) -> Test:
    """The test of that name for a design: a row of ``SCANNED``, or a question that is read.

    Raises
    ------
    CTMMError
        Naming what the question may ask of.
    """
    if name in SCANNED:
        return SCANNED[name]
    head, _, rest = name.partition(":")
    try:
        return QUESTIONS[head].read(rest, about)
    except CTMMError as error:
        raise type(error)(f"test {name!r}: {error}") from None


# effects


def _effects(rest: str, about: About) -> Test:
    asked = differences(about.design, rest)
    parts = {end: L.ndim == 1 for end, L in asked.own.items()}
    run = partial(_run_effects, asked=asked)
    return Test(ASKED, run, frozenset({FIXED}), (), QUESTIONS["effects"].asserts, parts)


def _run_effects(fit: Fit, ask: Ask, *, asked: Differences) -> TestResult:
    return test_differences(fit, ask.errors, asked)


# contrasts of means


def _contrast(rest: str, about: About) -> Test:
    L, rhs, words = contrast_rows(about.design, rest)
    run = partial(_run_contrast, L=L, rhs=rhs, null=", ".join(words))
    row = QUESTIONS["contrast"].asserts
    return Test(ASKED, run, frozenset({FIXED}), (), row, {"": len(L) == 1})


def contrast_rows(
    design: Design, hypotheses: object, at: object = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows L b = rhs (q, p) of hypotheses about means of cell types, and each in words."""
    means = cells(design, at)
    W, rhs = constraints(list(means), hypotheses)  # type: ignore[arg-type]
    used = np.flatnonzero((W != 0).any(axis=0))
    rows = np.array(list(means.values()))[used]
    if not np.isfinite(rows).all():
        lost = [list(means)[k] for k in used[~np.isfinite(rows).all(axis=1)]]
        raise CTMMError(f"the rows do not tell the mean of {', '.join(lost)}")
    return W[:, used] @ rows, rhs, equations(W, rhs, list(means))


def _run_contrast(fit: Fit, ask: Ask, *, L: np.ndarray, rhs: np.ndarray, null: str) -> TestResult:
    if len(L) == 1:
        test = each(fit, ask.errors, L, [""], rhs)[0]
        return replace(test, name="contrast", null=null)
    return replace(linear(fit, ask.errors, padded(L, fit), rhs, null=null), name="contrast")


# parameters


def _component(rest: str, about: About) -> Test:
    index = list(about.components).index(choose("variance component", rest, about.components))
    row = COMPONENT_TESTS["wald" if about.method in LIKELIHOODS else "jackknife"]
    run = partial(_run_component, row=row, index=index, null=f"{rest} = 0")
    return Test(ASKED, run, about.own, (), QUESTIONS["component"].asserts, {"": True})


def _run_component(fit: Fit, ask: Ask, *, row: Test, index: int, null: str) -> TestResult:
    test = row.run(fit, ask._replace(component=index, null=null))
    value, at = float(fit.estimate.theta[index]), fit.n_fixed + index
    se = float(standard_errors(ask.errors.cov[at, at]))
    return replace(test, estimate=value, std_error=se)


def _wald(rest: str, about: About) -> Test:
    names = [*about.design.names, *about.components]
    L, rhs = constraints(names, rest)
    fixed = not L[:, len(about.design.names) :].any()
    needs = frozenset({FIXED}) if fixed and about.robust else about.own
    run = partial(_run_wald, L=L, rhs=rhs, null=in_words(L, rhs, names))
    return Test(ASKED, run, needs, (), QUESTIONS["wald"].asserts, {"": False})


def _run_wald(fit: Fit, ask: Ask, *, L: np.ndarray, rhs: np.ndarray, null: str) -> TestResult:
    return linear(fit, ask.errors, L, rhs, null=null)


def _heritability(rest: str, about: About) -> Test:
    names = [one.name for one in about.design.kinship]
    if not names:
        raise CTMMError("there is no kinship: give kinship=")
    row = GENETIC_TESTS["heritability"]
    number = names.index(choose("kinship", rest, names))
    return replace(row, run=partial(_run_heritability, row=row, number=number))


def _run_heritability(fit: Fit, ask: Ask, *, row: Test, number: int) -> TestResult:
    return row.run(fit, ask._replace(component=number))


QUESTIONS: dict[str, Question] = {
    "effects": Question(
        _effects, "effects:VARIABLE",
        "the variable has an effect in some cell type; with the same in every type, their mean, "
        "and whether types differ, as CTMMResults.effects",
    ),
    "contrast": Question(
        _contrast, "contrast:T - B",
        "a contrast of means is not 0, as CTMMResults.contrast: cell types, and in them levels, "
        "T|case",
    ),
    "component": Question(
        _component, "component:NAME",
        "the variance component is above 0, by a one-sided t test with the fit's own errors",
    ),
    "wald": Question(
        _wald, "wald:V[T] = V[B]",
        "linear hypotheses of parameters do not hold, as CTMMResults.wald_test",
    ),
    "heritability": Question(
        _heritability, "heritability:KINSHIP",
        "variance between donors goes with that of several kinships, as test_heritability",
    ),
}  # fmt: skip
"""Questions by the word before their colon."""
