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
from typing import NoReturn, TypeVar

import numpy as np
from joblib import parallel_config

from ..design.table import rows as in_rows
from ..engine import he
from ..engine.estimate import Estimate
from ..engine.estimators import estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..errors import CTMMError, DataError
from ..inference.comparison import Labelled, compare
from ..inference.fit import Errors, Fit
from ..inference.jackknife import JackknifeRun
from ..inference.testing import TestResult
from ..inference.tests import run_test
from .columns import Block, Row, stack
from .patterns import Pattern, Patterns
from .plan import Plan

T = TypeVar("T")
OK, BOUNDARY, NOT_CONVERGED, FAILED = "ok", "boundary", "not converged", "failed"
STATUSES = (OK, BOUNDARY, NOT_CONVERGED, FAILED)


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
    runs: list[JackknifeRun | Exception | None] = [None] * len(good)
    if plan.resampled:
        runs = jackknife_all(plan, pattern, fits[0])
    for at, k in enumerate(good):
        gene = _Gene(plan, [fit[at] for fit in fits], runs[at], streams[k])
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


def fit_all(plan: Plan, pattern: Pattern, k: int, genes: Sequence[Model]) -> list[Fit | Exception]:
    """Fits of many responses of one design, under its structure number k."""
    if plan.method in LIKELIHOODS:
        work = [partial(estimate, gene, plan.method, plan.domain) for gene in genes]
    else:
        thetas = _attempt(lambda: pattern.moments[k].solve(*_columns(genes)))
        if isinstance(thetas, Exception):
            return [thetas] * len(genes)
        work = [partial(he.complete, *one) for one in zip(genes, thetas, strict=True)]
    structure = plan.layout.structures[k]

    def fitted(model: Model, run: Callable[[], Estimate]) -> Fit:
        found = run()
        if not (np.isfinite(found.theta).all() and np.isfinite(found.beta).all()):
            raise DataError("the estimates are not finite: rescale the expression of this gene")
        return Fit(model, structure, plan.domain, found, pattern.mean_rows)

    return [_attempt(partial(fitted, *one)) for one in zip(genes, work, strict=True)]


def _columns(genes: Sequence[Model]) -> tuple[np.ndarray, np.ndarray]:
    """Responses and noise variances (n, genes), in kernel order."""
    size = len(genes[0].y) if genes else 0
    values = np.array([[gene.y, gene.nu] for gene in genes]).reshape(-1, 2, size)
    return np.ascontiguousarray(values[:, 0].T), np.ascontiguousarray(values[:, 1].T)


def jackknife_all(
    plan: Plan, pattern: Pattern, fits: Sequence[Fit | Exception]
) -> list[JackknifeRun | Exception | None]:
    """Jackknives of many fits of one design; None where there is no fit."""
    fitted = {j: fit for j, fit in enumerate(fits) if not isinstance(fit, Exception)}
    out: list[JackknifeRun | Exception | None] = [None] * len(fits)
    if not fitted:
        return out
    try:
        runs = _jackknives(plan, pattern, list(fitted.values()))
    except Exception as error:  # the same for all
        runs = [partial(_raise, error)] * len(fitted)
    for j, run in zip(fitted, runs, strict=True):
        out[j] = _attempt(run)
    return out


def _jackknives(
    plan: Plan, pattern: Pattern, fits: Sequence[Fit]
) -> list[Callable[[], JackknifeRun]]:
    """A jackknife of each fit, to be run."""
    if plan.method in LIKELIHOODS:
        run = pattern.one_step_jackknife if plan.one_step else pattern.exact_jackknife
        return [partial(run, fit.model, fit.estimate, plan.domain) for fit in fits]
    moments = pattern.moment_jackknife
    thetas = moments.theta(*_columns([fit.model for fit in fits]))
    return [
        partial(moments, fit.model, fit.estimate, plan.domain, theta)
        for fit, theta in zip(fits, thetas, strict=True)
    ]


def _raise(error: Exception) -> NoReturn:
    raise error


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
    fits: Sequence[Fit | Exception]
    run: JackknifeRun | Exception | None
    stream: np.random.SeedSequence

    def row(self) -> Row:
        """All columns of the table that this gene has."""
        main = self.fits[0]
        if isinstance(main, Exception):
            raise main
        record, layout = main.estimate.convergence, self.plan.layout
        status, reasons = OK, []
        if not record.converged:
            status = NOT_CONVERGED
            reasons.append(record.message)
        elif record.boundary:
            status = BOUNDARY
            reasons.append("the estimate lies on the edge of its domain")
        out: Row = {
            "n_obs": main.model.nobs,
            "n_donors": main.model.n_donors,
            "converged": record.converged,
            "boundary": record.boundary,
            "llf": main.estimate.llf,
        }
        out |= dict(zip(layout.estimates, _values(main), strict=True))
        for prefix, errors in self._errors(main).items():
            names = [f"{prefix}[{name}]" for name in layout.estimates]
            out |= dict(zip(names, _standard_errors(main, errors), strict=True))
        if isinstance(self.run, Exception):
            reasons.append(f"jackknife: {self.run}")
        elif self.run is not None:
            out["error_jackknife"] = self.run.error
        for name in layout.tests:
            test = self._test(name, main)
            out |= {f"stat_{name}": test.statistic, f"p_{name}": test.pvalue}
            out |= layout.details(name, test.extra)
            if math.isnan(test.pvalue):
                reasons.append(f"{name}: {test.note}")
        more, why = self._others()
        reasons += why
        return out | more | {"status": status, "reason": "; ".join(dict.fromkeys(reasons))}

    def _errors(self, main: Fit) -> dict[str, Errors]:
        """Where the standard errors of the table come from, by the prefix of their columns."""
        out = {}
        for prefix in self.plan.layout.errors:
            if prefix == "se":
                out[prefix] = main.model_errors
            elif isinstance(self.run, JackknifeRun):
                out[prefix] = main.jackknife_errors(self.run)
        return out

    def _test(self, name: str, main: Fit) -> TestResult:
        def jackknife() -> Errors:
            if isinstance(self.run, JackknifeRun):
                return main.jackknife_errors(self.run)
            raise CTMMError(f"there is no jackknife: {self.run}")

        stream = np.random.default_rng(self.stream)
        try:
            return run_test(name, main, jackknife=jackknife, rng=stream, n=self.plan.draws)
        except (CTMMError, np.linalg.LinAlgError) as error:
            nan = math.nan
            return TestResult(name, "", name, nan, nan, nan, "", str(error))

    def _others(self) -> tuple[Row, list[str]]:
        """The other structures and their likelihood ratios."""
        layout, out, reasons = self.plan.layout, Row(), []
        for structure, names, fit in zip(
            layout.structures[1:], layout.components[1:], self.fits[1:], strict=True
        ):
            if isinstance(fit, Exception):
                reasons.append(f"{structure.name}: {fit}")
                continue
            at = fit.estimate
            values = dict(zip(("llf", *names), (at.llf, *at.theta), strict=True))
            values["converged"] = at.convergence.converged
            values["boundary"] = at.convergence.boundary
            out |= {f"{structure.name}.{key}": value for key, value in values.items()}
        for pair in layout.ratios:
            fits = [self.fits[k] for k in pair]
            ready = [Labelled(fit.structure.name, fit) for fit in fits if isinstance(fit, Fit)]
            if len(ready) == 2:
                last = compare(ready)[-1]
                name = layout.ratio_name(pair)
                out |= {f"stat_{name}": last["statistic"], f"p_{name}": last["pvalue"]}
                reasons += [f"{name}: {last['note']}"] if math.isnan(last["pvalue"]) else []
        return out, reasons


def _values(fit: Fit) -> np.ndarray:
    """Variance components, cell type means, fixed effects."""
    at = fit.estimate
    return np.concatenate([at.theta, fit.mean_rows @ at.beta, at.beta])


def _standard_errors(fit: Fit, errors: Errors) -> np.ndarray:
    """Of the same."""
    p, L = fit.n_fixed, fit.mean_rows
    theta, beta = errors.cov[p:, p:], errors.cov[:p, :p]
    means = np.einsum("cp,pq,cq->c", L, beta, L)
    return np.sqrt(np.concatenate([np.diag(theta), means, np.diag(beta)]))
