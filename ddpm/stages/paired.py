"""The `paired` stage: how sure differences in FID between the cells of one network are, which share their noise.

Image i of every cell of a network starts from the same x_T and is of the same class, whatever the sampler and the
guidance, so that what luck does to one cell it does to the others. To first order FID_a − FID_b is a mean over images
of h_a(x_i^a) − h_b(x_i^b), with the influences h of `ddpm.metrics.intervals`: its variance is that of these
differences, and no longer the sum of both.
"""

import torch

from ddpm.metrics.evaluator import Samples
from ddpm.metrics.fid import Fid
from ddpm.metrics.intervals import influences, variance
from ddpm.metrics.metric import Metric
from ddpm.pipeline.records import read_tensors
from ddpm.pipeline.run import Outcome, Run
from ddpm.stages.fidelity import measuring

Tensor = torch.Tensor


def compare(run: Run) -> Outcome:
    """Metric → cell → another cell after it → the standard error of the difference of their distances.

    Cells that diverged are left out.
    """
    measure = measuring(run)
    run.phase("measuring")
    found: dict[str, dict[str, Tensor]] = {metric: {} for metric in run.job["metrics"]}
    labels: dict[str, Tensor | None] = {}
    for cell in run.job["cells"]:
        if run.parent(cell)["status"] != "ok":
            continue
        tensors, _ = read_tensors(run.inputs[cell])
        samples = Samples(tensors["images"], tensors.get("labels"))
        labels[cell] = samples.labels
        for name in found:
            metric = Metric.make({"method": name, "modules": run.settings.get("modules", ())})
            if isinstance(metric, Fid):
                real = measure.real_statistics(metric.split, metric.binarized)
                found[name][cell] = influences(measure.sample_features(samples, metric.binarized), real)
    errors = {name: standard_errors(of, labels) for name, of in found.items()}
    return "ok", {"images": run.job["images"], "standard_errors": errors}


def standard_errors(influence: dict[str, Tensor], labels: dict[str, Tensor | None]) -> dict[str, dict[str, float]]:
    """Cell → each one after it → the root of the variance of the mean of their influences' difference, within classes
    where either is given labels; those of one network are the same."""
    cells, found = list(influence), dict[str, dict[str, float]]()
    for i, one in enumerate(cells):
        found[one] = {}
        for other in cells[i + 1 :]:
            groups = labels[other] if labels[one] is None else labels[one]
            found[one][other] = variance(influence[one] - influence[other], groups) ** 0.5
    return found
