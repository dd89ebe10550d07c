# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # Errors and warnings
#
# What the package says, read from its source, and where a message leaves something open, why it
# comes and what helps.  In a message here … stands for a value; the real one names the column, the
# rows and often the fix.  Search this page for words of yours.
#
# | class | raised when |
# |---|---|
# | `FormulaError` | the formula or a random term cannot be understood; carets mark the place |
# | `DataError` | the table does not fit the model that was asked for |
# | `ConvergenceError` | no estimate could be found, or one that does not exist was asked for |
# | `RUnavailableError` | R, rpy2 or an R package is missing |
# | `CTMMError` | everything else; all of the above are `CTMMError`, which is a `ValueError` |
# | `BoundaryWarning` | the estimate lies on the edge of its domain |
# | `CTMMWarning` | all warnings |
#
# A test that cannot be had is no error: its p value is `nan` and `note` says why.  A gene that fails
# in a scan is no error either: it is a row with `status` and `reason`.

# %% tags=["hide-input", "markdown"]
import sys
from pathlib import Path

sys.path.insert(0, str(Path(globals().get("__file__", "vignettes/notebook")).resolve().parent))
from messages import page

print(page())
