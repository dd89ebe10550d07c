"""Compiled loops do what they do in Python, and give back the arrays that they make."""

from typing import NamedTuple

import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys

from ctmm_formula.engine.lanes import (
    add_to_rows,
    add_totals,
    aligned,
    load,
    together,
    zeros,
    zeros_together,
)
from ctmm_formula.engine.model import LANES
from ctmm_formula.engine.options import called, kept


@kept
def _walk(out, first, stop, step):
    """Numbers of ranges of all kinds, one after the other."""
    at = 0
    for i in range(first, stop, step):
        out[at] = i
        at += 1
    for i in range(stop, first, -2):
        out[at] = i
        at += 1
    for i in range(len(out) - at - 1, -1, -1):
        for _ in range(i):
            if out[at] > 3:
                break
            out[at] += 1
        else:
            continue
        at += 1
    return at


@pytest.mark.parametrize(
    "bounds", [(0, 7, 1), (0, 7, 3), (7, 0, -2), (3, 3, 1), (5, 2, 1), (-4, 4, 2)]
)
def test_ranges_are_those_of_python(bounds):
    found, wanted = np.zeros(40), np.zeros(40)
    assert _walk(found, *bounds) == _walk.py_func(wanted, *bounds)
    np.testing.assert_array_equal(found, wanted)


@kept
def _again(n, step):
    """A range with a name serves several loops, one in the other too."""
    numbers, total = range(0, n, step), 0
    for i in numbers:
        for j in numbers:
            total += 10 * i + j
    for i in numbers:
        total += i
    return total


@pytest.mark.parametrize("step", [1, 3])
def test_a_range_serves_several_loops(step):
    assert _again(7, step) == _again.py_func(7, step)


@kept
def _mix(a, whole, seen, out):
    """Entries by several indices, rows, ends, and of other kinds of numbers."""
    n, m = a.shape[0], a.shape[1]
    for i in range(n):
        row = a[i]
        for j in range(m):
            out[i, j] = row[j] + a[i, j] * whole[j] - a[-1, j]
            if seen[i]:
                out[i, j] -= out[i, -1]
        out[i][0] += whole[-1]
        seen[i] = not seen[i]
        whole[i % len(whole)] += 1
    a[n - 1, m - 1] = whole[0]
    a[0][:] = row


@pytest.mark.parametrize("order", ["C", "F", "part"])
def test_entries_are_those_of_numpy(order):
    rng = np.random.default_rng(1)
    found, wanted = [], []
    for side in (found, wanted):
        rng = np.random.default_rng(1)
        a = rng.normal(size=(8, 6))
        a = a[::2, 1:] if order == "part" else np.array(a, order=order)
        seen = rng.random(8) < 0.5
        side += [a, np.arange(6)[: a.shape[1]] * 2, seen, np.zeros(a.shape)]
    _mix(*found)
    _mix.py_func(*wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14)


@kept
def _names(n):
    """One name for a whole number, a real number, and numbers that meet after a branch."""
    s = n
    total = 0.0
    for k in range(s):
        total += k
    s = 0.5
    for k in range(n):
        if k % 2:
            s = total + k
        elif k > 4:
            s += 0.25
        total += s
    k = total > 3
    if k:
        s = -s
    return total, s, k


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_a_name_may_stand_for_several_things(n):
    assert _names(n) == pytest.approx(_names.py_func(n), rel=1e-15)


@called
def _made(n):
    out = aligned((n, 2))
    for i in range(n):
        out[i, 0], out[i, 1] = i, -i
    return out


@called
def _given(a):
    return a


@called
def _larger(a, b):
    return a if a[0] > b[0] else b


@kept
def _arrays(a, n, early):
    """Arrays made at the start, in turns, on a branch, exchanged, and parts of those given back."""
    out = _made(n)
    part = out[1]
    if early:
        return part
    total = zeros(n)
    left, right = zeros(2), zeros(2)
    kept_on = a[0]
    for i in range(n):
        turn = _made(i + 1)
        row = turn[i]
        left[0] += row[0]
        left, right = right, left
        if i % 2:
            kept_on = _given(turn)[0]
        same = _larger(kept_on, row)
        total[i] = same[1] + left[0] - right[1] + kept_on[0]
    if total[0] > 100.0:
        out = _made(n + 1)
    part[0] = total[n - 1]
    return out[:, 0]


def test_arrays_that_are_made_are_given_back_once():
    _nrt_python.memsys_enable_stats()
    a = np.ones((2, 2))
    _arrays(a, 5, False)
    before = rtsys.get_allocation_stats()
    for early in (False, True):
        for n in (3, 6):
            found = _arrays(a, n, early)
            junk = [np.full(16, 7.0) for _ in range(50)]  # takes what was given back too early
            wanted = [1.0, -1.0] if early else [0.0, found[1], *range(2, n)]
            np.testing.assert_array_equal(found, wanted)
            del found, junk
    after = rtsys.get_allocation_stats()
    assert after.alloc - before.alloc == after.free - before.free > 0
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free


class _Both(NamedTuple):
    left: np.ndarray
    right: np.ndarray


@called
def _row_of(both, i):
    """A part of what another function keeps, given back."""
    return both.left[i]


@kept
def _in_one_piece(both, early):
    """Arrays of one piece of memory, made at the start and in turns; one of them given back."""
    n = len(both.right)
    out, more = zeros_together(((n,), (3, 5)))
    if early:
        return more[1]
    for i in range(n):
        row, other = together(((2,), (1, 2)))
        row[0] = _row_of(both, i)[1]
        other[0, 1] = row[0] + both.right[i]
        mine = _row_of(both, i) if i % 2 else row
        out[i] = other[0, 1] + mine[0]
    return out


def test_arrays_of_one_piece_are_given_back_once():
    _nrt_python.memsys_enable_stats()
    both = _Both(np.arange(14.0).reshape(7, 2), np.ones(7))
    _in_one_piece(both, False)
    before = rtsys.get_allocation_stats()
    for early in (False, True):
        found = _in_one_piece(both, early)
        assert not early or found.ctypes.data % 64 == 40  # row of one that starts at a line
        junk = [np.full(8, 7.0) for _ in range(50)]  # takes what was given back too early
        of_row = both.left[:, 1] + 1.0 + np.where(np.arange(7) % 2, *both.left.T)
        np.testing.assert_array_equal(found, np.zeros(5) if early else of_row)
        del found, junk
    after = rtsys.get_allocation_stats()
    assert after.alloc - before.alloc == after.free - before.free > 0
    assert after.mi_alloc - before.mi_alloc == after.mi_free - before.mi_free


@kept
def _four_at_a_time(lanes, rows, out, spread_out):
    values = load(lanes, 0), load(lanes, 1), load(lanes, 2), load(lanes, 3)
    add_totals(out, (1, 3), values)
    add_to_rows(spread_out, rows, 2, values)


def test_four_values_of_lanes_are_summed_and_added_to_rows():
    rng = np.random.default_rng(4)
    lanes, rows = rng.integers(0, 9, (4, LANES)).astype(float), rng.integers(0, 5, LANES)
    out, spread_out = np.ones((2, 8)), np.ones((5, 7))
    _four_at_a_time(lanes, rows, out, spread_out)
    wanted, spread_wanted = np.ones((2, 8)), np.ones((5, 7))
    wanted[1, 3:7] += lanes.sum(axis=1)
    np.add.at(spread_wanted[:, 2:6], rows, lanes.T)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_array_equal(spread_out, spread_wanted)


def test_new_arrays_start_at_a_line_of_the_cache():
    @kept
    def both(n):
        return aligned((n, 3)), zeros(n)

    rough, zero = both(5)
    assert rough.shape == (5, 3) and zero.shape == (5,)
    assert not rough.ctypes.data % 64 and not zero.ctypes.data % 64
    np.testing.assert_array_equal(zero, 0.0)
