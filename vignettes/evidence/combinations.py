"""Ways to combine the p values of the cell types' score tests into one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.stats import cauchy


def cauchy_below(largest: float | None) -> Callable[[np.ndarray], np.ndarray]:
    """Cauchy combination of p (C, n) with p cut at `largest`, 1 - 1 / C where it is None."""

    def combine(p: np.ndarray) -> np.ndarray:
        top = 1 - 1 / len(p) if largest is None else largest
        return cauchy.sf(np.tan((0.5 - np.minimum(p, top)) * np.pi).mean(axis=0))

    return combine


@cache
def _half_cauchy_means(count: int) -> np.ndarray:
    """Sorted means of so many independent half-Cauchy variables."""
    rng = np.random.default_rng(count)
    return np.sort(np.abs(rng.standard_cauchy((1_000_000, count))).mean(axis=1))


def half_cauchy(p: np.ndarray) -> np.ndarray:
    """Mean of cot(pi p / 2): large p count for nothing; calibrated for independent p values."""
    statistic = (1 / np.tan(np.maximum(p, 1e-15) * np.pi / 2)).mean(axis=0)
    null = _half_cauchy_means(len(p))
    return 1 - np.searchsorted(null, statistic) / len(null)


def bonferroni(p: np.ndarray) -> np.ndarray:
    """Smallest p value times their number."""
    return np.minimum(len(p) * p.min(axis=0), 1.0)


def simes(p: np.ndarray) -> np.ndarray:
    """Simes (1986)."""
    rank = np.arange(1, len(p) + 1)[:, None]
    return (np.sort(p, axis=0) * len(p) / rank).min(axis=0)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cauchy, p < .99": cauchy_below(0.99),
    "cauchy, p < .95": cauchy_below(0.95),
    "cauchy, p < .9": cauchy_below(0.9),
    "cauchy, p < 1 - 1/C": cauchy_below(None),
    "half-Cauchy": half_cauchy,
    "bonferroni": bonferroni,
    "simes": simes,
}
"""Name -> combined p values (n,) of p values (C, n)."""
