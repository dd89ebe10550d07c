"""Data with known truth: from any model, by study, by published design, down to single cells.

====================  =========================================================================
:func:`draw`          one response of a given model
simulate_pseudobulk   one gene of a study as tables, cell type-specific and overall
simulate_genes        many genes or replicates of a study, as ``fit_genes`` takes them
simulate_design       the simulations of the CTMM paper by name, see ``DESIGNS``
simulate_genotypes    genotypes of donors: variants in blocks, families, populations
simulate_cells        single cells of a study, as ``pseudobulk`` takes them
bootstrap_cells       cell types resampled from the counts of real cells
====================  =========================================================================

Everything random comes from ``rng=``: the same seed gives the same numbers.

>>> from ctmm_formula import simulate
>>> genes = simulate.simulate_design("published/free", 3, n_donors=20, rng=1)
>>> genes.expr.shape, genes.truth["V[T1]"].round(3)
((80, 3), np.float64(1.6))
"""

from ..arguments import Rng
from ..engine.draws import draw
from .cells import bootstrap_cells, simulate_cells
from .counts import CountCells
from .designs import DESIGNS, simulate_design
from .genes import SimulatedGenes, simulate_genes
from .heredity import Heredity, simulate_genotypes
from .noise import (
    beta_error,
    cell_error,
    gamma_cells,
    log_uniform_cells,
    negative_binomial_cells,
    relative_error,
    spread_cells,
)
from .tables import Condition, Pseudobulk, overall_table, simulate_pseudobulk

__all__ = [
    "DESIGNS",
    "Condition",
    "CountCells",
    "Heredity",
    "Pseudobulk",
    "Rng",
    "SimulatedGenes",
    "beta_error",
    "bootstrap_cells",
    "cell_error",
    "draw",
    "gamma_cells",
    "log_uniform_cells",
    "negative_binomial_cells",
    "overall_table",
    "relative_error",
    "simulate_cells",
    "simulate_design",
    "simulate_genes",
    "simulate_genotypes",
    "simulate_pseudobulk",
    "spread_cells",
]
