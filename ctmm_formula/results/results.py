"""Results of a fit: labels and accessors; the numbers come from the modules below."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..arguments import Rng, choose, whole_number
from ..engine import blup
from ..engine.likelihood import LIKELIHOODS
from ..errors import ConvergenceError, CTMMError, DataError
from ..inference.testing import denominator
from . import predictions, resampling, serialize, shares
from .hypothesis_tests import HypothesisTests
from .parameters import Covariance
from .resampling import TABLE, Bootstrap, estimates
from .summary import Summary, summarise


class CTMMResults(HypothesisTests):
    """A fitted model.

    Made by :func:`ctmm_formula.fit`.  n rows, N donors, C cell types, p fixed effects, K variance
    components.

    Standard errors and tests use ``cov_type``: "model" (inverse expected information and
    (X' Sigma^-1 X)^-1; default for ML and REML) or "jackknife" (delete one donor; default for HE,
    which has no information).  Methods take ``covariance=`` to choose the other one, or an object
    that :meth:`jackknife` returned.  The jackknife is run when first needed and kept.

    Variance components are in squared units of the response.

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
    variance differentiation: score
      null hypothesis: no cell type-specific variance (V = 0)
      statistic = 27.94, p = 8.684e-32
      celltype: day0 1.458e-06, day1 1.255e-09, day2 1.429e-16, day3 1.377e-34
      cauchy: 1.095e-33
      weights: n_cells
    >>> print(res.wald_test("sex[T.M] = 0, hom = batch"))
    linear hypothesis: wald (model)
      null hypothesis: sex[T.M] = 0, hom - batch = 0
      F(2, 61) = 0.8866, p = 0.4173
    >>> res.predict(df.head(2), random=["batch"]).round(2).tolist()
    [1.08, 0.59]
    """

    # -----------------------------------------------------------------------------------------
    # means of the cell types

    def means(self, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
        """Means of the cell types at the mean of the covariates.

        Parameters
        ----------
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.
        alpha : float
            One less the confidence of the intervals.

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
        covariance: Covariance = None,
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
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.
        alpha : float
            One less the confidence of the intervals.

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
        self, L: np.ndarray, names: list[str], covariance: Covariance, alpha: float
    ) -> pd.DataFrame:
        """Table of linear combinations L b of the fixed effects."""
        p = len(self.estimate.beta)
        errors = self._errors(covariance)
        se = np.sqrt(np.einsum("ij,jk,ik->i", L, errors.cov[:p, :p], L))
        df = denominator(self.df_resid, 1, errors.groups)
        table = estimates(L @ self.estimate.beta, se, df, alpha)
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
            noise, total; columns variance (squared units of the response) and share, which sum
            to the total.

        Notes
        -----
        Without numbers of cells or proportions the cell types of a donor count equally; with
        proportions that do not vary between donors the part of the means is 0.
        """
        ddof = whole_number("ddof", ddof, 0)
        if ddof >= self.n_donors:
            raise CTMMError(f"ddof={ddof} leaves no degree of freedom of {self.n_donors} donors")
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
        out["share"] = out["variance"] / total if total else np.nan
        return out.rename_axis("component")

    def icc(self) -> pd.DataFrame:
        """Intraclass correlation of each cell type.

        The variance between donors over that of one row of the cell type, noise included, as in
        Chen and Dahl, Nat Commun 15:5229 (2024).

        Returns
        -------
        DataFrame
            One row per cell type: the variances donor (A_cc), random (all random effects), noise
            (mean) and total; ``icc`` = donor / total; ``shared`` = sigma^2 / donor, the part that
            all cell types share (0 where the structure has no such component; NaN where ``corr``
            is, as A is no covariance there).
        """
        parts = shares.celltype_parts(self.design, self.structure_, self.estimate.theta)
        sigma2 = parts.pop("shared")
        out = pd.DataFrame(parts, index=pd.Index(self.celltypes, name="celltype"))
        out["total"] = out.sum(axis=1)
        out["icc"] = out["donor"] / out["total"]
        out["shared"] = (sigma2 / out["donor"]).where(np.diag(self.corr.notna()))
        return out

    # -----------------------------------------------------------------------------------------
    # effects and predictions

    @cached_property
    def _effects(self) -> blup.Effects:
        at, model = self.estimate, self.model
        try:
            return blup.effects(model, at.theta, at.beta, self.structure_.shared)
        except (ConvergenceError, np.linalg.LinAlgError) as error:
            donors = self._degenerate_donors()
            where = f" ({', '.join(donors[:3])}{', ...' * (len(donors) > 3)})" * bool(donors)
            raise ConvergenceError(
                f"there are no predicted random effects: {error}{where}; fit by method='reml', or "
                "predict(random='none')"
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

    @property
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
        return {name: frame.copy() for name, frame in self._effect_tables.items()}

    @cached_property
    def _effect_tables(self) -> dict[str, pd.DataFrame]:
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

    def predict(
        self, newdata: object = None, random: str | Sequence[str] | None = "none"
    ) -> pd.Series:
        """Predict expression.

        Parameters
        ----------
        newdata : DataFrame or dict of columns, optional
            The covariates and, for random effects, the columns of donor, cell type and groups;
            by default the rows of the fit.
        random : "none", "all", or list of names of ``random_effects``
            Which predicted random effects to add: "shared" and "specific" are the donors' own,
            the others carry the names in ``vcomp``.  None is "none".  Donors and levels that the
            fit has not seen (or that are missing) get 0, the mean of their distribution.

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
        random = predictions.checked(random)
        tables = {} if random == "none" else self._effect_tables
        for name in predictions.wanted(random, list(tables)):
            out = out + predictions.contribution(
                self.design, frame, name, tables[name], self._random_names
            )
        return pd.Series(out, index=frame.index, name=self.design.response_name)

    # -----------------------------------------------------------------------------------------
    # drawing from the fit

    def simulate(self, rng: Rng = None, n: int = 1) -> pd.DataFrame:
        """Draw `n` new responses from the fitted model.

        Parameters
        ----------
        rng : numpy Generator or seed, optional
        n : int
            Number of draws.

        Returns
        -------
        DataFrame, shape (rows, n)
            On the index of the data.
        """
        drawn = resampling.draws(self.model, self.estimate, n, rng)
        return pd.DataFrame(drawn, index=self.design.index)

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
            ``replicates``, ``bse``, ``cov_params()``, ``conf_int()``, ``failed``.
        """
        values, failed = resampling.refits(self.model, self.estimate, self.domain, n, rng, n_jobs)
        return Bootstrap(pd.DataFrame(values, columns=self.params.index), failed)

    # -----------------------------------------------------------------------------------------
    # pictures, tables, text, files

    def plot(self, kind: str = "gene", ax: Any = None, **options: Any) -> Any:
        """Draw the fit; the pictures are the functions of :mod:`ctmm_formula.plots`.

        Parameters
        ----------
        kind : {"gene", "shares", "components", "residuals", "influence", "missing", "noise"}
        ax : Axes, optional
            Where to draw (two of them for "residuals"); default a new figure, ``ax.figure``.
        **options
            Of the function of that name.

        Returns
        -------
        Axes, or an array of them
        """
        from ..plots.fits import OF_A_FIT

        return OF_A_FIT[choose("kind", kind, OF_A_FIT)][0](self, ax=ax, **options)

    def plot_data(self, kind: str = "gene", **options: Any) -> pd.DataFrame:
        """Return the numbers that :meth:`plot` draws."""
        from ..plots.fits import OF_A_FIT

        return OF_A_FIT[choose("kind", kind, OF_A_FIT)][1](self, **options)

    def summary(self, covariance: Covariance = None, alpha: float = 0.05) -> Summary:
        """Describe the fit as text, HTML (notebooks) and LaTeX.

        Parameters
        ----------
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.
        alpha : float
            One less the confidence of the intervals.

        Returns
        -------
        Summary
            Prints itself; ``as_text()``, ``as_html()``, ``as_latex()``.
        """
        return summarise(self, covariance, alpha)

    def tidy(self, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
        """One row per parameter, with broom's column names.

        P values of variances are one-sided, those of fixed effects two-sided.

        Parameters
        ----------
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.
        alpha : float
            One less the confidence of the intervals.

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
            self.design,
            self.structure_,
            self.domain,
            self.estimate,
            self.notes,
            dict(self.versions),
            tuple(self._jackknives.items()),
        )
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> CTMMResults:
        """Read results from JSON text or a file; runs no code of the file.

        Neither do display, tests, means and shares of what was read.  Only
        ``predict(newdata)`` evaluates the formula, as after a fit: do not call it on a file from
        someone you do not trust.

        Parameters
        ----------
        source : str or Path
            Text of :meth:`to_json`, or the path of a file.

        Returns
        -------
        CTMMResults
            With the ``versions`` that made the numbers.

        Raises
        ------
        DataError
            There is no such file, or it holds no fit.
        """
        if not isinstance(source, (str, PathLike)):
            raise DataError(
                "from_json reads the text of to_json or the path of a file, got "
                f"{type(source).__name__}"
            )
        if isinstance(source, str) and source.lstrip()[:1] in ("{", "[", ""):
            return cls(*serialize.loads(source))
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            name = str(source) if len(str(source)) < 200 else f"{str(source)[:200]}..."
            raise DataError(f"{name!r} is neither a fit as JSON nor a file: {error}") from None
        return cls(*serialize.loads(text))

    def __getstate__(self) -> dict[str, Any]:
        keep = ("design", "structure_", "domain", "estimate", "notes", "versions", "_jackknives")
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
    from statsmodels.stats.multitest import multipletests

    out = np.full(len(p), np.nan)
    there = ~np.isnan(p)
    if not isinstance(method, str):
        raise CTMMError(f"adjust= must name a method such as 'holm', or 'none', got {method!r}")
    if method == "none" or not there.any():
        return p.copy()
    try:
        out[there] = multipletests(p[there], method=method)[1]
    except ValueError as error:
        raise CTMMError(f"adjust={method!r}: {error}") from None
    return out
