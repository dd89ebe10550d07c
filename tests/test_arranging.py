"""How rows, donors and levels lie in arrays, and what is done to every response, by other means."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import solve_triangular
from scipy.sparse.csgraph import connected_components

from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.likelihood import fit as by_likelihood
from ctmm_formula.engine.likelihood import fixed_effects, lay_out
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.engine.noise import one_type_each, pooling, weighed
from ctmm_formula.inference.fit import Fit, share_errors
from ctmm_formula.structures import resolve

EXACT = 1e-12
"""Relative: the same sums in another order."""
SEEDS = range(8)


def study(seed):
    """Donors with some of 3 types in any order, and up to three random components."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(20), rng.integers(1, 4, 20))
    place = np.arange(len(donor)) - np.searchsorted(donor, donor)
    order = rng.permutation(len(donor))
    donor, H = donor[order], np.eye(3)[place[order]]
    n = len(donor)
    batch = RandomComponent(2 * rng.integers(0, 5, 20)[donor], np.ones(n))
    plate = RandomComponent(rng.integers(0, 7, n), H[:, 0] + 0.5 * H[:, 1])
    sample = RandomComponent(donor // 2, rng.normal(size=n))
    random = [batch, plate, sample][: seed % 4]
    X = np.column_stack([H, rng.normal(size=n)])
    y, nu, n_cells = rng.normal(size=n), rng.uniform(0.1, 1.0, n), rng.integers(1, 9, n) + 0.0
    model = build_model(y, nu, X, H, donor, np.ones((1, 3, 3)), random, n_cells)
    return model, donor, random


@pytest.mark.parametrize("seed", SEEDS)
def test_levels_and_blocks(seed):
    model, donor, random = study(seed)
    b, rows = model.blocks, range(len(donor))
    codes = [
        (r, one.codes[row], donor[row], row)
        for r, one in enumerate(random)
        for row in rows
        if one.values[row] != 0.0
    ]
    names = sorted({(r, code) for r, code, *_ in codes})
    joined = np.zeros((20 + len(names),) * 2)
    for r, code, i, _ in codes:
        joined[i, 20 + names.index((r, code))] = 1.0
    _, block = connected_components(joined, directed=False)
    own = model.donor_block[np.argsort(model.donors)]
    np.testing.assert_array_equal(own[:, None] == own, block[:20, None] == block[:20])
    assert (np.diff(model.donor_block) >= 0).all()
    # every donor's levels, in order, with the sums of squares of their weights
    np.testing.assert_array_equal(np.bincount(b.level_comp), np.bincount([r for r, _ in names]))
    T, m, lanes = model.tiles.shape
    Z = b.design[:, b.R + b.p :].transpose(0, 3, 2, 1).reshape(T * lanes, m, b.level.shape[1])
    for i in range(20):
        levels = b.level[i][b.level[i] >= 0]
        assert (np.diff(levels) > 0).all()
        found = [(b.level_comp[k], np.square(Z[i, :, at]).sum()) for at, k in enumerate(levels)]
        want = {}
        for r, code, at, row in codes:
            if at == model.donors[i]:
                want[r, code] = want.get((r, code), 0.0) + random[r].values[row] ** 2
        want = sorted((r, size) for (r, _), size in want.items())
        np.testing.assert_allclose(sorted(found), want if want else [], rtol=EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_lie_in_tiles_by_donor(seed):
    model, *_ = study(seed)
    shape = model.tiles.shape
    for values in (model.y, model.X):
        out = model.tiles.put(values)
        for i, (first, stop) in enumerate(zip(model.row_ptr[:-1], model.row_ptr[1:], strict=True)):
            own = out[i // shape[2], ..., : stop - first, i % shape[2]]
            np.testing.assert_array_equal(own.T, values[first:stop].T.T)
        assert np.count_nonzero(out) == np.count_nonzero(values)


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_is_pooled_by_type(seed):
    model, *_ = study(seed)
    used = np.random.default_rng(seed).random(len(model.nu)) < 0.8
    noise, between = weighed(model.nu, pooling(model.H, model.n_cells, used), 1.0)
    for c in range(3):
        rows = used & (model.H[:, c] == 1.0)
        np.testing.assert_allclose(between[c], (model.n_cells * model.nu)[rows].mean(), rtol=EXACT)
        np.testing.assert_allclose(noise[rows], between[c] / model.n_cells[rows], rtol=EXACT)


def test_rows_of_one_type():
    H = np.eye(3)[[0, 2, 1, 1]]
    assert one_type_each(H) and one_type_each(np.asfortranarray(H))
    for other in (0.5, 2.0):
        mixed = H.copy()
        mixed[1] = [other, 0.0, 1.0 - other]
        assert not one_type_each(mixed)
    assert not one_type_each(H * (np.arange(4) > 0)[:, None])


@pytest.mark.parametrize("spread", [False, True])
def test_fixed_effects_of_the_columns_of_the_caller(spread):
    model, *_ = study(1)
    rng = np.random.default_rng(2)
    root = np.linalg.cholesky(np.cov(rng.normal(size=(4, 9))))
    beta, scale = rng.normal(size=4), 1.7
    middle = np.cov(rng.normal(size=(4, 9))) if spread else None
    b, cov = fixed_effects(model, beta, root, scale, middle)
    turn = scale * model.back @ solve_triangular(root, np.eye(4), lower=True).T
    want = turn @ (np.eye(4) if middle is None else middle) @ turn.T
    np.testing.assert_allclose(cov, want, rtol=1e-10, atol=1e-12)
    whole = model.back @ (scale * beta + model.Q.T @ model.y)
    np.testing.assert_allclose(b, whole, rtol=1e-10)


def test_standard_errors_of_many_fits_are_those_of_each():
    model, *_ = study(1)
    structure, domain = resolve("hom", ["A", "B", "C"]), Domain()
    shared, rng = lay_out(model, "reml", domain), np.random.default_rng(3)
    rows = np.linalg.pinv(model.X) @ model.H
    fits = []
    for _ in range(3):
        own = model.with_response(rng.normal(size=len(model.y)), model.nu)
        found = by_likelihood(own, "reml", domain, shared)
        fits.append(Fit(own, structure, domain, found, rows.T))
    alone = [replace(fit) for fit in fits]
    share_errors(fits)
    for many, one in zip(fits, alone, strict=True):
        errors = one.model_errors
        each = errors.cov.diagonal()
        squares = np.concatenate(
            [each[4:], (rows.T @ errors.cov[:4, :4] @ rows).diagonal(), each[:4]]
        )
        np.testing.assert_allclose(many.own_standard_errors, np.sqrt(squares), rtol=EXACT)
        np.testing.assert_allclose(one.own_standard_errors, np.sqrt(squares), rtol=EXACT)


def test_a_negative_code_must_weigh_nothing():
    donor, one = np.arange(3), np.ones((3, 1))
    codes = np.array([-1, 0, 1])
    rest = np.arange(3.0), np.ones(3), one, one, donor, np.ones((1, 1, 1))
    build_model(*rest, [RandomComponent(codes, np.array([0.0, 1.0, 1.0]))])
    with pytest.raises(ValueError, match="negative"):
        build_model(*rest, [RandomComponent(codes, np.ones(3))])
