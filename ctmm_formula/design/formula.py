"""Formulas as strings: response, fixed part, random terms.  No table is seen here.

    response ~ fixed + (1|group) + (1|outer/inner) + (celltype|group)

A random term is legal only as a parenthesised summand of the right-hand side; everywhere else
the formula languages of Python would read ``|`` in some silent way, so it is refused with a
pointer to the character.  The random terms are cut out of the text, and what is left is an
ordinary formula that either engine reads unchanged.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property

from patsy.infix_parser import ParseNode

from ..errors import FormulaError
from .expressions import expression, names_in, quote
from .random_terms import RandomTerm, random_argument, random_terms, unique
from .syntax import clean, factor, fail, fixed_terms, forbid_bar, nodes, syntax_tree


@dataclass(frozen=True)
class FormulaSpec:
    """A parsed formula; strings only, hashable.

    Attributes
    ----------
    text : str
        Canonical text, which parses to an equal specification.
    response : str
        Python expression of the response, "" for a formula without one.
    fixed : str
        Right-hand side without the random terms; "1" where nothing else is left.
    random : tuple of RandomTerm
    """

    text: str
    response: str
    fixed: str
    random: tuple[RandomTerm, ...]

    @cached_property
    def terms(self) -> tuple[tuple[str, ...], ...]:
        """Terms of the fixed part as tuples of factors; () is the intercept."""
        return fixed_terms(self.fixed)

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """Factors of the fixed part, Python expressions, each once."""
        return tuple(dict.fromkeys(code for term in self.terms for code in term))

    def __str__(self) -> str:
        return self.text


def parse(formula: str, random: object = None, *, response_required: bool = True) -> FormulaSpec:
    """Split a formula into response, fixed part and random terms.

    Parameters
    ----------
    formula : str
        ``response ~ terms``; terms may hold ``(1|group)``, ``(1|a:b)`` (crossed levels),
        ``(1|outer/inner)`` (``outer`` and ``outer:inner``) and ``(celltype|group)`` (an effect
        on each cell type with its own variance).
    random : str, sequence of str, or dict group -> left-hand side, optional
        More random terms: ``"batch"``, ``["batch", "site"]``, ``"~ batch + site"``,
        ``"(1|batch) + (1|site)"``, ``{"batch": "1"}``, ``{"batch": "celltype"}``.
    response_required : bool
        Whether ``~ terms`` without a response is an error.

    Returns
    -------
    FormulaSpec

    Raises
    ------
    FormulaError
        With the formula and a caret under the character at fault.

    Examples
    --------
    >>> spec = parse("expr ~ C(celltype) + (1|batch) + sex", random="site")
    >>> spec.response, spec.fixed, [term.label for term in spec.random]
    ('expr', 'C(celltype) + sex', ['batch', 'site'])
    >>> str(spec)
    'expr ~ C(celltype) + sex + (1 | batch) + (1 | site)'
    >>> parse("expr ~ sex*(1|batch)")
    Traceback (most recent call last):
    ctmm_formula.errors.FormulaError: a random term stands alone: add it with +, in parentheses
        expr ~ sex*(1|batch)
                     ^
    """
    try:
        return _parse(formula, random, response_required)
    except (RecursionError, MemoryError):
        raise FormulaError(
            "the formula has too many terms, signs or brackets to be read: shorten it, or put "
            "what belongs together into columns of data"
        ) from None


def _parse(formula: str, random: object, response_required: bool) -> FormulaSpec:
    text = clean(formula, "formula")
    left, right = _sides(text, syntax_tree(text))
    if left is None and response_required:
        fail(text, 0, "the formula has no response: write response ~ terms")
    response = "" if left is None else _response(text, left)
    fixed, random_terms = _split(text, right)
    _check_algebra(text, right)
    merged = tuple(unique([*random_terms, *random_argument(random)]))
    canonical = " + ".join([f"{response} ~ {fixed}".strip(), *map(str, merged)])
    spec = FormulaSpec(canonical, response, fixed, merged)
    own = names_in(response).variables if response else ()
    for code in spec.factors:  # also checks that every factor is a Python expression
        # expr / size on the left may well have size on the right
        if code == response or (len(own) == 1 and own[0] in names_in(code).variables):
            place = re.search(rf"\b{re.escape(own[0])}\b", text[right.origin.start :])
            start = right.origin.start + (place.start() if place else 0)
            fail(text, start, f"{own[0]!r} is the response and cannot be a covariate as well")
    return spec


# ---------------------------------------------------------------------------------------------
# the tree


def _sides(text: str, tree: ParseNode) -> tuple[ParseNode | None, ParseNode]:
    """Left (None if absent) and right side of the one tilde."""
    if tree.token is None:
        fail(text, 0, "the formula has no ~: write response ~ terms", len(text))
    for side in tree.args:
        for node in nodes(side):
            if node.type == "~":
                start = max(node.token.origin.start, tree.token.origin.start)
                fail(text, start, "the formula has more than one ~")
    return (tree.args[0] if len(tree.args) == 2 else None), tree.args[-1]


def _response(text: str, node: ParseNode) -> str:
    """The left side as one Python expression."""
    if node.type == "PYTHON_EXPR":
        _check_expression(text, node)
        if node.token.extra.replace(" ", "").startswith("C("):
            message = "C(...) makes categories; the response must be numbers: write the column"
            fail(text, node.origin.start, message, node.origin.end)
        return node.token.extra
    start = node.token.origin.start
    if node.type == "|":
        fail(text, start, "a random term belongs to the right of the ~")
    if node.args:
        fail(
            text,
            start,
            "the response must be one column or one function call: wrap arithmetic in I(...)",
        )
    fail(text, start, "the response must be a column, not a number")


def _split(text: str, right: ParseNode) -> tuple[str, list[RandomTerm]]:
    """Cut the random terms, with the sign that joins them, out of the right-hand side."""
    spans: list[tuple[int, int]] = []
    terms: list[RandomTerm] = []
    nothing_fixed = _walk(text, right, spans, terms)
    for node in nodes(right):
        if node.type == "PYTHON_EXPR":
            _check_expression(text, node)
    if nothing_fixed:
        return "1", terms
    start, end = right.origin.start, right.origin.end
    pieces = []
    for cut_start, cut_end in sorted(spans):
        pieces.append(text[start:cut_start].strip())
        start = cut_end
    pieces.append(text[start:end].strip())
    fixed = " ".join(piece for piece in pieces if piece)
    return (fixed[1:].strip() if fixed.startswith("+") else fixed), terms


def _walk(
    text: str, node: ParseNode, spans: list[tuple[int, int]], terms: list[RandomTerm]
) -> bool:
    """Collect random terms and the spans to cut; True if nothing of `node` is fixed."""
    if node.type == "|":
        terms += random_terms(text, node)
        return True
    if node.type == "+":
        random = [_walk(text, child, spans, terms) for child in node.args]
        if all(random):
            return True
        operator = node.token.origin
        if random[0]:
            spans.append((node.args[0].origin.start, operator.end))
        elif random[-1]:
            spans.append((operator.start, node.args[-1].origin.end))
        return False
    if node.type == "-" and len(node.args) == 2:
        if _walk(text, node.args[0], spans, terms):
            spans.append((node.args[0].origin.start, node.args[0].origin.end))
        forbid_bar(text, node.args[1])
        return False
    for child in node.args:
        forbid_bar(text, child)
    return False


def _check_algebra(text: str, right: ParseNode) -> None:
    """Refuse what patsy reads and then ignores.

    A 0, a -1 and a minus before brackets act on the intercept only as summands of the whole
    right-hand side; a term to a power, crossed with itself or taken away unseen changes nothing.
    """
    node = right
    while node.type in ("+", "-") and len(node.args) == 2:
        left, last = node.args
        if last.type not in ("ZERO", "ONE"):
            _refuse_ignored(text, last, {"ZERO", "ONE"} if node.type == "-" else {"ZERO"})
            if node.type == "-":
                _check_removal(text, left, last)
        node = left
    if not (node.type in ("+", "-") and node.args[0].type in ("ZERO", "ONE")):
        _refuse_ignored(text, node, {"ZERO"} if node.args else set())


def _refuse_ignored(text: str, node: ParseNode, numbers: set[str]) -> None:
    """Complain of signs and operators inside `node` that have no effect there."""
    if node.type == "|":
        return
    same = node.type in ("*", ":", "/") and factor(node.args[0]) == factor(node.args[1]) != ""
    if same or (node.type == "**" and factor(node.args[0])):
        code = factor(node.args[0])
        message = f"in a formula this is {code} alone: write {code}, or I({code}**2) for the square"
        fail(text, node.origin.start, message, node.origin.end)
    minus_one = node.type == "-" and node.args[-1].type in ("ZERO", "ONE")
    if node.type in numbers or minus_one:
        message = "this would be ignored: to leave the intercept out write 0 + at the front, or - 1"
        fail(text, node.origin.start, message, node.origin.end)
    if node.type == "-" and len(node.args) == 2:
        _check_removal(text, *node.args)
    for child in node.args:
        _refuse_ignored(text, child, numbers)


def _check_removal(text: str, left: ParseNode, node: ParseNode) -> None:
    """What a minus takes away must be there."""
    if any(inner.type == "|" for inner in nodes(node)):
        return
    present = {frozenset(term) for term in _node_terms(text, left)}
    for term in _node_terms(text, node):
        if term and frozenset(term) not in present:
            message = f"{':'.join(term)} is taken away but not there: nothing would change"
            last = left
            while last.args:
                last = last.args[-1]
            if factor(last) and factor(node):  # a dash in a name
                message += f"; one column is written {quote(f'{factor(last)}-{factor(node)}')}"
            fail(text, node.origin.start, message, node.origin.end)


def _node_terms(text: str, node: ParseNode) -> tuple[tuple[str, ...], ...]:
    """Fixed terms of a part of the right-hand side."""
    if node.type == "|":
        return ()
    return fixed_terms(_split(text, node)[0])


def _check_expression(text: str, node: ParseNode) -> None:
    """Python, and no ``sex (1|batch)``, which is Python for calling sex: the plus is missing."""
    try:
        tree = expression(node.token.extra)
    except FormulaError as error:
        fail(text, node.origin.start, str(error), node.origin.end)
    if isinstance(tree, (ast.Tuple, ast.List, ast.Set)):
        fail(
            text,
            node.origin.start,
            "a comma: join terms by + (the response is one column)",
            node.origin.end,
        )
    if isinstance(tree, ast.Constant):
        name = tree.value.strip() if isinstance(tree.value, str) else ""
        fix = f"a column is written {quote(name)}" if name else "name a column"
        message = f"{node.token.extra} is a value, the same in every row: {fix}"
        fail(text, node.origin.start, message, node.origin.end)
    for inner in ast.walk(tree):
        bar = isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.BitOr)
        if bar and isinstance(inner.left, ast.Constant):  # type: ignore[attr-defined]
            place = text.find("|", node.origin.start)
            fail(text, place, "a + is missing before the random term")
