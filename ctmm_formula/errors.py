"""Exceptions and warnings of the package, in one small tree.

Every message names the column or argument at fault, the first few rows, and the fix.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real
from typing import Any


class CTMMError(ValueError):
    """Base class of everything this package raises on purpose."""


class FormulaError(CTMMError):
    """The formula or a random term cannot be understood."""


class DataError(CTMMError):
    """The table does not fit the model that was asked for."""


class ConvergenceError(CTMMError):
    """No estimate could be found, or one that does not exist was asked for."""


class CTMMWarning(UserWarning):
    """Base class of the package's warnings."""


class BoundaryWarning(CTMMWarning):
    """The estimate lies on the edge of its domain."""


def choose(name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise an error that lists them.

    >>> choose("method", "reml", ["ml", "reml"])
    'reml'
    """
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    raise CTMMError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")


def whole_number(name: str, value: object, low: int) -> int:
    """`value` as an int of at least `low`, or an error that names the argument.

    >>> whole_number("n", 3.0, 1)
    3
    """
    number = whole(value)
    if number is None or number < low:
        raise CTMMError(f"{name}= must be a whole number of at least {low}, got {value!r}")
    return number


def on_off(name: str, value: object) -> bool:
    """True or False, or an error that names the argument.

    >>> on_off("progress", True)
    True
    """
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's
        return bool(value)
    raise CTMMError(f"{name}= must be True or False, got {value!r}")


def whole(value: Any) -> int | None:
    """A whole number; also 10.0, which is how R types ten."""
    if not isinstance(value, Real) or isinstance(value, bool) or value != value // 1:
        return None
    return int(value)  # type: ignore[call-overload]
