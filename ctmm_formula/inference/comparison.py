"""Likelihood ratio tables of nested fits, with their AIC and BIC.

Fits by REML have comparable criteria only with the same fixed part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np

from ..engine.domain import Domain
from ..engine.model import Model, RandomComponent
from ..engine.related_likelihood import is_rotated
from ..errors import CTMMError
from ..structures import Structure
from .fit import Fit
from .testing import TestResult, likelihood_ratio

_SPAN = 1e-8  # relative to a column's length: what lies outside the other design's span


class Labelled(NamedTuple):
    """A fit with the words of messages: its own name, and those of its random effects."""

    label: str
    fit: Fit
    random_names: tuple[str, ...] = ()


def compare(fits: Iterable[Labelled]) -> list[dict[str, Any]]:
    """Likelihood ratio tests of nested fits in sequence, from the smallest to the largest.

    Parameters
    ----------
    fits : Labelled, two or more
        In any order: they are sorted by their numbers of parameters.

    Returns
    -------
    list of dict
        label, n_params, llf, aic, bic, and against the row before: df, statistic, pvalue, note.

    Raises
    ------
    CTMMError
        Fits of different data or methods, without a likelihood, by REML with different fixed
        parts, with the same number of parameters, or not nested.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> fits = []
    >>> for name in ("free", "hom"):
    ...     res = ctmm.fit("expr ~ C(celltype)", structure=name, method="reml",
    ...                    data=ctmm.load_example())
    ...     fits.append(Labelled(name, res.numbers))
    >>> [(row["label"], row["df"]) for row in compare(fits)]
    [('hom', nan), ('free', 4.0)]
    """
    ordered = sorted(fits, key=lambda one: one.fit.n_params)
    if len(ordered) < 2:
        raise CTMMError("a comparison needs at least two fits")
    pairs = list(pairwise(ordered))
    objections = (
        *(_not_comparable(one, ordered[0]) for one in ordered),
        *(_not_nested(small, large) for small, large in pairs),
    )
    objection = next(chain(*objections), None)
    if objection:
        raise objection
    rows = [_row(ordered[0], TestResult("the first has nothing before it"))]
    for small, large in pairs:
        inner, outer = small.fit, large.fit
        test = likelihood_ratio(
            inner.estimate.llf, outer.estimate.llf, outer.n_params - inner.n_params,
            note="; ".join(_doubts(small, large)),
        )  # fmt: skip
        stalled = [one.label for one in (small, large) if one.fit.trouble]
        if stalled:
            test = test.without(f"{' and '.join(stalled)} did not converge")
        rows.append(_row(large, test))
    return rows


def _row(one: Labelled, test: TestResult) -> dict[str, Any]:
    fit = one.fit
    row = {"label": one.label, "n_params": fit.n_params, "llf": fit.estimate.llf}
    row |= {"aic": fit.aic, "bic": fit.bic}
    return row | {key: getattr(test, key) for key in ("df", "statistic", "pvalue", "note")}


def _doubts(small: Labelled, large: Labelled) -> Iterator[str]:
    """What the edges and bounds of two nested fits do to chi2."""
    edges = [one.label for one in (small, large) if one.fit.on_edge]
    if edges:
        yield f"{' and '.join(edges)} on the edge of its domain: chi2 is approximate"
    inner, outer = small.fit, large.fit
    if inner.domain != outer.domain:
        yield f"fitted with different bounds ({_name(inner.domain)}, {_name(outer.domain)})"
    bounds = outer.domain.bounds
    more = outer.model.n_components - len(outer.model.basis) > (
        inner.model.n_components - len(inner.model.basis)
    )
    if (more and bounds != "noise") or null_on_bound(inner.structure, outer.structure, bounds):
        yield on_bound(bounds)


def _name(domain: Domain) -> str:
    floor = f" with noise_floor={domain.noise_floor:g}" if domain.bounds == "noise" else ""
    return f"{domain.bounds!r}{floor}"


def on_bound(bounds: str) -> str:
    """The note of a likelihood ratio whose null model lies on a bound.

    Self and Liang, J Am Stat Assoc 82:605 (1987): a mixture of chi2, half and half for one
    variance.
    """
    return (
        f"the null lies on a bound of the variance components (bounds={bounds!r}), where chi2 "
        "gives p values that are too large (twice, for one variance)"
    )


def null_on_bound(small: Structure, large: Structure, bounds: str) -> bool:
    """Whether covariances of structure `small` are singular where those of `large` need not be.

    "psd" bounds A, "nonnegative" bounds V, and under "noise" both may be negative.
    """

    def rank(structure: Structure) -> int:
        used = structure.basis if bounds == "psd" else structure.basis[structure.specific]
        return int(np.linalg.matrix_rank((used @ used.transpose(0, 2, 1)).sum(axis=0)))

    return bounds != "noise" and rank(small) < rank(large)


def _not_comparable(one: Labelled, first: Labelled) -> Iterator[CTMMError]:
    """Objections to a comparison of two fits: likelihoods, or rows and all that is in them."""
    method, other = one.fit.estimate.method, first.fit.estimate.method
    a, b = one.fit.model, first.fit.model
    if not one.fit.has_likelihood:
        yield CTMMError(
            f"{one.label!r} was fitted by {method}, which has no likelihood to compare: "
            "fit it by reml or ml"
        )
    if method != other:
        yield CTMMError(
            f"{one.label!r} was fitted by {method} and {first.label!r} by {other}: their "
            "likelihoods are not comparable, fit all by the same method"
        )
    elif one.fit.has_likelihood and is_rotated(a) != is_rotated(b):
        yield CTMMError(
            f"the likelihood of {(one if is_rotated(a) else first).label!r} is that of rotated "
            "donors, with the noise at its mean in each cell type, the other's is exact: they are "
            "not comparable, see test_heritability()"
        )
    if not all(map(np.array_equal, _data(a), _data(b))):
        yield CTMMError(
            f"{one.label!r} and {first.label!r} were fitted to different data ({a.nobs} and "
            f"{b.nobs} rows; response, noise, donors and cell types must be the same): fit both "
            "to one table, without the rows that either has to drop"
        )


def _used(model: Model, *columns: np.ndarray) -> list[np.ndarray]:
    """These columns of the rows in use, in the caller's order."""
    rows = model.unsort(model.active_rows)
    return [model.unsort(values)[rows] for values in columns]


def _data(model: Model) -> list[np.ndarray]:
    """Which rows are in use, and their response, noise, cell types and donors."""
    donors = model.donors[model.row_donor]
    return [model.unsort(model.active_rows), *_used(model, model.y, model.nu, model.types, donors)]


def _not_nested(small: Labelled, large: Labelled) -> Iterator[CTMMError]:
    """Objections to `small` as a special case of `large`."""
    inner, outer = small.fit, large.fit
    pair = f"{small.label!r} and {large.label!r}"
    if inner.n_params == outer.n_params:
        yield CTMMError(
            f"{pair} have the same number of parameters ({inner.n_params}), so neither is a "
            "special case of the other: compare their aic or bic"
        )
    inside, outside = _spans(outer.model, inner.model), _spans(inner.model, outer.model)
    if inner.estimate.method == "reml" and not (inside and outside):
        yield CTMMError(
            f"{pair} have different fixed parts, whose restricted likelihoods are not comparable: "
            "fit both with method='ml'"
        )
    if not inside:
        yield CTMMError(
            f"the fixed part of {small.label!r} is no special case of that of {large.label!r}: "
            "compare their aic or bic"
        )
    if not outer.structure.contains(inner.structure):
        yield CTMMError(
            f"structure {inner.structure.name} of {small.label!r} is no special case of "
            f"{outer.structure.name} of {large.label!r}: compare their aic or bic"
        )
    if _lacks_kinship(inner.model, outer.model):
        yield CTMMError(
            f"{large.label!r} lacks a kinship of {small.label!r}, or its structure: the models are "
            "not nested, compare their aic or bic"
        )
    missing = _missing_random(small, outer.model)
    if missing:
        yield CTMMError(
            f"{large.label!r} lacks the random effect {', '.join(missing)} of {small.label!r}: "
            "the models are not nested, compare their aic or bic"
        )


def _lacks_kinship(small: Model, large: Model) -> bool:
    """Whether `large` has no term for some kinship of `small`, with all of its basis matrices."""
    return not all(
        any(
            np.allclose(one.kernel.whole, other.kernel.whole) and _inside(one.basis, other.basis)
            for other in large.kinship
        )
        for one in small.kinship
    )


def _inside(small: np.ndarray, large: np.ndarray) -> bool:
    """Whether matrices (k, C, C) are combinations of others."""
    columns = large.reshape(len(large), -1).T
    own = small.reshape(len(small), -1).T
    apart = own - columns @ np.linalg.lstsq(columns, own)[0]
    return bool(np.abs(apart).max() < 1e-9)


def _spans(large: Model, small: Model) -> bool:
    """Whether the fixed part of `large` has every column of that of `small` in its span."""
    (X,), (Y,) = _used(large, large.Q), _used(small, small.Q)
    Q = np.linalg.qr(X)[0]
    outside = np.linalg.norm(Y - Q @ (Q.T @ Y), axis=0)
    return bool((outside <= _SPAN * np.linalg.norm(Y, axis=0)).all())


def _missing_random(small: Labelled, large: Model) -> list[str]:
    """Random effects of `small` that `large` has not, by what they are and not by their names."""
    theirs = Counter(_signature(large, component) for component in large.random)
    own, missing = small.fit.model.random, []
    names = small.random_names or [f"{k + 1}" for k in range(len(own))]
    for name, component in zip(names, own, strict=True):
        signature = _signature(small.fit.model, component)
        theirs[signature] -= 1
        if theirs[signature] < 0:
            missing.append(name)
    return missing


def _signature(model: Model, component: RandomComponent) -> tuple[bytes, bytes]:
    """Weights and partition of the rows into levels, whatever the levels are called."""
    values = model.unsort(component.values)
    codes = model.unsort(component.codes)[values != 0.0]
    _, first, level = np.unique(codes, return_index=True, return_inverse=True)
    return values.tobytes(), first[level].tobytes()
