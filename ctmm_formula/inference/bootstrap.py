"""Parametric bootstrap of the likelihood ratio: its distribution under the fitted null model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from ..arguments import Rng
from ..errors import ConvergenceError, CTMMError
from .fit import Fit
from .testing import LLF_TOLERANCE

_TIE = 1e-8  # ratios as near as this are equal: both fits on the same bound


@dataclass(frozen=True)
class BootstrapRatio:
    """Bootstrapped likelihood ratio.

    Attributes
    ----------
    observed : float
        2 (llf1 - llf0) of the data.
    statistics : ndarray, shape (n - failed,)
        The same of the draws from the null fit.
    failed : int
        Draws that could not be fitted, or where a fit missed its maximum.
    clipped : bool
        A random effect's negative variance was set to 0 in the null fit.
    """

    observed: float
    statistics: np.ndarray
    failed: int
    clipped: bool

    @property
    def pvalue(self) -> float:
        """(1 + #{T* >= T}) / (1 + number of draws that count); nan where none does."""
        hits, draws = int((self.statistics >= self.observed - _TIE).sum()), len(self.statistics)
        return (1 + hits) / (1 + draws) if draws and np.isfinite(self.observed) else math.nan


def bootstrap_ratio(
    null: Fit, full: Fit, n: int = 999, rng: Rng = None, n_jobs: int = 1
) -> BootstrapRatio:
    """Draw from the null fit, refit both models, compare the likelihood ratios.

    Parameters
    ----------
    null, full : Fit
        Of the same data in the same order of rows, by the same likelihood.
    n : int
        Number of draws.
    rng : numpy Generator or seed, optional; n_jobs : int
        As in :meth:`~ctmm_formula.inference.fit.Fit.of_draws`.

    Raises
    ------
    CTMMError
        The fits have no likelihood or two different ones, or `n` < 1.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> full = ctmm.fit("expr ~ C(celltype)", structure="iid", method="reml", data=df).numbers
    >>> boot = bootstrap_ratio(full.null(), full, n=19, rng=1)
    >>> len(boot.statistics), boot.failed, 0.05 <= boot.pvalue <= 1
    (19, 0, True)
    """
    methods = [fit.estimate.method for fit in (null, full)]
    if not null.has_likelihood or methods[0] != methods[1]:
        raise CTMMError(
            "a likelihood ratio needs two fits by the same likelihood (reml or ml), got "
            f"{methods[0]} and {methods[1]}"
        )
    at = null.estimate.theta
    negative = (np.arange(len(at)) >= null.model.n_donor_components) & (at < 0.0)
    law = replace(null, estimate=replace(null.estimate, theta=np.where(negative, 0.0, at)))

    def ratio(y: np.ndarray) -> float:
        try:
            llf0, llf1 = (fit.refit(y).estimate.llf for fit in (null, full))
        except ConvergenceError:
            return math.nan
        return 2.0 * max(llf1 - llf0, 0.0) if llf1 >= llf0 - LLF_TOLERANCE else math.nan

    draws = np.array(law.of_draws(ratio, n, rng, n_jobs))
    good = draws[np.isfinite(draws)]
    observed = 2.0 * (full.estimate.llf - null.estimate.llf)
    return BootstrapRatio(observed, good, len(draws) - len(good), bool(negative.any()))
