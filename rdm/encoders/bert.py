"""BERT's encoder in plain PyTorch, under the parameter names of transformers' `BertModel`.

transformers itself takes seconds of processor time to import, longer than a small database takes to
search. The states are those of its `BertModel` to the bit, which `tests/encoders/test_bert.py`
checks against the library.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rdm.config import Config

_KNOWN = {"hidden_act": "gelu", "model_type": "bert", "position_embedding_type": "absolute"}


class BertConfig(Config):
    """Sizes of the network, under transformers' names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    max_position_embeddings: int
    type_vocab_size: int
    vocab_size: int

    @classmethod
    def read(cls, path: Path) -> BertConfig:
        """Return the sizes in a `config.json` of transformers.

        Raises:
            ValueError: it is no JSON, lacks a size, or describes another network.
        """
        found = json.loads(path.read_text(encoding="utf-8"))
        for name, value in _KNOWN.items():
            if found.get(name, value) != value:
                raise ValueError(f"{name} is {found[name]!r}, but only {value!r} is known")
        return cls.model_validate({name: found[name] for name in cls.model_fields if name in found})


class Bert(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": _table(config.vocab_size, width),
                "position_embeddings": _table(config.max_position_embeddings, width),
                "token_type_embeddings": _table(config.type_vocab_size, width),
                "LayerNorm": nn.LayerNorm(width, eps=config.layer_norm_eps),
            }
        )
        layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})

    @classmethod
    def read(cls, folder: Path) -> tuple[Bert, list[str]]:
        """Return the network of a folder, and the parameters that its file lacks.

        The folder has `config.json` and `model.safetensors`. Parameters of the file that this
        network has no use for, such as the pooler's, are left out.
        """
        # On `meta`, since fresh weights would be thrown away.
        with torch.device("meta"):
            network = cls(BertConfig.read(folder / "config.json"))
        state = load_file(folder / "model.safetensors")
        return network, network.load_state_dict(state, strict=False, assign=True).missing_keys

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def forward(self, tokens: Tensor, mask: Tensor) -> list[Tensor]:
        """Return the hidden states, float [B, L, D] each: of the embeddings, then of every layer.

        Args:
            tokens: int64 [B, L].
            mask: int64 [B, L], 0 for padding, whose states mean nothing.
        """
        embeddings = self.embeddings
        # In transformers' order of additions: another order gives other last bits.
        x = embeddings["word_embeddings"](tokens) + embeddings["token_type_embeddings"](
            torch.zeros_like(tokens)
        )
        x = x + embeddings["position_embeddings"](
            torch.arange(tokens.shape[1], device=tokens.device)[None]
        )
        states = [embeddings["LayerNorm"](x)]

        # Without padding another kernel computes, as in transformers.
        full = bool(mask.all())
        attended = (
            None if full else mask.bool()[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        )

        for layer in self.encoder["layer"]:  # pyright: ignore[reportGeneralTypeIssues]
            states.append(layer(states[-1], attended))
        return states


class _Layer(nn.Module):
    """Self-attention and a feed-forward net, each added to its input and normalized afterwards."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        width, inner = config.hidden_size, config.intermediate_size
        projections = {name: nn.Linear(width, width) for name in ("query", "key", "value")}
        self.attention = nn.ModuleDict(
            {
                "self": nn.ModuleDict(projections),
                "output": _residual(width, width, config.layer_norm_eps),
            }
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = _residual(inner, width, config.layer_norm_eps)

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """Return the next states [B, L, D], of the positions `attended` [B, 1, L, L]; None: all."""
        # [B, heads, L, D / heads] each.
        projections, output = self.attention["self"], self.attention["output"]

        query, key, value = (
            projections[name](x).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)  # pyright: ignore[reportIndexIssue]
            for name in ("query", "key", "value")
        )

        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=attended)
        x = _added(output, heads.transpose(1, 2).contiguous().reshape(x.shape), x)
        return _added(self.output, F.gelu(self.intermediate["dense"](x)), x)


def _table(rows: int, width: int) -> nn.Embedding:
    """Return an embedding without a draw of weights, which on `meta` loads PyTorch's compiler."""
    return nn.Embedding(rows, width, _weight=torch.zeros(rows, width))


def _residual(inner: int, width: int, epsilon: float) -> nn.ModuleDict:
    """Return the projection and the norm that end both halves of a layer."""
    return nn.ModuleDict(
        {"dense": nn.Linear(inner, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
    )


def _added(output: nn.Module, inner: Tensor, x: Tensor) -> Tensor:
    """Return the normalized sum of a half's output and its input."""
    return output["LayerNorm"](output["dense"](inner) + x)  # pyright: ignore[reportIndexIssue]
