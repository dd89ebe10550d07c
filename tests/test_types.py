"""What a checker of types says of a user's script: nothing, and of misspelt names an error."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from ctmm_formula import arguments
from ctmm_formula.design.matrix import ENGINES
from ctmm_formula.engine.domain import BOUNDS
from ctmm_formula.engine.estimators import ESTIMATORS
from ctmm_formula.inference.fit import ROBUST
from ctmm_formula.inference.tests import COMPONENT_TESTS, named
from ctmm_formula.plots.fits import OF_A_FIT
from ctmm_formula.plots.scans import OF_A_SCAN
from ctmm_formula.results.questions import SCANNED
from ctmm_formula.results.record import COVARIANCES

ROOT = Path(__file__).parents[1]

SCRIPT = """
import pandas as pd
from matplotlib.axes import Axes
import ctmm_formula as ctmm

df: pd.DataFrame = ctmm.load_example()
res = ctmm.fit(
    "expr ~ C(celltype) + sex", random="batch", structure="free", method="reml",
    bounds="noise", data=df,
)
own = ctmm.fit("expr ~ C(celltype)", structure=ctmm.banded(1), data=df)
print(res.summary(), own.test_variance("score").pvalue + 1.0)
p: float = res.test_component("hom", "wald").pvalue
ends: pd.DataFrame = res.conf_int(covariance="kenward-roger", method="profile")
ax: Axes = res.plot("shares", by_celltype=True)
print(ax.get_title(), res.plot("residuals")[0], res.bootstrap(3, rng=1).bse)
terms: pd.DataFrame = res.t_test_pairwise("sex").result_frame
names: list[str] = res.model.exog_names
scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), method="robust", tests=["score"])
other = ctmm.fit_genes("~ sex", data=ctmm.load_genes(), tests=["score", "effects:sex"])
alone = ctmm.fit_genes("~ sex", data=ctmm.load_genes(), tests="mean")
picture: Axes = scan.plot("qq")
table: pd.DataFrame = scan.table
"""
WRONG = [
    'ctmm.fit("expr ~ sex", structure="fre", data=df)',
    'ctmm.fit("expr ~ sex", method="remll", data=df)',
    'ctmm.fit("expr ~ sex", bounds="posd", data=df)',
    'ctmm.fit("expr ~ sex", formula_engine="pasty", data=df)',
    'ctmm.fit("expr ~ sex", keep="table", data=df)',
    'ctmm.fit_genes("~ sex", method="remll", data=df)',
    'res.test_variance("skore")',
    'res.test_component("hom", "score")',
    'res.conf_int(covariance="satterthwaite")',
    'res.conf_int(method="profiles")',
    'res.plot("share")',
    'scan.plot("qqq")',
    'ctmm.fit_genes("~ sex", data=df, tests="skore")',
]


def test_names_for_checkers_are_those_of_the_registries():
    assert set(get_args(arguments.Method)) == set(ESTIMATORS)
    assert set(get_args(arguments.Bounds)) == set(BOUNDS)
    assert set(get_args(arguments.VarianceTest)) == set(named("variance"))
    assert set(get_args(arguments.ComponentTest)) == set(COMPONENT_TESTS)
    assert set(get_args(arguments.CovarianceName)) == {*COVARIANCES, ROBUST}
    assert set(get_args(arguments.FormulaEngine)) == set(ENGINES)
    # those that return several Axes are beside them, in the overloads
    assert {*get_args(arguments.FitPicture), "residuals"} == set(OF_A_FIT)
    assert {*get_args(arguments.ScanPicture), "volcano"} == set(OF_A_SCAN)
    # tests in words, "effects:sex", are no names: lists of tests are checked when they run
    assert set(get_args(arguments.ScanTest)) == set(SCANNED)


def scripts(folder: Path) -> tuple[Path, Path, set[int]]:
    """A right script, one with wrong lines behind it, and the numbers of these."""
    right, wrong = folder / "right.py", folder / "wrong.py"
    right.write_text(SCRIPT)
    wrong.write_text(SCRIPT + "\n".join(WRONG) + "\n")
    first = SCRIPT.count("\n") + 1
    return right, wrong, set(range(first, first + len(WRONG)))


@pytest.mark.slow
def test_mypy_finds_misspelt_names_and_nothing_else(tmp_path):
    right, wrong, lines = scripts(tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--no-error-summary"]
    command += ["--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    run = subprocess.run([*command, str(right), str(wrong)], capture_output=True, text=True)
    found = [line.split(":") for line in run.stdout.splitlines() if ": error:" in line]
    assert {(file, int(line)) for file, line, *_ in found} == {(str(wrong), n) for n in lines}, (
        run.stdout + run.stderr
    )


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("pyright"), reason="pyright is not installed")
def test_pyright_finds_misspelt_names_and_nothing_else(tmp_path):
    """In its strict mode."""
    right, wrong, lines = scripts(tmp_path)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "include": ["*.py"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "-p", str(tmp_path), "--outputjson"]
    run = subprocess.run(
        [*command, "--pythonpath", sys.executable], capture_output=True, text=True,
        env=os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
    )  # fmt: skip
    found = json.loads(run.stdout)["generalDiagnostics"]
    errors = {(Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found}
    assert errors == {(wrong.name, line) for line in lines}, run.stdout
    assert right.exists()
