"""Scans in files: complete or not there, gone on with after a kill, never mixed up."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from joblib import parallel_config

import ctmm_formula as ctmm
from ctmm_formula.datasets import CELLTYPES
from ctmm_formula.paths import write_whole
from ctmm_formula.scan import job
from ctmm_formula.scan import store as scan_store
from ctmm_formula.simulate import overall_table

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

FORMULA = "~ C(celltype) + sex"
SCRIPT = """
import sys, time, warnings
warnings.simplefilter("ignore")
import ctmm_formula as ctmm
from ctmm_formula.scan import job

job.BLOCK = 10
run = job._numbered_block

def slow(*block):
    time.sleep(0.05)
    return run(*block)

job._numbered_block = slow
ctmm.fit_genes(%r, data=ctmm.load_genes(), tests=["lrt"], out=sys.argv[1], n_jobs=2, method="reml")
"""
KILLS = 2  # the benchmark kills ten times


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(job, "BLOCK", 10)


@pytest.fixture(scope="module")
def data():
    obs, expr, nu = ctmm.load_genes()
    expr = expr.iloc[:, :40].copy()
    expr.iloc[:, 7] = 0.0
    return {"data": obs, "expr": expr, "nu": nu.iloc[:, :40]}


def scan(data, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        return ctmm.fit_genes(FORMULA, **data, **{"tests": ["lrt"], "method": "reml", **settings})


def same(one, two):
    pd.testing.assert_frame_equal(one.table, two.table, check_exact=True)


def begin(path):
    """A scan in another process."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", SCRIPT % FORMULA, str(path)], env=environment)


def wait(ready, process):
    """Until it is ready or the process has ended."""
    end = time.monotonic() + 60
    while not ready() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


@pytest.fixture
def count(monkeypatch):
    """Numbers of the blocks that are computed; may interrupt at one of them."""
    run, done = job._numbered_block, []
    done_and_stop = {"done": done, "stop": None}

    def counted(number, *rest):
        if number == done_and_stop["stop"]:
            raise KeyboardInterrupt
        out = run(number, *rest)
        done.append(number)
        return out

    monkeypatch.setattr(job, "_numbered_block", counted)
    return done_and_stop


def test_a_file_holds_the_table_of_memory(data, tmp_path, count):
    path = tmp_path / "scan.parquet"
    plain = scan(data)
    same(scan(data, out=path), plain)
    assert [p.name for p in tmp_path.iterdir()] == ["scan.parquet"]
    read = ctmm.read_scan(path)
    same(read, plain)
    assert read.table.dtypes.equals(plain.table.dtypes)
    assert repr(read) == repr(plain) and str(read) == str(plain)
    pd.testing.assert_frame_equal(read.corr, plain.corr)
    before = list(count["done"])
    same(scan(data, out=str(path)), plain)
    assert count["done"] == before  # nothing is computed again
    assert pd.read_parquet(path)["p_lrt_bh"].equals(plain.table["p_lrt_bh"])


def test_an_interrupted_scan_goes_on_where_it_stopped(data, tmp_path, count):
    path, plain = tmp_path / "scan.parquet", scan(data)
    count["done"].clear()
    count["stop"] = 2
    with pytest.raises(KeyboardInterrupt):
        scan(data, out=path, n_jobs=1)
    assert count["done"] == [0, 1]
    assert not path.exists()
    count["stop"] = None
    same(scan(data, out=path, n_jobs=1), plain)
    assert count["done"] == [0, 1, 2, 3]


def test_half_a_block_never_counts(data, tmp_path, count):
    path, plain = tmp_path / "scan.parquet", scan(data)
    count["stop"] = 3
    with pytest.raises(KeyboardInterrupt):
        scan(data, out=path, n_jobs=1)
    first, second = sorted((tmp_path / "scan.parquet.parts").glob("block-*"))[:2]
    (second.parent / ".ctmm-123-456.tmp").write_bytes(second.read_bytes()[:300])
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    second.unlink()
    count["done"].clear()
    count["stop"] = None
    with pytest.raises(ctmm.DataError, match=r"block-000000.*cannot be read.*remove it.*10 genes"):
        scan(data, out=path, n_jobs=1)
    first.unlink()
    count["done"].clear()
    same(scan(data, out=path, n_jobs=1), plain)
    assert count["done"] == [0, 1, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["scan.parquet"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(part):
        part.write_text("ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("when", ["block", "start"])
def test_a_full_disk_says_so_and_the_scan_goes_on(data, tmp_path, monkeypatch, when):
    path, written, replace = tmp_path / "scan.parquet", [], Path.replace

    def full(self, target):
        written.append(target)
        if len(written) > (3 if when == "block" else 0):
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ctmm.DataError, match=r"cannot be written .*No space left.*goes on"):
        scan(data, out=path, n_jobs=1)
    monkeypatch.setattr(Path, "replace", replace)
    same(scan(data, out=path), scan(data))
    assert [p.name for p in tmp_path.iterdir()] == ["scan.parquet"]
    with pytest.raises(ctmm.DataError, match="cannot be written"):
        scan(data).to_parquet(tmp_path)


@pytest.mark.slow
def test_a_kill_after_the_table_was_written_leaves_nothing_behind(data, tmp_path, monkeypatch):
    path = tmp_path / "scan.parquet"
    monkeypatch.setattr(scan_store.Store, "_clear", lambda self: None)
    scan(data, out=path)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.undo()
    monkeypatch.setattr(job, "BLOCK", 10)
    same(scan(data, out=path), scan(data))
    assert [p.name for p in tmp_path.iterdir()] == ["scan.parquet"]


@pytest.mark.slow
def test_two_processes_do_not_write_one_scan(data, tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "my scans" / "scan.parquet"
    path.parent.mkdir()
    parts = path.with_name("scan.parquet.parts")
    process = begin(path)
    wait(lambda: len(list(parts.glob("block-*"))) > 1, process)
    whole = {"data": ctmm.load_genes()}
    for overwrite in (False, True):
        with pytest.raises(ctmm.DataError, match="another process is at work"):
            scan(whole, out=path, overwrite=overwrite)
    process.send_signal(signal.SIGKILL)
    process.wait()
    same(scan(whole, out=path), scan(whole))


@pytest.mark.slow
def test_a_killed_scan_ends_with_the_same_table(tmp_path):
    path = tmp_path / "scan.parquet"
    parts = tmp_path / "scan.parquet.parts"
    rng = np.random.default_rng()
    for kill in range(KILLS):
        process = begin(path)
        wait(lambda least=4 * kill: len(list(parts.glob("block-*"))) > least, process)
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists() and len(list(parts.glob("block-*"))) > 4 * (KILLS - 1)
    resumed = scan({"data": ctmm.load_genes()}, out=path)
    same(resumed, scan({"data": ctmm.load_genes()}))
    same(ctmm.read_scan(path), resumed)


@pytest.mark.slow
def test_scans_are_not_mixed_up(data, tmp_path, count):
    path = tmp_path / "scan.parquet"
    count["stop"] = 2
    with pytest.raises(KeyboardInterrupt):
        scan(data, out=path, n_jobs=1)
    count["stop"] = None
    with pytest.raises(ctmm.DataError, match=r"other settings \(tests\).*overwrite=True"):
        scan(data, out=path, tests=["score"])
    with pytest.raises(ctmm.DataError, match=r"other settings \(genes\)"):
        scan(data, out=path, genes=list(data["expr"])[:39])
    table = data["data"]
    changed = table.assign(sex=np.where(table["donor"] == "donor01", "F", table["sex"]))
    assert not changed["sex"].equals(table["sex"])
    with pytest.raises(ctmm.DataError, match=r"other settings \(data\)"):
        scan(data | {"data": changed}, out=path)
    other = data | {"nu": data["nu"] * (1 + 1e-15)}
    for _ in range(2):  # while it is not finished, and after
        with pytest.raises(ctmm.DataError, match="other expression or noise values"):
            scan(other, out=path)
        scan(data, out=path)
    same(scan(other, out=path, overwrite=True), scan(other))
    scan(data).to_parquet(path)
    with pytest.raises(ctmm.DataError, match="written by to_parquet"):
        scan(data, out=path)
    path.write_text("no parquet")
    with pytest.raises(ctmm.DataError, match=r"cannot be read as parquet.*overwrite=True"):
        scan(data, out=path)


@pytest.mark.slow
def test_draws_go_on_with_the_seed_of_the_start(data, tmp_path, count):
    path, settings = tmp_path / "scan.parquet", {"tests": ["bootstrap"], "n_bootstrap": 3}
    settings["genes"] = list(data["expr"])[:20]
    count["stop"] = 1
    with pytest.raises(KeyboardInterrupt):
        scan(data, out=path, n_jobs=1, **settings)
    count["stop"] = None
    first = scan(data, out=path, **settings)
    same(first, scan(data, rng=first.call["entropy"], **settings))
    assert scan(data, **settings).call["entropy"] != first.call["entropy"]


def test_a_scan_is_pickled_with_its_genes():
    """Modules that a formula uses are found again by name."""
    genes = ctmm.load_genes()
    done = ctmm.fit_genes(
        "~ C(celltype) + np.exp(PC1 / 10)", data=genes, genes=["gene001"], tests=[], method="he"
    )
    back = pickle.loads(pickle.dumps(done))
    assert back.table.equals(done.table)
    assert back.gene("gene001").params.equals(done.gene("gene001").params)


def test_a_scan_read_from_a_file_gives_genes_with_its_data(data, tmp_path):
    path = tmp_path / "scan.parquet"
    made = scan(data, random="batch", structure="iid", method="ml", models=["hom"])
    made.to_parquet(path)
    read = ctmm.read_scan(path, **data)
    assert read.gene("gene003").params.equals(made.gene("gene003").params)
    with pytest.raises(ctmm.DataError, match=r"read_scan\(path, data=...\)"):
        ctmm.read_scan(path).gene("gene003")
    with pytest.raises(ctmm.DataError, match="the data have no gene 'gene040' of the scan"):
        ctmm.read_scan(path, **{**data, "expr": data["expr"].rename(columns={"gene040": "x"}),
                                "nu": data["nu"].rename(columns={"gene040": "x"})})  # fmt: skip
    with pytest.raises(ctmm.DataError, match="there is no gene 'gene3' in the scan; did you mean"):
        read.gene("gene3")
    other = ctmm.read_scan(path, **{**data, "expr": 2.0 * data["expr"]})
    with pytest.warns(ctmm.CTMMWarning, match="not those that were scanned"):
        other.gene("gene003")


def rewritten(path, change=lambda table, about: (table, about), seal=False):
    """Change a scan's file as someone with a parquet library can; `seal`: with a fresh checksum."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[scan_store.KEY])
    table, about = change(table, about)
    if seal:
        rest = {name: value for name, value in about.items() if name != "checksum"}
        about["checksum"] = scan_store._checksum(rest, table)
    pq.write_table(table.replace_schema_metadata({scan_store.KEY: json.dumps(about)}), path)


DAMAGE = {
    "rows": (lambda t, a: (t.slice(0, 3), a), "holds 3 of 40 genes"),
    "all rows": (lambda t, a: (t.slice(0, 0), a), "holds 0 of 40 genes"),
    "order": (lambda t, a: (t.take(list(range(39, -1, -1))), a), "genes are others"),
    "column": (lambda t, a: (t.drop_columns("mean"), a), "not those that were written"),
    "value": (
        lambda t, a: (t.set_column(5, "mean", pa.array(np.zeros(len(t)))), a),
        "not those that were written",
    ),
    "setting": (lambda t, a: (t, {**a, "call": {**a["call"], "noise_floor": 0.2}}), "not those"),
    "newer": (lambda t, a: (t, {**a, "format": 3}), "version 3 .* reads 2: update ctmm_formula"),
    "older": (lambda t, a: (t, {**a, "format": 1}), "with the ctmm_formula that wrote it"),
    "empty": (lambda t, a: (t, {}), "damaged or was edited"),
    "list": (lambda t, a: (t, []), "damaged or was edited"),
    "null": (lambda t, a: (t, {**a, "genes": None}), "damaged or was edited"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_error_that_names_it(data, tmp_path, damage):
    path = tmp_path / "scan.parquet"
    scan(data, out=path)
    before = ctmm.read_scan(path).table
    rewritten(path)
    pd.testing.assert_frame_equal(ctmm.read_scan(path).table, before, check_exact=True)
    change, words = DAMAGE[damage]
    rewritten(path, change)
    for read in (lambda: ctmm.read_scan(path), lambda: scan(data, out=path)):
        with pytest.raises(ctmm.DataError, match=rf"scan\.parquet.*{words}"):
            read()
    same(scan(data, out=path, overwrite=True), scan(data))


SEALED = {
    "basis": lambda a: a["layout"]["structures"][0].update(basis=[[1.0]]),
    "celltypes": lambda a: a["layout"].update(celltypes=[["day0"]]),
    "components": lambda a: a["layout"].update(components=[[]]),
    "ratios": lambda a: a["layout"].update(ratios=[[0, 99]]),
    "tests": lambda a: a["layout"].update(tests={"score": []}),
    "method": lambda a: a["call"].update(method=["reml"]),
    "entropy": lambda a: a["call"].update(entropy=-1),
    "formula": lambda a: a["call"].pop("formula"),
    "layout": lambda a: a.update(layout=None),
}


@pytest.mark.parametrize("edit", SEALED)
def test_what_a_file_says_of_itself_is_checked_whatever_its_checksum(data, tmp_path, edit):
    path = tmp_path / "scan.parquet"
    scan(data, out=path)

    def change(table, about):
        SEALED[edit](about)
        return table, about

    rewritten(path, change, seal=True)
    with pytest.raises(ctmm.DataError, match=r"scan\.parquet.*damaged or was edited"):
        ctmm.read_scan(path)


def test_blocks_and_notes_of_others_are_refused(data, tmp_path, count):
    path, parts = tmp_path / "scan.parquet", tmp_path / "scan.parquet.parts"
    count["stop"] = 2
    with pytest.raises(KeyboardInterrupt):
        scan(data, out=path, n_jobs=1)
    count["stop"] = None
    first, second = sorted(parts.glob("block-*"))
    whole = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ctmm.DataError, match=r"block-000001.* is a block of another scan"):
        scan(data, out=path, n_jobs=1)
    second.write_bytes(whole)
    with pytest.raises(ctmm.DataError, match="a block of genes of a scan that was not finished"):
        ctmm.read_scan(first)
    (parts / "thesis.txt").write_text("mine")
    with pytest.raises(ctmm.DataError, match=r"not of a scan, 'thesis\.txt': move them"):
        scan(data, out=path, n_jobs=1)
    (parts / "thesis.txt").unlink()
    note = json.loads((parts / "call.json").read_text())
    for bad in ({**note, "call": {**note["call"], "entropy": 3}}, [], {**note, "format": 9}):
        (parts / "call.json").write_text(json.dumps(bad))
        with pytest.raises(ctmm.DataError, match=r"call\.json.*(cannot be read|version 9)"):
            scan(data, out=path, n_jobs=1)
    (parts / "call.json").write_text(json.dumps(note))
    same(scan(data, out=path), scan(data))


def test_only_our_files_are_removed(data, tmp_path, monkeypatch):
    path, parts = tmp_path / "scan.parquet", tmp_path / "scan.parquet.parts"
    add = scan_store.Store.add
    settings = {"genes": list(data["expr"])[:5], "tests": [], "method": "he", "out": path}

    def and_mine(self, *block):
        (parts / "thesis.txt").write_text("mine")
        return add(self, *block)

    monkeypatch.setattr(scan_store.Store, "add", and_mine)
    with pytest.warns(ctmm.CTMMWarning, match=r"stays: .*'thesis\.txt'"):
        ctmm.fit_genes(FORMULA, **data, **settings)
    assert [p.name for p in parts.iterdir()] == ["thesis.txt"]
    monkeypatch.undo()
    ctmm.read_scan(path)
    monkeypatch.setattr(job, "BLOCK", 10)
    scan(data, **settings)
    assert (parts / "thesis.txt").read_text() == "mine"


def test_the_target_of_a_link_is_written(data, tmp_path):
    (tmp_path / "disk").mkdir()
    path, target = tmp_path / "scan.parquet", tmp_path / "disk" / "table.parquet"
    path.symlink_to(target)
    made = scan(data, out=path)
    for again in (lambda: scan(data, out=path, overwrite=True), lambda: made.to_parquet(path)):
        same(ctmm.read_scan(target), made)
        again()
        assert path.is_symlink()
        assert [p.name for p in target.parent.iterdir()] == ["table.parquet"]


def test_two_threads_do_not_write_one_scan(data, tmp_path, monkeypatch):
    path, inside, go_on = tmp_path / "scan.parquet", threading.Event(), threading.Event()
    run = job._numbered_block

    def slow(*block):
        inside.set()
        go_on.wait(60)
        return run(*block)

    monkeypatch.setattr(job, "_numbered_block", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(scan, data, out=path, n_jobs=1)
        assert inside.wait(60)
        with pytest.raises(ctmm.DataError, match="another thread of this process is at work"):
            scan(data, out=path, n_jobs=1)
        go_on.set()
        same(first.result(), scan(data))
    same(scan(data, out=path), scan(data))


@pytest.mark.slow
def test_a_killed_worker_says_how_to_go_on(data, tmp_path, monkeypatch):
    path = tmp_path / "scan.parquet"
    with monkeypatch.context() as patch, parallel_config("loky", n_jobs=2):
        patch.setattr(job, "_numbered_block", _suicide)
        with pytest.raises(ctmm.CTMMError, match=r"worker was killed.*same call goes on"):
            scan(data, out=path)
        with pytest.raises(ctmm.CTMMError, match=r"worker was killed.*give out="):
            scan(data)
    same(scan(data, out=path), scan(data))


def _suicide(*block):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "name", ["n" * 300, "a\0b", 3, "", b"scan", "\ud800", "~nobody-of-that-name/x"], ids=ascii
)
def test_names_that_no_file_can_have(data, name):
    made = scan(data, tests=[], method="he")
    fit = made.gene("gene001")
    doors = {
        "fit_genes(out=)": lambda: scan(data, out=name),
        "to_parquet": lambda: made.to_parquet(name),
        "read_scan": lambda: ctmm.read_scan(name),
        "to_json": lambda: fit.to_json(name),
    }
    for door in doors.values():
        with pytest.raises(ctmm.DataError, match="no name of a file"):
            door()


def test_files_that_hold_no_scan_say_so(data, tmp_path):
    with pytest.raises(ctmm.DataError, match="cannot be read"):
        ctmm.read_scan(tmp_path / "absent.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ctmm.DataError, match="not written by a scan"):
        ctmm.read_scan(tmp_path / "other.parquet")
    with pytest.raises(ctmm.DataError, match="not written by a scan"):
        scan(data, out=tmp_path / "other.parquet")
    with pytest.raises(ctmm.DataError, match="is a directory"):
        scan(data, out=tmp_path)
    with pytest.raises(ctmm.DataError, match="there is no directory"):
        scan(data, out=tmp_path / "absent" / "scan.parquet")
    parts = tmp_path / "lost.parquet.parts"
    parts.mkdir()
    (parts / "block-000000.parquet").write_bytes(b"")
    with pytest.raises(ctmm.DataError, match="nobody knows which scan"):
        scan(data, out=tmp_path / "lost.parquet")
    (parts / "call.json").write_text(json.dumps({})[:1])
    with pytest.raises(ctmm.DataError, match="cannot be read"):
        scan(data, out=tmp_path / "lost.parquet")


def test_without_pyarrow_the_pip_line_is_named(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ctmm.DataError, match=r"pip install 'ctmm-formula\[scan\]'"):
        scan(data, out=tmp_path / "scan.parquet")
    if int(pd.__version__.split(".")[0]) < 3:  # later ones need it themselves where it was there
        assert len(scan(data)) == 40


def test_proportions_from_a_table_are_given_again(tmp_path):
    obs, expr, nu = ctmm.load_genes()
    one = {
        gene: overall_table(obs.assign(expr=expr[gene], nu=nu[gene]), CELLTYPES)
        for gene in ("gene001", "gene002")
    }
    rows = one["gene001"]
    table = rows.set_index("donor")[[f"prop_{name}" for name in CELLTYPES]]
    table.columns = CELLTYPES
    data = {"data": rows[["donor", "sex"]]}
    data |= {key: pd.DataFrame({g: t[key] for g, t in one.items()}) for key in ("expr", "nu")}
    path = tmp_path / "scan.parquet"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ctmm.CTMMWarning)
        made = ctmm.fit_genes("~ sex", **data, proportions=table, tests=[], out=path)
    with pytest.raises(ctmm.DataError, match="give it, proportions="):
        ctmm.read_scan(path, **data)
    again = ctmm.read_scan(path, **data, proportions=table).gene("gene002")
    assert again.llf == made.table["llf"][1]
