"""Scans in parquet files: finished blocks as they come, the whole table at the end.

While a scan runs, ``scan.parquet.parts/`` holds ``call.json``, which says what is being
computed, a lock of the process at work, and one file for each finished block of genes.  A file is
written under another name and renamed when it is complete, so that a name is a promise.  In the
end the table goes to ``scan.parquet`` in the same way and the directory is removed.

Every file says which genes it is to hold and carries a checksum of all its values and of what it
says of itself: what was damaged, cut or edited since is an error, never a result.
"""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from ..arguments import choose
from ..design.table import amount, listing
from ..errors import CTMMWarning, DataError
from ..paths import said, write_whole
from ..structures import CROSSINGS, Crossing, Structure, cross
from .columns import KINDS, LOG, Block, Layout

KEY = b"ctmm_formula"
FORMAT = 2
LOCK, NOTE = "lock", "call.json"
_OTHER = "give another out=, or overwrite=True to replace it"
_ANEW = "take a copy that is whole, or compute it anew (another out=, or overwrite=True)"
_OURS = re.compile(r"lock|call\.json|table\.parquet|block-\d{6,}\.parquet|\.ctmm-\d+-\d+\.tmp")
"""Names of the files beside a scan that is not finished."""
_BROKEN = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError,
    MemoryError,
)  # fmt: skip
"""What an edited file can make its reader raise."""
_TEXT, _MAYBE = (str,), (str, type(None))
_CALL: dict[str, tuple[type, ...]] = {
    "formula": _TEXT, "method": _TEXT, "bounds": _TEXT, "noise": _TEXT, "donor": _TEXT,
    "formula_engine": _TEXT, "celltype": _MAYBE, "n_cells": _MAYBE, "summary": _MAYBE,
    "proportions": (str, list, type(None)), "noise_floor": (int, float), "one_step": (bool,),
    "entropy": (int,), "one_mean": _TEXT, "doubts": (list,),
}  # fmt: skip
"""What a reader takes from the settings of a scan, and its types."""


_OF_WINDOWS: dict[str, tuple[type, ...]] = {
    "window": (int,), "maf": (int, float), "windows": _TEXT, "kinship": (list,),
}  # fmt: skip
"""The same of a scan whose genes have windows of their own."""


@dataclass(frozen=True)
class _File:
    """A file of ours that was read and found whole."""

    block: Block
    information: dict[str, Any]


def fingerprint(*parts: object) -> str:
    """Digest of arrays, texts and whatever JSON can hold."""
    digest = blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()


class Store:
    """The finished blocks of one scan.

    Parameters
    ----------
    path : Path
        Of the table in the end.
    call : dict
        Settings by name, as text or digests: a store of other settings is refused.
    kinds : dict
        Columns of a block.
    overwrite : bool
        Remove what is there.

    Raises
    ------
    DataError
        Pyarrow is missing; entered: there is a scan with other settings, another process is at
        work on it, or nothing can be written there.
    """

    def __init__(
        self, path: Path, call: Mapping[str, Any], kinds: Mapping[str, str], overwrite: bool
    ) -> None:
        arrow()
        path = Path(os.path.realpath(path))  # a link stays, its file is written
        self.path, self.call, self.kinds = path, dict(call), dict(kinds)
        self.parts = _parts(path)
        self.overwrite = overwrite
        self._lock: _Lock | None = None
        self._ended: _File | None = None
        if path.is_dir():
            raise DataError(f"out={str(path)!r} is a directory: name a file, 'scan.parquet'")
        if not path.parent.is_dir():
            raise DataError(f"out={str(path)!r}: there is no directory {str(path.parent)!r}")

    def __enter__(self) -> Store:
        """Claim the place: one process at a time, and only for the same scan."""
        if self.path.exists() and not self.overwrite:
            ended = _load_scan(self.path)
            self._compare(ended.information["call"], self.path)
            self._ended = _File(_as_kinds(ended.block, self.kinds, self.path), ended.information)
            self._clear_after_kill()
            return self
        try:
            self.parts.mkdir(exist_ok=True)
            self._lock = _Lock(self.parts / LOCK)
            self._claim()
        except OSError as error:
            self.__exit__()
            raise _unwritable(self.path, error) from None
        except DataError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _claim(self) -> None:
        """Check what is there, and say what this scan is."""
        foreign = _foreign(self.parts)
        if foreign:
            raise DataError(
                f"{str(self.parts)!r} holds files that are not of a scan, {listing(foreign)}: move "
                "them, or give another out="
            )
        note = self.parts / NOTE
        if self.overwrite:
            self.path.unlink(missing_ok=True)
            for old in sorted(self.parts.glob("block-*.parquet")):
                old.unlink()
            note.unlink(missing_ok=True)
        if note.exists():
            self._compare(_noted(note), self.parts)
            return
        if any(self.parts.glob("block-*.parquet")):
            raise DataError(
                f"{str(self.parts)!r} holds blocks of nobody knows which scan: {_OTHER}"
            )
        content = {"format": FORMAT, "call": self.call, "checksum": fingerprint(self.call)}
        write_whole(note, lambda part: part.write_text(json.dumps(content), encoding="utf-8"))

    def _clear_after_kill(self) -> None:
        """Remove the blocks of a scan whose table is there, unless someone is at work on them."""
        if not (self.parts / LOCK).is_file():
            return  # nothing of ours
        with suppress(OSError, DataError):
            self._lock = _Lock(self.parts / LOCK)
            self._clear()

    def _clear(self) -> None:
        """Remove our files, and the directory if nothing else is in it."""
        for name in sorted(os.listdir(self.parts), key=lambda name: name == LOCK):
            if _OURS.fullmatch(name):
                with suppress(OSError):
                    (self.parts / name).unlink()
        self.__exit__()
        left = _foreign(self.parts)
        with suppress(OSError):
            self.parts.rmdir()
        if left:
            warnings.warn(
                f"{str(self.parts)!r} stays: it holds files that are not of the scan, "
                f"{listing(left)}",
                CTMMWarning,
                stacklevel=4,
            )

    def _compare(self, there: Mapping[str, Any], where: Path) -> None:
        names = [*self.call, *(name for name in there if name not in self.call)]
        other = [name for name in names if self.call.get(name) != there.get(name)]
        if other:
            raise DataError(
                f"{str(where)!r} holds a scan with other settings ({', '.join(other)}): {_OTHER}"
            )

    @staticmethod
    def entropy(path: Path) -> int | None:
        """The seed of a scan that was begun there, if any.

        Raises
        ------
        DataError
            What is there is damaged, or no scan.
        """
        path = Path(os.path.realpath(path))
        note = _parts(path) / NOTE
        if path.is_file():
            call = _load_scan(path).information["call"]
        elif note.is_file():
            call = _noted(note)
        else:
            return None
        seed = call.get("entropy")
        return seed if isinstance(seed, int) and seed >= 0 else None  # or other settings

    def finished(self) -> Block | None:
        """The table of a scan that ended, without adjusted p values."""
        return None if self._ended is None else self._ended.block

    def check(self, data: str) -> None:
        """The finished table must be that of these data (digests of all blocks)."""
        there = "" if self._ended is None else self._ended.information["data"]
        if not there:
            raise DataError(
                f"{str(self.path)!r} was written by to_parquet and cannot be gone on with: {_OTHER}"
            )
        if there != data:
            raise DataError(
                f"{str(self.path)!r} was made from other expression or noise values, or "
                f"genotypes: {_OTHER}"
            )

    def block(self, number: int, data: str, genes: Sequence[str]) -> Block | None:
        """The finished block of these genes, if it is there.

        Raises
        ------
        DataError
            It is damaged, or was made from other data or with other settings.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            found = _load(path)
            block = _as_kinds(found.block, self.kinds, path)
        except DataError as error:
            raise DataError(
                f"{error} (remove it, and the same call computes its "
                f"{amount(len(genes), 'gene')} anew)"
            ) from None
        other = found.information.get("scan") != fingerprint(self.call)
        if other or found.information["genes"] != list(genes):
            raise DataError(
                f"{str(path)!r} is a block of another scan: remove it, and the same call computes "
                f"its {amount(len(genes), 'gene')} anew"
            )
        if found.information["data"] != data:
            raise DataError(
                f"{str(path)!r} was made from other expression or noise values, or "
                f"genotypes: {_OTHER}"
            )
        return block

    def add(self, number: int, data: str, block: Block) -> None:
        """Keep a finished block."""
        about = {"data": data, "scan": fingerprint(self.call)}
        _write(self._path(number), block, self.kinds, about)

    def finish(self, table: pd.DataFrame, layout: Layout, data: str) -> None:
        """Write the table of all genes and remove the blocks."""
        whole = self.parts / "table.parquet"
        write_table(whole, table, layout, self.call, data)
        try:
            whole.replace(self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self._clear()

    def _path(self, number: int) -> Path:
        return self.parts / f"block-{number:06d}.parquet"


def _parts(path: Path) -> Path:
    """Where the blocks of a scan to be written there are."""
    return path.with_name(path.name + ".parts")


def _foreign(parts: Path) -> list[str]:
    """Names in the directory of blocks that no scan gives."""
    return sorted(name for name in os.listdir(parts) if not _OURS.fullmatch(name))


def _noted(note: Path) -> dict[str, Any]:
    """The settings of a scan that was begun.

    Raises
    ------
    DataError
        The note is damaged, or of another version.
    """
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        _check_format(note, content["format"])
        whole = content["checksum"] == fingerprint(content["call"])
        if not whole or not isinstance(content["call"], dict):
            raise ValueError("its checksum is another")
    except DataError:
        raise
    except (OSError, *_BROKEN) as error:
        raise DataError(f"{str(note)!r} cannot be read ({said(error)}): {_OTHER}") from None
    return content["call"]


class _Lock:
    """A file held by one thread of one process until it is closed or the process ends.

    Raises
    ------
    DataError
        Another process or thread holds it.
    """

    _held: set[tuple[int, Path]] = set()  # noqa: RUF012  (shared by all: locks are of processes)
    _guard = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._key = os.getpid(), path
        with self._guard:
            # before the file is opened: closing any handle of it lets go of the lock
            if self._key in self._held:
                raise _busy(path, "another thread of this process")
            self._file = self._locked(path)
            self._held.add(self._key)

    @staticmethod
    def _locked(path: Path) -> IO[str]:
        file = path.open("a")
        try:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise _busy(path, "another process") from None
        except (ImportError, OSError):
            pass  # no locks on this system or for these files: as safe as its user
        return file

    def close(self) -> None:
        """Let others have it."""
        with self._guard:
            self._file.close()
            self._held.discard(self._key)


def _busy(path: Path, who: str) -> DataError:
    return DataError(f"{who} is at work on {str(path.parent)!r}: wait for it, or give another out=")


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{str(path)!r} cannot be written ({said(error)}): finished blocks are "
        "kept, so that the same call goes on when there is room, or give another place"
    )


def write_table(
    path: Path, table: pd.DataFrame, layout: Layout, call: Mapping[str, Any], data: str = ""
) -> None:
    """Write a scan's table with what :func:`load` needs."""
    information = {
        "data": data,
        "call": dict(call),
        "layout": {
            "celltypes": layout.celltypes,
            "fixed": layout.fixed,
            "structures": [_plain(own.inner) for own in layout.structures],
            "crossing": _crossing(layout),
            "components": layout.components,
            "tests": layout.tests,
            "errors": layout.errors,
            "ratios": layout.ratios,
            "one_step": layout.one_step,
            "parts": layout.parts,
            "shares": layout.shares,
            "heritability": layout.heritability,
            "genetic": [[name, _plain(own)] for name, own in layout.genetic],
            "windows": layout.windows,
        },
    }
    kinds = layout.kinds()
    block = {str(name): table[name].to_numpy() for name in table.columns}
    _write(path, block, {name: kinds.get(name, "number") for name in block}, information)


def load(path: Path) -> tuple[pd.DataFrame, Layout, dict[str, Any]]:
    """Table, layout and call of a scan in a file.

    Raises
    ------
    DataError
        There is no such file, or it holds no scan.
    """
    found = _load_scan(path)
    information = found.information
    try:
        layout = _layout(information["layout"])
        call = information["call"]
        for name, kinds in (_CALL | (_OF_WINDOWS if layout.windows else {})).items():
            if not isinstance(call[name], kinds):
                raise TypeError(f"{name} is {type(call[name]).__name__}")
        if call["entropy"] < 0:
            raise ValueError("entropy is negative")
        own = _with_logs(found.block, layout)
        block = {**own, **_as_kinds(own, layout.kinds(), path)}
        table = pd.DataFrame(block)
        whole = [*layout.tested, *(LOG + name for name in layout.tested)]
        absent = {f"{p}_{suffix}" for p in whole for suffix in ("bonferroni", "bh")}
        if absent - set(table.columns):
            raise KeyError(min(absent - set(table.columns)))
    except _BROKEN as error:
        raise _damaged(path, said(error)) from None
    return table, layout, call


def _with_logs(block: Block, layout: Layout) -> Block:
    """The columns with logarithms of p values, which files of earlier versions lack."""
    names = [name for name in layout.kinds() if name.startswith(LOG)]
    names += [f"{LOG}{p}_{suffix}" for p in layout.tested for suffix in ("bonferroni", "bh")]
    with np.errstate(divide="ignore"):
        more = {
            name: np.log10(block[name.removeprefix(LOG)])
            for name in names
            if name not in block and name.removeprefix(LOG) in block
        }
    return {**block, **more}


def _layout(raw: Mapping[str, Any]) -> Layout:
    """What the columns stand for, as :func:`write_table` wrote it."""
    names = _texts(raw["celltypes"])
    crossing = _crossing_of(raw.get("crossing"), names)
    inner = [_structure(own, names) for own in raw["structures"]]
    structures = [own if crossing is None else cross(own, *crossing) for own in inner]
    genetic = [(_texts([name])[0], _structure(own, names)) for name, own in raw.get("genetic", [])]
    if not isinstance(raw.get("windows", False), bool):
        raise TypeError("windows")
    components = tuple(_texts(own) for own in raw["components"])
    if not structures or len(components) != len(structures):
        raise ValueError("components")
    if any(len(c) < len(s.labels) for c, s in zip(components, structures, strict=True)):
        raise ValueError("components")
    ratios = tuple((int(a), int(b)) for a, b in raw["ratios"])
    if any(not 0 <= k < len(structures) for pair in ratios for k in pair):
        raise ValueError("ratios")
    tests = {name: _texts(details) for name, details in raw["tests"].items()}
    if not isinstance(raw["one_step"], bool):
        raise TypeError("one_step")
    return Layout(
        names, _texts(raw["fixed"]), tuple(structures), components, tests, _texts(raw["errors"]),
        ratios, raw["one_step"], _parts_of(raw.get("parts", {}), tests),
        _texts(raw.get("shares", [])), _texts(raw.get("heritability", [])),
        tuple(genetic), raw.get("windows", False),
    )  # fmt: skip


def _plain(own: Structure) -> dict[str, Any]:
    """A structure as JSON."""
    return {"name": own.name, "labels": list(own.labels), "basis": own.basis.tolist()}


def _structure(raw: Mapping[str, Any], names: tuple[str, ...]) -> Structure:
    """The inverse."""
    labels, basis = _texts(raw["labels"]), np.array(raw["basis"], dtype=float)
    if basis.shape != (len(labels), len(names), len(names)) or not np.isfinite(basis).all():
        raise ValueError(f"basis of {raw['name']!r}")
    return Structure(_texts([raw["name"]])[0], names, labels, basis)


def _crossing(layout: Layout) -> list[Any] | None:
    """Groups or conditions as JSON: kind, column, levels, span, names of the effects."""
    crossed = layout.structures[0].crossed
    return None if crossed is None else [*crossed.crossing, layout.structures[0].celltypes]


def _crossing_of(raw: Any, celltypes: Sequence[str]) -> tuple[Crossing, tuple[str, ...]] | None:
    """The inverse."""
    if raw is None:
        return None
    kind, column, levels, (low, high), effects = raw
    found = Crossing(str(kind), str(column), _texts(levels), (float(low), float(high)))
    choose("crossing", kind, CROSSINGS)
    if set(_texts(effects)) - set(found.effects(celltypes)):
        raise ValueError("effects of groups or conditions")
    return found, _texts(effects)


def _parts_of(raw: Any, tests: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
    """Parts of tests; files of earlier versions have none."""
    if not isinstance(raw, dict) or not set(raw) <= set(tests):
        raise TypeError("parts")
    for own in raw.values():
        if not isinstance(own, dict) or not all(isinstance(v, bool) for v in own.values()):
            raise TypeError("parts")
    return raw


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"a list of texts is {type(values).__name__}")
    return tuple(values)


# ---------------------------------------------------------------------------------------------
# files


def arrow() -> Any:
    """Pyarrow with its parquet part, or an error that says how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "scans in files need pyarrow: pip install 'ctmm-formula[scan]'; without out= the scan "
            "stays in memory"
        ) from None
    return pyarrow


def _write(
    path: Path, block: Block, kinds: Mapping[str, str], information: Mapping[str, Any]
) -> None:
    pa = arrow()
    columns = {}
    for name, kind in kinds.items():
        try:
            columns[name] = pa.array(block[name], _types()[kind])
        except (pa.ArrowException, *_BROKEN) as error:
            raise DataError(
                f"column {name!r} cannot be written as a {kind} ({said(error)}): drop it from the "
                "table, or change its type"
            ) from None
    table = pa.table(columns)
    information = {"format": FORMAT, "genes": list(block["gene"]), **information}
    information["checksum"] = _checksum(information, table)
    table = table.replace_schema_metadata({KEY: json.dumps(information).encode()})
    try:
        write_whole(path, lambda part: pa.parquet.write_table(table, part))
    except OSError as error:
        raise _unwritable(path, error) from None


def _types() -> dict[str, Any]:
    """Kind of a column -> its type in a file."""
    pa = arrow()
    return {"text": pa.string(), "flag": pa.bool_(), "count": pa.int64(), "number": pa.float64()}


def _checksum(information: Mapping[str, Any], table: Any) -> str:
    """Digest of all values of a table, their names and types, and what it says of itself."""
    parts: list[object] = [dict(information)]
    for name in table.column_names:
        column = table.column(name)
        parts += [name, str(column.type), _values(column)]
    return fingerprint(*parts)


def _values(column: Any) -> Any:
    """A column as an array, texts as a list."""
    if column.null_count or column.type not in _types().values():
        raise TypeError(f"values of type {column.type}, {column.null_count} of them missing")
    is_text = column.type == _types()["text"]
    return column.to_pylist() if is_text else column.to_numpy(zero_copy_only=False)


def _load(path: Path) -> _File:
    """A file of ours, whole.

    Raises
    ------
    DataError
        It cannot be read, is not of a scan, of another version, damaged or not complete.
    """
    pa = arrow()
    try:
        # one open file: what is checked is what is used
        with path.open("rb") as file:
            table = pa.parquet.ParquetFile(file).read()
    except (OSError, pa.ArrowException, *_BROKEN) as error:
        raise DataError(
            f"{str(path)!r} cannot be read as parquet ({said(error)}): {_ANEW}"
        ) from None
    held = table.schema.metadata or {}
    if KEY not in held:
        raise DataError(f"{str(path)!r} was not written by a scan: {_OTHER}")
    try:
        information = json.loads(held[KEY])
        _check_format(path, information["format"])
        checksum, asked = information.pop("checksum"), information["genes"]
        there = table.column("gene").to_pylist() if "gene" in table.column_names else []
        if there != asked:
            raise ValueError(
                f"it holds {len(there)} of {len(asked)} genes"
                if len(there) != len(asked)
                else "its genes are others than those asked for"
            )
        if checksum != _checksum(information, table):
            raise ValueError("its values are not those that were written")
        block: Block = {}
        for name in table.column_names:
            values = _values(table.column(name))
            block[name] = np.array(values, dtype=object) if isinstance(values, list) else values
    except DataError:
        raise
    except (pa.ArrowException, *_BROKEN) as error:
        raise _damaged(path, said(error)) from None
    return _File(block, information)


def _load_scan(path: Path) -> _File:
    """The same of a scan that ended."""
    found = _load(path)
    if "layout" not in found.information or not isinstance(found.information.get("call"), dict):
        raise DataError(
            f"{str(path)!r} holds a block of genes of a scan that was not finished: {_OTHER}"
        )
    return found


def _check_format(path: Path, version: object) -> None:
    if version == FORMAT:
        return
    newer = isinstance(version, int) and version > FORMAT
    fix = "update ctmm_formula" if newer else "read it with the ctmm_formula that wrote it"
    raise DataError(
        f"{str(path)!r} is in version {version!r} of the format of scans, this package reads "
        f"{FORMAT}: {fix}, or compute it anew"
    )


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{str(path)!r} is damaged or was edited ({why}): {_ANEW}")


def _as_kinds(block: Block, kinds: Mapping[str, str], path: Path) -> Block:
    """The columns of these kinds."""
    out: Block = {}
    for name, kind in kinds.items():
        dtype = np.dtype(KINDS[kind][0])
        if name not in block or block[name].dtype != dtype:
            raise _damaged(path, f"there is no column {name!r} of kind {kind}")
        out[name] = block[name]
    return out
