"""Routes of look-ups, databases, their patches, models and uploads."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response

from rdm.config import Record
from rdm.sampling.recipe.record import Credit
from rdm.sampling.request.sample_request import Retrieval, WeightedDatabase
from rdm.serving.databases import DatabaseInfo, OpenDatabase
from rdm.serving.http.context import ServingDep
from rdm.serving.jobs.credits import credit_note
from rdm.serving.jobs.pictures import encode_webp
from rdm.serving.lookup import DatabaseVersion
from rdm.serving.models import ModelFacts
from rdm.serving.problems import ServeError
from rdm.serving.request import JobSettings, LookUpRequest
from rdm.serving.uploads import Upload

Side = Annotated[int, Query(ge=16, le=512, description="of the longer side, pixels")]
UploadId = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
_MAX_THUMBS = 512


class NeighborsAnswer(Record):
    """What a query finds, in one version of one database."""

    databases: tuple[DatabaseVersion, ...]
    query: str
    milliseconds: float
    neighbors: tuple[Credit, ...]
    note: str


class PatchPage(Record):
    """Some patches of a database; `cursor` leads to those that follow."""

    database: str
    version: int
    patches: tuple[Credit, ...]
    cursor: int | None


class DatabaseList(Record):
    """Every database that is open."""

    data: tuple[DatabaseInfo, ...]


class ModelList(Record):
    """Every model, as OpenAI lists them."""

    object: str = "list"
    data: tuple[ModelFacts, ...]


class NamedAuthor(Record):
    """An author whom a source names for all of its photographs together."""

    name: str
    url: str


class AuthorList(Record):
    """The authors whom a database's source names in one list."""

    database: str
    data: tuple[NamedAuthor, ...]


router = APIRouter(prefix="/v1")


@router.post("/neighbors", response_model=NeighborsAnswer, tags=["look up"])
async def neighbors(serving: ServingDep, body: LookUpRequest) -> NeighborsAnswer:
    """Look up without drawing."""
    found = await serving.service.lookups.neighbors(body)
    return NeighborsAnswer(
        databases=found.versions,
        query=found.label,
        milliseconds=found.milliseconds,
        neighbors=found.all_neighbors,
        note=" ".join(filter(None, map(credit_note, found.databases.values()))),
    )


@router.post("/uploads", response_model=Upload, status_code=201, tags=["look up"])
async def upload(serving: ServingDep, request: Request) -> Upload:
    """Keep a picture as a query, for a day; one that this project drew brings its record."""
    data = await request.body()
    return await serving.service.in_file_thread(lambda: serving.service.lookups.uploads.add(data))


@router.get("/uploads/{upload_id}.webp", tags=["look up"])
async def uploaded(serving: ServingDep, upload_id: UploadId, size: Side = 128) -> Response:
    """Return an uploaded picture, small."""
    data = await serving.service.in_file_thread(
        lambda: encode_webp(serving.service.lookups.uploads.get(upload_id), size)
    )
    return Response(data, media_type="image/webp", headers={"Cache-Control": "private"})


@router.get("/databases", response_model=DatabaseList, tags=["databases"])
async def list_databases(
    serving: ServingDep,
) -> DatabaseList:
    """List the databases."""
    found = [serving.databases.info(one, serving.models.refusals) for one in serving.databases.all]
    return DatabaseList(data=tuple(found))


@router.get("/databases/{name}", response_model=DatabaseInfo, tags=["databases"])
async def database(serving: ServingDep, name: str) -> DatabaseInfo:
    """Return a database: its version, its licenses, and who draws from it."""
    return serving.databases.info(serving.databases.get(name), serving.models.refusals)


@router.get("/databases/{name}/authors", response_model=AuthorList, tags=["databases"])
async def authors(serving: ServingDep, name: str) -> AuthorList:
    """Return the authors whom the source names in one list for all of its photographs."""
    named = serving.databases.get(name).authors
    return AuthorList(
        database=name, data=tuple(NamedAuthor(name=one.name, url=one.url) for one in named)
    )


@router.get("/databases/{name}/patches", response_model=PatchPage, tags=["databases"])
async def patches(
    serving: ServingDep,
    name: str,
    q: Annotated[str | None, Query(max_length=2000, description="a text")] = None,
    cursor: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=32)] = 24,
) -> PatchPage:
    """Browse a database in the order of its patches, or search it."""
    opened = serving.databases.get(name)

    # A search has one page: its order is similarity, not ids.
    if q and q.strip():
        asked = LookUpRequest(
            texts=(q,),
            retrieval=Retrieval(databases=(WeightedDatabase(name=name),)),
            settings=JobSettings(k=limit),
        )
        found = await serving.service.lookups.neighbors(asked)
        return PatchPage(
            database=name,
            version=found.versions[0].version,
            patches=found.all_neighbors,
            cursor=None,
        )

    return await serving.service.in_file_thread(lambda: _page(opened, cursor, limit))


@router.get("/databases/{name}/patches/{patch_id}", response_model=Credit, tags=["databases"])
async def patch(serving: ServingDep, name: str, patch_id: int) -> Credit:
    """Return a patch and its photograph's credit."""
    opened = serving.databases.get(name)
    opened.refuse_removed([patch_id])
    ids = np.array([patch_id])
    found = await serving.service.in_file_thread(lambda: opened.credits(ids))
    return found[0]


@router.get("/databases/{name}/patches/{patch_id}/image", tags=["databases"])
async def patch_image(
    serving: ServingDep,
    request: Request,
    name: str,
    patch_id: int,
    size: Side = 256,
    whole: bool = False,
) -> Response:
    """Return a patch's pixels, or with `whole` its photograph; 410 once it was removed."""
    opened = serving.databases.get(name)
    # Before any cache: what was removed is shown no more.
    opened.refuse_removed([patch_id])
    etag = f'"{opened.name}-{patch_id}-{size}-{int(whole)}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    key = (name, patch_id, size, whole)
    if key not in serving.thumbs:
        data = await serving.service.in_file_thread(lambda: _pixels(opened, patch_id, size, whole))
        serving.thumbs[key] = data
        while len(serving.thumbs) > _MAX_THUMBS:
            serving.thumbs.popitem(last=False)
    return Response(serving.thumbs[key], media_type="image/webp", headers=headers)


@router.get("/models", response_model=ModelList, tags=["models"])
async def models(
    serving: ServingDep,
) -> ModelList:
    """List the models."""
    found = [serving.models.facts(one, serving.databases.all) for one in serving.models.all]
    return ModelList(data=tuple(found))


def _page(opened: OpenDatabase, cursor: int, limit: int) -> PatchPage:
    """Return living patches from an id on."""
    # Ids that were removed leave gaps: a page is full as long as patches are left.
    ids: list[int] = []
    last = opened.database.version.next_patch_id
    while cursor < last and len(ids) < limit:
        if cursor not in opened.removed:
            ids.append(cursor)
        cursor += 1

    found = opened.credits(np.array(ids, np.int64))
    return PatchPage(
        database=opened.name,
        version=opened.version,
        patches=found,
        cursor=cursor if cursor < last else None,
    )


def _pixels(opened: OpenDatabase, patch_id: int, size: int, whole: bool) -> bytes:
    if not opened.database.has_pixels:
        raise ServeError(
            "unknown_patch",
            "the database holds embeddings alone, no photographs",
            where=opened.name,
            fix="follow the patch's source page",
        )
    if whole:
        return encode_webp(opened.database.photograph(patch_id), size)
    return encode_webp(opened.database.pixels(np.array([patch_id]))[0], size)
