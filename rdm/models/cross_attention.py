"""What a U-Net's cross-attention looks at, written down in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def recorded_attention(unet: Any) -> Iterator[list[Tensor]]:
    """Record the cross-attention of a diffusers U-Net while the context is open.

    Yields a list that each cross-attention of a pass adds to, in their order: the attention that
    each position gives to each token, the mean of its heads, float32 [B, H, W, L]; 1 in sum over L.

    Outside of it, and in its self-attention, the U-Net computes as before: probabilities are never
    materialized where pictures are drawn.
    """
    found: list[Tensor] = []
    layers = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(_recording_processor(found))
    try:
        yield found
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


def _recording_processor(found: list[Tensor]) -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    class RecordingProcessor(AttnProcessor):
        """diffusers' plain attention, which adds its probabilities to a list."""

        def __call__(
            self,
            attn: Any,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            assert encoder_hidden_states is not None
            batch, length, _ = encoder_hidden_states.shape
            mask = attn.prepare_attention_mask(attention_mask, length, batch)
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            scores = attn.get_attention_scores(query, key, mask).float()
            side = round(query.shape[1] ** 0.5)
            heads = scores.reshape(batch, -1, side, query.shape[1] // side, length)
            found.append(heads.mean(dim=1))
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs
            )

    return RecordingProcessor()


def mean_attention(layers: list[Tensor], side: int) -> Tensor:
    """Return the mean of layers' attention [B, H, W, L] as maps [B, L, side, side].

    Each is enlarged by repetition or reduced by means, so that the sum over tokens stays 1.
    """
    resized = [
        torch.nn.functional.interpolate(one.permute(0, 3, 1, 2), size=(side, side), mode="area")
        for one in layers
    ]
    return torch.stack(resized).mean(dim=0)
