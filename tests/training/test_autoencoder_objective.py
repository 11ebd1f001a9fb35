from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from rdm.errors import ModelError
from rdm.generators.provenance import Provenance
from rdm.models.first_stage.autoencoder import AutoencoderConfig
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.training.data.photographs import PhotoConfig
from rdm.training.objectives.autoencoder_config import (
    AutoencoderObjectiveConfig,
    EquivarianceConfig,
)
from rdm.training.objectives.autoencoder_objective import AutoencoderObjective, open_training

VQ_NETWORK = AutoencoderConfig(block_out_channels=(8, 8, 16), sample_size=16, codebook_size=8)


def config(**changes: object) -> AutoencoderObjectiveConfig:
    fields = {
        "network": AutoencoderConfig(block_out_channels=(8, 8, 16), sample_size=16),
        "crop_size": 16,
        "photographs": PhotoConfig(image_size=16, held_out_fraction=0.3),
        "start": "random",
    }
    return AutoencoderObjectiveConfig(**{**fields, **changes})  # type: ignore[arg-type]


def pictures(count: int = 6, side: int = 16) -> NDArray[np.uint8]:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (
        (torch.nn.functional.interpolate(coarse, side, mode="bilinear") * 255)
        .to(torch.uint8)
        .numpy()
    )


def objective(**changes: object) -> AutoencoderObjective:
    return AutoencoderObjective(config(**changes), pictures())


def step(tested: AutoencoderObjective, seed: int = 0, side: int = 16) -> dict[str, Tensor]:
    return tested(
        {"images": torch.from_numpy(pictures(side=side))}, torch.Generator().manual_seed(seed)
    )


def zero(module: nn.Module | None) -> None:
    assert module is not None
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def trainable(tested: AutoencoderObjective) -> dict[str, Tensor]:
    return {
        name: parameter.detach()
        for name, parameter in tested.named_parameters()
        if parameter.requires_grad
    }


def test_loss_is_reconstruction_plus_weighted_kl() -> None:
    metrics = step(objective(kl_weight=0.25))
    expected = metrics["reconstruction"].item() + 0.25 * metrics["kl"].item()
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_psnr_of_a_gray_answer_is_that_of_the_pictures_themselves() -> None:
    tested = objective()
    zero(tested.autoencoder.decoder.conv_out)
    signed = pictures() / 127.5 - 1
    expected = (-10 * np.log10((signed**2).mean((1, 2, 3)) / 4)).mean()
    metrics = step(tested)
    root = np.sqrt((signed**2).mean((1, 2, 3)) + 1e-6).mean()
    assert metrics["psnr_db"].item() == pytest.approx(expected, abs=1e-4)
    assert metrics["reconstruction"].item() == pytest.approx(root, rel=1e-5)


def test_kl_of_a_standard_normal_posterior_is_zero() -> None:
    tested = objective()
    zero(tested.autoencoder.quant_conv)
    assert step(tested)["kl"].item() == 0


def test_a_step_is_a_function_of_its_seed() -> None:
    tested = objective(crop_size=8)
    first, again, other = (step(tested, seed)["loss"].item() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_fresh_weights_are_a_function_of_the_start_seed() -> None:
    first, again, other = (trainable(objective(start_seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_an_objective_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    objective()
    assert torch.equal(torch.rand(1), expected)


def test_every_parameter_receives_a_gradient() -> None:
    tested = objective()
    step(tested)["loss"].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for parameter in tested.parameters()
    )


def test_a_crop_larger_than_the_photographs_is_refused() -> None:
    with pytest.raises(ValidationError, match="exceeds photographs.image_size 16"):
        config(crop_size=32)


def test_photographs_that_cannot_be_encoded_whole_are_refused() -> None:
    with pytest.raises(
        ValidationError, match="photographs.image_size 18 is no multiple of the factor 4"
    ):
        config(photographs=PhotoConfig(image_size=18))


def test_a_network_without_room_cannot_start_from_the_projection() -> None:
    with pytest.raises(ValidationError, match="start=projection"):
        config(start="projection")


def test_export_writes_the_given_weights_in_float16_with_unit_variance_latents(
    tmp_path: Path,
) -> None:
    tested = objective()
    state = {name: value + 0.01 for name, value in trainable(tested).items()}
    tested.export(tmp_path, state)
    opened = load_autoencoder(str(tmp_path))
    assert float(opened.encode(torch.from_numpy(pictures())).std()) == pytest.approx(1, abs=1e-4)
    for name, value in opened.model.state_dict().items():
        assert torch.equal(value, state[f"autoencoder.{name}"].half().float()), name


def test_export_leaves_the_training_weights_alone(tmp_path: Path) -> None:
    tested = objective()
    before = {name: value.clone() for name, value in trainable(tested).items()}
    tested.export(
        tmp_path, {name: torch.zeros_like(value) + 0.01 for name, value in before.items()}
    )
    assert all(torch.equal(value, before[name]) for name, value in trainable(tested).items())


def test_training_from_the_projection_starts_above_gray_and_improves(tmp_path: Path) -> None:
    for number, pixels in enumerate(pictures(count=24)):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / f"{number}.png")
    small = config(
        network=AutoencoderConfig(
            block_out_channels=(12, 16, 24), norm_num_groups=1, sample_size=16
        ),
        start="projection",
    )
    data, tested = open_training(f"folder://{tmp_path}", small)
    images = {"images": torch.from_numpy(data.load_shard(0)["images"])}
    optimizer = torch.optim.AdamW(tested.parameters(), 1e-3)
    psnr = []
    for number in range(30):
        metrics = tested(images, torch.Generator().manual_seed(number))
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
        psnr.append(metrics["psnr_db"].item())
    assert psnr[0] > 18
    assert psnr[-1] > psnr[0] + 1


def test_what_is_held_out_calibrates_and_does_not_train(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    data, tested = open_training(f"folder://{tmp_path}", config())
    seen = set(data.load_shard(0)["images"][:, 0, 0, 0].tolist())
    held_out = set(tested.calibration[:, 0, 0, 0].tolist())
    assert seen | held_out == set(range(20))
    assert not seen & held_out


def test_a_run_records_which_photographs_it_learns_from(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
    source = f"folder://{tmp_path}"
    data, tested = open_training(source, config())
    assert tested.provenance == Provenance(source=source, photographs_digest=data.digest)


def test_training_goes_on_from_an_exported_first_stage(tmp_path: Path) -> None:
    first = objective(start_seed=3)
    first.export(tmp_path, trainable(first))
    second = objective(start_seed=4)
    second.start_from_first_stage(load_autoencoder(str(tmp_path)))
    expected = trainable(first)
    assert all(
        torch.equal(value, expected[name].half().float())
        for name, value in trainable(second).items()
    )


def test_a_first_stage_of_another_shape_cannot_be_gone_on_from(tmp_path: Path) -> None:
    other = objective(network=AutoencoderConfig(block_out_channels=(8, 8, 8), sample_size=16))
    other.export(tmp_path, trainable(other))
    with pytest.raises(ModelError, match="another network"):
        objective().start_from_first_stage(load_autoencoder(str(tmp_path)))


def test_weights_lie_as_the_engine_broadcasts_them() -> None:
    assert all(parameter.is_contiguous() for parameter in objective().parameters())


def test_a_trained_decoder_leaves_the_encoder_and_its_latents_as_they_were(tmp_path: Path) -> None:
    first = objective()
    first.export(tmp_path / "first", trainable(first))
    before = load_autoencoder(str(tmp_path / "first"))
    tested = objective(trained="decoder", start=str(tmp_path / "first"))
    tested.start_from_first_stage(before)
    step(tested)["loss"].backward()
    assert {name.split(".")[1] for name in trainable(tested)} == {"decoder", "post_quant_conv"}
    with torch.no_grad():
        tested.autoencoder.decoder.conv_out.bias += 0.1
    tested.export(tmp_path / "second", trainable(tested))
    after = load_autoencoder(str(tmp_path / "second"))
    images = torch.from_numpy(pictures())
    assert torch.equal(after.encode(images), before.encode(images))
    assert not torch.equal(after.decode(after.encode(images)), before.decode(before.encode(images)))


def test_noise_on_the_latents_and_scaled_steps_change_what_is_reconstructed() -> None:
    plain = step(objective())["reconstruction"]
    noisy = step(objective(latent_noise=1.0))["reconstruction"]
    scaled = step(objective(equivariance=EquivarianceConfig(probability=1.0)))["reconstruction"]
    assert len({value.item() for value in (plain, noisy, scaled)}) == 3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"trained": "decoder"}, "needs a KL autoencoder to start from"),
        ({"network": VQ_NETWORK, "latent_noise": 0.1}, "between codebook rows"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(**changes)
