"""Genes to numbers: arrays in, rows of the table out, never an exception.

A block of genes is split by its patterns of missing rows; genes of one pattern share their models
and go together through :func:`fit_all` and :func:`jackknife_all`, the two places where an
estimator can do the work of many responses at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import chain, repeat
from typing import Any, TypeVar

import numpy as np
from joblib import parallel_config

from ..blas import one_thread
from ..design.arrays import (
    bad_noise,
    bad_square,
    extremes,
    is_bad_noise,
    is_bad_square,
    is_extreme,
    why_bad,
    why_bad_square,
)
from ..design.table import rows as in_rows
from ..engine import he, likelihood
from ..engine.estimate import Estimate
from ..engine.estimators import estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..engine.robust import CLUSTERED, RobustFit, weigh
from ..errors import CTMMError, DataError
from ..inference.comparison import Labelled, compare
from ..inference.fit import (
    JACKKNIFE,
    MODEL,
    Errors,
    Fit,
    own_errors_of,
    share_errors,
)
from ..inference.jackknife import JackknifeRun, LikelihoodJackknife
from ..inference.testing import TestResult
from ..inference.tests import DRAWS, run_test
from ..results.heritability import parts_of, reach_of
from ..results.shares import Weights, variance_parts
from .columns import BY_TYPE, H2, OF_WINDOW, SE_H2, Block, Row, stack
from .patterns import Pattern, Patterns
from .plan import Plan
from .windows import Read, Walk

T = TypeVar("T")
OK, BOUNDARY, NOT_CONVERGED, FAILED = "ok", "boundary", "not converged", "failed"
STATUSES = (OK, BOUNDARY, NOT_CONVERGED, FAILED)


@one_thread()  # here too: a worker may be another process
def scan_block(
    patterns: Patterns,
    names: Sequence[str],
    Y: np.ndarray,
    NU: np.ndarray,
    NU2: np.ndarray | None = None,
    windows: Read | None = None,
) -> Block:
    """Columns of some genes (g), from expression and noise (rows of the table, g) with NaN.

    `NU2`, the squares of the noise, may have more NaN.  With `windows` every gene has a kernel of
    its own, and so a pattern.
    """
    found: list[Row] = [{} for _ in names]
    walk = None if windows is None else Walk(windows)
    # what a gene does in parallel by itself stays here: a cluster must not get it as tasks
    with np.errstate(all="ignore"), parallel_config("sequential"):
        for members in _by_pattern(Y, NU):
            rows = np.flatnonzero(~(np.isnan(Y[:, members[0]]) | np.isnan(NU[:, members[0]])))
            pattern = patterns.of(rows)
            if isinstance(pattern, str):
                own = [Row(status=FAILED, reason=" ".join(pattern.split())) for _ in members]
                y, nu = _genes(Y, rows, members), _genes(NU, rows, members)
            else:
                rows, genes = pattern.rows, [names[k] for k in members]
                y, nu = _genes(Y, rows, members), _genes(NU, rows, members)
                square = None if NU2 is None else _genes(NU2, rows, members)
                if walk is None:
                    own = _scan_pattern(pattern, y, nu, square, genes)
                else:
                    each = zip(members, y, nu, _each(square), genes)  # noqa: B905
                    own = [_with_window(pattern, walk, *gene) for gene in each]
            if len(rows):
                means, zero = y.mean(axis=1).tolist(), (nu == 0.0).mean(axis=1).tolist()
                for row, *of_rows in zip(own, means, zero, strict=True):
                    row["mean"], row["zero_noise"] = of_rows
            for k, row in zip(members.tolist(), own, strict=True):
                row["gene"] = names[k]
                found[k] = row
    return stack(found, patterns.plan.layout.kinds())


def _genes(values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Values (rows, genes) of some of both, (genes, rows)."""
    return np.ascontiguousarray(values[np.ix_(rows, members)].T)


def _each(square: np.ndarray | None) -> Iterable[np.ndarray | None]:
    """Squares of the noise of every gene, None again and again where there are none."""
    return repeat(None) if square is None else square


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
    text = str(error) if isinstance(error, CTMMError) else f"{type(error).__name__}: {error}"
    return {"status": FAILED, "reason": " ".join(text.split())}


def _scan_pattern(
    pattern: Pattern,
    Y: np.ndarray,
    NU: np.ndarray,
    NU2: np.ndarray | None,
    names: Sequence[str],
) -> list[Row]:
    """Genes (g, n) by name on the same rows, in the order of the design."""
    checks = _checks(pattern, Y, NU, NU2)
    good = [k for k, error in enumerate(checks) if error is None]
    fits: list[list[Fit | Exception]] = []
    for k, model in enumerate(pattern.models if good else ()):
        some = np.ix_(np.array(good), model.order)
        squares = None if NU2 is None else NU2[some]
        genes = model.with_responses(Y[some], NU[some], squares)
        fits.append(fit_all(pattern, k, genes))
    if good and pattern.plan.beside:
        fits[0] = [_with_robust(pattern, fit) for fit in fits[0]]
    if good and pattern.plan.method in LIKELIHOODS:
        share_errors([fit for fit in fits[0] if isinstance(fit, Fit)])
    resampled = bool(good) and pattern.plan.resampled
    runs = jackknife_all(pattern, fits[0]) if resampled else [None] * len(good)
    rows: list[Row | Exception | None] = list(checks)
    for at, k in enumerate(good):
        gene = _Gene(pattern, [fit[at] for fit in fits], runs[at], names[k])
        rows[k] = _attempt(gene.row)
    return [_failure(row) if isinstance(row, Exception) else row or {} for row in rows]


def _with_window(
    pattern: Pattern,
    walk: Walk,
    gene: int,
    y: np.ndarray,
    nu: np.ndarray,
    nu2: np.ndarray | None,
    name: str,
) -> Row:
    """One gene with the kernel of its own window."""
    found = _attempt(walk.of, gene, pattern.related)
    if isinstance(found, Exception):
        return _failure(found)
    own = pattern.of_kernel(found.kernel)
    row = _scan_pattern(own, y[None], nu[None], None if nu2 is None else nu2[None], [name])[0]
    m = found.variants
    known = m, found.constant, found.rare, found.missing / (len(found.kernel) * m)
    return {**row, **dict(zip(OF_WINDOW, known, strict=True))}


def _checks(
    pattern: Pattern, Y: np.ndarray, NU: np.ndarray, NU2: np.ndarray | None
) -> list[Exception | None]:
    """What forbids a fit of genes (g, n)."""
    model = pattern.models[0]
    n_cells = None if model.n_cells is None else model.unsort(model.n_cells)
    bad = ~np.isfinite(Y).all(axis=1) | is_extreme(Y) | is_bad_noise(NU, n_cells).any(axis=1)
    if NU2 is not None:
        bad |= is_bad_square(NU2, NU).any(axis=1)
    out: list[Exception | None] = [None] * len(Y)
    for k in np.flatnonzero(bad):
        nu2 = None if NU2 is None else NU2[k]
        out[k] = _attempt(_check, pattern.rows, n_cells, Y[k], NU[k], nu2)
    return out


def _check(
    rows: np.ndarray,
    n_cells: np.ndarray | None,
    y: np.ndarray,
    nu: np.ndarray,
    nu2: np.ndarray | None,
) -> None:
    """What a fit asks of its response and noise."""
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise DataError(
            f"expression is {y[bad[0]]} in {in_rows(rows[bad])}: correct the values, or make them "
            "NaN to leave the rows out"
        )
    bad = bad_noise(nu, n_cells)
    if len(bad):
        raise DataError(
            f"noise variance must be positive and finite, found {nu[bad[0]]} in "
            f"{in_rows(rows[bad])}: make it NaN to leave these rows out, or estimate it anew"
            f"{why_bad(nu[bad], n_cells)}"
        )
    bad = np.flatnonzero([]) if nu2 is None else bad_square(nu2, nu)
    if nu2 is not None and len(bad):
        raise DataError(
            f"the square of the noise variance cannot be in {in_rows(rows[bad])}, found "
            f"{why_bad_square(nu2[bad[0]], nu[bad[0]])}"
        )
    if y.max() == y.min():
        raise DataError(f"expression is constant ({y[0]:g}): there is no variance to estimate")
    extreme = extremes(y)
    if extreme:
        raise DataError(f"expression {extreme}: rescale it")


def fit_all(pattern: Pattern, k: int, genes: Sequence[Model]) -> list[Fit | Exception]:
    """Fits of many responses of one design, under its structure number k."""
    plan = pattern.plan
    run = _FITS.get(plan.method, _one_by_one) if plan.shared else _one_by_one
    work = _attempt(run, pattern, k, genes)
    if isinstance(work, Exception):
        return [work] * len(genes)
    structure = plan.layout.structures[k]

    def fitted(model: Model, run: Callable[[], Estimate | RobustFit]) -> Fit:
        out = run()
        weighed = out if isinstance(out, RobustFit) else None
        found = out.estimate if isinstance(out, RobustFit) else out
        if not math.isfinite(sum(found.theta.tolist()) + sum(found.beta.tolist())):
            raise DataError("the estimates are not finite: rescale the expression of this gene")
        shared = pattern.score, pattern.groups, pattern.genetic
        return Fit(model, structure, plan.domain, found, pattern.mean_rows, weighed, *shared)

    return [_attempt(fitted, *one) for one in zip(genes, work, strict=True)]


_Work = list[Callable[[], Estimate | RobustFit]]


def _with_robust(pattern: Pattern, fit: Fit | Exception) -> Fit | Exception:
    """The fit with the robust estimate of its model, where there is one."""
    if isinstance(fit, Exception):
        return fit
    beside = _attempt(lambda: weigh(fit.model, pattern.robust))
    return replace(fit, weighed=beside) if isinstance(beside, RobustFit) else fit


def _one_by_one(pattern: Pattern, k: int, genes: Sequence[Model]) -> _Work:
    plan = pattern.plan
    return [partial(estimate, gene, plan.method, plan.domain) for gene in genes]


def _by_likelihood(pattern: Pattern, k: int, genes: Sequence[Model]) -> _Work:
    plan = pattern.plan
    given = plan.method, plan.domain, pattern.shared[k]
    return [partial(likelihood.fit, gene, *given) for gene in genes]


def _by_moments(pattern: Pattern, k: int, genes: Sequence[Model]) -> _Work:
    design = pattern.shared[k]
    thetas = design.solve(*_columns(genes))
    return [partial(he.complete, *one, design) for one in zip(genes, thetas, strict=True)]


def _by_robust_moments(pattern: Pattern, k: int, genes: Sequence[Model]) -> _Work:
    return [partial(weigh, gene, pattern.shared[k]) for gene in genes]


_FITS: dict[str, Callable[[Pattern, int, Sequence[Model]], _Work]] = {
    "he": _by_moments,
    "robust": _by_robust_moments,
    **dict.fromkeys(LIKELIHOODS, _by_likelihood),
}
"""Methods whose fits of many responses share work -> these fits, to be run one by one."""


def _columns(genes: Sequence[Model]) -> tuple[np.ndarray, np.ndarray]:
    """Responses and noise variances (n, genes), in kernel order."""
    return np.array([gene.y for gene in genes]).T.copy(), np.array([g.nu for g in genes]).T.copy()


def jackknife_all(
    pattern: Pattern, fits: Sequence[Fit | Exception]
) -> list[JackknifeRun | Exception | None]:
    """Jackknives of many fits of one design; None where there is no fit."""
    fitted = [fit for fit in fits if isinstance(fit, Fit)]
    work = _attempt(_jackknives, pattern, fitted) if fitted else []
    runs: Iterator[JackknifeRun | Exception]
    runs = repeat(work) if isinstance(work, Exception) else map(_attempt, work)
    return [next(runs) if isinstance(fit, Fit) else None for fit in fits]


def _jackknives(pattern: Pattern, fits: Sequence[Fit]) -> list[Callable[[], JackknifeRun]]:
    """A jackknife of each fit, to be run."""
    if pattern.plan.method in CLUSTERED or not pattern.plan.shared:
        return [partial(fit.jackknife, one_step=pattern.plan.layout.one_step) for fit in fits]
    run, given = pattern.jackknife, [(fit.model, fit.estimate, fit.domain) for fit in fits]
    if isinstance(run, LikelihoodJackknife):
        return [partial(run, *one) for one in given]
    thetas = run.theta(*_columns([fit.model for fit in fits]))
    return [partial(run, *one, theta) for one, theta in zip(given, thetas, strict=True)]


def _attempt(work: Callable[..., T], *given: Any) -> T | Exception:
    """The result, or what went wrong."""
    try:
        return work(*given)
    except Exception as error:  # one gene must never be the end of a scan
        return error


@dataclass(frozen=True)
class _Gene:
    """One gene: its fits (one for each structure, the main one first) and what they say."""

    pattern: Pattern
    fits: Sequence[Fit | Exception]
    run: JackknifeRun | Exception | None
    name: str

    @property
    def plan(self) -> Plan:
        """What to do."""
        return self.pattern.plan

    def row(self) -> Row:
        """All columns of the table that this gene has."""
        main = self.fits[0]
        if isinstance(main, Exception):
            raise main
        record, layout, run = main.estimate.convergence, self.plan.layout, self.run
        status, reasons = OK, []
        if not record.converged:
            status, reasons = NOT_CONVERGED, [record.message]
        elif record.boundary:
            status, reasons = BOUNDARY, ["the estimate lies on the edge of its domain"]
        out: Row = {"n_obs": main.model.nobs, "n_donors": main.model.n_donors}
        out |= _outcome("", main)
        names = layout.standard_errors
        out |= zip(layout.estimates, main.estimates.tolist(), strict=True)
        if "se" in names:
            out |= zip(names["se"], main.own_standard_errors.tolist(), strict=True)
        jackknife = None
        if isinstance(run, JackknifeRun):
            jackknife = main.jackknife_errors(run)
            each = jackknife.of_estimates(main.mean_rows).tolist()
            out |= zip(names["se_jackknife"], each, strict=True)
            out["error_jackknife"] = run.error
        elif run is not None:
            reasons.append(f"jackknife: {run}")
        if layout.heritability:
            by_model = own_errors_of(main.estimate.method, True) == MODEL
            errors = main.own_errors if by_model else jackknife
            out |= {} if errors is None else self._heritability(main, errors)
        if self.pattern.weights is not None:
            out |= self._shares(main, self.pattern.weights)
        for name in layout.tests:
            test = self._test(name, main, jackknife)
            out |= layout.outcome(name, test)
            for end, one in chain([("", test)], test.parts.items()):
                if _lacks_some(one):
                    reasons.append(f"{name}{end}: {one.note}")
        if len(self.fits) > 1:
            self._others(out, reasons)
        out["status"], out["reason"] = status, "; ".join(dict.fromkeys(reasons))
        return out

    def _heritability(self, main: Fit, errors: Errors) -> Row:
        """Heritabilities and their standard errors."""
        p, theta = main.n_fixed, main.estimate.theta
        reach = reach_of(errors, main.n_params, 0.05)
        rows = parts_of(main, theta, errors.cov[p:, p:], reach)
        out: Row = {}
        for name, (_, _, h2, se, *_) in zip(self.plan.layout.heritability, rows, strict=True):
            out |= {f"{H2}[{name}]": h2, f"{SE_H2}[{name}]": se}
        return out

    def _shares(self, main: Fit, weights: Weights) -> Row:
        """Shares of the variance of overall pseudobulk."""
        structure, theta = main.structure, main.estimate.theta
        count, model = len(structure.labels), main.model
        common = structure.common(theta[:count])
        V = structure.covariance(theta[:count]) - common
        variances = model.random_variances(theta)
        names = self.plan.layout.components[0][count : count + len(variances)]
        random = dict(zip(names, variances, strict=True))
        nu, genetic = model.unsort(model.nu), model.genetic_covariances(theta)
        parts = variance_parts(weights, main.estimate.beta, common, V, random, nu, genetic)
        total = sum(parts.values())
        return {f"share[{name}]": v / total if total else math.nan for name, v in parts.items()}

    def _test(self, name: str, main: Fit, jackknife: Errors | None) -> TestResult:
        def errors(kind: str) -> Errors:
            if kind != JACKKNIFE:
                return main.errors(kind)
            if jackknife is None:
                raise CTMMError(f"there is no jackknife: {self.run}")
            return jackknife

        tests, rng = self.pattern.tests, None
        if DRAWS in tests[name].needs:
            rng = np.random.default_rng(gene_seed(self.plan.entropy, self.name))
        try:
            return run_test(
                name, main, registry=tests, errors=errors, fixed_by=self.plan.fixed_by, rng=rng,
                n=self.plan.draws,
            )  # fmt: skip
        except (CTMMError, np.linalg.LinAlgError) as error:
            nan = math.nan
            return TestResult(name, "", name, nan, nan, nan, "", str(error))

    def _others(self, out: Row, reasons: list[str]) -> None:
        """The other structures and their likelihood ratios."""
        layout = self.plan.layout
        more = zip(layout.structures, layout.components, self.fits, strict=True)
        for structure, names, fit in list(more)[1:]:
            if isinstance(fit, Exception):
                reasons.append(f"{structure.name}: {fit}")
                continue
            theta = zip(names, fit.estimate.theta, strict=True)
            out |= _outcome(f"{structure.name}.", fit)
            out |= {f"{structure.name}.{name}": value for name, value in theta}
        for pair in layout.ratios:
            fits = [self.fits[k] for k in pair]
            ready = [Labelled(fit.structure.name, fit) for fit in fits if isinstance(fit, Fit)]
            if len(ready) == 2:
                last = compare(ready)[-1]
                out |= layout.ratio(pair, last["statistic"], last["df"], last["pvalue"])
                if math.isnan(last["pvalue"]):
                    reasons.append(f"{layout.ratio_name(pair)}: {last['note']}")


def _lacks_some(test: TestResult) -> bool:
    """Whether a test cannot be had, or not that of a cell type."""
    return any(map(math.isnan, (test.pvalue, *test.extra.get(BY_TYPE, {}).values())))


def _outcome(prefix: str, fit: Fit) -> Row:
    """How a fit ended."""
    record = fit.estimate.convergence
    return {
        f"{prefix}converged": record.converged,
        f"{prefix}boundary": record.boundary,
        f"{prefix}llf": fit.estimate.llf,
    }
