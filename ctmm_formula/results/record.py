"""What a fit is made of: a design, a fit in numbers, labels; parameters and their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ..arguments import choose, on_off, threads, whole_number
from ..design.labelled import Design
from ..engine.blup import Effects
from ..engine.blup import effects as predicted
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError
from ..inference.comparison import Labelled
from ..inference.fit import Errors, Fit, correlation
from ..inference.jackknife import JackknifeRun
from ..structures import Structure
from .labels import Labels
from .resampling import Jackknife, labelled
from .summary import recorded_versions

COVARIANCES = ("model", "jackknife")
Covariance: TypeAlias = str | Jackknife | None


@dataclass(eq=False, repr=False)
class Record:
    """A fit with its design: what the methods of :class:`ctmm_formula.CTMMResults` work on.

    Parameters are on one natural scale everywhere: fixed effects, then variance components (not
    standard deviations, not ratios: they are in squared units of the response).

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
    one_step : bool
        "jackknife" means the one-step version here, as in the scan that the gene is from.
    """

    design: Design
    structure_: Structure
    domain: Domain
    estimate: Estimate
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=recorded_versions)
    one_step: bool = False
    _jackknives: dict[tuple[int | None, bool], JackknifeRun] = field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The model as arrays, in kernel order."""
        return self.design.model(self.structure_)

    @cached_property
    def numbers(self) -> Fit:
        """The fit as tests and resampling see it: arrays without names."""
        return Fit(self.model, self.structure_, self.domain, self.estimate, self.design.mean_rows)

    @cached_property
    def labels(self) -> Labels:
        """Names of the parameters."""
        return Labels.of(self.design, self.structure_)

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
        return self.domain.bounds if self.numbers.has_likelihood else "none"

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
        return self.numbers.n_params

    @property
    def df_resid(self) -> int:
        """Donors less parameters: denominator degrees of freedom of all tests."""
        return self.numbers.df_resid

    @property
    def converged(self) -> bool:
        """Whether the optimisation reached its tolerance."""
        return self.estimate.convergence.converged

    @property
    def boundary(self) -> bool:
        """Whether the estimate lies on the edge of its domain."""
        return self.numbers.on_edge

    @property
    def llf(self) -> float:
        """Log-likelihood with all constants; restricted, with 1/2 log|X'X|, for REML.

        Raises
        ------
        ConvergenceError
            The method of moments has none.
        """
        self._need_likelihood()
        return self.estimate.llf

    @property
    def aic(self) -> float:
        """-2 llf + 2 df_model."""
        self._need_likelihood()
        return self.numbers.aic

    @property
    def bic(self) -> float:
        """-2 llf + log(n) df_model, n the rows (REML: rows less fixed effects)."""
        self._need_likelihood()
        return self.numbers.bic

    def _need_likelihood(self) -> None:
        if not self.numbers.has_likelihood:
            raise ConvergenceError(
                "method='he' matches moments and has no likelihood: for llf, aic, bic and "
                "likelihood ratio tests fit by method='reml' or 'ml'"
            )

    @property
    def fe_params(self) -> pd.Series:
        """Fixed effects b."""
        return pd.Series(self.estimate.beta, index=list(self.labels.fixed), name="estimate")

    @property
    def vcomp(self) -> pd.Series:
        """Variance components: ``hom``, ``V[T]``, ``V[B,T]``, then the random effects'."""
        return pd.Series(self.estimate.theta, index=self.labels.components, name="estimate")

    @property
    def params(self) -> pd.Series:
        """Fixed effects, then variance components."""
        return pd.Series(self.numbers.params, index=self.labels.params, name="estimate")

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
        return self._celltype_frame(correlation(self.A.to_numpy()))

    def _celltype_frame(self, matrix: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(matrix, index=list(self.celltypes), columns=list(self.celltypes))

    @property
    def cov_type(self) -> str:
        """Covariance that standard errors and tests use unless told otherwise."""
        return "model" if self.numbers.has_likelihood else "jackknife"

    def errors(self, covariance: Covariance = None) -> Errors:
        """What ``covariance=`` asks for, in numbers.

        Parameters
        ----------
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.
        """
        if isinstance(covariance, Jackknife):
            if not covariance.params.equals(self.params):
                raise CTMMError("covariance= is the jackknife of another fit: use this fit's own")
            return self.numbers.jackknife_errors(covariance._run)
        kind = self.cov_type if covariance is None else covariance
        if choose("covariance", kind, COVARIANCES) == "model":
            return self.numbers.model_errors
        return self.errors(self.jackknife(one_step=self.one_step))

    def jackknife(
        self,
        blocks: int | None = None,
        *,
        one_step: bool = False,
        n_jobs: int = 1,
        progress: bool = False,
    ) -> Jackknife:
        """Delete-one-donor jackknife of all parameters; kept once run.

        ``covariance="jackknife"`` and the tests that default to it use the exact jackknife that
        leaves out single donors (of a gene from a one-step scan, the one-step version).  Give the
        object returned here as ``covariance=`` to use another one.

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
        one_step, n_jobs = on_off("one_step", one_step), threads(n_jobs)
        settings = (blocks, one_step)
        with _bar(blocks or self.n_donors, on_off("progress", progress)):
            if settings not in self._jackknives:
                self._jackknives[settings] = self.numbers.jackknife(
                    blocks, one_step=one_step, n_jobs=n_jobs
                )
        run = self._jackknives[settings]
        return labelled(run, self.params, self.donors, self.model.donors)

    @cached_property
    def blup(self) -> Effects:
        """Predicted random effects (BLUPs), in kernel order.

        Raises
        ------
        ConvergenceError
            The fitted covariance is not positive definite (possible for HE); it names donors.
        """
        at, model = self.estimate, self.model
        try:
            return predicted(model, at.theta, at.beta, self.structure_.shared)
        except (ConvergenceError, np.linalg.LinAlgError) as error:
            donors = self._degenerate_donors()
            shown = ", ".join(donors if len(donors) <= 3 else [*donors[:3], "..."])
            raise ConvergenceError(
                f"there are no predicted random effects: {error}{f' ({shown})' if donors else ''}; "
                "fit by method='reml', or predict(random='none')"
            ) from None

    def _degenerate_donors(self) -> list[str]:
        """Donors whose covariance H A H' + D at the estimate is not positive definite."""
        d, A = self.design, self.A.to_numpy()
        out = []
        for code, name in enumerate(self.donors):
            rows = d.donor_codes == code
            own = d.H[rows] @ A @ d.H[rows].T + np.diag(d.nu[rows])
            if np.linalg.eigvalsh(own)[0] <= 0.0:
                out.append(name)
        return out

    def labelled(self, label: str) -> Labelled:
        """The fit under a name, as comparisons take it."""
        return Labelled(label, self.numbers, self.labels.random)

    def __getstate__(self) -> dict[str, Any]:
        return {own.name: self.__dict__[own.name] for own in fields(self)}

    def __repr__(self) -> str:
        return (
            f"<CTMMResults: {self.formula}, {self.structure} by {self.method.upper()}, "
            f"{self.n_donors} donors, {self.n_celltypes} cell types, {self.nobs} rows>"
        )


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
