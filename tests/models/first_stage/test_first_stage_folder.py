"""What decides a first stage's latents, read from its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdm.errors import ModelError
from rdm.models.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder
from rdm.models.first_stage.first_stage_folder import WEIGHTS_NAME, latents_digest


def saved(place: Path, codebook_size: int | None = None) -> Path:
    torch.manual_seed(0)
    config = AutoencoderConfig(
        block_out_channels=(8, 8), norm_num_groups=2, codebook_size=codebook_size
    )
    build_autoencoder(config).save_pretrained(place)
    return place


def change(place: Path, prefix: str) -> None:
    """Add 1 to the first weight whose name begins so."""
    weights = load_file(place / WEIGHTS_NAME)
    name = next(name for name in sorted(weights) if name.startswith(prefix))
    save_file({**weights, name: weights[name] + 1}, place / WEIGHTS_NAME)


@pytest.mark.parametrize("name", ["assets://autoencoder-kl-f4", "assets://autoencoder-vq-f4"])
def test_digest_of_the_files_is_that_of_the_opened_network(name: str) -> None:
    assert latents_digest(name) == load_autoencoder(name).latents_digest


def test_another_decoder_makes_another_first_stage_of_the_same_latents(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = load_autoencoder(str(folder))
    change(folder, "decoder.")
    after = load_autoencoder(str(folder))
    assert after.digest != before.digest
    assert after.latents_digest == before.latents_digest == latents_digest(str(folder))


@pytest.mark.parametrize(
    ("prefix", "codebook_size"),
    [("encoder.", None), ("quant_conv.", None), ("encoder.", 8), ("quantize.", 8)],
)
def test_another_encoder_or_codebook_makes_other_latents(
    tmp_path: Path, prefix: str, codebook_size: int | None
) -> None:
    folder = str(saved(tmp_path, codebook_size))
    before = latents_digest(folder)
    change(tmp_path, prefix)
    assert latents_digest(folder) != before


def test_another_scale_makes_other_latents() -> None:
    model = build_autoencoder(AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=2))
    before = FirstStage(model, "").latents_digest
    model.register_to_config(scaling_factor=0.25)
    assert FirstStage(model, "").latents_digest != before


def test_damaged_weights_are_an_error_that_names_the_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / WEIGHTS_NAME).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="cannot be opened") as raised:
        latents_digest(str(folder))
    assert raised.value.where == str(folder)
