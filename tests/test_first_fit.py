"""The first fit after installation: two processes compile, and later ones get the same numbers."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
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
        "caching.InTreeCacheLocator.get_cache_path = lambda self: '/proc/nowhere'\n"
    )
    done = run(code + moments, tmp_path, check=True)
    assert done.stderr.count("CTMMWarning") == 1
    assert "NUMBA_CACHE_DIR" in done.stderr
    data = ctmm.load_example()
    kept = ctmm.fit("expr ~ C(celltype) + sex", random="batch", method="he", data=data)
    assert done.stdout.split() == [*(v.hex() for v in kept.params), "0", "0"]


# other users, in mounts of their own: nothing of this process or machine changes

USERS = (65534, 65533)  # nobody, and one without a name
MOMENTS = (
    FIT.replace('"reml"', '"he"')
    .replace("res.llf.hex(), ", "")
    .replace(
        "stats = race.stats",
        "from ctmm_formula.engine.kernels import evaluate\nstats = evaluate.stats",
    )
)


def moments_here():
    data = ctmm.load_example()
    kept = ctmm.fit("expr ~ C(celltype) + sex", random="batch", method="he", data=data)
    return [v.hex() for v in kept.params]


def closed(path):
    """The topmost directory above that other users cannot enter, or None."""
    return next(
        (above for above in [*path.parents[::-1], path] if not above.stat().st_mode & 1), None
    )


@pytest.fixture
def site(tmp_path):
    """An installation of which nothing is compiled."""
    path, none = tmp_path / "site", shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ctmm_formula", path / "ctmm_formula", ignore=none)
    return path


def as_user(user, site, writable, readable=(), **environment):
    """FIT by moments as another user: only the installation is there, and `writable`, `readable`.

    What other users cannot enter (the home of root, as a rule) is covered by an empty directory,
    and the paths that are needed are put back into it.
    """
    if os.geteuid() or any(shutil.which(name) is None for name in ("unshare", "setpriv", "mount")):
        pytest.skip("other users and mounts of their own need root, unshare and setpriv")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts of their own are not allowed here (unshare -m)")
    needed = {Path(sys.prefix), Path(sys.base_prefix), site, *readable}
    for path in [*sys.path, np.__file__]:  # packages may be elsewhere
        if path and not any(Path(path).is_relative_to(home) for home in needed):
            needed |= {Path(path)} if Path(path).is_dir() else set()
    paths = sorted({*needed, *writable})
    stage = tempfile.mkdtemp()
    lines = ["set -e", f"mount -t tmpfs tmpfs {stage}"]
    for k, path in enumerate(paths):
        lines += [f"mkdir {stage}/{k}", f"mount --bind {path} {stage}/{k}"]
    covered = {closed(path.parent) for path in paths} - {None}
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {home}" for home in sorted(covered)]
    for k, path in enumerate(paths):
        lines += [f"mkdir -p {path}", f"mount --bind {stage}/{k} {path}"]
        lines += [] if path in writable else [f"mount -o remount,ro,bind {path}"]
    lines += [f'cd / && exec setpriv --reuid={user} --regid={user} --clear-groups "$@"']
    # other kernels of BLAS have other roundings
    blas = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
    given = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site), **blas, **environment}
    command = ["env", "-i", *(f"{name}={value}" for name, value in given.items())]
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", "\n".join(lines), "sh", *command,
         sys.executable, "-c", MOMENTS],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.rmdir(stage)
    assert done.returncode == 0, done.stderr
    *numbers, hits, misses = done.stdout.split()
    return numbers, int(hits), int(misses), done.stderr


def open_folder(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    return folder


def test_a_user_without_home_and_with_a_read_only_installation(tmp_path, site):
    """What was compiled ahead is used, in the installation or in a folder that is named."""
    cache = tmp_path / "cache"
    cache.mkdir()
    numbers, hits, _, said = as_user(USERS[0], site, [])
    assert numbers == moments_here()
    assert hits == 0
    assert said.count("CTMMWarning") == 1 and "NUMBA_CACHE_DIR" in said
    for folder in (str(cache), ""):  # as root
        run(MOMENTS, folder, env={"PYTHONPATH": str(site)}, cwd="/", check=True)
        named = {"NUMBA_CACHE_DIR": folder} if folder else {}
        assert as_user(USERS[0], site, [], [cache], **named) == (numbers, 1, 0, "")


def test_a_container_with_a_home_that_is_all_it_can_write(tmp_path, site):
    home = open_folder(tmp_path / "home", 0o777)
    first = as_user(USERS[1], site, [home], HOME=str(home))
    later = as_user(USERS[1], site, [home], HOME=str(home))
    assert first[0] == later[0] == moments_here()
    assert later[1:] == (1, 0, "") and first[3] == ""
    assert any(home.rglob("*.nbc"))


def test_two_users_with_one_cache(tmp_path, site):
    """The second reads what the first has compiled, or, where it may not, compiles in memory."""
    cache = open_folder(tmp_path / "cache", 0o1777)
    first, second = (as_user(user, site, [cache], NUMBA_CACHE_DIR=str(cache)) for user in USERS)
    assert first[0] == second[0] == moments_here()
    assert first[3] == ""
    assert {path.stat().st_uid for path in cache.rglob("*.nbi")} == {USERS[0]}
    assert "NUMBA_CACHE_DIR" in second[3] or second[1] == 1
    for path in [cache, *cache.rglob("*")]:  # shared for good
        path.chmod(0o777)
    third = as_user(USERS[1], site, [cache], NUMBA_CACHE_DIR=str(cache))
    assert third == (first[0], 1, 0, "")


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
import importlib, pkgutil
from numba.core.registry import CPUDispatcher
import ctmm_formula
for found in pkgutil.walk_packages(ctmm_formula.__path__, "ctmm_formula."):
    if found.name.split(".")[1] not in ("r", "wire"):
        for name, value in vars(importlib.import_module(found.name)).items():
            kept = isinstance(value, CPUDispatcher) and type(value._cache).__name__ == "_Loaded"
            if kept and not value.signatures:
                print(name)
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
    assert again.stdout == "0\n"  # nothing is left to compile, nor a function that was not called


def test_the_command_says_where_nothing_can_be_kept(monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", {})
    monkeypatch.setattr(command, "where_kept", lambda: ([], "no locator"))
    with pytest.raises(SystemExit, match="1"):
        command.main(["compile"])
    assert "(no locator): set the environment variable NUMBA_CACHE_DIR" in capsys.readouterr().err
