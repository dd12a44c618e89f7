"""The documents: what they link to and name exists, and what they say of the version is so."""

import re
from pathlib import Path

import pytest
import yaml
from project import ROOT

import ddpm

HERE = [path for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md") if (path := ROOT / name).exists()]
DOCUMENTS = [*HERE, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "envs/README.md", ROOT / "results/README.md"]
# A path from the root of a clone, as documents name them in running text and commands.
PATH = re.compile(
    r"(?<![\w/.-])((?:ddpm|workflow|tests|docs|envs|slurm|profiles|benchmarks)/[\w./-]*\.(?:py|yaml|md|smk|lock|in|rst))\b"
)


def anchors(path: Path) -> set[str]:
    """The headings of a document, as GitHub makes links of them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every file, folder, picture and heading that a document links to."""
    for target in re.findall(r"\]\(([^()\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not heading or heading in anchors(path), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    """Also those that are no links, but for the files that a recipe makes: its blocks begin with their names."""
    text = document.read_text()
    made = re.findall(r"^```\w+\n# (\S+)$", text, re.MULTILINE)
    gone = [name for name in PATH.findall(text) if not (ROOT / name).exists() and name not in made]
    assert not gone


def test_references_are_complete() -> None:
    """docs/references.md has every work that is cited by author and year, and no other; the documents of README.md's
    sources stand there."""
    listed = re.findall(r"^\| ([^\d|\n]+ \d{4}[ab]?) \|", (ROOT / "docs/references.md").read_text(), re.MULTILINE)
    files = [
        *DOCUMENTS,
        *(path for folder in ("ddpm", "workflow", "tests") for kind in ("py", "yaml", "smk", "rst")
          for path in sorted((ROOT / folder).rglob(f"*.{kind}"))),
    ]  # fmt: skip
    apart = {"references.md", "CHANGELOG.md", "test_published.py"}
    text = " ".join(
        path.read_text() for path in files if path.name not in apart and "published" not in path.parent.name
    )
    text = re.sub(r"\s+(# )?", " ", text)
    for name in sorted(listed, key=len, reverse=True):
        authors, year = name.rsplit(" ", 1)
        text, count = re.subn(rf"{re.escape(authors)},? \(?{year}(?![a-z\d])", "", text)
        assert count, f"{name} is cited nowhere"
    left = re.findall(
        r"[A-ZŚ][\w-]+ (?:et al\.|& [A-Z]\w+),? \(?\d{4}\w?|(?<![\w&] )\b[A-Z][a-z]+ \(?(?:19|20)\d\d\b", text
    )
    sources = {"Sedykh 2024", "Han 2025", "Shariatian & Conforti 2025", "Geneva 2024", "Seoul 2025"}
    assert {*left} <= sources


def test_the_newest_change_is_this_version() -> None:
    """CHANGELOG.md begins with the version of ddpm/__init__.py."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == ddpm.__version__


def test_the_citation() -> None:
    """CITATION.cff has what its format requires, and leaves the version to the package."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found.keys() >= {"cff-version", "message", "title", "authors"} and found["cff-version"] == "1.2.0"
    assert "version" not in found and found["license"] == "MIT"
    assert found["authors"] and all(author.keys() == {"name"} for author in found["authors"])
