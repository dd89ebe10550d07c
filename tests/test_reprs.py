"""What notebooks and terminals show of public objects: what it is and its sizes, in a few lines."""

from __future__ import annotations

import re

import pytest

import ctmm_formula as ctmm

LONG = 800
"""Characters; tables of a few rows are shown whole."""


@pytest.fixture(scope="module")
def fit():
    return ctmm.fit("expr ~ C(celltype) * sex", random="batch", data=ctmm.load_example())


WHAT = {
    "fit": lambda fit: fit,
    "design": lambda fit: fit.design,
    "arrays": lambda fit: fit.arrays,
    "numbers": lambda fit: fit.numbers,
    "estimate": lambda fit: fit.estimate,
    "convergence": lambda fit: fit.estimate.convergence,
    "structure": lambda fit: fit.structure_,
    "domain": lambda fit: fit.domain,
    "model": lambda fit: fit.model,
    "random effects": lambda fit: fit.random_effects,
    "test": lambda fit: fit.test_mean(),
    "effects": lambda fit: fit.effects("sex"),
    "outliers": lambda fit: fit.outliers(),
    "jackknife": lambda fit: fit.jackknife(),
    "bootstrap": lambda fit: fit.bootstrap(2, rng=1),
    "prediction": lambda fit: fit.get_prediction(ctmm.load_example().head(3)),
    "pairwise": lambda fit: fit.t_test_pairwise("sex"),
    "genes": lambda fit: ctmm.load_genes(),
    "scan": lambda fit: ctmm.fit_genes("~ sex", data=ctmm.load_genes(), genes=["gene001"]),
    "simulated": lambda fit: ctmm.simulate.simulate_genes(2, 10, 2, rng=1),
    "condition": lambda fit: ctmm.simulate.Condition(),
    "tree": lambda fit: ctmm.tree({"late": ["day2", "day3"]}),
    "versions": lambda fit: ctmm.show_versions(),
}


@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.CTMMWarning")
@pytest.mark.parametrize("name", WHAT)
def test_public_objects_are_shown_in_a_few_lines(fit, name):
    text = repr(WHAT[name](fit))
    assert len(text) < LONG and not re.search(r" object at 0x|array\(\[", text), text


def test_a_test_shows_its_outcome_and_a_structure_its_components(fit):
    test = fit.test_mean()
    assert repr(test) == str(test) and "F(" in repr(test)
    assert repr(fit.structure_).startswith("<Structure free: hom, V[day0], ")
    assert "275 rows, 72 donors, 8 fixed effects, 6 variance components" in repr(fit.arrays)
