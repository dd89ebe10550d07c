"""Names of files and how they are written: complete or not there."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from .errors import DataError


def file_path(argument: str, value: object) -> Path:
    """A name that the system takes for a file, whether there is one or not.

    Raises
    ------
    DataError
        It is no text, empty, too long, or has characters that no file name has.

    Examples
    --------
    >>> file_path("out=", "scan.parquet").name
    'scan.parquet'
    """
    name = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(name, str):
        raise DataError(
            f"{argument} {value!r} is no name of a file: give a text or Path, 'scan.parquet'"
        )
    shown = ascii(name if len(name) <= 200 else f"{name[:200]}...")
    try:
        path = Path(name).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whoever reads or writes says so
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{argument} {shown} is no name of a file: {why}") from None
    if not name.strip():
        raise DataError(f"{argument} {shown} is no name of a file")
    return path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name and rename: the file is complete or not there.

    A link stays, and the file that it names is written.
    """
    path = Path(os.path.realpath(path))
    part = path.with_name(f".ctmm-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write(part)
        with part.open("rb+") as file:  # on the disk before it has its name
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def said(error: BaseException) -> str:
    """What an error of the system says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
