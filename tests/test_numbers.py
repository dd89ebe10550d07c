"""Whatever the versions of Python and of what the package needs, numbers agree to six digits.

``python tests/test_numbers.py`` writes ``golden/numbers.csv`` anew, where numbers are meant to
change.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ctmm_formula as ctmm

GOLDEN = Path(__file__).parent / "golden"
FILE = GOLDEN / "numbers.csv"
FORMULA = "expr ~ C(celltype) + sex + PC1"


def example(formula: str = FORMULA, **asked) -> ctmm.CTMMResults:
    return ctmm.fit(formula, data=ctmm.load_example(), **asked)


def missing() -> ctmm.CTMMResults:
    data = pd.read_csv(GOLDEN / "sim_missing.csv")
    return ctmm.fit("expr ~ celltype + cov1", random="batch", data=data)


def related(**asked) -> ctmm.CTMMResults:
    """Donors are families of three."""
    names = ctmm.load_example()["donor"].unique()
    family = np.arange(len(names)) // 3
    K = 0.5 * (np.equal.outer(family, family) + np.eye(len(names)))
    return example(kinship=pd.DataFrame(K, names, names), **asked)


def overall() -> ctmm.CTMMResults:
    shares = [f"prop_day{day}" for day in range(4)]
    data = ctmm.load_example(kind="op")
    return ctmm.fit("expr ~ sex", proportions=shares, structure="hom", method="ml", data=data)


FITS = {
    "robust": lambda: example(random="batch"),
    "reml": lambda: example(random="batch", method="reml"),
    "ml": lambda: example(random="batch", method="ml"),
    "he": lambda: example(random="batch", method="he"),
    "full": lambda: example(structure="full", method="reml"),
    "groups": lambda: example("expr ~ C(celltype) * sex", by="sex"),
    "missing": missing,
    "related, he": lambda: related(method="he"),
    "related, reml": lambda: related(method="reml", structure="iid"),
    "overall": overall,
}


def of_a_fit(res: ctmm.CTMMResults) -> Iterator[tuple[str, float]]:
    """Estimates, errors, tests."""
    for name, value in res.params.items():
        yield str(name), value
        yield f"error of {name}", res.bse[name]
    if res.method in ("reml", "ml"):
        yield "log-likelihood", res.llf
    yield "log p of equal means", res.test_mean().log_pvalue
    yield "log p of V = 0, score", res.test_variance("score").log_pvalue
    if res.structure != "full":
        yield "log p of V = 0, jackknife", res.test_variance("jackknife").log_pvalue
    effects = res.effects("cov1" if "cov1" in res.formula else "sex")
    for row, estimate, error in effects.table[["estimate", "std_error"]].itertuples():
        yield f"effect, {row}", estimate
        yield f"error of effect, {row}", error
    yield "log p of all effects", effects.omnibus.log_pvalue


def of_a_scan() -> Iterator[tuple[str, float]]:
    """All columns of six genes."""
    obs, expr, nu = ctmm.load_genes()
    scan = ctmm.fit_genes(
        "~ C(celltype) + sex", random="batch", data=obs, expr=expr, nu=nu,
        genes=list(expr.columns[:6]), tests=["score", "mean"], progress=False,
    )  # fmt: skip
    table = scan.table.set_index("gene").select_dtypes("float")
    yield from ((f"{gene}, {name}", table.at[gene, name]) for gene in table.index for name in table)


OF = {name: lambda fit=fit: of_a_fit(fit()) for name, fit in FITS.items()} | {"scan": of_a_scan}


def numbers(name: str) -> pd.Series:
    """By what they are of."""
    return pd.Series(dict(OF[name]()), name="value").dropna()


@pytest.mark.parametrize("name", OF)
@pytest.mark.filterwarnings("ignore:the estimate lies on the edge")
def test_numbers_are_those_of_the_table(name):
    table = pd.read_csv(FILE).set_index(["of", "number"])["value"]
    found = numbers(name)
    assert list(found.index) == list(table[name].index) and len(found) > 20
    for number, value in found.items():
        assert value == pytest.approx(table[name, number], rel=1e-6, abs=1e-12), number


if __name__ == "__main__":
    table = pd.concat({name: numbers(name) for name in OF}, names=["of", "number"])
    table.map("{:.12g}".format).to_csv(FILE)
