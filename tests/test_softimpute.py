"""Soft-impute: against the R package's results, its own certificate, and what must not matter."""

import json

import numpy as np
import pytest
from conftest import quick_first

from ctmm_formula.cells import softimpute
from ctmm_formula.cells.fill import Options, fill
from ctmm_formula.cells.holes import copied_holes, split
from ctmm_formula.cells.stacks import rotate, scaling
from ctmm_formula.errors import CTMMError, DataError

pytestmark = pytest.mark.slow

OBJECTIVE = 1e-6
"""Relative, above the objective of the R package."""
COMPLETED = 1e-4
"""Absolute, entries of standard deviation 2: both stop near, not at, the minimum."""
SAME = 1e-8
"""Two ways to the same minimum, both with a duality gap of 1e-13."""
FINE = {"tol": 1e-13, "max_steps": 20_000}
PATH = 1e-3
"""Relative, errors on held-out entries: the two warm-started paths stop at different tolerances."""
BEST_LAMBDA = 0.02
"""Root mean squared error that the choice of lambda may cost, relative to the best of the grid."""


@pytest.fixture(scope="module")
def matrix(golden):
    return np.genfromtxt(golden / "softimpute_input.csv", delimiter=",")


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "softimpute_expected.json").read_text(encoding="utf-8"))


def low_rank(N, C, G, rng, factors=6, noise=0.7, holes=0.12):
    """Donors x cell types x genes: shared and specific factors, noise, whole pairs missing."""
    truth = np.empty((N, C, G))
    shared = rng.normal(size=(N, factors)) @ rng.normal(size=(factors, G)) / np.sqrt(factors)
    for c in range(C):
        own = rng.normal(size=(N, 3)) @ rng.normal(size=(3, G)) / np.sqrt(3)
        truth[:, c] = shared + 0.6 * own + noise * rng.normal(size=(N, G)) + rng.normal(size=G)
    missing = rng.random((N, C)) < holes * np.arange(1, C + 1) / (0.5 * (C + 1))
    missing[missing.all(axis=1), 0] = False
    return truth, missing


def with_holes(truth, missing):
    Y = truth.copy()
    Y[missing] = np.nan
    return Y


def blocks(seed=0, N=20, C=3, G=15):
    """A small matrix with block holes."""
    truth, missing = low_rank(N, C, G, np.random.default_rng(seed))
    return with_holes(truth, missing).reshape(N, C * G)


def objective(Y, Z, penalty):
    residual = np.where(np.isnan(Y), 0.0, Y - Z)
    return 0.5 * np.sum(residual**2) + penalty * np.linalg.svd(Z, compute_uv=False).sum()


def solution(Y, penalty):
    """Z itself, without rotation."""
    seen = ~np.isnan(Y)
    return softimpute.solve(
        np.where(seen, Y, 0.0)[None], seen, np.array([float(penalty)]), **FINE
    ).Z[0]


@pytest.mark.parametrize("k", range(6))
def test_as_good_as_the_r_package(matrix, expected, k):
    fit = expected["fits"][k]
    found = softimpute.complete(matrix, fit["lambda"])
    assert found.converged.all()
    assert found.objective[0] <= fit["objective"] * (1.0 + OBJECTIVE)
    np.testing.assert_allclose(found.values[0], fit["completed"], rtol=0.0, atol=COMPLETED)
    d = np.array(fit["d"])
    np.testing.assert_allclose(found.singular_values[0, : len(d)], d, rtol=0.0, atol=1e-2)


def test_largest_penalty_is_that_of_r(matrix, expected):
    largest = softimpute.largest_penalty(matrix)
    np.testing.assert_allclose(largest, expected["fits"][0]["lambda0"], rtol=1e-11)
    assert softimpute.complete(matrix, largest * 1.0001).rank[0] == 0
    assert softimpute.complete(matrix, largest * 0.98).rank[0] == 1


@pytest.mark.parametrize("penalty", [0.3, 1.0, 5.0])
def test_objective_and_conditions_of_the_minimum(penalty):
    Y = blocks()
    seen = ~np.isnan(Y)
    found = softimpute.complete(Y, penalty, **FINE)
    Z = solution(Y, penalty)
    assert found.objective[0] == pytest.approx(objective(Y, Z, penalty), rel=1e-12)
    # P(Y - Z) is lambda times a subgradient of the nuclear norm at Z
    u, d, vt = np.linalg.svd(Z, full_matrices=False)
    rank = int((d > 1e-6).sum())
    assert rank == found.rank[0]
    residual = np.where(seen, Y - Z, 0.0) / penalty
    u, vt = u[:, :rank], vt[:rank]
    np.testing.assert_allclose(u.T @ residual @ vt.T, np.eye(rank), atol=1e-5)
    assert np.linalg.norm(residual, 2) <= 1.0 + 1e-5


@pytest.mark.parametrize("steps", [1, 3, 10, 30])
def test_gap_bounds_the_distance_to_the_minimum(steps):
    Y = blocks(1)
    least = softimpute.complete(Y, 0.5, **FINE).objective[0]
    early = softimpute.complete(Y, 0.5, tol=1e-15, max_steps=steps)
    assert not early.converged.any()
    assert 0.0 <= early.objective[0] - least <= early.gap[0]


def test_certificate_of_any_matrix():
    Y = blocks(2)
    best = solution(Y, 1.0)
    worse = best + 0.01 * np.random.default_rng(0).normal(size=best.shape)
    for Z in (best, worse, np.zeros_like(best)):
        f, gap = softimpute.certificate(Y, Z[None], np.array([1.0]))
        assert f[0] == pytest.approx(objective(Y, Z, 1.0), rel=1e-12)
        assert gap[0] >= f[0] - objective(Y, best, 1.0) - 1e-9
    assert softimpute.certificate(Y, best[None], np.array([1.0]))[1][0] < 1e-6


def test_rotation_of_columns_changes_nothing():
    Y = blocks(3, N=10, C=3, G=40)
    small = rotate(Y[None], ~np.isnan(Y))
    assert small.values.shape[2] <= 3 * 10 < Y.shape[1]
    found = softimpute.complete(Y, 0.8, **FINE).values[0]
    Z = solution(Y, 0.8)
    np.testing.assert_allclose(found, np.where(np.isnan(Y), Z, Y), atol=SAME)


def test_columns_with_holes_of_their_own_are_not_rotated():
    rng = np.random.default_rng(4)
    Y = np.where(rng.random((12, 30)) < 0.2, np.nan, rng.normal(size=(12, 30)))
    assert len(rotate(Y[None], ~np.isnan(Y)).kept) == 30
    mixed = np.hstack([Y[:, :5], blocks(5, N=12, C=2, G=30)])
    for matrix in (Y, mixed):
        found = softimpute.complete(matrix, 0.5, **FINE).values[0]
        np.testing.assert_allclose(
            found, np.where(np.isnan(matrix), solution(matrix, 0.5), matrix), atol=SAME
        )


@pytest.mark.slow
def test_transpose_order_and_scale_do_not_matter():
    Y = blocks(6)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(Y.shape[0]), rng.permutation(Y.shape[1])
    found = softimpute.complete(Y, 0.5, **FINE).values[0]
    np.testing.assert_allclose(softimpute.complete(Y.T, 0.5, **FINE).values[0].T, found, atol=SAME)
    shuffled = softimpute.complete(Y[rows][:, columns], 0.5, **FINE).values[0]
    np.testing.assert_allclose(shuffled, found[rows][:, columns], atol=SAME)
    scaled = softimpute.complete(-100.0 * Y, 50.0, **FINE).values[0]
    np.testing.assert_allclose(scaled, -100.0 * found, atol=100.0 * SAME)


def test_a_stack_is_solved_matrix_by_matrix():
    rng = np.random.default_rng(7)
    truth, missing = low_rank(30, 4, 25, rng)
    stack = with_holes(truth, missing).transpose(2, 0, 1)
    penalty = rng.uniform(0.1, 3.0, 25)
    together = softimpute.complete(stack, penalty)
    assert together.converged.all()
    for b in (0, 11, 24):
        alone = softimpute.complete(stack[b], penalty[b])
        np.testing.assert_allclose(together.values[b], alone.values[0], atol=1e-10)
        assert together.objective[b] == pytest.approx(alone.objective[0], rel=1e-12)


def test_observed_entries_stay():
    Y = blocks(8)
    seen = ~np.isnan(Y)
    found = softimpute.complete(Y, 2.0).values[0]
    assert (found[seen] == Y[seen]).all()
    assert np.isfinite(found).all()


def test_no_holes_is_plain_soft_thresholding():
    Y = np.random.default_rng(9).normal(size=(8, 12))
    found = softimpute.complete(Y, 1.0)
    assert (found.values[0] == Y).all()
    d = np.linalg.svd(Y, compute_uv=False)
    np.testing.assert_allclose(found.singular_values[0], np.maximum(d - 1.0, 0.0), atol=1e-10)


def test_empty_rows_and_columns_are_filled_with_zero():
    Y = blocks(10)
    Y[3], Y[:, 5] = np.nan, np.nan
    found = softimpute.complete(Y, 0.5).values[0]
    np.testing.assert_allclose(found[3], 0.0, atol=1e-12)
    np.testing.assert_allclose(found[:, 5], 0.0, atol=1e-12)


def test_a_matrix_of_zeros_is_done_at_once():
    Y = np.zeros((4, 6))
    Y[1, 2] = np.nan
    found = softimpute.complete(Y, 1.0)
    assert found.converged.all() and found.steps == 1
    assert (found.values == 0.0).all()


@pytest.mark.parametrize("penalty", [0.0, -1.0, np.nan, np.inf])
def test_penalty_must_be_positive(penalty):
    with pytest.raises(CTMMError, match="must be positive"):
        softimpute.complete(blocks(), penalty)


def test_bad_matrices():
    Y = blocks()
    Y[0, 0] = np.inf
    with pytest.raises(DataError, match=r"infinite value at \(0, 0, 0\)"):
        softimpute.complete(Y, 1.0)
    with pytest.raises(DataError, match="need a matrix"):
        softimpute.complete(np.zeros(3), 1.0)
    with pytest.raises(DataError, match="need a matrix"):
        softimpute.complete(np.zeros((0, 3)), 1.0)
    two = np.zeros((2, 3, 3))
    two[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="miss the same entries"):
        softimpute.complete(two, 1.0)


@pytest.mark.slow
def test_cross_validation_is_fitting_without_the_fold():
    Y = blocks(11, N=24, C=3, G=20)
    seen = ~np.isnan(Y)
    grid = softimpute.penalties(softimpute.largest_penalty(Y), 4, 0.05)
    masks = [np.repeat(m, 20, axis=1) for m in split(np.ones((24, 3), bool), 3, rng=0)]
    losses = softimpute.cross_validate(Y, grid, masks, centre=True, scale=True, tol=1e-9)
    for f, mask in enumerate(masks):
        kept, held = seen & ~mask, seen & mask
        units = scaling(Y[None], kept)
        scaled = units.apply(Y[None])
        train = np.where(kept, scaled, np.nan)
        for k, penalty in enumerate(grid):
            guess = softimpute.complete(train, penalty, path=grid[:k], tol=1e-9).values[0]
            loss = np.mean((scaled[0] - guess)[held] ** 2)
            assert losses[f, k, 0] == pytest.approx(loss, rel=PATH)


def test_the_path_chooses_among_equally_good_fillings():
    nan = np.nan
    Y = np.array([[2.0, nan, 1.0], [nan, 1.0, 0.5], [1.0, 0.4, nan]])
    largest = softimpute.largest_penalty(Y)
    path = softimpute.penalties(largest, 10, 0.01)
    cold = softimpute.complete(Y, path[-1], **FINE)
    warm = softimpute.complete(Y, path[-1], path=path[:-1], **FINE)
    assert warm.objective[0] == pytest.approx(cold.objective[0], rel=1e-10)
    # the path never goes below the penalty asked for
    short = softimpute.complete(Y, path[3], path=path, **FINE)
    assert short.objective[0] == pytest.approx(softimpute.complete(Y, path[3]).objective[0])


def test_a_matrix_leaves_the_path_when_its_error_rises():
    Y = blocks(11, N=24, C=3, G=20)
    grid = softimpute.penalties(softimpute.largest_penalty(Y), 30, 0.01)
    masks = [np.repeat(m, 20, axis=1) for m in split(np.ones((24, 3), bool), 3, rng=0)]
    full = softimpute.cross_validate(Y, grid, masks, patience=30).mean(axis=0)[:, 0]
    short = softimpute.cross_validate(Y, grid, masks, patience=3).mean(axis=0)[:, 0]
    end = int(np.flatnonzero(np.isnan(short))[0])
    assert np.isfinite(full).all() and full.argmin() == np.nanargmin(short) == end - 5
    np.testing.assert_array_equal(short[:end], full[:end])


def test_cross_validation_of_a_tall_matrix_is_that_of_the_wide_one():
    Y = blocks(12, N=60, C=3, G=4)
    grid = softimpute.penalties(softimpute.largest_penalty(Y), 4, 0.05)
    masks = list(split(~np.isnan(Y), 3, rng=0))
    tall = softimpute.cross_validate(Y, grid, masks, tol=1e-9)
    wide = softimpute.cross_validate(Y.T, grid, [m.T for m in masks], tol=1e-9)
    np.testing.assert_allclose(tall, wide, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_chosen_penalty_is_nearly_the_best(seed):
    rng = np.random.default_rng(seed)
    truth, missing = low_rank(50, 4, 60, rng)
    Y = with_holes(truth, missing)
    chosen = fill(Y, Options(), np.random.default_rng(1))

    def rmse(filled):
        return np.sqrt(np.mean((filled.values - truth)[missing] ** 2))

    largest = chosen.penalty[0] / chosen.grid[np.nanargmin(chosen.loss)]
    errors = [rmse(fill(Y, Options(penalty=p, tol=1e-4), rng)) for p in largest * chosen.grid]
    assert rmse(chosen) <= (1.0 + BEST_LAMBDA) * min(errors)
    # and what the transcriptome adds
    by_gene = fill(Y, Options(by="gene"), np.random.default_rng(1))
    means = fill(Y, Options(method="mean", by="gene"), rng)
    assert rmse(chosen) < rmse(by_gene) < rmse(means)


def test_copied_holes_are_holes_that_occur():
    rng = np.random.default_rng(0)
    observed = np.ones((50, 4), bool)
    observed[:6, 3] = False
    observed[6:8, 1:] = False
    hidden = copied_holes(observed, 0.1, rng)
    assert not (hidden & ~observed).any()
    assert hidden.sum() >= 0.1 * 200
    left = observed & ~hidden
    assert left.any(axis=1).all()
    assert (left.sum(axis=0) >= observed.sum(axis=0) / 2).all()
    assert not hidden[:, 0].any()
    patterns = {tuple(row) for row in ~observed}
    both = {tuple(row) for row in ~left}
    assert both <= {tuple(np.logical_or(a, b)) for a in patterns for b in patterns}


def test_copied_holes_end_where_nothing_can_be_copied():
    assert not copied_holes(np.ones((10, 3), bool), 0.1, 0).any()
    lonely = np.ones((4, 1), bool)
    lonely[0] = False
    assert not copied_holes(lonely, 0.5, 0).any()
    with pytest.raises(CTMMError, match="fraction"):
        copied_holes(lonely, 1.0)


def test_split_hides_each_observed_entry_once():
    observed = np.random.default_rng(0).random((20, 7)) < 0.8
    masks = list(split(observed, 5, rng=1))
    assert (sum(m.astype(int) for m in masks) == observed).all()


def test_scaling_of_odd_columns():
    Y = np.array([[[1.0, 0.1, 5.0, 0.0], [3.0, 0.1, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]]])
    seen = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=bool)
    units = scaling(Y, seen)
    np.testing.assert_allclose(units.centre[0, 0], [2.0, 0.1, 5.0, 0.0])
    np.testing.assert_allclose(units.scale[0, 0], [np.sqrt(2.0), 1.0, 1.0, 1.0])
    np.testing.assert_allclose(units.undo(units.apply(Y)), Y)


def test_donors_and_columns_without_values_stay_missing():
    truth, missing = low_rank(20, 3, 10, np.random.default_rng(13))
    missing[4] = True
    missing[:, 2] = True
    for options in (Options(), Options(by="gene"), Options(method="mvn", by="gene")):
        values = fill(with_holes(truth, missing), options, np.random.default_rng(0)).values
        assert np.isnan(values[4]).all() and np.isnan(values[:, 2]).all()
        assert np.isfinite(np.delete(values[:, :2], 4, axis=0)).all()


@pytest.mark.parametrize("by", ["transcriptome", "gene"])
@pytest.mark.parametrize("holdout", quick_first(["pairs", "entries"]))
def test_single_genes_may_be_missing(by, holdout):
    rng = np.random.default_rng(14)
    truth, missing = low_rank(25, 3, 12, rng)
    Y = with_holes(truth, missing)
    Y[0, 0, 0], Y[3, 1, 0], Y[5, 2, 7] = np.nan, np.nan, np.nan
    values = fill(Y, Options(by=by, holdout=holdout, n_penalties=5), rng).values
    seen = ~np.isnan(Y)
    assert np.isfinite(values).all() and (values[seen] == Y[seen]).all()


def test_complete_data_come_back():
    truth, _ = low_rank(10, 3, 5, np.random.default_rng(15))
    for options in (Options(), Options(by="gene"), Options(method="mvn", by="gene")):
        found = fill(truth, options, np.random.default_rng(0))
        assert (found.values == truth).all() and np.isnan(found.penalty).all()


def test_one_donor_teaches_nothing():
    Y = np.array([[[1.0], [np.nan]]])
    with pytest.raises(DataError, match="other donors"):
        fill(Y, Options(), np.random.default_rng(0))


def test_too_few_donors_for_cross_validation():
    Y = np.random.default_rng(0).normal(size=(2, 2, 4))
    Y[0, 0] = np.nan
    with pytest.raises(CTMMError, match="give penalty="):
        fill(Y, Options(), np.random.default_rng(0))
    assert np.isfinite(fill(Y, Options(penalty=0.5), np.random.default_rng(0)).values).all()
