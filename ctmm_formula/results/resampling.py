"""Parametric bootstrap and draws from a fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.estimators import estimate as run_estimator
from ..engine.model import Model
from ..errors import CTMMError
from ..simulate import Rng, draw


@dataclass(frozen=True)
class Bootstrap:
    """Parametric bootstrap of all parameters.

    Attributes
    ----------
    replicates : DataFrame, shape (n, p + K)
        One row per replicate, columns as ``params``; NaN where a refit failed.
    failed : tuple of (replicate, reason)
    """

    replicates: pd.DataFrame
    failed: tuple[tuple[int, str], ...]

    @property
    def bse(self) -> pd.Series:
        """Standard deviations of the replicates."""
        return self.replicates.std(ddof=1).rename("std_error")

    def cov_params(self) -> pd.DataFrame:
        """Covariance of the replicates."""
        return self.replicates.cov()

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Percentile intervals, columns conf_low and conf_high."""
        ends = self.replicates.quantile([alpha / 2, 1 - alpha / 2]).T
        return ends.set_axis(["conf_low", "conf_high"], axis=1)


def draws(model: Model, at: Estimate, n: int, rng: Rng) -> np.ndarray:
    """Responses drawn from a fit, shape (rows, n), in the caller's order of rows."""
    streams = np.random.default_rng(rng).spawn(n)
    drawn = [model.unsort(draw(model, at.theta, at.beta, stream)) for stream in streams]
    return np.array(drawn).reshape(n, len(model.y)).T


def refits(
    model: Model, at: Estimate, domain: Domain, n: int, rng: Rng, n_jobs: int
) -> tuple[np.ndarray, tuple[tuple[int, str], ...]]:
    """(b, theta) of fits to `n` draws, shape (n, p + K), and what failed; same for any `n_jobs`."""

    def replicate(stream: np.random.Generator) -> np.ndarray | str:
        again = model.with_response(draw(model, at.theta, at.beta, stream), model.nu)
        try:
            fit = run_estimator(again, at.method, domain)
        except CTMMError as error:
            return str(error)
        return np.concatenate([fit.beta, fit.theta])

    fits = Parallel(n_jobs=n_jobs, prefer="threads")(
        delayed(replicate)(stream) for stream in np.random.default_rng(rng).spawn(n)
    )
    failed = tuple((k, fit) for k, fit in enumerate(fits) if isinstance(fit, str))
    nothing = np.full(len(at.beta) + len(at.theta), np.nan)
    return np.array([nothing if isinstance(fit, str) else fit for fit in fits]), failed
