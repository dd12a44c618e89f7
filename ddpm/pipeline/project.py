"""The files that a project has beside the package (rules, schemas, configurations), and `ddpm init`. No torch."""

import os
from pathlib import Path

from ddpm.errors import UserError

PACKAGE = Path(__file__).parent.parent
# What `ddpm init` copies; the rest of the graph is the package's own, which the Snakefile includes.
COPIED = ("config.yaml", "profiles/default/config.yaml", "slurm/config.yaml", "results/README.md")
SNAKEFILE = """\
# The graph of the installed package ddpm, over the configuration in this folder. Made by `ddpm init`.
from ddpm.pipeline import project


include: project.find("Snakefile")


rule everything:  # the default: none of the rules that are included is
    input:
        rules.all.input,
"""


def find(name: str) -> Path:
    """A file or folder of the project by its path in a clone: the clone's own, or the installed package's.

    A wheel holds them as the folder ddpm/project (pyproject.toml lists them), a clone beside the package.
    """
    return (PACKAGE / "project" if installed() else PACKAGE.parent) / name


def installed() -> bool:
    """Whether this package came from a wheel; otherwise it is a clone's."""
    return (PACKAGE / "project").is_dir()


def init(folder: Path) -> list[str]:
    """Make `folder` a project that Snakemake and `ddpm` run in as in a clone; the files written, by their names in it.

    UserError, and nothing is written, where one of them, or a file in a folder's place, is there already.
    """
    overlays = sorted(f"workflow/config/{path.name}" for path in find("workflow/config").glob("*.yaml"))
    contents = {"Snakefile": SNAKEFILE.encode()} | {name: find(name).read_bytes() for name in (*COPIED, *overlays)}
    there = []
    for name in contents:
        path = folder / name
        nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if nearest == path or not nearest.is_dir():
            there.append(str(nearest.relative_to(folder)))
    if there:
        raise UserError(
            f"{', '.join(dict.fromkeys(there))}: already here, and nothing is overwritten; run it in an empty folder"
        )
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as f:
            f.write(content)
    return list(contents)
