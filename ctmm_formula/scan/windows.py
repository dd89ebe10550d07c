"""Windows of the genome around genes: which variants every gene of a scan has, and their reading.

The genotypes of a block of genes are read at once, every variant once: genes go in order of the
genome, so that windows of a block overlap.  What was read is part of the block's digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import is_complex_dtype, is_numeric_dtype

from ..arguments import whole_number
from ..design.genotype_sources import chromosome_name
from ..design.genotypes import Genotypes, check_maf, scale_of
from ..design.kinship import DEFAULT_NAME, OfEach
from ..design.table import as_frame, label, listing, near
from ..engine.relatedness import Kernel, by_root
from ..errors import DataError

CIS = "cis"
"""Name of the kinship of a gene's own window."""
_MOST = 1_000_000_000  # base pairs


def with_own(kinship: object) -> dict[str, object]:
    """Kinships of a scan whose genes have their own beside those that were given.

    Raises
    ------
    DataError
        One of these has the name of a gene's own.
    """
    given = {} if kinship is None else {DEFAULT_NAME: kinship}
    given = dict(kinship) if isinstance(kinship, Mapping) else given
    if CIS in given:
        raise DataError(f"kinship {CIS!r} is that of every gene's own window: give another name")
    return {CIS: OfEach.GENE, **given}


class Read(NamedTuple):
    """Genotypes of the windows of some genes.

    values : ndarray, shape (N, m), single precision with NaN; at : of every gene the columns, or
    why it has none; maf
    """

    values: np.ndarray
    at: tuple[np.ndarray | str, ...]
    maf: float


class Own(NamedTuple):
    """The kernel of a gene's window; its variants, those left out, and genotypes missing."""

    kernel: Kernel
    variants: int
    constant: int
    rare: int
    missing: int


class Walk:
    """Kernels of the windows of genes, one after another along the genome.

    Most of a window was in the last one: variants are standardised once, and the sum of their
    products gets what a window has more than the last, and loses what it has no longer.
    """

    def __init__(self, read: Read) -> None:
        self.read = read
        self._begin(np.zeros(0, dtype=np.int64))

    def _begin(self, donors: np.ndarray) -> None:
        count = self.read.values.shape[1]
        self._donors, self._Z = donors, np.empty((count, len(donors)))
        self._known, self._varies, self._kept = np.zeros((3, count), dtype=bool)
        self._holes = np.zeros(count, dtype=np.int64)
        self._last, self._sum = np.zeros(0, dtype=np.int64), np.zeros((len(donors),) * 2)

    def of(self, gene: int, donors: np.ndarray) -> Own:
        """The kernel of a gene, by its number, between some donors.

        Raises
        ------
        DataError
            It has no variants, or none that varies.
        """
        at = self.read.at[gene]
        if isinstance(at, str):
            raise DataError(f"no kinship of its own: {at}")
        if not np.array_equal(donors, self._donors):
            self._begin(donors)
        self._standardise(at[~self._known[at]])
        constant = int((~self._varies[at]).sum())
        own = at[self._kept[at]]
        rare = len(at) - len(own) - constant
        if not len(own):
            raise DataError(
                f"no kinship of its own: of {len(at)} variants {constant} do not vary "
                f"between these donors, {rare} are rarer than maf={self.read.maf:g}"
            )
        root = (self._Z[own] / math.sqrt(len(own))).T
        whole = None if by_root(root) else self._products(own) / len(own)
        return Own(Kernel(whole, root), len(own), constant, rare, int(self._holes[own].sum()))

    def _standardise(self, new: np.ndarray) -> None:
        """Variants that were not in a window before."""
        G = self.read.values[np.ix_(self._donors, new)].astype(float)
        scale = scale_of(G, self.read.maf)
        self._known[new], self._varies[new], self._kept[new] = True, scale.varies, scale.kept
        self._holes[new] = np.isnan(G).sum(axis=0)
        self._Z[new[scale.kept]] = scale.standardised(G).T

    def _products(self, own: np.ndarray) -> np.ndarray:
        """The sum of z z' (N, N) of these variants."""
        more = np.setdiff1d(own, self._last, assume_unique=True)
        less = np.setdiff1d(self._last, own, assume_unique=True)
        if 2 * (len(more) + len(less)) > len(own):
            self._sum = _outer(self._Z[own])
        else:
            self._sum += _outer(self._Z[more])
            self._sum -= _outer(self._Z[less])
        self._last = own
        return self._sum


def _outer(Z: np.ndarray) -> np.ndarray:
    """Z'Z, of one array: half the work of a product of two."""
    return Z.T @ Z


@dataclass(frozen=True)
class Windows:
    """Variants around every gene.

    Attributes
    ----------
    genotypes : Genotypes
    columns : dict of str to (int ndarray or str)
        Gene -> its variants by their numbers in the source, or why it has none.
    rows : int ndarray, shape (N,)
        Of the donors of the scan.
    order : tuple of str
        Genes by chromosome and position, those without a place last.
    window : int
    maf : float
    """

    genotypes: Genotypes
    columns: dict[str, np.ndarray | str]
    rows: np.ndarray
    order: tuple[str, ...]
    window: int
    maf: float

    def of_donors(self, donors: Sequence[str]) -> Windows:
        """The same for a scan with these donors.

        Raises
        ------
        DataError
            Naming donors without genotypes.
        """
        return replace(self, rows=self.genotypes.rows_of(donors))

    def read(self, genes: Sequence[str]) -> Read:
        """Genotypes in the windows of these genes."""
        own = [self.columns[gene] for gene in genes]
        there = [one for one in own if not isinstance(one, str)]
        every = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *there]))
        values = self.genotypes.read(self.rows, every)
        at = [one if isinstance(one, str) else np.searchsorted(every, one) for one in own]
        return Read(values, tuple(at), self.maf)

    def of(self, gene: str) -> Genotypes:
        """The genotypes in the window of a gene.

        Raises
        ------
        DataError
            There are none, and why.
        """
        own = self.columns[gene]
        if isinstance(own, str):
            raise DataError(f"gene {gene!r} has no genotypes: {own}")
        return self.genotypes.part(own, self.maf)

    @property
    def parts(self) -> list[object]:
        """What the numbers of genes depend on, but the values of genotypes."""
        places = [one if isinstance(one, str) else one.tolist() for one in self.columns.values()]
        return [self.genotypes.identity, *places]


def windows_of(
    genotypes: object, window: object, maf: object, positions: object, genes: Sequence[str]
) -> Windows:
    """The windows of the genes of a scan.

    Parameters
    ----------
    genotypes : Genotypes
    window : int
        Base pairs before the start and after the end of a gene, or on both sides of its tss.
    maf : float
        Smallest frequency of the rarer allele.
    positions : DataFrame
        Index gene; columns chromosome, and start and end or tss, in base pairs.
    genes : sequence of str

    Raises
    ------
    DataError
        Naming the argument, genes and the fix.

    Examples
    --------
    >>> table = pd.DataFrame([[0, 1], [1, 2], [2, 0]], ["d1", "d2", "d3"], ["rs1", "rs2"])
    >>> where = pd.DataFrame({"chromosome": ["1", "1"], "position": [100, 90_000]})
    >>> positions = pd.DataFrame({"chromosome": "chr1", "tss": [500, 10_000_000]}, ["g1", "g2"])
    >>> found = windows_of(Genotypes(table, where), 1000, 0.0, positions, ["g2", "g1"])
    >>> found.order, found.columns["g1"].tolist(), found.columns["g2"]
    (('g1', 'g2'), [0], 'no variant from 9999000 to 10001000 of chromosome 1')
    """
    if not isinstance(genotypes, Genotypes):
        raise DataError(f"genotypes= takes Genotypes('cohort.bed'), got {type(genotypes).__name__}")
    if window is None or positions is None:
        raise DataError(
            "genotypes= takes a window around every gene: give window=500_000 and positions=, a "
            "table of where genes are; of all variants as one kinship, kinship=genotypes.kinship()"
        )
    width = whole_number("window", window, 0, _MOST)
    least = check_maf(maf)
    table = _positions(positions)
    known = [gene for gene in genes if gene in table.index]
    if not known:
        raise DataError(
            f"positions= has none of the genes ({listing(list(genes), 3)}): its index is called "
            f"{listing(table.index.tolist(), 3)}; give it the names that expression has"
        )
    chromosomes = set(table.loc[known, "chromosome"])
    if not chromosomes & set(genotypes.places):
        raise DataError(
            f"positions= has genes on chromosomes {listing(sorted(chromosomes), 30)}, and "
            f"genotypes are of {listing(list(genotypes.places), 30)}"
        )
    columns: dict[str, np.ndarray | str]
    place = {name: (own, *ends) for name, own, *ends in table.itertuples()}
    columns = {gene: _window(genotypes, place.get(gene), width) for gene in genes}
    if all(isinstance(own, str) for own in columns.values()):
        raise DataError(
            f"no gene has a variant within window={width}: are positions= in base pairs, and of "
            f"the genome build of genotypes? ({known[0]!r}: {columns[known[0]]})"
        )
    rank = {name: k for k, name in enumerate(genotypes.places)}

    def where(gene: str) -> tuple[int, float]:
        name, start, _ = place.get(gene, ("", 0.0, 0.0))
        return rank.get(name, len(rank)), start

    order = sorted(genes, key=where)
    none = np.zeros(0, dtype=np.int64)
    return Windows(genotypes, columns, none, tuple(order), width, least)


def _window(
    genotypes: Genotypes, place: tuple[str, float, float] | None, width: int
) -> np.ndarray | str:
    """Variants around a place, or why there are none."""
    if place is None:
        return "positions= has no such gene"
    name, start, end = place
    if name not in genotypes.places:
        return f"there are no genotypes of chromosome {name}"
    found = genotypes.between(name, start - width, end + width)
    if not len(found):
        ends = max(start - width, 0), end + width
        return f"no variant from {ends[0]:.0f} to {ends[1]:.0f} of chromosome {name}"
    return found


def _positions(given: object) -> pd.DataFrame:
    """Chromosome, start and end by gene; checked."""
    table = given if isinstance(given, pd.DataFrame) else as_frame(given, "positions")
    columns = [name for name in ("start", "end") if name in table]
    if "tss" in table:
        columns = ["tss"]
    lost = [name for name in ("chromosome", *(columns or ["tss"])) if name not in table]
    if columns and columns[0] != "tss" and len(columns) < 2:
        lost += [{"start": "end", "end": "start"}[columns[0]]]
    if lost:
        raise DataError(
            f"positions= has no column {listing(lost)}{near(lost[0], table.columns.tolist())}: it "
            "takes chromosome, and start and end or tss, by gene"
        )
    if isinstance(table.index, pd.RangeIndex):
        fix = "set_index('gene')" if "gene" in table else "set_index of the column of their names"
        raise DataError(f"positions= has no names of genes, its rows are numbered: {fix}")
    genes = pd.Index([label(one) for one in table.index])
    twice = genes[genes.duplicated()].unique().tolist()
    if twice:
        raise DataError(f"positions= has several rows for genes {listing(twice)}: keep one of each")
    for name in columns:
        if not is_numeric_dtype(table[name].dtype) or is_complex_dtype(table[name].dtype):
            raise DataError(f"column {name!r} of positions= is not numbers: give base pairs")
    ends = table[columns].to_numpy(dtype=float, na_value=np.nan)
    gone = table["chromosome"].isna().to_numpy() | ~np.isfinite(ends).all(axis=1)
    if gone.any():
        raise DataError(
            f"positions= has no place of genes {listing(genes[gone].tolist())}: leave them out"
        )
    parts = (ends % 1.0 != 0.0).any(axis=1)
    if parts.any():
        raise DataError(
            f"positions= has genes {listing(genes[parts].tolist())} at parts of a base pair "
            f"({ends[parts][0, 0]:g}): give base pairs, of megabases 1_000_000 times as many"
        )
    wrong = (ends < 0).any(axis=1) | (ends[:, 0] > ends[:, -1])
    if wrong.any():
        raise DataError(
            f"positions= has genes {listing(genes[wrong].tolist())} that end before they start, or "
            "start below 0"
        )
    names = [chromosome_name(one) for one in table["chromosome"]]
    return pd.DataFrame({"chromosome": names, "start": ends[:, 0], "end": ends[:, -1]}, genes)
