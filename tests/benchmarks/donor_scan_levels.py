"""Scans of variables of donors: levels, power beside other phenotypes, cost; outliers.

    python tests/benchmarks/donor_scan_levels.py [--sets 300] [--only levels ...]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``donor_scan_levels.md`` beside this file.

A data set is one gene, drawn by ``effect_levels.py`` (normal cells, fitted by REML) or
``count_levels.py`` (counts of cells, fitted by the robust default); 40 variables of every kind are
scanned: standard normal, lognormal, dosages of alleles of frequency .25 and .05, and a group of a
fifth of the donors.  With heavy tails the effects of donors are t with 5 degrees of freedom, or
lognormal (sd of logarithms .8), of the same variance.

Power: dosages, frequency .3, with an effect in the first of four types or in all.  Beside the
scan: least squares of each type's pseudobulk, weighted by 1 / (A + nu) of the fit or not, and of
predicted expression (BLUPs).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import bench_fit
import count_levels
import effect_levels
import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import stats

from ctmm_formula.engine.blup import effects as predicted
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import Model, build_model
from ctmm_formula.inference.donor_scores import (
    deletion,
    donor_scores,
    scan_variables,
    weighed_by,
)

OUT = Path(__file__).with_suffix(".md")
KINDS = ("normal", "lognormal", "dosage .25", "dosage .05", "a fifth")
VARIABLES = 40
LEVELS = (0.05, 0.01)


@dataclass(frozen=True)
class Case:
    """One line: donors, mean count of a cell (0: normal cells), and what is unusual."""

    donors: int
    mean: float = 0.0
    missing: float = 0.0
    batches: int = 0
    tails: str = "normal"
    first: float = 0.0
    everywhere: float = 0.0

    @property
    def label(self) -> str:
        """The line in words."""
        words = {
            "missing": "{:.0%} of pairs missing", "batches": "{:d} batches",
            "first": "effect {:g} in one type", "everywhere": "effect {:g} in all",
        }  # fmt: skip
        given = [(text, getattr(self, name)) for name, text in words.items()]
        cells = f"counts, {self.mean:g} a cell" if self.mean else "normal cells"
        donors = [f"{self.tails} donors"] * (self.tails != "normal")
        return ", ".join([cells, *donors, *(text.format(v) for text, v in given if v)])


CASES = {
    "levels": [
        *(Case(n) for n in (20, 50, 100)), *(Case(n, m) for n, m in product((20, 50), (0.1, 2.0))),
        Case(100, 0.5), Case(50, missing=0.15), Case(50, 0.5, missing=0.15), Case(48, batches=12),
        Case(48, 0.5, batches=12), Case(50, tails="t5"), Case(50, tails="lognormal"),
        Case(100, tails="lognormal"),
    ],
    "power": [
        Case(100, missing=0.1, first=0.3), Case(100, missing=0.1, first=0.5),
        Case(100, missing=0.1, everywhere=0.15), Case(100, 0.5, missing=0.1, first=0.3),
    ],
    "outliers": [Case(100, missing=0.1), Case(100, 2.0, missing=0.1)],
}  # fmt: skip


def drawn(case: Case, number: int) -> tuple[Model, np.ndarray]:
    """A gene without fixed effects but the means of its types, and dosages that act on it."""
    rng = np.random.default_rng([case.donors, number, 17])
    g = rng.binomial(2, 0.3, case.donors).astype(float)
    own = np.full(4, case.everywhere)
    own[0] += case.first
    if case.mean:
        s = count_levels.Setting(
            case.donors, 4, case.mean, "mid", missing=case.missing, batches=case.batches
        )
        m = count_levels.gene(s, number).model
    else:
        m = effect_levels.normal(
            effect_levels.Normal(
                case.donors, 4, missing=case.missing, batches=case.batches, tails=case.tails
            ),
            number,
        )
    H = m.H
    y = m.y + (H @ own) * g[m.donors[m.row_donor]]
    back = np.argsort(m.order)  # of rows as they were given
    random = [type(one)(one.codes[back], one.values[back]) for one in m.random]
    model = build_model(
        y[back], m.nu[back], H[back], H[back], m.donors[m.row_donor][back], m.basis, random,
        m.n_cells[back], None if m.nu2 is None else m.nu2[back],
    )  # fmt: skip
    return model, g


def variables(rng: np.random.Generator, N: int) -> np.ndarray:
    """Variables of all kinds, (N, kinds * VARIABLES)."""
    shape = (N, VARIABLES)
    fifth = [rng.permutation(N) < N // 5 for _ in range(VARIABLES)]
    return np.hstack(
        [rng.normal(size=shape), rng.lognormal(0.0, 1.0, shape), rng.binomial(2, 0.25, shape),
         rng.binomial(2, 0.05, shape), np.array(fifth, dtype=float).T]
    )  # fmt: skip


def weighed(case: Case, model: Model):
    """The fit and the covariance that it weighs by."""
    robust = case.mean > 0
    found = estimate(model, "robust" if robust else "reml", Domain("noise", 0.1))
    return found, weighed_by(model, found.theta, robust)


def levels(case: Case, number: int) -> dict[str, np.ndarray]:
    """P values (kinds, variables) of one data set."""
    model, _ = drawn(case, number)
    _, pre = weighed(case, model)
    G = variables(np.random.default_rng([number, case.donors]), case.donors)
    found = scan_variables(donor_scores(pre), G[model.donors])
    shape = (len(KINDS), -1)
    return {
        "types": found.p.reshape(shape), "mean": found.mean[:, 2].reshape(shape),
        "all": found.joint[:, 0].reshape(shape), "differences": found.joint[:, 1].reshape(shape),
    }  # fmt: skip


def regression(y: np.ndarray, g: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """Effect and p value of g by least squares with an intercept, weights w."""
    root = np.sqrt(w)
    X = np.column_stack([np.ones(len(g)), g]) * root[:, None]
    b, rss, _, _ = np.linalg.lstsq(X, y * root, rcond=None)
    df = len(g) - 2
    se = np.sqrt(rss[0] / df * np.linalg.inv(X.T @ X)[1, 1])
    return b[1], 2 * stats.t.sf(abs(b[1] / se), df)


def power(case: Case, number: int) -> dict[str, np.ndarray]:
    """P values and effects (types,) of one variable by every phenotype."""
    model, g = drawn(case, number)
    fit, pre = weighed(case, model)
    scan = scan_variables(donor_scores(pre), g[model.donors][:, None])
    out = {"scan": scan.p[0], "scan effect": scan.effect[0],
           "joint": np.r_[scan.mean[0, 2], scan.joint[0]]}  # fmt: skip
    blup = predicted(model, fit.theta, fit.beta, np.array([0])).fitted
    A = np.diag(model.effect_covariance(fit.theta))
    of = g[model.donors[model.row_donor]]
    ways = {"OLS": (model.y, None), "WLS": (model.y, pre.model.noise), "BLUP": (blup, None)}
    for name, (y, noise) in ways.items():
        found = []
        for c in range(4):
            at = model.H[:, c] == 1.0
            w = np.ones(at.sum()) if noise is None else 1.0 / (max(A[c], 0.0) + noise[at])
            found.append(regression(y[at], of[at], w))
        out |= {f"{name} effect": np.array(found)[:, 0], name: np.array(found)[:, 1]}
    return out


def outliers(case: Case, number: int) -> dict[str, np.ndarray]:
    """Deletion residuals, raw z scores, numbers of cells, p values of donors."""
    model, _ = drawn(case, number)
    _, pre = weighed(case, model)
    found = deletion(pre)
    z = model.y.copy()
    for c in range(4):
        at = model.H[:, c] == 1.0
        z[at] = stats.zscore(z[at], ddof=1)
    few = model.n_cells <= np.quantile(model.n_cells, 0.2)
    return {
        "t": found.residual, "z": z, "few": few, "donor": stats.chi2.sf(found.chi2, found.df)
    }  # fmt: skip


def rate(p: np.ndarray, level: float) -> str:
    """Share of p below a level, over sets in the first axis, with the error of their mean."""
    share = np.nanmean(np.where(np.isnan(p), np.nan, p < level).reshape(len(p), -1), axis=1)
    return f"{share.mean():.3f} ± {share.std(ddof=1) / np.sqrt(len(share)):.3f}"


def line(name: str, case: Case, sets: int, workers: int) -> list[dict[str, object]]:
    """Rows of a table."""
    ask = {"levels": levels, "power": power, "outliers": outliers}[name]
    found = Parallel(workers)(delayed(ask)(case, number) for number in range(sets))
    head = {"donors": case.donors, "data": case.label}
    if name == "levels":
        rows = []
        for k, kind in enumerate(KINDS):
            cells = {}
            for test in found[0]:
                p = np.array([one[test][k] for one in found])
                cells[test] = f"{rate(p, 0.05)}; {np.nanmean(p[~np.isnan(p)] < 0.01):.4f}"
            rows.append(head | {"variable": kind} | cells)
        return rows
    whole = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    if name == "outliers":
        t, z, few = (whole[key] for key in ("t", "z", "few"))
        return [
            head | {
                "abs(t) > 3": f"{(abs(t) > 3).mean():.4f}",
                "few cells": f"{(abs(t) > 3)[few].mean():.4f}",
                "abs(z) > 3": f"{(abs(z) > 3).mean():.4f}",
                "of z, few": f"{(abs(z) > 3)[few].mean():.4f}",
                "share of extreme z with few cells": f"{few[abs(z) > 3].mean():.2f}",
                "donors p < .001": f"{(whole['donor'] < 0.001).mean():.4f}",
            }
        ]  # fmt: skip
    cells = {}
    for way in ("scan", "WLS", "OLS", "BLUP"):
        p = np.array([one[way] for one in found])
        b = np.array([one[f"{way} effect"] for one in found])
        with_effect = slice(0, 1) if case.first else slice(0, 4)
        cells[f"{way}, with effect"] = rate(p[:, with_effect], 0.05)
        if case.first:
            cells[f"{way}, without"] = rate(p[:, 1:], 0.05)
        cells[f"{way}: mean estimate"] = f"{b[:, with_effect].mean():.3f}"
    joint = np.array([one["joint"] for one in found])
    names = ("mean", "all", "differences")
    return [head | cells | {n: rate(joint[:, k], 0.05) for k, n in enumerate(names)}]


def cost() -> str:
    """Microseconds of CPU a variable."""
    rng = np.random.default_rng(1)
    texts = []
    for donors in (100, 1000):
        model, _ = drawn(Case(donors), 0)
        _, pre = weighed(Case(donors), model)
        G = rng.binomial(2, 0.3, (donors, 20_000)).astype(float)
        times = []
        for _ in range(3):
            start = time.process_time()
            scan_variables(donor_scores(pre), G)
            times.append(1e6 * (time.process_time() - start) / G.shape[1])
        texts.append(f"{donors} donors {min(times):.1f}")
    return f"Microseconds of CPU a variable, 4 types, 20,000 dosages: {'; '.join(texts)}."


NOTES = {
    "levels": "Rates at .05 with standard errors; at .01.",
    "power": "Rates at .05; the mean estimate in the types with an effect.",
    "outliers": "No outlier was made: a standard normal variable is beyond 3 in .0027.  *few*: the "
    "fifth of the pairs with fewest cells; z: raw z scores of each type.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[*CASES, "cost"])
    args = parser.parse_args()
    parts = [
        "# Scans of variables of donors",
        f"Written by `donor_scan_levels.py`, which says what is simulated; {args.sets} data sets a "
        "line, seeded by the setting and the number of the set.",
    ]
    for name in [name for name in args.only if name in CASES]:
        rows = []
        for case in CASES[name]:
            rows += line(name, case, args.sets, args.workers)
        table = bench_fit.markdown(pd.DataFrame(rows).fillna(""))
        parts += [f"## {name.capitalize()}", NOTES[name], table]
    if "cost" in args.only:
        parts += ["## Cost", cost()]
    OUT.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
