"""Data order: which samples make up a step, as a function of the seed and the step alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rdm.errors import CacheError
from rdm.training.objective import TrainingData


class DataOrder:
    """A permutation of all samples per epoch: shards are shuffled, and the rows within each shard.

    Position p of the endless stream of samples is row `p % N` of epoch `p // N`. Nothing here depends on how many ranks
    or workers read, so a run may stop anywhere and go on with another number of them.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int) -> None:
        self._sizes = np.array(shard_sizes, np.int64)
        self._seed = seed
        self.num_samples = int(self._sizes.sum())
        if self.num_samples == 0:
            raise CacheError("there is nothing to train on", fix="check the source and the held-out fraction")
        self._epoch = -1
        self._shards = np.zeros(0, np.int64)
        self._ends = np.zeros(0, np.int64)
        self._rows: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()

    def locate(self, positions: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return `(shard, row)` of each stream position."""
        return [self._locate(int(position)) for position in positions]

    def step_positions(self, step: int, batch_size: int, rank: int, world_size: int) -> NDArray[np.int64]:
        """Return the stream positions of a rank's share of a step; the ranks' shares together are the global batch."""
        share = batch_size // world_size
        first = step * batch_size + rank * share
        return np.arange(first, first + share, dtype=np.int64)

    def _locate(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.num_samples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._shards = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
            self._ends = np.cumsum(self._sizes[self._shards])
        place = int(np.searchsorted(self._ends, offset, side="right"))
        shard = int(self._shards[place])
        start = int(self._ends[place] - self._sizes[shard])
        return shard, int(self._permutation(epoch, shard)[offset - start])

    def _permutation(self, epoch: int, shard: int) -> NDArray[np.int64]:
        key = (epoch, shard)
        if key not in self._rows:
            self._rows[key] = np.random.default_rng([self._seed, epoch, shard, 1]).permutation(self._sizes[shard])
            while len(self._rows) > 4:
                self._rows.popitem(last=False)
        return self._rows[key]


class BatchReader:
    """Assembles batches from shards, keeping the shards that were read last in memory."""

    def __init__(self, data: TrainingData, order: DataOrder, memory_bytes: int = 1_000_000_000) -> None:
        self._data = data
        self._order = order
        self._memory = memory_bytes
        self._cache: OrderedDict[int, dict[str, NDArray]] = OrderedDict()

    def batch(self, positions: NDArray[np.int64]) -> dict[str, NDArray]:
        """Return the arrays of the samples at stream positions, [len(positions), ...] each."""
        places = self._order.locate(positions)
        shards = {shard: self._shard(shard) for shard in dict.fromkeys(shard for shard, _ in places)}
        names = next(iter(shards.values()))
        return {name: np.stack([shards[shard][name][row] for shard, row in places]) for name in names}

    @property
    def num_samples(self) -> int:
        """The samples of one epoch."""
        return self._order.num_samples

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the names of the samples at stream positions."""
        places = self._order.locate(positions)
        names = {shard: self._data.keys(shard) for shard in dict.fromkeys(shard for shard, _ in places)}
        return [names[shard][row] for shard, row in places]

    def _shard(self, shard: int) -> dict[str, NDArray]:
        if shard in self._cache:
            self._cache.move_to_end(shard)
            return self._cache[shard]
        arrays = self._data.load_shard(shard)
        expected = self._data.shards[shard].num_samples
        for name, array in arrays.items():
            if len(array) != expected:
                raise CacheError(
                    f"{name} has {len(array)} rows instead of {expected}",
                    where=f"shard {self._data.shards[shard].stem}",
                    fix="build the cache again",
                )
        self._cache[shard] = arrays
        while len(self._cache) > 1 and self._cached_bytes() > self._memory:
            self._cache.popitem(last=False)
        return arrays

    def _cached_bytes(self) -> int:
        return sum(array.nbytes for arrays in self._cache.values() for array in arrays.values())
