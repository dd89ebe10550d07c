"""Count positive tests of the experiments, and go on where the last run stopped.

    python vignettes/evidence/run.py [figure1 ...] [--groups score ...] [--minutes 30]
                                            [--full] [--jobs 1]

Finished units of work are kept in ``<experiment>.csv``: setting, test, positives at .05, genes
tested, genes without a p value, chunks.  `--full` makes four times as many replicates; the first
are the same.  ``report.py`` turns the counts into tables and pictures.  With more than one job set
OPENBLAS_NUM_THREADS=1 and OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import fcntl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pandas as pd
from experiments import EXPERIMENTS, GROUPS
from joblib import Parallel, delayed

HERE = Path(__file__).parent
ALPHA = 0.05
KEYS = ["setting", "group", "test"]
COUNTS = ["positive", "tested", "failed", "chunks", "seconds"]


def read(name: str) -> pd.DataFrame:
    """The counts so far."""
    path = HERE / f"{name}.csv"
    if path.exists():
        return pd.read_csv(path)
    return pd.DataFrame(columns=[*KEYS, *COUNTS])


def unit(name: str, k: int, group: str, chunk: int) -> list[dict[str, Any]]:
    """Counts of one unit of work."""
    begin = time.process_time()
    found = EXPERIMENTS[name].pvalues(k, group, chunk)
    seconds = round(time.process_time() - begin, 2)
    return [
        {
            "setting": k, "group": group, "test": test, "positive": int((p < ALPHA).sum()),
            "tested": int(np.isfinite(p).sum()), "failed": int((~np.isfinite(p)).sum()),
            "chunks": 1, "seconds": seconds,
        }
        for test, p in found.items()
    ]  # fmt: skip


def todo(name: str, groups: list[str], full: bool) -> list[tuple[int, str, int]]:
    """Units that are not done."""
    done = read(name).groupby(["setting", "group"])["chunks"].max().to_dict()
    return [
        (k, group, chunk)
        for k, group, chunk in EXPERIMENTS[name].units(full)
        if group in groups and chunk >= done.get((k, group), 0)
    ]


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Add counts to the file, one process at a time."""
    with open(Path(gettempdir()) / f"evidence-{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _add(name, rows)


def _add(name: str, rows: list[dict[str, Any]]) -> None:
    table = pd.concat([part for part in (read(name), pd.DataFrame(rows)) if len(part)])
    table = table.groupby(KEYS, sort=False, as_index=False)[COUNTS].sum()
    table["seconds"] = table["seconds"].round(2)
    path = HERE / f"{name}.csv"
    table.sort_values(KEYS[:2], kind="stable").to_csv(path.with_suffix(".part"), index=False)
    path.with_suffix(".part").replace(path)


def batches(work: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(work), size):
        yield work[start : start + size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", default=[])
    parser.add_argument("--groups", nargs="*", default=list(GROUPS))
    parser.add_argument("--minutes", type=float, default=np.inf)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    end = time.time() + 60 * args.minutes
    for name in args.experiments or EXPERIMENTS:
        work = todo(name, args.groups, args.full)
        for part in batches(work, 4 * args.jobs):  # chunks of one group follow each other
            if time.time() > end:
                return
            parts = Parallel(args.jobs)(delayed(unit)(name, *one) for one in part)
            keep(name, [row for rows in parts for row in rows])
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {name}: {len(work)} units done\n")


if __name__ == "__main__":
    main()
