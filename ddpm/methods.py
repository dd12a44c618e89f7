"""What schedules, guidances and samplers share: a method is a frozen dataclass with a name.

A new method is one class: it derives from its axis's base, sets `method` to the name that the
configuration uses, and lists its parameters as typed fields with defaults.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from ddpm.limits import conflicts, outside

# What a method may declare of its parameters: `ddpm.limits` reads it.
DECLARATIONS = {"limits", "choices", "ordered", "needs", "uses", "paired", "shares"}


@dataclass(frozen=True)
class Method:
    """Base of every named method of an axis."""

    method: ClassVar[str] = ""
    # What it needs of other axes: (axis, parameter, value, reason); with any other value the pair cannot work. Like
    # those below this is a literal, which `grid` reads without importing the module.
    requires: ClassVar[tuple[tuple[str, str, object, str], ...]] = ()

    # Parameter → its smallest and largest value (None: no bound), and parameter → its possible values.
    limits: ClassVar[dict[str, tuple[float | None, float | None]]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    # Two parameters that must be in order: (smaller, "<" or "<=", larger).
    ordered: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    # Parameter → what uses it: any of these, each the values that others must have (none given: any but 0). One that is
    # not here is always used. Asked of a configuration only: in Python a sweep may set what not every method uses.
    uses: ClassVar[dict[str, tuple[dict[str, tuple[object, ...]], ...]]] = {}
    # Lists that must be of one length, and lists that must sum to 1.
    paired: ClassVar[tuple[tuple[str, ...], ...]] = ()
    shares: ClassVar[tuple[str, ...]] = ()
    # A value that takes one of another parameter: (parameter, value, other parameter, its value).
    needs: ClassVar[tuple[tuple[str, str, str, str], ...]] = ()

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        declared = self.declared()
        limits, choices = declared.get("limits", {}), declared.get("choices", {})
        for name, value in values.items():
            if mistake := outside(name, value, limits.get(name), choices.get(name)):
                raise ValueError(f"{self.method}: {mistake}" if self.method else mistake)
        for mistake in conflicts(values, declared, ()):
            raise ValueError(f"{self.method}: {mistake}" if self.method else mistake)
        self.check()

    def check(self) -> None:
        """Raise ValueError, naming parameters and values, where they do not fit together."""

    @classmethod
    def declared(cls) -> dict[str, object]:
        """What the class and its bases declare; mappings add to those of the base."""
        found: dict[str, object] = {}
        for line in reversed(cls.__mro__):
            for name in DECLARATIONS & vars(line).keys():
                value = vars(line)[name]
                found[name] = found.get(name, {}) | value if isinstance(value, dict) else value
        return found

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
