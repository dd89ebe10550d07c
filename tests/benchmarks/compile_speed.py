"""What the first use compiles, and what a later process waits for, of two checkouts in one run.

    python tests/benchmarks/compile_speed.py ../before .

CPU seconds of processes of their own and of their helpers, compiled code in an empty folder.
Writes ``compile_speed.md`` beside this file.
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
    """The first uses, one after the other; their CPU seconds as JSON, and seconds of the first."""
    import resource

    import ctmm_formula as ctmm

    rng = np.random.default_rng(1)
    donor, celltype = np.divmod(np.arange(240), 4)
    data = pd.DataFrame({"donor": donor, "celltype": celltype, "batch": donor % 6}).map(str)
    data = data.assign(y=rng.normal(size=240), nu=rng.uniform(0.1, 0.3, 240), n_cells=20.0)

    def cpu() -> float:
        both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        return sum(sum(resource.getrusage(who)[:2]) for who in both)

    def fit(method: str) -> ctmm.Results:
        text = "y ~ C(celltype) + (1 | batch)"
        return ctmm.fit(text, data=data, method=method, bounds="noise")

    begin, times = time.perf_counter(), [cpu()]
    own = fit("reml")
    first = time.perf_counter() - begin
    times.append(cpu())
    fit("robust")
    times.append(cpu())
    own.test_variance("score")
    times.append(cpu())
    own.test_variance("jackknife")
    times.append(cpu())
    sys.stdout.write(json.dumps({"cpu": np.diff(times).tolist(), "first": first}) + "\n")


def run(checkout: Path, folder: str) -> dict:
    """What :func:`child` finds by a checkout."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import compile_speed as c; c.child()"
    env = os.environ | {"PYTHONPATH": str(checkout.resolve()), "NUMBA_CACHE_DIR": folder}
    env |= dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1")
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, env=env, cwd="/", capture_output=True, text=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def main() -> None:
    """Run both and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    asked = parser.parse_args()
    head = [*STAGES, "all", "first fit of a later process, after the import"]
    lines = [
        "# What the first use compiles",
        "Written by `compile_speed.py`: CPU seconds of a process and its helpers, compiled code in "
        "an empty folder; of the later process elapsed seconds, the best of three.",
        f"| checkout | {' | '.join(head)} |\n|" + "---|" * (1 + len(head)),
    ]
    for label, checkout in (("before", asked.before), ("after", asked.after)):
        with tempfile.TemporaryDirectory() as folder:
            cpu = run(checkout, folder)["cpu"]
            later = min(run(checkout, folder)["first"] for _ in range(3))
        cells = [*(f"{one:.1f}" for one in (*cpu, sum(cpu))), f"{later:.2f}"]
        lines[-1] += f"\n| {label} | {' | '.join(cells)} |"
        print(lines[-1].splitlines()[-1], flush=True)
    (HERE / "compile_speed.md").write_text("\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
