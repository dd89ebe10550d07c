"""Noise-robust score test of V = 0 from the null fit alone.

LRT and Wald weight the data by the measured noise nu and are inflated by its errors; here the
weights are independent of those errors and nu itself, which is unbiased, only centres the
statistic.

1. Working noise w_ic = s_c^2 / n_ic with s_c^2 = mean_i n_ic nu_ic, the variance between cells
   pooled over donors.  The null (shared variance and random effects, all >= 0) is fitted by REML
   under w; P is its projection.
2. For cell type c the efficient score A_c = P (Sigma_c - sum_m a_m Sigma_m) P with
   a = I_mm^-1 I_mc from the Fisher information, and T_c = y'A_c y - tr(A_c Sigma^), Sigma^ the
   null covariance with the measured nu in place of w.
3. Under the null y'A_c y ~ sum_j lambda_j chi2_1, lambda the eigenvalues of
   Sigma^^1/2 A_c Sigma^^1/2; upper tail by :func:`ctmm_formula.inference.tails.tail`.
4. Sigma^ holds nu where the law needs its square: E nu^2 is above the square of the true noise,
   and far above where few cells of a pair have counts, so that the test would never reject there.
   Where the squares are estimated without bias (nu2), T_c is taken in its true standard deviation,
   that of

       2 tr(A Sigma^ A Sigma^) + 2 sum_a A_aa^2 [sigma^4_a n_a / (n_a - 1) - nu_a^2] + moved,

   and the law of 3 gives the shape.  sigma^4 is nu2, or pooled where a pair's own counts would make
   both the score and its variance, and `moved` is what there is as the noise of counts moves with
   the donor's effect (:mod:`ctmm_formula.inference.counted_noise`).

A pair whose cells are all alike has nu = 0, and is centred by it: whatever stood in for it would
put the mean of T_c below zero.

The omnibus test sums A_c over cell types, which is the best where all types have the same V.  A
type in which a gene is low has little noise, so it would weigh most, and little V to show.  Where
the noise is known to be that of cells (nu2) and rises with the types' means, the sum is of
s_c^2 A_c: the best where V goes with the variance between cells, and the same where types are alike
(``tests/benchmarks/count_levels.md``).

No lambda is ever computed: their law comes from eigenvalues of single donors and the elimination of
levels and fixed effects, at a cost linear in N.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from ..engine.beside import compile_like, meanwhile
from ..engine.likelihood import evaluate
from ..engine.model import Model, RandomComponent, build_model
from ..engine.noise import COUNTED, Pooling, one_type_each, weighed
from ..engine.options import kept_exact
from ..errors import CTMMError
from .counted_noise import CountedNoise, counted_noise, moved_variances
from .score_law import Forms, log_combination, tails_of
from .score_null import NullDesign, fit_null, null_design
from .score_sums import (
    Layout,
    Memory,
    Products,
    Solved,
    beyond_squares,
    lay_out,
    memory_for,
    memory_of_thread,
    score_memory,
    scores_of,
    sums_of,
)

ALIKE = 0.9
"""Share of rows without noise (all cells alike) above which there is no test: a handful of counts
that happen to meet in one pair would decide it (``tests/benchmarks/score_counts.md``)."""
LOW = 0.1
"""Variance between cells of a type, in the largest of all types, below which it takes a sum of
scores that is not weighted by it (``tests/benchmarks/count_levels.md``: means of .05 beside 1)."""
ROUNDING = 1e-10  # of the squared size of a direction: what fixed effects leave is rounding


class Part(NamedTuple):
    """Some rows of a model, m of them, for a model of their own.

    Attributes
    ----------
    rows : int ndarray, shape (m,)
    X : ndarray, shape (m, q)
        Orthonormal columns of what the fixed effects are there.
    donor : int ndarray, shape (m,)
        Numbers from 0 without a gap; `donors` are these in the whole model.
    random : list of RandomComponent
        Those with several levels there, and effects that are the same there once.
    """

    rows: np.ndarray
    X: np.ndarray
    donor: np.ndarray
    donors: np.ndarray
    random: list[RandomComponent]


def part_of(model: Model, rows: np.ndarray) -> Part | None:
    """Some rows (m,) of a model; None where they are too few, or of fewer than three donors."""
    donors, donor = np.unique(model.row_donor[rows], return_inverse=True)
    if len(donors) < 3:
        return None
    left, size, _ = np.linalg.svd(model.X[rows], full_matrices=False)
    X = left[:, size > 1e-9 * size[:1].max(initial=0.0)]
    if len(rows) <= X.shape[1] + 2:
        return None
    random = {}
    for codes, values in model.random:
        level = np.unique(codes[rows], return_inverse=True)[1]
        if len(np.unique(level[values[rows] != 0.0])) > 1:
            key = level.tobytes(), values[rows].tobytes()
            random[key] = RandomComponent(level, values[rows])
    return Part(rows, X, donor, donors, list(random.values()))


class ScoreTest(NamedTuple):
    """Result of :func:`score_test`.

    Attributes
    ----------
    statistic : ndarray, shape (C,)
        Centred efficient scores T_c in their null standard deviations.
    pvalue_celltype : ndarray, shape (C,)
        Upper-tail p value per cell type.
    statistic_sum, pvalue_sum : float
        Omnibus, from the sum of the scores.
    pvalue_cauchy : float
        Cauchy combination of `pvalue_sum`, strongest where all cell types vary, with that of the
        cell types, strongest where one does.
    log_pvalue_celltype, log_pvalue_sum, log_pvalue_cauchy
        Their natural logarithms.
    theta_null : ndarray, shape (1 + Kr,)
        Null variance components: shared, then the random effects.
    weights : str
        "n_cells", or "mean noise" where cell counts are missing.
    silent : tuple of int
        Numbers of cell types that are left out, as hardly any of their pairs has noise.
    explained : tuple of int
        Numbers of cell types that are left out, as the fixed effects explain them wholly.
    low : tuple of int
        Numbers of cell types that take the sum from the others, as their cells hardly vary and
        the sum does not go by that.
    cautious : bool
        Whether cells of some pairs of the others are all alike, without unbiased squares.
    """

    statistic: np.ndarray
    pvalue_celltype: np.ndarray
    statistic_sum: float
    pvalue_sum: float
    pvalue_cauchy: float
    log_pvalue_celltype: np.ndarray
    log_pvalue_sum: float
    log_pvalue_cauchy: float
    theta_null: np.ndarray
    weights: str
    silent: tuple[int, ...] = ()
    explained: tuple[int, ...] = ()
    low: tuple[int, ...] = ()
    cautious: bool = False


class Sizes(NamedTuple):
    """Inner products tr(D D') of directions D of all rows (X, X), and of what is left of them.

    By the design alone: whatever the covariance, P D P = 0 where M D M = 0, M = I - X (X'X)^-1 X'.
    What P leaves of it is rounding then, which no share of itself can tell.
    """

    whole: np.ndarray
    left: np.ndarray

    def explained(self, mix: np.ndarray) -> np.ndarray:
        """Whether fixed effects explain a combination of directions, mix (D, X), wholly (D,)."""
        whole, left = (np.einsum("dx,xy,dy->d", mix, part, mix) for part in self)
        return np.asarray(left <= ROUNDING * whole)


def sizes_of(directions: Model, new: np.ndarray) -> Sizes:
    """The sizes of some components of a model (X,): half of them are informations by noise 1."""
    n, at = len(directions.y), np.zeros(len(directions.S))
    unit = directions.with_response(np.zeros(n), np.ones(n))
    by = (evaluate(unit, at, method).expected[np.ix_(new, new)] for method in ("ml", "reml"))
    return Sizes(*by)


class ScoreDesign(NamedTuple):
    """What all responses of a design share; made by :func:`design_of`.

    how the noise is pooled; layout of the compiled sums, with all types together as one more column
    of H; R and rank of the forms, see :class:`~ctmm_formula.inference.score_law.Forms`; types
    (C, m) of the m rows in use, and how many rows of each; whether every row is of one type; the
    fit of the null; explained (C,) whether fixed effects explain a type wholly; weights (C,) of the
    types in a sum that goes by nothing else; numbers of the types `without` any, as they are
    explained; logarithm of p `above` which four digits will do.
    """

    how: Pooling
    layout: Layout
    R: np.ndarray
    rank: np.ndarray
    types: np.ndarray
    counts: np.ndarray
    one_hot: bool
    null: NullDesign
    explained: np.ndarray
    weights: np.ndarray
    without: tuple[int, ...]
    above: float


def design_of(model: Model, above: float = 0.0) -> ScoreDesign:
    """What the score tests of all responses of a model's design share."""
    C = model.H.shape[1]
    layout = lay_out(model, np.hstack([model.H, model.H @ np.ones((C, 1))]))
    used = model.types if model.pooling.whole else model.types[model.pooling.rows]
    explained = _explained(model, layout)
    return ScoreDesign(
        model.pooling, layout, *_forms(C), used.T.copy(), np.ones(len(used)) @ used,
        one_type_each(used), null_design(model, layout), explained, np.where(explained, 0.0, 1.0),
        tuple(np.flatnonzero(explained).tolist()), above,
    )  # fmt: skip


@functools.lru_cache(maxsize=16)
def _forms(C: int) -> tuple[np.ndarray, np.ndarray]:
    """R and rank of the forms of C types and their sum."""
    R, rank, every = np.zeros((C + 1, C, C + 1)), np.append(np.full(C, 2), C), np.arange(C)
    R[every, 0, every] = R[:C, 1, C] = 1.0
    R[C, every, every] = 1.0
    return R, rank


def _explained(model: Model, layout: Layout) -> np.ndarray:
    """Cell types (C,) that fixed effects explain wholly.

    See :class:`Sizes`; the informations are those without any variance but noise 1.
    """
    H = model.H if model.pooling.whole else model.H[layout.rows]
    n, C = H.shape
    if one_type_each(H) and (np.ones(n) @ H).min() > model.blocks.p:
        return np.zeros(C, dtype=bool)  # more rows of every type than fixed effects
    H = model.H[layout.rows]
    components = 1 + len(model.random)
    memory, unit = score_memory(layout, components), (np.ones(n), np.ones(n), np.zeros(n))
    everything = np.zeros(C, dtype=bool), np.ones(C)
    scores_of(layout, np.zeros(components), *unit, *everything, False, memory)
    left = memory.efficient.whole[:C]
    sizes = np.add.reduceat(np.square(H), layout.ptr[:-1])
    return np.asarray(left <= 0.5 * ROUNDING * np.square(sizes).sum(axis=0))


def refuse_alike(nu: np.ndarray) -> None:
    """Measured noise (rows,) of a test by scores must be there in enough of them.

    Raises
    ------
    CTMMError
        Hardly any row has noise (:data:`ALIKE`).
    """
    if len(nu) - np.count_nonzero(nu) > ALIKE * len(nu):
        raise CTMMError(
            f"in more than {ALIKE:.0%} of the pairs all cells are alike: too few counts to test"
        )


def score_test(model: Model, design: ScoreDesign | None = None) -> ScoreTest:
    """Test V = 0 against a cell type-specific variance in any cell type.

    Parameters
    ----------
    model : Model
        Its basis is not used: the null is the shared variance, the directions are E_cc.
    design : ScoreDesign, optional
        :func:`design_of` the model, where many responses share it.

    Raises
    ------
    ConvergenceError
        The null model cannot be fitted.
    CTMMError
        Hardly any row has noise (:data:`ALIKE`).
    """
    C = model.H.shape[1]
    if model.some_alike:
        refuse_alike(model.nu[model.active_rows])
        silent = _silent(model)
        if silent:
            return _without(model, silent)
    design = design_of(model) if design is None else design
    meanwhile(tails_of, compile_tails)
    null = null_of(model, design)
    found, combined = null.scores().tails(null.memory.least, design.above)
    statistic, pvalue = np.empty(C + 1), np.empty(C + 1)
    _outcome(found, null.memory.value, statistic, pvalue)
    logs = found[:, 0]
    known = model.nu2 is not None
    return ScoreTest(
        statistic=statistic[:C],
        pvalue_celltype=pvalue[:C],
        statistic_sum=float(statistic[C]),
        pvalue_sum=float(pvalue[C]),
        pvalue_cauchy=math.exp(combined),
        log_pvalue_celltype=logs[:C],
        log_pvalue_sum=float(logs[C]),
        log_pvalue_cauchy=combined,
        theta_null=null.theta,
        weights=design.how.weights,
        explained=design.without,
        low=() if known else _low(model, design, null.between),
        cautious=(
            model.some_alike and not known and bool((model.nu[design.layout.rows] == 0.0).any())
        ),
    )


@kept_exact
def _outcome(
    found: np.ndarray, value: np.ndarray, statistic: np.ndarray, pvalue: np.ndarray
) -> None:
    """Statistics and p values (C + 1,) by logarithms of tails, means and variances (C + 1, 3)."""
    for d in range(len(value)):
        log = found[d, 0]
        pvalue[d] = math.exp(log)
        statistic[d] = (value[d] - found[d, 1]) / math.sqrt(found[d, 2])
        if math.isnan(log):
            statistic[d] = log


def between_cells(model: Model, design: ScoreDesign) -> np.ndarray:
    """Variance between cells of the types, pooled over donors (C,), the largest 1.

    All alike where it does not rise with the types' means, as on a logarithm, so that it says
    nothing of what V they may have; where numbers of cells are not known, or rows have several
    types.
    """
    if design.how.weights != COUNTED or not design.one_hot:
        return np.ones(len(design.types))
    between, mean = _per_type(design.how.per_cell * model.nu, design), _per_type(model.y, design)
    rises = float((mean - mean[design.counts > 0.0].mean()) @ between) > 0.0
    return between / between.max() if rises else np.ones(len(between))


def _per_type(values: np.ndarray, design: ScoreDesign) -> np.ndarray:
    """Means of values (n,) over the rows of every cell type, (C,)."""
    used = values if design.how.whole else values[design.how.rows]
    return np.asarray(design.types @ used / np.maximum(design.counts, 1.0))


def weights_of_types(model: Model, design: ScoreDesign) -> np.ndarray:
    """Weights of the cell types in the sum of scores (C,), the largest 1.

    :func:`between_cells`, where it is known to be that, with unbiased squares of the noise; else
    all alike, but 0 where fixed effects explain a type wholly.
    """
    alike = design.weights
    return alike if model.nu2 is None else alike * between_cells(model, design)


def _low(model: Model, design: ScoreDesign, between: np.ndarray) -> tuple[int, ...]:
    """Numbers of the cell types whose cells hardly vary, next to those of others.

    `between` (groups,) is the variance between cells of each where rows are of one type.
    """
    sizes = between.tolist()
    if design.how.weights != COUNTED or not design.one_hot or min(sizes) >= LOW * max(sizes):
        return ()
    between = between_cells(model, design)
    return tuple(int(c) for c in np.flatnonzero((between < LOW) & (between > 0.0)))


def _silent(model: Model) -> tuple[int, ...]:
    """Cell types of which hardly any pair has noise, where others have.

    They say that donors do not vary at all, to any precision: in them the gene cannot be seen.
    """
    types = model.types[model.active_rows]
    if not one_type_each(types):
        return ()
    alike = (model.nu[model.active_rows] == 0.0) @ types / np.maximum(types.sum(axis=0), 1.0)
    return tuple(int(c) for c in np.flatnonzero(alike > ALIKE))


def _without(model: Model, silent: tuple[int, ...]) -> ScoreTest:
    """The test of the other cell types by their rows, NaN of those that are left out."""
    kept = np.setdiff1d(np.arange(model.H.shape[1]), silent)
    rows = np.flatnonzero(model.active_rows & (model.types[:, kept].max(axis=1) == 1.0))
    part = part_of(model, rows) if len(kept) > 1 else None
    if part is None:
        raise CTMMError(
            f"in more than {ALIKE:.0%} of the pairs all cells are alike, in all cell types but "
            f"{len(kept)}: too few counts to test"
        )
    n_cells, nu2 = (None if one is None else one[rows] for one in (model.n_cells, model.nu2))
    own = build_model(
        model.y[rows], model.nu[rows], part.X, model.H[rows][:, kept], part.donor,
        np.ones((1, len(kept), len(kept))), part.random, n_cells, nu2, model.types[rows][:, kept],
    )  # fmt: skip
    found = score_test(own)

    def placed(values: np.ndarray) -> np.ndarray:
        out = np.full(model.H.shape[1], np.nan)
        out[kept] = values
        return out

    return found._replace(
        statistic=placed(found.statistic),
        pvalue_celltype=placed(found.pvalue_celltype),
        log_pvalue_celltype=placed(found.log_pvalue_celltype),
        silent=silent,
        explained=tuple(int(kept[c]) for c in found.explained),
        low=tuple(int(kept[c]) for c in found.low),
    )


class Scores(NamedTuple):
    """Efficient scores of every cell type and of their sum, and what their laws are made of."""

    layout: Layout
    found: Products
    gain: np.ndarray
    forms: Forms

    def tails(self, least: np.ndarray, above: float = 0.0) -> tuple[np.ndarray, float]:
        """Logarithms of upper tails, means and variances (C + 1, 3), and of the combination.

        See :func:`~ctmm_formula.inference.score_law.tails_of`.
        """
        found, combined = tails_of(self.layout, self.found, self.gain, self.forms, least, above)
        return found, float(combined)


class Null(NamedTuple):
    """The null fitted under working noise; made by :func:`null_of`.

    What `memory` holds is there until the next null of the thread.

    Attributes
    ----------
    model : Model; design : ScoreDesign
    theta : ndarray, shape (1 + Kr,)
    weights : ndarray, shape (C,)
        Of the cell types in the sum.
    between : ndarray, shape (groups,)
        Variance between cells of the groups of rows whose noise is pooled.
    memory : Memory; found : Products
    """

    model: Model
    design: ScoreDesign
    theta: np.ndarray
    weights: np.ndarray
    between: np.ndarray
    memory: Memory
    found: Products

    def scores(self) -> Scores:
        """Efficient scores: Delta is the sum of H_i inner H_i' over donors and of levels' z z'."""
        design, own = self.design, self.memory
        forms = Forms(
            own.value, design.R, own.inner, design.rank, own.level, self._more(), self.weights
        )
        return Scores(design.layout, self.found, own.solved.gain, forms)

    def _more(self) -> np.ndarray:
        """What the variances of forms have beyond their laws' for normal noise, (C + 1,).

        The law squares nu where it should square the true noise variance, and takes an error of
        nu for none; and noise moves with the effects of donors.
        """
        if self.model.nu2 is None:
            return np.zeros(len(self.weights) + 1)
        layout, (found, solved, efficient, *_) = self.design.layout, self.memory
        noise, shared = self._counted(self.model.nu2), float(self.theta[0])
        beside = moved_variances(layout, found, solved, efficient.a, self.weights, noise, shared)
        excess = noise.square - noise.measured**2
        return beside + beyond_squares(layout, found, solved, efficient, self.weights, excess)

    def _counted(self, nu2: np.ndarray) -> CountedNoise:
        """What the noise of the rows is as that of counts, by unbiased squares nu2 (n,)."""
        model, how, rows = self.model, self.design.how, self.design.layout.rows
        n = np.full(len(rows), np.inf) if model.n_cells is None else model.n_cells[rows]
        own = model.y[rows], model.nu[rows], nu2[rows], how.per_cell[rows], n
        return counted_noise(how.code[rows], len(how.sizes), *own, float(self.theta[0]))


def compile_tails() -> None:
    """Compile the tails of scores for the types they always get, into the cache."""
    H, donor, one = np.tile(np.eye(2), (3, 1)), np.repeat(np.arange(3), 2), np.ones(6)
    design = design_of(build_model(np.arange(6.0), one, H, H, donor, np.ones((1, 2, 2))))
    found, solved = memory_for(design.layout)
    forms = Forms(one, design.R, design.R, design.rank, design.R, one, one)
    compile_like(tails_of, design.layout, found, solved.gain, forms, one, 0.0)


def null_of(model: Model, design: ScoreDesign) -> Null:
    """Fit the null under working noise, and find what of the scores it leaves."""
    layout, nu = design.layout, model.nu
    rows, y = layout.rows, model.residual[layout.rows]
    p = model.blocks.p
    scale = math.sqrt(float(y @ y) / max(len(y) - p, 1)) or 1.0
    noise, between = weighed(nu, design.how, scale**2)
    noise = noise[rows]
    theta = fit_null(design.null, layout, noise, y, scale)
    w = weights_of_types(model, design)
    memory, found = memory_of_thread(layout, len(theta))
    given = theta, noise, nu[rows], y, design.explained, w, model.nu2 is not None
    if not scores_of(layout, *given, memory):
        raise np.linalg.LinAlgError("Singular matrix")
    return Null(model, design, theta, w, between, memory, found)


def solved_sums(
    layout: Layout,
    A: np.ndarray,
    variances: np.ndarray,
    w: np.ndarray,
    excess: np.ndarray,
    y: np.ndarray,
) -> tuple[Products, Solved]:
    """:func:`~.score_sums.sums_of` with covariance A, or an error.

    Raises
    ------
    numpy.linalg.LinAlgError
    """
    sizes, axes = np.linalg.eigh(A)
    loads = np.ascontiguousarray((axes * np.sqrt(np.maximum(sizes, 0.0))).T)
    return sums_of(layout, loads, variances, w, excess, y)


def cauchy_combination(pvalues: np.ndarray) -> float:
    """Cauchy combination of p values, valid under dependence (Liu & Xie 2020).

    P values near 1 count as .99, as one of them could undo any other; missing ones do not count.

    >>> round(cauchy_combination(np.array([0.01, 0.5, 0.9])), 4)
    0.0331
    >>> round(cauchy_combination(np.array([0.001, 0.5, 1.0])), 4)
    0.0033
    """
    with np.errstate(divide="ignore"):
        return math.exp(log_cauchy_combination(np.log(np.asarray(pvalues, dtype=float))))


def log_cauchy_combination(logs: np.ndarray) -> float:
    """The same of natural logarithms, to the logarithm.

    >>> round(log_cauchy_combination(np.array([-5000.0, -1.0])), 4)  # half as many, log 2
    -4999.3069
    """
    return float(log_combination(np.asarray(logs, dtype=float)))


def by_level(layout: Layout, values: np.ndarray) -> np.ndarray:
    """Values per random component (..., Kr) per level (..., blocks, q), 0 where there is none."""
    none = np.zeros((*values.shape[:-1], 1))
    return np.append(values, none, axis=-1)[..., layout.component]


def loadings(inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R (r, C) and D (r, r) of signs with inner = R'D R."""
    sizes, axes = np.linalg.eigh(inner)
    roots = np.sqrt(np.abs(sizes))
    kept = roots > 1e-6 * roots.max()
    return np.ascontiguousarray((axes * roots).T[kept]), np.diag(np.sign(sizes[kept]))


def square_excess(model: Model) -> np.ndarray:
    """Variance of y^2 - nu of a pair from its noise, less what normal noise nu would give, (n,).

    About the null mean y^2 - nu is sum_{s != t} x_s x_t / (n (n - 1)) over the n cells of the pair,
    so its variance from noise is 2 sigma^4 / (n (n - 1)) whatever the distribution of cells, and
    nu2 estimates sigma^4 / n^2 without bias.  Half of it, as the square of nu.  0 where there is no
    nu2: nu stands in for the true variance there.
    """
    if model.nu2 is None:
        return np.zeros(len(model.nu))
    n = np.full(len(model.nu), np.inf) if model.n_cells is None else model.n_cells
    known = np.flatnonzero(np.isfinite(model.nu2) & (n > 1.0))
    out = np.zeros(len(n))
    out[known] = model.nu2[known] * (1.0 + 1.0 / (n[known] - 1.0)) - np.square(model.nu[known])
    return out
