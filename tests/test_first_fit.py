"""The first fit after installation: two processes compile, and later ones get the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ctmm_formula as ctmm
from ctmm_formula import __main__ as command

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FIT = """
import ctmm_formula as ctmm
from ctmm_formula import __main__ as command
from ctmm_formula.engine.search import race
res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", method="reml", data=ctmm.load_example())
stats = race.stats
print(res.llf.hex(), *(v.hex() for v in res.params), sum(stats.cache_hits.values()),
      sum(stats.cache_misses.values()))
"""


def run(code, folder, **options):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT)}
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, **options
    )


def test_the_working_directory_is_not_searched_and_damage_is_compiled_anew(tmp_path):
    """One compilation serves both: it is the slow part."""
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    cache.mkdir()
    for name in ("numba", "json", "sitecustomize"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise ImportError")
    script = tmp_path / "fit.py"  # as a user runs one: its own directory is searched, not this one
    script.write_text(FIT)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    first = subprocess.run(
        [sys.executable, str(script)],
        env=environment, cwd=here, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert first[-2:] == ["1", "0"]  # the other process has compiled all the same
    assert not (tmp_path / "ran").exists()
    files = sorted(cache.rglob("evaluate*.nb?")) + sorted(cache.rglob("kernels._evaluate*.nb?"))
    files += sorted(cache.rglob("search.towards_edge*.nb?"))
    assert len(files) >= 4 and {path.suffix for path in files} == {".nbi", ".nbc"}
    for k, path in enumerate(files):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[: len(data) // 3] if k % 2 else data)
    again = run(FIT, cache, check=True).stdout.split()
    assert again[:-2] == first[:-2]
    later = run(FIT, cache, check=True).stdout.split()
    assert later == first


def test_without_a_place_for_the_cache_it_compiles_in_memory_and_says_so_once(tmp_path):
    moments = FIT.replace('"reml"', '"he"').replace("res.llf.hex(), ", "")
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "caching.CodeLibraryCacheImpl._locator_classes = []\n"
        "caching.CompileResultCacheImpl._locator_classes = []\n"
    )
    done = run(code + moments, tmp_path, check=True)
    assert done.stderr.count("CTMMWarning") == 1
    assert "NUMBA_CACHE_DIR" in done.stderr
    data = ctmm.load_example()
    kept = ctmm.fit("expr ~ C(celltype) + sex", random="batch", method="he", data=data)
    assert done.stdout.split() == [*(v.hex() for v in kept.params), "0", "0"]


def test_the_optimiser_is_compiled_by_another_process_meanwhile(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first, later = (
        subprocess.run(
            [sys.executable, "-c", FIT], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    )
    assert first[-2:] == ["1", "0"]  # found in the cache, not compiled here
    assert first == later


COMPILE = """
import sys
from numba.core import event
import ctmm_formula.__main__ as command
compiled = []
class Count(event.Listener):
    def on_start(self, event):
        compiled.append(event.data["dispatcher"].py_func.__name__)
    def on_end(self, event):
        pass
event.register("numba:compile", Count())
command.main(["compile"])
print(len(compiled))
"""


def test_the_command_compiles_ahead_and_says_where(tmp_path):
    """Into the usual place, which other tests have filled or need next: it takes a minute."""
    run(COMPILE, os.environ.get("NUMBA_CACHE_DIR", ""), check=True)
    again = run(COMPILE, os.environ.get("NUMBA_CACHE_DIR", ""), check=True)
    *lines, last = again.stderr.splitlines()
    assert [line.split(" ... ")[0] for line in lines] == [
        f"{k} of {len(command.WORK)}: {name}" for k, name in enumerate(command.WORK, start=1)
    ]
    assert last.startswith("compiled code is kept in ")
    assert all(Path(place).is_dir() for place in last.split(" in ", 1)[1].split(", "))
    assert again.stdout == "0\n"  # nothing is left to compile


def test_the_command_says_where_nothing_can_be_kept(monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", {})
    monkeypatch.setattr(command, "where_kept", lambda: ([], "no locator"))
    with pytest.raises(SystemExit, match="1"):
        command.main(["compile"])
    assert "(no locator): set the environment variable NUMBA_CACHE_DIR" in capsys.readouterr().err
