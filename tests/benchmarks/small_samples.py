"""Levels of tests of condition effects at few donors: Kenward-Roger, Satterthwaite, one df.

    python tests/benchmarks/small_samples.py [--genes 2000] [--workers 1]

Run with the package installed, or from the repository with PYTHONPATH=. set.  Writes
``small_samples.md`` beside this file.

Every gene is its own data set, fitted as ``0 + C(celltype) + C(celltype):condition`` by REML, free
structure, without any effect of the condition.  Covariance between donors .25 J + diag(.05, .1, .2,
.4) (twice in a row for eight types), times 8 / chi2(8) of the gene.  Cells per pair log-uniform
from 10 to 120, of the second arm a third of that where said; variance of a pair's cells 4 on
average, with a coefficient of variation of .4 between pairs; the measured noise is that of so many
Gaussian cells, or has the coefficient of variation said whatever their number.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import bench_fit
import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from ctmm_formula.distributions import t_tail
from ctmm_formula.engine.domain import Domain
from ctmm_formula.engine.estimators import estimate
from ctmm_formula.engine.model import build_model
from ctmm_formula.errors import CTMMError
from ctmm_formula.inference.fit import Errors, Fit
from ctmm_formula.inference.testing import wald
from ctmm_formula.structures import resolve

HERE = Path(__file__).parent
SPECIFIC = np.array([0.05, 0.1, 0.2, 0.4])


class Setting(NamedTuple):
    """Donors per arm, cell types, factor of the second arm's cells, variation of measured noise."""

    arm: int
    types: int
    factor: float = 1.0
    noise_cv: float = 0.0

    def __str__(self) -> str:
        more = [f"second arm {self.factor:.2g} of the cells"] if self.factor != 1.0 else []
        more += [f"CV of measured noise {self.noise_cv:g}"] if self.noise_cv else []
        return ", ".join([f"{self.arm} an arm", f"{self.types} types", *more])


SETTINGS = (
    Setting(10, 4), Setting(10, 8), Setting(15, 8), Setting(20, 4, 1 / 3), Setting(20, 4, 1.0, 0.45)
)  # fmt: skip
METHODS = ("kenward-roger", "model", "fai-cornelius", "donors less parameters")
"""The covariances of the package, the model's with Fai and Cornelius' denominators as lmerTest has
them, and the model's with one df for everything."""


def gene(setting: Setting, number: int, V: float = 1.0) -> tuple[Fit, np.ndarray]:
    """One fitted data set and its variance components; V scales what is specific to cell types."""
    N, C = 2 * setting.arm, setting.types
    rng = np.random.default_rng([*setting[:2], round(1000 * setting.factor), number])
    second = np.repeat(np.arange(N) % 2, C).astype(float)
    donor, celltype = np.divmod(np.arange(N * C), C)
    cells = np.exp(rng.uniform(np.log(10), np.log(120), N * C))
    cells = np.maximum(np.rint(cells * np.where(second > 0, setting.factor, 1.0)), 4)
    variance = 4.0 * rng.gamma(1 / 0.4**2, 0.4**2, N * C)
    scale = 8.0 / rng.chisquare(8)
    specific = V * scale * np.tile(SPECIFIC, C // 4)
    nu = variance / cells
    y = np.sqrt(0.25 * scale) * rng.normal(size=N)[donor]
    y += np.sqrt(specific[celltype] + nu) * rng.normal(size=N * C)
    if setting.noise_cv:
        measured = nu * rng.gamma(1 / setting.noise_cv**2, setting.noise_cv**2, N * C)
    else:
        measured = nu * rng.chisquare(cells - 1) / (cells - 1)
    H = np.tile(np.eye(C), (N, 1))
    structure = resolve("free", [f"T{c}" for c in range(C)])
    X = np.hstack([H, H * second[:, None]])
    model = build_model(y, measured, X, H, donor, structure.basis)
    found = estimate(model, "reml", Domain())
    truth = np.append(0.25 * scale, specific)
    return Fit(model, structure, Domain(), found, np.eye(C, 2 * C)), truth


def fai_cornelius(errors: Errors, L: np.ndarray) -> float:
    """Denominator by Satterthwaite's df of the principal axes of L Phi L'."""
    used = L.any(axis=0)
    _, axes = np.linalg.eigh(L[:, used] @ errors.cov[np.ix_(used, used)] @ L[:, used].T)
    df = errors.df(axes.T @ L)
    if not (df > 2).all():
        return 2.0
    mean = (df / (df - 2)).sum()
    return 2 * mean / (mean - len(L))


def pvalues(fit: Fit, method: str) -> np.ndarray:
    """P values of every type's effect, of all of them, and of their differences."""
    C = fit.n_fixed // 2
    errors = fit.errors("kenward-roger" if method == "kenward-roger" else "model")
    if method == "donors less parameters":
        errors = errors._replace(own=None)
    effects = np.eye(fit.n_params)[C : 2 * C]
    df, se = errors.df(effects), np.sqrt(errors.variances(effects))
    t = np.abs(fit.estimate.beta[C:]) / se
    single = 2.0 * t_tail(t, np.where(df > 0, df, np.nan))
    joint = []
    for L in (effects, effects[:-1] - effects[-1]):
        law = errors.law(L)
        if law is not None and method == "fai-cornelius":
            law = law._replace(df=fai_cornelius(errors, L))
        joint.append(wald(fit.params, errors.cov, L, fit.df_resid, law=law).pvalue)
    return np.append(single, joint)


def one(setting: Setting, number: int) -> np.ndarray:
    """P values (methods, C + 2) of one data set; NaN where it cannot be fitted."""
    try:
        fit, _ = gene(setting, number)
    except CTMMError:
        return np.full((len(METHODS), setting.types + 2), np.nan)
    with np.errstate(invalid="ignore"):
        return np.array([pvalues(fit, method) for method in METHODS])


MIXTURES = ((30, "free", 0.05), (60, "free", 0.05), (60, "free", 0.01), (60, "iid", 0.05))
"""Donors, structure and mean noise of overall pseudobulk."""


def mixture(donors: int, name: str, noise: float, number: int) -> np.ndarray:
    """P values of a condition in overall pseudobulk of four types by METHODS but one, and the edge.

    Proportions are Dirichlet(4, 3, 2, 1); covariance .25 J + diag(.05, .1, .2, .4), bounds "psd".
    """
    rng = np.random.default_rng([donors, round(1000 * noise), number])
    P = rng.dirichlet([4, 3, 2, 1], donors)
    nu = noise * rng.gamma(6, 1 / 6, donors)
    effects = rng.multivariate_normal(np.zeros(4), 0.25 + np.diag(SPECIFIC), donors)
    y = (P * effects).sum(axis=1) + rng.normal(size=donors) * np.sqrt(nu)
    structure, domain = resolve(name, ["T0", "T1", "T2", "T3"]), Domain("psd")
    X = np.column_stack([P, np.arange(donors) % 2])
    model = build_model(y, nu, X, P, np.arange(donors), structure.basis)
    fit = Fit(model, structure, domain, estimate(model, "reml", domain), np.eye(4, 5))
    L, out = np.eye(5, fit.n_params)[4:], []
    for method in ("kenward-roger", "model", "donors less parameters"):
        errors = fit.errors("kenward-roger" if method == "kenward-roger" else "model")
        t = np.abs(fit.estimate.beta[4]) / np.sqrt(errors.variances(L)[0])
        df = fit.df_resid if method == "donors less parameters" else errors.df(L)[0]
        out.append(2.0 * float(t_tail(t, df)))
    return np.array([*out, fit.on_edge])


def overall(donors: int, name: str, noise: float, p: np.ndarray) -> list[dict[str, object]]:
    """Lines of the table of overall pseudobulk."""
    same = {"donors": donors, "structure": name, "mean noise": noise,
            "on the edge": f"{p[:, 3].mean():.2f}"}  # fmt: skip
    return [
        same | {"errors": method} | {str(level): rate(p[:, [k]], level) for level in (0.05, 0.01)}
        for k, method in enumerate(("kenward-roger", "model", "donors less parameters"))
    ]


LAWS = ("normal", "t, donors - 1", "t, donors - parameters")


def components(setting: Setting, number: int) -> np.ndarray:
    """P values of V[c] = 0 where V = 0, and whether intervals miss V[c], hom where V > 0.

    Shape (laws, 2 C + 1).
    """
    out = []
    for V in (0.0, 1.0):
        try:
            fit, truth = gene(setting, number, V)
        except CTMMError:
            return np.full((len(LAWS), 2 * setting.types + 1), np.nan)
        errors, N = fit.model_errors, fit.model.n_donors
        se = np.sqrt(np.diag(errors.cov))[fit.n_fixed :]
        for df in (np.inf, N - 1, fit.df_resid if fit.df_resid > 0 else np.nan):
            away = np.abs(fit.estimate.theta - truth) / se
            one_sided = t_tail(fit.estimate.theta[1:] / se[1:], df)
            out.append(2.0 * t_tail(np.roll(away, -1), df) if V else one_sided)
    return np.hstack([out[:3], out[3:]])


def rate(p: np.ndarray, level: float) -> str:
    """Share of p values up to the level with its standard error, or range over cell types."""
    shares = (p <= level).mean(axis=0)
    if np.isnan(p).all():
        return "no test"
    low, high = shares.min(), shares.max()
    error = np.sqrt(level * (1 - level) / len(p))
    return f"{low:.3f}-{high:.3f}" if p.shape[1] > 1 else f"{low:.3f} ({error:.3f})"


def levels(setting: Setting, p: np.ndarray) -> list[dict[str, object]]:
    """Lines of the table of fixed effects, from p values (genes, methods, C + 2)."""
    C, out = setting.types, []
    questions = {"t per type": slice(0, C), "all effects": slice(C, C + 1),
                 "differences": slice(C + 1, C + 2)}  # fmt: skip
    for k, method in enumerate(METHODS):
        row: dict[str, object] = {"setting": str(setting), "errors": method}
        for name, columns in questions.items():
            for level in (0.05, 0.01):
                row[f"{name}, {level}"] = rate(p[:, k, columns], level)
        out.append(row | {"no test": int(np.isnan(p[:, k, C]).sum())})
    return out


def cost() -> pd.DataFrame:
    """Milliseconds of one gene: fit, all t tests, the adjusted covariance, a joint F."""
    rows = []
    for arm, types in ((20, 4), (50, 4), (50, 8), (500, 8)):
        fit, _ = gene(Setting(arm, types), 0)
        L = np.eye(fit.n_params)[types : 2 * types]

        def fresh(fit: Fit = fit) -> Fit:
            return replace(fit)  # nothing is kept

        own = fit.errors("kenward-roger")
        times = {
            "fit": lambda fit=fit: estimate(fit.model, "reml", Domain()),
            "Satterthwaite, all df": lambda L=L, new=fresh: new().errors("model").df(L),
            "Kenward-Roger, covariance and df": lambda L=L, new=fresh: new()
            .errors("kenward-roger").df(L),
            "one more F": lambda L=L, own=own: own.law(L),
        }  # fmt: skip
        rows.append({"donors": 2 * arm, "types": types} | {
            name: f"{1e3 * bench_fit.seconds(work, 20):.2f}" for name, work in times.items()
        })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default=str(HERE / "small_samples.md"))
    args = parser.parse_args()
    effects, variances, mixtures = [], [], []
    for setting in SETTINGS:
        jobs = (delayed(one)(setting, number) for number in range(args.genes))
        effects += levels(setting, np.array(Parallel(args.workers)(jobs)))
        jobs = (delayed(components)(setting, number) for number in range(args.genes))
        p = np.array(Parallel(args.workers)(jobs))
        C = setting.types
        for k, law in enumerate(LAWS):
            row: dict[str, object] = {"setting": str(setting), "law": law}
            row |= {f"test, {level}": rate(p[:, k, :C], level) for level in (0.05, 0.01)}
            row["V missed"] = rate(p[:, k, C : 2 * C], 0.05)
            row["hom missed"] = rate(p[:, k, 2 * C :], 0.05)
            variances.append(row)
        sys.stderr.write(f"{setting}\n")
    for case in MIXTURES:
        jobs = (delayed(mixture)(*case, number) for number in range(args.genes))
        mixtures += overall(*case, np.array(Parallel(args.workers)(jobs)))
    errors = [np.sqrt(level * (1 - level) / args.genes) for level in (0.05, 0.01)]
    parts = [
        "# Small samples: levels of tests of fixed effects after REML",
        f"Written by `small_samples.py`, {args.genes} genes a line, seeded by setting and number "
        "of the gene; no effect of the condition.  Rates are those of p up to .05 and .01, "
        f"standard error {errors[0]:.4f} and {errors[1]:.4f}; of t tests the range over types.  "
        "All effects: C hypotheses at once; differences: C - 1, are effects equal.  'model' is the "
        "package's default (Satterthwaite, F on q and 2q/A2), 'fai-cornelius' the same with the "
        "denominator of lmerTest, 'donors less parameters' what was used for everything before.",
        bench_fit.markdown(pd.DataFrame(effects)),
        "Overall pseudobulk of four types, t test of a condition without effect; components on the "
        "edge of their domain (psd) count as free:",
        bench_fit.markdown(pd.DataFrame(mixtures)),
        "Variance components by the expected information: one-sided tests of V[c] = 0 where V = 0 "
        "and how often 95 % intervals miss V[c] (ranges over cell types) and hom where V > 0:",
        bench_fit.markdown(pd.DataFrame(variances)),
        "Milliseconds of one gene, median of 20, one thread:",
        bench_fit.markdown(cost()),
    ]
    text = "\n\n".join(parts) + "\n"
    Path(args.out).write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    bench_fit.one_thread()
    main()
