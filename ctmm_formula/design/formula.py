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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from patsy import ModelDesc, PatsyError
from patsy.infix_parser import Operator, ParseNode
from patsy.parse_formula import parse_formula

from ..errors import FormulaError
from .expressions import column_of, expression, names_in, quote

_BAR = Operator("|", 2, 50)  # weaker than +, so that an unparenthesised bar swallows the sum
_FORMULA_SIGNS = re.compile(r"[~|+:/()]")  # a `random=` text with none of these is a column name


@dataclass(frozen=True)
class RandomTerm:
    """One random effect of the formula.

    Attributes
    ----------
    groups : tuple of str
        Columns whose crossed levels are the levels of the effect.
    celltype_specific : bool
        One effect, and one variance, per cell type.
    label : str
        The groups joined by colons.
    left : str
        What stands left of the bar: "1", or the name of the cell type column.
    """

    groups: tuple[str, ...]
    celltype_specific: bool
    label: str
    left: str = "1"

    def __str__(self) -> str:
        return f"({quote(self.left) if self.celltype_specific else 1} | " + (
            ":".join(quote(group) for group in self.groups) + ")"
        )


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
        return _fixed_terms(self.fixed)

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
    text = _clean(formula, "formula")
    left, right = _sides(text, _tree(text))
    if left is None and response_required:
        _fail(text, 0, "the formula has no response: write response ~ terms")
    response = "" if left is None else _response(text, left)
    fixed, random_terms = _split(text, right)
    _check_algebra(text, right)
    merged = tuple(_unique([*random_terms, *_random_argument(random)]))
    canonical = " + ".join([f"{response} ~ {fixed}".strip(), *map(str, merged)])
    spec = FormulaSpec(canonical, response, fixed, merged)
    own = names_in(response).variables if response else ()
    for code in spec.factors:  # also checks that every factor is a Python expression
        # expr / size on the left may well have size on the right
        if code == response or (len(own) == 1 and own[0] in names_in(code).variables):
            place = re.search(rf"\b{re.escape(own[0])}\b", text[right.origin.start :])
            start = right.origin.start + (place.start() if place else 0)
            _fail(text, start, f"{own[0]!r} is the response and cannot be a covariate as well")
    return spec


# ---------------------------------------------------------------------------------------------
# the tree


def _clean(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise FormulaError(f"the {what} must be a text, got {type(text).__name__}")
    text = re.sub(r"\s", " ", text).strip()
    if not text:
        raise FormulaError(f"the {what} is empty: write response ~ terms")
    return text


def _fail(text: str, start: int, message: str, end: int | None = None) -> NoReturn:
    carets = "^" * max(1, (start + 1 if end is None else end) - start)
    raise FormulaError(f"{message}\n    {text}\n    {' ' * start}{carets}")


def _tree(text: str) -> ParseNode:
    """Parse by patsy's grammar plus the bar; its complaints become ours."""
    try:
        return parse_formula(text, extra_operators=[_BAR])
    except PatsyError as error:
        start, message = _complaint(text, error)
    _fail(text, start, message)


def _complaint(text: str, error: PatsyError) -> tuple[int, str]:
    """Position and wording for what patsy could not parse."""
    start = error.origin.start if error.origin is not None else 0
    while start < len(text) - 1 and text[start] == " ":
        start += 1
    before = text[:start].rstrip()
    if "`" in text:
        return text.index("`"), 'names with odd characters are written Q("...")'
    if text[start : start + 1] == "|" and before.endswith("|"):
        return start, "|| is not supported: write (1|group), one term per variance"
    if text[start : start + 1] == "(" and "|" in text[start:]:
        return start, "a + is missing before the random term, or a bracket is not closed"
    message = str(error.message)
    if "expression ended" in message:
        message = "something is missing after this sign"
    return start, f"the formula cannot be read: {message}"


def _sides(text: str, tree: ParseNode) -> tuple[ParseNode | None, ParseNode]:
    """Left (None if absent) and right side of the one tilde."""
    if tree.token is None:
        _fail(text, 0, "the formula has no ~: write response ~ terms", len(text))
    for side in tree.args:
        for node in _nodes(side):
            if node.type == "~":
                start = max(node.token.origin.start, tree.token.origin.start)
                _fail(text, start, "the formula has more than one ~")
    return (tree.args[0] if len(tree.args) == 2 else None), tree.args[-1]


def _nodes(node: ParseNode) -> Iterator[ParseNode]:
    yield node
    for child in node.args:
        yield from _nodes(child)


def _response(text: str, node: ParseNode) -> str:
    """The left side as one Python expression."""
    if node.type == "PYTHON_EXPR":
        _check_expression(text, node)
        if node.token.extra.replace(" ", "").startswith("C("):
            message = "C(...) makes categories; the response must be numbers: write the column"
            _fail(text, node.origin.start, message, node.origin.end)
        return node.token.extra
    start = node.token.origin.start
    if node.type == "|":
        _fail(text, start, "a random term belongs to the right of the ~")
    if node.args:
        _fail(
            text,
            start,
            "the response must be one column or one function call: wrap arithmetic in I(...)",
        )
    _fail(text, start, "the response must be a column, not a number")


def _split(text: str, right: ParseNode) -> tuple[str, list[RandomTerm]]:
    """Cut the random terms, with the sign that joins them, out of the right-hand side."""
    spans: list[tuple[int, int]] = []
    terms: list[RandomTerm] = []
    nothing_fixed = _walk(text, right, spans, terms)
    for node in _nodes(right):
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
        terms += _random_terms(text, node)
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
        _forbid_bar(text, node.args[1])
        return False
    for child in node.args:
        _forbid_bar(text, child)
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
    same = node.type in ("*", ":", "/") and _code(node.args[0]) == _code(node.args[1]) != ""
    if same or (node.type == "**" and _code(node.args[0])):
        code = _code(node.args[0])
        message = f"in a formula this is {code} alone: write {code}, or I({code}**2) for the square"
        _fail(text, node.origin.start, message, node.origin.end)
    minus_one = node.type == "-" and node.args[-1].type in ("ZERO", "ONE")
    if node.type in numbers or minus_one:
        message = "this would be ignored: to leave the intercept out write 0 + at the front, or - 1"
        _fail(text, node.origin.start, message, node.origin.end)
    if node.type == "-" and len(node.args) == 2:
        _check_removal(text, *node.args)
    for child in node.args:
        _refuse_ignored(text, child, numbers)


def _code(node: ParseNode) -> str:
    """The text of a single factor, "" for anything else."""
    return node.token.extra if node.type == "PYTHON_EXPR" else ""


def _check_removal(text: str, left: ParseNode, node: ParseNode) -> None:
    """What a minus takes away must be there."""
    if any(inner.type == "|" for inner in _nodes(node)):
        return
    present = {frozenset(term) for term in _node_terms(text, left)}
    for term in _node_terms(text, node):
        if term and frozenset(term) not in present:
            message = f"{':'.join(term)} is taken away but not there: nothing would change"
            last = left
            while last.args:
                last = last.args[-1]
            if _code(last) and _code(node):  # a dash in a name
                message += f"; one column is written {quote(f'{_code(last)}-{_code(node)}')}"
            _fail(text, node.origin.start, message, node.origin.end)


def _node_terms(text: str, node: ParseNode) -> tuple[tuple[str, ...], ...]:
    """Fixed terms of a part of the right-hand side."""
    if node.type == "|":
        return ()
    return _fixed_terms(_split(text, node)[0])


def _forbid_bar(text: str, node: ParseNode) -> None:
    for inner in _nodes(node):
        if inner.type == "|":
            _fail(
                text,
                inner.token.origin.start,
                "a random term stands alone: add it with +, in parentheses",
            )


def _check_expression(text: str, node: ParseNode) -> None:
    """Python, and no ``sex (1|batch)``, which is Python for calling sex: the plus is missing."""
    try:
        tree = expression(node.token.extra)
    except FormulaError as error:
        _fail(text, node.origin.start, str(error), node.origin.end)
    if isinstance(tree, (ast.Tuple, ast.List, ast.Set)):
        _fail(
            text,
            node.origin.start,
            "a comma: join terms by + (the response is one column)",
            node.origin.end,
        )
    if isinstance(tree, ast.Constant):
        name = tree.value.strip() if isinstance(tree.value, str) else ""
        fix = f"a column is written {quote(name)}" if name else "name a column"
        message = f"{node.token.extra} is a value, the same in every row: {fix}"
        _fail(text, node.origin.start, message, node.origin.end)
    for inner in ast.walk(tree):
        bar = isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.BitOr)
        if bar and isinstance(inner.left, ast.Constant):  # type: ignore[attr-defined]
            place = text.find("|", node.origin.start)
            _fail(text, place, "a + is missing before the random term")


# ---------------------------------------------------------------------------------------------
# random terms


def _random_terms(text: str, node: ParseNode) -> list[RandomTerm]:
    """Terms of one ``(left|groups)``."""
    bar, (left, right) = node.token.origin.start, node.args
    if node.origin.start == left.origin.start or text[node.origin.start] != "(":
        _fail(text, bar, "a random term needs parentheses: write (1|group)")
    for child in node.args:
        for inner in _nodes(child):
            if inner.type == "|":
                _fail(text, inner.token.origin.start, "one | per random term: write (1|group)")
    name = _left_name(text, left)
    return [_term(groups, name) for groups in _groups(text, right)]


def _term(groups: tuple[str, ...], left: str | None) -> RandomTerm:
    return RandomTerm(groups, left is not None, ":".join(groups), "1" if left is None else left)


def _left_name(text: str, node: ParseNode) -> str | None:
    """None for an intercept per level, else the column named left of the bar."""
    signs = {"ZERO": 0, "ONE": 0}
    names = []
    for sign, atom in _summands(node):
        if atom.type in signs:
            signs[atom.type] += sign
        elif atom.type == "PYTHON_EXPR" and sign > 0:
            names.append(column_of(atom.token.extra))
        else:
            names.append(None)
    if not names and signs == {"ZERO": 0, "ONE": 1}:
        return None
    if len(names) == 1 and names[0] is not None and signs["ONE"] <= 0:
        return names[0]
    _fail(
        text,
        node.origin.start,
        "left of the | stands 1 (one effect per level), or the cell type column (one effect per "
        "level and cell type)",
        node.origin.end,
    )


def _summands(node: ParseNode, sign: int = 1) -> Iterator[tuple[int, ParseNode]]:
    if node.type in ("+", "-"):
        last = -sign if node.type == "-" else sign
        for child in node.args[:-1]:
            yield from _summands(child, sign)
        yield from _summands(node.args[-1], last)
    else:
        yield sign, node


def _groups(text: str, node: ParseNode) -> list[tuple[str, ...]]:
    """Grouping factors right of the bar: a, a:b, and a/b as a and a:b."""
    if node.type == "/":
        outer = _groups(text, node.args[0])
        return [*outer, outer[-1] + _crossed(text, node.args[1])]
    return [_crossed(text, node)]


def _crossed(text: str, node: ParseNode) -> tuple[str, ...]:
    if node.type == ":":
        names = _crossed(text, node.args[0]) + _crossed(text, node.args[1])
        if len(set(names)) < len(names):
            _fail(text, node.origin.start, "a column is crossed with itself", node.origin.end)
        return names
    name = column_of(node.token.extra) if node.type == "PYTHON_EXPR" else None
    if name is None:
        message = 'right of the | stands a column, a:b or a/b; odd names are written Q("...")'
        asked = [_code(atom) for _, atom in _summands(node)]
        if node.type == "+" and all(asked):
            message = "right of the | stands one group: write " + " + ".join(
                f"(1|{group})" for group in asked
            )
        _fail(text, node.origin.start, message, node.origin.end)
    return (name,)


def _random_argument(random: object) -> list[RandomTerm]:
    """Every accepted form of ``random=`` as terms."""
    if random is None:
        return []
    if hasattr(random, "columns") or hasattr(random, "dtype"):
        raise FormulaError(
            f"random= got a {type(random).__name__}: did you mean data=? random= takes names of "
            "columns, such as 'batch'"
        )
    if isinstance(random, str):
        return _random_text(random)
    if isinstance(random, Mapping):
        return [term for group, left in random.items() for term in _random_pair(group, left)]
    if isinstance(random, Iterable) and not isinstance(random, bytes):
        return [term for item in random for term in _random_text(item)]
    raise FormulaError(
        "random must be a column name, a list of them, a formula such as '~ batch + site' or "
        f"'(1|batch)', or a dict {{'batch': '1'}}; got {type(random).__name__}"
    )


def _random_text(random: object) -> list[RandomTerm]:
    if isinstance(random, str) and not random.strip():
        raise FormulaError("random= is empty: name a column, random='batch', or leave it out")
    text = _clean(random, "random term")
    if re.fullmatch(r"[^()|~]+\|[^()|~]+", text):  # 1|batch alone can mean nothing else
        text = f"({text})"
    if not _FORMULA_SIGNS.search(text):
        return [_term((text,), None)]
    tree = _tree(text)
    if len(tree.args) == 2:
        _fail(text, tree.token.origin.start, "random= takes no response: write '~ batch'")
    terms: list[RandomTerm] = []
    for sign, node in _summands(tree.args[0]):
        if sign < 0:
            _fail(text, node.origin.start, "a random term cannot be taken away", node.origin.end)
        if node.type == "|":
            terms += _random_terms(text, node)
        else:
            _forbid_bar(text, node)
            terms += [_term(groups, None) for groups in _groups(text, node)]
    return terms


def _random_pair(group: object, left: object) -> list[RandomTerm]:
    """One entry of ``random={group: left}``."""
    if isinstance(left, bool) or not isinstance(left, (str, int)):
        raise FormulaError(
            f"random={{{group!r}: {left!r}}}: the value must be '1' or the cell type column"
        )
    if isinstance(group, str) and "|" in group:
        raise FormulaError(f"random={{{group!r}: ...}}: the key must be a column, without a |")
    text = _clean(str(left), "left side of a random term")
    name = _left_name(text, _tree(text).args[-1])
    return [_term(term.groups, name) for term in _random_text(group)]


def _unique(terms: list[RandomTerm]) -> list[RandomTerm]:
    seen: set[tuple[frozenset[str], bool]] = set()
    for term in terms:
        key = (frozenset(term.groups), term.celltype_specific)
        if key in seen:
            raise FormulaError(
                f"the random term {term} is given twice: name it in the formula or in random=, once"
            )
        seen.add(key)
    return terms


# ---------------------------------------------------------------------------------------------
# the fixed part


def _fixed_terms(fixed: str) -> tuple[tuple[str, ...], ...]:
    """Terms by patsy's algebra of +, -, *, /, : and **."""
    text = f"~ {fixed}"
    try:
        description = ModelDesc.from_formula(text)
    except PatsyError as error:
        start, message = _complaint(text, error)
    else:
        return tuple(tuple(f.code for f in term.factors) for term in description.rhs_termlist)
    _fail(text, start, message)
