"""Models of related donors: moments and their jackknife against dense algebra and goldens."""

import json

import dense
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, not_here, quick_first
from test_he import CELLTYPES, close, make, responses

from ctmm_formula.engine import he, left_out_moments
from ctmm_formula.engine.draws import draw
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.left_out_moments import LeftOutMoments
from ctmm_formula.engine.model import build_model
from ctmm_formula.engine.relatedness import Kernel, KernelTerm
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.structures import resolve

EXACT = 1e-9
GOLDENS = ["family40_c3", "cis60_c4"]


def family(N, size=4):
    """Full sibs, in a background of their own."""
    same = np.arange(N)[:, None] // size == np.arange(N) // size
    return np.where(same, 0.5, 0.0) + 0.5 * np.eye(N)


def window(N, m=12, seed=0):
    """Standardised genotypes over the root of their number."""
    G = np.random.default_rng(seed).binomial(2, 0.3, (N, m)).astype(float)
    return (G - G.mean(axis=0)) / G.std(axis=0) / np.sqrt(m)


KERNELS = {
    "family": lambda N: [Kernel(family(N), None)],
    "window": lambda N: [Kernel(None, window(N))],
    "wide window": lambda N: [Kernel(None, window(N, 3 * N))],
    "both": lambda N: [Kernel(None, window(N)), Kernel(family(N), None)],
}


def related(base, kernels, structure="free"):
    """The model with terms of these kernels, whose donors are in the order of the codes."""
    basis = resolve(structure, CELLTYPES).basis
    code = base.donors[base.row_donor]
    return build_model(
        base.y, base.nu, base.X, base.H, code, base.basis, base.random,
        kinship=[KernelTerm(kernel, basis) for kernel in kernels],
    )  # fmt: skip


def check(model, groups, count=2):
    """Moments, b and all of them without each group are those of n x n matrices."""
    Y, NU = responses(model, count)
    moments = he.moments(model)
    left = LeftOutMoments(model, groups, moments)
    thetas = left.theta(Y, NU)
    whole = moments.solve(Y, NU)
    for j in range(count):
        gene = model.with_response(Y[:, j], NU[:, j])
        theta, condition = dense.haseman_elston(gene)
        close(whole[j], theta, max(EXACT, 1e-14 * condition))
        at = he.complete(gene, whole[j])
        a = dense.arrays(gene)
        hat = np.linalg.pinv(a.X)
        close(at.cov_beta, hat @ dense.covariance(a, theta) @ hat.T, 10 * EXACT)
        close(at.beta, dense.ols(gene), EXACT)
        ols = left.ols(gene, thetas[j])
        for g, group in enumerate(groups):
            part = gene.without(group)
            theta, condition = dense.haseman_elston(part)
            close(thetas[j, g], theta, max(EXACT, 1e-14 * condition))
            close(ols[g], dense.ols(part), EXACT)
    return left


@pytest.mark.parametrize("kernels", quick_first(KERNELS, 2))
@pytest.mark.parametrize("random", quick_first(["batch", "none", "crossed", "celltype-specific"]))
def test_without_each_donor(kernels, random):
    model = related(make("ctp", "free", random, True), KERNELS[kernels](30))
    left = check(model, list(np.arange(30)[:, None]))
    assert len(left.near) == 30  # all by the update


@pytest.mark.parametrize(
    "parts", quick_first(["iid/full", "full/hom", "hom/iid", "banded(1)/free"])
)
def test_structures_of_both_parts(parts):
    structure, genetic = parts.split("/")
    model = related(make("ctp", structure, "batch"), KERNELS["window"](30), genetic)
    check(model, [np.array([i]) for i in range(0, 30, 7)])


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("largest", [left_out_moments._LARGEST, 1], ids=["update", "afresh"])
def test_groups_of_donors(kernels, largest, monkeypatch):
    monkeypatch.setattr(left_out_moments, "_LARGEST", largest)
    model = related(make("ctp", "free", "crossed", True), KERNELS[kernels](30))
    check(model, list(np.array_split(np.arange(30), 5)))


def test_of_a_model_with_donors_left_out():
    model = related(make(missing=True), KERNELS["both"](30)).without([3, 8])
    check(model, [np.array([i]) for i in np.flatnonzero(model.active)[::5]])


@pytest.mark.slow
def test_overall_pseudobulk():
    model = related(make("op", "iid", "none", n_donors=60), KERNELS["window"](60), "hom")
    check(model, [np.array([i]) for i in range(0, 60, 9)])


def test_the_identity_is_the_environment():
    """Two terms of K = I: their moments are those of donors, and cannot be told apart."""
    model = related(make(), [Kernel(np.eye(30), None)])
    gram = he.moment_matrix(model)
    K = len(model.basis)
    close(gram[-K:, -K:], gram[:K, :K], 1e-12)
    assert set(range(K)) <= set(he.confounded(model))
    assert not he.confounded(related(make(), KERNELS["family"](30)))


def test_what_is_compiled_sees_no_kinship():
    base = make()
    model = related(base, KERNELS["family"](30))
    assert model.n_components == base.n_components + 4
    theta = np.arange(1.0, 1 + model.n_components)
    assert model.random_variances(theta).tolist() == [5.0]
    close(np.diag(model.genetic_covariances(theta)[0]), [13.0, 14.0, 15.0], 1e-12)
    same = estimate(model.unrelated, "reml")
    assert same.theta.tolist() == estimate(base, "reml").theta.tolist()


@pytest.mark.parametrize("random", ["batch", "none"])
def test_other_kernels_on_one_layout(random):
    base = make("ctp", "free", random, True)
    family, own = KERNELS["both"](30)
    laid = he.lay_out(related(base, [Kernel(None, np.zeros((30, 1))), own]), many=True)
    model = related(base, [family, own])
    close(he.moments(model, laid).solve(*responses(model)), dense_thetas(model), 1e-8)


def dense_thetas(model):
    """Moments of each response by n x n matrices."""
    Y, NU = responses(model)
    genes = [model.with_response(y, nu) for y, nu in zip(Y.T, NU.T, strict=True)]
    return np.array([dense.haseman_elston(gene)[0] for gene in genes])


def test_products_of_a_kernel_are_those_of_its_matrix():
    """By the root where it is thin, by the matrix elsewhere; with another kernel, with itself."""
    rng = np.random.default_rng(3)
    D = rng.standard_normal((40, 3))
    every = [Kernel(None, window(40, m, m)) for m in (2, 30, 90)] + [Kernel(family(40), None)]
    both = Kernel(every[1].whole, every[1].root)
    for kernel in [*every, both]:
        close(kernel.times(D), kernel.whole @ D, 1e-12)
        close(kernel.diagonal, np.diag(kernel.whole), 1e-12)
        apart = kernel.whole - np.diag(kernel.diagonal)
        close(kernel.squares, apart * apart, 1e-12)
        for other in [*every, both]:
            close(kernel.meets(other, D), (kernel.whole * other.whole) @ D, 1e-12)


def test_the_scale_of_a_kernel_does_not_see_a_constant():
    K = family(20)
    spread = np.mean([np.var(x, ddof=1) for x in _draws(K, 4000)])
    assert Kernel(K, None).scale == pytest.approx(spread, rel=0.03)
    assert Kernel(K + 3.0, None).scale == pytest.approx(Kernel(K, None).scale, rel=1e-12)
    Z = window(20)
    assert Kernel(None, Z).scale == pytest.approx(Kernel(Z @ Z.T, None).scale, rel=1e-12)


def _draws(K, count):
    return np.random.default_rng(3).multivariate_normal(np.zeros(len(K)), K, count)


# ---------------------------------------------------------------------------------------------
# goldens: dense algebra of another author, and cigma 1.1.0


def golden_set(name):
    folder = "golden/kinship"
    names = [f"{folder}/{name}{end}" for end in (".csv", "_K.csv", "_python.json", "_cigma.json")]
    missing = not_here(*names)
    if missing:
        pytest.skip(missing)
    data, K = (pd.read_csv(SHARED / path) for path in names[:2])
    known = [json.loads((SHARED / path).read_text()) for path in names[2:]]
    return data, K.set_index(K.columns[0]), *known


def golden_model(data, K, structure):
    types = sorted(data["celltype"].unique())
    H = (data["celltype"].to_numpy()[:, None] == np.array(types)).astype(float)
    donors = sorted(data["donor"].unique())
    code = data["donor"].map({d: i for i, d in enumerate(donors)}).to_numpy()
    X = np.hstack([H, data[["x1"]]])
    basis = resolve(structure, types).basis
    kernel = Kernel(K.loc[donors, donors].to_numpy(), None)
    return build_model(
        data["y"].to_numpy(), data["nu"].to_numpy(), X, H, code, basis,
        kinship=[KernelTerm(kernel, basis)],
    )  # fmt: skip


@pytest.mark.parametrize("structure", ["hom", "free"])
@pytest.mark.parametrize("name", GOLDENS)
def test_goldens_of_moments_and_jackknife(name, structure):
    data, K, python, cigma = golden_set(name)
    model = golden_model(data, K, structure)
    at = he.fit(model)
    k = len(model.basis)
    order = np.r_[k : 2 * k, :k]  # genetic components first there
    known = python[structure]["he"]
    close(at.theta[order], known["theta"], 1e-10)
    run = jackknife(model, at)
    cov = run.cov[-2 * k :, -2 * k :][np.ix_(order, order)]
    close(cov, known["jackknife_cov"], 1e-10)
    close(np.sqrt(np.diag(cov)), known["jackknife_se"], 1e-10)
    close(run.theta[0][order], known["first_replicate"], 1e-10)
    if structure == "free":
        close(at.theta[order], cigma["theta"], 1e-10)


def test_random_effects_beside_a_kinship_are_named_levels():
    """A batch of whole donors is a kernel of ones between them."""
    base = make(random="batch")
    code = base.donors[base.row_donor]
    batch = np.zeros(30, dtype=int)
    batch[code] = base.random[0].codes
    one = np.ones((1, 3, 3))
    same = Kernel((batch[:, None] == batch).astype(float), None)
    sibs = KernelTerm(Kernel(family(30), None), one)
    arrays = base.y, base.nu, base.X, base.H, code, base.basis
    levels = build_model(*arrays, [base.random[0]], kinship=[sibs])
    kernel = build_model(*arrays, kinship=[KernelTerm(same, one), sibs])
    close(he.fit(levels).theta, he.fit(kernel).theta, 1e-10)


@pytest.mark.slow
def test_draws_have_the_covariance_of_the_model():
    base = make(random="batch", n_donors=12, missing=True)
    model = related(base, [*KERNELS["window"](12), Kernel(family(12) + 0.3, None)], "iid")
    theta = np.array([0.3, 0.1, 0.2, 0.3, 0.2, 0.5, 0.4, 0.6, 0.2])
    many = np.array([draw(model, theta, np.zeros(5), rng=k) for k in range(6000)])
    a = dense.arrays(model)
    expected = dense.covariance(a, theta)
    close(many.T @ many / len(many), expected, 0.08)
    with pytest.raises(CTMMError, match="genetic covariance between cell types is not"):
        draw(model, theta * [1, 1, 1, 1, 1, -1, 1, 1, 1], np.zeros(5))
