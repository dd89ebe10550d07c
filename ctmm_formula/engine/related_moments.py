"""Noise-robust moments of related donors, weighted by pooled noise and by the kinship.

The equations of :mod:`ctmm_formula.engine.robust`, whose P here knows that donors are related:

    theta = F^-1 (q - h),  q_k = y'P Sigma_k P y,  F_kl = tr(P Sigma_k P Sigma_l),
                           h_k = tr(P Sigma_k P diag(nu))

They are unbiased at any weights, free in sign, and at the fixed point, were the noise the working
one, those of REML.  Weights are at the mean of the last ones and of the part of theta that is a
covariance: else they may alternate where a component is about 0.  Haseman and Elston's moments,
where they start, weigh all rows alike: a window of variants in linkage disequilibrium has few axes
that donors differ along much, which then are all that counts, so that the estimate is as skewed as
a chi-square of few degrees of freedom.

P is that of :mod:`ctmm_formula.engine.related_joined`, or where that is large (ORDERS in
:mod:`ctmm_formula.engine.related_likelihood`) and no pair is missing, of rotated donors
(:mod:`ctmm_formula.engine.related_spectral`).  Errors are 2 F^-1, by the covariance that weighs:
of the variances, for effects of variants drawn anew.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..errors import ConvergenceError
from . import he
from .blup import covariance_parts
from .domain import Domain
from .estimate import Convergence, Equations, Estimate
from .likelihood import centred, fixed_effects, response_scale
from .model import Model
from .noise import working_noise
from .related_joined import Joined
from .related_likelihood import is_rotated
from .related_spectral import Rotated

REWEIGHTINGS = 6
"""The last one as a rule moves theta by a twentieth of a standard error."""


def fit(
    model: Model,
    method: str = "robust",
    domain: Domain | None = None,
    start: np.ndarray | None = None,
) -> Estimate:
    """Weighted moments of one response, from Haseman and Elston's or from `start` (K,).

    Raises
    ------
    ConvergenceError
        The components cannot be told apart, or the kinship has too many levels.
    """
    del method, domain  # moments know no bounds
    scale = response_scale(model)
    own = centred(model, scale)
    theta = he.fit(own).theta if start is None else start / scale**2
    rotated = is_rotated(own, "robust")
    related = Rotated(own) if rotated else Joined(pooled_noise(own))
    weights = covariance_parts(own, theta)
    for _ in range(REWEIGHTINGS):
        before, found = theta, _equations(related, weights, own.nu)
        theta = np.linalg.solve(found.traces, found.right)
        weights = 0.5 * (weights + covariance_parts(own, theta))
    moved = math.sqrt(max(float((theta - before) @ found.traces @ (theta - before)) / 2.0, 0.0))
    beta, cov = fixed_effects(model, found.beta, found.low, scale, found.spread)
    return Estimate(
        method="robust",
        theta=theta * scale**2,
        beta=beta,
        cov_beta=cov,
        beta_by="gls",
        information=0.5 * found.traces / scale**4,
        observed=np.full_like(found.traces, math.nan),
        llf=math.nan,
        convergence=Convergence(
            converged=True,
            boundary=False,
            gradient_norm=moved,
            n_evaluations=REWEIGHTINGS,
            n_starts=1,
            message=f"closed form at fixed weights, made anew {REWEIGHTINGS} times; the last time "
            f"moved the components by {moved:.1g} standard errors"
            + ("; donors rotated, noise by its mean in each cell type" if rotated else ""),
        ),
    )


def pooled_noise(model: Model) -> Model:
    """The model with its working noise in the place of the measured."""
    noise = working_noise(model.nu, model.pooling, response_scale(model) ** 2)
    return model.with_response(model.y, noise)


def working(model: Model, estimate: Estimate) -> tuple[Model, Estimate]:
    """What weighed: the model with pooled noise, and the estimate's part that is a covariance."""
    theta = covariance_parts(model, estimate.theta)
    return pooled_noise(model), replace(estimate, theta=theta)


def _equations(related: Joined | Rotated, theta: np.ndarray, nu: np.ndarray) -> Equations:
    """The equations weighted at theta (K,)."""
    try:
        found = related.equations(theta, nu)
    except np.linalg.LinAlgError:
        found = None
    if found is None:
        raise ConvergenceError(
            "the covariance of the data is not positive definite: use method='he'"
        )
    return found
