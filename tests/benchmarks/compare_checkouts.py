"""Two checkouts against each other: start-up, fits, jackknives, tests, a scan; ratios in one run.

    git worktree add ../before COMMIT
    python tests/benchmarks/compare_checkouts.py ../before . --rounds 5

Every round runs each job of each checkout in a process of its own, the two in turn; what is shown
is the median over rounds of CPU seconds (user and system, children included) per repeat, after a
first process has compiled.  No thread variables are set: a job uses what a user's would.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

LOAD = "import ctmm_formula as ctmm; df = ctmm.load_example()"
FIT = 'ctmm.fit("expr ~ C(celltype) + sex + PC1", random="batch", data=df)'
SCAN = (
    'ctmm.fit_genes("~ C(celltype) + sex", random="batch", data=ctmm.load_genes(), tests={tests})'
)
JOBS = {  # name -> (set up, what is repeated, how often)
    "import and first fit": ("", f"{LOAD}; {FIT}", 1),
    "fit, structure free": (LOAD, FIT, 200),
    "fit and summary": (LOAD, f"str({FIT}.summary())", 50),
    "exact jackknife": (LOAD, f"{FIT}.jackknife()", 50),
    "score test": (f"{LOAD}; res = {FIT}", 'res.test_variance("score")', 20),
    "bootstrap test, 19 draws": (
        f"{LOAD}; res = {FIT}",
        'res.test_variance("bootstrap", n=19)',
        10,
    ),
    "scan of 200 genes, jackknife and mean": (LOAD, SCAN.format(tests=["jackknife", "mean"]), 3),
    "scan of 200 genes, likelihood ratio": (LOAD, SCAN.format(tests=["lrt"]), 3),
}
RUN = """
import resource, warnings
warnings.simplefilter("ignore")
{setup}
def spent():
    return sum(sum(resource.getrusage(who)[:2]) for who in (0, -1))
{warm}
start = spent() if {count} > 1 else 0.0
for _ in range({count}):
    {work}
print((spent() - start) / {count})
"""


def seconds(checkout: Path, setup: str, work: str, count: int) -> float:
    """CPU seconds of one repeat."""
    warm = work if count > 1 else ""
    code = RUN.format(setup=setup, warm=warm, work=work, count=count)
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return float(run.stdout.split()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", default="", help="part of the names of the jobs to run")
    asked = parser.parse_args()
    print("| job | before, ms CPU | after | after / before |\n|---|---|---|---|")
    for name, job in JOBS.items():
        if asked.jobs not in name:
            continue
        for checkout in (asked.before, asked.after):
            seconds(checkout, *job[:2], 1)  # compiles
        found = [
            [seconds(c, *job) for c in (asked.before, asked.after)] for _ in range(asked.rounds)
        ]
        before, after = (1e3 * median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {before:.4g} | {after:.4g} | {after / before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
