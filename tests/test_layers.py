"""The floors of the house: imports go down, strings, tables and arrays stay apart."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ctmm_formula"

# Every module may import only modules named after it (`datasets` counts as one module).
LAYERS = [
    "__main__",
    # wire/
    "calls", "transcriptome", "received", "codec",
    "planning",
    # scan/
    "genes", "job", "results", "store", "worker", "patterns", "plan", "windows", "responses",
    "columns",
    "api",
    # results/
    "fitted", "donors", "terms", "hypothesis_tests", "effects", "tested", "predictions",
    "maketables", "parameters", "shares", "heritability", "serialize", "record", "questions",
    "kept", "resampling", "labels", "model_view", "summary", "estimates",
    "plots", "fits", "checks", "data",
    "scans", "differentiation", "volcano", "names", "pvalues", "curves", "style",
    # cells/
    "pseudobulk", "evaluation", "impute", "standardize", "r", "source", "stored", "files",
    "covariates", "pairs", "tables", "scale", "normalize", "aggregate", "fill", "softimpute", "mvn",
    "holes", "stacks", "authors_tables",
    "datasets", "simulate",
    # design/
    "identified", "grids", "rowless", "selected", "labelled", "kinship", "genotypes",
    "genotype_sources", "arrays", "crossings", "prepare", "matrix", "polynomials", "formula",
    "random_terms", "syntax", "vouched", "expressions", "table",
    # inference/
    "tests", "genetic_tests", "group_tests", "rlrt", "bootstrap", "comparison", "differences",
    "fit", "clustered", "small_sample", "hypotheses", "testing", "jackknife", "donor_scores",
    "group_score", "genetic_score", "directions", "score", "counted_noise", "score_null",
    "score_law", "score_sums", "tails", "cumulants",
    # engine/
    "draws", "plain", "profile", "left_out_related", "estimators", "related_moments",
    "related_likelihood",
    "related_joined", "related_spectral", "blup", "left_out_scores", "variation",
    "left_out_moments", "sandwich", "robust", "moving_noise", "sweeps", "block_sums", "unit_sums",
    "leverages", "he", "precision", "likelihood", "left_out_edges",
    "left_out_fits", "search", "optimize", "domain",
    "symmetric", "kernels", "lanes", "model", "arranging", "noise", "beside", "options", "lowering",
    "renaming", "references", "relatedness", "estimate", "structures", "distributions", "blas",
    "progress", "arguments", "paths", "errors",
]  # fmt: skip
# See strings only, tables only, arrays only.
STRINGS = {"formula", "random_terms", "syntax", "expressions", "vouched"}
TABLES = {"pseudobulk", "impute", "standardize", "prepare", "matrix", "table"}
TABLES |= {"source", "files", "covariates", "pairs", "tables", "evaluation"}
NUMERICS = set(LAYERS[LAYERS.index("tests") : LAYERS.index("arguments")]) - {
    "simulate",  # returns tables
    "hypotheses",  # patsy reads the strings
}
ARRAYS = NUMERICS | {"normalize", "aggregate"}
COMPLETION = {"fill", "softimpute", "mvn", "holes", "stacks"}
TABLE_LIBRARIES = {"pandas", "patsy", "formulaic", "anndata", "scanpy"}
# Nobody who only imports the package pays for these.
LATE = {"numba", "rpy2", "matplotlib", "seaborn", "scanpy", "anndata", "formulaic", "dask", "ray"}
LATE |= {"bed_reader", "pgenlib"}

# Folders whose files are one layer.
WHOLE = {"datasets", "simulate"}
FILES = sorted(
    path
    for path in (ROOT / PACKAGE).rglob("*.py")
    if path.name != "__init__.py" or path.parent.name in WHOLE
)


def module_of(path):
    """Layer of a file: its name; the files of some folders are one layer."""
    return path.parent.name if path.parent.name in WHOLE else path.stem


def imports_of(source, package):
    """Absolute names of everything a file of `package` imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def internal(names):
    """Layers among dotted names: the file, whatever folder it is in."""
    parts = [name.split(".")[1:] for name in names if name.startswith(f"{PACKAGE}.")]
    rooms = {path.name for path in (ROOT / PACKAGE).iterdir() if path.is_dir()} - WHOLE
    return {part[1] if part[0] in rooms and len(part) > 1 else part[0] for part in parts}


def external(names):
    return {name.split(".")[0] for name in names} - {PACKAGE}


def imports_of_file(path):
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imports_of(path.read_text(encoding="utf-8"), package)


def files_of(modules):
    return [path for path in FILES if module_of(path) in modules]


def label(path):
    return path.relative_to(ROOT / PACKAGE).as_posix()


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from .errors import CTMMError", PACKAGE, {"errors"}),
        ("from . import kernels, domain", f"{PACKAGE}.engine", {"kernels", "domain"}),
        ("def f():\n    from ..engine.model import Model", f"{PACKAGE}.datasets", {"model"}),
        ("from . import CELLTYPES", f"{PACKAGE}.datasets", {"datasets"}),
        ("import ctmm_formula.engine.model as m\nimport numpy", PACKAGE, {"model"}),
    ],
)
def test_imports_are_read_as_python_reads_them(source, package, expected):
    assert internal(imports_of(source, package)) == expected


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_go_down(path):
    module = module_of(path)
    assert module in LAYERS, f"give {module} its place in LAYERS"
    below = set(LAYERS[LAYERS.index(module) :])  # with itself: files of one folder
    assert internal(imports_of_file(path)) <= below


@pytest.mark.parametrize("path", files_of(STRINGS), ids=label)
def test_parsing_sees_strings_only(path):
    names = imports_of_file(path)
    assert internal(names) <= STRINGS | {"arguments", "errors"}
    assert not external(names) & {"numpy", "scipy", "pandas", "formulaic", "anndata"}


@pytest.mark.parametrize("path", files_of(TABLES), ids=label)
def test_tables_know_no_numerics(path):
    assert not internal(imports_of_file(path)) & (NUMERICS | {"simulate"})


@pytest.mark.parametrize("path", files_of(ARRAYS), ids=label)
def test_numerics_see_arrays_only(path):
    names = imports_of_file(path)
    assert not external(names) & TABLE_LIBRARIES
    assert internal(names) <= ARRAYS | {"arguments", "errors"}


@pytest.mark.parametrize("path", files_of(LAYERS), ids=label)
def test_no_printing_and_no_exit(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            assert node.id not in {"print", "exit", "quit", "SystemExit"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute):
            called = ast.unparse(node)
            assert called not in {"sys.exit", "os._exit", "sys.stdout"}, f"line {node.lineno}"


def loaded_by(code):
    """Names of the modules that a process of its own has loaded after some code."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_is_light():
    loaded = loaded_by(f"import {PACKAGE}")
    assert PACKAGE in loaded
    assert not LATE & {name.split(".")[0] for name in loaded}


@pytest.mark.slow
def test_first_fit_is_light():
    """So are its tests and tables of estimates: the slow parts of scipy and statsmodels wait."""
    fit = f"import {PACKAGE} as m; fit = m.fit('expr ~ C(celltype)', data=m.load_example())"
    loaded = loaded_by(f"{fit}; fit.test_variance(); fit.test_mean(); fit.tidy()")
    assert "numba" in loaded
    assert not {"scipy.stats", "statsmodels", "formulaic"} & loaded
