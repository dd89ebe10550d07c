"""What the package maketables asks of a fit, for tables of several models side by side.

It reads attributes of these names, and needs no import of either package by the other; versions
that know fits by statsmodels' names first show the same numbers by those.
"""

from __future__ import annotations

import pandas as pd

from .parameters import table
from .record import Record

STATISTICS = {
    "N": "Rows",
    "n_donors": "Donors",
    "n_celltypes": "Cell types",
    "structure": "Structure",
    "method": "Method",
    "ll": "Log-likelihood",
    "aic": "AIC",
    "bic": "BIC",
}
"""Statistics that a table can show, and what it calls them."""

DEFAULT = ["N", "n_donors", "structure", "method"]
"""Those that it shows where nothing is asked for."""

SAME = {"N": "nobs", "ll": "llf", "se_type": "cov_type"}
"""Attributes of a fit of other names; without a likelihood ll, aic and bic are missing."""


def coef_table(res: Record) -> pd.DataFrame:
    """Columns b, se, t, p, ci95l, ci95u of all parameters, fixed effects first."""
    out = table(res).set_axis(["b", "se", "t", "p", "ci95l", "ci95u"], axis=1)
    return out.rename_axis("Coefficient")


def stat(res: Record, key: str) -> object:
    """One of ``STATISTICS``, and None of any other or where the fit has none."""
    known = STATISTICS.keys() | SAME.keys()
    return getattr(res, SAME.get(key, key), None) if key in known else None


def depvar(res: Record) -> str:
    """Name of the response."""
    return res.design.response_name


def vcov_info(res: Record) -> dict[str, object]:
    """Where standard errors come from."""
    return {"vcov_type": res.cov_type, "clustervar": None}
