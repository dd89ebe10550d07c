"""The page that explains the kernel computes what the kernel computes."""

from __future__ import annotations

import numpy as np
import pytest
from test_engine import PARTS, holes, inside, kinds, make, methods, structures

from ctmm_formula.engine import likelihood, plain

pytestmark = pytest.mark.slow

ROUNDING = 1e-12
"""Relative to the largest entry: the same sums, added in another order."""


def same(model, method):
    theta = inside(model)
    want, got = likelihood.evaluate(model, theta, method), plain.evaluate(model, theta, method)
    for name, value in vars(want).items():
        scale = np.abs(value).max(initial=1e-6)
        np.testing.assert_allclose(
            getattr(got, name) / scale, value / scale, rtol=0, atol=ROUNDING, err_msg=name
        )


@structures
@kinds
@pytest.mark.parametrize("setting", PARTS)
@holes
@methods
def test_all_of_it(structure, kind, setting, missing, method):
    same(make(structure, kind, setting, missing), method)


@kinds
@methods
def test_without_some_donors(kind, method):
    same(make("free", kind, "crossed", True).without([2, 7]), method)
