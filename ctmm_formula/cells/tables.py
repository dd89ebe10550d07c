"""The pseudobulk AnnData: how it is laid out, checked, and turned into tables for a fit.

=====================  ========================================================================
``X``                  mean expression, float64, pairs x genes
``layers["nu"]``       noise variance, sample variance (ddof 1) / number of cells
``layers["nu2"]``      unbiased estimate of the square of the noise variance, from second and
                       fourth moments of the cells; NaN where it is not known (pairs of two or
                       three cells, imputed pairs), and a table of an earlier version lacks it:
                       who wants it takes nu^2 there
``obs``                donor, celltype (categories), n_cells, proportion, covariates; one row per
                       pair of the full grid, donor by donor, named ``donor|celltype``
``uns["ctmm"]``        format 1, kind "ctp", and what each step did
=====================  ========================================================================

A missing pair is a row of NaN in all matrices; it keeps its number of cells and its proportion.
Overall pseudobulk (kind "op") has one row per donor, and ``obsm["proportions"]``, donors x cell
types; a slash in the name of a cell type is %2F there, as no file takes it for a column.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import choose, name_list
from ..design.expressions import quote
from ..design.table import MOST_CELLS, column_name, label, listing, near, numbers, pick
from ..errors import CTMMError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("ctmm_formula")

FORMAT = 1
VARIES = "it varies within pairs"
"""Why most columns of the cells are left out."""
_LARGEST = 1e150  # squares of more are no numbers
KINDS = {"ctp": ["donor", "celltype", "n_cells", "proportion"], "op": ["donor", "n_cells"]}
"""Columns of obs that each kind of pseudobulk has."""
OTHER_NAME = "give the expression another name, to_long(pb, gene, name='y')"
UNSEEN = 0.5
"""Share of pairs whose cells are all alike above which a gene is named as low.  Of effects specific
to cell types, log-fold sd .4 in 50 donors, the score test then finds less than a quarter, of those
of sd .8 half or more (``tests/benchmarks/score_counts.md``)."""
_STORED = {"%25": "%", "%2F": "/"}  # how files have what they take for a folder, and the sign of it
PREFIX = "prop_"
"""Of the columns of proportions in tables of overall pseudobulk."""


def stored_types(names: Iterable[object]) -> list[str]:
    """Names of cell types as columns that files can hold.

    >>> stored_types(["T/NK", "50% B", "T%2FNK"])
    ['T%2FNK', '50% B', 'T%252FNK']
    >>> types_of(stored_types(["T/NK", "50% B", "T%2FNK"]))
    ['T/NK', '50% B', 'T%2FNK']
    """
    marked = (re.sub("%(?=2[5F])", "%25", str(name)) for name in names)
    return [name.replace("/", "%2F") for name in marked]


def types_of(columns: Iterable[object]) -> list[str]:
    """Cell types from the names of such columns."""
    return [re.sub("%2[5F]", lambda at: _STORED[at[0]], str(name)) for name in columns]


def left_out(uns: Any) -> dict[str, str]:
    """Columns of the cells that a pseudobulk of this `uns` lacks -> why, and what to do."""
    record: Any = uns.get("ctmm") if hasattr(uns, "get") else None
    if not hasattr(record, "get"):
        return {}
    names = [str(name) for name in record.get("columns_left_out", [])]
    reasons = [str(text) for text in record.get("why_left_out", [])]
    reasons += ["see uns['ctmm']['notes']"] * (len(names) - len(reasons))
    donor = record.get("source", {}).get("donor", "donor")
    out = {}
    for name, reason in zip(names, reasons, strict=False):
        out[name] = f"; pseudobulk left it out: {reason}"
        if reason == VARIES:
            out[name] += (
                f"; give every donor one value before, adata.obs[{name!r}] = adata.obs.groupby("
                f"{donor!r})[{name!r}].transform('mean'), or 'first'"
            )
    for name in record.get("overall", {}).get("columns_left_out", []):
        out[str(name)] = "; overall left it out: it differs between the cell types of a donor"
    return out


def in_var(name: str, var: pd.DataFrame) -> str:
    """Where else a gene of this name stands, if it does: ``var["feature_name"]``."""
    for column in var.columns[~var.columns.duplicated()]:
        if pd.api.types.is_numeric_dtype(var[column].dtype):
            continue
        found = list(var.index[np.asarray(var[column].astype(str) == name)])
        if found:
            return (
                f"; it is in var[{column!r}], of gene {listing(found)}: name that (in a formula "
                f"{quote(str(found[0]))}), or name the genes by it, var_names = var[{column!r}]"
            )
    return ""


def require_anndata() -> Any:
    """The module, or an error with the line that installs it."""
    try:
        import anndata
    except ImportError:
        raise CTMMError("anndata is not installed: pip install 'ctmm-formula[anndata]'") from None
    return anndata


def is_anndata(data: object) -> bool:
    """Whether `data` looks like an AnnData, without importing it."""
    return all(hasattr(data, name) for name in ("obs", "var_names", "layers", "uns"))


def kind_of(pb: AnnData, need: str | None = None) -> str:
    """Kind of a pseudobulk AnnData, "ctp" or "op".

    Parameters
    ----------
    pb : AnnData
    need : {"ctp", "op"}, optional
        The only kind that will do.

    Raises
    ------
    DataError
        Cells instead of pseudobulk, another format, parts missing, or the other kind.
    """
    if not is_anndata(pb):
        raise DataError(
            f"expected a pseudobulk AnnData as ctmm.pseudobulk returns it, got {type(pb).__name__}"
        )
    lost = [] if "nu" in pb.layers else ["layers['nu']"]
    lost += ["X"] if getattr(pb, "X", None) is None else []
    kind = stored_kind(pb.uns, pb.obs, "proportions" in getattr(pb, "obsm", {}), lost)
    if not pb.var_names.is_unique:
        twice = list(dict.fromkeys(pb.var_names[pb.var_names.duplicated()]))
        raise DataError(f"genes have the same name, {listing(twice)}: pb.var_names_make_unique()")
    if need == "ctp" and kind == "op":
        raise DataError("this step needs the pairs of donor and cell type, not overall pseudobulk")
    if need == "op" and kind == "ctp":
        raise DataError("this step needs overall pseudobulk: ctmm.overall(pb)")
    return kind


def stored_kind(uns: Any, obs: pd.DataFrame, shares: bool, lost: Sequence[str] = ()) -> str:
    """Kind of pseudobulk by what an AnnData, in memory or in a file, says and holds.

    Parameters
    ----------
    uns : mapping; obs : DataFrame
    shares : bool
        Whether there is ``obsm["proportions"]``.
    lost : sequence of str
        Parts that are missing anyway.

    Raises
    ------
    DataError
        Cells instead of pseudobulk, another format, parts missing, or read lazily.
    """
    if not isinstance(obs, pd.DataFrame):
        raise DataError(
            "the AnnData is read lazily, which pseudobulk(adata) of cells can do; elsewhere "
            "take it into memory: pb.to_memory()"
        )
    record: Any = uns.get("ctmm") if hasattr(uns, "get") else None
    if not hasattr(record, "get"):
        raise DataError(
            "the AnnData is no pseudobulk (it has no uns['ctmm']); if its rows are cells, "
            "aggregate them first: pb = ctmm.pseudobulk(adata, donor=..., celltype=...)"
            if not set(KINDS["ctp"]) <= set(obs)
            else "the AnnData has lost uns['ctmm'], what pseudobulk says of it: join pseudobulks "
            "by anndata.concat([...], uns_merge='first', merge='same'), or copy that of one"
        )
    if record.get("format") != FORMAT:
        raise DataError(
            f"the pseudobulk has format {record.get('format')!r}, this version reads {FORMAT}: "
            "make it anew by ctmm.pseudobulk"
        )
    kind = choose("kind of pseudobulk", str(record.get("kind")), KINDS)
    if not len(obs):
        raise DataError("the pseudobulk has no rows: no donor is left")
    missing = [f"obs[{name!r}]" for name in KINDS[kind] if name not in obs]
    missing += [*lost, *([] if shares or kind == "ctp" else ["obsm['proportions']"])]
    if missing:
        raise DataError(f"the pseudobulk has lost {', '.join(missing)}: make it anew")
    return kind


@dataclass(frozen=True, eq=False)
class Grid:
    """Pseudobulk as arrays: N donors, C cell types, G genes.

    Attributes
    ----------
    donors, celltypes : Index of str
    mean, nu, nu2 : ndarray, shape (N, C, G)
        NaN in missing pairs; `nu2` also where it is not known.
    missing : bool ndarray, shape (N, C)
    n_cells, proportions : ndarray, shape (N, C)
    """

    donors: pd.Index
    celltypes: pd.Index
    mean: np.ndarray
    nu: np.ndarray
    nu2: np.ndarray
    missing: np.ndarray
    n_cells: np.ndarray
    proportions: np.ndarray


def read_grid(pb: AnnData) -> Grid:
    """Arrays of a cell type-specific pseudobulk; not copied where they need not be.

    Raises
    ------
    DataError
        No pseudobulk, a grid with holes, a pair that is missing in some genes only or has a mean
        without noise variance, or proportions that are none.
    """
    kind_of(pb, "ctp")
    donors = pd.Index(pb.obs["donor"].astype(str).unique(), dtype=object)
    celltypes = pd.Index(pb.obs["celltype"].astype(str).unique(), dtype=object)
    N, C = len(donors), len(celltypes)
    order = pd.MultiIndex.from_product([donors, celltypes])
    found = pd.MultiIndex.from_arrays([pb.obs["donor"].astype(str), pb.obs["celltype"].astype(str)])
    if len(order) != len(found) or not (order == found).all():
        raise DataError(
            f"the pseudobulk is no full grid of {N} donors x {C} cell types in donor order "
            f"({len(found)} rows): leave out whole donors or whole cell types, and keep the order"
        )
    mean, nu = matrices(pb)
    P = _of_obs(pb.obs, "proportion", "share of the cell type")
    bad = np.flatnonzero(~(np.isfinite(P) & (P >= 0)))
    if len(bad):
        raise DataError(
            f"obs['proportion'] is {P[bad[0]]:g} in pairs {listing(list(pb.obs_names[bad]))}: "
            "give each the share of its cell type in the donor, 0 or more"
        )
    gone = np.isnan(mean)
    n_cells = _of_obs(pb.obs, "n_cells", "number of cells")
    nu2 = real(pb.layers["nu2"]) if "nu2" in pb.layers else np.full_like(nu, np.nan)
    missing = gone.all(axis=1) if mean.shape[1] else np.zeros(N * C, dtype=bool)
    partly = np.flatnonzero(gone.any(axis=1) & ~missing)
    if len(partly):
        genes = list(pb.var_names[gone[partly[0]]])
        raise DataError(
            f"pair {pb.obs_names[partly[0]]!r} is missing in some genes only, {listing(genes)}: "
            "leave these genes out, or the whole pair"
        )
    bad = np.flatnonzero(np.isnan(n_cells) & ~missing)
    if len(bad):
        raise DataError(
            f"obs['n_cells'] has no value in pairs {listing(list(pb.obs_names[bad]))}, which have "
            "means: give the number of cells of each"
        )
    odd = np.flatnonzero((np.isnan(nu) != gone).any(axis=1))
    if len(odd):
        raise DataError(
            'layers["nu"] has values where the pair is missing, or none where it is not, in '
            f"{listing(list(pb.obs_names[odd]))}: a missing pair is NaN in both X and it"
        )
    return Grid(
        donors=donors,
        celltypes=celltypes,
        mean=mean.reshape(N, C, mean.shape[1]),
        nu=nu.reshape(N, C, mean.shape[1]),
        nu2=nu2.reshape(N, C, mean.shape[1]),
        missing=missing.reshape(N, C),
        n_cells=n_cells.reshape(N, C),
        proportions=P.reshape(N, C),
    )


def noise_columns(pb: AnnData, at: Sequence[int] | np.ndarray | slice) -> dict[str, np.ndarray]:
    """Noise variance, and its square where there is one, of some genes: name -> (rows, genes)."""
    return {name: real(pb.layers[name][:, at]) for name in ("nu", "nu2") if name in pb.layers}


def matrices(pb: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Mean and noise as dense float64, rows x genes; NaN where missing, but never infinite."""
    found = {"X": real(pb.X), 'layers["nu"]': real(pb.layers["nu"])}
    for name, values in found.items():
        rows, genes = np.nonzero(np.abs(values) > _LARGEST)
        if len(rows):
            raise DataError(
                f"{name} is {values[rows[0], genes[0]]:g} in {pb.obs_names[rows[0]]!r}, gene "
                f"{pb.var_names[genes[0]]!r} ({len(rows)} such values): correct them, or leave "
                "out the gene"
            )
    return found["X"], found['layers["nu"]']


def _of_obs(obs: pd.DataFrame, name: str, role: str) -> np.ndarray:
    """Numbers in a column of obs."""
    values = numbers(pick(obs, name, role, what="obs"), name, role)
    bad = np.flatnonzero(np.abs(values) > MOST_CELLS)
    if len(bad):
        raise DataError(
            f"obs[{name!r}] is {values[bad[0]]:g} in {listing(list(obs.index[bad]))}: no {role} "
            "is as large"
        )
    return values


def real(values: Any, what: str = "the pseudobulk") -> np.ndarray:
    """An array, sparse or not, as dense float64, or an error if it does not hold real numbers."""
    try:
        values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
        if values.dtype.kind == "c":
            raise TypeError("they are complex")
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"values of {what} are no real numbers: {error}") from None


def to_long(
    pb: AnnData, gene: str, *, name: str | None = None, zero_noise: str = "keep"
) -> pd.DataFrame:
    """One gene of a pseudobulk AnnData as a table for :func:`ctmm_formula.fit`.

    Parameters
    ----------
    pb : AnnData
        From :func:`ctmm_formula.pseudobulk`, or a later step.
    gene : str
    name : str, optional
        Column of the mean expression; by default the gene's name.
    zero_noise : {"keep", "pool"}
        Where all cells of a pair are alike (mostly: all zero), their sample variance is 0.
        "pool" takes there the variance between cells pooled over all donors of the cell type,
        divided by the pair's number of cells, for programs that must weigh by it.

    Returns
    -------
    DataFrame
        Rows and columns of ``pb.obs``, then the expression, ``nu`` and, where there is such a
        layer, ``nu2``; overall pseudobulk has the proportions as well, columns
        ``prop_<cell type>``.

    Raises
    ------
    DataError
        No pseudobulk, no such gene, or a column of that name in obs.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"donor": ["d1"] * 4 + ["d2"] * 4, "celltype": list("BBTTBBTT")})
    >>> counts = pd.DataFrame({"CD19": [2.5, 1.5, 0, 0, 3, 4, 0.5, 0]})
    >>> pb = ctmm.pseudobulk(counts, obs=obs, min_cells=1, min_cells_donor=1)
    >>> ctmm.to_long(pb, "CD19")[["donor", "celltype", "n_cells", "CD19", "nu"]]
         donor celltype  n_cells  CD19      nu
    d1|B    d1        B        2  2.00  0.2500
    d1|T    d1        T        2  0.00  0.0000
    d2|B    d2        B        2  3.50  0.2500
    d2|T    d2        T        2  0.25  0.0625
    """
    choose("zero_noise", zero_noise, ["keep", "pool"])
    kind = kind_of(pb)
    if not isinstance(gene, str):
        raise DataError(
            f"gene= must be one name, got {type(gene).__name__}: ctmm.to_frame(pb, genes) takes "
            "several"
        )
    at = _genes(pb, [gene])
    name = gene if name is None else column_name(name, "name")
    mean, noise = real(pb.X[:, at]), noise_columns(pb, at)
    if zero_noise == "pool" and kind == "ctp":
        n_cells = _of_obs(counted(pb.obs), "n_cells", "number of cells")
        noise["nu"] = pooled_noise(noise["nu"], n_cells, pb.obs["celltype"])
    frame = _obs_table(pb, kind)
    if name in ("nu", "nu2"):
        raise DataError(f"{name!r} is a column of noise variances: {OTHER_NAME}")
    for new in (name, *noise):
        if new in frame:
            fix = OTHER_NAME if new == name else "rename that one"
            raise DataError(f"the pseudobulk has a column {new!r} in obs already: {fix}")
    return frame.assign(**{name: mean[:, 0]}, **{key: part[:, 0] for key, part in noise.items()})


def to_frame(pb: AnnData, genes: Sequence[str] | None = None) -> pd.DataFrame:
    """Several genes of a pseudobulk AnnData as one long table.

    Parameters
    ----------
    pb : AnnData
    genes : sequence of str, optional
        Default: all.

    Returns
    -------
    DataFrame
        Columns ``gene``, those of ``pb.obs`` (and proportions), ``expr``, ``nu`` (and ``nu2``); the
        rows of each gene together, so that ``table[table["gene"] == g]`` goes into a fit.

    Raises
    ------
    DataError
        No pseudobulk, or no such gene.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> import numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"donor": ["d1"] * 4 + ["d2"] * 4, "celltype": list("BBTTBBTT")})
    >>> X = pd.DataFrame({"CD19": [2.5, 1.5, 0, 0, 3, 4, 0.5, 0], "CD3E": [0, 1.5] * 4})
    >>> pb = ctmm.pseudobulk(X, obs=obs, min_cells=1, min_cells_donor=1)
    >>> ctmm.to_frame(pb).groupby("gene")["expr"].mean()
    gene
    CD19    1.4375
    CD3E    0.7500
    Name: expr, dtype: float64
    """
    kind = kind_of(pb)
    if isinstance(genes, str):
        genes = [genes]
    at = np.arange(pb.n_vars) if genes is None else _genes(pb, name_list("genes", genes))
    frame = _obs_table(pb, kind)
    noise = noise_columns(pb, at)
    clash = [name for name in ("gene", "expr", *noise) if name in frame]
    if clash:
        raise DataError(f"the pseudobulk has a column {clash[0]!r} in obs already: rename it")
    values = {"expr": real(pb.X[:, at]), **noise}
    # the position repeats every column in its own type
    table = frame.iloc[np.tile(np.arange(len(frame)), len(at))]
    table.insert(0, "gene", np.repeat(np.asarray(pb.var_names[at], dtype=object), len(frame)))
    columns = {name: part.T.ravel() for name, part in values.items()}
    return table.assign(**columns).reset_index(drop=True)


def gene_table(pb: AnnData, names: Sequence[str]) -> tuple[pd.DataFrame, list[str] | None]:
    """What a fit needs of a pseudobulk AnnData.

    Parameters
    ----------
    pb : AnnData
    names : sequence of str
        Names in the response; one of them is a gene.

    Returns
    -------
    table : DataFrame
    proportions : list of str, or None
        Their columns, for overall pseudobulk.
    """
    kind = kind_of(pb)
    genes = [name for name in names if name in pb.var_names]
    if not genes:
        _genes(pb, list(names[:1]))
    if len(genes) > 1:
        raise DataError(f"the response names {len(genes)} genes, {listing(genes)}: it must be one")
    table = to_long(pb, genes[0])
    if kind == "op":
        return table, [PREFIX + name for name in types_of(pb.obsm["proportions"].columns)]
    return table, None


def pooled_noise(
    nu: np.ndarray, n_cells: np.ndarray, celltype: Sequence[str] | pd.Series
) -> np.ndarray:
    """Replace noise variances of zero by the cell type's pooled variance between cells over n.

    Parameters
    ----------
    nu : ndarray, shape (pairs, genes)
    n_cells : ndarray, shape (pairs,)
    celltype : sequence, length pairs

    Returns
    -------
    ndarray, shape (pairs, genes)
        A copy; still zero where the gene varies in no pair of the cell type.

    Examples
    --------
    >>> nu = np.array([[0.5], [0.0], [0.25]])
    >>> pooled_noise(nu, np.array([2, 4, 3]), ["T", "T", "T"]).ravel().tolist()
    [0.5, 0.10416666666666667, 0.25]
    """
    s2 = cell_variance(nu, n_cells, celltype)
    filled = (nu == 0) & (n_cells > 1)[:, None] & (s2 > 0)
    return np.where(filled, s2 / np.maximum(n_cells, 1)[:, None], nu)


def cell_variance(
    nu: np.ndarray, n_cells: np.ndarray, celltype: Sequence[str] | pd.Series
) -> np.ndarray:
    """Variance between cells of each pair's cell type, pooled over donors; shape (pairs, genes).

    From nu = s^2 / n (pairs, genes), with n - 1 degrees of freedom each; NaN where the cell type
    has no pair of two cells.
    """
    s2 = np.full(nu.shape, np.nan)
    codes = pd.factorize(pd.Series(celltype).astype(object))[0]
    for c in np.unique(codes):
        rows = np.flatnonzero((codes == c) & (n_cells > 1))
        n = n_cells[rows, None]
        known = ~np.isnan(nu[rows])
        degrees = np.where(known, n - 1.0, 0.0).sum(axis=0)
        squares = np.where(known, (n - 1.0) * n * nu[rows], 0.0).sum(axis=0)
        s2[codes == c] = squares / np.where(degrees > 0, degrees, np.nan)
    return s2


def _genes(pb: AnnData, genes: Sequence[str]) -> np.ndarray:
    """Positions of genes, or an error that says which are not there."""
    names = [label(gene) for gene in genes]
    at = pb.var_names.get_indexer(names)
    lost = [name for name, k in zip(names, at, strict=True) if k < 0]
    if lost:
        near_by = near(lost[0], pb.var_names).replace("the columns are", "the genes are")
        hint = in_var(lost[0], pb.var) or near_by
        raise DataError(f"the pseudobulk has no gene {listing(lost)}{hint}")
    return at


def counted(obs: pd.DataFrame) -> pd.DataFrame:
    """A copy of obs where imputed pairs have no number of cells: their values come from none."""
    if "imputed" not in obs or "n_cells" not in obs:
        return obs.copy()
    n_cells = _of_obs(obs, "n_cells", "number of cells")
    return obs.assign(n_cells=np.where(obs["imputed"].astype(bool), np.nan, n_cells))


def _obs_table(pb: AnnData, kind: str) -> pd.DataFrame:
    """obs, with proportions as columns for overall pseudobulk."""
    frame = counted(pb.obs)
    if kind == "op":
        shares = pb.obsm["proportions"]
        for name in shares:
            frame[PREFIX + types_of([name])[0]] = shares[name].to_numpy()
    return frame
