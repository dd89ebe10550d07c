"""The vignettes run, their pages are today's, and what they name exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest
from test_layers import LAYERS, WHOLE

sys.path.insert(0, str(Path(__file__).parents[1] / "vignettes"))
import messages

ROOT = Path(__file__).parents[1]
VIGNETTES = ROOT / "vignettes"
PAGES = VIGNETTES / "pages"
BUILD = str(VIGNETTES / "build.py")
VERSIONS = re.compile(r"^ctmm-formula \d[^>`<]*?\.$", re.MULTILINE)
LARGEST = 300_000  # bytes of a page


def scripts() -> list[str]:
    """Names of the vignettes: the scripts in the percent format."""
    return sorted(p.stem for p in VIGNETTES.glob("*.py") if "# %%" in p.read_text("utf-8")[:400])


def text_of(html: str) -> str:
    """What a reader sees, without pictures and versions."""
    html = re.sub(r"<style>.*?</style>|<img [^>]*>", "", html, flags=re.DOTALL)
    return VERSIONS.sub("(versions)", unescape(re.sub(r"<[^>]+>", "", html)))


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    """All pages at small sizes; a page may only be left out for want of R, and says so."""
    out = tmp_path_factory.mktemp("pages")
    done = subprocess.run(
        [sys.executable, BUILD, "--quick", "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    left_out = re.findall(r"(\w+): left out, it needs", done.stdout)
    assert {p.stem for p in out.glob("*.html")} == {*scripts(), "index"} - set(left_out)
    if os.environ.get("CTMM_REQUIRE_R") == "1":
        assert not left_out, done.stdout
    return out


def test_every_vignette_has_its_page():
    assert {p.stem for p in PAGES.glob("*.html")} == {*scripts(), "index"}


def test_pages_show_todays_scripts():
    done = subprocess.run(
        [sys.executable, BUILD, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.pages
@pytest.mark.parametrize("name", scripts())
def test_pages_show_todays_output(quick, name):
    """Where no size differs between the quick and the full build, all numbers must be the same."""
    if "# quick: " in (VIGNETTES / f"{name}.py").read_text("utf-8"):
        pytest.skip("the quick page has other sizes")
    if not (quick / f"{name}.html").exists():
        pytest.skip("left out without R")
    shown = (PAGES / f"{name}.html").read_text("utf-8")
    today = (quick / f"{name}.html").read_text("utf-8")
    assert text_of(shown) == text_of(today), f"python vignettes/build.py {name}"


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.html")), ids=lambda page: page.stem)
def test_pages_stand_alone(page):
    html = page.read_text("utf-8")
    assert len(html.encode()) < LARGEST
    assert "<script" not in html
    assert not re.search(r'(src|<link[^>]+href)="(?!data:)', html)
    links = [link for link in re.findall(r'href="([^"#]+)', html) if "://" not in link]
    assert links
    assert [link for link in links if not (PAGES / link).exists()] == []


def test_readme_shows_what_the_page_prints():
    """The summary in the README, run as a script, is that of the page, run as a notebook."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = readme.partition("<!-- quickstart: begin -->")[2].partition("<!-- quickstart: end -->")
    shown = VERSIONS.sub("(versions)", block[0])
    summary = re.search(r" +Cell type-specific mixed model\n.*?\(versions\)", shown, re.DOTALL)
    assert summary
    page = text_of((PAGES / "quickstart.html").read_text("utf-8"))
    assert summary[0] in page
    for result in re.findall(r"^(?:variance|mean) \w+: .*(?:\n  .*)+", shown, re.MULTILINE):
        assert result in page


def test_readme_shows_the_scan_of_the_page():
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = readme.partition("<!-- scan: begin -->\n```text\n")[2].partition("\n```\n")[0]
    assert len(shown.splitlines()) > 4
    page = text_of((PAGES / "scan.html").read_text("utf-8"))
    assert shown in "\n".join(line.rstrip() for line in page.splitlines())


def test_readme_shows_the_rates_of_the_page():
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = readme.partition("<!-- tests: begin -->\n")[2].partition("\n<!-- tests: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    assert len(rows) > 5
    page = (PAGES / "structures_and_tests.html").read_text("utf-8").replace("\n", "")
    for row in rows[2:]:
        assert "".join(f"<td>{cell}</td>" for cell in row) in page


def test_formulas_name_functions_that_exist():
    """Every `room.module.name` on the page of the mathematics can be imported."""
    text = (VIGNETTES / "mathematics.py").read_text("utf-8")
    names = re.findall(r"`([a-z_]+\.[\w.]+)`", text)
    assert len(names) > 50
    for name in names:
        parts = name.split(".")
        depth = len(parts) - 1
        while True:
            try:
                found = import_module(".".join(["ctmm_formula", *parts[:depth]]))
                break
            except ModuleNotFoundError:
                depth -= 1
        assert depth, name
        for part in parts[depth:]:
            assert hasattr(found, part), name
            found = getattr(found, part)


@pytest.mark.parametrize("file", ["vignettes/house.py", "CONTRIBUTING.md"])
def test_files_that_developers_are_sent_to_exist(file):
    rooms = "ctmm_formula|tests|vignettes|r_bridge|.ci"
    paths = set(re.findall(rf"`((?:{rooms})/[\w/.-]*)`", (ROOT / file).read_text("utf-8")))
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_house_leaves_no_room_out():
    """Every folder and file of the package's top level is named."""
    text = (VIGNETTES / "house.py").read_text("utf-8")
    top = (ROOT / "ctmm_formula").iterdir()
    there = {p.name + "/" * p.is_dir() for p in top if p.suffix in {"", ".py"}}
    there -= {"__init__.py", "__pycache__/"}
    assert [name for name in sorted(there) if f"`ctmm_formula/{name}`" not in text] == []


def test_rooms_stand_in_the_order_of_imports():
    text = (VIGNETTES / "house.py").read_text("utf-8")
    rooms = re.findall(r"^# \| `ctmm_formula/([\w.]+)/?` \|", text, re.MULTILINE)
    assert len(rooms) > 12
    floors = []
    for room in rooms:
        path = ROOT / "ctmm_formula" / room
        files = [path] if path.suffix or path.name in WHOLE else path.glob("[a-z]*.py")
        floors.append(min(LAYERS.index(f.stem) for f in files if f.stem in LAYERS))
    assert floors == sorted(floors)


REPEATED = {"inference/fit.py: null", "inference/small_sample.py: _at"}
"""Places that raise what stands in the notes of tests."""


@pytest.fixture(scope="module")
def found() -> list[messages.Message]:
    return list(messages.Source().messages())


@pytest.mark.pages
def test_every_message_can_be_read_and_stands_on_the_page(found):
    silent = {m.where for m in found if not messages.has_words(m.text)}
    assert silent == REPEATED, "no words found where these raise"
    texts = {m.text for m in found if m.where not in REPEATED}
    assert len(texts) > 300
    shown = messages.page()
    assert [text for text in sorted(texts) if f"`{text}`" not in shown] == []


@pytest.mark.parametrize("entry", messages.entries(), ids=lambda entry: entry.fragments[0])
def test_entries_belong_to_messages_and_add_to_them(entry, found):
    assert entry.fragments
    for fragment in entry.fragments:
        assert len(fragment) > 8, "too short to tell messages apart"
        assert any(fragment in m.text for m in found), f"{fragment!r} is in no message"
    assert len(entry.words) > 20


def test_no_message_has_two_entries(found):
    parts = [(part, entry.words) for entry in messages.entries() for part in entry.fragments]
    for text in {m.text for m in found}:
        assert len({words for part, words in parts if part in text}) < 2, text


def test_messages_are_found_as_they_are_raised(tmp_path, monkeypatch):
    """Texts put together from variables, helpers and conditions are seen."""
    (tmp_path / "a.py").write_text(
        "import warnings\n"
        "class CTMMError(ValueError): pass\n"
        "class Own(CTMMError): pass\n"
        "class CTMMWarning(UserWarning): pass\n"
        "def stop(place, message): raise CTMMError(f'{message} at {place}')\n"
        "def words(x): return f'a {x} comes' + ' late'\n"
        "def f(x):\n"
        "    if x: raise Own(f'value {x} {x} too large')\n"
        "    text = 'wanting ' + str(x) if x else 'plainly nothing'\n"
        "    warnings.warn(text, CTMMWarning, stacklevel=2)\n"
        "    stop(3, 'stopped by f')\n"
        "    raise CTMMError(words(x))\n"
    )
    monkeypatch.setattr(messages, "PACKAGE", tmp_path)
    found = {(m.kind, m.text) for m in messages.Source().messages()}
    assert found == {
        ("Own", "value … … too large"),
        ("CTMMWarning", "wanting …"),
        ("CTMMWarning", "plainly nothing"),
        ("CTMMError", "stopped by f…"),
        ("CTMMError", "a … comes late"),
    }
