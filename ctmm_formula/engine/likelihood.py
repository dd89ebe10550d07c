"""ML and REML of a :class:`~ctmm_formula.engine.model.Model`.

With b profiled out (e = y - X b, P as in :mod:`ctmm_formula.engine.kernels`)

    ML    l = -1/2 [n log 2 pi + log|Sigma| + e' Sigma^-1 e]
    REML  l = -1/2 [(n - p) log 2 pi + log|Sigma| + log|X' Sigma^-1 X| - log|X'X| + y'Py]

The term log|X'X| makes REML independent of the coding of X (metafor has it, lme4 leaves it out).
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from ..arguments import choose
from ..errors import ConvergenceError
from . import kernels
from .beside import meanwhile
from .domain import Constraint, Domain, are_variances, constrain
from .estimate import Convergence, Estimate
from .model import LANES, Model, build_model, in_lanes, refuse_related
from .optimize import EDGE, INFEASIBLE, INTERIOR, STALLED, Problem, Work, make_work
from .options import kept_exact
from .references import held
from .search import compile_for, race, search, singular

LIKELIHOODS = ("ml", "reml")
Of = TypeVar("Of")
Room = TypeVar("Room", bound=tuple)


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
    depth = kernels.INFORMATION if full else kernels.VALUE
    llf = kernels.evaluate(
        kernels.kernel_address(), model.S.T @ np.asarray(theta, dtype=float),
        model.tiles.put(model.residual), model.tiles.put(model.noise, 1.0), model.blocks,
        model.tiles.donors(model.active, False), reml, depth, score, average, expected, beta, gram,
    )  # fmt: skip
    if llf == -math.inf:
        nan = np.full((K, K), math.nan)
        return Evaluation(llf, nan[0], nan, nan, np.full(p, math.nan), np.full((p, p), math.nan))
    S = model.S
    beta, cov = fixed_effects(model, beta, gram, 1.0)
    llf += coding_constant(model) if reml else 0.0
    if not full:
        nan = np.full((K, K), math.nan)
        return Evaluation(llf, nan[0], nan, nan, beta, cov)
    return Evaluation(llf, S @ score, S @ average @ S.T, S @ expected @ S.T, beta, cov)


class SharedDesign(NamedTuple):
    """What the fits of all responses of a design share; made by :func:`lay_out`.

    problem: the likelihood, to be completed by a response; share of the noise that its determinants
    have; middle (K,): where a search begins if noise is nothing.
    """

    problem: Problem
    share: float
    middle: np.ndarray


def lay_out(model: Model, method: str, domain: Domain) -> SharedDesign:
    """What the fits of all responses of a model's design share."""
    reml, constraint = choose("method", method, LIKELIHOODS) == "reml", constrain(model, domain)
    # the address of the kernel is this process's own
    return SharedDesign(_of_design(model, constraint, reml, 0), constraint.share, middle_of(model))


def fit(model: Model, method: str, domain: Domain, design: SharedDesign | None = None) -> Estimate:
    """Maximise the likelihood over `domain` from several deterministic starts.

    For ML an interior stationary point is preferred to the edge, where the likelihood grows
    without limit as the noise floor goes to zero; REML returns the constrained maximum.

    Parameters
    ----------
    model : Model; method : "ml" or "reml"; domain : Domain
    design : SharedDesign, optional
        :func:`lay_out` of the model, where many responses share it.

    Raises
    ------
    ConvergenceError
        The domain has no interior point for this structure, or a cell type no noise.
    """
    refuse_no_noise(model)
    design = lay_out(model, method, domain) if design is None else design
    scale = response_scale(model)
    problem, work = _room_of(design)
    problem = _of_response(problem, design.share, model, scale)
    p, reml = model.X.shape[1], problem.reml
    middle = _left_by_noise(model, scale) * design.middle
    start = middle
    if not reml:  # the REML optimum is the natural first start for ML
        restricted = search(problem._replace(reml=True), middle, middle, False, model.nobs, work)
        start = middle if restricted.status == INFEASIBLE else restricted.theta
    status, theta, llf, decrement, n_eval, used = search(
        problem, start, middle, not reml, model.nobs, work
    )
    if status == INFEASIBLE:
        raise ConvergenceError(
            f"no starting point lies inside bounds={domain.bounds!r} for this structure; "
            "use another bound or add a component that is a variance"
        )
    if singular(work.info) and singular(evaluate(model, middle * scale**2, method).expected):
        raise ConvergenceError(
            "variance components cannot be told apart: their information is singular"
        )
    on_edge = status != INTERIOR or bool(np.count_nonzero(theta <= problem.lower))
    df = model.nobs - p if reml else model.nobs
    constant = coding_constant(model) if reml else 0.0
    beta, cov = fixed_effects(model, work.beta, work.gram, scale)
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
            message=MESSAGES[EDGE if on_edge and status == INTERIOR else status],
        ),
    )


def refuse_no_noise(model: Model) -> None:
    """A likelihood weighs by the noise.

    Raises
    ------
    ConvergenceError
    """
    if model.some_alike and not (model.noise > 0.0).all(where=model.active_rows):
        raise ConvergenceError(
            "the noise variance is 0 in every pair of a cell type, where no cell differs from "
            "another, and a likelihood cannot weigh by 0: use method='robust', or leave out the "
            "cell type or the gene"
        )


MESSAGES = {
    INTERIOR: "interior optimum",
    EDGE: "optimum on the edge of the domain",
    STALLED: "the last step did not reach the tolerance",
}


def residual(model: Model) -> np.ndarray:
    """y less its least-squares fit, (n,): the kernels lose no digits to the mean of y."""
    return model.residual


def centred(model: Model, scale: float) -> Model:
    """The model of (y less its least-squares fit) / scale."""
    return model.with_response(residual(model) / scale, model.nu / scale**2)


def response_scale(model: Model) -> float:
    """Residual standard deviation of y: fits are made on y / scale."""
    p, resid = model.Q.shape[1], model.residual
    if model.n_donors < len(model.active):
        rows = model.active_rows
        Q, y = np.linalg.qr(model.Q[rows])[0], model.y[rows]
        resid = y - Q @ (Q.T @ y)
    spread = math.sqrt(float(resid @ resid) / max(len(resid) - p, 1))
    return spread if spread > 0.0 else 1.0


def make_problem(
    model: Model, constraint: Constraint, reml: bool, scale: float, kernel: int | None = None
) -> Problem:
    """The kernels' view of `model` with response y / scale."""
    problem = _of_design(model, constraint, reml, _kernel() if kernel is None else kernel)
    return _of_response(_with_room(problem, constraint.share), constraint.share, model, scale)


def last_of_thread(make: Callable[[Of], Room]) -> Callable[[Of], Room]:
    """`make`, asked once where a thread asks for the same again and again.

    For memory of one response of a design after the other: named tuples, :func:`held` from the
    second on.
    """
    kept = threading.local()

    def made(of: Of) -> Room:
        if getattr(kept, "of", None) is not of:
            kept.room, kept.again, kept.of = make(of), False, of
        elif not kept.again:
            kept.room, kept.again = tuple(map(held, kept.room)), True
        room: Room = kept.room
        return room

    return made


@last_of_thread
def _room_of(design: SharedDesign) -> tuple[Problem, Work]:
    """The likelihood of a design and its buffers, for one response after the other."""
    problem = _with_room(design.problem, design.share)
    problem = problem._replace(kernel=_kernel(), noisy=design.share > 0.0)
    return problem, make_work(problem)


def _with_room(problem: Problem, share: float) -> Problem:
    """`problem` with memory for a response and its noise, and for what determinants have of it."""
    shape = len(problem.active) // LANES, problem.blocks.design.shape[2]
    y, nu = in_lanes(*shape), in_lanes(*shape, value=1.0)
    return problem._replace(y=y, nu=nu, cnu=in_lanes(*shape, value=1.0) if share else problem.cnu)


def _of_response(problem: Problem, share: float, model: Model, scale: float) -> Problem:
    """`problem` with response and noise in its memory, and `share` of that in its determinants."""
    given = model.residual, model.noise, model.tiles.place, scale, scale**2, float(share)
    noisy = _put(*given, problem.y, problem.nu, problem.cnu)
    return problem if noisy == problem.noisy or not share else problem._replace(noisy=noisy)


@kept_exact
def _put(
    y: np.ndarray, noise: np.ndarray, place: np.ndarray, scale: float, square: float, share: float,
    out: np.ndarray, nu: np.ndarray, cnu: np.ndarray,
) -> bool:  # fmt: skip
    """Put y, noise and its share (n,) into tiles (T, m, LANES), and say whether no noise is 0."""
    lanes, noisy = out.shape[1] * LANES, True
    for row in range(len(y)):
        t, a, lane = place[row] // lanes, place[row] % lanes // LANES, place[row] % LANES
        out[t, a, lane] = y[row] / scale
        nu[t, a, lane] = noise[row] / square
        if share > 0.0:
            cnu[t, a, lane] = share * noise[row] / square
        noisy = noisy and noise[row] > 0.0
    return noisy


def _of_design(model: Model, constraint: Constraint, reml: bool, kernel: int) -> Problem:
    """The kernels' view of `model` without response."""
    refuse_related(model)
    nothing = np.empty((0, 0, LANES))
    return Problem(
        kernel=kernel,
        S=model.S,
        y=nothing,
        nu=nothing,
        blocks=model.blocks,
        active=model.tiles.donors(model.active, False),
        reml=reml,
        lower=constraint.lower,
        cS=constraint.S,
        cy=np.zeros(constraint.tiles.shape),
        cnu=constraint.tiles.put(constraint.nu, 1.0),
        cblocks=constraint.blocks,
        cactive=constraint.tiles.donors(constraint.active, False),
        noisy=False,
        by_donor=constraint.by_donor,
    )


@functools.cache
def _kernel() -> int:
    """Address of the kernel, of which the search needs only the type: both compile at once."""
    meanwhile(race, compile_search)
    return kernels.kernel_address()


def small_problem() -> Problem:
    """A problem of the types that all have, without a kernel."""
    H = np.tile(np.eye(2), (3, 1))
    donor = np.repeat(np.arange(3), 2)
    model = build_model(np.arange(6.0), np.ones(6), H, H, donor, np.ones((1, 2, 2)))
    return make_problem(model, constrain(model, Domain()), True, 1.0, kernel=0)


def compile_search() -> None:
    """Compile the search for the types it always gets, into the cache."""
    problem = small_problem()
    compile_for(problem, make_work(problem))


def centre(model: Model, scale: float) -> np.ndarray:
    """A point well inside the domain of y / scale: its variance split between all effects."""
    return _left_by_noise(model, scale) * middle_of(model)


def _left_by_noise(model: Model, scale: float) -> float:
    """What noise leaves of the variance of y / scale."""
    return _left(model.noise, model.active_rows, scale**2)


@kept_exact
def _left(noise: np.ndarray, used: np.ndarray, square: float) -> float:
    """See :func:`_left_by_noise`; noise (n,) of the rows in use, `square` of the scale."""
    taken, count = 0.0, 0
    for row in range(len(noise)):
        if used[row]:
            taken += min(noise[row] / square, 1.0)
            count += 1
    return max(1.0 - taken / count, 0.1)


def middle_of(model: Model) -> np.ndarray:
    """The point of :func:`centre` for y / scale of variance 1, were noise nothing, (K + Kr,)."""
    share = 1.0 / (2 + len(model.random) + 2 * len(model.kinship))
    theta = np.full(model.n_components, share)
    theta[: len(model.basis)] *= _split(model.basis.tobytes(), model.basis.shape)
    for term, at in zip(model.kinship, model.kinship_slices, strict=True):
        split = _split(term.basis.tobytes(), term.basis.shape)
        theta[at] = share * split / max(float(term.kernel.diagonal.mean()), 1e-300)
    return theta


_LEAST, _START = 0.05, 0.2  # of the mean variance that a component gives: less is taken for none


@functools.lru_cache(maxsize=64)
def _split(basis: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Components (K,) that come closest to A = J + I, and those that are variances above 0."""
    matrices = np.frombuffer(basis).reshape(shape)
    target = np.ones(shape[1:]) + np.eye(shape[1])
    out = np.linalg.lstsq(matrices.reshape(shape[0], -1).T, target.ravel(), rcond=None)[0]
    # of nested and crossed variances some would be 0, on their bound
    diagonal = matrices.diagonal(axis1=1, axis2=2)
    size = diagonal.sum(axis=1) / np.maximum((diagonal != 0.0).sum(axis=1), 1)
    low = are_variances(matrices) & (out * size < _LEAST)
    out[low] = _START / size[low]
    return out


def fixed_effects(
    model: Model,
    beta: np.ndarray,
    gram: np.ndarray,
    scale: float,
    spread: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """b and its covariance for the caller's X, from those of the orthonormal X.

    `gram` is the root of X'Sigma^-1 X; `spread` the covariance of gram'b, if that is not 1.
    """
    p = len(beta)
    if p == 0:
        return np.zeros(0), np.zeros((0, 0))
    root, own = np.empty((p, p)), np.empty(p)
    # the kernels saw the residual
    _unturned(beta, np.ascontiguousarray(gram), model.back, model.along, scale, root, own)
    middle = root if spread is None else spread @ root
    return own, root.T @ middle


@kept_exact
def _unturned(
    beta: np.ndarray, gram: np.ndarray, back: np.ndarray, along: np.ndarray, scale: float,
    root: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Root (p, p) of the covariance root'root of b `out` (p,), whose part `along` Q is known."""
    p = len(beta)
    for j in range(p):
        out[j] = 0.0
        for k in range(p):
            out[j] += back[j, k] * (beta[k] * scale + along[k])
        for k in range(p):
            value = scale * back[j, k]
            for m in range(k):
                value -= gram[k, m] * root[m, j]
            root[k, j] = value / gram[k, k]


def coding_constant(model: Model) -> float:
    """1/2 log|Q'Q| of the rows in use: the kernels' X is orthonormal over all rows."""
    if model.n_donors == len(model.active):
        return 0.0
    Q = model.Q[model.active_rows]
    return 0.5 * float(np.linalg.slogdet(Q.T @ Q)[1])
