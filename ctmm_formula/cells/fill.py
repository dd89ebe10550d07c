"""Fill the holes of a tensor donors x cell types x genes, with one matrix or gene by gene.

Every method is a rule for a stack of matrices (B, donors, columns) with common holes; here tensors
become stacks and come back, lambda is chosen, and what cannot be filled is left missing: donors
and columns without any value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import CTMMError, DataError
from . import softimpute
from .holes import copied_holes, split
from .mvn import fit_normal
from .stacks import scaling

METHODS = {"softimpute": "transcriptome", "mvn": "gene", "mean": "gene"}
"""Methods, and how each goes about the genes if nothing is said."""
Complete = Callable[..., softimpute.Completion]


@dataclass(frozen=True)
class Options:
    """How to fill; see :func:`ctmm_formula.impute`."""

    method: str = "softimpute"
    by: str = "transcriptome"
    penalty: float | None = None
    scale: bool = True
    holdout: str = "pairs"
    folds: int = 5
    fraction: float = 0.1
    n_penalties: int = 30
    ratio: float = 0.01
    prior: float = 1.0
    tol: float = softimpute.TOLERANCE


@dataclass(frozen=True)
class Filled:
    """A completed tensor and how it came about.

    Attributes
    ----------
    values : ndarray, shape (N, C, G)
        Observed entries as they were; NaN where nothing could be learnt.
    penalty : ndarray, shape (G,)
        lambda of each gene's matrix; NaN where there is none.
    grid, loss : ndarray, shape (L,)
        lambda relative to the largest of use, and mean cross-validated squared error, NaN where
        a matrix has left the path; empty without cross-validation.
    converged : bool
    """

    values: np.ndarray
    penalty: np.ndarray
    grid: np.ndarray
    loss: np.ndarray
    converged: bool


@dataclass(frozen=True)
class _Result:
    """The same for one stack."""

    values: np.ndarray
    penalty: np.ndarray
    grid: np.ndarray
    loss: np.ndarray
    converged: bool


def fill(
    Y: np.ndarray,
    options: Options,
    rng: np.random.Generator,
    complete: Complete = softimpute.complete,
) -> Filled:
    """Fill the holes of Y, shape (N, C, G), with NaN where missing."""
    N, _, G = Y.shape
    if N < 2:
        raise DataError(f"imputation learns from other donors, but there is only {N}")
    rule = _RULES[options.method]
    values, penalty = Y.copy(), np.full(G, np.nan)
    grids, losses, weights, converged = [], [], [], True
    as_one = options.by == "transcriptome"
    for part in _as_one(Y) if as_one else _by_gene(Y):
        found = rule(part, options, rng, complete)
        _write(values, found.values, part, as_one)
        penalty[part.genes] = found.penalty
        converged &= found.converged
        if len(found.loss):
            grids.append(found.grid)
            losses.append(found.loss)
            weights.append(len(part.genes))
    empty = np.empty(0)
    return Filled(
        values=values,
        penalty=penalty,
        grid=grids[0] if grids else empty,
        loss=np.average(losses, axis=0, weights=weights) if losses else empty,
        converged=converged,
    )


@dataclass(frozen=True)
class _Part:
    """A stack (B, donors, columns) with holes: which genes, donors, columns, and whose columns."""

    stack: np.ndarray
    genes: np.ndarray
    donors: np.ndarray
    columns: np.ndarray
    celltype: np.ndarray

    @property
    def observed(self) -> np.ndarray:
        """Shape (donors, columns)."""
        return ~np.isnan(self.stack[0])


def _as_one(Y: np.ndarray) -> Iterator[_Part]:
    """One matrix, donors x (cell type and gene)."""
    N, C, G = Y.shape
    matrix = Y.reshape(N, C * G)
    seen = ~np.isnan(matrix)
    donors, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    part = matrix if len(donors) == N and len(columns) == C * G else matrix[donors][:, columns]
    if np.isnan(part).any():
        yield _Part(part[None], np.arange(G), donors, columns, columns // G)


def _by_gene(Y: np.ndarray) -> Iterator[_Part]:
    """Donors x cell types for each gene, genes with the same holes together."""
    N, C, G = Y.shape
    missing = np.packbits(np.isnan(Y).reshape(N * C, G), axis=0)
    _, first, kind = np.unique(missing, axis=1, return_index=True, return_inverse=True)
    for k, gene in enumerate(first):
        seen = ~np.isnan(Y[:, :, gene])
        donors, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if seen[np.ix_(donors, columns)].all():
            continue
        genes = np.flatnonzero(kind.ravel() == k)
        stack = np.ascontiguousarray(Y[np.ix_(donors, columns, genes)].transpose(2, 0, 1))
        yield _Part(stack, genes, donors, columns, columns)


def _write(values: np.ndarray, stack: np.ndarray, part: _Part, as_one: bool) -> None:
    """A completed stack back into its places."""
    N, C, G = values.shape
    if as_one:
        values.reshape(N, C * G)[np.ix_(part.donors, part.columns)] = stack[0]
    else:
        values[np.ix_(part.donors, part.columns, part.genes)] = stack.transpose(1, 2, 0)


def _soft(part: _Part, options: Options, rng: np.random.Generator, complete: Complete) -> _Result:
    """Soft-impute of centred columns, lambda given or chosen."""
    stack, observed = part.stack, part.observed
    units = scaling(stack, observed, scale=options.scale)
    scaled = units.apply(stack)
    grid = loss = np.empty(0)
    table = None
    if options.penalty is None:
        largest = softimpute.largest_penalty(scaled)
        # a gene without variance has nothing to penalise
        table = softimpute.penalties(
            np.where(largest > 0.0, largest, 1.0), options.n_penalties, options.ratio
        )
        masks = _held_out(observed, part.celltype, options, rng)
        losses = softimpute.cross_validate(
            stack, table, masks, centre=True, scale=options.scale
        ).mean(axis=0)
        penalty = table[np.nanargmin(losses, axis=0), np.arange(len(stack))]
        grid, loss = np.geomspace(1.0, options.ratio, options.n_penalties), losses.mean(axis=1)
    else:
        penalty = np.full(len(stack), float(options.penalty))
    done = complete(scaled, penalty, path=table, tol=options.tol)
    values = np.where(observed, stack, units.undo(done.values))
    return _Result(values, penalty, grid, loss, bool(done.converged.all()))


def _held_out(
    observed: np.ndarray, celltype: np.ndarray, options: Options, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Masks (donors, columns) of the folds."""
    if options.holdout == "entries":
        yield from split(observed, options.folds, rng)
        return
    _, place = np.unique(celltype, return_inverse=True)
    pairs = np.zeros((len(observed), place.max() + 1), dtype=bool)
    for c in range(pairs.shape[1]):
        pairs[:, c] = observed[:, place == c].any(axis=1)
    if pairs.all():  # single genes are missing: no pattern of pairs to copy
        masks = split(pairs, options.folds, rng)
    else:
        masks = (copied_holes(pairs, options.fraction, rng) for _ in range(options.folds))
    for hidden in masks:
        if not hidden.any():
            raise CTMMError(
                f"no pair can be held out of {len(observed)} donors to choose the penalty: give "
                "penalty=, or use method='mvn'"
            )
        yield hidden[:, place]


def _normal(part: _Part, options: Options, rng: np.random.Generator, complete: Complete) -> _Result:
    """Conditional means of a multivariate normal."""
    done = fit_normal(part.stack, prior=options.prior)
    none = np.full(len(part.genes), np.nan)
    return _Result(done.values, none, np.empty(0), np.empty(0), bool(done.converged.all()))


def _mean(part: _Part, options: Options, rng: np.random.Generator, complete: Complete) -> _Result:
    """Column means."""
    centre = scaling(part.stack, part.observed, scale=False).centre
    none = np.full(len(part.genes), np.nan)
    return _Result(
        np.where(part.observed, part.stack, centre), none, np.empty(0), np.empty(0), True
    )


_RULES = {"softimpute": _soft, "mvn": _normal, "mean": _mean}
