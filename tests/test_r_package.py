"""The R package's own tests (testthat), run in a fresh library with the Python of this process.

Skipped without R, reticulate or testthat; with CTMM_REQUIRE_R=1 in the environment that is a
failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "r_bridge" / "ctmmFormula"
NEEDED = ("reticulate", "testthat", "nlme", "generics")


@cache
def missing() -> str:
    """Why the R package cannot be tested here, or nothing."""
    if shutil.which("Rscript") is None:
        return "Rscript is not installed"
    packages = ", ".join(f"'{name}'" for name in NEEDED)
    code = (
        f"p <- c({packages}); cat(p[!vapply(p, requireNamespace, NA, quietly = TRUE)], sep = ', ')"
    )
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], capture_output=True, text=True, check=False
    )
    return f"R packages are not installed: {call.stdout}" if call.stdout else ""


def need_r() -> None:
    reason = missing()
    if reason and os.environ.get("CTMM_REQUIRE_R") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A library that holds the R package as it is in the tree."""
    need_r()
    folder = tmp_path_factory.mktemp("library")
    source = folder / "source"
    shutil.copytree(SOURCE, source)  # R writes into what it installs from
    call = subprocess.run(
        ["R", "CMD", "INSTALL", "--no-test-load", f"--library={folder}", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert call.returncode == 0, call.stderr
    return folder


def run_r(library: Path, code: str, timeout: float = 300) -> str:
    """What R prints; every R process gets this Python and the package of this tree."""
    environment = os.environ | {
        "R_LIBS": str(library),
        "RETICULATE_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "CTMM_GOLDEN": str(ROOT / "tests" / "golden" / "r"),
        "CTMM_REQUIRE_PYTHON": "true",
    }
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=SOURCE / "tests" / "testthat",
        check=False,
    )
    assert call.returncode == 0, call.stdout + call.stderr
    return call.stdout


FILES = sorted(
    path.stem.removeprefix("test-") for path in (SOURCE / "tests/testthat").glob("test-*.R")
)


@pytest.mark.parametrize("name", FILES)
def test_testthat(library, name):
    code = f"""
    library(testthat)
    library(ctmmFormula)
    out <- as.data.frame(test_file("test-{name}.R", package = "ctmmFormula",
        load_package = "installed", reporter = "check", stop_on_failure = TRUE))
    cat("passed:", sum(out$passed), "skipped:", sum(out$skipped), "warnings:", sum(out$warning))
    """
    out = run_r(library, code)
    found = re.search(r"passed: (\d+) skipped: (\d+) warnings: (\d+)$", out)
    assert found, out
    passed, skipped, warnings = map(int, found.groups())
    assert passed > 0, out
    assert warnings == 0, out
    if skipped and os.environ.get("CTMM_REQUIRE_R") == "1":
        pytest.fail(out)
