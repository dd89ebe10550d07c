"""Where cells come from: tables, AnnData in memory or backed, files; and their blocks."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from ..arguments import name_list, on_off, shown
from ..design.table import as_frame, listing, near
from ..errors import DataError
from .files import lazy, open_file, read
from .stored import Rows, cut, in_memory
from .tables import in_var, is_anndata

BLOCK = 2**26
"""Bytes of one block as it is stored, 64 MB; copies for the computation come on top."""
_ROUND = 8  # blocks of one size, after which it is learned anew

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Source:
    """Cells x genes that can be read in blocks.

    Attributes
    ----------
    matrix : object with ``shape`` and slices
        Array, sparse matrix, backed dataset, or lazy array.
    form : {"dense", "csr", "csc"}
    obs : DataFrame, one row per cell
    var : DataFrame, one row per gene
    cells : Index
    close : callable
    whole : tuple of str and int
        What the matrix may have been chosen from, and its number of genes: raw, where another
        matrix of the AnnData is read, or the AnnData that it is a view of.
    notes : tuple of str
        What was left out.
    """

    matrix: Any
    form: str
    obs: pd.DataFrame
    var: pd.DataFrame
    cells: pd.Index
    close: Callable[[], None] = field(default=lambda: None)
    whole: tuple[str, int] = ("raw", 0)
    notes: tuple[str, ...] = ()

    @property
    def genes(self) -> pd.Index:
        """Names of the genes."""
        return self.var.index


def open_source(
    data: object,
    obs: pd.DataFrame | None,
    layer: str | None,
    raw: bool,
    genes: Sequence[str] | None,
) -> Source:
    """Find matrix, obs and var of whatever the user has.

    Raises
    ------
    DataError
        Neither AnnData, nor file, nor table; no such layer; obs that does not fit the table.
    """
    if layer is not None and not isinstance(layer, str):
        raise DataError(f"layer= must be the name of a layer, a text, got {shown(layer)}")
    if layer is not None and raw:
        raise DataError("layer= and raw=True name two matrices: give one of them")
    if isinstance(data, (str, Path)) or is_anndata(data):
        source = _from_one(data, layer, raw)
    elif isinstance(data, (list, tuple)) and data and all(map(_holds_cells, data)):
        source = _from_several(data, layer, raw)
    else:
        if layer is not None or raw:
            raise DataError("layer= and raw= are for AnnData; a table has one matrix")
        return _checked(_from_table(data, obs, genes))
    if obs is not None:
        source.close()
        raise DataError("obs= is for tables; an AnnData has its own obs")
    return _checked(source)


def _checked(source: Source) -> Source:
    """Genes of one name could not be told apart in the result."""
    names = source.genes
    if not names.is_unique:
        twice = list(dict.fromkeys(names[names.duplicated()]))
        source.close()
        raise DataError(
            f"genes have the same name, {listing(twice)}: adata.var_names_make_unique(), or give "
            "the columns of the table different names"
        )
    if not len(source.obs) or not len(names):
        source.close()
        raise DataError(f"the data have {len(source.obs)} cells and {len(names)} genes")
    return source


# ---------------------------------------------------------------------------------------------
# opening


def _holds_cells(data: object) -> bool:
    return isinstance(data, (str, Path)) or is_anndata(data)


def _from_one(data: Any, layer: str | None, raw: bool) -> Source:
    if is_anndata(data):
        return _from_anndata(data, layer, raw)
    return _from_file(Path(data), layer, raw)


def _from_several(several: Sequence[Any], layer: str | None, raw: bool) -> Source:
    """Cells of several AnnData or files, one below the other."""
    names = [
        f"the file {str(one)!r}" if isinstance(one, (str, Path)) else f"data[{k}]"
        for k, one in enumerate(several)
    ]
    same = [Path(one).resolve() if isinstance(one, (str, Path)) else id(one) for one in several]
    for k, one in enumerate(same):
        if one in same[:k]:
            raise DataError(f"data= names {names[k]} twice: its cells would count twice")
    sources: list[Source] = []

    def close() -> None:
        for source in sources:
            source.close()

    try:
        for one, name in zip(several, names, strict=True):
            sources.append(_from_one(one, layer, raw))
            _check_stacked(sources[-1], name, sources[0], names[0])
    except BaseException:  # whatever stops it, no file stays open
        close()
        raise
    tables = [source.obs for source in sources]
    every = dict.fromkeys(name for table in tables for name in table)
    lost = [name for name in every if not all(name in table for table in tables)]
    notes: tuple[str, ...] = ()
    if lost:
        notes = (f"obs columns {listing(lost, 10)} are left out: not all of data= have them",)
    with warnings.catch_warnings():  # of columns that are missing in all cells of some
        warnings.simplefilter("ignore", FutureWarning)
        obs = pd.concat(
            [table[[name for name in every if name not in lost]] for table in tables],
            ignore_index=True,
        )
    matrix = Rows([source.matrix for source in sources])
    cells = pd.Index([name for source in sources for name in source.cells])
    whole = max((source.whole for source in sources), key=lambda whole: whole[1])
    return Source(matrix, _form(matrix), obs, sources[0].var, cells, close, whole, notes)


def _check_stacked(source: Source, name: str, first: Source, first_name: str) -> None:
    """Matrices below each other have the same genes, and are read cell by cell."""
    if source.form == "csc":
        raise DataError(
            f"{name} is stored gene by gene (CSC), and several are read cell by cell: write it "
            "anew with adata.X = adata.X.tocsr()"
        )
    if source.genes.equals(first.genes):
        return
    odd = list(source.genes.symmetric_difference(first.genes, sort=False))
    what = f"{listing(odd)} are in one of them only" if odd else "their order is another"
    raise DataError(
        f"{name} has not the genes of {first_name}, {what}: give all of data= the same genes in "
        "one order, adata[:, genes], or join them by anndata.concat (on disk by "
        "anndata.experimental.concat_on_disk)"
    )


def _from_anndata(data: Any, layer: str | None, raw: bool) -> Source:
    raw = on_off("raw", raw)
    if raw and data.raw is None:
        raise DataError("the AnnData has no raw: leave raw=True out, or name a layer")
    if layer is not None and layer not in data.layers:
        hint = near(layer, data.layers).replace("the columns are", "the layers are")
        raise DataError(f"the AnnData has no layer {layer!r}{hint}")
    home = data.raw if raw else data
    matrix = home.X if layer is None else data.layers[layer]
    if matrix is None:
        raise DataError("the AnnData has no X: name a layer=, or raw=True")
    whole = ("raw", 0 if raw or data.raw is None else data.raw.shape[1])
    parent = None if raw else getattr(data, "_adata_ref", None)  # a view's
    if parent is not None and parent.n_vars > max(data.n_vars, whole[1]):
        whole = ("the AnnData that it is a view of", parent.n_vars)
    obs, var = _in_memory(data.obs), _in_memory(home.var)
    return Source(matrix, _form(matrix), obs, var, data.obs_names, whole=whole)


def _in_memory(frame: Any) -> pd.DataFrame:
    """The columns of a lazy AnnData, of which only the matrix stays behind."""
    return frame if isinstance(frame, pd.DataFrame) else frame.to_memory()


def _from_file(path: Path, layer: str | None, raw: bool) -> Source:
    """An h5ad or zarr file, of which only obs and var are read now."""
    root, close = open_file(path)
    home = "raw/" if raw else ""
    where = f"layers/{layer}" if layer is not None else f"{home}X"
    for part in ("obs", f"{home}var", where):
        if part not in root:
            close()
            hint = "; it holds no AnnData: read it into one first" if part == "obs" else ""
            raise DataError(f"the file {str(path)!r} has no {part}{hint}")
    if hasattr(root["obs"], "dtype"):  # a table of records, not a group of columns
        close()
        raise DataError(
            f"the file {str(path)!r} is of anndata before 0.7: write it anew, "
            f"anndata.read_h5ad({str(path)!r}).write_h5ad('new.h5ad')"
        )
    matrix, obs, var = lazy(root[where]), read(root["obs"]), read(root[f"{home}var"])
    raw_genes = 0 if raw or "raw/var" not in root else len(read(root["raw/var"]))
    return Source(matrix, _form(matrix), obs, var, obs.index, close, ("raw", raw_genes))


def _from_table(data: object, obs: pd.DataFrame | None, genes: Sequence[str] | None) -> Source:
    """Columns of genes, and obs beside them or among them."""
    table = as_frame(data).rename(columns=str)
    if obs is None:
        if genes is None:
            raise DataError(
                "which columns are genes? give their names, genes=[...], or the columns of the "
                "cells apart, obs=table"
            )
        names = _known(pd.Index(table.columns), [genes] if isinstance(genes, str) else genes)
        obs = table.drop(columns=names)
        table = table[names]
    else:
        obs = _aligned(as_frame(obs, "obs"), table)
    odd = [c for c in table if not pd.api.types.is_numeric_dtype(table[c].dtype)]
    if odd:
        raise DataError(f"columns {listing(odd)} hold no numbers: leave them out of the genes")
    if all(isinstance(k, pd.SparseDtype) and k.fill_value == 0 for k in table.dtypes):
        matrix: Any = table.sparse.to_coo().tocsr()  # type: ignore[attr-defined]
    else:
        matrix = table.to_numpy(dtype=np.float64, na_value=np.nan)
    var = pd.DataFrame(index=pd.Index(table.columns.astype(str), dtype=object))
    return Source(matrix, _form(matrix), obs, var, pd.Index(obs.index.astype(str)))


def _aligned(obs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Rows of obs in the order of the table, by their index."""
    if obs.index.equals(table.index):
        return obs
    for what, index in (("obs", obs.index), ("the table", table.index)):
        if not index.is_unique:
            twice = list(dict.fromkeys(index[index.duplicated()]))
            raise DataError(
                f"cells have the same name in {what}, {listing(twice)}, and the names of obs and "
                "table differ: give both the same index"
            )
    lost = table.index.difference(obs.index)
    if len(lost):
        raise DataError(
            f"obs has no row for cells {listing(list(lost))}: its index must hold their names"
        )
    return obs.loc[table.index]


def _known(names: pd.Index, genes: Sequence[str], var: pd.DataFrame | None = None) -> list[str]:
    """Genes as given, once each, all of them known."""
    wanted = list(dict.fromkeys(str(gene) for gene in name_list("genes", genes)))
    lost = [gene for gene in wanted if gene not in names]
    if lost:
        near_by = near(str(lost[0]), names).replace("the columns are", "the genes are")
        hint = near_by if var is None else in_var(lost[0], var) or near_by
        raise DataError(f"genes= names {listing(lost)}, not in the data{hint}")
    if not wanted:
        raise DataError("genes= is empty: leave it out for all genes")
    return wanted


def gene_places(source: Source, genes: Sequence[str] | None) -> np.ndarray | None:
    """Positions of the wanted genes in order, None for all."""
    if genes is None:
        return None
    wanted = _known(source.genes, [genes] if isinstance(genes, str) else genes, source.var)
    return np.asarray(source.genes.get_indexer(pd.Index(wanted)))


def _form(matrix: Any) -> str:
    """How the matrix is stored; formats that cannot be sliced are refused."""
    form = getattr(matrix, "format", None)
    if form in ("csr", "csc"):
        kind = form
    elif sparse.issparse(matrix):
        raise DataError(f"the matrix is sparse in format {form!r}: convert it by .tocsr()")
    elif hasattr(matrix, "shape") and len(matrix.shape) == 2:
        kind = "dense"
    else:
        raise DataError(f"cannot read a matrix of type {type(matrix).__name__}")
    if np.dtype(matrix.dtype).kind not in "buif":
        raise DataError(f"the matrix holds {matrix.dtype} values, expression must be real numbers")
    return str(kind)


# ---------------------------------------------------------------------------------------------
# reading


def blocks(
    source: Source,
    size: int | None = None,
    *,
    copies: bool = False,
    n_jobs: int = 1,
    then: Callable[[int, Any], T],
) -> Iterator[T]:
    """What becomes of blocks of cells (of genes, where these are stored together), in order.

    Parameters
    ----------
    source : Source
    size : int, optional
        Cells (genes) per block; by default so many as take some 64 MB, learned from the blocks
        before, and all where the matrix in memory is read as it stands.
    copies : bool
        Whether `then` copies its blocks, so that one of all cells would cost memory.
    n_jobs : int
        Threads that read blocks and run `then`; the blocks are the same whatever it is.
    then : callable
        Takes the first position of a block, and the block: CSR or C-ordered ndarray (CSC), float32
        or float64, without duplicates, whatever the chunks of a lazy array are.
    """
    matrix, by_genes = source.matrix, source.form == "csc"
    total = matrix.shape[1] if by_genes else matrix.shape[0]
    width = matrix.shape[0] if by_genes else matrix.shape[1]
    at_once = _ready(matrix)
    if size is None and at_once and not copies:
        size = total
    step = size or max(1, BLOCK // (8 * max(width, 1)))

    def one(here: slice) -> tuple[int, T]:
        whole = here == slice(0, total) and at_once
        block = matrix if whole else cut(matrix, here, by_genes)
        block = _plain(block, "csc" if by_genes else "csr")
        stored = block.data.nbytes + block.indices.nbytes + 1 if sparse.issparse(block) else 0
        return stored, then(here.start, block)

    first, some = 0, 1  # the first tells how large those of the next round may be
    while first < total:
        starts = range(first, total, step)[: some if size is None else None]
        spans = [slice(k, min(k + step, total)) for k in starts]
        for found in _ahead(n_jobs, one, spans):
            stored = found[0]
            yield found[1]
            del found  # two blocks at once are one too many
        last = spans[-1]
        if stored:
            step = max(1, min(8 * step, int((last.stop - last.start) * BLOCK / stored)))
        first, some = last.stop, _ROUND


def _ahead(n_jobs: int, function: Callable[[slice], T], spans: Sequence[slice]) -> Iterator[T]:
    """Results in order, of which `n_jobs` threads make as many before they are asked for."""
    if n_jobs == 1 or len(spans) == 1:
        yield from map(function, spans)
        return
    pool, waiting = ThreadPoolExecutor(n_jobs), deque[Future[T]]()
    try:
        for span in spans:
            if len(waiting) == n_jobs:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, span))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(matrix: Any) -> bool:
    """Whether a matrix in memory needs no conversion, so one block will do."""
    if matrix.dtype not in (np.float32, np.float64):
        return False
    if sparse.issparse(matrix):
        return bool(matrix.has_canonical_format)
    return type(matrix) is np.ndarray and matrix.flags.c_contiguous


def _plain(block: Any, form: str) -> Any:
    """A block in memory, as the kernels read it; sparse ones in format `form`."""
    block = in_memory(block)
    if not sparse.issparse(block):
        kind = np.float32 if np.dtype(block.dtype) == np.float32 else np.float64
        if np.ma.isMaskedArray(block):
            block = np.ma.filled(block.astype(kind), np.nan)
        return np.ascontiguousarray(block, dtype=kind)
    block = block.asformat(form)
    if block.dtype not in (np.float32, np.float64):
        block = block.astype(np.float64)
    if not block.has_canonical_format:
        block = block.copy()
        block.sum_duplicates()
    return block
