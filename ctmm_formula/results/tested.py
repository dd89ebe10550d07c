"""Tests of statsmodels' kind whose intervals are those of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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
