from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rdm.training.data.order import DataOrder

sizes = st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(lambda values: sum(values) > 0)
seeds = st.integers(0, 5)


def places(order: DataOrder, positions: Sequence[int] | NDArray[np.int64]) -> list[tuple[int, int]]:
    shards, rows = order.locate(np.asarray(positions, np.int64))
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


@given(sizes, seeds, st.integers(0, 3))
def test_an_epoch_visits_every_sample_once(shard_sizes: list[int], seed: int, epoch: int) -> None:
    order = DataOrder(shard_sizes, seed)
    start = epoch * order.num_samples
    found = places(order, np.arange(start, start + order.num_samples))
    assert sorted(found) == [
        (shard, row) for shard, size in enumerate(shard_sizes) for row in range(size)
    ]


@given(sizes, seeds, st.integers(0, 3))
def test_an_epoch_reads_every_shard_in_one_run(
    shard_sizes: list[int], seed: int, epoch: int
) -> None:
    order = DataOrder(shard_sizes, seed)
    start = epoch * order.num_samples
    shards, _ = order.locate(np.arange(start, start + order.num_samples))
    entered = np.flatnonzero(np.diff(shards, prepend=-1))
    assert len(entered) == sum(size > 0 for size in shard_sizes)


@given(sizes, seeds, st.integers(1, 50))
def test_the_order_does_not_depend_on_where_reading_started(
    shard_sizes: list[int], seed: int, position: int
) -> None:
    fresh, used = DataOrder(shard_sizes, seed), DataOrder(shard_sizes, seed)
    used.locate(np.arange(position + 1))
    assert places(fresh, [position]) == places(used, [position])


@given(sizes, seeds, st.lists(st.integers(0, 200), min_size=1, max_size=20))
def test_positions_may_come_in_any_order(
    shard_sizes: list[int], seed: int, positions: list[int]
) -> None:
    order = DataOrder(shard_sizes, seed)
    assert places(order, positions) == [places(order, [position])[0] for position in positions]


def test_epochs_and_seeds_have_different_orders() -> None:
    everything = np.arange(100)
    assert places(DataOrder([50, 50], 0), everything) != places(DataOrder([50, 50], 1), everything)
    assert places(DataOrder([50, 50], 0), everything) != places(
        DataOrder([50, 50], 0), everything + 100
    )


@given(sizes, seeds, st.integers(0, 9), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_the_ranks_shares_are_the_global_batch_whatever_their_number(
    shard_sizes: list[int], seed: int, step: int, world_size: int
) -> None:
    orders = [DataOrder(shard_sizes, seed) for _ in range(world_size)]
    shares = [
        places(order, order.step_positions(step, 12, rank, world_size))
        for rank, order in enumerate(orders)
    ]
    alone = DataOrder(shard_sizes, seed)
    assert sum(shares, []) == places(alone, alone.step_positions(step, 12, 0, 1))
    assert len({len(share) for share in shares}) == 1


@given(sizes, seeds, st.integers(0, 100), st.integers(0, 4))
def test_the_shards_that_follow_are_those_that_the_stream_enters_next(
    shard_sizes: list[int], seed: int, position: int, count: int
) -> None:
    order = DataOrder(shard_sizes, seed)
    shards, _ = order.locate(np.arange(position, position + 2 * order.num_samples))
    entered = [shard for shard in dict.fromkeys(shards.tolist()) if shard != shards[0]]
    assert order.following(position, count) == entered[:count]
