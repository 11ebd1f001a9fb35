"""Random changes of photographs and latents that a first stage trains on."""

from __future__ import annotations

import torch
from torch import Tensor

from rdm.models.first_stage.first_stage import to_signed
from rdm.models.first_stage.losses import scaled_and_turned
from rdm.training.objectives.autoencoder_config import EquivarianceConfig


def random_crops(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return one random crop of each picture, mirrored half the time, float in [-1, 1]."""
    count = len(images)
    free = torch.tensor(
        [images.shape[-2] - side + 1, images.shape[-1] - side + 1], device=images.device
    )
    # Drawn where the generator is: torch refuses a generator of another device.
    draws = torch.rand(count, 2, generator=generator, device=generator.device)
    corners = (draws.to(images.device) * free).long()
    mirrored = (torch.rand(count, generator=generator, device=generator.device) < 0.5).tolist()

    crops = []
    for image, (top, left), flip in zip(images, corners.tolist(), mirrored, strict=True):
        crop = image[:, top : top + side, left : left + side]
        crops.append(crop.flip(-1) if flip else crop)
    return to_signed(torch.stack(crops)).contiguous(memory_format=torch.channels_last)


def transformed_alike(
    latents: Tensor, images: Tensor, config: EquivarianceConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return latents and pictures scaled and turned alike in a random share of the steps.

    Args:
        latents: what the decoder gets.
        images: photographs, which the decoded latents are compared with.
        config: how often, and the smallest scale.
        generator: draws whether, the scale, and the quarter turns.
    """
    if not config.probability:
        return latents, images
    chance, position, turn = torch.rand(3, generator=generator, device=generator.device).tolist()
    if chance >= config.probability:
        return latents, images
    scale = config.smallest_scale + (1 - config.smallest_scale) * position
    return scaled_and_turned(latents, images, scale, int(4 * turn))


def with_noise(latents: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Return latents with Gaussian noise, of a level uniform in [0, `largest`] per picture."""
    device = generator.device
    levels = torch.rand(len(latents), generator=generator, device=device).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator, device=device).to(latents.device)
    # in units of the latents' own spread: the encoder could outgrow any other
    spread = latents.detach().std()
    return latents + largest * spread * levels.view(-1, 1, 1, 1) * noise
