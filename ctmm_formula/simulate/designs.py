"""The simulations of the CTMM paper by name, their parameters as data.

Chen and Dahl, Nat Commun 15:5229 (2024), and its preprint, which used other numbers.

=====================  ========================================================================
``published/<model>``  figure 1 and supplement; hom, iid, free, full; ``hom-8``, ``free-12``, ...
                       with 8 or 12 cell types
``preprint/<model>``   the same with the preprint's parameters; hom, free, full
``ipsc/hom|free``      figure 2: noise variances that are themselves estimates
=====================  ========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from ..arguments import MOST_DRAWS, Rng, choose, floats, generator, on_off, whole_number
from ..errors import CTMMError
from .genes import SimulatedGenes, gene_names, simulate_genes
from .limits import number
from .noise import CellNumbers, beta_error, negative_binomial_cells
from .tables import cell_numbers, celltype_names, truth_of

CELLS_PER_DONOR = 1000
"""Of a base design, which has proportions but no cells: the score test weighs by numbers."""


@dataclass(frozen=True)
class BaseDesign:
    """Generator of figure 1: proportions are Dirichlet, parameters shares of the variance of OP.

    P_i ~ Dirichlet(alpha); sigma2, the variance of sum_c P_ic beta_c, that of sum_c P_ic Gamma_ic
    and the mean noise nu_i are `shares` of 1.  nu_i is gamma, nu_ic = nu_i / P_ic.

    Attributes
    ----------
    shares : tuple of 4 floats
        sigma2, beta, V, nu.
    beta, V : tuple of float
        Ratios of means and of variances between cell types: C of them, or a part of C, repeated.
    alpha : tuple of float, length C
        Of the Dirichlet distribution of the proportions.
    noise_variance : float
        Between donors, of nu_i.
    correlation : tuple of float
        Of Gamma between cell types 1, 2, ... apart; none without.
    own_noise : bool
        Noise of overall pseudobulk is drawn anew, not made of that of the cell types.
    n_donors : int
        Where it is not what varies.
    grid : tuple of int
        Numbers of donors that were simulated.
    """

    shares: tuple[float, float, float, float]
    beta: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    V: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0)
    alpha: tuple[float, ...] = (2.0, 2.0, 2.0, 2.0)
    noise_variance: float = 0.02
    correlation: tuple[float, ...] = ()
    own_noise: bool = False
    n_donors: int = 100
    grid: tuple[int, ...] = (20, 50, 100, 300, 500, 1000)

    def parameters(self) -> tuple[float, np.ndarray, np.ndarray]:
        """sigma2, V (C, C) and beta (C,).

        >>> sigma2, V, beta = DESIGNS["published/free"].parameters()
        >>> sigma2, np.diag(V).round(3).tolist(), beta.round(3).tolist()
        (0.25, [1.6, 0.8, 0.4, 0.2], [4.476, 2.238, 1.119, 0.56])
        """
        a = np.array(self.alpha, dtype=float)
        C, total = len(a), a.sum()
        pi = a / total
        S = (np.diag(pi) - np.outer(pi, pi)) / (total + 1.0)
        ratio = np.resize(np.asarray(self.beta, dtype=float), C)
        beta = ratio * np.sqrt(self.shares[1] / (ratio @ S @ ratio))
        sd = np.sqrt(np.resize(np.asarray(self.V, dtype=float), C))
        apart = np.abs(np.subtract.outer(np.arange(C), np.arange(C)))
        V = np.outer(sd, sd) * np.resize([1.0, *self.correlation, *np.zeros(C)], C)[apart]
        return self.shares[0], V * self.shares[2] / ((V * S).sum() + pi @ V @ pi), beta

    def genes(self, n_genes: int, kind: str, rng: np.random.Generator) -> SimulatedGenes:
        """Replicates that share donors and proportions."""
        sigma2, V, beta = self.parameters()
        N, C = self.n_donors, len(self.alpha)
        names = celltype_names(C)
        P = rng.dirichlet(self.alpha, N)
        nu = _gamma(rng, self.shares[3], self.noise_variance, (n_genes, N))
        effects = rng.standard_normal((n_genes, N, C)) @ np.linalg.cholesky(V + _TINY * np.eye(C)).T
        if not V.any():
            effects = np.zeros_like(effects)
        alpha = np.sqrt(sigma2) * rng.standard_normal((n_genes, N, 1))
        true = beta + alpha + effects
        noise = nu[:, :, None] / P
        expr = true + np.sqrt(noise) * rng.standard_normal(true.shape)
        obs = pd.DataFrame({"donor": np.repeat([f"d{i + 1:04d}" for i in range(N)], C)})
        obs["celltype"] = np.tile(np.array(names, dtype=object), N)
        obs["proportion"] = P.ravel()
        obs["n_cells"] = np.maximum(np.rint(CELLS_PER_DONOR * P.ravel()), 2.0).astype(np.int64)
        truth = pd.Series(truth_of(names, sigma2, V, beta))
        ctp = SimulatedGenes(obs, _frame(expr), _frame(noise), truth, tuple(names))
        if kind == "ctp":
            return ctp
        overall = ctp.overall()
        if not self.own_noise:
            return overall
        y = (true * P).sum(axis=2) + np.sqrt(nu) * rng.standard_normal(nu.shape)
        return replace(overall, expr=_frame(y))


_TINY = 1e-14  # keeps the root of a V with zeros on its diagonal
_LEAST_ALPHA = 0.05  # below, proportions come out as 0
_LARGEST_SHARE = 1e100  # squares and products stay finite
_NOISE_VARIANCE = "above 0 and at most 4 times the square of the share of noise"


_IPSC_CELLS = negative_binomial_cells(96, 1.75)


@dataclass(frozen=True)
class MeasuredDesign:
    """Generator of figure 2: a study of the size of the iPSC data, noise variances with errors.

    The paper took one gene's proportions and noise variances; these are drawn here, with numbers
    of cells and variances as in :mod:`ctmm_formula.datasets`.

    Attributes
    ----------
    V : tuple of float, length C
    sigma2 : float
    b : float, or None
        The fit sees nu (1 +- x), x ~ Beta(2, b), see :func:`beta_error`.
    cells : callable
        Numbers of cells; pairs have at least `min_cells`.
    cell_variance, gene_sd, cell_cv : float
        Typical variance between cells, the standard deviation of its logarithm between genes and
        its coefficient of variation between pairs.
    """

    V: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    sigma2: float = 0.25
    b: float | None = None
    cells: CellNumbers = _IPSC_CELLS
    min_cells: int = 11
    cell_variance: float = 18.0
    gene_sd: float = 0.6
    cell_cv: float = 0.25
    n_donors: int = 94
    grid: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0, 3.0, 2.0)

    def genes(self, n_genes: int, kind: str, rng: np.random.Generator) -> SimulatedGenes:
        """Replicates of one study, each with its own level of noise."""
        least = float(whole_number("min_cells", self.min_cells, 0))

        def at_least(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
            return np.maximum(cell_numbers(self.cells, shape, rng), least)

        level = rng.lognormal(0.0, number("gene_sd", self.gene_sd), n_genes)
        return simulate_genes(
            n_genes, self.n_donors, len(self.V), kind=kind, sigma2=self.sigma2, V=self.V,
            cells=at_least, cell_variance=self.cell_variance, gene_variance=level,
            cell_cv=self.cell_cv, noise_error=None if self.b is None else beta_error(self.b),
            n_pcs=0, n_batches=1, rng=rng,
        )  # fmt: skip


_HOM, _FREE = (0.25, 0.5, 0.0, 0.25), (0.25, 0.25, 0.25, 0.25)
_EIGHT, _TWELVE = (0.375, 0.125), (0.42, 0.08)  # shares of sigma2 and nu with more cell types
_OLD: dict[str, Any] = {"noise_variance": 0.01, "own_noise": True, "grid": (20, 50, 100, 300)}
_FULL: dict[str, Any] = {"V": (1.0,), "correlation": (0.9, 0.7, 0.5)}

DESIGNS: dict[str, BaseDesign | MeasuredDesign] = {
    "published/hom": BaseDesign(_HOM),
    "published/iid": BaseDesign(_FREE, V=(1.0,)),
    "published/free": BaseDesign(_FREE),
    "published/full": BaseDesign(_FREE, **_FULL),
    "published/hom-8": BaseDesign((_EIGHT[0], 0.5, 0.0, _EIGHT[1]), alpha=(2.0,) * 8),
    "published/free-8": BaseDesign((_EIGHT[0], 0.25, 0.25, _EIGHT[1]), alpha=(2.0,) * 8),
    "published/hom-12": BaseDesign((_TWELVE[0], 0.5, 0.0, _TWELVE[1]), alpha=(2.0,) * 12),
    "published/free-12": BaseDesign((_TWELVE[0], 0.25, 0.25, _TWELVE[1]), alpha=(2.0,) * 12),
    "preprint/hom": BaseDesign(_HOM, **_OLD),
    "preprint/free": BaseDesign(_FREE, V=(64.0, 16.0, 4.0, 1.0), **_OLD),
    "preprint/full": BaseDesign(_FREE, **_FULL, **_OLD),
    "ipsc/hom": MeasuredDesign(),
    "ipsc/free": MeasuredDesign(V=(0.05, 0.1, 0.1, 0.1), b=5.0),
}
"""Name -> parameters; ``dataclasses.replace`` or keywords of :func:`simulate_design` vary them."""


def simulate_design(
    name: str,
    n_genes: int = 100,
    *,
    n_donors: int | None = None,
    kind: str = "ctp",
    rng: Rng = None,
    **changes: Any,
) -> SimulatedGenes:
    """Replicates of a published simulation, as genes of one study.

    Parameters
    ----------
    name : str
        One of ``DESIGNS``.
    n_genes : int
        Replicates; they share donors, proportions and numbers of cells.  Call again for others.
    n_donors : int, optional
        By default the design's.
    kind : {"ctp", "op"}
        Cell type-specific or overall pseudobulk.
    rng : numpy Generator or seed, optional
    **changes
        Other parameters of the design: ``alpha=(0.666, 2, 2, 2)``, ``shares=...``, ``V=...``,
        ``b=3``; see :class:`BaseDesign` and :class:`MeasuredDesign`.

    Returns
    -------
    SimulatedGenes

    Raises
    ------
    CTMMError
        Unknown design or parameter, or parameters that are none.

    Examples
    --------
    >>> genes = simulate_design("published/free", 10, n_donors=50, kind="op", rng=1)
    >>> genes.expr.shape, round(float(genes.expr.var().mean()), 1)
    ((50, 10), 0.9)
    >>> simulate_design("published/free", 1, alpha=(0.666, 2, 2, 2), rng=1).truth["V[T1]"].round(3)
    np.float64(2.009)
    """
    row = DESIGNS[choose("design", name, DESIGNS)]
    choose("kind", kind, ["ctp", "op"])
    for change in changes:
        choose(f"parameter of {name}", change, _parameters(row))
    if n_donors is not None:
        changes["n_donors"] = whole_number("n_donors", n_donors, 1, MOST_DRAWS)
    row = replace(row, **changes)
    n_genes = whole_number("n_genes", n_genes, 1, MOST_DRAWS)
    _check(row)
    return row.genes(n_genes, kind, generator(rng))


def _parameters(row: BaseDesign | MeasuredDesign) -> list[str]:
    """What may be changed; the grid only says what was simulated."""
    return [field.name for field in fields(row) if field.name != "grid"]


def _check(row: BaseDesign | MeasuredDesign) -> None:
    """Shares, ratios and concentrations that are some."""
    if isinstance(row, BaseDesign):
        _check_base(row)
    elif floats("V", row.V).ndim != 1 or len(row.V) < 2 or min(row.V) < 0.0:
        raise CTMMError(f"V has a variance for each of two or more cell types, got {row.V!r}")


def _check_base(row: BaseDesign) -> None:
    shares, alpha, correlation = (
        floats(name, getattr(row, name)) for name in ("shares", "alpha", "correlation")
    )
    if shares.shape != (4,) or shares.min() < 0.0 or not 0.0 < shares[3] <= _LARGEST_SHARE:
        raise CTMMError(f"shares are sigma2, beta, V and noise above 0, got {row.shares}")
    number("noise_variance", row.noise_variance, (1e-300, 4.0 * shares[3] ** 2, _NOISE_VARIANCE))
    on_off("own_noise", row.own_noise)
    if alpha.ndim != 1 or len(alpha) < 2 or alpha.min() < _LEAST_ALPHA:
        raise CTMMError(
            f"alpha has a number of {_LEAST_ALPHA} or more for each of two or more cell types, "
            f"got {row.alpha}"
        )
    C = len(alpha)
    for name in ("beta", "V"):
        ratio = np.atleast_1d(floats(name, getattr(row, name)))
        fits = ratio.ndim == 1 and C % (len(ratio) or C + 1) == 0
        if not fits or np.abs(ratio).max() > _LARGEST_SHARE:
            raise CTMMError(
                f"{name} of a design has a ratio for each of {C} cell types, or some that are "
                f"repeated to so many, got {getattr(row, name)!r}"
            )
    if correlation.ndim != 1 or len(correlation) >= C:
        raise CTMMError(
            f"correlation has numbers for cell types 1, 2, ... {C - 1} apart, got "
            f"{row.correlation!r}"
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        _, V, beta = row.parameters()
    known = np.isfinite(V).all() and np.isfinite(beta).all()
    if not known or np.linalg.eigvalsh(V)[0] < -1e-9 * np.abs(V).max():
        raise CTMMError(
            "ratios beta and V must differ from 0 where their share of the variance is not 0, and "
            f"V be a covariance: got {row.beta}, {row.V} with correlation {row.correlation}"
        )


def _gamma(
    rng: np.random.Generator, mean: float, variance: float, shape: tuple[int, ...]
) -> np.ndarray:
    """Gamma variables with this mean and variance, those below 1e-10 drawn again."""
    out = rng.gamma(mean**2 / variance, variance / mean, shape)
    while (low := out < 1e-10).any():
        out[low] = rng.gamma(mean**2 / variance, variance / mean, int(low.sum()))
    return out


def _frame(values: np.ndarray) -> pd.DataFrame:
    """Genes x donors (x cell types) as rows x genes."""
    return pd.DataFrame(values.reshape(len(values), -1).T, columns=gene_names(len(values)))
