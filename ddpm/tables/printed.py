"""Numbers as a document prints them: with a spread, or as a bound."""

import re
from dataclasses import dataclass

from ddpm.errors import UserError

FORM = re.compile(r"(≤ ?)?(\d+(?:\.\d+)?)(?: ?± ?(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Printed:
    """`9.46 ± 0.11`, `≤ 3.75` or 3.17: the number, the text that stands for it, and what was printed beside it."""

    value: float
    text: str
    spread: float | None = None
    bound: bool = False

    def __str__(self) -> str:
        return self.text

    def over(self, top: float) -> str:
        """The number as a multiple of a topline."""
        return f"{self.value / top:.1f}"


def printed(found: object, where: str) -> Printed:
    """One entry of a published table; UserError where it is neither a number nor such a text."""
    if isinstance(found, int | float) and not isinstance(found, bool):
        return Printed(float(found), f"{found:.2f}" if isinstance(found, float) else str(found))
    match = FORM.fullmatch(found) if isinstance(found, str) else None
    if match is None:
        raise UserError(f"{where}: {found!r}; it must be a number, or text such as '9.46 ± 0.11' or '≤ 3.75'")
    bound, value, spread = match.groups()
    text = f"{'≤ ' if bound else ''}{value}{f' ± {spread}' if spread else ''}"
    return Printed(float(value), text, float(spread) if spread else None, bool(bound))
