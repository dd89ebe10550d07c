"""Profile intervals against the definition by dense algebra, and metafor's."""

from __future__ import annotations

import io
import subprocess

import dense
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import chi2
from test_live_r import need, simulate

import ctmm_formula as ctmm

DROP = 0.5 * chi2.isf(0.05, 1)
FORMULA = "expr ~ C(celltype)"


def fitted(structure="free", method="reml", **asked) -> ctmm.CTMMResults:
    frame = simulate(missing=True, seed=3, donors=24)
    asked = {"random": "batch", "bounds": "nonnegative"} | asked
    return ctmm.fit(FORMULA, structure=structure, method=method, data=frame, **asked)


def dense_profile(res: ctmm.CTMMResults, k: int, t: float) -> float:
    """Largest log-likelihood with component k at t and the others at zero or above."""
    others = [j for j in range(len(res.vcomp)) if j != k]

    def loss(free: np.ndarray) -> float:
        theta = np.full(len(res.vcomp), t)
        theta[others] = free
        return -dense.llf(res.arrays, theta, res.method)

    start = res.vcomp.to_numpy()[others]
    if not others:
        return -loss(start)
    bounds = [(0.0, None)] * len(others)
    return -minimize(loss, start, bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}).fun


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("structure", ["hom", "iid", "free"])
def test_at_the_ends_the_profile_has_fallen_by_half_a_quantile(structure, method):
    res = fitted(structure, method)
    ends = res.conf_int(method="profile").iloc[-len(res.vcomp) :]
    for k, (name, (low, high)) in enumerate(ends.iterrows()):
        assert low < res.vcomp[name] < high
        for end in (low, high):
            fallen = res.llf - dense_profile(res, k, end)
            if end == 0.0:  # the domain ends first
                assert fallen < DROP
            else:
                assert fallen == pytest.approx(DROP, abs=1e-5), name


def test_covariances_and_other_domains_are_profiled_too():
    res = ctmm.fit(FORMULA, structure="full", method="reml", data=ctmm.load_example())
    ends = res.conf_int(method="profile").iloc[-len(res.vcomp) :]
    assert (ends["conf_low"] < res.vcomp).all() and (res.vcomp < ends["conf_high"]).all()
    below = fitted(bounds="noise").conf_int(method="profile")
    zero = fitted().conf_int(method="profile")
    assert (below["conf_low"] <= zero["conf_low"] + 1e-9).all()
    edge = below["conf_low"][zero["conf_low"] == 0.0]
    assert (edge < 0.0).all() and len(edge)
    wider = res.conf_int(0.01, method="profile").iloc[-len(res.vcomp) :]
    assert (wider["conf_low"] < ends["conf_low"]).all()
    crossed = ctmm.fit(
        "expr ~ C(celltype) * sex", by="sex", structure="hom", method="ml", data=ctmm.load_example()
    ).conf_int(method="profile")
    assert crossed.notna().all(axis=None)


def test_an_estimate_on_the_edge_has_an_interval_that_begins_there():
    frame = simulate(missing=False, seed=5, donors=24)
    frame["batch"] = frame["donor"].str[1:].astype(int) % 4
    frame["expr"] -= frame.groupby("batch")["expr"].transform("mean")
    with pytest.warns(ctmm.BoundaryWarning):
        res = ctmm.fit(
            FORMULA,
            random="batch",
            method="reml",
            bounds="nonnegative",
            structure="iid",
            data=frame,
        )
    low, high = res.conf_int(method="profile").loc["batch"]
    assert low == 0.0 == res.vcomp["batch"]
    assert res.llf - dense_profile(res, 2, high) == pytest.approx(DROP, abs=1e-5)


def test_on_the_logarithm_ends_are_positive_and_the_effects_stay():
    res = fitted()
    log, wald = res.conf_int(method="log"), res.conf_int()
    p = len(res.fe_params)
    assert log.iloc[:p].equals(wald.iloc[:p])
    shape = res.bse_re / res.vcomp
    reach = (wald["conf_high"][p:] - res.vcomp) / res.bse_re
    np.testing.assert_allclose(log["conf_low"][p:], res.vcomp * np.exp(-reach * shape))
    np.testing.assert_allclose(log["conf_high"][p:], res.vcomp * np.exp(reach * shape))


def test_what_has_no_profile_says_so():
    with pytest.raises(ctmm.CTMMError, match=r"no likelihood.*method='reml' or 'ml'"):
        fitted(method="he").conf_int(method="profile")
    with pytest.raises(ctmm.CTMMError, match="unknown method 'lod'"):
        fitted().conf_int(method="lod")
    again = ctmm.CTMMResults.from_json(fitted("hom").to_json())
    pd.testing.assert_frame_equal(
        again.conf_int(method="profile"), fitted("hom").conf_int(method="profile")
    )


METAFOR = """
d <- read.csv(file("stdin"), stringsAsFactors = TRUE)
d$row <- seq_len(nrow(d))
random <- list(~ 1 | donor, ~ 1 | row, ~ 1 | batch)
fit <- metafor::rma.mv(expr, nu, mods = ~ celltype, random = random, data = d)
for (k in 1:3) {
  own <- confint(fit, sigma2 = k, control = list(tol = 1e-8, vc.max = 5))$random[1, ]
  cat(sprintf("%.10g,%.10g,%.10g\\n", own[["estimate"]], own[["ci.lb"]], own[["ci.ub"]]))
}
"""


@pytest.mark.r
def test_metafor_has_the_same_profile_intervals():
    need("metafor")
    frame = simulate(missing=True, seed=3, donors=24)
    call = subprocess.run(
        ["Rscript", "--vanilla", "-e", METAFOR],
        input=frame.to_csv(index=False, float_format="%.17g"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert call.returncode == 0, call.stderr
    theirs = pd.read_csv(io.StringIO(call.stdout), header=None).to_numpy()
    res = fitted("iid")
    ours = np.column_stack([res.vcomp, res.conf_int(method="profile").iloc[-3:]])
    np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-4)
