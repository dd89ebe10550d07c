"""The estimators by name; each maps (model, method, domain) to an Estimate."""

from __future__ import annotations

from collections.abc import Callable

from ..arguments import choose
from . import he, likelihood, related_likelihood, related_moments, robust
from .domain import Domain
from .estimate import Estimate
from .model import Model


def _by_likelihood(model: Model, method: str, domain: Domain) -> Estimate:
    """By sums over blocks of donors, which a kinship joins."""
    return (related_likelihood if model.kinship else likelihood).fit(model, method, domain)


def _robust(model: Model, method: str, domain: Domain) -> Estimate:
    """By independent units, which a kinship leaves none of."""
    return (related_moments if model.kinship else robust).fit(model, method, domain)


ESTIMATORS: dict[str, Callable[[Model, str, Domain], Estimate]] = {
    "ml": _by_likelihood,
    "reml": _by_likelihood,
    "he": he.fit,
    "robust": _robust,
}


def estimate(model: Model, method: str = "reml", domain: Domain | None = None) -> Estimate:
    """Fit `model`.

    Parameters
    ----------
    model : Model
    method : "ml", "reml", "he" or "robust"
    domain : Domain, optional

    Examples
    --------
    >>> import numpy as np
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (4, 1))
    >>> y = np.array([1.0, 1.2, -0.3, -0.1, 0.4, 0.9, -1.5, -1.0])
    >>> model = build_model(y, np.full(8, 0.1), H, H, np.repeat(np.arange(4), 2),
    ...                     np.ones((1, 2, 2)))
    >>> round(float(estimate(model, "he").theta[0]), 4)
    1.0208
    """
    return ESTIMATORS[choose("method", method, ESTIMATORS)](model, method, domain or Domain())
