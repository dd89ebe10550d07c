"""The registry of tests: what can be asked of a fit by name.

A test is a function of a :class:`~ctmm_formula.inference.fit.Fit` and what it :class:`Ask` s for
beside it, and a row of ``TESTS`` (or of ``COMPONENT_TESTS``, for one variance component).  The
row says what the test needs and which p values it has; ``fit``, ``fit_genes``, ``power``, R and
the documentation read it.  A test that cannot be had has p value nan and its reason in ``note``.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from ..arguments import MOST_DRAWS, Rng, choose, generator, whole_number
from ..blas import one_thread
from ..distributions import standard_errors
from ..errors import CTMMError
from .bootstrap import bootstrap_ratio
from .comparison import null_on_bound, on_bound
from .fit import JACKKNIFE, MODEL, Errors, Fit, edge_note
from .genetic_tests import heritable
from .group_score import SHARED, SPECIFIC
from .group_tests import groups, response
from .rlrt import exact_rlrt
from .score import score_test
from .testing import Law, TestResult, likelihood_ratio, mean_differentiation, one_sided_t, wald

LIKELIHOOD, FIXED, DRAWS, CELLS = "likelihood", "fixed", "draws", "cells"
"""What a test may need beside a jackknife: a fit by ML or REML; the errors of fixed effects; draws;
numbers of cells (without them it does what it can, and says so)."""
BY, WITHIN, KINSHIP = ARGUMENTS = "by", "within", "kinship"
"""Arguments of a fit that some test is about, which needs it."""

_NEAR_ZERO = "near V = 0 the jackknife test rejects too often: confirm by test_variance('score')"
_NO_SQUARES = (
    "cells of some pairs are all alike and there are no unbiased squares of the noise (nu2): the "
    "test is cautious"
)
_DOUBTED = 0.05  # p values of the jackknife below this come with advice
_JACKKNIFE_ON_EDGE = edge_note("jackknife p values tend to be too small")


class Ask(NamedTuple):
    """What a test gets beside the fit.

    Attributes
    ----------
    find : callable () -> Errors
        Makes `errors`: by the jackknife or those of fixed effects, for tests that need them; else
        by the model.
    component : int; null : str
        For tests of one component (or kinship): its number, and the hypothesis in words.
    rng : numpy Generator; n : int; n_jobs : int
        Draws and threads.
    """

    find: Callable[[], Errors]
    component: int = -1
    null: str = ""
    rng: Rng = None
    n: int = 999
    n_jobs: int = 1

    @property
    def errors(self) -> Errors:
        """Those that the test goes by, made when it asks for them."""
        return self.find()


@dataclass(frozen=True)
class Test:
    """A row of the registry.

    Attributes
    ----------
    question : {"variance", "mean", "component"}
        Which method of the results asks it: ``test_<question>``.
    run : callable (Fit, Ask) -> TestResult
    needs : frozenset of {"likelihood", "jackknife", "fixed", "draws", "cells"}
        And the argument of a fit that it is about: "by", "within" or "kinship".
    details : tuple of str
        Further p values in ``TestResult.extra``: "celltype" (one for each), "cauchy", ...
    asserts : str
        What a small p value says, and how it is found.
    parts : mapping
        Ends of the names of ``TestResult.parts``, "" for the test itself -> whether it is of one
        number, with an estimate; of tests that a scan has more columns for.
    """

    __test__: ClassVar[bool] = False  # its name makes pytest think it holds tests

    question: str
    run: Callable[[Fit, Ask], TestResult]
    needs: frozenset[str]
    details: tuple[str, ...]
    asserts: str
    parts: Mapping[str, bool] = field(default_factory=dict, hash=False)


@one_thread()
def run_test(
    name: str,
    fit: Fit,
    *,
    registry: Mapping[str, Test] | None = None,
    errors: Callable[[str], Errors] | None = None,
    fixed_by: str | None = None,
    component: int = -1,
    label: str = "",
    rng: Rng = None,
    n: int = 999,
    n_jobs: int = 1,
) -> TestResult:
    """Run the test of that name.

    Parameters
    ----------
    name : str
        Of ``TESTS``, or of another `registry`.
    fit : Fit
    errors : callable (str) -> Errors, optional
        Gives the errors of a kind (:func:`errors_of`), but for those by the model; by default the
        jackknife is the exact one over single donors, which is run.
    fixed_by : str, optional
        Kind of errors for tests of fixed effects, by default the fit's.
    component : int; label : str, optional
        Number and name of the component, for tests of one.
    rng : numpy Generator or seed, optional; n : int; n_jobs : int
        Draws and threads.

    Raises
    ------
    CTMMError
        Unknown test or component.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> fit = ctmm.fit("expr ~ C(celltype)", method="reml", data=df).numbers
    >>> test = run_test("lrt", fit)
    >>> test.df, bool(test.pvalue < 1e-6)
    (4.0, True)
    """
    rows = SCANNED if registry is None else registry
    test = rows[choose("test", name, rows)]
    if test.question == "component" and not 0 <= component < len(fit.estimate.theta):
        raise CTMMError(
            f"there is no variance component {component}: theta has {len(fit.estimate.theta)} "
            "components"
        )
    if fixed_by is None:
        fixed_by = fit.fixed_by if FIXED in test.needs else ""
    kind = errors_of(test, fixed_by)

    def find() -> Errors:
        return fit.errors(kind, n_jobs) if errors is None or kind == MODEL else errors(kind)

    if DRAWS in test.needs:
        rng, n = generator(rng), whole_number("n", n, 1, 100 * MOST_DRAWS)
    null = f"{label or f'theta[{component}]'} = 0" if test.question == "component" else ""
    return test.run(fit, Ask(find, component, null, rng, n, n_jobs))


def errors_of(test: Test, fixed_by: str) -> str:
    """The kind of errors that a test uses unless told others.

    Parameters
    ----------
    test : Test
    fixed_by : str
        That of tests of fixed effects, ``Fit.fixed_by``.

    Examples
    --------
    >>> [errors_of(TESTS[name], "robust") for name in ("mean", "mean_jackknife", "wald")]
    ['robust', 'jackknife', 'model']
    """
    return fixed_by if FIXED in test.needs else JACKKNIFE if JACKKNIFE in test.needs else MODEL


def needs_of(tests: Iterable[Test]) -> frozenset[str]:
    """Everything that one of these tests needs.

    >>> sorted(needs_of([TESTS["lrt"], TESTS["mean"]])), sorted(needs_of([TESTS["score"]]))
    (['fixed', 'likelihood'], ['cells'])
    """
    return frozenset[str]().union(*(test.needs for test in tests))


def named(question: str) -> list[str]:
    """Names of the tests of a question.

    >>> named("variance")
    ['score', 'jackknife', 'wald', 'lrt', 'bootstrap']
    """
    return [name for name, test in TESTS.items() if test.question == question]


# V = 0


_DIFFERENTIATION = "variance differentiation", "no cell type-specific variance (V = 0)"


def _blank(method: str, distribution: str) -> TestResult:
    return TestResult(*_DIFFERENTIATION, method, distribution=distribution)


def _nothing(fit: Fit) -> str:
    """Why V = 0 is no question for this structure, or nothing."""
    empty = not len(fit.structure.null_contrast)
    return f"structure {fit.structure.name} has no V to test" if empty else ""


def _score(fit: Fit, ask: Ask) -> TestResult:
    """Noise-robust score test: makes the fit of hom that it needs by itself."""
    found = _scores(fit)
    if isinstance(found, str):
        return _blank("score", "chi2 mixture").without(found)
    return found


def _scores(fit: Fit) -> TestResult | str:
    """The score test, or why there is none."""
    crossed = fit.structure.crossed
    if crossed is not None:
        return (
            f"the score test of V = 0 knows no groups or conditions ({crossed.crossing.column}): "
            "fit each by itself"
        )
    if fit.model.kinship:
        return (
            "the score test of V = 0 takes donors as unrelated: test_heritability() has the test "
            "of what is genetic and specific; or fit without kinship="
        )
    if fit.model.H.shape[1] < 2:
        return "there is one cell type: nothing can be specific to it"
    try:
        test = score_test(fit.model, fit.score_design)
    except CTMMError as error:
        return str(error)
    except np.linalg.LinAlgError as error:
        return f"the score test could not be computed: {error}"
    if math.isnan(test.log_pvalue_sum):
        return (
            "the score has no variance where V = 0 (few counts, no shared variance), or its tail "
            "could not be computed"
        )
    notes = (
        [] if test.weights == "n_cells" else [f"no numbers of cells: weighted by {test.weights}"]
    )
    notes += [_NO_SQUARES] if test.cautious else []
    types = fit.structure.celltypes
    if test.low:
        low = ", ".join(repr(types[c]) for c in test.low)
        notes.append(
            f"cells hardly vary in {low}, which takes the sum of scores from the other cell types "
            "where there are no unbiased squares of the noise (nu2): read the cauchy p value"
        )
    logs = test.log_pvalue_celltype.tolist()
    known = (*test.silent, *test.explained)
    others = [c for c, log in enumerate(logs) if math.isnan(log) and c not in known]
    for which, why in (
        (test.silent, "where cells of a pair are alike in nearly all pairs"),
        (test.explained, "which the fixed effects explain wholly"),
        (others, "whose score has no variance where V = 0, or whose tail could not be computed"),
    ):  # fmt: skip
        if which:
            notes.append(f"without {', '.join(repr(types[c]) for c in which)}, {why}")
    pvalues = dict(zip(types, test.pvalue_celltype.tolist(), strict=True))
    return TestResult(
        *_DIFFERENTIATION, "score", float(test.statistic_sum), math.nan, test.pvalue_sum,
        "chi2 mixture", "; ".join(notes), log_pvalue=test.log_pvalue_sum,
        extra={"celltype": pvalues, "cauchy": test.pvalue_cauchy, "weights": test.weights},
        log_details={
            "celltype": dict(zip(types, logs, strict=True)), "cauchy": test.log_pvalue_cauchy
        },
    )  # fmt: skip


def _variance_wald(fit: Fit, ask: Ask) -> TestResult:
    """F test of the components of V by the errors given."""
    errors, contrast = ask.errors, fit.structure.null_contrast
    blank = _blank(errors.title, "F")
    reason = _nothing(fit) or errors.reason
    if reason:
        return blank.without(reason)
    others = len(fit.estimate.theta) - contrast.shape[1]
    L = np.pad(contrast, ((0, 0), (fit.n_fixed, others)))
    test = wald(
        fit.params, errors.given, L, fit.df_resid,
        name=blank.name, null=blank.null, method=blank.method, groups=errors.groups,
        law=errors.law(L), note=_JACKKNIFE_ON_EDGE if fit.on_edge else "",
    )  # fmt: skip
    # of the moments of Haseman and Elston the null rates are not known
    inflated = fit.has_likelihood or fit.is_clustered
    if errors.groups is not None and inflated and test.pvalue < _DOUBTED:
        test = replace(test, note="; ".join(filter(None, (test.note, _NEAR_ZERO))))
    return test


def _lrt(fit: Fit, ask: Ask) -> TestResult:
    """Likelihood ratio to the fit of hom."""
    blank = _blank(f"likelihood ratio ({fit.estimate.method})", "chi2")
    try:
        null = _null(fit)
    except CTMMError as error:
        return blank.without(str(error))
    edges = [name for name, at in (("null", null), ("full", fit)) if at.on_edge]
    where = f"the {' and the '.join(edges)} fit on the edge of its domain"
    notes = [f"{where}: chi2 is approximate, see the bootstrap"] if edges else []
    if null_on_bound(null.structure, fit.structure, fit.domain.bounds):
        notes.append(on_bound(fit.domain.bounds))
    return likelihood_ratio(
        null.estimate.llf, fit.estimate.llf, len(fit.structure.null_contrast),
        name=blank.name, null=blank.null, method=blank.method, note="; ".join(notes),
    )  # fmt: skip


def _bootstrap(fit: Fit, ask: Ask) -> TestResult:
    """Likelihood ratio to the fit of hom against its distribution under that fit."""
    blank = _blank(f"bootstrap likelihood ratio ({fit.estimate.method})", "bootstrap")
    try:
        null = _null(fit)
    except CTMMError as error:
        return blank.without(str(error))
    checked = likelihood_ratio(null.estimate.llf, fit.estimate.llf, 1)
    if math.isnan(checked.pvalue):
        return blank.without(checked.note)
    boot = bootstrap_ratio(null, fit, ask.n, ask.rng, ask.n_jobs)
    if not len(boot.statistics):
        return blank.without("no draw could be fitted")
    notes = []
    if boot.failed:
        notes.append(f"{boot.failed} of {ask.n} draws could not be fitted and do not count")
    if boot.clipped:
        notes.append("a negative variance of a random effect was set to 0 in the null model")
    return replace(
        blank, statistic=checked.statistic, pvalue=boot.pvalue, note="; ".join(notes),
        extra={"draws": len(boot.statistics)},
    )  # fmt: skip


def _null(fit: Fit) -> Fit:
    if _nothing(fit):
        raise CTMMError(_nothing(fit))
    return fit.null()


# equal means


def _mean(fit: Fit, ask: Ask) -> TestResult:
    """F test of the contrasts of the cell types' means by the errors given."""
    p, errors = fit.n_fixed, ask.errors

    def law(L: np.ndarray) -> Law | None:
        return errors.law(np.hstack([L, np.zeros((len(L), fit.n_params - p))]))

    given = None if errors.given is None else errors.given[:p, :p]
    return mean_differentiation(
        fit.mean_rows, errors.estimates(fit)[:p], given, errors.df_resid,
        method=errors.title, groups=errors.groups, law=law,
    )  # fmt: skip


TESTS: dict[str, Test] = {
    "score": Test(
        "variance", _score, frozenset({CELLS}), ("cauchy", "celltype"),
        "V > 0, by a score test that keeps its level where the noise is only measured",
    ),
    "jackknife": Test(
        "variance", _variance_wald, frozenset({JACKKNIFE}), (),
        "V is not 0, by an F test with the jackknife covariance (Chen and Dahl 2024)",
    ),
    "wald": Test(
        "variance", _variance_wald, frozenset({LIKELIHOOD}), (),
        "V is not 0, by an F test with the inverse expected information",
    ),
    "lrt": Test(
        "variance", _lrt, frozenset({LIKELIHOOD}), (),
        "V is not 0, by the likelihood ratio to the fit of hom, chi2",
    ),
    "bootstrap": Test(
        "variance", _bootstrap, frozenset({LIKELIHOOD, DRAWS}), (),
        "V is not 0, by the likelihood ratio against draws from the fit of hom",
    ),
    "mean": Test(
        "mean", _mean, frozenset({FIXED}), (),
        "means differ between cell types, by an F test of the robust estimate with cluster-robust "
        "errors, whatever the fit; with the jackknife covariance where numbers of cells are not "
        "known",
    ),
    "mean_jackknife": Test(
        "mean", _mean, frozenset({JACKKNIFE}), (),
        "means differ between cell types, by an F test with the jackknife covariance (Chen and "
        "Dahl 2024)",
    ),
}  # fmt: skip
"""Tests by name, the same in ``fit``, ``fit_genes``, ``power`` and R."""


# groups and conditions


GROUP_TESTS: dict[str, Test] = {
    "groups": Test(
        "groups", groups, frozenset({CELLS, BY}), (SHARED, "celltype"),
        "the covariance between donors differs between groups (by=): all of it scaled, its shared "
        "part, and the variance of every cell type, two-sided, by a noise-robust score test",
    ),
    "response": Test(
        "response", response, frozenset({CELLS, WITHIN}), (SHARED, SPECIFIC, "celltype"),
        "donors differ in how they respond to conditions (within=): in all cell types alike, "
        "specific to some, and in every type by its own rows, by a noise-robust score test",
    ),
}  # fmt: skip
"""Tests of groups and of responses by name; a scan takes them beside those of ``TESTS``."""

GENETIC_TESTS: dict[str, Test] = {
    "heritability": Test(
        "heritability", heritable, frozenset({CELLS, KINSHIP}), (SHARED, SPECIFIC, "celltype"),
        "variance between donors goes with a kinship: any, shared by all cell types, specific to "
        "some, and in every type by its own rows, by a score of different donors that noise does "
        "not move",
    ),
}  # fmt: skip
"""Tests of a fit with a kinship."""

SCANNED: Mapping[str, Test] = ChainMap(GENETIC_TESTS, GROUP_TESTS, TESTS)
"""Tests that a scan can be asked for."""


def test_about(argument: str) -> str:
    """Name of the test of what an argument of a fit brings in.

    >>> [test_about(argument) for argument in ARGUMENTS]
    ['groups', 'response', 'heritability']
    """
    return next(name for name, test in SCANNED.items() if argument in test.needs)


test_about.__test__ = False  # type: ignore[attr-defined]  # its name makes pytest try it


# one component


def _component_wald(fit: Fit, ask: Ask) -> TestResult:
    """One-sided t test by the errors given."""
    errors, at = ask.errors, fit.n_fixed + ask.component
    se = float(standard_errors(errors.cov[at, at]))
    result = one_sided_t(
        float(fit.params[at]), se, fit.df_resid, null=ask.null, method=errors.title,
        note=_JACKKNIFE_ON_EDGE if fit.on_edge else "", groups=errors.groups,
    )  # fmt: skip
    return result.without(errors.reason) if errors.reason else result


def _component_exact(fit: Fit, ask: Ask) -> TestResult:
    """Exact restricted likelihood ratio; p = 1 where the component is estimated at zero."""
    method = "exact restricted likelihood ratio"
    blank = TestResult("variance component", ask.null, method, distribution="chi2 mixture")
    try:
        test = exact_rlrt(fit.model, ask.n, ask.rng)
    except CTMMError as error:
        return blank.without(str(error))
    except np.linalg.LinAlgError as error:
        return blank.without(f"the exact test could not be computed: {error}")
    least = test.pvalue <= 1 / (1 + ask.n)
    note = f"p is no smaller than 1/(1 + {ask.n} draws)" if least else ""
    return replace(
        blank, statistic=test.statistic, pvalue=test.pvalue, note=note,
        extra={"draws": ask.n, "mass at zero": test.mass_at_zero},
    )  # fmt: skip


COMPONENT_TESTS: dict[str, Test] = {
    "wald": Test(
        "component", _component_wald, frozenset({LIKELIHOOD}), (),
        "the component is above 0, by a one-sided t test with the inverse expected information",
    ),
    "jackknife": Test(
        "component", _component_wald, frozenset({JACKKNIFE}), (),
        "the component is above 0, by a one-sided t test with the jackknife covariance",
    ),
    "exact": Test(
        "component", _component_exact, frozenset({DRAWS}), (),
        "the model's only component is above 0, by its exact restricted likelihood ratio",
    ),
}  # fmt: skip
"""Tests of one variance component by name."""
