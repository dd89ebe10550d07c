"""Draw one response of a given model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from ..arguments import Rng, floats, generator
from ..errors import CTMMError
from .model import Model

ROUNDING = 1e-13
"""Eigenvalues this small relative to the largest are zero: errors of eigh are some 1e-16."""
_REMEDY = "choose larger variance components; those of a fit by method='reml' can be drawn"


def draw(model: Model, theta: ArrayLike, beta: ArrayLike, rng: Rng = None) -> np.ndarray:
    """Draw one response from the model.

    Donor i gets X_i b + N(0, H_i A H_i' + diag(nu_i)), so single components of A may be negative
    as long as that covariance is not; random effects are added to it, u ~ N(0, r).  Where some r
    is negative, all donors of a block are drawn from their joint covariance.  Effects of related
    donors, N(0, K (x) A), are added too, and need a positive semi-definite A.

    Parameters
    ----------
    model : Model
    theta : array, shape (K + Kr,)
        Donor-level components, then one variance r per random component, then the kinship's.
    beta : array, shape (p,)
    rng : numpy Generator or seed, optional

    Returns
    -------
    ndarray, shape (n,)
        In kernel order (``model.unsort`` gives the caller's); donors left out keep their values.

    Raises
    ------
    CTMMError
        Wrong lengths, or a donor or block whose covariance is not positive semi-definite.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (500, 1))
    >>> model = build_model(np.zeros(1000), np.full(1000, 0.1), H, H, np.repeat(range(500), 2),
    ...                     np.ones((1, 2, 2)))
    >>> y = draw(model, [2.0], [1.0, -1.0], rng=0).reshape(500, 2)
    >>> np.cov(y.T).round(1).tolist()
    [[2.0, 1.9], [1.9, 2.0]]
    """
    rng = generator(rng)
    theta, beta = floats("theta", theta), floats("beta", beta)
    _check_parameters(model, theta, beta)
    A = model.effect_covariance(theta)
    variances = model.random_variances(theta)
    if (variances < 0.0).any():
        return _draw_blocks(model, A, variances, beta, rng) + _related(model, theta, rng)
    y = np.where(model.active_rows, model.X @ beta, model.y)
    for rows in _rows_by_size(model):
        H = model.H[rows]  # (donors, m, C)
        sigma = H @ A @ H.swapaxes(1, 2) + model.noise[rows][:, None] * np.eye(rows.shape[1])
        roots = _square_roots(sigma, model.donors[model.row_donor[rows[:, 0]]])
        y[rows] += (roots @ rng.standard_normal((*rows.shape, 1)))[..., 0]
    for component, r in zip(model.random, variances, strict=True):
        levels, level = np.unique(component.codes, return_inverse=True)
        u = np.sqrt(r) * rng.standard_normal(len(levels))
        y += np.where(model.active_rows, component.values * u[level], 0.0)
    return y + _related(model, theta, rng)


def _related(model: Model, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Effects of related donors by row, (n,); zero in rows that are not in use."""
    out = np.zeros(len(model.y))
    for term, A in zip(model.kinship, model.genetic_covariances(theta), strict=True):
        size, axes = np.linalg.eigh(A)
        if size[0] < -ROUNDING * np.abs(size).max():
            raise CTMMError(
                "cannot draw: the genetic covariance between cell types is not positive "
                f"semi-definite (smallest eigenvalue {size[0]:.3g}); {_REMEDY}"
            )
        root, part = term.kernel.half, (axes * np.sqrt(np.maximum(size, 0.0))) @ axes.T
        values = root @ rng.standard_normal((root.shape[1], len(A))) @ part
        out += (model.H * values[model.row_donor]).sum(axis=1)
    return np.where(model.active_rows, out, 0.0)


def _check_parameters(model: Model, theta: np.ndarray, beta: np.ndarray) -> None:
    if not isinstance(model, Model):
        raise CTMMError(f"model= must be a Model, got {type(model).__name__}")
    if theta.shape != (model.n_components,) or beta.shape != (model.X.shape[1],):
        raise CTMMError(
            f"the model has {model.n_components} variance components and {model.X.shape[1]} fixed "
            f"effects, got arrays of shape {theta.shape} and {beta.shape}"
        )


def _draw_blocks(
    model: Model, A: np.ndarray, variances: np.ndarray, beta: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw every block from its joint covariance, which may be definite although some r < 0."""
    y = np.where(model.active_rows, model.X @ beta, model.y)
    _, first = np.unique(model.donor_block, return_index=True)
    ends = np.append(model.row_ptr[first], len(y))
    for start, stop in pairwise(ends):
        rows = np.arange(start, stop)[model.active_rows[start:stop]]
        if not len(rows):
            continue
        H, donor = model.H[rows], model.row_donor[rows]
        sigma = (H @ A @ H.T) * (donor[:, None] == donor) + np.diag(model.noise[rows])
        for component, r in zip(model.random, variances, strict=True):
            code, value = component.codes[rows], component.values[rows]
            sigma += r * np.outer(value, value) * (code[:, None] == code)
        root = _square_roots(sigma[None], model.donors[donor[:1]])[0]
        y[rows] += root @ rng.standard_normal(len(rows))
    return y


def _rows_by_size(model: Model) -> Iterator[np.ndarray]:
    """Row numbers (donors, m) of the donors in use, all donors with m rows at a time."""
    size = np.bincount(model.row_donor, minlength=len(model.active))
    start = np.cumsum(size) - size
    for m in np.unique(size[model.active]):
        yield start[model.active & (size == m)][:, None] + np.arange(m)


def _square_roots(sigma: np.ndarray, donors: np.ndarray) -> np.ndarray:
    """Symmetric square roots of stacked covariances.

    Unlike a Cholesky factor it exists for singular ones, and unlike eigenvectors it is unique, so
    a seed gives the same numbers with any LAPACK.
    """
    values, vectors = np.linalg.eigh(sigma)
    zero = ROUNDING * np.abs(values).max(axis=1, keepdims=True)
    bad = np.flatnonzero((values < -zero).any(axis=1))
    if len(bad):
        raise CTMMError(
            "cannot draw: the covariance of some donors is not positive semi-definite "
            f"(donor codes {', '.join(map(str, donors[bad[:3]]))}; smallest eigenvalue "
            f"{values[bad, 0].min():.3g}); {_REMEDY}"
        )
    scale = np.sqrt(np.where(values > zero, values, 0.0))
    return (vectors * scale[:, None]) @ vectors.swapaxes(1, 2)
