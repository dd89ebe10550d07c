"""Put what pages print into the README, and keep their pictures, once the site is built in full.

    python -m sphinx -j 2 vignettes build/site && python vignettes/readme.py

Cells with `readme="NAME"` print what stands between the markers of that name, cells with
`picture="scan.png"` make this file; the quick start writes its own block.
"""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
EXECUTED = ROOT / "build" / "jupyter_execute"
COLORS = 96
"""Of a picture's palette: plots need few, and so the file stays small."""


def small_png(data: str) -> bytes:
    """A picture with a palette, and without what depends on the day it was made."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell prints: markdown as it is, other text as a block."""
    text = ""
    for out in cell.outputs:
        more = out.get("text") or out.data.get("text/markdown", "")
        if not text.endswith(more):  # streams that were merged into the first are still there
            text += more
    shown = "\n".join(line.rstrip() for line in text.rstrip().splitlines())
    return shown if "markdown" in cell.metadata.get("tags", []) else f"```text\n{shown}\n```"


def filled(readme: str, name: str, shown: str) -> str:
    """The README with another text between the markers of that name."""
    block = f"<!-- {name}: begin -->\n{shown}\n<!-- {name}: end -->"
    old = re.search(rf"<!-- {name}: begin -->.*?<!-- {name}: end -->", readme, flags=re.DOTALL)
    if old is None:
        raise SystemExit(f"README.md has no markers of {name}")
    return readme.replace(old[0], block)


def main() -> None:
    """Fill the README and write the pictures."""
    readme = ROOT / "README.md"
    for path in sorted(EXECUTED.glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        if book.metadata.get("quick"):
            raise SystemExit("the site was built with -t quick: build it in full")
        for cell in book.cells:
            if "readme" in cell.metadata:
                text = readme.read_text(encoding="utf-8")
                readme.write_text(filled(text, cell.metadata["readme"], printed(cell)), "utf-8")
            if "picture" in cell.metadata:
                png = next(out.data["image/png"] for out in cell.outputs if "data" in out)
                (HERE / cell.metadata["picture"]).write_bytes(small_png(png))
    subprocess.run([sys.executable, HERE / "quickstart.py", "--readme"], check=True)


if __name__ == "__main__":
    main()
