"""The U-Net of an unconditional latent diffusion model (CompVis): attention among positions alone, no context.

Nothing here trains or samples it: `rdm import-checkpoint` opens its checkpoints as diffusers' `UNet2DModel`, which
diffusers' own pipelines draw with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config


class UnconditionalConfig(Config):
    """A U-Net whose lower levels have self-attention (`AttentionBlock`)."""

    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    sample_size: int = Field(ge=1, description="side of the latents")
    block_out_channels: tuple[int, ...] = Field(description="channels of each level")
    attention_levels: tuple[bool, ...] = Field(description="levels with attention")
    layers_per_block: int = Field(ge=1)
    head_dim: int = Field(ge=1, description="channels per attention head")
    norm_num_groups: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(channels % self.head_dim for channels in self.block_out_channels):
            raise ValueError(f"channels {self.block_out_channels} are no multiples of head_dim {self.head_dim}")
        return self


def build_unconditional(config: UnconditionalConfig) -> Any:
    """Return diffusers' `UNet2DModel` with fresh weights."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    attends = config.attention_levels
    return UNet2DModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if level else "DownBlock2D" for level in attends),
        up_block_types=tuple("AttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)),
        attention_head_dim=config.head_dim,
        norm_num_groups=config.norm_num_groups,
    )


def split_attention(state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Return an official U-Net's parameters with `q`, `k` and `v` in place of each `AttentionBlock`'s `qkv`.

    The official rows [3C] lie head after head, each head's q, k and v of `head_dim` together (`QKVAttentionLegacy`).
    """
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        block, found, kind = name.rpartition(".qkv.")
        if not found:
            split[name] = value
            continue
        heads = value.reshape(-1, 3, head_dim, *value.shape[1:])
        for number, part in enumerate("qkv"):
            split[f"{block}.{part}.{kind}"] = heads[:, number].reshape(-1, *value.shape[1:])
    return split
