# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Coming from ctmm, lme4, metafor, dream or GCTA
#
# What is called what, and the same fit written in each.  The code of lme4 and metafor is run here, in
# R, on the same data.  That of ctmm (the authors' package) and of dream is shown and not run.

# %% [markdown]
# ## Names
#
# | here | ctmm 1.1.0 | lme4 | metafor | dream, variancePartition |
# |---|---|---|---|---|
# | `fit(formula, data=df)` | files `y`, `P`, `nu` and a function for each model and method | `lmer(formula, df)` | `rma.mv(yi, V, mods=, random=)` | `dream(exprObj, formula, data)` |
# | known noise `nu` of every row | `nu` | `weights = 1/nu` is not it: see below | `V = nu` | weights, up to a factor that is estimated |
# | donor, shared effect `hom` | `hom2` | `(1 \| donor)` | `~ 1 \| donor` | `(1 \| donor)` |
# | `V`, variance of each cell type | `V` | `(0 + dummy(celltype, "T") \| donor)` for each | `~ celltype \| donor`, `struct = "DIAG"` | a fit for each cell type (dreamlet) |
# | `structure="hom"`, `"iid"`, `"free"`, `"full"` | `hom_`, `iid_`, `free_`, `full_` before the method | random terms | `struct=` | random terms |
# | `random="batch"` | random covariates, as files | `(1 \| batch)` | `~ 1 \| batch` | `(1 \| batch)` |
# | `method="reml"`, `"ml"`, `"he"` | `_REML`, `_ML`, `_HE` | `REML = TRUE`, `FALSE` | `method = "REML"`, `"ML"` | REML |
# | cell type-specific, overall pseudobulk | modules `ctp`, `op` | | | |
# | `proportions=` | `P` | | | |
# | variances may be negative (`bounds="noise"`) | yes | no | no | no |
# | `bounds="nonnegative"` | | always | always | always |
# | `res.vcomp`, `res.fe_params` | `out["hom2"]`, `out["V"]`, `out["beta"]` | `VarCorr`, `fixef` | `$sigma2`, `$tau2`, `coef` | `fitExtractVarPartModel`, `topTable` |
# | `res.test_variance("jackknife")` | `jack_knife=True` | | | |
# | `res.test_variance("score")` | | | | |
# | `res.test_mean()` | `ct_beta` | `lmerTest::anova` | `anova(fit, btt=)` | `topTable` of contrasts |
# | `ctmm.anova(hom, res)` | `util.lrt(l, l0, k)` | `anova(m0, m1, refit=FALSE)` | `anova(m1, m0)` | |
# | `res.random_effects` | | `ranef` | `ranef` | |
# | `fit_genes(...)` | a loop of your own | a loop of your own | a loop of your own | `dream` on a matrix |
# | missing pairs: leave the rows out | impute first | leave out | leave out | leave out |
#
# The log-likelihood of REML holds all constants here and in metafor; lme4 leaves out
# $\tfrac12\log|X'X|$, ctmm all constants.  Differences between models of the same fixed part agree.

# %% [markdown]
# ## The same model in each
#
# Data: the embedded example.  Variances are held at zero or above (`bounds="nonnegative"`), as lme4
# and metafor do.

# %% tags=["hide-input"]
import os
import subprocess
import tempfile

# %%
import numpy as np
import pandas as pd

import ctmm_formula as ctmm

df = ctmm.load_example()
res = ctmm.fit(
    "expr ~ 0 + C(celltype) + sex + PC1", data=df, structure="free", method="reml",
    bounds="nonnegative",
)  # fmt: skip
print(f"log-likelihood {res.llf:.4f}", res.vcomp.round(4).to_string(), sep="\n")

# %% tags=["hide-input"]
home, folder = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(folder.name)


def R(code):
    """Run R and print what it prints; without R, R's error is this one's."""
    run = subprocess.run(["Rscript", "--vanilla", "-"], input=code, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    print(run.stdout)


# %% [markdown]
# R reads them from a file:

# %%
df.to_csv("example.csv", index=False)

# %% [markdown]
# ### metafor

# %%
R(r"""
suppressMessages(library(metafor))
df <- read.csv("example.csv", stringsAsFactors = TRUE)
fit <- rma.mv(expr, nu, mods = ~ 0 + celltype + sex + PC1,
              random = list(~ 1 | donor, ~ celltype | donor), struct = "DIAG", data = df)
cat(sprintf("log-likelihood %.4f\n", logLik(fit)))
print(round(c(hom = fit$sigma2, setNames(fit$tau2, levels(df$celltype))), 4))
write.csv(data.frame(value = c(logLik(fit), fit$sigma2, fit$tau2)), "metafor.csv")
""")

# %% [markdown]
# ### lme4
#
# `weights = 1/nu` alone gives another model: lme4 estimates a factor for the noise, which takes up
# variance between donors.  Here are both: what `lmer` makes of it, and lme4's own criterion with the
# factor held at one.

# %%
R(r"""
suppressMessages(library(lme4))
df <- read.csv("example.csv", stringsAsFactors = TRUE)
for (k in levels(df$celltype)) df[[k]] <- as.numeric(df$celltype == k)
formula <- expr ~ 0 + celltype + sex + PC1 + (1 | donor) +
    (0 + day0 | donor) + (0 + day1 | donor) + (0 + day2 | donor) + (0 + day3 | donor)
control <- lmerControl(check.nobs.vs.nRE = "ignore")
df$w <- 1 / df$nu

free <- lmer(formula, df, weights = w, control = control)
cat(sprintf("lmer, weights = 1/nu: factor of the noise %.2f, should be 1\n", sigma(free)^2))

parts <- lFormula(formula, df, weights = w, control = control)
deviance <- do.call(mkLmerDevfun, parts)
env <- environment(deviance)
p <- ncol(parts$X)
criterion <- function(theta) {
    deviance(theta)
    env$pp$ldL2() + env$pp$ldRX2() + env$resp$wrss() + env$pp$sqrL(1) +
        (nrow(df) - p) * log(2 * pi) + sum(log(df$nu)) - determinant(crossprod(parts$X))$modulus
}
best <- nlminb(env$pp$theta / 2, criterion, lower = 0, control = list(rel.tol = 1e-12))
names(best$par) <- vapply(parts$reTrms$cnms, paste, "")
cat(sprintf("factor held at 1: log-likelihood %.4f\n", -best$objective / 2))
print(round(best$par^2, 4))
write.csv(data.frame(value = c(-best$objective / 2, best$par^2)), "lme4.csv")
""")

# %% [markdown]
# All three agree (in log-likelihood to 1e-5, in estimates to the digits that the searches of the
# others allow):

# %%
mine = np.r_[res.llf, np.sort(res.vcomp)]
for name in ("metafor", "lme4"):
    values = pd.read_csv(f"{name}.csv")["value"].to_numpy()
    theirs = np.r_[values[0], np.sort(values[1:])]  # lme4 has an order of its own
    assert abs(mine[0] - theirs[0]) < 1e-5
    assert np.allclose(mine, theirs, rtol=2e-3)
    print(f"{name}: the same")

# %% tags=["hide-input"]
os.chdir(home)
folder.cleanup()

# %% [markdown]
# ### ctmm
#
# The authors' package takes files of numbers, donors by cell types, without names, complete.
#
# ::: columns
# ```python
# # ctmm 1.1.0 (not run here)
# from ctmm import ctp
# out, p = ctp.free_REML(
#     "y.txt", "P.txt", "nu.txt", method="BFGS",
#     jack_knife=True, optim_by_R=True,
# )
# out["hom2"], out["V"]
# ```
#
# ```python
# # ctmm_formula
# res = ctmm.fit(
#     "expr ~ C(celltype)", data=df,
#     structure="free", method="reml",
# )
# res.vcomp
# res.test_variance("jackknife")
# ```
# :::
#
# On regular data both give the same numbers (`tests/benchmarks/authors_package.md`: components to
# 6e-6, p values to 0.2 %).  They differ where the maximum lies on the edge of the domain: there
# ctmm may stop short of it and say that it converged; here the constrained maximum is reported with a
# `BoundaryWarning`.  Its files, or arrays of the same shape, become a long table so:

# %%
rng = np.random.default_rng(0)
n = rng.integers(12, 90, (40, 4))  # as in the files: donors by cell types
y = rng.normal(size=(40, 1)) + rng.normal(0, 0.5, (40, 4)) + rng.normal(size=(40, 4)) / np.sqrt(n)
P, nu = n / n.sum(axis=1, keepdims=True), 1 / n

long = ctmm.from_ctmm(y, P, nu, celltypes=["B", "Mono", "NK", "T"])
res = ctmm.fit("expr ~ C(celltype)", data=long, structure="free", method="reml")
print(res.vcomp.round(3).to_string())

# %% [markdown]
# ### dream and dreamlet
#
# They ask another question: whether *means* differ (between conditions, say), with random effects as
# a nuisance and precision weights up to a factor.  dreamlet fits each cell type by itself, so the
# variance that cell types share is not seen.  For shares of variance over genes they have
# `fitExtractVarPartModel`; the nearest thing here is `res.variance_explained()`, where the noise is
# known and cell types are fitted together.
#
# ::: columns
# ```r
# # variancePartition (not run here)
# form <- ~ sex + (1 | donor) + (1 | batch)
# vobj <- voomWithDreamWeights(counts, form, info)
# fit <- dream(vobj, form, info)
# vp <- fitExtractVarPartModel(vobj, form, info)
# ```
#
# ```python
# # ctmm_formula
# scan = ctmm.fit_genes(
#     "~ C(celltype) + sex", random="batch",
#     data=pb, tests=["score", "mean"],
# )
# scan.gene("POU5F1").variance_explained()
# ```
# :::
#
# ### dreamlet, muscat, memento, diffVar: conditions
#
# What is asked of cases and controls, by whom, and what is taken for granted (by their papers and
# manuals; none of them was run here):
#
# | question | elsewhere | here |
# |---|---|---|
# | does a condition change the mean, in each cell type? | dreamlet, muscat: one model for each type | `effects("status")`, one model of all types: [cases and controls](cases_controls.py) |
# | do cell types respond differently? | comparing the lists of types, or a heterogeneity test of separate fits | `effects(...).heterogeneity`, by the covariance between types |
# | the same donors twice | dreamlet: `(1 \| donor)`; muscat: blocks | `within="stim"`: [before and after](before_after.py) |
# | do donors respond differently? | a random slope of the donor | `test_response()`, noise taken off |
# | are patients more variable, *between donors*? | diffVar (variancePartition, missMethyl): residuals of pseudobulk, noise in them | `by="status"`, `test_groups()`: noise taken off |
# | is expression more variable, *between cells* of a sample? | memento, BASiCS | not here: it is part of the noise |
# | which weights? | numbers of cells or voom's precisions, as if noise were all there is | 1 / (variance between donors + noise), and errors from donors |
#
# Where one group has fewer cells its means are noisier, and tests of residuals take that for variance
# between donors (.20 to .24 at .05 by Brown and Forsythe's test of normal cells where 50 cases have a
# third of those of 50 controls; on counts, where donors differ by more than the noise, .05 to .09:
# `tests/benchmarks/group_levels.md`).  For means the types' own least squares are honest, and what the
# joint model adds is the test of differences between types (`tests/benchmarks/effect_levels.md`).
#
# ::: columns
# ```r
# # dreamlet (not run here)
# pb <- aggregateToPseudoBulk(
#     sce, cluster_id = "celltype", sample_id = "donor")
# fit <- dreamlet(processAssays(pb, ~ status), ~ status)
# topTable(fit, coef = "statuscase")
# # variancePartition (not run here): one cell type
# diffVar(dream(vobj, ~ status, info))
# # muscat (not run here)
# pbDS(aggregateData(sce), method = "limma-voom")
# ```
#
# ```python
# # ctmm_formula
# pb = ctmm.pseudobulk(adata, donor="donor", celltype="celltype")
# scan = ctmm.fit_genes(
#     "~ C(celltype) * status", data=pb,
#     tests=["effects:status"],
# )
# scan.top(20, by="effects:status")
# ctmm.fit_genes(
#     "~ C(celltype) * status", data=pb,
#     by="status", tests=["groups"],
# )
# ```
# :::
#
# ### cigma, GCTA, limix: heritability
#
# What is genetic in the variance between donors, by whom, and what is taken for granted.  cigma (the
# authors' follow-up) was run as a black box on complete tables, with the same moments and the same
# jackknife p values; the others were not run here, and are told of by their manuals.
#
# | | cigma 1.1.0 | GCTA | limix | here |
# |---|---|---|---|---|
# | cell types | together | one phenotype, or two | traits together, complete data | together, pairs may be missing |
# | noise of pseudobulk | known, taken off | in the environment: h2 is biased down | in the environment | known, taken off |
# | kinship | a table, one or two | `--grm`, `--mgrm` | a matrix, rows by position | `kinship=`, any number, by label |
# | window of a gene | a kinship for each gene of your own making | `--extract` and `--make-grm` for each | of your own making | `genotypes=`, `window=`, `maf=` |
# | estimate | HE, REML in R | REML, `--HEreg` | REML | moments weighed by kinship and pooled noise, REML, HE; in scans HE |
# | errors | jackknife over donors, without one donor each | information matrix | | by the covariance that weighs; of HE the exact jackknife in closed form |
# | is anything genetic? | Wald test of the jackknife: level 0 to .014 at .05 ([measured](measured/heritability_levels)) | likelihood ratio | likelihood ratio | score of different donors: [levels and power](measured/heritability_levels) |
# | covariates, batches | fixed, random | `--qcovar`, `--covar` | fixed | formula, `random=` |
# | moments and jackknife of a gene, 1,000 donors | 640 times as long ([measured](measured/authors_heritability)) | | | 1 |
# | all genes | a loop of your own | a loop of your own | a loop of your own | `fit_genes`, blocks, resume, dask |
#
# ::: columns
# ```sh
# # GCTA (not run here): one gene, one cell type
# plink --bfile cohort --chr 1 --from-bp 1 \
#   --to-bp 1000000 --make-bed --out window
# gcta64 --bfile window --make-grm --out window
# gcta64 --reml --grm window --pheno gene1_T.txt \
#   --qcovar pcs.txt --out gene1_T
# ```
#
# ```python
# # ctmm_formula: all genes, all cell types
# scan = ctmm.fit_genes(
#     "~ C(celltype) + PC1", data=pb,
#     genotypes=ctmm.Genotypes("cohort.bed"),
#     window=500_000, maf=.05, positions=table,
# )
# scan.top(20, by="heritability")
# ```
# :::
#
# ## Which to use
#
# - Means of conditions in each cell type, many kinds of random effects: dreamlet.  Whether cell types
#   respond differently, few donors, counts of few cells: this package.
# - Variability between cells: memento.
# - Any mixed model of one gene with known noise, variances not negative: metafor (few rows) or lme4
#   as above.
# - Heritability of one phenotype in very many people: GCTA.  Of expression by cell type, whose
#   noise is known from the cells: this package.
# - Variance between donors by cell type, its tests, all genes: this package.
