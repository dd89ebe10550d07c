"""Formula strings in both engines, made of pieces that belong into formulas and pieces that do not.

What both engines accept must give the same columns and numbers, and those that patsy gives for the
fixed part of the text by itself: its random terms are added and taken away here by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import patsy

import ctmm_formula as ctmm

from .harness import Try

Rng = np.random.Generator
FACTORS = (
    "celltype", "C(celltype)", "sex", "C(sex)", "age", "PC1", "np.log(age)", "I(age**2)",
    "scale(age)",
    "center(PC1)", "standardize(PC1)", "bs(age, df=4)", "cr(age, df=3)", "C(sex, Sum)", 'Q("PC1")',
    "C(celltype, Treatment('T'))", "C(celltype, Helmert)", "C(celltype, Diff)", "C(site, Poly)",
    "1", "0",
    "I(age > 40)", 'Q("a b")', "I(PC1 + age)", "np.exp(PC1)", "site", "flag", "C(flag)",
    "np.abs(PC1)",
    "C(age)", "batch", "np.where(age > 40, 1, 0)", 'C(Q("a b"))', "I(sex == 'F')",
)  # fmt: skip
RANDOM = (
    "(1|batch)", "(1 | site)", "(1|site/batch)", "(1|site:batch)", "(celltype|site)", "(1|sex)",
    "(0 + celltype|batch)", "(1+celltype|batch)", "(1|site) ",
)  # fmt: skip
ODD = (
    "+", "-", "*", ":", "/", "**", "~", "|", "||", "(", ")", "[", "]", "{", "}", ",", ".", "%", "^",
    "`age`", "'", '"', "\\", "\n", "\t", "\x00", "é", "\ud800", "\uff0b", "lambda x: x",
    "age if 1 else 0",
    "1e400", "0x10", "-1", "2", "1.5", "None", "True", "np", "np.", "np.nan", "np.pi",
    "np.random.rand()",
    "nothing", "f(age)", "C()", "C", "Q()", "Q(1)", "I()", "bs(age)", "bs(age, df=1)",
    "cr(age, df=0)",
    "C(PC1)", "expr", "nu", "donor", "C(donor)", "age[0]", "age.mean()", "age.shift()", "age[::-1]",
    "(yield)", "age := 3", "*age", "age,", "age;", "#", "# comment", "(" * 40, "+" * 60, "age" * 30,
    "@", "!", "?", "$", "&", "<", ">", "=", "==", "age == age", "not age", "~age", "-age", "+age",
    "[age]", "{age}", "(age, PC1)", "'text'", "3", "[i for i in age]", "1j*age", "age/0", "0*age",
    "np.log(-age)", "np.linalg.inv(age)", "len(age)", "str(age)", "age.values", "age.dtype",
    "np.sum(age)",
    "max(age)", "hash(sex)", "sex + age", "sex*2", "age**9999", "age**0.5", "age @ age", "age // 7",
    "Treatment", "C(sex, 3)", "C(sex, Treatment(99))", "C(sex, Treatment(reference='M'))",
    "C(sex, levels=['F'])", "C(sex, levels=['M', 'F', 'x'])", "scale()", "scale(sex)",
    "poly(age, 2)",
    "te(cr(age, 3), cr(PC1, 3))", "cc(age, df=3)", "Sum", "np.ones(3)", "np.ones(len(age))",
    "print(1)",
)  # fmt: skip
BLANKS = ("", " ", "  ", "\n")


def table(rng: Rng) -> pd.DataFrame:
    """Twelve donors, three cell types, all pairs."""
    n, types = 12, ["B", "NK", "T"]
    donor = np.repeat(np.arange(n), 3)
    return pd.DataFrame(
        {
            "donor": [f"d{k:02d}" for k in donor],
            "celltype": types * n,
            "expr": rng.normal(size=3 * n),
            "nu": rng.uniform(0.1, 0.4, 3 * n),
            "batch": [f"b{k % 4}" for k in donor],
            "site": [f"s{k // 4}" for k in donor],
            "sex": np.resize(["F", "M", "M", "F", "F"], n)[donor],
            "age": np.resize([25, 31, 38, 44, 52, 60, 67], n)[donor],
            "PC1": rng.normal(size=n)[donor],
            "a b": rng.normal(size=n)[donor],
            "flag": rng.permutation(np.arange(n) % 2 == 0)[donor],
        }
    )


def _some(rng: Rng, values: tuple[str, ...]) -> str:
    return values[int(rng.integers(len(values)))]


def grown(rng: Rng, depth: int = 1) -> str:
    """A formula by its grammar, as users write them."""
    if depth == 0 or rng.random() < 0.2:
        return _some(rng, FACTORS)
    left, right = grown(rng, depth - 1), grown(rng, depth - 1)
    operator = _some(rng, ("+", "+", "+", "+", "*", ":", "/"))
    text = _some(rng, BLANKS).join([left, operator, right])
    return f"({text})" if rng.random() < 0.2 else text


def spoiled(rng: Rng, text: str) -> str:
    """The text with a piece put in, taken out, doubled or exchanged."""
    at, to = sorted(int(k) for k in rng.integers(0, len(text) + 1, 2))
    to = min(to, at + 6)
    ways = (
        text[:at] + _some(rng, ODD) + text[at:], text[:at] + text[to:], text[:to] + text[at:],
        text[:at] + _some(rng, ODD) + text[to:], text + _some(rng, ("+", " + ",
        "-")) + _some(rng, ODD),
        text[:at],
    )  # fmt: skip
    return _some(rng, ways)


def formulas(folder: Path) -> Callable[[Rng], Try]:
    """A formula by both engines."""
    data = table(np.random.default_rng(7))
    own: dict[str, Any] = {"method": "he", "structure": "hom", "data": data}
    ctmm.fit("expr ~ celltype", **own)

    def attempt(rng: Rng) -> Try:
        fixed = grown(rng, int(rng.integers(3)))
        random = [_some(rng, RANDOM)] if rng.random() < 0.3 else []
        text = "expr ~ " + " + ".join([fixed, *random])
        spoil = rng.random() < 0.6
        for _ in range(int(rng.integers(1, 3)) if spoil else 0):
            text = spoiled(rng, text)

        def by(engine: str) -> tuple[Any, str]:
            try:
                return ctmm.fit(text, formula_engine=engine, **own), ""
            except ctmm.CTMMError as error:
                return None, str(error)

        def work() -> str:
            (fit, why), (other, why_not) = by("patsy"), by("formulaic")
            if fit is None and other is None:
                raise ctmm.CTMMError(why)
            if fit is None or other is None:
                # formulaic evaluates some factors in its own way; ours says why
                said = why or why_not
                return "" if said else "one engine refuses without a word"
            if fit.fe_params.index.tolist() != other.fe_params.index.tolist():
                return f"names differ: {list(fit.fe_params.index)} {list(other.fe_params.index)}"
            if not np.allclose(fit.design.X, other.design.X, rtol=1e-9, atol=1e-9):
                return "the engines give other columns"
            if fit.nobs != len(data):
                return "rows are gone"
            if spoil:
                return ""
            X = patsy.dmatrix(fixed.replace("\n", " "), data, NA_action="raise")
            same = X.shape == fit.design.X.shape and np.allclose(X, fit.design.X, atol=1e-12)
            return "" if same else "other columns than patsy's of the same text"

        return Try("formula", work, text)

    return attempt
