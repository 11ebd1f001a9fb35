"""How well a first stage keeps pictures, beside the best linear one of the same size, and what its
latents are like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdm.evaluation.metrics.fid import FEATURE_NETWORK, RESIZE, InceptionFeatures, frechet_distance
from rdm.evaluation.metrics.fidelity import LEAST, halves_fidelity
from rdm.models.first_stage.block_projection import BlockProjection
from rdm.models.first_stage.codebook import perplexity, row_counts, used_share
from rdm.models.first_stage.first_stage import FirstStage, to_signed
from rdm.models.first_stage.perceptual import PerceptualDistance
from rdm.progress import tracking
from rdm.training.data.photographs import PhotoConfig, PhotoShards

_NUM_BASELINE = 2000  # photographs that the linear baseline is fitted to
_BATCH = 32


@dataclass(frozen=True)
class Judges:
    """Networks that compare pictures and reconstructions; None: not measured.

    Attributes:
        perceptual: distance picture by picture.
        inception: features for the Frechet distance between all pictures and all reconstructions.
    """

    perceptual: PerceptualDistance | None = None
    inception: InceptionFeatures | None = None


def to_8_bit(images: Tensor) -> Tensor:
    """Return pictures float in [-1, 1] as the uint8 that a file would hold."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, float64 [N]: 10 log10(255^2 /
    MSE).

    Args:
        images: uint8 [N, 3, H, W].
        reconstructions: likewise.
    """
    error = (images.double() - reconstructions.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def evaluate_autoencoder(
    first_stage: FirstStage,
    images: Tensor,
    baseline: BlockProjection | None = None,
    judges: Judges | None = None,
) -> dict[str, Any]:
    """Measure a first stage on pictures it has not seen.

    Args:
        first_stage: encodes to the posterior mean, or to codebook rows, and decodes to 8-bit
            pictures.
        images: uint8 [N, 3, H, W].
        baseline: a linear projection fitted on training pictures, float in [-1, 1]; None: no linear
            baseline.
        judges: for `perceptual` and `rfid`; None: neither.

    Returns:
        `psnr_db` (mean over pictures), `psnr_db_5_percent` (one picture in twenty is worse),
        `linear_psnr_db`, `noisy_psnr_db` (with Gaussian noise of standard deviation 0.1 on the
        scaled latents: how a small error of a diffusion model shows), `latent_mean` and
        `latent_std` per channel of the scaled latents; `codebook_used` and `codebook_perplexity` of
        a VQ autoencoder; `perceptual` (mean distance), `rfid`, and what both were measured with;
        `fidelity`, of four pictures or more: KID with its interval and FID above that of real
        pictures, of the reconstructions of one half of the pictures to the other half.
    """
    latents = first_stage.encode(images).cpu()
    reconstructions = to_8_bit(first_stage.decode(latents).cpu())
    values = psnr(images, reconstructions)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = first_stage.decode(latents + 0.1 * noise).cpu()
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
    if first_stage.codebook is not None:
        counts = row_counts(first_stage.encode_indices(images).cpu(), len(first_stage.codebook))
        result["codebook_size"] = len(counts)
        result["codebook_used"] = float(used_share(counts))
        result["codebook_perplexity"] = float(perplexity(counts))
    return {**result, **_judged(images, reconstructions, judges or Judges())}


def evaluate_on_source(
    first_stage: FirstStage,
    source: str,
    config: PhotoConfig,
    num_images: int = 512,
    judges: Judges | None = None,
) -> dict[str, Any]:
    """Measure a first stage on a source's held-out photographs, beside the linear baseline of its
    other photographs.

    Where all photographs are held out, there is no other one, and no baseline.

    Raises:
        SourceError: the source holds nothing out, or cannot be read.
    """
    held_out = torch.from_numpy(PhotoShards(source, config, held_out=True).sample(num_images))
    baseline = None
    if config.held_out_fraction < 1:
        training = torch.from_numpy(PhotoShards(source, config).sample(_NUM_BASELINE))
        baseline = BlockProjection.fit(
            to_signed(training),
            block=first_stage.factor,
            num_components=first_stage.latent_channels,
        )
    return {
        "source": source,
        "image_size": config.image_size,
        **evaluate_autoencoder(first_stage, held_out, baseline, judges),
    }


@torch.no_grad()
def _judged(images: Tensor, reconstructions: Tensor, judges: Judges) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if judges.perceptual is not None:
        parts = zip(images.split(_BATCH), reconstructions.split(_BATCH), strict=True)
        device = next(judges.perceptual.parameters()).device
        distances = [
            judges.perceptual(to_signed(one).to(device), to_signed(other).to(device)).cpu()
            for one, other in parts
        ]
        result["perceptual"] = float(torch.cat(distances).mean())
        result["perceptual_network"] = judges.perceptual.description
    if judges.inception is not None:
        features = []
        with tracking("FID features", 2, "sets") as tracker:
            for pictures in (images, reconstructions):
                features.append(judges.inception(pictures.permute(0, 2, 3, 1).contiguous().numpy()))
                tracker.advance()
        rfid = frechet_distance(features[1], features[0])
        result |= {"rfid": rfid, "rfid_network": FEATURE_NETWORK, "rfid_resize": RESIZE}
        if len(images) >= 2 * LEAST:
            result["fidelity"] = halves_fidelity(features[0], features[1]).model_dump()
    return result
