"""What V means on which scale, and which genes a scale misleads about.

Means of logarithms (``summary="mean"``)
    The logarithm of 1 + x is straight where x is small.  A donor that multiplies the expression of
    all types by the same factor moves a type of mean y by 1 - exp(-y) of the log factor: types of
    different level move by different amounts, and what they do not share is V.  ``level_ratio`` of
    a gene is the largest of these shares over the smallest, ``level_ratio_low`` what is left of it
    where every mean is REACH of its standard errors nearer the others; where that is LARGE_RATIO or
    more it is noted.  The rule reads natural logarithms of 1 + x (log1p of counts per 10,000):
    nothing is said where the mean of a type is not positive, as in standardised data.
    Depths that differ between donors, and ambient counts, change 1 + x by more than a factor: they
    too make V > 0 on this scale without any biology, and no rule sees them.

Logarithms of means (``summary="log_mean"``)
    The same factor moves all types by the same amount.  The price: the noise of a logarithm of few
    counts is not known well enough.  ``min_counts`` of a gene is the mean number of counts of a
    pair in the cell type with the smallest; below FEW_COUNTS it is marked, ``few_counts``.

Both limits are measured: ``tests/benchmarks/log_mean_levels.md``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..design.table import listing

SUMMARIES = {
    "mean": "means over cells of their logarithms",
    "log_mean": "logarithms of the mean counts of cells, half a count added",
}
"""What a pair has of its cells, in words."""
LARGE_RATIO = 1.2
"""Of the shares by which a common factor moves the cell types of a gene, on log1p: below, the score
test of V = 0 finds .06 to .10 of such genes at .05, from 1.2 to 1.35 .23, beyond 2 .6."""
REACH = 2.0
"""Standard errors by which the means of types may be nearer each other than they look."""
FEW_COUNTS = 5.0
"""Counts of a pair, in the mean over donors, below which its logarithm is not relied on: levels and
V are right down to 2 counts, and this leaves room."""
TOO_FEW = (
    f"fewer than {FEW_COUNTS:g} counts a pair in some cell type, too few for their logarithm: "
    "tests are no guide"
)
CAUSE = (
    "a factor shared by all types looks specific to the higher ones (V > 0) on the scale of "
    "log(1 + x): pseudobulk(counts, summary='log_mean') makes it shared"
)


def summary_of(uns: Any) -> str:
    """Which of SUMMARIES a pseudobulk with this `uns` has; empty where it does not say."""
    record: Any = uns.get("ctmm") if hasattr(uns, "get") else None
    return str(record.get("summary", "")) if hasattr(record, "get") else ""


def scale_notes(
    uns: Any, var: pd.DataFrame, means: np.ndarray | None = None, errors: np.ndarray | None = None
) -> list[str]:
    """What results must say of the scale of their genes.

    Parameters
    ----------
    uns : mapping
        Of the pseudobulk; anything else where there is none.
    var : DataFrame, G rows
        Of the genes; its columns `level_ratio` and `level_ratio_low`, or `few_counts`, are read.
    means : ndarray, shape (G, C), optional
        Fitted means of the cell types, for genes without these columns.  They are taken to be on
        the scale of log(1 + x).
    errors : ndarray, shape (G, C), optional
        Their standard errors; without them nothing is said of levels, which chance makes differ.
    """
    if summary_of(uns) == "log_mean":
        few: np.ndarray = np.array(var.get("few_counts", []), dtype=bool)
        out = [
            f"expression is on the scale of {SUMMARIES['log_mean']}: V is what donors do to single "
            "cell types beyond a factor shared by all"
        ]
        if few.any():
            names = listing(list(var.index[few]))
            out.append(
                f"{few.sum()} of {len(few)} genes have fewer than {FEW_COUNTS:g} counts a pair in "
                f"some cell type, too few for their logarithm (var['few_counts']): {names}"
            )
        return out
    if "level_ratio" in var:
        ratio = var["level_ratio"].to_numpy(dtype=float)
        low = var.get("level_ratio_low", var["level_ratio"]).to_numpy(dtype=float)
        return level_notes(ratio, low)
    if means is None or errors is None:
        return []
    return level_notes(level_ratio(means), level_ratio(means, errors))


def type_means(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Mean over donors of each gene and cell type, (G, C); NaN for types without any pair.

    Parameters
    ----------
    values : ndarray, shape (N * C, G)
    observed : bool ndarray, shape (N, C)
        Pairs that count.
    """
    total = np.zeros((observed.shape[1], values.shape[1]))
    for row in np.flatnonzero(observed):  # row by row: no copy of the matrix
        total[row % len(total)] += values[row]
    count = observed.sum(axis=0)
    return (total / np.where(count > 0, count, np.nan)[:, None]).T


def type_errors(values: np.ndarray, observed: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Standard errors of :func:`type_means` (G, C), by how donors differ; NaN of fewer than two."""
    total = np.zeros(means.shape[::-1])
    for row in np.flatnonzero(observed):
        total[row % len(total)] += np.square(values[row] - means[:, row % len(total)])
    n = observed.sum(axis=0).astype(float)
    return np.sqrt(total / np.where(n > 1.0, n * (n - 1.0), np.nan)[:, None]).T


def level_ratio(means: np.ndarray, errors: np.ndarray | None = None) -> np.ndarray:
    """How unlike a common factor moves the cell types of a gene on log1p; shape (G,).

    Parameters
    ----------
    means : ndarray, shape (G, C)
        Of each cell type, on the scale of log(1 + x).  NaN does not count.
    errors : ndarray, shape (G, C), optional
        Their standard errors; the ratio is then the smallest by means within REACH of them.

    Returns
    -------
    ndarray, shape (G,)
        Largest 1 - exp(-mean) over smallest; NaN where a mean is not positive.

    Examples
    --------
    >>> level_ratio(np.array([[0.5, 0.5], [0.2, 2.0], [5.0, 2.0], [-1.0, 1.0]])).round(2).tolist()
    [1.0, 4.77, 1.15, nan]
    >>> level_ratio(np.array([[0.02, 0.05], [0.2, 2.0]]), np.full((2, 2), 0.01)).round(2).tolist()
    [1.0, 4.36]
    """
    there = ~np.isnan(means)

    def extreme(values: np.ndarray, low: bool) -> np.ndarray:
        share = -np.expm1(-np.maximum(values, 0.0))  # none of a mean that no log of 1 + x has
        if low:
            return share.min(axis=1, initial=np.inf, where=there)
        return share.max(axis=1, initial=-np.inf, where=there)

    reach = 0.0 if errors is None else REACH * errors
    low, lowest = extreme(means + reach, True), extreme(means, True)
    high = np.maximum(extreme(means - reach, False), low)
    fine = (lowest > 0) & np.isfinite(lowest)
    return np.where(fine, high, np.nan) / np.where(fine, low, np.nan)


def level_notes(ratio: np.ndarray, low: np.ndarray) -> list[str]:
    """What to say of genes whose cell types a common factor moves unlike; nothing without any.

    By what errors of the means leave of the ratio, `low`.
    """
    large = int((low >= LARGE_RATIO).sum())
    if not large:
        return []
    who = f"cell types differ in level, {ratio[0]:.3g}-fold in what a factor does to their means"
    if len(ratio) > 1:
        who = (
            f"in {large} of {len(ratio)} genes cell types differ in level, {LARGE_RATIO:g}-fold "
            "and more in what a factor does to their means"
        )
    return [f"{who}; {CAUSE}"]


def few_counts_note(counts: np.ndarray, types: list[str]) -> list[str]:
    """What to say of genes with few counts, by counts of each type (G, C); nothing without any."""
    few = counts < FEW_COUNTS
    genes = few.any(axis=1)
    if not genes.any():
        return []
    by_type = few.sum(axis=0)
    order = np.argsort(-by_type, kind="stable")
    worst = [f"{types[c]} ({by_type[c]})" for c in order if by_type[c]]
    return [
        f"{genes.sum()} of {len(counts)} genes have fewer than {FEW_COUNTS:g} counts a pair in "
        f"some cell type, too few for their logarithm: var['few_counts'] marks them, by type: "
        f"{listing(worst)}"
    ]
