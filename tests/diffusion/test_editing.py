"""Starts from pictures, known parts and interpolation, with exact predictors."""

from __future__ import annotations

import math
from typing import get_args

import hypothesis.strategies as st
import pytest
import torch
from exact_predictors import MODE, MODE_STD, mixture_predictor
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional

from rdm.context import Context
from rdm.diffusion import schedules
from rdm.diffusion.editing import (
    KnownRegion,
    Start,
    on_canvas,
    reconstruction,
    slerp,
    text_difference,
)
from rdm.diffusion.gaussian import q_sample
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.sampler_names import SamplerName
from rdm.diffusion.samplers import Denoiser, seeded_noise
from rdm.diffusion.schedules import ddim_timesteps, linspace_timesteps

DDPM = schedules.ddpm_linear().build()
HEAD = GaussianHead(DDPM)
NAMES: tuple[SamplerName, ...] = get_args(SamplerName)


def signs(count: int) -> Tensor:
    """Samples of the mixture, float32 [1, count]: half near +1, half near -1."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 2, (1, count), generator=generator) * 2.0 - 1
    return drawn * MODE + MODE_STD * torch.randn(1, count, generator=generator)


def drawn(
    start: Start, name: SamplerName = "dpm++2m", count: int = 2000, steps: int = 50
) -> Tensor:
    return HEAD.sample(
        mixture_predictor(DDPM),
        Context(),
        shape=(count,),
        seeds=[3],
        sampler=NamedSampler(name, steps),
        start=start,
    )


@pytest.mark.parametrize("name", NAMES)
def test_strength_decides_how_much_of_the_picture_is_left(name: SamplerName) -> None:
    x0 = signs(2000)
    kept = [
        (drawn(Start(x0, strength), name) * x0 > 0).double().mean().item()
        for strength in (0.1, 0.3, 0.6, 1.0)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > 0.98
    assert kept[-1] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("strength", [0.0, 0.01])
def test_too_little_strength_for_a_step_returns_the_picture(strength: float) -> None:
    x0 = signs(50)
    assert torch.equal(drawn(Start(x0, strength), count=50), x0)


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 25), (0.99, 49), (0.02, 1), (1.0, 50)])
def test_steps_are_counted_as_diffusers_counts_them(strength: float, steps: int) -> None:
    timesteps, noise = ddim_timesteps(1000, 50), seeded_noise([0], (9,))
    begun = Start(signs(9), strength).at(DDPM, timesteps, noise)
    assert begun.timesteps.tolist() == timesteps[:steps].tolist()
    t = torch.tensor([int(begun.timesteps[-1])])
    assert torch.equal(begun.x_t, q_sample(DDPM, signs(9), t, noise))


def test_a_start_depends_on_its_seed_alone() -> None:
    def sample(seeds: list[int], x0: Tensor) -> Tensor:
        return HEAD.sample(
            mixture_predictor(DDPM),
            Context(),
            shape=(3, 4, 4),
            seeds=seeds,
            sampler=NamedSampler("dpm++2m-sde", 10),
            start=Start(x0, 0.6, keep=torch.arange(4) < 2),
        )

    x0 = signs(3 * 48).view(3, 3, 4, 4)
    together = sample([5, 9, 2], x0)
    alone = torch.cat([sample([seed], x0[i : i + 1]) for i, seed in enumerate((5, 9, 2))])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_a_known_region_is_exact_at_the_end(name: SamplerName, strength: float) -> None:
    x0, keep = signs(100), torch.arange(100) < 40
    samples = drawn(Start(x0, strength, keep), name, count=100, steps=10)
    assert torch.equal(samples[:, :40], x0[:, :40])
    assert torch.equal(samples[:, 40:], x0[:, 40:]) == (strength == 0)


def test_a_mask_of_everything_returns_the_picture_and_one_of_nothing_no_trace_of_it() -> None:
    x0, nothing = signs(500), torch.zeros(500, dtype=torch.bool)
    assert torch.equal(drawn(Start(x0, keep=~nothing), count=500), x0)
    plain = HEAD.sample(
        mixture_predictor(DDPM),
        Context(),
        shape=(500,),
        seeds=[3],
        sampler=NamedSampler("dpm++2m", 50),
    )
    assert torch.equal(drawn(Start(x0, keep=nothing), count=500), plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_unknown_part_goes_with_the_known_one(name: SamplerName) -> None:
    """Pairs of normal numbers with correlation .9: the second, filled in, follows the first."""
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double())
    covariance = root @ root.T

    def predict(x: Tensor, t: Tensor, context: Context) -> Tensor:
        ab = DDPM.alpha_bars[int(t[0])]
        total = ab * covariance + (1 - ab) * torch.eye(2, dtype=torch.float64)
        return ((1 - ab) ** 0.5 * (x.double() @ torch.linalg.inv(total))).to(x.dtype)

    first = torch.linspace(-2, 2, 400)[:, None]
    x0, keep = torch.cat([first, torch.zeros(400, 1)], 1), torch.tensor([True, False])
    samples = HEAD.sample(
        predict,
        Context(),
        shape=(2,),
        seeds=range(400),
        sampler=NamedSampler(name, 50),
        start=Start(x0, keep=keep),
    )
    slope = (samples[:, 1:] * first).mean() / first.square().mean()
    # Exactly .9 for conditional samples: what is put back after a step says less than a network
    # that was trained for it, the known bias of the method. Samplers that add noise heed more.
    least = 0.55 if name in ("ddim", "ddpm", "dpm++2m-sde") else 0.4
    assert least < slope.item() < 0.9


def test_known_elements_are_as_noisy_as_the_others() -> None:
    x0, noise = signs(40), seeded_noise([1], (40,))
    region = KnownRegion(x0, torch.arange(40) < 20, noise)
    moved = region(torch.zeros(1, 40), 0.36)
    assert torch.allclose(moved[:, :20], (0.6 * x0 + 0.8 * noise)[:, :20])
    assert torch.equal(moved[:, 20:], torch.zeros(1, 20))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strength": 1.2}, "lies in 0 .. 1"),
        ({"strength": 0.5}, "needs the picture"),
        ({"keep": torch.ones(1)}, "needs the picture"),
    ],
)
def test_impossible_starts_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Start(**settings)  # type: ignore[arg-type]


def test_a_picture_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the picture to start from has the shape \[1, 8\]"):
        drawn(Start(signs(8)), count=9)


def test_inverted_noise_starts_where_the_picture_was() -> None:
    x0, timesteps = signs(500), linspace_timesteps(1000, 250)
    denoise = Denoiser(mixture_predictor(DDPM), DDPM)
    latents, _ = reconstruction(denoise, x0, timesteps)
    head = GaussianHead(DDPM, spacing="linspace")
    back = head.sample(
        mixture_predictor(DDPM),
        Context(),
        shape=(500,),
        seeds=[0],
        sampler=NamedSampler("ddim", 250, eta=0.0),
        start=Start(noise=latents),
    )
    assert (back - x0).abs().mean().item() < 0.01


def test_the_error_of_reconstruction_falls_as_one_over_the_steps() -> None:
    x0, denoise = signs(2000), Denoiser(mixture_predictor(DDPM), DDPM)
    errors = [
        (reconstruction(denoise, x0, linspace_timesteps(1000, n))[1] - x0).abs().mean().item()
        for n in (50, 100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def units(count: int, dim: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


@settings(max_examples=50)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_slerp_of_unit_vectors_is_a_unit_vector_at_its_share_of_the_angle(
    fraction: float, seed: int
) -> None:
    first, second = (
        functional.normalize(units(4, seed=own).double(), dim=1) for own in (seed, seed + 1)
    )
    mixed = slerp(first, second, fraction)
    assert mixed.norm(dim=1) == pytest.approx(torch.ones(4), abs=1e-9)
    angle = (first * second).sum(1).clamp(-1, 1).acos()
    turned = (first * mixed).sum(1).clamp(-1, 1).acos()
    assert torch.allclose(turned, fraction * angle, atol=1e-6)


def test_slerp_ends_are_the_vectors_themselves() -> None:
    first, second = units(3), 5 * units(3, seed=1)
    assert torch.equal(slerp(first, second, 0.0), first)
    assert torch.equal(slerp(first, second, 1.0), second)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_slerp_of_equal_and_of_opposite_vectors_is_finite(fraction: float) -> None:
    first = units(3)
    assert torch.allclose(slerp(first, first, fraction), first, atol=1e-6)
    opposite = slerp(first, -first, fraction)
    assert torch.allclose(opposite.norm(dim=1), torch.ones(3), atol=1e-5)
    turned = (first * opposite).sum(1)
    assert torch.allclose(turned, torch.full((3,), math.cos(math.pi * fraction)), atol=1e-5)


def test_slerp_of_noise_keeps_the_length_that_a_straight_mixture_loses() -> None:
    first, second = seeded_noise([1], (3, 16, 16)), seeded_noise([2], (3, 16, 16))
    assert slerp(first, second, 0.5).std().item() == pytest.approx(1, abs=0.03)
    assert ((first + second) / 2).std().item() < 0.75


def test_slerp_refuses_what_does_not_mix() -> None:
    with pytest.raises(ValueError, match="do not mix"):
        slerp(units(2), units(3), 0.5)
    with pytest.raises(ValueError, match="fraction"):
        slerp(units(2), units(2), 1.5)


def test_text_difference_turns_towards_the_difference() -> None:
    picture, towards, away = units(2), units(2, seed=1), units(2, seed=2)
    assert torch.equal(text_difference(picture, towards, away, 0.0), picture)
    difference = functional.normalize(towards - away, dim=1)
    near = [
        (text_difference(picture, towards, away, part) * difference).sum(1).mean().item()
        for part in (0.0, 0.25, 0.5, 1.0)
    ]
    assert near == sorted(near)
    assert near[-1] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="no direction"):
        text_difference(picture, towards, towards, 0.3)


def test_outpainting_is_inpainting_of_a_larger_canvas() -> None:
    x0 = signs(48).view(1, 3, 4, 4)
    canvas, keep = on_canvas(x0, 6, 8, top=1, left=3)
    assert canvas.shape == (1, 3, 6, 8)
    assert torch.equal(canvas[:, :, 1:5, 3:7], x0)
    assert keep.sum().item() == 16
    assert bool(keep[0, 0, 1:5, 3:7].all())
    samples = HEAD.sample(
        mixture_predictor(DDPM),
        Context(),
        shape=(3, 6, 8),
        seeds=[0],
        sampler=NamedSampler("dpm++2m", 20),
        start=Start(canvas, keep=keep),
    )
    assert torch.equal(samples[:, :, 1:5, 3:7], x0)
    assert samples[0, 0, 0].abs().mean().item() > 0.5  # the border is filled in, not left zero


def test_a_picture_that_sticks_out_of_its_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 x 4 at \(3, 0\) do not lie within 6 x 6"):
        on_canvas(signs(48).view(1, 3, 4, 4), 6, 6, top=3, left=0)
