"""Fill the missing pairs of a pseudobulk AnnData.

For one fit there is no need: :func:`ctmm_formula.fit` takes the rows there are, and its
likelihood is that of what was observed.  Imputation is for methods that want complete data.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import choose, generator, on_off, real, shown, whole_number
from ..design.table import donors_named, listing
from ..errors import CTMMError, CTMMWarning, DataError
from . import softimpute
from .fill import METHODS, Complete, Filled, Options, fill
from .tables import Grid, read_grid

if TYPE_CHECKING:
    from anndata import AnnData

NEGATIVE = ("max", "zero", "keep")


def impute(
    pb: AnnData,
    method: str = "softimpute",
    *,
    by: str | None = None,
    engine: str = "native",
    penalty: float | tuple[float, float] | None = None,
    holdout: str = "pairs",
    folds: int = 5,
    scale: bool = True,
    negative: str = "max",
    prior: float = 1.0,
    rng: np.random.Generator | int | None = None,
) -> AnnData:
    """Fill missing pairs (donor, cell type) of a pseudobulk, mean and noise variance apart.

    Observed values stay.  Imputed pairs are marked in ``obs["imputed"]``; a fit without them is
    ``ctmm.fit(..., data=imputed[~imputed.obs["imputed"]])``.

    Parameters
    ----------
    pb : AnnData
        Pairs of donor and cell type, from :func:`ctmm_formula.pseudobulk`.
    method : {"softimpute", "mvn", "mean"}
        Soft-thresholded singular values; conditional means of a multivariate normal estimated by
        EM; means of the cell type.
    by : {"transcriptome", "gene"}, optional
        One matrix donors x (gene and cell type), or one matrix donors x cell types for each gene.
        Default: the transcriptome for "softimpute", genes for the others.
    engine : {"native", "r"}
        Who solves soft-impute: this package, or the R package softImpute, with lambda chosen by
        this package.
    penalty : float or (float, float), optional
        lambda, or one for the mean and one for the noise, in units of the matrix as scaled.
        Default: chosen by cross-validation, for each gene if ``by="gene"``.
    holdout : {"pairs", "entries"}
        What the folds of cross-validation hide: whole pairs, in the patterns of missing pairs that
        occur (see :func:`ctmm_formula.evaluate_imputation`), or random entries as in the published
        analysis.  Random entries are easier to guess than missing pairs, and take minutes where
        pairs take seconds.
    folds : int
    scale : bool
        Divide the columns by their standard deviations, so that genes count alike.  Columns are
        always centred.
    negative : {"max", "zero", "keep"}
        What to do with imputed noise variances below zero: the largest noise variance of the gene
        and cell type (as published for cell type-specific pseudobulk), zero (as published on the
        way to overall pseudobulk), or nothing.
    prior : float
        Weight of uncorrelated cell types, in donors, for "mvn"; 0 is maximum likelihood.
    rng : numpy Generator or seed, optional
        Of the folds.

    Returns
    -------
    AnnData
        A copy.  ``uns["ctmm"]["imputed"]`` records method, lambda, cross-validation, and how many
        pairs were filled and noise variances mended.  ``layers["nu2"]`` stays NaN in the pairs
        filled: no cells tell how far their noise variance may be off.

    Raises
    ------
    DataError
        Not a pseudobulk of pairs, infinite values, noise missing where the mean is not, or one
        donor only.
    CTMMError
        Unknown or contradictory settings, or no pairs that cross-validation can hide.
    RUnavailableError
        ``engine="r"`` without R, rpy2 or softImpute; it says what to install.

    Warns
    -----
    CTMMWarning
        Donors or cell types without any observed pair: they stay missing.

    References
    ----------
    Mazumder, Hastie & Tibshirani (2010). J Mach Learn Res 11:2287.

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
    >>> full = ctmm.impute(pb, rng=1)
    >>> full.obs.index[full.obs["imputed"]].tolist(), int(np.isnan(full.X).sum())
    (['d1|T', 'd2|T'], 0)
    """
    options = _options(method, by, holdout, folds, scale, prior)
    choose("negative", negative, NEGATIVE)
    complete = _engine(engine, method)
    both = _penalties(penalty, method)
    grid = read_grid(pb)
    _check(grid, pb)
    rng = generator(rng)
    mean, noise = (
        fill(values, replace(options, penalty=p), rng, complete)
        for values, p in zip((grid.mean, grid.nu), both, strict=True)
    )
    nu, n_negative = mend(grid.nu, noise.values, negative)
    left = np.isnan(mean.values).any(axis=2)
    imputed = grid.missing & ~left
    result = pb.copy()
    result.X = mean.values.reshape(pb.shape)
    result.layers["nu"] = nu.reshape(pb.shape)
    # a second call must not forget the first
    earlier = pb.obs["imputed"].to_numpy(bool) if "imputed" in pb.obs else False
    result.obs["imputed"] = imputed.ravel() | earlier
    result.uns["ctmm"] = dict(result.uns["ctmm"]) | {
        "imputed": {
            "method": method,
            "by": options.by,
            "engine": engine,
            "scale": scale,
            "holdout": holdout,
            "negative": negative,
            "pairs": int(imputed.sum()),
            "pairs_left_missing": int(left.sum()),
            "negative_noise": n_negative,
            "mean": _record(mean),
            "noise": _record(noise),
        }
    }
    _warn(grid, mean, noise)
    return result


def mend(observed: np.ndarray, nu: np.ndarray, negative: str) -> tuple[np.ndarray, int]:
    """Imputed noise variances below zero replaced, and how many there were; (N, C, G).

    >>> observed = np.array([[[1.0]], [[3.0]], [[np.nan]]])
    >>> filled, count = mend(observed, np.array([[[1.0]], [[3.0]], [[-0.5]]]), "max")
    >>> filled.ravel().tolist(), count
    ([1.0, 3.0, 3.0], 1)
    """
    below = np.isnan(observed) & (nu < 0.0)
    count = int(below.sum())
    if not count or negative == "keep":
        return nu, count
    if negative == "zero":
        return np.where(below, 0.0, nu), count
    largest = np.where(np.isnan(nu), -np.inf, nu).max(axis=0)
    return np.where(below, largest, nu), count


def _options(
    method: str, by: str | None, holdout: str, folds: int, scale: bool, prior: float
) -> Options:
    """Settings checked."""
    choose("method", method, METHODS)
    by = METHODS[method] if by is None else choose("by", by, ["transcriptome", "gene"])
    if method == "mvn" and by == "transcriptome":
        raise CTMMError("method='mvn' works gene by gene: a covariance of all genes needs far more "
                        "donors than there are; use by='gene', or method='softimpute'")  # fmt: skip
    choose("holdout", holdout, ["pairs", "entries"])
    scale = on_off("scale", scale)
    if not 0.0 <= real(prior) < np.inf:
        raise CTMMError(f"prior must be zero or a positive number, got {shown(prior)}")
    return Options(
        method=method,
        by=by,
        holdout=holdout,
        folds=whole_number("folds", folds, 2),
        scale=scale,
        prior=real(prior),
    )


def _penalties(penalty: Any, method: str) -> tuple[float | None, float | None]:
    """lambda of mean and noise."""
    if penalty is None:
        return None, None
    if method != "softimpute":
        raise CTMMError(f"penalty= is for method='softimpute', {method!r} has none")
    try:
        both = np.atleast_1d(np.asarray(penalty, dtype=float))
    except (TypeError, ValueError, OverflowError):
        both = np.empty(0)
    if both.shape not in [(1,), (2,)] or not np.isfinite(both).all() or (both <= 0.0).any():
        raise CTMMError(
            "penalty must be one positive number, or two (for the mean and for the noise), got "
            f"{shown(penalty)}"
        )
    return float(both[0]), float(both[-1])


def _engine(engine: str, method: str) -> Complete:
    """Who solves soft-impute."""
    choose("engine", engine, ["native", "r"])
    if engine == "native":
        return softimpute.complete
    if method != "softimpute":
        raise CTMMError(f"engine='r' is for method='softimpute', not for {method!r}")
    from .. import r

    r.check("softImpute")

    def complete(Y: np.ndarray, penalty: np.ndarray, **settings: Any) -> softimpute.Completion:
        # R's tolerance is on another scale, and it starts afresh
        return r.softimpute(Y, penalty)

    return complete


def _check(grid: Grid, pb: AnnData) -> None:
    """Numbers that can be learnt from."""
    for values, name in ((grid.mean, "X"), (grid.nu, 'layers["nu"]')):
        flat = values.reshape(len(pb), -1)
        infinite = np.argwhere(np.isinf(flat))
        if len(infinite):
            row, gene = infinite[0]
            raise DataError(
                f"{name} is infinite in {len(infinite)} places, the first is pair "
                f"{pb.obs_names[row]!r}, gene {pb.var_names[gene]!r}: mend or leave out"
            )
        odd = np.flatnonzero((np.isnan(flat) != grid.missing.reshape(-1, 1)).any(axis=1))
        if len(odd):
            raise DataError(
                f"{name} has values where the pair is missing, or none where it is not, in "
                f"{listing(list(pb.obs_names[odd]))}: a missing pair is NaN in X and in "
                'layers["nu"], for all genes'
            )


def _record(filled: Filled) -> dict[str, Any]:
    """What uns keeps of a completed tensor: arrays and numbers that h5ad can hold."""
    one = np.unique(filled.penalty)
    return {
        "penalty": float(one[0]) if len(one) == 1 else filled.penalty,
        "relative_grid": filled.grid,
        "cv_loss": filled.loss,
        "converged": filled.converged,
    }


def _warn(grid: Grid, mean: Filled, noise: Filled) -> None:
    """What could not be filled, and what did not settle."""
    donors = list(grid.donors[np.flatnonzero(grid.missing.all(axis=1))])
    celltypes = list(grid.celltypes[np.flatnonzero(grid.missing.all(axis=0))])
    parts = []
    if donors:
        have = (
            "has no observed pair and stays"
            if len(donors) == 1
            else "have no observed pair and stay"
        )
        parts.append(f"{donors_named(donors)} {have} missing")
    if celltypes:
        parts.append(f"cell types {listing(celltypes)} have no donor and stay missing")
    if not (mean.converged and noise.converged):
        parts.append("the iteration did not settle: results may be off, try a larger penalty=")
    if parts:
        warnings.warn("impute: " + "; ".join(parts), CTMMWarning, stacklevel=3)
