"""What must not matter does not: order, names, units, coding; and models that must agree do."""

import numpy as np
import pandas as pd
import pytest
from conftest import quick_first
from hypothesis import given, settings
from hypothesis import strategies as st

import ctmm_formula as ctmm

pytestmark = pytest.mark.slow

SAME = {"rtol": 1e-6, "atol": 1e-8}  # two runs of the optimiser, each to its tolerance
LLF = 1e-7  # log-likelihood at two such optima: the error enters squared
TYPES = ["B", "NK", "T"]
FORMULA = "expr ~ 0 + celltype + sex + PC1"

SIMULATED = ctmm.simulate_pseudobulk(
    60, TYPES, sigma2=0.4, V=[0.5, 0.3, 0.2], beta=[0.0, 1.0, 0.5], effects={"sex": 0.5},
    n_batches=8, batch_variance=0.3, missing=0.1, rng=11,
).ctp  # fmt: skip
"""A gene whose estimates are interior for every structure."""

few = settings(max_examples=6, derandomize=True, deadline=None, database=None)
methods = pytest.mark.parametrize("method", quick_first(["reml", "he", "ml"], 2))


def fitted(data=SIMULATED, formula=FORMULA, structure="free", **options):
    options = {"method": "reml", **options}
    return ctmm.fit(formula, random="batch", structure=structure, data=data, **options)


BASE = {method: fitted(method=method) for method in ("reml", "ml", "he")}


def assert_same(res, base, rename=lambda name: name):
    """Equal parameters by name, and equal likelihood."""
    names = [rename(name) for name in base.params.index]
    assert sorted(names) == sorted(res.params.index)
    assert np.allclose(res.params[names], base.params, **SAME)
    if base.method != "he":
        assert res.llf == pytest.approx(base.llf, abs=LLF)
        assert np.allclose(res.pvalues[names], base.pvalues, **SAME)


@methods
@few
@given(seed=st.integers(0, 10**6))
def test_order_of_rows(method, seed):
    data = SIMULATED.sample(frac=1.0, random_state=seed)
    res = fitted(data, method=method)
    assert_same(res, BASE[method])
    if method == "he":
        return
    fit, base = res.fittedvalues, BASE[method].fittedvalues
    assert np.allclose(fit[base.index], base, **SAME)


@methods
@few
@given(order=st.permutations(TYPES))
def test_order_of_cell_types(method, order):
    data = SIMULATED.assign(celltype=pd.Categorical(SIMULATED["celltype"], categories=order))
    res = fitted(data, method=method)
    assert list(res.celltypes) == list(order)
    assert_same(res, BASE[method])


@few
@given(order=st.permutations(TYPES))
def test_order_of_cell_types_with_covariances(order):
    base = fitted(structure="full")
    data = SIMULATED.assign(celltype=pd.Categorical(SIMULATED["celltype"], categories=order))
    res = fitted(data, structure="full")
    assert np.allclose(res.V.loc[TYPES, TYPES], base.V, **SAME)
    assert res.llf == pytest.approx(base.llf, abs=LLF)


@methods
@few
@given(seed=st.integers(0, 10**6))
def test_names_of_levels(method, seed):
    """New names, sorted differently: donors and batches mixed, cell types in their old order."""
    rng = np.random.default_rng(seed)
    data = SIMULATED.copy()
    for column in ("donor", "batch"):
        old = data[column].unique()
        data[column] = data[column].map(dict(zip(old, rng.permutation(len(old)), strict=True)))
    new = {"B": "1st", "NK": "2nd", "T": "3rd"}
    data["celltype"] = data["celltype"].map(new)

    def rename(name):
        for old, other in new.items():
            name = name.replace(f"[{old}]", f"[{other}]")
        return name

    assert_same(fitted(data, method=method), BASE[method], rename)


@pytest.mark.slow
@methods
@few
@given(log_k=st.floats(-4, 4))
def test_units(method, log_k):
    """y k and nu k^2: b k, theta k^2, the same tests, and the likelihood of the new units."""
    k, base = 10.0**log_k, BASE[method]
    data = SIMULATED.assign(expr=SIMULATED["expr"] * k, nu=SIMULATED["nu"] * k**2)
    res = fitted(data, method=method)
    assert np.allclose(res.fe_params / k, base.fe_params, **SAME)
    assert np.allclose(res.vcomp / k**2, base.vcomp, **SAME)
    for test in ("test_variance", "test_mean"):
        assert getattr(res, test)().pvalue == pytest.approx(getattr(base, test)().pvalue, rel=1e-4)
    shares = res.variance_explained()["share"]
    assert np.allclose(shares, base.variance_explained()["share"], **SAME)
    if method == "he":
        return
    df = base.nobs - (len(base.fe_params) if method == "reml" else 0)
    assert res.llf + df * np.log(k) == pytest.approx(base.llf, abs=1e-6)
    assert np.allclose(res.pvalues, base.pvalues, **SAME)


@methods
@few
@given(shift=st.floats(-100, 100))
def test_shifting_y_shifts_the_means(method, shift):
    base = BASE[method]
    res = fitted(SIMULATED.assign(expr=SIMULATED["expr"] + shift), method=method)
    assert np.allclose(res.vcomp, base.vcomp, **SAME)
    assert np.allclose(res.means()["estimate"] - shift, base.means()["estimate"], **SAME)
    assert np.allclose(res.fe_params.iloc[3:], base.fe_params.iloc[3:], **SAME)


@pytest.mark.slow
@methods
@pytest.mark.parametrize(
    "coding",
    [
        "celltype",
        "C(celltype, Treatment(reference='T'))",
        "C(celltype, Treatment(reference=1))",
        "C(celltype, Sum)",
        "C(celltype, Helmert)",
    ],
)
def test_coding_of_cell_types(method, coding):
    base, res = BASE[method], fitted(formula=f"expr ~ {coding} + sex + PC1", method=method)
    assert np.allclose(res.vcomp, base.vcomp, **SAME)
    assert np.allclose(res.means(), base.means(), **SAME)
    assert np.allclose(res.contrasts(), base.contrasts(), **SAME)
    assert res.test_mean().pvalue == pytest.approx(base.test_mean().pvalue, rel=1e-6)
    if method != "he":
        assert res.llf == pytest.approx(base.llf, abs=LLF)


@few
@given(a=st.floats(-5, 5), b=st.floats(0.1, 10))
def test_units_of_a_covariate(a, b):
    """PC1 in other units: all but its own coefficient (and where the means are taken) stays."""
    res = fitted(SIMULATED.assign(PC1=a + b * SIMULATED["PC1"]))
    base = BASE["reml"]
    assert np.allclose(res.vcomp, base.vcomp, **SAME)
    assert res.fe_params["PC1"] * b == pytest.approx(base.fe_params["PC1"], rel=1e-6)
    assert np.allclose(res.means(), base.means(), **SAME)
    assert res.llf == pytest.approx(base.llf, abs=LLF)


# ---------------------------------------------------------------------------------------------
# models that must agree


def test_larger_structures_fit_better():
    for method in ("reml", "ml"):
        fits = [fitted(structure=s, method=method) for s in ("hom", "iid", "free", "full")]
        assert not any(fit.boundary for fit in fits)
        assert (np.diff([fit.llf for fit in fits]) >= 0).all()
        assert (ctmm.anova(*fits).table["statistic"].iloc[1:] >= 0).all()


def test_banded_between_free_and_full():
    none, all_ = fitted(structure="banded(0)"), fitted(structure="banded(2)")
    assert_same(none, BASE["reml"])
    assert_same(all_, fitted(structure="full"))


def test_basis_matrices_are_the_structure():
    J, units = np.ones((3, 3)), [np.diag(row) for row in np.eye(3)]
    res = fitted(structure=dict(zip(["hom", "V[B]", "V[NK]", "V[T]"], [J, *units], strict=True)))
    assert_same(res, BASE["reml"])


@pytest.mark.parametrize("method", ["reml", "ml", "he"])
def test_overall_pseudobulk_of_one_cell_type_is_that_cell_type(method):
    """Exact: if each donor has one cell type, its overall pseudobulk is that row, H the same."""
    rng = np.random.default_rng(2)
    one = SIMULATED.groupby("donor").sample(1, random_state=3).reset_index(drop=True)
    one["expr"] += rng.normal(size=len(one))
    onehot = pd.get_dummies(one["celltype"], dtype=float)
    overall = one.drop(columns="celltype").join(onehot)
    basis = {f"A[{c}]": np.diag((np.array(TYPES) == c).astype(float)) for c in TYPES}
    for structure in ("hom", basis):
        options = {"structure": structure, "method": method, "bounds": "noise"}
        ctp = ctmm.fit(FORMULA, data=one, **options)
        op = ctmm.fit("expr ~ sex + PC1", data=overall, proportions=TYPES, **options)
        assert (ctp.kind, op.kind) == ("ctp", "op")
        assert np.allclose(op.params, ctp.params, **SAME)
        assert np.allclose(op.bse, ctp.bse, **SAME)
        assert np.allclose(op.variance_explained(), ctp.variance_explained(), **SAME)
        assert np.allclose(op.predict(random="all"), ctp.predict(random="all"), **SAME)
        if method != "he":
            assert op.llf == pytest.approx(ctp.llf, abs=LLF)


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_a_donor_without_information_changes_nothing(method):
    """The same donor again with nearly infinite noise, under another name."""
    first = SIMULATED[SIMULATED["donor"] == SIMULATED["donor"].iloc[0]]
    again = pd.concat([SIMULATED, first.assign(donor="again", nu=1e9)], ignore_index=True)
    res, base = fitted(again, method=method), BASE[method]
    assert np.allclose(res.params, base.params, rtol=1e-6, atol=1e-6)
    effects = res.random_effects["shared"]["estimate"]
    assert effects["again"] == pytest.approx(0.0, abs=1e-6)
    assert np.allclose(res.bse, base.bse, rtol=1e-6, atol=1e-6)


def test_rows_that_are_dropped_are_as_never_given():
    data = SIMULATED.copy()
    gone = np.arange(len(data)) % 17 == 3
    data.loc[gone, "PC1"] = np.nan
    assert fitted(data).to_json() != BASE["reml"].to_json()
    assert_same(fitted(data), fitted(SIMULATED[~gone]))


def test_nonnegative_and_noise_agree_inside():
    assert_same(fitted(bounds="nonnegative"), BASE["reml"])
    assert_same(fitted(bounds="psd"), BASE["reml"])
    assert_same(fitted(noise_floor=0.5), BASE["reml"])
