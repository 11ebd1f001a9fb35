"""Pictures that were drawn: their PNG with its record, thumbnails, and credits."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.config import Record
from rdm.generators.sample_settings import Setting
from rdm.sampling.record import Credit, DatabaseReference, SampleRecord, png_text
from rdm.serving.databases import Neighbor, OpenDatabase
from rdm.serving.drawing.messages import ModelReady
from rdm.serving.jobs.records import Job, StoredImage, new_id
from rdm.serving.lookup import DatabaseVersion, Found

THUMB_SIDES = (64, 128, 256, 512)


class CreditLine(Record):
    """Whom one neighbor of a picture is credited to."""

    database: str
    patch_id: int
    image_id: str
    author: str
    license: str
    source_page: str
    similarity: float
    is_removed: bool


class Credits(Record):
    """Whom a picture is credited to: the photographs that it looked at."""

    picture: str
    label: str
    databases: tuple[DatabaseVersion, ...]
    neighbors: tuple[CreditLine, ...]
    conditioned_on_removed: bool
    note: str
    """What holds for the whole database."""
    text: str
    """All of it as plain text, to copy."""


def finished_picture(
    job: Job,
    found: Found,
    index: int,
    pixels: NDArray[np.uint8],
    ready: ModelReady,
    acting: dict[str, Setting],
) -> tuple[StoredImage, bytes]:
    """Return a picture's row for the store and its PNG, which carries its record.

    Args:
        job: whose picture it is.
        found: its look-up.
        index: of the picture in the job.
        pixels: uint8 [H, W, 3].
        ready: the model that drew it.
        acting: the settings that acted.
    """
    image_id, asked = new_id("img"), found.asked[index]
    record = SampleRecord(
        file=f"{image_id}.png",
        kind=asked.query.kind,
        label=asked.query.label,
        seed=asked.seed,
        neighbors=tuple(_credit(one, len(found.databases)) for one in found.neighbors[index]),
        settings=acting,
        model=ready.model,
        model_digest=ready.digest,
        device=ready.device,
        databases=tuple(
            DatabaseReference(name=one.name, root=one.name, version=one.version)
            for one in found.versions
        ),
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=png_text(record))
    image = StoredImage(
        id=image_id,
        job=job.id,
        index=index,
        seed=asked.seed,
        created=time.time(),
        label=found.label,
        databases=found.versions,
        request=job.request,
        recipe=record.model_dump_json(),
        is_draft=job.request.supersede,
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
    )
    return image, buffer.getvalue()


def _credit(neighbor: Neighbor, num_databases: int) -> Credit:
    return Credit(
        patch_id=neighbor.patch_id,
        similarity=neighbor.similarity,
        image_id=neighbor.image_id,
        url=neighbor.source_page,
        author=neighbor.author,
        license=neighbor.license,
        box=neighbor.box,
        weight=neighbor.weight,
        database=neighbor.database if num_databases > 1 else "",
    )


def thumbnail(path: Path, side: int) -> bytes:
    """Return a PNG file as WebP of `side` pixels: whole multiples are enlarged smoothly."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()
        return encode_webp(image.convert("RGB"), side)


def encode_webp(image: Image.Image, side: int) -> bytes:
    """Return a picture as WebP whose longer side is `side` pixels."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=3)
    return buffer.getvalue()


def credits_of_image(image: StoredImage, opened: Mapping[str, OpenDatabase]) -> Credits:
    """Return whom a picture is credited to. Of a photograph that was removed since nothing is told.

    Args:
        image: the picture.
        opened: its databases at their newest versions, those that are served.
    """
    record = SampleRecord.model_validate_json(image.recipe)
    first = image.databases[0].name if image.databases else ""
    lines = tuple(_line(one, one.database or first, opened) for one in record.neighbors)
    notes = dict.fromkeys(note for one in opened.values() if (note := credit_note(one)))
    note = " ".join(notes)
    return Credits(
        picture=image.id,
        label=image.label,
        databases=image.databases,
        neighbors=lines,
        conditioned_on_removed=any(line.is_removed for line in lines),
        note=note,
        text=credit_text(image, lines, note),
    )


def _line(credit: Credit, name: str, opened: Mapping[str, OpenDatabase]) -> CreditLine:
    is_removed = name in opened and credit.patch_id in opened[name].removed
    return CreditLine(
        database=name,
        patch_id=credit.patch_id,
        image_id="" if is_removed else credit.image_id,
        author="" if is_removed else credit.author,
        license="" if is_removed else credit.license,
        source_page="" if is_removed else credit.url,
        similarity=credit.similarity,
        is_removed=is_removed,
    )


def credit_note(opened: OpenDatabase) -> str:
    """Return what a database's source says of all its photographs together."""
    if not opened.authors:
        return ""
    return (
        f"The source names the {len(opened.authors)} authors of these photographs in one list, "
        "not photograph by photograph."
    )


def credit_text(image: StoredImage, lines: tuple[CreditLine, ...], note: str) -> str:
    """Return credits as plain text: title, author, source, license, a line each."""
    homes = " and ".join(f"{one.name}, version {one.version}" for one in image.databases)
    head = (
        f'Picture drawn for "{image.label}" (seed {image.seed}) by retrieval-diffusion, '
        f"from {len(lines)} photographs of {homes}:"
    )
    rows = []
    for place, line in enumerate(lines, start=1):
        if line.is_removed:
            rows.append(f"{place}. removed on request")
            continue
        author = line.author or "author not recorded"
        parts = [line.image_id, author, line.license or "license not recorded", line.source_page]
        rows.append(f"{place}. " + ", ".join(part for part in parts if part))
    return "\n".join([head, *rows, *([note] if note else [])])
