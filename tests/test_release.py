"""What is published: links, extras, files that a release needs."""

from __future__ import annotations

import ast
import re
import subprocess
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


def test_what_the_r_package_pins_is_what_is_needed():
    """Versions that tests were run with, of every dependency and not below its lowest version."""
    file = ROOT / "r_bridge" / "ctmmFormula" / "inst" / "python" / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    for needed in PROJECT["project"]["dependencies"]:
        name, lowest = needed.split(">=")
        assert [*map(int, pins[name].split("."))] >= [*map(int, lowest.split("."))]


def test_the_paper_is_cited_alike_everywhere():
    """CITATION.cff, which GitHub turns into BibTeX, the README's BibTeX, and the R package's."""
    yaml = pytest.importorskip("yaml")
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = cff["preferred-citation"]
    assert paper["type"] == "article" and cff["references"] == [paper]
    assert cff["version"] and cff["repository-code"] == HOME
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    bibtex, software = (
        dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        for entry in re.findall(r"^@\w+\{(.*?)^\}", readme, re.MULTILINE | re.DOTALL)
    )
    year = re.search(r"Copyright \(c\) (\d{4})", (ROOT / "LICENSE").read_text("utf-8"))[1]
    said = {name: value.replace("{", "").replace("}", "") for name, value in software.items()}
    assert said == {
        "author": cff["authors"][0]["name"], "title": cff["title"], "url": HOME,
        "note": f"Version {cff['version']}", "year": year,
    }  # fmt: skip
    surnames = " and ".join(one["family-names"] for one in paper["authors"])
    assert f"{surnames} ({paper['year']})" in cff["title"]
    r = (ROOT / "r_bridge/ctmmFormula/inst/CITATION").read_text(encoding="utf-8")
    values = {"title": paper["title"].replace("RNA", "{RNA}"), "journal": paper["journal"]}
    values |= {"volume": str(paper["volume"]), "pages": str(paper["start"])}
    values |= {"year": str(paper["year"]), "doi": paper["doi"]}
    assert values.items() <= bibtex.items()
    assert all(f'{name} = "{value}"' in r for name, value in (values | {"year": year}).items())
    names = [(one["family-names"], one["given-names"]) for one in paper["authors"]]
    assert bibtex["author"] == " and ".join(f"{family}, {given}" for family, given in names)
    assert all(f'person("{given}", "{family}")' in r for family, given in names)


def day_of_release(cff: dict, changes: str, readme: str) -> str:
    """As all files say it, or nothing while the version is not released."""
    said = re.search(rf"^## {re.escape(cff['version'])} \((.+)\)$", changes, re.MULTILINE)[1]
    day = "" if said == "not released" else said
    assert str(cff.get("date-released", "")) == day
    assert ("not released" in readme) == (not day)
    return day


def test_a_version_has_the_same_day_everywhere_once_it_is_released():
    """The CITATION's year is that of this day, so a released version has one."""
    yaml = pytest.importorskip("yaml")
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes, readme = ((ROOT / f).read_text("utf-8") for f in ("CHANGELOG.md", "README.md"))
    day_of_release(cff, changes, readme)
    day = "2031-02-03"
    heading = rf"^(## {re.escape(cff['version'])}) \(.+\)$"
    released = re.sub(heading, rf"\1 ({day})", changes, flags=re.MULTILINE)
    then = readme.replace(", not released", "")
    assert day_of_release(cff | {"date-released": day}, released, then) == day
    for wrong in ({}, {"date-released": "2031-02-04"}):
        with pytest.raises(AssertionError):
            day_of_release({"version": cff["version"], **wrong}, released, then)


@pytest.mark.r
def test_r_makes_the_same_bibtex(tmp_path):
    from test_r_package import need_r

    need_r("utils")
    file = ROOT / "r_bridge/ctmmFormula/inst/CITATION"
    code = (
        f"cat(toBibtex(readCitationFile('{file}', list(Version = '1', Encoding = 'UTF-8')))[1:9])"
    )
    call = subprocess.run(["Rscript", "--vanilla", "-e", code], capture_output=True, text=True)
    assert call.returncode == 0, call.stderr
    assert "@Article{ChenDahl2024" in call.stdout and "Minhui Chen and Andy Dahl" in call.stdout


def test_the_home_asks_what_is_needed_and_says_where_to_write():
    """Forms, policies and workflows: not that they are there, but what they hold."""
    yaml = pytest.importorskip("yaml")

    def read(file: str) -> dict:
        return yaml.safe_load((ROOT / ".github" / file).read_text(encoding="utf-8"))

    bug = read("ISSUE_TEMPLATE/bug.yml")
    asked = [part.get("attributes", {}) for part in bug["body"]]
    assert any("ctmm.show_versions()" in str(one) for one in asked)
    assert any(part.get("validations", {}).get("required") for part in bug["body"])
    security = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    assert "report" in security.lower() and "version" in security.lower()
    steps = [
        step.get("run", "") for step in read("workflows/release.yml")["jobs"]["build"]["steps"]
    ]
    assert "twine check --strict dist/*" in steps and "python -m build" in steps
    quick = read("workflows/ci.yml")["jobs"]["quick"]["strategy"]["matrix"]
    tested = {f"Programming Language :: Python :: {version}" for version in quick["python"]}
    classifiers = {c for c in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d", c)}
    assert classifiers == tested and quick["set"] == ["newest", "lowest"]
    systems = {one["os"].split("-")[0] for one in quick["include"]} | {"ubuntu"}
    assert systems == {"ubuntu", "macos", "windows"}
    entry, urls = read("scverse/meta.yaml"), PROJECT["project"]["urls"]
    assert entry["project_home"] == HOME and entry["license"] == PROJECT["project"]["license"]
    assert entry["documentation_home"].startswith(urls["Documentation"])
    assert entry["tutorials_home"] == urls["Documentation"]
    assert entry["install"] == {"pypi": PROJECT["project"]["name"]}
    for file in re.findall(
        r"[\w/]+\.(?:yml|md)", (ROOT / ".github/scverse/meta.yaml").read_text("utf-8")
    ):
        assert (ROOT / file).exists() or (ROOT / ".github" / file).exists(), file
    support = "The latest release is supported"
    assert support in security and support in (ROOT / "README.md").read_text(encoding="utf-8")
    recipe = (ROOT / ".github" / "conda" / "recipe.yaml").read_text(encoding="utf-8")
    for needed in PROJECT["project"]["dependencies"]:
        assert re.match(r"[\w-]+", needed)[0] in recipe, needed
