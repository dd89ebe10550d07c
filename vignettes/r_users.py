# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # For users of R
#
# The R package `ctmmFormula` has the manners of lme4: R builds the model frame and matrix by its own
# rules, the numbers come from this Python package in the same process, and what comes back are plain
# R lists with the usual methods.  [How to install it](r/install.md); [a tour with its
# output](r/tour.md); [its help pages](reference/r.md).
#
# All code below is R, run when this page was made.

# %% tags=["hide-input"]
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(globals().get("__file__", "vignettes/notebook")).resolve().parents[1]
folder = tempfile.TemporaryDirectory()
library = Path(folder.name)
subprocess.run(["cp", "-r", ROOT / "r_bridge" / "ctmmFormula", library / "source"], check=True)
subprocess.run(
    ["R", "CMD", "INSTALL", "--no-test-load", f"--library={library}", library / "source"],
    check=True, capture_output=True,
)  # fmt: skip
# the Python of this process and the package of this checkout
environment = os.environ | {
    "R_LIBS": str(library), "RETICULATE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
}  # fmt: skip
session = subprocess.Popen(
    ["R", "--vanilla", "--no-echo"], text=True, env=environment,
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
)  # fmt: skip


def R(code):
    """Run code in the session and print what it prints."""
    session.stdin.write(f'{code}\ncat("<end>\\n")\n')
    session.stdin.flush()
    shown = []
    for line in session.stdout:
        if line == "<end>\n":
            print("".join(shown))
            return
        shown.append(line)
    raise RuntimeError("".join(shown))  # R ends at an error


# %% [markdown]
# ## Quick start
#
# The example is that of the [Python quick start](quickstart.py), and so are the numbers; its table
# comes with the R package, as `pseudobulk`.

# %%
R(r"""
library(ctmmFormula)
options(width = 90, digits = 5)
fit <- ctmm(expr ~ celltype + sex + PC1, random = ~ batch, structure = "free", method = "reml",
            data = pseudobulk)
summary(fit)
""")

# %%
R(r"""
VarCorr(fit)
test_variance(fit, "score")
test_mean(fit)
anova(update(fit, structure = "hom"), fit)
""")

# %% [markdown]
# ## Predictions, tidiers

# %%
R(r"""
new <- data.frame(celltype = c("day0", "day3"), sex = "F", PC1 = 0)
predict(fit, new, re.form = NA, interval = "confidence")
head(ranef(fit)$donor, 3)
head(tidy(fit), 4)
""")

# %% [markdown]
# ## All genes

# %%
R(r"""
expr <- t(as.matrix(simulate(fit, 5, seed = 1)))
rownames(expr) <- paste0("gene", 1:5)
nu <- matrix(pseudobulk$nu, 5, nrow(pseudobulk), byrow = TRUE)
genes <- ctmm_genes(~ celltype + sex + PC1, data = pseudobulk, expr = expr, nu = nu,
                    random = ~ batch, tests = c("score", "mean"))
genes[c("gene", "hom", "V[day3]", "p_score", "p_mean", "status")]
""")

# %% tags=["hide-input"]
session.stdin.close()
session.wait()
folder.cleanup()

# %% [markdown]
# ## Names
#
# | Python | R |
# |---|---|
# | `ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=df)` | `ctmm(expr ~ celltype + sex, random = ~ batch, data = df)` |
# | `structure=`, `method=`, `bounds=` | the same |
# | `res.summary()` | `summary(fit)` |
# | `res.vcomp`, `res.A`, `res.V` | `fit$vcomp`, `VarCorr(fit)` |
# | `res.fe_params`, `res.random_effects` | `fixef(fit)`, `ranef(fit)` |
# | `res.test_variance("score")`, `res.test_mean()` | `test_variance(fit, "score")`, `test_mean(fit)` |
# | `ctmm.anova(hom, res)` | `anova(hom, fit)` |
# | `res.predict(newdata)` | `predict(fit, newdata)` |
# | `ctmm.fit_genes(...)`, `ctmm.pseudobulk(...)` | `ctmm_genes(...)`, `ctmm_pseudobulk(...)` |
# | `res.to_json("fit.json")` | `saveRDS(fit, "fit.rds")` |
