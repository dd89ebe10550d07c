"""What is left of a fit that forgets its rows: attributes, and what methods say by default."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, cast

from ..design.rowless import FORGOTTEN
from ..errors import CTMMError, DataError

KEPT = (
    "params", "llf", "aic", "bic", "nobs", "n_donors", "n_possible", "df_model", "df_resid",
    "bounds", "boundary", "table", "cov_params", "means", "variance_explained", "icc",
    "heritability", "test_variance", "test_mean", "glance", "summary",
)  # fmt: skip
"""Names of attributes and methods; others follow from these, or need rows."""

F = TypeVar("F", bound=Callable[..., Any])


def answers(res: Any) -> dict[str, bytes]:
    """Attributes of a fit, and what its methods say without arguments, be it an error.

    Pickled: a small table of pandas takes ten times as much.
    """
    out = {}
    for name in KEPT:
        try:
            value = getattr(res, name)
            value = value() if callable(value) else value
        except CTMMError as error:
            value = error
        out[name] = pickle.dumps(value)
    return out


def recalled(answer: bytes) -> Any:
    """One of the answers, as the fit gave it."""
    value = pickle.loads(answer)
    if isinstance(value, CTMMError):
        raise value
    return value


def kept(method: F) -> F:
    """A method of a fit that has forgotten its rows says what it said, if asked by default.

    Raises
    ------
    DataError
        With other arguments, as rows are needed.
    """
    defaults = {name: one.default for name, one in signature(method).parameters.items()}

    @wraps(method)
    def asked(res: Any, *args: Any, **kwargs: Any) -> Any:
        if not res._answers:
            return method(res, *args, **kwargs)
        _, *given = signature(method).bind(res, *args, **kwargs).arguments.items()
        for name, value in given:
            if type(value) is not type(defaults[name]) or value != defaults[name]:
                raise DataError(FORGOTTEN)
        return recalled(res._answers[method.__name__])

    return cast(F, asked)
