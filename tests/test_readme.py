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


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_on_counts_are_those_of_the_tables():
    text = (ROOT / "README.md").read_text("utf-8").partition("<!-- tests: begin -->\n")[2]
    shown = list(map(cells_of, text.partition("\n<!-- tests: end")[0].split("\n")))
    page = (ROOT / "vignettes" / "evidence" / "counts.md").read_text("utf-8")
    null = page.partition("\n## V = 0\n")[2].partition("\n## ")[0]
    head, _, *found = map(cells_of, null.strip().split("\n"))
    rates = {tuple(row[:3]): dict(zip(head, row, strict=True)) for row in found}
    rows = [row for row in shown if row[2].startswith("counts, ")]
    assert len(rows) > 2
    for row in rows:
        there = rates["11 to 120", row[1], row[2].removeprefix("counts, ").removesuffix(" a cell")]
        for name, rate in zip(shown[0][3:], row[3:], strict=True):
            assert there[name].split(" ")[0] == f"0{rate}", (row, name)
