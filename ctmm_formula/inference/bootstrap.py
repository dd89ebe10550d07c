"""Parametric bootstrap of the likelihood ratio: its distribution under the fitted null model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from joblib import Parallel, delayed

from ..arguments import Rng, generator, threads, whole_number
from ..engine.domain import Domain
from ..engine.draws import draw
from ..engine.estimate import Estimate
from ..engine.estimators import estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError
from .testing import LLF_TOLERANCE

_TIE = 1e-8  # ratios as near as this are equal: both fits on the same bound


@dataclass(frozen=True)
class Bootstrap:
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
        if not len(self.statistics) or not np.isfinite(self.observed):
            return float("nan")
        hits = int((self.statistics >= self.observed - _TIE).sum())
        return (1 + hits) / (1 + len(self.statistics))


def parametric_bootstrap_lrt(
    model0: Model,
    estimate0: Estimate,
    model1: Model,
    estimate1: Estimate,
    domain: Domain,
    n: int = 999,
    rng: Rng = None,
    n_jobs: int = 1,
) -> Bootstrap:
    """Draw from the null fit, refit both models, compare the likelihood ratios.

    Parameters
    ----------
    model0, model1 : Model
        The null model and the larger one, of the same data in the same order of rows.
    estimate0, estimate1 : Estimate
        Their fits, by the same likelihood on `domain`.
    n : int
        Number of draws.
    rng : numpy Generator or seed, optional
        Every draw has its own stream, so the result does not depend on `n_jobs`.
    n_jobs : int
        Threads.

    Raises
    ------
    CTMMError
        The fits have no likelihood or two different ones, or `n` < 1.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (20, 1))
    >>> model0 = build_model(np.random.default_rng(0).normal(size=40), np.full(40, 0.5), H, H,
    ...                      np.repeat(np.arange(20), 2), np.ones((1, 2, 2)))
    >>> model1 = model0.with_basis(np.array([np.ones((2, 2)), np.eye(2)]))
    >>> boot = parametric_bootstrap_lrt(model0, estimate(model0), model1, estimate(model1),
    ...                                 Domain(), n=19, rng=1)
    >>> len(boot.statistics), boot.failed, 0.05 <= boot.pvalue <= 1
    (19, 0, True)
    """
    method = estimate0.method
    if method not in LIKELIHOODS or estimate1.method != method:
        raise CTMMError(
            "a likelihood ratio needs two fits by the same likelihood (reml or ml), got "
            f"{estimate0.method} and {estimate1.method}"
        )
    n, n_jobs = whole_number("n", n, 1), threads(n_jobs)
    theta = estimate0.theta.copy()
    random = slice(model0.n_donor_components, None)
    clipped = bool((theta[random] < 0.0).any())
    theta[random] = np.maximum(theta[random], 0.0)

    def ratio(stream: np.random.Generator) -> float:
        y = draw(model0, theta, estimate0.beta, stream)
        try:
            llf0, llf1 = (
                estimate(model.with_response(y, model.nu), method, domain).llf
                for model in (model0, model1)
            )
        except ConvergenceError:
            return float("nan")
        return 2.0 * max(llf1 - llf0, 0.0) if llf1 >= llf0 - LLF_TOLERANCE else float("nan")

    streams = generator(rng).spawn(n)
    draws = np.array(
        Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(ratio)(stream) for stream in streams)
    )
    good = draws[np.isfinite(draws)]
    return Bootstrap(2.0 * (estimate1.llf - estimate0.llf), good, n - len(good), clipped)
