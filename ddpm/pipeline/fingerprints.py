"""Fingerprints of code: they cover exactly the functions, classes and constants that a stage can reach.

A stage reaches definitions from its entry point, by name, through this package and the user's own files of methods.
Comments, docstrings and layout do not count; neither does a method that the job does not use. No torch: every cluster
job parses the Snakefile, and with it this, again.
"""

import ast
import hashlib
from functools import cache
from typing import NamedTuple

from ddpm.pipeline import source as sources
from ddpm.pipeline.source import imported, is_ours, path_of, read, resolve, title


class _Scan:
    """One walk over a syntax tree: its text, the names in it, and the imports inside it.

    text: without positions, docstrings and empty fields, the same in every Python version;
    names: every name with the attributes that follow it: `a.b.c` gives (a, (b, c)).
    """

    def __init__(self, nodes: tuple[ast.stmt, ...]):
        self.text: list[str] = []
        self.names: list[tuple[str, tuple[str, ...]]] = []
        self.imports: list[ast.stmt] = []
        self._visit(list(nodes))

    def _visit(self, node: object, attributes: tuple[str, ...] = ()) -> None:
        if isinstance(node, ast.AST):
            self._visit_fields(node, attributes)
        elif isinstance(node, list):
            self.text.append("[")
            for inner in node:
                self._visit(inner)
            self.text.append("]")
        else:
            self.text.append(repr(node))

    def _visit_fields(self, node: ast.AST, attributes: tuple[str, ...]) -> None:
        self.text.append(f"({type(node).__name__}")
        if isinstance(node, ast.Name):
            self.names.append((node.id, attributes))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.imports.append(node)
        attributes = (node.attr, *attributes) if isinstance(node, ast.Attribute) else ()
        for field in node._fields:
            value = getattr(node, field, None)
            # How a name is used (ctx) follows from where it stands.
            if field not in ("ctx", "kind") and value not in (None, []):
                self.text.append(field)
                self._visit(_without_docstring(node) if field == "body" else value, attributes)
        self.text.append(")")


def _without_docstring(node: ast.AST) -> object:
    """The body of a node."""
    documented = isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None
    return node.body[1:] if documented else node.body  # type: ignore[attr-defined]


class Reach(NamedTuple):
    """One definition: the text that stands for it, this package's definitions that it names, and the other packages."""

    text: bytes
    names: frozenset[tuple[str, str]]
    packages: frozenset[str]


@cache
def _reach(module: str, name: str) -> Reach:
    source = read(module)
    nodes = source.definitions.get(name, ()) + source.effects
    scan, imports = _Scan(nodes), dict(source.imports)
    for node in scan.imports:
        imports |= imported(node, module)
    outside, reached = set(), set()
    for found, attributes in scan.names:
        if found in imports:
            target, symbol = imports[found]
            if not is_ours(target):
                outside.add((found, target, symbol))
            elif definition := resolve(target, [*([symbol] if symbol else []), *attributes]):
                reached.add(definition)
        elif found in source.definitions and found != name:
            reached.add((module, found))
    text = repr((title(module), name, " ".join(scan.text), sorted(outside)))
    return Reach(text.encode(), frozenset(reached), frozenset(target.split(".")[0] for _, target, _ in outside))


def closure(roots: frozenset[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Every (module, definition) of this package that `roots` can reach by name, themselves included."""
    found, todo = set(), set(roots)
    while todo:
        found |= todo
        todo = {r for module, name in todo for r in _reach(module, name).names} - found
    return frozenset(found)


@cache
def fingerprint(roots: frozenset[tuple[str, str]]) -> str:
    """16 hexadecimal digits that change when, and only when, the code that `roots` reach does."""
    text = b"\n".join(sorted(_reach(module, name).text for module, name in closure(roots)))
    return hashlib.sha256(text).hexdigest()[:16]


def parts(roots: frozenset[tuple[str, str]]) -> dict[str, str]:
    """The same by definition, so that a change can be named: `ddpm.samplers.DDIM` → 8 hexadecimal digits."""
    found = {f"{title(m)}.{n}": hashlib.sha256(_reach(m, n).text).hexdigest()[:8] for m, n in closure(roots)}
    return dict(sorted(found.items()))


@cache
def packages(roots: frozenset[tuple[str, str]]) -> frozenset[str]:
    """The other packages that this code names, as it imports them: `torch`, `sklearn`, ..."""
    return frozenset().union(*(_reach(module, name).packages for module, name in closure(roots)))


def snapshot(roots: frozenset[tuple[str, str]] = frozenset()) -> dict[str, tuple[int, int]]:
    """Time and size of every source file, those of the user's own that `roots` reach included: whether one was edited
    while a process was loading them."""
    own = {path_of(module) for module, _ in closure(roots) if module.endswith(".py")}
    stats = ((path, path.stat()) for path in sorted([*sources.ROOT.rglob("*.py"), *filter(None, own)]))
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in stats}
