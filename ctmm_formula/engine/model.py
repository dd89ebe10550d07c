"""The model as arrays: what every estimator, test and resampling sees.

Donor i has m_i rows (observed cell types for cell type-specific pseudobulk, one row for overall
pseudobulk), C cell types, p fixed effects:

    y_i ~ N(X_i b, Sigma_i),   Sigma_i = H_i A H_i' + diag(nu_i)  (+ random effects)
    A = sum_k theta_k B_k = sum_r phi_r v_r v_r',   phi = S' theta

H_i (m_i x C) has the rows of I_C of the observed cell types, or the proportions P_i'.  So a
missing pair is a missing row, and overall pseudobulk is one row: nothing below branches on it.
Every basis matrix is a combination of rank-one factors v_r v_r'; with w_ir = H_i v_r a donor's
covariance is sum_r phi_r w_ir w_ir' + D_i and a random effect's is one more factor per level,
g_k z_l z_l'.  b is profiled out by generalised least squares, so theta and g are all there is to
optimise, and every quantity is a sum over blocks: donors, joined where they share a level.

Symbols: n rows, N donors, C cell types, p fixed effects, K donor-level components, R factors,
Kr random components, q levels of all random effects.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.sparse.csgraph import connected_components

from ..errors import ConvergenceError
from . import arranging
from .noise import Pooling, pooling, weighable
from .relatedness import KernelTerm

LANES = 16
"""Donors to a tile: the kernels work on this many at once."""

ALIGNED = 8
"""Numbers to a line of the cache, at the start of which arrays of lanes begin."""


class RandomComponent(NamedTuple):
    """One random effect, one variance: row a belongs to level codes[a] with weight values[a].

    codes : int ndarray, shape (n,); values : ndarray, shape (n,)
    (ones for an intercept per batch, the column H[:, c] for an effect on cell type c only).
    """

    codes: np.ndarray
    values: np.ndarray


class Tiles(NamedTuple):
    """Where the rows lie in the kernels' arrays: LANES donors to a tile, donors in the last axis.

    shape (T, m, LANES): tiles, most rows of a donor, donors; place (n,) of every row in an array
    of that shape.  A donor with fewer rows has rows of zeros with noise 1, and so have the empty
    places of the last tile: they add nothing to any sum.
    """

    shape: tuple[int, int, int]
    place: np.ndarray

    def put(self, values: np.ndarray, empty: float = 0.0) -> np.ndarray:
        """Values per row (n,) or (n, k) as (T, m, LANES) or (T, k, m, LANES)."""
        T, m, _ = self.shape
        if values.ndim == 1:
            out = in_lanes(T, m, value=empty)
            out.ravel()[self.place] = values
            return out
        out = in_lanes(T, values.shape[1], m, value=empty)
        arranging.put(_floats(values), self.place, out)
        return out

    def put_each(self, *values: np.ndarray, ones: int = 1) -> tuple[np.ndarray, ...]:
        """Several values per row (n,) as (T, m, LANES) each; the first `ones` 1 without a row."""
        out = in_lanes(len(values), *self.shape[:2])
        out[:ones] = 1.0
        for own, given in zip(out, values, strict=True):
            own.ravel()[self.place] = given
        return tuple(out)

    def donors(self, values: np.ndarray, empty: float | bool) -> np.ndarray:
        """Values per donor (N, ...) padded to (T LANES, ...)."""
        size = (self.shape[0] * self.shape[2], *values.shape[1:])
        out = np.full(size, empty, dtype=values.dtype)
        out[: len(values)] = values
        return out


def in_lanes(*shape: int, value: float = 0.0) -> np.ndarray:
    """An array (..., LANES) full of the value, at the start of a line of the cache."""
    size = math.prod(shape) * LANES
    room = np.full(size + ALIGNED, value) if value else np.zeros(size + ALIGNED)
    first = -(room.__array_interface__["data"][0] // room.itemsize) % ALIGNED
    return room[first : first + size].reshape(*shape, LANES)


def each_in_lanes(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays (..., LANES) of zeros, as :func:`in_lanes` makes them, of one piece of memory."""
    sizes = [math.prod(shape) for shape in shapes]
    room, ends = in_lanes(sum(sizes)), [0, *accumulate(sizes)]
    places = zip(shapes, pairwise(ends), strict=True)
    return [room[a:b].reshape(*shape, LANES) for shape, (a, b) in places]


def tile(row_ptr: np.ndarray) -> Tiles:
    """Tiles of donors whose rows start at row_ptr (N + 1,)."""
    size = row_ptr[1:] - row_ptr[:-1]
    m = int(size.max(initial=1))
    place = np.empty(row_ptr[-1], dtype=np.int64)
    arranging.places(row_ptr, m, LANES, place)
    return Tiles((-(-len(size) // LANES), m, LANES), place)


def from_tiles(values: np.ndarray, tiles: Tiles) -> np.ndarray:
    """Columns (n, k) of an array (T, k, m, LANES)."""
    T, k, m, lanes = values.shape
    return values.transpose(0, 2, 3, 1).reshape(T * m * lanes, k)[tiles.place]


class Blocks(NamedTuple):
    """Design arrays of the kernels, donors sorted by block and laid out in :class:`Tiles`.

    design (T, R + p + d, m, LANES) = [W | X | Z]: factor loadings, orthonormal fixed effects,
    weights of the (at most d) levels that the donor touches; R, p; n_rows (T LANES,) rows of a
    donor; block (T LANES,) its block; level (T LANES, d) its levels, or -1; level_ptr (B + 1,)
    levels of a block; pair_ptr (B + 1,) their pairs; level_comp (q,) random component of a level;
    span (R, 2) rows from which and before which a factor of W may differ from 0.
    """

    design: np.ndarray
    R: int
    p: int
    n_rows: np.ndarray
    block: np.ndarray
    level: np.ndarray
    level_ptr: np.ndarray
    pair_ptr: np.ndarray
    level_comp: np.ndarray
    span: np.ndarray


def spans(W: np.ndarray) -> np.ndarray:
    """First rows, and those after the last, in which factors (T, R, m, LANES) are not 0; (R, 2)."""
    there = (W != 0.0).any(axis=(0, 3))
    return np.stack([there.argmax(axis=1), there.shape[1] - there[:, ::-1].argmax(axis=1)], axis=1)


@dataclass(frozen=True, eq=False)
class Model:
    """Frozen arrays of one response; make it with :func:`build_model`.

    Attributes
    ----------
    y, nu : ndarray, shape (n,)
        Pseudobulk expression and its measured noise variance (squared standard error), which may
        be 0.
    X : ndarray, shape (n, p); H : ndarray, shape (n, C)
    basis : ndarray, shape (K, C, C)
    random : tuple of RandomComponent
    W : ndarray, shape (n, R); Q : ndarray, shape (n, p)
        Factor loadings; fixed-effect columns made orthonormal.
    row_donor : int ndarray, shape (n,); row_ptr : int ndarray, shape (N + 1,)
        Donor of each row, numbered in kernel order; first row of each donor.
    donor_block : int ndarray, shape (N,)
        Block of each donor: blocks share no level of a random effect.
    order : int ndarray, shape (n,)
        ``order[a]`` is the caller's row number of row a.
    donors : int ndarray, shape (N,)
        ``donors[i]`` is the caller's code of donor i.
    tiles : Tiles; blocks : Blocks
    S : ndarray, shape (K + Kr, R + Kr)
        Components to factors: phi = S' theta.
    back : ndarray, shape (p, p)
        Q = X @ back: fixed effects of X from those of the orthonormal columns.
    active : bool ndarray, shape (N,)
        Donors in use; the jackknife switches one off at a time.
    n_cells : ndarray, shape (n,), or None
    nu2 : ndarray, shape (n,), or None
        Unbiased estimates of the squares of the true noise variances; NaN where there is none.
    types : ndarray, shape (n, C')
        Cell types of the rows, by which noise is pooled; H unless donors' effects are crossed.
    kinship : tuple of KernelTerm
        Effects of related donors, whose components come last in theta.  No block knows of them:
        what is compiled sees the model without, which is ``unrelated``.
    """

    y: np.ndarray
    nu: np.ndarray
    X: np.ndarray
    H: np.ndarray
    basis: np.ndarray
    random: tuple[RandomComponent, ...]
    W: np.ndarray
    Q: np.ndarray
    row_donor: np.ndarray
    row_ptr: np.ndarray
    donor_block: np.ndarray
    order: np.ndarray
    donors: np.ndarray
    tiles: Tiles
    blocks: Blocks
    S: np.ndarray
    back: np.ndarray
    active: np.ndarray
    n_cells: np.ndarray | None
    nu2: np.ndarray | None
    types: np.ndarray
    kinship: tuple[KernelTerm, ...] = ()

    @cached_property
    def noise(self) -> np.ndarray:
        """The noise that covariances hold, (n,): nu, and where it is 0 the working noise.

        Whatever weighs by the noise (likelihoods, GLS, predictions) or draws from it takes this;
        what only centres by it takes nu.
        """
        return weighable(self.nu, self.types, self.n_cells)

    @property
    def some_alike(self) -> bool:
        """Whether in some row all cells are alike: its nu is 0, and :attr:`noise` another."""
        return self.noise is not self.nu

    @cached_property
    def along(self) -> np.ndarray:
        """Q'y (p,), by which Q explains y."""
        return np.asarray(self.Q.T @ self.y)

    @cached_property
    def residual(self) -> np.ndarray:
        """y less its least-squares fit, (n,)."""
        return np.asarray(self.y - self.Q @ self.along)

    @property
    def n_components(self) -> int:
        """Number of variance components, K + Kr, and those of the kinship."""
        return len(self.S) + sum(len(term.basis) for term in self.kinship)

    @property
    def n_donor_components(self) -> int:
        """Number of donor-level components K (they come first in theta)."""
        return len(self.basis)

    @property
    def unrelated(self) -> Model:
        """The same model without the terms of the kinship."""
        return replace(self, kinship=()) if self.kinship else self

    def random_variances(self, theta: np.ndarray) -> np.ndarray:
        """Variances of the random effects, (Kr,)."""
        return theta[len(self.basis) : len(self.S)]

    @property
    def kinship_slices(self) -> list[slice]:
        """Where the components of every term of the kinship lie in theta."""
        ends = accumulate((len(term.basis) for term in self.kinship), initial=len(self.S))
        return [slice(a, b) for a, b in pairwise(ends)]

    def genetic_covariances(self, theta: np.ndarray) -> list[np.ndarray]:
        """A = sum_k theta_k B_k of every term of the kinship, (C, C) each."""
        return [
            np.tensordot(theta[at], term.basis, axes=1)
            for term, at in zip(self.kinship, self.kinship_slices, strict=True)
        ]

    @cached_property
    def n_donors(self) -> int:
        """Donors in use."""
        return int(self.active.sum())

    @cached_property
    def active_rows(self) -> np.ndarray:
        """Boolean mask of the rows in use, shape (n,)."""
        return self.active[self.row_donor]

    @cached_property
    def pooling(self) -> Pooling:
        """How the noise of the rows in use is pooled."""
        return pooling(self.types, self.n_cells, self.active_rows)

    @cached_property
    def nobs(self) -> int:
        """Rows in use."""
        return int(self.active_rows.sum())

    @cached_property
    def random_blocks(self) -> Blocks:
        """The blocks without fixed effects."""
        b = self.blocks
        design = np.concatenate([b.design[:, : b.R], b.design[:, b.R + b.p :]], axis=1)
        return b._replace(design=design, p=0)

    def __repr__(self) -> str:
        p, terms = self.X.shape[1], len(self.random)
        return (
            f"<Model: {self.nobs} rows, {self.n_donors} donors, {p} fixed effects, "
            f"{self.n_components} variance components, {terms} of random effects>"
        )

    def with_response(self, y: np.ndarray, nu: np.ndarray, nu2: np.ndarray | None = None) -> Model:
        """The same design with another response and its noise, given in kernel order."""
        for name in _OF_DESIGN:
            getattr(self, name)
        model = object.__new__(Model)  # as replace() would, which takes thrice the time
        model.__dict__.update(self.__dict__, y=_floats(y), nu=_floats(nu), nu2=_optional(nu2))
        for name in _OF_RESPONSE:
            model.__dict__.pop(name, None)
        return model

    def with_responses(
        self, Y: np.ndarray, NU: np.ndarray, NU2: np.ndarray | None = None
    ) -> list[Model]:
        """The same with many (g, n), and what is asked of each found for all at once."""
        along = (Y[:, None] @ self.Q)[:, 0]  # one by one: whatever others there are
        residual = Y - (along[:, None] @ self.Q.T)[:, 0]
        measured = np.all(NU, axis=1).tolist()
        models = []
        for k, known in enumerate(measured):
            model = self.with_response(Y[k], NU[k], None if NU2 is None else NU2[k])
            model.__dict__.update(along=along[k], residual=residual[k])
            model.__dict__.update({"noise": model.nu} if known else {})
            models.append(model)
        return models

    def without(self, donors: int | Sequence[int] | np.ndarray) -> Model:
        """The same model with these donors (kernel numbers) left out."""
        active = self.active.copy()
        active[donors] = False
        return replace(self, active=active)

    def full_rank(self) -> Model:
        """The model with X replaced by a basis of its columns in the rows in use.

        For donors left out that were alone in a level of a covariate.
        """
        rows = self.active_rows
        left, size, _ = np.linalg.svd(self.Q[rows], full_matrices=False)
        rank = int((size > 1e-5).sum())  # squared: the tolerance of a cross product
        X = np.zeros((len(rows), rank))
        X[rows] = left[:, :rank]
        b = self.blocks
        parts = b.design[:, : b.R], self.tiles.put(X), b.design[:, b.R + b.p :]
        blocks = b._replace(design=np.concatenate(parts, axis=1), p=rank)
        return replace(self, X=X, Q=X, blocks=blocks, back=np.eye(rank))

    def with_basis(self, basis: np.ndarray) -> Model:
        """The same data under another covariance structure, basis (K, C, C)."""
        W, S = _loadings(self.H, basis, len(self.random))
        tiled, own = self.tiles.put(W), self.blocks
        design = np.concatenate([tiled, own.design[:, own.R :]], axis=1)
        blocks = own._replace(design=design, R=W.shape[1], span=spans(tiled))
        return replace(self, basis=basis, W=W, blocks=blocks, S=S)

    def unsort(self, values: np.ndarray) -> np.ndarray:
        """Values per row (first axis) from kernel order to the caller's row order."""
        out = np.empty_like(values)
        out[self.order] = values
        return out

    def effect_covariance(self, theta: np.ndarray) -> np.ndarray:
        """A = sum_k theta_k B_k, shape (C, C)."""
        return np.tensordot(theta[: len(self.basis)], self.basis, axes=1)


_OF_DESIGN = ("n_donors", "active_rows", "nobs", "random_blocks")
"""What all responses of a design share and one of them has worked out."""
_OF_RESPONSE = ("noise", "along", "residual")
"""What a response has for itself."""


def refuse_related(model: Model) -> None:
    """Blocks of donors are no blocks where donors are related.

    Raises
    ------
    ConvergenceError
    """
    if model.kinship:
        raise ConvergenceError(
            "this takes donors as unrelated, and the fit has a kinship: ask it of a fit without"
        )


def build_model(
    y: np.ndarray,
    nu: np.ndarray,
    X: np.ndarray,
    H: np.ndarray,
    donor: np.ndarray,
    basis: np.ndarray,
    random: Sequence[RandomComponent] = (),
    n_cells: np.ndarray | None = None,
    nu2: np.ndarray | None = None,
    types: np.ndarray | None = None,
    kinship: Sequence[KernelTerm] = (),
) -> Model:
    """Sort rows into blocks and lay the design out for the kernels.

    Parameters
    ----------
    y, nu : array, shape (n,)
    X : array, shape (n, p), of full column rank
    H : array, shape (n, C)
    donor : int array, shape (n,), codes 0 ... N-1, each used
    basis : array, shape (K, C, C)
    random : sequence of RandomComponent, optional
    n_cells, nu2 : array, shape (n,), optional
    types : array, shape (n, C'), optional
        Cell types of the rows, where these are not H.
    kinship : sequence of KernelTerm, optional
        Their donors in the order of the codes.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.tile(np.eye(2), (3, 1))
    >>> model = build_model(np.arange(6.), np.ones(6), H, H, np.repeat([0, 1, 2], 2),
    ...                     np.ones((1, 2, 2)))
    >>> model.nobs, model.n_donors, model.n_components
    (6, 3, 1)
    """
    donor = np.asarray(donor, dtype=np.int64)
    n_donors = int(donor.max()) + 1
    block_of_donor, block_of_level, component_of_level, level = _connect(random, donor)

    donors = np.argsort(block_of_donor, kind="stable")
    rank = np.empty(n_donors, dtype=np.int64)
    rank[donors] = np.arange(n_donors)
    order = np.argsort(rank[donor], kind="stable")
    row_donor = rank[donor][order]
    n_blocks = int(block_of_donor.max()) + 1
    row_ptr = np.searchsorted(row_donor, np.arange(n_donors + 1))

    levels = np.argsort(block_of_level, kind="stable")
    level_rank = np.empty(len(levels), dtype=np.int64)
    level_rank[levels] = np.arange(len(levels))
    level_ptr = np.searchsorted(block_of_level[levels], np.arange(n_blocks + 1))
    random = [RandomComponent(np.asarray(c.codes)[order], _floats(c.values)[order]) for c in random]
    level = np.append(level_rank, -1)[level[:, order]]
    level, Z = _levels_of_donors(level, _weights(random, level.shape), row_donor)

    X = _floats(X).take(order, axis=0)
    H = _floats(H).take(order, axis=0)
    basis = _floats(basis)
    Q, back = _orthonormal(X)
    W, S = _loadings(H, basis, len(random))
    tiles = tile(row_ptr)
    levels_of_block = level_ptr[1:] - level_ptr[:-1]
    tiled = tiles.put(np.hstack([W, Q, Z]))
    blocks = Blocks(
        design=tiled,
        R=W.shape[1],
        p=X.shape[1],
        n_rows=tiles.donors(row_ptr[1:] - row_ptr[:-1], 0),
        block=tiles.donors(block_of_donor[donors], 0),
        level=tiles.donors(level, -1),
        level_ptr=level_ptr,
        pair_ptr=np.concatenate([[0], np.cumsum(levels_of_block**2)]),
        level_comp=component_of_level[levels],
        span=spans(tiled[:, : W.shape[1]]),
    )
    return Model(
        y=_floats(y)[order],
        nu=_floats(nu)[order],
        X=X,
        H=H,
        basis=basis,
        random=tuple(random),
        W=W,
        Q=Q,
        row_donor=row_donor,
        row_ptr=row_ptr,
        donor_block=block_of_donor[donors],
        order=order,
        donors=donors,
        tiles=tiles,
        blocks=blocks,
        S=S,
        back=back,
        active=np.ones(n_donors, dtype=bool),
        n_cells=_optional(n_cells, order),
        nu2=_optional(nu2, order),
        types=H if types is None else _floats(types)[order],
        kinship=tuple(KernelTerm(term.kernel.of(donors), _floats(term.basis)) for term in kinship),
    )


def n_blocks(donor: np.ndarray, random: Sequence[RandomComponent]) -> int:
    """Number of independent blocks: donors (n,), or groups of them that share random effects.

    >>> batch = RandomComponent(np.array([0, 0, 1]), np.ones(3))
    >>> n_blocks(np.arange(3), []), n_blocks(np.arange(3), [batch])
    (3, 2)
    """
    return int(_connect(random, donor)[0].max()) + 1


def rank_one_factors(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors v_r and coefficients with B_k = sum_r coef[k, r] v_r v_r'.

    A matrix of rank one is its own factor; any other is spread over e_c and e_c + e_d; effects that
    a matrix does not join (of groups, of conditions) go by themselves.  Factors are shared between
    basis matrices, so hom, iid, free and full need R = 1, C + 1, C + 1 and C (C + 1) / 2 of them.

    Returns
    -------
    vectors : ndarray, shape (C, R);  coef : ndarray, shape (K, R)

    Examples
    --------
    >>> vectors, coef = rank_one_factors(np.array([np.ones((2, 2)), np.diag([1., 0.])]))
    >>> vectors.T.tolist(), coef.tolist()
    ([[1.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    """
    size = basis.shape[1]
    vectors: list[np.ndarray] = []
    index: dict[bytes, int] = {}
    terms: list[dict[int, float]] = []

    def add(term: dict[int, float], vector: np.ndarray, weight: float) -> None:
        if weight == 0.0:
            return
        key = (vector + 0.0).tobytes()
        if key not in index:
            index[key] = len(vectors)
            vectors.append(vector)
        term[index[key]] = term.get(index[key], 0.0) + weight

    eye = np.eye(size)
    for matrix in basis:
        term: dict[int, float] = {}
        for own in _connected(matrix):
            values, axes = np.linalg.eigh(own)
            top = int(np.argmax(np.abs(values)))
            if np.abs(np.delete(values, top)).max(initial=0.0) < 1e-12 * abs(values[top]):
                vector = axes[:, top]
                pivot = vector[np.argmax(np.abs(vector) > 1e-9)]
                vector = np.where(np.abs(vector) > 1e-12, np.round(vector / pivot, 14), 0.0)
                add(term, vector, float(values[top] * pivot**2))
            else:
                for c in range(size):
                    add(term, eye[c], 2.0 * own[c, c] - own[c].sum())
                    for d in range(c):
                        add(term, eye[c] + eye[d], own[c, d])
        terms.append(term)
    coef = np.zeros((len(basis), len(vectors)))
    for k, term in enumerate(terms):
        for r, weight in term.items():
            coef[k, r] = weight if abs(weight - round(weight)) > 1e-12 else round(weight)
    return np.array(vectors).reshape(-1, size).T, coef


def _connected(matrix: np.ndarray) -> list[np.ndarray]:
    """The parts of a matrix that no entry joins, each of its whole size."""
    groups, own = connected_components(matrix != 0.0, directed=False)
    parts = (np.where((own == k)[:, None] & (own == k), matrix, 0.0) for k in range(groups))
    return [part for part in parts if part.any()]


def factors_of(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`rank_one_factors` of a basis, kept for the next that asks."""
    return _cached_factors(basis.tobytes(), basis.shape)


@functools.lru_cache(maxsize=64)
def _cached_factors(basis: bytes, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return rank_one_factors(np.frombuffer(basis).reshape(shape))


def _floats(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float64)


def _optional(values: np.ndarray | None, order: slice | np.ndarray = slice(None)) -> Any:
    return None if values is None else _floats(values)[order]


def _orthonormal(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q = X back with orthonormal columns, back (p, p) upper triangular."""
    if not X.shape[1]:
        return X, np.zeros((0, 0))
    factored, tau, *_ = lapack.dgeqrf(X)
    R = factored[: X.shape[1]]
    sign = np.where(R.diagonal() < 0, -1.0, 1.0)
    back, _ = lapack.dtrtri(R)  # reads the upper triangle only
    Q, *_ = lapack.dorgqr(factored, tau)
    return Q * sign, np.where(_upper(len(sign)), back, 0.0) * sign


@functools.lru_cache(maxsize=64)
def _upper(p: int) -> np.ndarray:
    """Which entries lie on or above the diagonal, (p, p)."""
    return np.triu(np.ones((p, p), dtype=bool))


def _loadings(H: np.ndarray, basis: np.ndarray, n_random: int) -> tuple[np.ndarray, np.ndarray]:
    """W = H V (n, R) and the map S (K + Kr, R + Kr) from components to factors."""
    vectors, coef = factors_of(basis)
    count, n_factors = coef.shape
    S = np.zeros((count + n_random, n_factors + n_random))
    S[:count, :n_factors] = coef
    S[count:, n_factors:] = np.eye(n_random)
    return _floats(H @ vectors), S


def _connect(
    random: Sequence[RandomComponent], donor: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Independent blocks: donors joined through the levels they share.

    Returns
    -------
    blocks of donors (N,) and of levels (q,); random component of every level (q,); levels (R, n) of
    rows, -1 where they have no weight
    """
    shape = len(random), len(donor)
    codes = np.array([one.codes for one in random], dtype=np.int64).reshape(shape)
    weights = _weights(random, shape)
    if codes.min(initial=0) < 0 and (weights[codes < 0] != 0.0).any():
        raise ValueError("a code of a random component is negative: its weight must be 0")
    level, number = np.empty(shape, dtype=np.int64), np.empty(codes.max(initial=0) + 1, np.int64)
    component, of_level, head = np.empty((3, len(random) * len(number)), dtype=np.int64)
    of_donor, parent = np.empty((2, int(donor.max()) + 1), dtype=np.int64)
    memory = number, head, parent
    q = arranging.connect(codes, weights, donor, level, component, of_level, of_donor, memory)
    return of_donor, of_level[:q], component[:q], level


def _weights(random: Sequence[RandomComponent], shape: tuple[int, int]) -> np.ndarray:
    """Weights of rows in every random component, (R, n)."""
    return np.array([one.values for one in random], dtype=np.float64).reshape(shape)


def _levels_of_donors(
    level: np.ndarray, values: np.ndarray, row_donor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Levels that each donor touches, (N, d) or -1, and their weights Z (n, d).

    By levels and weights (R, n) of rows.
    """
    most = min(len(level) * int(np.bincount(row_donor).max()), int(level.max(initial=-1)) + 1)
    levels = np.full((int(row_donor[-1]) + 1, most + 1), -1, dtype=np.int64)
    Z = np.zeros((len(row_donor), most))
    d = arranging.touched(level, values, row_donor, levels, Z)
    return levels[:, :d].copy(), Z[:, :d].copy()
