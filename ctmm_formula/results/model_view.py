"""The model of a fit under statsmodels' names: a view of its design that copies nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..design.labelled import Design


@dataclass(frozen=True, eq=False, repr=False)
class FittedModel:
    """What a model holds in statsmodels, of the rows in the fit and in their order.

    ``res.model`` of a fit.  n rows, N donors, E effects of a donor, p fixed effects, Kr random
    effects; arrays are those of the fit: change none.  The arrays that the engine works on, in
    its own order, are ``res.arrays``.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", random="batch", data=ctmm.load_example())
    >>> res.model
    <Model: expr ~ C(celltype) + (1 | batch), 275 rows, 72 donors>
    >>> res.model.endog_names, res.model.exog_names[:2]
    ('expr', ['Intercept', 'C(celltype)[T.day1]'])
    >>> res.model.exog.shape, res.model.groups[:2].tolist()
    ((275, 4), ['donor01', 'donor01'])
    """

    design: Design

    @property
    def endog(self) -> np.ndarray:
        """The response y, (n,)."""
        return self.design.y

    @property
    def exog(self) -> np.ndarray:
        """Columns X of the fixed effects, (n, p)."""
        return self.design.X

    @property
    def exog_re(self) -> np.ndarray:
        """What rows have of the effects of their donor, (n, E): cell types, or proportions."""
        return self.design.E

    @property
    def noise(self) -> np.ndarray:
        """Measured noise variances, (n,)."""
        return self.design.nu

    @property
    def groups(self) -> np.ndarray:
        """Donor of every row, (n,) of text."""
        return np.array(self.design.donors, dtype=object)[self.design.donor_codes]

    @property
    def row_labels(self) -> pd.Index:
        """Index of the data, of the rows in the fit."""
        return self.design.index

    @property
    def frame(self) -> pd.DataFrame:
        """Columns of the data that the fit uses, cleaned, n rows."""
        return self.design.frame

    @property
    def formula(self) -> str:
        """The formula with its random terms."""
        return self.design.spec.text

    @property
    def endog_names(self) -> str:
        """Name of the response."""
        return self.design.response_name

    @property
    def exog_names(self) -> list[str]:
        """Names of the fixed effects, p of them."""
        return list(self.design.names)

    @property
    def exog_re_names(self) -> list[str]:
        """Names of the effects of a donor, E of them."""
        return list(self.design.effects)

    @property
    def group_labels(self) -> list[str]:
        """Names of the donors, N of them."""
        return list(self.design.donors)

    @property
    def nobs(self) -> int:
        """Number of rows n."""
        return len(self.design.y)

    @property
    def n_groups(self) -> int:
        """Number of donors N."""
        return len(self.design.donors)

    @property
    def k_fe(self) -> int:
        """Number of fixed effects p."""
        return len(self.design.names)

    @property
    def k_re(self) -> int:
        """Number of effects of a donor E."""
        return len(self.design.effects)

    @property
    def k_vc(self) -> int:
        """Number of random effects Kr, each with one variance."""
        return len(self.design.random_names)

    def __repr__(self) -> str:
        return f"<Model: {self.formula}, {self.design.extent}>"
