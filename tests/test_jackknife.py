"""Jackknife: what a left-out donor can take with it, and what the answer must not depend on."""

import dense
import numpy as np
import pytest

from ctmm_formula.engine.domain import Domain, constrain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.left_out_fits import inside
from ctmm_formula.engine.left_out_scores import grouped, left_out_scores
from ctmm_formula.engine.likelihood import make_problem
from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.engine.optimize import make_work
from ctmm_formula.inference.jackknife import jackknife
from ctmm_formula.structures import resolve

REFIT = 1e-5  # refits stop this far, in standard errors, from the optimum


def example(rng, n_donors=24, n_types=3, extra=None, keep=None, structure="free"):
    """Complete data with cell type means, a batch effect and an optional donor covariate."""
    donor = np.repeat(np.arange(n_donors), n_types)
    H = np.tile(np.eye(n_types), (n_donors, 1))
    n = len(donor)
    X = H if extra is None else np.column_stack([H, extra[donor]])
    batch = (np.arange(n_donors) % 5)[donor]
    nu = rng.uniform(0.05, 0.2, n)
    y = (
        rng.normal(size=n_donors)[donor]
        + 0.5 * rng.normal(size=n)
        + np.sqrt(nu) * rng.normal(size=n)
    )
    rows = np.ones(n, dtype=bool) if keep is None else keep(donor, H)
    basis = resolve(structure, [f"c{k}" for k in range(n_types)]).basis
    batches = RandomComponent(batch[rows], np.ones(rows.sum()))
    return build_model(y[rows], nu[rows], X[rows], H[rows], donor[rows], basis, [batches])


@pytest.mark.parametrize("method", ["reml", "ml", "he"])
def test_a_donor_alone_in_a_covariate_level(method):
    extra = np.zeros(24)
    extra[7] = 1.0
    model = example(np.random.default_rng(0), extra=extra)
    fit = estimate(model, method)
    jack = jackknife(model, fit)
    alone = int(np.flatnonzero(model.donors == 7)[0])
    assert [g for g, _ in jack.failed] == [alone]
    assert "rests on these donors alone" in jack.failed[0][1]
    np.testing.assert_array_equal(np.isnan(jack.beta[alone]), [False, False, False, True])
    np.testing.assert_array_equal(np.isnan(np.diag(jack.cov)[:4]), [False, False, False, True])
    # without that donor the covariate is gone: the same fit as without the column
    bare = build_model(
        model.y, model.nu, model.H, model.H, model.row_donor, model.basis, model.random
    )
    there = int(np.flatnonzero(bare.donors == alone)[0])
    other = estimate(bare.without(there), method)
    np.testing.assert_allclose(jack.theta[alone], other.theta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jack.beta[alone, :3], other.beta, rtol=1e-6, atol=1e-8)
    assert np.isfinite(jack.cov[4:, 4:]).all()


def test_a_cell_type_left_to_one_donor():
    rng = np.random.default_rng(1)
    model = example(rng, keep=lambda donor, H: (H[:, 2] == 0) | np.isin(donor, [3, 9]))
    jack = jackknife(model, estimate(model, "reml"))
    failed = {int(model.donors[g]): reason for g, reason in jack.failed}
    assert set(failed) == {3, 9}
    assert all("cannot be told apart" in reason for reason in failed.values())
    assert np.isnan(jack.cov[-len(jack.theta[0]) :, -len(jack.theta[0]) :]).all()


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("blocks", [None, 7])
def test_threads_do_not_change_the_answer(one_step, blocks):
    model = example(np.random.default_rng(2), n_donors=30)
    fit = estimate(model, "reml")
    first = jackknife(model, fit, blocks=blocks, one_step=one_step)
    for n_jobs in (2, 30):
        other = jackknife(model, fit, blocks=blocks, one_step=one_step, n_jobs=n_jobs)
        np.testing.assert_array_equal(other.theta, first.theta)
        np.testing.assert_array_equal(other.beta, first.beta)


def test_one_step_reports_its_distance_from_the_exact_jackknife():
    model = example(np.random.default_rng(3), n_donors=40)
    fit = estimate(model, "reml")
    exact, rough = jackknife(model, fit), jackknife(model, fit, one_step=True)
    se = np.sqrt(np.diag(rough.cov))
    apart = np.abs(np.hstack([exact.beta - rough.beta, exact.theta - rough.theta]) / se)
    assert rough.kind == "one-step" and exact.error == 0.0
    assert 0.0 < rough.error <= apart.max() * (1 + 1e-6)
    assert rough.error > 0.5 * apart.max()  # the donors checked are the ones that move


@pytest.mark.parametrize("bounds", ["noise", "psd", "nonnegative"])
@pytest.mark.parametrize("structure", ["free", "full"])
def test_replicates_are_fits_of_the_other_donors(bounds, structure):
    model = example(np.random.default_rng(4), structure=structure)
    domain = Domain(bounds)
    fit = estimate(model, "reml", domain)
    jack = jackknife(model, fit, domain)
    se = np.sqrt(np.diag(jack.cov))[len(fit.beta) :]
    for i in range(0, 24, 5):
        alone = estimate(model.without(i), "reml", domain)
        if not alone.convergence.boundary:
            assert np.abs((alone.theta - jack.theta[i]) / se).max() < REFIT


@pytest.mark.parametrize("bounds", ["noise", "psd", "nonnegative"])
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("types", [3, 4])
def test_replicates_on_the_edge_are_maxima(bounds, method, types):
    """No lower than searches from many starts without the donor, and inside the domain."""
    met, domain = 0, Domain(bounds)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        donor, celltype = np.divmod(np.arange(16 * types), types)
        H, nu = np.eye(types)[celltype], rng.uniform(0.05, 0.4, len(donor))
        V = np.where(np.arange(types) % 2, 0.0, 0.02)[celltype]
        y = 0.5 * rng.normal(size=16)[donor] + rng.normal(size=len(nu)) * np.sqrt(V + nu)
        basis = resolve("free", [f"c{k}" for k in range(types)]).basis
        batch = RandomComponent(donor % 4, np.ones(len(donor)))
        model = build_model(y, nu, H, H, donor, basis, [batch])
        fit = estimate(model, method, domain)
        if not fit.convergence.boundary:
            continue
        jack = jackknife(model, fit, domain)
        assert not jack.failed
        for i in range(0, 16, 3):
            part = model.without(i)
            alone = estimate(part, method, domain)
            if method == "ml" and not alone.convergence.boundary:
                continue  # an interior maximum comes before the edge, whichever is met
            met += alone.convergence.boundary
            assert dense.llf(part, jack.theta[i], method) > alone.llf - 1e-6
            A = model.effect_covariance(jack.theta[i])
            share = 0.9 if bounds == "noise" else 0.0
            for k in np.flatnonzero(part.active):
                noise = np.diag(share * part.nu[part.row_donor == k])
                assert np.linalg.eigvalsh(A + noise)[0] > -1e-9
            assert bounds == "noise" or jack.theta[i, -1] >= 0.0
            assert bounds != "nonnegative" or (jack.theta[i] >= 0.0).all()
    assert met > 0


def test_fixed_effects_of_replicates_are_those_of_their_components():
    """Also where several climbs were compared, and the last was not the best."""
    for seed in range(12):
        rng = np.random.default_rng([5, seed])
        donor, celltype = np.divmod(np.arange(14 * 3), 3)
        H, nu = np.eye(3)[celltype], rng.uniform(0.1, 0.8, len(donor))
        V = np.where(np.arange(3) % 2, 0.3, 0.0)[celltype]
        y = 0.5 * rng.normal(size=14)[donor] + rng.normal(size=len(nu)) * np.sqrt(V + nu)
        model = build_model(y, nu, H, H, donor, resolve("free", ["a", "b", "c"]).basis)
        domain = Domain("nonnegative")
        jack = jackknife(model, estimate(model, "ml", domain), domain)
        for i in range(14):
            beta = dense.gls(model.without(i), jack.theta[i])[0]
            np.testing.assert_allclose(jack.beta[i], beta, rtol=1e-5, atol=1e-5)


def test_expression_far_from_zero():
    rng = np.random.default_rng(5)
    model = example(rng)
    shifted = model.with_response(model.y + 1e6, model.nu)
    fit, other = estimate(model, "reml"), estimate(shifted, "reml")
    assert other.llf == pytest.approx(fit.llf, abs=1e-6)
    np.testing.assert_allclose(other.theta, fit.theta, rtol=1e-6)
    runs = jackknife(shifted, other), jackknife(model, fit)
    far, near = (run.cov[len(fit.beta) :, len(fit.beta) :] for run in runs)
    np.testing.assert_allclose(far, near, rtol=1e-4)


def shaped(kind, structure, seed=9, n_donors=15, n_types=3):
    """Missing pairs or overall pseudobulk; batches, a crossed effect of a cell type, or none."""
    rng = np.random.default_rng(seed)
    donor, celltype = np.divmod(np.arange(n_donors * n_types), n_types)
    H = np.eye(n_types)[celltype]
    if kind == "overall":
        donor, H = np.arange(2 * n_donors), rng.dirichlet(np.ones(n_types), 2 * n_donors)
    else:
        keep = rng.random(len(donor)) > 0.15
        donor, H = np.unique(donor[keep], return_inverse=True)[1], H[keep]
    n, many = len(donor), int(donor.max()) + 1
    batch, site = rng.integers(0, 4, (2, many))[:, donor]
    levels = rng.normal(size=4)[batch] + rng.normal(size=4)[site] * H[:, 1]
    y = 2.0 + rng.normal(size=many)[donor] + rng.normal(size=n) + levels
    random = [RandomComponent(batch, np.ones(n)), RandomComponent(site, H[:, 1])]
    basis = resolve(structure, [f"c{k}" for k in range(n_types)]).basis
    X = np.column_stack([H, rng.normal(size=many)[donor]])
    number = {"crossed": 2, "batches": 1}.get(kind, 0)
    return build_model(y, rng.uniform(0.2, 0.5, n), X, H, donor, basis, random[:number])


SHAPES = ["alone", "batches", "crossed", "overall"]


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["hom", "iid", "free", "full"])
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("kind", SHAPES)
def test_scores_without_donors_are_those_of_the_textbook(kind, method, structure):
    model = shaped(kind, structure)
    theta = 0.3 + 0.02 * np.arange(model.n_components)
    singles = [np.array([i]) for i in range(model.n_donors)]
    for groups in (singles, [np.array([0, 1, 2]), np.array([4, 9, 11]), np.array([3])]):
        pr = make_problem(model, constrain(model, Domain()), method == "reml", 1.0)
        found = left_out_scores(pr, theta, grouped(model, groups))
        assert found.found.all()
        for g, group in enumerate(groups):
            part = model.without(group)
            score = dense.score(part, theta, method)
            np.testing.assert_allclose(found.grad[g], score, rtol=1e-9, atol=1e-9)
            beta = model.back @ (found.beta[g] + model.Q.T @ model.y)
            np.testing.assert_allclose(beta, dense.gls(part, theta)[0], rtol=1e-9, atol=1e-9)
            for k, e in enumerate(np.eye(len(theta))):
                a, b = (dense.gls(part, theta + h * e)[0] for h in (1e-4, -1e-4))
                slope = model.back @ found.slope[g, k]
                np.testing.assert_allclose(slope, (a - b) / 2e-4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [2, 3, 5, 6, 7, 11])
@pytest.mark.parametrize("how", [{}, {"one_step": True}, {"blocks": 12}])
def test_levels_that_one_donor_tells_apart(seed, how):
    """What is left of the information is rounding without it, and steps were of any size."""
    rng = np.random.default_rng(seed)
    donor, celltype = np.divmod(np.arange(36), 3)
    H, odd = np.eye(3)[celltype], (donor == 11).astype(int)
    y = 2.0 * odd + rng.normal(size=12)[donor] + 0.4 * rng.normal(size=36)
    basis, alone = resolve("hom", list("abc")).basis, RandomComponent(odd, np.ones(36))
    model = build_model(y, rng.uniform(0.1, 0.3, 36), H, H, donor, basis, [alone])
    found = jackknife(model, estimate(model, "reml", Domain()), Domain(), **how)
    own = [g for g, donors in enumerate(found.left_out) if 11 in model.donors[donors]]
    assert [g for g, why in found.failed if "cannot be told apart" in why] == own
    assert np.isnan(found.theta[own]).all() and np.isfinite(np.delete(found.theta, own, 0)).all()


def test_pairs_of_donors_keep_their_levels():
    """Without one of a pair the others still tell the variance of pairs."""
    rng = np.random.default_rng(1)
    donor, celltype = np.divmod(np.arange(36), 3)
    H, basis = np.eye(3)[celltype], resolve("hom", list("abc")).basis
    pair = RandomComponent(donor // 2, np.ones(36))
    y = rng.normal(size=6)[donor // 2] + rng.normal(size=12)[donor] + 0.4 * rng.normal(size=36)
    model = build_model(y, rng.uniform(0.1, 0.3, 36), H, H, donor, basis, [pair])
    found = jackknife(model, estimate(model, "reml", Domain()), Domain())
    assert not found.failed and np.isfinite(found.theta).all()


@pytest.mark.parametrize("blocks", [None, 6])
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("kind", SHAPES)
def test_one_step_is_that_of_the_textbook(kind, method, blocks):
    model = shaped(kind, "hom")
    domain = Domain("noise")
    fit = estimate(model, method, domain)
    assert not fit.convergence.boundary
    jack = jackknife(model, fit, domain, blocks=blocks, one_step=True)
    share = 1.0 / len(jack.left_out)
    inverse = np.linalg.inv(fit.observed) / (1.0 - share)
    stepped = 0
    for g, group in enumerate(jack.left_out):
        part = model.without(group)
        step = inverse @ dense.score(part, fit.theta, method)
        a = dense.arrays(part)
        if np.linalg.eigvalsh(dense.covariance(a, fit.theta + step) - 0.1 * a.D)[0] <= 0.0:
            continue  # outside the domain: climbed
        stepped += 1
        np.testing.assert_allclose(jack.theta[g], fit.theta + step, rtol=1e-9, atol=1e-9)
        a, b = (dense.gls(part, fit.theta + h * step)[0] for h in (1e-4, -1e-4))
        beta = dense.gls(part, fit.theta)[0] + (a - b) / 2e-4
        np.testing.assert_allclose(jack.beta[g], beta, rtol=1e-6, atol=1e-8)
    assert stepped >= 0.6 * len(jack.left_out)


@pytest.mark.parametrize("bounds", ["noise", "psd"])
def test_thetas_inside_the_domain_are_told_from_the_others(bounds):
    model = shaped("batches", "full")
    problem = make_problem(model, constrain(model, Domain(bounds)), True, 1.0)
    rng = np.random.default_rng(7)
    thetas = rng.uniform(-0.2, 0.6, (model.n_donors, model.n_components))
    thetas[:, -1] = 0.2
    groups = [np.array([i]) for i in range(model.n_donors)]
    work = make_work(problem)
    alone = [inside(problem, t[None], [g], work)[0] for t, g in zip(thetas, groups, strict=True)]
    assert 0 < sum(alone) < len(alone)
    np.testing.assert_array_equal(inside(problem, thetas, groups, work), alone)
    for theta, group, said in zip(thetas, groups, alone, strict=True):
        A = model.effect_covariance(theta)
        least = []
        for i in np.setdiff1d(np.arange(model.n_donors), group if bounds == "noise" else []):
            rows = model.row_donor == i
            noise = 0.9 * np.diag(model.nu[rows]) if bounds == "noise" else 0.0
            sigma = model.H[rows] @ A @ model.H[rows].T + noise
            least.append(np.linalg.eigvalsh(sigma)[0])
        # batch variances are positive: single donors decide for psd, and are needed for noise
        assert said == (min(least) > 0.0) if bounds == "psd" else said >= (min(least) > 0.0)


def test_steps_that_leave_the_domain_are_climbed():
    model = example(np.random.default_rng(8), n_donors=16, structure="full")
    domain = Domain("psd")
    fit = estimate(model, "reml", domain)
    jack = jackknife(model, fit, domain, one_step=True)
    assert not jack.failed
    for theta in jack.theta:
        assert np.linalg.eigvalsh(model.effect_covariance(theta))[0] > -1e-9
        assert theta[-1] >= 0.0


def test_a_component_that_no_donor_moves_adds_nothing_to_the_distance():
    model = example(np.random.default_rng(3), n_donors=16)
    loud = model.with_response(model.y, 50.0 * model.nu)
    domain = Domain("nonnegative")
    fit = estimate(loud, "reml", domain)
    jack = jackknife(loud, fit, domain, one_step=True)
    assert (jack.theta.std(axis=0) == 0.0).any()
    assert np.isfinite(jack.error)


@pytest.mark.parametrize("seed", [12, 56, 59])
def test_moment_refits_without_a_covariance_have_effects_by_the_weights_of_the_full_fit(seed):
    """A negative component of a refit leaves no GLS of its own; dense GLS at the full fit's."""
    rng = np.random.default_rng(seed)
    H, donor = np.tile(np.eye(3), (24, 1)), np.repeat(np.arange(24), 3)
    y = rng.normal(size=24)[donor] + rng.normal(size=72) * np.sqrt(0.3)
    basis = np.concatenate([np.ones((1, 3, 3)), [np.diag(e) for e in np.eye(3)]])
    batch = RandomComponent(donor % 6, np.ones(72))
    model = build_model(y, np.full(72, 0.3), H, H, donor, basis, [batch])
    full = estimate(model, "he", Domain())
    assert full.beta_by == "gls"
    run = jackknife(model, full, Domain())
    assert not run.failed
    assert np.isfinite(run.cov).all()
    others = [model.without(group) for group in run.left_out]
    lost = 0
    for part, theta, beta in zip(others, run.theta, run.beta, strict=True):
        own = np.isfinite(dense.llf(part, theta, "reml"))
        lost += not own
        np.testing.assert_allclose(beta, dense.gls(part, theta if own else full.theta)[0])
    assert lost >= 3
