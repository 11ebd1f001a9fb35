"""A U-Net without context: diffusers' `UNet2DModel`, attention among positions alone.

DDPM's network is one, and so is that of an unconditional latent diffusion model (CompVis), whose
checkpoints `rdm import-checkpoint` opens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rdm.config import Config
from rdm.context import Context


class UnconditionalConfig(Config):
    """A U-Net whose lower levels have self-attention (`AttentionBlock`)."""

    kind: Literal["unconditional-unet"] = "unconditional-unet"
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    sample_size: int = Field(ge=1, description="side of the latents or pictures")
    block_out_channels: tuple[int, ...] = Field(description="channels of each level")
    attention_levels: tuple[bool, ...] = Field(description="levels with attention")
    layers_per_block: int = Field(ge=1)
    head_dim: int | None = Field(
        default=None, ge=1, description="channels per attention head; None: one head"
    )
    norm_num_groups: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of residual blocks")
    num_classes: int | None = Field(
        default=None,
        ge=2,
        description="classes of the context's vector, each with a row that is added to the time "
        "embedding, and one more for none; None: no vector is read",
    )
    ddpm_details: bool = Field(
        default=False,
        description="DDPM's own order of sine and cosine, frequencies, epsilon and padding "
        "of strided convolutions, for its checkpoints; False: latent diffusion's",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"{len(self.attention_levels)} attention levels for "
                f"{len(self.block_out_channels)} blocks"
            )

        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(
                f"channels {self.block_out_channels} are no multiples of norm_num_groups "
                f"{self.norm_num_groups}"
            )

        if self.head_dim and any(channels % self.head_dim for channels in self.block_out_channels):
            raise ValueError(
                f"channels {self.block_out_channels} are no multiples of head_dim {self.head_dim}"
            )

        return self

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """[C, H, W] of one sample."""
        return self.out_channels, self.sample_size, self.sample_size

    @property
    def cross_attention_dim(self) -> None:
        """The length of a context token: none is read."""
        return None

    @property
    def vector_dim(self) -> int | None:
        """The length of the context's vector; None: none is read."""
        return self.num_classes


class UnconditionalDenoiser(nn.Module):
    """`forward(x_t, t, context)` predicts noise, or the head's target, of an empty context."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Return the prediction [B, C, H, W] for x_t [B, C, H, W] at timesteps t, int64 [B].

        A network of K classes reads the context's vector [B, K]: its largest number is the class,
        and a row of zeros is none, the K-th row of its table.

        Raises:
            ValueError: the context sets what would not be read, or lacks the vector.
        """
        table = self.unet.config.num_class_embeds
        if table is None:
            context.require_read((), "the unconditional U-Net")
            return self.unet(x_t, t).sample
        context.require_read(("vector",), "the class-conditional U-Net")
        if context.vector is None:
            raise ValueError("the class-conditional U-Net needs the context's vector")
        # argmax of a row of zeros is 0, which is a class: dropped samples must not train that one.
        given = context.vector.any(dim=1)
        labels = torch.where(given, context.vector.argmax(dim=1), table - 1)
        return self.unet(x_t, t, class_labels=labels).sample

    @property
    def core(self) -> Any:
        """diffusers' own network."""
        return self.unet


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
        up_block_types=tuple(
            "AttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)
        ),
        attention_head_dim=config.head_dim,  # pyright: ignore[reportArgumentType]
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        num_class_embeds=None if config.num_classes is None else config.num_classes + 1,
        flip_sin_to_cos=not config.ddpm_details,
        freq_shift=1 if config.ddpm_details else 0,
        downsample_padding=0 if config.ddpm_details else 1,
        norm_eps=1e-6 if config.ddpm_details else 1e-5,
    )


def split_attention(state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Return an official U-Net's parameters with `q`, `k`, `v` in place of each block's `qkv`.

    The official rows [3C] lie head after head, each head's q, k and v of `head_dim` together
    (`QKVAttentionLegacy`).
    """
    split: dict[str, Tensor] = {}

    for name, value in state.items():
        block, found, kind = name.rpartition(".qkv.")
        if not found:
            split[name] = value
            continue

        # [head, q k v, head_dim, ...]: all heads' q together, then k, then v.
        heads = value.reshape(-1, 3, head_dim, *value.shape[1:])
        for number, part in enumerate("qkv"):
            split[f"{block}.{part}.{kind}"] = heads[:, number].reshape(-1, *value.shape[1:])
    return split
