"""Results of a fit: labels and accessors; the numbers come from the modules below.

Parameters are on one natural scale everywhere: fixed effects, then variance components (not
standard deviations, not ratios), in ``params``, ``summary()``, ``tidy()`` and hypotheses alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats
from statsmodels.stats.contrast import ContrastResults
from statsmodels.stats.multitest import multipletests

from . import blup, inference, serialize, shares
from .design import Design
from .domain import Domain
from .errors import ConvergenceError, CTMMError, choose
from .estimate import Estimate
from .estimators import estimate as run_estimator
from .hypotheses import constraints
from .inference import TestResult
from .jackknife import Jackknife
from .jackknife import jackknife as run_jackknife
from .likelihood import LIKELIHOODS
from .model import Model
from .simulate import Rng, draw
from .structures import Structure
from .summary import Summary, summarise
from .table import label, pick

Hypotheses: TypeAlias = str | Sequence[str] | np.ndarray
COVARIANCES = ("model", "jackknife")
TABLE = ("estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high")
"""Columns of every table of estimates, named as in broom."""


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


@dataclass(eq=False, repr=False)
class CTMMResults:
    """A fitted model.

    Made by :func:`ctmm_formula.fit`.  n rows, N donors, C cell types, p fixed effects, K variance
    components.

    Standard errors and tests use ``cov_type``: "model" (inverse expected information and
    (X' Sigma^-1 X)^-1; default for ML and REML) or "jackknife" (delete one donor; default for HE,
    which has no information).  Methods take ``covariance=`` to choose the other one.  The
    jackknife is run when first needed and kept.

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

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example(), structure="hom")
    >>> res
    <CTMMResults: expr ~ C(celltype), hom by REML, 72 donors, 4 cell types, 275 rows>
    >>> list(res.params.index)[-2:]
    ['C(celltype)[T.day3]', 'hom']
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
        return inference.aic(self.llf, self.df_model)

    @property
    def bic(self) -> float:
        """-2 llf + log(n) df_model, n the rows (REML: rows less fixed effects)."""
        fixed = len(self.estimate.beta)
        return inference.bic(self.llf, self.df_model, self.nobs, fixed, self.method)

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
        out[p:, p:] = inference.information_cov(self.estimate)
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
        out = _estimates(self.params.to_numpy(), se, self.df_resid, alpha)
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

    # -----------------------------------------------------------------------------------------
    # means of the cell types

    def means(self, covariance: str | None = None, alpha: float = 0.05) -> pd.DataFrame:
        """Means of the cell types at the mean of the covariates.

        Returns
        -------
        DataFrame
            One row per cell type: estimate, std_error, conf_low, conf_high.
        """
        out = self._linear(self.design.mean_rows, list(self.celltypes), covariance, alpha)
        return out[["estimate", "std_error", "conf_low", "conf_high"]].rename_axis("celltype")

    def contrasts(
        self,
        kind: str = "pairwise",
        *,
        adjust: str = "holm",
        covariance: str | None = None,
        alpha: float = 0.05,
    ) -> pd.DataFrame:
        """Differences of cell type means with adjusted p values.

        Parameters
        ----------
        kind : {"pairwise", "reference"}
            All pairs, or each cell type against the first.
        adjust : str
            Method of :func:`statsmodels.stats.multitest.multipletests`, or "none"; missing p
            values stay missing and do not count.

        Returns
        -------
        DataFrame
            Rows ``"B - T"``; estimate, std_error, statistic, p_value, conf_low, conf_high (not
            adjusted) and p_adjusted.
        """
        pairs = list(combinations(range(self.n_celltypes), 2))
        if choose("kind", kind, ("pairwise", "reference")) == "reference":
            pairs = [pair for pair in pairs if pair[0] == 0]
        rows, names = self.design.mean_rows, self.celltypes
        L = np.array([rows[b] - rows[a] for a, b in pairs])
        out = self._linear(L, [f"{names[b]} - {names[a]}" for a, b in pairs], covariance, alpha)
        out["p_adjusted"] = _adjusted(out["p_value"].to_numpy(), adjust)
        return out.rename_axis("contrast")

    def _linear(
        self, L: np.ndarray, names: list[str], covariance: str | None, alpha: float
    ) -> pd.DataFrame:
        """Table of linear combinations L b of the fixed effects."""
        p = len(self.estimate.beta)
        cov = self._covariance(covariance)[:p, :p]
        se = np.sqrt(np.einsum("ij,jk,ik->i", L, cov, L))
        table = _estimates(L @ self.estimate.beta, se, self.df_resid, alpha)
        return pd.DataFrame(table, index=names, columns=list(TABLE))

    # -----------------------------------------------------------------------------------------
    # shares of variance

    def variance_explained(self, *, by_celltype: bool = False, ddof: int = 1) -> pd.DataFrame:
        """Parts of the variance of overall pseudobulk; formulas in :mod:`ctmm_formula.shares`.

        Covariances between the fixed parts do not count, as published.

        Parameters
        ----------
        by_celltype : bool
            Split ``specific`` into ``specific[T]``, ... (and ``specific[covariances]`` where the
            structure has covariances).
        ddof : int
            The fixed parts' variances between donors are divided by N - ddof.

        Returns
        -------
        DataFrame
            Rows means, fixed (other fixed effects), shared, specific, one per random effect,
            noise, total; columns variance and share, which sum to the total.
        """
        parts, specific = shares.variance_parts(
            self.design,
            self.structure_,
            self.estimate.theta,
            self.estimate.beta,
            random_names=self._random_names,
            ddof=ddof,
        )
        total = sum(parts.values())
        rows: dict[str, float] = {}
        for name, value in parts.items():
            rows |= specific if by_celltype and name == "specific" else {name: value}
        out = pd.DataFrame({"variance": {**rows, "total": total}})
        out["share"] = out["variance"] / total
        return out.rename_axis("component")

    def icc(self) -> pd.DataFrame:
        """Intraclass correlation of each cell type.

        Returns
        -------
        DataFrame
            One row per cell type: the variances donor (A_cc), random (all random effects), noise
            (mean) and total; ``icc`` = donor / total; ``shared`` = sigma^2 / donor, the part that
            all cell types share (0 where the structure has no such component).
        """
        parts = shares.celltype_parts(self.design, self.structure_, self.estimate.theta)
        sigma2 = parts.pop("shared")
        out = pd.DataFrame(parts, index=pd.Index(self.celltypes, name="celltype"))
        out["total"] = out.sum(axis=1)
        out["icc"] = out["donor"] / out["total"]
        out["shared"] = sigma2 / out["donor"]
        return out

    # -----------------------------------------------------------------------------------------
    # effects and predictions

    @cached_property
    def _effects(self) -> blup.Effects:
        at, model = self.estimate, self.model
        return blup.effects(model, at.theta, at.beta, self.structure_.shared)

    @cached_property
    def random_effects(self) -> dict[str, pd.DataFrame]:
        """Predicted random effects (BLUPs) with prediction standard errors.

        Returns
        -------
        dict of DataFrame
            Columns estimate and std_error (NaN where a variance component is negative).
            ``"shared"`` by donor, ``"specific"`` by donor and cell type (each where the structure
            has it), and one frame by level for each random effect.

        Raises
        ------
        ConvergenceError
            The fitted covariance is not positive definite (possible for HE).
        """
        effects, model, size = self._effects, self.model, (self.n_donors, self.n_celltypes)
        donors = pd.Index(self.donors, name=self.design.donor_col)
        out: dict[str, pd.DataFrame] = {}
        if self.structure_.shared is not None:
            shared = np.empty((size[0], 2))
            shared[model.donors] = np.column_stack([effects.shared, effects.shared_se])
            out["shared"] = pd.DataFrame(shared, donors, ["estimate", "std_error"])
        if len(self.structure_.specific):
            specific = np.empty((*size, 2))
            specific[model.donors] = np.stack([effects.specific, effects.specific_se], axis=-1)
            pairs = pd.MultiIndex.from_product(
                [donors, self.celltypes],
                names=[self.design.donor_col, self.design.celltype_col or "celltype"],
            )
            out["specific"] = pd.DataFrame(
                specific.reshape(-1, 2), pairs, ["estimate", "std_error"]
            )
        for name, levels, (value, se) in zip(
            self._random_names, self.design.random_levels, effects.random, strict=True
        ):
            index = pd.Index(levels, name="level")
            out[name] = pd.DataFrame({"estimate": value, "std_error": se}, index=index)
        return out

    def _by_row(self, values: np.ndarray, name: str) -> pd.Series:
        """Kernel rows as a Series on the user's index."""
        return pd.Series(self.model.unsort(values), index=self.design.index, name=name)

    @property
    def fittedvalues(self) -> pd.Series:
        """Fixed effects and all predicted random effects, on the index of the data."""
        return self._by_row(self._effects.fitted, "fittedvalues")

    @property
    def marginal(self) -> pd.Series:
        """Fixed effects X b, on the index of the data."""
        return pd.Series(self.design.X @ self.estimate.beta, self.design.index, name="marginal")

    @property
    def resid(self) -> pd.Series:
        """Response less ``fittedvalues``."""
        return (self.design.y - self.fittedvalues).rename("resid")

    def predict(self, newdata: object = None, random: str | Sequence[str] = "none") -> pd.Series:
        """Predict expression.

        Parameters
        ----------
        newdata : DataFrame or dict of columns, optional
            The covariates and, for random effects, the columns of donor, cell type and groups;
            by default the rows of the fit.
        random : "none", "all", or list of names of ``random_effects``
            Which predicted random effects to add.  Donors and levels that the fit has not seen
            (or that are missing) get 0, the mean of their distribution.

        Returns
        -------
        Series
            On the index of `newdata`; NaN where a covariate is missing.

        Raises
        ------
        FormulaError
            A level of a fixed effect that the fit has not seen.
        DataError
            A column that is needed is not there.

        Examples
        --------
        >>> import ctmm_formula as ctmm
        >>> res = ctmm.fit("expr ~ 0 + C(celltype)", data=ctmm.load_example(), structure="hom")
        >>> new = {"celltype": ["day0", "day3"], "donor": ["unknown", "unknown"]}
        >>> bool((res.predict(new, "all") == res.fe_params.iloc[[0, 3]].to_numpy()).all())
        True
        """
        wanted = self._wanted(random)
        if newdata is None:
            frame, X = self.design.frame.set_axis(self.design.index), self.design.X
        else:
            X, frame = self.design.matrix(newdata)
        out = X @ self.estimate.beta
        if wanted:
            H = self._observation(frame) if {"shared", "specific"} & set(wanted) else np.zeros(0)
            for name in wanted:
                out = out + self._contribution(name, frame, H)
        return pd.Series(out, index=frame.index, name=self.design.response_name)

    def _wanted(self, random: str | Sequence[str]) -> list[str]:
        """Names of the random effects asked for."""
        names = list(self.random_effects) if not isinstance(random, str) or random != "none" else []
        if isinstance(random, str):
            if random in ("none", "all"):
                return names
            random = [random]
        for name in random:
            choose("random effect", name, ["none", "all", *names])
        return list(dict.fromkeys(random))

    def _observation(self, frame: pd.DataFrame) -> np.ndarray:
        """H of new rows: proportions, or one-hot cell types (zero where unknown)."""
        design = self.design
        if design.proportion_cols:
            return frame[list(design.proportion_cols)].to_numpy(dtype=float)
        column = _need(frame, cast(str, design.celltype_col), "cell type")
        return (_labels(column)[:, None] == np.array(self.celltypes, dtype=object)).astype(float)

    def _contribution(self, name: str, frame: pd.DataFrame, H: np.ndarray) -> np.ndarray:
        """One random effect's part of a prediction; 0 for donors and levels not seen."""
        effect = self.random_effects[name]["estimate"]
        if name in ("shared", "specific"):
            donor = _labels(_need(frame, self.design.donor_col, "donor"))
            where = pd.Index(self.donors).get_indexer(pd.Index(donor))
            values = effect.to_numpy().reshape(self.n_donors, -1)  # (N, 1) or (N, C)
            known = np.where((where >= 0)[:, None], values[where], 0.0)
            return (known * H).sum(axis=1)
        term, celltype = self._terms[self._random_names.index(name)]
        parts = [_labels(_need(frame, group, "random effect")) for group in term.groups]
        level = np.array([":".join(map(str, row)) for row in zip(*parts, strict=True)])
        where = pd.Index(effect.index).get_indexer(pd.Index(level))
        values = np.where(where >= 0, effect.to_numpy()[where], 0.0)
        return values if celltype is None else values * self._observation(frame)[:, celltype]

    @property
    def _terms(self) -> list[tuple[Any, int | None]]:
        """Term and cell type (None: all) of every random component."""
        return [
            (term, cell)
            for term in self.design.spec.random
            for cell in (range(self.n_celltypes) if term.celltype_specific else [None])
        ]

    # -----------------------------------------------------------------------------------------
    # resampling

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

    def simulate(self, rng: Rng = None, n: int = 1) -> pd.DataFrame:
        """Draw `n` new responses from the fitted model.

        Returns
        -------
        DataFrame, shape (rows, n)
            On the index of the data.
        """
        model, at = self.model, self.estimate
        streams = np.random.default_rng(rng).spawn(n)
        draws = [model.unsort(draw(model, at.theta, at.beta, stream)) for stream in streams]
        return pd.DataFrame(np.array(draws).T, index=self.design.index, columns=range(n))

    def bootstrap(self, n: int = 200, *, rng: Rng = None, n_jobs: int = 1) -> Bootstrap:
        """Parametric bootstrap: draw from the fitted model and fit again.

        Parameters
        ----------
        n : int
        rng : numpy Generator or seed, optional
        n_jobs : int
            Threads; the numbers do not depend on it.

        Returns
        -------
        Bootstrap
        """
        model, at = self.model, self.estimate

        def replicate(stream: np.random.Generator) -> np.ndarray | str:
            again = model.with_response(draw(model, at.theta, at.beta, stream), model.nu)
            try:
                fit = run_estimator(again, at.method, self.domain)
            except CTMMError as error:
                return str(error)
            return np.concatenate([fit.beta, fit.theta])

        fits = Parallel(n_jobs=n_jobs, prefer="threads")(
            delayed(replicate)(stream) for stream in np.random.default_rng(rng).spawn(n)
        )
        failed = tuple((k, fit) for k, fit in enumerate(fits) if isinstance(fit, str))
        nothing = np.full(self.df_model, np.nan)
        values = np.array([nothing if isinstance(fit, str) else fit for fit in fits])
        return Bootstrap(pd.DataFrame(values, columns=self.params.index), failed)

    # -----------------------------------------------------------------------------------------
    # tests

    def wald_test(self, hypotheses: Hypotheses, covariance: str | None = None) -> TestResult:
        """F test of linear hypotheses on ``params``.

        Parameters
        ----------
        hypotheses : str, list of str, dict or array
            As statsmodels takes them: ``"sex[T.M] = 0, PC1 = 0.1"``, ``"hom = V[T]"``.
        covariance : {"model", "jackknife"}, optional
        """
        names = list(self.params.index)
        L, rhs = constraints(names, hypotheses)
        kind = covariance or self.cov_type
        return inference.wald(
            self.params.to_numpy(),
            self._covariance(kind),
            L,
            self.df_resid,
            rhs=rhs,
            null=_in_words(L, rhs, names),
            method=f"wald ({kind})",
        )

    def t_test(self, hypotheses: Hypotheses, covariance: str | None = None) -> ContrastResults:
        """Two-sided t tests of linear hypotheses, one by one; see :meth:`wald_test`.

        Returns
        -------
        statsmodels ContrastResults
            ``effect``, ``sd``, ``tvalue``, ``pvalue``, ``conf_int()``, ``summary_frame()``.
        """
        L, rhs = constraints(list(self.params.index), hypotheses)
        used = np.flatnonzero((L != 0).any(axis=0))  # what is not tested may be unknown
        cov = self._covariance(covariance)[np.ix_(used, used)]
        effect = L @ self.params.to_numpy()
        sd = np.sqrt(np.diag(L[:, used] @ cov @ L[:, used].T))
        df = self.df_resid if self.df_resid > 0 else np.nan
        return ContrastResults(
            effect=effect, t=(effect - rhs) / sd, sd=sd, df_denom=df, statistic=None
        )

    def test_variance(
        self, method: str = "jackknife", *, rng: Rng = None, n: int = 999, n_jobs: int = 1
    ) -> TestResult:
        """Test V = 0: donors differ in the same way in all cell types.

        Parameters
        ----------
        method : {"jackknife", "wald", "lrt", "bootstrap", "score"}
            See :func:`ctmm_formula.inference.variance_differentiation`.
        rng, n, n_jobs
            Randomness, draws and threads of the bootstrap.
        """
        needs = method == "jackknife"
        return inference.variance_differentiation(
            self.model,
            self.structure_,
            self.estimate,
            self.domain,
            method,
            cov=self.jackknife(n_jobs=n_jobs).cov_theta if needs else None,
            rng=rng,
            n=n,
            n_jobs=n_jobs,
        )

    def test_mean(self, covariance: str = "jackknife") -> TestResult:
        """Test that all cell types have the same mean, whatever coding the formula has."""
        p = len(self.estimate.beta)
        return inference.mean_differentiation(
            self.design.mean_rows,
            self.estimate.beta,
            self._covariance(covariance)[:p, :p],
            self.df_resid,
            method=f"wald ({covariance})",
        )

    def test_component(
        self,
        name: str,
        method: str = "t",
        *,
        covariance: str | None = None,
        rng: Rng = None,
        n: int = 10_000,
    ) -> TestResult:
        """Test one variance component against zero.

        Parameters
        ----------
        name : str
            As in ``vcomp``: ``"hom"``, ``"V[T]"``, ``"batch"``.
        method : {"t", "exact"}
            One-sided t test, or the exact restricted likelihood ratio of Crainiceanu and Ruppert
            (2004) where the component is the model's only one.
        covariance : {"model", "jackknife"}, optional
            Of the t test.
        rng, n
            Randomness and draws of the exact test.
        """
        index = self._vc_names.index(choose("variance component", name, self._vc_names))
        by = self.cov_type if covariance is None else choose("covariance", covariance, COVARIANCES)
        if choose("method", method, ("t", "exact")) == "t":
            method = {"model": "wald", "jackknife": "jackknife"}[by]
        cov = self.jackknife().cov_theta if method == "jackknife" else None
        return inference.component(
            self.model, self.estimate, index, method, label=name, cov=cov, rng=rng, n=n
        )

    def compare_lr_test(self, restricted: CTMMResults) -> TestResult:
        """Likelihood ratio test of this fit against a `restricted` one nested in it.

        Raises
        ------
        CTMMError
            HE fits, REML fits with different fixed parts, other data, or models not nested.
        """
        if restricted.df_model > self.df_model:
            raise CTMMError(
                f"the restricted fit has {restricted.df_model} parameters, this one "
                f"{self.df_model}: call compare_lr_test on the larger model"
            )
        last = inference.compare([restricted.fitted("restricted"), self.fitted("full")])[-1]
        return TestResult(
            "likelihood ratio",
            f"{restricted.formula}, structure {restricted.structure}",
            f"likelihood ratio ({self.method})",
            last["statistic"],
            last["df"],
            last["pvalue"],
            "chi2",
            last["note"],
        )

    def fitted(self, label: str) -> inference.Fitted:
        """The fit as likelihood ratio tests see it."""
        names = self.design.random_names
        return inference.Fitted(label, self.model, self.structure_, self.estimate, names)

    # -----------------------------------------------------------------------------------------
    # tables, text, files

    def summary(self, covariance: str | None = None, alpha: float = 0.05) -> Summary:
        """Describe the fit as text, HTML (notebooks) and LaTeX.

        Parameters
        ----------
        covariance : {"model", "jackknife"}, optional
        alpha : float
            One less the confidence of the intervals.
        """
        return summarise(self, covariance, alpha)

    def tidy(self, covariance: str | None = None, alpha: float = 0.05) -> pd.DataFrame:
        """One row per parameter, with broom's column names.

        Returns
        -------
        DataFrame
            effect ("fixed" or "variance"), component ("fixed", "donor" or "random"), term,
            estimate, std_error, statistic, p_value, conf_low, conf_high.
        """
        out = self.table(covariance, alpha).rename_axis("term").reset_index()
        counts = (len(self.design.names), len(self.structure_.labels), len(self._random_names))
        out.insert(0, "effect", np.repeat(["fixed", "variance", "variance"], counts))
        out.insert(1, "component", np.repeat(["fixed", "donor", "random"], counts))
        return out

    def glance(self) -> pd.DataFrame:
        """One row about the fit; log_lik, aic and bic are NaN for HE."""
        likelihood = self.method in LIKELIHOODS
        row = {
            "formula": self.formula,
            "structure": self.structure,
            "method": self.method,
            "bounds": self.bounds,
            "kind": self.kind,
            "nobs": self.nobs,
            "n_donors": self.n_donors,
            "n_celltypes": self.n_celltypes,
            "n_dropped": sum(self.dropped.values()),
            "df_model": self.df_model,
            "df_residual": self.df_resid,
            "log_lik": self.llf if likelihood else np.nan,
            "aic": self.aic if likelihood else np.nan,
            "bic": self.bic if likelihood else np.nan,
            "converged": self.converged,
            "boundary": self.boundary,
        }
        return pd.DataFrame([row])

    def augment(self) -> pd.DataFrame:
        """The columns in use with marginal, fitted and resid, on the index of the data."""
        out = self.design.frame.set_axis(self.design.index)
        return out.assign(
            **{".marginal": self.marginal, ".fitted": self.fittedvalues, ".resid": self.resid}
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything about the fit as JSON text, floats in full precision.

        Parameters
        ----------
        path : str or Path, optional
            File to write as well.

        Raises
        ------
        DataError
            The formula uses functions of your own, which text cannot hold; pickle the results.
        """
        text = serialize.dumps(
            self.design, self.structure_, self.domain, self.estimate, self.notes, self._jackknife
        )
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> CTMMResults:
        """Read results from JSON text or a file; runs no code of the file.

        ``predict(newdata)`` evaluates the formula on the new data, as after a fit: do not call it
        on a file from someone you do not trust.

        Parameters
        ----------
        source : str or Path
            Text of :meth:`to_json`, or the path of a file.
        """
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        text = str(source) if is_text else Path(source).read_text(encoding="utf-8")
        return cls(*serialize.loads(text))

    def __getstate__(self) -> dict[str, Any]:
        keep = ("design", "structure_", "domain", "estimate", "notes", "_jackknife")
        return {name: self.__dict__[name] for name in keep}

    def __repr__(self) -> str:
        return (
            f"<CTMMResults: {self.formula}, {self.structure} by {self.method.upper()}, "
            f"{self.n_donors} donors, {self.n_celltypes} cell types, {self.nobs} rows>"
        )

    def _repr_html_(self) -> str:
        return self.summary().as_html()


# ---------------------------------------------------------------------------------------------


def _estimates(value: np.ndarray, se: np.ndarray, df: float, alpha: float) -> np.ndarray:
    """Columns of ``TABLE``; p two-sided by t; NaN without degrees of freedom."""
    if not 0 < alpha < 1:
        raise CTMMError(f"alpha must lie between 0 and 1, got {alpha!r}")
    with np.errstate(divide="ignore", invalid="ignore"):
        t = value / se
    nothing = np.full(len(value), np.nan)
    p = 2.0 * stats.t.sf(np.abs(t), df) if df > 0 else nothing
    reach = stats.t.isf(alpha / 2, df) * se if df > 0 else nothing
    return np.column_stack([value, se, t, p, value - reach, value + reach])


def _adjusted(p: np.ndarray, method: str) -> np.ndarray:
    """Adjusted p values of those that are there."""
    out = np.full(len(p), np.nan)
    there = ~np.isnan(p)
    if method == "none" or not there.any():
        return p.copy()
    try:
        out[there] = multipletests(p[there], method=method)[1]
    except ValueError as error:
        raise CTMMError(f"adjust={method!r}: {error}") from None
    return out


def _in_words(L: np.ndarray, rhs: np.ndarray, names: Sequence[str]) -> str:
    """Linear hypotheses as equations."""
    rows = []
    for row, value in zip(L, rhs, strict=True):
        used = [(w, name) for w, name in zip(row, names, strict=True) if w]
        terms = [f"{'-' if w < 0 else '+'} {_times(abs(w))}{name}" for w, name in used]
        rows.append(f"{' '.join(terms).removeprefix('+ ')} = {value:g}")
    return ", ".join(rows)


def _times(weight: float) -> str:
    return "" if weight == 1.0 else f"{weight:g} "


def _need(frame: pd.DataFrame, name: str, role: str) -> pd.Series:
    """A column of new data that a random effect needs."""
    return pick(frame, name, role, "; random='none' predicts without random effects")


def _labels(column: pd.Series) -> np.ndarray:
    """Labels as the fit writes them; missing ones match nothing."""
    missing = column.isna().to_numpy(dtype=bool)
    texts = [None if gone else label(v) for v, gone in zip(column, missing, strict=True)]
    return np.array(texts, dtype=object)
