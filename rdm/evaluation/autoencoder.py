"""How well a first stage keeps pictures, beside the best linear one of the same size, and what its latents are like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rdm.models.block_projection import BlockProjection
from rdm.models.first_stage import FirstStage, to_signed
from rdm.training.photos import PhotoConfig, PhotoShards


def to_8_bit(images: Tensor) -> Tensor:
    """Return pictures float in [-1, 1] as the uint8 that a file would hold."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, float64 [N]: 10 log10(255^2 / MSE).

    Args:
        images: uint8 [N, 3, H, W].
        reconstructions: likewise.
    """
    error = (images.double() - reconstructions.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def evaluate_autoencoder(
    first_stage: FirstStage, images: Tensor, baseline: BlockProjection | None = None
) -> dict[str, Any]:
    """Measure a first stage on pictures it has not seen.

    Args:
        first_stage: encodes to the posterior mean and decodes to 8-bit pictures.
        images: uint8 [N, 3, H, W].
        baseline: a linear projection fitted on training pictures, float in [-1, 1]; None: no linear baseline.

    Returns:
        `psnr_db` (mean over pictures), `psnr_db_5_percent` (one picture in twenty is worse), `linear_psnr_db`,
        `noisy_psnr_db` (with Gaussian noise of standard deviation 0.1 on the scaled latents: how a small error of a
        diffusion model shows), `latent_mean` and `latent_std` per channel of the scaled latents.
    """
    latents = first_stage.encode(images)
    values = psnr(images, to_8_bit(first_stage.decode(latents)))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = first_stage.decode(latents + 0.1 * noise)
    result = {
        "num_images": len(images),
        "psnr_db": float(values.mean()),
        "psnr_db_5_percent": float(values.quantile(0.05)),
        "noisy_psnr_db": float(psnr(images, to_8_bit(noisy)).mean()),
        "latent_mean": latents.mean((0, 2, 3)).tolist(),
        "latent_std": latents.std((0, 2, 3)).tolist(),
    }
    if baseline is not None:
        linear = to_8_bit(baseline.reconstruct(to_signed(images)))
        result["linear_psnr_db"] = float(psnr(images, linear).mean())
    return result


def evaluate_on_source(
    first_stage: FirstStage, source: str, config: PhotoConfig, num_images: int = 512
) -> dict[str, Any]:
    """Measure a first stage on a source's held-out photographs, beside the linear baseline of its other photographs.

    Raises:
        SourceError: the source holds nothing out, or cannot be read.
    """
    training = torch.from_numpy(PhotoShards(source, config).sample(2000))
    held_out = torch.from_numpy(PhotoShards(source, config, held_out=True).sample(num_images))
    baseline = BlockProjection.fit(
        to_signed(training), block=first_stage.factor, num_components=first_stage.latent_channels
    )
    return {"source": source, "image_size": config.image_size, **evaluate_autoencoder(first_stage, held_out, baseline)}
