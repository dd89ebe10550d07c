"""Is the reported maximum the maximum?  Random hard designs, each against many random starts.

    python tests/benchmarks/reml_maximum.py [--designs 2000] [--many 2000] [--scans 1000]
        [--outliers 300] [--scan-outliers 300] [--ml 500]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``reml_maximum.md`` beside this file.

A design has 8 to 60 donors, 2 to 4 cell types, cell type-specific or overall pseudobulk, missing
pairs, noise that differs between pairs by a log standard deviation up to 2, a response in any unit,
any structure (a user's matrix too), no, one, two crossed, nested or cell type-specific random
effects, and any bounds.  Where rows are many the search climbs from fewer starts: such designs have
40 to 150 donors, 2 to 6 types, and donors of the least noise that lie close to the mean, which the
edge can interpolate; or they are genes as in scans, of 4 to 8 types with a tenth of the pairs
missing, half of them with batches, some with rows or donors far off; or overall pseudobulk with
donors far off.  The reported fit is
compared with climbs from random points of the domain: a random direction from a random multiple of
the split of variance, components of sizes over four decades, at random as far as it will go.  Where
rows are many every other climb begins with little of a barrier, and so ends on an edge that is
near.  What beats the reported fit is checked by dense algebra.
For ML an interior stationary point is preferred to the edge: only where the reported fit is on
the edge may no interior point be found, and where it is inside no interior point may be higher.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ctmm_formula.engine.domain import BOUNDS, Domain, constrain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.left_out_fits import inside as lies_inside
from ctmm_formula.engine.likelihood import centre, make_problem, response_scale
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.engine.optimize import INFEASIBLE, INTERIOR, Problem, Work, make_work
from ctmm_formula.engine.search import best_of
from ctmm_formula.errors import ConvergenceError
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import dense  # noqa: E402

BEATEN = 1e-4
"""Log-likelihood by which no other point may be better."""
LITTLE = 1e-3
"""Weight of a barrier that hides no near edge."""
STRUCTURES = ("hom", "iid", "free", "full", "banded(1)", "user")
EFFECTS = ("none", "none", "batch", "crossed", "nested", "cell type")


def design(seed: int) -> tuple[Model, Domain, str]:
    """One random data set, its bounds and what it is."""
    rng = np.random.default_rng([811, seed])
    overall = rng.random() < 0.4
    N, C = round(math.exp(rng.uniform(math.log(8), math.log(60)))), int(rng.integers(2, 5))
    structure, effects = str(rng.choice(STRUCTURES)), str(rng.choice(EFFECTS))
    bounds = str(rng.choice(BOUNDS))
    if overall:
        donor, H = np.arange(N), rng.dirichlet(np.full(C, rng.choice([1.0, 5.0])), N)
    else:
        seen = rng.random((N, C)) >= rng.choice([0.0, 0.2])
        seen[np.arange(N), rng.integers(0, C, N)] = True
        donor, celltype = np.nonzero(seen)
        H = np.eye(C)[celltype]
    n = len(donor)
    nu = np.exp(rng.uniform(0.2, 2.0) * rng.normal(size=n) - rng.uniform(0, 2))
    root = rng.normal(size=(C, C)) * 10 ** rng.uniform(-2, 0)
    A = root @ root.T * (rng.random() < 0.7) + rng.uniform(0, 0.5) * (rng.random() < 0.5)
    batch, site = rng.integers(0, max(N // 4, 2), N), rng.integers(0, 3, N)
    codes = {
        "none": [], "batch": [(batch, 1)], "crossed": [(batch, 1), (site, 1)],
        "nested": [(site, 1), (batch + 1000 * site, 1)], "cell type": [(batch, H)],
    }[effects]  # fmt: skip
    random = []
    for levels, weight in codes:
        columns = [np.ones(n)] if np.isscalar(weight) else list(weight.T)
        level = np.unique(levels, return_inverse=True)[1][donor]
        random += [RandomComponent(level, column) for column in columns]
    y = np.einsum("nc,nc->n", H, rng.multivariate_normal(np.zeros(C), A, N)[donor])
    y += np.sqrt(nu) * rng.normal(size=n)
    for effect in random:
        size = rng.uniform(0, 1) * (rng.random() < 0.6)
        y += size * rng.normal(size=effect.codes.max() + 1)[effect.codes] * effect.values
    X = [np.ones((n, 1)), H, np.column_stack([np.ones(n), rng.normal(size=N)[donor]])][
        int(rng.integers(3))
    ]
    if structure == "user":
        vector = rng.normal(size=C)
        basis = np.outer(vector, vector)[None]
    else:
        basis = resolve(structure, [f"c{k}" for k in range(C)]).basis
    unit = 10 ** rng.uniform(-5, 4)
    model = build_model(y * unit, nu * unit**2, X, H, donor, basis, random)
    kind = "overall" if overall else "by type"
    return model, Domain(bounds), f"{kind}, {structure}, {effects}, {bounds}, N={N}, C={C}"


def many_rows(seed: int) -> tuple[Model, Domain, str]:
    """One with many rows for its components, and donors that the edge interpolates."""
    rng = np.random.default_rng([813, seed])
    N, C = int(rng.integers(40, 150)), int(rng.integers(2, 7))
    structure = str(rng.choice(["free", "full", "iid"])) if C < 5 else "free"
    donor, celltype = np.divmod(np.arange(N * C), C)
    H = np.eye(C)[celltype]
    nu = np.exp(rng.uniform(0.2, 1.0) * rng.normal(size=N * C))
    V, shared = rng.uniform(0, 0.1), rng.uniform(0, 0.5) * rng.normal(size=N)
    y = shared[donor] + np.sqrt(V + nu) * rng.normal(size=N * C)
    for c in np.flatnonzero(rng.random(C) < 0.7):
        own = np.flatnonzero(celltype == c)
        least = own[np.argsort(nu[own])[: rng.integers(1, 3)]]
        y[least] = shared[donor[least]] + 0.05 * np.sqrt(nu[least]) * rng.normal(size=len(least))
    basis = resolve(structure, [f"c{k}" for k in range(C)]).basis
    model = build_model(y, nu, H, H, donor, basis)
    return model, Domain(), f"many rows, {structure}, N={N}, C={C}"


def of_scan(seed: int) -> tuple[Model, Domain, str]:
    """A gene as in scans: 10 to 120 cells a pair, mostly no variance of a cell type's own."""
    rng = np.random.default_rng([814, seed])
    N, C = int(rng.integers(40, 150)), int(rng.integers(4, 9))
    donor, celltype = np.nonzero(rng.random((N, C)) >= 0.1)
    H, n = np.eye(C)[celltype], np.round(np.exp(rng.uniform(np.log(10), np.log(120), len(donor))))
    per_cell = rng.gamma(6.0, 0.5, C)[celltype]
    nu = per_cell * rng.chisquare(n - 1) / (n - 1) / n
    V = rng.choice([0.0, 0.02, 0.05, 0.2], C) * (rng.random() < 0.3)
    shared = rng.uniform(0, 0.5) * rng.normal(size=N)
    y = shared[donor] + np.sqrt(V[celltype] + per_cell / n) * rng.normal(size=len(donor))
    for c in np.flatnonzero(rng.random(C) < 0.4 * (rng.random() < 0.5)):
        own = np.flatnonzero(celltype == c)
        least = own[np.argsort(nu[own])[: rng.integers(1, 3)]]
        y[least] = shared[donor[least]] + 0.05 * np.sqrt(nu[least]) * rng.normal(size=len(least))
    random = []
    if rng.random() < 0.5:
        batch = rng.permutation(N) % (N // 10)
        y += rng.uniform(0, 0.3) * rng.normal(size=N // 10)[batch[donor]]
        random = [RandomComponent(batch[donor], np.ones(len(donor)))]
    basis = resolve("free", [f"c{k}" for k in range(C)]).basis
    model = build_model(y, nu, H, H, donor, basis, random)
    return model, Domain(), f"scan, {len(random)} random effects, N={N}, C={C}"


def with_outliers(seed: int) -> tuple[Model, Domain, str]:
    """Overall pseudobulk of many donors, three of whom lie far off."""
    rng = np.random.default_rng([99, seed])
    C, N = int(rng.integers(3, 7)), int(rng.integers(180, 260))
    H = rng.dirichlet(np.full(C, 2.0), N)
    n = np.round(np.exp(rng.uniform(np.log(10), np.log(120), N)))
    noise = H @ rng.gamma(6.0, 0.5, C) / n
    nu = noise * rng.chisquare(n - 1) / (n - 1)
    size = np.sqrt(np.median(nu))
    y = H @ rng.normal(size=C) + np.sqrt(noise) * rng.normal(size=N)
    y += size * rng.uniform(0, 2) * rng.normal(size=N)
    far = rng.choice(N, 3, replace=False)
    y[far] += rng.choice([-1, 1], 3) * rng.uniform(5, 30, 3) * size
    basis = resolve("free", [f"c{k}" for k in range(C)]).basis
    return build_model(y, nu, H, H, np.arange(N), basis), Domain("noise"), f"N={N}, C={C}"


def of_scan_with_outliers(seed: int) -> tuple[Model, Domain, str]:
    """A gene as in scans, three rows or donors of which lie far off."""
    model, domain, what = of_scan(seed)
    rng, y = np.random.default_rng([77, seed]), model.y.copy()
    for _ in range(3):
        size = rng.choice([-1, 1]) * rng.uniform(5, 30) * np.sqrt(np.median(model.nu))
        row = rng.integers(len(y))
        donor = model.row_donor == model.row_donor[row]
        if seed % 3 == 0:
            y[row] += size
        else:
            y[donor] += size if seed % 3 == 1 else size * rng.normal(size=donor.sum())
    given = model.H, model.H, model.row_donor, model.basis, model.random
    return build_model(y, model.nu, *given), domain, f"{what}, outliers"


def random_start(pr: Problem, middle: np.ndarray, rng: np.random.Generator, wk: Work) -> np.ndarray:
    """A point of the domain, at random as far from a multiple of `middle` as the domain reaches."""
    base = middle * 10 ** rng.uniform(-3, 1)
    step = rng.normal(size=len(middle)) * 10 ** rng.uniform(-2, 2, len(middle))
    step *= np.linalg.norm(middle) / np.linalg.norm(step)
    inside, outside, nobody = 0.0, math.inf, [np.zeros(0, dtype=np.int64)]
    length = 10 ** rng.uniform(-3, 2)
    for _ in range(60):
        theta = base + length * step
        feasible = (theta >= pr.lower).all() and lies_inside(pr, theta[None], nobody, wk)[0]
        inside, outside = (length, outside) if feasible else (inside, length)
        if outside == math.inf or outside - inside < 1e-3 * outside:
            break
        length = 0.5 * (inside + outside)
    share = 1.0 if outside == math.inf else 1.0 - 10 ** rng.uniform(-3, 0)
    return base + share * inside * step


def search(
    model: Model, domain: Domain, method: str, starts: int, seed: int, little: bool = False
) -> list[tuple[int, float, np.ndarray]]:
    """Ends of climbs from random starts: how each ended, dense log-likelihood, components.

    `little`: with that much of a barrier from every other.
    """
    scale = response_scale(model)
    pr = make_problem(model, constrain(model, domain), method == "reml", scale)
    wk, middle = make_work(pr), centre(model, scale)
    rng = np.random.default_rng([812, seed])
    ends = []
    for k in range(starts):
        theta = random_start(pr, middle, rng, wk)
        weight = np.full(1, LITTLE * (little and k % 2))
        end = best_of(pr, theta[None], weight, False, wk)
        if end.status != INFEASIBLE:
            ends.append((end.status, end.llf, end.theta * scale**2))
    return ends


def shortfall(
    model: Model, domain: Domain, method: str, starts: int, seed: int, little: bool = False
) -> tuple[str, float, float]:
    """How the reported fit ended, by how much a random start beats it, seconds of the fit."""
    begin = time.perf_counter()
    fit = estimate(model, method, domain)
    took = time.perf_counter() - begin
    ends = search(model, domain, method, starts, seed, little)
    inside = not fit.convergence.boundary
    if method == "ml":  # interior stationary points come first
        interior = [end for end in ends if end[0] == INTERIOR]
        if interior or inside:
            ends = interior
    gain = -math.inf
    if ends:
        best = max(ends, key=lambda end: end[1])
        gain = dense.llf(model, best[2], method) - dense.llf(model, fit.theta, method)
    return "inside" if inside else "on the edge", gain, took


def table(
    method: str, designs: range, starts: int, make: Callable[[int], tuple] = design
) -> list[str]:
    """Rows of the table of one method; those that are beaten go to the standard error stream."""
    count, beaten, worst, confounded = Counter(), Counter(), Counter(), 0
    for seed in designs:
        model, domain, what = make(seed)
        try:
            where, gain, _ = shortfall(model, domain, method, starts, seed, make is not design)
        except ConvergenceError:
            confounded += 1
            continue
        count[where] += 1
        beaten[where] += gain > BEATEN
        worst[where] = max(worst[where], gain)
        if gain > BEATEN:
            print(f"{method} {seed}: {what}: {gain:.2g}", file=sys.stderr, flush=True)
    kinds = {
        many_rows: ", many rows", of_scan: ", as in scans", with_outliers: ", donors far off",
        of_scan_with_outliers: ", as in scans, rows far off",
    }  # fmt: skip
    label = method.upper() + kinds.get(make, "")
    rows = [
        f"| {label} | {where} | {count[where]} | {beaten[where]} | {worst[where]:.1e} |"
        for where in sorted(count)
    ]
    print(*rows, f"{confounded} confounded", sep="\n", flush=True)
    return rows


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--designs", type=int, default=2000)
    parser.add_argument("--many", type=int, default=2000, help="designs of many rows")
    parser.add_argument("--scans", type=int, default=1000, help="designs as in scans")
    parser.add_argument("--outliers", type=int, default=300, help="designs with donors far off")
    parser.add_argument("--scan-outliers", type=int, default=300, help="as in scans, some far off")
    parser.add_argument("--ml", type=int, default=500)
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    lines = [
        "# Is the reported maximum the maximum?",
        "",
        f"Written by `reml_maximum.py`: random hard designs from number {asked.first} on, "
        f"{asked.starts} random starts each; beaten: by more than {BEATEN:g} in log-likelihood, by "
        "dense algebra.  Designs whose components cannot be told apart are left out.",
        "",
        "| method | the fit ends | designs | beaten | largest gain |",
        "|---|---|---|---|---|",
    ]
    for method, designs, make in (
        ("reml", asked.designs, design),
        ("reml", asked.many, many_rows),
        ("reml", asked.scans, of_scan),
        ("reml", asked.outliers, with_outliers),
        ("reml", asked.scan_outliers, of_scan_with_outliers),
        ("ml", asked.ml, design),
    ):
        lines += table(method, range(asked.first, asked.first + designs), asked.starts, make)
        (HERE / "reml_maximum.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
