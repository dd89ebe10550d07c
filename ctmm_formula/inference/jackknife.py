"""Delete-one-donor jackknife of any estimator, its delete-block and one-step versions.

Leave out one donor, refit everything (variance components and fixed effects):

    Cov = (G - 1)/G sum_g (t_(g) - mean)(t_(g) - mean)',   t = (beta, theta)

ML and REML refits start at the full fit, where the score of the others is had for all donors at
once (:mod:`ctmm_formula.engine.left_out_scores`), and take quasi-Newton steps; each is carried to
convergence, so the result is the exact jackknife.  The one-step version stops after the first
step, by the information of the full fit, at a cost linear in donors, and measures its distance
from the exact one on the donors it moved most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed

from ..engine.domain import Domain, constrain
from ..engine.estimate import Estimate
from ..engine.estimators import ESTIMATORS
from ..engine.left_out_fits import inside, left_out_fits, packed, without
from ..engine.left_out_moments import ALIASED, LeftOutMoments
from ..engine.left_out_scores import Groups, grouped, left_out_scores
from ..engine.likelihood import LIKELIHOODS, centre, evaluate, make_problem, response_scale
from ..engine.model import Model
from ..engine.optimize import INFEASIBLE, Problem, Work, best_of, make_work
from ..errors import CTMMError

Refits = tuple[np.ndarray, np.ndarray]  # theta (G, K), beta (G, p); NaN where there is none
_FIXED = "a fixed effect rests on these donors alone and cannot be estimated without them"
_COMPONENTS = "the variance components cannot be told apart without these donors"
_NO_FIT = "no fit, or no positive definite covariance, without these donors"
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
        One step from the full fit instead of refits (ML and REML).
    n_jobs : int
        Threads (the kernels release the interpreter lock).

    Raises
    ------
    CTMMError
        `blocks` is not between 2 and the number of donors.
    """
    groups = leave_out_groups(model, blocks)
    kind = "donor" if blocks is None else "block"
    if estimate.method not in LIKELIHOODS:  # closed form: no step to stop after
        return MomentJackknife(model, groups, kind)(model, estimate, domain)
    return LikelihoodJackknife(model, groups, "one-step" if one_step else kind)(
        model, estimate, domain, n_jobs
    )


def leave_out_groups(model: Model, blocks: int | None) -> list[np.ndarray]:
    """Donors to leave out together: one by one, or in this many contiguous groups."""
    donors = np.flatnonzero(model.active)
    if blocks is not None and not 2 <= blocks <= len(donors):
        raise CTMMError(f"blocks must lie between 2 and the {len(donors)} donors, got {blocks}")
    return list(np.array_split(donors, blocks or len(donors)))


def _gather(
    model: Model,
    estimate: Estimate,
    domain: Domain,
    groups: list[np.ndarray],
    refits: Refits,
    reasons: dict[int, str],
    kind: str,
    error: float,
) -> JackknifeRun:
    """The jackknife of these refits, with what can still be had of groups without one."""
    theta, beta = refits
    for g, reason in reasons.items():
        if reason == _FIXED:  # the variance components do not need those fixed effects
            theta[g], beta[g] = _refit_reduced(model.without(groups[g]), estimate, domain)
    failed = tuple(
        (int(g), reasons.get(int(g), _NO_FIT)) for g in np.flatnonzero(np.isnan(beta).any(axis=1))
    )
    return JackknifeRun(
        kind, theta, beta, tuple(groups), covariance(np.hstack([beta, theta])), failed, error
    )


def covariance(replicates: np.ndarray) -> np.ndarray:
    """(G - 1)/G sum of squares about the mean, for replicates (G, k)."""
    count = len(replicates)
    centred = replicates - replicates.mean(axis=0)
    return (count - 1) / count * centred.T @ centred


class _LeftOut:
    """Donors to leave out, and what all responses of a design share about them.

    Parameters
    ----------
    model : Model
        Its response is not used.
    groups : sequence of int ndarray, optional
        Donors (kernel numbers) to leave out together; by default one by one.
    kind : str
        Of the jackknife.
    """

    def __init__(
        self, model: Model, groups: Sequence[np.ndarray] | None = None, kind: str = "donor"
    ) -> None:
        self.groups = leave_out_groups(model, None) if groups is None else list(groups)
        self.kind = kind
        self.suspects = _suspects(model, self.groups)
        self._share(model)

    def _share(self, model: Model) -> None:
        """Find what the estimator's refits share."""
        raise NotImplementedError


class LikelihoodJackknife(_LeftOut):
    """Jackknife of ML and REML estimates; of kind "one-step" by one step from the full fit."""

    def _share(self, model: Model) -> None:
        self.aliased = _aliasing(model, self.groups)
        self.grouped = grouped(model, self.groups)

    def __call__(
        self, model: Model, estimate: Estimate, domain: Domain | None = None, n_jobs: int = 1
    ) -> JackknifeRun:
        """Jackknife of one response."""
        domain, groups = domain or Domain(), self.groups
        theta = np.full((len(groups), len(estimate.theta)), np.nan)
        beta = np.full((len(groups), len(estimate.beta)), np.nan)
        reasons = dict.fromkeys(self.aliased, _FIXED) | dict.fromkeys(
            _confounding(model, estimate, groups, self.suspects), _COMPONENTS
        )
        usual = np.array([g for g in range(len(groups)) if g not in reasons], dtype=np.int64)
        one_step, error = self.kind == "one-step", 0.0
        if len(usual):
            refit = _Refit(model, estimate, domain, groups, self.grouped)
            theta[usual], beta[usual] = refit(usual, one_step, n_jobs)
            error = refit.distance(usual, theta[usual], beta[usual]) if one_step else 0.0
        return _gather(model, estimate, domain, groups, (theta, beta), reasons, self.kind, error)


class _Start(NamedTuple):
    """Scores (G, K) without each group, whether they were found (G,), and where refits begin."""

    grad: np.ndarray
    found: np.ndarray
    theta: np.ndarray
    beta: np.ndarray


class _Refit:
    """Leave-out refits by likelihood; holds what all groups share."""

    def __init__(
        self,
        model: Model,
        estimate: Estimate,
        domain: Domain,
        groups: list[np.ndarray],
        grouped: Groups,
    ) -> None:
        self.model, self.estimate = model, estimate
        self.groups, self.grouped = groups, grouped
        self.scale = response_scale(model)
        self.problem = make_problem(
            model, constrain(model, domain), estimate.method == "reml", self.scale
        )
        self.at = estimate.theta / self.scale**2
        self.centre = centre(model, self.scale)
        self.back = model.back * self.scale
        self.offset = model.back @ (model.Q.T @ model.y)
        # components held on their lower bound do not move: zero rows and columns
        free = np.flatnonzero(self.at > self.problem.lower)
        part = np.ix_(free, free)
        curvature = estimate.observed[part] * self.scale**4
        if len(free) and np.linalg.eigvalsh(curvature)[0] <= 0.0:
            curvature = estimate.information[part] * self.scale**4
        self.inverse = np.zeros_like(estimate.observed)
        self.settles = len(free) == 0 or np.linalg.cond(curvature) < 1e12
        if self.settles:  # the information shrinks with the donors
            share = np.mean([len(group) for group in groups]) / model.n_donors
            self.inverse[part] = np.linalg.inv(curvature) / (1.0 - share)

    def __call__(self, which: np.ndarray, one_step: bool, n_jobs: int = 1) -> Refits:
        """theta and beta without each of these groups; NaN where there is no fit."""
        groups = [self.groups[g] for g in which]
        part, reml = self.grouped.part(which), self.estimate.method == "reml"
        scores = left_out_scores(self.model, self.estimate.theta, part, reml)
        # of all groups together: a matrix product may round by its size
        grad = scores.grad * self.scale**2
        step = grad @ self.inverse
        beta = scores.beta + (step[:, None, :] @ scores.slope)[:, 0] * self.scale**2
        start = _Start(
            grad,
            scores.found & self.settles,
            self.at + step if one_step else np.tile(self.at, (len(groups), 1)),
            (beta - self.model.Q.T @ self.model.y) / self.scale,
        )
        refit = self._check if one_step else self._converge
        chunks = np.array_split(np.arange(len(groups)), min(max(abs(n_jobs), 1), len(groups)))
        done = Parallel(n_jobs=n_jobs, require="sharedmem")(
            delayed(self._chunk)(
                refit, [groups[g] for g in chunk], _Start(*(part[chunk] for part in start))
            )
            for chunk in chunks
        )
        theta, beta, infeasible = (np.concatenate(piece) for piece in zip(*done, strict=True))
        bad = np.flatnonzero(infeasible)
        theta[bad], beta[bad] = np.nan, np.nan
        return theta * self.scale**2, beta @ self.back.T + self.offset

    def _chunk(
        self, refit: Callable[..., np.ndarray], groups: list[np.ndarray], start: _Start
    ) -> tuple[np.ndarray, ...]:
        """theta and beta of some groups, and which of them have no fit."""
        problem = self.problem._replace(
            active=self.problem.active.copy(), cactive=self.problem.cactive.copy()
        )
        work = make_work(problem)
        settled = refit(problem, groups, start, work)
        infeasible = np.zeros(len(groups), dtype=bool)
        for g in np.flatnonzero(~settled):
            part = without(problem, groups[g])
            starts = [0.95 * self.at + 0.05 * self.centre, self.centre, 0.02 * self.centre]
            status, start.theta[g], *_ = best_of(part, starts, not part.reml, work)
            infeasible[g] = status == INFEASIBLE
            start.beta[g] = work.beta
        return start.theta, start.beta, infeasible

    def _check(
        self, problem: Problem, groups: list[np.ndarray], start: _Start, work: Work
    ) -> np.ndarray:
        """Which first steps end in the domain, and not on a bound that they should leave."""
        leaves = ((self.inverse.diagonal() == 0.0) & (start.grad > 0.0)).any(axis=1)
        settled = start.found & ~leaves & (start.theta >= problem.lower).all(axis=1)
        usual = np.flatnonzero(settled)
        settled[usual] = inside(problem, start.theta[usual], [groups[g] for g in usual], work)
        return settled

    def _converge(
        self, problem: Problem, groups: list[np.ndarray], start: _Start, work: Work
    ) -> np.ndarray:
        """Which refits reach their optimum by steps; theta and beta moved in place."""
        settled = np.zeros(len(groups), dtype=bool)
        if self.settles:
            left_out_fits(
                problem, *packed(groups), start.grad, self.inverse, _STEPS, work,
                start.theta, start.beta, settled,
            )  # fmt: skip
        return settled & start.found

    def distance(self, which: np.ndarray, theta: np.ndarray, beta: np.ndarray) -> float:
        """Largest |one step - exact| in standard errors, on the groups that moved most."""
        rough = np.hstack([theta, beta])
        se = np.sqrt(np.diag(covariance(rough)))
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = np.nanmax(np.abs(rough - rough.mean(axis=0)) / se, axis=1)
        worst = np.argsort(moved)[-_CHECKED:]
        exact = np.hstack(self(which[worst], False))
        return float(np.nanmax(np.abs(exact - rough[worst]) / se))


def _group_sums(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Sums of `values` (N, ...) over the donors of each group, (G, ...)."""
    starts = np.cumsum([0] + [len(group) for group in groups[:-1]])
    return np.add.reduceat(values[np.concatenate(groups)], starts)


def _aliasing(model: Model, groups: list[np.ndarray]) -> list[int]:
    """Groups without which X loses rank, by the eigenvalues of Q'Q - Q_g'Q_g."""
    Q = np.where(model.active_rows[:, None], model.Q, 0.0)
    if not Q.shape[1]:
        return []
    outer = np.add.reduceat(Q[:, :, None] * Q[:, None, :], model.row_ptr[:-1])
    smallest = np.linalg.eigvalsh(outer.sum(axis=0) - _group_sums(outer, groups))[:, 0]
    return [int(g) for g in np.flatnonzero(smallest < ALIASED)]


def _suspects(model: Model, groups: list[np.ndarray]) -> list[int]:
    """Groups that leave some column of H to one donor: only these can confound components."""
    seen = np.add.reduceat(model.H != 0.0, model.row_ptr[:-1]) & model.active[:, None]
    left = seen.sum(axis=0) - _group_sums(seen.astype(float), groups)
    return [int(g) for g in np.flatnonzero((left <= 1).any(axis=1))]


def _confounding(
    model: Model, estimate: Estimate, groups: list[np.ndarray], suspects: Sequence[int]
) -> list[int]:
    """Those of the suspects without which the information of theta is singular."""
    if not len(suspects):
        return []
    at = np.abs(estimate.theta)  # any point inside the domain does
    size = np.sqrt(np.diag(evaluate(model, at).expected))
    out = []
    for g in suspects:
        scaled = evaluate(model.without(groups[g]).full_rank(), at).expected / np.outer(size, size)
        if not np.linalg.eigvalsh(scaled)[0] > 1e-8:
            out.append(g)
    return out


def _refit_reduced(
    part: Model, estimate: Estimate, domain: Domain
) -> tuple[np.ndarray, np.ndarray]:
    """Refit where X has lost rank: fixed effects that cannot be estimated are NaN."""
    reduced = part.full_rank()
    fit = ESTIMATORS[estimate.method](reduced, estimate.method, domain)
    rows = part.active_rows
    X = part.X[rows]
    beta = np.linalg.lstsq(X, reduced.X[rows] @ fit.beta, rcond=None)[0]
    size = np.maximum(np.linalg.norm(X, axis=0), 1e-300)
    _, _, axes = np.linalg.svd(X / size)
    null = axes[reduced.X.shape[1] :]  # directions of b that X does not see
    return fit.theta, np.where(np.abs(null).max(axis=0) > 1e-8, np.nan, beta)


class MomentJackknife(_LeftOut):
    """Jackknife of moment estimates."""

    def _share(self, model: Model) -> None:
        self.left_out = LeftOutMoments(model, self.groups)

    def theta(self, Y: np.ndarray, NU: np.ndarray) -> np.ndarray:
        """Variance components (G, groups, K) of responses and noise variances (n, G)."""
        return self.left_out.theta(Y, NU)

    def __call__(
        self,
        model: Model,
        estimate: Estimate,
        domain: Domain | None = None,
        theta: np.ndarray | None = None,
    ) -> JackknifeRun:
        """Jackknife of one response; b by the same rule (GLS or OLS) as in the full fit.

        Parameters
        ----------
        model : Model; estimate : Estimate of it
        domain : Domain, optional
        theta : ndarray, shape (groups, K), optional
            This response's part of :meth:`theta`, where it is known.
        """
        if theta is None:
            theta = self.theta(model.y[:, None], model.nu[:, None])[0]
        theta = theta.copy()
        reasons = dict.fromkeys(map(int, np.flatnonzero(self.left_out.aliased)), _FIXED)
        confounded = _confounding(model, estimate, self.groups, self.suspects)
        theta[confounded] = np.nan
        by_gls = estimate.beta_by == "gls"
        beta = (self.left_out.gls if by_gls else self.left_out.ols)(model, theta)
        reasons |= dict.fromkeys(confounded, _COMPONENTS)
        refits = theta, beta
        return _gather(
            model, estimate, domain or Domain(), self.groups, refits, reasons, self.kind, 0.0
        )
