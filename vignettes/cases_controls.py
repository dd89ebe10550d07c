# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Cases and controls
#
# Which genes differ between patients and controls, in which cell types, and do cell types respond
# differently?  From counts of cells to pictures, on simulated counts whose truth is known.

# %%
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

import ctmm_formula as ctmm

rng = np.random.default_rng(3)

# %% [markdown]
# ## Counts with known effects
#
# 20 cases and 20 controls, four cell types, cases with half the cells.  Donors differ in every gene
# (log-fold sd .3, shared by the types, and .15 of each type's own).  Of 200 genes, 20 respond in all
# types by one log-fold effect, 20 in monocytes only; the others do not respond.

# %%
DONORS, GENES = 40, 200
TYPES = {"B": 25, "CD4": 70, "Mono": 40, "NK": 15}
case = np.arange(DONORS) % 2
names = [f"gene{g:03d}" for g in range(GENES)]
effect = np.zeros((GENES, len(TYPES)))
effect[:20] = rng.choice([-0.6, 0.6], 20)[:, None]
effect[20:40, 2] = rng.choice([-1.0, 1.0], 20)
size = rng.poisson(np.array(list(TYPES.values())) * np.where(case, 0.5, 1.0)[:, None]) + 11
fold = 0.3 * rng.normal(size=(DONORS, 1, GENES)) + 0.15 * rng.normal(size=(DONORS, 4, GENES))
fold = fold + case[:, None, None] * effect.T
pair = np.repeat(np.arange(DONORS * 4), size.ravel())
depth = 2000 * np.exp(0.4 * rng.normal(size=len(pair)))
rate = rng.gamma(2.0, 0.5, GENES) * np.exp(fold.reshape(-1, GENES)[pair]) * depth[:, None] / 2000
counts = rng.poisson(rate * rng.gamma(2.0, 0.5, rate.shape))
rest = rng.poisson(depth)  # counts of all other genes
cells = AnnData(
    csr_matrix(np.column_stack([counts, rest])),
    obs=pd.DataFrame(
        {
            "donor": [f"donor{i:02d}" for i in pair // 4],
            "celltype": np.array(list(TYPES))[pair % 4],
            "status": np.where(case[pair // 4], "case", "control"),
        },
        index=[f"cell{i}" for i in range(len(pair))],
    ),
    var=pd.DataFrame(index=[*names, "others"]),
)
cells.obs["status"] = pd.Categorical(cells.obs["status"], ["control", "case"])
pb = ctmm.pseudobulk(cells, normalize="log_cp10k", min_cells=10, min_cells_donor=50)
print(pb, end="\n\n")

# %% [markdown]
# The first level, *control*, is the reference.
#
# ## One gene
#
# `effects` has the effect in every cell type, their mean, and two tests of all of them: that there
# is none, and that cell types respond in the same way.  The tests are robust: errors come from
# donors, and hold where counts make noise rise with expression.

# %%
res = ctmm.fit("gene020 ~ C(celltype) * status", data=pb)
print(res.effects("status"), end="\n\n")
print("truth, log-fold:", dict(zip(TYPES, effect[20].tolist(), strict=True)))

# %% [markdown]
# Effects are differences of what the formula predicts, so `0 + C(celltype) + C(celltype):status` has
# the same.  The effect in one type may be named, and compared with any other:

# %%
apart = {"Mono|case": 1, "Mono|control": -1, "NK|case": -1, "NK|control": 1}
print(res.contrast({"Mono - NK": apart}).round(3).to_string(), end="\n\n")
print(res.means(at={"status": ["control", "case"]}).round(3), end="\n\n")

# %% [markdown]
# With `~ C(celltype) + status` there is one effect for all types, and no test of their differences:

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    common = ctmm.fit("gene020 ~ C(celltype) + status", data=pb)
print(common.effects("status"), end="\n\n")

# %% [markdown]
# ## All genes
#
# The same questions of a scan, as words among its tests.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ctmm.CTMMWarning)
    scan = ctmm.fit_genes(
        "~ C(celltype) * status", data=pb, genes=names, tests=["effects:status"], shares=True
    )
print(scan, end="\n\n")
columns = ["gene", "p_effects:status", "p_effects:status_bh", "p_effects:status_heterogeneity_bh"]
print(scan.top(5, by="effects:status")[columns].to_string(index=False), end="\n\n")
print(scan.tidy("effects:status").head(3).round(4).to_string(index=False), end="\n\n")

# %% alt="Volcanoes of four cell types: most genes at the foot, genes that respond at both sides, most of them in monocytes."
scan.plot("volcano")[0].figure

# %% [markdown]
# Genes with the smallest omnibus p values; a dot is an effect found in a type, a star a gene whose
# types respond differently.

# %% alt="Effects of 24 genes in four cell types and their mean; genes that respond in monocytes only have a star."
scan.plot("effects", genes=24).figure

# %% [markdown]
# ## Against the truth
#
# Shares of genes found at a Benjamini-Hochberg p of .05, by question and kind of gene.  A gene that
# responds in all types by the same log-fold effect is best found by the *mean* of the effects, one
# that responds in one type by the omnibus test; only the latter is to have a star.

# %%
kind = np.repeat(["all types", "monocytes only", "none"], [20, 20, GENES - 40])
tidy = scan.tidy("effects:status")
found = tidy.assign(found=tidy["p_bh"] < 0.05, kind=np.tile(kind, len(tidy) // GENES))
found["term"] = found["term"].replace("", "omnibus")
shown = found.pivot_table(index="kind", columns="term", values="found")
print(shown[["omnibus", "mean", "heterogeneity", *TYPES]].round(2), end="\n\n")
null = scan.table.loc[kind == "none", "p_effects:status"]
print(f"p < .05 in genes without effect: {(null < 0.05).mean():.3f}")

# %% [markdown]
# On log(1 + CP10K) one log-fold effect is not one difference in types whose counts differ, so a few
# genes of the first kind may have a star: [what V means on scales](scales.py) says the same of
# variances.
#
# ## Many variables of the donors
#
# One fit without them serves any number of variables of donors: dosages of variants, scores, laboratory
# values.  Each by itself has an effect in every cell type, on average, and differences between types.
# Here 2,000 dosages that have nothing to do with the gene, and one that acts in monocytes alone:

# %%
variants = pd.DataFrame(
    rng.binomial(2, 0.3, (DONORS, 2000)), [f"donor{i:02d}" for i in range(DONORS)],
    [f"rs{k}" for k in range(2000)],
)  # fmt: skip
table = pb.obs.assign(expr=pb.to_df()["gene199"], nu=pb.to_df("nu")["gene199"]).reset_index(
    drop=True
)
own = (table["celltype"] == "Mono") * table["donor"].astype(str).map(variants["rs7"])
table["expr"] += 0.6 * own
null = ctmm.fit("expr ~ C(celltype) + status", data=table)
hits = ctmm.scan_donors(null, variants).sort_values("p_omnibus")
columns = [*(f"estimate[{name}]" for name in TYPES), "p_omnibus", "p_heterogeneity"]
shown = hits[[*columns, "p_omnibus_adjusted"]].head(3)
print(shown.to_string(float_format="{:.2g}".format), end="\n\n")
others = hits.drop("rs7")
print(f"p < .05 of the others: {(others['p_omnibus'] < 0.05).mean():.3f}", end="\n\n")

# %% [markdown]
# ## Where the variance is

# %% alt="Violins of shares of variance of 200 genes: means, shared, specific, fixed effects, noise."
scan.plot("shares").figure

# %% [markdown]
# ## What to keep in mind
#
# - **Levels** of these tests, from 10 donors a group, are in
#   `tests/benchmarks/effect_levels.md`, beside per-type least squares in the same run.  With ten
#   donors a group and eight types the joint tests keep .04 to .05 of a nominal .05 on normal cells and
#   on 2 counts a cell, single types and their mean .04 to .05.
#   On .1 counts a cell (`tests/benchmarks/count_levels.md`) they keep .03 to .04 there, as Hotelling's
#   test of the same tables does, whose sums of few counts are as skewed; where one arm has a quarter
#   of the cells they still do, and Hotelling's common covariance has .08 to .09.
# - **Few donors, many types**: a joint test of eight effects rests on their covariance, of which few
#   donors say little, so it borrows from the model's, as much as nine more donors would say.  With 15
#   donors a group an effect of .8 in one of eight types is found there in .61 of data sets, by the test
#   of all in .40 and by that of differences in .41; REML with Kenward and Roger's errors has .41 and .44
#   on the same normal cells, but is no guide on counts of few cells.  Where one type alone may respond,
#   read the types' own tests, adjusted for their number.
# - **Do patients vary more?**  `by="status"` and `test_groups()`.  Where a group has fewer than 40
#   donors p is the larger of two laws', which makes it careful, most of all by cell type: .02 to .05
#   at a nominal .05 (`tests/benchmarks/group_levels.md`).  Both are in the result; the empirical one
#   alone has .04 to .07 there.
# - **Several groups**: every level is compared with the first; `omnibus`, `mean` and each cell type
#   have tests of all comparisons.  **Numbers** have the effect of one unit; where the formula bends
#   them, name values: `effects("age", values=(30, 60))`.
# - **Covariates** in an interaction with the condition: the effect is that of their mean in the rows
#   of the fit, or at values: `effects("status", at={"age": 50})`.
# - **A type without cases** has no effect there: it is NaN with its reason, and the joint tests are
#   of the others, and say so.
