"""Scans that are killed, and go on: the same table at last, whatever was damaged in between.

A child process runs ``fit_genes(out=...)`` and is killed after a random time.  The same call then
goes on here.  In half of the tries what the child left is damaged first.  That is harmless, or
refused with a message that names the file (or its folder) and what to do: to remove it, or to
start anew.  What the message says is done, and the table is the same.  No file of a scan that has
ended stays but its table.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

import ctmm_formula as ctmm
from ctmm_formula.scan import job

from .files import damaged
from .harness import Try

Rng = np.random.Generator
GENES = 24


def kills(folder: Path) -> Callable[[Rng], Try]:
    """One kill (or two), and the same call again."""
    data = ctmm.load_genes()
    genes = [f"gene{k:03d}" for k in range(1, GENES + 1)]
    path = folder / "scan.parquet"
    asked: dict[str, Any] = {
        "data": data, "genes": genes, "tests": ["score"], "structure": "hom", "method": "he",
    }  # fmt: skip

    def scan(out: Path | None, overwrite: bool = False) -> pd.DataFrame:
        # several blocks of a short scan
        with mock.patch.object(job, "BLOCK", 4), warnings.catch_warnings():
            warnings.simplefilter("ignore", ctmm.CTMMWarning)
            return ctmm.fit_genes(
                "~ C(celltype) + PC1", **asked, out=out, overwrite=overwrite
            ).table

    scan(None)  # compiles
    start = time.perf_counter()
    want = scan(None)
    whole = time.perf_counter() - start

    def killed(after: float) -> None:
        child = os.fork()
        if child == 0:
            try:
                scan(path)
            finally:
                os._exit(0)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def attempt(rng: Rng) -> Try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        times = rng.uniform(0, 1.3 * whole, int(rng.integers(1, 3)))
        spoil = bool(rng.random() < 0.5)

        def work() -> str:
            for after in times:
                killed(float(after))
            files = sorted(one for one in folder.rglob("*") if one.is_file() and one.stat().st_size)
            at = files[int(rng.integers(len(files)))] if spoil and files else None
            if at is not None:
                at.write_bytes(damaged(at.read_bytes(), rng))
            try:
                found = scan(path)
            except ctmm.DataError as error:
                if at is None:
                    return f"refused though nothing was damaged: {error}"
                wrong, found = remedied(str(error), at)
                if wrong:
                    return wrong
            if not found.equals(want):
                return "another table" if at is None else f"another table after damage to {at.name}"
            left = sorted(one.name for one in folder.iterdir() if one != path)
            return f"{', '.join(left)} stays" if left else ""

        def remedied(message: str, at: Path) -> tuple[str, pd.DataFrame]:
            """The table after what the message says was done, or what is wrong with the message."""
            if not (repr(str(at)) in message or repr(str(at.parent)) in message):
                return f"{at.name} was damaged, not named: {message}", want
            if "remove it, and the same call" in message:
                at.unlink()
                return "", scan(path)
            if "overwrite=True" in message:
                return "", scan(path, overwrite=True)
            return f"no remedy: {message}", want

        return Try("kill, damage" if spoil else "kill", work, times)

    return attempt
