"""Tests of statsmodels' kind whose intervals are those of this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contrast import ContrastResults


class Tested(ContrastResults):
    """t tests of linear hypotheses, with intervals `ends` (q, 2) for any alpha.

    The others of statsmodels are symmetric about the estimate.
    """

    def __init__(self, ends: Callable[[float], np.ndarray], **kwds: Any) -> None:
        self._ends = ends
        super().__init__(**kwds)

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Confidence intervals (q, 2) of the combinations."""
        return self._ends(alpha)


@dataclass(frozen=True, eq=False, repr=False)
class Pairwise:
    """Differences between all pairs of levels of a factor.

    Made by :meth:`ctmm_formula.CTMMResults.t_test_pairwise`.

    Attributes
    ----------
    result_frame : DataFrame
        One row per pair, ``b-a``: coef, std err, t, P>|t|, Conf. Int. Low, Conf. Int. Upp., and of
        every method of adjustment pvalue-METHOD and reject-METHOD.
    contrasts : DataFrame
        Weights of ``params`` in each difference.
    """

    result_frame: pd.DataFrame
    contrasts: pd.DataFrame

    def __repr__(self) -> str:
        return self.result_frame.to_string(float_format="{:.4g}".format)

    def _repr_html_(self) -> str:
        return self.result_frame.to_html(float_format="{:.4g}".format)
