"""The encoder of a KL autoencoder in plain PyTorch, under diffusers' parameter names.

Importing diffusers takes four seconds of processor time, longer than a small cache takes to encode,
and every worker would pay it. The moments are those of `AutoencoderKL` to the bit, which
`tests/models/first_stage/test_plain_encoder.py` checks against the library. Networks of other
blocks, or with attention, are left to the library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from rdm.config import Record
from rdm.models.first_stage.first_stage import ENCODED_AT_ONCE, check_sides, to_signed
from rdm.models.first_stage.first_stage_folder import WEIGHTS_NAME, cannot_be_opened


class PlainConfig(Record):
    """The autoencoders that this file knows, under diffusers' names."""

    act_fn: Literal["silu"] = "silu"
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...]
    in_channels: Literal[3] = 3
    latent_channels: int
    layers_per_block: int
    mid_block_add_attention: Literal[False]
    norm_num_groups: int
    use_quant_conv: bool = True


class PlainEncoder(nn.Module):
    """Pictures to the moments of their posterior."""

    def __init__(self, config: PlainConfig, name: str) -> None:
        super().__init__()
        self.name = name
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        moments = 2 * config.latent_channels
        self.encoder = _Encoder(config, moments)
        self.quant_conv = nn.Conv2d(moments, moments, 1) if config.use_quant_conv else None

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior, see `FirstStage.encode_moments`."""
        check_sides(images, self.factor, self.name)
        parts = [self._encode(part) for part in images.split(ENCODED_AT_ONCE)]
        mean, logvar = torch.cat(parts).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def _encode(self, images: Tensor) -> Tensor:
        pictures = to_signed(images).to(self.device).contiguous(memory_format=torch.channels_last)
        moments = self.encoder(pictures)
        return moments if self.quant_conv is None else self.quant_conv(moments)


def open_plain_encoder(directory: Path, name: str) -> PlainEncoder | None:
    """Open the encoder of an autoencoder's folder; None if this file does not know its kind.

    Args:
        directory: `config.json` and the weights, as diffusers saves them.
        name: how it was named, for messages.

    Raises:
        ModelError: the folder is damaged.
    """
    # A configuration that is readable but of other blocks is for the library.
    try:
        found: Any = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        config = PlainConfig.model_validate(
            {key: found[key] for key in PlainConfig.model_fields if key in found}
        )
    except ValidationError:
        return None
    except (OSError, ValueError) as error:
        raise cannot_be_opened(directory, error) from error

    # On `meta`, since fresh weights would be thrown away.
    with torch.device("meta"):
        encoder = PlainEncoder(config, name)

    try:
        state = load_file(directory / WEIGHTS_NAME)
        # The decoder's weights are not needed.
        encoding = {
            key: value.float()
            for key, value in state.items()
            if key.startswith(("encoder.", "quant_conv."))
        }
        encoder.load_state_dict(encoding, assign=True)
    except Exception as error:  # safetensors and torch each raise their own on a damaged file
        raise cannot_be_opened(directory, error) from error

    return encoder.requires_grad_(False).eval().to(memory_format=torch.channels_last)


class _Encoder(nn.Module):
    """Levels of residual blocks, each of half the last one's side, and two more at the lowest."""

    def __init__(self, config: PlainConfig, out_channels: int) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        # Widths and names as diffusers has them, so that its weights fit.
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        before = (widths[0], *widths[:-1])
        self.down_blocks = nn.ModuleList(
            _Level(before[level], widths[level], config, is_last=level == len(widths) - 1)
            for level in range(len(widths))
        )

        middle = [_Residual(widths[-1], widths[-1], groups) for _ in range(2)]
        self.mid_block = nn.ModuleDict({"resnets": nn.ModuleList(middle)})
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the moments [B, 2 C, H/f, W/f] of pictures [B, 3, H, W]."""
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        for block in self.mid_block["resnets"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class _Level(nn.Module):
    """Residual blocks of one resolution, and the step to half of it."""

    def __init__(self, channels: int, width: int, config: PlainConfig, *, is_last: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _Residual(channels if layer == 0 else width, width, config.norm_num_groups)
            for layer in range(config.layers_per_block)
        )
        halving = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride=2)})
        self.downsamplers = nn.ModuleList([] if is_last else [halving])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        for halving in self.downsamplers:
            # diffusers pads at the right and at the bottom only.
            x = halving["conv"](F.pad(x, (0, 1, 0, 1)))  # pyright: ignore[reportIndexIssue]
        return x


class _Residual(nn.Module):
    """Two convolutions, each after a norm and SiLU, added to the input."""

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=1e-6)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if channels != width:
            self.conv_shortcut = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        same = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return same + hidden
