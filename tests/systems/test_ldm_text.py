"""LDM from text: Stable Diffusion's own guidance and trajectory, masks that mask, and a caption
that is heard after a minute of training."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from rdm.compute import ComputeConfig, compute_pool
from rdm.context import Context, Part
from rdm.diffusion.gaussian_head import GaussianHead
from rdm.diffusion.guidance import Guidance
from rdm.diffusion.named_sampler import NamedSampler
from rdm.diffusion.samplers import seeded_noise
from rdm.diffusion.schedules import ScheduleConfig
from rdm.errors import UsageError
from rdm.evaluation.heldout import held_out_losses, held_out_rows
from rdm.generators.model_folder import open_model
from rdm.generators.sample_settings import SampleSettings
from rdm.models.unet import Denoiser, DenoiserConfig, build_denoiser
from rdm.recipes import recipe_config
from rdm.sampling.drawing.draw import draw
from rdm.sampling.request.sample_request import Request
from rdm.sampling.retrieval.look_up import look_up
from rdm.training.config import TrainInputs
from rdm.training.data.latent_cache import build_cache
from rdm.training.data.text_annotation import TextAnnotationConfig, annotate_text
from rdm.training.job.launch import run_training
from rdm.training.presets import cache_config

COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def toy_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    ).eval()


def toy_text_network() -> CLIPTextModel:
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        bos_token_id=38,
        eos_token_id=39,
        pad_token_id=39,
    )
    return CLIPTextModel(config).eval()


@torch.no_grad()
def test_latents_are_those_of_stable_diffusion_with_guidance() -> None:
    unet, text = toy_unet(), toy_text_network()
    said = text(torch.tensor([[38, 5, 9, 3, 39, 39, 39, 39, 39, 39]])).last_hidden_state
    empty = text(torch.tensor([[38, *[39] * 9]])).last_hidden_state
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    sizes = {"block_out_channels": (4,), "norm_num_groups": 2}
    pipeline = StableDiffusionPipeline(
        AutoencoderKL(**sizes),  # type: ignore[arg-type]
        text,
        None,  # type: ignore[arg-type]
        unet,
        scheduler,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt_embeds=said,
        negative_prompt_embeds=empty,
        latents=seeded_noise([7], (4, 8, 8)),
        guidance_scale=7.5,
        num_inference_steps=20,
        height=8,
        width=8,
        output_type="latent",
    ).images  # type: ignore[union-attr]
    schedule = ScheduleConfig(kind="sqrt_linear", beta_start=0.00085, beta_end=0.012)
    ours = GaussianHead(schedule.build()).sample(
        Denoiser(unet),
        Context(Part("text", "tokens", said, null=empty)),
        shape=(4, 8, 8),
        seeds=[7],
        sampler=NamedSampler(num_steps=20, eta=0.0),
        guidance=Guidance(7.5),
    )
    assert torch.allclose(ours, torch.as_tensor(theirs), rtol=1e-4, atol=1e-4)
    # Zeros are another null: guidance would go elsewhere.
    zeros = GaussianHead(schedule.build()).sample(
        Denoiser(unet),
        Context(Part("text", "tokens", said)),
        shape=(4, 8, 8),
        seeds=[7],
        sampler=NamedSampler(num_steps=20, eta=0.0),
        guidance=Guidance(7.5),
    )
    assert not torch.allclose(zeros, ours, atol=1e-2)


@torch.no_grad()
def test_a_mask_is_as_if_the_tokens_were_not_there() -> None:
    config = DenoiserConfig(
        block_out_channels=(16, 32),
        attention_levels=(True, True),
        norm_num_groups=8,
        head_dim=8,
        cross_attention_dim=12,
        sample_size=8,
    )
    torch.manual_seed(0)
    network = build_denoiser(config).eval()
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 16, 12)
    for length in (1, 5, 15):
        present = (torch.arange(16) < length).expand(2, 16)
        masked = network(x, t, Context(Part("text", "tokens", tokens, present)))
        without = network(x, t, Context(Part("text", "tokens", tokens[:, :length])))
        assert torch.allclose(masked, without, atol=1e-5)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    assert network(x, t, Context(Part("text", "tokens", tokens, nothing))).isfinite().all()


def test_a_network_of_another_width_is_refused() -> None:
    with pytest.raises(UsageError, match="states of minilm have 384 dimensions"):
        recipe_config("ldm-text-tiny").with_overrides(["objective.network.cross_attention_dim=512"])


def colored_tar(path: Path, count: int) -> None:
    """Write pictures of one color each, whose caption names it."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            name = list(COLORS)[number % len(COLORS)]
            noise = np.random.default_rng(number).normal(0, 12, (32, 32, 3))
            pixels = np.clip(np.array(COLORS[name]) + noise, 0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            captions = json.dumps({"captions": [f"a {name} picture", name]}).encode()
            for ending, data in (("png", buffer.getvalue()), ("json", captions)):
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_caption_is_heard_after_a_minute_of_training(tmp_path: Path) -> None:
    colored_tar(tmp_path / "colors.tar", 120)
    source, cache = f"webdataset://{tmp_path}/colors.tar", str(tmp_path / "cache")
    with compute_pool(ComputeConfig(dask="inline")) as pool:
        cached = cache_config(source).with_overrides(["resolution=32"])
        build_cache(cache, cached, pool)
        annotate_text(cache, TextAnnotationConfig(), pool)
    config = recipe_config("ldm-text-tiny").with_overrides(
        ["objective.network.sample_size=8", "max_steps=100", "batch_size=16", "num_ranks=1"]
    )
    run_training(config, TrainInputs(out=str(tmp_path / "run"), cache=cache))

    # What is held out is predicted better with its caption than with another's, or without.
    model = open_model(tmp_path / "run" / "model")
    result = held_out_losses(model, held_out_rows(model, cache, None), num_draws=8)
    assert all(one.mean > one.half_width for one in result.differences.values())

    # Pictures have the color that they are told.
    settings = SampleSettings(num_steps=20, guidance_scale=3.0)
    request = Request(texts=("a red picture", "blue"), seeds="0-3", settings=settings)
    means = draw(model, look_up(request, model.info, {}), settings).mean(axis=(1, 2))
    assert (means[:4, 0] > means[:4, 2] + 50).all()
    assert (means[4:, 2] > means[4:, 0] + 50).all()

    # A picture is no caption.
    with pytest.raises(UsageError, match="trained on text, so --image cannot"):
        look_up(Request(images=("a.png",)), model.info, {})
