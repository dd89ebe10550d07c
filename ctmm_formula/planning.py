"""Plan a study: how often tests are positive, by simulation over a grid of settings.

Replicates of one setting are genes of one simulated study, so that they share the design and its
kernels; :data:`PER_STUDY` of them, then donors, numbers of cells and batches are drawn anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import delayed

from .arguments import MOST_DRAWS, Rng, choose, floats, generator, on_off, threads, whole_number
from .blas import one_thread
from .engine.estimators import ESTIMATORS
from .engine.likelihood import LIKELIHOODS
from .errors import CTMMError, CTMMWarning
from .inference.fit import JACKKNIFE
from .inference.tests import BY, DRAWS, GROUP_TESTS, LIKELIHOOD, TESTS, WITHIN
from .progress import checked_progress, progress_bar
from .scan.columns import BY_TYPE
from .scan.genes import fit_genes
from .scan.job import spread
from .simulate import (
    Condition,
    CountCells,
    SimulatedGenes,
    cell_error,
    gamma_cells,
    relative_error,
    simulate_genes,
    spread_cells,
)
from .simulate.limits import ABOVE_0, LIMITS, NOT_NEGATIVE, needs_batches, number
from .simulate.tables import CONDITION_LIMITS, STATUS, celltype_names
from .structures import resolve

PER_STUDY = 25
"""Replicates that share donors, numbers of cells and batches."""


class Asked(NamedTuple):
    """A test of a scan: by which method, its name there, and which of its p values.

    `method` is "" where any will do, `detail` "" for the test's main p value; `study` is what the
    test needs of donors: "cases", "by" (cases with variances of their own), "within" (the same
    donors under two conditions), or "".
    """

    method: str
    test: str
    detail: str
    study: str = ""


def known_tests() -> dict[str, Asked]:
    """Tests of :func:`power` by name, read off the registry.

    A test by the fit's estimates goes by REML, and by "ml:", "he:" or "robust:" before its name by
    these methods where it can; the further p values of a test are tests of their own.

    >>> [name for name in known_tests() if "score" in name], known_tests()["he:jackknife"][:3]
    (['score', 'score_cauchy', 'score_celltype'], ('he', 'jackknife', ''))
    >>> known_tests()["effects_mean"]
    Asked(method='', test='effects:status', detail='mean', study='cases')
    """
    out = {}
    for name, test in TESTS.items():
        fitted = bool(test.needs & {LIKELIHOOD, JACKKNIFE})  # else it needs no estimate
        methods = [m for m in ESTIMATORS if LIKELIHOOD not in test.needs or m in LIKELIHOODS]
        for method in ["reml", *(m for m in methods if m != "reml")] if fitted else [""]:
            prefix = f"{method}:" if method not in ("", "reml") else ""
            for detail in ("", *test.details):
                asked = f"{prefix}{name}{f'_{detail}' if detail else ''}"
                out[asked] = Asked(method, name, detail)
    for detail in ("", "mean", "heterogeneity", BY_TYPE):
        name = f"effects_{detail}" if detail else "effects"
        out[name] = Asked("", f"effects:{STATUS}", detail, "cases")
    for name, test in GROUP_TESTS.items():
        study = BY if BY in test.needs else WITHIN
        for detail in ("", *test.details):
            out[f"{name}_{detail}" if detail else name] = Asked("robust", name, detail, study)
    return out


SETTINGS = (
    "n_donors", "celltypes", "V", "sigma2", "beta", "cells", "fold", "counts", "dispersion",
    "cell_variance", "cell_cv", "noise_cv", "kurtosis", "missing", "n_batches", "batch_variance",
    "kind", "structure", "effect", "cases", "case_cells", "case_variance", "response", "paired",
)  # fmt: skip
"""Settings of a grid, in the order of the columns."""

CASES: dict[str, Any] = {
    "effect": 0.0, "cases": 0.5, "case_cells": 1.0, "case_variance": 1.0, "response": 0.0,
    "paired": False,
}  # fmt: skip
"""Settings of a condition, with their defaults."""

CONTINUOUS: dict[str, Any] = {
    "cell_variance": 4.0, "cell_cv": 0.0, "noise_cv": 0.0, "kurtosis": 0.0,
}  # fmt: skip
"""Settings of cells that are not counted, with their defaults."""


COUNTED: dict[str, Any] = {"dispersion": 0.5}
"""The same of counts."""


def power(
    n_donors: Any = 50,
    celltypes: Any = 4,
    *,
    V: Any = 0.0,
    sigma2: Any = 0.25,
    beta: Any = 0.0,
    cells: Any = 50.0,
    fold: Any = 1.0,
    counts: Any = 1.0,
    dispersion: Any = COUNTED["dispersion"],
    cell_variance: Any = CONTINUOUS["cell_variance"],
    cell_cv: Any = CONTINUOUS["cell_cv"],
    noise_cv: Any = CONTINUOUS["noise_cv"],
    kurtosis: Any = CONTINUOUS["kurtosis"],
    missing: Any = 0.0,
    n_batches: Any = 0,
    batch_variance: Any = 0.0,
    kind: Any = "ctp",
    structure: Any = "free",
    effect: Any = CASES["effect"],
    cases: Any = CASES["cases"],
    case_cells: Any = CASES["case_cells"],
    case_variance: Any = CASES["case_variance"],
    response: Any = CASES["response"],
    paired: Any = CASES["paired"],
    tests: str | Sequence[str] = ("score",),
    alpha: float = 0.05,
    n_sim: int = 200,
    one_step: bool = False,
    n_bootstrap: int = 199,
    n_jobs: int | None = None,
    rng: Rng = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """How often tests are positive: power where there is an effect, false positives where none.

    Every setting takes one value or a list of values; all combinations of the lists are
    simulated.  A tuple or array is one value: ``V=[0, (0.05, 0.02, 0.02, 0.02)]``.

    Parameters
    ----------
    n_donors : int
    celltypes : int
        Number C of cell types.
    V : float, or tuple of C floats, or (C, C) covariance
        Cell type-specific variance between donors, of log-fold effects (of expression itself with
        ``counts=None``).  With 0 in all of them the rates of the tests of V are false positives.
    sigma2 : float
        Variance between donors that cell types share, on the same scale.
    beta : float, or tuple of C floats
        Means of the cell types, on the same scale; where they are equal, the rate of "mean" is of
        false positives.  Where they differ, so do variances of log(1 + CP10K), and V = 0 of
        log-fold effects is not V = 0 there.
    cells : float
        Mean number of cells of a donor and cell type.
    fold : float
        Most cells over fewest, log-uniform between but never below 2; 1 for balanced cells.
    counts : float, or None
        Mean counts of the gene in a cell (of 5,000 counts in all): cells are negative binomial and
        analysed as log(1 + counts per 10,000), see :class:`~ctmm_formula.simulate.CountCells`.
        None: cells have any distribution, by the four settings below.
    dispersion : float
        Of the counts: variance mean + dispersion mean^2; none with ``counts=None``.
    cell_variance : float
        With ``counts=None``, as the next three: variance between the cells of a donor and cell
        type, in units of sigma2 and V.
    cell_cv : float
        Its coefficient of variation between donors and cell types.
    noise_cv : float
        Coefficient of variation of further errors in the measured noise variances, 0 to below 1.
    kurtosis : float, or None
        Excess kurtosis of cells, from which noise variances are measured: 0 normal, above 0
        skewed with heavy tails.  None: noise variances are known.
    missing : float
        Share of pairs of donor and cell type that are missing.
    n_batches : int
        0: no batches; else donors are dealt to so many, and the fit has ``(1|batch)``.
    batch_variance : float
        Where there are batches; with ``n_batches=[0, 8]`` it counts in the second.
    kind : {"ctp", "op"}
        Cell type-specific or overall pseudobulk.
    structure : str, or dict label -> (C, C) matrix, or tuple of matrices
        That is fitted and tested.
    effect : float, or tuple of C floats
        Effect of a condition on the means of the cell types, on the scale of `beta`; the fit then
        has ``C(celltype) * status``, as it has with the other settings of a condition and with its
        tests.
    cases : float
        Share of the donors who have the condition.
    case_cells : float
        Numbers of cells of cases over those of the others.
    case_variance : float
        All variances between cases (of sigma2 and V) over those between the others.
    response : float, or tuple of C floats
        With ``paired=True``, variance between donors of what each condition adds: shared by all
        cell types, or of each type's own.
    paired : bool
        Every donor is seen under both conditions, and the fit is ``within=``; `cases` and
        `case_variance` have no part.
    tests : str or sequence of str
        - "score" (the sum over cell types), "score_celltype" (a row for each), "score_cauchy"
          (sum and cell types combined)
        - "lrt", "wald", "jackknife", "bootstrap" by REML; "ml:lrt", "ml:wald", ...; "he:jackknife"
        - of means: "mean", as ``test_mean`` (robust); "mean_jackknife" by REML,
          "ml:mean_jackknife", "he:mean_jackknife"
        - of a condition: "effects" (none in any cell type), "effects_mean" (of their mean),
          "effects_heterogeneity" (the same in all types), "effects_celltype" (a row for each)
        - of variances of cases and others, fitted ``by=``: "groups", "groups_shared",
          "groups_celltype"; of responses with ``paired=True``: "response", "response_shared",
          "response_specific", "response_celltype"
    alpha : float
        Level; for a scan of 10,000 genes with Bonferroni's rule 0.05 / 10_000.
    n_sim : int
        Simulated genes for each combination.
    one_step : bool
        One-step jackknives in place of exact ones.
    n_bootstrap : int
        Draws of "bootstrap", 1 / alpha or more: its smallest p value is 1 / (n_bootstrap + 1).
    n_jobs : int, optional
        Workers; by default 1, or what ``joblib.parallel_config`` says.  The same numbers.
    rng : numpy Generator or seed, optional
    progress : bool, optional
        Show a progress bar; by default in notebooks and terminals, of work that takes a while.

    Returns
    -------
    DataFrame
        A row for each combination and test: the settings (as text, "0" and "0.3, 0.1", where one
        of a column is no number), ``test``, ``alpha``, ``rate`` (share of the tested genes with
        p < alpha), ``se`` (binomial standard error of the rate), ``n`` (genes tested),
        ``n_failed`` (genes without a p value: all of them, and no rate, where the structure has
        nothing to test, such as "lrt" of "hom").

    Raises
    ------
    CTMMError
        Unknown tests, settings that are none, or one of which no simulated study can be fitted.
        Where some cannot, a warning counts them.

    Notes
    -----
    The standard error is (r (1 - r) / n)^1/2 with r moved towards 1/2 by two positive and two
    negative outcomes (Agresti and Coull 1998), so that it is not 0 at a rate of 0 or 1.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> table = ctmm.power([20, 40], V=[0, (0.3, 0.1, 0.1, 0.1)], tests="score", n_sim=25, rng=1)
    >>> table[["n_donors", "V", "test", "rate", "n"]]
       n_donors                   V   test  rate   n
    0        20                   0  score  0.04  25
    1        20  0.3, 0.1, 0.1, 0.1  score  1.00  25
    2        40                   0  score  0.08  25
    3        40  0.3, 0.1, 0.1, 0.1  score  1.00  25
    """
    given = locals()
    grid = [
        dict(zip(SETTINGS, values, strict=True))
        for values in product(*(_values(name, given[name]) for name in SETTINGS))
    ]
    names = list(tests) if np.iterable(tests) and not isinstance(tests, str) else [tests]
    known = known_tests()
    if not names:
        raise CTMMError(f"tests= is empty: choose from {', '.join(known)}")
    asked = [known[choose("test", name, known)] for name in names]
    alpha = number("alpha", alpha, (1e-300, 1.0 - 1e-9, "a level above 0 and below 1"))
    one_step, progress = on_off("one_step", one_step), checked_progress(progress)
    n_sim = whole_number("n_sim", n_sim, 1, MOST_DRAWS)
    # of fewer draws no p value is below alpha
    drawn = any(DRAWS in TESTS[one.test].needs for one in asked if one.test in TESTS)
    fewest = int(1.0 / alpha) if drawn else 1
    n_bootstrap = whole_number("n_bootstrap", n_bootstrap, fewest, MOST_DRAWS)
    options = {"one_step": one_step, "n_bootstrap": n_bootstrap}
    _check_grid(grid)
    _check_studies(grid, dict(zip(names, asked, strict=True)))
    studies = -(-n_sim // PER_STUDY)
    streams: Any = generator(rng).bit_generator.seed_seq
    seeds = [seed.spawn(studies) for seed in streams.spawn(len(grid))]
    work = [
        _Study(grid[k], names, min(PER_STUDY, n_sim - at * PER_STUDY), seeds[k][at], options)
        for k in range(len(grid))
        for at in range(studies)
    ]
    for k in range(len(grid)):
        _try(work[k * studies : (k + 1) * studies], grid)
    tasks = (delayed(_attempt)(study) for study in work)
    run = spread(tasks, None if n_jobs is None else threads(n_jobs))
    found = []
    with progress_bar(progress, "studies", "study", len(work)) as done:
        for one in run:
            found.append(one)
            done(1)
    lost = [reason for _, reason in found if reason]
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(work)} simulated studies could not be fitted, their genes count "
            f"as n_failed: {lost[0]}",
            CTMMWarning,
            stacklevel=2,
        )
    shown = {name: _column([setting[name] for setting in grid]) for name in SETTINGS}
    rows = []
    for k in range(len(grid)):
        at = range(k * studies, (k + 1) * studies)
        fitted = [found[j][0] for j in at if found[j][0]]
        if not fitted:  # one gene could be, but no whole study
            raise _unfit(work[at.start : at.stop], grid, found[at.start][1])
        for test in fitted[0]:
            p = np.concatenate([found[j][0].get(test, np.full(work[j].count, np.nan)) for j in at])
            own = {name: column[k] for name, column in shown.items()}
            rows.append({**own, "test": test, "alpha": alpha, **positive_rate(p, alpha)})
    return pd.DataFrame(rows)


def positive_rate(pvalues: np.ndarray, alpha: float = 0.05) -> dict[str, float | int]:
    """Rate of p < alpha among those there are, its standard error, how many, and how many not.

    >>> positive_rate(np.array([0.01, 0.2, 0.3, np.nan]))["n_failed"]
    1
    """
    p = np.asarray(pvalues, dtype=float)
    good = p[np.isfinite(p)]
    positive, n = int((good < alpha).sum()), len(good)
    near = (positive + 2) / (n + 4)
    rate = positive / n if n else float("nan")
    se = float(np.sqrt(near * (1 - near) / (n + 4))) if n else float("nan")
    return {"rate": rate, "se": se, "n": n, "n_failed": len(p) - n}


def pvalues_of(
    genes: SimulatedGenes,
    tests: Sequence[str],
    *,
    random: str | None = None,
    structure: str = "free",
    **options: Any,
) -> dict[str, np.ndarray]:
    """P values of every gene by every test, NaN where a test cannot be had.

    Parameters
    ----------
    genes : SimulatedGenes
    tests : sequence of str
        As in :func:`power`.
    random : str, optional
        Random effects of the fit.
    structure : str
    **options
        Of ``fit_genes``.

    Returns
    -------
    dict of ndarray, shape (genes,)

    Examples
    --------
    >>> from ctmm_formula.simulate import simulate_genes
    >>> genes = simulate_genes(2, 30, ["T", "B"], V=(0.5, 0.1), rng=1)
    >>> {name: p.round(3).tolist() for name, p in pvalues_of(genes, ["lrt"]).items()}
    {'lrt': [0.0, 0.04]}
    """
    known = known_tests()
    asked = [known[choose("test", name, known)] for name in tests]
    first = next((test.method for test in asked if test.method and not test.study), "robust")
    paired = genes.condition is not None and genes.condition.paired

    def scan_of(test: Asked) -> tuple[str, str]:
        """Method of a test, and how donors are crossed; tests of no method are made once."""
        return test.method or first, "within" if paired else "by" if test.study == "by" else ""

    formula = "~ C(celltype)" if genes.proportions is None else "~ 1"
    if genes.condition is not None:
        formula = f"{formula} * {STATUS}"
    tables = {}
    for method, crossing in dict.fromkeys(map(scan_of, asked)):
        own = dict.fromkeys(t.test for t in asked if scan_of(t) == (method, crossing))
        how: dict[str, Any] = {"structure": structure, "method": method, **options}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CTMMWarning)  # the rates say what failed
            tables[method, crossing] = fit_genes(
                formula, random, data=genes, tests=list(own),
                proportions=genes.proportions, n_jobs=1,
                by=STATUS if crossing == "by" else None,
                within=STATUS if crossing == "within" else None, **how,
            ).table  # fmt: skip
    out = {}
    for name, test in zip(tests, asked, strict=True):
        table = tables[scan_of(test)]
        if test.detail == BY_TYPE:
            columns = {f"[{celltype}]": f"[{celltype}]" for celltype in genes.celltypes}
            name = name.removesuffix(f"_{BY_TYPE}")
        else:
            columns = {"": f"_{test.detail}" if test.detail else ""}
        for end, column in columns.items():
            out[f"{name}{end}"] = table[f"p_{test.test}{column}"].to_numpy(dtype=float)
    return out


# ---------------------------------------------------------------------------------------------
# one setting


@dataclass(frozen=True)
class _Study:
    """Replicates of one setting that share a design."""

    setting: Mapping[str, Any]
    tests: Sequence[str]
    count: int
    seed: np.random.SeedSequence
    options: Mapping[str, Any]


def simulate_setting(
    setting: Mapping[str, Any],
    count: int,
    rng: np.random.Generator,
    condition: Condition | None = None,
) -> SimulatedGenes:
    """Replicates of one combination of settings of :func:`power`."""
    shared = {
        "kind": setting["kind"], "sigma2": setting["sigma2"], "V": setting["V"],
        "beta": setting["beta"], "n_pcs": 0, "n_batches": setting["n_batches"],
        "batch_variance": setting["batch_variance"] if setting["n_batches"] else 0.0,
        "cells": spread_cells(setting["cells"], setting["fold"]), "missing": setting["missing"],
    }  # fmt: skip
    if condition is not None:
        shared["condition"] = condition
    size = count, setting["n_donors"], setting["celltypes"]
    if setting.get("counts") is not None:
        cells = CountCells(setting["counts"], setting["dispersion"])
        return simulate_genes(*size, counts=cells, rng=rng, **shared)
    kurtosis = setting["kurtosis"]
    cv_error = relative_error(setting["noise_cv"])
    from_cells = cell_error(0.0) if kurtosis == 0 else None

    def error(rng: np.random.Generator, nu: np.ndarray, n_cells: np.ndarray) -> np.ndarray:
        for part in (from_cells, cv_error):
            nu = nu if part is None else part(rng, nu, n_cells)
        return nu

    return simulate_genes(
        *size, cell_cv=setting["cell_cv"], cell_noise=gamma_cells(kurtosis) if kurtosis else None,
        noise_error=error, cell_variance=setting["cell_variance"], rng=rng, **shared,
    )  # fmt: skip


def condition_of(setting: Mapping[str, Any], tests: Iterable[str]) -> Condition | None:
    """The condition of a study: where a setting has one, or a test asks for one."""
    known = known_tests()
    given = any(np.any(setting[name] != default) for name, default in CASES.items())
    if not given and not any(known[name].study for name in tests):
        return None
    return Condition(*(setting[name] for name in CASES))


def _try(studies: Sequence[_Study], grid: Sequence[Mapping[str, Any]]) -> None:
    """One gene of a setting, so that what cannot be fitted is told before hours of the others."""
    reason = ""
    for study in studies:  # with missing pairs some studies fail by chance
        _, reason = _attempt(replace(study, count=1))
        if not reason:
            return
    raise _unfit(studies, grid, reason)


def _unfit(studies: Sequence[_Study], grid: Sequence[Mapping[str, Any]], reason: str) -> CTMMError:
    """The error of a setting without a study that can be fitted."""
    varied = [name for name in SETTINGS if len({str(own[name]) for own in grid}) > 1]
    where = ", ".join(f"{name}={_label(studies[0].setting[name])}" for name in varied or SETTINGS)
    return CTMMError(f"no simulated study can be fitted with {where}: {reason}")


@one_thread()
def _attempt(study: _Study) -> tuple[dict[str, np.ndarray], str]:
    """P values of a study, or none and the reason."""
    try:
        return _pvalues(study), ""
    except CTMMError as error:
        return {}, str(error)


def _pvalues(study: _Study) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(study.seed)
    genes = simulate_setting(
        study.setting, study.count, rng, condition_of(study.setting, study.tests)
    )
    batch = "batch" if study.setting["n_batches"] else None
    structure = study.setting["structure"]
    return pvalues_of(
        genes, study.tests, random=batch, structure=structure, rng=rng, **study.options
    )


def _values(name: str, value: Any) -> list[Any]:
    """The values of one setting."""
    if isinstance(value, list):
        if not value:
            raise CTMMError(f"{name}= is an empty list: give it a value")
        return value
    if isinstance(value, (pd.Series, range)):
        return list(value)
    return [value]


def _column(values: Sequence[Any]) -> list[Any]:
    """Settings as a column of a table: numbers, or all of them texts, which can be sorted."""
    labels = [_label(value) for value in values]
    if not any(isinstance(label, str) for label in labels):
        return labels
    return [label if isinstance(label, str) else f"{label:g}" for label in labels]


def _label(value: Any) -> Any:
    """A setting as one cell of a table."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(map(str, value))  # labels of a structure
    if np.ndim(value) == 0:
        return value
    if np.ndim(value) == 1:
        return ", ".join(f"{number:g}" for number in value)
    return "; ".join(str(_label(row)) for row in np.asarray(value))


_POWER_LIMITS = {
    "cases": CONDITION_LIMITS["share"],
    "case_cells": CONDITION_LIMITS["cells"],
    "case_variance": CONDITION_LIMITS["variance"],
    "sigma2": NOT_NEGATIVE,
    "cell_variance": ABOVE_0,
    "kurtosis": (*LIMITS["kurtosis"][:2], f"{LIMITS['kurtosis'][2]}, or None"),
    "counts": (ABOVE_0[0], 5e3, "above 0, up to the 5,000 counts of a cell in all, or None"),
}
"""Those of a simulation, but where a table of rates needs others."""
_NUMBERS = ("cells", "fold", "sigma2", "counts", "dispersion", "cell_variance", "cell_cv",
            "noise_cv", "missing", "batch_variance", "kurtosis", "cases", "case_cells",
            "case_variance")  # fmt: skip
_OR_NONE = ("counts", "kurtosis")
_LARGEST = 1e100


def _check(setting: Mapping[str, Any]) -> None:
    """Errors of a setting before anything is simulated."""
    for name, least, most in (("n_donors", 3, MOST_DRAWS), ("celltypes", 2, 200)):
        whole_number(name, setting[name], least, most)
    C = int(setting["celltypes"])
    if whole_number("n_batches", setting["n_batches"], 0):
        _batches(setting)
    choose("kind", setting["kind"], ["ctp", "op"])
    resolve(setting["structure"], celltype_names(C))
    for name in _NUMBERS:
        if name not in _OR_NONE or setting[name] is not None:
            _one_number(name, setting[name])
    given = [name for name, default in CONTINUOUS.items() if setting[name] != default]
    if given and setting["counts"] is not None:
        raise CTMMError(
            f"{given[0]}= is of cells that are not counted: say counts=None, or leave {given[0]}= "
            "out (counts make their own variance between cells)"
        )
    given = [name for name, default in COUNTED.items() if setting[name] != default]
    if given and setting["counts"] is None:
        raise CTMMError(f"{given[0]}= is of counts: leave it out, or give counts= a number")
    if setting["kind"] == "op" and setting["fold"] == 1.0:
        raise CTMMError(
            "kind='op' needs fold= above 1: where all donors have the same proportions, overall "
            "pseudobulk cannot tell cell types apart"
        )
    for name, shapes in (
        ("V", [(), (C,), (C, C)]), ("beta", [(), (C,)]), ("effect", [(), (C,)]),
        ("response", [(), (C,)]),
    ):  # fmt: skip
        values = floats(name, setting[name])
        if values.shape not in shapes:
            raise CTMMError(
                f"{name}= has shape {np.shape(setting[name])} for {C} cell types: one value is a "
                f"number or a tuple of {C}, and a list gives several values"
            )
        if np.abs(values).max() > _LARGEST:
            raise CTMMError(f"{name}= must lie within 1e100, got {_label(setting[name])}")
    V = np.asarray(setting["V"], dtype=float)
    lowest = np.linalg.eigvalsh(V)[0] if V.ndim == 2 else V.min()
    if not lowest >= -1e-12:
        raise CTMMError(f"V= must not be negative, got {_label(setting['V'])}")
    if not np.min(setting["response"]) >= 0.0:
        raise CTMMError(f"response= must not be negative, got {_label(setting['response'])}")


def _check_condition(setting: Mapping[str, Any]) -> None:
    """Errors of the settings of a condition together."""
    donors = setting["n_donors"]
    many = round(setting["cases"] * donors)
    if not on_off("paired", setting["paired"]):
        if not 2 <= many <= donors - 2:
            raise CTMMError(
                f"cases={setting['cases']:g} makes {many} cases of {donors} donors: two or more, "
                "and as many others, are needed"
            )
        if np.any(np.asarray(setting["response"]) != 0.0):
            raise CTMMError("response= is of the same donors under both conditions: paired=True")
        return
    for name in ("cases", "case_variance"):
        if setting[name] != CASES[name]:
            raise CTMMError(
                f"{name}= is of groups of donors, and paired=True has all donors under both "
                "conditions: leave one of them out"
            )


def _check_studies(grid: Sequence[Mapping[str, Any]], asked: Mapping[str, Asked]) -> None:
    """Errors of tests and settings together."""
    for setting in grid:
        if condition_of(setting, asked) is not None:
            _check_condition(setting)
    for name, test in asked.items():
        if test.study and any(setting["kind"] == "op" for setting in grid):
            raise CTMMError(f"test {name!r} is of cell type-specific pseudobulk: kind='ctp'")
        of_V = test.test in TESTS and TESTS[test.test].question == "variance"
        for setting in grid:
            if setting["paired"] and (test.study == "by" or of_V):
                raise CTMMError(
                    f"test {name!r} is of donors who are seen once, and paired=True has them under "
                    "both conditions: ask for 'response' or 'effects', or leave paired= out"
                )
            if not setting["paired"] and test.study == "within":
                raise CTMMError(
                    f"test {name!r} is of the same donors under both conditions: paired=True"
                )


def _batches(setting: Mapping[str, Any]) -> None:
    batches, donors = int(setting["n_batches"]), setting["n_donors"]
    if not 2 <= batches < donors:
        raise CTMMError(
            f"n_batches= must be 0, or from 2 to below the {donors} donors, got {batches}: one "
            "batch, or a batch for each donor, has no variance of its own"
        )


def _one_number(name: str, value: object) -> None:
    try:
        number(name, value, _POWER_LIMITS.get(name))
    except CTMMError as error:
        raise CTMMError(f"{error}; a list gives several values") from None


def _check_grid(grid: Sequence[Mapping[str, Any]]) -> None:
    """Errors of the settings, each and together."""
    for setting in grid:
        _check(setting)
    needs_batches(*(max(s[name] for s in grid) for name in ("batch_variance", "n_batches")))
