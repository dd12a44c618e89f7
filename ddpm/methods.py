"""What schedules, guidances and samplers share: a method is a frozen dataclass with a name.

A new method is one class: it derives from its axis's base, sets `method` to the name that the configuration uses, and
lists its parameters as annotated fields with defaults (see `ddpm.parameters`). It may stand beside the others, or in a
file of its own that the configuration names under `methods`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, get_type_hints

from ddpm import extensions
from ddpm.parameters import RULES, cast, conflicts

# (axis, parameter, value, reason)
Requirement = tuple[str, str, object, str]


class Named:
    """What a configuration finds by a name: a subclass is called by its `method`."""

    method: ClassVar[str] = ""

    @classmethod
    def all(cls) -> Iterator[type[Self]]:
        """Every named class below this one."""
        for sub in cls.__subclasses__():
            if sub.method:
                yield sub
            yield from sub.all()

    @classmethod
    def named(cls, name: str, key: str = "method") -> type[Self]:
        """The class of this name, which stands under `key` where it was asked for."""
        found = {m.method: m for m in cls.all()}
        if name not in found:
            raise ValueError(f"{key}: {name!r}; known are {', '.join(sorted(found))}")
        return found[name]


@dataclass(frozen=True)
class Method(Named):
    """Base of every named method of an axis.

    Beside the annotations of its fields, a class may declare in plain literals, which are read without importing it:
    """

    # What it needs of other axes: with any other value the pair cannot work.
    requires: ClassVar[tuple[Requirement, ...]] = ()
    # Two parameters that must be in order: (smaller, "<" or "<=", larger).
    ordered: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    # Parameter → the one that must be above 0 for it to be used; empty: it is inherited, and nothing uses it here.
    # Asked of a configuration only: in Python a sweep may set what not every method uses.
    uses: ClassVar[dict[str, str]] = {}
    # Lists that must be of one length, and lists that must sum to 1.
    paired: ClassVar[tuple[tuple[str, ...], ...]] = ()
    shares: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        found, mistakes = {}, []
        for name, annotation in annotations(type(self)).items():
            try:
                found[name] = cast(name, annotation, getattr(self, name))
            except ValueError as e:
                mistakes.append(str(e))
        mistakes = mistakes or list(conflicts(found, declarations(type(self)), ()))
        if mistakes:
            raise ValueError("\n".join(f"{self.method}: {m}" if self.method else m for m in mistakes))
        for name, value in found.items():
            object.__setattr__(self, name, value)
        self.check()

    def check(self) -> None:
        """Raise ValueError, naming parameters and values, where they do not fit together."""

    @classmethod
    def make(cls, spec: dict) -> Self:
        """The method that `spec` describes: {"method": name, parameter: value, ...}, and {"modules": files} where it
        is declared in files of the user's own."""
        spec = dict(spec)
        for file in spec.pop("modules", ()):
            extensions.load(file)
        method = cls.named(spec.pop("method"))
        known = annotations(method)
        if unknown := sorted(spec.keys() - known):
            known_ones = ", ".join(sorted(known)) or "none"
            raise ValueError(f"{method.method}: unknown parameter {unknown[0]!r}; known are {known_ones}")
        return method(**spec)


@dataclass(frozen=True)
class Component(Method):
    """Base of what an objective is made of: a target, a weighting, a variance, a distribution of times, and a matching.

    In a configuration all of them share one flat mapping: a parameter belongs to every component that declares it.
    """

    # The component that an objective has where it names none; of a base class.
    default: ClassVar[str] = ""
    # Component → the one that this one can only be used with.
    needs: ClassVar[dict[str, str]] = {}
    # Parameters of other components that have no effect beside this one.
    replaces: ClassVar[tuple[str, ...]] = ()


def annotations(cls: type) -> dict[str, Any]:
    """The annotation of every field."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


def declarations(cls: type) -> dict[str, Any]:
    """What a class and its bases declare beside the annotations; mappings add to those of the base."""
    found: dict[str, Any] = {}
    for line in reversed(cls.__mro__):
        for name in RULES.keys() & vars(line):
            value = vars(line)[name]
            found[name] = found.get(name, {}) | value if isinstance(value, dict) else value
    return found
