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
import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse

import ctmm_formula as ctmm


def simulate_cells(donors: int = 80, genes: int = 300, seed: int = 0) -> anndata.AnnData:
    """Raw counts of cells; what the donors have in common and not is on the scale of logs."""
    rng = np.random.default_rng(seed)
    types, shares = np.array(["B", "Mono", "NK", "T"]), np.array([3.0, 4.0, 1.4, 6.0])
    sd = np.array([0.10, 0.15, 0.10, 0.40])  # cell type-specific, between donors
    cells = rng.integers(60, 420, donors)
    donor = np.repeat(np.arange(donors), cells)
    P = rng.dirichlet(shares, donors)
    celltype = np.concatenate([rng.choice(4, n, p=p) for n, p in zip(cells, P, strict=True)])
    level = rng.normal(0.0, 1.0, genes) + rng.normal(0.0, 0.3, (4, genes))
    shared = 0.2 * rng.normal(size=(donors, genes))
    specific = sd[:, None] * rng.normal(size=(donors, 4, genes))
    log_rate = (level + shared[:, None] + specific)[donor, celltype]
    depth = rng.lognormal(0.0, 0.3, len(donor))[:, None]
    counts = rng.poisson(depth * np.exp(log_rate))
    obs = pd.DataFrame(
        {
            "donor_id": np.array([f"donor{k:02d}" for k in range(donors)])[donor],
            "cell_type": pd.Categorical(types[celltype]),
            "sex": np.where(donor % 2, "M", "F"),
            "pool": np.array([f"pool{k % 10}" for k in range(donors)])[donor],
            "n_counts": counts.sum(axis=1),
        },
        index=[f"cell{k:05d}" for k in range(len(donor))],
    )
    obs.loc[obs.index[::97], "cell_type"] = None  # cells nobody could name
    var = pd.DataFrame(index=[f"gene{k:03d}" for k in range(genes)])
    return anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


adata = simulate_cells()
print(adata, end="\n\n")

# %% [markdown]
# ## Ten lines
#
# `adata` may as well be the path of an h5ad or zarr file larger than memory: it is read in blocks.

# %%
pb = ctmm.pseudobulk(
    adata, donor="donor_id", celltype="cell_type", normalize="log_cp10k",
    min_cells=10, min_cells_donor=100,
)  # fmt: skip
pb = ctmm.filter_genes(pb, min_share=0.1)
pb = ctmm.standardize(pb)
pb = ctmm.principal_components(pb, 1)
res = ctmm.fit("gene010 ~ C(celltype) + sex + PC1", random="pool", data=pb)
print(res.summary(), end="\n\n")
print(res.test_variance("score"), end="\n\n")

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
# **Cells per pair.**  Pairs left of the line have too few cells and are missing; here mostly NK.

# %% alt="Number of cells of each donor, by cell type; pairs with ten cells or fewer are missing"
COLORS = dict(
    zip(["B", "Mono", "NK", "T"], ["#0072B2", "#E69F00", "#D55E00", "#009E73"], strict=True)
)
obs = pb.obs
missing = np.isnan(pb.X).all(axis=1)
celltypes = list(obs["celltype"].cat.categories)
rng = np.random.default_rng(0)

figure, left = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
left.spines[["top", "right"]].set_visible(False)
for place, name in enumerate(celltypes):
    here = (obs["celltype"] == name).to_numpy()
    heights = place + rng.uniform(-0.28, 0.28, here.sum())
    n = obs.loc[here, "n_cells"].clip(lower=0.7)  # no cell at all: the leftmost points
    gone = missing[here]
    left.scatter(n[~gone], heights[~gone], s=12, color=COLORS[name], linewidths=0)
    left.scatter(n[gone], heights[gone], s=16, color="0.35", marker="x", linewidths=0.9)
left.axvline(10.5, color="0.4", linewidth=1, linestyle="--")
left.set_xscale("log")
left.set_xticks([1, 10, 100], ["1", "10", "100"])
left.set_yticks(range(len(celltypes)), celltypes)
left.invert_yaxis()
left.set_xlabel("cells of the pair")
left.set_title("cells per donor and cell type", fontsize=11)
left.text(9.5, 3.0, "missing", ha="right", va="center", color="0.35", fontsize=9)

# %% [markdown]
# **ν against n.**  The noise variance falls as 1/n: a line of slope -1 for each cell type, its
# height the variance between cells.

# %% alt="Noise variance falls as one over the number of cells, with one line for each cell type"
GENE = "gene010"
table = ctmm.to_long(pb, GENE, zero_noise="pool")
figure, middle = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
middle.spines[["top", "right"]].set_visible(False)
for name in celltypes:
    part = table[(table["celltype"] == name) & table["nu"].notna()]
    middle.scatter(part["n_cells"], part["nu"], s=13, color=COLORS[name], linewidths=0, label=name)
    # variance between cells, pooled over donors
    s2 = np.average(part["nu"] * part["n_cells"], weights=part["n_cells"] - 1)
    ends = np.array([part["n_cells"].min(), part["n_cells"].max()])
    middle.plot(ends, s2 / ends, color=COLORS[name], linewidth=1)
middle.set_xscale("log")
middle.set_yscale("log")
middle.set_xticks([10, 30, 100, 300], ["10", "30", "100", "300"])
middle.minorticks_off()
middle.set_xlabel("cells of the pair, n")
middle.set_ylabel("noise variance ν")
middle.set_title(f"{GENE}: ν falls as 1 / n", fontsize=11)
middle.legend(frameon=False, fontsize=9, loc="lower left")

# %% [markdown]
# **Missing pairs** (dark), donors sorted by their number of cells: mostly the smaller donors
# miss the scarce cell type.  A fit uses the observed pairs of every donor, so none need be imputed
# for it.

# %% alt="Missing pairs of donor and cell type; donors with fewest cells on top"
holes = missing.reshape(-1, len(celltypes))
order = np.argsort(obs["n_cells"].to_numpy().reshape(holes.shape).sum(axis=1))
figure, right = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
right.imshow(holes[order], aspect="auto", cmap="Greys", vmin=0, vmax=1.15, interpolation="none")
right.set_xticks(range(len(celltypes)), celltypes)
right.set_xticks(np.arange(len(celltypes) - 1) + 0.5, minor=True)
right.grid(which="minor", axis="x", color="0.8", linewidth=0.8)
right.tick_params(which="minor", length=0)
right.set_ylabel("donors, fewest cells on top")
share = ", ".join(
    f"{name} {part:.0%}" for name, part in zip(celltypes, holes.mean(axis=0), strict=True)
)
right.set_title(f"missing pairs ({share})", fontsize=10)
