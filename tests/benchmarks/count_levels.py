"""Levels, bias, coverage and power on counts of cells, by the methods that are the defaults.

    python tests/benchmarks/count_levels.py [--genes 400] [--workers 1] [--only means ...]
        [--lines 0 12]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``count_levels.md`` beside this file, a line at a time: lines that are not asked for (the sections
of --only; those numbered from 0 up to 12) stay as they are there.

Every gene is its own data set: negative binomial counts, dispersion .1, .5 or 1.5 (Poisson where
said); library sizes lognormal (log sd .4) about 5,000; cells as log(1 + counts per 10,000).  The
log-fold effects of donors (sd .3 or .6) are shared by all types unless said, so that V = 0 and
means are equal on every scale; true means and variances come from quadrature.  Numbers of cells:

few      11 to 15
mid      log-uniform 11 to 120
uneven   medians from 600 down to 16 over the types, times exp(.4 z) of the donor, exp(.3 z) of the
         pair
one      600 in one type, 14 in the others, times exp(.15 z)
two      300 and 20, Poisson counts
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats

from ctmm_formula.distributions import f_tail
from ctmm_formula.engine import robust, sandwich
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.inference.score import score_test
from ctmm_formula.scan.genes import fit_genes
from ctmm_formula.simulate import CountCells, log_uniform_cells, simulate_genes
from ctmm_formula.simulate.counts import measured_cells
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
DISPERSIONS, EFFECTS = (0.1, 0.5, 1.5), (0.3, 0.6)
LEVELS = (0.05, 0.01)


@dataclass(frozen=True)
class Setting:
    """One line: donors, types, mean counts of a cell, numbers of cells, and what is unusual.

    own: sd of log-fold effects of each pair, so V > 0; shift: log-fold of the last type's mean;
    missing: share of pairs; batches: number of them, with a log-fold sd of .3; arms: condition
    without effect, the second arm with this share of the cells; depth: log sd of donors' depths;
    ambient: share of counts; informative: numbers of cells rise with the donor's effect; response:
    log-fold effect of the condition in the last type, everywhere: in all types; poisson: counts
    without overdispersion; beside: mean of the last type, where donors share no effect; normal:
    no counts but normal cells, whose variance differs between pairs by a CV of .4, shared variance
    .25; genes: their number, where it is its own.
    """

    donors: int
    types: int = 4
    mean: float = 0.5
    cells: str = "uneven"
    own: float = 0.0
    shift: float = 0.0
    missing: float = 0.0
    batches: int = 0
    arms: float = 0.0
    depth: float = 0.0
    ambient: float = 0.0
    informative: float = 0.0
    response: float = 0.0
    everywhere: float = 0.0
    poisson: bool = False
    beside: float = 0.0
    normal: bool = False
    genes: int = 0

    @property
    def label(self) -> str:
        """What is unusual, in words."""
        words = {
            "own": "V > 0, log-fold sd {:g}", "shift": "last type {:+.0%}",
            "missing": "{:.0%} of pairs missing", "batches": "{:d} batches",
            "arms": "second arm with {:g} of the cells", "depth": "depths of donors, log sd {:g}",
            "ambient": "{:.0%} ambient", "informative": "cells rise with the effect, r = {:g}",
            "response": "log-fold effect {:g} in the last type",
            "everywhere": "log-fold effect {:g} in all types",
            "poisson": "Poisson counts", "beside": "last type of mean {:g}, no shared effect",
            "normal": "normal cells",
        }  # fmt: skip
        given = [(name, getattr(self, name)) for name in words]
        said = [words[name].format(np.expm1(v) if name == "shift" else v) for name, v in given if v]
        return ", ".join([self.cells, *said])


TABLES: dict[str, list[Setting]] = {
    "means": [
        *(Setting(n, mean=0.02, genes=1000) for n in (12, 20, 50)),
        *(Setting(n, mean=m, genes=2000) for n, m in product((12, 20, 50), (0.1, 0.5, 2.0))),
        *(Setting(20, mean=0.02, cells=c, genes=4000) for c in ("few", "mid", "one")),
        *(Setting(20, mean=0.5, cells=c, genes=2000) for c in ("few", "mid", "one")),
        *(Setting(20, C, 0.02, genes=1000) for C in (2, 8)),
        *(Setting(20, C, 0.5, genes=2000) for C in (2, 8)),
        *(Setting(20, 2, m, "two") for m in (0.2, 1.0, 5.0)),
        *(Setting(n, mean=0.02, poisson=True, genes=4000) for n in (20, 50)),
        *(Setting(n, mean=m, poisson=True, genes=2000)
          for n, m in product((20, 50), (0.1, 0.5, 2.0))),
        *(Setting(20, mean=m, missing=0.2) for m in (0.02, 0.5)),
        *(Setting(48, mean=m, batches=12) for m in (0.02, 0.5)),
        Setting(50, mean=0.1, depth=0.5), Setting(50, mean=0.5, depth=0.5),
        Setting(50, mean=0.5, ambient=0.1), Setting(50, mean=0.1, informative=0.7),
        Setting(50, mean=0.5, informative=0.7),
        Setting(300, mean=0.02), Setting(300, mean=0.1), Setting(50, 15, 0.5, "mid"),
    ],
    "power of means": [
        Setting(n, mean=m, cells=c, shift=s, missing=x)
        for n, m, c, s, x in (
            (50, 0.1, "uneven", 0.2, 0.0), (50, 0.5, "uneven", 0.2, 0.0),
            (50, 2.0, "uneven", 0.15, 0.0), (20, 0.5, "uneven", 0.3, 0.0),
            (50, 0.5, "uneven", -0.2, 0.0), (20, 0.5, "uneven", -0.3, 0.0),
            (50, 0.5, "mid", 0.15, 0.0), (50, 0.5, "uneven", 0.2, 0.2),
            (50, 0.5, "mid", 0.15, 0.2),
        )
    ],
    "effects": [
        *(Setting(2 * n, C, m, arms=1.0)
          for n, C, m in product((10, 15, 20, 50), (4, 8), (0.1, 2.0))),
        *(Setting(2 * n, C, m, arms=0.25)
          for n, C, m in product((10, 15, 20, 50), (4, 8), (0.1, 2.0))),
        Setting(40, 4, 0.5, own=0.3, arms=0.25),
        *(Setting(2 * n, mean=m, cells="few", arms=1.0)
          for n, m in product((10, 20, 50), (0.1, 0.5, 2.0))),
        *(Setting(40, mean=m, arms=a, poisson=True) for m, a in product((0.1, 2.0), (1.0, 0.25))),
        Setting(40, mean=0.5, arms=1.0, missing=0.2), Setting(48, mean=0.5, arms=1.0, batches=12),
        *(Setting(40, mean=0.5, arms=a, **{what: size}) for a in (1.0, 0.25)
          for what, size in (("informative", 0.7), ("depth", 0.5), ("ambient", 0.1))),
        Setting(300, mean=0.1, arms=1.0), Setting(300, mean=0.1, arms=0.25),
    ],
    "components": [
        *(Setting(n, mean=m) for n, m in product((20, 50), (0.02, 0.1, 0.5, 2.0))),
        *(Setting(n, mean=m, own=0.3) for n, m in product((20, 50), (0.1, 0.5, 2.0))),
        Setting(50, mean=0.5, cells="few"), Setting(50, mean=0.5, cells="mid", own=0.3),
        Setting(100, mean=0.5, own=0.3),
        *(Setting(50, C, 0.5, own=v) for C, v in product((2, 8), (0.0, 0.3))),
        *(Setting(50, mean=m, poisson=True, own=v) for m, v in product((0.1, 0.5), (0.0, 0.3))),
        *(Setting(50, mean=0.5, missing=0.2, own=v) for v in (0.0, 0.3)),
        *(Setting(48, mean=0.5, batches=12, own=v) for v in (0.0, 0.3)),
        *(Setting(50, mean=0.5, own=v, **{what: size}) for v in (0.0, 0.3)
          for what, size in (("informative", 0.7), ("depth", 0.5), ("ambient", 0.1))),
        *(Setting(300, mean=m, own=v) for m, v in product((0.02, 0.1), (0.0, 0.3))),
    ],
    "score": [
        *(Setting(n, mean=m, cells=c, genes=2000) for n, m, c in
          product((20, 50), (0.02, 0.1, 0.5, 2.0), ("few", "mid", "uneven", "one"))),
        *(Setting(50, mean=10.0, cells=c, genes=2000) for c in ("mid", "uneven")),
        Setting(50, mean=0.5, missing=0.2, genes=2000),
        Setting(48, mean=0.5, batches=12, genes=2000),
        Setting(50, 8, 0.5, genes=2000), Setting(50, 15, 0.5, "mid", genes=2000),
        Setting(300, mean=0.1, cells="mid", genes=2000),
        Setting(50, mean=2.0, depth=0.5, genes=2000),
        Setting(50, mean=2.0, ambient=0.1, genes=2000),
        Setting(50, mean=0.5, informative=0.7, genes=2000),
        *(Setting(n, 2, m, c, genes=2000)
          for n, m, c in product((20, 50), (0.02, 0.5), ("few", "uneven"))),
        *(Setting(50, mean=m, cells=c, poisson=True, genes=2000)
          for m, c in product((0.02, 0.1, 0.5, 2.0), ("mid", "uneven"))),
        *(Setting(n, mean=1.0, cells=c, beside=m, genes=1000)
          for n, c, m in product((20, 50), ("mid", "uneven"), (0.005, 0.05))),
        *(Setting(50, mean=m, cells=c, own=0.3)
          for c, m in product(("few", "mid", "uneven"), (0.02, 0.1, 0.5))),
        *(Setting(n, mean=1.0, cells=c, beside=m, own=v)
          for n, c, v, m in product((20, 50), ("mid", "uneven"), (0.15, 0.3), (0.005, 0.05))),
    ],
    "tails of the score": [
        *(Setting(n, mean=0.0, cells="mid", normal=True, genes=5000) for n in (20, 50)),
        *(Setting(n, mean=m, cells=c, genes=2000)
          for n, m, c in product((20, 50), (0.1, 0.5), ("mid", "uneven"))),
    ],
}  # fmt: skip


def numbers(rng: np.random.Generator, s: Setting, fold: np.ndarray) -> np.ndarray:
    """Cells of each pair, (donors, types)."""
    shape = (s.donors, s.types)
    if s.cells == "few":
        size = rng.integers(11, 16, shape).astype(float)
    elif s.cells == "mid":
        size = np.exp(rng.uniform(np.log(11), np.log(120), shape))
    else:
        median = np.geomspace(600.0, 16.0, s.types)
        if s.cells == "one":
            median = np.where(np.arange(s.types) == 0, 600.0, 14.0)
        if s.cells == "two":
            median = np.array([300.0, 20.0])
        donor, pair = (0.4, 0.3) if s.cells == "uneven" else (0.0, 0.15)
        own = rng.normal(size=s.donors)
        if s.informative:
            own = s.informative * fold / fold.std() + np.sqrt(1 - s.informative**2) * own
        size = median * np.exp(donor * own[:, None] + pair * rng.normal(size=shape))
    if s.arms:
        size[1::2] *= s.arms
    return np.maximum(np.rint(size), 5).astype(np.int64)


@dataclass(frozen=True)
class Gene:
    """One data set and its truth: mean of every type, shared and specific variance."""

    model: Model
    means: np.ndarray
    hom: float
    V: float


def gene(s: Setting, number: int, *, effects: bool = False) -> Gene:
    """One data set; with `effects` the condition has an effect of its own in every type."""
    words = [s.donors, s.types, round(1e4 * s.mean), sum(map(ord, s.label)), number]
    rng = np.random.default_rng(words)
    dispersion, sd = float(rng.choice(DISPERSIONS)), float(rng.choice(EFFECTS))
    dispersion = 0.0 if s.cells == "two" or s.poisson else dispersion
    sd = 0.0 if s.beside else 0.5 if s.normal else sd
    fold = sd * rng.normal(size=s.donors)
    size = numbers(rng, s, fold)
    keep = rng.random(size.shape) >= s.missing
    keep[~keep.any(axis=1), 0] = True
    donor, celltype = np.nonzero(keep)
    value = fold[donor] + s.own * rng.normal(size=len(donor))
    value[celltype == s.types - 1] += s.shift
    value += (donor % 2) * (s.everywhere + s.response * (celltype == s.types - 1))
    random = []
    if s.batches:
        batch = np.arange(s.donors) // (2 if s.arms else 1) % s.batches  # both arms in each
        value += (0.3 * rng.normal(size=s.batches))[batch][donor]
        random = [RandomComponent(batch[donor], np.ones(len(donor)))]
    if s.beside:
        value[celltype == s.types - 1] += np.log(s.beside / s.mean)
    if s.normal:
        own = np.sqrt(2.0 * rng.gamma(0.4**-2, 0.4**2, len(value)))
        noise = np.repeat(own, size[keep]) * rng.normal(size=size[keep].sum())
        found = measured_cells(np.repeat(value, size[keep]) + noise, size[keep])
    else:
        cells = CountCells(s.mean, dispersion, depth_sd=s.depth, ambient=s.ambient)
        found = cells.measure(rng, value, size[keep], donor)
    H = np.eye(s.types)[celltype]
    X = np.hstack([H, H * (donor % 2)[:, None]]) if effects else H
    model = build_model(
        found.mean, found.nu, X, H, donor, resolve("free", list(map(str, range(s.types)))).basis,
        random, size[keep].astype(float), nu2=found.nu2,
    )  # fmt: skip
    if s.normal or s.beside:  # whose tests are looked at, not their estimates
        return Gene(model, np.full(s.types, np.nan), np.nan, np.nan)
    law = dispersion, sd, 0.3 if s.batches else 0.0, s.own, s.depth, s.ambient
    centre, hom, V = truth(s.mean, *law)
    last = truth(s.mean * np.exp(s.shift), *law)[0]
    return Gene(model, np.r_[np.full(s.types - 1, centre), last], hom, V)


@cache
def truth(
    mean: float,
    dispersion: float,
    sd: float,
    batch: float,
    own: float,
    depth: float,
    ambient: float,
) -> tuple[float, float, float]:
    """Mean, shared and specific variance of log1p expression, by quadrature over the effects.

    Of donors within batches, whose log-fold effects have sd `batch`; log depths of donors have sd
    `depth`.  All types are alike.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    weights = weights / weights.sum()
    counts = np.arange(6000)
    soup = ambient * mean * np.exp((sd**2 + batch**2 + own**2) / 2)

    def expected(fold: float, deep: float) -> float:
        library = 5000.0 * np.exp(0.4 * nodes + deep)
        value = np.log1p(1e4 * counts[None, :] / library[:, None])
        rate = ((1.0 - ambient) * mean * np.exp(fold) + soup) * library[:, None] / 5000.0
        if dispersion == 0.0:
            pmf = stats.poisson.pmf(counts, rate)
        else:
            pmf = stats.nbinom.pmf(counts, 1 / dispersion, 1 / (1 + dispersion * rate))
        return float(weights @ (pmf * value).sum(axis=1))

    # a pair's own effect, the donor's, the batch's, the depth; those that are not there once
    pair, donor, site = (size * nodes if size else np.zeros(1) for size in (own, sd, batch))
    deep, of_deep = np.polynomial.hermite_e.hermegauss(9 if depth else 1)
    deep, of_deep = depth * deep, of_deep / of_deep.sum()
    w = [*(weights if len(x) > 1 else np.ones(1) for x in (pair, donor, site)), of_deep]
    folds = pair[:, None, None] + donor[:, None] + site
    grid = np.unique(folds) if folds.size < 50 else np.linspace(folds.min(), folds.max(), 81)
    curves = [[expected(fold, d) for fold in grid] for d in deep]
    value = np.stack([np.interp(folds, grid, curve) for curve in curves], axis=-1)
    of_donor = np.tensordot(w[0], value, 1)  # (donor, site, deep)
    second = np.einsum("p,psbd,s,b,d->", w[0], np.square(value), *w[1:], optimize=True)
    within = float(np.einsum("sbd,s,b,d->", np.square(of_donor), *w[1:], optimize=True))
    of_site = np.einsum("sbd,s,d->b", of_donor, w[1], w[3], optimize=True)
    return float(of_site @ w[2]), within - float(np.square(of_site) @ w[2]), float(second) - within


# what is measured of one gene


def means(s: Setting, number: int) -> dict[str, np.ndarray]:
    """Test of equal means, bias and coverage of the means."""
    g = gene(s, number)
    fit = robust.weigh(g.model)
    rows = sandwich.contrasts(fit, np.eye(s.types))
    low, high = rows.intervals().T
    equal = np.eye(s.types)[:-1] - np.eye(s.types)[1:]
    out = {"p": np.array([sandwich.hotelling(fit, equal).pvalue]), "Hotelling": hotelling(g.model)}
    if s.depth or s.ambient or s.informative:  # whose true means are others
        return out
    return out | {
        "bias": rows.value / g.means - 1.0,
        "covered": ((low <= g.means) & (g.means <= high)).mean(keepdims=True),
    }


def complete(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """Expression of donors with all types (n, C), and their codes."""
    table = np.full((model.n_donors, model.H.shape[1]), np.nan)
    table[model.row_donor, model.H.argmax(axis=1)] = model.y
    whole = ~np.isnan(table).any(axis=1)
    return table[whole], model.donors[whole]


def hotelling(model: Model) -> np.ndarray:
    """Hotelling's test of equal means over donors with all types."""
    table, _ = complete(model)
    d = table[:, :-1] - table[:, 1:]
    n, q = d.shape
    if n <= q:
        return np.array([np.nan])
    m = d.mean(axis=0)
    F = n * m @ np.linalg.solve(np.atleast_2d(np.cov(d.T)), m) * (n - q) / (q * (n - 1))
    return np.array([f_tail(float(F), q, n - q)])


def between_arms(table: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hotelling's two-sample test of equal means (n, q), one covariance for both arms."""
    arms, (n, q) = (table[~second], table[second]), table.shape
    df = n - q - 1
    if df < 1 or min(map(len, arms)) < 2:
        return np.array([np.nan])
    away = arms[0].mean(axis=0) - arms[1].mean(axis=0)
    pooled = sum((len(arm) - 1) * np.cov(arm.T) for arm in arms) / (n - 2)
    distance = away @ np.linalg.solve(np.atleast_2d(pooled), away)
    F = len(arms[0]) * len(arms[1]) / n * distance * df / (q * (n - 2))
    return np.array([f_tail(float(F), q, df)])


def effects(s: Setting, number: int) -> dict[str, np.ndarray]:
    """Tests of a condition without effect: in every type, jointly, and of differences."""
    g = gene(s, number, effects=True)
    fit = robust.weigh(g.model)
    L = np.eye(2 * s.types)[s.types :]
    rows = sandwich.contrasts(fit, L)
    table, donors = complete(g.model)
    second = donors % 2 == 1
    return {
        "types": rows.pvalues(),
        "Hotelling joint": between_arms(table, second),
        "Hotelling differences": between_arms(table[:, :-1] - table[:, 1:], second),
        "joint": np.array([sandwich.hotelling(fit, L).pvalue]),
        "differences": np.array([sandwich.hotelling(fit, L[:-1] - L[1:]).pvalue]),
    }


def components(s: Setting, number: int) -> dict[str, np.ndarray]:
    """Bias and coverage of hom and V."""
    g = gene(s, number)
    fit = robust.weigh(g.model)
    own = slice(0, 1 + s.types)  # without those of batches
    theta, interval = fit.estimate.theta[own], fit.component_intervals()[own]
    target = np.r_[g.hom, np.full(s.types, g.V)]
    inside = (interval[:, 0] <= target) & (target <= interval[:, 1])
    return {
        "hom": np.array([theta[0] / g.hom - 1.0]),
        "V": (theta[1:] - g.V) / g.hom,
        "hom covered": inside[:1],
        "V covered": inside[1:].mean(keepdims=True),
        "rarest covered": inside[-1:],
        "widths": np.diff(interval[[0, -1]]).ravel() / g.hom,
    }


def score(s: Setting, number: int) -> dict[str, np.ndarray]:
    """P values of the score test."""
    test = score_test(gene(s, number).model)
    return {
        "sum": np.array([test.pvalue_sum]),
        "cauchy": np.array([test.pvalue_cauchy]),
        "types": test.pvalue_celltype,
    }


MEASURES: dict[str, Callable[[Setting, int], dict[str, np.ndarray]]] = {
    "means": means, "power of means": means, "effects": effects, "components": components,
    "score": score, "tails of the score": score,
}  # fmt: skip


def attempt(name: str, s: Setting, number: int) -> dict[str, np.ndarray] | None:
    """What is measured, or nothing where the gene cannot be fitted."""
    try:
        return MEASURES[name](s, number)
    except (ValueError, np.linalg.LinAlgError):
        return None


# tables


def share(hits: np.ndarray) -> str:
    """Rate and its standard error; of several per gene, of their means."""
    per_gene = hits.reshape(len(hits), -1).mean(axis=1)
    rate = float(per_gene.mean())
    if hits.reshape(len(hits), -1).shape[1] == 1:
        near = (per_gene.sum() + 2) / (len(hits) + 4)
        return f"{rate:.3f} ({np.sqrt(near * (1 - near) / len(hits)):.3f})"
    return f"{rate:.3f} ({per_gene.std(ddof=1) / np.sqrt(len(hits)):.3f})"


def average(values: np.ndarray) -> str:
    """Mean and its standard error."""
    per_gene = values.reshape(len(values), -1).mean(axis=1)
    return f"{per_gene.mean():+.3f} ({per_gene.std(ddof=1) / np.sqrt(len(values)):.3f})"


def span(p: np.ndarray, level: float) -> str:
    """Rates over types, and the standard error of one of them."""
    rates = (p <= level).mean(axis=0)
    near = ((p <= level).mean() * len(p) + 2) / (len(p) + 4)
    return f"{rates.min():.3f}-{rates.max():.3f} ({np.sqrt(near * (1 - near) / len(p)):.3f})"


def cells_of(found: dict[str, np.ndarray], name: str) -> Iterator[tuple[str, str]]:
    """Columns of one line."""
    if "p" in found:
        for level in LEVELS:
            yield f"test at {level:g}", share(found["p"] <= level)
        for level in LEVELS:
            yield f"Hotelling at {level:g}", share(found["Hotelling"] <= level)
        if name == "means" and "bias" in found:
            bias = found["bias"].mean(axis=0)
            se = found["bias"].std(axis=0, ddof=1) / np.sqrt(len(found["bias"]))
            worst = int(np.abs(bias).argmax())
            yield "largest bias of a mean, %", f"{100 * bias[worst]:+.1f} ({100 * se[worst]:.1f})"
            yield "coverage of means", share(found["covered"])
    elif "joint" in found:
        for level in LEVELS:
            yield f"types at {level:g}", span(found["types"], level)
            yield f"joint at {level:g}", share(found["joint"] <= level)
            yield f"differences at {level:g}", share(found["differences"] <= level)
        for what in ("joint", "differences"):
            yield f"Hotelling, {what}, at 0.05", share(found[f"Hotelling {what}"] <= 0.05)
    elif "hom" in found:
        yield "bias of hom / hom", average(found["hom"])
        yield "bias of V / hom", average(found["V"])
        yield "coverage of hom", share(found["hom covered"])
        yield "coverage of V", share(found["V covered"])
        yield "of the rarest type", share(found["rarest covered"])
        wide = np.median(found["widths"], axis=0)
        yield "width of hom", f"{wide[0]:.2f}"
        yield "width of V, rarest type", f"{wide[1]:.2f}"
    else:
        for part in ("sum", "cauchy"):
            for level in (*LEVELS, 0.001) if name.startswith("tails") else LEVELS:
                yield f"{part} at {level:g}", share(found[part] <= level)
        yield "types at 0.05", span(found["types"], 0.05)


def line(name: str, s: Setting, genes: int, workers: int) -> dict[str, object]:
    """One line of a table."""
    genes = s.genes or genes
    jobs = (delayed(attempt)(name, s, number) for number in range(genes))
    results = [one for one in Parallel(workers)(jobs) if one is not None]
    found = {key: np.array([one[key] for one in results]) for key in results[0]}
    p = found.get("p", found.get("joint", found.get("sum", np.zeros(1))))
    none = genes - len(results) + int(np.isnan(p).sum())
    return head(s) | {"genes": genes} | dict(cells_of(found, name)) | {"no test": none}


def head(s: Setting) -> dict[str, object]:
    """What names a line."""
    mean = "" if s.normal else f"{s.mean:g}"
    return {"donors": s.donors, "types": s.types, "mean": mean, "cells": s.label}


def kept_lines(text: str, name: str) -> dict[tuple[str, ...], dict[str, object]]:
    """Lines of a section of a page written before, by what names them."""
    part = text.partition(f"\n## {name.capitalize()}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row[1:-1].split("|")]
            for row in part.splitlines() if row.startswith("|")]  # fmt: skip
    return {tuple(row[:4]): dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def efficiency(genes: int) -> pd.DataFrame:
    """Root mean squared error of V by robust moments and by REML, where the noise is known."""
    V, rows = np.array([0.05, 0.02, 0.02, 0.02]), []
    for n, cv, true in product((20, 50), (0.4, 0.8), (True, False)):
        study = simulate_genes(
            genes, n, 4, V=V * true, cell_cv=cv, cells=log_uniform_cells(10, 120), n_batches=0,
            rng=[n, round(10 * cv), true],
        )  # fmt: skip
        error = {}
        for method in ("robust", "reml"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scan = fit_genes("~ C(celltype)", data=study, method=method, tests=[])
            error[method] = (scan.vcomp.iloc[:, 1:].to_numpy() - V * true) ** 2
        mse = {method: value.mean() for method, value in error.items()}
        per_gene = [value.mean(axis=1) for value in error.values()]
        ratio = mse["robust"] / mse["reml"]
        spread = np.std(per_gene[0] - ratio * per_gene[1], ddof=1) / mse["reml"] / np.sqrt(genes)
        rows.append(
            {"donors": n, "CV of the variance between cells": cv,
             "V": ", ".join(f"{v:g}" for v in V * true),
             **{f"rmse of V, {method}": f"{np.sqrt(value):.4f}" for method, value in mse.items()},
             "ratio of mean squared errors": f"{ratio:.2f} ({spread:.2f})"}
        )  # fmt: skip
    return pd.DataFrame(rows)


NOTES = {
    "means": "Equal means; the test is that of the robust estimate with the noise halfway to equal "
    "means, 95 % intervals hold the means that t tests with Satterthwaite's df do not reject; "
    "Hotelling's test takes donors with all types.",
    "power of means": "The last, rarest type differs from the others.",
    "effects": "A condition without effect, in half of the donors: t tests per type (over "
    "types), joint tests of all effects and of their differences; Hotelling's two-sample tests of "
    "both, of donors with all types and with one covariance for both arms.",
    "components": "95 % intervals by the larger of jackknife and working covariance, t with the "
    "degrees of freedom of the jackknife's variances; widths over hom, medians over genes.",
    "score": "The score test of V = 0: the sum over types, the Cauchy combination, and the range "
    "over single types.  Lines with V > 0 are power.  Missing tests count as negative.",
    "tails of the score": "V = 0; far out as well.",
}


EFFICIENCY = (
    "Normal cells, 10 to 120 of a pair, shared variance .25, noise variances known: what the "
    "robust estimate gives away to REML, which can use that cells of some donors vary less."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[*TABLES, "efficiency"])
    parser.add_argument("--lines", nargs=2, type=int, default=[0, 10**6])
    parser.add_argument("--out", default=str(HERE / "count_levels.md"))
    args = parser.parse_args()
    out = Path(args.out)
    before = out.read_text() if out.exists() else ""
    tables = {name: kept_lines(before, name) for name in TABLES}
    last = before.partition("\n## Efficiency\n")[2].strip()

    def write() -> None:
        parts = [
            "# Counts of cells: levels, bias, coverage, power",
            "Written by `count_levels.py`, which says what is simulated; seeded by the setting and "
            "the number of the gene; standard errors in brackets.",
        ]
        for name, settings in TABLES.items():
            keys = [tuple(map(str, head(s).values())) for s in settings]
            rows = [tables[name][key] for key in keys if key in tables[name]]
            if rows:
                table = bench_fit.markdown(pd.DataFrame(rows).fillna(""))
                parts += [f"## {name.capitalize()}", NOTES[name], table]
        out.write_text("\n\n".join([*parts, *(["## Efficiency", last] if last else [])]) + "\n")

    for name in [name for name in args.only if name in TABLES]:
        for s in TABLES[name][slice(*args.lines)]:
            key = tuple(map(str, head(s).values()))
            tables[name][key] = line(name, s, args.genes, args.workers)
            sys.stderr.write(f"{name}: {tables[name][key]}\n")
            write()
    if "efficiency" in args.only:
        last = f"{EFFICIENCY}\n\n{bench_fit.markdown(efficiency(args.genes))}"
    write()


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
