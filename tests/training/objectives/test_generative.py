"""The objective of generators by itself: where its schedule lies, the grids that it draws, and
where it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_denoiser import SMALL_DENOISER

from rdm.diffusion.schedules import NoiseSchedule, ScheduleConfig
from rdm.errors import ModelError
from rdm.generators.heads import DiffusionHead, GaussianConfig
from rdm.generators.model_folder import open_conditions, open_space
from rdm.generators.provenance import Provenance
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.unet import build_denoiser
from rdm.training.objectives.generative import GenerativeConfig, GenerativeObjective


def objective(num_timesteps: int = 1000) -> GenerativeObjective:
    head = GaussianConfig(schedule=ScheduleConfig(num_timesteps=num_timesteps))
    config = GenerativeConfig(network=SMALL_DENOISER, head=head)
    space = open_space(
        config.space, load_autoencoder("assets://autoencoder-kl-f4"), SMALL_DENOISER.sample_shape
    )
    return GenerativeObjective(config, Provenance(), space, open_conditions(config))


def schedule_of(tested: torch.nn.Module) -> NoiseSchedule:
    assert isinstance(tested, GenerativeObjective)
    assert isinstance(tested.generator.head, DiffusionHead)
    return tested.generator.head.process.schedule


def test_the_schedule_moves_with_the_weights() -> None:
    assert schedule_of(objective().to("meta")).alphas_cumprod.device.type == "meta"
    within = torch.nn.ModuleList([objective()]).to("meta")[0]
    assert schedule_of(within).betas.device.type == "meta"


def test_the_schedule_stays_in_64_bits_when_the_weights_are_cast() -> None:
    assert schedule_of(objective().half()).alphas_cumprod.dtype == torch.float64


def test_a_schedule_of_few_steps_draws_grids_too() -> None:
    tested = objective(num_timesteps=10)
    batch = {"moments": torch.zeros(2, 8, 8, 8), "neighbors": torch.zeros(2, 4, 12)}
    assert tested.preview(dict(tested.named_parameters()), batch).shape == (2, 32, 32, 3)


def test_training_goes_on_from_a_models_weights(tmp_path: Path) -> None:
    first, second = objective(), objective()
    first.generator.network.core.save_pretrained(str(tmp_path / "network"), safe_serialization=True)
    second.start_from_model(str(tmp_path))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_model_of_other_sizes_is_no_start(tmp_path: Path) -> None:
    other = build_denoiser(SMALL_DENOISER.model_copy(update={"vector_dim": 12}))
    other.unet.save_pretrained(str(tmp_path / "network"), safe_serialization=True)
    with pytest.raises(ModelError, match="another network"):
        objective().start_from_model(str(tmp_path))
