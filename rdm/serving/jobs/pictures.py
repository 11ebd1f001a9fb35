"""Pictures that were drawn: their recipe, their PNG, and smaller copies."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rdm.generators.model_folder import portable_name
from rdm.generators.sample_settings import Setting
from rdm.sampling.picture_digest import pixels_digest
from rdm.sampling.recipe.picture_file import png_bytes
from rdm.sampling.recipe.record import (
    BatchPlace,
    EncoderReference,
    NegativeRecord,
    QueryRecord,
    SampleRecord,
    TokenRecord,
)
from rdm.sampling.recorder import database_reference
from rdm.sampling.retrieval.conditioning import Conditioning, Tokens
from rdm.serving.drawing.messages import ModelReady
from rdm.serving.jobs.records import Job, StoredImage, new_id
from rdm.serving.lookup import Found


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A picture as it comes from a drawer.

    Attributes:
        pixels: uint8 [H, W, 3].
        ready: the model that drew it.
        acting: the settings that acted.
        place: in its batch.
    """

    pixels: NDArray[np.uint8]
    ready: ModelReady
    acting: dict[str, Setting]
    place: BatchPlace


def finished_picture(
    job: Job, found: Found, index: int, drawn: DrawnPicture
) -> tuple[StoredImage, bytes]:
    """Return a picture's row for the store, and its PNG, which carries its recipe.

    Args:
        job: whose picture it is.
        found: its look-up.
        index: of the picture in the job.
        drawn: the picture.
    """
    image_id = new_id("img")
    record = recipe_of(found, index, drawn, f"{image_id}.png")
    image = StoredImage(
        id=image_id,
        job=job.id,
        index=index,
        seed=found.asked[index].seed,
        created=time.time(),
        label=found.label,
        databases=found.versions,
        request=job.request,
        recipe=record.model_dump_json(),
        is_draft=job.request.supersede,
        pixels_sha256=record.pixels_sha256,
    )
    return image, png_bytes(drawn.pixels, record)


def recipe_of(found: Found, index: int, drawn: DrawnPicture, file: str) -> SampleRecord:
    """Return a picture's recipe; databases go by the names that the server gives them."""
    asked = found.asked[index]
    height, width = drawn.pixels.shape[:2]

    databases = {name: one.database for name, one in found.databases.items()}
    first = next(iter(databases.values()), None)
    weights = {one.name: one.weight for one in found.request.retrieval.databases}

    return SampleRecord(
        file=file,
        query=QueryRecord(
            kind=asked.query.kind, label=asked.query.label, image_sha256=asked.image_sha256
        ),
        seed=asked.seed,
        databases=tuple(
            database_reference(one, name, weights.get(name, 1.0)) for name, one in databases.items()
        ),
        tokens=_token_records(asked.tokens, found),
        neighbors=found.neighbors[index],
        negative=_negative_record(asked, found),
        settings=drawn.acting,
        model=drawn.ready.reference,
        encoder=first
        and EncoderReference(name=portable_name(first.encoder_name), digest=first.encoder_digest),
        software=drawn.ready.software,
        batch=drawn.place,
        size=(width, height),
        pixels_sha256=pixels_digest(drawn.pixels),
    )


def _token_records(tokens: Tokens | None, found: Found) -> tuple[TokenRecord, ...]:
    if tokens is None:
        return ()
    # The query's own token stands for no patch; the others follow in order.
    patches, first = iter(tokens.patches), next(iter(found.databases), "")
    records = []
    for kind, weight in zip(tokens.kinds, tokens.weights.tolist(), strict=True):
        if kind == "query":
            records.append(TokenRecord(kind="query", weight=weight))
            continue
        name, patch_id = next(patches)
        records.append(
            TokenRecord(kind="patch", patch_id=patch_id, database=name or first, weight=weight)
        )
    return tuple(records)


def _negative_record(asked: Conditioning, found: Found) -> NegativeRecord | None:
    negative = asked.negative
    if negative is None:
        return None
    patches = () if negative.tokens is None else negative.tokens.patches
    first = next(iter(found.databases), "")
    return NegativeRecord(
        texts=negative.texts,
        tokens=_token_records(negative.tokens, found),
        neighbors=tuple(
            found.databases[name or first]
            .credits(np.array([patch]))[0]
            .model_copy(update={"similarity": None})
            for name, patch in patches
        ),
        scale=negative.scale,
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
