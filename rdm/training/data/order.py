"""Data order: which samples make up a step, as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rdm.errors import CacheError


class DataOrder:
    """A permutation of all samples per epoch: shards are shuffled, and the rows within each shard.

    Position p of the endless stream of samples is row `p % N` of epoch `p // N`. Nothing here
    depends on how many ranks or workers read, so a run may stop anywhere and go on with another
    number of them.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int) -> None:
        self._sizes = np.array(shard_sizes, np.int64)
        self._seed = seed
        self.num_samples = int(self._sizes.sum())
        if self.num_samples == 0:
            raise CacheError(
                "there is nothing to train on", fix="check the source and the held-out fraction"
            )
        # As a rule a batch touches one epoch or two, and few shards at their borders.
        self._visits = lru_cache(2)(self._draw_visits)
        self._permutation = lru_cache(4)(self._draw_permutation)

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shards [N] and the rows in them [N] of stream positions [N]."""
        # A batch may cross the end of an epoch: nothing is dropped there and no batch is short.
        epochs, offsets = np.divmod(positions, self.num_samples)
        shards, rows = np.empty_like(offsets), np.empty_like(offsets)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            shards[chosen], rows[chosen] = self._locate_in(int(epoch), offsets[chosen])
        return shards, rows

    def following(self, position: int, count: int) -> list[int]:
        """Return at most `count` shards that the stream enters next after a position, in order."""
        epoch, offset = divmod(position, self.num_samples)
        visits, ends = self._visits(epoch)
        # "right": an offset equal to an end is in the next shard, and empty ones are passed.
        place = int(np.searchsorted(ends, offset, side="right"))
        stream = np.concatenate([visits[place:], self._visits(epoch + 1)[0]])
        distinct = list(dict.fromkeys(stream[self._sizes[stream] > 0].tolist()))
        return distinct[1 : 1 + count]  # the first is the one that the position lies in

    def step_positions(
        self, step: int, batch_size: int, rank: int, world_size: int
    ) -> NDArray[np.int64]:
        """Return the stream positions of a rank's share of a step's global batch.

        Args:
            step: steps done before.
            batch_size: of all ranks together.
            rank: whose share.
            world_size: number of ranks.
        """
        # Shares of one global batch: which samples a step sees does not depend on ranks.
        share = batch_size // world_size
        first = step * batch_size + rank * share
        return np.arange(first, first + share, dtype=np.int64)

    def _locate_in(
        self, epoch: int, offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        visits, ends = self._visits(epoch)
        places = np.searchsorted(ends, offsets, side="right")
        rows = np.empty_like(offsets)
        for place in np.unique(places):
            shard, chosen = int(visits[place]), places == place
            start = ends[place] - self._sizes[shard]
            rows[chosen] = self._permutation(epoch, shard)[offsets[chosen] - start]
        return visits[places], rows

    def _draw_visits(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return an epoch's order of the shards, and the offset at which each of them ends."""
        # Seeded by the epoch: a resumed run draws it without those before it.
        visits = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
        return visits, np.cumsum(self._sizes[visits])

    def _draw_permutation(self, epoch: int, shard: int) -> NDArray[np.int64]:
        # The 1 at the end keeps shard 0's stream apart from that of the visits.
        return np.random.default_rng([self._seed, epoch, shard, 1]).permutation(self._sizes[shard])
