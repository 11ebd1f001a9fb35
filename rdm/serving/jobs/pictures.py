"""Pictures that were drawn: their PNG with its record, thumbnails, and credits."""

from __future__ import annotations

import hashlib
import io
import time
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
from rdm.serving.lookup import Found

THUMB_SIDES = (64, 128, 256, 512)


class CreditLine(Record):
    """Whom one neighbor of a picture is credited to."""

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
    database: str | None
    version: int | None
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
    image_id, seed = new_id("img"), job.request.seeds[index]
    record = SampleRecord(
        file=f"{image_id}.png",
        kind=found.kind,
        label=found.label,
        seed=seed,
        neighbors=tuple(map(_credit, found.neighbors)),
        settings=acting,
        model=ready.model,
        model_digest=ready.digest,
        device=ready.device,
        database=DatabaseReference(root=found.database.name, version=found.database.version),
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=png_text(record))
    image = StoredImage(
        id=image_id,
        job=job.id,
        index=index,
        seed=seed,
        created=time.time(),
        label=found.label,
        database=found.database.name,
        version=found.database.version,
        patch_ids=tuple(one.patch_id for one in found.neighbors),
        request=job.request,
        recipe=record.model_dump_json(),
        is_draft=job.request.supersede,
        pixels_sha256=hashlib.sha256(pixels.tobytes()).hexdigest(),
    )
    return image, buffer.getvalue()


def _credit(neighbor: Neighbor) -> Credit:
    return Credit(
        patch_id=neighbor.patch_id,
        similarity=neighbor.similarity,
        image_id=neighbor.image_id,
        url=neighbor.source_page,
        author=neighbor.author,
        license=neighbor.license,
        box=neighbor.box,
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


def credits_of_image(image: StoredImage, opened: OpenDatabase | None) -> Credits:
    """Return whom a picture is credited to. Of a photograph that was removed since nothing is told.

    Args:
        image: the picture.
        opened: its database at the newest version; None: it is served no more.
    """
    record = SampleRecord.model_validate_json(image.recipe)
    removed = opened.removed if opened is not None else frozenset[int]()
    lines = tuple(
        CreditLine(
            patch_id=one.patch_id,
            image_id="" if one.patch_id in removed else one.image_id,
            author="" if one.patch_id in removed else one.author,
            license="" if one.patch_id in removed else one.license,
            source_page="" if one.patch_id in removed else one.url,
            similarity=one.similarity,
            is_removed=one.patch_id in removed,
        )
        for one in record.neighbors
    )
    note = credit_note(opened)
    return Credits(
        picture=image.id,
        label=image.label,
        database=image.database,
        version=image.version,
        neighbors=lines,
        conditioned_on_removed=any(line.is_removed for line in lines),
        note=note,
        text=credit_text(image, lines, note),
    )


def credit_note(opened: OpenDatabase | None) -> str:
    """Return what a database's source says of all its photographs together."""
    if opened is None or not opened.authors:
        return ""
    return (
        f"The source names the {len(opened.authors)} authors of these photographs in one list, "
        "not photograph by photograph."
    )


def credit_text(image: StoredImage, lines: tuple[CreditLine, ...], note: str) -> str:
    """Return credits as plain text: title, author, source, license, a line each."""
    head = (
        f'Picture drawn for "{image.label}" (seed {image.seed}) by retrieval-diffusion, '
        f"from {len(lines)} photographs of {image.database}, version {image.version}:"
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
