# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Missing pairs: fit what is there, or impute?
#
# A donor with too few cells of a type has no pseudobulk of that pair.  `ctmm.fit` takes the rows
# there are: its likelihood is that of the observed values, which is all that is needed where pairs
# are missing because cells were few, not because of their expression.  The published analysis
# imputes first and fits complete data.  This page shows both, and what the difference costs.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData

import ctmm_formula as ctmm

ROOT = Path(globals().get("__file__", "vignettes/notebook")).resolve().parents[1]
rng = np.random.default_rng(1)

# %% [markdown]
# ## Cells with a rare type
#
# 50 donors, 40 genes that share factors between donors.  Of the rare cell type many donors have
# few cells.

# %%
DONORS, GENES = 50, 40
TYPICAL = {"common": 45, "medium": 30, "rare": 11}
n = rng.poisson(list(TYPICAL.values()), (DONORS, 3)) + 2
shared = 0.5 * rng.normal(size=(DONORS, 5)) @ rng.normal(size=(5, GENES)) / np.sqrt(5)
level = 4.0 + shared[:, None] + 0.2 * rng.normal(size=(DONORS, 3, GENES))
pair = np.repeat(np.arange(DONORS * 3), n.ravel())
cells = AnnData(
    np.maximum(level.reshape(-1, GENES)[pair] + 1.5 * rng.normal(size=(len(pair), GENES)), 0.0),
    obs=pd.DataFrame(
        {
            "donor": [f"donor{i:02d}" for i in pair // 3],
            "celltype": np.array(list(TYPICAL))[pair % 3],
        },
        index=[f"cell{i}" for i in range(len(pair))],
    ),
    var=pd.DataFrame(index=[f"gene{g:02d}" for g in range(GENES)]),
)
pb = ctmm.pseudobulk(cells, min_cells=10, min_cells_donor=50)
missing = np.isnan(pb.X).all(axis=1)
print(f"{missing.sum()} of {pb.n_obs} pairs are missing:")
print(pd.Series(missing).groupby(pb.obs["celltype"].to_numpy()).sum().to_string(), end="\n\n")

# %% [markdown]
# ## How well can they be filled?
#
# Observed pairs are hidden in the patterns that occur, filled, and compared.  `mse` is relative to
# the variance between donors: 1 is no better than the mean.

# %%
scores = ctmm.evaluate_imputation(pb, repeats=3, rng=0)
print(scores.groupby(["quantity", "method"])[["mse", "correlation"]].median().round(2), end="\n\n")

# %% [markdown]
# ## One gene, both ways
#
# `impute` marks what it filled, so the marks can be taken back.

# %%
full = ctmm.impute(pb, rng=0)
formula = "gene03 ~ C(celltype)"
fits = {
    "rows there are": ctmm.fit(formula, data=pb),
    "imputed pairs as if seen": ctmm.fit(formula, data=full),
    "imputed, marked pairs left out": ctmm.fit(formula, data=full[~full.obs["imputed"]]),
}
table = pd.DataFrame({name: res.vcomp for name, res in fits.items()}).T
print(table.assign(nobs=[res.nobs for res in fits.values()]).round(4), end="\n\n")

# %% [markdown]
# ## Which to trust
#
# Simulated studies of 60 donors (`tests/benchmarks/missing_pairs.py`; truth: shared variance .25,
# V = 0 or V = diag(.05, .02, .02, .05), equal means).  Type D is the rarest.


# %%
def read_tables(path):
    """The tables of the benchmark as one frame."""
    rows, setting, names = [], "", []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            setting = line[3:].split(" (")[0]
        if line.startswith("| "):
            values = [value.strip() for value in line.strip("|").split("|")]
            if values[0] == "genes":
                names = values
            else:
                rows.append({"setting": setting} | dict(zip(names, values, strict=True)))
    return pd.DataFrame(rows)


results = read_tables(ROOT / "tests/benchmarks/missing_pairs.md")
shown = ["genes", "method", "hom2 - truth", "V_D - truth", "score", "LRT", "jackknife", "means"]
for setting, part in results.groupby("setting", sort=False):
    print(setting, part[shown].to_string(index=False), sep="\n", end="\n\n")

# %% [markdown]
# **Trust the fit of the rows there are.**
#
# - With known noise it has no bias, and score test and likelihood ratio keep their level.
# - An imputed pair is no observation.  It lies on what the donor's other pairs and other genes say,
#   without the variance of its own, but counts as if seen with noise `nu`.  So the variance of the
#   rare type comes out too small, even below zero; soft-impute and means also shrink towards the
#   cell type's mean and take from the shared variance.  With a quarter of the pairs missing, true
#   hypotheses (V = 0 by likelihood ratio, equal means) are rejected at level .05 for 26 to 52 % of
#   the genes.  That soft-impute is closest to hidden values does not help.
# - Complete donors alone have no bias, but less power: most donors are thrown away.
# - Noise that is itself measured in ten cells biases V upward by any method, also without missing
#   pairs; the score test is made for that.  There imputing can look better, as two errors cancel.
#
# Impute for methods that cannot do without complete data (principal components, overall pseudobulk
# of all donors), and leave the marked pairs out of the fit.

# %% [markdown]
# Left: bias of the variance of the rarest type, with two standard errors.  Right: how often a test
# at level .05 rejects what is true: V = 0 by the score test, equal means by Wald.

# %% alt="Bias of the variance of the rarest cell type and positive rates, by method and setting"
COLORS = {"V = 0": "#0072B2", "V > 0": "#D55E00"}
methods = list(dict.fromkeys(results["method"]))
settings = list(dict.fromkeys(results["setting"]))
figure, axes = plt.subplots(
    len(settings), 2, figsize=(9.0, 2.6 * len(settings)), sharey=True, sharex="col",
    squeeze=False, layout="constrained",
)  # fmt: skip
places = np.arange(len(methods))
for (left, right), setting in zip(axes, settings, strict=True):
    part = results[results["setting"] == setting]
    for shift, (genes, color) in zip((-0.12, 0.12), COLORS.items(), strict=True):
        rows = part[part["genes"] == genes].set_index("method").loc[methods]
        bias, error = rows["V_D - truth"].str.split("±", expand=True).astype(float).to_numpy().T
        left.errorbar(
            bias, places + shift, xerr=2 * error, fmt="o", color=color, markersize=5, label=genes
        )
    null = part[part["genes"] == "V = 0"].set_index("method").loc[methods]
    for shift, (test, marker) in zip(
        (-0.12, 0.12), {"score": "o", "means": "s"}.items(), strict=True
    ):
        right.plot(null[test].astype(float), places + shift, marker, color="0.25" if test == "score"
                   else "#009E73", markersize=6, label={"score": "V = 0, score test",
                   "means": "equal means"}[test])  # fmt: skip
    left.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    right.axvline(0.05, color="0.6", linewidth=0.8, zorder=0)
    left.set_yticks(places, methods)
    left.set_title(setting, fontsize=11)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
axes[0, 0].invert_yaxis()
axes[-1, 0].set_xlabel("bias of V of the rarest cell type")
axes[-1, 1].set_xlabel("rate of p < .05 where the hypothesis is true")
handles = [handle for ax in axes[0] for handle in ax.get_legend_handles_labels()[0]]
figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
