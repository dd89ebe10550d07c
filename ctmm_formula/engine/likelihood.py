"""ML and REML of a :class:`~ctmm_formula.engine.model.Model`.

With b profiled out (e = y - X b, P as in :mod:`ctmm_formula.engine.kernels`)

    ML    l = -1/2 [n log 2 pi + log|Sigma| + e' Sigma^-1 e]
    REML  l = -1/2 [(n - p) log 2 pi + log|Sigma| + log|X' Sigma^-1 X| - log|X'X| + y'Py]

The term log|X'X| makes REML independent of the coding of X (metafor has it, lme4 leaves it out).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..errors import ConvergenceError, choose
from . import kernels
from .domain import Constraint, Domain, constrain
from .estimate import Convergence, Estimate
from .model import Model
from .optimize import EDGE, INFEASIBLE, INTERIOR, STALLED, Problem, best_of, make_work

LIKELIHOODS = ("ml", "reml")


@dataclass(frozen=True)
class Evaluation:
    """Likelihood quantities at one theta.

    Attributes
    ----------
    llf : float
        Log-likelihood with all constants, -inf where Sigma is not positive definite.
    score : ndarray, shape (K,)
    average, expected : ndarray, shape (K, K)
        Average information 1/2 f_k' P f_l (f_k = Sigma_k P y) and Fisher information
        1/2 tr(P Sigma_k P Sigma_l) (ML: Sigma^-1 for P).  The observed information is
        2 average - expected.
    beta : ndarray, shape (p,); cov_beta : ndarray, shape (p, p)
        GLS fixed effects and (X' Sigma^-1 X)^-1.
    """

    llf: float
    score: np.ndarray
    average: np.ndarray
    expected: np.ndarray
    beta: np.ndarray
    cov_beta: np.ndarray


def evaluate(
    model: Model, theta: np.ndarray, method: str = "reml", *, full: bool = True
) -> Evaluation:
    """Likelihood, score, information and GLS fixed effects at `theta`.

    Parameters
    ----------
    model : Model
    theta : ndarray, shape (K,)
    method : "ml" or "reml"
    full : bool
        False leaves out score and information (NaN), which cost most.

    Examples
    --------
    >>> import numpy as np
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (3, 1))
    >>> model = build_model(np.arange(6.), np.ones(6), H, H, np.repeat([0, 1, 2], 2),
    ...                     np.ones((1, 2, 2)))
    >>> round(evaluate(model, np.array([1.0])).llf, 6)
    -7.441033
    """
    reml = choose("method", method, LIKELIHOODS) == "reml"
    K, F = model.S.shape
    p = model.X.shape[1]
    score, average, expected = np.zeros(F), np.zeros((F, F)), np.zeros((F, F))
    beta, gram = np.zeros(p), np.zeros((p + 1, p + 1))
    level = kernels.INFORMATION if full else kernels.VALUE
    llf = kernels.evaluate(
        kernels.kernel_address(), model.S.T @ np.asarray(theta, dtype=float), residual(model),
        model.nu, model.blocks, model.active, reml, level, score, average, expected, beta, gram,
    )  # fmt: skip
    if llf == -math.inf:
        nan = np.full((K, K), math.nan)
        return Evaluation(llf, nan[0], nan, nan, np.full(p, math.nan), np.full((p, p), math.nan))
    S = model.S
    beta, cov = _fixed_effects(model, beta, gram, 1.0)
    llf += _coding_constant(model) if reml else 0.0
    if not full:
        nan = np.full((K, K), math.nan)
        return Evaluation(llf, nan[0], nan, nan, beta, cov)
    return Evaluation(llf, S @ score, S @ average @ S.T, S @ expected @ S.T, beta, cov)


def fit(model: Model, method: str, domain: Domain) -> Estimate:
    """Maximise the likelihood over `domain` from several deterministic starts.

    For ML an interior stationary point is preferred to the edge, where the likelihood grows
    without limit as the noise floor goes to zero; REML returns the constrained maximum.

    Raises
    ------
    ConvergenceError
        The domain has no interior point for this structure.
    """
    reml = choose("method", method, LIKELIHOODS) == "reml"
    scale = response_scale(model)
    problem = make_problem(model, constrain(model, domain), reml, scale)
    p = model.X.shape[1]
    starts: Iterable[np.ndarray] = starting_points(problem, model)
    work = make_work(problem)
    if not reml:  # the REML optimum is the natural first start for ML
        status, theta, *_ = best_of(problem._replace(reml=True), starts, False, work)
        if status != INFEASIBLE:
            starts = chain([theta], starting_points(problem, model))
    status, theta, llf, decrement, n_eval, used = best_of(problem, starts, not reml, work)
    if status == INFEASIBLE:
        raise ConvergenceError(
            f"no starting point lies inside bounds={domain.bounds!r} for this structure; "
            "use another bound or add a component that is a variance"
        )
    if _singular(work.info):
        at = centre(problem, model) * scale**2
        if _singular(evaluate(model, at, method).expected):
            raise ConvergenceError(
                "variance components cannot be told apart: their information is singular"
            )
    on_edge = status != INTERIOR or bool((theta <= problem.lower).any())
    df = model.nobs - p * reml
    constant = _coding_constant(model) if reml else 0.0
    beta, cov = _fixed_effects(model, work.beta, work.gram, scale)
    return Estimate(
        method=method,
        theta=theta * scale**2,
        beta=beta,
        cov_beta=cov,
        beta_by="gls",
        information=work.info / scale**4,
        observed=work.observed / scale**4,
        llf=llf - df * math.log(scale) + constant,
        convergence=Convergence(
            converged=status in (INTERIOR, EDGE),
            boundary=on_edge,
            gradient_norm=math.sqrt(max(decrement, 0.0)),
            n_evaluations=int(n_eval),
            n_starts=int(used),
            message=_MESSAGES[EDGE if on_edge and status == INTERIOR else status],
        ),
    )


_CONFOUNDED = 1e-10  # smallest eigenvalue of the correlation matrix of the information
_MESSAGES = {
    INTERIOR: "interior optimum",
    EDGE: "optimum on the edge of the domain",
    STALLED: "the last step did not reach the tolerance",
}


def _singular(information: np.ndarray) -> bool:
    """Whether components are confounded, whatever their scales."""
    size = np.sqrt(np.maximum(np.diag(information), 0.0))
    if not (size > 1e-7 * size.max()).all():  # the rounding of a zero
        return True
    return bool(np.linalg.eigvalsh(information / np.outer(size, size))[0] < _CONFOUNDED)


def residual(model: Model) -> np.ndarray:
    """y less its least-squares fit, (n,): the kernels lose no digits to the mean of y."""
    Q = model.blocks.X
    return model.y - Q @ (Q.T @ model.y)


def response_scale(model: Model) -> float:
    """Residual standard deviation of y: fits are made on y / scale."""
    rows = model.active_rows
    Q, y = model.blocks.X[rows], model.y[rows]
    if model.n_donors < len(model.active):
        Q = np.linalg.qr(Q)[0]
    resid = y - Q @ (Q.T @ y)
    spread = math.sqrt(float(resid @ resid) / max(len(y) - Q.shape[1], 1))
    return spread if spread > 0.0 else 1.0


def make_problem(model: Model, constraint: Constraint, reml: bool, scale: float) -> Problem:
    """The kernels' view of `model` with response y / scale."""
    return Problem(
        kernel=kernels.kernel_address(),
        S=model.S,
        y=residual(model) / scale,
        nu=model.nu / scale**2,
        blocks=model.blocks,
        active=model.active.copy(),
        reml=reml,
        lower=constraint.lower,
        cS=constraint.S,
        cy=np.zeros(len(constraint.nu)),
        cnu=constraint.nu / scale**2,
        cblocks=constraint.blocks,
        cactive=constraint.active,
        noisy=bool((constraint.nu > 0.0).all()) and len(constraint.nu) > 0,
    )


def centre(problem: Problem, model: Model) -> np.ndarray:
    """A point well inside the domain: total variance split between all effects."""
    K = len(model.basis)
    rows = model.active_rows
    X, y = problem.blocks.X[rows], problem.y[rows]
    beta = X.T @ y
    total = max(float(y @ y - beta @ beta) / max(len(y) - len(beta), 1), 0.0)
    total = max(total - float(np.mean(np.minimum(problem.nu[rows], total))), 0.1 * total)
    share = total / (2 + len(model.random))
    theta = np.full(len(model.S), share)
    theta[:K] *= _split(model.basis.tobytes(), model.basis.shape)
    return theta


@functools.lru_cache(maxsize=64)
def _split(basis: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Components (K,) that come closest to A = J + I."""
    flat = np.frombuffer(basis).reshape(shape[0], -1)
    target = np.ones(shape[1:]) + np.eye(shape[1])
    return np.linalg.lstsq(flat.T, target.ravel(), rcond=None)[0]


def starting_points(problem: Problem, model: Model) -> Iterator[np.ndarray]:
    """Deterministic starts (K,): variance split, nearly null, and one for every component.

    The first Fisher-scoring step from the split is a weighted moment estimate.  The others are
    used where the optimum lies on the edge, which may have several local maxima.
    """
    middle = centre(problem, model)
    yield middle
    yield 0.02 * middle
    for k in np.flatnonzero(middle > 0.0)[:8]:
        tilted = 0.3 * middle
        tilted[k] += 1.4 * middle[k]
        yield tilted


def _fixed_effects(
    model: Model, beta: np.ndarray, gram: np.ndarray, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """b and its covariance for the caller's X, from those of the orthonormal X."""
    p = len(beta)
    if p == 0:
        return np.zeros(0), np.zeros((0, 0))
    root = np.linalg.solve(np.tril(gram[:p, :p]), model.back.T)
    beta = beta * scale + model.blocks.X.T @ model.y  # the kernels saw the residual
    return model.back @ beta, root.T @ root * scale**2


def _coding_constant(model: Model) -> float:
    """1/2 log|Q'Q| of the rows in use: the kernels' X is orthonormal over all rows."""
    if model.n_donors == len(model.active):
        return 0.0
    Q = model.blocks.X[model.active_rows]
    return 0.5 * float(np.linalg.slogdet(Q.T @ Q)[1])
