"""The domain of ML and REML: where variance components may lie.

Negative components are allowed as long as no covariance degenerates.  With D the known noise,

============  =======================================================  ======================
bounds        covariances that must stay positive definite             linear bounds
============  =======================================================  ======================
noise         Sigma - kappa D for every donor and block,               none
              kappa = noise_floor
psd           H_i A H_i' for every donor's observed cell types         random effects >= 0
nonnegative   V and every other component as its own random effect     those that are variances
============  =======================================================  ======================

A donor's covariance is taken given the random effects of its block, so a batch variance cannot
make up for a donor covariance that is itself degenerate; a negative batch variance is held by the
covariance of the whole block.  Interior optima do not depend on the bounds.

``noise`` (default for cell type-specific pseudobulk) lets variance components be negative, which
keeps them unbiased, but stops short of the edge where one donor's covariance is singular; ``psd``
(default for overall pseudobulk) keeps the covariance of true expression positive semidefinite for
what was observed: H_i are a donor's cell types, or in overall pseudobulk its mixture p_i, and
p_i' A p_i >= 0 for the observed mixtures leaves A itself free to be indefinite; ``nonnegative`` is
what lme4, metafor and glmmTMB do.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, pairwise
from numbers import Real

import numpy as np
from scipy.sparse.csgraph import connected_components

from ..arguments import choose
from ..errors import CTMMError
from .model import Blocks, Model, Tiles, rank_one_factors, spans, tile

BOUNDS = ("noise", "psd", "nonnegative")
_GONE = 1e-5  # share of a variance that counts as none; the barrier of a search leaves less


@dataclass(frozen=True)
class Domain:
    """Bounds by name and, for ``noise``, the share kappa of the noise that must remain.

    >>> Domain("noise", 0.1).bounds
    'noise'
    """

    bounds: str = "noise"
    noise_floor: float = 0.1

    def __post_init__(self) -> None:
        choose("bounds", self.bounds, BOUNDS)
        floor = self.noise_floor
        if isinstance(floor, bool) or not isinstance(floor, Real) or not 0 < floor < 1:
            raise CTMMError(f"noise_floor must lie strictly between 0 and 1, got {floor!r}")


@dataclass(frozen=True)
class Constraint:
    """A :class:`Domain` for one model, as arrays for the kernels.

    Attributes
    ----------
    lower : ndarray, shape (K,)
        Lower bounds of the components, -inf where there is none.
    S : ndarray, shape (K, F); nu : ndarray, shape (n',); tiles : Tiles; blocks : Blocks
        Determinants that must stay positive definite: Sigma(theta) of this design and noise.
    active : ndarray, shape (N',)
    by_donor : bool
        Determinant i belongs to donor i and goes with it.
    share : float
        Of the model's noise, which is `nu`; 0 where determinants have none.
    """

    lower: np.ndarray
    S: np.ndarray
    nu: np.ndarray
    tiles: Tiles
    blocks: Blocks
    active: np.ndarray
    by_donor: bool
    share: float = 0.0


def constrain(model: Model, domain: Domain) -> Constraint:
    """The constraint set of `model` under `domain`."""
    return _BUILD[domain.bounds](model, domain)


def _noise(model: Model, domain: Domain) -> Constraint:
    """Sigma - kappa D > 0: the model's own blocks with (1 - kappa) of the noise."""
    lower = np.full(model.n_components, -np.inf)
    share = 1.0 - domain.noise_floor
    own = model.tiles, model.random_blocks, model.active
    return Constraint(lower, model.S, share * model.noise, *own, True, share)


def _psd(model: Model, domain: Domain) -> Constraint:
    """H_i A H_i' >= 0 for every distinct set of observed rows; random effects >= 0."""
    del domain
    count = len(model.basis)
    lower = np.where(np.arange(model.n_components) < count, -np.inf, 0.0)
    patterns = {
        model.H[a:b].tobytes(): model.H[a:b]
        for i, (a, b) in enumerate(pairwise(model.row_ptr))
        if model.active[i]
    }
    cones = _cones(lower, _maximal(patterns.values()), model.basis, np.arange(count))
    # in overall pseudobulk every donor has a mixture of its own, which leaves with the donor
    return replace(cones, by_donor=len(cones.active) == len(model.H) == len(model.active))


def _nonnegative(model: Model, domain: Domain) -> Constraint:
    """Components that are variances >= 0; the others form covariances that must be >= 0."""
    del domain
    return _covariances(model.basis.tobytes(), model.basis.shape, model.n_components)


@functools.lru_cache(maxsize=64)
def _covariances(basis_bytes: bytes, shape: tuple[int, ...], n_components: int) -> Constraint:
    basis = np.frombuffer(basis_bytes).reshape(shape)
    variance = are_variances(basis)
    lower = np.zeros(n_components)
    lower[: len(basis)][~variance] = -np.inf
    if variance.all():
        return _cones(lower, [], basis, np.arange(len(basis)))
    # a covariance that is not a variance belongs with the diagonal entries it correlates
    cone = np.flatnonzero(~are_shared(basis))
    return _cones(lower, [np.eye(shape[1])], basis[cone], cone)


def constrain_genetic(basis: np.ndarray, domain: Domain) -> Constraint:
    """The constraint set of the components of a kinship's basis (k, C, C) by themselves.

    A >= 0, under "noise" too: no noise is a floor of what donors share.
    """
    count = len(basis)
    if domain.bounds == "nonnegative":
        return _covariances(basis.tobytes(), basis.shape, count)
    return _cones(np.full(count, -np.inf), [np.eye(basis.shape[1])], basis, np.arange(count))


def are_variances(basis: np.ndarray) -> np.ndarray:
    """Which matrices (K, C, C) are covariances by themselves, (K,) bool."""
    size = np.linalg.eigvalsh(basis)
    return size[:, 0] >= -1e-12 * np.abs(size).max(axis=1)


def are_shared(basis: np.ndarray) -> np.ndarray:
    """Which matrices (K, C, C) are ones for all effects that others join to theirs, (K,) bool.

    J, and of groups of donors, whose effects nothing joins, that of every group.

    >>> two = np.kron(np.eye(2)[:, :, None] * np.eye(2)[:, None, :], np.ones((2, 2)))
    >>> are_shared(np.concatenate([two, np.diag([1.0, 0.0, 0.0, 0.0])[None]])).tolist()
    [True, True, False]
    """
    joined = (basis != 0.0).any(axis=0)
    group = connected_components(joined, directed=False)[1]
    ones = (basis == 1.0).all(axis=2, where=(group[:, None] == group)[None])
    own = (basis != 0.0).any(axis=2)
    inside = np.array([len(np.unique(group[row])) == 1 for row in own])
    whole = np.array([row.sum() == (group == group[row.argmax()]).sum() for row in own])
    return inside & whole & (ones | ~own).all(axis=1)


_BUILD = {"noise": _noise, "psd": _psd, "nonnegative": _nonnegative}


def _maximal(patterns: Collection[np.ndarray]) -> list[np.ndarray]:
    """Drop patterns whose rows all occur in a larger one: a principal part follows from it."""
    if len({len(H) for H in patterns}) < 2:  # distinct patterns of one size hold no other
        return list(patterns)
    sets = [{row.tobytes() for row in H} for H in patterns]
    return [
        H for H, rows in zip(patterns, sets, strict=True) if not any(rows < other for other in sets)
    ]


def _cones(
    lower: np.ndarray,
    patterns: Sequence[np.ndarray],
    basis: np.ndarray,
    members: np.ndarray,
) -> Constraint:
    """Pseudo-donors without noise: sum_k theta_k H B_k H' > 0 for every H in `patterns`.

    `members` are the numbers of the components of `basis`.  H is first reduced to the range that
    the matrices can reach at all (for hom the one direction of ones), where the covariance can be
    definite.  Patterns with as many rows go through as one stack.
    """
    vectors, coef = rank_one_factors(basis) if patterns else (np.zeros((0, 0)), None)
    reach = (basis @ basis).sum(axis=0)
    parts, sizes = [], []
    for size in sorted({len(H) for H in patterns}):
        stack = np.array([H for H in patterns if len(H) == size])
        values, axes = np.linalg.eigh(stack @ reach @ stack.transpose(0, 2, 1))
        reached = values > 1e-10 * values[:, -1:]
        parts.append((axes.transpose(0, 2, 1) @ stack)[reached] @ vectors)
        sizes += reached.sum(axis=1).tolist()
    W = np.concatenate(parts) if parts else np.zeros((0, 0))
    S = np.zeros((len(lower), W.shape[1]))
    if coef is not None:
        S[members] = coef
    ptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tiles = tile(ptr)
    nobody = np.zeros(tiles.shape[0] * tiles.shape[2], dtype=np.int64)
    none = np.zeros(2, dtype=np.int64)
    tiled = tiles.put(W)
    blocks = Blocks(
        tiled, W.shape[1], 0, nobody, nobody, nobody[:, None][:, :0], none, none, none[:0],
        spans(tiled),
    )  # fmt: skip
    active = np.ones(len(sizes), dtype=bool)
    return Constraint(lower, S, np.zeros(len(W)), tiles, blocks, active, False)


def lower_bounds(model: Model, domain: Domain) -> np.ndarray:
    """Lower bounds of all components, those of the kinship among them, (K,); -inf without one."""
    return np.concatenate([own.lower for own, _ in _every(model, domain)])


def held(model: Model, domain: Domain, theta: np.ndarray) -> np.ndarray:
    """Directions in which the edge of the domain holds `theta`, (m, K).

    Of a component on its lower bound that of itself; of a covariance M(theta) of a donor, or of its
    true expression, v'(dM / dtheta_k) u for all v and u that M leaves no variance.  A block whose
    random effects have negative variances may hold `theta` too: its directions are not among them.
    """
    out = []
    for own, at in _every(model, domain):
        here = theta[at]
        part = [np.eye(len(here))[here <= own.lower]]
        if len(own.active):
            part.append(_without_variance(own, here))
        out.append(np.pad(np.concatenate(part), ((0, 0), (at.start, len(theta) - at.stop))))
    return np.concatenate(out)


def _every(model: Model, domain: Domain) -> list[tuple[Constraint, slice]]:
    """Constraints of all parts of a model, and the numbers of their components."""
    own = constrain(model.unrelated, domain), slice(0, len(model.S))
    genetic = (constrain_genetic(term.basis, domain) for term in model.kinship)
    return [own, *zip(genetic, model.kinship_slices, strict=True)]


def _without_variance(own: Constraint, theta: np.ndarray) -> np.ndarray:
    """The directions of covariances that the edge leaves short of a dimension, (m, K)."""
    R = own.blocks.R
    loads = own.blocks.design[:, :R].transpose(0, 3, 2, 1)  # (tiles, donors, rows, R)
    phi, noise = own.S[:, :R].T @ theta, own.tiles.put(own.nu, 1.0).transpose(0, 2, 1)
    # in units of the noise; without any, of the largest that would be there if nothing cancelled
    largest = (np.square(loads) @ np.abs(phi)).max(axis=2, keepdims=True)
    size = np.where(noise > 0.0, noise, largest)
    scaled = loads / np.sqrt(np.where(size > 0.0, size, 1.0))[..., None]
    M = (scaled * phi) @ scaled.swapaxes(2, 3) + (noise > 0.0)[..., None] * np.eye(noise.shape[2])
    left, axes = np.linalg.eigh(M)
    gone = (left < _GONE).reshape(-1, left.shape[2])
    gone &= own.tiles.donors(own.active, False)[:, None]
    seen = (scaled.swapaxes(2, 3) @ axes).reshape(-1, R, gone.shape[1])
    out = [
        own.S[:, :R] @ (seen[donor, :, i] * seen[donor, :, j])
        for donor in np.flatnonzero(gone.any(axis=1))
        for i, j in combinations_with_replacement(np.flatnonzero(gone[donor]), 2)
    ]
    return np.array(out).reshape(-1, len(theta))
