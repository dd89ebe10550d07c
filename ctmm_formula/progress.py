"""Progress bars: where somebody looks, and only of work that takes a while."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .arguments import on_off

PATIENCE = 2.0
"""Seconds that work may take before a bar shows that nobody asked for."""


def watched() -> bool:
    """Whether somebody looks: a notebook or a terminal, and ``TQDM_DISABLE`` is not set."""
    if os.environ.get("TQDM_DISABLE", "") not in ("", "0"):
        return False
    shell = sys.modules.get("IPython")
    kernel = shell is not None and "ipykernel" in type(shell.get_ipython()).__module__
    stream = sys.stderr  # None where a program has no console
    return kernel or (stream is not None and stream.isatty())


@contextmanager
def progress_bar(
    shown: bool | None, what: str, unit: str, total: int
) -> Iterator[Callable[[int], object]]:
    """What to call with every number of units that are done.

    `shown` is what ``progress=`` takes: True, False, or None for a bar where somebody looks, of
    work that takes longer than ``PATIENCE``.

    Examples
    --------
    >>> with progress_bar(None, "genes", "gene", 10) as done:
    ...     done(10)
    """
    asked = shown is not None and on_off("progress", shown)
    if not asked and (shown is not None or not watched()):
        yield lambda count: None
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of notebooks without widgets: a bar of text it is
        from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit=unit, delay=0.0 if asked else PATIENCE) as bar:
        yield bar.update


def checked_progress(progress: object) -> bool | None:
    """The value of ``progress=``, or an error."""
    return None if progress is None else on_off("progress", progress)
