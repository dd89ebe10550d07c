"""The printed summary, character by character, of an estimate pinned by hand."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula import CTMMResults
from ctmm_formula.design.formula import parse
from ctmm_formula.design.labelled import build_design
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimate import Convergence, Estimate
from ctmm_formula.results import summary
from ctmm_formula.results.summary import Summary
from ctmm_formula.structures import resolve

DATA = pd.DataFrame(
    {
        "donor": np.repeat([f"d{k}" for k in range(1, 9)], 2),
        "celltype": ["B", "T"] * 8,
        "age": np.repeat([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 2),
        "expr": np.arange(16.0) % 5,
        "nu": 0.25,
    }
)
DATA.loc[3, "expr"] = np.nan


@pytest.fixture(autouse=True)
def pinned_versions(monkeypatch):
    monkeypatch.setattr(summary, "footer", lambda made_by: "Versions.")


def pinned(celltypes=("B", "T"), **changes):
    """Results with b = (1, 0.5, -0.125), hom 0.5, V_B 0.25, V_T -0.0625."""
    data = DATA.replace({"celltype": dict(zip("BT", celltypes, strict=True))})
    design = build_design(parse("expr ~ C(celltype) + age"), data)
    structure = resolve("free", design.celltypes)
    parts = {
        "method": "reml",
        "theta": np.array([0.5, 0.25, -0.0625]),
        "beta": np.array([1.0, 0.5, -0.125]),
        "cov_beta": np.diag([0.25, 0.0625, 1e-6]),
        "beta_by": "gls",
        "information": np.diag([16.0, 64.0, 256.0]),
        "observed": np.diag([16.0, 64.0, 256.0]),
        "llf": -12.3456789,
        "convergence": Convergence(True, True, 1e-9, 17, 3, "optimum on the edge of the domain"),
    }
    notes = (*design.notes, "a note without a full stop")
    return CTMMResults(design, structure, Domain(), Estimate(**{**parts, **changes}), notes)


TEXT = """\
                        Cell type-specific mixed model
==============================================================================
Formula:  expr ~ C(celltype) + age
Structure:     free                           Log-likelihood:  -12.3457
Method:        REML                           AIC:             36.6914
Bounds:        noise (floor 0.1)              BIC:             39.6008
Data:          cell type-specific pseudobulk  Residual df:     2
Donors:        8                              Converged:       yes
Cell types:    2                              On the edge:     yes
Rows:          15 of 16 possible              Evaluations:     17
Rows dropped:  missing expr (1)
------------------------------------------------------------------------------
Fixed effects     estimate  std. error         t     P>|t|     [0.025   0.975]
------------------------------------------------------------------------------
Intercept           1.000     0.5000       2.000    0.0622  -0.05695    2.057
C(celltype)[T.T]    0.5000    0.2500       2.000    0.0508  -0.001872   1.002
age                -0.1250    0.001000  -125.0    1.58e-22  -0.1271    -0.1229
------------------------------------------------------------------------------
Variance components  estimate  std. error       t     P>t   [0.025  0.975]
------------------------------------------------------------------------------
hom                   0.5000      0.2500    2.000  0.0918  -0.5757  1.576
V[B]                  0.2500      0.1250    2.000  0.0918  -0.2878  0.7878
V[T]                 -0.06250     0.06250  -1.000   0.789  -0.3314  0.2064
------------------------------------------------------------------------------
Shares of overall variance   variance    share
------------------------------------------------------------------------------
means                        0.007812    1.0 %
fixed                        0.09375    11.5 %
shared                       0.5000     61.4 %
specific[B]                  0.08594    10.6 %
specific[T]                 -0.01367    -1.7 %
noise                        0.1406     17.3 %
total                        0.8145    100.0 %
==============================================================================
Standard errors: model (inverse expected information), as if the noise
variances were known.
P values by t with Satterthwaite's degrees of freedom, of variances with the
residual df (donors less parameters), one-sided.
Restricted log-likelihood with all constants, among them 1/2 log|X'X|.
A note without a full stop.
Versions."""


def test_text():
    fit = replace(pinned(), notes=("a note without a full stop",))
    assert str(fit.summary()) == TEXT
    assert repr(fit.summary()) == TEXT


def test_a_long_formula_is_wrapped():
    terms = "".join(f" + np.power(age, {k})" for k in range(2, 6))
    data = DATA.assign(age=DATA["age"] + np.arange(16) % 3)
    text = str(
        ctmm.fit("expr ~ C(celltype)" + terms, structure="hom", data=data, method="reml").summary()
    )
    lines = text.splitlines()
    assert len({len(line) for line in lines if set(line) in ({"="}, {"-"})}) == 1
    assert max(map(len, lines)) == len(lines[1]) < 90
    start = next(k for k, line in enumerate(lines) if line.startswith("Formula:"))
    assert lines[start + 1].startswith(" " * 10 + "np.power")


def test_blanks_that_align_are_text_only():
    assert ">1.000<" in pinned().summary().as_html()
    assert re.search(r"& +1\.000 +&", pinned().summary().as_latex())


def test_alpha_and_covariance_are_named():
    fit = ctmm.fit("expr ~ C(celltype)", structure="hom", data=DATA, method="reml")
    text = str(fit.summary("jackknife", alpha=0.2))
    assert "[0.1    0.9]" in text
    assert "Standard errors: jackknife over donors." in text
    assert f"{fit.table('jackknife').loc['hom', 'std_error']:#.4g}" in text


def test_moments():
    fit = ctmm.fit("expr ~ C(celltype)", structure="hom", data=DATA, method="he")
    text = str(fit.summary())
    assert re.search(r"Method: +HE \(method of moments\) +AIC: +none", text)
    assert "og-likelihood with" not in text
    assert "jackknife" in text


def test_every_note_is_shown():
    fit = pinned()
    assert "dropped" in fit.notes[0]
    text = str(fit.summary())
    assert f"{fit.notes[0]}." in text
    assert "A note without a full stop." in text


NASTY = ("<b>&", "T_1%{$}#~^|\\\\>")


def test_html_is_well_formed_and_escaped():
    cells = []

    class Reader(HTMLParser):
        open_tags: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag, attrs):
            if tag != "br":
                self.open_tags.append(tag)

        def handle_startendtag(self, tag, attrs):
            assert tag == "br"

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

        def handle_data(self, data):
            cells.append(data.strip())

    reader = Reader()
    reader.feed(pinned(NASTY).summary().as_html())
    assert reader.open_tags == []
    for name in NASTY:
        assert f"V[{name}]" in cells
    text = pinned().summary().as_html()
    assert text.count("<thead>") == text.count("<tbody>") == 3  # tables with column names
    assert pinned()._repr_html_() == pinned().summary().as_html()


def test_latex_is_balanced_and_escaped():
    text = pinned(NASTY).summary().as_latex(label="tab:fit")
    assert r"V[\textless{}b\textgreater{}\&]" in text
    assert r"T\_1\%\{\$\}\#\textasciitilde{}\textasciicircum{}\textbar{}" in text
    assert r"\label{tab:fit}" in text
    assert r"\label" not in pinned().summary().as_latex()
    assert re.findall(r"\\begin\{(\w+)\}", text).count("tabular") == 5
    opened = []
    for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if what == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    # every row of a table has as many cells as its header
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        for line in table[1].splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(table[0]) - 1


def test_anova_table():
    table = pd.DataFrame(
        {
            "n_params": [3, 5],
            "llf": [-20.0, -18.0],
            "aic": [46.0, 46.0],
            "bic": [48.0, 49.5],
            "df": [np.nan, 2.0],
            "statistic": [np.nan, 4.0],
            "pvalue": [np.nan, 0.1353],
            "note": ["", "on the edge"],
        },
        index=["hom", "free"],
    )
    assert str(summary.describe_anova(table, "ml")) == ANOVA


ANOVA = """\
                       Nested fits
==========================================================
Likelihood ratio:  each fit against the one above
Method:  ML
----------------------------------------------------------
Fit   parameters  log-lik.    AIC    BIC  chi2  df  P>chi2
----------------------------------------------------------
hom            3  -20.0000  46.00  48.00
free           5  -18.0000  46.00  49.50     4   2  0.1353
==========================================================
Log-likelihood with all constants.
free: on the edge."""


def test_versions():
    text = str(ctmm.show_versions())
    assert re.search(rf"ctmm-formula +{re.escape(ctmm.__version__)}\n", text)
    assert re.search(rf"numpy +{re.escape(np.__version__)}\n", text)
    assert summary.installed("no such package") == "not installed"


def test_a_table_narrower_than_its_title():
    table = pd.DataFrame({"a": ["1"]}, index=["b"])
    text = str(Summary("A very long title indeed", (("x", "y"),), (("", table),), ()))
    assert text.splitlines()[0] == "A very long title indeed"
