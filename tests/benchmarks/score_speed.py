"""What the default test of a scan costs, and its p values, of two checkouts in one run.

    git worktree add ../before COMMIT
    python tests/benchmarks/score_speed.py ../before . --scale 2.5

Six designs with 10 % of the pairs missing, half of the genes with V = 0.  Every checkout scans the
same genes by REML in a process of its own, one BLAS thread, the later one by robust estimates too;
times are CPU milliseconds a gene, the least of three, of the first tenth of the genes.  Writes
``score_speed.md`` beside this file: the times, and how far the p values of all genes lie apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
DESIGNS = [  # donors, cell types, batches, whether every gene misses pairs of its own, genes
    (80, 4, 8, False, 1500),
    (80, 8, 8, False, 1000),
    (80, 8, 0, False, 1000),
    (80, 8, 8, True, 250),
    (200, 8, 10, False, 250),
    (1000, 8, 10, False, 30),
]
FEWEST = 30  # genes
BOUNDS = (0.05, 0.01, 0.001)
SURE = 0.06  # p value above which four digits will do in a scan


def simulate(donors: int, types: int, batches: int, own: bool, genes: int) -> dict:
    """Rows, expression and noise; 10 to 120 cells a pair; of every second gene V = 0."""
    rng = np.random.default_rng([donors, types, batches, own])
    donor, celltype = np.divmod(np.arange(donors * types), types)
    batch = rng.permutation(np.arange(donors) % max(batches, 1))
    n = np.round(np.exp(rng.uniform(np.log(10), np.log(120), donors * types)))
    per_cell = rng.gamma(6.0, 0.5, (types, genes))[celltype]
    nu = per_cell * rng.chisquare(n[:, None] - 1, (len(n), genes)) / (n[:, None] - 1) / n[:, None]
    V = rng.choice([0.0, 0.02, 0.05, 0.2], (types, genes)) * (np.arange(genes) % 2)
    y = (
        rng.normal(size=(types, genes))[celltype]
        + (0.5 * rng.normal(size=(donors, genes)))[donor]
        + rng.normal(size=nu.shape) * np.sqrt(V[celltype] + per_cell / n[:, None])
        + (0.3 * rng.normal(size=(max(batches, 1), genes)))[batch[donor]]
    )
    lost = rng.random((len(n), genes if own else 1)) < 0.1
    y[np.broadcast_to(lost, y.shape)] = np.nan
    obs = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": batch[donor]})
    for name in obs:
        obs[name] = name[0] + obs[name].astype(str).str.zfill(4)
    kept = ~np.isnan(y).all(axis=1)
    names = [f"g{k}" for k in range(genes)]
    expr, noise = (pd.DataFrame(values[kept], columns=names) for values in (y, nu))
    return {"data": obs.assign(n_cells=n)[kept].reset_index(drop=True), "expr": expr, "nu": noise}


def child(number: int, scale: float, method: str, out: str) -> None:
    """Scan a design by the checkout on the path; times and p values to a file."""
    import resource
    import warnings

    import ctmm_formula as ctmm

    warnings.simplefilter("ignore")
    donors, types, batches, own, genes = DESIGNS[number]
    genes = max(int(scale * genes), FEWEST)
    timed = max(genes // 10, FEWEST)

    def run(genes: int, tests: list[str], data: dict) -> tuple[float, pd.DataFrame]:
        some = {key: part if key == "data" else part.iloc[:, :genes] for key, part in data.items()}
        begin = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        scan = ctmm.fit_genes(
            "~ C(celltype)", random="batch" if batches else None, tests=tests, method=method,
            n_jobs=1, **some,
        )  # fmt: skip
        return sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - begin, scan.table

    data = simulate(donors, types, batches, own, genes)
    table = run(genes, ["score"], data)[1]  # compiles, what only some genes need too
    few = min(run(2, [], data)[0] for _ in range(3))
    least = [min(run(timed, tests, data)[0] for _ in range(3)) for tests in ([], ["score"])]
    p = table[[name for name in table if name.startswith("p_score") and "_b" not in name]]
    np.savez(out, names=list(p), p=p.to_numpy(), ms=1e3 * (np.array(least) - few) / (timed - 2))


def scanned(checkout: Path, number: int, scale: float, method: str) -> dict:
    """What :func:`child` finds by a checkout."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "p.npz")
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import score_speed as s; "
        code += f"s.child({number}, {scale}, {method!r}, {out!r})"
        env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        env |= dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
        subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd="/")
        return dict(np.load(out))


def main() -> None:
    """Run, compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the genes to run")
    parser.add_argument("--designs", type=int, nargs="*", default=list(range(len(DESIGNS))))
    parser.add_argument("--out", type=Path, default=HERE / "score_speed.md")
    asked = parser.parse_args()
    text = (
        "# The score test of a scan, before and after",
        "Written by `score_speed.py`: CPU milliseconds a gene, the least of three, one BLAS "
        'thread; 10 % of the pairs missing, `fit_genes("~ C(celltype)", tests=["score"])`, half '
        "of the genes with V = 0.  One checkout runs after the other.  Before: the state before "
        "any of the work on this test.",
        "p values of cell types, sum and Cauchy combination after REML, before and after: the "
        f"largest relative differences at most and above {SURE}, and how many lie on another side "
        f"of {', '.join(map(str, BOUNDS))} or Bonferroni's bound.",
    )
    times = [
        "| donors x types x batches | REML alone, before | after | with the score test, before | "
        "after | times as long | robust alone, after | with the score test |\n|" + "---|" * 8
    ]
    values = [
        f"| donors x types x batches | genes | p values | apart, p <= {SURE} | p > {SURE} | across "
        "a bound | null genes at .05, before | after |\n|" + "---|" * 8
    ]
    for number in asked.designs:
        donors, types, batches, own, _ = DESIGNS[number]
        old, new = (
            scanned(one, number, asked.scale, "reml") for one in (asked.before, asked.after)
        )
        robust = scanned(asked.after, number, asked.scale, "robust")["ms"]
        label = f"{donors} x {types} x {batches or 'none'}{', pairs of their own' if own else ''}"
        cells = [f"{ms:.2f}" for k in range(2) for ms in (old["ms"][k], new["ms"][k])]
        cells += [f"{old['ms'][1] / new['ms'][1]:.1f}", *(f"{ms:.2f}" for ms in robust)]
        times.append(f"| {' | '.join([label, *cells])} |")
        p, q = old["p"], new["p"]
        both = (p > 1e-290) & (q > 1e-290)
        apart = np.abs(np.divide(q, p, out=np.ones_like(p), where=both) - 1.0)
        far = [float(apart[both & ((p <= SURE) == low)].max(initial=0.0)) for low in (True, False)]
        bounds = [*BOUNDS, 0.05 / len(p)]
        across = sum(int(((p < bound) != (q < bound)).sum()) for bound in bounds)
        at = list(old["names"]).index("p_score")
        rates = [(one["p"][::2, at] < 0.05).mean() for one in (old, new)]
        cells = [
            label, f"{len(p):,}", f"{p.size:,}", *(f"{one:.1e}" for one in far), str(across),
            *(f"{rate:.3f}" for rate in rates),
        ]  # fmt: skip
        values.append(f"| {' | '.join(cells)} |")
        print(times[-1], values[-1], sep="\n", flush=True)
    tables = ("\n".join(times), text[2], "\n".join(values))
    asked.out.write_text("\n\n".join([*text[:2], *tables]) + "\n")


if __name__ == "__main__":
    main()
