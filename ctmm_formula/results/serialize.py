"""A fit as JSON: arrays, labels, text and columns, never code.

A checksum of all values tells a file that was damaged or edited; whatever it says, types and sizes
of all parts are checked, and a formula is evaluated only if it is made of columns and known
functions (:mod:`ctmm_formula.design.vouched`).  Floats keep all their digits; NaN is null,
infinities are text.  What cannot be text (functions of the caller that the formula uses) is
refused, not pickled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from hashlib import blake2b
from typing import Any, cast, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from ..arguments import choose
from ..design.formula import FormulaSpec
from ..design.kinship import Kinship
from ..design.labelled import Design
from ..design.matrix import ALWAYS, ENGINES, Coding
from ..design.random_terms import RandomTerm
from ..engine.domain import Domain
from ..engine.estimate import Convergence, Estimate
from ..engine.model import RandomComponent
from ..engine.relatedness import Kernel
from ..errors import DataError
from ..inference.jackknife import JackknifeRun
from ..paths import said
from ..structures import CROSSINGS, Crossed, Crossing, Structure
from .labels import METHODS

FORMAT = "ctmm_formula fit"
VERSION = 7

_RECORDS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Convergence, Crossed, Crossing, Domain, Estimate, FormulaSpec, JackknifeRun, Kernel,
        Kinship, RandomComponent, RandomTerm, Structure,
    )
}  # fmt: skip
"""The only classes a file can name."""

Parts = tuple[
    Design, Structure, Domain, Estimate, tuple[str, ...], dict[str, str], bool,
    dict[tuple[int | None, bool], JackknifeRun],
]  # fmt: skip
_ARRAY = re.compile(r"[<>|=][bifu][1248]")
_BROKEN = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError,
    MemoryError,
)  # fmt: skip
"""What a damaged file can make the reader raise."""


def dumps(*parts: object) -> str:
    """JSON text of the parts of a record, in their order."""
    encoded = [_encode(part) for part in parts]
    content = {
        "format": FORMAT, "version": VERSION, "checksum": checksum(encoded), "parts": encoded,
    }  # fmt: skip
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


def checksum(parts: list) -> str:
    """Digest of the values of a file, however they are laid out."""
    text = json.dumps(parts, sort_keys=True)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def loads(text: str, trust: bool = False) -> Parts:
    """The inverse of :func:`dumps`; `trust` lets its formula use whatever Python has.

    Raises
    ------
    DataError
        Not such a file, or one of a later version.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise KeyError("format")
        version = content["version"]
    except _BROKEN as error:
        raise DataError(f"this is not a fit stored by to_json ({said(error)})") from None
    if version != VERSION:
        raise DataError(
            f"the fit was stored in version {version!r:.20} of the format, this package reads "
            f"{VERSION}: use the ctmm_formula that wrote it, or update this one"
        )
    try:
        whole = content["checksum"] == checksum(content["parts"])
        parts = [_decode(part) for part in content["parts"]] if whole else []
        parts[-1:] = [dict(part) for part in parts[-1:]]
        if whole:
            if not _is(tuple(parts), Parts):
                raise TypeError("a part of the fit is of another kind")
            design, structure, _, at, *_, runs = parts
            _check_sizes(design, structure, at, runs)
            design.coding.trusted = trust
    except _BROKEN as error:
        raise DataError(f"this is not a fit stored by to_json ({said(error)})") from None
    if not whole:
        raise DataError(
            "the file is damaged or was edited since to_json wrote it (its checksum is another): "
            "take a copy that is whole, or fit anew"
        )
    return cast(Parts, tuple(parts))


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, all the way down."""
    origin, args = get_origin(hint), get_args(hint)
    if args and origin not in (tuple, dict):  # a union
        return any(_is(value, one) for one in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        return len(kinds) == len(value) and all(map(_is, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(
            _is(key, args[0]) and _is(item, args[1]) for key, item in value.items()
        )
    if hint in (int, float):
        number = isinstance(value, (int, hint)) and not isinstance(value, bool)
        return number and (isinstance(value, float) or abs(value) < 2**63)
    if not isinstance(value, hint):
        return False
    if hint is not Design and hint.__name__ not in _RECORDS:
        return True
    own = get_type_hints(hint)
    return all(_is(getattr(value, name), own[name]) for name in _field_names(hint))


def _check_sizes(
    design: Design,
    structure: Structure,
    at: Estimate,
    runs: Mapping[object, JackknifeRun],
) -> None:
    """The arrays of a file must fit together: what breaks later breaks here."""
    n, p, C, N = len(design.y), len(design.names), len(design.celltypes), len(design.donors)
    K = len(structure.labels) + len(design.random) + len(design.genetic_names)
    shapes: dict[str, tuple[Any, tuple[int, ...], str]] = {
        "y": (design.y, (n,), "f"),
        "X": (design.X, (n, p), "f"),
        "H": (design.H, (n, C), "f"),
        "nu": (design.nu, (n,), "f"),
        "nu2": (design.nu2, (n,), "f"),
        "n_cells": (design.n_cells, (n,), "f"),
        "proportions": (design.proportions, (N, C), "f"),
        "rows": (design.rows, (n,), "i"),
        "index": (design.index, (n,), ""),
        "frame": (design.frame, (n, len(design.frame.columns)), ""),
        "donor_codes": (design.donor_codes, (n,), "i"),
        "mean_rows": (design.mean_rows, (C, p), "f"),
        "basis": (structure.basis, (len(structure.labels),) + (len(structure.celltypes),) * 2, "f"),
        "theta": (at.theta, (K,), "f"),
        "beta": (at.beta, (p,), "f"),
        "cov_beta": (at.cov_beta, (p, p), "f"),
        "information": (at.information, (K, K), "f"),
    }
    codes = {"donor_codes": (design.donor_codes, N)}
    parts = zip(design.random, design.random_levels, strict=True)
    for k, (component, levels) in enumerate(parts):
        shapes[f"codes of random effect {k}"] = (component.codes, (n,), "i")
        shapes[f"values of random effect {k}"] = (component.values, (n,), "f")
        codes[f"codes of random effect {k}"] = (component.codes, len(levels))
    for one in design.kinship:
        _check_kinship(one, design)
    for run in runs.values():
        G = len(run.left_out)
        shapes["jackknife's theta"] = (run.theta, (G, K), "f")
        shapes["jackknife's beta"] = (run.beta, (G, p), "f")
        shapes["jackknife's cov"] = (run.cov, (p + K, p + K), "f")
        codes |= {f"left_out {k}": (group, N) for k, group in enumerate(run.left_out)}
        if any(not 0 <= group < G for group, _ in run.failed):
            raise ValueError("failed groups of the jackknife")
    for name, (value, shape, kind) in shapes.items():
        if value is None:
            continue
        if value.shape != shape:
            raise ValueError(f"{name} has shape {value.shape}, not {shape}")
        if kind and value.dtype.kind != kind:
            raise ValueError(f"{name} is of type {value.dtype}")
    for name, (value, count) in codes.items():
        if value.dtype.kind != "i" or (len(value) and not 0 <= value.min() <= value.max() < count):
            raise ValueError(f"{name} are not all among 0 ... {count - 1}")
    if not len(np.unique(design.donor_codes)) == N > 0 < C:
        raise ValueError("there are donors without rows")
    for name, array in {"X": design.X, "H": design.H, "y": design.y}.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    choose("kind", design.kind, ("ctp", "op"))
    choose("method", at.method, METHODS)
    choose("formula engine", design.engine, ENGINES)
    crossing = design.crossing
    if crossing is not None:
        choose("crossing", crossing.kind, CROSSINGS)
        if design.loads is None or design.loads.shape != (n, len(crossing.levels)):
            raise ValueError("loads of groups or conditions")
    again = design.structure(structure.inner)
    same = again.labels == structure.labels and np.array_equal(again.basis, structure.basis)
    if structure.celltypes != design.effects or not same or again.crossed != structure.crossed:
        raise ValueError("the structure is of other cell types")
    if len(design.random_names) != len(design.random):
        raise ValueError("names of random effects")
    if len(design.proportion_cols) not in (0, C):
        raise ValueError("columns of proportions")
    columns = {name for name in (design.donor_col, design.celltype_col) if name is not None}
    if not columns | set(design.proportion_cols) <= set(design.frame.columns):
        raise KeyError("columns of the frame")


def _check_kinship(one: Kinship, design: Design) -> None:
    """A kernel of the donors, and a structure of the cell types."""
    N, kernel = len(design.donors), one.kernel
    stored = [part for part in (kernel.matrix, kernel.root) if part is not None]
    if len(stored) != 1 or stored[0].dtype.kind != "f" or not np.isfinite(stored[0]).all():
        raise ValueError(f"kinship {one.name!r}")
    if (
        stored[0].ndim != 2
        or len(stored[0]) != N
        or (kernel.root is None and stored[0].size != N * N)
    ):
        raise ValueError(f"kinship {one.name!r} is of other donors")
    again = design.structure(one.structure)
    if again.labels != one.structure.labels or one.structure.crossed is not None:
        raise ValueError(f"the structure of kinship {one.name!r} is of other cell types")
    if one.structure.basis.shape != (len(again.labels), *(len(design.celltypes),) * 2):
        raise ValueError(f"the matrices of kinship {one.name!r}")


# ---------------------------------------------------------------------------------------------
# values: {"<tag>": ...} for everything JSON does not have


def _encode(value: Any) -> Any:
    """Any part of a fit as JSON values."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return {"float": _float(value)} if not math.isfinite(value) else value
    for kind, encode in _ENCODERS.items():
        if isinstance(value, kind):
            return encode(value)
    if type(value).__name__ in _RECORDS:
        content = {name: _encode(getattr(value, name)) for name in _field_names(type(value))}
        return {"record": type(value).__name__, "content": content}
    raise DataError(
        f"a value of type {type(value).__name__} cannot be stored as JSON: pickle the results"
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "record" in value:
        content = {name: _decode(item) for name, item in value["content"].items()}
        return _RECORDS[value["record"]](**content)
    (tag, content), *_ = value.items()
    return _DECODERS[tag](content)


def _field_names(cls: type) -> tuple[str, ...]:
    named = getattr(cls, "_fields", None)  # a named tuple has no dataclass fields
    return named if named is not None else tuple(f.name for f in fields(cls))


def _float(value: float) -> float | str:
    return value if math.isfinite(value) else repr(float(value))


def _array(value: np.ndarray) -> dict:
    if value.dtype.kind not in "bif":
        raise DataError(f"an array of type {value.dtype} cannot be stored as JSON")
    data = value.ravel().tolist()
    if value.dtype.kind == "f":
        data = [_float(v) for v in data]
    return {"array": {"type": value.dtype.str, "shape": list(value.shape), "data": data}}


def _to_array(content: Mapping) -> np.ndarray:
    if not _ARRAY.fullmatch(content["type"]):
        raise TypeError(f"arrays of type {content['type']!r}")
    kind = np.dtype(content["type"])
    data = content["data"]
    if kind.kind == "f":
        data = [float(v) for v in data]
    return np.array(data, dtype=kind).reshape(content["shape"])


def _record_tuple(value: tuple) -> Any:
    """Named tuples by name, others as lists."""
    if type(value).__name__ in _RECORDS:
        content = {name: _encode(getattr(value, name)) for name in _field_names(type(value))}
        return {"record": type(value).__name__, "content": content}
    return [_encode(item) for item in value]


def _dict(value: Mapping) -> dict:
    return {"dict": [[str(key), _encode(item)] for key, item in value.items()]}


# ---------------------------------------------------------------------------------------------
# tables


def _index(value: pd.Index) -> dict:
    """Labels of the user's rows; what is no text or number is kept as text."""
    if isinstance(value, pd.MultiIndex):
        levels = [_index(value.get_level_values(k)) for k in range(value.nlevels)]
        return {"multiindex": levels}
    name = None if value.name is None else str(value.name)
    if isinstance(value, pd.RangeIndex):
        return {"range": [value.start, value.stop, value.step, name]}
    plain = [v.item() if isinstance(v, np.generic) else v for v in value]
    known = all(isinstance(v, (str, int, float)) for v in plain)
    items = [_encode(v) if known else str(v) for v in plain]
    return {"index": {"name": name, "labels": items}}


def _to_index(content: Mapping) -> pd.Index:
    return pd.Index([_decode(v) for v in content["labels"]], name=content["name"])


def _to_multiindex(content: list) -> pd.MultiIndex:
    levels = [_decode(level) for level in content]
    return pd.MultiIndex.from_arrays(levels, names=[level.name for level in levels])


def _frame(value: pd.DataFrame) -> dict:
    columns = [[str(name), _column(str(name), value[name])] for name in value.columns]
    return {"frame": {"rows": len(value), "columns": columns}}


def _column(name: str, column: pd.Series) -> Any:
    if isinstance(column.dtype, pd.CategoricalDtype):
        levels = [v.item() if isinstance(v, np.generic) else v for v in column.cat.categories]
        if not all(isinstance(v, (str, bool, int, float)) for v in levels):
            levels = [str(v) for v in levels]
        return {
            "levels": [_encode(v) for v in levels],
            "ordered": bool(column.cat.ordered),
            "codes": column.cat.codes.tolist(),
        }
    if column.dtype.kind in "bif":
        return _array(column.to_numpy())
    raise DataError(f"column {name!r} of type {column.dtype} cannot be stored as JSON")


def _to_frame(content: Mapping) -> pd.DataFrame:
    columns = {name: _to_column(column) for name, column in content["columns"]}
    return pd.DataFrame(columns, index=pd.RangeIndex(content["rows"]))


def _to_column(content: Mapping) -> Any:
    if "levels" not in content:
        return _decode(content)
    levels = [_decode(level) for level in content["levels"]]
    text = all(isinstance(level, str) for level in levels)
    categories = pd.Index(levels, dtype=object) if text else pd.Index(levels)
    return pd.Categorical.from_codes(
        content["codes"], categories=categories, ordered=content["ordered"]
    )


# ---------------------------------------------------------------------------------------------
# design


def _design(value: Design) -> dict:
    content = {name: _encode(getattr(value, name)) for name in _DESIGN_FIELDS}
    coding = value.coding
    if coding is None:
        raise DataError("the caller coded the fixed part of this fit: keep it where it was fitted")
    own = {k: v for k, v in coding.context.items() if not (k in ALWAYS and v is ALWAYS[k])}
    for name, item in own.items():
        if not isinstance(item, (bool, int, float, str)):
            raise DataError(
                f"the formula uses {name!r}, defined where fit was called: JSON cannot hold a "
                f"{type(item).__name__}; add its result to the data as a column, or pickle the "
                "results"
            )
    content["mean_rows"] = _encode(value.mean_rows)
    content["coding"] = {
        "fixed": coding.fixed,
        "columns": [str(name) for name in coding.frame.columns],
        "context": _encode(own),
        "engine": coding.engine,
    }
    if coding.kept is not None:
        content["coding"]["kept"] = list(coding.kept)
    return {"design": content}


def _to_design(content: Mapping) -> Design:
    known = {name: _decode(content[name]) for name in _DESIGN_FIELDS}
    stored = content["coding"]
    context = {**ALWAYS, **_decode(stored["context"])}
    if not all(isinstance(v, (bool, int, float, str)) for v in _decode(stored["context"]).values()):
        raise TypeError("values of the caller are numbers and texts")
    if not isinstance(stored["fixed"], str):
        raise TypeError("the fixed part is a text")
    frame = known["frame"][stored["columns"]]
    kept = stored.get("kept")
    if kept is not None and not all(type(k) is int and k >= 0 for k in kept):
        raise TypeError("kept columns are numbered")
    kept = None if kept is None else tuple(kept)
    coding = Coding(stored["fixed"], frame, context, stored["engine"], kept=kept)
    # as numbers: whoever looks at a file that was read does not evaluate its formula
    return Design(**known, coding=coding, known_means=_decode(content["mean_rows"]))


_OTHERWISE = {"coding", "known_means", "known_effects", "known_cells"}
_DESIGN_FIELDS = tuple(f.name for f in fields(Design) if f.name not in _OTHERWISE)
_ENCODERS: dict[Any, Callable[[Any], Any]] = {
    np.ndarray: _array,
    pd.Index: _index,
    pd.DataFrame: _frame,
    Design: _design,
    tuple: _record_tuple,
    list: _record_tuple,
    dict: _dict,
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "array": _to_array,
    "dict": lambda items: {key: _decode(item) for key, item in items},
    "range": lambda items: pd.RangeIndex(items[0], items[1], items[2], name=items[3]),
    "index": _to_index,
    "multiindex": _to_multiindex,
    "frame": _to_frame,
    "design": _to_design,
}
