"""Noise-robust estimates, their jackknife and their tests of fixed effects against brute force.

Structures x {cell type-specific, overall} x random effects x {complete, missing pairs}; a new row
of the registry is tested here without a change.
"""

from __future__ import annotations

from dataclasses import replace

import dense_robust
import numpy as np
import pytest
from scipy import stats
from test_engine import REGISTRY, USER, close

from ctmm_formula.engine import he, robust, sandwich
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.errors import ConvergenceError
from ctmm_formula.structures import resolve

pytestmark = pytest.mark.slow

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
    # on the scale of log(theta + c), se = sqrt(2 / df) (theta + c)
    df, se = len(both) - 1, np.sqrt(errors)
    c = np.maximum(se / np.sqrt(2.0 / df) - want.theta, 0.0)
    free = dense_robust.error_df(both[:, : len(want.theta)])
    close(got.error_df, free, tolerance(*(p.condition for p in parts)))
    t = stats.t.ppf(0.95, free) * se / (want.theta + c)
    interval = np.transpose([(want.theta + c) * np.exp(s * t) - c for s in (-1, 1)])
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
    close(got.statistics(0.3), want.t)
    close(got.pvalues(0.3), 2 * stats.t.sf(np.abs(want.t), want.df))
    at = [dense_robust.ends(dense_robust.fit(model), L[0], 0.05, *got.intervals()[0])]
    np.testing.assert_allclose(at, [[1.0, -1.0]], rtol=1e-6)
    if np.isfinite(want.df_denom):
        close([test.statistic, test.df_num, test.df_denom], [want.F, 3, want.df_denom])
        close(test.pvalue, stats.f.sf(want.F, 3, want.df_denom))
    else:
        assert np.isnan(test.statistic) and test.note == sandwich.TOO_FEW


def subset(model: Model, rows: np.ndarray, X: np.ndarray | None = None) -> Model:
    """A model of some rows, as if there had never been others."""
    X = model.X if X is None else X
    donor = np.unique(model.row_donor[rows], return_inverse=True)[1]
    random = [RandomComponent(c.codes[rows], c.values[rows]) for c in model.random]
    return build_model(
        model.y[rows], model.nu[rows], X[rows], model.H[rows], donor, model.basis, random,
        model.n_cells[rows],
    )  # fmt: skip


@pytest.mark.parametrize("random", ["none", "nested", "crossed"])
def test_donors_out_of_use(random):
    whole = make("free", "ctp", random, True)
    model = whole.without([2, 7])
    got, want = robust.weigh(model), robust.weigh(subset(model, model.active_rows))
    close(got.estimate.theta, want.estimate.theta)
    close(got.estimate.beta, want.estimate.beta)
    close(got.replicates.covariance(), want.replicates.covariance())
    L = contrasts(model.X.shape[1])
    close(sandwich.contrasts(got, L).cov, sandwich.contrasts(want, L).cov)
    some = model.without(np.flatnonzero(model.donor_block == 0)) if random != "crossed" else model
    fits = [robust.weigh(one) for one in (some, subset(some, some.active_rows))]
    close(*(sandwich.contrasts(fit, L).statistics(0.3) for fit in fits))
    close(*(sandwich.hotelling(fit, L).pvalue for fit in fits))
    assert not {2, 7} & set(np.concatenate(got.donors))


@pytest.mark.parametrize("random", ["batch", "nested"])
def test_leaving_out_units_whatever_free_memory_holds(random):
    """Fewer donors than a tile has lanes: what the others hold nobody has set."""
    base = make("hom", "ctp", random)
    model = subset(base, base.row_donor < 12)
    fit, want = robust.weigh(model), dense_robust.fit(model)
    order = [want.unit[np.flatnonzero(model.row_donor == d[0])[0]] for d in fit.donors]
    parts = dense_robust.jackknife(want)
    for value in (np.nan, np.inf, 1e300, 1.0):
        room = [np.full(size, value) for size in range(128, 4096, 8)]
        del room[::2]  # the rest keeps the heap from being returned
        left = replace(fit).replicates
        del room
        close(left.theta, [parts[u].theta for u in order], tolerance(*(p.condition for p in parts)))
        close(left.beta, [parts[u].beta for u in order])


@pytest.mark.parametrize("random", ["none", "nested"])
def test_many_covariates(random):
    """More than a donor has rows."""
    base = make("free", "ctp", random, True)
    extra = np.random.default_rng(0).normal(size=(N, 8))[base.row_donor]
    model = subset(base, base.active_rows, np.hstack([base.X, extra]))
    fit, want = robust.weigh(model), dense_robust.fit(model)
    L = contrasts(model.X.shape[1])
    close(sandwich.contrasts(fit, L).cov, dense_robust.cr2(want, L).cov)
    parts = [p.beta for p in dense_robust.jackknife(want)]
    close(sorted(fit.replicates.beta[:, 0]), sorted(b[0] for b in parts))


def test_no_fixed_effects():
    base = make("free", "ctp", "batch", True)
    model = subset(base, base.active_rows, base.X[:, :0])
    fit, want = robust.weigh(model), dense_robust.fit(model)
    close(fit.estimate.theta, want.theta)
    assert fit.replicates.beta.shape == (fit.n_units, 0) and fit.estimate.beta.shape == (0,)
    assert np.isfinite(fit.component_intervals()).all()


@pytest.mark.parametrize("random", ["none", "nested"])
def test_a_fixed_effect_that_rests_on_one_unit(random):
    base = make("free", "ctp", random, True)
    spike = np.where(base.row_donor == 4, 1.0, 0.0)
    model = subset(base, base.active_rows, np.column_stack([base.X, spike]))
    fit, want = robust.weigh(model), dense_robust.fit(model)
    donor = int(model.row_donor[np.argmax(model.X[:, -1])])
    alone = next(u for u, members in enumerate(fit.donors) if donor in members)
    left, parts = fit.replicates, dense_robust.jackknife(want)
    u = want.unit[np.flatnonzero(model.row_donor == donor)[0]]
    assert np.flatnonzero(np.isnan(left.beta).any(axis=1)).tolist() == [alone]
    close(left.theta[alone], parts[u].theta)
    cov, K = left.covariance(), len(left.theta[0])
    assert np.isfinite(cov[:K, :K]).all() and np.isnan(cov[K:, K:]).all()
    L = contrasts(model.X.shape[1])
    close(sandwich.contrasts(fit, L).cov, dense_robust.cr2(want, L).cov)
    close(sandwich.contrasts(fit, L).df, dense_robust.cr2(want, L).df)
    L[2] = np.eye(len(L[2]))[-1]
    got, test = sandwich.contrasts(fit, L), sandwich.hotelling(fit, L)
    assert got.note == test.note == sandwich.ALONE
    assert np.isnan(got.cov).all() and np.isnan(got.pvalues()).all() and np.isnan(test.pvalue)


def test_a_component_of_one_donor_has_no_estimate_without_it():
    """Whatever rounding leaves of that donor's sums (40 tables; some had one before)."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        there = rng.random((30, 4)) < 0.8
        there[~there.any(axis=1), 0] = True
        there[:, 3] = np.arange(30) == 0
        donor, celltype = np.nonzero(there)
        H, n_cells = np.eye(4)[celltype], rng.integers(2, 200, len(donor)).astype(float)
        y = rng.normal(size=30)[donor] + rng.normal(size=len(donor))
        X = np.column_stack([np.ones(len(donor)), rng.normal(size=30)[donor]])
        basis = resolve("free", list("abcd")).basis
        nu = rng.gamma(2, 4, len(donor)) / n_cells
        model = build_model(y, nu, X, H, donor, basis, n_cells=n_cells)
        theta = robust.weigh(model).replicates.theta
        assert np.isnan(theta[0]).all()
        assert np.isfinite(theta[1:]).all()


def test_a_donor_without_whom_components_cannot_be_told_apart():
    """Cell type C is there for two donors only: the variance between them is all there is."""
    base = make("free")
    rows = (base.H[:, 2] == 0) | np.isin(base.row_donor, [3, 9])
    model = subset(base, rows)
    fit = robust.weigh(model)
    left = fit.replicates
    lost = np.flatnonzero(np.isnan(left.theta).any(axis=1))
    assert set(lost) == {int(model.row_donor[i]) for i in np.flatnonzero(model.H[:, 2])}
    assert np.isfinite(left.beta).all()
    close(fit.component_errors(), np.sqrt(np.diag(fit.cov_working)))  # the one there is


def test_what_cannot_be_fitted():
    base = make("free", "ctp", "batch")
    with pytest.raises(ConvergenceError, match="collinear"):
        robust.weigh(base.without(range(2, N)))
    twice = build_model(
        base.y, base.nu, base.X, base.H, base.row_donor, base.basis, [*base.random, *base.random]
    )
    with pytest.raises(ConvergenceError, match="cannot be told apart"):
        robust.weigh(twice)


def test_hypotheses_that_cannot_be_tested():
    model = make("free", "ctp", "nested")
    fit = robust.weigh(model)
    p = len(fit.estimate.beta)
    L = np.eye(p)[[0, 1, 0]]
    assert sandwich.hotelling(fit, L).note == "the hypotheses are linearly dependent"
    few = robust.weigh(model.without(np.flatnonzero(model.donor_block > 2)))
    assert few.n_units == 3 and sandwich.hotelling(few, np.eye(p)).note == sandwich.TOO_FEW


def test_hotelling_of_complete_even_data():
    """Donors alike: that of the differences' covariance, moved towards the model's."""
    rng = np.random.default_rng(3)
    size, count = 4, 15
    H = np.tile(np.eye(size), (count, 1))
    y = rng.normal(size=(count, size)) @ rng.normal(size=(size, size))
    nu = np.tile([0.1, 0.4, 0.2, 0.9], count)
    donor = np.repeat(np.arange(count), size)
    basis = resolve("free", list("abcd")).basis
    model = build_model(y.ravel(), nu, H, H, donor, basis, n_cells=np.full(len(nu), 20.0))
    L = np.diff(np.eye(size), axis=0)
    fit = robust.weigh(model)
    got = sandwich.hotelling(fit, L)
    D, q = y @ L.T, len(L)
    own, by_model = np.cov(D.T) / count, L @ fit.estimate.cov_beta @ L.T
    factor = np.trace(np.linalg.solve(by_model, own)) / q
    # of a Wishart matrix; of the model's own, whose free components are known from the donors
    shape, phi = (q + 2) * (q - 1) / (q * (count - 1)), 2 / (q * (count - 1))
    free = basis[fit.state.before > 0]
    P = np.linalg.inv(count * fit.estimate.cov_beta)
    W = 2 / (count - 1) * np.linalg.inv(np.einsum("kab,bc,lcd,da->kl", free, P, free, P))
    M = np.linalg.solve(by_model, L @ free @ L.T / count)
    M = M - np.trace(M, axis1=1, axis2=2)[:, None, None] * np.eye(q) / q
    kappa = np.einsum("kl,kab,lba", W, M, M) / q
    assert len(free) > 0 and 0 < kappa < shape
    w = shape / (1 + shape)
    V = (1 - w) * own + w * factor * by_model
    T2 = D.mean(axis=0) @ np.linalg.solve(V, D.mean(axis=0))
    mean, square = dense_robust.marchenko_pastur(shape - kappa, shape)
    x = square / (1 - kappa) - 1
    f = 4 + (q + 2) / x
    close(got.statistic, T2 / q / (mean / (1 - kappa) * (1 - 2 / f)))
    close([got.df_num, got.df_denom], [q, 1 / (1 / f + phi / 2)])
    one = sandwich.contrasts(fit, L)
    close(one.df, np.full(q, count - 1.0))
    close(one.pvalues(), stats.ttest_1samp(D, 0.0).pvalue)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_law_of_joint_tests(groups):
    """Units that say different things of different rows, by draws at the same weights."""
    rng = np.random.default_rng(groups)
    size, count = 6, 20
    H = np.tile(np.eye(size), (count, 1))
    donor = np.repeat(np.arange(count), size)
    cells = np.exp(rng.uniform(np.log(5), np.log(500), len(donor)))
    nu = 10.0 / cells
    y = rng.normal(size=len(nu)) * np.sqrt(nu + 0.02)
    X = np.hstack([H, H * (donor % 2)[:, None]])[:, : size * groups]
    basis = resolve("iid", list("abcdef")).basis
    model = build_model(y, nu, X, H, donor, basis, n_cells=cells)
    L = np.eye(size * groups)[-size:]
    fit, got = dense_robust.fit(model), robust.weigh(model)
    close(sandwich.hotelling(got, L).df_denom, dense_robust.cr2(fit, L).df_denom)
    known = got.components._replace(directions=np.zeros((len(got.components.directions), 0)))
    got.__dict__["components"], fit.free = known, fit.free[:, :0]
    want, test = dense_robust.cr2(fit, L), sandwich.hotelling(got, L)
    close([test.statistic, test.df_denom], [want.F, want.df_denom])
    draws = rng.normal(size=(8000, len(y))) @ np.linalg.cholesky(fit.Sigma).T
    terms = np.einsum("sun,bn->bsu", want.units, draws)
    V = terms @ terms.transpose(0, 2, 1)
    np.testing.assert_allclose(V.mean(axis=0), np.eye(size), atol=0.06)
    factor = np.trace(V, axis1=1, axis2=2)[:, None, None] / size
    assert factor.var() == pytest.approx(want.phi, rel=0.1)
    off = np.square(V - factor * np.eye(size)).sum(axis=(1, 2)).mean() / size
    assert off == pytest.approx(want.shape, rel=0.03)
    w = want.shape / (1 + want.shape)
    x = rng.normal(size=(len(V), size))
    V = (1 - w) * V + w * factor * np.eye(size)
    T2 = (x * np.linalg.solve(V, x[..., None])[..., 0]).sum(axis=1)
    p = stats.f.sf(want.scale * T2 / size, size, want.df_denom)
    assert 0.043 < (p < 0.05).mean() < 0.057 and 0.007 < (p < 0.01).mean() < 0.013


@pytest.mark.slow
def test_joint_tests_count_that_components_are_estimates():
    """600 sets of 16 donors, ten components: as if those were known .1 of the sets are rejected."""
    rng = np.random.default_rng(8)
    size, count = 4, 16
    H, donor = np.tile(np.eye(size), (count, 1)), np.repeat(np.arange(count), size)
    cells = np.exp(rng.uniform(np.log(20), np.log(200), len(donor)))
    nu, basis = 10.0 / cells, resolve("full", list("abcd")).basis
    X, L = np.hstack([H, H * (donor % 2)[:, None]]), np.eye(2 * size)[size:]
    p, known = [], []
    for _ in range(600):
        y = rng.normal(size=count)[donor] + rng.normal(size=len(nu)) * np.sqrt(0.8 + nu)
        fit = robust.weigh(build_model(y, nu, X, H, donor, basis, n_cells=cells))
        p.append(sandwich.hotelling(fit, L).pvalue)
        none = np.zeros((len(fit.components.directions), 0))
        fit.__dict__["components"] = fit.components._replace(directions=none)
        known.append(sandwich.hotelling(fit, L).pvalue)
    rates = [np.mean(np.array(one) < 0.05) for one in (p, known)]
    assert 0.03 < rates[0] < 0.075 and rates[1] > rates[0] + 0.03


@pytest.mark.parametrize("count", [3, 5])
def test_as_many_even_donors_as_hypotheses(count):
    """eta is q - 1 but for rounding, which has no say in whether there is a test."""
    rng = np.random.default_rng(4)
    donor, celltype = np.divmod(np.arange(count * (count + 1)), count + 1)
    H, nu = np.eye(count + 1)[celltype], np.full(len(donor), 0.3)
    basis = resolve("iid", list("abcdef")[: count + 1]).basis
    L = np.eye(count + 1)[1:] - np.eye(count + 1)[0]
    for _ in range(20):
        y = rng.normal(size=count)[donor] + rng.normal(size=len(donor))
        fit = robust.weigh(build_model(y, nu, H, H, donor, basis))
        assert sandwich.hotelling(fit, L).note == sandwich.TOO_FEW
        assert np.isfinite(sandwich.hotelling(fit, L[1:]).pvalue)


def test_invariances():
    """Units of the response, coding of X and what X explains change nothing but their own."""
    model = make("free", "ctp", "batch", True)
    base = robust.weigh(model)
    L = contrasts(model.X.shape[1])
    test, cov = sandwich.hotelling(base, L), base.replicates.covariance()
    scaled = robust.weigh(model.with_response(1e-3 * model.y, 1e-6 * model.nu))
    close(scaled.estimate.theta, 1e-6 * base.estimate.theta)
    close(sandwich.hotelling(scaled, L).pvalue, test.pvalue)
    shift = np.arange(model.X.shape[1]) - 2.0
    moved = robust.weigh(model.with_response(model.y + model.X @ shift, model.nu))
    close(moved.estimate.theta, base.estimate.theta)
    close(moved.estimate.beta, base.estimate.beta + shift)
    turn = np.random.default_rng(0).normal(size=(len(shift), len(shift)))
    coded = robust.weigh(subset(model, model.active_rows, model.X @ turn))
    close(coded.estimate.theta, base.estimate.theta)
    K = len(base.estimate.theta)
    close(coded.replicates.covariance()[:K, :K], cov[:K, :K])
    close(sandwich.hotelling(coded, L @ turn).statistic, test.statistic)


def test_one_design_serves_all_responses():
    model = make("full", "ctp", "nested", True)
    design = robust.lay_out(model)
    rng = np.random.default_rng(1)
    for _ in range(3):
        other = model.with_response(rng.normal(size=len(model.y)), rng.uniform(size=len(model.y)))
        one, many = robust.weigh(other), robust.weigh(other, design)
        np.testing.assert_array_equal(one.estimate.theta, many.estimate.theta)
        np.testing.assert_array_equal(one.replicates.beta, many.replicates.beta)


def test_starts_at_haseman_elston(monkeypatch):
    monkeypatch.setattr(robust, "REWEIGHTINGS", 0)
    model = make("free", "ctp", "nested", True)
    close(robust.fit(model).theta, he.fit(model).theta)


@pytest.mark.parametrize("kept", [1, 0])
def test_noise_measured_as_zero(kept):
    """A cell type without any measured noise, and none at all."""
    model = make("free", "ctp", "batch")
    model = model.with_response(model.y, np.where(model.H[:, 0] == 1, 0.0, kept * model.nu))
    got = robust.weigh(model)
    assert np.isfinite(got.estimate.theta).all() and np.isfinite(got.estimate.beta).all()
    if kept:
        close(got.estimate.theta, dense_robust.fit(model).theta)
    flat = robust.weigh(model.with_response(np.zeros(len(model.y)), np.zeros(len(model.y))))
    assert (np.abs(flat.estimate.theta) < 1e-20).all()


def test_record_of_the_fit():
    fit = robust.fit(make("free", "ctp", "batch"), "robust", None)
    assert fit.method == "robust" and fit.beta_by == "gls"
    assert np.isnan(fit.llf) and np.isnan(fit.observed).all()
    record = fit.convergence
    assert record.converged and not record.boundary and record.n_evaluations == 5
    assert 0.0 < record.gradient_norm < 1.0  # standard errors
    assert "4 times" in record.message
