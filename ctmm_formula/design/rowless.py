"""A design that has forgotten its rows: the formula, and names of what was estimated."""

from __future__ import annotations

from dataclasses import fields
from typing import NoReturn

from ..engine.relatedness import Kernel
from ..errors import DataError
from .labelled import Design

FORGOTTEN = (
    "this needs rows of the fit, which keep='tables' has forgotten: fit with keep='all', or ask "
    "before remove_data(keep='tables')"
)
"""What is said where rows are asked for."""

_NAMES = (
    "spec", "kind", "engine", "donor_col", "celltype_col", "response_name", "celltypes", "names",
    "random_names", "dropped", "notes", "alone", "one_mean", "doubts", "crossing",
)  # fmt: skip
_ROWS = {own.name for own in fields(Design)} - {*_NAMES, "kinship"}


class Rowless(Design):
    """Of a design the names; whoever asks for rows, donors or the coding gets a DataError."""

    def __init__(self, design: Design) -> None:
        self.__dict__.update({name: getattr(design, name) for name in _NAMES})
        none = Kernel(None, None)
        self.__dict__["kinship"] = tuple(one._replace(kernel=none) for one in design.kinship)

    def __getattr__(self, name: str) -> NoReturn:
        raise DataError(FORGOTTEN) if name in _ROWS else AttributeError(name)

    @property
    def extent(self) -> str:
        """How much of it there is, in words."""
        return "rows forgotten"
