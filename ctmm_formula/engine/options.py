"""How loops are compiled: one place, as inlined loops take the options of those they end up in."""

from __future__ import annotations

from typing import Any

EXACT: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
"""Sums in the order in which they are written."""

FAST: dict[str, Any] = {**EXACT, "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
"""Sums may be reordered, which lets them vectorise; NaN and inf stay exact."""

_NO_WRAPPER = {"cache": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

EXACT_INNER = {**EXACT, **_NO_WRAPPER}
FAST_INNER = {**FAST, **_NO_WRAPPER}
"""Called from compiled code only: no wrapper for Python, which is much of the compile time."""

FAST_PART = {**FAST_INNER, "forceinline": True}
"""A callee of its own may be compiled to other roundings than the caller's copy of it, and which of
the two runs depends on whether the code came from the cache: inlined there is one only."""
