"""The same table, bit for bit, however the work is spread; and what stops a scan leaves blocks."""

import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
from joblib.parallel import ThreadingBackend, get_active_backend

import ctmm_formula as ctmm
from ctmm_formula.inference import fit, jackknife
from ctmm_formula.scan import job
from ctmm_formula.scan.responses import Responses
from ctmm_formula.scan.store import Store

FORMULA = "~ C(celltype) + sex"


@pytest.fixture(scope="module")
def data():
    """150 genes are three blocks; some miss rows, one cannot be fitted."""
    obs, expr, nu = ctmm.load_genes()
    expr, nu = expr.iloc[:, :150].copy(), nu.iloc[:, :150]
    expr.iloc[[1, 5], 60:70] = np.nan
    expr.iloc[:, 140] = 1.0
    return {"data": obs, "expr": expr, "nu": nu}


def scan(data, **settings):
    settings = {"random": "batch", "tests": ["lrt"]} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        return ctmm.fit_genes(FORMULA, **data, **settings, method="reml").table


@pytest.fixture(scope="module")
def serial(data):
    return scan(data, n_jobs=1)


@pytest.mark.slow
def test_threads_and_processes_give_the_same_table(data, serial):
    assert (serial["status"] == "failed").sum() == 1
    pd.testing.assert_frame_equal(scan(data, n_jobs=2), serial, check_exact=True)
    with joblib.parallel_config("loky", n_jobs=2):
        pd.testing.assert_frame_equal(scan(data), serial, check_exact=True)


# threads of the cluster may still be closing connections when the machine is busy
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_dask_gives_the_same_table(data, serial, monkeypatch):
    inside = set()

    def refit(*arguments):  # itself parallel: must not become tasks
        inside.add(type(get_active_backend()[0]).__name__)
        return run(*arguments)

    run = jackknife._Refit.__call__
    monkeypatch.setattr(jackknife._Refit, "__call__", refit)
    distributed = pytest.importorskip("distributed")
    with warnings.catch_warnings():  # of dask about itself
        warnings.simplefilter("ignore")
        with (
            distributed.LocalCluster(
                n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
            ) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config("dask"),
        ):
            spread = scan(data)
            scan(data, tests=["mean_jackknife"], genes=["gene001"])
    pd.testing.assert_frame_equal(spread, serial, check_exact=True)
    assert inside == {"SequentialBackend"}


class Lists(ThreadingBackend):
    """As the backend of ray is: results come as lists only."""

    supports_return_generator = False


def test_a_backend_without_generators_gives_the_same_table_block_by_block(
    data, serial, monkeypatch, tmp_path
):
    joblib.register_parallel_backend("lists", Lists)
    monkeypatch.setattr(job, "BLOCK", 5)
    kept = []
    add = Store.add
    monkeypatch.setattr(
        Store, "add", lambda self, number, *rest: kept.append(len(read)) or add(self, number, *rest)
    )
    read, run = [], Responses.read
    monkeypatch.setattr(Responses, "read", lambda self, *at: read.append(at) or run(self, *at))
    names = list(data["expr"])[55:130]  # fifteen blocks, eight in a round
    with joblib.parallel_config("lists", n_jobs=2):
        table = scan(data, genes=names, tests=[], out=tmp_path / "scan.parquet")
        power = ctmm.power(20, n_sim=2, rng=1)
    assert kept[0] < len(read) - 2  # some are kept before the last are read
    columns = ["gene", "status", "hom"]
    expected = serial.iloc[55:130].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[columns], expected[columns], check_exact=True)
    pd.testing.assert_frame_equal(power, ctmm.power(20, n_sim=2, rng=1, n_jobs=1))


def test_processes_that_share_arrays_give_the_same_table(data, serial):
    with joblib.parallel_config("loky", n_jobs=2, max_nbytes=1000):
        pd.testing.assert_frame_equal(scan(data), serial, check_exact=True)


@pytest.mark.slow
def test_ray_gives_the_same_table(data, serial):
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    with warnings.catch_warnings():  # of ray about itself
        warnings.simplefilter("ignore")
        register_ray()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            with joblib.parallel_config("ray", n_jobs=2):
                spread = scan(data)
        finally:
            ray.shutdown()
    pd.testing.assert_frame_equal(spread, serial, check_exact=True)


def test_draws_depend_on_the_gene_alone(data):
    settings = {"tests": ["bootstrap"], "n_bootstrap": 5, "rng": 3, "random": None}
    names = ["gene002", "gene061", "gene003"]
    one = scan(data, genes=names, n_jobs=1, **settings).set_index("gene")["p_bootstrap"]
    two = scan(data, genes=names[::-1], n_jobs=2, **settings).set_index("gene")["p_bootstrap"]
    assert one.equals(two[one.index])


def test_the_partition_into_blocks_changes_nothing(data, serial, monkeypatch):
    monkeypatch.setattr(job, "BLOCK", 7)
    table = scan(data, genes=list(data["expr"])[55:76])
    expected = serial.iloc[55:76].reset_index(drop=True)
    adjusted = [name for name in table if name.endswith(("_bonferroni", "_bh"))]
    pd.testing.assert_frame_equal(
        table.drop(columns=adjusted), expected.drop(columns=adjusted), check_exact=True
    )


def test_only_some_blocks_are_in_memory(data, monkeypatch):
    monkeypatch.setattr(job, "BLOCK", 3)
    read, asked, ended = Responses.read, [], []
    run = job._numbered_block

    def counted(self, start, stop):
        asked.append(start)
        return read(self, start, stop)

    def slow(number, *rest):
        ahead.append(len(asked) - len(ended))
        out = run(number, *rest)
        ended.append(number)
        return out

    ahead: list[int] = []
    monkeypatch.setattr(Responses, "read", counted)
    monkeypatch.setattr(job, "_numbered_block", slow)
    scan(data, n_jobs=2, tests=[])
    assert len(ended) == 50
    assert max(ahead) <= 1 + 2 * 2 + 3  # the one looked at first, and two for each worker


def test_a_progress_bar_counts_genes(data, capsys):
    scan(data, genes=["gene001", "gene002"], tests=[], progress=True)
    assert "2/2" in capsys.readouterr().err


def test_an_error_while_reading_ends_the_scan(data, monkeypatch):
    monkeypatch.setattr(job, "BLOCK", 10)
    expr = data["expr"].astype(object)
    expr.iloc[3, 75] = "high"  # not among those that are looked at first
    with pytest.raises(ctmm.DataError, match="do not hold numbers"):
        scan({**data, "expr": expr}, n_jobs=2)


@pytest.mark.parametrize("what", ["jackknife", "bootstrap", "test"])
def test_one_fit_keeps_to_threads_whatever_backend_is_set(what, monkeypatch):
    """Compiled code in other processes would be compiled again, or not found."""
    here = []
    module, name = {
        "jackknife": (jackknife._Refit, "_chunk"),
        "bootstrap": (fit, "estimate"),
        "test": (fit, "estimate"),
    }[what]
    run = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a: here.append(1) or run(*a))
    call = {
        "jackknife": lambda res, jobs: res.jackknife(n_jobs=jobs).estimates,
        "bootstrap": lambda res, jobs: res.bootstrap(4, rng=1, n_jobs=jobs).replicates,
        "test": lambda res, jobs: res.test_variance("bootstrap", n=4, rng=1, n_jobs=jobs).pvalue,
    }[what]
    fits = [
        ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example(), method="reml") for _ in range(2)
    ]
    expected = call(fits[0], 1)
    here.clear()
    with joblib.parallel_config("loky"):
        found = call(fits[1], 2)
    np.testing.assert_array_equal(found, expected)
    assert here
