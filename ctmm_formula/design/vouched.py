"""Formulas from files: columns, numbers and known functions, or nothing is evaluated.

A formula is Python, so one that somebody else wrote could do anything.  One that was read from a
file is therefore walked before it is evaluated, and may hold only

- columns, ``Q("...")``, numbers and texts, and values stored with the fit
- ``+ - * / // % **``, comparisons, ``and or not & | ~``; powers of columns only
- :data:`FUNCTIONS`, and :data:`NUMPY` as ``np.log`` or ``numpy.log``
- functions that the reader gave by name
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping

from ..errors import FormulaError
from .expressions import expression, names_in

FUNCTIONS = frozenset(
    "C I Q abs bs cc center cr poly scale standardize te Treatment Sum Helmert Poly Diff".split()  # noqa: SIM905
)
"""Functions and contrasts of the formula engines that a file may use."""

_OF_ONE = (
    "abs absolute arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil cos cosh deg2rad exp exp2 "
    "expm1 fabs floor isfinite isnan log log10 log1p log2 negative rad2deg reciprocal rint sign "
    "sin sinh sqrt square tan tanh trunc"
)
_OF_TWO = "arctan2 fmax fmin hypot maximum minimum power"
NUMPY: Mapping[str, int] = {
    **dict.fromkeys(_OF_ONE.split(), 1),
    **dict.fromkeys(_OF_TWO.split(), 2),
    "clip": 3,
    "where": 3,
}
"""Functions of numpy that a file may use -> number of their arguments (one more is an output)."""

_LARGEST = 10_000  # a number as an argument: bs(x, df=10**9) would fill the memory
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr,
)  # fmt: skip


def vouch(
    code: str,
    columns: Collection[str],
    values: Mapping[str, object],
    functions: Collection[str] = (),
) -> None:
    """Nothing, if a piece of a formula from a file is harmless.

    Parameters
    ----------
    code : str
    columns : collection of str
    values : dict
        Numbers and texts stored with it.
    functions : collection of str
        Names of functions that the reader trusts.

    Raises
    ------
    FormulaError
        It holds something else; the message names that.

    Examples
    --------
    >>> vouch("np.log(size) + I(age**2)", ["size", "age"], {})
    >>> vouch("__import__('os')", ["size"], {})
    Traceback (most recent call last):
    ctmm_formula.errors.FormulaError: "__import__('os')" comes from a file, where __import__(...) \
is not evaluated: ...
    """
    node = None
    try:
        tree = expression(code)
        node = _Walk(columns, values, functions).refused(tree)
    except RecursionError:
        node = ast.Constant("such depth")
    if node is not None:
        shown = (
            f"{ast.unparse(node.func)}(...)" if isinstance(node, ast.Call) else ast.unparse(node)
        )
        raise FormulaError(
            f"{code!r:.200} comes from a file, where {shown:.80} is not evaluated: formulas of "
            f"files may use columns, arithmetic, {', '.join(sorted(FUNCTIONS))}, np.log "
            "and its like; if you know who wrote it, read it with trust=True, or a scan with "
            "functions={'name': function}"
        )


class _Walk:
    """What is allowed where."""

    def __init__(
        self,
        columns: Collection[str],
        values: Mapping[str, object],
        functions: Collection[str],
    ) -> None:
        self.columns, self.values, self.functions = set(columns), values, set(functions)

    def refused(self, node: ast.AST) -> ast.AST | None:
        """The first piece that is not allowed, or None."""
        if isinstance(node, ast.Name):
            known = node.id in self.columns or self._is_number(node)
            return None if known else node
        if isinstance(node, ast.Constant):
            return None if isinstance(node.value, (bool, int, float)) else node
        if isinstance(node, ast.BinOp):
            power = isinstance(node.op, ast.Pow)
            if not isinstance(node.op, _OPERATORS) or (power and not self._has_column(node.left)):
                return node  # powers of numbers may have any number of digits
            return self.refused(node.left) or self.refused(node.right)
        if isinstance(node, ast.UnaryOp):
            return self.refused(node.operand)
        if isinstance(node, ast.BoolOp):
            return self._first(node.values)
        if isinstance(node, ast.Compare):
            plain = [one for one in (node.left, *node.comparators) if not self._is_text(one)]
            return self._first(plain)
        if isinstance(node, ast.Call):
            return self._call(node)
        return node

    def _first(self, nodes: list[ast.expr]) -> ast.AST | None:
        return next((bad for one in nodes if (bad := self.refused(one)) is not None), None)

    def _call(self, node: ast.Call) -> ast.AST | None:
        function, given = node.func, [*node.args, *(word.value for word in node.keywords)]
        if any(word.arg is None for word in node.keywords):
            return node
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            home = function.value.id in ("np", "numpy") and function.value.id not in self.columns
            count = NUMPY.get(function.attr) if home else None
            if count != len(node.args) or node.keywords:
                return node
        elif not isinstance(function, ast.Name) or (
            function.id not in self.functions
            and (function.id not in FUNCTIONS or function.id in self.values)
        ):
            return node
        return next((bad for one in given if (bad := self._argument(one)) is not None), None)

    def _argument(self, node: ast.expr) -> ast.AST | None:
        """The same for an argument: also a text, a list, a contrast, but no large number."""
        if isinstance(node, (ast.List, ast.Tuple)):
            return next(
                (bad for one in node.elts if (bad := self._argument(one)) is not None), None
            )
        if isinstance(node, ast.Name) and node.id in FUNCTIONS and node.id not in self.values:
            return None
        if isinstance(node, ast.Constant) and node.value is None:
            return None
        value: object = None
        if isinstance(node, ast.Constant):
            value = node.value
        elif isinstance(node, ast.Name) and node.id not in self.columns:
            value = self.values.get(node.id)
        if isinstance(value, str):
            return None
        if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
            return node
        if not self._has_column(node) and isinstance(node, ast.BinOp):
            return node  # large numbers made of small ones
        return self.refused(node)

    def _is_text(self, node: ast.expr) -> bool:
        value = self.values.get(node.id) if isinstance(node, ast.Name) else None
        return isinstance(value, str) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        )

    def _is_number(self, node: ast.Name) -> bool:
        return isinstance(self.values.get(node.id), (bool, int, float))

    def _has_column(self, node: ast.expr) -> bool:
        return bool(self.columns.intersection(names_in(ast.unparse(node)).variables))
