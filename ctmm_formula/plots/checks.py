"""Pictures that check a fit: the donors and rows it hangs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..engine.model import refuse_related
from ..engine.precision import Precision
from ..errors import ConvergenceError, CTMMError
from . import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@style.picture
def influence(
    res: object, *, jackknife: object = None, label: int = 3, ax: Axes | None = None
) -> Axes:
    """Draw how much each donor moves each variance component.

    Leaves out every donor: N refits, unless the fit has run its jackknife already.  Of a long one
    run ``res.jackknife(n_jobs=-1, progress=True)`` first, or give another one.

    Parameters
    ----------
    res : CTMMResults
    jackknife : Jackknife, optional
        What ``res.jackknife`` returned; default the exact one over single donors.
    label : int
        How many donors to name: those with the largest influence on any component.
    ax : Axes, optional

    Returns
    -------
    Axes
        Estimate less the estimate without the donor, in jackknife standard errors: to the right
        are donors that raise the component.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example(), structure="hom")
    >>> ctmm.plots.influence(res).get_xlabel()
    'influence (standard errors)'
    """
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
        raise CTMMError(f"label= must be a whole number, the donors to name, got {label!r}")
    table = influence_data(res, jackknife=jackknife)
    rows = list(dict.fromkeys(table["component"]))
    place = table["component"].map({row: k for k, row in enumerate(rows)}).to_numpy(float)
    ax = style.axes(ax, 5.0, max(2.0, 0.8 + 0.32 * len(rows)))
    ax.axvline(0.0, color=style.LINE, linewidth=0.8)
    ax.plot(table["influence"], place, "|", ms=9, color=style.LINE, alpha=0.7)
    largest = table["influence"].abs().groupby(table["donor"]).max().nlargest(label)
    for donor, color in style.colors(list(largest.index)).items():
        own = (table["donor"] == donor).to_numpy()
        first, *others = donor.split(", ")
        name = f"{first} and {len(others)} more" if others else donor
        ax.plot(
            table["influence"][own], place[own], "o", ms=4.5, color=color, zorder=3,
            label=style.in_key(name),
        )  # fmt: skip
    ax.set_ylim(len(rows) - 0.5, -0.5)
    lost = table.loc[table["influence"].isna(), "donor"].nunique()
    some = f"\nno estimate without {lost} of the donors" if lost else ""
    style.finish(ax, f"influence (standard errors){some}")
    style.names_beside(ax, rows)
    if label:
        style.key(ax, "above")
    return ax


def influence_data(res: object, *, jackknife: object = None) -> pd.DataFrame:
    """Numbers that :func:`influence` draws.

    Returns
    -------
    DataFrame
        One row per donor (or group left out) and variance component: donor, component,
        difference (estimate less that without the donor, squared units of the response),
        influence (difference over the jackknife standard error).
    """
    fit = style.fitted(res)
    jack: Any = fit.jackknife() if jackknife is None else jackknife
    if not (hasattr(jack, "estimates") and hasattr(jack, "params")):
        raise CTMMError(
            f"jackknife= takes what res.jackknife() returned, got {type(jack).__name__}"
        )
    if not jack.params.equals(fit.params):
        raise CTMMError("jackknife= is of another fit: use this fit's own")
    names = list(fit.vcomp.index)
    moved = fit.vcomp - jack.estimates[names]
    out = moved.rename_axis(index="donor", columns="component").stack(future_stack=True)
    table = out.rename("difference").reset_index()
    table["influence"] = table["difference"] / jack.bse[table["component"]].to_numpy()
    return table


@style.picture
def residuals(res: object, *, label: int = 3, ax: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw standardised residuals against predictions, and against normal quantiles.

    Parameters
    ----------
    res : CTMMResults
    label : int
        How many rows to name by their donors: those with the largest residuals.
    ax : sequence of two Axes, optional

    Returns
    -------
    ndarray of two Axes
        Left the residuals by the prediction from all other rows, right their quantiles.  Under
        the model both panels show standard normal scatter without trend.

    Raises
    ------
    ConvergenceError
        The fitted covariance is not positive definite (possible for HE).

    Notes
    -----
    The residual of a row is its distance from its best linear unbiased prediction by all other
    rows, (P y)_a / P_aa with P = Sigma^-1 - Sigma^-1 X (X' Sigma^-1 X)^-1 X' Sigma^-1, over its
    standard deviation 1 / sqrt(P_aa) (case deletion: Christensen, Pearson and Johnson,
    Technometrics 34:38, 1992).  It is at once the conditional residual nu_a (P y)_a over its own
    standard deviation.  Residuals against fitted values have a trend where noise is small, as
    the fit follows its own row; the error of a prediction by other rows has none, but for the
    uncertainty of the fixed effects.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
    >>> left, right = ctmm.plots.residuals(res)
    >>> right.get_xlabel()
    'normal quantile'
    """
    if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
        raise CTMMError(f"label= must be a whole number, the rows to name, got {label!r}")
    from .names import name_points

    table = residuals_data(res).reset_index(drop=True)
    left, right = style.panels(ax, 2, 6.2, 3.0)
    shown = table[table["residual"].notna()]
    far = shown["residual"].abs().nlargest(label).index
    for panel, x in ((left, "predicted"), (right, "quantile")):
        panel.plot(shown[x], shown["residual"], "o", ms=3, mew=0, alpha=0.6, color=style.SPECIFIC)
    spots = shown.loc[far, ["predicted", "residual"]].to_numpy(dtype=float)
    name_points(left, spots, [str(name) for name in shown["donor"][far]])
    left.axhline(0.0, color=style.LINE, linewidth=0.8)
    ends = shown["quantile"].min(), shown["quantile"].max()
    right.plot(ends, ends, color=style.MARK, linewidth=1)
    style.finish(left, "prediction (expression)", "standardised residual")
    style.finish(right, "normal quantile")
    lost = len(table) - len(shown)
    style.note(left, f"not shown: {style.count(lost, 'row')} fitted exactly" if lost else "")
    return np.array([left, right], dtype=object)


def residuals_data(res: object) -> pd.DataFrame:
    """Numbers that :func:`residuals` draws.

    Returns
    -------
    DataFrame
        On the index of the data: donor, celltype ("" for overall pseudobulk), predicted (from
        all other rows), residual (standardised; NaN in a row that no other row predicts),
        quantile (of the normal distribution, for its rank).
    """
    from scipy.stats import norm

    fit = style.fitted(res)
    d, model = fit.design, fit.arrays
    refuse_related(model)
    try:
        pre = Precision(model, fit.estimate.theta)
        diagonal = pre.diagonal
        # as negative variances of random effects can make
        if (diagonal * model.noise < -1e-9).any():
            raise np.linalg.LinAlgError("the covariance is not positive definite")
    except (ConvergenceError, np.linalg.LinAlgError) as error:
        raise ConvergenceError(
            f"there are no standardised residuals: {error}; fit by method='reml'"
        ) from None
    free = diagonal * model.noise > 1e-9  # else a fixed effect fits the row exactly
    size = np.where(free, diagonal, np.nan)
    by_row = {"predicted": model.y - pre.Py / size, "residual": pre.Py / np.sqrt(size)}
    named = [""] * len(d.y) if d.kind == "op" else [d.celltypes[c] for c in d.H.argmax(axis=1)]
    out = pd.DataFrame(
        {"donor": [d.donors[code] for code in d.donor_codes], "celltype": named}, index=d.index
    )
    for name, values in by_row.items():
        out[name] = model.unsort(values)
    rank = out["residual"].rank(method="first")
    out["quantile"] = norm.ppf((rank - 0.5) / rank.count())
    return out
