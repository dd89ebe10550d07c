"""Tables of a fit's parameters and cell type means, with errors, tests and intervals."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pandas as pd

from ..arguments import IntervalMethod, check_alpha, choose
from ..design.grids import grid, rows_at, settings
from ..design.table import listing
from ..distributions import log_interval, standard_errors, t_tail, variance_interval
from ..errors import CTMMError
from ..inference.clustered import Clustered
from ..inference.differences import padded
from ..inference.fit import Errors
from ..inference.hypotheses import Hypotheses, in_words
from .estimates import TABLE, adjusted, estimates
from .kept import kept
from .questions import contrast_rows
from .record import Covariance, Record

EFFECTS = ("estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high")
"""Columns of tables of effects and contrasts."""


@kept
def cov_params(res: Record, covariance: Covariance = None) -> pd.DataFrame:
    """Covariance of all parameters, shape (p + K, p + K); NaN where the method has none.

    Parameters
    ----------
    covariance : {"model", "kenward-roger", "jackknife", "robust"} or Jackknife, optional
        As in :meth:`~ctmm_formula.CTMMResults.table`.

    Returns
    -------
    DataFrame
        Rows and columns by parameter; of variance components in squared units of theirs.

    Raises
    ------
    CTMMError
        This fit has no errors of that kind.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", structure="hom", data=ctmm.load_example())
    >>> res.cov_params().loc["hom", "hom"].round(4)
    np.float64(0.0259)
    """
    names = res.labels.params
    return pd.DataFrame(res.shown_errors(covariance).cov.copy(), index=names, columns=names)


@kept
def table(res: Record, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
    """Estimates, standard errors, t, p values and intervals of all ``params``.

    P values are two-sided for fixed effects and one-sided for variance components; those of
    variance components are NaN where the fit did not converge.  The statistic is the estimate over
    its standard error; by robust errors that of a fixed effect takes the noise that counts have
    halfway to where the effect is 0, and its interval holds the values that such a test does not
    reject; that of a component is by t on the scale of log(component + noise), with the degrees of
    freedom that its standard error has.

    Parameters
    ----------
    covariance : {"model", "kenward-roger", "jackknife", "robust"} or Jackknife, optional
        Default ``cov_type``; "robust" for robust fits only.  Of REML fits "kenward-roger" has the
        covariance of the fixed effects that Kenward and Roger (1997) adjust for estimated variance
        components, with their degrees of freedom; "model" has Satterthwaite's after ML and REML,
        ``df_resid`` after HE, whose components have no covariance.
    alpha : float
        One less the confidence of the intervals.

    Returns
    -------
    DataFrame
        estimate, std_error, statistic, p_value, conf_low, conf_high; variance components in
        squared units of the response.
    """
    errors = res.shown_errors(covariance)
    each = np.eye(res.numbers.n_params)
    df = errors.df(each)
    out = tested(errors, res.numbers.params, standard_errors(np.diag(errors.cov)), each, alpha)
    own = np.arange(len(df)) >= res.numbers.n_fixed
    out[own & ~(res.converged & (df > 0)), 3] = np.nan
    if isinstance(errors.own, Clustered):
        at = np.flatnonzero(own & (df > 0))
        df_se = errors.own.fit.error_df[at - res.numbers.n_fixed]
        out[at, 4:] = variance_interval(out[at, 0], out[at, 1], df[at], alpha / 2, df_se)
    own &= res.converged & (df > 0)  # a variance is tested against larger values
    out[own, 3] = t_tail(out[own, 2], df[own])
    return pd.DataFrame(out, index=res.labels.params, columns=list(TABLE))


def bse(res: Record) -> pd.Series:
    """Standard errors of ``params`` by ``cov_type``."""
    return table(res)["std_error"]


def bse_fe(res: Record) -> pd.Series:
    """Standard errors of the fixed effects, (p,)."""
    return bse(res).iloc[: len(res.estimate.beta)]


def bse_re(res: Record) -> pd.Series:
    """Standard errors of the variance components, (K,), in squared units of the response."""
    return bse(res).iloc[len(res.estimate.beta) :]


def tvalues(res: Record) -> pd.Series:
    """t of ``params``; see :func:`table`."""
    return table(res)["statistic"]


def pvalues(res: Record) -> pd.Series:
    """P values by t, one-sided for variances, two-sided for others; see :func:`table`."""
    return table(res)["p_value"]


def conf_int(
    res: Record,
    alpha: float = 0.05,
    covariance: Covariance = None,
    *,
    method: IntervalMethod = "wald",
) -> pd.DataFrame:
    """Confidence intervals of all ``params``, shape (p + K, 2): conf_low and conf_high.

    Parameters
    ----------
    alpha : float
        One less the confidence, between 0 and 1.
    covariance : {"model", "kenward-roger", "jackknife", "robust"} or Jackknife, optional
        As in :meth:`~ctmm_formula.CTMMResults.table`; profiles do not use it.
    method : {"wald", "log", "profile"}
        How intervals of variance components are made; fixed effects have those of "wald".

        - "wald": by t about the estimate.  They may reach below zero, as the estimates may; by
          robust errors they are made on the scale of log(component + noise) and reach further up
          than down.
        - "log": by t on the scale of the logarithm, so above zero; NaN of estimates that are not
          positive.
        - "profile": the values whose likelihood, at its maximum over all other parameters, is
          within half a quantile of chi-squared (1 df) of the highest, as in lme4 and metafor.
          They end where the domain (``bounds``) does.  After "reml" and "ml".

    Raises
    ------
    CTMMError
        A profile of a fit without a likelihood, or of one that did not converge.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", method="reml", data=df)
    >>> res.conf_int(method="profile").loc["batch"].round(2).tolist()
    [0.06, 0.79]
    >>> res.conf_int().loc["batch"].round(2).tolist()
    [-0.02, 0.63]
    """
    out = table(res, covariance, alpha)[["conf_low", "conf_high"]]
    if choose("method", method, get_args(IntervalMethod)) == "wald":
        return out
    fit, ends = res.numbers, out.to_numpy(copy=True)
    own = slice(fit.n_fixed, fit.n_params)
    if method == "profile":
        ends[own] = fit.profiles(alpha)
    else:
        errors = res.shown_errors(covariance)
        each = np.eye(fit.n_params)[own]
        ends[own] = log_interval(
            fit.estimate.theta, standard_errors(errors.variances(each)), errors.df(each), alpha / 2
        )
    return pd.DataFrame(ends, out.index, out.columns)


@kept
def means(
    res: Record,
    covariance: Covariance = None,
    alpha: float = 0.05,
    *,
    at: Mapping[str, object] | None = None,
) -> pd.DataFrame:
    """Means of the cell types at the mean of the covariates, or at values of some of them.

    `covariance` and `alpha` are as in :meth:`~ctmm_formula.CTMMResults.table`.

    Parameters
    ----------
    at : dict, optional
        Values of columns, ``{"status": "case", "age": 50}``; of a list, one row each:
        ``{"status": ["control", "case"]}``.

    Returns
    -------
    DataFrame
        One row per cell type, of lists in `at` one per cell type and combination: estimate,
        std_error, conf_low, conf_high.
    """
    names = list(res.celltypes)
    if not settings(at):
        out = _linear(res, res.design.mean_rows, names, covariance, alpha)
        return out[["estimate", "std_error", "conf_low", "conf_high"]].rename_axis("celltype")
    several, places = grid(settings(at))
    L = np.array([rows_at(res.design, place).mean(axis=1) for place in places])
    keys = [(name, *(place[k] for k in several)) for name in names for place in places]
    rows = L.swapaxes(0, 1).reshape(len(keys), -1)
    out = _linear(res, rows, names if not several else [str(k) for k in keys], covariance, alpha)
    out = out[["estimate", "std_error", "conf_low", "conf_high"]]
    if not several:
        return out.rename_axis("celltype")
    return out.set_axis(pd.MultiIndex.from_tuples(keys, names=["celltype", *several]))


def contrasts(
    res: Record,
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
    covariance, alpha
        As in :meth:`~ctmm_formula.CTMMResults.table`.

    Returns
    -------
    DataFrame
        Rows ``"B - T"``; estimate, std_error, statistic, p_value, conf_low, conf_high (not
        adjusted) and p_adjusted.
    """
    pairs = list(combinations(range(res.n_celltypes), 2))
    if choose("kind", kind, ("pairwise", "reference")) == "reference":
        pairs = [pair for pair in pairs if pair[0] == 0]
    rows, names = res.design.mean_rows, res.celltypes
    L = np.array([rows[b] - rows[a] for a, b in pairs])
    out = _linear(res, L, [f"{names[b]} - {names[a]}" for a, b in pairs], covariance, alpha)
    out["p_adjusted"] = adjusted(out["p_value"].to_numpy(), adjust)
    return out.rename_axis("contrast")


def contrast(
    res: Record,
    weights: Hypotheses | Mapping[str, Mapping[str, float]],
    *,
    at: Mapping[str, object] | None = None,
    covariance: Covariance = None,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Contrasts of means of cell types, and of levels of factors in them.

    Parameters
    ----------
    weights : dict, dict of dict, or str
        Weights by mean, ``{"T": 1, "B": -1}``; such contrasts by name; or hypotheses in words,
        ``"T = B, T|case - T|control = 0.1"``.  Means are those of :meth:`means`, by cell type
        and, of every factor of the formula, by cell type and level, ``T|case`` (``T|sex=M``
        where two factors have the level).
    at : dict, optional
        Values of columns; the others are averaged over the rows of the fit.
    covariance
        As in :meth:`effects`.
    alpha : float
        One less the confidence of the intervals.

    Returns
    -------
    DataFrame
        One row per contrast: estimate, std_error, df, statistic (t), p_value (two-sided),
        conf_low, conf_high; of words, tests are against the right-hand side.

    Raises
    ------
    CTMMError
        No such mean; the message lists them.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) * sex", data=ctmm.load_example())
    >>> late = {"day3": 0.5, "day2": 0.5, "day1": -0.5, "day0": -0.5}
    >>> res.contrast({"late - early": late})["estimate"].round(2).to_dict()
    {'late - early': -1.14}
    >>> res.contrast("day0|M - day0|F = day3|M - day3|F")["p_value"].round(2).tolist()
    [0.34]
    """
    names, hypotheses = _named(weights)
    L, rhs, words = contrast_rows(res.design, hypotheses, at)
    errors = errors_of_effects(res, covariance)
    index = pd.Index(words if names is None else names, name="contrast")
    return effect_table(res, errors, L, index, alpha, rhs)


def _named(weights: Any) -> tuple[list[str] | None, Any]:
    """Names of contrasts, and weights or words."""
    if not isinstance(weights, Mapping):
        return None, weights
    every = [isinstance(value, (Mapping, pd.Series)) for value in weights.values()]
    if any(every) and not all(every):
        raise CTMMError("weights are numbers by mean, or such dicts by name: not both")
    several = weights if any(every) else {_sum(weights): weights}
    rows = [dict(own) for own in several.values()]
    missing = [str(name) for row in rows for name, weight in row.items() if pd.isna(weight)]
    if missing:
        raise CTMMError(f"the weight of {listing(missing)} is missing: give a number, or none")
    return list(map(str, several)), pd.DataFrame(rows).fillna(0.0)


def _sum(weights: Mapping[Any, Any]) -> str:
    """Weights in words."""
    names = [str(name) for name in weights]
    try:
        row = np.array([float(value) for value in weights.values()])
    except (TypeError, ValueError):
        raise CTMMError(f"weights must be numbers, got {dict(weights)!r}") from None
    return in_words(row[None], np.zeros(1), names).removesuffix(" = 0")


def errors_of_effects(res: Record, covariance: Covariance) -> Errors:
    """Errors of fixed effects that `covariance` asks for, by default those of their tests."""
    kind = res.numbers.fixed_by if covariance is None else covariance
    return res.errors_for(np.zeros((0, res.numbers.n_params)), kind)


def effect_table(
    res: Record,
    errors: Errors,
    L: np.ndarray,
    index: pd.Index,
    alpha: float,
    null: np.ndarray | float = 0.0,
) -> pd.DataFrame:
    """Rows L b (q, p) against `null`, by their own laws; NaN where a row is."""
    check_alpha(alpha)
    known = np.isfinite(L).all(axis=1)
    out = np.full((len(L), len(TABLE) + 1), np.nan)
    if known.any():
        own, fit = L[known], res.numbers
        every = padded(own, fit)
        value = own @ errors.estimates(fit)[: fit.n_fixed]
        se = standard_errors(errors.variances(own))
        away = np.broadcast_to(null, len(L))[known]
        out[known, :-1] = tested(errors, value, se, every, alpha, away)
        df = errors.df(every)
        out[known, -1] = np.where(df > 0, df, np.nan)
    return pd.DataFrame(out, index=index, columns=[*TABLE, "df"])[list(EFFECTS)]


def _linear(
    res: Record, L: np.ndarray, names: list[str], covariance: Covariance, alpha: float
) -> pd.DataFrame:
    """Table of linear combinations L b of the fixed effects."""
    columns = linear(res, L, covariance, alpha)
    return pd.DataFrame(columns, index=names, columns=list(TABLE))


def linear(res: Record, L: np.ndarray, covariance: Covariance, alpha: float) -> np.ndarray:
    """Columns of ``TABLE`` of linear combinations L b (q, p) of the fixed effects."""
    errors = res.shown_errors(covariance)
    se = standard_errors(errors.variances(L))
    every = np.pad(L, ((0, 0), (0, len(res.estimate.theta))))
    return tested(errors, L @ res.estimate.beta, se, every, alpha)


def tested(
    errors: Errors,
    value: np.ndarray,
    se: np.ndarray,
    L: np.ndarray,
    alpha: float,
    null: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Columns of ``TABLE`` of rows L t (q, p + K) against `null`, by their own laws."""
    out = estimates(value, se, errors.df(L), alpha, null)
    if isinstance(errors.own, Clustered):
        p = errors.own.n_fixed
        fixed = ~L[:, p:].any(axis=1)
        at = np.broadcast_to(null, len(L))[fixed]
        out[fixed, 2:] = errors.own.tested(L[fixed, :p], at, 1.0 - alpha)
    return out


def tidy(res: Record, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
    """One row per parameter, with broom's column names.

    P values of variances are one-sided, those of fixed effects two-sided.

    Parameters
    ----------
    covariance, alpha
        As in :meth:`~ctmm_formula.CTMMResults.table`.

    Returns
    -------
    DataFrame
        effect ("fixed" or "variance"), component ("fixed", "donor", "random" or "genetic"), term,
        estimate, std_error, statistic, p_value, conf_low, conf_high.
    """
    out = table(res, covariance, alpha).rename_axis("term").reset_index()
    parts = ("fixed", "donor", "random", "genetic")
    counts = [len(getattr(res.labels, part)) for part in parts]
    out.insert(0, "effect", np.repeat(["fixed", *["variance"] * 3], counts))
    out.insert(1, "component", np.repeat(parts, counts))
    return out


@kept
def glance(res: Record) -> pd.DataFrame:
    """One row about the fit; log_lik, aic and bic are NaN without a likelihood."""
    fit = res.numbers
    same = ("formula", "structure", "method", "bounds", "kind", "nobs", "n_donors", "n_celltypes")
    row = {name: getattr(res, name) for name in same} | {
        "n_dropped": sum(res.dropped.values()),
        "df_model": res.df_model,
        "df_residual": res.df_resid,
        "log_lik": fit.estimate.llf,
        "aic": fit.aic,
        "bic": fit.bic,
        "converged": res.converged,
        "boundary": res.boundary,
    }
    return pd.DataFrame([row])
