"""The first stage's objective: pixels, features, a discriminator, and the latents' own term.

Rombach et al. 2022, appendix G, and Esser et al. 2021, equations 4 to 7. The mathematics is in
`rdm.models`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rdm.errors import TrainingError
from rdm.generators.provenance import Provenance
from rdm.models.first_stage.autoencoder import (
    build_autoencoder,
)
from rdm.models.first_stage.block_projection import BlockProjection
from rdm.models.first_stage.codebook import (
    fit_codebook,
    perplexity,
    quantize,
    revival_loss,
    row_counts,
    used_share,
)
from rdm.models.first_stage.first_stage import (
    FirstStage,
    encoder_output,
    load_autoencoder,
    to_signed,
    to_uint8,
)
from rdm.models.first_stage.linear_start import start_from_projection
from rdm.models.first_stage.losses import (
    adaptive_weight,
    last_layer_gradient,
    mean_absolute_error,
    root_mean_squared_error,
    standard_normal_divergence,
    with_gradient,
)
from rdm.models.first_stage.patch_discriminator import (
    PatchDiscriminator,
    discriminator_hinge_loss,
    generator_hinge_loss,
)
from rdm.models.first_stage.perceptual import open_perceptual
from rdm.models.first_stage.start import weights_to_go_on_from
from rdm.training.data.photographs import PhotoShards
from rdm.training.objectives.augmentation import random_crops, transformed_alike, with_noise
from rdm.training.objectives.autoencoder_config import AutoencoderObjectiveConfig
from rdm.training.objectives.objective import Objective

_NUM_START = 512
_NUM_CALIBRATION = 256
_VECTORS_PER_ROW = 8  # encoder outputs that a fresh codebook is fitted to
_LARGEST_SHIFT = 8  # pixels
_RECONSTRUCTION = {"root_mse": root_mean_squared_error, "l1": mean_absolute_error}


class AutoencoderObjective(Objective):
    """Reconstruction, perceptual, adversarial and KL or codebook terms, with a discriminator.

    Autoencoder and discriminator take their steps at once, under one optimizer: the discriminator's
    loss sees detached reconstructions, and the adversarial term is differentiated by the pictures
    alone, so that every parameter gets the gradient of its own loss and of no other.
    """

    def __init__(self, config: AutoencoderObjectiveConfig, calibration: NDArray[np.uint8]) -> None:
        """Build the networks with random weights.

        Args:
            config: the network and the loss.
            calibration: uint8 [N, 3, S, S] held-out photographs, on which `export` measures the
                scale of the latents.

        Raises:
            RdmError: the perceptual term's network cannot be had.
        """
        super().__init__()
        self.config = config
        # an array, not a buffer: the engine must neither move nor cast it
        self.calibration = calibration

        # The caller's random numbers stay as they are.
        adversarial, perceptual = config.adversarial, config.perceptual
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.start_seed)
            self.autoencoder = build_autoencoder(config.network)
            self.discriminator = (
                PatchDiscriminator(adversarial.channels, adversarial.num_layers)
                if adversarial.weight
                else None
            )

        if config.trained == "decoder":
            self.autoencoder.encoder.requires_grad_(False)
            self.autoencoder.quant_conv.requires_grad_(False)
        self._scaling_factor: float | None = None  # of the first stage whose encoder is kept
        # In a tuple, so that it is no submodule: the engine must neither cast, share out nor save
        # frozen weights.
        self._perceptual = (
            open_perceptual(perceptual.network, perceptual.heads, perceptual.enlargement)
            if perceptual.weight
            else None,
        )

    @property
    def networks(self) -> Sequence[Any]:
        """See Objective. The discriminator is left as it is."""
        return (self.autoencoder,)

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective. `batch["images"]` is uint8 [B, 3, S, S]; crops, mirror images and
        posterior are drawn anew."""
        images = random_crops(batch["images"], self.config.crop_size, generator)

        # An encoder that stays as it is needs no gradient.
        with torch.set_grad_enabled(self.config.trained == "all" and torch.is_grad_enabled()):
            latents, latent_loss, latent_metrics = self._encode(images, generator)
        latents, images = transformed_alike(latents, images, self.config.equivariance, generator)
        if self.config.latent_noise:
            latents = with_noise(latents, self.config.latent_noise, generator)

        # The input of the last layer gives the adaptive weight without another pass.
        with _recorded_input(self.autoencoder.decoder.conv_out) as seen:
            decoded = self._decode(latents)
        picture_loss, picture_metrics = self._picture_loss(images, decoded, seen[0], generator)

        squared_error = (decoded.detach() - images).square().mean((1, 2, 3))
        psnr = -10 * torch.log10(squared_error / 4 + 1e-10).mean()  # pictures span 2
        return {
            "loss": picture_loss + latent_loss,
            **picture_metrics,
            **latent_metrics,
            "psnr_db": psnr,
        }

    def _encode(
        self, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return what the decoder gets, the latents' own term, and its figures."""
        outputs = encoder_output(self.autoencoder, images).float()
        with torch.autocast(images.device.type, enabled=False):  # 16 bits would choose other rows
            if self.config.network.codebook_size:
                return self._quantize(outputs, generator)
            mean, logvar = outputs.chunk(2, dim=1)
            # As latent diffusion does: exp of an early encoder's output would overflow.
            logvar = logvar.clamp(-30, 20)
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
            kl = standard_normal_divergence(mean, logvar)
            return mean + torch.exp(0.5 * logvar) * noise, self.config.kl_weight * kl, {"kl": kl}

    def _quantize(
        self, outputs: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        settings, embedding = self.config.codebook, self.autoencoder.quantize.embedding
        codebook = embedding(torch.arange(embedding.num_embeddings, device=outputs.device)).float()
        quantized = quantize(outputs, codebook)
        loss = settings.weight * (
            quantized.codebook_loss + settings.commitment * quantized.commitment_loss
        )

        # Used rows are counted over this micro-batch, not over the codebook's history.
        counts = row_counts(quantized.indices, len(codebook))
        metrics = {
            "quantization": quantized.codebook_loss.detach(),
            "codebook_used": used_share(counts),
            "codebook_perplexity": perplexity(counts),
        }

        if settings.revival_weight:
            revival = revival_loss(quantized, outputs, codebook, generator)
            loss = loss + settings.revival_weight * revival
            metrics["revival"] = revival.detach()
        return quantized.latents, loss, metrics

    def _decode(self, latents: Tensor) -> Tensor:
        """Return float32 pictures of a posterior's draw, or of codebook rows."""
        model = self.autoencoder
        return model.decoder(
            latents if model.post_quant_conv is None else model.post_quant_conv(latents)
        ).float()

    def _picture_loss(
        self, images: Tensor, decoded: Tensor, last_input: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the terms that compare pictures, the discriminator's own loss, and figures.

        Args:
            images: photographs.
            decoded: their reconstructions, as part of the graph.
            last_input: what the decoder's last layer made the reconstructions of.
            generator: draws the shift of the perceptual term.
        """
        settings = self.config.adversarial
        if self.discriminator is None or self.step < settings.start_step:
            return self._reconstruction(images, decoded, generator)

        # Both terms are differentiated by the pictures here, once, and the decoder gets their
        # weighted sum.
        pictures = decoded.detach().requires_grad_()
        reconstruction, metrics = self._reconstruction(images, pictures, generator)
        (pull,) = torch.autograd.grad(reconstruction, pictures)
        adversarial = generator_hinge_loss(self.discriminator(pictures).float())
        (push,) = torch.autograd.grad(adversarial, pictures)
        layer = self.autoencoder.decoder.conv_out
        weight = settings.weight * adaptive_weight(
            last_layer_gradient(layer, last_input, pull),
            last_layer_gradient(layer, last_input, push),
        )

        # The discriminator judges detached pictures: its loss must not train the decoder.
        real, fake = self.discriminator(torch.cat([images, decoded.detach()])).float().chunk(2)
        discriminator = discriminator_hinge_loss(real, fake)
        metrics |= {
            "adversarial": adversarial.detach(),
            "adversarial_weight": weight,
            "discriminator": discriminator.detach(),
        }
        judged = with_gradient(reconstruction + weight * adversarial, decoded, pull + weight * push)
        return judged + discriminator, metrics

    def _reconstruction(
        self, images: Tensor, decoded: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = _RECONSTRUCTION[self.config.reconstruction](images, decoded).mean()
        (distance,) = self._perceptual
        if distance is None:
            return pixels, {"reconstruction": pixels.detach()}

        # The network's strided layers see some pixels of a fixed lattice better than others; a
        # random shift of both pictures keeps that from being drawn.
        top, left = torch.randint(
            _LARGEST_SHIFT, (2,), generator=generator, device=generator.device
        ).tolist()
        shifted = [pictures[:, :, top:, left:] for pictures in (images, decoded)]
        perceptual = distance.to(images.device)(*shifted).mean()
        loss = pixels + self.config.perceptual.weight * perceptual
        return loss, {"reconstruction": pixels.detach(), "perceptual": perceptual.detach()}

    def start_from_first_stage(self, stage: FirstStage) -> None:
        """Take the weights of a first stage of the same sizes; a VQ one also takes a KL one's.

        Raises:
            ModelError: its network is another one.
        """
        own = self.autoencoder.state_dict()
        self.autoencoder.load_state_dict(weights_to_go_on_from(stage, own), strict=False)
        if self.config.trained == "decoder":
            self._scaling_factor = stage.scale

    def start_from_projection(self, photographs: NDArray[np.uint8]) -> None:
        """Take the weights of the linear autoencoder fitted to photographs uint8 [N, 3, S, S]."""
        images = to_signed(torch.from_numpy(photographs))
        projection = BlockProjection.fit(
            images,
            block=self.config.network.factor,
            num_components=self.config.network.latent_channels,
        )
        start_from_projection(self.autoencoder, projection, images[:: max(len(images) // 32, 1)])

    @torch.no_grad()
    def start_codebook(self, photographs: NDArray[np.uint8]) -> None:
        """Fit the codebook to the encoder's outputs of photographs uint8 [N, 3, S, S]."""
        images = torch.from_numpy(photographs)
        outputs = torch.cat(
            [encoder_output(self.autoencoder, to_signed(part)) for part in images.split(16)]
        )
        codebook = self.autoencoder.quantize.embedding.weight
        vectors = outputs.permute(0, 2, 3, 1).flatten(0, 2)
        generator = torch.Generator().manual_seed(self.config.start_seed)
        codebook.copy_(fit_codebook(vectors, len(codebook), generator))

    @torch.no_grad()
    def preview(
        self, state: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> NDArray[np.uint8]:
        """See Objective: each photograph over its reconstruction, [N, 2 S, S, 3]."""
        images = batch["images"]
        first_stage = FirstStage(self._autoencoder_with(state), "preview").to(images.device)
        decoded = first_stage.decode(first_stage.encode(images))
        return np.concatenate([to_uint8(to_signed(images)), to_uint8(decoded)], axis=1)

    @torch.no_grad()
    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective: diffusers' layout, float16, with the `scaling_factor` to unit variance.

        The discriminator is no part of it.
        """
        # measured as it will be opened: from float16
        rounded = self._autoencoder_with(state).half().float().eval()

        # A kept encoder keeps its scale: models of its latents fit the new decoder.
        if self._scaling_factor is not None:
            rounded.register_to_config(scaling_factor=self._scaling_factor)
            rounded.half().save_pretrained(str(directory), safe_serialization=True)
            return

        # Scaled latents have unit variance over the held-out photographs.
        outputs = torch.cat(
            [
                encoder_output(rounded, to_signed(part))
                for part in torch.from_numpy(self.calibration).split(64)
            ]
        )
        latents = outputs if self.config.network.codebook_size else outputs.chunk(2, dim=1)[0]
        rounded.register_to_config(scaling_factor=round(1 / float(latents.std()), 6))
        rounded.half().save_pretrained(str(directory), safe_serialization=True)

    def _autoencoder_with(self, state: Mapping[str, Tensor]) -> Any:
        autoencoder = build_autoencoder(self.config.network)
        prefix = "autoencoder."
        weights = {
            name.removeprefix(prefix): value.cpu()
            for name, value in state.items()
            if name.startswith(prefix)
        }

        # Weights that do not train are in no checkpoint: they come from this object.
        kept = {
            name: value.cpu()
            for name, value in self.autoencoder.state_dict().items()
            if name not in weights
        }
        autoencoder.load_state_dict(
            {**kept, **weights} if self.config.trained == "decoder" else weights
        )
        return autoencoder


@contextmanager
def _recorded_input(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a layer is given inside the block."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def open_training(
    source: str, config: AutoencoderObjectiveConfig
) -> tuple[PhotoShards, AutoencoderObjective]:
    """Return the training photographs of sources, separated by commas, and the objective.

    Raises:
        SourceError: the source leaves nothing to train on, nothing to measure with, or holds broken
            pictures.
        ModelError: the first stage to start from cannot be opened, or is another network; the
            perceptual term's network cannot be read.
        TrainingError: there are too few photographs to fit a codebook to.
    """
    data = PhotoShards(source, config.photographs)
    held_out = PhotoShards(source, config.photographs, held_out=True)
    objective = AutoencoderObjective(config, held_out.sample(_NUM_CALIBRATION))
    objective.provenance = Provenance(source=source, photographs_digest=data.digest)

    # Start from what is known; a codebook that comes along is kept, another one is fitted.
    has_codebook = False
    if config.start == "projection":
        objective.start_from_projection(data.sample(_NUM_START))
    elif config.start != "random":
        first_stage = load_autoencoder(config.start)
        objective.start_from_first_stage(first_stage)
        has_codebook = first_stage.codebook is not None

    if config.network.codebook_size and not has_codebook:
        objective.start_codebook(_photographs_for_codebook(data, config))
    return data, objective


def _photographs_for_codebook(
    data: PhotoShards, config: AutoencoderObjectiveConfig
) -> NDArray[np.uint8]:
    per_photograph = (config.photographs.image_size // config.network.factor) ** 2
    rows = config.network.codebook_size or 0
    found = data.sample(math.ceil(_VECTORS_PER_ROW * rows / per_photograph))
    if len(found) * per_photograph < rows:
        raise TrainingError(
            f"{len(found)} photographs have {len(found) * per_photograph} latents, fewer "
            f"than the {rows} codebook rows",
            where=data.source,
            fix="give more photographs, or --set objective.network.codebook_size to fewer rows",
        )
    return found
