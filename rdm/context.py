"""The conditioning that every decoding head understands: one dataclass with four optional ports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

PORTS = ("tokens", "vector", "channels", "grounding")


@dataclass(frozen=True)
class Context:
    """What a sample is conditioned on; an absent port is None.

    Attributes:
        tokens: [B, L, D], read by cross-attention: neighbor embeddings, text tokens, box tokens.
        vector: [B, D], added to the time embedding: class, CLIP image embedding.
        channels: [B, C, H, W], concatenated to the input: low-resolution image, masked image and mask.
        grounding: [B, N, D], read by gated attention: boxes with their texts.
    """

    tokens: Tensor | None = None
    vector: Tensor | None = None
    channels: Tensor | None = None
    grounding: Tensor | None = None

    @property
    def batch_size(self) -> int | None:
        """The common leading dimension, or None where no port is set."""
        return next((port.shape[0] for port in self._set_ports()), None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Context:
        """Return the context with a function applied to each port that is set."""
        return Context(**{f.name: None if (port := getattr(self, f.name)) is None else function(port)
                          for f in fields(self)})

    def to(self, *args: object, **kwargs: object) -> Context:
        """Return the context moved or cast as `torch.Tensor.to` does it."""
        return self.map(lambda port: port.to(*args, **kwargs))  # type: ignore[call-overload]

    def null(self) -> Context:
        """Return the unconditional context of the same shape: the zero vector in every port.

        A zero context is what the released RDM's guidance uses. Keys and values have no bias, so a cross-attention
        block then adds its output bias alone, whatever the number of tokens.
        """
        return self.map(torch.zeros_like)

    def dropped(self, rates: dict[str, float], generator: torch.Generator) -> Context:
        """Return the context with each port of each sample replaced by its null with that port's probability.

        Ho and Salimans 2022, algorithm 1, line 3. A port that `rates` does not name is kept.
        """
        result = self
        for name, rate in rates.items():
            port = getattr(self, name)
            if port is None or rate <= 0:
                continue
            keep = torch.rand(port.shape[0], generator=generator, device=generator.device).to(port.device) >= rate
            shape = (-1, *([1] * (port.dim() - 1)))
            result = replace(result, **{name: torch.where(keep.view(shape), port, torch.zeros_like(port))})
        return result

    def concatenated(self, other: Context) -> Context:
        """Return both contexts stacked along the batch, for one network call instead of two."""
        def join(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            return None if first is None or second is None else torch.cat([first, second])
        return Context(**{name: join(getattr(self, name), getattr(other, name)) for name in PORTS})

    def _set_ports(self) -> list[Tensor]:
        return [port for name in PORTS if (port := getattr(self, name)) is not None]
