"""Many genes, or replicates of one, that share their donors: what a scan takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..arguments import MOST_DRAWS, Rng, choose, generator, whole_number
from ..design.genotypes import Genotypes
from ..errors import CTMMError
from .counts import CountCells
from .heredity import Heredity, inherited
from .limits import NONE, drawing, measured, number, room, shaped
from .noise import CellNoise, NoiseError
from .tables import Condition, Study, known_keywords, make_study, overall_obs

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, eq=False, repr=False)
class SimulatedGenes:
    """Many responses of the same donors; ``fit_genes(formula, data=genes)`` takes it as it is.

    Attributes
    ----------
    obs : DataFrame, n rows
        Donor, celltype, covariates, n_cells of every pair; of overall pseudobulk the proportions.
    expr, nu : DataFrame, shape (n, genes)
        Expression and measured noise variance, rows as `obs`.
    truth : Series
        What they were drawn with: ``hom``, ``V[T1]``, ..., ``mean[T1]``, ..., ``batch``; of counts
        on the scale of log-fold effects.
    celltypes : tuple of str
    proportions : list of str, or None
        Their columns in `obs`: ``fit_genes(..., proportions=genes.proportions)``.
    nu2 : DataFrame, shape (n, genes), or None
        Unbiased estimates of nu^2, of counts.
    condition : Condition, or None
        Of the column ``status`` of `obs`, where there is one.
    genotypes : Genotypes, or None; positions : DataFrame, or None
        Of donors, and places of the genes, as ``fit_genes`` takes them, where some of the variance
        is genetic.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> genes = simulate_genes(3, 40, ["T", "B"], V=(0.5, 0.1), rng=1)
    >>> genes
    <SimulatedGenes: 3 genes, 80 rows, 40 donors, 2 cell types>
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=genes, tests="score")
    >>> bool((scan.table["p_score"] < 0.01).all())
    True
    """

    obs: pd.DataFrame
    expr: pd.DataFrame
    nu: pd.DataFrame
    truth: pd.Series
    celltypes: tuple[str, ...]
    proportions: list[str] | None = None
    nu2: pd.DataFrame | None = None
    condition: Condition | None = None
    genotypes: Genotypes | None = None
    positions: pd.DataFrame | None = None

    def gene(self, name: str) -> pd.DataFrame:
        """One gene as a table for ``fit``: columns of `obs`, ``expr``, ``nu``, ``nu2`` if any."""
        choose("gene", name, map(str, self.expr.columns))
        more = {} if self.nu2 is None else {"nu2": self.nu2[name]}
        return self.obs.assign(expr=self.expr[name], nu=self.nu[name], **more)

    def __repr__(self) -> str:
        return (
            f"<SimulatedGenes: {self.expr.shape[1]} genes, {len(self.obs)} rows, "
            f"{self.obs['donor'].nunique()} donors, {len(self.celltypes)} cell types>"
        )

    def overall(self) -> SimulatedGenes:
        """Overall pseudobulk: y_i = sum_c P_ic y_ic, nu_i = sum_c P_ic^2 nu_ic.

        P is the column ``proportion`` where there is one, else the share of cells.
        """
        if self.proportions is not None:
            return self
        self._one_row_a_pair("overall pseudobulk")
        share, obs = overall_obs(self.obs, self.celltypes)
        donor = pd.factorize(self.obs["donor"])[0]
        expr = self.expr.mul(share, axis=0).groupby(donor).sum()
        nu = self.nu.mul(share**2, axis=0).groupby(donor).sum()
        columns = [f"prop_{name}" for name in self.celltypes]
        return SimulatedGenes(
            obs, expr, nu, self.truth, self.celltypes, columns,
            genotypes=self.genotypes, positions=self.positions,
        )  # fmt: skip

    def to_anndata(self) -> AnnData:
        """The pseudobulk AnnData of :func:`ctmm_formula.pseudobulk`, missing pairs as NaN."""
        anndata = require_anndata()
        self._one_row_a_pair("the AnnData of pairs")
        if self.proportions is not None:
            obs = self.obs.drop(columns=self.proportions)
            obs.index = pd.Index(obs["donor"].astype(str))
            at = np.arange(len(obs))
        else:
            obs, at = _grid(self.obs, self.celltypes)
        there = (at >= 0)[:, None]
        parts = {"expr": self.expr, "nu": self.nu} | ({} if self.nu2 is None else {"nu2": self.nu2})
        layers = {k: np.where(there, part.to_numpy()[at], np.nan) for k, part in parts.items()}
        expr = layers.pop("expr")
        var = pd.DataFrame(index=pd.Index(self.expr.columns.astype(str)))
        kind = "ctp" if self.proportions is None else "op"
        record = {"format": 1, "kind": kind, "notes": np.array(["simulated"], dtype=object)}
        out = anndata.AnnData(expr, obs=obs, var=var, layers=layers, uns={"ctmm": record})
        if self.proportions is not None:
            shares = self.obs[self.proportions].set_axis(list(self.celltypes), axis=1)
            out.obsm["proportions"] = shares.set_axis(obs.index, axis=0)
        return out

    def _one_row_a_pair(self, what: str) -> None:
        """An error where donors are seen twice."""
        if self.condition is not None and self.condition.paired:
            raise CTMMError(
                f"{what} has one row for each donor and cell type, and here donors are seen under "
                "two conditions: paired=False, or take obs, expr and nu"
            )


def simulate_genes(
    n_genes: int = 100,
    n_donors: int = 50,
    celltypes: int | Sequence[str] = 4,
    *,
    kind: str = "ctp",
    gene_variance: ArrayLike = 1.0,
    cell_cv: float = 0.0,
    cell_noise: CellNoise | None = None,
    noise_error: NoiseError | None = None,
    counts: CountCells | None = None,
    heredity: Heredity | None = None,
    rng: Rng = None,
    **study: Any,
) -> SimulatedGenes:
    """Simulate many genes, or replicates of one, of the same donors.

    Parameters
    ----------
    n_genes, n_donors : int
    celltypes : int or sequence of str
    kind : {"ctp", "op"}
        Cell type-specific or overall pseudobulk.
    gene_variance : float or array, shape (n_genes,)
        Factor of the variance between cells in each gene.
    cell_cv : float
        Coefficient of variation, between pairs and genes, of the variance between cells.
    cell_noise : callable, optional
        Draws errors of means and measured noise variances together: :func:`gamma_cells`; by
        default the errors are normal and their variances known.
    noise_error : callable, optional
        Further errors of the noise variances: :func:`beta_error`, :func:`cell_error`.
    counts : CountCells, optional
        Draw counts of cells, and measure their pairs: sigma2, V, beta, effects and batch_variance
        are then those of log-fold effects, in place of expression itself, and the settings of the
        variance between cells above (and cell_variance) have no part.
    heredity : Heredity, optional
        Genetic values of every gene, beside sigma2 and V, which are then the environment's:
        ``Heredity(simulate_genotypes(50), cis=0.1)``.
    rng : numpy Generator or seed, optional
    **study
        sigma2, V, beta, n_pcs, effects, n_batches, batch_variance, cells, min_cells,
        cell_variance, missing, as in :func:`simulate_pseudobulk`; condition, a
        :class:`Condition` of donors (of counts, its effects are log-fold).

    Returns
    -------
    SimulatedGenes

    Raises
    ------
    CTMMError
        As :func:`simulate_pseudobulk`.

    Examples
    --------
    >>> genes = simulate_genes(5, 20, ["T", "B"], V=(0.5, 0.1), cell_cv=0.4, rng=1)
    >>> genes.expr.shape, genes.truth["V[T]"]
    ((40, 5), np.float64(0.5))
    >>> genes.overall().obs.columns[-3:].tolist()
    ['prop_T', 'prop_B', 'n_cells']
    """
    choose("kind", kind, ["ctp", "op"])
    n_genes = whole_number("n_genes", n_genes, 1, MOST_DRAWS)
    cell_cv = number("cell_cv", cell_cv)
    cell_noise = drawing("cell_noise", cell_noise, "gamma_cells(6)")
    noise_error = drawing("noise_error", noise_error, "beta_error(5)")
    rng = generator(rng)
    level = shaped("gene_variance", gene_variance, (n_genes,))
    if (level < 0).any():
        raise CTMMError("gene_variance must not be negative")
    known_keywords(simulate_genes, study)
    condition = study.get("condition")
    if condition is not None and not isinstance(condition, Condition):
        raise CTMMError(f"condition= must be a simulate.Condition, or None, got {condition!r}")
    made = make_study(rng, n_donors, celltypes, **study)
    n_cells = made.obs["n_cells"].to_numpy()
    room(n_genes=n_genes, rows=len(n_cells))
    genetic, more, truth = _genetic(made, heredity, n_genes, rng)
    if counts is not None:
        if not isinstance(counts, CountCells):
            raise CTMMError(f"counts= must be CountCells(mean=1.0), or None, got {counts!r}")
        others = {"gene_variance": (level != 1.0).any(), "cell_cv": cell_cv > NONE}
        others |= {"cell_noise": cell_noise, "noise_error": noise_error}
        others |= {"cell_variance": "cell_variance" in study}
        for name, given in others.items():
            if given:
                raise CTMMError(f"counts= make their own variance between cells: leave out {name}=")
        out = _of_counts(made, counts, n_genes, genetic, rng, condition)
        out = replace(out, truth=truth, **more)
        return out if kind == "ctp" else out.overall()
    Y, NU = np.empty((n_genes, len(n_cells))), np.empty((n_genes, len(n_cells)))
    for g in range(n_genes):
        nu = made.nu * level[g]
        if cell_cv > NONE:
            nu = nu * rng.gamma(cell_cv**-2, cell_cv**2, nu.shape)
        if cell_noise is None:
            Y[g] = genetic[g] + made.draw(nu, rng)
        else:
            Y[g] = genetic[g] + made.draw(np.zeros_like(nu), rng)
            error, nu = cell_noise(rng, nu, n_cells)
            Y[g] += shaped("errors drawn by cell_noise=", error, nu.shape)
        nu = noise_error(rng, nu, n_cells) if noise_error else nu
        NU[g] = measured(nu, made.nu.shape)
    names = gene_names(n_genes)
    expr, noise = (pd.DataFrame(values.T, columns=names) for values in (Y, NU))
    out = SimulatedGenes(made.obs, expr, noise, truth, made.celltypes, condition=condition, **more)
    return out if kind == "ctp" else out.overall()


def _of_counts(
    made: Study, counts: CountCells, n_genes: int, genetic: np.ndarray, rng: np.random.Generator,
    condition: Condition | None,
) -> SimulatedGenes:  # fmt: skip
    """Genes whose cells are counted."""
    n_cells, none = made.obs["n_cells"].to_numpy(), np.zeros(len(made.obs))
    donor = pd.factorize(made.obs["donor"])[0]
    found = [counts.measure(rng, own + made.draw(none, rng), n_cells, donor) for own in genetic]
    expr, nu, nu2 = (
        pd.DataFrame(np.array(part).T, columns=gene_names(n_genes))
        for part in zip(*found, strict=True)
    )
    return SimulatedGenes(made.obs, expr, nu, made.truth, made.celltypes, None, nu2, condition)


def _genetic(
    made: Study, heredity: Heredity | None, n_genes: int, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any], pd.Series]:
    """Genetic values of genes in every row (G, n), what of it results say, and the truth."""
    if heredity is None:
        return np.zeros((n_genes, len(made.obs))), {}, made.truth
    if not isinstance(heredity, Heredity):
        raise CTMMError(f"heredity= must be a simulate.Heredity, or None, got {heredity!r}")
    own, names = heredity.checked(len(made.celltypes)), made.celltypes
    code, donors = pd.factorize(made.obs["donor"])
    found = inherited(own, list(donors), gene_names(n_genes), len(names), rng)
    cell = pd.Index(names).get_indexer(pd.Index(made.obs["celltype"]))
    truth = pd.Series({**made.truth, **own.truth(names)}, dtype=float)
    more = {"genotypes": own.genotypes, "positions": found.positions}
    return found.values[:, code, cell], more, truth


def gene_names(count: int) -> list[str]:
    """Names of simulated genes.

    >>> gene_names(2)
    ['g1', 'g2']
    """
    return [f"g{k}" for k in range(1, count + 1)]


def _grid(obs: pd.DataFrame, celltypes: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """obs of every pair of donor and cell type, and the row of each, -1 where it is missing."""
    donors = obs["donor"].astype(str).drop_duplicates()
    full = pd.MultiIndex.from_product([donors, list(celltypes)], names=["donor", "celltype"])
    own = pd.MultiIndex.from_arrays([obs["donor"].astype(str), obs["celltype"]])
    at = own.get_indexer(full)
    carried = obs.drop_duplicates("donor").drop(columns=["celltype", "n_cells", "proportion"],
                                                errors="ignore")  # fmt: skip
    table = carried.iloc[np.repeat(np.arange(len(donors)), len(celltypes))].reset_index(drop=True)
    types = pd.Categorical(full.get_level_values(1), list(celltypes))
    table.insert(1, "celltype", pd.Series(types))
    table["n_cells"] = np.where(at >= 0, obs["n_cells"].to_numpy()[at], 0)
    total = table.groupby("donor", sort=False)["n_cells"].transform("sum")
    table["proportion"] = table["n_cells"] / total
    if "proportion" in obs:
        table["proportion"] = np.where(at >= 0, obs["proportion"].to_numpy()[at], 0.0)
    table.index = pd.Index([f"{donor}|{name}" for donor, name in full])
    return table, at


def require_anndata() -> Any:
    """The module, or an error with the line that installs it."""
    try:
        import anndata
    except ImportError:
        raise CTMMError("anndata is not installed: pip install 'ctmm-formula[anndata]'") from None
    return anndata
