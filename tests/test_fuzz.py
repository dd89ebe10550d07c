"""The fuzzers of tests/fuzz, in short; by hand they run for long (their first lines say how)."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_damaged_file_is_believed_and_no_error_is_not_ours(seed):
    where = Path(__file__).parent / "fuzz" / "files.py"
    spec = importlib.util.spec_from_file_location("fuzz_files", where)
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    found = fuzz.run(seed, rounds=30)
    assert fuzz.faults(found) == {}
    kinds = {name.split(":")[0] for name in found if found[name]}
    assert kinds == {
        *("json edit", "json sealed", "json bits"),
        *("scan bits", "scan edit", "scan sealed", "scan rows"),
    }  # fmt: skip
    assert all(found[f"{kind}: refused"] for kind in kinds)
