"""Layout of named parameters in the tensors that hold each rank's share of them.

ZeRO keeps the fp32 weights and the optimizer's moments of a rank in a few flat tensors, the shards.
A layout says where each parameter lies in them, so that anything shaped like the shards (weights,
moments, averages) can be gathered by name on rank 0 and cut for any other number of ranks. No
number is changed on the way: bits are moved, never added up as floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """The part of a parameter that this rank holds: `count` numbers from `start`, at `offset` of
    shard `shard`."""

    shard: int
    offset: int
    start: int
    count: int


@dataclass(frozen=True)
class Place:
    """A parameter, and the piece of it that this rank holds; None where it holds nothing of it."""

    name: str
    shape: torch.Size
    piece: Piece | None


@dataclass(frozen=True)
class Layout:
    """All trainable parameters in one order that every rank shares.

    Attributes:
        places: one per parameter.
        shared: whether other ranks hold pieces too; otherwise rank 0 holds everything that is
            gathered.
    """

    places: Sequence[Place]
    shared: bool

    def gather(self, shards: Mapping[int, Tensor], rank: int) -> dict[str, Tensor]:
        """Return fp32 CPU tensors by name on rank 0, none elsewhere. Every rank must call it.

        Without sharing, parameters whose shard is not among `shards` are left out.
        """
        if not self.shared:
            held = [place for place in self.places if place.piece and place.piece.shard in shards]
            if rank != 0:
                return {}
            return {place.name: shards[_shard(place)].detach().float().cpu() for place in held}
        found: dict[str, Tensor] = {}
        for place in self.places:
            # A collective in a loop: every rank must walk through the places in the same order.
            bits = self._gathered_bits(place, shards)
            if rank == 0:
                found[place.name] = bits.view(torch.float32).view(place.shape).cpu()
        return found

    @torch.no_grad()
    def scatter(self, read: Callable[[str], Tensor], shards: Mapping[int, Tensor]) -> None:
        """Fill this rank's shards with its pieces of the parameters that `read` returns by name."""
        for place in self.places:
            piece = place.piece
            if piece is None or piece.shard not in shards:
                continue
            if not self.shared:
                # Without sharing, a shard is the parameter itself, in its own shape.
                shards[piece.shard].copy_(read(place.name).view(place.shape))
                continue
            part = read(place.name).reshape(-1)[piece.start : piece.start + piece.count]
            shards[piece.shard][piece.offset : piece.offset + piece.count].copy_(part)

    def _gathered_bits(self, place: Place, shards: Mapping[int, Tensor]) -> Tensor:
        device = next(iter(shards.values())).device
        # As int32, not as float32: -0.0 + 0.0 is 0.0, and a sum may change the bits of a nan.
        bits = torch.zeros(place.shape.numel(), dtype=torch.int32, device=device)
        if (piece := place.piece) is not None:
            part = shards[piece.shard].detach()[piece.offset : piece.offset + piece.count]
            bits[piece.start : piece.start + piece.count] = part.view(torch.int32)
        dist.reduce(bits, dst=0)  # one rank holds each number, the others add the integer zero
        return bits


def _shard(place: Place) -> int:
    assert place.piece is not None
    return place.piece.shard


def replicated_layout(parameters: Mapping[str, Tensor]) -> Layout:
    """Return the layout without ZeRO: every rank holds every parameter, as a shard of its own."""
    places = [
        Place(name, parameter.shape, Piece(number, 0, 0, parameter.numel()))
        for number, (name, parameter) in enumerate(parameters.items())
    ]
    return Layout(places, shared=False)
