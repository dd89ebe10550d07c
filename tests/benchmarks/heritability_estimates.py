"""Total heritability by every method, where the noise is known and where it is measured.

    python tests/benchmarks/heritability_estimates.py [--sets 200] [--only measured]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``heritability_estimates.md`` beside this file; settings that are not asked for keep their line.
Data are those of ``heritability_levels.py``: four cell types, a window of 100 variants, g = .13,
V = .04 each, e = .11, W = .08, mean noise .55, which is known, or measured with a coefficient of
variation of .45.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from heritability_levels import E, Setting, W, lines_of, model_of
from scipy import stats

from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.noise import pooling, working_noise
from ctmm_formula.engine.related_likelihood import ORDERS
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.inference.small_sample import information_cov
from ctmm_formula.results.heritability import _parts, _ratio

OUT = Path(__file__).with_suffix(".md")
ROTATED = ", donors rotated"
POOLED = "reml, noise pooled"
METHODS = ["robust", "robust" + ROTATED, "he", "reml", "reml" + ROTATED, POOLED]
KINDS = ("exact", "measured")
SETTINGS = [
    Setting(N, kinship=kinship, noise=kind, g=0.13, V=0.04)
    for kinship, sizes in (("window", (200, 500)), ("sibs", (200,)))
    for N in sizes
    for kind in KINDS[::-1]
]


def total(setting: Setting, seed: list[int]) -> list[list[float]]:
    """h2, whether its interval holds the true one, width, edge and seconds of every method."""
    model = model_of(setting, np.random.default_rng(seed))
    K, k, scale = len(model.S), len(model.basis), model.kinship[0].kernel.scale
    top, whole = np.zeros((2, K + k))
    top[K:] = whole[K:] = scale * _parts(model.basis)[2]
    whole[:k] = _parts(model.basis)[2]
    true = true_of(setting, scale)
    reach = stats.t.isf(0.025, model.n_donors - model.X.shape[1] - K - k)
    pooled = working_noise(model.nu, pooling(model.types, model.n_cells, model.active_rows), 1.0)
    out = []
    for name in METHODS:
        own = model.with_response(model.y, pooled) if name == POOLED else model
        method = name.split(",")[0]
        orders = {method: (0, 0)} if ROTATED in name else {}
        begin = time.process_time()
        try:
            with patch.dict(ORDERS, orders):
                found = estimate(own, method, Domain("nonnegative"))
            cov = information_cov(found.information)
            if method == "he":
                cov = jackknife(own, found).cov[model.X.shape[1] :, model.X.shape[1] :]
        except CTMMError:
            out.append([math.nan] * 5)
            continue
        took = time.process_time() - begin
        _, _, low, high, _ = _ratio(top, whole, found.theta, cov, reach)
        h2 = (top @ found.theta) / (whole @ found.theta)
        covered = float(low <= true <= high) if math.isfinite(low) else math.nan
        out.append([h2, covered, high - low, float(found.convergence.boundary), took])
    return out


def true_of(setting: Setting, scale: float) -> float:
    """The heritability that data are drawn with."""
    genetic = scale * (setting.g + setting.V)
    return genetic / (genetic + E + W)


def line(setting: Setting, sets: int) -> str:
    """A line of the table."""
    kernel = model_of(setting, np.random.default_rng(0)).kinship[0].kernel
    found = np.array([total(setting, seed_of(setting, k)) for k in range(sets)])
    cells = [f"{true_of(setting, kernel.scale):.3f}"]
    for values, covered, width, edge, took in found.transpose(1, 2, 0):
        known = values[np.isfinite(values)]
        low, middle, high = np.percentile(known, [25, 50, 75])
        spread = (high - low) / 1.349
        se = 1.253 * spread / math.sqrt(len(known))
        cells.append(
            f"{middle:.3f} ± {se:.3f} ({spread:.3f}); {np.nanmean(covered):.3f}, "
            f"{np.nanmedian(width):.2f}; {np.nanmean(edge):.2f}; {np.nanmedian(took):.3f}"
        )
    return f"| {name_of(setting)} | {sets} | {' | '.join(cells)} |"


def seed_of(setting: Setting, number: int) -> list[int]:
    return [9, setting.N, KINDS.index(setting.noise), number]


def name_of(setting: Setting) -> str:
    return f"{setting.N}, {setting.kinship}, {setting.noise}"


TITLE = """# Total heritability by method

Written by `heritability_estimates.py`.  Median with its standard error, in brackets the robust
standard deviation; how often the 95 % interval holds the true one, and its median width; the share
of fits on the edge of the domain; seconds of a fit with its errors.  *robust*, the default, weighs
by the kinship and pooled noise and centres by the measured, *donors rotated* with the noise of
every cell type at its mean, as it does for kinships of high rank.  Haseman and Elston's moments
weigh all rows alike, their errors are the jackknife's.  REML (components >= 0) weighs by the
measured noise as if it were known; with donors rotated by the mean of every cell type, centred by
the measured; *noise pooled* has the variance between cells of every type over the number of cells
in its place.  "window": 100 variants in linkage disequilibrium; "sibs": families of four.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--only", default="", help="part of the settings' names")
    options = parser.parse_args()
    rows = {name: text for name, (_, text) in lines_of(OUT).items()}
    head = ["donors, kinship, noise", "sets", "truth", *METHODS]
    for setting in SETTINGS:
        if options.only in name_of(setting):
            rows[name_of(setting)] = line(setting, options.sets)
            print(rows[name_of(setting)], flush=True)
        known = [rows[name_of(one)] for one in SETTINGS if name_of(one) in rows]
        table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *known]
        OUT.write_text("\n".join([TITLE, *table, ""]))


if __name__ == "__main__":
    main()
