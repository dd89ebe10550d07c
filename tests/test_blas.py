"""BLAS keeps to one thread wherever we compute, and gets back what the user had."""

import threading

import joblib
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import ctmm_formula as ctmm
from ctmm_formula import api, planning
from ctmm_formula.blas import one_thread
from ctmm_formula.inference import fit, jackknife, tests
from ctmm_formula.scan import worker


def threads():
    """Numbers of threads of all BLAS libraries, as another program sees them."""
    return {
        library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"
    }


@pytest.fixture(autouse=True)
def three_threads():
    """What a user may have set."""
    with threadpool_limits(3, user_api="blas"):
        if threads() != {3}:
            pytest.skip("this BLAS has one thread")
        yield
        assert threads() == {3}


def test_nested_and_after_an_error():
    with pytest.raises(ZeroDivisionError), one_thread(), one_thread():
        assert threads() == {1}
        raise ZeroDivisionError
    assert threads() == {3}
    with one_thread():
        with one_thread():
            pass
        assert threads() == {1}


def test_two_threads_that_overlap_leave_what_was():
    """The first to come is the first to go, which puts nothing back that the other then takes."""
    inside, leave, seen = threading.Event(), threading.Event(), []

    @one_thread()
    def work():
        seen.append(threads())
        inside.set()
        leave.wait(60)

    other = threading.Thread(target=work)
    with one_thread():
        other.start()
        assert inside.wait(60)
    leave.set()
    other.join()
    assert seen == [{1}]
    assert threads() == {3}


def test_a_number_changed_meanwhile_is_seen_by_the_next():
    with one_thread():
        pass
    with threadpool_limits(2, user_api="blas"):
        with one_thread():
            assert threads() == {1}
        assert threads() == {2}


CALLS = {
    "fit": (api, "estimate", lambda res, data: ctmm.fit("expr ~ C(celltype)", data=data)),
    "jackknife": (jackknife._Refit, "_chunk", lambda res, data: res.jackknife(n_jobs=2)),
    "bootstrap": (fit, "estimate", lambda res, data: res.bootstrap(2, rng=1, n_jobs=2)),
    "score test": (tests, "score_test", lambda res, data: res.test_variance("score")),
    "scan": (worker, "_scan_pattern", lambda res, data: scan(n_jobs=2)),
    "power": (planning, "_pvalues", lambda res, data: power()),
}
"""What computes -> a function inside of it, and the call."""


def scan(**settings):
    obs, expr, nu = ctmm.load_genes()
    genes = list(expr)[:2]
    return ctmm.fit_genes(
        "~ C(celltype)", data=obs, expr=expr, nu=nu, genes=genes, tests=[], **settings
    )


def power():
    with joblib.parallel_config("threading"):
        return ctmm.power(20, tests=["score"], n_sim=2, rng=1)


@pytest.mark.parametrize("what", CALLS)
def test_whatever_computes_holds_it(what, monkeypatch):
    module, name, call = CALLS[what]
    seen, run = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: seen.append(threads()) or run(*a, **k))
    data = ctmm.load_example()
    with threadpool_limits(1, user_api="blas"):
        res = ctmm.fit("expr ~ C(celltype)", method="reml", data=data)
    seen.clear()
    call(res, data)
    assert seen and all(found == {1} for found in seen)


@pytest.mark.slow
def test_workers_of_other_processes_hold_it():
    with joblib.parallel_config("loky", n_jobs=2, inner_max_num_threads=2):
        found = joblib.Parallel()(joblib.delayed(before_and_inside)() for _ in range(2))
    assert found == [({2}, {1})] * 2


def before_and_inside():
    np.linalg.norm(np.ones((2, 2)))
    before = threads()
    with one_thread():
        return before, threads()
