"""Tables and arguments: a good call, a few things done to it, and questions to what comes back.

Everything is a row: CALLS (what is called), VALUES (what is put anywhere), TABLE (what is done to
a table), ARGUMENTS (other values of an argument), QUESTIONS (what a fit is asked).
"""

from __future__ import annotations

import datetime
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import ctmm_formula as ctmm

from .harness import Try

Rng = np.random.Generator
TYPES = ["B", "Mono", "T"]
SHARES = ["prop_B", "prop_Mono", "prop_T"]

VALUES: tuple[Any, ...] = (
    0, -1, 1, 2, 0.5, 1e308, -1e308, 1e-308, 5e-324, 1e150, 10**400, -(2**31), 2**53 + 1, np.nan,
    np.inf, -np.inf, None, pd.NA, pd.NaT, True, False, "", " ", "x", "NA", "nan", "1,5", "1.5", "B",
    "a:b", "T[B]", 'q"uote', "ünï", "\ud800", "x" * 300, b"bytes", 1 + 2j, [1], {}, (1, 2),
    Decimal("1.5"), Decimal("nan"), Fraction(1, 3), np.float32(1.5), np.int8(-1), np.str_("T"),
    np.datetime64("2020-01-01"), datetime.date(2020, 1, 1), pd.Timedelta(1, "D"), pd.Interval(0, 1),
    object, np.zeros(0), np.zeros((2, 2)), np.array(2.0), float, print, "donor", "celltype", "nu",
)  # fmt: skip
KINDS = (
    "object", "str", "category", "Int64", "float32", "float16", "Float64", "bool", "boolean",
    "complex128", "string", "datetime64[ns]", "timedelta64[ns]", "Sparse[float]", "int8", "uint64",
    "longdouble", "bytes", "string[pyarrow]", "double[pyarrow]",
)  # fmt: skip


def pick(rng: Rng, values: Any) -> Any:
    """One of a sequence, as it is."""
    return values[int(rng.integers(len(values)))]


def table(rng: Rng, overall: bool = False) -> pd.DataFrame:
    """Nine to fourteen donors and three cell types, some pairs missing."""
    n = int(rng.integers(9, 15))
    donor = np.repeat(np.arange(n), len(TYPES))
    data = pd.DataFrame(
        {
            "donor": [f"d{k:02d}" for k in donor],
            "celltype": TYPES * n,
            "expr": rng.normal(size=len(donor)),
            "nu": rng.uniform(0.05, 0.4, len(donor)),
            "n_cells": rng.integers(2, 90, len(donor)),
            "batch": [f"b{k}" for k in (rng.permutation(n) % 4)[donor]],
            "site": [f"s{k}" for k in (np.arange(n) % 3)[donor]],
            "sex": np.resize(["F", "M", "M", "F", "F"], n)[donor],
            "age": rng.integers(20, 80, n)[donor],
            "PC1": rng.normal(size=n)[donor],
        }
    )
    data.insert(4, "nu2", data["nu"] ** 2 * rng.uniform(0.2, 1.8, len(donor)))
    if overall:
        shares = dict(zip(SHARES, rng.dirichlet([2, 3, 4], n).T, strict=True))
        data = data.iloc[:: len(TYPES)].drop(columns="celltype").assign(**shares)
    elif rng.random() < 0.5:
        data = data[rng.random(len(data)) < 0.9]
    return data.reset_index(drop=True)


CALLS: tuple[dict[str, Any], ...] = (
    {"formula": "expr ~ C(celltype) + sex + PC1", "method": "reml"},
    {"formula": "expr ~ C(celltype) + sex + PC1"},
    {"formula": "expr ~ C(celltype)", "random": "batch", "structure": "hom", "method": "reml"},
    {"formula": "expr ~ 0 + celltype + age", "random": ["batch", "site"], "method": "he"},
    {"formula": "expr ~ celltype * sex + (1|site/batch)", "structure": "iid", "method": "ml"},
    {"formula": "expr ~ celltype", "structure": "full", "method": "reml", "bounds": "psd"},
    {"formula": "expr ~ celltype", "structure": "banded(1)", "bounds": "nonnegative"},
    {"formula": "expr ~ celltype + bs(age, df=3)", "random": {"batch": "celltype"}},
    {"formula": "np.log1p(n_cells) ~ C(celltype, Sum) + scale(PC1)", "structure": "iid"},
    {"formula": "expr ~ sex", "proportions": SHARES, "structure": "iid", "method": "reml"},
    {"formula": "expr ~ sex + age", "proportions": SHARES, "structure": "hom", "method": "he"},
    {"formula": "expr ~ sex + (1|batch)", "proportions": SHARES, "structure": "hom"},
)  # fmt: skip


# what is done to a table: function(data, rng) -> data; what pandas itself refuses is not tried


def _column(data: pd.DataFrame, rng: Rng) -> str:
    return str(pick(rng, list(data.columns)))


def _cells(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name, value = _column(data, rng), pick(rng, VALUES)
    column = data[name].astype(object).copy()
    for at in rng.choice(len(data), int(rng.integers(1, 4)), replace=False):
        column.iloc[int(at)] = value
    return data.assign(**{name: column})


def _floats(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = str(pick(rng, ["expr", "nu", "nu2", "n_cells", "age", "PC1"]))
    value = pick(rng, (0.0, -1.0, np.nan, np.inf, 1e300, 1e-300, 1e16, 0.5, -0.0))
    column = data[name].to_numpy(dtype=float).copy()
    column[rng.random(len(data)) < pick(rng, (0.05, 0.3, 0.9))] = value
    return data.assign(**{name: column})


def _constant(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name, value = _column(data, rng), pick(rng, VALUES)
    return data.assign(**{name: pd.Series([value] * len(data), dtype=object)})


def _kind(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = _column(data, rng)
    return data.assign(**{name: data[name].astype(pick(rng, KINDS))})


def _scaled(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = str(pick(rng, ["expr", "nu", "n_cells", "age", "PC1"]))
    by = pick(rng, (1e-200, 1e-100, 1e-20, 1e-8, 1e8, 1e20, 1e100, 1e200, 0.0, -1.0))
    return data.assign(**{name: data[name] * by})


def _level(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = str(pick(rng, [c for c in ("donor", "celltype", "batch", "site", "sex") if c in data]))
    old, new = pick(rng, list(data[name].unique())), pick(rng, VALUES)
    column = data[name].astype(object)
    return data.assign(**{name: column.map(lambda v: new if v == old else v)})


def _rows(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    keep = rng.random(len(data)) < pick(rng, (0.0, 0.1, 0.3, 0.5, 0.8))
    return data[keep]


def _one_level(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = _column(data, rng)
    return data[data[name] == data[name].iloc[0]]


def _twice(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    rows = rng.integers(0, len(data), int(rng.integers(1, 2 * len(data))))
    return pd.concat([data, data.iloc[rows]])


def _index(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    n = len(data)
    indices = (
        [0] * n, [np.nan] * n, [None] * n, pd.date_range("2020", periods=n), list("ab") * n,
        pd.MultiIndex.from_product([range(n), ["a"]]), pd.Index(data.iloc[:, 0], name="donor"),
        pd.RangeIndex(n, 0, -1), pd.CategoricalIndex(["a"] * n),
    )  # fmt: skip
    return data.set_axis(pick(rng, indices)[:n])


def _names(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = _column(data, rng)
    new = pick(rng, (*VALUES, "expr", "sex", "C", "np", "Q", "a b", "Intercept", "hom", "V[B]"))
    return data.set_axis([new if c == name else c for c in data.columns], axis=1)


def _columns(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = _column(data, rng)
    ways = (
        data.drop(columns=name),
        pd.concat([data, data[[name]]], axis=1),
        data.assign(**{name: data[_column(data, rng)]}),
        data.assign(**{name: rng.permutation(data[name])}),
        data.set_axis(pd.MultiIndex.from_product([data.columns, ["x"]]), axis=1),
        data.set_axis(range(data.shape[1]), axis=1),
        data.iloc[:, :0],
        data.assign(PC1=3 * data["age"]) if {"PC1", "age"} <= set(data) else data,
        data.assign(sex=data["donor"]) if {"sex", "donor"} <= set(data) else data,
    )
    return pick(rng, ways)


def _categories(data: pd.DataFrame, rng: Rng) -> pd.DataFrame:
    name = _column(data, rng)
    values = list(dict.fromkeys(data[name].dropna()))
    ways = (
        [*values, "unused"], values[::-1], values[1:], [*values, ""],
    )  # fmt: skip
    kind = pd.CategoricalDtype(pick(rng, ways), ordered=bool(rng.integers(2)))
    return data.assign(**{name: data[name].astype(kind)})


def _container(data: pd.DataFrame, rng: Rng) -> Any:
    ways = (
        dict(data), {c: data[c].tolist() for c in data}, data.to_dict("records"), data.to_numpy(),
        data.to_records(), data.iloc[:, 0], None, "data", 3, data.T, [], {}, data.astype(object),
        {c: data[c].tolist()[: 1 + k] for k, c in enumerate(data)}, iter([data]), (data,),
        data.convert_dtypes(), data.iloc[0], Path("."), {1: [2]}, data.groupby(lambda k: k),
        data.convert_dtypes(dtype_backend="pyarrow"),
    )  # fmt: skip
    return pick(rng, ways)


TABLE = (
    _cells, _floats, _floats, _floats, _constant, _kind, _kind, _scaled, _scaled, _level, _rows,
    _rows, _one_level, _twice, _index, _index, _names, _columns, _categories, _categories,
    _container, *[lambda data, rng: data] * 4,
)  # fmt: skip
"""Those that leave something to fit come more often."""

ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "random": (
        "batch", "site", "sex", "donor", "celltype", "age", "nu", "expr", ["batch", "batch"], [],
        {"batch": "celltype", "site": "1"}, "~ batch + site", "(1|site/batch)", "(1|batch:site)",
        "(celltype|site)", "(1|PC1)", {"batch": 1}, {1: "1"}, ["batch", 3],
    ),
    "structure": (
        "hom", "iid", "free", "full", "banded(0)", "banded(9)", "banded(99999999999999999999)",
        "FREE ", [np.eye(3)], [np.ones((3, 3)), np.eye(3)], {"a": np.ones((3, 3)), "b": np.eye(3)},
        [np.eye(2)], [np.full((3, 3), np.nan)], [np.zeros((3, 3))], [-np.eye(3)], np.eye(3),
        [np.eye(3), 1e200 * np.eye(3)], [1e-300 * np.eye(3)], [1e300 * np.eye(3)],
        [np.arange(9.0).reshape(3, 3)], [["a"]], {"a": "b"}, ["free", "hom"],
    ),
    "method": ("reml", "ml", "he", "robust", "REML", "wls"),
    "donor": ("batch", "celltype", "age", "expr", "sex"),
    "celltype": ("sex", "site", "age", "PC1", "n_cells"),
    "noise": ("expr", "n_cells", "sex", "age", "nu2"),
    "nu2": ("nu", "expr", "sex", "n_cells"),
    "n_cells": ("nu", "age", "sex", "PC1", "expr"),
    "proportions": (
        SHARES, SHARES[:1], SHARES[:2], [*SHARES, "sex"], "prop_T", "nu", ["nu"], SHARES * 2,
        pd.DataFrame(np.full((14, 2), 0.5), [f"d{k:02d}" for k in range(14)], ["x", "y"]),
        pd.DataFrame(np.full((1, 2), 0.5)), pd.DataFrame(),
    ),
    "bounds": ("noise", "psd", "nonnegative"),
    "noise_floor": (1e-12, 0.999999, 0.5, Fraction(1, 2), np.float32(0.2)),
    "formula_engine": ("patsy", "formulaic", "Formulaic"),
    "formula": (
        "expr ~ 1", "expr ~ 0", "~ sex", "expr ~ sex", "np.log(expr) ~ celltype", "nu ~ celltype",
        "expr ~ celltype + C(age)", "expr ~ celltype + donor", "expr ~ celltype + C(donor):PC1",
        "expr ~ celltype + nu", "expr ~ celltype + n_cells", "expr ~ C(celltype):C(batch)",
        "sex ~ celltype", "donor ~ celltype", "expr ~ celltype + cr(age, df=4)",
        "expr ~ celltype + I(age > 50)", "expr ~ celltype + np.log(PC1)",
        "expr ~ C(celltype, Poly)",
        "expr ~ celltype + center(age) + I(age**2) + I(age**3) + I(age**9)",
        "expr ~ celltype + (1|batch) + (1|site)", "expr ~ celltype + te(cr(age, 3), cr(PC1, 3))",
    ),
}  # fmt: skip


def _argument(call: dict[str, Any], rng: Rng) -> None:
    name = str(pick(rng, list(ARGUMENTS)))
    call[name] = pick(rng, VALUES if rng.random() < 0.3 else ARGUMENTS[name])


# what a fit is asked: function(fit, data, rng)


def _test(fit: Any, data: Any, rng: Rng) -> list:
    name = pick(rng, ["score", "jackknife", "wald", "lrt", "bootstrap", *VALUES])
    return [fit.test_variance(name, n=20, rng=1)]


def _mean(fit: Any, data: Any, rng: Rng) -> list:
    return [fit.test_mean(pick(rng, COVARIANCES))]


def _component(fit: Any, data: Any, rng: Rng) -> list:
    name = pick(rng, [*fit.vcomp.index, *fit.vcomp.index, "sigma"])
    method = pick(rng, [None, "wald", "jackknife", "exact", "score"])
    return [fit.test_component(name, method, n=50, rng=1)]


def _hypothesis(fit: Any, data: Any, rng: Rng) -> list:
    p = len(fit.params)
    given = pick(
        rng,
        [
            f"{fit.params.index[0]} = 0", {str(fit.params.index[-1]): 0.1}, np.eye(p), np.ones(p),
            np.full((1, p), 1e200), np.zeros((1, p)), np.ones((2, p)), "x = 1", np.eye(p)[:, :1],
            *VALUES,
        ],
    )  # fmt: skip
    if rng.random() < 0.5:
        fit.t_test(given, pick(rng, COVARIANCES)).summary_frame()
        return []
    return [fit.wald_test(given, pick(rng, COVARIANCES))]


def _predict(fit: Any, data: Any, rng: Rng) -> list:
    new = data
    if isinstance(data, pd.DataFrame) and rng.random() < 0.8:
        new = _edited(data.head(6), rng)
    fit.predict(new, pick(rng, ["none", "all", None, ["shared"], [], *VALUES]))
    return []


def _tables(fit: Any, data: Any, rng: Rng) -> list:
    covariance, alpha = pick(rng, COVARIANCES), pick(rng, [0.05, 0.05, 0.05, *VALUES])
    ask = pick(rng, [fit.summary, fit.table, fit.tidy, fit.conf_int, fit.means, fit.contrasts])
    str(ask(covariance=covariance, alpha=alpha))
    return []


def _rest(fit: Any, data: Any, rng: Rng) -> list:
    ask = pick(
        rng,
        [
            lambda: fit.random_effects, lambda: fit.fittedvalues, lambda: fit.resid, fit.glance,
            fit.augment, fit.variance_explained, fit.icc, lambda: fit.simulate(1, 2),
            lambda: fit.bootstrap(3, rng=1).bse, lambda: fit.jackknife().bse,
            lambda: fit.jackknife(3, one_step=True).conf_int(), lambda: fit.summary().as_html(),
            lambda: fit.summary().as_latex(), lambda: fit.cov_params(), lambda: fit.pvalues,
            lambda: (fit.llf, fit.aic, fit.bic), lambda: fit.corr, fit._repr_html_,
        ],
    )  # fmt: skip
    ask()
    return []


def _kept(fit: Any, data: Any, rng: Rng) -> list:
    text = fit.to_json()
    assert type(fit).from_json(text).to_json() == text
    return []


COVARIANCES = (None, "model", "jackknife", "robust", "kenward-roger", "x", 1)
QUESTIONS: tuple[Callable[[Any, Any, Rng], list], ...] = (
    _test, _mean, _component, _hypothesis, _predict, _tables, _rest, _kept,
)  # fmt: skip


def wrong_test(test: Any) -> str:
    """A p value lies in [0, 1], or is nan with a reason."""
    p = test.pvalue
    if math.isnan(p):
        return "" if test.note else f"p of {test.name} is nan without a reason"
    return "" if 0 <= p <= 1 else f"p of {test.name} is {p}"


def wrong_fit(fit: Any, data: Any, call: dict[str, Any]) -> str:
    """What is wrong with a fit of this table, or nothing."""
    at, model = fit.estimate, fit.arrays
    theta = at.theta
    if not (np.isfinite(theta).all() and np.isfinite(at.beta).all()):
        return "parameters are not finite"
    likelihood = fit.method in ("reml", "ml")
    if likelihood and not math.isfinite(fit.llf):
        return f"llf is {fit.llf}"
    if likelihood and fit.converged:
        wrong = _outside(fit, model, theta)
        if wrong:
            return wrong
    if not isinstance(data, pd.DataFrame):
        return ""
    rows, dropped = len(data), sum(fit.design.dropped.values())
    if fit.nobs + dropped != rows:
        return f"{rows} rows given, {fit.nobs} used and {dropped} said to be dropped"
    if dropped and not any("dropped" in note for note in fit.notes):
        return "dropped rows are not in the notes"
    return _misread(fit, data, call)


def _outside(fit: Any, model: Any, theta: np.ndarray) -> str:
    """Whether theta lies outside its domain, donor by donor."""
    K = len(model.basis)
    A = np.tensordot(theta[:K], model.basis, axes=1)
    bounds, floor = fit.domain.bounds, float(fit.domain.noise_floor)
    noise = model.noise
    size = np.abs(A).max() + noise.max()
    for i in np.unique(model.row_donor):
        rows = model.row_donor == i
        own = model.H[rows] @ A @ model.H[rows].T
        if bounds == "noise":
            root = np.sqrt((1 - floor) * noise[rows])
            least = np.linalg.eigvalsh(own / np.outer(root, root) + np.eye(len(own)))[0]
            if least < -1e-8 * max(1.0, np.abs(own / np.outer(root, root)).max()):
                return f"theta is outside the domain, donor {i}: {least:.2g}"
        elif np.linalg.eigvalsh(own)[0] < -1e-8 * size:
            return f"the covariance of donor {i} is not positive semidefinite"
    if bounds != "noise" and (theta[K:] < 0).any():
        return "a random effect's variance is negative"
    variance = np.linalg.eigvalsh(model.basis)[:, 0] > -1e-12
    if bounds == "nonnegative" and (theta[:K][variance] < 0).any():
        return "a variance component is negative"
    return ""


def _misread(fit: Any, data: pd.DataFrame, call: dict[str, Any]) -> str:
    """Whether a number of the response or noise is another than that of the table."""
    rows, design = fit.design.rows, fit.design
    for name, used in ((design.response_name, design.y), (call.get("noise", "nu"), design.nu)):
        if sum(isinstance(column, str) and column == name for column in data.columns) == 1:
            given = [float(value) for value in data[name].iloc[rows]]
            if not np.array_equal(given, used):
                return f"column {name!r} was misread"
    if design.donor_col in list(data.columns):
        given = pd.factorize(data[design.donor_col].iloc[rows].astype(object))[0]
        if not np.array_equal(given, pd.factorize(design.donor_codes)[0]):
            return "donors were joined or parted"
    return ""


def _edited(data: pd.DataFrame, rng: Rng) -> Any:
    """The table with one thing done to it; as it was, where pandas refuses that."""
    try:
        return pick(rng, TABLE)(data, rng)
    except Exception:
        return data


def _call(rng: Rng) -> tuple[dict[str, Any], Any]:
    """A call and its table, changed in one to three places."""
    call = dict(pick(rng, CALLS))
    data: Any = table(rng, isinstance(call.get("proportions"), list))
    for _ in range(int(rng.integers(1, 3))):
        if rng.random() < 0.3:
            _argument(call, rng)
        elif isinstance(data, pd.DataFrame):
            data = _edited(data, rng)
    return call, data


def compiled(calls: Iterable[dict[str, Any]] = CALLS) -> None:
    """Good calls, so that no try waits for a compiler."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in calls:
            fit = ctmm.fit(**call, data=table(rng, "proportions" in call))
            for question in (fit.test_variance, fit.test_mean, fit.jackknife, fit.predict):
                with suppress(ctmm.CTMMError):
                    question()


def fits(folder: Path) -> Callable[[Rng], Try]:
    """``fit`` of a changed table or with changed arguments, and a question to the fit."""
    compiled()

    def attempt(rng: Rng) -> Try:
        call, data = _call(rng)
        question = pick(rng, QUESTIONS)

        def work() -> str:
            fit = ctmm.fit(**call, data=data)
            wrong = wrong_fit(fit, data, call)
            tests = [] if wrong else question(fit, data, rng)
            return wrong or next(filter(None, map(wrong_test, tests)), "")

        return Try("fit", work, (call, question.__name__))

    return attempt


def scans(folder: Path) -> Callable[[Rng], Try]:
    """``fit_genes`` of a changed table, with changed expression, noise or arguments."""
    compiled()

    def attempt(rng: Rng) -> Try:
        call, data = _call(rng)
        call["formula"] = str(call["formula"]).partition("~")[2].join(["~", ""])
        if rng.random() < 0.3:
            call["tests"] = pick(rng, SCAN_TESTS)
        call["n_bootstrap"] = 5
        call.pop("nu2", None)
        n = len(data) if hasattr(data, "__len__") else 3
        matrices = []
        for low in (-1.0, 0.1):
            own = pd.DataFrame(rng.uniform(low, 1, (n, 3)), columns=["g1", "g2", "g3"])
            for _ in range(int(rng.integers(0, 2))):
                try:
                    own = pick(rng, MATRIX)(own, rng)
                except Exception:
                    own = own.copy()
            matrices.append(own)

        def work() -> str:
            scan = ctmm.fit_genes(**call, data=data, expr=matrices[0], nu=matrices[1])
            str(scan), scan.summary(), scan.top(2)
            return wrong_scan(scan)

        return Try("fit_genes", work, call)

    return attempt


def wrong_scan(scan: Any) -> str:
    """Every gene has a row; p values lie in [0, 1]; one that failed says why."""
    out = scan.table
    for name in [c for c in out.columns if str(c).startswith("p_")]:
        p = out[name].to_numpy(dtype=float)
        if ((p < 0) | (p > 1)).any():
            return f"{name} outside [0, 1]"
    silent = out["status"].ne("ok") & out["reason"].eq("")
    return "a status without its reason" if silent.any() else ""


SCAN_TESTS = (
    "score", ["mean"], ["jackknife", "wald"], ["lrt"], [], None, "all", ["score", "score"], 3,
    ["bootstrap"],
)  # fmt: skip
MATRIX = (
    _cells, _constant, _kind, lambda m, rng: m * pick(rng, (0, 1e-200, 1e200, -1)),
    _rows, _twice, _index, _names, _container,
    lambda m, rng: m.mask(rng.random(m.shape) < 0.5), lambda m, rng: m.iloc[:, :1],
    lambda m, rng: m.to_numpy().T, lambda m, rng: None,
)  # fmt: skip
