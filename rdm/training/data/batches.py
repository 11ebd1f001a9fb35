"""Batches from shards: gathered whole index arrays at a time, while the shards that come next load
in the background.

The order of the data is known, so nothing has to be guessed: `DataOrder` says which shards follow.
Threads change when a shard is loaded and a batch is put together, never what is in it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rdm.errors import CacheError
from rdm.training.data.order import DataOrder
from rdm.training.data.training_data import TrainingData

Arrays = dict[str, NDArray]
MEMORY_BYTES = 1_000_000_000
AHEAD = 2


@dataclass(frozen=True)
class _Expected:
    positions: NDArray[np.int64]
    arrays: Future[Arrays]


class BatchReader:
    """Assembles batches from shards kept in memory. Close it, or use it in a `with` block.

    An error of a background thread is raised by the call that needs what could not be read.
    """

    def __init__(
        self,
        data: TrainingData,
        order: DataOrder,
        *,
        memory_bytes: int = MEMORY_BYTES,
        ahead: int = AHEAD,
    ) -> None:
        """Start reading; nothing is loaded yet.

        Args:
            data: samples in shards; `load_shard` is called from several threads at once.
            order: of the same shards.
            memory_bytes: most that loaded shards take, unless those of one batch and one ahead are
                larger.
            ahead: shards that are loaded before they are needed, each by a thread of its own; 0:
                none.
        """
        self._data = data
        self._order = order
        self._ahead = ahead
        self._shelf = _Shelf(data, memory_bytes, num_threads=max(ahead, 1))
        # A single thread, because batches are asked for one after another.
        self._assembler = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._expected: _Expected | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is still to be loaded, and wait for what is being loaded."""
        self._assembler.shutdown(wait=False, cancel_futures=True)
        self._shelf.close()

    @property
    def num_samples(self) -> int:
        """The samples of one epoch."""
        return self._order.num_samples

    def expect(self, positions: NDArray[np.int64]) -> None:
        """Begin to put together the batch that will be asked for next."""
        self._expected = _Expected(positions, self._assembler.submit(self._assemble, positions))

    def batch(self, positions: NDArray[np.int64]) -> Arrays:
        """Return the arrays of the samples at stream positions, [len(positions), ...] each."""
        # A caller may ask for anything: a wrong guess costs time, never a wrong batch.
        expected = self._expected
        if expected is None or not np.array_equal(expected.positions, positions):
            return self._assemble(positions)
        self._expected = None
        return expected.arrays.result()

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """Return the names of the samples at stream positions."""
        shards, rows = self._order.locate(positions)
        names: dict[int, Sequence[str]] = {
            shard: self._data.keys(shard) for shard in np.unique(shards).tolist()
        }
        return [
            str(names[shard][row])
            for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)
        ]

    def _assemble(self, positions: NDArray[np.int64]) -> Arrays:
        shards, rows = self._order.locate(positions)
        # In the order of the batch, so that the shard that is needed first is asked for first.
        needed = list(dict.fromkeys(shards.tolist()))
        room = self._shelf.room - len(needed)
        # One ahead even in a small memory: every change of shard would stop the training.
        ahead = max(min(self._ahead, room), 1) if self._ahead else 0
        loaded = self._shelf.take(needed, self._order.following(int(positions[-1]), ahead))
        return _gather(loaded, shards, rows)


class _Shelf:
    """Loaded shards and those that are being loaded, the most recently wanted last."""

    def __init__(self, data: TrainingData, memory_bytes: int, num_threads: int) -> None:
        self._data = data
        self._memory = memory_bytes
        self._shards: OrderedDict[int, Future[Arrays]] = OrderedDict()
        self._lock = Lock()
        self._largest = 0
        self._loader = ThreadPoolExecutor(num_threads, thread_name_prefix="shard")

    @property
    def room(self) -> int:
        """How many shards the memory holds, by the largest one seen; one before any was seen."""
        return self._memory // self._largest if self._largest else 1

    def take(self, needed: Sequence[int], following: Sequence[int]) -> dict[int, Arrays]:
        """Return the needed shards, waiting for them; begin to load those that follow."""
        with self._lock:
            for shard in (*needed, *following):
                if shard not in self._shards:
                    self._shards[shard] = self._loader.submit(self._load, shard)
                # The dictionary's order is that of last use, which `_forget_others` relies on.
                self._shards.move_to_end(shard)
            self._forget_others({*needed, *following})
            futures = {shard: self._shards[shard] for shard in needed}

        # Waiting happens outside of the lock: other threads may ask meanwhile.
        try:
            return {shard: future.result() for shard, future in futures.items()}
        except BaseException:
            with self._lock:
                for shard in needed:
                    self._shards.pop(shard, None)  # who asks again, tries again
            raise

    def close(self) -> None:
        """See BatchReader.close."""
        self._loader.shutdown(cancel_futures=True)

    def _forget_others(self, wanted: set[int]) -> None:
        """Forget shards that are not wanted, longest ago first, while memory is short."""
        # Those that are wanted stay even above the limit: a batch needs all of them.
        for shard in [shard for shard in self._shards if shard not in wanted]:
            if len(self._shards) <= self.room:
                return
            del self._shards[shard]

    def _load(self, shard: int) -> Arrays:
        arrays = self._data.load_shard(shard)
        # The order was drawn for announced sizes: other ones would fail far from the cause.
        expected = self._data.shards[shard].num_samples
        for name, array in arrays.items():
            if len(array) != expected:
                raise CacheError(
                    f"{name} has {len(array)} rows instead of {expected}",
                    where=f"shard {self._data.shards[shard].stem}",
                    fix="build the cache again",
                )
        with self._lock:
            self._largest = max(self._largest, sum(array.nbytes for array in arrays.values()))
        return arrays


def _gather(
    loaded: dict[int, Arrays], shards: NDArray[np.int64], rows: NDArray[np.int64]
) -> Arrays:
    """Return the samples at rows [N] of shards [N] as one array per name."""
    # Shards of one data set have the same names, shapes and types; the first one stands for all.
    first = next(iter(loaded.values()))
    batch = {
        name: np.empty((len(rows), *array.shape[1:]), array.dtype) for name, array in first.items()
    }
    starts = np.flatnonzero(np.diff(shards, prepend=-1))  # a batch is a few runs, each in one shard
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        for name, array in loaded[int(shards[start])].items():
            # The rows are valid; `raise`, the default mode, would go through a buffer.
            np.take(array, rows[start:stop], axis=0, out=batch[name][start:stop], mode="clip")
    return batch
