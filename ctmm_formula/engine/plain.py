"""The likelihood in plain numpy: what the compiled loops compute, on one page.

    y ~ N(X b, Sigma),   Sigma = sum_k theta_k Sigma_k + diag(nu)
    Sigma_k = blockdiag(H_i B_k H_i') over donors, or Z Z' of a random effect

With S = Sigma^-1, L L' = X'SX, U = S X L^-T and P = S - U U', at the best b,

    b           = (X'SX)^-1 X'S y,   Cov b = (X'SX)^-1,   P y = S (y - X b)
    ML          = -1/2 [n log 2 pi + log|Sigma| + y'Py]
    REML        = -1/2 [(n - p) log 2 pi + log|Sigma| + log|X'SX| - log|X'X| + y'Py]
    score_k     = 1/2 [y'P Sigma_k P y - tr(P Sigma_k)]
    average_kl  = 1/2 y'P Sigma_k P Sigma_l P y
    expected_kl = 1/2 tr(P Sigma_k P Sigma_l)

(ML has S in place of P in the traces.)  Sigma has one block for all donors that levels of random
effects join; blocks meet only in X, so every term is a sum over blocks.  This page is for readers
and tests: what runs is :mod:`ctmm_formula.engine.kernels`, and it must give the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .likelihood import Evaluation
from .model import Model


class Block(NamedTuple):
    """Joined donors, m rows: y (m,), X (m, p), parts (K, m, m) the Sigma_k, Sigma (m, m)."""

    y: np.ndarray
    X: np.ndarray
    parts: np.ndarray
    Sigma: np.ndarray


def blocks_of(model: Model, theta: np.ndarray) -> list[Block]:
    """The donors in use, block by block."""
    out = []
    for block in np.unique(model.donor_block[model.active]):
        rows = np.flatnonzero(model.active_rows & (model.donor_block[model.row_donor] == block))
        donor, H = model.row_donor[rows], model.H[rows]
        parts = [(donor[:, None] == donor) * (H @ B @ H.T) for B in model.basis]
        for codes, values in model.random:
            level, z = codes[rows], values[rows]
            parts.append((level[:, None] == level) * np.outer(z, z))
        Sigma = np.tensordot(theta, parts, axes=1) + np.diag(model.noise[rows])
        out.append(Block(model.y[rows], model.X[rows], np.array(parts), Sigma))
    return out


def evaluate(model: Model, theta: np.ndarray, method: str = "reml") -> Evaluation:
    """What :func:`ctmm_formula.engine.likelihood.evaluate` gives where Sigma is positive definite.

    Examples
    --------
    >>> from ctmm_formula.engine.model import build_model
    >>> H = np.tile(np.eye(2), (3, 1))
    >>> model = build_model(np.arange(6.), np.ones(6), H, H, np.repeat([0, 1, 2], 2),
    ...                     np.ones((1, 2, 2)))
    >>> round(evaluate(model, np.array([1.0])).llf, 6)
    -7.441033
    """
    blocks = [(block, np.linalg.inv(block.Sigma)) for block in blocks_of(model, theta)]
    XX = np.sum([b.X.T @ b.X for b, _ in blocks], axis=0)
    XSX = np.sum([b.X.T @ S @ b.X for b, S in blocks], axis=0)
    cov = np.linalg.inv(XSX)
    beta = cov @ np.sum([b.X.T @ S @ b.y for b, S in blocks], axis=0)
    back = np.linalg.inv(np.linalg.cholesky(XSX)).T

    def terms(b: Block, S: np.ndarray) -> tuple[np.ndarray, ...]:
        """What one block adds to every sum; f_k = Sigma_k P y."""
        Py, U = S @ (b.y - b.X @ beta), S @ b.X @ back
        f, SD = b.parts @ Py, S @ b.parts
        W = U if method == "reml" else U[:, :0]  # the part of P that ML's traces leave out
        WD = W.T @ b.parts
        return (
            np.linalg.slogdet(b.Sigma)[1],
            b.y @ Py,
            f @ Py,
            f @ S @ f.T,
            f @ U,
            np.trace(SD, axis1=1, axis2=2),
            np.einsum("kab,lba->kl", SD, SD),
            np.einsum("kpa,ab,lpb->kl", WD, S, WD),
            WD @ W,
        )

    sums = zip(*(terms(b, S) for b, S in blocks), strict=True)
    logdet, yPy, fPy, fSf, fU, tr_SD, tr_SDSD, tr_WDSDW, WDW = (np.sum(s, axis=0) for s in sums)
    twice = model.nobs * math.log(2.0 * math.pi) + logdet + yPy
    if method == "reml":
        twice -= len(beta) * math.log(2.0 * math.pi)
        twice += np.linalg.slogdet(XSX)[1] - np.linalg.slogdet(XX)[1]
    tr_PD = tr_SD - np.trace(WDW, axis1=1, axis2=2)
    tr_PDPD = tr_SDSD - 2.0 * tr_WDSDW + np.einsum("kpq,lqp->kl", WDW, WDW)
    return Evaluation(
        llf=-0.5 * float(twice),
        score=0.5 * (fPy - tr_PD),
        average=0.5 * (fSf - fU @ fU.T),
        expected=0.5 * tr_PDPD,
        beta=beta,
        cov_beta=cov,
    )
