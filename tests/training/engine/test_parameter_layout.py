from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given

from rdm.training.engine.parameter_layout import Layout, Piece, Place, replicated_layout

SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=6)


def _flat_layouts(shapes: list[tuple[int, int]], ranks: int) -> list[Layout]:
    """Cut parameters, laid end to end, into equal parts, as ZeRO 1 and 2 do."""
    total = sum(a * b for a, b in shapes)
    size = -(-total // ranks)
    layouts = []
    for rank in range(ranks):
        places, start = [], 0
        for number, shape in enumerate(shapes):
            end = start + shape[0] * shape[1]
            low, high = max(start, rank * size), min(end, (rank + 1) * size)
            piece = Piece(0, low - rank * size, low - start, high - low) if low < high else None
            places.append(Place(f"p{number}", torch.Size(shape), piece))
            start = end
        layouts.append(Layout(places, shared=True))
    return layouts


@given(SHAPES, st.integers(1, 4))
def test_every_number_is_put_on_exactly_one_rank(shapes: list[tuple[int, int]], ranks: int) -> None:
    values = {
        f"p{n}": torch.arange(a * b, dtype=torch.float32).view(a, b) + 100 * n
        for n, (a, b) in enumerate(shapes)
    }
    total = sum(a * b for a, b in shapes)
    shards = []
    for layout in _flat_layouts(shapes, ranks):
        shard = torch.full((-(-total // ranks),), -1.0)
        layout.scatter(values.__getitem__, {0: shard})
        shards.append(shard)
    expected = torch.cat([value.flatten() for value in values.values()])
    assert torch.equal(torch.cat(shards)[:total], expected)


def test_without_zero_rank_0_gives_everything_and_the_others_nothing() -> None:
    parameters = {"a": torch.randn(2, 3), "b": torch.randn(4)}
    layout = replicated_layout(parameters)
    shards = dict(enumerate(parameters.values()))
    assert all(
        torch.equal(layout.gather(shards, 0)[name], value) for name, value in parameters.items()
    )
    assert layout.gather(shards, 1) == {}


def test_without_zero_a_kind_that_only_some_parameters_have_is_gathered_for_them() -> None:
    layout = replicated_layout({"matrix": torch.zeros(2, 2), "vector": torch.zeros(2)})
    assert set(layout.gather({1: torch.ones(2)}, 0)) == {"vector"}


def test_memory_formats_survive() -> None:
    weight = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    other = torch.zeros_like(weight)
    layout = replicated_layout({"w": weight})
    layout.scatter(layout.gather({0: weight}, 0).__getitem__, {0: other})
    assert torch.equal(other, weight)
    assert other.is_contiguous(memory_format=torch.channels_last)
