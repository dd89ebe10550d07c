"""Single cells: simulated, or resampled from real ones."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..arguments import MOST_DRAWS, Rng, choose, floats, generator, whole_number
from ..design.table import amount
from ..errors import CTMMError, CTMMWarning
from .genes import SimulatedGenes, gene_names, require_anndata
from .limits import NONE, drawing, measured, number, room
from .tables import celltype_names, known_keywords, make_study

if TYPE_CHECKING:
    from anndata import AnnData

_LARGEST_RATE = 1e12  # expected counts beyond which Poisson draws overflow


def simulate_cells(
    n_genes: int = 20,
    n_donors: int = 30,
    celltypes: int | Sequence[str] = 4,
    *,
    scale: str = "expression",
    kurtosis: float = 0.0,
    baseline: float = 4.0,
    depth: float = 2.0,
    dispersion: float = 0.5,
    rng: Rng = None,
    **study: Any,
) -> AnnData:
    """Simulate single cells of a study, for :func:`ctmm_formula.pseudobulk`.

    Parameters
    ----------
    n_genes, n_donors : int
    celltypes : int or sequence of str
    scale : {"expression", "counts"}
        - ``expression``: cell s has y_ic + e_ics with Var e = cell_variance, so that means of
          cells follow the model exactly
        - ``counts``: negative binomial with mean depth_s exp(y_ic), where depth_s varies between
          cells; for ``pseudobulk(normalize=...)``
    kurtosis : float
        Excess kurtosis of e: 0 for normal cells, above for skewed ones (gamma).
    baseline : float
        Added to the expression, so that it is not negative.
    depth : float
        Mean counts of a gene in a cell where y_ic is 0.
    dispersion : float
        Of the counts: variance mean + dispersion mean^2.
    rng : numpy Generator or seed, optional
    **study
        sigma2, V, beta, n_pcs, effects, n_batches, batch_variance, cells, min_cells,
        cell_variance, missing, as in :func:`simulate_pseudobulk`.

    Returns
    -------
    AnnData, cells x genes
        obs: donor, celltype, and covariates of the donor; ``uns["truth"]``: parameters.

    Raises
    ------
    CTMMError
        As :func:`simulate_pseudobulk`; or anndata is not installed.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> cells = simulate_cells(5, 20, ["T", "B"], V=(0.5, 0.1), rng=1)
    >>> pb = ctmm.pseudobulk(cells, negative="keep", min_cells_donor=20)
    >>> pb.shape, sorted(pb.obs)
    ((40, 5), ['PC1', 'PC2', 'batch', 'celltype', 'donor', 'n_cells', 'proportion', 'sex'])
    """
    choose("scale", scale, ["expression", "counts"])
    n_genes = whole_number("n_genes", n_genes, 1, MOST_DRAWS)
    kurtosis, baseline = number("kurtosis", kurtosis), number("baseline", baseline)
    depth, dispersion = number("depth", depth), number("dispersion", dispersion)
    anndata = require_anndata()
    rng = generator(rng)
    known_keywords(simulate_cells, study)
    made = make_study(rng, n_donors, celltypes, **study)
    n_cells = made.obs["n_cells"].to_numpy()
    room(n_genes=n_genes, cells=int(n_cells.sum()))
    pair = np.repeat(np.arange(len(n_cells)), n_cells)
    true = np.array([made.draw(np.zeros(len(n_cells)), rng) for _ in range(n_genes)]).T
    if scale == "expression":
        sd = np.sqrt(made.nu * n_cells)
        X = (
            baseline
            + true[pair]
            + sd[pair, None] * _cell_errors(rng, kurtosis, (len(pair), n_genes))
        )
    else:
        with np.errstate(over="ignore"):  # refused at once
            rate = depth * np.exp(true)[pair] * rng.gamma(4.0, 0.25, (len(pair), 1))
        if not (rate < _LARGEST_RATE).all():
            raise CTMMError("counts are too large to draw: exp(y) overflows, choose smaller beta")
        if dispersion > NONE:
            rate = rate * rng.gamma(1.0 / dispersion, dispersion, rate.shape)
        X = rng.poisson(rate).astype(float)
    obs = made.obs.drop(columns="n_cells").iloc[pair].reset_index(drop=True)
    obs.index = pd.Index([f"cell{k + 1}" for k in range(len(obs))])
    seen = [name for name in made.celltypes if name in set(made.obs["celltype"])]
    for name, levels in (("donor", pd.unique(made.obs["donor"])), ("celltype", seen)):
        obs[name] = pd.Categorical(obs[name], levels)
    var = pd.DataFrame(index=pd.Index(gene_names(n_genes)))
    return anndata.AnnData(X, obs=obs, var=var, uns={"truth": made.truth.to_dict()})


def _cell_errors(rng: np.random.Generator, kurtosis: float, shape: tuple[int, ...]) -> np.ndarray:
    """Variables with mean 0, variance 1 and this excess kurtosis."""
    if kurtosis < NONE:
        return rng.standard_normal(shape)
    a = 6.0 / kurtosis
    return (rng.standard_gamma(a, shape) - a) / np.sqrt(a)


def bootstrap_cells(
    counts: ArrayLike | pd.DataFrame | AnnData,
    donor: Sequence[object] | np.ndarray,
    *,
    total: ArrayLike | None = None,
    celltypes: int = 4,
    fraction: float = 1.0,
    depth: float = 1.0,
    permuted: float = 0.0,
    min_cells: int = 11,
    noise_error: Callable[..., np.ndarray] | None = None,
    rng: Rng = None,
) -> SimulatedGenes:
    """Cell types that differ by nothing but chance, resampled from the cells of real donors.

    Every simulated cell type of a donor is a bootstrap of the donor's cells: of their counts,
    thinned to `depth`, n_i `fraction` cells are drawn with replacement; expression is
    log2(1 + counts per million).  So V = 0, with real differences between donors and real noise.
    V is made by permuting donors: in each cell type on its own, a share `permuted` of the donors
    (other ones in each gene) exchange expression and noise, which keeps the total variance.

    Parameters
    ----------
    counts : array, DataFrame or AnnData, shape (cells, genes)
        Raw counts.
    donor : sequence, length cells
    total : array, shape (cells,), optional
        All counts of each cell; by default the sum of its row.
    celltypes : int
    fraction : float
        Cells of a simulated cell type in those of the donor.
    depth : float
        Counts kept of each cell; above 1, more than there were.
    permuted : float
        From 0 (V = 0) to 1 (nothing shared).
    min_cells : int
        Donors with fewer cells are left out, and counted in a warning.
    noise_error : callable, optional
        Further errors of the noise variances, as in :func:`simulate_genes`.
    rng : numpy Generator or seed, optional

    Returns
    -------
    SimulatedGenes
        nu is the expected noise variance: variance of the donor's thinned cells over the number
        of cells drawn.  Genes without counts in some donor are left out, and counted in a warning.

    Raises
    ------
    CTMMError
        Counts that are none, settings out of range, or no donor or gene left.

    Notes
    -----
    The single-cell bootstrap simulation of Chen and Dahl, Nat Commun 15:5229 (2024).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(3.0, (600, 2))
    >>> genes = bootstrap_cells(counts, np.repeat(range(20), 30), total=np.full(600, 1000), rng=1)
    >>> genes.expr.shape, sorted(genes.obs)
    ((80, 2), ['celltype', 'donor', 'n_cells', 'proportion'])
    """
    celltypes = whole_number("celltypes", celltypes, 2, MOST_DRAWS)
    min_cells = whole_number("min_cells", min_cells, 0)
    fraction, depth = number("fraction", fraction), number("depth", depth)
    permuted = number("permuted", permuted)
    noise_error = drawing("noise_error", noise_error, "beta_error(5)")
    K, names = _counts(counts)
    code, donors = _donors(donor, len(K))
    totals = K.sum(axis=1) if total is None else floats("total", total)
    _check_bootstrap(K, totals, depth)
    rng = generator(rng)
    cells = [np.flatnonzero(code == i) for i in range(len(donors))]
    kept = [i for i, own in enumerate(cells) if len(own) >= max(min_cells, 2)]
    seen = [g for g in range(K.shape[1]) if all(K[cells[i], g].any() for i in kept)]
    if not kept or not seen:
        raise CTMMError(
            f"no donor has {min_cells} cells, or no gene has counts in every such donor: "
            f"{len(kept)} donors, {len(seen)} genes"
        )
    size = np.array([max(round(len(cells[i]) * fraction), 2) for i in kept])
    shape = len(seen), len(kept), celltypes
    mean, nu = np.empty(shape), np.empty(shape)
    for at, i in enumerate(kept):
        own = cells[i]
        whole = np.floor(depth * totals[own]).astype(np.int64)
        share = np.minimum(K[own][:, seen] / totals[own, None], 1.0)
        thinned = rng.binomial(whole[:, None], share)
        y = np.log2(1.0 + thinned * 1e6 / np.maximum(whole, 1)[:, None])
        drawn = rng.integers(len(own), size=(celltypes, size[at]))
        mean[:, at] = y[drawn].mean(axis=1).T
        nu[:, at] = (y.var(axis=0, ddof=1) / size[at])[:, None]
    _exchange(mean, nu, permuted, rng)
    if noise_error is not None:
        nu = measured(noise_error(rng, nu, np.broadcast_to(size[:, None], shape)), shape)
    obs, types = _bootstrap_obs(list(donors[kept]), size, celltypes)
    flat = [
        pd.DataFrame(values.reshape(len(seen), -1).T, columns=[names[g] for g in seen])
        for values in (mean, nu)
    ]
    varies = (flat[1] > 0).all(axis=0)  # thinned to nothing in some donor
    if not varies.any():
        raise CTMMError("no gene keeps counts in every donor: choose a larger depth=")
    flat = [frame.loc[:, varies] for frame in flat]
    lost = len(donors) - len(kept), K.shape[1] - int(varies.sum())
    if any(lost):
        warnings.warn(
            f"left out: {lost[0]} of {len(donors)} donors with fewer than {max(min_cells, 2)} "
            f"cells, {lost[1]} of {K.shape[1]} genes without counts in some donor",
            CTMMWarning,
            stacklevel=2,
        )
    truth = pd.Series({"permuted": float(permuted)})
    return SimulatedGenes(obs, flat[0], flat[1], truth, types)


def _counts(counts: Any) -> tuple[np.ndarray, list[str]]:
    """Counts as floats and names of the genes."""
    names = getattr(counts, "var_names", getattr(counts, "columns", None))
    values = counts.X if hasattr(counts, "var_names") else counts
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if values.ndim != 2:
        raise CTMMError(f"counts must be cells x genes, got shape {values.shape}")
    values = floats("counts", values)
    named = gene_names(values.shape[1]) if names is None else [str(name) for name in names]
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice:
        raise CTMMError(f"counts have several genes {twice[0]!r}: give each a name of its own")
    return values, named


def _donors(donor: Any, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Donor of every cell as a code, and the donors."""
    labels = np.asarray(donor)
    if labels.shape != (cells,):
        raise CTMMError(
            f"donor= must name the donor of each of the {cells} cells, got shape {labels.shape}"
        )
    gone = np.flatnonzero(pd.isna(labels))
    if len(gone):
        raise CTMMError(
            f"donor= is missing for {amount(len(gone), 'cell')} (the first: "
            f"{', '.join(map(str, gone[:3]))}): leave them out"
        )
    names = pd.Series(labels)
    mixed = names.map(type).nunique() > 1  # of which no order exists
    codes, donors = pd.factorize(names.astype(str) if mixed else names, sort=True)
    return codes, np.asarray(donors)


def _check_bootstrap(K: np.ndarray, totals: np.ndarray, depth: float) -> None:
    if totals.shape != (len(K),):
        raise CTMMError(
            f"total= must be a number for each of the {len(K)} cells, got shape {totals.shape}"
        )
    if not (K >= 0).all() or (np.floor(K) != K).any():
        raise CTMMError("bootstrap_cells resamples raw counts: whole numbers, not negative")
    bad = np.flatnonzero((totals <= 0) | (totals < K.max(axis=1, initial=0.0)))
    if len(bad):
        raise CTMMError(
            "total= (by default the sum of the row) must be positive and no less than the counts "
            f"of a gene: leave out {amount(len(bad), 'cell')} (the first: "
            f"{', '.join(map(str, bad[:3]))})"
        )
    if depth * totals.max(initial=0.0) > _LARGEST_RATE:
        raise CTMMError(f"counts are too large to draw: choose a smaller depth= than {depth:g}")


def _exchange(mean: np.ndarray, nu: np.ndarray, permuted: float, rng: np.random.Generator) -> None:
    """Permute a share of the donors, in every gene and cell type on its own."""
    genes, N, C = mean.shape
    count = round(permuted * N)
    for g in range(genes):
        chosen = rng.permutation(N)[:count]
        for c in range(C):
            to = rng.permutation(chosen)
            mean[g, to, c], nu[g, to, c] = mean[g, chosen, c], nu[g, chosen, c]


def _bootstrap_obs(
    donors: Sequence[object], size: np.ndarray, celltypes: int
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    types = tuple(celltype_names(celltypes))
    obs = pd.DataFrame({"donor": np.repeat([str(name) for name in donors], celltypes)})
    obs["celltype"] = np.tile(np.array(types, dtype=object), len(size))
    obs["proportion"] = 1.0 / celltypes
    obs["n_cells"] = np.repeat(size, celltypes)
    return obs, types
