"""Fit all genes: parse -> design once -> blocks of genes -> table."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..api import (
    caller,
    check_formula,
    check_settings,
    domain_of,
    fit_design,
    genetic_of,
    method_of,
    scale_of,
)
from ..arguments import (
    MOST_DRAWS,
    Bounds,
    FormulaEngine,
    Method,
    Rng,
    ScanTest,
    generator,
    name_list,
    on_off,
    threads,
    whole_number,
)
from ..cells.scale import summary_of
from ..cells.tables import left_out
from ..design.expressions import quote
from ..design.formula import FormulaSpec, parse
from ..design.genotypes import Genotypes
from ..design.identified import identified
from ..design.labelled import Design, build_design, means_warning
from ..design.matrix import check_vouched, packed, unpacked
from ..design.table import listing
from ..engine.domain import Domain
from ..errors import BoundaryWarning, CTMMWarning, DataError, FormulaError
from ..inference.fit import KENWARD_ROGER
from ..inference.tests import DRAWS, needs_of
from ..paths import file_path
from ..progress import checked_progress
from ..results.fitted import CTMMResults
from ..results.summary import recorded_versions
from ..structures import StructureLike
from .columns import Layout, in_order
from .job import Job, block_size, used_rows
from .patterns import FromTable, Patterns
from .plan import (
    Plan,
    all_structures,
    asked_tests,
    check_tests,
    default_tests,
    make_plan,
    of_each_kinship,
    read_tests,
)
from .responses import Responses, open_responses
from .results import Scan, doubted, full_table, notes_of, notice, unseen
from .store import Store, fingerprint, load
from .windows import CIS, Windows, windows_of, with_own
from .worker import BOUNDARY, OK

_TABLE = "a table"  # what a scan notes of proportions that are no columns of the data


def fit_genes(
    formula: str,
    random: object = None,
    *,
    data: object = None,
    expr: object = None,
    nu: object = None,
    nu2: object = None,
    genes: Sequence[str] | None = None,
    structure: StructureLike = "free",
    models: Sequence[StructureLike] = (),
    method: Method | None = None,
    tests: ScanTest | list[str] | tuple[str, ...] | None = None,
    donor: str = "donor",
    celltype: str | None = None,
    noise: str = "nu",
    n_cells: str | None = "n_cells",
    proportions: str | Sequence[str] | pd.DataFrame | None = None,
    by: str | None = None,
    within: str | None = None,
    kinship: object = None,
    genetic_structure: StructureLike | None = None,
    genotypes: Genotypes | None = None,
    window: int | None = None,
    maf: float = 0.0,
    positions: pd.DataFrame | None = None,
    bounds: Bounds | None = None,
    noise_floor: float = 0.1,
    formula_engine: FormulaEngine = "patsy",
    one_step: bool = False,
    shares: bool = False,
    n_bootstrap: int = 999,
    rng: Rng = None,
    n_jobs: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Scan:
    """Fit the model of :func:`ctmm_formula.fit` to every gene and test it.

    The numbers are those of single fits.  A gene that fails is a row with a status and a reason.

    Parameters
    ----------
    formula : str
        As in ``fit`` without the response: ``"~ C(celltype) + sex + PC1"``.
    random : str, list of str, or dict, optional
        Random effects, as in ``fit``.
    data : AnnData, path, table, or what :func:`ctmm_formula.load_genes` returns
        Pseudobulk: an AnnData (rows are pairs of donor and cell type, or donors; expression in
        ``X``, noise variances in a layer), in memory or backed, or its .h5ad or .zarr file, which
        is read block by block; or a table of the rows, with `expr` and `nu`.
    expr, nu : DataFrame or array, shape (rows, genes), optional
        Expression and noise variance where `data` is a table.  A gene uses the rows where both
        are there (not NaN).
    nu2 : DataFrame or array, shape (rows, genes), optional
        With them, unbiased estimates of the squares of the noise variances, NaN where there is
        none: for the score test of genes with few counts.
    genes : sequence of str, optional
        Only these.
    structure : str, list of matrices, or dict label -> matrix
        Covariance between cell types that the tests and main columns are about.
    models : sequence of structures, optional
        More structures to fit; each is compared to the next smaller one nested in it.
    method : {"robust", "reml", "ml", "he"}, optional
        As in ``fit``: by default "robust" where numbers of cells are known, else "reml"; with
        `kinship` or `genotypes` "he", one closed form for all genes, where the others, more
        precise, fit every gene by itself.
    tests : str, or list or tuple of str, optional
        By default "score", with `by` "groups", with `within` "response" and with `kinship`
        "heritability".  Of V = 0, as
        ``test_variance`` has them: "score", "jackknife", "wald", "lrt", "bootstrap"; of equal means
        "mean", as ``test_mean``, and "mean_jackknife", the published one; "groups" as
        ``test_groups``, "response" as ``test_response``.
        Questions in words: "effects:status" (in every cell type, their mean, and whether types
        differ, as ``effects``), "contrast:T - B" (means, and levels in them, ``T|case``, as
        ``contrast``), "component:batch" (as ``test_component``), "wald:V[T] = V[B]" (parameters,
        as ``wald_test``).
    donor, celltype, n_cells, proportions, by, within, bounds, noise_floor, formula_engine
        As in ``fit``.
    kinship, genetic_structure
        As in ``fit``, the same for all genes: components, and by default the test
        "heritability", as ``test_heritability`` (with the law of many donors for any number); of
        several kinships ``"heritability:NAME"`` for each.  Columns ``h2[...]`` and ``se_h2[...]``
        are as ``heritability`` has them, after "he" with a test by the jackknife (``"jackknife"``).
    genotypes : Genotypes, optional
        A kinship "cis" of every gene's own, of the variants around it, beside those of `kinship`:
        ``Genotypes("cohort.bed")``.  A gene without variants fails, with the reason.
    window : int
        Base pairs before the start and after the end of a gene, or on both sides of its tss.
    maf : float
        Only variants with this frequency of the rarer allele between the donors of a gene.
    positions : DataFrame
        Index gene; columns chromosome ("chr1" and 1 are the same), and start and end, or tss.
    noise : str
        Layer of the noise variances in an AnnData; their squares are in the layer of that name
        with a 2 (``"nu2"``), if there is one.
    one_step : bool
        One-step jackknife in place of the exact one, for many donors.
    shares : bool
        Columns ``share[...]``: shares of the variance of overall pseudobulk, as
        ``variance_explained``; ``scan.plot("shares")`` draws them.
    n_bootstrap : int
        Draws of the bootstrap for every gene.
    rng : numpy Generator or seed, optional
        Of the bootstrap.  A gene's draws depend on the seed and its name alone.
    n_jobs : int, optional
        Workers; by default 1, or what ``joblib.parallel_config`` says.  The table is the same.
    out : str or Path, optional
        A parquet file.  Finished blocks of genes are kept beside it, so that the same call after
        an interruption goes on where it stopped, and returns at once when all is done.
    overwrite : bool
        Replace a scan with other settings or data at `out`.
    progress : bool, optional
        Show a progress bar; by default in notebooks and terminals, of work that takes a while.

    Returns
    -------
    Scan
        ``table``, ``vcomp``, ``corr``, ``gene(name)``, ``top()``.

    Raises
    ------
    FormulaError, DataError
        The formula, the table or the settings cannot be used for any gene.

    Warns
    -----
    CTMMWarning
        Once, with the numbers of genes that failed, did not converge, lie on the edge of their
        domain (a BoundaryWarning where nothing worse is the matter) or have few counts for tests
        of V (``zero_noise`` above .5); once where the formula lacks the means of the cell types,
        and where the design has more to say, as in ``fit``.

    Notes
    -----
    ``with joblib.parallel_config("dask"):`` around the call runs the same scan on a cluster, as
    does ``"ray"`` after ``ray.util.joblib.register_ray()``.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype) + sex + PC1", data=ctmm.load_genes(), random="batch",
    ...                       genes=["gene001", "gene002"], tests=["score", "mean"])
    >>> scan.table[["gene", "status", "p_score_bh", "p_mean"]].round(4)
          gene status  p_score_bh  p_mean
    0  gene001     ok         0.0     0.0
    1  gene002     ok         0.0     0.0
    """
    named = check_settings(method, structure, bounds, noise_floor)
    check_formula(random, noise, formula_engine)
    one_step, overwrite = on_off("one_step", one_step), on_off("overwrite", overwrite)
    shares = on_off("shares", shares)
    progress = checked_progress(progress)
    n_bootstrap = whole_number("n_bootstrap", n_bootstrap, 1, MOST_DRAWS)
    responses = open_responses(data, expr, nu, nu2, noise).chosen(genes)
    if proportions is None:
        proportions = responses.proportions
    options: dict[str, Any] = {"donor": donor, "celltype": celltype, "n_cells": n_cells}
    options |= {"proportions": proportions, "by": by, "within": within}
    windows = None
    if maf or any(one is not None for one in (genotypes, window, positions)):
        windows = windows_of(genotypes, window, maf, positions, responses.genes)
        kinship = with_own(kinship)
    genetic = genetic_of(structure, kinship, genetic_structure)
    options |= {"kinship": kinship, "genetic_structure": genetic}
    options |= {"engine": formula_engine, "env": caller()}
    options["gone"] = left_out(responses.uns)
    spec = parse(formula, random, response_required=False)
    if spec.response:
        raise FormulaError(
            f"fit_genes takes a formula without response, every gene is one: ~ {spec.fixed}"
        )
    asked = asked_tests(default_tests(by, within, kinship) if tests is None else tests)
    path = None if out is None else file_path("out=", out)

    base = used_rows(responses)
    more = [models] if isinstance(models, (str, Mapping)) else name_list("models", models)
    design, without = identified(
        lambda without: FromTable(spec, responses.obs, {**options, "without": without})(base),
        [structure, *more, genetic],
    )
    options["without"] = without
    make = FromTable(spec, responses.obs, options)
    structures = all_structures([structure, *more], design)
    asked = of_each_kinship(asked, design.kinship)
    windows = None if windows is None else windows.of_donors(design.donors)
    chosen, why = method_of(design, named, bounds)
    rows = read_tests(asked, design, structures[0], chosen)
    check_tests(rows, len(structures), chosen, why, design.crossing, design.kinship)
    plan = make_plan(
        design, structures, chosen, domain_of(design, bounds, noise_floor), rows,
        one_step=one_step, draws=n_bootstrap, shares=shares, windows=windows is not None, why=why,
        entropy=_entropy(rng, path, overwrite) if DRAWS in needs_of(rows.values()) else 0,
    )  # fmt: skip
    refit = Refit(spec, responses, {**options, "env": design.context}, plan, windows)
    call = refit.call(design, noise)
    store = None if path is None else Store(path, call, plan.layout.kinds(), overwrite)
    patterns = Patterns(plan, make.less(design), base, design)
    ordered = responses if windows is None else responses.chosen(windows.order)
    workers = None if n_jobs is None else threads(n_jobs)
    job = Job(patterns, ordered, store, workers, windows)
    with store or nullcontext():
        block = in_order(job.run(progress), responses.genes)
        table = doubted(full_table(block, plan.layout), responses)
        notes = notes_of(table, plan.layout, call, responses)
        scan = Scan(table, plan.layout, call, refit, notes)
        if store is not None and store.finished() is None:
            store.finish(scan.table, plan.layout, job.digest)
    means = means_warning(design.one_mean, plan.layout.structures)
    for text in (*design.doubts, *([means] if means else [])):
        warnings.warn(text, CTMMWarning, stacklevel=2)
    counts = scan.counts()
    text = notice(counts, unseen(scan.table))
    if text:
        mild = set(counts) <= {OK, BOUNDARY} and BOUNDARY in counts
        warnings.warn(text, BoundaryWarning if mild else CTMMWarning, stacklevel=2)
    return scan


def read_scan(
    path: str | Path,
    data: object = None,
    expr: object = None,
    nu: object = None,
    *,
    nu2: object = None,
    proportions: pd.DataFrame | None = None,
    kinship: object = None,
    genetic_structure: object = None,
    genotypes: Genotypes | None = None,
    positions: pd.DataFrame | None = None,
    trust: bool = False,
    functions: Mapping[str, Callable[..., object]] | None = None,
) -> Scan:
    """Read a scan that was written by ``out=`` or :meth:`Scan.to_parquet`.

    Parameters
    ----------
    path : str or Path
    data, expr, nu, nu2 : optional
        The data of the scan, as in :func:`fit_genes`, for ``scan.gene(name)``.
    proportions : DataFrame, optional
        Where the scan was given them as a table.
    kinship, genetic_structure : optional
        Where the scan was given them; the structure only where the file is of an earlier version
        and it has no name.
    genotypes, positions : optional
        Where the scan was given them.
    trust : bool
        Let the formula of the file use whatever Python has and what is defined where you call.
        Without it, columns, arithmetic and the functions of :mod:`ctmm_formula.design.vouched`.
    functions : dict of str to callable, optional
        Functions of your own that the formula uses, by name.

    Raises
    ------
    DataError
        There is no such file, it holds no scan, or one that was damaged or edited since; or the
        data lack its genes.
    FormulaError
        With data: its formula uses other functions.

    Examples
    --------
    >>> import tempfile
    >>> import ctmm_formula as ctmm
    >>> scan = ctmm.fit_genes("~ C(celltype)", data=ctmm.load_genes(), genes=["gene001", "gene002"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scan.to_parquet(f"{folder}/scan.parquet")
    ...     again = ctmm.read_scan(f"{folder}/scan.parquet")
    >>> again.table.equals(scan.table)
    True
    """
    given_functions = _functions(functions)
    trust = on_off("trust", trust)
    path = file_path("read_scan", path)
    table, layout, call = load(path)
    if data is None:
        return Scan(table, layout, call, notes=notes_of(table, layout, call, None))
    responses = open_responses(data, expr, nu, nu2, call["noise"])
    options = {name: call[name] for name in ("donor", "celltype", "n_cells", "proportions")}
    options |= {name: call.get(name) for name in ("by", "within")}  # files of before have none
    windows = _windows_of(table["gene"].tolist(), layout, call, genotypes, positions)
    options |= _kinship_of(layout, call, kinship, genetic_structure)
    env = {**(caller() if trust else {}), **given_functions}
    options |= {"engine": call["formula_engine"], "env": env}
    lost = sorted(set(table["gene"]) - set(responses.genes))
    if lost:
        raise DataError(f"the data have no gene {listing(lost)} of the scan")
    given = proportions if responses.proportions is None else responses.proportions
    if given is not None:
        options["proportions"] = given
    elif options["proportions"] == _TABLE:
        raise DataError("the scan took its proportions from a table: give it, proportions=")
    domain = Domain(call["bounds"], call["noise_floor"])
    why = str(call.get("why", ""))  # no gene is tested
    plan = Plan(layout, call["method"], domain, "", call["one_step"], 1, 0, why=why)
    spec = parse(call["formula"], response_required=False)
    if spec.response:
        raise DataError(f"{str(path)!r} is damaged or was edited: its formula has a response")
    if not trust:
        check_vouched(spec.fixed, responses.obs.columns, {}, given_functions)
    notes = notes_of(table, layout, call, responses.chosen(table["gene"].tolist()))
    return Scan(table, layout, call, Refit(spec, responses, options, plan, windows), notes)


def _windows_of(
    genes: Sequence[str],
    layout: Layout,
    call: Mapping[str, Any],
    genotypes: object,
    positions: object,
) -> Windows | None:
    """The windows that a scan took, whose file does not hold the genotypes."""
    if not layout.windows:
        return None
    if genotypes is None or positions is None:
        raise DataError(
            "the scan took genotypes, which its file does not hold: give them, genotypes= and "
            "positions="
        )
    found = windows_of(genotypes, call["window"], call["maf"], positions, genes)
    if fingerprint(found.parts) != call["windows"]:
        raise DataError("genotypes= or positions= are not those of the scan: give them as it had")
    return found


def _kinship_of(
    layout: Layout, call: Mapping[str, Any], kinship: object, genetic_structure: object
) -> dict[str, object]:
    """The kinship that a scan took, which its file does not hold."""
    names = call.get("kinship") or []
    if not (names or layout.windows):
        return {}
    own = names[1:] if layout.windows else names
    if kinship is None and own:
        raise DataError("the scan took a kinship, which its file does not hold: give it, kinship=")
    given = genetic_structure
    if given is None:
        given = layout.genetic[0][1].given if layout.genetic else call["genetic_structure"][0]
    named = kinship if isinstance(kinship, Mapping) else {own[0]: kinship} if own else {}
    if set(named) != set(own):
        raise DataError(f"the scan took the kinships {listing(own)}: give each by its name")
    return {
        "kinship": with_own(named) if layout.windows else dict(named),
        "genetic_structure": given,
    }


def _functions(functions: object) -> dict[str, Callable[..., object]]:
    """Functions by name, or an error."""
    if functions is None:
        return {}
    if not isinstance(functions, Mapping) or not all(
        isinstance(name, str) and callable(one) for name, one in functions.items()
    ):
        raise DataError("functions= takes functions by name: functions={'double': double}")
    return dict(functions)


def _entropy(rng: Rng, out: Path | None, overwrite: bool) -> int:
    """The seed of all genes; one that was drawn for a scan to be gone on with is kept."""
    if rng is None:
        begun = None if out is None or overwrite else Store.entropy(out)
        return begun or int(np.random.SeedSequence().generate_state(2, np.uint64)[0])
    own = generator(rng)  # or an error of ours
    return int(rng) if isinstance(rng, (int, np.integer)) else int(own.integers(2**63))


@dataclass(frozen=True)
class Refit:
    """One gene of a scan, fitted again with its labels."""

    spec: FormulaSpec
    responses: Responses
    options: Mapping[str, Any]
    plan: Plan
    windows: Windows | None = None

    def __getstate__(self) -> dict[str, object]:
        env = packed(self.options["env"])
        return {**self.__dict__, "options": {**self.options, "env": env}}

    def __setstate__(self, state: dict) -> None:
        options = state["options"]
        options["env"] = unpacked(options["env"])
        self.__dict__.update(state)

    def __call__(self, name: str) -> CTMMResults:
        """The results of one gene."""
        plan, table = self.plan, self.responses.obs
        k = self.responses.genes.index(name)
        values = [None if v is None else v[:, 0] for v in self.responses.read(k, k + 1)]
        names: list[str] = []
        for new in (name, "nu", "nu2"):
            while new in table.columns or new in names:
                new += "_"
            names.append(new)
        there = {new: v for new, v in zip(names, values, strict=True) if v is not None}
        response, noise, square = names
        spec = parse(f"{quote(response)} {self.spec.text}")
        main, domain = plan.layout.structures[0], plan.domain
        make = partial(
            build_design, spec, table.assign(**there), noise=noise,
            nu2=square if square in there else None,
        )  # fmt: skip
        given = [one.given for one in plan.layout.structures]
        options = dict(self.options)
        if options.get("kinship") is not None:
            given.append(options["genetic_structure"])
        if self.windows is not None:
            options["kinship"] = {**options["kinship"], CIS: self.windows.of(name)}
        design, _ = identified(lambda without: make(**{**options, "without": without}), given)
        structure = main if main.celltypes == design.effects else main.given
        results = fit_design(design, structure, plan.method, domain.bounds, domain.noise_floor)
        # its jackknife is the one of the table
        results = replace(results, one_step=plan.layout.one_step)
        own = self.responses.var
        var = pd.DataFrame(index=[name]) if own is None else own.iloc[self.responses.places[[k]]]
        results.notes += scale_of(results, self.responses.uns, var)
        results.notes = (*([plan.why] if plan.why else []), *results.notes)
        return results

    def call(self, design: Design, noise: str) -> dict[str, Any]:
        """All that a scan's numbers depend on but the values of the genes."""
        plan = self.plan
        given = self.options["proportions"]
        share: Any = given if given is None or isinstance(given, str) else _TABLE
        if isinstance(given, (list, tuple)):
            share = [str(name) for name in given]
        random = [part for c in design.random for part in (c.codes, c.values)]
        cells = np.zeros(0) if design.n_cells is None else design.n_cells
        windows = self.windows
        related = [p for one in design.kinship for p in (one.kernel.whole, one.structure.basis)]
        names = {
            "kinship": [one.name for one in design.kinship],
            "genetic_structure": [one.structure.name for one in design.kinship],
        }
        return {
            "version": recorded_versions()["ctmm-formula"],
            "formula": self.spec.text,
            "structures": [structure.name for structure in plan.layout.structures],
            "method": plan.method,
            "why": plan.why,
            "tests": list(plan.layout.tests),
            "bounds": plan.domain.bounds,
            "noise_floor": plan.domain.noise_floor,
            "one_step": plan.one_step,
            **({"shares": True} if plan.layout.shares else {}),
            **({"fixed_by": KENWARD_ROGER} if plan.fixed_by == KENWARD_ROGER else {}),
            "n_bootstrap": plan.draws if DRAWS in needs_of(plan.tests.values()) else 0,
            "entropy": plan.entropy,
            **{name: self.options[name] for name in ("donor", "celltype", "n_cells")},
            **{name: self.options[name] for name in ("by", "within")},
            **(names if design.kinship else {}),
            **({} if windows is None else {
                "window": windows.window, "maf": windows.maf, "windows": fingerprint(windows.parts)
            }),
            "proportions": share,
            "formula_engine": self.options["engine"],
            "noise": noise,
            "one_mean": design.one_mean,
            "doubts": list(design.doubts),
            "summary": summary_of(self.responses.uns),
            "data": fingerprint(
                list(design.names), list(design.celltypes), list(design.donors), design.rows,
                design.donor_codes, design.X, design.E, cells, *random,
                *(structure.basis for structure in plan.layout.structures),
                *related,
            ),
            "genes": fingerprint(list(self.responses.genes), block_size(len(self.responses.obs))),
        }  # fmt: skip
