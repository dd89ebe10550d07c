"""One number: ctmm_formula.__version__; what cannot read it says the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import ctmm_formula as ctmm

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("CITATION.cff", r"^version: (\S+)$"),
        ("r_bridge/ctmmFormula/DESCRIPTION", r"^Version: (\S+)$"),
        ("CHANGELOG.md", r"\A# Changes\n\n## (\S+)"),
        (".github/scverse/meta.yaml", r"^version: v(\S+)$"),
        (".github/conda/recipe.yaml", r"^  version: \"(\S+)\"$"),
        ("README.md", r"^Version (\S+?),? "),
    ],
)
def test_the_same_everywhere(file, line):
    found = re.findall(line, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found == [ctmm.__version__]


def test_the_build_reads_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    source = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text(encoding="utf-8")
    assert source.count(f'__version__ = "{ctmm.__version__}"') == 1
