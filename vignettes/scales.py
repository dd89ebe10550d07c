# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # What V means on which scale
#
# V is what donors do to single cell types beyond what they do to all of them.  "The same to all" is
# a matter of scale.  A donor that doubles a gene in every cell type does the same to all of them on
# the scale of logarithms.  Expression is mostly not there: it is the mean over cells of
# log(1 + CP10K), and log(1 + x) is straight where x is small.  There doubling moves a type of high
# level by more than one of low level, and the difference is V, without anything specific to a type.
#
# | `pseudobulk(counts, ...)` | a pair has | the same factor in all types is |
# |---|---|---|
# | `normalize="log_cp10k"` (published, `summary="mean"`) | the mean over cells of log(1 + CP10K) | shared, as far as types have the same level; else V > 0 |
# | `summary="log_mean"` | the logarithm of the mean CP10K of its cells | shared |
#
# Both questions are legitimate.  On the first scale V > 0 says that a gene's expression in log(1 +
# CP10K) varies differently in different types; the usual reading "donors regulate the gene in one
# type and not in the other" needs the second one.

# %% [markdown]
# ## One factor, two scales
#
# Cells of 40 donors and four types.  Every donor multiplies a gene in **all** types by one factor
# (sd .3 of its logarithm); the types differ in level (sd .7).  Nothing is specific to a type.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ctmm_formula as ctmm

N, TYPES, GENES = 40, ["B", "Mono", "NK", "T"], 100  # quick: 20, ["B", "Mono", "NK", "T"], 10


def simulate_counts(depth=0.0, ambient=0.0, levels=0.7, seed=1):
    """Counts of cells (genes and the rest of each library), their labels, donors' factors."""
    rng = np.random.default_rng(seed)
    size = rng.integers(30, 120, N * len(TYPES))
    pair = np.repeat(np.arange(len(size)), size)
    factor = 0.3 * rng.normal(size=(N, 1, GENES))
    level = levels * rng.normal(size=(1, len(TYPES), GENES))
    rate = np.exp(factor + level)
    rate = (1 - ambient) * rate + ambient * rate.mean(axis=1, keepdims=True)
    depth = np.repeat(np.exp(depth * rng.normal(size=N)), len(TYPES))[pair]
    library = 5000 * depth * np.exp(0.4 * rng.normal(size=len(pair)))
    expected = rate.reshape(len(size), GENES)[pair] * library[:, None] / 5000
    counts = rng.poisson(expected * rng.gamma(2.0, 0.5, expected.shape))
    table = pd.DataFrame(counts, columns=[f"gene{g:03d}" for g in range(GENES)])
    table["rest"] = np.maximum(np.rint(library) - counts.sum(axis=1), 0)
    obs = pd.DataFrame(
        {
            "donor": [f"donor{k:02d}" for k in pair // len(TYPES)],
            "celltype": [TYPES[k] for k in pair % len(TYPES)],
        }
    )
    return table, obs, factor[:, 0]


counts, obs, factor = simulate_counts()
log1p = ctmm.pseudobulk(counts, obs=obs, normalize="log_cp10k")
log_mean = ctmm.pseudobulk(counts, obs=obs, summary="log_mean")
scans = {
    name: ctmm.fit_genes("~ C(celltype)", data=pb[:, :GENES].copy(), method="robust")
    for name, pb in (("log1p", log1p), ("log_mean", log_mean))
}
pd.DataFrame({name: scan.summary().loc["score"] for name, scan in scans.items()}).T

# %% [markdown]
# The tests of the first line are not wrong: V is above zero on that scale.  The picture shows why.  Each
# point is a donor, across its factor; lines of one slope are what a shared effect makes.

# %% tags=["hide-input"] alt="Expression of one gene in four cell types against the donors' log factor, on log1p (slopes differ) and on log_mean (slopes are alike)."
gene = log1p.var["level_ratio"].iloc[:GENES].idxmax()
at = list(log1p.var_names).index(gene)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained")
for axis, pb, title in zip(
    axes, (log1p, log_mean), ("mean of log(1 + CP10K)", "log of mean CP10K"), strict=True
):
    for k, name in enumerate(TYPES):
        own = pb[pb.obs["celltype"] == name, gene]
        x, y = factor[:, at], own.X[:, 0]
        slope, start = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axis.plot(x, y, ".", color=f"C{k}", ms=4, alpha=0.7)
        axis.plot(ends, start + slope * ends, color=f"C{k}", label=f"{name}, slope {slope:.2f}")
    axis.set(title=title, xlabel="log factor of the donor", ylabel=f"{gene} in the pair")
    axis.legend(fontsize=8, frameon=False)

# %% [markdown]
# ## Who tells you
#
# A type of mean y moves by 1 − exp(−y) of a log factor.  `pseudobulk` writes the largest of these
# shares over the smallest into `var["level_ratio"]`, and what errors of the means leave of it into
# `level_ratio_low`; where that is 1.2 or more, pseudobulk, fit and scan have a
# note.  Fits of plain tables take their fitted means for it.  The rule reads log(1 + CP10K) in
# natural logarithms; of log2(1 + CPM) it finds part of the genes only, and standardised tables
# without this column say nothing.

# %%
from textwrap import fill

print(*map(fill, log1p.uns["ctmm"]["notes"]), sep="\n")
fit = ctmm.fit(f"{gene} ~ C(celltype)", data=log1p, method="robust")
print("\nfit:", *map(fill, fit.notes), sep="\n")

# %% [markdown]
# On the other scale, the fit says what V means, and names a gene with too few counts.

# %%
print(*map(fill, log_mean.uns["ctmm"]["notes"]), sep="\n")
print(fill(ctmm.fit(f"{gene} ~ C(celltype)", data=log_mean, method="robust").notes[-1]))
log_mean.var.head(3).round(1)

# %% [markdown]
# ## What the logarithm of a mean needs
#
# With m the mean CP10K of the n cells of a pair and h half a count spread over them,
#
#     y = log(m + h) + ν/2        ν = Var(cells) / (n m (m + h))
#
# Half a count keeps pairs without any; ν is the delta method's, 1 / (K + 1/2) for K Poisson counts;
# ν/2 takes back that the logarithm of a noisy mean is too small.  A larger constant in place of h
# is log(1 + x) again.  The price is that few counts do not know their own ν.  `layers["counts"]`
# has the counts behind each value, `var["min_counts"]` their mean in the cell type with the fewest,
# and `var["few_counts"]` marks genes with less than 5: levels and V are right down to 2 (below), and
# this leaves room.  Leave such genes out.
#
# ## Measured
#
# The score test on counts with a factor shared by all types, end to end (`pseudobulk`, `fit_genes`).
# Shares of p values below .05 and .01, standard errors in brackets; lines with "V sd" have something
# to find.

# %% tags=["hide-input", "markdown"]
from pathlib import Path

print(Path("tests/benchmarks/log_mean_levels.md").read_text(encoding="utf-8").split("\n\n", 2)[2])

# %% [markdown]
# ## Depth and ambient counts
#
# Two more things make V > 0 without any biology: lines with "factor 0" of the table, where donors do
# not differ at all.
#
# *Depth.*  Donors whose cells are sequenced to different depths (sd .5 of its logarithm).  CP10K takes
# the depth out of a mean of counts, but a mean of log(1 + CP10K) still depends on it, and by different
# amounts in types of different level.  The logarithm of the mean does not.
#
# *Ambient counts*, from the soup rather than from the cell (a tenth of all on average, none to twice
# that by donor).  They pull every type towards the donor's average over types: types of low level go
# up and those of high level down.  That is no shared factor, so it is V > 0 on **both** scales, and
# more so the more the low types gain.  Take them out of the counts first (SoupX, CellBender, DecontX).
# No rule of this package sees either.
