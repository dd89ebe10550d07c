"""Clean columns to the arrays of the model, with the checks that need numbers.

Response, noise, observation matrix H, design of the fixed part, random components.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..engine.model import RandomComponent
from ..errors import DataError, FormulaError
from ..structures import Crossing
from .crossings import crossed_rows, crossing_of
from .expressions import quote
from .formula import FormulaSpec
from .matrix import INTERCEPT, Coding, evaluate
from .prepare import Prepared
from .random_terms import RandomTerm
from .table import MOST_CELLS, crossed, donors_named, listing, rows

RANK_TOLERANCE = 1e-10  # of a column's norm: far above rounding, far below any real difference
_ROUNDING = 1e-6
SUM_TOLERANCE = 1e-6  # proportions read from a text file
LARGEST = 1e60
"""Of a response and of columns of X, and one over it; of a noise variance its square.  Information
matrices have their fourth powers."""


def check_levels(ready: Prepared) -> None:
    """Donors, pairs and factors must vary in the rows that are kept."""
    roles = ready.roles
    donors = ready.labels[roles.donor]
    for name in dict.fromkeys([*roles.fixed, *roles.groups]):
        column = ready.labels.get(name, ready.frame[name].array)
        levels = getattr(column, "categories", None)
        if levels is not None and len(levels) < 2 and name != roles.donor:
            lost = f" once rows are left out ({ready.left_out})" if ready.dropped else ""
            raise DataError(
                f"column {name!r} has one level{lost}, {levels[0]!r}: it cannot be estimated; "
                "leave it out" + (" or use more cell types" if name == roles.celltype else "")
            )
    if len(donors.categories) < 2:
        raise DataError(
            f"column {roles.donor!r} has one donor, {donors.categories[0]!r}: a variance between "
            "donors needs more"
        )
    keys = [donors] if roles.celltype is None else [donors, ready.labels[roles.celltype]]
    if roles.within is not None:
        keys.append(ready.labels[roles.within])
    pairs = pd.DataFrame({str(k): key for k, key in enumerate(keys)})
    again = np.flatnonzero(pairs.duplicated(keep=False))
    if len(again):
        what = "donor" if roles.celltype is None else "donor and cell type"
        what += "" if roles.within is None else f", under one {roles.within!r}"
        first = ", ".join(str(value) for value in pairs.iloc[again[0]])
        pair_rows = ready.keep[again[pairs.iloc[again].eq(pairs.iloc[again[0]]).all(axis=1)]]
        raise DataError(
            f"several rows for one {what}: {first} in {rows(pair_rows)} ({len(again)} such rows); "
            + (
                "overall pseudobulk (proportions=) has one row per donor"
                if roles.celltype is None
                else _way_out(ready, pairs)
            )
        )


def _way_out(ready: Prepared, pairs: pd.DataFrame) -> str:
    """What to do with several rows of one donor and cell type: samples, or cells."""
    donor, keys = ready.roles.donor, [pairs[name] for name in pairs]
    differ = [
        name
        for name in dict.fromkeys([*ready.roles.fixed, *ready.roles.groups])
        if pd.Series(pd.factorize(ready.frame[name])[0])
        .groupby(keys, observed=True)
        .nunique()
        .max()
        > 1
    ]
    way = (
        f"conditions of the same donors are within={differ[0]!r}; others"
        if differ
        else "conditions of the same donors are named by within=; other samples"
    )
    return (
        (f"they differ in {listing(differ)}; " if differ else "")
        + f"{way} are told apart by a column of samples, donor='sample', and joined by "
        f"random={donor!r}; cells are aggregated by pseudobulk()"
    )


def response(spec: FormulaSpec, ready: Prepared) -> np.ndarray:
    """y, finite and not constant; NaN for a formula without response."""
    if not spec.response:
        return np.full(len(ready.frame), np.nan)
    value = evaluate(spec.response, ready.frame[list(ready.roles.response)], ready.context)
    array = np.asarray(value)
    what = f"the response {spec.response!r}"
    if array.ndim != 1 or len(array) != len(ready.frame):
        raise DataError(f"{what} must be one column, got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        kind = {"b": "true/false values", "c": "complex numbers"}.get(
            array.dtype.kind, "no numbers"
        )
        raise DataError(f"{what} holds {kind}: it must be real numbers")
    y = array.astype(np.float64)
    check_response(y, spec.response, ready.keep)
    return y


def check_response(y: np.ndarray, name: str, positions: np.ndarray) -> None:
    """Finite, not constant, and of a size whose fourth powers are numbers."""
    what = f"the response {name!r}"
    bad = np.flatnonzero(~np.isfinite(y))
    if len(bad):
        raise DataError(
            f"{what} is {y[bad[0]]} in {rows(positions[bad])}: correct the values, or make them "
            "NaN to leave the rows out"
        )
    if len(y) and y.max() == y.min():
        raise DataError(f"{what} is constant ({y[0]}): there is no variance to estimate")
    extreme = extremes(y)
    if extreme:
        raise DataError(f"{what} {extreme}: rescale it")


def extremes(y: np.ndarray) -> str:
    """What forbids a response whose size no information matrix can hold, or "".

    >>> extremes(np.array([0.0, 1e80])), extremes(np.array([0.0, 1e-80])), extremes(np.arange(2.0))
    ('has values up to 1e+80', 'has no values further than 1e-80 apart', '')
    """
    if not len(y) or not is_extreme(y):
        return ""
    size, apart = _reach(y)
    if size > LARGEST:
        return f"has values up to {size:.0e}"
    return f"has no values further than {2 * apart:.0e} apart"


def is_extreme(Y: np.ndarray) -> np.ndarray:
    """Whether :func:`extremes` forbids responses (..., n), constant ones among them, (...)."""
    size, apart = _reach(Y)
    return np.asarray((size > LARGEST) | (apart < 1 / LARGEST))


def _reach(Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest size of a value and half the largest distance of two, of responses (..., n)."""
    low, high = Y.min(axis=-1), Y.max(axis=-1)
    return np.maximum(high, -low), high / 2.0 - low / 2.0


def noise(ready: Prepared, n_cells: np.ndarray | None) -> np.ndarray:
    """nu, finite and positive, or 0 where it was measured on several cells."""
    name = ready.roles.noise
    if name is None:
        return np.full(len(ready.frame), np.nan)
    nu = ready.frame[name].to_numpy()
    bad = bad_noise(nu, n_cells)
    if len(bad):
        donors = [str(ready.labels[ready.roles.donor][i]) for i in bad]
        raise DataError(
            f"column {name!r} (noise variance) must be positive and finite, found {nu[bad[0]]} in "
            f"{rows(ready.keep[bad])}, {donors_named(list(dict.fromkeys(donors)))}: make it NaN "
            f"to leave these rows out, or estimate it anew{why_bad(nu[bad], n_cells)}"
        )
    return nu


def bad_noise(nu: np.ndarray, n_cells: np.ndarray | None) -> np.ndarray:
    """Rows whose noise variance cannot be; 0 is the measured one of several cells that are alike.

    Nor can one whose square is no number.

    >>> bad_noise(np.array([0.1, 0.0, 0.0, -1.0]), np.array([9.0, 9.0, 1.0, 9.0]))
    array([2, 3])
    """
    return np.flatnonzero(is_bad_noise(nu, n_cells))


def is_bad_noise(nu: np.ndarray, n_cells: np.ndarray | None) -> np.ndarray:
    """Whether noise variances (..., n) cannot be, see :func:`bad_noise`."""
    several = False if n_cells is None else n_cells > 1
    square = LARGEST**2
    return np.asarray(~((nu < square) & ((nu > 1 / square) | ((nu == 0) & several))))


def why_bad(nu: np.ndarray, n_cells: np.ndarray | None) -> str:
    """What to know of noise variances that cannot be."""
    if n_cells is None and (nu == 0).any():
        return "; 0 is believed where numbers of cells are known, n_cells="
    if (nu == 0).any():
        return " (one cell has no variance)"
    return " (rescale the response)" if (nu > 0).all() and np.isfinite(nu).all() else ""


LARGEST_SQUARE = 6.0
"""Most that an unbiased estimate of nu^2 can be, over the measured nu^2: it is the mean over pairs
of cells of products of squares, nu^2 holds all of these and more, and of four cells a third of it
is of two pairs without a common cell; of n cells (n - 2)(n - 3) / (n (n - 1))."""


def bad_square(nu2: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """Rows whose estimate of nu^2 no cells can give; NaN is none.

    >>> bad_square(np.array([0.01, -0.01, np.inf, 1.0, np.nan]), np.full(5, 0.1))
    array([1, 2, 3])
    """
    return np.flatnonzero(is_bad_square(nu2, nu))


def is_bad_square(nu2: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """Whether estimates of nu^2 (..., n) are such that no cells can give them."""
    square = np.square(nu)
    over = (nu2 > (1.0 + _ROUNDING) * LARGEST_SQUARE * square) | (nu2 < -_ROUNDING * square)
    return np.asarray(np.isinf(nu2) | over)


def why_bad_square(nu2: float, nu: float) -> str:
    """What is wrong with such an estimate, and what to do."""
    return (
        f"{nu2:.4g} where the noise variance is {nu:.4g}: unbiased estimates of its square are "
        f"finite, 0 or more, and at most {LARGEST_SQUARE:g} times the square of what was measured; "
        "use NaN where it is unknown, or leave nu2 out"
    )


def noise_square(ready: Prepared, nu: np.ndarray) -> np.ndarray | None:
    """Estimates of nu^2, NaN where not given; None where there are none at all."""
    name = ready.roles.nu2
    if name is None:
        return None
    nu2 = ready.frame[name].to_numpy()
    bad = bad_square(nu2, nu)
    if len(bad):
        raise DataError(
            f"column {name!r} (square of the noise variance) cannot be in {rows(ready.keep[bad])}, "
            f"found {why_bad_square(nu2[bad[0]], nu[bad[0]])} (nu2=None)"
        )
    return None if np.isnan(nu2).all() else nu2


def counts(ready: Prepared) -> np.ndarray | None:
    """Numbers of cells, NaN where not given; None where there are none at all."""
    name = ready.roles.n_cells
    if name is None:
        return None
    counts = ready.frame[name].to_numpy()
    with np.errstate(invalid="ignore"):  # of infinite ones
        apart = np.abs(counts - np.round(counts)) > _ROUNDING * counts
    bad = np.flatnonzero((counts < 2 - _ROUNDING) | (counts > MOST_CELLS) | apart)
    if len(bad):
        raise DataError(
            f"column {name!r} (number of cells) must hold whole numbers of 2 or more, as one cell "
            f"has no measured variance, and at most {MOST_CELLS:.0e}, found {counts[bad[0]]:g} in "
            f"{rows(ready.keep[bad])}: use NaN where it is unknown, or n_cells=None where no cells "
            "were counted"
        )
    return None if np.isnan(counts).all() else counts


def fill_counts(counts: np.ndarray | None, H: np.ndarray) -> np.ndarray | None:
    """Missing numbers of cells are taken as the cell type's mean (the mean of all for a new one).

    >>> fill_counts(np.array([10.0, 20.0, np.nan]), np.eye(2)[[0, 0, 0]])
    array([10., 20., 15.])
    """
    if counts is None:
        return None
    known = np.isfinite(counts)
    weight = H[known].sum(axis=0)
    mean = np.full(H.shape[1], counts[known].mean())
    np.divide(H[known].T @ counts[known], weight, out=mean, where=weight > 0)
    return np.where(known, counts, H @ mean)


@dataclass(frozen=True)
class Observed:
    """What the rows say besides response and fixed part.

    Attributes
    ----------
    nu : ndarray, shape (n,)
    nu2, n_cells : ndarray, shape (n,), or None
    P : ndarray, shape (n, C), or None
        Proportions, for overall pseudobulk.
    celltypes : tuple of str, length C
    H : ndarray, shape (n, C)
    crossing : Crossing, or None; loads : ndarray, shape (n, G), or None
        Groups of donors or conditions, and what rows have of each copy of a donor's effects.
    notes : tuple of str
    alone : dict
        Cell types (in a group or condition) seen in one donor -> that donor.
    """

    nu: np.ndarray
    nu2: np.ndarray | None
    n_cells: np.ndarray | None
    P: np.ndarray | None
    celltypes: tuple[str, ...]
    H: np.ndarray
    crossing: Crossing | None
    loads: np.ndarray | None
    notes: tuple[str, ...]
    alone: dict[str, str]


def observed(ready: Prepared) -> Observed:
    """Noise, numbers of cells and observation matrix of the clean rows.

    Raises
    ------
    DataError
        Values that cannot be, by column and rows.
    """
    given = counts(ready)
    P, celltypes, H = observation(ready)
    n_cells = fill_counts(given, H)
    nu = noise(ready, n_cells)
    crossing, loads = crossing_of(ready)
    apart = crossing is not None and crossing.kind != "trend"
    effects = crossing.effects(celltypes) if crossing is not None and apart else celltypes
    few, alone = few_donors(ready, effects, crossed_rows(loads if apart else None, H))
    notes = (*ready.notes, *few, *count_notes(ready, given))
    square = noise_square(ready, nu)
    return Observed(nu, square, n_cells, P, celltypes, H, crossing, loads, notes, alone)


def observation(ready: Prepared) -> tuple[np.ndarray | None, tuple[str, ...], np.ndarray]:
    """Proportions (or None), cell type names, H (n, C)."""
    roles = ready.roles
    if roles.celltype is not None:
        values = ready.labels[roles.celltype]
        H = np.eye(len(values.categories))[values.codes]
        return None, tuple(values.categories), H
    P = ready.frame[list(roles.proportions)].to_numpy(dtype=float)
    if not P.shape[1]:
        raise DataError("proportions= names no column: give one for each cell type")
    check_proportions(P, roles.proportions, ready.keep)
    unused = [name for name, column in zip(roles.proportions, P.T, strict=True) if not column.any()]
    if unused:
        raise DataError(f"proportion {listing(unused)} is 0 in every donor: leave it out")
    return P, celltype_names(roles.proportions), P


def check_proportions(P: np.ndarray, names: Sequence[str], positions: np.ndarray) -> None:
    """Non-negative rows that sum to one, or an error naming the rows."""
    bad = np.flatnonzero(~((P >= 0) & (P <= 1 + SUM_TOLERANCE)).all(axis=1))
    if len(bad):
        row = P[bad[0]]
        percent = bool((row >= 0).all()) and abs(row.sum() - 100) <= 1
        fix = "these look like percent, divide by 100" if percent else "correct the values"
        raise DataError(
            f"proportions ({listing(list(names))}) must lie between 0 and 1, found "
            f"{', '.join(f'{value:g}' for value in row[:5])} in {rows(positions[bad])}: {fix}"
        )
    total = P.sum(axis=1)
    bad = np.flatnonzero(np.abs(total - 1) > SUM_TOLERANCE)
    if len(bad):
        raise DataError(
            f"proportions ({listing(list(names))}) must sum to one, but sum to "
            f"{total[bad[0]]:.6g} in {rows(positions[bad])}: divide them by their sum, or name "
            "all cell types"
        )


def celltype_names(columns: Sequence[str]) -> tuple[str, ...]:
    """Cell type names from proportion columns, without a common prefix such as ``prop_``.

    >>> celltype_names(["prop_T", "prop_B"]), celltype_names(["day0", "day1"])
    (('T', 'B'), ('day0', 'day1'))
    """
    parts = [
        re.match(r"(?i)(?:proportions?|props?|fractions?|frac|p)[_. -]+(?=.)", c) for c in columns
    ]
    prefixes = {part.group() if part else "" for part in parts}
    cut = len(prefixes.pop()) if len(prefixes) == 1 else 0
    return tuple(column[cut:] for column in columns)


def shares(ready: Prepared, H: np.ndarray, counts: np.ndarray | None) -> np.ndarray | None:
    """Shares (N, C) of the cell types in each donor, from proportions or numbers of cells."""
    donors = np.asarray(ready.labels[ready.roles.donor].codes)
    if ready.roles.proportions:
        weights = np.ones(len(H))
    elif ready.roles.share is not None:
        weights = ready.frame[ready.roles.share].to_numpy()
        bad = np.flatnonzero(~(weights >= 0))
        if len(bad):
            raise DataError(
                f"column {ready.roles.share!r} (proportion) is missing or negative in "
                f"{rows(ready.keep[bad])}"
            )
    elif counts is not None:
        weights = counts
    else:
        return None
    return shares_of(donors, weights, H)


def shares_of(donors: np.ndarray, weights: np.ndarray, H: np.ndarray) -> np.ndarray:
    """Shares (N, C) of the cell types in each donor (n,), by the weights of its rows (n,)."""
    out = np.zeros((donors.max() + 1, H.shape[1]))
    np.add.at(out, donors, weights[:, None] * H)
    return out / out.sum(axis=1, keepdims=True)


def few_donors(
    ready: Prepared, celltypes: Sequence[str], H: np.ndarray
) -> tuple[list[str], dict[str, str]]:
    """Notes on cell types seen in one or two donors, and those in one with that donor."""
    donors = ready.labels[ready.roles.donor]
    codes = np.asarray(donors.codes)
    notes: list[str] = []
    alone: dict[str, str] = {}
    shared = (
        "own variance between donors is not known, it is taken to share that of the other types"
    )
    for name, column in zip(celltypes, H.T, strict=True):
        seen = np.unique(codes[column != 0])
        if len(seen) == 1:
            alone[name] = str(donors.categories[seen[0]])
        if len(seen) == 2:
            both = listing([str(donors.categories[k]) for k in seen])
            notes.append(
                f"cell type {name!r} is observed in 2 donors ({both}): its variance is hardly "
                "known, and tests that use it cannot be trusted"
            )
    if 0 < len(alone) < 4:
        first = [
            f"cell type {name!r} is observed in one donor, {donor!r}: its {shared}"
            for name, donor in alone.items()
        ]
    elif alone:
        first = [
            f"cell types {listing(list(alone))} are observed in one donor each: their {shared}"
        ]
    return (first + notes if alone else notes), alone


def count_notes(ready: Prepared, counts: np.ndarray | None) -> list[str]:
    """What stands in for numbers of cells that are not there."""
    roles = ready.roles
    if counts is not None and np.isnan(counts).any():
        where = ready.keep[np.isnan(counts)]
        return [
            f"column {roles.n_cells!r} is missing in {rows(where)}: taken there as the mean of the "
            "cell type"
        ]
    if counts is None and roles.share is None and not roles.proportions:
        return ["cell types count equally in the shares of variance: name n_cells= or proportions="]
    return []


# ---------------------------------------------------------------------------------------------
# the fixed part


def design_rows(coding: Coding, frame: pd.DataFrame, P: np.ndarray | None) -> np.ndarray:
    """Design rows; with proportions these stand first, in place of the intercept."""
    X = coding.matrix(frame[list(coding.frame.columns)])
    if P is None:
        return X
    return np.hstack([P, X[:, covariate_columns(coding)]])


def covariate_columns(coding: Coding) -> list[int]:
    """Columns of a coding that stay where proportions stand in place of the intercept."""
    return [k for k, name in enumerate(coding.names) if name != INTERCEPT]


def design_names(coding: Coding, celltypes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the design's columns; `celltypes` where proportions stand first."""
    if not celltypes:
        return coding.names
    first = [f"celltype[{name}]" for name in celltypes]
    return (*first, *(name for name in coding.names if name != INTERCEPT))


def check_finite(X: np.ndarray, names: tuple[str, ...], positions: np.ndarray) -> None:
    """No infinite or undefined entry of the design."""
    bad = ~np.isfinite(X)
    if bad.any():
        column = int(np.flatnonzero(bad.any(axis=0))[0])
        where = np.flatnonzero(bad[:, column])
        raise DataError(
            f"covariate {names[column]!r} is {X[where[0], column]} in {rows(positions[where])}: "
            "correct the values, or make them NaN to leave the rows out"
        )


def check_design(X: np.ndarray, names: tuple[str, ...], positions: np.ndarray) -> None:
    """X must be finite, of a size whose powers are numbers, longer than wide, and of full rank."""
    check_finite(X, names, positions)
    size = np.abs(X).max(axis=0, initial=0.0)
    far = np.flatnonzero((size > LARGEST) | ((size > 0.0) & (size < 1.0 / LARGEST)))
    if len(far):
        raise DataError(
            f"column {names[far[0]]!r} of the fixed part has values up to {size[far[0]]:.0e}: "
            "rescale it"
        )
    found = aliased(X, names)
    rank = X.shape[1] - len(found)
    if len(X) <= rank:
        raise DataError(f"{len(X)} rows cannot estimate {rank} fixed effects: use fewer covariates")
    if found:
        parts = [f"{name!r} ({how})" for name, how in list(found.items())[:3]]
        more = f"; ... ({len(found)} in all)" if len(found) > 3 else ""
        raise DataError(
            f"the fixed part is not of full rank: {'; '.join(parts)}{more}; leave these terms out"
        )


def aliased(X: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    """Columns that are combinations of earlier ones, and of which.

    Columns are judged in order, as R does, each relative to its own norm, so units do not
    matter.

    >>> x = np.array([1.0, 2.0, 4.0])
    >>> aliased(np.column_stack([np.ones(3), x, 1e6 * x]), ["Intercept", "x", "z"])
    {'z': "depends on 'x'"}
    """
    largest = np.abs(X).max(axis=0, initial=0.0)
    Z = X / np.where(largest > 0, largest, 1.0)  # squares of huge numbers would overflow
    Z /= np.where(largest > 0, np.linalg.norm(Z, axis=0), 1.0)
    Q = np.zeros((len(X), 0))
    kept: list[int] = []
    out: dict[str, str] = {}
    for k, column in enumerate(Z.T):
        rest = column - Q @ (Q.T @ column)
        rest -= Q @ (Q.T @ rest)  # twice is enough
        size = np.linalg.norm(rest)
        if size > RANK_TOLERANCE:
            Q = np.column_stack([Q, rest / size])
            kept.append(k)
        elif largest[k] == 0:
            out[names[k]] = "is zero in every row"
        else:
            weights = np.linalg.lstsq(Z[:, kept], column, rcond=None)[0]
            on = [names[j] for j, w in zip(kept, weights, strict=True) if abs(w) > 1e-7]
            out[names[k]] = "is constant" if on == [INTERCEPT] else f"depends on {listing(on)}"
    return out


def told(
    coding: Coding, X: np.ndarray, ready: Prepared, celltypes: tuple[str, ...]
) -> tuple[Coding, np.ndarray, tuple[str, ...]]:
    """The columns that the rows can tell, where cell types lack combinations that others have.

    Without such combinations, and where covariates differ within a donor (a sample, of donors under
    several conditions), what came: columns that are aliased for another reason stay, for
    :func:`check_design`.

    Returns
    -------
    Coding; ndarray, shape (n, p) : of the columns kept
    tuple of str : what to know
    """
    same, roles = (coding, X, ()), ready.roles
    celltype = roles.celltype
    if celltype is None or celltype not in coding.frame.columns or not np.isfinite(X).all():
        return same
    gone = aliased(X, coding.names)
    if not gone:
        return same
    sample = [ready.labels[name].codes for name in (roles.donor, roles.within) if name is not None]
    others = coding.frame.drop(columns=celltype).groupby(sample).nunique(dropna=False)
    if (others > 1).any(axis=None):
        return same
    every = in_every_type(coding, celltype, celltypes)
    if not np.isfinite(every).all() or aliased(every, coding.names):
        return same
    kept = tuple(k for k, name in enumerate(coding.names) if name not in gone)
    own = Coding(coding.fixed, coding.frame, coding.context, coding.engine, coding.trusted, kept)
    note = (
        f"some cell types have no rows for combinations that the formula asks for: "
        f"{listing(list(gone))} left out, and what rests on them is NaN"
    )
    return own, X[:, kept], (note,)


def in_every_type(coding: Coding, celltype: str, celltypes: tuple[str, ...]) -> np.ndarray:
    """Design of every row in every cell type, types one after the other.

    One row is all of them where nothing else tells them apart.
    """
    own = coding.frame if len(coding.frame.columns) > 1 else coding.frame.iloc[:1]
    size, n = len(celltypes), len(own)
    frame = pd.concat([own] * size, ignore_index=True)
    codes = np.repeat(np.arange(size), n)
    frame[celltype] = pd.Categorical.from_codes(codes, categories=pd.Index(celltypes, dtype=object))
    return coding.matrix(frame)


def mean_rows(
    coding: Coding, X: np.ndarray, celltype: str | None, celltypes: tuple[str, ...]
) -> np.ndarray:
    """Rows L_c: L_c b is the mean of cell type c at the mean of the covariates."""
    size = len(celltypes)
    if celltype is None:
        return np.hstack([np.eye(size), np.tile(X[:, size:].mean(axis=0), (size, 1))])
    if celltype not in coding.frame.columns:
        return np.tile(X.mean(axis=0), (size, 1))
    # every row once per cell type, the other columns as observed
    every = in_every_type(coding, celltype, celltypes)
    return every.reshape(size, -1, X.shape[1]).mean(axis=1)


# ---------------------------------------------------------------------------------------------
# random effects


def random(
    spec: FormulaSpec, ready: Prepared, X: np.ndarray, H: np.ndarray, celltypes: tuple[str, ...]
) -> list[tuple[str, tuple[str, ...], RandomComponent]]:
    """Name, levels and component of every random variance."""
    Q = np.linalg.qr(X)[0]
    out = []
    for term in spec.random:
        _check_term(term, ready)
        codes, levels = _crossed([ready.labels[name] for name in term.groups])
        _check_groups(term, codes, levels, ready)
        parts = [(term.label, np.ones(len(codes)))]
        if term.celltype_specific:
            parts = [(f"{term.label}[{c}]", H[:, k]) for k, c in enumerate(celltypes)]
        for name, values in parts:
            used = np.unique(codes[values != 0])
            if len(used) < 2:
                raise DataError(
                    f"random effect {name!r} has one level, {levels[used[0]]!r}: a variance needs "
                    "more; leave it out"
                )
            renumbered = np.searchsorted(used, codes).clip(max=len(used) - 1)
            component = RandomComponent(renumbered, np.array(values, dtype=np.float64))
            _check_confounded(name, component, Q)
            out.append((name, tuple(levels[k] for k in used), component))
    return out


def _check_term(term: RandomTerm, ready: Prepared) -> None:
    roles = ready.roles
    expected = roles.celltype or "celltype"
    if term.celltype_specific and term.left != expected:
        raise FormulaError(
            f"{term}: there are no random slopes: left of the | stands 1 or the cell type column, "
            f"{expected!r}; {term.left!r} is a fixed effect, + {quote(term.left)}, or one for each "
            f"cell type, + {quote(term.left)}:{quote(expected)}"
        )
    if term.groups == (roles.donor,):
        raise FormulaError(
            f"{term}: the donor's effects are the model itself; choose them by structure= ('hom' "
            "is the effect shared by all cell types, 'free' adds one per cell type)"
        )
    fixed = [name for name in term.groups if name in roles.fixed and len(term.groups) == 1]
    if fixed and isinstance(ready.frame[fixed[0]].dtype, pd.CategoricalDtype):
        raise FormulaError(
            f"{fixed[0]!r} is a fixed effect and a random effect: keep one of the two"
        )


def _crossed(groups: Sequence[pd.Categorical]) -> tuple[np.ndarray, list[str]]:
    """Codes and names of the crossed levels in use."""
    table = np.column_stack([np.asarray(group.codes) for group in groups])
    levels, codes = np.unique(table, axis=0, return_inverse=True)
    names = [
        crossed(str(g.categories[k]) for g, k in zip(groups, row, strict=True)) for row in levels
    ]
    return codes.ravel().astype(np.int64), names


def _check_groups(
    term: RandomTerm, codes: np.ndarray, levels: Sequence[str], ready: Prepared
) -> None:
    """Levels must be fewer than donors or rows to be told apart from the donor's own effects."""
    if len(levels) < 2:
        raise DataError(
            f"random effect {term.label!r} has one level, {levels[0]!r}: leave it out of the model"
        )
    donors = np.asarray(ready.labels[ready.roles.donor].codes)
    pairs = np.unique(np.column_stack([donors, codes]), axis=0)
    if len(pairs) == len(levels) == donors.max() + 1:
        raise DataError(
            f"random effect {term.label!r} has one level per donor: it cannot be told apart from "
            "the donor's own effect; leave it out"
        )
    if len(levels) == len(codes):
        raise DataError(
            f"random effect {term.label!r} has one level per row: that is structure='iid', not a "
            "random term"
        )


def share_beside(component: RandomComponent, Q: np.ndarray) -> float:
    """Share of a random effect that lies beside the fixed part, orthonormal columns Q (n, p)."""
    total = float((component.values**2).sum())
    projected = np.zeros((int(component.codes.max()) + 1, Q.shape[1]))
    np.add.at(projected, component.codes, component.values[:, None] * Q)
    return 1.0 - float((projected**2).sum()) / total


def _check_confounded(name: str, component: RandomComponent, Q: np.ndarray) -> None:
    """A random effect inside the span of the fixed part has no variance left."""
    if share_beside(component, Q) <= RANK_TOLERANCE:
        raise DataError(
            f"random effect {name!r} is fully explained by the fixed part: leave the fixed terms "
            "that separate its levels, or the random term, out"
        )
