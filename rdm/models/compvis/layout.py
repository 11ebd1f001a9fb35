"""The layout of latent-diffusion's checkpoints (CompVis): names of parameters, and sizes.

The names follow from the order in which the official code numbers its blocks. A U-Net of L levels
with n residual blocks each has `input_blocks` 0 (first convolution), then n blocks and a
downsampling per level, `middle_block`, and `output_blocks` of n + 1 per level, lowest resolution
first, the last of a level with its upsampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from rdm.errors import ModelError
from rdm.models.first_stage.autoencoder import AutoencoderConfig
from rdm.models.unconditional import UnconditionalConfig
from rdm.models.unet import DenoiserConfig

State = Mapping[str, Tensor]

_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_STAGE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {
    "conv_shortcut": "nin_shortcut"
}
_SELF_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_STAGE_SAME = (
    "quant_conv",
    "post_quant_conv",
    "quantize.embedding",
    "encoder.conv_in",
    "encoder.conv_out",
    "decoder.conv_in",
    "decoder.conv_out",
)


def unet_modules(config: DenoiserConfig | UnconditionalConfig) -> dict[str, str]:
    """Return the official name of every module of diffusers' U-Net, by the prefix that it replaces.

    A spatial transformer's parts have the same names in both; those of an `AttentionBlock` have
    not (after `split_attention`).
    """
    levels, layers = len(config.block_out_channels), config.layers_per_block
    names = dict(_UNET_ENDS)

    # Down: block 0 is the first convolution, then n blocks and one downsampling a level.
    for level in range(levels):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            names |= _nested(
                f"down_blocks.{level}.resnets.{layer}",
                f"input_blocks.{first + layer}.0",
                _UNET_RESNET,
            )
            names |= _attention(
                f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{first + layer}.1"
            )

        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"

        # Up: diffusers counts its levels from the lowest resolution, too, so the order agrees.
        attends = config.attention_levels[levels - 1 - level]
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            names |= _nested(f"up_blocks.{level}.resnets.{layer}", f"{block}.0", _UNET_RESNET)
            names |= _attention(f"up_blocks.{level}.attentions.{layer}", f"{block}.1")
            # The upsampling follows the attention, so its number depends on whether there is any.
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"{block}.{2 if attends else 1}.conv"

    names |= _nested("mid_block.resnets.0", "middle_block.0", _UNET_RESNET)
    names |= _nested("mid_block.resnets.1", "middle_block.2", _UNET_RESNET)
    return names | _attention("mid_block.attentions.0", "middle_block.1")


def first_stage_modules(config: AutoencoderConfig) -> dict[str, str]:
    """Return the official name of every module of diffusers' `AutoencoderKL` or `VQModel`."""
    levels, layers = len(config.block_out_channels), config.layers_per_block
    names = {name: name for name in _STAGE_SAME}

    # Both halves have a middle of two residual blocks around an attention.
    for half in ("encoder", "decoder"):
        names[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        names |= _nested(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _SELF_ATTENTION)
        for layer in (0, 1):
            names |= _nested(
                f"{half}.mid_block.resnets.{layer}", f"{half}.mid.block_{layer + 1}", _STAGE_RESNET
            )

    for level in range(levels):
        # The official decoder counts its levels from the highest resolution, diffusers from the
        # lowest. A decoder has one block more a level than the encoder.
        for ours, theirs, count in (
            (f"encoder.down_blocks.{level}", f"encoder.down.{level}", layers),
            (f"decoder.up_blocks.{level}", f"decoder.up.{levels - 1 - level}", layers + 1),
        ):
            for layer in range(count):
                names |= _nested(
                    f"{ours}.resnets.{layer}", f"{theirs}.block.{layer}", _STAGE_RESNET
                )
                names |= _nested(
                    f"{ours}.attentions.{layer}", f"{theirs}.attn.{layer}", _SELF_ATTENTION
                )

            names[f"{ours}.downsamplers.0.conv"] = f"{theirs}.downsample.conv"
            names[f"{ours}.upsamplers.0.conv"] = f"{theirs}.upsample.conv"
    return names


def official_name(name: str, modules: Mapping[str, str]) -> str:
    """Return the official checkpoint's name for one of our parameters.

    Raises:
        KeyError: no module of the table holds it.
    """
    # The longest known prefix: a table may name a module and one inside it.
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if (prefix := ".".join(parts[:end])) in modules:
            return ".".join([modules[prefix], *parts[end:]])
    raise KeyError(name)


def unet_config(
    state: State, *, sample_size: int = 64, head_dim: int = 32, num_heads: int | None = None
) -> DenoiserConfig | UnconditionalConfig:
    """Return the sizes of an official U-Net, read off its parameters.

    One with spatial transformers is a denoiser, one with `AttentionBlock`s is unconditional.

    Args:
        state: parameters without the prefix `model.diffusion_model.`.
        sample_size: side of the latents, which the weights don't tell.
        head_dim: channels per attention head (`num_head_channels`), which the weights don't tell.
        num_heads: the same number of heads at every level (`num_heads`) in place of `head_dim`.

    Raises:
        ModelError: these are no such parameters.
    """
    # Sizes that the weights tell.
    _require(state, "input_blocks.0.0.weight", "out.2.weight", "middle_block.0.in_layers.0.weight")
    channels, attends, layers = _unet_levels(state)
    sizes: dict[str, Any] = {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "sample_size": sample_size,
        "block_out_channels": tuple(channels),
        "attention_levels": tuple(attends),
        "layers_per_block": layers,
        "head_dim": head_dim,
        "norm_num_groups": 32,
    }

    # Only cross-attention has keys of another width: the context's.
    context = [
        value.shape[1] for name, value in state.items() if name.endswith(".attn2.to_k.weight")
    ]

    try:
        if context:
            return DenoiserConfig(**sizes, num_heads=num_heads, cross_attention_dim=context[0])
        if num_heads is not None:
            raise ModelError(
                "without cross-attention heads are known by head_dim alone",
                fix="leave num_heads out",
            )
        return UnconditionalConfig(**sizes)
    except ValidationError as error:
        raise ModelError(
            f"these sizes do not go together: {error.errors()[0]['msg']}", fix="--head-dim"
        ) from error


def first_stage_config(state: State, *, sample_size: int = 256) -> AutoencoderConfig:
    """Return the sizes of an official first stage, read off its parameters.

    Args:
        state: parameters without the prefix `first_stage_model.`.
        sample_size: side of the training pictures, which the weights don't tell.

    Raises:
        ModelError: these are no such parameters.
    """
    # Without these layers it is no first stage.
    _require(state, "encoder.conv_in.weight", "decoder.conv_in.weight", "post_quant_conv.weight")

    levels = _count(state, "encoder.down.{}.block.0.conv1.weight")
    codebook = state.get("quantize.embedding.weight")

    return AutoencoderConfig(
        latent_channels=state["decoder.conv_in.weight"].shape[1],
        block_out_channels=tuple(
            state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)
        ),
        attention_levels=tuple(f"encoder.down.{i}.attn.0.q.weight" in state for i in range(levels)),
        layers_per_block=_count(state, "encoder.down.0.block.{}.conv1.weight"),
        norm_num_groups=32,
        mid_attention="encoder.mid.attn_1.q.weight" in state,
        sample_size=sample_size,
        codebook_size=None if codebook is None else codebook.shape[0],
        codebook_dim=None if codebook is None else codebook.shape[1],
    )


def translate(state: State, expected: State, modules: Mapping[str, str]) -> dict[str, Tensor]:
    """Return official parameters under our names and in our shapes.

    Args:
        state: official parameters, without a prefix.
        expected: parameters of the module that they are for; only names and shapes are read (they
            may be on `meta`).
        modules: `unet_modules` or `first_stage_modules`.

    Raises:
        ModelError: parameters are missing, left over, or of another shape; the message names them.
    """
    # Every official parameter must be used, and every one of ours be found.
    names = {name: official_name(name, modules) for name in expected}
    missing = sorted(set(names.values()) - set(state))
    unexpected = sorted(set(state) - set(names.values()))
    misshapen = [
        f"{official} {tuple(state[official].shape)} instead of {tuple(expected[name].shape)}"
        for name, official in names.items()
        if official in state and not _fits(state[official], expected[name])
    ]

    problems = [
        f"{len(found)} {what}: {_some(found)}"
        for what, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if found
    ]

    if problems:
        raise ModelError(
            "the parameters are not those of this kind of network; " + "; ".join(problems),
            fix="check --kind; networks with parts that this layout does not know cannot be "
            "imported",
        )

    # 1x1 convolutions and linear layers of attention hold the same numbers in other shapes.
    return {name: state[official].reshape(expected[name].shape) for name, official in names.items()}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {ours: theirs} | _nested(ours, theirs, _SELF_ATTENTION)


def _nested(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{name}": f"{theirs}.{official}" for name, official in parts.items()}


def _unet_levels(state: State) -> tuple[list[int], list[bool], int]:
    """Return each level's channels and attention, and the residual blocks of every level."""
    levels: list[list[int]] = [[]]
    attends: list[bool] = [False]

    # A downsampling ends a level; everything else is a residual block, with attention or without.
    for number in range(1, _count(state, "input_blocks.{}.0.")):
        block = f"input_blocks.{number}"
        if f"{block}.0.op.weight" in state:
            levels.append([])
            attends.append(False)
            continue

        _require(state, f"{block}.0.out_layers.3.weight")
        levels[-1].append(state[f"{block}.0.out_layers.3.weight"].shape[0])
        attends[-1] |= f"{block}.1.norm.weight" in state

    # diffusers has one number of blocks for all levels.
    if len({len(level) for level in levels}) != 1 or not levels[0]:
        raise ModelError(
            f"the levels have {[len(level) for level in levels]} residual blocks, which this "
            "layout does not know",
            fix="check --kind",
        )
    return [level[0] for level in levels], attends, len(levels[0])


def _count(names: Iterable[str], pattern: str) -> int:
    """Return how many of pattern.format(0), pattern.format(1), ... begin a name, without a gap."""
    known = list(names)
    number = 0
    while any(name.startswith(pattern.format(number)) for name in known):
        number += 1
    return number


def _require(state: State, *names: str) -> None:
    if missing := [name for name in names if name not in state]:
        raise ModelError(
            f"these are not the parameters of this kind of network: there is no {_some(missing)}",
            fix="check --kind, and that the file is a latent-diffusion checkpoint",
        )


def _fits(have: Tensor, want: Any) -> bool:
    """Return whether two shapes agree but for sides of 1 at the end."""
    trailing = have.shape[len(want.shape) :]
    return have.shape[: len(want.shape)] == want.shape and all(side == 1 for side in trailing)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
