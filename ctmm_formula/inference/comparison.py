"""Likelihood ratio tables of nested fits, with their AIC and BIC.

Fits by REML have comparable criteria only with the same fixed part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..engine.domain import Domain
from ..engine.model import Model, RandomComponent
from ..errors import CTMMError
from ..structures import Structure
from .fit import Fit
from .testing import likelihood_ratio

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
    >>> from ctmm_formula.engine.domain import Domain
    >>> from ctmm_formula.engine.estimators import estimate
    >>> from ctmm_formula.engine.model import build_model
    >>> from ctmm_formula.structures import resolve
    >>> y = np.random.default_rng(1).normal(size=80)
    >>> H, donor = np.tile(np.eye(2), (40, 1)), np.repeat(np.arange(40), 2)
    >>> fits = []
    >>> for name in ("free", "hom"):
    ...     structure = resolve(name, ["T", "B"])
    ...     model = build_model(y, np.full(80, 0.1), H, H, donor, structure.basis)
    ...     fit = Fit(model, structure, Domain(), estimate(model), np.eye(2))
    ...     fits.append(Labelled(name, fit))
    >>> [(row["label"], row["df"]) for row in compare(fits)]
    [('hom', nan), ('free', 2.0)]
    """
    ordered = sorted(fits, key=lambda one: one.fit.n_params)
    if len(ordered) < 2:
        raise CTMMError("a comparison needs at least two fits")
    for one in ordered:
        _check_likelihood(one, ordered[0])
        _check_data(one, ordered[0])
    for small, large in pairwise(ordered):
        _check_nested(small, large)
    rows = [_row(ordered[0])]
    for small, large in pairwise(ordered):
        test = likelihood_ratio(
            small.fit.estimate.llf, large.fit.estimate.llf,
            large.fit.n_params - small.fit.n_params,
            note="; ".join(filter(None, (_edge(small, large), _bounds(small, large)))),
        )  # fmt: skip
        stalled = [one.label for one in (small, large) if one.fit.trouble]
        if stalled:
            test = test.without(f"{' and '.join(stalled)} did not converge")
        numbers = {key: getattr(test, key) for key in ("df", "statistic", "pvalue", "note")}
        rows.append(_row(large) | numbers)
    return rows


def _row(one: Labelled) -> dict[str, Any]:
    fit = one.fit
    return {
        "label": one.label,
        "n_params": fit.n_params,
        "llf": fit.estimate.llf,
        "aic": fit.aic,
        "bic": fit.bic,
        "df": math.nan,
        "statistic": math.nan,
        "pvalue": math.nan,
        "note": "",
    }


def _edge(*fits: Labelled) -> str:
    labels = [one.label for one in fits if one.fit.on_edge]
    return (
        f"{' and '.join(labels)} on the edge of its domain: chi2 is approximate" if labels else ""
    )


def _bounds(small: Labelled, large: Labelled) -> str:
    """What the bounds of two nested fits do to chi2, or nothing."""
    inner, outer = small.fit, large.fit
    notes = []
    if inner.domain != outer.domain:
        notes.append(f"fitted with different bounds ({_name(inner.domain)}, {_name(outer.domain)})")
    bounds = outer.domain.bounds
    more = len(outer.model.random) > len(inner.model.random)
    if (more and bounds != "noise") or null_on_bound(inner.structure, outer.structure, bounds):
        notes.append(on_bound(bounds))
    return "; ".join(notes)


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
    if bounds == "noise":
        return False
    ranks = []
    for structure in (small, large):
        used = [
            B for k, B in enumerate(structure.basis) if bounds == "psd" or k != structure.shared
        ]
        reach = sum((B @ B.T for B in used), np.zeros((len(structure.celltypes),) * 2))
        ranks.append(np.linalg.matrix_rank(reach))
    return bool(ranks[0] < ranks[1])


def _check_likelihood(one: Labelled, first: Labelled) -> None:
    method, other = one.fit.estimate.method, first.fit.estimate.method
    if not one.fit.has_likelihood:
        raise CTMMError(
            f"{one.label!r} was fitted by {method}, which has no likelihood to compare: "
            "fit it by reml or ml"
        )
    if method != other:
        raise CTMMError(
            f"{one.label!r} was fitted by {method} and {first.label!r} by {other}: their "
            "likelihoods are not comparable, fit all by the same method"
        )


def _rows_of(model: Model) -> np.ndarray:
    """Rows in use, in the caller's order."""
    return model.unsort(model.active_rows)


def _check_data(one: Labelled, first: Labelled) -> None:
    """Same rows with the same response, noise, cell types and donors."""
    a, b = one.fit.model, first.fit.model
    same = len(a.y) == len(b.y) and np.array_equal(_rows_of(a), _rows_of(b))
    if same:
        rows = _rows_of(a)
        same = all(
            np.array_equal(a.unsort(left)[rows], b.unsort(right)[rows])
            for left, right in (
                (a.y, b.y),
                (a.nu, b.nu),
                (a.H, b.H),
                (a.donors[a.row_donor], b.donors[b.row_donor]),
            )
        )
    if not same:
        raise CTMMError(
            f"{one.label!r} and {first.label!r} were fitted to different data ({a.nobs} and "
            f"{b.nobs} rows; response, noise, donors and cell types must be the same): fit both "
            "to one table, without the rows that either has to drop"
        )


def _check_nested(small: Labelled, large: Labelled) -> None:
    inner, outer = small.fit, large.fit
    pair = f"{small.label!r} and {large.label!r}"
    if inner.n_params == outer.n_params:
        raise CTMMError(
            f"{pair} have the same number of parameters ({inner.n_params}), so neither is a "
            "special case of the other: compare their aic or bic"
        )
    inside, outside = _spans(outer.model, inner.model), _spans(inner.model, outer.model)
    if inner.estimate.method == "reml" and not (inside and outside):
        raise CTMMError(
            f"{pair} have different fixed parts, whose restricted likelihoods are not comparable: "
            "fit both with method='ml'"
        )
    if not inside:
        raise CTMMError(
            f"the fixed part of {small.label!r} is no special case of that of {large.label!r}: "
            "compare their aic or bic"
        )
    if inner.structure.celltypes != outer.structure.celltypes or not outer.structure.contains(
        inner.structure
    ):
        raise CTMMError(
            f"structure {inner.structure.name} of {small.label!r} is no special case of "
            f"{outer.structure.name} of {large.label!r}: compare their aic or bic"
        )
    missing = _missing_random(small, outer.model)
    if missing:
        raise CTMMError(
            f"{large.label!r} lacks the random effect {', '.join(missing)} of {small.label!r}: "
            "the models are not nested, compare their aic or bic"
        )


def _spans(large: Model, small: Model) -> bool:
    """Whether the fixed part of `large` has every column of that of `small` in its span."""
    rows = _rows_of(large)
    X, Y = (model.unsort(model.Q)[rows] for model in (large, small))
    Q = np.linalg.qr(X)[0]
    length = np.linalg.norm(Y, axis=0)
    return bool((np.linalg.norm(Y - Q @ (Q.T @ Y), axis=0) <= _SPAN * length).all())


def _missing_random(small: Labelled, large: Model) -> list[str]:
    """Random effects of `small` that `large` has not, by what they are and not by their names."""
    theirs = [_signature(large, component) for component in large.random]
    missing = []
    own = small.fit.model.random
    names = small.random_names or tuple(f"{k + 1}" for k in range(len(own)))
    for name, component in zip(names, own, strict=True):
        signature = _signature(small.fit.model, component)
        if signature in theirs:
            theirs.remove(signature)
        else:
            missing.append(name)
    return missing


def _signature(model: Model, component: RandomComponent) -> tuple[bytes, bytes]:
    """Weights and partition of the rows into levels, whatever the levels are called."""
    values = model.unsort(component.values)
    codes = model.unsort(component.codes)[values != 0.0]
    _, first, level = np.unique(codes, return_index=True, return_inverse=True)
    return values.tobytes(), first[level].tobytes()
