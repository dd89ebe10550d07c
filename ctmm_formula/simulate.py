"""Draw data from the model: one response of a given design, or whole pseudobulk tables.

The tables follow the model as it is written (see :mod:`ctmm_formula.engine.model`):

    y_ic = beta_c + x_i'b + alpha_i + Gamma_ic + u_batch(i) + delta_ic
    alpha_i ~ N(0, sigma2)   Gamma_i ~ N(0, V)   u ~ N(0, r)   delta_ic ~ N(0, nu_ic)

with nu_ic = s2_ic / n_ic, the variance between cells over the number of cells.  The noise variance
a study sees is itself measured; ``noise_error`` says how badly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from .engine.model import Model, RandomComponent, build_model
from .errors import CTMMError, choose

Rng: TypeAlias = np.random.Generator | int | None
CellNumbers: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
NoiseError: TypeAlias = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]

ROUNDING = 1e-13
"""Eigenvalues this small relative to the largest are zero: errors of eigh are some 1e-16."""


def draw(model: Model, theta: ArrayLike, beta: ArrayLike, rng: Rng = None) -> np.ndarray:
    """Draw one response from the model.

    Donor i gets X_i b + N(0, H_i A H_i' + diag(nu_i)), so single components of A may be negative
    as long as that covariance is not; random effects are added to it, u ~ N(0, r).  Where some r
    is negative, all donors of a block are drawn from their joint covariance.

    Parameters
    ----------
    model : Model
    theta : array, shape (K + Kr,)
        Donor-level components, then one variance r per random component.
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
    rng = np.random.default_rng(rng)
    theta, beta = np.asarray(theta, dtype=float), np.asarray(beta, dtype=float)
    _check_parameters(model, theta, beta)
    A = model.effect_covariance(theta)
    variances = theta[model.n_donor_components :]
    if (variances < 0.0).any():
        return _draw_blocks(model, A, variances, beta, rng)
    y = np.where(model.active_rows, model.X @ beta, model.y)
    for rows in _rows_by_size(model):
        H = model.H[rows]  # (donors, m, C)
        sigma = H @ A @ H.swapaxes(1, 2) + model.nu[rows][:, None] * np.eye(rows.shape[1])
        roots = _square_roots(sigma, model.donors[model.row_donor[rows[:, 0]]])
        y[rows] += (roots @ rng.standard_normal((*rows.shape, 1)))[..., 0]
    for component, r in zip(model.random, variances, strict=True):
        levels, level = np.unique(component.codes, return_inverse=True)
        u = np.sqrt(r) * rng.standard_normal(len(levels))
        y += np.where(model.active_rows, component.values * u[level], 0.0)
    return y


def _check_parameters(model: Model, theta: np.ndarray, beta: np.ndarray) -> None:
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
        sigma = (H @ A @ H.T) * (donor[:, None] == donor) + np.diag(model.nu[rows])
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
            f"{values[bad, 0].min():.3g}); choose larger variance components"
        )
    scale = np.sqrt(np.where(values > zero, values, 0.0))
    return (vectors * scale[:, None]) @ vectors.swapaxes(1, 2)


def log_uniform_cells(low: int = 10, high: int = 120) -> CellNumbers:
    """Numbers of cells per donor and cell type, log-uniform from `low` to `high`.

    >>> log_uniform_cells(10, 20)(np.random.default_rng(0), (2, 2)).shape
    (2, 2)
    """

    def cells(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high + 1), shape)).astype(np.int64)

    return cells


def negative_binomial_cells(mean: float, size: float) -> CellNumbers:
    """Numbers of cells with this mean and variance mean + mean^2 / size; zeros happen.

    >>> cells = negative_binomial_cells(100, 2)(np.random.default_rng(0), (2000,))
    >>> bool(abs(cells.mean() - 100) < 5)
    True
    """

    def cells(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.negative_binomial(size, size / (size + mean), shape)

    return cells


def beta_error(b: float) -> NoiseError:
    """Noise variances off by a factor 1 + x or 1 - x, x ~ Beta(2, b), as in the CTMM paper.

    b = 20, 10, 5, 3, 2 give a coefficient of variation of .11, .20, .33, .45, .55.

    >>> measured = beta_error(5)(np.random.default_rng(0), np.ones(10_000), np.ones(10_000))
    >>> round(float(measured.std()), 2)
    0.33
    """

    def measure(rng: np.random.Generator, nu: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
        return nu * (1.0 + rng.choice([-1.0, 1.0], nu.shape) * rng.beta(2.0, b, nu.shape))

    return measure


def cell_error(kurtosis: float = 0.0) -> NoiseError:
    """Noise variances measured from the cells.

    A sample variance of n cells has mean s2 and variance s2^2 (2 / (n - 1) + kurtosis / n); it is
    drawn from the gamma distribution with these moments, for normal cells chi-square on n - 1.

    Parameters
    ----------
    kurtosis : float
        Excess kurtosis of the expression of single cells.

    Examples
    --------
    >>> cells = np.full(10_000, 51)
    >>> measured = cell_error()(np.random.default_rng(0), np.ones(10_000), cells)
    >>> round(float(measured.std()), 2)
    0.2
    """

    def measure(rng: np.random.Generator, nu: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
        variance = 2.0 / (n_cells - 1) + kurtosis / n_cells
        return nu * rng.gamma(1.0 / variance, variance)

    return measure


class Pseudobulk(NamedTuple):
    """Simulated tables of one gene: cell type-specific (`ctp`) and overall (`op`) pseudobulk."""

    ctp: pd.DataFrame
    op: pd.DataFrame


def simulate_pseudobulk(
    n_donors: int = 50,
    celltypes: int | Sequence[str] = 4,
    *,
    sigma2: float = 0.25,
    V: ArrayLike = 0.0,
    beta: ArrayLike = 0.0,
    n_pcs: int = 2,
    effects: Mapping[str, float] | None = None,
    n_batches: int = 8,
    batch_variance: float = 0.0,
    cells: CellNumbers | None = None,
    min_cells: int = 2,
    cell_variance: ArrayLike = 4.0,
    noise_error: NoiseError | None = None,
    missing: float = 0.0,
    rng: Rng = None,
) -> Pseudobulk:
    """Simulate pseudobulk expression of one gene with known parameters.

    Parameters
    ----------
    n_donors : int
    celltypes : int or sequence of str
        Number C of cell types (named T1, T2, ...) or their names.
    sigma2 : float
        Variance between donors that all cell types share.
    V : float, or array, shape (C,) or (C, C)
        Cell type-specific variance: v I, diag(V), or a covariance matrix.
    beta : float or array, shape (C,)
        Mean of each cell type.
    n_pcs : int
        Number of standard normal covariates PC1, PC2, ...
    effects : dict, optional
        Slopes of ``"sex"`` (M against F) and ``"PC1"``, ...; those not named are 0.
    n_batches : int
        Donors are dealt to this many batches at random, as evenly as possible.
    batch_variance : float
    cells : callable, optional
        Draws the numbers of cells, by default ``log_uniform_cells(10, 120)``; see also
        :func:`negative_binomial_cells`.
    min_cells : int
        Pairs of donor and cell type with fewer cells are missing.
    cell_variance : float, or array, shape (C,) or (n_donors, C)
        Variance s2 between the cells of a donor and cell type.
    noise_error : callable, optional
        Turns the true noise variances into measured ones (column ``nu``): :func:`beta_error`,
        :func:`cell_error`; none by default.
    missing : float
        Probability of a pair to be missing whatever its cells.
    rng : numpy Generator or seed, optional

    Returns
    -------
    Pseudobulk
        ``ctp``: one row per donor and cell type, columns donor, celltype, batch, sex, PC1, ...,
        n_cells, expr, nu.  ``op``: one row per donor, with the share prop_<cell type> of each
        cell type P_ic, expr = sum_c P_ic y_ic and nu = sum_c P_ic^2 nu_ic.  A donor without any
        pair is in neither.

    Raises
    ------
    CTMMError
        An unknown covariate in `effects`, a negative variance, or arrays of wrong shape.

    Examples
    --------
    >>> data = simulate_pseudobulk(20, ["T", "B"], V=[0.5, 0.1], effects={"sex": 0.3}, rng=1)
    >>> list(data.ctp)
    ['donor', 'celltype', 'batch', 'sex', 'PC1', 'PC2', 'n_cells', 'expr', 'nu']
    >>> data.ctp.shape, data.op.shape
    ((40, 9), (20, 10))
    """
    rng = np.random.default_rng(rng)
    names = [f"T{c + 1}" for c in range(celltypes)] if isinstance(celltypes, int) else celltypes
    C = len(names)
    A = sigma2 + (_shaped("V", V, (C, C)) if np.ndim(V) == 2 else np.diag(_shaped("V", V, (C,))))
    donors = _donor_table(n_donors, n_batches, n_pcs, rng)
    slopes = _slopes(donors, effects or {})

    n_cells = (cells or log_uniform_cells())(rng, (n_donors, C))
    keep = (n_cells >= max(min_cells, 2)) & (rng.random((n_donors, C)) >= missing)
    donor, celltype = np.nonzero(keep)
    n_cells = n_cells[keep]
    nu = _shaped("cell_variance", cell_variance, keep.shape)[keep] / n_cells
    if (A != A.T).any() or (nu < 0).any():
        raise CTMMError("V must be symmetric and cell_variance >= 0")
    if batch_variance < 0:
        raise CTMMError(f"batch_variance must not be negative, got {batch_variance}")

    H = np.eye(C)[celltype]
    covariates = donors.assign(sex=donors["sex"] == "M")[list(slopes)].to_numpy(dtype=float)
    X = np.column_stack([H, covariates[donor]])
    fixed = np.concatenate([_shaped("beta", beta, (C,)), list(slopes.values())])
    batch = RandomComponent(pd.factorize(donors["batch"])[0][donor], np.ones(len(donor)))
    codes = np.unique(donor, return_inverse=True)[1]
    model = build_model(np.zeros(len(nu)), nu, X, H, codes, A[None], [batch])
    y = model.unsort(draw(model, [1.0, batch_variance], fixed, rng))

    ctp = donors.iloc[donor].reset_index(drop=True)
    ctp.insert(1, "celltype", np.array(names, dtype=object)[celltype])
    ctp["n_cells"] = n_cells
    ctp["expr"] = y
    ctp["nu"] = noise_error(rng, nu, n_cells) if noise_error else nu
    return Pseudobulk(ctp, overall_table(ctp, names))


def _shaped(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The value as floats, broadcast to `shape`."""
    array = np.asarray(value, dtype=float)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise CTMMError(f"{name} must have shape {shape}, got {array.shape}") from None


def _donor_table(
    n_donors: int, n_batches: int, n_pcs: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Donors with batch, sex and standard normal covariates."""
    batch = rng.permutation(np.arange(n_donors) % max(n_batches, 1))
    table = {
        "donor": [f"d{i + 1:03d}" for i in range(n_donors)],
        "batch": [f"b{b + 1:02d}" for b in batch],
        "sex": rng.choice(["F", "M"], n_donors),
    }
    return pd.DataFrame(table | {f"PC{k + 1}": rng.standard_normal(n_donors) for k in range(n_pcs)})


def _slopes(donors: pd.DataFrame, effects: Mapping[str, float]) -> dict[str, float]:
    """Slope of every covariate, 0 where `effects` does not name it."""
    covariates = [str(name) for name in donors if name not in ("donor", "batch")]
    for name in effects:
        choose("covariate in effects", name, covariates)
    return {name: float(effects.get(name, 0.0)) for name in covariates}


def overall_table(ctp: pd.DataFrame, celltypes: Sequence[str]) -> pd.DataFrame:
    """Overall pseudobulk of a cell type-specific table: cells, not cell types, weigh equally.

    Parameters
    ----------
    ctp : DataFrame
        Columns donor, celltype, n_cells, expr, nu; all others must be constant within donors.
    celltypes : sequence of str
        Order of the columns prop_<cell type>.

    Returns
    -------
    DataFrame
        One row per donor, with P_ic = n_ic / n_i over the pairs in the table, expr = sum_c P_ic
        y_ic, nu = sum_c P_ic^2 nu_ic, n_cells = n_i.

    Examples
    --------
    >>> ctp = pd.DataFrame({"donor": ["a", "a"], "celltype": ["T", "B"], "n_cells": [30, 10],
    ...                     "expr": [1.0, 2.0], "nu": [0.16, 0.32]})
    >>> op = overall_table(ctp, ["T", "B"])
    >>> op[["prop_T", "prop_B", "expr", "nu"]].iloc[0].round(3).tolist()
    [0.75, 0.25, 1.25, 0.11]
    """
    share = ctp["n_cells"] / ctp.groupby("donor")["n_cells"].transform("sum")
    parts = ctp.assign(
        expr=share * ctp["expr"],
        nu=share**2 * ctp["nu"],
        **{f"prop_{name}": share * (ctp["celltype"] == name) for name in celltypes},
    )
    summed = ["n_cells", "expr", "nu", *(f"prop_{name}" for name in celltypes)]
    how = {name: "sum" if name in summed else "first" for name in parts if name != "celltype"}
    del how["donor"]
    op = parts.groupby("donor", sort=False).agg(how).reset_index()
    proportions = summed[3:]
    return op[[name for name in op if name not in summed] + proportions + summed[:3]]
