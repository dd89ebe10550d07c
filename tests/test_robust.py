"""Noise-robust estimates, their jackknife and their tests of fixed effects against brute force.

Structures x {cell type-specific, overall} x random effects x {complete, missing pairs}; a new row
of the registry is tested here without a change.
"""

from __future__ import annotations

import dense
import dense_robust
import numpy as np
import pytest
from scipy import stats
from test_engine import REGISTRY, USER, close

from ctmm_formula.engine import he, robust, sandwich
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.engine.noise import working_noise
from ctmm_formula.errors import ConvergenceError
from ctmm_formula.structures import resolve

EXACT = 1e-8
"""Relative: both sides are exact, only rounding is between them."""
ROUNDING = 1e-14
"""Times the condition number of a moment matrix, where overall pseudobulk makes it 1e6 and more."""

N, CELLTYPES = 24, ("A", "B", "C")
RANDOM = ("none", "batch", "celltype-specific", "nested", "crossed in blocks", "crossed")
UNITS = {"none": N, "batch": 8, "celltype-specific": 8, "nested": 6, "crossed in blocks": 6}
UNITS["crossed"] = 1

structures = pytest.mark.parametrize("structure", [*REGISTRY, "user"])
kinds = pytest.mark.parametrize("kind", ["ctp", "op"])
effects = pytest.mark.parametrize("random", RANDOM)
holes = pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])


def random_effects(name: str, donor: np.ndarray, H: np.ndarray) -> list[RandomComponent]:
    """Levels of shuffled donors; ``nested`` has pools within sites, ``crossed`` one whole block."""
    i = np.random.default_rng(7).permutation(N)[donor]
    ones = np.ones(len(donor))
    batch, site = RandomComponent(i % 8, ones), RandomComponent(i % 6, ones)
    pool = RandomComponent(i % 6 + 6 * (i // 12), ones)
    day = RandomComponent(i % 6 + 6 * (i // 6 % 2), ones)
    return {
        "none": [],
        "batch": [batch],
        "celltype-specific": [RandomComponent(i % 8, H[:, c]) for c in range(2)],
        "nested": [site, pool],
        "crossed in blocks": [site, pool, day],
        "crossed": [batch, RandomComponent(i % 3, ones)],
    }[name]


def make(
    structure: str = "free", kind: str = "ctp", random: str = "none", missing: bool = False,
    extra: np.ndarray | None = None, scale: float = 0.8,
) -> Model:  # fmt: skip
    """A model whose rows are in no order, whose measured noise is wrong and sometimes zero."""
    rng = np.random.default_rng([11, kind == "op", RANDOM.index(random), missing])
    size = len(CELLTYPES)
    present = rng.random((N, size)) > (0.2 if missing else -1)
    present[present.sum(axis=1) < 1] = True
    if kind == "ctp":
        donor, celltype = np.nonzero(present)
        H = np.eye(size)[celltype]
    else:
        donor = np.arange(N)
        H = rng.dirichlet([1.0] * size, N) * present
        H /= H.sum(axis=1, keepdims=True)
    shuffle = rng.permutation(len(donor))
    donor, H = donor[shuffle], H[shuffle]
    covariates = np.c_[rng.normal(size=N), rng.integers(0, 2, N) * 40.0][donor]
    X = np.hstack([H, covariates] + ([] if extra is None else [extra[donor][:, None]]))
    cells = rng.integers(5, 100, len(donor)).astype(float)
    nu = rng.gamma(2.0, 4.0, len(donor)) / cells
    nu[rng.random(len(nu)) < 0.1] = 0.0
    y = 5.0 + scale * (rng.normal(size=N)[donor] + rng.normal(size=len(donor)))
    basis = resolve(USER if structure == "user" else structure, CELLTYPES).basis
    return build_model(
        y, nu, X, H, donor, basis, random_effects(random, donor, H), cells
    )  # fmt: skip


def tolerance(*conditions: float) -> float:
    return max(EXACT, ROUNDING * max(conditions))


def contrasts(p: int) -> np.ndarray:
    """Equal means of the cell types, and a covariate."""
    L = np.zeros((3, p))
    L[0, :2], L[1, 1:3], L[2, 3] = [1, -1], [1, -1], 1
    return L


@structures
@kinds
@effects
@holes
def test_estimate(structure, kind, random, missing):
    model = make(structure, kind, random, missing)
    got, want = robust.weigh(model), dense_robust.fit(model)
    close(got.estimate.theta, want.theta, tolerance(want.condition))
    close(got.estimate.beta, want.beta)
    close(got.estimate.cov_beta, want.K)
    close(got.estimate.information, 0.5 * want.F)
    close(got.cov_working, 2.0 * np.linalg.inv(want.F), tolerance(want.condition))
    assert got.n_units == want.unit.max() + 1
    if not missing:  # else some donors have no level
        assert got.n_units == UNITS[random]
    for members in got.donors:
        assert len({*want.unit[np.isin(model.row_donor, members)]}) == 1
    assert got.unit == ("donor" if random == "none" else "block")


@structures
@kinds
@effects
@holes
def test_leaving_out_units(structure, kind, random, missing):
    model = make(structure, kind, random, missing)
    got, want = robust.weigh(model), dense_robust.fit(model)
    left = got.replicates
    if random == "crossed":
        assert np.isnan(left.theta).all() and np.isnan(left.beta).all()
        return
    order = [want.unit[np.flatnonzero(model.row_donor == d[0])[0]] for d in got.donors]
    parts = dense_robust.jackknife(want)
    parts = [parts[u] for u in order]
    close(left.theta, [p.theta for p in parts], tolerance(*(p.condition for p in parts)))
    close(left.beta, [p.beta for p in parts])
    both = np.array([[*p.theta, *p.beta] for p in parts])
    cov = (len(both) - 1) ** 2 / len(both) * np.cov(both.T)
    close(left.covariance(), cov, tolerance(*(p.condition for p in parts)))
    errors = np.maximum(np.diag(cov)[: len(want.theta)], np.diag(2.0 * np.linalg.inv(want.F)))
    t = stats.t.ppf(0.95, len(both) - 1) * np.sqrt(errors)
    interval = np.transpose([want.theta - t, want.theta + t])
    close(got.component_intervals(0.9), interval, tolerance(*(p.condition for p in parts)))


@structures
@kinds
@effects
@holes
def test_fixed_effects(structure, kind, random, missing):
    model = make(structure, kind, random, missing)
    L = contrasts(model.X.shape[1])
    fit = robust.weigh(model)
    got, test = sandwich.contrasts(fit, L), sandwich.hotelling(fit, L, 0.3)
    assert got.value == pytest.approx(L @ fit.estimate.beta)
    if random == "crossed":
        assert np.isnan(got.cov).all() and np.isnan(got.df).all() and np.isnan(test.pvalue)
        assert got.note == test.note == robust.ONE_UNIT
        return
    want = dense_robust.cr2(dense_robust.fit(model), L, 0.3)
    close(got.cov, want.cov)
    close(got.df, want.df)
    close(want.expected, L @ fit.estimate.cov_beta @ L.T)  # unbiased under the working covariance
    assert got.note == ""
    size = np.sqrt(np.diag(want.cov))
    close(got.pvalues(0.3), 2 * stats.t.sf(np.abs(got.value - 0.3) / size, want.df))
    half = stats.t.ppf(0.975, want.df) * size
    close(got.intervals(), np.transpose([got.value - half, got.value + half]))
    if want.df_denom > 0:
        close([test.statistic, test.df_num, test.df_denom], [want.F, 3, want.df_denom])
        close(test.pvalue, stats.f.sf(want.F, 3, want.df_denom))
    else:
        assert np.isnan(test.statistic) and test.note == sandwich.TOO_FEW
