"""Run the vignettes and write their pages.

    python vignettes/build.py                          all pages, pictures and README blocks
    python vignettes/build.py scan errors              some pages
    python vignettes/build.py --quick --out DIRECTORY  small sizes, into another directory
    python vignettes/build.py --check                  do the pages show the scripts of today?

A vignette is a script in the percent format: it runs by `python vignettes/NAME.py`, opens as a
notebook with jupytext, and this builder runs it cell by cell in a fresh kernel.  What the header
line of a cell may say:

- `tags=["hide-input"]`: show what the cell gives, not the cell; `tags=["active-py"]`: only scripts
  run it (jupytext's own rule); `tags=["markdown"]`: what it prints is markdown.
- `alt="..."`: the text of its picture; `picture="scan.png"`: the picture is also kept as this file.
- `readme="NAME"`: what the cell prints also stands in the README, between the markers of that name;
  with the tag "markdown" as markdown.

A line `GENES = 2000  # quick: 60` has the second value under `--quick`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from render import OUTPUTS, Page, index_html, page_html, pictures

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


PAGES = [
    Page("quickstart", "One gene: fit, tests, the truth, a picture."),
    Page("structures_and_tests", "What V may be, and how often each test of V = 0 is wrong."),
    Page("from_cells", "A matrix of cells becomes pseudobulk, with all that was left out."),
    Page("scales", "What V means on log(1 + CP10K), and on the logarithm of a mean."),
    Page("missing_pairs", "Donors without some cell types: fit what is there, or impute?"),
    Page("scan", "All genes: one scan, its table, and every picture of it."),
    Page("cases_controls", "Which genes respond, in which cell types, and do types differ?"),
    Page("before_after", "The same donors twice: who responds, and do donors differ in it?"),
    Page("planning", "How many donors and cells: power and false positives by simulation."),
    Page("coming_from", "Names and calls beside those of ctmm, lme4, dream and metafor.",
         ("lme4", "metafor")),
    Page("r_users", "The R package: quick start with its output.",
         ("reticulate", "generics", "nlme")),
    Page("mathematics", "Every formula, and the function that computes it."),
    Page("house", "For the next developer: rooms, rules, and how to add to them."),
    Page("errors", "Every error and warning, and where more is to be said, why and what helps."),
]  # fmt: skip

SETUP = """\
%matplotlib inline
import matplotlib
matplotlib.rcParams["figure.dpi"] = 110
"""
QUICK = re.compile(r"^(\w+ = )(.+?)  # quick: (.+)$", re.MULTILINE)
# one thread a kernel, so that sums are added in one order; the package of this checkout
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
}  # fmt: skip


def notebook_of(name: str, quick: bool) -> nbformat.NotebookNode:
    """The script as a notebook, with the sizes asked for."""
    text = (HERE / f"{name}.py").read_text(encoding="utf-8")
    text = QUICK.sub(r"\1\3" if quick else r"\1\2", text)
    return jupytext.reads(text, fmt="py:percent")


def run(name: str, quick: bool) -> nbformat.NotebookNode:
    """The notebook with its outputs; what it writes to stderr is an error."""
    book = notebook_of(name, quick)
    book.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    client = NotebookClient(
        book, timeout=3600, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}}, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    client.execute(env=os.environ | ENVIRONMENT)
    del book.cells[0]
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise SystemExit(f"{name}: a cell wrote to stderr:\n{cell.source}\n{output.text}")
    return book


def missing_r(packages: tuple[str, ...]) -> str:
    """What of R a page needs and this machine does not have."""
    if not packages:
        return ""
    if shutil.which("Rscript") is None:
        return "R"
    code = "cat(Filter(function(p) !requireNamespace(p, quietly = TRUE), commandArgs(TRUE)))"
    call = ["Rscript", "--vanilla", "-e", code, *packages]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout


def fill_readme(book: nbformat.NotebookNode) -> None:
    """Put the text of cells with `readme=` between the README's markers."""
    path = ROOT / "README.md"
    for cell in book.cells:
        name = cell.metadata.get("readme")
        if not name:
            continue
        shown = "".join(out.text for out in cell.outputs if out.output_type == "stream").rstrip()
        shown = "\n".join(line.rstrip() for line in shown.splitlines())
        if "markdown" not in cell.metadata.get("tags", []):
            shown = f"```text\n{shown}\n```"
        block = f"<!-- {name}: begin -->\n{shown}\n<!-- {name}: end -->"
        text = path.read_text(encoding="utf-8")
        old = re.search(rf"<!-- {name}: begin -->.*?<!-- {name}: end -->", text, flags=re.DOTALL)
        if old is None:
            raise SystemExit(f"README.md has no markers of {name}")
        path.write_text(text.replace(old[0], block), encoding="utf-8")


def build(page: Page, out: Path, quick: bool) -> str:
    """Run one vignette and write its page; returns what to report."""
    lacking = missing_r(page.r)
    if lacking:
        return f"{page.name}: left out, it needs {lacking}"
    book = run(page.name, quick)
    html = page_html(book, page.name)
    for trace in (str(ROOT), str(Path.home()), " at 0x"):
        if trace in html:
            raise SystemExit(f"{page.name}: the page shows {trace!r}, which differs elsewhere")
    (out / f"{page.name}.html").write_text(html, encoding="utf-8")
    for name, png in pictures(book).items():
        ((out if quick else HERE) / name).write_bytes(png)
    if not quick:
        fill_readme(book)
    if not quick and page.name == "quickstart":  # its picture and README block come from the script
        subprocess.run(
            [sys.executable, str(HERE / "quickstart.py"), "--readme"],
            check=True, stdout=subprocess.DEVNULL, env=os.environ | ENVIRONMENT,
        )  # fmt: skip
    return f"{page.name}: {len(html.encode()) / 1000:.0f} kB"


def stale(pages: list[Page]) -> list[str]:
    """Pages of the project that are missing, or show another text or code than their script."""
    out = []
    for page in pages:
        path = HERE / "pages" / f"{page.name}.html"
        shown = OUTPUTS.sub("", path.read_text(encoding="utf-8")) if path.exists() else ""
        if shown != OUTPUTS.sub("", page_html(notebook_of(page.name, False), page.name)):
            out.append(page.name)
    return out


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Run the vignettes and write their pages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="pages (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes; needs --out")
    parser.add_argument("--out", type=Path, help="directory of the pages")
    parser.add_argument("--check", action="store_true", help="run nothing, compare the pages")
    parser.add_argument("--jobs", type=int, default=2, help="pages at a time")
    options = parser.parse_args()
    if options.quick and options.out is None:
        parser.error("--quick needs --out: the pages of the project are built in full")
    known = [page.name for page in PAGES]
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no page {', '.join(unknown)}: choose from {', '.join(known)}")
    chosen = [page for page in PAGES if not options.names or page.name in options.names]
    if options.check:
        old = stale(chosen)
        sys.exit(f"build these anew: {' '.join(old)}" if old else 0)
    out = options.out or HERE / "pages"
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for report in pool.map(lambda page: build(page, out, options.quick), chosen):
            print(report, flush=True)
    (out / "index.html").write_text(index_html(PAGES, out), encoding="utf-8")


if __name__ == "__main__":
    main()
