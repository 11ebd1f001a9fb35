"""A picture's record: query, seed, settings and credits; in `samples.json` and PNGs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, ValidationError

from rdm.config import Config
from rdm.database import RetrievalDatabase
from rdm.database.reader import PatchRecord
from rdm.errors import SourceError
from rdm.generators.sample_settings import Setting
from rdm.sampling.queries import Query
from rdm.sampling.request import QueryKind

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
    weight: float = Field(default=1.0, description="factor on the attention that it got")
    database: str = Field(default="", description="the name of its database; empty: the only one")


class DatabaseReference(Config):
    """The database that neighbors were looked up in."""

    name: str = ""
    root: str
    version: int


class SampleRecord(Config):
    """One picture. `neighbors` are those that conditioned it, nearest first, and no others."""

    format: Literal["rdm.sample/1"] = "rdm.sample/1"
    file: str
    kind: QueryKind
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
    databases: tuple[DatabaseReference, ...] = ()

    def for_png(self) -> SampleRecord:
        """Return the record for a PNG: no folders of this machine, at most MAX_PNG_BYTES."""
        databases = tuple(
            one.model_copy(
                update={"name": PurePath(one.name).name, "root": PurePath(one.root).name}
            )
            for one in self.databases
        )
        label = PurePath(self.label).name if self.kind == "image" else self.label
        changes = {
            "model": PurePath(self.model).name,
            "databases": databases,
            "label": label[:_MAX_LABEL],
        }
        short = self.model_copy(update={**changes, "neighbors": ()})

        kept: list[Credit] = []
        # 64 bytes for the number of neighbors left out and the brackets around the others.
        room = MAX_PNG_BYTES - len(_json(short)) - 64
        for full in self.neighbors:
            credit = full.model_copy(update={"database": PurePath(full.database).name})
            room -= len(_json(credit)) + 1
            if room < 0:
                break
            kept.append(credit)
        left_out = len(self.neighbors) - len(kept)
        return short.model_copy(update={"neighbors": tuple(kept), "neighbors_left_out": left_out})


def _json(record: Config) -> bytes:
    return record.model_dump_json().encode()


def credits_of(
    databases: Mapping[str, RetrievalDatabase], queries: Sequence[Query]
) -> list[tuple[Credit, ...]]:
    """Return the credits of pictures' neighbors, in order, from one read of each database.

    Args:
        databases: by name; a query that names none is of the first.
        queries: with the neighbors that conditioned.
    """
    first = next(iter(databases))
    places = [list(_places(query, first)) for query in queries]
    found: dict[tuple[str, int], PatchRecord] = {}
    for name, database in databases.items():
        ids = {patch_id for row in places for at, patch_id in row if at == name}
        if ids:
            records = database.records(np.array(sorted(ids), np.int64))
            found |= {(name, record.patch_id): record for record in records}
    return [
        tuple(
            _credit(found[at], query, number, at[0] if len(databases) > 1 else "")
            for number, at in enumerate(row)
        )
        for query, row in zip(queries, places, strict=True)
    ]


def _places(query: Query, first: str) -> Iterator[tuple[str, int]]:
    names = query.databases or (first,) * len(query.neighbor_ids)
    return zip(names, query.neighbor_ids.tolist(), strict=True)


def _credit(record: PatchRecord, query: Query, number: int, database: str) -> Credit:
    return Credit(
        patch_id=record.patch_id,
        similarity=float(query.similarities[number]),
        image_id=record.image_id,
        url=record.url,
        author=record.author,
        license=record.license,
        box=record.box,
        weight=query.weights[number] if query.weights else 1.0,
        database=database,
    )


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
