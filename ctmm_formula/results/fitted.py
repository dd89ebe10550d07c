"""Results of a fit, as users hold them: a record and its methods, each in the file of its kind."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import fields
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import pandas as pd

from ..arguments import (
    MOST_DRAWS,
    FitPicture,
    Keep,
    Rng,
    choose,
    generator,
    on_off,
    whole_number,
)
from ..design.rowless import Rowless
from ..errors import DataError
from ..paths import file_path, said, write_whole
from ..progress import progress_bar
from . import (
    donors,
    hypothesis_tests,
    maketables,
    parameters,
    predictions,
    serialize,
    shares,
    terms,
)
from .effects import effects
from .heritability import heritability
from .kept import answers, kept
from .record import Covariance, Of, Record
from .resampling import Bootstrap
from .summary import Summary, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SEAL = b"ctmm_formula sha256 "
"""Between a pickle and its checksum."""


class CTMMResults(Record):
    """A fitted model.

    Made by :func:`ctmm_formula.fit`.  n rows, N donors, C cell types, p fixed effects, K variance
    components.

    Standard errors use ``cov_type``: "model" (inverse expected information and
    (X' Sigma^-1 X)^-1, fixed effects with Satterthwaite's degrees of freedom; default for ML and
    REML), "jackknife" (delete one donor; default for HE, which has no information) or "robust"
    (cluster-robust; default for, and only for, robust fits, with degrees of freedom for every
    combination).  Tests of fixed effects are robust after every method, where numbers of cells
    are known.  Methods take ``covariance=`` to choose another one, "kenward-roger" for REML fits
    of few donors, or an object that :meth:`jackknife` returned.  The jackknife is run when first
    needed and kept.

    Variance components are in squared units of the response.

    Attributes
    ----------
    design : Design
        The labelled arrays: formula, rows, levels.
    structure_ : Structure
        The covariance structure with its basis matrices.
    domain : Domain
    estimate : Estimate
        The bare numbers.
    notes : tuple of str
        What to know about the data and the fit.
    versions : dict
        Of the libraries that made the numbers.
    one_step : bool
        "jackknife" means the one-step version here, as in the scan that the gene is from.

    Examples
    --------
    >>> import ctmm_formula as ctmm
    >>> df = ctmm.load_example()
    >>> res = ctmm.fit("expr ~ C(celltype) + sex", random="batch", data=df)
    >>> res.vcomp.round(2).to_dict()
    {'hom': 0.49, 'V[day0]': 0.1, 'V[day1]': 0.38, 'V[day2]': 0.39, 'V[day3]': 1.28, 'batch': 0.29}
    >>> res.means().loc["day0"].round(2).to_dict()
    {'estimate': 0.73, 'std_error': 0.15, 'conf_low': 0.42, 'conf_high': 1.03}
    >>> print(res.test_variance())
    variance differentiation: score
      null hypothesis: no cell type-specific variance (V = 0)
      statistic = 27.94, p = 8.684e-32
      celltype: day0 1.458e-06, day1 1.255e-09, day2 1.429e-16, day3 1.377e-34
      cauchy: 1.095e-33
      weights: n_cells
    >>> print(res.wald_test("sex[T.M] = 0, hom = batch"))
    linear hypothesis: wald (robust)
      null hypothesis: sex[T.M] = 0, hom - batch = 0
      F(2, 22) = 1.706, p = 0.2047
    >>> res.predict(df.head(2), random=["batch"]).round(2).tolist()
    [1.09, 0.63]
    """

    # parameters, cell types
    table = parameters.table
    tidy = parameters.tidy
    glance = parameters.glance
    bse = Of(parameters.bse)
    bse_fe = Of(parameters.bse_fe)
    bse_re = Of(parameters.bse_re)
    tvalues = Of(parameters.tvalues)
    pvalues = Of(parameters.pvalues)
    conf_int = parameters.conf_int
    cov_params = parameters.cov_params
    means = parameters.means
    contrasts = parameters.contrasts
    contrast = parameters.contrast
    effects = effects

    # maketables' names
    __maketables_coef_table__ = property(maketables.coef_table)
    __maketables_stat__ = maketables.stat
    __maketables_depvar__ = property(maketables.depvar)
    __maketables_vcov_info__ = property(maketables.vcov_info)
    __maketables_stat_labels__ = maketables.STATISTICS
    __maketables_default_stat_keys__ = maketables.DEFAULT

    # tests
    test_variance = hypothesis_tests.test_variance
    test_mean = hypothesis_tests.test_mean
    test_component = hypothesis_tests.test_component
    test_groups = hypothesis_tests.test_groups
    test_response = hypothesis_tests.test_response
    test_heritability = hypothesis_tests.test_heritability
    wald_test = hypothesis_tests.wald_test
    f_test = hypothesis_tests.wald_test
    t_test = hypothesis_tests.t_test
    wald_test_terms = terms.wald_test_terms
    t_test_pairwise = terms.t_test_pairwise
    compare_lr_test = hypothesis_tests.compare_lr_test

    # shares of variance
    variance_explained = shares.variance_explained
    icc = shares.icc
    heritability = heritability

    # predicted effects and values
    random_effects = Of(predictions.random_effects)
    genetic_values = predictions.genetic_values
    fittedvalues = Of(predictions.fittedvalues)
    marginal = Of(predictions.marginal)
    resid = Of(predictions.resid)
    predict = predictions.predict
    get_prediction = predictions.get_prediction
    augment = predictions.augment

    # single donors
    outliers = donors.outliers
    predicted_expression = donors.predicted_expression

    def simulate(self, rng: Rng = None, n: int = 1) -> pd.DataFrame:
        """Draw `n` new responses from the fitted model.

        Parameters
        ----------
        rng : numpy Generator or seed, optional
        n : int
            Number of draws.

        Returns
        -------
        DataFrame, shape (rows, n)
            On the index of the data.
        """
        streams = generator(rng).spawn(whole_number("n", n, 1, MOST_DRAWS))
        drawn = [self.arrays.unsort(self.numbers.draw(stream)) for stream in streams]
        return pd.DataFrame(np.array(drawn).T, index=self.design.index)

    def bootstrap(
        self, n: int = 200, *, rng: Rng = None, n_jobs: int = 1, progress: bool | None = None
    ) -> Bootstrap:
        """Parametric bootstrap: draw from the fitted model and fit again.

        Parameters
        ----------
        n : int
        rng : numpy Generator or seed, optional
        n_jobs : int
            Threads; the numbers do not depend on it.
        progress : bool, optional
            Show a progress bar; by default in notebooks and terminals, of work that takes a while.

        Returns
        -------
        Bootstrap
            ``replicates``, ``bse``, ``cov_params()``, ``conf_int()``, ``failed``.
        """
        n = whole_number("n", n, 1, MOST_DRAWS)
        with progress_bar(progress, "bootstrap", "refit", n) as done:
            values, failed = self.numbers.replicates(n, rng, n_jobs, done)
        return Bootstrap(pd.DataFrame(values, columns=self.labels.params), failed)

    @overload
    def plot(
        self, kind: Literal["residuals"], ax: Sequence[Axes] | None = None, **options: Any
    ) -> np.ndarray: ...

    @overload
    def plot(self, kind: FitPicture = "gene", ax: Axes | None = None, **options: Any) -> Axes: ...

    def plot(self, kind: str = "gene", ax: Any = None, **options: Any) -> Any:
        """Draw the fit; the pictures are the functions of :mod:`ctmm_formula.plots`.

        Parameters
        ----------
        kind : {"gene", "shares", "components", "residuals", "influence", "missing", "noise"}
        ax : Axes, optional
            Where to draw (two of them for "residuals"); default a new figure, ``ax.figure``.
        **options
            Of the function of that name.

        Returns
        -------
        Axes, or an array of them
        """
        from ..plots.fits import OF_A_FIT

        return OF_A_FIT[choose("kind", kind, OF_A_FIT)][0](self, ax=ax, **options)

    def plot_data(
        self, kind: FitPicture | Literal["residuals"] = "gene", **options: Any
    ) -> pd.DataFrame:
        """Return the numbers that :meth:`plot` draws."""
        from ..plots.fits import OF_A_FIT

        return OF_A_FIT[choose("kind", kind, OF_A_FIT)][1](self, **options)

    @kept
    def summary(self, covariance: Covariance = None, alpha: float = 0.05) -> Summary:
        """Describe the fit as text, HTML (notebooks) and LaTeX.

        Parameters
        ----------
        covariance, alpha
            As in :meth:`table`.

        Returns
        -------
        Summary
            Prints itself; ``as_text()``, ``as_html()``, ``as_latex()``.
        """
        return summarise(self, covariance, alpha)

    def to_json(self, path: str | Path | None = None) -> str:
        """Everything about the fit as JSON text, floats in full precision.

        Parameters
        ----------
        path : str or Path, optional
            File to write as well.

        Raises
        ------
        DataError
            The formula uses functions of your own, which text cannot hold: pickle the results; or
            the file cannot be written, and what was there stays.
        """
        *parts, runs = (getattr(self, own.name) for own in fields(self) if own.init)
        text = serialize.dumps(*parts, tuple(runs.items()))
        if path is not None:
            name = file_path("to_json", path)
            try:
                write_whole(name, lambda part: part.write_text(text, encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(
                    f"{str(name)!r} cannot be written ({said(error)}): give another place; a file "
                    "that was there is as it was"
                ) from None
        return text

    @classmethod
    def from_json(cls, source: str | Path, *, trust: bool = False) -> CTMMResults:
        """Read results from JSON text or a file; runs no code of the file.

        Only ``predict(newdata)`` evaluates the formula, and of a formula from a file it evaluates
        columns, arithmetic and the functions of :mod:`ctmm_formula.design.vouched`: C, Q, I,
        np.log and its like, splines, scale, contrasts.

        Parameters
        ----------
        source : str or Path
            Text of :meth:`to_json`, or the path of a file.
        trust : bool
            Let its formula use whatever Python has: for files of people you would run code of.

        Returns
        -------
        CTMMResults
            With the ``versions`` that made the numbers.

        Raises
        ------
        DataError
            There is no such file, or it holds no fit, or one that was damaged or edited since.
        """
        if not isinstance(source, (str, PathLike)):
            raise DataError(
                "from_json reads the text of to_json or the path of a file, got "
                f"{type(source).__name__}"
            )
        text = str(source)
        try:
            if not isinstance(source, str) or source.lstrip()[:1] not in ("{", "[", ""):
                text = Path(source).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            name = text if len(text) < 200 else f"{text[:200]}..."
            raise DataError(f"{name!r} is neither a fit as JSON nor a file: {error}") from None
        return cls(*serialize.loads(text, on_off("trust", trust)))

    def save(self, fname: str | Path, remove_data: bool = False) -> None:
        """Pickle the results, as statsmodels does; :meth:`load` reads them.

        A pickle needs the same versions of libraries, and whoever loads it runs code that it
        holds.  What is kept for years or given to others is better written by :meth:`to_json`.

        Parameters
        ----------
        fname : str or Path
        remove_data : bool
            Call :meth:`remove_data` before.

        Raises
        ------
        DataError
            The file cannot be written, and what was there stays; or the formula uses a function
            that cannot be pickled.

        Examples
        --------
        >>> import tempfile
        >>> import ctmm_formula as ctmm
        >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     res.save(f"{folder}/fit.pickle")
        ...     again = ctmm.CTMMResults.load(f"{folder}/fit.pickle")
        >>> again.params.equals(res.params)
        True
        """
        name = file_path("save", fname)
        if on_off("remove_data", remove_data):
            self.remove_data()
        try:
            stored = pickle.dumps(self)
            stored += _SEAL + sha256(stored).digest()  # which readers of pickles leave unread
            write_whole(name, lambda part: part.write_bytes(stored))
        except (OSError, pickle.PicklingError, TypeError) as error:
            raise DataError(
                f"{str(name)!r} cannot be written ({said(error)}): give another place, or define "
                "functions of the formula at the top of a module"
            ) from None

    @classmethod
    def load(cls, fname: str | Path) -> CTMMResults:
        """Read results that :meth:`save` pickled.

        Runs code that the file holds: only for files of your own.  :meth:`from_json` reads files of
        anybody.

        Parameters
        ----------
        fname : str or Path

        Returns
        -------
        CTMMResults

        Raises
        ------
        DataError
            The file cannot be read, holds no pickled fit, or was damaged since it was written.

        Examples
        --------
        >>> import tempfile
        >>> import ctmm_formula as ctmm
        >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     res.save(f"{folder}/fit.pickle")
        ...     ctmm.CTMMResults.load(f"{folder}/fit.pickle").nobs
        275
        """
        name = file_path("load", fname)
        try:
            data = name.read_bytes()
        except (OSError, ValueError) as error:
            raise DataError(f"{str(name)!r} cannot be read: {said(error)}") from None
        stored, seal, digest = data.rpartition(_SEAL)
        if seal and digest != sha256(stored).digest():
            raise DataError(f"{str(name)!r} was damaged since it was written: save it again")
        try:
            found = pickle.loads(data)
        except Exception as error:  # whatever a pickle of other versions makes Python raise
            raise DataError(f"{str(name)!r} holds no pickled fit ({said(error)})") from None
        if not isinstance(found, cls):
            raise DataError(f"{str(name)!r} holds no fit but a {type(found).__name__}")
        return found

    def remove_data(self, keep: Keep = "rows") -> None:
        """Forget what can be computed again, or everything but the tables.

        Parameters
        ----------
        keep : {"rows", "tables", "all"}
            - "rows": without arrays of the engine, predictions and jackknives.  Every method works
              as before, and the next one takes longer.
            - "tables": some tens of kilobytes, however many rows there were.  Parameters, ``A``,
              ``V`` and ``corr`` stay, and so does what these say where they get no arguments, which
              is computed now: ``table()`` with ``bse``, ``pvalues``, ``conf_int()`` and ``tidy()``,
              ``cov_params()``, ``means()``, ``variance_explained()``, ``icc()``,
              ``heritability()``, ``test_variance()``, ``test_mean()``, ``glance()`` and
              ``summary()``.  Everything else raises a DataError that says so.
            - "all": nothing is forgotten.

        Examples
        --------
        >>> import pickle
        >>> import ctmm_formula as ctmm
        >>> res = ctmm.fit("expr ~ C(celltype)", data=ctmm.load_example())
        >>> p = res.test_variance("jackknife").pvalue
        >>> before = len(pickle.dumps(res))
        >>> res.remove_data()
        >>> len(pickle.dumps(res)) < before, res.test_variance("jackknife").pvalue == p
        (True, True)

        As :func:`ctmm_formula.fit` does with ``keep="tables"``:

        >>> res.remove_data(keep="tables")
        >>> len(pickle.dumps(res)) < before / 2, res.test_variance().method
        (True, 'score')
        >>> res.fittedvalues
        Traceback (most recent call last):
            ...
        ctmm_formula.errors.DataError: this needs rows of the fit, which keep='tables' has ...
        """
        if choose("keep", keep, get_args(Keep)) == "all":
            return
        said = answers(self) if keep == "tables" else self._answers
        stored = self.__getstate__()
        self.__dict__.clear()
        self.__dict__.update(stored)
        self._jackknives.clear()
        if keep == "tables":
            self._answers, self.design = said, Rowless(self.design)

    def _repr_html_(self) -> str:
        return self.summary().as_html()
