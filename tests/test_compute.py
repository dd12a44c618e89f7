"""How networks are computed: precision and compilation."""

import copy
import itertools
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from ddpm import compute, networks
from ddpm.compute import Computed, has_bfloat16
from ddpm.condition import NOTHING, Condition
from ddpm.denoiser import Denoiser
from ddpm.matching import Sliced
from ddpm.objectives import Objective
from ddpm.pipeline import config
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import read_record, read_tensors
from ddpm.pipeline.run import execute
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Pixels, Points
from ddpm.stages.sample import computed

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
AUTO = {"precision": "auto", "compile": "auto"}
IMAGES, POINTS = Pixels((1, 8, 8), 17), Points((2,), (-1.0, -1.0), (1.0, 1.0))
NATIVE = has_bfloat16("cpu")


def unet() -> nn.Module:
    """A small network whose output is not 0."""
    torch.manual_seed(0)
    network = networks.build({"method": "unet", "width": 16, "attention": [1]}, (1, 8, 8), 1, 0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def inputs(count: int = 4) -> tuple:
    torch.manual_seed(1)
    return torch.randn(count, 1, 8, 8), torch.randn(count), NOTHING


@pytest.mark.parametrize(
    "settings, space, native, used",
    [
        ("auto", IMAGES, True, "bfloat16"),
        ("auto", IMAGES, False, "float32"),
        ("auto", POINTS, True, "float32"),
        ("bfloat16", POINTS, True, "bfloat16"),
        ("bfloat16", IMAGES, False, "float32"),
        ("float32", IMAGES, True, "float32"),
    ],
)
def test_the_precision(
    settings: str,
    space: Pixels | Points,
    native: bool,
    used: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """bfloat16 for images where the device has it, or where it is asked for; a device that lacks it says so."""
    monkeypatch.setattr(compute, "has_bfloat16", lambda device: native)
    computed = Computed(unet(), {"precision": settings, "compile": "auto"}, space, "cpu", 10)
    assert computed.record() == {"precision": used, "compiled": False}
    falls_back = not native and settings != "float32" and space is IMAGES
    said = f"compute.precision: {settings}, and this cpu has no instructions for bfloat16: float32 is used\n"
    assert capsys.readouterr().err == said * falls_back


def test_float32_is_the_network_itself() -> None:
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": "auto"}, IMAGES, "cpu", 1)
    assert torch.equal(computed(*inputs()), network(*inputs()))


@pytest.mark.skipif(not NATIVE, reason="this CPU has no bfloat16")
def test_bfloat16_is_near_and_its_weights_stay() -> None:
    """The output, in float32, is that of float32 to bfloat16's eight digits and not exactly; weights and their gradient
    are float32."""
    network = unet()
    exact, low = network(*inputs()), Computed(network, AUTO, IMAGES, "cpu", 1)(*inputs())
    error = (low - exact).norm() / exact.norm()
    assert low.dtype == torch.float32
    assert 1e-4 < error < 2e-2
    low.square().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters() if p.grad is not None)


def test_attention_has_the_gradient_of_float32() -> None:
    """Under autocast too attention itself is float32: its gradient is that of the same inputs, rounded once."""
    network = unet()
    seen: list[torch.dtype] = []
    real = nn.functional.scaled_dot_product_attention

    def attention(*parts: torch.Tensor) -> torch.Tensor:
        seen.extend(part.dtype for part in parts)
        return real(*parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", attention)
        Computed(network, {"precision": "bfloat16", "compile": False}, IMAGES, "cpu", 1)(*inputs())
    assert seen and set(seen) == {torch.float32}


# ---- compilation ------------------------------------------------------------------------------------------


def fake(monkeypatch: pytest.MonkeyPatch, compiled: Callable) -> list[dict]:
    """In place of torch's compiler: one that gives this; the options of its calls."""
    asked: list[dict] = []

    def compile(network: nn.Module, **options: object) -> Callable:
        asked.append(options)
        return lambda *given: compiled(network, *given)

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def test_a_cpu_compiles_only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake(monkeypatch, lambda network, *given: network(*given))
    for wanted in ("auto", False):
        computed = Computed(unet(), AUTO | {"compile": wanted}, IMAGES, "cpu", 10**9)
        computed(*inputs())
        assert not asked and not computed.record()["compiled"]
    computed = Computed(unet(), AUTO | {"compile": True}, IMAGES, "cpu", 1)
    computed(*inputs())
    assert asked == [{"mode": "default", "dynamic": False}]
    assert computed.record()["compiled"]


def timed(monkeypatch: pytest.MonkeyPatch, own: float, compiled: float) -> None:
    """In place of a GPU's clock: what a call takes."""
    monkeypatch.setattr(
        Computed, "_seconds", lambda self, function, *given: own if function is self.network else compiled
    )


@pytest.mark.parametrize(
    "calls, compiled, pays, said",
    [
        (119_000, 0.0005, False, "auto, 119 s of the network lie ahead: not compiled"),
        (121_000, 0.0005, True, "auto, 121 s of the network lie ahead: compiled"),
        (121_000, 0.0011, False, "a call takes 1.1 ms compiled, 1 ms as it is: left"),
    ],
)
def test_a_gpu_compiles_where_it_pays(
    calls: int,
    compiled: float,
    pays: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """By the time of a few calls, which leave no gradient; and only where a compiled call takes less."""
    asked = fake(monkeypatch, lambda network, *given: network(*given))
    timed(monkeypatch, 0.001, compiled)
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": "auto"}, IMAGES, "cuda", calls)
    computed(*inputs())
    assert computed.record()["compiled"] == pays
    assert asked == [{"mode": "reduce-overhead", "dynamic": False}] * ("not compiled" not in said)
    assert capsys.readouterr().err.endswith(f"compute.compile: {said}\n")
    assert all(p.grad is None for p in network.parameters())


def test_every_shape_is_decided_by_the_calls_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left at the end of a job, in a smaller batch, is not worth compiling."""
    asked = fake(monkeypatch, lambda network, *given: network(*given))
    timed(monkeypatch, 13.0, 1.0)
    computed = Computed(unet(), {"precision": "float32", "compile": "auto"}, IMAGES, "cuda", 10)
    for count in (4, 4, 4, 3):
        computed(*inputs(count))
    assert len(asked) == 1 and computed.calls == 6


def test_a_compiled_output_is_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs write every output to the same place."""
    place: list[torch.Tensor] = []

    def compiled(network: nn.Module, *given: object) -> torch.Tensor:
        output = network(*given)
        place[:] = place or [torch.empty_like(output)]
        return place[0].copy_(output)

    fake(monkeypatch, compiled)
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": True}, IMAGES, "cpu", 1)
    with torch.no_grad():
        one, other = computed(*inputs()), computed(*(-x for x in inputs()[:2]))
        assert computed.record()["compiled"] and torch.equal(one, network(*inputs()))
        assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "compiled, said",
    [
        (lambda network, *given: broken(), "the network could not be compiled (no C++ compiler)"),
        (lambda network, *given: network(*given) * 1.01, "compiled, the network gives something else (by 0.01)"),
        (lambda network, x, *given: network(x.flip(0), *given), "compiled, the network gives something else (by "),
    ],
)
def test_what_a_compiler_breaks_is_said(compiled: Callable, said: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    fake(monkeypatch, compiled)
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": True}, IMAGES, "cpu", 1)
    assert torch.equal(computed(*inputs()), network(*inputs()))
    assert computed.record()["compiled"] is False
    line = capsys.readouterr().err
    assert line.startswith(f"compute.compile: {said}") and line.endswith("): it runs as it is\n")


def broken() -> None:
    raise RuntimeError("no C++ compiler\nand much more")


def aot(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler up to where it writes code: as strict about Python, and as quick as no compiler."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


COMPILED = {"precision": "auto", "compile": True}


@pytest.mark.parametrize("classes", [0, 3])
def test_torch_compiles_the_network(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With labels, without and with null labels; the output and its gradient are the network's own."""
    aot(monkeypatch)
    torch.manual_seed(0)
    network = networks.build({"method": "unet", "width": 16}, (1, 8, 8), 1, classes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    computed = Computed(network, COMPILED, IMAGES, "cpu", 1)
    plain = Computed(network, COMPILED | {"compile": False}, IMAGES, "cpu", 1)
    for condition in (NOTHING, Condition(torch.tensor([0, 2, 1, 1]))) if classes else (NOTHING,):
        given = *inputs()[:2], condition
        found, expected = (
            [call(*given), *torch.autograd.grad(call(*given).square().sum(), network.first.weight)]
            for call in (computed, plain)
        )
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 1e-2 * b.norm()
    assert computed.record()["compiled"] and not plain.record()["compiled"]


@pytest.mark.parametrize("wrong_from, compiled", [(5, True), (3, False)])
def test_what_cuda_graphs_replay_is_compared(
    wrong_from: int, compiled: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Their third call is the first that replays; every call frees the gradients of the one before."""
    gradients: list[torch.Tensor] = []
    numbers = itertools.count(1)

    class Placed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, parameter: torch.Tensor) -> torch.Tensor:
            return parameter.clone()

        @staticmethod
        def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
            gradients.append(gradient.clone())
            return gradients[-1]

    def graph(network: nn.Module, *given: object) -> torch.Tensor:
        for gradient in gradients:
            gradient.fill_(torch.nan)
        name, scale = "last.weight", 1.0 if next(numbers) < wrong_from else 1.5
        return functional_call(network, {name: scale * Placed.apply(network.get_parameter(name))}, given)

    def seconds(self: Computed, function: Callable, *given: object) -> float:
        self._trial(function, *given)
        return 1.0 if function is self.network else 0.5

    fake(monkeypatch, graph)
    monkeypatch.setattr(Computed, "_seconds", seconds)
    computed = Computed(unet(), {"precision": "float32", "compile": "auto"}, IMAGES, "cuda", 1000)
    computed(*inputs())
    assert computed.record()["compiled"] is compiled and gradients
    assert ("gives something else" in capsys.readouterr().err) is not compiled


def test_after_too_little_memory_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CUDA graphs the pieces of one step would write over each other's gradients."""
    asked = fake(monkeypatch, lambda network, *given: network(*given))
    computed = Computed(unet(), COMPILED, IMAGES, "cpu", 10)
    computed(*inputs(4))
    assert computed.record()["compiled"] and len(asked) == 1
    computed.forget()
    for size in (2, 4):
        computed(*inputs(size))
        assert computed.functions[torch.Size((size, 1, 8, 8))] is computed.network
    assert computed.record()["compiled"] and len(asked) == 1  # it was, once


@pytest.mark.parametrize("compiled", [True, False])
def test_what_was_compiled_is_given_back(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where memory ended while it was tried; where nothing was, the compiler is not even loaded."""
    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))

    def short(network: nn.Module, *given: object) -> None:
        raise MemoryError

    fake(monkeypatch, short)
    computed = Computed(unet(), COMPILED | {"compile": compiled}, IMAGES, "cpu", 10)
    with pytest.raises(MemoryError) if compiled else nullcontext():
        computed(*inputs())
    computed.forget()
    assert resets == [True] * compiled


def test_a_new_network_is_compared_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Its last layers are 0, which hides what lies before them: it is compared with noise on its weights, which are
    themselves again, to the bit, when it is called."""

    def compiled(network: nn.Module, *given: object) -> torch.Tensor:
        branch = "resolutions.before.0.residual.conv1.weight"
        return functional_call(network, {branch: -network.get_parameter(branch)}, given)

    for wrong in (False, True):
        network = networks.build({"method": "unet", "width": 16}, (1, 8, 8), 1, 0)
        assert not network(*inputs()).any()
        fake(monkeypatch, compiled if wrong else lambda network, *given: network(*given))
        before = [weight.clone() for weight in network.parameters()]
        computed = Computed(network, {"precision": "float32", "compile": True}, IMAGES, "cpu", 1)
        assert not computed(*inputs()).any() and computed.record()["compiled"] is not wrong
        assert all(map(torch.equal, before, network.parameters()))
    assert "gives something else" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++ on a CPU")
def test_compiled_to_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is drawn inside the network: the same values are dropped in its gradient."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    spec = {"method": "ddpm-unet", "width": 8, "multipliers": (1,), "dropout": 0.5}
    network = networks.build(spec, (1, 4, 4), 1, 0).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    given = torch.randn(3, 1, 4, 4), torch.randn(3), NOTHING
    computed = Computed(network, {"precision": "float32", "compile": True}, IMAGES, "cpu", 1)
    outputs = [call(*given) for call in (computed, network)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert computed.record()["compiled"] and not torch.allclose(outputs[1], network.eval()(*given), rtol=1e-2)


def test_a_gradient_of_a_gradient_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliced score matching takes one, of the input, through attention too: 2 vᵀ J v + ‖s‖² by differences."""
    aot(monkeypatch)
    network = unet()
    computed = Computed(network, COMPILED | {"precision": "float32"}, IMAGES, "cpu", 1)
    x, *rest = inputs()
    computed(x, *rest)
    v = torch.randn_like(x).sign()
    losses, *_ = Sliced().error(lambda x: (computed(x, *rest), None), x, x, lambda: v)
    exact, at, level = copy.deepcopy(network).double(), x.double(), rest[0].double()
    near = [exact(at + h * v, level, NOTHING) for h in (-1e-5, 0, 1e-5)]
    expected = (2 * v * (near[2] - near[0]) / 2e-5 + near[1].square()).sum()
    torch.testing.assert_close(losses.sum().double(), expected, rtol=1e-4, atol=0)
    losses.sum().backward()
    assert computed.record()["compiled"] and all(p.grad is not None for p in network.resolutions.parameters())


def test_compiled_jobs_end_where_others_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and sampling as their stages run them; the records say that they were compiled."""
    aot(monkeypatch)
    network, cell, found = "eps/linear/unconditional/seed0", "eps/linear/none/ddim/seed0", []
    for compiled in (False, True):
        read = config.read(ROOT / "config.yaml", ROOT / "tests" / "tiny.yaml")
        small = {"network": {"width": 16}, "compute": {"compile": compiled}, "sampling": {"images": 18, "batch": 16}}
        grid, layout = config.check(config.merge(read, small)), Layout(tmp_path / str(compiled))
        for stage, name in (("data", ""), ("train", network), ("sample", cell)):
            execute(stage, *grid.job(stage, name), layout)
        records = [read_record(layout.record(*job)) for job in (("train", network), ("sample", cell))]
        assert [record["result"]["compute"]["compiled"] for record in records] == [compiled] * 2
        found.append(read_tensors(layout.output("sample", cell))[0]["images"].double())
    assert found[0].std() > 1 and (found[0] - found[1]).abs().mean() < 0.05


# ---- samplers ---------------------------------------------------------------------------------------------


def test_samplers_that_choose_their_steps_have_float32() -> None:
    """By their error, which bfloat16 would bound from below; all others have what is asked for."""
    for method, used in {"ode-adaptive": "float32", "ddim": "bfloat16" if NATIVE else "float32"}.items():
        schedule = Schedule.make({"method": "linear"})
        denoiser = Denoiser(unet(), Objective.make({"target": "eps"}), schedule)
        (found,) = computed(denoiser, Sampler.make({"method": method}), AUTO, IMAGES, "cpu")
        assert found.record()["precision"] == used and denoiser.call is found
