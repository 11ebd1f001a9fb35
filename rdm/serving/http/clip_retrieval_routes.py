"""clip-retrieval's three routes, for its client and its page, without its environment."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Response
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from rdm.config import Record
from rdm.encoders import normalize
from rdm.serving.databases import OpenDatabase
from rdm.serving.http.context import Serving, ServingDep
from rdm.serving.problems import ServeError
from rdm.sources import ImageDecodeError, decode_image

router = APIRouter(tags=["clip-retrieval"])
_MAX_RESULTS = 1000
_IGNORED = (
    "use_mclip",
    "deduplicate",
    "use_safety_model",
    "use_violence_detector",
    "aesthetic_score",
    "aesthetic_weight",
)


class KnnQuery(BaseModel):
    """clip-retrieval's query; other fields of its releases are let pass."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: Annotated[str, Field(max_length=2000)] | None = None
    image: str | None = Field(default=None, description="a picture's bytes in base64")
    image_url: str | None = Field(default=None, description="refused: no client's URL is fetched")
    embedding_input: tuple[float, ...] | None = None
    modality: str = "image"
    num_images: int = Field(default=100, ge=1)
    num_result_ids: int = Field(default=100, ge=1)
    indice_name: str | None = None
    use_mclip: bool = False
    deduplicate: bool = False
    use_safety_model: bool = False
    use_violence_detector: bool = False
    aesthetic_score: str | int | None = None
    aesthetic_weight: float | None = None


class KnnResult(Record):
    """A patch that was found; beyond `num_images` only its id and similarity."""

    id: int
    similarity: float
    url: str | None = None
    caption: str | None = None
    image: str | None = None
    """JPEG in base64."""


class MetadataQuery(BaseModel):
    """Patches whose metadata are wanted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    ids: Annotated[tuple[int, ...], Field(max_length=_MAX_RESULTS)]
    indice_name: str | None = None


class PatchMetadata(Record):
    """What is known of a patch."""

    id: int
    metadata: dict[str, str]


@router.get("/indices-list")
async def indices_list(serving: ServingDep) -> list[str]:
    """List the databases."""
    return [one.name for one in serving.databases.all]


@router.post("/knn-service", response_model=list[KnnResult], response_model_exclude_none=True)
async def knn_service(serving: ServingDep, body: KnnQuery, response: Response) -> list[KnnResult]:
    """Return the nearest patches of a text, a picture or a vector."""
    opened = _opened(serving, body.indice_name)
    ignored = [name for name in _IGNORED if getattr(body, name) not in (None, False, "")]
    if ignored:
        response.headers["RDM-Ignored"] = ", ".join(ignored)
    return await serving.service.in_file_thread(lambda: _search(opened, body))


@router.post("/metadata", response_model=list[PatchMetadata])
async def metadata(serving: ServingDep, body: MetadataQuery) -> list[PatchMetadata]:
    """Return what is known of patches; 410 for one that was removed."""
    opened = _opened(serving, body.indice_name)
    opened.refuse_removed(body.ids)
    ids = np.array(body.ids, np.int64)
    found = await serving.service.in_file_thread(lambda: opened.credits(ids))

    # The keys that clip-retrieval's client reads, and those that credits need.
    return [
        PatchMetadata(
            id=one.patch_id,
            metadata={
                "image_id": one.image_id,
                "url": one.landing_page or one.url,
                "caption": one.title,
                "author": one.author,
                "license": one.license,
            },
        )
        for one in found
    ]


def _opened(serving: Serving, name: str | None) -> OpenDatabase:
    return serving.databases.get(name or next(iter(serving.databases.names), ""))


def _search(opened: OpenDatabase, body: KnnQuery) -> list[KnnResult]:
    """Look up, and describe the first `num_images`."""
    database = opened.database
    count = min(max(body.num_images, body.num_result_ids), _MAX_RESULTS)
    count = min(count, database.version.num_live_patches)

    ids, similarities = database.search_vectors(_vector(opened, body), count)
    shown = min(body.num_images, count)
    credits = opened.credits(ids[0][:shown])
    pictures = database.pixels(ids[0][:shown]) if database.has_pixels else [None] * shown

    # Every result has an id; only the first ones are described, since that reads pixels.
    results = [
        KnnResult(id=int(patch_id), similarity=float(similarity))
        for patch_id, similarity in zip(ids[0], similarities[0], strict=True)
    ]

    for place, (credit, picture) in enumerate(zip(credits, pictures, strict=True)):
        image = None
        if picture is not None:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG")
            image = base64.b64encode(buffer.getvalue()).decode()
        results[place] = results[place].model_copy(
            update={
                "url": credit.url or credit.landing_page,
                "caption": credit.title or credit.image_id,
                "image": image,
            }
        )
    return results


def _vector(opened: OpenDatabase, body: KnnQuery) -> NDArray[np.float32]:
    """Return the unit vector [1, D] of a query."""
    encoder = opened.database.encoder

    # clip-retrieval would fetch it, and so reach into the server's own network.
    if body.image_url:
        raise ServeError(
            "invalid_request",
            "the server fetches no addresses of clients",
            where="image_url",
            fix="send the picture itself as `image`, in base64",
        )

    if body.text:
        return normalize(encoder.encode_texts([body.text]))
    if body.image:
        try:
            picture = decode_image(base64.b64decode(body.image, validate=True))
        except (ImageDecodeError, binascii.Error, ValueError) as error:
            raise ServeError(
                "not_a_picture", str(error), where="image", fix="send a picture in base64"
            ) from error
        return normalize(encoder.encode_images(encoder.preprocess(picture)[None]))

    # Clients that have an embedding send it as it is, whatever its norm.
    vector = np.array([body.embedding_input or ()], np.float32)
    dim = opened.database.version.embedding_dim
    if vector.size not in (0, dim):
        raise ServeError(
            "invalid_request",
            f"the vector has {vector.size} numbers, the database {dim}",
            where="embedding_input",
            fix=f"embed with {opened.database.encoder_name}",
        )
    if vector.size and np.isfinite(vector).all() and np.linalg.norm(vector) > 0:
        return normalize(vector)
    raise ServeError(
        "invalid_request", "nothing is asked for", fix="send text, image or embedding_input"
    )
