"""The conditioning that every decoding head understands: one dataclass with four optional ports."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

PORTS = ("tokens", "vector", "channels", "grounding")


@dataclass(frozen=True, eq=False)  # comparing tensors has no single answer
class Context:
    """What a sample is conditioned on; an absent port is None.

    Attributes:
        tokens: [B, L, D], read by cross-attention: neighbor embeddings, text tokens, box tokens.
        vector: [B, D], added to the time embedding: class, CLIP image embedding.
        channels: [B, C, H, W], concatenated to the input: low-resolution image, masked image and mask.
        grounding: [B, N, D], read by gated attention: boxes with their texts.

    Raises:
        ValueError: the ports disagree in B.
    """

    tokens: Tensor | None = None
    vector: Tensor | None = None
    channels: Tensor | None = None
    grounding: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the ports hold the same samples."""
        sizes = {name: port.shape[0] for name in PORTS if (port := getattr(self, name)) is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the ports of a context hold different numbers of samples: {sizes}")

    @property
    def batch_size(self) -> int | None:
        """The common leading dimension, or None where no port is set."""
        return next((port.shape[0] for port in self._set_ports()), None)

    @property
    def device(self) -> torch.device | None:
        """Where the ports are, or None where no port is set."""
        return next((port.device for port in self._set_ports()), None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Context:
        """Return the context with a function applied to each port that is set."""
        return Context(
            **{f.name: None if (port := getattr(self, f.name)) is None else function(port) for f in fields(self)}
        )

    def require_read(self, ports: Collection[str], network: str) -> None:
        """Refuse what a network would leave out in silence.

        Args:
            ports: names of those that the network reads.
            network: its name, for the message.

        Raises:
            ValueError: another port is set.
        """
        if unread := [name for name in PORTS if name not in ports and getattr(self, name) is not None]:
            raise ValueError(f"{network} reads {', '.join(ports)} alone, but the context sets {', '.join(unread)}")

    def to(self, *args: object, **kwargs: object) -> Context:
        """Return the context moved or cast as `torch.Tensor.to` does it."""
        return self.map(lambda port: port.to(*args, **kwargs))  # type: ignore[call-overload]

    def null(self, ports: Collection[str] = PORTS) -> Context:
        """Return the unconditional context of the same shape: the zero vector in the given ports, the others kept.

        A zero context is what the released RDM's guidance uses. Keys and values have no bias, so a cross-attention
        block then adds its output bias alone, whatever the number of tokens. Keep a port that training never drops, as
        the low-resolution image of an upsampler.
        """
        zeros = self.map(torch.zeros_like)
        return replace(self, **{name: getattr(zeros, name) for name in ports})

    def dropped(self, rates: Mapping[str, float], generator: torch.Generator) -> Context:
        """Return the context with each port of each sample replaced by its null with that port's probability.

        Ho and Salimans 2022, algorithm 1, line 3. A port that `rates` does not name is kept.

        Args:
            rates: probability in [0, 1] by port name.
            generator: draws on its own device, port by port in the order of `PORTS`.

        Raises:
            ValueError: a name is no port, or a rate is no probability.
        """
        wrong = {name: rate for name, rate in rates.items() if name not in PORTS or not 0 <= rate <= 1}
        if wrong:
            raise ValueError(f"dropout rates are probabilities of the ports {', '.join(PORTS)}; got {wrong}")
        result = self
        for name in PORTS:
            port, rate = getattr(self, name), rates.get(name, 0.0)
            if port is None or rate == 0:
                continue
            keep = torch.rand(port.shape[0], generator=generator, device=generator.device).to(port.device) >= rate
            shape = (-1, *([1] * (port.dim() - 1)))
            result = replace(result, **{name: torch.where(keep.view(shape), port, torch.zeros_like(port))})
        return result

    def concatenated(self, other: Context) -> Context:
        """Return both contexts stacked along the batch, for one network call instead of two.

        Raises:
            ValueError: a port is set in one of them only; it would be lost for the other.
        """

        def join(name: str) -> Tensor | None:
            first, second = getattr(self, name), getattr(other, name)
            if (first is None) != (second is None):
                raise ValueError(f"two contexts are stacked, but only one of them sets {name}")
            return None if first is None else torch.cat([first, second])

        return Context(**{name: join(name) for name in PORTS})

    def _set_ports(self) -> list[Tensor]:
        return [port for name in PORTS if (port := getattr(self, name)) is not None]
