"""Random terms: ``(1|group)`` in a formula, and every form of ``random=``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from patsy.infix_parser import ParseNode

from ..errors import FormulaError
from .expressions import column_of, quote
from .syntax import clean, factor, fail, forbid_bar, nodes, summands, syntax_tree

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


def random_terms(text: str, node: ParseNode) -> list[RandomTerm]:
    """Terms of one ``(left|groups)``."""
    bar, (left, right) = node.token.origin.start, node.args
    if node.origin.start == left.origin.start or text[node.origin.start] != "(":
        fail(text, bar, "a random term needs parentheses: write (1|group)")
    for child in node.args:
        for inner in nodes(child):
            if inner.type == "|":
                fail(text, inner.token.origin.start, "one | per random term: write (1|group)")
    name = _left_name(text, left)
    return [_term(groups, name) for groups in _groups(text, right)]


def _term(groups: tuple[str, ...], left: str | None) -> RandomTerm:
    return RandomTerm(groups, left is not None, ":".join(groups), "1" if left is None else left)


def _left_name(text: str, node: ParseNode) -> str | None:
    """None for an intercept per level, else the column named left of the bar."""
    signs = {"ZERO": 0, "ONE": 0}
    names = []
    for sign, atom in summands(node):
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
    fail(
        text,
        node.origin.start,
        "left of the | stands 1 (one effect per level), or the cell type column (one effect per "
        "level and cell type, independent of each other); cell types that share a part of it are "
        "(1|group) + (celltype|group); there are no random slopes, a covariate is a fixed effect",
        node.origin.end,
    )


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
            fail(text, node.origin.start, "a column is crossed with itself", node.origin.end)
        return names
    name = column_of(node.token.extra) if node.type == "PYTHON_EXPR" else None
    if name is None:
        message = 'right of the | stands a column, a:b or a/b; odd names are written Q("...")'
        asked = [factor(atom) for _, atom in summands(node)]
        if node.type == "+" and all(asked):
            message = "right of the | stands one group: write " + " + ".join(
                f"(1|{group})" for group in asked
            )
        fail(text, node.origin.start, message, node.origin.end)
    return (name,)


def random_argument(random: object) -> list[RandomTerm]:
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
    text = clean(random, "random term")
    if re.fullmatch(r"[^()|~]+\|[^()|~]+", text):  # 1|batch alone can mean nothing else
        text = f"({text})"
    if not _FORMULA_SIGNS.search(text):
        return [_term((text,), None)]
    tree = syntax_tree(text)
    if len(tree.args) == 2:
        fail(text, tree.token.origin.start, "random= takes no response: write '~ batch'")
    terms: list[RandomTerm] = []
    for sign, node in summands(tree.args[0]):
        if sign < 0:
            fail(text, node.origin.start, "a random term cannot be taken away", node.origin.end)
        if node.type == "|":
            terms += random_terms(text, node)
        else:
            forbid_bar(text, node)
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
    text = clean(str(left), "left side of a random term")
    name = _left_name(text, syntax_tree(text).args[-1])
    return [_term(term.groups, name) for term in _random_text(group)]


def unique(terms: list[RandomTerm]) -> list[RandomTerm]:
    """The terms, or an error where one is given twice."""
    seen: set[tuple[frozenset[str], bool]] = set()
    for term in terms:
        key = (frozenset(term.groups), term.celltype_specific)
        if key in seen:
            raise FormulaError(
                f"the random term {term} is given twice: name it in the formula or in random=, once"
            )
        seen.add(key)
    return terms
