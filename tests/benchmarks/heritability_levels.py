"""Levels and power of the tests of heritability, and heritabilities with their intervals.

    python tests/benchmarks/heritability_levels.py [--sets 300] [--only counts]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``heritability_levels.md`` beside this file, a line at a time; lines that are there are kept.

Four cell types; e = .11 (shared) and W = .08 (of every type) between donors by the environment, g
and V by the kinship: a window of 100 variants in linkage disequilibrium (autoregressive, .9), all
with normal effects, or full sibs in fours.  "Gaussian": 10 to 120 cells a pair (log-uniform), the
variance between cells 15 times a lognormal variable of coefficient of variation .4 (mean nu .55),
nu the variance of that many Gaussian cells over their number.  "Counts": Poisson counts of a mean
of 2 exp(.6 times the donor's effects) a cell, nu from the cells.  Fixed effects: every type and two
covariates of donors.  "missing": 20 % of pairs.  "batches": 20 of donors, variance .1, a random
effect.  "skewed": environment and Gaussian noise of lognormal law (sd of logarithms .8).
"structure": two populations whose allele frequencies differ (F_ST .05) and whose means differ by 1,
with the first two principal components of 1,000 other variants as covariates.

Beside the scores the tests by moments and jackknife of the same fit: one-sided t of g, F of V.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from group_levels import sections
from scipy import stats

from ctmm_formula.engine import he
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.engine.noise import unbiased_square
from ctmm_formula.engine.relatedness import Kernel, KernelTerm
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.genetic_score import genetic_design, genetic_test
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.results.heritability import _parts, _ratio
from ctmm_formula.structures import resolve

OUT = Path(__file__).with_suffix(".md")
TYPES = ("A", "B", "C", "D")
BASIS = resolve("free", TYPES).basis
E, W, BATCH = 0.11, 0.08, 0.1
ALPHAS = (0.05, 0.01)


class Setting(NamedTuple):
    """Donors, kinship, cells, what is special, genetic variance shared and of every type."""

    N: int
    kinship: str = "window"
    cells: str = "Gaussian"
    special: str = ""
    g: float = 0.0
    V: tuple[float, float, float, float] = (0.0,) * 4

    @property
    def name(self) -> str:
        parts = [str(self.N), self.kinship, self.cells, *([self.special] if self.special else [])]
        return ", ".join(parts)

    @property
    def truth(self) -> str:
        V = f"{self.V[0]:g} each" if len(set(self.V)) == 1 else f"{self.V[0]:g}, 0, 0, 0"
        return f"g {self.g:g}, V {V}"


SAME = (0.04,) * 4
KINDS = ("Gaussian", "counts")
NULL = [
    *(Setting(N, "window", cells) for N in (50, 100, 200, 500) for cells in KINDS),
    *(Setting(200, "sibs", cells) for cells in KINDS),
    *(
        Setting(200, "window", "Gaussian", special)
        for special in ("missing", "batches", "skewed", "structure")
    ),
]
SHARED_ONLY = [
    Setting(200, kinship, cells, g=0.13) for kinship in ("window", "sibs") for cells in KINDS
]
POWER = [
    *(Setting(N, "window", cells, g=0.13, V=SAME) for N in (100, 200) for cells in KINDS),
    Setting(200, "sibs", "Gaussian", g=0.13, V=SAME),
    Setting(200, "window", "Gaussian", g=0.0, V=(0.16, 0.0, 0.0, 0.0)),
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
        for k in range(1, m):
            z[:, k] = near * z[:, k - 1] + math.sqrt(1 - near**2) * z[:, k]
        G += z < cut
    sd = G.std(axis=0)
    return ((G - G.mean(axis=0)) / np.where(sd > 0, sd, 1.0))[:, sd > 0] / math.sqrt((sd > 0).sum())


def measured(
    effects: np.ndarray, n: np.ndarray, setting: Setting, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """y, nu and nu2 (None for Gaussian cells) of pairs with these effects and numbers of cells."""
    if setting.cells == "Gaussian":
        sd = math.sqrt(math.log(1.16))
        s2 = 15.0 * np.exp(sd * rng.normal(size=len(n)) - sd * sd / 2)
        nu = s2 / n * rng.chisquare(n - 1) / (n - 1)
        noise = skewed(n.shape, rng) if setting.special == "skewed" else rng.normal(size=len(n))
        return effects + np.sqrt(s2 / n) * noise, nu, None
    rate = 2.0 * np.exp(0.6 * effects)
    pair = np.repeat(np.arange(len(n)), n)
    x = rng.poisson(rate[pair]).astype(float)
    mean = np.bincount(pair, x) / n
    square, fourth = (np.bincount(pair, (x - mean[pair]) ** power) for power in (2, 4))
    return mean, square / (n - 1) / n, unbiased_square(n.astype(float), square, fourth)


def model_of(setting: Setting, rng: np.random.Generator):
    """One data set."""
    N, C = setting.N, len(TYPES)
    if setting.kinship == "window":
        root = window(N, setting.special == "structure", rng)
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
    effects += root @ (np.sqrt(setting.V) * rng.normal(size=(m, C)))
    random = []
    donor, celltype = np.divmod(np.arange(N * C), C)
    if setting.special == "batches":
        batch = rng.permutation(np.arange(N) % 20)
        effects += math.sqrt(BATCH) * rng.normal(size=20)[batch][:, None]
        random = [RandomComponent(batch[donor], np.ones(N * C))]
    if setting.special == "structure":
        effects += (np.arange(N) >= N // 2)[:, None]
        others = window(N, True, rng, 1000, 0.0)
        covariates = np.linalg.svd(others, full_matrices=False)[0][:, :2]
    n = np.round(np.exp(rng.uniform(math.log(10), math.log(120), N * C))).astype(int)
    y, nu, nu2 = measured(effects[donor, celltype], n, setting, rng)
    kept = np.ones(N * C, dtype=bool)
    if setting.special == "missing":
        kept = (rng.random(N * C) > 0.2) | (celltype == donor % C)
    H = np.eye(C)[celltype]
    X = np.hstack([H, covariates[donor]])
    random = [RandomComponent(codes[kept], values[kept]) for codes, values in random]
    return build_model(
        y[kept], nu[kept], X[kept], H[kept], donor[kept], BASIS, random, n[kept].astype(float),
        None if nu2 is None else nu2[kept], kinship=[KernelTerm(kernel, BASIS)],
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
    p, K, k = model.X.shape[1], len(model.S), len(BASIS)
    df = model.n_donors - p - len(at.theta)
    cov = run.cov[p:, p:]
    g = stats.t.sf(at.theta[K] / math.sqrt(cov[K, K]), df)
    apart = np.hstack([np.ones((3, 1)), -np.eye(3), np.zeros((3, p - 4))])
    means = apart @ at.beta
    errors = apart @ (run.cov[:p, :p] + he.between_donors(model, at.theta)) @ apart.T
    equal = stats.f.sf(means @ np.linalg.solve(errors, means) / 3, 3, df)
    V = at.theta[K + 1 :]
    F = V @ np.linalg.solve(cov[K + 1 :, K + 1 :], V) / len(V)
    scale = model.kinship[0].kernel.scale
    total = np.zeros((2, len(at.theta)))
    total[1, :k] = _parts(BASIS)[2]
    total[:, K:] = scale * _parts(BASIS)[2]
    h2, _, low, high, _ = _ratio(*total, at.theta, cov, stats.t.isf(0.025, df))
    genetic = scale * (setting.g + np.mean(setting.V))
    truth = genetic / (genetic + E + W)
    covered = math.nan if math.isnan(h2) else float(low <= truth <= high)
    logs = [[test.any], [test.shared.log], [test.specific], [one.log for one in test.types]]
    scores = [[math.exp(log) for log in own] for own in logs]
    F = stats.f.sf(F, len(V), df)
    return [*scores, [float(g)], [float(F)], [float(equal)]], [float(h2), covered]


def line(setting: Setting, sets: int, number: int) -> str:
    """A line of the table: rates at both levels, with standard errors of the first."""
    results = [one_set(setting, [number, k]) for k in range(sets)]
    cells = []
    for column in range(len(COLUMNS)):
        p = np.array([one[column] for one, _ in results])
        hits = [np.nanmean(p < alpha, axis=0) for alpha in ALPHAS]
        # tests of one data set depend on each other: its errors are those of their mean
        se = (p < ALPHAS[0]).mean(axis=1).std(ddof=1) / math.sqrt(sets)
        spread = f" ({hits[0].min():.3f}-{hits[0].max():.3f})" if p.shape[1] > 1 else ""
        cells.append(f"{hits[0].mean():.3f}{spread} ± {se:.3f}; {hits[1].mean():.3f}")
    h2 = np.array([own for _, own in results])
    known = np.isfinite(h2[:, 0])
    if setting.cells == "Gaussian" and known.any():
        low, middle, high = np.percentile(h2[known, 0], [25, 50, 75])
        text = f"{middle:.3f} ({low:.3f}, {high:.3f}); {h2[known, 1].mean():.3f}"
        cells.append(f"{text}; {known.mean():.2f}")
    else:
        cells.append("")
    return f"| {label(setting)} | {sets} | {' | '.join(cells)} |"


def label(setting: Setting) -> str:
    """The setting, and what is genetic in it."""
    genetic = f"; {setting.truth}" if setting.g or any(setting.V) else ""
    return f"{setting.name}{genetic}"


PARTS = {
    "Level: nothing is genetic": NULL,
    "Level of specific: g alone": SHARED_ONLY,
    "Power": POWER,
}
TITLE = """# Tests of heritability

Written by `heritability_levels.py`, seeded by setting and number of the data set.  Rates of
rejection at .05 (of the four types their mean and range) with standard error, then at .01.  *any*,
*shared*, *specific* and *types* are the scores of `test_heritability()`, of different donors only,
by the law of many donors as in scans; *t of g* and *F of V* the tests of the same variances by
moments and jackknife, *equal means* (which is true) that of fixed effects.  Of Gaussian cells the
last column has median and quartiles of the total h2 where the variance between donors is clearly
positive, how often its 95 % interval holds the true one, and the share of sets that have one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--only", default="", help="part of the settings' names")
    options = parser.parse_args()
    known = OUT.read_text().splitlines() if OUT.exists() else []
    done = {text.split("|")[1].strip() + section: text for section, text in sections(known)}
    for number, (title, settings) in enumerate(PARTS.items()):
        for k, setting in enumerate(settings):
            key = label(setting) + title
            if key not in done and options.only in key:
                done[key] = line(setting, options.sets, 100 * number + k)
                OUT.write_text(text_of(done))


def text_of(done: dict[str, str]) -> str:
    """The whole file."""
    parts = [TITLE]
    for title, settings in PARTS.items():
        rows = [done[label(s) + title] for s in settings if label(s) + title in done]
        head = ["setting", "sets", *COLUMNS, "h2; covered; has one"]
        parts += [f"## {title}\n", f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows, ""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
