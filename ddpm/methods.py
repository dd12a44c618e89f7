"""What schedules, guidances and samplers share: a method is a frozen dataclass with a name.

A new method is one class: it derives from its axis's base, sets `method` to the name that the
configuration uses, and lists its parameters as typed fields with defaults.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from ddpm.limits import conflicts, outside


@dataclass(frozen=True)
class Method:
    """Base of every named method of an axis."""

    method: ClassVar[str] = ""
    # Pairs that cannot work: (axis, parameter, value, reason). Like those below this is a literal, which
    # `grid` reads without importing the module.
    incompatible: ClassVar[tuple[tuple[str, str, object, str], ...]] = ()

    # Parameter → its smallest and largest value (None: no bound), and parameter → its possible values.
    limits: ClassVar[dict[str, tuple[float | None, float | None]]] = {}
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    # Two parameters that must be in order: (smaller, "<" or "<=", larger).
    ordered: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    # A value that takes one of another parameter: (parameter, value, other parameter, its value).
    needs: ClassVar[tuple[tuple[str, str, str, str], ...]] = ()

    def __post_init__(self) -> None:
        for line in reversed(type(self).__mro__):
            limits, choices = vars(line).get("limits", {}), vars(line).get("choices", {})
            for name in limits.keys() | choices.keys():
                if mistake := outside(name, getattr(self, name), limits.get(name), choices.get(name)):
                    raise ValueError(f"{self.method}: {mistake}" if self.method else mistake)
        for mistake in conflicts(vars(self), {"ordered": self.ordered, "needs": self.needs}):
            raise ValueError(f"{self.method}: {mistake}" if self.method else mistake)
        self.check()

    def check(self) -> None:
        """Raise ValueError, naming parameters and values, where they do not fit together."""

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
