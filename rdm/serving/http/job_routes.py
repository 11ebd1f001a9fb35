"""Routes of jobs and their events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from rdm.serving.http.context import Serving, ServingDep, client_of
from rdm.serving.jobs.events import TERMINAL, EventRing
from rdm.serving.jobs.records import Job, JobView
from rdm.serving.request import JobRequest

LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", max_length=200)]
IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=200)]
WaitSeconds = Annotated[float, Query(ge=0, le=60, description="wait so long for its end")]
ClientName = Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


router = APIRouter(prefix="/v1", tags=["jobs"])


@router.post("/jobs", status_code=202, response_model=JobView)
async def submit(
    serving: ServingDep,
    request: Request,
    body: JobRequest,
    response: Response,
    key: IdempotencyKey = None,
) -> JobView:
    """Draw pictures: look up, wait for a drawer, draw. The answer comes at once."""
    job = serving.service.submit(body, client_of(request), key)
    response.headers["Location"] = f"jobs/{job.id}"
    return serving.service.view(job)


@router.get("/jobs/{job_id}", response_model=JobView)
async def job(serving: ServingDep, job_id: str, wait: WaitSeconds = 0) -> JobView:
    """Return a job; with `wait` not before it ended, or so many seconds have passed."""
    found = serving.service.find(job_id)
    if isinstance(found, Job) and wait and not found.has_ended:
        await _ended(found, wait)
    return serving.service.view(found)


@router.delete("/jobs/{job_id}", response_model=JobView)
async def cancel(serving: ServingDep, job_id: str) -> JobView:
    """Cancel a job within one step; finished pictures stay."""
    return serving.service.cancel(job_id)


def known_job(serving: ServingDep, job_id: str) -> Job | JobView:
    """Return the job of a path."""
    return serving.service.find(job_id)


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse)
async def job_events(
    serving: ServingDep,
    found: Annotated[Job | JobView, Depends(known_job)],
    last: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """Tell what happens to a job, until it ends."""
    async for event in _job_events(serving, found, last):
        yield event


@router.get("/events", response_class=EventSourceResponse)
async def session_events(
    serving: ServingDep, client: ClientName, last: LastEventId = None
) -> AsyncIterator[ServerSentEvent]:
    """Tell what happens to every job of a browser session, and to the databases."""
    ring = serving.service.session(client)
    after = _after(last, serving.boot, ring)

    # What a reader missed is no longer kept: it gets the present state instead.
    if after is None:
        after = ring.last
        jobs = [serving.service.view(job).to_json() for job in serving.service.living_of(client)]
        yield ServerSentEvent(
            data={"jobs": jobs, "status": serving.status},
            event="session.snapshot",
            id=f"{serving.boot}.{after}",
        )

    # Then everything that happens, until the server ends.
    async for event in ring.follow(after):
        yield ServerSentEvent(
            raw_data=event.data, event=event.name, id=f"{serving.boot}.{event.number}"
        )
        if event.name == "server.draining":
            return


async def _ended(job: Job, seconds: float) -> None:
    """Wait for a job's end, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            async for event in job.ring.follow(job.ring.last):
                if event.name in TERMINAL:
                    return
    except TimeoutError:
        return


def _after(last: str | None, boot: str, ring: EventRing) -> int | None:
    """Return the number that a reader has got to; None where it must begin with a snapshot."""
    given_boot, _, number = (last or "").rpartition(".")
    if given_boot != boot or not number.isdigit() or not ring.has_after(int(number)):
        return None
    return int(number)


async def _job_events(
    serving: Serving, found: Job | JobView, last: str | None
) -> AsyncIterator[ServerSentEvent]:
    service = serving.service
    if isinstance(found, JobView):
        yield ServerSentEvent(data=found.to_json(), event="job.snapshot", id=f"{found.id}.0")
        told = {"job": found.id, "images": len(found.images)}
        yield ServerSentEvent(data=told, event=f"job.{found.state}", id=f"{found.id}.1")
        return

    prefix = f"{found.id}.{serving.boot}"
    after = 0 if last is None else _after(last, prefix, found.ring)
    if after is None or not found.ring.has_after(after):
        after = found.ring.last
        view = service.view(found)
        yield ServerSentEvent(data=view.to_json(), event="job.snapshot", id=f"{prefix}.{after}")
        if found.has_ended:
            after -= 1  # the terminal event is the last one
    async for event in found.ring.follow(after):
        yield ServerSentEvent(raw_data=event.data, event=event.name, id=f"{prefix}.{event.number}")
        if event.name in TERMINAL:
            return
