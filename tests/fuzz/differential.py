"""Random problems over the registries against dense algebra (tests/dense*.py).

A problem is a table; the package gets it with a formula, and the n x n matrices are written down
here from the same table: design, basis matrices and levels share nothing with the package.  What
is compared: likelihoods, gradients and optima; b and its covariance; information; moments;
predicted effects; Wald, likelihood ratio, score and exact tests; degrees of freedom of
Satterthwaite and of Kenward and Roger; cluster-robust errors and tests of means; jackknives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dense
import dense_kr
import dense_robust
import numpy as np
import pandas as pd
from scipy import stats

import ctmm_formula as ctmm
from ctmm_formula.inference.small_sample import LEAST_DF

from .harness import Try
from .tables import compiled, pick

Rng = np.random.Generator
EXACT = 1e-8
"""Relative to the largest entry: only rounding is between both sides."""
ROUNDING = 1e-14
"""Times the condition number of the moment matrix that was solved."""
OPTIMUM = 1e-6
"""Of log-likelihoods: no point of the domain may be better by more."""
NULL_FIT = 1e-5
"""Relative, statistics at two null fits that were each stopped at a small gradient."""
TAIL = 1e-5
"""Absolute, of a p value by Imhof's integral at such a null."""
SINGULAR = 1e-10
"""Smallest eigenvalue of Sigma, relative, below which its sign is rounding."""
SOLVABLE = 1e9
"""Condition number of moments beyond which two ways to solve them share too few digits."""


@dataclass(frozen=True)
class Hand:
    """What dense.py asks of a model; rows as in the table."""

    y: np.ndarray
    nu: np.ndarray
    X: np.ndarray
    H: np.ndarray
    basis: np.ndarray
    random: list[tuple[np.ndarray, np.ndarray]]
    row_donor: np.ndarray
    n_cells: np.ndarray | None
    nu2: np.ndarray | None = None
    kinship: tuple = ()

    @property
    def active_rows(self) -> np.ndarray:
        return np.ones(len(self.y), dtype=bool)

    @property
    def donors(self) -> np.ndarray:
        return np.unique(self.row_donor)

    def with_basis(self, basis: np.ndarray) -> Hand:
        return replace(self, basis=basis)

    def with_response(self, y: np.ndarray, nu: np.ndarray) -> Hand:
        return replace(self, y=y, nu=nu)

    def without(self, donor: int) -> Hand:
        """Without a donor; numbers of levels stay."""
        k = self.row_donor != donor
        rest = {name: getattr(self, name)[k] for name in ("y", "nu", "X", "H", "row_donor")}
        cells = None if self.n_cells is None else self.n_cells[k]
        return replace(self, **rest, n_cells=cells, random=[(c[k], v[k]) for c, v in self.random])


def _unit(C: int, r: int, c: int) -> np.ndarray:
    out = np.zeros((C, C))
    out[r, c] = out[c, r] = 1.0
    return out


def basis_of(structure: Any, C: int) -> tuple[np.ndarray, int | None]:
    """Basis matrices in the order of the registry, and the place of the shared one."""
    if not isinstance(structure, str):
        return np.array(structure), 0
    J, lower = np.ones((C, C)), [(r, c) for r in range(C) for c in range(r + 1)]
    shared = {
        "hom": [J], "iid": [J, np.eye(C)], "free": [J, *(_unit(C, c, c) for c in range(C))],
        "banded(1)": [J, *(_unit(C, r, c) for r, c in lower if r - c <= 1)],
    }  # fmt: skip
    if structure == "full" or (structure == "banded(1)" and C == 2):
        return np.array([_unit(C, r, c) for r, c in lower]), None
    return np.array(shared[structure]), 0


RANDOM: dict[str, tuple[str, ...]] = {
    "": (), "(1|batch)": ("batch",), "(1|batch) + (1|site)": ("batch", "site"),
    "(1|site/pool)": ("site", "site:pool"), "(1|site:pool)": ("site:pool",),
    "(celltype|batch)": ("batch[]",),
}  # fmt: skip
"""Random part -> levels; [] stands for one component for every cell type."""


@dataclass(frozen=True)
class Problem:
    call: dict[str, Any]
    data: pd.DataFrame
    hand: Hand
    names: list[str]
    shared: int | None
    levels: dict[str, list[str]]
    means: np.ndarray

    def fit(self, **changes: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ctmm.CTMMWarning)
            return ctmm.fit(**{**self.call, **changes}, data=self.data)


def draw(rng: Rng) -> Problem:
    """A problem: kind of data, formula, structure, method, bounds, holes."""
    overall = rng.random() < 0.3
    C = int(rng.integers(2, 4 if overall else 5))
    N = int(rng.integers(24, 40) if overall else rng.integers(9, 22))
    types = [f"t{c}" for c in range(C)]
    present = rng.random((N, C)) < pick(rng, (1.0, 0.9, 0.7))
    present[present.sum(axis=1) == 0] = True
    present[:3] = True
    if overall:
        donor = np.arange(N)
        H = rng.dirichlet(np.full(C, 3.0), N)
    else:
        donor, kind = np.nonzero(present)
        H = np.eye(C)[kind]
    order = rng.permutation(len(donor))
    donor, H = donor[order], H[order]
    n, ones = len(donor), np.ones(len(donor))
    per_donor = {
        "x": rng.normal(size=N), "sex": rng.permutation(np.arange(N) % 2),
        "batch": rng.permutation(np.arange(N) % int(rng.integers(3, 6))),
        "site": np.arange(N) % 3, "pool": np.arange(N) // 3 % 2,
    }  # fmt: skip
    row = {name: values[donor] for name, values in per_donor.items()}
    columns = {"sex": np.array(["F", "M"])[row["sex"]], "x": row["x"]}
    columns |= {g: np.array([f"{g}{k}" for k in row[g]]) for g in ("batch", "site", "pool")}

    X: dict[str, np.ndarray] = {}
    covariates = pick(rng, ((), ("sex",), ("x",), ("sex", "x")))
    if overall:
        X |= {f"celltype[{t}]": H[:, c] for c, t in enumerate(types)}
    elif rng.random() < 0.5:
        X["Intercept"] = ones
        X |= {f"C(celltype)[T.{t}]": H[:, c] for c, t in enumerate(types) if c}
    else:
        X |= {f"C(celltype)[{t}]": H[:, c] for c, t in enumerate(types)}
    first = "" if overall else "C(celltype)" if "Intercept" in X else "0 + C(celltype)"
    X |= {"sex[T.M]": 1.0 * row["sex"]} if "sex" in covariates else {}
    X |= {"x": row["x"]} if "x" in covariates else {}
    at = {name: k for k, name in enumerate(X)}
    means = np.zeros((C, len(X)))
    for c, t in enumerate(types):
        own = (f"celltype[{t}]", f"C(celltype)[{t}]", f"C(celltype)[T.{t}]", "Intercept")
        means[c, [at[name] for name in own if name in at]] = 1.0

    random = str(pick(rng, list(RANDOM)[: 5 if overall else 6]))
    components: list[tuple[np.ndarray, np.ndarray]] = []
    levels: dict[str, list[str]] = {}
    for name in RANDOM[random]:
        groups = name.removesuffix("[]").split(":")
        texts = pd.Series(columns[groups[0]])
        for group in groups[1:]:
            texts = texts + ":" + columns[group]
        codes, own = pd.factorize(texts, sort=True)
        if name.endswith("[]"):
            for c, t in enumerate(types):
                components.append((codes, H[:, c]))
                levels[f"{groups[0]}[{t}]"] = list(own)
        else:
            components.append((codes, ones))
            levels[name] = list(own)

    structure: Any = pick(rng, ("hom", "iid", "free", "full", "banded(1)", "user"))
    if structure == "user":
        v = rng.normal(size=C)
        structure = [np.ones((C, C)), np.outer(v, v) + 0.5 * np.eye(C)]
    basis, shared = basis_of(structure, C)
    method = str(pick(rng, ("reml", "reml", "ml", "he", "robust")))
    n_cells = rng.integers(4, 120, n).astype(float) if rng.random() < 0.8 else None
    nu = rng.gamma(4.0, 0.25, n) * pick(rng, (0.05, 0.4, 1.5))
    y = 1.0 + X["x"] * 0.3 if "x" in X else np.zeros(n)
    size = rng.choice([0.0, 0.3, 1.0], 3)
    y = (
        y
        + size[0] * rng.normal(size=N)[donor]
        + (size[1] * rng.normal(size=(N, C))[donor] * H).sum(1)
    )
    y = y + sum((size[2] * rng.normal(size=c.max() + 1)[c] * v for c, v in components), np.zeros(n))
    y = y + np.sqrt(nu) * rng.normal(size=n)

    fixed = " + ".join(filter(None, [first, *covariates])) or "1"
    call: dict[str, Any] = {
        "formula": "expr ~ " + " + ".join(filter(None, [fixed, random])), "structure": structure,
        "method": method,
    }  # fmt: skip
    if method in ("reml", "ml"):
        call["bounds"] = str(pick(rng, ("noise", "psd", "nonnegative")))
    data = pd.DataFrame({"donor": [f"d{k:02d}" for k in donor], "expr": y, "nu": nu, **columns})
    if n_cells is not None:
        data["n_cells"] = n_cells
    if overall:
        data = data.assign(**{f"prop_{t}": H[:, c] for c, t in enumerate(types)})
        call["proportions"] = [f"prop_{t}" for t in types]
    else:
        data["celltype"] = np.array(types)[H.argmax(axis=1)]
    hand = Hand(y, nu, np.column_stack(list(X.values())), H, basis, components, donor, n_cells)
    return Problem(call, data, hand, list(X), shared, levels, means)


def apart(got: Any, want: Any, tolerance: float = EXACT) -> bool:
    """Whether two arrays differ, relative to the largest entry; NaN belongs to NaN."""
    got, want = np.asarray(got, dtype=float), np.asarray(want, dtype=float)
    if got.shape != want.shape or (np.isnan(got) != np.isnan(want)).any():
        return True
    size = np.nanmax(np.abs(want), initial=1e-6)
    return bool((np.abs(np.nan_to_num(got - want)) > tolerance * size).any())


def _estimate(fit: Any, p: Problem) -> Iterator[tuple[str, Any, Any, float]]:
    """Fixed effects, covariances and predictions at the fit's theta."""
    theta = fit.vcomp.to_numpy()
    Sigma = dense.covariance(dense.arrays(p.hand), theta)
    sizes = np.linalg.eigvalsh(Sigma)
    if abs(sizes[0]) > SINGULAR * np.abs(sizes).max():  # of moments it may be indefinite
        yield "b by GLS", fit.estimate.beta_by == "gls", sizes[0] > 0, 0.0
    if fit.estimate.beta_by == "ols":
        yield "b by OLS", fit.fe_params, dense.ols(p.hand), EXACT
        return
    loose = max(EXACT, 1e-15 * np.linalg.cond(Sigma))
    beta, cov = dense.gls(p.hand, theta)
    yield "b", fit.fe_params, beta, loose
    yield "predict", fit.predict(), p.hand.X @ beta, loose
    size = len(beta)
    if fit.method != "robust":
        yield "vcov of b", fit.cov_params("model").to_numpy()[:size, :size], cov, loose
    want = dense.blups(p.hand, theta, p.shared)
    got = fit.random_effects
    if p.shared is not None:
        yield "shared effects", got["shared"]["estimate"], want.shared, loose
    if "specific" in got:
        yield "specific effects", got["specific"]["estimate"], want.specific.ravel(), loose
    for (name, own), values, (codes, loads) in zip(
        p.levels.items(), want.random, p.hand.random, strict=True
    ):
        seen = np.unique(codes[loads != 0])  # a batch may lack a cell type
        named = [own[k] for k in seen]
        yield f"effects of {name}", got[name].loc[named, "estimate"], values[seen], loose
    yield "fitted", fit.fittedvalues, want.fitted, loose
    yield "predict all", fit.predict(p.data, random="all"), want.fitted, loose


def _likelihood(fit: Any, p: Problem, rng: Rng) -> Iterator[tuple[str, Any, Any, float]]:
    theta, method = fit.vcomp.to_numpy(), fit.method
    yield "llf", fit.llf, dense.llf(p.hand, theta, method), EXACT
    information = dense.expected_information(p.hand, theta, method)
    loose = max(EXACT, 1e-15 * np.linalg.cond(information))
    yield "information", fit.estimate.information, information, EXACT
    if not fit.converged or fit.boundary:
        return
    g = dense.score(p.hand, theta, method)
    yield "decrement", float(g @ np.linalg.solve(information, g)) > 1e-6, False, 0.0
    size = len(p.names)
    own = fit.cov_params("model").to_numpy()[size:, size:]
    yield "vcov of components", own, np.linalg.inv(information), loose
    df = len(p.hand.donors) - size - len(theta)
    if df > 0:
        se = np.sqrt(np.diag(np.linalg.inv(information)))
        for k, name in enumerate(fit.vcomp.index):
            one = fit.test_component(name, "wald").pvalue
            yield f"wald {name}", one, stats.t.sf(theta[k] / se[k], df), loose
    kr = dense_kr.adjusted(p.hand, theta, method)
    L = rng.normal(size=(3, size))
    padded = np.pad(L, ((0, 0), (0, len(theta))))
    want = np.array([dense_kr.satterthwaite(kr, row) for row in L])
    want[want < LEAST_DF] = np.nan
    if np.nanmax(want, initial=0.0) < 1e6:
        yield "satterthwaite", fit.numbers.model_errors.df(padded), want, 10 * loose
    if method == "reml":
        own = fit.cov_params("kenward-roger").to_numpy()[:size, :size]
        yield "kenward-roger", own, kr.cov, 10 * loose
    if p.shared is not None and len(theta) > 1 and "hom" in fit.vcomp.index:
        null = p.fit(structure="hom")
        if null.converged and not null.boundary and len(p.hand.basis) > 1:
            test = fit.test_variance("lrt")
            hom = p.hand.with_basis(np.ones((1, *p.hand.basis[0].shape)))
            ratio = 2 * (fit.llf - dense.llf(hom, null.vcomp.to_numpy(), method))
            if ratio > 0:
                yield "lrt", test.statistic, ratio, 1e-6
                want_p = stats.chi2.sf(test.statistic, len(p.hand.basis) - 1)
                yield "lrt p", test.pvalue, want_p, EXACT


def _optimum(fit: Any, p: Problem, rng: Rng) -> Iterator[tuple[str, Any, Any, float]]:
    """No random point of the domain of REML beats the estimate."""
    if fit.method != "reml" or not fit.converged:
        return
    theta = fit.vcomp.to_numpy()
    for _ in range(15):
        step = rng.normal(size=len(theta)) * rng.choice([1e-3, 0.03, 0.3])
        if _inside(theta + step, p, fit.bounds):
            gain = dense.llf(p.hand, theta + step, "reml") - fit.llf
            yield "optimum", gain > OPTIMUM, False, 0.0


def _inside(theta: np.ndarray, p: Problem, bounds: str) -> bool:
    """Whether components lie in the domain; random effects are asked to be variances."""
    K = len(p.hand.basis)
    if (theta[K:] < 0).any():
        return False
    A = np.tensordot(theta[:K], p.hand.basis, axes=1)
    if bounds == "nonnegative":
        shared = np.array([bool((B == 1).all()) for B in p.hand.basis])
        V = np.tensordot(theta[:K][~shared], p.hand.basis[~shared], axes=1)
        psd = np.linalg.eigvalsh(p.hand.basis)[:, 0] > -1e-12
        least = np.linalg.eigvalsh(V)[0] if (~shared).any() else 0.0
        return bool((theta[:K][psd] >= 0).all() and least >= 0)
    for i in p.hand.donors:
        rows = p.hand.row_donor == i
        own = p.hand.H[rows] @ A @ p.hand.H[rows].T
        if bounds == "noise":
            own = own + 0.9 * np.diag(p.hand.nu[rows])
        if np.linalg.eigvalsh(own)[0] < 0:
            return False
    return True


def _moments(fit: Any, p: Problem, rng: Rng) -> Iterator[tuple[str, Any, Any, float]]:
    theta, condition = dense.haseman_elston(p.hand)
    if condition > SOLVABLE:
        return
    yield "moments", fit.vcomp, theta, max(EXACT, ROUNDING * condition)
    if p.levels or len(p.hand.donors) > 14:
        return
    got = fit.jackknife().estimates.iloc[:, len(p.names) :].to_numpy()
    parts = [dense.haseman_elston(p.hand.without(i)) for i in p.hand.donors]
    worst = max(condition for _, condition in parts)
    if worst < SOLVABLE:
        want = [theta for theta, _ in parts]
        yield "jackknife of moments", got, want, max(EXACT, ROUNDING * worst)


def _robust(fit: Any, p: Problem, rng: Rng) -> Iterator[tuple[str, Any, Any, float]]:
    """The robust estimate and its tests, which every fit with numbers of cells has."""
    if fit.method != "robust" and p.hand.n_cells is None:
        return
    want = dense_robust.fit(p.hand)
    units = int(want.unit.max()) + 1
    if want.condition > SOLVABLE or units < 2:
        return
    loose = max(EXACT, ROUNDING * want.condition)
    if fit.method == "robust":
        yield "robust components", fit.vcomp, want.theta, loose
        yield "robust b", fit.fe_params, want.beta, loose
        own = dense_robust.cr2(want, np.eye(len(want.beta)))
        size = len(p.names)
        if (own.df > 0.5).all():
            yield "cr2", fit.cov_params().to_numpy()[:size, :size], own.cov, 10 * loose
            yield "df of cr2", fit.t_test(np.eye(size, len(fit.params))).df_denom, own.df, 1e-6
        parts = dense_robust.jackknife(want)
        if max(part.condition for part in parts) < SOLVABLE:
            left = np.array([part.theta for part in parts])
            cov = (units - 1) ** 2 / units * np.cov(left.T).reshape(left.shape[1], -1)
            got = fit.jackknife().cov_params().to_numpy()[size:, size:]
            yield "jackknife of units", got, cov, 1e-6
    if fit.numbers.fixed_by == "robust":
        L = p.means[:-1] - p.means[-1]
        test, equal = fit.test_mean(), dense_robust.cr2(want, L)
        if equal.df_denom > 0.1 and np.isfinite(test.pvalue):
            yield "test of means", [test.statistic, test.df[1]], [equal.F, equal.df_denom], 1e-6


def _score(fit: Any, p: Problem, rng: Rng) -> Iterator[tuple[str, Any, Any, float]]:
    test = fit.test_variance("score")
    if np.isnan(test.pvalue):
        return
    hom = np.ones((1, p.hand.H.shape[1], p.hand.H.shape[1]))
    most = NULL_FIT * max(1.0, abs(test.statistic))  # in standard deviations
    want = dense.score_test(p.hand, hom)
    if abs(test.statistic - want.statistic[-1]) > most:
        want = dense.score_test(p.hand, hom, dense.best_null(p.hand, hom))
    yield "score", abs(test.statistic - want.statistic[-1]) > most, False, 0.0
    own = [*test.extra["celltype"].values(), test.pvalue]
    yield "p of score", np.abs(np.array(own) - want.pvalue) > TAIL, [False] * len(own), 0.0


def _exact(fit: Any, p: Problem, rng: Rng) -> Iterator[tuple[str, Any, Any, float]]:
    if len(fit.vcomp) > 1 or p.call["structure"] != "hom":
        return
    test = fit.test_component("hom", "exact", n=200, rng=1)
    base = dense.llf(p.hand, np.zeros(1), "reml")
    grid = np.geomspace(1e-6, 1e2, 60)
    best = max(dense.llf(p.hand, np.array([t]), "reml") - base for t in grid)
    # the grid is below the maximum, the package's maximum may not be below the grid
    yield "exact ratio", test.statistic < 2 * max(best, 0.0) - 1e-8, False, 0.0
    nonnegative = p.fit(method="reml", bounds="nonnegative")
    at = dense.llf(p.hand, nonnegative.vcomp.to_numpy(), "reml")
    yield "exact statistic", test.statistic, max(2 * (at - base), 0.0), 1e-5


CHECKS: dict[str, tuple[Callable[[Any, Problem, Rng], Iterator[tuple[str, Any, Any, float]]], ...]]
CHECKS = {
    "reml": (_likelihood, _optimum, _robust, _score, _exact),
    "ml": (_likelihood, _robust, _score),
    "he": (_moments, _robust, _score, _exact),
    "robust": (_robust, _score),
}


def differential(folder: Path) -> Callable[[Rng], Try]:
    """A problem, and every number that dense algebra gives as well."""
    compiled()

    def attempt(rng: Rng) -> Try:
        p = draw(rng)

        def work() -> str:
            fit = p.fit()
            if list(fit.fe_params.index) != p.names:
                return f"columns {list(fit.fe_params.index)}, by hand {p.names}"
            checks = [lambda fit, p, rng: _estimate(fit, p)] if p.call["method"] != "robust" else []
            for check in (*checks, *CHECKS[p.call["method"]]):
                for name, got, want, tolerance in check(fit, p, rng):
                    if apart(got, want, tolerance):
                        return f"{name}: {np.asarray(got)!s:.80}, by hand {np.asarray(want)!s:.80}"
            return ""

        kind = "op" if "proportions" in p.call else "ctp"
        return Try(f"differential {p.call['method']} {kind}", work, (p.call, p.data.shape))

    return attempt
