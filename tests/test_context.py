from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from rdm.context import PORTS, Context, Part, Port


def full(batch: int = 3) -> Context:
    return Context(
        tokens=torch.ones(batch, 4, 5),
        vector=torch.ones(batch, 6),
        channels=torch.ones(batch, 2, 8, 8),
        grounding=torch.ones(batch, 7, 5),
    )


def ports(context: Context) -> list[Tensor]:
    """Return the values of every port of a context that sets them all."""
    values = [getattr(context, name) for name in PORTS]
    assert all(isinstance(value, Tensor) for value in values)
    return values


def test_batch_size_is_that_of_any_port() -> None:
    assert full().batch_size == 3
    assert Context(channels=torch.ones(2, 1, 4, 4)).batch_size == 2


def test_empty_context_has_neither_batch_nor_device() -> None:
    assert (Context().batch_size, Context().device) == (None, None)


def test_ports_of_different_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="'tokens': 2, 'vector': 3"):
        Context(tokens=torch.ones(2, 1, 1), vector=torch.ones(3, 1))


def test_null_is_zero_of_the_same_shape_and_dtype() -> None:
    context = full().to(torch.bfloat16)
    for port, null in zip(ports(context), ports(context.null()), strict=True):
        assert (null.shape, null.dtype) == (port.shape, port.dtype)
        assert not null.any()


def test_null_of_some_ports_keeps_the_others() -> None:
    tokens, *others = ports(full().null(("tokens",)))
    assert not tokens.any()
    assert all(port.all() for port in others)


def test_null_leaves_absent_ports_absent() -> None:
    assert Context(vector=torch.ones(2, 3)).null().tokens is None
    assert Context().null().batch_size is None


def test_to_moves_and_casts_every_port() -> None:
    context = full().to("meta", torch.float16)
    assert context.device == torch.device("meta")
    assert {port.dtype for port in ports(context)} == {torch.float16}


def test_concatenated_stacks_along_the_batch() -> None:
    context = full()
    both = context.concatenated(context.null())
    assert both.batch_size == 6
    for port, stacked in zip(ports(context), ports(both), strict=True):
        assert torch.equal(stacked, torch.cat([port, torch.zeros_like(port)]))


def test_concatenated_empty_contexts_stay_empty() -> None:
    both = Context().concatenated(Context())
    assert [getattr(both, name) for name in PORTS] == [None] * 4


def test_concatenated_refuses_to_lose_a_port() -> None:
    with pytest.raises(ValueError, match="only one of them sets vector"):
        full().concatenated(
            Context(tokens=full().tokens, channels=full().channels, grounding=full().grounding)
        )


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("port", PORTS)
def test_dropout_rate_lies_in_its_binomial_interval(port: Port, rate: float) -> None:
    count = 10_000
    shape = (count, 1, 2, 2) if port == "channels" else (count, 2)
    dropped = Context(**{port: torch.ones(shape)}).dropped(
        {port: rate}, torch.Generator().manual_seed(0)
    )
    measured = 1 - getattr(dropped, port).flatten(1)[:, 0].mean().item()
    assert abs(measured - rate) < 3.3 * (rate * (1 - rate) / count) ** 0.5  # 99.9 %


def test_dropout_drops_whole_samples() -> None:
    dropped = Context(tokens=torch.ones(200, 4, 5)).dropped(
        {"tokens": 0.5}, torch.Generator().manual_seed(0)
    )
    assert dropped.tokens is not None
    per_sample = dropped.tokens.flatten(1).mean(dim=1)
    assert per_sample.unique().tolist() == [0.0, 1.0]


def test_dropout_of_ports_is_independent() -> None:
    context = Context(tokens=torch.ones(20_000, 1, 1), vector=torch.ones(20_000, 1))
    dropped = context.dropped({"tokens": 0.5, "vector": 0.5}, torch.Generator().manual_seed(0))
    assert dropped.tokens is not None
    assert dropped.vector is not None
    both_kept = (dropped.tokens[:, 0, 0] * dropped.vector[:, 0]).mean().item()
    assert both_kept == pytest.approx(0.25, abs=0.012)


def test_dropout_does_not_depend_on_the_order_of_its_rates() -> None:
    rates = {"tokens": 0.5, "grounding": 0.5, "vector": 0.3}
    first = full(100).dropped(rates, torch.Generator().manual_seed(0))
    second = full(100).dropped(dict(reversed(rates.items())), torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(ports(first), ports(second), strict=True))


def test_dropout_keeps_unnamed_ports_and_rate_zero() -> None:
    tokens, *others = ports(
        full().dropped({"tokens": 1.0, "vector": 0.0}, torch.Generator().manual_seed(0))
    )
    assert not tokens.any()
    assert all(port.all() for port in others)


def test_dropout_replaces_values_that_are_not_numbers() -> None:
    dropped = Context(vector=torch.full((4, 2), torch.nan)).dropped(
        {"vector": 1.0}, torch.Generator()
    )
    assert dropped.vector is not None
    assert not dropped.vector.any()


@pytest.mark.parametrize("rates", [{"token": 0.1}, {"tokens": -0.1}, {"tokens": 1.1}, {"map": 0.5}])
def test_dropout_of_no_port_or_no_probability_is_refused(rates: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="dropout rates are probabilities"):
        full().dropped(rates, torch.Generator())


def test_context_survives_pickling() -> None:
    context = pickle.loads(pickle.dumps(full()))
    assert all(torch.equal(a, b) for a, b in zip(ports(context), ports(full()), strict=True))


def test_a_port_that_a_network_does_not_read_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError,
        match="the net reads tokens, vector alone, but the context sets channels, ground",
    ):
        full().require_read(("tokens", "vector"), "the net")


def test_ports_that_are_read_or_absent_are_accepted() -> None:
    Context(tokens=torch.zeros(1, 1, 1)).require_read(("tokens", "vector"), "the net")


def text_part(source: str = "text", batch: int = 3) -> Part:
    """Four tokens of which the last two are padding; nothing said is one token of sevens."""
    present = torch.tensor([[True, True, False, False]]).repeat(batch, 1)
    return Part(
        source,
        "tokens",
        torch.ones(batch, 4, 5),
        present,
        null=torch.full((1, 1, 5), 7.0).expand(1, 4, 5),
        null_present=torch.tensor([[True, False, False, False]]),
    )


def test_parts_of_a_port_are_joined_in_their_order() -> None:
    context = Context(
        Part("neighbors", "tokens", torch.zeros(2, 3, 5)),
        Part("text", "tokens", torch.ones(2, 2, 5)),
    )
    assert context.tokens is not None
    assert context.tokens[0, :, 0].tolist() == [0, 0, 0, 1, 1]
    assert context.sources == ("neighbors", "text")


def test_tokens_of_a_source_without_a_mask_are_all_present_beside_one_with_a_mask() -> None:
    context = Context(Part("neighbors", "tokens", torch.zeros(3, 2, 5)), text_part())
    assert context.tokens_present is not None
    assert context.tokens_present[1].tolist() == [True, True, True, True, False, False]


def test_without_any_mask_there_is_none() -> None:
    assert full().tokens_present is None


def test_a_part_may_have_a_null_of_its_own_and_its_mask() -> None:
    null = Context(text_part()).null()
    assert null.tokens is not None
    assert null.tokens_present is not None
    assert null.tokens.unique().tolist() == [7.0]
    assert null.tokens_present[2].tolist() == [True, False, False, False]


def test_a_null_goes_by_source() -> None:
    context = Context(Part("neighbors", "tokens", torch.ones(3, 2, 5)), text_part()).null(
        ["neighbors"]
    )
    assert context.tokens is not None
    assert context.tokens[0, :, 0].tolist() == [0, 0, 1, 1, 1, 1]


def test_all_parts_of_a_source_are_dropped_together() -> None:
    parts = (
        Part("class", "vector", torch.ones(500, 2)),
        Part("class", "tokens", torch.ones(500, 1, 2)),
    )
    dropped = Context(*parts).dropped({"class": 0.5}, torch.Generator().manual_seed(0))
    assert dropped.vector is not None
    assert dropped.tokens is not None
    assert torch.equal(dropped.vector[:, 0], dropped.tokens[:, 0, 0])
    assert 150 < dropped.vector[:, 0].sum() < 350


def test_sources_that_share_a_port_are_dropped_independently() -> None:
    parts = (
        Part("own", "tokens", torch.ones(20_000, 1, 1)),
        Part("neighbors", "tokens", torch.ones(20_000, 1, 1)),
    )
    dropped = Context(*parts).dropped(
        {"own": 0.5, "neighbors": 0.5}, torch.Generator().manual_seed(0)
    )
    assert dropped.tokens is not None
    both_kept = dropped.tokens[:, :, 0].prod(1).mean().item()
    assert both_kept == pytest.approx(0.25, abs=0.012)


def test_a_dropped_sample_has_the_nulls_mask_and_the_others_keep_theirs() -> None:
    dropped = Context(text_part(batch=200)).dropped({"text": 0.5}, torch.Generator().manual_seed(0))
    assert dropped.tokens is not None
    assert dropped.tokens_present is not None
    is_null = dropped.tokens[:, 0, 0] == 7
    assert 0 < is_null.sum() < 200
    assert torch.equal(dropped.tokens_present.sum(1), torch.where(is_null, 1, 2))


def test_shuffling_a_source_leaves_the_others_in_place() -> None:
    context = Context(
        Part("text", "vector", torch.arange(3.0)[:, None]),
        Part("class", "tokens", torch.ones(3, 1, 1)),
    )
    moved = context.shuffled("text", torch.tensor([2, 0, 1]))
    assert moved.vector is not None
    assert moved.vector[:, 0].tolist() == [2, 0, 1]
    assert moved.tokens is context.tokens


def test_rows_keep_a_null_that_all_samples_share() -> None:
    part = Context(text_part(batch=4)).rows(torch.tensor([3, 1])).parts[0]
    assert part.present is not None
    assert part.null is not None
    assert (len(part.values), len(part.present), len(part.null)) == (2, 2, 1)


def test_casting_leaves_masks_and_integers_as_they_are() -> None:
    context = Context(text_part(), Part("class", "vector", torch.ones(3, 2, dtype=torch.int64))).to(
        torch.float16
    )
    assert context.tokens_present is not None
    assert (context.tokens_present.dtype, context.parts[1].values.dtype) == (
        torch.bool,
        torch.int64,
    )
    assert context.parts[0].values.dtype == torch.float16


def test_stacking_a_masked_and_an_unmasked_part_says_that_all_of_the_latter_is_present() -> None:
    both = Context(text_part(batch=1)).concatenated(Context(tokens=torch.zeros(1, 4, 5)))
    assert both.tokens_present is not None
    assert both.tokens_present.tolist() == [[True, True, False, False], [True] * 4]


def test_weights_of_tokens_join_masks_and_fill_up_with_ones() -> None:
    weighted = Part("neighbors", "tokens", torch.zeros(2, 2, 3), weights=torch.full((2, 2), 0.5))
    padded = Part("text", "tokens", torch.zeros(2, 1, 3), torch.tensor([[True], [False]]))
    context = Context(weighted, padded)
    assert context.tokens_weight is not None
    assert context.tokens_weight.tolist() == [[0.5, 0.5, 1.0], [0.5, 0.5, 0.0]]
    # A null has no weights: its tokens say nothing.
    both = Context(weighted).concatenated(Context(weighted).null())
    assert both.tokens_weight is not None
    assert both.tokens_weight.tolist() == [[0.5, 0.5]] * 2 + [[1.0, 1.0]] * 2
    assert Context(tokens=torch.zeros(2, 2, 3)).tokens_weight is None


def test_weights_keep_32_bits_when_a_context_is_cast() -> None:
    part = Part("neighbors", "tokens", torch.zeros(1, 1, 3), weights=torch.tensor([[1.2345678]]))
    moved = Context(part).to(torch.bfloat16)
    assert moved.parts[0].values.dtype == torch.bfloat16
    assert moved.tokens_weight is not None
    assert moved.tokens_weight.item() == torch.tensor(1.2345678).item()
