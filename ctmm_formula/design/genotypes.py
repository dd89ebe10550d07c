"""Genotypes of donors: files and tables, read by window of the genome.

What is read are counts of an allele (0, 1, 2, or dosages between), donors x variants; a missing one
is NaN, and stands at the mean of its variant.  Every variant is standardised over the donors of the
fit; those that do not vary between them, or hardly (``maf``), are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ..arguments import name_list
from ..errors import DataError
from .genotype_sources import Source, chromosome_name, from_file, from_table
from .table import label, listing, near

_PART = 512  # variants read at once where all are
_CONSTANT = 1e-8  # deviation, in means, below which a variant does not vary


class Scaled(NamedTuple):
    """Genotypes of some donors, standardised.

    Attributes
    ----------
    root : ndarray, shape (N, m)
        Over the root of their number: K = root root'.
    constant, rare, missing : int
        Variants that do not vary, and that vary less than was asked for; missing genotypes of those
        that are in.
    empty : int ndarray
        Donors without most of their genotypes.
    """

    root: np.ndarray
    constant: int
    rare: int
    missing: int
    empty: np.ndarray

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
    """How genotypes are standardised: which columns vary, and are in; means and deviations."""

    varies: np.ndarray
    kept: np.ndarray
    mean: np.ndarray
    sd: np.ndarray

    def standardised(self, G: np.ndarray, times: float = 1.0) -> np.ndarray:
        """The columns that are in, over `times` their deviations; what is missing is the mean."""
        own = G[:, self.kept].astype(float)
        own -= self.mean[self.kept]
        own /= self.sd[self.kept] * times
        own[np.isnan(own)] = 0.0
        return own

    def root(self, G: np.ndarray) -> np.ndarray:
        """Standardised genotypes over the root of their number."""
        return self.standardised(G, math.sqrt(max(int(self.kept.sum()), 1)))


def scale_of(G: np.ndarray, maf: float = 0.0) -> Scale:
    """Means and deviations of the genotypes of these donors, (N, m) with NaN.

    >>> scale_of(np.array([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), maf=0.2).kept
    array([ True, False, False])
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
    return Scale(varies, common, mean, sd)


def scaled(G: np.ndarray, maf: float = 0.0) -> Scaled:
    """Genotypes (N, m) with NaN, standardised.

    >>> scaled(np.array([[0.0, 1.0], [2.0, 1.0], [np.nan, 1.0]]))[1:]
    (1, 0, 1, array([2]))
    """
    scale, missing = scale_of(G, maf), np.isnan(G)
    holes = missing[:, scale.kept] if missing.any() else missing[:, :0]
    empty = np.flatnonzero(2 * holes.sum(axis=1) > max(int(scale.kept.sum()), 1))
    constant, rare = (~scale.varies).sum(), (scale.varies & ~scale.kept).sum()
    return Scaled(scale.root(G), int(constant), int(rare), int(holes.sum()), empty)


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
            self._source: Source = from_file(source)
        else:
            self._source = from_table(source, variants, donors)
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
