"""At the first use on a machine two processes compile.

While this one compiles what it needs first, another compiles what it needs next, and leaves it in
the cache, where this one waits for it.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_CHILD = f"""
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
place, module, work, *sys.path[:] = sys.argv[1:]
name = {__name__.split(".")[0]!r}
spec = spec_from_file_location(name, place + "/__init__.py", submodule_search_locations=[place])
sys.modules[name] = module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
getattr(import_module(module), work)()
"""
"""Code of the other process: this very package, whatever else of its name is installed."""


def meanwhile(function: Any, work: Callable[[], None]) -> None:
    """Have another process do `work`, which compiles `function`, if there is no code of it.

    Parameters
    ----------
    function : what :func:`~ctmm_formula.engine.options.kept` gives
        It waits for the other process when it is called.
    work : callable
        A function of a module.
    """
    if function.overloads or not getattr(function._cache, "is_empty", bool)():
        return
    from joblib import cpu_count

    if sys.executable and cpu_count() > 1:
        given = [str(_PACKAGE), work.__module__, work.__name__, *_search_path()]
        with suppress(OSError):
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _CHILD, *given], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            atexit.register(_end, process)
            function._cache.helper = process


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def _search_path() -> list[str]:
    """Where a process of our own finds modules: as here, but never in the working directory.

    A file there named like a module would run.  The package itself is loaded from where it is.
    """
    here = Path.cwd().resolve()
    return [place for place in sys.path if place and Path(place).resolve() != here]


def compile_like(function: Any, *arguments: Any) -> None:
    """Compile a function for arguments of these types, into the cache."""
    function.compile(tuple(map(function.typeof_pyval, arguments)))
