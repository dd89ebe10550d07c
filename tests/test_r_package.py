"""The R package's own tests (testthat), run in a fresh library with the Python of this process.

Skipped without R, reticulate or testthat; with CTMM_REQUIRE_R=1 in the environment that is a
failure.
"""

from __future__ import annotations

import html
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm

pytestmark = pytest.mark.r

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "r_bridge" / "ctmmFormula"
NEEDED = ("reticulate", "testthat", "nlme", "generics")


@cache
def missing_of(*names: str) -> str:
    """Why these R packages cannot be used here, or nothing."""
    if shutil.which("Rscript") is None:
        return "Rscript is not installed"
    packages = ", ".join(f"'{name}'" for name in names)
    code = (
        f"p <- c({packages}); cat(p[!vapply(p, requireNamespace, NA, quietly = TRUE)], sep = ', ')"
    )
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", code], capture_output=True, text=True, check=False
    )
    return f"R packages are not installed: {call.stdout}" if call.stdout else ""


def need_r(*names: str) -> None:
    reason = missing_of(*names)
    if reason and os.environ.get("CTMM_REQUIRE_R") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A library that holds the R package as it is in the tree."""
    need_r(*NEEDED)
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


def environment_of(library: Path) -> dict[str, str]:
    """Every R process gets this Python and the package of this tree."""
    return os.environ | {
        "R_LIBS": str(library),
        "RETICULATE_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "CTMM_GOLDEN": str(ROOT / "tests" / "golden" / "r"),
        "CTMM_REQUIRE_PYTHON": "true",
    }


def run_r(library: Path, code: str, timeout: float = 300) -> str:
    """What R prints."""
    return rscript(library, "-e", code, timeout=timeout)


def rscript(library: Path, *arguments: str, timeout: float = 300) -> str:
    """What Rscript prints."""
    call = subprocess.run(
        ["Rscript", "--vanilla", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment_of(library),
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
    for line in run_r(library, code, timeout=900).splitlines():
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
      show('b', coef(fit))
      show('se', sqrt(diag(vcov(fit))))
      show('means', celltype_means(fit)$estimate)
      show('shares', variance_explained(fit)$share)
      show('fitted', unname(fitted(fit)))
      show('mean test', test_mean(fit)$p.value)
      show('default', test_variance(fit)$p.value)
      show('jackknife', test_variance(fit, 'jackknife')$p.value)
      show('score', test_variance(fit, 'score')$p.value)
    }}
    """
    got: dict[tuple[str, str], list[float]] = {}
    for line in run_r(library, code).splitlines():
        if line.startswith("@@"):
            name, what, value = line[2:].split("|")
            got.setdefault((name, what), []).append(float(value.replace("NA", "nan")))
    assert len(got) == 11 * len(STATEMENTS) - 1
    for name, (formula, structure, method, random) in STATEMENTS.items():
        text = formula.replace("celltype", "C(celltype)")
        res = ctmm.fit(text, structure=structure, method=method, random=random, data=df)
        expected = {
            "vcomp": res.vcomp,
            "b": res.fe_params,
            "se": res.bse_fe,
            "means": res.means()["estimate"],
            "shares": res.variance_explained(by_celltype=True)["share"],
            "fitted": res.fittedvalues,
            "mean test": res.test_mean().pvalue,
            "default": res.test_variance().pvalue,
            "jackknife": res.test_variance("jackknife").pvalue,
            "score": res.test_variance("score").pvalue,
        } | ({} if method == "he" else {"llf": res.llf})
        for what, value in expected.items():
            value = np.atleast_1d(np.asarray(value, dtype=float))
            np.testing.assert_allclose(
                got[name, what], value, rtol=EXACT, atol=EXACT, err_msg=f"{name}: {what}"
            )


def write_matrix(path: Path, values: np.ndarray) -> None:
    np.savetxt(path, values, fmt="%.17g", delimiter=",")


def test_the_same_scan_as_from_python(library, tmp_path):
    """Twelve genes with missing values: every column of both tables."""
    obs, expr, nu = ctmm.load_genes()
    expr, nu = expr.iloc[:, :12].copy(), nu.iloc[:, :12].copy()
    expr.iloc[4, 2] = np.nan
    nu.iloc[:3, 5] = np.nan
    nu.iloc[7, 6] = -1.0
    obs.to_csv(tmp_path / "obs.csv", index=False, float_format="%.17g")
    write_matrix(tmp_path / "expr.csv", expr.T)
    write_matrix(tmp_path / "nu.csv", nu.T)
    code = f"""
    library(ctmmFormula)
    obs <- read.csv('{tmp_path / "obs.csv"}', stringsAsFactors = TRUE)
    read <- function(file) {{
      x <- as.matrix(read.csv(file, header = FALSE))
      dimnames(x) <- list(sprintf('gene%03d', seq_len(nrow(x))), NULL)
      x
    }}
    found <- suppressWarnings(ctmm_genes(
      ~ celltype + sex + PC1, data = obs, expr = read('{tmp_path / "expr.csv"}'),
      nu = read('{tmp_path / "nu.csv"}'), random = ~ batch, models = list('hom'),
      tests = c('score', 'jackknife', 'mean', 'bootstrap'), n_bootstrap = 9, seed = 5,
      method = 'reml', threads = 2))
    out <- as.data.frame(found)
    numbers <- vapply(out, is.numeric, NA)
    out[numbers] <- lapply(out[numbers], function(x) sprintf('%.17g', x))
    write.csv(out, '{tmp_path / "found.csv"}', row.names = FALSE)
    """
    run_r(library, code)
    ours = pd.read_csv(tmp_path / "found.csv", keep_default_na=False, na_values=["NA", "NaN"])
    with pytest.warns(ctmm.CTMMWarning, match="1 failed"):
        scan = ctmm.fit_genes(
            "~ C(celltype) + sex + PC1", data=obs, expr=expr, nu=nu, random="batch",
            models=["hom"], tests=["score", "jackknife", "mean", "bootstrap"], n_bootstrap=9, rng=5,
            method="reml",
        )  # fmt: skip
    theirs = scan.table
    translated = {"b[Intercept]": "b[(Intercept)]", "b[sex[T.M]]": "b[sexM]"}
    translated |= {f"b[C(celltype)[T.day{k}]]": f"b[celltypeday{k}]" for k in (1, 2, 3)}
    for prefix in ("se", "se_jackknife"):
        translated |= {f"{prefix}[{a}]": f"{prefix}[{b}]" for a, b in list(translated.items())}
    assert list(ours["status"]) == list(theirs["status"])
    for name in theirs.columns:
        column = ours[translated.get(name, name)]
        if name in ("gene", "status"):
            assert column.tolist() == theirs[name].tolist()
        elif name not in (
            "reason",
            "n_obs",
            "n_donors",
            "mean",
            "zero_noise",
        ):  # of one that failed
            np.testing.assert_allclose(
                column.astype(float), theirs[name].astype(float), rtol=SCAN, atol=EXACT,
                err_msg=name,
            )  # fmt: skip


SCAN = 1e-8
"""Relative: standard errors of a jackknife sum squares of differences between near equals."""


def test_the_same_pseudobulk_as_from_python(library, tmp_path):
    """Cells of uneven pairs, with every filter at work."""
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(4)
    count = 900
    donor = rng.choice([f"d{k:02d}" for k in range(12)], count, p=np.arange(1, 13) / 78)
    celltype = rng.choice(["B", "NK", "T", "rare"], count, p=[0.4, 0.15, 0.43, 0.02])
    celltype[::97] = ""
    obs = pd.DataFrame({"donor": donor, "celltype": celltype})
    obs["sex"] = np.where(obs["donor"].str[1:].astype(int) % 2, "F", "M")
    obs.index = pd.Index([f"c{k}" for k in range(count)])
    X = rng.gamma(1.0, size=(count, 5)) * (rng.random((count, 5)) < 0.4)
    X[:, 4] += 1e5
    cells = anndata.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{k}" for k in range(5)]))
    settings = {"min_cells": 12, "min_cells_donor": 30, "min_donor_share": 0.2}
    with pytest.warns(ctmm.CTMMWarning, match="too large for a logarithm"):  # so is gene 5
        pb = ctmm.pseudobulk(cells, **settings)
    obs.to_csv(tmp_path / "obs.csv", index=False)
    write_matrix(tmp_path / "x.csv", X.T)
    filters = ", ".join(f"{name} = {value}" for name, value in settings.items())
    code = f"""
    library(ctmmFormula)
    x <- as.matrix(read.csv('{tmp_path / "x.csv"}', header = FALSE))
    pb <- ctmm_pseudobulk(x, cells = read.csv('{tmp_path / "obs.csv"}'), {filters})
    show <- function(x) apply(x, 1, function(r) paste(sprintf('%.17g', r), collapse = ','))
    writeLines(c(show(pb$expr), show(pb$nu)), '{tmp_path / "pb.csv"}')
    write.csv(pb$obs, '{tmp_path / "pairs.csv"}')
    """
    run_r(library, code)
    values = pd.read_csv(tmp_path / "pb.csv", header=None).to_numpy()
    np.testing.assert_allclose(values[:5].T, pb.X, rtol=EXACT)
    np.testing.assert_allclose(values[5:].T, pb.layers["nu"], rtol=1e-9)
    assert np.isnan(pb.X).any()
    pairs = pd.read_csv(tmp_path / "pairs.csv", index_col=0)
    assert pairs.index.tolist() == pb.obs_names.tolist()
    for name in ("n_cells", "proportion"):
        np.testing.assert_allclose(pairs[name], pb.obs[name], rtol=EXACT)
    assert pairs["sex"].tolist() == pb.obs["sex"].tolist()


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs a terminal")
def test_an_interrupt_leaves_the_session_usable(library):
    """Ctrl-C in a long bootstrap of an interactive session, then another fit."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["R", "--vanilla", "--interactive", "--quiet", "--no-readline"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment_of(library),
        start_new_session=True,
    )
    os.close(slave)

    def ask(line: str, answer: str, interrupt: bool = False) -> str:
        os.write(master, f"{line}\n".encode())
        seen, end = "", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 65536).decode(errors="replace")
            if interrupt and "AT WORK" in seen:
                time.sleep(1.0)  # by now Python is in the middle of its draws
                process.send_signal(signal.SIGINT)
                interrupt = False
            if answer in seen:
                return seen
        raise AssertionError(f"no {answer!r} in {seen!r}")

    try:
        ask("library(ctmmFormula); f <- ctmm(expr ~ celltype, data = pseudobulk)", "> ")
        ask("invisible(jackknife(f)); cat('AT', 'FIRST', '\\n')", "AT FIRST")
        long = "cat('AT', 'WORK', '\\n'); b <- bootstrap(f, n = 1e6, seed = 1)"
        ask(long, "interrupted in Python", interrupt=True)
        ask("cat('AND', round(update(f, structure = 'hom')$vcomp[['hom']], 3), '\\n')", "AND 0.")
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_r_cmd_check_finds_nothing(library, tmp_path):
    """Without examples, tests and vignette, which run in tests of their own."""
    call = partial(
        subprocess.run,
        cwd=tmp_path,
        env=environment_of(library) | {"_R_CHECK_FORCE_SUGGESTS_": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    built = call(["R", "CMD", "build", "--no-build-vignettes", str(SOURCE)])
    assert built.returncode == 0, built.stderr
    (archive,) = tmp_path.glob("ctmmFormula_*.tar.gz")
    skip = ["--no-manual", "--no-examples", "--no-tests", "--ignore-vignettes"]
    found = call(["R", "CMD", "check", *skip, archive.name])
    assert found.returncode == 0, found.stdout
    assert "Status: OK" in found.stdout, found.stdout


def words(path: Path) -> str:
    """A file of roxygen2 without what differs between its versions: spaces and its own lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    own = ("%", "#", "\\docType", "\\dontshow")
    return "".join("".join(line.split()) for line in lines if not line.startswith(own))


def test_namespace_and_help_pages_are_those_of_the_sources(tmp_path):
    """roxygenise() changes nothing: they are not written by hand."""
    need_r("roxygen2")
    made = tmp_path / "ctmmFormula"
    shutil.copytree(SOURCE, made)
    shutil.rmtree(made / "man")
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", "roxygen2::roxygenise()"],
        cwd=made, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert call.returncode == 0, call.stderr
    assert "Warning" not in call.stderr
    files, kept = (
        {path.name: words(path) for path in (folder / "NAMESPACE", *folder.glob("man/*.Rd"))}
        for folder in (made, SOURCE)
    )
    assert files == kept, "roxygen2::roxygenise('r_bridge/ctmmFormula')"


@pytest.mark.parametrize("file", ["README.md", "r_bridge/README.md"])
def test_the_r_code_of_the_readmes_runs(library, file):
    """Pasted line by line into one session, but for what installs the packages."""
    blocks = re.findall(r"```r\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == {"README.md": 1, "r_bridge/README.md": 4}[file]
    lines = [line for line in "".join(blocks).splitlines() if "install" not in line]
    shown = run_r(library, "pdf(NULL)\n" + "\n".join(lines))
    assert "Pr(>Chisq)" in shown
    assert "variance differentiation: score" in shown


def test_examples_run(library, tmp_path):
    """Every help page has its examples, and they end without an error."""
    code = f"""
    library(ctmmFormula)
    pdf(NULL)
    pages <- list.files('{SOURCE / "man"}', full.names = TRUE)
    for (page in pages) {{
      out <- file.path('{tmp_path}', sub('Rd$', 'R', basename(page)))
      tools::Rd2ex(page, out)
      if (file.exists(out)) {{
        cat('@@', basename(page), '\n')
        source(out, local = new.env(), echo = FALSE)
      }}
    }}
    """
    ran = [line[2:].strip() for line in run_r(library, code).splitlines() if line[:2] == "@@"]
    without = {"ctmmFormula-package.Rd", "reexports.Rd"}
    pages = {path.name for path in (SOURCE / "man").glob("*.Rd")}
    assert set(ran) == pages - without


def test_the_tour_is_the_vignette_with_its_output(library, tmp_path):
    """Made anew: the same text and code, as many lines of output, and the pictures."""
    need_r("knitr", "emmeans")
    rscript(library, str(ROOT / "r_bridge" / "knit.R"), str(tmp_path))
    made, kept = (
        (folder / "ctmm-in-r.md").read_text(encoding="utf-8").splitlines()
        for folder in (tmp_path, ROOT / "r_bridge")
    )
    shown = [[line for line in lines if line.startswith("#>")] for lines in (made, kept)]
    assert len(shown[0]) == len(shown[1]) > 100
    assert not [line for line in shown[0] if "Error" in line and "Std. Error" not in line]
    assert [x for x in made if x[:2] != "#>"] == [x for x in kept if x[:2] != "#>"]
    for name in ("varcorr-1.png", "genes-1.png"):
        assert (tmp_path / "ctmm-in-r_files" / name).stat().st_size > 2000


def test_the_installed_package_has_the_tour_as_its_vignette(library):
    """Installed from its source, as the READMEs do it; the page is the tour's text and output."""
    code = "v <- vignette('ctmm'); cat(v$Title, file.path(v$Dir, 'doc', v$PDF), sep = '\n')"
    title, page = run_r(library, f"library(ctmmFormula); {code}").splitlines()
    assert title == "CTMM in R"
    assert page.startswith(str(library))
    shown = html.unescape(re.sub("<[^>]*>", "", Path(page).read_text(encoding="utf-8")))
    tour = (ROOT / "r_bridge" / "ctmm-in-r.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```[a-z]*\n(.*?)```", tour, re.DOTALL)
    assert len(blocks) >= 10
    assert not [block for block in blocks if block.strip() not in shown]
