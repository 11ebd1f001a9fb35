"""Encoding in chunks of one size, so that an embedding does not depend on what shares its batch.

A matrix product of few rows is summed in another order than one of many. The last bits of an
embedding would say how many pictures were encoded beside it, and a database that grew would differ
from one built at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def encode_filled(
    encode: Callable[[Tensor], Tensor], batch: Tensor, size: int, embedding_dim: int
) -> np.ndarray:
    """Return float32 [N, embedding_dim] of a batch [N, ...]; chunks of `size` are zero-filled."""
    rows = [np.zeros((0, embedding_dim), np.float32)]
    for chunk in batch.split(size):
        if count := len(chunk):  # an empty batch splits into one empty chunk
            filled = F.pad(chunk, (0, 0) * (chunk.ndim - 1) + (0, size - count))
            rows.append(encode(filled)[:count].float().cpu().numpy())
    return np.concatenate(rows)
