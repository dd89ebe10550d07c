"""The design that a caller built, with the checks of the formula interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..design import arrays
from ..design.formula import FormulaSpec
from ..design.genotypes import Genotypes
from ..design.labelled import Design, assemble, related
from ..design.prepare import Prepared, Roles
from ..design.random_terms import RandomTerm
from ..inference.differences import Differences
from ..scan.windows import with_own
from ..structures import tree
from .codec import decode, to_factor


def structure_of(value: Any) -> Any:
    """A structure by name, its matrices by label, or clades: ["tree", {name: types or clades}]."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return tree(value[1])
    return {str(label): decode(matrix) for label, matrix in value.items()}


def kinships_of(sent: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Kinships by name: each {name, file}, or {name, rows, columns, values}."""
    return {
        str(one["name"]): _table_of(one) if one.get("file") is None else str(one["file"])
        for one in sent
    }


def _table_of(sent: Mapping[str, Any]) -> pd.DataFrame:
    """A table of numbers: {rows, columns, values}."""
    rows, columns = ([str(label) for label in sent[key]] for key in ("rows", "columns"))
    values = decode(sent["values"]).reshape(len(rows), len(columns), order="F")
    return pd.DataFrame(values, rows, columns)


def genotypes_of(sent: Mapping[str, Any]) -> Genotypes:
    """Genotypes: {file}, or {rows, columns, values} with chromosome and position of the columns."""
    if sent.get("file") is not None:
        return Genotypes(str(sent["file"]))
    places = {
        "chromosome": list(map(str, sent["chromosome"])),
        "position": decode(sent["position"]),
    }
    table = _table_of(sent)
    return Genotypes(table, pd.DataFrame(places, table.columns))


def positions_of(sent: Mapping[str, Any]) -> pd.DataFrame:
    """Where genes are: {genes, chromosome}, and start and end, or tss."""
    places: dict[str, Any] = {"chromosome": list(map(str, sent["chromosome"]))}
    places |= {name: decode(sent[name]) for name in ("start", "end", "tss") if name in sent}
    return pd.DataFrame(places, [str(gene) for gene in sent["genes"]])


def to_design(model: Mapping[str, Any], at: np.ndarray | None = None) -> Design:
    """The labelled arrays of a request; of many genes, without response, rows `at` of them."""
    ready = _prepared(model, at)
    X = _rows(decode(model["X"]), at)
    y = decode(model["y"]) if at is None else np.full(len(at), np.nan)
    names = tuple(str(name) for name in model["names"])
    terms = tuple(_term(term) for term in model["random"])
    text = str(model["formula"])
    spec = FormulaSpec(text, str(model["response"]), str(model["fixed"]), terms)
    arrays.check_levels(ready)
    if at is None:
        arrays.check_response(y, spec.response, ready.keep)
    seen = arrays.observed(ready)
    mean_rows = _averaged(decode(model["mean_rows"]), at)
    one_mean = seen.P is None and len(mean_rows) > 1 and bool((mean_rows == mean_rows[0]).all())
    design = assemble(
        spec,
        ready,
        seen,
        y,
        X,
        names,
        "caller",
        None,  # the caller codes new rows itself
        one_mean=one_mean,
        means=mean_rows,
    )
    sent = model.get("effects") or []
    known = {str(one["name"]): differences_of(one, design.celltypes, at) for one in sent}
    cells: dict[str, np.ndarray] = {}
    for one in model.get("cells") or ():
        cells |= dict(zip(map(str, one["names"]), _averaged(decode(one["rows"]), at), strict=True))
    design = replace(design, known_effects=known, known_cells=cells)
    kinship = kinships_of(model.get("kinship") or ())
    if model.get("genotypes"):
        kinship = with_own(kinship)
    if kinship:
        design = related(design, kinship, structure_of(model["genetic_structure"]))
    return design if at is None else replace(design, rows=np.arange(len(at)))


def differences_of(
    sent: Mapping[str, Any], celltypes: Sequence[str], at: np.ndarray | None = None
) -> Differences:
    """Rows of effects: {name, reference, steps, rows, missing, at}.

    ``rows`` are those of the effects (S, C, p), or of every row of the design, (S, C, rows, p).
    """
    rows = _averaged(decode(sent["rows"]), at, 3)
    missing = {str(name): str(why) for name, why in dict(sent["missing"]).items()}
    steps = tuple(str(step) for step in sent["steps"])
    name, reference, said = (str(sent[key]) for key in ("name", "reference", "at"))
    return Differences(name, reference, steps, tuple(celltypes), rows, missing, said)


def _averaged(values: np.ndarray, at: np.ndarray | None, dims: int = 2) -> np.ndarray:
    """Rows (..., p) of `dims` dimensions, or of every row of the design, (..., rows, p)."""
    if values.ndim == dims:
        return values
    return np.asarray(values[..., slice(None) if at is None else at, :].mean(axis=-2))


def _rows(values: Any, at: np.ndarray | None) -> Any:
    return values if at is None else values[at]


def _prepared(model: Mapping[str, Any], at: np.ndarray | None) -> Prepared:
    """The caller's columns as the checks see them; rows are counted as the caller does."""
    keep = _rows(decode(model["rows"]), at)
    labels = {str(value["name"]): to_factor(value) for value in model["factors"]}
    if at is not None:
        labels = {name: f[at].remove_unused_categories() for name, f in labels.items()}
    columns: dict[str, Any] = dict(labels)
    for role in ("noise", "nu2", "n_cells", "share", "trend"):
        if model.get(role) is not None:
            columns[str(model[role]["name"])] = _rows(decode(model[role]["values"]), at)
    proportions: tuple[str, ...] = ()
    if model.get("proportions") is not None:
        proportions = tuple(str(name) for name in model["proportions"]["names"])
        shares = _rows(decode(model["proportions"]["values"]), at)
        columns |= dict(zip(proportions, shares.T, strict=True))
    frame = pd.DataFrame(columns, index=pd.RangeIndex(len(keep)))
    celltype = model.get("celltype")
    roles = Roles(
        response=(),
        fixed=tuple(str(name) for name in model["fixed_factors"]),
        groups=tuple(
            dict.fromkeys(str(name) for term in model["random"] for name in term["groups"])
        ),
        donor=str(model["donor"]),
        celltype=None if celltype is None else str(celltype),
        noise=_name(model, "noise"),
        nu2=_name(model, "nu2"),
        n_cells=_name(model, "n_cells"),
        share=_name(model, "share"),
        proportions=proportions,
        by=_text(model, "by"),
        within=_text(model, "within"),
    )
    dropped = {str(reason): int(count) for reason, count in dict(model["dropped"]).items()}
    notes = tuple(str(note) for note in model["notes"])
    return Prepared(roles, frame, labels, keep, pd.Index(keep), dropped, notes, {})


def _text(model: Mapping[str, Any], role: str) -> str | None:
    return None if model.get(role) is None else str(model[role])


def _name(model: Mapping[str, Any], role: str) -> str | None:
    value = model.get(role)
    return None if value is None else str(value["name"])


def _term(term: Mapping[str, Any]) -> RandomTerm:
    groups = tuple(str(name) for name in term["groups"])
    left = str(term["left"])
    return RandomTerm(groups, left != "1", ":".join(groups), left)
