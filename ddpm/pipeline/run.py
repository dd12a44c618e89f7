"""What a stage's function is given, and what becomes of what it returns. No torch until a stage runs."""

from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from ddpm.pipeline.checkpoint import SECONDS, Checkpoint
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, atomic, read_record, write_tensors
from ddpm.pipeline.stages import STAGES

# A result's status (`ok`, `diverged`), and its numbers.
Outcome = tuple[str, dict[str, object]]


class Run:
    """One job that is being computed: what it is told, what it reads, where it computes, and where its files go.

    job: everything that it depends on;  device: cpu or cuda;  name: of the network, cell or baseline that it is for.
    inputs: the files that it reads, by the names that `Stage.parents` gives them;  files: those that it writes.
    """

    def __init__(self, stage: str, job: dict, code: str, layout: Layout, device: str, checkpoint_seconds: float):
        self.stage, self.job, self.layout, self.device = STAGES[stage], job, layout, device
        self.name = job.get("name", "")
        self.inputs = layout.inputs(stage, self.name, job)
        self.files = layout.outputs(stage, self.name)
        self.recorder = Recorder(stage, job, code, self.inputs, device)
        self.checkpoint = Checkpoint(layout.checkpoint(stage, self.name), self.recorder, checkpoint_seconds)

    @property
    def settings(self) -> dict:
        """The stage's own section of the configuration."""
        return self.job[self.stage.section]

    def parent(self, name: str) -> dict:
        """The record of what the job reads under this name."""
        return read_record(self.layout.record(*self.stage.parents(self.name, self.job)[name]))

    def phase(self, name: str) -> None:
        """What follows is another phase of the job: its seconds are recorded under this name."""
        self.recorder.phase(name)

    def progress(self, total: int, unit: str, initial: int = 0, disable: bool = False) -> tqdm:
        """A progress bar with the time left."""
        text = f"{self.stage.name} {self.name}".strip()
        return tqdm(total=total, initial=initial, desc=text, unit=unit, disable=disable)

    def output(self, file: str) -> Path:
        """Where the output of this name (`Stage.files`) goes."""
        return self.layout.output(self.stage.name, self.name, file)

    def write(self, file: str, content: str | dict, about: dict[str, object] | None = None) -> None:
        """Write one output: text, or tensors by name with what they say of themselves."""
        if isinstance(content, dict):
            write_tensors(self.output(file), content, about)
            return
        with atomic(self.output(file)) as temporary:
            temporary.write_text(content, encoding="utf-8")


def execute(
    stage: str, job: dict, code: str, layout: Layout, device: str = "cpu", checkpoint_seconds: float = SECONDS
) -> None:
    """Compute one job and write its record, last, beside its files.

    A stage's function returns the status and the numbers; None where another process of the same job does that.
    """
    module, function = STAGES[stage].starts(job)
    compute = getattr(import_module(module), function)
    if "threads" in job:
        import torch

        torch.set_num_threads(job["threads"])
        torch.set_float32_matmul_precision("high")
    run = Run(stage, job, code, layout, device, checkpoint_seconds)
    outcome = compute(run)
    if outcome is None:
        return
    status, result = outcome
    run.recorder.finish(layout.record(stage, run.name), run.files, status, **result)
    run.checkpoint.remove()
