"""How well missing pairs are filled: hide observed ones, fill them, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import choose, generator, name_list, real, shown, whole_number
from ..errors import CTMMError, DataError
from .fill import METHODS
from .holes import copied_holes, split
from .impute import impute
from .tables import Grid, read_grid

if TYPE_CHECKING:
    from anndata import AnnData

COMPARED: dict[str, dict[str, Any]] = {
    "softimpute": {"method": "softimpute"},
    "softimpute by gene": {"method": "softimpute", "by": "gene"},
    "mvn": {"method": "mvn"},
    "mean": {"method": "mean"},
}
"""Methods compared by default, and their settings of :func:`ctmm_formula.impute`."""


def evaluate_imputation(
    pb: AnnData,
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    hide: str = "copied",
    fraction: float = 0.1,
    repeats: int = 10,
    rng: np.random.Generator | int | None = None,
) -> pd.DataFrame:
    """Accuracy of imputation on observed pairs that are hidden, several methods side by side.

    In each replicate the holes of random donors are copied onto other random donors until
    `fraction` of all pairs is newly hidden; no donor loses all its pairs, no cell type more than
    half of its donors.  Every method fills the same holes.

    Parameters
    ----------
    pb : AnnData
        Pairs of donor and cell type, from :func:`ctmm_formula.pseudobulk`.
    methods : sequence of str, or mapping of name to settings, optional
        Methods of :func:`ctmm_formula.impute`, or its keyword arguments under a name of your own.
        Default: soft-impute of the transcriptome and gene by gene, multivariate normal, means.
    hide : {"copied", "random"}
        Copy holes, or hide random pairs (for data without any missing pair).
    fraction : float
        Share of all pairs to hide.
    repeats : int
    rng : numpy Generator or seed, optional

    Returns
    -------
    DataFrame
        One row per method, quantity ("mean", "noise"), gene and cell type: ``mse``, the mean
        squared error of hidden values over the variance of all observed ones, and ``correlation``
        of hidden and filled values, both as medians over the replicates; ``repeats``, the number
        of replicates where the cell type had at least two different hidden values.  A correlation
        with constants is NaN.  Noise variances are compared as they were filled, also below zero.

    Raises
    ------
    DataError
        Not a pseudobulk of pairs, or no missing pair to copy.
    CTMMError
        Unknown methods or settings.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(20)], 60),
    ...                     "celltype": np.tile(list("BBBTTT"), 200)})
    >>> level = np.repeat(rng.gamma(2.0, 1.0, (20, 1)), 60, axis=0)
    >>> cells = pd.DataFrame(rng.gamma(level, 1.0, (1200, 5)), columns=list("abcde"))
    >>> few = (obs["donor"].isin(["d1", "d2"]) & (obs["celltype"] == "T")).to_numpy()
    >>> pb = ctmm.pseudobulk(cells[~few], obs=obs[~few], min_cells_donor=20)
    >>> table = ctmm.evaluate_imputation(pb, ["softimpute", "mean"], repeats=3, rng=1)
    >>> medians = table.groupby(["quantity", "method"])["mse"].median().round(2)
    >>> medians["mean"].to_dict(), medians["noise"].to_dict()
    ({'mean': 0.8, 'softimpute': 0.08}, {'mean': 0.93, 'softimpute': 0.44})
    """
    settings = _settings(methods)
    choose("hide", hide, ["copied", "random"])
    repeats, rng = whole_number("repeats", repeats, 1), generator(rng)
    grid = read_grid(pb)
    scores: dict[str, list[np.ndarray]] = {name: [] for name in settings}
    for _ in range(repeats):
        hidden = _hide(~grid.missing, hide, fraction, rng)
        masked = pb.copy()
        masked.X[hidden.ravel()] = np.nan
        masked.layers["nu"][hidden.ravel()] = np.nan
        seed = int(rng.integers(2**32))  # the same folds for every method
        for name, keywords in settings.items():
            chosen: dict[str, Any] = {"negative": "keep", "rng": seed} | keywords
            filled = read_grid(impute(masked, **chosen))
            scores[name].append(_score(grid, filled, hidden))
    return _table(scores, pb, grid)


def _settings(
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, dict[str, Any]]:
    """Name to keyword arguments of `impute`."""
    if methods is None:
        return COMPARED
    if isinstance(methods, str):
        methods = [methods]
    if isinstance(methods, Mapping):
        named = {str(name): dict(keywords) for name, keywords in methods.items()}
    else:
        named = {
            name: {"method": choose("method", name, METHODS)}
            for name in name_list("methods", methods)
        }
    if not named:
        raise CTMMError("methods is empty: name at least one")
    return named


def _hide(observed: np.ndarray, how: str, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Pairs to hide in one replicate, shape (N, C)."""
    if how == "random":
        if not 0.0 < real(fraction) <= 0.5:
            raise CTMMError(f"fraction= must be above 0 and at most 0.5, got {shown(fraction)}")
        hidden = next(split(observed, max(round(min(1.0 / real(fraction), 1e9)), 2), rng))
        # a donor must keep a pair
        return hidden & ~(hidden == observed).all(axis=1, keepdims=True)
    if observed.all():
        raise DataError("no pair is missing, so there are no holes to copy: use hide='random'")
    hidden = copied_holes(observed, fraction, rng)
    if not hidden.any():
        raise DataError("the holes cannot be copied onto other donors: use hide='random'")
    return hidden


def _score(grid: Grid, filled: Grid, hidden: np.ndarray) -> np.ndarray:
    """mse and correlation of mean and noise: shape (2 measures, 2 quantities, C, G)."""
    C, G = grid.mean.shape[1:]
    scores = np.full((2, 2, C, G), np.nan)
    pairs = ((grid.mean, filled.mean), (grid.nu, filled.nu))
    for k, (truth, guess) in enumerate(pairs):
        for c in np.flatnonzero(hidden.sum(axis=0) > 1):
            seen = truth[~grid.missing[:, c], c]
            t, g = truth[hidden[:, c], c], guess[hidden[:, c], c]
            use = np.ptp(t, axis=0) > 0.0
            variance = np.where(use, seen.var(axis=0, ddof=1), np.nan)
            scores[0, k, c] = ((t - g) ** 2).mean(axis=0) / variance
            scores[1, k, c] = np.where(use, _correlation(t, g), np.nan)
    return scores


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation column by column, NaN with a constant."""
    constant = (np.ptp(a, axis=0) == 0.0) | (np.ptp(b, axis=0) == 0.0)
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a * a).sum(axis=0) * (b * b).sum(axis=0))
    return np.where(constant, np.nan, (a * b).sum(axis=0) / np.where(constant, 1.0, size))


def _table(scores: dict[str, list[np.ndarray]], pb: AnnData, grid: Grid) -> pd.DataFrame:
    """Medians over the replicates in long form."""
    parts = []
    for name, replicates in scores.items():
        values = np.ma.masked_invalid(np.array(replicates))  # (repeats, 2, 2, C, G)
        medians = np.ma.median(values, axis=0).filled(np.nan)
        counts = np.isfinite(np.array(replicates))[:, 0].sum(axis=0)
        for k, quantity in enumerate(("mean", "noise")):
            table = pd.DataFrame(
                {
                    "method": name,
                    "quantity": quantity,
                    "gene": np.tile(np.asarray(pb.var_names, dtype=object), len(grid.celltypes)),
                    "celltype": np.repeat(np.asarray(grid.celltypes), pb.n_vars),
                    "mse": medians[0, k].ravel(),
                    "correlation": medians[1, k].ravel(),
                    "repeats": counts[k].ravel(),
                }
            )
            parts.append(table[table["repeats"] > 0])
    return pd.concat(parts, ignore_index=True)
