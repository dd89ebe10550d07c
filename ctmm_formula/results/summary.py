"""Text, HTML and LaTeX of a fit from one description; nothing is computed here.

A :class:`Summary` is header entries, tables of text and notes.  statsmodels' ``SimpleTable``
writes each table in all three formats.
"""

from __future__ import annotations

import html
import platform
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..inference.fit import ROBUST

if TYPE_CHECKING:
    from statsmodels.iolib.table import SimpleTable

TITLE = "Cell type-specific mixed model"
PACKAGES = ("numpy", "scipy", "pandas", "patsy", "statsmodels", "numba")
"""Libraries whose versions decide the numbers."""

_METHOD = {"ml": "ML", "reml": "REML", "he": "HE (method of moments)", "robust": "robust"}
_KIND = {"ctp": "cell type-specific pseudobulk", "op": "overall pseudobulk"}
_CONVENTION = {
    "ml": "Log-likelihood with all constants.",
    "reml": "Restricted log-likelihood with all constants, among them 1/2 log|X'X|.",
}
_ROBUST = (
    "Standard errors: cluster-robust (CR2) over {units}; of variances the larger of jackknife and "
    "working model, whose intervals (by logarithms of variance + noise) are no tests of 0.",
    "P values by t with Satterthwaite's degrees of freedom, of variances with the residual df "
    "({units} less one), one-sided.",
    "t of fixed effects takes the noise that counts have halfway to the tested value, so it is not "
    "quite coef / std err, and intervals hold the values that it does not reject.",
)
_OF_MODEL = "Standard errors: model (inverse {} information), as if the noise variances were known."
_OWN_DF = (
    "P values by t with Satterthwaite's degrees of freedom, of variances with the residual df "
    "(donors less parameters), one-sided."
)
_OWN = {
    "robust": _ROBUST,
    "model": (_OF_MODEL, _OWN_DF),
    "kenward-roger": (
        "Standard errors: Kenward and Roger's, of variances by the inverse {} information.",
        _OWN_DF,
    ),
}
"""What is said of errors with laws of their own, by name."""

_BESIDE = (
    "test_mean(), wald_test() and t_test() of fixed effects go by the robust estimate, which "
    "counts of cells do not bias; method='robust' shows it."
)
_RULE = "-"

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&#{}$%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)


@dataclass(frozen=True)
class Summary:
    """Description of a fit, ready to be rendered.

    Attributes
    ----------
    title : str
    header : tuple of (name, text)
        The first entry has a line of its own.
    tables : tuple of (heading, DataFrame of text)
    notes : tuple of str

    Examples
    --------
    >>> table = pd.DataFrame({"estimate": ["0.25"]}, index=["hom"])
    >>> print(Summary("A fit", (("Formula", "y ~ 1"),), (("Variances", table),), ("A note.",)))
           A fit
    ===================
    Formula:  y ~ 1
    -------------------
    Variances  estimate
    -------------------
    hom            0.25
    ===================
    A note.
    """

    title: str
    header: tuple[tuple[str, str], ...]
    tables: tuple[tuple[str, pd.DataFrame], ...]
    notes: tuple[str, ...]

    def as_text(self) -> str:
        """Plain text; rules as wide as the widest table, first entry and notes wrapped to it."""
        blocks = [_lines(table) for table in self._tables(str)]
        rest = [len(line) for block in blocks[1:] for line in block]
        width = max(rest) if len(blocks) > 2 else max(*map(len, blocks[0]), *rest)
        indent = " " * (len(self.header[0][0]) + 3)
        blocks[0] = [
            part
            for line in blocks[0]
            for part in textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)
        ]
        out = [self.title.center(width).rstrip(), "=" * width]
        for k, block in enumerate(blocks):
            if k >= len(blocks) - len(self.tables):
                out.append(_RULE * width)
            out += [_RULE * width if set(line) == {_RULE} else line.rstrip() for line in block]
        out.append("=" * width)
        for note in self.notes:
            out += textwrap.wrap(note, width)
        return "\n".join(out)

    def as_html(self) -> str:
        """HTML tables; every text is escaped."""
        tables = "\n".join(_html(table) for table in self._tables(_escaped))
        notes = "<br/>\n".join(html.escape(note) for note in self.notes)
        return f"<h4>{html.escape(self.title)}</h4>\n{tables}\n<p>{notes}</p>"

    def as_latex(self, label: str = "") -> str:
        r"""A LaTeX table environment; needs the package booktabs.

        Parameters
        ----------
        label : str
            For ``\ref``; without one there is no ``\label``.
        """
        tables = "\n".join(table.as_latex_tabular() for table in self._tables(_latex))
        notes = "\n\n".join(f"\\noindent {_latex(note)}" for note in self.notes)
        caption = f"\\caption{{{_latex(self.title)}}}"
        if label:
            caption += f"\n\\label{{{label}}}"
        return f"\\begin{{table}}\n{caption}\n{tables}\n{notes}\n\\end{{table}}"

    def __str__(self) -> str:
        return self.as_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.as_html()

    def _tables(self, clean: Callable[[str], str]) -> list[SimpleTable]:
        """Header and tables for statsmodels, every text passed through `clean`."""
        entries = [(clean(f"{name}:"), clean(text)) for name, text in self.header]
        rest = entries[1:]
        half = -(-len(rest) // 2)
        right = rest[half:] + [("", "")] * (2 * half - len(rest))
        out = [_simple([list(entries[0])], data_aligns="ll")]
        if rest:
            rows = [[*a, *b] for a, b in zip(rest[:half], right, strict=True)]
            out.append(_simple(rows, data_aligns="llll"))
        for heading, table in self.tables:
            out.append(
                _simple(
                    [[clean(text) for text in row] for row in table.to_numpy().tolist()],
                    headers=[clean(str(name)) for name in table.columns],
                    stubs=[clean(str(name)) for name in table.index],
                    corner=clean(heading),
                    data_aligns="r" * table.shape[1],
                )
            )
        return out


def _simple(rows: list[list[str]], *, corner: str = "", **parts: Any) -> SimpleTable:
    """A statsmodels table; `corner` stands above the names of its rows."""
    from statsmodels.iolib.table import SimpleTable

    formats = {"table_dec_above": "", "table_dec_below": "", "header_dec_below": _RULE}
    table = SimpleTable(
        rows,
        header_align="r",  # as the numbers below: LaTeX starts a new tabular where this changes
        txt_fmt={**formats, "colsep": "  "},
        ltx_fmt={"replacements": {}},  # texts are escaped already
        **parts,
    )
    if corner:
        table[0][0].data, table[0][0].datatype = corner, "stub"
    return table


def _latex(text: str) -> str:
    return text.strip().translate(_LATEX)


def _escaped(text: str) -> str:
    return html.escape(text.strip())  # blanks align text only


def _html(table: SimpleTable) -> str:
    """The table with its column names, where it has some, in a head."""
    text = str(table.as_html())
    if table[0].datatype != "header":
        return text
    start = text.index("<tr>")
    head, end, body = text[start:].partition("</tr>")
    body = body.replace("</table>", "</tbody>\n</table>")
    return f"{text[:start]}<thead>\n{head}{end}\n</thead>\n<tbody>{body}"


def _lines(table: SimpleTable) -> list[str]:
    return str(table.as_text()).splitlines()


# ---------------------------------------------------------------------------------------------


def summarise(fit: Any, covariance: Any = None, alpha: float = 0.05) -> Summary:
    """Describe `fit`, a ``CTMMResults`` (which stands above this file).

    Parameters
    ----------
    fit : CTMMResults
    covariance : {"model", "jackknife", "robust"} or Jackknife, optional
        Of the standard errors; by default the fit's ``cov_type``.
    alpha : float
        One less the confidence of the intervals.
    """
    errors = fit.errors(covariance)
    with warnings.catch_warnings():  # of what the notes below say
        warnings.filterwarnings("ignore", f"{re.escape(errors.gaps)}$")
        table = fit.table(covariance, alpha)
    split = len(fit.fe_params)
    shares = fit.variance_explained(by_celltype=True)
    return Summary(
        TITLE,
        tuple(_header(fit)),
        (
            ("Fixed effects", _estimates(table.iloc[:split], "P>|t|", alpha)),
            ("Variance components", _estimates(table.iloc[split:], "P>t", alpha)),
            ("Shares of overall variance", _shares(shares)),
        ),
        tuple(_notes(fit, errors)),
    )


def _header(fit: Any) -> list[tuple[str, str]]:
    domain = fit.domain
    floor = f" (floor {domain.noise_floor:g})" if fit.bounds == "noise" else ""
    dropped = ", ".join(f"{reason} ({count})" for reason, count in fit.dropped.items())
    random = zip(fit.labels.random, fit.design.random_levels, strict=True)
    levels = ", ".join(f"{name} ({len(own)} levels)" for name, own in random)
    likelihood = fit.method in _CONVENTION
    record = fit.estimate.convergence
    entries = [
        ("Formula", fit.formula),
        ("Structure", fit.structure),
        ("Method", _METHOD[fit.method]),
        ("Bounds", fit.bounds + floor),
        ("Data", _KIND[fit.kind]),
        ("Donors", str(fit.n_donors)),
        ("Cell types", str(fit.n_celltypes)),
        *_crossing(fit.design.crossing),
        ("Rows", f"{fit.nobs} of {fit.n_possible} possible"),
        ("Rows dropped", dropped or "none"),
        *([("Random effects", levels)] if levels else []),
        *_kinship(fit.design.kinship),
        ("Log-likelihood", f"{fit.llf:.4f}" if likelihood else "none"),
        ("AIC", f"{fit.aic:.4f}" if likelihood else "none"),
        ("BIC", f"{fit.bic:.4f}" if likelihood else "none"),
        ("Residual df", str(fit.df_resid)),
        ("Converged", _yes(fit.converged)),
        ("On the edge", _yes(fit.boundary)),
        ("Evaluations", str(record.n_evaluations)),
    ]
    return entries


_CROSSED = {"by": "Groups", "trend": "Trend", "within": "Conditions"}


def _crossing(crossing: Any) -> list[tuple[str, str]]:
    """Groups, ends of a trend, or conditions."""
    if crossing is None:
        return []
    low, high = crossing.span
    own = f"{low:g} to {high:g}" if crossing.kind == "trend" else ", ".join(crossing.levels)
    return [(_CROSSED[crossing.kind], f"{crossing.column} ({own})")]


def _kinship(kinship: Any) -> list[tuple[str, str]]:
    """Every kinship with its structure, and of genotypes their number."""
    if not kinship:
        return []
    texts = [
        f"{one.name} ({one.structure.name}"
        + ("" if one.kernel.root is None else f", {one.kernel.root.shape[1]} variants")
        + ")"
        for one in kinship
    ]
    return [("Kinship", ", ".join(texts))]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _estimates(table: pd.DataFrame, p_name: str, alpha: float) -> pd.DataFrame:
    """Text of one table of estimates."""
    names = ["estimate", "std. error", "t", p_name, f"[{alpha / 2:g}", f"{1 - alpha / 2:g}]"]
    out = _text(table)
    out["p_value"] = [f"{value:.3g}" for value in table["p_value"]]
    return out.set_axis(names, axis=1)


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "variance": _text(table[["variance"]])["variance"],
            "share": [f"{100 * value:.1f} %" for value in table["share"]],
        }
    )


def _text(table: pd.DataFrame) -> pd.DataFrame:
    """Four digits, the decimal points of a column below each other."""
    texts = table.map(lambda value: f"{value:#.4g}".rstrip(".") if value else "0").astype(object)
    return texts.apply(_aligned)


def _aligned(column: pd.Series) -> pd.Series:
    """Blanks in place of the decimals that other numbers have."""
    after = column.str.len() - column.str.find(".")  # with the point; 1 more where there is none
    after = after.where(column.str.contains(".", regex=False), 0)
    return pd.Series(
        [text + " " * gap for text, gap in zip(column, after.max() - after, strict=True)],
        column.index,
        dtype=object,
    )


def _notes(fit: Any, errors: Any) -> list[str]:
    """What the reader must know, then the versions that made the numbers."""
    df = "the residual df (donors less parameters)"
    if errors.groups is not None and errors.groups - 1 < fit.df_resid:
        df = f"{errors.groups - 1} df (blocks less one)"
    units = "blocks of donors joined by random effects" if fit.design.random else "donors"
    over = errors.name.replace("jackknife", "jackknife over donors", 1)
    related = ", of fixed effects with what related donors add" if fit.design.kinship else ""
    if fit.numbers.is_clustered:
        df = f"the residual df ({units} less one)"
    likely = fit.numbers.has_likelihood
    information = "average" if fit.design.kinship and likely else "expected"
    own = _OWN.get(errors.name, ())
    said = [
        _OF_MODEL.format(information)
        if errors.name == "model"
        else f"Standard errors: {over}{related}.",
        f"P values by t with {df}, one-sided for variances."
        if fit.df_resid > 0
        else "No p values and intervals, as there are no residual df (donors less parameters).",
    ]
    return [
        *([text.format(information, units=units) for text in own] if errors.own else said),
        *([f"{errors.gaps[:1].upper()}{errors.gaps[1:]}."] if errors.gaps else []),
        *([_BESIDE] if fit.numbers.fixed_by == ROBUST != fit.method else []),
        *([_CONVENTION[fit.method]] if fit.method in _CONVENTION else []),
        *_cautions(fit),
        *(note[:1].upper() + note[1:] + ("" if note.endswith(".") else ".") for note in fit.notes),
        footer(fit.versions),
    ]


def _cautions(fit: Any) -> list[str]:
    """What follows from the data and the estimate, and is no fault of either."""
    out = []
    if fit.corr.isna().any(axis=None):
        out.append(
            "The covariance A between cell types is not positive semidefinite: correlations and "
            "shares that cell types share are missing."
        )
    if not fit.converged:
        out.append("Variance components have no p values, as the fit did not converge.")
    return out


def describe_anova(table: pd.DataFrame, method: str) -> Summary:
    """Describe a table of likelihood ratio tests, columns as in ``anova(...).table``."""
    shown = pd.DataFrame(
        {
            "parameters": table["n_params"].astype(str),
            "log-lik.": [f"{value:.4f}" for value in table["llf"]],
            "AIC": [f"{value:.2f}" for value in table["aic"]],
            "BIC": [f"{value:.2f}" for value in table["bic"]],
            "chi2": _blank(table["statistic"]),
            "df": _blank(table["df"]),
            "P>chi2": _blank(table["pvalue"]),
        },
        dtype=object,
    )
    notes = [f"{name}: {note}." for name, note in table["note"].items() if note]
    header = (("Likelihood ratio", "each fit against the one above"), ("Method", _METHOD[method]))
    return Summary("Nested fits", header, (("Fit", shown),), (_CONVENTION[method], *notes))


def _blank(values: pd.Series) -> list[str]:
    """Numbers as text, nothing for those that are not there."""
    return ["" if value != value else f"{value:.4g}" for value in values]


def show_versions() -> Summary:
    """Versions of the package, Python and libraries, and the platform: for reports of errors.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> "numpy" in str(ctmm.show_versions())
    True
    """
    optional = ("anndata", "scanpy", "formulaic", "matplotlib", "joblib", "rpy2", "llvmlite")
    table = pd.DataFrame({"version": versions((*PACKAGES, *optional))}, dtype=object)
    return Summary("Versions", (("Platform", platform.platform()),), (("Package", table),), ())


def footer(made_by: Mapping[str, str]) -> str:
    """Versions of this package and of what its numbers depend on, in one line."""
    return ", ".join(f"{name} {text}" for name, text in made_by.items()) + "."


def recorded_versions() -> dict[str, str]:
    """The versions that are kept with a fit.

    >>> list(recorded_versions())
    ['ctmm-formula', 'python', 'numpy', 'scipy', 'pandas', 'patsy']
    """
    return dict(_own_versions())


@cache
def _own_versions() -> tuple[tuple[str, str], ...]:
    """Looked up once: a scan fits thousands of genes."""
    return tuple(versions(PACKAGES[:4]).items())


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of this package, Python and the packages named.

    >>> list(versions(["numpy"]))
    ['ctmm-formula', 'python', 'numpy']
    """
    own = str(getattr(import_module("ctmm_formula"), "__version__", "unknown"))
    out = {"ctmm-formula": own, "python": platform.python_version()}
    return out | {name: installed(name) for name in names}


def installed(name: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
