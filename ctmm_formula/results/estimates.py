"""Columns of tables of estimates, and p values adjusted for their number."""

from __future__ import annotations

import numpy as np

from ..arguments import check_alpha
from ..distributions import t_reach, t_tail
from ..errors import CTMMError

TABLE = ("estimate", "std_error", "statistic", "p_value", "conf_low", "conf_high")
"""Columns of every table of estimates, named as in broom."""


def estimates(
    value: np.ndarray,
    se: np.ndarray,
    df: np.ndarray | float,
    alpha: float,
    null: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Columns of ``TABLE``; p two-sided by t, one `df` for all or each; NaN without any."""
    check_alpha(alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (value - null) / se
    df = np.where(np.greater(df, 0), df, np.nan)
    p = 2.0 * t_tail(np.abs(t), df)
    reach = t_reach(alpha / 2, df) * se
    return np.column_stack([value, se, t, p, value - reach, value + reach])


def adjusted(p: np.ndarray, method: str) -> np.ndarray:
    """P values adjusted over those that are there; the others stay NaN and do not count.

    `method` is one of :func:`statsmodels.stats.multitest.multipletests`, or "none".

    Raises
    ------
    CTMMError
        There is no such method.

    Examples
    --------
    >>> adjusted(np.array([0.01, np.nan, 0.5]), "bonferroni").tolist()
    [0.02, nan, 1.0]
    """
    if not isinstance(method, str):
        raise CTMMError(f"adjust= must name a method such as 'holm', or 'none', got {method!r}")
    out, there = p.copy(), ~np.isnan(p)
    if method == "none" or not there.any():
        return out
    from statsmodels.stats.multitest import multipletests, multitest_alias

    if method not in multitest_alias:
        known = sorted(name for name in multitest_alias if len(name) > 2)
        raise CTMMError(
            f"adjust={method!r} is no method of statsmodels' multipletests: choose from none, "
            f"{', '.join(known)}"
        )
    out[there] = multipletests(p[there], method=method)[1]
    return out


def adjusted_logs(logs: np.ndarray, method: str) -> np.ndarray:
    """Logarithms of p values to base 10 adjusted over those that are there.

    `method` is "bonferroni" or "fdr_bh".

    Examples
    --------
    >>> adjusted_logs(np.array([-400.0, np.nan, -1.0]), "bonferroni").round(2).tolist()
    [-399.7, nan, -0.7]
    >>> adjusted_logs(np.array([-400.0, -2.0, -1.99, -1.0]), "fdr_bh").round(2).tolist()
    [-399.4, -1.87, -1.87, -1.0]
    """
    out, there = np.asarray(logs, dtype=float).copy(), ~np.isnan(logs)
    p, n = out[there], int(there.sum())
    if method == "bonferroni":
        out[there] = np.minimum(p + np.log10(max(n, 1)), 0.0)
        return out
    order = np.argsort(p, kind="stable")[::-1]
    raised = p[order] + np.log10(n / np.arange(n, 0, -1))
    p[order] = np.minimum(np.minimum.accumulate(raised), 0.0)
    out[there] = p
    return out
