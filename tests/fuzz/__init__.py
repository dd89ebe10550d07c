"""Fuzzers of the doors of the package; ``python tests/fuzz --help``."""

from __future__ import annotations

from . import arguments, differential, files, formulas, kills, pseudobulks, relatives, tables
from .harness import Fuzzer

FUZZERS: dict[str, Fuzzer] = {
    "fits": tables.fits,
    "scans": tables.scans,
    "arguments": arguments.arguments,
    "formulas": formulas.formulas,
    "cells": pseudobulks.aggregation,
    "pseudobulk": pseudobulks.steps,
    "jsons": files.jsons,
    "pickles": files.pickles,
    "scan_files": files.scan_files,
    "window_files": files.window_files,
    "poison": files.poison,
    "kinships": relatives.kinships,
    "genotypes": relatives.genotypes,
    "differential": differential.differential,
    "kills": kills.kills,
}
"""Registry: name -> fuzzer."""
