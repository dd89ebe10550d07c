"""The fit of the score test's null: shared variance and random effects, by REML.

Under a given noise w all that the null's variances touch of a donor is what h = H_i 1 and its
levels Z_i span, scaled by w^-1/2: of the rows, turned so that these come first, the others have
variance 1 whatever the variances are.  So the restricted likelihood is, but for a constant, that of
m of these rows a donor, as a rule one, and of the other rows' cross products of [X, y], which are
those of p + 1 rows more.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..engine.domain import Domain, constrain
from ..engine.kernels import INFORMATION, empty, evaluate, fill, kernel_address
from ..engine.lanes import aligned, load, spread, store, total
from ..engine.likelihood import _singular, centre, make_problem
from ..engine.model import LANES, Model, in_lanes
from ..engine.optimize import INFEASIBLE, Problem, make_work
from ..engine.options import called, kept
from ..engine.search import search
from ..errors import ConvergenceError
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


def null_design(null: Model, layout: Layout) -> NullDesign:
    """What all responses share; `layout` has all types together as the last column of H."""
    (N, d), p = layout.slot.shape, null.blocks.p
    C = layout.design.shape[1] - d - p - 1
    levels = (layout.component >= 0).sum(axis=1)
    level_ptr = np.append(0, np.cumsum(levels))
    spans = _spans(np.moveaxis(layout.design[:, C : C + 1 + d], 1, 3))
    T, size = -(-(N + p + 1) // LANES), N + p + 1

    def padded(values: np.ndarray, empty: int) -> np.ndarray:
        out = np.full((T * LANES, *values.shape[1:]), empty, dtype=np.int64)
        out[:N] = values
        return out

    level = np.where(layout.slot >= 0, level_ptr[layout.block][:, None] + layout.slot, -1)
    blocks = null.blocks._replace(
        n_rows=padded(np.ones(N), 0),
        block=padded(layout.block, 0),
        level=padded(level, -1),
        level_ptr=level_ptr,
        pair_ptr=np.append(0, np.cumsum(levels**2)),
        level_comp=layout.component[layout.component >= 0],
    )
    nothing = null.with_response(np.zeros(len(null.y)), np.zeros(len(null.y)))
    problem = make_problem(nothing, constrain(null, Domain("nonnegative")), True, 1.0)
    problem = problem._replace(
        kernel=0,  # of this process
        nu=in_lanes(T, 1 + len(spans), value=1.0),
        blocks=blocks,
        active=np.arange(T * LANES) < size,
    )
    return NullDesign(problem, spans, centre(nothing, 1.0), null.nobs)


def _spans(columns: np.ndarray) -> np.ndarray:
    """Numbers of the columns but the first, (..., rows, LANES, k), that others do not span."""
    stack = np.moveaxis(columns, 2, 1).reshape(-1, columns.shape[1], columns.shape[3])
    out, kept = [], [0]
    for k in range(1, stack.shape[2]):
        own, others = stack[:, :, k], stack[:, :, kept]
        rest = own - (others @ (np.linalg.pinv(others) @ own[:, :, None]))[:, :, 0]
        if (np.linalg.norm(rest, axis=1) > _SPANNED * np.linalg.norm(own, axis=1)).any():
            kept.append(k)
            out.append(k - 1)
    return np.array(out, dtype=np.int64)


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


@kept
def _reduced(layout, spans, p, w, y):
    """Columns [h, X, Z] (T, 1 + p + d, m, LANES) and response (T, m, LANES) of the reduced rows."""
    (N, d), n_rows = layout.slot.shape, layout.design.shape[2]
    C = layout.design.shape[1] - d - p - 1
    size, m = 1 + p + d, 1 + len(spans)
    T = -(-(N + p + 1) // LANES)
    columns, response = aligned((T, size, m, LANES)), aligned((T, m, LANES))
    for t in range(T):
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
                weight[row - layout.ptr[i], i - first] = 1.0 / math.sqrt(w[row])
                V[size, row - layout.ptr[i], i - first] = y[row]
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
    return columns, response


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
    template = design.problem
    noise = w / scale**2
    columns, response = _reduced(layout, design.spans, template.blocks.p, noise, y / scale)
    problem = template._replace(
        kernel=kernel_address(), y=response, blocks=template.blocks._replace(design=columns)
    )
    work = make_work(problem)
    middle = max(1.0 - float(np.minimum(noise, 1.0).mean()), 0.1) * design.middle
    found = search(problem, middle, middle, False, design.rows, work)
    if found.status == INFEASIBLE:
        raise ConvergenceError("the null of the score test cannot be fitted")
    if _singular(work.info):
        evaluate(
            problem.kernel, problem.S.T @ middle, response, problem.nu, problem.blocks,
            problem.active, True, INFORMATION, work.score, work.average, work.expected, work.beta,
            work.gram,
        )  # fmt: skip
        if _singular(problem.S @ work.expected @ problem.S.T):
            raise ConvergenceError(
                "variance components cannot be told apart: their information is singular"
            )
    return found.theta * scale**2
