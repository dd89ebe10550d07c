"""Make the embedded example: ``python -m ctmm_formula.datasets.generate`` writes its files.

The sizes are those of a differentiation experiment with induced pluripotent stem cells, as the
CTMM paper reports them: four days as cell types, batches of a few donors, expression components
with standard deviations of tens as covariates, a shared variance that is small beside the cell
type-specific ones for most genes, and noise that makes about a tenth of the variance of overall
pseudobulk.  All numbers are drawn here; none is measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ctmm_formula.engine.draws import draw
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.simulate import cell_error, negative_binomial_cells
from ctmm_formula.structures import resolve

from . import CELLTYPES, EXPRESSION, PCS, TRUTH

SEED = 20240618
N_DONORS, N_BATCHES, N_GENES = 72, 24, 200
PC_SD = np.array([20.0, 16.0, 13.0, 11.0, 9.0, 8.0])
MIN_CELLS, MIN_CELLS_DONOR = 10, 100
"""More cells than these are needed in a pair and in a donor, as in the paper."""
KURTOSIS = 2.5
"""Excess kurtosis of cells: noise variances then have a coefficient of variation near .2."""

DEMONSTRATION_VALUES = {
    "hom": 0.15, "V[day0]": 0.05, "V[day1]": 0.15, "V[day2]": 0.3, "V[day3]": 0.6, "batch": 0.2,
    "mean[day0]": 0.6, "mean[day1]": 0.2, "mean[day2]": -0.2, "mean[day3]": -0.8,
    "sex[M]": 0.4, "PC1": 0.02, **dict.fromkeys(PCS[1:], 0.0), "cell_variance": 12.0,
}  # fmt: skip
"""The first gene is set by hand: its variance between donors grows from day to day, and sex and
PC1 are all the covariates it needs."""


def make_obs(rng: np.random.Generator) -> pd.DataFrame:
    """Pairs of donor and cell type with covariates and numbers of cells, one per row."""
    batch = np.concatenate(
        [np.arange(N_BATCHES), rng.integers(N_BATCHES, size=N_DONORS - N_BATCHES)]
    )
    donors = pd.DataFrame(
        {
            "donor": [f"donor{i + 1:02d}" for i in range(N_DONORS)],
            "batch": [f"batch{b + 1:02d}" for b in rng.permutation(batch)],
            "sex": rng.choice(["F", "M"], N_DONORS, p=[0.55, 0.45]),
        }
    )
    scores = rng.standard_normal((N_DONORS, len(PCS)))
    donors[PCS] = ((scores - scores.mean(axis=0)) * PC_SD).round(3)
    cells = negative_binomial_cells(96, 1.75)
    n_cells = cells(rng, (N_DONORS, len(CELLTYPES)))
    while (few := n_cells.sum(axis=1) <= MIN_CELLS_DONOR).any():
        n_cells[few] = cells(rng, (int(few.sum()), len(CELLTYPES)))
    donor, celltype = np.nonzero(n_cells > MIN_CELLS)
    obs = donors.iloc[donor].reset_index(drop=True)
    obs.insert(1, "celltype", np.array(CELLTYPES, dtype=object)[celltype])
    obs["n_cells"] = n_cells[donor, celltype]
    return obs


def make_truth(rng: np.random.Generator) -> pd.DataFrame:
    """Parameters of each gene before standardisation; which ones are zero is fixed.

    Of ten genes five have V free, two iid and three none; the means of ten in forty are equal;
    every second gene has no batch variance, four of five no effect of sex.
    The first gene is the demonstration.
    """
    gene, C = np.arange(N_GENES), len(CELLTYPES)
    structure = np.array(["free"] * 5 + ["iid"] * 2 + ["hom"] * 3)[gene % 10]
    hom = np.where(structure == "hom", rng.gamma(2.0, 0.15, N_GENES), rng.gamma(0.4, 0.2, N_GENES))
    V = rng.exponential(0.4, (N_GENES, C))
    V[structure == "iid"] = 0.1 + V[structure == "iid"][:, :1]
    V[structure == "hom"] = 0.0
    mean = np.where((gene // 10 % 4 == 3)[:, None], 0.0, rng.normal(0.0, 1.0, (N_GENES, C)))
    batch = np.where(gene % 2 == 1, 0.0, rng.exponential(0.15, N_GENES))
    slopes = rng.normal(0.0, np.sqrt(0.35 / len(PCS)), (N_GENES, len(PCS))) / PC_SD
    sex = np.where(gene % 5 == 0, rng.normal(0.0, 0.4, N_GENES), 0.0)
    cell_variance = rng.lognormal(np.log(18.0), 0.6, N_GENES)
    truth = pd.DataFrame({"structure": structure, "hom": hom})
    truth[[f"V[{name}]" for name in CELLTYPES]] = V
    truth["batch"] = batch
    truth[[f"mean[{name}]" for name in CELLTYPES]] = mean
    truth["sex[M]"] = sex
    truth[PCS] = slopes
    truth["cell_variance"] = cell_variance
    truth.loc[0, list(DEMONSTRATION_VALUES)] = list(DEMONSTRATION_VALUES.values())
    truth.index = pd.Index([f"gene{g + 1:03d}" for g in gene], name="gene")
    return truth


def make_model(obs: pd.DataFrame) -> Model:
    """Design of every gene: means, sex and PCs fixed, batch random, structure free."""
    celltype = pd.Categorical(obs["celltype"], CELLTYPES).codes
    H = np.eye(len(CELLTYPES))[celltype]
    X = np.column_stack([H, obs["sex"] == "M", obs[PCS]])
    batch = RandomComponent(pd.factorize(obs["batch"])[0], np.ones(len(obs)))
    donor = pd.factorize(obs["donor"])[0]
    basis = resolve("free", CELLTYPES).basis
    return build_model(np.zeros(len(obs)), np.ones(len(obs)), X, H, donor, basis, [batch])


def make_gene(
    model: Model, n_cells: np.ndarray, truth: pd.Series, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Expression and measured noise variance of one gene, in the caller's row order."""
    celltype = model.unsort(model.H).argmax(axis=1)
    between_types = rng.lognormal(0.0, 0.3, len(CELLTYPES))
    between_pairs = rng.lognormal(0.0, 0.25, model.nobs)
    nu = truth["cell_variance"] * between_types[celltype] * between_pairs / n_cells
    variances = ["hom", *(f"V[{name}]" for name in CELLTYPES), "batch"]
    fixed = [*(f"mean[{name}]" for name in CELLTYPES), "sex[M]", *PCS]
    model = model.with_response(model.y, nu[model.order])
    y = draw(model, truth[variances].to_numpy(float), truth[fixed].to_numpy(float), rng)
    return model.unsort(y), cell_error(KURTOSIS)(rng, nu, n_cells)


def standardised(
    obs: pd.DataFrame, y: np.ndarray, nu: np.ndarray, truth: pd.Series
) -> tuple[np.ndarray, np.ndarray, pd.Series]:
    """Scale a gene to mean 0 and variance 1 of overall pseudobulk, its truth with it."""
    share = obs["n_cells"] / obs.groupby("donor")["n_cells"].transform("sum")
    overall = (share * y).groupby(obs["donor"]).sum()
    m, s = overall.mean(), overall.std()
    truth = truth.copy()
    means = [f"mean[{name}]" for name in CELLTYPES]
    truth[means] = (truth[means] - m) / s
    slopes = ["sex[M]", *PCS]
    truth[slopes] = truth[slopes] / s
    variances = ["hom", *(f"V[{name}]" for name in CELLTYPES), "batch", "cell_variance"]
    truth[variances] = truth[variances] / s**2
    return (y - m) / s, nu / s**2, truth


def make() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables, unrounded: expression (one row per pair) and truth (one per gene)."""
    obs = make_obs(np.random.default_rng([SEED, 0]))
    raw = make_truth(np.random.default_rng([SEED, 1]))
    model, n_cells = make_model(obs), obs["n_cells"].to_numpy()
    columns, truths = {}, {}
    for number, gene in enumerate(raw.index):
        y, nu = make_gene(model, n_cells, raw.loc[gene], np.random.default_rng([SEED, 2, number]))
        y, nu, truths[gene] = standardised(obs, y, nu, raw.loc[gene])
        columns[gene], columns[f"{gene}.nu"] = y.round(4), nu
    truth = pd.DataFrame(truths).T.rename_axis("gene")
    return pd.concat([obs, pd.DataFrame(columns)], axis=1), truth.infer_objects()


def write(folder: Path) -> None:
    """Write both files; the same bytes each time."""
    expression, truth = make()
    packed = {"method": "gzip", "mtime": 1}
    expression.to_csv(folder / EXPRESSION, index=False, float_format="%.5g", compression=packed)
    truth.to_csv(folder / TRUTH, float_format="%.5g")


if __name__ == "__main__":
    write(Path(__file__).parent)
