"""Columns of the user's table: found by name, checked, and turned into plain numbers or labels.

Nothing here knows the model.  Every complaint names the column, the first few rows (counted
from 0 in the order given) and the fix.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..paths import said

R_MISSING_INTEGER = -2147483648
"""What a missing integer of R becomes when it reaches Python as a plain number."""

MOST_CELLS = 1e15
"""Larger numbers of cells are of no study: their sums and squares need not be numbers."""

_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*")
_DECIMAL = re.compile(r"[.,]|\d[eE]")


def _is_text(value: object) -> bool:
    return isinstance(value, (str, PathLike))


def _many(value: object) -> bool:
    return isinstance(value, (list, tuple, set)) and len(value) > 0


def _is_soma(value: object) -> bool:
    return type(value).__module__.startswith("tiledbsoma")


SOMA = "make an AnnData of a query: experiment.axis_query(...).to_anndata(X_name=...)"
"""What to do with a SOMA experiment, open or as a folder."""

_INSTEAD: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda d: _is_text(d) and "://" in str(d), "addresses are not read: download the file first"),
    (
        _is_text,
        "read the file first, pandas.read_csv(...) or anndata.read_h5ad(...); pseudobulk() and "
        "fit_genes() take the path of a .h5ad or .zarr",
    ),
    (
        lambda d: _many(d) and all(_is_text(one) or hasattr(one, "var_names") for one in d),
        "one at a time; AnnData of several files are joined by anndata.concat([...])",
    ),
    (
        lambda d: isinstance(d, (Sequence, np.ndarray)) and not isinstance(d, bytes),
        "try {what}=pandas.DataFrame(...) of it",
    ),
    (lambda d: hasattr(d, "collect"), "it is not computed yet: {what}=table.collect()"),
    (lambda d: hasattr(d, "compute"), "it is not computed yet: {what}=table.compute()"),
    (_is_soma, SOMA),
    (lambda d: hasattr(d, "mod"), "take one modality, {what}=mdata.mod['rna']"),
)
"""Other data -> what to do with them; the first that fits."""


def as_frame(data: object, what: str = "data", *, may_be_empty: bool = False) -> pd.DataFrame:
    """The user's table as a DataFrame (not copied).

    Parameters
    ----------
    data : DataFrame, dict of columns, or an object with ``to_pandas()``
    what : str
        The argument's name, for messages.
    may_be_empty : bool
        Whether a table without rows will do.

    Raises
    ------
    DataError
        Not a table, or an empty one.

    Examples
    --------
    >>> as_frame({"expr": [1.0, 2.0]}).shape
    (2, 1)
    """
    if isinstance(data, pd.DataFrame):
        frame = data
    elif isinstance(data, Mapping) and not _is_soma(data):
        try:
            frame = pd.DataFrame(dict(data))
        except ValueError as error:
            message = f"{what}: the columns of the dict do not make a table: {error}"
            raise DataError(message) from None
    elif hasattr(data, "to_pandas"):
        try:
            frame = data.to_pandas()
        except Exception as error:  # of whatever package the table is from
            raise DataError(
                f"{what}: its to_pandas() failed ({type(error).__name__}: {said(error)}): turn it "
                "into a pandas DataFrame first"
            ) from error
    else:
        fix = next((text for is_one, text in _INSTEAD if is_one(data)), "")
        raise DataError(
            f"{what} must be a pandas DataFrame, a dict of columns or a table with .to_pandas(), "
            f"got {type(data).__name__}{fix and ': '}{fix.format(what=what)}"
        )
    if not isinstance(frame, pd.DataFrame) or frame.columns.nlevels > 1:
        raise DataError(f"{what} must have one row of column names: flatten a MultiIndex first")
    for name in frame.columns:
        if not isinstance(name, Hashable):
            raise DataError(f"{what} has a column named by a {type(name).__name__}: use a text")
    if not len(frame) and not may_be_empty:
        raise DataError(f"{what} has no rows")
    return frame


def column_name(name: object, argument: str) -> str:
    """The name of one column that an argument gives; a column itself is refused."""
    if isinstance(name, str):
        return name
    raise DataError(
        f"{argument}= must be the name of a column, a text, got {type(name).__name__}: put the "
        f"values into data and name their column, {argument}='...'"
    )


def pick(
    frame: pd.DataFrame, name: str, role: str, hint: str = "", what: str = "data"
) -> pd.Series:
    """Column `name`, or an error that says what it was for and what comes close."""
    hits = np.flatnonzero([isinstance(own, str) and own == name for own in frame.columns])
    if len(hits) == 1:
        return frame.iloc[:, hits[0]].reset_index(drop=True)
    if len(hits):
        raise DataError(
            f"column {name!r} ({role}) occurs {len(hits)} times in {what}: give the columns "
            "different names"
        )
    missing = f"{what} has no column {name!r} ({role})"
    if name in frame.index.names:
        raise DataError(f"{missing}, it is in the index: use {what}.reset_index()")
    if name in [str(column) for column in frame.columns]:
        raise DataError(
            f"{missing}, only one whose name is no text: names must be texts, "
            f"{what}.columns = {what}.columns.astype(str)"
        )
    raise DataError(f"{missing}{near(name, frame.columns)}{hint}")


def near(name: object, choices: Iterable[object]) -> str:
    """``; did you mean 'nu'?`` or a list of what there is.

    >>> near("celtype", ["donor", "celltype"])
    "; did you mean 'celltype'?"
    """
    texts = [str(choice) for choice in choices]
    folded = {text.casefold(): text for text in texts}
    wanted = str(name).casefold()
    close = difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    close += [key for key in folded if wanted in re.split(r"\W+", key)]
    if close:
        return f"; did you mean {listing([folded[key] for key in dict.fromkeys(close)])}?"
    return f"; the columns are {listing(texts, 8)}" if texts else ""


def listing(values: Sequence[object], limit: int = 5) -> str:
    """The first few values, and how many there are.

    >>> listing(["a", "b", "c"], 2)
    "'a', 'b', ... (3 in all)"
    """
    shown = ", ".join(repr(value) for value in values[:limit])
    return shown if len(values) <= limit else f"{shown}, ... ({len(values)} in all)"


def donors_named(names: Sequence[object]) -> str:
    """The first few donors.

    >>> donors_named(["d1"]), donors_named(["d1", "d2"])
    ("donor 'd1'", "donors 'd1', 'd2'")
    """
    return f"donor{'s' if len(names) > 1 else ''} {listing(names)}"


def amount(n: int, one: str, several: str = "") -> str:
    """A number and its word, or words, as they are of one; by default several have an s.

    >>> amount(1, "donor"), amount(2, "donor"), amount(1, "row has", "rows have")
    ('1 donor', '2 donors', '1 row has')
    """
    return f"{n} {one if n == 1 else several or one + 's'}"


def rows(positions: Sequence[int] | np.ndarray, limit: int = 5) -> str:
    """``row 3`` or ``rows 3, 7, ... (12 in all)``.

    >>> rows([3, 7])
    'rows 3, 7'
    """
    found = [int(position) for position in positions]
    word = "row" if len(found) == 1 else "rows"
    return f"{word} {listing(found, limit)}"


def numbers(column: pd.Series, name: str, role: str) -> np.ndarray:
    """A column that must hold numbers, as float64 with NaN where missing.

    Raises
    ------
    DataError
        Text, truth values, complex numbers, dates, objects, or R's missing integer.
    """
    what = f"column {name!r} ({role})"
    kind = column.dtype
    if pd.api.types.is_bool_dtype(kind):
        raise DataError(f"{what} holds true/false values, it must hold numbers")
    if pd.api.types.is_complex_dtype(kind):
        raise DataError(f"{what} holds complex numbers: take the real part")
    if not pd.api.types.is_numeric_dtype(kind):
        _only_numbers(column, what)
    if _boxed(column):
        pairs = zip(column, column.isna(), strict=True)
        try:
            values = np.array([np.nan if missing else float(value) for value, missing in pairs])
        except OverflowError:
            raise DataError(f"{what} holds whole numbers beyond 1e308: rescale it") from None
    else:
        values = _floats(column)
    _refuse_r_missing(values, what)
    return values


def labels(column: pd.Series, name: str, role: str) -> pd.Categorical:
    """A column of labels (donor, cell type, batch) as a Categorical of text.

    The order of given categories is kept; other labels are sorted, numbers as numbers.
    """
    what = f"column {name!r} ({role})"
    if isinstance(column.dtype, pd.CategoricalDtype):
        values: pd.Categorical = column.array
        ordered = list(values.categories)
        codes = np.asarray(values.codes)
    else:
        given = column[column.notna()].astype("object")
        kind = _one_kind(given, what)
        if kind not in (bool, str, Real) and not hasattr(kind, "isoformat"):
            raise DataError(f"{what} holds {kind.__name__} values: labels must be text or numbers")
        if pd.api.types.is_numeric_dtype(column.dtype):
            _refuse_r_missing(_floats(column), what)
        missing = given.index[given == "NA"]
        if len(missing):
            raise DataError(
                f"{what} has the text 'NA' in {rows(missing.to_numpy())}: this is what R's missing "
                "text becomes; make it None or NaN, or the column categorical if it is a label"
            )
        ordered = sorted(set(given))
        index = {value: code for code, value in enumerate(ordered)}
        codes = np.full(len(column), -1)
        codes[column.notna().to_numpy()] = [index[value] for value in given]
    try:
        names = [label(value) for value in ordered]
        "".join(names).encode()
    except DataError as error:
        raise DataError(f"{what} holds {error}") from None
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half a character ({error.object[error.start]!a}), left over from "
            "reading a file in a wrong encoding: read it anew, encoding='utf-8'"
        ) from None
    if len(set(names)) < len(names):
        twice = sorted({text for text in names if names.count(text) > 1})
        raise DataError(f"{what}: different values read the same as text: {listing(twice)}")
    return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))


def covariate(column: pd.Series, name: str, *, as_levels: bool) -> pd.Series:
    """A column of the fixed part, as numbers or as a Categorical.

    Parameters
    ----------
    column : Series
    name : str
    as_levels : bool
        Every use in the formula is bare or in C(...): truth values become two levels.

    Returns
    -------
    Series
        float64 or int64 with NaN where missing, bool, or category.
    """
    what = f"column {name!r}"
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column
    if pd.api.types.is_complex_dtype(column.dtype):
        raise DataError(f"{what} holds complex numbers: take the real part")
    if pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(
        column.dtype
    ):
        raise DataError(f"{what} holds dates or times: turn them into numbers or text")
    given = column[column.notna()]
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        return pd.Series(_whole(column, what))
    kind = _one_kind(given.astype("object"), what)
    if kind is bool:
        levels = pd.Categorical(column.astype("object"), categories=[False, True])
        if as_levels or column.isna().any():
            return pd.Series(levels)
        return column.astype(bool)
    if kind is Real:
        return pd.Series(_whole(pd.Series(numbers(column, name, "covariate")), what))
    if kind is not str:
        raise DataError(f"{what} holds {kind.__name__} values: turn them into numbers or text")
    _refuse_numbers_as_text(given, what)
    return pd.Series(labels(column, name, "covariate"))


def number_levels(column: pd.Series) -> pd.Series:
    """A number column used only inside C(...): its values become sorted levels.

    Whole numbers are named without a decimal point, as floats are all that R sends.
    """
    values = column.to_numpy()
    given = column.notna().to_numpy()
    whole = given.any() and bool((values[given] == np.round(values[given])).all())
    levels = np.unique(values[given])
    codes = np.where(given, np.searchsorted(levels, values), -1)
    codes = np.minimum(codes, len(levels) - 1)
    if whole and (np.abs(levels) < 2**53).all():
        levels = levels.astype(np.int64)
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(levels)))


def crossed(parts: Iterable[str]) -> str:
    """One name for crossed levels, another for every other tuple of them.

    >>> crossed(["a", "b"]), crossed(["a", "b:c"]), crossed(["a:b", "c"]), crossed(["a:b"])
    ('a:b', 'a:"b:c"', '"a:b":c', 'a:b')
    """
    texts = list(parts)
    if len(texts) == 1:
        return texts[0]
    doubled = [text.replace('"', '""') for text in texts]
    return ":".join(f'"{d}"' if {":", '"'} & set(d) else d for d in doubled)


def label(value: object) -> str:
    """Text of one label: 3.0 and 3 are both "3", dates are ISO.

    >>> label(3.0), label(True), label("T"), label(2**53 + 1)
    ('3', 'True', 'T', '9007199254740993')
    """
    if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)):
        try:
            number = float(value)
        except OverflowError:
            raise DataError("whole numbers beyond 1e308: make them text") from None
        if isinstance(value, Integral):  # no float holds all of them
            return str(int(value))
        return str(int(number)) if number.is_integer() and abs(number) < 2**53 else repr(number)
    if hasattr(value, "isoformat"):
        return str(value.isoformat()).removesuffix("T00:00:00")
    return str(value)


# ---------------------------------------------------------------------------------------------


def _boxed(column: pd.Series) -> bool:
    return column.dtype == object or isinstance(column.dtype, pd.CategoricalDtype)


def _floats(column: pd.Series) -> np.ndarray:
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _whole(column: pd.Series, what: str) -> np.ndarray:
    """Integers stay integers where nothing is missing; all else is float64."""
    values = _floats(column)
    _refuse_r_missing(values, what)
    if pd.api.types.is_integer_dtype(column.dtype) and not np.isnan(values).any():
        return column.to_numpy(dtype=np.int64)
    return values


def _refuse_r_missing(values: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(values == R_MISSING_INTEGER)
    if len(bad):
        raise DataError(
            f"{what} has {R_MISSING_INTEGER} in {rows(bad)}: this is R's missing integer; replace "
            "it by NaN, or use as.numeric() in R before sending the table"
        )


def _kind(value: object) -> type:
    if isinstance(value, (bool, np.bool_)):
        return bool
    if isinstance(value, str):
        return str
    if isinstance(value, Real) or type(value).__name__ == "Decimal":
        return Real
    return type(value)


def _one_kind(given: pd.Series, what: str) -> type:
    """The one kind of value in a column without missing values."""
    if set(map(type, given)) == {str}:
        return str
    kinds = given.map(_kind)
    first = kinds.iloc[0] if len(kinds) else Real
    other = np.flatnonzero([kind is not first for kind in kinds])
    if len(other):
        at = other[0]
        raise DataError(
            f"{what} mixes {_word(first)} and {_word(kinds.iloc[at])}: {given.iloc[0]!r} in row "
            f"{given.index[0]}, {given.iloc[at]!r} in row {given.index[at]}; use one of them"
        )
    return first


def _word(kind: type) -> str:
    return {bool: "true/false", str: "text", Real: "numbers"}.get(kind, kind.__name__)


def _only_numbers(column: pd.Series, what: str) -> None:
    """Objects and categories are fine as long as every value is a real number."""
    given = column[column.notna()].astype("object")
    kinds = given.map(_kind)
    bad = given[[kind is not Real for kind in kinds]]
    if not len(bad):
        return
    texts = bad[[isinstance(value, str) for value in bad]]
    unreadable = texts[[not _reads_as_float(value) for value in texts]]
    show = unreadable if len(unreadable) else bad
    pairs = ", ".join(f"{show.iloc[i]!r} in row {show.index[i]}" for i in range(min(3, len(show))))
    if len(bad) > len(texts):
        fix = f"it holds {_word(next(kind for kind in kinds if kind is not Real))} values"
    elif len(unreadable):
        fix = _unreadable_fix(list(unreadable), list(texts))
    else:
        fix = "numbers stored as text: convert the column with pandas.to_numeric"
    raise DataError(f"{what} must hold numbers, found {pairs}: {fix}")


def _reads_as_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse_numbers_as_text(given: pd.Series, what: str) -> None:
    """Text that is mostly decimal numbers was meant as numbers; whole numbers may be labels."""
    values = given.astype("object")
    like = np.array([bool(_NUMBER.fullmatch(value)) for value in values], dtype=bool)
    decimal = like & np.array([bool(_DECIMAL.search(value)) for value in values], dtype=bool)
    if like.mean() < 0.5 or not decimal.any():
        return
    bad = values[[not _reads_as_float(value) for value in values]]
    show = bad if len(bad) else values
    pairs = ", ".join(f"{show.iloc[i]!r} in row {show.index[i]}" for i in range(min(3, len(show))))
    fix = "convert the column with pandas.to_numeric"
    if len(bad):
        fix = _unreadable_fix(list(bad), list(values))
    raise DataError(f"{what} is text but holds numbers, for example {pairs}: {fix}")


def _unreadable_fix(bad: Sequence[str], texts: Sequence[str]) -> str:
    """What to do about `bad`, those of the texts that do not read as numbers."""
    if all(_NUMBER.fullmatch(text) for text in bad) and not any("." in text for text in texts):
        return "decimal commas: read the table with pandas.read_csv(..., decimal=',')"
    return "correct these (decimal comma? a word for missing?), convert with pandas.to_numeric"
