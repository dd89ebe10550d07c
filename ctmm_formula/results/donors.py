"""What a fit says of single donors: outliers, predicted expression, scans of their variables."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from ..arguments import choose
from ..design.table import as_frame, label, listing, numbers
from ..engine.model import refuse_related
from ..engine.precision import Precision
from ..errors import ConvergenceError, CTMMWarning, DataError
from ..inference.donor_scores import (
    CONSTANT,
    FEW,
    HELD,
    deletion,
    donor_scores,
    scan_variables,
    weighed_by,
)
from .estimates import adjusted
from .record import Record

BAD_PHENOTYPES = (
    "predicted expression is shrunk towards the mean and borrows from other cell types: good for "
    "pictures, but as a phenotype it loses power, shrinks effects and finds those of one cell type "
    "in others; test variables of donors by ctmm.scan_donors(res, table)"
)
_SHOWN = 5
_LACKING = {
    CONSTANT: "all donors have the same value",
    HELD: "the fixed effects of the fit hold it: res.effects tests it, or fit without it",
    FEW: "too few donors",
}


def _weights(res: Record) -> Precision:
    """P by which donors are looked at: that of the fit, of robust ones by its working noise."""
    refuse_related(res.arrays)
    try:
        return weighed_by(res.arrays, res.estimate.theta, res.numbers.is_clustered)
    except (ConvergenceError, np.linalg.LinAlgError) as error:
        raise ConvergenceError(
            f"the fit has no covariance to weigh donors by: {error}; fit by method='robust' or "
            "'reml'"
        ) from None


def _keys(res: Record, own: Sequence[str]) -> pd.DataFrame:
    """Donor, cell type and condition of every row, on the index of the data, beside columns `own`.

    Raises
    ------
    DataError
        One of them is called as one of `own`.
    """
    design = res.design
    crossing = design.crossing
    names = [design.celltype_col, None if crossing is None else crossing.column]
    out = pd.DataFrame(
        {design.donor_col: np.array(design.donors, dtype=object)[design.donor_codes]}
    )
    for name in names:
        if name is not None and name in design.frame.columns:
            out[name] = design.frame[name].to_numpy()
    taken = [name for name in out.columns if name in own]
    if taken:
        raise DataError(
            f"the table has a column {taken[0]!r} of its own: rename that of the data and fit again"
        )
    return out.set_axis(design.index)


# outliers


@dataclass(frozen=True, eq=False)
class Outliers:
    """How far rows and donors are from what the others say.

    Made by :meth:`ctmm_formula.CTMMResults.outliers`.

    Attributes
    ----------
    rows : DataFrame
        On the index of the data: donor, cell type, n_cells where known, residual (deletion residual
        over its standard error), p_value (two-sided, normal), p_adjusted.
    donors : DataFrame
        By donor: statistic (chi2), df (its rows), p_value, p_adjusted.
    adjust : str
        How p values are adjusted.
    """

    rows: pd.DataFrame
    donors: pd.DataFrame
    adjust: str

    def _shown(self) -> list[tuple[str, pd.DataFrame]]:
        first = {"rows": self.rows, "donors": self.donors}
        return [
            (f"{name} with the smallest p values, of {len(frame)}:",
             frame.sort_values("p_value", kind="stable").head(_SHOWN))
            for name, frame in first.items()
        ]  # fmt: skip

    def __repr__(self) -> str:
        parts = [
            f"{title}\n{part.to_string(float_format='{:.4g}'.format)}"
            for title, part in self._shown()
        ]
        return "\n".join([*parts, f"p_adjusted: {self.adjust}"])

    def _repr_html_(self) -> str:
        parts = [
            f"<p>{html.escape(title)}</p>{part.to_html(float_format='{:.4g}'.format)}"
            for title, part in self._shown()
        ]
        return "".join([*parts, f"<p>p_adjusted: {html.escape(self.adjust)}</p>"])


def outliers(res: Record, *, adjust: str = "holm") -> Outliers:
    """Rows and donors that do not fit the others.

    A row's deletion residual is its distance from what all other rows say of it, over the standard
    error of that distance: its own noise, its donor's effects and the uncertainty of the fixed
    effects, at the variance components of the whole fit.  Of extreme raw z scores about half
    are from the fifth of pairs with fewest cells; these are hardly more frequent there than
    elsewhere.  Robust fits take the noise that is pooled over donors, as their weights do.

    Parameters
    ----------
    adjust : str
        Method of :func:`statsmodels.stats.multitest.multipletests`, or "none": over rows, and over
        donors.

    Returns
    -------
    Outliers
        ``rows`` and ``donors``; NaN where a row alone determines a fixed effect.

    Raises
    ------
    CTMMError
        There is no such `adjust`, or donors are related (``kinship=``).
    ConvergenceError
        The fit has no covariance to weigh donors by.
    DataError
        A column of the data is called as one of the tables.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=ctmm.load_example())
    >>> found = res.outliers()
    >>> found.rows.sort_values("p_value").head(2)[["donor", "celltype", "residual"]].round(2)
           donor celltype  residual
    100  donor27     day3      3.02
    264  donor69     day3     -2.83
    """
    pre = _weights(res)
    found, model, design = deletion(pre), res.arrays, res.design
    rows = _keys(res, ("n_cells", "residual", "p_value", "p_adjusted"))
    if design.n_cells is not None:
        rows["n_cells"] = design.n_cells
    residual = model.unsort(found.residual)
    p = 2.0 * special.ndtr(-np.abs(residual))
    rows = rows.assign(residual=residual, p_value=p, p_adjusted=adjusted(p, adjust))
    some = found.df > 0
    chi2 = np.where(some, found.chi2, np.nan)
    p = np.where(some, special.chdtrc(np.maximum(found.df, 1), found.chi2), np.nan)
    order = np.argsort(model.donors[pre.donors])
    donors = pd.DataFrame(
        {"statistic": chi2, "df": found.df, "p_value": p, "p_adjusted": adjusted(p, adjust)}
    ).iloc[order]
    return Outliers(rows, donors.set_axis(pd.Index(design.donors, name=design.donor_col)), adjust)


# predicted expression


def predicted_expression(res: Record) -> pd.DataFrame:
    """Expression of every row with its noise taken out, by all that the model knows.

    The best linear unbiased prediction of the true mean: fixed effects and all predicted effects of
    the donor and its batches.  Pictures of it are closer to the truth than those of the data, the
    more so where cells are few.

    Returns
    -------
    DataFrame
        On the index of the data: donor, cell type, observed, predicted, std_error (of predicted
        less true expression).

    Raises
    ------
    ConvergenceError
        There are no predicted random effects.
    DataError
        A column of the data is called as one of the table.

    Warns
    -----
    CTMMWarning
        Each time: predictions are bad phenotypes.  They are shrunk, and hold other cell types of
        the donor: in simulations with a variant that acts in one type (effect .30) regression on
        them finds .20, with power .58 against .76 of :func:`ctmm_formula.scan_donors`, and finds
        something in the other types in .08 to .12 at .05
        (``tests/benchmarks/donor_scan_levels.md``).

    Examples
    --------
    >>> import warnings
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", method="reml", data=ctmm.load_example())
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     table = res.predicted_expression()
    >>> table[["observed", "predicted", "std_error"]].round(2).loc[0].tolist()
    [1.67, 1.54, 0.28]
    """
    warnings.warn(BAD_PHENOTYPES, CTMMWarning, stacklevel=2)
    effects, model = res.blup, res.arrays
    return _keys(res, ("observed", "predicted", "std_error")).assign(
        observed=res.design.y,
        predicted=model.unsort(effects.fitted),
        std_error=model.unsort(effects.fitted_se),
    )


# variables of donors


def scan_donors(
    res: Record, table: object, *, missing: str = "refuse", adjust: str = "fdr_bh"
) -> pd.DataFrame:
    """Test many variables of donors (dosages, scores, laboratory values) by one fit without them.

    Each variable by itself has an effect in every cell type, as ``variable:C(celltype)`` beside the
    fixed effects.  One fit serves all of them: its covariance weighs donors and cell types, and a
    score test per variable costs some ten microseconds.  Effects are those that the fit would have
    with the variable, at the variance components of the fit without it; refit what is found,
    ``fit`` with the variable and ``effects``, for robust errors.

    Parameters
    ----------
    res : CTMMResults
        The fit without the variables.
    table : DataFrame, Series, dict of columns
        Numbers; rows are named by donor (or by a column of the name of the fit's), columns are
        variables.  Other donors may be there too, and do not count.
    missing : {"refuse", "mean"}
        What to do with missing values: an error, or the mean of the donors that have one.
    adjust : str
        Method of :func:`statsmodels.stats.multitest.multipletests` over variables, or "none".

    Returns
    -------
    DataFrame
        A row per variable: ``estimate[T]``, ``se[T]``, ``p[T]`` of every cell type T,
        ``estimate_mean``, ``se_mean``, ``p_mean`` of the mean effect over types, ``p_omnibus`` (no
        effect at all), ``p_heterogeneity`` (the same in all types), these three adjusted,
        ``p_..._adjusted``;
        ``n_missing``; ``reason``, why there is no test, or none of a cell type.  Two-sided.

    Raises
    ------
    DataError
        Donors of the fit that the table does not have, or has twice; columns that are no numbers,
        are infinite or have a name twice; missing values; `res` is no fit.
    CTMMError
        No such `missing` or `adjust`; donors are related (``kinship=``).
    ConvergenceError
        The fit has no covariance to weigh donors by.

    Notes
    -----
    T = Z'P y with covariance Z'P Z, of all variables by matrix products
    (:mod:`ctmm_formula.inference.donor_scores`).  The variance holds for variables that are
    independent of the noise and of how much donors vary: of groups of donors that vary more, see
    ``by=``.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=ctmm.load_example())
    >>> rng = np.random.default_rng(1)
    >>> snps = pd.DataFrame(rng.binomial(2, 0.3, (72, 3)), list(res.donors), ["rs1", "rs2", "rs3"])
    >>> found = ctmm.scan_donors(res, snps)
    >>> found[["estimate[day0]", "p_omnibus", "p_heterogeneity"]].round(3).loc["rs1"].to_dict()
    {'estimate[day0]': 0.097, 'p_omnibus': 0.087, 'p_heterogeneity': 0.043}
    """
    if not isinstance(res, Record):
        raise DataError(f"scan_donors needs a result of fit() first, got {type(res).__name__}")
    names, values = _variables(res, table)
    gone = ~np.isfinite(values)
    choose("missing", missing, ("refuse", "mean"))
    if missing == "refuse" and gone.any():
        at = np.flatnonzero(gone.any(axis=0))
        donors = [res.donors[k] for k in np.flatnonzero(gone[:, at[0]])]
        raise DataError(
            f"table: {len(at)} of {len(names)} variables have missing values, the first "
            f"{names[at[0]]!r} of donor {listing(donors)}: missing='mean' puts the mean of the "
            "others there"
        )
    counts = gone.sum(axis=0)
    if gone.any():
        there = np.maximum(len(values) - counts, 1)
        values = np.where(gone, np.where(gone, 0.0, values).sum(axis=0) / there, values)
    pre = _weights(res)
    found = scan_variables(donor_scores(pre), values[res.arrays.donors[pre.donors]])
    out: dict[str, object] = {}
    for c, name in enumerate(res.celltypes):
        out |= {f"estimate[{name}]": found.effect[:, c], f"se[{name}]": found.se[:, c]}
        out[f"p[{name}]"] = found.p[:, c]
    out |= {f"{key}_mean": found.mean[:, k] for k, key in enumerate(("estimate", "se", "p"))}
    out |= {"p_omnibus": found.joint[:, 0], "p_heterogeneity": found.joint[:, 1]}
    for name in ("p_mean", "p_omnibus", "p_heterogeneity"):
        out[f"{name}_adjusted"] = adjusted(np.asarray(out[name]), adjust)
    reasons = np.array([_LACKING.get(k, "") for k in found.lacking.tolist()], dtype=object)
    lost = np.isnan(found.p) & (found.lacking == 0)[:, None]
    for k in np.flatnonzero(lost.any(axis=1)):
        alike = listing([res.celltypes[c] for c in np.flatnonzero(lost[k])])
        reasons[k] = f"no test of {alike}: all donors with it have the same value, or are too few"
    reasons[counts == len(values)] = "no donor has a value"
    out |= {"n_missing": counts, "reason": reasons}
    return pd.DataFrame(out, index=pd.Index(names, name="variable", dtype=object))


def _variables(res: Record, table: object) -> tuple[list[str], np.ndarray]:
    """Names of the variables, and their values by donor of the fit (N, S)."""
    if isinstance(table, pd.Series):
        table = table.to_frame("variable" if table.name is None else table.name)
    frame = as_frame(table, "table")
    own = res.design.donor_col
    if own in frame.columns:
        frame = frame.set_index(own)
    names = [str(name) for name in frame.columns]
    if not names:
        raise DataError("table has no columns: one for each variable")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"table has several columns {listing(twice)}: give each a name of its own")
    rows: dict[str, int] = {}
    known = set(res.donors)
    for k, value in enumerate(frame.index):
        name = label(value)
        if name in known and rows.setdefault(name, k) != k:
            raise DataError(f"table has several rows of donor {name!r}: leave one")
    absent = [name for name in res.donors if name not in rows]
    if absent:
        seen = [label(value) for value in frame.index[:3]]
        fix = (
            "leave these donors out of the fit, or give them rows of missing values and "
            "missing='mean'"
            if rows
            else f"its rows are named {listing(seen)} ...: name them by donor, or give a column "
            f"{own!r}"
        )
        raise DataError(
            f"table has no row of {len(absent)} of the fit's {len(known)} donors, "
            f"{listing(absent)}; {fix}"
        )
    frame = frame.iloc[[rows[name] for name in res.donors]]
    if all(isinstance(kind, np.dtype) and kind.kind in "iufb" for kind in frame.dtypes):
        values = frame.to_numpy(dtype=float)
    else:
        every = (frame.iloc[:, k] for k in range(len(names)))
        told = (column.astype(float) if column.dtype == bool else column for column in every)
        columns = [numbers(column, n, "variable") for column, n in zip(told, names, strict=True)]
        values = np.column_stack(columns)
    if np.isinf(values).any():
        k = int(np.flatnonzero(np.isinf(values).any(axis=0))[0])
        raise DataError(f"table: {names[k]!r} has infinite values: make them missing")
    return names, values
