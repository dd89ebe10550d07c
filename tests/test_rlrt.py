"""The exact test against closed forms, brute force, refits of drawn data and R's RLRsim."""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import dense
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar

from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.draws import draw
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.likelihood import evaluate
from ctmm_formula.engine.model import build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.fit import Fit
from ctmm_formula.inference.rlrt import exact_rlrt, maximise, null_distribution, spectrum
from ctmm_formula.inference.tests import COMPONENT_TESTS, run_test
from ctmm_formula.structures import resolve

SCRIPT = Path(__file__).parent / "r/rlrsim.R"
RATIO = 1e-8
"""Absolute, likelihood ratios: sums of some hundred terms."""
KS = 0.01
"""Level of Kolmogorov-Smirnov tests; seeds are fixed."""
NONNEGATIVE = Domain("nonnegative", 0.1)


def hom_model(n_donors=25, C=3, seed=1, sigma2=0.0, missing=0.2, covariate=True, basis=None):
    """Incomplete cell type-specific data with noise that differs 10-fold."""
    rng = np.random.default_rng(seed)
    donor, kind = np.divmod(np.arange(n_donors * C), C)
    keep = rng.random(len(donor)) >= missing
    keep[::C] = True
    donor, kind = donor[keep], kind[keep]
    H = np.eye(C)[kind]
    nu = 0.3 * 10 ** rng.uniform(-1, 0, len(donor))
    X = np.column_stack([H, rng.normal(size=n_donors)[donor]]) if covariate else H
    y = rng.normal(size=len(donor)) * np.sqrt(nu) + H @ np.arange(C)
    y += math.sqrt(sigma2) * rng.normal(size=n_donors)[donor]
    return build_model(y, nu, X, H, donor, np.ones((1, C, C)) if basis is None else basis)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sigma2", [0.0, 0.05, 2.0])
def test_statistic_is_the_restricted_likelihood_ratio(seed, sigma2):
    model = hom_model(seed=seed, sigma2=sigma2)
    base = evaluate(model, np.zeros(1)).llf
    best = minimize_scalar(
        lambda t: -evaluate(model, np.array([t])).llf, bounds=(0, 20), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    test = exact_rlrt(model, n_sim=10, rng=0)
    assert test.statistic == pytest.approx(max(2 * (-best.fun - base), 0.0), abs=RATIO)
    assert test.statistic == pytest.approx(
        2 * (dense.llf(model, [test.component], "reml") - dense.llf(model, [0.0], "reml")),
        abs=RATIO,
    )
    assert test.component == pytest.approx(max(best.x, 0) * (best.fun < -base), abs=1e-5)


def test_component_is_the_nonnegative_reml_estimate():
    seen = set()
    for seed in range(8):
        model = hom_model(seed=seed)
        fit = estimate(model, "reml", NONNEGATIVE)
        at = exact_rlrt(model, n_sim=20, rng=0)
        assert at.component == pytest.approx(fit.theta[0], abs=1e-5)
        seen.add(at.component > 0)
        assert (at.pvalue == 1.0) == (at.component == 0.0)
    assert seen == {True, False}


def test_other_single_components():
    """A basis of higher rank: V I instead of the shared variance."""
    for basis in (np.eye(3), np.diag([1.0, 0.0, 2.0])):
        model = hom_model(seed=4, sigma2=1.0, basis=basis[None])
        fit = estimate(model, "reml", NONNEGATIVE)
        at = exact_rlrt(model, n_sim=10, rng=0)
        assert at.component == pytest.approx(fit.theta[0], rel=1e-4)
        ratio = 2 * (fit.llf - evaluate(model, np.zeros(1)).llf)
        assert at.statistic == pytest.approx(ratio, abs=1e-6)


def test_donors_left_out():
    model = hom_model(seed=2, sigma2=0.3)
    part = model.without([0, 5])
    ratio = 2 * (estimate(part, "reml", NONNEGATIVE).llf - evaluate(part, np.zeros(1)).llf)
    assert ratio > 0.1
    assert exact_rlrt(part, n_sim=10, rng=0).statistic == pytest.approx(ratio, abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 2.0, 6.0])
def test_maximum_against_a_very_fine_grid(spread):
    """Eigenvalues up to six orders apart; at most 1e-4 of a maximum is lost between grid points."""
    rng = np.random.default_rng(int(spread))
    mu = 10 ** rng.uniform(-spread / 2, spread / 2, 15)
    w2 = rng.standard_normal((300, 15)) ** 2
    w2[:20] *= 10 ** rng.uniform(0, 6, (20, 1))
    ratio, at = maximise(mu, w2)
    grid = np.concatenate([[0.0], np.geomspace(1e-7 / mu.max(), 1e9 / mu.min(), 20_000)])
    gain = np.multiply.outer(mu, grid)
    brute = (w2 @ (gain / (1 + gain)) - np.log1p(gain).sum(axis=0)).max(axis=1)
    assert (ratio >= brute - 1e-9 * (1 + brute)).all()
    assert (ratio <= brute + 1e-5 * (1 + brute)).all()
    gain = at[:, None] * mu
    value = (w2 * gain / (1 + gain) - np.log1p(gain)).sum(axis=1)
    np.testing.assert_allclose(value, ratio, rtol=1e-9, atol=1e-9)


def test_null_distribution_in_closed_form():
    """Equal eigenvalues: T = S (m - 1 - log m) where m = mean w^2 > 1, else 0; m is chi2_S / S."""
    S = 12
    draws = null_distribution(np.full(S, 3.0), 20_000, rng=1)
    zero = stats.chi2.cdf(S, S)
    error = math.sqrt(zero * (1 - zero) / 20_000)
    assert abs((draws == 0).mean() - zero) < 4 * error
    m = stats.chi2.rvs(S, size=20_000, random_state=2) / S
    expected = np.where(m > 1, S * (m - 1 - np.log(m)), 0.0)
    assert stats.ks_2samp(draws[draws > 0], expected[expected > 0]).pvalue > KS


@pytest.mark.slow
def test_null_distribution_is_that_of_refits():
    """600 responses drawn from the null and fitted, and the short cut."""
    model = hom_model()
    ratios = []
    for stream in np.random.default_rng(11).spawn(600):
        y = draw(model, [0.0], [0.0, 1.0, 2.0, 0.5], stream)
        one = model.with_response(y, model.nu)
        fit = estimate(one, "reml", NONNEGATIVE)
        ratios.append(2 * (fit.llf - evaluate(one, np.zeros(1)).llf))
    ratios = np.array(ratios)
    null = null_distribution(spectrum(model).mu, 20_000, rng=1)
    # the barrier stops a little short of 0
    zero = 1e-6
    share, expected = (ratios > zero).mean(), (null > zero).mean()
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 600)
    assert stats.ks_2samp(ratios[ratios > zero], null[null > zero]).pvalue > KS


@pytest.mark.slow
def test_p_values_are_uniform_under_the_null():
    """p = 1 holds the mass of a zero estimate: spread over its interval, p is uniform."""
    model = hom_model(n_donors=15)
    rng = np.random.default_rng(3)
    pvalues = []
    for _ in range(200):
        one = model.with_response(draw(model, [0.0], np.zeros(4), rng), model.nu)
        test = exact_rlrt(one, n_sim=500, rng=rng)
        p = test.pvalue
        pvalues.append(p if p < 1 else 1 - test.mass_at_zero * rng.random())
    assert stats.kstest(pvalues, "uniform").pvalue > KS


def exact(model, **options):
    """The test of the first component, as results ask for it."""
    hom = resolve("hom", ["a", "b"])
    fit = Fit(model, hom, Domain(), estimate(model), np.eye(2))
    return run_test("exact", fit, registry=COMPONENT_TESTS, component=0, **options)


def test_power_and_floor():
    model = hom_model(sigma2=4.0)
    test = exact(model, label="hom", rng=1, n=200)
    assert test.pvalue == 1 / 201
    assert "no smaller than 1/(1 + 200 draws)" in test.note
    assert test.extra["draws"] == 200


def test_units_do_not_matter():
    model = hom_model(sigma2=0.05, seed=2)
    scaled = model.with_response(1e4 * model.y, 1e8 * model.nu)
    a, b = exact_rlrt(model, 500, rng=1), exact_rlrt(scaled, 500, rng=1)
    assert a.statistic > 0
    assert b.statistic == pytest.approx(a.statistic, rel=1e-9)
    assert b.component == pytest.approx(1e8 * a.component, rel=1e-6)
    assert b.pvalue == a.pvalue


def test_same_seed_same_p_value():
    model = hom_model(sigma2=0.05, seed=2)
    np.testing.assert_array_equal(exact_rlrt(model, 50, 1).null, exact_rlrt(model, 50, 1).null)
    assert (exact_rlrt(model, 50, 1).null != exact_rlrt(model, 50, 2).null).any()


def test_what_has_no_exact_test():
    two = hom_model().with_basis(np.array([np.ones((3, 3)), np.eye(3)]))
    with pytest.raises(CTMMError, match="single variance component, the model has 2"):
        exact_rlrt(two)
    covariance = np.ones((3, 3)) - np.eye(3)
    with pytest.raises(CTMMError, match="covariance, not a variance"):
        exact_rlrt(hom_model(basis=covariance[None]))
    model = hom_model(covariate=False, missing=0.0)
    everything = build_model(
        model.y, model.nu, np.eye(25)[model.row_donor], model.H, model.row_donor, model.basis
    )
    with pytest.raises(CTMMError, match="fixed effects absorb"):
        exact_rlrt(everything)
    with pytest.raises(CTMMError, match="n_sim= must be a whole number of at least 1"):
        exact_rlrt(model, n_sim=0)
    test = exact(two)
    assert math.isnan(test.pvalue)
    assert "single variance component" in test.note


# RLRsim


@cache
def missing_rlrsim() -> str:
    """Why R cannot be asked, or nothing."""
    if shutil.which("Rscript") is None:
        return "Rscript is not installed"
    test = "quit(status = !(requireNamespace('RLRsim') && requireNamespace('lme4')))"
    call = subprocess.run(["Rscript", "--vanilla", "-e", test], capture_output=True, check=False)
    return "R packages RLRsim and lme4 are not installed" if call.returncode else ""


N_SIM = 100_000
DONORS, ROWS = 12, 200


def one_type(seed=5):
    """Few donors with many rows: the noise variance is as good as known."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(DONORS), ROWS)
    nu = 10 ** rng.uniform(-1, 0, len(donor))
    frame = pd.DataFrame({"donor": donor, "x": rng.normal(size=DONORS)[donor], "nu": nu})
    frame["y"] = 1.0 + rng.normal(size=len(donor)) * np.sqrt(nu)
    frame["y"] += rng.normal(scale=0.045, size=DONORS)[donor]
    return frame


@pytest.mark.r
def test_rlrsim(tmp_path):
    reason = missing_rlrsim()
    if reason and os.environ.get("CTMM_REQUIRE_R") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    frame = one_type()
    frame.to_csv(tmp_path / "data.csv", index=False, float_format="%.17g")
    command = ["Rscript", "--vanilla", str(SCRIPT), str(tmp_path / "data.csv"), str(N_SIM)]
    call = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert call.returncode == 0, call.stderr
    theirs = pd.read_csv(io.StringIO(call.stdout), index_col="name")["value"]

    # with the noise that they estimate as the known one, only their null fit differs: it has a
    # larger noise, and gains (n - p)(x - 1 - log x) for it
    n = len(frame)
    model = build_model(
        frame["y"].to_numpy(), theirs["sigma2"] * frame["nu"].to_numpy(),
        np.column_stack([np.ones(n), frame["x"]]), np.ones((n, 1)), frame["donor"].to_numpy(),
        np.ones((1, 1, 1)),
    )  # fmt: skip
    ours = exact_rlrt(model, N_SIM, rng=1)
    x = theirs["sigma2_null"] / theirs["sigma2"]
    gain = (n - 2) * (x - 1 - math.log(x))
    assert theirs["statistic"] > 1
    assert ours.statistic == pytest.approx(theirs["statistic"] + gain, rel=1e-4)

    def close(share, expected):
        """Two samples of N_SIM; their estimated noise takes up to 3 % from the tail."""
        error = math.sqrt(2 * expected * (1 - expected) / N_SIM)
        return abs(share - expected) < 4 * error + 0.03 * expected

    assert close(ours.pvalue, theirs["pvalue"])
    assert close(ours.mass_at_zero, theirs["zero"])
    for probability in (0.8, 0.9, 0.95, 0.99):
        quantile = theirs[str(probability)]
        assert close((ours.null > quantile).mean(), 1 - probability), probability
