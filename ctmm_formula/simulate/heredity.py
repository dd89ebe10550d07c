"""Genotypes of donors, with variants in blocks, families and populations, and what they do.

Frequencies are uniform from .05 to .5; of several populations each has its own, beta distributed
about them (Balding and Nichols) with variance F f (1 - f).  A haplotype is a latent normal process
below the quantile of the frequency, autoregressive within blocks of variants and independent
between them.  Sibs get, block by block, one of two haplotypes from each parent.

The genetic values of a gene are sums over causal variants of its window, and over all variants:

    g_ic = sum_k Z_ik (a_k + b_kc) / sqrt m,   a ~ N(0, shared), b_c ~ N(0, specific_c)

with Z standardised between these donors, so that they have the covariance K_ij (shared + specific).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtri

from ..arguments import MOST_DRAWS, Rng, floats, generator, whole_number
from ..design.genotypes import Genotypes, Scaled
from ..errors import CTMMError
from .limits import number, room, shaped

_LEAST, _MOST = 0.05, 0.5  # frequencies
_LD = (0.0, 0.999, "a correlation from 0 to below 1")
_FST = (0.0, 0.5, "from 0 to .5")
_VARIANCE = (0.0, 1e100, "a variance, 0 or more")
_MISSING = (0.0, 0.5, "a share from 0 to .5")


class Heredity(NamedTuple):
    """What is genetic in simulated genes; a kinship "cis", and one of all variants.

    Variances are those between donors (of counts, of log-fold effects).

    Attributes
    ----------
    genotypes : Genotypes
        With the donors of the study, d001, d002, ...: :func:`simulate_genotypes`.
    cis, polygenic : float
        Shared by all cell types: of causal variants of the gene's window, and of all variants.
    cis_specific, polygenic_specific : float or array, shape (C,)
        Beyond that in every cell type.
    causal : int
        Causal variants of a window.
    window : int
        Base pairs on both sides of a gene's place, which is drawn.
    stratified : float
        Of what goes with the first principal component of all genotypes, and with no variant.
    """

    genotypes: Genotypes
    cis: float = 0.0
    cis_specific: ArrayLike = 0.0
    polygenic: float = 0.0
    polygenic_specific: ArrayLike = 0.0
    causal: int = 20
    window: int = 500_000
    stratified: float = 0.0

    def checked(self, C: int) -> Heredity:
        """The same as numbers, of C cell types.

        Raises
        ------
        CTMMError
            A value out of its limits, or no genotypes.
        """
        if not isinstance(self.genotypes, Genotypes):
            raise CTMMError(
                "genotypes of Heredity are those of simulate_genotypes(), or of Genotypes(), got "
                f"{type(self.genotypes).__name__}"
            )
        if not len(self.genotypes):
            raise CTMMError("genotypes of Heredity have no variant")
        names = ("cis", "polygenic", "stratified")
        own: dict[str, Any] = {name: number(name, getattr(self, name), _VARIANCE) for name in names}
        for name in ("cis_specific", "polygenic_specific"):
            own[name] = shaped(name, getattr(self, name), (C,))
            if not ((own[name] >= 0.0) & (own[name] <= _VARIANCE[1])).all():
                raise CTMMError(f"{name} is a variance: give 0 or more")
        causal = whole_number("causal", self.causal, 1, MOST_DRAWS)
        window = whole_number("window", self.window, 0, 10**9)
        return self._replace(causal=causal, window=window, **own)

    def truth(self, celltypes: Sequence[str]) -> dict[str, float]:
        """Variances by the names that results have."""
        out = {}
        for name, shared, specific in (
            ("cis", self.cis, self.cis_specific),
            ("trans", self.polygenic, self.polygenic_specific),
        ):
            out[f"{name}:hom"] = float(shared)
            values = floats("specific", specific)
            out |= {
                f"{name}:V[{cell}]": float(v) for cell, v in zip(celltypes, values, strict=True)
            }
        return out


class Inherited(NamedTuple):
    """Genetic values of donors by gene, (G, N, C), and where the genes are."""

    values: np.ndarray
    positions: pd.DataFrame


def inherited(
    own: Heredity, donors: Sequence[str], genes: Sequence[str], C: int, rng: np.random.Generator
) -> Inherited:
    """Draw places and genetic values of genes.

    Parameters
    ----------
    own : Heredity
        Checked.
    donors, genes : sequence of str
    C : int
        Cell types.
    rng : numpy Generator
    """
    G, N = own.genotypes, len(donors)
    rows, table = G.rows_of(donors), G.variants
    room(genes=len(genes), donors=N, celltypes=C)
    at = rng.integers(len(table), size=len(genes))
    places = table.iloc[at][["chromosome", "position"]]
    positions = pd.DataFrame(
        {"chromosome": places["chromosome"].to_numpy(), "tss": places["position"].to_numpy()},
        index=pd.Index(list(genes), name="gene"),
    )
    whole = None
    if own.polygenic or np.any(own.polygenic_specific) or own.stratified:
        whole = G.scaled(rows)
    first = np.zeros(N)
    if own.stratified and whole is not None:
        first = np.linalg.eigh(whole.root @ whole.root.T)[1][:, -1] * np.sqrt(N)
    values = np.zeros((len(genes), N, C))
    for g, (name, tss) in enumerate(positions.itertuples(index=False)):
        if own.cis or np.any(own.cis_specific):
            near = G.between(name, tss - own.window, tss + own.window)
            some = rng.permutation(near)[: own.causal]
            part = G.part(some, None).scaled(rows)
            values[g] += _values(part, own.cis, own.cis_specific, C, rng)
        if whole is not None:
            values[g] += _values(whole, own.polygenic, own.polygenic_specific, C, rng)
            values[g] += np.sqrt(own.stratified) * rng.standard_normal() * first[:, None]
    return Inherited(values, positions)


def _values(
    part: Scaled, shared: float, specific: ArrayLike, C: int, rng: np.random.Generator
) -> np.ndarray:
    """Genetic values (N, C) of these variants."""
    m = part.root.shape[1]
    effects = np.sqrt(floats("specific", specific)) * rng.standard_normal((m, C))
    return np.asarray(part.root @ (effects + np.sqrt(shared) * rng.standard_normal((m, 1))))


def simulate_genotypes(
    n_donors: int = 50,
    n_variants: int = 2000,
    *,
    chromosomes: int = 2,
    block: int = 20,
    ld: float = 0.9,
    spacing: int = 2500,
    family: int = 1,
    populations: int = 1,
    fst: float = 0.05,
    missing: float = 0.0,
    rng: Rng = None,
) -> Genotypes:
    """Genotypes of related donors, with variants in blocks.

    Parameters
    ----------
    n_donors, n_variants : int
        Donors are called d001, d002, ... as those of :func:`simulate_genes`.
    chromosomes : int
        They share the variants, which are `spacing` base pairs apart.
    block : int
        Variants that go together.
    ld : float
        Correlation of the latent processes of neighbours in a block.
    family : int
        Full sibs of a family; 1 for donors that are not related.
    populations : int
        Donors follow each other by population.
    fst : float
        Of several populations: variance of a frequency f between them, over f (1 - f).
    missing : float
        Share of genotypes that are missing.
    rng : numpy Generator or seed, optional

    Returns
    -------
    Genotypes

    Raises
    ------
    CTMMError
        Settings out of range.

    Examples
    --------
    >>> G = simulate_genotypes(40, 200, family=4, rng=1)
    >>> K = G.kinship()
    >>> sibs = np.arange(40)[:, None] // 4 == np.arange(40) // 4
    >>> bool(K.to_numpy()[sibs & ~np.eye(40, dtype=bool)].mean() > 0.4)
    True
    """
    N = whole_number("n_donors", n_donors, 2, MOST_DRAWS)
    M = whole_number("n_variants", n_variants, 1, MOST_DRAWS)
    n_chromosomes = whole_number("chromosomes", chromosomes, 1, 22)
    block, family = whole_number("block", block, 1), whole_number("family", family, 1)
    spacing = whole_number("spacing", spacing, 1, 10**7)
    n_populations = whole_number("populations", populations, 1, N)
    ld, fst = number("ld", ld, _LD), number("fst", fst, _FST)
    missing = number("missing", missing, _MISSING)
    room(n_donors=2 * N, n_variants=M)
    rng = generator(rng)
    start = np.arange(M) % block == 0
    f = rng.uniform(_LEAST, _MOST, M)
    own = np.tile(f, (n_populations, 1))
    if n_populations > 1 and fst > 0.0:
        size = (1.0 - fst) / fst
        own = np.clip(rng.beta(f * size, (1.0 - f) * size, own.shape), 1e-3, 1.0 - 1e-3)
    families = np.arange(N) // family
    population = np.arange(families[-1] + 1) * n_populations // (families[-1] + 1)
    cuts = ndtri(own)[population]  # (families, M)
    if family == 1:
        G = sum((_latent(rng, cuts.shape, start, ld) < cuts).astype(np.int8) for _ in range(2))
    else:
        G = np.zeros((N, M), dtype=np.int8)
        blocks = np.cumsum(start) - 1
        for _ in range(2):  # parents
            pair = [_latent(rng, cuts.shape, start, ld) < cuts for _ in range(2)]
            which = rng.integers(2, size=(N, blocks[-1] + 1))[:, blocks]
            G += np.where(which == 0, pair[0][families], pair[1][families])
    values = np.asarray(G, dtype=np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    chromosome = np.arange(M) * n_chromosomes // M
    first = np.searchsorted(chromosome, np.arange(n_chromosomes))
    variants = pd.DataFrame(
        {
            "chromosome": [str(c + 1) for c in chromosome],
            "position": spacing * (np.arange(M) - first[chromosome] + 1),
        },
        index=[f"v{k + 1}" for k in range(M)],
    )
    donors = [f"d{i + 1:03d}" for i in range(N)]
    return Genotypes(pd.DataFrame(values, donors, variants.index), variants)


def _latent(
    rng: np.random.Generator, shape: tuple[int, ...], start: np.ndarray, ld: float
) -> np.ndarray:
    """Standard normal processes along variants, anew at every start."""
    z = rng.standard_normal(shape)
    step = np.sqrt(1.0 - ld**2)
    for k in np.flatnonzero(~start):
        z[:, k] = ld * z[:, k - 1] + step * z[:, k]
    return z
