"""Several processes that train one network together, one GPU each: torch's DistributedDataParallel.

Every process draws the whole batch (draws are functions of the step) and computes its own part of it; gradients,
losses and hence weights are the mean over the parts: those of one process, up to the rounding of a sum in parts.
"""

import atexit
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import distributed, nn

from ddpm.errors import UserError

Tensor = torch.Tensor


@dataclass(frozen=True)
class Group:
    """This process's place among those that train together; alone by default."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """This process's part of a batch (B, …): B/size entries of it."""
        return batch if self.size == 1 else batch.chunk(self.size)[self.rank]

    def whole(self, part: Tensor) -> Tensor:
        """All parts (B/size, …) in order: (B, …), without gradient."""
        if self.size == 1:
            return part.detach()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        distributed.all_gather(parts, part.detach().contiguous())
        return torch.cat(parts)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes."""
        if self.size == 1:
            return network
        # Buffers are constants: exchanging them would make every forward pass wait for all processes, also those that
        # a process makes alone to try how it computes best (`ddpm.compute`).
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)

    def in_turn(self, act: Callable[[], int]) -> int:
        """What `act` gives, which the first process does before all others."""
        found = act() if self.first else 0
        self.whole(torch.zeros(1))  # which waits for all of them
        return found if self.first else act()

    def agree(self, value: int, what: str) -> None:
        """UserError where the processes do not have the same value."""
        found = self.whole(torch.tensor([value])).tolist() if self.size > 1 else [value]
        if len(set(found)) > 1:
            raise UserError(f"{what}: the processes found {found}; is the results folder the same for all of them?")


def inside() -> bool:
    """Whether this process was started by `launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def launch(processes: int, arguments: list[str]) -> None:
    """Run `ddpm` with these arguments in so many processes of this machine, until all have ended; as torchrun does."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.5,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "ddpm", *arguments)
    except ChildFailedError as e:
        codes = ", ".join(f"process {rank}: {failure.exitcode}" for rank, failure in sorted(e.failures.items()))
        raise UserError(f"training in {processes} processes failed ({codes}); what they said stands above") from None


def join(processes: int, device: str) -> Group:
    """This process's group of `processes`; alone where it was not launched as one of several."""
    if not inside():
        if processes > 1:
            raise UserError(f"training.processes: {processes}, but this is one process: start it with `ddpm train`")
        return Group()
    found = int(os.environ["WORLD_SIZE"])
    if found != processes:
        raise UserError(f"training.processes: {processes}, but {found} processes were started")
    _die_with_parent()
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    atexit.register(distributed.destroy_process_group)
    return Group(distributed.get_rank(), found)


def _die_with_parent() -> None:
    """Have Linux kill this process when the one that holds the job's lock has died, however it did."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
