"""What belongs together in a system, and what its settings do."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from small_denoiser import SMALL_DENOISER, SMALL_PIXELS

from rdm.context import Context
from rdm.diffusion.editing import Start
from rdm.diffusion.sampler_names import SAMPLERS, SamplerName
from rdm.diffusion.schedules import ScheduleConfig
from rdm.errors import UsageError
from rdm.generators.conditions import Conditions, Known, LabelConfig, NeighborsConfig
from rdm.generators.generator import Generator, GeneratorConfig
from rdm.generators.heads import (
    AutoregressiveConfig,
    AutoregressiveHead,
    GaussianConfig,
    Steering,
)
from rdm.generators.sample_settings import DrawStep, SampleSettings
from rdm.generators.spaces import PixelsConfig, PixelSpace, TokensConfig
from rdm.models.token_predictor import TokenPredictorConfig


def on_pixels() -> Generator:
    torch.manual_seed(0)
    head = GaussianConfig(schedule=ScheduleConfig(num_timesteps=20))
    config = GeneratorConfig(
        network=SMALL_PIXELS, space=PixelsConfig(), conditions=Conditions(), head=head
    )
    return Generator(config, PixelSpace(), ()).eval()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"network": SMALL_PIXELS}, "reads no tokens, but those of the conditions are: neighbors"),
        (
            {"network": SMALL_DENOISER, "conditions": Conditions()},
            "reads tokens, but those of the conditions are: none",
        ),
        ({"network": TokenPredictorConfig()}, "do not belong together"),
        ({"network": SMALL_DENOISER, "space": TokensConfig()}, "do not belong together"),
        ({"network": SMALL_DENOISER, "head": AutoregressiveConfig()}, "do not belong together"),
        (
            {"conditions": Conditions(neighbors=NeighborsConfig(mean_vector=True))},
            "a vector of 512 numbers, the unet reads none",
        ),
        (
            {"network": SMALL_DENOISER, "conditions": Conditions(label=LabelConfig(num_classes=3))},
            "reads tokens, but those of the conditions are: none",
        ),
        (
            {
                "network": SMALL_PIXELS.model_copy(update={"num_classes": 4}),
                "space": PixelsConfig(),
                "conditions": Conditions(label=LabelConfig(num_classes=3)),
            },
            "a vector of 3 numbers, the unconditional-unet reads 4",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GeneratorConfig.model_validate(parts)


def test_a_system_on_pixels_has_a_loss_for_each_sample() -> None:
    batch = {"pixels": torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)}
    first, again, other = (
        on_pixels().loss(batch, torch.Generator().manual_seed(seed)).values for seed in (1, 1, 2)
    )
    assert first.shape == (3,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_a_picture_depends_on_its_own_seed_with_either_sampler(sampler: str) -> None:
    generator = on_pixels()
    settings = SampleSettings.model_validate({"sampler": sampler, "num_steps": 4})
    together = generator.sample(generator.context([Known()] * 3), [5, 6, 7], settings)
    alone = generator.sample(generator.context([Known()]), [6], settings)
    assert together.shape == (3, 3, 8, 8)
    assert torch.allclose(together[1], alone[0], atol=2e-2)  # 16 bits where that is faster


def test_every_step_of_ancestral_sampling_is_told() -> None:
    generator, told = on_pixels(), list[DrawStep]()
    generator.sample(
        generator.context([Known()]),
        [1],
        SampleSettings(sampler="ddpm", num_steps=5),
        told.append,
    )
    assert [(step.index, step.total) for step in told] == [(number, 5) for number in range(1, 6)]
    assert told[0].preview().shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_steps": 21}, "21 steps, but the model has 20 timesteps"),
        (
            {"sampler": "ddim", "spacing": "karras", "num_steps": 20},
            "20 steps, but the model has 20 timesteps",
        ),
    ],
)
def test_steps_that_a_sampler_cannot_take_are_refused(
    settings: dict[str, object], words: str
) -> None:
    generator = on_pixels()
    with pytest.raises(UsageError, match=words):
        generator.sample(generator.context([Known()]), [1], SampleSettings.model_validate(settings))


def test_the_settings_that_act_are_those_of_the_sampler() -> None:
    generator = on_pixels()
    ddim, ancestral = (
        set(generator.acting(SampleSettings.model_validate({"sampler": sampler})))
        for sampler in ("ddim", "ancestral")
    )
    assert ddim - ancestral == {"eta"}
    assert ancestral - ddim == {"variance"}
    assert "k" not in ddim


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_from_a_network(sampler: SamplerName) -> None:
    generator, told = on_pixels(), list[DrawStep]()
    settings = SampleSettings(sampler=sampler, num_steps=4, thresholding="static")
    together = generator.sample(generator.context([Known()] * 2), [5, 6], settings, told.append)
    alone = generator.sample(generator.context([Known()]), [6], settings)
    assert [(step.index, step.total) for step in told] == [(number, 4) for number in range(1, 5)]
    assert torch.allclose(together[1], alone[0], atol=5e-2)  # 16 bits where that is faster
    assert not torch.allclose(together[0], together[1], atol=5e-2)


@pytest.mark.parametrize("thresholding", ["static", "dynamic"])
def test_pixels_are_bounded_and_latents_refused(
    thresholding: Literal["static", "dynamic"],
) -> None:
    generator, settings = on_pixels(), SampleSettings(num_steps=4, thresholding=thresholding)
    seen = list[float]()
    generator.head.sample(
        lambda x, t, context: -30 * x,
        generator.context([Known()]),
        (3, 8, 8),
        [1],
        settings,
        lambda index, total, x0: seen.append(x0.abs().max().item()),
    )
    assert max(seen) <= 1 + 1e-6
    assert generator.acting(settings)["thresholding"] == thresholding

    torch.manual_seed(0)
    config = GeneratorConfig(network=SMALL_DENOISER)
    latents = Generator(config, PixelSpace(), ())
    with pytest.raises(UsageError, match="latents have no known range"):
        latents.sample(latents.config.zero_context(1), [1], settings)


def test_a_variance_that_no_recipe_teaches_is_refused() -> None:
    generator = on_pixels()
    settings = SampleSettings(sampler="ddpm", variance="learned", num_steps=4)
    with pytest.raises(UsageError, match="has not learned a variance") as error:
        generator.sample(generator.context([Known()]), [1], settings)
    assert error.value.fix == "variance=posterior or variance=beta"


def test_a_scale_for_a_source_that_the_model_does_not_read_is_refused() -> None:
    torch.manual_seed(0)
    latents = Generator(GeneratorConfig(network=SMALL_DENOISER), PixelSpace(), ())
    settings = SampleSettings(num_steps=2, guidance_scales={"text": 3.0})
    with pytest.raises(UsageError, match="a guidance scale for text, but the model reads: nei"):
        latents.head.sample(
            latents.network, latents.config.zero_context(1), (4, 8, 8), [1], settings
        )


def test_tokens_take_no_start_and_no_weaker_model() -> None:
    for steering, words in (
        (Steering(weaker=object()), "there is no autoguidance"),
        (Steering(start=Start()), "there is no start from a picture"),
    ):
        with pytest.raises(UsageError, match=words):
            AutoregressiveHead().sample(
                None, Context(), (4,), [1], SampleSettings(), steering=steering
            )


def test_settings_that_came_later_are_recorded_where_they_act() -> None:
    generator = on_pixels()
    later = {"spacing", "thresholding", "guidance_scales", "autoguidance"}
    assert not later & set(generator.acting(SampleSettings()))
    acting = generator.acting(SampleSettings(spacing="karras", sampler="heun"))
    assert acting["spacing"] == "karras"
    assert not {"eta", "variance"} & set(acting)
