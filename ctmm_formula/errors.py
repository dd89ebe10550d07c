"""Exceptions and warnings of the package, in one small tree.

Every message names the column or argument at fault, the first few rows, and the fix.
"""

from __future__ import annotations


class CTMMError(ValueError):
    """Base class of everything this package raises on purpose."""


class FormulaError(CTMMError):
    """The formula or a random term cannot be understood."""


class DataError(CTMMError):
    """The table does not fit the model that was asked for."""


class ConvergenceError(CTMMError):
    """No estimate could be found, or one that does not exist was asked for."""


class NoLikelihoodError(ConvergenceError, AttributeError):
    """A likelihood of a fit that has none; an AttributeError too, so that hasattr() is False."""


class CTMMWarning(UserWarning):
    """Base class of the package's warnings."""


class BoundaryWarning(CTMMWarning):
    """The estimate lies on the edge of its domain."""
