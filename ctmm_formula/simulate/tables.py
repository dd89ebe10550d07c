"""Pseudobulk tables of one gene with known parameters.

The tables follow the model as it is written (see :mod:`ctmm_formula.engine.model`):

    y_ic = beta_c + x_i'b + alpha_i + Gamma_ic + u_batch(i) + delta_ic
    alpha_i ~ N(0, sigma2)   Gamma_i ~ N(0, V)   u ~ N(0, r)   delta_ic ~ N(0, nu_ic)

with nu_ic = s2_ic / n_ic, the variance between cells over the number of cells.  The noise variance
a study sees is itself measured; ``noise_error`` says how badly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from ..arguments import MOST_DRAWS, Rng, choose, floats, generator, on_off, whole_number
from ..engine.draws import draw
from ..engine.model import Model, RandomComponent, build_model
from ..errors import CTMMError
from ..structures import SHARED
from .limits import (
    LARGEST,
    LIMITS,
    drawing,
    in_order,
    measured,
    needs_batches,
    number,
    room,
    shaped,
)
from .noise import CellNumbers, NoiseError, log_uniform_cells, spread_cells


class Pseudobulk(NamedTuple):
    """Simulated tables of one gene: cell type-specific (`ctp`) and overall (`op`) pseudobulk."""

    ctp: pd.DataFrame
    op: pd.DataFrame


def simulate_pseudobulk(
    n_donors: int = 50,
    celltypes: int | Sequence[str] = 4,
    *,
    sigma2: float = 0.25,
    V: ArrayLike = 0.0,
    beta: ArrayLike = 0.0,
    n_pcs: int = 2,
    effects: Mapping[str, float] | None = None,
    n_batches: int = 8,
    batch_variance: float = 0.0,
    cells: CellNumbers | float | None = None,
    min_cells: int = 2,
    cell_variance: ArrayLike = 4.0,
    noise_error: NoiseError | None = None,
    missing: float = 0.0,
    rng: Rng = None,
) -> Pseudobulk:
    """Simulate pseudobulk expression of one gene with known parameters.

    Parameters
    ----------
    n_donors : int
    celltypes : int or sequence of str
        Number C of cell types (named T1, T2, ...) or their names.
    sigma2 : float
        Variance between donors that all cell types share.
    V : float, or array, shape (C,) or (C, C)
        Cell type-specific variance: v I, diag(V), or a covariance matrix.  A Series or DataFrame
        with the names of the cell types as labels is put in their order, here and below.
    beta : float or array, shape (C,)
        Mean of each cell type.
    n_pcs : int
        Number of standard normal covariates PC1, PC2, ...
    effects : dict, optional
        Slopes of ``"sex"`` (M against F) and ``"PC1"``, ...; those not named are 0.
    n_batches : int
        Donors are dealt to this many batches at random, as evenly as possible.
    batch_variance : float
    cells : callable or float, optional
        A number: all pairs have so many.  Or draws the numbers of cells, by default
        ``log_uniform_cells(10, 120)``; see also :func:`negative_binomial_cells`.
    min_cells : int
        Pairs of donor and cell type with fewer cells are missing.
    cell_variance : float, or array, shape (C,) or (n_donors, C)
        Variance s2 between the cells of a donor and cell type.
    noise_error : callable, optional
        Turns the true noise variances into measured ones (column ``nu``): :func:`beta_error`,
        :func:`cell_error`; none by default.
    missing : float
        Probability of a pair to be missing whatever its cells.
    rng : numpy Generator or seed, optional

    Returns
    -------
    Pseudobulk
        ``ctp``: one row per donor and cell type, columns donor, celltype, batch, sex, PC1, ...,
        n_cells, expr, nu.  ``op``: one row per donor, with the share prop_<cell type> of each
        cell type P_ic, expr = sum_c P_ic y_ic and nu = sum_c P_ic^2 nu_ic.  A donor without any
        pair is in neither.

    Raises
    ------
    CTMMError
        An unknown covariate in `effects`, a negative variance, arrays of wrong shape, counts that
        are none, cell types of one name, or too few pairs for the means and covariates.

    Examples
    --------
    >>> data = simulate_pseudobulk(20, ["T", "B"], V=[0.5, 0.1], effects={"sex": 0.3}, rng=1)
    >>> list(data.ctp)
    ['donor', 'celltype', 'batch', 'sex', 'PC1', 'PC2', 'n_cells', 'expr', 'nu']
    >>> data.ctp.shape, data.op.shape
    ((40, 9), (20, 10))
    """
    rng = generator(rng)
    noise_error = drawing("noise_error", noise_error, "beta_error(5)")
    study = make_study(
        rng, n_donors, celltypes, sigma2=sigma2, V=V, beta=beta, n_pcs=n_pcs, effects=effects,
        n_batches=n_batches, batch_variance=batch_variance, cells=cells, min_cells=min_cells,
        cell_variance=cell_variance, missing=missing,
    )  # fmt: skip
    n_cells, nu = study.obs["n_cells"].to_numpy(), study.nu
    ctp = study.obs.assign(expr=study.draw(nu, rng))
    ctp["nu"] = measured(noise_error(rng, nu, n_cells), nu.shape) if noise_error else nu
    return Pseudobulk(ctp, overall_table(ctp, study.celltypes))


STATUS, LEVELS = "status", ("control", "case")
"""Column of a condition, and its levels."""


CONDITION_LIMITS = {
    "share": (1e-9, 1.0 - 1e-9, "a share above 0 and below 1"),
    "cells": (1e-6, 1e6, "above 0, up to 1e6"),
    "variance": (0.0, 1e6, "from 0 to 1e6"),
}
"""Of a condition: least, most, and these in words."""


class Condition(NamedTuple):
    """A condition that some donors have, or under which every donor is seen as well.

    Attributes
    ----------
    effect : float or array, shape (C,)
        On the means of the cell types.
    share : float
        Share of donors who have it; they are drawn at random.
    cells : float
        Factor of their numbers of cells.
    variance : float
        Factor of all their variances between donors.
    response : float or array, shape (C,)
        With `paired`, variance between donors of what each level adds: one value, shared by all
        cell types; several, of each type's own.
    paired : bool
        Every donor is seen under both levels; `share` and `variance` have no part.

    Examples
    --------
    >>> from ctmm_formula import simulate
    >>> stimulated = simulate.Condition(effect=0.5, paired=True, response=0.2)
    >>> genes = simulate.simulate_genes(1, 10, 2, condition=stimulated, rng=1)
    >>> genes.obs.groupby("status", observed=True)["donor"].nunique().tolist()
    [10, 10]
    """

    effect: ArrayLike = 0.0
    share: float = 0.5
    cells: float = 1.0
    variance: float = 1.0
    response: ArrayLike = 0.0
    paired: bool = False

    def checked(self, C: int) -> Condition:
        """The same as numbers, of C cell types.

        Raises
        ------
        CTMMError
            A value out of its limits, or not one number or one for each cell type.
        """
        numbers = {
            name: number(f"{name} of the condition", getattr(self, name), limits)
            for name, limits in CONDITION_LIMITS.items()
        }
        paired = on_off("paired of the condition", self.paired)
        own = {
            name: floats(f"{name} of the condition", getattr(self, name))
            for name in ("effect", "response")
        }
        for name, values in own.items():
            if values.shape not in ((), (C,)):
                raise CTMMError(
                    f"{name} of the condition has shape {values.shape} for {C} cell types: give "
                    "one number, or one for each"
                )
        if (own["response"] < 0.0).any():
            raise CTMMError("response of the condition is a variance: give 0 or more")
        return self._replace(
            effect=own["effect"], response=own["response"], paired=paired, **numbers
        )

    def covariance(self, A: np.ndarray) -> np.ndarray:
        """Of the effects of a donor under both levels, (2 C, 2 C)."""
        if not self.paired:
            return np.kron(np.diag([1.0, self.variance]), A)
        own = floats("response", self.response)
        return np.kron(np.ones((2, 2)), A) + np.kron(
            np.eye(2), np.full(A.shape, own) if own.ndim == 0 else np.diag(own)
        )

    def levels(self, n_donors: int, rng: np.random.Generator) -> np.ndarray:
        """Levels of the rows of donors, (N, 1), or (N, 2) where every donor has both."""
        if self.paired:
            return np.tile([0, 1], (n_donors, 1))
        return (rng.permutation(n_donors) < round(self.share * n_donors)).astype(int)[:, None]


class Study(NamedTuple):
    """Donors, pairs and parameters, before any response.

    Attributes
    ----------
    obs : DataFrame, n rows
    celltypes : tuple of str
    nu : ndarray, shape (n,)
    model : Model
        Its one component is A.
    fixed : ndarray, shape (p,)
    truth : Series
    """

    obs: pd.DataFrame
    celltypes: tuple[str, ...]
    nu: np.ndarray
    model: Model
    fixed: np.ndarray
    truth: pd.Series

    def draw(self, nu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One response (n,) with these noise variances."""
        model = self.model.with_response(self.model.y, nu[self.model.order])
        return model.unsort(draw(model, [1.0, self.truth["batch"]], self.fixed, rng))


def known_keywords(function: Callable[..., Any], study: Mapping[str, Any]) -> None:
    """An error that names `function` where `study` is not for :func:`make_study`."""
    own, shared = signature(function).parameters, signature(make_study).parameters
    known = [name for name in dict.fromkeys([*own, *shared]) if name != "study"]
    for name in study:
        choose(f"argument of {function.__name__}", name, known)


def make_study(
    rng: np.random.Generator,
    n_donors: int,
    celltypes: int | Sequence[str],
    *,
    sigma2: float = 0.25,
    V: ArrayLike = 0.0,
    beta: ArrayLike = 0.0,
    n_pcs: int = 2,
    effects: Mapping[str, float] | None = None,
    n_batches: int = 8,
    batch_variance: float = 0.0,
    cells: CellNumbers | float | None = None,
    min_cells: int = 2,
    cell_variance: ArrayLike = 4.0,
    missing: float = 0.0,
    condition: Condition | None = None,
) -> Study:
    """Arguments as in :func:`simulate_pseudobulk`; a `condition` is the column "status"."""
    names = _names(celltypes)
    C = len(names)
    n_donors = whole_number("n_donors", n_donors, 1, MOST_DRAWS)
    n_pcs = whole_number("n_pcs", n_pcs, 0, MOST_DRAWS)
    n_batches = whole_number("n_batches", n_batches, 0, MOST_DRAWS)
    room(n_donors=n_donors, columns=C + n_pcs)
    sigma2, missing = number("sigma2", sigma2), number("missing", missing)
    batch_variance = number("batch_variance", batch_variance)
    min_cells = whole_number("min_cells", min_cells, 0)
    needs_batches(batch_variance, n_batches)
    V = floats("V", in_order("V", V, names))
    V = shaped("V", V, (C, C)) if np.ndim(V) == 2 else np.diag(shaped("V", V, (C,)))
    A = sigma2 + V
    if not np.abs(A).max() <= LARGEST:
        raise CTMMError("V= and sigma2= must lie within 1e100: squares of more are no numbers")
    means = shaped("beta", in_order("beta", beta, names), (C,))
    donors = _donor_table(n_donors, n_batches, n_pcs, rng)
    slopes = _slopes(donors, {} if effects is None else effects)

    level = np.zeros((n_donors, 1), dtype=int)
    if condition is not None:
        condition = condition.checked(C)
        level = condition.levels(n_donors, rng)
    shape = n_donors, level.shape[1] * C  # cell types of one level after the other
    n_cells, level = cell_numbers(cells, shape, rng), np.repeat(level, C, axis=1)
    if condition is not None:
        fewer = np.maximum(np.rint(condition.cells * n_cells), 2).astype(np.int64)
        n_cells = np.where(level == 1, fewer, n_cells)
    keep = (n_cells >= max(min_cells, 2)) & (rng.random(shape) >= missing)
    donor, celltype = np.nonzero(keep)
    n_cells, level, celltype = n_cells[keep], level[keep], celltype % C
    s2 = shaped("cell_variance", in_order("cell_variance", cell_variance, names), (n_donors, C))
    nu = s2[donor, celltype] / n_cells
    if (A != A.T).any() or (nu < 0).any():
        raise CTMMError("V must be symmetric and cell_variance >= 0")

    H = types = np.eye(C)[celltype]
    changes = np.zeros((len(H), 0))
    if condition is not None:
        A, changes = condition.covariance(A), types * (level == 1)[:, None]
        H = np.eye(2 * C)[level * C + celltype]
    covariates = donors.assign(sex=donors["sex"] == "M")[list(slopes)].to_numpy(dtype=float)
    X = np.column_stack([types, covariates[donor], changes])
    if len(X) < X.shape[1]:
        raise CTMMError(
            f"{len(X)} pairs of donor and cell type are too few for {X.shape[1]} means and "
            "covariates: simulate more donors, or fewer missing pairs"
        )
    batch = RandomComponent(pd.factorize(donors["batch"])[0][donor], np.ones(len(donor)))
    codes = np.unique(donor, return_inverse=True)[1]
    model = build_model(np.zeros(len(nu)), nu, X, H, codes, A[None], [batch], types=types)
    obs = donors.iloc[donor].reset_index(drop=True)
    obs.insert(1, "celltype", np.array(names, dtype=object)[celltype])
    obs["n_cells"] = n_cells
    truth = truth_of(names, sigma2, V, means) | {"batch": float(batch_variance), **slopes}
    fixed = np.concatenate([means, list(slopes.values())])
    if condition is not None:
        obs[STATUS] = pd.Categorical.from_codes(level, categories=pd.Index(LEVELS, dtype=object))
        own = shaped("effect", condition.effect, (C,))
        fixed = np.concatenate([fixed, own])
        truth |= {f"effect[{name}]": float(e) for name, e in zip(names, own, strict=True)}
    return Study(obs, tuple(names), nu, model, fixed, pd.Series(truth, dtype=float))


def celltype_names(count: int) -> list[str]:
    """Names of simulated cell types, which sort as they are numbered.

    >>> celltype_names(2), celltype_names(10)[::9]
    (['T1', 'T2'], ['T01', 'T10'])
    """
    digits = len(str(count))
    return [f"T{c:0{digits}d}" for c in range(1, count + 1)]


def _names(celltypes: int | Sequence[str]) -> list[str]:
    """Names of the cell types."""
    if isinstance(celltypes, str) or np.ndim(celltypes) == 0:
        count = whole_number("celltypes", celltypes, 1, 10_000)
        return celltype_names(count)
    names = [str(name) for name in celltypes]  # type: ignore[union-attr]
    if not names or len(set(names)) < len(names):
        raise CTMMError(f"celltypes= must be names that differ, or a number, got {names}")
    return names


def truth_of(
    names: Sequence[str], sigma2: float, V: np.ndarray, means: np.ndarray
) -> dict[str, float]:
    """Parameters by the names that results have; covariances where there are any.

    >>> truth_of(["T", "B"], 0.2, np.diag([0.5, 0.1]), np.zeros(2))
    {'hom': 0.2, 'V[T]': 0.5, 'V[B]': 0.1, 'mean[T]': 0.0, 'mean[B]': 0.0}
    """
    out = {SHARED: float(sigma2)}
    for r in range(len(names)):
        for c in range(r):
            if V[r, c]:
                out[f"V[{names[r]},{names[c]}]"] = float(V[r, c])
        out[f"V[{names[r]}]"] = float(V[r, r])
    return out | {f"mean[{name}]": float(m) for name, m in zip(names, means, strict=True)}


def cell_numbers(
    cells: CellNumbers | float | None, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Numbers of cells of every pair."""
    if isinstance(cells, Real) and not isinstance(cells, bool):
        cells = spread_cells(float(cells))
    drawn = drawing("cells", cells, "spread_cells(50, 10), a number of 2 or more")
    n_cells = floats("numbers drawn by cells=", (drawn or log_uniform_cells())(rng, shape))
    whole = n_cells == np.floor(n_cells)
    if n_cells.shape != shape or not (whole & (n_cells <= LIMITS["cells"][1])).all():
        raise CTMMError(
            f"cells= must draw whole numbers up to 1e12 of shape {shape}, got shape "
            f"{n_cells.shape} with {n_cells.flat[:3].tolist()}, ..."
        )
    return n_cells.astype(np.int64)


def _donor_table(
    n_donors: int, n_batches: int, n_pcs: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Donors with batch, sex and standard normal covariates."""
    batch = rng.permutation(np.arange(n_donors) % max(n_batches, 1))
    table = {
        "donor": [f"d{i + 1:03d}" for i in range(n_donors)],
        "batch": [f"b{b + 1:02d}" for b in batch],
        "sex": rng.choice(["F", "M"], n_donors),
    }
    return pd.DataFrame(table | {f"PC{k + 1}": rng.standard_normal(n_donors) for k in range(n_pcs)})


def _slopes(donors: pd.DataFrame, effects: Mapping[str, float]) -> dict[str, float]:
    """Slope of every covariate, 0 where `effects` does not name it."""
    covariates = [str(name) for name in donors if name not in ("donor", "batch")]
    if not isinstance(effects, Mapping):
        raise CTMMError(f"effects= must be a dict covariate -> slope, got {effects!r}")
    for name in effects:
        choose("covariate in effects", name, covariates)
    return {name: number("effects", effects.get(name, 0.0)) for name in covariates}


def overall_table(ctp: pd.DataFrame, celltypes: Sequence[str]) -> pd.DataFrame:
    """Overall pseudobulk of a cell type-specific table: cells, not cell types, weigh equally.

    Parameters
    ----------
    ctp : DataFrame
        Columns donor, celltype, n_cells, expr, nu; all others must be constant within donors.
    celltypes : sequence of str
        Order of the columns prop_<cell type>.

    Returns
    -------
    DataFrame
        One row per donor, with P_ic = n_ic / n_i over the pairs in the table, expr = sum_c P_ic
        y_ic, nu = sum_c P_ic^2 nu_ic, n_cells = n_i.

    Examples
    --------
    >>> ctp = pd.DataFrame({"donor": ["a", "a"], "celltype": ["T", "B"], "n_cells": [30, 10],
    ...                     "expr": [1.0, 2.0], "nu": [0.16, 0.32]})
    >>> op = overall_table(ctp, ["T", "B"])
    >>> op[["prop_T", "prop_B", "expr", "nu"]].iloc[0].round(3).tolist()
    [0.75, 0.25, 1.25, 0.11]
    """
    share, op = overall_obs(ctp.drop(columns=["expr", "nu"]), celltypes)
    donor = pd.factorize(ctp["donor"])[0]
    for name, weight in (("expr", share), ("nu", share**2)):
        op[name] = np.bincount(donor, weights=weight * ctp[name])
    return op


def overall_obs(obs: pd.DataFrame, celltypes: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Share of every pair in its donor (n,), and the table of donors with prop_<cell type>."""
    cells = obs["n_cells"]
    share = cells / cells.groupby(obs["donor"]).transform("sum")
    if "proportion" in obs:
        share = obs["proportion"]
    names = [f"prop_{name}" for name in celltypes]
    parts = obs.drop(columns=["celltype", "proportion"], errors="ignore").assign(
        **{f"prop_{name}": share * (obs["celltype"] == name) for name in celltypes}
    )
    how = {name: "sum" if name in ("n_cells", *names) else "first" for name in parts}
    del how["donor"]
    table = parts.groupby("donor", sort=False).agg(how).reset_index()
    others = [name for name in table if name not in ("n_cells", *names)]
    return share.to_numpy(dtype=float), table[[*others, *names, "n_cells"]]
