"""Total heritability by every method, where the noise is known and where it is measured.

    python tests/benchmarks/heritability_estimates.py [--sets 200]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``heritability_estimates.md`` beside this file.  Data are those of ``heritability_levels.py``: four
cell types, a window of 100 variants, g = .13, V = .04 each, e = .11, W = .08, mean noise .55, which
is known, or measured with a coefficient of variation of .45.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from heritability_levels import E, Setting, W, model_of

from ctmm_formula.engine import related_likelihood
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.noise import pooling, working_noise
from ctmm_formula.errors import CTMMError

OUT = Path(__file__).with_suffix(".md")
METHODS = {
    "he": "he",
    "robust": "robust",
    "reml": "reml",
    "reml, donors rotated": "reml",
    "reml, noise pooled": "reml",
}
KINDS = ("exact", "measured")
SETTINGS = [Setting(N, noise=kind, g=0.13, V=0.04) for N in (200, 500) for kind in KINDS[::-1]]


def total(setting: Setting, seed: list[int]) -> list[tuple[float, float]]:
    """h2 and seconds of every method, and the h2 of the data in the place of a method's."""
    model = model_of(setting, np.random.default_rng(seed))
    scale, k = model.kinship[0].kernel.scale, len(model.basis)
    genetic = scale * (setting.g + setting.V)
    out = [(genetic / (genetic + E + W), 0.0)]
    pooled = working_noise(model.nu, pooling(model.types, model.n_cells, model.active_rows), 1.0)
    for name, method in METHODS.items():
        if name == "reml, noise pooled":
            model = model.with_response(model.y, pooled)
        limit = 0 if name == "reml, donors rotated" else related_likelihood.LARGEST
        begin = time.perf_counter()
        try:
            with patch.object(related_likelihood, "LARGEST", limit):
                theta = estimate(model, method, Domain("nonnegative")).theta
        except CTMMError:
            out.append((math.nan, math.nan))
            continue
        g, e = (part[0] + part[1:].mean() for part in (theta[k:] * [scale], theta[:k]))
        out.append((g / (g + e) if g + e > 0 else math.nan, time.perf_counter() - begin))
    return out


def line(setting: Setting, sets: int) -> str:
    """Median, its standard error and the robust standard deviation of every method."""
    found = np.array(
        [total(setting, [9, setting.N, KINDS.index(setting.noise), k]) for k in range(sets)]
    )
    cells = [f"{np.mean(found[:, 0, 0]):.3f}"]
    for values, took in found[:, 1:].transpose(1, 2, 0):
        known = values[np.isfinite(values)]
        low, middle, high = np.percentile(known, [25, 50, 75])
        spread = (high - low) / 1.349
        se = 1.253 * spread / math.sqrt(len(known))
        cells.append(f"{middle:.3f} ± {se:.3f} ({spread:.3f}); {np.nanmedian(took):.3f}")
    return f"| {setting.N}, {setting.noise} | {sets} | {' | '.join(cells)} |"


TITLE = """# Total heritability by method

Written by `heritability_estimates.py`.  Median with its standard error, in brackets the robust
standard deviation, then seconds of a fit.  Haseman and Elston's moments weigh all rows alike;
*robust* weighs by pooled noise and centres by the measured; REML (components >= 0) weighs by the
measured noise as if it were known; *donors rotated* is what it is for kinships of high rank, which
weighs by the mean noise of every cell type and centres by the measured; *noise pooled* has the
variance between cells of every type over the number of cells in its place.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=200)
    options = parser.parse_args()
    rows = []
    for setting in SETTINGS:
        rows.append(line(setting, options.sets))
        head = ["donors, noise", "sets", "truth", *METHODS]
        table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]
        OUT.write_text("\n".join([TITLE, *table, ""]))
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
