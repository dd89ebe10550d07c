"""ctmm_formula: expression variance between donors, cell type by cell type.

>>> import ctmm_formula as ctmm
>>> df = ctmm.load_example()
>>> res = ctmm.fit("expr ~ C(celltype) + sex + PC1", random="batch", data=df)
>>> res.structure, res.method, res.n_donors
('free', 'robust', 72)

Public names are imported when first used (PEP 562), so that importing the package costs nothing.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import plots as plots
    from . import r as r
    from . import simulate as simulate
    from .api import anova as anova
    from .api import fit as fit
    from .cells.authors_tables import from_ctmm as from_ctmm
    from .cells.evaluation import evaluate_imputation as evaluate_imputation
    from .cells.impute import impute as impute
    from .cells.pseudobulk import pseudobulk as pseudobulk
    from .cells.standardize import filter_genes as filter_genes
    from .cells.standardize import overall as overall
    from .cells.standardize import principal_components as principal_components
    from .cells.standardize import standardize as standardize
    from .cells.tables import to_frame as to_frame
    from .cells.tables import to_long as to_long
    from .datasets import load_example as load_example
    from .datasets import load_genes as load_genes
    from .datasets import load_truth as load_truth
    from .design.genotypes import Genotypes as Genotypes
    from .design.kinship import read_kinship as read_kinship
    from .errors import BoundaryWarning as BoundaryWarning
    from .errors import ConvergenceError as ConvergenceError
    from .errors import CTMMError as CTMMError
    from .errors import CTMMWarning as CTMMWarning
    from .errors import DataError as DataError
    from .errors import FormulaError as FormulaError
    from .planning import power as power
    from .results.donors import scan_donors as scan_donors
    from .results.fitted import CTMMResults as CTMMResults
    from .results.summary import show_versions as show_versions
    from .scan.genes import fit_genes as fit_genes
    from .scan.genes import read_scan as read_scan
    from .scan.results import Scan as Scan
    from .simulate import simulate_pseudobulk as simulate_pseudobulk
    from .structures import banded as banded
    from .structures import tree as tree

_HOME = {
    "BoundaryWarning": "errors",
    "CTMMError": "errors",
    "CTMMResults": "results.fitted",
    "CTMMWarning": "errors",
    "ConvergenceError": "errors",
    "DataError": "errors",
    "FormulaError": "errors",
    "Genotypes": "design.genotypes",
    "Scan": "scan.results",
    "anova": "api",
    "banded": "structures",
    "errors": "",
    "evaluate_imputation": "cells.evaluation",
    "filter_genes": "cells.standardize",
    "fit": "api",
    "fit_genes": "scan.genes",
    "from_ctmm": "cells.authors_tables",
    "impute": "cells.impute",
    "load_example": "datasets",
    "load_genes": "datasets",
    "load_truth": "datasets",
    "overall": "cells.standardize",
    "plots": "",
    "power": "planning",
    "principal_components": "cells.standardize",
    "pseudobulk": "cells.pseudobulk",
    "r": "",
    "read_kinship": "design.kinship",
    "read_scan": "scan.genes",
    "scan_donors": "results.donors",
    "show_versions": "results.summary",
    "simulate": "",
    "simulate_pseudobulk": "simulate",
    "standardize": "cells.standardize",
    "to_frame": "cells.tables",
    "to_long": "cells.tables",
    "tree": "structures",
}

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    if not home:
        return import_module(f"{__name__}.{name}")
    collecting = gc.isenabled()
    gc.disable()  # importing makes no garbage, and looking for it takes a tenth of the time
    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    finally:
        if collecting:
            gc.enable()
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
