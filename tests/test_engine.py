"""The engine against brute force, for every covariance structure in the registry.

Structures x {cell type-specific, overall} x fixed/random parts x {complete, missing pairs}; a new
row of the registry is tested here without a change.
"""

from __future__ import annotations

import json
from dataclasses import replace

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import GOLDEN, quick_first
from scipy import stats
from scipy.optimize import minimize

from ctmm_formula.engine import kernels
from ctmm_formula.engine.blup import effects
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.likelihood import evaluate, fit, lay_out, residual, response_scale
from ctmm_formula.engine.model import Model, RandomComponent, build_model
from ctmm_formula.engine.noise import pooling, working_noise
from ctmm_formula.engine.search import singular
from ctmm_formula.errors import ConvergenceError, CTMMError
from ctmm_formula.inference.counted_noise import counted_noise
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.inference.score import design_of, null_of, score_test, weights_of_types
from ctmm_formula.inference.score_law import law_of
from ctmm_formula.inference.score_null import _spans, reduced, room_of
from ctmm_formula.inference.tails import tail
from ctmm_formula.simulate import CountCells
from ctmm_formula.simulate.counts import measured_cells
from ctmm_formula.structures import ARGUMENTS, STRUCTURES, resolve

EXACT = 1e-8
"""Relative: both sides are exact, only rounding (condition numbers of 1e4-1e6) is between them."""
NUMERICAL = 1e-7
"""Relative: Richardson differences of a log-likelihood near 30 keep about 9 digits."""
LAST_STEP = 1e-6
"""Relative: a jackknife replicate's b is that of theta before the last, tiny step."""
NULL_FIT = 1e-6
"""Relative: two null fits, each stopped at a small gradient."""
TINY = 1e-9
"""Relative: the contour's own tolerance is 1e-10."""
TAIL = 1e-6
"""Absolute, of a p value against Imhof's integral (cut off at 1e-8) at nulls equal to 1e-6."""
SADDLEPOINT = 0.15
"""Relative: the prototype's tails are saddlepoints, off the exact ones by up to 8 % at p > 1e-3
and 15 % at 1e-43; the exact ones are checked to a few per cent by sampling."""

N, CELLTYPES = 12, ("A", "B", "C")
USER = [
    np.ones((3, 3)),
    np.outer([1.0, 0.5, -2.0], [1.0, 0.5, -2.0]),  # rank one, not 0/1
    np.array([[1.0, 0.4, 0.1], [0.4, 1.0, 0.4], [0.1, 0.4, 1.0]]),  # full rank
]
REGISTRY = [f"{name}(1)" if name in ARGUMENTS else name for name in STRUCTURES]
KINDS = ("ctp", "op")
PARTS = ("none", "covariates", "batch", "crossed", "celltype-specific batch")
TARGET = np.diag([0.35, -0.03, 0.12]) + 0.3 + 0.02 * (np.eye(3, k=1) + np.eye(3, k=-1))
"""Covariance of the true expression, with a cell type-specific variance below zero."""

structures = pytest.mark.parametrize("structure", [*REGISTRY, "user"])
kinds = pytest.mark.parametrize("kind", KINDS)
settings = pytest.mark.parametrize("setting", PARTS)
holes = pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
methods = pytest.mark.parametrize("method", ["ml", "reml"])


def close(actual: np.ndarray, desired: np.ndarray, tolerance: float = EXACT) -> None:
    """Agreement relative to the largest entry, so that exact zeros are not asked for digits."""
    desired = np.asarray(desired)
    assert np.shape(actual) == desired.shape
    np.testing.assert_allclose(
        actual, desired, rtol=0, atol=tolerance * np.abs(desired).max(initial=1e-6)
    )


def make(structure: str, kind: str, setting: str, missing: bool, seed: int = 0) -> Model:
    """A small model whose rows are in no order at all."""
    rng = np.random.default_rng([seed, KINDS.index(kind), PARTS.index(setting), missing])
    size = len(CELLTYPES)
    present = rng.random((N, size)) > (0.25 if missing else -1)
    present[present.sum(axis=1) < 1] = True
    if kind == "ctp":
        donor, celltype = np.nonzero(present)
        H = np.eye(size)[celltype]
    else:
        donor = np.arange(N)
        H = rng.dirichlet([2.0] * size, N) * present
        H /= H.sum(axis=1, keepdims=True)
    shuffle = rng.permutation(len(donor))
    donor, H = donor[shuffle], H[shuffle]
    X, random = H, []
    if setting != "none":
        X = np.hstack([H, np.c_[rng.normal(size=N), rng.integers(0, 2, N) * 40.0][donor]])
    ones = np.ones(len(donor))
    batch = rng.permutation(np.arange(N) % 4)[donor]
    if setting in ("batch", "crossed"):
        random.append(RandomComponent(batch, ones))
    if setting == "crossed":
        random.append(RandomComponent(rng.permutation(np.arange(N) % 3)[donor], ones))
    if setting == "celltype-specific batch":
        random += [RandomComponent(batch, H[:, c]) for c in range(size)]
    basis = resolve(USER if structure == "user" else structure, CELLTYPES).basis
    return build_model(
        rng.normal(size=len(donor)), rng.uniform(0.15, 0.6, len(donor)), X, H, donor, basis,
        random, rng.integers(10, 100, len(donor)).astype(float),
    )  # fmt: skip


def inside(model: Model) -> np.ndarray:
    """Components inside the domain, some below zero (also a random effect's)."""
    basis = model.basis.reshape(len(model.basis), -1)
    donor_level = np.linalg.lstsq(basis.T, TARGET.ravel(), rcond=None)[0]
    return np.concatenate([donor_level, [0.2, -0.01, 0.1][: len(model.random)]])


@structures
@kinds
@settings
@holes
def test_likelihood_and_derivatives(structure, kind, setting, missing):
    model = make(structure, kind, setting, missing)
    theta = inside(model)
    for method in ("ml", "reml"):
        got = evaluate(model, theta, method)
        close(got.llf, dense.llf(model, theta, method))
        close(got.score, dense.score(model, theta, method))
        close(got.average, dense.average_information(model, theta))
        close(got.expected, dense.expected_information(model, theta, method))
        beta, cov = dense.gls(model, theta)
        close(got.beta, beta)
        close(got.cov_beta, cov)


@structures
@kinds
@methods
def test_score_is_the_gradient_and_information_the_curvature(structure, kind, method):
    model = make(structure, kind, "batch", True)
    theta = inside(model)
    numerical = dense.score_numerical(model, theta, method)
    close(dense.score(model, theta, method), numerical, NUMERICAL)
    got = evaluate(model, theta, method)
    close(got.score, numerical, NUMERICAL)
    # and the curvature is the gradient's own gradient
    step = 1e-5
    curvature = [
        (dense.score(model, theta - e, method) - dense.score(model, theta + e, method)) / (2 * step)
        for e in step * np.eye(len(theta))
    ]
    close(2 * got.average - got.expected, curvature, NUMERICAL)


@structures
@kinds
@settings
def test_donors_left_out(structure, kind, setting):
    """Switching donors off is the same as never having had them."""
    model = make(structure, kind, setting, True).without([2, 7])
    theta = inside(model)
    assert model.nobs == len(dense.arrays(model).y) < len(model.y)
    for method in ("ml", "reml"):
        got = evaluate(model, theta, method)
        close(got.llf, dense.llf(model, theta, method))
        close(got.score, dense.score(model, theta, method))
        close(got.expected, dense.expected_information(model, theta, method))
        close(got.beta, dense.gls(model, theta)[0])
    if kind == "ctp":  # ten overall rows do not identify every structure
        close(estimate(model, "he", Domain("noise", 0.1)).theta, dense.haseman_elston(model)[0])


@structures
@kinds
@settings
@holes
def test_haseman_elston(structure, kind, setting, missing):
    model = make(structure, kind, setting, missing)
    theta, condition = dense.haseman_elston(model)
    got = estimate(model, "he", Domain("noise", 0.1))
    if condition > 1e12:
        pytest.skip(f"moments of this small design do not identify it (condition {condition:.0e})")
    close(got.theta, theta, max(EXACT, 1e-15 * condition))
    assert np.isnan(got.llf)
    if np.isfinite(dense.llf(model, got.theta, "reml")):
        assert got.beta_by == "gls"
        beta, cov = dense.gls(model, got.theta)
        close(got.beta, beta)
        close(got.cov_beta, cov)
    else:
        assert got.beta_by == "ols"
        close(got.beta, dense.ols(model))
        assert np.isnan(got.cov_beta).all()


@structures
@kinds
@settings
@holes
def test_predictions(structure, kind, setting, missing):
    model = make(structure, kind, setting, missing)
    theta = inside(model)
    shared = np.flatnonzero((model.basis == 1).all(axis=(1, 2)))
    want = dense.blups(model, theta, shared[0] if len(shared) else None)
    beta = dense.gls(model, theta)[0]
    got = effects(model, theta, beta, shared)
    close(got.shared, np.tile(want.shared[:, None], model.H.shape[1]))
    close(got.shared_se, np.tile(want.shared_se[:, None], model.H.shape[1]))
    close(got.specific, want.specific)
    close(np.isfinite(got.specific_se), np.isfinite(want.specific_se))
    close(np.nan_to_num(got.specific_se), np.nan_to_num(want.specific_se))
    assert len(got.random) == len(model.random)
    for (values, se), u, u_se in zip(got.random, want.random, want.random_se, strict=True):
        close(values, u)
        close(np.nan_to_num(se), np.nan_to_num(u_se))
    close(got.fitted, want.fitted)
    close(got.marginal, model.X @ beta)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in PARTS if s != "celltype-specific batch"])
@kinds
@holes
@pytest.mark.parametrize("seed", [1, 2])
def test_score_test(setting, kind, missing, seed):
    model = make("free", kind, setting, missing, seed)
    want = dense.score_test(model, np.ones((1, 3, 3)))
    got = score_test(model)
    close(got.theta_null, want.theta, NULL_FIT)
    close([*got.statistic, got.statistic_sum], want.statistic, NULL_FIT)
    np.testing.assert_allclose(
        [*got.pvalue_celltype, got.pvalue_sum], want.pvalue, rtol=0, atol=TAIL
    )

    def combined(*pvalues):
        high = np.minimum(pvalues, 0.99)
        return 0.5 - np.arctan(np.mean(np.tan((0.5 - high) * np.pi))) / np.pi

    expected = combined(got.pvalue_sum, combined(*got.pvalue_celltype))
    assert got.pvalue_cauchy == pytest.approx(expected, rel=EXACT)


def test_score_test_without_cell_counts():
    """The mean noise of a cell type stands in for the counts, and the result says so."""
    model = make("free", "ctp", "none", False, 1)
    assert score_test(model).weights == "n_cells"
    blind = replace(model, n_cells=None)
    got, want = score_test(blind), dense.score_test(blind, np.ones((1, 3, 3)))
    assert got.weights == "mean noise"
    np.testing.assert_allclose(got.pvalue_celltype, want.pvalue[:3], rtol=0, atol=TAIL)


PROTOTYPE = json.loads((GOLDEN / "score_test.json").read_text())


@pytest.mark.parametrize("golden", PROTOTYPE["fits"], ids=lambda fit: fit["file"])
def test_score_test_prototype(golden, make_model):
    """P values down to 1e-43 by an independent prototype."""
    frame = pd.read_csv(GOLDEN / f"{golden['file']}.csv")
    batch = "batch" if golden["batch"] else None
    model = make_model(frame, "free", covariates=golden["covariates"], batch=batch)
    got = score_test(model)
    pvalues = [*got.pvalue_celltype, got.pvalue_sum]
    theirs = [*golden["p_celltype"], golden["p_sum"]]
    np.testing.assert_allclose(pvalues, theirs, rtol=SADDLEPOINT)


@pytest.mark.parametrize("distance", [0.02, 0.5, 1.0, 5.0, 40.0, 300.0])
def test_tails_in_closed_form(distance):
    """Equal weights: chi-square; pairs of both signs: Laplace; down to p = 1e-65."""
    for count in (1, 2, 5, 50):
        got = dense.upper_tail(2.0 * distance, np.full(count, 2.0))
        assert got == pytest.approx(stats.chi2.sf(distance, count), rel=TINY)
    pairs = np.array([0.5, 0.5, -0.5, -0.5])
    want = stats.laplace.sf(distance)
    assert dense.upper_tail(distance, pairs) == pytest.approx(want, rel=TINY)
    assert dense.upper_tail(-distance, pairs) == pytest.approx(1.0 - want, rel=TINY)


@settings
@kinds
@holes
def test_null_of_the_score(setting, kind, missing):
    """On reduced rows the null is that of the likelihood, and so is the information of scores."""
    model = make("free", kind, setting, missing, 4)
    design, C = design_of(model), model.H.shape[1]
    null, noise = null_of(model, design), working_noise(model.nu, design.how, 1.0)
    hom, types = np.ones((1, C, C)), np.array([np.diag(e) for e in np.eye(C)])
    own = model.with_basis(hom).with_response(model.y, noise)
    want = fit(own, "reml", Domain("nonnegative")).theta
    close(null.theta, want, NULL_FIT)
    # the kernel of reduced rows against that of all, from the same point
    at = np.array([0.3, 0.2, 0.1, 0.05])[: len(want)]
    scale, rows = response_scale(own), design.layout.rows
    (problem, work), own_rows = room_of(design.null), (noise[rows], residual(own)[rows], scale)
    reduced(design.layout, design.null.spans, *own_rows, problem.blocks.design, problem.y)
    there = evaluate(own, at * scale**2)
    kernels.evaluate(
        problem.kernel, at, problem.y, problem.nu, problem.blocks, problem.active, True, 2,
        work.score, work.average, work.expected, work.beta, work.gram,
    )  # fmt: skip
    close(work.score / scale**2, there.score, EXACT)
    close(work.average / scale**4, there.average, EXACT)
    close(work.expected / scale**4, there.expected, EXACT)
    # what is left of the scores
    both = model.with_basis(np.concatenate([hom, types])).with_response(model.y, noise)
    at = np.concatenate([null.theta[:1], np.zeros(C), null.theta[1:]])
    fisher = evaluate(both, at).expected
    kept, new = np.r_[0, 1 + C : len(at)], np.arange(1, 1 + C)
    a = np.linalg.solve(fisher[np.ix_(kept, kept)], fisher[np.ix_(kept, new)])
    left = fisher[np.ix_(new, new)] - fisher[np.ix_(new, kept)] @ a
    close(null.memory.efficient.a, a, EXACT)
    close(null.memory.efficient.left, [*np.diag(left), left.sum()], EXACT)
    close(null.memory.efficient.whole[:C], np.diag(fisher)[new], EXACT)


@pytest.mark.parametrize("setting", quick_first(["batch", "none", "crossed"]))
@kinds
def test_law_of_the_score(setting, kind):
    """Donors, levels and fixed effects have the law of the eigenvalues, at any distance."""
    model = make("free", kind, setting, True, 4)
    design = design_of(model)
    null = null_of(model, design)
    want = dense.score_test(model, np.ones((1, 3, 3)), null.theta)
    scores = null.scores()
    R, inner, rank, level = scores.forms[1:5]
    for d, (same, lam) in enumerate(want.form):
        value, own = scores.forms.value[d], (R[d, : rank[d]], inner[d, : rank[d], : rank[d]])
        law = law_of(scores.layout, scores.found, *own, scores.gain, level[d])
        _, mean, variance = tail(value, law)
        assert value == pytest.approx(same, rel=EXACT)
        assert mean == pytest.approx(lam.sum(), abs=EXACT * np.sqrt(variance))
        assert variance == pytest.approx(2.0 * np.square(lam).sum(), rel=EXACT)
        for distance in (-3.0, -1.0, 0.0, 1.0, 5.0, 40.0, 200.0):
            value = mean + distance * np.sqrt(variance)
            assert np.exp(tail(value, law, 0.0, 0.0, 1e-7)[0]) == pytest.approx(
                dense.upper_tail(value, lam), rel=1e-7
            )


@pytest.mark.parametrize("setting", ["batch", "none", "crossed"])
def test_score_laws_are_compiled_once(setting):
    """Arrays are in one order, whatever the random effects: else each is compiled by itself."""
    model = make("free", "ctp", setting, True, 4)
    design = design_of(model)
    scores = null_of(model, design).scores()
    parts = [*scores.layout, *scores.found, scores.gain, *scores.forms]
    assert all(part.flags.c_contiguous for part in parts)


@pytest.mark.parametrize("setting", quick_first(["batch", "none", "crossed"]))
@kinds
@holes
def test_variance_of_the_score_by_unbiased_squares(setting, kind, missing):
    """Sums over donors have the variance of dense algebra; the shape is that of the law."""
    model = make("free", kind, setting, missing, 4)
    rng = np.random.default_rng(3)
    nu2 = model.nu**2 * rng.uniform(-0.2, 2.0, len(model.nu))
    nu2[::5] = np.nan  # there is what is pooled
    nu = np.where(rng.random(len(nu2)) < 0.2, 0.0, model.nu)
    model = replace(model, nu=nu, nu2=nu2)
    got, hom = score_test(model), np.ones((1, 3, 3))
    want = dense.score_test(model, hom, got.theta_null)
    found = [*got.statistic, got.statistic_sum], [*got.pvalue_celltype, got.pvalue_sum]
    variances = dense.counted_variances(model, hom, got.theta_null)
    for statistic, pvalue, (q, lam), variance in zip(*found, want.form, variances, strict=True):
        distance = (q - lam.sum()) / np.sqrt(variance)
        assert statistic == pytest.approx(distance, rel=1e-8, abs=1e-8)
        at = lam.sum() + distance * np.sqrt(2.0 * np.square(lam).sum())
        assert pvalue == pytest.approx(dense.upper_tail(at, lam), rel=1e-7)


def test_noise_is_pooled_in_groups_of_rows_that_are_alike():
    rng = np.random.default_rng(3)
    one_hot, used = np.eye(5)[rng.integers(1, 5, 40)], rng.random(40) < 0.7
    crossed = np.kron(one_hot[:10], np.ones((1, 2)))  # ones, but two in a row
    halves = 0.5 * np.eye(4)[rng.integers(0, 4, 30)]
    for H in (one_hot, crossed, halves, rng.dirichlet(np.ones(4), 20)):
        rows, n_cells = np.resize(used, len(H)), rng.integers(2, 9, len(H)).astype(float)
        how = pooling(H, n_cells, rows)
        alike = (H[:, None] == H).all(axis=2)
        if len(np.unique(H, axis=0)) > H.shape[1]:
            alike[:] = True
        np.testing.assert_array_equal(how.code[:, None] == how.code, alike)
        np.testing.assert_array_equal(how.sizes[how.code], np.maximum(alike.astype(int) @ rows, 1))
        np.testing.assert_array_equal(how.per_cell[rows], n_cells[rows])


def test_levels_that_leave_the_span_of_others_are_found():
    rng = np.random.default_rng(4)
    h, z = np.ones((2, 1, 4, 16)), rng.normal(size=(2, 2, 4, 16))
    once = np.zeros((2, 1, 4, 16))
    once[1, 0, 2, 5] = 1.0
    columns = np.concatenate([h, 2.0 * h, z[:, :1], z[:, :1] - h, once, z[:, 1:]], axis=1)
    by_donor = columns.transpose(0, 3, 2, 1).reshape(32, 4, -1)
    rank = [np.linalg.matrix_rank(by_donor[:, :, : k + 1]) for k in range(columns.shape[1])]
    more = np.flatnonzero((np.diff(rank, axis=0) > 0).any(axis=1))
    np.testing.assert_array_equal(_spans(columns), more)
    assert more.tolist() == [1, 3, 4]


def test_noise_that_does_not_move_changes_nothing():
    """With squares as the law has them, and all of the same variance between cells."""
    model = make("free", "ctp", "batch", True, 1)
    n = model.n_cells
    model = replace(model, nu=model.types @ np.array([1.0, 2.0, 0.5]) / n)
    got, want = score_test(replace(model, nu2=model.nu**2 * (n - 1) / n)), score_test(model)
    for c in range(3):  # weights of the sum are another matter
        close(got.statistic[c], want.statistic[c])
    close(got.pvalue_celltype, want.pvalue_celltype)


@pytest.mark.parametrize("mean", [0.1, 1.0])
def test_noise_of_counts_is_taken_apart(mean):
    """Pooled products, slopes and shares are those of counts whose truth is known."""
    rng = np.random.default_rng(5)
    N, sd = 4000, 0.3
    fold, donor = sd * rng.normal(size=N), np.arange(N)
    n = np.full(N, 30)
    y, nu, nu2 = CountCells(mean, 0.0).measure(rng, fold, n, donor)
    own = np.zeros(N, dtype=np.int64), 1, y, nu, nu2, n.astype(float), n.astype(float)
    found = counted_noise(*own, y.var() - nu.mean())
    effects = y.var() - nu.mean()
    close(found.pooled, np.full(N, nu.mean()))
    assert found.square.mean() == pytest.approx(np.mean(nu2) * 30 / 29, rel=0.1)
    # alpha^2 nu without what the pair's own cells have in common: the effects of other cells
    other = CountCells(mean, 0.0).measure(rng, fold, n, donor)
    with_effect = np.mean((np.square(other.mean - y.mean()) - other.nu) * nu)
    assert effects * nu.mean() + found.with_effect[0] == pytest.approx(with_effect, rel=0.1)
    # normal cells have noise of their own
    plain = measured_cells(np.repeat(fold, n) + rng.normal(size=n.sum()), n)
    found = counted_noise(own[0], 1, *plain, *own[5:], sd**2)
    assert found.own.min() > 0.99 and abs(found.with_effect).max() < 0.01 * sd**2 * nu.mean()


def test_types_weigh_by_their_variance_between_cells_where_squares_are_known():
    """A type in which hardly anything is counted does not take the sum from the others."""
    rng = np.random.default_rng(4)
    N, cells = 50, CountCells(1.0, 0.5)
    donor, celltype = np.divmod(np.arange(4 * N), 4)
    fold = 0.3 * rng.normal(size=4 * N) + np.where(celltype == 3, np.log(0.005), 0.0)
    n = rng.integers(30, 100, 4 * N)
    found, H = cells.measure(rng, fold, n, donor), np.eye(4)[celltype]
    basis = resolve("free", list("abcd")).basis
    model = build_model(found.mean, found.nu, H, H, donor, basis, n_cells=n.astype(float),
                        nu2=found.nu2)  # fmt: skip
    got, plain = score_test(model), score_test(replace(model, nu2=None))
    assert not got.silent and 0.5 < (found.nu[celltype == 3] == 0.0).mean() < 0.9
    assert got.pvalue_sum < 1e-4 and plain.pvalue_sum > 0.05  # and three types vary
    weights = weights_of_types(model, design_of(model))
    close(weights, dense.sum_weights(model))
    assert weights.max() == 1.0 and weights[3] < 0.02
    assert plain.low == (3,) and got.low == ()
    # without numbers of cells, or the squares, nothing says what cells vary; where they vary less
    # in types of higher means, as on a logarithm, that says nothing of V
    upside = replace(model, y=-model.y)
    for blind in (replace(model, n_cells=None), replace(model, nu2=None), upside):
        assert (weights_of_types(blind, design_of(blind)) == 1.0).all()
    # nor does a type without rows, wherever the response has its zero
    rows, kept = celltype != 2, np.array([0, 1, 3])
    for shift in (0.0, -9.0):
        fewer = build_model(
            found.mean[rows] + shift, found.nu[rows], H[:, kept][rows], H[rows], donor[rows],
            basis, n_cells=n[rows].astype(float), nu2=found.nu2[rows],
        )  # fmt: skip
        own = weights_of_types(fewer, design_of(fewer))
        close(own[kept], weights[kept] / weights[kept].max())
        assert own[2] == 0.0


@methods
def test_a_likelihood_weighs_pairs_without_noise_by_the_working_noise(method):
    """0 stays the measured noise; covariances of fits and predictions hold what is pooled."""
    model = make("free", "ctp", "batch", True, 2)
    zero = np.arange(len(model.nu)) % 6 == 0
    model = replace(model, nu=np.where(zero, 0.0, model.nu))
    filled = replace(model, nu=np.where(zero, dense.working_noise(model), model.nu))
    got, want = estimate(model, method), estimate(filled, method)
    close(got.theta, want.theta)
    close(got.beta, want.beta)
    assert got.llf == pytest.approx(want.llf, rel=EXACT)
    runs = [jackknife(each, at, Domain()) for each, at in ((model, got), (filled, want))]
    close(runs[0].theta, runs[1].theta, 1e-6)
    close(
        effects(model, got.theta, got.beta, np.array([0])).fitted,
        effects(filled, got.theta, got.beta, np.array([0])).fitted,
    )


@methods
def test_a_cell_type_without_any_noise_has_no_likelihood(method):
    model = make("free", "ctp", "none", False, 1)
    silent = replace(model, nu=np.where(model.H[:, 1] == 1, 0.0, model.nu))
    with pytest.raises(ConvergenceError, match="noise variance is 0 in every pair of a cell type"):
        estimate(silent, method)
    for other in ("he", "robust"):
        assert np.isfinite(estimate(silent, other).theta).all()
    test = score_test(silent)  # by the other types
    assert test.silent == (1,) and np.isnan(test.pvalue_celltype[1])
    assert np.isfinite([*np.delete(test.pvalue_celltype, 1), test.pvalue_sum]).all()
    few = replace(model, nu=np.where(np.arange(len(model.nu)) % 20 == 0, model.nu, 0.0))
    with pytest.raises(CTMMError, match=r"in more than 90% of the pairs all cells are alike"):
        score_test(few)


def test_donors_without_any_noise_leave_the_score_test_its_law():
    """Shared variance at zero and a donor that is never seen: its part of the law is nothing."""
    model = make("free", "ctp", "none", False, 1)
    rng = np.random.default_rng(8)
    silent = model.row_donor < 4
    y = np.where(silent, 0.0, rng.normal(size=len(silent)) * (model.H[:, 0] - 0.3))
    model = replace(model, y=y, nu=np.where(silent, 0.0, 4.0))
    got, want = score_test(model), dense.score_test(model, np.ones((1, 3, 3)), np.zeros(1))
    assert got.theta_null == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(got.pvalue_celltype, want.pvalue[:3], rtol=0, atol=TAIL)


@pytest.mark.slow
def test_score_test_far_in_the_tail(make_model):
    """P values of 1e-6 to 1e-12 by importance sampling on brute-force eigenvalues."""
    model = make_model(pd.read_csv(GOLDEN / "sim_complete.csv"), "free")
    got, want = score_test(model), dense.score_test(model, np.ones((1, 3, 3)))
    rng = np.random.default_rng(5)
    for p, (q, lam) in zip([*got.pvalue_celltype, got.pvalue_sum], want.form, strict=True):
        sampled, error = dense.tilted(q, lam, 40_000, rng)
        assert error < 0.08 * sampled
        assert abs(p - sampled) < 4 * error


@pytest.mark.parametrize(
    "golden", quick_first(PROTOTYPE["hard_n20"], 4), ids=lambda fit: fit["gene"]
)
def test_score_test_prototype_of_hard_genes(golden, make_model):
    model = make_model(hard_gene(golden["gene"])[0], "free")
    got, want = score_test(model), dense.score_test(model, np.ones((1, 4, 4)))
    np.testing.assert_allclose(
        [*got.pvalue_celltype, got.pvalue_sum], want.pvalue, rtol=0, atol=TAIL
    )
    assert (got.theta_null > 0).all()  # the prototype had no bounds: then it is the same null
    np.testing.assert_allclose(got.pvalue_celltype, golden["p_celltype"], rtol=SADDLEPOINT)
    assert got.pvalue_sum == pytest.approx(golden["p_sum"], rel=SADDLEPOINT)


def test_imhof_against_monte_carlo():
    """The oracle of the p values, once, against simulation."""
    rng = np.random.default_rng(1)
    lam = np.array([2.0, 1.0, 0.5, -0.3, -1.2])
    draws = rng.chisquare(1, (400_000, 5)) @ lam
    for q in (-2.0, 1.0, 6.0):
        assert dense.imhof(q, lam) == pytest.approx(np.mean(draws > q), abs=4 * 0.5 / 400_000**0.5)


@structures
@methods
def test_outside_the_domain(structure, method):
    model = make(structure, "ctp", "batch", True)
    theta = inside(model)
    theta[0] = -5.0
    assert dense.llf(model, theta, method) == -np.inf
    assert evaluate(model, theta, method).llf == -np.inf


@kinds
@methods
def test_order_of_rows_and_donors_is_immaterial(kind, method):
    model = make("free", kind, "crossed", True)
    theta = inside(model)
    rng = np.random.default_rng(3)
    rows, names = rng.permutation(len(model.y)), rng.permutation(N)
    again = build_model(
        model.y[rows], model.nu[rows], model.X[rows], model.H[rows], names[model.row_donor[rows]],
        model.basis, [RandomComponent(c[rows], v[rows]) for c, v in model.random],
    )  # fmt: skip
    first, second = evaluate(model, theta, method), evaluate(again, theta, method)
    close(second.llf, first.llf)
    close(second.score, first.score)
    close(second.beta, first.beta)
    fitted = effects(again, theta, second.beta, np.array([0])).fitted
    close(again.unsort(fitted), effects(model, theta, first.beta, np.array([0])).fitted[rows])


@kinds
@pytest.mark.parametrize("structure", ["iid", "free", "full"])
@pytest.mark.parametrize("seed", quick_first([0, 4, 5]))
def test_reml_finds_the_top(structure, kind, seed):
    """No random point of the domain beats the estimate; inside, its gradient vanishes."""
    model = make(structure, kind, "covariates", False, seed)
    domain = Domain("noise", 0.1)
    fit = estimate(model, "reml", domain)
    close(fit.llf, dense.llf(model, fit.theta, "reml"))
    expected = dense.expected_information(model, fit.theta, "reml")
    close(fit.information, expected)
    close(fit.observed, 2 * dense.average_information(model, fit.theta) - expected)
    if fit.convergence.converged and not fit.convergence.boundary:
        gradient = dense.score(model, fit.theta, "reml")
        assert gradient @ np.linalg.solve(expected, gradient) < 1e-8
    rng = np.random.default_rng(seed)
    for _ in range(200):
        theta = fit.theta + rng.normal(size=len(fit.theta)) * rng.choice([1e-3, 0.03, 0.3, 1.0])
        if slack(model, theta) >= 0.1:
            assert dense.llf(model, theta, "reml") <= fit.llf + 1e-6


def slack(model: Model, theta: np.ndarray) -> float:
    """Smallest eigenvalue of the covariance relative to the noise's."""
    a = dense.arrays(model)
    root = np.sqrt(np.diag(a.D))
    return float(np.linalg.eigvalsh(dense.covariance(a, theta) / np.outer(root, root))[0])


@pytest.mark.parametrize("method", ["reml", "ml", "he"])
@pytest.mark.parametrize("batch", quick_first(["batch", None]))
def test_jackknife_refits_everything(method, batch, make_model):
    """Each replicate is the fit of the other donors, by brute force; one batch has one donor."""
    table = pd.read_csv(GOLDEN / "sim_batch_cov.csv")
    kept = sorted(table["donor"].unique())[:24]
    frame = table[table["donor"].isin(kept)].copy()
    frame.loc[frame["donor"] == kept[3], "batch"] = "alone"
    model = make_model(frame, "free", covariates=["cov1"], batch=batch)
    domain = Domain("noise", 0.1)
    full = estimate(model, method, domain)
    result = jackknife(model, full, domain)
    assert not result.failed
    assert [list(group) for group in result.left_out] == [[i] for i in range(len(kept))]
    for i, (theta, beta) in enumerate(zip(result.theta, result.beta, strict=True)):
        others = model.without([i])
        if method == "he":
            close(theta, dense.haseman_elston(others)[0])
            # b is refitted in the way of the full fit, GLS where it was GLS
        else:
            gradient = dense.score(others, theta, method)
            curvature = dense.average_information(others, theta)
            if slack(others, theta) > 0.1 + 1e-3:
                assert gradient @ np.linalg.solve(curvature, gradient) < 1e-8
            assert dense.llf(others, theta, method) >= estimate(others, method, domain).llf - 1e-6
            close(beta, dense.gls(others, theta)[0], LAST_STEP)
    both = np.hstack([result.beta, result.theta])
    gap = both - both.mean(axis=0)
    close(result.cov, (len(kept) - 1) / len(kept) * gap.T @ gap)


def climb(y, nu, basis, floor: float, start: np.ndarray, last: float = 1e-7) -> float:
    """REML over {A + D_i - floor D_i > 0} by BFGS behind a vanishing barrier; complete data."""
    eye = np.eye(y.shape[1])

    def objective(theta: np.ndarray, weight: float) -> tuple[float, np.ndarray]:
        A = np.tensordot(theta, basis, axes=1)
        wall = A + (1 - floor) * nu[:, :, None] * eye
        if np.linalg.eigvalsh(wall)[:, 0].min() <= 0:
            return np.inf, np.zeros_like(theta)
        Sigma = A + nu[:, :, None] * eye
        M = np.linalg.inv(Sigma)
        Q = np.linalg.inv(M.sum(axis=0))
        r = np.einsum("icd,id->ic", M, y - Q @ np.einsum("icd,id->c", M, y))
        value = np.linalg.slogdet(Sigma)[1].sum() - np.linalg.slogdet(Q)[1] + np.sum(r * y)
        value -= 2 * weight * np.linalg.slogdet(wall)[1].sum()
        slope = M.sum(axis=0) - np.einsum("icd,de,ief->cf", M, Q, M) - r.T @ r
        slope -= 2 * weight * np.linalg.inv(wall).sum(axis=0)
        return 0.5 * value, 0.5 * np.einsum("kcd,cd->k", basis, slope)

    weight = 0.1
    while weight > last:
        start = minimize(objective, start, (weight,), jac=True, method="BFGS").x
        weight /= 5
    n, p = y.size, y.shape[1]
    constants = -0.5 * (n - p) * np.log(2 * np.pi) + 0.5 * p * np.log(len(y))
    return constants - objective(start, 0.0)[0]


@methods
@pytest.mark.parametrize("bounds", ["noise", "psd", "nonnegative"])
@pytest.mark.parametrize("kind", ["ctp", "op"])
def test_responses_that_share_a_design_are_fitted_as_alone(method, bounds, kind):
    model, domain = make("free", kind, "batch", missing=True), Domain(bounds)
    shared, rng = lay_out(model, method, domain), np.random.default_rng(3)
    for _ in range(3):
        y, nu = rng.normal(size=(2, len(model.y)))
        own = model.with_response(y, 0.2 + nu**2)
        alone = replace(model, y=own.y, nu=own.nu)
        for name in ("noise", "residual"):
            np.testing.assert_array_equal(getattr(own, name), getattr(alone, name))
        got, want = fit(own, method, domain, shared), fit(alone, method, domain)
        for name in ("theta", "beta", "cov_beta", "information", "llf"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("size", [1e-13, 1e-11, 1e-9, 1e-7])
def test_components_are_confounded_where_an_eigenvalue_of_the_correlations_is_nothing(size):
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(4, 4)))[0]
    A = (axes * [2.0, 1.0, 0.7, size]) @ axes.T
    root = np.sqrt(A.diagonal())
    least = np.linalg.eigvalsh(A / np.outer(root, root))[0]
    scales = np.array([1e-3, 1.0, 50.0, 4.0])
    assert singular(A * np.outer(scales, scales)) == (least < 1e-10)
    A[2] = A[:, 2] = 0.0
    assert singular(A)


def hard_gene(gene: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    table = pd.read_csv(GOLDEN / "hard_n20.csv")
    frame = table[table["gene"] == gene].reset_index(drop=True)
    return frame, *(frame.pivot(index="donor", columns="celltype", values=v).to_numpy()
                    for v in ("expr", "nu"))  # fmt: skip


@pytest.mark.parametrize("gene", quick_first([f"g{i:02d}" for i in range(1, 41)], 4))
def test_hard_genes(gene, make_model):
    """Noise differs 10-fold, the optimum is often on the edge: another climber finds no more."""
    frame, y, nu = hard_gene(gene)
    model = make_model(frame, "free")
    floor = 0.1
    fit = estimate(model, "reml", Domain("noise", floor))
    assert fit.convergence.converged
    assert slack(model, fit.theta) >= floor * (1 - 1e-6)
    assert fit.convergence.boundary == (slack(model, fit.theta) < floor + 1e-3)
    rng = np.random.default_rng(int(gene[1:]))
    for _ in range(2):
        start = np.r_[0.3, 0.1 * np.ones(4)] * rng.gamma(2.0, 0.5, 5)
        with np.errstate(invalid="ignore"):
            assert climb(y, nu, model.basis, floor, start) <= fit.llf + 1e-4
