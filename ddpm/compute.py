"""How networks are computed: in bfloat16 where that is twice as fast, compiled where that saves more than it costs.

Only the network itself is: its weights, its output, losses, schedules and samplers' steps stay in float32 or float64
(torch's autocast). An 8-bit image has no more digits than bfloat16, and samples of a finished network get the same FID
to within its spread; likelihoods do not bear it (up to 0.6 bits/dim), and are computed in float32.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from ddpm.spaces import Space

Tensor = torch.Tensor
Result = TypeVar("Result")

# On a GPU, whose launches cost more than its arithmetic, a compiled network with CUDA graphs takes about half the time;
# compiling takes about a minute. On a CPU it gains a tenth at most, and nothing in training.
SAVED, COMPILING = 0.5, 60.0
TRIALS = 3


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
    float32. Whether to compile is decided at the first call: `compile: auto` does so where `calls` of them, by the time
    that a few take, would save more than compiling costs; never on a CPU. Compiled code serves inputs of the first
    call's shape; others, such as a last, smaller batch, run as they are.
    """

    def __init__(self, network: nn.Module, settings: dict, space: Space, device: str, calls: int):
        self.network, self.device, self.calls = network, device, calls
        self.wanted: bool | str = settings["compile"]
        self.precision = _precision(settings["precision"], space, device)
        self.compiled: Callable | None = None
        self.shape: torch.Size | None = None

    def record(self, precisions: Sequence[str] = ()) -> dict[str, object]:
        """What was used; `precisions` by all attempts of the job, if several machines had a part in it."""
        return {"precision": ", then ".join(precisions or [self.precision]), "compiled": self.compiled is not None}

    def __call__(self, x: Tensor, *rest: Any) -> Tensor:
        if self.shape is None:
            self._decide(x, *rest)
            self.shape = x.shape
        if self.compiled and x.shape == self.shape:
            return self._run(self.compiled, x, *rest).clone()  # CUDA graphs write over their outputs
        return self._run(self.network, x, *rest)

    def _run(self, function: Callable, x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return function(x, *rest).to(x.dtype)

    def _trial(self, function: Callable, *inputs: Any) -> None:
        """A call, with its gradient where one is taken, that leaves no trace."""
        output = self._run(function, *inputs)
        if output.requires_grad:
            torch.autograd.grad(output.square().sum(), list(self.network.parameters()))

    def _decide(self, *inputs: Any) -> None:
        """Compile, where that is asked for or pays; where it fails (no C++ compiler, a broken cache), say so."""
        if self.wanted is False or (self.wanted == "auto" and not self._pays(*inputs)):
            return
        mode = "reduce-overhead" if self.device == "cuda" else "default"
        compiled = torch.compile(self.network, mode=mode, dynamic=False)
        try:
            self._trial(compiled, *inputs)
        except Exception as e:  # whatever a compiler may raise
            if is_out_of_memory(e):
                raise
            first = (str(e).strip() or type(e).__name__).splitlines()[0]
            _say(f"compute.compile: the network could not be compiled ({first}): it runs as it is")
        else:
            self.compiled = compiled

    def _pays(self, *inputs: Any) -> bool:
        """Whether compiling saves more time than it takes."""
        if self.device == "cpu":
            return False
        self._trial(self.network, *inputs)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(TRIALS):
            self._trial(self.network, *inputs)
        torch.cuda.synchronize()
        ahead = self.calls * (time.perf_counter() - start) / TRIALS
        pays = ahead * SAVED > COMPILING
        _say(f"compute.compile: auto, {ahead:.0f} s of the network lie ahead: {'' if pays else 'not '}compiled")
        return pays


def _precision(wanted: str, space: Space, device: str) -> str:
    if wanted == "bfloat16" and not has_bfloat16(device):
        _say(f"compute.precision: bfloat16, for which this {device} has no instructions: float32 is used")
    low = wanted == "bfloat16" or (wanted == "auto" and space.images)
    return "bfloat16" if low and has_bfloat16(device) else "float32"


def with_last(precisions: list[str], now: str) -> list[str]:
    """The precisions of former attempts of a job, and after them the present one, where it is another."""
    return precisions if precisions[-1:] == [now] else [*precisions, now]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is a lack of memory, of a GPU or of this machine."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def fitting(size: int, attempt: Callable[[int], Result], what: str, least: int = 1) -> tuple[Result, int]:
    """attempt(size), or with half the size as often as memory does not suffice: the result, and the size that did.

    what: the key of the configuration that the size comes from, for the line that says so;  least: the smallest size.
    """
    while True:
        try:
            return attempt(size), size
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e) or size // 2 < least:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _say(f"{what}: {size} images need more memory than there is: {size // 2} at once")
        size //= 2
