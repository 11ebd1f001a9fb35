"""First stages measured: how well they keep pictures, and what their latents are like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdm.config import Record, absent
from rdm.evaluation.metrics.fid import FEATURE_NETWORK, RESIZE, InceptionFeatures, frechet_distance
from rdm.evaluation.metrics.fidelity import LEAST, Fidelity, halves_fidelity
from rdm.models.first_stage.block_projection import BlockProjection
from rdm.models.first_stage.codebook import perplexity, row_counts, used_share
from rdm.models.first_stage.first_stage import FirstStage, to_signed
from rdm.models.first_stage.perceptual import PerceptualDistance
from rdm.progress import tracking
from rdm.training.data.photographs import PhotoConfig, PhotoShards

_NUM_BASELINE = 2000  # photographs that the linear baseline is fitted to
_BATCH = 32


class AutoencoderEvaluation(Record):
    """What was measured of a first stage; what was not asked for, or does not apply, is None."""

    source: str | None = absent()
    """Of the photographs."""
    image_size: int | None = absent()
    """Their side, pixels."""
    num_images: int
    psnr_db: float
    """Mean over the pictures."""
    psnr_db_5_percent: float
    """One picture in twenty is worse."""
    noisy_psnr_db: float
    """With Gaussian noise of standard deviation 0.1 on the scaled latents: how a small error of a
    diffusion model shows."""
    latent_mean: list[float]
    """Per channel of the scaled latents."""
    latent_std: list[float]
    """Likewise."""
    linear_psnr_db: float | None = absent()
    """Of the linear baseline."""
    codebook_size: int | None = absent()
    codebook_used: float | None = absent()
    """Share of the rows that occur."""
    codebook_perplexity: float | None = absent()
    perceptual: float | None = absent()
    """Mean distance of picture and reconstruction."""
    perceptual_network: str | None = absent()
    rfid: float | None = absent()
    """Frechet distance of all reconstructions to all pictures."""
    rfid_network: str | None = absent()
    rfid_resize: str | None = absent()
    fidelity: Fidelity | None = absent()
    """Of four pictures or more: KID with its interval and FID above that of real pictures, of the
    reconstructions of one half of the pictures to the other half."""


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
    """Return each picture's peak signal-to-noise ratio, 10 log10(255^2 / MSE), dB, float64 [N].

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
) -> AutoencoderEvaluation:
    """Measure a first stage on pictures it has not seen.

    Args:
        first_stage: encodes to the posterior mean, or to codebook rows, and decodes to 8-bit
            pictures.
        images: uint8 [N, 3, H, W].
        baseline: a linear projection fitted on training pictures, float in [-1, 1]; None: no linear
            baseline.
        judges: for `perceptual` and `rfid`; None: neither.
    """
    latents = first_stage.encode(images).cpu()
    reconstructions = to_8_bit(first_stage.decode(latents).cpu())
    values = psnr(images, reconstructions)
    # The same noise for every first stage of these sizes, so that their figures are paired.
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = first_stage.decode(latents + 0.1 * noise).cpu()
    result = AutoencoderEvaluation(
        num_images=len(images),
        psnr_db=float(values.mean()),
        psnr_db_5_percent=float(values.quantile(0.05)),
        noisy_psnr_db=float(psnr(images, to_8_bit(noisy)).mean()),
        latent_mean=latents.mean((0, 2, 3)).tolist(),
        latent_std=latents.std((0, 2, 3)).tolist(),
    )

    # Beside the linear baseline, and for a codebook how much of it is used.
    more: dict[str, Any] = {}
    if baseline is not None:
        linear = to_8_bit(baseline.reconstruct(to_signed(images)))
        more["linear_psnr_db"] = float(psnr(images, linear).mean())
    if first_stage.codebook is not None:
        counts = row_counts(first_stage.encode_indices(images).cpu(), len(first_stage.codebook))
        more["codebook_size"] = len(counts)
        more["codebook_used"] = float(used_share(counts))
        more["codebook_perplexity"] = float(perplexity(counts))
    return _judged(result.model_copy(update=more), images, reconstructions, judges or Judges())


def evaluate_on_source(
    first_stage: FirstStage,
    source: str,
    config: PhotoConfig,
    num_images: int = 512,
    judges: Judges | None = None,
) -> AutoencoderEvaluation:
    """Measure a first stage on held-out photographs, beside the linear baseline of the others.

    Where all photographs are held out, there is no other one, and no baseline.

    Args:
        first_stage: what is measured.
        source: of photographs, such as `folder:///photos`.
        config: their size, and which are held out.
        num_images: held-out photographs, at most.
        judges: what compares pictures; None: PSNR and latents alone.

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
    result = evaluate_autoencoder(first_stage, held_out, baseline, judges)
    return result.model_copy(update={"source": source, "image_size": config.image_size})


@torch.no_grad()
def _judged(
    result: AutoencoderEvaluation, images: Tensor, reconstructions: Tensor, judges: Judges
) -> AutoencoderEvaluation:
    """Return the result with what the judges say of pictures uint8 [N, 3, H, W]."""
    more: dict[str, Any] = {}
    if judges.perceptual is not None:
        parts = zip(images.split(_BATCH), reconstructions.split(_BATCH), strict=True)
        device = next(judges.perceptual.parameters()).device
        distances = [
            judges.perceptual(to_signed(one).to(device), to_signed(other).to(device)).cpu()
            for one, other in parts
        ]
        more["perceptual"] = float(torch.cat(distances).mean())
        more["perceptual_network"] = judges.perceptual.description

    if judges.inception is not None:
        features = []
        with tracking("FID features", 2, "sets") as tracker:
            for pictures in (images, reconstructions):
                features.append(judges.inception(pictures.permute(0, 2, 3, 1).contiguous().numpy()))
                tracker.advance()
        rfid = frechet_distance(features[1], features[0])
        more |= {"rfid": rfid, "rfid_network": FEATURE_NETWORK, "rfid_resize": RESIZE}
        # Halves of fewer pictures would say little.
        if len(images) >= 2 * LEAST:
            more["fidelity"] = halves_fidelity(features[0], features[1])
    return result.model_copy(update=more)
