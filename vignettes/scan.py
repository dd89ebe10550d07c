# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # All genes: a scan and its pictures
#
# `ctmm.fit_genes` fits one model to every gene and tests it; the pictures are those of the paper
# (figures 3 to 5), and checks.  They take and return matplotlib Axes, write no files, and hand out
# the numbers they draw.
#
# The genes are simulated on the donors of the example: 72 donors, 4 days, 24 batches, real numbers
# of cells.  Half of the genes have cell type-specific variance, most differ in mean between days.

# %%
import warnings

import numpy as np
import pandas as pd

import ctmm_formula as ctmm

GENES = 2000  # quick: 150
DAYS = ["day0", "day1", "day2", "day3"]


def simulate(obs, genes, seed=0):
    """Expression, measured noise and V of genes whose specific effects are correlated over days."""
    rng = np.random.default_rng(seed)
    donor, day = pd.factorize(obs["donor"])[0], pd.Categorical(obs["celltype"], DAYS).codes
    batch, n = pd.factorize(obs["batch"])[0], obs["n_cells"].to_numpy()[:, None]
    specific = rng.random(genes) < 0.5
    sd = np.sqrt(rng.gamma(1.5, 0.04, (genes, 4)) * specific[:, None]) * [0.7, 0.8, 1.0, 1.4]
    root = np.linalg.cholesky(0.45 ** np.abs(np.subtract.outer(range(4), range(4))))
    gamma = (rng.normal(size=(donor.max() + 1, genes, 4)) @ root.T * sd)[donor, :, day]
    alpha = rng.normal(size=(donor.max() + 1, genes)) * np.sqrt(rng.gamma(1.0, 0.04, genes))
    shift = rng.normal(size=(batch.max() + 1, genes)) * np.sqrt(rng.gamma(1.0, 0.04, genes))
    mean = np.cumsum(rng.normal(0.0, 0.15, (4, genes)) * (rng.random(genes) < 0.8), axis=0)[day]
    s2 = 4.0 + rng.gamma(2.0, 3.0, genes)  # between cells
    error = rng.normal(size=mean.shape) * np.sqrt(s2 / n)
    y = mean + alpha[donor] + gamma + shift[batch] + error
    nu = s2 / n * rng.chisquare(n - 1, y.shape) / (n - 1)
    names = [f"gene{k:04d}" for k in range(1, genes + 1)]
    frames = (pd.DataFrame(values, obs.index, names) for values in (y, nu))
    return *frames, pd.DataFrame(sd**2, names, DAYS)


obs = ctmm.load_genes().obs
expr, nu, truth = simulate(obs, GENES)

# %% [markdown]
# ## The scan
#
# Free structure by REML, with tests of V = 0 (score and jackknife) and of equal means, and the full
# structure beside it for the correlations between days.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ctmm.BoundaryWarning)  # counted below
    scan = ctmm.fit_genes(
        "~ C(celltype) + sex", data=obs, expr=expr, nu=nu, random="batch", structure="free",
        method="reml", tests=["score", "jackknife", "mean"], models=["full"], progress=False,
    )  # fmt: skip
print(scan.counts())

# %% readme="scan"
print(scan.summary().to_string())

# %%
top = scan.top(5, by="score").set_index("gene")
top[["hom", *[f"V[{day}]" for day in DAYS], "p_score", "p_mean"]].map("{:.2g}".format)

# %% [markdown]
# Against the truth: how many of the genes with V, and of those without, does each test find at a false
# discovery rate of .05?

# %%
real = (truth.sum(axis=1) > 0).to_numpy()
found = {
    test: {
        "with V": (scan.table[f"p_{test}_bh"] < 0.05)[real].mean(),
        "without V": (scan.table[f"p_{test}_bh"] < 0.05)[~real].mean(),
    }
    for test in ("score", "jackknife")
}
pd.DataFrame(found).T.round(3)

# %% [markdown]
# ## Variance components over genes
#
# Shared variance, and that of each day (figure 3A of the paper).  Estimates may be negative: where a
# variance is zero, half of them are.

# %% alt="Violins of the shared and the cell type-specific variances over genes, with their medians"
scan.plot("variances").figure

# %% [markdown]
# ## Correlations between days
#
# Of the full structure (figure 3B), for the genes whose estimates of variance are positive; in a
# strong colour: days next to each other.

# %% alt="Violins of the correlations of true expression between days"
scan.plot("correlations", ordered=True).figure

# %% alt="Heat map of the median correlations between days"
scan.plot("correlations", kind="heatmap").figure

# %% [markdown]
# ## Variance against mean
#
# Genes differ between days in mean, in variance between donors, in both or in neither (figure 4).
# Colours: how many genes lie there.  Lines: Bonferroni at .05.

# %% alt="Minus log10 p values of the tests of variance and of means, a point for each gene" picture="scan.png"
scan.plot("differentiation", genes=3).figure

# %% [markdown]
# ## Do the tests hold their level?
#
# P values of the genes without V, against what they should be; $\lambda$ is the ratio of the medians.

# %% alt="QQ plot of the p values of genes without V, of the score test and of the jackknife"
ctmm.plots.qq(scan.table[~real], ["score", "jackknife"]).figure

# %% [markdown]
# ## One gene of the scan
#
# `scan.gene` fits a gene again, with all that a fit can do: the gene itself (figure 5), shares of
# variance of several genes, and checks of residuals and of the weight of single donors.

# %% alt="Pseudobulk of the first gene by day, with means and standard deviations between donors"
first = scan.top(1, by="score")["gene"].iloc[0]
res = scan.gene(first)
res.plot("gene").figure

# %% alt="Shares of variance of the five genes with the smallest p values"
ctmm.plots.shares({name: scan.gene(name) for name in scan.top(5, by="score")["gene"]}).figure

# %% alt="Standardised residuals against predictions, and their normal QQ plot"
res.plot("residuals")[0].figure

# %% alt="Jackknife influence of each donor on each variance component"
res.plot("influence").figure

# %% [markdown]
# Every picture has its numbers: `scan.plot_data("differentiation")`, `res.plot_data("gene")`.
# Pictures go where you want them: `scan.plot("qq", ax=ax)`, `ax.figure.savefig("qq.pdf")`.
