"""The fit of the score test's null: shared variance and random effects, by REML.

Under a given noise w all that the null's variances touch of a donor is what h = H_i 1 and its
levels Z_i span, scaled by w^-1/2: of the rows, turned so that these come first, the others have
variance 1 whatever the variances are.  So the restricted likelihood is, but for a constant, that of
m of these rows a donor, as a rule one, and of the other rows' cross products of [X, y], which are
those of p + 1 rows more.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ..engine.domain import Domain, constrain
from ..engine.kernels import (
    _SIGNATURE,
    INFORMATION,
    VALUE,
    _inverse_root,
    _pair,
    empty,
    evaluate,
    fill,
    profiled,
    zeros,
)
from ..engine.lanes import aligned, load, spread, store, total
from ..engine.likelihood import last_of_thread, make_problem, middle_of
from ..engine.model import LANES, Model, RandomComponent, build_model, in_lanes, refuse_related
from ..engine.optimize import INFEASIBLE, Problem, Work, make_work
from ..engine.options import called, kept, kept_callback
from ..engine.search import search, singular
from ..errors import ConvergenceError
from .cumulants import inverse_of
from .score_sums import Layout, root_of

_SPANNED = 1e-9  # share of a column that is left by others that span it


class NullDesign(NamedTuple):
    """What the fits of the null to all responses of a design share.

    problem: the reduced likelihood, to be completed by the response; spans: the slots of levels,
    (m - 1,), that leave the span of h and of those before them; middle: where the search begins if
    noise is nothing; rows of the responses.
    """

    problem: Problem
    spans: np.ndarray
    middle: np.ndarray
    rows: int


def null_design(model: Model, layout: Layout) -> NullDesign:
    """What all responses share; `layout` has all types together as the last column of H."""
    refuse_related(model)
    (N, d), p = layout.slot.shape, model.blocks.p
    C = layout.design.shape[1] - d - p - 1
    levels = (layout.component >= 0).sum(axis=1)
    level_ptr, pair_ptr = np.zeros((2, len(levels) + 1), dtype=np.int64)
    np.cumsum(levels, out=level_ptr[1:])
    np.cumsum(levels**2, out=pair_ptr[1:])
    spans = _spans(layout.design, C, C + 1 + d)
    T, size = -(-(N + p + 1) // LANES), N + p + 1

    def padded(values: np.ndarray, empty: int) -> np.ndarray:
        out = np.full((T * LANES, *values.shape[1:]), empty, dtype=np.int64)
        out[:N] = values
        return out

    level = np.where(layout.slot >= 0, level_ptr[layout.block][:, None] + layout.slot, -1)
    template, middle = _template(C, len(model.random))
    problem = template._replace(
        nu=in_lanes(T, 1 + len(spans), value=1.0),
        blocks=template.blocks._replace(
            p=p,
            n_rows=padded(np.ones(N), 0),
            block=padded(layout.block, 0),
            level=padded(level, -1),
            level_ptr=level_ptr,
            pair_ptr=pair_ptr,
            level_comp=layout.component[layout.component >= 0],
        ),
        active=np.arange(T * LANES) < size,
    )
    return NullDesign(problem, spans, middle, model.nobs)


@functools.lru_cache(maxsize=16)
def _template(C: int, n_random: int) -> tuple[Problem, np.ndarray]:
    """Problem and middle of the nulls of C types with random effects, but for their rows."""
    H, donor, ones = np.tile(np.eye(C), (2, 1)), np.repeat([0, 1], C), np.ones(2 * C)
    random = [RandomComponent(donor, ones)] * n_random
    null = build_model(ones, ones, ones[:, None], H, donor, np.ones((1, C, C)), random)
    constraint = constrain(null, Domain("nonnegative"))
    return make_problem(null, constraint, True, 1.0, kernel=0), middle_of(null)


@called
def _orthonormal(basis, u):
    """Column u of basis (m, rows, LANES) made orthonormal to those before it, or zeros."""
    rows = basis.shape[1]
    lengths = aligned((2, LANES))
    for again in range(3):
        length = spread(0.0)
        for a in range(rows):
            length += load(basis, (u, a)) * load(basis, (u, a))
        store(lengths, min(again, 1), length)
        if again == 2:
            break
        for v in range(u):
            along = spread(0.0)
            for a in range(rows):
                along += load(basis, (v, a)) * load(basis, (u, a))
            for a in range(rows):
                store(basis, (u, a), load(basis, (u, a)) - along * load(basis, (v, a)))
    for i in range(LANES):
        there = lengths[1, i] > _SPANNED**2 * lengths[0, i]
        lengths[1, i] = 1.0 / math.sqrt(lengths[1, i]) if there else 0.0
    for a in range(rows):
        store(basis, (u, a), load(basis, (u, a)) * load(lengths, 1))


def _spans(design: np.ndarray, first: int = 0, stop: int | None = None) -> np.ndarray:
    """Numbers of columns after the `first` that those before them do not span.

    Of a design (tiles, k, m, LANES) up to the column `stop`.
    """
    alone = np.zeros((design.shape[1] if stop is None else stop) - first - 1, dtype=np.bool_)
    _find_spans(design, first, alone)
    return np.flatnonzero(alone)


@kept
def _find_spans(design, first, alone):
    """Which columns (d,) after the first of a design in tiles are not spanned by those before."""
    T, rows, d = len(design), design.shape[2], len(alone)
    basis = aligned((1 + d, rows, LANES))
    for t in range(T):
        for u in range(1 + d):
            for a in range(rows):
                store(basis, (u, a), load(design, (t, first + u, a)))
            _orthonormal(basis, u)
            if u > 0:
                size = spread(0.0)
                for a in range(rows):
                    size += load(basis, (u, a)) * load(basis, (u, a))
                alone[u - 1] = alone[u - 1] or total(size) > 0.0


@kept
def reduced(layout, spans, w, y, scale, columns, response):
    """Put [h, X, Z] (T, 1 + p + d, m, LANES) and response (T, m, LANES) of the reduced rows.

    Returns the share of noise, w in units of scale^2 and at most 1, in the variance of a row.
    """
    (N, d), n_rows = layout.slot.shape, layout.design.shape[2]
    size, m, share = columns.shape[1], 1 + len(spans), 0.0
    p = size - 1 - d
    C = layout.design.shape[1] - size
    for t in range(len(columns)):
        for j in range(size):
            fill(columns[t, j], 0.0)
        fill(response[t], 0.0)
    # [h, X, Z, y] of a tile, and what of [X, y] is left of all of them
    V, basis = aligned((size + 1, n_rows, LANES)), aligned((m, n_rows, LANES))
    weight = aligned((n_rows, LANES))
    left = aligned(((p + 1) * (p + 2) // 2, LANES))
    fill(left, 0.0)
    for t in range(len(layout.design)):
        first, stop = t * LANES, min(t * LANES + LANES, N)
        fill(weight, 0.0)
        fill(V[size], 0.0)
        for i in range(first, stop):
            for row in range(layout.ptr[i], layout.ptr[i + 1]):
                weight[row - layout.ptr[i], i - first] = scale / math.sqrt(w[row])
                V[size, row - layout.ptr[i], i - first] = y[row] / scale
                share += min(w[row] / scale**2, 1.0)
        for j in range(size):
            at = C if j == 0 else C + d + j if j <= p else C + j - p
            for a in range(n_rows):
                store(V, (j, a), load(layout.design, (t, at, a)) * load(weight, a))
        for a in range(n_rows):
            store(V, (size, a), load(V, (size, a)) * load(weight, a))
        for u in range(m):
            at = 0 if u == 0 else 1 + p + spans[u - 1]
            for a in range(n_rows):
                store(basis, (u, a), load(V, (at, a)))
            _orthonormal(basis, u)
            for j in range(size + 1):
                along = spread(0.0)
                for a in range(n_rows):
                    along += load(basis, (u, a)) * load(V, (j, a))
                if j < size:
                    store(columns, (t, j, u), along)
                else:
                    store(response, (t, u), along)
                if 1 <= j <= p or j == size:
                    for a in range(n_rows):
                        store(V, (j, a), load(V, (j, a)) - along * load(basis, (u, a)))
        pair = 0
        for j in range(p + 1):
            for k in range(j + 1):
                both = load(left, pair)
                for a in range(n_rows):
                    both += load(V, (1 + j if j < p else size, a)) * load(
                        V, (1 + k if k < p else size, a)
                    )
                store(left, pair, both)
                pair += 1
    gram, root = empty((p + 1, p + 1)), empty((p + 1, p + 1))
    pair = 0
    for j in range(p + 1):
        for k in range(j + 1):
            gram[j, k] = gram[k, j] = total(load(left, pair))
            pair += 1
    root_of(gram, root)
    for k in range(p + 1):
        t, lane = (N + k) // LANES, (N + k) % LANES
        for j in range(k, p):
            columns[t, 1 + j, 0, lane] = root[j, k]
        response[t, 0, lane] = root[p, k]
    return share / len(w)


def _restricted(
    phi, y, nu, blocks, active, reml, depth, score, average, expected, beta, gram, moves
):
    """Restricted log-likelihood of reduced rows, but for a constant, with score and information.

    As the kernel of other likelihoods (:mod:`ctmm_formula.engine.kernels`), whose arguments and
    notation these are, but faster by what is special: the noise is 1, only the first row of a
    donor has h, so that covariances within donors are diagonal, and components are >= 0.
    """
    p, d = blocks.p, blocks.level.shape[1]
    T, m = len(y), y.shape[1]
    p1, z0, F, levels = p + 1, 1 + p, len(phi), len(blocks.level_comp)
    most = 0
    for b in range(len(blocks.level_ptr) - 1):
        most = max(most, blocks.level_ptr[b + 1] - blocks.level_ptr[b])
    ZV, KZV, M, K = (
        zeros((levels, p1)), zeros((levels, p1)), zeros(blocks.pair_ptr[-1]),
        empty(blocks.pair_ptr[-1]),
    )  # fmt: skip
    # -- products of [X y] and of levels ------------------------------------------------------
    pairs = p1 * (p1 + 1) // 2
    sums, own, scaled = aligned((pairs, LANES)), aligned((p1 + d, LANES)), aligned((p1, LANES))
    fill(sums, 0.0)
    logdet, product = 0.0, 1.0
    for t in range(T):
        for a in range(m):
            scale = 1.0 + phi[0] * load(blocks.design, (t, 0, a)) * load(blocks.design, (t, 0, a))
            store(own, 0, scale)
            for i in range(LANES):
                product *= own[0, i]
                if not product < 1e150:
                    logdet += math.log(product)
                    product = 1.0
            scale = 1.0 / scale
            for j in range(p1):
                row = load(blocks.design, (t, 1 + j, a)) if j < p else load(y, (t, a))
                store(own, j, row)
                store(scaled, j, row * scale)
                for k in range(j + 1):
                    at = j * (j + 1) // 2 + k
                    store(sums, at, load(sums, at) + load(scaled, j) * load(own, k))
            for e in range(d):
                z = load(blocks.design, (t, z0 + e, a)) * scale
                for j in range(p1 + d):
                    other = load(own, j) if j < p1 else load(blocks.design, (t, z0 + j - p1, a))
                    store(own if j >= p1 else scaled, j, z * other)
                for i in range(LANES):
                    level = blocks.level[t * LANES + i, e]
                    if level < 0:
                        continue
                    for j in range(p1):
                        ZV[level, j] += scaled[j, i]
                    pair = _pair(blocks, t * LANES + i, level)
                    for r in range(d):
                        if blocks.level[t * LANES + i, r] >= 0:
                            M[pair + blocks.level[t * LANES + i, r]] += own[p1 + r, i]
    logdet += math.log(product)
    for j in range(p1):
        for k in range(j + 1):
            gram[j, k] = total(load(sums, j * (j + 1) // 2 + k))
    for b in range(len(blocks.level_ptr) - 1):
        l0, start = blocks.level_ptr[b], blocks.pair_ptr[b]
        q = blocks.level_ptr[b + 1] - l0
        if q == 0:
            continue
        inner = empty((q, q))
        for x in range(q):
            g = phi[1 + blocks.level_comp[l0 + x]]
            for w in range(q):
                inner[x, w] = g * M[start + x * q + w] + (1.0 if x == w else 0.0)
        inverse, size, _ = inverse_of(inner)
        logdet += size
        for x in range(q):
            for w in range(q):
                each = inverse[x, w] * phi[1 + blocks.level_comp[l0 + w]]
                K[start + x * q + w] = each
                for j in range(p1):
                    KZV[l0 + x, j] += each * ZV[l0 + w, j]
    for x in range(levels):
        for j in range(p1):
            for k in range(j + 1):
                gram[j, k] -= ZV[x, j] * KZV[x, k]
    definite, ypy = profiled(gram)
    if not definite:
        return -math.inf
    for j in range(p):
        logdet += 2.0 * math.log(gram[j, j])
    value = -0.5 * (logdet + ypy)
    if depth == VALUE:
        return value
    # -- h'P y, h'P h and what joins donors, for h and for levels ------------------------------
    turn = empty((p, p))
    _inverse_root(gram, p, turn)
    fill(average, 0.0)
    fill(expected, 0.0)
    for f in range(F):
        score[f] = 0.0
    near, near_K = aligned((d, p1, LANES)), aligned((d, d, LANES))
    gz, v = aligned((d, LANES)), zeros(levels)
    LL, LX = zeros(blocks.pair_ptr[-1]), zeros((levels, p))
    square, along_x = aligned((p * p1 // 2, LANES)), aligned((p, LANES))
    x = aligned((p, LANES))
    fill(square, 0.0)
    fill(along_x, 0.0)
    first, second, third = spread(0.0), spread(0.0), spread(0.0)
    for t in range(T):
        for e in range(d):
            for i in range(LANES):
                level = blocks.level[t * LANES + i, e]
                pair = _pair(blocks, t * LANES + i, level)
                for j in range(p1):
                    near[e, j, i] = KZV[level, j] if level >= 0 else 0.0
                for r in range(d):
                    other = blocks.level[t * LANES + i, r]
                    near_K[e, r, i] = K[pair + other] if level >= 0 and other >= 0 else 0.0
        h = load(blocks.design, (t, 0, 0))
        g = h / (1.0 + phi[0] * h * h)
        for e in range(d):
            store(gz, e, g * load(blocks.design, (t, z0 + e, 0)))
        for j in range(p1):
            rest = g * (load(blocks.design, (t, 1 + j, 0)) if j < p else load(y, (t, 0)))
            for e in range(d):
                rest -= load(gz, e) * load(near, (e, j))
            store(own, j, rest)
        tau, through = load(own, p), spread(0.0)
        for j in range(p):
            rest = spread(0.0)
            for k in range(j + 1):
                rest += turn[k, j] * load(own, k)
            store(x, j, rest)
            tau -= rest * gram[p, j]
            through += rest * rest
        for e in range(d):
            for r in range(d):
                through += load(gz, e) * load(near_K, (e, r)) * load(gz, r)
        for j in range(p):
            store(along_x, j, load(along_x, j) + tau * load(x, j))
            for k in range(j + 1):
                at = j * (j + 1) // 2 + k
                store(square, at, load(square, at) + load(x, j) * load(x, k))
        own_h = g * h
        first += tau * tau - own_h + through
        second += tau * tau * own_h
        third += own_h * (own_h - 2.0 * through)
        store(own, 0, tau)
        for i in range(LANES):
            for e in range(d):
                level = blocks.level[t * LANES + i, e]
                if level < 0:
                    continue
                v[level] += own[0, i] * gz[e, i]
                for j in range(p):
                    LX[level, j] += gz[e, i] * x[j, i]
                pair = _pair(blocks, t * LANES + i, level)
                for r in range(d):
                    if blocks.level[t * LANES + i, r] >= 0:
                        LL[pair + blocks.level[t * LANES + i, r]] += gz[e, i] * gz[r, i]
    score[0], average[0, 0], expected[0, 0] = total(first), total(second), total(third)
    XX = zeros((F, p, p))
    fill(moves, 0.0)
    for j in range(p):
        moves[0, j] = total(load(along_x, j))
        for k in range(j + 1):
            XX[0, j, k] = XX[0, k, j] = total(load(square, j * (j + 1) // 2 + k))
    N, whole, left, tau_z = empty((most, most)), empty((most, most)), empty((most, p)), empty(most)
    for b in range(len(blocks.level_ptr) - 1):
        l0, start = blocks.level_ptr[b], blocks.pair_ptr[b]
        q = blocks.level_ptr[b + 1] - l0
        for k in range(q):
            for r in range(q):
                N[k, r] = 1.0 if k == r else 0.0
                for w in range(q):
                    N[k, r] -= M[start + k * q + w] * K[start + w * q + r]
        for k in range(q):
            for r in range(q):
                whole[k, r] = 0.0
                for w in range(q):
                    whole[k, r] += N[k, w] * M[start + w * q + r]
            tau_z[k] = 0.0
            for r in range(q):
                tau_z[k] += N[k, r] * ZV[l0 + r, p]
            for j in range(p):
                left[k, j] = 0.0
                for r in range(q):
                    for w in range(j + 1):
                        left[k, j] += N[k, r] * ZV[l0 + r, w] * turn[w, j]
                tau_z[k] -= left[k, j] * gram[p, j]
        for k in range(q):
            f = 1 + blocks.level_comp[l0 + k]
            score[f] += tau_z[k] * tau_z[k] - whole[k, k]
            for j in range(p):
                score[f] += left[k, j] * left[k, j]
                moves[f, j] += tau_z[k] * left[k, j]
                for r in range(p):
                    XX[f, j, r] += left[k, j] * left[k, r]
            for r in range(q):
                e, through = 1 + blocks.level_comp[l0 + r], 0.0
                for j in range(p):
                    through += left[k, j] * left[r, j]
                average[f, e] += tau_z[k] * whole[k, r] * tau_z[r]
                expected[f, e] += whole[k, r] * (whole[k, r] - 2.0 * through)
                average[f, 0] += tau_z[k] * N[k, r] * v[l0 + r]
                average[0, 0] -= v[l0 + k] * K[start + k * q + r] * v[l0 + r]
                along = 0.0
                for w in range(q):
                    along += LL[start + r * q + w] * N[k, w]
                for j in range(p):
                    along -= 2.0 * LX[l0 + r, j] * left[k, j]
                expected[f, 0] += N[k, r] * along
                into = 0.0
                for j in range(p):
                    into += LX[l0 + k, j] * LX[l0 + r, j]
                expected[0, 0] += 2.0 * K[start + k * q + r] * into
        for k in range(q):
            for r in range(q):
                there = back = 0.0
                for w in range(q):
                    there += K[start + k * q + w] * LL[start + w * q + r]
                    back += K[start + r * q + w] * LL[start + w * q + k]
                expected[0, 0] += there * back
    for f in range(F):
        score[f] *= 0.5
        for e in range(f + 1):
            for j in range(p):
                average[f, e] -= moves[f, j] * moves[e, j]
                for k in range(p):
                    expected[f, e] += XX[f, j, k] * XX[e, j, k]
            average[f, e] *= 0.5
            expected[f, e] *= 0.5
            average[e, f], expected[e, f] = average[f, e], expected[f, e]
    return value


@functools.cache
def reduced_kernel() -> int:
    """Address of the compiled :func:`_restricted`, for the search."""
    return kept_callback(_SIGNATURE, _restricted).address


@last_of_thread
def room_of(design: NullDesign) -> tuple[Problem, Work]:
    """The likelihood of a null and its buffers, for one response after the other."""
    problem, (T, m, _) = design.problem, design.problem.nu.shape
    columns = in_lanes(T, 1 + problem.blocks.p + problem.blocks.level.shape[1], m)
    blocks = problem.blocks._replace(design=columns)
    problem = problem._replace(kernel=reduced_kernel(), y=in_lanes(T, m), blocks=blocks)
    return problem, make_work(problem)


def fit_null(
    design: NullDesign, layout: Layout, w: np.ndarray, y: np.ndarray, scale: float
) -> np.ndarray:
    """Variance components (1 + Kr,) of the null under noise w (n,), by row of the layout.

    `y` (n,) are residuals of standard deviation `scale`.

    Raises
    ------
    ConvergenceError
        There is no fit, or variance components cannot be told apart.
    """
    problem, work = room_of(design)
    noise = reduced(layout, design.spans, w, y, scale, problem.blocks.design, problem.y)
    middle = max(1.0 - noise, 0.1) * design.middle
    found = search(problem, middle, middle, False, design.rows, work)
    if found.status == INFEASIBLE:
        raise ConvergenceError("the null of the score test cannot be fitted")
    if singular(work.info):
        evaluate(
            problem.kernel, problem.S.T @ middle, problem.y, problem.nu, problem.blocks,
            problem.active, True, INFORMATION, work.score, work.average, work.expected, work.beta,
            work.gram,
        )  # fmt: skip
        if singular(problem.S @ work.expected @ problem.S.T):
            raise ConvergenceError(
                "variance components cannot be told apart: their information is singular"
            )
    return found.theta * scale**2
