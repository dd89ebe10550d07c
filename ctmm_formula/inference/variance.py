"""Tests of a fit: is there cell type-specific variance, is a component positive.

Every test takes a :class:`~ctmm_formula.engine.model.Model` and its
:class:`~ctmm_formula.engine.estimate.Estimate` and returns a :class:`TestResult`.  A test that
cannot be had has p value nan and its reason in ``note``.  Denominators are N - n_par, the number
of donors less the number of all fixed effects and variance components (as in the CTMM paper).

A new test is one function and one row of ``VARIANCE_TESTS`` or ``COMPONENT_TESTS``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..arguments import Rng, choose, generator
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.estimators import estimate as fit_model
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError
from ..structures import Structure
from .bootstrap import parametric_bootstrap_lrt
from .comparison import Fitted, aic, bic, compare, null_on_bound, on_bound
from .rlrt import exact_rlrt
from .testing import TestResult, likelihood_ratio, mean_differentiation, one_sided_t, wald

__all__ = [
    "COMPONENT_TESTS", "VARIANCE_TESTS", "Fitted", "TestResult", "aic", "bic", "compare",
    "component", "df_resid", "exact_rlrt", "information_cov", "likelihood_ratio",
    "mean_differentiation", "one_sided_t", "parametric_bootstrap_lrt", "variance_differentiation",
    "wald",
]  # fmt: skip

_EDGE = "the estimate lies on the edge of its domain, where "
_EDGE_NOTES = {
    "model": _EDGE + "the information matrix is no valid guide",
    "jackknife": _EDGE + "jackknife p values tend to be too small",
}
_NEAR_ZERO = "near V = 0 the jackknife test rejects too often: confirm by test_variance('score')"
_DOUBTED = 0.05  # p values of the jackknife below this come with advice
_ALIASES = {"wald": "model"}  # the covariance is called "model" everywhere
_NO_LIKELIHOOD = "HE has no likelihood: use the jackknife or score test, or fit by reml or ml"


def df_resid(model: Model) -> int:
    """N - n_par: donors less fixed effects and variance components."""
    return model.n_donors - model.X.shape[1] - model.n_components


def information_cov(estimate: Estimate) -> np.ndarray:
    """Inverse of the expected information of theta, shape (K, K); nan where there is none.

    >>> from ctmm_formula.engine.estimate import Convergence
    >>> at = Estimate("reml", np.ones(1), np.ones(1), np.eye(1), "gls", 4 * np.eye(1), np.eye(1),
    ...               -1.0, Convergence(True, False, 0.0, 1, 1, ""))
    >>> information_cov(at)
    array([[0.25]])
    """
    info = estimate.information
    scale = np.sqrt(np.clip(np.diag(info), 0.0, None))
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = info / np.outer(scale, scale)  # units of the components drop out
    if not np.isfinite(scaled).all() or np.linalg.eigvalsh(scaled)[0] < 1e-12:
        return np.full_like(info, math.nan)
    return np.linalg.inv(scaled) / np.outer(scale, scale)


class _Fit(NamedTuple):
    """A fit and the options of its tests."""

    model: Model
    structure: Structure
    estimate: Estimate
    domain: Domain
    cov: np.ndarray | None
    groups: int | None
    kind: str
    rng: Rng
    n: int
    n_jobs: int


def variance_differentiation(
    model: Model,
    structure: Structure,
    estimate: Estimate,
    domain: Domain | None = None,
    method: str = "model",
    *,
    cov: np.ndarray | None = None,
    groups: int | None = None,
    kind: str = "jackknife",
    rng: Rng = None,
    n: int = 999,
    n_jobs: int = 1,
) -> TestResult:
    """Test that donors differ alike in all cell types: A is a multiple of J (V = 0).

    Parameters
    ----------
    model, structure, estimate, domain
        A fit: `estimate` of `model`, which has the basis of `structure`, on `domain`.
    method : str
        - ``jackknife``: F of the components of V with their jackknife covariance `cov`
          (Chen and Dahl 2024); its rate of false positives is too high near V = 0
        - ``model`` (or ``wald``): the same with the inverse expected information
        - ``lrt``: likelihood ratio to the fit of ``hom``, chi2
        - ``bootstrap``: the same ratio against its distribution under the fit of ``hom``
        - ``score``: noise-robust score test; p values per cell type in ``extra["celltype"]``
    cov : array, shape (K, K)
        Covariance of theta (``cov_theta`` of a jackknife), for ``jackknife``.
    groups : int, optional
        Groups of donors it left out, one after the other: bounds the degrees of freedom.
    kind : str
        What the jackknife calls itself in ``method``.
    rng : numpy Generator or seed; n : int; n_jobs : int
        Draws and threads of the bootstrap.

    Raises
    ------
    CTMMError
        Unknown method, or no `cov` for the jackknife.

    Examples
    --------
    >>> from ctmm_formula.structures import resolve
    >>> from ctmm_formula.engine.model import build_model
    >>> rng = np.random.default_rng(1)
    >>> y = np.repeat(rng.normal(size=60), 2) + rng.normal(size=120) * np.tile([1.0, 0.4], 60)
    >>> H, free = np.tile(np.eye(2), (60, 1)), resolve("free", ["T", "B"])
    >>> model = build_model(y, np.full(120, 0.1), H, H, np.repeat(np.arange(60), 2), free.basis)
    >>> test = variance_differentiation(model, free, fit_model(model), method="lrt")
    >>> test.df, bool(test.pvalue < 1e-6)
    (2.0, True)
    """
    run = VARIANCE_TESTS[choose("method", _named(method), VARIANCE_TESTS)]
    domain = domain or Domain()
    return run(_Fit(model, structure, estimate, domain, cov, groups, kind, rng, n, n_jobs))


def _named(method: object) -> object:
    """A method by the name it has here."""
    return _ALIASES.get(method, method) if isinstance(method, str) else method


def _blank(method: str, distribution: str) -> TestResult:
    return TestResult(
        "variance differentiation", "no cell type-specific variance (V = 0)", method,
        math.nan, math.nan, math.nan, distribution,
    )  # fmt: skip


def _nothing(fit: _Fit) -> str:
    """Why V = 0 is no question for this structure, or nothing."""
    empty = not len(fit.structure.null_contrast)
    return f"structure {fit.structure.name} has no V to test" if empty else ""


def _jackknife(fit: _Fit) -> TestResult:
    """F test with the jackknife covariance: the published primary test."""
    return _variance_wald(fit, "jackknife")


def _model(fit: _Fit) -> TestResult:
    """F test with the inverse of the expected information."""
    return _variance_wald(fit, "model")


def _variance_wald(fit: _Fit, kind: str) -> TestResult:
    cov, title, reason = _covariance(fit.estimate, kind, fit.cov, fit.kind)
    blank = _blank(title, "F")
    if _nothing(fit) or reason:
        return blank.without(_nothing(fit) or reason)
    contrast = fit.structure.null_contrast
    L = np.hstack([contrast, np.zeros((len(contrast), len(fit.model.random)))])
    test = wald(
        fit.estimate.theta, cov, L, df_resid(fit.model),
        name=blank.name, null=blank.null, method=title, note=_edge_note(fit.estimate, kind),
        groups=fit.groups if kind == "jackknife" else None,
    )  # fmt: skip
    likelihood = fit.estimate.method in LIKELIHOODS  # whose null rates are known
    if kind == "jackknife" and likelihood and test.pvalue < _DOUBTED:
        test = replace(test, note="; ".join(filter(None, (test.note, _NEAR_ZERO))))
    return test


def _covariance(
    estimate: Estimate, kind: str, cov: np.ndarray | None, title: str = "jackknife"
) -> tuple[np.ndarray, str, str]:
    """Covariance of theta, what the test is called, and why it cannot be had (or nothing)."""
    if kind == "jackknife":
        if cov is None:
            raise CTMMError(
                "method='jackknife' needs cov=, the jackknife covariance of the variance "
                "components: run jackknife() first and give its cov_theta"
            )
        cov = np.asarray(cov, dtype=float)
        failed = (
            "there is no jackknife covariance: a refit without some donors failed, see "
            "jackknife().failed"
        )
        reason = unconverged(estimate) or ("" if np.isfinite(cov).all() else failed)
        return cov, f"wald ({title})", reason
    cov, reason = information_cov(estimate), unconverged(estimate)
    if estimate.method not in LIKELIHOODS:
        reason = "HE has no information matrix: use the jackknife"
    elif not reason and estimate.convergence.boundary:
        reason = _EDGE_NOTES["model"]
    elif not reason and np.isnan(cov).any():
        reason = "the information matrix of the variance components is singular"
    return cov, "wald (model)", reason


def unconverged(estimate: Estimate) -> str:
    """Why variance components of this fit cannot be tested, or nothing."""
    record = estimate.convergence
    return "" if record.converged else f"the fit did not converge: {record.message}"


def _edge_note(estimate: Estimate, kind: str) -> str:
    return _EDGE_NOTES[kind] if estimate.convergence.boundary else ""


def _null_fit(fit: _Fit) -> tuple[Model, Estimate, str]:
    """The fit of hom by the same method; or, in place of an error, the reason why not."""
    null = fit.structure.null()
    model = fit.model.with_basis(null.basis)
    if _nothing(fit):
        return model, fit.estimate, _nothing(fit)
    if fit.estimate.method not in LIKELIHOODS:
        return model, fit.estimate, _NO_LIKELIHOOD
    if not fit.structure.contains(null):
        reason = f"structure {fit.structure.name} does not contain hom: the models are not nested"
        return model, fit.estimate, reason
    if unconverged(fit.estimate):
        return model, fit.estimate, unconverged(fit.estimate)
    try:
        null_fit = fit_model(model, fit.estimate.method, fit.domain)
        stalled = unconverged(null_fit)
        return model, null_fit, f"in the null model, {stalled}" if stalled else ""
    except ConvergenceError as error:
        return model, fit.estimate, f"the null model could not be fitted: {error}"


def _lrt(fit: _Fit) -> TestResult:
    """Likelihood ratio to the fit of hom."""
    blank = _blank(f"likelihood ratio ({fit.estimate.method})", "chi2")
    _, null, reason = _null_fit(fit)
    if reason:
        return blank.without(reason)
    edges = [
        name for name, at in (("null", null), ("full", fit.estimate)) if at.convergence.boundary
    ]
    where = f"the {' and the '.join(edges)} fit on the edge of its domain"
    notes = [f"{where}: chi2 is approximate, see the bootstrap"] if edges else []
    if null_on_bound(fit.structure.null(), fit.structure, fit.domain.bounds):
        notes.append(on_bound(fit.domain.bounds))
    return likelihood_ratio(
        null.llf, fit.estimate.llf, len(fit.structure.null_contrast),
        name=blank.name, null=blank.null, method=blank.method, note="; ".join(notes),
    )  # fmt: skip


def _bootstrap(fit: _Fit) -> TestResult:
    """Likelihood ratio to the fit of hom against its distribution under that fit."""
    blank = _blank(f"bootstrap likelihood ratio ({fit.estimate.method})", "bootstrap")
    model, null, reason = _null_fit(fit)
    if reason:
        return blank.without(reason)
    checked = likelihood_ratio(null.llf, fit.estimate.llf, 1)
    if math.isnan(checked.pvalue):
        return blank.without(checked.note)
    boot = parametric_bootstrap_lrt(
        model, null, fit.model, fit.estimate, fit.domain, fit.n, fit.rng, fit.n_jobs
    )
    notes = []
    if boot.failed:
        notes.append(f"{boot.failed} of {fit.n} draws could not be fitted and do not count")
    if boot.clipped:
        notes.append("a negative variance of a random effect was set to 0 in the null model")
    result = replace(
        blank, statistic=checked.statistic, pvalue=boot.pvalue, note="; ".join(notes),
        extra={"draws": len(boot.statistics)},
    )  # fmt: skip
    return result if len(boot.statistics) else blank.without("no draw could be fitted")


def _score(fit: _Fit) -> TestResult:
    """Noise-robust score test: needs the fit of hom only, which it makes itself."""
    from .score import score_test

    blank = _blank("score", "chi2 mixture")
    try:
        test = score_test(fit.model)
    except CTMMError as error:
        return blank.without(str(error))
    except np.linalg.LinAlgError as error:
        return blank.without(f"the score test could not be computed: {error}")
    if not math.isfinite(test.pvalue_sum):
        return blank.without("the tail probability could not be computed")
    note = "" if test.weights == "n_cells" else f"no numbers of cells: weighted by {test.weights}"
    pvalues = zip(fit.structure.celltypes, test.pvalue_celltype.tolist(), strict=True)
    return replace(
        blank, statistic=float(test.statistic_sum), pvalue=float(test.pvalue_sum), note=note,
        extra={
            "celltype": dict(pvalues), "cauchy": float(test.pvalue_cauchy),
            "weights": test.weights,
        },
    )  # fmt: skip


VARIANCE_TESTS: dict[str, Callable[[_Fit], TestResult]] = {
    "jackknife": _jackknife,
    "model": _model,
    "lrt": _lrt,
    "bootstrap": _bootstrap,
    "score": _score,
}
"""Tests of V = 0 by name."""


def component(
    model: Model,
    estimate: Estimate,
    index: int,
    method: str = "model",
    *,
    label: str | None = None,
    cov: np.ndarray | None = None,
    groups: int | None = None,
    kind: str = "jackknife",
    rng: Rng = None,
    n: int = 10_000,
) -> TestResult:
    """Test one variance component against zero: sigma^2, V_c or a random effect's variance > 0.

    Parameters
    ----------
    model : Model; estimate : Estimate of it
    index : int
        Of the component in theta.
    method : str
        - ``model`` (or ``wald``): one-sided t with the inverse expected information
        - ``jackknife``: one-sided t with the jackknife covariance `cov`
        - ``exact``: exact restricted likelihood ratio, where it is the model's only component
    label : str, optional
        Name of the component, for the result.
    cov : array, shape (K, K)
        Covariance of theta, for ``jackknife``.
    groups : int, optional; kind : str
        As in :func:`variance_differentiation`.
    rng : numpy Generator or seed; n : int
        Draws of the exact test's null distribution.

    Raises
    ------
    CTMMError
        Unknown method or component, or no `cov` for the jackknife.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> rng = np.random.default_rng(1)
    >>> H = np.tile(np.eye(2), (40, 1))
    >>> y = np.repeat(rng.normal(size=40), 2) + rng.normal(size=80)
    >>> model = build_model(y, np.ones(80), H, H, np.repeat(np.arange(40), 2),
    ...                     np.ones((1, 2, 2)))
    >>> component(model, fit_model(model), 0, "exact", label="hom", rng=0).pvalue < 0.01
    True
    """
    if not 0 <= index < model.n_components:
        raise CTMMError(
            f"there is no variance component {index}: theta has {model.n_components} components"
        )
    run = COMPONENT_TESTS[choose("method", _named(method), COMPONENT_TESTS)]
    null = f"{label or f'theta[{index}]'} = 0"
    return run(_Component(model, estimate, index, null, cov, groups, kind, rng, n))


class _Component(NamedTuple):
    """One component of a fit and the options of its tests."""

    model: Model
    estimate: Estimate
    position: int
    null: str
    cov: np.ndarray | None
    groups: int | None
    kind: str
    rng: Rng
    n: int


def _component_t(ask: _Component, kind: str) -> TestResult:
    cov, title, reason = _covariance(ask.estimate, kind, ask.cov, ask.kind)
    variance = float(cov[ask.position, ask.position])
    result = one_sided_t(
        float(ask.estimate.theta[ask.position]),
        math.sqrt(variance) if variance >= 0.0 else math.nan,
        df_resid(ask.model),
        null=ask.null,
        method=title,
        note=_edge_note(ask.estimate, kind),
        groups=ask.groups if kind == "jackknife" else None,
    )
    return result.without(reason) if reason else result


def _component_model(ask: _Component) -> TestResult:
    """One-sided t with the inverse of the expected information."""
    return _component_t(ask, "model")


def _component_jackknife(ask: _Component) -> TestResult:
    """One-sided t with the jackknife covariance."""
    return _component_t(ask, "jackknife")


def _component_exact(ask: _Component) -> TestResult:
    """Exact restricted likelihood ratio; p = 1 where the component is estimated at zero."""
    blank = TestResult(
        "variance component", ask.null, "exact restricted likelihood ratio",
        math.nan, math.nan, math.nan, "chi2 mixture",
    )  # fmt: skip
    rng = generator(ask.rng)
    try:
        test = exact_rlrt(ask.model, ask.n, rng)
    except CTMMError as error:
        return blank.without(str(error))
    except np.linalg.LinAlgError as error:
        return blank.without(f"the exact test could not be computed: {error}")
    floor = 1 / (1 + ask.n)
    note = f"p is no smaller than 1/(1 + {ask.n} draws)" if test.pvalue <= floor else ""
    return replace(
        blank, statistic=test.statistic, pvalue=test.pvalue, note=note,
        extra={"draws": ask.n, "mass at zero": test.mass_at_zero},
    )  # fmt: skip


COMPONENT_TESTS: dict[str, Callable[[_Component], TestResult]] = {
    "model": _component_model,
    "jackknife": _component_jackknife,
    "exact": _component_exact,
}
"""Tests of one variance component by name."""
