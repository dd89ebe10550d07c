"""Blocks of genes through workers: read, done before or sent out, kept, joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from ..engine.likelihood import LIKELIHOODS
from ..errors import DataError
from .columns import Block, join
from .patterns import Patterns
from .plan import Plan
from .responses import Responses
from .store import Store, fingerprint
from .worker import scan_block

BLOCK = 50
"""Genes computed, written and lost by a kill together; the numbers do not depend on it."""
_SMALL, _ROWS = 10, 1000  # fewer genes together, but not fewer than 10, beyond 1000 rows


@dataclass(eq=False)
class Job:
    """Blocks of genes through workers; what is finished is kept."""

    plan: Plan
    patterns: Patterns
    responses: Responses
    store: Store | None
    n_jobs: int | None
    _blocks: dict[int, Block] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)
    _failure: list[BaseException] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of the values of all genes."""
        return fingerprint([self._digests[k] for k in sorted(self._digests)])

    def run(self, progress: bool) -> Block:
        """The columns of all genes."""
        ended = None if self.store is None else self.store.finished()
        if ended is not None and self.store is not None:
            for number, start, stop in self._numbered():
                self._digests[number] = fingerprint(*self.responses.read(start, stop)[:2])
            self.store.check(self.digest)
            return ended
        if self.plan.method not in LIKELIHOODS:
            self.patterns.prepare(self.plan.resampled)
        with _bar(len(self.responses.genes), progress) as bar:
            # results as they come; the next blocks are read when workers are free
            work = Parallel(
                n_jobs=self.n_jobs, prefer="threads", return_as="generator_unordered",
                pre_dispatch="2*n_jobs", batch_size=1,
            )(self._tasks(bar.update))  # fmt: skip
            for number, block in work:
                if self.store is not None:
                    self.store.add(number, self._digests[number], block)
                self._blocks[number] = block
                bar.update(len(block["gene"]))
        if self._failure:
            raise self._failure[0]
        ordered = [self._blocks[number] for number in sorted(self._blocks)]
        return join(ordered, self.plan.layout.kinds())

    def _numbered(self) -> Iterator[tuple[int, int, int]]:
        """Number, first gene and end of every block."""
        count, size = len(self.responses.genes), block_size(len(self.responses.obs))
        for number, start in enumerate(range(0, count, size)):
            yield number, start, min(start + size, count)

    def _tasks(self, skipped: Callable[[int], object]) -> Iterator[Any]:
        """Blocks to be done; an error here is kept, as workers' threads would lose it."""
        try:
            for number, start, stop in self._numbered():
                Y, NU, pooled = self.responses.read(start, stop)
                self._digests[number] = digest = fingerprint(Y, NU)
                done = None if self.store is None else self.store.block(number, digest)
                if done is not None:
                    self._blocks[number] = done
                    skipped(stop - start)
                    continue
                names = self.responses.genes[start:stop]
                work = self.plan, self.patterns, names, Y, NU, pooled
                yield delayed(_numbered_block)(number, *work)
        except Exception as error:
            self._failure.append(error)


def used_rows(responses: Responses) -> np.ndarray:
    """Rows of the table that some gene has."""
    seen = np.zeros(len(responses.obs), dtype=bool)
    count = len(responses.genes)
    for start in range(0, count, BLOCK):
        Y, NU, _ = responses.read(start, min(start + BLOCK, count))
        seen |= ~(np.isnan(Y) | np.isnan(NU)).all(axis=1)
        if seen.all():  # as a rule after the first
            break
    if not seen.any():
        raise DataError("no gene has both an expression and a noise variance in any row")
    return np.flatnonzero(seen)


def block_size(rows: int) -> int:
    """Genes in a block of a study with that many rows.

    >>> block_size(400), block_size(2000), block_size(8000)
    (50, 25, 10)
    """
    return min(BLOCK, max(_SMALL, BLOCK * _ROWS // rows))


def _numbered_block(
    number: int,
    plan: Plan,
    patterns: Patterns,
    names: Sequence[str],
    Y: np.ndarray,
    NU: np.ndarray,
    pooled: np.ndarray,
) -> tuple[int, Block]:
    """A block with its number: workers end in any order."""
    return number, {**scan_block(plan, patterns, names, Y, NU), "n_pooled": pooled}


class _Silent:
    """A progress bar that is not shown."""

    def update(self, count: int) -> None:
        """Nothing."""


def _bar(total: int, shown: bool) -> Any:
    if not shown:
        return nullcontext(_Silent())
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="genes", unit="gene")
