"""The encoder in plain PyTorch is diffusers' own, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rdm.errors import ModelError
from rdm.models.assets import named_folder
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.first_stage.first_stage_folder import WEIGHTS_NAME
from rdm.models.first_stage.plain_encoder import PlainEncoder, open_plain_encoder

SHIPPED = "assets://autoencoder-kl-f4"


@pytest.fixture(scope="module")
def plain() -> PlainEncoder:
    found = open_plain_encoder(named_folder(SHIPPED, WEIGHTS_NAME, "first stage"), SHIPPED)
    assert found is not None
    return found


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 32, 48)])
def test_moments_are_those_of_diffusers_bit_for_bit(
    plain: PlainEncoder, shape: tuple[int, ...]
) -> None:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).byte()
    expected = load_autoencoder(SHIPPED).encode_moments(images)
    for found, want in zip(plain.encode_moments(images), expected, strict=True):
        assert torch.equal(found, want)


def save(folder: Path, **changes: object) -> Path:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    sizes = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 3,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "mid_block_add_attention": False,
    }
    torch.manual_seed(0)
    AutoencoderKL(**{**sizes, **changes}).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("use_quant_conv", [True, False])
def test_other_sizes_too(tmp_path: Path, use_quant_conv: bool) -> None:
    folder = save(tmp_path / "kl", use_quant_conv=use_quant_conv)
    images = torch.randint(0, 256, (2, 3, 16, 24), generator=torch.Generator().manual_seed(1))
    found = open_plain_encoder(folder, "kl")
    assert found is not None
    expected = load_autoencoder(str(folder)).encode_moments(images.byte())
    for one, want in zip(found.encode_moments(images.byte()), expected, strict=True):
        assert torch.equal(one, want)


def test_a_network_with_attention_is_left_to_the_library(tmp_path: Path) -> None:
    assert open_plain_encoder(save(tmp_path, mid_block_add_attention=True), "kl") is None


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layers_per_block": 1}))
    with pytest.raises(ModelError):
        open_plain_encoder(folder, "kl")


def test_sides_that_are_no_multiple_of_the_factor_are_refused(plain: PlainEncoder) -> None:
    with pytest.raises(ModelError, match="cannot be encoded"):
        plain.encode_moments(torch.zeros(1, 3, 30, 32, dtype=torch.uint8))
