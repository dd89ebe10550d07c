"""Kinships: tables and files of how donors are related, matched to donors by label.

A square table, its columns named as its rows, is a kinship K (donors x donors).  Any other, donors
in its rows, is one of genotypes G, as is what :mod:`ctmm_formula.design.genotypes` reads: every
column is standardised over the donors of the fit, and K = G G' / m of the m columns that vary.
What the model does with K is said in :mod:`ctmm_formula.engine.relatedness`.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..engine.relatedness import Kernel
from ..errors import DataError
from ..paths import file_path, said
from ..structures import Structure
from .genotype_sources import no_numbers
from .genotypes import Genotypes, Scaled, scale_of, scaled
from .table import donors_named, label, listing, near

DEFAULT_NAME = "genetic"
"""Name of a kinship that was given without one."""
_SYMMETRIC = 1e-5  # of the largest entry, as files round
_INDEFINITE = 0.01  # of the mean of the diagonal, as missing genotypes make K
_SAME = 0.95  # correlation from which two donors look like one
_FEW = 0.1  # donors: more that look alike come of a short window
_SIZES = 1e-50, 1e50  # whose squares are numbers
_RESERVED = frozenset({"environment", "shared", "specific", "total", "noise", "means", "fixed"})


class OfEach(Enum):
    """What stands for a kinship that there are many of, each in its turn."""

    GENE = "gene"


class Kinship(NamedTuple):
    """A kinship of the donors of a design, in their order.

    name: as its components are called, ``genetic:hom``; kernel; structure: between cell types.
    """

    name: str
    kernel: Kernel
    structure: Structure

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its variance components."""
        return tuple(f"{self.name}:{own}" for own in self.structure.labels)


class Matched(NamedTuple):
    """Kinships of a design; what to know of them; what of that to warn of."""

    kinship: tuple[Kinship, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]


def match_kinship(
    given: object, donors: Sequence[str], structure: Structure, taken: Sequence[str] = ()
) -> Matched:
    """What a user gave as kinship, for the donors of a design.

    Parameters
    ----------
    given : DataFrame, Genotypes, file name, or dict name -> one of these
    donors : sequence of str, length N
    structure : Structure
        Of the genetic effects.
    taken : sequence of str
        Names of random effects.

    Raises
    ------
    DataError
        Naming the kinship, donors and the fix.

    Examples
    --------
    >>> K = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], ["d2", "d1"], ["d2", "d1"])
    >>> from ctmm_formula.structures import resolve
    >>> found = match_kinship(K, ["d1", "d2"], resolve("hom", ["T", "B"]))
    >>> [one.labels for one in found.kinship]
    [('genetic:hom',)]
    """
    several = given if isinstance(given, Mapping) else {DEFAULT_NAME: given}
    if not several:
        raise DataError("kinship= is an empty dict: give name -> kinship, {'cis': G, 'trans': K}")
    found, notes, doubts = [], [], []
    for name, one in several.items():
        if not isinstance(name, str) or not name.strip() or ":" in name:
            raise DataError(f"kinship= names {name!r}: a name is a text without ':', such as 'cis'")
        if name in _RESERVED or name in taken:
            what = "a random effect" if name in taken else "a part of the variance"
            raise DataError(f"kinship {name!r} has the name of {what}: give it another")
        kernel, said_of, doubted = _kernel(one, name, donors)
        found.append(Kinship(name, kernel, structure))
        notes += said_of
        doubts += doubted
    return Matched(tuple(found), (*notes, *doubts), tuple(doubts))


def _kernel(given: object, name: str, donors: Sequence[str]) -> tuple[Kernel, list[str], list[str]]:
    """The kernel of these donors, what to know of it, and what of that is a doubt."""
    if given is OfEach.GENE:
        return Kernel(None, np.zeros((len(donors), 1))), [], []
    if isinstance(given, Genotypes):
        rows = given.rows_of(donors, f"genotypes {name!r}")
        return _of_genotypes(given.scaled(rows), name, donors)
    values, index, square = _values(given, name)
    at = _rows_of(donors, index, name, given)
    if square:
        return _of_matrix(values[np.ix_(at, at)], name, donors)
    return _of_genotypes(scaled(values[at]), name, donors)


def related_to(given: object, name: str, donors: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """All donors of what was given as a kinship, and how they are related to these, (M, N).

    Genotypes are standardised as those of `donors`.

    Raises
    ------
    DataError
        As :func:`match_kinship`.
    """
    maf = 0.0
    if isinstance(given, Genotypes):
        index, values, square = list(given.donors), given.read().astype(float), False
        maf = given.maf
        at = given.rows_of(donors, f"genotypes {name!r}").tolist()
    else:
        values, index, square = _values(given, name)
        at = _rows_of(donors, index, name, given)
    if square:
        _refuse_holes(values[:, at], name, index)
        return index, values[:, at]
    root = scale_of(values[at], maf).root(values)
    return index, root @ root[at].T


def _values(given: object, name: str) -> tuple[np.ndarray, list[str], bool]:
    """Numbers of a table, labels of its rows, and whether it is square: columns as rows."""
    table = read_kinship(given) if isinstance(given, (str, PathLike)) else given
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"kinship {name!r} must be a DataFrame with the donors' labels, the name of a file, or "
            f"Genotypes, got {type(table).__name__}: pd.DataFrame(K, index=donors, columns=donors)"
        )
    index = _labels(table.index, name, "rows")
    columns = [label(value) for value in table.columns]
    square = set(columns) == set(index)
    if not square and len(set(columns)) < len(columns):
        twice = sorted({one for one in columns if columns.count(one) > 1})
        raise DataError(f"kinship {name!r} has several columns {listing(twice)}: give each once")
    if isinstance(table.index, pd.RangeIndex) and not square:
        text = no_numbers(table)
        fix = f"set_index({text[0]!r})" if text else "pd.DataFrame(K, index=donors, columns=donors)"
        raise DataError(f"kinship {name!r} has no labels of donors, its rows are numbered: {fix}")
    if not square and len(columns) == len(index):
        raise DataError(
            f"kinship {name!r} is square, but its columns ({listing(columns, 3)}, ...) are not "
            f"named as its rows ({listing(index, 3)}, ...): name both by donor; of genotypes, "
            "leave a column out or add one of zeros"
        )
    if not square and len(set(columns) & set(index)) > len(columns) / 2:
        raise DataError(
            f"kinship {name!r} has columns for donors that have no row, or the other way "
            f"round: {listing(sorted(set(columns) ^ set(index)))}"
        )
    if any(map(pd.api.types.is_complex_dtype, table.dtypes)):
        raise DataError(f"kinship {name!r} has complex numbers: a kinship is real, K.real")
    text = no_numbers(table)
    if text:
        raise DataError(
            f"columns {listing(text)} of kinship {name!r} are not numbers: donors are its index, "
            "and the rest is numbers"
        )
    values = table.to_numpy(dtype=float, na_value=np.nan)
    if square:
        place = {one: k for k, one in enumerate(_labels(table.columns, name, "columns"))}
        values = values[:, [place[one] for one in index]]
    if not square and np.isinf(values).any():
        names = [index[i] for i in np.flatnonzero(np.isinf(values).any(axis=1))]
        raise DataError(f"genotypes {name!r} are infinite for {donors_named(names)}")
    beyond = (values < 0.0) | (values > 2.0)
    if not square and beyond.any() and not (values[beyond] % 1.0).any():
        where = [columns[k] for k in np.flatnonzero(beyond.any(axis=0))]
        codes = ", ".join(f"{one:g}" for one in np.unique(values[beyond])[:4])
        raise DataError(
            f"columns {listing(where)} of genotypes {name!r} hold {codes}: no count of an allele, "
            "0 to 2; make what stands for a missing one NaN, and standardise columns that are none"
        )
    return values, index, square


def _refuse_holes(K: np.ndarray, name: str, donors: Sequence[str]) -> None:
    """Names donors (rows) whose kinship is not known; where whole rows are not, those alone."""
    lost = ~np.isfinite(K)
    some, whole = lost.any(axis=1), lost.all(axis=1)
    if some.any():
        names = [donors[i] for i in np.flatnonzero(whole if whole.any() else some).tolist()]
        raise DataError(f"kinship {name!r} is missing or infinite for {donors_named(names)}")


def _labels(given: pd.Index, name: str, what: str) -> list[str]:
    """Labels of rows or columns, each once."""
    if isinstance(given, pd.MultiIndex):
        raise DataError(
            f"kinship {name!r} has several labels a row: keep the one that names the donor"
        )
    known = [label(value) for value in given]
    twice = [one for one, count in Counter(known).items() if count > 1]
    if twice:
        raise DataError(f"kinship {name!r} has several {what} for {donors_named(twice)}")
    return known


def _rows_of(donors: Sequence[str], index: list[str], name: str, table: object) -> list[int]:
    """Where each donor is; donors of others may be there."""
    place = {one: k for k, one in enumerate(index)}
    absent = [donor for donor in donors if donor not in place]
    if not absent:
        return [place[donor] for donor in donors]
    if isinstance(table, pd.DataFrame) and isinstance(table.index, pd.RangeIndex):
        raise DataError(
            f"kinship {name!r} has no labels of donors, its rows are numbered: "
            "pd.DataFrame(K, index=donors, columns=donors)"
        )
    if len(absent) == len(donors):
        raise DataError(
            f"kinship {name!r} has none of the donors ({listing(absent, 3)}): its rows are called "
            f"{listing(index, 3)}; they are matched by label, never by position"
            f"{_other_way(donors, index, table)}"
        )
    raise DataError(
        f"kinship {name!r} has no row for {len(absent)} of {len(donors)} donors: "
        f"{listing(absent)}{near(absent[0], index)}; add them, or leave their rows out of data"
    )


def _as_number(one: str) -> str:
    """The label of the number that a text is, of "001" and "1.0" that of 1; else the text."""
    try:
        return label(float(one))
    except ValueError:
        return one


_ALMOST: dict[str, Callable[[str], str]] = {
    "without blanks at their ends": str.strip,
    "but for upper and lower case": str.casefold,
    "behind a family ID": lambda one: one.partition("_")[2] or one,
    "as numbers": _as_number,
}


def _other_way(donors: Sequence[str], index: Sequence[str], table: object) -> str:
    """How labels of rows would be those of donors."""
    if isinstance(table, pd.DataFrame) and set(donors) <= {label(one) for one in table.columns}:
        return "; donors are its columns: give the transpose, .T"
    for how, turned in _ALMOST.items():
        if {turned(one) for one in donors} <= {turned(one) for one in index} or (
            set(donors) <= {turned(one) for one in index}
        ):
            return f"; they are the same {how}: rename them"
    return ""


def _of_matrix(
    K: np.ndarray, name: str, donors: Sequence[str]
) -> tuple[Kernel, list[str], list[str]]:
    """The checks of a matrix of the donors in the fit."""
    _refuse_holes(K, name, donors)
    away = np.abs(K - K.T)
    if away.max(initial=0.0) > _SYMMETRIC * np.abs(K).max(initial=0.0):
        i, j = np.unravel_index(int(away.argmax()), away.shape)
        raise DataError(
            f"kinship {name!r} is not symmetric: {K[i, j]:.6g} for {donors[int(i)]!r} and "
            f"{donors[int(j)]!r}, {K[j, i]:.6g} the other way round; of a triangle, fill in the "
            "other half"
        )
    K = (K + K.T) / 2.0
    if not K.any():
        raise DataError(
            f"kinship {name!r} is 0 between all {len(K)} donors, and of each with itself: K has 1 "
            "or so on its diagonal"
        )
    size, values = float(np.trace(K)) / len(K), np.linalg.eigvalsh(K)
    if not size > 0.0 or values[0] < -_INDEFINITE * size:
        raise DataError(
            f"kinship {name!r} is no covariance: its smallest eigenvalue is {values[0]:.3g}, its "
            f"mean diagonal {size:.3g}; distances are none either; set negative eigenvalues to 0, "
            "or make K from genotypes, G G'/m"
        )
    if not _SIZES[0] < size < _SIZES[1]:
        raise DataError(f"kinship {name!r} has a mean diagonal of {size:.3g}: divide it by that")
    kernel = Kernel(K, None)
    notes = []
    if abs(kernel.scale - 1.0) > 0.005:
        notes.append(
            f"kinship {name!r}: genetic variances of heritability() are between these donors, "
            f"components times {kernel.scale:.4g} (mean of its diagonal less mean of the others)"
        )
    return kernel, notes, [*_next_to_identity(kernel, name), *_alike(K, name, donors)]


def _next_to_identity(kernel: Kernel, name: str) -> list[str]:
    """Whether a heritability would have a standard error of 1 or more, by moments without noise."""
    K, N = kernel.whole, len(kernel)
    centred = K - K.mean(axis=0) - K.mean(axis=1)[:, None] + K.mean()
    away = centred - np.diag(np.diag(centred)) + kernel.scale / N
    away /= max(kernel.scale, float(np.finfo(float).tiny))  # before squares, which have limits
    spread = float(np.sqrt(np.mean(np.square(away))))
    if spread * N >= math.sqrt(2.0):
        return []
    return [
        f"kinship {name!r} is next to a multiple of the identity between these {N} donors (entries "
        f"off the diagonal vary by {spread:.2g} of it): what is genetic can hardly be told from "
        "the environment"
    ]


def _alike(K: np.ndarray, name: str, donors: Sequence[str]) -> list[str]:
    """Pairs of donors that look like one, where these are few."""
    with np.errstate(divide="ignore", invalid="ignore"):
        r = K / np.sqrt(np.outer(np.diag(K), np.diag(K)))
    i, j = np.nonzero(np.triu(r > _SAME, 1))
    if not len(i) or len({*i, *j}) > max(_FEW * len(K), 2):
        return []
    pairs = [f"{donors[a]} and {donors[b]}" for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    return [
        f"kinship {name!r}: donors {listing(pairs)} are all but the same person (correlation above "
        f"{_SAME:g}): twins, or one donor under two labels?"
    ]


def _of_genotypes(
    found: Scaled, name: str, donors: Sequence[str]
) -> tuple[Kernel, list[str], list[str]]:
    """The kernel of standardised genotypes of these donors."""
    if not found.root.shape[1] and not found.constant and not found.rare:
        raise DataError(f"genotypes {name!r} have no variant: is the window of another build?")
    if not found.root.shape[1]:
        rare = f", or are rarer than maf= ({found.rare})" if found.rare else ""
        raise DataError(
            f"genotypes {name!r} do not vary between these {len(donors)} donors{rare}: no column "
            "is left"
        )
    kernel, doubts = Kernel(None, found.root), []
    if len(found.empty):
        names = listing([donors[i] for i in found.empty.tolist()])
        doubts.append(
            f"kinship {name!r}: donors {names} lack most of their genotypes, and are next to "
            "unrelated to all: leave their rows out of data"
        )
    doubts += _next_to_identity(kernel, name)
    return kernel, [f"kinship {name!r}: {found.said}"], doubts


# ---------------------------------------------------------------------------------------------
# files


def read_kinship(path: object) -> pd.DataFrame:
    r"""Read a kinship from a file, with the donors' labels.

    Parameters
    ----------
    path : str or Path
        GCTA's GRM ``cohort.grm.bin`` or ``cohort.grm.gz`` (beside ``cohort.grm.id``), PLINK's text
        matrix ``cohort.rel`` (square or lower triangle, beside ``cohort.rel.id``), ``.csv`` or
        ``.tsv`` (optionally ``.gz``) with labels in the first row and column; or what comes before
        the ending, ``cohort``.

    Returns
    -------
    DataFrame, shape (N, N)
        Labels are the individual IDs, text as it is written; of ID files with family IDs the second
        column.

    Raises
    ------
    DataError
        There is no such file, its ID file is missing, or the two do not go together.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp(), "cohort.csv")
    >>> _ = file.write_text("id,d1,d2\nd1,1,0.5\nd2,0.5,1\n")
    >>> read_kinship(file).loc["d1", "d2"]
    np.float64(0.5)
    """
    file = file_path("kinship=", path)
    ending = next((e for e in _READERS if file.name.endswith(e)), None)
    if file.suffix in (".bed", ".pgen"):
        raise DataError(f"{str(file)!r} holds genotypes: Genotypes({str(file)!r})")
    if ending is None:
        ending = next((e for e in _READERS if file.with_name(file.name + e).exists()), None)
        if ending is None:
            raise DataError(
                f"{str(file)!r} is no kinship: a file ends in {', '.join(_READERS)}, and there is "
                "none of that name"
            )
        file = file.with_name(file.name + ending)
    if not file.exists():
        raise DataError(f"there is no file {str(file)!r}")
    try:
        return _READERS[ending](file)
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{str(file)!r} could not be read as a kinship ({said(error)})") from None


def _ids(path: Path) -> list[str]:
    """Individual IDs of an ID file: of two columns the second, "#" before a header."""
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r} with the donors of its kinship")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    header = [name.lstrip("#") for name in lines[0]] if lines and lines[0][0][:1] == "#" else None
    column = header.index("IID") if header and "IID" in header else 1
    body = lines[1:] if header else lines
    return [line[min(column, len(line) - 1)] for line in body]


def _framed(K: np.ndarray, ids: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(K, index=list(ids), columns=list(ids))


def _from_triangle(values: np.ndarray, N: int) -> np.ndarray:
    """A matrix from its lower triangle, row by row."""
    K = np.zeros((N, N))
    K[np.tril_indices(N)] = values
    return K + np.tril(K, -1).T


def _wrong_size(path: Path, values: int, ids: int) -> DataError:
    return DataError(
        f"{str(path)!r} has {values} numbers, which is no kinship of the {ids} donors of its ID "
        "file: are they of one run?"
    )


def _grm(path: Path) -> pd.DataFrame:
    """GCTA: the lower triangle in single precision."""
    ids = _ids(path.with_name(path.name.removesuffix(".bin") + ".id"))
    values = np.fromfile(path, dtype="<f4").astype(float)
    if len(values) != len(ids) * (len(ids) + 1) // 2:
        raise _wrong_size(path, len(values), len(ids))
    return _framed(_from_triangle(values, len(ids)), ids)


def _grm_text(path: Path) -> pd.DataFrame:
    """GCTA: a line for every pair, with their numbers, variants, and kinship."""
    ids = _ids(path.with_name(path.name.removesuffix(".gz") + ".id"))
    lines = pd.read_csv(path, sep=r"\s+", header=None, skip_blank_lines=False).dropna(how="all")
    table = lines.to_numpy(dtype=float)
    broken = np.flatnonzero((table[:, :2] % 1.0 != 0.0).any(axis=1))
    if table.shape[1] == 4 and len(broken):
        pair = " ".join(f"{one:.12g}" for one in table[broken[0], :2])
        raise DataError(
            f"line {lines.index[broken[0]] + 1} of {str(path)!r} is of the pair {pair}: the first "
            "two columns are numbers of donors, from 1"
        )
    pairs, N = np.sort(table[:, :2].astype(int), axis=1) - 1, len(ids)
    known = np.unique(pairs[(pairs >= 0).all(axis=1) & (pairs < N).all(axis=1)], axis=0)
    if table.shape[1] != 4 or not len(table) == len(known) == N * (N + 1) // 2:
        raise _wrong_size(path, len(table), N)
    K = np.empty((N, N))
    K[pairs[:, 0], pairs[:, 1]] = K[pairs[:, 1], pairs[:, 0]] = table[:, 3]
    return _framed(K, ids)


def _rel(path: Path) -> pd.DataFrame:
    """PLINK: text, square or its lower triangle."""
    ids = _ids(path.with_name(path.name + ".id"))
    N = len(ids)
    rows = [np.array(line.split(), dtype=float) for line in path.read_text().splitlines() if line]
    values = np.concatenate([*rows, np.zeros(0)])
    if len(rows) == N and len(values) == N * N:
        return _framed(values.reshape(N, N), ids)
    if len(rows) == N and len(values) == N * (N + 1) // 2:
        return _framed(_from_triangle(values, N), ids)
    raise _wrong_size(path, len(values), N)


def _csv(path: Path) -> pd.DataFrame:
    """Labels in the first row and column."""
    sep, said = ("\t", "tabs") if ".tsv" in path.name else (",", "commas")
    out = pd.read_csv(path, sep=sep, converters={0: str})  # as written: "001", "NA"
    if isinstance(out.index, pd.MultiIndex):
        raise DataError(
            f"{str(path)!r} has more values in its rows than names in the first: values must be "
            f"separated by {said}, decimals by points"
        )
    if isinstance(out.index, pd.RangeIndex):  # else the first row has no name for the labels
        out = out.set_index(out.columns[0]).rename_axis(None)
    out.columns = out.columns.astype(str)
    labelled = set(out.index) == set(out.columns)
    first = [str(one) for row in out.iloc[:, :1].to_numpy() for one in row]
    stray = {*map(_as_number, first)} == {*map(_as_number, out.columns[1:])}
    if first and stray and not labelled:
        raise DataError(
            f"{str(path)!r} numbers its rows before their labels: leave the numbers out, "
            "to_csv(index=False)"
        )
    numbers = ["." in one and one.replace(".", "").isdigit() for one in out.columns]
    if sum(numbers) > len(numbers) / 2 and not labelled:
        raise DataError(
            f"{str(path)!r} has no labels of columns: its first row, which must hold them, holds "
            f"numbers ({listing(list(out.columns[:3]))})"
        )
    if not len(out.columns):
        raise DataError(f"{str(path)!r} has one column: its values must be separated by {said}")
    if (
        out.index.has_duplicates
        and pd.to_numeric(out.index.to_series(), errors="coerce").notna().all()
    ):
        raise DataError(
            f"{str(path)!r} has no labels of rows: its first column, which must hold them, holds "
            f"numbers ({listing(list(out.index[:3]))})"
        )
    return out


_READERS = {
    ".grm.bin": _grm, ".grm.gz": _grm_text, ".rel": _rel,
    ".csv": _csv, ".tsv": _csv, ".csv.gz": _csv, ".tsv.gz": _csv,
}  # fmt: skip
