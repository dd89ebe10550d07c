"""Numbers of cells, and noise variances as a study measures them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..arguments import whole_number
from .limits import LIMITS, NONE, number

CellNumbers: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
NoiseError: TypeAlias = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
CellNoise: TypeAlias = Callable[
    [np.random.Generator, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]
]


_SKEWED = "above 0, up to 1,000 (cell_error has normal cells)"


def log_uniform_cells(low: int = 10, high: int = 120) -> CellNumbers:
    """Numbers of cells per donor and cell type, log-uniform from `low` to `high`.

    >>> log_uniform_cells(10, 20)(np.random.default_rng(0), (2, 2)).shape
    (2, 2)
    """
    low = whole_number("low", low, 1)
    high = whole_number("high", high, low)

    def cells(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high + 1), shape)).astype(np.int64)

    return cells


def spread_cells(mean: float, fold: float = 1.0) -> CellNumbers:
    """Numbers of cells with this mean, the largest `fold` times the smallest.

    Log-uniform between them, but never below 2; `fold` 1 gives every pair the same number.

    >>> cells = spread_cells(50, 10)(np.random.default_rng(0), (5000,))
    >>> int(cells.min()), int(cells.max()), round(float(cells.mean()))
    (13, 128, 50)
    """
    mean, fold = number("cells", mean), number("fold", fold)
    low = mean if fold == 1.0 else mean * np.log(fold) / (fold - 1.0)

    def cells(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = np.exp(rng.uniform(np.log(low), np.log(low * fold), shape))
        return np.maximum(np.rint(drawn), 2).astype(np.int64)

    return cells


def negative_binomial_cells(mean: float, size: float) -> CellNumbers:
    """Numbers of cells with this mean and variance mean + mean^2 / size; zeros happen.

    >>> cells = negative_binomial_cells(100, 2)(np.random.default_rng(0), (2000,))
    >>> bool(abs(cells.mean() - 100) < 5)
    True
    """
    mean, size = number("mean", mean), number("size", size)

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
    b = number("b", b)

    def measure(rng: np.random.Generator, nu: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
        return nu * (1.0 + rng.choice([-1.0, 1.0], nu.shape) * rng.beta(2.0, b, nu.shape))

    return measure


def relative_error(cv: float) -> NoiseError | None:
    """:func:`beta_error` with this coefficient of variation, below 1; none for 0.

    >>> measured = relative_error(0.45)(np.random.default_rng(0), np.ones(10_000), np.ones(10_000))
    >>> round(float(measured.std()), 2)
    0.45
    """
    cv = number("noise_cv", cv)
    # E x^2 of Beta(2, b) is 6 / ((b + 2)(b + 3))
    return beta_error((np.sqrt(1.0 + 24.0 / cv**2) - 5.0) / 2.0) if cv > NONE else None


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
    kurtosis = number("kurtosis", kurtosis)

    def measure(rng: np.random.Generator, nu: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
        variance = 2.0 / (n_cells - 1) + kurtosis / n_cells
        return nu * rng.gamma(1.0 / variance, variance)

    return measure


def gamma_cells(kurtosis: float) -> CellNoise:
    """Means and noise variances of skewed, heavy-tailed cells, drawn cell by cell.

    The cells are gamma distributed, moved to mean 0: excess kurtosis k comes with skewness
    (2k/3)^1/2, and the mean of the cells goes with their variance, as in real expression.

    Parameters
    ----------
    kurtosis : float
        Excess kurtosis of the expression of single cells, above 0.

    Returns
    -------
    callable
        ``(rng, nu, n_cells) -> (errors of the means, measured nu)``.

    Examples
    --------
    >>> noise = gamma_cells(6.0)
    >>> error, nu = noise(np.random.default_rng(0), np.ones(5000), np.full(5000, 50))
    >>> round(float(error.var()), 1), round(float(nu.mean()), 1), round(float(nu.std()), 1)
    (1.0, 1.0, 0.4)
    """
    shape = 6.0 / number("kurtosis", kurtosis, (NONE, LIMITS["kurtosis"][1], _SKEWED))

    def measure(
        rng: np.random.Generator, nu: np.ndarray, n_cells: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        n = np.asarray(n_cells)
        first = np.cumsum(n) - n
        cells = (rng.standard_gamma(shape, int(n.sum())) - shape) / np.sqrt(shape)
        mean = np.add.reduceat(cells, first) / n
        squares = np.add.reduceat(np.square(cells - np.repeat(mean, n)), first)
        return mean * np.sqrt(nu * n), nu * squares / (n - 1)

    return measure
