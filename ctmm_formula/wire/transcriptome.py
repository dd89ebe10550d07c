"""All genes of a caller in one call: the scan of :func:`ctmm_formula.fit_genes` on its design."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from ..api import check_settings, domain_of, method_of
from ..arguments import MOST_DRAWS, threads, whole_number
from ..design.labelled import means_warning
from ..errors import CTMMError, CTMMWarning
from ..inference.fit import KENWARD_ROGER
from ..scan.columns import OF_WINDOW, in_order
from ..scan.job import Job
from ..scan.patterns import Patterns
from ..scan.plan import (
    all_structures,
    asked_tests,
    check_tests,
    make_plan,
    of_each_kinship,
    read_tests,
)
from ..scan.responses import Responses
from ..scan.results import crowded_notes, windows_note
from ..scan.windows import windows_of
from .codec import Plain, decode, encode
from .received import genotypes_of, positions_of, structure_of, to_design


def scan_genes(request: Mapping[str, Any]) -> Plain:
    """Fit and test many genes: the request of a fit with ``expr`` and ``nu`` (genes x rows).

    May have ``nu2`` as well.  More keys: genes, models, tests, one_step, n_bootstrap, seed, n_jobs,
    shares (may lack); with ``genotypes`` in the model window, maf and positions, as every gene has
    a kinship of the variants around it.
    Every row must have a value in some gene.  P values are not adjusted.
    """
    floor, bounds = float(request["noise_floor"]), request.get("bounds")
    given = [structure_of(one) for one in (request["structure"], *request["models"])]
    method = check_settings(request.get("method"), given[0], bounds, floor)
    asked = asked_tests([str(name) for name in request["tests"]])
    responses = _responses(request)
    model, windows = request["model"], None
    if model.get("genotypes"):
        windows = windows_of(
            genotypes_of(model["genotypes"]), request["window"], request["maf"],
            positions_of(request["positions"]), responses.genes,
        )  # fmt: skip
    make, every = partial(to_design, model), np.arange(len(responses.obs))
    design = make(every)
    windows = None if windows is None else windows.of_donors(design.donors)
    structures = all_structures(given, design)
    method, why = method_of(design, method, bounds)
    tests = read_tests(of_each_kinship(asked, design.kinship), design, structures[0], method)
    check_tests(tests, len(structures), method, why, design.crossing, design.kinship)
    plan = make_plan(
        design, structures, method, domain_of(design, bounds, floor), tests,
        one_step=bool(request["one_step"]),
        draws=whole_number("n_bootstrap", int(request["n_bootstrap"]), 1, MOST_DRAWS),
        entropy=int(request["seed"]), shares=bool(request.get("shares", False)),
        windows=windows is not None,
    )  # fmt: skip
    patterns = Patterns(plan, make, every, design)
    ordered = responses if windows is None else responses.chosen(windows.order)
    job = Job(patterns, ordered, None, threads(int(request["n_jobs"])), windows)
    block = in_order(job.run(False), responses.genes)
    kinds = plan.layout.kinds()
    means = means_warning(design.one_mean, structures)
    around = []
    if windows is not None:
        table = pd.DataFrame({name: block[name] for name in OF_WINDOW})
        around = [windows_note(table, request["window"], request["maf"])]
    if plan.fixed_by == KENWARD_ROGER:
        around += crowded_notes(block)
    if means:
        warnings.warn(means, CTMMWarning, stacklevel=2)
    return {
        "columns": {
            name: list(map(str, block[name])) if kind == "text" else encode(block[name])
            for name, kind in kinds.items()
        },
        "kinds": kinds,
        "tested": plan.layout.tested,
        "terms": [[t, *one] for t in tests for one in plan.layout.terms(t).items()],
        "components": list(plan.layout.components[0]),
        "celltypes": list(design.celltypes),
        "method": method,
        "bounds": plan.domain.bounds,
        "notes": [*([why] if why else []), *design.notes, *([means] if means else []), *around],
    }


def _responses(request: Mapping[str, Any]) -> Responses:
    """Expression and noise of the genes; their rows have no other columns here."""
    given = {name: request.get(name) for name in ("expr", "nu", "nu2")}
    parts = {name: decode(value).T for name, value in given.items() if value is not None}
    names = tuple(str(name) for name in request["genes"])
    rows = len(parts["expr"])
    for name, part in parts.items():
        if part.shape != (rows, len(names)):
            raise CTMMError(f"{len(names)} genes in {rows} rows, but {name} is {part.shape}")
    obs = pd.DataFrame(index=pd.RangeIndex(rows))
    places = np.arange(len(names))
    return Responses(obs, names, places, parts["expr"], parts["nu"], parts.get("nu2"))
