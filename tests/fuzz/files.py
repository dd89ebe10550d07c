"""Readers of files: edits of JSON and of scans, flipped bits and cut ends, also of pickles.

Every damaged file must be a CTMMError, or be read as what was written.  Edits come in two kinds:
plain ones, which the checksum must notice, and sealed ones, by someone who makes a checksum anew:
these may be read, but nothing that is not a CTMMError may come out of reading, display and
predictions.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import ctmm_formula as ctmm
from ctmm_formula.results import serialize
from ctmm_formula.scan import store

from .harness import Try

Rng = np.random.Generator
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2**35, 10**400, 0.5, float("inf"), "", "a", "__import__('os')", "nan",
    [], [1], {}, {"array": {}}, {"record": "Domain", "content": {}}, {"float": "x"},
)  # fmt: skip
GENES = 12
OTHER = "other values than were written"


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where something can be changed."""
    if not isinstance(value, (dict, list)):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(item, (*path, key))


def edited(content: Any, rng: Rng) -> Any:
    """The same with one place changed, gone or doubled."""
    content = copy.deepcopy(content)
    every = list(places(content))
    # arrays are most of the places: half of the edits go elsewhere
    short = [place for place in every if not (len(place) > 1 and place[-2] == "data")]
    chosen = short if rng.random() < 0.5 else every
    *way, last = chosen[rng.integers(len(chosen))]
    home = content
    for key in way:
        home = home[key]
    what = rng.integers(4)
    if what == 0:
        del home[last]
    elif what == 1 and isinstance(home, list):
        home.insert(last, copy.deepcopy(home[last]))
    else:
        home[last] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return content


def damaged(data: bytes, rng: Rng) -> bytes:
    """The same with a bit flipped, cut, or with a run of other bytes."""
    at, out = int(rng.integers(len(data))), bytearray(data)
    what = rng.integers(4)
    if what == 0:
        return data[:at]
    if what == 1:
        out[at : at + 8] = rng.bytes(8)
    else:
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def quiet(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of a call, without the package's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        return function(*arguments, **options)


def pickles(folder: Path) -> Callable[[Rng], Try]:
    """Flipped bits and cut ends of what ``save`` wrote, which holds code: never sealed edits."""
    fit = quiet(ctmm.fit, "expr ~ C(celltype)", data=ctmm.load_example(), method="he")
    file = folder / "fit.pickle"
    fit.save(file)
    data, text = file.read_bytes(), fit.to_json()

    def attempt(rng: Rng) -> Try:
        bits = damaged(data, rng)

        def read() -> str:
            file.write_bytes(bits)
            return "" if ctmm.CTMMResults.load(file).to_json() == text else OTHER

        return Try("pickle bits", read)

    return attempt


def jsons(folder: Path) -> Callable[[Rng], Try]:
    """Edits of a fit as JSON."""
    table = ctmm.load_example()
    table = table[table["donor"].isin(sorted(set(table["donor"]))[:24])]
    fit = quiet(
        ctmm.fit, "expr ~ C(celltype) + PC1", random="batch", data=table, method="he"
    )  # fmt: skip
    text = fit.to_json()
    content = json.loads(text)

    def plain(changed: str) -> str:
        return "" if ctmm.CTMMResults.from_json(changed).to_json() == text else OTHER

    def sealed(changed: str) -> str:
        back = ctmm.CTMMResults.from_json(changed)
        repr(back)
        str(back.params)
        back.predict()
        back.predict(table.head(3))
        return ""

    def attempt(rng: Rng) -> Try:
        if (what := rng.integers(3)) == 0:
            bits = damaged(text.encode(), rng).decode("latin-1")
            return Try("json bits", lambda: plain(bits))
        other = edited(content, rng)
        if what == 1:
            return Try("json edit", lambda: plain(json.dumps(other)))
        if isinstance(other, dict) and isinstance(other.get("parts"), list):
            other["checksum"] = serialize.checksum(other["parts"])
        return Try("json sealed", lambda: sealed(json.dumps(other)))

    return attempt


def scan_files(folder: Path) -> Callable[[Rng], Try]:
    """Edits of a scan's file, its metadata, its rows and its bytes."""
    genes = [f"gene{k:03d}" for k in range(1, GENES + 1)]
    scan = quiet(
        ctmm.fit_genes, "~ C(celltype) + PC1", data=ctmm.load_genes(), genes=genes, tests=[],
        method="he",
    )  # fmt: skip
    return _scan_files(folder, scan, {})


def window_files(folder: Path) -> Callable[[Rng], Try]:
    """The same of a scan whose genes have kinships of their own windows."""
    G = ctmm.simulate.simulate_genotypes(24, 60, rng=1)
    own = ctmm.simulate.Heredity(G, cis=0.3)
    genes = ctmm.simulate.simulate_genes(GENES, 24, 2, heredity=own, rng=2)
    related = {"genotypes": G, "positions": genes.positions, "kinship": {"trans": G.kinship()}}
    scan = quiet(
        ctmm.fit_genes, "~ C(celltype)", data=genes, structure="hom", window=10**6, maf=0.05,
        tests=["heritability", "jackknife"], **related,
    )  # fmt: skip
    return _scan_files(folder, scan, {"data": genes, **related})


def _scan_files(folder: Path, scan: ctmm.Scan, data: Mapping[str, Any]) -> Callable[[Rng], Try]:
    """The same of any scan, read again with its data, if there are any."""
    path = folder / "scan.parquet"
    scan.to_parquet(path)
    whole, table = path.read_bytes(), pq.read_table(path)
    about = json.loads(table.schema.metadata[store.KEY])

    def plain() -> str:
        back = ctmm.read_scan(path)
        same = back.table.equals(scan.table) and dict(back.call) == dict(scan.call)
        return "" if same else OTHER

    def sealed() -> str:
        back = ctmm.read_scan(path)
        str(back)
        assert back.vcomp is not None
        if data:
            quiet(ctmm.read_scan(path, **data).gene, back.genes[0])
        return ""

    def write(table: Any, about: Any) -> None:
        pq.write_table(table.replace_schema_metadata({store.KEY: json.dumps(about)}), path)

    def attempt(rng: Rng) -> Try:
        what = rng.integers(4)
        if what == 0:
            path.write_bytes(damaged(whole, rng))
            return Try("scan bits", plain)
        if what == 1:
            low, high = np.sort(rng.integers(0, GENES + 1, 2))
            write(table.slice(low, min(high - low, GENES - 1)), about)
            return Try("scan rows", plain)
        other = edited(about, rng)
        if what == 2:
            write(table, other)
            return Try("scan edit", plain)
        rest = {name: value for name, value in other.items() if name != "checksum"}
        write(table, {**rest, "checksum": store._checksum(rest, table)})
        return Try("scan sealed", sealed)

    return attempt


# formulas that run something: the file is sealed with a checksum of its own

POISON = (
    "__import__('os').system('touch {mark}')", "open('{mark}', 'w')", "np.save('{mark}', PC1)",
    "PC1.to_csv('{mark}')", "np.asarray(PC1).tofile('{mark}')", "eval(\"open('{mark}','w')\")",
    "I(PC1 + 0*len(str(open('{mark}','w'))))", "(lambda: open('{mark}', 'w'))()",
    "[open('{mark}', 'w') for i in 'a']", "np.lib.npyio.open('{mark}', 'w')",
    "C(PC1, open('{mark}', 'w'))", "Q(open('{mark}', 'w').name)", "bs(PC1, df=open('{mark}', 'w'))",
    "().__class__.__base__.__subclasses__()", "np.log(PC1, out=open('{mark}', 'w'))",
    "getattr(np, 'save')('{mark}', PC1)", "f'{{open(\"{mark}\", \"w\")}}'",
    "Treatment(open('{mark}', 'w'))", "poly(PC1, degree=open('{mark}','w'))",
    "np.where(PC1 > 0, open('{mark}', 'w'), 0)", "I(PC1 if open('{mark}', 'w') else PC1)",
    "9**9**9**9", "I(9**9**9 + PC1)", "bs(PC1, df=10**9)", "PC1.eval('@__builtins__')",
)  # fmt: skip


def poisonable(folder: Path) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """Read and use a fit, and a scan, with a factor of their formula exchanged and sealed anew."""
    data, about = ctmm.load_genes(), {"method": "he", "structure": "hom"}
    table = ctmm.load_example()
    fixed = "C(celltype) + PC1"
    text = quiet(ctmm.fit, f"expr ~ {fixed}", data=table, **about).to_json()
    path, made = folder / "scan.parquet", folder / "made.parquet"
    quiet(ctmm.fit_genes, f"~ {fixed}", data=data, genes=["gene001"], **about).to_parquet(made)
    held = pq.read_table(made)

    def by_json(code: str) -> None:
        content = json.loads(text)
        content["parts"][0]["design"]["coding"]["fixed"] = f"C(celltype) + {code}"
        content["checksum"] = serialize.checksum(content["parts"])
        back = ctmm.CTMMResults.from_json(json.dumps(content))
        repr(back)
        back.predict(table.head(3))

    def by_scan(code: str) -> None:
        content = json.loads(held.schema.metadata[store.KEY])
        content["call"]["formula"] = f"~ C(celltype) + {code}"
        del content["checksum"]
        content["checksum"] = store._checksum(content, held)
        pq.write_table(held.replace_schema_metadata({store.KEY: json.dumps(content)}), path)
        str(ctmm.read_scan(path))
        quiet(ctmm.read_scan(path, data).gene, "gene001")

    return by_json, by_scan


def poison(folder: Path) -> Callable[[Rng], Try]:
    """A poisoned formula in a file with a checksum that is right: nothing of it runs."""
    mark, ways = folder / "ran", poisonable(folder)

    def attempt(rng: Rng) -> Try:
        code = POISON[rng.integers(len(POISON))].replace("{mark}", str(mark))
        by = ways[rng.integers(2)]

        def work() -> str:
            try:
                by(code)
            except ctmm.FormulaError:
                if mark.exists():
                    return f"{code} ran"
                raise
            return f"{code} was evaluated"

        return Try("poison", work, (by.__name__, code))

    return attempt
