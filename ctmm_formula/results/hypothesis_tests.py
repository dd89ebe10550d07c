"""Tests of a fit: each asks the tests of the inference with the labels and errors of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arguments import Rng, choose, threads, whole_number
from ..engine.likelihood import LIKELIHOODS
from ..errors import CTMMError
from ..inference import variance
from ..inference.hypotheses import Hypotheses, constraints
from ..inference.testing import denominator
from ..inference.variance import TestResult
from .parameters import COVARIANCES, Covariance, Parameters
from .resampling import Jackknife

if TYPE_CHECKING:
    from statsmodels.stats.contrast import ContrastResults


class HypothesisTests(Parameters):
    """Parameters and their tests."""

    def wald_test(self, hypotheses: Hypotheses, covariance: Covariance = None) -> TestResult:
        """F test of linear hypotheses on ``params``.

        Parameters
        ----------
        hypotheses : str, list of str, dict, array or DataFrame
            As statsmodels takes them: ``"sex[T.M] = 0, PC1 = 0.1"``, ``"hom = V[T]"``,
            ``{"PC1": 0.1}``; or weights tested against 0, one column per parameter (of a
            DataFrame by name, those left out count 0).
        covariance : {"model", "jackknife"} or Jackknife, optional
            Default ``cov_type``.

        Returns
        -------
        TestResult
            F on (q, df_resid); nan with the reason in ``note`` where it cannot be had.
        """
        names = list(self.params.index)
        L, rhs = constraints(names, hypotheses)
        errors = self._errors(covariance)
        test = variance.wald(
            self.params.to_numpy(),
            errors.cov,
            L,
            self.df_resid,
            rhs=rhs,
            null=_in_words(L, rhs, names),
            method=errors.title,
            groups=errors.groups,
        )
        stalled = L[:, len(self.estimate.beta) :].any() and variance.unconverged(self.estimate)
        return test.without(stalled) if stalled else test

    def t_test(self, hypotheses: Hypotheses, covariance: Covariance = None) -> ContrastResults:
        """Two-sided t tests of linear hypotheses, one by one.

        ``pvalues``, ``tidy()`` and :meth:`test_component` test a single variance component
        one-sidedly, against larger values: half of the p value here where the estimate is
        positive.

        Parameters
        ----------
        hypotheses, covariance
            As in :meth:`wald_test`.

        Returns
        -------
        statsmodels ContrastResults
            ``effect``, ``sd``, ``tvalue``, ``pvalue``, ``conf_int()``, ``summary_frame()``.
        """
        from statsmodels.stats.contrast import ContrastResults

        L, rhs = constraints(list(self.params.index), hypotheses)
        used = np.flatnonzero((L != 0).any(axis=0))  # what is not tested may be unknown
        errors = self._errors(covariance)
        cov = errors.cov[np.ix_(used, used)]
        effect = L @ self.params.to_numpy()
        sd = np.sqrt(np.diag(L[:, used] @ cov @ L[:, used].T))
        if not self.converged:  # variance components that did not settle have no test
            sd[L[:, len(self.estimate.beta) :].any(axis=1)] = np.nan
        df = denominator(self.df_resid, 1, errors.groups)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (effect - rhs) / sd
        return ContrastResults(
            effect=effect, t=t, sd=sd, df_denom=df if df > 0 else np.nan, statistic=None
        )

    def test_variance(
        self,
        method: str | None = None,
        *,
        covariance: Jackknife | None = None,
        rng: Rng = None,
        n: int = 999,
        n_jobs: int = 1,
    ) -> TestResult:
        """Test V = 0: donors differ in the same way in all cell types.

        Parameters
        ----------
        method : {"score", "jackknife", "model", "lrt", "bootstrap"}, optional
            Default "score", the one test that keeps its level where the noise is itself only
            measured; the others reject too often then (rates in the vignette on tests).

            - "jackknife": F test of the components of V with their jackknife covariance, the
              test of Chen and Dahl, Nat Commun 15:5229 (2024); default where `covariance` is given
            - "model": the same with the inverse expected information
            - "lrt": likelihood ratio to the fit of "hom", chi2
            - "bootstrap": the same ratio against draws from the fit of "hom"
            - "score": noise-robust score test, with p values per cell type
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
            after moments ("he").
        """
        if method is None:
            method = "score" if covariance is None else "jackknife"
        needs = method == "jackknife"
        n_jobs = threads(n_jobs)
        if covariance is not None and not (needs and isinstance(covariance, Jackknife)):
            raise CTMMError(
                "covariance= of test_variance takes what jackknife() returned, with "
                "method='jackknife'"
            )
        return variance.variance_differentiation(
            self.model,
            self.structure_,
            self.estimate,
            self.domain,
            method,
            **(self._theta_errors(covariance or self.jackknife(n_jobs=n_jobs)) if needs else {}),
            rng=rng,
            n=n,
            n_jobs=n_jobs,
        )

    def _theta_errors(self, jackknife: Covariance) -> dict[str, Any]:
        """A jackknife as tests of variance components take it."""
        p = len(self.estimate.beta)
        errors = self._errors(jackknife)
        return {"cov": errors.cov[p:, p:], "groups": errors.groups, "kind": errors.name}

    def test_mean(self, covariance: Covariance = "jackknife") -> TestResult:
        """Test that all cell types have the same mean, whatever coding the formula has.

        Parameters
        ----------
        covariance : {"jackknife", "model"} or Jackknife
            None stands for ``cov_type``.

        Returns
        -------
        TestResult
            F on (C - 1, df_resid).
        """
        p = len(self.estimate.beta)
        errors = self._errors(covariance)
        return variance.mean_differentiation(
            self.design.mean_rows,
            self.estimate.beta,
            errors.cov[:p, :p],
            self.df_resid,
            method=errors.title,
            groups=errors.groups,
        )

    def test_component(
        self,
        name: str,
        method: str = "t",
        *,
        covariance: Covariance = None,
        rng: Rng = None,
        n: int = 10_000,
    ) -> TestResult:
        """Test one variance component against zero, one-sidedly.

        Parameters
        ----------
        name : str
            As in ``vcomp``: ``"hom"``, ``"V[T]"``, ``"batch"``.
        method : {"t", "exact"}
            One-sided t test, or the exact restricted likelihood ratio of Crainiceanu and Ruppert
            (2004) where the component is the model's only one.
        covariance : {"model", "jackknife"} or Jackknife, optional
            Of the t test; default ``cov_type``.
        rng, n
            Randomness and number of draws of the exact test.

        Returns
        -------
        TestResult
            nan with the reason in ``note`` where the test cannot be had.
        """
        index = self._vc_names.index(choose("variance component", name, self._vc_names))
        by = self.cov_type if covariance is None else covariance
        if not isinstance(by, Jackknife):
            choose("covariance", by, COVARIANCES)
        if choose("method", method, ("t", "exact")) == "t":
            method = "model" if by == "model" else "jackknife"
        return variance.component(
            self.model,
            self.estimate,
            index,
            method,
            label=name,
            **(self._theta_errors(by) if method == "jackknife" else {}),
            rng=rng,
            n=whole_number("n", n, 1),
        )

    def compare_lr_test(self, restricted: HypothesisTests) -> TestResult:
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
            HE fits, REML fits with different fixed parts, other data, or models not nested.
        """
        if not isinstance(restricted, HypothesisTests):
            raise CTMMError(
                "compare_lr_test needs the restricted fit, a result of fit(), got "
                f"{type(restricted).__name__}"
            )
        if restricted.df_model > self.df_model:
            raise CTMMError(
                f"the restricted fit has {restricted.df_model} parameters, this one "
                f"{self.df_model}: call compare_lr_test on the larger model"
            )
        last = variance.compare([restricted._fitted("restricted"), self._fitted("full")])[-1]
        return TestResult(
            "likelihood ratio",
            f"{restricted.formula}, structure {restricted.structure}",
            f"likelihood ratio ({self.method})",
            last["statistic"],
            last["df"],
            last["pvalue"],
            "chi2",
            last["note"],
        )

    def _fitted(self, label: str) -> variance.Fitted:
        """The fit as likelihood ratio tests see it."""
        domain = self.domain if self.method in LIKELIHOODS else None
        return variance.Fitted(
            label, self.model, self.structure_, self.estimate, self._random_names, domain
        )


def _in_words(L: np.ndarray, rhs: np.ndarray, names: Sequence[str]) -> str:
    """Linear hypotheses as equations."""
    rows = []
    for row, value in zip(L, rhs, strict=True):
        used = [(w, name) for w, name in zip(row, names, strict=True) if w]
        terms = [f"{'-' if w < 0 else '+'} {_times(abs(w))}{name}" for w, name in used]
        rows.append(f"{' '.join(terms).removeprefix('+ ')} = {value + 0.0:g}")  # no -0
    return ", ".join(rows)


def _times(weight: float) -> str:
    return "" if weight == 1.0 else f"{weight:g} "
