"""A fit in numbers, and everything that is asked of one: errors, degrees of freedom, refits.

Results, scans, comparisons and resampling all hold a :class:`Fit`; a test
(:mod:`ctmm_formula.inference.tests`) is a function of it.

Order of all parameters: fixed effects b (p), then variance components theta (K).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from ..arguments import MOST_DRAWS, Rng, generator, threads, whole_number
from ..blas import one_thread
from ..distributions import chi2_reach
from ..engine.domain import Domain
from ..engine.draws import draw
from ..engine.estimate import Estimate
from ..engine.estimators import estimate
from ..engine.he import between_donors
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model
from ..engine.noise import COUNTED
from ..engine.profile import limits
from ..engine.related_moments import working
from ..engine.robust import CLUSTERED, ONE_UNIT, RobustFit, weigh
from ..errors import ConvergenceError, CTMMError
from ..structures import Structure
from .clustered import Clustered, NoClusters
from .genetic_score import GeneticDesign
from .group_score import GroupDesign, ResponseDesign
from .jackknife import JackknifeRun, jackknife, unit_jackknife
from .score import ScoreDesign
from .small_sample import SINGULAR, KenwardRoger, Satterthwaite, information_cov
from .testing import Law, combined, denominator

MODEL, KENWARD_ROGER, JACKKNIFE, ROBUST = "model", "kenward-roger", "jackknife", "robust"
"""Where errors come from."""
NEGATIVE = (
    "negative components make the variance of a fixed effect by the model negative: it has no "
    "standard error; use covariance='jackknife'"
)

RELATED = "related donors are no independent units"
"""Why there are no cluster-robust errors with a kinship."""

T = TypeVar("T")
_ROUNDING = 1e-8  # relative to the largest eigenvalue: below zero by more than rounding


class Errors(NamedTuple):
    """Where standard errors come from.

    Attributes
    ----------
    given : ndarray, shape (p + K, p + K), optional
        The covariance, where it is not that of `own`.
    name : str
        "model", "kenward-roger", "robust", "jackknife", "jackknife, 5 blocks", ...
    df_resid : float
        Degrees of freedom of the fit.
    groups : int, optional
        Groups of donors that a jackknife left out, one after the other.
    reason : str
        Why nothing can be said of the variance components, or "".
    own : Clustered, NoClusters or Satterthwaite, optional
        Laws of linear combinations, where each has its own.
    params : ndarray, shape (p + K,), optional
        Of what they are the errors, where that is not the fit itself.
    missing : str
        Why some of them are NaN, or "".
    """

    given: np.ndarray | None
    name: str
    df_resid: float
    groups: int | None = None
    reason: str = ""
    own: Clustered | NoClusters | Satterthwaite | None = None
    params: np.ndarray | None = None
    missing: str = ""

    @property
    def cov(self) -> np.ndarray:
        """Covariance of all parameters, (p + K, p + K); of `own` made when it is asked for."""
        if self.given is not None:
            return self.given
        if self.own is None:
            raise CTMMError("these errors have no covariance")
        return self.own.cov

    @property
    def gaps(self) -> str:
        """Why some of the standard errors, or what follows from them, are NaN; or ""."""
        return self.missing or getattr(self.own, "missing", "")

    @property
    def title(self) -> str:
        """What Wald tests by these errors call themselves."""
        return f"wald ({self.name})"

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom of every row of L (q, p + K) by itself, (q,)."""
        if self.own is not None:
            return self.own.df(L)
        return np.full(len(L), denominator(self.df_resid, 1, self.groups))

    def variances(self, L: np.ndarray) -> np.ndarray:
        """Variance of every row of L (q, p + K), or of L b (q, p), (q,).

        What has no weight may be unknown.
        """
        if self.own is not None:
            return self.own.variances(L)
        return combined(L, self.cov).diagonal()

    def of_estimates(self, L: np.ndarray) -> np.ndarray:
        """Standard errors of theta, of L b (C, p) and of b, (K + C + p,)."""
        if isinstance(self.own, Clustered):
            return self.own.of_estimates(L)
        each, p = self.cov.diagonal(), L.shape[1]
        return np.sqrt(np.concatenate([each[p:], self.variances(L), each[:p]]))

    def law(self, L: np.ndarray, null: np.ndarray | float = 0.0) -> Law | None:
        """What F tests of L t = null (q, p + K) go by, unless it is df_resid and groups."""
        return None if self.own is None else self.own.law(L, null)

    def estimates(self, fit: Fit) -> np.ndarray:
        """The parameters (p + K,) that these are the errors of."""
        return fit.params if self.params is None else self.params


@dataclass(frozen=True, eq=False)
class Fit:
    """A model, how it was fitted, and the estimate.

    Attributes
    ----------
    model : Model; structure : Structure whose basis matrices it has
    domain : Domain; estimate : Estimate
    mean_rows : ndarray, shape (C, p)
        ``mean_rows @ b`` are the means of the cell types.
    weighed : RobustFit, optional
        The robust estimate of the model with its weights, where it is at hand.
    score_design : ScoreDesign, optional
        What its score test shares with those of other responses, where it is at hand.
    group_design : GroupDesign or ResponseDesign, optional
        The same of the tests of groups or of responses.
    genetic_designs : sequence of GeneticDesign, optional
        The same of the tests of heritability, for every kinship.
    """

    model: Model
    structure: Structure
    domain: Domain
    estimate: Estimate
    mean_rows: np.ndarray = field(repr=False)
    weighed: RobustFit | None = field(default=None, repr=False)
    score_design: ScoreDesign | None = field(default=None, repr=False)
    group_design: GroupDesign | ResponseDesign | None = field(default=None, repr=False)
    genetic_designs: Sequence[GeneticDesign] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"<Fit: {self.structure.name}, {self.model!r}, {self.estimate!r}>"

    @property
    def n_fixed(self) -> int:
        """Number of fixed effects p."""
        return len(self.estimate.beta)

    @property
    def n_params(self) -> int:
        """Number of fixed effects and variance components, p + K."""
        return len(self.estimate.beta) + len(self.estimate.theta)

    @property
    def df_resid(self) -> int:
        """N - n_par: donors less parameters, as in the CTMM paper.

        Of variance components and jackknives; fixed effects by the model have their own.
        Independent units less one for robust fits, whose fixed effects have their own too.
        """
        if self.is_clustered:
            return n_units(self.model) - 1
        return self.model.n_donors - self.n_params

    @property
    def params(self) -> np.ndarray:
        """All parameters, shape (p + K,)."""
        return np.concatenate([self.estimate.beta, self.estimate.theta])

    @cached_property
    def estimates(self) -> np.ndarray:
        """Theta, means of the cell types and b, (K + C + p,)."""
        theta, b = self.estimate.theta, self.estimate.beta
        return np.concatenate([theta, self.mean_rows @ b, b])

    @property
    def has_likelihood(self) -> bool:
        """Whether it was fitted by a likelihood (moments have none)."""
        return self.estimate.method in LIKELIHOODS

    @property
    def _called(self) -> str:
        """What messages call the method."""
        return "HE" if self.estimate.method == "he" else f"method={self.estimate.method!r}"

    @property
    def is_clustered(self) -> bool:
        """Whether its errors come from independent units: donors, or blocks of them."""
        return self.estimate.method in CLUSTERED and not self.model.kinship

    @property
    def is_weighted(self) -> bool:
        """Whether it has moments weighted by related donors, whose errors are those weights'."""
        return self.estimate.method in CLUSTERED and bool(self.model.kinship)

    @property
    def trouble(self) -> str:
        """Why variance components of this fit cannot be tested, or ""."""
        record = self.estimate.convergence
        return "" if record.converged else f"the fit did not converge: {record.message}"

    @property
    def on_edge(self) -> bool:
        """Whether the estimate lies on the edge of its domain."""
        return self.estimate.convergence.boundary

    def profiles(self, alpha: float) -> np.ndarray:
        """Intervals (K, 2) of the variance components by profile likelihood.

        Raises
        ------
        CTMMError
            There is no likelihood, or the fit did not converge.
        """
        if not self.has_likelihood:
            raise CTMMError(
                f"{self._called} has no likelihood, so there are no profiles: fit by "
                "method='reml' or 'ml'"
            )
        if self.trouble:
            raise CTMMError(self.trouble)
        drop = 0.5 * chi2_reach(alpha, 1)
        count = len(self.estimate.theta)
        with one_thread():
            every = [limits(self.model, self.estimate, self.domain, k, drop) for k in range(count)]
        return np.array(every).reshape(count, 2)

    @property
    def aic(self) -> float:
        """Akaike's criterion, -2 llf + 2 n_params."""
        return -2.0 * self.estimate.llf + 2.0 * self.n_params

    @property
    def bic(self) -> float:
        """Bayesian criterion, -2 llf + n_params log(n).

        n is the number of rows for ML and rows less fixed effects for REML, whose likelihood is a
        density of n - p contrasts: so do metafor and nlme, and R's generic ``BIC``.
        """
        n = self.model.nobs - (self.n_fixed if self.estimate.method == "reml" else 0)
        return -2.0 * self.estimate.llf + (self.n_params * math.log(n) if n > 0 else math.nan)

    # errors

    @cached_property
    def model_errors(self) -> Errors:
        """Errors by the model: (X' Sigma^-1 X)^-1 and the inverse expected information.

        Of robust fits with a kinship by the covariance that weighs.
        """
        p = self.n_fixed
        cov = np.zeros((self.n_params, self.n_params))
        cov[:p, :p] = self.estimate.cov_beta
        informed = self.has_likelihood or self.is_weighted
        cov[p:, p:] = self.component_cov if informed else math.nan
        reason = ""
        if not informed:
            reason = f"{self._called} has no information matrix: use the jackknife"
        elif self.trouble or self.on_edge:
            reason = self.trouble or edge_note("the information matrix is no valid guide")
        elif np.isnan(cov[p:, p:]).any():
            reason = SINGULAR
        own = None  # moments without weights have no covariance of theta to take them from
        if self.has_likelihood:
            own = Satterthwaite(self.model, self.domain, self.estimate, cov, self.df_resid)
        elif informed:
            model, at = working(self.model, self.estimate)
            own = Satterthwaite(model, Domain(), at, cov, self.df_resid)
        lost = NEGATIVE if (cov.diagonal()[:p] < 0.0).any() else ""
        return Errors(cov, MODEL, self.df_resid, None, reason, own, missing=lost)

    @cached_property
    def component_cov(self) -> np.ndarray:
        """Inverse of the information of the components, (K, K)."""
        return information_cov(self.estimate.information)

    @cached_property
    def kenward_roger_errors(self) -> Errors:
        """The model's with Kenward and Roger's covariance of the fixed effects.

        Raises
        ------
        CTMMError
            The fit is not by REML.
        """
        if self.estimate.method != "reml":
            raise CTMMError(
                "covariance='kenward-roger' adjusts fits by REML, this one is by "
                f"{self._called}: fit by method='reml'"
            )
        model = self.model_errors
        own = KenwardRoger(self.model, self.domain, self.estimate, model.cov, self.df_resid)
        return model._replace(given=own.cov, name=KENWARD_ROGER, own=own)

    @cached_property
    def own_errors(self) -> Errors:
        """Errors that come with the fit: by independent units for robust fits, else the model's."""
        return self.robust_errors if self.is_clustered else self.model_errors

    @cached_property
    def own_standard_errors(self) -> np.ndarray:
        """Standard errors that come with the fit, of theta, means and b, (K + C + p,)."""
        return self.own_errors.of_estimates(self.mean_rows)

    @cached_property
    def robust_errors(self) -> Errors:
        """Errors by independent units, of the robust estimate: this fit or one of its model."""
        try:
            if self.model.kinship:
                raise ConvergenceError(RELATED)
            robust = self._robust
        except ConvergenceError as error:
            none = NoClusters(self.n_params, str(error))
            return Errors(None, ROBUST, math.nan, None, none.reason, none, none.params)
        own = Clustered(robust)
        reason = ONE_UNIT if robust.n_units < 2 else ""
        params = np.concatenate([robust.estimate.beta, robust.estimate.theta])
        return Errors(None, ROBUST, robust.n_units - 1, None, reason, own, params)

    @cached_property
    def _robust(self) -> RobustFit:
        """The robust estimate with its weights."""
        return weigh(self.model) if self.weighed is None else self.weighed

    @cached_property
    def fixed_by(self) -> str:
        """Errors that tests of fixed effects use unless told others."""
        model = self.model
        counted = model.pooling.weights == COUNTED
        robust = counted and n_units(model) > 1
        return errors_of_fixed(self.estimate.method, robust, bool(model.kinship))

    @one_thread()
    def errors(self, kind: str, n_jobs: int = 1) -> Errors:
        """Errors by the model, Kenward and Roger, independent units, or the exact jackknife.

        Raises
        ------
        CTMMError
            This fit has none of that kind.
        """
        if kind == JACKKNIFE:
            return self.jackknife_errors(self.jackknife(n_jobs=n_jobs))
        if kind == KENWARD_ROGER:
            return self.kenward_roger_errors
        return self.robust_errors if kind == ROBUST else self.model_errors

    def jackknife_errors(self, run: JackknifeRun) -> Errors:
        """Errors by a jackknife of this fit.

        To those of fixed effects comes what related donors add, as they are not independent.
        """
        reason = self.trouble
        if not reason and not np.isfinite(run.cov[self.n_fixed :, self.n_fixed :]).all():
            reason = (
                "there is no jackknife covariance: a refit without some donors failed, see "
                "jackknife().failed"
            )
        count, missing = len(run.left_out), ""
        if run.failed and np.isnan(np.diag(run.cov)).any():
            missing = (
                f"standard errors are missing, as {len(run.failed)} of {count} refits of the "
                f"jackknife failed ({run.failed[0][1]}): see jackknife().failed"
            )
        cov = run.cov
        if self.model.kinship and self.estimate.method == "he":
            cov, p = cov.copy(), self.n_fixed
            cov[:p, :p] += between_donors(self.model, self.estimate.theta)
        return Errors(cov, run.name, self.df_resid, count, reason, missing=missing)

    @one_thread()
    def jackknife(
        self, blocks: int | None = None, *, one_step: bool = False, n_jobs: int = 1
    ) -> JackknifeRun:
        """Leave out donors, see :func:`ctmm_formula.inference.jackknife.jackknife`.

        Of robust fits independent units, at the weights of the full fit.
        """
        if self.is_clustered:
            return unit_jackknife(self.model, self._robust, blocks)
        return jackknife(
            self.model,
            self.estimate,
            self.domain,
            blocks=blocks,
            one_step=one_step,
            n_jobs=n_jobs,
        )

    # refits

    def refit(self, y: np.ndarray) -> Fit:
        """The same model fitted to another response (n,), in kernel order."""
        model = self.model.with_response(y, self.model.nu)
        return replace(self, model=model, estimate=self._estimate(model), weighed=None)

    def null(self) -> Fit:
        """The fit of hom (V = 0) by the same method.

        Raises
        ------
        CTMMError
            There is none that a likelihood ratio could be taken to, and why.
        """
        null = self.structure.null()
        if not self.has_likelihood:
            raise CTMMError(
                f"{self._called} has no likelihood: use the jackknife "
                f"{'' if self.model.kinship else 'or score '}test, or fit by reml or ml"
            )
        if not self.structure.contains(null):
            raise CTMMError(
                f"structure {self.structure.name} does not contain hom: the models are not nested"
            )
        if self.trouble:
            raise CTMMError(self.trouble)
        model = self.model.with_basis(null.basis)
        try:
            fit = replace(self, model=model, structure=null, estimate=self._estimate(model))
        except ConvergenceError as error:
            raise CTMMError(f"the null model could not be fitted: {error}") from None
        if fit.trouble:
            raise CTMMError(f"in the null model, {fit.trouble}")
        return fit

    def _estimate(self, model: Model) -> Estimate:
        return estimate(model, self.estimate.method, self.domain)

    # draws

    def draw(self, rng: Rng = None) -> np.ndarray:
        """A response drawn from the fit, shape (n,), in kernel order."""
        return draw(self.model, self.estimate.theta, self.estimate.beta, rng)

    @one_thread()
    def of_draws(
        self, measure: Callable[[np.ndarray], T], n: int, rng: Rng = None, n_jobs: int = 1
    ) -> list[T]:
        """What `measure` finds in each of `n` responses drawn from the fit.

        Every draw has its own stream, so the result does not depend on `n_jobs` (threads).
        """
        from joblib import Parallel, delayed

        n, n_jobs, rng = whole_number("n", n, 1, MOST_DRAWS), threads(n_jobs), generator(rng)
        return Parallel(n_jobs=n_jobs, require="sharedmem")(
            delayed(lambda stream: measure(self.draw(stream)))(stream)
            for _ in range(n)
            for stream in rng.spawn(1)  # when its turn comes: a million take half a minute
        )

    def replicates(
        self,
        n: int,
        rng: Rng = None,
        n_jobs: int = 1,
        done: Callable[[int], object] = lambda count: None,
    ) -> tuple[np.ndarray, tuple[tuple[int, str], ...]]:
        """Parameters of refits to `n` draws (n, p + K), and (draw, reason) where one failed.

        `done` is called with 1 after every refit.
        """

        def params(y: np.ndarray) -> np.ndarray | str:
            try:
                return self.refit(y).params
            except CTMMError as error:
                return str(error)
            finally:
                done(1)

        found = dict(enumerate(self.of_draws(params, n, rng, n_jobs)))
        failed = tuple((k, one) for k, one in found.items() if isinstance(one, str))
        found |= dict.fromkeys(dict(failed), np.full(self.n_params, np.nan))
        return np.array(list(found.values())), failed


def share_errors(fits: Sequence[Fit]) -> None:
    """Let fits of one model by a likelihood have what their errors are made of at once.

    That is, :attr:`Fit.estimates`, :attr:`Fit.component_cov` and :attr:`Fit.own_standard_errors`.
    """
    if not fits:
        return
    found, L = [fit.estimate for fit in fits], fits[0].mean_rows
    theta, b = np.array([one.theta for one in found]), np.array([one.beta for one in found])
    estimates = np.hstack([theta, (L @ b[:, :, None])[:, :, 0], b])
    of_theta = information_cov(np.array([one.information for one in found]))
    of_b = np.array([one.cov_beta for one in found])
    parts = of_theta, combined(L, of_b), of_b
    errors = np.sqrt(np.hstack([part.diagonal(axis1=1, axis2=2) for part in parts]))
    for fit, *own in zip(fits, estimates, of_theta, errors, strict=True):
        names = "estimates", "component_cov", "own_standard_errors"
        fit.__dict__.update(zip(names, own, strict=True))


def n_units(model: Model) -> int:
    """Number of independent units: donors, or blocks of donors that share random effects."""
    return len(np.unique(model.donor_block[model.active]))


def own_errors_of(method: str, related: bool) -> str:
    """Errors that come with a fit by `method`, `related` if it has a kinship.

    >>> [own_errors_of(method, False) for method in ("reml", "he", "robust")]
    ['model', 'jackknife', 'robust']
    >>> [own_errors_of(method, True) for method in ("reml", "he", "robust")]
    ['model', 'jackknife', 'model']
    """
    if method in LIKELIHOODS or (method in CLUSTERED and related):
        return MODEL
    return ROBUST if method in CLUSTERED else JACKKNIFE


def errors_of_fixed(method: str, robust: bool, related: bool = False) -> str:
    """Errors that tests of fixed effects after `method` use unless told others.

    Robust ones wherever they can be had (`robust`: numbers of cells are known, and there are
    units to leave out), as counts bias whatever weighs by their measured noise.  With a kinship
    (`related`) there are none; other fits than REML then have their own.

    >>> errors_of_fixed("reml", True), errors_of_fixed("reml", False), errors_of_fixed("he", False)
    ('robust', 'kenward-roger', 'jackknife')
    """
    if related:
        return KENWARD_ROGER if method == "reml" else own_errors_of(method, related)
    if robust or method in CLUSTERED:
        return ROBUST
    return KENWARD_ROGER if method == "reml" else JACKKNIFE


def edge_note(what: str) -> str:
    """What is said of a fit on the edge of its domain."""
    return f"the estimate lies on the edge of its domain, where {what}"


def correlation(A: np.ndarray) -> np.ndarray:
    """Correlations (C, C) of a covariance of cell types.

    NaN where a variance is not positive, and all NaN where what is left is no covariance (not
    positive semidefinite): variance components may be negative, and for overall pseudobulk only
    the observed mixtures of cell types need a variance >= 0.

    >>> correlation(np.array([[4.0, 1.0], [1.0, 1.0]]))[0, 1]
    np.float64(0.5)
    """
    sd = np.sqrt(np.where(np.diag(A) > 0, np.diag(A), np.nan))
    there = np.isfinite(sd)
    part = A[np.ix_(there, there)]
    values = np.linalg.eigvalsh(part) if np.isfinite(part).all() else np.array([np.nan])
    if not (values >= -_ROUNDING * np.abs(values).max(initial=0.0)).all():
        sd = np.full(len(A), np.nan)
    return A / np.outer(sd, sd)
