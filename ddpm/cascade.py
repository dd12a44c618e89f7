"""Cascaded diffusion: a network draws small images, and a second one, which is shown them, images of full size (Ho et
al. 2022; Sedykh 2024, 001, section 5.1).

    p(x) = ∫ p(z) q(z_s | z) p(x | z_s) dz dz_s,    z: the means of f × f pixels,    z_s = α(s) z + σ(s) ε.

The noise of z_s is the paper's conditioning augmentation, which it calls non-truncated: z is drawn whole, then gets
noise. The second network, trained on z of real images, so takes no trace of the first one's errors for one of the
image. It is trained at all s, uniform on [0, T], and is told which one it sees; samples are drawn at one s.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ddpm import rng
from ddpm.condition import Condition, LowResolution
from ddpm.denoiser import Denoiser
from ddpm.schedules import Schedule, like
from ddpm.spaces import Pixels

Tensor = torch.Tensor


def downsampled(x: Tensor, factor: int) -> Tensor:
    """The means of `factor` × `factor` pixels: (B, C, H, W) → (B, C, H/f, W/f)."""
    return F.avg_pool2d(x, factor)


@dataclass(frozen=True)
class Downsampled(Pixels):
    """What the first network sees: x are the means of `factor` × `factor` pixels of images that are stored as `pixels`.

    shape: of x. The means are not rounded to grey levels, and nor are samples of them.
    """

    method = "downsampled"
    factor: int = 1

    @property
    def spec(self) -> dict[str, object]:
        """For the record: x has the shape and the bounds of small images; whoever samples it needs no more."""
        return Pixels(self.shape, self.levels).spec

    def encode(self, stored: Tensor) -> Tensor:
        return downsampled(super().encode(stored), self.factor)


def augmented(schedule: Schedule, z: Tensor, eps: Tensor, s: Tensor, condition: Condition) -> LowResolution:
    """The labels of `condition` with z_s = α(s) z + σ(s) ε, ε of the shape of z, s a scalar or (B, 1, 1, 1)."""
    scale = schedule.square(s).rsqrt()
    (by,) = like(z, scale)
    noise = (scale * schedule.sigma(s)).flatten().expand(len(z)).to(z.device, z.dtype)
    return LowResolution(condition.labels, by * schedule.noisy(z, eps, s), noise)


class Cascade(Denoiser):
    """The second network of a cascade, guided or not, as a denoiser, with the first one as `base`, of small images of
    `shape`, which `name` says the name of.

    `augmentation` is s/T. Evaluations of both networks count, see `ddpm.stages.cascade.small_images`.
    """

    def __init__(self, second: Denoiser, base: Denoiser, name: str, shape: tuple[int, ...], augmentation: float):
        super().__init__(second.network, second.objective, second.schedule, second.clip)
        self.second, self.base, self.name, self.shape = second, base, name, shape
        self.evaluations = second.evaluations
        self.time = torch.tensor(augmentation * self.schedule.steps, dtype=torch.float64)

    def parts(self) -> list[Denoiser]:
        return self.second.parts() + self.base.parts()

    def evaluations_at(self, t: Tensor) -> int:
        return self.second.evaluations_at(t)

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> tuple[Tensor, Tensor | None]:
        return self.second.predict(x_t, t, condition)

    def told(self, z: Tensor, index: Tensor, condition: Condition) -> LowResolution:
        """What the second network is told of the samples z of the first one, which are of the images number `index`."""
        eps = rng.normal(rng.key("augmentation", self.name), index, 0, self.shape)
        return augmented(self.schedule, z, eps, self.time, condition)
