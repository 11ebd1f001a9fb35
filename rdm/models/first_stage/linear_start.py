"""Weights by which an autoencoder starts as the linear one, so training only has to improve on it.

A fresh autoencoder spends most of a short training on finding latents that say anything. Here some
channels, the carriers, take the pixels of each block to its principal components and back through
the skip connections; every residual branch starts without influence on them, and all other channels
start as they are. Two things are not exact:

- The norm and SiLU before each last convolution. x = SiLU(x) - SiLU(-x), so carriers come in pairs
  of opposite sign; a pair of large constants in their group keeps the norm's divisor almost
  independent of the picture.
- Upsampling. A convolution after nearest-neighbor upsampling cannot place a different value in each
  pixel of a block, so the decoder starts with the mean color of each block, bilinearly
  interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rdm.models.first_stage.block_projection import BlockProjection
from rdm.models.first_stage.first_stage import encoder_output

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

# Constants that dominate the norm's variance: several standard deviations of what the group carries
# (components have unit variance, colors lie in [-1, 1]).
_ENCODER_CONSTANT = 8.0
_DECODER_CONSTANT = 3.0
_LOG_VARIANCE = -4.6  # the posterior starts with a standard deviation of 0.1


@torch.no_grad()
def start_from_projection(
    model: AutoencoderKL | VQModel, projection: BlockProjection, images: Tensor
) -> None:
    """Set a fresh autoencoder's weights so that its latents are a projection's coordinates.

    These have unit variance.

    Args:
        model: `latent_channels` equals the projection's components, and its factor the projection's
            block.
        projection: fitted on pictures like `images`.
        images: float [N, 3, H, W] in [-1, 1], on which the norms are calibrated.

    Raises:
        ValueError: the network has no room (see `start_problem`), or the projection another shape.
    """
    # There must be room for the carriers in every level and group.
    channels, latent_channels = model.config["block_out_channels"], model.config["latent_channels"]
    if problem := start_problem(channels, latent_channels, model.config["norm_num_groups"]):
        raise ValueError(problem)
    if (2 ** (len(channels) - 1), latent_channels) != (projection.block, projection.num_components):
        raise ValueError(
            f"blocks of {projection.block} with {projection.num_components} components do not fit "
            f"{len(channels)} levels with {latent_channels} latent channels"
        )

    # Carriers through both halves; the 1x1 convolutions between them become the identity.
    _start_encoder(model.encoder, projection)
    _start_decoder(model.decoder, projection)
    for convolution in (model.quant_conv, model.post_quant_conv):
        if convolution is not None:
            nn.init.dirac_(convolution.weight)
            nn.init.zeros_(_bias(convolution))

    # Only now the norms see what they will see: first the encoder's, then, through it, the
    # decoder's.
    count = projection.num_components
    _calibrate(_norm(model.encoder), 2 * count, lambda: encoder_output(model, images))

    # Of [mean, log-variance] the decoder gets the mean; a convolution before it may be absent.
    post_quant: Any = model.post_quant_conv
    latents = encoder_output(model, images)[
        :, : count if post_quant is None else post_quant.in_channels
    ]
    _calibrate(
        _norm(model.decoder),
        6,
        lambda: model.decoder(latents if post_quant is None else post_quant(latents)),
    )


def start_problem(channels: Sequence[int], latent_channels: int, num_groups: int) -> str | None:
    """Return why these `block_out_channels` have no room for the carriers; None if they have."""
    if len(channels) < 2 or channels[0] == channels[1] or channels[-1] == channels[-2]:
        return (
            "the first two and the last two levels must differ in width: pairs are made "
            "in a shortcut that projects"
        )

    # Level i takes in blocks of 2^i pixels a side, and hands on those of twice the side; the last
    # but one hands on components. The encoder ends with pairs of components, the decoder with
    # pairs of colors.
    last = len(channels) - 1
    needed = [
        max(8, 3 * 4**level, latent_channels if level == last - 1 else 3 * 4 ** (level + 1))
        for level in range(last)
    ] + [2 * latent_channels + 2]

    if any(have < need for have, need in zip(channels, needed, strict=True)):
        return f"the levels have {tuple(channels)} channels and carry {tuple(needed)}"

    # All pairs must lie in the first group of their norm, which the constants dominate.
    group = min(channels[0] // num_groups - 8, channels[-1] // num_groups - needed[-1])
    return f"groups are {-group} channels too small: lower norm_num_groups" if group < 0 else None


def _start_encoder(encoder: Any, projection: BlockProjection) -> None:
    """Take each block's pixels to its components, and end with pairs that the last norm spares."""
    count, last = projection.num_components, len(encoder.down_blocks) - 1
    _pass_on(encoder.conv_in, 3)

    # Each level packs four blocks into one of twice the side; the last but one makes components.
    for level, block in enumerate(encoder.down_blocks[:last]):
        side = 2**level
        for resnet in block.resnets:
            _silence(resnet, 3 * side * side)
            if resnet.conv_shortcut is not None:
                _pass_on(resnet.conv_shortcut, 3 * side * side)

        if level < last - 1:
            _gather(
                block.downsamplers[0].conv,
                torch.eye(12 * side * side),
                torch.zeros(12 * side * side),
                side,
            )
        else:
            whitening = (projection.components / projection.std).T
            _gather(block.downsamplers[0].conv, whitening, -whitening @ projection.mean, side)

    # The lowest level carries the components as pairs of opposite sign.
    resnets = [*encoder.down_blocks[last].resnets, *encoder.mid_block.resnets]
    for resnet in resnets:
        _silence(resnet, 2 * count + 2)

    _pair_up(resnets[0].conv_shortcut, count, _ENCODER_CONSTANT)
    _join_pairs(encoder.conv_out, count)
    # A KL autoencoder's log-variances start as a constant.
    _bias(encoder.conv_out)[count:] = _LOG_VARIANCE


def _start_decoder(decoder: Any, projection: BlockProjection) -> None:
    """Take components to the mean color of their block, and smooth it up to full resolution."""
    # [3, K]: the mean of the block's colors for each component.
    synthesis = (
        (projection.components * projection.std).reshape(-1, 3, projection.num_components).mean(0)
    )

    _clear(decoder.conv_in, 3)
    decoder.conv_in.weight[:3, :, 1, 1] = synthesis
    _bias(decoder.conv_in)[:3] = projection.mean.reshape(-1, 3).mean(0)

    for resnet in decoder.mid_block.resnets:
        _silence(resnet, 3)

    # Every upsampling doubles pixels, and a tent over them is bilinear interpolation.
    tent = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks[:-1]:
        for resnet in block.resnets:
            _silence(resnet, 3)
            if resnet.conv_shortcut is not None:
                _pass_on(resnet.conv_shortcut, 3)

        convolution = block.upsamplers[0].conv
        _clear(convolution, 3)
        for color in range(3):
            convolution.weight[color, color] = tent[:, None] * tent

    # At full resolution the colors are pairs, which the last convolution joins.
    for resnet in decoder.up_blocks[-1].resnets:
        _silence(resnet, 8)
    _pair_up(decoder.up_blocks[-1].resnets[0].conv_shortcut, 3, _DECODER_CONSTANT)
    _join_pairs(decoder.conv_out, 3)


def _clear(convolution: Any, count: int) -> None:
    convolution.weight[:count] = 0
    _bias(convolution)[:count] = 0


def _pass_on(convolution: Any, count: int) -> None:
    """Make the first `count` outputs copies of the first `count` inputs."""
    _clear(convolution, count)
    center = convolution.kernel_size[0] // 2
    for channel in range(count):
        convolution.weight[channel, channel, center, center] = 1


def _silence(resnet: Any, count: int) -> None:
    """Let a residual branch add nothing to the first `count` channels."""
    _clear(resnet.conv2, count)


def _gather(convolution: Any, matrix: Tensor, bias: Tensor, side: int) -> None:
    """Make a strided convolution's first K outputs `matrix` [K, 12 * side^2] times a block.

    The block has twice the side of those that the inputs carry.

    diffusers pads at the right and at the bottom, so taps 0 and 1 are the two halves of a block,
    and tap 2 is the next.
    """
    count = len(matrix)
    _clear(convolution, count)
    # [K, y half, y, x half, x, color] to [K, y, x, color, y half, x half]: halves become taps.
    taps = matrix.reshape(count, 2, side, 2, side, 3).permute(0, 2, 4, 5, 1, 3)
    convolution.weight[:count, : 3 * side * side, :2, :2] = taps.reshape(
        count, 3 * side * side, 2, 2
    )
    _bias(convolution)[:count] = bias


def _pair_up(shortcut: Any, count: int, constant: float) -> None:
    """Carry +x in the first `count` channels, -x in the next, then a pair of constants."""
    _clear(shortcut, 2 * count + 2)
    for channel in range(count):
        shortcut.weight[channel, channel] = 1
        shortcut.weight[count + channel, channel] = -1
    _bias(shortcut)[2 * count] = constant
    _bias(shortcut)[2 * count + 1] = -constant


def _join_pairs(convolution: Any, count: int) -> None:
    """Make the first `count` outputs SiLU(x) - SiLU(-x) = x, and any others zero."""
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(_bias(convolution))
    for channel in range(count):
        convolution.weight[channel, channel, 1, 1] = 1
        convolution.weight[channel, count + channel, 1, 1] = -1


def _calibrate(norm: nn.GroupNorm, count: int, run: Callable[[], object]) -> None:
    """Let a norm give back the first `count` channels, all in its first group, at their scale."""

    # The norm divides by this deviation, so the weight is set to it.
    def undo(_: nn.Module, inputs: tuple[Tensor]) -> None:
        grouped = inputs[0].reshape(len(inputs[0]), norm.num_groups, -1)[:, 0]
        norm.weight[:count] = grouped.var(-1, unbiased=False).sqrt().mean()

    handle = norm.register_forward_pre_hook(undo)
    try:
        run()
    finally:
        handle.remove()


def _bias(module: Any) -> Tensor:
    return module.bias


def _norm(half: Any) -> nn.GroupNorm:
    return half.conv_norm_out
