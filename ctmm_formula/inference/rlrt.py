"""Exact restricted likelihood ratio test of one variance component with known noise.

In a model with a single variance component, y ~ N(X b, D + lambda Z Z') with D known, whiten by
the noise: y~ = D^-1/2 y, X~, Z~ likewise.  With P~ the projection off X~ and mu_s the positive
eigenvalues of Z~' P~ Z~, the restricted likelihood depends on the data through the coordinates
w_s ~ N(0, 1 + lambda mu_s) of P~ y~ along the eigenvectors:

    2 (l(lambda) - l(0)) = sum_s [lambda mu_s / (1 + lambda mu_s) w_s^2 - log(1 + lambda mu_s)]

so that the supremum over lambda >= 0 under the null (w ~ N(0, 1)) can be drawn as often as wanted
without refitting anything (Crainiceanu and Ruppert 2004, J. R. Stat. Soc. B 66:165, whose noise
variance is estimated; here it is known).  The distribution has a point mass at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arguments import MOST_DRAWS, Rng, generator, whole_number
from ..engine.model import Model
from ..errors import CTMMError

_GRID = 100  # points in log lambda
_STEPS = 25  # safeguarded Newton steps from the best point of the grid
_SMALLEST = 1e-5  # lambda mu below which the ratio is nil (about (lambda mu)^2 per eigenvalue)
_CHUNK = 2_000_000  # numbers held at once


@dataclass(frozen=True)
class Spectrum:
    """The design of the test and the data in its coordinates.

    Attributes
    ----------
    mu : ndarray, shape (S,)
        Positive eigenvalues of Z~' P~ Z~.
    w : ndarray, shape (S,)
        Coordinates of the whitened response; standard normal under the null.
    """

    mu: np.ndarray
    w: np.ndarray


@dataclass(frozen=True)
class ExactRLRT:
    """Exact restricted likelihood ratio test.

    Attributes
    ----------
    statistic : float
        2 (l(lambda) - l(0)) at the maximum over lambda >= 0.
    component : float
        That lambda, the variance component.
    pvalue : float
        (1 + #{T* >= T}) / (1 + n_sim): exactly 1 where lambda is 0.
    null : ndarray, shape (n_sim,)
        Draws of the statistic under the null, in ascending order.
    """

    statistic: float
    component: float
    pvalue: float
    null: np.ndarray

    @property
    def mass_at_zero(self) -> float:
        """Probability of a statistic of 0 under the null."""
        return float((self.null == 0.0).mean())


def spectrum(model: Model) -> Spectrum:
    """Whiten the model and diagonalise it, in O((N rank)^3 + n (N rank)^2).

    Raises
    ------
    CTMMError
        More than one variance component, one that can take a covariance below zero, or one that
        the fixed effects absorb.
    """
    if model.n_components != 1:
        raise CTMMError(
            f"the exact test needs a single variance component, the model has "
            f"{model.n_components}: use a bootstrap, jackknife or wald test"
        )
    rows = model.active_rows
    weight = 1.0 / np.sqrt(model.noise[rows])
    Q = np.linalg.qr(weight[:, None] * model.Q[rows])[0]
    Z = weight[:, None] * _loadings(model)[rows]
    y = weight * model.y[rows]
    size = np.square(Z).sum(axis=0).max()
    Z -= Q @ (Q.T @ Z)
    y -= Q @ (Q.T @ y)
    mu, axes = np.linalg.eigh(Z.T @ Z)
    keep = mu > 1e-10 * size
    if not keep.any():
        raise CTMMError("the fixed effects absorb the variance component: it cannot be tested")
    mu = mu[keep]
    return Spectrum(mu, (axes[:, keep].T @ (Z.T @ y)) / np.sqrt(mu))


def _loadings(model: Model) -> np.ndarray:
    """Z (n, N r) with Z Z' = the component's covariance pattern, r the rank of its basis."""
    values, axes = np.linalg.eigh(model.basis[0])
    if values[0] < -1e-10 * np.abs(values).max():
        raise CTMMError("the component is a covariance, not a variance: it has no one-sided test")
    positive = values > 1e-10 * values[-1]
    root = model.H @ (axes[:, positive] * np.sqrt(values[positive]))
    n, r = root.shape
    Z = np.zeros((n, len(model.active), r))
    Z[np.arange(n), model.row_donor] = root
    return Z[:, model.active].reshape(n, -1)


def maximise(mu: np.ndarray, w2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest ratio over lambda >= 0 and where, for many responses at once.

    Parameters
    ----------
    mu : array, shape (S,); w2 : array, shape (m, S), squared coordinates

    Returns
    -------
    ratio, component : ndarray, shape (m,)
    """
    # beyond max (w^2 - 1)/mu every term falls
    top = max(float(((w2 - 1.0) / mu).max(initial=0.0)), 0.0)
    ratio, component = np.zeros(len(w2)), np.zeros(len(w2))
    low = _SMALLEST / mu.max()
    if not top > low:
        return ratio, component
    grid = np.concatenate([[0.0], np.geomspace(low, top, _GRID)])
    gain = np.multiply.outer(mu, grid)
    values = w2 @ (gain / (1.0 + gain)) - np.log1p(gain).sum(axis=0)
    best = values.argmax(axis=1)
    lower, upper = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, _GRID)]
    slope_at_zero = w2 @ mu - mu.sum()
    inside = (best > 0) | (slope_at_zero > 0.0)
    x = _climb(mu, w2[inside], grid[best[inside]], lower[inside], upper[inside])
    ratio[inside] = np.maximum(_ratio(mu, w2[inside], x), values.max(axis=1)[inside])
    component[inside] = x
    component[ratio <= 0.0] = 0.0
    return np.maximum(ratio, 0.0), component


def _ratio(mu: np.ndarray, w2: np.ndarray, x: np.ndarray) -> np.ndarray:
    gain = x[:, None] * mu
    return (w2 * gain / (1.0 + gain) - np.log1p(gain)).sum(axis=1)


def _climb(
    mu: np.ndarray, w2: np.ndarray, x: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> np.ndarray:
    """Newton on the slope within brackets that shrink, bisecting where it would leave them."""
    for _ in range(_STEPS):
        shrink = mu / (1.0 + x[:, None] * mu)
        slope = (w2 / (1.0 + x[:, None] * mu) - 1.0) * shrink
        bend = ((1.0 - 2.0 * w2 / (1.0 + x[:, None] * mu)) * shrink**2).sum(axis=1)
        slope = slope.sum(axis=1)
        lower, upper = np.where(slope > 0.0, x, lower), np.where(slope > 0.0, upper, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = x - slope / bend
        new = np.where((step > lower) & (step < upper), step, 0.5 * (lower + upper))
        if np.all(np.abs(new - x) <= 1e-10 * upper):
            return new
        x = new
    return x


def null_distribution(mu: np.ndarray, n_sim: int = 10_000, rng: Rng = None) -> np.ndarray:
    """Draws of the statistic under the null, shape (n_sim,), in ascending order.

    >>> draws = null_distribution(np.ones(30), 2000, rng=1)
    >>> bool(0.4 < (draws == 0).mean() < 0.6)
    True
    """
    rng = generator(rng)
    size = max(1, _CHUNK // max(len(mu), _GRID))
    parts = [
        maximise(mu, rng.standard_normal((min(size, n_sim - start), len(mu))) ** 2)[0]
        for start in range(0, n_sim, size)
    ]
    return np.sort(np.concatenate(parts))


def exact_rlrt(model: Model, n_sim: int = 10_000, rng: Rng = None) -> ExactRLRT:
    """Test the only variance component of `model` against zero.

    Parameters
    ----------
    model : Model
        With one variance component, say the structure ``hom`` without random effects.
    n_sim : int
        Draws from the null: the p value is at least 1 / (1 + n_sim).
    rng : numpy Generator or seed, optional

    Raises
    ------
    CTMMError
        See :func:`spectrum`; or `n_sim` < 1.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> rng = np.random.default_rng(1)
    >>> H = np.tile(np.eye(2), (40, 1))
    >>> y = np.repeat(rng.normal(size=40), 2) + rng.normal(size=80)
    >>> model = build_model(y, np.ones(80), H, H, np.repeat(np.arange(40), 2),
    ...                     np.ones((1, 2, 2)))
    >>> exact_rlrt(model, rng=0).pvalue < 0.01
    True
    """
    n_sim = whole_number("n_sim", n_sim, 1, 100 * MOST_DRAWS)
    data = spectrum(model)
    statistic, component = (float(v[0]) for v in maximise(data.mu, data.w[None] ** 2))
    null = null_distribution(data.mu, n_sim, rng)
    hits = int(n_sim - np.searchsorted(null, statistic))
    return ExactRLRT(statistic, component, (1 + hits) / (1 + n_sim), null)
