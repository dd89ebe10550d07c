"""Pictures of one fit, or of several side by side; each has a twin that returns its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import choose
from ..errors import CTMMError
from . import style
from .checks import influence, influence_data, residuals, residuals_data
from .data import OVERALL, missing, missing_data, noise, noise_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_SLOT = {"points": -0.06, "mean": 0.04, "shared": 0.16, "specific": 0.30, "bar": 0.12}
"""Where things lie about the place of a cell type: violin to the left, bars to the right."""
_FILLS = {"means": "#009E73", "fixed": "#F0E442", "shared": "#4D4D4D", "specific": "#0072B2"}
_RANDOM = ("#E69F00", "#CC79A7", "#D55E00", "#56B4E9", "#000000")


# ---------------------------------------------------------------------------------------------
# one gene by cell type


@style.picture
def gene(
    res: object, *, covariance: object = None, alpha: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw a gene by cell type: pseudobulk, means, and standard deviations between donors.

    To the left of each place the pseudobulk of the donors, as points in the outline of their
    density; in the middle the mean with its confidence interval; to the right bars of one standard
    deviation above and below the mean: that which all cell types share, and that which is
    specific to the cell type.  A negative variance has no bar but a cross.

    Parameters
    ----------
    res : CTMMResults
        Overall pseudobulk is drawn once, at the left: it has no values by cell type.
    covariance : {"model", "jackknife"} or Jackknife, optional
        Of the intervals; default the fit's ``cov_type``.
    alpha : float
        One less the confidence of the intervals.
    ax : Axes, optional

    Returns
    -------
    Axes
        In the units of the response.  Points are as measured, covariates and random effects
        included; the means are those at the mean of the covariates.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
    >>> ax = ctmm.plots.gene(res)
    >>> [text.get_text() for text in ax.get_xticklabels()]
    ['day0', 'day1', 'day2', 'day3']
    """
    fit = style.fitted(res)
    table = gene_data(fit, covariance=covariance, alpha=alpha)
    names = list(dict.fromkeys(table["celltype"]))
    at = table["celltype"].map({name: k for k, name in enumerate(names)}).to_numpy(float)
    ax = style.axes(ax, max(4.5, 1.5 + 0.42 * len(names)), 3.4)
    parts = {what: table["what"] == what for what in ("pseudobulk", "mean", "shared", "specific")}
    for k in range(len(names)):
        values = table["value"][parts["pseudobulk"] & (at == k)].to_numpy()
        _violin(ax, k + _SLOT["points"], values, "pseudobulk" if k == 0 else "")
    without_shared = not len(fit.structure_.shared)
    labels = {"shared": "SD shared", "specific": "SD between donors" if without_shared else
              "SD specific"}  # fmt: skip
    for what, color in (("shared", style.SHARED), ("specific", style.SPECIFIC)):
        own = table[parts[what]]
        place = at[parts[what]] + _SLOT["shared" if without_shared else what]
        there = own["value"].notna().to_numpy()
        if there.any():
            height = (own["high"] - own["low"]).to_numpy()
            ax.bar(
                place[there], height[there], _SLOT["bar"], own["low"].to_numpy()[there],
                color=color, label=labels[what],
            )  # fmt: skip
        if not there.all():
            middle = table["value"][parts["mean"]].to_numpy()
            if what == "specific" or not without_shared:
                ax.plot(place[~there], middle[~there], "x", ms=4, color=color, label="variance < 0")
    own = table[parts["mean"]]
    tight = style.room(ax, len(names)) < 0.3
    reach = (own["value"] - own["low"]).to_numpy()
    ax.errorbar(
        at[parts["mean"]] + _SLOT["mean"], own["value"], reach, fmt="o", ms=2 if tight else 3.5,
        linewidth=1.3, capsize=0 if tight else 2, color=style.MARK,
        label=f"mean, {100 * (1 - alpha):g} % CI",
    )  # fmt: skip
    style.names_below(ax, range(len(names)), names)
    ax.use_sticky_edges = False  # bars do not stand on an axis
    ax.autoscale_view()
    ax.set_xlim(-0.6, len(names) - 0.4)
    name = style.shortened([fit.design.response_name], 0.5 * style.cell(ax)[1], style.SMALL + 1)[0]
    style.finish(ax, "", f"{name} (expression)")
    style.key(ax, "above", markerscale=1.3)
    return ax


def gene_data(res: object, *, covariance: object = None, alpha: float = 0.05) -> pd.DataFrame:
    """Numbers that :func:`gene` draws.

    Returns
    -------
    DataFrame
        Columns what, celltype, donor, value, low, high.  Rows "pseudobulk" hold the response of a
        donor ("overall" in place of the cell type for overall pseudobulk); "mean" the mean of a
        cell type with its interval; "shared" and "specific" the standard deviations
        sigma and sqrt(V_cc), and the mean less and plus them; NaN where the variance is negative
        (and "shared" where the structure has no shared component).
    """
    fit = style.fitted(res)
    d, names = fit.design, list(fit.celltypes)
    if d.crossing is not None:
        raise CTMMError(
            f"the variances of the cell types differ by {d.crossing.column!r}, and this picture "
            "has one of each: plot('components') shows them all"
        )
    overall = d.kind == "op"
    own = [OVERALL] * len(d.y) if overall else [names[c] for c in d.H.argmax(axis=1)]
    points = pd.DataFrame({"what": "pseudobulk", "celltype": own, "value": d.y})
    points.insert(2, "donor", [d.donors[code] for code in d.donor_codes])
    points = points.sort_values(
        "celltype", key=lambda column: column.map({n: k for k, n in enumerate(names)}),
        kind="stable",
    )  # fmt: skip
    means = fit.means(covariance=covariance, alpha=alpha)
    middle = means["estimate"].to_numpy()
    parts = [points, _block("mean", names, middle, means["conf_low"], means["conf_high"])]
    common = np.diag(fit._common) if len(fit.structure_.shared) else np.full(len(names), np.nan)
    variances = {"shared": common, "specific": np.diag(fit.V)}
    for what, variance in variances.items():
        sd = np.sqrt(np.where(variance >= 0.0, variance, np.nan))
        parts.append(_block(what, names, sd, middle - sd, middle + sd))
    columns = ["what", "celltype", "donor", "value", "low", "high"]
    return pd.concat([part.reindex(columns=columns) for part in parts], ignore_index=True)


def _block(what: str, names: Sequence[str], value: Any, low: Any, high: Any) -> pd.DataFrame:
    numbers = {"value": np.asarray(value), "low": np.asarray(low), "high": np.asarray(high)}
    return pd.DataFrame({"what": what, "celltype": list(names), "donor": None, **numbers})


def _violin(ax: Axes, place: float, values: np.ndarray, label: str) -> None:
    """Half a violin to the left of `place`, its points spread inside (without chance)."""
    from matplotlib import rcParams
    from scipy.stats import gaussian_kde

    width = np.full(len(values), 0.15)
    if len(np.unique(values)) >= 5:
        density = gaussian_kde(values)
        grid = np.linspace(values.min(), values.max(), 100)
        outline = density(grid)
        ax.fill_betweenx(
            grid, place - 0.4 * outline / outline.max(), place, color=style.MUTED, alpha=0.5,
            linewidth=0,
        )  # fmt: skip
        width = 0.4 * density(values) / outline.max()
    spread = (np.arange(1, len(values) + 1) * _GOLDEN) % 1.0
    inside = place - width * spread
    color = rcParams["text.color"]  # to be seen on dark pages too
    ax.plot(inside, values, "o", ms=2.2, mew=0, color=color, alpha=0.4, label=label or None)


# ---------------------------------------------------------------------------------------------
# shares of variance and variance components, of one fit or several


@style.picture
def shares(
    fits: object, *, by_celltype: bool = False, scale: str = "share", ax: Axes | None = None
) -> Axes:
    """Draw the parts of the variance of overall pseudobulk as stacked bars.

    Parameters
    ----------
    fits : CTMMResults, list of them, or dict of name and fit
        One bar each.
    by_celltype : bool
        Split the specific part by cell type.
    scale : {"share", "variance"}
        Parts of one, or variances in squared units of the response.
    ax : Axes, optional

    Returns
    -------
    Axes
        Negative parts, as estimates of variance components may be, lie to the left of 0.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> fits = {s: ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example(), structure=s)
    ...         for s in ("hom", "free")}
    >>> ax = ctmm.plots.shares(fits)
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['hom', 'free']
    """
    table = shares_data(fits, by_celltype=by_celltype)
    choose("scale", scale, ("share", "variance"))
    bars = list(dict.fromkeys(table["fit"]))
    parts = list(dict.fromkeys(table["component"]))
    wide = table.pivot(index="fit", columns="component", values=scale).loc[bars, parts].fillna(0.0)
    legend = 0.06 * len(parts) if by_celltype else 0.0
    ax = style.axes(ax, 5.2, max(1.5, 0.8 + 0.4 * len(bars) + legend))
    right, left = np.zeros(len(bars)), np.zeros(len(bars))
    for name, color in _part_colors(parts).items():
        value = wide[name].to_numpy()
        start = np.where(value >= 0, right, left)
        alone = len(bars) == 1 and scale == "share"
        percent = f" {round(100 * float(value[0]))} %" if alone else ""
        ax.barh(
            range(len(bars)), value, 0.7, start, color=color, edgecolor="white", linewidth=0.5,
            label=style.in_key(f"{name.replace('specific[', 'V[')}{percent}"),
        )  # fmt: skip
        right, left = right + np.maximum(value, 0.0), left + np.minimum(value, 0.0)
    ax.axvline(0.0, color=style.LINE, linewidth=0.8)
    room = 0.9 if len(bars) == 1 else 0.5  # one bar alone would fill the page
    ax.set_ylim(len(bars) - 1 + room, -room)
    what = {"share": "share of variance", "variance": "variance (expression²)"}[scale]
    style.finish(ax, what)
    style.names_beside(ax, bars)
    style.note(ax, "of overall pseudobulk")
    style.key(ax)
    return ax


def shares_data(fits: object, *, by_celltype: bool = False) -> pd.DataFrame:
    """Numbers that :func:`shares` draws.

    Returns
    -------
    DataFrame
        Columns fit, component, variance, share: ``variance_explained`` of every fit without the
        total; parts that are exactly zero in all fits are left out.
    """
    parts = []
    for name, fit in _named(fits).items():
        own = fit.variance_explained(by_celltype=by_celltype).drop(index="total").reset_index()
        own.insert(0, "fit", name)
        parts.append(own)
    table = pd.concat(parts, ignore_index=True)
    noise_last = table["component"] == "noise"
    table = pd.concat([table[~noise_last], table[noise_last]])
    there = table["variance"].abs().groupby(table["component"]).transform("sum") > 0
    return table[there].reset_index(drop=True)


def _part_colors(parts: Sequence[str]) -> dict[str, Any]:
    """Colours of parts of variance: the same part looks the same in every picture."""
    from matplotlib import colormaps

    split = [name for name in parts if name.startswith("specific[")]
    steps = colormaps["Blues"](np.linspace(0.95, 0.3, max(len(split), 1)))
    fills = {**_FILLS, "noise": style.MUTED, **dict(zip(split, map(tuple, steps), strict=False))}
    random = [name for name in parts if name not in fills]
    fills |= {name: _RANDOM[k % len(_RANDOM)] for k, name in enumerate(random)}
    return {name: fills[name] for name in parts}


@style.picture
def components(
    fits: object, *, covariance: object = None, alpha: float = 0.05, ax: Axes | None = None
) -> Axes:
    """Draw the variance components with their confidence intervals.

    Parameters
    ----------
    fits : CTMMResults, list of them, or dict of name and fit
        One colour each.
    covariance : {"model", "jackknife"} or Jackknife, optional
        Of the intervals; default the fit's ``cov_type`` ("he" needs the jackknife, which is run
        if it has not been yet).
    alpha : float
        One less the confidence of the intervals.
    ax : Axes, optional

    Returns
    -------
    Axes
        Squared units of the response; intervals are those of ``conf_int`` and may reach below 0.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
    >>> ax = ctmm.plots.components(res)
    >>> [text.get_text() for text in ax.get_yticklabels()]
    ['hom', 'V[day0]', 'V[day1]', 'V[day2]', 'V[day3]']
    """
    table = components_data(fits, covariance=covariance, alpha=alpha)
    rows = list(dict.fromkeys(table["component"]))
    own = {str(name): part for name, part in table.groupby("fit", sort=False)}
    shades = style.colors(list(own))
    ax = style.axes(ax, 4.5, max(1.8, 0.8 + 0.22 * len(rows) * max(1.0, 0.7 * len(own))))
    ax.axvline(0.0, color=style.LINE, linewidth=0.8)
    step = 0.7 / len(own)
    for k, (name, part) in enumerate(own.items()):
        place = part["component"].map({row: j for j, row in enumerate(rows)}).to_numpy(float)
        place += (k - (len(own) - 1) / 2) * step
        reach = (part["conf_high"] - part["estimate"]).to_numpy()
        ax.errorbar(
            part["estimate"], place, xerr=reach, fmt="o", ms=4, linewidth=1.3, capsize=2,
            color=shades[name], label=style.in_key(name),
        )  # fmt: skip
    ax.set_ylim(len(rows) - 0.4, -0.6)
    style.finish(ax, "variance (expression²)")
    style.names_beside(ax, rows)
    lost = table["conf_low"].isna()
    some = "; none where there is no standard error" if lost.any() else ""
    style.note(ax, "no standard errors" if lost.all() else f"{100 * (1 - alpha):g} % CI{some}")
    if len(own) > 1:
        style.key(ax)
    return ax


def components_data(
    fits: object, *, covariance: object = None, alpha: float = 0.05
) -> pd.DataFrame:
    """Numbers that :func:`components` draws.

    Returns
    -------
    DataFrame
        Columns fit, component, estimate, conf_low, conf_high.
    """
    parts = []
    for name, fit in _named(fits).items():
        own = fit.table(covariance, alpha).loc[fit.vcomp.index]
        own = own[["estimate", "conf_low", "conf_high"]].rename_axis("component").reset_index()
        own.insert(0, "fit", name)
        parts.append(own)
    return pd.concat(parts, ignore_index=True)


def _named(fits: object) -> dict[str, Any]:
    """Fits by name: given, or by the first of their features that tells them apart."""
    if isinstance(fits, Mapping):
        named = {str(name): style.fitted(fit) for name, fit in fits.items()}
        if not named:
            raise CTMMError("there is no fit to draw")
        return named
    if not isinstance(fits, (list, tuple)):
        return {style.fitted(fits).design.response_name: fits}
    given = [style.fitted(fit) for fit in fits]
    if not given:
        raise CTMMError("there is no fit to draw")
    features = (
        [fit.design.response_name for fit in given],
        [fit.structure for fit in given],
        [fit.method for fit in given],
        [f"{fit.structure}, {fit.method}" for fit in given],
    )
    apart = [names for names in features if len(set(names)) == len(given)]
    names = apart[0] if apart else [f"fit {k + 1}" for k in range(len(given))]
    return dict(zip(names, given, strict=True))


OF_A_FIT: dict[str, tuple[Callable[..., Any], Callable[..., pd.DataFrame]]] = {
    "gene": (gene, gene_data),
    "shares": (shares, shares_data),
    "components": (components, components_data),
    "residuals": (residuals, residuals_data),
    "influence": (influence, influence_data),
    "missing": (missing, missing_data),
    "noise": (noise, noise_data),
}
"""What ``res.plot(kind)`` and ``res.plot_data(kind)`` can be asked for."""
