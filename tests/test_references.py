"""Named tuples in compiled code: from Python, of each other, and made there."""

import pickle
import sys
from typing import NamedTuple

import numpy as np

from ctmm_formula.engine.options import called, kept
from ctmm_formula.engine.references import held


class Part(NamedTuple):
    """What a tuple may hold."""

    scale: float
    on: bool
    entries: np.ndarray
    matrix: np.ndarray


class Whole(NamedTuple):
    """With another between its members."""

    count: int
    part: Part
    last: np.ndarray


@called
def _weigh(part, size):
    total = 0.0
    for i in range(len(part.entries)):
        total += part.scale * part.entries[i] * part.matrix[i, 1]
    return size * total if part.on else 0.0


@called
def _make(whole, on):
    return Part(2.0 * whole.part.scale, on, whole.last.copy(), whole.part.matrix)


@kept
def _both(whole):
    """By members of a member, and of a tuple made anew in every turn; and that tuple."""
    first, second = _weigh(whole.part, 1), 0.0
    made = _make(whole, False)
    for turn in range(whole.count):
        made = _make(whole, turn > 0)
        made.entries[0] = turn
        second += _weigh(made, 1)
    whole.last[0] = second
    return first, second, made


def test_tuples_are_what_they_are_in_python():
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]])
    whole = Whole(3, Part(0.5, True, np.array([1.0, 2.0]), matrix), np.array([5.0, 6.0]))
    first, second, made = _both(whole)
    assert first == 0.5 * (1.0 * 2.0 + 2.0 * 4.0)
    assert second == sum(turn * 2.0 + 6.0 * 4.0 for turn in (1, 2)) == whole.last[0]
    assert isinstance(made, Part)
    assert (made.scale, made.on) == (1.0, True)
    np.testing.assert_array_equal(made.entries, [2.0, 6.0])
    np.testing.assert_array_equal(made.matrix, matrix)
    made.matrix[0, 0] = 7.0
    assert matrix[0, 0] == 7.0


def test_a_function_gets_a_tuple_by_its_address():
    _both(Whole(1, Part(0.5, False, np.ones(2), np.ones((2, 2))), np.ones(2)))
    (given,) = _both.signatures
    assert [str(kind).split(".")[0] for kind in given] == ["Whole"]
    for signature in _weigh.signatures:
        assert str(signature[0]).startswith("Part.")


def test_arrays_that_were_given_are_given_back():
    """No call keeps what it was given, or what it made, alive."""
    whole = Whole(2, Part(0.5, True, np.ones(3), np.ones((3, 2))), np.ones(3))
    arrays = whole.part.entries, whole.part.matrix, whole.last
    _both(whole)
    before = [sys.getrefcount(array) for array in arrays]
    for _ in range(10):
        _both(whole)
    assert [sys.getrefcount(array) for array in arrays] == before


def test_tuples_that_are_held_are_the_same():
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]])
    whole = Whole(3, Part(0.5, True, np.array([1.0, 2.0]), matrix), np.array([5.0, 6.0]))
    plain, own = _both(whole), held(whole)
    signatures = list(_both.signatures)
    assert _both(own)[:2] == plain[:2]
    assert _both.signatures == signatures
    assert isinstance(own, Whole)
    again = pickle.loads(pickle.dumps(own))
    assert _both(again)[:2] == plain[:2]
    # another may hold what is of another type
    changed = own._replace(last=np.arange(4.0)[::2])
    assert type(changed) is Whole
    assert _both(changed)[0] == plain[0]
