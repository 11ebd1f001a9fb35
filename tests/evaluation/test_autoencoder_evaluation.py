from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from rdm.evaluation.metrics.fid import InceptionFeatures, frechet_distance
from rdm.evaluation.metrics.fidelity import halves_fidelity
from rdm.evaluation.reconstructions import (
    Judges,
    evaluate_autoencoder,
    evaluate_on_source,
    psnr,
    to_8_bit,
)
from rdm.models.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from rdm.models.first_stage.block_projection import BlockProjection
from rdm.models.first_stage.first_stage import FirstStage, to_signed
from rdm.models.first_stage.linear_start import start_from_projection
from rdm.models.first_stage.perceptual import open_perceptual
from rdm.training.data.photographs import PhotoConfig


def pictures(count: int = 4, side: int = 16) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return (torch.nn.functional.interpolate(coarse, side, mode="bilinear") * 255).to(torch.uint8)


def started(images: Tensor) -> FirstStage:
    torch.manual_seed(0)
    model = build_autoencoder(AutoencoderConfig(sample_size=16))
    start_from_projection(model, BlockProjection.fit(to_signed(images)), to_signed(images))
    return FirstStage(model, "started")


@pytest.mark.parametrize(("error", "expected"), [(1, 48.1308), (16, 24.0484), (255, 0.0)])
def test_psnr_of_a_known_error(error: int, expected: float) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert psnr(images, images + error).tolist() == pytest.approx([expected, expected], abs=1e-4)


def test_psnr_is_taken_picture_by_picture() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    reconstructions = images.clone()
    reconstructions[0] += 1
    reconstructions[1] += 16
    assert psnr(images, reconstructions).tolist() == pytest.approx([48.1308, 24.0484], abs=1e-4)


def test_8_bit_rounds_and_clips() -> None:
    levels = torch.tensor([-3.0, -1.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1, 1.0, 3.0])
    assert to_8_bit(levels).tolist() == [0, 0, 100, 101, 255, 255]


def test_evaluation_names_every_figure() -> None:
    images = pictures()
    result = evaluate_autoencoder(started(images), images)
    assert result.num_images == 4
    assert result.psnr_db_5_percent <= result.psnr_db
    assert result.noisy_psnr_db < result.psnr_db
    assert len(result.latent_std) == len(result.latent_mean) == 4
    assert result.linear_psnr_db is None


def test_psnr_is_that_of_the_decoded_posterior_mean() -> None:
    images = pictures()
    stage = started(images)
    expected = psnr(images, to_8_bit(stage.decode(stage.encode(images)))).mean()
    assert evaluate_autoencoder(stage, images).psnr_db == pytest.approx(float(expected))


def test_linear_baseline_on_all_components_loses_only_the_rounding() -> None:
    images = pictures()
    everything = BlockProjection.fit(to_signed(images), block=2, num_components=12)
    assert evaluate_autoencoder(started(images), images, everything).linear_psnr_db == float("inf")


def test_evaluation_on_a_source_uses_what_is_held_out(tmp_path: Path) -> None:
    images = pictures(count=30)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    config = PhotoConfig(image_size=16, held_out_fraction=0.3)
    result = evaluate_on_source(started(images), f"folder://{tmp_path}", config)
    assert 3 <= result.num_images <= 15
    assert (result.linear_psnr_db or 0) > 15


def test_codebook_usage_is_that_of_the_pictures() -> None:
    torch.manual_seed(0)
    stage = FirstStage(build_autoencoder(AutoencoderConfig(sample_size=16, codebook_size=8)), "vq")
    torch.nn.init.constant_(stage.model.quantize.embedding.weight, 5.0)
    result = evaluate_autoencoder(stage, pictures())
    assert (result.codebook_size, result.codebook_used) == (8, 1 / 8)
    assert result.codebook_perplexity == pytest.approx(1)
    assert evaluate_autoencoder(started(pictures()), pictures()).codebook_used is None


def test_perceptual_distance_is_the_mean_over_reconstructions() -> None:
    images, distance = pictures(side=32), open_perceptual()
    stage = started(images)
    decoded = to_signed(to_8_bit(stage.decode(stage.encode(images))))
    result = evaluate_autoencoder(stage, images, judges=Judges(perceptual=distance))
    assert result.perceptual == pytest.approx(
        float(distance(to_signed(images), decoded).mean()), rel=1e-5
    )
    assert "not LPIPS" in (result.perceptual_network or "")
    assert result.rfid is None


@pytest.mark.slow
def test_rfid_is_the_frechet_distance_of_reconstructions_and_pictures() -> None:
    images, inception = pictures(count=6), InceptionFeatures()
    stage = started(images)
    result = evaluate_autoencoder(stage, images, judges=Judges(inception=inception))
    decoded = to_8_bit(stage.decode(stage.encode(images)))
    features = [
        inception(part.permute(0, 2, 3, 1).contiguous().numpy()) for part in (decoded, images)
    ]
    assert result.rfid == pytest.approx(frechet_distance(*features), rel=1e-6)
    assert "299 px" in (result.rfid_resize or "")
    assert result.fidelity == halves_fidelity(features[1], features[0])
    assert result.fidelity is not None
    assert result.fidelity.num_pictures == 3
