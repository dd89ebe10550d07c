"""Fit a formula: parse -> design -> estimate -> results, in four visible steps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd

from .arguments import Bounds, FormulaEngine, Keep, Method, choose, name_list
from .blas import one_thread
from .cells.scale import scale_notes
from .cells.tables import gene_table, is_anndata, left_out
from .design.expressions import names_in
from .design.formula import parse
from .design.identified import check_alone, check_components, identified
from .design.labelled import Design, build_design, means_note, means_warning
from .design.matrix import ENGINES
from .design.table import amount, column_name, listing
from .distributions import standard_errors
from .engine.domain import Domain
from .engine.estimators import ESTIMATORS, estimate
from .engine.noise import FAR, far_off, pooling
from .engine.related_likelihood import is_rotated
from .engine.robust import CLUSTERED, ONE_UNIT
from .errors import BoundaryWarning, ConvergenceError, CTMMError, CTMMWarning, DataError
from .inference.comparison import compare
from .inference.fit import ROBUST
from .results.fitted import CTMMResults
from .results.summary import Summary, describe_anova
from .structures import Crossing, Structure, StructureLike, resolve

DEFAULT_BOUNDS = {"ctp": "noise", "op": "psd"}
"""Bounds of the variance components by kind of data, where none are named."""


def fit(
    formula: str,
    random: object = None,
    *,
    structure: StructureLike = "free",
    method: Method | None = None,
    data: object = None,
    donor: str = "donor",
    celltype: str | None = None,
    noise: str = "nu",
    nu2: str | None = "nu2",
    n_cells: str | None = "n_cells",
    proportions: str | Sequence[str] | pd.DataFrame | None = None,
    by: str | None = None,
    within: str | None = None,
    kinship: object = None,
    genetic_structure: StructureLike | None = None,
    bounds: Bounds | None = None,
    noise_floor: float = 0.1,
    formula_engine: FormulaEngine = "patsy",
    keep: Keep = "all",
) -> CTMMResults:
    """Fit the cell type-specific mixed model to one gene.

    For donor i and cell type c, with known noise variance nu_ic (the squared standard error of
    the pseudobulk mean)::

        y_ic = x_ic'b + alpha_i + Gamma_ic + (random effects) + delta_ic
        alpha_i ~ N(0, sigma^2)   Gamma_i ~ N(0, V)   delta_ic ~ N(0, nu_ic)

    Chen and Dahl, Nat Commun 15:5229 (2024).

    Parameters
    ----------
    formula : str
        ``"expr ~ C(celltype) + sex + PC1"``; random effects as ``(1|batch)``, or
        ``(celltype|batch)`` for one variance per cell type.
    random : str, list of str, or dict, optional
        More random effects: ``"batch"``, ``["batch", "site"]``, ``"~ batch"``,
        ``"(1|site/batch)"`` (site, and batch within site); a dict maps each column to what it
        acts on: ``{"batch": "1"}``, or ``{"batch": "celltype"}`` for one variance per cell type.
    structure : str, list of matrices, or dict label -> matrix
        Covariance between cell types: "hom" (shared only), "iid", "free" (one variance per cell
        type), "full", :func:`banded`, :func:`tree`, or basis matrices of your own, (C, C) each.
    method : {"robust", "reml", "ml", "he"}, optional
        Noise-robust moments with cluster-robust errors (see :mod:`ctmm_formula.engine.robust`),
        which hold on counts of cells, whose measured noise rises with expression, and for few
        donors; restricted or full maximum likelihood; or Haseman-Elston moments.  By default
        "robust" where numbers of cells are known and with `kinship`, else "reml"; a note says
        which, and why.
    data : DataFrame, dict of columns, an object with ``to_pandas()``, or a pseudobulk AnnData
        One row per donor and cell type; with `proportions`, one per donor.  In an AnnData from
        :func:`ctmm_formula.pseudobulk` (or :func:`ctmm_formula.overall`, whose proportions are
        found by themselves) the response is a gene.
    donor : str
        Column of donors.
    celltype : str, optional
        Column of cell types; by default "celltype", else the one factor of the formula that with
        `donor` identifies the rows.
    noise : str
        Column of noise variances.  0 says that all cells of the pair are alike, which needs their
        number: ML and REML, which cannot weigh by it, take there the variance between cells
        pooled over the donors of the cell type, divided by that number, and a note says so.
    nu2 : str, optional
        Column of unbiased estimates of the squares of the noise variances, for the law of the
        score test where cells are few, see :mod:`ctmm_formula.inference.score`; may be absent.
    n_cells : str, optional
        Column of numbers of cells, for robust fits, the score test and shares of variance; may be
        absent.
    proportions : list of str, or DataFrame (donors x cell types), or str, optional
        Cell type proportions: `data` are then overall pseudobulk.  One column name: the share of
        each row's cell type in its donor, in cell type-specific data.
    by : str, optional
        Column of groups of donors: every group has variance components of its own, ``V[T|case]``,
        as if it were fitted alone, and all share the fixed effects.  A column of numbers (of more
        than two values) is a trend: A = A_0 + x A_1, x from 0 at its least to 1 at its largest
        value, with components ``V[T]`` and ``V[T]:age``.
    within : str, optional
        Column of conditions that the same donors were seen under, one row per donor, cell type and
        condition: the components are those of effects that a donor has under all conditions
        (``V[T]``) and of its responses, ``V[T]:stim``; the difference between two conditions has
        twice the variance of a response.
    kinship : DataFrame, file name, or dict name -> one of these, optional
        How donors are related, matched by label: a kinship K (donors x donors), genotypes of a
        window (donors x variants, from which K = G G'/m of the standardised columns), or a file
        that :func:`read_kinship` reads; ``{"cis": G, "trans": K}`` for several.  Genetic effects
        are covariances K (x) A of a structure of their own, with components ``genetic:hom``,
        ``genetic:V[T]``; ``hom`` and ``V[T]`` are the environment's.  "robust" then weighs by the
        kinship, too, and its errors are those of the model; it, "reml" and "ml" are exact for a
        kinship of low rank, or few donors, and beyond rotate donors where no pair is missing (see
        :mod:`ctmm_formula.engine.related_spectral`).  See ``res.heritability()``,
        ``res.test_heritability()``.
    genetic_structure : as `structure`, optional
        That of the genetic effects; by default the same.
    bounds : {"noise", "psd", "nonnegative"}, optional
        Domain of the variance components for ML and REML, see :mod:`ctmm_formula.engine.domain`; by
        default "noise" (they may be negative) for cell type-specific, "psd" for overall
        pseudobulk, "nonnegative" with `kinship`.  Where bounds are named and no method, the method
        is "reml".
    noise_floor : float
        Share of the noise below which no total variance may fall (``bounds="noise"``).
    formula_engine : {"patsy", "formulaic"}
        Who reads the fixed part.
    keep : {"all", "rows", "tables"}
        What the fit holds for later questions; "tables" are small, for thousands of fits in memory
        or in files, and say what they cannot answer: see
        :meth:`~ctmm_formula.CTMMResults.remove_data`.

    Returns
    -------
    CTMMResults
        Estimates (``params``, ``vcomp`` in squared units of the response), tests
        (``test_variance()``, ``test_mean()``), predictions, ``summary()``.

    Raises
    ------
    FormulaError, DataError
        The formula or the table cannot be used; the message names column, rows and the fix.
    ConvergenceError
        No estimate exists.

    Warns
    -----
    BoundaryWarning
        The estimate lies on the edge of its domain.
    CTMMWarning
        The optimisation did not converge; the formula lacks the means of the cell types, and
        the structure has V; a cell type seen in one donor is left out, as `structure` gives it a
        variance of its own; or the levels of a random effect look like measurements.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> res = ctmm.fit("expr ~ C(celltype) + sex + PC1", random="batch", data=df)
    >>> res.method, list(res.vcomp.index)
    ('robust', ['hom', 'V[day0]', 'V[day1]', 'V[day2]', 'V[day3]', 'batch'])
    """
    chosen = check_settings(method, structure, bounds, noise_floor)
    check_formula(random, noise, formula_engine)
    choose("keep", keep, get_args(Keep))
    if data is None:
        raise DataError("data= is missing: fit(formula, data=table)")

    genetic = genetic_of(structure, kinship, genetic_structure)
    spec = parse(formula, random)
    uns: Any = None
    var = pd.DataFrame(index=[spec.response])
    if is_anndata(data):
        pb: Any = data
        uns, names = pb.uns, names_in(spec.response).variables
        data, columns = gene_table(data, names)
        var = pb.var.loc[[name for name in names if name in pb.var_names]]
        proportions = columns if proportions is None else proportions
    make = partial(
        build_design,
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
        kinship=kinship,
        genetic_structure=genetic,
        engine=formula_engine,
        env=caller(),
        gone=left_out(uns),
    )
    design, _ = identified(lambda without: make(without=without), [structure, genetic])
    results = fit_design(design, structure, chosen, bounds, noise_floor)
    results.notes += (*response_notes(spec.response, noise), *scale_of(results, uns, var))
    warn_of(results)
    results.remove_data(keep)
    return results


def check_settings(
    method: object, structure: object, bounds: str | None, noise_floor: float
) -> str | None:
    """Refuse settings that no data could make right; the method's name as the registry has it."""
    if method is not None:
        method = choose("method", method.lower() if isinstance(method, str) else method, ESTIMATORS)
    Domain("noise" if bounds is None else bounds, noise_floor)
    if isinstance(structure, str):
        resolve(structure, ("a", "b"))  # is there such a structure?
    return method


def genetic_of(structure: object, kinship: object, given: object) -> object:
    """The structure of genetic effects, by default that of the environment."""
    if given is None:
        return structure
    if kinship is None:
        raise CTMMError("genetic_structure= is that of a kinship: give kinship=, too")
    if isinstance(given, str):
        resolve(given, ("a", "b"))
    return given


_NAMED = "bounds are named, which moments have none of"


def method_of(
    design: Design, method: str | None, bounds: str | None, alone: bool = False
) -> tuple[str, str]:
    """The method that fits a design, and why where none was named; `alone` of one gene."""
    if design.kinship:
        if method is not None:
            return method, ""
        if bounds is not None:
            return "reml", f"method: reml by default, as {_NAMED}"
        if not alone:
            return "he", (
                "method: he by default, as there is a kinship: one closed form for all genes; "
                "method='robust', the default of fit(), is more precise, and weighs every gene by "
                "itself"
            )
        return "robust", (
            "method: robust by default, as there is a kinship: weighed by it and by pooled noise, "
            "centred by the measured; method='he' has moments without weights and the exact "
            "jackknife, method='reml' likelihoods"
        )
    if method is not None:
        return method, ""
    reason = ""
    if bounds is not None:
        reason = _NAMED
    elif design.n_cells is None:
        reason = "there are no numbers of cells, and the noise variances are taken as known"
    elif design.n_units < 2:
        reason = "random effects join all donors to one block, and robust errors need several"
    if reason:
        return "reml", f"method: reml by default, as {reason}"
    return "robust", (
        "method: robust by default, as there are numbers of cells: counts bias what weighs by "
        "their measured noise; method='reml' has likelihoods"
    )


def check_formula(random: object, noise: object, engine: str) -> None:
    """The same for what belongs to the formula."""
    choose("formula engine", engine, ENGINES)
    if hasattr(random, "columns") or hasattr(random, "to_pandas"):
        raise DataError(
            "random= got a table; it names random effects, such as 'batch': did you mean data=?"
        )
    column_name(noise, "noise")


def domain_of(design: Design, bounds: str | None, noise_floor: float) -> Domain:
    """The domain of a design, by default that of its kind of data."""
    default = "nonnegative" if design.kinship else DEFAULT_BOUNDS[design.kind]
    return Domain(bounds or default, noise_floor)


@one_thread()
def fit_design(
    design: Design, structure: object, method: str | None, bounds: str | None, noise_floor: float
) -> CTMMResults:
    """Fit a design; what there is to say about the fit is in its notes."""
    cells = design.structure(structure)
    method, why = method_of(design, method, bounds, alone=True)
    model = design.model(cells)
    if why and design.kinship and method in CLUSTERED:
        try:
            is_rotated(model, method)
        except ConvergenceError as error:
            method, why = "he", f"method: he by default, as weights would know the kinship: {error}"
    for one in (cells, *(own.structure for own in design.kinship)):
        check_alone(design.alone, one)
    check_components(model, cells, (*design.random_names, *design.genetic_names))
    domain = domain_of(design, bounds, noise_floor)
    results = CTMMResults(design, cells, domain, estimate(model, method, domain))
    means = means_note(design.one_mean, [cells])
    said = (*([why] if why else []), *design.notes, *([means] if means else []))
    said += crossing_notes(cells, design.crossing)
    results.notes = (*said, *_notes(results))
    return results


def crossing_notes(structure: Structure, crossing: Crossing | None) -> tuple[str, ...]:
    """What to know of groups and conditions: a trend's ends, components that are left out."""
    if crossing is None or structure.crossed is None:
        return ()
    notes = []
    if crossing.kind == "trend":
        low, high = crossing.span
        notes.append(
            f"by={crossing.column!r}: A = A_0 + x A_1, x = 0 where it is {low:g}, 1 where {high:g}"
        )
    gone = structure.crossed.left_out
    if gone:
        notes.append(
            f"left out of the model: {listing(gone, 10)}, as no row has the cell type in that "
            f"group or condition ({crossing.column!r}), or none that tells it from the others"
        )
    return tuple(notes)


def response_notes(response: str, noise: str) -> tuple[str, ...]:
    """What to know of a response that is computed: its noise is not.

    >>> response_notes('Q("HLA-A")', "nu")
    ()
    >>> response_notes("np.log(expr)", "nu")
    ("the noise variances 'nu' are taken as those of np.log(expr) itself",)
    """
    names = names_in(response)
    if not names.roots and set(names.called) <= {"Q"}:
        return ()
    return (f"the noise variances {noise!r} are taken as those of {response} itself",)


def scale_of(results: CTMMResults, uns: object, var: pd.DataFrame) -> tuple[str, ...]:
    """Notes on the scale of a fit of the pseudobulk with `uns`, None for a table."""
    design = results.design
    if design.kind != "ctp" or "level_ratio" in var:
        return tuple(scale_notes(uns, var))
    L, fit = design.mean_rows, results.estimate
    errors = (
        None if fit.cov_beta is None else standard_errors(np.diag(L @ fit.cov_beta @ L.T))[None, :]
    )
    return tuple(scale_notes(uns, var, (L @ fit.beta)[None, :], errors))


def anova(
    *results: CTMMResults | Sequence[CTMMResults], labels: Sequence[str] | None = None
) -> Anova:
    """Compare nested fits by likelihood ratios, from the smallest to the largest.

    Parameters
    ----------
    *results : CTMMResults, or one list of them
        Two or more fits of the same data, by the same of ML and REML; by REML with the same fixed
        part.
    labels : sequence of str, optional
        Names of the fits; by default their structures, or formulas where these agree.

    Returns
    -------
    Anova
        Prints itself; ``table`` is a DataFrame.

    Raises
    ------
    CTMMError
        Fits that cannot be compared, and why.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> fits = [ctmm.fit("expr ~ C(celltype)", structure=s, method="reml", data=df)
    ...         for s in ("hom", "free")]
    >>> ctmm.anova(*fits).table["df"].tolist()
    [nan, 4.0]
    """
    one_list = len(results) == 1 and isinstance(results[0], Sequence)
    fits: list[Any] = list(*results) if one_list else list(results)
    for fit in fits:
        if not isinstance(fit, CTMMResults):
            raise CTMMError(
                f"anova compares results of fit(), got {type(fit).__name__}: anova(small, large)"
            )
    names = (
        _labels(fits) if labels is None else [str(label) for label in name_list("labels", labels)]
    )
    if len(names) != len(fits) or len(set(names)) < len(names):
        raise CTMMError(f"labels= needs one name for each of the {len(fits)} fits")
    rows = compare([fit.labelled(name) for name, fit in zip(names, fits, strict=True)])
    table = pd.DataFrame(rows).set_index("label")
    return Anova(table, fits[0].method)


def _labels(results: Sequence[CTMMResults]) -> list[str]:
    """The shortest names that tell the fits apart."""
    for form in ("{0.structure}", "{0.formula}", "{0.formula}; {0.structure}"):
        names = [form.format(fit) for fit in results]
        if len(set(names)) == len(names):
            return names
    return [f"fit {k}" for k in range(1, len(results) + 1)]


@dataclass(frozen=True, eq=False)
class Anova:
    """Likelihood ratio tests of nested fits.

    Attributes
    ----------
    table : DataFrame
        One row per fit, smallest first: n_params, llf, aic, bic, and against the row before: df,
        statistic (2 x difference of log-likelihoods), pvalue (chi2), note.
    method : str
    """

    table: pd.DataFrame
    method: str

    def summary(self) -> Summary:
        """The table as text, HTML and LaTeX."""
        return describe_anova(self.table, self.method)

    def __str__(self) -> str:
        return self.summary().as_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.summary().as_html()


def caller() -> Mapping[str, object]:
    """Names where the function that asks was called, for functions in formulas."""
    try:
        frame = sys._getframe(2)
    except ValueError:  # called from another language
        return {}
    return {**frame.f_globals, **frame.f_locals}


def warn_of(results: CTMMResults) -> None:
    """Warnings of the data, at most one of the formula, and at most one of the optimisation."""
    for doubt in results.design.doubts:
        warnings.warn(doubt, CTMMWarning, stacklevel=3)
    means = means_warning(results.design.one_mean, [results.structure_])
    if means:
        warnings.warn(means, CTMMWarning, stacklevel=3)
    text = _trouble(results)
    if not results.converged:
        warnings.warn(text, CTMMWarning, stacklevel=3)
    elif text:
        test = "test_heritability()" if results.design.kinship else "test_variance('score')"
        text += f": variance components there are pinned by the bound; prefer {test}"
        warnings.warn(text, BoundaryWarning, stacklevel=3)


def _trouble(results: CTMMResults) -> str:
    """What the optimisation has to say, or nothing."""
    record = results.estimate.convergence
    if not record.converged:
        return f"the optimisation did not converge: {record.message}"
    edge = f"the estimate lies on the edge of its domain (bounds={results.domain.bounds!r})"
    return edge if record.boundary else ""


def _row_names(design: Design, rows: np.ndarray) -> list[str]:
    """Donor, and cell type, of some rows."""
    donors = [design.donors[code] for code in design.donor_codes[rows]]
    if design.celltype_col is None:
        return donors
    types = [design.celltypes[c] for c in design.H[rows].argmax(axis=1)]
    return [f"{donor}|{name}" for donor, name in zip(donors, types, strict=True)]


def _kinship_notes(results: CTMMResults) -> Iterator[str]:
    """How a fit with a kinship was made."""
    fit, method = results.numbers, results.method
    if method == "he":
        yield (
            "fixed effects by ordinary least squares; to their jackknife covariance comes what "
            "related donors add, where the fitted kinship says more"
        )
    elif is_rotated(fit.model, method):
        what = "a quasi-likelihood of " if fit.has_likelihood else ""
        yield (
            f"{what}rotated donors, as the kinship has too high a rank for the exact one: noise "
            "weighs by its mean in each cell type, what was measured only centres"
        )
    elif fit.has_likelihood:
        yield (
            "weighed by the measured noise as if it were known: where it is of few cells, its "
            "errors count as environment and heritabilities come out too small; method='robust' "
            "pools it"
        )


def _notes(results: CTMMResults) -> Iterator[str]:
    """What to know about this fit."""
    text, at = _trouble(results), results.estimate
    if text and results.converged:
        text += (
            ", where standard errors and Wald tests of variance components are no guide (degrees "
            "of freedom of fixed effects take what the edge holds for known)"
        )
    if text:
        yield text
    zero = np.flatnonzero(results.design.nu == 0.0)
    if len(zero) and not results.numbers.is_clustered:
        yield (
            f"{amount(len(zero), 'row has', 'rows have')} noise variance 0 as all cells are alike, "
            f"{listing(_row_names(results.design, zero))}: weighed there by the variance between "
            "cells pooled over the donors of the cell type, divided by the number of cells"
        )
    data = results.design
    far = far_off(data.nu, pooling(data.H, data.n_cells, np.ones(len(data.nu), dtype=bool)))
    if len(far):
        yield (
            f"the noise variance of {listing(_row_names(data, far))} is more than {FAR:,.0f} times "
            "that usual in the cell type: noise pooled over donors, by which robust fits and score "
            "tests weigh, goes by it; check it, or leave it out"
        )
    if results.design.kinship:
        yield from _kinship_notes(results)
    elif at.beta_by == "ols":
        yield (
            "the fitted covariance is not positive definite: fixed effects by ordinary least "
            "squares, their standard errors only by jackknife"
        )
    if not results.definite:
        what = "the fitted covariance is not positive definite"
        if results.design.kinship:
            what = "environment or kinship has a covariance that is none (negative components)"
        yield (
            f"{what}: random effects and fitted values are "
            "predicted with its negative variance components shrunk until it is"
        )
    if results.numbers.is_clustered:
        if results.df_resid < 1:
            yield f"{ONE_UNIT}, so there are no tests and intervals"
    elif results.df_resid < 1:
        likelihood, robust = results.numbers.has_likelihood, results.numbers.fixed_by == ROBUST
        of = "of variance components " if likelihood or robust else ""
        fixed = "; of fixed effects none but by the robust estimate" if not likelihood else ""
        yield (
            f"{results.n_donors} donors and {results.df_model} parameters: no residual degrees of "
            f"freedom, so no tests and intervals {of}but by test_variance('score')"
            f"{fixed if robust else ''}"
        )
    if results.design.n_cells is None:
        what = "fit and score test are" if results.numbers.is_clustered else "the score test is"
        yield f"no numbers of cells: {what} weighted by the mean noise of each cell type"
