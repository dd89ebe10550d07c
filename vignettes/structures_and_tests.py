# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Structures and tests: which to fit, which to trust
#
# A structure says what the covariance V of the cell type-specific effects may be.  The test of V = 0
# asks whether there is any.  Several tests answer this question, and they do not agree; this page
# shows how often each is wrong, so that you can choose.

# %% [markdown]
# ## Structures
#
# | structure | V | parameters | use it for |
# |---|---|---|---|
# | `"hom"` | 0 | 1 | the null model: all variance is shared |
# | `"iid"` | v I | 2 | one number for "how specific": few donors |
# | `"free"` | diag(V_1 ... V_C) | 1 + C | the default: which cell types vary |
# | `ctmm.banded(w)` | entries at most w off the diagonal | 1 + C + ... | ordered cell types, such as days |
# | `ctmm.tree({...})` | one variance per clade, and per cell type | 1 + clades + C | lineages |
# | `"full"` | any symmetric matrix | C (C + 1) / 2 | correlations between cell types; many donors |
#
# All of them on the example, and what the likelihood says:

# %%
import re
import textwrap
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import ctmm_formula as ctmm

ROOT = Path(globals().get("__file__", "vignettes/notebook")).resolve().parents[1]
EVIDENCE = ROOT / "vignettes" / "evidence"

df = ctmm.load_example()
fits = {
    name: ctmm.fit(
        "expr ~ C(celltype) + sex + PC1", random="batch", structure=structure, method="reml",
        data=df,
    )
    for name, structure in {
        "hom": "hom", "iid": "iid", "free": "free",
        "tree": ctmm.tree({"early": ["day0", "day1"], "late": ["day2", "day3"]}),
        "banded(1)": ctmm.banded(1), "full": "full",
    }.items()
}  # fmt: skip
print(ctmm.anova(*fits.values()))

# %% [markdown]
# The correlations of true expression between cell types, by the structures that differ in them:

# %%
for name in ("free", "tree", "banded(1)", "full"):
    print(name, fits[name].corr.round(2).to_string(), sep="\n", end="\n\n")

# %% [markdown]
# A structure of your own is a list of symmetric matrices (see [the house](house.py)).  Groups of
# donors with a covariance each (`by=`) and conditions of the same donors (`within=`) cross any of these:
# [cases and controls](cases_controls.py), [before and after](before_after.py).
#
# ## Bounds
#
# In cell type-specific data variance components may be negative, which keeps them unbiased
# (`bounds="noise"`).  `bounds="psd"` keeps the covariance of true expression positive semidefinite,
# `bounds="nonnegative"` every variance.  With few donors the maximum may lie on the edge of what is
# allowed; then the fit says so.  Here is a gene with V = 0, in 15 donors:

# %%
null = ctmm.load_example("gene010")
few = null[null["donor"].isin(null["donor"].unique()[:15])]
rows = {}
for bounds in ("noise", "psd", "nonnegative"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        res = ctmm.fit(
            "expr ~ C(celltype)", data=few, structure="free", method="reml", bounds=bounds
        )
    rows[bounds] = {**res.vcomp.round(3), "llf": round(res.llf, 3), "on the edge": res.boundary}
print(textwrap.fill(f"{type(caught[-1].message).__name__}: {caught[-1].message}", 80))
pd.DataFrame(rows).T

# %% [markdown]
# ## Tests of V = 0
#
# | test | what it takes for granted |
# |---|---|
# | `"score"` | the fit without V, which has no edge; numbers of cells; the measured noise only on average right |
# | `"lrt"` | the measured noise is exact |
# | `"wald"` | that, and estimates that are normal |
# | `"jackknife"` | estimates that are normal enough, away from the edge |
# | HE `"jackknife"` | the same for moment estimates |
# | `"bootstrap"` | the measured noise is exact |
#
# How often does each call p < .05?  First where there is nothing to be found
# (`vignettes/evidence/calibration.md`); rates should be near .05.


# %% tags=["hide-input"]
def sections(name):
    """Heading -> lines of a page of evidence, without its pictures."""
    text = re.sub(r"!\[.*?\n", "", (EVIDENCE / f"{name}.md").read_text(encoding="utf-8"))
    out = {}
    for part in text.split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        out[heading] = lines
    return out


def frame(lines):
    """Lines of a markdown table as a table."""
    rows = [line for line in lines if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return pd.DataFrame(cells[2:], columns=cells[0])


def show(table):
    """A table as markdown."""
    for row in (list(table.columns), ["---"] * table.shape[1], *table.to_numpy()):
        print("| " + " | ".join(row) + " |")


calibration = sections("calibration")
SHOWN = ["score", "score, combined", "LRT", "Wald", "jackknife", "HE jackknife", "means"]

# %% tags=["hide-input", "markdown"]
said = [line for line in calibration["What it says"] if not line.startswith("A point is")]
print(*said, sep="\n")

# %% [markdown]
# Rates with their standard errors in brackets; "failed" counts data sets without a p value.

# %% tags=["hide-input", "markdown"]
for heading in ("Over all settings", "By n_donors", "By noise_cv", "By celltypes", "By kurtosis"):
    table = frame(calibration[heading])
    print(f"### {heading}\n")
    show(table[[table.columns[0], *SHOWN]])
    print()

# %% [markdown]
# Each point is one setting of the grid; grey, .04 to .06.  The jackknife of 300 donors is the
# one-step one.

# %% tags=["hide-input"] alt="Positive rates under the null of each test, one point for each setting, by number of donors"
grid = frame(calibration["The whole grid"])
exact = grid["jackknife"] != "-"
grid["jackknife"] = grid["jackknife"].where(exact, grid["jackknife, one step"])
COLORS = ["#0072B2", "#56B4E9", "#D55E00", "#999999", "#009E73", "#CC79A7", "#E69F00"]
counts = sorted(grid["n_donors"].astype(int).unique())
figure, axes = plt.subplots(
    1, len(counts), figsize=(10.0, 3.9), sharey=True, layout="constrained", squeeze=False
)
for N, ax in zip(counts, axes[0], strict=True):
    part = grid[grid["n_donors"] == str(N)]
    for k, test in enumerate(SHOWN):
        rate = pd.to_numeric(part[test].str.split(" ").str[0], errors="coerce").dropna()
        place = k + (rate.rank(method="first") / max(len(rate), 1) - 0.5) * 0.6
        ax.scatter(place, rate, s=7, color=COLORS[k], linewidths=0)
    ax.axhspan(0.04, 0.06, color="0.85", zorder=0)
    ax.set_xticks(range(len(SHOWN)), SHOWN, rotation=90, fontsize=8)
    ax.set_title(f"{N} donors", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
axes[0, 0].set_ylabel("share of p < .05 where V = 0")
axes[0, 0].set_ylim(0, None)

# %% [markdown]
# How many settings lie inside .04 to .06, and how many are off by more than chance explains:

# %% tags=["hide-input", "markdown"]
heading = next(name for name in calibration if name.startswith("Settings outside"))
print("\n".join(calibration[heading]))

# %% [markdown]
# ## Power
#
# How often each finds V where it is there (`vignettes/evidence/power.md`).

# %% tags=["hide-input", "markdown"]
power = sections("power")
print(*power["What it says"], sep="\n")
print("\nRates with 4 cell types and cells 10-fold uneven:\n")
power = frame(power["All settings"])
part = power[(power["celltypes"] == "4") & (power["fold"].astype(float) == 10.0)]
part = part.drop(columns=["celltypes", "fold"]).rename(columns={"noise_cv": "errors of nu"})
show(part)

# %% [markdown]
# ## Counts of cells
#
# The rates above are of normal or gamma cells, whose measured noise has errors of its own.  Noise
# measured on counts rises with the mean besides, so that whatever weighs by it is biased
# (`vignettes/evidence/counts.md`).  V = 0 and equal means, 11 to 120 cells of a pair:

# %% tags=["hide-input", "markdown"]
counted = sections("counts")
ON_COUNTS = ["score", "score, combined", "LRT", "Wald", "jackknife", "robust jackknife",
             "HE jackknife"]  # fmt: skip
null = frame(counted["V = 0"]).merge(frame(counted["Equal means"]))
shown = null[null["cells"] == "11 to 120"].drop(columns="cells")
show(shown.rename(columns={"n_donors": "donors", "counts": "mean of a cell"}))

# %% [markdown]
# The score test and the robust test of means keep their level from .02 counts a cell up; those that
# weigh by the measured noise find what is not there.  The score test does so also where one type
# has hundreds of cells and the others a dozen, so that a gene is seen less than once in a pair of the
# others (.038 and .044 of 20 and 50 donors at .02 counts a cell, `tests/benchmarks/count_levels.md`):
# the variance of its scores has how the noise of counts moves with the donors.  Of what is there,
# mostly in one type:

# %% tags=["hide-input", "markdown"]
alternative = frame(counted["V > 0, mostly in one type"])
shown = alternative[alternative["cells"] == "11 to 120"].drop(columns="cells")
show(shown.rename(columns={"n_donors": "donors", "counts": "mean of a cell"}))

# %% [markdown]
# ## In short
#
# Some of all, with 4 cell types.  Of Wald, the data sets where it is defined.

# %% tags=["hide-input", "markdown"] readme="tests"
rates = frame(calibration["Four cell types, by donors, errors and tails of cells"])
rates = rates.set_index(["n_donors", "noise_cv", "kurtosis"])
found = part.set_index(["effect", "n_donors", "errors of nu"])
rows = {
    ("V = 0", "20", "none"): rates.loc[("20", "0.0", "0.0")],
    ("V = 0", "50", "CV .33"): rates.loc[("50", "0.33", "0.0")],
    ("V = 0", "100", "CV .45"): rates.loc[("100", "0.45", "0.0")],
    ("V = 0", "100", "heavy-tailed cells"): rates.loc[("100", "0.0", "6.0")],
    **{
        ("V = 0", N, f"counts, {mean} a cell"): null.set_index(["cells", "n_donors", "counts"]).loc[
            ("11 to 120", N, mean)
        ]
        for N, mean in (("20", "0.1"), ("50", "0.1"), ("50", "2.0"))
    },
    ("V = diag(.05, .02, .02, .02)", "20", "none"): found.loc[("mostly one", "20", "0.0")],
    ("V = diag(.05, .02, .02, .02)", "50", "CV .33"): found.loc[("mostly one", "50", "0.33")],
}
table = pd.DataFrame(rows)[lambda table: table.index.isin(SHOWN[:-1])].T.reindex(columns=SHOWN[:-1])
table = table.map(lambda text: str(text).split(" ")[0].replace("0.", ".").replace("nan", "-"))
show(table.rename_axis(["truth", "donors", "errors of ν"]).reset_index())

# %% [markdown]
# ## What to use
#
# | you have | use |
# |---|---|
# | numbers of cells (`n_cells`) | `test_variance("score")` |
# | many cell types and expect one or two to differ | its combined p value (`.extra["cauchy"]`, in a scan `p_score_cauchy`), which weighs the sum and every cell type, and the p values of the cell types |
# | all cell types may differ a little | its `pvalue`, of the sum |
# | 20 donors, 8 or more cell types and numbers of cells so small that nu is a guess | the smallest of its p values per cell type, times their number |
# | known noise, from another source than the same cells | `"lrt"`, or `"bootstrap"` with few donors |
# | questions of means, conditions or sizes of variances, with counts of cells or few donors | the default, `method="robust"`: its errors, `test_mean()`, `wald_test` |
# | 300 donors or more | also the jackknife of moments, `method="he"`, `test_variance("jackknife")` |
# | the published analysis to be repeated | `"jackknife"`; confirm hits by `"score"` |
# | no numbers of cells | `"score"` with the mean noise of each cell type; the result says so |
#
# Every table here is made by `vignettes/evidence/run.py` and `report.py`, with seeds.
