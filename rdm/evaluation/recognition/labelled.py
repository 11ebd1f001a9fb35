"""Labelled pictures for judges: squares of a source, their classes and the classes' names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from rdm.config import Config
from rdm.errors import SourceError, UsageError
from rdm.sources.kinds.remote import RemoteSource
from rdm.sources.kinds.webdataset import WebDatasetSource
from rdm.sources.open import open_source
from rdm.sources.photographs.crops import CropConfig, crop_boxes
from rdm.sources.photographs.decode import decode_image
from rdm.sources.source import fingerprint, names_picture

_WHOLE = CropConfig(mode="whole")


class PictureClass(Config):
    """One class of labelled pictures."""

    label: int = Field(ge=0, description="the number in KEY.cls")
    name: str
    wnid: str | None = Field(
        default=None, description="its WordNet id, where it is one of ImageNet's"
    )


def _numbered(value: object) -> object:
    """Return a list of names as classes that are numbered by their places."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return [{"label": place, "name": name} for place, name in enumerate(value)]
    return value


_CLASSES = TypeAdapter(Annotated[list[PictureClass], BeforeValidator(_numbered)])


def read_classes(path: Path) -> tuple[PictureClass, ...]:
    """Return the classes of a JSON file by label: a list of names, or of `{label, name, wnid}`.

    Raises:
        UsageError: the file is missing or something else, or labels are not 0, 1, 2, ...
    """
    fix = (
        'a JSON list of names, or of objects such as {"label": 0, "name": "goldfish", '
        '"wnid": "n01443537"}'
    )
    try:
        found = _CLASSES.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(
            f"the classes cannot be read: {error.strerror}", where=path, fix="check --classes"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"the classes are not as they should be: {place} {first['msg']}"
        raise UsageError(what, where=path, fix=fix) from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise UsageError(f"the classes are no JSON: {error}", where=path, fix=fix) from error

    # The label is the row of a judge's output, so labels must be dense.
    classes = tuple(sorted(found, key=lambda item: item.label))
    if len(classes) < 2 or [item.label for item in classes] != list(range(len(classes))):
        raise UsageError("labels must be 0, 1, 2, ..., each once, two or more", where=path, fix=fix)
    return classes


class PictureSet:
    """The pictures of a source, as central squares; those of a WebDataset may have labels.

    Attributes:
        spec: the source's specification.
        image_ids: sorted, [N].
        labels: classes, int64 [N]; -1 where there is none.
        digest: changes when a picture does.

    Raises:
        UsageError: the specification has no known scheme.
        SourceError: the source does not exist, holds no picture, or its pictures are behind URLs.
    """

    def __init__(self, spec: str) -> None:
        self._source = open_source(spec)
        if isinstance(self._source, RemoteSource):
            raise self._source.not_at_hand()
        self.spec = self._source.spec

        # Label files and captions beside the pictures are no pictures.
        listing = self._source.listing()
        keep = [names_picture(location) for location in listing["location"].to_pylist()]
        listing = listing.filter(np.array(keep, bool))
        if listing.num_rows == 0:
            raise SourceError(
                "the source has no pictures", where=spec, fix="check the specification"
            )

        self.image_ids: list[str] = listing["image_id"].to_pylist()
        self.digest = fingerprint(listing)
        self._locations: list[str] = listing["location"].to_pylist()
        self._rotations: list[int] = listing["rotation"].to_pylist()
        labels = self._source.labels() if isinstance(self._source, WebDatasetSource) else {}
        self.labels = np.array([labels.get(location, -1) for location in self._locations], np.int64)

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows_of_classes(self, classes: int) -> list[NDArray[np.int64]]:
        """Return the pictures of each class.

        Raises:
            SourceError: a label is no class, or a class has no picture.
        """
        if self.labels.max() >= classes:
            row = int(self.labels.argmax())
            raise SourceError(
                f"picture {self.image_ids[row]!r} has label {self.labels[row]}, but there "
                f"are {classes} classes",
                where=self.spec,
                fix="check --classes",
            )

        rows = [np.flatnonzero(self.labels == label) for label in range(classes)]
        if empty := [label for label, found in enumerate(rows) if not len(found)]:
            raise SourceError(
                f"{len(empty)} of {classes} classes have no picture, first {empty[0]}",
                where=self.spec,
                fix="give more labelled pictures, or a list of fewer classes",
            )
        return rows

    def images(self, rows: Sequence[int] | NDArray[np.int64]) -> Iterator[Image.Image]:
        """Yield the central squares of pictures, as `crop.mode=whole` cuts them for a database.

        Raises:
            SourceError: one of them cannot be decoded. None is left out or replaced.
        """
        for row in rows:
            try:
                image = decode_image(
                    self._source.read(self._locations[row]), rotation=self._rotations[row]
                )
            except (OSError, ValueError) as error:  # what cannot be decoded, too
                raise SourceError(
                    f"a picture cannot be decoded: {error}",
                    where=f"{self.spec} {self.image_ids[row]}",
                    fix="remove it from the source: nothing that is measured on is left out "
                    "in silence",
                ) from error
            yield image.crop(
                tuple(crop_boxes(self.image_ids[row], *image.size, _WHOLE)[0].tolist())
            )

    def squares(self, rows: Sequence[int] | NDArray[np.int64], side: int) -> NDArray[np.uint8]:
        """Return pictures reduced to squares, uint8 [N, side, side, 3]; errors as `images`."""
        size = (side, side)
        squares = [
            np.asarray(image.resize(size, Image.Resampling.LANCZOS)) for image in self.images(rows)
        ]
        return np.stack(squares) if squares else np.zeros((0, side, side, 3), np.uint8)


def mosaic(squares: NDArray[np.uint8], cells: int) -> NDArray[np.uint8]:
    """Return pictures uint8 [N, S, S, 3] as `cells` x `cells` mean colors, enlarged smoothly."""
    side = squares.shape[1]
    small = [
        Image.fromarray(square).resize((cells, cells), Image.Resampling.BOX) for square in squares
    ]
    return np.stack(
        [np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)) for image in small]
    )
