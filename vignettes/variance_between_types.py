# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Does variance differ between cell types?
#
# People differ in a gene.  Do they differ alike in all cell types, or more in some?  An answer
# for one gene and for many, on simulated data whose truth is known.

# %%
import numpy as np

import ctmm_formula as ctmm

# %% [markdown]
# ## Pseudobulk
#
# Means of cells by person and type, with their noise: [your own cells](from_cells.py) become such a table
# by `ctmm.pseudobulk`.  Here 60 people, four cell types, some 50 cells of each.  In 10 genes people
# differ by .2 (a variance) in all types alike and by .3 more in monocytes; in 100 genes they differ
# alike in all types.

# %%
TYPES = ["B", "Mono", "NK", "T"]
study = {"n_donors": 60, "celltypes": TYPES, "sigma2": 0.2, "cells": 50}
differ = ctmm.simulate.simulate_genes(10, V=(0.0, 0.3, 0.0, 0.0), rng=1, **study)
alike = ctmm.simulate.simulate_genes(100, V=0.0, rng=2, **study)
pb = differ.to_anndata()
print(pb)

# %% [markdown]
# ## One gene
#
# The model splits the variance between people into a part that all types share, `hom`, and a part of
# each type, `V[Mono]`; the noise of few cells is known and taken out.

# %%
gene = pb.var_names[0]
res = ctmm.fit(f"{gene} ~ C(celltype)", data=pb)
print(res.vcomp.round(3).to_string())

# %% [markdown]
# **Is there any difference?**  The score test asks whether V = 0, that is whether `hom` is all there is.
# It has a p value for each type, too, and `cauchy` combines these: more powerful where perhaps one type
# alone differs.

# %%
print(res.test_variance())

# %% [markdown]
# **How large is it?**  Estimates with intervals; negative ends are as possible as negative estimates,
# which keep the mean right.  And the share of the variance of one mean that lies between people:

# %%
print(res.conf_int().loc[res.vcomp.index].round(3).to_string(), end="\n\n")
print(res.icc()["icc"].round(3).to_string())

# %% [markdown]
# **Is it one type against another?**  A hypothesis of your own, in words:

# %%
print(res.wald_test("V[Mono] = V[T]"))

# %% alt="Expression of one gene by cell type: people spread most in monocytes."
res.plot("gene").figure

# %% [markdown]
# ## All genes

# %%
scans = {
    name: ctmm.fit_genes("~ C(celltype)", data=data, tests="score")
    for name, data in {"differ": differ, "alike": alike}.items()
}
for name, scan in scans.items():
    found = scan.table["p_score"] < 0.05
    print(f"{name}: {found.sum()} of {len(found)} genes have p < .05")
best = scans["differ"].top(5, "score")[["gene", "hom", "V[Mono]", "V[T]", "p_score"]]
print(best.to_string(float_format="{:.3g}".format))

# %% [markdown]
# The truth is .2 and .3:

# %%
table = scans["differ"].table
print(table[["hom", *(f"V[{t}]" for t in TYPES)]].agg(["mean", "std"]).round(3).to_string())
assert abs(table["V[Mono]"].mean() - 0.3) < 3 * table["V[Mono]"].std() / np.sqrt(len(table))

# %% [markdown]
# ## What to keep in mind
#
# - **Scale.** On log(1 + CP10K) a type that expresses more differs more, so that a factor shared by all
#   types shows as V > 0 where types differ in level: [what V means on which scale](scales.py).
# - **Which test, which structure**, and how often each is wrong: [structures and
#   tests](structures_and_tests.py).
# - **Missing pairs** of person and type are allowed: [missing pairs](missing_pairs.py).
# - **Do patients differ more than controls?** [Cases and controls](cases_controls.py).  **Do people
#   respond differently?** [Before and after](before_after.py).
# - **How many people?** [Planning a study](planning.py).
