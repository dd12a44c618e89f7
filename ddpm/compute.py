"""How networks are computed: in bfloat16 where that is faster, compiled where that saves more than it costs.

Only the network itself is: its weights, its output, losses, schedules and samplers' steps stay in float32 or float64
(torch's autocast). An 8-bit image has no more digits than bfloat16, and samples of a finished network get the same FID
to within its spread; likelihoods do not bear it (up to 0.6 bits/dim), and are computed in float32.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from ddpm.spaces import Space

Tensor = torch.Tensor
Result = TypeVar("Result")

# What `compile: auto` assumes of a GPU, whose launches cost more than the arithmetic of small networks: a compiled
# network with CUDA graphs takes half the time, and compiling takes a minute. What is compiled is timed, and left where
# it is no faster. On a CPU compiling gains nothing in training and a fifth in sampling, less than it costs
# (docs/speed.md).
SAVED, COMPILING = 0.5, 60.0
TRIALS = 3
# How far a compiled network's output and gradient may be from the network's own, of their norm: twice what another
# order of sums changes in bfloat16, and far more than it does in float32.
TOLERANCE = {"float32": 1e-3, "bfloat16": 4e-2}
NOISE = 0.05  # the standard deviation of what is added to the weights while the two are compared
LACKING = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED")


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # in a line of its own, where a progress bar runs


def has_bfloat16(device: str) -> bool:
    """Whether the device has instructions of its own for bfloat16; without, it would be slower than float32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


class Computed:
    """A network as one job computes it, called like the network itself; its output has its input's type.

    settings: `compute` of the configuration. `precision: auto` is bfloat16 for images where the device has it, else
    float32. Whether to compile is decided at the first call with inputs of a shape: `compile: auto` does so where the
    calls ahead, of `calls` in all, by the time that a few take, would save more than compiling costs; never on a CPU.
    """

    def __init__(self, network: nn.Module, settings: dict, space: Space, device: str, calls: int):
        self.network, self.device, self.calls = network, device, calls
        self.wanted: bool | str = settings["compile"]
        self.precision = _precision(settings["precision"], space, device)
        self.functions: dict[torch.Size, Callable] = {}  # by the shape of x: the network, or its compiled form
        self.tried = self.compiled = False  # whether anything was given to a compiler, and used

    def record(self, precisions: Sequence[str] = ()) -> dict[str, object]:
        """What was used; `precisions` by all attempts of the job, if several machines had a part in it."""
        return {"precision": ", then ".join(precisions or [self.precision]), "compiled": self.compiled}

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        if x.requires_grad:  # a gradient of a gradient follows, which compiled code has not (sliced score matching)
            return self._run(self.network, x, *rest)
        if x.shape not in self.functions:
            self.functions[x.shape] = self._decided(x, *rest)
        self.calls -= 1
        function = self.functions[x.shape]
        output = self._run(function, x, *rest)
        return output if function is self.network else output.clone()  # CUDA graphs write over their outputs

    def forget(self) -> None:
        """Give back the memory that compiled code holds; from now on the network runs as it is. In CUDA graphs the
        pieces of a batch would write over each other's gradients."""
        self.wanted = False
        if self.tried:
            torch.compiler.reset()
        self.functions.clear()

    def _run(self, function: Callable, x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return function(x, *rest).to(x.dtype)

    def _trial(self, function: Callable, *inputs: Any) -> list[Tensor]:
        """A call, with its gradient where one is taken, that leaves no trace: copies of both."""
        found = [output := self._run(function, *inputs)]
        if output.requires_grad:
            parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
            found += torch.autograd.grad(output.sum(), parameters, allow_unused=True)
        return [tensor.detach().clone() for tensor in found if tensor is not None]

    def _decided(self, *inputs: Any) -> Callable:
        """The network, or its compiled form, where that is asked for or pays. Where compiling fails (no C++ compiler, a
        broken cache) or gives something else, that is said, and the network stays as it is."""
        if self.wanted is False or (self.wanted == "auto" and self.device == "cpu"):
            return self.network
        auto = self.wanted == "auto"
        own = self._seconds(self.network, *inputs) if auto else 0.0
        if auto and not self._pays(own):
            return self.network
        mode = "reduce-overhead" if self.device == "cuda" else "default"
        self.tried = True
        compiled = torch.compile(self.network, mode=mode, dynamic=False)
        try:
            with self._other_weights():
                for _ in range(2):  # of CUDA graphs the first call warms up, the second records, all others replay
                    self._trial(compiled, *inputs)
                found, expected = (self._trial(function, *inputs) for function in (compiled, self.network))
            taken = self._seconds(compiled, *inputs) if auto else 0.0
        except Exception as e:  # whatever a compiler may raise
            if is_out_of_memory(e):
                raise
            first = (str(e).strip() or type(e).__name__).splitlines()[0]
            _say(f"compute.compile: the network could not be compiled ({first}): it runs as it is")
            return self.network
        if not (error := _difference(found, expected)) <= TOLERANCE[self.precision]:
            _say(f"compute.compile: compiled, the network gives something else (by {error:.1g}): it runs as it is")
            return self.network
        if auto and taken >= own:
            _say(f"compute.compile: a call takes {1000 * taken:.3g} ms compiled, {1000 * own:.3g} ms as it is: left")
            return self.network
        self.compiled = True
        return compiled

    @contextmanager
    def _other_weights(self) -> Iterator[None]:
        """Noise on the weights that are trained, in place, taken back afterwards: at first the last layers of networks
        and of their residual branches are 0, which would hide whatever lies before them."""
        weights = [weight.detach() for weight in self.network.parameters() if weight.requires_grad]
        kept, generator = [weight.clone() for weight in weights], torch.Generator().manual_seed(0)
        try:
            for weight in weights:
                weight += (NOISE * torch.randn(weight.shape, generator=generator)).to(weight)
            yield
        finally:
            for weight, was in zip(weights, kept, strict=True):
                weight.copy_(was)

    def _pays(self, own: float) -> bool:
        """Whether compiling is likely to save more time than it takes, where a call takes `own` seconds."""
        ahead = self.calls * own
        pays = ahead * SAVED > COMPILING
        _say(f"compute.compile: auto, {ahead:.0f} s of the network lie ahead: {'' if pays else 'not '}compiled")
        return pays

    def _seconds(self, function: Callable, *inputs: Any) -> float:
        """What a call takes on a GPU."""
        self._trial(function, *inputs)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(TRIALS):
            self._trial(function, *inputs)
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / TRIALS


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """How far tensors are from those expected, of their norm: the larger of the first's and of all others' together."""

    def norm(tensors: list[Tensor]) -> float:
        return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5

    def error(part: slice) -> float:
        of = norm([a - b for a, b in zip(found[part], expected[part], strict=True)])
        return of / norm(expected[part]) if of else 0.0

    return float(torch.tensor([error(slice(1)), error(slice(1, None))]).max())  # NaN where one of them is


def _precision(wanted: str, space: Space, device: str) -> str:
    low = wanted == "bfloat16" or (wanted == "auto" and space.images)
    if low and not has_bfloat16(device):
        _say(f"compute.precision: {wanted}, and this {device} has no instructions for bfloat16: float32 is used")
    return "bfloat16" if low and has_bfloat16(device) else "float32"


def with_last(precisions: list[str], now: str) -> list[str]:
    """The precisions of former attempts of a job, and after them the present one, where it is another."""
    return precisions if precisions[-1:] == [now] else [*precisions, now]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory, of a GPU or of this machine."""
    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or (isinstance(error, RuntimeError) and any(text in str(error) for text in LACKING))


def fitting(
    size: int, attempt: Callable[[int], Result], what: str, least: int = 1, forget: Callable[[], None] = lambda: None
) -> tuple[Result, int]:
    """attempt(size), or with half the size as often as memory does not suffice: the result, and the size that did.

    what:   the key of the configuration that the size comes from, for the line that says so;
    least:  the smallest size;  forget: gives back memory that the larger size has taken.
    """
    while True:
        try:
            return attempt(size), size
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e) or size // 2 < least:
                raise
        forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _say(f"{what}: {size} images need more memory than there is: {size // 2} at once")
        size //= 2
