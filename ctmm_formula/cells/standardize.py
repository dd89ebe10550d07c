"""Steps on pseudobulk: overall pseudobulk, standardisation, principal components, gene filter.

Overall pseudobulk of donor i is the sum over cell types of P_ic y_ic, with P the proportions.  With
a missing pair that sum does not exist, and zero in its place would shift the donor by P_ic times
the mean of the cell type.  All steps here take one of three ways, ``missing=``:

``"observed"``
    the donor's proportions are rescaled to sum to one over its observed cell types.  The result
    obeys the model, with the rescaled proportions in mean and variance, so it may be fitted.
``"complete"``
    donors that miss a pair with cells are left out.
``"error"``
    such donors are refused.

A pair that is missing because the donor has no cell of that type has P_ic = 0 and harms nothing.
Imputed pairs count with their proportion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import choose, real, shown, whole_number
from ..design.table import amount, listing
from ..errors import DataError
from .scale import summary_of
from .tables import (
    UNSEEN,
    Grid,
    kind_of,
    log,
    matrices,
    read_grid,
    require_anndata,
    stored_types,
)

if TYPE_CHECKING:
    from anndata import AnnData

MISSING = ("observed", "complete", "error")
CONSTANT = 1e-12
"""A standard deviation this small, relative to the largest value, is rounding."""


def overall(pb: AnnData, *, missing: str = "observed") -> AnnData:
    """Overall pseudobulk: cell types averaged by the donor's proportions.

    Parameters
    ----------
    pb : AnnData
        Cell type-specific pseudobulk.
    missing : {"observed", "complete", "error"}
        What to do with donors that miss a pair, see :mod:`ctmm_formula.cells.standardize`.

    Returns
    -------
    AnnData, donors x genes
        ``X`` = sum of P y, ``layers["nu"]`` = sum of P^2 nu, ``obsm["proportions"]`` the P used,
        ``obs`` donor, n_cells (of the pairs used) and covariates of the donors.
        ``layers["nu2"]``, where the pseudobulk has it: the square of that sum with P^4 nu2 in
        place of the squares P^4 nu^2, unbiased as the cells of different types are independent;
        NaN for donors that use a pair where it is not known.
        ``ctmm.fit("GENE ~ sex", data=overall(pb))`` finds the proportions by itself.

    Raises
    ------
    DataError
        No cell type-specific pseudobulk, or missing pairs (``missing="error"``).

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"donor": ["d1"] * 5 + ["d2"] * 4, "celltype": list("BBBTTBBTT")})
    >>> X = pd.DataFrame({"CD19": [3, 2.5, 2, 0, 1, 3, 4, 0.5, 0]})
    >>> pb = ctmm.pseudobulk(X, obs=obs, min_cells=1, min_cells_donor=1)
    >>> op = ctmm.overall(pb)
    >>> op.to_df()
         CD19
    d1  1.700
    d2  1.875
    >>> op.obsm["proportions"]
          B    T
    d1  0.6  0.4
    d2  0.5  0.5
    """
    anndata = require_anndata()
    choose("missing", missing, MISSING)
    grid = read_grid(pb)
    weights, keep, text = _weights(grid, missing)
    mean, nu = _average(grid, weights)
    layers = {"nu": nu[keep]}
    if "nu2" in pb.layers:
        layers["nu2"] = _average_square(grid, weights, nu)[keep]
    proportions = pd.DataFrame(
        weights[keep],
        index=pd.Index(grid.donors[keep]),
        columns=pd.Index(stored_types(grid.celltypes), dtype=object),
    )
    obs, lost = _donor_columns(pb.obs, grid)
    obs["n_cells"] = np.where(weights > 0, grid.n_cells, 0).sum(axis=1).astype(np.int64)
    out = anndata.AnnData(
        X=mean[keep],
        obs=obs[keep],
        var=pb.var.copy(),
        layers=layers,
        obsm={"proportions": proportions},
        uns={"ctmm": _copy(pb)},
    )
    out.uns["ctmm"].update(kind="op", overall={"missing": missing, "columns_left_out": lost})
    _note(out, "overall", text)
    return out


def standardize(pb: AnnData, *, missing: str = "observed") -> AnnData:
    """Scale each gene so that overall pseudobulk has mean 0 and variance 1 (ddof 1) over donors.

    Parameters
    ----------
    pb : AnnData
        Cell type-specific or overall pseudobulk.
    missing : {"observed", "complete", "error"}
        How donors that miss a pair enter mean and standard deviation, see
        :mod:`ctmm_formula.cells.standardize`.  Their observed pairs are scaled in any case, and
        missing pairs stay missing.

    Returns
    -------
    AnnData
        A copy with (X - mean) / sd, nu / sd^2 and nu2 / sd^4, the same mean and sd for all cell
        types of a gene.  These stand in ``var["op_mean"]`` and ``var["op_sd"]``: variance
        components times sd^2, effects times sd and means times sd plus mean are on the scale
        before.

    Raises
    ------
    DataError
        Genes without variance, or data standardised already.

    Notes
    -----
    As in Chen and Dahl, Nat Commun 15:5229 (2024); but a missing pair never counts as zero.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"donor": ["d1"] * 5 + ["d2"] * 4, "celltype": list("BBBTTBBTT")})
    >>> X = pd.DataFrame({"CD19": [3, 2.5, 2, 0, 1, 3, 4, 0.5, 0]})
    >>> pb = ctmm.pseudobulk(X, obs=obs, min_cells=1, min_cells_donor=1)
    >>> scaled = ctmm.standardize(pb)
    >>> ctmm.overall(scaled).to_df().round(6)
            CD19
    d1 -0.707107
    d2  0.707107
    >>> scaled.var[["op_mean", "op_sd"]].round(4)
          op_mean   op_sd
    CD19   1.7875  0.1237
    """
    choose("missing", missing, MISSING)
    kind_of(pb)
    if "standardized" in pb.uns["ctmm"]:
        raise DataError("the pseudobulk is standardised already: var['op_mean'], var['op_sd']")
    values, used, text = _overall_values(pb, missing)
    if used.sum() < 2:
        few = amount(used.sum(), "donor has", "donors have")
        raise DataError(f"{few} overall pseudobulk: a variance needs two")
    mean, sd = values[used].mean(axis=0), values[used].std(axis=0, ddof=1)
    flat = np.flatnonzero(~(sd > CONSTANT * np.abs(values[used]).max(axis=0)))
    if len(flat):
        raise DataError(
            f"genes have no variance between donors, {listing(list(pb.var_names[flat]))}: leave "
            "them out, ctmm.filter_genes(pb)"
        )
    X, nu = matrices(pb)
    out = pb.copy()
    out.X = (X - mean) / sd
    out.layers["nu"] = nu / sd**2
    if "nu2" in pb.layers:
        out.layers["nu2"] = pb.layers["nu2"] / sd**4
    out.var["op_mean"], out.var["op_sd"] = mean, sd
    out.uns["ctmm"]["standardized"] = {"ddof": 1, "missing": missing, "donors": int(used.sum())}
    _note(out, "standardize", text)
    return out


def principal_components(pb: AnnData, n: int = 6, *, missing: str = "observed") -> AnnData:
    """Add principal components of overall pseudobulk as covariates of the donors.

    Each gene is centred and scaled to variance 1 over donors; genes without variance take no
    part.

    Parameters
    ----------
    pb : AnnData
        Cell type-specific or overall pseudobulk.
    n : int
        Number of components.
    missing : {"observed", "complete", "error"}
        See :mod:`ctmm_formula.cells.standardize`; donors left out get no components (NaN).

    Returns
    -------
    AnnData
        A copy with columns PC1, ..., PCn in obs: scores, uncorrelated, largest variance first,
        the gene of the largest loading positive.  ``uns["ctmm"]["principal_components"]`` holds
        the shares of variance.

    Raises
    ------
    DataError
        Fewer donors than components, or columns of these names.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"donor": np.repeat(list("abcde"), 20), "celltype": ["B", "T"] * 50})
    >>> X = pd.DataFrame(rng.gamma(2.0, size=(100, 8)), columns=[f"g{k}" for k in range(8)])
    >>> pb = ctmm.pseudobulk(X, obs=obs, min_cells=1, min_cells_donor=1)
    >>> pb = ctmm.principal_components(pb, 2)
    >>> [name for name in pb.obs if name.startswith("PC")]
    ['PC1', 'PC2']
    >>> bool(pb.uns["ctmm"]["principal_components"]["variance_ratio"].sum() < 1)
    True
    """
    choose("missing", missing, MISSING)
    kind = kind_of(pb)
    values, used, text = _overall_values(pb, missing)
    n = whole_number("n", n, 1)
    names = [f"PC{k + 1}" for k in range(n)]
    clash = [name for name in names if name in pb.obs]
    if clash:
        raise DataError(f"obs has columns {listing(clash)} already: leave them out first")
    part = values[used]
    sd = part.std(axis=0)
    keep = sd > CONSTANT * np.abs(part).max(axis=0, initial=0.0)
    most = min(len(part) - 1, int(keep.sum()))
    if n > most:
        raise DataError(
            f"{len(part)} donors and {keep.sum()} genes that vary have at most {max(most, 0)} "
            f"components, not {n}"
        )
    scores, share = _components((part[:, keep] - part[:, keep].mean(axis=0)) / sd[keep], n)
    full = np.full((len(values), n), np.nan)
    full[used] = scores
    out = pb.copy()
    repeats = 1 if kind == "op" else pb.n_obs // len(values)
    for name, column in zip(names, np.repeat(full, repeats, axis=0).T, strict=True):
        out.obs[name] = column
    out.uns["ctmm"]["principal_components"] = {
        "n": n, "missing": missing, "genes": int(keep.sum()), "variance_ratio": share,
    }  # fmt: skip
    _note(out, "principal_components", text)
    return out


def filter_genes(
    pb: AnnData, *, min_share: float = 0.1, celltypes: str = "every", above: float = 0.0
) -> AnnData:
    """Keep genes that are expressed in enough donors, and vary between them.

    Parameters
    ----------
    pb : AnnData
        Cell type-specific or overall pseudobulk.
    min_share : float
        A gene must be expressed in more than this share of the donors that are observed in a
        cell type.
    celltypes : {"every", "any"}
        Whether this, and a variance between donors above zero, is asked of every cell type or of
        one at least.  Cell types of one donor are asked for no variance, those of none nothing.
    above : float
        Expressed is a mean above this; for logarithms of means, which have no zero, counts of a
        pair (``layers["counts"]``) above this.

    Returns
    -------
    AnnData
        A copy; ``uns["ctmm"]["genes"]`` holds the rule and what it took, ``var["mean"]`` the mean
        of the gene's observed rows, and ``var["zero_noise"]`` the share of them whose cells are
        all alike (mostly: all zero).  Where that is more than half, tests of V find large effects
        only.

    Raises
    ------
    DataError
        No gene is left, and which rule took how many; or logarithms of means without their
        counts, as overall pseudobulk has them.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import pandas as pd
    >>> obs = pd.DataFrame({"donor": ["d1"] * 4 + ["d2"] * 4, "celltype": list("BBTTBBTT")})
    >>> X = pd.DataFrame({"CD19": [2.5, 1.5, 0, 0, 3, 4, 0, 0], "CD3E": [0.5, 1.5, 2, 3] * 2,
    ...                   "ACTB": [3, 4.5, 3, 4, 3.5, 3, 2.5, 4]})
    >>> pb = ctmm.pseudobulk(X, obs=obs, min_cells=1, min_cells_donor=1)
    >>> list(ctmm.filter_genes(pb).var_names)
    ['ACTB']
    >>> list(ctmm.filter_genes(pb, celltypes="any").var_names)
    ['CD19', 'ACTB']
    """
    choose("celltypes", celltypes, ["every", "any"])
    if not math.isfinite(real(above)):
        raise DataError(f"above= must be a number, got {shown(above)}")
    if not 0 <= real(min_share) < 1:
        raise DataError(f"min_share= must be a share from 0 to below 1, got {shown(min_share)}")
    above, min_share = real(above), real(min_share)
    kind = kind_of(pb)
    values = matrices(pb)[0][:, None, :] if kind == "op" else read_grid(pb).mean
    amount = values
    if summary_of(pb.uns) == "log_mean":
        if "counts" not in pb.layers:
            raise DataError(
                "logarithms of means have no zero: filter the genes before ctmm.overall, or by "
                "pb.var['min_counts']"
            )
        amount = np.asarray(pb.layers["counts"]).reshape(values.shape)
    there = ~np.isnan(values)
    counts = np.maximum(there.sum(axis=0), 1)
    share = (there & (np.where(there, amount, 0.0) > above)).sum(axis=0) / counts
    seen = there.any(axis=(0, 2))
    least = np.where(there, values, np.inf).min(axis=0)
    most = np.where(there, values, -np.inf).max(axis=0)
    with np.errstate(invalid="ignore"):  # cell types nobody has
        differs = most - least > CONSTANT * np.maximum(np.abs(most), np.abs(least))
    rule = np.all if celltypes == "every" else np.any
    expressed = rule(share[seen] > min_share, axis=0)
    # one donor alone cannot differ
    several = there.sum(axis=0).max(axis=1) > 1
    varies = rule(differs[several], axis=0)
    keep = expressed & varies
    X, nu = matrices(pb)
    rows = np.maximum((~np.isnan(X)).sum(axis=0), 1)
    average, zero = np.nansum(X, axis=0) / rows, (nu == 0).sum(axis=0) / rows
    low = keep & (zero > UNSEEN)
    record = {
        "min_share": min_share, "celltypes": celltypes, "above": above,
        "genes": int(keep.size), "kept": int(keep.sum()),
        "not_expressed": int((~expressed).sum()), "constant": int((expressed & ~varies).sum()),
        "low": int(low.sum()),
    }  # fmt: skip
    text = (
        f"{record['not_expressed']} of {keep.size} genes are left out, they are expressed in a "
        f"share of at most {min_share:g} of the donors in {'some' if rule is np.all else 'every'} "
        f"cell type; {record['constant']} more do not vary between donors"
    )
    if not keep.any():
        raise DataError(f"no gene is left: {text}; lower min_share=, or celltypes='any'")
    out = pb[:, keep].copy()
    out.var["mean"], out.var["zero_noise"] = average[keep], zero[keep]
    out.uns["ctmm"]["genes"] = record
    text = "" if keep.all() else text
    if low.any():
        few = (
            f"{low.sum()} of those kept are the same in all cells of most pairs "
            f"(var['zero_noise'] > {UNSEEN:g}): tests of V find large effects only"
        )
        text = "; ".join(filter(None, (text, few)))
    _note(out, "filter_genes", text)
    return out


# ---------------------------------------------------------------------------------------------


def _weights(grid: Grid, missing: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Proportions in use (N, C), donors in use (N,), and a note on the incomplete ones."""
    incomplete = np.asarray((grid.missing & (grid.proportions > 0)).any(axis=1))
    weights = np.where(grid.missing, 0.0, grid.proportions)
    total = weights.sum(axis=1, keepdims=True)
    if (total == 0).any():
        lost = grid.donors[(total == 0)[:, 0]]
        raise DataError(f"donors have no observed pair, {listing(list(lost))}: leave them out")
    weights = weights / total
    if not incomplete.any():
        return weights, np.ones(len(weights), dtype=bool), ""
    names = listing(list(grid.donors[incomplete]))
    text = f"{incomplete.sum()} of {len(incomplete)} donors miss pairs, {names}"
    if missing == "error":
        raise DataError(
            f"{text}: impute these (ctmm.impute), leave the donors out (missing='complete'), or "
            "rescale their proportions to the observed cell types (missing='observed')"
        )
    if missing == "complete":
        if incomplete.all():
            raise DataError(f"{text}: no donor is left; use missing='observed', or ctmm.impute")
        return weights, ~incomplete, f"{text}: they are left out"
    everyone = np.ones(len(weights), dtype=bool)
    return weights, everyone, f"{text}: their proportions are rescaled to the observed cell types"


def _average(grid: Grid, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and noise of overall pseudobulk, (N, G) each."""
    N, C, G = grid.mean.shape
    mean, nu = np.zeros((N, G)), np.zeros((N, G))
    for c in range(C):
        w, here = weights[:, c, None], weights[:, c] > 0
        mean[here] += (w * grid.mean[:, c])[here]
        nu[here] += (w**2 * grid.nu[:, c])[here]
    return mean, nu


def _average_square(grid: Grid, weights: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """Unbiased square of the noise variance `nu` of overall pseudobulk, (N, G)."""
    out = nu * nu
    for c in range(weights.shape[1]):
        here = weights[:, c] > 0
        excess = grid.nu2[here, c] - grid.nu[here, c] ** 2
        out[here] += weights[here, c, None] ** 4 * excess
    return np.maximum(out, 0.0)  # a sum of products that are not negative, but for rounding


def _overall_values(pb: AnnData, missing: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Overall pseudobulk of either kind (N, G), donors in use (N,), note."""
    if kind_of(pb) == "ctp":
        grid = read_grid(pb)
        weights, used, text = _weights(grid, missing)
        return _average(grid, weights)[0], used, text
    values = matrices(pb)[0]
    return values, np.asarray(~np.isnan(values).any(axis=1)), ""


def _components(Z: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, n) and shares of variance (n,) of a standardised matrix."""
    values, vectors = np.linalg.eigh(Z @ Z.T)
    order = np.argsort(values)[::-1][:n]
    U, size = vectors[:, order], np.sqrt(np.maximum(values[order], 0.0))
    loadings = Z.T @ U
    sign = np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(n)])
    return U * size * np.where(sign == 0, 1.0, sign), values[order] / values.sum()


def _donor_columns(obs: pd.DataFrame, grid: Grid) -> tuple[pd.DataFrame, np.ndarray]:
    """obs of the donors: columns that are the same in all pairs of each donor; the others."""
    N, C = grid.missing.shape
    columns: dict[str, Any] = {}
    lost = []
    for name in obs:
        if name in ("celltype", "proportion"):
            continue
        codes = pd.factorize(obs[name])[0].reshape(N, C)
        # a missing value is filled from the donor's other pairs
        known = np.where(codes >= 0, np.arange(C), C).min(axis=1)
        first = codes[np.arange(N), np.minimum(known, C - 1)]
        if name == "n_cells" or ((codes == first[:, None]) | (codes < 0)).all():
            at = np.arange(N) * C + np.minimum(known, C - 1)
            columns[str(name)] = obs[name].iloc[at].array
        else:
            lost.append(str(name))
    frame = pd.DataFrame(columns, index=pd.Index(grid.donors))
    return frame, np.array(lost, dtype=object)


def _copy(pb: AnnData) -> dict[str, Any]:
    """The record of steps so far, and nothing shared with the input."""
    return {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in pb.uns["ctmm"].items()
    }


def _note(pb: AnnData, step: str, text: str) -> None:
    """Add what a step has to say to the notes."""
    if text:
        log.info("%s: %s", step, text)
        notes = [*pb.uns["ctmm"].get("notes", []), f"{step}: {text}"]
        pb.uns["ctmm"]["notes"] = np.array(notes, dtype=object)
