"""Tests by the terms of the formula, under statsmodels' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..arguments import choose, name_list, on_off
from ..design.expressions import names_in
from ..design.grids import levels_of, rows_at, variables
from ..design.table import label
from ..errors import CTMMError
from .estimates import adjusted
from .hypothesis_tests import t_test, wald_test
from .record import Covariance, Record

if TYPE_CHECKING:
    from statsmodels.stats.contrast import WaldTestResults


@dataclass(frozen=True, eq=False, repr=False)
class Pairwise:
    """Differences between all pairs of levels of a factor.

    Made by :meth:`ctmm_formula.CTMMResults.t_test_pairwise`.

    Attributes
    ----------
    result_frame : DataFrame
        One row per pair, ``b-a``: coef, std err, t, P>|t|, Conf. Int. Low, Conf. Int. Upp., and of
        every method of adjustment pvalue-METHOD and reject-METHOD.
    notes : tuple of str
        Of every pair why it has no test, or "".
    contrasts : DataFrame
        Weights of ``params`` in each difference.
    """

    result_frame: pd.DataFrame
    contrasts: pd.DataFrame
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        shown = self.result_frame.to_string(float_format="{:.4g}".format)
        named = zip(self.result_frame.index, self.notes, strict=True)
        return "\n".join([shown, *(f"{pair}: {note}" for pair, note in named if note)])

    def _repr_html_(self) -> str:
        return self.result_frame.to_html(float_format="{:.4g}".format)


def wald_test_terms(
    res: Record, skip_single: bool = False, *, covariance: Covariance = None
) -> WaldTestResults:
    """F test of every term of the fixed part: all of its coefficients are 0.

    Parameters
    ----------
    skip_single : bool
        Leave out terms of one coefficient.
    covariance
        As in :meth:`wald_test`.

    Returns
    -------
    statsmodels WaldTestResults
        ``table``, one row per term: statistic, pvalue, df_constraint, df_denom; and ``notes``,
        which say of every term why it has no test, or "".

    Raises
    ------
    DataError
        The caller coded the fixed part, whose terms are not known here.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=ctmm.load_example())
    >>> res.wald_test_terms().table.round(2).loc["C(celltype)"].to_dict()
    {'statistic': 93.64, 'pvalue': 0.0, 'df_constraint': 3.0, 'df_denom': 23.48}
    """
    from .tested import TestedTerms

    skip_single = on_off("skip_single", skip_single)
    each = np.eye(res.numbers.n_params)
    terms = {
        name: columns
        for name, columns in res.design.terms.items()
        if not (skip_single and len(columns) == 1)
    }
    rows, notes = [], []
    for columns in terms.values():
        test = wald_test(res, each[columns], covariance)
        denominator = test.df[1] if isinstance(test.df, tuple) else np.nan
        rows.append((test.statistic, test.pvalue, len(columns), denominator))
        notes.append(test.note if np.isnan(test.pvalue) else "")
    names = ["statistic", "pvalue", "df_constraint", "df_denom"]
    table = pd.DataFrame(rows, index=list(terms), columns=names)
    return TestedTerms(table, notes)


def t_test_pairwise(
    res: Record,
    term_name: str,
    method: str | Sequence[str] = "hs",
    alpha: float = 0.05,
    factor_labels: Sequence[str] | None = None,
    *,
    covariance: Covariance = None,
) -> Pairwise:
    """Differences between all levels of a factor, with adjusted p values.

    The other columns are as observed: where the factor is in interactions, differences are
    averages over the rows of the fit and over cell types, whatever the coding; see also
    :meth:`contrasts` and :meth:`effects`.

    Parameters
    ----------
    term_name : str
        A term of the formula with one factor, ``"C(celltype)"``.
    method : str or list of str
        Of :func:`statsmodels.stats.multitest.multipletests`.
    alpha : float
        Level of ``reject``, and one less the confidence of the intervals.
    factor_labels : sequence of str, optional
        Other names of the levels, in their order.
    covariance
        As in :meth:`t_test`.

    Returns
    -------
    Pairwise
        ``result_frame`` with statsmodels' columns, one row per pair; ``contrasts``.

    Raises
    ------
    CTMMError
        No such term, one of several factors or of a number, labels of another length.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=ctmm.load_example())
    >>> res.t_test_pairwise("C(celltype)").result_frame["coef"].round(2).to_dict()["day3-day0"]
    -1.69
    """
    names, rows = _levels(res, term_name)
    if factor_labels is not None:
        labels = [factor_labels] if isinstance(factor_labels, str) else factor_labels
        given = [str(name) for name in name_list("factor_labels", labels)]
        if len(given) != len(names) or len(set(given)) < len(given):
            raise CTMMError(
                f"factor_labels= needs {len(names)} different names, for {', '.join(names)}, got "
                f"{', '.join(given)}"
            )
        names = given
    pairs = list(combinations(range(len(names)), 2))
    L = np.array([rows[b] - rows[a] for a, b in pairs])
    L = np.pad(L, ((0, 0), (0, len(res.estimate.theta))))
    found = t_test(res, L, covariance)
    frame = found.summary_frame([f"{names[b]}-{names[a]}" for a, b in pairs], alpha=alpha)
    for one in [method] if isinstance(method, str) else name_list("method", method):
        p = adjusted(np.atleast_1d(found.pvalue), one)
        frame[f"pvalue-{one}"], frame[f"reject-{one}"] = p, p <= alpha
    return Pairwise(frame, pd.DataFrame(L, frame.index, res.labels.params), found.notes)


def _levels(res: Record, term: str) -> tuple[list[str], np.ndarray]:
    """Levels of the one factor of a term, and rows (levels, p) of their means."""
    design = res.design
    term = choose("term", term, design.terms)
    frame = design.coded().frame
    columns = [] if ":" in term else [n for n in names_in(term).variables if n in frame]
    if len(columns) != 1:
        raise CTMMError(f"the term {term!r} is not one factor: see contrast() and effects()")
    name = columns[0]
    if name == design.celltype_col:
        return list(design.celltypes), design.mean_rows
    levels = levels_of(design, name) if name in variables(design) else []
    if not levels:
        raise CTMMError(f"{name!r} holds numbers and has no levels to compare: see t_test()")
    rows = np.array([rows_at(design, {name: level}).mean(axis=(0, 1)) for level in levels])
    if np.isnan(rows).any():
        raise CTMMError(
            f"some combinations of {name!r} and other columns have no rows: effects({name!r}) "
            "has the cell types where levels can be compared"
        )
    return [label(level) for level in levels], rows
