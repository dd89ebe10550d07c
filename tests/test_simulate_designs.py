"""The paper's designs have their parameters; replicates as genes; cells whose pseudobulk fits."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula.cells.tables import FORMAT, kind_of, read_grid
from ctmm_formula.errors import CTMMError, CTMMWarning
from ctmm_formula.simulate import (
    DESIGNS,
    beta_error,
    bootstrap_cells,
    cell_error,
    gamma_cells,
    log_uniform_cells,
    negative_binomial_cells,
    relative_error,
    simulate_cells,
    simulate_design,
    simulate_genes,
    simulate_pseudobulk,
    spread_cells,
)

# as in test_simulate.py: 4.5 standard errors leave 1 in 150,000 to bad luck
Z_MAX = 4.5
EXACT = 1e-12

# True values of the published simulations: (design, changes) -> V, to the digits given there.
PUBLISHED_V = [
    ("published/free", {}, [1.6, 0.8, 0.4, 0.2]),
    ("preprint/free", {}, [2.2588, 0.5647, 0.1412, 0.0353]),
    ("published/iid", {}, [0.75] * 4),
    ("published/free", {"V": (27, 9, 3, 1)}, [2.025, 0.675, 0.225, 0.075]),
    ("published/free", {"V": (2, 1, 1, 1)}, [1.2, 0.6, 0.6, 0.6]),
    ("published/free", {"alpha": (0.666, 2, 2, 2)}, [2.009, 1.004, 0.502, 0.251]),
    ("published/free", {"alpha": (1.05, 2, 2, 2)}, [1.917, 0.958, 0.479, 0.240]),
    ("published/free", {"alpha": (4, 2, 2, 2)}, [1.089, 0.545, 0.272, 0.136]),
    ("preprint/free", {"alpha": (0.66, 2, 2, 2)}, [4.162, 1.041, 0.260, 0.065]),
    ("preprint/free", {"alpha": (1.05, 2, 2, 2)}, [3.443, 0.861, 0.215, 0.054]),
    ("preprint/free", {"alpha": (4, 2, 2, 2)}, [1.252, 0.313, 0.078, 0.020]),
    ("published/free", {"shares": (0.25, 0.40, 0.10, 0.25)}, [0.64, 0.32, 0.16, 0.08]),
    ("published/free", {"shares": (0.25, 0.10, 0.40, 0.25)}, [2.56, 1.28, 0.64, 0.32]),
    ("published/free-8", {}, [3.022, 1.511, 0.756, 0.378] * 2),
    ("published/free-12", {}, [4.444, 2.222, 1.111, 0.556] * 3),
    ("published/hom", {}, [0.0] * 4),
    ("published/full", {}, [0.2961] * 4),
]


@pytest.mark.parametrize(("name", "changes", "expected"), PUBLISHED_V)
def test_specific_variances_are_the_published_ones(name, changes, expected):
    genes = simulate_design(name, 1, n_donors=3, rng=0, **changes)
    V = [genes.truth[f"V[{celltype}]"] for celltype in genes.celltypes]
    four = (name == "preprint/free" and not changes) or name == "published/full"
    digits = 4 if four else 3
    np.testing.assert_allclose(V, expected, rtol=0, atol=0.51 * 10.0**-digits)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("published/hom", [6.330, 3.165, 1.583, 0.791]),
        ("published/free", [4.476, 2.238, 1.119, 0.560]),
        ("preprint/hom", [6.330, 3.165, 1.583, 0.791]),
    ],
)
def test_means_are_the_published_ones(name, expected):
    truth = simulate_design(name, 1, n_donors=3, rng=0).truth
    means = [truth[f"mean[T{c + 1}]"] for c in range(4)]
    np.testing.assert_allclose(means, expected, rtol=0, atol=0.51e-3)


def test_covariances_of_the_full_design_are_the_published_ones():
    truth = simulate_design("published/full", 1, n_donors=3, rng=0).truth
    expected = {(2, 1): 0.2664, (3, 2): 0.2664, (4, 3): 0.2664, (3, 1): 0.2072, (4, 2): 0.2072,
                (4, 1): 0.148}  # fmt: skip
    for (r, c), value in expected.items():
        assert truth[f"V[T{r},T{c}]"] == pytest.approx(value, abs=0.51e-4)


@pytest.mark.parametrize("name", [name for name in DESIGNS if name.startswith("p")])
def test_shares_are_those_of_the_variance_of_overall_pseudobulk(name):
    design = DESIGNS[name]
    genes = simulate_design(name, 60, n_donors=400, kind="op", rng=1)
    P = genes.obs[genes.proportions].to_numpy()
    sigma2, V, beta = design.parameters()
    assert sum(design.shares) == pytest.approx(1.0)
    # given P, the mean of y'y is exact; over 60 x 400 draws
    y = genes.expr.to_numpy()
    variance = sigma2 + np.einsum("nc,cd,nd->n", P, V, P)[:, None]
    nu = genes.nu.to_numpy()
    z = (y - (P @ beta)[:, None]) / np.sqrt(variance + nu)
    assert abs(z.mean()) * np.sqrt(60) / np.sqrt(1 + sigma2) < 3 * Z_MAX  # donors' P are shared
    assert abs(np.square(z).mean() - 1) < Z_MAX * np.sqrt(2 / z.size)
    assert abs(nu.mean() - design.shares[3]) < Z_MAX * np.sqrt(design.noise_variance / nu.size)
    assert abs(P.mean(axis=0) - np.array(design.alpha) / sum(design.alpha)).max() < 0.05
    theory = sigma2 + (V * np.cov(P.T)).sum() + P.mean(axis=0) @ V @ P.mean(axis=0)
    explained = np.var(P @ beta) + theory + nu.mean()
    assert explained == pytest.approx(1.0, abs=0.15)


def test_cell_types_of_the_base_design_have_its_covariance():
    genes = simulate_design("published/full", 300, n_donors=60, rng=2)
    sigma2, V, beta = DESIGNS["published/full"].parameters()
    shape = (60, 4, 300)
    y = genes.expr.to_numpy().reshape(shape) - beta[:, None]
    nu = genes.nu.to_numpy().reshape(shape)
    keep = (nu < 5).all(axis=1)  # rare cell types have noise in hundreds
    S = np.einsum("icg,idg,ig->cd", y, y, keep) / keep.sum()
    expected = sigma2 + V + np.diag((nu * keep[:, None]).sum(axis=(0, 2)) / keep.sum())
    d = np.diag(expected)
    # nu differs, so fourth moments are larger than those of one normal: twice the error
    error = 2 * np.sqrt((np.outer(d, d) + expected**2) / keep.sum())
    assert (np.abs(S - expected) < Z_MAX * error).all()


def test_overall_pseudobulk_is_made_of_the_cell_types_or_has_its_own_noise():
    ctp = simulate_design("published/free", 3, n_donors=20, rng=3)
    op = simulate_design("published/free", 3, n_donors=20, kind="op", rng=3)
    pd.testing.assert_frame_equal(ctp.overall().expr, op.expr)
    P = ctp.obs["proportion"].to_numpy().reshape(20, 4)
    np.testing.assert_allclose(P.sum(axis=1), 1, rtol=EXACT)
    np.testing.assert_allclose(
        op.expr["g2"], (P * ctp.expr["g2"].to_numpy().reshape(20, 4)).sum(axis=1), atol=1e-10
    )
    own = simulate_design("preprint/free", 3, n_donors=20, kind="op", rng=3)
    made = simulate_design("preprint/free", 3, n_donors=20, rng=3).overall()
    assert (own.expr != made.expr).all(axis=None)
    pd.testing.assert_frame_equal(own.nu, made.nu)


@pytest.mark.slow
def test_designs_fit_and_recover():
    genes = simulate_design("published/free", 60, n_donors=200, rng=4)
    scan = ctmm.fit_genes("~ C(celltype)", data=genes, tests=["score"])
    truth = genes.truth[["hom", "V[T1]", "V[T2]", "V[T3]", "V[T4]"]]
    error = scan.vcomp - truth
    z = error.mean() / (error.std() / np.sqrt(60))
    assert (z.abs() < Z_MAX).all()
    assert (scan.table["p_score"] < 0.05).mean() > 0.8


@pytest.mark.slow
def test_ipsc_design_has_its_size_and_noise():
    genes = simulate_design("ipsc/free", 200, rng=5)
    exact = simulate_design("ipsc/free", 200, b=None, rng=5)
    assert genes.obs["donor"].nunique() == 94 and genes.obs["n_cells"].min() >= 11
    assert (genes.expr.nunique() == 376).all()
    assert 0.2 < exact.nu.mean().mean() < 0.6  # .38 in the data that was published
    for b, cv in ((None, 0.0), (5.0, 0.327), (2.0, 0.548)):
        noisy = simulate_design("ipsc/free", 200, b=b, rng=5)
        ratio = noisy.nu.to_numpy()[:, 0] / exact.nu.to_numpy()[:, 0]  # same draws as yet
        assert abs(ratio.std() - cv) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("published/fre",), "unknown design 'published/fre': choose from published/hom"),
        (("published/free", 0), "n_genes= must be a whole number of at least 1, got 0"),
    ],
)
def test_unknown_designs(arguments, message):
    with pytest.raises(CTMMError, match=message):
        simulate_design(*arguments, rng=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"W": 1}, "unknown parameter of published/free 'W': choose from shares, beta, V, alpha"),
        ({"alpha": (0.0, 2.0)}, r"alpha has a number of 0\.05 or more for each"),
        ({"shares": (0.5, 0.5, 0.5, -0.5)}, "shares are sigma2, beta, V and noise above 0"),
        ({"kind": "cells"}, "unknown kind 'cells'"),
        ({"n_donors": 20.5}, "n_donors= must be a whole number"),
        ({"shares": (0.5, 0.3, 0.2)}, "shares are sigma2, beta, V and noise above 0"),
        ({"shares": (0.5, 0.25, 0.25, 0.0)}, "shares are sigma2, beta, V and noise above 0"),
        ({"alpha": 2.0}, "for each of two or more cell types, got 2.0"),
        ({"V": "a"}, "V must be finite numbers"),
        ({"V": (0.0, 0.0)}, "ratios beta and V must differ from 0"),
        ({"correlation": (0.9, -0.9, 0.5)}, "V be a covariance"),
        ({"correlation": 0.5}, "correlation has numbers for cell types 1, 2, ... 3 apart, got 0.5"),
        ({"correlation": (0.9, 0.7, 0.5, 0.3)}, "correlation has numbers"),
        ({"V": (8, 4, 2, 1, 5)}, "V of a design has a ratio for each of 4 cell types"),
        ({"V": np.eye(2)}, "V of a design has a ratio"),
        ({"beta": ()}, "beta of a design has a ratio"),
        ({"beta": "a"}, "beta must be finite numbers"),
        ({"alpha": (0.01, 2.0)}, "alpha has a number of 0.05 or more"),  # shares of 0 in draws
        ({"noise_variance": 1e9}, "noise_variance= must be above 0 and at most 4 times"),  # endless
        ({"noise_variance": (0.1, 0.2)}, "noise_variance= must be above 0"),
        ({"own_noise": "no"}, "own_noise= must be True or False, got 'no'"),
        ({"grid": (20, 50)}, "unknown parameter of published/free 'grid'"),
    ],
)
def test_wrong_changes(changes, message):
    with pytest.raises(CTMMError, match=message):
        simulate_design("published/free", 2, rng=0, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"V": 0.1}, "V has a variance for each of two or more cell types, got 0.1"),
        ({"V": ((0.1, 0.0), (0.0, 0.1))}, "V has a variance for each"),
        ({"cells": 50}, None),
        ({"cells": "many"}, "cells= must be a function"),
        ({"min_cells": "few"}, "min_cells= must be a whole number of at least 0, got 'few'"),
        ({"min_cells": 10**20}, "min_cells= must be at most 1,000,000,000, got 1"),
        ({"gene_sd": -1}, "gene_sd= must be from 0 to 20, got -1"),
        ({"b": (3, 5)}, r"b= must be a number above 0, got \(3, 5\)"),
    ],
)
def test_wrong_changes_of_the_ipsc_design(changes, message):
    if message is None:
        assert (simulate_design("ipsc/free", 1, rng=0, **changes).obs["n_cells"] == 50).all()
        return
    with pytest.raises(CTMMError, match=message):
        simulate_design("ipsc/free", 2, rng=0, **changes)


# ---------------------------------------------------------------------------------------------
# many genes


def test_genes_are_draws_of_the_table_of_one_gene():
    study = {"V": (0.5, 0.2, 0.0), "beta": (1, 0, -1), "effects": {"sex": 0.3}, "missing": 0.1}
    genes = simulate_genes(1, 40, 3, rng=6, noise_error=beta_error(5), **study)
    one = simulate_pseudobulk(40, 3, rng=6, noise_error=beta_error(5), **study).ctp
    pd.testing.assert_frame_equal(genes.gene("g1"), one)
    assert genes.truth[["hom", "V[T1]", "V[T3]", "mean[T3]", "sex"]].tolist() == [
        0.25, 0.5, 0.0, -1.0, 0.3,
    ]  # fmt: skip


def test_replicates_share_donors_and_nothing_else():
    genes = simulate_genes(2000, 4, 2, V=((0.5, 0.2), (0.2, 0.3)), cell_cv=0.5, rng=7)
    y = genes.expr.to_numpy().reshape(4, 2, 2000)
    S = np.einsum("icg,icg->ic", y, y) / 2000
    expected = 0.25 + np.array([0.5, 0.3]) + genes.nu.mean(axis=1).to_numpy().reshape(4, 2)
    assert (np.abs(S - expected) < Z_MAX * 2 * expected * np.sqrt(2 / 2000)).all()
    apart = np.corrcoef(y[0, 0], y[1, 0])[0, 1]  # no batch variance
    assert abs(apart) < Z_MAX / np.sqrt(2000)
    spread = genes.nu.std(axis=1) / genes.nu.mean(axis=1)
    assert (abs(spread - 0.5) < 0.1).all()
    assert genes.truth["V[T2,T1]"] == 0.2


def test_levels_of_genes():
    level = np.array([1.0, 10.0])
    genes = simulate_genes(2, 5, 2, gene_variance=level, rng=8)
    np.testing.assert_allclose(genes.nu["g2"], 10 * genes.nu["g1"], rtol=EXACT)


def test_heavy_tailed_cells_have_their_moments():
    n, k = 30, 6.0
    error, nu = gamma_cells(k)(np.random.default_rng(9), np.full(40_000, 2.0), np.full(40_000, n))
    assert abs(error.mean()) < Z_MAX * np.sqrt(2 / 40_000)
    assert abs(np.var(error) / 2 - 1) < Z_MAX * np.sqrt((2 + k / n) / 40_000)
    assert stats.kurtosis(error) == pytest.approx(k / n, abs=0.1)
    cv = np.sqrt(2 / (n - 1) + k / n)
    assert abs(nu.mean() / 2 - 1) < Z_MAX * cv / np.sqrt(40_000)
    assert nu.std() / 2 == pytest.approx(cv, rel=0.05)
    # mean and variance of skewed cells go together: n cov = third moment 2 a / a^1.5
    together = np.cov(error / np.sqrt(2), nu / 2)[0, 1]
    assert together == pytest.approx(2 / np.sqrt(6 / k * n), rel=0.1)


def test_numbers_of_cells_in_pairs():
    rng = np.random.default_rng(10)
    assert (spread_cells(45)(rng, (3, 4)) == 45).all()
    cells = spread_cells(45, 10)(rng, (20_000,))
    assert abs(cells.mean() - 45) < Z_MAX * cells.std() / np.sqrt(20_000) + 0.1
    assert cells.max() / cells.min() == pytest.approx(10, rel=0.05)
    assert relative_error(0.0) is None
    ratio = relative_error(0.2)(rng, np.ones(100_000), np.ones(100_000))
    assert ratio.std() == pytest.approx(0.2, rel=0.02)
    assert ratio.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", ["ctp", "op"])
def test_genes_as_anndata(kind):
    genes = simulate_genes(3, 25, ["T", "B", "NK"], V=0.3, missing=0.2, kind=kind, rng=11)
    pb = genes.to_anndata()
    assert kind_of(pb) == kind and pb.uns["ctmm"]["format"] == FORMAT
    options = {"tests": "score", "method": "he"}
    formula = "~ C(celltype)" if kind == "ctp" else "~ 1"
    a = ctmm.fit_genes(formula, data=genes, proportions=genes.proportions, **options).table
    b = ctmm.fit_genes(formula, data=pb, **options).table
    assert np.isfinite(a["p_score"]).all()
    np.testing.assert_allclose(a["p_score"], b["p_score"], rtol=1e-6)
    if kind == "ctp":
        grid = read_grid(pb)
        assert grid.missing.sum() == 75 - len(genes.obs)
        np.testing.assert_allclose(grid.proportions.sum(axis=1), 1, rtol=EXACT)
        np.testing.assert_allclose(ctmm.overall(pb).X, genes.overall().expr.T.to_numpy().T,
                                   rtol=1e-9)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_genes": 0}, "n_genes= must be a whole number of at least 1, got 0"),
        ({"cell_cv": -1}, "cell_cv= must be from 0 to 10, got -1"),
        ({"cell_cv": "a"}, "cell_cv= must be from 0 to 10, got 'a'"),
        ({"kind": "cells"}, "unknown kind"),
        ({"gene_variance": [1.0, 2.0, 3.0]}, r"gene_variance must have shape \(2,\), got \(3,\)"),
        ({"V": -9.0}, "not positive semi-definite"),
        ({"cell_cv": 1e300}, "cell_cv= must be from 0 to 10"),
        ({"cell_noise": 6.0}, r"cell_noise= must be a function such as gamma_cells\(6\), or None"),
        ({"cell_noise": lambda *given: (0.0, -given[1])}, "must give noise variances of 0 or more"),
        ({"cell_noise": lambda *given: (np.nan, given[1])}, "errors drawn .* finite numbers"),
        ({"noise_error": "beta"}, "noise_error= must be a function such as beta_error"),
        ({"noise_error": object}, "noise_error= must be a function such as beta_error"),
    ],
)
def test_wrong_genes(arguments, message):
    with pytest.raises(CTMMError, match=message):
        simulate_genes(**{"n_genes": 2, "n_donors": 5, "rng": 0, **arguments})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spread_cells(1), "cells= must be 2 or more"),
        (lambda: spread_cells(50, 0.5), "fold= must be 1 or more, got 0.5"),
        (lambda: relative_error(1.0), "noise_cv= must be 0 or more and below 1, got 1.0"),
        (lambda: gamma_cells(0.0), "kurtosis= must be above 0, up to 1,000"),
        (lambda: cell_error(-5.0), "kurtosis= must be from 0"),
        (lambda: log_uniform_cells(0, 5), "low= must be a whole number of at least 1, got 0"),
        (lambda: log_uniform_cells(9, 5), "high= must be a whole number of at least 9, got 5"),
        (lambda: negative_binomial_cells(-1, 2), "mean= must be a number above 0, got -1"),
        (lambda: beta_error("5"), "b= must be a number above 0, got '5'"),
        (lambda: beta_error(0.0), "b= must be a number above 0, got 0.0"),
    ],
)
def test_wrong_noise(make, message):
    with pytest.raises(CTMMError, match=message):
        make()


@pytest.mark.parametrize("cv", [3, np.int64(3), 1e-300])
def test_any_number_is_a_variation_of_cells(cv):
    genes = simulate_genes(1, 200, 2, cell_cv=cv, cells=40, rng=1)
    spread = genes.nu["g1"].std() / 0.1
    assert (spread > 1) if cv == 3 else (spread < EXACT)


# ---------------------------------------------------------------------------------------------
# cells


@pytest.mark.slow
def test_pseudobulk_of_simulated_cells_follows_the_model():
    cells = simulate_cells(
        150, 60, ["T", "B"], sigma2=0.3, V=(0.6, 0.1), beta=(1.0, 0.0), kurtosis=3.0,
        cells=spread_cells(20, 3), cell_variance=2.0, rng=12,
    )  # fmt: skip
    pb = ctmm.pseudobulk(cells, negative="keep", min_cells=5, min_cells_donor=10)
    assert pb.shape == (120, 150)
    expected = 2.0 / pb.obs["n_cells"].to_numpy()
    ratio = np.asarray(pb.layers["nu"]) / expected[:, None]
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)
    scan = ctmm.fit_genes("~ C(celltype)", data=pb, method="he", tests=["score"])
    truth = pd.Series(cells.uns["truth"])[["hom", "V[T]", "V[B]"]]
    z = (scan.vcomp - truth).mean() / (scan.vcomp.std() / np.sqrt(150))
    assert (z.abs() < Z_MAX).all()
    assert (scan.table["p_score"] < 0.05).mean() > 0.9


@pytest.mark.filterwarnings("ignore:cells are scaled .* a selection:UserWarning")
def test_counts_become_pseudobulk():
    cells = simulate_cells(80, 12, 2, scale="counts", cells=spread_cells(30), rng=13)
    assert isinstance(cells, anndata.AnnData) and not (cells.X % 1).any()
    assert cells.X.min() == 0 and cells.X.mean() > 1
    pb = ctmm.pseudobulk(cells, normalize="log_cp10k", min_cells_donor=20)
    assert pb.shape == (24, 80) and np.isfinite(pb.X).all() and (pb.layers["nu"] > 0).all()
    variance, mean = cells.X.var(axis=0), cells.X.mean(axis=0)
    assert (variance > 1.3 * mean).all()  # beyond Poisson


def test_same_seed_same_cells():
    a, b, c = (simulate_cells(2, 3, 2, rng=seed).X for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert a.shape != c.shape or (a != c).all()


def test_cell_types_of_cells_keep_their_order():
    # whatever the first donor lacks
    for seed in range(5):
        cells = simulate_cells(1, 10, ["T", "B", "A"], missing=0.6, n_pcs=0, rng=seed)
        assert cells.obs["celltype"].cat.categories.tolist() == ["T", "B", "A"]


@pytest.mark.parametrize("kurtosis", [1e-300, 0.0])
def test_cells_without_excess_kurtosis_are_normal(kurtosis):
    # a gamma distribution of such a shape has lost all digits of its variance
    X = simulate_cells(5, 5, 2, sigma2=0.0, kurtosis=kurtosis, cells=400, rng=1).X
    assert X.var() == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "log"}, "unknown scale 'log'"),
        ({"n_genes": 0}, "n_genes= must be a whole number of at least 1, got 0"),
        ({"depth": 0.0}, "depth= must be a number above 0, got 0.0"),
        ({"scale": "counts", "beta": 100.0}, "counts are too large"),
        ({"kurtosis": np.inf}, "kurtosis= must be from 0 to 1,000, got inf"),
        ({"baseline": np.nan}, "baseline= must be a finite number, got nan"),
        ({"scale": "counts", "dispersion": np.inf}, "dispersion= must be from 0 to 1e6, got inf"),
        ({"dispersion": None}, "dispersion= must be from 0 to 1e6, got None"),
    ],
)
def test_wrong_cells(arguments, message):
    with pytest.raises(CTMMError, match=message):
        simulate_cells(**{"n_donors": 3, "rng": 0, **arguments})


@pytest.fixture(scope="module")
def counts():
    """Raw counts of 30 donors with 40 cells; donors differ in the first gene."""
    rng = np.random.default_rng(14)
    donor = np.repeat(np.arange(30), 40)
    rate = np.exp(rng.normal(0, 0.5, (30, 2))) * [5.0, 2.0]
    return rng.poisson(rate[donor] * rng.gamma(4, 0.25, (1200, 1))), donor, np.full(1200, 2000)


def test_bootstrapped_cell_types_differ_by_chance_alone(counts):
    K, donor, total = counts
    genes = bootstrap_cells(K, donor, total=total, rng=15)
    assert genes.expr.shape == (120, 2) and (genes.obs["n_cells"] == 40).all()
    y = genes.expr["g1"].to_numpy().reshape(30, 4)
    nu = genes.nu["g1"].to_numpy().reshape(30, 4)
    assert (nu == nu[:, :1]).all()
    # within a donor cell types scatter by nu; a bootstrap's variance is (n - 1) / n of it
    within = ((y - y.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) / 3 / (nu[:, 0] * 39 / 40)
    assert abs(within.mean() - 1) < Z_MAX * np.sqrt(2 / 90)
    assert np.corrcoef(y.T).min() > 0.8
    assert bootstrap_cells(K, donor, total=total, fraction=0.5, rng=15).obs["n_cells"].max() == 20


def test_permuted_donors_are_specific_variance(counts):
    K, donor, total = counts
    y = {}
    for share in (0.0, 0.5, 1.0):
        genes = bootstrap_cells(K, donor, total=total, permuted=share, rng=16)
        y[share] = genes.expr["g1"].to_numpy().reshape(30, 4)
    for c in range(4):  # the same values, other donors
        np.testing.assert_allclose(np.sort(y[1.0][:, c]), np.sort(y[0.0][:, c]), rtol=EXACT)
    pairs = np.triu_indices(4, 1)
    shared = {share: np.corrcoef(values.T)[pairs].mean() for share, values in y.items()}
    assert shared[0.0] > 0.9 > shared[0.5] > 0.2 and abs(shared[1.0]) < 0.3
    moved = (y[0.5] != y[0.0]).any(axis=1).sum()
    assert 10 <= moved <= 15


def test_bootstrap_takes_tables_and_leaves_out_what_has_no_counts(counts):
    K, donor, total = counts
    frame = pd.DataFrame(np.column_stack([K, np.zeros(1200)]), columns=["A", "B", "none"])
    message = "left out: 0 of 30 donors with fewer than 11 cells, 1 of 3 genes without counts"
    with pytest.warns(CTMMWarning, match=message):
        genes = bootstrap_cells(frame, donor, total=total, rng=17)
    assert list(genes.expr) == ["A", "B"]
    few = np.where(donor < 29, donor, np.arange(1200))  # cells of the last donor are alone
    with pytest.warns(CTMMWarning, match="left out: 40 of 69 donors"):
        assert bootstrap_cells(frame, few, total=total, rng=17).obs["donor"].nunique() == 29
    adata = anndata.AnnData(K.astype(float), var=pd.DataFrame(index=["A", "B"]))
    pd.testing.assert_frame_equal(
        bootstrap_cells(adata, donor, total=total, rng=17).expr, bootstrap_cells(
            frame[["A", "B"]], donor, total=total, rng=17).expr,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": np.full((1200, 1), 0.5)}, "raw counts"),
        ({"counts": np.ones(1200)}, "cells x genes"),
        ({"donor": np.zeros(3)}, r"donor of each of the 1200 cells, got shape \(3,\)"),
        ({"donor": np.full(1200, np.nan)}, "donor= is missing"),
        ({"total": np.zeros(1200)}, "total= .by default the sum of the row. must be positive"),
        ({"permuted": 1.5}, "permuted= must be a share from 0 to 1, got 1.5"),
        ({"min_cells": 99}, "no donor has 99 cells"),
        ({"depth": 1e-3}, "no gene keeps counts"),
        ({"depth": 1e300}, r"counts are too large to draw: choose a smaller depth= than 1e\+300"),
        ({"depth": None}, "depth= must be a number above 0"),
        ({"fraction": np.inf}, "fraction= must be above 0"),
        ({"min_cells": None}, "min_cells= must be a whole number"),
        ({"noise_error": 1}, "noise_error= must be a function"),
        ({"counts": [["a", "b"]]}, "counts must be finite numbers"),
        ({"counts": pd.DataFrame({"A": range(3), "B": "x"})}, "counts must be finite numbers"),
        ({"counts": pd.DataFrame(np.ones((1200, 2)), columns=["A", "A"])}, "several genes 'A'"),
        ({"donor": "donor"}, r"donor of each of the 1200 cells, got shape \(\)"),
        ({"donor": np.zeros((1200, 1))}, r"got shape \(1200, 1\)"),
        ({"donor": [None, *range(1199)]}, r"donor= is missing for 1 cell \(the first: 0\)"),
        ({"total": "all"}, "total must be finite numbers, got 'all'"),
        ({"total": [500] * 3}, r"a number for each of the 1200 cells, got shape \(3,\)"),
        ({"total": [0, *[500] * 1199]}, r"leave out 1 cell \(the first: 0\)"),
    ],
)
def test_wrong_bootstraps(counts, change, message):
    K, donor, total = counts
    with pytest.raises(CTMMError, match=message):
        bootstrap_cells(**{"counts": K, "donor": donor, "total": total, "rng": 0, **change})
