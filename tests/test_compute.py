"""How networks are computed: precision, compilation, and less memory than was asked for."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from ddpm import compute, networks
from ddpm.compute import Computed, fitting, has_bfloat16
from ddpm.condition import NOTHING
from ddpm.denoiser import Denoiser
from ddpm.objectives import Objective
from ddpm.samplers import Sampler
from ddpm.schedules import Schedule
from ddpm.spaces import Pixels, Points
from ddpm.stages.sample import computed
from ddpm.stages.train import backward

torch.set_num_threads(1)

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
    said = capsys.readouterr().err
    assert ("compute.precision: bfloat16" in said and "float32 is used" in said) == (
        settings == "bfloat16" and not native
    )
    assert said.count("\n") <= 1


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


@pytest.mark.parametrize("calls, pays", [(100, False), (10**9, True)])
def test_a_gpu_compiles_where_it_pays(
    calls: int, pays: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """By the time of a few calls, which leave no gradient."""
    asked = fake(monkeypatch, lambda network, *given: network(*given))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": "auto"}, IMAGES, "cuda", calls)
    computed(*inputs())
    assert bool(asked) == computed.record()["compiled"] == pays
    assert all(option == {"mode": "reduce-overhead", "dynamic": False} for option in asked)
    assert capsys.readouterr().err.endswith(f"lie ahead: {'' if pays else 'not '}compiled\n")
    assert all(p.grad is None for p in network.parameters())


def test_compiled_code_serves_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of another size runs as it is; the compiled one's output is a copy."""
    output = torch.ones(4, 1, 8, 8)
    fake(monkeypatch, lambda network, *given: output)
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": True}, IMAGES, "cpu", 1)
    with torch.no_grad():
        found = computed(*inputs())
        assert torch.equal(found, output) and found.data_ptr() != output.data_ptr()
        assert torch.equal(computed(*inputs(3)), network(*inputs(3)))


def test_a_failing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(network: nn.Module, *given: object) -> torch.Tensor:
        raise RuntimeError("no C++ compiler\nand much more")

    fake(monkeypatch, broken)
    network = unet()
    computed = Computed(network, {"precision": "float32", "compile": True}, IMAGES, "cpu", 1)
    assert torch.equal(computed(*inputs()), network(*inputs()))
    assert computed.record()["compiled"] is False
    assert (
        capsys.readouterr().err
        == "compute.compile: the network could not be compiled (no C++ compiler): it runs as it is\n"
    )


# ---- memory -----------------------------------------------------------------------------------------------


def test_sizes_are_halved_until_they_fit(capsys: pytest.CaptureFixture) -> None:
    tried: list[int] = []

    def attempt(size: int) -> str:
        tried.append(size)
        if size > 6:
            torch.empty(10**17)  # what torch says where memory is short
        return f"with {size}"

    assert fitting(48, attempt, "sampling.batch") == ("with 6", 6)
    assert tried == [48, 24, 12, 6]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "sampling.batch: 48 images need more memory than there is: 24 at once"
    assert len(said) == 3
    with pytest.raises(RuntimeError, match="allocate"):
        fitting(48, attempt, "training.batch", 48)
    with pytest.raises(RuntimeError, match="allocate"):
        fitting(48, attempt, "training.batch", 7)


def test_other_errors_are_no_lack_of_memory() -> None:
    def attempt(size: int) -> None:
        raise RuntimeError("another mistake")

    with pytest.raises(RuntimeError, match="another mistake"):
        fitting(4, attempt, "sampling.batch")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_the_gradient_in_pieces(size: int) -> None:
    """Σ w_i L_i/B and its gradient, and the losses in order, in float64 to the rounding of sums."""
    torch.manual_seed(2)
    theta, x, weight = (
        torch.randn(5, dtype=torch.float64, requires_grad=True),
        torch.randn(7, 5, dtype=torch.float64),
        torch.rand(7, dtype=torch.float64),
    )
    sign = torch.randn(7, dtype=torch.float64)

    def loss(part: torch.Tensor, signs: Callable) -> torch.Tensor:
        return (part @ theta).square() * signs()

    optimiser = torch.optim.SGD([theta])
    found = backward(optimiser, loss, (x,), lambda: sign, weight, size)
    (expected,) = torch.autograd.grad(((x @ theta).square() * sign * weight).mean(), theta)
    torch.testing.assert_close(found, ((x @ theta).square() * sign).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-12, atol=0)


def test_an_attempt_that_failed_leaves_no_gradient() -> None:
    """Memory that ends in the second piece of a batch: the gradient is that of the attempt that succeeds alone."""
    torch.manual_seed(3)
    theta, x, weight = (torch.randn(n, dtype=torch.float64) for n in ((5,), (8, 5), (8,)))
    theta.requires_grad_()
    sizes: list[int] = []

    def loss(part: torch.Tensor, signs: Callable) -> torch.Tensor:
        sizes.append(len(part))
        if sizes == [4, 4]:
            raise MemoryError
        return (part @ theta).square()

    attempt = partial(backward, torch.optim.SGD([theta]), loss, (x,), lambda: x, weight)
    found, size = fitting(4, attempt, "training.batch")
    assert size == 2 and sizes == [4, 4, 2, 2, 2, 2]
    (expected,) = torch.autograd.grad(((x @ theta).square() * weight).mean(), theta)
    torch.testing.assert_close(theta.grad, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, (x @ theta).square().detach(), rtol=1e-12, atol=0)


# ---- samplers ---------------------------------------------------------------------------------------------


def test_samplers_that_choose_their_steps_have_float32() -> None:
    """By their error, which bfloat16 would bound from below; all others have what is asked for."""
    for method, used in {"ode-adaptive": "float32", "ddim": "bfloat16" if NATIVE else "float32"}.items():
        schedule = Schedule.make({"method": "linear"})
        denoiser = Denoiser(unet(), Objective.make({"target": "eps"}), schedule)
        found = computed(denoiser, Sampler.make({"method": method}), AUTO, IMAGES, "cpu")
        assert found.record()["precision"] == used and denoiser.call is found
