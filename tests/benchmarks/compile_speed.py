"""What the first use compiles, and what a later process waits for, of two checkouts in one run.

    python tests/benchmarks/compile_speed.py ../before .

CPU seconds of processes of their own and of their helpers, compiled code in an empty folder, and
elapsed seconds, which need two cores that do nothing else.  Writes ``compile_speed.md`` beside this
file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
STAGES = ("REML fit", "robust fit", "score test", "one-step jackknife")


def child() -> None:
    """The first uses, one after the other; their CPU and elapsed seconds as JSON."""
    import resource

    import ctmm_formula as ctmm

    rng = np.random.default_rng(1)
    donor, celltype = np.divmod(np.arange(240), 4)
    data = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": donor % 6}).map(str)
    data = data.assign(y=rng.normal(size=240), nu=rng.uniform(0.1, 0.3, 240), n_cells=20.0)

    def clocks() -> tuple[float, float]:
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        cpu = sum(sum(resource.getrusage(who)[:2]) for who in both)
        return cpu, time.perf_counter()

    def fit(method: str) -> ctmm.Results:
        text = "y ~ C(celltype) + (1 | batch)"
        return ctmm.fit(text, data=data, method=method, bounds="noise")

    times = [clocks()]
    own = fit("reml")
    times.append(clocks())
    fit("robust")
    times.append(clocks())
    own.test_variance("score")
    times.append(clocks())
    own.test_variance("jackknife")
    times.append(clocks())
    sys.stdout.write(json.dumps(np.diff(times, axis=0).T.tolist()) + "\n")


def run(checkout: Path, folder: str) -> np.ndarray:
    """CPU and elapsed seconds (2, stages) that :func:`child` finds by a checkout."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import compile_speed as c; c.child()"
    env = os.environ | {"PYTHONPATH": str(checkout.resolve()), "NUMBA_CACHE_DIR": folder}
    env |= dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
    env |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}  # as if installed
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, env=env, cwd="/", capture_output=True, text=True
    )
    return np.array(json.loads(out.stdout.splitlines()[-1]))


def main() -> None:
    """Run both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    asked = parser.parse_args()
    head = [*STAGES, "all", "all, elapsed", "first fit of a later process, after the import"]
    lines = [
        "# What the first use compiles",
        "Written by `compile_speed.py`: CPU seconds of a process and its helpers, compiled code in "
        "an empty folder; of all and of the later process elapsed seconds, that the best of three. "
        " Before: the state before any of the work on the score test.",
        f"| checkout | {' | '.join(head)} |\n|" + "---|" * (1 + len(head)),
    ]
    for label, checkout in (("before", asked.before), ("after", asked.after)):
        with tempfile.TemporaryDirectory() as folder:
            cpu, elapsed = run(checkout, folder)
            later = min(run(checkout, folder)[1, 0] for _ in range(3))
        cells = [*(f"{one:.1f}" for one in (*cpu, cpu.sum(), elapsed.sum())), f"{later:.2f}"]
        lines[-1] += f"\n| {label} | {' | '.join(cells)} |"
        print(lines[-1].splitlines()[-1], flush=True)
    (HERE / "compile_speed.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
