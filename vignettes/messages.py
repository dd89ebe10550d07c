"""Every message of the package, read from its source; the page of errors and its test use it.

A message is the text of an error class of the package wherever it is called, and of a warning, with
… for every value.  Where it is put together before it is raised, the pieces are looked up: variables
of the function, texts that a helper returns, texts handed to a function that raises them.
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
REPEATED = {"scan/patterns.py: of"}
"""Places that raise once more what an error said before."""


@dataclass(frozen=True)
class Message:
    """One message: class, text, and the places (file: function) that make it."""

    kind: str
    text: str
    where: str


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

    @cached_property
    def imports(self) -> dict[tuple[Path, Path], set[str]]:
        """(file, other file) -> names that the first takes from the second."""
        files = {path.stem: path for path in self.trees}
        out: dict[tuple[Path, Path], set[str]] = defaultdict(set)
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                source = node.module if isinstance(node, ast.ImportFrom) else None
                if source and source.rpartition(".")[2] in files:
                    names = {alias.name for alias in node.names}
                    out[path, files[source.rpartition(".")[2]]] |= names
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
        if isinstance(node, ast.Name) and place.scopes:
            given = _assigned(place.scopes[-1], node.id)
            if given:
                return [text for value in given for text in self._texts(place, value)]
            return self._handed_over(place, node.id) or [text]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = self.functions.get((place.path, node.func.id)) or self.functions.get(
                (None, node.func.id)
            )
            returned = [n.value for n in ast.walk(function or node) if isinstance(n, ast.Return)]
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
            if other.name == function.name
            and (other.path == place.path or function.name in self.imports[other.path, place.path])
            and len(other.call.args) > position
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


def _assigned(function: ast.FunctionDef, name: str) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]


def _calls(path: Path, node: ast.AST, scopes: tuple[ast.FunctionDef, ...]) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        inner = (*scopes, child) if isinstance(child, ast.FunctionDef) else scopes
        if isinstance(child, ast.Call):
            yield Place(path, inner, child)
        yield from _calls(path, child, inner)


# ---------------------------------------------------------------------------------------------
# the entries of the page


@dataclass(frozen=True)
class Entry:
    """Messages with one reason: their texts as in the source, and what to say of them."""

    section: str
    texts: tuple[str, ...]
    words: str


def entries() -> list[Entry]:
    """Entries of `errors.md`: lines of texts marked by >, then a paragraph with the fix."""
    found, section = [], ""
    for block in (Path(__file__).parent / "errors.md").read_text(encoding="utf-8").split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("## "):
            section = lines.pop(0)[3:]
        texts = tuple(line[2:] for line in lines if line.startswith("> "))
        if texts:
            words = " ".join(line for line in lines if not line.startswith("> "))
            found.append(Entry(section, texts, words))
    return found


def page() -> str:
    """The entries as markdown, each message with its class."""
    kinds = defaultdict(set)
    for message in Source().messages():
        kinds[message.text] |= set(message.kind.split(" or "))
    out, section = [], ""
    for entry in entries():
        if entry.section != section:
            section = entry.section
            out.append(f"## {section}")
        of = sorted(set().union(*(kinds[text] for text in entry.texts)))
        shown = [", ".join(f"**{kind}**" for kind in of), *(f"`{text}`" for text in entry.texts)]
        out += ["\\\n".join(shown), entry.words]
    return "\n\n".join(out)
