"""Methods in files of the user's own: `methods: [my_methods.py]` in a configuration. No torch.

A file is imported as a script's neighbours are: its folder (of a package, the folder that the package lies in) becomes
the last place to import from, so that it may import what lies beside it. Jobs name the file in their methods'
`modules`, and import it before they make the method.
"""

import sys
import traceback
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path

from ddpm.errors import UserError


def place(file: str) -> tuple[Path, str]:
    """The folder that a file's imports start from, and its module's name there: mine/a.py → (mine, a)."""
    path = Path(file)
    path = path / "__init__.py" if path.is_dir() else path
    top, parts = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (top / "__init__.py").is_file():
        parts.insert(0, top.name)
        top = top.parent
    return top, ".".join(parts)


def clash(file: str) -> str:
    """Where the module lies that has the file's name already, in Python itself or among the packages; empty if none."""
    top, name = place(file)
    first = name.split(".")[0]
    if first in sys.stdlib_module_names:
        return f"Python's own {first}"
    folders = [folder for folder in sys.path if Path(folder).resolve() not in (Path.cwd(), top.resolve())]
    spec = PathFinder.find_spec(first, folders) if first != "ddpm" else None
    return spec.origin or first if spec else ""


# Module → the file that it was loaded from, as it was named.
_loaded: dict[str, str] = {}


def file_of(cls: type) -> list[str]:
    """The file of the user's own that declares a class, as it was named when it was loaded; none of ours."""
    return [_loaded[cls.__module__]] if cls.__module__ in _loaded else []


def load(file: str) -> None:
    """Import the file, once; UserError, in one line, where that fails."""
    top, name = place(file)
    if taken := clash(file):
        raise UserError(f"{file}: its name is that of another module, {taken}; rename it")
    folder = str(top.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        module = import_module(name)
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        where = f" ({last.filename}, line {last.lineno})"
        raise UserError(f"{file}: cannot be imported: {type(e).__name__}: {' '.join(str(e).split())}{where}") from None
    if Path(module.__file__ or "").resolve() != Path(file).resolve():
        raise UserError(f"{file}: its name is that of another file, {module.__file__}; rename it")
    _loaded[name] = file
