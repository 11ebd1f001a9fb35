"""The U-Net denoiser: diffusers' `UNet2DConditionModel` as a `predict(x_t, t, context)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rdm.config import Config
from rdm.context import Context
from rdm.errors import ModelError


class DenoiserConfig(Config):
    """A U-Net whose lower levels read the context tokens by cross-attention."""

    kind: Literal["unet"] = "unet"
    in_channels: int = Field(
        default=4, ge=1, description="latent channels, and any that are concatenated"
    )
    out_channels: int = Field(default=4, ge=1)
    sample_size: int = Field(default=16, ge=1, description="side of the latents")
    block_out_channels: tuple[int, ...] = Field(
        default=(32, 64, 128), description="channels of each level"
    )
    attention_levels: tuple[bool, ...] = Field(
        default=(False, True, True), description="levels with cross-attention"
    )
    layers_per_block: int = Field(default=1, ge=1)
    head_dim: int = Field(default=32, ge=1, description="channels per attention head")
    num_heads: int | None = Field(
        default=None,
        ge=1,
        description="attention heads of every level, in place of head_dim; None: by head_dim",
    )
    cross_attention_dim: int = Field(default=512, ge=1, description="length of a context token")
    norm_num_groups: int = Field(default=16, ge=1)
    time_scale_shift: bool = Field(
        default=False,
        description="the time embedding scales and shifts every residual block, not only shifts it",
    )
    vector_dim: int | None = Field(
        default=None,
        ge=1,
        description="length of the context's vector, which a small network adds to the time "
        "embedding; None: none",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"{len(self.attention_levels)} attention levels for "
                f"{len(self.block_out_channels)} blocks"
            )

        for channels in self.block_out_channels:
            if channels % self.norm_num_groups or channels % (self.num_heads or self.head_dim):
                raise ValueError(
                    f"{channels} channels are no multiple of norm_num_groups "
                    f"{self.norm_num_groups} and of head_dim {self.head_dim} (or num_heads "
                    f"{self.num_heads})"
                )

        return self

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """[C, H, W] of one sample."""
        return self.out_channels, self.sample_size, self.sample_size

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        return tuple(
            self.num_heads or channels // self.head_dim for channels in self.block_out_channels
        )


def rdm_tiny_denoiser() -> DenoiserConfig:
    """Return the denoiser of `rdm-tiny`: 16x16x4 latents, a few minutes on two cores."""
    return DenoiserConfig()


def rdm_imagenet_denoiser() -> DenoiserConfig:
    """Return the denoiser of the official ImageNet RDM: exactly its 400,920,579 parameters."""
    return DenoiserConfig(
        in_channels=3,
        out_channels=3,
        sample_size=64,
        block_out_channels=(192, 384, 576, 960),
        attention_levels=(False, True, True, True),
        layers_per_block=2,
        head_dim=32,
        cross_attention_dim=512,
        norm_num_groups=32,
    )


def rdm_ffhq_denoiser() -> DenoiserConfig:
    """Return the denoiser of the official FFHQ RDM: exactly its 414,713,603 parameters."""
    return rdm_imagenet_denoiser().model_copy(update={"block_out_channels": (224, 448, 672, 896)})


class Denoiser(nn.Module):
    """`forward(x_t, t, context)` predicts noise, or the head's target, of the shape of x_t."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Return the prediction [B, C, H, W].

        Args:
            x_t: noisy latents [B, C, H, W].
            t: int64 timesteps [B].
            context: `tokens` [B, L, D] is required, and `vector` [B, D] where the network has a
                `vector_dim`. Tokens that are padding are not attended to, and weights of tokens
                multiply the attention that they get.

        Raises:
            ValueError: there are no tokens (a cross-attention block without context would silently
                attend to itself), or the vector is missing, or is not read; or tokens have weights
                and x_t is not float32.
        """
        # Nothing in the context may be dropped in silence, and nothing that is needed be missing.
        ports = ("tokens", "vector") if self.reads_vector else ("tokens",)
        context.require_read(ports, "the denoiser")
        if context.tokens is None:
            raise ValueError(
                "the denoiser needs context tokens; use Context.null() for an unconditional "
                "prediction"
            )
        if self.reads_vector and context.vector is None:
            raise ValueError("the denoiser needs the context's vector, because it has a vector_dim")

        mask, weights = context.tokens_present, context.tokens_weight
        if weights is not None:
            # The mask below takes the type of x_t, and its steps in 16 bits are 39 in ln w.
            if x_t.dtype != torch.float32:
                raise ValueError(f"weights of tokens need float32 samples, not {x_t.dtype}")
            mask = attention_mask(weights)

        return self.unet(
            x_t,
            t,
            encoder_hidden_states=context.tokens,
            encoder_attention_mask=mask,
            class_labels=context.vector,
        ).sample

    @property
    def core(self) -> Any:
        """diffusers' own network."""
        return self.unet

    @property
    def reads_vector(self) -> bool:
        """Whether the context's vector is added to the time embedding."""
        return self.unet.config.class_embed_type == "projection"


def attention_mask(weights: Tensor) -> Tensor:
    """Return the mask float32 [B, L] that multiplies attention by weights [B, L] of 0 and more.

    diffusers adds -10000 (1 - m) to the logits: m = 1 + ln(w) / 10000 adds ln(w), to 6e-4.
    """
    logs = weights.double().log() / 10000
    return torch.where(weights > 0, 1 + logs, 0.0).float()


def build_denoiser(config: DenoiserConfig) -> Denoiser:
    """Return a denoiser with fresh weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    # Types of blocks by level: with cross-attention or without.
    kinds = [
        (
            "CrossAttnDownBlock2D" if attends else "DownBlock2D",
            "CrossAttnUpBlock2D" if attends else "UpBlock2D",
        )
        for attends in config.attention_levels
    ]

    return Denoiser(
        UNet2DConditionModel(
            sample_size=config.sample_size,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=tuple(down for down, _ in kinds),
            up_block_types=tuple(up for _, up in reversed(kinds)),
            attention_head_dim=config.heads,  # pyright: ignore[reportArgumentType]
            cross_attention_dim=config.cross_attention_dim,
            norm_num_groups=config.norm_num_groups,
            resnet_time_scale_shift="scale_shift" if config.time_scale_shift else "default",
            class_embed_type=None if config.vector_dim is None else "projection",
            projection_class_embeddings_input_dim=config.vector_dim,
        )
    )


def load_denoiser(directory: Path) -> Denoiser:
    """Open a denoiser that was saved in diffusers' layout (safetensors only).

    Raises:
        ModelError: the directory holds none, or it is damaged.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return Denoiser(open_unet(UNet2DConditionModel, directory)).eval()


def open_unet(kind: Any, directory: Path) -> Any:
    """Open one of diffusers' U-Nets in float32: those that ship hold 16 bits.

    Args:
        kind: its class.
        directory: a folder that `save_pretrained` wrote; safetensors only.

    Raises:
        ModelError: the directory holds none, or it is damaged.
    """
    if not (directory / "config.json").is_file():
        raise ModelError(
            "there is no denoiser here",
            where=directory,
            fix="give the folder that `rdm train --out` wrote",
        )

    try:
        return kind.from_pretrained(
            str(directory),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the denoiser cannot be opened: {error}", where=directory, fix="train or export again"
        ) from error


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def meta_parameters(config: DenoiserConfig) -> int:
    """Return the number of parameters of a configuration without allocating them."""
    with torch.device("meta"):
        return num_parameters(build_denoiser(config))
