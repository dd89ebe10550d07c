"""Results of a fit: labels and accessors; the numbers come from the modules below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from statsmodels.stats.contrast import ContrastResults
from statsmodels.stats.multitest import multipletests

from ..engine import blup
from ..engine.likelihood import LIKELIHOODS
from ..errors import CTMMError, choose
from ..inference import variance
from ..inference.hypotheses import constraints
from ..inference.variance import TestResult
from ..simulate import Rng
from . import predictions, resampling, serialize, shares
from .parameters import COVARIANCES, TABLE, Parameters, estimates
from .resampling import Bootstrap
from .summary import Summary, summarise

Hypotheses: TypeAlias = str | Sequence[str] | np.ndarray


class CTMMResults(Parameters):
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
    >>> df = ctmm.load_example()
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=df)
    >>> res.vcomp.round(2).to_dict()
    {'hom': 0.49, 'V[day0]': 0.13, 'V[day1]': 0.38, 'V[day2]': 0.38, 'V[day3]': 1.27, 'batch': 0.31}
    >>> res.means().loc["day0"].round(2).to_dict()
    {'estimate': 0.73, 'std_error': 0.16, 'conf_low': 0.42, 'conf_high': 1.05}
    >>> print(res.test_variance())
    variance differentiation: wald (jackknife)
      null hypothesis: no cell type-specific variance (V = 0)
      F(4, 61) = 10.38, p = 1.769e-06
    >>> print(res.wald_test("sex[T.M] = 0, hom = batch"))
    linear hypothesis: wald (model)
      null hypothesis: sex[T.M] = 0, hom - batch = 0
      F(2, 61) = 0.8866, p = 0.4173
    >>> res.predict(df.head(2), random=["batch"]).round(2).tolist()
    [1.08, 0.59]
    """

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
        table = estimates(L @ self.estimate.beta, se, self.df_resid, alpha)
        return pd.DataFrame(table, index=names, columns=list(TABLE))

    # -----------------------------------------------------------------------------------------
    # shares of variance

    def variance_explained(self, *, by_celltype: bool = False, ddof: int = 1) -> pd.DataFrame:
        """Parts of the variance of overall pseudobulk, see :mod:`ctmm_formula.results.shares`.

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
        return predictions.effect_tables(
            self.design, self.model, self.structure_, self._effects, self._random_names
        )

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
        if newdata is None:
            frame, X = self.design.frame.set_axis(self.design.index), self.design.X
        else:
            X, frame = self.design.matrix(newdata)
        out = X @ self.estimate.beta
        tables = {} if random == "none" else self.random_effects
        for name in predictions.wanted(random, list(tables)):
            out = out + predictions.contribution(
                self.design, frame, name, tables[name], self._random_names
            )
        return pd.Series(out, index=frame.index, name=self.design.response_name)

    # -----------------------------------------------------------------------------------------
    # drawing from the fit

    def simulate(self, rng: Rng = None, n: int = 1) -> pd.DataFrame:
        """Draw `n` new responses from the fitted model.

        Returns
        -------
        DataFrame, shape (rows, n)
            On the index of the data.
        """
        drawn = resampling.draws(self.model, self.estimate, n, rng)
        return pd.DataFrame(drawn, index=self.design.index, columns=range(n))

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
        values, failed = resampling.refits(self.model, self.estimate, self.domain, n, rng, n_jobs)
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
        return variance.wald(
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
            See :func:`ctmm_formula.inference.variance.variance_differentiation`.
        rng, n, n_jobs
            Randomness, draws and threads of the bootstrap.
        """
        needs = method == "jackknife"
        return variance.variance_differentiation(
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
        return variance.mean_differentiation(
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
        return variance.component(
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
        last = variance.compare([restricted.fitted("restricted"), self.fitted("full")])[-1]
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

    def fitted(self, label: str) -> variance.Fitted:
        """The fit as likelihood ratio tests see it."""
        names = self.design.random_names
        return variance.Fitted(label, self.model, self.structure_, self.estimate, names)

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
