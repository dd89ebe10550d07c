"""What the numbers that simulations take may be, and one check of each kind for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..arguments import floats, shown
from ..errors import CTMMError

BELOW_1 = 1.0 - 1e-9
NONE = 1e-9
"""A coefficient of variation or kurtosis as small as this makes no difference."""
MOST = 10**9
"""Numbers in a table."""
LARGEST = 1e100
"""Of a covariance."""
ABOVE_0 = (1e-300, 1e300, "a number above 0")
NOT_NEGATIVE = (0.0, 1e300, "0 or more")

LIMITS: dict[str, tuple[float, float, str]] = {
    "sigma2": (-1e300, 1e300, "a finite number"),
    "batch_variance": NOT_NEGATIVE,
    "missing": (0.0, BELOW_1, "a share from 0 to below 1"),
    "effects": (-1e300, 1e300, "a finite slope of each covariate"),
    "cells": (2.0, 1e12, "2 or more, up to 1e12"),
    "fold": (1.0, 1e300, "1 or more"),
    "cell_cv": (0.0, 10.0, "from 0 to 10"),
    "noise_cv": (0.0, BELOW_1, "0 or more and below 1"),
    "b": ABOVE_0,
    "kurtosis": (0.0, 1e3, "from 0 to 1,000"),
    "baseline": (-1e300, 1e300, "a finite number"),
    "depth": ABOVE_0,
    "dispersion": (0.0, 1e6, "from 0 to 1e6"),
    "library": ABOVE_0,
    "library_sd": (0.0, 10.0, "from 0 to 10"),
    "depth_sd": (0.0, 10.0, "from 0 to 10"),
    "ambient": (0.0, 1.0, "a share from 0 to 1"),
    "fraction": (1e-300, 1e6, "above 0, up to 1e6"),
    "permuted": (0.0, 1.0, "a share from 0 to 1"),
    "mean": ABOVE_0,
    "size": ABOVE_0,
    "gene_sd": (0.0, 20.0, "from 0 to 20"),
}
"""Argument -> least, most, and these in words."""


def number(name: str, value: object, limits: tuple[float, float, str] | None = None) -> float:
    """`value` as a float within the limits of this argument, or an error that names it.

    >>> number("missing", 0.2)
    0.2
    """
    least, most, words = limits or LIMITS[name]
    given: Any = value.item() if isinstance(value, np.generic) else value
    real = isinstance(given, Real) and not isinstance(given, bool)
    if real and least <= given <= most:
        return float(given)
    raise CTMMError(f"{name}= must be {words}, got {shown(value)}")


def room(**sizes: int) -> None:
    """An error where the product is more than the numbers that a simulation may hold.

    >>> room(n_genes=1000, n_donors=100)
    """
    if math.prod(sizes.values()) > MOST:
        text = " x ".join(f"{name}={size:,}" for name, size in sizes.items())
        raise CTMMError(f"{text} are too many to simulate at once, at most {MOST:,} numbers")


def needs_batches(batch_variance: float, n_batches: int) -> None:
    """An error where there is a variance of batches, and none of them."""
    if batch_variance and not n_batches:
        raise CTMMError(
            f"batch_variance={batch_variance:g} needs batches: set n_batches= above 0, or leave "
            "batch_variance= out"
        )


def drawing(name: str, value: Any, example: str) -> Any:
    """A function that draws, or None, or an error that names one."""
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    raise CTMMError(f"{name}= must be a function such as {example}, or None, got {value!r}")


def measured(nu: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Noise variances that a caller's function made, or an error."""
    nu = floats("noise variances drawn by noise_error= or cell_noise=", nu)
    if nu.shape != shape or (nu < 0.0).any():
        raise CTMMError(
            f"noise_error= and cell_noise= must give noise variances of 0 or more of shape "
            f"{shape}, got shape {nu.shape} and a smallest of {nu.min(initial=np.inf):.3g}"
        )
    return nu


def in_order(name: str, value: Any, celltypes: Sequence[str]) -> Any:
    """A Series or DataFrame with labels of the cell types in their order, others as they are."""
    for axis, labels in enumerate(getattr(value, "axes", [])):
        if set(labels) == set(celltypes):
            value = value.reindex(celltypes, axis=axis)
        elif set(labels) & set(celltypes):
            raise CTMMError(
                f"{name}= is labelled {', '.join(map(str, labels))}, the cell types are "
                f"{', '.join(celltypes)}: give each of them a value"
            )
    return value


def shaped(name: str, value: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """The value as floats, broadcast to `shape`."""
    array = floats(name, value)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise CTMMError(f"{name} must have shape {shape}, got {array.shape}") from None
