"""The `fidelity` stage: what the metrics say of one cell's samples, or of a baseline.

Two FIDs are comparable only if extractor and number of images agree: the extractor's hash stands in every record, N is
exact, and the rows of real data give the scale (`ddpm.metrics.toplines`).
"""

import json
from functools import lru_cache
from pathlib import Path

import torch

from ddpm.baselines import Baseline
from ddpm.datasets import dataset as data
from ddpm.errors import UserError
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.metrics.store import Store
from ddpm.pipeline.records import canonical, read_tensors
from ddpm.pipeline.run import Outcome, Run

Tensor = torch.Tensor
# Raised whenever a metric's number comes to mean something else, so that numbers of two protocols are never compared.
PROTOCOL = 1


@lru_cache(maxsize=1)
def evaluator(
    hashes: tuple[str, ...], data_file: Path, classifier_file: Path | None, spec: str, device: str, store: Store
) -> Evaluator:
    """One for all cells of a batch; the hashes of its files are part of the key."""
    return Evaluator(data.read(data_file), json.loads(spec), classifier_file, device, store)


def store(run: Run) -> Store:
    """Where features of the real images are kept, by all that they depend on: the stored data, the code that extracts
    them, the packages, and the processor; the evaluator adds the extractor's weights, split and threshold."""
    record = run.recorder.record
    about = {"data": record["inputs"]["data"], "hardware": record["hardware"]} | run.about
    return Store(run.inputs["data"].parent / "features", canonical(about))


def bits_per_dim(bits: Tensor | None) -> dict[str, float]:
    """The mean of a baseline's exact −log2 p/D of all test images, and its standard error over images."""
    if bits is None:
        return {}
    return {"bits_per_dim": float(bits.mean()), "standard_error": float(bits.std() / len(bits) ** 0.5)}


def measuring(run: Run) -> Evaluator:
    """The evaluator of a job."""
    hashes = tuple(run.recorder.record["inputs"][of] for of in ("data", "extractor", "weights") if of in run.inputs)
    files = run.inputs["data"], run.inputs.get("extractor")
    return evaluator(hashes, *files, canonical(run.settings), run.device, store(run))


def stored(run: Run) -> Samples:
    """The samples of a cell, or those that were made elsewhere."""
    tensors, _ = read_tensors(run.inputs["samples"])
    samples, count = Samples(tensors["images"], tensors.get("labels")), run.job["images"]
    if len(samples.images) != count:
        found = f"{run.inputs['samples']}: {len(samples.images)} images"
        raise UserError(f"{found}; the configuration says {count}: delete it and run again")
    return samples


def drawn(run: Run, measure: Evaluator) -> tuple[Samples, Tensor | None]:
    """The samples of a baseline, and its exact −log2 p/D of every test image, where that is known."""
    decoded = run.inputs.get("autoencoder")
    dataset = data.read(run.inputs["data"], decoded, run.device) if decoded else measure.dataset
    baseline = Baseline.named(run.name)(dataset)
    samples = Samples(baseline.draw(run.job["images"]), topline=baseline.topline if baseline.real else None)
    return samples, baseline.bits_per_dim(measure.dataset.test.images)


def evaluate(run: Run) -> Outcome:
    """The `fidelity` stage of one cell, or of a baseline: all numbers of all metrics that the job names.

    Of a baseline whose distribution is known, also its −log2 p/D of the whole test split (`bits_per_dim`, exact, with
    its standard error over images).
    """
    for made in ("samples", "autoencoder"):
        if made in run.inputs and (status := run.parent(made)["status"]) != "ok":
            return status, {}
    # ---- what is measured, and with what
    measure = measuring(run)
    samples, exact = drawn(run, measure) if "samples" not in run.inputs else (stored(run), None)
    # ---- the metrics
    run.phase("measuring")
    result: dict[str, object] = {"images": run.job["images"], "extractor": measure.extractor.hash, "protocol": PROTOCOL}
    for metric in run.job["metrics"]:
        spec = {"method": metric, "modules": run.settings.get("modules", ())}
        result |= Metric.make(spec).compute(measure, samples)
    return "ok", result | bits_per_dim(exact)
