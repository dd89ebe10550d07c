"""Designs of some rows of a design, where nothing else of it changes: no formula is read again.

Genes of a scan that miss pairs of their own have as many designs as there are genes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from ..engine.model import RandomComponent
from . import arrays
from .labelled import Design
from .prepare import Prepared

_FULL = 1e-6
"""Share of a column, or of a random effect, that is its own, from which no closer look is due."""


@dataclass(frozen=True)
class Selection:
    """A design and what it takes to have that of some of its rows; made by :func:`selection`.

    Attributes
    ----------
    design : Design
    every : ndarray, shape (C, n or 1, p)
        Rows of the fixed part in every cell type.
    factors : list of (ndarray, shape (n,); int)
        Codes of the factors of the fixed part, and how many levels they have.
    """

    design: Design
    every: np.ndarray
    factors: list[tuple[np.ndarray, int]]

    def of(self, positions: np.ndarray) -> Design | None:
        """The design of some rows of the table.

        None where more changes than the rows: levels or whole cell types are gone, or what is left
        may not tell all effects apart.

        Parameters
        ----------
        positions : int ndarray
            Rows of the table, in order.
        """
        whole = self.design
        at = np.flatnonzero(np.isin(whole.rows, positions, assume_unique=True))
        H, X = whole.H[at], whole.X[at]
        donors, codes = np.unique(whole.donor_codes[at], return_inverse=True)
        gone = any(len(np.unique(own[at])) < count for own, count in self.factors)
        if gone or len(donors) < 2 or (H != 0.0).sum(axis=0).min() < 2 or len(X) <= X.shape[1]:
            return None
        size = np.linalg.norm(X, axis=0)
        Q, R = np.linalg.qr(X / np.where(size > 0.0, size, 1.0))
        if np.abs(R.diagonal()).min(initial=1.0) < _FULL:
            return None
        random = [RandomComponent(one.codes[at], one.values[at]) for one in whole.random]
        for component, old in zip(random, whole.random, strict=True):
            levels = int(old.codes.max()) + 1
            used = component.values != 0.0
            pairs = len(np.unique(codes * levels + component.codes))
            if (
                len(np.unique(component.codes[used])) < levels
                or levels == len(at)
                or pairs == levels == len(donors)
                or arrays.share_beside(component, Q) < _FULL
            ):
                return None
        counts = None if whole.n_cells is None else whole.n_cells[at]
        coding = whole.coding
        return replace(
            whole,
            coding=coding and coding.of(coding.frame.iloc[at].reset_index(drop=True)),
            known_effects={},
            frame=whole.frame.iloc[at].reset_index(drop=True),
            rows=np.searchsorted(positions, whole.rows[at]),
            index=whole.index[at],
            donors=tuple(whole.donors[k] for k in donors),
            donor_codes=codes,
            y=whole.y[at],
            nu=whole.nu[at],
            nu2=None if whole.nu2 is None else whole.nu2[at],
            X=X,
            H=H,
            n_cells=counts,
            random=tuple(random),
            proportions=None if counts is None else arrays.shares_of(codes, counts, H),
            dropped={},
            notes=(),
            doubts=(),
            known_means=(self.every[:, at] if self.every.shape[1] > 1 else self.every).mean(axis=1),
        )


def selection(design: Design, ready: Prepared) -> Selection | None:
    """What gives designs of some rows of this one; None where they must be made anew.

    That is, where rows change more than themselves: columns that are functions of all rows,
    numbers of cells that are filled in, shares, groups, conditions, relatives.
    """
    roles, coding = ready.roles, design.coding
    if roles.celltype is None or roles.celltype not in roles.fixed or roles.share is not None:
        return None
    if roles.by is not None or roles.within is not None or design.kinship or design.alone:
        return None
    if coding is None or coding.kept is not None or not coding.by_row:
        return None
    given = arrays.counts(ready)
    if given is not None and not np.isfinite(given).all():
        return None
    every = arrays.in_every_type(coding, roles.celltype, design.celltypes)
    factors = [
        (column.cat.codes.to_numpy(), len(column.cat.categories))
        for _, column in coding.frame.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    ]
    every = every.reshape(len(design.celltypes), -1, design.X.shape[1])
    return Selection(design, every, factors)
