"""Jackknife and parametric bootstrap with their labels."""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..arguments import check_alpha
from ..inference.jackknife import JackknifeRun
from ..inference.testing import denominator
from .estimates import estimates


def _html(shown: Jackknife | Bootstrap, *estimates: pd.Series) -> str:
    table = pd.concat([*estimates, shown.bse, shown.conf_int()], axis=1)
    return f"<p>{html.escape(repr(shown)[1:-1])}</p>\n{table.to_html()}"


@dataclass(frozen=True, eq=False, repr=False)
class Jackknife:
    """Jackknife over donors of all parameters.

    Can be given as ``covariance=`` wherever a word can.

    Attributes
    ----------
    params : Series, length p + K
        The estimates of the fit.
    estimates : DataFrame, shape (G, p + K)
        Estimates without each donor, or group of donors, which the index names (several donors
        joined by a comma); columns as ``params``; NaN where a refit failed.
    df_resid : int
        Donors less parameters.
    failed : dict
        What could not be estimated: left-out donors -> reason.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example(), structure="hom")
    >>> jack = res.jackknife()
    >>> jack
    <Jackknife: leave out one donor, 72 refits, none failed>
    >>> jack.estimates.index[0], jack.bse.round(3)["hom"]
    ('donor01', np.float64(0.152))
    >>> res.wald_test("hom = 0", covariance=jack).method
    'wald (jackknife)'
    """

    params: pd.Series
    estimates: pd.DataFrame
    df_resid: int
    failed: dict[str, str]
    _run: JackknifeRun

    @property
    def kind(self) -> str:
        """One of "donor", "block" and "one-step"."""
        return self._run.kind

    @property
    def error(self) -> float:
        """Largest distance of the one-step version from exact refits, in standard errors.

        Measured on the donors that moved most; 0 for the exact versions.
        """
        return self._run.error

    @property
    def groups(self) -> int:
        """Number of groups of donors G that were left out, one after the other."""
        return len(self.estimates)

    @property
    def name(self) -> str:
        """What tests call it: "jackknife", "jackknife, 5 blocks", "jackknife, one step"."""
        return self._run.name

    def cov_params(self) -> pd.DataFrame:
        """Covariance (p + K, p + K) of ``params``: (G - 1)/G times the squares about the mean."""
        return pd.DataFrame(self._run.cov.copy(), self.params.index, self.params.index)

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params``."""
        return pd.Series(np.sqrt(np.diag(self._run.cov)), self.params.index, name="std_error")

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Intervals (conf_low, conf_high) by t with min(df_resid, G - 1) degrees of freedom.

        `alpha` is one less their confidence.
        """
        df = denominator(self.df_resid, 1, self.groups)
        out = estimates(self.params.to_numpy(), self.bse.to_numpy(), df, alpha)
        return pd.DataFrame(out[:, 4:], self.params.index, ["conf_low", "conf_high"])

    def __repr__(self) -> str:
        what = f"{self.groups} blocks of donors" if "block" in self.name else "one donor"
        step = ", one step" if self.kind == "one-step" else ""
        failed = f"{len(self.failed) or 'none'} failed"
        return f"<Jackknife: leave out {what}{step}, {self.groups} refits, {failed}>"

    def _repr_html_(self) -> str:
        return _html(self, self.params.rename("estimate"))


@dataclass(frozen=True, eq=False, repr=False)
class Bootstrap:
    """Parametric bootstrap of all parameters.

    Attributes
    ----------
    replicates : DataFrame, shape (n, p + K)
        One row per replicate, columns as ``params``; NaN where a refit failed.
    failed : tuple of (replicate, reason)
    """

    replicates: pd.DataFrame
    failed: tuple[tuple[int, str], ...]

    def __repr__(self) -> str:
        return f"<Bootstrap: {len(self.replicates)} refits, {len(self.failed) or 'none'} failed>"

    def _repr_html_(self) -> str:
        return _html(self)

    @property
    def bse(self) -> pd.Series:
        """Standard deviations of the replicates."""
        return self.replicates.std(ddof=1).rename("std_error")

    def cov_params(self) -> pd.DataFrame:
        """Covariance of the replicates."""
        return self.replicates.cov()

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Percentile intervals (conf_low, conf_high); `alpha` is one less their confidence."""
        check_alpha(alpha)
        ends = self.replicates.quantile([alpha / 2, 1 - alpha / 2]).T
        return ends.set_axis(["conf_low", "conf_high"], axis=1)
