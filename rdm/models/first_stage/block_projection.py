"""The linear autoencoder: principal components of pixel blocks; a baseline, and a first start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockProjection:
    """Blocks of `block` x `block` pixels as coordinates along their principal components.

    Attributes:
        block: side of a block, pixels.
        mean: float32 [3 * block^2], the mean block; entry (y * block + x) * 3 + c is color c of
            pixel (y, x).
        components: float32 [3 * block^2, K], orthonormal columns, largest variance first.
        std: float32 [K], standard deviation along each component.
    """

    block: int
    mean: Tensor
    components: Tensor
    std: Tensor

    @classmethod
    def fit(cls, images: Tensor, *, block: int = 4, num_components: int = 4) -> BlockProjection:
        """Return the projection that loses the least squared error on pictures float [N, 3, H, W].

        Raises:
            ValueError: H or W is no multiple of `block`.
        """
        # `eigh` sorts ascending, so the largest components come last.
        blocks = to_blocks(images, block).reshape(-1, 3 * block * block).double()
        values, vectors = torch.linalg.eigh(torch.cov(blocks.T))
        return cls(
            block,
            blocks.mean(0).float(),
            vectors[:, -num_components:].flip(1).float(),
            values[-num_components:].flip(0).clamp(min=1e-12).sqrt().float(),
        )

    @property
    def num_components(self) -> int:
        """The numbers that stand for a block."""
        return self.components.shape[1]

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return pictures float [N, 3, H, W] as the projection keeps them."""
        # Orthonormal columns: the transpose is the inverse on what is kept.
        blocks = to_blocks(images, self.block)
        kept = (blocks - self.mean) @ self.components @ self.components.T + self.mean
        return from_blocks(kept, self.block)


def to_blocks(images: Tensor, block: int) -> Tensor:
    """Return pictures [N, 3, H, W] as blocks [N, H/block, W/block, 3 * block^2].

    A block's numbers are in the order (y, x, color).
    """
    count, colors, height, width = images.shape
    if height % block or width % block:
        raise ValueError(f"{width}x{height} pixels cannot be cut into blocks of {block}")

    cut = images.reshape(count, colors, height // block, block, width // block, block)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, height // block, width // block, -1)


def from_blocks(blocks: Tensor, block: int) -> Tensor:
    """Undo `to_blocks`."""
    count, rows, columns, _ = blocks.shape
    cut = blocks.reshape(count, rows, columns, block, block, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(count, 3, rows * block, columns * block)
