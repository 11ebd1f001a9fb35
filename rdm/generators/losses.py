"""What heads measure: the losses of a batch, and functions that measure one draw each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from rdm.context import Context

LossKind = Literal["eps", "v", "x0", "tokens"]
"""Squared error of what the network predicts, or nats per token."""

Draws: TypeAlias = Iterator[Callable[[slice, Context], Tensor]]
"""For each draw, a function from rows and their context to each row's loss, float32 [B]."""


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        values: float32 [B].
        timesteps: int64 [B], where the head drew some.
    """

    values: Tensor
    timesteps: Tensor | None = None
