"""Arrays, factors and tables as plain values.

=============  ==================================================================================
value          on the wire
=============  ==================================================================================
array          ``{"dtype": "f8" | "i4", "shape": [...], "data": bytes}``, little-endian, columns
               first (Fortran order)
factor         ``{"name": str, "codes": array of i4 from 0, "levels": [str, ...]}``
table          ``{"index": [str, ...], "columns": {name: array}}``
=============  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from ..arguments import choose
from ..errors import CTMMError

Plain = dict[str, Any]
_KINDS = {"f8": "<f8", "i4": "<i4"}


def encode(array: np.ndarray) -> Plain:
    """An array of numbers as bytes.

    >>> sent = encode(np.array([[1.0, 2.0], [3.0, np.nan]]))
    >>> sent["dtype"], sent["shape"], decode(sent)[1].tolist()
    ('f8', [2, 2], [3.0, nan])
    """
    array = np.asarray(array)
    kind = "i4" if array.dtype.kind in "biu" else "f8"
    data = bytearray(array.astype(_KINDS[kind]).tobytes("F"))
    return {"dtype": kind, "shape": list(array.shape), "data": data}


def decode(value: Mapping[str, Any]) -> np.ndarray:
    """The inverse of :func:`encode`; integers come out as int64."""
    kind = _KINDS[choose("dtype", value["dtype"], _KINDS)]
    flat = np.frombuffer(value["data"], dtype=kind)
    sent = value["shape"]  # a caller without scalars may send [n] back as n
    shape = [int(size) for size in (sent if isinstance(sent, Sequence) else [sent])]
    if int(np.prod(shape)) != len(flat):
        raise CTMMError(f"{len(flat)} numbers arrived for an array of shape {tuple(shape)}")
    own = flat.astype(np.int64 if kind == "<i4" else np.float64)  # a copy in our byte order
    if kind != "<i4":
        own[np.isnan(own)] = np.nan  # R's NA signals, and warns wherever it is cast
    return own.reshape(shape, order="F")


def to_factor(value: Mapping[str, Any]) -> pd.Categorical:
    """A factor as a categorical."""
    levels = pd.Index([str(level) for level in value["levels"]], dtype=object)
    return pd.Categorical.from_codes(decode(value["codes"]), categories=levels)


def table(frame: pd.DataFrame) -> Plain:
    """A table whose index and column names are text."""
    columns = {str(name): encode(column.to_numpy(dtype=float)) for name, column in frame.items()}
    return {"index": [str(label) for label in frame.index], "columns": columns}


def to_plain(value: Any) -> Any:
    """A record of numbers, arrays and texts as a dict."""
    if isinstance(value, np.ndarray):
        return encode(value)
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if is_dataclass(value):
        return {own.name: to_plain(getattr(value, own.name)) for own in fields(value)}
    return value.item() if isinstance(value, np.generic) else value


def from_plain(kind: Any, value: Any) -> Any:
    """The inverse of :func:`to_plain`, for a class of records or a type of their fields.

    >>> from_plain(tuple[tuple[int, str], ...], [[1, "no fit"]])
    ((1, 'no fit'),)
    """
    if kind is np.ndarray:
        return decode(value)
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        kinds = [first] * len(value) if rest == [...] else [first, *rest]
        return tuple(from_plain(*pair) for pair in zip(kinds, value, strict=True))
    if is_dataclass(kind) and isinstance(kind, type):
        own = get_type_hints(kind)
        return kind(**{name: from_plain(own[name], value[name]) for name in own})
    return kind(value)
