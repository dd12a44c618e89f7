"""What is wrong with the files that declare claims and published tables, said before the first job. No torch."""

from collections.abc import Iterator

from ddpm.errors import UserError
from ddpm.pipeline.results import CLAIMS, PUBLISHED
from ddpm.tables import claims, printed
from ddpm.tables.selectors import files_of

FOLDERS = (CLAIMS, PUBLISHED)


def mistakes(config: dict) -> Iterator[str]:
    """One line for each, with file, key, value, and what is known; a check of `ddpm.pipeline.config.check`."""
    for read, folder in zip((claims.read, printed.read_all), FOLDERS, strict=True):
        try:
            read(files_of(config), folder)
        except UserError as e:
            yield from str(e).splitlines()
