"""Where a chain begins: every image's x_T is its own draw 0, of the prior's standard deviation."""

import pytest
import torch
from oracles import EVERY, GaussianDenoiser

from ddpm import rng
from ddpm.condition import NOTHING
from ddpm.samplers import DDIM, Ancestral
from ddpm.stages.sample import chain

NAME = "eps/karras/unconditional/seed0"


@pytest.mark.parametrize("name", list(EVERY))
def test_the_prior_of_a_chain(name: str) -> None:
    """N(0, 1) on VP, N(0, σ_max²) on VE, from the key of the network's name; then the sampler's own states."""
    schedule, index = EVERY[name](), torch.tensor([3, 0, 2**33])
    denoiser, shape = GaussianDenoiser(schedule, 0.2, 0.4), (1, 2, 2)
    states = list(chain(denoiser, DDIM(steps=4), NAME, index, NOTHING, shape))
    std = {"geometric": 50.0, "karras": 80.0}.get(name, 1.0)
    assert torch.equal(states[0], rng.normal(rng.key("sampling", NAME), index, 0, shape) * std)
    assert len(states) == 5
    expected = list(DDIM(steps=4).trajectory(denoiser, states[0], NOTHING, None))
    assert all(torch.equal(*pair) for pair in zip(states[1:], expected, strict=True))


def test_the_noise_of_a_chain() -> None:
    """The k-th noise of the sampler is draw k of every image, whatever images stand beside it."""
    denoiser, index, shape = GaussianDenoiser(EVERY["linear"](), 0.2, 0.4), torch.tensor([5, 1]), (1, 2, 2)
    found = list(chain(denoiser, Ancestral(steps=3), NAME, index, NOTHING, shape))
    draws = iter([rng.normal(rng.key("sampling", NAME), index, k, shape) for k in (1, 2)])
    expected = list(Ancestral(steps=3).trajectory(denoiser, found[0], NOTHING, lambda: next(draws)))
    assert all(torch.equal(*pair) for pair in zip(found[1:], expected, strict=True))
    alone = list(chain(denoiser, Ancestral(steps=3), NAME, index[1:], NOTHING, shape))
    assert torch.equal(alone[-1][0], found[-1][1])
