"""Predicted random effects as labelled tables, and predictions for new rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from ..arguments import choose
from ..design.labelled import Design
from ..design.random_terms import RandomTerm
from ..design.table import label, pick
from ..errors import CTMMError
from .record import Record

DONOR_EFFECTS = ("shared", "specific")
"""Names of the donors' own effects among the random effects."""


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


# ---------------------------------------------------------------------------------------------
# of a fit


def random_effects(res: Record) -> dict[str, pd.DataFrame]:
    """Predicted random effects (BLUPs) with prediction standard errors.

    Returns
    -------
    dict of DataFrame
        Columns estimate and std_error (NaN where a variance component is negative).
        ``"shared"`` by donor, ``"specific"`` by donor and cell type (each where the structure
        has it), and one frame by level for each random effect.

    Raises
    ------
    ConvergenceError
        The fitted covariance is not positive definite (possible for HE).
    """
    design, effects = res.design, res.blup
    N, C = len(design.donors), len(design.celltypes)
    columns = ["estimate", "std_error"]
    donors = pd.Index(design.donors, name=design.donor_col)
    out: dict[str, pd.DataFrame] = {}
    if res.structure_.shared is not None:
        shared = np.empty((N, 2))
        shared[res.model.donors] = np.column_stack([effects.shared, effects.shared_se])
        out["shared"] = pd.DataFrame(shared, donors, columns)
    if len(res.structure_.specific):
        specific = np.empty((N, C, 2))
        specific[res.model.donors] = np.stack([effects.specific, effects.specific_se], axis=-1)
        pairs = pd.MultiIndex.from_product(
            [donors, design.celltypes],
            names=[design.donor_col, design.celltype_col or "celltype"],
        )
        out["specific"] = pd.DataFrame(specific.reshape(-1, 2), pairs, columns)
    for name, levels, (value, se) in zip(
        res.labels.random, design.random_levels, effects.random, strict=True
    ):
        index = pd.Index(levels, name="level")
        out[name] = pd.DataFrame({"estimate": value, "std_error": se}, index=index)
    return out


def _by_row(res: Record, values: np.ndarray, name: str) -> pd.Series:
    """Kernel rows as a Series on the user's index."""
    return pd.Series(res.model.unsort(values), index=res.design.index, name=name)


def fittedvalues(res: Record) -> pd.Series:
    """Fixed effects and all predicted random effects, on the index of the data."""
    return _by_row(res, res.blup.fitted, "fittedvalues")


def marginal(res: Record) -> pd.Series:
    """Fixed effects X b, on the index of the data."""
    return pd.Series(res.design.X @ res.estimate.beta, res.design.index, name="marginal")


def resid(res: Record) -> pd.Series:
    """Response less ``fittedvalues``."""
    return (res.design.y - fittedvalues(res)).rename("resid")


def predict(
    res: Record, newdata: object = None, random: str | Sequence[str] | None = "none"
) -> pd.Series:
    """Predict expression.

    Parameters
    ----------
    newdata : DataFrame or dict of columns, optional
        The covariates and, for random effects, the columns of donor, cell type and groups;
        by default the rows of the fit.
    random : "none", "all", or list of names of ``random_effects``
        Which predicted random effects to add: "shared" and "specific" are the donors' own,
        the others carry the names in ``vcomp``.  None is "none".  Donors and levels that the
        fit has not seen (or that are missing) get 0, the mean of their distribution.

    Returns
    -------
    Series
        On the index of `newdata`; NaN where a covariate is missing.

    Raises
    ------
    FormulaError
        A level of a fixed effect that the fit has not seen.
    DataError
        A column that is needed is not there.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ 0 + C(celltype)", data=ctmm.load_example(), structure="hom")
    >>> new = {"celltype": ["day0", "day3"], "donor": ["unknown", "unknown"]}
    >>> bool((res.predict(new, "all") == res.fe_params.iloc[[0, 3]].to_numpy()).all())
    True
    """
    if newdata is None:
        frame, X = res.design.frame.set_axis(res.design.index), res.design.X
    else:
        X, frame = res.design.matrix(newdata)
    out = X @ res.estimate.beta
    random = checked(random)
    tables = {} if random == "none" else random_effects(res)
    for name in wanted(random, list(tables)):
        out = out + contribution(res.design, frame, name, tables[name], res.labels.random)
    return pd.Series(out, index=frame.index, name=res.design.response_name)


def augment(res: Record) -> pd.DataFrame:
    """The columns in use with marginal, fitted and resid, on the index of the data."""
    out = res.design.frame.set_axis(res.design.index)
    return out.assign(
        **{".marginal": marginal(res), ".fitted": fittedvalues(res), ".resid": resid(res)}
    )
