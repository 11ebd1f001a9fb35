"""The first stage's objective: reconstruction with a small Kullback-Leibler term (Rombach et al. 2022, appendix G)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.errors import ModelError
from rdm.models.autoencoder import AutoencoderConfig, autoencoder_kl_f4_lite, build_autoencoder
from rdm.models.block_projection import BlockProjection
from rdm.models.first_stage import load_autoencoder, to_signed
from rdm.models.linear_start import start_from_projection, start_problem
from rdm.training.objective import Objective
from rdm.training.photos import PhotoConfig, PhotoShards

_NUM_START = 512
_NUM_CALIBRATION = 256


class AutoencoderObjectiveConfig(Config):
    """Configuration of the objective `autoencoder`."""

    kind: Literal["autoencoder"] = "autoencoder"
    network: AutoencoderConfig = Field(default_factory=autoencoder_kl_f4_lite)
    photographs: PhotoConfig = PhotoConfig()
    crop_size: int = Field(default=32, ge=8, description="side of the random crops that a step sees, pixels")
    kl_weight: float = Field(
        default=1e-4,
        ge=0,
        description="weight of the divergence per latent number, in nats; the "
        "reconstruction term is in units of half the brightness range",
    )
    start: str = Field(
        default="projection",
        description="weights to start from: projection (principal components of "
        "pixel blocks), random, or a first stage of the same shape to go on from",
    )
    start_seed: int = Field(default=0, description="of the random weights")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop_size > self.photographs.image_size:
            raise ValueError(f"crop_size {self.crop_size} exceeds photographs.image_size {self.photographs.image_size}")
        if self.crop_size % self.network.factor:
            raise ValueError(f"crop_size {self.crop_size} is no multiple of the factor {self.network.factor}")
        network = self.network
        problem = start_problem(network.block_out_channels, network.latent_channels, network.norm_num_groups)
        if self.start == "projection" and problem:
            raise ValueError(f"start=projection: {problem}")
        return self


class AutoencoderObjective(Objective):
    """Mean over pictures of the root mean squared error, plus `kl_weight` times D(q(z|x) || N(0, 1)).

    The root lies between the squared error, which spends the network on the busiest pictures, and its logarithm, which
    is PSNR and chases the calmest.
    """

    def __init__(self, config: AutoencoderObjectiveConfig, calibration: NDArray[np.uint8]) -> None:
        """Build the network with random weights.

        Args:
            config: the network and the loss.
            calibration: uint8 [N, 3, S, S] held-out photographs, on which `export` measures the scale of the latents.
        """
        super().__init__()
        self.config = config
        self.calibration = calibration  # an array, not a buffer: the engine must neither move nor cast it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.start_seed)
            self.autoencoder = build_autoencoder(config.network)

    def start_from_first_stage(self, name_or_dir: str) -> None:
        """Take the weights of a first stage that `load_autoencoder` opens.

        Raises:
            ModelError: it cannot be opened, or its network is another one.
        """
        weights = load_autoencoder(name_or_dir).model.state_dict()
        own = self.autoencoder.state_dict()
        if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in own.items()}:
            raise ModelError(
                "this first stage has another network than the one to be trained",
                where=name_or_dir,
                fix="set objective.network to its sizes, or objective.start=projection",
            )
        self.autoencoder.load_state_dict(weights)

    def start_from_projection(self, photographs: NDArray[np.uint8]) -> None:
        """Take the weights of the linear autoencoder that is fitted to photographs uint8 [N, 3, S, S]."""
        images = to_signed(torch.from_numpy(photographs))
        projection = BlockProjection.fit(
            images, block=self.config.network.factor, num_components=self.config.network.latent_channels
        )
        start_from_projection(self.autoencoder, projection, images[:: max(len(images) // 32, 1)])

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """See Objective. `batch["images"]` is uint8 [B, 3, S, S]; crops, mirror images and posterior are drawn anew."""
        images = self._augment(batch["images"], generator)
        posterior = self.autoencoder.encode(images).latent_dist  # type: ignore[union-attr]
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        latents = mean + torch.exp(0.5 * logvar) * noise
        decoded = self.autoencoder.decode(latents).sample  # type: ignore[union-attr]
        squared_error = (decoded.float() - images).square().mean((1, 2, 3))
        reconstruction = (squared_error + 1e-6).sqrt().mean()  # 1e-6: a finite gradient at a perfect reconstruction
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        psnr = -10 * torch.log10(squared_error / 4 + 1e-10).mean()  # pictures span 2
        return {
            "loss": reconstruction + self.config.kl_weight * kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "psnr_db": psnr,
        }

    @torch.no_grad()
    def export(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """See Objective: diffusers' layout, float16, with the `scaling_factor` that gives the latents unit variance."""
        exported = build_autoencoder(self.config.network)
        exported.load_state_dict({name.removeprefix("autoencoder."): value.cpu() for name, value in state.items()})
        rounded = exported.half().float().eval()  # measured as it will be opened: from float16
        means = [
            rounded.encode(to_signed(part)).latent_dist.mean  # type: ignore[union-attr]
            for part in torch.from_numpy(self.calibration).split(64)
        ]
        rounded.register_to_config(scaling_factor=round(1 / float(torch.cat(means).std()), 6))
        rounded.half().save_pretrained(str(directory), safe_serialization=True)

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return one random crop of each picture, mirrored half the time, float in [-1, 1]."""
        count, side = len(images), self.config.crop_size
        free = torch.tensor([images.shape[-2] - side + 1, images.shape[-1] - side + 1], device=images.device)
        corners = (torch.rand(count, 2, generator=generator, device=generator.device).to(images.device) * free).long()
        mirrored = (torch.rand(count, generator=generator, device=generator.device) < 0.5).tolist()
        crops = [
            image[:, top : top + side, left : left + side]
            for image, (top, left) in zip(images, corners.tolist(), strict=True)
        ]
        crops = [crop.flip(-1) if flip else crop for crop, flip in zip(crops, mirrored, strict=True)]
        return to_signed(torch.stack(crops)).contiguous(memory_format=torch.channels_last)


def open_training(source: str, config: AutoencoderObjectiveConfig) -> tuple[PhotoShards, AutoencoderObjective]:
    """Return the training photographs of a source (or of several, with commas between them) and the objective.

    Raises:
        SourceError: the source leaves nothing to train on, nothing to measure with, or holds broken pictures.
        ModelError: the first stage to start from cannot be opened, or is another network.
    """
    data = PhotoShards(source, config.photographs)
    held_out = PhotoShards(source, config.photographs, held_out=True)
    objective = AutoencoderObjective(config, held_out.sample(_NUM_CALIBRATION))
    if config.start == "projection":
        objective.start_from_projection(data.sample(_NUM_START))
    elif config.start != "random":
        objective.start_from_first_stage(config.start)
    return data, objective
