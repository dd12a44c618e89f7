"""Scores of samples alone, from what a classifier makes of them."""

from dataclasses import dataclass

import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from ddpm.metrics.distances import in_order
from ddpm.metrics.evaluator import Evaluator, Samples
from ddpm.metrics.metric import Metric
from ddpm.parameters import Count

Tensor = torch.Tensor


@dataclass(frozen=True)
class InceptionScore(Metric):
    """exp(E_x KL(p(y | x) ‖ p(y))) with the probabilities of the trained classifier (Salimans et al. 2016), by
    torch-fidelity: the mean over 10 parts of the samples, and its standard deviation over them. Between 1 and the
    number of classes; of another classifier than Inception it compares with no published score."""

    method = "inception_score"
    title = "Inception Score"
    direction = "↑"
    wants = ("classifier",)
    shown = "table.csv"
    details = ("parts_std",)
    parts: Count = 10

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        found = isc_features_to_metric(in_order(evaluator.sample_logits(samples)), min(self.parts, len(samples.images)))
        return {self.method: found[KEY_METRIC_ISC_MEAN], f"{self.method}_parts_std": found[KEY_METRIC_ISC_STD]}


def vendi(features: Tensor) -> float:
    """exp(−Σ λ log λ) with the eigenvalues λ of K/N, K_ij the cosine of the features (N, D) of samples i and j: how
    many samples that have nothing in common would be as diverse (Friedman & Dieng 2023)."""
    unit = torch.nn.functional.normalize(features, dim=1)
    values = torch.linalg.eigvalsh(unit.T @ unit / len(features)).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())


@dataclass(frozen=True)
class Vendi(Metric):
    """The Vendi score (Friedman & Dieng 2023) within the classes that the classifier sees, the mean over classes: what
    guidance loses, where classes stay but all images of one become alike."""

    method = "vendi"
    title = "Vendi score within classes"
    direction = "↑"
    wants = ("classifier",)
    shown = "table.csv"

    def compute(self, evaluator: Evaluator, samples: Samples) -> dict[str, float]:
        features, label = evaluator.sample_features(samples), evaluator.sample_labels(samples)
        scores = [vendi(features[label == of]) for of in label.unique()]
        return {self.method: sum(scores) / len(scores)}
