"""The README shows what the code prints today."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSIONS = re.compile(r"^ctmm-formula \d[^>`]*?\.$", re.MULTILINE)
"""The last lines of a summary, "ctmm-formula 0.1.0, python 3.11.7, ... patsy 1.0.3."."""


def without_versions(text: str) -> str:
    shown, count = VERSIONS.subn("(versions)", text)
    assert count == 1
    return shown


@pytest.mark.pages
def test_quick_start_is_todays_output(tmp_path):
    """The vignette runs from start to end and writes its picture and the README's block."""
    (tmp_path / "vignettes").mkdir()
    shutil.copy(ROOT / "vignettes/quickstart.py", tmp_path / "vignettes")
    shutil.copy(ROOT / "README.md", tmp_path)
    subprocess.run(
        [sys.executable, "vignettes/quickstart.py", "--readme"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    today = (tmp_path / "README.md").read_text(encoding="utf-8")
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n>>> " in shown
    assert without_versions(shown) == without_versions(today)
    assert (tmp_path / "vignettes/quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_the_second_command_and_ci_run_all_tests():
    """The default of pyproject.toml leaves some out, and the empty choice takes none."""
    for file in ("README.md", ".ci/run"):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        commands = [line for line in lines if "python -m pytest" in line]
        assert commands
        assert all('-m ""' in line for line in commands)


def test_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert targets
    assert [name for name in targets if not (ROOT / name).exists()] == []
