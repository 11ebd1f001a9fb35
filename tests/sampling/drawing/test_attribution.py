"""Shares of tokens: identities of any network, and planted cases whose shares are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from rdm.database import RetrievalDatabase
from rdm.errors import UsageError
from rdm.sampling import Model, SampleSettings, text_queries
from rdm.sampling.drawing.attribution import attention_maps, attribute, overlay, token_influences
from rdm.sampling.drawing.pipeline import conditioned, draw_samples
from rdm.sampling.retrieval.conditioning import Conditioning

SETTINGS = SampleSettings(k=3, num_steps=2, batch_size=2)


@pytest.fixture(scope="module")
def asked(model: Model, database: RetrievalDatabase) -> list[Conditioning]:
    queries = text_queries(database, ["a", "b"], 3)
    return conditioned(model, database, list(zip(queries, [5, 6], strict=True)))


@pytest.fixture(scope="module")
def pixels(model: Model, asked: list[Conditioning]) -> np.ndarray:
    return np.stack([item.pixels for item in draw_samples(model, asked, SETTINGS)])


def with_tokens(
    asked: Sequence[Conditioning],
    order: Sequence[int] = (0, 1, 2),
    weights: Sequence[float] = (1, 1, 1),
) -> list[Conditioning]:
    """Return pictures with their tokens in another order, some of them twice, and weighted."""
    changed = []
    for one in asked:
        assert one.tokens is not None
        values = one.tokens.values[list(order)]
        factors = np.array(weights, np.float32)
        changed.append(replace(one, tokens=replace(one.tokens, values=values, weights=factors)))
    return changed


def weights_of(model: Model, name: str) -> list[torch.Tensor]:
    """Return the weights of a part of every layer of cross-attention."""
    found = model.generator.network.named_parameters()
    return [weights for full, weights in found if full.endswith(name)]


def shares(model: Model, asked: list[Conditioning], pixels: np.ndarray) -> np.ndarray:
    return attention_maps(model, asked, pixels).mean(axis=(2, 3))


def test_attention_of_every_place_is_one_in_sum(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    maps = attention_maps(model, asked, pixels)
    assert maps.shape == (2, 3, 8, 8)
    np.testing.assert_allclose(maps.sum(axis=1), 1, atol=1e-5)


def test_influence_is_one_in_sum(model: Model, asked: list[Conditioning]) -> None:
    np.testing.assert_allclose(token_influences(model, asked).sum(axis=1), 1, atol=1e-6)


def test_equal_tokens_have_equal_shares(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    twice = with_tokens(asked, (0, 1, 0))
    attention, influence = shares(model, twice, pixels), token_influences(model, twice)
    np.testing.assert_allclose(attention[:, 0], attention[:, 2], atol=1e-6)
    np.testing.assert_allclose(influence[:, 0], influence[:, 2], atol=1e-5)


def test_a_token_of_weight_0_has_no_share(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    without = with_tokens(asked, weights=(1, 0, 1))
    assert (shares(model, without, pixels)[:, 1] == 0).all()
    np.testing.assert_allclose(token_influences(model, without)[:, 1], 0, atol=1e-5)


def test_shares_go_with_their_tokens_whatever_the_order(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    turned = with_tokens(asked, (2, 0, 1))
    for measured in (
        (shares(model, asked, pixels), shares(model, turned, pixels)),
        (token_influences(model, asked), token_influences(model, turned)),
    ):
        np.testing.assert_allclose(measured[0][:, [2, 0, 1]], measured[1], atol=1e-4)


def test_where_no_token_is_preferred_attention_is_shared_by_weight(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    """Planted: keys of zero make all scores equal, so that weights alone decide."""
    keys = weights_of(model, "attn2.to_k.weight")
    kept = [weight.detach().clone() for weight in keys]
    try:
        with torch.no_grad():
            for weight in keys:
                weight.zero_()
        found = attention_maps(model, with_tokens(asked, weights=(3, 1, 0)), pixels)
    finally:
        with torch.no_grad():
            for weight, before in zip(keys, kept, strict=True):
                weight.copy_(before)
    for token, share in enumerate((0.75, 0.25, 0.0)):
        np.testing.assert_allclose(found[:, token], share, atol=1e-3)


def test_where_the_network_does_not_read_its_tokens_none_has_influence(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    """Planted: values of zero, which attention still looks at; it is no cause."""
    values = weights_of(model, "attn2.to_v.weight")
    kept = [weight.detach().clone() for weight in values]
    try:
        with torch.no_grad():
            for weight in values:
                weight.zero_()
        influence = token_influences(model, asked)
        attention = shares(model, asked, pixels)
    finally:
        with torch.no_grad():
            for weight, before in zip(values, kept, strict=True):
                weight.copy_(before)
    assert (influence == 0).all()
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-5)


def test_looking_changes_no_bit_of_what_is_drawn_later(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    attention_maps(model, asked, pixels)
    again = np.stack([item.pixels for item in draw_samples(model, asked, SETTINGS)])
    assert np.array_equal(again, pixels)


def test_a_recipe_gets_the_shares_in_the_order_of_its_tokens(
    model: Model, asked: list[Conditioning], pixels: np.ndarray
) -> None:
    found, maps = attribute(model, asked, pixels, ["attention", "influence"])
    assert maps is not None
    for row, one in enumerate(found):
        assert one.attention == pytest.approx(maps[row].mean(axis=(1, 2)), abs=1e-6)
        assert one.influence == pytest.approx(token_influences(model, asked)[row], abs=1e-6)


def test_more_tokens_than_can_be_left_out_are_refused(
    model: Model, database: RetrievalDatabase
) -> None:
    queries = text_queries(database, ["a"], 9)
    many = conditioned(model, database, [(queries[0], 0)])
    with pytest.raises(UsageError, match="9 neighbors have 512 subsets"):
        token_influences(model, many)


def test_an_overlay_is_bright_where_the_map_is_high() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    heat = np.array([[1.0, 0.0], [0.0, 0.0]], np.float32)
    shown = overlay(white, heat)
    assert shown.shape == white.shape
    assert (shown[0, 0] == 255).all()
    assert (shown[7, 7] == round(0.15 * 255)).all()
    assert np.array_equal(overlay(white, np.ones((2, 2), np.float32)), white)
