"""DeepSpeed's configuration, derived from a run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from rdm.training.config import TrainConfig

# 200 MB in fp32, a tenth of DeepSpeed's own buffer.
_MOST_BUCKET_NUMBERS = 50_000_000


def deepspeed_config(
    config: TrainConfig,
    micro_batch_size: int,
    accumulation: int,
    trainable: Mapping[str, nn.Parameter],
) -> dict[str, Any]:
    """Return DeepSpeed's own configuration of a run.

    Args:
        config: the run's.
        micro_batch_size: samples of one forward pass of a rank.
        accumulation: micro-batches of a rank per step.
        trainable: the parameters by name.
    """
    return {
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        # DeepSpeed clips, because under ZeRO the norm is one over all ranks' shards.
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": zero_settings(
            config.zero_stage, [p.numel() for p in trainable.values()]
        ),
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": config.precision == "fp16"},
        # Never: the loop reports progress itself.
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def zero_settings(stage: int, sizes: Sequence[int]) -> dict[str, int]:
    """Return DeepSpeed's settings of a ZeRO stage, with buffers for parameters of these sizes.

    DeepSpeed's own are made for networks of tens of billions: a buffer of 500 million numbers in
    which gradients are reduced (2 GB, which stage 3 keeps for good), and in stage 3 parameters that
    stay whole until a billion are.
    """
    bucket = max(min(sum(sizes) // 8, _MOST_BUCKET_NUMBERS), *sizes)
    settings = {"stage": stage, "reduce_bucket_size": bucket}
    if stage == 3:
        names = (
            "stage3_prefetch_bucket_size",
            "stage3_max_live_parameters",
            "stage3_max_reuse_distance",
        )
        settings |= dict.fromkeys(names, bucket)
    return settings
