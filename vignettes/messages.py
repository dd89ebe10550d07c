"""Every message of the package, read from its source: the page of errors is made from them.

A message is the text of an error class of the package wherever it is called, and of a warning, with
… for every value.  Where it is put together before it is raised, the pieces are looked up: variables
of the function, texts that a helper returns, texts handed to a function that raises them.
`errors.md` adds to some of them what they do not say themselves.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ctmm_formula"
VALUE = "…"
ROOMS = {
    "arguments": "Arguments", "api": "Fits", "design": "Formulas and tables",
    "structures": "Structures", "engine": "Estimation", "results": "Results", "inference": "Tests",
    "cells": "Cells and pseudobulk", "scan": "All genes", "simulate": "Simulation",
    "planning": "Planning a study", "plots": "Pictures", "r": "The bridge to R",
    "wire": "From the R package",
}  # fmt: skip
"""Titles on the page, in its order; a room without one comes first, under its own name."""


@dataclass(frozen=True)
class Message:
    """One message: class, text, and the place (file: function) that makes it."""

    kind: str
    text: str
    where: str

    @property
    def room(self) -> str:
        """Folder or file of the package."""
        return re.split(r"[/.]", self.where, maxsplit=1)[0]


@dataclass(frozen=True)
class Place:
    """A call, with the functions around it, innermost last."""

    path: Path
    scopes: tuple[ast.FunctionDef, ...]
    call: ast.Call

    @property
    def name(self) -> str:
        """What is called."""
        return ast.unparse(self.call.func).rpartition(".")[2]

    @property
    def where(self) -> str:
        """File and function."""
        function = self.scopes[-1].name if self.scopes else ""
        return f"{self.path.relative_to(PACKAGE).as_posix()}: {function}"


class Source:
    """The source of the package."""

    def __init__(self) -> None:
        paths = sorted(PACKAGE.rglob("*.py"))
        self.trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
        self.places = [place for path in paths for place in _calls(path, self.trees[path], ())]

    @cached_property
    def classes(self) -> set[str]:
        """The package's own errors and warnings, children of those of `errors.py`."""
        nodes = [node for tree in self.trees.values() for node in ast.walk(tree)]
        found, known = {"CTMMError", "CTMMWarning"}, set()
        while found != known:
            known = set(found)
            for node in nodes:
                if isinstance(node, ast.ClassDef):
                    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    found |= {node.name} if bases & known else set()
        return known

    @cached_property
    def functions(self) -> dict[tuple[Path | None, str], ast.FunctionDef]:
        """(file, name) -> function; (None, name) where it does not matter which file."""
        out: dict[tuple[Path | None, str], ast.FunctionDef] = {}
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    out[path, node.name] = out[None, node.name] = node
        return out

    def messages(self) -> Iterator[Message]:
        """All messages, in order of files."""
        for place in self.places:
            if place.name in self.classes and place.call.args:
                kind = place.name
            elif place.name == "warn":
                used = {n.id for n in ast.walk(place.call) if isinstance(n, ast.Name)}
                kind = " or ".join(sorted(used & self.classes))
            else:
                continue
            for text in self._texts(place, place.call.args[0]):
                yield Message(kind, text, place.where)

    def _texts(self, place: Place, node: ast.expr) -> list[str]:
        """What an expression may say."""
        text = template(node)
        if has_words(text):
            return [text]
        if isinstance(node, ast.IfExp):
            return self._texts(place, node.body) + self._texts(place, node.orelse)
        if isinstance(node, ast.ListComp):
            return self._texts(place, node.elt)
        if isinstance(node, ast.Starred):
            return self._texts(place, node.value)
        if isinstance(node, (ast.Tuple, ast.List)):
            found = [text for part in node.elts for text in self._texts(place, part)]
            return [text for text in found if has_words(text)] or [text]
        if isinstance(node, ast.Attribute):
            return self._kept(node.attr) or [text]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".values"):
            return self._texts(place, node.func.value)
        if isinstance(node, ast.Name) and place.scopes:
            given = _assigned(place.scopes[-1], node.id)
            if given:
                return [text for value in given for text in self._texts(place, value)]
            return self._handed_over(place, node.id) or self._constant(node.id) or [text]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = self.functions.get((place.path, node.func.id)) or self.functions.get(
                (None, node.func.id)
            )
            ends = (ast.Return, ast.Yield)
            returned = [n.value for n in ast.walk(function or node) if isinstance(n, ends)]
            inner = Place(place.path, (function,) if function else (), node)
            found = [text for v in returned if v for text in self._texts(inner, v)]
            return [text for text in found if has_words(text)] or [text]
        if isinstance(node, ast.JoinedStr):  # the first piece that is looked up has the words
            for part in node.values:
                if isinstance(part, ast.FormattedValue):
                    found = [t for t in self._texts(place, part.value) if has_words(t)]
                    if found:
                        return [one_line(t + VALUE) for t in found]
        return [text]

    def _kept(self, field: str) -> list[str]:
        """The texts that objects of the package are made with, by a field's name."""
        given = [
            (other, part.value)
            for other in self.places
            for part in other.call.keywords
            if part.arg == field and other.name[:1].isupper()
        ]
        passed_on = (ast.Attribute, ast.Constant)
        found = [
            text
            for other, value in given
            if not isinstance(value, passed_on)
            for text in self._texts(other, value)
        ]
        return [text for text in found if has_words(text)]

    def _constant(self, name: str) -> list[str]:
        """What stands at the top of a file under this name."""
        found = [
            template(node.value)
            for tree in self.trees.values()
            for node in tree.body
            if isinstance(node, ast.Assign) and any(_is_of(to, name) for to in node.targets)
        ]
        return [text for text in found if has_words(text)]

    def _handed_over(self, place: Place, argument: str) -> list[str]:
        """The texts that callers give for an argument."""
        function = place.scopes[-1]
        names = [arg.arg for arg in function.args.args]
        if argument not in names:
            return []
        position = names.index(argument)
        return [
            text
            for other in self.places
            if other.name == function.name and len(other.call.args) > position
            for text in self._texts(other, other.call.args[position])
        ]


def template(node: ast.expr) -> str:
    """The text of an expression, … for what is computed."""

    def raw(node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(map(raw, node.values))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return raw(node.left) + raw(node.right)
        return VALUE

    return one_line(raw(node))


def one_line(text: str) -> str:
    """Without line breaks and doubled marks."""
    return re.sub(f"{VALUE}+", VALUE, " ".join(text.split()))


def has_words(text: str) -> bool:
    """Whether a text says anything by itself."""
    return len(re.sub("[^a-zA-Z]", "", text)) > 5


def _is_of(target: ast.expr, name: str) -> bool:
    """Whether a variable, one of several, or an item of it gets a value."""
    if isinstance(target, ast.Tuple):
        return any(_is_of(part, name) for part in target.elts)
    target = target.value if isinstance(target, ast.Subscript) else target
    return isinstance(target, ast.Name) and target.id == name


def _assigned(function: ast.FunctionDef, name: str) -> list[ast.expr]:
    """What a variable is given, or runs over."""
    found = []
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.For)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_is_of(target, name) for target in targets):
                found.append(node.value if isinstance(node, ast.Assign) else node.iter)
    return found


def _calls(path: Path, node: ast.AST, scopes: tuple[ast.FunctionDef, ...]) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        inner = (*scopes, child) if isinstance(child, ast.FunctionDef) else scopes
        if isinstance(child, ast.Call):
            yield Place(path, inner, child)
        yield from _calls(path, child, inner)


# ---------------------------------------------------------------------------------------------
# the page


@dataclass(frozen=True)
class Entry:
    """What messages with one reason do not say: a fragment of each, and words."""

    fragments: tuple[str, ...]
    words: str


def entries() -> list[Entry]:
    """Entries of `errors.md`: lines of fragments marked by >, then a paragraph."""
    found = []
    for block in (Path(__file__).parent / "errors.md").read_text(encoding="utf-8").split("\n\n"):
        lines = block.strip().splitlines()
        fragments = tuple(line[2:] for line in lines if line.startswith("> "))
        found.append(Entry(fragments, " ".join(lines[len(fragments) :])))
    return found


def page() -> str:
    """All messages with their classes, by room; those of one entry share a point with its words."""
    kinds = defaultdict(set)
    for message in Source().messages():
        if has_words(message.text):
            kinds[message.room, message.text] |= set(message.kind.split(" or "))
    known, order = entries(), list(ROOMS)
    points = defaultdict(list)  # (room, without words, words or the only text) -> messages
    for (room, text), names in kinds.items():
        words = next((e.words for e in known if any(f in text for f in e.fragments)), "")
        line = f"{', '.join(f'**{name}**' for name in sorted(names))} `{text}`"
        points[room, not words, words or text].append(line)
    out, last = [], ""
    rank = {room: order.index(room) if room in order else -1 for room, *_ in points}
    for room, plain, words in sorted(points, key=lambda point: (rank[point[0]], point[1])):
        if room != last:
            out.append(f"\n## {ROOMS.get(room, room)}\n")
        shown = points[room, plain, words] + ([] if plain else [words])
        out.append("- " + "\\\n  ".join(shown))
        last = room
    return "\n".join(out)
