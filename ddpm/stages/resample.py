"""Sampling of one cell by another sampling seed than the first: all is the same but noise and the order of labels."""

from dataclasses import replace

from ddpm.pipeline.run import Outcome, Run
from ddpm.stages import sample as first


def noise(job: dict) -> str:
    """The name that noise and labels of a job of the `sample` stage are functions of: its network's for the first
    sampling seed, one of its own for every other."""
    return f"{job['network']}/sampling{job['sampling_seed']}" if "sampling_seed" in job else job["network"]


def sample(run: Run) -> Outcome:
    """The `sample` stage of another sampling seed."""
    return first.sample(replace(run, job=run.job | {"network": noise(run.job)}))
