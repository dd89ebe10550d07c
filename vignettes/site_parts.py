"""What the site is made with: scripts as notebooks, formulas as MathML, pages of R and of figures.

A page that is a script is in the percent format: it runs by `python vignettes/NAME.py`, opens as a
notebook with jupytext, and is run cell by cell as the site is built.  What the header line of a
cell may say:

- `tags=["hide-input"]`: the code is folded away; `tags=["active-py"]`: only scripts run it
  (jupytext's own rule); `tags=["markdown"]`: what it prints is markdown.
- `alt="..."`: the text of its picture, which every picture needs; `picture="scan.png"`: `readme.py`
  keeps the picture as this file; `readme="NAME"`: `readme.py` puts what it prints into the README.

A line `GENES = 2000  # quick: 60` has the second value where the site is built with `-t quick`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING

import jupytext
import latex2mathml.converter
import nbformat
from docutils import nodes
from sphinx.ext import napoleon
from sphinx.ext.napoleon import NumpyDocstring
from sphinx.util import logging

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MEASURED = ROOT / "tests" / "benchmarks"
R_PAGES = {"README.md": "install.md", "ctmm-in-r.md": "tour.md"}
NEEDS_R = {
    "coming_from.py": ("lme4", "metafor"), "r_users.py": ("reticulate", "generics", "nlme"),
}  # fmt: skip
R_FIRST = (
    "ctmmFormula-package", "ctmm_install", "ctmm_check", "ctmm", "ctmm-methods", "means", "tests",
    "groups", "effects.ctmm", "heritability", "donors", "jackknife", "accessors", "tidiers", "banded",
    "ctmm_genes", "add_genes", "ctmm_pseudobulk", "ctmm_data", "pseudobulk",
)  # fmt: skip
"""Help pages by what they are for: first steps, a gene, all genes, cells and tables."""
R_PACKAGE = ROOT / "r_bridge" / "ctmmFormula"
logger = logging.getLogger(__name__)

QUICK = re.compile(r"^(\w[\w, ]* = )(.+?)  # quick: (.+)$", re.MULTILINE)
FORMATTED = re.compile(r"  # fmt: skip$", re.MULTILINE)
HTML_IMAGE = re.compile(r'<img src="([^"]+)" alt="([^"]*)"\s*/>')
R_CALL = re.compile(r'\AR\(r?"""\n(.*?)\n?"""\)\Z', re.DOTALL)
"""A cell that only hands a text to R is shown as the R code it is."""
NUMBER = re.compile(r"[-−+±<>≤≥~]?\s*\.?\d")
MEASURED_PAGE = re.compile(r"(?:tests/benchmarks|vignettes/(evidence))/(\w+)\.md")
R_FORMULA = re.compile(r'<code class="reqn">(.*?)</code>', re.DOTALL)
R_DOI = re.compile(r'\\Sexpr\[[^]]*\]\{tools:::Rd_expr_doi\("(.*?)"\)\}')
R_BODY = re.compile(r"<h2.*?>(.*?)</h2>(.*?)(?:<hr|</div>\s*</body>)", re.DOTALL)
SETUP = f"""\
%matplotlib inline
import contextlib
import io
import os

import matplotlib
from IPython import get_ipython
from IPython.display import Markdown, display

matplotlib.rcParams["figure.dpi"] = 110
os.chdir({str(ROOT)!r})


def as_markdown(line, cell):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        get_ipython().run_cell(cell).raise_error()
    display(Markdown(printed.getvalue()))


get_ipython().register_magic_function(as_markdown, "cell")
"""


def notebook(text: str) -> nbformat.NotebookNode:
    """The script as a notebook, with the sizes asked for."""
    quick = bool(os.environ["CTMM_SITE_QUICK"])
    text = FORMATTED.sub("", QUICK.sub(r"\1\3" if quick else r"\1\2", text))
    book = jupytext.reads(text, fmt="py:percent")
    book.cells = [cell for cell in book.cells if cell.cell_type != "raw"]
    for cell in book.cells:
        if "markdown" in cell.metadata.get("tags", []):
            cell.source = f"%%as_markdown\n{cell.source}"
        if "alt" in cell.metadata:
            cell.metadata["mystnb"] = {"image": {"alt": cell.metadata["alt"]}}
    setup = nbformat.v4.new_code_cell(SETUP, metadata={"tags": ["remove-cell"]})
    book.cells.insert(1, setup)  # after the title
    book.metadata["quick"] = quick
    book.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python",
        "language": "python",
    }
    return book


class Docstring(NumpyDocstring):
    """As napoleon reads it, but a property's first line is a sentence, whatever colon it has."""

    def _consume_inline_attribute(self) -> tuple[str, list[str]]:
        lines = [self._lines.next(), *self._dedent(self._consume_to_end())]
        return "", NumpyDocstring(lines, self._config).lines()

    def _consume_fields(self, *args, multiple: bool = True, **kwargs):
        """Several attributes in one line are several, as parameters are."""
        return super()._consume_fields(*args, multiple=multiple, **kwargs)


def says_nothing(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object):
    """Whether a member is a field of a named tuple, which its class describes."""
    del app, what, name, options
    return skip or str(getattr(obj, "__doc__", "")).startswith("Alias for field number") or None


def kinds_of_cell(text: str) -> list[str]:
    """What stays in one line, as `0.050 (0.013) [84 failed]`, and what needs some width."""
    letters = sum(map(str.isalpha, text))
    if NUMBER.match(text) and (len(text) <= 12 or 3 * letters <= len(text)):
        return ["number"]
    return ["words"] if len(text) > 24 else []


def tidy(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """Show calls of R as R code, link files that are pages, ask every picture for its text."""
    for block in doctree.findall(nodes.literal_block):
        call = R_CALL.match(block.astext().strip())
        if call:
            block["language"] = "r"
            block.rawsource = call[1]
            block.children = [nodes.Text(call[1])]
    for cell in doctree.findall(nodes.entry):
        cell["classes"] += kinds_of_cell(cell.astext())
    for file in list(doctree.findall(nodes.literal)):
        found = MEASURED_PAGE.fullmatch(file.astext())
        page = found and f"{found[1] or 'measured'}/{found[2]}"
        if page in app.env.found_docs and not isinstance(file.parent, nodes.reference):
            uri = app.builder.get_relative_uri(name, page)
            file.replace_self(nodes.reference("", "", file.deepcopy(), internal=True, refuri=uri))
    for link in list(doctree.findall(nodes.reference)):  # types are classes: "genes" is none
        if link.children and isinstance(link[0], nodes.emphasis) and link.astext().islower():
            link.replace_self(link.children)
    for image in doctree.findall(nodes.image):
        if not image.get("alt"):
            logger.warning("%s: the picture %s has no alt text", name, image["uri"])


def mathml(text: str, display: str) -> str:
    """A formula; primes are transposes, and few fonts have room for one above a line."""
    return latex2mathml.converter.convert(text, display=display).replace(
        "<mi>&#x02032;</mi>", "<mo>&#x022A4;</mo>"
    )


def inline_formula(translator, node: nodes.math) -> None:
    """A formula of a line."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def display_formula(translator, node: nodes.math_block) -> None:
    """A formula of its own."""
    formula = mathml(node.astext(), "block")
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def missing_r(packages: tuple[str, ...]) -> str:
    """What a page needs of R and this machine does not have."""
    if shutil.which("Rscript") is None:
        return "R"
    code = "cat(Filter(function(p) !requireNamespace(p, quietly = TRUE), commandArgs(TRUE)))"
    call = ["Rscript", "--vanilla", "-e", code, *packages]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout


def left_out() -> list[str]:
    """Pages that run R packages which are not there."""
    out = [name for name, packages in NEEDS_R.items() if missing_r(packages)]
    if out:
        logger.info("left out, for want of R or its packages: %s", ", ".join(out))
    return out


def write(path: Path, text: str) -> None:
    """Write where the text is another, so that an unchanged page is not read again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def as_image(match: re.Match) -> str:
    """A picture in HTML as one in markdown, whose file is then found and copied."""
    text = re.sub(r"([\[\]])", r"\\\1", match[2])
    return f"![{text}]({match[1]})"


def pages_of_the_repository(app: Sphinx) -> None:
    """What stands beside the code it tells of, as pages: figures measured, the R package."""
    del app
    brought = {p: f"measured/{p.name}" for p in MEASURED.glob("*.md") if p.name != "README.md"}
    brought |= {ROOT / "r_bridge" / old: f"r/{new}" for old, new in R_PAGES.items()}
    for source, page in brought.items():
        target = HERE / page

        def link(match: re.Match, source: Path = source, target: Path = target) -> str:
            to = (source.parent / match[1]).resolve()
            to = HERE / brought[to] if to in brought else to
            return f"]({os.path.relpath(to, target.parent)})"

        text = HTML_IMAGE.sub(as_image, source.read_text(encoding="utf-8"))
        text = re.sub(r"\]\((?!\w+:|#)([^)]+)\)", link, text)
        script = source.with_suffix(".py")
        by = f"\nMade by `{script.relative_to(ROOT)}`.\n" if script.exists() else ""
        write(target, text + by)


def r_pages(app: Sphinx) -> None:
    """The help pages of the R package, by R itself; their names are what a search finds."""
    del app
    text = "# Reference of the R package\n\nThe help pages of `ctmmFormula`, which `?name` shows in R.\n\n"
    if shutil.which("Rscript") is None:
        text += 'This site was built without R: `help(package = "ctmmFormula")` shows them.\n'
    rank = {name: at for at, name in enumerate(R_FIRST)}
    pages = sorted((R_PACKAGE / "man").glob("*.Rd"), key=lambda p: (rank.get(p.stem, 99), p.stem))
    for page in pages if shutil.which("Rscript") else ():
        # links to other help pages would lead nowhere
        code = "tools::Rd2HTML(commandArgs(TRUE), Links = character(), Links2 = character())"
        call = ["Rscript", "--vanilla", "-e", f"suppressWarnings({code})", str(page)]
        html = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        title, body = R_BODY.search(html).groups()
        names = dict.fromkeys(
            re.findall(r"^\\alias\{(.+)\}", page.read_text("utf-8"), re.MULTILINE)
        )
        body = re.sub(r"<(/?)h3>", r"<\1h4>", re.sub(r"\n{2,}", "\n", body))
        body = R_FORMULA.sub(lambda formula: mathml(unescape(formula[1]), "inline"), body)
        body = R_DOI.sub(r'<a href="https://doi.org/\1">doi:\1</a>', body)
        called = ", ".join(f"`{name}`" for name in names)
        text += f"## {title}\n\n{called}\n\n```{{raw}} html\n{body.strip()}\n```\n\n"
    write(HERE / "reference" / "r.md", text)


def extend(app: Sphinx) -> None:
    """Register all of it."""
    app.connect("builder-inited", pages_of_the_repository)
    app.connect("builder-inited", r_pages)
    app.connect("autodoc-skip-member", says_nothing)
    app.connect("doctree-resolved", tidy)
    napoleon.NumpyDocstring = Docstring
    app.add_html_math_renderer(
        "mathml", inline_renderers=(inline_formula, None), block_renderers=(display_formula, None)
    )
