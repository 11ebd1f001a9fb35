from __future__ import annotations

import pytest
import torch

from rdm.models.first_stage.autoencoder import build_autoencoder
from rdm.models.first_stage.codebook import quantize
from rdm.recipes import first_stages, recipe_config
from rdm.training.objectives.autoencoder_config import AutoencoderObjectiveConfig

PARAMETERS = {
    "autoencoder-kl-f4": 1_557_207,
    "autoencoder-vq-f4": 1_557_791,
    "autoencoder-kl-f4-official": 55_312_063,
    "autoencoder-kl-f8-official": 83_653_863,
    "autoencoder-kl-f16-official": 69_610_963,
    "autoencoder-vq-f4-official": 55_322_782,
    "autoencoder-vq-f8-official": 67_717_295,
    "autoencoder-vq-f16-official": 69_593_371,
}


def first_stage(name: str) -> AutoencoderObjectiveConfig:
    objective = recipe_config(name).objective
    assert isinstance(objective, AutoencoderObjectiveConfig)
    return objective


def test_every_first_stage_has_a_recipe_and_a_size() -> None:
    assert set(first_stages.RECIPES) == set(PARAMETERS)


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_a_recipe_has_the_parameters_that_the_docs_state(name: str, expected: int) -> None:
    with torch.device("meta"):
        model = build_autoencoder(first_stage(name).network)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_names_say_kind_and_factor(name: str) -> None:
    network = first_stage(name).network
    _, kind, factor, *_ = name.split("-")
    assert (network.codebook_size is not None) == (kind == "vq")
    assert network.factor == int(factor.removeprefix("f"))


def test_vq_f4_official_is_rdms_first_stage() -> None:
    network = first_stage("autoencoder-vq-f4-official").network
    assert (network.codebook_size, network.latent_channels, network.codebook_dim) == (8192, 3, None)


def test_official_divergence_is_the_published_sum_over_a_picture() -> None:
    objective = first_stage("autoencoder-kl-f8-official")
    pixels, latents = 3 * 256**2, 4 * 32**2
    # Published: sum of |x - x^| over pixels + 1e-6 sum of KL over latents, both per picture; here
    # both as means.
    assert objective.kl_weight * pixels == pytest.approx(1e-6 * latents)


def test_official_codebook_terms_are_the_published_means() -> None:
    network = first_stage("autoencoder-vq-f16-official").network
    settings = first_stage("autoencoder-vq-f16-official").codebook
    z = torch.randn(2, network.latent_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    found = quantize(z, torch.zeros(1, network.latent_channels))
    loss = settings.weight * (found.codebook_loss + settings.commitment * found.commitment_loss)
    assert loss.item() == pytest.approx((0.25 + 1) * z.square().mean().item())
    assert settings.weight * settings.commitment * network.latent_channels == 1
    assert settings.revival_weight == 0


def test_embedded_vq_recipe_has_the_vocabulary_of_rarms_default_network() -> None:
    from rdm.models.token_predictor import TokenPredictorConfig

    assert (
        first_stage("autoencoder-vq-f4").network.codebook_size
        == TokenPredictorConfig().codebook_size
    )
