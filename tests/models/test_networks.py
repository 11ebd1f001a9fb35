"""The union of networks: each kind built, saved and opened the same way; DDPM's official one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from pydantic import TypeAdapter
from small_denoiser import SMALL_DENOISER, SMALL_PIXELS

from rdm.context import Context
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.samplers import AncestralVariance, seeded_noise
from rdm.diffusion.schedules import ScheduleConfig
from rdm.errors import ModelError
from rdm.models.networks import (
    NetworkConfig,
    build_network,
    load_network,
    network_with,
    save_network,
)
from rdm.models.token_predictor import TokenPredictorConfig
from rdm.models.unet import num_parameters
from rdm.recipes import recipe_config

DDPM_PIXELS = SMALL_PIXELS.model_copy(update={"ddpm_details": True})
PREDICTOR = TokenPredictorConfig(
    codebook_size=8, side=2, num_layers=1, num_heads=1, width=8, cross_attention_dim=12
)
NETWORKS = (SMALL_DENOISER, DDPM_PIXELS, PREDICTOR)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.kind)
def test_a_network_opens_as_it_was_saved(config: NetworkConfig, tmp_path: Path) -> None:
    network = build_network(config)
    save_network(network, tmp_path)
    opened = load_network(tmp_path, config).state_dict()
    assert all(torch.equal(value, opened[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.kind)
def test_a_network_is_made_of_its_parameters(config: NetworkConfig) -> None:
    network = build_network(config)
    again = network_with(config, dict(network.named_parameters())).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())


def test_parameters_of_another_network_are_refused() -> None:
    parameters = dict(build_network(DDPM_PIXELS).named_parameters())
    parameters.pop("unet.conv_in.weight")
    with pytest.raises(RuntimeError, match="weights of another network"):
        network_with(DDPM_PIXELS, parameters)


@pytest.mark.parametrize("config", NETWORKS, ids=lambda config: config.kind)
def test_a_kind_finds_its_configuration(config: NetworkConfig) -> None:
    assert TypeAdapter(NetworkConfig).validate_python(config.model_dump()) == config


def test_a_folder_without_a_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no denoiser here"):
        load_network(tmp_path, DDPM_PIXELS)


def test_a_network_without_context_refuses_one() -> None:
    with pytest.raises(ValueError, match="reads no context, but the context sets tokens"):
        build_network(DDPM_PIXELS)(
            torch.zeros(1, 3, 8, 8),
            torch.zeros(1, dtype=torch.int64),
            Context(tokens=torch.zeros(1, 1, 4)),
        )


def test_ddpm_cifar_has_the_official_number_of_parameters() -> None:
    objective = recipe_config("ddpm-cifar").objective
    assert objective.kind == "generative"
    with torch.device("meta"):
        assert num_parameters(build_network(objective.network)) == 35_746_307


@pytest.mark.parametrize(
    ("variance", "name"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
)
def test_the_folder_opens_in_diffusers_pipeline_and_draws_what_we_draw(
    variance: AncestralVariance, name: Literal["fixed_small", "fixed_large"], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = build_network(DDPM_PIXELS).eval()
    save_network(network, tmp_path)
    schedule = ScheduleConfig(kind="linear", num_timesteps=10, beta_start=1e-4, beta_end=0.02)
    scheduler = DDPMScheduler(10, 1e-4, 0.02, variance_type=name, clip_sample=False)
    pipeline = DDPMPipeline(UNet2DModel.from_pretrained(str(tmp_path)), scheduler)

    head = GaussianHead(schedule.build())
    sampler = NamedSampler("ddpm", 10, variance=variance)
    ours = head.sample(network, Context(), shape=(3, 8, 8), seeds=[1, 2], sampler=sampler)

    x = seeded_noise([1, 2], (3, 8, 8))
    for step, t in enumerate(range(9, -1, -1), start=1):
        with torch.no_grad():
            eps = pipeline.unet(x, t).sample
        moved: Any = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        # their noise is of a generator: ours instead
        deviation = scheduler._get_variance(t) ** 0.5 if t else 0.0
        x = (
            moved.prev_sample
            - deviation * noise
            + (deviation * seeded_noise([1, 2], (3, 8, 8), step) if t else 0.0)
        )
    assert torch.allclose(ours, x, atol=1e-5)


def test_a_class_conditional_network_reads_the_class_and_a_zero_vector_as_none() -> None:
    config = SMALL_PIXELS.model_copy(update={"num_classes": 3})
    torch.manual_seed(0)
    network = build_network(config).eval()
    assert config.vector_dim == 3
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    one_hot = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        ours = network(x, t, Context(vector=one_hot))
        theirs = network.core(x, t, class_labels=torch.tensor([1, 3])).sample
    assert torch.equal(ours, theirs)


def test_a_class_conditional_network_needs_its_vector() -> None:
    network = build_network(SMALL_PIXELS.model_copy(update={"num_classes": 3}))
    with pytest.raises(ValueError, match="needs the context's vector"):
        network(torch.randn(1, 3, 8, 8), torch.tensor([3]), Context())
