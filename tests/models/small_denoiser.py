"""U-Nets small enough to train in a test, which have every part of a large one."""

from __future__ import annotations

from rdm.models.unconditional import UnconditionalConfig
from rdm.models.unet import DenoiserConfig

SMALL_DENOISER = DenoiserConfig(
    block_out_channels=(16, 32),
    attention_levels=(False, True),
    norm_num_groups=8,
    head_dim=8,
    cross_attention_dim=12,
    sample_size=8,
)

SMALL_PIXELS = UnconditionalConfig(
    in_channels=3,
    out_channels=3,
    sample_size=8,
    block_out_channels=(8, 16),
    attention_levels=(False, True),
    layers_per_block=1,
    norm_num_groups=8,
)
