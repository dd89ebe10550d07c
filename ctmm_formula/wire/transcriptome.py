"""All genes of a caller in one call, by the blocks of :func:`ctmm_formula.fit_genes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ..api import DEFAULT_BOUNDS, check_settings
from ..arguments import threads, whole_number
from ..design.design import Design
from ..design.formula import FormulaSpec
from ..design.size import check_size
from ..engine.domain import Domain
from ..errors import CTMMError
from ..scan.columns import join
from ..scan.genes import all_structures, asked_tests, table_layout
from ..scan.job import BLOCK
from ..scan.patterns import Patterns
from ..scan.worker import Plan, scan_block
from ..structures import Structure
from .codec import Plain, decode, encode
from .received import structure_of, to_design


@dataclass(eq=False)
class ReceivedPatterns(Patterns):
    """Designs by pattern of rows, cut from the one that the caller sent."""

    model: Mapping[str, Any] = field(default_factory=dict)

    def design(self, rows: np.ndarray) -> Design:
        """The design of these rows."""
        return to_design(self.model, rows)

    def start(self, design: Design, structures: tuple[Structure, ...]) -> ReceivedPatterns:
        """With the design of all rows, which says how all others must look."""
        for structure in structures:
            check_size(design, structure)
        return replace(
            self,
            structures=structures,
            names=design.names,
            celltypes=design.celltypes,
            random_names=design.random_names,
        )


def scan_genes(request: Mapping[str, Any]) -> Plain:
    """Fit and test many genes: the request of a fit with ``expr`` and ``nu`` (genes x rows).

    More keys: genes, models, tests, one_step, n_bootstrap, seed, n_jobs.  Every row must have a
    value in some gene.  P values are not adjusted.
    """
    model, floor = request["model"], float(request["noise_floor"])
    structures = [structure_of(given) for given in (request["structure"], *request["models"])]
    bounds = request.get("bounds")
    method = check_settings(request["method"], structures[0], None, "nu", bounds, floor, "patsy")
    tests = asked_tests([str(name) for name in request["tests"]], method)
    Y, NU = decode(request["expr"]).T, decode(request["nu"]).T
    names = [str(name) for name in request["genes"]]
    if Y.shape != NU.shape or Y.shape[1] != len(names):
        raise CTMMError(f"{len(names)} genes, but expr is {Y.shape} and nu {NU.shape}")
    every = np.arange(len(Y))
    spec = FormulaSpec(str(model["formula"]), "", str(model["fixed"]), ())
    table = pd.DataFrame(index=pd.RangeIndex(len(Y)))
    patterns = ReceivedPatterns(spec, table, {}, every, model=model)
    design = patterns.design(every)
    patterns = patterns.start(design, all_structures(structures, design.celltypes))
    plan = Plan(
        table_layout(design, patterns.structures, method, tests, bool(request["one_step"])),
        method,
        Domain(bounds or DEFAULT_BOUNDS[design.kind], floor),
        bool(request["one_step"]),
        whole_number("n_bootstrap", int(request["n_bootstrap"]), 1),
        int(request["seed"]),
    )
    blocks = Parallel(n_jobs=threads(int(request["n_jobs"])), require="sharedmem")(
        delayed(scan_block)(plan, patterns, names[a : a + BLOCK], Y[:, a : a + BLOCK],
                            NU[:, a : a + BLOCK])
        for a in range(0, len(names), BLOCK)
    )  # fmt: skip
    kinds = plan.layout.kinds()
    block = join(blocks, kinds)
    columns: Plain = {}
    for name, kind in kinds.items():
        columns[name] = list(map(str, block[name])) if kind == "text" else encode(block[name])
    return {
        "columns": columns,
        "kinds": dict(kinds),
        "tested": plan.layout.tested,
        "components": list(plan.layout.components[0]),
        "celltypes": list(design.celltypes),
        "bounds": plan.domain.bounds,
        "notes": list(design.notes),
    }
