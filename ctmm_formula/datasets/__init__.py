"""An example to try everything on: 200 genes, 72 donors, 4 cell types, 24 batches.

The data are **simulated**, so that the truth is known and free to share; sizes and variances are
like those of a differentiation experiment with induced pluripotent stem cells (days 0 to 3 as
cell types).  Each gene is standardised: overall pseudobulk has mean 0 and variance 1.
:mod:`ctmm_formula.datasets.generate` made the files and says how.

=========  ==================================================================================
column     meaning
=========  ==================================================================================
donor      72 donors; pairs of donor and cell type with at most 10 cells are missing
celltype   day0, day1, day2, day3
batch      24 batches, each donor in one
sex        F, M
PC1-PC6    covariates of the donor, standard deviations from 20 down to 8
n_cells    cells of the donor and cell type
expr       mean expression of the cells
nu         noise variance: squared standard error of that mean, measured from the cells
=========  ==================================================================================
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import pandas as pd

from ..arguments import choose

__all__ = ["CELLTYPES", "PCS", "Genes", "load_example", "load_genes", "load_truth"]

CELLTYPES = ["day0", "day1", "day2", "day3"]
PCS = [f"PC{k}" for k in range(1, 7)]
EXPRESSION = "example.csv.gz"
TRUTH = "example_truth.csv"
DEMONSTRATION = "gene001"


class Genes(NamedTuple):
    """Expression of all genes.

    Attributes
    ----------
    obs : DataFrame, n rows
        One row per pair of donor and cell type.
    expr, nu : DataFrame, shape (n, 200)
        Expression and its noise variance, one column per gene, rows as `obs`.
    """

    obs: pd.DataFrame
    expr: pd.DataFrame
    nu: pd.DataFrame

    def __repr__(self) -> str:
        donors, types = (self.obs[name].nunique() for name in ("donor", "celltype"))
        return (
            f"<Genes: obs, expr, nu; {self.expr.shape[1]} genes, {len(self.obs)} rows, {donors} "
            f"donors, {types} cell types>"
        )


def load_example(gene: str = DEMONSTRATION, *, kind: str = "ctp") -> pd.DataFrame:
    """Load one gene of the embedded, simulated example as a table ready to fit.

    The default, gene001, has what the model is about: means that differ between cell types, a
    variance between donors that grows from day0 to day3, a batch effect and an effect of sex.
    :func:`load_truth` has the parameters it was drawn with.

    Parameters
    ----------
    gene : str
        gene001 ... gene200.
    kind : str
        "ctp": one row per donor and cell type; "op": overall pseudobulk, one row per donor with
        the proportions prop_day0, ..., prop_day3.

    Returns
    -------
    DataFrame
        Columns as in :mod:`ctmm_formula.datasets`.

    Raises
    ------
    CTMMError
        Unknown gene or kind.

    Examples
    --------
    >>> df = load_example()
    >>> list(df)[:5], list(df)[-3:]
    (['donor', 'celltype', 'batch', 'sex', 'PC1'], ['n_cells', 'expr', 'nu'])
    >>> df["donor"].nunique(), df["celltype"].nunique(), df["batch"].nunique()
    (72, 4, 24)
    """
    choose("kind", kind, ["ctp", "op"])
    obs, expr, nu = _genes()
    if not isinstance(gene, str) or gene not in expr:
        choose("gene", gene, ["gene001", "...", "gene200"])
    ctp = obs.assign(expr=expr[gene], nu=nu[gene])
    if kind == "ctp":
        return ctp
    from ..simulate import overall_table

    return overall_table(ctp, CELLTYPES)


def load_genes() -> Genes:
    """Load all genes of the embedded, simulated example.

    Returns
    -------
    Genes
        Named tuple (obs, expr, nu).

    Examples
    --------
    >>> obs, expr, nu = load_genes()
    >>> len(obs) == len(expr) == len(nu), expr.shape[1]
    (True, 200)
    """
    return Genes(*(frame.copy() for frame in _genes()))


def load_truth() -> pd.DataFrame:
    """Load the parameters the example was drawn with, on the standardised scale.

    Returns
    -------
    DataFrame
        One row per gene: structure (the smallest that holds: hom means V = 0), the variance
        components hom, V[day0], ..., batch, the means mean[day0], ... (at F and PCs of 0), the
        slopes sex[M], PC1, ..., and cell_variance, the typical variance between cells.

    Examples
    --------
    >>> truth = load_truth()
    >>> truth["structure"].value_counts().to_dict()
    {'free': 100, 'hom': 60, 'iid': 40}
    """
    with (files(__package__) / TRUTH).open("rb") as file:
        return pd.read_csv(file, index_col="gene")


@cache
def _genes() -> Genes:
    """Read the file once; callers get copies."""
    with (files(__package__) / EXPRESSION).open("rb") as file:
        table = pd.read_csv(file, compression="gzip")
    names = [str(name) for name in table]
    nu = [name for name in names if name.endswith(".nu")]
    genes = [name.removesuffix(".nu") for name in nu]
    obs = [name for name in names if name not in {*nu, *genes}]
    return Genes(table[obs], table[genes], table[nu].set_axis(genes, axis=1))
