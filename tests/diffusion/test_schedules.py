from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given
from pydantic import ValidationError
from torch import Tensor

from rdm.diffusion import schedules
from rdm.diffusion.schedules import (
    NoiseSchedule,
    ScheduleConfig,
    ScheduleKind,
    TimestepConfig,
    ancestral_timesteps,
    ddim_timesteps,
    gather,
    karras_timesteps,
    linspace_timesteps,
    rdm,
    trailing_timesteps,
)

PRESETS = [
    schedules.ddpm_linear,
    schedules.rdm,
    schedules.rdm_768,
    schedules.stable_diffusion,
    schedules.cosine,
]


@pytest.mark.parametrize(
    ("preset", "alpha_bar_end"),
    [
        (schedules.ddpm_linear, 0.00635282**2),
        (schedules.rdm, 1.423e-4),
        (schedules.rdm_768, 8.13e-4),
        (schedules.stable_diffusion, 4.660e-3),
        (schedules.cosine, 2.43e-9),
    ],
)
def test_preset_ends_at_its_known_level(
    preset: Callable[[], ScheduleConfig], alpha_bar_end: float
) -> None:
    assert preset().build().alpha_bars[-1] == pytest.approx(alpha_bar_end, rel=1e-3)


def test_ddpm_prior_signal_and_variance() -> None:
    alpha_bar = schedules.ddpm_linear().build().alpha_bars[-1]
    assert alpha_bar**0.5 == pytest.approx(0.00635282, abs=5e-9)
    assert 1 - alpha_bar == pytest.approx(0.9999596, abs=5e-8)


def test_super_resolution_schedule_ends_at_its_known_level() -> None:
    config = ScheduleConfig(kind="linear", num_timesteps=2000, beta_start=1e-6, beta_end=1e-2)
    assert config.build().alpha_bars[-1] == pytest.approx(4.39e-5, rel=2e-3)


@pytest.mark.parametrize("kind", ["linear", "sqrt_linear", "quadratic", "sigmoid"])
def test_betas_run_from_start_to_end(kind: ScheduleKind) -> None:
    betas = ScheduleConfig(kind=kind, beta_start=1e-4, beta_end=0.02).build().betas
    ends = {"sigmoid": 5e-5}.get(kind, 1e-12)  # the sigmoid is cut off at +-6
    assert betas[0].item() == pytest.approx(1e-4, abs=ends)
    assert betas[-1].item() == pytest.approx(0.02, abs=ends)


def test_quadratic_is_another_name_of_sqrt_linear() -> None:
    assert torch.equal(
        ScheduleConfig(kind="quadratic").build().betas,
        ScheduleConfig(kind="sqrt_linear").build().betas,
    )


def test_sqrt_linear_is_linear_in_the_root() -> None:
    steps = schedules.rdm().build().betas.sqrt().diff()
    assert torch.allclose(steps, steps[0].expand_as(steps), rtol=1e-9)


def test_sigmoid_is_symmetric_about_its_middle() -> None:
    betas = ScheduleConfig(kind="sigmoid", beta_start=1e-4, beta_end=0.02).build().betas
    assert torch.allclose(betas + betas.flip(0), torch.full_like(betas, 0.0201), rtol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_alpha_bar_falls_and_its_shift_starts_at_one(preset: Callable[[], ScheduleConfig]) -> None:
    schedule = preset().build()
    assert schedule.alphas_cumprod.dtype == torch.float64
    assert bool((schedule.alphas_cumprod.diff() < 0).all())
    assert schedule.alphas_cumprod_prev[0] == 1
    assert torch.equal(schedule.alphas_cumprod_prev[1:], schedule.alphas_cumprod[:-1])


def test_schedule_moves_to_a_device_in_full_precision() -> None:
    moved = schedules.rdm().build().to("meta")
    assert (moved.betas.device.type, moved.alphas_cumprod.dtype) == ("meta", torch.float64)


def test_gather_never_loses_precision_to_a_small_dtype() -> None:
    schedule = schedules.rdm().build()
    picked = gather(
        schedule.alphas_cumprod, torch.tensor([3, 5]), torch.zeros(2, 4, 8, 8, dtype=torch.bfloat16)
    )
    assert picked.shape == (2, 1, 1, 1)
    assert picked.dtype == torch.float32


@pytest.mark.parametrize("betas", [[0.0, 0.1], [0.5, 1.0], [[0.1]]])
def test_betas_outside_the_open_interval_are_refused(
    betas: list[float] | list[list[float]],
) -> None:
    with pytest.raises(ValueError, match="strictly between"):
        NoiseSchedule.from_betas(torch.tensor(betas))


@pytest.mark.parametrize(
    "fields", [{"beta_start": 0.1, "beta_end": 0.01}, {"num_timesteps": 1}, {"kind": "sqrt"}]
)
def test_impossible_config_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScheduleConfig(**fields)


def test_ddim_timesteps_follow_the_latent_diffusion_rule() -> None:
    assert ddim_timesteps(1000, 100).tolist() == list(range(1, 1000, 10))
    assert ddim_timesteps(1000, 50).tolist() == list(range(1, 1000, 20))


def test_ddim_timesteps_of_every_level_leave_out_the_one_that_does_not_exist() -> None:
    assert ddim_timesteps(1000, 1000).tolist() == list(range(1, 1000))


def test_linspace_timesteps_end_at_the_noisiest_level() -> None:
    assert linspace_timesteps(1000, 10).tolist() == [
        100,
        200,
        300,
        400,
        500,
        599,
        699,
        799,
        899,
        999,
    ]
    assert linspace_timesteps(1000, 999).tolist() == list(range(1, 1000))


def test_ancestral_timesteps_span_all_levels() -> None:
    assert ancestral_timesteps(1000, 1000).tolist() == list(range(1000))
    assert ancestral_timesteps(1000, 4).tolist() == [0, 333, 666, 999]


@given(st.integers(3, 1200), st.data())
def test_timesteps_rise_within_the_schedule(num_train: int, data: st.DataObject) -> None:
    num_steps = data.draw(st.integers(2, num_train - 1))
    for rule, exact in (
        (ddim_timesteps, False),
        (linspace_timesteps, True),
        (ancestral_timesteps, True),
    ):
        timesteps = rule(num_train, num_steps)
        assert bool((timesteps.diff() > 0).all())
        assert 0 <= timesteps[0] <= timesteps[-1] < num_train
        assert len(timesteps) == num_steps if exact else len(timesteps) >= num_steps


@pytest.mark.parametrize("rule", [ddim_timesteps, linspace_timesteps, ancestral_timesteps])
@pytest.mark.parametrize("num_steps", [-1, 0, 1001])
def test_impossible_number_of_steps_is_refused(
    rule: Callable[[int, int], Tensor], num_steps: int
) -> None:
    with pytest.raises(ValueError, match="steps"):
        rule(1000, num_steps)


def test_probabilities_of_timesteps_sum_to_one_and_spread_as_asked() -> None:
    schedule = rdm().build()
    drawn = TimestepConfig(
        kind="log_snr_normal", mean=0.4, std=2.0, uniform_share=0.0
    ).probabilities(schedule)
    assert drawn is not None
    log_snr = torch.logit(schedule.alphas_cumprod)
    assert drawn.sum().item() == pytest.approx(1, abs=1e-12)
    assert (drawn * log_snr).sum().item() == pytest.approx(0.4, abs=0.01)
    assert ((drawn * log_snr.square()).sum() - 0.4**2).sqrt().item() == pytest.approx(2.0, abs=0.03)


def test_every_timestep_keeps_its_uniform_share() -> None:
    drawn = TimestepConfig(kind="log_snr_normal", std=0.1, uniform_share=0.2).probabilities(
        rdm().build()
    )
    assert drawn is not None
    assert drawn.min().item() == pytest.approx(0.2 / 1000)


def test_uniform_timesteps_need_no_probabilities() -> None:
    assert TimestepConfig().probabilities(rdm().build()) is None


def test_trailing_timesteps_end_at_the_noisiest_level_at_equal_distances() -> None:
    assert trailing_timesteps(1000, 4).tolist() == [249, 499, 749, 999]
    assert trailing_timesteps(1000, 1).tolist() == [999]
    assert trailing_timesteps(10, 10).tolist() == list(range(10))


def test_trailing_timesteps_are_those_of_diffusers() -> None:
    for num_steps in (3, 7, 20, 30, 50):
        reference = DDIMScheduler(timestep_spacing="trailing")
        reference.set_timesteps(num_steps)
        assert trailing_timesteps(1000, num_steps).flip(0).tolist() == reference.timesteps.tolist()


@pytest.mark.parametrize("preset", [schedules.rdm, schedules.ddpm_linear, schedules.cosine])
@pytest.mark.parametrize("num_steps", [2, 5, 20, 100, 700, 1000])
def test_karras_timesteps_rise_from_the_cleanest_to_the_noisiest_level(
    preset: Callable[[], ScheduleConfig], num_steps: int
) -> None:
    timesteps = karras_timesteps(preset().build(), num_steps)
    assert len(timesteps) == num_steps
    assert (timesteps[0].item(), timesteps[-1].item()) == (0, 999)
    assert bool((timesteps.diff() > 0).all())


def test_karras_levels_are_even_in_the_seventh_root() -> None:
    schedule = schedules.rdm().build()
    levels = schedule.alphas_cumprod[karras_timesteps(schedule, 12)]
    roots = ((1 - levels) / levels).sqrt() ** (1 / 7)
    # Each level is that of a whole timestep, and a step of the schedule is not nothing.
    assert torch.allclose(roots.diff(), roots.diff().mean(), rtol=0.1)


def test_karras_spacing_in_one_step_is_the_noisiest_level() -> None:
    assert karras_timesteps(schedules.rdm().build(), 1).tolist() == [999]
