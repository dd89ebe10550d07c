# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Planning a study: how many donors, how many cells?
#
# `ctmm.power` simulates studies over a grid of settings and says how often a test is positive: its
# power where cell types differ in variance, its false positives where they do not.  Every setting
# takes one value or a list; a tuple is one value with an entry for each cell type.
#
# Each rate has a standard error, from the number of simulated genes.  Look at the false positives
# first: the power of a test that rejects too often means nothing.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import ctmm_formula as ctmm

N_SIM = 400  # quick: 25
DONORS = [20, 40, 80, 160]  # quick: [20, 40]
EFFECT = (0.05, 0.02, 0.02, 0.02)

# %% [markdown]
# ## What goes in
#
# The settings are on the scale of the data: take them from a pilot study, or from published data of
# the tissue.  Here the pilot is the embedded example; moment estimates of all its genes are a matter
# of a second.

# %%
obs, expr, nu = ctmm.load_genes()
pilot = ctmm.fit_genes(
    "~ C(celltype) + sex + PC1", data=obs, expr=expr, nu=nu, random="batch",
    method="he", tests=[], progress=False,
)  # fmt: skip
print("median variance components", pilot.vcomp.median().round(3).to_string(), sep="\n")
quartiles = np.quantile(obs["n_cells"], [0.25, 0.5, 0.75])
print("cells of a pair, quartiles:", *quartiles.round().astype(int))
# the variance between cells is the noise variance times the number of cells
s2 = np.median(nu.to_numpy() * obs["n_cells"].to_numpy()[:, None])
print(f"variance between cells: {s2:.1f}")

# %% [markdown]
# ## Counts of cells
#
# Where nothing else is said, cells are counted: negative binomial counts of the gene, analysed as
# log(1 + counts per 10,000), and the variances are those of log-fold effects.  What a gene can tell
# depends on how often it is seen: rates with 40 donors by its mean count in a cell (of 5,000 counts
# in all), where nothing should be found and where donors differ by 15 to 20 % in some types more.

# %%
by_mean = ctmm.power(
    40, V=[0, (0.04, 0.02, 0.02, 0.02)], counts=[0.02, 0.1, 0.5, 2.0, 10.0], cells=50, fold=5.0,
    sigma2=0.1, tests=["score", "mean", "lrt"], n_sim=N_SIM, rng=5,
)  # fmt: skip
shown = by_mean.assign(rate=by_mean["rate"].round(3))
shown.pivot(index=["V", "test"], columns="counts", values="rate")

# %% [markdown]
# The means are equal, so the rates of "mean" are false positives in all rows.  The likelihood ratio
# takes the noise for known, which in counts of few cells it is not.
#
# What follows is on the scale of the pilot, `counts=None`: cells of any distribution.
#
# ## Donors
#
# A weak effect, V = diag(.05, .02, .02, .02) beside a shared variance of .25, with 50 cells of a
# pair on average, 5-fold uneven.

# %%
setting = {"sigma2": 0.25, "cells": 50, "fold": 5.0, "counts": None, "cell_variance": 3.0}
by_donors = ctmm.power(
    DONORS, V=[0, EFFECT], **setting,
    tests=["score", "lrt", "jackknife", "he:jackknife"], n_sim=N_SIM, rng=1,
)  # fmt: skip
shown = by_donors.assign(V=by_donors["V"].astype(str), rate=by_donors["rate"].round(3))
shown.pivot(index=["V", "test"], columns="n_donors", values="rate")

# %% alt="Positive rates of four tests by number of donors, without and with cell type-specific variance"
figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained", sharey=True)
null = by_donors["V"].astype(str) == "0"
panels = {"false positives (V = 0)": null, "power": ~null}
for ax, (title, part) in zip(axes, panels.items(), strict=True):
    ctmm.plots.power_curves(by_donors[part], ax=ax)
    ax.set_title(title, fontsize=10)

# %% [markdown]
# ## More donors or more cells?
#
# The same number of cells in all, over more donors or fewer.  The signal of a test of V = 0 grows
# about like $N V^2 / (V + s^2/n)^2$ with $N$ donors, $n$ cells of a pair and variance $s^2$ between
# cells.  With $N n$ given, this is largest where $n = s^2 / V$: cells until the noise of a mean is as
# small as V, then donors.  Here V is about .03 and $s^2$ is 3, so that is 100 cells.

# %%
TOTAL = 1600  # cells of each type
options = {"V": EFFECT, "tests": "score", "n_sim": N_SIM, "rng": 2}
studies = [ctmm.power(n, **(setting | options | {"cells": TOTAL / n})) for n in (12, *DONORS)]
budget = pd.concat(studies)
print(budget[["n_donors", "cells", "rate", "se"]].round(3).to_string(index=False))

# %% [markdown]
# This is about finding V, and about cells as the price.  Few donors still say little about how large
# V is in the population, or in which cell type.

# %% [markdown]
# ## Cases and controls
#
# `effect=` is that of a condition, which `cases=` of the donors have, on the log-fold scale: one
# number for all cell types, or one for each.  The tests are those of `effects`: no effect in any type,
# their mean, the same in all types, and every type by itself.  With half of the cells in cases:

# %%
response = ctmm.power(
    [20, 40, 80], effect=[0.0, 0.4, (0.6, 0, 0, 0)], case_cells=0.5, cells=50, fold=5.0,
    V=0.02, sigma2=0.1, tests=["effects", "effects_mean", "effects_heterogeneity"],
    n_sim=N_SIM, rng=6,
)  # fmt: skip
shown = response.assign(rate=response["rate"].round(3))
shown.pivot(index=["effect", "test"], columns="n_donors", values="rate")

# %% [markdown]
# An effect that all types share is best found by their mean, one in a single type by the test of all
# of them.  That *cases vary more* takes more donors than that they differ: `case_variance=` is a factor
# of all their variances, and the test that of `by=`.

# %%
unlike = ctmm.power(
    [40, 80, 160], case_variance=[1.0, 2.0, 3.0], cells=50, fold=5.0, V=0.02, sigma2=0.1,
    tests="groups", n_sim=N_SIM, rng=7,
)  # fmt: skip
unlike.assign(rate=unlike["rate"].round(3)).pivot(
    index="case_variance", columns="n_donors", values="rate"
)

# %% [markdown]
# ## The same donors before and after
#
# With `paired=True` every donor is seen under both conditions: effects are differences within donors,
# and `response=` is the variance between donors of what each condition adds.  Half as many donors, for
# the same number of samples:

# %%
paired = ctmm.power(
    [10, 20, 40], paired=True, effect=[0.0, 0.4], response=[0.0, 0.03], cells=50, fold=5.0,
    V=0.02, sigma2=0.1, case_cells=0.5, tests=["effects_mean", "response"], n_sim=N_SIM, rng=8,
)  # fmt: skip
shown = paired.assign(rate=paired["rate"].round(3))
shown.pivot(index=["effect", "response", "test"], columns="n_donors", values="rate")

# %% [markdown]
# On log(1 + CP10K) a change of level changes the scale of what donors differ by, too: a strong effect
# is a small response there ([what V means on which scale](scales.py)).
#
# ## A whole transcriptome
#
# With Bonferroni's rule over 10,000 genes the level is 5e-6, and effects must be larger or donors
# more.

# %%
scan = ctmm.power(
    DONORS, V=[EFFECT, (0.2, 0.05, 0.05, 0.05)], **setting,
    tests="score", alpha=0.05 / 10_000, n_sim=N_SIM, rng=3,
)  # fmt: skip
scan.assign(rate=scan["rate"].round(3)).pivot(index="V", columns="n_donors", values="rate")

# %% [markdown]
# ## What may go wrong
#
# Noise variances are measured in few cells, cells have heavy tails, batches and missing pairs take
# information.  Rates with 40 donors, where nothing should be found and with the effect:

# %%
cases = {
    "as above": {},
    "known noise": {"kurtosis": None},
    "heavy tails of cells": {"kurtosis": 12.0},
    "errors of the noise, CV .33": {"noise_cv": 0.33},
    "12 cells of a pair": {"cells": 12},
    "8 batches": {"n_batches": 8, "batch_variance": 0.2},
    "30 % of pairs missing": {"missing": 0.3},
}
rows = {}
for name, change in cases.items():
    table = ctmm.power(
        40, V=[0, EFFECT], **(setting | change), tests=["score", "lrt"], n_sim=N_SIM, rng=4
    )
    truth = np.where(table["V"].astype(str) == "0", "false positives", "power")
    rows[name] = table.assign(truth=truth).set_index(["truth", "test"])["rate"].round(3)
pd.DataFrame(rows).T

# %% [markdown]
# The score test stays near its level in all of these; the likelihood ratio takes errors of the
# noise for differences between cell types.
#
# `n_jobs=` spreads the simulations over workers, with the same numbers.  For settings beyond these,
# `ctmm.simulate` draws data from any model, and `ctmm.fit_genes` tests them.
