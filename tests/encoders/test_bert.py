from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rdm.encoders.bert import Bert, BertConfig

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "vocab_size": 30,
}


def write(folder: Path, state: dict[str, torch.Tensor], **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps({**SIZES, "hidden_act": "gelu", **changes}))
    save_file(state, folder / "model.safetensors")


def random_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Bert(BertConfig.model_validate(SIZES)).state_dict()


@pytest.mark.slow  # transformers takes seconds to import
@pytest.mark.parametrize("lengths", [[5], [5, 5], [3, 11, 7]], ids=["one", "equal", "padded"])
def test_the_states_are_those_of_transformers_to_the_bit(
    tmp_path: Path, lengths: list[int]
) -> None:
    from transformers import BertConfig as Theirs
    from transformers import BertModel

    write(tmp_path, random_state())
    own, missing = Bert.read(tmp_path)
    theirs = BertModel(
        Theirs.from_json_file(str(tmp_path / "config.json")), add_pooling_layer=False
    ).eval()
    theirs.load_state_dict(own.state_dict())
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    tokens = torch.randint(1, 30, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    with torch.inference_mode():
        expected = theirs(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
        found = own(tokens, mask)
    assert missing == []
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_padding_does_not_change_the_states_of_a_text(tmp_path: Path) -> None:
    write(tmp_path, random_state())
    network, _ = Bert.read(tmp_path)
    tokens = torch.tensor([[4, 9, 2]])
    padded = torch.tensor([[4, 9, 2, 0, 0]])
    with torch.inference_mode():
        alone = network(tokens, torch.ones_like(tokens))
        filled = network(padded, (padded > 0).long())
    for one, other in zip(alone, filled, strict=True):
        torch.testing.assert_close(other[:, :3], one)


def test_parameters_that_the_file_lacks_are_named(tmp_path: Path) -> None:
    state = random_state()
    del state["encoder.layer.1.output.dense.bias"]
    write(tmp_path, state)
    assert Bert.read(tmp_path)[1] == ["encoder.layer.1.output.dense.bias"]


def test_another_activation_is_refused(tmp_path: Path) -> None:
    write(tmp_path, random_state(), hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act is 'relu'"):
        Bert.read(tmp_path)
