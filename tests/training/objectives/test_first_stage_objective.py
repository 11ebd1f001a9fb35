"""The terms of the first stages' loss as the objective puts them together, and whose gradients are
whose."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from rdm.errors import ModelError, TrainingError
from rdm.models.first_stage.autoencoder import AutoencoderConfig
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.first_stage.losses import adaptive_weight, root_mean_squared_error
from rdm.models.first_stage.patch_discriminator import generator_hinge_loss
from rdm.training.config import TrainConfig
from rdm.training.data.photographs import PhotoConfig
from rdm.training.engine.network_settings import prepare_networks
from rdm.training.objectives.augmentation import random_crops
from rdm.training.objectives.autoencoder_config import (
    AdversarialConfig,
    AutoencoderObjectiveConfig,
    CodebookConfig,
    PerceptualConfig,
)
from rdm.training.objectives.autoencoder_objective import AutoencoderObjective, open_training
from rdm.training.planning.cost import count_cost, training_case

KL = AutoencoderConfig(block_out_channels=(8, 8, 16), sample_size=16)
VQ = KL.model_copy(update={"codebook_size": 16})
LISTENED = AdversarialConfig(weight=0.5, channels=8, num_layers=1)


def config(**changes: Any) -> AutoencoderObjectiveConfig:
    fields = {
        "network": KL,
        "crop_size": 16,
        "photographs": PhotoConfig(image_size=16, held_out_fraction=0.3),
        "start": "random",
    }
    return AutoencoderObjectiveConfig(**{**fields, **changes})


def pictures(count: int = 6) -> NDArray[np.uint8]:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (
        (torch.nn.functional.interpolate(coarse, 16, mode="bilinear") * 255).to(torch.uint8).numpy()
    )


def objective(**changes: Any) -> AutoencoderObjective:
    return AutoencoderObjective(config(**changes), pictures())


def step(tested: AutoencoderObjective, seed: int = 0) -> dict[str, Tensor]:
    return tested({"images": torch.from_numpy(pictures())}, torch.Generator().manual_seed(seed))


def gradients(tested: AutoencoderObjective, loss: Tensor) -> dict[str, Tensor | None]:
    named = dict(tested.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def state_of(tested: AutoencoderObjective) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in tested.named_parameters()}


def test_the_discriminators_gradient_is_that_of_its_own_loss_alone() -> None:
    loud, quiet = (
        objective(adversarial=LISTENED),
        objective(adversarial=LISTENED.model_copy(update={"weight": 1e-30})),
    )
    found, expected = (gradients(tested, step(tested)["loss"]) for tested in (loud, quiet))
    own = [name for name in found if name.startswith("discriminator.")]
    assert own
    for name in own:
        one, other = found[name], expected[name]
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
        assert one.any()


def test_the_autoencoder_gets_nothing_of_the_discriminators_loss() -> None:
    unheard = AdversarialConfig(weight=1e-30, channels=8, num_layers=1)
    with_loss, without = objective(adversarial=unheard), objective()
    found, expected = (gradients(tested, step(tested)["loss"]) for tested in (with_loss, without))
    for name, gradient in expected.items():
        one = found[name]
        assert one is not None
        assert gradient is not None
        assert torch.allclose(one, gradient, rtol=1e-4, atol=1e-7), name


def test_the_autoencoders_gradient_is_that_of_the_published_loss() -> None:
    tested = objective(adversarial=LISTENED, kl_weight=0.0)
    found = gradients(tested, step(tested)["loss"])
    # Esser et al. 2021, equations 6 and 7, by autograd through the whole decoder.
    generator = torch.Generator().manual_seed(0)
    images = random_crops(torch.from_numpy(pictures()), tested.config.crop_size, generator)
    latents, _, _ = tested._encode(images, generator)
    decoded = tested._decode(latents)
    reconstruction = root_mean_squared_error(images, decoded).mean()
    assert tested.discriminator is not None
    fixed = {name: value.detach() for name, value in tested.discriminator.named_parameters()}
    adversarial = generator_hinge_loss(
        torch.func.functional_call(tested.discriminator, fixed, decoded)
    )
    last = tested.autoencoder.decoder.conv_out.weight
    by_last = [
        torch.autograd.grad(term, last, retain_graph=True)[0]
        for term in (reconstruction, adversarial)
    ]
    expected = gradients(tested, reconstruction + 0.5 * adaptive_weight(*by_last) * adversarial)
    for name, gradient in expected.items():
        if name.startswith("autoencoder."):
            one = found[name]
            assert one is not None
            assert gradient is not None
            assert torch.allclose(one, gradient, rtol=1e-3, atol=1e-6), name


def test_the_loss_is_the_sum_of_its_terms() -> None:
    tested = objective(
        adversarial=LISTENED, perceptual=PerceptualConfig(weight=0.25), kl_weight=0.5
    )
    found = {name: value.item() for name, value in step(tested).items()}
    assert found["loss"] == pytest.approx(
        found["reconstruction"]
        + 0.25 * found["perceptual"]
        + found["adversarial_weight"] * found["adversarial"]
        + found["discriminator"]
        + 0.5 * found["kl"],
        rel=1e-5,
    )


def test_the_discriminator_waits_for_its_start() -> None:
    tested = objective(adversarial=LISTENED.model_copy(update={"start_step": 3}))
    tested.step = 2
    waiting = step(tested)
    assert "discriminator" not in waiting
    assert all(
        gradient is None
        for name, gradient in gradients(tested, waiting["loss"]).items()
        if name.startswith("discriminator.")
    )
    tested.step = 3
    assert "discriminator" in step(tested)


def test_a_patch_larger_than_the_crop_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs a crop_size of 24"):
        config(adversarial=AdversarialConfig(weight=1.0, num_layers=3))


def test_l1_is_the_mean_absolute_error() -> None:
    tested = objective(reconstruction="l1")
    for parameter in (
        tested.autoencoder.decoder.conv_out.weight,
        tested.autoencoder.decoder.conv_out.bias,
    ):
        torch.nn.init.zeros_(parameter)
    expected = np.abs(pictures() / 127.5 - 1).mean()
    assert step(tested)["reconstruction"].item() == pytest.approx(expected, rel=1e-5)


def test_frozen_features_are_no_part_of_the_objective() -> None:
    tested = objective(perceptual=PerceptualConfig(weight=1.0))
    assert set(tested.state_dict()) == set(objective().state_dict())


@pytest.mark.parametrize("network", [KL, VQ])
def test_terms_are_computed_in_32_bits_under_autocast(network: AutoencoderConfig) -> None:
    tested = objective(
        network=network, adversarial=LISTENED, perceptual=PerceptualConfig(weight=0.1)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = step(tested)
    assert all(value.dtype == torch.float32 and bool(value.isfinite()) for value in found.values())
    found["loss"].backward()
    assert all(parameter.grad is not None for parameter in tested.parameters())


def test_every_parameter_of_a_vq_autoencoder_receives_a_gradient() -> None:
    tested = objective(network=VQ)
    step(tested)["loss"].backward()
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in tested.parameters()
    )


def test_the_codebooks_terms_are_weighed() -> None:
    settings = CodebookConfig(weight=2.0, commitment=0.5, revival_weight=0.125)
    found = {
        name: value.item() for name, value in step(objective(network=VQ, codebook=settings)).items()
    }
    codebook = 2 * (1 + 0.5) * found["quantization"] + 0.125 * found["revival"]
    assert found["loss"] == pytest.approx(found["reconstruction"] + codebook, rel=1e-5)


def test_usage_is_that_of_the_batch() -> None:
    tested = objective(network=VQ)
    torch.nn.init.constant_(tested.autoencoder.quantize.embedding.weight, 9.0)
    found = step(tested)
    assert found["codebook_used"].item() == 1 / 16
    assert found["codebook_perplexity"].item() == 1


def test_a_codebook_is_fitted_to_what_the_encoder_says(tmp_path: Path) -> None:
    for number, pixels in enumerate(pictures(count=40)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    _, tested = open_training(f"folder://{tmp_path}", config(network=VQ))
    assert step(tested)["codebook_used"].item() > 0.7
    assert step(objective(network=VQ))["codebook_used"].item() < 0.7


def test_too_few_photographs_for_the_codebook_are_a_training_error(tmp_path: Path) -> None:
    for number, pixels in enumerate(pictures(count=12)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(TrainingError, match="fewer than the 512 codebook rows"):
        open_training(
            f"folder://{tmp_path}", config(network=KL.model_copy(update={"codebook_size": 512}))
        )


def test_a_vq_autoencoder_goes_on_from_a_kl_autoencoder(tmp_path: Path) -> None:
    first = objective(start_seed=3)
    first.export(tmp_path, state_of(first))
    stage = load_autoencoder(str(tmp_path))
    second = objective(network=VQ, start_seed=4)
    second.start_from_first_stage(stage)
    images = torch.from_numpy(pictures())
    latents = second.autoencoder.encode(images / 127.5 - 1).latents
    mean = stage.encode_moments(images)[0]
    assert torch.allclose(latents, mean, atol=1e-5)
    decoded = second.autoencoder.decode(mean, force_not_quantize=True).sample
    assert torch.allclose(decoded, stage.model.decode(mean).sample, atol=1e-5)


def test_a_kl_autoencoder_does_not_go_on_from_a_vq_autoencoder(tmp_path: Path) -> None:
    first = objective(network=VQ)
    first.export(tmp_path, state_of(first))
    with pytest.raises(ModelError, match="another network"):
        objective().start_from_first_stage(load_autoencoder(str(tmp_path)))


@pytest.mark.parametrize("codebook_dim", [None, 8, 3])
def test_a_vq_autoencoder_starts_from_the_projection(codebook_dim: int | None) -> None:
    network = AutoencoderConfig(
        block_out_channels=(12, 16, 24),
        norm_num_groups=1,
        sample_size=16,
        codebook_size=64,
        codebook_dim=codebook_dim,
    )
    tested = objective(network=network, start="projection")
    tested.start_from_projection(pictures(count=24))
    tested.start_codebook(pictures(count=24))
    assert step(tested)["psnr_db"].item() > 16


def under(network: AutoencoderConfig, **settings: bool) -> tuple[float, dict[str, Tensor | None]]:
    """Return loss and gradients of an objective with every term whose networks are prepared by some
    settings."""
    tested = objective(
        network=network, adversarial=LISTENED, perceptual=PerceptualConfig(weight=0.1)
    )
    fixed = {
        "recipe": "ae",
        "objective": tested.config,
        "max_steps": 1,
        "batch_size": 2,
        "learning_rate": 1e-3,
    }
    prepare_networks(tested.networks, TrainConfig.model_validate({**fixed, **settings}))
    loss = step(tested, seed=1)["loss"]
    return loss.item(), gradients(tested, loss)


def same(
    found: tuple[float, dict[str, Tensor | None]], expected: tuple[float, dict[str, Tensor | None]]
) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in expected[1].items():
        one = found[1][name]
        assert one is not None
        assert gradient is not None
        assert torch.allclose(one, gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("network", [KL, VQ])
@pytest.mark.parametrize("setting", ["activation_checkpointing", "channels_last"])
def test_how_activations_are_kept_and_laid_out_changes_no_loss(
    network: AutoencoderConfig, setting: str
) -> None:
    same(under(network, **{setting: True}), under(network))


@pytest.mark.slow
@pytest.mark.timeout(600)
# torch's compiler hides this one itself
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_autoencoder_has_the_same_loss() -> None:
    few_blocks = AutoencoderConfig(block_out_channels=(8, 16), sample_size=16, codebook_size=16)
    same(under(few_blocks, compile=True), under(few_blocks))


@pytest.mark.slow
@pytest.mark.parametrize("network", [KL, VQ])
def test_checkpointing_keeps_fewer_activations(network: AutoencoderConfig) -> None:
    def activations(checkpointing: bool) -> int:
        case = partial(training_case, config(network=network), 2)
        return count_cost(case, checkpointing=checkpointing).activation_bytes  # pyright: ignore[reportArgumentType]

    assert activations(True) < 0.8 * activations(False)


@pytest.mark.parametrize("network", [KL, VQ])
def test_exported_is_the_autoencoder_alone(network: AutoencoderConfig, tmp_path: Path) -> None:
    tested = objective(
        network=network, adversarial=LISTENED, perceptual=PerceptualConfig(weight=0.1)
    )
    state = state_of(tested)
    tested.export(tmp_path, state)
    stage = load_autoencoder(str(tmp_path))
    assert (stage.codebook is not None) == (network is VQ)
    for name, value in stage.model.state_dict().items():
        assert torch.equal(value, state[f"autoencoder.{name}"].half().float()), name
    assert float(stage.encode(torch.from_numpy(pictures())).std()) == pytest.approx(1, abs=1e-4)


def test_previews_show_each_photograph_over_its_reconstruction(tmp_path: Path) -> None:
    tested = objective(adversarial=LISTENED)
    shown = tested.preview(state_of(tested), {"images": torch.from_numpy(pictures())})
    assert shown.shape == (6, 32, 16, 3)
    assert np.array_equal(shown[:, :16], pictures().transpose(0, 2, 3, 1))
    assert not np.array_equal(shown[:, 16:], shown[:, :16])
