"""Tests of statsmodels' kind: intervals are those of this package, and no test has a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contrast import ContrastResults, WaldTestResults


class Tested(ContrastResults):
    """t tests of linear hypotheses, with intervals `ends` (q, 2) for any alpha.

    The others of statsmodels are symmetric about the estimate.  `notes` says of every hypothesis
    why it has no test, or "".
    """

    def __init__(
        self, ends: Callable[[float], np.ndarray], notes: Sequence[str], **kwds: Any
    ) -> None:
        self._ends, self.notes = ends, tuple(notes)
        super().__init__(**kwds)

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Confidence intervals (q, 2) of the combinations."""
        return self._ends(alpha)

    def __str__(self) -> str:
        """The parent's table, and below it why a hypothesis has no test."""
        reasons = [f"c{k}: {note}" for k, note in enumerate(self.notes) if note]
        return "\n".join([super().__str__(), *reasons])


class TestedTerms(WaldTestResults):
    """F tests of terms, rows of `table`; `notes` says of every one why it has no test, or ""."""

    def __init__(self, table: pd.DataFrame, notes: Sequence[str]) -> None:
        self.notes = tuple(notes)
        super().__init__(None, "F", None, table=table)

    def __str__(self) -> str:
        """The parent's table, and below it why a term has no test."""
        named = zip(self.table.index, self.notes, strict=True)
        return "\n".join([super().__str__(), *(f"{name}: {note}" for name, note in named if note)])
