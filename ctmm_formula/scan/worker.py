"""Genes to numbers: arrays in, rows of the table out, never an exception.

A block of genes is split by its patterns of missing rows; genes of one pattern share their models
and go together through :func:`fit_all` and :func:`jackknife_all`, the two places where an
estimator can do the work of many responses at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TypeVar

import numpy as np
from joblib import parallel_config

from ..design.table import rows as in_rows
from ..engine import he
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.estimators import estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..errors import CTMMError, DataError
from ..inference import variance
from ..inference.comparison import Fitted, compare
from ..inference.jackknife import Jackknife
from ..inference.testing import TestResult
from .columns import Block, Layout, Row, stack
from .patterns import Pattern, Patterns

T = TypeVar("T")
OK, BOUNDARY, NOT_CONVERGED, FAILED = "ok", "boundary", "not converged", "failed"
STATUSES = (OK, BOUNDARY, NOT_CONVERGED, FAILED)


@dataclass(frozen=True)
class Plan:
    """What to do with every gene.

    Attributes
    ----------
    layout : Layout
    method : str
    domain : Domain
    one_step : bool
        One-step jackknife in place of the exact one.
    draws : int
        Of a bootstrap.
    entropy : int
        Seed of the scan; every gene has its own stream.
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
        return bool({"jackknife", "mean"} & set(self.layout.tests))


def scan_block(
    plan: Plan, patterns: Patterns, names: Sequence[str], Y: np.ndarray, NU: np.ndarray
) -> Block:
    """Fit and test some genes.

    Parameters
    ----------
    plan : Plan; patterns : Patterns
    names : sequence of str, length g
    Y, NU : ndarray, shape (rows of the table, g)
        Expression and noise variance, NaN where missing.

    Returns
    -------
    dict of ndarray, length g each
    """
    found: list[Row] = [{} for _ in names]
    # what a gene does in parallel by itself stays here: a cluster must not get it as tasks
    with np.errstate(all="ignore"), parallel_config("sequential"):
        for members in _by_pattern(Y, NU):
            rows = np.flatnonzero(~(np.isnan(Y[:, members[0]]) | np.isnan(NU[:, members[0]])))
            try:
                pattern = patterns.of(rows)
            except CTMMError as error:
                found_here = [_failure(error) for _ in members]
            else:
                y, nu = Y[pattern.rows].T[members], NU[pattern.rows].T[members]
                streams = [gene_seed(plan.entropy, names[k]) for k in members]
                found_here = _scan_pattern(plan, pattern, y, nu, streams)
            for k, row in zip(members, found_here, strict=True):
                found[k] = {"gene": names[k], **row}
    return stack(found, plan.layout.kinds())


def gene_seed(entropy: int, gene: str) -> np.random.SeedSequence:
    """The stream of one gene, whatever other genes are in the scan.

    >>> gene_seed(1, "NANOG").generate_state(1)[0] == gene_seed(1, "NANOG").generate_state(1)[0]
    np.True_
    """
    words = np.frombuffer(blake2b(gene.encode(), digest_size=16).digest(), dtype="<u4")
    return np.random.SeedSequence(entropy, spawn_key=tuple(int(word) for word in words))


def _by_pattern(Y: np.ndarray, NU: np.ndarray) -> list[np.ndarray]:
    """Genes with the same missing rows, in order of their first."""
    missing = np.packbits(np.isnan(Y) | np.isnan(NU), axis=0)
    groups: dict[bytes, list[int]] = {}
    for k in range(Y.shape[1]):
        groups.setdefault(missing[:, k].tobytes(), []).append(k)
    return [np.array(members) for members in groups.values()]


def _failure(error: Exception) -> Row:
    """The row of a gene that cannot be fitted."""
    ours = isinstance(error, CTMMError)
    text = str(error) if ours else f"{type(error).__name__}: {error}"
    return {"status": FAILED, "reason": " ".join(text.split())}


def _scan_pattern(
    plan: Plan,
    pattern: Pattern,
    Y: np.ndarray,
    NU: np.ndarray,
    streams: Sequence[np.random.SeedSequence],
) -> list[Row]:
    """Genes (g, n) on the same rows, in the order of the design."""
    out: list[Row] = [{} for _ in Y]
    good = []
    for k, (y, nu) in enumerate(zip(Y, NU, strict=True)):
        try:
            _check(y, nu, pattern.rows)
            good.append(k)
        except DataError as error:
            out[k] = _failure(error)
    models = [_responses(model, Y[good], NU[good]) for model in pattern.models]
    fits = [fit_all(plan, pattern, k, genes) for k, genes in enumerate(models)]
    runs = (
        jackknife_all(plan, pattern, models[0], fits[0]) if plan.resampled else [None] * len(good)
    )
    for at, k in enumerate(good):
        own = [genes[at] for genes in models]
        gene = _Gene(plan, pattern, own, [fit[at] for fit in fits], runs[at], streams[k])
        try:
            out[k] = gene.row()
        except Exception as error:  # one gene must never be the end of a scan
            out[k] = _failure(error)
    return out


def _check(y: np.ndarray, nu: np.ndarray, rows: np.ndarray) -> None:
    """What a fit asks of its response and noise."""
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise DataError(
            f"expression is {y[bad[0]]} in {in_rows(rows[bad])}: correct the values, or make them "
            "NaN to leave the rows out"
        )
    bad = np.flatnonzero(~((nu > 0) & np.isfinite(nu)))
    if len(bad):
        raise DataError(
            f"noise variance must be positive and finite, found {nu[bad[0]]} in "
            f"{in_rows(rows[bad])}: make it NaN to leave these rows out, or estimate it anew"
        )
    if y.max() == y.min():
        raise DataError(f"expression is constant ({y[0]:g}): there is no variance to estimate")
    if not 0.0 < np.square(y - y.mean()).sum() < np.inf:
        size = np.abs(y).max()
        raise DataError(f"squares of the expression (up to {size:.0e}) are not finite: rescale it")


def _responses(model: Model, Y: np.ndarray, NU: np.ndarray) -> list[Model]:
    """The model with each response (g, n)."""
    order = model.order
    return [model.with_response(y[order], nu[order]) for y, nu in zip(Y, NU, strict=True)]


def fit_all(
    plan: Plan, pattern: Pattern, k: int, genes: Sequence[Model]
) -> list[Estimate | Exception]:
    """Estimates of many responses of one design, under its structure number k."""
    if plan.method in LIKELIHOODS:
        fits = [partial(estimate, gene, plan.method, plan.domain) for gene in genes]
    else:
        thetas = _attempt(lambda: pattern.moments[k].solve(*_columns(genes)))
        if isinstance(thetas, Exception):
            return [thetas] * len(genes)
        fits = [partial(he.complete, *one) for one in zip(genes, thetas, strict=True)]
    return [_attempt(partial(_finite, fit)) for fit in fits]


def _finite(fit: Callable[[], Estimate]) -> Estimate:
    fitted = fit()
    if not (np.isfinite(fitted.theta).all() and np.isfinite(fitted.beta).all()):
        raise DataError("the estimates are not finite: rescale the expression of this gene")
    return fitted


def _columns(genes: Sequence[Model]) -> tuple[np.ndarray, np.ndarray]:
    """Responses and noise variances (n, genes), in kernel order."""
    size = len(genes[0].y) if genes else 0
    values = np.array([[gene.y, gene.nu] for gene in genes]).reshape(-1, 2, size)
    return np.ascontiguousarray(values[:, 0].T), np.ascontiguousarray(values[:, 1].T)


def jackknife_all(
    plan: Plan, pattern: Pattern, genes: Sequence[Model], fits: Sequence[Estimate | Exception]
) -> list[Jackknife | Exception | None]:
    """Jackknives of many responses of one design; None where there is no fit."""
    fitted = {j: fit for j, fit in enumerate(fits) if not isinstance(fit, Exception)}
    if not fitted:
        return [None] * len(genes)
    if plan.method in LIKELIHOODS:
        name = "one_step_jackknife" if plan.one_step else "exact_jackknife"
        run = _attempt(partial(getattr, pattern, name))
        if isinstance(run, Exception):
            return [run if j in fitted else None for j in range(len(genes))]
        work = {j: partial(run, genes[j], fit, plan.domain) for j, fit in fitted.items()}
    else:
        columns = _columns([genes[j] for j in fitted])
        thetas = _attempt(lambda: pattern.moment_jackknife.theta(*columns))
        if isinstance(thetas, Exception):
            return [thetas if j in fitted else None for j in range(len(genes))]
        work = {
            j: partial(pattern.moment_jackknife, genes[j], fit, plan.domain, theta)
            for (j, fit), theta in zip(fitted.items(), thetas, strict=True)
        }
    return [_attempt(work[j]) if j in work else None for j in range(len(genes))]


def _attempt(work: Callable[[], T]) -> T | Exception:
    """The result, or what went wrong."""
    try:
        return work()
    except Exception as error:  # one gene must never be the end of a scan
        return error


@dataclass(frozen=True)
class _Gene:
    """One gene: its fits (one for each structure, the main one first) and what they say."""

    plan: Plan
    pattern: Pattern
    models: Sequence[Model]
    fits: Sequence[Estimate | Exception]
    run: Jackknife | Exception | None
    stream: np.random.SeedSequence

    def row(self) -> Row:
        """All columns of the table that this gene has."""
        main = self.fits[0]
        if isinstance(main, Exception):
            raise main
        record, layout = main.convergence, self.plan.layout
        reasons = []
        status = OK
        if not record.converged:
            status = NOT_CONVERGED
            reasons.append(record.message)
        elif record.boundary:
            status = BOUNDARY
            reasons.append("the estimate lies on the edge of its domain")
        out: Row = {
            "n_obs": self.models[0].nobs,
            "n_donors": self.models[0].n_donors,
            "converged": record.converged,
            "boundary": record.boundary,
            "llf": main.llf,
        }
        out |= dict(zip(layout.estimates, self._values(main), strict=True))
        out |= self._errors(main)
        if isinstance(self.run, Exception):
            reasons.append(f"jackknife: {self.run}")
        elif self.run is not None:
            out["error_jackknife"] = self.run.error
        for name in layout.tests:
            test = self._test(name)
            out |= {f"stat_{name}": test.statistic, f"p_{name}": test.pvalue}
            by_type = test.extra.get("celltype", {})
            out |= {f"p_{name}[{key}]": value for key, value in by_type.items()}
            if "cauchy" in test.extra:
                out[f"p_{name}_cauchy"] = test.extra["cauchy"]
            if math.isnan(test.pvalue):
                reasons.append(f"{name}: {test.note}")
        more, why = self._others()
        reasons += why
        return out | more | {"status": status, "reason": "; ".join(dict.fromkeys(reasons))}

    def _values(self, fitted: Estimate) -> np.ndarray:
        """Variance components, cell type means, fixed effects."""
        return np.concatenate([fitted.theta, self.pattern.mean_rows @ fitted.beta, fitted.beta])

    def _errors(self, fitted: Estimate) -> Row:
        """Standard errors of these by every covariance there is."""
        out: Row = {}
        L = self.pattern.mean_rows
        for prefix in self.plan.layout.errors:
            if prefix == "se":
                theta, beta = variance.information_cov(fitted), fitted.cov_beta
            elif isinstance(self.run, Jackknife):
                theta, beta = self.run.cov_theta, self.run.cov_beta
            else:
                continue
            means = np.einsum("cp,pq,cq->c", L, beta, L)
            se = np.sqrt(np.concatenate([np.diag(theta), means, np.diag(beta)]))
            names = [f"{prefix}[{name}]" for name in self.plan.layout.estimates]
            out |= dict(zip(names, se, strict=True))
        return out

    def _test(self, name: str) -> TestResult:
        try:
            return TESTS[name](self)
        except (CTMMError, np.linalg.LinAlgError) as error:
            nan = math.nan
            return TestResult(name, "", name, nan, nan, nan, "", str(error))

    def _others(self) -> tuple[Row, list[str]]:
        """The other structures and their likelihood ratios."""
        layout, out, reasons = self.plan.layout, Row(), []
        for structure, names, fitted in zip(
            layout.structures[1:], layout.components[1:], self.fits[1:], strict=True
        ):
            if isinstance(fitted, Exception):
                reasons.append(f"{structure.name}: {fitted}")
                continue
            values = dict(zip(("llf", *names), (fitted.llf, *fitted.theta), strict=True))
            values["converged"] = fitted.convergence.converged
            values["boundary"] = fitted.convergence.boundary
            out |= {f"{structure.name}.{key}": value for key, value in values.items()}
        for pair in layout.ratios:
            fits = [self._fitted(k) for k in pair]
            ready = [fit for fit in fits if fit is not None]
            if len(ready) == 2:
                last = compare(ready)[-1]
                name = layout.ratio_name(pair)
                out |= {f"stat_{name}": last["statistic"], f"p_{name}": last["pvalue"]}
                reasons += [f"{name}: {last['note']}"] if math.isnan(last["pvalue"]) else []
        return out, reasons

    def _fitted(self, k: int) -> Fitted | None:
        """One structure's fit as a likelihood ratio test sees it."""
        at, plan = self.fits[k], self.plan
        if isinstance(at, Exception):
            return None
        structure = plan.layout.structures[k]
        return Fitted(structure.name, self.models[k], structure, at, (), plan.domain)


def _variance_test(method: str, gene: _Gene) -> TestResult:
    """V = 0, as ``CTMMResults.test_variance`` has it."""
    main, plan = gene.fits[0], gene.plan
    if isinstance(main, Exception):
        raise main
    run = _run(gene) if method == "jackknife" else None
    return variance.variance_differentiation(
        gene.models[0],
        plan.layout.structures[0],
        main,
        plan.domain,
        method,
        cov=None if run is None else run.cov_theta,
        groups=None if run is None else len(run.left_out),
        rng=np.random.default_rng(gene.stream) if method == "bootstrap" else None,
        n=plan.draws,
    )


def _mean_test(gene: _Gene) -> TestResult:
    """All cell types have the same mean, as ``CTMMResults.test_mean`` has it."""
    main, run, L = gene.fits[0], _run(gene), gene.pattern.mean_rows
    if isinstance(main, Exception):
        raise main
    df = variance.df_resid(gene.models[0])
    return variance.mean_differentiation(L, main.beta, run.cov_beta, df, groups=len(run.left_out))


def _run(gene: _Gene) -> Jackknife:
    """The gene's jackknife, or why there is none."""
    if isinstance(gene.run, Jackknife):
        return gene.run
    raise CTMMError(f"there is no jackknife: {gene.run}")


_SHORT = {"model": "wald"}  # what a table calls the test by the model's own covariance
TESTS: dict[str, Callable[[_Gene], TestResult]] = {
    **{_SHORT.get(name, name): partial(_variance_test, name) for name in variance.VARIANCE_TESTS},
    "mean": _mean_test,
}
"""Tests by name; those of V = 0 are the registry's."""
