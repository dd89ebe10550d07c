"""Parameters of a fit with their labels, standard errors and intervals.

They are on one natural scale everywhere: fixed effects, then variance components (not standard
deviations, not ratios: they are in squared units of the response), in ``params``, ``summary()``,
``tidy()`` and hypotheses alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from ..arguments import choose, on_off, threads, whole_number
from ..design.design import Design
from ..distributions import t_tail
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError
from ..inference import variance
from ..inference.jackknife import Jackknife as JackknifeRun
from ..inference.jackknife import jackknife as run_jackknife
from ..inference.testing import denominator
from ..structures import Structure
from .resampling import TABLE, Jackknife, estimates, labelled
from .summary import recorded_versions

COVARIANCES = ("model", "jackknife")
Covariance: TypeAlias = str | Jackknife | None
RESERVED = ("shared", "specific", "means", "fixed", "noise", "total", "none", "all")
"""Names with a meaning among random effects and shares of variance."""
_ROUNDING = 1e-8  # relative to the largest eigenvalue: below zero by more than rounding


class Errors(NamedTuple):
    """Where standard errors come from.

    Attributes
    ----------
    cov : ndarray, shape (p + K, p + K)
        Covariance in the order of ``params``.
    name : str
        "model", "jackknife", "jackknife, 5 blocks", ...
    groups : int, optional
        Groups of donors that a jackknife left out.
    """

    cov: np.ndarray
    name: str
    groups: int | None

    @property
    def title(self) -> str:
        """What Wald tests call themselves."""
        return f"wald ({self.name})"


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
    versions : dict
        Of the libraries that made the numbers.
    """

    design: Design
    structure_: Structure
    domain: Domain
    estimate: Estimate
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=recorded_versions)
    _jackknives: dict[tuple[int | None, bool], JackknifeRun] = field(default_factory=dict)

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
        return self.design.n_possible

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
        labels, design = self.structure_.labels, self.design
        return list(component_names(labels, design.names, design.random_names))

    @cached_property
    def _random_names(self) -> tuple[str, ...]:
        """One name for each random effect everywhere."""
        return tuple(self._vc_names[len(self.structure_.labels) :])

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

    def _errors(self, covariance: Covariance) -> Errors:
        """What `covariance` asks for."""
        if isinstance(covariance, Jackknife):
            if not covariance.params.equals(self.params):
                raise CTMMError("covariance= is the jackknife of another fit: use this fit's own")
            return Errors(covariance._cov, covariance.name, covariance.groups)
        kind = (
            self.cov_type if covariance is None else choose("covariance", covariance, COVARIANCES)
        )
        if kind == "jackknife":
            return self._errors(self.jackknife())
        p, K = len(self.estimate.beta), len(self.estimate.theta)
        out = np.zeros((p + K, p + K))
        out[:p, :p] = self.estimate.cov_beta
        out[p:, p:] = variance.information_cov(self.estimate)
        return Errors(out, kind, None)

    def cov_params(self, covariance: Covariance = None) -> pd.DataFrame:
        """Covariance of all parameters.

        Parameters
        ----------
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.  NaN where the method has none.

        Returns
        -------
        DataFrame, shape (p + K, p + K)
            Rows and columns as ``params``.
        """
        names = list(self.params.index)
        return pd.DataFrame(self._errors(covariance).cov, index=names, columns=names)

    def table(self, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
        """Estimates, standard errors, t, p values and intervals of all ``params``.

        P values are two-sided for fixed effects and one-sided for variance components; those of
        variance components are NaN where the fit did not converge.

        Parameters
        ----------
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.
        alpha : float
            One less the confidence of the intervals.

        Returns
        -------
        DataFrame
            estimate, std_error, statistic, p_value, conf_low, conf_high; variance components in
            squared units of the response.
        """
        errors = self._errors(covariance)
        df = denominator(self.df_resid, 1, errors.groups)
        out = estimates(self.params.to_numpy(), np.sqrt(np.diag(errors.cov)), df, alpha)
        own = slice(len(self.estimate.beta), None)
        if df > 0:  # a variance is tested against larger values
            out[own, 3] = t_tail(out[own, 2], df) if self.converged else np.nan
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

    def conf_int(self, alpha: float = 0.05, covariance: Covariance = None) -> pd.DataFrame:
        """Wald intervals by t with ``df_resid``.

        Those of variance components may reach below zero, as the estimates may.

        Parameters
        ----------
        alpha : float
            One less the confidence: 0.05 for 95 % intervals.
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.

        Returns
        -------
        DataFrame
            Columns conf_low and conf_high, rows as ``params``.
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
        """Correlation of true expression between cell types, shape (C, C).

        NaN where a variance is not positive, and all NaN where ``A`` is no covariance (not
        positive semidefinite): variance components may be negative, and for overall pseudobulk
        only the observed mixtures of cell types need a variance >= 0.
        """
        A = self.A.to_numpy()
        sd = np.sqrt(np.where(np.diag(A) > 0, np.diag(A), np.nan))
        there = np.isfinite(sd)
        if not is_covariance(A[np.ix_(there, there)]):
            sd = np.full(len(A), np.nan)
        return self._celltype_frame(A / np.outer(sd, sd))

    def jackknife(
        self,
        blocks: int | None = None,
        *,
        one_step: bool = False,
        n_jobs: int = 1,
        progress: bool = False,
    ) -> Jackknife:
        """Delete-one-donor jackknife of all parameters; kept once run.

        ``covariance="jackknife"`` and the tests that default to it always use the exact
        jackknife that leaves out single donors.  Give the object returned here as
        ``covariance=`` to use another one.

        Parameters
        ----------
        blocks : int, optional
            Leave out this many groups of donors instead of single donors.  G groups give at
            most G - q degrees of freedom to a test of q hypotheses.
        one_step : bool
            One step from the full fit instead of refits; moments ("he") are always exact.
        n_jobs : int
            Threads, -1 for all.
        progress : bool
            Show a progress bar.

        Returns
        -------
        Jackknife
            ``estimates`` by left-out donor, ``bse``, ``cov_params()``, ``conf_int()``,
            ``failed``, ``error``.

        Raises
        ------
        CTMMError
            `blocks` is not between 2 and the number of donors.
        """
        if blocks is not None:
            blocks = whole_number("blocks", blocks, 2)
        for name, value in (("one_step", one_step), ("progress", progress)):
            on_off(name, value)
        settings, n_jobs = (blocks, bool(one_step)), threads(n_jobs)
        if settings not in self._jackknives:
            with _bar(blocks or self.n_donors, bool(progress)):
                self._jackknives[settings] = run_jackknife(
                    self.model,
                    self.estimate,
                    self.domain,
                    blocks=blocks,
                    one_step=bool(one_step),
                    n_jobs=n_jobs,
                )
        run = self._jackknives[settings]
        return labelled(run, self.params, self.donors, self.model.donors)


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[None]:
    """A progress bar of leave-out refits, which run as one batch."""
    if not shown:
        yield
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="jackknife", unit="refit") as bar:
        yield
        bar.update(total)


def is_covariance(A: np.ndarray) -> bool:
    """Whether a symmetric matrix is positive semidefinite up to rounding; (0, 0) is."""
    if not A.size:
        return True
    if not np.isfinite(A).all():
        return False
    values = np.linalg.eigvalsh(A)
    return bool(values[0] >= -_ROUNDING * np.abs(values).max())


def component_names(
    labels: Sequence[str], fixed: Sequence[str], random: Sequence[str]
) -> tuple[str, ...]:
    """Names of the variance components: the structure's labels, then the random effects.

    A label that is the name of a fixed effect as well becomes ``var(label)``, a random effect
    whose name is taken ``random(name)``.

    >>> component_names(["hom", "V[T]"], ["Intercept", "hom"], ["batch", "hom"])
    ('var(hom)', 'V[T]', 'batch', 'random(hom)')
    """
    own: list[str] = []
    for label in labels:
        own.append(_unlike(label, "var", {*own, *fixed}))
    groups: list[str] = []
    for name in random:
        groups.append(_unlike(name, "random", {*RESERVED, *labels, *fixed, *groups}))
    return (*own, *groups)


def _unlike(name: str, wrap: str, taken: set[str]) -> str:
    """`name`, wrapped until it is none of those taken."""
    while name in taken:
        name = f"{wrap}({name})"
    return name
