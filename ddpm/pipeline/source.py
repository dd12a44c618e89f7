"""Reads modules without importing them: this package's own, and the files of methods that a user has. No torch.

A module of this package goes by its name, `ddpm.samplers`; one of the user's own by its path, `mine/my_methods.py`.
Names are followed through both; whatever else a module imports is another package.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ddpm.errors import UserError
from ddpm.extensions import place

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Source:
    """One module: its top-level definitions and imports by name, and what else it executes."""

    definitions: dict[str, tuple[ast.stmt, ...]]
    imports: dict[str, tuple[str, str]]
    effects: tuple[ast.stmt, ...]


@cache
def path_of(module: str) -> Path | None:
    """The module's file; None where there is no such module here."""
    if module.endswith(".py"):
        return Path(module) if Path(module).is_file() else None
    base = ROOT.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file() and (module == "ddpm" or path != ROOT.with_suffix(".py")):
            return path
    return None


def title(module: str) -> str:
    """The name that the module is imported by: `mine/my_methods.py` is `my_methods`, wherever the folder lies."""
    return place(module)[1] if module.endswith(".py") else module


def is_ours(module: str) -> bool:
    """Whether it is one of this package's modules or of the user's."""
    return module.split(".")[0] == "ddpm" or module.endswith(".py")


def _found(name: str, importer: str) -> str:
    """What `importer` gets by this name: a file of the user's own where one lies there, or the module of that name."""
    if name.split(".")[0] != "ddpm" and importer.endswith(".py"):
        base = place(importer)[0].joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path.as_posix()
    return name


def _child(module: str, name: str) -> str | None:
    """The module `name` in the package `module`, where there is one."""
    if not module.endswith(".py"):
        return f"{module}.{name}" if path_of(f"{module}.{name}") is not None else None
    base = Path(module).parent / name
    inner = (base.with_suffix(".py"), base / "__init__.py") if Path(module).name == "__init__.py" else ()
    return next((path.as_posix() for path in inner if path.is_file()), None)


def imported(node: ast.stmt, module: str) -> dict[str, tuple[str, str]]:
    """Local name → (module, name in it); the name is empty where the module itself was imported."""
    if isinstance(node, ast.Import):
        names = {(a.asname or a.name.split(".")[0]): (a.name if a.asname else a.name.split(".")[0]) for a in node.names}
        return {local: (_found(name, module), "") for local, name in names.items()}
    return _imported_from(node, module) if isinstance(node, ast.ImportFrom) else {}


def _imported_from(node: ast.ImportFrom, module: str) -> dict[str, tuple[str, str]]:
    """The same of `from ORIGIN import NAME`."""
    origin, found = _origin(node, module), {}
    for a in node.names:
        inner = _found(f"{origin}.{a.name}", module)
        is_module = is_ours(inner) and path_of(inner) is not None
        found[a.asname or a.name] = (inner, "") if is_module else (_found(origin, module), a.name)
    return found


def _origin(node: ast.ImportFrom, module: str) -> str:
    """The module that is imported from, by its whole name."""
    if not node.level:
        return node.module or ""
    path = path_of(module)
    up = node.level - (path is not None and path.name == "__init__.py")
    parts = title(module).split(".")
    return ".".join([*parts[: len(parts) - up], *filter(None, [node.module])])


def resolve(module: str, names: list[str]) -> tuple[str, str] | None:
    """The definition that `module.name.name...` leads to in these modules, through re-exports; None where to none."""
    while names and (inner := _child(module, names[0])) is not None:
        module, names = inner, names[1:]
    if not names or path_of(module) is None:
        return None
    source = read(module)
    if names[0] in source.definitions:
        return module, names[0]
    target, symbol = source.imports.get(names[0], ("", ""))
    return resolve(target, [*([symbol] if symbol else []), *names[1:]]) if is_ours(target) else None


@cache
def read(module: str) -> Source:
    """The parsed module, e.g. `ddpm.samplers`."""
    path = path_of(module)
    if path is None:
        raise UserError(f"{module}: no such {'file' if module.endswith('.py') else f'module in {ROOT}'}")
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, SyntaxError, ValueError) as e:  # a ValueError where it is no UTF-8
        line = f"line {e.lineno}: {e.msg}" if isinstance(e, SyntaxError) else str(e)
        raise UserError(f"{path}: is no file of Python: {line}") from None
    definitions: dict[str, tuple[ast.stmt, ...]] = {}
    imports: dict[str, tuple[str, str]] = {}
    effects = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= imported(node, module)
        elif names := _defined(node):
            definitions |= {name: (*definitions.get(name, ()), node) for name in names}
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            effects.append(node)
    return Source(definitions, imports, tuple(effects))


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines or assigns to."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]


def modules_in(module: str) -> list[str]:
    """The module itself, and where it is a package those in it."""
    path = path_of(module)
    if path is None or path.name != "__init__.py":
        return [module]
    files = (file for file in sorted(path.parent.glob("*.py")) if file != path)
    return [module, *(inner for file in files if (inner := _child(module, file.stem)))]
