"""Designs in which variance components cannot be told apart."""

import math

import numpy as np
import pytest

from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import build_model
from ctmm_formula.errors import ConvergenceError
from ctmm_formula.inference.score import score_test
from ctmm_formula.structures import resolve


def one_row_per_donor(structure):
    """60 donors with one cell type each: shared and specific variance are the same thing."""
    rng = np.random.default_rng(0)
    H = np.eye(3)[np.arange(60) % 3]
    y, nu = rng.normal(size=60), np.full(60, 0.1)
    basis = resolve(structure, ["A", "B", "C"]).basis
    return build_model(y, nu, H, H, np.arange(60), basis, n_cells=np.full(60, 50.0))


@pytest.mark.parametrize("method", ["ml", "reml", "he"])
@pytest.mark.parametrize("structure", ["iid", "free", "full"])
def test_confounded_components_are_an_error(structure, method):
    with pytest.raises(ConvergenceError, match="cannot be told apart"):
        estimate(one_row_per_donor(structure), method)


@pytest.mark.parametrize("method", ["ml", "reml", "he"])
def test_what_is_left_can_be_fitted(method):
    assert math.isfinite(estimate(one_row_per_donor("hom"), method).theta[0])


def test_nothing_is_left_for_the_omnibus_score():
    test = score_test(one_row_per_donor("hom"))
    assert math.isnan(test.pvalue_sum)  # the directions add up to the shared variance
    assert np.isfinite(test.pvalue_celltype).all()  # single types still differ from the others
