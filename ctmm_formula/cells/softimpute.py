"""Matrix completion by soft-thresholded singular values (soft-impute).

For a matrix Y seen on a set Omega of its entries (P keeps those and zeroes the others)

    minimise over Z   f(Z) = 1/2 ||P(Y - Z)||^2 + lambda ||Z||_*

Three observations make pseudobulk cheap; all are exact.

Rotation.  Let the columns g have the same rows observed, and let Y_g[o]' = Q R be the QR
decomposition of those rows.  f does not change when Y_g becomes Y_g Q and Z_g becomes Z_g Q, and
some minimiser has its Z_g in the row space of Y_g[o].  So the k columns can be replaced by at most
as many columns as there are rows.  Missing pairs (donor, cell type) are missing for all genes: a
matrix of 94 donors x (4 cell types x 11,000 genes) becomes 94 x 376, whatever the number of genes,
for the path of lambda and for all folds of the cross-validation.  The time of a step grows with
the cube of the number of donors.

Gram matrix.  Each step needs S_lambda(X), X = P(Y) + Z - P(Z), whose left singular vectors and
values are those of the small matrix X X'.

Certificate.  X - Z' = P(Y - Z') + (V - Z' off Omega) has norm at most lambda for Z' = S_lambda(X),
hence R = P(Y - Z'), scaled by lambda / (lambda + ||V - Z' off Omega||), is feasible in the dual

    maximise over Theta on Omega   <Theta, Y> - 1/2 ||Theta||^2   with ||Theta|| <= lambda

and the duality gap, which bounds how far f is above its minimum, costs no further decomposition.

Steps are accelerated and restart where f rises (Beck & Teboulle 2009, SIAM J Imaging Sci 2:183;
O'Donoghue & Candes 2015, Found Comput Math 15:715).  The problem: Mazumder, Hastie & Tibshirani
2010, J Mach Learn Res 11:2287.

Everything here works on stacks of matrices (B, n, m) that share one pattern of holes: B = 1 for
the whole transcriptome, B = number of genes when each is completed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .stacks import as_stack, positive, rotate, scaling

TOLERANCE = 1e-6
"""Duality gap relative to f: far below what the choice of lambda leaves open."""
CV_TOLERANCE = 1e-3
"""Same, on the path: the gap bounds the error of f from far above (measured: its square)."""
MAX_STEPS = 2000


@dataclass(frozen=True)
class Completion:
    """Solutions for a stack of B matrices.

    Attributes
    ----------
    values : ndarray, shape (B, n, m)
        Observed entries as they were, the others from Z.
    penalty : ndarray, shape (B,)
        lambda.
    objective, gap : ndarray, shape (B,)
        f(Z), and a bound on how far it is above the minimum.
    singular_values : ndarray, shape (B, min(n, m))
        Of Z, falling.
    steps : int
        Steps of the slowest problem.
    converged : ndarray of bool, shape (B,)
    """

    values: np.ndarray
    penalty: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    singular_values: np.ndarray
    steps: int
    converged: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        """Ranks of Z, shape (B,)."""
        return (self.singular_values > 0.0).sum(axis=1)


@dataclass(frozen=True)
class _Solution:
    """Z (B, n, m), f, duality gap, singular values, steps of the problems `solve` was given."""

    Z: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    singular_values: np.ndarray
    steps: int


def complete(
    Y: np.ndarray,
    penalty: float | np.ndarray,
    *,
    path: np.ndarray | None = None,
    tol: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> Completion:
    """Fill the holes of one matrix or of a stack of matrices with one pattern of holes.

    Parameters
    ----------
    Y : array, shape (n, m) or (B, n, m)
        NaN where missing; all matrices of a stack miss the same entries.
    penalty : float or array of shape (B,)
        lambda > 0.
    path : array, shape (L, B), optional
        Falling penalties to come down along, each solved from the one before, as far as lambda.
        Where lambda is small, f can have several minimisers that differ in the holes (in
        [[1, ?], [?, 1]] all fillings between -1 and 1 do equally well); the path chooses the one
        that :func:`cross_validate` judged.
    tol : float, default 1e-6
        Stop when the duality gap is below ``tol`` times the objective.
    max_steps : int

    Returns
    -------
    Completion

    Raises
    ------
    DataError
        Infinite values, or holes that differ between the matrices of a stack.
    CTMMError
        A penalty that is not positive.

    Examples
    --------
    >>> Y = np.outer([1.0, 2.0, 3.0], [1.0, -1.0, 2.0, 1.0])
    >>> Y[2, 3] = np.nan
    >>> complete(Y, 0.01).values[0].round(2)[2].tolist()
    [3.0, -3.0, 6.0, 2.99]
    """
    Y, observed = as_stack(Y)
    penalty = positive(penalty, len(Y))
    wide = Y.shape[1] <= Y.shape[2]
    stack, seen = (Y, observed) if wide else (Y.swapaxes(1, 2), observed.T)
    small = rotate(stack, seen)
    Z = None
    for stop in path if path is not None else ():
        larger = np.maximum(stop, penalty)
        Z = solve(small.values, small.observed, larger, Z, tol=CV_TOLERANCE, max_steps=max_steps).Z
    found = solve(small.values, small.observed, penalty, Z, tol=tol, max_steps=max_steps)
    Z = small.restore(found.Z)
    return Completion(
        values=np.where(observed, Y, Z if wide else Z.swapaxes(1, 2)),
        penalty=penalty,
        objective=found.objective,
        gap=found.gap,
        singular_values=found.singular_values,
        steps=found.steps,
        converged=found.gap <= tol * found.objective,
    )


def certificate(Y: np.ndarray, Z: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f of any Z (B, n, m), and a bound on how far it is above the minimum: two arrays (B,).

    >>> Y = np.diag([3.0, 1.0])
    >>> best = np.diag([1.0, 0.0])
    >>> [value.tolist() for value in certificate(Y, best[None], np.array([2.0]))]
    [[4.5], [0.0]]
    """
    Y, observed = as_stack(Y)
    R = np.where(observed, Y - Z, 0.0)
    squared = np.einsum("bnm,bnm->b", R, R)
    along = np.einsum("bnm,bnm->b", R, np.where(observed, Y, 0.0))
    objective = 0.5 * squared + penalty * np.linalg.norm(Z, ord="nuc", axis=(1, 2))
    norm = np.linalg.norm(R, ord=2, axis=(1, 2))
    return objective, objective - _dual(squared, along, penalty, norm)


def largest_penalty(Y: np.ndarray) -> np.ndarray:
    """Smallest lambda with Z = 0, the norm of the zero-filled matrix: shape (B,)."""
    Y, observed = as_stack(Y)
    X = np.where(observed, Y, 0.0)
    gram = X @ X.swapaxes(1, 2) if X.shape[1] <= X.shape[2] else X.swapaxes(1, 2) @ X
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[:, -1], 0.0))


def penalties(largest: np.ndarray, n: int = 30, ratio: float = 0.01) -> np.ndarray:
    """Falling grids, even in log lambda, from `largest` to `ratio` times it: shape (n, B).

    >>> penalties(np.array([10.0]), 3, 0.01).ravel().round(6).tolist()
    [10.0, 1.0, 0.1]
    """
    return np.geomspace(1.0, ratio, n)[:, None] * np.atleast_1d(largest)


def cross_validate(
    Y: np.ndarray,
    grid: np.ndarray,
    held_out: Iterable[np.ndarray],
    *,
    centre: bool = False,
    scale: bool = False,
    patience: int = 8,
    tol: float = CV_TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> np.ndarray:
    """Squared error on held-out entries along a falling path of lambda, from warm starts.

    Parameters
    ----------
    Y : array, shape (n, m) or (B, n, m)
        NaN where missing.
    grid : array, shape (L, B)
        Falling along the first axis.
    held_out : iterable of bool arrays, shape (n, m)
        One mask a fold; only observed entries count.
    centre, scale : bool
        Centre the columns, divide them by their standard deviation; both are learnt from what is
        left in the fold, so that held-out entries teach nothing.
    patience : int
        A matrix leaves the path when its mean error has not fallen for more penalties than this:
        the smallest take longest.
    tol, max_steps
        As in :func:`complete`.

    Returns
    -------
    ndarray, shape (folds, L, B)
        Mean squared error (of the columns as scaled) over the held-out entries of a fold; NaN
        from where a matrix has left the path.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> Y = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 40)) + rng.normal(size=(30, 40))
    >>> held_out = [rng.random(Y.shape) < 0.1 for _ in range(3)]
    >>> losses = cross_validate(Y, penalties(largest_penalty(Y), 5), held_out)
    >>> losses.shape, int(losses.mean(axis=(0, 2)).argmin())
    ((3, 5, 1), 2)
    """
    Y, observed = as_stack(Y)
    folds = [_Fold(Y, observed, mask, centre, scale) for mask in held_out]
    losses = np.full((len(folds), *grid.shape), np.nan)
    best, since = np.full(len(Y), np.inf), np.zeros(len(Y), dtype=int)
    for k, penalty in enumerate(grid):
        live = np.flatnonzero(since <= patience)
        if not len(live):
            break
        for fold, loss in zip(folds, losses, strict=True):
            loss[k, live] = fold.follow(penalty, live, tol, max_steps)
        mean = losses[:, k].mean(axis=0)  # NaN for those that have stopped
        since = np.where(mean < best, 0, since + 1)
        best = np.fmin(best, mean)
    return losses


class _Fold:
    """One fold on its way down the path."""

    def __init__(
        self, Y: np.ndarray, observed: np.ndarray, mask: np.ndarray, centre: bool, scale: bool
    ) -> None:
        held = mask & observed
        stack = scaling(Y, observed & ~held, centre=centre, scale=scale).apply(Y)
        if Y.shape[1] > Y.shape[2]:
            stack, observed, held = stack.swapaxes(1, 2), observed.T, held.T
        small = rotate(stack, observed, held)
        self.values, self.held = small.values, small.held
        self.train = small.observed & ~small.held
        self.Z = np.zeros_like(small.values)
        self.size = max(int(held.sum()), 1)

    def follow(
        self, penalty: np.ndarray, live: np.ndarray, tol: float, max_steps: int
    ) -> np.ndarray:
        """Mean squared error of the problems `live` at the next penalty."""
        values = self.values[live]
        Z = solve(values, self.train, penalty[live], self.Z[live], tol=tol, max_steps=max_steps).Z
        self.Z[live] = Z
        error = np.where(self.held, values - Z, 0.0)
        return np.einsum("bnm,bnm->b", error, error) / self.size


def solve(
    values: np.ndarray,
    observed: np.ndarray,
    penalty: np.ndarray,
    start: np.ndarray | None = None,
    *,
    tol: float = TOLERANCE,
    max_steps: int = MAX_STEPS,
) -> _Solution:
    """Minimise f for each matrix of a stack; `values` outside `observed` are not looked at."""
    values = np.where(observed, values, 0.0)
    B, n, _ = values.shape
    Z = np.zeros_like(values) if start is None else start.copy()
    objective, gap = np.full(B, np.inf), np.full(B, np.inf)
    singular = np.zeros((B, n))
    live = np.arange(B)
    work = _Work(values, np.broadcast_to(penalty, B).astype(float), Z, Z.copy())
    step = 0
    for step in range(1, max_steps + 1):
        work.step(observed)
        done = work.gap <= tol * work.objective
        if not done.any() and step < max_steps:
            continue
        # finished problems leave the stack; to copy the rest is worth it when they are many
        if done.all() or step == max_steps or (B > 1 and done.mean() > 0.2):
            out = np.ones_like(done) if step == max_steps else done
            Z[live[out]], singular[live[out]] = work.Z[out], work.singular[out]
            objective[live[out]], gap[live[out]] = work.objective[out], work.gap[out]
            live = live[~out]
            if not len(live):
                break
            work = work.keep(~out)
    return _Solution(Z, objective, gap, singular[:, ::-1], step)


class _Work:
    """State of the accelerated iteration for the problems still open."""

    def __init__(
        self, values: np.ndarray, penalty: np.ndarray, Z: np.ndarray, V: np.ndarray
    ) -> None:
        self.values, self.penalty, self.Z, self.V = values, penalty, Z, V
        self.objective = np.full(len(values), np.inf)
        self.gap = np.full(len(values), np.inf)
        self.singular = np.zeros(values.shape[:2])
        self.momentum = np.ones(len(values))

    def step(self, observed: np.ndarray) -> None:
        """Z from the extrapolated point V, then f, gap and the next V."""
        X = np.where(observed, self.values, self.V)
        squares, U = np.linalg.eigh(X @ X.swapaxes(1, 2))
        d = np.sqrt(np.maximum(squares, 0.0))
        shrunk = np.maximum(d - self.penalty[:, None], 0.0)
        share = np.divide(shrunk, d, out=np.zeros_like(d), where=d > 0.0)
        Z = ((U * share[:, None, :]) @ U.swapaxes(1, 2)) @ X
        X -= Z  # the residual on Omega, V - Z elsewhere
        moved = np.where(observed, 0.0, X)
        X -= moved
        squared = np.einsum("bnm,bnm->b", X, X)
        objective = 0.5 * squared + self.penalty * shrunk.sum(axis=1)
        along = np.einsum("bnm,bnm->b", X, self.values)
        bound = self.penalty + np.sqrt(np.einsum("bnm,bnm->b", moved, moved))
        self.gap = objective - _dual(squared, along, self.penalty, bound)
        worse = objective > self.objective
        following = 0.5 + np.sqrt(0.25 + self.momentum**2)
        pace = np.where(worse, 0.0, (self.momentum - 1.0) / following)
        self.momentum = np.where(worse, 1.0, following)
        self.V = Z + pace[:, None, None] * (Z - self.Z)
        self.Z, self.objective, self.singular = Z, objective, shrunk

    def keep(self, rows: np.ndarray) -> _Work:
        """Only these problems."""
        other = _Work(self.values[rows], self.penalty[rows], self.Z[rows], self.V[rows])
        other.objective, other.momentum = self.objective[rows], self.momentum[rows]
        return other


def _dual(
    squared: np.ndarray, along: np.ndarray, penalty: np.ndarray, norm: np.ndarray
) -> np.ndarray:
    """Dual value at c R, with c such that its norm is at most lambda, and no larger than best.

    `squared` is <R, R>, `along` <R, Y>, `norm` a bound on the spectral norm of R.
    """
    best = np.divide(along, squared, out=np.ones_like(along), where=squared > 0.0)
    c = np.minimum(best, np.divide(penalty, norm, out=np.ones_like(best), where=norm > 0.0))
    return c * along - 0.5 * c**2 * squared
