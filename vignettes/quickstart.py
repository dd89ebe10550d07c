# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Quick start: does expression vary between donors, and in which cell types?
#
# The table has one row per donor and cell type: mean expression of the cells (`expr`), the squared
# standard error of that mean (`nu`), and covariates.  The data are simulated and come with the
# package; 72 donors, 4 cell types (days of a differentiation), 24 batches.

# %%
import matplotlib.pyplot as plt

import ctmm_formula as ctmm

df = ctmm.load_example()
print(df.drop(columns=[f"PC{k}" for k in range(2, 7)]).head(), end="\n\n")

# %% [markdown]
# ## Fit
#
# `structure="free"`: a variance shared by all cell types (`hom`) and one of its own for each
# (`V[day0]`, ...), over and above the noise `nu`.  Batches are random effects.

# %%
res = ctmm.fit(
    "expr ~ C(celltype) + sex + PC1", random="batch", structure="free", method="reml", data=df
)
print(res.summary(), end="\n\n")

# %% [markdown]
# ## Test
#
# Do cell types differ in variance between donors (V = 0)?  In mean?  Is there a batch effect?

# %%
tests = {
    'res.test_variance("score")': res.test_variance("score"),
    'res.test_variance("jackknife")': res.test_variance("jackknife"),
    "res.test_mean()": res.test_mean(),
    'res.test_component("batch")': res.test_component("batch"),
}
for call, result in tests.items():
    print(f"{call}\n{result}\n")

# %% [markdown]
# The same question, V = 0, by a likelihood ratio: is one shared variance enough?

# %%
hom = ctmm.fit(
    "expr ~ C(celltype) + sex + PC1", random="batch", structure="hom", method="reml", data=df
)
table = ctmm.anova(hom, res)
print(table, end="\n\n")

# %% [markdown]
# ## Compare with the truth
#
# The data are simulated, so the parameters are known.

# %%
truth = ctmm.load_truth().loc["gene001"]
for name, value in res.vcomp.items():
    print(f"{name:8s} estimate {value:6.3f}   truth {truth[name]:6.3f}")

# %% [markdown]
# ## Look
#
# Left: every point is one donor's pseudobulk; beside it the mean with its interval, and bars of one
# standard deviation between donors above and below the mean, of the variance that all cell types
# share and of the cell type's own.  Right: the variance components with 95 % intervals, and the truth.

# %% alt="Expression by donor and cell type; variance components, estimated and true"
figure, (left, right) = plt.subplots(
    1, 2, figsize=(9.0, 4.2), width_ratios=[1.3, 1], layout="constrained"
)
ctmm.plots.gene(res, ax=left)
left.set_ylabel("expression of gene001")
ctmm.plots.components(res, ax=right)
known = truth[list(res.vcomp.index)]
right.plot(known, right.get_yticks(), "x", color="#D55E00", markersize=8, mew=2)
right.set_title("variance components, × truth", loc="left", fontsize=10)

# %% tags=["active-py"]
# as a script: keep the picture; with --readme put the output into the README, between its markers
import sys
from pathlib import Path

HERE = Path(globals().get("__file__", "notebook")).resolve().parent
figure.savefig(HERE / "quickstart.png", dpi=150)
print(f"\nPicture: {HERE.name}/quickstart.png")
if "--readme" in sys.argv:
    call = (
        'ctmm.fit(\n...     "expr ~ C(celltype) + sex + PC1", random="batch", '
        'structure="free", method="reml", data=df\n... )'
    )
    readme = HERE.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition("<!-- quickstart: begin -->\n")
    _, end, after = rest.partition("<!-- quickstart: end -->\n")
    lines = [">>> import ctmm_formula as ctmm", ">>> df = ctmm.load_example()", f">>> res = {call}"]
    lines += [">>> print(res.summary())", str(res.summary())]
    for call, result in tests.items():
        lines += [f">>> {call}", str(result)]
    block = "```pycon\n" + "\n".join(lines) + "\n```\n"
    readme.write_text(f"{before}{begin}{block}{end}{after}", encoding="utf-8")
