"""Fixed effects of likelihood fits where donors are few: degrees of freedom, adjusted covariance.

L b - c over its standard errors is no normal variable, as the variance components in
Phi = (X'Sigma^-1 X)^-1 are estimates, with the covariance W = (expected information)^-1.  With
rows u of L that are orthonormal under Phi and M_k their derivatives u (dPhi / dtheta_k) u'
(:mod:`ctmm_formula.engine.variation`), everything depends on

    A1 = sum_kl W_kl tr(M_k) tr(M_l),   A2 = sum_kl W_kl tr(M_k M_l)

One row has 2 / A2 degrees of freedom (Satterthwaite).  F = d'(L Phi L')^-1 d / q has to first order
the mean 1 / (1 - A2/q) (Kenward and Roger 1997), which is that of an F on q and 2 q / A2: the
denominator here.  It is Satterthwaite's for one row and that of Fai and Cornelius (1996) where all
rows are alike, does not depend on how the hypotheses are written, and counts that the variances of
rows vary together.  Kenward and Roger put the adjusted covariance in the place of Phi and match
mean and variance by a scale and a denominator.

On the edge of the domain W is the covariance of components that move along it
(:func:`ctmm_formula.engine.domain.held`): one on a lower bound counts as known, and so does the
combination of several that gives a donor's covariance no more than the noise floor or, with bounds
"psd", no variance at all.  As if they were free they would vary more than they can, most of all
where there are few donors and truly no variance.  Tests of variance components have the degrees of
freedom of the fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..engine import related_likelihood
from ..engine.domain import Domain, held
from ..engine.estimate import Estimate
from ..engine.model import Model
from ..engine.related_likelihood import Moves
from ..engine.variation import Variation, variation
from ..errors import CTMMError
from .testing import Law, combined

_DEPENDENT = 1e-13  # smallest eigenvalue of L Phi L', next to the largest
_NOTHING = 1e-12  # eigenvalue of a scaled information that is singular
_PARALLEL = 1e-6  # singular value, next to the largest, of combinations of other directions
LEAST_DF = 1.0
"""Degrees of freedom below which there is no law: the variance is not known to within itself, and
intervals by t would end anywhere (at .2 some 1e7 standard errors away)."""
UNKNOWN = (
    "less than one degree of freedom is left (Satterthwaite's, where components on or near the "
    "edge decide its variance): covariance='jackknife' and method='robust' have others"
)
SINGULAR = "the information matrix of the variance components is singular"
NO_LAW = (
    "there is no F of Kenward and Roger for so many hypotheses at once: test fewer, or use "
    "covariance='robust'"
)
_DONORS = 2  # fewest for a hypothesis, below which that is said


def crowded(q: int, n: int, instead: str = "covariance='robust'") -> str:
    """What to say of an F test by the model of q hypotheses from n donors; "" where these do.

    >>> crowded(3, 6), crowded(3, 5)[:39]
    ('', '3 hypotheses from 5 donors: an F test b')
    """
    if n >= _DONORS * q:
        return ""
    return (
        f"{q} hypotheses from {n} donors: an F test by the model may find too much, {instead} "
        "does not"
    )


def _law(cov: np.ndarray, df: float, scale: float) -> Law:
    """The law by these degrees of freedom, or why they are none."""
    few = math.isnan(df) or df < LEAST_DF
    return Law(cov, math.nan, 1.0, UNKNOWN) if few else Law(cov, df, scale, "")


@dataclass(frozen=True, eq=False)
class Satterthwaite:
    """The model's covariance of all parameters, and the laws of their linear combinations.

    Attributes
    ----------
    model : Model; domain : Domain; estimate : Estimate
        A fit by ML or REML, or what weighed moments of related donors.
    by_model : ndarray, shape (p + K, p + K)
    df_resid : float
        Degrees of freedom of what involves variance components.
    """

    model: Model
    domain: Domain
    estimate: Estimate
    by_model: np.ndarray
    df_resid: float

    @property
    def cov(self) -> np.ndarray:
        """Covariance of (b, theta), (p + K, p + K)."""
        return self.by_model

    def df(self, L: np.ndarray) -> np.ndarray:
        """Degrees of freedom of every row of L (q, p + K) by itself, (q,).

        NaN without any, which is where fewer than :data:`LEAST_DF` come out.
        """
        p = len(L.T) - len(self.estimate.theta)
        out = np.full(len(L), float(self.df_resid))
        fixed = ~L[:, p:].any(axis=1)
        if fixed.any():
            out[fixed] = math.nan if self.reason else self._df(L[fixed, :p])
        return out

    def variances(self, L: np.ndarray) -> np.ndarray:
        """Variance of every row of L (q, p + K), or of L b (q, p), (q,)."""
        return combined(L, self.cov).diagonal()

    def law(self, L: np.ndarray, null: np.ndarray | float = 0.0) -> Law:
        """What F tests of L t = null (q, p + K) are referred to, the same for any `null`."""
        p, cov = len(L.T) - len(self.estimate.theta), combined(L, self.cov)
        if L[:, p:].any():
            return Law(cov, float(self.df_resid), 1.0, "")
        if self.reason:
            return Law(cov, math.nan, 1.0, self.reason)
        if len(L) == 1:
            return _law(cov, float(self._df(L[:, :p])[0]), 1.0)
        z = L[:, :p] @ self._at.root
        size, axes = np.linalg.eigh(z @ z.T)
        if not size[0] > _DEPENDENT * size[-1]:
            return Law(cov, math.inf, 1.0, "")  # the test itself says so
        rows = (axes / np.sqrt(size)).T @ z
        M = rows @ self._at.slopes @ rows.T
        A1 = float(np.square(np.trace(M, axis1=1, axis2=2)).sum())
        df, scale, why = self._joint(len(L), A1, float(np.square(M).sum()))
        found = Law(cov, df, scale, why) if why else _law(cov, df, scale)
        return found._replace(note=crowded(len(L), self.model.n_donors))

    @property
    def reason(self) -> str:
        """Why fixed effects have no degrees of freedom, or ""."""
        return self._found if isinstance(self._found, str) else ""

    @cached_property
    def missing(self) -> str:
        """Why some fixed effects have no tests and intervals, or ""."""
        p = len(self.by_model) - len(self.estimate.theta)
        lost = 0 if self.reason else int(np.isnan(self._df(np.eye(p))).sum())
        who = f"{lost} of {p} fixed effects have" if lost > 1 else "a fixed effect has"
        return f"{who} no test and no interval: {UNKNOWN}" if lost else ""

    @property
    def parts(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Root of Phi and slopes, from which degrees of freedom follow; None without any."""
        return None if self.reason else (self._at.root, self._at.slopes)

    def _joint(self, q: int, A1: float, A2: float) -> tuple[float, float, str]:
        """Denominator, scale of F, and why there is no test."""
        del A1
        return (2.0 * q / A2 if A2 > 0.0 else math.inf), 1.0, ""

    def _df(self, L: np.ndarray) -> np.ndarray:
        z = L @ self._at.root
        moves = ((z @ self._at.slopes) * z).sum(axis=2)  # (K, q)
        with np.errstate(divide="ignore", invalid="ignore"):
            df = 2.0 * np.square(np.square(z).sum(axis=1)) / np.square(moves).sum(axis=0)
        return np.where(df < LEAST_DF, math.nan, df)

    @cached_property
    def W(self) -> np.ndarray:
        """Covariance of theta along the edge that holds it; NaN where there is none."""
        at = self.estimate
        return information_cov(at.information, held(self.model, self.domain, at.theta))

    @cached_property
    def _found(self) -> Variation | Moves | str:
        if not np.isfinite(self.W).all():
            return SINGULAR
        try:
            at = self.model, self.estimate.theta, self.W
            if self.model.kinship:
                return related_likelihood.variation(*at, self.estimate.method)
            return variation(*at)
        except (CTMMError, np.linalg.LinAlgError) as error:
            return f"the covariance of the fixed effects has no derivatives: {error}"

    @property
    def _at(self) -> Variation | Moves:
        found = self._found
        if isinstance(found, str):
            raise CTMMError(found)
        return found


class KenwardRoger(Satterthwaite):
    """The covariance of the fixed effects that Kenward and Roger (1997) adjust, and its laws."""

    @cached_property
    def cov(self) -> np.ndarray:
        """Adjusted covariance of b, by the model of theta, (p + K, p + K)."""
        out = self.by_model.copy()
        p = len(out) - len(self.estimate.theta)
        if self.reason:
            out[:p, :p] = math.nan
            return out
        root = self._at.root
        out[:p, :p] += root @ self._at.inflation @ root.T
        return out

    def _joint(self, q: int, A1: float, A2: float) -> tuple[float, float, str]:
        if not A2 > 0.0:
            return math.inf, 1.0, ""
        B = (A1 + 6.0 * A2) / (2.0 * q)
        g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
        below = 3.0 * q + 2.0 * (1.0 - g)
        up, down, last = (
            1.0 + g / below * B,
            1.0 - (q - g) / below * B,
            1.0 - (q + 2 - g) / below * B,
        )
        shrink = 1.0 - A2 / q  # the mean of F is its inverse
        if not (shrink > 0.0 and down > 0.0 and last > 0.0):
            return math.nan, 1.0, NO_LAW
        # q times the variance of F over twice its squared mean, less one
        excess = shrink * shrink * up / (down * down * last) - 1.0
        df = 4.0 + (q + 2.0) / excess if excess > 0.0 else math.inf
        return df, (shrink * df / (df - 2.0) if math.isfinite(df) else shrink), ""


def information_cov(information: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
    """Inverse of the information of theta, shape (..., K, K); nan where there is none.

    Of one with directions `held` (m, K) that of theta + T t where none of them changes, held T = 0:
    T (T' information T)^-1 T'.

    >>> information_cov(np.array([[4.0]]))
    array([[0.25]])
    >>> information_cov(np.diag([4.0, 2.0]), np.array([[1.0, 0.0]]))
    array([[0. , 0. ],
           [0. , 0.5]])
    """
    if not information.size:
        return information
    scale = np.sqrt(np.maximum(information.diagonal(axis1=-2, axis2=-1), 0.0))
    scale[scale == 0.0] = 1.0  # of none: held, or singular
    units = scale[..., :, None] * scale[..., None, :]
    scaled = information / units  # units of the components drop out
    if held is None or not len(held):
        return _inverse(scaled) / units
    rows = held / scale
    _, size, axes = np.linalg.svd(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    T = axes[int((size > _PARALLEL * size[0]).sum()) :].T
    return T @ _inverse(T.T @ scaled @ T) @ T.T / units


def _inverse(A: np.ndarray) -> np.ndarray:
    """Inverses of symmetric A (..., n, n) in units of their diagonals, NaN where they have none."""
    if not A.size:
        return A
    there = np.isfinite(A).all(axis=(-2, -1))[..., None, None]
    unit = np.eye(A.shape[-1])
    known = np.where(there, A, unit)
    there &= (np.linalg.eigvalsh(known)[..., :1] >= _NOTHING)[..., None]
    return np.where(there, np.linalg.inv(np.where(there, A, unit)), math.nan)
