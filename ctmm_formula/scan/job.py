"""Blocks of genes through workers: read, done before or sent out, kept, joined."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeVar

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend

from ..blas import one_thread
from ..errors import CTMMError, DataError
from ..progress import progress_bar
from .columns import Block
from .patterns import Patterns
from .responses import Responses
from .store import Store, fingerprint
from .windows import Read, Windows
from .worker import scan_block

T = TypeVar("T")
_Block = tuple[Sequence[str], np.ndarray, np.ndarray, np.ndarray | None, Read | None]

BLOCK = 50
"""Genes computed, written and lost by a kill together; the numbers do not depend on it."""
_ROUND = 4  # calls of a worker together, where a backend gives lists only
_SMALL, _ROWS = 10, 1000  # fewer genes together, but not fewer than 10, beyond 1000 rows


@dataclass(eq=False)
class Job:
    """Blocks of genes through workers; what is finished is kept."""

    patterns: Patterns
    responses: Responses
    store: Store | None
    n_jobs: int | None
    windows: Windows | None = None
    _digests: list[str] = field(default_factory=list)
    _failure: list[Exception] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of the values of all genes."""
        return fingerprint(self._digests)

    @one_thread()
    def run(self, progress: bool | None) -> Block:
        """The columns of all genes."""
        store = self.store
        if store is not None and (ended := store.finished()) is not None:
            for _ in self._read():
                pass
            store.check(self.digest)
            return ended
        self.patterns.prepare()
        blocks: dict[int, Block] = {}
        with progress_bar(progress, "genes", "gene", len(self.responses.genes)) as done:
            # results as they come; the next blocks are read when workers are free
            work = spread(
                self._tasks(blocks, done), self.n_jobs, "generator_unordered",
                prefer="threads", pre_dispatch="2*n_jobs", batch_size=1,
            )  # fmt: skip
            try:
                for number, block in work:
                    if store is not None:
                        store.add(number, self._digests[number], block)
                    blocks[number] = block
                    done(len(block["gene"]))
            except BrokenProcessPool:
                raise CTMMError(_killed(store)) from None
        if self._failure:
            raise self._failure[0]
        ordered = [blocks[number] for number in sorted(blocks)]
        names = self.patterns.plan.layout.kinds()
        return {name: np.concatenate([block[name] for block in ordered]) for name in names}

    def _read(self) -> Iterator[_Block]:
        """Names, expression, noise and its squares, and genotypes of every block of genes."""
        genes, size = self.responses.genes, block_size(len(self.responses.obs))
        for start in range(0, len(genes), size):
            names = genes[start : start + size]
            values = self.responses.read(start, start + len(names))
            own = None if self.windows is None else self.windows.read(names)
            if self.store is not None:
                genotypes = () if own is None else (own.values,)
                self._digests.append(fingerprint(*values, *genotypes))
            yield names, *values, own

    def _tasks(self, blocks: dict[int, Block], done: Callable[[int], object]) -> Iterator[Any]:
        """Blocks to be done; an error here is kept, as workers' threads would lose it."""
        try:
            for number, task in enumerate(self._read()):
                old = (
                    None
                    if self.store is None
                    else self.store.block(number, self._digests[-1], task[0])
                )
                if old is None:
                    yield delayed(_numbered_block)(number, self.patterns, *task)
                else:
                    blocks[number] = old
                    done(len(task[0]))
        except Exception as error:
            self._failure.append(error)


def spread(
    tasks: Iterator[Any], n_jobs: int | None, return_as: str = "generator", **options: Any
) -> Iterator[Any]:
    """Results of delayed calls, as they come.

    A backend of joblib that gives lists only, as ray's does, gets some calls for each worker at a
    time: what is finished is not kept for the end.  Large arrays that processes share are copied
    where they are written (`mmap_mode`), as compiled loops take no others.

    >>> from joblib import delayed
    >>> list(spread((delayed(abs)(k) for k in (-1, 2)), 1))
    [1, 2]
    """
    backend, _ = get_active_backend(prefer=options.get("prefer"))
    options = {"mmap_mode": "c", **options}
    if backend.supports_return_generator:
        yield from Parallel(n_jobs=n_jobs, return_as=return_as, **options)(tasks)
        return
    run, count = Parallel(n_jobs=n_jobs, **options), _ROUND * effective_n_jobs(n_jobs)
    while some := list(islice(tasks, count)):
        yield from run(delayed(_with_own_arrays)(*call) for call in some)


def _with_own_arrays(function: Callable[..., T], given: tuple, named: dict[str, Any]) -> T:
    """The call with copies of its arrays.

    Those that come from ray lie in memory that workers share and must not write; compiled loops
    are made for arrays that can be written, and would refuse them.

    >>> there = np.zeros(3)
    >>> there.flags.writeable = False
    >>> _with_own_arrays(lambda one: one.flags.writeable, (there,), {})
    True
    """
    kept: dict[int, object] = {}
    data = io.BytesIO()
    _Copy(data, kept).dump((given, named))
    given, named = _Again(io.BytesIO(data.getvalue()), kept).load()
    return function(*given, **named)


class _Copy(pickle.Pickler):
    """Pickles all but code, which is kept by number: what a formula uses may be a lambda."""

    def __init__(self, data: io.BytesIO, kept: dict[int, object]) -> None:
        super().__init__(data, protocol=4)  # a later one would leave arrays as they are
        self.kept = kept

    def persistent_id(self, one: object) -> int | None:
        """Number of a function, class or module."""
        if not isinstance(one, (FunctionType, BuiltinFunctionType, ModuleType, type)):
            return None
        self.kept[id(one)] = one
        return id(one)


class _Again(pickle.Unpickler):
    """Reads what :class:`_Copy` wrote."""

    def __init__(self, data: io.BytesIO, kept: dict[int, object]) -> None:
        super().__init__(data)
        self.kept = kept

    def persistent_load(self, number: int) -> object:
        """The function, class or module of a number."""
        return self.kept[number]


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


def _killed(store: Store | None) -> str:
    """What to do after a worker was killed."""
    go_on = (
        "give out= and finished genes are kept"
        if store is None
        else f"finished genes are kept beside {str(store.path)!r}, the same call goes on with them"
    )
    return (
        "a worker was killed, as a rule because the memory was full (or by a crash of a library): "
        f"{go_on}; fewer workers, n_jobs=, need less memory"
    )


def _numbered_block(number: int, patterns: Patterns, *genes: Any) -> tuple[int, Block]:
    """A block with its number: workers end in any order."""
    return number, scan_block(patterns, *genes)
