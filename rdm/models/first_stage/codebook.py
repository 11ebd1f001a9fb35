"""Vector quantization: straight-through rows, losses, usage, and the return of unused rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rdm.models.first_stage.first_stage import nearest_rows

_LLOYD_STEPS = 10  # of k-means
_NUM_DRAWS = 1024  # encoder outputs to which unused rows may be pulled in a step


@dataclass(frozen=True)
class Quantized:
    """Latents and their codebook rows.

    Attributes:
        latents: [B, D, H, W], the rows in place of the encoder's outputs; gradients pass to the
            encoder unchanged.
        indices: int64 [B, H, W], which row.
        codebook_loss: scalar, |sg[z] - e|^2: moves the rows.
        commitment_loss: scalar, |z - sg[e]|^2: moves the encoder.
    """

    latents: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


def quantize(outputs: Tensor, codebook: Tensor) -> Quantized:
    """Return the nearest codebook rows of an encoder's outputs (van den Oord et al. 2017, eq. 1-3).

    Args:
        outputs: z, float32 [B, D, H, W].
        codebook: e, float32 [Z, D].

    Both losses are means over vectors of the squared distance, summed over the D components.
    """
    indices = nearest_rows(outputs.detach(), codebook.detach())
    rows = codebook[indices].permute(0, 3, 1, 2)
    # Forward the rows, backward the identity: the straight-through estimator.
    return Quantized(
        latents=outputs + (rows - outputs).detach(),
        indices=indices,
        codebook_loss=(outputs.detach() - rows).square().sum(1).mean(),
        commitment_loss=(outputs - rows.detach()).square().sum(1).mean(),
    )


def row_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """Return how often each row was taken, int64 [Z]."""
    return torch.bincount(indices.flatten(), minlength=codebook_size)


def used_share(counts: Tensor) -> Tensor:
    """Return the share of rows that were taken at all, a scalar in [0, 1]."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """Return exp(-sum p log p) of the rows' frequencies, in [1, Z]: the rows in use in effect."""
    p = counts / counts.sum()
    return torch.special.entr(p).sum().exp()


def revival_loss(
    quantized: Quantized, outputs: Tensor, codebook: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the pull that brings unused rows back: the mean over rows of u_k |e_k - sg[t_k]|^2.

    u_k is 1 for a row that none of these outputs took, else 0. Its target t_k is an encoder output:
    some are drawn in proportion to their squared distance from the codebook, as k-means++ draws new
    centers (Arthur & Vassilvitskii 2007), and each row has a place of its own among them, the same
    at every step: fixed random quantiles of their components, and then the nearest of them. Were
    targets drawn anew for each row, an optimizer's momentum would average them, and rows that lie
    together would stay together.

    There is no memory of past usage: the term is a function of weights, batch and seed, as every
    other one is. So a resumed run goes on exactly, and ranks agree without speaking, because the
    engine averages their gradients: a row that a share s of the micro-batches left out is pulled by
    that share. A row that is merely rare is held in place by the codebook's own loss as long as its
    uses per micro-batch are well above the weight of this one. An optimizer with a long memory of
    squared gradients (Adam with beta2 > 0.9) hardly moves a row that once was taken by everything:
    the recipes have Muon, or beta2 = 0.9.

    Args:
        quantized: of the outputs.
        outputs: z, float32 [B, D, H, W].
        codebook: e, float32 [Z, D].
        generator: draws the outputs.
    """
    # Unused rows; without any the loss is zero, with a graph, so that ranks agree on its gradient.
    vectors = outputs.detach().permute(0, 2, 3, 1).flatten(0, 2)
    rows = (row_counts(quantized.indices, len(codebook)) == 0).nonzero().flatten()
    if not len(rows):
        return codebook.sum() * 0

    # Draw encoder outputs in proportion to their squared distance from their rows.
    distances = (vectors - codebook.detach()[quantized.indices.flatten()]).square().sum(1)
    # A draw refuses weights that are not finite. Outputs that are not must reach the loss, where
    # they are noticed.
    weights = distances.nan_to_num(0.0, 0.0) + 1e-12
    drawn = vectors[torch.multinomial(weights, _NUM_DRAWS, replacement=True, generator=generator)]

    # Each row's place among them: fixed random quantiles, then the drawn output nearest to them.
    places = torch.rand(codebook.shape, generator=torch.Generator().manual_seed(0)).to(
        drawn.device
    )[rows]
    wanted = drawn.sort(dim=0).values.gather(0, (places * _NUM_DRAWS).long())
    targets = drawn[nearest_rows(wanted.T[None, :, :, None], drawn).flatten()]

    return (codebook[rows] - targets).square().sum() / len(codebook)


@torch.no_grad()
def fit_codebook(vectors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return a codebook [size, D] that fits vectors [N, D]: k-means from vectors drawn at random.

    Raises:
        ValueError: there are fewer vectors than rows.
    """
    if len(vectors) < size:
        raise ValueError(f"{len(vectors)} vectors cannot fill a codebook of {size} rows")
    codebook = vectors[torch.randperm(len(vectors), generator=generator)[:size]].clone()

    # Lloyd's algorithm. A row without members stays where it is.
    for _ in range(_LLOYD_STEPS):
        rows = nearest_rows(vectors.T[None, :, :, None], codebook).flatten()
        sums = torch.zeros_like(codebook).index_add_(0, rows, vectors)
        counts = row_counts(rows, size)[:, None]
        codebook = torch.where(counts > 0, sums / counts.clamp(min=1), codebook)

    return codebook
