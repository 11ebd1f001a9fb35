"""The networks of first stages: diffusers' `AutoencoderKL` and `VQModel`, by their sizes."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from rdm.config import Config


class AutoencoderConfig(Config):
    """A convolutional autoencoder (Rombach et al. 2022): KL, or VQ if it has a codebook.

    Each side shrinks by `factor`.
    """

    latent_channels: int = Field(default=4, ge=1)
    block_out_channels: tuple[int, ...] = Field(
        default=(16, 64, 96),
        min_length=1,
        description="channels of each level, full resolution first",
    )
    layers_per_block: int = Field(
        default=1, ge=1, description="residual blocks per level; the decoder has one more"
    )
    norm_num_groups: int = Field(default=2, ge=1, description="groups of the group norms")
    mid_attention: bool = Field(
        default=False, description="self-attention at the lowest resolution"
    )
    attention_levels: tuple[bool, ...] | None = Field(
        default=None, description="levels with self-attention after each residual block; None: none"
    )
    sample_size: int = Field(default=64, ge=1, description="side of the training pictures, pixels")
    codebook_size: int | None = Field(
        default=None, ge=2, description="vectors of the codebook; None: KL, no codebook"
    )
    codebook_dim: int | None = Field(
        default=None, ge=1, description="length of the codebook's vectors; None: latent_channels"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # Whatever diffusers would only notice while it builds, or not at all.
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"{channels} channels are no multiple of norm_num_groups {self.norm_num_groups}"
                )

        if self.sample_size % self.factor:
            raise ValueError(
                f"sample_size {self.sample_size} is no multiple of the factor {self.factor}"
            )

        if len(self.attention) != len(self.block_out_channels):
            raise ValueError(
                f"{len(self.attention)} attention levels for {len(self.block_out_channels)} levels"
            )
        if self.codebook_size is None and self.codebook_dim is not None:
            raise ValueError("codebook_dim without codebook_size")
        return self

    @property
    def factor(self) -> int:
        """f: how many pixels of each side become one latent position."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def attention(self) -> tuple[bool, ...]:
        """Whether each level has self-attention."""
        return self.attention_levels or (False,) * len(self.block_out_channels)


def autoencoder_kl_f4_lite() -> AutoencoderConfig:
    """Return the embedded first stage: f = 4, 4 channels, 1.6M parameters."""
    return AutoencoderConfig()


def official_autoencoder(factor: int, codebook_size: int | None = None) -> AutoencoderConfig:
    """Return the sizes of latent-diffusion's first stages (Rombach et al. 2022, table 8).

    They are for an accelerator.

    Args:
        factor: f, of 4, 8 and 16, with 3, 4 and 16 latent channels (f16 with a codebook: 8).
        codebook_size: vectors of the codebook: 8192 is VQ-f4's, 16384 the others'; None: KL.

    Raises:
        ValueError: there is no such first stage.
    """
    # Latent channels, and channels of each level, by factor.
    vq = codebook_size is not None
    sizes: dict[int, tuple[int, tuple[int, ...]]] = {
        4: (3, (128, 256, 512)),
        8: (4, (128, 256, 256, 512) if vq else (128, 256, 512, 512)),
        16: (8 if vq else 16, (128, 128, 256, 256, 512)),
    }

    if factor not in sizes:
        raise ValueError(
            f"there are first stages of factors {', '.join(map(str, sizes))}, not {factor}"
        )

    latent_channels, channels = sizes[factor]
    attends = factor == 16 or (factor == 8 and vq)  # at the lowest resolution
    return AutoencoderConfig(
        latent_channels=latent_channels,
        block_out_channels=channels,
        layers_per_block=2,
        norm_num_groups=32,
        mid_attention=True,
        attention_levels=(*[False] * (len(channels) - 1), attends),
        sample_size=256,
        codebook_size=codebook_size,
    )


def build_autoencoder(config: AutoencoderConfig) -> Any:
    """Return diffusers' `AutoencoderKL`, or `VQModel` for a codebook, with fresh weights."""
    # The imports take seconds.
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    # A dictionary, because diffusers annotates its tuples as having one element.
    arguments: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in config.attention
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in config.attention[::-1]
        ),
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "sample_size": config.sample_size,
        "scaling_factor": 1.0,
        "mid_block_add_attention": config.mid_attention,
    }

    if config.codebook_size is None:
        return AutoencoderKL(**arguments)
    model = VQModel(
        num_vq_embeddings=config.codebook_size, vq_embed_dim=config.codebook_dim, **arguments
    )

    # diffusers does not say so, but both halves are AutoencoderKL's.
    model._supports_gradient_checkpointing = True
    return model
