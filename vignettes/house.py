# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # The house: for the next developer
#
# ## Rooms
#
# Imports only go down this table, and inside a room down its list of files: `tests/test_layers.py`
# holds the order (`LAYERS`) and checks every file.
#
# | room | holds | sees |
# |---|---|---|
# | `ctmm_formula/__main__.py` | `python -m ctmm_formula compile` | the rooms below |
# | `ctmm_formula/wire/` | the end of the wire to R | everything |
# | `ctmm_formula/planning.py` | `power`: positive rates of tests for a study to be planned | everything below |
# | `ctmm_formula/scan/` | `fit_genes`: all genes over one design, blocks, files that resume | tables and arrays |
# | `ctmm_formula/api.py` | `fit` and `anova`: parse, design, estimate, results | the rooms below |
# | `ctmm_formula/results/` | results: labels and accessors; summary, JSON, predictions | numbers from below |
# | `ctmm_formula/plots/` | pictures: Axes in, Axes out, and the numbers they draw | fits and tables |
# | `ctmm_formula/cells/` | cells to pseudobulk, standardisation, imputation | tables and arrays |
# | `ctmm_formula/r.py` | the bridge to R, for the R package softImpute | tables and arrays |
# | `ctmm_formula/datasets/` | the example data and the script that makes them | |
# | `ctmm_formula/simulate/` | data with known truth | arrays and tables |
# | `ctmm_formula/design/` | formulas (strings), then tables, one mask of missing rows, $X$, blocks | no numerics |
# | `ctmm_formula/inference/` | tests, jackknife, bootstrap | arrays only |
# | `ctmm_formula/engine/` | the model as arrays, likelihood, moments, optimiser, compiled loops | arrays only |
# | `ctmm_formula/structures.py` | covariance structures as lists of basis matrices | arrays only |
# | `ctmm_formula/distributions.py` | tails of t, F, chi2 and Cauchy | nothing |
# | `ctmm_formula/blas.py` | threads of the linear algebra, held at one | nothing |
# | `ctmm_formula/progress.py` | progress bars, where somebody looks | arguments |
# | `ctmm_formula/arguments.py` | checks of arguments, seeds, whole numbers | nothing |
# | `ctmm_formula/paths.py` | names of files, and how they are written | nothing |
# | `ctmm_formula/errors.py` | exceptions and warnings | nothing |
#
# Beside the package: `r_bridge/` (the R package and its tour), `tests/` (with `tests/golden/` and
# `tests/benchmarks/`), `vignettes/` (these pages, and in `vignettes/evidence/` the simulations that
# they rest on), `.ci/run` (all checks on a clean machine),
# `.ci/lowest` (the lowest versions that the package works with).

# %% [markdown]
# ## One fit from end to end
#
# `fit` is four steps that anyone may call.

# %%
import numpy as np

import ctmm_formula as ctmm
from ctmm_formula.engine.estimators import ESTIMATORS, estimate
from ctmm_formula.inference.tests import COMPONENT_TESTS, TESTS
from ctmm_formula.structures import STRUCTURES

df = ctmm.load_example()
res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", method="reml", data=df)
model = res.arrays  # the arrays; strings and tables end here
again = estimate(model, "reml")  # what fit, jackknife, bootstrap and scan all call
print(dict(zip(res.vcomp.index, again.theta.round(4).tolist(), strict=True)))
print("structures:", *STRUCTURES)
print("estimators:", *ESTIMATORS)
print("tests:", *TESTS)
print("tests of one component:", *COMPONENT_TESTS)

# %% [markdown]
# | step | file |
# |---|---|
# | formula, `random=` to a spec of strings | `ctmm_formula/design/formula.py`, `random_terms.py` |
# | table to one mask, labels, columns | `ctmm_formula/design/prepare.py` |
# | columns to $X$ by patsy or formulaic | `ctmm_formula/design/matrix.py` |
# | all of it to a design with a `Model` | `ctmm_formula/design/labelled.py`, `ctmm_formula/engine/model.py` |
# | `Model` to `Estimate` | `ctmm_formula/engine/estimators.py` |
# | `Estimate` with labels to results | `ctmm_formula/results/fitted.py` |
# | results to `TestResult` | `ctmm_formula/results/hypothesis_tests.py`, `ctmm_formula/inference/` |

# %% [markdown]
# ## Rules
#
# 1. **A structure is data.** No branch on `structure == "free"` outside `structures.py`, none on the
#    kind of data outside `design/`.
# 2. **One engine.** A fit, the jackknife, the bootstrap and the scan run the same kernels on the same
#    `Model`: the scan is `model.with_response(y, nu)`, the jackknife `model.without(donor)`.
# 3. **Numbers in functions, frozen dataclasses out.** Shapes stand in the docstring.
# 4. **Trouble is data.** A fit carries its `Convergence`; a test that cannot be had has p value nan
#    and a reason; a gene that fails is a row of the table.
# 5. **Bad input is an error that names the column, the rows and the fix** (`CTMMError` and its
#    children in `ctmm_formula/errors.py`); the [page of errors](errors.py) is made from the source.
# 6. **Libraries outside the model**: patsy, statsmodels, joblib, anndata, matplotlib.  Heavy ones are
#    imported inside functions; `tests/test_layers.py` checks that importing the package loads none.
# 7. **Tests compare with something independent**: dense algebra (`tests/dense.py`), R packages
#    (`tests/golden/README.md`), data with known truth.
# 8. **Compiled loops** live in `ctmm_formula/engine/kernels.py` and `ctmm_formula/engine/optimize.py`,
#    with the cache of numba; parallel work is joblib's, above them.  What they compute stands in plain
#    numpy in `ctmm_formula/engine/plain.py`.

# %% [markdown]
# ## How to add
#
# `CONTRIBUTING.md` says what to touch to add a structure, an estimator, a test, a picture and so on,
# and which commands check it.
#
# A structure of one's own needs no change at all, so a new row of the registry can be tried first:

# %%
C = len(res.celltypes)
late = {"hom": np.ones((C, C)), "V[late]": np.diag([0.0, 0.0, 1.0, 1.0])}
print(ctmm.fit("expr ~ C(celltype) + sex", structure=late, data=df).vcomp.round(4).to_string())
