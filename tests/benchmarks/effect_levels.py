"""Effects of a condition: levels and power by cell type, of their mean, all, and differences.

    python tests/benchmarks/effect_levels.py [--genes 500] [--only counts ...] [--lines 0 12]
        [--errors robust]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``effect_levels.md`` beside this file, a line at a time: what is not asked for (the sections of
--only, lines numbered from 0 up to 12, columns of --errors) stays as it is there.

Every gene is its own data set, half of the donors are cases, and the tests are those of
``res.effects("status")``: of the robust estimate, and on normal cells, whose measured noise says
nothing of their mean, of REML by Kenward and Roger as well.  Beside them what separate fits of
each cell type say of the same pseudobulk: t tests by ordinary least squares, the Cauchy
combination of their p values, and Cochran's Q over types; and "moderated", t tests by variances
that are squeezed over the data sets of a line, cell type by cell type (Smyth 2004, as limma does
over genes).

counts   those of ``count_levels.py``: negative binomial, mean counts .1 and 2 a cell, uneven
         numbers of cells
normal   A = .25 J + diag(.05 ... .4) times 8 / chi2(8) of the gene, 10 to 120 cells of a pair,
         variance between cells 4 with CV .4, measured in as many cells
unlike   groups whose donors differ in variance, the smaller one the more; also with ``by=``, that
         is, a covariance for each
within   all donors under both conditions, with ``within=``; donors respond alike, or responses vary
         between donors: normal cells as above with .05 in all types together and .1 in each, counts
         with a log-fold sd of .2 in each type.  Beside them paired t tests of each cell type.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import bench_fit
import count_levels
import numpy as np
import pandas as pd
from count_levels import LEVELS, Setting, share
from group_levels import draws
from scipy import optimize, special, stats

import ctmm_formula as ctmm
from ctmm_formula.distributions import cauchy_tail
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.inference.differences import Differences, test_differences
from ctmm_formula.inference.fit import Fit
from ctmm_formula.simulate import CountCells
from ctmm_formula.structures import Crossing, Structure, cross, resolve

OUT = Path(__file__).with_suffix(".md")
SIZES, TYPES = (10, 15, 20, 50), (4, 8)


@dataclass(frozen=True)
class Normal:
    """One line of normal cells: donors of both arms, and what is unusual.

    arms: share of the cells in the second arm; missing: share of pairs; batches: number of them,
    with a variance of .1; response: effect in one type, at: its number; everywhere: in all types;
    tails: law of the donors' effects; groups: number of arms; few, factor: donors in the second
    arm, where that is not half, and its A over that of the first.
    """

    donors: int
    types: int = 4
    arms: float = 1.0
    missing: float = 0.0
    batches: int = 0
    response: float = 0.0
    at: int = -1
    everywhere: float = 0.0
    tails: str = "normal"
    groups: int = 2
    factor: float = 1.0
    few: int = 0

    mean = float("nan")

    @property
    def label(self) -> str:
        """What is unusual, in words."""
        words = {
            "missing": "{:.0%} of pairs missing", "batches": "{:d} batches",
            "response": "effect {:g} in the last type", "everywhere": "effect {:g} in all types",
        }  # fmt: skip
        if self.at >= 0:
            words["response"] = f"effect {{:g}} in type {self.at + 1}"
        given = [(words[name], getattr(self, name)) for name in words]
        given += [("{} donors", self.tails)] * (self.tails != "normal")
        given += [("{:d} groups", self.groups)] * (self.groups > 2)
        given += [("A of cases x {:g}", self.factor)] * (self.factor != 1.0)
        cells = "as many cells" if self.arms == 1 else f"{self.arms:.2g} of the cells"
        return ", ".join([cells, *(text.format(v) for text, v in given if v)])


@dataclass(frozen=True)
class Within:
    """One line of donors under both conditions.

    mean: mean count of a cell, none of normal cells; unlike: responses vary between donors;
    missing: share of pairs, and of donors without the second condition; response: effect in the
    last type; everywhere: in all types; times: as many data sets as other lines have.
    """

    donors: int
    types: int = 4
    mean: float = float("nan")
    unlike: bool = False
    missing: float = 0.0
    response: float = 0.0
    everywhere: float = 0.0
    times: int = 1

    groups, few = 1, 0

    def by_model(self, genes: int) -> int:
        """Data sets with REML: 18 components take their time."""
        if self.types < 8:
            return genes // self.times
        return genes * 2 // 5 if self.donors == 10 and np.isnan(self.mean) else 0

    @property
    def label(self) -> str:
        """What is unusual, in words."""
        words = {
            "missing": "{0:.0%} of pairs missing, {0:.0%} of donors without the second condition",
            "response": "effect {:g} in the last type", "everywhere": "effect {:g} in all types",
        }  # fmt: skip
        given = [(words[name], getattr(self, name)) for name in words]
        respond = "respond differently" if self.unlike else "respond alike"
        return ", ".join([respond, *(text.format(v) for text, v in given if v)])


Line = Setting | Normal | Within

TABLES: dict[str, Sequence[Line]] = {
    "normal": [
        *(Normal(2 * n, C, 1 / 3) for n, C in product(SIZES, TYPES)),
        *(Normal(2 * n) for n in (10, 20, 50)),
        *(Normal(40, C, 1 / 3, missing=0.15) for C in TYPES),
        *(Normal(2 * n, 4, 1 / 3, batches=n // 2) for n in (20, 50)),
    ],
    "counts": [  # those with as many cells in both groups are in count_levels.py
        *(Setting(2 * n, C, m, arms=1 / 3) for n, C, m in product(SIZES, TYPES, (0.1, 2.0))),
        *(Setting(40, C, 0.5, arms=1 / 3, missing=0.15) for C in TYPES),
        *(Setting(2 * n, 4, 0.5, arms=1 / 3, batches=n // 2) for n in (20, 50)),
        *(Setting(2 * n, 4, 0.5, own=0.3, arms=1 / 3) for n in (10, 50)),
    ],
    "normal, more": [
        *(Normal(2 * n, 4, 1 / 3, tails=t) for n in (20, 50) for t in ("t5", "lognormal")),
        *(Normal(3 * n, C, 1 / 3, groups=3) for n, C in ((15, 4), (20, 4), (50, 4), (20, 8))),
        Normal(60, 4, 1 / 3, groups=3, missing=0.15), Normal(60, 4, 1 / 3, groups=3, batches=15),
        *(Normal(2 * n, 4, 1 / 3, missing=0.15, batches=n // 2) for n in (20, 50)),
    ],
    "unlike": [
        Normal(60, few=15, factor=3.0), Normal(80, few=20, factor=3.0, arms=1 / 3),
        Normal(60, few=30, factor=3.0), Normal(60, few=15), Normal(60, few=45, factor=3.0),
    ],
    "within donors": [
        *(Within(n, unlike=u) for u, n in product((False, True), SIZES)),
        *(Within(10, 8, unlike=u) for u in (False, True)),
        Within(20, 8, unlike=True),
        Within(20, missing=0.15),
        Within(20, missing=0.15, unlike=True, times=6),  # it stood out among 500 sets, with .092
        *(Within(n, 4, m, u) for n in SIZES for m, u in ((0.1, False), (2.0, True))),
        *(Within(20, 4, 0.5, u, 0.15) for u in (False, True)),
        *(Within(n, 8, m, u) for n in (10, 20) for m, u in ((0.1, False), (2.0, True))),
        *(Within(n, 8, 0.5, u, 0.15) for n in (10, 20) for u in (False, True)),
    ],
    "power within donors": [
        *(Within(20, 4, m, u, 0.0, 0.4) for m in (float("nan"), 0.5) for u in (False, True)),
        Within(20, 4, unlike=True, missing=0.2, response=0.4),
        Within(20, 4, everywhere=0.2), Within(20, 4, 0.5, False, 0.0, 0.0, 0.2),
    ],
    "power on normal cells": [
        Normal(100, response=0.3, at=1),
        Normal(40, arms=1 / 3, response=0.6), Normal(100, arms=1 / 3, response=0.6),
        Normal(40, arms=1 / 3, missing=0.15, response=0.6), Normal(30, 8, response=0.8),
        Normal(100, arms=1 / 3, everywhere=0.3),
    ],
    "power on counts": [
        *(Setting(2 * n, 4, m, arms=1 / 3, own=0.15, response=r)
          for n, r in ((20, 0.6), (50, 0.4)) for m in (0.1, 2.0)),
        *(Setting(2 * n, 4, 2.0, arms=1 / 3, own=0.15, everywhere=r)
          for n, r in ((20, 0.4), (50, 0.25))),
        Setting(40, 4, 2.0, arms=1 / 3, own=0.15, missing=0.15, response=0.6),
        Setting(40, 8, 2.0, arms=1.0, own=0.15, response=0.8),
    ],
}  # fmt: skip

NOTES = {
    "counts": "No effect, donors alike in all types, so that neither means nor effects differ on "
    "any scale; the last two lines have V > 0.  The robust estimate, as by default.",
    "normal": "No effect.  `KR` is REML with the covariance and degrees of freedom of Kenward and "
    "Roger, as by default where numbers of cells are not known.",
    "normal, more": "No effect.  Of three groups, tests are of both comparisons with the first.",
    "unlike": "No effect; donors of the second group vary more, but in the fourth line.  *by*: "
    "with a covariance for each group.",
    "within donors": "No effect.  With `within=`, cell types and conditions as they are observed.",
    "power within donors": "Rates at .05.  Effects on counts are log-fold.",
    "power on counts": "Rates at .05.  Of effects that all types share, those of differences are "
    "levels, as far as log(1 + CP10K) leaves a log-fold effect the same in all types.",
    "power on normal cells": "Rates at .05.",
}


def normal(s: Normal, number: int) -> Model:
    """One data set of normal cells."""
    words = [s.donors, s.types, round(100 * s.arms), sum(map(ord, s.label)), number]
    rng = np.random.default_rng(words)
    last = np.arange(s.types) == s.at % s.types
    A = 0.25 + np.diag(np.resize([0.05, 0.1, 0.2, 0.4], s.types))
    A = A * 8.0 / rng.chisquare(8)
    shape = (s.donors, s.types)
    size = np.exp(rng.uniform(np.log(10), np.log(120), shape))
    size[1::2] *= s.arms
    size = np.maximum(np.rint(size), 5)
    keep = rng.random(shape) >= s.missing
    keep[~keep.any(axis=1), 0] = True
    donor, celltype = np.nonzero(keep)
    cells = size[keep]
    variance = 4.0 * rng.gamma(1 / 0.16, 0.16, len(cells))
    nu = variance / cells * rng.chisquare(cells - 1) / (cells - 1)
    if s.tails == "normal":
        own = rng.multivariate_normal(np.zeros(s.types), A, s.donors)
    else:
        own = np.sqrt(A[0, 1]) * draws(s.tails, (s.donors, 1), rng)
        own = own + np.sqrt(np.diag(A) - A[0, 1]) * draws(s.tails, (s.donors, s.types), rng)
    arm = (np.arange(s.donors) < s.few).astype(int) if s.few else np.arange(s.donors) % s.groups
    y = (own * np.where(arm == 1, np.sqrt(s.factor), 1.0)[:, None])[keep]
    y = y + rng.normal(size=len(y)) * np.sqrt(variance / cells)
    y += (arm == 1)[donor] * (s.everywhere + s.response * last[celltype])
    random = []
    if s.batches:
        batch = np.arange(s.donors) // 2 % s.batches
        y += (np.sqrt(0.1) * rng.normal(size=s.batches))[batch][donor]
        random = [RandomComponent(batch[donor], np.ones(len(donor)))]
    H = np.eye(s.types)[celltype]
    X = np.hstack([H, *(H * (arm == g)[donor][:, None] for g in range(1, s.groups))])
    basis = resolve("free", list(map(str, range(s.types)))).basis
    return build_model(y, nu, X, H, donor, basis, random, cells)


def arms_of(model: Model) -> np.ndarray:
    """Arm of every row."""
    C = model.types.shape[1]
    return model.X.reshape(len(model.X), -1, C).any(axis=2).astype(int)[:, 1:] @ np.arange(
        1, model.X.shape[1] // C
    )


def separately(model: Model) -> dict[str, np.ndarray]:
    """Per-type least squares: t (or F) tests, their Cauchy combination, Cochran's Q.

    squares: mean squares between arms and within, (types, 2), with df (types, 2), to be moderated.
    """
    effect, se, p, squares, df = [], [], [], [], []
    code, arm = model.types.argmax(axis=1), arms_of(model)
    for c in range(model.types.shape[1]):
        parts = [model.y[(code == c) & (arm == g)] for g in range(arm.max() + 1)]
        y = np.concatenate(parts)
        inside = sum(float(np.square(one - one.mean()).sum()) for one in parts)
        df.append((len(parts) - 1, len(y) - len(parts)))
        between = (float(np.square(y - y.mean()).sum()) - inside) / df[-1][0]
        squares.append((between, inside / df[-1][1]))
        p.append(stats.f.sf(between / squares[-1][1], *df[-1]))
        effect.append(parts[1].mean() - parts[0].mean())
        se.append(np.sqrt(squares[-1][1] * sum(1 / len(one) for one in parts[:2])))
    d, w = np.array(effect), np.array(se) ** -2.0
    Q = float(w @ (d - w @ d / w.sum()) ** 2)
    cauchy = cauchy_tail(float(np.mean(np.tan((0.5 - np.array(p)) * np.pi))))
    out = {"types": np.array(p), "all": np.array([cauchy])}
    if arm.max() == 1:
        out["differences"] = np.array([stats.chi2.sf(Q, len(d) - 1)])
    return out | {"squares": np.array(squares), "df": np.array(df, dtype=float)}


def moderated(squares: np.ndarray, df: np.ndarray) -> np.ndarray:
    """P values (sets, types) by variances within that are squeezed over sets, type by type."""
    out = np.empty(squares.shape[:2])
    for c in range(out.shape[1]):
        (between, s2), (q, d) = squares[:, c].T, df[:, c].T
        e = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
        excess = e.var(ddof=1) - special.polygamma(1, d / 2).mean()
        d0 = np.inf
        if excess > 0:
            d0 = 2 * optimize.brentq(lambda x, v=excess: special.polygamma(1, x) - v, 1e-3, 1e6)
            centre = np.exp(e.mean() + special.digamma(d0 / 2) - np.log(d0 / 2))
            s2 = (d0 * centre + d * s2) / (d0 + d)
        else:
            s2 = np.full(len(s2), np.exp(e.mean()))
        out[:, c] = stats.f.sf(between / s2, q, np.minimum(d0 + d, d.sum()))
    return out


def crossed(model: Model, kind: str) -> tuple[Model, Structure]:
    """The same data with arms as groups of donors ("by") or conditions of a donor ("within")."""
    names = tuple(map(str, range(model.types.shape[1])))
    arm = arms_of(model)
    crossing = Crossing(kind, "status", tuple(map(str, range(arm.max() + 1))))
    structure = cross(resolve("free", names), crossing, crossing.effects(names))
    H = (np.eye(arm.max() + 1)[arm][:, :, None] * model.H[:, None]).reshape(len(arm), -1)
    own = build_model(
        model.y, model.nu, model.X, H, model.row_donor, structure.basis, model.random,
        model.n_cells, model.nu2, model.H,
    )  # fmt: skip
    return own, structure


def within_donors(s: Within, number: int) -> Model:
    """One data set of donors under both conditions."""
    words = [s.donors, s.types, sum(map(ord, s.label + str(s.mean))), number]
    rng = np.random.default_rng(words)
    shape = (s.donors, 2, s.types)
    keep = rng.random(shape) >= s.missing
    keep[:, 1] &= rng.random(s.donors)[:, None] >= s.missing
    keep[~keep.any(axis=(1, 2)), 0, 0] = True
    donor, condition, celltype = np.nonzero(keep)
    effect = condition * (s.everywhere + s.response * (celltype == s.types - 1))
    nu2 = None
    if np.isnan(s.mean):
        A = 0.25 + np.diag(np.resize([0.05, 0.1, 0.2, 0.4], s.types))
        own = rng.multivariate_normal(np.zeros(s.types), A, s.donors)[:, None]
        if s.unlike:
            A = 0.05 + 0.1 * np.eye(s.types)
            own = own + rng.multivariate_normal(np.zeros(s.types), A, (s.donors, 2))
        own = own * np.sqrt(8.0 / rng.chisquare(8)) * np.ones((2, 1))
        cells = np.maximum(np.rint(np.exp(rng.uniform(np.log(10), np.log(120), len(donor)))), 5)
        variance = 4.0 * rng.gamma(1 / 0.16, 0.16, len(cells))
        nu = variance / cells * rng.chisquare(cells - 1) / (cells - 1)
        y = own[keep] + effect + rng.normal(size=len(cells)) * np.sqrt(variance / cells)
    else:
        dispersion = float(rng.choice(count_levels.DISPERSIONS))
        fold = float(rng.choice(count_levels.EFFECTS)) * rng.normal(size=s.donors)
        value = fold[donor] + s.unlike * 0.2 * rng.normal(size=shape)[keep] + effect
        line = Setting(s.donors, s.types)
        size = np.stack([count_levels.numbers(rng, line, fold) for _ in range(2)], axis=1)[keep]
        found = CountCells(s.mean, dispersion).measure(rng, value, size, donor)
        y, nu, nu2, cells = found.mean, found.nu, found.nu2, size.astype(float)
    H = np.eye(s.types)[celltype]
    basis = resolve("free", list(map(str, range(s.types)))).basis
    X = np.hstack([H, H * condition[:, None]])
    return build_model(y, nu, X, H, donor, basis, [], cells, nu2)


def in_pairs(model: Model) -> dict[str, np.ndarray]:
    """Paired t tests of each cell type; their squares between and within, to be moderated."""
    code, arm, p, squares, df = model.types.argmax(axis=1), arms_of(model), [], [], []
    for c in range(model.types.shape[1]):
        wide = np.full((model.row_donor.max() + 1, 2), np.nan)
        at = code == c
        wide[model.row_donor[at], arm[at]] = model.y[at]
        d = np.diff(wide, axis=1)
        d = d[np.isfinite(d)]
        df.append((1, len(d) - 1))
        squares.append((len(d) * d.mean() ** 2, d.var(ddof=1)))
        p.append(stats.f.sf(squares[-1][0] / squares[-1][1], *df[-1]))
    cauchy = cauchy_tail(float(np.mean(np.tan((0.5 - np.array(p)) * np.pi))))
    out = {"types": np.array(p), "all": np.array([cauchy])}
    return out | {"squares": np.array(squares), "df": np.array(df, dtype=float)}


def asked(model: Model, kind: str, across: str = "") -> dict[str, np.ndarray]:
    """The tests of ``res.effects``, by "robust" or "kenward-roger" errors, arms crossed or not."""
    C, p = model.types.shape[1], model.X.shape[1]
    names = tuple(map(str, range(C)))
    steps = tuple(f"case{k}" for k in range(1, p // C))
    rows = Differences("status", "control", steps, names, np.eye(p)[C:].reshape(len(steps), C, p))
    method, domain = ("robust" if kind == "robust" else "reml"), Domain("noise", 0.1)
    structure = resolve("free", names)
    if across:
        model, structure = crossed(model, across)
    found = estimate(model, method, domain)
    fit = Fit(model, structure, domain, found, np.eye(p)[:C])
    test = test_differences(fit, fit.errors(kind), rows)
    own = test.parts
    return {
        "types": np.array([own[f"[{name}]"].pvalue for name in names]),
        "mean": np.array([own["_mean"].pvalue]),
        "all": np.array([test.pvalue]),
        "differences": np.array([own["_heterogeneity"].pvalue]),
    }


KINDS = {"robust": "", "kenward-roger": "KR "}
"""Errors, and what columns of them begin with."""


def measured(s: Line, number: int, kinds: Sequence[str]) -> dict[str, np.ndarray] | None:
    """P values of one data set by errors and test; nothing where it cannot be fitted."""
    try:
        across = [""]
        if isinstance(s, Within):
            model, across, other = within_donors(s, number), ["within"], "paired"
        elif isinstance(s, Normal):
            model, across, other = normal(s, number), ["", "by"][: 1 + bool(s.few)], "OLS"
        else:
            model, other = count_levels.gene(s, number, effects=True).model, "OLS"
        out = {}
        for kind, name in product(kinds, across):
            found = asked(model, kind, name)
            prefix = KINDS[kind] + ("by " if name == "by" else "")
            out |= {prefix + key: p for key, p in found.items()}
        beside = in_pairs(model) if other == "paired" else separately(model)
        return out | {f"{other} {key}": p for key, p in beside.items()}
    except (ValueError, np.linalg.LinAlgError):
        return None


def columns(found: dict[str, np.ndarray], s: Line, name: str) -> Iterator[tuple]:
    """Columns of one line."""
    power = name.startswith("power")
    for key, p in found.items():
        if key.endswith("types"):
            if power:
                at = (np.arange(s.types) - getattr(s, "at", -1)) % s.types == 0
                last, others = (p[:, at], p[:, ~at]) if s.response else (p, None)
                yield f"{key}, with effect", share(last <= 0.05)
                if others is not None:
                    yield f"{key}, without", share(others <= 0.05)
                continue
            for level in LEVELS:
                yield f"{key} at {level:g}", share(p <= level)
            rates = (p <= 0.05).mean(axis=0)
            yield f"{key} at 0.05, range", f"{rates.min():.3f}-{rates.max():.3f}"
            continue
        for level in LEVELS[:1] if power else LEVELS:
            yield f"{key}{'' if power else f' at {level:g}'}", share(p <= level)


def head(s: Line, genes: int) -> dict[str, str]:
    """What names a line."""
    few = isinstance(s, Normal) and s.few
    groups = 2 if isinstance(s, Setting) else s.groups
    size = f"{s.donors - few}, {few}" if few else s.donors // groups
    out = {"donors" if isinstance(s, Within) else "a group": size, "types": s.types}
    counts = "normal cells" if np.isnan(s.mean) else f"{s.mean:g}"
    out |= {} if isinstance(s, Normal) else {"mean count": counts}
    out |= {"sets": genes, "KR sets": s.by_model(genes)} if isinstance(s, Within) else {}
    out["cells"] = s.label.replace("second arm with 0.333333", "cases with a third")
    return {key: str(value) for key, value in out.items()}


def line(name: str, s: Line, genes: int, kinds: Sequence[str]) -> dict[str, object]:
    """One line of a table."""
    by_model = s.by_model(genes) if isinstance(s, Within) else genes * isinstance(s, Normal)
    some = [kind for kind in kinds if kind == "robust"]
    sets = [measured(s, k, kinds if k < by_model else some) for k in range(genes)]
    there = [one for one in sets if one is not None]
    found = {key: np.array([one[key] for one in there if key in one]) for key in there[0]}
    other = "paired" if isinstance(s, Within) else "OLS"
    found["moderated types"] = moderated(found.pop(f"{other} squares"), found.pop(f"{other} df"))
    out = head(s, genes) | dict(columns(found, s, name))
    for prefix in KINDS.values():
        if f"{prefix}all" in found:
            tried = sum(one is None for one in sets[: by_model if prefix else genes])
            none = tried + int(np.isnan(found[f"{prefix}all"]).sum())
            out[f"{prefix}no test"] = none
    return out


def lines_before(text: str, name: str) -> list[dict[str, str]]:
    """Lines of a section of a page written before."""
    part = text.partition(f"\n## {name.capitalize()}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in row[1:-1].split("|")]
            for row in part.splitlines() if row.startswith("|")]  # fmt: skip
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def cost(genes: int = 200) -> str:
    """Milliseconds a gene of the effects in a scan of 100 donors and 4 types."""
    models = [normal(Normal(100), number) for number in range(genes)]
    m, names = models[0], [f"g{k}" for k in range(genes)]
    # the rows of all genes are those of the first: only values are taken from the others
    obs = pd.DataFrame(
        {"donor": [f"d{k}" for k in m.row_donor], "celltype": m.H.argmax(axis=1).astype(str),
         "status": np.where(m.X[:, 4:].any(axis=1), "case", "control"), "n_cells": m.n_cells}
    )  # fmt: skip
    Y = pd.DataFrame(np.array([one.y for one in models]).T, columns=names)
    NU = pd.DataFrame(np.array([one.nu for one in models]).T, columns=names)
    times: dict[str, list[float]] = {}
    for _ in range(5):
        for tests in ([], ["mean"], ["effects:status"]):
            start = time.process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ctmm.fit_genes("~ C(celltype) * status", data=obs, expr=Y, nu=NU, tests=tests)
            spent = 1e3 * (time.process_time() - start) / genes
            times.setdefault(", ".join(tests) or "none", []).append(spent)
    least = {name: min(values) for name, values in times.items()}
    text = "; ".join(f"{name}: {value:.2f}" for name, value in least.items())
    extra = least["effects:status"] - least["none"]
    return (
        f"Milliseconds of CPU a gene by tests of a scan, 100 donors, 4 types, {genes} genes, the "
        f"least of five: {text}.  Effects cost {extra:.2f} ms."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--only", nargs="*", default=[*TABLES, "cost"])
    parser.add_argument("--lines", nargs=2, type=int, default=[0, 10**6])
    parser.add_argument("--errors", nargs="*", default=[*KINDS], choices=KINDS)
    args = parser.parse_args()
    before = OUT.read_text() if OUT.exists() else ""
    tables = {name: lines_before(before, name) for name in TABLES}
    last = before.partition("\n## Cost in a scan\n")[2].strip()

    def write() -> None:
        parts = [
            "# Effects of a condition: levels and power",
            f"Written by `effect_levels.py`, which says what is simulated; {args.genes} data sets "
            "a line, seeded by the setting and the number of the set; standard errors in brackets.",
        ]
        for name, rows in tables.items():
            if rows:
                table = bench_fit.markdown(pd.DataFrame(rows).fillna(""))
                parts += [f"## {name.capitalize()}", NOTES[name], table]
        OUT.write_text("\n\n".join([*parts, *(["## Cost in a scan", last] if last else [])]) + "\n")

    for name in [name for name in args.only if name in TABLES]:
        sizes = [args.genes * getattr(s, "times", 1) for s in TABLES[name]]
        heads = [head(s, genes) for s, genes in zip(TABLES[name], sizes, strict=True)]
        rows = [next((row for row in tables[name] if names.items() <= row.items()), {})
                for names in heads]  # fmt: skip
        for number in range(len(rows))[slice(*args.lines)]:
            rows[number] = rows[number] | line(
                name, TABLES[name][number], sizes[number], args.errors
            )
            sys.stderr.write(f"{name}: {rows[number]}\n")
            tables[name] = [row for row in rows if row]
            write()
    if "cost" in args.only:
        last = cost()
    write()


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
