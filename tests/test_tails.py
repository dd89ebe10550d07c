"""Tails of forms in random small models beside all of their eigenvalues.

Laws are started from the donors' part of them, which here says little: donors are few, measured
noise is far from what weighs, levels weigh with both signs, and effects cross donors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import dense
import numpy as np
import pytest
from conftest import quick_first
from scipy.optimize import brentq

from ctmm_formula.engine.model import RandomComponent, build_model
from ctmm_formula.inference.cumulants import mixture
from ctmm_formula.inference.score import by_level, loadings
from ctmm_formula.inference.score_law import law_of
from ctmm_formula.inference.score_sums import lay_out, sums_of
from ctmm_formula.inference.tails import tail

FAR = [-40.0, -10.0, -4.0, -2.0, -1.0, -0.3, 0.0, 0.6, 1.0, 2.0, 4.0, 7.9, 15.0, 60.0]
LEAST = -1000.0  # log p below which eigenvalues of dense matrices do not have five digits of p


def contour(value: float, lam: np.ndarray) -> float:
    """log P(sum_j lam_j chi2_1 > value) by thousands of points along a hyperbola.

    It crosses the real axis at a saddlepoint, of the value or of .6 standard deviations from the
    mean.
    """
    sd = math.sqrt(2.0 * np.sum(lam**2))
    if value <= 0.0 < lam.min():
        return 0.0
    if lam.max() < 0.0 <= value:
        return -math.inf
    side = 1.0 if value >= lam.sum() else -1.0
    target = max(side * (value - lam.sum()), 0.6 * sd)
    if (side * lam).max() < 0.0:  # side (form) < 0: not beyond that
        target = min(target, (1.0 - 1e-3) * abs(lam.sum()))

    def ahead(s: float) -> float:
        return float(np.sum(side * lam / (1.0 - 2.0 * side * s * lam) - side * lam)) - target

    pole = 0.5 / (side * lam).max()
    if pole > 0.0:
        near = 1.0
        while ahead(pole * (1.0 - 0.5**near)) < 0.0:
            near += 1.0
        end = pole * (1.0 - 0.5**near)
    else:
        end = 1.0 / sd
        while ahead(end) < 0.0:
            end *= 2.0
    cross = side * brentq(ahead, 0.0, end, xtol=1e-300, rtol=1e-14)
    width = 1.0 / math.sqrt(2.0 * np.sum((lam / (1.0 - 2.0 * cross * lam)) ** 2))
    x, way = 0.005 * np.arange(4500), math.copysign(0.5, value)
    s = cross + width * (1j * np.sinh(x) + way * (np.cosh(x) - 1.0))
    start = -0.5 * np.sum(np.log1p(-2.0 * cross * lam)) - cross * value
    log = -0.5 * np.log(1.0 - 2.0 * np.outer(lam, s)).sum(axis=0) - s * value - start
    f = (np.exp(log) / s * width * (1j * np.cosh(x) + way * np.sinh(x))).imag
    total = 0.005 * (f.sum() - 0.5 * f[0]) / math.pi
    if cross > 0.0:
        return start + math.log(total)
    return math.log1p(math.exp(start) * total)


def a_form(rng: np.random.Generator, donors: int = 14, types: int = 5, effects: int = 0):
    """A law, and all eigenvalues, of a form in a random model; None where that has too few rows.

    Of fewer donors and cell types than those, and of at least so many random effects.
    """
    N, C, p = int(rng.integers(3, donors)), int(rng.integers(1, types)), int(rng.integers(1, 4))
    seen = rng.random((N, C)) > rng.choice([0.0, 0.2, 0.5])
    donor, kind = np.nonzero(seen)
    donor = np.unique(donor, return_inverse=True)[1]
    n = len(donor)
    if donor.max(initial=0) < 2 or n <= p + 2:
        return None
    X = np.column_stack([np.ones(n), rng.standard_normal((N, p - 1))[donor]])
    random = []
    for _ in range(effects + rng.integers(0, 3)):
        codes = rng.integers(0, max(N // 2, 2), N)[donor]
        if rng.random() < 0.3:
            codes = rng.integers(0, 3, n)
        codes = np.unique(codes, return_inverse=True)[1]
        if codes.max() > 0:
            values = np.ones(n) if rng.random() < 0.7 else rng.standard_normal(n)
            random.append(RandomComponent(codes, values))
    nu = rng.gamma(rng.choice([0.3, 1.0, 5.0]), 1.0, n)
    if rng.random() < 0.3:
        nu[rng.random(N)[donor] < 0.4] = 0.0
    one = np.ones((1, C, C))
    model = build_model(
        rng.standard_normal(n), nu, np.linalg.qr(X)[0], np.eye(C)[kind], donor, one, random
    )
    noise = np.full(n, max(float(nu.mean()), 1e-3))
    if rng.random() < 0.7:
        noise *= rng.uniform(0.3, 3.0, n)
    shared, *theta = rng.exponential(size=1 + len(random)) * rng.integers(0, 2, 1 + len(random))
    levels = rng.standard_normal(len(random)) * rng.choice([0.0, 0.3, 1.0, 10.0])
    S = rng.standard_normal((C, C))
    inner = [S @ S.T, -S @ S.T, S + S.T, np.diag(np.arange(C) == 0) - rng.random()]
    inner = inner[rng.integers(4)]

    layout = lay_out(model, model.H)
    rows = layout.rows
    loads, own = np.full((1, C), math.sqrt(shared)), (noise[rows], (model.nu - noise)[rows])
    found, _ = sums_of(layout, loads, np.array(theta), *own, model.y[rows])
    R, signs = loadings(inner)
    given = by_level(layout, np.array(theta)), by_level(layout, levels)
    law = law_of(layout, found, R, signs, *given)

    a = dense.arrays(model)
    same = a.donor[:, None] == a.donor[None, :]
    effects, delta = shared * same * (a.H @ one[0] @ a.H.T), same * (a.H @ inner @ a.H.T)
    for Z, gain, weight in zip(a.levels, theta, levels, strict=True):
        effects, delta = effects + gain * Z @ Z.T, delta + weight * Z @ Z.T
    _, P = dense.projection(effects + np.diag(noise[model.active_rows]), a.X)
    size, axes = np.linalg.eigh(effects + a.D)
    root = axes * np.sqrt(np.maximum(size, 0.0))
    lam = np.linalg.eigvalsh(root.T @ P @ delta @ P @ root)
    return law, lam[np.abs(lam) > 1e-9 * np.abs(lam).max()]


def values_of_forms(rng: np.random.Generator, forms: int, at: Sequence[float], **size: int):
    """Value, law and eigenvalues at so many standard deviations from the mean of random forms."""
    for _ in range(forms):
        form = a_form(rng, **size)
        if form is None or len(form[1]) < 2:
            continue
        law, lam = form
        for z in at:
            yield float(lam.sum() + z * math.sqrt(2.0 * np.sum(lam**2))), law, lam


@pytest.mark.parametrize("seed", quick_first(list(range(6))))
def test_tails_of_random_forms(seed):
    rng, worst, count = np.random.default_rng(seed), 0.0, 0
    for value, law, lam in values_of_forms(rng, 60, FAR):
        want, got = contour(value, lam), tail(value, law)[0]
        assert got <= 0.0
        if want > LEAST:
            worst, count = max(worst, abs(math.expm1(got - want))), count + 1
        else:
            assert got < 0.99 * LEAST
    assert count > 300
    assert worst < 1e-5


@pytest.mark.parametrize("seed", quick_first(list(range(6))))
def test_eight_points_tell_p_values_that_are_not_small(seed):
    """In forms of few eigenvalues two digits, and all of those that are small."""
    rng, above, rough = np.random.default_rng(seed), math.log(0.06), 0
    for value, law, _ in values_of_forms(rng, 60, FAR):
        want, got = tail(value, law)[0], tail(value, law, above=above)[0]
        if got == want:
            continue
        rough += 1
        assert want > math.log(0.059)
        assert abs(math.expm1(got - want)) < 1e-2
    assert rough > 50


@pytest.mark.parametrize("seed", quick_first([2, 4, 9, 12, 14]))
def test_tails_where_many_levels_cross(seed):
    """A phase is continued through levels that turn far between two points: none is lost."""
    rng, above, worst, rough, count = np.random.default_rng(seed), math.log(0.06), 0.0, 0.0, 0
    many = {"donors": 30, "types": 4, "effects": 3}
    for value, law, lam in values_of_forms(rng, 25, (0.3, 0.6, 1.0, 2.0), **many):
        want = contour(value, lam)
        worst = max(worst, abs(math.expm1(tail(value, law)[0] - want)))
        rough = max(rough, abs(math.expm1(tail(value, law, above=above)[0] - want)))
        count += 1
    assert count > 60
    assert worst < 1e-5
    assert rough < 1e-2


@pytest.mark.parametrize("seed", quick_first([3, 5, 8]))
def test_tails_of_many_donors(seed):
    """Donors with like eigenvalues are summed by the nodes of polynomials, with the same digits."""
    rng, worst, together = np.random.default_rng(seed), 0.0, 0
    for value, law, lam in values_of_forms(rng, 8, (-2.0, 0.6, 2.0, 8.0), donors=200):
        want, got = contour(value, lam), tail(value, law, agree=1e-6)[0]
        if want > LEAST:
            worst = max(worst, abs(math.expm1(got - want)))
            together += len(law.groups.half) > 1
    assert together > 15
    assert worst < 1e-8


@pytest.mark.parametrize("smallest", [1e-3, 5e-7, 1e-8])
def test_a_form_that_is_hardly_ever_negative(smallest):
    lam = np.array([-smallest, -smallest, 1e-3, 1.0])
    want = contour(0.0, lam)
    assert want < 0.0
    assert tail(0.0, mixture(lam))[0] == pytest.approx(want, rel=1e-5)
