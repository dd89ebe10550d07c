"""The columns of a scan's table: names, order and kinds, known before the first gene is read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from operator import itemgetter

import numpy as np

from ..distributions import log_chi2_tail
from ..inference.group_score import of_type
from ..inference.testing import TestResult
from ..structures import Structure

KINDS: dict[str, tuple[type, object]] = {
    "text": (object, ""),
    "flag": (np.bool_, False),
    "count": (np.int64, 0),
    "number": (np.float64, float("nan")),
}
"""Kind of a column -> its type, and what stands there when a gene has none."""

BY_TYPE = "celltype"
"""The detail of a test that has a p value for every cell type."""

H2, SE_H2 = "h2", "se_h2"
"""Columns of heritabilities and of their standard errors."""

OF_WINDOW = {
    "n_snps": "count", "snps_constant": "count", "snps_rare": "count", "share_imputed": "number",
}  # fmt: skip
"""Columns of a gene's own window: variants in its kinship, those left out, missing genotypes."""

LOG = "log10_"
"""What the column of a p value's logarithm begins with."""

ADJUSTMENTS = {"bonferroni": "bonferroni", "bh": "fdr_bh"}
"""Suffix of an adjusted column -> method of statsmodels' multipletests."""

_NONE, _TEN = TestResult(""), math.log(10.0)
Row = dict[str, object]
Block = dict[str, np.ndarray]
"""Columns of some genes."""


def in_order(block: Block, genes: Sequence[str]) -> Block:
    """Columns of genes in this order."""
    place = {gene: k for k, gene in enumerate(block["gene"])}
    at = np.array([place[gene] for gene in genes], dtype=np.int64)
    return {name: values[at] for name, values in block.items()}


@dataclass(frozen=True)
class Layout:
    """What a scan has columns for.

    Attributes
    ----------
    celltypes, fixed : tuple of str
        Names of the cell types and of the fixed effects.
    structures : tuple of Structure
        The main one first.
    components : tuple of tuple of str
        Names of the variance components of each.
    tests : dict of str to tuple of str
        Tests, and the details of each: further p values, "celltype" for one of every type.
    errors : tuple of str
        Prefixes of standard errors: "se", "se_jackknife".
    ratios : tuple of (int, int)
        Nested pairs of structures compared by likelihood ratios, (small, large).
    one_step : bool
        Whether jackknives take one step, and how far that is from exact refits.
    parts : dict of str to dict of str to bool
        Tests with more columns -> the ends of the names of their parts, "" for the test itself,
        and whether a part is of one number, with an estimate.
    shares : tuple of str
        Parts of the variance of overall pseudobulk, if they are asked for.
    heritability : tuple of str
        Parts that have a heritability, where there are a kinship and errors of its components.
    genetic : tuple of (str, Structure)
        Kinships by name, with their structures between cell types.
    windows : bool
        Whether the first kinship is of every gene's own window.
    """

    celltypes: tuple[str, ...]
    fixed: tuple[str, ...]
    structures: tuple[Structure, ...]
    components: tuple[tuple[str, ...], ...]
    tests: dict[str, tuple[str, ...]]
    errors: tuple[str, ...]
    ratios: tuple[tuple[int, int], ...]
    one_step: bool = False
    parts: dict[str, dict[str, bool]] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    heritability: tuple[str, ...] = ()
    genetic: tuple[tuple[str, Structure], ...] = ()
    windows: bool = False

    def ratio_name(self, pair: tuple[int, int]) -> str:
        """``lrt[hom:free]``."""
        return f"lrt[{self.structures[pair[0]].name}:{self.structures[pair[1]].name}]"

    @cached_property
    def estimates(self) -> list[str]:
        """Columns of the estimates that have standard errors."""
        means = [f"mean[{name}]" for name in self.celltypes]
        return [*self.components[0], *means, *(f"b[{name}]" for name in self.fixed)]

    @cached_property
    def standard_errors(self) -> dict[str, list[str]]:
        """Columns of their standard errors, by prefix."""
        return {kind: [f"{kind}[{name}]" for name in self.estimates] for kind in self.errors}

    @property
    def tested(self) -> list[str]:
        """Columns of p values that are adjusted over genes."""
        names = [f"p_{test}{end}" for test in self.tests for end in self.parts.get(test, [""])]
        for test, details in self.tests.items():
            names += [f"p_{test}_{detail}" for detail in details if detail != BY_TYPE]
        return [*names, *(f"p_{self.ratio_name(pair)}" for pair in self.ratios)]

    def ends(self, test: str) -> list[str]:
        """Ends of the names of all p values of a test, "" for its own."""
        if test in self.parts:
            return list(self.parts[test])
        out = [""]
        for detail in self.tests[test]:
            by_type = [f"[{name}]" for name in self.celltypes]
            out += by_type if detail == BY_TYPE else [f"_{detail}"]
        return out

    def terms(self, test: str) -> dict[str, str]:
        """What the ends of the names of a test's p values say; all of them differ.

        A cell type that has the name of another question is ``"celltype mean"``.
        """
        ends = self.ends(test)
        questions = {term(end) for end in ends if not end.startswith("[")}
        return {
            end: of_type(term(end)) if end[:1] == "[" and term(end) in questions else term(end)
            for end in ends
        }

    def outcome(self, test: str, result: TestResult) -> Row:
        """Columns of a test: statistic and p value, of parts estimates and degrees of freedom."""
        parts = self.parts.get(test)
        out: Row = {}
        if parts is None:
            return dict(zip(self._outcomes[test], self._numbers(test, result), strict=True))
        for end, single in parts.items():
            part = result.parts.get(end, _NONE) if end else result
            df = part.df if isinstance(part.df, tuple) else (math.nan, part.df)
            name = f"{test}{end}"
            if single:
                out |= {f"estimate_{name}": part.estimate, f"se_{name}": part.std_error}
            out[f"stat_{name}"] = part.statistic
            out |= {f"df_{name}": df[1]} if single else {f"df1_{name}": df[0], f"df_{name}": df[1]}
            _put_p(out, f"p_{name}", part.pvalue, part.log_pvalue)
        return out

    @cached_property
    def _outcomes(self) -> dict[str, list[str]]:
        """Columns of the statistic of a test, and of all its p values and their logarithms."""
        names = {test: [f"p_{test}{end}" for end in self.ends(test)] for test in self.tests}
        return {
            test: [f"stat_{test}", *(log + name for name in own for log in ("", LOG))]
            for test, own in names.items()
        }

    def _numbers(self, test: str, result: TestResult) -> list[float]:
        """What stands there."""
        out = [result.statistic, result.pvalue, result.log_pvalue / _TEN]
        for detail in self.tests[test]:
            found = result.extra.get(detail, math.nan), result.log_details.get(detail, math.nan)
            if detail == BY_TYPE:
                none = dict.fromkeys(self.celltypes, math.nan)
                each, logs = (one if isinstance(one, Mapping) else none for one in found)
                for name in self.celltypes:
                    out += each[name], logs[name] / _TEN
            else:
                out += found[0], found[1] / _TEN
        return out

    def ratio(self, pair: tuple[int, int], statistic: float, df: float, pvalue: float) -> Row:
        """Columns of a likelihood ratio."""
        name = self.ratio_name(pair)
        log = log_chi2_tail(statistic, df) if pvalue == pvalue else math.nan
        out: Row = {f"stat_{name}": statistic}
        _put_p(out, f"p_{name}", pvalue, log)
        return out

    def kinds(self) -> dict[str, str]:
        """Name -> kind of every column before adjustment, in order."""
        return dict(self._columns())

    @property
    def clashes(self) -> list[str]:
        """Names that several columns would have, adjusted p values among them."""
        p_values = [f"{log}{name}" for name in self.tested for log in ("", LOG)]
        names = [name for name, _ in self._columns()]
        names += [f"{name}_{end}" for name in p_values for end in ADJUSTMENTS]
        return [name for name, count in Counter(names).items() if count > 1]

    def _columns(self) -> list[tuple[str, str]]:
        """Name and kind of every column before adjustment, in order."""
        out = [("gene", "text"), ("status", "text"), ("reason", "text")]
        out += [("n_obs", "count"), ("n_donors", "count")]
        out += OF_WINDOW.items() if self.windows else ()
        out += [("mean", "number"), ("zero_noise", "number")]
        out += [("converged", "flag"), ("boundary", "flag")]
        numbers = ["llf", *self.estimates]
        numbers += chain.from_iterable(self.standard_errors.values())
        numbers += [f"share[{name}]" for name in self.shares]
        numbers += [f"{what}[{name}]" for what in (H2, SE_H2) for name in self.heritability]
        if self.one_step:
            numbers.append("error_jackknife")
        for test in self.tests:
            numbers += self.outcome(test, _NONE)
        out += [(name, "number") for name in numbers]
        for structure, names in zip(self.structures[1:], self.components[1:], strict=True):
            out += [(f"{structure.name}.{name}", "flag") for name in ("converged", "boundary")]
            out += [(f"{structure.name}.{name}", "number") for name in ("llf", *names)]
        for pair in self.ratios:
            of_ratio = self.ratio(pair, math.nan, math.nan, math.nan)
            out += [(name, "number") for name in of_ratio]
        return out


def _put_p(out: Row, name: str, pvalue: float, log: float) -> None:
    """A p value and its logarithm to base 10."""
    out[name], out[LOG + name] = pvalue, log / _TEN


def term(end: str) -> str:
    """What the end of a test's name says.

    >>> [term(end) for end in ("", "_mean", "[T]", "_mean[mild]")]
    ['', 'mean', 'T', 'mean[mild]']
    """
    return end[1:-1] if end.startswith("[") else end.removeprefix("_")


def nested_pairs(structures: Sequence[Structure]) -> tuple[tuple[int, int], ...]:
    """For each structure the largest smaller one that it contains.

    >>> from ctmm_formula.structures import resolve
    >>> nested_pairs([resolve(name, ["T", "B", "NK"]) for name in ("free", "hom", "full")])
    ((1, 0), (0, 2))
    """
    size = [len(structure.labels) for structure in structures]
    order = sorted(range(len(size)), key=size.__getitem__)
    out = []
    for large in order:
        smaller = (small for small in order if size[small] < size[large])
        inside = [k for k in smaller if structures[large].contains(structures[k])]
        out += [(inside[-1], large)] if inside else []
    return tuple(out)


def stack(rows: Sequence[Row], kinds: dict[str, str]) -> Block:
    """Rows of genes as columns; what a row lacks is empty."""
    empty, take = {name: KINDS[kind][1] for name, kind in kinds.items()}, itemgetter(*kinds)
    columns = zip(*(take({**empty, **row}) for row in rows), strict=True) if rows else repeat(())
    return {
        name: np.array(column, dtype=KINDS[kind][0])
        for (name, kind), column in zip(kinds.items(), columns)  # noqa: B905  (no rows: no end)
    }
