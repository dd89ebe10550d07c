"""Scans in parquet files: finished blocks as they come, the whole table at the end.

While a scan runs, ``scan.parquet.parts/`` holds ``call.json``, which says what is being
computed, a lock of the process at work, and one file for each finished block of genes.  A file is
written under another name and renamed when it is complete, so that a name is a promise.  In the
end the table goes to ``scan.parquet`` in the same way and the directory is removed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..structures import Structure
from .columns import KINDS, Block, Layout

KEY = b"ctmm_formula"
FORMAT = 1
LOCK = "lock"
_OTHER = "give another out=, or overwrite=True to replace it"


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
        self.path, self.call, self.kinds = path, dict(call), dict(kinds)
        self.parts = _parts(path)
        self.overwrite = overwrite
        self._lock: IO[str] | None = None
        if path.is_dir():
            raise DataError(f"out={str(path)!r} is a directory: name a file, 'scan.parquet'")
        if not path.parent.is_dir():
            raise DataError(f"out={str(path)!r}: there is no directory {str(path.parent)!r}")

    def __enter__(self) -> Store:
        """Claim the place: one process at a time, and only for the same scan."""
        if self.path.exists() and not self.overwrite:
            self._compare(_information(self.path)["call"], self.path)
            shutil.rmtree(self.parts, ignore_errors=True)  # of a kill after the table was written
            return self
        try:
            self.parts.mkdir(exist_ok=True)
            self._lock = _locked(self.parts / LOCK)
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
        note = self.parts / "call.json"
        if self.overwrite:
            self.path.unlink(missing_ok=True)
            for old in sorted(self.parts.glob("block-*.parquet")):
                old.unlink()
            note.unlink(missing_ok=True)
        if note.exists():
            try:
                there = json.loads(note.read_text(encoding="utf-8"))
            except ValueError:
                raise DataError(f"{str(note)!r} cannot be read: {_OTHER}") from None
            self._compare(there, self.parts)
            return
        if any(self.parts.glob("block-*.parquet")):
            raise DataError(
                f"{str(self.parts)!r} holds blocks of nobody knows which scan: {_OTHER}"
            )
        write_whole(note, lambda part: part.write_text(json.dumps(self.call), encoding="utf-8"))

    def _compare(self, there: Mapping[str, Any], where: Path) -> None:
        names = [*self.call, *(name for name in there if name not in self.call)]
        other = [name for name in names if self.call.get(name) != there.get(name)]
        if other:
            raise DataError(
                f"{str(where)!r} holds a scan with other settings ({', '.join(other)}): {_OTHER}"
            )

    @staticmethod
    def entropy(path: Path) -> int | None:
        """The seed of a scan that was begun there, if any."""
        try:
            if path.is_file():
                return int(_information(path)["call"]["entropy"])
            text = (_parts(path) / "call.json").read_text(encoding="utf-8")
            return int(json.loads(text)["entropy"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def finished(self) -> Block | None:
        """The table of a scan that ended, without adjusted p values."""
        return _read(self.path, self.kinds)[0] if self.path.exists() else None

    def check(self, data: str) -> None:
        """The finished table must be that of these data (digests of all blocks)."""
        there = _information(self.path)["data"]
        if not there:
            raise DataError(
                f"{str(self.path)!r} was written by to_parquet and cannot be gone on with: {_OTHER}"
            )
        if there != data:
            raise DataError(
                f"{str(self.path)!r} was made from other expression or noise values: {_OTHER}"
            )

    def block(self, number: int, data: str) -> Block | None:
        """A finished block, if it is there and whole.

        Raises
        ------
        DataError
            It was made from other data.
        """
        path = self._path(number)
        if not path.exists():
            return None
        try:
            block, information = _read(path, self.kinds)
        except (DataError, KeyError):
            return None  # a disk's fault: to be done again
        if information["data"] != data:
            raise DataError(
                f"{str(path)!r} was made from other expression or noise values: {_OTHER}"
            )
        return block

    def add(self, number: int, data: str, block: Block) -> None:
        """Keep a finished block."""
        _write(self._path(number), block, self.kinds, {"data": data})

    def finish(self, table: pd.DataFrame, layout: Layout, data: str) -> None:
        """Write the table of all genes and remove the blocks."""
        whole = self.parts / "table.parquet"
        write_table(whole, table, layout, self.call, data)
        whole.replace(self.path)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.parts / f"block-{number:06d}.parquet"


def _parts(path: Path) -> Path:
    """Where the blocks of a scan to be written there are."""
    return path.with_name(path.name + ".parts")


def _locked(path: Path) -> IO[str]:
    """The file, held by this process until it is closed or the process ends, however it does.

    Raises
    ------
    DataError
        Another process holds it.
    """
    file = path.open("a")
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise DataError(
            f"another process is at work on {str(path.parent)!r}: wait for it, or give another out="
        ) from None
    except (ImportError, OSError):
        pass  # no locks on this system or for these files: as safe as its user
    return file


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{str(path)!r} cannot be written ({' '.join(str(error).split())}): finished blocks are "
        "kept, so that the same call goes on when there is room, or give another place"
    )


def write_table(
    path: Path, table: pd.DataFrame, layout: Layout, call: Mapping[str, Any], data: str = ""
) -> None:
    """Write a scan's table with what :func:`load` needs."""
    information = {
        "format": FORMAT,
        "data": data,
        "call": dict(call),
        "layout": {
            "celltypes": layout.celltypes,
            "fixed": layout.fixed,
            "structures": [
                {"name": s.name, "labels": list(s.labels), "basis": s.basis.tolist()}
                for s in layout.structures
            ],
            "components": layout.components,
            "tests": layout.tests,
            "errors": layout.errors,
            "ratios": layout.ratios,
            "one_step": layout.one_step,
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
    information = _information(path)
    if "layout" not in information or information.get("format") != FORMAT:
        raise DataError(f"{str(path)!r} holds no scan that this version can read")
    raw = information["layout"]
    names = tuple(raw["celltypes"])
    layout = Layout(
        names,
        tuple(raw["fixed"]),
        tuple(
            Structure(s["name"], names, tuple(s["labels"]), np.array(s["basis"], dtype=float))
            for s in raw["structures"]
        ),
        tuple(tuple(own) for own in raw["components"]),
        {name: tuple(details) for name, details in raw["tests"].items()},
        tuple(raw["errors"]),
        tuple((int(a), int(b)) for a, b in raw["ratios"]),
        bool(raw.get("one_step", False)),
    )
    kinds = layout.kinds()
    block, _ = _read(path, None)
    typed: Block = {
        name: np.asarray(column, dtype=KINDS[kinds.get(name, "number")][0])
        for name, column in block.items()
    }
    return pd.DataFrame(typed), layout, information["call"]


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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name and rename: the file is complete or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(part)
        with part.open("rb+") as file:  # on the disk before it has its name
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(
    path: Path, block: Block, kinds: Mapping[str, str], information: Mapping[str, Any]
) -> None:
    pa = arrow()
    types = {"text": pa.string(), "flag": pa.bool_(), "count": pa.int64(), "number": pa.float64()}
    table = pa.table({name: pa.array(block[name], types[kind]) for name, kind in kinds.items()})
    table = table.replace_schema_metadata({KEY: json.dumps(information).encode()})
    try:
        write_whole(path, lambda part: pa.parquet.write_table(table, part))
    except OSError as error:
        raise _unwritable(path, error) from None


def _table(path: Path, columns: list[str] | None = None) -> Any:
    pa = arrow()
    try:
        return pa.parquet.ParquetFile(path).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(path)!r} cannot be read as parquet: {error}") from None


def _information(path: Path) -> dict[str, Any]:
    """What the file says about itself."""
    pa = arrow()
    try:
        held = pa.parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{str(path)!r} cannot be read as parquet: {error}") from None
    if KEY not in held:
        raise DataError(f"{str(path)!r} was not written by a scan: {_OTHER}")
    return json.loads(held[KEY])


def _read(path: Path, kinds: Mapping[str, str] | None) -> tuple[Block, dict[str, Any]]:
    """Columns as arrays, all of them or those named, and what the file says about itself."""
    table = _table(path)
    block: Block = {}
    for name in kinds or table.column_names:
        column = table.column(name)
        if kinds is not None and kinds[name] == "text":
            block[name] = np.array(column.to_pylist(), dtype=object)
        else:
            block[name] = column.to_numpy(zero_copy_only=False)
    return block, _information(path)
