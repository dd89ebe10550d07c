"""What another process compiles at the first use is what is called, and it may fail."""

from importlib import import_module

import joblib
import numpy as np
import pytest
from numba.core import config

from ctmm_formula import __main__ as command
from ctmm_formula.engine import beside, likelihood
from ctmm_formula.engine.options import kept
from ctmm_formula.engine.search import race
from ctmm_formula.inference import jackknife, score


@pytest.mark.parametrize(
    ("function", "work", "part"),
    [
        (race, likelihood.compile_search, "fits"),
        (score.tails_of, score.compile_tails, "score tests"),
        (jackknife.left_out_fits, jackknife.compile_fits, "jackknives"),
        (jackknife.left_out_edges, jackknife.compile_edges, "jackknives"),
    ],
)
@pytest.mark.filterwarnings("ignore::ctmm_formula.errors.CTMMWarning")
def test_types_are_those_of_calls(function, work, part):
    assert getattr(import_module(work.__module__), work.__name__) is work
    work()
    command.WORK[part]()
    assert len(function.signatures) == 1


@pytest.fixture
def empty(monkeypatch, tmp_path):
    """A cache of its own."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))


def _sum(x):
    total = 0.0
    for each in x:
        total += each
    return total


def broken():
    raise ValueError


@pytest.mark.usefixtures("empty")
def test_a_process_that_fails_leaves_it_to_this_one():
    function = kept(_sum)
    beside.meanwhile(function, broken)
    assert function._cache.helper is not None
    assert not function._cache.is_empty()  # no second process
    beside.meanwhile(function, broken)
    assert function(np.arange(4.0)) == 6.0
    assert function._cache.helper is None and sum(function.stats.cache_misses.values()) == 1


@pytest.mark.usefixtures("empty")
def test_no_process_where_there_is_one_core_or_code(monkeypatch):
    function = kept(_sum)
    function(np.arange(3.0))
    again = kept(_sum)  # as in a later process
    for one in (function, again):
        beside.meanwhile(one, broken)
        assert one._cache.helper is None
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    other = kept(lambda x: x)
    beside.meanwhile(other, broken)
    assert other._cache.is_empty() and other._cache.helper is None
