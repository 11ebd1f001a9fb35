"""First stages: trained autoencoders between pictures and scaled latents, opened by name."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdm.errors import ModelError
from rdm.models.first_stage.first_stage_folder import (
    cannot_be_opened,
    digest_of_all,
    digest_of_latents,
    first_stage_folder,
)

if TYPE_CHECKING:  # diffusers takes seconds to import: it is loaded when a network is built
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

ENCODED_AT_ONCE = 64  # pictures in flight: bounds the activations at full resolution


class FirstStage:
    """A trained autoencoder between pictures and latents, `(mean - shift) * scale`.

    The latents have about unit variance.

    A VQ autoencoder's latents are the encoder's output before the codebook, as in latent diffusion:
    `decode` takes the nearest codebook vectors first. `encode_indices` and `decode_indices` take
    and give the codebook's rows themselves.

    It never trains: its weights are frozen and nothing here records gradients.

    Attributes:
        model: the network, in evaluation mode.
        name: how it was opened.
    """

    def __init__(self, model: AutoencoderKL | VQModel, name: str) -> None:
        frozen: Any = model.eval().requires_grad_(False)
        # A CPU computes this layout faster.
        self.model: Any = frozen.to(memory_format=torch.channels_last)
        self.name = name

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of configuration and weights."""
        return digest_of_all(self.model.config, self.model.state_dict().items())

    @cached_property
    def latents_digest(self) -> str:
        """The digest of what encodes: latents of equal digests are interchangeable."""
        return digest_of_latents(self.model.config, self.model.state_dict().items())

    @property
    def factor(self) -> int:
        """f: how many pixels of each side become one latent position."""
        return 2 ** (len(self.model.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        if self.codebook is not None:
            return self.codebook.shape[1]
        return self.model.config["latent_channels"]

    @property
    def codebook(self) -> Tensor | None:
        """The codebook [Z, D], or None of a KL autoencoder."""
        return self.model.quantize.embedding.weight if hasattr(self.model, "quantize") else None

    @property
    def shift(self) -> float:
        """The number that is subtracted from a posterior mean before scaling."""
        return float(self.model.config.get("shift_factor") or 0.0)

    @property
    def scale(self) -> float:
        """diffusers' `scaling_factor`, which gives the latents unit variance."""
        return float(self.model.config["scaling_factor"])

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> FirstStage:
        """Move the weights to a device and return self."""
        torch.nn.Module.to(self.model, device)
        return self

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of a KL autoencoder's posterior, unscaled.

        Each is float32 [B, C, H/f, W/f].

        Args:
            images: [B, 3, H, W], uint8, or float in [-1, 1]; H and W are multiples of f.

        Raises:
            ModelError: a side of the pictures is no multiple of f, or this is a VQ autoencoder.
        """
        if self.codebook is not None:
            raise ModelError(
                "a VQ autoencoder has no posterior",
                where=self.name,
                fix="use encode or encode_indices",
            )

        # Clamped as in diffusers, so that its exponential stays finite.
        mean, logvar = self._moments(images).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled latents float32 [B, C, H/f, W/f]; arguments and errors as `encode_moments`.

        Of a KL autoencoder these are the posterior means, of a VQ autoencoder the vectors before
        the codebook.
        """
        latents = (
            self._moments(images) if self.codebook is not None else self.encode_moments(images)[0]
        )
        return (latents - self.shift) * self.scale

    def encode_indices(self, images: Tensor) -> Tensor:
        """Return the codebook rows nearest to a VQ autoencoder's latents, int64 [B, H/f, W/f].

        Raises:
            ModelError: there is no codebook, or a side of the pictures is no multiple of f.
        """
        if self.codebook is None:
            raise ModelError(
                "a KL autoencoder has no codebook", where=self.name, fix="use a VQ autoencoder"
            )
        return nearest_rows(self._moments(images), self.codebook)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures float32 [B, 3, fH, fW] in [-1, 1] of scaled latents [B, C, H, W]."""
        raw = latents / self.scale + self.shift
        parts = [self.model.decode(self._input(part)).sample for part in raw.split(ENCODED_AT_ONCE)]
        return torch.cat(parts).float().clamp(-1, 1)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Return pictures float32 [B, 3, fH, fW] in [-1, 1] of codebook rows, int64 [B, H, W].

        Raises:
            ModelError: there is no codebook.
        """
        if self.codebook is None:
            raise ModelError(
                "a KL autoencoder has no codebook", where=self.name, fix="use a VQ autoencoder"
            )
        vectors = self.codebook[indices.to(self.device)].permute(0, 3, 1, 2)
        return self.decode((vectors - self.shift) * self.scale)

    @torch.no_grad()
    def _moments(self, images: Tensor) -> Tensor:
        """Return [mean, log-variance] along the channels, or latents before the codebook."""
        # In slices, because activations at full resolution are many times the picture.
        check_sides(images, self.factor, self.name)
        parts = [
            encoder_output(self.model, self._input(to_signed(part)))
            for part in images.split(ENCODED_AT_ONCE)
        ]
        return torch.cat(parts).float()

    def _input(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.model.dtype).contiguous(
            memory_format=torch.channels_last
        )


def check_sides(images: Tensor, factor: int, name: str) -> None:
    """Raise ModelError where a side of pictures is no multiple of a first stage's factor."""
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ModelError(
            f"pictures of {width}x{height} pixels cannot be encoded with f = {factor}",
            where=name,
            fix=f"resize or crop both sides to a multiple of {factor}",
        )


def encoder_output(model: Any, images: Tensor) -> Tensor:
    """Return an encoder's [mean, log-variance] of pictures, or latents before the codebook."""
    moments = model.encoder(images)
    return moments if model.quant_conv is None else model.quant_conv(moments)


def nearest_rows(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the codebook row nearest to each latent of [B, D, H, W]: int64 [B, H, W].

    Of equally near rows it is the first.

    argmin |z - e|^2 (van den Oord et al. 2017, eq. 1), without |z|^2, in slices that bound the
    memory.
    """
    # |z - e|^2 / 2 = |z|^2 / 2 + |e|^2 / 2 - z.e, where |z|^2 is the same for all rows.
    flat = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    half_squares = 0.5 * codebook.square().sum(1)
    rows = [(half_squares - part @ codebook.T).argmin(1) for part in flat.split(4096)]
    return torch.cat(rows).reshape(latents.shape[0], *latents.shape[2:])


def to_signed(images: Tensor) -> Tensor:
    """Return pictures as float in [-1, 1]; floats are taken to be in that range already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Return pictures [B, 3, H, W] in [-1, 1] as uint8 [B, H, W, 3]."""
    scaled = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def load_autoencoder(name_or_dir: str) -> FirstStage:
    """Open a first stage.

    Args:
        name_or_dir: `assets://autoencoder-kl-f4`, `assets://autoencoder-vq-f4`, or a directory in
            the layout of diffusers' `AutoencoderKL` or `VQModel` (`config.json` and
            `diffusion_pytorch_model.safetensors`).

    Raises:
        ModelError: it does not exist, is neither of the two, has no safetensors weights, or is
            damaged.
    """
    # diffusers takes seconds to import: only after the folder turned out to hold one of the two.
    directory, kind = first_stage_folder(name_or_dir)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    # Complete weights in float32, or an error: diffusers alone would fill gaps with random numbers.
    try:
        loaded: Any = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}[kind].from_pretrained(
            str(directory),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, json and torch each raise their own on a damaged file
        raise cannot_be_opened(directory, error) from error

    model, info = loaded
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ModelError(
            f"configuration and weights do not agree, first at {wrong[0]}",
            where=directory,
            fix="restore its files, or export it again",
        )
    return FirstStage(model, name_or_dir)
