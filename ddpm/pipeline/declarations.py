"""What methods declare, read from their source: names, parameters with their annotations, and literals. No torch.

Annotations and defaults are evaluated among what `typing`, `annotated_types`, `pydantic`, `math` and `ddpm.parameters`
offer, and what their module assigns from these.
"""

import ast
import builtins
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any, NamedTuple

from ddpm.errors import UserError
from ddpm.parameters import adapter
from ddpm.pipeline.source import is_ours, modules_in, read, resolve

# What annotations may be made of: imported for real, because none of it takes long.
LIGHT = ("typing", "typing_extensions", "annotated_types", "pydantic", "math", "ddpm.parameters")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method: its annotation and its default (None where it has none)."""

    annotation: Any
    default: Any
    required: bool = False


class Field(NamedTuple):
    """A parameter as its source has it: where (module), who (class and name), its annotation and its default."""

    where: str
    who: str
    annotation: ast.expr
    default: ast.expr | None


@dataclass(frozen=True)
class MethodSource:
    """A method as its source states it: module, class name, fields, its class's literal attributes, and the first line
    of its docstring."""

    module: str
    name: str
    fields: dict[str, Field]
    attributes: dict[str, Any]
    summary: str = ""

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Its parameters by name; UserError where one cannot be read without running its module."""
        return {name: _parameter(field) for name, field in self.fields.items()}

    @property
    def modules(self) -> list[str]:
        """The files of the user's own that it stands in."""
        return [self.module] if self.module.endswith(".py") else []

    @property
    def requires(self) -> tuple[tuple[str, str, object, str], ...]:
        """What it needs of other axes: axis, parameter, value and reason."""
        return self.attributes.get("requires") or ()

    @property
    def replaces(self) -> tuple[str, ...]:
        """Parameters of other components of an objective that have no effect beside it."""
        return self.attributes.get("replaces") or ()

    @property
    def needs(self) -> dict[str, str]:
        """Component of an objective → the one that it can only be used with."""
        return self.attributes.get("needs") or {}

    @property
    def place(self) -> str:
        """Where it stands, in a message."""
        return f"{self.module}: {self.name}" if self.modules else f"{self.module}.{self.name}"


class _Scope(dict):
    """The names that an annotation of a module may use, looked up as they are asked for."""

    def __init__(self, module: str):
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        source = read(self.module)
        if name in source.definitions:
            node = source.definitions[name][-1]
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                return _evaluated(node.value, self.module)
        elif name in source.imports:
            return _imported(name, *source.imports[name])
        elif hasattr(builtins, name):
            return getattr(builtins, name)
        raise NameError(name)


def _imported(name: str, module: str, symbol: str) -> Any:
    """What a name stands for that is imported from one of `LIGHT`, or that one of our modules defines."""
    if module in LIGHT or module.split(".")[0] in LIGHT:
        found = import_module(module)
        return getattr(found, symbol) if symbol else found
    if is_ours(module) and (there := resolve(module, [symbol])):
        return _Scope(there[0])[there[1]]
    raise NameError(name)


def _evaluated(node: ast.expr, module: str) -> Any:
    """What an expression of the module stands for; one in quotes is what is in them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {}}, _Scope(module))


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _parameter(field: Field) -> Parameter:
    """What a field declares; UserError, in one line, where that cannot be read."""
    where, annotation, default = f"{field.where}: {field.who}", field.annotation, field.default
    try:
        found = _evaluated(annotation, field.where)
        adapter(found)
    except Exception as e:
        cure = "it must be made of Python's own types and of what typing and ddpm.parameters offer"
        why = f"{type(e).__name__}: {str(e).splitlines()[0]}"
        raise UserError(f"{where}: {ast.unparse(annotation)} is no annotation of a parameter ({why}); {cure}") from None
    if default is None:
        return Parameter(found, None, required=True)
    try:
        value = _literal(default)
        return Parameter(found, _evaluated(default, field.where) if value is None else value)
    except Exception:
        raise UserError(f"{where}: {ast.unparse(default)} is no default of a parameter; it must be a literal") from None


def _dotted(node: ast.expr) -> list[str]:
    """The names of `a.b.c`; empty for any other expression."""
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return [*inner, node.attr] if inner else []
    return [node.id] if isinstance(node, ast.Name) else []


@cache
def lineage(module: str, name: str) -> tuple[tuple[str, ast.ClassDef], ...]:
    """The class and its bases within these modules, each with its module, the most basic first."""
    found = read(module).definitions.get(name, ())
    if not found or not isinstance(found[0], ast.ClassDef):
        return ()
    bases = [resolve(module, names) for b in found[0].bases if (names := _dotted(b))]
    return (*(c for base in bases if base for c in lineage(*base)), (module, found[0]))


@cache
def describe(module: str, cls: str) -> MethodSource:
    """The class `cls` of `module` as its source states it: the annotated fields of a dataclass, inherited ones
    included, or the arguments that a constructor takes by keyword alone."""
    fields: dict[str, Field] = {}
    attributes: dict[str, Any] = {}
    for where, node in lineage(module, cls):
        for name, kind, value in _assigned(node):
            if kind is None:
                literal = _literal(value)  # mappings add to those of the base class
                attributes[name] = attributes.get(name, {}) | literal if isinstance(literal, dict) else literal
            elif _dotted(kind.value if isinstance(kind, ast.Subscript) else kind)[-1:] == ["ClassVar"]:
                attributes[name] = _literal(value)
            else:
                fields[name] = Field(where, f"{node.name}.{name}", kind, value)
        fields |= _arguments(where, node)
    summary = (ast.get_docstring(node) or "").split("\n")[0]
    return MethodSource(module, cls, fields, attributes, summary)


def _assigned(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, annotation and value of every assignment in the body of a class."""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, item.annotation, item.value
        elif isinstance(item, ast.Assign):
            yield from ((target.id, None, item.value) for target in item.targets if isinstance(target, ast.Name))


def _arguments(where: str, node: ast.ClassDef) -> dict[str, Field]:
    """What the constructor of a class takes by keyword alone."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            for argument, default in zip(item.args.kwonlyargs, item.args.kw_defaults, strict=True):
                kind = argument.annotation or ast.Name("Unannotated", ast.Load())
                found[argument.arg] = Field(where, f"{node.name}({argument.arg})", kind, default)
    return found


def _method_name(node: ast.ClassDef) -> str:
    """The name that a class gives itself by `method = "..."` in its own body; empty where it gives none."""
    return str(next((_literal(value) for name, _, value in _assigned(node) if name == "method"), None) or "")


@cache
def found_in(module: str, base: str) -> tuple[tuple[str, str, str], ...]:
    """(method name, module, class) of every named method below this package's class `base` in a module or package."""
    found = []
    for inner in modules_in(module):
        for name in read(inner).definitions:
            line = lineage(inner, name)
            below = any(node.name == base and where.startswith("ddpm.") for where, node in line[:-1])
            if below and (method := _method_name(line[-1][1])):
                found.append((method, inner, name))
    return tuple(found)


@cache
def methods(module: str, base: str, files: tuple[str, ...] = ()) -> dict[str, MethodSource]:
    """The named methods below `base` in a module or package of ours, and in files of the user's own, by name."""
    found: dict[str, MethodSource] = {}
    for where in (module, *files):
        for method, inner, name in found_in(where, base):
            found.setdefault(method, describe(inner, name))
    return found
