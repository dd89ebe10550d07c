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
import look
import messages

import ctmm_formula as ctmm
from ctmm_formula import plots, simulate

ROOT = Path(__file__).parents[1]
VIGNETTES = ROOT / "vignettes"
NEEDS_R = {"coming_from", "r_users"}
VERSIONS = re.compile(r"^ctmm-formula \d[^>`<]*?\.$", re.MULTILINE)


def scripts() -> list[str]:
    """Names of the vignettes: the scripts in the percent format."""
    return sorted(p.stem for p in VIGNETTES.glob("*.py") if "# %%" in p.read_text("utf-8")[:400])


def text_of(html: str) -> str:
    """What a reader sees, without versions."""
    html = re.sub(r"<head>.*?</head>|<script.*?</script>", "", html, flags=re.DOTALL)
    return VERSIONS.sub("(versions)", unescape(re.sub(r"<[^>]+>", "", html)))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site at small sizes; what cannot be read, linked or run is an error."""
    out = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [
            sys.executable, "-m", "sphinx", "-j", "2", "-q", "-W", "--keep-going", "-t", "quick",
            str(VIGNETTES), str(out),
        ],
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    heard = [line for line in done.stderr.splitlines() if re.search("WARNING:|ERROR:|rror:", line)]
    assert done.returncode == 0, "\n".join(heard) or done.stderr[-3000:]
    return out


@pytest.mark.pages
def test_every_script_has_its_page_and_every_public_name_its_own(site):
    left_out = set(scripts()) - {page.stem for page in site.glob("*.html")}
    assert left_out <= NEEDS_R
    if os.environ.get("CTMM_REQUIRE_R") == "1":
        assert not left_out
    reference = {page.stem for page in (site / "reference" / "generated").glob("*.html")}
    modules = {"errors", "plots", "r", "simulate", "__version__"}
    public = {f"ctmm_formula.{name}" for name in ctmm.__all__ if name not in modules}
    public |= {f"ctmm_formula.simulate.{name}" for name in simulate.__all__} - {
        "ctmm_formula.simulate.DESIGNS", "ctmm_formula.simulate.Rng",
        "ctmm_formula.simulate.simulate_pseudobulk",
    }  # fmt: skip
    public |= {f"ctmm_formula.plots.{name}" for name in dir(plots) if f"{name}_data" in dir(plots)}
    assert sorted(public - reference) == []


@pytest.mark.pages
def test_pages_stand_alone(site):
    """Formulas, styles and pictures come with the site: it is read without a network."""
    for page in site.rglob("*.html"):
        html = page.read_text("utf-8")
        loaded = re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="([^"]+)', html
        )
        assert [name for name in loaded if name.startswith(("http", "//"))] == [], page
        here = [name.partition("?")[0] for name in loaded if not name.startswith("data:")]
        assert [name for name in here if not (page.parent / name).exists()] == [], page
    assert "<math" in (site / "mathematics.html").read_text("utf-8")


needs_browser = pytest.mark.skipif(look.browser() is None, reason="there is no Chromium here")


@needs_browser
@pytest.mark.pages
def test_pages_fit_their_screen(site):
    assert look.faults(site) == []


@needs_browser
@pytest.mark.slow
def test_a_page_that_is_too_wide_or_lacks_a_picture_is_seen(tmp_path):
    page = '<!doctype html><body style="margin: 0"><div style="width: {}px">x</div>{}</body>'
    (tmp_path / "good.html").write_text(page.format(300, ""), "utf-8")
    (tmp_path / "bad.html").write_text(page.format(600, '<img src="a.png">'), "utf-8")
    lacks = f"no picture {(tmp_path / 'a.png').as_uri()}"
    assert sorted(look.faults(tmp_path)) == sorted(
        f"bad.html at {width} pixels, {scheme}: {fault}"
        for scheme in ("light", "dark")
        for width in (1280, 390)
        for fault in (lacks, *(["600 pixels wide"] if width < 600 else []))
    )


@pytest.mark.pages
def test_help_pages_of_r_have_no_code_of_latex_or_rd(site):
    html = (site / "reference" / "r.html").read_text("utf-8")
    if "This site was built without R" in html:
        pytest.skip("built without R")
    assert "<math" in html and "https://doi.org/10.1038/s41467-024-49242-9" in html
    assert re.findall(r"\\[a-zA-Z]+", text_of(html.replace("\\n", ""))) == []


@pytest.mark.pages
def test_calls_of_r_are_shown_as_r(site):
    if not (site / "r_users.html").exists():
        pytest.skip("left out without R")
    html = (site / "r_users.html").read_text("utf-8")
    assert "highlight-r " in html
    assert 'R("""' not in text_of(html)


@pytest.mark.pages
def test_readme_shows_what_the_page_prints(site):
    """The summary in the README, run as a script, is that of the page, run as a notebook."""
    readme = (ROOT / "README.md").read_text("utf-8")
    block = readme.partition("<!-- quickstart: begin -->")[2].partition("<!-- quickstart: end -->")
    shown = VERSIONS.sub("(versions)", block[0])
    summary = re.search(r" +Cell type-specific mixed model\n.*?\(versions\)", shown, re.DOTALL)
    assert summary
    page = text_of((site / "quickstart.html").read_text("utf-8"))
    assert summary[0] in page
    for result in re.findall(r"^(?:variance|mean) \w+: .*(?:\n  .*)+", shown, re.MULTILINE):
        assert result in page


@pytest.mark.pages
def test_readme_shows_the_answer_of_the_page(site):
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = readme.partition("<!-- cells: begin -->\n```text\n")[2].partition("\n```\n")[0]
    assert len(shown.splitlines()) > 8
    assert shown in text_of((site / "from_cells.html").read_text("utf-8"))


@pytest.mark.pages
def test_readme_shows_the_rates_of_the_page(site):
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = readme.partition("<!-- tests: begin -->\n")[2].partition("\n<!-- tests: end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    assert len(rows) > 5
    page = (site / "structures_and_tests.html").read_text("utf-8").replace("\n", "")
    page = re.sub('<td class="(number|words)">', "<td>", page)
    for row in rows[2:]:
        assert "".join(f"<td><p>{cell}</p></td>" for cell in row) in page


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


REPEATED = {
    "inference/fit.py: null", "inference/fit.py: profiles", "inference/small_sample.py: _at",
    "results/record.py: shown_errors",
}  # fmt: skip
"""Places that raise, or warn of, what stands in the notes of tests."""


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
