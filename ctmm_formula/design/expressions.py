"""Python expressions inside a formula: what names they use and what they stand for."""

from __future__ import annotations

import ast
import json
import keyword
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import FormulaError


class Names(NamedTuple):
    """Names in a Python expression, in order of appearance.

    variables : bare names and the texts inside Q("...")
    roots : names before a dot, modules or columns
    called : names called as functions
    """

    variables: tuple[str, ...]
    roots: tuple[str, ...]
    called: tuple[str, ...]


def names_in(code: str) -> Names:
    """Names a Python expression uses, sorted by what they can be.

    Parameters
    ----------
    code : str

    Returns
    -------
    Names

    Raises
    ------
    FormulaError
        The text is not a Python expression.

    Examples
    --------
    >>> names_in('np.log(x) + f(Q("HLA-A"))')
    Names(variables=('x', 'HLA-A'), roots=('np',), called=('f', 'Q'))
    """
    tree = expression(code)
    called: dict[str, None] = {}
    roots: dict[str, None] = {}
    variables: dict[str, None] = {}
    skip: set[int] = set()
    local = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not _is_load(n)}
    local |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in _in_order(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called[node.func.id] = None
            skip.add(id(node.func))
            quoted = _quoted(node)
            if quoted is not None:
                variables[quoted] = None
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            roots[node.value.id] = None
            skip.add(id(node.value))
        elif isinstance(node, ast.Name) and id(node) not in skip and node.id not in local:
            variables[node.id] = None
    return Names(tuple(variables), tuple(roots), tuple(called))


def column_of(code: str) -> str | None:
    """The column that ``x``, ``Q("x")``, ``C(x)`` or ``C(Q("x"), ...)`` stands for, or None.

    >>> column_of('C(Q("cell type"), Sum)'), column_of("np.log(x)")
    ('cell type', None)
    """
    try:
        node = expression(code)
    except FormulaError:
        return None
    if _call_of(node) == "C" and node.args:  # type: ignore[attr-defined]
        node = node.args[0]  # type: ignore[attr-defined]
    return node.id if isinstance(node, ast.Name) else _quoted(node)


def is_condition(code: str) -> bool:
    """Whether the expression is true or false for each row: ``x > 0``, ``I(sex == "F")``."""
    node = expression(code)
    while _call_of(node) == "I" and node.args:  # type: ignore[attr-defined]
        node = node.args[0]  # type: ignore[attr-defined]
    inverted = isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert))
    return inverted or isinstance(node, (ast.Compare, ast.BoolOp))


def quote(name: str) -> str:
    """A column name as it is written in a formula.

    >>> quote("sex"), quote("HLA-A")
    ('sex', 'Q("HLA-A")')
    """
    bare = name.isidentifier() and not keyword.iskeyword(name)
    return name if bare else f"Q({json.dumps(name, ensure_ascii=False)})"


def expression(code: str) -> ast.expr:
    """Syntax tree of a Python expression, or a FormulaError."""
    try:
        tree = ast.parse(code, mode="eval").body
    except (SyntaxError, ValueError):
        pass
    else:
        if any(isinstance(node, ast.BitXor) for node in ast.walk(tree)):
            raise FormulaError(f"{code!r}: ^ is not a power in Python: write I(x**2)")
        return tree
    if code.strip() == ".":
        raise FormulaError("'.' for all other columns is not supported: name the covariates")
    raise FormulaError(
        f"{code!r} is not a Python expression: is a + missing, or a name with odd characters "
        'not written as Q("...")?'
    )


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes as they appear in the text, parents first."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _is_load(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _call_of(node: ast.AST) -> str | None:
    simple = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return node.func.id if simple else None  # type: ignore[attr-defined]


def _quoted(node: ast.AST) -> str | None:
    """The text of Q("text")."""
    if _call_of(node) != "Q" or len(node.args) != 1:  # type: ignore[attr-defined]
        return None
    inner = node.args[0]  # type: ignore[attr-defined]
    text = isinstance(inner, ast.Constant) and isinstance(inner.value, str)
    return inner.value if text else None
