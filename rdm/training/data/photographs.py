"""Photographs as training data: any source, decoded shard by shard to squares of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from rdm.config import Config, digest_json
from rdm.errors import SourceError
from rdm.progress import tracking
from rdm.sources.open import open_source
from rdm.sources.photographs.decode import ImageDecodeError, decode_image, image_size
from rdm.sources.query_set import is_held_out
from rdm.sources.source import Source, fingerprint, names_picture
from rdm.training.data.training_data import Shard

_HEAD_BYTES = 65_536
_BESIDE = (".txt", ".json", ".cls")  # captions and classes of the photograph of their name


class PhotoConfig(Config):
    """How photographs become squares."""

    image_size: int = Field(default=64, ge=8, description="side of the squares, pixels")
    crops_per_photograph: int = Field(
        default=1,
        ge=0,
        description="details of photographs at least twice as large, besides the whole photograph",
    )
    held_out_fraction: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="share of photographs kept for measuring; 1: all, none to train on",
    )
    photographs_per_shard: int = Field(
        default=2000, ge=1, description="photographs decoded at once: bounds the memory"
    )


@dataclass(frozen=True)
class Photograph:
    """One photograph of a source, and how many squares it gives."""

    source: Source
    image_id: str
    location: str
    rotation: int
    num_squares: int


class PhotoShards:
    """The photographs of one or several sources as uint8 squares [N, 3, S, S]; see TrainingData.

    The first square of a photograph is its center, as large as it goes, reduced to S. Each further
    one is a detail: a square at a scale and a place that follow from the photograph's id alone.
    Photographs smaller than S are enlarged.

    Attributes:
        digest: 16 hexadecimal digits that change whenever a photograph is added, removed or
            replaced.
    """

    def __init__(self, source: str, config: PhotoConfig, *, held_out: bool = False) -> None:
        """List a source. Of the pictures only the first bytes are read, where their sizes stand as
        a rule.

        Args:
            source: a source's specification, or several with commas between them.
            config: sizes, and which photographs are held out.
            held_out: give the photographs that are held out instead of those that are not.

        Raises:
            SourceError: a source does not exist, holds what is not a picture, or leaves no
                photograph.
        """
        self.source = source
        self.config = config
        self.held_out = held_out
        sources = [open_source(spec.strip()) for spec in source.split(",")]

        # Links to folders are listed, for the ledgers of databases, and not followed.
        listings = [_of_photographs(source.listing()) for source in sources]
        self.digest = digest_json([fingerprint(listing) for listing in listings])
        self._photographs = list(self._list(sources, listings))

        if not self._photographs:
            raise SourceError(
                "no photograph is held out" if held_out else "there is no photograph to train on",
                where=source,
                fix="check the source and held_out_fraction",
            )

    @property
    def num_photographs(self) -> int:
        """How many photographs there are."""
        return len(self._photographs)

    @property
    def shards(self) -> Sequence[Shard]:
        """See TrainingData: consecutive photographs, by source and then by id."""
        return self._shards

    @cached_property
    def _shards(self) -> list[Shard]:
        return [
            Shard(f"{number:05d}", sum(photograph.num_squares for photograph in part))
            for number, part in enumerate(self._parts())
        ]

    def load_shard(self, index: int) -> dict[str, NDArray]:
        """Return `images` uint8 [N, 3, S, S].

        Raises:
            SourceError: photographs of the shard cannot be decoded. None is left out or replaced.
        """
        squares = [
            square
            for photograph, image in _decode(self._parts()[index])
            for square in _squares(photograph, image, self.config.image_size)
        ]
        return {"images": np.stack(squares)}

    def keys(self, index: int) -> Sequence[str]:
        """See TrainingData: the photograph, and the number of the square cut from it."""
        part = self._parts()[index]
        return [
            f"{photo.image_id}#{number}" for photo in part for number in range(photo.num_squares)
        ]

    def sample(self, count: int) -> NDArray[np.uint8]:
        """Return the whole photographs, uint8 [M, 3, S, S], of `count` ids that lie evenly over the
        listing.

        M is less than `count` where there are fewer photographs.

        Raises:
            SourceError: one of them cannot be decoded.
        """
        places = np.unique(np.linspace(0, self.num_photographs - 1, count).round().astype(int))
        chosen = [self._photographs[place] for place in places]
        return np.stack([_whole(image, self.config.image_size) for _, image in _decode(chosen)])

    def _parts(self) -> list[list[Photograph]]:
        # By photographs and not by squares, so that a shard is decoded without its neighbors.
        step = self.config.photographs_per_shard
        return [
            self._photographs[start : start + step]
            for start in range(0, self.num_photographs, step)
        ]

    def _list(
        self, sources: Sequence[Source], listings: Sequence[pa.Table]
    ) -> Iterator[Photograph]:
        broken: list[str] = []
        for source, listing in zip(sources, listings, strict=True):
            rows = zip(
                *(listing[name].to_pylist() for name in ("image_id", "location", "rotation")),
                strict=True,
            )

            # Which photographs are held out depends on their ids alone, so that it is stable.
            kept = [
                row
                for row in rows
                if is_held_out(row[0], self.config.held_out_fraction) == self.held_out
            ]

            with tracking("list photographs", len(kept), "photographs") as tracker:
                for image_id, location, rotation in kept:
                    try:
                        num_squares = self._num_squares(_size(source, location))
                        yield Photograph(source, image_id, location, rotation, num_squares)
                    except (OSError, ValueError) as error:
                        # also pictures that cannot be decoded, and names that cannot be opened
                        broken.append(f"{source.spec} {image_id}: {error}")
                    tracker.advance()

        _raise_broken(broken)

    def _num_squares(self, size: tuple[int, int]) -> int:
        return 1 + (
            self.config.crops_per_photograph if min(size) >= 2 * self.config.image_size else 0
        )


def _of_photographs(listing: pa.Table) -> pa.Table:
    """Return a listing without folders, and without captions and classes of its photographs."""
    locations: list[str] = listing["location"].to_pylist()
    pictures = {PurePath(one).with_suffix("") for one in locations if names_picture(one)}

    def keeps(location: str) -> bool:
        path = PurePath(location)
        is_beside = path.suffix.lower() in _BESIDE and path.with_suffix("") in pictures
        return not location.endswith("/") and not is_beside

    return listing.filter(pa.array([keeps(one) for one in locations], pa.bool_()))


def _size(source: Source, location: str) -> tuple[int, int]:
    """Return width and height in pixels; a file is read whole only if its head lacks them."""
    try:
        return image_size(source.read(location, _HEAD_BYTES))
    except ImageDecodeError:
        return image_size(source.read(location))


def _decode(photographs: Sequence[Photograph]) -> Iterator[tuple[Photograph, Image.Image]]:
    broken: list[str] = []
    for photograph in photographs:
        try:
            image = decode_image(
                photograph.source.read(photograph.location), rotation=photograph.rotation
            )
        except (OSError, ValueError) as error:  # what cannot be decoded, too, and strange names
            broken.append(f"{photograph.source.spec} {photograph.image_id}: {error}")
            continue
        yield photograph, image
    _raise_broken(broken)


def _raise_broken(broken: Sequence[str]) -> None:
    if broken:
        shown = "; ".join(broken[:5]) + ("; ..." if len(broken) > 5 else "")
        raise SourceError(
            f"{len(broken)} photograph(s) cannot be decoded",
            where=shown,
            fix="remove them from the source: training data are neither replaced nor left "
            "out in silence",
        )


def _squares(photograph: Photograph, image: Image.Image, size: int) -> Iterator[NDArray[np.uint8]]:
    yield _whole(image, size)
    for number in range(1, photograph.num_squares):
        yield _detail(
            image, size, xxhash.xxh3_64_intdigest(f"{photograph.image_id}\0{number}".encode())
        )


def _whole(image: Image.Image, size: int) -> NDArray[np.uint8]:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _cut(image, (left, top, left + side, top + side), size)


def _detail(image: Image.Image, size: int, seed: int) -> NDArray[np.uint8]:
    """Cut a square between `size` and the shorter side, log-uniform in size, anywhere."""
    random = np.random.default_rng(seed)
    longest = min(image.size)
    side = min(round(size * (longest / size) ** random.random()), longest)
    left = int(random.integers(image.width - side + 1))
    top = int(random.integers(image.height - side + 1))
    return _cut(image, (left, top, left + side, top + side), size)


def _cut(
    image: Image.Image, box: tuple[float, float, float, float], size: int
) -> NDArray[np.uint8]:
    square = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
