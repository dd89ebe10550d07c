"""Genotypes of donors: files and tables, read by window of the genome.

What is read are counts of an allele (0, 1, 2, or dosages between), donors x variants; a missing one
is NaN, and stands at the mean of its variant.  Every variant is standardised over the donors of the
fit; those that do not vary between them, or hardly (``maf``), are left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_complex_dtype, is_numeric_dtype

from ..arguments import name_list
from ..errors import DataError
from ..paths import file_path, said
from .table import amount, label, listing, near

_PART = 512  # variants read at once where all are
_CONSTANT = 1e-8  # deviation, in means, below which a variant does not vary
_NAMES = {"23": "X", "24": "Y", "25": "X", "XY": "X", "26": "MT", "M": "MT"}
"""Chromosomes as PLINK and others number and call them."""


class Scaled(NamedTuple):
    """Genotypes of some donors, standardised.

    Attributes
    ----------
    root : ndarray, shape (N, m)
        Over the root of their number: K = root root'.
    constant, rare, missing : int
        Variants that do not vary, and that vary less than was asked for; missing genotypes of those
        that are in.
    """

    root: np.ndarray
    constant: int
    rare: int
    missing: int

    @property
    def said(self) -> str:
        """What was done, in words; nothing of what was not."""
        parts = [f"G G'/m of {self.root.shape[1]} columns of genotypes, standardised"]
        if self.constant:
            parts.append(f"{self.constant} that do not vary are left out")
        if self.rare:
            parts.append(f"{self.rare} rarer than maf= are left out")
        if self.missing:
            parts.append(f"{self.missing} missing genotypes are the mean of their column")
        return "; ".join(parts)


class Scale(NamedTuple):
    """How genotypes are standardised: means and deviations of the columns that are in."""

    kept: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    constant: int
    rare: int

    def root(self, G: np.ndarray) -> np.ndarray:
        """Standardised genotypes over the root of their number; what is missing is the mean."""
        own = G[:, self.kept].astype(float)
        own -= self.mean
        own /= self.sd * math.sqrt(max(own.shape[1], 1))
        own[np.isnan(own)] = 0.0
        return own


def scale_of(G: np.ndarray, maf: float = 0.0) -> Scale:
    """Means and deviations of the genotypes of these donors, (N, m) with NaN.

    >>> scale_of(np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), maf=0.2)[0].tolist()
    [0]
    """
    missing = np.isnan(G)
    holes = missing.sum(axis=0)
    filled = np.where(missing, 0.0, G)
    mean = filled.sum(axis=0) / np.maximum(len(G) - holes, 1)
    away = filled - mean
    away[missing] = 0.0
    sd = np.sqrt(np.einsum("ij,ij->j", away, away) / max(len(G), 1))
    varies = sd > _CONSTANT * np.maximum(np.abs(mean), 1e-300)
    common = varies & (np.minimum(mean, 2.0 - mean) >= 2.0 * maf) if maf else varies
    kept = np.flatnonzero(common)
    constant = int((~varies).sum())
    return Scale(kept, mean[kept], sd[kept], constant, G.shape[1] - constant - len(kept))


def scaled(G: np.ndarray, maf: float = 0.0) -> Scaled:
    """Genotypes (N, m) with NaN, standardised.

    >>> scaled(np.array([[0.0, 1.0], [2.0, 1.0], [np.nan, 1.0]]))[1:]
    (1, 0, 1)
    """
    scale = scale_of(G, maf)
    missing = int(np.isnan(G).sum(axis=0)[scale.kept].sum())
    return Scaled(scale.root(G), scale.constant, scale.rare, missing)


def chromosome_name(value: object) -> str:
    """A chromosome as all call it: without "chr", X for 23.

    >>> [chromosome_name(one) for one in ("chr1", 1, "1", "chrX", 23, "chrM", "22.0")]
    ['1', '1', '1', 'X', 'X', 'MT', '22']
    """
    text = label(value).strip()
    text = text[3:] if text[:3].lower() == "chr" else text
    text = text.removesuffix(".0").upper() if len(text) < 6 else text
    return _NAMES.get(text, text)


class Genotypes:
    """Genotypes of donors, read by window of the genome.

    For ``fit_genes(genotypes=..., window=...)``; a window of them is a kinship of a fit.

    Parameters
    ----------
    source : str, Path, DataFrame or array
        PLINK 1 ``cohort.bed`` (beside ``cohort.bim`` and ``cohort.fam``) or PLINK 2
        ``cohort.pgen`` (beside ``cohort.pvar`` and ``cohort.psam``), or what comes before the
        ending; or a table of counts of an allele, donors in its rows, a column for every variant.
    variants : DataFrame, optional
        Of a table: columns chromosome and position (base pairs), a row for every column of the
        table, named or in order as these.
    donors : sequence of str, optional
        Of an array: labels of its rows.

    Attributes
    ----------
    donors : tuple of str
        Individual IDs, the second column of .fam.
    variants : DataFrame
        Columns chromosome (without "chr") and position.
    maf : float
        Smallest frequency of the rarer allele, between the donors of a fit.

    Raises
    ------
    DataError
        A file is missing, is none of its kind or not of one run with the others; donors with one
        ID; numbers that are no genotypes; or bed-reader or pgenlib is not installed.

    Examples
    --------
    >>> table = pd.DataFrame([[0, 1], [1, 2], [2, 0]], ["d1", "d2", "d3"], ["rs1", "rs2"])
    >>> where = pd.DataFrame({"chromosome": ["chr1", "chr1"], "position": [100, 90_000]},
    ...                      ["rs1", "rs2"])
    >>> G = Genotypes(table, where)
    >>> G
    <Genotypes: 2 variants of 3 donors>
    >>> G.window("1", 1, 1000).frame()["rs1"].tolist()
    [0.0, 1.0, 2.0]
    """

    def __init__(
        self,
        source: object,
        variants: pd.DataFrame | None = None,
        donors: Sequence[str] | None = None,
    ) -> None:
        if isinstance(source, (str, PathLike)):
            if variants is not None or donors is not None:
                raise DataError("variants= and donors= belong to a table; a file has its own")
            self._source: _Source = _from_file(source)
        else:
            self._source = _from_table(source, variants, donors)
        self.donors, self.maf = self._source.donors, 0.0
        self._columns = np.arange(len(self._source.variants))

    @property
    def variants(self) -> pd.DataFrame:
        """Columns chromosome and position, a row for every variant."""
        own = self._source.variants
        return own if len(own) == len(self._columns) else own.iloc[self._columns]

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"<Genotypes: {len(self)} variants of {len(self.donors)} donors>"

    def window(
        self, chromosome: object, start: float, end: float, *, maf: float | None = None
    ) -> Genotypes:
        """Those of a part of a chromosome, both ends in it.

        Parameters
        ----------
        chromosome : str or int
            "chr1" and 1 are the same.
        start, end : float
            Base pairs.
        maf : float, optional
            Only variants with this frequency of the rarer allele between the donors of a fit.

        Raises
        ------
        DataError
            The chromosome has no variants, or these are no numbers.
        """
        name = chromosome_name(chromosome)
        if name not in self.places:
            raise DataError(
                f"there are no genotypes of chromosome {name!r}; there are those of "
                f"{listing(list(self.places), 30)}"
            )
        try:
            ends = float(start), float(end)
        except (TypeError, ValueError):
            raise DataError(f"start= and end= are base pairs, got {start!r}, {end!r}") from None
        if not ends[0] <= ends[1]:
            raise DataError(f"a window ends after it starts, got {start!r} to {end!r}")
        return self.part(self.between(name, *ends), maf)

    def part(self, columns: np.ndarray, maf: float | None) -> Genotypes:
        """Some of the variants, by their numbers among all of the source."""
        part = object.__new__(Genotypes)
        part._source, part.donors, part._columns = self._source, self.donors, columns
        part.maf = self.maf if maf is None else check_maf(maf)
        return part

    @cached_property
    def places(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Chromosome -> positions in order, and the variants' numbers in the source."""
        table = self.variants
        names = table["chromosome"].to_numpy()
        position = table["position"].to_numpy()
        order = np.argsort(position, kind="stable")
        out = {}
        for name in pd.unique(names):
            own = order[names[order] == name]
            out[str(name)] = position[own], self._columns[own]
        return out

    def between(self, chromosome: str, start: float, end: float) -> np.ndarray:
        """Numbers in the source of the variants from start to end."""
        position, columns = self.places[chromosome]
        first, last = np.searchsorted(position, [start, end], side="left")
        last = np.searchsorted(position, end, side="right")
        return np.asarray(columns[first:last])

    def rows_of(self, donors: Sequence[str], what: str = "genotypes") -> np.ndarray:
        """Row of each of these donors.

        Raises
        ------
        DataError
            Naming donors that have none.
        """
        place = {one: k for k, one in enumerate(self.donors)}
        absent = [donor for donor in donors if donor not in place]
        if not absent:
            return np.array([place[donor] for donor in donors], dtype=np.int64)
        if len(absent) == len(donors):
            others = self._source.other_names(absent)
            raise DataError(
                f"{what} have none of the donors ({listing(absent, 3)}): theirs are called "
                f"{listing(self.donors, 3)}{others}; they are matched by label, never by position: "
                "rename the donors in data"
            )
        raise DataError(
            f"{what} have no row for {len(absent)} of {len(donors)} donors: {listing(absent)}"
            f"{near(absent[0], self.donors)}; leave their rows out of data"
        )

    def read(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> np.ndarray:
        """Counts of an allele, (N, m) in single precision, NaN where missing.

        Parameters
        ----------
        rows : int ndarray, optional
        columns : int ndarray, optional
            Numbers in the source; by default all of these.
        """
        return self._source.read(rows, self._columns if columns is None else columns)

    def frame(self) -> pd.DataFrame:
        """All of them as a table, donors x variants."""
        names = self.variants.index
        return pd.DataFrame(self.read().astype(float), index=list(self.donors), columns=names)

    def scaled(self, rows: np.ndarray) -> Scaled:
        """Those of some donors, standardised."""
        return scaled(self.read(rows).astype(float), self.maf)

    def kinship(
        self, donors: Sequence[str] | None = None, *, maf: float | None = None
    ) -> pd.DataFrame:
        """K = G G'/m of all variants, standardised; read part by part.

        Parameters
        ----------
        donors : sequence of str, optional
            By default all.
        maf : float, optional
            Only variants with this frequency of the rarer allele between these donors.

        Returns
        -------
        DataFrame, shape (N, N)

        Raises
        ------
        DataError
            Donors without genotypes, or no variant varies between them.
        """
        names = list(self.donors)
        if donors is not None:
            names = [label(one) for one in name_list("donors", donors)]
        rows, least = self.rows_of(names), self.maf if maf is None else check_maf(maf)
        K, count = np.zeros((len(rows), len(rows))), 0
        for start in range(0, len(self), _PART):
            part = scaled(
                self.read(rows, self._columns[start : start + _PART]).astype(float), least
            )
            m = part.root.shape[1]
            K += m * (part.root @ part.root.T)
            count += m
        if not count:
            raise DataError(f"no variant varies between these {len(rows)} donors")
        return pd.DataFrame(K / count, index=names, columns=names)

    @cached_property
    def identity(self) -> str:
        """Digest of donors and variants, their names and places; not of the genotypes."""
        digest = blake2b(digest_size=16)
        table = self.variants
        for part in (self.donors, table.index, table["chromosome"]):
            digest.update("\n".join(map(str, part)).encode(errors="surrogatepass") + b"\0")
        digest.update(np.ascontiguousarray(table["position"].to_numpy(float)).tobytes())
        return digest.hexdigest()


def no_numbers(table: pd.DataFrame) -> list[str]:
    """Names of the columns that are not real numbers.

    >>> no_numbers(pd.DataFrame({"a": [1], "b": ["x"], "c": [1j]}))
    ['b', 'c']
    """
    kinds = zip(table, table.dtypes, strict=True)
    return [str(name) for name, d in kinds if not is_numeric_dtype(d) or is_complex_dtype(d)]


def check_maf(value: object) -> float:
    """A frequency of the rarer allele.

    >>> check_maf(0.05)
    0.05
    """
    number: Any = value
    real = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
    if real and 0.0 <= number < 0.5:
        return float(number)
    raise DataError(f"maf= is a frequency of the rarer allele, from 0 to below .5, got {value!r}")


# ---------------------------------------------------------------------------------------------
# sources


class _Source:
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


def _from_file(source: object) -> _Source:
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


def _open_bed(path: Path) -> _Source:
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
    return _Source(donors, variants, _Bed(path, len(donors), len(variants)), families)


def _open_pgen(path: Path) -> _Source:
    families, donors = _samples(_beside(path, ".psam"))
    table = path.with_suffix(".pvar")
    if not table.exists() and Path(f"{table}.zst").exists():
        raise DataError(
            f"{str(table)!r} is compressed: plink2 --zst-decompress {table.name}.zst {table.name}"
        )
    variants = _variants(_beside(path, ".pvar"), {"chromosome": 0, "position": 1, "id": 2}, 3)
    return _Source(donors, variants, _Pgen(path, len(donors), len(variants)), families)


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
    columns = {"chromosome": [known[one] for one in texts], "position": place}
    return pd.DataFrame(columns, index=pd.Index([str(name) for name in names], name="variant"))


def _from_table(source: object, variants: object, donors: object) -> _Source:
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
        raise DataError(f"genotypes have several rows for donors {listing(twice)}")
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
    return _Source(known, clean, _Table(values.astype(np.float32)))


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
