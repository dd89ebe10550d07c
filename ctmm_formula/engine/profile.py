"""Profile likelihood of one variance component: how far it can go for a drop in log-likelihood.

The profile at t is the maximum over the other components (and fixed effects) with theta_k = t.  It
is that of a problem whose bound is theta_k >= t, for t above the estimate, as a climb holds a
component on its bound while the likelihood pushes it out; below the estimate the component's sign
is turned.
"""

from __future__ import annotations

import math

import numpy as np

from .domain import Domain, constrain
from .estimate import Estimate
from .likelihood import centre, make_problem, response_scale
from .model import Model
from .optimize import INFEASIBLE, Problem, make_work
from .search import best_of

_ACCURACY = 1e-9  # of a limit, relative to its distance from the estimate
_DOUBLINGS = 60  # of the distance: what is not reached by then is infinite


def limits(
    model: Model, at: Estimate, domain: Domain, component: int, drop: float
) -> tuple[float, float]:
    """Least and largest value of a component whose profile is within `drop` of the maximum.

    Parameters
    ----------
    model : Model; at : Estimate, by "ml" or "reml"; domain : Domain
    component : int
        Its number k.
    drop : float
        In log-likelihood; of an interval half a quantile of chi-squared with 1 df.

    Returns
    -------
    (float, float)
        The end of the domain where it comes first; inf where nothing does.

    Examples
    --------
    >>> from ctmm_formula.engine.estimators import estimate
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (4, 1))
    >>> y = np.array([1.0, 1.2, -0.3, -0.1, 0.4, 0.9, -1.5, -1.0])
    >>> model = build_model(y, np.full(8, 0.1), H, H, np.repeat(np.arange(4), 2),
    ...                     np.ones((1, 2, 2)))
    >>> low, high = limits(model, estimate(model, "ml"), Domain(), 0, 1.92)
    >>> round(low, 3), round(high, 2)
    (0.21, 4.78)
    """
    scale = response_scale(model)
    pr = make_problem(model, constrain(model, domain), at.method == "reml", scale)
    theta, middle = at.theta / scale**2, centre(model, scale)
    step = _deviation(at.information, component) / scale**2 * math.sqrt(2.0 * drop)
    if not step > 0.0:
        step = max(abs(float(theta[component])), float(middle[component]))
    low, high = (
        side * _Way(pr, component, side, theta, middle).end(step, drop) for side in (-1.0, 1.0)
    )
    return low * scale**2, high * scale**2


def _deviation(information: np.ndarray, k: int) -> float:
    """Standard error of a component by the information, NaN where it has none."""
    try:
        return math.sqrt(max(float(np.linalg.inv(information)[k, k]), 0.0))
    except np.linalg.LinAlgError:
        return math.nan


class _Way:
    """The profile from the estimate to one `side` of component `k`, which is turned upwards."""

    def __init__(
        self, pr: Problem, k: int, side: float, theta: np.ndarray, middle: np.ndarray
    ) -> None:
        turn = np.ones(len(theta))
        turn[k] = side
        self.k, self.problem, self.work = k, pr, make_work(pr)
        if side < 0.0:
            self.problem = pr._replace(S=turn[:, None] * pr.S, cS=turn[:, None] * pr.cS)
        self.theta, self.middle = turn * theta, turn * middle
        self.origin = float(self.theta[k])
        self.wall = -float(pr.lower[k]) if side < 0.0 else math.inf  # what t may not pass
        self.nearest = self.theta, 0.0  # the last profile found, and how far it is
        self.top = -math.inf
        self.top = -self.fall(0.0)

    def fall(self, distance: float) -> float:
        """How far the log-likelihood is below its maximum, inf where the domain has ended."""
        t = min(self.origin + distance, self.wall)
        lower = self.problem.lower.copy()
        lower[self.k] = t
        near, before = self.nearest
        ahead = near + (near - self.theta) * ((distance - before) / before if before else 0.0)
        starts = np.array([ahead, near, self.middle])
        starts[:, self.k] = t
        pr = self.problem._replace(lower=lower)
        end = best_of(pr, np.maximum(starts, lower), np.zeros(len(starts)), False, self.work)
        if end.status == INFEASIBLE:
            return math.inf
        self.nearest = end.theta, distance
        return (0.0 if self.top == -math.inf else self.top) - end.llf

    def end(self, step: float, drop: float) -> float:
        """Where the profile has fallen by `drop`, or the domain ends."""
        inside, outside = 0.0, math.inf
        most = self.wall - self.origin
        for _ in range(_DOUBLINGS):
            trial = min(step, most) if outside == math.inf else 0.5 * (inside + outside)
            fall = self.fall(trial)
            if fall <= drop:
                inside, step = trial, 2.0 * trial
                if trial == most:
                    return self.wall
            else:
                outside = trial
                if fall < math.inf:
                    break
            if outside < math.inf and outside - inside <= _ACCURACY * outside:
                return self.origin + inside  # the domain ends here
        if outside == math.inf:
            return math.inf

        from scipy.optimize import brentq  # not for a first fit to wait for

        def root(distance: float) -> float:  # nearly a line
            return math.sqrt(max(self.fall(distance), 0.0)) - math.sqrt(drop)

        return self.origin + float(brentq(root, inside, outside, xtol=_ACCURACY * outside))
