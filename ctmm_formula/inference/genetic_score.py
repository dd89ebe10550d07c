"""Score tests of heritability: only products of different donors, so that noise has no say.

Under the null nothing is genetic, and donors are independent but for their random effects: shared
and cell type-specific variance and these effects, all >= 0, are fitted by REML under the working
noise w of :mod:`ctmm_formula.engine.noise`.  With r = P y, and v a direction (1 for what is shared,
e_c for a cell type), s_i = v' H_i' r_i

    T_v = sum_{i != j} K_ij s_i s_j = s' K0 s,     K0 = K without its diagonal
    M_vv' = L_v' P Sigma^ P L_v',                  Sigma^ the null covariance with nu in place of w
    E T_v = tr K0 M_vv,     Cov(T_v, T_v') = 2 tr K0 M_vv' K0 M_v'v

Without the diagonal the score is orthogonal to all that donors have by themselves, environment
and noise, but for what the fixed effects join: errors of nu do not move its mean, which is computed
all the same.  P is block-diagonal plus low rank, so M = diag(d) + J B J' and all of this takes
products of K0 with N x p matrices.

The law is that of the eigenvalues of K0 M; of many donors that of the eigenvalues of K0 times those
of the mean of d over donors, with the exact mean and variance.

What donors share is out of the way where they are fixed effects: S_i - S_i 1 1' S_i / 1' S_i 1 in
place of the inverse S_i of a donor's covariance.  So *specific* has no null of its own to fit.  A
cell type by itself ("is expression in this type heritable?") is the test of its rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..engine.domain import Domain
from ..engine.likelihood import fit, residual, response_scale
from ..engine.model import Model, build_model
from ..engine.noise import Pooling, pooling, working_noise
from ..engine.precision import Precision, Projection
from ..engine.relatedness import Kernel
from ..errors import CTMMError
from .directions import rows_of_type
from .score import log_cauchy_combination, refuse_alike
from .tails import mixture, tail

WHOLE = 1500
"""Donors times directions up to which the law has all eigenvalues."""
_RIDGE = 1e-10  # of the largest entry: the eigenvalues of K0 M move as little
_NOTHING = 1e-9  # of a column's size: what a projection leaves of it is rounding


class Tested(NamedTuple):
    """One direction, or a sum of them: its score in null standard deviations, and log p."""

    statistic: float
    log: float


class GeneticTest(NamedTuple):
    """What was found, by question; logarithms of one-sided p values.

    any, specific: combined; shared; types, by the rows of every cell type alone; weights: how
    noise was pooled; whole: whether the laws have all eigenvalues.
    """

    any: float
    shared: Tested
    specific: float
    types: tuple[Tested, ...]
    weights: str
    whole: bool


NOT_THERE = Tested(math.nan, math.nan)


class Related:
    """A kernel without its diagonal, and what scores take of it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __len__(self) -> int:
        return len(self.kernel)

    def times(self, B: np.ndarray) -> np.ndarray:
        """K0 B for B (N, j)."""
        return self.kernel.times(B) - self.kernel.diagonal[:, None] * B

    @cached_property
    def K0(self) -> np.ndarray:
        """The matrix, (N, N)."""
        return self.kernel.whole - np.diag(self.kernel.diagonal)

    @cached_property
    def mean_square(self) -> float:
        """Mean of its squared entries."""
        return float(self.square.mean())

    @cached_property
    def square(self) -> np.ndarray:
        """Entries squared, (N, N)."""
        return np.square(self.K0)

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Eigenvalues, (N,)."""
        return np.linalg.eigvalsh(self.K0)


class NullDesign(NamedTuple):
    """A model without kinship, and how its noise is pooled."""

    model: Model
    how: Pooling


class OfType(NamedTuple):
    """The rows of one cell type: in the model's order, their null, and how their donors relate.

    donors is None where these are all of them, in order.
    """

    rows: np.ndarray
    null: NullDesign
    donors: np.ndarray | None
    related: Related

    def of(self, kernel: Kernel, related: Related) -> OfType:
        """The same with another kernel between the model's donors."""
        own = related if self.donors is None else Related(kernel.of(self.donors))
        return self._replace(related=own)


class GeneticDesign(NamedTuple):
    """What tests of heritability of all responses share.

    null: the model without kinship, all cell types with variances of their own; related; types: of
    the rows of every cell type, None where there are too few; whole: whether laws may have all
    eigenvalues.
    """

    null: NullDesign
    related: Related
    types: tuple[OfType | None, ...]
    whole: bool

    def with_kernel(self, kernel: Kernel) -> GeneticDesign:
        """The same design with another kernel: what rests on rows alone is not made again."""
        related = Related(kernel)
        types = tuple(own and own.of(kernel, related) for own in self.types)
        return self._replace(related=related, types=types)


def genetic_design(model: Model, number: int, whole: bool = True) -> GeneticDesign:
    """What the tests of all responses of a model's design share.

    Parameters
    ----------
    model : Model
        One cell type a row; its structures are not used.
    number : int
        Of the kernel among ``model.kinship``.
    whole : bool
        Whether laws of few donors have all eigenvalues, at the cost of a whole fit.
    """
    kernel, model = model.kinship[number].kernel, model.unrelated
    C = model.H.shape[1]
    units = [np.diag(e) for e in np.eye(C)]
    free = np.array([np.ones((C, C)), *units] if C > 1 else [np.ones((1, 1))])
    related = Related(kernel)
    types = tuple(_of_type(model, kernel, related, c) for c in range(C))
    return GeneticDesign(_pooled(model.with_basis(free)), related, types, whole)


def _pooled(model: Model) -> NullDesign:
    return NullDesign(model, pooling(model.types, model.n_cells, model.active_rows))


def genetic_test(model: Model, design: GeneticDesign) -> GeneticTest:
    """Test that no variance goes with a kernel of the model.

    Parameters
    ----------
    model : Model
        One response.
    design : GeneticDesign
        :func:`genetic_design` of it.

    Raises
    ------
    ConvergenceError
        The null model cannot be fitted.
    CTMMError
        Hardly any row has noise (:data:`~ctmm_formula.inference.score.ALIKE`).
    """
    refuse_alike(model.nu[model.active_rows])
    C, whole = model.H.shape[1], design.whole
    null = _null_of(design.null, model.y, model.nu)
    own = np.arange(1, C + 1)
    ones = model.H.sum(axis=1, keepdims=True)
    scores = _Scores(null.P, null, np.hstack([ones, model.H]), design.related, whole)
    shared, total = scores.test([0]), scores.test(own)
    by_type = log_cauchy_combination(np.array([scores.test([c]).log for c in own]))
    specific = math.nan
    if C > 1:
        within = _Scores(_within(null.P), null, model.H, design.related, whole)
        single = log_cauchy_combination(np.array([within.test([c]).log for c in range(C)]))
        specific = log_cauchy_combination(np.array([within.test(range(C)).log, single]))
    every = np.array([shared.log, total.log, by_type])
    types = tuple(_alone(model, own_type, whole) for own_type in design.types)
    return GeneticTest(
        log_cauchy_combination(every), shared, specific, types, null.weights,
        scores.fits(len(own)),
    )  # fmt: skip


class _Null(NamedTuple):
    """A fitted null: P under the working noise, and by how much nu is above it, (n,)."""

    P: Precision
    excess: np.ndarray
    y: np.ndarray
    donor: np.ndarray
    weights: str


def _null_of(design: NullDesign, y: np.ndarray, nu: np.ndarray) -> _Null:
    """Fit the null under working noise."""
    model, how = design.model.with_response(y, nu), design.how
    w = working_noise(model.nu, how, response_scale(model) ** 2)
    weighed = model.with_response(model.y, w)
    P = Precision(weighed, fit(weighed, "reml", Domain("nonnegative")).theta)
    return _Null(P, nu - w, residual(weighed), model.row_donor, how.weights)


def _within(P: Projection) -> Projection:
    """P with donors as fixed effects."""
    ones = P.mask.astype(float)[..., None]
    total = P.inverse @ ones
    size = np.maximum((ones * total).sum(axis=1, keepdims=True), 1e-300)
    inverse = P.inverse - total @ total.transpose(0, 2, 1) / size
    inverse[P.mask.sum(axis=1) < 2] = 0.0  # one row tells of no difference
    own = Projection(P.rows, P.mask, inverse, P.Z[:, :0], P.g[:0], P.X[:, :0])
    sizes, axes = np.linalg.eigh(P.X.T @ own.within(P.X))
    left = sizes > _NOTHING * max(float(np.trace(P.X.T @ P.within(P.X))), 1e-300)
    return Projection(P.rows, P.mask, inverse, P.Z, P.g, P.X @ axes[:, left])


class _Scores:
    """Scores of several directions under one P, their means and covariances.

    Parameters
    ----------
    P : Projection; null : _Null
    V : ndarray, shape (n, R)
        What rows have of every direction.
    related : Related
    whole : bool
        Whether laws may have all eigenvalues.
    """

    def __init__(
        self, P: Projection, null: _Null, V: np.ndarray, related: Related, whole: bool
    ) -> None:
        self.related, self.whole = related, whole
        N, R = len(related), V.shape[1]
        e, donor = null.excess[:, None], null.donor
        r = P.project(null.y[:, None])
        s = _by_donor(V * r, donor, N)
        self.T = (s * related.times(s)).sum(axis=0)
        DV = np.stack([P.within(column[:, None])[:, 0] for column in V.T], axis=1)
        k, n = P.phi.shape[1], len(V)
        one, two = np.triu_indices(R)
        inner = V[:, one] * DV[:, two] + DV[:, one] * (e * DV)[:, two]
        d = _by_donor(inner, donor, N)
        self.d = np.empty((N, R, R))
        self.d[:, one, two] = self.d[:, two, one] = d
        sides = V[:, :, None] * P.phi[:, None], DV[:, :, None] * (e * P.phi)[:, None]
        J = _by_donor(np.stack(sides, axis=2).reshape(n, R * 2 * k), donor, N)
        self.J = J.reshape(N, R, 2 * k).transpose(1, 0, 2)
        inside = P.omega @ (P.phi.T @ (e * P.phi)) @ P.omega
        self.B = np.block([[inside - P.omega, -P.omega], [-P.omega, np.zeros((k, k))]])
        self.KJ = related.times(J).reshape(N, R, 2 * k).transpose(1, 0, 2)
        cores = [J.T @ KJ @ self.B for J, KJ in zip(self.J, self.KJ, strict=True)]
        self.mean = np.array([np.trace(core) for core in cores])
        KJB = self.KJ @ self.B
        cov = np.zeros((R, R))
        for j, (v, u) in enumerate(zip(one, two, strict=True)):
            cov[v, u] = 2.0 * float(d[:, j] @ (KJB[v] * self.KJ[u]).sum(axis=1))
            cov[v, u] += float((cores[u] * cores[v].T).sum())
        cov[one, two] += (d * (related.square @ d)).sum(axis=0)
        self.cov = 2.0 * (cov + np.triu(cov, 1).T)

    def fits(self, count: int) -> bool:
        """Whether the law of a sum of so many directions has all eigenvalues."""
        return self.whole and count * len(self.related) <= WHOLE

    def test(self, some: Iterable[int]) -> Tested:
        """The sum of some directions."""
        at = np.array(list(some))
        value, mean = float(self.T[at].sum()), float(self.mean[at].sum())
        variance = float(self.cov[np.ix_(at, at)].sum())
        scale = float(self.related.mean_square * np.square(self.d[:, at, at].sum(axis=1)).sum())
        if not variance > _NOTHING**2 * max(scale, 1e-300):
            return NOT_THERE
        z = (value - mean) / math.sqrt(variance)
        weights = self._weights(at)
        size = np.abs(weights)
        weights = weights[size > 1e-10 * size.max()]
        own = math.sqrt(2.0 * float(weights @ weights))
        log, *_ = tail(float(weights.sum()) + z * own, mixture(weights))
        return Tested(z, log)

    def _weights(self, at: np.ndarray) -> np.ndarray:
        """Weights of chi2_1 in the law, up to scale where they are those of the shape."""
        if not self.fits(len(at)):
            mean = np.linalg.eigvalsh(self.d[:, at[:, None], at].mean(axis=0))
            return np.outer(self.related.spectrum, mean).ravel()
        N, R = len(self.related), len(at)
        J = self.J[at].reshape(R * N, -1)
        M = (J @ self.B @ J.T).reshape(R, N, R, N)
        i = np.arange(N)
        M[:, i, :, i] += self.d[:, at[:, None], at]
        M = M.reshape(R * N, R * N)
        i = np.arange(R * N)
        M[i, i] += _RIDGE * float(M[i, i].max())  # singular, as P is
        root = np.linalg.cholesky(M).reshape(R, N, -1)
        turned = (self.related.K0 @ root).reshape(R * N, -1)
        return np.linalg.eigvalsh(root.reshape(R * N, -1).T @ turned)


def _by_donor(values: np.ndarray, donor: np.ndarray, N: int) -> np.ndarray:
    """Sums of rows (n, k) by donor, (N, k), each with some; rows of a donor follow each other."""
    return np.add.reduceat(values, np.searchsorted(donor, np.arange(N)))


def _of_type(model: Model, kernel: Kernel, related: Related, c: int) -> OfType | None:
    """The rows of one cell type alone, where there are enough of them."""
    part = rows_of_type(model, c)
    if part is None:
        return None
    rows = part.rows
    one = np.ones((len(rows), 1))
    own = build_model(
        model.y[rows], model.nu[rows], part.X, one, part.donor, np.ones((1, 1, 1)), part.random,
        None if model.n_cells is None else model.n_cells[rows],
    )  # fmt: skip
    known = part.donors[own.donors]
    same = len(known) == len(kernel) and bool((known == np.arange(len(kernel))).all())
    found = OfType(rows[own.order], _pooled(own), None if same else known, related)
    return found.of(kernel, related)


def _alone(model: Model, own: OfType | None, whole: bool) -> Tested:
    """The test of the rows of one cell type alone."""
    if own is None:
        return NOT_THERE
    try:
        null = _null_of(own.null, model.y[own.rows], model.nu[own.rows])
        return _Scores(null.P, null, own.null.model.H, own.related, whole).test([0])
    except (CTMMError, np.linalg.LinAlgError):  # of the rows of this type alone
        return NOT_THERE
