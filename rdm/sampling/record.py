"""A picture's record: query, seed, settings and credits; in `samples.json` and PNGs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, ValidationError

from rdm.config import Config
from rdm.database import RetrievalDatabase
from rdm.errors import SourceError
from rdm.generators.sample_settings import Setting

PNG_KEY = "rdm"
MAX_PNG_BYTES = 256 * 1024  # readers of PNGs refuse texts of a megabyte and more
_MAX_LABEL = 2000


class Credit(Config):
    """A patch that conditioned a picture, and whose photograph it was cut from."""

    patch_id: int
    similarity: float
    image_id: str
    url: str
    author: str
    license: str
    box: tuple[int, int, int, int]


class DatabaseReference(Config):
    """The database that neighbors were looked up in."""

    root: str
    version: int


class SampleRecord(Config):
    """One picture. `neighbors` are those that conditioned it, nearest first, and no others."""

    format: Literal["rdm.sample/1"] = "rdm.sample/1"
    file: str
    kind: Literal["text", "image", "class", "unconditional"]
    label: str = Field(description="the text, the file's name, or the drawn patch")
    seed: int
    neighbors: tuple[Credit, ...]
    neighbors_left_out: int = Field(
        default=0, description="neighbors whose credits a PNG has no room for"
    )
    settings: dict[str, Setting] = Field(description="those that act on this kind of model")
    model: str
    model_digest: str = Field(description="16 hexadecimal digits of the model's files")
    device: str
    database: DatabaseReference | None

    def for_png(self) -> SampleRecord:
        """Return the record for a PNG: no folders of this machine, at most MAX_PNG_BYTES."""
        database = self.database and DatabaseReference(
            root=PurePath(self.database.root).name, version=self.database.version
        )
        label = PurePath(self.label).name if self.kind == "image" else self.label
        changes = {
            "model": PurePath(self.model).name,
            "database": database,
            "label": label[:_MAX_LABEL],
        }
        short = self.model_copy(update={**changes, "neighbors": ()})

        kept: list[Credit] = []
        # 64 bytes for the number of neighbors left out and the brackets around the others.
        room = MAX_PNG_BYTES - len(_json(short)) - 64
        for credit in self.neighbors:
            room -= len(_json(credit)) + 1
            if room < 0:
                break
            kept.append(credit)
        left_out = len(self.neighbors) - len(kept)
        return short.model_copy(update={"neighbors": tuple(kept), "neighbors_left_out": left_out})


def _json(record: Config) -> bytes:
    return record.model_dump_json().encode()


def credits_of(
    database: RetrievalDatabase,
    ids: Iterable[NDArray[np.int64]],
    similarities: Iterable[NDArray[np.float32]],
) -> list[tuple[Credit, ...]]:
    """Return the credits of pictures' neighbors, in order, from one read of the database."""
    pairs = zip(ids, similarities, strict=True)
    rows = [list(zip(some.tolist(), values.tolist(), strict=True)) for some, values in pairs]
    distinct = np.unique(np.array([patch_id for row in rows for patch_id, _ in row], np.int64))
    found = (
        {record.patch_id: record for record in database.records(distinct)} if len(distinct) else {}
    )

    def credit(patch_id: int, similarity: float) -> Credit:
        record = found[patch_id]
        return Credit(
            patch_id=patch_id,
            similarity=similarity,
            image_id=record.image_id,
            url=record.url,
            author=record.author,
            license=record.license,
            box=record.box,
        )

    return [tuple(credit(*neighbor) for neighbor in row) for row in rows]


def png_text(record: SampleRecord) -> PngInfo:
    """Return the record as a PNG's iTXt chunk `rdm`, UTF-8 and not compressed."""
    text = PngInfo()
    text.add_itxt(PNG_KEY, _json(record.for_png()).decode())
    return text


def read_png_record(path: Path) -> SampleRecord:
    """Return the record in a picture that `rdm sample` drew.

    Raises:
        SourceError: there is no such picture, or it carries no record.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            # texts may follow the pixels where another program saved the picture again
            image.load()
            text = getattr(image, "text", {}).get(PNG_KEY)
    except FileNotFoundError as error:
        raise SourceError(
            "the picture does not exist", where=path, fix="check the file's name"
        ) from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise SourceError(
            f"the picture cannot be read as a PNG: {error}", where=path, fix="give a PNG"
        ) from error

    if text is None:
        raise SourceError(
            "the picture carries no record of what it was drawn from",
            where=path,
            fix="give a PNG as `rdm sample` wrote it; other programs and sites take texts out",
        )
    try:
        return SampleRecord.model_validate_json(text)
    except ValidationError as error:
        raise SourceError(
            f"the picture's record is damaged: {error.errors()[0]['msg']}",
            where=path,
            fix="give the picture as drawn",
        ) from error
