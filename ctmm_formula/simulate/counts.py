"""Counts of single cells of one gene, and what pseudobulk measures of them.

Counts of cells are what measured noise comes from: their variance rises with their mean, so that
errors of the means and of their noise variances go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..engine.noise import unbiased_square
from ..errors import CTMMError
from .limits import number

_MOST = 1e12  # expected counts beyond which Poisson draws overflow
_SCALE = 1e4  # counts per 10,000


class Measured(NamedTuple):
    """What pseudobulk has of every pair, (n,) each.

    mean of the cells; nu, its squared standard error; nu2, an unbiased estimate of nu^2 (NaN of
    two or three cells).
    """

    mean: np.ndarray
    nu: np.ndarray
    nu2: np.ndarray


@dataclass(frozen=True)
class CountCells:
    """Negative binomial counts of cells, as log(1 + counts per 10,000).

    Attributes
    ----------
    mean : float
        Counts of the gene in a cell where the log-fold effects are 0.
    dispersion : float
        Variance mean + dispersion mean^2; 0 for Poisson counts.
    library : float
        Median of all counts of a cell.
    library_sd : float
        Standard deviation of its logarithm between cells.
    depth_sd : float
        Of the donors' depths, on the same scale: a factor of all cells of a donor.
    ambient : float
        Share of the counts that is no cell's own, but of the mean of all pairs.

    Examples
    --------
    >>> cells = CountCells(mean=0.5)
    >>> donor, n_cells = np.repeat([0, 1], 2), np.array([30, 40, 50, 60])
    >>> found = cells.measure(np.random.default_rng(1), np.zeros(4), n_cells, donor)
    >>> found.mean.shape, bool((found.nu > 0).all())
    ((4,), True)
    """

    mean: float = 1.0
    dispersion: float = 0.5
    library: float = 5000.0
    library_sd: float = 0.4
    depth_sd: float = 0.0
    ambient: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mean", "dispersion", "library", "library_sd", "depth_sd", "ambient"):
            number(name, getattr(self, name))

    def draw(
        self, rng: np.random.Generator, fold: np.ndarray, n_cells: np.ndarray, donor: np.ndarray
    ) -> np.ndarray:
        """Log expression of all cells, pair by pair.

        Parameters
        ----------
        rng : numpy Generator
        fold : ndarray, shape (n,)
            Log-fold effect of every pair.
        n_cells, donor : int ndarray, shape (n,)
            Cells of every pair, and the code of its donor.

        Returns
        -------
        ndarray, shape (sum of n_cells,)
        """
        total = int(n_cells.sum())
        depth = self.depth_sd * rng.normal(size=int(donor.max(initial=0)) + 1)
        size = np.repeat(depth[donor], n_cells) + self.library_sd * rng.normal(size=total)
        with np.errstate(over="ignore", invalid="ignore"):  # refused at once
            library, level = self.library * np.exp(size), self.mean * np.exp(fold)
            level = (1.0 - self.ambient) * level + self.ambient * level.mean()
            expected = np.repeat(level, n_cells) * library / self.library
        if not expected.max(initial=0.0) < _MOST:
            raise CTMMError(
                f"expected counts of up to {expected.max():.0e} are too large to draw: choose a "
                "smaller mean=, or smaller variances (they are of log-fold effects)"
            )
        if self.dispersion > 0.0:
            expected *= rng.gamma(1.0 / self.dispersion, self.dispersion, total)
        return np.log1p(_SCALE * rng.poisson(expected) / library)

    def measure(
        self, rng: np.random.Generator, fold: np.ndarray, n_cells: np.ndarray, donor: np.ndarray
    ) -> Measured:
        """Draw cells and measure their pairs; arguments as :meth:`draw`."""
        return measured_cells(self.draw(rng, fold, n_cells, donor), n_cells)


def measured_cells(x: np.ndarray, n_cells: np.ndarray) -> Measured:
    """Mean, noise variance and unbiased square of it of every pair, from its cells.

    Parameters
    ----------
    x : ndarray, shape (sum of n_cells,)
        Cells, pair by pair.
    n_cells : int ndarray, shape (n,), 2 or more each

    Examples
    --------
    >>> measured_cells(np.array([0.0, 2.0, 1.0, 1.0, 1.0]), np.array([2, 3])).nu
    array([1., 0.])
    """
    start = np.concatenate([[0], np.cumsum(n_cells)[:-1]])
    mean = np.add.reduceat(x, start) / n_cells
    square = np.square(x - np.repeat(mean, n_cells))
    S2, S4 = np.add.reduceat(square, start), np.add.reduceat(square**2, start)
    n = n_cells.astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        nu2 = np.where(n > 3.0, unbiased_square(n, S2, S4), np.nan)
    return Measured(mean, S2 / (n * (n - 1.0)), nu2)
