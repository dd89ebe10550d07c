"""Groups of donors (by=) and conditions of the same donors (within=).

Fits by groups are compared with fits of each group alone, with dense algebra and with metafor;
fits within donors with dense algebra and metafor.
"""

from __future__ import annotations

import io
import math
import subprocess
import warnings
from dataclasses import replace
from pathlib import Path

import dense
import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, not_here
from scipy import stats
from test_live_r import need

import ctmm_formula as ctmm
from ctmm_formula.engine.noise import working_noise
from ctmm_formula.errors import CTMMError, DataError
from ctmm_formula.inference import directions
from ctmm_formula.inference.directions import empirical
from ctmm_formula.structures import Crossing, cross, resolve

TYPES = ("B", "NK", "T")
KANG = "data/kang_isg15.csv"
APART = "expr ~ 0 + C(celltype):C(group)"


def table(seed=1, donors=48, within=False, missing=0.1, effects=(0.0, 0.4)):
    """Donors in two groups, or each under two conditions, three types, noise that differs."""
    rng = np.random.default_rng(seed)
    copies = 2 if within else 1
    at = np.arange(donors * copies * 3)
    donor, rest = np.divmod(at, copies * 3)
    condition, celltype = np.divmod(rest, 3)
    group = condition if within else (donor % 3 == 0).astype(int)
    sd = np.where(group == 1, 1.3, 0.8) if not within else 0.8
    sample = donor * copies + condition
    nu = 0.2 * 10 ** rng.uniform(-1, 0, len(at))
    y = (
        np.array([1.0, 0.2, -0.5])[celltype]
        + np.asarray(effects)[group]
        + sd * 0.7 * rng.normal(size=donors)[donor]
        + sd
        * np.array([0.4, 0.6, 0.3])[celltype]
        * rng.normal(size=donors * 3)[donor * 3 + celltype]
        + rng.normal(size=len(at)) * np.sqrt(nu)
    )
    if within:
        y += 0.5 * rng.normal(size=donors * 2)[sample] + 0.3 * rng.normal(size=len(at))
    frame = pd.DataFrame(
        {
            "donor": [f"d{i:02d}" for i in donor],
            "celltype": np.array(TYPES)[celltype],
            "group": np.array(["ctrl", "case"])[group],
            "expr": y,
            "nu": nu,
            "n_cells": rng.integers(20, 100, len(at)),
        }
    )
    return frame[rng.random(len(at)) >= missing].reset_index(drop=True)


def alone(frame, **options):
    return {
        name: ctmm.fit("expr ~ 0 + C(celltype)", data=own, **options)
        for name, own in frame.groupby("group")
    }


EDGE = pytest.mark.filterwarnings("ignore::ctmm_formula.errors.BoundaryWarning")


@EDGE
@pytest.mark.parametrize("bounds", ["noise", "psd", "nonnegative"])
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("structure", ["free", "hom", "full", "banded(1)"])
def test_groups_are_as_if_each_were_fitted_alone(structure, method, bounds):
    frame = table()
    options = {"structure": structure, "method": method, "bounds": bounds}
    fit, parts = ctmm.fit(APART, by="group", data=frame, **options), alone(frame, **options)
    assert fit.llf == pytest.approx(sum(part.llf for part in parts.values()), abs=1e-6)
    for name, part in parts.items():
        at = [k for k, label in enumerate(fit.vcomp.index) if name in label]
        size = part.vcomp.abs().max()
        assert np.allclose(fit.vcomp.to_numpy()[at], part.vcomp, atol=1e-3 * size)


def test_labels_say_the_group():
    fit = ctmm.fit(APART, by="group", data=table())
    assert list(fit.vcomp.index) == [
        "hom[case]", "V[B|case]", "V[NK|case]", "V[T|case]",
        "hom[ctrl]", "V[B|ctrl]", "V[NK|ctrl]", "V[T|ctrl]",
    ]  # fmt: skip
    assert list(fit.A.index)[:2] == ["B|case", "NK|case"]
    assert (fit.A.to_numpy()[:3, 3:] == 0.0).all()


def test_moments_are_as_if_each_group_were_fitted_alone():
    frame = table()
    fit, parts = ctmm.fit(APART, by="group", method="he", data=frame), alone(frame, method="he")
    both = np.concatenate([part.vcomp for part in parts.values()])
    np.testing.assert_allclose(fit.vcomp, both, rtol=1e-9)


def test_robust_weights_pool_over_groups():
    """Weights apart, each group's moments are its own: with equal weights they agree."""
    frame = table().assign(nu=0.1, n_cells=50)
    fit, parts = ctmm.fit(APART, by="group", data=frame), alone(frame)
    both = np.concatenate([part.vcomp for part in parts.values()])
    np.testing.assert_allclose(fit.vcomp, both, rtol=1e-8)


@pytest.mark.parametrize("kind", ["by", "within"])
@pytest.mark.parametrize("method", ["reml", "ml"])
def test_likelihoods_are_those_of_dense_algebra(kind, method):
    frame = table(within=kind == "within")
    frame["batch"] = [f"b{int(name[1:]) % 5}" for name in frame["donor"]]
    fit = ctmm.fit(APART, random="batch", method=method, data=frame, **{kind: "group"})
    theta = fit.estimate.theta
    assert dense.llf(fit.arrays, theta, method) == pytest.approx(fit.llf, abs=1e-9)
    # H by hand: donors' effects in each group or condition
    H, basis = by_hand(frame, kind)
    model = fit.arrays
    np.testing.assert_array_equal(model.unsort(model.H), H)
    np.testing.assert_array_equal(model.basis, basis)


def by_hand(frame, kind):
    """H and the basis of free, row by row."""
    groups = sorted(frame["group"].unique())
    names = [(g, c) for g in groups for c in TYPES]
    H = np.array([[float(row.group == g and row.celltype == c) for g, c in names]
                  for row in frame.itertuples()])  # fmt: skip
    first = [lambda g, h: g == h == "case", lambda g, h: g == h == "ctrl"]
    if kind == "within":
        first = [lambda g, h: True, lambda g, h: g == h]
    second = [lambda c, d: True, *(lambda c, d, own=own: c == d == own for own in TYPES)]
    basis = [[[float(one(g, h) and two(c, d)) for h, d in names] for g, c in names]
             for one in first for two in second]  # fmt: skip
    return H, np.array(basis)


@EDGE
@pytest.mark.r
@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("kind", ["by", "within"])
def test_metafor(kind, method, tmp_path):
    need("metafor")
    as_metafor_does(table(seed=4, donors=60, within=kind == "within"), method, kind, tmp_path)


MISSING = not_here(KANG)


@EDGE
@pytest.mark.r
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_metafor_of_three_people_before_and_after(tmp_path):
    need("metafor")
    found = pd.read_csv(SHARED / KANG).query("celltype != 'Megakaryocytes'")
    names = {"stim": "group", "y": "expr"}
    frame = found.drop(columns="donor").rename(columns={**names, "ind": "donor"})
    as_metafor_does(frame, "reml", "within", tmp_path)


def as_metafor_does(frame, method, kind, folder):
    frame.to_csv(folder / "data.csv", index=False)
    script = Path(__file__).parent / "r" / "groups.R"
    call = ["Rscript", "--vanilla", str(script), str(folder / "data.csv"), method, kind]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    theirs = pd.read_csv(io.StringIO(done.stdout), index_col="name")["value"]
    fit = ctmm.fit(APART, method=method, bounds="nonnegative", data=frame, **{kind: "group"})
    assert fit.llf == pytest.approx(theirs["llf"], abs=2e-6)
    size = fit.vcomp.max()
    np.testing.assert_allclose(fit.vcomp, theirs[fit.vcomp.index], atol=2e-3 * size)


def test_three_groups_and_a_batch():
    frame = table(donors=60)
    frame["group"] = [f"g{int(name[1:]) % 3}" for name in frame["donor"]]
    frame["batch"] = [f"b{int(name[1:]) % 7}" for name in frame["donor"]]
    fit = ctmm.fit("expr ~ C(celltype) + C(group)", random="batch", by="group", data=frame)
    assert len(fit.vcomp) == 3 * 4 + 1
    assert fit.vcomp.index[-1] == "batch"


def test_a_trend_of_numbers():
    """A = A_0 + x A_1 by dense algebra; the data have the variance that the trend says."""
    rng = np.random.default_rng(2)
    frame = table(donors=400, missing=0.0)
    age = dict(zip(sorted(set(frame["donor"])), rng.uniform(20, 80, 400), strict=True))
    frame["age"] = frame["donor"].map(age)
    x = (frame["age"] - frame["age"].min()) / (frame["age"].max() - frame["age"].min())
    shared = frame["donor"].map(dict(zip(age, rng.normal(size=400), strict=True)))
    frame["expr"] = np.sqrt(0.2 + 0.8 * x) * shared + np.sqrt(frame["nu"]) * rng.normal(size=1200)
    fit = ctmm.fit("expr ~ C(celltype)", by="age", structure="hom", method="reml", data=frame)
    assert list(fit.vcomp.index) == ["hom", "hom:age"]
    assert abs(fit.vcomp["hom"] - 0.2) < 3 * fit.bse["hom"]
    assert abs(fit.vcomp["hom:age"] - 0.8) < 3 * fit.bse["hom:age"]
    assert fit.bse["hom:age"] < 0.15
    assert dense.llf(fit.arrays, fit.estimate.theta, "reml") == pytest.approx(fit.llf, abs=1e-8)
    assert any("x = 0 where it is" in note for note in fit.notes)
    with pytest.raises(CTMMError, match="no one icc"):
        fit.icc()


def test_a_type_that_a_group_lacks_is_named_and_left_out():
    frame = table()
    frame = frame[~((frame["group"] == "case") & (frame["celltype"] == "T"))]
    fit = ctmm.fit("expr ~ C(celltype) + C(group)", by="group", method="reml", data=frame)
    assert "V[T|case]" not in fit.vcomp.index and len(fit.vcomp) == 7
    assert any("V[T|case]" in note and "left out" in note for note in fit.notes)
    assert "T|case" not in fit.A.index


def test_a_type_of_one_donor_in_a_group_is_left_out_there():
    frame = table()
    case = frame[(frame["group"] == "case") & (frame["celltype"] == "T")]
    frame = frame.drop(case.index[1:])
    with pytest.warns(ctmm.CTMMWarning, match=r"'T\|case' is observed in one donor"):
        fit = ctmm.fit("expr ~ C(celltype) + C(group)", by="group", method="reml", data=frame)
    assert "T|case" not in fit.A.index and "T|ctrl" in fit.A.index


def test_numbers_of_two_values_are_groups():
    frame = table().assign(sick=lambda f: (f["group"] == "case").astype(int))
    fit = ctmm.fit("expr ~ C(celltype) + sick", by="sick", data=frame)
    assert fit.vcomp.index[0] == "hom[0]"


@pytest.mark.parametrize("kind", ["by", "within"])
@pytest.mark.parametrize("method", ["reml", "robust"])
def test_predictions_are_those_of_dense_algebra(kind, method):
    frame = table(within=kind == "within")
    fit = ctmm.fit(
        APART, method=method, bounds="nonnegative" if method == "reml" else None,
        data=frame, **{kind: "group"},
    )  # fmt: skip
    theta = np.maximum(fit.estimate.theta, 0.0)
    fit.estimate.theta[:] = theta
    model, keep = fit.arrays, fit.structure_.shared
    a = dense.arrays(model)
    P = dense.projection(dense.covariance(a, theta), a.X)[1]
    A = fit.structure_.covariance(theta)
    common = np.tensordot(theta[keep], model.basis[keep], axes=1)
    shared, specific = fit.random_effects["shared"], fit.random_effects["specific"]
    assert specific.index.names == ["donor", "celltype", "group"]
    for code in (0, 7):
        rows = a.donor == code
        pull = model.H[rows].T @ (P @ a.y)[rows]
        donor = fit.donors[model.donors[code]]
        own, deep = common @ pull, (A - common) @ pull
        for k, effect in enumerate(fit.structure_.celltypes):
            name, level = effect.split("|")
            if (donor, name, level) in specific.index:
                assert specific["estimate"][donor, name, level] == pytest.approx(deep[k], abs=1e-9)
                assert shared["estimate"][donor, level] == pytest.approx(own[k], abs=1e-9)
            else:
                assert kind == "by" and deep[k] == own[k] == 0.0
    again = fit.predict(frame, random="all")
    np.testing.assert_allclose(again, fit.fittedvalues, atol=1e-9)


@pytest.mark.parametrize("kind", ["by", "within"])
def test_fits_come_back_from_json(kind):
    fit = ctmm.fit(APART, data=table(within=kind == "within"), **{kind: "group"})
    back = ctmm.CTMMResults.from_json(fit.to_json())
    assert back.vcomp.equals(fit.vcomp) and back.V.equals(fit.V)
    assert str(back.summary()) == str(fit.summary())
    assert back.variance_explained().equals(fit.variance_explained())
    assert back.random_effects["specific"].equals(fit.random_effects["specific"])


@pytest.mark.parametrize("kind", ["by", "within"])
def test_shares_sum_to_the_variance_that_dense_sums_give(kind):
    fit = ctmm.fit(APART, data=table(within=kind == "within"), **{kind: "group"})
    d, A = fit.design, fit.A.to_numpy()
    shares = fit.variance_explained()["variance"]
    weight = d.proportions[d.donor_codes][np.arange(fit.nobs), d.H.argmax(axis=1)]
    want = 0.0
    for code in range(fit.n_donors):
        rows = d.donor_codes == code
        w = weight[rows] / weight[rows].sum()
        want += w @ d.E[rows] @ A @ d.E[rows].T @ w / fit.n_donors
    assert shares["shared"] + shares["specific"] == pytest.approx(want)


def test_all_genes_are_as_one_by_one(tmp_path):
    frame = table()
    rng = np.random.default_rng(3)
    Y = pd.DataFrame({f"g{k}": rng.permutation(frame["expr"]) for k in range(3)})
    Y.iloc[4, 1] = np.nan
    nu = pd.DataFrame(dict.fromkeys(Y, frame["nu"].to_numpy()))
    call = {"data": frame.drop(columns=["expr", "nu"]), "expr": Y, "nu": nu}
    scan = ctmm.fit_genes(
        "~ C(celltype) + C(group)", by="group", method="reml", tests=["jackknife"],
        out=tmp_path / "scan.parquet", **call,
    )  # fmt: skip
    for name in Y:
        one = ctmm.fit(
            f"{name} ~ C(celltype) + C(group)", by="group", method="reml",
            data=frame.assign(**{name: Y[name].to_numpy()}),
        )  # fmt: skip
        np.testing.assert_allclose(scan.vcomp.loc[name], one.vcomp, rtol=1e-6, atol=1e-8)
        assert scan.gene(name).vcomp.equals(one.vcomp)
    back = ctmm.read_scan(tmp_path / "scan.parquet", **call)
    assert back.vcomp.equals(scan.vcomp) and back.corr.equals(scan.corr)
    assert back.gene("g0").vcomp.equals(scan.gene("g0").vcomp)
    pair = [one.layout.structures[0].crossed for one in (back, scan)]
    assert pair[0][1:] == pair[1][1:]


def test_a_common_covariance_is_nested():
    frame = table()
    formula = "expr ~ C(celltype)*C(group)"
    fits = [ctmm.fit(formula, by=by, method="reml", data=frame) for by in (None, "group")]
    ratio = ctmm.anova(*fits, labels=["common", "by"]).table
    assert ratio["df"].iloc[1] == 4.0
    assert ratio["statistic"].iloc[1] == pytest.approx(2 * (fits[1].llf - fits[0].llf))


def test_conditions_of_the_same_donors_are_accepted_and_pointed_to():
    frame = table(within=True)
    with pytest.raises(DataError, match="within='group'"):
        ctmm.fit("expr ~ C(celltype)*C(group)", data=frame)
    fit = ctmm.fit("expr ~ C(celltype)*C(group)", within="group", data=frame)
    assert list(fit.vcomp.index) == [
        "hom", "V[B]", "V[NK]", "V[T]", "hom:group", "V[B]:group", "V[NK]:group", "V[T]:group",
    ]  # fmt: skip
    assert fit.n_possible == 48 * 2 * 3


def test_donors_may_miss_a_condition():
    frame = table(within=True, donors=60)
    frame = frame[~(frame["donor"].isin(["d00", "d01", "d02"]) & (frame["group"] == "case"))]
    fit = ctmm.fit("expr ~ C(celltype)*C(group)", within="group", method="reml", data=frame)
    assert dense.llf(fit.arrays, fit.estimate.theta, "reml") == pytest.approx(fit.llf, abs=1e-8)
    effect = fit.random_effects["specific"]["estimate"]["d00", "T", "case"]
    assert np.isfinite(effect) and effect != 0.0  # of the shared part


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {"by": "nope"}, "no column 'nope'"),
        ({}, {"by": "group", "within": "group"}, "give one of them"),
        ({"group": "one"}, {"by": "group"}, "one level"),
        ({"group": lambda f: f["celltype"]}, {"by": "group"}, "differs within donor 'd00'"),
        ({}, {"within": "group"}, "no donor has two"),
        ({"age": 4.0}, {"by": "age"}, "one level"),
        ({"age": lambda f: f.index + 0.5}, {"by": "age"}, "differs within donor"),
        ({}, {"by": "donor"}, "by='donor' is the column of donors"),
        ({}, {"within": "celltype"}, "within='celltype' is the column of cell types"),
        ({}, {"by": 3}, "by= must be the name of a column"),
    ],
)
def test_groups_that_cannot_be(change, options, says):
    with pytest.raises(DataError, match=says):
        ctmm.fit("expr ~ C(celltype)", data=table().assign(**change), **options)


def test_rows_without_a_group_are_dropped_and_counted():
    frame = table()
    frame.loc[frame["donor"] == "d03", "group"] = None
    fit = ctmm.fit("expr ~ C(celltype)", by="group", data=frame)
    assert fit.dropped == {"missing group": int((frame["donor"] == "d03").sum())}


def test_responses_that_no_row_tells_apart_are_left_out():
    """Types seen under one condition have no response of their own."""
    frame = table(within=True, donors=30, missing=0.0)
    frame = frame[(frame["celltype"] == "T") | (frame["group"] == "ctrl")]
    fit = ctmm.fit("expr ~ C(celltype) + C(group)", within="group", method="reml", data=frame)
    assert any("'V[B]:group', 'V[NK]:group'" in note for note in fit.notes)


def test_a_type_under_one_condition_has_neither_effect_nor_response():
    """The others have theirs, of their own rows what they are beside the whole type."""
    whole = table(within=True, donors=30, missing=0.0)
    frame = whole[(whole["celltype"] != "T") | (whole["group"] == "ctrl")]
    with pytest.warns(ctmm.CTMMWarning, match="no rows for combinations"):
        fit = ctmm.fit(
            "expr ~ C(celltype) * C(group)", within="group", method="reml", data=frame
        )  # fmt: skip
    assert dense.llf(fit.arrays, fit.estimate.theta, "reml") == pytest.approx(fit.llf, abs=1e-9)
    found = fit.effects("group")
    assert np.isnan(found.table["estimate"]).tolist() == [False, False, True]
    assert found.omnibus.df[0] == 2 and "without T: no rows" in found.omnibus.note
    assert {"V[B]:group", "V[NK]:group"} <= set(fit.vcomp.index)
    assert "V[T]:group" not in fit.vcomp.index
    test = fit.test_response()
    every = ctmm.fit("expr ~ C(celltype) * C(group)", within="group", data=whole).test_response()
    assert test.pvalue < 0.01 and 0 < test.extra["shared"] < 1 and 0 < test.extra["specific"] < 1
    for name in ("B", "NK"):
        assert test.extra["celltype"][name] == pytest.approx(every.extra["celltype"][name])
    assert np.isnan(test.extra["celltype"]["T"]) and "no test of 'T'" in test.note


def test_overall_pseudobulk_by_groups():
    rng = np.random.default_rng(5)
    P = rng.dirichlet([4, 3, 2], 90)
    frame = pd.DataFrame(P, columns=["prop_B", "prop_NK", "prop_T"])
    frame = frame.assign(donor=[f"d{i}" for i in range(90)], nu=0.05, expr=rng.normal(size=90))
    frame["group"] = np.where(np.arange(90) % 2, "case", "ctrl")
    fit = ctmm.fit("expr ~ C(group)", by="group", structure="hom", method="reml", data=frame,
                   proportions=["prop_B", "prop_NK", "prop_T"])  # fmt: skip
    assert list(fit.vcomp.index) == ["hom[case]", "hom[ctrl]"]
    assert "no cell type has rows of its own" in fit.test_groups().note
    assert dense.llf(fit.arrays, fit.estimate.theta, "reml") == pytest.approx(fit.llf, abs=1e-9)


def test_structures_of_groups_know_their_null():
    by = Crossing("by", "g", ("a", "b"))
    seen = by.effects(TYPES)
    for name, count in (("free", 6), ("iid", 2), ("full", 10), ("banded(1)", 10)):
        structure = cross(resolve(name, TYPES), by, seen)
        L, null = structure.null_contrast, structure.null()
        assert len(L) == count and null.labels == ("hom[a]", "hom[b]")
        # L theta = 0 exactly for the covariances of the null
        theta = np.linalg.lstsq(
            structure.basis.reshape(len(structure.labels), -1).T,
            null.covariance(np.array([0.7, 1.9])).ravel(), rcond=None,
        )[0]  # fmt: skip
        np.testing.assert_allclose(L @ theta, 0.0, atol=1e-12)
        assert structure.contains(null) and not null.contains(structure)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["by", "within"])
def test_pictures_of_groups(kind):
    fit = ctmm.fit(APART, data=table(within=kind == "within"), **{kind: "group"})
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    for what in ("shares", "components", "residuals", "missing", "noise"):
        fit.plot(what)
        assert len(fit.plot_data(what))
    plt.close("all")
    with pytest.raises(CTMMError, match="has one of each"):
        fit.plot("gene")


# ---------------------------------------------------------------------------------------------
# tests of groups and of responses


def dense_directions(model, null, matrices, theta, noise):
    """Value, eigenvalues and terms of donors of every direction, n x n."""
    working = replace(model.with_basis(null), nu=noise)
    a = dense.arrays(working)
    _, P = dense.projection(dense.covariance(a, theta), a.X)
    raw = dense.covariance(a, theta) - a.D + np.diag(model.nu)
    same = a.donor[:, None] == a.donor[None, :]
    PT = P @ a.parts
    trace = np.einsum("kij,lji->kl", PT, PT)
    size, axes = np.linalg.eigh(raw)
    root = axes * np.sqrt(np.maximum(size, 0.0))
    out = []
    for D in matrices:
        S = same * (model.H @ D @ model.H.T)
        coef = np.linalg.solve(trace, [np.sum(T * (P @ S).T) for T in PT])
        Delta = S - np.tensordot(coef, a.parts, axes=1)
        A = P @ Delta @ P
        blocks = model.donor_block[a.donor]
        each = Delta * (np.outer(P @ a.y, P @ a.y) - P @ raw @ P)
        terms = np.bincount(blocks, each.sum(axis=1))
        out.append((a.y @ A @ a.y, np.linalg.eigvalsh(root.T @ A @ root), terms, A))
    return out


@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("kind", ["by", "within", "trend"])
def test_scores_are_those_of_dense_algebra(kind, batch, squares):
    frame = table(seed=7, donors=45, within=kind == "within")
    frame["nu"] *= np.random.default_rng(1).uniform(0.5, 1.5, len(frame))
    donors = frame["donor"].str[1:].astype(int)
    frame["age"], frame["batch"] = 20.0 + donors * 7 % 31, "b" + (donors % 15).astype(str)
    how = {"by": {"by": "group"}, "within": {"within": "group"}, "trend": {"by": "age"}}[kind]
    if squares:
        frame["nu2"] = frame["nu"] ** 2 * np.random.default_rng(2).uniform(0.1, 1.5, len(frame))
    fit = ctmm.fit(APART, random="batch" if batch else None, data=frame, **how)
    crossed, effects = fit.structure_.crossed, fit.structure_.celltypes
    null = crossed.common(crossed.inner.basis, effects)
    J = next(iter(crossed.tested(np.ones((1, 3, 3)), effects).values()))[0]
    scaled = next(iter(crossed.tested(crossed.inner.basis, effects).values()))
    design = directions.directions_of(fit.arrays, null, {"J": J}, {"A": scaled})
    noise = working_noise(fit.arrays.nu, design.how, 1.0)
    model = fit.arrays
    null_model = design.null.with_response(model.y, model.nu, model.nu2)
    got = directions.directed(null_model, noise, design)
    theta = got.theta
    A = np.tensordot(theta[: len(null)], scaled, axes=1)
    # pooled per cell type over groups
    types, n = fit.arrays.types.argmax(axis=1), fit.arrays.n_cells
    for c in range(3):
        own = types == c
        np.testing.assert_allclose(noise[own], np.mean((n * fit.arrays.nu)[own]) / n[own])
    for d, (value, lam, terms, full) in enumerate(
        dense_directions(fit.arrays, null, [J, A], theta, noise)
    ):
        assert got.form(d)[0] == pytest.approx(value, rel=1e-8)
        np.testing.assert_allclose(got.terms(d), terms, atol=1e-8 * np.abs(terms).max())
        one = got.test(d, True)
        sd = np.sqrt(2.0 * np.sum(lam**2))
        if squares:
            variance = dense.score_variance(model, full, null, theta)
            assert abs(variance / sd**2 - 1.0) > 1e-4
            sd, value = np.sqrt(variance), lam.sum() + (value - lam.sum()) * sd / np.sqrt(variance)
        up, down = dense.upper_tail(value, lam), dense.upper_tail(-value, -lam)
        assert np.exp(one.upper) == pytest.approx(up, rel=1e-6)
        assert np.exp(one.law) == pytest.approx(min(2.0 * min(up, down), 1.0), rel=1e-6)
        assert np.exp(one.empirical) == pytest.approx(stats.ttest_1samp(terms, 0.0).pvalue)
        sd = np.sqrt(2.0 * np.sum(lam**2))  # value is on the scale of the law
        assert one.statistic == pytest.approx((value - lam.sum()) / sd, rel=1e-7)


def test_groups_are_tested_two_sided_by_what_counts():
    fit = ctmm.fit("expr ~ C(celltype)*C(group)", by="group", data=table(donors=60))
    test = fit.test_groups()
    law, empirical = test.extra["law"], test.extra["empirical"]
    assert list(law) == ["overall", "shared", *TYPES]
    assert test.pvalue == pytest.approx(max(law["overall"], empirical["overall"]))
    for name in TYPES:
        assert test.extra["celltype"][name] == pytest.approx(max(law[name], empirical[name]))
    assert "fewer than 40 donors" in test.note
    large = ctmm.fit(
        "expr ~ C(celltype)*C(group)", by="group", data=table(donors=150)
    ).test_groups()
    assert large.pvalue == pytest.approx(large.extra["empirical"]["overall"])
    assert large.pvalue < 1e-2  # the cases vary 1.3 / .8 as much
    assert str(type(test).from_dict(test.to_dict())) == str(test)


def test_a_type_is_tested_by_its_own_rows():
    """Whatever other types are, its test is that of a table of its rows."""
    frame = table(donors=60)
    alone = frame[frame["celltype"] == "T"]
    fits = [
        ctmm.fit(formula, by="group", structure="hom", data=data)
        for formula, data in (("expr ~ C(celltype)*C(group)", frame), ("expr ~ C(group)", alone))
    ]
    one, other = (fit.test_groups() for fit in fits)
    assert one.extra["celltype"]["T"] == pytest.approx(other.extra["shared"], rel=1e-6)


def test_which_group_comes_first_does_not_matter():
    frame = table(donors=60)
    turned = frame.assign(group=frame["group"].map({"case": "a", "ctrl": "z"}))
    more = frame.assign(group=frame["group"].map({"case": "z", "ctrl": "a"}))
    one, other = (
        ctmm.fit("expr ~ C(celltype)*C(group)", by="group", data=data).test_groups()
        for data in (turned, more)
    )
    assert one.statistic == pytest.approx(-other.statistic, rel=1e-6)
    assert one.pvalue == pytest.approx(other.pvalue, rel=1e-6)
    assert one.extra["celltype"] == pytest.approx(other.extra["celltype"], rel=1e-5)


def test_of_more_groups_each_is_tested_against_the_others():
    frame = table(donors=90)
    frame["group"] = [f"g{int(name[1:]) % 3}" for name in frame["donor"]]
    test = ctmm.fit("expr ~ C(celltype)*C(group)", by="group", data=frame).test_groups()
    assert list(test.extra["group"]) == ["g0", "g1", "g2"]
    assert "combined" in test.note and 0 < test.pvalue < 1
    law, empirical = test.extra["law"], test.extra["empirical"]  # of all groups together
    assert test.pvalue == pytest.approx(max(law["overall"], empirical["overall"]))
    for name in TYPES:
        assert test.extra["celltype"][name] == pytest.approx(max(law[name], empirical[name]))


def test_few_blocks_have_no_empirical_law():
    """And a batch that acts on a type as on all is one effect in the rows of the type."""
    frame = table(donors=60)
    frame["batch"] = [f"b{int(name[1:]) % 6}" for name in frame["donor"]]
    random = "batch", "(celltype|batch)"
    fit = ctmm.fit("expr ~ C(celltype)*C(group)", random=list(random), by="group", data=frame)
    test = fit.test_groups()
    assert "no empirical law" in test.note
    assert test.extra["law"]["overall"] == test.pvalue
    alone = frame[frame["celltype"] == "T"]
    own = ctmm.fit("expr ~ C(group)", random="batch", by="group", structure="hom", data=alone)
    assert test.extra["celltype"]["T"] == pytest.approx(own.test_groups().pvalue, rel=1e-6)


def test_variance_of_types_is_no_response_whatever_the_fit_has_of_it():
    """A fit of hom or iid leaves what a type has under all conditions to the test of responses."""
    hits = []
    for seed in range(30):
        rng = np.random.default_rng([5, seed])
        donor, rest = np.divmod(np.arange(240), 6)
        celltype, status = rest % 3, rest // 3
        own = rng.normal(size=(40, 3)) * np.sqrt([0.05, 0.2, 0.8])
        frame = pd.DataFrame(
            {"donor": [f"d{k:02d}" for k in donor], "celltype": np.array(list("BTX"))[celltype],
             "status": np.array(["ctrl", "stim"])[status], "nu": 0.05, "n_cells": 30.0,
             "expr": own[donor, celltype] + rng.normal(size=240) * math.sqrt(0.05)}
        )  # fmt: skip
        logs = [
            ctmm.fit(
                "expr ~ C(celltype) * status", within="status", structure=structure, data=frame
            ).test_response()
            for structure in ("hom", "free")
        ]
        assert logs[0].log_pvalue == pytest.approx(logs[1].log_pvalue, abs=1e-6)
        hits.append(logs[0].pvalue < 0.05)
    assert np.mean(hits) < 0.2


def test_reasons_of_tests_that_are_not_there():
    frame = table(donors=60)
    one = frame[frame["celltype"] == "T"]
    both = pd.concat([one, one.assign(expr=one["expr"][::-1].to_numpy())], ignore_index=True)
    both["status"] = np.repeat(["ctrl", "stim"], len(one))
    fit = ctmm.fit("expr ~ status", within="status", structure="hom", data=both)
    assert "nothing shared or specific" in fit.test_response().note
    lost = frame[~((frame["group"] == "case") & (frame["celltype"] == "T"))]
    test = ctmm.fit("expr ~ C(celltype) + C(group)", by="group", data=lost).test_groups()
    assert "no test of 'T': too few rows of its own, or in one group only" in test.note
    case = frame["donor"][frame["group"] == "case"].iloc[0]
    alone = frame[(frame["group"] == "ctrl") | (frame["donor"] == case)]
    with pytest.raises(DataError, match=r"one level once rows are left out \(.* of one donor: 1"):
        ctmm.fit("expr ~ C(celltype) + C(group)", by="group", data=alone)


def test_a_type_that_a_group_lacks_has_no_test():
    frame = table(donors=60)
    frame = frame[~((frame["group"] == "case") & (frame["celltype"] == "T"))]
    test = ctmm.fit("expr ~ C(celltype) + C(group)", by="group", data=frame).test_groups()
    assert np.isnan(test.extra["celltype"]["T"]) and test.extra["celltype"]["B"] > 0


@pytest.mark.parametrize("seed", range(4, 10))
def test_a_type_that_fixed_effects_explain_in_a_group_has_no_test(seed):
    """One man and one woman have it there, and sex an effect in every type and group."""
    frame = table(seed, donors=60)
    frame["sex"] = np.where(frame["donor"].str[1:].astype(int) % 2 == 0, "m", "w")
    few = frame[(frame["group"] == "ctrl") & (frame["celltype"] == "T")]
    frame = frame.drop(few.index.difference(few.groupby("sex").head(1).index))
    fit = ctmm.fit(
        "expr ~ C(celltype)*group*sex", by="group", structure="hom", method="robust", data=frame
    )
    test = fit.test_groups()
    assert np.isnan(test.extra["celltype"]["T"]) and test.extra["celltype"]["B"] > 0
    assert "'T': " in test.note and "adds is explained by the fixed effects" in test.note


@pytest.mark.parametrize("conditions", [("case",), ("ctrl", "case")])
@pytest.mark.parametrize("seed", range(2))
def test_a_type_that_fixed_effects_explain_leaves_the_others_their_tests(seed, conditions):
    """One row for every sex, with an effect of its own: the test is that without these rows."""
    frame = table(seed, donors=30, within=True, missing=0.0)
    frame["sex"] = np.where(frame["donor"].str[1:].astype(int) % 2 == 0, "m", "w")
    few = frame[frame["group"].isin(conditions) & (frame["celltype"] == "T")]
    own = few.groupby(["group", "sex"]).head(1).index
    others = frame.drop(few.index)
    # noise is pooled by cell type: the rows say of it what the others do
    rest = others[others["celltype"] == "T"] if len(conditions) == 1 else few
    pooled = (rest["nu"] * rest["n_cells"]).mean()
    frame.loc[own, "nu"] = pooled / frame.loc[own, "n_cells"]
    frame = frame.drop(few.index.difference(own))
    formula = "expr ~ C(celltype)*group*sex"
    test = ctmm.fit(formula, within="group", structure="hom", data=frame).test_response()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        left = ctmm.fit(formula, within="group", structure="hom", data=others).test_response()
    assert test.log_pvalue == pytest.approx(left.log_pvalue, rel=1e-6)
    for name in ("shared", "specific"):
        assert test.extra[name] == pytest.approx(left.extra[name], rel=1e-6)
    for name in ("B", "NK"):
        assert test.extra["celltype"][name] == pytest.approx(left.extra["celltype"][name], rel=1e-6)
    assert np.isnan(test.extra["celltype"]["T"])
    assert "'T': " in test.note and "adds is explained by the fixed effects" in test.note


def test_responses_of_types_that_no_donor_has_together():
    """Every donor has one type: tests are those of the types alone, and nothing is shared."""
    frame = table(within=True, donors=60, missing=0.0)
    own = np.array(TYPES)[frame["donor"].str[1:].astype(int) % 3]
    frame = frame[frame["celltype"] == own]
    formula = "expr ~ C(celltype)*C(group)"
    test = ctmm.fit(formula, within="group", structure="hom", data=frame).test_response()
    for name in TYPES:
        one = frame[frame["celltype"] == name]
        alone = ctmm.fit("expr ~ C(group)", within="group", structure="hom", data=one)
        want = alone.test_response().extra["celltype"][name]
        assert test.extra["celltype"][name] == pytest.approx(want, rel=1e-6)
    assert 0 < test.pvalue < 0.01 and np.isnan(test.extra["shared"])
    assert "what types share of responses from what is specific" in test.note


def test_responses_are_found_where_they_are():
    frame = table(within=True, donors=40)
    test = ctmm.fit("expr ~ C(celltype)*C(group)", within="group", data=frame).test_response()
    assert test.pvalue < 1e-6 and test.extra["shared"] < 1e-6
    rng = np.random.default_rng(8)
    y = frame.groupby(["donor", "celltype"])["expr"].transform("mean")
    quiet = frame.assign(expr=y + np.sqrt(frame["nu"]) * rng.normal(size=len(frame)))
    test = ctmm.fit("expr ~ C(celltype)*C(group)", within="group", data=quiet).test_response()
    assert test.pvalue > 0.01


def test_a_strong_response_of_one_type_is_not_found_in_the_others():
    frame = table(within=True, donors=60, missing=0.0)
    rng = np.random.default_rng(5)
    y = frame.groupby(["donor", "celltype"])["expr"].transform("mean")
    y += np.sqrt(frame["nu"]) * rng.normal(size=len(frame))
    y += np.where(frame["celltype"] == "T", 2.0 * rng.normal(size=len(frame)), 0.0)
    fit = ctmm.fit("expr ~ C(celltype)*C(group)", within="group", data=frame.assign(expr=y))
    test = fit.test_response()
    own = test.extra["celltype"]
    assert test.pvalue < 1e-6 and test.extra["specific"] < 1e-6 and own.pop("T") < 1e-6
    assert min(own.values()) > 0.01 and test.extra["shared"] > 0.01
    alone = frame.assign(expr=y)[frame["celltype"] == "B"]
    other = ctmm.fit("expr ~ C(group)", within="group", structure="hom", data=alone)
    assert own["B"] == pytest.approx(other.test_response().extra["celltype"]["B"], rel=1e-6)


def test_empirical_law_of_several_directions():
    rng = np.random.default_rng(0)
    terms = rng.normal(size=(40, 2)) @ [[1.0, 0.6], [0.0, 1.0]] + 0.3
    U, r = terms.shape
    T2 = U * terms.mean(0) @ np.linalg.solve(np.cov(terms.T), terms.mean(0))
    want = stats.f.sf(T2 * (U - r) / (r * (U - 1)), r, U - r)
    assert np.exp(empirical(terms)) == pytest.approx(want, rel=1e-10)
    closed = np.column_stack([terms, -terms.sum(axis=1)])  # groups against the others sum to 0
    assert np.exp(empirical(closed)) == pytest.approx(want, rel=1e-8)
    one = stats.ttest_1samp(terms[:, 0], 0.0).pvalue
    assert np.exp(empirical(terms[:, :1])) == pytest.approx(one, rel=1e-10)
    assert np.isnan(empirical(terms[:9])) and np.isnan(empirical(np.ones((40, 2))))


def test_tests_without_groups_say_so():
    plain = ctmm.fit("expr ~ C(celltype)", data=table())
    assert "by=" in plain.test_groups().note and np.isnan(plain.test_groups().pvalue)
    assert "within=" in plain.test_response().note
    within = ctmm.fit("expr ~ C(celltype)", within="group", data=table(within=True))
    assert np.isnan(within.test_groups().pvalue) and within.test_response().pvalue >= 0
    assert "knows no groups" in within.test_variance().note


@pytest.mark.parametrize("kind", ["by", "within"])
def test_all_genes_have_the_same_tests(kind):
    frame = table(within=kind == "within", donors=40)
    name = {"by": "groups", "within": "response"}[kind]
    call = {"expr": frame[["expr"]], "nu": frame[["nu"]].set_axis(["expr"], axis=1)}
    rest, how = frame.drop(columns=["expr", "nu"]), {kind: "group"}
    row = ctmm.fit_genes("~ C(celltype)*C(group)", data=rest, **call, **how).table.iloc[0]
    other = {"by": "response", "within": "groups"}[kind]
    for refused, says in ((other, "is of fits with"), ("score", f"ask for '{name}'")):
        with pytest.raises(CTMMError, match=says):
            ctmm.fit_genes("~ C(celltype)", tests=[refused], data=rest, **call, **how)
    fit = ctmm.fit("expr ~ C(celltype)*C(group)", data=frame, **how)
    test = getattr(fit, f"test_{name}")()
    assert row[f"p_{name}"] == pytest.approx(test.pvalue)
    assert row[f"p_{name}_shared"] == pytest.approx(test.extra["shared"])
    for own in TYPES:
        assert row[f"p_{name}[{own}]"] == pytest.approx(test.extra["celltype"][own])


@pytest.mark.parametrize("factor", [9.0, 0.1])
def test_which_donors_vary_more_is_said(factor):
    rng = np.random.default_rng(4)
    donor, celltype = np.divmod(np.arange(240), 3)
    x = rng.uniform(size=80)
    sizes = {"status": np.where(np.arange(80) % 2, factor, 1.0), "age": 1.0 + (factor - 1.0) * x}
    frame = pd.DataFrame(
        {"donor": [f"d{k}" for k in donor], "celltype": np.array(list("BTX"))[celltype],
         "status": np.where(donor % 2, "case", "control"), "age": x[donor], "nu": 0.1,
         "n_cells": 30.0}
    )  # fmt: skip
    own, noise = rng.normal(size=80), rng.normal(size=240) * np.sqrt(0.1)
    for by, said in (("status", "of 'case' vary"), ("age", "vary")):
        frame["expr"] = np.sqrt(sizes[by])[donor] * own[donor] + noise
        levels = ["control", "case"]
        data = frame.assign(status=pd.Categorical(frame["status"], levels))
        test = ctmm.fit("expr ~ C(celltype)", by=by, data=data).test_groups()
        assert test.pvalue < 0.05
        word = "more" if factor > 1 else "less"
        where = " where 'age' is larger" if by == "age" else ""
        assert f"donors {said} {word}{where}" in test.note
