"""Scores of donors: many variables of donors from one null fit, and donors that do not fit.

With P of the null fit and e = P y (:class:`~ctmm_formula.engine.precision.Precision`), a variable g
of donors with an effect of its own in every cell type, Z = diag(g) H, has

    T = Z'e = sum_i g_i H_i'e_i          V = Z'P Z = sum_i g_i^2 H_i'D_i H_i - F Omega F'
    F = sum_i g_i H_i'Phi_i              b = V^-1 T

so that everything of all variables is products of G (N, S) with what the donors have.  b is the
effect that a fit with Z beside X would find at the null's variance components, and

    one type   b_c^2 / (V^-1)_cc          mean   (w'b)^2 / w'V^-1 w,   w = 1 / q
    all q      T'V^-1 T                   differences   T'V^-1 T - (1'T)^2 / 1'V 1

The variance is that of the null fit, which holds what a variable explains: such an x on d degrees
of freedom is turned to F = x / (d - x) (d - q) / q on q and d - q, which is exact for least
squares.  d counts rows less what the fixed effects take of them: of one type, its own; of all, all.

Of single rows, e / (diag P)^1/2 is the deletion residual, and of a donor e_i'(P_ii)^-1 e_i is chi2
with as many degrees of freedom as it has rows (Cook and Weisberg 1982, at given variance
components).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from ..blas import one_thread
from ..engine.blup import covariance_part
from ..engine.likelihood import response_scale
from ..engine.model import Model
from ..engine.noise import working_noise
from ..engine.precision import Precision
from ..errors import ConvergenceError

_CHUNK = 2_000_000  # numbers in the largest array
_NOTHING = 1e-9  # share of what is there that is no more than rounding
CONSTANT, HELD, FEW = 1, 2, 3
"""Why a variable has no test: all donors alike; the fixed effects hold it; too few donors."""


class DonorScores(NamedTuple):
    """What the donors of a null fit have, C cell types, Q levels and fixed effects.

    pull (N, C) H_i'e_i; inner (N, C, C) H_i'D_i H_i; cross (N, C, Q) H_i'Phi_i; omega (Q, Q);
    df (C,) donors with a cell type, less what the fixed effects take; centred, whether the means of
    the cell types are among the fixed effects.  Donors in kernel order.
    """

    pull: np.ndarray
    inner: np.ndarray
    cross: np.ndarray
    omega: np.ndarray
    df: np.ndarray
    centred: bool


class Found(NamedTuple):
    """Of S variables: effects b, standard errors and p values of the types, (S, C).

    mean (S, 3) estimate, error and p value of the mean effect; joint (S, 2) p values of all effects
    and of their differences; lacking (S,) why there are none, 0 where there are.
    """

    effect: np.ndarray
    se: np.ndarray
    p: np.ndarray
    mean: np.ndarray
    joint: np.ndarray
    lacking: np.ndarray


def weighed_by(model: Model, theta: np.ndarray, robust: bool) -> Precision:
    """P at `theta`, by the measured noise or, of robust fits, by working noise.

    Where the covariance is none (possible for moments), at the part of `theta` that is one.
    """
    if robust:
        noise = working_noise(model.nu, model.pooling, response_scale(model) ** 2)
        model = model.with_response(model.y, noise, model.nu2)
    else:
        try:
            return Precision(model, theta)
        except (ConvergenceError, np.linalg.LinAlgError):
            pass
    return Precision(model, covariance_part(theta, model.basis))


@one_thread()
def donor_scores(pre: Precision) -> DonorScores:
    """What donors have, all in use."""
    types = pre.model.types
    H = pre.spread(types)
    turned = H.swapaxes(1, 2)
    square = np.square(types)
    whole = pre.diagonal + np.square(pre.U).sum(axis=1)  # of Sigma^-1
    kept = (square.T @ pre.diagonal) / (square.T @ whole)
    left = np.square(pre.project(types)).sum(axis=0)
    return DonorScores(
        (turned @ pre.spread(pre.Py[:, None]))[..., 0], turned @ pre.inverse @ H,
        turned @ pre.spread(pre.phi), pre.omega, (np.square(H).sum(axis=1) > 0).sum(axis=0) * kept,
        bool((left <= 1e-16 * np.square(pre.within(types)).sum(axis=0)).all()),
    )  # fmt: skip


@one_thread()
def scan_variables(scores: DonorScores, G: np.ndarray) -> Found:
    """Effects and tests of variables G (N, S), donors in the order of the scores."""
    N, C, Q = scores.cross.shape
    step = max(_CHUNK // (N + C * Q + C * C), 1)
    parts = [_some(scores, G[:, at : at + step]) for at in range(0, max(G.shape[1], 1), step)]
    return Found(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _some(scores: DonorScores, G: np.ndarray) -> Found:
    N, C, _ = scores.cross.shape
    size = np.abs(G).max(axis=0, initial=0.0)
    alike = np.ptp(G, axis=0) <= 1e-12 * size
    g = (G / np.where(alike, 1.0, size)).T
    if scores.centred:
        g = g - g.mean(axis=1, keepdims=True)
    spread = np.where(alike, 1.0, np.sqrt(np.square(g).mean(axis=1)))
    g = np.where(alike[:, None], 0.0, g / spread[:, None])
    unit = (np.where(alike, 1.0, size) * spread)[:, None]
    T = g @ scores.pull
    whole = (np.square(g) @ scores.inner.reshape(N, -1)).reshape(-1, C, C)
    F = (g @ scores.cross.reshape(N, -1)).reshape(len(g), C, -1)
    V = whole - F @ scores.omega @ F.swapaxes(1, 2)
    own = np.arange(C)
    size_of = whole[:, own, own]
    seen = V[:, own, own] > _NOTHING * size_of
    # a type without an effect stands aside, by itself
    V = np.where(seen[:, :, None] & seen[:, None, :], V, np.eye(C))
    root = np.sqrt(np.where(seen, size_of, 1.0))
    held = np.linalg.eigvalsh(V / (root[:, :, None] * root[:, None, :]))[:, 0] < _NOTHING
    seen &= ~held[:, None]
    V = np.where(held[:, None, None], np.eye(C), V)
    T, q, ones = np.where(seen, T, 0.0), seen.sum(axis=1), seen.astype(float)
    with np.errstate(all="ignore"):
        back = np.linalg.inv(V)
        b = (back @ T[:, :, None])[..., 0]
        variance = np.where(seen, back[:, own, own], np.nan)
        mean = b.sum(axis=1) / q
        of_mean = np.einsum("sc,scd,sd->s", ones, back, ones) / q**2
        everything, shared = (T * b).sum(axis=1), T.sum(axis=1) ** 2
        unlike = everything - shared / np.einsum("sc,scd,sd->s", ones, V, ones)
        total = ones @ scores.df
        p = _tail(b**2 / variance, 1.0, scores.df)
        p_mean = _tail(mean**2 / of_mean, 1.0, total / q)
        joint = np.column_stack([_tail(everything, q, total), _tail(unlike, q - 1.0, total)])
    few = np.isnan(joint[:, 0])
    lacking = np.where(alike, CONSTANT, np.where(q == 0, HELD, np.where(few, FEW, 0)))
    b, se = np.where(seen, b, np.nan) / unit, np.sqrt(variance) / unit
    means = np.column_stack([mean / unit[:, 0], np.sqrt(of_mean) / unit[:, 0], p_mean])
    none = (lacking > 0)[:, None]
    b, se, p, means, joint = (np.where(none, np.nan, one) for one in (b, se, p, means, joint))
    return Found(b, se, p, means, joint, lacking)


def _tail(x: np.ndarray, q: np.ndarray | float, d: np.ndarray) -> np.ndarray:
    """P values of forms x of q rows, whose variance on d degrees of freedom holds them."""
    x = np.minimum(np.maximum(x, 0.0), d)
    usable = (d > q) & (np.asarray(q) > 0)
    d = np.where(usable, d, np.nan)
    return special.fdtrc(q, d - q, x / (d - x) * (d - q) / q)


class Deletion(NamedTuple):
    """Deletion residuals (n,) in kernel order; of the donors in use chi2 and df, (N,)."""

    residual: np.ndarray
    chi2: np.ndarray
    df: np.ndarray


@one_thread()
def deletion(pre: Precision) -> Deletion:
    """How far every row, and every donor, is from what the others say.

    Rows that alone determine a fixed effect have no residual (NaN), nor have such donors (0 df).
    """
    left = pre.diagonal
    whole = left + ((pre.phi @ pre.omega) * pre.phi).sum(axis=1)
    known = left > _NOTHING * np.abs(whole)
    residual = np.where(known, pre.Py / np.sqrt(np.where(known, left, 1.0)), np.nan)
    phi, e = pre.spread(pre.phi), pre.spread(pre.Py[:, None])[..., 0]
    size, axes = np.linalg.eigh(pre.inverse - phi @ pre.omega @ phi.swapaxes(1, 2))
    largest = np.abs(np.linalg.eigvalsh(pre.inverse)).max(axis=1)
    used = size > _NOTHING * largest[:, None]
    along = np.einsum("gmk,gm->gk", axes, e)
    chi2 = np.where(used, along**2 / np.where(used, size, 1.0), 0.0).sum(axis=1)
    return Deletion(residual, chi2, used.sum(axis=1))
