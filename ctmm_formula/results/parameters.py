"""Parameters of a fit with their labels, standard errors and intervals.

They are on one natural scale everywhere: fixed effects, then variance components (not standard
deviations, not ratios), in ``params``, ``summary()``, ``tidy()`` and hypotheses alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from ..design.design import Design
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError, choose
from ..inference import variance
from ..inference.jackknife import Jackknife
from ..inference.jackknife import jackknife as run_jackknife
from ..structures import Structure

COVARIANCES = ("model", "jackknife")
TABLE = ("estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high")
"""Columns of every table of estimates, named as in broom."""


@dataclass(eq=False, repr=False)
class Parameters:
    """What was fitted and its parameters; the base of :class:`ctmm_formula.CTMMResults`.

    Attributes
    ----------
    design : Design
        The labelled arrays: formula, rows, levels.
    structure_ : Structure
        The covariance structure with its basis matrices.
    domain : Domain
    estimate : Estimate
        The bare numbers.
    notes : tuple of str
        What to know about the data and the fit.
    """

    design: Design
    structure_: Structure
    domain: Domain
    estimate: Estimate
    notes: tuple[str, ...] = ()
    _jackknife: tuple[tuple[int | None, bool], Jackknife] | None = field(default=None)

    # -----------------------------------------------------------------------------------------
    # what was fitted

    @cached_property
    def model(self) -> Model:
        """The model as arrays, in kernel order."""
        return self.design.model(self.structure_)

    @property
    def formula(self) -> str:
        """The formula in canonical form, random terms included."""
        return self.design.spec.text

    @property
    def structure(self) -> str:
        """Name of the covariance structure."""
        return self.structure_.name

    @property
    def method(self) -> str:
        """One of "ml", "reml" and "he"."""
        return self.estimate.method

    @property
    def bounds(self) -> str:
        """Name of the domain of the variance components; moments ("he") know no bounds."""
        return self.domain.bounds if self.method in LIKELIHOODS else "none"

    @property
    def kind(self) -> str:
        """Kind of data: "ctp" or "op", cell type-specific or overall pseudobulk."""
        return self.design.kind

    @property
    def celltypes(self) -> tuple[str, ...]:
        """Names of the cell types."""
        return self.design.celltypes

    @property
    def donors(self) -> tuple[str, ...]:
        """Names of the donors."""
        return self.design.donors

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return dict(self.design.dropped)

    @property
    def nobs(self) -> int:
        """Rows in the fit."""
        return len(self.design.y)

    @property
    def n_donors(self) -> int:
        """Number of donors N."""
        return len(self.design.donors)

    @property
    def n_celltypes(self) -> int:
        """Number of cell types C."""
        return len(self.design.celltypes)

    @property
    def n_possible(self) -> int:
        """Rows there would be with no pair of donor and cell type missing."""
        return self.n_donors * (1 if self.design.celltype_col is None else self.n_celltypes)

    @property
    def df_model(self) -> int:
        """Number of parameters, fixed effects and variance components."""
        return len(self.estimate.beta) + len(self.estimate.theta)

    @property
    def df_resid(self) -> int:
        """Donors less parameters: denominator degrees of freedom of all tests."""
        return self.n_donors - self.df_model

    @property
    def converged(self) -> bool:
        """Whether the optimisation reached its tolerance."""
        return self.estimate.convergence.converged

    @property
    def boundary(self) -> bool:
        """Whether the estimate lies on the edge of its domain."""
        return self.estimate.convergence.boundary

    @property
    def llf(self) -> float:
        """Log-likelihood with all constants; restricted, with 1/2 log|X'X|, for REML.

        Raises
        ------
        ConvergenceError
            The method of moments has none.
        """
        if self.method not in LIKELIHOODS:
            raise ConvergenceError(
                "method='he' matches moments and has no likelihood: for llf, aic, bic and "
                "likelihood ratio tests fit by method='reml' or 'ml'"
            )
        return self.estimate.llf

    @property
    def aic(self) -> float:
        """-2 llf + 2 df_model."""
        return variance.aic(self.llf, self.df_model)

    @property
    def bic(self) -> float:
        """-2 llf + log(n) df_model, n the rows (REML: rows less fixed effects)."""
        fixed = len(self.estimate.beta)
        return variance.bic(self.llf, self.df_model, self.nobs, fixed, self.method)

    # -----------------------------------------------------------------------------------------
    # parameters

    @cached_property
    def _vc_names(self) -> list[str]:
        """Labels of the variance components, set apart from equal names of fixed effects."""
        names: list[str] = []
        for name in (*self.structure_.labels, *self.design.random_names):
            while name in names or name in self.design.names:
                name = f"var({name})"
            names.append(name)
        return names

    @cached_property
    def _random_names(self) -> tuple[str, ...]:
        """Names of the random effects, set apart from the reserved ones."""
        reserved = {"shared", "specific", "means", "fixed", "noise", "total"}
        return tuple(f"random({n})" if n in reserved else n for n in self.design.random_names)

    @property
    def fe_params(self) -> pd.Series:
        """Fixed effects b."""
        return pd.Series(self.estimate.beta, index=list(self.design.names), name="estimate")

    @property
    def vcomp(self) -> pd.Series:
        """Variance components: ``hom``, ``V[T]``, ``V[B,T]``, then the random effects'."""
        return pd.Series(self.estimate.theta, index=self._vc_names, name="estimate")

    @property
    def params(self) -> pd.Series:
        """Fixed effects, then variance components."""
        return pd.concat([self.fe_params, self.vcomp])

    @property
    def cov_type(self) -> str:
        """Covariance that standard errors and tests use unless told otherwise."""
        return "model" if self.method in LIKELIHOODS else "jackknife"

    def _covariance(self, covariance: str | None) -> np.ndarray:
        """Covariance of all parameters in the order of ``params``."""
        kind = (
            self.cov_type if covariance is None else choose("covariance", covariance, COVARIANCES)
        )
        p, K = len(self.estimate.beta), len(self.estimate.theta)
        if kind == "jackknife":
            order = np.r_[K : K + p, :K]  # its parameters are (theta, b)
            return self.jackknife().cov[np.ix_(order, order)]
        out = np.zeros((p + K, p + K))
        out[:p, :p] = self.estimate.cov_beta
        out[p:, p:] = variance.information_cov(self.estimate)
        return out

    def cov_params(self, covariance: str | None = None) -> pd.DataFrame:
        """Covariance of all parameters.

        Parameters
        ----------
        covariance : {"model", "jackknife"}, optional
            Default ``cov_type``.  NaN where the method has none.
        """
        names = list(self.params.index)
        return pd.DataFrame(self._covariance(covariance), index=names, columns=names)

    def table(self, covariance: str | None = None, alpha: float = 0.05) -> pd.DataFrame:
        """Estimates, standard errors, t, p values and intervals of all ``params``.

        P values are two-sided for fixed effects and one-sided for variance components.
        """
        se = np.sqrt(np.diag(self._covariance(covariance)))
        out = estimates(self.params.to_numpy(), se, self.df_resid, alpha)
        own = slice(len(self.estimate.beta), None)
        if self.df_resid > 0:  # a variance is tested against larger values
            out[own, 3] = stats.t.sf(out[own, 2], self.df_resid)
        return pd.DataFrame(out, index=self.params.index, columns=list(TABLE))

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params`` by ``cov_type``."""
        return self.table()["std_error"]

    @property
    def bse_fe(self) -> pd.Series:
        """Standard errors of the fixed effects."""
        return self.bse.iloc[: len(self.estimate.beta)]

    @property
    def tvalues(self) -> pd.Series:
        """Estimates over standard errors."""
        return self.table()["statistic"]

    @property
    def pvalues(self) -> pd.Series:
        """P values by t with ``df_resid``: two-sided for fixed effects, one-sided for variances."""
        return self.table()["p_value"]

    def conf_int(self, alpha: float = 0.05, covariance: str | None = None) -> pd.DataFrame:
        """Wald intervals by t with ``df_resid``; columns conf_low and conf_high.

        Those of variance components may reach below zero, as the estimates may.
        """
        return self.table(covariance, alpha)[["conf_low", "conf_high"]]

    def _celltype_frame(self, matrix: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(matrix, index=list(self.celltypes), columns=list(self.celltypes))

    @property
    def A(self) -> pd.DataFrame:
        """Covariance of true expression between donors, A = sigma^2 J + V, shape (C, C)."""
        count = len(self.structure_.labels)
        return self._celltype_frame(self.structure_.covariance(self.estimate.theta[:count]))

    @property
    def V(self) -> pd.DataFrame:
        """Cell type-specific covariance, shape (C, C); without a shared component, all of A."""
        shared = self.structure_.shared
        return self.A - (0.0 if shared is None else self.estimate.theta[shared])

    @property
    def corr(self) -> pd.DataFrame:
        """Correlation of true expression between cell types; NaN where a variance is not > 0."""
        A = self.A.to_numpy()
        sd = np.sqrt(np.where(np.diag(A) > 0, np.diag(A), np.nan))
        return self._celltype_frame(A / np.outer(sd, sd))

    def jackknife(
        self, blocks: int | None = None, *, one_step: bool = False, n_jobs: int = 1
    ) -> Jackknife:
        """Delete-one-donor jackknife of all parameters; kept once run.

        Parameters
        ----------
        blocks : int, optional
            Leave out this many groups of donors instead of single donors.
        one_step : bool
            One step from the full fit instead of refits.
        n_jobs : int
            Threads.

        Returns
        -------
        Jackknife
            ``covariance="jackknife"`` uses the one that was run last.
        """
        settings = (blocks, one_step)
        asked = settings != (None, False)
        if self._jackknife is None or (asked and self._jackknife[0] != settings):
            run = run_jackknife(
                self.model,
                self.estimate,
                self.domain,
                blocks=blocks,
                one_step=one_step,
                n_jobs=n_jobs,
            )
            self._jackknife = (settings, run)
        return self._jackknife[1]


def estimates(value: np.ndarray, se: np.ndarray, df: float, alpha: float) -> np.ndarray:
    """Columns of ``TABLE``; p two-sided by t; NaN without degrees of freedom."""
    if not 0 < alpha < 1:
        raise CTMMError(f"alpha must lie between 0 and 1, got {alpha!r}")
    with np.errstate(divide="ignore", invalid="ignore"):
        t = value / se
    nothing = np.full(len(value), np.nan)
    p = 2.0 * stats.t.sf(np.abs(t), df) if df > 0 else nothing
    reach = stats.t.isf(alpha / 2, df) * se if df > 0 else nothing
    return np.column_stack([value, se, t, p, value - reach, value + reach])
