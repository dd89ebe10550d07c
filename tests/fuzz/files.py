"""Fuzz the readers of files: edits of JSON and of scans, flipped bits, cut ends.

    python tests/fuzz/files.py --seed 1 --rounds 2000

Every damaged file must be a CTMMError, or be read as what was written.  Edits come in two kinds:
plain ones, which the checksum must notice, and sealed ones, by someone who makes a checksum anew:
these may be read, but nothing that is not a CTMMError may come out of reading, display and
predictions.  Prints one line per fault, and the counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import ctmm_formula as ctmm
from ctmm_formula.results import serialize
from ctmm_formula.scan import store

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 3, 2**35, 10**400, 0.5, float("inf"), "", "a", "__import__('os')", "nan",
    [], [1], {}, {"array": {}}, {"record": "Domain", "content": {}}, {"float": "x"},
)  # fmt: skip
GENES = 12


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where something can be changed."""
    if not isinstance(value, (dict, list)):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        yield from places(item, (*path, key))


def edited(content: Any, rng: np.random.Generator) -> Any:
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


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
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


def outcome(work: Callable[[], bool]) -> str:
    """What became of a file: refused, the same, other values, or an error that is not ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "same" if work() else "OTHER VALUES"
    except ctmm.CTMMError:
        return "refused"
    except Exception as error:
        return f"RAW {type(error).__name__}: {str(error)[:80]}"


def fuzz_json(rng: np.random.Generator, rounds: int) -> Counter[str]:
    """Edits of a fit as JSON."""
    table = ctmm.load_example()
    table = table[table["donor"].isin(sorted(set(table["donor"]))[:24])]
    fit = ctmm.fit("expr ~ C(celltype) + PC1", random="batch", data=table, method="he")
    text = fit.to_json()
    content = json.loads(text)
    found: Counter[str] = Counter()

    def plain(changed: str) -> bool:
        return ctmm.CTMMResults.from_json(changed).to_json() == text

    def sealed(changed: str) -> bool:
        back = ctmm.CTMMResults.from_json(changed)
        repr(back)
        str(back.params)
        back.predict()
        back.predict(table.head(3))
        return True

    for _ in range(rounds):
        other = edited(content, rng)
        found[f"json edit: {outcome(partial(plain, json.dumps(other)))}"] += 1
        if isinstance(other, dict) and isinstance(other.get("parts"), list):
            other["checksum"] = serialize.checksum(other["parts"])
        found[f"json sealed: {outcome(partial(sealed, json.dumps(other)))}"] += 1
        bits = damaged(text.encode(), rng).decode("latin-1")
        found[f"json bits: {outcome(partial(plain, bits))}"] += 1
    return found


def fuzz_scan(rng: np.random.Generator, rounds: int, folder: Path) -> Counter[str]:
    """Edits of a scan's file, its metadata and its bytes."""
    data = ctmm.load_genes()
    genes = [f"gene{k:03d}" for k in range(1, GENES + 1)]
    scan = ctmm.fit_genes("~ C(celltype) + PC1", data=data, genes=genes, tests=[], method="he")
    path = folder / "scan.parquet"
    scan.to_parquet(path)
    whole, table = path.read_bytes(), pq.read_table(path)
    about = json.loads(table.schema.metadata[store.KEY])
    found: Counter[str] = Counter()

    def plain() -> bool:
        back = ctmm.read_scan(path)
        return back.table.equals(scan.table) and dict(back.call) == dict(scan.call)

    def sealed() -> bool:
        back = ctmm.read_scan(path)
        str(back)
        return back.vcomp is not None

    def write(table: Any, about: Any) -> None:
        pq.write_table(table.replace_schema_metadata({store.KEY: json.dumps(about)}), path)

    for _ in range(rounds):
        path.write_bytes(damaged(whole, rng))
        found[f"scan bits: {outcome(plain)}"] += 1
        other = edited(about, rng)
        write(table, other)
        found[f"scan edit: {outcome(plain)}"] += 1
        rest = {name: value for name, value in other.items() if name != "checksum"}
        write(table, {**rest, "checksum": store._checksum(rest, table)})
        found[f"scan sealed: {outcome(sealed)}"] += 1
        low, high = np.sort(rng.integers(0, GENES + 1, 2))
        if high - low < GENES:
            write(table.slice(low, high - low), about)
            found[f"scan rows: {outcome(plain)}"] += 1
    return found


def faults(found: Counter[str]) -> dict[str, int]:
    """What must not be."""
    return {name: count for name, count in found.items() if "RAW" in name or "OTHER" in name}


def run(seed: int, rounds: int) -> Counter[str]:
    """All kinds of damage, that many of each."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        return fuzz_json(rng, rounds) + fuzz_scan(rng, rounds, Path(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=500)
    given = parser.parse_args()
    for name, count in sorted(run(given.seed, given.rounds).items()):
        print(f"{count:6d}  {name}")
