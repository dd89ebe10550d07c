"""Predicted random effects as labelled tables, and predictions for new rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..arguments import choose
from ..design.design import Design
from ..design.random_terms import RandomTerm
from ..design.table import label, pick
from ..engine.blup import Effects
from ..engine.model import Model
from ..errors import CTMMError
from ..structures import Structure

DONOR_EFFECTS = ("shared", "specific")
"""Names of the donors' own effects among the random effects."""


def effect_tables(
    design: Design, model: Model, structure: Structure, effects: Effects, names: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Tables of predicted effects, columns estimate and std_error.

    ``shared`` by donor and ``specific`` by donor and cell type, each where the structure has it,
    then one by level for each random effect, under `names`.
    """
    N, C = len(design.donors), len(design.celltypes)
    columns = ["estimate", "std_error"]
    donors = pd.Index(design.donors, name=design.donor_col)
    out: dict[str, pd.DataFrame] = {}
    if structure.shared is not None:
        shared = np.empty((N, 2))
        shared[model.donors] = np.column_stack([effects.shared, effects.shared_se])
        out["shared"] = pd.DataFrame(shared, donors, columns)
    if len(structure.specific):
        specific = np.empty((N, C, 2))
        specific[model.donors] = np.stack([effects.specific, effects.specific_se], axis=-1)
        pairs = pd.MultiIndex.from_product(
            [donors, design.celltypes],
            names=[design.donor_col, design.celltype_col or "celltype"],
        )
        out["specific"] = pd.DataFrame(specific.reshape(-1, 2), pairs, columns)
    for name, levels, (value, se) in zip(names, design.random_levels, effects.random, strict=True):
        index = pd.Index(levels, name="level")
        out[name] = pd.DataFrame({"estimate": value, "std_error": se}, index=index)
    return out


def checked(random: object) -> str | list[str]:
    """What predict's ``random=`` says: "none", "all", a name, or a list of names."""
    if random is None:
        return "none"
    if isinstance(random, str):
        return random
    if not isinstance(random, Iterable) or isinstance(random, (bytes, Mapping)):
        raise CTMMError(
            f"random= must be 'none', 'all' or names of random_effects, got {type(random).__name__}"
        )
    return list(random) or "none"


def wanted(random: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """The random effects that "none", "all", a name or a list of names ask for."""
    if random == "none":
        return []
    if random == "all":
        return list(names)
    asked = [random] if isinstance(random, str) else list(random)
    for name in asked:
        if name in ("none", "all"):
            raise CTMMError(f"random={name!r} stands alone, not in a list")
        choose("random effect", name, ["none", "all", *names])
    return list(dict.fromkeys(asked))


def contribution(
    design: Design, frame: pd.DataFrame, name: str, table: pd.DataFrame, names: Sequence[str]
) -> np.ndarray:
    """What effect `name` adds to the rows of `frame`; 0 for donors and levels not seen.

    Parameters
    ----------
    design : Design
    frame : DataFrame, m rows
        Columns of the design, cleaned.
    name : str; table : DataFrame
        The effect and its table from :func:`effect_tables`.
    names : sequence of str
        Of all random components, in order.
    """
    effect = table["estimate"].to_numpy()
    if name in DONOR_EFFECTS:
        donor = _labels(_need(frame, design.donor_col, "donor"))
        values = effect.reshape(len(design.donors), -1)  # (N, 1) or (N, C)
        return (_look_up(values, design.donors, donor) * design.observation(frame)).sum(axis=1)
    term, celltype = _components(design)[list(names).index(name)]
    parts = [_labels(_need(frame, group, "random effect")) for group in term.groups]
    level = [":".join(map(str, row)) for row in zip(*parts, strict=True)]
    values = _look_up(effect[:, None], list(table.index), level)[:, 0]
    return values if celltype is None else values * design.observation(frame)[:, celltype]


def _components(design: Design) -> list[tuple[RandomTerm, int | None]]:
    """Term and cell type (None: all) of every random component."""
    return [
        (term, celltype)
        for term in design.spec.random
        for celltype in (range(len(design.celltypes)) if term.celltype_specific else [None])
    ]


def _look_up(values: np.ndarray, known: Sequence[str], labels: Iterable) -> np.ndarray:
    """Rows of `values` (one per known label) for labels; zeros for the others."""
    index: Mapping[str, int] = {name: k for k, name in enumerate(known)}
    where = np.array([index.get(name, -1) for name in labels], dtype=np.int64)
    return np.where((where >= 0)[:, None], values[where], 0.0)


def _need(frame: pd.DataFrame, name: str, role: str) -> pd.Series:
    """A column of new data that a random effect needs."""
    return pick(frame, name, role, "; random='none' predicts without random effects")


def _labels(column: pd.Series) -> np.ndarray:
    """Labels as the fit writes them; missing ones match nothing."""
    missing = column.isna().to_numpy(dtype=bool)
    texts = [None if gone else label(v) for v, gone in zip(column, missing, strict=True)]
    return np.array(texts, dtype=object)
