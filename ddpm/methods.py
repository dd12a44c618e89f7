"""What schedules, guidances and samplers share: a method is a frozen dataclass with a name.

A new method is one class: it derives from its axis's base, sets `method` to the name that the
configuration uses, and lists its parameters as typed fields with defaults.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Self


@dataclass(frozen=True)
class Method:
    """Base of every named method of an axis."""

    method: ClassVar[str] = ""
    # Pairs that cannot work: (axis, parameter, value, reason). Literals: `grid` reads them without importing.
    incompatible: ClassVar[tuple[tuple[str, str, object, str], ...]] = ()

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise ValueError, naming parameter and value, where a parameter makes no sense."""

    @classmethod
    def all(cls) -> Iterator[type[Self]]:
        """Every named method below this class."""
        for sub in cls.__subclasses__():
            if sub.method:
                yield sub
            yield from sub.all()

    @classmethod
    def make(cls, spec: dict) -> Self:
        """The method that `spec` describes: {"method": name, parameter: value, ...}."""
        spec = dict(spec)
        name = spec.pop("method")
        found = {m.method: m for m in cls.all()}
        if name not in found:
            raise ValueError(f"method: {name!r}; known are {', '.join(sorted(found))}")
        known = {f.name for f in fields(found[name])}
        if unknown := sorted(set(spec) - known):
            raise ValueError(f"{name}: unknown parameter {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return found[name](**spec)
