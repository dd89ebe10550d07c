# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Does expression vary between donors, and in which cell types?
#
# The table has one row per donor and cell type: mean expression of the cells (`expr`), the squared
# standard error of that mean (`nu`), and covariates.  The data are simulated and come with the
# package; 72 donors, 4 cell types (days of a differentiation), 24 batches.

# %%
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import ctmm_formula as ctmm

HERE = Path(__file__).parent

df = ctmm.load_example()
print(df.drop(columns=[f"PC{k}" for k in range(2, 7)]).head(), end="\n\n")

# %% [markdown]
# ## Fit
#
# `structure="free"`: a variance shared by all cell types (`hom`) and one of its own for each
# (`V[day0]`, ...), over and above the noise `nu`.  Batches are random effects.

# %%
CALL = (
    'ctmm.fit("expr ~ C(celltype) + sex + PC1", random="batch", structure="free",\n'
    '               method="reml", data=df)'
)
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
# Points: pseudobulk of one donor, without the effects of sex and PC1.  Line: mean of the cell type;
# bars: one standard deviation between donors, of the variance that is shared (dark) and of shared
# and cell type-specific variance together (light).

# %%
celltypes = sorted(df["celltype"].unique())
rng = np.random.default_rng(0)
figure, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
means = res.means()
adjusted = df["expr"]
for name, column in {"sex[T.M]": df["sex"] == "M", "PC1": df["PC1"]}.items():
    adjusted = adjusted - res.fe_params[name] * (column - column.mean())
shared = max(res.vcomp["hom"], 0.0)
for place, name in enumerate(celltypes):
    y = adjusted[df["celltype"] == name]
    jitter = place + rng.uniform(-0.12, 0.12, len(y)) + 0.2
    ax.scatter(jitter, y, s=9, color="0.55", linewidths=0, label="donors" if not place else None)
    mean = means.loc[name, "estimate"]
    total = max(res.vcomp["hom"] + res.vcomp[f"V[{name}]"], 0.0)
    for variance, color, width, label in [
        (total, "#9ecae1", 14, "sd, shared + specific"),
        (shared, "#3182bd", 14, "sd, shared"),
    ]:
        reach = mean + np.sqrt(variance) * np.array([-1, 1])
        ax.plot([place - 0.15] * 2, reach, color=color, linewidth=width, solid_capstyle="butt",
                label=label if not place else None)  # fmt: skip
    ax.plot([place - 0.27, place - 0.03], [mean] * 2, color="black", linewidth=1.5,
            label="mean" if not place else None)  # fmt: skip
ax.set_xticks(range(len(celltypes)), celltypes)
ax.set_ylabel("expression (overall pseudobulk has sd 1)")
ax.set_title("gene001: variance between donors, by cell type", fontsize=11)
ax.legend(frameon=False, fontsize=8, loc="lower left", markerscale=1.5)
ax.spines[["top", "right"]].set_visible(False)
figure.savefig(HERE / "quickstart.png", dpi=150)
print(f"\nPicture: {HERE.name}/quickstart.png")

# %% [markdown]
# `python vignettes/quickstart.py --readme` puts this output into the README, between its markers.

# %%
if "--readme" in sys.argv:
    readme = HERE.parent / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- quickstart: begin -->\n")
    _, _, after = rest.partition("<!-- quickstart: end -->\n")
    lines = ["import ctmm_formula as ctmm", "df = ctmm.load_example()", f"res = {CALL}"]
    lines += ["print(res.summary())", str(res.summary())]
    for call, result in tests.items():
        lines += [call, str(result)]
    lines += ['hom = ctmm.fit(..., structure="hom")', "ctmm.anova(hom, res)", str(table)]
    block = "```\n" + "\n".join(lines) + "\n```\n"
    readme.write_text(
        f"{before}<!-- quickstart: begin -->\n{block}<!-- quickstart: end -->\n{after}",
        encoding="utf-8",
    )
