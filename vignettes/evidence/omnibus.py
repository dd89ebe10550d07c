"""One p value from those of the cell types and of their sum: rules side by side.

    python vignettes/evidence/omnibus.py [--replicates 500]

Writes ``omnibus.md``.  Settings of ``experiments.py``'s power, with uneven cells and errors of nu
of .33, and the same with V = 0; on the same p values

- rules for the p values of the cell types, cut below 1 or not (``combinations.py``)
- the sum of the scores
- both: Cauchy combination of the sum's p value and the cell types' combined one
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import experiments
import numpy as np
import pandas as pd
from combinations import RULES, cauchy_below

from ctmm_formula.planning import PER_STUDY, pvalues_of

PATH = Path(__file__).with_suffix(".md")
SEED = 20241125
SETTINGS: list[dict[str, Any]] = [
    {"n_donors": N, "celltypes": C, "noise_cv": 0.33, "fold": 10.0, **effect}
    for C in (4, 8)
    for effect in ({}, *({"effect": name} for name in experiments.EFFECTS))
    for N in (20, 50)
]


def pvalues(number: int, setting: dict[str, Any], replicates: int) -> dict[str, np.ndarray]:
    """The sum's p value (n,) and those of the cell types (C, n)."""
    parts = []
    for study in range(replicates // PER_STUDY):
        seed = np.random.SeedSequence(SEED, spawn_key=(number, study))
        rng = np.random.default_rng(seed)
        genes = experiments.EXPERIMENTS["power"].draw(setting, PER_STUDY, rng)
        parts.append(pvalues_of(genes, ["score", "score_celltype"]))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {"sum": found.pop("score"), "types": np.array(list(found.values()))}


def row(setting: dict[str, Any], p: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rates of all rules, and how often a p value near 1 undoes the others."""
    plain = cauchy_below(1 - 1e-16)(p["types"])
    rules = {"sum": p["sum"], "cauchy": plain} | {
        name: rule(p["types"]) for name, rule in RULES.items()
    }
    for name in ("cauchy, p < .99", "cauchy, p < .9", "half-Cauchy"):
        rules[f"sum and {name}"] = cauchy_below(0.99)(np.array([p["sum"], rules[name]]))
    smallest = len(p["types"]) * p["types"].min(axis=0)
    undone = (plain > 0.5) & (smallest < 0.05)
    return {
        "V": setting.get("effect", "0"),
        "cell types": setting["celltypes"],
        "donors": setting["n_donors"],
        **{name: f"{(value < 0.05).mean():.3f}" for name, value in rules.items()},
        "undone in 1,000": f"{1000 * undone.mean():.1f}",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=500)
    args = parser.parse_args()
    rows = []
    for number, setting in enumerate(SETTINGS):
        times = 1 if "effect" in setting else 4  # false positives are rarer
        rows.append(row(setting, pvalues(number, setting, times * args.replicates)))
        table = pd.DataFrame(rows)
        lines = [list(table), ["---"] * len(list(table)), *table.astype(str).to_numpy()]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        error = np.sqrt(0.05 * 0.95 / (4 * args.replicates))
        PATH.write_text(
            "# One p value of several\n\nWritten by `omnibus.py`: positive rates at .05 of "
            f"{args.replicates} data sets a row, {4 * args.replicates} where V = 0 (standard error "
            f"of a rate of .05: {error:.3f}), "
            "all rules on the same p values.  Last column: how often the plain Cauchy combination "
            f"is above .5 although Bonferroni's is below .05.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
