"""Cells to pseudobulk: means and noise variances of donors and cell types."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import effective_n_jobs

from ..arguments import choose, real, shown, threads, whole_number
from ..design.table import amount, column_name, listing
from ..errors import CTMMWarning, DataError
from .aggregate import BadValue, Moments
from .covariates import OWN, carry, pooled
from .normalize import FEW_COUNTS as FEW_OF_CELL
from .normalize import (
    FEW_GENES,
    LARGEST_LOG,
    SCALES,
    half_counts,
    libraries,
    log_means,
    normalise,
    scales,
)
from .pairs import Pairs, Thresholds, find_pairs
from .scale import (
    FEW_COUNTS,
    SUMMARIES,
    few_counts_note,
    level_notes,
    level_ratio,
    type_errors,
    type_means,
)
from .source import Source, blocks, gene_places, open_source
from .tables import FORMAT, log, require_anndata

if TYPE_CHECKING:
    from anndata import AnnData

SEVERAL = 3
"""Donors from which a cell type of one donor alone is warned of: of two, half of the types may be
such."""


def pseudobulk(
    data: object,
    *,
    donor: str = "donor",
    celltype: str = "celltype",
    obs: pd.DataFrame | None = None,
    layer: str | None = None,
    raw: bool = False,
    genes: Sequence[str] | None = None,
    normalize: str | None = None,
    summary: str = "mean",
    min_cells: int = 10,
    min_cells_donor: int = 100,
    min_donor_share: float = 0.0,
    experiment: str | None = None,
    replicate: str = "largest",
    covariates: Sequence[str] | None = None,
    negative: str = "error",
    block_size: int | None = None,
    n_jobs: int = 1,
) -> AnnData:
    """Aggregate cells to donors x cell types: mean, noise variance, number of cells.

    The noise variance of a mean of n cells is nu = sample variance (ddof 1) / n.  It is computed
    in one reading (two, for counts stored gene by gene that are normalised), in blocks of some
    64 MB, without cancellation.  Memory beyond the data: the result, 24 bytes for each pair and
    gene (32 while cells are read), and a few blocks.

    Parameters
    ----------
    data : AnnData, path of an h5ad or zarr file, a list of these, or table (cells x genes)
        AnnData may be backed (but anndata loads a view of one) or lazy, of
        ``anndata.experimental.read_lazy``.  Of a file only obs and var are loaded; the matrix is
        streamed.  CSR, CSC, dense and dask matrices will do.  Those of a list, such as one file a
        batch, must have the same genes; cells of a donor may be in several of them.
    donor, celltype : str
        Columns of obs.
    obs : DataFrame, optional
        Columns of the cells, for tables; matched by index.
    layer : str, optional
        Layer of the AnnData in place of X.
    raw : bool
        Take ``adata.raw`` in place of X.
    genes : sequence of str, optional
        Genes to keep; default all.  In a table without `obs`, its columns that are genes.
    normalize : {"log_cp10k", "log2_cpm"}, optional
        For raw counts: scale each cell to 10,000 counts and take ln(1 + x), or to a million and
        take log2(1 + x).  A cell's counts are those in all genes of the matrix, which should not
        be a selection such as the highly variable ones.  Default: the data are logarithms already.
    summary : {"mean", "log_mean"}
        What a pair has of its cells: the mean of their logarithms (as published), or, of raw
        counts, the logarithm of their mean count per 10,000 (of `normalize`, by default
        "log_cp10k").  On the second scale an effect that multiplies the expression of all cell
        types by the same factor is shared, whatever their levels; on the first it looks specific
        to the types with higher levels, so V > 0.
    min_cells : int
        A pair of donor and cell type must have more cells; else it is missing.  A pair of one
        cell is always missing: it has no variance.
    min_cells_donor : int
        A donor must have more labelled cells; else it is left out.
    min_donor_share : float
        A cell type must be observed (more than `min_cells` cells) in more than this share of the
        donors; else it is left out.
    experiment : str, optional
        Column of experiments, where donors may have been measured several times.
    replicate : {"largest", "error"}
        Keep of such donors the experiment with most cells (the first of equals), or refuse them.
    covariates : sequence of str, optional
        Columns of obs to carry along; default all that are constant within donors, cell types or
        pairs.
    negative : {"error", "keep"}
        Negative expression is a sign of scaled data; "keep" accepts it.
    block_size : int, optional
        Cells per block (genes, for CSC), in place of 64 MB.
    n_jobs : int
        Threads that read blocks, a few ahead, and aggregate them; -1 for as many as there are
        cores.  The result is the same to the bit.

    Returns
    -------
    AnnData, pairs x genes
        ``X`` mean, ``layers["nu"]`` noise variance, ``layers["nu2"]`` unbiased estimate of its
        square (NaN in pairs of two or three cells as well), NaN in missing pairs; ``obs`` donor,
        celltype, n_cells, proportion (share of the donor's cells among the kept cell types,
        missing pairs included), covariates; ``uns["ctmm"]`` what was done, with counts of all
        that was left out, in words in ``uns["ctmm"]["notes"]``.  On the scale of
        ``summary="log_mean"`` also ``layers["counts"]``, ``var["min_counts"]`` and
        ``var["few_counts"]``, genes that have too few counts for this scale; on that of
        "mean", ``var["level_ratio"]`` and ``var["level_ratio_low"]``.  Layout:
        :mod:`ctmm_formula.cells.tables`; what V means on which scale:
        :mod:`ctmm_formula.cells.scale`.

    Raises
    ------
    DataError
        Columns, layers or genes that do not exist; values that cannot be expression; counts asked
        to be normalised that are logarithms already; or nothing left after the filters, and which
        of them took what.

    Warns
    -----
    CTMMWarning
        Values are whole numbers or larger than logarithms can be: counts, raw or scaled, where
        logarithms are expected.  Counts to be normalised are of fewer genes than the AnnData's raw
        or the AnnData it is a view of, or so few that they may be a selection.  A cell type is
        observed in one donor.  A column of obs
        (or `experiment`) looks like conditions under which most donors were sampled.

    Notes
    -----
    Filters as in Chen and Dahl, Nat Commun 15:5229 (2024).  Cells without donor or cell type
    (missing, or a text missing values turn into, such as "nan") are left out first and count for
    nothing.

    nu^2 squares the error of nu and is too large by its variance, which counts of few cells make
    many times nu^2; nu2 is right on average whatever the distribution of the cells, as it comes
    from their second and fourth central moments (formula:
    :meth:`ctmm_formula.cells.aggregate.Moments.noise`).

    Examples
    --------
    >>> import anndata, numpy as np, pandas as pd
    >>> import ctmm_formula as ctmm
    >>> obs = pd.DataFrame({"donor_id": np.repeat(["d1", "d2"], 30),
    ...                     "cell_type": list("BTT" * 10 + "BBT" * 10),
    ...                     "sex": np.repeat(["F", "M"], 30)})
    >>> obs.index = obs.index.astype(str)
    >>> X = np.random.default_rng(0).gamma(2.0, size=(60, 3))
    >>> cells = anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=["CD19", "CD3E", "NKG7"]))
    >>> pb = ctmm.pseudobulk(cells, donor="donor_id", celltype="cell_type", min_cells_donor=20)
    >>> pb.obs
         donor celltype  n_cells  proportion sex
    d1|B    d1        B       10    0.333333   F
    d1|T    d1        T       20    0.666667   F
    d2|B    d2        B       20    0.666667   M
    d2|T    d2        T       10    0.333333   M
    >>> bool(np.isnan(pb["d1|B"].X).all()), bool(np.isnan(pb["d1|T"].X).any())
    (True, False)
    >>> pb.uns["ctmm"]["notes"].tolist()[0]
    '2 of 4 pairs of donor and cell type are missing, they have at most 10 cells'
    """
    anndata = require_anndata()
    thresholds = _thresholds(min_cells, min_cells_donor, min_donor_share)
    if normalize is not None:
        choose("normalize", normalize, SCALES)
    choose("summary", summary, SUMMARIES)
    if summary == "log_mean" and normalize is None:
        normalize = "log_cp10k"
    choose("replicate", replicate, ["largest", "error"])
    choose("negative", negative, ["error", "keep"])
    names = {"donor": donor, "celltype": celltype}
    if experiment is not None:
        names["experiment"] = experiment
    for argument, name in names.items():
        column_name(name, argument)
    if donor == celltype:
        raise DataError(f"donor= and celltype= name the same column, {donor!r}")
    if block_size is not None:
        block_size = whole_number("block_size", block_size, 1)
    n_jobs = effective_n_jobs(threads(n_jobs))

    source = open_source(data, obs, layer, raw, genes)
    try:
        pairs = find_pairs(source.obs, donor, celltype, thresholds, experiment, replicate)
        places = gene_places(source, genes)
        read = _stream(source, pairs, places, normalize, summary, negative, block_size, n_jobs)
    finally:
        source.close()
    frame, left_out = carry(source.obs, pairs, (donor, celltype), covariates)
    pairs = read.pairs
    samples = _samples(source.obs, pairs, donor, [*names.values()])
    told = pairs.lone if len(pairs.donors) >= SEVERAL else []
    for text in (*told, *samples):
        warnings.warn(text, CTMMWarning, stacklevel=2)
    var = source.var if places is None else source.var.iloc[places]
    layers, of_genes, warned = _summarise(read, summary, normalize)
    notes = [*pairs.notes, *pairs.lone, *_left_out_notes(left_out), *read.notes, *warned, *samples]
    matrix = "raw" if raw else "X" if layer is None else f"layer {layer}"
    record: dict[str, object] = {
        "format": FORMAT,
        "kind": "ctp",
        "source": {**names, "matrix": matrix, "normalize": normalize or "none"},
        "scale": SUMMARIES[summary],
        "summary": summary,
        "filters": pairs.filters,
        "columns_left_out": np.array(list(map(str, left_out)), dtype=object),
        "why_left_out": np.array(list(left_out.values()), dtype=object),
        "notes": np.array(notes, dtype=object),
    }
    for note in notes:
        log.info("pseudobulk: %s", note)
    return _assemble(anndata, pairs, layers, frame, var.assign(**of_genes), record)


def _thresholds(min_cells: int, min_cells_donor: int, min_donor_share: float) -> Thresholds:
    if not 0 <= real(min_donor_share) < 1:
        raise DataError(
            f"min_donor_share= must be a share from 0 to below 1, got {shown(min_donor_share)}"
        )
    return Thresholds(
        whole_number("min_cells", min_cells, 0),
        whole_number("min_cells_donor", min_cells_donor, 0),
        real(min_donor_share),
    )


@dataclass(frozen=True, eq=False)
class _Read:
    """What was read of the cells: their moments, half a count of each pair (P,), and notes."""

    pairs: Pairs
    moments: Moments
    half: np.ndarray
    notes: list[str]


def _stream(
    source: Source,
    pairs: Pairs,
    places: np.ndarray | None,
    normalize: str | None,
    summary: str,
    negative: str,
    block_size: int | None,
    n_jobs: int,
) -> _Read:
    """Read the matrix once (twice for normalised CSC) and judge what kind of values it holds."""
    kept = source.genes if places is None else source.genes[places]
    lowest = -np.finfo(float).max if negative == "keep" and normalize is None else 0.0
    moments = Moments(pairs.observed.size, len(kept), lowest, n_jobs)
    codes, by_genes = pairs.used, source.form == "csc"
    used = codes >= 0
    sizes = _sizes(source, block_size, n_jobs) if normalize and by_genes else None

    def ready(first: int, block: Any) -> _Block:
        """A block as the moments take it."""
        cell, gene = (0, first) if by_genes else (first, 0)
        span = slice(cell, cell + block.shape[0])
        size, top, whole, bad = None, -math.inf, True, None
        if normalize:
            size = libraries(block) if sizes is None else sizes
            log = summary != "log_mean"
            block, top, whole, bad = normalise(block, used[span], size, normalize, log=log)
        targets = np.zeros(0, dtype=np.intp)
        if bad is None:
            block, targets = _take(block, places, gene)
        return _Block(block, targets, span, gene, size, top, whole, bad)

    seen: list[tuple[float, bool]] = []
    total = np.zeros(len(codes)) if sizes is None else sizes
    copies = normalize is not None or places is not None
    for part in blocks(source, block_size, copies=copies, n_jobs=n_jobs, then=ready):
        cells = source.cells[part.span]
        _refuse(part.bad, cells, source.genes[part.gene :])
        if part.size is not None:
            total[part.span] = part.size
            seen.append((part.top, part.whole))
        if by_genes:
            bad = moments.add_genes(part.block, codes, part.targets)
        else:
            bad = moments.add_cells(part.block, codes[part.span])
        _refuse(bad, cells, kept[part.targets])
        del part
    if not normalize:
        seen.append((moments.top, moments.whole))
    top, whole = max(top for top, _ in seen), all(whole for _, whole in seen)
    notes = [*source.notes, *_judge(top, whole, normalize)]
    if summary == "log_mean" and not whole:
        notes.append("counts are not whole numbers; half a count is 0.5 of them all the same")
    if not normalize:
        return _Read(pairs, moments, np.zeros(len(moments.count)), notes)
    text = _selection(source, total[used])
    if text:
        warnings.warn(text, CTMMWarning, stacklevel=3)
        notes.append(text)
    empty = int(((total == 0) & used).sum())
    if empty:
        none = amount(empty, "cell has no counts and is", "cells have no counts and are")
        notes.append(f"{none} taken as zero")
    scale = scales(used, total, normalize)
    return _Read(pairs, moments, half_counts(scale, codes, moments.count), notes)


class _Block(NamedTuple):
    """A block as the moments take it: which cells, first gene, columns in the result.

    size: counts of its cells, where they are scaled by them; what its values were like, and one
    that cannot be.
    """

    block: Any
    targets: np.ndarray
    span: slice
    gene: int
    size: np.ndarray | None
    top: float
    whole: bool
    bad: BadValue | None


def _summarise(
    read: _Read, summary: str, normalize: str | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Matrices of the result, columns of its genes, and what to know of its scale."""
    nu, nu2 = read.moments.noise()
    mean, observed = read.moments.mean, read.pairs.observed
    C = observed.shape[1]
    mean[~observed.ravel()] = np.nan
    types = [str(name) for name in read.pairs.celltypes]
    if summary == "mean":
        by_type = type_means(mean, observed)
        ratio = level_ratio(by_type)
        low = level_ratio(by_type, type_errors(mean, observed, by_type))
        if normalize is None and (read.moments.whole or read.moments.top > LARGEST_LOG):
            # no logarithms
            ratio[:] = low[:] = np.nan
        columns = {"level_ratio": ratio, "level_ratio_low": low}
        return {"X": mean, "nu": nu, "nu2": nu2}, columns, level_notes(ratio, low)
    lost = np.flatnonzero(observed.ravel() & np.isnan(read.half))
    nu[lost], nu2[lost] = np.nan, np.nan
    X, nu, nu2, counts = log_means(mean, nu, nu2, read.half, str(normalize))
    by_type = type_means(counts, observed & ~np.isnan(read.half).reshape(observed.shape))
    columns = {"min_counts": by_type.min(axis=1, initial=np.inf, where=~np.isnan(by_type))}
    columns["few_counts"] = columns["min_counts"] < FEW_COUNTS
    note = few_counts_note(by_type, types)
    never = np.flatnonzero(~(counts > 0.0).any(axis=0))
    if len(never):  # half a count over the cells of a pair says how many cells there are
        there = ~np.isnan(X[:, never[0]])
        X[np.ix_(there, never)] = X[there, never[0]].mean()
        none = f"{len(never)} of {len(by_type)} genes have no counts at all: they are constant, at "
        note = [f"{none}half a count", *note]
    if len(lost):
        pairs = [f"{read.pairs.donors[k // C]}|{types[k % C]}" for k in lost]
        gone = amount(len(lost), "pair is", "pairs are")
        note = [f"{gone} missing, as no cell there has counts: {listing(pairs)}", *note]
    return {"X": X, "nu": nu, "nu2": nu2, "counts": counts}, columns, note


def _sizes(source: Source, block_size: int | None, n_jobs: int) -> np.ndarray:
    """Counts of each cell, from a matrix stored gene by gene."""
    out = np.zeros(len(source.obs))
    counts = blocks(
        source, block_size, copies=True, n_jobs=n_jobs, then=lambda first, block: libraries(block)
    )
    for some in counts:
        out += some
    return out


def _take(block: Any, places: np.ndarray | None, first: int) -> tuple[Any, np.ndarray]:
    """Wanted genes of a block that begins with gene `first`, and their columns in the result."""
    if places is None:
        return block, np.arange(first, first + block.shape[1])
    inside = np.flatnonzero((places >= first) & (places < first + block.shape[1]))
    part = block[:, places[inside] - first]
    return (part if hasattr(part, "indptr") else np.ascontiguousarray(part)), inside


def _refuse(bad: BadValue | None, cells: pd.Index, genes: pd.Index) -> None:
    """A value that no expression can have, with the names of its cell and gene."""
    if bad is None:
        return
    where = f"in cell {str(cells[bad.row])!r}, gene {str(genes[bad.gene])!r}"
    if np.isfinite(bad.value):
        raise DataError(
            f"expression is negative, {bad.value:g} {where}: scaled data? take the logarithms "
            "before scaling, layer=... or raw=True; negative='keep' accepts it (without normalize=)"
        )
    raise DataError(f"expression is {bad.value} {where}: leave such cells or genes out")


def _judge(top: float, whole: bool, normalize: str | None) -> list[str]:
    """Counts where logarithms are expected, or logarithms where counts are."""
    if normalize and not whole and top <= LARGEST_LOG:
        raise DataError(
            f"normalize={normalize!r} is for counts, but the data look like logarithms already "
            f"(not whole, the largest is {top:.3g}): leave normalize= out, or name the counts by "
            "layer= or raw=True"
        )
    if normalize or (top <= 1 if whole else top <= LARGEST_LOG):
        return []
    text = (
        f"all values are whole numbers (the largest is {top:g}): raw counts? The model is for "
        "logarithms: normalize='log_cp10k' makes them"
        if whole
        else f"the largest value is {top:.4g}, too large for a logarithm of expression: scaled "
        "counts (CP10K, CPM)? The model is for logarithms: normalize='log_cp10k' makes them, of "
        "counts (layer=, raw=True) or of these"
    )
    warnings.warn(text, CTMMWarning, stacklevel=4)
    return [text]


def _selection(source: Source, total: np.ndarray) -> str:
    """What to say of cells whose counts in all genes cannot be seen, if so."""
    size, (name, most) = len(source.genes), source.whole
    text = f"cells are scaled by their counts in {size} genes"
    fix = "normalise before genes are chosen (genes= chooses after that)"
    if most > size:
        other = ", or take the logarithms of raw" if name == "raw" else ""
        return f"{text}, but {name} has {most}: {fix}{other}"
    middle = float(np.median(total)) if len(total) else 0.0
    if size < FEW_GENES and middle < FEW_OF_CELL:
        return f"{text}, {middle:g} in half of the cells or less: is this a selection? {fix}"
    return ""


def _samples(obs: pd.DataFrame, pairs: Pairs, donor: str, taken: list[str]) -> list[str]:
    """What to say of donors that seem to have been sampled several times, and the way."""
    found = pooled(obs, pairs, taken)
    said = [
        (
            name,
            f"cells of one donor differ in obs column {name!r} ({listing(levels)}) and are pooled",
        )
        for name, levels in found.items()
    ]
    if pairs.mixed:
        said.append((taken[2], pairs.mixed))
    person = "person" if donor in OWN else donor
    copy = f"obs['person'] = obs[{donor!r}], " if donor in OWN else ""
    return [
        f"{what}: if these are conditions, every sample is a donor of its own, {copy}"
        f"obs['sample'] = obs[{donor!r}].astype(str) + '_' + obs[{name!r}].astype(str), "
        f"pseudobulk(donor='sample'), and fit with donor={person!r}, within={name!r}"
        for name, what in said
    ]


def _left_out_notes(left_out: dict[str, str]) -> list[str]:
    """One note for each reason why columns of obs are left out."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(str(name))
    return [
        f"obs column {listing(names, 10)} is left out: {reason}"
        for reason, names in reasons.items()
    ]


def _assemble(
    anndata: Any,
    pairs: Pairs,
    layers: dict[str, np.ndarray],
    covariates: pd.DataFrame,
    var: pd.DataFrame,
    record: dict[str, object],
) -> AnnData:
    """The AnnData of the full grid."""
    N, C = pairs.n_cells.shape
    donor, celltype = np.divmod(np.arange(N * C), C)
    texts = [
        f"{pairs.donors[i]}|{pairs.celltypes[c]}" for i, c in zip(donor, celltype, strict=True)
    ]
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical.from_codes(donor, categories=pairs.donors),
            "celltype": pd.Categorical.from_codes(celltype, categories=pairs.celltypes),
            "n_cells": pairs.n_cells.ravel(),
            "proportion": (pairs.n_cells / pairs.n_cells.sum(axis=1, keepdims=True)).ravel(),
        }
    )
    obs = pd.concat([obs, covariates], axis=1)
    obs.index = pd.Index(texts, dtype=object)
    if not obs.index.is_unique:
        raise DataError("labels with '|' make two pairs read the same: rename donors or cell types")
    return anndata.AnnData(X=layers.pop("X"), obs=obs, var=var, layers=layers, uns={"ctmm": record})
