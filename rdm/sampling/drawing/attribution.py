"""How much each token had to do with a picture: its share of attention, and its influence.

Attention is what the network looks at, which is not what moves the picture; influence is measured
by leaving tokens out. Both are 1 in sum, equal for equal tokens, and 0 for tokens of weight 0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdm.diffusion.samplers import seeded_noise
from rdm.errors import UsageError
from rdm.generators.conditions import Known
from rdm.generators.heads import DiffusionHead
from rdm.generators.model_folder import Model
from rdm.models.cross_attention import mean_attention, recorded_attention
from rdm.models.unet import Denoiser
from rdm.sampling.drawing.draw import known_of
from rdm.sampling.recipe.record import Attribution
from rdm.sampling.retrieval.conditioning import Conditioning

AttributionKind = Literal["attention", "influence"]
MOST_TOKENS = 8  # 2^k evaluations
_CELLS = 4  # of a side: what is compared is layout and color, not detail
_DIGITS = 6


def check_attribution(model: Model, kinds: Collection[AttributionKind]) -> None:
    """Raise UsageError where a model cannot be asked what its tokens did."""
    if not kinds:
        return
    if not model.reads_neighbors:
        raise UsageError(
            "the model reads no neighbors, so none has a share in its pictures",
            where=model.directory,
            fix="a model of a recipe with neighbors, or leave --attribution out",
        )
    generator = model.generator

    # Both ask the network about a noised picture, which only diffusion knows.
    if not isinstance(generator.head, DiffusionHead):
        raise UsageError(
            "shares are measured at a noise level, and this model draws token by token",
            where=model.directory,
            fix="ask a diffusion model, or leave --attribution out",
        )

    # Shares of attention are read off the U-Net's own layers; influence needs none.
    if "attention" in kinds and not isinstance(generator.network, Denoiser):
        raise UsageError(
            f"the {model.config.network.kind} has no cross-attention to look at",
            where=model.directory,
            fix="--attribution influence",
        )


@torch.no_grad()
def attention_maps(
    model: Model, asked: Sequence[Conditioning], pixels: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the attention that places of drawn pictures give to their tokens, [B, L, h, w].

    The pictures are noised to an even mixture, with the noise that they were drawn from, and the
    network is asked once. Where it reads captions too, what is lacking to 1 goes to these.

    Args:
        model: a U-Net that reads neighbors.
        asked: what conditioned them, with as many tokens each.
        pixels: of the pictures, uint8 [B, H, W, 3].
    """
    generator = model.generator
    head, network = generator.head, generator.network
    assert isinstance(head, DiffusionHead)
    assert isinstance(network, Denoiser)

    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(generator.device)
    x0 = generator.space.of_pictures(images).to(generator.device)
    noise = seeded_noise([one.seed for one in asked], x0.shape[1:], device=generator.device)
    alpha_bars = head.process.schedule.alpha_bars
    t = min(range(len(alpha_bars)), key=lambda step: abs(alpha_bars[step] - 0.5))
    x_t = alpha_bars[t] ** 0.5 * x0 + (1 - alpha_bars[t]) ** 0.5 * noise

    # Layers are recorded in the one call whose prediction nobody uses.
    context = generator.context(known_of(model.info, asked))
    with recorded_attention(network.core) as layers:
        head.process.denoiser(network, context)(x_t.float(), t)
    assert asked[0].tokens is not None
    # The neighbors' tokens come first.
    maps = mean_attention(layers, x0.shape[-1])[:, : len(asked[0].tokens.kinds)]
    return maps.cpu().numpy()


def token_influences(
    model: Model, asked: Sequence[Conditioning], seed: int = 0
) -> NDArray[np.float64]:
    """Return each token's share in what the network expects, [B, L]: Shapley values, 1 in sum.

    A set of tokens is worth how far the expected picture has moved from that without tokens towards
    that with all of them. A token's value is what it adds, averaged over the orders in which tokens
    may join (Shapley 1953): tokens that say the same share it.

    Args:
        model: a diffusion model that reads neighbors, and was trained without them too.
        asked: what conditioned pictures, with as many tokens each, at most eight.
        seed: of the noise.

    Raises:
        UsageError: the model reads no neighbors, is no diffusion, or there are too many tokens.
    """
    check_attribution(model, ["influence"])
    known = known_of(model.info, asked)
    tokens = torch.stack([one.neighbors for one in known if one.neighbors is not None])
    weights = np.stack([one.tokens.weights for one in asked if one.tokens is not None])
    k = tokens.shape[1]
    if k > MOST_TOKENS:
        raise UsageError(f"{k} neighbors have {2**k} subsets", fix=f"k={MOST_TOKENS} or fewer")

    # One batch for each number of tokens: contexts of one batch have one length.
    nothing = [_subset(one, tokens[row, :0], None) for row, one in enumerate(known)]
    cells = {0: expected_cells(model, nothing, seed)}
    for size in range(1, k + 1):
        subsets = [list(some) for some in combinations(range(k), size)]
        rows = [
            _subset(one, tokens[row][some], weights[row][some])
            for some in subsets
            for row, one in enumerate(known)
        ]
        found = expected_cells(model, rows, seed).reshape(len(subsets), len(known), -1)
        for some, part in zip(subsets, found, strict=True):
            # Of tokens without weight attention would be uniform: they are as good as none.
            empty = (weights[:, some] == 0).all(axis=1)[:, None]
            cells[sum(1 << i for i in some)] = np.where(empty, cells[0], part)

    # Only movement along the whole one counts: what a subset adds sideways explains nothing.
    moved = np.stack([cells[subset] - cells[0] for subset in range(2**k)], axis=1)
    whole = moved[:, -1:]
    worth = (moved * whole).sum(-1) / np.maximum((whole**2).sum(-1), 1e-12)
    return shapley_values(worth)


def _subset(known: Known, tokens: Tensor, weights: NDArray[np.float32] | None) -> Known:
    """Return what is known of a picture with some of its tokens; with none they are null."""
    if not len(tokens):
        return Known(text=known.text, label=known.label)
    weighted = weights is not None and bool((weights != 1).any())
    return Known(
        neighbors=tokens,
        text=known.text,
        label=known.label,
        weights=torch.from_numpy(weights) if weighted else None,
    )


def expected_cells(model: Model, known: Sequence[Known], seed: int) -> NDArray[np.float64]:
    """Return the expected pictures of contexts, reduced to cells [B, C * 16]."""
    return cells_of(model.generator.expected(model.generator.context(known), seed))


def cells_of(values: Tensor) -> NDArray[np.float64]:
    """Return the means of 4x4 cells of [B, C, H, W], as rows [B, C * 16]."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(values.float(), _CELLS)
    return pooled.flatten(1).double().cpu().numpy()


def shapley_values(worth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Shapley values [..., k] of games whose subsets are worth [..., 2^k].

    Bit i of a subset's place says whether player i belongs to it.
    """
    k = worth.shape[-1].bit_length() - 1
    subsets = np.arange(2**k)
    sizes = np.array([bin(subset).count("1") for subset in subsets])
    values = []
    for player in range(k):
        without = subsets[subsets >> player & 1 == 0]
        # Of the k! orders, the share in which exactly this subset comes before the player.
        weights = np.array([1 / (k * comb(k - 1, size)) for size in sizes[without]])
        values.append(((worth[..., without | 1 << player] - worth[..., without]) * weights).sum(-1))
    return np.stack(values, axis=-1)


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return a picture uint8 [H, W, 3] that is bright where a map [h, w] in [0, 1] is high.

    Brightness and no hue: it is read by everybody, and the picture's own colors stay.
    """
    height, width = pixels.shape[:2]
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(heat)[None, None], size=(height, width), mode="bilinear"
    )
    light = 0.15 + 0.85 * enlarged[0, 0, :, :, None].numpy()
    return np.rint(pixels * light).clip(0, 255).astype(np.uint8)


def attribute(
    model: Model,
    asked: Sequence[Conditioning],
    pixels: NDArray[np.uint8],
    kinds: Collection[AttributionKind],
) -> tuple[list[Attribution], NDArray[np.float32] | None]:
    """Return what the tokens of drawn pictures did, and with `attention` their maps [B, L, h, w].

    Args:
        model: that drew them, see `check_attribution`.
        asked: what conditioned them.
        pixels: of the pictures, uint8 [B, H, W, 3].
        kinds: what is measured.
    """
    maps = attention_maps(model, asked, pixels) if "attention" in kinds else None
    influences = token_influences(model, asked) if "influence" in kinds else None
    found = [
        Attribution(
            attention=None if maps is None else _rounded(maps[row].mean(axis=(1, 2))),
            influence=None if influences is None else _rounded(influences[row]),
        )
        for row in range(len(asked))
    ]
    return found, maps


def _rounded(shares: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(round(float(share), _DIGITS) for share in shares)
