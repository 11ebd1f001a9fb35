"""Losses of first stages (Rombach et al. 2022, appendix G; Esser et al. 2021, equations 5 to 7)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

_DELTA = 1e-6  # of equation 7
_GREATEST_WEIGHT = 1e4  # as published: a vanishing adversarial gradient must not explode


def root_mean_squared_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the root mean squared error of each picture, [B], of pictures [B, 3, H, W].

    The root lies between the squared error, which spends the network on the busiest pictures, and
    its logarithm, which is PSNR and chases the calmest. 1e-6 under the root keeps the gradient
    finite at a perfect reconstruction.
    """
    return ((reconstructions - images).square().mean((1, 2, 3)) + 1e-6).sqrt()


def mean_absolute_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the mean absolute error [B] of pictures [B, 3, H, W]: published first stages' L1."""
    return (reconstructions - images).abs().mean((1, 2, 3))


def standard_normal_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return D(N(mean, e^logvar) || N(0, 1)) in nats, the mean over latent numbers: a scalar."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def scaled_and_turned(
    latents: Tensor, images: Tensor, scale: float, quarter_turns: int
) -> tuple[Tensor, Tensor]:
    """Scale and turn latents [B, C, h, w] and pictures [B, 3, fh, fw] alike (EQ-VAE, eq. 5).

    See arXiv 2502.09509.

    Args:
        latents: of the pictures.
        images: float pictures, f times as large.
        scale: in (0, 1]; the latents' sides are rounded to whole numbers, at least 1, and the
            pictures' follow.
        quarter_turns: counterclockwise.
    """
    factor = images.shape[-1] // latents.shape[-1]
    sides = [max(1, round(side * scale)) for side in latents.shape[-2:]]
    # Whole numbers of latents, and exactly f times as many pixels.
    if sides != list(latents.shape[-2:]):
        latents = F.interpolate(
            latents, sides, mode="bilinear", antialias=True, align_corners=False
        )
        larger = [side * factor for side in sides]
        images = F.interpolate(images, larger, mode="bilinear", antialias=True, align_corners=False)

    turned = (torch.rot90(tensor, quarter_turns, (-2, -1)) for tensor in (latents, images))
    latents, images = (tensor.contiguous(memory_format=torch.channels_last) for tensor in turned)
    return latents, images


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor) -> Tensor:
    """Return lambda = |grad_L rec| / (|grad_L adv| + delta), clamped (Esser et al. 2021, eq. 7).

    Args:
        reconstruction_gradient: of the pixel and perceptual terms, at the decoder's last layer L.
        adversarial_gradient: of the discriminator's judgement, at the same layer.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + _DELTA)
    return ratio.clamp(0, _GREATEST_WEIGHT)


def last_layer_gradient(layer: nn.Conv2d, inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """Return the gradient of a convolution's weight from that of its output.

    This is the last step of the chain rule alone: two losses' gradients at the last layer need no
    backward pass through the decoder.

    Args:
        layer: the convolution; only its sizes are looked at, so that its weight may lie elsewhere
            (ZeRO 3).
        inputs: [B, C, H, W], the convolution's.
        output_gradient: [B, D, H, W], of a loss by the output.
    """
    shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
    # torch takes pairs, though its annotations do not say so.
    placing: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation)
    with torch.autocast(inputs.device.type, enabled=False):
        return conv2d_weight(inputs.detach().float(), shape, output_gradient.float(), *placing)


def with_gradient(value: Tensor, at: Tensor, gradient: Tensor) -> Tensor:
    """Return a scalar of the given value whose gradient by `at` is the given one.

    It stands for a loss that was differentiated early.

    Args:
        value: scalar.
        at: a tensor that is part of the graph.
        gradient: like `at`.
    """
    # Linear in `at` with the wanted slope; subtracting its own value leaves only the gradient.
    linear = (at * gradient.detach()).sum()
    return value.detach() + linear - linear.detach()
