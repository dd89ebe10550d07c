"""Where genotypes come from: PLINK's files, tables and arrays.

A :class:`Source` knows donors and variants, and reads counts of an allele (0, 1, 2, or dosages
between), donors x variants; a missing one is NaN.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_complex_dtype, is_numeric_dtype

from ..errors import DataError
from ..paths import file_path, said
from .table import amount, donors_named, label, listing, near

_NAMES = {"23": "X", "24": "Y", "25": "X", "XY": "X", "26": "MT", "M": "MT"}
"""Chromosomes as PLINK and others number and call them."""


def chromosome_name(value: object) -> str:
    """A chromosome as all call it: without "chr", X for 23.

    >>> [chromosome_name(one) for one in ("chr1", 1, "1", "chrX", 23, "chrM", "22.0")]
    ['1', '1', '1', 'X', 'X', 'MT', '22']
    """
    text = label(value).strip()
    text = text[3:] if text[:3].lower() == "chr" else text
    text = text.removesuffix(".0").upper() if len(text) < 6 else text
    return _NAMES.get(text, text)


def no_numbers(table: pd.DataFrame) -> list[str]:
    """Names of the columns that are not real numbers.

    >>> no_numbers(pd.DataFrame({"a": [1], "b": ["x"], "c": [1j]}))
    ['b', 'c']
    """
    kinds = zip(table, table.dtypes, strict=True)
    return [str(name) for name, d in kinds if not is_numeric_dtype(d) or is_complex_dtype(d)]


class Source:
    """Donors, variants, and a way to read; files are opened when they are read, anew by a copy."""

    def __init__(
        self, donors: Sequence[str], variants: pd.DataFrame, opened: Callable[[], _Read],
        families: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.donors, self.variants, self.families = tuple(donors), variants, tuple(families)
        self._open = opened
        self._reader: _Read | None = None

    def read(self, rows: np.ndarray | None, columns: np.ndarray) -> np.ndarray:
        """Genotypes (N, m), NaN where missing."""
        rows = np.arange(len(self.donors)) if rows is None else rows
        if not len(columns) or not len(rows):
            return np.zeros((len(rows), len(columns)), dtype=np.float32)
        if self._reader is None:
            self._reader = self._open()
        return self._reader(rows, columns)

    def other_names(self, absent: Sequence[str]) -> str:
        """Whether donors are known there by another name than the individual ID."""
        if absent[0] in set(self.families):
            return f" ({absent[0]!r} is a family ID there)"
        both = {f"{family}_{own}" for family, own in zip(self.families, self.donors, strict=False)}
        return f" ({absent[0]!r} is family and individual ID there)" if absent[0] in both else ""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_reader": None}


_Read = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Table:
    """Genotypes in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self) -> _Read:
        return lambda rows, columns: self.values[np.ix_(rows, columns)]


class _Bed:
    """PLINK 1: two bits a genotype, variant by variant."""

    def __init__(self, path: Path, n_donors: int, n_variants: int) -> None:
        self.path, self.shape = path, (n_donors, n_variants)

    def __call__(self) -> _Read:
        try:
            from bed_reader import open_bed
        except ImportError:
            raise _not_installed("bed-reader", self.path) from None
        try:
            file = open_bed(self.path, *self.shape, num_threads=1, skip_format_check=False)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None

        def read(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            try:
                out = file.read(np.s_[rows, columns], dtype="int8", num_threads=1)
            except (OSError, ValueError) as error:
                raise _unreadable(self.path, error) from None
            return _single(out, -127)

        return read


class _Pgen:
    """PLINK 2: hard calls, or dosages where it has them."""

    def __init__(self, path: Path, n_donors: int, n_variants: int) -> None:
        self.path, self.shape = path, (n_donors, n_variants)

    def __call__(self) -> _Read:
        try:
            import pgenlib
        except ImportError:
            raise _not_installed("pgenlib", self.path) from None
        N, M = self.shape
        try:
            file = pgenlib.PgenReader(str(self.path).encode(), raw_sample_ct=N, variant_ct=M)
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreadable(self.path, error) from None

        def read(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            order = np.argsort(columns, kind="stable")
            out = np.empty((len(columns), N), dtype=np.float32)
            try:
                file.read_dosages_list(columns[order].astype(np.uint32), out)
            except (OSError, ValueError, RuntimeError) as error:
                raise _unreadable(self.path, error) from None
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            return _single(out[back].T[rows], -9)

        return read


def _single(values: np.ndarray, missing: int) -> np.ndarray:
    """Single precision, with NaN for what is missing."""
    out = np.ascontiguousarray(values, dtype=np.float32)
    out[values == missing] = np.nan
    return out


def _not_installed(package: str, path: Path) -> DataError:
    return DataError(
        f"to read {str(path)!r} takes {package}: pip install 'ctmm-formula[genotypes]'"
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{str(path)!r} could not be read as genotypes ({said(error)})")


def from_file(source: object) -> Source:
    """A source of the kind that its ending says."""
    path = file_path("genotypes", source)
    kinds = {".bed": _open_bed, ".pgen": _open_pgen}
    if path.suffix not in kinds:
        endings = [end for end in kinds if Path(f"{path}{end}").exists()]
        if path.name.endswith((".vcf", ".vcf.gz", ".bcf")):
            raise DataError(
                f"{str(path)!r} cannot be read by window: plink2 --vcf {path.name} --make-pgen "
                "--out cohort, and take cohort.pgen"
            )
        if not endings:
            raise DataError(
                f"{str(path)!r} is no file of genotypes: these end in {' or '.join(kinds)}, and "
                "there is none of that name"
            )
        path = Path(f"{path}{endings[0]}")
    if not path.is_file():
        raise DataError(f"there is no file {str(path)!r}")
    return kinds[path.suffix](path)


def _open_bed(path: Path) -> Source:
    families, donors = _samples(_beside(path, ".fam"))
    variants = _variants(_beside(path, ".bim"), {"chromosome": 0, "id": 1, "position": 3}, 4)
    try:
        with path.open("rb") as file:
            size, head = path.stat().st_size, file.read(3)
    except OSError as error:
        raise _unreadable(path, error) from None
    if head != b"l\x1b\x01":
        by_donor = head == b"l\x1b\x00"
        raise DataError(
            f"{str(path)!r} is no PLINK 1 .bed file"
            + (" by variant, but by donor: plink --make-bed writes it anew" if by_donor else "")
        )
    expected = 3 + (len(donors) + 3) // 4 * len(variants)
    if size != expected:
        raise DataError(
            f"{str(path)!r} has {size} bytes, {len(donors)} donors of .fam and {len(variants)} "
            f"variants of .bim take {expected}: are the three of one run, and whole?"
        )
    return Source(donors, variants, _Bed(path, len(donors), len(variants)), families)


def _open_pgen(path: Path) -> Source:
    families, donors = _samples(_beside(path, ".psam"))
    table = path.with_suffix(".pvar")
    if not table.exists() and Path(f"{table}.zst").exists():
        raise DataError(
            f"{str(table)!r} is compressed: plink2 --zst-decompress {table.name}.zst {table.name}"
        )
    variants = _variants(_beside(path, ".pvar"), {"chromosome": 0, "position": 1, "id": 2}, 3)
    return Source(donors, variants, _Pgen(path, len(donors), len(variants)), families)


def _beside(path: Path, ending: str) -> Path:
    beside = path.with_suffix(ending)
    if not beside.is_file():
        raise DataError(f"there is no file {str(beside)!r}, which belongs to {path.name!r}")
    return beside


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of columns after "#" (none of PLINK 1), and the words of all other lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    header: list[str] = []
    body = []
    for line in lines:
        if line.startswith("##") or not line.strip():
            continue
        if line.startswith("#"):
            header = line[1:].split()
        else:
            body.append(line.split())
    return header, body


def _samples(path: Path) -> tuple[list[str], list[str]]:
    """Family and individual IDs of .fam or .psam."""
    header, body = _lines(path)
    if not body:
        raise DataError(f"{str(path)!r} has no donors")
    if header and "IID" not in header:
        raise DataError(f"{str(path)!r} has no column IID of individual IDs: {listing(header)}")
    at = header.index("IID") if header else 1
    short = [k for k, words in enumerate(body) if len(words) <= at]
    if short:
        raise DataError(f"{str(path)!r}: donor number {short[0] + 1} has no individual ID")
    donors = [words[at] for words in body]
    twice = [one for one, count in Counter(donors).items() if count > 1]
    if twice:
        raise DataError(
            f"{str(path)!r} has several donors with the individual ID {listing(twice)}: give them "
            "different ones (plink --update-ids)"
        )
    return [words[0] for words in body] if at else [], donors


def _variants(path: Path, columns: Mapping[str, int], least: int) -> pd.DataFrame:
    """Variants of .bim or .pvar."""
    header, body = _lines(path)
    names = {"chromosome": "CHROM", "position": "POS", "id": "ID"}
    if header:
        lost = [own for own in names.values() if own not in header]
        if lost:
            raise DataError(f"{str(path)!r} has no column {listing(lost)}: {listing(header)}")
        columns = {key: header.index(own) for key, own in names.items()}
        least = max(columns.values()) + 1
    short = [k for k, words in enumerate(body) if len(words) < least]
    if short:
        raise DataError(
            f"{str(path)!r}: variant number {short[0] + 1} has {len(body[short[0]])} of {least} or "
            "more columns"
        )
    parts = {key: [words[at] for words in body] for key, at in columns.items()}
    return _placed(parts["id"], parts["chromosome"], parts["position"], str(path))


def _number(value: Any) -> float:
    """A position, NaN where it is none."""
    try:
        return math.nan if isinstance(value, complex) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _placed(
    names: Sequence[str], chromosome: Sequence[object], position: Sequence[object], where: str
) -> pd.DataFrame:
    """The table of variants, clean."""
    texts = [label(one) for one in chromosome]
    known = {one: chromosome_name(one) for one in dict.fromkeys(texts)}
    place = np.array([_number(one) for one in position])
    wrong = np.flatnonzero(~(np.isfinite(place) & (place >= 0.0)))
    if len(wrong):
        raise DataError(
            f"{where} has no position (base pairs) of {amount(len(wrong), 'variant')}: "
            f"{listing([str(names[k]) for k in wrong[:6]])}; leave them out"
        )
    parts = np.flatnonzero(place % 1.0)
    if len(parts):
        raise DataError(
            f"{where} has {amount(len(parts), 'variant')} at parts of a base pair "
            f"({place[parts[0]]:g}): give base pairs, of megabases 1_000_000 times as many"
        )
    columns = {"chromosome": [known[one] for one in texts], "position": place}
    return pd.DataFrame(columns, index=pd.Index([str(name) for name in names], name="variant"))


def from_table(source: object, variants: object, donors: object) -> Source:
    """Genotypes in memory."""
    if isinstance(source, pd.DataFrame):
        if donors is not None:
            raise DataError("donors= are labels of an array; a table has its index")
        if isinstance(source.index, pd.RangeIndex):
            raise DataError(
                "genotypes have no labels of donors, their rows are numbered: set_index"
            )
        labels, names = list(source.index), [label(one) for one in source.columns]
        text = no_numbers(source)
        if text:
            raise DataError(
                f"columns {listing(text)} of genotypes are not numbers: donors are the index, and "
                "the rest is counts of an allele"
            )
        values = source.to_numpy(dtype=float, na_value=np.nan)
    else:
        values = np.asarray(source)
        if values.ndim != 2 or values.dtype.kind not in "biuf":
            raise DataError(
                "genotypes are the name of a file, cohort.bed or cohort.pgen, a DataFrame of "
                f"donors x variants, or an array with donors=, got {type(source).__name__}"
            )
        if not isinstance(donors, Sequence) or isinstance(donors, str):
            raise DataError("an array of genotypes has no labels of donors: give donors=")
        labels, names = list(donors), [f"v{k}" for k in range(1, values.shape[1] + 1)]
        values = values.astype(float)
    known = [label(one) for one in labels]
    if len(known) != len(values):
        raise DataError(f"donors= has {len(known)} labels for {len(values)} rows of genotypes")
    twice = [one for one, count in Counter(known).items() if count > 1]
    if twice:
        raise DataError(f"genotypes have several rows for {donors_named(twice)}")
    if not isinstance(variants, pd.DataFrame):
        raise DataError(
            "a table of genotypes takes variants=: a DataFrame with columns chromosome and "
            "position, a row for every variant"
        )
    lost = [name for name in ("chromosome", "position") if name not in variants]
    if lost:
        raise DataError(
            f"variants= has no column {listing(lost)}{near(lost[0], list(variants.columns))}"
        )
    with np.errstate(invalid="ignore"):
        wrong = np.flatnonzero(((values < 0) | (values > 2)).any(axis=0))
    if len(wrong):
        raise DataError(
            f"genotypes {listing([names[k] for k in wrong[:6]])} are no counts of an allele, from "
            "0 to 2; NaN is a missing one"
        )
    table = _in_order(variants, names, isinstance(source, pd.DataFrame))
    clean = _placed(names, table["chromosome"].tolist(), table["position"].tolist(), "variants=")
    return Source(known, clean, _Table(values.astype(np.float32)))


def _in_order(variants: pd.DataFrame, names: Sequence[str], named: bool) -> pd.DataFrame:
    """A row for every column of a table: by name, or in order where rows are numbered."""
    if not named or isinstance(variants.index, pd.RangeIndex):
        if len(variants) != len(names):
            raise DataError(
                f"variants= has {len(variants)} rows, and there are {len(names)} variants"
            )
        return variants
    index = [label(one) for one in variants.index]
    for whose, own in (("variants=", index), ("genotypes", names)):
        twice = [one for one, count in Counter(own).items() if count > 1]
        if twice:
            raise DataError(
                f"{whose} have several variants {listing(twice)}: rename them, or number the rows "
                "of variants= (reset_index) to match them in order"
            )
    lost = [name for name in names if name not in set(index)]
    if lost:
        raise DataError(f"variants= has no row for variants {listing(lost)}{near(lost[0], index)}")
    return variants.set_axis(index).loc[list(names)]
