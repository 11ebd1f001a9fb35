"""RDM: diffusion on latents, conditioned on neighbors (Blattmann et al. 2022).

What the official configurations say is taken as it is; they are silent about the number of steps.
"""

from __future__ import annotations

from rdm.diffusion.schedules import TimestepConfig
from rdm.generators.conditions import Conditions, NeighborsConfig
from rdm.generators.heads import GaussianConfig
from rdm.models.unet import DenoiserConfig, rdm_ffhq_denoiser, rdm_imagenet_denoiser
from rdm.recipes.official import RAW_NEIGHBORS, official
from rdm.recipes.recipe import Recipe
from rdm.training.config import TrainConfig
from rdm.training.objectives.generative import GenerativeConfig


def rdm_tiny() -> TrainConfig:
    """Return the quickstart's RDM: 64 px photographs, four neighbors, minutes on two cores.

    It departs from the released recipe where minutes of training and hundreds of photographs ask
    for it: v-prediction, which is the noise error weighted by 1 / alpha-bar, so that color and
    layout are learned first; tokens of a fraction of unit variance, and neighbors drawn from the 20
    nearest, so that photographs are not learned by heart from their neighbors. `--set
    objective.head.prediction_type=eps` gives back the released objective. Without conditioning
    dropout, as the released recipe; `--set objective.conditions.neighbors.dropout=0.1` trains the
    null context too.
    """
    return TrainConfig(
        recipe="rdm-tiny",
        objective=GenerativeConfig(
            conditions=Conditions(neighbors=NeighborsConfig(dropout=0.0, scale=6.0, pool=20)),
            head=GaussianConfig(prediction_type="v"),
            held_out_fraction=0.25,
        ),
        max_steps=900,
        batch_size=32,
        learning_rate=1.2e-3,
        warmup_steps=20,
        beta2=0.99,
        ema_decay=0.995,
        checkpoint_every=100,
    )


def rdm_32() -> TrainConfig:
    """Return a small RDM of 32 px pictures: an hour on an accelerator, days on a CPU.

    26M parameters, of the order of DDPM's 35.7M for pictures of this size. Two levels, because 8x8
    latents leave room for one halving to 4x4; cross-attention on both, which costs little on 64
    positions; heads of 32 channels and two residual blocks, as in the official networks.
    v-prediction and scale as in `rdm-tiny`; a tenth of the samples without neighbors, so that
    guidance has a null context that was trained.
    """
    denoiser = DenoiserConfig(
        sample_size=8,
        block_out_channels=(128, 256),
        attention_levels=(True, True),
        layers_per_block=2,
        head_dim=32,
        norm_num_groups=32,
    )

    return TrainConfig(
        recipe="rdm-32",
        objective=GenerativeConfig(
            network=denoiser,
            conditions=Conditions(neighbors=NeighborsConfig(dropout=0.1, scale=6.0)),
            head=GaussianConfig(prediction_type="v"),
        ),
        max_steps=40_000,
        batch_size=128,
        learning_rate=2e-4,
        warmup_steps=1000,
        ema_decay=0.9995,
        checkpoint_every=1000,
    )


def rdm_64() -> TrainConfig:
    """Return the RDM of 64 px that ships as `assets://rdm-64`: hours on two cores.

    The released system where little compute does not ask for another: a narrow network that attends
    to the neighbors at 4x4 only and hears their mean in every residual block; noise levels where
    16x16 latents have something to learn; one to six of the eight nearest, of which the photograph
    itself may be one where the database holds it; an eighth of the samples without any; Muon, and a
    constant rate that falls at the end, so that training can go on.
    """
    denoiser = DenoiserConfig(
        sample_size=16,
        block_out_channels=(96, 128, 192),
        attention_levels=(False, False, True),
        head_dim=32,
        norm_num_groups=16,
        time_scale_shift=True,
        vector_dim=512,
    )

    return TrainConfig(
        recipe="rdm-64",
        objective=GenerativeConfig(
            network=denoiser,
            conditions=Conditions(
                neighbors=NeighborsConfig(
                    dropout=0.12,
                    scale=6.0,
                    k_train=4,
                    k_choices=(1, 2, 3, 4, 6),
                    pool=8,
                    mean_vector=True,
                )
            ),
            head=GaussianConfig(
                prediction_type="v", timesteps=TimestepConfig(kind="log_snr_normal")
            ),
            held_out_fraction=0.02,
        ),
        max_steps=16_000,
        batch_size=128,
        optimizer="muon",
        # Muon needs whole matrices, which ZeRO would cut into flat pieces.
        zero_stage=0,
        learning_rate=8e-4,
        lr_schedule="wsd",
        warmup_steps=200,
        ema_decay=0.999,
        channels_last=True,
        checkpoint_every=500,
    )


def rdm_imagenet() -> TrainConfig:
    """Return the official RDM of ImageNet: 400,920,579 parameters, 64x64x3 latents of VQ-f4, 256
    px.

    Noise prediction, sqrt-linear schedule 0.0015..0.0195, raw vectors of four neighbors without
    dropout, AdamW at 1e-4 after 100 steps of warm-up, batches of 50, EMA 0.9999. The cache is of a
    VQ-f4 first stage, --set resolution=256.
    """
    return official(
        "rdm-imagenet",
        GenerativeConfig(network=rdm_imagenet_denoiser(), conditions=RAW_NEIGHBORS),
        warmup_steps=100,
    )


def rdm_ffhq() -> TrainConfig:
    """Return the official RDM of FFHQ: 414,713,603 parameters; the rest is `rdm-imagenet`, with a
    warm-up of 10,000."""
    return official(
        "rdm-ffhq",
        GenerativeConfig(network=rdm_ffhq_denoiser(), conditions=RAW_NEIGHBORS),
        warmup_steps=10_000,
    )


RECIPES = {
    "rdm-tiny": Recipe("RDM, 64 px, 16x16x4 latents; minutes on two cores", rdm_tiny),
    "rdm-32": Recipe("RDM, 32 px, 8x8x4 latents; one accelerator, or a patient CPU", rdm_32),
    "rdm-64": Recipe("RDM, 64 px, 16x16x4 latents; one accelerator", rdm_64),
    "rdm-imagenet": Recipe("the official RDM of ImageNet, 256 px, VQ-f4", rdm_imagenet),
    "rdm-ffhq": Recipe("the official RDM of FFHQ, 256 px, VQ-f4", rdm_ffhq),
}
