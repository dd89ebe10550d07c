"""AnnData files, h5ad and zarr: opened, and read element by element."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..design.table import SOMA
from ..errors import CTMMError, DataError
from ..paths import file_path, said
from .tables import require_anndata


def open_file(path: Path) -> tuple[Any, Callable[[], None]]:
    """The root of a file, and what closes it.

    Raises
    ------
    DataError
        There is no such file, or it is of another kind.
    CTMMError
        The package that reads it is not installed.
    """
    require_anndata()
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.IGNORECASE):
        raise DataError(f"data= {str(path)!r} is an address: download the file first")
    path = file_path("data=", path)
    if not path.exists():
        raise DataError(f"there is no file {str(path)!r}")
    if (path / "__tiledb_group.tdb").exists():
        raise DataError(f"{str(path)!r} is a SOMA experiment: {SOMA}")
    if path.suffix == ".zarr" or path.is_dir():
        try:
            import zarr
        except ImportError:
            raise CTMMError(
                f"{str(path)!r} is a folder, as zarr stores are, and zarr is not installed: "
                "pip install zarr"
            ) from None
        try:
            # a zarr store holds no file open
            return zarr.open_group(str(path), mode="r"), lambda: None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{str(path)!r} is no zarr file: {said(error)}") from None
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{str(path)!r} is no h5ad file: {error}; read other formats into an AnnData or a "
            "table first"
        ) from None
    return file, file.close


def read(element: Any) -> Any:
    """A table, array or mapping of a file, in memory."""
    try:
        from anndata.io import read_elem
    except ImportError:  # anndata < 0.11
        from anndata.experimental import read_elem
    return read_elem(element)


def lazy(element: Any) -> Any:
    """A matrix that stays in its file until some of it is asked for."""
    if hasattr(element, "dtype"):
        return element
    try:
        from anndata.io import sparse_dataset
    except ImportError:  # anndata < 0.11
        from anndata.experimental import sparse_dataset
    return sparse_dataset(element)
