# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # From cells to a fit
#
# The model works on pseudobulk: for each donor and cell type, the mean over cells and the noise
# variance ν of that mean (sample variance / number of cells).  This page goes from a matrix of
# cells to a fit in ten lines, then looks at what happened on the way.
#
# The cells are simulated: 80 donors, 4 cell types (one of them scarce), 300 genes of raw counts.
# The genes differ between donors, and most of them more so in T cells than elsewhere.

# %%
import warnings

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

import ctmm_formula as ctmm


def simulate_cells(
    donors: int = 80, genes: int = 300, seed: int = 0, visits: int = 1
) -> anndata.AnnData:
    """Raw counts of cells; what the donors have in common and not is on the scale of logs.

    With two visits every two donors in a row are one person, whose T cells express more of the
    first 100 genes at the second.
    """
    rng = np.random.default_rng(seed)
    types, shares = np.array(["B", "Mono", "NK", "T"]), np.array([3.0, 4.0, 1.4, 6.0])
    sd = np.array([0.10, 0.15, 0.10, 0.40])  # cell type-specific, between donors
    cells = rng.integers(60, 420, donors)
    donor = np.repeat(np.arange(donors), cells)
    P = rng.dirichlet(shares, donors)
    celltype = np.concatenate([rng.choice(4, n, p=p) for n, p in zip(cells, P, strict=True)])
    level = rng.normal(0.0, 1.0, genes) + rng.normal(0.0, 0.3, (4, genes))
    person = np.arange(donors) // visits
    shared = 0.2 * rng.normal(size=(donors // visits, genes))[person]
    specific = sd[:, None] * rng.normal(size=(donors, 4, genes))
    if visits > 1:
        specific[1::2, 3, :100] += 0.4
    log_rate = (level + shared[:, None] + specific)[donor, celltype]
    depth = rng.lognormal(0.0, 0.3, len(donor))[:, None]
    counts = rng.poisson(depth * np.exp(log_rate))
    obs = pd.DataFrame(
        {
            "donor_id": np.array([f"donor{k:02d}" for k in range(donors)])[donor],
            "cell_type": pd.Categorical(types[celltype]),
            "sex": np.where(person[donor] % 2, "M", "F"),
            "pool": np.array([f"pool{k % 10}" for k in range(donors)])[donor],
            "n_counts": counts.sum(axis=1),
        },
        index=[f"cell{k:05d}" for k in range(len(donor))],
    )
    if visits > 1:
        obs["person"] = np.array([f"person{k:02d}" for k in person])[donor]
        visit = np.where(donor % 2, "after", "before")
        obs["visit"] = pd.Categorical(visit, ["before", "after"])
    obs.loc[obs.index[::97], "cell_type"] = None  # cells nobody could name
    var = pd.DataFrame(index=[f"gene{k:03d}" for k in range(genes)])
    return anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


adata = simulate_cells()
print(adata, end="\n\n")

# %% [markdown]
# ## Ten lines
#
# `adata` may as well be the path of an h5ad or zarr file larger than memory, or a list of them, one
# a batch: they are read in blocks, by as many threads as `n_jobs` says.

# %%
pb = ctmm.pseudobulk(
    adata, donor="donor_id", celltype="cell_type", normalize="log_cp10k",
    min_cells=10, min_cells_donor=100,
)  # fmt: skip
pb = ctmm.filter_genes(pb, min_share=0.1)
res = ctmm.fit("gene010 ~ C(celltype) + sex", random="pool", data=pb)

# %% readme="cells"
print(res.vcomp.round(4))  # variance components: shared, of each cell type, of pools
print(res.test_variance())  # do cell types differ in variance between donors?

# %% [markdown]
# All of the fit; and the same with every gene scaled and a principal component of the donors as
# covariate, against what else differs between them.

# %%
pb = ctmm.standardize(pb)
pb = ctmm.principal_components(pb, 1)
res = ctmm.fit("gene010 ~ C(celltype) + sex + PC1", random="pool", data=pb)
print(res.summary(), end="\n\n")

# %% [markdown]
# Overall pseudobulk, one row per donor, brings its proportions along:

# %%
op = ctmm.overall(pb)
print(ctmm.fit("gene010 ~ sex", data=op, structure="hom").vcomp, end="\n\n")

# %% [markdown]
# ## What was left out
#
# Nothing goes without a word: filters, cells without label, columns that vary within donors.

# %%
for note in pb.uns["ctmm"]["notes"]:
    print("-", note)
print(pb.obs.head(8), end="\n\n")

# %% [markdown]
# ## Look
#
# **Which pairs are there**, and of how many cells; donors sorted by what they lack, mostly NK.  A
# fit uses the observed pairs of every donor, so none need be imputed for it.

# %% alt="Pairs of donor and cell type, shaded by their number of cells; missing pairs are marked"
ctmm.plots.missing(pb).figure

# %% [markdown]
# **The noise variance falls as 1/n**: a line of slope -1 for each cell type, its height the variance
# between cells.

# %% alt="Noise variance against the number of cells, with a line for each cell type"
ctmm.plots.noise(ctmm.to_long(pb, "gene010", zero_noise="pool")).figure

# %% [markdown]
# **The gene itself**: pseudobulk, means, and standard deviations between donors.

# %% alt="Expression of gene010 by donor and cell type, with means and standard deviations"
res.plot("gene").figure

# %% [markdown]
# ## The same people twice
#
# Cells of 40 people before and after a treatment, which raises 100 genes in T cells.  Pooled by person
# the visits would be one, and the treatment would be gone; `pseudobulk` says so:

# %%
twice = simulate_cells(seed=1, visits=2)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    ctmm.pseudobulk(twice, donor="person", celltype="cell_type", normalize="log_cp10k")
print(*(f"- {one.message}" for one in said), sep="\n")

# %% [markdown]
# One sample is one donor of the model, and what the visits of a person share is a random effect.
# Every cell type has its own effect of the visit; are all zero, and is that of T cells?

# %%
pb = ctmm.pseudobulk(
    twice, donor="donor_id", celltype="cell_type", normalize="log_cp10k", min_cells=10
)
res = ctmm.fit("gene011 ~ 0 + C(celltype) + C(celltype):visit", random="person", data=pb)
effects = [name for name in res.fe_params.index if ":visit" in name]
print(res.table().loc[effects].round(3), end="\n\n")
print(res.wald_test([f"{name} = 0" for name in effects]))
