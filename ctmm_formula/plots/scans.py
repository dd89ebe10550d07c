"""Pictures of all genes of a scan: variances, heritability, correlations between cell types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..arguments import choose, on_off
from ..errors import CTMMError
from ..structures import SHARED
from . import style
from .differentiation import differentiation, differentiation_data
from .pvalues import qq, qq_data
from .volcano import effects, effects_data, volcano, volcano_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED = 8
"""Cell types: numbers of more than these do not fit beside each other."""


# ---------------------------------------------------------------------------------------------
# variance components over genes


@style.picture
def variances(scan: object, *, clip: float | None = None, ax: Axes | None = None) -> Axes:
    """Draw the variance components of all genes as violins, with their medians.

    Parameters
    ----------
    scan : Scan
    clip : float, optional
        Variances beyond -clip and clip are drawn there; default what 99 % of them lie within.
        The paper takes 2 for expression standardised to a variance of 1.
    ax : Axes, optional

    Returns
    -------
    Axes
        Squared units of expression.  The note says what was clipped and how many genes have no
        estimates; medians are those of the variances before they are clipped.

    Notes
    -----
    Figure 3A of Chen and Dahl, Nat Commun 15:5229 (2024).

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(),
    ...                       genes=["gene001", "gene002", "gene101", "gene102"])
    >>> [text.get_text() for text in scan.plot("variances").get_xticklabels()]
    ['hom', 'V[day0]', 'V[day1]', 'V[day2]', 'V[day3]']
    """
    table = variances_data(scan)
    names = list(dict.fromkeys(table["component"]))
    values = [table["variance"][table["component"] == name].dropna().to_numpy() for name in names]
    everything = np.concatenate(values)
    if not everything.size:
        raise CTMMError("no gene of the scan has estimates: see reason in scan.table")
    edge = _edge(everything) if clip is None else _positive("clip", clip)
    ax = style.axes(ax, max(4.5, 1.2 + 0.42 * len(names)), 3.4)
    shades = dict.fromkeys(scanned(scan).layout.structures[0].labels, style.SPECIFIC)
    shades |= {SHARED: style.SHARED}
    fills = [shades.get(name, style.PALETTE[1]) for name in names]  # else a random effect
    ax.axhline(0.0, color=style.LINE, linewidth=0.6)
    beyond = int((np.abs(everything) > edge).sum())
    lost = int(table["variance"].isna().groupby(table["gene"]).any().sum())
    remarks = style.remarks(
        (beyond, f"{beyond} of {everything.size} clipped at ±{edge:g}"),
        (lost, f"{style.count(lost, 'gene')} without estimates left out"),
    )
    clipped = [own.clip(-edge, edge) for own in values]
    _violins(ax, clipped, fills, [np.median(own) for own in values], remarks)
    style.names_below(ax, range(len(names)), names)
    return style.finish(ax, "", "variance (expression²)")


def variances_data(scan: object) -> pd.DataFrame:
    """Numbers that :func:`variances` draws.

    Returns
    -------
    DataFrame
        One row per gene and component: gene, component, variance (not clipped; NaN where a gene
        could not be fitted).  Covariances of cell types are not in it: see
        :func:`correlations_data`.
    """
    found = scanned(scan)
    names = found.layout.celltypes
    between = [f"V[{one},{other}]" for one in names for other in names if one != other]
    wide = found.vcomp.drop(columns=between, errors="ignore").reset_index()
    return wide.melt("gene", var_name="component", value_name="variance")


@style.picture
def shares_of_genes(scan: object, *, ax: Axes | None = None) -> Axes:
    """Draw the shares of variance of all genes as violins, with their medians.

    Parameters
    ----------
    scan : Scan
        With ``shares=True``.
    ax : Axes, optional

    Returns
    -------
    Axes
        Parts of the variance of overall pseudobulk, largest median first, noise last.  Shares
        below 0 (variances are estimated without bounds) are drawn at 0, those above 1 at 1; the
        note counts them.

    Notes
    -----
    The picture of variancePartition (Hoffman and Schadt, BMC Bioinformatics 17:483, 2016).

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), shares=True, tests=[],
    ...                       genes=["gene001", "gene002", "gene101", "gene102"])
    >>> [text.get_text() for text in scan.plot("shares").get_xticklabels()]
    ['shared', 'specific', 'means', 'fixed', 'noise']
    """
    table = shares_of_genes_data(scan)
    wide = table.pivot(index="gene", columns="part", values="share")
    if not wide.notna().any(axis=None):
        raise CTMMError("no gene of the scan has shares of variance: see reason in scan.table")
    rest = wide.drop(columns="noise").median().sort_values(ascending=False, kind="stable")
    names = [*map(str, rest.index), "noise"]
    values = [wide[name].dropna().to_numpy() for name in names]
    lost = int(wide.isna().any(axis=1).sum())
    remark = lost, f"{style.count(lost, 'gene')} without estimates left out"
    return style.finish(_shares(ax, names, values, remark), "", "share of variance")


def shares_of_genes_data(scan: object) -> pd.DataFrame:
    """Numbers that :func:`shares_of_genes` draws.

    Returns
    -------
    DataFrame
        One row per gene and part: gene, part, share (not clipped; NaN where a gene could not be
        fitted).
    """
    found = scanned(scan)
    names = found.layout.shares
    if not names:
        raise CTMMError("the scan has no shares of variance: fit_genes(..., shares=True)")
    wide = found.table[["gene", *(f"share[{name}]" for name in names)]]
    return wide.set_axis(["gene", *names], axis=1).melt("gene", var_name="part", value_name="share")


@style.picture
def heritability(scan: object, *, kinship: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw how much of the variance between donors is genetic, of all genes, by cell type.

    Parameters
    ----------
    scan : Scan
        With ``kinship=`` (or ``genotypes=``) and a test with the jackknife.
    kinship : str, optional
        Which one, where there are several; by default the first.
    ax : Axes, optional

    Returns
    -------
    Axes
        Violins with medians: the shared, the specific and the total share, then that of every cell
        type; the rest of 1 is the environment.  Shares beyond 0 and 1 (moments know no bounds) are
        drawn there, and counted in the note with genes whose variance is not clearly positive.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> own = ctmm.simulate.Heredity(ctmm.simulate.simulate_genotypes(60, 300, rng=1), cis=0.5)
    >>> genes = ctmm.simulate.simulate_genes(3, 60, ["T", "B"], heredity=own, rng=2)
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=genes, genotypes=genes.genotypes,
    ...                       window=100_000, positions=genes.positions, structure="iid",
    ...                       tests=["heritability", "jackknife"])
    >>> [text.get_text() for text in scan.plot("heritability").get_xticklabels()]
    ['shared', 'specific', 'total', 'B', 'T']
    """
    table = heritability_data(scan)
    name = choose("kinship", kinship or table["kinship"].iloc[0], list(table["kinship"].unique()))
    wide = table[table["kinship"] == name].pivot(index="gene", columns="part", values="h2")
    parts = list(dict.fromkeys(table["part"]))
    values = [wide[part].dropna().to_numpy() for part in parts]
    if not any(own.size for own in values):
        raise CTMMError("no gene of the scan has a heritability: see reason in scan.table")
    lost = int(wide[parts[-1]].isna().sum())
    remark = lost, f"{style.count(lost, 'gene')} without a clear variance in {parts[-1]}"
    ax = _shares(ax, parts, values, remark)
    return style.finish(ax, "", "genetic share (the rest: environment)")


def heritability_data(scan: object) -> pd.DataFrame:
    """Numbers that :func:`heritability` draws.

    Returns
    -------
    DataFrame
        One row per gene, kinship and part: gene, kinship, part, h2 (not clipped; NaN where the
        variance between donors is not clearly positive), std_error.
    """
    found = scanned(scan)
    names = found.layout.heritability
    if not names:
        raise CTMMError(
            "the scan has no heritabilities: fit_genes(kinship=..., tests=['heritability', "
            "'jackknife'])"
        )
    kinships = [name for name, _ in found.layout.genetic]
    rows = []
    for k, name in enumerate(names):
        own = kinships[k // (len(names) // len(kinships))]
        part = name.removeprefix(f"{own}:") if len(kinships) > 1 else name
        columns = {"gene": found.table["gene"], "kinship": own, "part": part}
        numbers = {"h2": found.table[f"h2[{name}]"], "std_error": found.table[f"se_h2[{name}]"]}
        rows.append(pd.DataFrame(columns | numbers))
    return pd.concat(rows, ignore_index=True)


def _edge(values: np.ndarray) -> float:
    """What 99 % of the values lie within, to two digits."""
    reach = float(np.quantile(np.abs(values), 0.99, method="higher"))  # of few values, all
    if reach <= 0.0:
        return 1.0
    unit = 10.0 ** (np.floor(np.log10(reach)) - 1)
    return float(f"{np.ceil(reach / unit) * unit:.2g}")


def _shares(
    ax: Axes | None,
    names: Sequence[str],
    values: Sequence[np.ndarray],
    remark: tuple[int, str],
) -> Axes:
    """Violins of shares by name, those beyond 0 and 1 drawn there and counted, then a remark."""
    ax = style.axes(ax, max(4.5, 1.2 + 0.6 * len(names)), 3.4)
    shades = {"shared": style.SHARED, "specific": style.SPECIFIC, "noise": style.MUTED}
    fills = [shades.get(name, style.PALETTE[1]) for name in names]
    every = np.concatenate(values)
    beyond = int(((every < 0.0) | (every > 1.0)).sum())
    remarks = style.remarks(
        (beyond, f"{beyond} of {every.size} shares beyond 0 and 1 drawn there"), remark
    )
    clipped = [own.clip(0.0, 1.0) for own in values]
    medians = [np.median(own) if own.size else np.nan for own in values]
    _violins(ax, clipped, fills, medians, remarks)
    ax.set_ylim(-0.02, 1.02)
    style.names_below(ax, range(len(names)), names)
    return ax


def _violins(
    ax: Axes,
    values: Sequence[np.ndarray],
    fills: Sequence[Any],
    medians: Sequence[float],
    remark: str,
) -> None:
    """Violins side by side, a line at each median; above the axes its number, then a remark."""
    there = [k for k, own in enumerate(values) if own.size]
    shapes: Any = ax.violinplot([values[k] for k in there], there, widths=0.85, showextrema=False)
    for k, body in zip(there, shapes["bodies"], strict=True):
        body.set(facecolor=fills[k], alpha=0.75, edgecolor=style.LINE, linewidth=0.5)
        ax.plot([k - 0.25, k + 0.25], [medians[k]] * 2, color=style.MARK, linewidth=1.6)
    ax.set_xlim(-0.6, len(values) - 0.4)
    size, upright = style.SMALL - 1, len(values) > _NUMBERED
    numbers = [f"{m:.2f}" if abs(m) >= 0.1 else f"{m:#.2g}" for m in medians]
    for k in there:
        ax.annotate(
            numbers[k], (k, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", va="bottom", fontsize=size, color=style.MARK,
            rotation=90 if upright else 0,
        )  # fmt: skip
    style.note(ax, remark, 72 * style.extent(numbers, size) + 4 if upright else 1.3 * size)


# ---------------------------------------------------------------------------------------------
# correlations between cell types over genes


@style.picture
def correlations(
    scan: object, *, kind: str | None = None, ordered: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw the correlations of true expression between cell types, over all genes.

    Parameters
    ----------
    scan : Scan
        With ``structure="full"`` or ``models=["full"]``; or another structure in which the
        correlations differ between pairs.
    kind : {"violin", "heatmap"}, optional
        A violin per pair, or the medians of all pairs; default violins of up to six cell types.
    ordered : bool
        The cell types are ordered (stages, days): pairs are sorted by distance and adjacent ones
        marked, violins in a strong colour or framed cells.
    ax : Axes, optional

    Returns
    -------
    Axes

    Notes
    -----
    Figure 3B of Chen and Dahl, Nat Commun 15:5229 (2024).  Genes without a covariance (a variance
    that is not positive, a correlation beyond 1) are left out, as there, and counted in the note.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), models=["full"],
    ...                       method="reml",
    ...                       genes=["gene001", "gene002", "gene101", "gene102"])
    >>> ax = scan.plot("correlations", ordered=True)
    >>> [text.get_text() for text in ax.get_xticklabels()][:2]
    ['day0–day1', 'day1–day2']
    """
    table = correlations_data(scan)
    if not table["correlation"].notna().any():
        raise CTMMError("no gene of the scan has correlations: see reason in scan.table")
    types = list(scanned(scan).layout.celltypes)
    if kind is None:
        kind = "violin" if len(types) <= 6 else "heatmap"
    choose("kind", kind, ["violin", "heatmap"])
    ordered = on_off("ordered", ordered)
    empty = table["correlation"].isna().groupby(table["gene"])
    lost, part = int(empty.all().sum()), int((empty.any() & ~empty.all()).sum())
    remarks = style.remarks(
        (lost, f"{lost} of {empty.ngroups} genes without a covariance left out"),
        (part, f"{style.count(part, 'gene')} with some of the pairs only"),
    )
    if kind == "violin":
        return _pairs(table, types, ordered, remarks, ax)
    return _heatmap(table, types, ordered, remarks, ax, "median correlation")


@style.picture
def genetic_correlations(
    scan: object, *, kinship: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the genetic correlations between cell types, of all genes together.

    Parameters
    ----------
    scan : Scan
        With ``kinship=`` (or ``genotypes=``); ``genetic_structure="full"`` has a covariance for
        each pair.
    kinship : str, optional
        Which one, where there are several; by default the first.
    ax : Axes, optional

    Returns
    -------
    Axes
        Correlations of the mean of all genes' genetic covariances, each over its gene's variance
        between donors: those of single genes are too imprecise to be drawn.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> own = ctmm.simulate.Heredity(ctmm.simulate.simulate_genotypes(60, 300, rng=1), cis=0.5)
    >>> genes = ctmm.simulate.simulate_genes(3, 60, ["T", "B", "NK"], heredity=own, rng=2)
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=genes, genotypes=genes.genotypes,
    ...                       window=100_000, positions=genes.positions, structure="iid")
    >>> scan.plot_data("genetic_correlations")[["first", "second"]].values.tolist()
    [['B', 'NK'], ['B', 'T'], ['NK', 'T']]
    """
    table = genetic_correlations_data(scan)
    name = choose("kinship", kinship or table["kinship"].iloc[0], list(table["kinship"].unique()))
    own = table[table["kinship"] == name]
    genes = int(own["genes"].iloc[0])
    types = list(scanned(scan).layout.celltypes)
    if not own["correlation"].notna().any():
        raise CTMMError("no cell type of the scan has a genetic variance above 0 over all genes")
    words = f"{style.count(genes, 'gene')} together"
    return _heatmap(own, types, False, words, ax, "genetic correlation")


def genetic_correlations_data(scan: object) -> pd.DataFrame:
    """Numbers that :func:`genetic_correlations` draws.

    Returns
    -------
    DataFrame
        One row per kinship and pair: kinship, first, second (cell types), correlation (NaN where a
        mean genetic variance is not above 0), genes.
    """
    found = scanned(scan)
    layout = found.layout
    if not layout.genetic or len(layout.celltypes) < 2:
        raise CTMMError("the scan has no kinship, or one cell type: fit_genes(kinship=...)")
    theta = found.vcomp.dropna()
    environment = layout.structures[0]
    own = environment.basis.diagonal(axis1=1, axis2=2).mean(axis=1)
    size = theta.to_numpy()[:, : len(own)] @ own
    names, parts = list(theta.columns), []
    at = len(names) - sum(len(structure.labels) for _, structure in layout.genetic)
    for name, structure in layout.genetic:
        values = theta.to_numpy()[:, at : at + len(structure.labels)]
        at += len(structure.labels)
        parts.append((name, np.tensordot(values, structure.basis, axes=1)))
        size = size + np.trace(parts[-1][1], axis1=1, axis2=2) / len(layout.celltypes)
    rows = []
    there = size > 0.0
    for name, A in parts:
        mean = (A[there] / size[there, None, None]).mean(axis=0) if there.any() else A.sum(axis=0)
        with np.errstate(invalid="ignore"):
            sd = np.sqrt(np.where(np.diag(mean) > 0.0, np.diag(mean), np.nan))
        r = np.clip(mean / np.outer(sd, sd), -1.0, 1.0)
        for c, d in zip(*np.triu_indices(len(r), 1), strict=True):
            pair = {"first": layout.celltypes[c], "second": layout.celltypes[d]}
            rows.append({"kinship": name, **pair, "correlation": r[c, d], "genes": there.sum()})
    return pd.DataFrame(rows)


def correlations_data(scan: object) -> pd.DataFrame:
    """Numbers that :func:`correlations` draws.

    Returns
    -------
    DataFrame
        One row per gene and pair: gene, first, second (cell types), distance (places between
        them in the order of the cell types: 1 if adjacent), correlation.
    """
    found = scanned(scan)
    names = found.layout.celltypes
    if max(len(structure.labels) for structure in found.layout.structures) <= 2:
        raise CTMMError(
            "in this scan all pairs of cell types have one correlation: fit_genes(..., "
            'models=["full"]) estimates one for each pair'
        )
    wide = found.corr
    lower = [(r, c) for r in range(len(names)) for c in range(r)]
    parts = [
        pd.DataFrame(
            {"gene": wide.index, "first": names[c], "second": names[r], "distance": r - c,
             "correlation": wide.iloc[:, k].to_numpy()}
        )
        for k, (r, c) in enumerate(lower)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _pairs(
    table: pd.DataFrame, types: list[str], ordered: bool, remark: str, ax: Axes | None
) -> Axes:
    order = [(r, c) for c in range(len(types)) for r in range(c + 1, len(types))]
    if ordered:
        order.sort(key=lambda pair: (pair[0] - pair[1], pair[1]))
    by_pair = {key: own for key, own in table.groupby(["first", "second"], sort=False)}
    chosen = [by_pair[types[c], types[r]]["correlation"].dropna().to_numpy() for r, c in order]
    ax = style.axes(ax, max(4.5, 1.2 + 0.42 * len(order)), 3.4)
    ax.axhline(0.0, color=style.LINE, linewidth=0.6)
    fills = [style.SPECIFIC if not ordered or r - c == 1 else "#A6CEE3" for r, c in order]
    medians = [np.median(own) if own.size else np.nan for own in chosen]
    _violins(ax, chosen, fills, medians, remark)
    longest = style.slope_below(ax, len(order))[1]
    short = style.shortened(types, longest / 2 - style.extent("–", style.SMALL))  # two in one name
    style.names_below(ax, range(len(order)), [f"{short[c]}–{short[r]}" for r, c in order])
    return style.finish(ax, "strong colour: adjacent cell types" if ordered else "", "correlation")


def _heatmap(
    table: pd.DataFrame, types: list[str], ordered: bool, remark: str, ax: Axes | None, what: str
) -> Axes:
    from matplotlib import rcParams
    from matplotlib.patches import Rectangle

    middle = table.groupby(["first", "second"], sort=False)["correlation"].median()
    C = len(types)
    grid = np.full((C, C), np.nan)
    for row in middle.reset_index().itertuples():
        grid[types.index(str(row.second)), types.index(str(row.first))] = row.correlation
    ax = style.axes(ax, max(3.6, 1.8 + 0.28 * C), max(3.0, 1.3 + 0.26 * C))
    image = ax.imshow(grid[1:, :-1], cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    if C <= _NUMBERED:
        for r, c in zip(*np.nonzero(np.isfinite(grid)), strict=True):
            color = "white" if abs(grid[r, c]) > 0.65 else "black"
            ax.text(
                c, r - 1, f"{grid[r, c]:.2f}", ha="center", va="center", color=color,
                fontsize=style.SMALL - 1,
            )  # fmt: skip
    if ordered:
        for k in range(C - 1):
            frame: Any = {"fill": False, "linewidth": 1.2, "clip_on": False}
            edge = rcParams["text.color"]  # to be seen on dark pages too
            ax.add_patch(Rectangle((k - 0.5, k - 0.5), 1, 1, edgecolor=edge, **frame))
    style.names_beside(ax, types[1:])
    tilt: Any = {"rotation": 90} if C > _NUMBERED else {
        "rotation": 40, "ha": "right", "rotation_mode": "anchor",
    }  # fmt: skip
    below = style.shortened(types[:-1], 0.42 * style.cell(ax)[1])
    ax.set_xticks(range(C - 1), below, parse_math=False, **tilt)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03, ticks=[-1.0, -0.5, 0.0, 0.5, 1.0])
    bar.set_label(what, fontsize=style.SMALL + 1)
    bar.ax.tick_params(labelsize=style.SMALL)
    style.finish(ax, "framed: adjacent cell types" if ordered else "")
    style.note(ax, remark)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=style.SMALL - 2 if C > _NUMBERED else style.SMALL)
    return ax


# ---------------------------------------------------------------------------------------------


def scanned(scan: object) -> Any:
    """`scan`, if it is one."""
    if all(hasattr(scan, name) for name in ("table", "layout", "vcomp")):
        return scan
    raise CTMMError(f"expected a scan, what ctmm.fit_genes returns, got {type(scan).__name__}")


def _positive(name: str, value: object) -> float:
    good = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not good or not 0.0 < float(value) < np.inf:  # type: ignore[arg-type]
        raise CTMMError(f"{name}= must be a positive number, got {value!r}")
    return float(value)  # type: ignore[arg-type]


OF_A_SCAN: dict[str, tuple[Callable[..., Any], Callable[..., pd.DataFrame]]] = {
    "variances": (variances, variances_data),
    "shares": (shares_of_genes, shares_of_genes_data),
    "heritability": (heritability, heritability_data),
    "correlations": (correlations, correlations_data),
    "genetic_correlations": (genetic_correlations, genetic_correlations_data),
    "differentiation": (differentiation, differentiation_data),
    "qq": (qq, qq_data),
    "volcano": (volcano, volcano_data),
    "effects": (effects, effects_data),
}
"""What ``scan.plot(kind)`` and ``scan.plot_data(kind)`` can be asked for."""
