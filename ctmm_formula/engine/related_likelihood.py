"""ML and REML where donors are related, and the way to their maximum.

The likelihood is that of :mod:`ctmm_formula.engine.related_joined`; steps are by the average
information and secants.  Beyond the M of :data:`ORDERS` donors are rotated instead, where no
pair is missing (:mod:`ctmm_formula.engine.related_spectral`).

The domain is that of :mod:`ctmm_formula.engine.domain`, of the environment as without a kinship.
Every A_s >= 0, but under "nonnegative", where those of its components that are variances are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from ..arguments import choose
from ..errors import ConvergenceError
from . import he, kernels
from .blup import covariance_parts
from .domain import Constraint, Domain, constrain, constrain_genetic, lower_bounds
from .estimate import At, Convergence, Estimate
from .likelihood import (
    LIKELIHOODS,
    MESSAGES,
    centre,
    centred,
    coding_constant,
    fixed_effects,
    refuse_no_noise,
    response_scale,
)
from .model import Model
from .optimize import EDGE, INTERIOR, STALLED
from .related_joined import Joined
from .related_spectral import Rotated, rotates

ORDERS = {"reml": (3000, 3000), "ml": (3000, 3000), "robust": (600, 1500)}
"""By method: order M of the largest matrix that is inverted where donors rotate, and where not.

A fit takes half a minute there, or less.
"""
_STEPS = 100
_TOLERANCE = 1e-10  # squared decrement
_HELD = 1e-4  # squared decrement behind the last barrier that only walls hold
_PATIENCE = 3  # steps that the domain cuts short before a climb turns to the edge
_BARRIER = tuple(10.0**-k for k in range(1, 9))


def is_rotated(model: Model, method: str = "reml") -> bool:
    """Whether P of this model is that of rotated donors, of noise alike for all.

    Raises
    ------
    ConvergenceError
        It is too large for any.
    """
    light, largest = ORDERS[method]
    ranks = [term.kernel.columns.shape[1] for term in model.kinship]
    parts = [np.linalg.matrix_rank(np.hstack(list(term.basis))) for term in model.kinship]
    levels = sum(len(np.unique(one.codes[model.active_rows])) for one in model.random)
    order = int(np.dot(ranks, parts)) + levels
    if order <= light or rotates(model):
        return order > light
    if order <= largest:
        return False
    raise ConvergenceError(
        f"kinship of rank {' and '.join(map(str, ranks))} with {model.H.shape[1]} cell types: a "
        f"fit would invert matrices of {order} x {order} in every step (at most {largest}, but for "
        "one kinship without missing pairs and random effects): use method='he', fewer cell types, "
        "genetic_structure='hom', or a kernel of lower rank"
    )


# ---------------------------------------------------------------------------------------------
# the domain, and the way to the maximum


class _Walls:
    """The domain: lower bounds, and determinants of a :class:`Constraint` that stay positive."""

    def __init__(self, model: Model, domain: Domain) -> None:
        own = constrain(model.unrelated, domain)
        genetic = [constrain_genetic(term.basis, domain) for term in model.kinship]
        self.lower = lower_bounds(model, domain)
        places = [slice(0, len(model.S)), *model.kinship_slices]
        every = zip([own, *genetic], places, strict=True)
        self.parts = [(one, at) for one, at in every if len(one.active)]

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Sum of log determinants, -inf outside; its gradient (K,) and curvature (K, K)."""
        total, grad, curvature = 0.0, np.zeros(len(theta)), np.zeros((len(theta),) * 2)
        for constraint, at in self.parts:
            levels = slice(constraint.blocks.R, constraint.S.shape[1])
            phi = constraint.S.T @ theta[at]
            # a block's determinant hides the walls of the donors in it: these enter once more
            for alone in (False, True) if len(constraint.blocks.level_comp) else (False,):
                phi[levels] *= not alone
                value, score, expected = _log_determinant(constraint, phi)
                if value == -math.inf:
                    return value, grad, curvature
                if alone:
                    score[levels], expected[levels], expected[:, levels] = 0.0, 0.0, 0.0
                total += value
                grad[at] += constraint.S @ score
                curvature[at, at] += constraint.S @ expected @ constraint.S.T
        return total, grad, curvature


def _log_determinant(
    constraint: Constraint, phi: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Of factors phi (F,), its gradient (F,) and curvature (F, F); -inf where not definite."""
    F, shape = len(phi), constraint.tiles.shape
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    value = kernels.evaluate(
        kernels.kernel_address(), phi, np.zeros(shape), constraint.tiles.put(constraint.nu, 1.0),
        constraint.blocks, constraint.tiles.donors(constraint.active, False), False,
        kernels.INFORMATION, score, average, expected, np.zeros(0), np.zeros((1, 1)),
    )  # fmt: skip
    return -2.0 * value if value > -math.inf else value, -2.0 * score, 2.0 * expected


class _Objective:
    """Log-likelihood with a barrier of weight `mu`, counting its evaluations."""

    def __init__(self, related: Joined | Rotated, walls: _Walls, reml: bool) -> None:
        self.related, self.walls, self.reml, self.count = related, walls, reml, 0

    def __call__(self, theta: np.ndarray, mu: float) -> tuple[float, np.ndarray, np.ndarray, At]:
        """Value, gradient, information and the likelihood itself; raises outside the domain."""
        barrier, grad, curvature = self.walls(theta)
        if barrier == -math.inf:
            raise _OutsideError
        self.count += 1
        found = self.related.at(theta, self.reml)
        if found is None or not math.isfinite(found.llf):
            raise _OutsideError
        value = found.llf + (mu * barrier if mu else 0.0)
        information = found.average + (mu * curvature if mu else 0.0)
        return value, found.score + (mu * grad if mu else 0.0), information, found


class _OutsideError(Exception):
    """A point outside the domain."""


class _End(NamedTuple):
    """Where a climb ended.

    theta, the likelihood there, squared decrement, whether it settled, and whether on the edge.
    """

    theta: np.ndarray
    at: At
    decrement: float
    settled: bool
    edge: bool


def _climb(
    f: _Objective, theta: np.ndarray, mu: float, tolerance: float, patience: int = _STEPS
) -> _End:
    """Up from a point inside the domain, by average information and the last secant."""
    lower = f.walls.lower
    value, grad, information, found = f(theta, mu)
    before: tuple[np.ndarray, np.ndarray] | None = None
    decrement, cut = math.inf, 0
    for _ in range(_STEPS):
        step, decrement = _direction(theta, lower, grad, _secant(information, theta, grad, before))
        if decrement < tolerance:
            return _End(theta, found, decrement, True, bool((theta <= lower).any()))
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(step < 0.0, (lower - theta) / step, math.inf)
        size, outside, accepted = min(1.0, float(room.min(initial=math.inf))), False, False
        for _ in range(30):
            trial = np.maximum(theta + size * step, lower)
            try:
                new = f(trial, mu)
            except _OutsideError:
                outside, size = True, 0.5 * size
                continue
            if new[0] >= value + 1e-4 * size * decrement - 1e-10 * (1.0 + abs(value)):
                accepted = True
                break
            size *= 0.5
        if not accepted:
            return _End(theta, found, decrement, decrement < 1e-6, bool((theta <= lower).any()))
        before = (theta, grad) if decrement < 1.0 else None
        theta, (value, grad, information, found) = trial, new
        cut += outside
        if cut >= patience:
            break
    return _End(theta, found, decrement, False, bool((theta <= lower).any()))


def _secant(
    information: np.ndarray,
    theta: np.ndarray,
    grad: np.ndarray,
    before: tuple[np.ndarray, np.ndarray] | None,
) -> np.ndarray:
    """The information with the curvature that the last step has shown (BFGS)."""
    if before is None:
        return information
    s, y = theta - before[0], before[1] - grad
    Hs = information @ s
    if not (s @ y > 1e-3 * abs(s @ Hs) > 0.0):
        return information
    return np.asarray(information - np.outer(Hs, Hs) / (s @ Hs) + np.outer(y, y) / (s @ y))


def _direction(
    theta: np.ndarray, lower: np.ndarray, grad: np.ndarray, information: np.ndarray
) -> tuple[np.ndarray, float]:
    """Step and squared decrement; components on their bound that would leave are held."""
    held = (theta <= lower) & (grad <= 0.0)
    step = np.zeros(len(theta))
    for _ in range(len(theta) + 1):
        free = np.flatnonzero(~held)
        part = information[np.ix_(free, free)].copy()
        size = np.sqrt(np.maximum(part.diagonal(), 1e-300))
        part /= np.outer(size, size)
        step[:] = 0.0
        for ridge in (0.0, 1e-10, 1e-6, 1e-3, 1e-1, 1.0):
            root, failed = lapack.dpotrf(part + ridge * np.eye(len(free)), lower=1)
            if not failed and len(free):
                step[free] = lapack.dpotrs(root, grad[free] / size, lower=1)[0] / size
                break
        again = ~held & (theta <= lower) & (step < 0.0)
        if not again.any():
            break
        held |= again
    return step, float(grad @ step)


def evaluate(model: Model, theta: np.ndarray, reml: bool, full: bool = True) -> At | None:
    """The likelihood of a model at theta (K,); None where Sigma is not positive definite."""
    own = centred(model, 1.0)
    related = Rotated(own) if is_rotated(own) else Joined(own)
    at = related.at(np.asarray(theta, dtype=float), reml, full)
    if at is None or not reml:
        return at
    return replace(at, llf=at.llf + coding_constant(model))


class Moves(NamedTuple):
    """How the covariance of the fixed effects moves with theta, see ``engine.variation``.

    root (p, p); slopes (K, p, p); inflation (p, p).
    """

    root: np.ndarray
    slopes: np.ndarray
    inflation: np.ndarray


def variation(model: Model, theta: np.ndarray, W: np.ndarray, method: str = "reml") -> Moves:
    """Derivatives at `theta`, whose estimate by `method` has the covariance `W` (K, K).

    Raises
    ------
    ConvergenceError
        Sigma is not positive definite.
    """
    found = (Rotated if is_rotated(model, method) else Joined)(model).fixed(theta)
    if found is None:
        raise ConvergenceError("the covariance of the data is not positive definite")
    values, axes = np.linalg.eigh(W)
    half = (axes * np.sqrt(np.clip(values, 0.0, None))).T
    slopes = np.tensordot(half, found.U.T @ found.moved, axes=1)
    moved = np.tensordot(half, found.moved, axes=1).transpose(1, 0, 2)  # (n, K, p)
    met = found.solve(moved.reshape(len(moved), -1)).reshape(moved.shape)
    C = np.tensordot(moved, met, axes=([0, 1], [0, 1])) - (slopes @ slopes).sum(axis=0)
    return Moves(np.linalg.solve(found.low, model.back.T).T, slopes, C + C.T)


def fit(model: Model, method: str, domain: Domain, start: np.ndarray | None = None) -> Estimate:
    """Maximise the likelihood over `domain`, from moments and from the middle of the domain.

    Parameters
    ----------
    model : Model; method : "ml" or "reml"; domain : Domain
    start : ndarray, shape (K,), optional
        A point near the maximum, from which alone it climbs.

    Raises
    ------
    ConvergenceError
        The kernels have too many levels and donors do not rotate, components cannot be told apart,
        no point of the domain
        was found, or a cell type has no noise.
    """
    reml, scale = choose("method", method, LIKELIHOODS) == "reml", response_scale(model)
    refuse_no_noise(model)
    if he.confounded(model):
        raise ConvergenceError(
            "variance components cannot be told apart: their information is singular"
        )
    own = centred(model, scale)
    walls, rotated = _Walls(own, domain), is_rotated(own, method)
    f = _Objective(Rotated(own) if rotated else Joined(own), walls, reml)
    middle = centre(own, 1.0)
    starts = _starts(own, middle) if start is None else [start / scale**2]
    ends: list[_End] = []
    for one in starts:
        end = _climb(
            f, _inside(f, one, middle), 0.0, _TOLERANCE, _PATIENCE if walls.parts else _STEPS
        )
        if not end.settled and walls.parts:
            end = _along_the_edge(f, _inside(f, 0.5 * (one + middle), middle))
        ends.append(end)
        if end.settled:
            break
    best = max(ends, key=lambda end: end.at.llf)
    p = model.X.shape[1]
    df = model.nobs - p if reml else model.nobs
    beta, cov = fixed_effects(model, best.at.beta, np.linalg.cholesky(best.at.gram), scale)
    return Estimate(
        method=method,
        theta=best.theta * scale**2,
        beta=beta,
        cov_beta=cov,
        beta_by="gls",
        information=best.at.average / scale**4,
        observed=np.full_like(best.at.average, math.nan),
        llf=best.at.llf - df * math.log(scale) + (coding_constant(model) if reml else 0.0),
        convergence=Convergence(
            converged=best.settled,
            boundary=best.edge,
            gradient_norm=math.sqrt(max(best.decrement, 0.0)),
            n_evaluations=f.count,
            n_starts=len(ends),
            message=MESSAGES[STALLED if not best.settled else EDGE if best.edge else INTERIOR]
            + ("; donors rotated, noise by its mean in each cell type" if rotated else ""),
        ),
    )


def _starts(model: Model, middle: np.ndarray) -> list[np.ndarray]:
    """Moments as far as they are a covariance, and the middle."""
    try:
        theta = covariance_parts(model, he.fit(model).theta)
    except (ConvergenceError, np.linalg.LinAlgError):
        return [middle]
    return [0.9 * theta + 0.1 * middle, middle]


def _inside(f: _Objective, theta: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """A point inside the domain on the line to its middle."""
    for share in (1.0, 0.9, 0.7, 0.4, 0.2, 0.1, 0.0):
        at = np.maximum(share * theta + (1.0 - share) * middle, f.walls.lower)
        if f.walls(at)[0] > -math.inf and f.related.at(at, f.reml, False) is not None:
            return at
    raise ConvergenceError(
        "no starting point lies inside the bounds for this structure; use another bound or add a "
        "component that is a variance"
    )


def _along_the_edge(f: _Objective, theta: np.ndarray) -> _End:
    """Behind a barrier whose weight vanishes in stages."""
    end = _climb(f, theta, _BARRIER[0], 0.03 * _BARRIER[0])
    for mu, following in pairwise(_BARRIER):
        end = _climb(f, _ahead(f, end, mu, following), following, 0.03 * following)
    if _direction(end.theta, f.walls.lower, end.at.score, end.at.average)[1] > _HELD:
        return end._replace(edge=True)
    last = _climb(f, end.theta, 0.0, _TOLERANCE, 2)
    return last if last.settled else end._replace(edge=True)


def _ahead(f: _Objective, end: _End, mu: float, following: float) -> np.ndarray:
    """Where the maximum behind a barrier of weight `following` is, from that of weight `mu`.

    A step by the curvature of the barrier that was there: the distance to a wall goes with mu.
    """
    _, grad, curvature = f.walls(end.theta)
    step, _ = _direction(
        end.theta, f.walls.lower, end.at.score + following * grad, end.at.average + mu * curvature
    )
    for size in (1.0, 0.99, 0.9):
        theta = np.maximum(end.theta + size * step, f.walls.lower)
        if f.walls(theta)[0] > -math.inf:
            return theta
    return end.theta
