"""Effects of a variable in every cell type, with the questions that are asked of them together."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..design.crossings import loads_of
from ..design.grids import differences, levels_of
from ..design.table import label
from ..errors import CTMMError
from ..inference.differences import Differences, test_differences, testable
from ..inference.fit import JACKKNIFE, ROBUST, Errors
from ..inference.group_score import OVERALL, group_design, group_test, of_type
from ..inference.testing import TestResult, shown_pvalue
from ..structures import Crossing, cross
from .parameters import effect_table, errors_of_effects
from .record import Covariance, Record

MEAN = "mean"
_UNLIKE = 0.05  # p value of the test of groups below which effects say that they differ


@dataclass(frozen=True, eq=False)
class Effects:
    """Effects of one variable on the means of the cell types.

    Made by :meth:`ctmm_formula.CTMMResults.effects`.

    Attributes
    ----------
    name : str
        The variable.
    table : DataFrame
        One row per cell type, of several comparisons one per comparison and cell type: estimate,
        std_error, df, statistic (t), p_value (two-sided), conf_low, conf_high.
    mean : DataFrame
        The same of the mean effect over cell types, one row per comparison.
    omnibus : TestResult
        All effects are 0.
    heterogeneity : TestResult
        Cell types respond in the same way; NaN where the formula says so.
    mean_test : TestResult
        The mean effect is 0; of several comparisons, all of them are.
    by_celltype : dict of str to TestResult
        No effect in a cell type; of several comparisons, none of them.
    at : str
        What other variables are held at, where the effect depends on them.
    method : str
        Where standard errors come from.
    notes : tuple of str
        Why an effect is NaN; that groups of donors differ in their variance.
    """

    name: str
    table: pd.DataFrame
    mean: pd.DataFrame
    omnibus: TestResult
    heterogeneity: TestResult
    mean_test: TestResult
    by_celltype: dict[str, TestResult]
    at: str
    method: str
    notes: tuple[str, ...] = ()

    @property
    def tests(self) -> dict[str, TestResult]:
        """The joint tests by name: omnibus, heterogeneity, mean, and every cell type.

        A cell type that has the name of another test is ``"celltype mean"``.
        """
        joint = {
            "omnibus": self.omnibus,
            "heterogeneity": self.heterogeneity,
            "mean": self.mean_test,
        }
        own = {of_type(c) if c in joint else c: test for c, test in self.by_celltype.items()}
        return joint | own

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; numbers that do not exist are nan."""
        frames = {"table": self.table, "mean": self.mean}
        plain: dict[str, Any] = {
            key: frame.reset_index().to_dict("records") for key, frame in frames.items()
        }
        plain |= {"name": self.name, "at": self.at, "method": self.method}
        tests = {key: test.to_dict() for key, test in self.tests.items()}
        return plain | {"tests": tests, "notes": list(self.notes)}

    def _lines(self) -> list[str]:
        joint = [self.omnibus, self.heterogeneity]
        several = len(self.mean) > 1
        joint += [self.mean_test, *self.by_celltype.values()] if several else []
        lines = [f"{test.null}: {_outcome(test)}" for test in joint]
        return [*lines, *([self.at] if self.at else []), *self.notes]

    def _shown(self) -> pd.DataFrame:
        mean = self.mean
        if self.table.index.nlevels > 1:
            keys = [(step, f"({MEAN})") for step in mean.index]
            mean = mean.set_axis(pd.MultiIndex.from_tuples(keys, names=self.table.index.names))
            order = [one for step in self.mean.index for one in self._of(step, mean)]
            return pd.concat([self.table, mean]).loc[order]
        return pd.concat([self.table, mean.set_axis(pd.Index([f"({MEAN})"], name="celltype"))])

    def _of(self, step: str, mean: pd.DataFrame) -> list[Any]:
        return [key for frame in (self.table, mean) for key in frame.index if key[0] == step]

    def _title(self) -> str:
        steps = ", ".join(map(str, self.mean.index))
        what = f"effects of {self.name}" + (f": {steps}" if steps != self.name else "")
        return f"{what}; {self.method}"

    def __repr__(self) -> str:
        shown = self._shown().to_string(float_format="{:.4g}".format)
        return "\n".join([self._title(), shown, *(f"  {line}" for line in self._lines())])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self._lines())
        shown = self._shown().to_html(float_format="{:.4g}".format)
        return f"<p>{html.escape(self._title())}</p>{shown}{lines}"


def _outcome(test: TestResult) -> str:
    if np.isnan(test.pvalue):
        return f"no test, {test.note}"
    note = f" ({test.note})" if test.note else ""
    return f"{test._outcome()}, p = {shown_pvalue(test.pvalue, test.log_pvalue)}{note}"


def effects(
    res: Record,
    name: str,
    *,
    values: Iterable[object] | None = None,
    at: Mapping[str, object] | None = None,
    covariance: Covariance = None,
    alpha: float = 0.05,
) -> Effects:
    """Effect of a variable on the mean of every cell type, and whether cell types respond alike.

    Effects are differences of what the formula predicts, whatever its parametrisation.  Where the
    levels are groups of donors, a test of groups (:meth:`test_groups`, p < .05) says whether they
    differ in their variance: robust errors allow for it, those by the model want ``by=``.

    Parameters
    ----------
    name : str
        A column of the fixed part: a condition of any number of levels, a number, ...
    values : sequence, optional
        Values to compare, the first is the reference: ``values=["control", "stim"]``,
        ``values=(30, 60)``.  By default all levels in their order; of a number, one unit more.
    at : dict, optional
        Values of other columns, where the effect depends on them; else it is averaged over the
        rows of the fit, and ``at`` of the result says so.
    covariance : {"robust", "kenward-roger", "jackknife", "model"} or Jackknife, optional
        As in :meth:`test_mean`: by default "robust" where numbers of cells are known, whatever
        the fit, and the estimates are the robust ones then; else "kenward-roger" after REML and
        "jackknife" after ML and HE.
    alpha : float
        One less the confidence of the intervals.

    Returns
    -------
    Effects
        ``table`` by cell type, ``mean`` over them (1 df), ``omnibus`` (all are 0),
        ``heterogeneity`` ("do cell types respond differently").  A cell type whose effect the rows
        do not tell, or whose robust error would rest on one donor, has NaN and is left out of the
        mean and the joint tests, which say so.

    Raises
    ------
    CTMMError, FormulaError
        No such column or level; a number that the formula bends, without `values`.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> res = ctmm.fit("expr ~ C(celltype) * sex", random="batch", data=df)
    >>> found = res.effects("sex")
    >>> found.table.loc["day3", ["estimate", "df"]].round(2).to_dict()
    {'estimate': 0.04, 'df': 19.35}
    >>> print(found.heterogeneity)
    effect of sex: wald (robust)
      null hypothesis: the effect of sex is the same in all cell types
      F(3, 23.3801) = 0.8337, p = 0.4889
    """
    asked = differences(res.design, name, values, at)
    groups = res.design.frame[name]
    several = levels_of(res.design, name) or groups.nunique() == 2  # as by= takes numbers
    return effects_of(res, asked, covariance, alpha, groups if several else None)


def effects_of(
    res: Record,
    asked: Differences,
    covariance: Covariance = None,
    alpha: float = 0.05,
    groups: pd.Series | None = None,
) -> Effects:
    """The same of rows that are known; `groups` are the levels of the rows of the fit."""
    errors = errors_of_effects(res, covariance)
    S = len(asked.steps)
    found = test_differences(res.numbers, errors, asked, asked.parts)
    others = testable(res.numbers, errors, asked)
    rows = asked.rows.reshape(-1, asked.rows.shape[2])
    index: pd.Index = pd.Index(asked.celltypes, name="celltype", dtype=object)
    if S > 1:
        keys = [asked.comparisons, asked.celltypes]
        index = pd.MultiIndex.from_product(keys, names=["comparison", "celltype"])
    ends = ["_mean"] if S == 1 else [f"_mean[{step}]" for step in asked.steps]
    means = np.array([others.parts[end] for end in ends])
    steps = pd.Index(asked.comparisons, name="comparison", dtype=object)
    return Effects(
        name=asked.name,
        table=effect_table(res, errors, rows, index, alpha),
        mean=effect_table(res, errors, means, steps, alpha),
        omnibus=replace(found, parts={}),
        heterogeneity=found.parts["_heterogeneity"],
        mean_test=found.parts["_mean"],
        by_celltype={c: found.parts[f"[{c}]"] for c in asked.celltypes},
        at=asked.at,
        method=errors.title.replace("wald", "errors"),
        notes=(
            *(f"{name}: {why}" for name, why in others.missing.items()),
            *unlike(res, asked.name, groups, errors),
        ),
    )


def unlike(res: Record, name: str, groups: pd.Series | None, errors: Errors) -> list[str]:
    """What to say where groups of donors differ in their variance: one note, or none."""
    design = res.design
    if groups is None or design.crossing is not None:
        return []
    texts = pd.Series([label(value) for value in groups], dtype=object)
    of_donor = pd.Series(design.donor_codes).groupby(texts).nunique()
    if len(of_donor) < 2 or of_donor.sum() > len(design.donors):  # several levels in one donor
        return []
    ordered = dict.fromkeys(map(label, groups.cat.categories)) if hasattr(groups, "cat") else {}
    crossing = Crossing("by", name, tuple(dict.fromkeys([*ordered, *of_donor.index])))
    crossing = crossing._replace(levels=tuple(g for g in crossing.levels if g in of_donor))
    own = replace(design, crossing=crossing, loads=loads_of(crossing, texts))
    try:
        structure = cross(res.structure_, crossing, own.effects)
        model = own.model(structure).unrelated
        shared = group_design(model, structure)
        test = group_test(model, shared, design.celltypes)
    except (CTMMError, np.linalg.LinAlgError):
        return []
    p = math.exp(test.combined[OVERALL])
    if not p < _UNLIKE:
        return []
    best = int(np.nanargmin(test.chosen[OVERALL]))
    level = shared.levels[best]
    others = [g for g in crossing.levels if g != level]
    more = "more" if test.tested[OVERALL][best].statistic > 0 else "less"
    than = others[0] if len(others) == 1 else "the others"
    then = "errors take them for alike and may be too small; by={0!r} fits the variances of each"
    if errors.name in (ROBUST, JACKKNIFE):
        also = "" if design.kinship else ", and by={0!r} has the variances of each"
        then = f"errors are robust to it{also}"
    return [
        f"donors of {level} vary {more} than those of {than} (test of groups, p = {p:.2g}): "
        + then.format(name)
    ]
