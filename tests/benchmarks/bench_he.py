"""Speed of moment estimates: their jackknife for one gene, for many, and a scan of all genes.

    python tests/benchmarks/bench_he.py [--genes 11231]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``he_speed.md`` beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

import bench_fit
import bench_scan
import numpy as np
import pandas as pd

from ctmm_formula.engine import he
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.inference.jackknife import MomentJackknife, jackknife
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
BLOCK = 50
STUDIES = [(94, 4, 24, "free"), (94, 4, 24, "full"), (1000, 4, 75, "free"), (980, 8, 75, "free")]


def study(donors: int, types: int, batches: int, structure: str) -> Model:
    """Complete data with batches and 8 donor covariates."""
    rng = np.random.default_rng([donors, types])
    donor = np.repeat(np.arange(donors), types)
    H = np.tile(np.eye(types), (donors, 1))
    n = len(donor)
    batch = rng.permutation(np.arange(donors) % batches)[donor]
    X = np.hstack([H, rng.normal(size=(donors, 8))[donor]])
    nu = rng.uniform(0.05, 0.3, n)
    y = rng.normal(size=donors)[donor] + rng.normal(size=n) * np.sqrt(0.2 + nu)
    basis = resolve(structure, [f"c{k}" for k in range(types)]).basis
    return build_model(y, nu, X, H, donor, basis, [RandomComponent(batch, np.ones(n))])


def table_of_jackknives() -> pd.DataFrame:
    """Milliseconds; a loop of fits without each donor is timed on every tenth."""
    rows = []
    for donors, types, batches, structure in STUDIES:
        model = study(donors, types, batches, structure)
        fit = he.fit(model)
        shared = MomentJackknife(model)
        rng = np.random.default_rng(0)
        Y = model.y[:, None] + rng.normal(scale=0.1, size=(len(model.y), BLOCK))
        NU = np.repeat(model.nu[:, None], BLOCK, axis=1)
        parts = range(0, donors, 10)
        repeats = 5 if donors < 500 else 2
        seconds = lambda work, r=repeats: 1e3 * bench_fit.seconds(work, r)  # noqa: E731
        loop = seconds(lambda m=model, i=parts: [he.fit(m.without(k)) for k in i], 2) * 10
        own = seconds(lambda m=model, f=fit: jackknife(m, f))
        rows.append(
            {
                "donors": donors,
                "cell types": types,
                "structure": structure,
                "fit": seconds(lambda m=model: he.fit(m)),
                "jackknife": own,
                "loop of fits": loop,
                "ratio": loop / own,
                "design, once": seconds(lambda m=model: MomentJackknife(m)),
                "another gene": seconds(lambda m=model, f=fit, s=shared: s(m, f)),
                "its components in a block of 50": seconds(
                    lambda s=shared, a=Y, b=NU: s.theta(a, b)
                )
                / BLOCK,
            }
        )
    return pd.DataFrame(rows)


def table_of_scans(genes: int) -> pd.DataFrame:
    """Free HE of simulated genes: 94 donors, 4 cell types, 24 batches, 8 covariates."""
    rows = []
    for jobs in (1, 2):
        for tests in ([], ["jackknife"]):
            settings = {"study": bench_scan.STUDY, "genes": genes, "n_jobs": jobs}
            took, memory = bench_scan.cold({**settings, "more": {"method": "he", "tests": tests}})
            rows.append(
                {
                    "scan": "HE" + " with exact jackknife" * bool(tests),
                    "threads": jobs,
                    "ms per gene": 1e3 * took / genes,
                    f"{bench_scan.ALL:,} genes": f"{took * bench_scan.ALL / genes:.1f} s",
                    "peak MB": memory,
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=bench_scan.ALL)
    parser.add_argument("--out", default=str(HERE / "he_speed.md"))
    args = parser.parse_args()
    parts = [
        "# Speed of moment estimates",
        "Written by `bench_he.py`: exact delete-one-donor jackknife, batches and 8 covariates; "
        "warm, one BLAS thread; elapsed time.",
        f"Python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, "
        f"{os.cpu_count()} cores.",
        "## One gene, milliseconds",
        bench_fit.markdown(table_of_jackknives()),
        f"## A scan of {args.genes:,} genes",
        bench_fit.markdown(table_of_scans(args.genes)),
    ]
    text = "\n\n".join(parts) + "\n"
    Path(args.out).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
