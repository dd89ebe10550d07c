"""Maximising the (restricted) likelihood over its domain, compiled.

The domain is convex: every covariance of the constraint set is positive definite (noise 'cnu',
see :mod:`ctmm_formula.domain`) and theta > lower.  Inside it the step is Fisher scoring far from
the optimum and Newton with the observed information (2 average - expected) close to it.  Where
the optimum lies on the edge, a vanishing barrier mu (log|constraint| + sum log(theta - lower))
is followed; it is the same determinant kernel once more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from .kernels import _OPTIONS, INFORMATION, SCORE, VALUE, _fill, cholesky, cholesky_solve, evaluate
from .model import Blocks

INTERIOR, EDGE, STALLED, INFEASIBLE, MERGED = 0, 1, 2, 3, 4
"""How an optimisation ended."""

_TOLERANCE = 1e-13  # squared Newton decrement: the log-likelihood is this close to its maximum
_REFIT_TOLERANCE = 1e-10  # of a leave-out refit, before its last step (which squares it)
_WAY_POINT = 1e-2  # barrier weight at which paths from different starts are compared
_BARRIER_END = 1e-8
_REACH = (0.095, 0.08, 0.0)  # extrapolation along the path, in units of the last stage's move
_BARRIER_ENOUGH = 1e-6  # a path that settled down to here is on the edge; the rest is rounding
_MAX_STEPS = 60


class Problem(NamedTuple):
    """One likelihood and its domain.

    kernel: its address; S (K, F), y (n,), nu (n,), blocks, active (N,), reml; lower (K,)
    bounds (-inf where none);
    cS (K, F'), cnu, cblocks, cactive: determinants that must stay positive definite.
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


class Work(NamedTuple):
    """Buffers of one optimisation; grad (K,), hess and info (K, K), beta (p,)."""

    score: np.ndarray
    average: np.ndarray
    expected: np.ndarray
    gram: np.ndarray
    beta: np.ndarray
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


@njit(**_OPTIONS)
def make_work(pr):
    """Buffers for `pr`."""
    K, F = pr.S.shape
    G = pr.cS.shape[1]
    p = pr.blocks.p
    return Work(
        np.zeros(F), np.zeros((F, F)), np.zeros((F, F)), np.zeros((p + 1, p + 1)), np.zeros(p),
        np.zeros(G), np.zeros((G, G)), np.zeros((G, G)), np.zeros((1, 1)), np.zeros(0),
        np.zeros(K), np.zeros((K, K)), np.zeros((K, K)), np.zeros((K, K)), np.zeros(K),
        np.zeros(K),
    )  # fmt: skip


@njit(**_OPTIONS)
def _factors(S, theta):
    K, F = S.shape
    phi = np.zeros(F)
    for k in range(K):
        for f in range(F):
            phi[f] += S[k, f] * theta[k]
    return phi


@njit(**_OPTIONS)
def _add_congruence(S, inner, weight, out):
    """out += weight S inner S', skipping the zeros of S."""
    K, F = S.shape
    for k in range(K):
        for f in range(F):
            if S[k, f] == 0.0:
                continue
            for h in range(K):
                for g in range(F):
                    if S[h, g] != 0.0:
                        out[k, h] += weight * S[k, f] * inner[f, g] * S[h, g]


@njit(**_OPTIONS)
def _walls(pr, theta, mu, level, wk):
    """log-determinants of the constraint set, or -inf; from SCORE on their derivatives too.

    Adds mu times the gradient and curvature to wk.grad, wk.observed and wk.info.  A random
    effect's own wall is the determinant of its whole block; it hides the wall of the single
    donors in it, so these enter once more with the random effects at zero.
    """
    K = len(theta)
    n_random = pr.cS.shape[1] - pr.cblocks.R
    total = 0.0
    if len(pr.cactive) == 0:
        return total
    phi = _factors(pr.cS, theta)
    for alone in range(2):
        if alone == 1:
            if len(pr.cblocks.level_comp) == 0 or level == VALUE:
                break
            for f in range(pr.cblocks.R, pr.cblocks.R + n_random):
                phi[f] = 0.0
        value = evaluate(
            pr.kernel, phi, pr.cy, pr.cnu, pr.cblocks, pr.cactive, False, level,
            wk.cscore, wk.caverage, wk.cexpected, wk.cbeta, wk.cgram,
        )  # fmt: skip
        if value == -math.inf:
            return value
        total -= 2.0 * value
        if level == VALUE:
            break
        if alone == 1:
            for f in range(pr.cblocks.R, pr.cblocks.R + n_random):
                wk.cscore[f] = 0.0
                for g in range(pr.cblocks.R + n_random):
                    wk.cexpected[f, g] = 0.0
                    wk.cexpected[g, f] = 0.0
        for k in range(K):
            for f in range(pr.cS.shape[1]):
                wk.grad[k] -= 2.0 * mu * pr.cS[k, f] * wk.cscore[f]
        if level > SCORE:
            _add_congruence(pr.cS, wk.cexpected, 2.0 * mu, wk.observed)
            _add_congruence(pr.cS, wk.cexpected, 2.0 * mu, wk.info)
    return total


@njit(**_OPTIONS)
def _objective(pr, theta, mu, level, wk):
    """Barrier objective; with level SCORE or INFORMATION also wk.grad, wk.observed, wk.info.

    Returns (objective, log-likelihood); -inf outside the domain.
    """
    K = len(theta)
    for k in range(K):
        if not theta[k] > pr.lower[k]:
            return -math.inf, -math.inf
        wk.grad[k] = 0.0
    _fill(wk.observed, 0.0)
    _fill(wk.info, 0.0)
    barrier = _walls(pr, theta, mu, level if mu > 0.0 else VALUE, wk)
    if barrier == -math.inf:
        return barrier, barrier
    llf = evaluate(
        pr.kernel, _factors(pr.S, theta), pr.y, pr.nu, pr.blocks, pr.active, pr.reml,
        level, wk.score, wk.average, wk.expected, wk.beta, wk.gram,
    )  # fmt: skip
    if llf == -math.inf:
        return llf, llf
    if level > VALUE:
        for k in range(K):
            for f in range(pr.S.shape[1]):
                wk.grad[k] += pr.S[k, f] * wk.score[f]
    if level > SCORE:
        _add_congruence(pr.S, wk.average, 2.0, wk.observed)
        _add_congruence(pr.S, wk.expected, -1.0, wk.observed)
        _add_congruence(pr.S, wk.expected, 1.0, wk.info)
    if mu > 0.0:
        for k in range(K):
            if pr.lower[k] > -math.inf:
                slack = theta[k] - pr.lower[k]
                barrier += math.log(slack)
                wk.grad[k] += mu / slack
                wk.observed[k, k] += mu / slack**2
                wk.info[k, k] += mu / slack**2
        return llf + mu * barrier, llf
    return llf, llf


@njit(**_OPTIONS)
def _direction(matrix, wk):
    """wk.step = matrix^-1 grad and the squared decrement grad' step; -1 if not definite."""
    K = len(wk.grad)
    for k in range(K):
        for h in range(k + 1):
            wk.chol[k, h] = matrix[k, h]
    if not cholesky(wk.chol, K):
        return -1.0
    decrement = 0.0
    for k in range(K):
        wk.step[k] = wk.grad[k]
    cholesky_solve(wk.chol, K, wk.step)
    for k in range(K):
        decrement += wk.grad[k] * wk.step[k]
    return decrement


@njit(**_OPTIONS)
def newton(pr, theta, mu, tolerance, wk):
    """Climb from `theta` (changed in place) at barrier weight mu.

    Returns (status, log-likelihood, squared decrement, evaluations).
    """
    K = len(theta)
    value, llf = _objective(pr, theta, mu, INFORMATION, wk)
    n_eval = 1
    if value == -math.inf:
        return INFEASIBLE, llf, math.inf, n_eval
    decrement = math.inf
    blocked = 0
    for _ in range(_MAX_STEPS):
        decrement = _direction(wk.info, wk)
        if decrement < 0.0:
            return STALLED, llf, math.inf, n_eval
        if decrement < 1.0:  # close enough for the observed curvature
            newer = _direction(wk.observed, wk)
            decrement = newer if newer >= 0.0 else _direction(wk.info, wk)
        if decrement < tolerance:
            return INTERIOR, llf, decrement, n_eval
        size = 1.0
        accepted = False
        outside = False
        for _ in range(40):
            for k in range(K):
                wk.trial[k] = theta[k] + size * wk.step[k]
            # the direction survives in wk.step; grad and information are for the new point
            new_value, new_llf = _objective(pr, wk.trial, mu, INFORMATION, wk)
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
            _objective(pr, theta, mu, INFORMATION, wk)
            return STALLED, llf, decrement, n_eval + 1
        for k in range(K):
            theta[k] = wk.trial[k]
        value, llf = new_value, new_llf
        if outside and mu == 0.0:
            blocked += 1
            if blocked >= 3:
                return EDGE, llf, decrement, n_eval
    return STALLED, llf, decrement, n_eval


@njit(**_OPTIONS)
def _follow(pr, theta, mu, mu_end, wk):
    """Follow the barrier path from weight `mu` down to `mu_end`; `theta` changed in place.

    Slacks shrink in proportion to mu, so each stage starts from a linear extrapolation of the
    two before it.  Returns (reached, log-likelihood, squared decrement, evaluations), `reached`
    the smallest weight at which the stage settled.
    """
    K = len(theta)
    before = np.empty(K)
    ahead = np.empty(K)
    reached, llf, decrement, n_eval, stage = math.inf, -math.inf, math.inf, 0, 0
    while mu > 0.5 * mu_end:
        status, new_llf, new_decrement = INFEASIBLE, llf, decrement
        for attempt in range(3):
            reach = 0.0 if stage < 2 else _REACH[attempt]
            for k in range(K):
                ahead[k] = theta[k] + (reach * (theta[k] - before[k]) if reach > 0.0 else 0.0)
            status, new_llf, new_decrement, used = newton(pr, ahead, mu, 0.03 * mu, wk)
            n_eval += used
            if status != INFEASIBLE or reach == 0.0:
                break
        if status == INFEASIBLE:
            break
        for k in range(K):
            before[k] = theta[k]
            theta[k] = ahead[k]
        llf = new_llf
        if status == INTERIOR:
            reached, decrement = mu, new_decrement
        mu *= 0.1
        stage += 1
    return reached, llf, decrement, n_eval


@njit(**_OPTIONS)
def climb(pr, theta, known, n_known, wk):
    """From a feasible start to a local maximum, along the edge where it must.

    `theta` is changed in place.  `known` (s, K) holds the way points of the first `n_known`
    climbs along the edge: a path that meets one of them is not followed further.
    Returns (INTERIOR, EDGE, STALLED, MERGED or INFEASIBLE, log-likelihood, squared decrement,
    evaluations).
    """
    K = len(theta)
    start = theta.copy()
    status, llf, decrement, n_eval = newton(pr, theta, 0.0, _TOLERANCE, wk)
    if status in (INTERIOR, INFEASIBLE):
        return status, llf, decrement, n_eval
    for k in range(K):
        theta[k] = start[k]
    reached, llf, decrement, used = _follow(pr, theta, 0.1, _WAY_POINT, wk)
    n_eval += used
    for s in range(n_known):
        apart = 0.0
        for k in range(K):
            apart = max(apart, abs(known[s, k] - theta[k]) / (1.0 + abs(theta[k])))
        if apart < 1e-2:
            return MERGED, llf, decrement, n_eval
    for k in range(K):
        known[n_known, k] = theta[k]
    reached, llf, decrement, used = _follow(pr, theta, 0.1 * _WAY_POINT, _BARRIER_END, wk)
    n_eval += used
    _objective(pr, theta, 0.0, INFORMATION, wk)
    n_eval += 1
    if abs(_direction(wk.info, wk)) < 1e-6:  # no wall holds it: the path ended in the interior
        status, llf, decrement, used = newton(pr, theta, 0.0, _TOLERANCE, wk)
        return status, llf, decrement, n_eval + used
    return EDGE if reached <= _BARRIER_ENOUGH else STALLED, llf, decrement, n_eval


@njit(**_OPTIONS)
def best_of(pr, starts, prefer_interior, theta, wk):
    """Climb from the rows of `starts` (s, K) in turn; the best end is left in `theta` and `wk`.

    An interior optimum reached from the first start is final; on the edge all starts are tried.
    Returns (status, log-likelihood, squared decrement, evaluations, starts used).
    """
    best_status, best, best_decrement, total, used = INFEASIBLE, -math.inf, math.inf, 0, 0
    K = len(theta)
    point = np.empty(K)
    known = np.empty((starts.shape[0], K))
    n_known = 0
    for s in range(starts.shape[0]):
        for k in range(K):
            point[k] = starts[s, k]
        status, llf, decrement, n_eval = climb(pr, point, known, n_known, wk)
        total += n_eval
        if status == INFEASIBLE:
            continue
        used += 1
        if status == MERGED:
            continue
        if status in (EDGE, STALLED):
            n_known += 1
        better = llf > best + 1e-9 * (1.0 + abs(llf))
        if prefer_interior and (status == INTERIOR) != (best_status == INTERIOR):
            better = status == INTERIOR
        if better or best_status == INFEASIBLE:
            best_status, best, best_decrement = status, llf, decrement
            for k in range(K):
                theta[k] = point[k]
        if status == INTERIOR and used == 1:
            return best_status, best, best_decrement, total, used
    if best_status != INFEASIBLE:
        _objective(pr, theta, 0.0, INFORMATION, wk)
    return best_status, best, best_decrement, total, used


@njit(**_OPTIONS)
def maximise(pr, starts, prefer_interior, theta, beta, gram, expected, observed):
    """:func:`best_of` with its results in the caller's arrays: fixed effects and information."""
    wk = make_work(pr)
    found = best_of(pr, starts, prefer_interior, theta, wk)
    K, p1 = len(theta), gram.shape[0]
    for k in range(K):
        for h in range(K):
            observed[k, h] = wk.observed[k, h]
            expected[k, h] = wk.info[k, h]
    for j in range(p1):
        for k in range(p1):
            gram[j, k] = wk.gram[j, k]
    for j in range(p1 - 1):
        beta[j] = wk.beta[j]
    return found


@njit(**_OPTIONS)
def leave_out(pr, groups, group_ptr, theta_hat, observed, centre, steps, thetas, betas, status):
    """Refit without each group of donors.

    Chord steps with the full fit's information (its inverse error shrinks by about 1/N a step),
    then a full climb where they do not settle.  `steps` limits the chord steps; with one step the
    result is the one-step jackknife.

    Parameters
    ----------
    groups : (sum of sizes,) donors; group_ptr : (G + 1,)
    theta_hat : (K,); observed : (K, K) information of the full fit; centre : (K,) interior point
    thetas : (G, K), betas : (G, p), status : (G,) out
    """
    K = len(theta_hat)
    n_groups = len(group_ptr) - 1
    wk = make_work(pr)
    theta = np.empty(K)
    starts = np.empty((2, K))
    shares_donors = len(pr.cactive) == len(pr.active)
    for k in range(K):
        for h in range(k + 1):
            wk.chol[k, h] = observed[k, h]
    full_inverse = np.zeros((K, K))
    definite = cholesky(wk.chol, K)
    for k in range(K):
        for h in range(K):
            wk.step[h] = 1.0 if h == k else 0.0
        if definite:
            cholesky_solve(wk.chol, K, wk.step)
        grow = n_groups / (n_groups - 1.0)  # the information shrinks with the donors
        for h in range(K):
            full_inverse[k, h] = wk.step[h] * grow
    for g in range(n_groups):
        for x in range(group_ptr[g], group_ptr[g + 1]):
            pr.active[groups[x]] = False
            if shares_donors:
                pr.cactive[groups[x]] = False
        for k in range(K):
            theta[k] = theta_hat[k]
        settled = definite and _chord(pr, theta, full_inverse, steps, wk)
        status[g] = INTERIOR
        if not settled:
            for k in range(K):
                starts[0, k] = 0.95 * theta_hat[k] + 0.05 * centre[k]
                starts[1, k] = centre[k]
            status[g], _, _, _, _ = best_of(pr, starts, False, theta, wk)
        for k in range(K):
            thetas[g, k] = theta[k]
        for j in range(betas.shape[1]):
            betas[g, j] = wk.beta[j]
        for x in range(group_ptr[g], group_ptr[g + 1]):
            pr.active[groups[x]] = True
            if shares_donors:
                pr.cactive[groups[x]] = True


@njit(**_OPTIONS)
def _chord(pr, theta, full_inverse, steps, wk):
    """Quasi-Newton from a nearby fit: its inverse information, corrected by rank-one updates.

    `theta` is moved in place; True where it settled inside the domain (or after one step, if
    `steps` is 1).
    """
    K = len(theta)
    inverse = full_inverse.copy()
    before = np.empty(K)
    miss = np.empty(K)
    last = math.inf
    for it in range(steps + 1):
        llf = evaluate(
            pr.kernel, _factors(pr.S, theta), pr.y, pr.nu, pr.blocks, pr.active, pr.reml, SCORE,
            wk.score, wk.average, wk.expected, wk.beta, wk.gram,
        )  # fmt: skip
        if llf == -math.inf:
            return False
        for k in range(K):
            wk.grad[k] = 0.0
            for f in range(pr.S.shape[1]):
                wk.grad[k] += pr.S[k, f] * wk.score[f]
        if it > 0:  # secant: inverse (before - grad) should have been the last step
            along = 0.0
            for k in range(K):
                miss[k] = wk.step[k]
                for h in range(K):
                    miss[k] -= inverse[k, h] * (before[h] - wk.grad[h])
                along += miss[k] * (before[k] - wk.grad[k])
            if abs(along) > 1e-300:
                for k in range(K):
                    for h in range(K):
                        inverse[k, h] += miss[k] * miss[h] / along
        decrement = 0.0
        for k in range(K):
            wk.step[k] = 0.0
            for h in range(K):
                wk.step[k] += inverse[k, h] * wk.grad[h]
            decrement += wk.step[k] * wk.grad[k]
            before[k] = wk.grad[k]
        if it == steps and steps == 1:
            break
        if not abs(decrement) < 10.0 * last or it == steps:
            return False
        last = abs(decrement)
        for k in range(K):
            theta[k] += wk.step[k]
        if last < _REFIT_TOLERANCE:
            break
    for k in range(K):
        if not theta[k] > pr.lower[k]:
            return False
    return _walls(pr, theta, 0.0, VALUE, wk) > -math.inf
