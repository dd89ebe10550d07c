"""The R package's own tests (testthat), run in a fresh library with the Python of this process.

Skipped without R, reticulate or testthat; with CTMM_REQUIRE_R=1 in the environment that is a
failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ctmm_formula as ctmm

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "r_bridge" / "ctmmFormula"
NEEDED = ("reticulate", "testthat", "nlme", "generics")


@cache
def missing() -> str:
    """Why the R package cannot be tested here, or nothing."""
    if shutil.which("Rscript") is None:
        return "Rscript is not installed"
    packages = ", ".join(f"'{name}'" for name in NEEDED)
    code = (
        f"p <- c({packages}); cat(p[!vapply(p, requireNamespace, NA, quietly = TRUE)], sep = ', ')"
    )
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], capture_output=True, text=True, check=False
    )
    return f"R packages are not installed: {call.stdout}" if call.stdout else ""


def need_r() -> None:
    reason = missing()
    if reason and os.environ.get("CTMM_REQUIRE_R") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A library that holds the R package as it is in the tree."""
    need_r()
    folder = tmp_path_factory.mktemp("library")
    source = folder / "source"
    shutil.copytree(SOURCE, source)  # R writes into what it installs from
    call = subprocess.run(
        ["R", "CMD", "INSTALL", "--no-test-load", f"--library={folder}", str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert call.returncode == 0, call.stderr
    return folder


def run_r(library: Path, code: str, timeout: float = 300) -> str:
    """What R prints; every R process gets this Python and the package of this tree."""
    environment = os.environ | {
        "R_LIBS": str(library),
        "RETICULATE_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "CTMM_GOLDEN": str(ROOT / "tests" / "golden" / "r"),
        "CTMM_REQUIRE_PYTHON": "true",
    }
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        cwd=SOURCE / "tests" / "testthat",
        check=False,
    )
    assert call.returncode == 0, call.stdout + call.stderr
    return call.stdout


FILES = sorted(path.name for path in (SOURCE / "tests" / "testthat").glob("test-*.R"))


@pytest.fixture(scope="module")
def outcome(library) -> dict[str, list[tuple[int, int, int, str]]]:
    """Passed, skipped and failed expectations of all test files, run in one R process."""
    code = """
    library(testthat)
    library(ctmmFormula)
    results <- test_dir(".", package = "ctmmFormula", load_package = "installed",
                        reporter = "silent", stop_on_failure = FALSE)
    for (one in results) {
      is <- function(what) vapply(one$results, inherits, NA, what)
      bad <- is("expectation_failure") | is("expectation_error") | is("expectation_warning")
      text <- vapply(one$results[bad], function(r) conditionMessage(r), "")
      cat("@@", one$file, "|", sum(is("expectation_success")), "|", sum(is("expectation_skip")),
          "|", sum(bad), "|", gsub("[\n|]", " ", paste(one$test, text, collapse = "; ")), "\n")
    }
    """
    out: dict[str, list[tuple[int, int, int, str]]] = {}
    for line in run_r(library, code).splitlines():
        if line.startswith("@@"):
            file, passed, skipped, bad, text = (part.strip() for part in line[2:].split("|"))
            out.setdefault(file, []).append((int(passed), int(skipped), int(bad), text))
    return out


@pytest.mark.parametrize("name", FILES)
def test_testthat(outcome, name):
    results = outcome[name]
    assert not [text for _, _, bad, text in results if bad]
    assert sum(passed + skipped for passed, skipped, _, _ in results) > 0
    if os.environ.get("CTMM_REQUIRE_R") == "1":
        assert not sum(skipped for _, skipped, _, _ in results)


STATEMENTS = {
    "free": ("expr ~ celltype + sex + PC1", "free", "reml", "batch"),
    "full": ("expr ~ 0 + celltype", "full", "ml", None),
    "iid": ("expr ~ celltype * sex", "iid", "reml", None),
    "hom": ("expr ~ celltype + sex", "hom", "he", "batch"),
    "banded(1)": ("expr ~ celltype + poly", "banded(1)", "reml", "batch"),
}
EXACT = 1e-12
"""Relative: both ends run the same code on matrices with the same span."""


def test_the_same_numbers_as_from_python(library, tmp_path):
    """One table, the formulas of both languages: log-likelihood, components, means and tests."""
    df = ctmm.load_example()
    df["poly"] = df["PC1"] ** 2 / 100
    df.to_csv(tmp_path / "data.csv", index=False, float_format="%.17g")
    rows = ", ".join(
        f"list('{name}', {formula}, '{structure}', '{method}', {random and '~ ' + random})"
        for name, (formula, structure, method, random) in STATEMENTS.items()
    ).replace("None", "NULL")
    code = f"""
    library(ctmmFormula)
    d <- read.csv('{tmp_path / "data.csv"}', stringsAsFactors = TRUE)
    for (s in list({rows})) {{
      fit <- ctmm(s[[2]], data = d, structure = s[[3]], method = s[[4]], random = s[[5]])
      show <- function(what, x) cat(sprintf('@@%s|%s|%.17g\n', s[[1]], what, x), sep = '')
      if (s[[4]] != 'he') show('llf', as.numeric(logLik(fit)))
      show('vcomp', fit$vcomp)
      show('means', celltype_means(fit)$estimate)
      show('shares', variance_explained(fit)$share)
      show('fitted', unname(fitted(fit)))
      show('mean test', test_mean(fit)$p.value)
      show('jackknife', test_variance(fit)$p.value)
      show('score', test_variance(fit, 'score')$p.value)
    }}
    """
    got: dict[tuple[str, str], list[float]] = {}
    for line in run_r(library, code).splitlines():
        if line.startswith("@@"):
            name, what, value = line[2:].split("|")
            got.setdefault((name, what), []).append(float(value.replace("NA", "nan")))
    assert len(got) == 8 * len(STATEMENTS) - 1
    for name, (formula, structure, method, random) in STATEMENTS.items():
        text = formula.replace("celltype", "C(celltype)")
        res = ctmm.fit(text, structure=structure, method=method, random=random, data=df)
        expected = {
            "vcomp": res.vcomp,
            "means": res.means()["estimate"],
            "shares": res.variance_explained(by_celltype=True)["share"],
            "fitted": res.fittedvalues,
            "mean test": res.test_mean().pvalue,
            "jackknife": res.test_variance().pvalue,
            "score": res.test_variance("score").pvalue,
        } | ({} if method == "he" else {"llf": res.llf})
        for what, value in expected.items():
            value = np.atleast_1d(np.asarray(value, dtype=float))
            np.testing.assert_allclose(
                got[name, what], value, rtol=EXACT, atol=EXACT, err_msg=f"{name}: {what}"
            )
