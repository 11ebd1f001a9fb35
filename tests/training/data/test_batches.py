from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdm.errors import CacheError, StorageError
from rdm.training.data.batches import Arrays, BatchReader
from rdm.training.data.order import DataOrder
from rdm.training.data.training_data import Shard

sizes = st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda values: sum(values) > 0)


class Numbered:
    """Training data whose every sample is its own (shard, row); remembers what was loaded, and how
    many at once."""

    def __init__(self, shard_sizes: Sequence[int], fails: Sequence[int] = ()) -> None:
        self.shards = [Shard(f"{i:05d}", size) for i, size in enumerate(shard_sizes)]
        self.fails = fails
        self.reads = []
        self.threads = set()

    def load_shard(self, index: int) -> dict[str, NDArray[np.int64]]:
        self.reads.append(index)
        self.threads.add(threading.current_thread().name)
        if index in self.fails:
            raise StorageError("a file is missing", where=self.shards[index].stem)
        count = self.shards[index].num_samples
        return {
            "place": np.stack([np.full(count, index), np.arange(count)], axis=1),
            "row": np.arange(count),
        }

    def keys(self, index: int) -> list[str]:
        return [f"{index}-{row}" for row in range(self.shards[index].num_samples)]


def reader_of(data: Numbered, seed: int = 0, **options: int) -> BatchReader:
    return BatchReader(
        data, DataOrder([shard.num_samples for shard in data.shards], seed), **options
    )


def read_epochs(reader: BatchReader, size: int, steps: int, expect: bool = True) -> list[Arrays]:
    """Return the batches of some steps as training asks for them."""
    batches = []
    for step in range(steps):
        batches.append(reader.batch(np.arange(step * size, (step + 1) * size)))
        if expect:
            reader.expect(np.arange((step + 1) * size, (step + 2) * size))
    return batches


def test_a_batch_holds_the_samples_of_its_positions() -> None:
    positions = np.arange(4, 12)
    order = DataOrder([3, 5], 7)
    with BatchReader(Numbered([3, 5]), order) as reader:
        batch = reader.batch(positions)
    shards, rows = order.locate(positions)
    assert np.array_equal(batch["place"], np.stack([shards, rows], axis=1))
    assert np.array_equal(batch["row"], rows)


@given(
    sizes,
    st.integers(0, 3),
    st.integers(1, 16),
    st.integers(0, 3),
    st.sampled_from([1, 500, 10**9]),
)
def test_reading_ahead_changes_no_batch(
    shard_sizes: list[int], seed: int, size: int, ahead: int, memory: int
) -> None:
    with reader_of(Numbered(shard_sizes), seed, ahead=0) as plain:
        expected = read_epochs(plain, size, 6, expect=False)
    with reader_of(Numbered(shard_sizes), seed, ahead=ahead, memory_bytes=memory) as reader:
        found = read_epochs(reader, size, 6)
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in other)


@given(sizes, st.integers(1, 16), st.integers(1, 5))
def test_a_reader_that_starts_in_the_middle_of_an_epoch_goes_on_with_the_same_batches(
    shard_sizes: list[int], size: int, start: int
) -> None:
    with reader_of(Numbered(shard_sizes)) as straight, reader_of(Numbered(shard_sizes)) as resumed:
        expected = read_epochs(straight, size, start + 3)[start:]
        found = [
            resumed.batch(np.arange(step * size, (step + 1) * size))
            for step in range(start, start + 3)
        ]
    for one, other in zip(found, expected, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in other)


def test_a_batch_that_was_not_expected_does_not_lose_the_one_that_was() -> None:
    with reader_of(Numbered([3, 5])) as reader:
        reader.expect(np.arange(4, 8))
        other = reader.batch(np.arange(4))
        expected = reader.batch(np.arange(4, 8))
    assert not np.array_equal(other["place"], expected["place"])
    with reader_of(Numbered([3, 5])) as plain:
        assert np.array_equal(expected["place"], plain.batch(np.arange(4, 8))["place"])


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_every_shard_is_loaded_once_per_epoch_where_memory_is_short(ahead: int) -> None:
    data = Numbered([8] * 6)
    order = DataOrder([8] * 6, 0)
    with BatchReader(data, order, ahead=ahead, memory_bytes=1) as reader:
        read_epochs(reader, 4, 24)  # two epochs of twelve steps
    entered = [shard for shard, _ in itertools.groupby(order.locate(np.arange(24 * 4))[0].tolist())]
    assert not Counter(entered) - Counter(data.reads)
    assert (Counter(data.reads) - Counter(entered)).total() <= max(ahead, 1)  # of the third epoch


def test_every_shard_is_loaded_once_where_memory_holds_all() -> None:
    data = Numbered([8] * 6)
    with reader_of(data) as reader:
        read_epochs(reader, 4, 36)
    assert sorted(data.reads) == list(range(6))


def test_no_more_shards_are_held_than_memory_has_room_for() -> None:
    data = Numbered([8] * 6)
    one = sum(array.nbytes for array in data.load_shard(0).values())
    with reader_of(data, ahead=5, memory_bytes=3 * one) as reader:
        for step in range(12):
            reader.batch(np.arange(step * 4, step * 4 + 4))
            assert len(reader._shelf._shards) <= 3


def test_shards_are_loaded_by_background_threads() -> None:
    data = Numbered([8] * 6)
    with reader_of(data) as reader:
        read_epochs(reader, 4, 4)
    assert threading.current_thread().name not in data.threads


def test_an_error_ahead_is_raised_by_the_step_that_needs_the_shard() -> None:
    order = DataOrder([4, 4, 4], 0)
    third = order.following(0, 2)[-1]
    data = Numbered([4, 4, 4], fails=[third])
    with BatchReader(data, order) as reader:
        read_epochs(reader, 4, 2)
        with pytest.raises(StorageError, match="a file is missing") as caught:
            reader.batch(np.arange(8, 12))
    assert caught.value.where == data.shards[third].stem


def test_a_shard_that_could_not_be_read_is_tried_again_when_it_is_asked_for_again() -> None:
    data = Numbered([4], fails=[0])
    with reader_of(data) as reader:
        with pytest.raises(StorageError):
            reader.batch(np.arange(4))
        data.fails = []
        assert len(reader.batch(np.arange(4))["row"]) == 4


def test_arrays_of_another_length_than_the_shard_are_refused() -> None:
    data = Numbered([5])
    data.load_shard = lambda index: {"row": np.arange(4)}
    with reader_of(data) as reader, pytest.raises(CacheError, match="has 4 rows instead of 5"):
        reader.batch(np.arange(4))


def test_closing_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with reader_of(Numbered([8] * 6)) as reader:
        read_epochs(reader, 4, 3)
    for thread in threading.enumerate():
        if thread.name.startswith(("batch", "shard")):
            thread.join(10)
    assert threading.active_count() == before


def test_keys_name_the_samples_of_a_batch() -> None:
    positions = np.arange(5)
    with reader_of(Numbered([3, 2])) as reader:
        places = reader.batch(positions)["place"].tolist()
        assert reader.keys(positions) == [f"{shard}-{row}" for shard, row in places]
