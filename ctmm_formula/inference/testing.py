"""The elementary tests, on numbers: F, one-sided t, likelihood ratio; and what they return.

A test that cannot be had has p value nan and its reason in ``note``: a scan of many genes goes on.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack

import numpy as np

from ..distributions import (
    chi2_tail,
    f_tail,
    log_chi2_tail,
    log_f_tail,
    log_of,
    log_t_tail,
    t_tail,
)  # fmt: skip
from ..engine.robust import ONE_UNIT
from ..engine.symmetric import squared_distance

LLF_TOLERANCE = 1e-6
"""A larger model may fall this far short of the smaller one by rounding; more is a failed fit."""

_SAME_MEAN = "all cell types have the same mean"
_NEGATIVE = (
    "negative components make the variance of a tested combination negative: "
    "use covariance='jackknife'"
)
_SMALLEST = math.log(1e-300)  # p values below lose digits, then are 0
_SINGULAR = 1e-10  # smallest eigenvalue of a correlation matrix of full rank


def _same(a: Any, b: Any) -> bool:
    """Whether two values of tests are equal, NaN being equal to NaN."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b or (a != a and b != b))


@dataclass(frozen=True)
class TestResult:
    """One test.

    Attributes
    ----------
    name : str
        The question, e.g. "variance differentiation".
    null : str
        The hypothesis.
    method : str
        "wald (jackknife)", "likelihood ratio (reml)", ...
    statistic : float
    df : float, or (float, float) for F; nan where the distribution has none
    pvalue : float
        nan where the test cannot be had.
    distribution : str
        "F", "t", "chi2", "chi2 mixture" or "bootstrap".
    note : str
        The reason of a p value nan, or what to keep in mind.
    extra : mapping
        Named details, e.g. ``{"celltype": {"T": 0.01, "B": 0.2}}``.
    log_pvalue : float
        Natural logarithm of `pvalue`, finite where that is too small for a number.
    log_details : mapping
        The same of the p values in `extra`.
    estimate, std_error : float
        Of a test of one number; else nan.
    parts : mapping
        Tests that belong to this one, by name.

    Examples
    --------
    >>> result = one_sided_t(2.0, 1.0, 30, name="variance component", null="hom = 0")
    >>> print(result)
    variance component: wald
      null hypothesis: hom = 0
      t(30) = 2, p = 0.02731
    >>> TestResult.from_dict(result.to_dict()) == result
    True
    """

    __test__: ClassVar[bool] = False  # its name makes pytest think it holds tests

    name: str
    null: str = ""
    method: str = ""
    statistic: float = math.nan
    df: float | tuple[float, float] = math.nan
    pvalue: float = math.nan
    distribution: str = ""
    note: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    log_pvalue: float = math.nan
    log_details: Mapping[str, Any] = field(default_factory=dict, hash=False)
    estimate: float = math.nan
    std_error: float = math.nan
    parts: Mapping[str, TestResult] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Take the logarithm of the p value where none was given."""
        if math.isnan(self.log_pvalue):
            object.__setattr__(self, "log_pvalue", log_of(self.pvalue))

    def without(self, reason: str) -> TestResult:
        """The same test as one that cannot be had, and why."""
        nan = math.nan
        return replace(self, statistic=nan, pvalue=nan, log_pvalue=nan, note=reason)

    def _outcome(self) -> str:
        df = self.df if isinstance(self.df, tuple) else (self.df,)
        inside = ", ".join(f"{value:g}" for value in df if not math.isnan(value))
        symbol = self.distribution if inside else "statistic"
        return f"{symbol}{f'({inside})' if inside else ''} = {self.statistic:.4g}"

    @property
    def _shown_p(self) -> str:
        return shown_pvalue(self.pvalue, self.log_pvalue)

    def _rows(self) -> list[tuple[str, str]]:
        rows = {"null hypothesis": self.null, "note": self.note}
        if not math.isnan(self.estimate):
            rows["estimate"] = f"{self.estimate:.4g}, standard error {self.std_error:.4g}"
        logs = self.log_details
        extra = {str(key): _text(value, logs.get(key)) for key, value in self.extra.items()}
        extra |= {
            key: f"{part._outcome()}, p = {part._shown_p}" for key, part in self.parts.items()
        }
        return [*((key, text) for key, text in rows.items() if text), *extra.items()]

    def __str__(self) -> str:
        lines = [f"  {key}: {text}" for key, text in self._rows()]
        at = 1 if self.null else 0
        outcome = f"  {self._outcome()}, p = {self._shown_p}"
        return "\n".join([f"{self.name}: {self.method}", *lines[:at], outcome, *lines[at:]])

    def __repr__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        """Whether all is the same; what is missing, NaN, is no difference."""
        if not isinstance(other, TestResult):
            return NotImplemented
        return all(_same(getattr(self, one.name), getattr(other, one.name)) for one in fields(self))

    def _repr_html_(self) -> str:
        cells = [("method", self.method), ("statistic", self._outcome())]
        cells += [("p value", self._shown_p), *self._rows()]
        rows = [f"<th>{html.escape(key)}</th><td>{html.escape(text)}</td>" for key, text in cells]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{html.escape(self.name)}</caption><tbody>{body}</tbody></table>"

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; numbers that do not exist are nan.

        Estimate, its standard error and parts only where there are some.
        """
        none = {"estimate", "std_error"} if math.isnan(self.estimate) else set()
        none |= set() if self.parts else {"parts"}
        own = {key: value for key, value in _plain(asdict(self)).items() if key not in none}
        parts = {"parts": {key: part.to_dict() for key, part in self.parts.items()}}
        return own | (parts if self.parts else {})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TestResult:
        """The inverse of :meth:`to_dict`; null stands for nan, as JSON has none."""
        known = {key.name: values[key.name] for key in fields(cls) if key.name in values}
        known |= {key: _number(known[key]) for key in _NUMBERS if key in known}
        if "parts" in known:
            known["parts"] = {key: cls.from_dict(part) for key, part in known["parts"].items()}
        return cls(**known)


_NUMBERS = ("statistic", "df", "pvalue", "log_pvalue", "estimate", "std_error")


def shown_pvalue(pvalue: float, log: float) -> str:
    """Four digits, by the logarithm of the p value where it is too small for a number.

    >>> shown_pvalue(0.03071, math.log(0.03071)), shown_pvalue(0.0, -5000.0)
    ('0.03071', '3.37e-2172')
    """
    if not -math.inf < log < _SMALLEST:
        return f"{pvalue:.4g}"
    power = math.floor(log / math.log(10.0))
    digits, _, more = f"{10.0 ** (log / math.log(10.0) - power):.3e}".partition("e")
    return f"{float(digits):.4g}e{power + int(more)}"


def _text(value: object, log: Any = None) -> str:
    """As it is shown; `log` holds the logarithms of p values in it."""
    if isinstance(value, Mapping):
        logs = log if isinstance(log, Mapping) else {}
        return ", ".join(f"{key} {_text(one, logs.get(key))}" for key, one in value.items())
    if isinstance(value, float):
        return shown_pvalue(value, math.nan if log is None else log)
    return str(value)


def _number(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_number, value))
    return math.nan if value is None else float(value)


def _plain(value: Any) -> Any:
    """Without numpy types, all the way down."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(inner) for inner in value)
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


class Labels(TypedDict, total=False):
    """What a result says of itself; the note is kept where the test can be had."""

    name: str
    null: str
    method: str
    note: str


class Law(NamedTuple):
    """What an F test of L t is referred to, where that depends on L.

    Attributes
    ----------
    cov : ndarray, shape (q, q)
        Covariance of L t.
    df : float
        Degrees of freedom of the denominator.
    scale : float
        Factor of the statistic.
    reason : str
        Why there is no test, or "".
    note : str
        What to keep in mind, or "".
    """

    cov: np.ndarray
    df: float
    scale: float
    reason: str
    note: str = ""


def wald(
    value: np.ndarray,
    cov: np.ndarray | None,
    L: np.ndarray,
    df_resid: float,
    *,
    rhs: np.ndarray | float = 0.0,
    groups: int | None = None,
    law: Law | None = None,
    **labels: Unpack[Labels],
) -> TestResult:
    """F test of L t = rhs: F = d' (L C L')^-1 d / q with d = L t - rhs, on (q, df_resid).

    Parameters
    ----------
    value : array, shape (K,)
        Estimates t.
    cov : array, shape (K, K), optional
        Their covariance C, where there is no law.
    L : array, shape (q, K), of full row rank; rhs : array, shape (q,), or float
    df_resid : float
    groups : int, optional
        Groups of donors that a jackknife C rests on: the denominator has at most groups - q
        degrees of freedom.
    law : Law, optional
        Of L t, in place of what `cov`, `df_resid` and `groups` say.
    name, null, method, note : str
        See :class:`Labels`.

    Examples
    --------
    >>> wald([3.0, 4.0], np.eye(2), np.eye(2), 10).statistic
    12.5
    """
    L = np.atleast_2d(np.asarray(L, dtype=float))
    used = (L != 0.0).any(axis=0)  # what is not tested may be unknown
    L = L[:, used]
    t = np.asarray(value, dtype=float)[used]
    q = len(L)
    df = denominator(df_resid, q, groups) if law is None else law.df
    kept: Labels = {"name": "linear hypothesis", "method": "wald", **labels}
    blank = TestResult(**kept, df=(float(q), df), distribution="F")
    if q == 0:
        return blank.without("there is nothing to test")
    if law is not None and law.reason:
        return blank.without(law.reason)
    if not df > 0:
        return blank.without(_no_df(df_resid, q, groups))
    if law is None:
        C = np.asarray(cov, dtype=float)[np.ix_(used, used)]
        S = L @ C @ L.T
    else:
        C = S = law.cov
    if not (np.isfinite(t).all() and np.isfinite(C).all()):
        return blank.without("the estimates or their covariance could not be computed")
    d = L @ t - rhs
    if not np.diag(S).all():
        return blank.without("a tested combination has no variance")
    if (np.diag(S) < 0.0).any():
        return blank.without(_NEGATIVE)
    scale = np.sqrt(np.diag(S))
    distance, smallest = squared_distance(S / np.outer(scale, scale), d / scale)
    if smallest < _SINGULAR:  # of a unit diagonal: the rank does not depend on units
        return blank.without("the covariance of the tested combinations is singular")
    F = distance / q
    note = blank.note
    if law is not None:
        F *= law.scale
        note = "; ".join(filter(None, (note, law.note)))
    p, log = f_tail(F, q, df), log_f_tail(F, q, df)
    return replace(blank, statistic=F, pvalue=p, log_pvalue=log, note=note)


def combined(L: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """L cov L' (..., q, q) of rows L (q, k) of the first k parameters.

    What has no weight may be unknown.
    """
    used = np.flatnonzero(L.any(axis=0))
    if len(used) == L.shape[1]:
        return L @ cov[..., : len(used), : len(used)] @ L.T
    L = L[:, used]
    return L @ cov[..., used[:, None], used] @ L.T


def denominator(df_resid: float, q: int, groups: int | None = None) -> float:
    """Degrees of freedom of q hypotheses: N - n_par, and at most groups - q for a jackknife.

    The covariance of G leave-out estimates has rank G - 1; with few groups it, and not the
    number of donors, limits what can be tested.

    >>> denominator(60, 4), denominator(60, 4, groups=10), denominator(60, 1, groups=72)
    (60.0, 6.0, 60.0)
    """
    return float(df_resid if groups is None else min(df_resid, groups - q))


def one_sided_t(
    value: float, se: float, df: float, *, groups: int | None = None, **labels: Unpack[Labels]
) -> TestResult:
    """One-sided t test against value > 0: p = P(T_df > value / se).

    `groups` bounds `df` as in :func:`wald`.

    >>> round(one_sided_t(0.0, 1.0, 5).pvalue, 3)
    0.5
    """
    df, given = denominator(df, 1, groups), df
    kept: Labels = {"name": "variance component", "method": "wald", **labels}
    blank = TestResult(**kept, df=df, distribution="t")
    if not df > 0:
        return blank.without(_no_df(given, 1, groups))
    if not (math.isfinite(value) and math.isfinite(se)):
        return blank.without("the estimate or its standard error could not be computed")
    if not se > 0:
        return blank.without("the estimate has no variance")
    t = float(value / se)
    return replace(blank, statistic=t, pvalue=float(t_tail(t, df)), log_pvalue=log_t_tail(t, df))


def likelihood_ratio(llf0: float, llf1: float, df: int, **labels: Unpack[Labels]) -> TestResult:
    """Likelihood ratio test of nested fits, 2 (llf1 - llf0) against chi2(df).

    >>> round(likelihood_ratio(-101.92, -100.0, 1).pvalue, 3)
    0.05
    """
    kept: Labels = {"name": "likelihood ratio", "method": "likelihood ratio", **labels}
    blank = TestResult(**kept, df=float(df), distribution="chi2")
    if not df > 0:
        return blank.without("there is nothing to test")
    if not (math.isfinite(llf0) and math.isfinite(llf1)):
        return blank.without("a log-likelihood could not be computed")
    if llf1 < llf0 - LLF_TOLERANCE:
        return blank.without(
            f"the larger model has the lower log-likelihood ({llf1:.6f} < {llf0:.6f}): "
            "one of the fits has not found its maximum"
        )
    ratio = 2.0 * max(llf1 - llf0, 0.0)
    return replace(
        blank, statistic=ratio, pvalue=chi2_tail(ratio, df), log_pvalue=log_chi2_tail(ratio, df)
    )


def _no_df(df: float, q: int, groups: int | None) -> str:
    if groups is not None and groups < 2:
        return ONE_UNIT
    if df > 0 and groups is not None:
        return (
            f"a jackknife of {groups} groups of donors cannot test {q} hypotheses at once: use "
            "more blocks, or leave out single donors"
        )
    return f"{df:g} residual degrees of freedom: as many parameters as donors, or more"


def mean_differentiation(
    L_means: np.ndarray,
    beta: np.ndarray,
    cov_beta: np.ndarray | None,
    df_resid: float,
    *,
    method: str = "wald",
    groups: int | None = None,
    law: Callable[[np.ndarray], Law | None] | None = None,
) -> TestResult:
    """Wald test that all cell types have the same mean, whatever coding the fixed part has.

    Parameters
    ----------
    L_means : array, shape (C, p)
        Row c times beta is the mean of cell type c.
    beta : array, shape (p,); cov_beta : array, shape (p, p)
        Fixed effects and their model or jackknife covariance.
    law : callable, optional
        Law of contrasts of beta (q, p), in place of `cov_beta`.
    df_resid, method, groups
        As in :func:`wald`; F is that of the contrasts mu_c - mu_C, nan where the fixed part
        leaves the cell types' means equal or partly so.

    Examples
    --------
    >>> mean_differentiation(np.eye(2), [1.0, 3.0], 0.5 * np.eye(2), 20).statistic
    4.0
    """
    L_means = np.atleast_2d(np.asarray(L_means, dtype=float))
    if np.isnan(L_means).any():
        blank = TestResult("mean differentiation", _SAME_MEAN, method, distribution="F")
        return blank.without("the rows do not tell the mean of every cell type")
    contrasts, whole = _between(L_means.tobytes(), L_means.shape)
    test = wald(
        beta, cov_beta, contrasts, df_resid, name="mean differentiation",
        null=_SAME_MEAN, method=method, groups=groups,
        law=law(contrasts) if law is not None and len(contrasts) else None,
    )  # fmt: skip
    if not whole:
        return test.without("the fixed part does not let every cell type have its own mean")
    return test


@functools.lru_cache(maxsize=64)
def _between(means: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, bool]:
    """Contrasts mu_c - mu_C from rows of means, and whether none is a combination of others."""
    L = np.frombuffer(means).reshape(shape)
    contrasts = L[:-1] - L[-1]
    largest = np.abs(L).max(axis=0)
    scaled = contrasts / np.where(largest > 0, largest, 1.0)  # units of covariates drop out
    # rounding in a covariate's mean is no part of the contrast
    contrasts[np.abs(scaled) < _SINGULAR] = 0.0
    contrasts.flags.writeable = False
    return contrasts, not len(scaled) or bool(
        np.linalg.matrix_rank(scaled, tol=_SINGULAR) == len(scaled)
    )
