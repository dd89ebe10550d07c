"""Shares of variance of a fit, on the scale of overall pseudobulk and by cell type.

With w the weight of a row in its donor's overall pseudobulk (the cell type's share of the
donor's cells), P_i = sum_a w_a H_a and S = cov(P), the variance of overall pseudobulk splits into

    m'Sm                 means of the cell types
    var_i(f_i)           other fixed effects, f_i = sum_a w_a x_a'b - P_i'm
    sigma^2              shared between cell types
    mean_i(P_i' V P_i)   cell type-specific: V_cc mean_i(P_ic^2) each, and covariances
    r_k mean_i |z_ik|^2  every random effect, z_ik = sum_a w_a z_ak
    mean_i(sum_a w_a^2 nu_a)   noise

(m the cell type means at the mean of the covariates; Chen and Dahl 2024, supplement).  Estimates
of variance components may be negative, and so may their shares.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..arguments import whole_number
from ..design.labelled import Design
from ..engine.model import RandomComponent
from ..errors import CTMMError
from ..structures import Structure
from .record import Record

_ROUNDING = 1e-13  # relative error of a weighted sum


def row_weights(design: Design) -> np.ndarray:
    """Weights (n,) of the rows in their donor's overall pseudobulk; they sum to one per donor.

    Cell types without a known share count equally.
    """
    codes = design.donor_codes
    P = design.proportions
    raw = np.ones(len(codes)) if P is None else np.einsum("nc,nc->n", P[codes], design.H)
    return raw / np.bincount(codes, raw)[codes]


def variance_parts(
    design: Design,
    structure: Structure,
    theta: np.ndarray,
    beta: np.ndarray,
    *,
    random_names: tuple[str, ...],
    ddof: int = 1,
) -> tuple[dict[str, float], dict[str, float]]:
    """Parts of the variance of overall pseudobulk.

    Parameters
    ----------
    design : Design; structure : Structure
    theta : ndarray, shape (K,); beta : ndarray, shape (p,)
    random_names : tuple of str
        What to call the random effects' parts.
    ddof : int
        Divisor N - ddof of the variances between donors of the fixed parts.

    Returns
    -------
    parts : dict
        means, fixed, shared, specific, one entry per random effect, noise.
    specific : dict
        The cell type-specific part by cell type, and what covariances add.
    """
    count, N = len(structure.labels), len(design.donors)
    w = row_weights(design)
    P = np.zeros((N, design.H.shape[1]))
    np.add.at(P, design.donor_codes, w[:, None] * design.H)
    sigma2 = 0.0 if structure.shared is None else float(theta[structure.shared])
    V = structure.covariance(theta[:count]) - sigma2
    specific = V * (P.T @ P / N)
    own = np.diag(specific)
    by_type = {f"specific[{c}]": float(v) for c, v in zip(design.celltypes, own, strict=True)}
    if np.any(V - np.diag(np.diag(V))):
        by_type["specific[covariances]"] = float(specific.sum() - own.sum())
    means = design.mean_rows @ beta
    fixed = np.bincount(design.donor_codes, w * (design.X @ beta), N) - P @ means
    parts = {
        "means": _spread(P @ means, np.abs(means), ddof),
        "fixed": _spread(fixed, np.abs(P @ means) + np.abs(fixed), ddof),
        "shared": sigma2,
        "specific": float(specific.sum()),
    }
    for name, component, r in zip(random_names, design.random, theta[count:], strict=True):
        parts[name] = float(r) * _level_square(component, design.donor_codes, w) / N
    parts["noise"] = float((w**2 * design.nu).sum()) / N
    return parts, by_type


def celltype_parts(
    design: Design, structure: Structure, theta: np.ndarray
) -> dict[str, np.ndarray]:
    """Variance of a row of each cell type: between donors, random effects, noise; each (C,).

    Rows count with their weight on the cell type (all of it, or the proportion).
    """
    count = len(structure.labels)
    A = structure.covariance(theta[:count])
    sigma2 = 0.0 if structure.shared is None else float(theta[structure.shared])
    weight = design.H / design.H.sum(axis=0)
    random = np.zeros(A.shape[0])
    for component, r in zip(design.random, theta[count:], strict=True):
        random += r * (weight.T @ component.values**2)
    return {
        "donor": np.diag(A).copy(),
        "shared": np.full(len(A), sigma2),
        "random": random,
        "noise": weight.T @ design.nu,
    }


def _spread(values: np.ndarray, size: np.ndarray, ddof: int) -> float:
    """Variance of values that come from numbers of this size; 0 where it is their rounding."""
    out = float(values.var(ddof=ddof))
    return out if out > (_ROUNDING * size.max(initial=0.0)) ** 2 else 0.0


def _level_square(component: RandomComponent, donor: np.ndarray, w: np.ndarray) -> float:
    """Sum over donors and levels of (weighted sum of z)^2."""
    levels = int(component.codes.max()) + 1
    _, pair = np.unique(donor * levels + component.codes, return_inverse=True)
    return float(np.square(np.bincount(pair, w * component.values)).sum())


def variance_explained(res: Record, *, by_celltype: bool = False, ddof: int = 1) -> pd.DataFrame:
    """Parts of the variance of overall pseudobulk, see this module.

    Covariances between the fixed parts do not count, as published.

    Parameters
    ----------
    by_celltype : bool
        Split ``specific`` into ``specific[T]``, ... (and ``specific[covariances]`` where the
        structure has covariances).
    ddof : int
        The fixed parts' variances between donors are divided by N - ddof.

    Returns
    -------
    DataFrame
        Rows means, fixed (other fixed effects), shared, specific, one per random effect,
        noise, total; columns variance (squared units of the response) and share, which sum
        to the total.

    Notes
    -----
    Without numbers of cells or proportions the cell types of a donor count equally; with
    proportions that do not vary between donors the part of the means is 0.
    """
    ddof = whole_number("ddof", ddof, 0)
    if ddof >= res.n_donors:
        raise CTMMError(f"ddof={ddof} leaves no degree of freedom of {res.n_donors} donors")
    parts, specific = variance_parts(
        res.design,
        res.structure_,
        res.estimate.theta,
        res.estimate.beta,
        random_names=res.labels.random,
        ddof=ddof,
    )
    total = sum(parts.values())
    rows: dict[str, float] = {}
    for name, value in parts.items():
        rows |= specific if by_celltype and name == "specific" else {name: value}
    out = pd.DataFrame({"variance": {**rows, "total": total}})
    out["share"] = out["variance"] / total if total else np.nan
    return out.rename_axis("component")


def icc(res: Record) -> pd.DataFrame:
    """Intraclass correlation of each cell type.

    The variance between donors over that of one row of the cell type, noise included, as in
    Chen and Dahl, Nat Commun 15:5229 (2024).

    Returns
    -------
    DataFrame
        One row per cell type: the variances donor (A_cc), random (all random effects), noise
        (mean) and total; ``icc`` = donor / total; ``shared`` = sigma^2 / donor, the part that
        all cell types share (0 where the structure has no such component; NaN where ``corr``
        is, as A is no covariance there).
    """
    parts = celltype_parts(res.design, res.structure_, res.estimate.theta)
    sigma2 = parts.pop("shared")
    out = pd.DataFrame(parts, index=pd.Index(res.celltypes, name="celltype"))
    out["total"] = out.sum(axis=1)
    out["icc"] = out["donor"] / out["total"]
    out["shared"] = (sigma2 / out["donor"]).where(np.diag(res.corr.notna()))
    return out
