"""A U-Net small enough to train in a test, which has every part of a large one."""

from __future__ import annotations

from rdm.models.unet import DenoiserConfig

SMALL_DENOISER = DenoiserConfig(
    block_out_channels=(16, 32),
    attention_levels=(False, True),
    norm_num_groups=8,
    head_dim=8,
    cross_attention_dim=12,
    sample_size=8,
)
