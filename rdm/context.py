"""Context of a sample: parts by source, each in one of four ports that heads understand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Port = Literal["tokens", "vector", "channels", "grounding"]
PORTS: tuple[Port, ...] = ("tokens", "vector", "channels", "grounding")


@dataclass(frozen=True, eq=False)  # comparing tensors has no single answer
class Part:
    """What one source says in one port.

    A source may fill several ports with a part each, and several sources may share a port: dropout
    and the null context go by source.

    Attributes:
        source: such as `neighbors` or `text`.
        port: where networks read it.
        values: [B, L, D] of tokens, [B, D] of a vector, [B, C, H, W] of channels, [B, N, D] of
            grounding.
        present: bool [B, L] or [B, N]: which of the tokens are some, and no padding; None: all.
        null: values that mean "nothing was said", [1, ...] or [B, ...]; None: zeros.
        null_present: which tokens of the null are some, bool [1, L] or [B, L]; None: none of them.
        weights: float32 [B, L], factors on the attention that tokens get; 0 takes a token out, 2
            is as if it were given twice; None: all are 1. Those of a null are 1.
    """

    source: str
    port: Port
    values: Tensor
    present: Tensor | None = None
    null: Tensor | None = None
    null_present: Tensor | None = None
    weights: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Part:
        """Return the part with a function applied to each of its tensors."""
        names = ("values", "present", "null", "null_present", "weights")
        tensors = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: function(tensor) for name, tensor in tensors.items()})

    def to(self, *args: object, **kwargs: object) -> Part:
        """Return the part moved or cast like a tensor; masks and integers keep their type."""

        def moved(tensor: Tensor) -> Tensor:
            result = tensor.to(*args, **kwargs)  # type: ignore[call-overload]
            return result if tensor.is_floating_point() else result.to(tensor.dtype)

        part = self.map(moved)
        if self.weights is None:
            return part
        # Weights become logarithms: in 16 bits they would be others.
        return replace(part, weights=self.weights.to(part.values.device))

    def nulled(self, kept: Tensor | None = None) -> Part:
        """Return the part with nulls where samples are not kept, bool [B]; None: keep none."""
        null = (
            torch.zeros_like(self.values) if self.null is None else self.null.expand_as(self.values)
        )
        if kept is None:
            return replace(self, values=null, present=self._mask(self.null_present), weights=None)

        values = torch.where(_along(kept, self.values), self.values, null)
        weights = self.weights
        if weights is not None:
            weights = torch.where(_along(kept, weights), weights, 1.0)
        if self.present is None:
            return replace(self, values=values, weights=weights)
        mask = self._mask(self.null_present)
        assert mask is not None
        return replace(
            self,
            values=values,
            present=torch.where(_along(kept, self.present), self.present, mask),
            weights=weights,
        )

    def rows(self, rows: Tensor) -> Part:
        """Return the part of the samples at given positions, int64 [M]."""
        count = len(self.values)
        return self.map(lambda tensor: tensor[rows] if len(tensor) == count else tensor)

    def _mask(self, null_present: Tensor | None) -> Tensor | None:
        """Return the null's mask in the shape of `present`, where the part has one."""
        if self.present is None:
            return None
        return (
            torch.zeros_like(self.present)
            if null_present is None
            else null_present.expand_as(self.present)
        )


@dataclass(frozen=True, eq=False, init=False)
class Context:
    """The parts that condition a batch of samples, in the order of their sources.

    `Context(tokens=values)` is short for one part whose source has the port's name.

    Raises:
        ValueError: the parts disagree in B.
    """

    parts: tuple[Part, ...]

    def __init__(
        self,
        *parts: Part,
        tokens: Tensor | None = None,
        vector: Tensor | None = None,
        channels: Tensor | None = None,
        grounding: Tensor | None = None,
    ) -> None:
        named = zip(PORTS, (tokens, vector, channels, grounding), strict=True)
        short = tuple(Part(port, port, values) for port, values in named if values is not None)
        object.__setattr__(self, "parts", (*parts, *short))
        sizes = {part.port: len(part.values) for part in self.parts}
        if len({len(part.values) for part in self.parts}) > 1:
            raise ValueError(f"the ports of a context hold different numbers of samples: {sizes}")

    @property
    def tokens(self) -> Tensor | None:
        """[B, L, D], read by cross-attention: neighbor embeddings, text tokens, box tokens."""
        return self._joined("tokens")

    @property
    def vector(self) -> Tensor | None:
        """[B, D], added to the time embedding: class, CLIP image embedding."""
        return self._joined("vector")

    @property
    def channels(self) -> Tensor | None:
        """[B, C, H, W], concatenated to the input: low-resolution image, masked image and mask."""
        return self._joined("channels")

    @property
    def grounding(self) -> Tensor | None:
        """[B, N, D], read by gated attention: boxes with their texts."""
        return self._joined("grounding")

    @property
    def tokens_present(self) -> Tensor | None:
        """bool [B, L]: which tokens are no padding; None where all are."""
        parts = [part for part in self.parts if part.port == "tokens"]
        if all(part.present is None for part in parts):
            return None
        masks = [_mask_of(part) for part in parts]
        return torch.cat(masks, dim=1)

    @property
    def tokens_weight(self) -> Tensor | None:
        """float32 [B, L]: factors on the attention that tokens get, 0 of padding; None where no
        part has weights."""
        parts = [part for part in self.parts if part.port == "tokens"]
        if all(part.weights is None for part in parts):
            return None
        return torch.cat([_weights_of(part) * _mask_of(part) for part in parts], dim=1)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources, each once, in order."""
        return tuple(dict.fromkeys(part.source for part in self.parts))

    @property
    def batch_size(self) -> int | None:
        """The common leading dimension, or None of an empty context."""
        return len(self.parts[0].values) if self.parts else None

    @property
    def device(self) -> torch.device | None:
        """Where the parts are, or None of an empty context."""
        return self.parts[0].values.device if self.parts else None

    def require_read(self, ports: Collection[str], network: str) -> None:
        """Refuse what a network would leave out in silence.

        Args:
            ports: names of those that the network reads.
            network: its name, for the message.

        Raises:
            ValueError: another port is set.
        """
        filled = {part.port for part in self.parts}
        if unread := [port for port in PORTS if port in filled and port not in ports]:
            read = f"reads {', '.join(ports)} alone" if ports else "reads no context"
            raise ValueError(f"{network} {read}, but the context sets {', '.join(unread)}")

    def to(self, *args: object, **kwargs: object) -> Context:
        """Return the context moved or cast as `torch.Tensor.to` does it."""
        return Context(*(part.to(*args, **kwargs) for part in self.parts))

    def null(self, sources: Collection[str] | None = None) -> Context:
        """Return the context with the nulls of some sources, the others kept; None: of all.

        A part without a null of its own becomes zero, which is what the released RDM's guidance
        uses. Keys and values have no bias, so a cross-attention block then adds its output bias
        alone, whatever the number of tokens. Keep a source that training never drops, as the
        low-resolution image of an upsampler.
        """
        chosen = self.sources if sources is None else sources
        return Context(*(part.nulled() if part.source in chosen else part for part in self.parts))

    def shuffled(self, source: str, rows: Tensor) -> Context:
        """Return the context in which sample i has what a source says of sample `rows[i]`, int64
        [B]."""
        return Context(*(part.rows(rows) if part.source == source else part for part in self.parts))

    def rows(self, rows: Tensor) -> Context:
        """Return the context of the samples at given positions, int64 [M]."""
        return Context(*(part.rows(rows) for part in self.parts))

    def dropped(self, rates: Mapping[str, float], generator: torch.Generator) -> Context:
        """Return the context with sources of samples replaced by nulls at their probabilities.

        Ho and Salimans 2022, algorithm 1, line 3. All parts of a source are dropped together, and
        sources independently. A source that `rates` does not name is kept.

        Args:
            rates: probability in [0, 1] by source.
            generator: draws on its own device, source by source in the order of the parts.

        Raises:
            ValueError: a name is no source of the context, or a rate is no probability.
        """
        wrong = {
            name: rate
            for name, rate in rates.items()
            if name not in self.sources or not 0 <= rate <= 1
        }
        if wrong:
            known = ", ".join(self.sources) or "none"
            raise ValueError(
                f"dropout rates are probabilities of the sources ({known}); got {wrong}"
            )

        # Sources drop out independently of each other, each with draws of its own.
        kept: dict[str, Tensor] = {}
        for source in self.sources:
            if rate := rates.get(source, 0.0):
                drawn = torch.rand(
                    self.batch_size or 0, generator=generator, device=generator.device
                )
                kept[source] = drawn.to(self.device) >= rate
        return Context(
            *(
                part.nulled(kept[part.source]) if part.source in kept else part
                for part in self.parts
            )
        )

    def concatenated(self, other: Context) -> Context:
        """Return both contexts stacked along the batch, for one network call instead of two.

        Raises:
            ValueError: a port is set in one of them only; it would be lost for the other.
        """
        self.require_same_ports(other)
        pairs = zip(self.parts, other.parts, strict=True)
        return Context(*(_stacked(first, second) for first, second in pairs))

    def require_same_ports(self, other: Context) -> None:
        """Raise ValueError if two contexts do not fill the same ports in the same order."""
        ours, theirs = ([part.port for part in context.parts] for context in (self, other))
        if ours != theirs:
            differing = sorted(set(ours) ^ set(theirs)) or ["a port with more parts"]
            raise ValueError(
                f"two contexts are stacked, but only one of them sets {', '.join(differing)}"
            )

    def _joined(self, port: Port) -> Tensor | None:
        values = [part.values for part in self.parts if part.port == port]
        if len(values) < 2:
            return values[0] if values else None
        return torch.cat(values, dim=1)


def _along(kept: Tensor, values: Tensor) -> Tensor:
    """Return a choice of samples [B] in a shape that broadcasts over values [B, ...]."""
    return kept.view(-1, *([1] * (values.dim() - 1)))


def _mask_of(part: Part) -> Tensor:
    if part.present is not None:
        return part.present
    return torch.ones(part.values.shape[:2], dtype=torch.bool, device=part.values.device)


def _weights_of(part: Part) -> Tensor:
    if part.weights is not None:
        return part.weights
    return torch.ones(part.values.shape[:2], device=part.values.device)


def _stacked(first: Part, second: Part) -> Part:
    """Return two parts of one port stacked along the batch; the result has no null of its own."""
    present = None
    if first.present is not None or second.present is not None:
        present = torch.cat([_mask_of(first), _mask_of(second)])
    weights = None
    if first.weights is not None or second.weights is not None:
        weights = torch.cat([_weights_of(first), _weights_of(second)])
    values = torch.cat([first.values, second.values])
    return Part(first.source, first.port, values, present, weights=weights)
