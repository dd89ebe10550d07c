"""Heritability of expression: how much of the variance between donors is genetic.

With A_g the covariance (C x C) of what goes with a kinship, A_e that of all else donors have, and s
the scale of the kinship (mean of K_ii less mean of K_ij),

    type c        h2 = s A_g,cc / (s A_g,cc + A_e,cc)
    shared        s a_g / T      a the mean covariance of two cell types (hom, where V is diagonal)
    specific      s v_g / T      v the mean variance of a cell type less a (the mean of V_cc)
    total         s (a_g + v_g) / T,      T = s (a_g + v_g) + a_e + v_e

T holds neither noise nor random effects, so neither brings h2 down.  With several kinships every
one is over the sum of all.  All are ratios a't / b't of components t: standard errors by the delta
method from the covariance of t, intervals by Fieller, which has none where b't is not
clearly positive.  Correlations of types are A_g,cd over the root of A_g,cc A_g,dd.

Errors by the model, which robust fits and likelihoods have, are those of its variances, for effects
of variants drawn anew.  The jackknife leaves out donors: its errors are those of a ratio in other
donors of this population, with the effects that its variants have; a null variance is
overestimated about two-fold, so small heritabilities are tested by scores
(:mod:`ctmm_formula.inference.genetic_score`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ..arguments import check_alpha
from ..distributions import t_reach
from ..errors import CTMMError
from ..inference.fit import Errors, Fit
from ..inference.genetic_tests import NO_KINSHIP
from ..inference.group_score import SHARED, SPECIFIC
from .kept import kept
from .record import Covariance, Record

COLUMNS = ("genetic", "environment", "h2", "std_error", "conf_low", "conf_high", "note")
"""Columns of the table of heritabilities."""
TOTAL = "total"
_ROW, _PAIR = ["kinship", "part"], ["kinship", "celltype", "other"]
_ALWAYS_ONE = "1 by the genetic structure"
_NOT_THERE = "the genetic structure has no such part"
_NOT_POSITIVE = "the variance between donors is not clearly positive"
_NO_VARIANCE = "a genetic variance is not clearly positive"
_NO_ERRORS = "there are no standard errors of the components, or no residual degrees of freedom"
_BEYOND = "beyond 1, as moments know no bounds"


@dataclass(frozen=True, eq=False)
class Heritability:
    """Heritabilities and genetic correlations of a fit.

    Attributes
    ----------
    table : DataFrame
        A row per kinship and part: "shared", "specific", "total", then the cell types.  Columns
        genetic and environment (variances between donors), h2, std_error, conf_low, conf_high,
        and note: why there is no interval.
    correlations : DataFrame
        A row per kinship and pair of cell types: correlation, std_error, conf_low, conf_high,
        note.
    target : str
        What the errors are about.
    """

    table: pd.DataFrame
    correlations: pd.DataFrame
    target: str

    def __str__(self) -> str:
        parts = [_text(self.table)]
        if len(self.correlations):
            parts += ["genetic correlations", _text(self.correlations)]
        return "\n".join([*parts, self.target])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join([self.table.to_html(), self.correlations.to_html(), f"<p>{self.target}</p>"])


def _text(table: pd.DataFrame) -> str:
    return table.to_string(float_format=lambda value: f"{value:.4g}", na_rep="")


@kept
def heritability(res: Record, covariance: Covariance = None, alpha: float = 0.05) -> Heritability:
    """How much of the variance between donors is genetic: shared, specific, by cell type.

    Ratios of components, see :mod:`ctmm_formula.results.heritability`: without the noise of cells
    in the denominator; of moments unbounded.

    Parameters
    ----------
    covariance : Jackknife, optional
        Another jackknife than that over single donors.
    alpha : float
        One less the confidence of the intervals.

    Returns
    -------
    Heritability
        ``table``, ``correlations``.

    Raises
    ------
    CTMMError
        The fit has no kinship.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> donors = df["donor"].unique()
    >>> sibs = np.arange(len(donors)) // 3
    >>> K = pd.DataFrame(0.5 * (np.equal.outer(sibs, sibs) + np.eye(len(donors))), donors, donors)
    >>> res = ctmm.fit("expr ~ C(celltype)", kinship=K, structure="iid", data=df)
    >>> res.vcomp.index.tolist()
    ['hom', 'V', 'genetic:hom', 'genetic:V']
    >>> res.heritability().table.loc["genetic"].index.tolist()
    ['shared', 'specific', 'total', 'day0', 'day1', 'day2', 'day3']
    """
    check_alpha(alpha)
    kinship, types = res.design.kinship, res.celltypes
    if not kinship:
        raise CTMMError(NO_KINSHIP)
    fit, errors = res.numbers, res.shown_errors(covariance)
    theta, reach = fit.estimate.theta, reach_of(errors, fit.n_params, alpha)
    cov = errors.cov[fit.n_fixed :, fit.n_fixed :]
    rows = parts_of(fit, theta, cov, reach)
    pairs = []
    for term, at in zip(fit.model.kinship, fit.model.kinship_slices, strict=True):
        for c, d in combinations(range(len(types)), 2):
            A = np.zeros((3, len(theta)))
            A[:, at] = term.basis[:, [c, c, d], [d, c, d]].T
            pairs.append(_correlation(A, theta, cov, reach))
    of_kinship = [one.name for one in kinship]
    two = [(k, c, d) for k in of_kinship for c, d in combinations(types, 2)]
    both = pd.MultiIndex.from_frame(pd.DataFrame(two, columns=_PAIR))
    return Heritability(
        pd.DataFrame(
            rows, pd.MultiIndex.from_product([of_kinship, names_of(types)], names=_ROW),
            list(COLUMNS),
        ),
        pd.DataFrame(pairs, both, ["correlation", *COLUMNS[3:]]),
        target_of(errors, fit),
    )  # fmt: skip


def target_of(errors: Errors, fit: Fit) -> str:
    """What the errors are about."""
    if errors.groups is not None:
        return (
            f"errors by the {errors.name}: of other donors of this population, in whom variants "
            "have the effects that they have here"
        )
    if fit.is_weighted:
        return (
            "errors by the covariance that weighs: of the model's variances, for effects of "
            "variants drawn anew"
        )
    edge = "; a component lies on its bound, where they are no guide" if fit.on_edge else ""
    return (
        "errors by the information of the model: of its variances, for effects of variants drawn "
        f"anew, and noise that is known{edge}"
    )


def names_of(types: Sequence[str]) -> list[str]:
    """Names of the parts that have a heritability.

    >>> names_of(("T", "B")), names_of(("T",))
    (['shared', 'specific', 'total', 'T', 'B'], ['total', 'T'])
    """
    return [*([SHARED, SPECIFIC] if len(types) > 1 else []), TOTAL, *types]


def reach_of(errors: Errors, n_params: int, alpha: float) -> float:
    """Half the width of an interval in standard errors; NaN without degrees of freedom."""
    df = errors.df(np.eye(1, n_params, n_params - 1))  # of components
    return float(t_reach(alpha / 2, np.where(df > 0, df, np.nan))[0])


def parts_of(fit: Fit, theta: np.ndarray, cov: np.ndarray, reach: float) -> list[list[Any]]:
    """Values of ``COLUMNS`` of every part of every kinship, at components theta (K,)."""
    model = fit.model
    matrices = [fit.structure.basis, *(term.basis for term in model.kinship)]
    places = [slice(0, len(fit.structure.basis)), *model.kinship_slices]
    scales = [1.0, *(term.kernel.scale for term in model.kinship)]
    # what every part of the covariance (a row) takes of the components
    C = model.H.shape[1]
    first = 3 if C > 1 else 1
    of = np.r_[[first - 1] * first, first : first + C]  # parts of the total are shares of all of it
    every = np.zeros((len(matrices), len(of), len(theta)))
    for own, basis, at, scale in zip(every, matrices, places, scales, strict=True):
        own[:, at] = scale * _parts(basis)
    wholes = every.sum(axis=0)[of]
    return [
        [top @ theta, own @ theta, *_ratio(top, whole, theta, cov, reach)]
        for part in every[1:]
        for top, own, whole in zip(part, every[0], wholes, strict=True)
    ]


def _parts(basis: np.ndarray) -> np.ndarray:
    """What parts take of matrices (K, C, C), (parts, K): shared, specific, total, cell types."""
    own = np.diagonal(basis, axis1=1, axis2=2)
    C, total = own.shape[1], own.mean(axis=1)
    if C < 2:
        return np.array([total, *own.T])
    shared = (basis.sum(axis=(1, 2)) - own.sum(axis=1)) / (C * (C - 1))
    parts = np.array([shared, total - shared, total, *own.T])
    return np.where(np.abs(parts) > 1e-12 * np.abs(basis).max(), parts, 0.0)


def _ratio(
    top: np.ndarray, whole: np.ndarray, theta: np.ndarray, cov: np.ndarray, reach: float
) -> list[object]:
    """top't / whole't with its standard error, Fieller's interval, and why there is none."""
    if not top.any():
        return [0.0, math.nan, math.nan, math.nan, _NOT_THERE]
    weights = np.array([top, whole])
    a, b = weights @ theta
    V = weights @ cov @ weights.T
    clear = b * b - reach**2 * V[1, 1]
    if not (b > 0.0 and clear > 0.0):
        known = np.isfinite(V).all() and math.isfinite(reach)
        return [math.nan] * 4 + [_NOT_POSITIVE if known else _NO_ERRORS]
    h = a / b
    se = math.sqrt(max(V[0, 0] - 2.0 * h * V[0, 1] + h * h * V[1, 1], 0.0)) / b
    middle = (a * b - reach**2 * V[0, 1]) / clear
    half = math.sqrt(max(middle**2 - (a * a - reach**2 * V[0, 0]) / clear, 0.0))
    return [h, se, middle - half, middle + half, ""]


def _correlation(A: np.ndarray, theta: np.ndarray, cov: np.ndarray, reach: float) -> list[object]:
    """A_cd / (A_cc A_dd)^1/2 of rows (cd, cc, dd), by the delta method for its inverse tanh."""
    if np.array_equal(A[1], A[0]) and np.array_equal(A[2], A[0]):
        return [1.0, math.nan, math.nan, math.nan, _ALWAYS_ONE]
    cd, cc, dd = A @ theta
    V = A @ cov @ A.T
    if not (np.isfinite(V).all() and math.isfinite(reach)):
        return [math.nan] * 4 + [_NO_ERRORS]
    if not min(cc - reach * math.sqrt(V[1, 1]), dd - reach * math.sqrt(V[2, 2])) > 0.0:
        return [math.nan] * 4 + [_NO_VARIANCE]
    r = cd / math.sqrt(cc * dd)
    turn = np.array([1.0 / math.sqrt(cc * dd), -r / (2.0 * cc), -r / (2.0 * dd)])
    se = math.sqrt(max(turn @ V @ turn, 0.0))
    if abs(r) >= 1.0:
        return [r, se, math.nan, math.nan, _BEYOND]
    ends = np.tanh(math.atanh(r) + np.array([-reach, reach]) * se / (1.0 - r * r))
    return [r, se, *ends.tolist(), ""]
