"""Bias and spread of the variance components: supplementary figures S2 to S6 of the CTMM paper.

    python vignettes/evidence/estimates.py [--replicates 500] [--minutes 30]

Of each design, estimator and kind of data the distribution of every component over the
replicates, :data:`PER_STUDY` of which share their donors.  Finished designs are kept in
``estimates.csv``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ctmm_formula as ctmm
from ctmm_formula.simulate import simulate_design

PATH = Path(__file__).with_suffix(".csv")
PER_STUDY = 25
SEED = 20241124
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}

Setting = dict[str, Any]


def settings() -> list[Setting]:
    """Designs with their changes, kind of data, structure fitted and method."""
    out: list[Setting] = []

    def add(figure: str, design: str, kinds: str, methods: str, structure: str = "free",
            bounds: str | None = None, **changes: Any) -> None:  # fmt: skip
        for kind in kinds.split():
            for method in methods.split():
                out.append({"figure": figure, "design": design, "kind": kind, "method": method,
                            "structure": structure, "bounds": bounds,
                            "changes": changes})  # fmt: skip

    for model in ("free", "hom"):
        for N in (20, 50, 100, 300):
            add("by donors", f"published/{model}", "ctp op", "reml ml he", n_donors=N)
    for share in (0.10, 0.20, 0.30, 0.40):
        shares = (0.25, round(0.5 - share, 2), share, 0.25)
        add("by share of V", "published/free", "ctp", "reml ml he", shares=shares)
    for ratio in ((64, 16, 4, 1), (27, 9, 3, 1), (8, 4, 2, 1), (2, 1, 1, 1), (1, 1, 1, 1)):
        add("by ratio of V", "published/free", "ctp", "reml he", V=ratio)
    for a in (0.666, 1.05, 2.0, 4.0):
        add("by proportion", "published/free", "ctp op", "reml he", alpha=(a, 2.0, 2.0, 2.0))
    for C in (8, 12):
        add("by cell types", f"published/free-{C}", "ctp", "reml he")
    for N in (20, 50, 100, 300):
        add("full", "published/full", "ctp", "reml he", "full", n_donors=N)
    for model in ("free", "hom"):
        for N in (20, 50, 100, 300):
            add("bounds noise", f"published/{model}", "op", "reml", bounds="noise", n_donors=N)
    return out


def text(setting: Setting) -> str:
    """What changes, as it is written into the table."""
    return "; ".join(f"{name}={value}" for name, value in setting["changes"].items()) or "-"


def run(number: int, setting: Setting, replicates: int) -> pd.DataFrame:
    """Distribution of every component."""
    begin = time.process_time()
    tables, status = [], []
    truth = pd.Series(dtype=float)
    for study in range(replicates // PER_STUDY):
        seed = np.random.SeedSequence(SEED, spawn_key=(number, study))
        genes = simulate_design(setting["design"], PER_STUDY, kind=setting["kind"],
                                rng=np.random.default_rng(seed), **setting["changes"])  # fmt: skip
        truth = genes.truth
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ctmm.CTMMWarning)
            scan = ctmm.fit_genes(
                "~ C(celltype)" if setting["kind"] == "ctp" else "~ 1", data=genes, tests=[],
                structure=setting["structure"], method=setting["method"],
                proportions=genes.proportions, bounds=setting["bounds"],
            )  # fmt: skip
        tables.append(scan.vcomp)
        status.append(scan.table[["converged", "boundary"]])
    found, flags = pd.concat(tables), pd.concat(status)
    shared = truth["hom"] if setting["structure"] == "full" else 0.0  # absorbed
    rows = []
    for name in found:
        values = found[name].dropna()
        rows.append(
            {"number": number, "figure": setting["figure"], "design": setting["design"],
             "changes": text(setting), "kind": setting["kind"], "method": setting["method"],
             "component": name, "truth": truth.get(name, 0.0) + shared, "n": len(values),
             "mean": values.mean(), "se": values.std() / np.sqrt(len(values)), "sd": values.std(),
             **{label: values.quantile(q) for label, q in QUANTILES.items()},
             "on edge": flags["boundary"].mean(), "converged": flags["converged"].mean(),
             "seconds": time.process_time() - begin}
        )  # fmt: skip
    return pd.DataFrame(rows).round(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=np.inf)
    args = parser.parse_args()
    end = time.time() + 60 * args.minutes
    done = pd.read_csv(PATH) if PATH.exists() else pd.DataFrame({"number": []})
    for number, setting in enumerate(settings()):
        if number in set(done["number"]):
            continue
        if time.time() > end:
            return
        found = run(number, setting, args.replicates)
        done = pd.concat([part for part in (done, found) if len(part)])
        done.to_csv(PATH.with_suffix(".part"), index=False)
        PATH.with_suffix(".part").replace(PATH)


if __name__ == "__main__":
    main()
