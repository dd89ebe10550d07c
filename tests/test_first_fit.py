"""The first fit after installation: two processes compile, and later ones get the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
FIT = """
import ctmm_formula as ctmm
from ctmm_formula.engine.search import race
res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=ctmm.load_example())
stats = race.stats
print(res.llf.hex(), *(v.hex() for v in res.params), sum(stats.cache_hits.values()),
      sum(stats.cache_misses.values()))
"""


def test_the_optimiser_is_compiled_by_another_process_meanwhile(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    first, later = (
        subprocess.run(
            [sys.executable, "-c", FIT], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    )
    assert first[-2:] == ["1", "0"]  # found in the cache, not compiled here
    assert first == later
