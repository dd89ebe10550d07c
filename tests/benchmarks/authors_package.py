"""Free REML with its jackknife, per gene, against the authors' package on the same data.

    python tests/benchmarks/authors_package.py --python peer/bin/python [--donors 50]

`--python` is the interpreter of an environment of its own, where R is:
``pip install 'ctmm==1.1.0' 'rpy2<3.6'``.  The authors' package is timed for one gene (a minute or
two), from files to result, without loading it or R; a scan for this gene and 99 others, one
worker, from tables to table.  Both leave out each donor once.  Prints the table and writes
``authors_package.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import bench_fit
import numpy as np
import pandas as pd

import ctmm_formula as ctmm

HERE = Path(__file__).parent
TYPES, GENES = 4, 100
THEIRS = """
import json, sys, time
from ctmm import ctp
y, P, nu = sys.argv[1:4]
took = []
for jack_knife in (False, True):
    begin = time.perf_counter(), time.process_time()
    out, p = ctp.free_REML(
        y, P, nu, method="BFGS", jack_knife=jack_knife, information=False, optim_by_R=True
    )
    took.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
flat = lambda value: [float(x) for x in __import__("numpy").ravel(value)]
V = __import__("numpy").array(out["V"])
print("RESULT" + json.dumps({
    "fit": took[0], "jackknife": took[1], "hom": flat(out["hom2"]),
    "V": flat(V.diagonal() if V.ndim == 2 else V), "p": {k: flat(v) for k, v in p.items()},
}))
"""


def simulate(donors: int) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows, expression and noise (rows x genes); free truth, regular genes."""
    rng = np.random.default_rng([1, donors])
    donor, celltype = np.divmod(np.arange(donors * TYPES), TYPES)
    n = np.round(np.exp(rng.uniform(np.log(10), np.log(120), len(donor))))
    V = np.array([0.4, 0.2, 0.3, 0.15])[celltype][:, None]
    nu = rng.gamma(6.0, 0.5, (len(n), GENES)) / n[:, None]
    y = (
        rng.normal(size=(TYPES, GENES))[celltype]
        + (0.5 * rng.normal(size=(donors, GENES)))[donor]
        + rng.normal(size=nu.shape) * np.sqrt(V + nu)
    )
    obs = pd.DataFrame({"donor": donor, "celltype": celltype})
    for name in obs:
        obs[name] = name[0] + obs[name].astype(str).str.zfill(4)
    return obs.assign(n_cells=n), y, nu


def theirs(python: str, obs: pd.DataFrame, y: np.ndarray, nu: np.ndarray) -> dict:
    """The authors' package on one gene, in its own process."""
    n = obs["n_cells"].to_numpy().reshape(-1, TYPES)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, values in (
            ("y", y.reshape(-1, TYPES)),
            ("P", n / n.sum(axis=1, keepdims=True)),
            ("nu", nu.reshape(-1, TYPES)),
        ):
            paths.append(str(Path(folder) / name))
            np.savetxt(paths[-1], values, fmt="%.17g")
        run = subprocess.run(
            [python, "-c", THEIRS, *paths], capture_output=True, text=True, cwd=folder
        )
    found = [line for line in run.stdout.splitlines() if line.startswith("RESULT")]
    if not found:
        raise SystemExit(f"the authors' package did not finish:\n{run.stderr[-2000:]}")
    return json.loads(found[0].removeprefix("RESULT"))


def ours(obs: pd.DataFrame, y: np.ndarray, nu: np.ndarray, tests: list[str]) -> tuple:
    """Seconds per gene of a scan, best of three, and the row of the first gene."""
    names = [f"g{k}" for k in range(GENES)]
    data = {"data": obs, "expr": pd.DataFrame(y, columns=names), "nu": pd.DataFrame(nu)}
    data["nu"].columns = names
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ctmm.CTMMWarning)
            scan = ctmm.fit_genes("~ C(celltype)", **data, tests=tests, n_jobs=1)
        took.append(time.perf_counter() - begin)
    return min(took) / GENES, scan.table.iloc[0], scan


def table(python: str, donors: int) -> tuple[pd.DataFrame, str]:
    obs, y, nu = simulate(donors)
    own_fit, _, _ = ours(obs, y, nu, [])
    own, row, scan = ours(obs, y, nu, ["jackknife", "mean"])
    other = theirs(python, obs, y[:, 0], nu[:, 0])
    rows = []
    for what, mine, (wall, cpu) in (
        ("free REML", own_fit, other["fit"]),
        ("free REML + exact jackknife", own, other["jackknife"]),
    ):
        rows.append(
            {
                "per gene": what, "donors": donors, "ctmm_formula ms": 1e3 * mine,
                "ctmm 1.1.0 s": wall, "its CPU s": cpu, "ratio": wall / mine,
            }
        )  # fmt: skip
    theta = np.array([*other["hom"], *other["V"]])
    apart = np.abs(row[scan.vcomp.columns].astype(float).to_numpy() - theta).max()
    p = f"p of V = 0: {row['p_jackknife']:.4g} and {other['p']['V'][0]:.4g}"
    return pd.DataFrame(rows), f"Largest distance of the variance components: {apart:.1e}; {p}."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True)
    parser.add_argument("--donors", type=int, default=50)
    parser.add_argument("--out", default=str(HERE / "authors_package.md"))
    args = parser.parse_args()
    found, note = table(args.python, args.donors)
    text = bench_fit.markdown(found)
    sys.stdout.write(f"{text}\n{note}\n")
    Path(args.out).write_text(
        "# Against the authors' package\n\n"
        f"Written by `authors_package.py`: {TYPES} cell types, no batch; ctmm 1.1.0 with R's BFGS "
        "and without its information matrix, one gene, elapsed time from files to result; a scan "
        f"of {GENES} genes, one worker, best of three.\n\n{text}\n\n{note}\n"
    )


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
