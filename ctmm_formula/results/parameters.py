"""Tables of a fit's parameters and cell type means, with errors, tests and intervals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from ..arguments import choose
from ..distributions import t_tail, variance_interval
from ..inference.clustered import Clustered
from ..inference.fit import Errors
from .estimates import TABLE, adjusted, estimates
from .record import Covariance, Record


def cov_params(res: Record, covariance: Covariance = None) -> pd.DataFrame:
    """Covariance of all parameters, shape (p + K, p + K); NaN where the method has none.

    `covariance` is as in :meth:`~ctmm_formula.CTMMResults.table`.
    """
    names = res.labels.params
    return pd.DataFrame(res.shown_errors(covariance).cov, index=names, columns=names)


def table(res: Record, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
    """Estimates, standard errors, t, p values and intervals of all ``params``.

    P values are two-sided for fixed effects and one-sided for variance components; those of
    variance components are NaN where the fit did not converge.  The statistic is the estimate over
    its standard error; by robust errors that of a fixed effect takes the noise that counts have
    where the effect is 0, and its interval holds the values that such a test does not reject.

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
    out = tested(errors, res.numbers.params, np.sqrt(np.diag(errors.cov)), each, alpha)
    own = np.arange(len(df)) >= res.numbers.n_fixed
    out[own & ~(res.converged & (df > 0)), 3] = np.nan
    if isinstance(errors.own, Clustered):
        at = np.flatnonzero(own & (df > 0))
        out[at, 4:] = variance_interval(out[at, 0], out[at, 1], df[at], alpha / 2)
    own &= res.converged & (df > 0)  # a variance is tested against larger values
    out[own, 3] = t_tail(out[own, 2], df[own])
    return pd.DataFrame(out, index=res.labels.params, columns=list(TABLE))


def bse(res: Record) -> pd.Series:
    """Standard errors of ``params`` by ``cov_type``."""
    return table(res)["std_error"]


def bse_fe(res: Record) -> pd.Series:
    """Standard errors of the fixed effects."""
    return bse(res).iloc[: res.numbers.n_fixed]


def tvalues(res: Record) -> pd.Series:
    """t of ``params``; see :func:`table`."""
    return table(res)["statistic"]


def pvalues(res: Record) -> pd.Series:
    """P values by t, one-sided for variances, two-sided for others; see :func:`table`."""
    return table(res)["p_value"]


def conf_int(res: Record, alpha: float = 0.05, covariance: Covariance = None) -> pd.DataFrame:
    """Wald intervals by t, columns conf_low and conf_high.

    Those of variance components may reach below zero, as the estimates may; by robust errors they
    are made on the scale of log(component + noise) and reach further up than down.  `alpha` and
    `covariance` are as in :meth:`~ctmm_formula.CTMMResults.table`.
    """
    return table(res, covariance, alpha)[["conf_low", "conf_high"]]


def means(res: Record, covariance: Covariance = None, alpha: float = 0.05) -> pd.DataFrame:
    """Means of the cell types at the mean of the covariates.

    `covariance` and `alpha` are as in :meth:`~ctmm_formula.CTMMResults.table`.

    Returns
    -------
    DataFrame
        One row per cell type: estimate, std_error, conf_low, conf_high.
    """
    out = _linear(res, res.design.mean_rows, list(res.celltypes), covariance, alpha)
    return out[["estimate", "std_error", "conf_low", "conf_high"]].rename_axis("celltype")


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


def _linear(
    res: Record, L: np.ndarray, names: list[str], covariance: Covariance, alpha: float
) -> pd.DataFrame:
    """Table of linear combinations L b of the fixed effects."""
    columns = linear(res, L, covariance, alpha)
    return pd.DataFrame(columns, index=names, columns=list(TABLE))


def linear(res: Record, L: np.ndarray, covariance: Covariance, alpha: float) -> np.ndarray:
    """Columns of ``TABLE`` of linear combinations L b (q, p) of the fixed effects."""
    errors = res.shown_errors(covariance)
    se = np.sqrt(errors.of_effects(L))
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

    P values of variances are one-sided, those of fixed effects two-sided; `covariance` and
    `alpha` are as in :meth:`~ctmm_formula.CTMMResults.table`.

    Returns
    -------
    DataFrame
        effect ("fixed" or "variance"), component ("fixed", "donor" or "random"), term,
        estimate, std_error, statistic, p_value, conf_low, conf_high.
    """
    out = table(res, covariance, alpha).rename_axis("term").reset_index()
    counts = [len(names) for names in (res.labels.fixed, res.labels.donor, res.labels.random)]
    out.insert(0, "effect", np.repeat(["fixed", "variance", "variance"], counts))
    out.insert(1, "component", np.repeat(["fixed", "donor", "random"], counts))
    return out


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
