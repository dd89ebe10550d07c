"""Errors of noise-robust fits: sandwiches over independent units, with their own denominators.

Fixed effects have the cluster-robust covariance CR2 of :mod:`ctmm_formula.engine.sandwich`, t tests
of one row Satterthwaite's degrees of freedom, F tests of several a regularised Hotelling law.
Variance components have the jackknife's correlations and the larger of its standard errors and the
working model's, tests of them units less rows; their intervals have the degrees of freedom of the
jackknife's variances.  Order of all parameters: fixed effects b (p), then variance components
theta (K).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..engine.robust import ONE_UNIT, RobustFit
from ..engine.sandwich import ALONE, TOO_FEW, Contrasts, contrasts, covariance, joint
from .testing import Law, combined


@dataclass(frozen=True, eq=False)
class Clustered:
    """Covariance of all parameters of a fit, and the laws of their linear combinations."""

    fit: RobustFit

    @property
    def n_fixed(self) -> int:
        """Number of fixed effects p."""
        return len(self.fit.estimate.beta)

    @cached_property
    def cov(self) -> np.ndarray:
        """Covariance of (b, theta), (p + K, p + K); NaN where there is none."""
        p, K = len(self.fit.estimate.beta), len(self.fit.estimate.theta)
        effects_first = np.arange(-p, K)
        own = self.fit.cov_jackknife[effects_first[:, None], effects_first]
        se, sandwich, part = self.fit.component_errors(), self._sandwich, self._of_components
        with np.errstate(divide="ignore", invalid="ignore"):
            squares = np.concatenate([sandwich.diagonal(), se**2])
            wider = np.sqrt(squares / own.diagonal())
            out = own * np.multiply.outer(wider, wider)
            ratio = se / np.sqrt(part.diagonal())
        out[:p, :p] = sandwich
        out[p:, p:] = part * np.multiply.outer(ratio, ratio)
        return 0.5 * (out + out.T)  # rounding

    def of_estimates(self, L: np.ndarray) -> np.ndarray:
        """Standard errors of theta, of L b (C, p) and of b, (K + C + p,), without :attr:`cov`."""
        part, sandwich = self._of_components.diagonal(), self._sandwich
        alone = np.isnan(self._of_effects).any()
        means = (self._effects(L).cov if alone else combined(L, sandwich)).diagonal()
        with np.errstate(divide="ignore", invalid="ignore"):
            theta = part * np.square(self.fit.component_errors() / np.sqrt(part))
            return np.sqrt(np.concatenate([theta, means, sandwich.diagonal()]))

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom of every row of L (q, p + K) by itself, (q,)."""
        p = len(self.fit.estimate.beta)
        out = np.full(len(L), self.fit.n_units - 1.0)
        out[out <= 0.0] = math.nan
        fixed = ~L[:, p:].any(axis=1)
        if fixed.any():
            out[fixed] = self._effects(L[fixed, :p]).df
        return out

    def variances(self, L: np.ndarray) -> np.ndarray:
        """Variance of every row of L (q, p + K), or of L b (q, p), (q,)."""
        p = len(self.fit.estimate.beta)
        if not np.isnan(self._of_effects).any():
            return combined(L, self.cov).diagonal()
        out, fixed = np.empty(len(L)), ~L[:, p:].any(axis=1)
        out[fixed] = np.diag(self._effects(L[fixed, :p]).cov)
        out[~fixed] = combined(L[~fixed], self.cov).diagonal()
        return out

    def each(
        self, L: np.ndarray, null: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Standard errors, degrees of freedom and t against `null` of rows L b (q, p), (q,) each.

        One by one what :meth:`variances`, :meth:`df` and :meth:`tested` say.
        """
        rows = self._effects(L)
        return np.sqrt(np.diag(rows.cov)), rows.df, rows.statistics(null)

    def law(self, L: np.ndarray, null: np.ndarray | float = 0.0) -> Law:
        """What F tests of L t = null (q, p + K) are referred to."""
        p, q = len(self.fit.estimate.beta), len(L)
        if self.fit.n_units < 2:
            return Law(np.full((q, q), math.nan), math.nan, 1.0, ONE_UNIT)
        if L[:, p:].any():
            df = float(self.fit.n_units - q)
            return Law(combined(L, self.cov), df, 1.0, "" if df > 0 else TOO_FEW)
        if q == 1:
            one = contrasts(self.fit, L[:, :p])
            return Law(np.atleast_2d(one.variances(null)), float(one.df[0]), 1.0, one.note)
        df, scale, cov, reason = joint(self.fit, L[:, :p], null)
        return Law(cov, df, scale, reason)

    def tested(self, L: np.ndarray, null: np.ndarray | float, level: float) -> np.ndarray:
        """t, two-sided p value and interval of rows L b (q, p) against `null`, (q, 4).

        By the noise halfway to where the hypothesis holds, so t is not quite the difference over
        its standard error: see :mod:`ctmm_formula.engine.moving_noise`.
        """
        rows = self._effects(L)
        return np.column_stack([rows.statistics(null), rows.pvalues(null), rows.intervals(level)])

    @cached_property
    def missing(self) -> str:
        """Why some fixed effects have no standard errors, or ""."""
        if not np.isnan(self._of_effects).any():
            return ""
        rows = self._effects(np.eye(self.n_fixed))
        if rows.note != ALONE:
            return ""
        lost, every = int(np.isnan(rows.df).sum()), len(rows.df)
        who = f"{lost} of {every} fixed effects have no standard error: " if lost > 1 else ""
        return f"{who}{ALONE}"

    @property
    def _of_components(self) -> np.ndarray:
        """What the correlations of theta are those of, (K, K): the jackknife, if it has them."""
        K = len(self.fit.estimate.theta)
        part = self.fit.cov_jackknife[:K, :K]
        return part if np.isfinite(part).all() else self.fit.cov_working

    @property
    def _sandwich(self) -> np.ndarray:
        """CR2 covariance of b, (p, p); NaN in those that rest on one unit alone, and only there."""
        whole = self._of_effects
        return self._effects(np.eye(len(whole))).cov if np.isnan(whole).any() else whole

    @cached_property
    def _of_effects(self) -> np.ndarray:
        """CR2 covariance of b, (p, p); all NaN where one of them rests on one unit alone."""
        return covariance(self.fit)

    def _effects(self, L: np.ndarray) -> Contrasts:
        """Rows of L b; NaN in those that rest on one unit alone, and only there."""
        found = contrasts(self.fit, L)
        if found.note != ALONE:
            return found
        good = np.array([not contrasts(self.fit, row[None]).note for row in L])
        part = contrasts(self.fit, L[good])
        cov, df = np.full_like(found.cov, math.nan), np.full_like(found.df, math.nan)
        cov[np.ix_(good, good)], df[good] = part.cov, part.df
        return replace(found, cov=cov, df=df)


@dataclass(frozen=True)
class NoClusters:
    """In place of :class:`Clustered` where there is no robust estimate, for a reason."""

    n_params: int
    reason: str

    @cached_property
    def cov(self) -> np.ndarray:
        """NaN, (p + K, p + K)."""
        return np.full((self.n_params, self.n_params), math.nan)

    @cached_property
    def params(self) -> np.ndarray:
        """NaN, (p + K,)."""
        return np.full(self.n_params, math.nan)

    def df(self, L: np.ndarray) -> np.ndarray:
        """NaN of every row."""
        return np.full(len(L), math.nan)

    def variances(self, L: np.ndarray) -> np.ndarray:
        """NaN of every row."""
        return np.full(len(L), math.nan)

    def law(self, L: np.ndarray, null: np.ndarray | float = 0.0) -> Law:
        """None, and why."""
        return Law(np.full((len(L), len(L)), math.nan), math.nan, 1.0, self.reason)
