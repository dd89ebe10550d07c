"""Draws have the moments of the model; simulated tables have the parameters they were given."""

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm
from ctmm_formula.engine.draws import draw
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.simulate import (
    CountCells,
    Heredity,
    beta_error,
    cell_error,
    log_uniform_cells,
    negative_binomial_cells,
    simulate_cells,
    simulate_genes,
    simulate_genotypes,
    simulate_pseudobulk,
)

# Monte Carlo means are compared with their expectation in standard errors; with fixed seeds a
# test passes or fails for ever, and 4.5 leaves 1 in 150,000 to bad luck when a seed is chosen.
Z_MAX = 4.5
# Identities between columns of one table: double precision, sums of at most 20 terms of order 1.
EXACT = 1e-12

N = 4000
A_INDEFINITE = np.array([[1.0, 0.6, 0.1], [0.6, 0.3, 0.2], [0.1, 0.2, -0.1]])
NU = np.array([0.2, 0.5, 0.9])


def assert_covariance(values, expected):
    """Rows of `values` are draws with mean 0 and this covariance."""
    S = values.T @ values / len(values)
    d = np.diag(expected)
    se = np.sqrt((np.outer(d, d) + expected**2) / len(values))
    assert np.abs((S - expected) / se).max() < Z_MAX


def ctp_model(A, nu, random=(), n=N):
    C = len(A)
    H = np.tile(np.eye(C), (n, 1))
    donor = np.repeat(np.arange(n), C)
    return build_model(np.zeros(n * C), np.tile(nu, n), H, H, donor, A[None], random)


def test_draw_has_the_covariance_of_a_donor_even_if_effects_are_indefinite():
    assert np.linalg.eigvalsh(A_INDEFINITE)[0] < 0
    model = ctp_model(A_INDEFINITE, NU)
    beta = np.array([1.0, -2.0, 3.0])
    y = model.unsort(draw(model, [1.0], beta, rng=1)).reshape(N, 3)
    assert_covariance(y - beta, A_INDEFINITE + np.diag(NU))


def test_draw_with_missing_pairs_and_shuffled_rows():
    rng = np.random.default_rng(2)
    donor, celltype = np.divmod(rng.permutation(N * 3), 3)
    keep = (celltype > 0) | (donor % 2 == 0)  # odd donors lack cell type 0
    donor, celltype = donor[keep], celltype[keep]
    H = np.eye(3)[celltype]
    model = build_model(np.zeros(len(H)), NU[celltype], H, H, donor, A_INDEFINITE[None])
    y = np.full((N, 3), np.nan)
    y[donor, celltype] = model.unsort(draw(model, [1.0], np.zeros(3), rng=3))
    assert_covariance(y[::2], A_INDEFINITE + np.diag(NU))
    assert_covariance(y[1::2, 1:], (A_INDEFINITE + np.diag(NU))[1:, 1:])


def test_draw_of_overall_pseudobulk():
    P = np.array([0.5, 0.3, 0.2])
    H = np.tile(P, (N, 1))
    model = build_model(
        np.zeros(N), np.full(N, 0.1), np.ones((N, 1)), H, np.arange(N), A_INDEFINITE[None]
    )
    y = draw(model, [2.0], [0.0], rng=4)[:, None]
    assert_covariance(y, np.array([[2.0 * P @ A_INDEFINITE @ P + 0.1]]))


def test_random_effects_join_the_donors_of_a_level():
    # pairs of donors in a batch; the second effect acts on cell type 1 only
    n, C = N, 2
    batch = np.repeat(np.arange(n) // 2, C)
    H = np.tile(np.eye(C), (n, 1))
    random = [RandomComponent(batch, np.ones(n * C)), RandomComponent(batch, H[:, 1])]
    A = np.array([[0.5, 0.2], [0.2, 0.4]])
    model = ctp_model(A, np.array([0.1, 0.3]), random)
    y = model.unsort(draw(model, [1.0, 0.7, 0.25], np.zeros(C), rng=5)).reshape(n // 2, 2 * C)
    between = 0.7 + 0.25 * np.diag([0.0, 1.0])
    within = between + A + np.diag([0.1, 0.3])
    assert_covariance(y, np.block([[within, between], [between, within]]))


def test_singular_covariances_can_be_drawn():
    # no noise: what all cell types share is all there is, and without that only the mean
    model = ctp_model(np.ones((3, 3)), np.zeros(3), n=N)
    y = draw(model, [2.0], np.zeros(3), rng=6).reshape(N, 3)
    np.testing.assert_allclose(y, y[:, :1] @ np.ones((1, 3)), rtol=0, atol=EXACT)
    assert_covariance(y, np.full((3, 3), 2.0))
    mean = draw(model, [0.0], [1.0, 2.0, 3.0], rng=0)
    np.testing.assert_array_equal(mean, np.tile([1, 2, 3], N))


def test_same_seed_same_draw_and_a_generator_moves_on():
    model = ctp_model(np.eye(3), NU, n=4)
    rng = np.random.default_rng(7)
    first, second = draw(model, [1.0], np.zeros(3), rng), draw(model, [1.0], np.zeros(3), rng)
    np.testing.assert_array_equal(first, draw(model, [1.0], np.zeros(3), rng=7))
    assert (first != second).all()


def test_donors_left_out_keep_their_values():
    model = ctp_model(np.eye(3), NU, [RandomComponent(np.zeros(12, int), np.ones(12))], n=4)
    y = draw(model.without(2), [1.0, 1.0], np.ones(3), rng=0)
    gone = model.row_donor == 2
    assert (y[gone] == 0.0).all() and (y[~gone] != 0.0).all()


@pytest.mark.parametrize(
    ("theta", "beta", "message"),
    [
        ([0.1, -5.0], np.zeros(3), "not positive semi-definite"),
        ([-5.0, 0.1], np.zeros(3), r"donor codes 0, 1, 2; smallest eigenvalue -4.8"),
        ([1.0], np.zeros(3), "2 variance components and 3 fixed effects"),
        ([1.0, 0.1], np.zeros(2), "2 variance components and 3 fixed effects"),
    ],
)
def test_impossible_draws_are_refused(theta, beta, message):
    model = ctp_model(np.eye(3), NU, [RandomComponent(np.zeros(12, int), np.ones(12))], n=4)
    with pytest.raises(CTMMError, match=message):
        draw(model, theta, beta, rng=0)


def test_negative_variance_of_a_random_effect():
    batch = RandomComponent(np.repeat(np.arange(400), 3), np.ones(1200))
    model = ctp_model(np.ones((3, 3)), NU, [batch], n=400)  # a level is a donor: the sum counts
    y = model.unsort(draw(model, [1.0, -0.3], np.zeros(3), rng=1)).reshape(400, 3)
    np.testing.assert_allclose(np.cov(y.T), 0.7 + np.diag(NU), atol=0.2)  # 2.5 standard errors


def test_pseudobulk_table_has_its_parameters():
    V = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, 0.1], [0.0, 0.1, 0.2]])
    beta = np.array([1.0, 0.0, -1.0])
    effects = {"sex": 0.5, "PC2": -0.3}
    ctp = simulate_pseudobulk(
        N, ["T", "B", "NK"], sigma2=0.4, V=V, beta=beta, effects=effects, n_batches=N // 2,
        batch_variance=0.6, cell_variance=[1.0, 2.0, 4.0], cells=log_uniform_cells(10, 10), rng=8,
    ).ctp  # fmt: skip
    assert list(ctp["celltype"][:3]) == ["T", "B", "NK"] and (ctp["n_cells"] == 10).all()
    np.testing.assert_allclose(ctp["nu"], np.tile([0.1, 0.2, 0.4], N), rtol=EXACT)
    mean = np.tile(beta, N) + 0.5 * (ctp["sex"] == "M") - 0.3 * ctp["PC2"]
    y = (ctp["expr"] - mean).to_numpy().reshape(N, 3)
    order = np.argsort(ctp["batch"].to_numpy()[::3], kind="stable")  # two donors in each batch
    within = 0.6 + 0.4 + V + np.diag([0.1, 0.2, 0.4])
    between = np.full((3, 3), 0.6)
    assert_covariance(y[order].reshape(N // 2, 6), np.block([[within, between], [between, within]]))


@pytest.mark.parametrize(
    ("V", "expected"), [(0.5, [0.5, 0.5]), ([0.5, 0.1], [0.5, 0.1])], ids=["scalar", "vector"]
)
def test_specific_variance_may_be_a_number_or_a_vector(V, expected):
    ctp = simulate_pseudobulk(N, 2, sigma2=0.2, V=V, cell_variance=0.0, rng=9).ctp
    assert_covariance(ctp["expr"].to_numpy().reshape(N, 2), 0.2 + np.diag(expected))


def test_overall_table_matches_the_cell_types():
    data = simulate_pseudobulk(
        60, ["T", "B", "NK"], missing=0.3, noise_error=cell_error(3.0), rng=10
    )
    by_donor = {donor: rows for donor, rows in data.ctp.groupby("donor")}
    assert set(by_donor) == set(data.op["donor"]) and len(data.ctp) < 180
    for row in data.op.to_dict("records"):
        rows = by_donor[row["donor"]].set_index("celltype")
        P = rows["n_cells"] / rows["n_cells"].sum()
        assert row["n_cells"] == rows["n_cells"].sum()
        assert row["expr"] == pytest.approx((P * rows["expr"]).sum(), abs=EXACT)
        assert row["nu"] == pytest.approx((P**2 * rows["nu"]).sum(), rel=EXACT)
        for name in ("T", "B", "NK"):
            assert row[f"prop_{name}"] == pytest.approx(P.get(name, 0.0), abs=EXACT)
        for name in ("batch", "sex", "PC1", "PC2"):
            assert (rows[name] == row[name]).all()


def test_pairs_with_few_cells_are_missing():
    many = simulate_pseudobulk(300, 4, cells=negative_binomial_cells(30, 1.5), rng=11)
    few = simulate_pseudobulk(300, 4, cells=negative_binomial_cells(30, 1.5), min_cells=11, rng=11)
    assert many.ctp["n_cells"].min() == 2 and few.ctp["n_cells"].min() == 11
    kept = many.ctp[many.ctp["n_cells"] >= 11].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept[["donor", "celltype"]], few.ctp[["donor", "celltype"]])


def test_share_of_missing_pairs():
    rows = len(simulate_pseudobulk(1000, 4, missing=0.2, rng=12).ctp)
    assert abs(rows - 3200) / np.sqrt(4000 * 0.2 * 0.8) < Z_MAX


@pytest.mark.parametrize(
    ("error", "cv"),
    [
        # E x^2 of Beta(2, b) is 6 / ((b + 2)(b + 3))
        (beta_error(5), np.sqrt(6 / 56)),
        (beta_error(3), np.sqrt(6 / 30)),
        (cell_error(), np.sqrt(2 / 49)),
        (cell_error(4.0), np.sqrt(2 / 49 + 4 / 50)),
    ],
    ids=["beta5", "beta3", "normal cells", "skewed cells"],
)
def test_measured_noise_is_unbiased_with_known_spread(error, cv):
    n = 100_000
    ratio = error(np.random.default_rng(13), np.full(n, 3.0), np.full(n, 50)) / 3.0
    assert (ratio > 0).all()
    assert abs(ratio.mean() - 1.0) * np.sqrt(n) / cv < Z_MAX
    squares = (ratio - 1.0) ** 2
    assert abs(squares.mean() - cv**2) * np.sqrt(n) / squares.std() < Z_MAX


def test_measured_noise_does_not_change_the_expression():
    exact = simulate_pseudobulk(30, 3, rng=14).ctp
    wrong = simulate_pseudobulk(30, 3, noise_error=beta_error(3), rng=14).ctp
    pd.testing.assert_series_equal(exact["expr"], wrong["expr"])
    assert (exact["nu"] != wrong["nu"]).all()


# log-uniform on 1 ... 3: P(k) = log((k + 1) / k) / log 4
K = np.arange(1, 4)
P = np.log((K + 1) / K) / np.log(4)


@pytest.mark.parametrize(
    ("cells", "mean", "variance"),
    [
        (negative_binomial_cells(100, 2), 100.0, 100 + 100**2 / 2),
        (log_uniform_cells(1, 3), K @ P, K**2 @ P - (K @ P) ** 2),
    ],
    ids=["negative binomial", "log-uniform"],
)
def test_numbers_of_cells(cells, mean, variance):
    n = 100_000
    counts = cells(np.random.default_rng(15), (n,))
    assert abs(counts.mean() - mean) * np.sqrt(n / variance) < Z_MAX
    squares = (counts - mean) ** 2
    assert abs(squares.mean() - variance) * np.sqrt(n) / squares.std() < Z_MAX


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"effects": {"age": 1.0}},
            "covariate in effects 'age': choose from sex, PC1, PC2",
        ),
        ({"V": [1.0, 2.0]}, r"V must have shape \(4,\), got \(2,\)"),
        ({"beta": np.zeros(3)}, r"beta must have shape \(4,\), got \(3,\)"),
        ({"V": np.tril(np.ones((4, 4)))}, "V must be symmetric"),
        ({"cell_variance": -1.0}, "cell_variance >= 0"),
        ({"V": "large"}, "V must be finite numbers, got 'large'"),
        ({"V": [[1.0, 0.0], [0.0]]}, "V must be finite numbers"),
        ({"beta": np.nan}, "beta must be finite numbers"),
        ({"n_donors": 2.5}, "n_donors= must be a whole number of at least 1, got 2.5"),
        ({"n_donors": 1}, "4 pairs of donor and cell type are too few for 7 means and covariates"),
        ({"missing": 1.0}, r"missing= must be a share from 0 to below 1, got 1\.0"),
        ({"n_pcs": -1}, "n_pcs= must be a whole number"),
        ({"celltypes": "TB"}, "celltypes= must be a whole number of at least 1, got 'TB'"),
        ({"celltypes": ["T", "T"]}, "celltypes= must be names that differ"),
        ({"cells": 1}, r"cells= must be 2 or more, up to 1e12, got 1\.0"),
        ({"rng": "one"}, "rng= must be a seed"),
        ({"rng": np.random.RandomState(1)}, "rng= must be a seed"),
        ({"batch_variance": -1.0}, "batch_variance= must be 0 or more, got -1.0"),
        ({"sigma2": -9.0}, "not positive semi-definite"),
        ({"sigma2": None}, "sigma2= must be a finite number, got None"),
        ({"sigma2": np.inf}, "sigma2= must be a finite number, got inf"),
        ({"V": "1"}, "V must be finite numbers, got '1'"),
        ({"V": (True, False, True, True)}, "V must be finite numbers"),
        ({"batch_variance": np.nan}, "batch_variance= must be 0 or more, got nan"),
        ({"batch_variance": 0.5, "n_batches": 0}, "batch_variance=0.5 needs batches: set n_batch"),
        ({"missing": -0.1}, "missing= must be a share from 0 to below 1, got -0.1"),
        ({"missing": (0.1, 0.2)}, "missing= must be a share"),
        ({"min_cells": "five"}, "min_cells= must be a whole number of at least 0, got 'five'"),
        ({"effects": ["sex"]}, r"effects= must be a dict covariate -> slope, got \['sex'\]"),
        ({"effects": 0}, "effects= must be a dict"),
        ({"effects": {"sex": np.nan}}, "effects= must be a finite slope of each"),
        ({"cells": "fifty"}, r"cells= must be a function such as spread_cells\(50, 10\)"),
        ({"cells": 1e300}, "cells= must be 2 or more, up to 1e12"),
        ({"cells": lambda rng, shape: rng.uniform(5, 9, shape)}, "cells= must draw whole numbers"),
        ({"cells": lambda rng, shape: rng.poisson(9, 3)}, r"shape \(10, 4\), got shape \(3,\)"),
        ({"noise_error": 0.3}, r"noise_error= must be a function such as beta_error\(5\), or None"),
        ({"noise_error": lambda rng, nu, n: nu - 9}, r"shape \(40,\).* smallest of -8"),
        ({"noise_error": lambda rng, nu, n: nu * np.nan}, "noise variances drawn .* finite"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(CTMMError, match=message):
        simulate_pseudobulk(**{"n_donors": 10, "rng": 0, **arguments})


@pytest.mark.parametrize(
    ("theta", "beta", "message"),
    [
        ([np.nan], [0, 0, 0], "theta must be finite numbers"),
        (["a"], [0, 0, 0], "theta must be finite numbers"),
        ([1.0], [0, np.nan, 0], "beta must be finite numbers"),
    ],
)
def test_draws_need_numbers(theta, beta, message):
    with pytest.raises(CTMMError, match=message):
        draw(ctp_model(np.eye(3), NU, n=4), theta, beta, rng=0)
    with pytest.raises(CTMMError, match="model= must be a Model, got DataFrame"):
        draw(pd.DataFrame(), [1.0], [0.0])


def test_labelled_parameters_are_those_of_their_cell_types():
    V, beta = pd.Series({"B": 0.0, "T": 0.5}), pd.Series({"B": 7.0, "T": 0.0})
    options = {"sigma2": 0.0, "cell_variance": 0.0, "rng": 1}
    ctp = simulate_pseudobulk(20, ["T", "B"], V=V, beta=beta, **options).ctp
    frame = pd.DataFrame(np.diag(V), V.index, V.index)
    pd.testing.assert_frame_equal(
        ctp, simulate_pseudobulk(20, ["T", "B"], V=frame, beta=(0.0, 7.0), **options).ctp
    )
    assert (ctp.loc[ctp["celltype"] == "B", "expr"] == 7.0).all()
    assert ctp.loc[ctp["celltype"] == "T", "expr"].std() > 0.3
    # other names than those of the cell types are no names of them: the order counts
    other = simulate_pseudobulk(20, ["T", "B"], V=V.set_axis(["x", "y"]), beta=beta, **options).ctp
    assert other.loc[other["celltype"] == "T", "expr"].std() == 0.0
    with pytest.raises(CTMMError, match="V= is labelled B, X, the cell types are T, B"):
        simulate_pseudobulk(20, ["T", "B"], V=V.set_axis(["B", "X"]))


def test_a_number_of_cells_is_that_of_every_pair():
    data = simulate_pseudobulk(5, 3, cells=30, rng=1)
    assert set(data.ctp["n_cells"]) == {30}


def test_donors_may_differ_by_noise_alone():
    ctp = simulate_pseudobulk(2000, 2, sigma2=0.0, cells=40, cell_variance=4.0, rng=1).ctp
    assert_covariance(ctp["expr"].to_numpy().reshape(2000, 2), np.diag([0.1, 0.1]))


@pytest.mark.parametrize("function", [simulate_genes, simulate_cells])
def test_unknown_keywords_name_the_function(function):
    message = rf"unknown argument of {function.__name__} 'n_donor': choose from n_genes, n_donors"
    with pytest.raises(CTMMError, match=message):
        function(5, n_donor=10)


def test_ten_cell_types_sort_as_they_are_numbered():
    names = simulate_pseudobulk(2, 10, n_pcs=0, rng=1).ctp["celltype"].unique().tolist()
    assert names == sorted(names)
    assert names[-1] == "T10"


# ---------------------------------------------------------------------------------------------
# genotypes


def test_genotypes_have_frequencies_and_blocks():
    G = simulate_genotypes(1000, 200, block=10, ld=0.95, missing=0.02, rng=1).frame()
    values = G.to_numpy()
    assert np.isnan(values).mean() == pytest.approx(0.02, abs=0.003)
    p = np.nanmean(values, axis=0) / 2
    assert p.min() > 0.03 and p.max() < 0.55
    # of unrelated donors in Hardy-Weinberg proportions
    np.testing.assert_allclose(np.nanvar(values, axis=0), 2 * p * (1 - p), rtol=0.2)
    r = np.corrcoef(np.where(np.isnan(values), np.nanmean(values, axis=0), values).T)
    inside = np.arange(200)[:, None] // 10 == np.arange(200) // 10
    assert np.square(r[np.triu(inside, 1)]).mean() > 0.2
    assert np.square(r[~inside]).mean() < 0.002


def test_families_and_populations_are_in_the_kinship():
    K = simulate_genotypes(120, 3000, family=3, block=5, rng=2).kinship().to_numpy()
    sibs = np.arange(120)[:, None] // 3 == np.arange(120) // 3
    off = ~np.eye(120, dtype=bool)
    assert K[sibs & off].mean() == pytest.approx(0.5, abs=0.02)  # of full sibs
    assert abs(K[~sibs].mean()) < 0.02
    K = simulate_genotypes(90, 3000, populations=3, fst=0.1, block=1, rng=3).kinship().to_numpy()
    same = np.arange(90)[:, None] // 30 == np.arange(90) // 30
    off = ~np.eye(90, dtype=bool)
    assert K[same & off].mean() - K[~same].mean() == pytest.approx(2 * 0.1, abs=0.04)


@pytest.mark.slow
def test_genetic_values_have_the_variances_of_their_kinships():
    G = simulate_genotypes(300, 1500, family=3, rng=4)
    own = Heredity(G, cis=0.3, cis_specific=(0.2, 0.0), polygenic=0.4, polygenic_specific=0.1,
                   window=100_000)  # fmt: skip
    genes = simulate_genes(
        400, 300, ["T", "B"], sigma2=0.2, V=0.0, cell_variance=1e-6, heredity=own, n_pcs=0, rng=5
    )
    wide = genes.expr.to_numpy().reshape(300, 2, 400)
    between = wide.var(axis=0, ddof=1).mean(axis=1)
    np.testing.assert_allclose(between, [0.2 + 0.3 + 0.2 + 0.5, 0.2 + 0.3 + 0.5], rtol=0.05)
    difference = (wide[:, 0] - wide[:, 1]).var(axis=0, ddof=1).mean()
    assert difference == pytest.approx(0.2 + 0.1 + 0.1, rel=0.07)
    # sibs share half of what is genetic, and of no variant nothing
    pairs = wide.reshape(100, 3, 2, 400)
    sibs = (pairs[:, 0, 1] * pairs[:, 1, 1]).mean()
    assert sibs == pytest.approx(0.5 * (0.3 + 0.5), abs=0.05)
    assert genes.truth[["cis:hom", "cis:V[T]", "trans:V[B]"]].tolist() == [0.3, 0.2, 0.1]


def test_genes_come_with_genotypes_and_places():
    G = simulate_genotypes(60, 400, rng=6)
    own = Heredity(G, cis=1.0, window=50_000)
    for counts in (None, CountCells(mean=2.0)):
        genes = simulate_genes(4, 60, ["T", "B"], heredity=own, counts=counts, cells=40, rng=7)
        scan = ctmm.fit_genes(
            "~ C(celltype)", data=genes, structure="hom", genotypes=genes.genotypes,
            window=50_000, positions=genes.positions,
        )  # fmt: skip
        assert (scan.table["p_heritability"] < 0.05).sum() >= 2
        assert (scan.table["n_snps"] > 5).all()
    again = simulate_genes(4, 60, ["T", "B"], heredity=own, counts=counts, cells=40, rng=7)
    pd.testing.assert_frame_equal(again.expr, genes.expr)
    none = simulate_genes(2, 60, ["T", "B"], rng=7)
    same = simulate_genes(2, 60, ["T", "B"], heredity=Heredity(G), rng=7)
    assert none.genotypes is None and same.truth["cis:hom"] == 0.0
    stratified = Heredity(G, stratified=3.0)
    genes = simulate_genes(50, 60, 2, sigma2=0.0, cell_variance=1e-6, heredity=stratified, rng=8)
    assert genes.expr.var().mean() == pytest.approx(3.0, rel=0.5)
    assert genes.overall().positions is genes.positions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genotypes": 3}, "are those of simulate_genotypes"),
        ({"cis": -1.0}, "cis="),
        ({"cis_specific": (1.0, 2.0, 3.0)}, "cis_specific must have shape"),
        ({"polygenic_specific": -0.1}, "polygenic_specific is a variance"),
        ({"causal": 0}, "causal"),
        ({"genotypes": simulate_genotypes(4, 10, rng=1)}, "no row for 56 of 60 donors"),
    ],
)
def test_what_no_heredity_is(change, message):
    own = Heredity(simulate_genotypes(60, 20, rng=1), cis=0.1)._replace(**change)
    with pytest.raises(ctmm.CTMMError, match=message):
        simulate_genes(2, 60, 2, heredity=own, rng=1)
    with pytest.raises(ctmm.CTMMError, match=r"must be a simulate\.Heredity"):
        simulate_genes(2, 60, 2, heredity=change, rng=1)


@pytest.mark.parametrize(
    "change",
    [{"ld": 1.0}, {"fst": 0.9}, {"missing": 0.9}, {"chromosomes": 0}, {"populations": 99},
     {"n_variants": 0}, {"block": 0}, {"family": 0}, {"spacing": 0}],
)  # fmt: skip
def test_what_no_genotypes_are(change):
    with pytest.raises(ctmm.CTMMError, match=next(iter(change))):
        simulate_genotypes(**{"n_donors": 20, "n_variants": 30, "rng": 1, **change})
