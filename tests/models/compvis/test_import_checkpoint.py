"""Official checkpoints: their layout as `official_layout` writes it down, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from official_layout import Shapes, first_stage, unet
from safetensors.torch import save_file
from torch import Tensor

from rdm.errors import ModelError
from rdm.models.checkpoint_file import read_checkpoint
from rdm.models.compvis.import_checkpoint import import_first_stage, import_unet
from rdm.models.compvis.layout import (
    first_stage_config,
    first_stage_modules,
    official_name,
    unet_config,
    unet_modules,
)
from rdm.models.first_stage.autoencoder import official_autoencoder
from rdm.models.first_stage.first_stage import load_autoencoder
from rdm.models.unconditional import split_attention
from rdm.models.unet import DenoiserConfig, rdm_ffhq_denoiser, rdm_imagenet_denoiser

LAST_THREE = (False, True, True, True)
IMAGENET = unet((192, 384, 576, 960), LAST_THREE, 512)
FFHQ = unet((224, 448, 672, 896), LAST_THREE, 512)
FFHQ_LDM = unet((224, 448, 672, 896), LAST_THREE, None)
SMALL_LDM = unet((32, 64), (False, True), None, blocks=1)
SMALL = unet((32, 64), (False, True), 12, blocks=1)
STAGES = {
    "kl-f4": (first_stage((128, 256, 512), 3), official_autoencoder(4)),
    "kl-f8": (first_stage((128, 256, 512, 512), 4), official_autoencoder(8)),
    "kl-f16": (
        first_stage((128, 128, 256, 256, 512), 16, attends_last=True),
        official_autoencoder(16),
    ),
    "vq-f4": (first_stage((128, 256, 512), 3, codebook=8192), official_autoencoder(4, 8192)),
    "vq-f8": (
        first_stage((128, 256, 256, 512), 4, codebook=16384, attends_last=True),
        official_autoencoder(8, 16384),
    ),
    "vq-f16": (
        first_stage((128, 128, 256, 256, 512), 8, codebook=16384, attends_last=True),
        official_autoencoder(16, 16384),
    ),
}


def abstract(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def drawn(shapes: Shapes, prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }


def count(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def small_stage(codebook: int | None) -> dict[str, Tensor]:
    return drawn(first_stage((32, 64), 4, codebook=codebook, attends_last=True))


def restored(
    model: torch.nn.Module, modules: Mapping[str, str], like: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    names = {name: official_name(name, modules) for name in model.state_dict()}
    return {
        names[name]: value.reshape(like[names[name]].shape)
        for name, value in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("shapes", "parameters", "config"),
    [(IMAGENET, 400_920_579, rdm_imagenet_denoiser()), (FFHQ, 414_713_603, rdm_ffhq_denoiser())],
)
def test_the_official_layout_tells_the_sizes_of_the_u_nets(
    shapes: Shapes, parameters: int, config: DenoiserConfig
) -> None:
    assert (len(shapes), count(shapes)) == (688, parameters)
    assert unet_config(abstract(shapes)) == config
    assert import_unet(abstract(shapes)).config == config


@pytest.mark.parametrize("name", STAGES)
def test_the_official_layout_tells_the_sizes_of_the_first_stages(name: str) -> None:
    shapes, config = STAGES[name]
    found = first_stage_config(abstract(shapes))
    assert found.model_copy(update={"codebook_dim": None}) == config
    imported = import_first_stage(abstract(shapes), codebook=name.startswith("vq"))
    assert sum(value.numel() for value in imported.model.state_dict().values()) == count(shapes)


def test_the_unconditional_baseline_of_ffhq_has_its_parameters() -> None:
    imported = import_unet(abstract(FFHQ_LDM))
    assert type(imported.model).__name__ == "UNet2DModel"
    assert (
        sum(value.numel() for value in imported.model.state_dict().values())
        == count(FFHQ_LDM)
        == 274_056_163
    )


def test_an_unconditional_u_net_goes_there_and_back_bit_for_bit() -> None:
    state = drawn(SMALL_LDM)
    split = split_attention(state, 32)
    back = restored(import_unet(state).model, unet_modules(unet_config(state)), split)
    assert back.keys() == split.keys()
    assert all(torch.equal(back[name], split[name]) for name in split)


@torch.no_grad()
def test_an_attention_block_attends_as_the_official_code_does() -> None:
    """QKVAttentionLegacy: queries and keys are each scaled by the fourth root of the head's
    channels."""
    state, x = (
        drawn(SMALL_LDM),
        torch.randn(2, 64, 3, 5, generator=torch.Generator().manual_seed(1)),
    )
    block, heads = (
        {name: state[f"middle_block.1.{name}.weight"][..., 0] for name in ("qkv", "proj_out")},
        64 // 32,
    )
    bias = {name: state[f"middle_block.1.{name}.bias"][:, None] for name in block}
    norm = (state[f"middle_block.1.norm.{kind}"] for kind in ("weight", "bias"))
    flat = torch.nn.functional.group_norm(x, 32, *norm, eps=1e-5).flatten(2)
    q, k, v = (block["qkv"] @ flat + bias["qkv"]).reshape(2 * heads, 3 * 32, -1).split(32, dim=1)
    weights = torch.softmax((q * 32**-0.25).transpose(1, 2) @ (k * 32**-0.25), dim=2)
    attended = (v @ weights.transpose(1, 2)).reshape(2, 64, -1)
    expected = x + (block["proj_out"] @ attended + bias["proj_out"]).view_as(x)
    assert torch.allclose(
        import_unet(state).model.mid_block.attentions[0](x), expected, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    ("sizes", "message"), [({"num_heads": 2}, "head_dim alone"), ({"head_dim": 24}, "no multiples")]
)
def test_heads_that_an_unconditional_u_net_cannot_have_are_refused(
    sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        import_unet(drawn(SMALL_LDM), **sizes)


def test_a_u_net_goes_there_and_back_bit_for_bit() -> None:
    state = drawn(SMALL)
    imported = import_unet(state)
    back = restored(imported.model, unet_modules(unet_config(state)), state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("codebook", [None, 10])
def test_a_first_stage_goes_there_and_back_bit_for_bit(codebook: int | None) -> None:
    state = small_stage(codebook)
    imported = import_first_stage(state, codebook=codebook is not None)
    back = restored(imported.model, first_stage_modules(first_stage_config(state)), state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_a_whole_models_checkpoint_gives_its_u_net_and_its_first_stage(tmp_path: Path) -> None:
    state = drawn(SMALL, "model.diffusion_model.") | {
        "first_stage_model." + name: value for name, value in small_stage(10).items()
    }
    save_file(state | {"betas": torch.zeros(3)}, tmp_path / "model.safetensors")
    read = read_checkpoint(tmp_path / "model.safetensors")
    assert torch.equal(
        import_unet(read).model.conv_in.weight, drawn(SMALL)["input_blocks.0.0.weight"]
    )
    import_first_stage(read, codebook=True, scaling_factor=0.5).model.save_pretrained(
        tmp_path / "vq"
    )
    opened = load_autoencoder(str(tmp_path / "vq"))
    assert (opened.scale, opened.factor, opened.codebook is not None) == (0.5, 2, True)


def test_averaged_weights_are_taken_unless_refused() -> None:
    plain = drawn(SMALL)
    averaged = {
        "model_ema." + ("diffusion_model." + name).replace(".", ""): value + 1
        for name, value in plain.items()
    }
    state = {"model.diffusion_model." + name: value for name, value in plain.items()} | averaged
    assert import_unet(state).weights == "ema"
    assert torch.equal(import_unet(state).model.conv_out.bias, plain["out.2.bias"] + 1)
    assert torch.equal(import_unet(state, use_ema=False).model.conv_out.bias, plain["out.2.bias"])
    averaged.popitem()
    with pytest.raises(ModelError, match="1 averaged parameters are missing"):
        import_unet(
            {name: value for name, value in state.items() if not name.startswith("model_ema")}
            | averaged
        )


def test_a_first_stages_own_checkpoint_leaves_its_losses_behind() -> None:
    state = small_stage(None)
    with_losses = state | {
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "loss.logvar": torch.zeros(()),
    }
    one, other = (
        import_first_stage(s, codebook=False).model.state_dict() for s in (state, with_losses)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("middle_block.1.proj_in.weight"),
            "1 missing: middle_block.1.proj_in.weight",
        ),
        (
            lambda s: s.update({"label_emb.weight": torch.zeros(2, 2)}),
            "1 unexpected: label_emb.weight",
        ),
        (
            lambda s: s.update({"out.0.weight": torch.zeros(7)}),
            r"out.0.weight \(7,\) instead of \(32,\)",
        ),
        (
            lambda s: s.update({"input_blocks.1.1.qkv.weight": torch.zeros(1)}),
            "1 unexpected: .*1.1.qkv.weight",
        ),
        (lambda s: s.clear(), "not the parameters of this kind"),
    ],
)
def test_a_u_net_that_is_not_of_this_layout_is_named(
    change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    state = drawn(SMALL)
    change(state)
    with pytest.raises(ModelError, match=message):
        import_unet(state)


@pytest.mark.parametrize("codebook", [None, 10])
def test_the_other_kind_of_first_stage_is_refused(codebook: int | None) -> None:
    with pytest.raises(ModelError, match="codebook"):
        import_first_stage(small_stage(codebook), codebook=codebook is None)


def test_a_lightning_checkpoint_of_plain_data_is_read(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "epoch": 3, "callbacks": {"x": [1, "y"]}},
        tmp_path / "m.ckpt",
    )
    assert torch.equal(read_checkpoint(tmp_path / "m.ckpt")["a"], torch.ones(2))


class Harmful:
    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return (Path.touch, (Path("/nonexistent/never"),))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"state_dict": {"a": Harmful()}}, path), "tensors alone"),
        (
            lambda path: path.write_bytes(pickle.dumps({"a": Harmful()}, protocol=2)),
            "tensors alone",
        ),
        (lambda path: path.write_bytes(b"PK damaged"), "tensors alone"),
        (lambda path: torch.save({"epoch": 3}, path), "no parameters"),
        (lambda path: torch.save([1], path), "holds a list"),
        (lambda path: None, "does not exist"),
    ],
)
def test_a_file_without_plain_tensors_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path / "model.ckpt")


def test_a_damaged_safetensors_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ModelError, match="tensors alone"):
        read_checkpoint(tmp_path / "model.safetensors")
