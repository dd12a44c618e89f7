"""What surrounds every stage, whoever starts it: the job's lock, its threads and its device. No torch."""

import os
import sys
from importlib import import_module
from pathlib import Path

from ddpm import provenance
from ddpm.checkpoint import SECONDS
from ddpm.devices import leased
from ddpm.grid import STAGES
from ddpm.layout import Layout
from ddpm.lock import held

# The stages that go on from a checkpoint.
RESUMABLE = ("train", "sample", "likelihood", "ode_likelihood")


def run_stage(
    stage: str,
    job: dict,
    code: str,
    results: str,
    device: str,
    jobs_per_gpu: int = 1,
    checkpoint_seconds: float = SECONDS,
) -> None:
    """Run one job, alone: a second live copy of it waits, and leaves a valid result that then is there."""
    # Threads are fixed before anything numerical is imported.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(job.get("threads", 1))
    layout, name = Layout(Path(results)), job.get("name", "")
    with held(layout.work(stage, name)) as waited:
        if waited and _done(stage, name, job, code, layout):
            print("the other copy has finished it", file=sys.stderr)
            return
        with leased(device, 1, jobs_per_gpu) as kind:
            module, function = STAGES[stage]
            options = {"checkpoint_seconds": checkpoint_seconds} if stage in RESUMABLE else {}
            getattr(import_module(module), function)(job, code, layout, kind, **options)


def _done(stage: str, name: str, job: dict, code: str, layout: Layout) -> bool:
    """Whether this very job's result is there, with the inputs as they are now."""
    if stage in ("table", "figures"):
        return False
    inputs = layout.inputs(stage, name, job)
    return provenance.matches(layout.record(stage, name), job, code, inputs)
