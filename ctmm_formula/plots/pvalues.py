"""Quantiles of p values against those they have where nothing is there to be found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import CTMMError, DataError
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@style.picture
def qq(
    pvalues: object,
    tests: str | Sequence[str] | None = None,
    *,
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Draw sorted -log10 p values against those expected of uniform ones, one colour per test.

    Parameters
    ----------
    pvalues : Scan, DataFrame, mapping of name and p values, or array
        Of a DataFrame the columns ``p_<test>``.
    tests : str or list of str, optional
        Those of a scan or table to draw; default all the scan has adjusted p values for.
    level : float
        Of the grey band: pointwise quantiles of uniform order statistics, Beta(k, n + 1 - k), of
        the test with most p values.  P values of neighbouring ranks are correlated: a curve
        outside the band in one place is less than a test.
    ax : Axes, optional

    Returns
    -------
    Axes
        The key gives lambda_GC: the chi-squared quantile (1 df) of the median p value over that of
        1/2; 1 under the null, above where there are too many small ones (Devlin and Roeder,
        Biometrics 55:997, 1999).

    Examples
    --------
    >>> import numpy as np
    >>> import ctmm_formula as ctmm
    >>> ax = ctmm.plots.qq({"uniform": np.linspace(0.001, 0.999, 999)})
    >>> ax.get_legend_handles_labels()[1]
    ['uniform: λ 1.00']
    """
    known = isinstance(level, (int, float, np.number)) and not isinstance(level, bool)
    if not known or not 0.0 < level < 1.0:
        raise CTMMError(f"level= must lie between 0 and 1, got {level!r}")
    table = qq_data(pvalues, tests, level=level)
    ax = style.axes(ax, 3.8, 3.6)
    by_test = {str(name): own for name, own in table.groupby("test", sort=False)}
    longest = max(by_test.values(), key=len)
    ax.fill_between(
        longest["expected"], longest["low"], longest["high"], color=style.MUTED, alpha=0.5,
        linewidth=0,
    )  # fmt: skip
    end = float(longest["expected"].max())
    ax.plot([0, end], [0, end], color=style.LINE, linewidth=0.8)
    shades = style.colors(list(by_test))
    top = at_edge(table["observed"], float(longest["high"].max()))
    for name, own in by_test.items():
        heights, infinite = top[own.index], np.isinf(own["observed"].to_numpy())
        label = style.in_key(f"{name}: λ {own['lambda_gc'].iloc[0]:.2f}")
        shape: Any = {"linestyle": "", "color": shades[name], "rasterized": True}
        x = own["expected"].to_numpy()
        ax.plot(x[~infinite], heights[~infinite], marker="o", ms=2.5, mew=0, label=label, **shape)
        ax.plot(x[infinite], heights[infinite], marker="^", ms=4, mew=0, **shape)
    ax.set_xlim(0, 1.04 * end)
    ax.set_ylim(bottom=0)
    style.finish(ax, "expected −log10 p", "observed −log10 p")
    key = ax.legend(
        loc="best", frameon=False, fontsize=style.SMALL - 1, markerscale=2, handletextpad=0.2,
        borderaxespad=0.2, labelspacing=0.25,
    )  # fmt: skip
    style.literal(key)
    lost = int(table.attrs["missing"])
    zeros = int(np.isinf(table["observed"]).sum())
    empty = table.attrs["empty"]
    remarks = style.remarks(
        (lost, f"{lost} missing p left out"),
        (empty, f"no p at all of {', '.join(empty)}"),
        (zeros, f"{zeros} with p = 0 at the edge (▲)"),
    )
    style.note(ax, remarks)
    return ax


def qq_data(
    pvalues: object, tests: str | Sequence[str] | None = None, *, level: float = 0.95
) -> pd.DataFrame:
    """Numbers that :func:`qq` draws.

    Returns
    -------
    DataFrame
        One row per p value that is there, smallest first within each test: test, p, observed
        (-log10 p), expected (of the median of its rank: (k - 1/2) / n), low and high (the band),
        lambda_gc (of the test).  ``attrs["missing"]`` counts the p values that were not there,
        ``attrs["empty"]`` names the tests that have none at all.
    """
    from scipy.stats import beta, chi2

    wanted = [tests] if isinstance(tests, str) else tests
    parts, missing, empty = [], 0, []
    found = columns_of(pvalues, wanted)
    sizes = sizes_of(pvalues, found)
    for name, values in found.items():
        p = np.sort(values[~np.isnan(values)])
        observed = np.sort(sizes[name][~np.isnan(values)])[::-1]
        missing += len(values) - len(p)
        if not len(p):
            empty.append(name)
            continue
        n, k = len(p), np.arange(1, len(p) + 1)
        # the largest p of the band is the smallest -log10
        high, low = (beta.ppf(q, k, n + 1 - k) for q in ((1 - level) / 2, (1 + level) / 2))
        parts.append(
            pd.DataFrame(
                {"test": name, "p": p, "observed": observed,
                 "expected": minus_log10((k - 0.5) / n), "low": minus_log10(low),
                 "high": minus_log10(high),
                 "lambda_gc": chi2.isf(np.median(p), 1) / chi2.ppf(0.5, 1)}
            )
        )  # fmt: skip
    if not parts:
        raise DataError(f"all p values of {', '.join(found)} are missing")
    out = pd.concat(parts, ignore_index=True)
    out.attrs.update(missing=missing, empty=empty)
    return out


def columns_of(pvalues: object, tests: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """P values by test, of whatever holds some.

    Raises
    ------
    CTMMError
        A test that was not run: says which ``tests=`` gives it.
    DataError
        P values that are not between 0 and 1.
    """
    layout: Any = getattr(pvalues, "layout", None)
    table: Any = getattr(pvalues, "table", None) if layout is not None else pvalues
    if isinstance(table, pd.DataFrame):
        names = [c.removeprefix("p_") for c in (layout.tested if layout is not None else [])]
        if tests is None and layout is None:
            own = [c for c in map(str, table) if c.startswith("p_")]
            own = [c for c in own if not c.endswith(("_bonferroni", "_bh"))]
            names = [c.removeprefix("p_") for c in own]
        chosen = list(tests) if tests is not None else names
        for name in chosen:
            style.require(table, [f"p_{name}"], _remedy(name))
        found: dict[str, Any] = {name: table[f"p_{name}"] for name in chosen}
    elif isinstance(pvalues, Mapping):
        found = {str(name): values for name, values in pvalues.items()}
    else:
        name = getattr(pvalues, "name", None)
        found = {"p" if name is None else str(name).removeprefix("p_"): pvalues}
    if not isinstance(table, pd.DataFrame) and tests is not None:
        lost = [name for name in tests if name not in found]
        if lost:
            given = ", ".join(found)
            raise CTMMError(f"there are no p values of {', '.join(lost)}: choose from {given}")
        found = {name: found[name] for name in tests}
    if not found:
        raise CTMMError('there are no p values: run the scan with tests=["score", "mean"]')
    return {name: _checked(name, values) for name, values in found.items()}


def sizes_of(pvalues: object, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """-log10 p of the p values `found` in them, by their logarithms where there are columns."""
    table: Any = getattr(pvalues, "table", pvalues)
    logs = {f"log10_p_{name}": name for name in found}
    there = {logs[c]: table[c] for c in logs if isinstance(table, pd.DataFrame) and c in table}
    return {
        name: -np.asarray(there[name], dtype=float) + 0.0 if name in there else minus_log10(p)
        for name, p in found.items()
    }


def _remedy(test: str) -> str:
    if test.startswith("lrt["):
        return 'run the scan with models=[...], such as structure="free", models=["hom"]'
    test = "score" if test.startswith("score") else test
    return f'run the scan with tests=["{test}"] among others'


def _checked(name: str, values: Any) -> np.ndarray:
    try:
        p = np.asarray(values, dtype=float).ravel()
    except (TypeError, ValueError, OverflowError):
        kind = type(values).__name__
        raise DataError(f"p values of {name} are to be numbers, got {kind}") from None
    bad = np.flatnonzero((p < 0) | (p > 1))
    if bad.size:
        raise DataError(
            f"p values of {name} are to lie between 0 and 1: {p[bad[0]]:g} in row {bad[0]}"
        )
    return p


def minus_log10(p: np.ndarray) -> np.ndarray:
    """-log10 p; infinite where p is 0, NaN where there is none."""
    with np.errstate(divide="ignore"):
        return -np.log10(p) + 0.0


def at_edge(values: pd.Series, least: float) -> np.ndarray:
    """Values to draw: infinite ones a little beyond all others, thresholds and bands (`least`)."""
    out = values.to_numpy(dtype=float).copy()
    infinite = np.isinf(out)
    rest = out[~infinite]
    out[infinite] = 1.08 * max(float(rest.max(initial=0.0)), least, 1.0)
    return out
