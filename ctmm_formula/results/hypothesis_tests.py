"""Tests of a fit by its labels: each asks the tests of the inference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..arguments import ComponentTest, Rng, VarianceTest, choose, threads
from ..distributions import standard_errors
from ..errors import CTMMError
from ..inference.comparison import compare
from ..inference.differences import linear
from ..inference.fit import JACKKNIFE, Errors
from ..inference.hypotheses import Hypotheses, constraints, in_words
from ..inference.testing import TestResult
from ..inference.tests import COMPONENT_TESTS, GENETIC_TESTS, TESTS, named, run_test
from .kept import kept
from .parameters import tested
from .record import Covariance, Record
from .resampling import Jackknife

if TYPE_CHECKING:
    from statsmodels.stats.contrast import ContrastResults


def wald_test(res: Record, hypotheses: Hypotheses, covariance: Covariance = None) -> TestResult:
    """F test of linear hypotheses on ``params``.

    Parameters
    ----------
    hypotheses : str, list of str, dict, array or DataFrame
        As statsmodels takes them: ``"sex[T.M] = 0, PC1 = 0.1"``, ``"hom = V[T]"``,
        ``{"PC1": 0.1}``; or weights tested against 0, one column per parameter (of a
        DataFrame by name, those left out count 0).
    covariance : {"model", "jackknife", "robust"} or Jackknife, optional
        Default "robust" for fixed effects where numbers of cells are known, whatever the fit, as
        counts bias what weighs by their measured noise; else ``cov_type``.

    Returns
    -------
    TestResult
        F on q and a denominator of its own, ``df_resid`` for variance components and by the
        jackknife; nan with the reason in ``note`` where it cannot be had.

    Raises
    ------
    CTMMError
        A hypothesis names no parameter, or contradicts another.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=ctmm.load_example())
    >>> print(res.f_test("sex[T.M] = 0"))  # the same under statsmodels' other name
    linear hypothesis: wald (robust)
      null hypothesis: sex[T.M] = 0
      F(1, 18.6096) = 2.358, p = 0.1415
    """
    fit, names = res.numbers, res.labels.params
    L, rhs = constraints(names, hypotheses)
    errors = res.errors_for(L, covariance)
    return linear(fit, errors, L, rhs, null=in_words(L, rhs, names))


def t_test(res: Record, hypotheses: Hypotheses, covariance: Covariance = None) -> ContrastResults:
    """Two-sided t tests of linear hypotheses, one by one.

    ``pvalues``, ``tidy()`` and :meth:`test_component` test a single variance component
    one-sidedly, against larger values: half of the p value here where the estimate is
    positive.

    Parameters
    ----------
    hypotheses, covariance
        As in :meth:`wald_test`; of robust errors ``effect`` is the robust estimate, too.

    Returns
    -------
    statsmodels ContrastResults
        ``effect``, ``sd``, ``tvalue``, ``pvalue``, ``conf_int()``, ``summary_frame()``, and
        ``notes``, which say of every hypothesis why it has no test, or "".
    """
    from .tested import Tested

    fit = res.numbers
    L, rhs = constraints(res.labels.params, hypotheses)
    errors = res.errors_for(L, covariance)
    effect = L @ errors.estimates(fit)
    sd = standard_errors(errors.variances(L))
    if fit.trouble:  # variance components that did not settle have no test
        sd[L[:, fit.n_fixed :].any(axis=1)] = np.nan
    df = errors.df(L)
    ends = partial(_ends, errors, effect, sd, L)
    t = tested(errors, effect, sd, L, 0.05, rhs)[:, 2]
    df = np.where(df > 0, df, np.nan)
    denominator = df if errors.own else float(df[0])
    none = zip(L[:, None], np.isnan(t) | np.isnan(df), strict=True)
    notes = [linear(fit, errors, row).note if no else "" for row, no in none]
    return Tested(ends, notes, effect=effect, t=t, sd=sd, df_denom=denominator, statistic=None)


def _ends(
    errors: Errors, effect: np.ndarray, sd: np.ndarray, L: np.ndarray, alpha: float
) -> np.ndarray:
    return tested(errors, effect, sd, L, alpha)[:, 4:]


@kept
def test_variance(
    res: Record,
    method: VarianceTest | None = None,
    *,
    covariance: Jackknife | None = None,
    rng: Rng = None,
    n: int = 999,
    n_jobs: int = 1,
) -> TestResult:
    """Test V = 0: donors differ in the same way in all cell types.

    Parameters
    ----------
    method : {"score", "jackknife", "wald", "lrt", "bootstrap"}, optional
        Default "score", the one test that keeps its level where the noise is itself only
        measured; the others reject too often then (rates in the vignette on tests).

        - "score": noise-robust score test, with p values per cell type
        - "jackknife": F test of the components of V with their jackknife covariance, the
          test of Chen and Dahl, Nat Commun 15:5229 (2024); default where `covariance` is given
        - "wald": the same with the inverse expected information
        - "lrt": likelihood ratio to the fit of "hom", chi2
        - "bootstrap": the same ratio against draws from the fit of "hom"
    covariance : Jackknife, optional
        Another jackknife than that over single donors, for ``method="jackknife"``.
    rng : numpy Generator or seed, optional; n : int
        Randomness and number of draws of the bootstrap.
    n_jobs : int
        Threads of jackknife and bootstrap.

    Returns
    -------
    TestResult
        nan with the reason in ``note`` where the test cannot be had, e.g. likelihood ratios
        after moments ("he", "robust").
    """
    if method is None:
        method = "score" if covariance is None else "jackknife"
    n_jobs = threads(n_jobs)
    needed = JACKKNIFE in TESTS[choose("method", method, named("variance"))].needs
    if covariance is not None and not (needed and isinstance(covariance, Jackknife)):
        raise CTMMError(
            "covariance= of test_variance takes what jackknife() returned, with method='jackknife'"
        )

    def errors(kind: str) -> Errors:
        own = covariance or res.jackknife(one_step=res.one_step, n_jobs=n_jobs)
        return res.errors(own)

    return run_test(method, res.numbers, errors=errors, rng=rng, n=n, n_jobs=n_jobs)


@kept
def test_mean(res: Record, covariance: Covariance = None) -> TestResult:
    """Test that all cell types have the same mean, whatever coding the formula has.

    Parameters
    ----------
    covariance : {"robust", "kenward-roger", "jackknife", "model"} or Jackknife, optional
        Default "robust" where numbers of cells are known, whatever the fit: the robust estimate
        with its errors, as counts bias what weighs by their measured noise.  Else
        "kenward-roger" after REML, and "jackknife", the published one, after ML and HE.

    Returns
    -------
    TestResult
        F on C - 1 and ``df_resid``, by the model with a denominator as in :meth:`wald_test`; of
        robust errors with that of :mod:`ctmm_formula.engine.sandwich`.
    """
    none = np.zeros((0, res.numbers.n_params))  # of fixed effects alone
    return run_test(
        "mean",
        res.numbers,
        errors=lambda kind: res.errors_for(none, kind if covariance is None else covariance),
    )


def test_groups(res: Record) -> TestResult:
    """Test that donors vary alike in all groups, of a fit with ``by=``.

    By noise-robust score tests, two-sided: are all variances larger or smaller in a group
    (``pvalue``: A scales), the shared variance (``extra["shared"]``), the whole variance of a cell
    type, by its own rows (``extra["celltype"]``).  Groups whose cells differ in number or noise
    are no reason for small p values, see :mod:`ctmm_formula.inference.group_score`.

    Returns
    -------
    TestResult
        ``extra["law"]`` and ``extra["empirical"]`` have the p values by the law of normal donors
        and by the differences between donors.  Where a group has fewer than 40 donors the larger
        counts, else the empirical; with more than two groups every one is tested against the
        others and p values are combined.  nan with the reason in ``note`` without groups.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> res = ctmm.fit("expr ~ C(celltype) * sex", by="sex", data=df)
    >>> round(res.test_groups().pvalue, 2)
    0.35
    """
    return run_test("groups", res.numbers)


def test_response(res: Record) -> TestResult:
    """Test that donors respond alike to conditions, of a fit with ``within=``.

    By noise-robust score tests, one-sided: is there any variance of responses (``pvalue``), what
    all cell types share of it (``extra["shared"]``), what is specific to some
    (``extra["specific"]``), and any in a cell type, by its own rows alone (``extra["celltype"]``),
    whatever the others do.  Levels and power in ``tests/benchmarks/group_levels.md``.

    Returns
    -------
    TestResult
        nan with the reason in ``note`` where the fit has no conditions of the same donors.
    """
    return run_test("response", res.numbers)


def test_heritability(res: Record, kinship: str | None = None) -> TestResult:
    """Test that some of the variance between donors is genetic, of a fit with ``kinship=``.

    By noise-robust scores that hold products of different donors only, one-sided: is anything
    genetic (``pvalue``), what all cell types share (``extra["shared"]``), beyond that what is
    specific to some (``extra["specific"]``), and is expression in a cell type, by its own rows
    (``extra["celltype"]``).  Neither the measured noise nor the estimates of the fit matter, see
    :mod:`ctmm_formula.inference.genetic_score`; levels and power in
    ``tests/benchmarks/heritability_levels.md``.

    Parameters
    ----------
    kinship : str, optional
        Which one, where there are several.

    Returns
    -------
    TestResult
        ``statistic`` is the shared score in its null standard deviations; nan with the reason in
        ``note`` where the test cannot be had.

    Raises
    ------
    CTMMError
        No kinship of that name.

    Examples
    --------
    >>> import numpy as np, pandas as pd, ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> donors = df["donor"].unique()
    >>> sibs = np.arange(len(donors)) // 3
    >>> K = pd.DataFrame(0.5 * (np.equal.outer(sibs, sibs) + np.eye(len(donors))), donors, donors)
    >>> res = ctmm.fit("expr ~ C(celltype)", kinship=K, structure="iid", data=df)
    >>> test = res.test_heritability()
    >>> round(test.pvalue, 2), list(test.extra)
    (0.46, ['shared', 'specific', 'celltype'])
    """
    names = [one.name for one in res.design.kinship]
    number = 0
    if len(names) > 1 or kinship is not None:
        if kinship is None:
            raise CTMMError(
                f"which kinship? test_heritability({names[0]!r}), of {', '.join(names)}"
            )
        number = names.index(choose("kinship", kinship, names))
    return run_test("heritability", res.numbers, registry=GENETIC_TESTS, component=number)


def test_component(
    res: Record,
    name: str,
    method: ComponentTest | None = None,
    *,
    covariance: Jackknife | None = None,
    rng: Rng = None,
    n: int = 10_000,
) -> TestResult:
    """Test one variance component against zero, one-sidedly.

    Parameters
    ----------
    name : str
        As in ``vcomp``: ``"hom"``, ``"V[T]"``, ``"batch"``.
    method : {"wald", "jackknife", "exact"}, optional
        One-sided t test with the inverse expected information (default after ML and REML) or
        with the jackknife covariance (default after HE, and where `covariance` is given; robust
        fits have by default the same test with their own errors); or
        the exact restricted likelihood ratio of Crainiceanu and Ruppert (2004), where the
        component is the model's only one.
    covariance, rng, n
        As in :meth:`test_variance`; the exact test draws.

    Returns
    -------
    TestResult
        nan with the reason in ``note`` where the test cannot be had.
    """
    names = res.labels.components
    index = names.index(choose("variance component", name, names))
    kind = "jackknife"
    if method is None:
        by_model = covariance is None and res.cov_type == "model"
        method, kind = "wald" if by_model else "jackknife", res.cov_type
    needed = JACKKNIFE in COMPONENT_TESTS[choose("method", method, COMPONENT_TESTS)].needs
    if covariance is not None and not (needed and isinstance(covariance, Jackknife)):
        raise CTMMError(
            "covariance= of test_component takes what jackknife() returned, with method='jackknife'"
        )
    return run_test(
        method, res.numbers, registry=COMPONENT_TESTS, component=index, label=name,
        errors=lambda _: res.errors(covariance or kind), rng=rng, n=n,
    )  # fmt: skip


def compare_lr_test(res: Record, restricted: Record) -> TestResult:
    """Likelihood ratio test of this fit against a `restricted` one nested in it.

    Parameters
    ----------
    restricted : CTMMResults

    Returns
    -------
    TestResult
        chi2; ``note`` says where a bound or a fit on the edge makes it approximate.

    Raises
    ------
    CTMMError
        HE and robust fits, REML fits with different fixed parts, other data, or models not nested.
    """
    if not isinstance(restricted, Record):
        raise CTMMError(
            "compare_lr_test needs the restricted fit, a result of fit(), got "
            f"{type(restricted).__name__}"
        )
    if restricted.df_model > res.df_model:
        raise CTMMError(
            f"the restricted fit has {restricted.df_model} parameters, this one "
            f"{res.df_model}: call compare_lr_test on the larger model"
        )
    last = compare([restricted.labelled("restricted"), res.labelled("full")])[-1]
    return TestResult(
        "likelihood ratio", f"{restricted.formula}, structure {restricted.structure}",
        f"likelihood ratio ({res.method})", last["statistic"], last["df"], last["pvalue"],
        "chi2", last["note"],
    )  # fmt: skip
