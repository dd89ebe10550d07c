"""Syntax trees of formulas: patsy's grammar plus the bar, and errors that point into the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from patsy import ModelDesc, PatsyError
from patsy.infix_parser import Operator, ParseNode
from patsy.parse_formula import parse_formula

from ..errors import FormulaError

_BAR = Operator("|", 2, 50)  # weaker than +, so that an unparenthesised bar swallows the sum


def clean(text: object, what: str) -> str:
    """The text in one line."""
    if not isinstance(text, str):
        raise FormulaError(f"the {what} must be a text, got {type(text).__name__}")
    text = re.sub(r"\s", " ", text).strip()
    if not text:
        raise FormulaError(f"the {what} is empty: write response ~ terms")
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise FormulaError(f"the {what} {text[:200]!a} holds half a character: type it anew")
    return text


def fail(text: str, start: int, message: str, end: int | None = None) -> NoReturn:
    """An error with the text and carets under what is at fault."""
    carets = "^" * max(1, (start + 1 if end is None else end) - start)
    raise FormulaError(f"{message}\n    {text}\n    {' ' * start}{carets}")


def syntax_tree(text: str) -> ParseNode:
    """Parse by patsy's grammar plus the bar; its complaints become ours."""
    try:
        return parse_formula(text, extra_operators=[_BAR])
    except PatsyError as error:
        start, message = _complaint(text, error)
    fail(text, start, message)


def _complaint(text: str, error: PatsyError) -> tuple[int, str]:
    """Position and wording for what patsy could not parse."""
    start = error.origin.start if error.origin is not None else 0
    while start < len(text) - 1 and text[start] == " ":
        start += 1
    before = text[:start].rstrip()
    if "`" in text:
        return text.index("`"), 'names with odd characters are written Q("...")'
    if text[start : start + 1] == "|" and before.endswith("|"):
        return start, (
            "|| is not supported, write one |: random effects are independent as they stand, those "
            "of cell types in (celltype|group) too; there are no random slopes, a covariate is a "
            "fixed effect"
        )
    if text[start : start + 1] == "(" and "|" in text[start:]:
        return start, "a + is missing before the random term, or a bracket is not closed"
    message = str(error.message)
    if "expression ended" in message:
        message = "something is missing after this sign"
    return start, f"the formula cannot be read: {message}"


def nodes(node: ParseNode) -> Iterator[ParseNode]:
    """A node and all below it."""
    yield node
    for child in node.args:
        yield from nodes(child)


def summands(node: ParseNode, sign: int = 1) -> Iterator[tuple[int, ParseNode]]:
    """Signs and nodes that + and - join."""
    if node.type in ("+", "-"):
        last = -sign if node.type == "-" else sign
        for child in node.args[:-1]:
            yield from summands(child, sign)
        yield from summands(node.args[-1], last)
    else:
        yield sign, node


def factor(node: ParseNode) -> str:
    """The text of a single factor, "" for anything else."""
    return node.token.extra if node.type == "PYTHON_EXPR" else ""


def forbid_bar(text: str, node: ParseNode) -> None:
    """No random term inside the node."""
    for inner in nodes(node):
        if inner.type == "|":
            fail(
                text,
                inner.token.origin.start,
                "a random term stands alone: add it with +, in parentheses",
            )


def fixed_terms(fixed: str) -> tuple[tuple[str, ...], ...]:
    """Terms by patsy's algebra of +, -, *, /, : and **."""
    text = f"~ {fixed}"
    try:
        description = ModelDesc.from_formula(text)
    except PatsyError as error:
        start, message = _complaint(text, error)
    else:
        return tuple(tuple(f.code for f in term.factors) for term in description.rhs_termlist)
    fail(text, start, message)
