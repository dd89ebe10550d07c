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
import numpy as np

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
# Left: every point is one donor's pseudobulk, less the effects of sex, PC1 and batch.  Bars reach
# one standard deviation between donors to both sides of the mean (line): of the variance that all
# cell types share (dark), and of shared and cell type-specific variance together (light).
# Right: the variance components with 95 % intervals, and the truth.

# %% alt="Expression by donor and cell type; variance components, estimated and true"
BLUE, SKY, VERMILION = "#0072B2", "#9ecae1", "#D55E00"  # told apart also without red or green
celltypes = list(res.celltypes)
adjusted = df["expr"] - df["batch"].map(res.random_effects["batch"]["estimate"])
for name, column in {"sex[T.M]": df["sex"] == "M", "PC1": df["PC1"]}.items():
    adjusted = adjusted - res.fe_params[name] * (column - column.mean())

rng = np.random.default_rng(0)
figure, (left, right) = plt.subplots(
    1, 2, figsize=(9.0, 4.2), width_ratios=[1.45, 1], layout="constrained"
)
means = res.means()["estimate"]
spread = {
    "sd, shared + specific": (SKY, np.sqrt(np.maximum(np.diag(res.A), 0.0))),
    "sd, shared": (BLUE, np.full(len(celltypes), np.sqrt(max(res.vcomp["hom"], 0.0)))),
}
places = np.arange(len(celltypes))
for label, (color, sd) in spread.items():
    left.bar(places - 0.2, 2 * sd, 0.26, means - sd, color=color, label=label)
left.hlines(means, places - 0.36, places - 0.04, color="black", linewidth=2, label="mean")
for place, name in enumerate(celltypes):
    y = adjusted[df["celltype"] == name]
    left.scatter(
        place + 0.2 + rng.uniform(-0.13, 0.13, len(y)), y, s=12, color="0.45", linewidths=0,
        label="donors" if place == 0 else None,
    )  # fmt: skip
left.set_xticks(places, celltypes)
left.set_xlim(-0.6, len(celltypes) - 0.4)
left.set_ylabel("expression, adjusted for sex, PC1, batch")
left.set_title("gene001: donors by cell type", fontsize=11)
left.legend(frameon=False, fontsize=9, loc="lower left")

names = list(res.vcomp.index)
interval = res.conf_int().loc[names].to_numpy()
rows = np.arange(len(names))
right.hlines(rows, interval[:, 0], interval[:, 1], color=BLUE, linewidth=2, label="95 % interval")
right.plot(res.vcomp, rows, "o", color=BLUE, markersize=7, label="estimate")
right.plot(truth[names], rows, "x", color=VERMILION, markersize=8, mew=2.2, label="truth")
right.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
right.set_yticks(rows, names)
right.invert_yaxis()
right.set_xlabel("variance")
right.set_title("variance components", fontsize=11)
right.legend(frameon=False, fontsize=9, loc="upper right")
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)

# %% tags=["active-py"]
# as a script: keep the picture; with --readme put the output into the README, between its markers
import sys
from pathlib import Path

HERE = Path(globals().get("__file__", "notebook")).resolve().parent
figure.savefig(HERE / "quickstart.png", dpi=150)
print(f"\nPicture: {HERE.name}/quickstart.png")
if "--readme" in sys.argv:
    call = (
        'ctmm.fit("expr ~ C(celltype) + sex + PC1", random="batch", structure="free",\n'
        '...                method="reml", data=df)'
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
