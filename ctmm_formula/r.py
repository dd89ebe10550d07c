"""R from Python, for those who want the R package softImpute: a thin bridge over rpy2.

Nothing here runs when the package is imported: rpy2 starts R within the process, so it is loaded
by the first call that needs it.  Conversions are local to each call and use rpy2's default
converter alone, so no global setting of rpy2 is read or changed; R's random state and Python's
``os.environ`` (rpy2 would leave R's ``LD_LIBRARY_PATH`` to every later subprocess) are put back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from threading import RLock
from typing import Any

import numpy as np
import pandas as pd

from .arguments import choose
from .cells.softimpute import Completion, certificate
from .cells.stacks import as_stack, positive
from .design.table import as_frame
from .errors import CTMMError, DataError

_LOCK = RLock()

# Warnings come back as data; the generator is as it was.
_CALL = """
function(x, rank, lambda, type, thresh, maxit, seed) {
  old <- if (exists(".Random.seed", globalenv())) get(".Random.seed", globalenv())
  on.exit(if (is.null(old)) rm(".Random.seed", envir = globalenv())
          else assign(".Random.seed", old, globalenv()))
  set.seed(seed)
  said <- character()
  fit <- withCallingHandlers(
    softImpute::softImpute(x, rank.max = rank, lambda = lambda, type = type, thresh = thresh,
                           maxit = maxit),
    warning = function(w) {
      said <<- c(said, conditionMessage(w))
      invokeRestart("muffleWarning")
    })
  list(u = as.matrix(fit$u), d = fit$d, v = as.matrix(fit$v), said = said)
}
"""


class RUnavailableError(CTMMError):
    """R, rpy2 or an R package is not there; the message says which, and how to install it."""


def check(*packages: str) -> dict[str, str]:
    """Versions of R, rpy2 and R packages, or an error that names what is missing.

    Parameters
    ----------
    *packages : str
        R packages that are needed.

    Returns
    -------
    dict
        ``{"R": ..., "rpy2": ..., package: ...}``.

    Raises
    ------
    RUnavailableError

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> ctmm.r.check("softImpute")  # doctest: +SKIP
    {'R': '4.2.2', 'rpy2': '3.5.17', 'softImpute': '1.4.3'}
    """
    with _r() as robjects:
        major, minor = (robjects.r["R.version"].rx2(part)[0] for part in ("major", "minor"))
        found = {"R": f"{major}.{minor}", "rpy2": _rpy2_version()}
        for package in packages:
            if not robjects.r["requireNamespace"](package, quietly=True)[0]:
                folders = ", ".join(robjects.r[".libPaths"]())
                raise RUnavailableError(
                    f"the R package {package} is not installed in {folders}; in R: "
                    f'install.packages("{package}")'
                )
            number = robjects.r["packageVersion"](package)
            found[package] = str(robjects.r["as.character"](number)[0])
    return found


def _rpy2_version() -> str:
    """Of the whole, else of the part that talks to R."""
    for name in ("rpy2", "rpy2-rinterface"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def softimpute(
    Y: np.ndarray,
    penalty: float | np.ndarray,
    *,
    type: str = "als",
    rank: int | None = None,
    tol: float = 1e-12,
    max_steps: int = 10_000,
    seed: int = 1,
) -> Completion:
    """Fill the holes of a matrix with the R package softImpute.

    Parameters
    ----------
    Y : array, shape (n, m) or (B, n, m)
        NaN where missing; all matrices of a stack miss the same entries.
    penalty : float or array of shape (B,)
        lambda > 0.
    type : {"als", "svd"}
        R's algorithm.
    rank : int, optional
        ``rank.max``, by default the most R allows, min(n, m) - 1.
    tol : float, default 1e-12
        ``thresh``: change of Z between steps, relative and squared.  R's own default, 1e-5, can
        stop far from the minimum.
    max_steps : int, default 10,000
        ``maxit``.
    seed : int
        For the random start of ``"als"``.

    Returns
    -------
    Completion
        ``objective`` and ``gap`` are computed here from R's result, for the problem without bound
        on the rank; ``converged`` says whether R stopped before ``max_steps``; ``steps`` is 0, R
        does not tell.

    Raises
    ------
    RUnavailableError
        R, rpy2 or softImpute is missing.
    CTMMError
        R stopped with an error, or a bad argument.
    DataError
        Infinite values, holes that differ within a stack, or less than 3 rows or columns.

    References
    ----------
    Hastie, Mazumder, Lee, Zadeh (2015). J Mach Learn Res 16:3367; the R package softImpute.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> ctmm.r.softimpute(Y, 2.0).values[0]  # doctest: +SKIP
    """
    choose("type", type, ["als", "svd"])
    Y, observed = as_stack(Y)
    penalty = positive(penalty, len(Y))
    most = min(observed.shape) - 1
    if most < 2:
        raise DataError(f"R's softImpute needs 3 rows and columns, got {observed.shape}")
    check("softImpute")
    Z, said = np.empty_like(Y), []
    singular = np.zeros((len(Y), min(observed.shape)))
    with _r() as robjects:
        call = robjects.r(_CALL)
        for b, matrix in enumerate(Y):
            x = robjects.r.matrix(robjects.FloatVector(matrix.ravel(order="F")), nrow=len(matrix))
            settings = (min(rank or most, most), float(penalty[b]), type, tol, max_steps, seed)
            fit = _run(call, x, *settings)
            u, d, v = (np.array(fit.rx2(part)) for part in "udv")
            Z[b] = (u.reshape(len(u), -1) * d) @ v.reshape(len(v), -1).T
            singular[b, : len(d)] = d
            said.append(list(fit.rx2("said")))
    objective, gap = certificate(Y, Z, penalty)
    return Completion(
        values=np.where(observed, Y, Z),
        penalty=penalty,
        objective=objective,
        gap=gap,
        singular_values=singular,
        steps=0,
        converged=np.array([not any("onverge" in line for line in lines) for lines in said]),
    )


def to_r(frame: pd.DataFrame) -> Any:
    """A data frame of R: numbers, truth values, texts, factors; missing values become NA.

    Parameters
    ----------
    frame : DataFrame or dict of columns
        Categorical columns become factors with their levels in order; row names are the index.

    Returns
    -------
    rpy2.robjects.DataFrame

    Raises
    ------
    RUnavailableError
    DataError
        A column of a kind that R has not.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> ctmm.r.to_r(ctmm.load_example())  # doctest: +SKIP
    """
    frame = as_frame(frame)
    with _r() as robjects:
        columns = {str(name): _vector(robjects, frame[name]) for name in frame.columns}
        table = robjects.DataFrame(columns)
        table.colnames = robjects.StrVector(list(columns))  # R's own rules would change some
        table.rownames = robjects.StrVector([str(label) for label in frame.index])
        return table


def from_r(table: Any) -> pd.DataFrame:
    """A pandas DataFrame from one of R; NA becomes missing, factors categorical.

    Parameters
    ----------
    table : rpy2.robjects.DataFrame

    Returns
    -------
    DataFrame
        Integers and truth values with NA have the dtypes ``Int64`` and ``boolean``.

    Raises
    ------
    RUnavailableError
    DataError
        Not a data frame, or a column (matrix, list) that is no vector.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> ctmm.r.from_r(ctmm.r.to_r(df))  # doctest: +SKIP
    """
    with _r() as robjects:
        if not isinstance(table, robjects.DataFrame):
            raise DataError(f"need a data frame of R, got {type(table).__name__}")
        names = list(table.colnames)
        columns = {name: _series(robjects, name, table.rx2(name)) for name in names}
        return pd.DataFrame(columns, index=pd.Index(list(table.rownames), dtype=object))


def _vector(robjects: Any, column: pd.Series) -> Any:
    """One column as a vector of R."""
    missing = column.isna().to_numpy()
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes = [robjects.NA_Integer if code < 0 else int(code) + 1 for code in column.cat.codes]
        levels = robjects.StrVector([str(label) for label in column.cat.categories])
        kind = ["ordered", "factor"] if column.cat.ordered else ["factor"]
        factor = robjects.IntVector(codes)
        factor.do_slot_assign("levels", levels)
        factor.do_slot_assign("class", robjects.StrVector(kind))
        return factor
    if pd.api.types.is_bool_dtype(column.dtype):
        flags = column.tolist()
        return robjects.BoolVector(
            [robjects.NA_Logical if na else bool(x) for x, na in zip(flags, missing, strict=True)]
        )
    if pd.api.types.is_numeric_dtype(column.dtype) and column.dtype.kind != "c":
        values = column.to_numpy(dtype=float, na_value=np.nan)
        small = np.abs(values[~missing]) < 2**31
        if pd.api.types.is_integer_dtype(column.dtype) and small.all():
            whole = [
                robjects.NA_Integer if na else int(x) for x, na in zip(values, missing, strict=True)
            ]
            return robjects.IntVector(whole)
        pairs = zip(values, missing, strict=True)
        return robjects.FloatVector([robjects.NA_Real if na else x for x, na in pairs])
    if not all(isinstance(value, str) for value in column[~missing]):
        raise DataError(
            f"column {column.name!r} ({column.dtype}) has no counterpart in R: turn it into "
            "numbers, texts or categories"
        )
    return robjects.StrVector(
        [robjects.NA_Character if na else x for x, na in zip(column, missing, strict=True)]
    )


def _series(robjects: Any, name: str, vector: Any) -> Any:
    """One vector of R as a column of pandas."""
    kind = set(vector.rclass)
    missing = np.array(list(robjects.r["is.na"](vector)), dtype=bool)
    if "factor" in kind:
        codes = np.where(missing, 0, np.array(vector, dtype=float)).astype(int) - 1
        kinds = pd.CategoricalDtype(list(robjects.r["levels"](vector)), ordered="ordered" in kind)
        return pd.Categorical.from_codes(codes.tolist(), dtype=kinds)
    if isinstance(vector, robjects.BoolVector):
        flags = np.where(missing, False, np.array(vector)).astype(bool)
        return pd.arrays.BooleanArray(flags, missing) if missing.any() else flags
    if isinstance(vector, robjects.IntVector):
        whole = np.where(missing, 0, np.array(vector)).astype(np.int64)
        return pd.arrays.IntegerArray(whole, missing) if missing.any() else whole
    if isinstance(vector, robjects.FloatVector):
        return np.where(missing, np.nan, np.array(vector, dtype=float))
    if isinstance(vector, robjects.StrVector):
        return [None if na else str(x) for x, na in zip(vector, missing, strict=True)]
    raise DataError(f"column {name!r} is no plain vector of R but {vector.rclass[0]!r}")


def _run(call: Any, *arguments: Any) -> Any:
    """Call R; its errors become ours."""
    from rpy2.rinterface_lib.embedded import RRuntimeError

    try:
        return call(*arguments)
    except RRuntimeError as error:
        raise CTMMError(f"R stopped: {str(error).strip()}") from None


@contextmanager
def _r() -> Iterator[Any]:
    """rpy2's robjects under our own converter, one thread at a time."""
    with _LOCK:
        robjects = _start()
        from rpy2.robjects import conversion, default_converter

        # the rules live in a context variable, which other threads do not inherit
        with conversion.localconverter(default_converter):
            yield robjects


def _start() -> Any:
    """Load rpy2, which starts R; what it writes into os.environ is taken out again."""
    before = dict(os.environ)
    try:
        import rpy2.robjects as robjects
        from rpy2.robjects import conversion, default_converter

        with conversion.localconverter(default_converter):
            # R loads this library when first needed, and finds it by the variables taken out below
            robjects.r("La_library()")
        return robjects
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rpy2":
            raise
        fix = _RPY2_FIX if shutil.which("R") else f"{_R_FIX}, then {_RPY2_FIX}"
        raise RUnavailableError(f"engine R needs the Python package rpy2: {fix}") from None
    # without R, rpy2 raises whatever it stumbles on: ValueError, RuntimeError, OSError, ffi.error
    except Exception as error:
        if shutil.which("R") is None and "R_HOME" not in before:
            raise RUnavailableError(f"rpy2 is installed but R is not found: {_R_FIX}") from error
        raise RUnavailableError(
            f"rpy2 cannot start R ({str(error).strip()}): R and rpy2 must fit each other, "
            f"{_RPY2_FIX}"
        ) from error
    finally:
        _restore(before)


_R_FIX = "install R (https://cran.r-project.org, or apt install r-base) and have R on the PATH"
_RPY2_FIX = "pip install rpy2, for R below 4.5: pip install 'rpy2<3.6'"


def _restore(before: dict[str, str]) -> None:
    """os.environ as it was."""
    for name in set(os.environ) - set(before):
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
