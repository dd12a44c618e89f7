"""What a stage's function is given, and what becomes of what it returns. No torch until a stage runs.

Such a function sees a `Run` alone: plain values, by which it reaches no code that only plans, so that the fingerprint
of a job holds what computes its numbers and nothing else.
"""

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from tqdm import tqdm

from ddpm.pipeline.checkpoint import SECONDS, Checkpoint
from ddpm.pipeline.layout import Layout
from ddpm.pipeline.records import Recorder, Result, atomic, read_record, write_tensors
from ddpm.pipeline.stages import STAGES

# A result's status (`ok`, `diverged`), and its numbers.
Outcome = tuple[str, dict[str, object]]


@dataclass
class Run:
    """One job that is being computed: what it is told, what it reads, where it computes, and where its files go.

    job: everything that it depends on;  settings: the stage's own section of it;  device: cpu or cuda.
    inputs: the files that it reads, by the names that `Stage.parents` and `Stage.sources` give them;  parents: the
    results that they are of.
    outputs: the files that it writes, by the names of `Stage.files`;  results: the folder of all results.
    about: what else its stage says of it, as text (`Stage.about`).
    """

    stage: str
    job: dict
    settings: dict
    device: str
    inputs: dict[str, Path]
    parents: dict[str, Result]
    outputs: dict[str, Path]
    results: Path
    recorder: Recorder
    checkpoint: Checkpoint
    about: dict[str, str]
    files: list[Path] = field(init=False)  # those that its record describes

    def __post_init__(self) -> None:
        self.files = list(self.outputs.values())

    @property
    def name(self) -> str:
        """That of the network, cell or baseline that the job is for; empty of those that stand once."""
        return self.job.get("name", "")

    def parent(self, name: str) -> dict:
        """The record of what the job reads under this name."""
        return read_record(self.parents[name].record)

    def phase(self, name: str) -> None:
        """What follows is another phase of the job: its seconds are recorded under this name."""
        self.recorder.phase(name)

    def progress(self, total: int, unit: str, initial: int = 0, disable: bool = False) -> tqdm:
        """A progress bar with the time left."""
        text = f"{self.stage} {self.name}".strip()
        return tqdm(total=total, initial=initial, desc=text, unit=unit, disable=disable)

    def write(self, file: str, content: str | dict, about: dict[str, object] | None = None) -> None:
        """Write the output of this name: text, or tensors by name with what they say of themselves."""
        if isinstance(content, dict):
            write_tensors(self.outputs[file], content, about)
            return
        with atomic(self.outputs[file]) as temporary:
            temporary.write_text(content, encoding="utf-8")


def prepare(stage: str, job: dict, code: str, layout: Layout, device: str, checkpoint_seconds: float) -> Run:
    """All that a job's function is given."""
    does, name = STAGES[stage], job.get("name", "")
    inputs, about = layout.inputs(stage, name, job), does.about(job)
    recorder = Recorder(stage, job, code, inputs, device)
    checkpoint = Checkpoint(layout.checkpoint(stage, name), recorder, does.environment(job), checkpoint_seconds)
    return Run(
        stage,
        job,
        job.get(does.section, {}),
        device,
        inputs,
        layout.parents(stage, name, job),
        {file: layout.output(stage, name, file) for file in does.files},
        layout.root,
        recorder,
        checkpoint,
        about,
    )


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
        # On a GPU convolutions would round float32 to the 10 bits of TF32, and products of matrices where the
        # environment asks for it, which likelihoods do not bear.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    run = prepare(stage, job, code, layout, device, checkpoint_seconds)
    outcome = compute(run)
    if outcome is None:
        return
    status, result = outcome
    run.recorder.finish(layout.record(stage, run.name), run.files, status, **result)
    run.checkpoint.remove()
