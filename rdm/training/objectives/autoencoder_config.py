"""Settings of the first stage's objective: its network, its data, and the terms of its loss."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rdm.config import Config
from rdm.models.assets import absolute_name
from rdm.models.first_stage.autoencoder import AutoencoderConfig, autoencoder_kl_f4_lite
from rdm.models.first_stage.linear_start import start_problem
from rdm.models.first_stage.patch_discriminator import smallest_side
from rdm.models.first_stage.perceptual import EMBEDDED
from rdm.storage.files import absolute_path
from rdm.training.data.photographs import PhotoConfig


def _absolute_network(name: str) -> str:
    return name if name == EMBEDDED else absolute_path(name)


def _absolute_heads(name: str | None) -> str | None:
    return name and absolute_path(name)


def _absolute_start(name: str) -> str:
    return name if name in ("projection", "random") else absolute_name(name)


class PerceptualConfig(Config):
    """The perceptual term: a distance of picture and reconstruction in a frozen network."""

    weight: float = Field(default=0.0, ge=0, description="0: no perceptual term")
    network: Annotated[str, AfterValidator(_absolute_network)] = Field(
        default=EMBEDDED,
        description="embedded: EfficientNet-Lite0, which is not LPIPS; or a file of VGG-16's "
        "weights with "
        "torchvision's names",
    )
    heads: Annotated[str | None, AfterValidator(_absolute_heads)] = Field(
        default=None,
        description="a file of LPIPS's learned weights for VGG-16; null: uniform weights",
    )
    enlargement: int = Field(
        default=1,
        ge=1,
        le=8,
        description="pictures are enlarged so many times before the network sees them: what a "
        "network of 224 px knows of objects it does not see in 64",
    )


class AdversarialConfig(Config):
    """The adversarial term: a patch discriminator that trains beside the autoencoder."""

    weight: float = Field(
        default=0.0, ge=0, description="on the adaptive weight; 0: no discriminator"
    )
    start_step: int = Field(
        default=0, ge=0, description="steps before the discriminator trains and is listened to"
    )
    channels: int = Field(
        default=64, ge=8, multiple_of=8, description="of the discriminator's first layer"
    )
    num_layers: int = Field(
        default=3, ge=1, description="strided layers: 2 judge patches of 34 pixels, 3 of 70"
    )


class CodebookConfig(Config):
    """The terms of a codebook; without effect on a KL autoencoder."""

    weight: float = Field(
        default=1.0, ge=0, description="of the codebook's loss and the commitment together"
    )
    commitment: float = Field(
        default=0.25, ge=0, description="beta, of the commitment (van den Oord et al. 2017)"
    )
    revival_weight: float = Field(
        default=0.01, ge=0, description="of the pull on unused rows; 0: they stay unused"
    )


class EquivarianceConfig(Config):
    """Steps that scale and turn latents and photographs alike (EQ-VAE, 2502.09509).

    Latents that scale and turn as pictures do are smoother, and a diffusion model learns them
    sooner.
    """

    probability: float = Field(default=0.0, ge=0, le=1, description="share of the steps; 0: none")
    smallest_scale: float = Field(
        default=0.5, gt=0, le=1, description="scales are uniform from here to 1"
    )


class AutoencoderObjectiveConfig(Config):
    """Configuration of the objective `autoencoder`."""

    kind: Literal["autoencoder"] = "autoencoder"
    network: AutoencoderConfig = Field(default_factory=autoencoder_kl_f4_lite)
    photographs: PhotoConfig = PhotoConfig()
    crop_size: int = Field(
        default=32, ge=8, description="side of the random crops that a step sees, pixels"
    )
    reconstruction: Literal["root_mse", "l1"] = Field(
        default="root_mse", description="the pixel term, in units of half the brightness range"
    )
    kl_weight: float = Field(
        default=1e-4,
        ge=0,
        description="weight of the divergence per latent number, in nats; without effect "
        "where there is a codebook",
    )
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    codebook: CodebookConfig = CodebookConfig()
    equivariance: EquivarianceConfig = EquivarianceConfig()
    latent_noise: float = Field(
        default=0.0,
        ge=0,
        description="largest standard deviation of noise on what the decoder gets, in those "
        "of the latents, uniform "
        "per picture from 0, so that it tolerates a diffusion model's errors",
    )
    trained: Literal["all", "decoder"] = Field(
        default="all",
        description="decoder: the encoder stays as `start` has it, and its latents stay "
        "interchangeable",
    )
    start: Annotated[str, AfterValidator(_absolute_start)] = Field(
        default="projection",
        description="weights to start from: projection (principal components of "
        "pixel blocks), random, or a first stage of the same shape to go on from; a VQ "
        "autoencoder also goes on from a "
        "KL autoencoder",
    )
    start_seed: int = Field(default=0, description="of the random weights")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop_size > self.photographs.image_size:
            raise ValueError(
                f"crop_size {self.crop_size} exceeds photographs.image_size "
                f"{self.photographs.image_size}"
            )

        # Sizes: crops fit into photographs, and both into the network.
        sides = {"crop_size": self.crop_size, "photographs.image_size": self.photographs.image_size}
        for name, side in sides.items():
            if side % self.network.factor:
                raise ValueError(
                    f"{name} {side} is no multiple of the factor {self.network.factor}"
                )
        if self.adversarial.weight and self.crop_size < smallest_side(self.adversarial.num_layers):
            raise ValueError(
                f"adversarial.num_layers {self.adversarial.num_layers} needs a crop_size of "
                f"{smallest_side(self.adversarial.num_layers)} or more"
            )

        # What only one kind of autoencoder can do.
        network = self.network
        if network.codebook_size and (self.equivariance.probability or self.latent_noise):
            raise ValueError(
                "equivariance and latent_noise change latents between codebook rows: leave "
                "them at 0"
            )
        if self.trained == "decoder" and (
            network.codebook_size or self.start in ("projection", "random")
        ):
            raise ValueError(
                "trained=decoder needs a KL autoencoder to start from: set objective.start "
                "to its folder"
            )

        problem = start_problem(
            network.block_out_channels, network.latent_channels, network.norm_num_groups
        )
        if self.start == "projection" and problem:
            raise ValueError(f"start=projection: {problem}")
        return self
