"""Kinships and genotypes: tables with edits, files of GCTA and PLINK that were damaged.

A table in another order, with more donors, is the same kinship; one that lacks donors, has some
twice, or is no covariance, must be refused.  No file of these has a checksum: what was damaged may
be read, but nothing that is not a CTMMError may come out.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_genotypes import write_bed, write_pgen

import ctmm_formula as ctmm

from .files import damaged, quiet
from .harness import Try
from .tables import VALUES, pick

Rng = np.random.Generator
WORDS = (
    "", " ", "\t", "#", "#FID IID", "NA", "nan", "-1", "1e400", "0", "d01", "chr", "é", "\x00",
    "\r\n", "inf", "1.5", ",", '"', "##",
)  # fmt: skip
REFUSED, SAME, ANY = "refused", "same", "any"


def _table(N: int = 24) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One gene of N donors, and the kinship of sibs, of two donors more."""
    data = quiet(ctmm.simulate.simulate_pseudobulk, N, 3, rng=1).ctp
    donors = [*data["donor"].unique(), "x1", "x2"]
    sibs = np.arange(len(donors)) // 3
    K = 0.5 * np.equal.outer(sibs, sibs) + 0.5 * np.eye(len(donors))
    return data, pd.DataFrame(K, donors, donors)


def _square_edit(K: pd.DataFrame, rng: Rng) -> tuple[Any, str]:
    """A kinship with one edit, and what must become of it."""
    K = K.copy()
    i, j = (int(k) for k in rng.choice(24, 2, replace=False))
    what = int(rng.integers(16))
    if what == 0:
        return K.loc[rng.permutation(K.index), rng.permutation(K.columns)], SAME
    if what == 1:
        return K.iloc[:24, :24].astype(np.float32), SAME
    if what == 2:
        return K.drop(index=K.index[i], columns=K.columns[i]), REFUSED
    if what == 3:
        return pd.concat([K, K.iloc[[i]]]), REFUSED
    if what == 4:
        K.iloc[i, j] += pick(rng, [1.0, -3.0, np.nan, np.inf, 1e300])
        return K, REFUSED
    if what == 5:
        K.iloc[i, j] = K.iloc[j, i] = pick(rng, [5.0, -7.0, np.nan, -np.inf, 1e200])
        return K, REFUSED
    if what == 6:
        return K.reset_index(drop=True), REFUSED
    if what == 7:
        return K.set_axis([f"c{k}" for k in range(len(K))], axis=1), REFUSED
    if what == 8:
        return K.rename(index=str.upper, columns=str.upper), REFUSED
    if what == 9:
        return K * pick(rng, [1e-12, 1e12, 1e-200, 1e200, 0.0, -1.0]), ANY
    if what == 10:
        return K + pick(rng, [1.0, 1e6, -0.5]), ANY
    if what == 11:
        return _put(K, rng, pick(rng, VALUES)), ANY
    if what == 12:
        return K.set_axis(_relabelled(K.index, i, pick(rng, VALUES))), ANY
    if what == 13:
        return K.iloc[:, : int(rng.integers(len(K)))], ANY
    if what == 14:
        return pick(rng, VALUES), ANY
    return {str(pick(rng, ["a", "", "a:b", "shared", "batch"])): K, "b": K @ K}, ANY


def _put(frame: pd.DataFrame, rng: Rng, value: Any) -> pd.DataFrame:
    """The table with another value in one cell; other columns as they are."""
    out, j = frame.copy(), int(rng.integers(frame.shape[1]))
    values = out.iloc[:, j].tolist()
    values[int(rng.integers(len(values)))] = value
    try:
        column = pd.Series(values, frame.index)
    except (OverflowError, ValueError, TypeError):
        column = pd.Series(_objects(values), frame.index, dtype=object)
    out.isetitem(j, column)
    return out


def _objects(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    for k, value in enumerate(values):
        out[k] = value
    return out


def _relabelled(index: pd.Index, at: int, value: Any) -> pd.Index:
    """Labels, one of which is something else."""
    return pd.Index(
        _objects([value if k == at else own for k, own in enumerate(index)]), dtype=object
    )


def kinships(folder: Path) -> Callable[[Rng], Try]:
    """Edits of a kinship as a table, and damage of its files."""
    data, K = _table()
    options = {"structure": "hom", "data": data, "random": "batch"}
    known = quiet(ctmm.fit, "expr ~ C(celltype)", kinship=K, **options).vcomp
    ids = "".join(f"f{k} {name}\n" for k, name in enumerate(K.index)).encode()
    lower = K.to_numpy()[np.tril_indices(len(K))]
    text = "\n".join("\t".join(map(str, row)) for row in K.to_numpy()).encode()
    files: dict[str, dict[str, bytes]] = {
        "c.grm.bin": {"c.grm.bin": lower.astype("<f4").tobytes(), "c.grm.id": ids},
        "c.rel": {"c.rel": text, "c.rel.id": b"#FID IID\n" + ids},
        "c.csv": {"c.csv": K.to_csv().encode()},
        "c.tsv": {"c.tsv": K.to_csv(sep="\t").encode()},
        "c.csv.gz": {"c.csv.gz": gzip.compress(K.to_csv().encode())},
    }

    def fitted(kinship: Any, expected: str) -> str:
        found = quiet(ctmm.fit, "expr ~ C(celltype)", kinship=kinship, **options).vcomp
        if expected == REFUSED:
            return "it is no kinship of these donors"
        if expected == SAME and not np.allclose(found, known, rtol=1e-5, atol=1e-8):
            return "other components"
        return ""

    def read(name: str, expected: str) -> str:
        path = str(folder / name)
        return fitted(path if expected == SAME else ctmm.read_kinship(path), expected)

    def attempt(rng: Rng) -> Try:
        if rng.random() < 0.5:
            given, expected = _square_edit(K, rng)
            return Try(f"kinship {expected}", lambda: fitted(given, expected), given)
        name = str(pick(rng, list(files)))
        own = dict(files[name])
        victim = str(pick(rng, list(own)))
        own[victim] = _file_edit(own[victim], rng, victim.endswith((".bin", ".gz")))
        for other, content in own.items():
            (folder / other).write_bytes(content)
        return Try(f"file {name}", lambda: read(name, ANY), own[victim][:300])

    return attempt


def _file_edit(data: bytes, rng: Rng, binary: bool) -> bytes:
    """The same damaged: bits, or words and lines of a text."""
    if binary or rng.random() < 0.3:
        return damaged(data, rng)
    lines = data.decode().split("\n")
    at = int(rng.integers(len(lines)))
    what = int(rng.integers(5))
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[int(rng.integers(len(lines)))])
    elif what == 2:
        lines.insert(at, str(pick(rng, WORDS)))
    else:
        words = lines[at].split("\t" if "\t" in lines[at] else " ")
        words[int(rng.integers(len(words)))] = str(pick(rng, WORDS))
        lines[at] = "\t".join(words)
    return "\n".join(lines).encode()


def genotypes(folder: Path) -> Callable[[Rng], Try]:
    """Edits of genotypes as a table, damage of their files, and windows of genes."""
    pytest.importorskip("bed_reader")
    N, M = 24, 30
    source = np.random.default_rng(2)
    G = ctmm.simulate.simulate_genotypes(N, M, missing=0.05, spacing=1000, rng=2)
    table, variants = G.frame(), G.variants
    genes = ctmm.simulate.simulate_genes(3, N, 2, n_pcs=0, rng=3)
    positions = pd.DataFrame(
        {"chromosome": ["1", "2", "1"], "start": [2000, 4000, 900_000],
         "end": [4000, 5000, 900_001]},
        ["g1", "g2", "g3"],
    )  # fmt: skip
    options: dict[str, Any] = {"data": genes, "structure": "hom", "window": 5000}

    def scan(given: Any, places: Any, same: bool = False) -> str:
        found = quiet(ctmm.fit_genes, "~ C(celltype)", genotypes=given, positions=places, **options)
        own = found.table.set_index("gene")[["hom", "cis:hom"]]
        if same and not np.allclose(own, known, equal_nan=True, rtol=1e-6):
            return "other components"
        if set(found.table["status"]) == {"failed"}:
            return "all genes failed, and there is no error"
        return ""

    known = quiet(
        ctmm.fit_genes, "~ C(celltype)", genotypes=G, positions=positions, **options
    ).table.set_index("gene")[["hom", "cis:hom"]]  # fmt: skip
    write_bed(folder, table, variants)
    write_pgen(folder, table, variants)
    whole = {
        name: (folder / name).read_bytes()
        for name in ("c.bed", "c.bim", "c.fam", "c.pgen", "c.pvar", "c.psam")
    }
    del source

    def by_file(ending: str) -> str:
        found = ctmm.Genotypes(folder / f"c.{ending}")
        found.frame()
        first = found.variants.iloc[0] if len(found) else None
        if first is not None:
            len(found.window(first["chromosome"], 0, first["position"], maf=0.1).frame())
        return scan(found, positions)

    def attempt(rng: Rng) -> Try:
        what = int(rng.integers(4))
        if what == 0:
            ending = str(pick(rng, ["bed", "pgen"]))
            mine = ("bed", "bim", "fam") if ending == "bed" else ("pgen", "pvar", "psam")
            victim = f"c.{pick(rng, list(mine))}"
            for name, content in whole.items():
                edit = name == victim
                binary = name in ("c.bed", "c.pgen")
                (folder / name).write_bytes(_file_edit(content, rng, binary) if edit else content)
            return Try(f"genotypes {ending}", lambda: by_file(ending), victim)
        if what == 1:
            order = rng.permutation(table.index), rng.permutation(table.columns)
            other = table.loc[order[0], order[1]]
            places = positions.sample(frac=1, random_state=int(rng.integers(99)))
            places = places.assign(chromosome="chr" + places["chromosome"])
            named = ctmm.Genotypes(other, variants.loc[rng.permutation(variants.index)])
            return Try("genotypes same", lambda: scan(named, places, True))
        if what == 2:
            frame, where = table, variants
            if rng.random() < 0.5:
                frame = _put(frame, rng, pick(rng, VALUES))
            else:
                where = _put(where, rng, pick(rng, VALUES))
            if rng.random() < 0.3:
                frame = frame.set_axis(_relabelled(frame.index, 3, pick(rng, VALUES)))
            return Try(
                "genotypes table", lambda: scan(ctmm.Genotypes(frame, where), positions),
                (frame, where),
            )  # fmt: skip
        places = _put(positions, rng, pick(rng, VALUES))
        if rng.random() < 0.3:
            places = places.drop(columns=str(pick(rng, list(places.columns))))
        if rng.random() < 0.3:
            places = places.set_axis(_relabelled(places.index, 0, pick(rng, VALUES)))
        return Try("genotypes positions", lambda: scan(G, places), places)

    return attempt
