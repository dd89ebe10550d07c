"""Formulas as strings: what is accepted, what it means, and where the caret points."""

from __future__ import annotations

import pickle
import re
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ctmm_formula as ctmm
from ctmm_formula.design.expressions import column_of, is_condition, names_in, quote
from ctmm_formula.design.formula import parse
from ctmm_formula.design.matrix import Coding, evaluate
from ctmm_formula.design.random_terms import RandomTerm
from ctmm_formula.errors import CTMMError, FormulaError


def term(*groups, left="1"):
    return RandomTerm(groups, left != "1", ":".join(groups), left)


BATCH, SITE = term("batch"), term("site")


@pytest.mark.parametrize(
    "formula, random",
    [
        ("expr ~ sex + (1|batch) + (1|site)", None),
        ("expr ~ sex + ( 1 | batch ) + (1|site)", None),
        ("expr ~ (1|batch) + sex + (1|site)", None),
        ("expr ~ (1|batch) + (1|site) + sex", None),
        ("expr ~ sex + ((1|batch) + (1|site))", None),
        ("expr ~ sex + (1|C(batch)) + (1|site)", None),
        ("expr\n~ sex\n + (1|batch)\n + (1|site)", None),
        ("expr ~ sex", ["batch", "site"]),
        ("expr ~ sex", ("batch", "site")),
        ("expr ~ sex", "~ batch + site"),
        ("expr ~ sex", "batch + site"),
        ("expr ~ sex", "(1|batch) + (1|site)"),
        ("expr ~ sex", "~ (1|batch) + site"),
        ("expr ~ sex", ["(1|batch)", "~ site"]),
        ("expr ~ sex", {"batch": "1", "site": 1}),
        ("expr ~ sex", {"batch": "~ 1", "site": "1"}),
        ("expr ~ sex + (1|batch)", "site"),
    ],
)
def test_every_spelling_of_two_random_effects_means_the_same(formula, random):
    spec = parse(formula, random)
    assert (spec.response, spec.fixed, spec.random) == ("expr", "sex", (BATCH, SITE))


@pytest.mark.parametrize(
    "formula, random",
    [
        ("expr ~ sex + (celltype|batch)", None),
        ("expr ~ sex + (0 + celltype|batch)", None),
        ("expr ~ sex + (celltype - 1|batch)", None),
        ("expr ~ sex + (-1 + celltype|batch)", None),
        ("expr ~ sex + (0 + C(celltype)|batch)", None),
        ("expr ~ sex + (C(celltype)|batch)", None),
        ("expr ~ sex", {"batch": "celltype"}),
        ("expr ~ sex", {"batch": "0 + C(celltype)"}),
        ("expr ~ sex", "(celltype|batch)"),
    ],
)
def test_every_spelling_of_a_celltype_specific_effect(formula, random):
    spec = parse(formula, random)
    assert (spec.fixed, spec.random) == ("sex", (term("batch", left="celltype"),))


@pytest.mark.parametrize(
    "random, expected",
    [
        ("(1|site/batch)", (SITE, term("site", "batch"))),
        ("site/batch", (SITE, term("site", "batch"))),
        ("~ a/b/c", (term("a"), term("a", "b"), term("a", "b", "c"))),
        ("(1|a:b/c)", (term("a", "b"), term("a", "b", "c"))),
        ("(1|a:b)", (term("a", "b"),)),
        ("a:b", (term("a", "b"),)),
        ("(celltype|site/batch)", (term("site", left="celltype"),
                                   term("site", "batch", left="celltype"))),
        ("(1|batch) + (celltype|batch)", (BATCH, term("batch", left="celltype"))),
        ("my batch", (term("my batch"),)),
        ('(1|Q("my-batch"))', (term("my-batch"),)),
        (None, ()),
        ([], ()),
    ],
)  # fmt: skip
def test_nested_crossed_and_odd_groups(random, expected):
    assert parse("expr ~ 1", random).random == expected


@pytest.mark.parametrize(
    "formula, fixed, terms",
    [
        ("y ~ (1|b)", "1", ((),)),
        ("y ~ 1", "1", ((),)),
        ("y ~ + (1|b)", "1", ((),)),
        ("y ~ x + (1|b) - 1", "x - 1", (("x",),)),
        ("y ~ (1|b) - 1 + x", "- 1 + x", (("x",),)),
        ("y ~ 0 + (1|b) + x", "0 + x", (("x",),)),
        ("y ~ x*z + (1|b)", "x*z", ((), ("x",), ("z",), ("x", "z"))),
        ("y ~ x:z + (1|b) + I(x**2)", "x:z + I(x**2)", ((), ("x", "z"), ("I(x ** 2)",))),
        ("y ~ (x + z)**2 + (1|b)", "(x + z)**2", ((), ("x",), ("z",), ("x", "z"))),
        ("y ~ (x + (1|b)) + z", "(x ) + z", ((), ("x",), ("z",))),
        ("y ~ np.log(a|b)", "np.log(a|b)", ((), ("np.log(a | b)",))),
        ('y ~ Q("a|b") + (1|c)', 'Q("a|b")', ((), ('Q("a|b")',))),
        ("y ~ C(t, Treatment('(1|b)')) + (1|b)", "C(t, Treatment('(1|b)'))",
         ((), ("C(t, Treatment('(1|b)'))",))),
    ],
)  # fmt: skip
def test_what_is_left_when_the_random_terms_are_cut_out(formula, fixed, terms):
    spec = parse(formula)
    assert spec.fixed == fixed
    assert spec.terms == terms


@pytest.mark.parametrize(
    "left", ["expr", "np.log(expr)", 'Q("HLA-A")', "I(a + b)", "np.log1p(Q('x y') * 2)"]
)
def test_any_single_expression_may_be_the_response(left):
    assert parse(f"{left} ~ x").response.replace("'", '"') == left.replace("'", '"')


@pytest.mark.parametrize(
    "formula",
    [
        "y ~ x",
        "y ~ (1|b)",
        'Q("HLA-A") ~ 0 + C(t)*x + (1|a/b) + (t|Q("odd name"))',
        "np.log(y) ~ x - 1 + (1|b)",
    ],
)
def test_the_canonical_text_parses_to_the_same_and_specs_are_values(formula):
    spec = parse(formula)
    again = parse(spec.text)
    assert again == spec == pickle.loads(pickle.dumps(spec))
    assert hash(again) == hash(spec)
    assert parse(str(again)).terms == spec.terms


def test_a_formula_without_response_only_on_request():
    spec = parse("~ C(celltype) + (1|batch)", response_required=False)
    assert (spec.response, spec.fixed, spec.random) == ("", "C(celltype)", (BATCH,))
    assert parse(spec.text, response_required=False) == spec


# the caret stands under the character marked by « »
@pytest.mark.parametrize(
    "marked, message",
    [
        ("y ~ x:(1«|»b)", "stands alone"),
        ("y ~ x*(1«|»b)", "stands alone"),
        ("y ~ (1«|»b):x", "stands alone"),
        ("y ~ x/(1«|»b)", "stands alone"),
        ("y ~ x - (1«|»b)", "stands alone"),
        ("y ~ x + -(1«|»b)", "stands alone"),
        ("y ~ (x + (1«|»b))**2", "stands alone"),
        ("y ~ x + 1«|»b", "parentheses"),
        ("y ~ 1«|»b", "parentheses"),
        ("y ~ (1)«|»(b)", "parentheses"),
        ("y ~ (1|«|»b)", r"\|\| is not supported"),
        ("y ~ x + (1| «|» b)", r"\|\| is not supported"),
        ("y ~ x «(»1|b)", None),
        ("y ~ (x)«(»1|b)", "missing"),
        ("y ~ x + «(»1|b", "bracket"),
        ("y ~ (1«|»b|c)", "one |"),
        ("y ~ («|»b)", "cannot be read"),
        ("y ~ (1|«)»", "cannot be read"),
        ("y ~ («0»|b)", "left of the"),
        ("y ~ («1 + x»|b)", "left of the"),
        ("y ~ («x:z»|b)", "left of the"),
        ("y ~ («np.log(x)»|b)", "left of the"),
        ("y ~ (1|«b*c»)", "right of the"),
        ("y ~ (1|«b + c»)", "right of the"),
        ("y ~ (1|«1»)", "right of the"),
        ("y ~ (1|«np.log(b)»)", "right of the"),
        ("y ~ (1|«b:b»)", "crossed with itself"),
        ("(1«|»b) ~ x", "right of the ~"),
        ("«y + x»", "no ~"),
        ("«~» x", "no response"),
        ("y «~»", "missing after"),
        ("«~»", "missing after"),
        ("y ~ x «~» z", "more than one ~"),
        ("y ~ x + (a «~» b)", "more than one ~"),
        ("a «+» b ~ x", r"I\(\.\.\.\)"),
        ("a «*» 2 ~ x", r"I\(\.\.\.\)"),
        ("«1» ~ x", "not a number"),
        ("y ~ x + «y»", "is the response"),
        ("y ~ x + np.log(«y»)", "is the response"),
        ("np.log(y) ~ x + C(«y»)", "is the response"),
        # Python's reader of words stops there before 3.12
        ("y ~ x + «`»b`" if sys.version_info < (3, 12) else "y ~ x + «`b`»", r'Q\("'),
        ("y ~ x + «a b»", "not a Python expression"),
        ("y ~ «.»", "not supported"),
        ("y ~ «x^2»", "not a power"),
        ("y ~ z + «I(x^2)»", "not a power"),
        ("y ~ x«)»", "cannot be read"),
        # what patsy would ignore
        ("y ~ x + «-1»", "0 \\+ at the front, or - 1"),
        ("y ~ x + «- 1»", "would be ignored"),
        ("y ~ x + «(-1)»", "would be ignored"),
        ("y ~ x - «-1»", "would be ignored"),
        ("y ~ x + (1|b) + «-1»", "would be ignored"),
        ("y ~ x + («0» + z)", "would be ignored"),
        ("y ~ x + «(z - 1)»", "would be ignored"),
        ("y ~ x - («1» + z)", "would be ignored"),
        ("y ~ «(x - 1)»*z", "would be ignored"),
        ("y ~ x/(«0» + z)", "would be ignored"),
        ("y ~ «0»*x", "would be ignored"),
        ("y ~ x - «z»", "z is taken away but not there"),
        ("y ~ x + z - «x:z»", "x:z is taken away but not there"),
        ("y ~ x*(z - «x»)", "x is taken away but not there"),
        ("y ~ «x**2»", r"I\(x\*\*2\)"),
        ("y ~ z + «x*x»", r"I\(x\*\*2\)"),
        ("y ~ «x:x»", r"I\(x\*\*2\)"),
        ("y ~ «x, z»", r"join terms by \+"),
        ("y ~ x + «'z'»", "a column is written z"),
        ("y ~ x + «'a b'»", r'a column is written Q\("a b"\)'),
        ("y ~ «True»", "the same in every row"),
        ("«C(y)» ~ x", "must be numbers"),
        ("y ~ x + (1|«a + b»)", r"write \(1\|a\) \+ \(1\|b\)"),
    ],
)
def test_errors_show_the_formula_and_point_at_the_character(marked, message):
    if message is None:  # the caret is under the bar of what Python reads as a call
        marked, message = "y ~ x (1«|»b)", "is missing"
    formula = marked.replace("«", "").replace("»", "")
    with pytest.raises(FormulaError, match=message) as caught:
        parse(formula)
    _, shown, carets = str(caught.value).split("\n")
    assert shown == f"    {formula}"
    start, end = marked.index("«"), marked.index("»") - 1
    assert (carets.index("^") - 4, len(carets.rstrip()) - 4) == (start, end)


@pytest.mark.parametrize(
    "random, message",
    [
        ("1|batch + 1|site", "parentheses"),
        ("1|batch + site", "write (1|batch) + (1|site)"),
        (" ", "random= is empty: name a column"),
        ("y ~ batch", "takes no response"),
        ("~ batch - site", "cannot be taken away"),
        ("~ 1 + batch", "right of the"),
        ("batch * site:x", "right of the"),
        ("", "random= is empty: name a column"),
        ("~", "missing after"),
        (5, "must be a column name"),
        ([5], "must be a text"),
        (b"batch", "must be a column name"),
        ({"batch": "1 + x"}, "left of the"),
        ({"batch": 2}, "left of the"),
        ({"batch": None}, "must be '1'"),
        ({"batch": True}, "must be '1'"),
        ({"(1|batch)": "1"}, "without a |"),
        (["batch", "batch"], "given twice"),
        ("a:b + b:a", "given twice"),
        ("(celltype|a) + (0 + celltype|a)", "given twice"),
    ],
)
def test_random_arguments_that_are_refused(random, message):
    with pytest.raises(FormulaError, match=re.escape(message)):
        parse("y ~ x", random)


@pytest.mark.parametrize("random", ["1|batch", " 1 | batch ", {"batch": 1}])
def test_brackets_of_a_lone_random_term_may_be_left_out(random):
    assert parse("y ~ x", random).random == (BATCH,)
    assert parse("y ~ x", "celltype|batch").random == (term("batch", left="celltype"),)


@pytest.mark.parametrize("random", [pd.DataFrame({"batch": ["a"]}), pd.Series(["batch"])])
def test_a_table_in_place_of_random_effects(random):
    with pytest.raises(FormulaError, match=r"did you mean data=\?"):
        parse("y ~ x", random)


@pytest.mark.parametrize(
    "fixed",
    ["x - 1", "0 + x", "-1 + x", "x + 0", "(x + 0)", "x - (1)", "(0 + x) + z", "x*z - x:z - 1"],
)
def test_signs_that_leave_the_intercept_out(fixed):
    assert () not in parse(f"y ~ {fixed}").terms


@pytest.mark.parametrize("fixed", ["x - 0", "x + +1", "x - 1 + (1 + z)", "x + z - z", "(x + z)**2"])
def test_signs_that_keep_it(fixed):
    assert () in parse(f"y ~ {fixed}").terms


def test_the_same_term_in_formula_and_argument_is_an_error():
    with pytest.raises(FormulaError, match=r"\(1 \| batch\) is given twice"):
        parse("y ~ x + (1|batch)", "batch")
    with pytest.raises(FormulaError, match="given twice"):
        parse("y ~ x + (1|site/batch)", "site")


@pytest.mark.parametrize("formula", [None, 3, ["y ~ x"], b"y ~ x"])
def test_formulas_are_text(formula):
    with pytest.raises(FormulaError, match="must be a text"):
        parse(formula)


def test_a_ratio_on_the_left_may_share_a_column_with_the_right():
    assert parse("I(expr / size) ~ size").fixed == "size"
    with pytest.raises(FormulaError, match="is the response"):
        parse("I(expr / size) ~ I(expr / size)")


TEXT = st.text(alphabet="y~x+-*/:|()01 bCQ\"'[],.^`#$é\\{}=<&@!;\n", max_size=16)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, derandomize=True)
@given(TEXT, TEXT)
def test_no_text_makes_the_parser_fail_in_a_foreign_way(text, random):
    for arguments in (("y ~ " + text,), (text,), ("y ~ x", random)):
        try:
            spec = parse(*arguments)
        except CTMMError:
            continue
        assert parse(spec.text) == spec


def test_python_gives_no_advice_of_its_own(recwarn):
    table = pd.DataFrame({"y": [1.0, 2.0], "x": [0.0, 1.0]})
    with pytest.raises(FormulaError, match="cannot be computed"):
        evaluate("2(y)", table, {})
    with pytest.raises(FormulaError, match="cannot be computed"):
        Coding("I(3(x))", table, {}, "patsy").names  # noqa: B018
    assert not recwarn.list


def test_names_in_expressions():
    names = names_in('f(x, k=g.h(Q("a b"))) + [v for v in z][0]')
    assert names.called == ("f", "Q")
    assert names.roots == ("g",)
    assert names.variables == ("x", "a b", "z")
    assert column_of('Q("a b")') == "a b"
    assert column_of("C(x, Sum)") == "x"
    assert column_of("I(x)") is None
    assert is_condition("I(x > 0)")
    assert is_condition("not x")
    assert not is_condition("I(x)")
    assert quote('a"b') == r'Q("a\"b")'
    for name in ('a"b', "a\\", "class", "1", "a b", "é"):
        assert column_of(quote(name)) == name


@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
def test_polynomials_are_orthonormal_and_serve_new_rows(engine):
    """As QR of the powers gives them, whatever the centre of x."""
    x = np.random.default_rng(1).normal(40.0, 5.0, 30)
    new = np.array([25.0, 40.0, 61.0])
    coding = Coding("poly(x, 3)", pd.DataFrame({"x": x}), {}, engine)
    assert coding.names == ("Intercept", *(f"poly(x, 3)[{k}]" for k in range(3)))
    powers = np.vander(np.r_[x, new] - x.mean(), 4, increasing=True)
    R = np.linalg.qr(powers[:30])[1]
    want = powers @ np.linalg.inv(R) * np.sign(np.diag(R))
    got = np.vstack([coding.matrix(pd.DataFrame({"x": part})) for part in (x, new)])
    np.testing.assert_allclose(got[:, 1:], want[:, 1:], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("poly(x, 0)", "degree must be a whole number of 1 or more, got 0"),
        ("poly(x, 9)", "4 different values have polynomials up to degree 3"),
        ("poly(x, 2.5)", "degree must be a whole number"),
    ],
)
def test_polynomials_that_are_none(code, message):
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0, 4.0]})
    with pytest.raises(FormulaError, match=message):
        _ = Coding(code, frame, {}, "patsy").names


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("offset(PC1)", r"there is no function 'offset'; take what is known off .*I\(y - x\)"),
        ("ns(PC1, 3)", r"natural splines are cr\(x, df=3, constraints='center'\)"),
        ("s(PC1)", r"bs\(x, df=3\) or cr\("),
        ("(PC1 | donor)", r"no random slopes.*\+ PC1, or one for each cell type, \+ PC1:celltype"),
        ("(0 + PC1 | batch)", r"no random slopes.*'PC1' is a fixed effect"),
        ("(1 + PC1 | donor)", "there are no random slopes, a covariate is a fixed effect"),
        ("(1 + celltype | batch)", r"share a part of it are \(1\|group\) \+ \(celltype\|group\)"),
        ("(celltype || batch)", r"write one \|: random effects are independent as they stand"),
    ],
)
def test_what_other_packages_have_is_refused_with_what_to_write(term, message):
    with pytest.raises(FormulaError, match=message):
        ctmm.fit(f"expr ~ C(celltype) + {term}", data=ctmm.load_example())


@pytest.mark.parametrize(
    "formula",
    [
        "I(expr - PC1) ~ C(celltype)",
        "expr ~ C(celltype) + cr(PC1, df=3, constraints='center')",
        "expr ~ C(celltype) + bs(PC1, df=3)",
        "expr ~ C(celltype) + PC1:celltype",
        "expr ~ C(celltype) + poly(PC1, 2)",
        "expr ~ C(celltype) + (1|batch) + (celltype|batch)",
    ],
)
@pytest.mark.parametrize("engine", ["patsy", "formulaic"])
def test_what_is_said_to_be_written_is_fitted(formula, engine):
    df = ctmm.load_example()
    res = ctmm.fit(formula, data=df, structure="hom", method="he", formula_engine=engine)
    again = ctmm.CTMMResults.from_json(res.to_json())
    np.testing.assert_allclose(again.predict(df.head(9)), res.predict().head(9), rtol=1e-9)
    assert not any("independent" in note for note in res.notes)


def test_effects_on_cell_types_are_said_to_be_independent():
    df = ctmm.load_example()
    res = ctmm.fit("expr ~ C(celltype) + (celltype|batch)", data=df, structure="hom", method="he")
    assert any(
        note.startswith("(celltype | batch): effects on different cell types are independent; add")
        for note in res.notes
    )
