"""What a fit is made of: a design, a fit in numbers, labels; parameters and their errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import pandas as pd

from ..arguments import CovarianceName, choose, on_off, threads, whole_number
from ..design.labelled import Design
from ..engine.blup import Effects, covariance_parts
from ..engine.blup import effects as predicted
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.he import over_blocks
from ..engine.likelihood import evaluate
from ..engine.model import Model
from ..errors import ConvergenceError, CTMMError, CTMMWarning, NoLikelihoodError
from ..inference.comparison import Labelled
from ..inference.fit import (
    JACKKNIFE,
    KENWARD_ROGER,
    MODEL,
    RELATED,
    ROBUST,
    Errors,
    Fit,
    correlation,
    own_errors_of,
)
from ..inference.jackknife import JackknifeRun
from ..progress import progress_bar
from ..structures import Structure
from .kept import recalled
from .labels import METHODS, Labels
from .model_view import FittedModel
from .resampling import Jackknife
from .summary import recorded_versions

COVARIANCES = (MODEL, KENWARD_ROGER, JACKKNIFE)

T = TypeVar("T")
Covariance: TypeAlias = CovarianceName | Jackknife | None
Asked: TypeAlias = str | Jackknife | None  # the same, not looked at yet


class Of(property, Generic[T]):
    """A property that is one expression, with its type and what help() says of it."""

    _name = ""

    def __init__(self, get: Callable[[Record], T], doc: str | None = None) -> None:
        super().__init__(get, doc=doc or get.__doc__)

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, of: Any, owner: type | None = None) -> T:  # type: ignore[override]
        if of is not None and self._name in of._answers:
            return recalled(of._answers[self._name])
        return super().__get__(of, owner)


@dataclass(eq=False, repr=False)
class Record:
    """A fit with its design: what the methods of :class:`ctmm_formula.CTMMResults` work on.

    Its fields are described there.  Parameters are on one natural scale everywhere: fixed
    effects, then variance components (not standard deviations, not ratios: they are in squared
    units of the response).
    """

    design: Design
    structure_: Structure
    domain: Domain
    estimate: Estimate
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=recorded_versions)
    one_step: bool = False
    _told = False  # of errors that are missing
    _jackknives: dict[tuple[int | None, bool], JackknifeRun] = field(default_factory=dict)
    _answers: dict[str, bytes] = field(default_factory=dict, init=False)  # without rows

    @cached_property
    def arrays(self) -> Model:
        """The model as arrays, in kernel order."""
        return self.design.model(self.structure_)

    @cached_property
    def numbers(self) -> Fit:
        """The fit as tests and resampling see it: arrays without names."""
        return Fit(self.arrays, self.structure_, self.domain, self.estimate, self.design.mean_rows)

    @cached_property
    def labels(self) -> Labels:
        """Names of the parameters."""
        return Labels.of(self.design, self.structure_)

    formula = Of(lambda r: r.design.spec.text, "Canonical formula, random terms included.")
    structure = Of(lambda r: r.structure_.name, "Name of the covariance structure.")
    method = Of(lambda r: r.estimate.method, 'One of "ml", "reml", "he" and "robust".')
    bounds = Of(
        lambda res: res.domain.bounds if res.numbers.has_likelihood else "none",
        "Name of the domain of the variance components; moments know no bounds.",
    )
    kind = Of(lambda r: r.design.kind, '"ctp" or "op": cell type-specific or overall pseudobulk.')
    celltypes = Of(lambda r: r.design.celltypes, "Names of the cell types.")
    donors = Of(lambda r: r.design.donors, "Names of the donors.")
    dropped = Of(lambda r: dict(r.design.dropped), "Rows left out, by reason.")
    nobs = Of(lambda r: len(r.design.y), "Rows in the fit.")
    n_donors = Of(lambda r: len(r.design.donors), "Number of donors N.")
    n_celltypes = Of(lambda r: len(r.design.celltypes), "Number of cell types C.")
    n_possible = Of(
        lambda r: r.design.n_possible, "Rows, were no pair of donor and cell type missing."
    )
    df_model = Of(lambda r: r.numbers.n_params, "Number of fixed effects and variance components.")
    df_resid = Of(
        lambda r: r.numbers.df_resid,
        "Donors less parameters, the denominator df of tests of variance components and of the "
        "jackknife; of robust fits independent units (donors, or blocks of them) less one.",
    )
    converged = Of(
        lambda r: r.estimate.convergence.converged,
        "Whether the optimisation reached its tolerance.",
    )
    boundary = Of(lambda r: r.numbers.on_edge, "Whether the estimate is on the edge of its domain.")
    aic = Of(lambda r: r._likely.aic, "-2 llf + 2 df_model.")
    bic = Of(
        lambda r: r._likely.bic, "-2 llf + log(n) df_model; n rows, for REML less fixed effects."
    )
    cov_type = Of(
        lambda res: own_errors_of(res.method, bool(res.design.kinship)),
        "Covariance that standard errors and tests use unless told otherwise.",
    )

    @Of
    def llf(self) -> float:
        """Log-likelihood with all constants; restricted, with 1/2 log|X'X|, for REML.

        Raises
        ------
        ConvergenceError
            The method of moments has none (an AttributeError as well: ``hasattr`` is False).
        """
        return self._likely.estimate.llf

    @property
    def _likely(self) -> Fit:
        """The fit in numbers, if it has a likelihood."""
        if not self.numbers.has_likelihood:
            raise NoLikelihoodError(
                f"method={self.method!r} matches moments and has no likelihood: for llf, aic, bic "
                "and likelihood ratio tests fit by method='reml' or 'ml'"
            )
        return self.numbers

    @property
    def model(self) -> FittedModel:
        """The model under statsmodels' names: ``endog`` (n,), ``exog`` (n, p), ``groups`` (n,)."""
        return FittedModel(self.design)

    @property
    def fe_params(self) -> pd.Series:
        """Fixed effects b."""
        return pd.Series(self.estimate.beta, index=list(self.labels.fixed), name="estimate")

    @property
    def vcomp(self) -> pd.Series:
        """Variance components: ``hom``, ``V[T]``, ``V[B,T]``, then the random effects'."""
        return pd.Series(self.estimate.theta, index=self.labels.components, name="estimate")

    @Of
    def params(self) -> pd.Series:
        """Fixed effects, then variance components."""
        return pd.Series(self.numbers.params, index=self.labels.params, name="estimate")

    @property
    def A(self) -> pd.DataFrame:
        """Covariance of true expression between donors, A = sigma^2 J + V, shape (C, C).

        With a kinship that of the environment; ``heritability()`` has both.
        Of groups and conditions that of all effects, ``T|case``.
        """
        count = len(self.structure_.labels)
        return self._effect_frame(self.structure_.covariance(self.estimate.theta[:count]))

    @property
    def cov_re(self) -> pd.DataFrame:
        """``A`` under statsmodels' name: covariance of the effects of a donor, (C, C)."""
        return self.A

    @property
    def V(self) -> pd.DataFrame:
        """Cell type-specific covariance, shape (C, C); without a shared component, all of A."""
        return self.A - self._common

    @property
    def _common(self) -> np.ndarray:
        """Covariance that all cell types share: sigma^2 J, or of every group; (C, C)."""
        return self.structure_.common(self.estimate.theta[: len(self.structure_.labels)])

    @property
    def corr(self) -> pd.DataFrame:
        """Correlation of true expression between cell types, shape (C, C).

        NaN where a variance is not positive, and all NaN where ``A`` is no covariance (not
        positive semidefinite): variance components may be negative, and for overall pseudobulk
        only the observed mixtures of cell types need a variance >= 0.
        """
        return self._effect_frame(correlation(self.A.to_numpy()))

    def _effect_frame(self, matrix: np.ndarray) -> pd.DataFrame:
        names = list(self.structure_.celltypes)
        return pd.DataFrame(matrix, index=names, columns=names)

    def errors(self, covariance: Asked = None) -> Errors:
        """What ``covariance=`` asks for (a word, or a Jackknife), in numbers."""
        if isinstance(covariance, Jackknife):
            if not covariance.params.equals(self.params):
                raise CTMMError("covariance= is the jackknife of another fit: use this fit's own")
            return self.numbers.jackknife_errors(covariance._run)
        kind = self.cov_type if covariance is None else covariance
        if isinstance(kind, str) and kind == ROBUST != self.cov_type:
            if self.design.kinship:
                raise CTMMError(f"there are no robust errors, as {RELATED}: 'model' or 'jackknife'")
            raise CTMMError(
                f"covariance='robust' comes with another estimate than that by {self.method!r}: "
                "fit by method='robust'; test_mean, wald_test and t_test of fixed effects take it"
            )
        return self._errors(
            choose("covariance", kind, dict.fromkeys((*COVARIANCES, self.cov_type)))
        )

    def shown_errors(self, covariance: Asked = None) -> Errors:
        """The same for tables, which have no place for a note: warns once of what is missing."""
        errors = self.errors(covariance)
        if errors.gaps and not self._told:
            self._told = True
            warnings.warn(errors.gaps, CTMMWarning, stacklevel=4)
        return errors

    def errors_for(self, L: np.ndarray, covariance: Asked = None) -> Errors:
        """The same for tests of L t (q, p + K).

        By default robust ones for fixed effects, wherever they can be had.
        """
        fit = self.numbers
        of_fixed = not L[:, fit.n_fixed :].any()
        kind = fit.fixed_by if covariance is None else covariance
        if of_fixed and covariance is not None and not isinstance(covariance, Jackknife):
            kind = choose("covariance", covariance, (ROBUST, *COVARIANCES))
        if of_fixed and isinstance(kind, str) and kind == ROBUST:
            return fit.robust_errors
        return self.errors(covariance)

    def _errors(self, kind: str) -> Errors:
        if kind != JACKKNIFE:
            return self.numbers.errors(kind)
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
            most G - q degrees of freedom to a test of q hypotheses.  Robust fits leave out
            independent units: donors, or blocks of donors joined by random effects.
        one_step : bool
            One step from the full fit instead of refits (``error``: how far from them); moments
            are always exact.  With a kinship of weighted moments: at the weights of the full fit.
        n_jobs : int
            Threads, -1 for all.
        progress : bool
            Show a progress bar (refits run as one batch, so it tells when they are done).

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
        settings, count = (blocks, one_step), blocks or self.n_donors
        with progress_bar(on_off("progress", progress), "jackknife", "refit", count) as done:
            if settings not in self._jackknives:
                self._jackknives[settings] = self.numbers.jackknife(
                    blocks, one_step=one_step, n_jobs=n_jobs
                )
            done(count)  # refits run as one batch
        return self._jackknife_of(self._jackknives[settings])

    def _jackknife_of(self, run: JackknifeRun) -> Jackknife:
        """The numbers of a jackknife with their labels, in the order of the donors."""
        groups = [np.sort(self.arrays.donors[group]) for group in run.left_out]
        names = [", ".join(self.donors[code] for code in group) for group in groups]
        order = np.argsort([group[0] for group in groups])
        index = pd.Index([names[g] for g in order], name="left_out", dtype=object)
        values = np.hstack([run.beta, run.theta])[order]
        table = pd.DataFrame(values, index, self.params.index)
        failed = {names[g]: reason for g, reason in run.failed}
        return Jackknife(self.params, table, self.df_resid, failed, run)

    @cached_property
    def definite(self) -> bool:
        """Whether the fitted covariance is positive definite; of moments it may not be.

        With a kinship whether all of its parts, environment and kinships, are covariances.
        """
        at, model = self.estimate, self.arrays
        if model.kinship:
            return bool((covariance_parts(model, at.theta) == at.theta).all())
        if self.numbers.has_likelihood or (at.theta >= 0.0).all():
            return True
        if math.isfinite(evaluate(model, at.theta, full=False).llf):
            return True
        return over_blocks(model, at.theta) is not None

    @cached_property
    def blup(self) -> Effects:
        """Predicted random effects (BLUPs), in kernel order.

        Raises
        ------
        ConvergenceError
            There is none, as the noise is 0; it names donors.  A fitted covariance that is not
            positive definite (possible for moments) has those of its part that is a covariance.
        """
        at, model = self.estimate, self.arrays
        try:
            return predicted(model, at.theta, at.beta, self.structure_.shared)
        except (ConvergenceError, np.linalg.LinAlgError) as error:
            d, A = self.design, self.A.to_numpy()
            noise = model.unsort(model.noise)
            donors = []  # whose covariance H A H' + D is not positive definite
            for code, name in enumerate(self.donors):
                rows = d.donor_codes == code
                own = d.E[rows] @ A @ d.E[rows].T + np.diag(noise[rows])
                donors += [name] if np.linalg.eigvalsh(own)[0] <= 0.0 else []
            shown = ", ".join(donors if len(donors) <= 3 else [*donors[:3], "..."])
            raise ConvergenceError(
                f"there are no predicted random effects: {error}{f' ({shown})' if donors else ''}; "
                "fit by method='reml', or predict(random='none')"
            ) from None

    def labelled(self, label: str) -> Labelled:
        """The fit under a name, as comparisons take it."""
        return Labelled(label, self.numbers, self.labels.random)

    def __getstate__(self) -> dict[str, Any]:
        return {own.name: self.__dict__[own.name] for own in fields(self)}

    def __repr__(self) -> str:
        return (
            f"<CTMMResults: {self.formula}, {self.structure} by {METHODS[self.method]}, "
            f"{self.n_donors} donors, {self.n_celltypes} cell types, {self.nobs} rows>"
        )
