"""Conditions: each reads one source, from the training batch or from what a user gave.

This is the one place where embeddings become tokens, so that training, sampling and held-out losses
agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rdm.config import Config
from rdm.context import Context, Part
from rdm.encoders.text_states import MAX_LENGTH, TextEncoderName, TextStates


class NeighborsConfig(Config):
    """How neighbor embeddings become context tokens."""

    embedding: Literal["unit", "raw"] = Field(
        default="unit", description="unit vectors, or the encoder's own length"
    )
    scale: float = Field(
        default=22.627417,
        gt=0,
        description="factor on the tokens; sqrt(512) gives unit vectors unit variance",
    )
    k_train: int = Field(default=4, ge=1, description="neighbors used of those stored")
    pool: int | None = Field(
        default=None,
        ge=1,
        description="the nearest neighbors that each training step draws k_train of, so that "
        "a small query set is not "
        "learned by heart from its neighbors; None: k_train, as the released recipe",
    )
    k_choices: tuple[int, ...] = Field(
        default=(),
        description="numbers of neighbors that training steps draw from, so that sampling "
        "may take any of them; none: "
        "k_train at every step",
    )
    mean_vector: bool = Field(
        default=False,
        description="the mean of the tokens is the context's vector too, for a network with "
        "a vector_dim",
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="probability of the null context (zero) for a sample; the released "
        "recipe has 0; 1: no neighbors "
        "at all, the unconditional baseline of the same network",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        most = max(self.k_train, *self.k_choices, 0)
        if self.pool is not None and self.pool < most:
            raise ValueError(
                f"a pool of {self.pool} neighbors is smaller than k_train or k_choices, {most}"
            )
        if any(k < 1 for k in self.k_choices):
            raise ValueError(f"k_choices are 1 or more, not {self.k_choices}")
        return self

    @property
    def num_loaded(self) -> int:
        """Neighbors that training loads per sample."""
        return max(self.k_train, *self.k_choices, 0) if self.pool is None else self.pool


class TextConfig(Config):
    """How a caption becomes context tokens: the states of a frozen text network."""

    encoder: TextEncoderName = Field(default="minilm", description="the text network")
    length: int = Field(default=32, ge=3, le=MAX_LENGTH, description="tokens of a caption")
    scale: float = Field(
        default=2.0, gt=0, description="factor on the states; 2 gives MiniLM's unit variance"
    )
    dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="probability of the empty caption for a sample, so that guidance has a null",
    )


class LabelConfig(Config):
    """How a class becomes the context's vector: one number is 1, the others 0; all are 0 without a
    class."""

    num_classes: int = Field(ge=2, description="classes of the cache")
    dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="probability of no class for a sample, so that guidance has a null",
    )


class Conditions(Config):
    """Every source that may condition; those that are set do, in the order of the fields."""

    neighbors: NeighborsConfig | None = None
    text: TextConfig | None = None
    label: LabelConfig | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources that are set."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def dropout(self) -> dict[str, float]:
        """The probability of the null by source."""
        return {name: getattr(self, name).dropout for name in self.sources}

    @property
    def read(self) -> tuple[str, ...]:
        """The sources that any sample sees: those that are not always dropped."""
        return tuple(name for name, rate in self.dropout.items() if rate < 1)


@dataclass(frozen=True)
class Known:
    """What is known of a picture to draw; a condition whose source is missing is null.

    Attributes:
        neighbors: embeddings [k, D] of the nearest patches, before any scale; among them may be
            that of the query itself.
        weights: float32 [k], factors on the attention that each gets; None: 1.
        text: a caption.
        label: the number of a class.
    """

    neighbors: Tensor | None = None
    text: str | None = None
    label: int | None = None
    weights: Tensor | None = None


class Condition(Protocol):
    """The reader of one source."""

    @property
    def source(self) -> str:
        """The name of the source."""
        ...

    def of_batch(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Part, ...]:
        """Return the parts of training samples; without a generator nothing is drawn. Dropout is
        not applied."""
        ...

    def of_known(self, known: Sequence[Known], device: torch.device) -> tuple[Part, ...]:
        """Return the parts of pictures that are to be drawn.

        Raises:
            ValueError: the source is given for some of them only.
        """
        ...


@dataclass(frozen=True)
class NeighborCondition:
    """Neighbors as tokens [B, k, D], and their mean as a vector [B, D]; the null is zero."""

    config: NeighborsConfig
    dim: int
    source: str = "neighbors"

    def of_batch(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Part, ...]:
        """See Condition: k of each sample's neighbors [B, K, D], drawn anew; without a generator
        the nearest."""
        neighbors = batch["neighbors"]
        if generator is None:
            return self._parts(neighbors[:, : self.config.k_train])
        k = self.config.k_train
        if self.config.k_choices:
            # One number for the whole batch, because contexts of a batch have one length.
            choice = torch.randint(
                len(self.config.k_choices), (), generator=generator, device=generator.device
            )
            k = self.config.k_choices[int(choice)]
        return self._parts(draw_neighbors(neighbors, k, generator))

    def of_known(self, known: Sequence[Known], device: torch.device) -> tuple[Part, ...]:
        """See Condition."""
        given = [one.neighbors for one in known if one.neighbors is not None]
        if not given:
            zeros = torch.zeros(len(known), 1, self.dim, device=device)
            return Context(*self._parts(zeros)).null().parts
        # Contexts of a batch have one length, and zeros are a null only where training showed some.
        if len(given) < len(known):
            raise ValueError(
                "some pictures have neighbors, others have none: draw them in batches of their own"
            )
        weights = None
        # Without weights the network gets no mask, and computes as in training.
        if any(one.weights is not None for one in known):
            weights = torch.stack([_weights_of(one) for one in known]).to(device)
        return self._parts(torch.stack(given).to(device), weights)

    def _parts(self, neighbors: Tensor, weights: Tensor | None = None) -> tuple[Part, ...]:
        # Stored as float16, and widened first, so that the product is not rounded a second time.
        values = neighbors.float() * self.config.scale
        tokens = Part(self.source, "tokens", values, weights=weights)
        if not self.config.mean_vector:
            return (tokens,)
        if weights is None:
            return tokens, Part(self.source, "vector", values.mean(1))
        mean = (values * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        return tokens, Part(self.source, "vector", mean)


@dataclass(frozen=True)
class TextCondition:
    """A caption's token states as tokens [B, L, D], padding masked; the null is the empty caption,
    which has a start and an end.

    Attributes:
        config: of the condition.
        encode: the text network.
    """

    config: TextConfig
    encode: TextStates
    source: str = "text"

    def of_batch(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Part, ...]:
        """See Condition: one of each sample's captions, drawn anew; without a generator the first.

        `text` is [B, C, L, D], `text_lengths` [B, C] its tokens, `text_count` [B] its captions.
        """
        states, lengths, count = batch["text"], batch["text_lengths"], batch["text_count"]
        slots = torch.zeros(len(states), dtype=torch.int64, device=states.device)
        if generator is not None:
            # One draw per sample, so that a stream does not depend on numbers of captions.
            drawn = torch.rand(len(states), generator=generator, device=generator.device)
            slots = (drawn * count).long()
        rows = torch.arange(len(states), device=states.device)
        places = torch.arange(states.shape[2], device=states.device)
        present = places < lengths[rows, slots][:, None]
        return (self._part(states[rows, slots], present),)

    def of_known(self, known: Sequence[Known], device: torch.device) -> tuple[Part, ...]:
        """See Condition. A picture without a caption has the empty one, which is the null."""
        states, present = self.encode([one.text or "" for one in known])
        return (self._part(states.to(device), present.to(device)),)

    def _part(self, states: Tensor, present: Tensor) -> Part:
        """Return the part of token states [B, L, D], of which those that are present count."""
        scale, device = self.config.scale, states.device
        # The text network's own empty caption: a dropped caption and a missing one look the same.
        null, null_present = (tensor.to(device) for tensor in self.encode.empty)
        values = states.float() * scale
        return Part(self.source, "tokens", values, present, null.float() * scale, null_present)


@dataclass(frozen=True)
class LabelCondition:
    """A class as a vector [B, K] with a single 1; the null is zero."""

    config: LabelConfig
    source: str = "label"

    def of_batch(
        self, batch: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Part, ...]:
        """See Condition: of `label` int64 [B], -1 for none; nothing is drawn."""
        return (self._part(batch["label"]),)

    def of_known(self, known: Sequence[Known], device: torch.device) -> tuple[Part, ...]:
        """See Condition. A picture without a class has the null."""
        labels = [-1 if one.label is None else one.label for one in known]
        return (self._part(torch.tensor(labels, device=device)),)

    def _part(self, labels: Tensor) -> Part:
        # -1 is no index; its row is then cleared by the mask.
        one_hot = torch.nn.functional.one_hot(labels.clamp(min=0), self.config.num_classes)
        return Part(self.source, "vector", one_hot.float() * (labels >= 0)[:, None])


def _weights_of(known: Known) -> Tensor:
    assert known.neighbors is not None
    return torch.ones(len(known.neighbors)) if known.weights is None else known.weights


def draw_neighbors(neighbors: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Return k of each sample's neighbors [B, K, D], drawn without repetition; all if K = k."""
    if neighbors.shape[1] == k:
        return neighbors
    # The order of random numbers is a random permutation: one call draws for all samples at once.
    order = torch.rand(neighbors.shape[:2], generator=generator, device=neighbors.device).argsort(
        dim=1
    )[:, :k]
    return neighbors.gather(1, order[:, :, None].expand(-1, -1, neighbors.shape[2]))


def assemble(
    conditions: Sequence[Condition],
    batch: Mapping[str, Tensor],
    dropout: Mapping[str, float],
    generator: torch.Generator | None,
) -> Context:
    """Return the context of training samples; with a generator drawn, and dropped out by source.

    Without one, a source that training never shows is null.

    Args:
        conditions: in the order of the context's parts.
        batch: columns of training samples.
        dropout: probability by source.
        generator: draws; None: nothing is drawn or dropped.
    """
    context = Context(
        *(part for condition in conditions for part in condition.of_batch(batch, generator))
    )
    if generator is not None:
        return context.dropped(dropout, generator)
    return context.null([source for source, rate in dropout.items() if rate == 1])
