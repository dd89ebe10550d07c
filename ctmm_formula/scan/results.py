"""The result of a scan: a table of all genes and what is read off it."""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pandas as pd

from ..arguments import ScanPicture, choose, whole_number
from ..cells.scale import TOO_FEW, scale_notes
from ..cells.tables import UNSEEN
from ..design.labelled import means_note
from ..design.table import amount, label, listing, near
from ..errors import CTMMError, CTMMWarning, DataError
from ..inference.fit import KENWARD_ROGER, correlation
from ..inference.small_sample import crowded
from ..paths import file_path
from ..results.estimates import adjusted, adjusted_logs
from ..results.fitted import CTMMResults
from ..results.labels import METHODS
from ..results.questions import spelled
from .columns import ADJUSTMENTS, LOG, OF_WINDOW, Block, Layout
from .responses import Responses
from .store import write_table
from .worker import FAILED, OK, STATUSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIDY = {
    "estimate": "estimate", "std_error": "se", "statistic": "stat", "df_num": "df1", "df": "df",
    "p_value": "p", "log10_p_value": f"{LOG}p",
}  # fmt: skip
"""Columns of ``Scan.tidy()`` -> what those of the table begin with."""

_SAME = 1e-3
"""Of the largest variance component: by so little a gene may differ from its row."""


@dataclass(frozen=True, eq=False)
class Scan:
    """All genes of a scan; made by :func:`ctmm_formula.fit_genes`.

    G genes, C cell types, K variance components.

    Attributes
    ----------
    table : DataFrame, G rows
        One row per gene, in the order of the data:

        - ``gene``; ``status``: "ok", "boundary" (the estimate lies on the edge of its domain),
          "not converged" or "failed"; ``reason``: why a gene is not ok or a test is NaN
        - ``n_obs`` rows, ``n_donors``; ``mean`` of the expression in these rows, and
          ``zero_noise``, the share of rows whose cells are all alike (mostly: all zero);
          ``converged``, ``boundary``, ``llf``
        - variance components as in ``CTMMResults.vcomp`` (``hom``, ``V[T]``, ``batch``), cell type
          means ``mean[T]``, fixed effects ``b[sex[T.M]]``
        - their standard errors ``se[...]`` by the model (ML, REML) or by independent units
          (robust), and ``se_jackknife[...]`` where the jackknife was run; ``error_jackknife``:
          largest distance of one-step estimates from exact ones, in standard errors, on the donors
          that moved most
        - with genotypes of windows ``n_snps`` in the kinship, ``snps_constant`` and ``snps_rare``
          left out (they do not vary, or less than ``maf`` asks), ``share_imputed`` of the genotypes
        - with ``shares=True`` the shares of the variance of overall pseudobulk, ``share[means]``,
          ``share[shared]``, ``share[batch]``, ``share[noise]``, ...
        - with a kinship, components ``genetic:hom``, ``genetic:V[T]``; "heritability" has
          ``p_heritability_shared``, ``p_heritability_specific`` and, not adjusted,
          ``p_heritability[T]``; with the jackknife ``h2[shared]``, ``h2[specific]``, ``h2[total]``,
          ``h2[T]`` and their errors ``se_h2[...]``, NaN where the variance between donors is not
          clearly positive
        - for every test ``stat_<test>``, ``p_<test>``, ``p_<test>_bonferroni`` and
          ``p_<test>_bh`` (Benjamini-Hochberg): "score" (with ``p_score_cauchy`` and, not adjusted,
          ``p_score[T]``), "jackknife", "wald", "lrt", "bootstrap", "mean"; and for every one of
          these p values, adjusted or not, its logarithm to base 10, ``log10_p_<test>``, which is
          there where p itself is below the smallest number
        - for every test that was asked for in words the same with ``df_<test>`` and, of F tests,
          ``df1_<test>``; where it is of one number ``estimate_<test>`` and ``se_<test>``.
          "effects:status" is the omnibus test, ``effects:status_heterogeneity``,
          ``effects:status_mean`` and ``effects:status[T]`` its parts
        - for more ``models``, ``full.converged``, ``full.boundary``, ``full.llf``, ``full.V[T]``,
          ...; ``stat_lrt[hom:free]``, ``p_lrt[hom:free]`` and its adjusted p values, the
          likelihood ratio of two nested ones

        Missing p values stay missing and do not count in the adjustment.
    layout : Layout
        Structures, components and tests behind the columns.
    call : dict
        The settings of the scan as text.
    notes : tuple of str
        What to know of its formula, and of the scale of its genes,
        :mod:`ctmm_formula.cells.scale`.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> genes = [f"gene{k:03d}" for k in (1, 2, 3, 101, 102, 103)]
    >>> scan = ctmm.fit_genes("~ C(celltype) + sex", data=ctmm.load_genes(), random="batch",
    ...                       tests=["score"], genes=genes)
    >>> scan
    <Scan: 6 genes, free by robust moments; 6 ok>
    >>> scan.top(2)["gene"].tolist()
    ['gene101', 'gene102']
    >>> scan.vcomp.columns.tolist()
    ['hom', 'V[day0]', 'V[day1]', 'V[day2]', 'V[day3]', 'batch']
    """

    table: pd.DataFrame
    layout: Layout
    call: Mapping[str, Any]
    _refit: Callable[[str], CTMMResults] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def genes(self) -> list[str]:
        """Names of all genes."""
        return self.table["gene"].tolist()

    @property
    def vcomp(self) -> pd.DataFrame:
        """Variance components of the main structure, genes x K, squared units of expression."""
        return self._components(0)

    @property
    def corr(self) -> pd.DataFrame:
        """Correlations of true expression between cell types, genes x C (C - 1) / 2.

        By the structure with most components that was fitted.  NaN where a variance is not
        positive, and all NaN where A is no covariance, as in ``CTMMResults.corr``.
        """
        structures = self.layout.structures
        k = max(range(len(structures)), key=lambda k: len(structures[k].labels))
        names = structures[k].celltypes
        theta = self._components(k).to_numpy()[:, : len(structures[k].labels)]
        lower = [(r, c) for r in range(len(names)) for c in range(r)]
        values = [correlation(structures[k].covariance(row)) for row in theta]
        array = np.array([[R[pair] for pair in lower] for R in values]).reshape(-1, len(lower))
        columns = [f"corr[{names[r]},{names[c]}]" for r, c in lower]
        return pd.DataFrame(array, self._index(), columns)

    def _components(self, k: int) -> pd.DataFrame:
        """Variance components of structure number k, the main one first."""
        names = list(self.layout.components[k])
        prefix = f"{self.layout.structures[k].name}." if k else ""
        out = self.table[[prefix + name for name in names]].set_axis(names, axis=1)
        return out.set_axis(self._index(), axis=0)

    def _index(self) -> pd.Index:
        return pd.Index(self.table["gene"], name="gene")

    def gene(self, name: str) -> CTMMResults:
        """Fit one gene again, with everything there is to a single fit.

        Parameters
        ----------
        name : str

        Raises
        ------
        DataError
            There is no such gene, it cannot be fitted (its ``reason``), or the scan was read from
            a file without the data.
        """
        found = label(name)
        if found not in set(self.table["gene"]):
            raise DataError(f"there is no gene {name!r} in the scan{near(found, self.genes)}")
        if self._refit is None:
            raise DataError(
                "the scan was read from a file, without the data: read_scan(path, data=...) gives "
                "genes as well"
            )
        fit = self._refit(found)
        kept = self.vcomp.loc[found]
        own = fit.vcomp.reindex(kept.index).to_numpy()
        near_enough = _SAME * np.abs(own).max(initial=0.0, where=np.isfinite(own))
        if not np.allclose(own, kept.to_numpy(), rtol=0.0, atol=near_enough, equal_nan=True):
            warnings.warn(
                f"gene {found!r} has other variance components by these data than in the table of "
                "the scan: the data, their noise or the kinship are not those that were scanned",
                CTMMWarning,
                stacklevel=2,
            )
        return fit

    def top(self, n: int = 10, by: str | None = None) -> pd.DataFrame:
        """The first rows of the table by one column.

        Parameters
        ----------
        n : int
        by : str, optional
            A test ("score", "effects:status", "effects:status[T]"), a p value (``p_score_bh``):
            smallest first; any other column: largest first.  By default the first test.

        Returns
        -------
        DataFrame
            Rows of ``table``, those without a value left out.

        Notes
        -----
        The rule of Chen and Dahl, Nat Commun 15:5229 (2024), for genes whose variance but not
        mean differs between cell types asks for Bonferroni by two methods and mean p > 0.01::

            scan.table.query("p_jackknife_bonferroni < .05 and p_score_bonferroni < .05 "
                             "and p_mean > .01")

        They used the jackknife of REML and of HE: with two scans,
        ``reml.table[(reml.table.p_jackknife_bonferroni < .05) &
        (he.table.p_jackknife_bonferroni < .05) & (reml.table.p_mean > .01)]``.
        """
        n = whole_number("n", n, 0)
        if by is None:
            if not self.layout.tested:
                raise CTMMError("the scan has no tests: name a column, top(by='hom')")
            by = self.layout.tested[0]
        by = spelled(by)
        name = f"p_{by}" if f"p_{by}" in self.table.columns else by
        choose("column", name, [c for c in self.table.columns if _is_number(self.table[c])])
        found = self.table[self.table[name].notna()]
        first = LOG + name if LOG + name in found else name  # p values of 0 are in order, too
        small = first.startswith(("p_", LOG))
        return found.sort_values(first, ascending=small, kind="stable").head(n)

    def tidy(self, tests: str | Sequence[str] | None = None) -> pd.DataFrame:
        """One row per gene and test.

        Parameters
        ----------
        tests : str or sequence of str, optional
            Some of the scan's tests; by default all.

        Returns
        -------
        DataFrame
            gene, test, term (a cell type, "mean", "heterogeneity", ...; "" for the test itself; a
            cell type of such a name is "celltype mean"), estimate, std_error, statistic, df_num,
            df, p_value, log10_p_value, p_bonferroni, p_bh; NaN where a test has no such number.
        """
        known = list(self.layout.tests)
        asked = known if tests is None else [tests] if isinstance(tests, str) else list(tests)
        parts = []
        for test in (choose("test", spelled(name), known) for name in asked):
            for end, term in self.layout.terms(test).items():
                name = f"{test}{end}"
                places = {column: f"{kind}_{name}" for column, kind in TIDY.items()}
                places |= {f"p_{key}": f"p_{name}_{key}" for key in ADJUSTMENTS}
                own = pd.DataFrame({"gene": self.table["gene"], "test": test, "term": term})
                numbers = {key: self.table.get(place, np.nan) for key, place in places.items()}
                parts.append(own.assign(**numbers))
        names = ["gene", "test", "term", *TIDY, *(f"p_{key}" for key in ADJUSTMENTS)]
        out = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)
        return out[names]

    def counts(self) -> dict[str, int]:
        """Number of genes by status."""
        found = self.table["status"].value_counts()
        return {name: int(found[name]) for name in STATUSES if name in found.index}

    def summary(self) -> pd.DataFrame:
        """One row per test: genes tested, smallest p value, and how many are found at 5 %.

        Returns
        -------
        DataFrame
            tested, smallest, p<0.05, bonferroni, bh; bonferroni and bh count adjusted p < 0.05.
        """
        rows = {}
        for name in self.layout.tested:
            p = self.table[name]
            found = {key: int((self.table[f"{name}_{key}"] < 0.05).sum()) for key in ADJUSTMENTS}
            rows[name.removeprefix("p_")] = {
                "tested": int(p.notna().sum()),
                "smallest": p.min(),
                "p<0.05": int((p < 0.05).sum()),
                **found,
            }
        columns = ["tested", "smallest", "p<0.05", *ADJUSTMENTS]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("test")

    @overload
    def plot(self, kind: Literal["volcano"], /, **options: Any) -> Axes | np.ndarray: ...

    @overload
    def plot(self, kind: ScanPicture = "variances", /, **options: Any) -> Axes: ...

    def plot(self, kind: str = "variances", /, **options: Any) -> Any:
        """Draw the scan; the pictures are the functions of :mod:`ctmm_formula.plots`.

        Parameters
        ----------
        kind : {"variances", "shares", "correlations", "differentiation", "qq", "volcano", ...}
            Variance components of all genes, shares of variance, correlations between cell types,
            tests of means against tests of variances, quantiles of the p values; effects against
            their p values by cell type, and "effects" of genes in all cell types.
        **options
            Of the function of that name.

        Returns
        -------
        Axes, or an array of them
        """
        from ..plots.scans import OF_A_SCAN

        return OF_A_SCAN[choose("kind", kind, OF_A_SCAN)][0](self, **options)

    def plot_data(
        self, kind: ScanPicture | Literal["volcano"] = "variances", /, **options: Any
    ) -> pd.DataFrame:
        """Return the numbers that :meth:`plot` draws."""
        from ..plots.scans import OF_A_SCAN

        return OF_A_SCAN[choose("kind", kind, OF_A_SCAN)][1](self, **options)

    def to_parquet(self, path: str | Path) -> None:
        """Write the scan; :func:`ctmm_formula.read_scan` reads it.

        Parameters
        ----------
        path : str or Path
            The file is complete or not there at all.
        """
        write_table(file_path("to_parquet", path), self.table, self.layout, self.call)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        names = ", ".join(structure.name for structure in self.layout.structures)
        method = METHODS.get(self.call.get("method", ""), "")
        return f"<Scan: {len(self)} genes, {names} by {method}; {counts}>"

    def __str__(self) -> str:
        found = self.summary()
        parts = [repr(self), f"  {self.call.get('formula', '')}"]
        if len(found):
            parts.append(found.to_string(float_format="{:.3g}".format))
        return "\n".join([*parts, *(f"  note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        notes = "".join(f"\n<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<p>{html.escape(repr(self))}</p>\n{self.summary().to_html()}{notes}"


def notes_of(
    table: pd.DataFrame, layout: Layout, call: Mapping[str, Any], responses: Responses | None
) -> tuple[str, ...]:
    """What to know of data, formula and scale of a scan; without the data, by fitted means."""
    means_missing = means_note(call.get("one_mean", ""), layout.structures)
    why = str(call.get("why", ""))
    said = [
        *([why] if why else []),
        *call.get("doubts", []),
        *([means_missing] if means_missing else []),
    ]
    said += crowded_notes(table) if call.get("fixed_by") == KENWARD_ROGER else []
    said += [windows_note(table, call["window"], call["maf"])] if layout.windows else []
    low = [notice({}, unseen(table))] if unseen(table) else []
    columns = [f"mean[{name}]" for name in layout.celltypes]
    means, errors = (
        table[names].to_numpy(float) if set(names) <= set(table) else None
        for names in (columns, [f"se[{name}]" for name in columns])
    )
    if responses is None or responses.var is None:
        uns = {"ctmm": {"summary": call.get("summary", "")}}
        return (*said, *scale_notes(uns, pd.DataFrame(index=table.index), means, errors), *low)
    var = responses.var.iloc[responses.places]
    return (*said, *scale_notes(responses.uns, var, means, errors), *low)


def crowded_notes(table: pd.DataFrame | Block) -> list[str]:
    """What to know of F tests by the model in which donors are few for the hypotheses."""
    donors, said = np.asarray(table["n_donors"]), dict[str, list[str]]()
    for column in (name for name in map(str, table) if name.startswith("df1_")):
        q = np.nan_to_num(np.asarray(table[column]))
        worst = int((q / np.maximum(donors, 1)).argmax())
        note = crowded(int(q[worst]), int(donors[worst]), "method='robust'")
        said.setdefault(note, []).append(column.removeprefix("df1_"))
    return [f"{listing(names, 5)}: {note}" for note, names in said.items() if note]


def windows_note(table: pd.DataFrame, window: int, maf: float) -> str:
    """What windows of genes hold, over all genes."""
    there = table[table["n_snps"] > 0]
    lost = len(table) - len(there)
    if not len(there):
        return f"window={window:,}: no gene has variants"
    text = f"window={window:,}: {there['n_snps'].median():g} variants a gene (median)"
    for name, what in (
        ("snps_constant", "do not vary"), ("snps_rare", f"are rarer than maf={maf:g}"),
    ):  # fmt: skip
        share = there[name].sum() / max(there[list(OF_WINDOW)[:3]].to_numpy().sum(), 1)
        text += f"; {share:.1%} of all {what} and are left out" if share else ""
    missing = float(
        (there["share_imputed"] * there["n_snps"]).sum() / max(there["n_snps"].sum(), 1)
    )
    text += f"; {missing:.2%} of the genotypes are missing and are the mean" if missing else ""
    return text + (f"; {amount(lost, 'gene has', 'genes have')} none" if lost else "")


def full_table(block: Block, layout: Layout) -> pd.DataFrame:
    """The table of all genes: their columns with p values adjusted over genes."""
    columns: dict[str, Any] = {}
    for name in layout.kinds():
        columns[name] = block[name]
        if name in layout.tested:
            for suffix, method in ADJUSTMENTS.items():
                columns[f"{name}_{suffix}"] = adjusted(block[name], method)
        if name.removeprefix(LOG) in layout.tested and name.startswith(LOG):
            for suffix, method in ADJUSTMENTS.items():
                columns[f"{name}_{suffix}"] = adjusted_logs(block[name], method)
    return pd.DataFrame(columns)


def doubted(table: pd.DataFrame, responses: Responses) -> pd.DataFrame:
    """The table with a word in ``reason`` of genes that have too few counts for their scale."""
    var = responses.var
    if var is None or "few_counts" not in var:
        return table
    few = var["few_counts"].to_numpy(dtype=bool)[responses.places] & (table["status"] != FAILED)
    reason = [
        "; ".join(filter(None, (text, TOO_FEW))) if is_few else text
        for text, is_few in zip(table["reason"], few, strict=True)
    ]
    return table.assign(reason=reason)


def unseen(table: pd.DataFrame) -> int:
    """Genes with few counts for the tests of V, by :data:`~ctmm_formula.cells.tables.UNSEEN`."""
    return int((table["zero_noise"] > UNSEEN).sum())


def notice(counts: Mapping[str, int], low: int = 0) -> str:
    """What went wrong in a scan, in one sentence; nothing where nothing did."""
    if low:
        text = (
            f"{amount(low, 'gene is', 'genes are')} the same in all cells of most pairs "
            f"(zero_noise > {UNSEEN:g}): "
            "tests of V find large effects only"
        )
        return "; ".join(filter(None, (notice(counts), text)))
    bad = {name: count for name, count in counts.items() if name != OK}
    if not bad:
        return ""
    words = {
        "boundary": "on the edge of their domain (prefer the score test there)",
        "not converged": "not converged",
        FAILED: "failed",
    }
    parts = ", ".join(f"{count} {words[name]}" for name, count in bad.items())
    return f"of {sum(counts.values())} genes, {parts}: see status and reason in scan.table"


def _is_number(column: pd.Series) -> bool:
    return column.dtype.kind in "fi"
