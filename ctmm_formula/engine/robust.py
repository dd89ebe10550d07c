"""Noise-robust moment estimates: weights from pooled noise, centred by the measured noise.

The measured nu_ic comes from the same cells as y_ic and, for counts, rises with it.  Whatever
weights by it (likelihoods, generalised least squares) is biased, the more so in cell types with
few cells; whatever only subtracts it is not.  So with working noise w
(:func:`~ctmm_formula.engine.noise.working_noise`) and a working covariance

    S = (sum_k theta+_k Sigma_k + diag(w))^-1,   P = S - S X (X'SX)^-1 X'S

the estimates solve equations that are unbiased at any fixed S, whatever the distribution:

    b     = (X'SX)^-1 X'S y
    theta = F^-1 (q - h),  q_k = y'P Sigma_k P y,  F_kl = tr(P Sigma_k P Sigma_l),
                           h_k = tr(P Sigma_k P diag(nu))

theta is free in sign; theta+ is its part that is a covariance, and only serves the weights.  They
start equal, where theta is the Haseman-Elston estimate, and are made anew :data:`REWEIGHTINGS`
times.  With w = nu and at the fixed point theta would be the REML estimate and F / 2 its Fisher
information (Rao's iterated MINQUE).  All of it is sums over units, donors or blocks of donors that
share levels of random effects (:mod:`ctmm_formula.engine.unit_sums`), so leaving one out is a
subtraction.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..distributions import variance_interval
from ..errors import ConvergenceError
from . import sweeps
from .domain import Domain, are_shared, are_variances
from .estimate import Convergence, Estimate
from .leverages import leverages
from .model import LANES, Model, Tiles, each_in_lanes, from_tiles, tile
from .moving_noise import MovingNoise, moving_noise
from .noise import Pooling, working_noise
from .sweeps import State
from .unit_sums import Layout

CLUSTERED = ("robust",)
"""Methods whose errors come from independent units."""

REWEIGHTINGS = 4
"""As a rule the last one moves theta by a small part of its standard error."""

ONE_UNIT = (
    "random effects join all donors to one block: there are no independent units to leave out"
)


class Units(NamedTuple):
    """What a covariance of the fixed effects needs of the independent units.

    share (T, k, LANES), axes (T, p, k, LANES): each unit's part of X'SX, see
    :func:`ctmm_formula.engine.leverages.leverages`; score (T, p, LANES) root'X_u'S_u (y_u - X_u b)
    with root root' = (X'SX)^-1, (p, p); all of the orthonormal columns, in tiles of units.
    """

    share: np.ndarray
    axes: np.ndarray
    score: np.ndarray


class Components(NamedTuple):
    """How the covariance of the fixed effects moves with the components that weights are made of.

    layout; solved (T, k', m, LANES) S X in the first p columns; root (p, p) with root root' =
    (X'SX)^-1; directions (F, r): D D' is the working model's covariance of what factors have, of
    the components' parts that are no estimate below zero.
    """

    layout: Layout
    solved: np.ndarray
    root: np.ndarray
    directions: np.ndarray


class Replicates(NamedTuple):
    """Estimates without each of U units, at the weights of the full fit.

    theta (U, K), NaN where the components cannot be told apart without the unit; beta (U, p), NaN
    where a fixed effect rests on the unit alone (theta is then that without the effect).
    """

    theta: np.ndarray
    beta: np.ndarray

    def covariance(self) -> np.ndarray:
        """(U - 1)/U times the sum of squares about the mean, of (theta, beta); (K + p, K + p).

        NaN for parameters that have a replicate missing, and for all with fewer than two units.
        """
        both = np.concatenate([self.theta, self.beta], axis=1)
        if len(both) < 2:
            return np.full((both.shape[1],) * 2, math.nan)
        centred = both - np.add.reduce(both) / len(both)
        return (len(both) - 1) / len(both) * centred.T @ centred


class SharedDesign(NamedTuple):
    """What all responses of a design share; made by :func:`lay_out`.

    layout, of the compiled loops; tiles, where the rows in use lie in their arrays; rows (n',) and
    used (N',) rows and donors in use (kernel numbers); ols (p, n') effects of the orthonormal
    columns from responses; how the noise is pooled; cells (T, m, LANES) their numbers, ones where
    not known; largest number of rows of a unit.
    """

    layout: Layout
    tiles: Tiles
    rows: np.ndarray
    used: np.ndarray
    ols: np.ndarray
    how: Pooling
    cells: np.ndarray
    largest: int


@dataclass(frozen=True)
class RobustFit:
    """An estimate with its weights, which its covariances need; made by :func:`weigh`.

    Attributes
    ----------
    estimate : Estimate
    weights : str
        How the working noise was made: "n_cells", or "mean noise" where cell counts are missing.
    unit : str
        "donor", or "block" of donors joined by random effects.
    design : SharedDesign; state : State
        Working covariance and sums over units.
    back : ndarray, shape (p, p)
        Orthonormal fixed-effect columns from those of X.
    inputs : tuple of ndarray, shape (T, m, LANES)
        Working noise, measured noise and residual in tiles.
    """

    estimate: Estimate
    weights: str
    unit: str
    design: SharedDesign
    state: State
    back: np.ndarray
    inputs: tuple[np.ndarray, ...]

    @property
    def n_units(self) -> int:
        """Number U of independent units."""
        return len(self.design.layout.level_start)

    @property
    def donors(self) -> list[np.ndarray]:
        """Donors (kernel numbers) of each independent unit."""
        return np.split(self.design.used, self.design.layout.unit_ptr[1:-1])

    @cached_property
    def units(self) -> Units:
        """The units' shares of the fixed effects."""
        state = self.state
        p = len(state.root)
        k, T = min(p, self.design.largest), -(-self.n_units // LANES)
        share, axes, score = each_in_lanes((T, k), (T, p, k), (T, p))
        by_unit = np.zeros((T * LANES, p))
        by_unit[: self.n_units] = (state.unit_score - state.unit_gram @ state.beta) @ state.root
        score[:] = by_unit.reshape(T, LANES, p).swapaxes(1, 2)
        leverages(state.unit_gram, state.root, share, axes)
        return Units(share, axes, score)

    @cached_property
    def moving(self) -> MovingNoise:
        """How the noise moves with hypotheses about the fixed effects."""
        design = self.design
        return moving_noise(design.layout, design.how, design.cells, self.state, self.inputs)

    @cached_property
    def components(self) -> Components:
        """How the covariance of the fixed effects moves with the components of the weights."""
        layout, state = self.design.layout, self.state
        T = _free(layout, state.before)
        low = np.linalg.cholesky(T.T @ state.F @ T)
        directions = math.sqrt(2.0) * layout.S.T @ np.linalg.solve(low, T.T).T
        return Components(layout, state.solved, state.root, np.ascontiguousarray(directions))

    @cached_property
    def cov_working(self) -> np.ndarray:
        """2 F^-1: covariance of theta for normal data, were the working covariance the true one."""
        return 2.0 * np.linalg.inv(self.state.F)

    @cached_property
    def replicates(self) -> Replicates:
        """Delete-one-unit estimates, by subtracting the unit's sums: no refits.

        All of them are NaN where random effects join all donors to one block (:data:`ONE_UNIT`).
        """
        U, K = self.n_units, len(self.estimate.theta)
        theta, beta = np.full((U, K), math.nan), np.full((U, len(self.back)), math.nan)
        if U > 1:
            layout = self.design.layout
            memory = sweeps.scratch(layout)
            sweeps.sweep(layout, *self.inputs, 0, self.state, memory, theta, beta)
        # the sums are those of y - X b0, and so are the effects they give
        moved = (beta - self.state.beta) @ self.back.T
        return Replicates(theta, self.estimate.beta + moved)

    @cached_property
    def cov_jackknife(self) -> np.ndarray:
        """Covariance of (theta, beta) by the replicates, (K + p, K + p)."""
        return self.replicates.covariance()

    def component_errors(self) -> np.ndarray:
        """Standard errors of theta (K,): the larger of the jackknife's and of 2 F^-1.

        The jackknife's are too small where an estimate happens to lie below zero, those of the
        working covariance where donors differ by more than the normal law allows.  NaN of one is
        passed over.
        """
        K = len(self.estimate.theta)
        jackknife = self.cov_jackknife.diagonal()[:K]
        return np.asarray(np.sqrt(np.fmax(jackknife, self.cov_working.diagonal())))

    @cached_property
    def error_df(self) -> np.ndarray:
        """Satterthwaite's degrees of freedom 2 E(S)^2 / Var(S) of the jackknife's variances S (K,).

        S is the variance of U replicates; that of S follows from their second and fourth cumulants
        k2 and k4, here unbiased, as 2 k2^2 / (U - 1) + k4 / U.  Few units show how long the tails
        of their effects are, and all components those of the same units: no component has more
        degrees of freedom than they have together (1 / df on average), nor than U - 1.
        """
        U = self.n_units
        most = np.full(len(self.estimate.theta), max(U - 1.0, 1.0))
        if U < 4:
            return most
        square = np.square(self.replicates.theta - self.replicates.theta.mean(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.square(square).mean(axis=0) / np.square(square.mean(axis=0)) - 3.0
        k4 = (U - 1.0) / ((U - 2.0) * (U - 3.0)) * ((U + 1.0) * excess + 6.0)  # of k2^2
        own = np.fmax(1.0 / most, (2.0 * U + (U - 1.0) * k4) / (2.0 * U * (U + 1.0)))
        return 1.0 / np.maximum(own, own.mean())

    def component_intervals(self, level: float = 0.95) -> np.ndarray:
        """Confidence intervals of theta (K, 2); ends may be negative.

        See :func:`ctmm_formula.distributions.variance_interval`; by t with :attr:`error_df`.
        """
        df, tail = max(self.n_units - 1, 1), 0.5 * (1.0 - level)
        theta, se = self.estimate.theta, self.component_errors()
        return variance_interval(theta, se, df, tail, self.error_df)


def fit(model: Model, method: str = "robust", domain: Domain | None = None) -> Estimate:
    """Noise-robust estimate of one response; :func:`weigh` keeps its weights too.

    Raises
    ------
    ConvergenceError
        X, or the moment matrix of the components, lacks rank.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (4, 1))
    >>> y = np.array([1.0, 1.2, -0.3, -0.1, 0.4, 0.9, -1.5, -1.0])
    >>> model = build_model(y, np.full(8, 0.1), H, H, np.repeat(np.arange(4), 2),
    ...                     np.ones((1, 2, 2)))
    >>> round(float(fit(model).theta[0]), 4)
    1.0208
    """
    del method, domain  # moments know no bounds
    return weigh(model).estimate


def weigh(model: Model, design: SharedDesign | None = None) -> RobustFit:
    """Noise-robust estimate of one response and its weights.

    Parameters
    ----------
    model : Model
    design : SharedDesign, optional
        :func:`lay_out` of the model, where many responses share it.

    Raises
    ------
    ConvergenceError
        X, or the moment matrix of the components, lacks rank.
    """
    design = lay_out(model) if design is None else design
    layout, rows = design.layout, design.rows
    if design.how.whole:
        start, r = model.along, model.residual
    else:
        start = design.ols @ model.y[rows]
        r = model.y[rows] - model.Q[rows] @ start
    noise = working_noise(model.nu, design.how, float(np.add.reduce(np.square(r))) / len(r))
    inputs = design.tiles.put_each(noise[rows], model.nu[rows], r)
    state = sweeps.make_state(layout)
    p, K = layout.p, len(layout.S)
    none = np.empty((0, K)), np.empty((0, p))
    memory = sweeps.scratch(layout)
    outcome = sweeps.sweep(layout, *inputs, REWEIGHTINGS + 1, state, memory, *none)
    if outcome != sweeps.DONE:
        raise ConvergenceError(_problem(outcome))
    return RobustFit(
        estimate=_estimate(model, state, start),
        weights=design.how.weights,
        unit="block" if model.random else "donor",
        design=design,
        state=state,
        back=model.back,
        inputs=inputs,
    )


def lay_out(model: Model) -> SharedDesign:
    """What all responses of a design share.

    Raises
    ------
    ConvergenceError
        The fixed effects are collinear in the donors in use.
    """
    b, rows = model.blocks, np.flatnonzero(model.active_rows)
    used = np.flatnonzero(model.active)
    tiles = tile(np.append(0, np.cumsum(np.diff(model.row_ptr)[used])))
    Z = from_tiles(b.design[:, b.R + b.p :], model.tiles)
    columns = np.hstack([model.W, model.Q, np.zeros((len(Z), 1)), Z])
    blocks, first = np.unique(model.donor_block[used], return_index=True)
    level_ptr = b.level_ptr if model.random else np.zeros(blocks[-1] + 2, dtype=np.int64)
    Q = model.Q[rows]
    if len(Q) < len(model.Q) and np.linalg.matrix_rank(Q) < Q.shape[1]:
        raise ConvergenceError(_problem(sweeps.COLLINEAR))
    level_start, level_stop = level_ptr[blocks], level_ptr[blocks + 1]
    unit_ptr = np.append(first, len(used))
    layout = Layout(
        columns=tiles.put(columns[rows]),
        H=tiles.put(model.H[rows]),
        R=b.R,
        p=b.p,
        unit_ptr=unit_ptr,
        unit=np.repeat(np.arange(len(blocks)), np.diff(unit_ptr)),
        level=b.level[used],
        level_start=level_start,
        level_stop=level_stop,
        pair_ptr=np.append(0, np.cumsum(np.square(level_stop - level_start))),
        level_comp=b.level_comp,
        S=model.S,
        basis=model.basis,
        variance=_variances(model.basis.tobytes(), model.basis.shape),
    )
    ols = Q.T if model.active.all() else np.linalg.pinv(Q)
    sizes = np.bincount(model.donor_block[model.row_donor[rows]])
    how = model.pooling
    cells = tiles.put(how.per_cell[rows], 1.0)
    return SharedDesign(layout, tiles, rows, used, ols, how, cells, int(sizes.max()))


def _problem(outcome: int) -> str:
    """Why there is no estimate."""
    if outcome == sweeps.COLLINEAR:
        return "the fixed effects are collinear in the donors in use"
    if outcome == sweeps.CONFOUNDED:
        return "variance components cannot be told apart: singular moment matrix"
    return "a donor's covariance is not positive definite"


@functools.lru_cache(maxsize=64)
def _variances(basis_bytes: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Which components are held >= 0 by themselves in the weights, (K,) bool.

    All, where every basis matrix is a covariance; else the shared one only, and the others are
    held together.
    """
    basis = np.frombuffer(basis_bytes).reshape(shape)
    covariance = are_variances(basis)
    return covariance if covariance.all() else are_shared(basis)


def _free(layout: Layout, theta: np.ndarray) -> np.ndarray:
    """Directions (K, r) of components in which the working covariance moves.

    A variance held at zero does not, nor do combinations of the others that would give variance
    where the sum of those is cut off.
    """
    basis, K = layout.basis, len(layout.S)
    alone = np.append(layout.variance, np.ones(K - len(basis), dtype=bool))
    T = np.eye(K)[:, ~alone | (theta > 0.0)]
    if alone.all():
        return T
    own = np.where(alone[: len(basis)], 0.0, theta[: len(basis)])
    size, axes = np.linalg.eigh(np.tensordot(own, basis, axes=1))
    gone = axes[:, size <= 0.0]
    held = np.zeros((gone.shape[1] ** 2, K))
    held[:, : len(basis)] = (gone.T @ basis @ gone).reshape(len(basis), -1).T
    held[:, alone] = 0.0
    _, moved, rows = np.linalg.svd(held @ T)
    rank = int((moved > 1e-10 * max(moved.max(initial=0.0), 1e-300)).sum())
    return T @ rows[rank:].T


def _estimate(model: Model, state: State, start: np.ndarray) -> Estimate:
    """The fit without its weights."""
    information = 0.5 * state.F
    step = state.theta - state.before
    distance = math.sqrt(max(float(step @ information @ step), 0.0))
    turn = model.back @ state.root
    return Estimate(
        method="robust",
        theta=state.theta,
        beta=model.back @ (start + state.beta),
        cov_beta=turn @ turn.T,
        beta_by="gls",
        information=information,
        observed=np.full_like(information, math.nan),
        llf=math.nan,
        convergence=Convergence(
            converged=True,
            boundary=False,
            gradient_norm=distance,
            n_evaluations=REWEIGHTINGS + 1,
            n_starts=1,
            message=f"closed form at fixed weights, made anew {REWEIGHTINGS} times; the last time "
            f"moved the components by {distance:.1g} standard errors",
        ),
    )
