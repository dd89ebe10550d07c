"""The site: these pages, the reference of Python and R, and what was measured.

    python -m sphinx -j 2 vignettes build/site            all pages in full
    python -m sphinx -j 2 -t quick vignettes build/site   small sizes

Pages that are scripts are run as the site is built (`site_parts.py` says how); what cannot be read,
linked or run, and what a page writes to stderr, is a warning, and with `-W` an error.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]
import site_parts

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# one thread a kernel, so that sums are added in one order; the package of this checkout
os.environ |= {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "TQDM_DISABLE": "1",
    "PYTHONPATH": str(ROOT), "CTMM_SITE_QUICK": "yes" if tags.has("quick") else "",  # noqa: F821
}  # fmt: skip

project = "ctmm_formula"
author = "The ctmm_formula developers"
project_copyright = f"2026, {author}"
release = version_of("ctmm-formula")
version = release

extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon",
    "sphinx.ext.viewcode", "sphinx_copybutton",
]  # fmt: skip
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".py": "myst-nb"}
exclude_patterns = [
    "conf.py", "site_parts.py", "readme.py", "messages.py", "look.py", "errors.md", "evidence/*.py",
    "evidence/targets.md", *site_parts.left_out(),
]  # fmt: skip
suppress_warnings = [
    "toc.excluded",
    "ref.python",
    "mystnb.mime_priority",
]  # the value of a last line, such as a legend

# pages that are scripts
nb_custom_formats = {".py": ["site_parts.notebook", {}, False]}
nb_execution_mode = "force"
nb_execution_timeout = 3600
nb_execution_raise_on_error = True
nb_output_stderr = "error"
nb_merge_streams = True
nb_mime_priority_overrides = [("html", "text/plain", None)]  # pages print what they show
nb_render_markdown_format = "myst"
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

# the reference
default_role = "code"  # names between single backticks
autosummary_generate = True
autodoc_typehints = "none"  # docstrings say types, with shapes and units
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_preprocess_types = False
templates_path = ["reference/templates"]

html_theme = "furo"
html_title = "ctmm_formula"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#00558a", "color-brand-content": "#00558a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f2", "color-brand-content": "#7cc4f2"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


def setup(app: Sphinx) -> None:
    """What Sphinx has no setting for."""
    site_parts.extend(app)
