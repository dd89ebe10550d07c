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
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from ..engine.domain import Domain
from ..engine.likelihood import fit, residual, response_scale
from ..engine.model import Model, build_model
from ..engine.noise import Pooling, working_noise
from ..engine.precision import Precision, Projection
from ..engine.relatedness import Kernel
from ..errors import CTMMError
from .cumulants import mixture
from .directions import rows_of_type
from .score import log_cauchy_combination, refuse_alike
from .tails import tail

WHOLE = 1500
"""Donors times directions up to which the law has all eigenvalues."""
_MANY, _DIRECTIONS = 300, 60  # donors from which a law takes only so many eigenvalues
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
        self._spectra: dict[bytes, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.kernel)

    def times(self, B: np.ndarray) -> np.ndarray:
        """K0 B for B (N, j)."""
        return self.kernel.times(B) - self.kernel.diagonal[:, None] * B

    @cached_property
    def mean_square(self) -> float:
        """Mean of its squared entries."""
        return float(self.kernel.squares.mean())

    def spectrum(self, donors: np.ndarray) -> np.ndarray:
        """Eigenvalues of these donors (in order), kept for the next that asks.

        Of many donors and genotypes the largest, and two others that all have the sum, the sum of
        squares and the skewness with.
        """
        key = donors.tobytes()
        if key not in self._spectra:
            many = self.kernel.root is not None and len(donors) > _MANY
            found = self._largest(donors) if many else np.linalg.eigvalsh(self.of(donors))
            self._spectra[key] = found
        return self._spectra[key]

    def _largest(self, donors: np.ndarray) -> np.ndarray:
        """The same by Rayleigh quotients of the leading directions of K."""
        leading, skew = self._leading
        lengths, diagonal = np.square(leading).sum(axis=0), self.kernel.diagonal
        # by what is missing, mostly the smaller part
        gone = np.delete(np.arange(len(self)), donors)
        lost = leading[gone]
        size, axes = np.linalg.eigh(np.diag(lengths) - lost.T @ lost)
        size, axes = size[size > _NOTHING * size[-1]], axes[:, size > _NOTHING * size[-1]]
        # what is not leading has its mean where a part of the donors sees it
        inside = size * (np.square(axes) / lengths[:, None]).sum(axis=0)
        left = (diagonal.sum() - lengths.sum()) / (len(leading) - len(lengths))
        apart = self._apart - lost.T @ (diagonal[gone, None] * lost)
        there = np.ones(len(self))
        there[gone] = 0.0
        top = size + (1.0 - inside) * left - ((apart @ axes) * axes).sum(axis=0) / size
        count = len(donors) - len(top)
        mean = -float(top.sum()) / count
        square = float(there @ (self.kernel.squares @ there)) - float(top @ top)
        spread = math.sqrt(max(square / count - mean**2, 0.0))
        high = 0.5 * (skew + math.hypot(skew, 2.0))
        some = min(max(round(count / (1.0 + high**2)), 1), count - 1)
        ratio = math.sqrt((count - some) / some)
        rest = np.full(count, mean - spread / ratio)
        rest[:some] = mean + spread * ratio
        return np.concatenate([top, rest])

    @cached_property
    def _apart(self) -> np.ndarray:
        """B' diag(K) B of all donors."""
        leading = self._leading[0]
        return np.asarray(leading.T @ (self.kernel.diagonal[:, None] * leading))

    @cached_property
    def _leading(self) -> tuple[np.ndarray, float]:
        """B (N, r), B B' next to K in its leading directions; skewness of other eigenvalues."""
        K, probes = self.kernel, _probes(len(self))
        first = Q = K.times(probes).T  # directions in rows
        for _ in range(2):
            Q = K.times(np.linalg.qr(Q.T)[0]).T
        Q = np.linalg.qr(Q.T)[0].T
        KQ = K.times(Q.T).T
        size, axes = np.linalg.eigh(KQ @ Q.T)
        size, axes = size[size > _NOTHING * size[-1]], axes[:, size > _NOTHING * size[-1]]
        Q, KQ = axes.T @ Q, axes.T @ KQ  # of a low rank the rest is rounding
        part = probes.T @ Q.T
        left = probes.T - part @ Q
        once = first - part @ KQ - K.diagonal * left
        once -= (once @ Q.T) @ Q
        sums = [float(np.vdot(a, b)) for a, b in ((left, left), (left, once), (once, once))]
        cube = float(np.vdot(once, self.times(once.T).T))
        mean, square, cube = sums[1] / sums[0], sums[2] / sums[0], cube / sums[0]
        spread = math.sqrt(max(square - mean**2, 1e-300))
        skew = (cube - 3.0 * mean * square + 2.0 * mean**3) / spread**3
        return Q.T * np.sqrt(size), skew

    def of(self, donors: np.ndarray) -> np.ndarray:
        """K0 of these donors (in order)."""
        out = self.kernel.whole[np.ix_(donors, donors)]
        np.fill_diagonal(out, 0.0)
        return out


@lru_cache(4)
def _probes(N: int) -> np.ndarray:
    """Random directions (N, j), the same for all kernels."""
    return np.asfortranarray(np.random.default_rng(0).standard_normal((N, _DIRECTIONS)))


class NullDesign(NamedTuple):
    """A model without kinship, and how its noise is pooled."""

    model: Model
    how: Pooling


class OfType(NamedTuple):
    """The rows of one cell type: in the model's order, their null, and their donors."""

    rows: np.ndarray
    null: NullDesign
    donors: np.ndarray


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
        return self._replace(related=Related(kernel))


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
    types = tuple(_of_type(model, c) for c in range(C))
    return GeneticDesign(_pooled(model.with_basis(free)), Related(kernel), types, whole)


def _pooled(model: Model) -> NullDesign:
    return NullDesign(model, model.pooling)


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
    asked = [_Asked(null.P, null, np.hstack([ones, model.H]))]
    if C > 1:
        asked.append(_Asked(_within(null.P), null, model.H))
    alone = [_alone(model, own_type) for own_type in design.types]
    asked += [one for one in alone if one is not None]
    scores, *others = scores_of(asked, design.related, whole)
    shared, total = scores.test([0]), scores.test(own)
    by_type = log_cauchy_combination(np.array([scores.test([c]).log for c in own]))
    specific = math.nan
    if C > 1:
        within, *others = others
        single = log_cauchy_combination(np.array([within.test([c]).log for c in range(C)]))
        specific = log_cauchy_combination(np.array([within.test(range(C)).log, single]))
    every = np.array([shared.log, total.log, by_type])
    rest = iter(others)
    types = tuple(NOT_THERE if one is None else _attempt(next(rest)) for one in alone)
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


class _Asked(NamedTuple):
    """What scores are asked of: P, the null that it is of, and what rows have of directions."""

    P: Projection
    null: _Null
    V: np.ndarray


class _Scores:
    """Scores of several directions under one P, their means and covariances.

    What takes the kernel, K0 sides and its squares times pairs, is there after :meth:`complete`.

    Parameters
    ----------
    asked : _Asked
        P; null; V (n, R), what rows have of every direction.
    related : Related
    whole : bool
        Whether laws may have all eigenvalues.

    Attributes
    ----------
    sides : ndarray, shape (N, R + 2 k R)
        s, then J of every direction.
    pairs : ndarray, shape (N, R (R + 1) / 2)
        d of every pair of directions.
    """

    def __init__(self, asked: _Asked, related: Related, whole: bool) -> None:
        P, null, V = asked
        self.related, self.whole = related, whole
        N, R, k = len(related), V.shape[1], P.phi.shape[1]
        own = null.donor[P.rows[:, 0]]
        self.donors = np.sort(own)
        e, r = null.excess[:, None], P.project(null.y[:, None])
        V, phi = P.spread(V).swapaxes(1, 2), P.spread(P.phi)  # of every donor
        VD = V @ P.inverse
        eVD = VD * P.spread(e).swapaxes(1, 2)
        self.d, self.J, s = np.zeros((N, R, R)), np.zeros((N, R, 2 * k)), np.zeros((N, R))
        self.d[own] = VD @ V.swapaxes(1, 2) + eVD @ VD.swapaxes(1, 2)
        self.J[own] = np.concatenate([V @ phi, eVD @ phi], axis=2)
        s[own] = (V @ P.spread(r))[..., 0]
        one, two = np.triu_indices(R)
        self.pairs = self.d[:, one, two]
        self.sides = np.hstack([s, self.J.reshape(N, -1)])
        inside = P.omega @ (P.phi.T @ (e * P.phi)) @ P.omega
        self.B = np.block([[inside - P.omega, -P.omega], [-P.omega, np.zeros((k, k))]])

    def complete(self, K_sides: np.ndarray, square_pairs: np.ndarray) -> None:
        """T, its mean and covariance, from K0 times the sides and its squares times the pairs."""
        R = self.d.shape[1]
        self.T = (self.sides[:, :R] * K_sides[:, :R]).sum(axis=0)
        KJ = K_sides[:, R:].reshape(self.J.shape)
        cores = np.array([self.J[:, v].T @ KJ[:, v] @ self.B for v in range(R)])
        self.mean = np.trace(cores, axis1=1, axis2=2)
        between = (KJ @ self.B) @ KJ.swapaxes(1, 2)
        cov = 2.0 * (self.d * between).sum(axis=0)
        cov += np.tensordot(cores, cores, axes=([1, 2], [2, 1]))
        one, two = np.triu_indices(R)
        both = (self.pairs * square_pairs).sum(axis=0)
        cov[one, two] += both
        cov[two, one] = cov[one, two]
        self.cov = 2.0 * cov

    def fits(self, count: int) -> bool:
        """Whether the law of a sum of so many directions has all eigenvalues."""
        return self.whole and count * len(self.donors) <= WHOLE

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
            return np.outer(self.related.spectrum(self.donors), mean).ravel()
        N, R = len(self.donors), len(at)
        J = self.J[self.donors][:, at].swapaxes(0, 1).reshape(R * N, -1)
        M = (J @ self.B @ J.T).reshape(R, N, R, N)
        i = np.arange(N)
        M[:, i, :, i] += self.d[self.donors][:, at[:, None], at]
        M = M.reshape(R * N, R * N)
        i = np.arange(R * N)
        M[i, i] += _RIDGE * float(M[i, i].max())  # singular, as P is
        root = np.linalg.cholesky(M).reshape(R, N, -1)
        turned = (self.related.of(self.donors) @ root).reshape(R * N, -1)
        return np.linalg.eigvalsh(root.reshape(R * N, -1).T @ turned)


def _of_type(model: Model, c: int) -> OfType | None:
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
    return OfType(rows[own.order], _pooled(own), part.donors[own.donors])


def _alone(model: Model, own: OfType | None) -> _Asked | None:
    """The rows of one cell type alone, where they can be asked."""
    if own is None:
        return None
    try:
        null = _null_of(own.null, model.y[own.rows], model.nu[own.rows])
    except (CTMMError, np.linalg.LinAlgError):  # of the rows of this type alone
        return None
    return _Asked(null.P, null._replace(donor=own.donors[null.donor]), own.null.model.H)


def _attempt(scores: _Scores) -> Tested:
    """The test of a cell type by itself, if its law can be had."""
    try:
        return scores.test([0])
    except np.linalg.LinAlgError:
        return NOT_THERE


def scores_of(asked: Sequence[_Asked], related: Related, whole: bool) -> list[_Scores]:
    """Scores under several P, which meet the kernel together: it is read once."""
    found = [_Scores(one, related, whole) for one in asked]
    K_sides = related.times(np.hstack([one.sides for one in found]))
    square_pairs = (np.hstack([one.pairs for one in found]).T @ related.kernel.squares).T
    at = [np.cumsum([part.shape[1] for part in parts])[:-1] for parts in (
        [one.sides for one in found], [one.pairs for one in found]
    )]  # fmt: skip
    split = np.split(K_sides, at[0], axis=1), np.split(square_pairs, at[1], axis=1)
    for one, *own in zip(found, *split, strict=True):
        one.complete(*own)
    return found
