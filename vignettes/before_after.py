# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Before and after
#
# The same donors, with and without a stimulation: which genes respond, in which cell types, and do
# donors differ in how they respond?  From counts of cells to pictures, on simulated counts whose truth
# is known.

# %%
import warnings

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

import ctmm_formula as ctmm

rng = np.random.default_rng(5)

# %% [markdown]
# ## Counts with known responses
#
# 24 donors, each sampled twice, four cell types; two donors miss the stimulated sample.  Donors differ
# in every gene (log-fold sd .3, shared by the types, and .15 of each type's own), the same before and
# after.  Of 160 genes,
#
# - 20 respond in all donors alike, in monocytes only, by a log-fold effect of .8;
# - 20 respond *on average not at all, but donors differ*: each sample of a donor adds to all types
#   what is its own (sd .25);
# - the others do not respond.

# %%
DONORS, GENES = 24, 160
TYPES = {"B": 25, "CD4": 70, "Mono": 40, "NK": 15}
names = [f"gene{g:03d}" for g in range(GENES)]
donor, stim = np.divmod(np.arange(2 * DONORS)[: 2 * DONORS - 2], 2)  # samples
donor[-1], stim[-1] = DONORS - 1, 0  # the last two donors were seen once
effect = np.zeros((GENES, len(TYPES)))
effect[:20, 2] = rng.choice([-0.8, 0.8], 20)
response = np.repeat([0.0, 0.25, 0.0], [20, 20, GENES - 40])
shared = 0.3 * rng.normal(size=(DONORS, 1, GENES))
fold = (shared + 0.15 * rng.normal(size=(DONORS, 4, GENES)))[donor]
fold = fold + stim[:, None, None] * effect.T
fold = fold + response * rng.normal(size=(len(donor), 1, GENES))
size = rng.poisson(np.array(list(TYPES.values())), (len(donor), 4)) + 11
pair = np.repeat(np.arange(size.size), size.ravel())
sample = pair // 4
depth = 2000 * np.exp(0.4 * rng.normal(size=len(pair)))
rate = rng.gamma(2.0, 0.5, GENES) * np.exp(fold.reshape(-1, GENES)[pair]) * depth[:, None] / 2000
counts = rng.poisson(rate * rng.gamma(2.0, 0.5, rate.shape))
rest = rng.poisson(depth)  # counts of all other genes
person = np.array([f"donor{i:02d}" for i in donor])
condition = np.where(stim, "stim", "ctrl")
cells = AnnData(
    csr_matrix(np.column_stack([counts, rest])),
    obs=pd.DataFrame(
        {
            "sample": np.char.add(np.char.add(person, "_"), condition)[sample],
            "person": person[sample],
            "stim": condition[sample],
            "celltype": np.array(list(TYPES))[pair % 4],
        },
        index=[f"cell{i}" for i in range(len(pair))],
    ),
    var=pd.DataFrame(index=[*names, "others"]),
)

# %% [markdown]
# Pseudobulk is made of samples: every sample is a donor of its own there, and the columns of the
# person and of the condition are carried along for the fit, `donor="person"`.

# %%
pb = ctmm.pseudobulk(cells, donor="sample", normalize="log_cp10k", min_cells=10, min_cells_donor=50)
print(pb.obs[["donor", "person", "stim", "celltype", "n_cells"]].head(3), end="\n\n")

# %% [markdown]
# ## One gene
#
# `within="stim"` splits what donors differ by into what they have under both conditions and a
# *response*: `hom:stim` is the variance of responses that all cell types share, `V[T]:stim` what a
# type has beyond that.  Effects are differences within donors, and those seen once count for what they
# say.

# %%
res = ctmm.fit("gene000 ~ C(celltype) * stim", donor="person", within="stim", data=pb)
print(res.vcomp.round(4).to_string(), end="\n\n")
print(res.effects("stim"), end="\n\n")
print("truth, log-fold:", dict(zip(TYPES, effect[0].tolist(), strict=True)), end="\n\n")

# %% [markdown]
# What pairing is worth: the same samples taken for different donors have larger errors.

# %%
apart = ctmm.fit("gene000 ~ C(celltype) * stim", data=pb)
errors = {"within donors": res, "as if apart": apart}
shown = {name: one.effects("stim").table["std_error"] for name, one in errors.items()}
print(pd.DataFrame(shown).round(3), end="\n\n")

# %% [markdown]
# Do donors respond differently?  A gene whose mean stays where it is, and whose donors do not.  The
# test says what of it all types share, what is specific to some, and in which types, each by its own
# rows alone:

# %%
moved = ctmm.fit("gene025 ~ C(celltype) * stim", donor="person", within="stim", data=pb)
print(moved.test_response(), end="\n\n")
print(res.test_response(), end="\n\n")

# %% [markdown]
# Before a test, look at the samples: `outliers` has residuals that allow for how few cells a pair has,
# and for what the donor is like under the other condition.

# %%
print(moved.outliers(), end="\n\n")

# %% [markdown]
# ## All genes

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ctmm.CTMMWarning)
    scan = ctmm.fit_genes(
        "~ C(celltype) * stim", data=pb, donor="person", within="stim", genes=names,
        tests=["effects:stim", "response"],
    )  # fmt: skip
print(scan, end="\n\n")
print(scan.summary(), end="\n\n")

# %% alt="Volcanoes of four cell types: genes that respond stand apart in monocytes."
scan.plot("volcano")[0].figure

# %% [markdown]
# ## Against the truth
#
# Shares of genes found at a Benjamini-Hochberg p of .05.  Genes that respond in monocytes have an
# effect, genes whose donors differ have a variance of responses; only few have what is not theirs.

# %%
kind = np.repeat(["monocytes respond", "donors differ", "none"], [20, 20, GENES - 40])
columns = {"effect": "p_effects:stim_bh", "types differ": "p_effects:stim_heterogeneity_bh",
           "response": "p_response_bh", "shared response": "p_response_shared_bh"}  # fmt: skip
found = pd.DataFrame({name: scan.table[column] < 0.05 for name, column in columns.items()})
print(found.groupby(kind, sort=False).mean().round(2), end="\n\n")
none = scan.table[kind == "none"]
for name in ("p_effects:stim", "p_response"):
    print(f"{name} < .05 in genes without either: {(none[name] < 0.05).mean():.3f}")
print("hom:stim, median of genes:")
print(scan.table.groupby(kind, sort=False)["hom:stim"].median().round(4).to_string())

# %% [markdown]
# ## The naive answer
#
# The variance of each donor's difference, taken as it is, is mostly noise: half of it, over genes
# whose donors respond alike, beside what the model leaves.

# %%
wide = pd.DataFrame(pb.to_df()[names]).set_index(
    [pb.obs["person"], pb.obs["celltype"], pb.obs["stim"]]
)
difference = wide.xs("stim", level="stim") - wide.xs("ctrl", level="stim")
naive = difference.groupby("celltype", observed=True).var().T / 2
own = scan.table.set_index("gene")
mine = pd.DataFrame({t: own["hom:stim"] + own[f"V[{t}]:stim"] for t in TYPES})
shown = {"half the variance of differences": naive, "model": mine}
table = {k: v.loc[np.array(names)[kind == "none"], list(TYPES)].median() for k, v in shown.items()}
print(pd.DataFrame(table).round(4), end="\n\n")

# %% [markdown]
# ## Three people, eight cell types
#
# The shape of a well-known experiment: blood of a few people with and without interferon, some thousands
# of cells.  A gene that interferon turns on, 12-fold in myeloid cells and 4.5-fold in the others, in
# three people who differ in it (sd .3) and respond alike; counts simulated.

# %%
BLOOD = {"B": 300, "CD4 T": 900, "CD8 T": 200, "CD14 Mono": 400, "FCGR3A Mono": 120, "DC": 40,
         "NK": 200, "Mega": 25}  # fmt: skip
folds = np.array([1.5, 1.5, 1.5, 2.5, 2.5, 2.5, 1.5, 1.5])
size = rng.poisson(np.tile(list(BLOOD.values()), (3, 2, 1)))
who, when, which = (np.repeat(k.ravel(), size.ravel()) for k in np.indices(size.shape))
level = 0.3 * rng.normal(size=(3, 1, 1)) + folds * np.arange(2)[:, None]
depth = 1500 * np.exp(0.4 * rng.normal(size=len(who)))
rate = 0.4 * depth / 1500 * np.exp(level[who, when, which])
obs = pd.DataFrame(
    {"person": np.array(["p1", "p2", "p3"])[who], "stim": np.array(["ctrl", "stim"])[when],
     "celltype": np.array(list(BLOOD))[which]},
    index=[f"cell{i}" for i in range(len(who))],
)  # fmt: skip
obs["sample"] = obs["person"] + "_" + obs["stim"]
gene = rng.poisson(rate * rng.gamma(2.0, 0.5, len(who)))
blood = AnnData(
    csr_matrix(np.column_stack([gene, rng.poisson(depth)])), obs=obs,
    var=pd.DataFrame(index=["ISG", "others"]),
)  # fmt: skip
few = ctmm.pseudobulk(blood, donor="sample", summary="log_mean", min_cells=10)
three = ctmm.fit(
    "ISG ~ C(celltype) * stim", donor="person", within="stim", structure="hom", data=few
)
print(three.effects("stim"), end="\n\n")
print(three.vcomp.round(4).to_string())

# %% [markdown]
# On the logarithm of the mean count effects are log-folds: 1.5 and 2.5 here.  Thousands of cells are no
# people: errors come from three of them, so there are two degrees of freedom, intervals are four
# standard errors wide to each side, and eight effects cannot be tested at once.  A strong effect is
# found; how much people vary, or respond differently, three of them cannot say, and `structure="hom"`
# asks for no more than one variance of each.

# %% [markdown]
# ## What to keep in mind
#
# - **Levels** of the test of responses, beside what takes noise for biology, are in
#   `tests/benchmarks/group_levels.md`, of effects in the same donors in
#   `tests/benchmarks/effect_levels.md`, and 10,000 genes without either in
#   `tests/benchmarks/response_scan.md`.
# - **Donors who respond alike** leave nothing for the variances of responses, and a fit by REML ends on
#   the edge.  Kenward and Roger's errors take what the edge holds for known and keep their level.  At
#   ten donors some joint tests of eight types have no F of theirs and others find too much, and say so;
#   the robust ones do neither.
# - **Scale**: on log(1 + CP10K) a change of level changes how much donors differ, too, so a strong
#   effect may bring a small response: [what V means on which scale](scales.py).
# - **Different donors** under the two conditions are [cases and controls](cases_controls.py);
#   `by=` there asks whether they vary alike.
# - **How many donors?**  `ctmm.power(paired=True, ...)`: [planning a study](planning.py).
