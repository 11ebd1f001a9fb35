"""Texts as the states of their tokens, to which a text-conditioned network attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from rdm.encoders.bert import Bert
from rdm.encoders.text_tower import HIDDEN_DIM, MAX_TOKENS, open_minilm, text_weights_folder
from rdm.storage import sha256_file

TextEncoderName = Literal["minilm"]
TEXT_DIMS: dict[TextEncoderName, int] = {"minilm": HIDDEN_DIM}
"""The length of a token's state."""
MAX_LENGTH = MAX_TOKENS


@dataclass(frozen=True)
class TextStates:
    """Returns the last hidden states of a frozen text network.

    Attributes:
        tokenizer: cuts and pads texts to one length.
        network: in float32, on the CPU.
        digest: 16 hexadecimal digits of its weights.
    """

    tokenizer: Any
    network: Bert
    digest: str

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return states float16 [B, L, D], zero without a token, and where tokens are, bool [B, L].

        Tokens are the start, the text's own, and the end.
        """
        encoded = self.tokenizer.encode_batch(list(texts))
        tokens = torch.tensor([one.ids for one in encoded])
        mask = torch.tensor([one.attention_mask for one in encoded])
        states = self.network(tokens, mask)[-1] * mask[..., None]
        return states.half(), mask.bool()

    @cached_property
    def empty(self) -> tuple[Tensor, Tensor]:
        """The states [1, L, D] of the empty text, and its tokens [1, L]."""
        states, present = self([""])
        return states.clone(), present.clone()  # out of inference mode


def load_text_states(name: TextEncoderName, length: int) -> TextStates:
    """Open a text network.

    Args:
        name: `minilm`, sentence-transformers' all-MiniLM-L6-v2, which is installed as a package.
        length: tokens of a text, 3 .. MAX_LENGTH; longer ones are cut.

    Raises:
        MissingDependencyError: its package is not installed.
        ModelError: its files are damaged.
    """
    assert name == "minilm"
    folder = text_weights_folder()
    tokenizer, network = open_minilm(folder)

    # Texts of one length make batches, and caches, of one shape.
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    digest = sha256_file(folder / "model.safetensors")[:16]
    return TextStates(tokenizer, network.requires_grad_(False).eval(), digest)
