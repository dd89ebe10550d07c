"""What a checker of types says of a user's script: nothing, and of misspelt names an error."""

import subprocess
import sys
from typing import get_args

import pytest

from ctmm_formula import arguments
from ctmm_formula.design.matrix import ENGINES
from ctmm_formula.engine.domain import BOUNDS
from ctmm_formula.engine.estimators import ESTIMATORS
from ctmm_formula.inference.fit import ROBUST
from ctmm_formula.inference.tests import COMPONENT_TESTS, named
from ctmm_formula.results.record import COVARIANCES

SCRIPT = """
import pandas as pd
import ctmm_formula as ctmm

df: pd.DataFrame = ctmm.load_example()
res = ctmm.fit(
    "expr ~ C(celltype) + sex", random="batch", structure="free", method="reml",
    bounds="noise", data=df,
)
own = ctmm.fit("expr ~ C(celltype)", structure=ctmm.banded(1), data=df)
print(res.summary(), own.test_variance("score").pvalue + 1.0)
p: float = res.test_component("hom", "wald").pvalue
ends: pd.DataFrame = res.conf_int(covariance="kenward-roger")
terms: pd.DataFrame = res.t_test_pairwise("sex").result_frame
names: list[str] = res.model.exog_names
scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), method="robust", tests=["score"])
table: pd.DataFrame = scan.table
"""
WRONG = [
    'ctmm.fit("expr ~ sex", structure="fre", data=df)',
    'ctmm.fit("expr ~ sex", method="remll", data=df)',
    'ctmm.fit("expr ~ sex", bounds="posd", data=df)',
    'ctmm.fit("expr ~ sex", formula_engine="pasty", data=df)',
    'ctmm.fit_genes("~ sex", method="remll", data=df)',
    'res.test_variance("skore")',
    'res.test_component("hom", "score")',
    'res.conf_int(covariance="satterthwaite")',
    'res.conf_int(method="profiles")',
]


def test_names_for_checkers_are_those_of_the_registries():
    assert set(get_args(arguments.Method)) == set(ESTIMATORS)
    assert set(get_args(arguments.Bounds)) == set(BOUNDS)
    assert set(get_args(arguments.VarianceTest)) == set(named("variance"))
    assert set(get_args(arguments.ComponentTest)) == set(COMPONENT_TESTS)
    assert set(get_args(arguments.CovarianceName)) == {*COVARIANCES, ROBUST}
    assert set(get_args(arguments.FormulaEngine)) == set(ENGINES)


@pytest.mark.slow
def test_a_script_is_right_and_misspelt_names_are_not(tmp_path):
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(SCRIPT)
    wrong.write_text(SCRIPT + "\n".join(WRONG) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--no-error-summary"]
    command += ["--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    run = subprocess.run([*command, str(right)], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, ""), run.stdout + run.stderr
    run = subprocess.run([*command, str(wrong)], capture_output=True, text=True)
    lines = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error:" in line}
    first = SCRIPT.count("\n") + 1
    assert lines == set(range(first, first + len(WRONG))), run.stdout
