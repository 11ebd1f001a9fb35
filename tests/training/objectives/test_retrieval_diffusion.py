"""RDM's objective by itself: where its schedule lies, and the grids that it draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_denoiser import SMALL_DENOISER

from rdm.diffusion.schedules import ScheduleConfig
from rdm.errors import ModelError
from rdm.models.unet import build_denoiser
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig, RetrievalDiffusionObjective


def objective(num_timesteps: int = 1000) -> RetrievalDiffusionObjective:
    config = RetrievalDiffusionConfig(denoiser=SMALL_DENOISER, schedule=ScheduleConfig(num_timesteps=num_timesteps))
    return RetrievalDiffusionObjective(config, {"autoencoder": "assets://autoencoder-kl-f4"}, (0.0, 1.0))


def test_the_schedule_moves_with_the_weights() -> None:
    assert objective().to("meta").head.schedule.alphas_cumprod.device.type == "meta"
    within = torch.nn.ModuleList([objective()]).to("meta")[0]
    assert isinstance(within, RetrievalDiffusionObjective)
    assert within.head.schedule.betas.device.type == "meta"


def test_the_schedule_stays_in_64_bits_when_the_weights_are_cast() -> None:
    assert objective().half().head.schedule.alphas_cumprod.dtype == torch.float64


def test_a_schedule_of_few_steps_draws_grids_too() -> None:
    tested = objective(num_timesteps=10)
    batch = {"moments": torch.zeros(2, 8, 8, 8), "neighbors": torch.zeros(2, 4, 12)}
    assert tested.preview(dict(tested.named_parameters()), batch).shape == (2, 32, 32, 3)


def test_training_goes_on_from_a_models_weights(tmp_path: Path) -> None:
    first, second = objective(), objective()
    first.denoiser.unet.save_pretrained(str(tmp_path / "denoiser"), safe_serialization=True)
    second.start_from_model(str(tmp_path))
    pairs = zip(first.denoiser.parameters(), second.denoiser.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_model_of_other_sizes_is_no_start(tmp_path: Path) -> None:
    other = build_denoiser(SMALL_DENOISER.model_copy(update={"vector_dim": 12}))
    other.unet.save_pretrained(str(tmp_path / "denoiser"), safe_serialization=True)
    with pytest.raises(ModelError, match="another network"):
        objective().start_from_model(str(tmp_path))
