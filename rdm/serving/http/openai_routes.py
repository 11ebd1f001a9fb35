"""OpenAI's images endpoint: a second door to the same jobs, for programs that know only that."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import Field, StringConstraints, ValidationError

from rdm.config import Config, Record
from rdm.sampling.request.sample_request import Retrieval, WeightedDatabase
from rdm.serving.http.context import Serving, ServingDep, client_of
from rdm.serving.jobs.events import TERMINAL
from rdm.serving.jobs.records import Job
from rdm.serving.problems import Problem, ServeError
from rdm.serving.request import JobRequest, JobSettings

PREFIX = "/v1/images/generations"
_IGNORED = ("quality", "style", "background", "moderation", "user", "output_compression")
_DISCONNECT_SECONDS = 0.5
router = APIRouter(tags=["OpenAI"])


class Generations(Config):
    """OpenAI's request, with diffusers' names for what it lacks (`extra_body`)."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    model: str | None = None
    n: int = Field(default=1, ge=1, le=256)
    size: str | None = Field(default=None, description="auto, or the model's own")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png"] = "png"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    quality: str | None = None
    style: str | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: str | None = None
    user: str | None = None
    output_compression: int | None = None
    seed: int | None = Field(default=None, ge=0, le=2**53, description="of the first picture")
    num_inference_steps: int = Field(default=30, ge=1)
    guidance_scale: float = Field(default=3.0, ge=0, le=50)
    database: str | None = Field(default=None, description="the server's name of it")
    k: int = Field(default=4, ge=1, le=32)


class GeneratedImage(Record):
    """A picture of an answer, with its recipe's and credits' addresses."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    credits: str


class GenerationsAnswer(Record):
    """OpenAI's answer."""

    created: int
    data: tuple[GeneratedImage, ...]
    size: str
    quality: str = "auto"
    background: str = "opaque"
    output_format: str = "png"


def openai_error(problem: Problem) -> dict[str, object]:
    """Return a problem as OpenAI's clients read errors."""
    kind = "invalid_request_error" if problem.status < 500 else "server_error"
    message = f"{problem.detail}. {problem.fix}" if problem.fix else problem.detail
    code = problem.type.rsplit("/", 1)[-1]
    return {
        "error": {"message": message, "type": kind, "param": problem.where or None, "code": code}
    }


@router.post(PREFIX, response_model=GenerationsAnswer)
async def generations(serving: ServingDep, request: Request, body: Generations) -> Response:
    """Draw pictures and wait for them; a client that goes away takes its job along."""
    size = _size_of(serving, body)
    job = serving.service.submit(_job_request(body), client_of(request))
    assert isinstance(job, Job)

    # Clients send options that mean nothing here: they are told, not refused.
    ignored = [name for name in _IGNORED if getattr(body, name) is not None]
    headers = {"RDM-Ignored": ", ".join(ignored)} if ignored else {}

    if body.stream:
        return StreamingResponse(
            _streamed(serving, job, body, size),
            media_type="text/event-stream",
            headers={**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    await _finished(serving, job, request)
    if job.problem is not None:
        retry = {"Retry-After": "2"} if job.problem.retryable else {}
        return JSONResponse(openai_error(job.problem), job.problem.status, headers=retry)

    data = [await _image(serving, job, index, body) for index in sorted(job.images)]
    answer = GenerationsAnswer(created=int(time.time()), data=tuple(data), size=size)
    return JSONResponse(answer.to_json(), headers=headers)


def _job_request(body: Generations) -> JobRequest:
    first = secrets.randbelow(2**31) if body.seed is None else body.seed
    databases = (WeightedDatabase(name=body.database),) if body.database else ()
    try:
        return _unchecked_request(body, first, databases)
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ServeError("invalid_request", message, where="prompt", fix="mend it") from error


def _unchecked_request(
    body: Generations, first: int, databases: tuple[WeightedDatabase, ...]
) -> JobRequest:
    return JobRequest(
        model=body.model,
        texts=(body.prompt,),
        seeds=f"{first}-{first + body.n - 1}",
        retrieval=Retrieval(databases=databases),
        settings=JobSettings(
            k=body.k, num_steps=body.num_inference_steps, guidance_scale=body.guidance_scale
        ),
        preview="decoded" if body.stream and body.partial_images else "off",
    )


def _size_of(serving: Serving, body: Generations) -> str:
    """Return the model's size; raise ServeError for another one."""
    side = serving.models.get(body.model).info.resolution or 0
    own = f"{side}x{side}"
    if body.size not in (None, "auto", own):
        raise ServeError(
            "invalid_request",
            f"the model draws {own}, not {body.size[:20] if body.size else ''}",
            where="size",
            fix=f"leave size out, or ask for {own}",
        )
    return own


async def _finished(serving: Serving, job: Job, request: Request) -> None:
    """Wait for a job's end; cancel it when its client goes away."""

    async def ended() -> None:
        async for event in job.ring.follow(0):
            if event.name in TERMINAL:
                return

    # Nothing tells that a client went away while no byte is sent: it is asked for.
    waiting = asyncio.create_task(ended())
    try:
        while not (await asyncio.wait({waiting}, timeout=_DISCONNECT_SECONDS))[0]:
            if await request.is_disconnected() and not job.has_ended:
                serving.service.cancel(job.id)
    finally:
        waiting.cancel()


async def _image(serving: Serving, job: Job, index: int, body: Generations) -> GeneratedImage:
    picture = job.images[index]
    if body.response_format == "url":
        return GeneratedImage(url=picture.url, seed=picture.seed, credits=picture.credits)
    path = serving.service.store.path(picture.id)
    data = await serving.service.in_file_thread(path.read_bytes)
    encoded = base64.b64encode(data).decode()
    return GeneratedImage(b64_json=encoded, seed=picture.seed, credits=picture.credits)


class _StreamEvent(Record):
    """An event of OpenAI's stream, with every field that its clients require."""

    type: str
    b64_json: str
    created_at: int
    size: str
    quality: str = "auto"
    background: str = "opaque"
    output_format: str
    partial_image_index: int | None = None
    usage: dict[str, int] | None = None


async def _streamed(
    serving: Serving, job: Job, body: Generations, size: str
) -> AsyncIterator[bytes]:
    """Yield OpenAI's events; a reader that goes away cancels the job."""
    partial = 0
    try:
        async for event in job.ring.follow(0):
            told = _StreamEvent(
                type="image_generation.partial_image",
                b64_json="",
                created_at=int(time.time()),
                size=size,
                output_format="webp",
            )

            # As many previews as were asked for, though there may be more.
            if event.name == "image.preview" and partial < body.partial_images:
                data = _field(event.data, "data")
                yield _event(told, b64_json=data, partial_image_index=partial)
                partial += 1
            elif event.name == "image.done":
                image = await _image(serving, job, int(_field(event.data, "index")), body)
                usage = dict.fromkeys(("total_tokens", "input_tokens", "output_tokens"), 0)
                yield _event(
                    told,
                    type="image_generation.completed",
                    b64_json=image.b64_json or "",
                    output_format="png",
                    usage=usage,
                )
            elif event.name in TERMINAL:
                if job.problem is not None:
                    text = JSONResponse(openai_error(job.problem)).body
                    yield format_sse_event(data_str=bytes(text).decode(), event="error")
                return
    finally:
        # Nobody else knows the job's id, so nobody else would fetch its pictures.
        if not job.has_ended:
            serving.service.cancel(job.id)


def _field(text: str, name: str) -> str:
    return str(json.loads(text)[name])


def _event(told: _StreamEvent, **changes: object) -> bytes:
    event = told.model_copy(update=changes)
    return format_sse_event(data_str=event.model_dump_json(exclude_none=True), event=event.type)
