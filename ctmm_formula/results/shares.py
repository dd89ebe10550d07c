"""Shares of variance of a fit, on the scale of overall pseudobulk and by cell type.

With w the weight of a row in its donor's overall pseudobulk (the cell type's share of the
donor's cells), P_i = sum_a w_a H_a and S = cov(P), the variance of overall pseudobulk splits into

    m'Sm                 means of the cell types
    var_i(f_i)           other fixed effects, f_i = sum_a w_a x_a'b - P_i'm
    sigma^2              shared between cell types
    mean_i(P_i' V P_i)   cell type-specific: V_cc mean_i(P_ic^2) each, and covariances
                         (of groups and conditions P_i holds the shares of all effects, and sigma^2
                         is a mean over donors too)
    r_k mean_i |z_ik|^2  every random effect, z_ik = sum_a w_a z_ak
    s_K mean_i(P_i' A_K P_i)   every kinship, s_K the mean of K_ii less that of K_ij
    mean_i(sum_a w_a^2 nu_a)   noise

(m the cell type means at the mean of the covariates; Chen and Dahl 2024, supplement).  Estimates
of variance components may be negative, and so may their shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..arguments import on_off, whole_number
from ..design.labelled import Design
from ..engine.model import RandomComponent
from ..errors import CTMMError
from .kept import kept
from .record import Record

PARTS = ("means", "fixed", "shared", "specific")
"""Parts that every fit has, beside random effects and noise."""
_ROUNDING = 1e-13  # relative error of a weighted sum


@dataclass(frozen=True, eq=False)
class Weights:
    """What shares of variance need of a design, whatever the response.

    n rows, N donors, C cell types, E effects of a donor (of cell types, or those in groups).

    Attributes
    ----------
    donor : int ndarray, shape (n,); w : ndarray, shape (n,)
        Donor of every row, and its weight there.
    P : ndarray, shape (N, C)
        Weights of the cell types.
    square : ndarray, shape (E, E)
        Mean over donors of products of the weights of their effects.
    X : ndarray, shape (n, p); mean_rows : ndarray, shape (C, p)
    levels : tuple of float
        Mean square of the weights on levels of every random effect.
    kinship : tuple of (str, float)
        Name and scale of every kinship.
    """

    donor: np.ndarray
    w: np.ndarray
    P: np.ndarray
    square: np.ndarray
    X: np.ndarray
    mean_rows: np.ndarray
    levels: tuple[float, ...]
    kinship: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, design: Design) -> Weights:
        """The weights of a design."""
        N, donor, shares = len(design.donors), design.donor_codes, design.proportions
        raw = np.ones(len(donor)) if shares is None else (shares[donor] * design.H).sum(axis=1)
        w = raw / np.bincount(donor, raw)[donor]
        P, effects = np.zeros((N, len(design.celltypes))), np.zeros((N, len(design.effects)))
        np.add.at(P, donor, w[:, None] * design.H)
        np.add.at(effects, donor, w[:, None] * design.E)
        levels = tuple(_level_square(one, donor, w) / N for one in design.random)
        square = effects.T @ effects / N
        kinship = tuple((one.name, one.kernel.scale) for one in design.kinship)
        return cls(donor, w, P, square, design.X, design.mean_rows, levels, kinship)


def variance_parts(
    at: Weights,
    beta: np.ndarray,
    common: np.ndarray,
    V: np.ndarray,
    random: Mapping[str, float],
    nu: np.ndarray,
    genetic: Sequence[np.ndarray] = (),
    ddof: int = 1,
) -> dict[str, float]:
    """Parts of the variance of overall pseudobulk: means, fixed, shared, specific, ..., noise.

    Parameters
    ----------
    at : Weights
    beta : ndarray, shape (p,)
    common, V : ndarray, shape (E, E)
        Covariance of a donor's effects that cell types share, and that of their own.
    random : mapping
        Variance of every random effect by name.
    nu : ndarray, shape (n,)
    genetic : sequence of ndarray, shape (E, E)
        Covariance of every kinship.
    ddof : int
    """
    N, means, P = len(at.P), at.mean_rows @ beta, at.P
    fixed = np.bincount(at.donor, at.w * (at.X @ beta), N) - P @ means
    parts = {
        "means": _spread(P @ means, np.abs(means), ddof),
        "fixed": _spread(fixed, np.abs(P @ means) + np.abs(fixed), ddof),
        "shared": float((common * at.square).sum()),
        "specific": float((V * at.square).sum()),
    }
    for (name, r), square in zip(random.items(), at.levels, strict=True):
        parts[name] = r * square
    for (name, scale), A in zip(at.kinship, genetic, strict=True):
        parts[name] = scale * float((A * at.square).sum())
    parts["noise"] = float((at.w**2 * nu).sum()) / N
    return parts


@kept
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
        Rows means, fixed (other fixed effects), shared, specific, one per random effect and
        kinship, noise, total; columns variance (squared units of the response) and share, which sum
        to the total.

    Notes
    -----
    Without numbers of cells or proportions the cell types of a donor count equally; with
    proportions that do not vary between donors the part of the means is 0.
    """
    ddof, by_celltype = whole_number("ddof", ddof, 0), on_off("by_celltype", by_celltype)
    if ddof >= res.n_donors:
        raise CTMMError(f"ddof={ddof} leaves no degree of freedom of {res.n_donors} donors")
    design, at = res.design, Weights.of(res.design)
    common, V = res._common, res.V.to_numpy()
    random = {name: r for name, _, r in _random(res)}
    genetic = res.arrays.genetic_covariances(res.estimate.theta)
    parts = variance_parts(at, res.estimate.beta, common, V, random, design.nu, genetic, ddof)
    specific = V * at.square
    own = np.diag(specific)
    by_type = {f"specific[{c}]": float(v) for c, v in zip(design.effects, own, strict=True)}
    if np.any(V - np.diag(np.diag(V))):
        by_type["specific[covariances]"] = float(specific.sum() - own.sum())
    total = sum(parts.values())
    rows: dict[str, float] = {}
    for name, value in parts.items():
        rows |= by_type if by_celltype and name == "specific" else {name: value}
    out = pd.DataFrame({"variance": {**rows, "total": total}})
    out["share"] = out["variance"] / total if total else np.nan
    return out.rename_axis("component")


@kept
def icc(res: Record) -> pd.DataFrame:
    """Intraclass correlation of each cell type.

    The variance between donors over that of one row of the cell type, noise included, as in
    Chen and Dahl, Nat Commun 15:5229 (2024).

    Returns
    -------
    DataFrame
        One row per cell type (in every group or condition): the variances donor (A_cc, and what
        is genetic), random (all random effects), noise (mean) and total; ``icc`` = donor / total;
        ``shared`` = sigma^2 / donor, the part that all cell types share (0 where the structure has
        no such component; NaN where ``corr`` is, as A is no covariance there).

    Raises
    ------
    CTMMError
        A trend of the variance (a numeric ``by=``): it has no one value.
    """
    crossing = res.design.crossing
    if crossing is not None and crossing.kind == "trend":
        raise CTMMError(
            f"the variances change with {crossing.column!r}, so there is no one icc: see vcomp"
        )
    # rows count with their weight on the cell type: all of it, or the proportion
    weight = res.design.E / res.design.E.sum(axis=0)
    squares = (r * (weight.T @ component.values**2) for _, component, r in _random(res))
    A = res.A.to_numpy()
    for one, own in zip(
        res.design.kinship, res.arrays.genetic_covariances(res.estimate.theta), strict=True
    ):
        A = A + one.kernel.scale * own
    parts = {
        "donor": np.diag(A),
        "random": sum(squares, np.zeros(len(res.design.effects))),
        "noise": weight.T @ res.design.nu,
    }
    out = pd.DataFrame(parts, index=pd.Index(res.design.effects, name="celltype"))
    out["total"] = out.sum(axis=1)
    out["icc"] = out["donor"] / out["total"]
    out["shared"] = (np.diag(res._common) / out["donor"]).where(np.diag(res.corr.notna()))
    return out


def _random(res: Record) -> Iterator[tuple[str, RandomComponent, float]]:
    """Name, design and variance of every random effect."""
    theta = res.arrays.random_variances(res.estimate.theta).tolist()
    return zip(res.labels.random, res.design.random, theta, strict=True)


def _spread(values: np.ndarray, size: np.ndarray, ddof: int) -> float:
    """Variance of values that come from numbers of this size; 0 where it is their rounding."""
    out = float(values.var(ddof=ddof))
    return out if out > (_ROUNDING * size.max(initial=0.0)) ** 2 else 0.0


def _level_square(component: RandomComponent, donor: np.ndarray, w: np.ndarray) -> float:
    """Sum over donors and levels of (weighted sum of z)^2."""
    levels = int(component.codes.max()) + 1
    _, pair = np.unique(donor * levels + component.codes, return_inverse=True)
    return float(np.square(np.bincount(pair, w * component.values)).sum())
