"""Delete-one-donor jackknife of any estimator, its delete-block and one-step versions.

Leave out one donor, refit everything (variance components and fixed effects):

    Cov = (G - 1)/G sum_g (t_(g) - mean)(t_(g) - mean)',   t = (beta, theta)

ML and REML refits start at the full fit, where the score of the others is had for all donors at
once (:mod:`ctmm_formula.engine.left_out_scores`), and take Newton's steps; each is carried to
convergence, so the result is the exact jackknife.  The one-step version stops after the first
step, by the information of the full fit, at a cost linear in donors, and measures its distance
from the exact one on the donors it moved most.  Weighted moments of related donors take the
weights of the full fit there (:mod:`ctmm_formula.engine.left_out_related`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..engine import related_likelihood, related_moments
from ..engine.beside import compile_like, meanwhile
from ..engine.domain import Domain, constrain
from ..engine.estimate import Estimate
from ..engine.estimators import ESTIMATORS
from ..engine.left_out_edges import left_out_edges
from ..engine.left_out_fits import inside, left_out_fits, packed, value, without
from ..engine.left_out_moments import ALIASED, LeftOutMoments
from ..engine.left_out_related import left_out
from ..engine.left_out_scores import Scores, grouped, left_out_scores
from ..engine.likelihood import centre, evaluate, make_problem, response_scale, small_problem
from ..engine.model import Model
from ..engine.optimize import INFEASIBLE, INTERIOR, Problem, Work, make_work
from ..engine.robust import CLUSTERED, ONE_UNIT, RobustFit, weigh
from ..engine.search import GO_ON, STOP, best_of, race
from ..errors import ConvergenceError, CTMMError

_FIXED = "a fixed effect rests on these donors alone and cannot be estimated without them"
_COMPONENTS = "the variance components cannot be told apart without these donors"
_NO_FIT = "no fit, or no positive definite covariance, without these donors"
NO_ONE_STEP = "one_step= of a likelihood takes donors as unrelated, and the fit has a kinship"
_STEPS = 12
_CHECKED = 8  # donors refitted exactly to measure the error of the one-step version


@dataclass(frozen=True)
class JackknifeRun:
    """Leave-out estimates and their covariance.

    Attributes
    ----------
    kind : str
        "donor", "block" or "one-step".
    theta : ndarray, shape (G, K); beta : ndarray, shape (G, p)
        Estimates without each group; NaN rows where the refit failed.
    left_out : tuple of int ndarray, length G
        Donors (kernel numbers) of each group.
    cov : ndarray, shape (p + K, p + K)
        Jackknife covariance of (beta, theta); NaN where a refit failed.
    failed : tuple of (group, reason)
    error : float
        One-step version: largest distance from the exact refit among the groups checked, in
        jackknife standard errors; 0 for the exact versions.
    """

    kind: str
    theta: np.ndarray
    beta: np.ndarray
    left_out: tuple[np.ndarray, ...]
    cov: np.ndarray
    failed: tuple[tuple[int, str], ...]
    error: float

    @property
    def name(self) -> str:
        """What tests call it: "jackknife", "jackknife, 5 blocks", "jackknife, one step"."""
        groups, donors = len(self.left_out), sum(len(group) for group in self.left_out)
        blocks = "" if groups == donors else f", {groups} blocks"
        return f"jackknife{blocks}{', one step' if self.kind == 'one-step' else ''}"


def jackknife(
    model: Model,
    estimate: Estimate,
    domain: Domain | None = None,
    *,
    blocks: int | None = None,
    one_step: bool = False,
    n_jobs: int = 1,
) -> JackknifeRun:
    """Jackknife `estimate` over the donors in use.

    Parameters
    ----------
    model : Model; estimate : Estimate of it; domain : Domain it was fitted on
    blocks : int, optional
        Leave out this many contiguous groups of donors instead of single donors.
    one_step : bool
        One step from the full fit instead of refits (ML, REML, and weighted moments of related
        donors).
    n_jobs : int
        Threads (the kernels release the interpreter lock).

    Raises
    ------
    CTMMError
        `blocks` is not between 2 and the number of donors.
    """
    groups = leave_out_groups(model, blocks)
    kind = "donor" if blocks is None else "block"
    if estimate.method == "he":  # closed form: no step to stop after
        return MomentJackknife(model, groups, kind)(model, estimate, domain)
    if model.kinship:
        if not one_step:
            return _of_related(model, estimate, domain or Domain(), groups, kind)
        if estimate.method not in CLUSTERED:
            raise CTMMError(f"{NO_ONE_STEP}: leave out blocks of donors, blocks=20")
        return _one_step_of_related(model, estimate, groups)
    left_out = LikelihoodJackknife(model, groups, "one-step" if one_step else kind)
    return left_out(model, estimate, domain, n_jobs)


def _of_related(
    model: Model, estimate: Estimate, domain: Domain, groups: list[np.ndarray], kind: str
) -> JackknifeRun:
    """Refits where donors are related, by likelihood each from the full fit."""
    refit = related_moments.fit if estimate.method in CLUSTERED else related_likelihood.fit
    theta = np.full((len(groups), len(estimate.theta)), np.nan)
    beta, failed = np.full((len(groups), len(estimate.beta)), np.nan), []
    for g, group in enumerate(groups):
        try:
            found = refit(model.without(group), estimate.method, domain, estimate.theta)
            theta[g], beta[g] = found.theta, found.beta
        except (ConvergenceError, np.linalg.LinAlgError):
            failed.append((g, _NO_FIT))
    cov = covariance(np.hstack([beta, theta]))
    return JackknifeRun(kind, theta, beta, tuple(groups), cov, tuple(failed), 0.0)


def _one_step_of_related(
    model: Model, estimate: Estimate, groups: list[np.ndarray]
) -> JackknifeRun:
    """Weighted moments without each group at the weights of all; some refits for its error."""
    theta, beta = left_out(model, estimate, groups)
    rough = np.hstack([beta, theta])
    lost = np.isnan(rough).any(axis=1)
    reasons = np.where(np.isnan(beta).any(axis=1), _FIXED, _COMPONENTS)
    failed = tuple((g, str(reasons[g])) for g in np.flatnonzero(lost).tolist())
    known = np.flatnonzero(~lost)
    worst = known[_moved_most(rough[known])]
    some = [groups[g] for g in worst]
    refits = _of_related(model, estimate, Domain(), some, "one-step")
    error = _distance(rough[worst], np.hstack([refits.beta, refits.theta]), rough[known])
    return JackknifeRun("one-step", theta, beta, tuple(groups), covariance(rough), failed, error)


def _moved_most(replicates: np.ndarray) -> np.ndarray:
    """Numbers of those (G, k) that are furthest from the others, in standard errors."""
    se = np.sqrt(np.diag(covariance(replicates)))
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.nanmax(np.abs(replicates - replicates.mean(axis=0)) / se, axis=1)
    return np.argsort(moved)[-_CHECKED:]


def _distance(rough: np.ndarray, exact: np.ndarray, replicates: np.ndarray) -> float:
    """Largest |one step - exact| in standard errors."""
    se, apart = np.sqrt(np.diag(covariance(replicates))), np.abs(exact - rough)
    with np.errstate(divide="ignore"):  # what no group moves is apart by 0 of 0 errors
        errors = np.divide(apart, se, out=np.zeros_like(apart), where=apart > 0.0)
    return float(errors.max(initial=0.0))


def unit_jackknife(model: Model, full: RobustFit, blocks: int | None = None) -> JackknifeRun:
    """Jackknife of a robust fit over its independent units: donors, or blocks of them.

    Single units are left out at the weights of the full fit, without refits; `blocks` contiguous
    groups of units are refitted.

    Raises
    ------
    CTMMError
        `blocks` is not between 2 and the number of units.
    """
    units = full.donors
    if blocks is None:
        theta, beta = full.replicates.theta, full.replicates.beta
        kind, groups = full.unit, units
    else:
        if not 2 <= blocks <= len(units):
            raise CTMMError(
                f"blocks must lie between 2 and the {len(units)} independent {full.unit}s, got "
                f"{blocks}"
            )
        parts = np.array_split(np.arange(len(units)), blocks)
        kind, groups = "block", [np.concatenate([units[u] for u in part]) for part in parts]
        theta = np.full((blocks, len(full.estimate.theta)), np.nan)
        beta = np.full((blocks, len(full.estimate.beta)), np.nan)
        for k, group in enumerate(groups):
            try:
                refit = weigh(model.without(group)).estimate
            except ConvergenceError:
                continue
            theta[k], beta[k] = refit.theta, refit.beta
    components, effects = np.isnan(theta).any(axis=1), np.isnan(beta).any(axis=1)
    failed = []
    for g in np.flatnonzero(components | effects).tolist():
        reason = _COMPONENTS if components[g] else _FIXED
        if components[g] and effects[g]:
            reason = ONE_UNIT if len(units) < 2 else _NO_FIT
        failed.append((g, reason))
    cov = covariance(np.hstack([beta, theta]))
    if len(groups) < 2:
        cov = np.full_like(cov, np.nan)
    return JackknifeRun(kind, theta, beta, tuple(groups), cov, tuple(failed), 0.0)


def leave_out_groups(model: Model, blocks: int | None) -> list[np.ndarray]:
    """Donors to leave out together: one by one, or in this many contiguous groups."""
    donors = np.flatnonzero(model.active)
    if blocks is not None and not 2 <= blocks <= len(donors):
        raise CTMMError(f"blocks must lie between 2 and the {len(donors)} donors, got {blocks}")
    return list(donors[:, None] if blocks is None else np.array_split(donors, blocks))


def covariance(replicates: np.ndarray) -> np.ndarray:
    """(G - 1)/G sum of squares about the mean, for replicates (G, k)."""
    count = len(replicates)
    centred = replicates - replicates.mean(axis=0)
    return (count - 1) / count * centred.T @ centred


@dataclass(eq=False)
class _LeftOut:
    """Donors to leave out, and what all responses of a design share about them.

    Attributes
    ----------
    model : Model
        Its response is not used.
    groups : sequence of int ndarray
        Donors (kernel numbers) to leave out together; by default one by one.
    kind : str
        Of the jackknife.
    """

    model: Model
    groups: Sequence[np.ndarray] = ()
    kind: str = "donor"

    def __post_init__(self) -> None:
        self.groups, model = self.groups or leave_out_groups(self.model, None), self.model
        seen = np.add.reduceat(model.H != 0.0, model.row_ptr[:-1]) & model.active[:, None]
        left = self._others(seen.astype(float))
        alone = (left <= 1).any(axis=1)  # a column of H in one donor
        for codes, values in model.random:
            seen = np.zeros((len(model.active), codes.max() + 1), dtype=bool)
            rows = model.active_rows & (values != 0.0)
            seen[model.row_donor[rows], codes[rows]] = True
            left = self._others(seen.astype(float))
            alone |= (left > 0).sum(axis=1) <= 1  # all others in one level, or none with another
            alone |= ((left > 1).sum(axis=1) == 0) & (seen.sum(axis=0) > 1).any()
        self.suspects = np.flatnonzero(alone)

    def _others(self, values: np.ndarray) -> np.ndarray:
        """Sums of `values` (N, ...) over the donors outside of each group, (G, ...)."""
        donors, ptr = packed(list(self.groups))
        return values.sum(axis=0) - np.add.reduceat(values[donors], ptr[:-1])

    def _reasons(self, model: Model, aliased: Iterable[int]) -> dict[int, str]:
        """Groups without which there is no usual fit: X or the information of theta singular."""
        rows = self._others(np.diff(model.row_ptr)[:, None] * model.active[:, None])[:, 0]
        reasons = {int(g): _COMPONENTS for g in np.flatnonzero(rows <= model.X.shape[1])}
        reasons |= {int(g): _FIXED for g in aliased}
        model = model.unrelated  # a variance of one donor is none with relatives either
        if len(self.suspects):  # any point inside the domain does
            scale = response_scale(model)
            at = centre(model, scale) * scale**2
            size = np.sqrt(np.maximum(np.diag(evaluate(model, at).expected), 0.0))
        for g in set(map(int, self.suspects)) - set(reasons):
            part = model.without(self.groups[g]).full_rank()
            with np.errstate(divide="ignore", invalid="ignore"):  # of none that nobody knows
                scaled = evaluate(part, at).expected / np.outer(size, size)
            if not (np.isfinite(scaled).all() and np.linalg.eigvalsh(scaled)[0] > 1e-8):
                reasons[g] = _COMPONENTS
        return reasons

    def _run(
        self,
        model: Model,
        fit: tuple[Estimate, Domain],
        theta: np.ndarray,
        beta: np.ndarray,
        reasons: dict[int, str],
        error: float = 0.0,
    ) -> JackknifeRun:
        """The jackknife of these refits, with what can still be had of groups without one."""
        for g, reason in reasons.items():
            if reason == _FIXED:  # the variance components do not need those fixed effects
                theta[g], beta[g] = _refit_reduced(model.without(self.groups[g]), *fit)
        lost = np.flatnonzero(np.isnan(beta).any(axis=1)).tolist()
        failed = tuple((g, reasons.get(g, _NO_FIT)) for g in lost)
        cov = covariance(np.hstack([beta, theta]))
        return JackknifeRun(self.kind, theta, beta, tuple(self.groups), cov, failed, error)


def _refit_reduced(
    part: Model, estimate: Estimate, domain: Domain
) -> tuple[np.ndarray, np.ndarray]:
    """Refit where X has lost rank: fixed effects that cannot be estimated are NaN."""
    reduced = part.full_rank()
    if part.nobs <= reduced.X.shape[1]:  # no residual is left
        return np.full(len(estimate.theta), np.nan), np.full(part.X.shape[1], np.nan)
    fit = ESTIMATORS[estimate.method](reduced, estimate.method, domain)
    rows = part.active_rows
    X = part.X[rows]
    beta = np.linalg.lstsq(X, reduced.X[rows] @ fit.beta, rcond=None)[0]
    size = np.maximum(np.linalg.norm(X, axis=0), 1e-300)
    _, _, axes = np.linalg.svd(X / size)
    null = axes[reduced.X.shape[1] :]  # directions of b that X does not see
    return fit.theta, np.where(np.abs(null).max(axis=0) > 1e-8, np.nan, beta)


class MomentJackknife(_LeftOut):
    """Jackknife of moment estimates; ``theta`` is that of :class:`LeftOutMoments`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.left_out = LeftOutMoments(self.model, self.groups)
        self.theta = self.left_out.theta

    def __call__(
        self,
        model: Model,
        estimate: Estimate,
        domain: Domain | None = None,
        theta: np.ndarray | None = None,
    ) -> JackknifeRun:
        """Jackknife of one response; b by the same rule (GLS or OLS) as in the full fit.

        Where the covariance of a refit is not positive definite, as components may be negative, its
        GLS takes the weights of the full fit.

        Parameters
        ----------
        model : Model; estimate : Estimate of it
        domain : Domain, optional
        theta : ndarray, shape (groups, K), optional
            This response's part of what ``theta`` gives, where it is known.
        """
        if theta is None:
            theta = self.theta(model.y[:, None], model.nu[:, None])[0]
        reasons = self._reasons(model, np.flatnonzero(self.left_out.aliased))
        theta = theta.copy()
        theta[list(reasons)] = np.nan
        reasons |= {int(g): _COMPONENTS for g in np.flatnonzero(np.isnan(theta).any(axis=1))
                    if g not in reasons}  # fmt: skip
        if estimate.beta_by == "gls":
            beta = self.left_out.gls(model, theta)
            lost = np.isnan(beta).any(axis=1) & np.isfinite(theta).all(axis=1)
            if lost.any():
                whole = np.where(lost[:, None], estimate.theta, np.nan)
                beta[lost] = self.left_out.gls(model, whole)[lost]
        else:
            beta = self.left_out.ols(model, theta)
        return self._run(model, (estimate, domain or Domain()), theta, beta, reasons)


class LikelihoodJackknife(_LeftOut):
    """Jackknife of ML and REML estimates; of kind "one-step" by one step from the full fit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        model, self.grouped = self.model, grouped(self.model, self.groups)
        Q = np.where(model.active_rows[:, None], model.Q, 0.0)
        outer = np.add.reduceat(Q[:, :, None] * Q[:, None, :], model.row_ptr[:-1])
        smallest = np.linalg.eigvalsh(self._others(outer)).min(axis=1, initial=np.inf)
        self.aliased = np.flatnonzero(smallest < ALIASED)  # without them X loses rank

    def __call__(
        self, model: Model, estimate: Estimate, domain: Domain | None = None, n_jobs: int = 1
    ) -> JackknifeRun:
        """Jackknife of one response."""
        domain, count, error = domain or Domain(), len(self.groups), 0.0
        theta = np.full((count, len(estimate.theta)), np.nan)
        beta = np.full((count, len(estimate.beta)), np.nan)
        reasons = self._reasons(model, self.aliased)
        usual = np.setdiff1d(np.arange(count), list(reasons)).astype(np.int64)
        if len(usual):
            refit, one_step = _Refit(self, model, estimate, domain), self.kind == "one-step"
            theta[usual], beta[usual] = refit(usual, one_step, n_jobs)
            error = refit.distance(usual, theta[usual], beta[usual]) if one_step else 0.0
        return self._run(model, (estimate, domain), theta, beta, reasons, error)


def compile_fits() -> None:
    """Compile refits within the domain for the types they always get, into the cache."""
    problem, one, several, yes = small_problem(), np.arange(1), np.zeros((1, 1)), np.zeros(1, bool)
    given = (one, one, several, several, _STEPS, make_work(problem), several, several, yes)
    compile_like(left_out_fits, problem, *given)


def compile_edges() -> None:
    """The same of refits on the edge."""
    problem, one, several, yes = small_problem(), np.arange(1), np.zeros((1, 1)), np.zeros(1, bool)
    given = (one, one, several, several, make_work(problem), one / 1.0, yes, several, several)
    compile_like(left_out_edges, problem, *given, np.zeros((1, 4), bool))


class _Refit:
    """Leave-out refits of one response by likelihood; holds what all groups share."""

    def __init__(
        self, left_out: LikelihoodJackknife, model: Model, estimate: Estimate, domain: Domain
    ) -> None:
        self.left_out, self.model, self.estimate = left_out, model, estimate
        if estimate.convergence.boundary:
            meanwhile(left_out_edges, compile_edges)
        else:
            meanwhile(left_out_fits, compile_fits)
        self.scale = response_scale(model)
        self.problem = make_problem(
            model, constrain(model, domain), estimate.method == "reml", self.scale
        )
        self.at = estimate.theta / self.scale**2
        middle = centre(model, self.scale)
        self.starts = np.array([0.95 * self.at + 0.05 * middle, middle, 0.02 * middle])
        # components held on their lower bound do not move: zero rows and columns
        free = np.flatnonzero(self.at > self.problem.lower)
        part = np.ix_(free, free)
        curvature = estimate.observed[part] * self.scale**4
        if len(free) and np.linalg.eigvalsh(curvature)[0] <= 0.0:
            curvature = estimate.information[part] * self.scale**4
        self.inverse = np.zeros(estimate.observed.shape)
        self.settles = len(free) == 0 or np.linalg.cond(curvature) < 1e12
        self.on_edge = estimate.convergence.boundary and len(free) == len(self.at)
        # the information shrinks with the donors
        left = 1.0 - np.mean([len(group) for group in left_out.groups]) / model.n_donors
        self.curvature = estimate.observed * (self.scale**4 * left)
        if self.settles:
            self.inverse[part] = np.linalg.inv(curvature) / left

    @cached_property
    def scores(self) -> Scores:
        """Scores without each group: of all together, a matrix product may round by its size."""
        return left_out_scores(self.problem, self.at, self.left_out.grouped)

    def __call__(
        self, which: np.ndarray, one_step: bool, n_jobs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """theta (G, K) and beta (G, p) without each of these groups; NaN where there is no fit."""
        model, scale = self.model, self.scale
        scores = self.scores.part(which)
        step = scores.grad @ self.inverse
        theta = self.at + step if one_step else np.tile(self.at, (len(which), 1))
        beta = scores.beta + (step[:, None, :] @ scores.slope)[:, 0]
        chunks = min(max(abs(n_jobs), 1), len(which))
        arrays = (which, scores.grad, scores.found & self.settles, theta, beta)
        if chunks == 1:
            self._chunk(one_step, *arrays)
        else:
            from joblib import Parallel, delayed

            Parallel(n_jobs=n_jobs, require="sharedmem")(
                delayed(self._chunk)(one_step, *chunk)
                for chunk in zip(*(np.array_split(array, chunks) for array in arrays), strict=True)
            )
        offset = model.back @ (model.Q.T @ model.y)
        return theta * scale**2, beta @ (model.back * scale).T + offset

    def _chunk(
        self,
        one_step: bool,
        which: np.ndarray,
        grad: np.ndarray,
        found: np.ndarray,
        theta: np.ndarray,
        beta: np.ndarray,
    ) -> None:
        """Refit without some groups, from the scores `found`; changes theta and beta in place."""
        groups, settled = [self.left_out.groups[g] for g in which], found.copy()
        copies = self.problem.active.copy(), self.problem.cactive.copy()
        problem = self.problem._replace(active=copies[0], cactive=copies[1])
        work = make_work(problem)
        if one_step:  # it must not end on a bound that it should leave
            leaves = ((self.inverse.diagonal() == 0.0) & (grad > 0.0)).any(axis=1)
            settled &= ~leaves & (theta >= problem.lower).all(axis=1)
        elif self.on_edge:
            settled[:] = False
        elif self.settles:
            left_out_fits(
                problem, *packed(groups), grad, self.inverse, _STEPS, work, theta, beta, settled
            )
            settled &= found
        usual = np.flatnonzero(settled)
        settled[usual] = inside(problem, theta[usual], [groups[g] for g in usual], work)
        if (found & ~settled).any():
            ended = np.zeros((len(groups), 4), dtype=bool)
            left_out_edges(
                problem, *packed(groups), grad, self.curvature, work, self.at, found & ~settled,
                theta, beta, ended,
            )  # fmt: skip
            settled |= ended[:, 0]
            unsure = ended[:, 0] & (ended[:, 1] | (ended[:, 2] & (not problem.reml)))
            for g in np.flatnonzero(unsure):
                part = without(problem, groups[g])
                self._compare(part, ended[g, 2], ended[g, 3], theta[g], beta[g], work)
        weights = np.zeros(len(self.starts))
        for g in np.flatnonzero(~settled):
            part = without(problem, groups[g])
            status, theta[g], *_ = best_of(part, self.starts, weights, not part.reml, work)
            beta[g] = work.beta
            if status == INFEASIBLE:
                theta[g], beta[g] = np.nan, np.nan

    def _compare(
        self,
        part: Problem,
        held: bool,
        several: bool,
        theta: np.ndarray,
        beta: np.ndarray,
        work: Work,
    ) -> None:
        """Take another maximum in place of theta (K,) and beta (p,) where that is preferred.

        One inside; where `several` covariances hold the fit, one on another edge as well.
        """
        own, reml = value(part, theta, work), part.reml
        starts, other = self.starts[: 1 if reml and not several else None], np.empty_like(theta)
        weights = np.zeros(len(starts))
        look = GO_ON if several else STOP
        status, llf, *_ = race(part, starts, weights, not reml, look, other, work)
        inside = status == INTERIOR
        if (several or inside) and (llf > own or (inside and held and not reml)):
            theta[:], beta[:] = other, work.beta

    def distance(self, which: np.ndarray, theta: np.ndarray, beta: np.ndarray) -> float:
        """Largest |one step - exact| in standard errors, on the groups that moved most."""
        rough = np.hstack([theta, beta])
        worst = _moved_most(rough)
        return _distance(rough[worst], np.hstack(self(which[worst], False)), rough)
