"""Design matrices by patsy or formulaic, with the same columns and names from both.

A :class:`Coding` remembers text, training rows and the few names of the caller the formula
uses.  The engine's own objects, which cannot all be pickled, are rebuilt from these on demand.
"""

from __future__ import annotations

import builtins
import importlib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import pairwise
from types import ModuleType
from typing import TypeVar

import numpy as np
import pandas as pd
import patsy
import patsy.builtins

from ..arguments import choose
from ..errors import DataError, FormulaError
from .expressions import Names, column_of, is_condition, names_in
from .formula import FormulaSpec, parse
from .polynomials import poly
from .syntax import fixed_terms
from .vouched import vouch

T = TypeVar("T")
INTERCEPT = "Intercept"
_UNTOLD = 1e-8  # weight on what the rows do not tell, next to the largest entry
ALWAYS = {"np": np, "numpy": np}
"""Names every formula may use without importing them."""


_NATURAL = "cr(x, df=3, constraints='center')"
_MEANT = {
    "factor": "did you mean C?",
    "as_factor": "did you mean C?",
    "offset": "take what is known off the response, I(y - x) ~ ..., in a scan off the expression; "
    "the noise variances stay as they are",
    "ns": f"natural splines are {_NATURAL}",
    "s": f"smooth curves are splines, bs(x, df=3) or {_NATURAL}",
    "lo": f"smooth curves are splines, bs(x, df=3) or {_NATURAL}",
    "rcs": f"natural splines are {_NATURAL}",
}
"""Functions of R's formulas -> what to write here."""


def known_names(engine: str) -> frozenset[str]:
    """Functions and contrasts that `engine` brings along."""
    if choose("formula engine", engine, ENGINES) == "patsy":
        return frozenset(patsy.builtins.__all__) | frozenset(ALWAYS) | {"poly"}
    return frozenset(_formulaic().transforms.TRANSFORMS) | frozenset(ALWAYS)


def context_for(
    spec: FormulaSpec, env: Mapping[str, object], columns: set[str], engine: str
) -> dict[str, object]:
    """The names of `env` that the formula uses; columns and the engine's functions come first.

    Raises
    ------
    FormulaError
        A function or module that nobody knows.
    DataError
        A column with the name of a function that the formula uses.
    """
    known = known_names(engine)
    codes = [*spec.factors, *([spec.response] if spec.response else [])]
    context: dict[str, object] = {}
    for code in codes:
        names = names_in(code)
        _refuse_clashes(code, names, columns, known)
        for name in (*names.variables, *names.roots, *names.called):
            called = name in names.called
            if name in known or (name in columns and not called):
                continue
            if name in env and (callable(env[name]) or not called):
                context[name] = env[name]
            elif not hasattr(builtins, name) and (called or name in names.roots):
                raise FormulaError(
                    f"{code!r}: there is no {'function' if called else 'module or column'} "
                    f"{name!r}{_hint(name, known)}"
                )
    return {**ALWAYS, **context}


def _hint(name: str, known: frozenset[str]) -> str:
    if name in _MEANT:
        return f"; {_MEANT[name]}"
    if hasattr(np, name):
        return f"; did you mean np.{name}?"
    return f"; formulas know {', '.join(sorted(known))} and what is defined where you call"


def _refuse_clashes(code: str, names: Names, columns: set[str], known: frozenset[str]) -> None:
    """A column called C, Q or np is not told apart from the function or module."""
    inside = {*names.variables, *names.roots} & known if code not in names.variables else set()
    both = sorted((set(names.called) | inside) & columns)
    if both:
        raise DataError(
            f"data has a column {both[0]!r}, and {code!r} uses this name as a function, module or "
            "contrast: rename the column (or, if it is meant as a column, a + is missing)"
        )


def evaluate(code: str, frame: pd.DataFrame, context: Mapping[str, object]) -> object:
    """Value of the response expression on a table."""
    columns: dict[str, object] = {str(name): frame[name] for name in frame.columns}
    functions = {name: getattr(patsy.builtins, name) for name in patsy.builtins.__all__}
    scope = {**functions, **context, **columns, "Q": columns.__getitem__}
    try:
        with np.errstate(all="ignore"), _no_advice():
            return eval(compile(code, "<formula>", "eval"), {"__builtins__": builtins}, scope)
    except Exception as error:  # the user's own expression may raise anything
        raise FormulaError(f"the response {code!r} cannot be computed: {error}") from error


def check_vouched(
    fixed: str,
    columns: Iterable[str],
    values: Mapping[str, object],
    functions: Collection[str] = (),
) -> None:
    """Refuse to evaluate a fixed part from a file that holds more than columns and arithmetic."""
    own = {name: value for name, value in values.items() if name not in ALWAYS}
    for code in dict.fromkeys(code for term in fixed_terms(fixed) for code in term):
        vouch(code, list(columns), own, functions)


class Coding:
    """How the fixed part becomes numbers, learned from the training rows.

    Parameters
    ----------
    fixed : str
        Right-hand side of a formula.
    frame : DataFrame
        Training rows, only the columns the formula uses.
    context : dict
        Functions and values the formula uses.
    engine : {"patsy", "formulaic"}
    trusted : bool
        Whether the text is the caller's own; of others only what
        :mod:`ctmm_formula.design.vouched` knows is evaluated.
    kept : tuple of int, optional
        Columns that the training rows can tell, where combinations of levels have no rows.

    Examples
    --------
    >>> coding = Coding("x", pd.DataFrame({"x": [1.0, 2.0]}), {}, "patsy")
    >>> coding.names, coding.matrix(pd.DataFrame({"x": [5.0]})).tolist()
    (('Intercept', 'x'), [[1.0, 5.0]])
    """

    def __init__(
        self,
        fixed: str,
        frame: pd.DataFrame,
        context: Mapping[str, object],
        engine: str,
        trusted: bool = True,
        kept: tuple[int, ...] | None = None,
    ) -> None:
        self.fixed, self.frame, self.context, self.engine = fixed, frame, dict(context), engine
        self.trusted, self.kept = trusted, kept
        self._built: _Patsy | _Formulaic | None = None

    @property
    def _engine(self) -> _Patsy | _Formulaic:
        if self._built is None:
            if not self.trusted:
                check_vouched(self.fixed, self.frame.columns, self.context)
            build: Callable[..., _Patsy | _Formulaic] = ENGINES[
                choose("formula engine", self.engine, ENGINES)
            ]
            self._built = _guard(build, self.fixed, self.frame, self.context)
        return self._built

    def of(self, frame: pd.DataFrame) -> Coding | None:
        """The coding that training rows `frame` would give; None where it must be found anew.

        It is this one where columns stand for themselves, so that a row is coded alike whatever
        the others are, and their levels are the same.
        """
        if not self.by_row or self.kept is not None:
            return None
        for name, column in frame.items():
            known = self.frame[name].dtype
            if isinstance(known, pd.CategoricalDtype) and not column.cat.categories.equals(
                known.categories
            ):
                return None
        out = Coding(self.fixed, frame, self.context, self.engine, self.trusted)
        out._built = self._engine
        return out

    @cached_property
    def by_row(self) -> bool:
        """Whether all factors are columns as they stand: numbers x, or ``C(x)`` of texts."""
        for code in parse(f"~ {self.fixed}", response_required=False).factors:
            name = column_of(code)
            if name is None:
                return False
            text = isinstance(self.frame[name].dtype, pd.CategoricalDtype)
            if "C" in names_in(code).called and not text:
                return False
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """Column names, in patsy's order and spelling."""
        names = self._engine.names
        return names if self.kept is None else tuple(names[k] for k in self.kept)

    @property
    def terms(self) -> dict[str, list[int]]:
        """Columns of every term, by its name in patsy's spelling: numbers among ``names``.

        >>> coding = Coding("x * z", pd.DataFrame({"x": [1.0, 2.0], "z": [0.0, 5.0]}), {}, "patsy")
        >>> coding.terms
        {'Intercept': [0], 'x': [1], 'z': [2], 'x:z': [3]}
        """
        kept = range(len(self._engine.names)) if self.kept is None else self.kept
        place = {column: number for number, column in enumerate(kept)}
        told = {
            name: [place[column] for column in columns if column in place]
            for name, columns in self._engine.term_columns.items()
        }
        return {name: columns for name, columns in told.items() if columns}

    def matrix(self, frame: pd.DataFrame) -> np.ndarray:
        """Design rows, shape (len(frame), p), coded as the training rows were.

        Of `kept` columns; NaN in rows that no combination of the training rows is.
        """
        X = _guard(self._engine.matrix, frame)
        if self.kept is None:
            return X
        unknown = np.abs(X @ self._untold).max(axis=1) > _UNTOLD * np.abs(X).max(axis=1)
        out = X[:, self.kept]
        out[unknown] = np.nan
        return out

    @cached_property
    def _untold(self) -> np.ndarray:
        """Directions of the effects that the training rows say nothing of, (all, all - kept)."""
        X = _guard(self._engine.matrix, self.frame)
        kept = np.array(self.kept)
        gone = np.setdiff1d(np.arange(X.shape[1]), kept)
        out = np.zeros((X.shape[1], len(gone)))
        out[kept] = -np.linalg.lstsq(X[:, kept], X[:, gone], rcond=None)[0]
        out[gone, np.arange(len(gone))] = 1.0
        return out

    def __getstate__(self) -> dict[str, object]:
        state = {name: own for name, own in self.__dict__.items() if name != "_untold"}
        state["_built"] = None
        state["context"] = packed(self.context)
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, context=unpacked(state["context"]))


class _Module:
    """A module by name: modules themselves cannot be pickled."""

    def __init__(self, name: str) -> None:
        self.name = name


def packed(context: Mapping[str, object]) -> dict[str, object]:
    """Functions and values of a formula as they can be pickled.

    Raises
    ------
    DataError
        A lambda, or a function inside another one.
    """
    return {name: _portable(name, value) for name, value in context.items()}


def unpacked(context: Mapping[str, object]) -> dict[str, object]:
    """The inverse of :func:`packed`."""
    return {
        name: importlib.import_module(value.name) if isinstance(value, _Module) else value
        for name, value in context.items()
    }


def _portable(name: str, value: object) -> object:
    if isinstance(value, ModuleType):
        return _Module(value.__name__)
    where = getattr(value, "__qualname__", "")
    if "<lambda>" in where or "<locals>" in where:
        raise DataError(
            f"the formula uses {name!r}, a lambda or a function defined inside another one, which "
            "cannot be stored: define it at the top of a module"
        )
    return value


def _guard(function: Callable[..., T], *arguments: object) -> T:
    """Run an engine; whatever it raises is a FormulaError of ours."""
    try:
        with np.errstate(all="ignore"), _no_advice():
            return function(*arguments)
    except (FormulaError, DataError):
        raise
    except Exception as error:  # engines pass on anything the user's expressions raise
        message = str(error) or type(error).__name__
        raise FormulaError(f"the fixed part cannot be computed: {message}") from error


class _Patsy:
    """patsy's design of one fixed part."""

    def __init__(self, fixed: str, frame: pd.DataFrame, context: dict[str, object]) -> None:
        scope = patsy.EvalEnvironment([{"poly": poly, **context}])
        matrix = patsy.dmatrix(f"~ {fixed}", frame, eval_env=scope, NA_action=_keep_missing())
        self.info = matrix.design_info
        self.names = tuple(self.info.column_names)
        slices = self.info.term_name_slices.items()
        self.term_columns = {
            name: list(range(*own.indices(len(self.names)))) for name, own in slices
        }

    def matrix(self, frame: pd.DataFrame) -> np.ndarray:
        out = patsy.build_design_matrices([self.info], frame, NA_action=_keep_missing())[0]
        return np.array(out, dtype=np.float64)


def _keep_missing() -> patsy.NAAction:
    """Rows are never dropped here: the one mask of the table has done that."""
    return patsy.NAAction(on_NA="raise", NA_types=[])


@contextmanager
def _no_advice() -> Iterator[None]:
    """Python's own words on odd code, before it is run and fails with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        yield


@contextmanager
def _unseen_are_errors(formulaic: ModuleType) -> Iterator[None]:
    """Levels that formulaic does not know would be rows of zeros."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", formulaic.errors.DataMismatchWarning)
        yield


class _Formulaic:
    """formulaic's design, with its columns put in patsy's order and spelling."""

    def __init__(self, fixed: str, frame: pd.DataFrame, context: dict[str, object]) -> None:
        formulaic = _formulaic()
        self.context = {**_patsy_contrasts(), **context}
        self.terms = parse(f"~ {fixed}", response_required=False).terms
        spelling = {code: _spelling(code) for term in self.terms for code in term}
        texts = [":".join(spelling[code] for code in term) or "1" for term in self.terms]
        formula = formulaic.Formula(texts or ["0"], _ordering="degree")
        with _unseen_are_errors(formulaic):
            self.spec = formula.get_model_matrix(
                frame, context=self.context, na_action="ignore", output="numpy"
            ).model_spec
        entries = self._patsy_entries(formulaic, texts)
        self.names = tuple(name for _, _, names in entries for name in names)
        self.columns = [k for _, where, _ in entries for k in where]
        starts = np.cumsum([0, *(len(names) for _, _, names in entries)]).tolist()
        self.term_columns = {
            ":".join(term) or INTERCEPT: list(range(start, stop))
            for (term, _, _), (start, stop) in zip(entries, pairwise(starts), strict=True)
        }

    def matrix(self, frame: pd.DataFrame) -> np.ndarray:
        with _unseen_are_errors(_formulaic()):
            out = self.spec.get_model_matrix(
                frame, context=self.context, na_action="ignore", output="numpy"
            )
        return np.asarray(out, dtype=np.float64)[:, self.columns]

    def _patsy_entries(
        self, formulaic: ModuleType, texts: list[str]
    ) -> list[tuple[tuple[str, ...], list[int], list[str]]]:
        """Terms in patsy's order: their factors, columns, and names as it writes them.

        patsy sorts terms by the set of their numeric factors (none first, then as first met),
        and within a set by degree.
        """
        kinds = {str(key): kind.value for key, (kind, _) in self.spec.encoder_state.items()}
        groups: dict[frozenset[str], list[tuple[tuple[str, ...], list[int], list[str]]]] = {
            frozenset(): []
        }
        for term, text in zip(self.terms, texts, strict=True):
            parsed = next(iter(formulaic.Formula([text], _ordering="none")))
            factors = [str(factor) for factor in parsed.factors] if term else []
            numeric = {name for name in factors if kinds.get(name) == "numerical"}
            where = list(range(*self.spec.term_slices[parsed].indices(10**9)))
            names = [self._rename(self.spec.column_names[k], term, factors, numeric) for k in where]
            groups.setdefault(frozenset(numeric), []).append((term, where, names))
        return [e for group in groups.values() for e in sorted(group, key=lambda e: len(e[0]))]

    def _rename(
        self, name: str, term: tuple[str, ...], factors: list[str], numeric: set[str]
    ) -> str:
        """One column name in patsy's spelling; splines count from 0 there."""
        if not term:
            return INTERCEPT
        # formulaic leaves a factor out of the name where a term needs no columns for it
        parts = "".join(
            rf"(?:(?:^|(?<=.):)(?P<f{i}>{re.escape(f)})(?P<s{i}>\[.*?\]|\.\w+|\^\d+)?(?=:|$))?"
            for i, f in enumerate(factors)
        )
        match = re.fullmatch(parts, name)
        if match is None:
            return name
        out = []
        for i, (code, factor) in enumerate(zip(term, factors, strict=True)):
            if match[f"f{i}"] is None:
                continue
            suffix = match[f"s{i}"] or ""
            if factor in numeric and suffix[1:-1].isdigit():
                suffix = f"[{int(suffix[1:-1]) - self._first(factor)}]"
            out.append(code + suffix)
        return ":".join(out)

    def _first(self, factor: str) -> int:
        """The smallest number among a factor's columns."""
        pattern = re.compile(rf"(?:^|:){re.escape(factor)}\[(\d+)\](?=:|$)")
        found = [int(n) for name in self.spec.column_names for n in pattern.findall(name)]
        return min(found, default=0)


def _spelling(code: str) -> str:
    """A factor as formulaic must read it to mean what patsy means.

    Conditions are categories in patsy and numbers there; its scale() divides by n - 1.
    """
    return (
        f"C({code})" if is_condition(code) else re.sub(r"(?<![\w.])scale\(", "standardize(", code)
    )


@cache
def _patsy_contrasts() -> dict[str, type]:
    """patsy's contrasts for formulaic, whose own differ where no intercept comes before them."""
    from formulaic.transforms.contrasts import Contrasts
    from interface_meta import override  # formulaic's own way to mark overridden methods

    def wrap(contrast: type) -> type:
        class Wrapped(Contrasts):
            FACTOR_FORMAT = FACTOR_FORMAT_REDUCED = "{name}{field}"

            def __init__(self, *args: object, **kwargs: object) -> None:
                self.contrast = contrast(*args, **kwargs)

            def code(self, levels: Sequence[object], reduced_rank: bool) -> patsy.ContrastMatrix:
                if reduced_rank:
                    return self.contrast.code_without_intercept(list(levels))
                return self.contrast.code_with_intercept(list(levels))

            @override
            def _get_coding_matrix(
                self, levels: Sequence[object], reduced_rank: bool = True, sparse: bool = False
            ) -> np.ndarray:
                return self.code(levels, reduced_rank).matrix

            @override
            def get_coding_column_names(
                self, levels: Sequence[object], reduced_rank: bool = True
            ) -> list[str]:
                return self.code(levels, reduced_rank).column_suffixes

            @override
            def get_coefficient_row_names(
                self, levels: Sequence[object], reduced_rank: bool = True
            ) -> list[str]:
                return [str(level) for level in levels]

        return Wrapped

    names = ("Treatment", "Sum", "Helmert", "Diff", "Poly")
    return {name: wrap(getattr(patsy, name)) for name in names}


def _formulaic() -> ModuleType:
    """The optional package."""
    try:
        import formulaic
        import formulaic.errors
        import formulaic.transforms
    except ImportError:
        raise DataError(
            "formula_engine='formulaic' needs the package formulaic: pip install formulaic"
        ) from None
    return formulaic


ENGINES: dict[str, type[_Patsy] | type[_Formulaic]] = {"patsy": _Patsy, "formulaic": _Formulaic}
"""Registry: name -> class(fixed, frame, context) with ``names`` and ``matrix(frame)``."""
