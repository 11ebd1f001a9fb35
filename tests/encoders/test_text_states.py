"""Token states are the text network's own, padding says nothing, and the empty text says little."""

from __future__ import annotations

import pytest
import torch

from rdm.encoders.text_states import TEXT_DIMS, TextStates, load_text_states
from rdm.encoders.text_tower import text_weights_folder

TEXTS = ["a dog runs on the beach", "two men", ""]


@pytest.fixture(scope="module")
def encode() -> TextStates:
    return load_text_states("minilm", 8)


@pytest.mark.slow  # transformers takes seconds to import
def test_states_are_the_last_ones_of_transformers(encode: TextStates) -> None:
    from transformers import AutoTokenizer, BertModel

    folder = str(text_weights_folder())
    network = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", max_length=8, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = network(**tokens).last_hidden_state
    states, present = encode(TEXTS)
    assert states.dtype == torch.float16
    assert torch.equal(present, tokens["attention_mask"].bool())
    assert torch.allclose(states[present].float(), expected[present], atol=2e-3)


def test_padding_is_zero(encode: TextStates) -> None:
    states, present = encode(TEXTS)
    assert states.shape == (3, 8, TEXT_DIMS["minilm"])
    assert present.sum(1).tolist() == [8, 4, 2]  # with a start and an end
    assert not states[~present].any()


def test_a_text_that_is_too_long_is_cut_and_keeps_its_end(encode: TextStates) -> None:
    _, present = encode(["dog " * 100])
    assert present.sum().item() == 8


def test_a_text_has_the_same_states_in_any_company(encode: TextStates) -> None:
    alone, _ = encode(TEXTS[:1])
    together, _ = encode(TEXTS)
    assert torch.allclose(alone[0].float(), together[0].float(), atol=2e-3)


def test_the_empty_text_is_encoded_as_any_other(encode: TextStates) -> None:
    states, present = encode.empty
    assert present.sum().item() == 2
    assert torch.equal(states, encode([""])[0])
