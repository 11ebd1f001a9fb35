"""A picture that was drawn again from its recipe, compared with the one that was drawn then."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rdm.config import Record
from rdm.errors import SourceError
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.picture_file import Picture


class Reproduction(Record):
    """A picture that was drawn again, beside the one that was drawn then."""

    identical: bool
    """Whether every pixel is as it was drawn."""
    differing_pixels: float
    """Share of the pixels that differ from the file's."""
    largest_difference: int
    """Of a channel, 0 to 255."""
    mean_difference: float
    """Of the channels."""
    file_altered: bool
    """Whether the file's pixels are no longer those that were drawn."""
    computed_differently: tuple[str, ...]
    """What differs of that which computed: versions, device, precision."""


def compared(picture: Picture, pixels: NDArray[np.uint8], differing: Sequence[str]) -> Reproduction:
    """Return how pixels uint8 [H, W, 3] that were drawn again compare to the picture's.

    Args:
        picture: as it was drawn then.
        pixels: of now.
        differing: what computed them and is another than then.

    Raises:
        SourceError: the file has another size than what its recipe draws.
    """
    if pixels.shape != picture.pixels.shape:
        raise SourceError(
            f"the file has {picture.pixels.shape[1]}x{picture.pixels.shape[0]} pixels, "
            f"{pixels.shape[1]}x{pixels.shape[0]} were drawn",
            fix="give the picture as drawn",
        )

    # Signed before it is subtracted: bytes would wrap around.
    distance = np.abs(pixels.astype(np.int16) - picture.pixels)

    # Against the recipe's digest, not the file: a file that was edited is told apart.
    recorded = picture.record.pixels_sha256
    return Reproduction(
        identical=pixels_digest(pixels) == recorded,
        differing_pixels=float((distance > 0).any(axis=-1).mean()),
        largest_difference=int(distance.max()),
        mean_difference=float(distance.mean()),
        file_altered=pixels_digest(picture.pixels) != recorded,
        computed_differently=tuple(differing),
    )
