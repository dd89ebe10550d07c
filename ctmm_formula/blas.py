"""Threads of the linear algebra: one per worker, so that `n_jobs` alone says how many cores work.

The matrices of a gene are small: threads of BLAS wait for each other longer than they compute, and
those of several workers for the same cores.
"""

from __future__ import annotations

from contextlib import ContextDecorator
from functools import cache
from threading import local
from typing import Any

from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of this process; looking for them takes milliseconds."""
    import scipy.linalg  # noqa: F401  (numpy and scipy may each have one of their own)

    return ThreadpoolController().select(user_api="blas")


class _Here(local):
    """How many hold it in this thread, and what they restore."""

    depth = 0
    limited: Any


_here = _Here()


class one_thread(ContextDecorator):
    """Hold BLAS at one thread inside a ``with`` or a decorated function; restored at the end.

    Inside of another, nothing is left to do.  Where a library has one number for all threads of a
    process, threadpoolctl gives it to the first that asks: workers end before the one who waits
    for them, who restores it.

    >>> with one_thread(), one_thread():
    ...     {library["num_threads"] for library in _libraries().info()}
    {1}
    """

    def __enter__(self) -> None:
        """Hold it, unless it is held."""
        if not _here.depth:
            _here.limited = _libraries().limit(limits=1)
        _here.depth += 1

    def __exit__(self, *error: object) -> None:
        """Restore what was."""
        _here.depth -= 1
        if not _here.depth:
            _here.limited.restore_original_limits()
