"""From a table and a parsed formula to labelled arrays.

One missing mask over response, covariates, random groups, donor, cell type and noise; text to
categories; unused levels dropped; then the design of the fixed part, the observation matrix H
(one-hot cell types, or proportions for overall pseudobulk) and the random components.  Below
this file nothing knows column names or data kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from ..engine.model import Model, RandomComponent, build_model, n_blocks
from ..engine.relatedness import KernelTerm
from ..errors import DataError, FormulaError
from ..inference.differences import Differences
from ..structures import Crossing, Structure, cross, resolve
from . import arrays
from .crossings import crossed_rows, loads_of
from .expressions import quote
from .formula import FormulaSpec
from .kinship import Kinship, match_kinship
from .matrix import Coding
from .prepare import Prepared, prepare
from .table import (
    as_frame,
    column_name,
    covariate,
    label,
    labels,
    listing,
    numbers,
    pick,
    rows,
)


@dataclass(frozen=True, eq=False)
class Design:
    """Labelled arrays of one response, in the caller's row order; picklable.

    n kept rows, N donors, C cell types, p fixed effects.

    Attributes
    ----------
    spec : FormulaSpec
    kind : {"ctp", "op"}
        Cell type-specific or overall pseudobulk.
    engine : {"patsy", "formulaic"}
    frame : DataFrame, n rows
        The columns in use, cleaned, RangeIndex.
    rows : int ndarray, shape (n,)
        Kept rows as positions in the user's table.
    index : Index, length n
        The user's index labels of the kept rows.
    donor_col, response_name : str
    celltype_col : str, or None for overall pseudobulk
    donors : tuple of str, length N;  celltypes : tuple of str, length C
    donor_codes : int ndarray, shape (n,)
    y, nu : ndarray, shape (n,)
        NaN where the formula has no response, or no noise column was named.
    nu2 : ndarray, shape (n,), or None
        Unbiased estimates of the squares of the noise variances, NaN where missing; may be below
        zero.
    X : ndarray, shape (n, p);  H : ndarray, shape (n, C)
    n_cells : ndarray, shape (n,), or None
        Where missing, the mean of the cell type; None where there are none at all.
    names : tuple of str, length p
    random_names : tuple of str
        One per random component: ``batch``, or ``batch[T]`` for an effect on cell type T.
    random_levels : tuple of tuple of str
        Level labels of each component, in the order of its codes.
    random : tuple of RandomComponent
    proportions : ndarray, shape (N, C), or None
        Shares of the cell types in each donor.
    proportion_cols : tuple of str
        Their columns in `frame`, for overall pseudobulk.
    dropped : dict
        Reason -> number of rows dropped, each row under its first reason.
    notes : tuple of str
    alone : dict
        Cell types (in a group or condition) seen in one donor -> that donor.
    one_mean : str
        The cell type column where the fixed part leaves cell types without means of their own,
        else empty.
    doubts : tuple of str
        What of the notes to warn of.
    coding : Coding, or None
        How the fixed part becomes numbers; None where the caller coded it.
    known_means : ndarray, shape (C, p), or None
        ``mean_rows``, where they do not follow from `coding`, or need not.
    crossing : Crossing, or None
        Groups of donors or conditions with which the donors' effects are crossed.
    loads : ndarray, shape (n, G), or None
        What rows have of each copy of the effects.
    known_effects : dict
        Variable -> rows of its effects, where the caller coded the fixed part.
    known_cells : dict
        ``T|case`` -> row (p,) of the mean of a cell type there, likewise.
    kinship : tuple of Kinship
        How the donors are related, in their order.
    """

    spec: FormulaSpec
    kind: str
    engine: str
    frame: pd.DataFrame
    rows: np.ndarray
    index: pd.Index
    donor_col: str
    celltype_col: str | None
    response_name: str
    donors: tuple[str, ...]
    celltypes: tuple[str, ...]
    donor_codes: np.ndarray
    y: np.ndarray
    nu: np.ndarray
    nu2: np.ndarray | None
    X: np.ndarray
    H: np.ndarray
    n_cells: np.ndarray | None
    names: tuple[str, ...]
    random_names: tuple[str, ...]
    random_levels: tuple[tuple[str, ...], ...]
    random: tuple[RandomComponent, ...]
    proportions: np.ndarray | None
    proportion_cols: tuple[str, ...]
    dropped: dict[str, int]
    notes: tuple[str, ...]
    alone: dict[str, str]
    one_mean: str
    coding: Coding | None = field(repr=False)
    known_means: np.ndarray | None = field(default=None, repr=False)
    doubts: tuple[str, ...] = ()
    known_effects: dict[str, Differences] = field(default_factory=dict, repr=False)
    known_cells: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    crossing: Crossing | None = None
    loads: np.ndarray | None = None
    kinship: tuple[Kinship, ...] = ()

    def __repr__(self) -> str:
        return (
            f"<Design: {self.spec.text}, {self.extent}, {len(self.celltypes)} cell types, "
            f"{len(self.names)} fixed effects>"
        )

    @property
    def extent(self) -> str:
        """How much of it there is, in words."""
        return f"{len(self.rows)} rows, {len(self.donors)} donors"

    @cached_property
    def E(self) -> np.ndarray:
        """What rows have of each of a donor's effects, (n, E): `H`, or its rows crossed."""
        whole = crossed_rows(self.loads, self.H)
        return whole if self.crossing is None else whole[:, whole.any(axis=0)]

    @cached_property
    def effects(self) -> tuple[str, ...]:
        """Names of a donor's effects that some row has: cell types, or ``T|case``; length E."""
        if self.crossing is None:
            return self.celltypes
        seen = np.flatnonzero(crossed_rows(self.loads, self.H).any(axis=0))
        names = self.crossing.effects(self.celltypes)
        return tuple(names[k] for k in seen)

    def structure(self, given: object) -> Structure:
        """The structure of a donor's effects, from one of the cell types as users name it."""
        if isinstance(given, Structure) and given.celltypes == self.effects:
            return given
        inner = resolve(given, self.celltypes)
        return inner if self.crossing is None else cross(inner, self.crossing, self.effects)

    @cached_property
    def mean_rows(self) -> np.ndarray:
        """``mean_rows @ b`` are the cell type means at the mean of the covariates; (C, p)."""
        if self.known_means is not None:
            return self.known_means
        return arrays.mean_rows(self.coded(), self.X, self.celltype_col, self.celltypes)

    def coded(self) -> Coding:
        """How the fixed part becomes numbers.

        Raises
        ------
        DataError
            The caller coded it.
        """
        if self.coding is None:
            raise DataError(
                "the caller coded the fixed part of this fit, so Python cannot code new rows: "
                "predict where it was fitted"
            )
        return self.coding

    @cached_property
    def terms(self) -> dict[str, list[int]]:
        """Terms of the fixed part -> their columns of X; proportions are the term `celltype`.

        Raises
        ------
        DataError
            The caller coded the fixed part.
        """
        coding = self.coded()
        if not self.proportion_cols:
            return coding.terms
        C = len(self.celltypes)
        covariates = arrays.covariate_columns(coding)
        out = {"celltype": list(range(C))}
        for name, columns in coding.terms.items():
            own = [C + covariates.index(k) for k in columns if k in covariates]
            if own:
                out[name] = own
        return out

    @property
    def context(self) -> dict[str, object]:
        """Functions and values of the caller that the formula uses."""
        return {} if self.coding is None else self.coding.context

    @property
    def n_possible(self) -> int:
        """Rows there would be with no pair of donor and cell type (and condition) missing."""
        within = self.crossing is not None and self.crossing.kind == "within"
        samples = len(self.crossing.levels) if self.crossing is not None and within else 1
        types = 1 if self.celltype_col is None else len(self.celltypes)
        return len(self.donors) * samples * types

    @property
    def genetic_names(self) -> tuple[str, ...]:
        """Names of the variance components of the kinship."""
        return tuple(name for one in self.kinship for name in one.labels)

    @property
    def n_units(self) -> int:
        """Number of independent units: donors, or blocks of donors that share random effects."""
        return n_blocks(self.donor_codes, self.random)

    def observation(self, frame: pd.DataFrame) -> np.ndarray:
        """H of the rows of `frame`: proportions, or one-hot cell types (zero where unknown).

        Parameters
        ----------
        frame : DataFrame, m rows
            Columns of the design, cleaned, as :meth:`matrix` returns them.

        Returns
        -------
        ndarray, shape (m, C)

        Raises
        ------
        DataError
            The cell type or the proportions are not there.
        """
        if self.celltype_col is None:
            columns = [pick(frame, c, "proportion", what="newdata") for c in self.proportion_cols]
            return np.column_stack([column.to_numpy(dtype=float) for column in columns])
        hint = "; random='none' predicts without random effects"
        column = pick(frame, self.celltype_col, "cell type", hint, what="newdata")
        missing = column.isna().to_numpy(dtype=bool)
        texts = [None if gone else label(v) for v, gone in zip(column, missing, strict=True)]
        known = np.array(self.celltypes, dtype=object)
        return (np.array(texts, dtype=object)[:, None] == known).astype(np.float64)

    def crossed(self, frame: pd.DataFrame) -> np.ndarray:
        """The same for all of a donor's effects, (m, E); zero where the group is not known."""
        H = self.observation(frame)
        if self.crossing is None:
            return H
        hint = "; random='none' predicts without random effects"
        column = pick(frame, self.crossing.column, "groups or conditions", hint, what="newdata")
        if self.crossing.kind != "trend":
            column = column.map(label, na_action="ignore")
        whole = crossed_rows(loads_of(self.crossing, column), H)
        names = self.crossing.effects(self.celltypes)
        return whole[:, [names.index(name) for name in self.effects]]

    def model(self, structure: Structure) -> Model:
        """The model's arrays under one covariance structure of the cell types."""
        return build_model(
            self.y,
            self.nu,
            self.X,
            self.E,
            self.donor_codes,
            structure.basis,
            self.random,
            self.n_cells,
            self.nu2,
            self.H,
            [KernelTerm(one.kernel, one.structure.basis) for one in self.kinship],
        )

    def matrix(self, newdata: object) -> tuple[np.ndarray, pd.DataFrame]:
        """Design rows for new data, coded as in the fit.

        Parameters
        ----------
        newdata : DataFrame, dict of columns, or object with ``to_pandas()``, m rows
            Needs the covariates only; donor, cell type and random groups are carried over.

        Returns
        -------
        X : ndarray, shape (m, p)
            NaN in rows where a covariate is missing, or of a combination that no row of the fit
            tells of.
        frame : DataFrame, m rows
            The columns in use, cleaned, with the index of `newdata`; donor and random groups are
            text labels as in ``donors`` and ``random_levels``, and may be new.

        Raises
        ------
        FormulaError
            A level that the fit has not seen.
        DataError
            A covariate that `newdata` lacks, or that is infinite there.
        """
        coding = self.coded()
        shares = self.celltypes if self.proportion_cols else ()
        if len(arrays.design_names(coding, shares)) != len(self.names):
            raise DataError(
                "the formula of this fit gives another number of fixed effects than it has: its "
                "file was changed, so fit again"
            )
        table = as_frame(newdata, "newdata", may_be_empty=True)
        frame = pd.DataFrame(index=pd.RangeIndex(len(table)))
        needed = list(coding.frame.columns) + list(self.proportion_cols)
        for name in self.frame.columns:
            if name in needed:
                column = pick(table, name, "covariate", what="newdata")
                frame[name] = _as_trained(column, name, self.frame[name])
            elif name in table.columns:
                column = pick(table, name, "column of the fit", what="newdata")
                if name == self.celltype_col:
                    column = _as_trained(column, name, self.frame[name])
                elif isinstance(self.frame[name].dtype, pd.CategoricalDtype):
                    column = pd.Series(labels(column, name, "donor or random effect"))
                frame[name] = column
        complete = ~frame[needed].isna().any(axis=1).to_numpy()
        X = np.full((len(frame), len(self.names)), np.nan)
        if complete.any():
            part = frame.loc[complete].reset_index(drop=True)
            P = None
            if self.proportion_cols:
                P = part[list(self.proportion_cols)].to_numpy(dtype=float)
                arrays.check_proportions(P, self.proportion_cols, np.flatnonzero(complete))
            X[complete] = arrays.design_rows(coding, part, P)
            known = complete & ~np.isnan(X).all(axis=1)
            arrays.check_finite(X[known], self.names, np.flatnonzero(known))
        frame.index = table.index
        return X, frame


def build_design(
    spec: FormulaSpec,
    data: object,
    *,
    donor: str = "donor",
    celltype: str | None = None,
    noise: str | None = "nu",
    nu2: str | None = "nu2",
    n_cells: str | None = "n_cells",
    proportions: str | Sequence[str] | pd.DataFrame | None = None,
    by: str | None = None,
    within: str | None = None,
    kinship: object = None,
    genetic_structure: object = "free",
    engine: str = "patsy",
    env: Mapping[str, object] | None = None,
    without: Sequence[str] = (),
    gone: Mapping[str, str] | None = None,
) -> Design:
    """Build the labelled arrays of a formula on a table.

    Parameters
    ----------
    spec : FormulaSpec
        From :func:`~ctmm_formula.design.formula.parse`.
    data : DataFrame, dict of columns, or object with ``to_pandas()``
        One row per donor and cell type; with `proportions`, one row per donor.
    donor : str
    celltype : str, optional
        Default: column ``celltype``, else the one factor of the formula that, with `donor`,
        identifies the rows.  Its values are labels, also where they are numbers.
    noise : str or None
        Column of noise variances; None leaves ``nu`` to be set later.  0 (all cells of the pair
        are alike) needs a number of cells.
    nu2 : str or None
        Column of unbiased estimates of the squares of the noise variances; the default may be
        absent.
    n_cells : str or None
        Column of cell numbers; the default may be absent.  Where a number is missing, the mean of
        the cell type stands in for it, and a note says so.
    proportions : list of str, or DataFrame (donors x cell types), or str, optional
        Cell type proportions of overall pseudobulk.  A single column name gives each row's share
        of the donor's cells in cell type-specific data.
    by, within : str, optional
        Column of groups of donors, or of conditions that donors have been seen under.
    kinship : DataFrame, file name, or dict name -> one of these, optional
        How donors are related, as :func:`~ctmm_formula.design.kinship.match_kinship` takes it.
    genetic_structure
        Covariance structure of the cell types in what goes with it.
    engine : {"patsy", "formulaic"}
    env : dict, optional
        Names the formula may use besides columns and the engine's functions.
    without : sequence of str
        Cell types to leave out, seen in one donor.
    gone : dict, optional
        Columns that `data` might have had -> why they are not there, for messages.

    Returns
    -------
    Design

    Raises
    ------
    FormulaError, DataError
        Naming column, rows (counted from 0) and the fix.

    Examples
    --------
    >>> from ctmm_formula.design.formula import parse
    >>> data = {"donor": ["d1", "d1", "d2", "d2", "d3", "d3"], "celltype": ["B", "T"] * 3,
    ...         "expr": [1.0, 2.0, 0.5, 1.5, 0.0, 3.0], "nu": [0.1] * 6}
    >>> design = build_design(parse("expr ~ C(celltype)"), data)
    >>> design.names, design.donors
    (('Intercept', 'C(celltype)[T.T]'), ('d1', 'd2', 'd3'))
    """
    if not spec.terms and (proportions is None or isinstance(proportions, str)):
        raise FormulaError(f"{spec.text!r} has no fixed effect: keep at least the intercept")
    column_name(donor, "donor")
    for name, argument in (
        (celltype, "celltype"), (noise, "noise"), (nu2, "nu2"), (n_cells, "n_cells"),
        (by, "by"), (within, "within"),
    ):  # fmt: skip
        if name is not None:
            column_name(name, argument)
    if by is not None and within is not None:
        raise DataError(
            "by= names groups of donors, within= conditions of the same donors: give one of them"
        )
    ready = prepare(
        spec,
        data,
        donor=donor,
        celltype=celltype,
        noise=noise,
        nu2=nu2,
        n_cells=n_cells,
        proportions=proportions,
        by=by,
        within=within,
        engine=engine,
        env=env or {},
        without=without,
        gone=gone,
    )
    return prepared_design(spec, ready, engine, kinship, genetic_structure)


def prepared_design(
    spec: FormulaSpec,
    ready: Prepared,
    engine: str = "patsy",
    kinship: object = None,
    genetic_structure: object = "free",
    like: Coding | None = None,
) -> Design:
    """The second half of :func:`build_design`: of clean columns.

    `like` is the coding of other rows of the same table, which is taken where it is the same.
    """
    roles, frame = ready.roles, ready.frame
    arrays.check_levels(ready)
    y = arrays.response(spec, ready)
    seen = arrays.observed(ready)
    # overall pseudobulk has a mean per cell type in place of the intercept
    fixed = f"{spec.fixed} + 1" if roles.proportions else spec.fixed
    training = frame[list(roles.fixed)]
    coding = like.of(training) if like is not None else None
    if coding is None:
        coding = Coding(fixed, training, ready.context, engine)
    X = arrays.design_rows(coding, frame, seen.P)
    coding, X, unseen = arrays.told(coding, X, ready, seen.celltypes)
    ready = replace(ready, notes=(*ready.notes, *unseen), doubts=(*ready.doubts, *unseen))
    names = arrays.design_names(coding, seen.celltypes if roles.proportions else ())
    one_mean = roles.celltype is not None and roles.celltype not in roles.fixed
    design = assemble(spec, ready, seen, y, X, names, engine, coding, one_mean=one_mean)
    return design if kinship is None else related(design, kinship, genetic_structure)


def related(design: Design, kinship: object, structure: object) -> Design:
    """The design with a kinship of its donors, and its structure between cell types.

    Raises
    ------
    DataError
        It is no kinship of these donors, or the design is of another kind.
    """
    if design.kind != "ctp" or design.crossing is not None:
        what = "by= or within=" if design.kind == "ctp" else "proportions="
        raise DataError(f"kinship= is for one row per donor and cell type, without {what}")
    cells = design.structure(structure)
    found = match_kinship(kinship, design.donors, cells, design.random_names)
    notes, doubts = (*design.notes, *found.notes), (*design.doubts, *found.doubts)
    return replace(design, kinship=found.kinship, notes=notes, doubts=doubts)


def assemble(
    spec: FormulaSpec,
    ready: Prepared,
    seen: arrays.Observed,
    y: np.ndarray,
    X: np.ndarray,
    names: tuple[str, ...],
    engine: str,
    coding: Coding | None,
    *,
    one_mean: bool,
    means: np.ndarray | None = None,
) -> Design:
    """The design of clean rows whose fixed part is coded, after the checks of that part.

    Parameters
    ----------
    spec : FormulaSpec; ready : Prepared; seen : Observed
    y : ndarray, shape (n,); X : ndarray, shape (n, p); names : tuple of str, length p
    engine, coding
        How the fixed part became numbers.
    one_mean : bool
        Whether the fixed part names no cell type; other columns may span their means.
    means : ndarray, shape (C, p), optional
        ``Design.mean_rows``, where `coding` cannot tell.

    Raises
    ------
    DataError
        Aliased columns, or random effects that cannot be estimated.
    """
    arrays.check_design(X, names, ready.keep)
    random = arrays.random(spec, ready, X, seen.H, seen.celltypes)
    donors = ready.labels[ready.roles.donor]
    # types of one donor each (outcomes of a study) have no means to be known
    copies = 1 if seen.crossing is None else len(seen.crossing.levels)
    every = len(seen.alone) >= copies * len(seen.celltypes)
    one_mean = one_mean and not every and not _spans(X, seen.H)
    return Design(
        spec=spec,
        kind="op" if ready.roles.proportions else "ctp",
        engine=engine,
        frame=ready.frame,
        rows=ready.keep,
        index=ready.index,
        donor_col=ready.roles.donor,
        celltype_col=ready.roles.celltype,
        response_name=spec.response,
        donors=tuple(donors.categories),
        celltypes=seen.celltypes,
        donor_codes=np.asarray(donors.codes, dtype=np.int64),
        y=y,
        nu=seen.nu,
        nu2=seen.nu2,
        X=X,
        H=seen.H,
        n_cells=seen.n_cells,
        names=names,
        random_names=tuple(name for name, _, _ in random),
        random_levels=tuple(levels for _, levels, _ in random),
        random=tuple(component for _, _, component in random),
        proportions=arrays.shares(ready, seen.H, seen.n_cells),
        proportion_cols=ready.roles.proportions,
        dropped=ready.dropped,
        notes=(*seen.notes, *_independent(spec)),
        alone=seen.alone,
        one_mean=str(ready.roles.celltype) if one_mean else "",
        coding=coding,
        known_means=means,
        doubts=ready.doubts,
        crossing=seen.crossing,
        loads=seen.loads,
    )


def _independent(spec: FormulaSpec) -> list[str]:
    """What to know of random effects on cell types, which elsewhere are correlated."""
    shared = {term.groups for term in spec.random if not term.celltype_specific}
    return [
        f"{term}: effects on different cell types are independent; add (1 | {term.label}) for "
        "what they share"
        for term in spec.random
        if term.celltype_specific and term.groups not in shared
    ]


def means_note(one_mean: str, structures: Iterable[Structure]) -> str:
    """What to know of a fixed part without means of the cell types, or "".

    >>> from ctmm_formula.structures import resolve
    >>> means_note("celltype", [resolve("hom", ["B", "T"])])
    'no cell type in the fixed part: the cell types share one mean'
    """
    if not one_mean:
        return ""
    text = "no cell type in the fixed part: the cell types share one mean"
    return means_warning(one_mean, structures) or text


def means_warning(one_mean: str, structures: Iterable[Structure]) -> str:
    """What to say at once of such a fixed part where a structure has V, or ""."""
    if not (one_mean and any(len(structure.specific) for structure in structures)):
        return ""
    return (
        "no cell type in the fixed part: the cell types share one mean, so that V holds the "
        f"differences between their means: add {quote(one_mean)} to the formula"
    )


def _spans(X: np.ndarray, H: np.ndarray) -> bool:
    """Whether the columns of `X` span those of `H`, as columns that say the cell type do."""
    names = [str(k) for k in range(X.shape[1] + H.shape[1])]
    return len(arrays.aliased(np.hstack([X, H]), names)) == H.shape[1]


def _as_trained(column: pd.Series, name: str, trained: pd.Series) -> pd.Series:
    """A column of new data in the training column's coding; unseen levels are an error."""
    if not isinstance(trained.dtype, pd.CategoricalDtype):
        if trained.dtype == bool:
            return covariate(column, name, as_levels=False)
        return pd.Series(numbers(column, name, "covariate"))
    categories = trained.cat.categories
    codes = {label(value): code for code, value in enumerate(categories)}
    texts = [
        None if missing else label(value)
        for value, missing in zip(column, column.isna(), strict=True)
    ]
    unseen = [k for k, text in enumerate(texts) if text is not None and text not in codes]
    if unseen:
        new = list(dict.fromkeys(str(texts[k]) for k in unseen))
        raise FormulaError(
            f"column {name!r} has levels the fit has not seen: {listing(new)} in {rows(unseen)}; "
            f"the fit has seen {listing([label(value) for value in categories], 10)}"
        )
    numbered = [-1 if text is None else codes[text] for text in texts]
    return pd.Series(pd.Categorical.from_codes(numbered, categories=categories))
