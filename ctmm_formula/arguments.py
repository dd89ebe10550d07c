"""Checks of arguments, one of each kind: the value as it is used, or an error that names it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np

from .errors import CTMMError

MOST_DRAWS = 1_000_000
"""Draws, refits and simulated studies, donors or genes: more are a slip of the keyboard."""

Rng: TypeAlias = np.random.Generator | int | None
"""What ``rng=`` takes: a generator, a seed, or None for one from the system."""

Method: TypeAlias = Literal["robust", "reml", "ml", "he"]
Bounds: TypeAlias = Literal["noise", "psd", "nonnegative"]
VarianceTest: TypeAlias = Literal["score", "jackknife", "wald", "lrt", "bootstrap"]
ComponentTest: TypeAlias = Literal["wald", "jackknife", "exact"]
CovarianceName: TypeAlias = Literal["model", "kenward-roger", "jackknife", "robust"]
ScanTest: TypeAlias = Literal[
    "score", "jackknife", "wald", "lrt", "bootstrap", "mean", "mean_jackknife", "groups",
    "response", "heritability",
]  # fmt: skip
IntervalMethod: TypeAlias = Literal["wald", "log", "profile"]
FitPicture: TypeAlias = Literal["gene", "shares", "components", "influence", "missing", "noise"]
ScanPicture: TypeAlias = Literal[
    "variances", "shares", "heritability", "correlations", "genetic_correlations",
    "differentiation", "qq", "effects",
]  # fmt: skip
FormulaEngine: TypeAlias = Literal["patsy", "formulaic"]
Keep: TypeAlias = Literal["all", "rows", "tables"]
"""What arguments take, for checkers of types: the names of the registries, as a test compares."""


def shown(value: object) -> str:
    """A value in a message: as it is typed, in short.

    >>> shown("a"), shown(10**400), len(shown("a" * 500))
    ("'a'", 'a whole number of 401 digits', 80)
    """
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a whole number of {1 + int(math.log10(abs(value)))} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:38]} .. {text[-38:]}"


def choose(name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise an error that lists them.

    >>> choose("method", "reml", ["ml", "reml"])
    'reml'
    """
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    raise CTMMError(f"unknown {name} {value!r}: choose from {', '.join(choices)}")


def whole_number(name: str, value: object, low: int, high: int = 10**9) -> int:
    """`value` as an int from `low` to `high`, or an error that names the argument.

    What is drawn or fitted that often has a `high` of its own, :data:`MOST_DRAWS`.

    >>> whole_number("n", 3.0, 1)
    3
    """
    number = whole(value)
    if number is None or number < low:
        raise CTMMError(f"{name}= must be a whole number of at least {low}, got {shown(value)}")
    if number > high:
        raise CTMMError(f"{name}= must be at most {high:,}, got {shown(value)}")
    return number


def on_off(name: str, value: object) -> bool:
    """True or False, or an error that names the argument.

    >>> on_off("progress", True)
    True
    """
    if isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's
        return bool(value)
    raise CTMMError(f"{name}= must be True or False, got {value!r}")


def iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value can be gone through; a single number of numpy cannot, whatever its type.

    >>> iterable(["a"]), iterable(np.array(2.0))
    (True, False)
    """
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def name_list(name: str, values: Any) -> list[Any]:
    """The values of an argument that takes a list, or an error that names it."""
    if not iterable(values):
        raise CTMMError(f"{name}= must be a list of names, and [] for none, got {values!r}")
    return list(values)


def whole(value: Any) -> int | None:
    """A whole number; also 10.0, which is how R types ten."""
    if not isinstance(value, Real) or isinstance(value, bool) or value != value // 1:
        return None
    return int(value)  # type: ignore[call-overload]


def real(value: Any) -> float:
    """A number as a float: nan where it is none, an infinity beyond floats.

    >>> real(1), real("1"), real(10**400)
    (1.0, nan, inf)
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def floats(name: str, value: object) -> np.ndarray:
    """The value as finite floats, or an error."""
    try:
        if np.asarray(value).dtype.kind in "iufO":
            array = np.asarray(value, dtype=float)
            if np.isfinite(array).all():
                return array
    except (TypeError, ValueError, OverflowError):
        pass
    raise CTMMError(f"{name} must be finite numbers, got {value!r}")


def generator(rng: Any) -> np.random.Generator:
    """:func:`numpy.random.default_rng` with an error of ours."""
    if isinstance(rng, float) and whole(rng) is not None:
        rng = int(rng)
    if isinstance(rng, np.random.RandomState):
        rng = "a RandomState"  # cannot be split among workers
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError, OverflowError):
        raise CTMMError(
            f"rng= must be a seed (a whole number >= 0) or a numpy Generator, got {rng!r}"
        ) from None


def check_alpha(alpha: Any) -> None:
    """One less the confidence of an interval, or the level of a test, or an error."""
    known = isinstance(alpha, (float, int, np.floating)) and not isinstance(alpha, bool)
    if not known or not 0 < alpha < 1:
        raise CTMMError(f"alpha must lie between 0 and 1, got {alpha!r}")


def threads(n_jobs: object) -> int:
    """A number of threads as joblib takes it: a whole number but 0."""
    number = whole(n_jobs)
    if not number or abs(number) > 10**4:
        raise CTMMError(
            f"n_jobs= must be a number of threads, or -1 for all of them, got {shown(n_jobs)}"
        )
    return number
