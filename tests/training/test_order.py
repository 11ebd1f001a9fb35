import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rdm.training.objective import Shard
from rdm.training.order import BatchReader, DataOrder

sizes = st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda values: sum(values) > 0)


class Numbered:
    """Training data whose every sample is its own (shard, row)."""

    def __init__(self, shard_sizes):
        self.shards = [Shard(f"{i:05d}", size) for i, size in enumerate(shard_sizes)]
        self.reads = []

    def load_shard(self, index):
        self.reads.append(index)
        count = self.shards[index].num_samples
        return {"place": np.stack([np.full(count, index), np.arange(count)], axis=1)}

    def keys(self, index):
        return [f"{index}-{row}" for row in range(self.shards[index].num_samples)]


@given(sizes, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_visits_every_sample_once(shard_sizes, seed, epoch):
    order = DataOrder(shard_sizes, seed)
    start = epoch * order.num_samples
    places = order.locate(np.arange(start, start + order.num_samples))
    assert sorted(places) == [(shard, row) for shard, size in enumerate(shard_sizes) for row in range(size)]


@given(sizes, st.integers(0, 5), st.integers(1, 50))
def test_the_order_does_not_depend_on_where_reading_started(shard_sizes, seed, position):
    fresh, used = DataOrder(shard_sizes, seed), DataOrder(shard_sizes, seed)
    used.locate(np.arange(position + 1))
    assert fresh.locate(np.array([position])) == used.locate(np.array([position]))


def test_epochs_and_seeds_have_different_orders():
    everything = np.arange(100)
    assert DataOrder([50, 50], 0).locate(everything) != DataOrder([50, 50], 1).locate(everything)
    assert DataOrder([50, 50], 0).locate(everything) != DataOrder([50, 50], 0).locate(everything + 100)


@given(st.integers(0, 7), st.sampled_from([1, 2, 4, 8]))
def test_the_ranks_together_read_the_global_batch(step, world_size):
    order = DataOrder([64], 0)
    shares = [order.step_positions(step, 8, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == list(range(step * 8, step * 8 + 8))


def test_a_batch_holds_the_samples_of_its_positions():
    data = Numbered([3, 5])
    order = DataOrder([3, 5], 7)
    positions = np.arange(4, 12)
    batch = BatchReader(data, order).batch(positions)
    assert [tuple(place) for place in batch["place"]] == order.locate(positions)


def test_shards_are_read_once_per_epoch_when_memory_holds_one():
    data = Numbered([8, 8, 8])
    reader = BatchReader(data, DataOrder([8, 8, 8], 0), memory_bytes=1)
    for start in range(0, 24, 4):
        reader.batch(np.arange(start, start + 4))
    assert sorted(data.reads) == [0, 1, 2]


def test_keys_name_the_samples_of_a_batch():
    data = Numbered([3, 2])
    reader = BatchReader(data, DataOrder([3, 2], seed=0))
    positions = np.arange(5)
    places = reader.batch(positions)["place"].tolist()
    assert reader.keys(positions) == [f"{shard}-{row}" for shard, row in places]
