"""Likelihood ratio tables of nested fits, AIC and BIC.

AIC = -2 llf + 2 k and BIC = -2 llf + k log(n) with k the number of all fixed effects and variance
components.  n is the number of rows for ML and rows less fixed effects for REML, whose likelihood
is a density of n - p contrasts: so do metafor and nlme, and R's generic ``BIC``.  Fits by REML
have comparable criteria only with the same fixed part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..engine.likelihood import LIKELIHOODS
from ..engine.model import Model, RandomComponent
from ..errors import CTMMError
from ..structures import Structure
from .testing import likelihood_ratio

_SPAN = 1e-8  # relative to a column's length: what lies outside the other design's span


def n_params(model: Model) -> int:
    """Number of fixed effects and variance components."""
    return model.X.shape[1] + model.n_components


def aic(llf: float, n_params: int) -> float:
    """Akaike's criterion, -2 llf + 2 k.

    >>> aic(-100.0, 3)
    206.0
    """
    return -2.0 * llf + 2.0 * n_params


def bic(llf: float, n_params: int, nobs: int, n_fixed: int, method: str) -> float:
    """Bayesian criterion, -2 llf + k log(n); n = nobs for ML, nobs - n_fixed for REML.

    >>> round(bic(-100.0, 3, 60, 2, "reml"), 3)
    212.181
    """
    n = nobs - n_fixed if method == "reml" else nobs
    return -2.0 * llf + (n_params * math.log(n) if n > 0 else math.nan)


@dataclass(frozen=True)
class Fitted:
    """A fit as :func:`compare` sees it.

    Attributes
    ----------
    label : str
    model : Model; structure : Structure; estimate : Estimate
    random_names : tuple of str
        One per random component of the model.
    domain : Domain, optional
        On which it was fitted; without it nothing is said about bounds.
    """

    label: str
    model: Model
    structure: Structure
    estimate: Estimate
    random_names: tuple[str, ...] = ()
    domain: Domain | None = None

    @property
    def n_params(self) -> int:
        """Number of fixed effects and variance components."""
        return n_params(self.model)


def compare(fits: Iterable[Fitted]) -> list[dict[str, Any]]:
    """Likelihood ratio tests of nested fits in sequence, from the smallest to the largest.

    Parameters
    ----------
    fits : Fitted, two or more
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
    >>> from ctmm_formula.engine.estimators import estimate
    >>> from ctmm_formula.engine.model import build_model
    >>> from ctmm_formula.structures import resolve
    >>> y = np.random.default_rng(1).normal(size=80)
    >>> H, donor = np.tile(np.eye(2), (40, 1)), np.repeat(np.arange(40), 2)
    >>> fits = []
    >>> for name in ("free", "hom"):
    ...     structure = resolve(name, ["T", "B"])
    ...     model = build_model(y, np.full(80, 0.1), H, H, donor, structure.basis)
    ...     fits.append(Fitted(name, model, structure, estimate(model)))
    >>> [(row["label"], row["df"]) for row in compare(fits)]
    [('hom', nan), ('free', 2.0)]
    """
    ordered = sorted(fits, key=lambda fit: fit.n_params)
    if len(ordered) < 2:
        raise CTMMError("a comparison needs at least two fits")
    for fit in ordered:
        _check_likelihood(fit, ordered[0])
        _check_data(fit, ordered[0])
    for small, large in pairwise(ordered):
        _check_nested(small, large)
    rows = [_row(ordered[0])]
    for small, large in pairwise(ordered):
        test = likelihood_ratio(
            small.estimate.llf, large.estimate.llf, large.n_params - small.n_params,
            note="; ".join(filter(None, (_edge(small, large), _bounds(small, large)))),
        )  # fmt: skip
        stalled = [fit.label for fit in (small, large) if not fit.estimate.convergence.converged]
        if stalled:
            test = test.without(f"{' and '.join(stalled)} did not converge")
        numbers = {key: getattr(test, key) for key in ("df", "statistic", "pvalue", "note")}
        rows.append(_row(large) | numbers)
    return rows


def _row(fit: Fitted) -> dict[str, Any]:
    llf, k, model = fit.estimate.llf, fit.n_params, fit.model
    return {
        "label": fit.label,
        "n_params": k,
        "llf": llf,
        "aic": aic(llf, k),
        "bic": bic(llf, k, model.nobs, model.X.shape[1], fit.estimate.method),
        "df": math.nan,
        "statistic": math.nan,
        "pvalue": math.nan,
        "note": "",
    }


def _edge(*fits: Fitted) -> str:
    labels = [fit.label for fit in fits if fit.estimate.convergence.boundary]
    return f"{' and '.join(labels)} on the edge of its domain: chi2 is approximate" * bool(labels)


def _bounds(small: Fitted, large: Fitted) -> str:
    """What the bounds of two nested fits do to chi2, or nothing."""
    if small.domain is None or large.domain is None:
        return ""
    notes = []
    if small.domain != large.domain:
        notes.append(f"fitted with different bounds ({_name(small.domain)}, {_name(large.domain)})")
    bounds = large.domain.bounds
    more = len(large.model.random) > len(small.model.random)
    if (more and bounds != "noise") or null_on_bound(small.structure, large.structure, bounds):
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


def _check_likelihood(fit: Fitted, first: Fitted) -> None:
    method, other = fit.estimate.method, first.estimate.method
    if method not in LIKELIHOODS:
        raise CTMMError(
            f"{fit.label!r} was fitted by {method}, which has no likelihood to compare: "
            "fit it by reml or ml"
        )
    if method != other:
        raise CTMMError(
            f"{fit.label!r} was fitted by {method} and {first.label!r} by {other}: their "
            "likelihoods are not comparable, fit all by the same method"
        )


def _rows_of(fit: Fitted) -> np.ndarray:
    """Rows in use, in the caller's order."""
    return fit.model.unsort(fit.model.active_rows)


def _check_data(fit: Fitted, first: Fitted) -> None:
    """Same rows with the same response, noise, cell types and donors."""
    a, b = fit.model, first.model
    same = len(a.y) == len(b.y) and np.array_equal(_rows_of(fit), _rows_of(first))
    if same:
        rows = _rows_of(fit)
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
            f"{fit.label!r} and {first.label!r} were fitted to different data ({a.nobs} and "
            f"{b.nobs} rows; response, noise, donors and cell types must be the same): fit both "
            "to one table, without the rows that either has to drop"
        )


def _check_nested(small: Fitted, large: Fitted) -> None:
    pair = f"{small.label!r} and {large.label!r}"
    if small.n_params == large.n_params:
        raise CTMMError(
            f"{pair} have the same number of parameters ({small.n_params}), so neither is a "
            "special case of the other: compare their aic or bic"
        )
    inside, outside = _spans(large, small), _spans(small, large)
    if small.estimate.method == "reml" and not (inside and outside):
        raise CTMMError(
            f"{pair} have different fixed parts, whose restricted likelihoods are not comparable: "
            "fit both with method='ml'"
        )
    if not inside:
        raise CTMMError(
            f"the fixed part of {small.label!r} is no special case of that of {large.label!r}: "
            "compare their aic or bic"
        )
    if small.structure.celltypes != large.structure.celltypes or not large.structure.contains(
        small.structure
    ):
        raise CTMMError(
            f"structure {small.structure.name} of {small.label!r} is no special case of "
            f"{large.structure.name} of {large.label!r}: compare their aic or bic"
        )
    missing = _missing_random(small, large)
    if missing:
        raise CTMMError(
            f"{large.label!r} lacks the random effect {', '.join(missing)} of {small.label!r}: "
            "the models are not nested, compare their aic or bic"
        )


def _spans(large: Fitted, small: Fitted) -> bool:
    """Whether the fixed part of `large` has every column of that of `small` in its span."""
    rows = _rows_of(large)
    X, Y = (fit.model.unsort(fit.model.Q)[rows] for fit in (large, small))
    Q = np.linalg.qr(X)[0]
    length = np.linalg.norm(Y, axis=0)
    return bool((np.linalg.norm(Y - Q @ (Q.T @ Y), axis=0) <= _SPAN * length).all())


def _missing_random(small: Fitted, large: Fitted) -> list[str]:
    """Random effects of `small` that `large` has not, by what they are and not by their names."""
    theirs = [_signature(large.model, component) for component in large.model.random]
    missing = []
    names = small.random_names or tuple(f"{k + 1}" for k in range(len(small.model.random)))
    for name, component in zip(names, small.model.random, strict=True):
        signature = _signature(small.model, component)
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
