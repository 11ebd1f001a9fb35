"""Bounds of the predicted x_0 under strong guidance. Saharia et al. 2022, section 2.3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Thresholding: TypeAlias = Callable[[Tensor], Tensor]
"""Takes the predicted x_0 [B, ...] and returns it bounded."""


def static_threshold(x0: Tensor, limit: float = 1.0) -> Tensor:
    """Return x0 clipped to [-limit, limit]."""
    return x0.clamp(-limit, limit)


def dynamic_threshold(x0: Tensor, percentile: float = 0.995, limit: float = 1.0) -> Tensor:
    """Clip each sample to its own percentile of absolute values, then divide it to fit the limit.

    clip(x0, -s, s) / (s / limit) with s = max(limit, percentile of |x0|). A sample whose percentile
    lies inside the limit is clipped statically. There is no upper bound on s: one of 1 would turn
    the rule into static clipping.

    Args:
        x0: [B, ...].
        percentile: in [0, 1]; about 1 - percentile of a sample's elements saturate.
        limit: half the range of the data, above 0.
    """
    # A loop because torch.quantile refuses inputs of more than 2^24 elements, which a batch of
    # large pictures has.
    rows = x0.detach().abs().flatten(1).float()
    scale = torch.stack([torch.quantile(row, percentile) for row in rows]).clamp(min=limit)
    scale = scale.to(x0.dtype).view(-1, *([1] * (x0.dim() - 1)))
    # Divided in this order so that s = limit leaves every bit as it was, and nothing exceeds the
    # limit.
    return torch.minimum(torch.maximum(x0, -scale), scale) / (scale / limit)


THRESHOLDINGS: Mapping[str, Thresholding | None] = {
    "none": None,
    "static": static_threshold,
    "dynamic": dynamic_threshold,
}
"""By name, with the limits of data in [-1, 1]."""
