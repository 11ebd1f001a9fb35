"""The first stage: diffusers' `AutoencoderKL`, opened by name and used with scaled latents."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.errors import ModelError

if TYPE_CHECKING:  # diffusers takes seconds to import: it is loaded when a network is built
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

ASSET_PREFIX = "assets://"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
_BATCH = 64  # pictures in flight: bounds the activations at full resolution
# What decides a latent, with the weights. Not the whole configuration: newer versions of diffusers add fields to it.
_DIGESTED = (
    "act_fn",
    "block_out_channels",
    "latent_channels",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
)


class AutoencoderConfig(Config):
    """A convolutional KL autoencoder (Rombach et al. 2022) that shrinks each side by `factor`."""

    latent_channels: int = Field(default=4, ge=1)
    block_out_channels: tuple[int, ...] = Field(
        default=(16, 64, 96), min_length=1, description="channels of each level, full resolution first"
    )
    layers_per_block: int = Field(default=1, ge=1, description="residual blocks per level; the decoder has one more")
    norm_num_groups: int = Field(default=2, ge=1, description="groups of the group norms")
    mid_attention: bool = Field(default=False, description="self-attention at the lowest resolution")
    sample_size: int = Field(default=64, ge=1, description="side of the training pictures, pixels")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(f"{channels} channels are no multiple of norm_num_groups {self.norm_num_groups}")
        if self.sample_size % self.factor:
            raise ValueError(f"sample_size {self.sample_size} is no multiple of the factor {self.factor}")
        return self

    @property
    def factor(self) -> int:
        """f: how many pixels of each side become one latent position."""
        return 2 ** (len(self.block_out_channels) - 1)


def autoencoder_kl_f4_lite() -> AutoencoderConfig:
    """Return the embedded first stage: f = 4, 4 channels, 1.6M parameters, most of them at the low resolution."""
    return AutoencoderConfig()


def autoencoder_kl_f4() -> AutoencoderConfig:
    """Return latent-diffusion's KL-f4: 3 channels, 128-256-512, 55M parameters; for an accelerator."""
    return AutoencoderConfig(
        latent_channels=3,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        norm_num_groups=32,
        mid_attention=True,
        sample_size=256,
    )


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """Return an autoencoder with fresh weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(config.block_out_channels)
    arguments: dict[str, Any] = {  # a dictionary, because diffusers annotates its tuples as having one element
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": config.block_out_channels,
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "sample_size": config.sample_size,
        "scaling_factor": 1.0,
        "mid_block_add_attention": config.mid_attention,
    }
    return AutoencoderKL(**arguments)


class FirstStage:
    """A trained autoencoder between pictures and latents of about unit variance: `(mean - shift) * scale`.

    It never trains: its weights are frozen and nothing here records gradients.

    Attributes:
        model: the network, in evaluation mode.
        name: how it was opened.
        digest: 16 hexadecimal digits of configuration and weights; latents of equal digests are interchangeable.
    """

    def __init__(self, model: AutoencoderKL, name: str) -> None:
        frozen: Any = model.eval().requires_grad_(False)
        self.model: AutoencoderKL = frozen.to(memory_format=torch.channels_last)  # a CPU computes this layout faster
        self.name = name
        self.digest = _digest(model)

    @property
    def factor(self) -> int:
        """f: how many pixels of each side become one latent position."""
        return 2 ** (len(self.model.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.model.config["latent_channels"]

    @property
    def shift(self) -> float:
        """What is subtracted from a posterior mean before scaling."""
        return float(self.model.config["shift_factor"] or 0.0)

    @property
    def scale(self) -> float:
        """diffusers' `scaling_factor`: what gives the latents unit variance."""
        return float(self.model.config["scaling_factor"])

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> FirstStage:
        """Move the weights to a device and return self."""
        torch.nn.Module.to(self.model, device)
        return self

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior, unscaled, float32 [B, C, H/f, W/f] each.

        Args:
            images: [B, 3, H, W], uint8, or float in [-1, 1]; H and W are multiples of f.

        Raises:
            ModelError: a side of the pictures is no multiple of f.
        """
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ModelError(
                f"pictures of {width}x{height} pixels cannot be encoded with f = {self.factor}",
                where=self.name,
                fix=f"resize or crop both sides to a multiple of {self.factor}",
            )
        posteriors = [
            self.model.encode(self._input(to_signed(part))).latent_dist  # type: ignore[union-attr]
            for part in images.split(_BATCH)
        ]
        return (
            torch.cat([posterior.mean for posterior in posteriors]).float(),
            torch.cat([posterior.logvar for posterior in posteriors]).float(),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled posterior means, float32 [B, C, H/f, W/f]; arguments and errors as `encode_moments`."""
        return (self.encode_moments(images)[0] - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pictures float32 [B, 3, fH, fW] in [-1, 1] of scaled latents [B, C, H, W]."""
        raw = latents / self.scale + self.shift
        parts = [self.model.decode(self._input(part)).sample for part in raw.split(_BATCH)]  # type: ignore[union-attr]
        return torch.cat(parts).float().clamp(-1, 1)

    def _input(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.model.dtype).contiguous(memory_format=torch.channels_last)


def to_signed(images: Tensor) -> Tensor:
    """Return pictures as float in [-1, 1]; uint8 is converted, floats are taken to be so already."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images.float()


def load_autoencoder(name_or_dir: str) -> FirstStage:
    """Open a first stage.

    Args:
        name_or_dir: `assets://autoencoder-kl-f4`, or a directory in the layout of diffusers' `AutoencoderKL`
            (`config.json` and `diffusion_pytorch_model.safetensors`).

    Raises:
        ModelError: it does not exist, is no `AutoencoderKL`, has no safetensors weights, or is damaged.
    """
    embedded = name_or_dir.startswith(ASSET_PREFIX)
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    directory = _asset_directory(name_or_dir) if embedded else Path(name_or_dir).expanduser()
    _check_directory(directory)
    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            str(directory),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, json and torch each raise their own on a damaged file
        raise ModelError(
            f"the autoencoder cannot be opened: {type(error).__name__}: {error}",
            where=directory,
            fix="restore its files, or export it again",
        ) from error
    model, info = loaded
    if wrong := sorted({*info["missing_keys"], *info["unexpected_keys"]}):
        raise ModelError(
            f"configuration and weights do not agree, first at {wrong[0]}",
            where=directory,
            fix="restore its files, or export it again",
        )
    return FirstStage(model, name_or_dir)


def _asset_directory(name: str) -> Path:
    stem = name.removeprefix(ASSET_PREFIX)
    root = Path(str(importlib.resources.files("rdm"))) / "assets"
    if not re.fullmatch(r"[a-z0-9-]+", stem) or not (root / stem / "config.json").is_file():
        known = sorted(path.parent.name for path in root.glob(f"*/{WEIGHTS_NAME}"))
        raise ModelError(
            f"there is no embedded first stage {name!r}",
            fix=f"embedded first stages: {', '.join(ASSET_PREFIX + stem for stem in known)}",
        )
    return root / stem


def _check_directory(directory: Path) -> None:
    config = directory / "config.json"
    if not config.is_file():
        raise ModelError(
            "there is no autoencoder here",
            where=directory,
            fix="name assets://autoencoder-kl-f4, or the folder of a diffusers AutoencoderKL",
        )
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "config.json is not a diffusers configuration",
            where=config,
            fix="restore it, or export the autoencoder again",
        ) from error
    if kind != "AutoencoderKL":
        raise ModelError(f"this is a {kind}, not an AutoencoderKL", where=config, fix="name a KL autoencoder's folder")
    if not (directory / WEIGHTS_NAME).is_file():
        raise ModelError(
            f"there is no {WEIGHTS_NAME}; other weights are not read, because a pickle can run code",
            where=directory,
            fix="save the autoencoder again with safe_serialization=True",
        )


def _digest(model: AutoencoderKL) -> str:
    digest = hashlib.sha256()
    config = {key: model.config.get(key) for key in _DIGESTED}
    digest.update(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
