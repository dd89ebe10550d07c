"""Effects of one variable on the mean of every cell type, and what is asked of them together.

With d_sc = L_sc b the effect of step s of the variable in cell type c,

    all        d_sc = 0 for all s and c
    alike      d_sc = d_s1 for all s and c: cell types respond in the same way
    mean       sum_c d_sc / C = 0 for all s
    type c     d_sc = 0 for all s

are F tests on as many degrees of freedom as their rows are independent, by whatever errors are
given; one row by itself is a t test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..distributions import log_t_tail, standard_errors, t_tail
from ..errors import CTMMError
from .clustered import Clustered
from .fit import Errors, Fit
from .testing import TestResult, wald

ALIKE = "the formula gives all cell types the same effect"
_DEPENDENT = 1e-10  # singular value of rows in units of their columns, next to the largest


@dataclass(frozen=True, eq=False)
class Differences:
    """Differences of means when one variable changes, as rows L (L b is the effect).

    S steps, C cell types, p fixed effects.

    Attributes
    ----------
    name : str
        The variable.
    reference : str; steps : tuple of str, length S
        Values that are compared, each step with the reference; of a slope "" and its unit.
    celltypes : tuple of str, length C
    rows : ndarray, shape (S, C, p)
        NaN where the data do not tell the effect.
    missing : mapping
        Cell type -> why rows of it are NaN.
    at : str
        What other variables are held at, where that matters.
    """

    name: str
    reference: str
    steps: tuple[str, ...]
    celltypes: tuple[str, ...]
    rows: np.ndarray
    missing: Mapping[str, str] = field(default_factory=dict)
    at: str = ""

    @property
    def comparisons(self) -> tuple[str, ...]:
        """``"case - control"`` for every step; the variable itself for a slope."""
        return tuple(f"{s} - {self.reference}" if self.reference else s for s in self.steps)

    @cached_property
    def there(self) -> np.ndarray:
        """Effects that can be known, (S, C)."""
        return np.isfinite(self.rows).all(axis=2)

    @cached_property
    def common(self) -> bool:
        """Whether the formula gives all cell types the same effects."""
        return not len(self.parts["_heterogeneity"])

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Hypotheses by the end of their names: rows (q, p), or one row (p,) for a t test."""
        rows, there = self.rows, self.there
        p, several = rows.shape[2], len(self.steps) > 1
        none = np.full(p, math.nan)
        mean = np.array(
            [
                own[ok].mean(axis=0) if ok.any() else none
                for own, ok in zip(rows, there, strict=True)
            ]
        )
        unlike = [
            own[ok][:-1] - own[ok][-1] for own, ok in zip(rows, there, strict=True) if ok.any()
        ]
        out = {
            "": independent(rows[there].reshape(-1, p)),
            "_heterogeneity": independent(np.concatenate([np.zeros((0, p)), *unlike])),
        }
        if several:
            out["_mean"] = independent(mean[np.isfinite(mean).all(axis=1)])
            out |= {f"_mean[{s}]": row for s, row in zip(self.steps, mean, strict=True)}
            for c, name in enumerate(self.celltypes):
                out[f"[{name}]"] = independent(rows[there[:, c], c])
        else:
            out["_mean"] = mean[0]
        for s, step in enumerate(self.steps):
            for name, row in zip(self.celltypes, rows[s], strict=True):
                end = f"[{step},{name}]" if several else f"[{name}]"
                if end in out:
                    raise CTMMError(
                        f"{self.name + end!r} would be the effect of level {step!r} in cell type "
                        f"{name!r} and another one: rename levels or cell types with commas"
                    )
                out[end] = row
        return out

    def without(self, lost: Mapping[str, str]) -> Differences:
        """The same of the other cell types; those that are lost are missing, each for a reason."""
        gone = np.array([name in lost for name in self.celltypes])
        rows = np.where(gone[:, None], math.nan, self.rows)
        return replace(self, rows=rows, missing={**self.missing, **lost})

    def ends_of(self, celltype: str) -> list[str]:
        """Ends of the names of the parts that are about one cell type."""
        return [f"[{celltype}]", *(f"[{step},{celltype}]" for step in self.steps)]

    def reason(self, end: str) -> str:
        """Why a part of that name has no rows."""
        named = [why for name, why in self.missing.items() if f"{name}]" in end]
        if named or end != "_heterogeneity":
            return "; ".join(named or self.missing.values())
        return ALIKE if len(self.celltypes) > 1 else "there is one cell type"

    def null(self, end: str) -> str:
        """The hypothesis of a part in words."""
        of = f"effect of {self.name}"
        if end == "":
            return f"no {of} in any cell type"
        if end == "_heterogeneity":
            return f"the {of} is the same in all cell types"
        if end.startswith("_mean"):
            return f"the mean {of} over cell types is 0{_at(end[5:])}"
        return f"no {of}{_at(end)}"

    @cached_property
    def own(self) -> dict[str, np.ndarray]:
        """The parts that a scan has columns for: without those that all types share."""
        kept = self.parts
        if self.common:
            kept = {k: v for k, v in kept.items() if k == "" or k.startswith("_mean")}
        return kept


def independent(L: np.ndarray) -> np.ndarray:
    """Rows (r, p) of full rank that say what rows L (q, p) say; L itself where it has it.

    >>> independent(np.array([[1.0, 0.0], [2.0, 0.0]])).round(6).tolist()
    [[2.0, 0.0]]
    """
    if not len(L):
        return L
    largest = np.abs(L).max(axis=0)
    unit = np.where(largest > 0.0, largest, 1.0)
    _, size, axes = np.linalg.svd(L / unit, full_matrices=False)
    rank = int((size > _DEPENDENT * max(size[0], 1e-300)).sum())
    if rank == len(L):
        return L
    lead = axes[:rank] * unit
    return lead * np.sign(lead[np.arange(rank), np.abs(lead / unit).argmax(axis=1)])[:, None]


def test_differences(
    fit: Fit, errors: Errors, asked: Differences, parts: Mapping[str, np.ndarray] | None = None
) -> TestResult:
    """All effects are 0; ``parts`` has the other questions by the end of their names.

    Where effects of some cell types have no errors, questions of several are those of the others.

    Parameters
    ----------
    fit : Fit; errors : Errors
        Of fixed effects.
    asked : Differences
    parts : mapping, optional
        By default ``asked.own``.
    """
    parts = asked.own if parts is None else parts
    test = _test(fit, errors, asked, parts)
    others = testable(fit, errors, asked) if math.isnan(test.pvalue) else asked
    if others is asked:
        return test
    rest = _test(fit, errors, others, {end: others.parts[end] for end in parts})
    own = [end for name in others.missing for end in asked.ends_of(name) if end in parts]
    return replace(rest, parts={**rest.parts, **{end: test.parts[end] for end in own}})


def testable(fit: Fit, errors: Errors, asked: Differences) -> Differences:
    """The same without cell types whose effects have no robust errors, if others have."""
    if not isinstance(errors.own, Clustered):
        return asked
    variance = np.zeros(asked.there.shape)
    variance[asked.there] = errors.variances(asked.rows[asked.there])
    gone = np.isnan(variance)
    if not gone.any() or not (asked.there & ~gone.any(axis=0)).any():
        return asked
    lost = {}
    for c in np.flatnonzero(gone.any(axis=0)):
        row = asked.rows[int(gone[:, c].argmax()), c]
        lost[asked.celltypes[c]] = jointly(fit, errors, row[None]).note
    return asked.without(lost)


def _test(
    fit: Fit, errors: Errors, asked: Differences, parts: Mapping[str, np.ndarray]
) -> TestResult:
    missing = "; ".join(f"without {name}: {why}" for name, why in asked.missing.items())
    found = {
        end: jointly(fit, errors, L, note=missing, reason=asked.reason(end))
        for end, L in parts.items()
        if L.ndim > 1
    }
    singles = [end for end in parts if end not in found]
    rows = np.array([parts[end] for end in singles]).reshape(len(singles), asked.rows.shape[2])
    reasons = [asked.reason(end) for end in singles]
    found |= dict(zip(singles, each(fit, errors, rows, reasons), strict=True))
    name = f"effect of {asked.name}"
    named = {end: replace(found[end], name=name, null=asked.null(end)) for end in parts}
    if missing:  # a mean is that of the others
        of_means = {end: one for end, one in named.items() if end.startswith("_mean")}
        named |= {end: replace(one, note=one.note or missing) for end, one in of_means.items()}
    main = named.pop("")
    return replace(main, parts=named)


def _at(end: str) -> str:
    return f" in {end[1:-1]}" if end else ""


def jointly(
    fit: Fit, errors: Errors, L: np.ndarray, *, note: str = "", reason: str = ""
) -> TestResult:
    """F test of L b = 0 (q, p) by the errors given; without rows none, for a reason."""
    if not len(L):
        return TestResult("", "", errors.title, distribution="F").without(reason)
    return linear(fit, errors, padded(L, fit), note=note)


def padded(L: np.ndarray, fit: Fit) -> np.ndarray:
    """Rows (q, p) of the fixed effects as rows (q, p + K) of all parameters."""
    out = np.zeros((len(L), fit.n_params))
    out[:, : fit.n_fixed] = L
    return out


def linear(
    fit: Fit,
    errors: Errors,
    L: np.ndarray,
    rhs: np.ndarray | float = 0.0,
    *,
    null: str = "",
    note: str = "",
) -> TestResult:
    """F test of L t = rhs (q, p + K) by the errors given, of all parameters."""
    test = wald(
        errors.estimates(fit), errors.given, L, errors.df_resid, rhs=rhs, method=errors.title,
        groups=errors.groups, law=errors.law(L, rhs), null=null, note=note,
    )  # fmt: skip
    stalled = fit.trouble and L[:, fit.n_fixed :].any()
    return test.without(fit.trouble) if stalled else test


def each(
    fit: Fit,
    errors: Errors,
    L: np.ndarray,
    reasons: Sequence[str],
    null: np.ndarray | float = 0.0,
) -> list[TestResult]:
    """Two-sided t tests of rows L b = null (q, p), one by one; NaN where a row is, for a reason."""
    known = np.isfinite(L).all(axis=1)
    value, se, df, t = np.full((4, len(L)), math.nan)
    if known.any():
        own, away = L[known], np.broadcast_to(null, len(L))[known]
        value[known] = own @ errors.estimates(fit)[: fit.n_fixed]
        with np.errstate(invalid="ignore", divide="ignore"):
            if isinstance(errors.own, Clustered):
                se[known], df[known], t[known] = errors.own.each(own, away)
            else:
                every = padded(own, fit)
                se[known] = standard_errors(errors.variances(own))
                df[known] = errors.df(every)
                t[known] = (value[known] - away) / se[known]
    p = 2.0 * t_tail(np.abs(t), np.where(df > 0, df, math.nan))
    out = []
    for k, row in enumerate(L):
        log = math.nan  # is taken of p, but where that is too small
        if p[k] == 0.0:
            log = math.log(2.0) + log_t_tail(abs(float(t[k])), float(df[k]))
        test = TestResult(
            "", "", errors.title, float(t[k]), float(df[k]), float(p[k]), "t", log_pvalue=log,
            estimate=float(value[k]), std_error=float(se[k]),
        )  # fmt: skip
        if math.isnan(test.pvalue):
            why = (
                jointly(fit, errors, row[None]).note if known[k] else (reasons or [""] * len(L))[k]
            )
            test = test.without(why or "it has no variance")
        out.append(test)
    return out
