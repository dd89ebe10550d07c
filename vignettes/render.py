"""Notebooks as pages: one HTML file each, with its pictures and style, that needs no network."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import latex2mathml.converter
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.container import container_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
R_CALL = re.compile(r'\AR\(r?"""\n(.*?)\n?"""\)\Z', re.DOTALL)
"""A cell that only hands a text to R is shown as the R code it is."""
COLORS = 96
"""Of a picture's palette: plots need few, and so a page stays small."""
OUTPUTS = re.compile(r"<output>.*?</output>\n?", re.DOTALL)
"""What the cells of a page gave."""


@dataclass(frozen=True)
class Page:
    """One vignette: its file, what the index says of it, and the R packages it runs."""

    name: str
    about: str
    r: tuple[str, ...] = ()


def code_html(source: str, language: str) -> str:
    """Highlighted code."""
    try:
        lexer = get_lexer_by_name(language)
    except ClassNotFound:
        return f"<pre>{escape(source)}</pre>"
    return (
        f'<pre class="code">{highlight(source, lexer, HtmlFormatter(nowrap=True)).rstrip()}</pre>'
    )


def math_html(source: str, options: dict[str, bool]) -> str:
    """A formula as MathML."""
    display = "block" if options["display_mode"] else "inline"
    return latex2mathml.converter.convert(source, display=display)


def markdown() -> MarkdownIt:
    """Commonmark with tables, formulas between dollars, and `::: columns`."""
    md = MarkdownIt("commonmark", {"highlight": lambda code, lang, _: code_html(code, lang)})
    return (
        md.enable("table")
        .use(dollarmath_plugin, renderer=math_html, double_inline=False)
        .use(container_plugin, "columns")
        .use(anchors_plugin, max_level=3)
    )


def small_png(data: str) -> bytes:
    """A picture with a palette, and without what depends on the day it was made."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_of(output: NotebookNode) -> str | None:
    """The picture of an output, or None."""
    return output.get("data", {}).get("image/png")


def output_html(output: NotebookNode, header: dict, md: MarkdownIt) -> str:
    """One output: printed text, a picture, or a table."""
    if output.output_type == "stream":
        if "markdown" in header.get("tags", []):
            return md.render(output.text)
        return f'<pre class="out">{escape(output.text.rstrip())}</pre>'
    data = output.data
    if "image/png" in data:
        if not header.get("alt"):
            raise ValueError("a picture has no alt= in the header of its cell")
        coded = base64.b64encode(small_png(data["image/png"])).decode()
        return f'<img alt="{escape(header["alt"])}" src="data:image/png;base64,{coded}">'
    if "text/html" in data:
        return f'<div class="table">{data["text/html"]}</div>'
    return ""  # the value of a last line, such as a legend: vignettes print what they show


def cell_html(cell: NotebookNode, md: MarkdownIt) -> str:
    """One cell with what it gave."""
    if cell.cell_type == "markdown":
        return md.render(cell.source)
    if cell.cell_type != "code" or not cell.source.strip():
        return ""
    r = R_CALL.match(cell.source.strip())
    code = code_html(r[1], "r") if r else code_html(cell.source, "python")
    shown = "" if "hide-input" in cell.metadata.get("tags", []) else code
    given = [output_html(output, cell.metadata, md) for output in cell.outputs]
    return "\n".join([shown, *(f"<output>\n{text}\n</output>" for text in given if text)])


def pictures(book: NotebookNode) -> dict[str, bytes]:
    """File name -> picture, of the cells that name one."""
    return {
        cell.metadata["picture"]: small_png(next(filter(None, map(png_of, cell.outputs))))
        for cell in book.cells
        if "picture" in cell.metadata
    }


def title_of(text: str) -> str:
    """The heading of a page."""
    return next(line[2:] for line in text.splitlines() if line.startswith("# "))


def page_html(book: NotebookNode, name: str) -> str:
    """A whole page."""
    md = markdown()
    return TEMPLATE.substitute(
        title=escape(title_of(book.cells[0].source)),
        nav='<a href="index.html">all pages</a>',
        source=f'<a href="../{name}.py">vignettes/{name}.py</a>',
        style=HtmlFormatter(style="friendly").get_style_defs(".code"),
        body="\n".join(cell_html(cell, md) for cell in book.cells),
    )


def index_html(pages: Sequence[Page], out: Path) -> str:
    """The list of the pages that are there."""
    here = Path(__file__).parent
    rows = []
    for page in pages:
        if (out / f"{page.name}.html").exists():
            book = (here / f"{page.name}.py").read_text(encoding="utf-8")
            title = re.search(r"^# # (.+)$", book, re.MULTILINE)
            assert title, page.name
            link = f'<a href="{page.name}.html">{escape(title[1])}</a>'
            rows.append(f"<li>{link}<br>{escape(page.about)}</li>")
    body = "<h1>ctmm_formula</h1>\n<ul class='index'>\n" + "\n".join(rows) + "\n</ul>"
    return TEMPLATE.substitute(
        title="ctmm_formula", nav='<a href="../../README.md">README</a>',
        source='<a href="../build.py">vignettes/build.py</a>', style="", body=body,
    )  # fmt: skip
