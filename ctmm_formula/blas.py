"""Threads of the linear algebra: one per worker, so that `n_jobs` alone says how many cores work.

The matrices of a gene are small: threads of BLAS wait for each other longer than they compute, and
those of several workers for the same cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import local

from threadpoolctl import ThreadpoolController


@cache
def _libraries() -> ThreadpoolController:
    """The BLAS libraries of this process; looking for them takes milliseconds."""
    import scipy.linalg  # noqa: F401  (numpy and scipy may each have one of their own)

    return ThreadpoolController().select(user_api="blas")


class _Here(local):
    """What this thread holds."""

    held = False


_here = _Here()


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS at one thread inside a ``with`` or a decorated function; restored at the end.

    Inside of another, nothing is left to do.  Where a library has one number for all threads of a
    process, threadpoolctl gives it to the first that asks: workers end before the one who waits
    for them, who restores it.

    >>> with one_thread(), one_thread():
    ...     {library["num_threads"] for library in _libraries().info()}
    {1}
    """
    if _here.held:
        yield
        return
    with _libraries().limit(limits=1):
        _here.held = True
        try:
            yield
        finally:
            _here.held = False
