"""Progress bars: in terminals and notebooks, of long work, never in logs."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import types

import pytest

import ctmm_formula as ctmm
from ctmm_formula import progress
from ctmm_formula.engine import options


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch) -> None:
    """Not a fixture: pytest puts its own stderr in place before a test begins."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())


def work(shown: bool | None) -> str:
    with progress.progress_bar(shown, "genes", "gene", 3) as done:
        for _ in range(3):
            done(1)
    return sys.stderr.getvalue() if isinstance(sys.stderr, io.StringIO) else ""


def test_by_default_only_long_work_shows_a_bar_and_only_in_a_terminal(monkeypatch):
    terminal(monkeypatch)
    assert work(None) == ""  # over at once
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert "3/3" in work(None)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert work(None) == "" and not progress.watched()
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert work(None) == ""  # a log
    monkeypatch.setattr(sys, "stderr", None)
    assert not progress.watched()


def test_what_is_asked_for_is_done_everywhere(monkeypatch):
    terminal(monkeypatch)
    assert work(False) == "" and "3/3" in work(True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert "3/3" in work(True)
    with pytest.raises(ctmm.CTMMError, match="progress= must be True or False"):
        work("yes")


def test_notebooks_are_known(monkeypatch):
    kernel = type("ZMQInteractiveShell", (), {"__module__": "ipykernel.zmqshell"})()
    console = type("TerminalInteractiveShell", (), {"__module__": "IPython.terminal"})()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for shell, seen in ((kernel, True), (console, False), (None, False)):
        module = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert progress.watched() is seen


def test_scans_powers_and_bootstraps_have_one(monkeypatch):
    terminal(monkeypatch)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), genes=["gene001"], tests=[])
    ctmm.power(20, 2, n_sim=2, rng=1)
    res = ctmm.fit("expr ~ C(celltype)", structure="hom", method="he", data=ctmm.load_example())
    boot = res.bootstrap(3, rng=1)
    text = sys.stderr.getvalue()
    assert all(part in text for part in ("genes", "studies", "bootstrap", "3/3"))
    assert boot.replicates.equals(res.bootstrap(3, rng=1, progress=False).replicates)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a terminal")
def test_in_a_real_terminal():
    """A short scan shows nothing, a long one its bar."""
    import fcntl
    import pty
    import struct
    import termios

    code = """
import ctmm_formula as ctmm
from ctmm_formula import progress
from ctmm_formula.engine import options
progress.PATIENCE = {patience}
ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), tests=[])
"""
    seen = {}
    for patience in (0.0, 1e3):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
        call = subprocess.run(
            [sys.executable, "-c", code.format(patience=patience)],
            stderr=slave,
            env=env,
            check=True,
        )
        os.close(slave)
        os.set_blocking(master, False)
        try:
            seen[patience] = os.read(master, 65536)
        except OSError:
            seen[patience] = b""
        os.close(master)
        assert call.returncode == 0
    assert b"200/200" in seen[0.0] and seen[1e3] == b""


def test_what_the_first_use_waits_for_is_said_once(monkeypatch, tmp_path):
    (tmp_path / "loops.py").write_text("def one(x):\n    return x\n\n\ndef two(x):\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import loops

    monkeypatch.setattr(options, "_announce", functools.cache(options._announce.__wrapped__))
    options.kept(loops.one)(1.0)
    assert options._announce.cache_info().misses == 1  # nobody looks: nothing is written
    terminal(monkeypatch)
    options._announce.cache_clear()
    assert options.kept(loops.one)(1.0) == options.kept(loops.two)(1.0) == 1.0
    said = sys.stderr.getvalue()
    assert said.count("compiling") == 1 and said.endswith("compile does all of it ahead)\n")
    options._announce.cache_clear()
    options.kept(loops.two)(1.0)  # from the disk
    assert sys.stderr.getvalue() == said
