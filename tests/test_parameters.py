"""Parameters: one annotation is checked alike in Python, in a configuration and by an editor."""

import json
import math
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import jsonschema
import pytest
import yaml
from project import DEFAULT, ROOT, forget, said

from ddpm import cli
from ddpm.errors import UserError
from ddpm.methods import Method
from ddpm.parameters import Count, Fraction, Interval, Len, NonNegative, Positive, Unbounded, cast, plain
from ddpm.pipeline import declarations, registry
from ddpm.pipeline.source import modules_in
from ddpm.samplers import Heun
from ddpm.schedules import Linear

Open = Annotated[float, Interval(gt=0, lt=1)]
Half = Annotated[float, Interval(gt=0, le=2)]
Spot = tuple[float, float]
RIGHT = {
    "whole number": (Count, 3, 3),
    "whole number for a float": (float, 1, 1.0),
    "ends of a range": (tuple[Fraction, ...], [0, 1], (0.0, 1.0)),
    "nothing": (Positive | None, None, None),
    "something": (Optional[Positive], 2, 2.0),  # noqa: UP045
    "a choice": (Literal["small", "large"], "large", "large"),
    "a choice or a number": (Literal["auto"] | Count, 4, 4),
    "infinite": (Unbounded, math.inf, math.inf),
    "infinite as a job says it": (Annotated[Unbounded, Interval(ge=0)], "inf", math.inf),
    "list of lists": (tuple[Spot, ...], [[1, 2], [3, 4]], ((1.0, 2.0), (3.0, 4.0))),
    "truth": (bool, True, True),
}


@pytest.mark.parametrize(("annotation", "value", "expected"), RIGHT.values(), ids=RIGHT.keys())
def test_a_right_value_is_cast(annotation: Any, value: object, expected: object) -> None:
    """To its declared type, at every depth; what a job's text says of it is read back as the same."""
    found = cast("p", annotation, value)
    assert found == expected and repr(found) == repr(expected)
    text = json.dumps(plain(found), allow_nan=False)
    assert cast("p", annotation, json.loads(text)) == expected


WRONG = {
    "below": (Count, 0, "p: 0; it must be at least 1"),
    "shown as what it would be": (NonNegative, -1, "p: -1.0; it must be at least 0"),
    "outside": (Fraction, 1.5, "p: 1.5; it must lie in 0 … 1"),
    "at an open end": (Open, 0.0, "p: 0.0; it must be above 0 and below 1"),
    "above": (Half, 3.0, "p: 3.0; it must be above 0 and at most 2"),
    "inside a list": (tuple[Fraction, ...], [0.5, 2], "p: 2.0; it must lie in 0 … 1"),
    "inside an option": (Fraction | None, 2, "p: 2.0; it must lie in 0 … 1"),
    "float for an int": (int, 2.0, "p: 2.0 is of type float; it must be int"),
    "truth for an int": (int, True, "p: True is of type bool; it must be int"),
    "truth for a float": (float, True, "p: True is of type bool; it must be float"),
    "number for truth": (bool, 1, "p: 1 is of type int; it must be bool"),
    "text": (float, "2e-4", "p: '2e-4' is of type str; it must be float (YAML reads 2e-4 as text: write 2.0e-4)"),
    "text for an option": (Fraction | None, "x", "p: 'x' is of type str; it must be float or null"),
    "nothing where there is no option": (float, None, "p: None is of type NoneType; it must be float"),
    "infinite": (float, math.inf, "p: inf; it must be a finite number"),
    "no number": (float, math.nan, "p: nan; it must be a finite number"),
    "no number, though it may be infinite": (Unbounded, math.nan, "p: nan; it must be a number"),
    "infinite in words": (float, "inf", "p: 'inf' is of type str; it must be float (YAML"),
    "below, though it may be infinite": (
        Annotated[Unbounded, Interval(ge=0)],
        "-inf",
        "p: -inf; it must be at least 0",
    ),
    "no choice": (Literal["small", "large"], "medium", "p: 'medium'; it must be one of small, large"),
    "neither": (Literal["auto"] | Count, "x", "p: 'x' is of type str; it must be one of auto or int"),
    "too many": (tuple[Spot, ...], [[1, 2, 3]], "p: [[1, 2, 3]] is of type list; it must be a list of [float, float]"),
    "too few": (tuple[Spot, ...], [[1]], "p: [[1]] is of type list; it must be a list of [float, float]"),
    "no entry": (Annotated[tuple[int, ...], Len(1)], [], "p: []; it must name at least one"),
    "one for a list": (tuple[int, ...], 3, "p: 3 is of type int; it must be a list of int"),
}


@pytest.mark.parametrize(("annotation", "value", "line"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_is_refused_in_one_line(annotation: Any, value: object, line: str) -> None:
    """The key, the value and what would be right."""
    with pytest.raises(ValueError) as caught:
        cast("p", annotation, value)
    assert str(caught.value).startswith(line) and len(str(caught.value).splitlines()) == 1


def test_a_method_is_cast_and_refused_in_python() -> None:
    """The same annotations, all mistakes at once, each with the method's name."""

    @dataclass(frozen=True)
    class Both(Method):
        method = "both"
        ordered = (("low", "<=", "high"),)
        low: float = 0.0
        high: Unbounded = math.inf
        kind: Literal["a", "b"] | None = None

    assert (Both(low=1).low, Method.make({"method": "both", "high": "inf"})) == (1.0, Both())
    assert isinstance(Both(low=1).low, float)
    with pytest.raises(ValueError) as caught:
        Both(low="1", kind="c")
    assert str(caught.value).splitlines() == [
        "both: low: '1' is of type str; it must be float (YAML reads 2e-4 as text: write 2.0e-4)",
        "both: kind: 'c'; it must be one of a, b or null",
    ]
    with pytest.raises(ValueError, match=r"^both: low: 5.0; it must be at most high, 1.0$"):
        Both(low=5, high=1)
    assert Linear(beta_last=1e-2).steps == 1000 and Heun().churn_max == math.inf


# ---- read from the source -------------------------------------------------------------------------------------

FIELDS = {
    "plain": ("x: int = 3", int, 3),
    "alias": ("x: Count = 3", Count, 3),
    "own alias": ("x: Steps = 3", Annotated[int, Interval(ge=2)], 3),
    "alias through a module": ("x: p.Fraction = 0.5", Fraction, 0.5),
    "in quotes": ("x: 'Literal[\"a\", \"b\"]' = 'a'", Literal["a", "b"], "a"),
    "option": ("x: float | None = None", float | None, None),
    "infinite default": ("x: Unbounded = math.inf", Unbounded, math.inf),
    "negative infinite default": ("x: Unbounded = -inf", Unbounded, -math.inf),
    "computed default": ("x: Count = 2 * WIDTH", Count, 64),
    "list": ("x: tuple[Count, ...] = (1, 2)", tuple[Count, ...], (1, 2)),
}
HEAD = """
import math
import ddpm.parameters as p
from math import inf
from typing import Annotated, Literal
from ddpm.methods import Method
from ddpm.parameters import Count, Interval, Unbounded
from torch import Tensor
Steps = Annotated[int, Interval(ge=2)]
WIDTH = 32
class One(Method):
    {field}
"""


def described(tmp_path: Path, field: str) -> declarations.MethodSource:
    path = tmp_path / "one.py"
    path.write_text(HEAD.format(field=field))
    forget()
    found = declarations.describe(path.as_posix(), "One")
    assert found.parameters is not None
    return found


@pytest.mark.parametrize(("field", "annotation", "default"), FIELDS.values(), ids=FIELDS.keys())
def test_annotations_are_read_without_importing(tmp_path: Path, field: str, annotation: Any, default: object) -> None:
    """As Python would evaluate them in the module, which imports torch and is not imported."""
    assert described(tmp_path, field).parameters == {"x": declarations.Parameter(annotation, default)}


@pytest.mark.parametrize(
    ("field", "cause"),
    [
        ("x: Tensor = 1", "x: Tensor is no annotation of a parameter (NameError: Tensor)"),
        ("x: Literal[ = 1", "line 12: "),
        ("x: Unknown = 1", "x: Unknown is no annotation"),
        ("x: int = Tensor(3)", "x: Tensor(3) is no default of a parameter; it must be a literal"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, field: str, cause: str) -> None:
    """File, class and parameter in one line."""
    with pytest.raises(UserError) as caught:
        described(tmp_path, field)
    assert str(caught.value).startswith(f"{tmp_path / 'one.py'}: ") and cause in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", registry.KINDS)
def test_what_is_read_is_what_python_makes_of_it(kind: str) -> None:
    """Annotation and default of every parameter of every method, by the class itself."""
    from inspect import signature
    from typing import get_type_hints

    from ddpm import baselines, guidance, networks, objectives, samplers, schedules, times  # noqa: F401
    from ddpm.datasets.dataset import Dataset

    for module in modules_in("ddpm.metrics"):
        import_module(module)
    networks.build({"method": "mlp"}, (2,), 1, 0)
    for name, found in registry.known(kind).items():
        base = {"network": networks.Network, "dataset": Dataset}.get(kind)
        cls = (
            base
            or next(
                b
                for b in Method.__subclasses__() + objectives.Component.__subclasses__()
                if b.__name__ == registry.KINDS[kind][1]
            )
        ).named(name)
        own: dict[str, tuple] = {}
        for init in (vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)):
            hints, told = get_type_hints(init, include_extras=True), signature(init).parameters
            own = {k: (hints.get(k), None if p.default is p.empty else p.default) for k, p in told.items()} | own
            if not any(p.kind is p.VAR_KEYWORD for p in told.values()):
                break  # it hands nothing on
        assert {k: p for k, p in own.items() if k in found.parameters} == {
            k: (p.annotation, p.default) for k, p in found.parameters.items()
        }
        assert (cls.__module__, cls.__name__) == (found.module, found.name)


# ---- the schema for editors -----------------------------------------------------------------------------------


def schema(capsys: pytest.CaptureFixture) -> dict:
    assert cli.main(["schema"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_schema_in_the_repository_is_the_declarations(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ddpm schema > workflow/schemas/editor.schema.json` after a change of what methods declare."""
    monkeypatch.chdir(ROOT)
    path = ROOT / "workflow" / "schemas" / "editor.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == schema(capsys)
    assert (ROOT / "config.yaml").read_text().startswith(f"# yaml-language-server: $schema={path.relative_to(ROOT)}\n")


OVERLAYS = {
    "samplers: {ddim: {eta: 1}}": True,
    "samplers: {ddim: {eta: 3}}": False,
    "samplers: {ddim: {etta: 0.1}}": False,
    "samplers: {ancestral: {variance: medium}}": False,
    "objectives: {a: {target: F, sigma_data: 0.3}}": True,
    "objectives: {a: {target: eps, weighting: edm, sigma_data: 0.3}}": True,
    "objectives: {a: {target: eps, sigma_data: 0.3}}": False,
    "objectives: {a: {target: eps, times: log-normal, level_std: 0}}": False,
    "objectives: {a: {target: eps, weighting: vbl}}": False,
    "network: {multipliers: []}": False,
    "network: {multipliers: [1, 2, 2]}": True,
    "data: {name: digits, seed: -1}": False,
}


@pytest.mark.parametrize(("overlay", "right"), OVERLAYS.items())
def test_the_schema_says_what_the_checks_say(
    overlay: str, right: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    validator = jsonschema.Draft202012Validator(schema(capsys))
    assert validator.is_valid(DEFAULT)
    merged = DEFAULT | {k: DEFAULT[k] | v for k, v in yaml.safe_load(overlay).items()}
    for section in ("samplers", "objectives"):
        merged[section] = {n: DEFAULT[section].get(n, {}) | v for n, v in merged[section].items()}
    assert validator.is_valid(merged) is right
    assert (said(overlay) == []) is right
