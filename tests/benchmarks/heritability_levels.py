"""Levels and power of the tests of heritability, and heritabilities with their intervals.

    python tests/benchmarks/heritability_levels.py [--sets 500] [--keep FILE] [--only counts]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Sets are kept in a
file of their own as they come, round by round of all settings, the small ones first; a run goes on
where the last one ended, and writes ``heritability_levels.md`` beside this file of all there is:
settings that the file has fewer sets of than the table keep their line.

Four or eight cell types; e = .11 (shared) and W = .08 (of every type) between donors by the
environment, g and V by the kinship: a window of 100 variants in linkage disequilibrium
(autoregressive, .9), all with normal effects, or full sibs in fours.  10 to 120 cells a pair
(log-uniform); their variance is 15 times a lognormal variable of coefficient of variation .4 (mean
nu .55).  "Exact": nu is known.  "Measured": nu has errors of coefficient of variation .45 (chi2 of
10 df).  "Counts": Poisson counts of a mean of 2 exp(.6 times the donor's effects) a cell, nu from
the cells.  Fixed effects: every type and two covariates of donors.  "missing": 20 % of pairs.
"batches": 20 of donors, variance .1, a random effect.  "skewed": environment and noise of lognormal
law (sd of logarithms .8).  "two populations": allele frequencies differ (F_ST .05) and means differ
by 1, with the first two principal components of 1,000 other variants as covariates, of 10,000, or
with the population itself.

Beside the scores the tests by moments and jackknife of the same fit: one-sided t of g, F of V.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from ctmm_formula.engine import he
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.engine.noise import unbiased_square
from ctmm_formula.engine.relatedness import Kernel, KernelTerm
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.genetic_score import genetic_design, genetic_test
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.results.heritability import _parts, _ratio
from ctmm_formula.structures import resolve

OUT = Path(__file__).with_suffix(".md")
E, W, BATCH = 0.11, 0.08, 0.1
ALPHAS = (0.05, 0.01)
ROUNDS = (50, 150, 500)
"""Sets of all settings before any has more."""
VARIANTS = {"1,000 variants": 1000, "10,000 variants": 10000}
POPULATIONS = "two populations, "


class Setting(NamedTuple):
    """Donors, cell types, kinship, noise, what is special, genetic variance shared, of every type,
    and whether of the first type only."""

    N: int
    C: int = 4
    kinship: str = "window"
    noise: str = "measured"
    special: str = ""
    g: float = 0.0
    V: float = 0.0
    one: bool = False

    def __str__(self) -> str:
        parts = [f"{self.N} x {self.C}", self.kinship, self.noise]
        parts += [self.special] if self.special else []
        if self.g or self.V:
            parts += [f"g {self.g:g}", f"V {self.V:g}{' of the first' if self.one else ' each'}"]
        return ", ".join(parts)

    @property
    def specific(self) -> np.ndarray:
        """Genetic variance of every type beyond the shared."""
        return np.where(np.arange(self.C) > 0, 0.0 if self.one else self.V, self.V)


BASE = {"g": 0.13, "V": 0.04}
KINDS = ("exact", "measured", "counts")
NULL = [
    *(Setting(N, C, noise=kind)
      for N in (50, 100, 200, 500, 1000) for C in (4, 8) for kind in KINDS),
    *(Setting(N, kinship="sibs", noise=kind) for N in (200, 500) for kind in KINDS[1:]),
    *(Setting(200, noise=kind, special=special)
      for special in ("missing", "batches") for kind in KINDS[1:]),
    Setting(200, special="skewed"),
    *(Setting(200, special=POPULATIONS + by) for by in (*VARIANTS, "known")),
    Setting(500, special=POPULATIONS + "10,000 variants"),
    Setting(200, noise="counts", special=POPULATIONS + "10,000 variants"),
]  # fmt: skip
SHARED_ONLY = [
    *(Setting(N, kinship=kinship, noise=kind, g=0.13)
      for N in (200, 500) for kinship in ("window", "sibs") for kind in KINDS[1:]),
]  # fmt: skip
POWER = [
    *(Setting(N, noise=kind, **BASE) for N in (100, 200, 500) for kind in KINDS),
    Setting(200, 8, **BASE),
    Setting(200, kinship="sibs", **BASE),
    Setting(200, V=0.16, one=True),
]


def skewed(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Lognormal, of mean 0 and variance 1."""
    s = 0.8
    raw = np.exp(s * rng.normal(size=shape) - s * s / 2)
    return (raw - 1.0) / math.sqrt(math.exp(s * s) - 1.0)


def window(
    N: int, apart: bool, rng: np.random.Generator, m: int = 100, near: float = 0.9
) -> np.ndarray:
    """Standardised genotypes over the root of their number, (N, m)."""
    p = rng.uniform(0.1, 0.5, m)
    where = np.full((2, m), p)
    if apart:
        shape = (1 - 0.05) / 0.05
        where = np.clip(rng.beta(shape * p, shape * (1 - p), (2, m)), 0.02, 0.98)
    cut = stats.norm.ppf(where)[(np.arange(N) >= N // 2).astype(int)]
    G = np.zeros((N, m))
    for _ in range(2):
        z = rng.normal(size=(N, m))
        if near:
            for k in range(1, m):
                z[:, k] = near * z[:, k - 1] + math.sqrt(1 - near**2) * z[:, k]
        G += z < cut
    sd = G.std(axis=0)
    return ((G - G.mean(axis=0)) / np.where(sd > 0, sd, 1.0))[:, sd > 0] / math.sqrt((sd > 0).sum())


def measured(
    effects: np.ndarray, n: np.ndarray, setting: Setting, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """y, nu and nu2 (None but of counts) of pairs with these effects and numbers of cells."""
    if setting.noise != "counts":
        sd = math.sqrt(math.log(1.16))
        nu = 15.0 * np.exp(sd * rng.normal(size=len(n)) - sd * sd / 2) / n
        noise = skewed(n.shape, rng) if setting.special == "skewed" else rng.normal(size=len(n))
        y = effects + np.sqrt(nu) * noise
        return (
            y,
            nu * (rng.chisquare(10, len(n)) / 10 if setting.noise == "measured" else 1.0),
            None,
        )
    rate = 2.0 * np.exp(0.6 * effects)
    pair = np.repeat(np.arange(len(n)), n)
    x = rng.poisson(rate[pair]).astype(float)
    mean = np.bincount(pair, x) / n
    square, fourth = (np.bincount(pair, (x - mean[pair]) ** power) for power in (2, 4))
    return mean, square / (n - 1) / n, unbiased_square(n.astype(float), square, fourth)


def model_of(setting: Setting, rng: np.random.Generator) -> Model:
    """One data set."""
    N, C = setting.N, setting.C
    apart = setting.special.startswith(POPULATIONS)
    if setting.kinship == "window":
        root = window(N, apart, rng)
        kernel = Kernel(None, root)
    else:
        family = np.arange(N) // 4
        root = np.hstack([np.sqrt(0.5) * np.equal.outer(family, np.unique(family)),
                          np.sqrt(0.5) * np.eye(N)])  # fmt: skip
        kernel = Kernel(root @ root.T, None)
    covariates = rng.normal(size=(N, 2))
    draw = skewed if setting.special == "skewed" else lambda shape, r: r.normal(size=shape)
    effects = math.sqrt(E) * draw((N, 1), rng) + math.sqrt(W) * draw((N, C), rng)
    m = root.shape[1]
    effects += root @ (math.sqrt(setting.g) * rng.normal(size=(m, 1)))
    effects += root @ (np.sqrt(setting.specific) * rng.normal(size=(m, C)))
    random = []
    donor, celltype = np.divmod(np.arange(N * C), C)
    if setting.special == "batches":
        batch = rng.permutation(np.arange(N) % 20)
        effects += math.sqrt(BATCH) * rng.normal(size=20)[batch][:, None]
        random = [RandomComponent(batch[donor], np.ones(N * C))]
    if apart:
        population = (np.arange(N) >= N // 2).astype(float)
        effects += population[:, None]
        by = setting.special.removeprefix(POPULATIONS)
        if by in VARIANTS:
            others = window(N, True, rng, VARIANTS[by], 0.0)
            covariates = np.linalg.eigh(others @ others.T)[1][:, -2:]
        else:
            covariates[:, 0] = population
    n = np.round(np.exp(rng.uniform(math.log(10), math.log(120), N * C))).astype(int)
    y, nu, nu2 = measured(effects[donor, celltype], n, setting, rng)
    kept = np.ones(N * C, dtype=bool)
    if setting.special == "missing":
        kept = (rng.random(N * C) > 0.2) | (celltype == donor % C)
    H = np.eye(C)[celltype]
    X = np.hstack([H, covariates[donor]])
    random = [RandomComponent(codes[kept], values[kept]) for codes, values in random]
    basis = resolve("free", tuple("ABCDEFGH"[:C])).basis
    return build_model(
        y[kept], nu[kept], X[kept], H[kept], donor[kept], basis, random, n[kept].astype(float),
        None if nu2 is None else nu2[kept], kinship=[KernelTerm(kernel, basis)],
    )  # fmt: skip


COLUMNS = ["any", "shared", "specific", "types", "t of g", "F of V", "equal means"]


def one_set(setting: Setting, seed: list[int]) -> tuple[list[list[float]], list[float]]:
    """P values of one data set, those of several tests in a list; h2, whether it is covered."""
    model = model_of(setting, np.random.default_rng(seed))
    try:
        test = genetic_test(model, genetic_design(model, 0, whole=False))
        at = he.fit(model)
        run = jackknife(model, at)
    except CTMMError:
        return [[math.nan]] * len(COLUMNS), [math.nan] * 2
    p, K, basis = model.X.shape[1], len(model.S), model.basis
    df, k, C = model.n_donors - p - len(at.theta), len(basis), setting.C
    cov = run.cov[p:, p:]
    g = stats.t.sf(at.theta[K] / math.sqrt(cov[K, K]), df)
    apart = np.hstack([np.ones((C - 1, 1)), -np.eye(C - 1), np.zeros((C - 1, p - C))])
    means = apart @ at.beta
    errors = apart @ (run.cov[:p, :p] + he.between_donors(model, at.theta)) @ apart.T
    equal = stats.f.sf(means @ np.linalg.solve(errors, means) / (C - 1), C - 1, df)
    V = at.theta[K + 1 :]
    F = V @ np.linalg.solve(cov[K + 1 :, K + 1 :], V) / len(V)
    scale = model.kinship[0].kernel.scale
    total = np.zeros((2, len(at.theta)))
    total[1, :k] = _parts(basis)[2]
    total[:, K:] = scale * _parts(basis)[2]
    h2, _, low, high, _ = _ratio(*total, at.theta, cov, stats.t.isf(0.025, df))
    genetic = scale * (setting.g + setting.specific.mean())
    truth = genetic / (genetic + E + W)
    covered = math.nan if math.isnan(h2) else float(low <= truth <= high)
    logs = [[test.any], [test.shared.log], [test.specific], [one.log for one in test.types]]
    scores = [[math.exp(log) for log in own] for own in logs]
    F = stats.f.sf(F, len(V), df)
    return [*scores, [float(g)], [float(F)], [float(equal)]], [float(h2), covered]


def line(setting: Setting, results: list[tuple[list[list[float]], list[float]]]) -> str:
    """A line of the table: rates at both levels, with standard errors of the first."""
    cells, sets = [], len(results)
    for column in range(len(COLUMNS)):
        p = np.array([one[column] for one, _ in results if not math.isnan(one[0][0])])
        hits = [np.nanmean(p < alpha, axis=0) for alpha in ALPHAS]
        # tests of one data set depend on each other: its errors are those of their mean
        se = (p < ALPHAS[0]).mean(axis=1).std(ddof=1) / math.sqrt(len(p))
        spread = f" ({hits[0].min():.3f}-{hits[0].max():.3f})" if p.shape[1] > 1 else ""
        cells.append(f"{hits[0].mean():.3f}{spread} ± {se:.3f}; {hits[1].mean():.3f}")
    h2 = np.array([own for _, own in results])
    known = np.isfinite(h2[:, 0])
    if setting.noise != "counts" and known.any():
        low, middle, high = np.percentile(h2[known, 0], [25, 50, 75])
        text = f"{middle:.3f} ({low:.3f}, {high:.3f}); {h2[known, 1].mean():.3f}"
        cells.append(f"{text}; {known.mean():.2f}")
    else:
        cells.append("")
    return f"| {setting} | {sets} | {' | '.join(cells)} |"


PARTS = {
    "Level: nothing is genetic": NULL,
    "Level of specific: g alone": SHARED_ONLY,
    "Power": POWER,
}
TITLE = """# Tests of heritability

Written by `heritability_levels.py`, seeded by setting and number of the data set.  Rates of
rejection at .05 (of the cell types their mean and range) with standard error, then at .01.  *any*,
*shared*, *specific* and *types* are the scores of `test_heritability()`, of different donors only,
by the law of many donors as in scans; *t of g* and *F of V* the tests of the same variances by
moments and jackknife, *equal means* (which is true) that of fixed effects.  But of counts the last
column has median and quartiles of the total h2 by moments where the variance between donors is
clearly positive, how often its 95 % interval holds the true one, and the share of sets that have
one.  Settings are donors x cell types, kinship, noise.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=500)
    parser.add_argument("--keep", type=Path, default=OUT.with_suffix(".sets.jsonl"))
    parser.add_argument("--only", default="", help="part of the settings' names")
    options = parser.parse_args()
    every = [setting for own in PARTS.values() for setting in own]
    every = sorted((s for s in every if options.only in str(s)), key=lambda s: s.N * s.C)
    done = kept(options.keep)
    for size in [*(size for size in ROUNDS if size < options.sets), options.sets]:
        for setting in every:
            for number in range(len(done[str(setting)]), size):
                seed = list(f"{setting} {number}".encode())
                found = one_set(setting, seed)
                done[str(setting)].append(found)
                with options.keep.open("a") as file:
                    file.write(json.dumps([str(setting), *found]) + "\n")
            OUT.write_text("\n".join(text_of(done, lines_of(OUT))))


def kept(path: Path) -> defaultdict[str, list]:
    """Sets of every setting in a file, in their order."""
    done: defaultdict[str, list] = defaultdict(list)
    for text in path.read_text().splitlines() if path.exists() else []:
        name, *found = json.loads(text)
        done[name].append(found)
    return done


def lines_of(path: Path) -> dict[str, tuple[int, str]]:
    """Sets and line of every setting in a table."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [(text.split(" | "), text) for text in lines if text.startswith("| ")]
    return {cells[0][2:]: (int(cells[1]), text) for cells, text in rows if cells[1].isdigit()}


def text_of(done: dict[str, list], before: dict[str, tuple[int, str]]) -> Iterator[str]:
    """The whole file, with the lines of before where they are of more sets."""
    yield TITLE
    for title, settings in PARTS.items():
        head = ["setting", "sets", *COLUMNS, "h2; covered; has one"]
        yield from (f"## {title}\n", f"| {' | '.join(head)} |", "|" + "---|" * len(head))
        for one in settings:
            sets, kept_line = before.get(str(one), (1, ""))
            if len(done[str(one)]) >= max(sets, 2):
                yield line(one, done[str(one)])
            elif kept_line:
                yield kept_line
        yield ""


if __name__ == "__main__":
    main()
