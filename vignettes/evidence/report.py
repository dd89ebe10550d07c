"""Tables and pictures of the counts: ``python vignettes/evidence/report.py``.

Reads ``<experiment>.csv`` as ``run.py`` and ``estimates.py`` keep them and writes a page (.md) and
a picture (.png) for each.  What a page says of the published targets is in ``targets.md``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from experiments import EXPERIMENTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
TYPES = "cauchy, p < .99"
"""The cell types' score tests; the package's combined p value weighs their sum as well."""
SHORT = {TYPES: "score, Cauchy", "score_combined": "score, combined", "lrt": "LRT",
         "wald": "Wald", "jackknife": "jackknife", "mean_jackknife": "means",
         "he:jackknife": "HE jackknife", "he:mean_jackknife": "HE means",
         "ml:lrt": "ML LRT", "ml:wald": "ML Wald", "mean": "means (robust)",
         "robust:jackknife": "robust jackknife"}  # fmt: skip
FEW = 30
"""Fewer genes tested make no point of a picture."""
VARIANCE = ["score", TYPES, "score_combined", "lrt", "wald", "jackknife", "jackknife, one step",
            "he:jackknife"]  # fmt: skip
MEANS = ["mean_jackknife", "he:mean_jackknife"]
# colours that colour-blind readers can tell apart (Okabe and Ito), and markers
STYLE = dict(
    zip(
        [*VARIANCE, *MEANS, "ml:lrt", "ml:wald", "mean", "robust:jackknife"],
        [("#0072B2", "o"), ("#56B4E9", "s"), ("#000000", "h"), ("#D55E00", "^"), ("#999999", "v"),
         ("#009E73", "D"), ("#009E73", "d"), ("#CC79A7", "P"), ("#E69F00", "X"), ("#F0E442", "*"),
         ("#E69F00", "2"), ("#999999", "1"), ("#000000", "x"), ("#56B4E9", "+")],
        strict=True,
    )
)  # fmt: skip


def rates(name: str) -> pd.DataFrame:
    """Settings, test, rate, se, n, failed; one row per setting and test."""
    counts = pd.read_csv(HERE / f"{name}.csv")
    settings = pd.DataFrame(EXPERIMENTS[name].settings)
    table = counts.join(settings, on="setting")
    n = table["tested"]
    table["rate"] = table["positive"] / n.where(n > 0)
    near = (table["positive"] + 2) / (n + 4)
    table["se"] = np.sqrt(near * (1 - near) / (n + 4))
    return table


def cell(row: pd.Series) -> str:
    """``.052 (.007)``, with the number that could not be tested where there are any."""
    if not row["tested"]:
        return "-"
    text = f"{row['rate']:.3f} ({row['se']:.3f})"
    return text + (f" [{row['failed']} failed]" if row["failed"] > 0.02 * row["tested"] else "")


def wide(table: pd.DataFrame, by: Sequence[str], tests: Sequence[str]) -> pd.DataFrame:
    """One row per setting, one column per test."""
    shown = table[table["test"].isin(tests)].assign(text=lambda t: t.apply(cell, axis=1))
    shown = shown.assign(**{name: shown[name].map(_text) for name in by})
    order = shown.drop_duplicates(list(by))[list(by)]
    out = shown.pivot(index=list(by), columns="test", values="text")
    out = out.reindex(pd.MultiIndex.from_frame(order) if len(by) > 1 else order[by[0]])
    out = out[[test for test in tests if test in out]].rename(columns=SHORT).fillna("-")
    return out.reset_index()


def _text(value: Any) -> str:
    if value is None or (np.ndim(value) == 0 and pd.isna(value)):
        return "-"
    return ", ".join(f"{v:g}" for v in value) if np.ndim(value) else f"{value}"


def markdown(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def pooled(table: pd.DataFrame, by: Sequence[str], tests: Sequence[str]) -> pd.DataFrame:
    """Counts summed over all other settings."""
    sums = table.groupby([*by, "test"], dropna=False, sort=False)[["positive", "tested", "failed"]]
    out = sums.sum().reset_index()
    out["rate"] = out["positive"] / out["tested"]
    out["se"] = np.sqrt(out["rate"] * (1 - out["rate"]) / out["tested"])
    return wide(out, by, tests)


def lines(ax: Any, table: pd.DataFrame, x: str, tests: Sequence[str]) -> None:
    """Rates with two standard errors, a line for each test."""
    for test in tests:
        part = table[(table["test"] == test) & (table["tested"] >= FEW)].sort_values(x)
        if len(part):
            color, marker = STYLE[test]
            ax.errorbar(part[x], part["rate"], 2 * part["se"], color=color, marker=marker, ms=5,
                        lw=1.3, elinewidth=0.8, label=SHORT.get(test, test))  # fmt: skip
    ax.axhline(0.05, color="0.4", lw=0.8, ls=":")
    ax.set_ylim(-0.03, 1.03)
    ax.spines[["top", "right"]].set_visible(False)


def legend(axes: Any, at: Any, loc: str, **options: Any) -> None:
    """The lines of all axes, named in one of them or above them."""
    found = [ax.get_legend_handles_labels() for ax in axes.flat]
    named = {label: handle for part in found for handle, label in zip(*part, strict=True)}
    at.legend(named.values(), named.keys(), fontsize=8, frameon=False, loc=loc, **options)


def save(figure: Any, name: str) -> str:
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return f"![{name}]({name}.png)"


def target(name: str) -> list[str]:
    """What ``targets.md`` says of a page."""
    text = (Path(__file__).parent / "targets.md").read_text(encoding="utf-8")
    parts = re.split(r"<!-- (\w+) -->", text)[1:]
    return [body.strip() for own, body in zip(parts[::2], parts[1::2], strict=True) if own == name]


def page(name: str, title: str, *parts: str) -> None:
    head, *tables = parts
    text = "\n\n".join([f"# {title}", head, *target(name), *tables])
    (HERE / f"{name}.md").write_text(text + "\n")


NOTE = ("Rate of p < .05 with its standard error in brackets; genes without a p value do not "
        "count and are said where they are more than 2 in 100.")  # fmt: skip


def figure1() -> None:
    table = rates("figure1")
    tests = ["score", TYPES, "lrt", "ml:lrt", "wald", "jackknife", "he:jackknife"]
    pictures = []
    for version in ("published", "preprint"):
        figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True, sharey=True)
        for (model, kind), ax in zip(
            [(m, k) for m in ("hom", "free") for k in ("ctp", "op")], axes.flat, strict=True
        ):
            part = table[(table["design"] == f"{version}/{model}") & (table["kind"] == kind)]
            lines(ax, part, "n_donors", tests)
            ax.set_xscale("log")
            ax.set_xticks([20, 50, 100, 300], ["20", "50", "100", "300"])
            ax.minorticks_off()
            ax.set_title(f"{'V = 0' if model == 'hom' else 'V free'}, {kind.upper()}", fontsize=10)
        for ax in axes[1]:
            ax.set_xlabel("donors")
        for ax in axes[:, 0]:
            ax.set_ylabel("positive rate at .05")
        legend(axes, axes[1, 1], "upper left")
        figure.suptitle(f"Figure 1, {version} parameters", fontsize=11)
        pictures.append(save(figure, f"figure1_{version}"))
    page(
        "figure1", "Figure 1: positive rates by number of donors", NOTE, *pictures,
        markdown(wide(table, ["design", "kind", "n_donors"], [*tests, "ml:wald", *MEANS])),
    )  # fmt: skip


def figure2() -> None:
    table = rates("figure2")
    cv = {20: 0.109, 10: 0.196, 5: 0.327, 3: 0.447, 2: 0.548}
    table["cv"] = table["b"].map(cv).fillna(0.0)
    table["V1"] = table["V"].map(lambda v: v[0] if isinstance(v, tuple) else np.nan)
    tests = ["score", TYPES, "lrt", "wald", "jackknife", "he:jackknife"]
    hom = table["design"] == "ipsc/hom"
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
    for ax, sigma2 in zip(axes, (0.25, 0.01), strict=False):
        lines(ax, table[hom & (table["sigma2"] == sigma2)], "cv", tests)
        ax.set(xlabel="standard deviation of nu's error", title=f"V = 0, shared variance {sigma2}")
    lines(axes[2], table[~hom], "V1", tests)
    axes[2].set(xlabel="V of the first cell type (others .1; at 0 all 0)", title="V free, b = 5")
    axes[0].set_ylabel("positive rate at .05")
    legend(axes, axes[1], "upper left")
    picture = save(figure, "figure2")
    shown = [*tests, *MEANS]
    page(
        "figure2", "Figure 2: positive rates by errors of the noise variances", NOTE, picture,
        "V = 0, by errors:", markdown(wide(table[hom], ["sigma2", "cv"], shown)),
        "V free, errors of sd .33:", markdown(wide(table[~hom], ["V1"], shown)),
    )  # fmt: skip


GRID = ["n_donors", "celltypes", "noise_cv", "fold", "n_batches", "kurtosis"]
RULES = ["score", TYPES, "cauchy, p < .95", "cauchy, p < .9",
         "cauchy, p < 1 - 1/C", "half-Cauchy", "bonferroni", "simes"]  # fmt: skip


def calibration() -> None:
    table = rates("calibration")
    table["kurtosis"] = table["kurtosis"].fillna(0.0)
    tests = [*VARIANCE, *MEANS]
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, sharey=True)
    for N, ax in zip((20, 50, 100, 300), axes.flat, strict=True):
        for k, test in enumerate(tests):
            color, marker = STYLE[test]
            part = table[(table["n_donors"] == N) & (table["test"] == test)]
            part = part[part["tested"] >= FEW]
            spread = (part["setting"].rank() / max(len(part), 1) - 0.5) * 0.6
            ax.scatter(k + spread, part["rate"], s=9, color=color, marker=marker, lw=0.8)
        ax.axhspan(0.04, 0.06, color="0.88", zorder=0)
        ax.set_title(f"{N} donors", fontsize=10)
        names = [SHORT.get(test, test) for test in tests]
        ax.set_xticks(range(len(tests)), names, rotation=40, ha="right", fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("positive rate under the null")
    picture = save(figure, "calibration")
    page(
        "calibration", "Calibration: positive rates where V = 0 and means are equal", NOTE,
        "A point is a setting of the grid; grey: .04 to .06.", picture,
        "## Over all settings", markdown(pooled(table.assign(all="all"), ["all"], tests)),
        *(f"## By {name}\n\n" + markdown(pooled(table, [name], tests)) for name in GRID),
        "## By donors, cell types and errors\n\n"
        + markdown(pooled(table, ["n_donors", "celltypes", "noise_cv"], tests)),
        "## Four cell types, by donors, errors and tails of cells\n\n"
        + markdown(pooled(table[table["celltypes"] == 4], ["n_donors", "noise_cv", "kurtosis"],
                          tests)),
        "## Settings outside [.04, .06]\n\n" + markdown(outside(table, tests)),
        "## One p value of those of the cell types\n\n"
        + markdown(pooled(table, ["celltypes", "n_donors"], RULES)),
        "## The whole grid\n\n" + markdown(wide(table, GRID, tests)),
    )  # fmt: skip


def outside(table: pd.DataFrame, tests: Sequence[str]) -> pd.DataFrame:
    """How many settings are off, and by more than chance explains."""
    rows = []
    for test in tests:
        part = table[(table["test"] == test) & (table["tested"] > 0)]
        chance = np.sqrt(0.05 * 0.95 / part["tested"])
        z = (part["rate"] - 0.05) / chance
        far = np.where(part["rate"] > 0.06, (part["rate"] - 0.06) / chance, (part["rate"] - 0.04)
                       / chance)  # fmt: skip
        inside = part["rate"].between(0.04, 0.06)
        rows.append(
            {"test": SHORT.get(test, test), "settings": len(part), "inside": int(inside.sum()),
             "above": int((part["rate"] > 0.06).sum()), "below": int((part["rate"] < 0.04).sum()),
             "above .06 by 2 se": int(((far > 2) & (part["rate"] > 0.06)).sum()),
             "below .04 by 2 se": int(((far < -2) & (part["rate"] < 0.04)).sum()),
             "sd of z": f"{z.std():.2f}",
             "smallest": f"{part['rate'].min():.3f}", "largest": f"{part['rate'].max():.3f}"}
        )  # fmt: skip
    return pd.DataFrame(rows)


def power() -> None:
    table = rates("power")
    tests = [test for test in VARIANCE if test != "jackknife, one step"]
    effects = list(dict.fromkeys(table["effect"]))
    figure, axes = plt.subplots(2, len(effects), figsize=(12, 7), sharex=True, sharey=True)
    for column, effect in enumerate(effects):
        for row, noise in enumerate((0.0, 0.33)):
            ax = axes[row, column]
            part = table[(table["effect"] == effect) & (table["noise_cv"] == noise)
                         & (table["fold"] == 10.0) & (table["celltypes"] == 4)]  # fmt: skip
            lines(ax, part, "n_donors", tests)
            ax.set_title(f"V: {effect}; errors of nu {noise:g}", fontsize=10)
            ax.set_xticks([20, 50, 100])
    for ax in axes[1]:
        ax.set_xlabel("donors")
    for ax in axes[:, 0]:
        ax.set_ylabel("positive rate at .05")
    legend(axes, figure, "upper center", ncols=len(tests), bbox_to_anchor=(0.5, 0.98))
    picture = save(figure, "power")
    by = ["effect", "celltypes", "n_donors", "noise_cv", "fold"]
    order = table.sort_values(["setting"], kind="stable")
    page(
        "power", "Power", NOTE, picture,
        "LRT, Wald and jackknife do not hold their level here (see calibration.md): their rates "
        "are no power.",
        "## One p value of those of the cell types\n\n"
        + markdown(pooled(table, ["effect", "celltypes", "n_donors"], [*RULES, "score[first]",
                                                                       "score[last]"])),
        "## All settings\n\n" + markdown(wide(order, by, tests)),
    )  # fmt: skip


def counts() -> None:
    table = rates("counts")
    variance = ["score", "score_combined", "lrt", "wald", "jackknife", "robust:jackknife",
                "he:jackknife"]  # fmt: skip
    means = ["mean", *MEANS]
    null = table["effect"] == "none"
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharex=True, sharey="row")
    for column, N in enumerate((20, 50, 100)):
        for row, part in enumerate((table[null], table[~null])):
            ax = axes[row, column]
            here = part[(part["n_donors"] == N) & (part["cells"] == "11 to 120")]
            lines(ax, here, "counts", [*variance, *(means if row == 0 else [])])
            ax.set_xscale("log")
            ax.set_title(f"{N} donors, V {'= 0' if row == 0 else '> 0'}", fontsize=10)
            if row == 0:
                ax.axhspan(0.04, 0.06, color="0.88", zorder=0)
    for ax in axes[1]:
        ax.set_xlabel("mean counts of a cell")
    for ax in axes[:, 0]:
        ax.set_ylabel("positive rate at .05")
    legend(axes, figure, "upper center", ncols=5, bbox_to_anchor=(0.5, 1.06))
    picture = save(figure, "counts")
    by = ["cells", "n_donors", "counts"]
    page(
        "counts", "Counts of cells: positive rates", NOTE,
        "Negative binomial cells, dispersion .5, analysed as log(1 + counts per 10,000); four cell "
        "types with equal means; variance .2 of the donors' log-fold effects, V as said.  Levels at "
        ".01, effects of conditions, bias and coverage: `tests/benchmarks/count_levels.md`.",
        picture,
        "## V = 0\n\n" + markdown(wide(table[null], by, variance)),
        "## V > 0, mostly in one type\n\n"
        "Of tests that do not hold their level above, these rates are no power.\n\n"
        + markdown(wide(table[~null], by, variance)),
        "## Equal means\n\n" + markdown(wide(table[null], by, means)),
    )  # fmt: skip


def bootstrap() -> None:
    table = rates("bootstrap")
    tests = [test for test in VARIANCE if test not in ("jackknife, one step", "score_combined")]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    for ax, depth in zip(axes, (1.0, 0.1), strict=True):
        lines(ax, table[table["depth"] == depth], "permuted", tests)
        ax.set(xlabel="share of donors permuted (0: V = 0)", title=f"depth {depth:g}")
    axes[0].set_ylabel("positive rate at .05")
    legend(axes, axes[1], "lower right")
    picture = save(figure, "bootstrap")
    page(
        "bootstrap", "Cell types resampled from the cells of 94 donors", NOTE, picture,
        markdown(wide(table, ["depth", "permuted"], [*tests, *MEANS])),
    )  # fmt: skip


def estimates() -> None:
    table = pd.read_csv(HERE / "estimates.csv")
    figure, axes = plt.subplots(2, 3, figsize=(12, 7), sharex=True)
    free = table[(table["figure"] == "by donors") & (table["design"] == "published/free")]
    for row, kind in enumerate(("ctp", "op")):
        for column, method in enumerate(("reml", "ml", "he")):
            ax = axes[row, column]
            part = free[(free["kind"] == kind) & (free["method"] == method)]
            for at, (name, own) in enumerate(part.groupby("component", sort=False)):
                color = ["#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00"][at]
                x = np.arange(len(own)) + 0.15 * (at - 2)
                ax.vlines(x, own["q05"], own["q95"], color=color, lw=0.8)
                ax.vlines(x, own["q25"], own["q75"], color=color, lw=4)
                ax.plot(x, own["median"], "o", color="white", ms=3, mec=color)
                ax.plot(x, own["truth"], "_", color="0.2", ms=9)
                ax.plot([], [], color=color, lw=4, label=name)
            ax.set_xticks(range(4), ["20", "50", "100", "300"])
            ax.set_title(f"{kind.upper()}, {method.upper()}", fontsize=10)
            ax.set_ylim((-2, 5) if kind == "ctp" else (-13, 20))
            ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[1]:
        ax.set_xlabel("donors")
    for ax in axes[:, 0]:
        ax.set_ylabel("estimate (median, half, 90 %; - true)")
    axes[0, 2].legend(fontsize=8, frameon=False)
    picture = save(figure, "estimates")
    shown = table.assign(bias=table["mean"] - table["truth"])
    columns = ["design", "changes", "kind", "method", "component", "truth", "n", "bias", "se",
               "median", "sd", "on edge"]  # fmt: skip
    numbers = ["truth", "bias", "se", "median", "sd", "on edge"]
    shown[numbers] = shown[numbers].round(3)
    parts = []
    for name, part in shown.groupby("figure", sort=False):
        parts.append(f"## {name[0].upper()}{name[1:]}\n\n" + markdown(part[columns]))
    page(
        "estimates", "Bias and spread of the variance components",
        "Mean minus truth (with its standard error), median and standard deviation over the "
        "replicates; share of fits on the edge of the domain.", picture, *parts,
    )  # fmt: skip


if __name__ == "__main__":
    for make in (figure1, figure2, calibration, power, counts, bootstrap, estimates):
        if (HERE / f"{make.__name__}.csv").exists():
            make()
