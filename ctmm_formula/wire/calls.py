"""The same fits for callers that have no Python objects, such as the R package.

Requests and replies are plain dicts, lists, text, numbers and bytes; no table, array or class
crosses.  The caller builds the design; everything else is what :func:`ctmm_formula.fit` runs.
:func:`call` never raises: errors and warnings are part of its reply.  Nothing is remembered
between calls: a fit comes back with every request as the numbers that were sent out.

Arrays and factors are written as :mod:`ctmm_formula.wire.codec` says.
"""

from __future__ import annotations

import ctypes
import platform
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from joblib import parallel_config

from ..api import anova, check_settings, fit_design, scale_of, warn_of
from ..arguments import choose, generator
from ..engine.domain import Domain
from ..engine.estimate import Estimate
from ..errors import CTMMError
from ..inference.clustered import Clustered
from ..inference.fit import Errors
from ..inference.jackknife import JackknifeRun
from ..inference.small_sample import Satterthwaite
from ..inference.testing import TestResult
from ..inference.tests import COMPONENT_TESTS, GENETIC_TESTS, GROUP_TESTS, TESTS, run_test
from ..results.donors import scan_donors
from ..results.effects import effects_of
from ..results.fitted import CTMMResults
from ..results.parameters import linear
from ..results.summary import installed, versions
from .codec import Plain, decode, encode, from_plain, table, to_factor, to_plain
from .received import differences_of, kinships_of, structure_of, to_design
from .transcriptome import scan_genes

PROTOCOL = 2
"""Raised with every change that an older caller would not understand."""

_NEEDED = ("numpy", "scipy", "pandas", "patsy", "statsmodels", "numba", "joblib", "anndata")


def hello() -> Plain:
    """Protocol and versions, for the first contact.

    >>> hello()["protocol"]
    2
    """
    return {
        "protocol": PROTOCOL,
        "executable": sys.executable,
        "python": platform.python_version(),
        "prefix": sys.prefix,
        "versions": {name: text for name, text in versions(_NEEDED).items() if name != "python"},
        "missing": [name for name in _NEEDED if installed(name) == "not installed"],
    }


def call(name: str, request: Mapping[str, Any]) -> Plain:
    """Run one of ``CALLS`` with a `request` of plain values, and report how it went.

    Returns
    -------
    dict
        ``ok``; ``value`` or else ``type``, ``classes`` (of the exception and its bases, the
        nearest first), ``message`` and ``traceback``; ``warnings``, each with ``classes`` and
        ``message``.

    Examples
    --------
    >>> reply = call("sing", {})
    >>> reply["ok"], reply["classes"], reply["message"][:19]
    (False, ['CTMMError', 'ValueError', 'Exception'], "unknown call 'sing'")
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            # threads only: a process that embeds Python cannot be started again as a worker
            with _ctrl_c(), parallel_config(backend="threading"):
                reply = {"ok": True, "value": CALLS[choose("call", name, CALLS)](request)}
        except (Exception, KeyboardInterrupt) as error:
            reply = _failure(error)
    reply["warnings"] = [
        {"classes": _classes(note.category), "message": str(note.message)} for note in caught
    ]
    return reply


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C is an exception here, as in a Python of its own; afterwards it is the caller's again.

    The handler that reticulate installs asks R whether it was pressed, and R may answer by jumping
    to its prompt over the heads of Python's frames.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    ours = ctypes.pythonapi  # the handler of the process is not always the one Python knows of
    ours.PyOS_getsig.restype = ctypes.c_void_p
    ours.PyOS_setsig.argtypes = (ctypes.c_int, ctypes.c_void_p)
    process = ours.PyOS_getsig(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        ours.PyOS_setsig(signal.SIGINT, process)


def _failure(error: BaseException) -> Plain:
    return {
        "ok": False,
        "type": type(error).__name__,
        "classes": _classes(type(error)),
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def _classes(kind: type) -> list[str]:
    """Names of a class and its bases, without the roots that say nothing."""
    return [base.__name__ for base in kind.__mro__ if base not in (BaseException, object)]


# ---------------------------------------------------------------------------------------------
# fits


def _fit(request: Mapping[str, Any]) -> Plain:
    """Fit a model: request {model, structure, method, bounds, noise_floor}."""
    structure, floor = structure_of(request["structure"]), float(request["noise_floor"])
    bounds = request.get("bounds")
    method = check_settings(request.get("method"), structure, bounds, floor)
    design = to_design(request["model"])
    res = fit_design(design, structure, method, bounds, floor)
    scale = dict(request["model"].get("scale") or {})
    known = {name: [value] for name, value in scale.items() if name != "summary"}
    var = pd.DataFrame(known, index=[str(request["model"]["response"])])
    res.notes += scale_of(res, {"ctmm": {"summary": scale.get("summary", "")}}, var)
    warn_of(res)
    return _described(res)


def _stored(fit: Mapping[str, Any]) -> CTMMResults:
    """A fit that was sent out, as it was."""
    design = to_design(fit["model"])
    cells = design.structure(structure_of(fit["structure"]))
    domain = Domain(str(fit["bounds"]), float(fit["noise_floor"]))
    return CTMMResults(design, cells, domain, from_plain(Estimate, fit["estimate"]))


def _described(res: CTMMResults) -> Plain:
    """Everything that a caller needs to know of a fit without asking again."""
    same = ("structure", "kind", "cov_type", "df_resid", "n_possible")
    lists = {"celltypes": res.celltypes, "donors": res.donors, "notes": res.notes}
    lists |= {"labels": res.structure_.labels, "random_names": res.labels.random}
    return {
        "estimate": to_plain(res.estimate),
        "bounds": res.domain.bounds,
        "names": list(map(str, res.params.index)),
        "n_fixed": res.numbers.n_fixed,
        "cov": encode(res.cov_params().to_numpy()),
        "df": encode(res.errors().df(np.eye(res.numbers.n_params))),
        "slopes": _slopes(res.errors()),
        "error_df": _error_df(res.errors()),
        "table": table(res.table()),
        "aic": float(res.numbers.aic),
        "bic": float(res.numbers.bic),
        "shares": table(res.variance_explained(by_celltype=True)),
        **_crossing(res),
        "kinship": {
            one.name: encode(A)
            for one, A in zip(
                res.design.kinship,
                res.arrays.genetic_covariances(res.estimate.theta),
                strict=True,
            )
        },
        "versions": dict(res.versions),
        **{name: getattr(res, name) for name in same},
        **{name: list(values) for name, values in lists.items()},
        **{name: encode(getattr(res, name).to_numpy()) for name in ("A", "V", "corr")},
        **_effects(res),
    }


def _slopes(errors: Errors) -> Plain | None:
    """What Satterthwaite's degrees of freedom of any combination follow from."""
    parts = errors.own.parts if isinstance(errors.own, Satterthwaite) else None
    return None if parts is None else {"root": encode(parts[0]), "slopes": encode(parts[1])}


def _error_df(errors: Errors) -> Plain | None:
    """Degrees of freedom of the standard errors of the components, where intervals go by them."""
    return encode(errors.own.fit.error_df) if isinstance(errors.own, Clustered) else None


def _effects(res: CTMMResults) -> Plain:
    """Predicted random effects and fitted values, or the reason why there are none.

    With groups or conditions those of donors are estimates and errors (donors, effects or levels).
    """
    try:
        tables = res.random_effects
    except CTMMError as error:
        return {"effects": None, "fitted": None, "no_effects": str(error)}
    effects: Plain = {}
    for name, frame in tables.items():
        if name in ("shared", "specific") and res.design.crossing is not None:
            effects[name] = {what: encode(_wide(res, frame[what])) for what in frame}
        else:
            effects[name] = encode(frame.to_numpy(dtype=float))
    own = map(list, res.design.random_levels)
    levels = dict(zip(res.labels.random, own, strict=True))
    fitted = encode(res.fittedvalues.to_numpy())
    return {"effects": effects, "levels": levels, "fitted": fitted, "no_effects": ""}


def _crossing(res: CTMMResults) -> Plain:
    """Groups or conditions, names of the effects, and the icc, which a trend has none of."""
    crossing, names = res.design.crossing, list(res.design.effects)
    trend = crossing is not None and crossing.kind == "trend"
    out = {"effect_names": names, "icc": None if trend else table(res.icc())}
    return out | {"crossing": None if crossing is None else crossing._asdict()}


def _wide(res: CTMMResults, effects: pd.Series) -> np.ndarray:
    """Effects of donors as a matrix, NaN for groups that a donor is not in."""
    crossing, design = res.design.crossing, res.design
    levels = [] if crossing is None else list(crossing.levels)
    if effects.index.nlevels == 2:  # shared ones
        wide = effects.unstack()
        return wide.reindex(index=design.donors, columns=levels).to_numpy()
    wide = effects.unstack([1, 2])
    every = pd.MultiIndex.from_product([levels, design.celltypes]).swaplevel()
    names = [] if crossing is None else crossing.effects(design.celltypes)
    whole = wide.reindex(index=design.donors, columns=every).set_axis(names, axis=1)
    return whole[list(design.effects)].to_numpy()


# ---------------------------------------------------------------------------------------------
# what can be asked of a fit


def _jackknife(request: Mapping[str, Any]) -> Plain:
    """Jackknife over donors: request {fit, blocks, one_step, n_jobs}."""
    res = _stored(request["fit"])
    blocks = request.get("blocks")
    jack = res.jackknife(
        None if blocks is None else int(blocks),
        one_step=bool(request["one_step"]),
        n_jobs=int(request["n_jobs"]),
    )
    run = to_plain(jack._run)
    return {
        "names": list(map(str, jack.params.index)),
        "left_out": list(map(str, jack.estimates.index)),
        "estimates": encode(jack.estimates.to_numpy()),
        "cov": encode(jack.cov_params().to_numpy()),
        "df_resid": jack.df_resid,
        "groups": jack.groups,
        "kind": run.pop("kind"),
        "name": jack.name,
        "error": run.pop("error"),
        "failed": dict(jack.failed),
        "run": run,
    }


def _covariance(res: CTMMResults, sent: Any) -> Any:
    """What covariance= asks for: a word, or a jackknife that was sent out."""
    if not isinstance(sent, Mapping):
        return sent
    run = from_plain(JackknifeRun, {**sent, **sent["run"]})
    if (run.theta.shape[1], run.beta.shape[1]) != (len(res.vcomp), len(res.fe_params)):
        raise CTMMError("covariance= is the jackknife of another fit: use this fit's own")
    return res._jackknife_of(run)


def _test(request: Mapping[str, Any]) -> Plain:
    """One test: request {fit, what, method, name, covariance, seed, n, n_jobs}; most may lack."""
    res = _stored(request["fit"])
    known = ("variance", "mean", "component", *GROUP_TESTS, *GENETIC_TESTS)
    what = choose("test", request["what"], known)
    covariance = _covariance(res, request.get("covariance"))
    # what is not there is left to the defaults of the method called
    kinds = (("seed", "rng", int), ("n", "n", int), ("method", "method", str))
    draws: dict[str, Any] = {
        to: kind(request[key]) for key, to, kind in kinds if request.get(key) is not None
    }
    if what in GROUP_TESTS:
        test = run_test(what, res.numbers)
    elif what in GENETIC_TESTS:
        test = res.test_heritability(request.get("name"))
    elif what == "mean":
        test = res.test_mean(covariance)
    elif what == "variance":
        test = res.test_variance(covariance=covariance, n_jobs=int(request["n_jobs"]), **draws)
    else:
        test = res.test_component(str(request["name"]), covariance=covariance, **draws)
    return _sent(test)


def _sent(test: TestResult) -> Plain:
    """A test as plain values, its degrees of freedom as a list."""
    out = {name: value for name, value in test.to_dict().items() if name != "parts"}
    df = out["df"]
    out["df"] = [float(value) for value in (df if isinstance(df, Sequence) else [df])]
    return out


def _tests(request: Mapping[str, Any]) -> Plain:
    """The registry of tests: name -> what it needs, for V = 0 and means, and for components."""
    del request
    rows = {"tests": TESTS, "component": COMPONENT_TESTS}
    return {key: {name: sorted(own[name].needs) for name in own} for key, own in rows.items()}


def _errors(request: Mapping[str, Any]) -> Plain:
    """Covariance and degrees of freedom of all parameters: request {fit, covariance}, a word."""
    errors = _stored(request["fit"]).errors(str(request["covariance"]))
    df = errors.df(np.eye(len(errors.cov)))
    return {"cov": encode(errors.cov), "df": encode(df), "slopes": _slopes(errors)}


def _profiles(request: Mapping[str, Any]) -> Plain:
    """Intervals of the variance components by profile likelihood, (K, 2)."""
    return encode(_stored(request["fit"]).numbers.profiles(request["alpha"]))


def _linear(request: Mapping[str, Any]) -> Plain:
    """Combinations L b of fixed effects: request {fit, L, joint, alpha}; alpha may lack.

    Estimate, standard error, t, p and interval of each, and degrees of freedom, by the fit's own
    errors; with joint the F test of L b = 0.
    """
    res, L = _stored(request["fit"]), decode(request["L"])
    every, alpha = np.pad(L, ((0, 0), (0, len(res.vcomp)))), float(request.get("alpha", 0.05))
    own: Any = res.cov_type
    out = {"table": encode(linear(res, L, None, alpha)), "df": encode(res.errors().df(every))}
    return out | {"test": _sent(res.wald_test(every, own)) if request.get("joint") else None}


def _effects_of(request: Mapping[str, Any]) -> Plain:
    """Effects by cell type: request {fit, effects, covariance, alpha, groups}.

    ``effects`` are rows as `received` reads, ``groups`` (may lack) the levels of the fit's rows.

    Tables of effects (steps one after the other) and of their means over cell types, and the
    joint tests by name.
    """
    res = _stored(request["fit"])
    asked = differences_of(request["effects"], res.celltypes)
    covariance = _covariance(res, request.get("covariance"))
    sent = request.get("groups")
    groups = None if sent is None else pd.Series(to_factor(sent))
    found = effects_of(res, asked, covariance, float(request.get("alpha", 0.05)), groups)
    return {
        "table": encode(found.table.to_numpy()),
        "mean": encode(found.mean.to_numpy()),
        "columns": list(found.table.columns),
        "tests": {name: _sent(test) for name, test in found.tests.items()},
        "method": found.method,
        "notes": list(found.notes)[len(asked.missing) :],  # the caller knows what is missing
    }


def _heritability(request: Mapping[str, Any]) -> Plain:
    """Heritabilities and genetic correlations: request {fit, covariance, alpha}; alpha may lack."""
    res = _stored(request["fit"])
    covariance = _covariance(res, request.get("covariance"))
    found = res.heritability(covariance, float(request.get("alpha", 0.05)))
    out: Plain = {"target": found.target}
    for name, frame in (("table", found.table), ("correlations", found.correlations)):
        numbers = [column for column in frame if column != "note"]
        out[name] = {
            "keys": {
                str(key): [str(value) for value in frame.index.get_level_values(k)]
                for k, key in enumerate(frame.index.names)
            },
            "columns": {str(c): encode(frame[c].to_numpy(dtype=float)) for c in numbers},
            "note": [str(note) for note in frame["note"]],
        }
    return out


def _genetic_values(request: Mapping[str, Any]) -> Plain:
    """Predicted genetic values: request {fit, kinship}, kinship (may lack) as a fit has it."""
    res = _stored(request["fit"])
    sent = request.get("kinship")
    found = res.genetic_values(kinships_of(sent) if sent else None)
    return {
        "kinship": [str(value) for value in found.index.get_level_values(0)],
        "donors": [str(value) for value in found.index.get_level_values(1)],
        "celltypes": [str(name) for name in found.columns],
        "values": encode(found.to_numpy(dtype=float)),
    }


def _outliers(request: Mapping[str, Any]) -> Plain:
    """Deletion residuals of rows and chi2 of donors, with p values: request {fit}."""
    found = _stored(request["fit"]).outliers(adjust="none")
    parts = {"residual": found.rows["residual"], "row_p": found.rows["p_value"]}
    parts |= {"chi2": found.donors["statistic"], "donor_p": found.donors["p_value"]}
    parts["df"] = found.donors["df"]
    return {name: encode(part.to_numpy(dtype=float)) for name, part in parts.items()}


def _predicted(request: Mapping[str, Any]) -> Plain:
    """Predicted expression of the rows with its errors: request {fit}."""
    found = _stored(request["fit"]).predicted_expression()
    return {name: encode(found[name].to_numpy()) for name in ("predicted", "std_error")}


def _scan_donors(request: Mapping[str, Any]) -> Plain:
    """Variables of donors: request {fit, donors, names, values (donors x variables), missing}."""
    donors, names = (list(map(str, request[key])) for key in ("donors", "names"))
    values = decode(request["values"]).reshape(len(donors), len(names))
    own = pd.DataFrame(values, pd.Index(donors, dtype=object), names)
    res = _stored(request["fit"])
    found = scan_donors(res, own, missing=str(request["missing"]), adjust="none")
    others = [f"{name}_adjusted" for name in ("p_mean", "p_omnibus", "p_heterogeneity")]
    return {
        **table(found.drop(columns=[*others, "n_missing", "reason"])),
        "n_missing": encode(found["n_missing"].to_numpy(dtype=float)),
        "reason": list(found["reason"]),
    }


def _bootstrap(request: Mapping[str, Any]) -> Plain:
    """Replicates `start` to `stop` of a parametric bootstrap: {fit, seed, start, stop, n_jobs}.

    They are those of one run from 0 to the last, so that a caller may ask piece by piece.
    """
    res = _stored(request["fit"])
    start, stop = int(request["start"]), int(request["stop"])
    rng = generator(np.random.SeedSequence(int(request["seed"]), n_children_spawned=start))
    values, failed = res.numbers.replicates(stop - start, rng, int(request["n_jobs"]))
    return {
        "names": list(map(str, res.params.index)),
        "replicates": encode(values),
        "failed": [[start + k, reason] for k, reason in failed],
    }


def _anova(request: Mapping[str, Any]) -> Plain:
    """Likelihood ratio table: request {fits, labels}."""
    fits = [_stored(fit) for fit in request["fits"]]
    ratios = anova(*fits, labels=[str(label) for label in request["labels"]]).table
    return {**table(ratios.drop(columns="note")), "notes": [str(note) for note in ratios["note"]]}


CALLS: dict[str, Callable[[Mapping[str, Any]], Plain]] = {
    "fit": _fit,
    "jackknife": _jackknife,
    "test": _test,
    "tests": _tests,
    "errors": _errors,
    "profiles": _profiles,
    "linear": _linear,
    "effects": _effects_of,
    "heritability": _heritability,
    "genetic_values": _genetic_values,
    "outliers": _outliers,
    "predicted": _predicted,
    "scan_donors": _scan_donors,
    "bootstrap": _bootstrap,
    "anova": _anova,
    "genes": scan_genes,
}
"""What :func:`call` can run."""
