"""The Fréchet distance between the features of samples and of real images."""

from dataclasses import dataclass
from typing import ClassVar

from ddpm.metrics.distances import frechet, statistics
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.intervals import influences, interval, variance
from ddpm.metrics.metric import Metric


@dataclass(frozen=True)
class Fid(Metric):
    """‖µ − µ_r‖² + tr(Σ + Σ_r − 2 (Σ Σ_r)^½) of the features of samples and of a real split (Heusel et al. 2017).

    Values are comparable only where the extractor and the number of images agree. `fid_low` and `fid_high` hold this
    model's N-sample FID with 95 %, whichever samples are drawn (`ddpm.metrics.intervals`); of real images they are the
    topline's, in which 95 of 100 fresh sets have theirs.
    """

    method = "fid"
    title = "FID"
    distance = True
    topline = True
    details: ClassVar[tuple[str, ...]] = ("low", "high")
    split: ClassVar[str] = "test"
    binarized: ClassVar[bool] = False

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        name = self.method
        if samples.topline is None:
            features = evaluator.sample_features(samples, self.binarized)
            real = evaluator.real_statistics(self.split, self.binarized)
            mean = frechet(statistics(features), real)
            # Labels that have come by chance do not make the chance of samples smaller.
            groups = samples.labels if evaluator.dataset.is_stratified(samples.labels) else None
            low, high = interval(mean, variance(influences(features, real), groups))
        elif self.topline:
            mean, low, high = evaluator.topline(len(samples.images), samples.topline, self.binarized)
        else:
            return {}
        return {name: mean, f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class FidBinarized(Fid):
    """FID where both sides are thresholded at 0.5."""

    method = "fid_binarized"
    title = "FID Bin."
    wants = ("images",)
    binarized = True


@dataclass(frozen=True)
class FidTrain(Fid):
    """FID to the training split, of which real images are a part: they have none."""

    method = "fid_train"
    title = "FID to the training split"
    topline = False
    details = ()
    shown = "table.csv"
    split = "train"


@dataclass(frozen=True)
class FidTrainBinarized(FidTrain):
    """FID to the training split where both sides are thresholded at 0.5."""

    method = "fid_train_binarized"
    title = "FID Bin. to the training split"
    wants = ("images",)
    shown = "record"
    binarized = True
