"""Routes of pictures that were drawn, and of the history."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from rdm.config import Record
from rdm.sampling.recipe.record import SampleRecord
from rdm.serving.databases import OpenDatabase
from rdm.serving.http.context import Serving, ServingDep
from rdm.serving.jobs.credits import Credits, credits_of_image, present_recipe
from rdm.serving.jobs.pictures import thumbnail
from rdm.serving.jobs.records import Picture, StoredImage, picture_of
from rdm.serving.lookup import DatabaseVersion
from rdm.serving.problems import ServeError
from rdm.serving.request import JobRequest

Side = Annotated[int, Query(ge=16, le=1024, description="pixels a side")]


class HistoryEntry(Record):
    """A finished picture, and the request that it came of."""

    image: Picture
    job: str
    created: float
    label: str
    databases: tuple[DatabaseVersion, ...]
    request: JobRequest


class HistoryPage(Record):
    """Pictures, newest first; `cursor` leads to older ones."""

    data: tuple[HistoryEntry, ...]
    cursor: str | None


router = APIRouter(prefix="/v1", tags=["pictures"])


def known(serving: Serving, image_id: str) -> StoredImage:
    """Return a picture's row; raise ServeError where there is none."""
    image = serving.service.store.image(image_id)
    if image is None:
        raise ServeError(
            "unknown_image",
            "there is no such picture, or it is no longer kept",
            where=image_id[:64],
            fix="draw it again",
        )
    return image


def served_databases(serving: Serving, image: StoredImage) -> dict[str, OpenDatabase]:
    """Return a picture's databases as they are now, those that are served."""
    served = [one.name for one in image.databases if one.name in serving.databases.names]
    return {name: serving.databases.get(name) for name in served}


@router.get("/images/{image_id}.png")
async def png(serving: ServingDep, request: Request, image_id: str) -> Response:
    """Return a picture as it was drawn, with its record inside."""
    image = known(serving, image_id)
    headers = _headers(image.pixels_sha256)
    headers["Content-Disposition"] = f'inline; filename="{image.id}.png"'
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    data = await serving.service.in_file_thread(serving.service.store.path(image.id).read_bytes)
    return Response(data, media_type="image/png", headers=headers)


@router.get("/images/{image_id}.webp")
async def webp(serving: ServingDep, request: Request, image_id: str, size: Side = 128) -> Response:
    """Return a picture as WebP of so many pixels."""
    image = known(serving, image_id)
    headers = _headers(f"{image.pixels_sha256}-{size}")
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    path = serving.service.store.path(image.id)
    data = await serving.service.in_file_thread(lambda: thumbnail(path, size))
    return Response(data, media_type="image/webp", headers=headers)


@router.get("/images/{image_id}/recipe", response_model=SampleRecord)
async def recipe(serving: ServingDep, image_id: str) -> SampleRecord:
    """Return a picture's record: query, seed, settings, model, neighbors."""
    image = known(serving, image_id)
    record = SampleRecord.model_validate_json(image.recipe)
    return present_recipe(record, served_databases(serving, image))


@router.get("/images/{image_id}/credits", response_model=Credits)
async def credits_route(
    serving: ServingDep, image_id: str, format: Annotated[Literal["json", "text"], Query()] = "json"
) -> Credits | Response:
    """Return whom a picture is credited to."""
    image = known(serving, image_id)
    found = credits_of_image(image, served_databases(serving, image))
    if format == "text":
        return Response(found.text, media_type="text/plain; charset=utf-8")
    return found


@router.get("/history", response_model=HistoryPage)
async def history(
    serving: ServingDep,
    cursor: Annotated[str | None, Query(pattern=r"^img_[0-9a-z]{17}$")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 40,
) -> HistoryPage:
    """Return pictures that are no drafts, newest first."""
    images = serving.service.store.history(cursor, limit)
    return HistoryPage(
        data=tuple(map(_entry, images)),
        cursor=images[-1].id if len(images) == limit else None,
    )


@router.delete("/history/{image_id}", status_code=204)
async def forget(serving: ServingDep, image_id: str) -> Response:
    """Delete a picture for good."""
    known(serving, image_id)
    serving.service.store.delete_image(image_id)
    return Response(status_code=204)


def _headers(etag: str) -> dict[str, str]:
    return {"ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}


def _entry(image: StoredImage) -> HistoryEntry:
    return HistoryEntry(
        image=picture_of(image),
        job=image.job,
        created=image.created,
        label=image.label,
        databases=image.databases,
        request=image.request,
    )
