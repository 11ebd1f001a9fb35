from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from rdm.context import Context
from rdm.encoders.text_states import load_text_states
from rdm.generators.conditions import (
    Known,
    LabelCondition,
    LabelConfig,
    NeighborCondition,
    NeighborsConfig,
    TextCondition,
    TextConfig,
    assemble,
    draw_neighbors,
)


def training_context(
    neighbors: torch.Tensor, config: NeighborsConfig, generator: torch.Generator
) -> Context:
    condition = NeighborCondition(config, neighbors.shape[2])
    return assemble([condition], {"neighbors": neighbors}, {"neighbors": config.dropout}, generator)


def _numbered(samples: int, stored: int) -> torch.Tensor:
    return torch.arange(samples * stored).float().view(samples, stored, 1)


def test_neighbors_are_drawn_of_the_samples_own_without_repetition() -> None:
    drawn = draw_neighbors(_numbered(50, 8), 4, torch.Generator().manual_seed(0))[..., 0].long()
    assert drawn.shape == (50, 4)
    assert torch.equal(drawn // 8, torch.arange(50)[:, None].expand(50, 4))
    assert all(len(set(row)) == 4 for row in drawn.tolist())


def test_every_neighbor_of_the_pool_is_drawn_equally_often() -> None:
    drawn = draw_neighbors(
        _numbered(1, 8).expand(20_000, 8, 1), 4, torch.Generator().manual_seed(0)
    )
    shares = torch.bincount(drawn.long().flatten(), minlength=8) / 20_000
    assert torch.allclose(shares, torch.full((8,), 0.5), atol=0.02)


def test_a_pool_of_k_is_used_whole_and_draws_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    neighbors = _numbered(3, 4)
    assert draw_neighbors(neighbors, 4, generator) is neighbors
    assert torch.equal(generator.get_state(), before)


def test_a_pool_smaller_than_k_is_refused() -> None:
    with pytest.raises(
        ValidationError, match="a pool of 3 neighbors is smaller than k_train or k_choices, 4"
    ):
        NeighborsConfig(k_train=4, pool=3)


def test_without_a_pool_k_train_neighbors_are_loaded() -> None:
    assert NeighborsConfig(k_train=4).num_loaded == 4
    assert NeighborsConfig(k_train=4, pool=9).num_loaded == 9


def test_steps_draw_the_number_of_neighbors_from_the_choices() -> None:
    config = NeighborsConfig(k_train=4, k_choices=(1, 3, 8), dropout=0.0)
    neighbors = torch.randn(2, 8, 5)
    contexts = [
        training_context(neighbors, config, torch.Generator().manual_seed(seed))
        for seed in range(40)
    ]
    lengths = {context.tokens.shape[1] for context in contexts if context.tokens is not None}
    assert config.num_loaded == 8
    assert lengths == {1, 3, 8}


def test_a_pool_smaller_than_a_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than k_train or k_choices, 6"):
        NeighborsConfig(k_train=4, k_choices=(1, 6), pool=5)


def test_the_vector_is_the_mean_of_the_tokens_that_were_kept() -> None:
    config = NeighborsConfig(k_train=2, mean_vector=True, dropout=0.5, scale=3.0)
    context = training_context(torch.randn(64, 2, 5), config, torch.Generator().manual_seed(0))
    assert context.tokens is not None
    assert context.vector is not None
    assert torch.equal(context.vector, context.tokens.mean(1))
    dropped = (context.tokens == 0).all(2).all(1)
    assert 0 < dropped.sum() < 64
    assert torch.equal(dropped, (context.vector == 0).all(1))


def test_without_a_generator_the_nearest_condition_and_none_is_dropped() -> None:
    config = NeighborsConfig(k_train=2, pool=4, dropout=0.9, scale=2.0)
    neighbors = torch.randn(64, 4, 5)
    context = assemble(
        [NeighborCondition(config, 5)], {"neighbors": neighbors}, {"neighbors": 0.9}, None
    )
    assert context.tokens is not None
    assert torch.equal(context.tokens, neighbors[:, :2] * 2.0)


def test_a_source_that_training_never_shows_is_null_without_a_generator_too() -> None:
    config = NeighborsConfig(k_train=2, dropout=1.0)
    batch = {"neighbors": torch.randn(3, 2, 5)}
    context = assemble([NeighborCondition(config, 5)], batch, {"neighbors": 1.0}, None)
    assert context.tokens is not None
    assert not context.tokens.any()


def test_pictures_of_which_nothing_is_known_have_the_null_context() -> None:
    context = Context(
        *NeighborCondition(NeighborsConfig(mean_vector=True), 5).of_known(
            [Known(), Known()], torch.device("cpu")
        )
    )
    assert context.tokens is not None
    assert context.vector is not None
    assert (tuple(context.tokens.shape), tuple(context.vector.shape)) == ((2, 1, 5), (2, 5))
    assert not context.tokens.any()


def test_what_is_known_of_a_picture_conditions_as_in_training() -> None:
    config = NeighborsConfig(k_train=3, scale=2.0, mean_vector=True)
    neighbors, condition = torch.randn(2, 3, 5), NeighborCondition(config, 5)
    known = Context(*condition.of_known([Known(row) for row in neighbors], torch.device("cpu")))
    trained = Context(*condition.of_batch({"neighbors": neighbors}, None))
    assert all(
        torch.equal(one.values, other.values)
        for one, other in zip(known.parts, trained.parts, strict=True)
    )


def test_the_mean_vector_is_weighted_as_the_tokens_are() -> None:
    config = NeighborsConfig(k_train=3, scale=2.0, mean_vector=True)
    condition, neighbors = NeighborCondition(config, 5), torch.randn(3, 5)
    plain = Known(neighbors)
    weighted = Known(neighbors, weights=torch.tensor([2.0, 1.0, 0.0]))
    context = Context(*condition.of_known([weighted, plain], torch.device("cpu")))
    first, second, _ = neighbors * 2.0
    assert context.vector is not None
    assert torch.allclose(context.vector[0], (2 * first + second) / 3)
    assert torch.allclose(context.vector[1], (neighbors * 2.0).mean(0))


def test_neighbors_of_some_pictures_only_are_refused() -> None:
    with pytest.raises(ValueError, match="others have none"):
        NeighborCondition(NeighborsConfig(), 5).of_known(
            [Known(torch.zeros(1, 5)), Known()], torch.device("cpu")
        )


@pytest.fixture(scope="module")
def text() -> TextCondition:
    config = TextConfig(length=6, scale=2.0)
    return TextCondition(config, load_text_states("minilm", 6))


def caption_batch(text: TextCondition, captions: list[list[str]]) -> dict[str, torch.Tensor]:
    """Return samples with one or two captions each, as a cache's annotation has them."""
    states = torch.zeros(len(captions), 2, 6, 384, dtype=torch.float16)
    lengths = torch.zeros(len(captions), 2, dtype=torch.uint8)
    for row, said in enumerate(captions):
        found, present = text.encode(said)
        states[row, : len(said)] = found
        lengths[row, : len(said)] = present.sum(1)
    count = torch.tensor([len(said) for said in captions], dtype=torch.uint8)
    return {"text": states, "text_lengths": lengths, "text_count": count}


def test_a_dropped_caption_is_the_empty_one_and_not_zero(text: TextCondition) -> None:
    batch = caption_batch(text, [["a dog"], ["two cats"]])
    dropped = assemble([text], batch, {"text": 1.0}, torch.Generator().manual_seed(0))
    said = text.of_known([Known(text="")], torch.device("cpu"))[0]
    assert dropped.tokens is not None
    assert torch.equal(dropped.tokens[0], said.values[0])
    assert dropped.tokens.abs().sum() > 0
    assert dropped.tokens_present is not None
    assert dropped.tokens_present.sum(1).tolist() == [2, 2]


def test_training_and_sampling_read_a_caption_alike(text: TextCondition) -> None:
    batch = caption_batch(text, [["a dog", "a hound"], ["two cats"]])
    trained = text.of_batch(batch, None)[0]
    known = [Known(text="a dog"), Known(text="two cats")]
    drawn = text.of_known(known, torch.device("cpu"))[0]
    assert torch.allclose(trained.values, drawn.values, atol=4e-3)  # batches of other sizes
    assert torch.equal(trained.present, drawn.present)  # type: ignore[arg-type]


def test_captions_are_drawn_equally_often_and_padding_of_slots_never(text: TextCondition) -> None:
    batch = caption_batch(text, [["a dog", "two big cats"], ["a dog"]])
    many = {name: values.repeat_interleave(2000, 0) for name, values in batch.items()}
    present = text.of_batch(many, torch.Generator().manual_seed(0))[0].present
    assert present is not None
    first, second = present[:2000].sum(1), present[2000:].sum(1)
    assert (first == 4).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert second.unique().tolist() == [4]


def test_a_picture_without_a_caption_beside_others_has_the_null(text: TextCondition) -> None:
    part = text.of_known([Known(text="a dog"), Known()], torch.device("cpu"))[0]
    null = part.nulled()
    assert torch.allclose(part.values[1], null.values[1], atol=4e-3)
    assert not torch.allclose(part.values[0], null.values[0], atol=0.1)


def test_a_class_is_one_number_and_no_class_is_zero() -> None:
    label = LabelCondition(LabelConfig(num_classes=3))
    part = label.of_batch({"label": torch.tensor([2, -1, 0])}, None)[0]
    assert part.values.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    known = label.of_known([Known(label=2), Known(), Known(label=0)], torch.device("cpu"))[0]
    assert torch.equal(known.values, part.values)
    assert not part.nulled().values.any()
