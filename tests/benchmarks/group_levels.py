"""Levels and power of the tests of groups and of responses, beside what takes noise for biology.

    python tests/benchmarks/group_levels.py [--sets 500] [--only counts]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``group_levels.md`` beside this file, a line at a time; lines that are there are kept.

Four cell types, A = .25 J + diag(.05, .1, .2, .4) between donors.  "Gaussian": 10 to 120 cells a
pair (log-uniform), the variance between cells 4 times a lognormal variable of coefficient of
variation .4, nu the variance of that many Gaussian cells over their number.  "Counts": Poisson
counts of a mean of 2 exp(.6 times the donor's effects) a cell, nu and nu2 from the cells.  Donors
are Gaussian, t with 5 degrees of freedom, lognormal (sd of logarithms .8), or half of it is that of
a genotype ("genotypes"), of variance A.  In "a
third" the second group has a third of the cells.  Fixed effects: every type in every group.  "A
trend": a number of donors, uniform in 0 to 1, by which A grows (``by="age"``), or does not; fixed
effects are slopes.  Batches have a variance of .1 and half of the cells of all groups.

Beside them, from the same pseudobulk taken as exact: Brown and Forsythe's test, the t test of
absolute deviations from the groups' means ("deviations", as DiffVar's without its moderation over
genes) and the F test of two variances, of every cell type.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.engine.noise import unbiased_square
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.directions import directions_of, score_directions
from ctmm_formula.inference.group_score import (
    OVERALL,
    SHARED,
    group_design,
    group_test,
    of_type,
    response_design,
    response_test,
)
from ctmm_formula.structures import Crossing, cross, resolve

OUT = Path(__file__).with_suffix(".md")
TYPES = ("A", "B", "C", "D")
V, SIGMA2 = (0.05, 0.1, 0.2, 0.4), 0.25
ALPHAS = (0.05, 0.01)


class Setting(NamedTuple):
    """Donors of the groups (or under both conditions; of a trend all and none), cells of the second
    as a share of the first's, donors' law, kind of cells, variances of the second group (of all, of
    the last type's own and the shared one) or of responses, share of missing pairs, number of
    batches, coefficient of variation of errors of nu, variances of types."""

    donors: tuple[int, ...]
    share: float = 1.0
    law: str = "normal"
    cells: str = "Gaussian"
    factor: float = 1.0
    shared: float = 0.0
    own: float = 0.0
    missing: float = 0.0
    batches: int = 0
    cv: float = 0.0
    V: tuple[float, ...] = V
    last: float = 1.0
    J: float = 1.0

    @property
    def trend(self) -> bool:
        return len(self.donors) == 1

    @property
    def name(self) -> str:
        third = {1.0: "", 1 / 3: ", a third"}.get(self.share, f", {self.share:g} times the cells")
        groups = f"{self.donors[0]}, a trend" if self.trend else " and ".join(map(str, self.donors))
        return f"{groups}{third}, {self.law}, {self.cells}"


SIZES = [((50, 50), 1.0), ((50, 50), 1 / 3), ((20, 60), 1 / 3), ((20, 20), 1.0), ((20, 20), 1 / 3)]
GROUPS = [
    Setting(donors, share, law, cells)
    for donors, share in SIZES
    for law in ("normal", "t5", "lognormal")
    for cells in ("Gaussian", "counts")
    if law == "normal" or (donors, share) == SIZES[1] or cells == "Gaussian"
]
MORE = [
    Setting((50, 50), 1 / 3, cells=cells, **more)
    for cells in ("Gaussian", "counts")
    for more in ({"missing": 0.15}, {"batches": 12}, {"missing": 0.15, "batches": 12})
] + [
    Setting(donors, share, law, cells)
    for donors, share in (((40, 40, 40), 1 / 3), ((20, 20, 20), 1 / 3), ((100,), 1.0))
    for law, cells in (("normal", "Gaussian"), ("t5", "Gaussian"), ("normal", "counts"))
] + [Setting((40,)), Setting((100,), missing=0.15), Setting((96,), batches=12)]  # fmt: skip
MORE += [
    Setting((50, 50), 1 / 3, cv=0.45), Setting((50, 50), 1 / 3, "genotypes"),
    Setting((20, 60), 1 / 3, missing=0.1),
]  # fmt: skip
MORE_POWER = [
    Setting((40, 40, 40), factor=2.0), Setting((100,), factor=3.0),
    Setting((50, 50), factor=2.0, missing=0.15), Setting((50, 50), factor=2.0, batches=12),
    Setting((50, 50), last=6.0, V=(0.1,) * 4), Setting((50, 50), 3.0, J=2.5, V=(0.1,) * 4),
]  # fmt: skip
POWER = [
    Setting((50, 50), 1.0, factor=2.0),
    Setting((20, 20), 1.0, factor=2.5),
    Setting((50, 50), 1 / 3, factor=2.0),
]
RESPONSE = [
    Setting((n, n), share, "normal", cells)
    for n in (20, 50)
    for share in (1.0, 1 / 3)
    for cells in ("Gaussian", "counts")
] + [Setting((50, 50), 1.0, law) for law in ("t5", "lognormal")]
RESPONSE += [Setting((n, n), 1 / 3, cv=0.45) for n in (20, 50)]
RESPONSE_POWER = [
    Setting((20, 20), own=0.15), Setting((50, 50), own=0.1), Setting((50, 50), shared=0.05),
    Setting((50, 50), own=1.0), Setting((50, 50), 1 / 3, cells="counts", own=1.0),
    Setting((50, 50), shared=1.0),
]  # fmt: skip


def draws(law: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Effects of mean 0 and variance 1."""
    if law == "t5":
        return rng.standard_t(5, shape) / math.sqrt(5 / 3)
    if law == "genotypes":
        return math.sqrt(0.5) * (rng.binomial(2, 0.5, shape) * math.sqrt(2.0) - math.sqrt(2.0)
                                 + rng.normal(size=shape))  # fmt: skip
    if law == "lognormal":
        s = 0.8
        raw = np.exp(s * rng.normal(size=shape) - s * s / 2)
        return (raw - 1.0) / math.sqrt(math.exp(s * s) - 1.0)
    return rng.normal(size=shape)


def measured(effects: np.ndarray, n: np.ndarray, cells: str, rng: np.random.Generator):
    """y, nu and nu2 (None for Gaussian cells) of pairs with these effects and numbers of cells."""
    if cells == "Gaussian":
        sd = math.sqrt(math.log(1.16))
        s2 = 4.0 * np.exp(sd * rng.normal(size=len(n)) - sd * sd / 2)
        nu = s2 / n * rng.chisquare(n - 1) / (n - 1)
        return effects + np.sqrt(s2 / n) * rng.normal(size=len(n)), nu, None
    rate = 2.0 * np.exp(0.6 * effects)
    pair = np.repeat(np.arange(len(n)), n)
    x = rng.poisson(rate[pair]).astype(float)
    mean = np.bincount(pair, x) / n
    square, fourth = (np.bincount(pair, (x - mean[pair]) ** power) for power in (2, 4))
    return mean, square / (n - 1) / n, unbiased_square(n.astype(float), square, fourth)


class Pairs(NamedTuple):
    """One data set by pair: donor, type, group, y, nu, nu2, cells, batch, and x of a trend."""

    donor: np.ndarray
    celltype: np.ndarray
    group: np.ndarray
    y: np.ndarray
    nu: np.ndarray
    nu2: np.ndarray | None
    n: np.ndarray
    batch: np.ndarray
    x: np.ndarray | None


def pairs(setting: Setting, within: bool, rng: np.random.Generator) -> Pairs:
    """One data set."""
    first = setting.donors[0]
    N, C = (first, 4) if within else (sum(setting.donors), 4)
    donor, rest = np.divmod(np.arange(N * C * (1 + within)), C * (1 + within))
    group, celltype = np.divmod(rest, C)
    if not within:
        group = np.searchsorted(np.cumsum(setting.donors), donor, side="right")
    effects = math.sqrt(SIGMA2) * draws(setting.law, (N,), rng)[donor]
    effects *= np.where(group == 1, math.sqrt(setting.J), 1.0)
    own = (np.sqrt(setting.V) * draws(setting.law, (N, C), rng))[donor, celltype]
    effects += own * np.where((group == 1) & (celltype == C - 1), math.sqrt(setting.last), 1.0)
    if within:
        effects += math.sqrt(setting.shared) * rng.normal(size=(N, 2))[donor, group]
        own = math.sqrt(setting.own) * rng.normal(size=(N, 2))[donor, group]
        effects += np.where(celltype == 2, own, 0.0)
    else:
        effects *= np.where(group == 1, math.sqrt(setting.factor), 1.0)
    x = None
    if setting.trend:
        x = rng.uniform(size=N)[donor]
        effects *= np.sqrt(1.0 + (setting.factor - 1.0) * x)
    batch = donor % max(setting.batches, 1)
    if setting.batches:
        effects += math.sqrt(0.1) * rng.normal(size=setting.batches)[batch]
    n = np.exp(rng.uniform(math.log(10), math.log(120), len(donor)))
    n = np.maximum(np.round(n * np.where(group == 1, setting.share, 1.0)), 4).astype(int)
    y, nu, nu2 = measured(effects, n, setting.cells, rng)
    if setting.cv:
        nu = nu * rng.gamma(1.0 / setting.cv**2, setting.cv**2, len(nu))
    out = Pairs(donor, celltype, group, y, nu, nu2, n, batch, x)
    if not setting.missing:
        return out
    keep = rng.random(len(donor)) >= setting.missing
    keep |= np.bincount(donor, keep)[donor] == 0
    own = Pairs(*(None if one is None else one[keep] for one in out))
    return own._replace(donor=np.unique(own.donor, return_inverse=True)[1])


def model_of(within: bool, data: Pairs):
    """The model of a fit by groups or within donors, and its structure."""
    types = np.eye(4)[data.celltype]
    if data.x is None:
        G = int(data.group.max()) + 1
        crossing = Crossing("within" if within else "by", "g", tuple("abc"[:G]))
        H = np.eye(4 * G)[4 * data.group + data.celltype]
        X = H
    else:
        crossing = Crossing("trend", "g", ("", "g"))
        H = np.hstack([types, np.sqrt(data.x)[:, None] * types])
        X = np.hstack([types, data.x[:, None] * types])
    structure = cross(resolve("free", TYPES), crossing, crossing.effects(TYPES))
    random = [RandomComponent(data.batch, np.ones(len(data.y)))] if data.batch.any() else []
    return build_model(
        data.y, data.nu, X, H, data.donor, structure.basis, random, data.n.astype(float), data.nu2,
        types,
    ), structure  # fmt: skip


def naive(celltype, group, y) -> list[list[float]]:
    """P values of Brown and Forsythe, by absolute deviations, and of F of every cell type.

    Noise is taken for biology.
    """
    brown, deviations, f = [], [], []
    if group.max() == 0:  # of a trend there are no groups
        return [[math.nan] * 4] * 3
    for c in range(4):
        a, b = (y[(celltype == c) & (group == g)] for g in (0, 1))
        brown.append(stats.levene(a, b, center="median").pvalue)
        own = [np.abs(z - z.mean()) * math.sqrt(len(z) / (len(z) - 1)) for z in (a, b)]
        deviations.append(stats.ttest_ind(*own).pvalue)
        tail = stats.f.sf(a.var(ddof=1) / b.var(ddof=1), len(a) - 1, len(b) - 1)
        f.append(2 * min(tail, 1 - tail))
    return [brown, deviations, f]


COLUMNS = {
    "groups": ["overall law", "overall empirical", "overall", "shared", "type law",
               "type empirical", "type", "Brown-Forsythe", "deviations", "F"],
    "response": ["overall", "shared", "specific", "type 3", "other types", "type 3, all rows",
                 "other types, all rows"],
}  # fmt: skip


def all_rows(model, structure) -> list[float]:
    """P values of every type's response by all rows, beside what conditions share only."""
    crossed = structure.crossed
    names = structure.celltypes
    null = crossed.common(crossed.inner.basis, names)
    units = crossed.tested(np.array([np.diag(e) for e in np.eye(4)]), names)["g"]
    design = directions_of(model, null, dict(zip(TYPES, units, strict=True)), {})
    found = score_directions(model, design, False)
    return [math.exp(found[name].upper) for name in TYPES]


def one_set(what: str, setting: Setting, seed: list[int]) -> list[list[float]]:
    """P values of one data set, those of several tests in a list."""
    rng, within = np.random.default_rng(seed), what == "response"
    data = pairs(setting, within, rng)
    model, structure = model_of(within, data)
    try:
        if within:
            test = response_test(model, response_design(model, structure))
            types = [math.exp(one.upper) for one in test.types]
            rest = [math.exp(one.upper) for one in (test.shared, test.specific)]
            parts = ([own[2:3], own[:2] + own[3:]] for own in (types, all_rows(model, structure)))
            return [
                [math.exp(test.overall)],
                *([p] for p in rest),
                *(p for own in parts for p in own),
            ]
        test = group_test(model, group_design(model, structure), TYPES)
    except CTMMError:
        return [[math.nan]] * len(COLUMNS[what])
    overall = test.tested[OVERALL][0]
    types = [test.tested[of_type(name)][0] for name in TYPES]  # of several levels, the first
    return [
        [math.exp(overall.law)], [math.exp(overall.empirical)], [math.exp(test.combined[OVERALL])],
        [math.exp(test.combined[SHARED])], [math.exp(one.law) for one in types],
        [math.exp(one.empirical) for one in types],
        [math.exp(test.combined[of_type(name)]) for name in TYPES],
        *naive(data.celltype, data.group, data.y),
    ]  # fmt: skip


def line(what: str, setting: Setting, sets: int, number: int) -> str:
    """A line of the table: rates at both levels, with standard errors of the first."""
    found = [one_set(what, setting, [number, k]) for k in range(sets)]
    cells = [rates([one[column] for one in found]) for column in range(len(COLUMNS[what]))]
    return f"| {label(setting)} | {sets} | {' | '.join(cells)} |"


def rates(p_values: list[list[float]]) -> str:
    """Rates of rejection of p values (sets, tests), one cell of the table."""
    p = np.array(p_values)
    if np.isnan(p).all():
        return ""
    hits = [np.nanmean(p < alpha, axis=0) for alpha in ALPHAS]
    # tests of one data set depend on each other: its errors are those of their mean
    se = (p < ALPHAS[0]).mean(axis=1).std(ddof=1) / math.sqrt(len(p))
    spread = f" ({hits[0].min():.3f}-{hits[0].max():.3f})" if p.shape[1] > 1 else ""
    return f"{hits[0].mean():.3f}{spread} ± {se:.3f}; {hits[1].mean():.3f}"


def label(setting: Setting) -> str:
    """The setting, and what differs in it."""
    more = [f"A x {setting.factor:g}"] * (setting.factor != 1.0)
    more += [f"V of the last type x {setting.last:g}"] * (setting.last != 1.0)
    more += [f"shared x {setting.J:g}"] * (setting.J != 1.0)
    more += [f"V {setting.V[0]:g} each"] * (len(set(setting.V)) == 1)
    more += [f"errors of nu {setting.cv:g}"] * (setting.cv > 0)
    more += [f"shared response {setting.shared:g}"] * (setting.shared > 0)
    more += [f"response of type 3 {setting.own:g}"] * (setting.own > 0)
    more += [f"{setting.missing:.0%} of pairs missing"] * (setting.missing > 0)
    more += [f"{setting.batches} batches"] * (setting.batches > 0)
    return ", ".join([setting.name, *more])


PARTS = {
    "Groups: level": ("groups", GROUPS),
    "Groups: power": ("groups", POWER),
    "Responses: level": ("response", RESPONSE),
    "Responses: power": ("response", RESPONSE_POWER),
    "Groups, more: level": ("groups", MORE),
    "Groups, more: power": ("groups", MORE_POWER),
}
TITLE = """# Tests of groups and of responses

Written by `group_levels.py`, seeded by setting and number of the data set. Rates of rejection at
.05 (of several types their mean and range) with standard error, then at .01. *overall*, *shared*
and *type* are the p values that count: with fewer than 40 donors in a group the larger of both
laws', else the empirical. Brown-Forsythe, deviations (DiffVar's kind) and F take the pseudobulk as
exact, and compare the first two groups. Of three groups each is tested against the others, and the
p values that count are those of all of them together; *law* and *empirical* are of the first. Of
responses, *shared* is beside every type's own, *specific* beside what all share, and types go by
their own rows; *all rows*: the same by the rows of all types, beside what conditions share.
"""


COST = "Cost in a scan, milliseconds of CPU a gene"
SCANS = {"groups": Setting((50, 50)), "response": Setting((100, 100))}
"""100 donors; for responses each of them under both conditions."""


def cost(what: str, genes: int = 100) -> str:
    """A line of the table: a scan without and with a test, the least of five."""
    within = what == "response"
    sets = [pairs(SCANS[what], within, np.random.default_rng([12, k])) for k in range(genes)]
    # numbers of cells are those of the first gene for all: values alone are taken from the others
    first, names = sets[0], [f"g{k}" for k in range(genes)]
    obs = pd.DataFrame(
        {"donor": [f"d{k}" for k in first.donor], "celltype": first.celltype.astype(str),
         "status": np.where(first.group == 1, "case", "control"), "n_cells": first.n}
    )  # fmt: skip
    Y = pd.DataFrame(np.array([one.y for one in sets]).T, columns=names)
    NU = pd.DataFrame(np.array([one.nu for one in sets]).T, columns=names)
    crossed = {"within" if within else "by": "status"}
    least = [math.inf, math.inf]
    for _ in range(5):
        for k, tests in enumerate(([], [what])):
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ctmm.fit_genes(
                    "~ C(celltype) * status", data=obs, expr=Y, nu=NU, tests=tests, **crossed
                )
            least[k] = min(least[k], 1e3 * (time.process_time() - start) / genes)
    return f"| {what} | {genes} | {least[0]:.2f} | {least[1] - least[0]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--only", default="", help="part of the settings' names")
    options = parser.parse_args()
    known = OUT.read_text().splitlines() if OUT.exists() else []
    done = {text.split("|")[1].strip() + section: text for section, text in sections(known)}
    for number, (title, (what, settings)) in enumerate(PARTS.items()):
        for k, setting in enumerate(settings):
            key = label(setting) + title
            if key not in done and options.only in key:
                done[key] = line(what, setting, options.sets, 100 * number + k)
                OUT.write_text(text_of(done))
    for what in SCANS:
        if what + COST not in done and options.only in COST:
            done[what + COST] = cost(what)
            OUT.write_text(text_of(done))


def sections(lines: list[str]) -> list[tuple[str, str]]:
    """Lines of tables with the title of their part."""
    out, title = [], ""
    for text in lines:
        title = text.removeprefix("## ") if text.startswith("## ") else title
        if text.startswith("| ") and not text.startswith(("| setting", "| test")):
            out.append((title, text))
    return out


def text_of(done: dict[str, str]) -> str:
    """The whole file."""
    parts = [TITLE]
    for title, (what, settings) in PARTS.items():
        rows = [done[label(s) + title] for s in settings if label(s) + title in done]
        head = ["setting", "sets", *COLUMNS[what]]
        parts += [f"## {title}\n", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, ""]
    rows = [done[what + COST] for what in SCANS if what + COST in done]
    parts += [f"## {COST}\n", "| test | genes | fit | test |", "|---|---|---|---|", *rows, ""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
