"""The patch discriminator (Isola et al. 2017), and its hinge loss against a first stage."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_GREATEST_WIDENING = 8
_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Judges each overlapping patch of a picture of any size: real where positive.

    Strided 4x4 convolutions, as published. Group norms stand where the original has batch norms:
    they hold no running state, and a picture is judged alike in any batch and on any number of
    ranks.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3) -> None:
        """Build with random weights.

        Args:
            channels: of the first layer, a multiple of 8; doubled by each further one, up to
                eightfold.
            num_layers: strided convolutions: 2 see patches of 34 pixels a side, 3 of 70.
        """
        super().__init__()
        widths = [channels * min(2**level, _GREATEST_WIDENING) for level in range(num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        # All of these layers but the last halve the side.
        for level in range(1, num_layers + 1):
            stride = 2 if level < num_layers else 1
            layers += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False),
                nn.GroupNorm(_GROUPS, widths[level]),
                nn.LeakyReLU(0.2),
            ]

        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.apply(_start)

    def forward(self, images: Tensor) -> Tensor:
        """Return a judgement of each patch, [B, 1, h, w], of pictures [B, 3, H, W] in [-1, 1]."""
        return self.layers(images)


def smallest_side(num_layers: int) -> int:
    """Return the side in pixels of the smallest picture that a discriminator can judge."""
    return 3 * 2**num_layers


def discriminator_hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return (E max(0, 1 - D(x)) + E max(0, 1 + D(x^))) / 2, a scalar (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_hinge_loss(fake: Tensor) -> Tensor:
    """Return -E D(x^) of judgements of reconstructions: a scalar, unbounded below."""
    return -fake.mean()


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
