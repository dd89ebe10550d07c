"""Covariance structures: canonical names, the user's own matrices, nesting."""

import dense
import numpy as np
import pytest

import ctmm_formula as ctmm
from ctmm_formula.engine import likelihood
from ctmm_formula.engine.domain import Domain, constrain
from ctmm_formula.engine.model import build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.structures import ARGUMENTS, STRUCTURES, banded, resolve

TYPES = ["T", "B", "NK"]
J, EYE = np.ones((3, 3)), np.eye(3)
NAMES = [f"{name}(1)" if name in ARGUMENTS else name for name in STRUCTURES]
EXACT = 1e-12  # the same sums in another order


@pytest.mark.parametrize(
    "given, name",
    [
        ("FREE", "free"),
        (" free ", "free"),
        ("Banded( 1 )", "banded(1)"),
        ("banded(01)", "banded(1)"),
    ],
)
def test_names_are_canonical(given, name):
    assert resolve(given, TYPES).name == resolve(name, TYPES).name == name


@pytest.mark.parametrize("width", ["x", np.nan, np.inf, -1, 1.5, True, None, [1]])
def test_the_width_of_a_band_is_a_whole_number(width):
    with pytest.raises(CTMMError, match=r"banded\(width\)"):
        banded(width)


def test_any_whole_number_is_a_width():
    assert banded(np.int64(2)) == banded(2.0) == "banded(2)"


@pytest.mark.parametrize(
    "structure, message",
    [
        (["hom", "free"], "'V1' is the text 'hom'"),
        ([[[1, 2], [3]]], "'V1' has rows of different lengths"),
        ([1j * EYE], "'V1' is complex"),
        ({"a": EYE, "b": EYE * (1 + 0j)}, "'b' is complex"),
        ([EYE, None], r"'V2' has shape \(\)"),
        ({"a": [["x"] * 3] * 3}, "'a' does not hold numbers"),
        ([EYE[:2]], r"'V1' has shape \(2, 3\).*T, B, NK.*\(3, 3\)"),
        (np.eye(3), r"'V1' has shape \(3,\)"),
        (b"free", "got bytes"),
        (5, "got int"),
        ([], "no basis matrix"),
        ([EYE * np.nan], "finite"),
        ([np.triu(J)], "symmetric"),
        ([1e-14 * np.triu(J)], "symmetric"),
        ([EYE, 0 * J], "linearly dependent"),
        ([J, 2 * J], "not unique"),
        ({"a": J, "b": 2 * J}, "linearly dependent"),
        ("fre", "unknown structure 'fre'"),
        ("banded", "unknown structure 'banded'"),
    ],
)
def test_what_is_no_structure_is_refused(structure, message):
    with pytest.raises(CTMMError, match=message):
        resolve(structure, TYPES)


@pytest.mark.parametrize("name", NAMES)
def test_null_is_the_shared_variance_alone(name):
    structure = resolve(name, TYPES)
    null = structure.null()
    np.testing.assert_array_equal(null.basis, [J])
    assert null.celltypes == structure.celltypes
    assert structure.contains(null) and null.contains(structure) == (len(structure.labels) == 1)


NESTED = {"early": ["day0", "day1"], "late": ["day2", "day3"]}


@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.BoundaryWarning")
@pytest.mark.parametrize("method", ["reml", "ml"])
def test_nested_variances_are_fitted_inside_their_bounds(method):
    """The optimum by the dense gradient: 0 inside, downhill into the bound on it."""
    fit = ctmm.fit(
        "expr ~ 0 + C(celltype)", structure=ctmm.tree(NESTED), method=method,
        bounds="nonnegative", data=ctmm.load_example(),
    )  # fmt: skip
    assert list(fit.vcomp.index)[:3] == ["hom", "V[early]", "V[late]"]
    theta, gradient = fit.estimate.theta, dense.score(fit.arrays, fit.estimate.theta, method)
    inside = theta > 1e-6
    assert inside.sum() >= 4 and (theta >= 0.0).all()
    assert np.abs(gradient[inside]).max() < 1e-3 and (gradient[~inside] < 1e-3).all()
    free = ctmm.fit(
        "expr ~ 0 + C(celltype)", method=method, bounds="nonnegative", data=ctmm.load_example()
    )
    assert fit.llf >= free.llf - 1e-8
    table = ctmm.anova(free, fit).table
    assert table["df"].iloc[1] == 2.0


def test_crossed_variances_start_inside_their_bounds():
    """Two ways to part six types, neither inside the other."""
    one, two = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)
    parts = {"J": np.ones((6, 6)), "one": one[:, None] == one, "two": two[:, None] == two}
    start = _split(basis := np.array([*parts.values(), np.eye(6)], dtype=float))
    assert (start > 0.1).all() and basis.shape == (4, 6, 6)


def _split(basis):
    return likelihood._split(basis.tobytes(), basis.shape)


def test_a_tree_of_trees():
    tree = ctmm.tree({"immune": {"lymphoid": ["T", "B"], "myeloid": ["mono", "DC"]}})
    got = resolve(tree, ["T", "B", "mono", "DC", "stroma"])
    assert got.labels[:4] == ("hom", "V[immune]", "V[lymphoid]", "V[myeloid]")
    np.testing.assert_array_equal(got.basis[2], np.outer([1, 1, 0, 0, 0], [1, 1, 0, 0, 0]))
    np.testing.assert_array_equal(got.basis[1][:, 4], 0)


def test_a_clade_of_types_and_clades():
    tree = ctmm.tree({"immune": ["mono", {"lymphoid": ["T", "B"]}, "DC"]})
    got = resolve(tree, ["T", "B", "mono", "DC", "stroma"])
    assert got.labels[:3] == ("hom", "V[immune]", "V[lymphoid]")
    np.testing.assert_array_equal(got.basis[1], np.outer([1, 1, 1, 1, 0], [1, 1, 1, 1, 0]))
    np.testing.assert_array_equal(got.basis[2], np.outer([1, 1, 0, 0, 0], [1, 1, 0, 0, 0]))


@pytest.mark.parametrize(
    ("clades", "says"),
    [
        ({}, "a dict"),
        (["T", "B"], "a dict"),
        ({"a": "T"}, "list of cell types"),
        ({"a": ["T"]}, "two different cell types"),
        ({"a": ["T", "T"]}, "two different cell types"),
        ({"a": ["T", "B"], "b": ["T", "NK"]}, "'T' occurs twice"),
        ({"a": ["T", "B", "NK"], "b": ["T", "NK"]}, "'NK' occurs twice .* inside another"),
        ({"a": ["mono", {"b": ["T"]}]}, "'b' needs two different cell types"),
        ({"T": ["T", "B"]}, "'T' occurs twice"),
    ],
)
def test_trees_that_cannot_be(clades, says):
    with pytest.raises(CTMMError, match=says):
        ctmm.tree(clades)
    with pytest.raises(CTMMError, match="no cell type of the data"):
        resolve(ctmm.tree({"a": ["x", "y"]}), ["x", "z"])


@pytest.mark.parametrize("scale", [1e-200, 0.3, 2.0, 1e200])
def test_a_multiple_of_the_ones_is_the_shared_component(scale):
    ours = resolve([scale * J, EYE], TYPES)
    assert (ours.shared.tolist(), ours.labels) == ([0], ("hom", "V2"))
    np.testing.assert_array_equal(ours.basis, resolve("iid", TYPES).basis)
    assert resolve({"V": EYE, "s": scale * J}, TYPES).shared.tolist() == [1]
    assert resolve([-scale * J, EYE], TYPES).shared.tolist() == []


@pytest.mark.parametrize("scale", [1e-14, 1e-100, 1.0, 1e100])
def test_nesting_does_not_depend_on_scale(scale):
    small = resolve([scale * np.diag([1.0, 0.0, 0.0])], TYPES)
    assert resolve("free", TYPES).contains(small)
    assert not resolve("iid", TYPES).contains(small)
    assert not resolve([scale * EYE], TYPES).contains(resolve("hom", TYPES))
    assert resolve([J, scale * EYE], TYPES).contains(resolve("iid", TYPES))


# ---------------------------------------------------------------------------------------------
# the domain of the structures


@pytest.mark.parametrize("floor", [np.float32(0.25), np.float64(0.25)])
def test_the_noise_floor_is_any_real_number(floor):
    assert Domain("noise", floor) == Domain("noise", 0.25)


@pytest.mark.parametrize("floor", ["0.1", None, True, 0, 1, np.nan, 0.1j])
def test_the_noise_floor_lies_between_zero_and_one(floor):
    with pytest.raises(CTMMError, match="noise_floor"):
        Domain("noise", floor)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mixed", [True, False])
def test_cones_of_psd_are_the_observed_covariances(name, mixed):
    """Every pseudo-donor's matrix is H A H' of a maximal set of rows, reduced to its range."""
    rng = np.random.default_rng(3)
    donor = np.arange(8) if mixed else np.repeat(np.arange(8), 3)[: 8 * 3 - 1]
    H = rng.dirichlet(np.ones(3), 8) if mixed else np.tile(EYE, (8, 1))[: len(donor)]
    n, structure = len(donor), resolve(name, TYPES)
    model = build_model(rng.normal(size=n), np.ones(n), H, H, donor, structure.basis)
    cones = constrain(model, Domain("psd"))
    theta = rng.normal(size=len(structure.labels))
    A = structure.covariance(theta)
    T, m, lanes = cones.tiles.shape
    W = cones.blocks.design.transpose(0, 3, 2, 1).reshape(T * lanes, m, -1)[: len(cones.active)]
    rows = np.bincount(cones.tiles.place // (m * lanes) * lanes + cones.tiles.place % lanes)
    found = [
        np.linalg.eigvalsh(w[:k] @ np.diag(theta @ cones.S) @ w[:k].T)
        for w, k in zip(W, rows, strict=True)
    ]
    if mixed:
        expected = np.sort([p @ A @ p for p in H])
        np.testing.assert_allclose(np.sort(np.ravel(found)), expected, rtol=0, atol=EXACT)
    else:
        (values,) = found
        expected = np.linalg.eigvalsh(A)
        if len(structure.labels) == 1:
            expected = expected[np.abs(expected) > EXACT]
        np.testing.assert_allclose(values, expected, rtol=0, atol=EXACT)


def test_a_thousand_mixtures_need_one_factorisation(monkeypatch):
    """The cost of the domain does not grow with a factorisation per donor."""
    from ctmm_formula.engine import domain

    calls = []
    original = domain.rank_one_factors
    monkeypatch.setattr(domain, "rank_one_factors", lambda b: calls.append(1) or original(b))
    rng = np.random.default_rng(4)
    H = rng.dirichlet(np.ones(3), 1000)
    basis = resolve("free", TYPES).basis
    model = build_model(rng.normal(size=1000), np.ones(1000), H, H, np.arange(1000), basis)
    assert len(constrain(model, Domain("psd")).nu) == 1000
    assert len(calls) == 1
