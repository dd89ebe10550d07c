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
    from statsmodels.stats.multitest import multipletests

    try:
        out[there] = multipletests(p[there], method=method)[1]
    except ValueError as error:
        raise CTMMError(f"adjust={method!r}: {error}") from None
    return out
