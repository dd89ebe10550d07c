"""One climb to a maximum of the (restricted) likelihood over its domain, compiled.

The domain is convex: every covariance of the constraint set is positive definite (noise `cnu`,
see :mod:`ctmm_formula.engine.domain`) and theta >= lower.  Inside it the step is Fisher scoring
far from the optimum and Newton with the observed information (2 average - expected) close to it;
components on their lower bound are held there while the likelihood pushes them out.  A barrier
mu log|constraint| keeps a climb off the edge of a determinant; it is the same kernel once more.
Which climbs it takes to find the maximum is decided in :mod:`ctmm_formula.engine.search`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .kernels import (
    DEFINITE,
    INFORMATION,
    SCORE,
    VALUE,
    cholesky,
    cholesky_solve,
    evaluate_at,
    fill,
)
from .model import Blocks
from .options import called

INTERIOR, EDGE, STALLED, INFEASIBLE, MERGED = 0, 1, 2, 3, 4
"""How a climb ended."""

_MAX_STEPS = 60
_STEADY, _WALK = 0.1, 5  # change of the decrement, and steps, by which a walk is a steady one
_RIDGE = 1e-12  # first and least of what is added to an information that is not definite


class Problem(NamedTuple):
    """One likelihood and its domain.

    kernel: its address; S (K, F), y, nu (T, m, LANES), blocks, active (T LANES,), reml; lower (K,)
    bounds (-inf where none); cS (K, F'), cy, cnu, cblocks, cactive: determinants that must stay
    positive definite; noisy: all cnu > 0; by_donor: determinant i goes with donor i.
    """

    kernel: int
    S: np.ndarray
    y: np.ndarray
    nu: np.ndarray
    blocks: Blocks
    active: np.ndarray
    reml: bool
    lower: np.ndarray
    cS: np.ndarray
    cy: np.ndarray
    cnu: np.ndarray
    cblocks: Blocks
    cactive: np.ndarray
    noisy: bool
    by_donor: bool


class Work(NamedTuple):
    """Buffers of one optimisation.

    phi (F,), grad (K,), observed and info (K, K), beta (p,), moves (F, p) of the likelihood.
    """

    phi: np.ndarray
    cphi: np.ndarray
    score: np.ndarray
    average: np.ndarray
    expected: np.ndarray
    gram: np.ndarray
    beta: np.ndarray
    moves: np.ndarray
    cscore: np.ndarray
    caverage: np.ndarray
    cexpected: np.ndarray
    cgram: np.ndarray
    cbeta: np.ndarray
    grad: np.ndarray
    observed: np.ndarray
    info: np.ndarray
    chol: np.ndarray
    step: np.ndarray
    trial: np.ndarray
    held: np.ndarray


def make_work(pr: Problem) -> Work:
    """Buffers for `pr`."""
    K, F = pr.S.shape
    G, p = pr.cS.shape[1], pr.blocks.p
    zeros = np.zeros
    return Work(
        zeros(F), zeros(G),
        zeros(F), zeros((F, F)), zeros((F, F)), zeros((p + 1, p + 1)), zeros(p),
        zeros((F, p)), zeros(G), zeros((G, G)), zeros((G, G)), zeros((1, 1)), zeros(0),
        zeros(K), zeros((K, K)), zeros((K, K)), zeros((K, K)), zeros(K), zeros(K),
        zeros(K, dtype=bool),
    )  # fmt: skip


@called
def factors(S, theta, phi):
    """phi = S' theta."""
    K, F = S.shape
    for f in range(F):
        phi[f] = 0.0
        for k in range(K):
            phi[f] += S[k, f] * theta[k]


@called
def add_information(S, average, expected, weight, observed, info):
    """observed += weight S (2 average - expected) S' and info += weight S expected S'."""
    K, F = S.shape
    for k in range(K):
        for f in range(F):
            if S[k, f] == 0.0:
                continue
            for h in range(k + 1):
                seen, mean = 0.0, 0.0
                for g in range(F):
                    if S[h, g] != 0.0:
                        seen += (2.0 * average[f, g] - expected[f, g]) * S[h, g]
                        mean += expected[f, g] * S[h, g]
                observed[k, h] += weight * S[k, f] * seen
                info[k, h] += weight * S[k, f] * mean
    for k in range(K):
        for h in range(k):
            observed[h, k], info[h, k] = observed[k, h], info[k, h]


@called
def is_inside(pr, theta, wk):
    """Whether the determinants of the constraint set are those of definite matrices."""
    if len(pr.cactive) == 0:
        return True
    factors(pr.cS, theta, wk.cphi)
    return holds(pr, wk)


@called
def holds(pr, wk):
    """The same at the factors wk.cphi."""
    if pr.noisy:  # noise plus a sum of positive parts needs no look
        for f in range(len(wk.cphi)):
            if wk.cphi[f] < 0.0:
                break
        else:
            return True
    value = evaluate_at(
        pr.kernel, wk.cphi, pr.cy, pr.cnu, pr.cblocks, pr.cactive, False, DEFINITE,
        wk.cscore, wk.caverage, wk.cexpected, wk.cbeta, wk.cgram, wk.moves,
    )  # fmt: skip
    return value > -math.inf


@called
def _walls(pr, theta, mu, wk):
    """log-determinants of the constraint set, or -inf.

    Adds mu times the gradient and curvature to wk.grad, wk.observed and wk.info.  A random
    effect's own wall is the determinant of its whole block; it hides the wall of the single
    donors in it, so these enter once more with the random effects at zero.
    """
    K = len(theta)
    n_random = pr.cS.shape[1] - pr.cblocks.R
    total = 0.0
    if len(pr.cactive) == 0:
        return total
    phi = wk.cphi
    factors(pr.cS, theta, phi)
    for alone in range(2):
        if alone == 1:
            if len(pr.cblocks.level_comp) == 0:
                break
            for f in range(pr.cblocks.R, pr.cblocks.R + n_random):
                phi[f] = 0.0
        value = evaluate_at(
            pr.kernel, phi, pr.cy, pr.cnu, pr.cblocks, pr.cactive, False, INFORMATION,
            wk.cscore, wk.caverage, wk.cexpected, wk.cbeta, wk.cgram, wk.moves,
        )  # fmt: skip
        if value == -math.inf:
            return value
        total -= 2.0 * value
        if alone == 1:
            for f in range(pr.cblocks.R, pr.cblocks.R + n_random):
                wk.cscore[f] = 0.0
                for g in range(pr.cblocks.R + n_random):
                    wk.cexpected[f, g] = 0.0
                    wk.cexpected[g, f] = 0.0
        for k in range(K):
            for f in range(pr.cS.shape[1]):
                wk.grad[k] -= 2.0 * mu * pr.cS[k, f] * wk.cscore[f]
        curved = wk.cexpected  # of a determinant both informations are one
        add_information(pr.cS, curved, curved, 2.0 * mu, wk.observed, wk.info)
    return total


@called
def objective(pr, theta, mu, level, wk):
    """Barrier objective; with level SCORE or INFORMATION also wk.grad, wk.observed, wk.info.

    With a barrier the level is INFORMATION.

    Returns (objective, log-likelihood); -inf outside the domain.
    """
    K = len(theta)
    for k in range(K):
        if theta[k] < pr.lower[k]:
            return -math.inf, -math.inf
        wk.grad[k] = 0.0
    fill(wk.observed, 0.0)
    fill(wk.info, 0.0)
    barrier = _walls(pr, theta, mu, wk) if mu > 0.0 else 0.0
    if barrier == -math.inf or (mu == 0.0 and not is_inside(pr, theta, wk)):
        return -math.inf, -math.inf
    factors(pr.S, theta, wk.phi)
    llf = evaluate_at(
        pr.kernel, wk.phi, pr.y, pr.nu, pr.blocks, pr.active, pr.reml,
        level, wk.score, wk.average, wk.expected, wk.beta, wk.gram, wk.moves,
    )  # fmt: skip
    if llf == -math.inf:
        return llf, llf
    if level > VALUE:
        for k in range(K):
            for f in range(pr.S.shape[1]):
                wk.grad[k] += pr.S[k, f] * wk.score[f]
    if level > SCORE:
        add_information(pr.S, wk.average, wk.expected, 1.0, wk.observed, wk.info)
    return llf + mu * barrier, llf


@called
def _direction(lower, theta, matrix, grad, chol, step, held):
    """step = matrix^-1 grad and the squared decrement grad' step; -1 if not definite.

    Components that sit on their lower bound and would leave the domain are held there.
    """
    K = len(theta)
    for k in range(K):
        held[k] = theta[k] <= lower[k] and grad[k] <= 0.0
    for _ in range(K + 1):
        for k in range(K):
            for h in range(k + 1):
                free = not (held[k] or held[h])
                chol[k, h] = matrix[k, h] if free else 1.0 if k == h else 0.0
            step[k] = 0.0 if held[k] else grad[k]
        if not cholesky(chol, K):
            return -1.0
        cholesky_solve(chol, K, step)
        again = False
        for k in range(K):
            if theta[k] <= lower[k] and step[k] < 0.0:
                held[k] = True
                again = True
        if not again:
            break
    decrement = 0.0
    for k in range(K):
        decrement += grad[k] * step[k]
    return decrement


class Known(NamedTuple):
    """Points that climbs have reached.

    theta (S, K), info (S, K, K) there, number (1,) of them, the squared distance in standard errors
    that counts as the same point, (1,), and the log-likelihood below which no end is of use, (1,).
    """

    theta: np.ndarray
    info: np.ndarray
    number: np.ndarray
    near: np.ndarray
    least: np.ndarray


@called
def _leads_to(known, theta, step):
    """Whether theta + step is one of the points known."""
    K = len(theta)
    for s in range(known.number[0]):
        distance = 0.0
        for k in range(K):
            for h in range(K):
                ahead = theta[k] + step[k] - known.theta[s, k]
                distance += ahead * known.info[s, k, h] * (theta[h] + step[h] - known.theta[s, h])
        if distance < known.near[0]:
            return True
    return False


@called
def newton(pr, theta, mu, tolerance, wk, patience, known):
    """Climb from `theta` (changed in place) at barrier weight mu.

    A step that meets a lower bound stops on it; bounds need no barrier.
    Without a barrier it gives up (EDGE) after `patience` steps that the domain cut short.
    It stops (MERGED) where the next step would lead to one of the points `known`, and (STALLED) on
    a steady walk along a wall whose last step would not lead to the least of use.

    Returns (status, log-likelihood, squared decrement, evaluations).
    """
    K = len(theta)
    value, llf = objective(pr, theta, mu, INFORMATION, wk)
    n_eval = 1
    if value == -math.inf:
        return INFEASIBLE, llf, math.inf, n_eval
    decrement, before, gained = math.inf, math.inf, 0.0
    blocked, steady = 0, 0
    for step in range(_MAX_STEPS):
        before, decrement = decrement, -1.0
        for attempt in range(3):  # expected; close to the optimum observed, if definite
            if attempt == 1 and not decrement < 1.0:
                break
            matrix = wk.observed if attempt == 1 else wk.info
            decrement = _direction(pr.lower, theta, matrix, wk.grad, wk.chol, wk.step, wk.held)
            ridge = _RIDGE
            while decrement < 0.0 and attempt == 0 and ridge < 1.0:  # the rounding of a wall
                for k in range(K):
                    wk.info[k, k] *= 1.0 + ridge
                decrement = _direction(pr.lower, theta, matrix, wk.grad, wk.chol, wk.step, wk.held)
                ridge *= 100.0
            if decrement < 0.0 and attempt == 0:
                return STALLED, llf, math.inf, n_eval
            if decrement >= 0.0 and attempt == 1:
                break
        if _leads_to(known, theta, wk.step):
            return MERGED, llf, decrement, n_eval
        if decrement < tolerance:
            return INTERIOR, llf, decrement, n_eval
        steady = steady + 1 if abs(decrement - before) < _STEADY * before else 0
        if steady > _WALK and llf + (_MAX_STEPS - step) * gained < known.least[0]:
            return STALLED, llf, decrement, n_eval
        size = 1.0
        for k in range(K):
            if theta[k] + size * wk.step[k] < pr.lower[k]:
                size = (pr.lower[k] - theta[k]) / wk.step[k]
        accepted = False
        outside = False
        for _ in range(40):
            for k in range(K):
                wk.trial[k] = theta[k] + size * wk.step[k]
                if wk.trial[k] < pr.lower[k] + 1e-14:  # on the bound, but for rounding
                    wk.trial[k] = pr.lower[k]
            # the direction survives in wk.step; grad and information are for the new point
            new_value, new_llf = objective(pr, wk.trial, mu, INFORMATION, wk)
            n_eval += 1
            if new_value == -math.inf:
                outside = True
                size *= 0.5
                continue
            if new_value >= value + 1e-4 * size * decrement - 1e-11 * (1.0 + abs(value)):
                accepted = True
                break
            size *= 0.5
        if not accepted:
            return STALLED, llf, decrement, n_eval
        for k in range(K):
            theta[k] = wk.trial[k]
        gained = new_llf - llf
        value, llf = new_value, new_llf
        if outside and mu == 0.0:
            blocked += 1
            if blocked >= patience:
                return EDGE, llf, decrement, n_eval
    return STALLED, llf, decrement, n_eval
