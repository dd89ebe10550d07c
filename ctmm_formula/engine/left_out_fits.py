"""Likelihood fits without each group of donors, from the full fit and its scores without them."""

from __future__ import annotations

import math

import numpy as np

from .kernels import (
    DEFINITE,
    INFORMATION,
    SCORE,
    VALUE,
    cholesky,
    cholesky_solve,
    empty,
    evaluate,
    evaluate_at,
    fill,
)
from .optimize import Problem, Work, add_information, factors
from .options import called, kept

_NEWTON = 1e-5  # squared decrement of a refit before its last step, where that is Newton's
_CHORD = 1e-9  # and where it is not
_FLAT = 1e-8  # of what all donors know of a component: where the others know less there is no step


@called
def grade(pr, wk):
    """Gradient of the components, from that of the factors."""
    for k in range(len(wk.grad)):
        wk.grad[k] = 0.0
        for f in range(pr.S.shape[1]):
            wk.grad[k] += pr.S[k, f] * wk.score[f]


@called
def observe(pr, wk):
    """Observed and expected information of the components, from those of the factors."""
    fill(wk.observed, 0.0)
    fill(wk.info, 0.0)
    add_information(pr.S, wk.average, wk.expected, 1.0, wk.observed, wk.info)


@called
def _invert(pr, inverse, wk):
    """Put in `inverse` that of the observed information, if definite, but for what it holds."""
    K = len(inverse)
    observe(pr, wk)
    for k in range(K):
        for h in range(k + 1):
            free = inverse[k, k] != 0.0 and inverse[h, h] != 0.0
            wk.chol[k, h] = wk.observed[k, h] if free else 1.0 if k == h else 0.0
    if not cholesky(wk.chol, K):
        return False
    for k in range(K):
        if inverse[k, k] != 0.0 and not wk.chol[k, k] ** 2 * inverse[k, k] > _FLAT:
            return False
    for k in range(K):
        if inverse[k, k] != 0.0:
            for h in range(K):
                inverse[k, h] = 1.0 if h == k else 0.0
            cholesky_solve(wk.chol, K, inverse[k])
    return True


@called
def _correct(inverse, step, fall, miss):
    """A rank-one update, by which inverse times the fall of the gradient is the last step."""
    K = len(step)
    along = 0.0
    for k in range(K):
        miss[k] = step[k]
        for h in range(K):
            miss[k] -= inverse[k, h] * fall[h]
        along += miss[k] * fall[k]
    if abs(along) > 1e-300:
        for k in range(K):
            for h in range(K):
                inverse[k, h] += miss[k] * miss[h] / along


@called
def move_effects(pr, wk):
    """Move wk.beta by wk.step from where the information was had, but for its square."""
    p = len(wk.beta)
    along = empty(p)
    factors(pr.S, wk.step, wk.phi)
    for j in range(p - 1, -1, -1):
        along[j] = 0.0
        for f in range(len(wk.phi)):
            along[j] += wk.phi[f] * wk.moves[f, j]
        for k in range(j + 1, p):
            along[j] -= wk.gram[k, j] * along[k]
        along[j] /= wk.gram[j, j]
        wk.beta[j] -= along[j]


@called
def _settle(pr, theta, inverse, steps, wk):
    """To the optimum from a first step: then one by Newton, and others by quasi-Newton.

    wk.grad and wk.step hold the gradient at `theta` and the first step from there.  `theta` and
    `inverse` are changed in place; True where it settled, and on the right side of the bounds.
    """
    K = len(theta)
    fall, miss = empty(K), empty(K)
    last, enough = 0.0, 0.0
    for k in range(K):
        last += wk.step[k] * wk.grad[k]
    last = abs(last)
    for it in range(1, steps + 1):
        for k in range(K):
            theta[k] += wk.step[k]
            fall[k] = wk.grad[k]
        if last < enough:
            if enough == _NEWTON:
                move_effects(pr, wk)
            break
        if it == steps:
            return False
        factors(pr.S, theta, wk.phi)
        llf = evaluate_at(
            pr.kernel, wk.phi, pr.y, pr.nu, pr.blocks, pr.active, pr.reml,
            INFORMATION if it == 1 else SCORE,
            wk.score, wk.average, wk.expected, wk.beta, wk.gram, wk.moves,
        )  # fmt: skip
        if llf == -math.inf:
            return False
        grade(pr, wk)
        for k in range(K):
            fall[k] -= wk.grad[k]
        enough = _NEWTON
        if it > 1 or not _invert(pr, inverse, wk):
            _correct(inverse, wk.step, fall, miss)
            enough = _CHORD
        decrement = 0.0
        for k in range(K):
            wk.step[k] = 0.0
            for h in range(K):
                wk.step[k] += inverse[k, h] * wk.grad[h]
            decrement += wk.step[k] * wk.grad[k]
        if not abs(decrement) < 10.0 * last:
            return False
        last = abs(decrement)
    for k in range(K):
        held = inverse[k, k] == 0.0
        if theta[k] < pr.lower[k] or (held and wk.grad[k] > 0.0):
            return False
    return True


@kept
def left_out_fits(pr, groups, group_ptr, grads, inverse, steps, wk, thetas, betas, settled):
    """Refit without each group of donors, by Newton and quasi-Newton steps from the full fit.

    Parameters
    ----------
    groups : (sum of sizes,) donors; group_ptr : (G + 1,)
    grads : (G, K) scores there without each group
    inverse : (K, K) inverse information to start from; steps : most steps
    thetas : (G, K) the full fit, changed in place; betas : (G, p), settled : (G,) bool out; what
        has not settled needs a climb
    """
    K = thetas.shape[1]
    for g in range(len(group_ptr) - 1):
        for x in range(group_ptr[g], group_ptr[g + 1]):
            pr.active[groups[x]] = False
        for k in range(K):
            wk.grad[k] = grads[g, k]
            wk.step[k] = 0.0
            for h in range(K):
                wk.step[k] += inverse[k, h] * grads[g, h]
        settled[g] = _settle(pr, thetas[g], inverse.copy(), steps, wk)
        for j in range(betas.shape[1]):
            betas[g, j] = wk.beta[j]
        for x in range(group_ptr[g], group_ptr[g + 1]):
            pr.active[groups[x]] = True


def packed(groups: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Groups of donors one after the other, and where each begins (G + 1,)."""
    ptr = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    return np.concatenate(groups).astype(np.int64), ptr.astype(np.int64)


def without(pr: Problem, donors: np.ndarray) -> Problem:
    """The problem of the other donors."""
    active, cactive = pr.active.copy(), pr.cactive.copy()
    active[donors] = False
    if pr.by_donor:
        cactive[donors] = False
    return pr._replace(active=active, cactive=cactive)


def inside(pr: Problem, thetas: np.ndarray, groups: list[np.ndarray], wk: Work) -> np.ndarray:
    """Whether thetas (G, K) lie inside the domain, each without its group of donors; (G,) bool.

    Covariances grow with every factor: where they are definite at the smallest value of each
    factor among several thetas, and for all donors, they are definite for each of these.
    """
    if not len(groups) or not len(pr.cactive):
        return np.ones(len(groups), dtype=bool)
    part = without(pr, groups[0]) if len(groups) == 1 else pr
    phi = (thetas @ pr.cS).min(axis=0)
    definite = bool(pr.noisy and (phi >= 0.0).all()) or math.isfinite(
        evaluate(
            pr.kernel, phi, pr.cy, pr.cnu, pr.cblocks, part.cactive, False, DEFINITE,
            wk.cscore, wk.caverage, wk.cexpected, wk.cbeta, wk.cgram,
        )
    )  # fmt: skip
    if definite or len(groups) == 1:
        return np.full(len(groups), definite)
    half = len(groups) // 2
    halves = (slice(None, half), slice(half, None))
    return np.concatenate([inside(pr, thetas[h], groups[h], wk) for h in halves])


def value(pr: Problem, theta: np.ndarray, wk: Work) -> float:
    """Log-likelihood at theta (K,); changes fixed effects in `wk`."""
    return evaluate(
        pr.kernel, theta @ pr.S, pr.y, pr.nu, pr.blocks, pr.active, pr.reml, VALUE,
        wk.score, wk.average, wk.expected, wk.beta, wk.gram,
    )  # fmt: skip
