"""Two features that find copies: matched places of a feature grid, and brightness.

The network is EfficientNet-Lite2, which neither trains nor conditions anything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rdm.encoders.image_tower import PIXEL_MEAN, PIXEL_STD, load_image_tower
from rdm.evaluation.recognition.judges import lite2_input

_BATCH = 16
_GRID_LEVEL = 3  # of five resolutions: 17 x 17 places at 260 px
_REACH = 2  # cells: how far from its own place a place may find its match
_LUMA_SIDE = 16
_SCREENED = 16  # candidates whose places are matched


@dataclass(frozen=True)
class CopyFeatures:
    """What the detector sees of N pictures.

    Attributes:
        pooled: unit vectors of the last features, float32 [N, 1280].
        grids: unit vectors of places, float16 [N, G, G, C].
        luma: brightness of 16 x 16 cells, each picture with mean 0 and length 1, float32 [N, 256].
    """

    pooled: NDArray[np.float32]
    grids: NDArray[np.float16]
    luma: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pooled)


class CopyNetwork:
    """EfficientNet-Lite2 as a copy detector's eyes.

    Args:
        device: computes it.

    Raises:
        MissingDependencyError: a wheel is not installed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._tower, self._device = load_image_tower(2).to(device), device

    @torch.no_grad()
    def __call__(self, pictures: NDArray[np.uint8]) -> CopyFeatures:
        """Return the features of pictures uint8 [N, H, W, 3]."""
        pooled, grids = [], []
        for start in range(0, len(pictures), _BATCH):
            batch = [lite2_input(picture) for picture in pictures[start : start + _BATCH]]
            pixels = torch.from_numpy(np.stack(batch)).to(self._device).float()
            maps = self._tower.feature_maps((pixels - PIXEL_MEAN) / PIXEL_STD)
            last = torch.relu(self._tower.head(maps[-1].permute(0, 2, 3, 1))).clamp(max=6)
            pooled.append(last.mean((1, 2)).cpu().numpy())
            grids.append(maps[_GRID_LEVEL].permute(0, 2, 3, 1).cpu().numpy())
        return CopyFeatures(
            _unit(np.concatenate(pooled)),
            _unit(np.concatenate(grids)).astype(np.float16),
            luma_cells(pictures),
        )


def luma_cells(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the brightness of 16 x 16 cells of pictures uint8 [N, H, W, 3], standardized."""
    side = (_LUMA_SIDE, _LUMA_SIDE)
    cells = [
        np.asarray(Image.fromarray(picture).convert("L").resize(side, Image.Resampling.BOX))
        for picture in pictures
    ]
    flat = np.stack(cells).reshape(len(cells), -1).astype(np.float32)
    return _unit(flat - flat.mean(1, keepdims=True))


def matched_share(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return how well places of two pictures match, 0 .. 1; 1 for the same picture.

    A place's match is the most similar place of the other picture at most two cells away. Where two
    places are each other's match, their cosine counts, else 0; the mean over places is returned.

    Args:
        first: unit vectors of places, [G, G, C].
        second: likewise.
    """
    side = len(first)
    places = np.arange(side)
    steps = range(-_REACH, _REACH + 1)
    offsets = [(down, right) for down in steps for right in steps]
    padded = np.full((side + 2 * _REACH, side + 2 * _REACH, second.shape[2]), np.nan, np.float32)
    padded[_REACH : _REACH + side, _REACH : _REACH + side] = second

    # Cosines of every place with the places around it; outside of the picture there are none.
    cosines = np.stack(
        [
            np.einsum("hwc,hwc->hw", first, padded[_REACH + down :, _REACH + right :][:side, :side])
            for down, right in offsets
        ]
    )
    cosines = np.where(np.isnan(cosines), -np.inf, cosines)
    forth = cosines.argmax(0)

    # Seen from the other picture: the same cosines, by the place that they lead to.
    back = np.full_like(cosines, -np.inf)
    for number, (down, right) in enumerate(offsets):
        rows, columns = places + down, places + right
        inside = np.ix_((rows >= 0) & (rows < side), (columns >= 0) & (columns < side))
        targets = np.ix_(
            rows[(rows >= 0) & (rows < side)], columns[(columns >= 0) & (columns < side)]
        )
        back[number][targets] = cosines[number][inside]
    returned = back.argmax(0)

    # A match is mutual where the way back from its end has the same offset.
    down, right = np.array(offsets).T
    ends = (places[:, None] + down[forth], places[None, :] + right[forth])
    mutual = returned[ends] == forth
    best = cosines.max(0)
    return float(np.where(mutual, np.maximum(best, 0), 0).mean())


@dataclass(frozen=True)
class Nearest:
    """The most similar of many pictures to each of N pictures.

    Attributes:
        places: the highest matched share over screened candidates, [N].
        luma: the highest normalized cross-correlation of brightness, [N].
        pooled_row: the candidate whose pooled features are nearest, [N].
        copy_row: the candidate with the highest matched share, [N].
    """

    places: NDArray[np.float64]
    luma: NDArray[np.float64]
    pooled_row: NDArray[np.int64]
    copy_row: NDArray[np.int64]


def nearest(pictures: CopyFeatures, mirrored: CopyFeatures, candidates: CopyFeatures) -> Nearest:
    """Return the nearest of candidates to each picture, which may be a mirror image.

    Args:
        pictures: N of them.
        mirrored: their mirror images, in the same order.
        candidates: M pictures.
    """
    views: Sequence[CopyFeatures] = (pictures, mirrored)
    pooled = np.maximum(*(view.pooled @ candidates.pooled.T for view in views))
    luma = np.maximum(*(view.luma @ candidates.luma.T for view in views))

    # Matching places takes a millisecond a pair: only of what either feature finds near.
    half = min(_SCREENED // 2, pooled.shape[1])
    near = [np.argpartition(-found, half - 1, axis=1)[:, :half] for found in (pooled, luma)]
    screened = np.concatenate(near, axis=1)
    places = np.zeros(screened.shape)
    for row, columns in enumerate(screened):
        for number, column in enumerate(columns):
            other = candidates.grids[column].astype(np.float32)
            places[row, number] = max(
                matched_share(view.grids[row].astype(np.float32), other) for view in views
            )

    best = places.argmax(1)
    rows = np.arange(len(places))
    return Nearest(places[rows, best], luma.max(1), pooled.argmax(1), screened[rows, best])


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
