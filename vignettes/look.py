"""Open every page of the built site in headless Chromium: ``python vignettes/look.py build/site``.

On screens of 1280 and 390 pixels, light and dark.  A page that is wider than its screen, or that
lacks a picture, is an error; tables and code scroll by themselves.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from html import unescape
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1280, 390)
SCHEMES = {"dark": 0, "light": 1}  # as Chromium numbers them
FRAMES = """\
<!doctype html><body><script>
const open = (page, width) => new Promise(done => {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: page, width: width, height: 800, style: "border: 0"});
  frame.onload = () => {
    const doc = frame.contentDocument;
    const missing = [...doc.images].filter(one => !one.naturalWidth).map(one => one.src);
    const dark = frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches;
    done({page, width, is: doc.documentElement.scrollWidth, missing, dark});
    frame.remove();
  };
  document.body.append(frame);
});
(async () => {
  const found = [];
  for (const width of WIDTHS) for (const page of PAGES) found.push(await open(page, width));
  const said = document.createElement("pre");
  said.textContent = JSON.stringify(found);
  document.body.replaceChildren(said);
})();
</script></body>
"""


def browser() -> str | None:
    """The Chromium of this machine."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def look(site: Path, scheme: str) -> list[dict]:
    """Of every page at every width: its own width, pictures that are missing, light or dark."""
    pages = sorted(page.resolve().as_uri() for page in site.rglob("*.html"))
    text = FRAMES.replace("PAGES", json.dumps(pages)).replace("WIDTHS", json.dumps(WIDTHS))
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "frames.html"
        frames.write_text(text, encoding="utf-8")
        call = [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--window-size=1400,900", "--allow-file-access-from-files",
            f"--user-data-dir={folder}/profile", "--virtual-time-budget=1000000",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            "--dump-dom", frames.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=900)
    return json.loads(unescape(done.stdout.partition("<pre>")[2].partition("</pre>")[0]))


def faults(site: Path) -> list[str]:
    """What is wrong, a line for each."""
    out = []
    for scheme in SCHEMES:
        for one in look(site, scheme):
            page = one["page"].removeprefix(site.resolve().as_uri() + "/")
            where = f"{page} at {one['width']} pixels, {scheme}"
            if one["is"] > one["width"]:
                out.append(f"{where}: {one['is']} pixels wide")
            if one["dark"] != (scheme == "dark"):
                out.append(f"{where}: shown in the other colours")
            out += [f"{where}: no picture {name}" for name in one["missing"]]
    return out


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = faults(folder)
    print(*found, sep="\n", end="\n" * bool(found))
    pages = len(list(folder.rglob("*.html")))
    print(f"{pages} pages at {WIDTHS} pixels, light and dark: {len(found)} faults")
    sys.exit(bool(found))
