"""Predicted random effects as labelled tables, and predictions for new rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..arguments import choose, iterable
from ..design.kinship import related_to
from ..design.labelled import Design
from ..design.table import crossed, label, pick
from ..errors import CTMMError, DataError
from ..inference.genetic_tests import NO_KINSHIP
from .parameters import effect_table
from .record import Covariance, Record


class RandomEffects(dict[str, pd.DataFrame]):
    """Frames of predicted random effects by name, with a short form."""

    def __repr__(self) -> str:
        rows = (
            f"  {name!r}: {len(frame)} effects by {', '.join(map(str, frame.index.names))}"
            for name, frame in self.items()
        )
        return "\n".join(["<RandomEffects: estimate and std_error of", *rows]) + ">"


def random_effects(res: Record) -> RandomEffects:
    """Predicted random effects (BLUPs) with prediction standard errors.

    Returns
    -------
    dict of DataFrame
        Columns estimate and std_error (NaN where a variance component is negative).
        ``"shared"`` by donor, ``"specific"`` by donor and cell type (each where the structure
        has it), both by group or condition as well where there are any (of a trend by its two
        parts), without groups that the donor is not in; one frame by level for each random
        effect; and of every kinship the genetic values, ``"genetic"`` by donor and cell type.

    Raises
    ------
    ConvergenceError
        There is no noise to tell them from, see :mod:`ctmm_formula.engine.blup`; which also says
        what they are where the fitted covariance is not positive definite (possible for moments).

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", random="batch", data=ctmm.load_example())
    >>> res.random_effects
    <RandomEffects: estimate and std_error of
      'shared': 72 effects by donor
      'specific': 288 effects by donor, celltype
      'batch': 24 effects by level>
    """
    design, effects = res.design, res.blup
    back = np.argsort(res.arrays.donors)
    parts = []
    if len(res.structure_.shared):
        index, at = _of_donors(design, shared=True)
        parts.append(("shared", index, (effects.shared[back][at], effects.shared_se[back][at])))
    if len(res.structure_.specific):
        index, at = _of_donors(design, shared=False)
        own = effects.specific[back][at], effects.specific_se[back][at]
        parts.append(("specific", index, own))
    levels = (pd.Index(own, name="level") for own in design.random_levels)
    parts += zip(res.labels.random, levels, effects.random, strict=True)
    for one, (value, se) in zip(design.kinship, effects.genetic, strict=True):
        index, at = _of_donors(design, shared=False)
        parts.append((one.name, index, (value[back][at], se[back][at])))
    return RandomEffects(
        (name, pd.DataFrame({"estimate": value, "std_error": se}, index))
        for name, index, (value, se) in parts
    )


def _of_donors(design: Design, shared: bool) -> tuple[pd.Index, tuple[np.ndarray, np.ndarray]]:
    """Index of donors' effects, and which donors and effects these are.

    Of shared effects that of the first cell type stands for all; a donor has the effects that are
    correlated with some that were observed.
    """
    crossing, types = design.crossing, design.celltypes
    levels = ("",) if crossing is None else crossing.levels
    every = types if crossing is None else crossing.effects(types)
    pairs = [(level, name) for level in levels for name in types]
    known = [pairs[every.index(name)] for name in design.effects]
    first = {level: k for k, (level, _) in reversed(list(enumerate(known)))}
    columns = np.array(sorted(first.values()) if shared else range(len(known)))
    donors = np.repeat(np.arange(len(design.donors)), len(columns))
    effects = np.tile(columns, len(design.donors))
    if crossing is not None and design.loads is not None and crossing.kind == "by":
        group = np.zeros((len(design.donors), len(levels)))  # a donor is in one
        np.add.at(group, design.donor_codes, design.loads)
        of = np.array([levels.index(known[k][0]) for k in columns])
        donors, at = np.nonzero(group[:, of])
        effects = columns[at]
    keys = {design.donor_col: [design.donors[i] for i in donors]}
    if not shared:
        keys[design.celltype_col or "celltype"] = [known[k][1] for k in effects]
    if crossing is not None:
        keys[crossing.column] = [known[k][0] for k in effects]
    if len(keys) == 1:
        return pd.Index(design.donors, name=design.donor_col), (donors, effects)
    return pd.MultiIndex.from_arrays(list(keys.values()), names=list(keys)), (donors, effects)


def genetic_values(res: Record, kinship: object = None) -> pd.DataFrame:
    """Predicted genetic values (BLUPs), also of donors without expression.

    Parameters
    ----------
    kinship : optional
        As ``fit`` takes it, with more donors (of a fit with several kinships a dict): values of all
        donors in it.  By default those of the donors of the fit.

    Returns
    -------
    DataFrame
        Rows kinship and donor, a column for every cell type; in units of the response.

    Raises
    ------
    CTMMError
        The fit has no kinship, or `kinship` is not what it takes, or is another among its donors.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> donors = [*df["donor"].unique(), "brother"]
    >>> sibs = np.arange(len(donors)) // 3
    >>> sibs[-1] = 0  # of the first three
    >>> K = pd.DataFrame(0.5 * (np.equal.outer(sibs, sibs) + np.eye(len(donors))), donors, donors)
    >>> res = ctmm.fit("expr ~ C(celltype)", kinship=K, structure="hom", data=df)
    >>> values = res.genetic_values(K).loc["genetic", "day0"]
    >>> len(values), len(res.genetic_values())
    (73, 72)
    """
    design = res.design
    if not design.kinship:
        raise CTMMError(NO_KINSHIP)
    names = [one.name for one in design.kinship]
    given = kinship if isinstance(kinship, Mapping) else dict.fromkeys(names, kinship)
    if set(given) != set(names) or (kinship is not None and given is not kinship and names[1:]):
        raise CTMMError(f"the fit has the kinships {', '.join(names)}: give each by its name")
    back, tables = np.argsort(res.arrays.donors), {}
    for one, (own, _), pull in zip(design.kinship, res.blup.genetic, res.blup.pull, strict=True):
        donors, values = list(design.donors), own[back]
        if kinship is not None:
            donors, K = related_to(given[one.name], one.name, design.donors)
            here, whole = [donors.index(name) for name in design.donors], one.kernel.whole
            if not np.allclose(K[here], whole, rtol=1e-6, atol=1e-9 * np.abs(whole).max()):
                raise DataError(
                    f"kinship {one.name!r} relates the donors of the fit otherwise than the fit "
                    "has it: give the one that was fitted, with more donors"
                )
            values = K @ pull[back]
        tables[one.name] = pd.DataFrame(values, donors, list(design.effects))
    return pd.concat(tables, names=["kinship", design.donor_col])


def fittedvalues(res: Record) -> pd.Series:
    """Fixed effects and all predicted random effects, on the index of the data."""
    fitted = res.arrays.unsort(res.blup.fitted)
    return pd.Series(fitted, index=res.design.index, name="fittedvalues")


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
    for name, table in _wanted(res, random).items():
        out = out + _contribution(res, frame, name, table)
    return pd.Series(out, index=frame.index, name=res.design.response_name)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Means of the fixed part at some rows, with their errors; names as in statsmodels.

    Attributes
    ----------
    predicted_mean, se_mean : Series
        NaN where a covariate is missing.
    """

    predicted_mean: pd.Series
    se_mean: pd.Series
    _frame: Callable[[float], pd.DataFrame]

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Confidence intervals of the means: conf_low, conf_high."""
        return self._frame(alpha)[["conf_low", "conf_high"]]

    def summary_frame(self, alpha: float = 0.05) -> pd.DataFrame:
        """Columns mean, mean_se, mean_ci_lower, mean_ci_upper."""
        names = {
            "estimate": "mean", "std_error": "mean_se",
            "conf_low": "mean_ci_lower", "conf_high": "mean_ci_upper",
        }  # fmt: skip
        return self._frame(alpha)[list(names)].rename(columns=names)

    def __repr__(self) -> str:
        return self.summary_frame().to_string()


def get_prediction(
    res: Record, newdata: object = None, *, covariance: Covariance = None
) -> Prediction:
    """Mean expression of the fixed part with standard errors and intervals.

    Parameters
    ----------
    newdata : DataFrame or dict of columns, optional
        The covariates, as in :meth:`predict`; by default the rows of the fit.
    covariance
        As in :meth:`~ctmm_formula.CTMMResults.table`.

    Returns
    -------
    Prediction
        ``predicted_mean``, ``se_mean``, ``conf_int()``, ``summary_frame()``, on the index of
        `newdata`.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", data=ctmm.load_example(), structure="hom")
    >>> new = {"celltype": ["day0", "day0"], "sex": ["F", "M"]}
    >>> res.get_prediction(new).summary_frame().round(2).loc[1].tolist()
    [0.89, 0.17, 0.56, 1.22]
    """
    if newdata is None:
        X, index = res.design.X, res.design.index
    else:
        X, frame = res.design.matrix(newdata)
        index = frame.index

    def table(alpha: float) -> pd.DataFrame:
        return effect_table(res, res.shown_errors(covariance), X, index, alpha)

    own = table(0.05)
    return Prediction(own["estimate"].rename("predicted_mean"), own["std_error"], table)


def _wanted(res: Record, random: object) -> dict[str, pd.DataFrame]:
    """Tables of the effects that predict's ``random=`` asks for."""
    if random is None or (isinstance(random, str) and random == "none"):
        return {}
    if not iterable(random) or isinstance(random, (bytes, Mapping)):
        raise CTMMError(
            f"random= must be 'none', 'all' or names of random_effects, got {type(random).__name__}"
        )
    asked = [random] if isinstance(random, str) else list(random)
    tables = random_effects(res) if asked else {}
    if isinstance(random, str) and random == "all":
        return tables
    for name in asked:
        if choose("random effect", name, ["none", "all", *tables]) in ("none", "all"):
            raise CTMMError(f"random={name!r} stands alone, not in a list")
    return {name: tables[name] for name in asked}


def _contribution(res: Record, frame: pd.DataFrame, name: str, table: pd.DataFrame) -> np.ndarray:
    """What an effect adds to the rows of `frame`; 0 for donors and levels not seen."""
    design, effect = res.design, table["estimate"].to_numpy()
    if name in ("shared", "specific"):
        donor = _texts(frame, design.donor_col, "donor")
        values = getattr(res.blup, name)[np.argsort(res.arrays.donors)]
        return (_look_up(values, design.donors, donor) * design.crossed(frame)).sum(axis=1)
    names = [one.name for one in design.kinship]
    if name in names:
        values = res.blup.genetic[names.index(name)][0][np.argsort(res.arrays.donors)]
        donor = _texts(frame, design.donor_col, "donor")
        return (_look_up(values, design.donors, donor) * design.crossed(frame)).sum(axis=1)
    components = [
        (term, celltype)  # None: all of them
        for term in design.spec.random
        for celltype in (range(res.n_celltypes) if term.celltype_specific else [None])
    ]
    term, celltype = components[res.labels.random.index(name)]
    parts = [_texts(frame, group, "random effect") for group in term.groups]
    level = [None if None in row else crossed(row) for row in zip(*parts, strict=True)]
    values = _look_up(effect[:, None], table.index, level)[:, 0]
    return values if celltype is None else values * design.observation(frame)[:, celltype]


def _look_up(values: np.ndarray, known: Iterable[str], labels: Iterable[str | None]) -> np.ndarray:
    """Rows of `values` (one per known label) for labels; zeros for the others."""
    index: Mapping[str, int] = {name: k for k, name in enumerate(known)}
    places = [-1 if name is None else index.get(name, -1) for name in labels]
    where = np.array(places, dtype=np.int64)
    return np.where((where >= 0)[:, None], values[where], 0.0)


def _texts(frame: pd.DataFrame, name: str, role: str) -> list[str | None]:
    """A column of new data, labels as the fit writes them; missing ones match nothing."""
    column = pick(frame, name, role, "; random='none' predicts without random effects")
    return [None if gone else label(v) for v, gone in zip(column, column.isna(), strict=True)]


def augment(res: Record) -> pd.DataFrame:
    """The columns in use, and beside them .marginal, .fitted and .resid, in units of the response.

    Returns
    -------
    DataFrame
        A row per row of the fit, on the index of the data.

    Raises
    ------
    ConvergenceError
        There are no predicted random effects.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", data=ctmm.load_example())
    >>> res.augment()[[".marginal", ".fitted", ".resid"]].round(2).loc[0].tolist()
    [0.88, 1.53, 0.14]
    """
    out = res.design.frame.set_axis(res.design.index)
    return out.assign(
        **{".marginal": marginal(res), ".fitted": fittedvalues(res), ".resid": resid(res)}
    )
