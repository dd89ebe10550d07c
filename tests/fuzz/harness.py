"""What became of a try: shared by all fuzzers of this folder.

A fuzzer is a function of a scratch folder that prepares what is tried often and returns
``attempt(rng) -> Try``.  The k-th try of a fuzzer depends on the seed and on k alone, so that a
fault that is printed can be had again: ``--first k --rounds 1``.

==========  ====================================================================================
result      there is a result, and it is what it must be
refused     a CTMMError, or an ImportError that says what to install
RAW         another exception, or a warning that is not of the package
HANG        no answer in time
ACCEPTED    a result that is not what it must be: damage was believed, or rows were lost
==========  ====================================================================================
"""

from __future__ import annotations

import faulthandler
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import ctmm_formula as ctmm

FINE = ("result", "refused")
SECONDS = 60
"""After which a try hangs; the machine may be busy with other things."""


class Try(NamedTuple):
    """What is done, and to what.

    `work` returns "" or what is wrong with its result; `about` is what a report shows.
    """

    kind: str
    work: Callable[[], str]
    about: object = ""


Fuzzer = Callable[[Path], Callable[[np.random.Generator], Try]]


class _Hang(BaseException):
    """Not an Exception: nothing that is tried may catch it."""


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(10 * seconds, exit=True)  # compiled code hears no signal
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def outcome(work: Callable[[], str], seconds: int = SECONDS) -> str:
    """One of the rows above, with the reason."""
    try:
        with _limit(seconds), warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                wrong = work()
            except ctmm.CTMMError as error:
                wrong = "" if str(error) else "an error without a word"
                done = "refused"
            else:
                done = "result"
    except _Hang:
        return f"HANG no answer in {seconds} s"
    except ImportError as error:
        return "refused" if "pip install" in str(error) else _raw(error)
    except Exception as error:
        return _raw(error)
    foreign = [one for one in heard if not issubclass(one.category, ctmm.CTMMWarning)]
    if foreign:
        return _raw(foreign[0].message)
    return f"ACCEPTED {wrong}" if wrong else done


def _raw(error: object) -> str:
    where, trace = "", getattr(error, "__traceback__", None)
    while trace is not None:
        code = trace.tb_frame.f_code
        if "ctmm_formula" in code.co_filename:
            where = f" at {Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"RAW {type(error).__name__}{where}: {str(error)[:120]}"


def run(
    fuzzers: Mapping[str, Fuzzer],
    seed: int,
    rounds: int,
    first: int = 0,
    show: Callable[[str], Any] = lambda line: None,
) -> Counter[str]:
    """Counts of ``kind: outcome`` after that many tries of each fuzzer; faults are shown."""
    found: Counter[str] = Counter()
    for name, fuzzer in fuzzers.items():
        start = time.perf_counter()
        # a value that is tried may be taken for the name of a file
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            attempt = fuzzer(Path(folder))
            for k in range(first, first + rounds):
                trial = attempt(np.random.default_rng([seed, k, *name.encode()]))
                what = outcome(trial.work)
                if what not in FINE:
                    where = f"{name} --seed {seed} --first {k}"
                    show(f"{where}: {trial.kind}: {what}\n  {trial.about!a:.400}")
                found[f"{trial.kind}: {what}"] += 1
        show(f"{name}: {rounds} tries in {time.perf_counter() - start:.0f} s")
    return found


def faults(found: Counter[str]) -> dict[str, int]:
    """What must not be."""
    return {name: count for name, count in found.items() if name.split(": ")[1] not in FINE}


def closing(found: Counter[str]) -> list[str]:
    """One line for each kind of try, and the sums."""
    columns = ("result", "refused", "RAW", "HANG", "ACCEPTED")
    table: dict[str, Counter[str]] = {}
    for name, count in found.items():
        kind, what = name.split(": ")[:2]
        table.setdefault(kind, Counter())[what.split()[0]] += count
    table = dict(sorted(table.items())) | {"all": sum(table.values(), Counter())}
    lines = [f"{'':24s}{'tries':>8s}" + "".join(f"{name:>10s}" for name in columns)]
    return lines + [
        f"{kind:24s}{sum(row.values()):8d}" + "".join(f"{row[name]:10d}" for name in columns)
        for kind, row in table.items()
    ]
