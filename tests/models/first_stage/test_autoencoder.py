import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from rdm.errors import ModelError
from rdm.models.first_stage.autoencoder import (
    AutoencoderConfig,
    autoencoder_kl_f4_lite,
    build_autoencoder,
    official_autoencoder,
)
from rdm.models.first_stage.first_stage import FirstStage, load_autoencoder, to_signed
from rdm.models.token_predictor import TokenPredictorConfig

ASSET = "assets://autoencoder-kl-f4"
VQ_ASSET = "assets://autoencoder-vq-f4"


def small() -> AutoencoderConfig:
    return AutoencoderConfig(block_out_channels=(8, 8, 8), norm_num_groups=2)


def saved(directory: Path, scaling_factor: float = 0.5) -> Path:
    torch.manual_seed(0)
    model = build_autoencoder(small())
    model.register_to_config(scaling_factor=scaling_factor)
    model.save_pretrained(str(directory), safe_serialization=True)
    return directory


def pictures(count: int = 2, side: int = 16) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)
    ).to(torch.uint8)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> FirstStage:
    return load_autoencoder(str(saved(tmp_path_factory.mktemp("first-stage"))))


def test_latents_have_a_quarter_of_each_side(first_stage: FirstStage) -> None:
    mean, logvar = first_stage.encode_moments(pictures(side=24))
    assert mean.shape == logvar.shape == (2, 4, 6, 6)


def test_decoded_pictures_lie_within_the_brightness_range(first_stage: FirstStage) -> None:
    images = first_stage.decode(torch.randn(2, 4, 4, 4) * 100)
    assert images.shape == (2, 3, 16, 16)
    assert float(images.abs().max()) <= 1


def test_encode_scales_the_posterior_mean(first_stage: FirstStage) -> None:
    images = pictures()
    assert first_stage.scale == 0.5
    assert torch.equal(first_stage.encode(images), first_stage.encode_moments(images)[0] * 0.5)


def test_decode_undoes_shift_and_scale(tmp_path: Path) -> None:
    model = build_autoencoder(small())
    plain = FirstStage(model, "plain")
    latents = torch.randn(1, 4, 4, 4)
    expected = plain.decode(latents)
    model.register_to_config(scaling_factor=0.25, shift_factor=0.5)
    assert torch.allclose(
        FirstStage(model, "scaled").decode((latents - 0.5) * 0.25), expected, atol=1e-5
    )


def test_8_bit_pictures_and_signed_floats_are_the_same_to_it(first_stage: FirstStage) -> None:
    images = pictures()
    assert torch.equal(first_stage.encode(images), first_stage.encode(to_signed(images)))


def test_black_and_white_become_minus_one_and_one() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    assert to_signed(images)[:, 0, 0, 0].tolist() == [-1, 1]


def test_a_picture_is_encoded_alike_in_any_batch(first_stage: FirstStage) -> None:
    images = pictures(count=70)
    together = first_stage.encode(images)
    assert torch.allclose(together[69:], first_stage.encode(images[69:]), atol=1e-5)


def test_sides_that_are_no_multiple_of_the_factor_are_refused(first_stage: FirstStage) -> None:
    with pytest.raises(ModelError, match="16x18 pixels cannot be encoded with f = 4"):
        first_stage.encode(torch.zeros(1, 3, 18, 16))


def test_nothing_records_gradients(first_stage: FirstStage) -> None:
    assert not first_stage.decode(first_stage.encode(pictures())).requires_grad
    assert not any(parameter.requires_grad for parameter in first_stage.model.parameters())


def test_equal_files_have_equal_digests(tmp_path: Path) -> None:
    digests = {load_autoencoder(str(saved(tmp_path / name))).digest for name in ("a", "b")}
    assert len(digests) == 1
    assert len(digests.pop()) == 16


def test_digest_changes_with_a_weight() -> None:
    model = build_autoencoder(small())
    before = FirstStage(model, "").digest
    next(model.parameters()).data[0] += 1
    assert FirstStage(model, "").digest != before


def test_digest_changes_with_the_scale(tmp_path: Path) -> None:
    stages = [load_autoencoder(str(saved(tmp_path / str(scale), scale))) for scale in (0.5, 0.25)]
    assert stages[0].digest != stages[1].digest


def test_missing_directory_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no autoencoder here") as caught:
        load_autoencoder(str(tmp_path / "missing"))
    assert ASSET in caught.value.fix


def test_unknown_asset_lists_the_known_ones() -> None:
    with pytest.raises(ModelError) as caught:
        load_autoencoder("assets://autoencoder-kl-f8")
    assert ASSET in caught.value.fix


def test_asset_names_cannot_leave_the_package() -> None:
    with pytest.raises(ModelError, match="no embedded first stage"):
        load_autoencoder("assets://../assets/autoencoder-kl-f4")


def test_another_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DModel"}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="UNet2DModel, not an AutoencoderKL"):
        load_autoencoder(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model")
    (directory / "diffusion_pytorch_model.safetensors").unlink()
    (directory / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match="a pickle can run code"):
        load_autoencoder(str(directory))


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model")
    weights = directory / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be opened"):
        load_autoencoder(str(directory))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    directory = saved(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(
        json.dumps({**config, "layers_per_block": 2}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="do not agree"):
        load_autoencoder(str(directory))


def foreign(directory: Path, **changes: object) -> Any:
    """Save an autoencoder as another program would, with every field of diffusers' own
    configuration spelled out."""
    torch.manual_seed(0)
    sizes = {
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "norm_num_groups": 2,
        "sample_size": 32,
    }
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    kind = VQModel if "num_vq_embeddings" in changes else AutoencoderKL
    model: Any = kind(**{**sizes, **blocks, **changes})  # type: ignore[arg-type]
    model.save_pretrained(str(directory), safe_serialization=True)
    return model.eval()


def test_stable_diffusions_layout_of_kl_f8_opens_with_its_scale(tmp_path: Path) -> None:
    model = foreign(tmp_path, scaling_factor=0.18215, layers_per_block=2)
    stage = load_autoencoder(str(tmp_path))
    assert (stage.factor, stage.latent_channels, stage.scale, stage.shift) == (8, 4, 0.18215, 0)
    images = pictures(side=32)
    with torch.no_grad():
        mean = model.encode(to_signed(images)).latent_dist.mean
        assert torch.allclose(stage.encode(images), mean * 0.18215, atol=1e-6)
        assert torch.allclose(
            stage.decode(mean * 0.18215), model.decode(mean).sample.clamp(-1, 1), atol=1e-5
        )


def test_a_layout_without_quant_convolutions_opens_with_scale_and_shift(tmp_path: Path) -> None:
    settings = {"scaling_factor": 1.5, "shift_factor": 0.06, "latent_channels": 16}
    model = foreign(tmp_path, **settings, use_quant_conv=False, use_post_quant_conv=False)
    stage = load_autoencoder(str(tmp_path))
    assert (stage.latent_channels, stage.scale, stage.shift) == (16, 1.5, 0.06)
    images = pictures(side=32)
    with torch.no_grad():
        mean = model.encode(to_signed(images)).latent_dist.mean
        assert torch.allclose(stage.encode(images), (mean - 0.06) * 1.5, atol=1e-5)
        assert torch.allclose(
            stage.decode(stage.encode(images)), model.decode(mean).sample.clamp(-1, 1), atol=1e-5
        )


def test_a_vq_model_opens_with_its_scale_and_its_own_rows(tmp_path: Path) -> None:
    model = foreign(tmp_path, num_vq_embeddings=32, vq_embed_dim=3, scaling_factor=0.7)
    stage = load_autoencoder(str(tmp_path))
    assert (stage.factor, stage.latent_channels, stage.scale) == (8, 3, 0.7)
    images = pictures(side=32)
    with torch.no_grad():
        latents = model.encode(to_signed(images)).latents
        assert torch.allclose(stage.encode(images), latents * 0.7, atol=1e-6)
        rows = model.quantize(latents)[2][2].view(2, 4, 4)
        assert torch.equal(stage.encode_indices(images), rows)
        assert torch.allclose(
            stage.decode(stage.encode(images)), model.decode(latents).sample.clamp(-1, 1), atol=1e-5
        )
        assert torch.allclose(
            stage.decode_indices(rows), stage.decode(stage.encode(images)), atol=1e-5
        )


def test_preset_kl_f4_has_55_million_parameters() -> None:
    with torch.device("meta"):
        model = build_autoencoder(official_autoencoder(4))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 55.3


@pytest.mark.parametrize("asset", [ASSET, VQ_ASSET])
def test_embedded_first_stage_has_the_shape_of_its_preset(asset: str) -> None:
    stage = load_autoencoder(asset)
    preset = autoencoder_kl_f4_lite()
    assert (
        (stage.factor, stage.latent_channels) == (preset.factor, preset.latent_channels) == (4, 4)
    )


@pytest.mark.parametrize(("asset", "least_db"), [(ASSET, 28), (VQ_ASSET, 24)])
def test_embedded_first_stage_keeps_a_smooth_picture(asset: str, least_db: float) -> None:
    ramp = torch.linspace(0, 255, 64).to(torch.uint8)
    image = torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.full((64, 64), 99).byte()]
    )[None]
    stage = load_autoencoder(asset)
    error = (stage.decode(stage.encode(image)) - to_signed(image)).square().mean() / 4
    assert -10 * torch.log10(error) > least_db


def test_embedded_vq_first_stage_speaks_rarms_default_vocabulary() -> None:
    stage, tokens = load_autoencoder(VQ_ASSET), TokenPredictorConfig()
    assert stage.codebook is not None
    assert len(stage.codebook) == tokens.codebook_size
    indices = stage.encode_indices(pictures(side=64))
    assert indices.shape == (2, tokens.side, tokens.side)
    images = stage.decode_indices(indices)
    assert torch.allclose(images, stage.decode(stage.encode(pictures(side=64))), atol=1e-5)
