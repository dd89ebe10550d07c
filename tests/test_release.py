"""What is published: links, extras, files that a release needs."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
HOME = PROJECT["project"]["urls"]["Homepage"]


def test_links_of_the_readme_are_absolute_where_it_stands_alone():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = [link for link in LINK.findall(text) if not link.startswith(("http", "#"))]
    assert relative and all((ROOT / link.split("#")[0]).exists() for link in relative)
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert all(link.startswith(("http", "#")) for link in LINK.findall(text))
    assert f"]({HOME}/blob/main/vignettes/from_cells.py)" in text
    assert (
        "/main/vignettes/quickstart.png)" in text
        and f"{HOME}/blob/main/vignettes/quickstart.png" not in text
    )


@pytest.mark.parametrize(
    "extra", ["anndata", "plots", "formulaic", "parallel", "scan", "genotypes", "r"]
)
def test_extras_hold_what_is_imported(extra):
    imported = set()
    for path in (ROOT / "ctmm_formula").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
            elif (
                isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
            ):
                imported.add(str(node.args[0].value).partition(".")[0])  # import_module("...")
    for needed in PROJECT["project"]["optional-dependencies"][extra]:
        name = re.match(r"[\w-]+", needed)[0].replace("-", "_")
        assert name in imported | {"dask"}, needed


def test_lowest_versions_are_declared():
    for needed in PROJECT["project"]["dependencies"]:
        assert ">=" in needed


@pytest.mark.parametrize(
    "file",
    [
        "SECURITY.md", "ISSUE_TEMPLATE/bug.yml", "workflows/ci.yml", "workflows/release.yml",
        "workflows/docs.yml", "conda/recipe.yaml",
    ],
)  # fmt: skip
def test_files_of_the_home_are_there(file):
    text = (ROOT / ".github" / file).read_text(encoding="utf-8")
    assert text.strip()
    if file.startswith("ISSUE"):
        assert "ctmm.show_versions()" in text


def test_what_the_r_package_pins_is_what_is_needed():
    """Versions that tests were run with, of every dependency and not below its lowest version."""
    file = ROOT / "r_bridge" / "ctmmFormula" / "inst" / "python" / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for needed in PROJECT["project"]["dependencies"]:
        name, lowest = needed.split(">=")
        assert [*map(int, pins[name].split("."))] >= [*map(int, lowest.split("."))]
