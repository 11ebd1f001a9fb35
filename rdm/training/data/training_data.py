"""What a recipe trains on: samples in shards that are read whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shard:
    """A shard of training data: its stem (file name without ending) and number of samples."""

    stem: str
    num_samples: int


@dataclass(frozen=True)
class ShardRows:
    """Used rows of a cache's shard [N], and the place of each one's crop [N] among its crops."""

    rows: NDArray[np.int64]
    crops: NDArray[np.int64]
    num_crops: int


class TrainingData(Protocol):
    """Training samples in shards that are read whole, in an order that the loop decides."""

    @property
    def shards(self) -> Sequence[Shard]:
        """Every shard, in a fixed order."""
        ...

    def load_shard(self, index: int) -> dict[str, np.ndarray]:
        """Return a shard's arrays of `shards[index].num_samples` rows; threads call it at once."""
        ...

    def keys(self, index: int) -> Sequence[str]:
        """Return the name of each sample of a shard, by which a user finds it again."""
        ...
