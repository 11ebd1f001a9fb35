"""First stages: the two embedded ones, and latent-diffusion's sizes for accelerators."""

from __future__ import annotations

from functools import partial

from rdm.models.first_stage.autoencoder import autoencoder_kl_f4_lite, official_autoencoder
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig
from rdm.training.data.photographs import PhotoConfig
from rdm.training.objectives.autoencoder_config import (
    AdversarialConfig,
    AutoencoderObjectiveConfig,
    CodebookConfig,
    PerceptualConfig,
)

_CODEBOOK_SIZES = {4: 8192, 8: 16384, 16: 16384}


def autoencoder_kl_f4() -> TrainConfig:
    """Return the embedded KL first stage: f = 4, 4 channels, under an hour of one core.

    The discriminator joins for the last fifth: before, there is nothing that only it could see.
    """
    objective = AutoencoderObjectiveConfig(
        perceptual=PerceptualConfig(weight=0.05),
        adversarial=AdversarialConfig(weight=0.1, start_step=5000, channels=32, num_layers=2),
    )
    return _small("autoencoder-kl-f4", objective, max_steps=6500, learning_rate=2e-3)


def autoencoder_vq_f4() -> TrainConfig:
    """Return the embedded VQ first stage: f = 4, 1024 rows of 4, six minutes of one core.

    It goes on from the embedded KL first stage, whose posterior means the codebook is fitted to
    before the first step.
    """
    network = autoencoder_kl_f4_lite().model_copy(update={"codebook_size": 1024})
    objective = AutoencoderObjectiveConfig(
        network=network,
        start="assets://autoencoder-kl-f4",
        perceptual=PerceptualConfig(weight=0.05),
        adversarial=AdversarialConfig(weight=0.1, start_step=350, channels=32, num_layers=2),
    )
    return _small(
        "autoencoder-vq-f4",
        objective,
        max_steps=700,
        learning_rate=8e-4,
        warmup_steps=20,
        ema_decay=0.99,
    )


def official_first_stage(factor: int, *, vq: bool) -> TrainConfig:
    """Return latent-diffusion's first stage of a factor with its published loss, 256 px.

    L1, perceptual and adversarial terms as in its released configurations of KL-f4 (divergence 1e-6
    per picture sum, discriminator of three layers from step 50,001 on, weight 0.5) and of VQ-f16
    (two layers from step 250,001 on, weight 0.75), for the other factors likewise; learning rate
    4.5e-6 per sample of a batch. The codebook's terms are those of the released code: means over
    all numbers, beta = 0.25 at the codebook's own loss (the paper has it at the commitment). Its
    log-variance of the KL pictures is left out: it is in no optimizer there, and stays 0.

    Ours are: the perceptual network, the embedded one, whose distances are larger (for LPIPS set
    `objective.perceptual` to its files and a weight of 1); one AdamW for both networks, with a
    warm-up and a first decay of 0.9, where theirs are two with 0.5; group norms in the
    discriminator; a codebook that is first fitted to the encoder's outputs; EMA.

    Args:
        factor: f: 4, 8 or 16.
        vq: with a codebook: 8192 rows for f = 4, else 16384.
    """
    network = official_autoencoder(factor, _CODEBOOK_SIZES[factor] if vq else None)
    adversarial = AdversarialConfig(
        weight=0.75 if vq else 0.5, start_step=250_001 if vq else 50_001, num_layers=2 if vq else 3
    )

    objective = AutoencoderObjectiveConfig(
        network=network,
        photographs=PhotoConfig(image_size=256, photographs_per_shard=1000),
        crop_size=256,
        reconstruction="l1",
        kl_weight=1e-6 * network.latent_channels / (3 * factor**2),  # sums over a picture, as means
        perceptual=PerceptualConfig(weight=0.05),
        adversarial=adversarial,
        # Our losses are sums over the D numbers of a vector: weight / D of them are means.
        codebook=CodebookConfig(
            weight=0.25 / network.latent_channels, commitment=1 / 0.25, revival_weight=0.0
        ),
        start="random",
    )

    # The released configurations scale their base rate of 4.5e-6 by the batch.
    name = f"autoencoder-{'vq' if vq else 'kl'}-f{factor}-official"
    return TrainConfig(
        recipe=name,
        objective=objective,
        max_steps=500_000,
        batch_size=16,
        learning_rate=16 * 4.5e-6,
        lr_schedule="constant",
        warmup_steps=1000,
        weight_decay=0.0,
        beta2=0.9,
        gradient_clip=0.0,
        ema_decay=0.999,
        checkpoint_every=5000,
        keep_best=False,
    )


RECIPES = {
    "autoencoder-kl-f4": Recipe(
        "small KL autoencoder, f = 4, 4 channels, on photographs", autoencoder_kl_f4
    ),
    "autoencoder-vq-f4": Recipe(
        "small VQ autoencoder, f = 4, 1024 codebook rows, on photographs", autoencoder_vq_f4
    ),
    **{
        f"autoencoder-{kind}-f{factor}-official": Recipe(
            f"latent-diffusion's {kind.upper()}-f{factor} at 256 px, for accelerators",
            partial(official_first_stage, factor, vq=kind == "vq"),
        )
        for kind in ("kl", "vq")
        for factor in (4, 8, 16)
    },
}


def _small(
    name: str,
    objective: AutoencoderObjectiveConfig,
    *,
    max_steps: int,
    learning_rate: float,
    warmup_steps: int = 100,
    ema_decay: float = 0.999,
) -> TrainConfig:
    return TrainConfig(
        recipe=name,
        objective=objective,
        max_steps=max_steps,
        batch_size=16,
        optimizer="muon",
        # Muon needs whole matrices, which ZeRO would cut into flat pieces.
        zero_stage=0,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        beta2=0.99,
        ema_decay=ema_decay,
        precision="fp32",
        checkpoint_every=250,
        # the loss has another meaning once the discriminator joins: the lowest is not the best
        keep_best=False,
    )
