"""Reads this package's own source without importing it: its methods, and fingerprints of its code.

A fingerprint covers exactly the functions, classes and constants that a stage can reach from its entry
point, by name, through this package. Comments, docstrings and layout do not count; neither does a method
that the job does not use. No torch: every cluster job parses the Snakefile, and with it this, again.
"""

import ast
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Source:
    """One module: its top-level definitions and imports by name, and what else it executes."""

    definitions: dict[str, tuple[ast.stmt, ...]]
    imports: dict[str, tuple[str, str]]
    effects: tuple[ast.stmt, ...]


@dataclass(frozen=True)
class Parameter:
    """One field of a method: its type's name and its default (None where it has none)."""

    type: str
    default: object
    required: bool


@dataclass(frozen=True)
class MethodSource:
    """A method as its source states it: module, class name, parameters, and its class's literal attributes."""

    module: str
    name: str
    parameters: dict[str, Parameter]
    attributes: dict[str, object]


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file() and (module == "ddpm" or path != ROOT.with_suffix(".py")):
            return path
    return None


def _imported(node: ast.stmt, module: str) -> dict[str, tuple[str, str]]:
    """Local name → (module, name in it); the name is empty where the module itself was imported."""
    if isinstance(node, ast.Import):
        return {
            (a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0], "") for a in node.names
        }
    if not isinstance(node, ast.ImportFrom):
        return {}
    origin = node.module or ""
    if node.level:
        path = _path(module)
        up = node.level - (path is not None and path.name == "__init__.py")
        parts = module.split(".")
        origin = ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])
    found = {}
    for a in node.names:
        inner = f"{origin}.{a.name}"
        is_module = inner.startswith("ddpm.") and _path(inner) is not None
        found[a.asname or a.name] = (inner, "") if is_module else (origin, a.name)
    return found


def _resolve(module: str, names: list[str]) -> tuple[str, str] | None:
    """The definition that `module.name.name...` leads to in this package, through re-exports; None where to none."""
    while names and _path(f"{module}.{names[0]}") is not None:
        module, names = f"{module}.{names[0]}", names[1:]
    if not names or _path(module) is None:
        return None
    source = read(module)
    if names[0] in source.definitions:
        return module, names[0]
    target, symbol = source.imports.get(names[0], ("", ""))
    return _resolve(target, [*([symbol] if symbol else []), *names[1:]]) if target.split(".")[0] == "ddpm" else None


@cache
def read(module: str) -> Source:
    """The parsed module, e.g. `ddpm.samplers`."""
    path = _path(module)
    if path is None:
        raise ModuleNotFoundError(f"{module}: no such module in {ROOT}")
    definitions: dict[str, tuple[ast.stmt, ...]] = {}
    imports: dict[str, tuple[str, str]] = {}
    effects = []
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports |= _imported(node, module)
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            effects.append(node)
        for name in names:
            definitions[name] = (*definitions.get(name, ()), node)
    return Source(definitions, imports, tuple(effects))


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
        say = self.text.append
        if isinstance(node, list):
            say("[")
            for inner in node:
                self._visit(inner)
            say("]")
            return
        if not isinstance(node, ast.AST):
            say(repr(node))
            return
        kind = type(node)
        say(f"({kind.__name__}")
        if kind is ast.Name:
            self.names.append((node.id, attributes))
        elif kind is ast.Import or kind is ast.ImportFrom:
            self.imports.append(node)
        attributes = (node.attr, *attributes) if kind is ast.Attribute else ()
        for field in node._fields:
            value = getattr(node, field, None)
            # How a name is used (ctx) follows from where it stands.
            if value is None or value == [] or field in ("ctx", "kind"):
                continue
            if field == "body" and (kind is ast.FunctionDef or kind is ast.ClassDef):
                first = value[0]
                if (
                    isinstance(first, ast.Expr)
                    and isinstance(first.value, ast.Constant)
                    and type(first.value.value) is str
                ):
                    value = value[1:]
            say(field)
            self._visit(value, attributes)
        say(")")


class Reach(NamedTuple):
    """One definition: the text that stands for it, this package's definitions that it names, and the other packages."""

    text: str
    names: frozenset[tuple[str, str]]
    packages: frozenset[str]


@cache
def _reach(module: str, name: str) -> Reach:
    source = read(module)
    nodes = source.definitions.get(name, ()) + source.effects
    scan, imports = _Scan(nodes), dict(source.imports)
    for node in scan.imports:
        imports |= _imported(node, module)
    outside, reached = set(), set()
    for found, attributes in scan.names:
        if found in imports:
            target, symbol = imports[found]
            if target.split(".")[0] != "ddpm":
                outside.add((found, target, symbol))
            elif definition := _resolve(target, [*([symbol] if symbol else []), *attributes]):
                reached.add(definition)
        elif found in source.definitions and found != name:
            reached.add((module, found))
    text = repr((module, name, " ".join(scan.text), sorted(outside)))
    return Reach(text, frozenset(reached), frozenset(target.split(".")[0] for _, target, _ in outside))


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
    text = "\n".join(sorted(_reach(module, name).text for module, name in closure(roots)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parts(roots: frozenset[tuple[str, str]]) -> dict[str, str]:
    """The same by definition, so that a change can be named: `ddpm.samplers.DDIM` → 8 hexadecimal digits."""
    found = {f"{m}.{n}": hashlib.sha256(_reach(m, n).text.encode()).hexdigest()[:8] for m, n in closure(roots)}
    return dict(sorted(found.items()))


@cache
def packages(roots: frozenset[tuple[str, str]]) -> frozenset[str]:
    """The other packages that this code names, as it imports them: `torch`, `sklearn`, ..."""
    return frozenset().union(*(_reach(module, name).packages for module, name in closure(roots)))


def snapshot() -> dict[str, tuple[int, int]]:
    """Time and size of every source file: whether one was edited while a process was loading them."""
    stats = ((path, path.stat()) for path in sorted(ROOT.rglob("*.py")))
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in stats}


def _literal(node: ast.expr | None) -> object:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _lineage(module: str, name: str) -> list[ast.ClassDef]:
    """The class and its bases within this package, the most basic first."""
    found = read(module).definitions.get(name, ())
    if not found or not isinstance(found[0], ast.ClassDef):
        return []
    bases = [_resolve(module, [b.id]) for b in found[0].bases if isinstance(b, ast.Name)]
    return [c for base in bases if base for c in _lineage(*base)] + [found[0]]


@cache
def describe(module: str, cls: str) -> MethodSource:
    """The dataclass `cls` of `module` as its source states it, inherited fields included."""
    parameters: dict[str, Parameter] = {}
    attributes: dict[str, object] = {}
    for node in _lineage(module, cls):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                kind = ast.unparse(item.annotation)
                if kind.startswith("ClassVar"):
                    attributes[item.target.id] = _literal(item.value)
                else:
                    parameters[item.target.id] = Parameter(kind, _literal(item.value), item.value is None)
            elif isinstance(item, ast.Assign) and isinstance(item.targets[0], ast.Name):
                name, value = item.targets[0].id, _literal(item.value)
                # Limits and choices add to those of the base class.
                attributes[name] = attributes.get(name, {}) | value if isinstance(value, dict) else value
    return MethodSource(module, cls, parameters, attributes)


def _method_name(node: ast.ClassDef) -> str:
    """The name that a class gives itself by `method = "..."` in its own body; empty where it gives none."""
    for item in node.body:
        if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "method" for t in item.targets):
            return str(_literal(item.value) or "")
    return ""


def _modules(module: str) -> list[str]:
    """The module itself, or the modules of a package."""
    path = _path(module)
    if path is None or path.name != "__init__.py":
        return [module]
    return [f"{module}.{inner.stem}" for inner in sorted(path.parent.glob("*.py")) if inner != path]


@cache
def methods(module: str, base: str) -> dict[str, MethodSource]:
    """The named methods below `base` in a module or a package: method name → source (see `ddpm.methods`)."""
    found = {}
    for inner in _modules(module):
        for name in read(inner).definitions:
            line = _lineage(inner, name)
            if base in (c.name for c in line[:-1]) and _method_name(line[-1]):
                found[_method_name(line[-1])] = describe(inner, name)
    return found


@cache
def networks() -> dict[str, MethodSource]:
    """The network classes `ddpm.networks.<name>`, by name; their parameters are those of the constructor
    that the configuration may set (see `ddpm.networks`)."""
    found = {}
    for path in sorted((ROOT / "networks").glob("*.py")):
        module = f"ddpm.networks.{path.stem}"
        for name, nodes in read(module).definitions.items():
            if isinstance(nodes[0], ast.ClassDef) and _method_name(nodes[0]) == path.stem:
                init = next(i for i in nodes[0].body if isinstance(i, ast.FunctionDef) and i.name == "__init__")
                arguments = init.args.args[4:]  # after self, shape, heads, classes
                defaults = init.args.defaults[-len(arguments) :]
                parameters = {
                    a.arg: Parameter(ast.unparse(a.annotation), _literal(d), False)
                    for a, d in zip(arguments, defaults, strict=True)
                }
                found[path.stem] = MethodSource(module, name, parameters, describe(module, name).attributes)
    return found
