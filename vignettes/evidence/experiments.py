"""What is simulated for the evidence: settings as data, and how one replicate of each is drawn.

Tests are made in groups, since some cost a hundred times others; a group of a setting is counted
in chunks of :data:`CHUNK` replicates, the same data for every group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import combinations
import numpy as np

from ctmm_formula.planning import PER_STUDY, pvalues_of, simulate_setting
from ctmm_formula.simulate import (
    SimulatedGenes,
    bootstrap_cells,
    negative_binomial_cells,
    simulate_cells,
    simulate_design,
)

CHUNK = 100
"""Replicates of a unit of work; PER_STUDY of them share their donors."""
SEED = 20241123

GROUPS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "likelihood": (["lrt", "wald"], {}),
    "ml": (["ml:lrt", "ml:wald"], {}),
    "moments": (["he:jackknife", "he:mean_jackknife"], {}),
    "jackknife": (["jackknife", "mean_jackknife"], {}),
    "one-step": (["jackknife"], {"one_step": True}),
    "score": (["score", "score_celltype"], {}),
    "combined": (["score_cauchy"], {}),
    "means": (["mean_jackknife"], {}),
    "robust": (["mean", "robust:jackknife"], {}),
}
"""Group -> tests and options of fit_genes."""


@dataclass(frozen=True)
class Experiment:
    """One table of positive rates.

    Attributes
    ----------
    number : int
        Of its stream of random numbers.
    settings : list of dict
    draw : callable
        (setting, count, rng) -> SimulatedGenes.
    aim : callable
        (setting, group) -> replicates; 0 where a group is not run.
    random : callable
        setting -> random effects of the fit.
    """

    number: int
    settings: list[dict[str, Any]]
    draw: Callable[[dict[str, Any], int, np.random.Generator], SimulatedGenes]
    aim: Callable[[dict[str, Any], str], int]
    random: Callable[[dict[str, Any]], str | None] = field(default=lambda setting: None)

    def units(self, full: bool) -> Iterator[tuple[int, str, int]]:
        """(setting, group, chunk): all settings once before any gets its second chunk.

        The largest studies, which cost as much as all others together, come last of each round.
        """
        times = 4 if full else 1
        aims = {
            (k, group): -(-self.aim(setting, group) * times // CHUNK)
            for k, setting in enumerate(self.settings)
            for group in GROUPS
        }
        ordered = sorted(aims.items(), key=lambda at: _large(self.settings[at[0][0]], at[0][1]))
        for chunk in range(max(aims.values())):
            for (k, group), chunks in ordered:
                if chunk < chunks:
                    yield k, group, chunk

    def pvalues(self, k: int, group: str, chunk: int) -> dict[str, np.ndarray]:
        """P values of one unit of work."""
        setting, (tests, options) = self.settings[k], GROUPS[group]
        parts = []
        for study in range(CHUNK // PER_STUDY):
            seed = np.random.SeedSequence(SEED, spawn_key=(self.number, k, chunk, study))
            genes = self.draw(setting, PER_STUDY, np.random.default_rng(seed))
            parts.append(pvalues_of(genes, tests, random=self.random(setting), **options))
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if group == "one-step":
            return {"jackknife, one step": found["jackknife"]}
        if group == "combined":
            return {"score_combined": found["score_cauchy"]}
        if group != "score":
            return found
        types = np.array([found[name] for name in found if name.startswith("score[")])
        more = {name: combine(types) for name, combine in combinations.RULES.items()}
        first, last = types[0], types[-1]
        ends = {"score[first]": first, "score[last]": last}
        return {"score": found["score"], **ends, **more}


def _large(setting: dict[str, Any], group: str) -> bool:
    N, C = setting.get("n_donors", 0), setting.get("celltypes", 0)
    return C >= 8 and (N >= 300 or group == "jackknife")


# ---------------------------------------------------------------------------------------------
# figure 1: positive rates by number of donors


def _figure1() -> list[dict[str, Any]]:
    out = [
        {"design": f"{version}/{model}", "kind": kind, "n_donors": N}
        for version, model, kind, N in product(
            ("published", "preprint"), ("hom", "free"), ("ctp", "op"), (20, 50, 100, 300)
        )
    ]
    out += [{"design": "published/iid", "kind": "ctp", "n_donors": N} for N in (20, 50, 100)]
    return out + [
        {"design": f"published/{model}-{C}", "kind": "ctp", "n_donors": 100}
        for model in ("hom", "free")
        for C in (8, 12)
    ]


def _aim1(setting: dict[str, Any], group: str) -> int:
    N, more = setting["n_donors"], "-" in setting["design"]  # with 8 or 12 cell types
    published = setting["design"].startswith("published")
    if group in ("one-step", "combined", "means", "robust"):
        return 0
    if group == "jackknife":
        aims = {20: 1000, 50: 600, 100: 300, 300: 100 if published else 0}
        return 100 if more else aims[N] // (1 if published else 3)
    if more and group != "moments":
        return 100
    return 300 if group == "score" and N == 300 else 1000


def _draw_design(setting: dict[str, Any], count: int, rng: np.random.Generator) -> SimulatedGenes:
    options = {name: value for name, value in setting.items() if name != "design"}
    return simulate_design(setting["design"], count, rng=rng, **options)


# ---------------------------------------------------------------------------------------------
# figure 2: by errors of the noise variances, by V of the first cell type


def _figure2() -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [
        {"design": "ipsc/hom", "sigma2": sigma2, "b": b}
        for sigma2 in (0.25, 0.01)
        for b in (None, 20.0, 10.0, 5.0, 3.0, 2.0)
    ]
    out.append({"design": "ipsc/free", "V": (0.0,) * 4})
    return out + [{"design": "ipsc/free", "V": (v, 0.1, 0.1, 0.1)} for v in (0.05, 0.1, 0.2, 0.5)]


def _aim2(setting: dict[str, Any], group: str) -> int:
    return {"one-step": 0, "ml": 0, "combined": 0, "means": 0, "robust": 0}.get(group, 1000)


# ---------------------------------------------------------------------------------------------
# calibration and power

_STUDY: dict[str, Any] = {
    "sigma2": 0.25, "beta": 0.0, "cells": 45.0, "cell_variance": 3.0, "cell_cv": 0.4,
    "missing": 0.0, "batch_variance": 0.1, "kind": "ctp", "structure": "free",
}  # fmt: skip
HEAVY = 6.0
"""Excess kurtosis of heavy-tailed cells."""


def _calibration() -> list[dict[str, Any]]:
    names = ("n_donors", "celltypes", "noise_cv", "fold", "n_batches", "kurtosis")
    grid = product((20, 50, 100, 300), (4, 8), (0.0, 0.2, 0.33, 0.45), (1.0, 10.0), (0, 8),
                   (None, HEAVY))  # fmt: skip
    return [dict(zip(names, values, strict=True)) for values in grid]


EFFECTS: dict[str, tuple[float, ...]] = {
    "one type": (0.08, 0.0, 0.0, 0.0),
    "mostly one": (0.05, 0.02, 0.02, 0.02),
    "all alike": (0.03, 0.03, 0.03, 0.03),
}


def _power() -> list[dict[str, Any]]:
    names = ("n_donors", "celltypes", "noise_cv", "fold", "effect")
    grid = product((20, 50, 100), (4, 8), (0.0, 0.33), (1.0, 10.0), EFFECTS)
    return [dict(zip(names, values, strict=True)) for values in grid]


def _draw_study(setting: dict[str, Any], count: int, rng: np.random.Generator) -> SimulatedGenes:
    whole = _STUDY | {"n_batches": 0, "kurtosis": None} | setting
    V = EFFECTS[setting["effect"]] if "effect" in setting else (0.0,)
    whole["V"] = tuple(float(v) for v in np.resize(V, whole["celltypes"]))
    if setting.get("effect") == "one type":  # one, whatever their number
        whole["V"] = (V[0], *(0.0,) * (whole["celltypes"] - 1))
    return simulate_setting(whole, count, rng)


def _aim_grid(setting: dict[str, Any], group: str) -> int:
    few = setting["celltypes"] == 4
    aims = {
        "ml": {},
        "robust": {},
        "jackknife": {20: 100, 50: 100, 100: 100},
        "one-step": {300: 100},
        "means": {300: 100},  # of the others with the jackknife
    }
    scores = {20: 500, 50: 500 if few else 300, 100: 300 if few else 200, 300: 100}
    aims |= {"score": scores, "combined": scores}
    return aims.get(group, {20: 200, 50: 200, 100: 200, 300: 100}).get(setting["n_donors"], 0)


def _aim_power(setting: dict[str, Any], group: str) -> int:
    few = 500 if setting["celltypes"] == 4 else 0
    aims = {"ml": 0, "one-step": 0, "jackknife": few, "combined": 500, "means": 0, "robust": 0}
    return aims.get(group, 500)


def _batches(setting: dict[str, Any]) -> str | None:
    return "batch" if setting["n_batches"] else None


# ---------------------------------------------------------------------------------------------
# counts of cells

CELLS: dict[str, tuple[float, float]] = {"11 to 15": (13.0, 1.4), "11 to 120": (45.0, 11.0)}
"""Numbers of cells -> their mean, and the most over the fewest."""
FOLD: dict[str, tuple[float, ...]] = {"none": (0.0,) * 4, "mostly one": (0.09, 0.03, 0.03, 0.03)}
"""V of the log-fold effects."""


def _counts() -> list[dict[str, Any]]:
    names = ("n_donors", "cells", "counts", "effect")
    grid = product((20, 50, 100), CELLS, (0.02, 0.1, 0.5, 2.0, 10.0), FOLD)
    return [dict(zip(names, values, strict=True)) for values in grid]


def _draw_counts(setting: dict[str, Any], count: int, rng: np.random.Generator) -> SimulatedGenes:
    cells, fold = CELLS[setting["cells"]]
    whole = _STUDY | {"n_batches": 0, "celltypes": 4, "dispersion": 0.5, "sigma2": 0.2} | setting
    whole |= {"V": FOLD[setting["effect"]], "cells": cells, "fold": fold}
    return simulate_setting(whole, count, rng)


def _aim_counts(setting: dict[str, Any], group: str) -> int:
    few = 100 if setting["n_donors"] < 100 else 0
    aims = {"ml": 0, "one-step": 0, "jackknife": few, "means": 0, "likelihood": 200}
    return aims.get(group, 300)


# ---------------------------------------------------------------------------------------------
# cell types resampled from the cells of donors


def _bootstrap() -> list[dict[str, Any]]:
    grid = product((1.0, 0.1), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
    return [{"depth": depth, "permuted": share} for depth, share in grid]


def _draw_bootstrap(
    setting: dict[str, Any], count: int, rng: np.random.Generator
) -> SimulatedGenes:
    """Counts of one cell type of 94 donors, simulated: no real matrix is ours to ship."""
    cells = simulate_cells(
        count, 94, 1, scale="counts", sigma2=0.25, n_batches=1, depth=5.0,
        cells=negative_binomial_cells(96, 1.75), min_cells=11, rng=rng,
    )  # fmt: skip
    total = np.full(cells.n_obs, 5000.0)
    return bootstrap_cells(cells, cells.obs["donor"].astype(str), total=total, rng=rng, **setting)


def _aim_bootstrap(setting: dict[str, Any], group: str) -> int:
    aims = {"ml": 0, "one-step": 0, "jackknife": 200, "combined": 0, "means": 0, "robust": 0}
    return aims.get(group, 400)


EXPERIMENTS: dict[str, Experiment] = {
    "figure1": Experiment(1, _figure1(), _draw_design, _aim1),
    "figure2": Experiment(2, _figure2(), _draw_design, _aim2),
    "calibration": Experiment(3, _calibration(), _draw_study, _aim_grid, _batches),
    "power": Experiment(4, _power(), _draw_study, _aim_power),
    "bootstrap": Experiment(5, _bootstrap(), _draw_bootstrap, _aim_bootstrap),
    "counts": Experiment(6, _counts(), _draw_counts, _aim_counts),
}
