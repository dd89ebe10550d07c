"""Which climbs it takes to find the maximum of the (restricted) likelihood, edge included.

The likelihood may have several maxima: inside, and on the edge, where a few donors are interpolated
at the least variance that their noise allows.  Such a donor gains no more than
1/2 log(1 / noise_floor) in log-likelihood, 1.15 by default, and z standard errors cost z^2 / 2: the
edge can win where it is within some 1.5 standard errors.  Therefore

1. climb from the variance split; an interior maximum with that much room along every component's
   profile, and lower likelihood there, or with twice the room, where four such donors do not gain
   what it costs to get there, is the maximum; not so where rows are not many and three
   variances or more are bounded each by itself, of which one may trade places with two others;
2. where rows are many for the number of components, the likelihood is lower wherever there is
   room, unless some rows are far off their means: look only for edges that are nearer, climb from
   just short of each, and behind a barrier where that does not lead back to the interior maximum;
3. where they are many and there is no interior maximum, climb behind a barrier, and look from the
   edge where it ends for others that are near;
4. then, and where rows are not many or some far off, start from the corners of the domain as well
   (:func:`corners`): along the axes of the information, both ways, until just short of the edge;
   from nearly null, and the flattest axes from the interior maximum or the split too, with less of
   a barrier, which hides shallow maxima;
5. all starts race (:func:`race`): each climbs behind a barrier, whose weight vanishes in stages,
   all together; a climb that leads to where another has been ends, and so does one that lies lower
   than the best by more than the barrier can still cost, on its way along a wall too;
6. where rows are few for the number of components, maxima are many and shallow: the first is never
   the last, and there, as where rows are far off, a second race begins where one component stands
   out from nearly null (:func:`spikes`), by up to a hundred times the split.

For ML an interior stationary point is preferred to the edge, where the likelihood grows without
limit as the noise floor goes to zero: its starts climb without a barrier first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from .kernels import (
    INFORMATION,
    VALUE,
    cholesky,
    cholesky_solve,
    copy,
    empty,
    evaluate,
    move,
    zeros,
)
from .lanes import aligned, load, store
from .model import LANES
from .optimize import (
    EDGE,
    INFEASIBLE,
    INTERIOR,
    MERGED,
    STALLED,
    Known,
    Problem,
    Work,
    _direction,
    holds,
    is_inside,
    newton,
    objective,
)
from .options import called, kept

_TOLERANCE = 1e-13  # squared Newton decrement: the log-likelihood is this close to its maximum
_PATIENCE = 3  # steps cut short by the domain before a climb turns to the edge
_CLEAR = 1.5  # standard errors of room that make an interior maximum the maximum
_FAR_OFF = 2.0  # times that: an edge so far off is not looked for
_OFF = 5.0, 4.0  # standard deviations by which a row is far off, at the end of a climb that was
_LONG_CLIMB = 12  # shorter, or longer than so many evaluations
_FALLS = 0.15  # by which the log-likelihood is lower there: 1.1 by the curvature at the maximum
_SAME = 1e-2  # squared distance in standard errors at which two interior maxima are one
_BARRIER = 0.1  # weights of the barrier: first, last, what is on the edge (the rest is rounding)
_BARRIER_END = 1e-8
_BARRIER_ENOUGH = 1e-6
_FIRST = np.zeros(1), np.full(1, _BARRIER)
_NEXT = 0.1  # weight of a stage in units of that before
_REACH = (0.95, 0.8, 0.0)  # shares of the way expected of a stage from where it begins
_SETTLE = 0.03  # squared Newton decrement of a stage, in units of its weight
_LONG = 5  # climbs of one stage: a walk along a curved wall is long
_BEHIND = 3.0  # what a barrier of weight one costs at most, per component
_NEARLY_NULL = 0.02  # of the variance split
_SHORT = 0.97  # of the way to the edge where a start lies
_FAR = 200.0  # units of a tenth of the split, where there is no edge
_TRADED = 3  # variances that can stand in for each other
_FEW_ROWS, _MANY_ROWS, _SOME_ROWS = 10, 25, 50  # for each component
_FLAT = 6  # starts along the flattest axes of the first end, with less of a barrier
_STANDS_OUT = (1.0, 10.0, 100.0)  # times the split
_LITTLE = 0.01 * _BARRIER  # where a climb begins just short of a near edge
_ON_EDGE, _OFF_EDGE = 1e-5, 0.02  # weight that holds steps along an edge, and share of the way off
_ROUGH = 0.1  # relative accuracy of the way to the edge
_NO_SIZE = 1e-7  # of the largest root of an information: the rounding of a zero
_CONFOUNDED = 1e-10  # smallest eigenvalue of the correlation matrix of the information


GO_ON, STOP, EDGES, SIDES = 0, 1, 2, 3
"""What a climb without a barrier does on the edge: go on behind one; stop; stop, and look around
the end for near edges, or from an interior one for sides too where likelihood is hardly lower."""


class Found(NamedTuple):
    """Best end of a search.

    How it ended, components (K,), log-likelihood, squared decrement, evaluations with derivatives,
    starts.
    """

    status: int
    theta: np.ndarray
    llf: float
    decrement: float
    evaluations: int
    starts: int


@called
def _nothing_known(count, K):
    return Known(
        empty((count, K)), empty((count, K, K)), np.zeros(1, np.int64), np.full(1, _SAME),
        np.full(1, -math.inf),
    )  # fmt: skip


@called
def _copy_matrix(out, a):
    for j in range(len(out)):
        copy(out[j], a[j])


@called
def _add(known, theta, info):
    s = known.number[0]
    copy(known.theta[s], theta)
    _copy_matrix(known.info[s], info)
    known.number[0] = s + 1


@called
def _profiles(theta, wk):
    """Steps (2 K, K) along the components' profiles up to where a maximum is clear of the edge.

    Up, then down.  And whether there are profiles: not where the information is singular.
    """
    K = len(theta)
    steps = zeros((2 * K, K))
    _copy_matrix(wk.chol, wk.info)
    definite = cholesky(wk.chol, K)
    for k in range(K):
        steps[k, k] = 1.0
        if definite:
            cholesky_solve(wk.chol, K, steps[k])
        size = _CLEAR / math.sqrt(steps[k, k])
        for j in range(K):
            steps[k, j] *= size
            steps[K + k, j] = -steps[k, j]
    return definite, steps


@called
def _some_far_off(pr, off, wk):
    """Whether some row is `off` standard deviations, by the factors and fixed effects in `wk`."""
    b = pr.blocks
    R, p = b.R, b.p
    beyond, own = aligned(LANES), aligned(LANES)
    for t in range(len(pr.y)):
        for a in range(pr.y.shape[1]):
            rest, variance = load(pr.y, (t, a)), load(pr.nu, (t, a))
            for f in range(R):
                weight = load(b.design, (t, f, a))
                variance += wk.phi[f] * weight * weight
            for j in range(p):
                rest -= wk.beta[j] * load(b.design, (t, R + j, a))
            if b.level.shape[1] > 0:
                store(own, 0, variance)
                for lane in range(LANES):
                    for k in range(b.level.shape[1]):
                        level = b.level[t * LANES + lane, k]
                        if level >= 0:
                            weight = b.design[t, R + p + k, a, lane]
                            size = wk.phi[R + b.level_comp[level]]
                            own[lane] += size * weight * weight
                variance = load(own, 0)
            store(beyond, 0, rest * rest - off * off * variance)
            for lane in range(LANES):
                if beyond[lane] > 0.0 and pr.active[t * LANES + lane]:
                    return True
    return False


@called
def _feasible(pr, theta, wk):
    """Whether theta lies inside the domain."""
    for k in range(len(theta)):
        if theta[k] < pr.lower[k]:
            return False
    return is_inside(pr, theta, wk)


@called
def _has_room(pr, theta, size, steps, wk):
    """Whether the domain holds `size` times any of the steps (M, K) from theta.

    Covariances grow with every factor: what holds at the least of each does so everywhere.
    """
    K = len(theta)
    for s in range(len(steps)):
        for k in range(K):
            if not theta[k] + size * steps[s, k] >= pr.lower[k]:
                return False
    for f in range(pr.cS.shape[1]):
        here, least = 0.0, 0.0
        for k in range(K):
            here += pr.cS[k, f] * theta[k]
        for s in range(len(steps)):
            along = 0.0
            for k in range(K):
                along += pr.cS[k, f] * steps[s, k]
            least = min(least, along)
        wk.cphi[f] = here + size * least
    return holds(pr, wk)


@called
def _outside(pr, theta, steps, wk):
    """Those of the steps (M, K) from theta that end outside, moved to the front of `steps`."""
    M, first, count = 0, 0, max(len(steps) // 2, 1)
    while first < len(steps):
        last = min(first + count, len(steps))
        if count > 1:
            if _has_room(pr, theta, 1.0, steps[first:last], wk):
                first = last
            else:
                count //= 2
            continue
        move(wk.trial, theta, 1.0, steps[first])
        if not _feasible(pr, wk.trial, wk):
            copy(steps[M], steps[first])
            M += 1
        first = last
    return steps[:M]


@called
def _open_sides(pr, theta, llf, look, wk):
    """Steps (M, K) from an interior maximum that end outside, or where likelihood is hardly lower.

    They go along the components' profiles, both ways, by as many standard errors; there are none
    where the edge is far off.  Where there are bounds only, one that is near is where to look; the
    likelihood need fall by as much less as it is nearer.  To look for EDGES is to ask only whether
    steps end outside.
    """
    K = len(theta)
    walled = len(pr.cactive) > 0
    definite, steps = _profiles(theta, wk)
    if definite and look == EDGES:
        return _outside(pr, theta, steps, wk)
    if definite and walled and _has_room(pr, theta, _FAR_OFF, steps, wk):
        return steps[:0]
    M = 0
    for s in range(len(steps)):
        move(wk.trial, theta, 1.0, steps[s])
        share = 1.0
        if not walled:
            asked = steps[s, s % K]
            for j in range(K):
                wk.trial[j] = max(wk.trial[j], pr.lower[j])
            share = (wk.trial[s % K] - theta[s % K]) / asked
            if definite and share == 0.0:
                continue
        move(steps[M], wk.trial, -1.0, theta)
        around = objective(pr, wk.trial, 0.0, VALUE, wk)[1]
        lower = -math.inf < around <= llf - share * share * _FALLS
        if not (definite and lower):
            M += 1
    return steps[:M]


@kept
def towards_edge(pr, base, steps, share, wk):
    """steps (D, K) <- base + `share` of the way that each step can go inside the domain."""
    for s in range(len(steps)):
        inside, outside, length = 0.0, math.inf, 1.0
        while outside - inside > _ROUGH * outside or outside == math.inf:
            move(wk.trial, base, length, steps[s])
            if _feasible(pr, wk.trial, wk):
                inside = length
            else:
                outside = length
            if inside >= _FAR or outside < 1e-12:
                break
            length = 2.0 * inside if outside == math.inf else 0.5 * (inside + outside)
        move(steps[s], base, share * inside, steps[s])


@called
def _leading_elsewhere(pr, base, sides, mu, known, wk):
    """Starts (M, K) just short of the edge from `base` along `sides`, and evaluations.

    But for those that lead to a point `known`, behind a barrier of weight mu.
    """
    towards_edge(pr, base, sides, _SHORT, wk)
    M, total, tolerance = 0, 0, max(_TOLERANCE, _SETTLE * mu)
    ahead = empty(len(base))
    for s in range(len(sides)):
        copy(ahead, sides[s])
        copy(sides[M], ahead)
        status, _, _, n_eval = newton(pr, ahead, mu, tolerance, wk, _PATIENCE, known)
        total += n_eval
        if status != MERGED and status != INFEASIBLE:
            M += 1
    return sides[:M], total


@register_jitable
def _is_better(status, llf, best, best_llf, prefer_interior):
    """Whether an end takes the place of the best one so far."""
    if status == INFEASIBLE or best == INFEASIBLE:
        return status != INFEASIBLE
    if prefer_interior and (status == INTERIOR) != (best == INTERIOR):
        return status == INTERIOR
    return llf > best_llf + 1e-9 * (1.0 + abs(llf))


@called
def _tangent(pr, theta, wk, out):
    """Way (K,) from the end of a stage to that of the next, by the derivatives in `wk`, if any."""
    for k in range(len(theta)):
        own = 0.0
        for f in range(pr.S.shape[1]):
            own += pr.S[k, f] * wk.score[f]
        wk.grad[k] = (1.0 - _NEXT) * own + _NEXT * wk.grad[k]
    for matrix in (wk.observed, wk.info):
        if _direction(pr.lower, theta, matrix, wk.grad, wk.chol, wk.step, wk.held) >= 0.0:
            copy(out, wk.step)
            return


@kept
def race(pr, starts, weights, prefer_interior, look, theta, wk):
    """Climb from all starts to the best end, `theta` (K,) out.

    Parameters
    ----------
    starts : (S, K); weights : (S,)
        Barrier with which each start begins; 0 climbs without one until the edge stops it.
    prefer_interior : bool
    look : int
        GO_ON, STOP, EDGES or SIDES.

    Returns
    -------
    (status, log-likelihood, squared decrement, evaluations, starts used, (M, K), far); the (M, K)
    are open sides, or starts near other EDGES that do not lead back to `theta`; far: whether some
    row is far off there, where rows are many; `wk` holds fixed effects and information at `theta`
    """
    S, K = starts.shape
    walled = len(pr.cactive) > 0
    tops = _nothing_known(2 * S, K)
    best, best_llf, best_decrement = INFEASIBLE, -math.inf, math.inf
    path, onward = starts.copy(), zeros((S, K))
    llfs, begin = np.full(S, -math.inf), weights.copy()
    age, alive = np.zeros(S, np.int64), np.zeros(S, np.bool_)
    reached, decrements = np.full(S, math.inf), np.full(S, math.inf)
    ahead = empty(K)
    total, used = 0, 0
    for s in range(S):
        alive[s] = weights[s] > 0.0 and walled
        if alive[s]:
            continue
        copy(ahead, starts[s])
        status, llf, decrement, n_eval = newton(pr, ahead, 0.0, _TOLERANCE, wk, _PATIENCE, tops)
        total += n_eval
        if status == INFEASIBLE:
            continue
        used += 1
        if status == INTERIOR:
            _add(tops, ahead, wk.info)
            if best == INFEASIBLE or llf > best_llf:
                best, best_llf, best_decrement = status, llf, decrement
                copy(theta, ahead)
        elif status != MERGED:
            alive[s] = True
            begin[s] = _BARRIER
    enough = prefer_interior and best == INTERIOR
    for s in range(S):
        alive[s] = alive[s] and not (enough or (look > GO_ON and weights[s] == 0.0))
    mu = _BARRIER
    while mu > 0.5 * _BARRIER_END:
        some = False
        for s in range(S):
            some = some or alive[s]
        if not some:
            break
        leader = best_llf
        settled = _nothing_known(S, K)
        settled.near[0] = mu
        for s in range(S):
            if not alive[s] or begin[s] < 0.5 * mu:
                continue
            status, llf, decrement, behind = INFEASIBLE, -math.inf, math.inf, False
            settled.least[0] = -math.inf if prefer_interior else leader - _BEHIND * K * mu
            for reach in _REACH:
                if reach > 0.0 and age[s] < (1 if look == EDGES else 2):
                    continue
                for k in range(K):
                    ahead[k] = max(path[s, k] + reach * onward[s, k], pr.lower[k])
                for _ in range(_LONG):
                    status, llf, decrement, n_eval = newton(
                        pr, ahead, mu, _SETTLE * mu, wk, _PATIENCE, settled
                    )
                    total += n_eval
                    behind = llf < settled.least[0]
                    if status != STALLED or behind:
                        break
                if status != INFEASIBLE:
                    break
            alive[s] = status != INFEASIBLE and status != MERGED
            alive[s] = alive[s] and not (status == STALLED and behind)
            if age[s] == 0 and status != INFEASIBLE:
                used += 1
            if not alive[s]:
                continue
            age[s] += 1
            for k in range(K):
                onward[s, k] = _NEXT * (ahead[k] - path[s, k])
            copy(path[s], ahead)
            llfs[s] = llf
            leader = max(leader, llf)
            if status == INTERIOR:
                reached[s], decrements[s] = mu, decrement
                _add(settled, ahead, wk.info)
                if look == EDGES:  # where rows are few derivatives say no more than the last stage
                    _tangent(pr, ahead, wk, onward[s])
        if mu < 0.5 * _BARRIER and not prefer_interior:
            for s in range(S):
                if alive[s] and llfs[s] < leader - _BEHIND * K * mu and begin[s] > 0.5 * mu:
                    alive[s] = False
        mu *= _NEXT
    for s in range(S):
        if not alive[s]:
            continue
        # where no wall holds the end of the path, one more climb finishes in the interior
        copy(ahead, path[s])
        status, llf, decrement, n_eval = newton(pr, ahead, 0.0, _TOLERANCE, wk, 2, tops)
        total += n_eval
        if status == MERGED:
            continue
        if status == INTERIOR:
            _add(tops, ahead, wk.info)
        else:
            copy(ahead, path[s])
            llf, decrement = llfs[s], decrements[s]
            status = EDGE if reached[s] < 2.0 * _BARRIER_ENOUGH else STALLED  # to rounding
        if _is_better(status, llf, best, best_llf, prefer_interior):
            best, best_llf, best_decrement = status, llf, decrement
            copy(theta, ahead)
    sides = zeros((0, K))
    if best != INFEASIBLE and not (S == 1 and look > GO_ON and best == INTERIOR):
        objective(pr, theta, 0.0, INFORMATION, wk)  # the last climb need not be the best
    off = _OFF[0] if total < _LONG_CLIMB else _OFF[1]
    far = look in (STOP, EDGES) and best != INFEASIBLE and _some_far_off(pr, off, wk)
    if (look > STOP and best == INTERIOR) or (look == EDGES and best == EDGE):
        info, observed = wk.info.copy(), wk.observed.copy()
        beta, gram = wk.beta.copy(), wk.gram.copy()
        mu = 0.0
        copy(ahead, theta)
        if best == EDGE:
            _add(tops, theta, info)
            objective(pr, theta, _ON_EDGE, INFORMATION, wk)
            for k in range(K):
                ahead[k] += _OFF_EDGE * (starts[0, k] - theta[k])
            mu = _LITTLE
        sides = _open_sides(pr, ahead, best_llf, look, wk)
        if look == EDGES and len(sides) > 0:
            sides, n_eval = _leading_elsewhere(pr, ahead, sides, mu, tops, wk)
            total += n_eval
        _copy_matrix(wk.info, info)
        _copy_matrix(wk.observed, observed)
        copy(wk.beta, beta)
        _copy_matrix(wk.gram, gram)
    return best, best_llf, best_decrement, total, used, sides, far


@kept
def singular(information):
    """Whether components with this information (K, K) are confounded, whatever their scales."""
    K = len(information)
    size, correlation, largest = empty(K), empty((K, K)), 0.0
    for k in range(K):
        size[k] = math.sqrt(max(information[k, k], 0.0))
        largest = max(largest, size[k])
    for k in range(K):
        if not size[k] > _NO_SIZE * largest:
            return True
        for j in range(k):
            correlation[k, j] = information[k, j] / (size[k] * size[j])
        correlation[k, k] = 1.0 - _CONFOUNDED
    return not cholesky(correlation, K)


def corners(pr: Problem, base: np.ndarray, unit: float, wk: Work) -> np.ndarray:
    """Starts just short of the edge (2 K, K), from `base` along the axes of the information there.

    The flattest axes come first.
    """
    evaluate(
        pr.kernel, pr.S.T @ base, pr.y, pr.nu, pr.blocks, pr.active, pr.reml, INFORMATION,
        wk.score, wk.average, wk.expected, wk.beta, wk.gram,
    )  # fmt: skip
    # numpy keeps the order of a transpose, for which all would be compiled once more
    axes = np.ascontiguousarray(np.linalg.eigh(pr.S @ wk.expected @ pr.S.T)[1].T) * unit
    starts = np.stack([axes, -axes], axis=1).reshape(-1, len(base))
    towards_edge(pr, base, starts, _SHORT, wk)
    return starts


def spikes(null: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Starts (3 K, K) where one component stands out."""
    unit = np.abs(middle).max()
    return np.vstack([null + size * unit * np.eye(len(null)) for size in _STANDS_OUT])


def climb(pr: Problem, start: np.ndarray, wk: Work) -> Found:
    """From one feasible start to a maximum, along the edge where it must."""
    return best_of(pr, start[None], np.zeros(1), False, wk)


def best_of(
    pr: Problem, starts: np.ndarray, weights: np.ndarray, prefer_interior: bool, wk: Work
) -> Found:
    """The best end of climbs from starts (S, K), see :func:`race`."""
    theta = np.full(starts.shape[1], math.nan)
    status, llf, decrement, total, used, _, _ = race(
        pr, starts, weights, prefer_interior, GO_ON, theta, wk
    )
    return Found(status, theta, llf, decrement, total, used)


def search(
    pr: Problem,
    start: np.ndarray,
    middle: np.ndarray,
    prefer_interior: bool,
    rows: int,
    wk: Work,
) -> Found:
    """The maximum over the domain; the first climb begins at `start`, `middle` lies well inside.

    `rows` is the number of responses.
    """
    theta = start.copy()
    walled, count = len(pr.cactive) > 0, len(start)
    few_rows, traded = rows < _FEW_ROWS * count, not walled and count >= _TRADED
    many_rows = walled and rows >= _MANY_ROWS * count
    look = SIDES if not many_rows else STOP if prefer_interior else EDGES
    n_eval, status, far = 0, INFEASIBLE, False
    for weights in _FIRST if many_rows else _FIRST[:1]:
        status, llf, decrement, cost, _, sides, far = race(
            pr, start[None], weights, prefer_interior, look, theta, wk
        )
        n_eval += cost
        if status == INTERIOR:
            break
    inside = status == INTERIOR
    if inside:
        found = Found(status, theta, llf, decrement, n_eval, 1)
        if many_rows and not far and len(sides):
            return _or_better(pr, found, sides, np.full(len(sides), _LITTLE), prefer_interior, wk)
        if not (far or len(sides) or few_rows or (traded and rows < _SOME_ROWS * count)):
            return found
    first, null = theta if inside else start, _NEARLY_NULL * middle
    if walled:
        unit = 0.1 * np.abs(middle).max()
        many = corners(pr, null, unit, wk)
        few = corners(pr, theta if inside else middle, unit, wk)[:_FLAT]
    else:  # bounds only: one component at a time stands out
        many, few = null + np.diag(middle - null), null[None]
        if traded:
            many = np.vstack([many, middle - np.diag(middle - null)])  # or all but one
    starts = np.vstack([first, middle, many, few])
    weights = np.repeat([_BARRIER, 0.1 * _BARRIER], [2 + len(many), len(few)])
    weights[0] = 0.0 if inside else _BARRIER
    if prefer_interior:
        weights[: 2 + len(many)] = 0.0
    if look == EDGES:
        starts, weights = np.vstack([starts, sides]), np.append(weights, len(sides) * [_LITTLE])
    found = best_of(pr, starts, weights, prefer_interior, wk)
    found = found._replace(evaluations=found.evaluations + n_eval)
    if few_rows or far:
        starts = spikes(null, middle)
        weights = np.full(len(starts), _BARRIER)
        found = _or_better(pr, found, starts, weights, prefer_interior, wk)
    return found


def _or_better(
    pr: Problem,
    found: Found,
    starts: np.ndarray,
    weights: np.ndarray,
    prefer_interior: bool,
    wk: Work,
) -> Found:
    """`found`, whose fixed effects and information `wk` holds, or a better end of other climbs."""
    there = wk.beta, wk.gram, wk.info, wk.observed
    ours = [part.copy() for part in there]
    other = best_of(pr, starts, weights, prefer_interior, wk)
    best = found
    if _is_better(other.status, other.llf, found.status, found.llf, prefer_interior):
        best = other
    else:
        for part, own in zip(there, ours, strict=True):
            part[:] = own
    total, used = found.evaluations + other.evaluations, found.starts + other.starts
    return best._replace(evaluations=total, starts=used)


def compile_for(problem: Problem, work: Work) -> None:
    """Compile for the types that are always met, into the cache."""
    number, point, points = np.float64(), np.zeros(1), np.zeros((1, 1))
    for function, arguments in {
        race: (problem, points, point, False, GO_ON, point, work),
        towards_edge: (problem, point, points, number, work),
        singular: (points,),
    }.items():
        function.compile(tuple(map(function.typeof_pyval, arguments)))
