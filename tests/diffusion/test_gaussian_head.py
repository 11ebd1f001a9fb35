from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from exact_predictors import conditional_predictor, normal_predictor
from torch import Tensor

from rdm.context import Context
from rdm.diffusion import schedules
from rdm.diffusion.gaussian import Predictor, diffusion_loss
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.guidance import Guidance, guided
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.samplers import ddim_sample, seeded_noise
from rdm.diffusion.schedules import ddim_timesteps, linspace_timesteps

DDPM = schedules.ddpm_linear().build()
HEAD = GaussianHead(DDPM)
TEN = NamedSampler(num_steps=10)


def ones(count: int) -> Context:
    return Context(vector=torch.ones(count, 1))


def test_head_defaults_to_the_released_schedule() -> None:
    assert GaussianHead().schedule.alpha_bars == schedules.rdm().build().alpha_bars


def test_head_loss_is_the_diffusion_loss_of_its_settings() -> None:
    x0 = seeded_noise(range(8), (3,))
    head = GaussianHead(DDPM, prediction_type="v", weighting="min_snr")
    got = head.loss(lambda x, t, c: x, x0, Context(), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(
        got, diffusion_loss(lambda x, t, c: x, x0, Context(), DDPM, generator, "v", "min_snr")
    )


def test_head_samples_by_guided_ddim_from_its_seeds() -> None:
    got = HEAD.sample(
        conditional_predictor(DDPM),
        ones(2),
        shape=(7,),
        seeds=[4, 8],
        sampler=NamedSampler(num_steps=20, eta=1.0),
        guidance=Guidance(3.0),
    )
    denoise = HEAD.denoiser(guided(conditional_predictor(DDPM), 3.0), ones(2))
    expected = ddim_sample(
        denoise, seeded_noise([4, 8], (7,)), ddim_timesteps(1000, 20), eta=1.0, seeds=[4, 8]
    )
    assert torch.equal(got, expected)


def test_head_with_scale_one_gives_the_bits_of_the_conditional_network() -> None:
    def sample(predict: Predictor, scale: float) -> Tensor:
        return HEAD.sample(
            predict, ones(2), shape=(7,), seeds=[4, 8], sampler=TEN, guidance=Guidance(scale)
        )

    predict = conditional_predictor(DDPM)
    calls = []
    assert torch.equal(
        sample(lambda *a: calls.append(a[0].shape[0]) or predict(*a), 1.0), sample(predict, 1)
    )
    assert calls == [2] * 10


def test_head_with_scale_zero_gives_the_bits_of_the_null_context() -> None:
    predict = conditional_predictor(DDPM)
    unconditional = HEAD.sample(predict, ones(2).null(), shape=(7,), seeds=[4, 8], sampler=TEN)
    got = HEAD.sample(predict, ones(2), shape=(7,), seeds=[4, 8], sampler=TEN, guidance=Guidance(0))
    assert torch.equal(got, unconditional)


def test_head_thresholds_the_predicted_sample() -> None:
    previews = []
    HEAD.sample(
        normal_predictor(DDPM),
        Context(),
        shape=(50,),
        seeds=[0],
        sampler=TEN,
        thresholding=lambda x: x.clamp(0, 0.5),
        on_step=previews.append,
    )
    assert all(0 <= step.x0.min() <= step.x0.max() <= 0.5 for step in previews)


def test_head_samples_the_same_picture_in_any_batch() -> None:
    predict = normal_predictor(DDPM)

    def sample(seeds: Sequence[int]) -> Tensor:
        return HEAD.sample(predict, Context(), shape=(3, 4, 4), seeds=seeds, sampler=TEN)

    assert torch.equal(sample(range(4)), torch.cat([sample([0, 1]), sample([2]), sample([3])]))


def test_head_samples_ancestrally_in_all_steps() -> None:
    steps = []
    samples = HEAD.sample(
        normal_predictor(DDPM),
        Context(),
        shape=(500,),
        seeds=[0],
        sampler=NamedSampler("ddpm", 1000, variance="beta"),
        on_step=steps.append,
    )
    assert len(steps) == 1000
    assert samples.mean().item() == pytest.approx(0.7, abs=0.05)


def test_head_inverts_what_it_samples() -> None:
    head = GaussianHead(DDPM, spacing="linspace")
    predict = normal_predictor(DDPM)
    samples = head.sample(
        predict, Context(), shape=(9,), seeds=[0], sampler=NamedSampler(num_steps=500, eta=0.0)
    )
    latents = head.invert(predict, samples, Context(), num_steps=500)
    assert torch.allclose(latents, seeded_noise([0], (9,)), rtol=0.03)


def test_spacing_chooses_the_timesteps() -> None:
    assert torch.equal(HEAD.timesteps(40), ddim_timesteps(1000, 40))
    assert torch.equal(
        GaussianHead(DDPM, spacing="linspace").timesteps(40), linspace_timesteps(1000, 40)
    )


def test_context_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 2 samples, but there are 3 seeds"):
        HEAD.sample(normal_predictor(DDPM), ones(2), shape=(3,), seeds=[0, 1, 2])


def test_head_moves_to_a_device() -> None:
    assert HEAD.to("meta").schedule.betas.device.type == "meta"
