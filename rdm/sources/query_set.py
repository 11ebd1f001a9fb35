"""Query sets: the photographs of a training, cut into the crops whose neighbors are looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, TypeVar

import pyarrow as pa
import xxhash
from PIL import Image
from pydantic import AfterValidator, Field

from rdm.config import Config, digest_json
from rdm.errors import RdmError, SourceError, UsageError
from rdm.sources.causes import CANNOT_BE_READ
from rdm.sources.kinds.folder import FolderSource
from rdm.sources.kinds.local import RefusedFileError
from rdm.sources.kinds.remote import RemoteSource
from rdm.sources.kinds.webdataset import WebDatasetSource
from rdm.sources.open import absolute_spec, open_source
from rdm.sources.photographs.crops import CropConfig, crop_boxes
from rdm.sources.photographs.decode import ImageDecodeError, decode_image
from rdm.sources.source import fingerprint, names_picture

_Said = TypeVar("_Said")


class QuerySetConfig(Config):
    """The photographs and cuts of a query set; tables and caches of one share its digest."""

    source: Annotated[str, AfterValidator(absolute_spec)] = Field(
        description="specification of the source, such as folder:///photos"
    )
    crop: CropConfig = CropConfig()
    images_per_shard: int = Field(default=1024, ge=1, description="photographs per shard")


@dataclass(frozen=True)
class QueryCrop:
    """One crop: its key `IMAGE_ID/NUMBER`, its photograph's id and file SHA-256, its pixels."""

    key: str
    image_id: str
    sha256: str
    image: Image.Image


class QuerySet:
    """The crops of a source, shard by shard, in an order that depends on the source alone.

    Raises:
        UsageError: the specification has no known scheme, or the crop mode is `boxes`.
        SourceError: what it names does not exist, or its photographs are behind URLs.
    """

    def __init__(self, config: QuerySetConfig) -> None:
        if config.crop.mode == "boxes":
            fix = "crop.mode=random, grid or whole"
            raise UsageError("a query set is not cut by boxes", where=config.source, fix=fix)
        self.config = config

        # Crops are read again and again: photographs behind URLs must be in a database first.
        self._source = open_source(config.source)
        if isinstance(self._source, RemoteSource):
            raise self._source.not_at_hand()

    @cached_property
    def listing(self) -> pa.Table:
        """The photographs that look like pictures by name.

        Raises:
            SourceError: there is none.
        """
        table = self._source.listing()
        keep = [names_picture(location) for location in table.column("location").to_pylist()]

        table = table.filter(pa.array(keep, pa.bool_()))
        if table.num_rows == 0:
            raise SourceError(
                "the source has no pictures",
                where=self.config.source,
                fix="check the specification",
            )
        return table

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the configuration and of the photographs' fingerprint."""
        return digest_json([self.config.model_dump(mode="json"), fingerprint(self.listing)])

    def captions(self) -> dict[str, tuple[str, ...]]:
        """Return the captions of each photograph that has any, by image id.

        Raises:
            SourceError: this kind of source has no captions, or a file of them is damaged.
        """
        return self._by_image(self._labelled("captions").captions())

    def class_names(self) -> dict[str, str]:
        """Return the class of each photograph that has one, by image id.

        Raises:
            SourceError: this kind of source has no classes, or a label is damaged.
        """
        return self._by_image(self._labelled("classes").class_names())

    def _labelled(self, what: str) -> FolderSource | WebDatasetSource:
        if isinstance(self._source, FolderSource | WebDatasetSource):
            return self._source
        raise SourceError(
            f"this kind of source has no {what}",
            where=self.config.source,
            fix="webdataset:// with KEY.json, KEY.txt or KEY.cls, or folder:// with PHOTO.txt, and "
            "with classes as folders",
        )

    def _by_image(self, said: Mapping[str, _Said]) -> dict[str, _Said]:
        rows = self.listing.select(["location", "image_id"]).to_pylist()
        return {row["image_id"]: said[row["location"]] for row in rows if row["location"] in said}

    @property
    def stems(self) -> list[str]:
        """The shard stems `00000`, `00001`, ..."""
        count = -(-self.listing.num_rows // self.config.images_per_shard)
        return [f"{number:05d}" for number in range(count)]

    def crops(self, stem: str, failures: list[tuple[str, str]]) -> Iterator[QueryCrop]:
        """Yield the crops of a shard; append `(image_id, "cause: detail")` of unusable ones."""
        size = self.config.images_per_shard

        # One photograph's failure, whatever it is, must not lose the others.
        for row in self.listing.slice(int(stem) * size, size).to_pylist():
            try:
                yield from self._crops_of(row)
            except (ImageDecodeError, RefusedFileError) as error:
                failures.append((row["image_id"], str(error)))
            except OSError as error:
                failures.append((row["image_id"], f"{CANNOT_BE_READ}: {error.strerror or error}"))
            except RdmError:
                raise
            except Exception as error:
                failures.append(
                    (row["image_id"], f"{CANNOT_BE_READ}: {type(error).__name__}: {error}")
                )

    def picked(self, keys: Collection[str]) -> dict[str, QueryCrop]:
        """Return those of some crops, by key, that can still be cut."""
        # Only their photographs are read.
        image_ids = {key.rpartition("/")[0] for key in keys}
        rows = [row for row in self.listing.to_pylist() if row["image_id"] in image_ids]
        found: dict[str, QueryCrop] = {}
        for row in rows:
            with suppress(ImageDecodeError, OSError):
                found |= {crop.key: crop for crop in self._crops_of(row) if crop.key in keys}
        return found

    def _crops_of(self, row: dict[str, Any]) -> Iterator[QueryCrop]:
        """Read, decode and cut one photograph."""
        data = self._source.read(row["location"])
        photograph = decode_image(data, rotation=row["rotation"])
        sha256 = hashlib.sha256(data).hexdigest()

        # A crop's number is its place among the photograph's crops.
        for number, box in enumerate(
            crop_boxes(row["image_id"], *photograph.size, self.config.crop).tolist()
        ):
            yield QueryCrop(
                f"{row['image_id']}/{number}", row["image_id"], sha256, photograph.crop(tuple(box))
            )


def is_held_out(image_id: str, fraction: float) -> bool:
    """Return whether a photograph is kept out of training: a function of its id alone."""
    return xxhash.xxh3_64_intdigest(image_id.encode(), seed=1) % 10_000 < fraction * 10_000
