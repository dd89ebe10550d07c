# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Heritability
#
# How much of the variance of expression between people is genetic, how much of it do all cell types
# share, and in which types is expression heritable at all?  From genotypes and counts of cells to
# pictures, on simulated data whose truth is known.

# %%
import numpy as np
import pandas as pd

import ctmm_formula as ctmm
from ctmm_formula import simulate

rng = np.random.default_rng(17)

# %% [markdown]
# ## Genotypes and counts
#
# 200 people, in pairs of sibs, with 3,000 variants on two chromosomes, in blocks that are inherited
# together; one genotype in a hundred is missing.  Every gene has 20 causal variants within 100 kb
# (*cis*), and all variants have a small effect (*polygenic*).  Beyond what types share, the
# variants of the window have effects of their own in B cells and monocytes.  The environment adds its
# part, and the counts of the cells their noise.

# %%
DONORS = 200  # quick: 60
GENES = 160  # quick: 12
WINDOW = 100_000
TYPES = ["B", "CD4", "Mono", "NK"]
G = simulate.simulate_genotypes(
    DONORS, 3000, family=2, populations=2, fst=0.02, missing=0.01, rng=rng
)
own = simulate.Heredity(
    G, cis=0.01, cis_specific=[0.03, 0.0, 0.015, 0.0], polygenic=0.02, window=WINDOW
)
genes = simulate.simulate_genes(
    GENES, DONORS, TYPES, sigma2=0.05, V=0.03, heredity=own, cells=60, missing=0.05, n_pcs=0,
    counts=simulate.CountCells(mean=2.0), rng=rng,
)  # fmt: skip
print(G, genes, sep="\n", end="\n\n")
print(genes.positions.head(3).to_string(), end="\n\n")

# %% [markdown]
# Genotypes of your own are files of PLINK, and are read by window:
#
# ```python
# G = ctmm.Genotypes("cohort.bed")  # beside cohort.bim, cohort.fam; or cohort.pgen
# K = ctmm.read_kinship("cohort.grm.bin")  # or G.kinship(maf=0.05)
# ```
#
# Donors are matched by their labels (the individual IDs), never by position.  The example has no
# need of a file: all variants give the kinship.

# %%
K = G.kinship(maf=0.05)
sibs = np.array([K.iloc[k, k + 1] for k in range(0, DONORS, 2)])
print(f"kinship of sibs: {sibs.mean():.2f} on average, from {sibs.min():.2f} to {sibs.max():.2f}")

# %% [markdown]
# The donors come from two populations.  Where these differ in more than their genes, the difference
# would pass for genetic: the first principal component of the kinship is a covariate.

# %%
first = pd.Series(np.linalg.eigh(K)[1][:, -1] * np.sqrt(DONORS), K.index)
genes.obs["gPC1"] = genes.obs["donor"].map(first)

# %% [markdown]
# ## One gene
#
# Two kinships: the variants around the gene, and all of them.

# %%
name = "g1"
place = genes.positions.loc[name]
cis = G.window(place["chromosome"], place["tss"] - WINDOW, place["tss"] + WINDOW, maf=0.05)
res = ctmm.fit(
    "expr ~ C(celltype) + sex + gPC1", kinship={"cis": cis, "trans": K}, data=genes.gene(name)
)
print(res.notes[1], end="\n\n")
print(res.heritability().table.loc["cis"].round(3).to_string(), end="\n\n")
print(res.test_heritability("cis"), end="\n\n")

# %% [markdown]
# `heritability` has shares of the variance between donors: *shared*, *specific* (the mean of what
# types have beyond that) and their *total*, then that of every type by itself.  The noise of cells
# is in no denominator.  Estimates are moments that the kinship and pooled noise weigh, whose errors are
# those of the model's variances.  Of one gene intervals are wide, shares may lie beyond 0
# and 1, and where the variance between donors is not clearly positive there is none, with the reason.
#
# The test asks less and knows more: it takes products of *different* donors only, in which the
# noise of cells has no part.  *p* is that of anything genetic; then what is shared, what is specific
# to some types, and expression in each.
#
# ## All genes
#
# Every gene has the kinship of its own window, read block by block.

# %%
options = {"genotypes": G, "window": WINDOW, "maf": 0.05, "positions": genes.positions}
scan = ctmm.fit_genes(
    "~ C(celltype) + sex + gPC1", data=genes, genetic_structure="full",
    tests=["heritability", "jackknife"], **options,
)  # fmt: skip
print(scan.counts(), scan.notes, end="\n\n")
shown = ["gene", "n_snps", "snps_rare", "share_imputed", "p_heritability", "p_heritability_bh"]
print(scan.top(5, by="heritability")[shown].to_string(index=False), end="\n\n")

# %% [markdown]
# Violins are the genes, lines their medians; what is missing to 1 is the environment.

# %% alt="Violins of the genetic share of the variance over genes: shared, specific, total, and of four cell types, largest in B cells."
scan.plot("heritability").figure

# %% [markdown]
# The truth is what goes with the variants of the window; what is polygenic is in the rest here.
# Medians of ratios lie a little below it.

# %%
truth = genes.truth
every = {name: truth["cis:hom"] + truth[f"cis:V[{name}]"] for name in TYPES}
rest = truth["hom"] + 0.03 + truth["trans:hom"]
medians = scan.plot_data("heritability").groupby("part")["h2"].median()
table = pd.DataFrame({"true": {t: v / (v + rest) for t, v in every.items()}, "median": medians})
print(table.loc[TYPES].round(2).to_string(), end="\n\n")

# %% [markdown]
# ## Genetic correlations
#
# Do the same variants act in two types alike?  Single genes cannot say; their mean covariance can.
# Types without effects of their own share all (B and monocytes differ from each other most).

# %% alt="Heat map of genetic correlations between four cell types; CD4 and NK cells are closest to 1, B cells and monocytes farthest."
scan.plot("genetic_correlations").figure

# %%
pairs = scan.plot_data("genetic_correlations").set_index(["first", "second"])["correlation"]
true = {(c, d): truth["cis:hom"] / np.sqrt(every[c] * every[d]) for c, d in pairs.index}
print(pd.DataFrame({"true": true, "all genes": pairs}).round(2).to_string(), end="\n\n")

# %% [markdown]
# ## Which genes, and does the test hold its level?
#
# The same scan with the genotypes of other people: nothing is genetic, and p values are uniform.

# %%
strangers = ctmm.Genotypes(G.frame().set_axis(rng.permutation(G.donors)), G.variants)
null = ctmm.fit_genes(
    "~ C(celltype) + sex + gPC1", data=genes, **{**options, "genotypes": strangers}
)
p = {"own genotypes": scan.table["p_heritability"], "of others": null.table["p_heritability"]}
p["of others, specific"] = null.table["p_heritability_specific"]
found = {name: [(v < level).mean() for level in (0.05, 0.01)] for name, v in p.items()}
print(pd.DataFrame(found, ["p < .05", "p < .01"]).T.round(3).to_string(), end="\n\n")

# %% alt="QQ plot: p values of genes with their own genotypes far above the line, those with genotypes of others on it."
ctmm.plots.qq(p).figure

# %% [markdown]
# Levels and power for 50 to 1,000 donors are [measured](measured/heritability_levels), and [the tail of
# 100,000 genes](measured/heritability_tail); formulas
# are in [Mathematics](mathematics).
#
# ## Which kinship?
#
# | you have | write |
# |---|---|
# | one kinship for all genes | `fit_genes(..., kinship=K)` |
# | a window for each gene | `fit_genes(..., genotypes=G, window=500_000, maf=.05, positions=table)` |
# | both | the two of them; the window is called "cis" |
# | several | `kinship={"trans": K, "household": H}` |
#
# - Genes take one read of the variants of their block; finished blocks are kept with `out=`, and a
#   file knows by which genotypes it was made.
# - `res.genetic_values(K)` predicts genetic values, also of donors without expression.
# - In R: `ctmm(expr ~ celltype, kinship = K, data = df)`, `heritability(fit)`,
#   `test_heritability(fit)`, `ctmm_genes(..., kinship = K)`, and a window for each gene by
#   `ctmm_genes(..., genotypes = "cohort.bed", window = 500000, positions = table)`.
# - Single variants, in place of all of a window: `ctmm.scan_donors(res, table)`.
