"""Recipes of retrieval systems: RDM, RARM, and the LDM that is their baseline.

What the official configurations say is taken as it is; they are silent about the number of steps.
"""

from __future__ import annotations

from rdm.diffusion.schedules import TimestepConfig
from rdm.models.token_predictor import TokenPredictorConfig, rarm_imagenet_predictor
from rdm.models.unet import DenoiserConfig, rdm_ffhq_denoiser, rdm_imagenet_denoiser
from rdm.training.config import TrainConfig
from rdm.training.data.latents import ConditioningConfig
from rdm.training.objectives.retrieval_autoregression import RetrievalAutoregressionConfig
from rdm.training.objectives.retrieval_diffusion import RetrievalDiffusionConfig

RAW_NEIGHBORS = ConditioningConfig(embedding="raw", scale=1.0, k_train=4, dropout=0.0)
"""The official conditioning: four neighbors, their vectors as the encoder gives them, always there."""


def rdm_tiny() -> TrainConfig:
    """Return the quickstart's RDM: 64 px photographs, four neighbors, minutes on two cores.

    It departs from the released recipe where minutes of training and hundreds of photographs ask for it: v-prediction,
    which is the noise error weighted by 1 / alpha-bar, so that color and layout are learned first; tokens of a fraction
    of unit variance, and neighbors drawn from the 20 nearest, so that photographs are not learned by heart from their
    neighbors. `--set objective.prediction_type=eps` gives back the released objective. Without conditioning dropout, as
    the released recipe; `--set objective.conditioning.dropout=0.1` trains the null context too.
    """
    return TrainConfig(
        recipe="rdm-tiny",
        objective=RetrievalDiffusionConfig(
            prediction_type="v",
            conditioning=ConditioningConfig(dropout=0.0, scale=6.0, pool=20),
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
    """Return a small RDM of 32 px pictures (8x8x4 latents): an hour on an accelerator, days on a patient CPU.

    26M parameters, of the order of DDPM's 35.7M for pictures of this size. Two levels, because 8x8 latents leave room
    for one halving to 4x4; cross-attention on both, which costs little on 64 positions; heads of 32 channels and two
    residual blocks, as in the official networks. v-prediction and scale as in `rdm-tiny`; a tenth of the samples
    without neighbors, so that guidance has a null context that was trained.
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
        objective=RetrievalDiffusionConfig(
            denoiser=denoiser, prediction_type="v", conditioning=ConditioningConfig(dropout=0.1, scale=6.0)
        ),
        max_steps=40_000,
        batch_size=128,
        learning_rate=2e-4,
        warmup_steps=1000,
        ema_decay=0.9995,
        checkpoint_every=1000,
    )


def rdm_64() -> TrainConfig:
    """Return the RDM of 64 px pictures that ships as `assets://rdm-64`: hours on two cores, minutes on an accelerator.

    The released system where little compute does not ask for another: a narrow network that attends to the neighbors at
    4x4 only and hears their mean in every residual block; noise levels where 16x16 latents have something to learn;
    one to six of the eight nearest, of which the photograph itself may be one where the database holds it; an eighth
    of the samples without any; Muon, and a constant rate that falls at the end, so that training can go on.
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
        objective=RetrievalDiffusionConfig(
            denoiser=denoiser,
            prediction_type="v",
            timesteps=TimestepConfig(kind="log_snr_normal"),
            conditioning=ConditioningConfig(
                dropout=0.12, scale=6.0, k_train=4, k_choices=(1, 2, 3, 4, 6), pool=8, mean_vector=True
            ),
            held_out_fraction=0.02,
        ),
        max_steps=16_000,
        batch_size=128,
        optimizer="muon",
        zero_stage=0,
        learning_rate=8e-4,
        lr_schedule="wsd",
        warmup_steps=200,
        ema_decay=0.999,
        channels_last=True,
        checkpoint_every=500,
    )


def rdm_imagenet() -> TrainConfig:
    """Return the official RDM of ImageNet: 400,920,579 parameters, 64x64x3 latents of VQ-f4, 256 px.

    Noise prediction, sqrt-linear schedule 0.0015..0.0195, raw vectors of four neighbors without dropout, AdamW at 1e-4
    after 100 steps of warm-up, batches of 50, EMA 0.9999. The cache is of a VQ-f4 first stage, --set resolution=256.
    """
    return _official(
        "rdm-imagenet",
        RetrievalDiffusionConfig(denoiser=rdm_imagenet_denoiser(), conditioning=RAW_NEIGHBORS),
        warmup_steps=100,
    )


def rdm_ffhq() -> TrainConfig:
    """Return the official RDM of FFHQ: 414,713,603 parameters; the rest is `rdm-imagenet`, with a warm-up of 10,000."""
    return _official(
        "rdm-ffhq",
        RetrievalDiffusionConfig(denoiser=rdm_ffhq_denoiser(), conditioning=RAW_NEIGHBORS),
        warmup_steps=10_000,
    )


def ldm_imagenet() -> TrainConfig:
    """Return the baseline of `rdm-imagenet`: the same network, samples and settings, and no neighbors.

    A null context leaves the output bias of each cross-attention block and nothing else, so 26,675,520 of the
    parameters see no gradient but weight decay.
    """
    return rdm_imagenet().with_overrides(["recipe=ldm-imagenet", *_WITHOUT_NEIGHBORS])


def ldm_tiny() -> TrainConfig:
    """Return the baseline of `rdm-tiny`: the same network, samples and settings, and no neighbors."""
    return rdm_tiny().with_overrides(["recipe=ldm-tiny", *_WITHOUT_NEIGHBORS])


def rarm_imagenet() -> TrainConfig:
    """Return RARM in the official size: 18 layers of 12 heads x 64, 16x16 tokens of VQ-f16, Z = 16384, 256 px.

    183,307,008 parameters in GPT-2's layers, see `rarm_imagenet_predictor`. AdamW at 5e-4 and batches of 50, two of
    them per step. The cache is of a VQ-f16 first stage, --set content=indices --set resolution=256.
    """
    return _official(
        "rarm-imagenet",
        RetrievalAutoregressionConfig(predictor=rarm_imagenet_predictor(), conditioning=RAW_NEIGHBORS),
        batch_size=100,
        learning_rate=5e-4,
        warmup_steps=100,
    )


def rarm_tiny() -> TrainConfig:
    """Return a RARM of 64 px photographs, 16x16 tokens of a small VQ-f4 first stage: minutes on two cores.

    Its first stage is to be `assets://autoencoder-vq-f4`; another one's codebook: --set
    objective.predictor.codebook_size=Z. Conditioned as `rdm-tiny`, and for the same reasons; dropout, because a
    transformer learns hundreds of photographs by heart, and a trained null context, because guidance on the logits of
    an untrained one says nothing.
    """
    return TrainConfig(
        recipe="rarm-tiny",
        objective=RetrievalAutoregressionConfig(
            predictor=TokenPredictorConfig(dropout=0.1),
            conditioning=ConditioningConfig(dropout=0.1, scale=6.0, pool=20),
            held_out_fraction=0.25,
        ),
        max_steps=900,
        batch_size=32,
        learning_rate=1.5e-3,
        warmup_steps=50,
        beta2=0.99,
        ema_decay=0.995,
        checkpoint_every=100,
    )


_WITHOUT_NEIGHBORS = ("objective.conditioning.dropout=1", "objective.conditioning.pool=null")


def _official(
    name: str,
    objective: RetrievalDiffusionConfig | RetrievalAutoregressionConfig,
    *,
    warmup_steps: int,
    batch_size: int = 50,
    learning_rate: float = 1e-4,
) -> TrainConfig:
    return TrainConfig(
        recipe=name,
        objective=objective,
        max_steps=500_000,
        batch_size=batch_size,
        learning_rate=learning_rate,
        lr_schedule="constant",
        warmup_steps=warmup_steps,
        ema_decay=0.9999,
        checkpoint_every=5000,
    )
