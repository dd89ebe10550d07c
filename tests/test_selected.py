"""Designs of some rows beside those made anew of the same rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ctmm_formula.design.formula import parse
from ctmm_formula.design.identified import check_components, surely
from ctmm_formula.design.labelled import prepared_design
from ctmm_formula.design.prepare import prepare
from ctmm_formula.design.selected import selection
from ctmm_formula.engine.he import moment_matrix
from ctmm_formula.errors import CTMMError
from ctmm_formula.structures import resolve


def table(donors: int = 12, types: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    donor, kind = np.divmod(np.arange(donors * types), types)
    frame = pd.DataFrame({"donor": donor, "celltype": kind, "batch": donor % 4, "site": donor % 2})
    for name in frame:
        frame[name] = name[0] + frame[name].astype(str)
    x = rng.normal(size=donors)[donor]
    return frame.assign(x=x, n_cells=rng.integers(5, 90, len(frame)).astype(float))


def both(formula: str, frame: pd.DataFrame):
    spec = parse(formula, response_required=False)
    ready = prepare(
        spec, frame, donor="donor", celltype="celltype", noise=None, nu2=None, n_cells="n_cells",
        proportions=None, engine="patsy", env={},
    )  # fmt: skip
    whole = prepared_design(spec, ready)
    return spec, ready, whole, selection(whole, ready)


@pytest.mark.parametrize(
    "formula",
    [
        "~ C(celltype) + (1 | batch)",
        "~ C(celltype) * x + (1 | batch) + (1 | site)",
        "~ C(celltype) + site + (celltype | batch)",
    ],
)
def test_some_rows_have_the_design_made_of_them(formula):
    frame = table()
    spec, ready, whole, chosen = both(formula, frame)
    hom, structure = (resolve(name, whole.celltypes) for name in ("hom", "free"))
    moments = moment_matrix(whole.model(structure), projected=False).diagonal()
    rng, taken = np.random.default_rng(1), 0
    for share in np.repeat([0.05, 0.2, 0.5, 0.7], 10):
        rows = np.flatnonzero(rng.random(len(frame)) >= share)
        some = chosen.of(rows)
        sure = some is not None and surely(some.models([structure])[0], moments)
        try:
            want = prepared_design(spec, ready.of(rows), like=whole.coding)
            check_components(want.model(structure), structure, want.random_names)
        except CTMMError:
            assert not sure
            continue
        if some is None:
            continue
        got = some.design
        taken += sure
        assert (got.donors, got.celltypes, got.names) == (want.donors, want.celltypes, want.names)
        assert (got.random_names, got.random_levels) == (want.random_names, want.random_levels)
        for name in ("rows", "X", "H", "donor_codes", "n_cells", "proportions"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), name)
        np.testing.assert_allclose(got.mean_rows, want.mean_rows, 1e-13, 1e-15)
        pd.testing.assert_frame_equal(got.coding.frame, want.coding.frame)
        assert got.known_effects == want.known_effects == {}
        one, other = some.models([hom, structure])[1], want.model(structure)
        for name in ("Q", "W", "row_donor", "donor_block", "active"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)
    assert taken >= 15


def test_what_is_gone_needs_a_design_of_its_own():
    frame = table()
    *_, chosen = both("~ C(celltype) + site + (1 | batch)", frame)
    every = np.arange(len(frame))
    assert chosen.of(every) is not None
    for lost in ("celltype", "site", "batch"):
        assert chosen.of(every[frame[lost] != frame[lost][0]]) is None
    # a type in one donor, and a level for each donor
    one = (frame["celltype"] != "c0") | (frame["donor"] == "d3")
    assert chosen.of(every[one]) is None
    assert chosen.of(every[frame["donor"].isin(["d0", "d1", "d2", "d3"])]) is None


@pytest.mark.parametrize("formula", ["~ C(celltype) + center(x)", "~ x"])
def test_what_other_rows_say_is_made_anew(formula):
    assert both(formula, table())[3] is None


def test_unknown_numbers_of_cells_are_made_anew():
    frame = table()
    frame.loc[3, "n_cells"] = np.nan
    assert both("~ C(celltype)", frame)[3] is None
