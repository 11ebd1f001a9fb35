"""The job service: admits jobs, has them looked up and drawn, and tells everybody what happens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rdm.config import Record
from rdm.errors import RdmError
from rdm.serving.databases import DatabaseChange
from rdm.serving.drawing.drawers import Drawers
from rdm.serving.drawing.messages import StepDone
from rdm.serving.jobs.dispatch import Dispatch
from rdm.serving.jobs.events import PREVIEW, EventRing
from rdm.serving.jobs.look_ups import LookUps
from rdm.serving.jobs.pictures import DrawnPicture, finished_picture
from rdm.serving.jobs.queue import CPU_SHAPES, GPU_SHAPES, Row, check_admission, shape_of
from rdm.serving.jobs.records import (
    Job,
    JobView,
    Picture,
    State,
    new_id,
    picture_of,
)
from rdm.serving.jobs.store import JobStore
from rdm.serving.lookup import Found
from rdm.serving.metrics import Metrics
from rdm.serving.problems import ServeError, problem_of
from rdm.serving.request import JobRequest
from rdm.serving.settings import Limits

logger = logging.getLogger(__name__)
ResultT = TypeVar("ResultT")
_MAX_ENDED = 500
_MAX_SESSIONS = 500


class JobService:
    """Every job of the server. Its methods run in the event loop; threads look up and encode."""

    def __init__(
        self,
        lookups: LookUps,
        drawers: Drawers,
        store: JobStore,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.lookups, self.store, self.limits, self.metrics = lookups, store, limits, metrics
        self.dispatch = Dispatch(drawers, self, metrics)
        on_gpu = any(drawer.device != "cpu" for drawer in drawers.all)
        self._shapes = GPU_SHAPES if on_gpu else CPU_SHAPES
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._sessions: OrderedDict[str, EventRing] = OrderedDict()
        self._files = ThreadPoolExecutor(2, "files")
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_draining = False
        self.failure: RdmError | None = None
        self.failed = asyncio.Event()

    # Asking.

    async def in_file_thread(self, function: Callable[[], ResultT]) -> ResultT:
        """Run a function that reads or encodes files in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._files, function)

    def submit(self, request: JobRequest, client: str, key: str | None = None) -> Job | JobView:
        """Admit a job, all of it or nothing; return the earlier one of the same key.

        Raises:
            ServeError: it cannot be admitted.
        """
        if self.is_draining:
            raise ServeError(
                "draining", "the server is shutting down", fix="try again later", retry_after=10
            )

        # A key that is sent again gives the job that it was given first.
        request = self.lookups.resolved(request)
        if key is not None and (known := self.store.by_key(client, key)) is not None:
            if known[1] != request.digest():
                raise ServeError(
                    "idempotency_conflict",
                    "the key was given to another request",
                    where="Idempotency-Key",
                    fix="use a new key for a new request",
                )
            return self.find(known[0])

        # What it takes the place of counts no longer when the queue is measured.
        replaced = [job for job in self._living() if _takes_place(request, client, job)]
        check_admission(
            len(request.seed_list) * request.settings.num_steps,
            client,
            (job for job in self._living() if job not in replaced),
            self.limits,
            self.dispatch.seconds_per_picture_step,
        )

        # Stored before it is accepted: a crash in between loses nothing that was promised.
        job = Job(new_id("job"), client, request)
        self.store.add_job(job, key)
        for old in replaced:
            self._end(old, "cancelled")
        self._accept(job)
        return job

    def _accept(self, job: Job) -> None:
        self._jobs[job.id] = job
        view = self.view(job)
        self.publish(
            job, "job.queued", {"position": view.position, "seconds_left": view.seconds_left}
        )
        self._run(self._prepare(job))
        self._forget_old()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _prepare(self, job: Job) -> None:
        """Look a job's neighbors up, and let its pictures wait for a drawer."""
        try:
            model, opened = self.lookups.resolve(job.request)
            found = await self.lookups.look_up(model, opened, job.request)
        except Exception as error:
            self.on_failed(job, error)
            return

        # It may have been cancelled meanwhile.
        if job.has_ended:
            return
        job.found, job.neighbors, job.databases = found, found.all_neighbors, found.versions
        job.timings = job.timings.model_copy(update={"looked_up": found.milliseconds / 1000})
        self.publish(
            job,
            "job.neighbors",
            {
                "databases": [one.to_json() for one in found.versions],
                "query": found.label,
                "milliseconds": found.milliseconds,
                "neighbors": [one.to_json() for one in job.neighbors],
            },
        )

        # After a restart some pictures are stored already: only the others are drawn.
        shape = shape_of(len(job.request.seed_list), self._shapes)
        missing = [i for i in range(len(job.request.seed_list)) if i not in job.images]
        self.dispatch.add([Row(job, index, shape) for index in missing])

    # Finding.

    def find(self, job_id: str) -> Job | JobView:
        """Return a job in memory, or the last state of one that ended earlier.

        Raises:
            ServeError: there is none of this id.
        """
        if job_id in self._jobs:
            return self._jobs[job_id]
        if (view := self.store.ended(job_id)) is not None:
            return view
        raise ServeError(
            "unknown_job", "there is no such job", where=job_id[:64], fix="POST /v1/jobs"
        )

    def view(self, job: Job | JobView) -> JobView:
        """Return a job as clients see it."""
        if isinstance(job, JobView):
            return job
        position, seconds = self._place_of(job)
        return JobView(
            id=job.id,
            state=job.state,
            created=job.created,
            position=position,
            seconds_left=seconds,
            request=job.request,
            databases=job.databases,
            neighbors=job.neighbors,
            images=tuple(job.images[index] for index in sorted(job.images)),
            problem=job.problem,
            timings=job.timings,
            events=f"v1/jobs/{job.id}/events",
        )

    def _place_of(self, job: Job) -> tuple[int, float]:
        """Return a job's place in the queue, 0 of one that draws, and seconds until it ends."""
        if job.has_ended:
            return 0, 0.0
        per_step = self.dispatch.seconds_per_picture_step
        if job.state == "running":
            return 0, round(job.steps_left * per_step, 1)

        # Whatever comes before it: jobs that are being drawn, and those in front of its first row.
        ahead: dict[str, Job] = {one.id: one for one in self._living() if one.state == "running"}
        for row in self.dispatch.queue.rows:
            if row.job is job:
                break
            ahead[row.job.id] = row.job

        waiting = sum(one.state == "queued" for one in ahead.values())
        steps = job.steps_left + sum(one.steps_left for one in ahead.values())
        return waiting + 1, round(steps * per_step, 1)

    def _living(self) -> list[Job]:
        return [job for job in self._jobs.values() if not job.has_ended]

    def living_of(self, client: str) -> list[Job]:
        """Return a client's jobs that have not ended."""
        return [job for job in self._living() if job.client == client]

    def session(self, client: str) -> EventRing:
        """Return the ring of a browser session's events."""
        if client not in self._sessions:
            self._sessions[client] = EventRing()
            idle = [name for name, ring in self._sessions.items() if not ring.num_readers]
            for name in idle[: max(0, len(self._sessions) - _MAX_SESSIONS)]:
                if name != client:
                    del self._sessions[name]
        self._sessions.move_to_end(client)
        return self._sessions[client]

    def _forget_old(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.has_ended]
        for job_id in ended[: max(0, len(ended) - _MAX_ENDED)]:
            del self._jobs[job_id]

    # Telling.

    def publish(self, job: Job, name: str, data: dict[str, Any], key: str = "") -> None:
        """Add an event to a job's ring and to its session's."""
        text = json.dumps({"job": job.id, **data}, separators=(",", ":"))
        job.ring.add(name, text, key)
        self.session(job.client).add(name, text, f"{job.id} {key}")

    def broadcast(self, name: str, record: Record) -> None:
        """Add an event to every session's ring."""
        for ring in self._sessions.values():
            ring.add(name, record.model_dump_json())

    # What drawers say, see JobProgress.

    def on_started(self, job: Job) -> None:
        """See JobProgress."""
        if job.state != "queued":
            return
        job.state = "running"
        queued = time.time() - job.created
        job.timings = job.timings.model_copy(update={"queued": round(queued, 3)})
        self.metrics.queue_seconds.observe(queued)
        self.publish(job, "job.started", {"steps": job.request.settings.num_steps})

    def on_preview(self, job: Job, index: int, step: StepDone, data: str) -> None:
        """See JobProgress."""
        if data:
            told = {"index": index, "step": step.index, "of": step.total, "data": data}
            self.publish(job, PREVIEW, told, f"{index}")

    def on_picture(self, row: Row, drawn: DrawnPicture, seconds: float) -> None:
        """See JobProgress."""
        found = row.job.found
        if not row.job.has_ended and found is not None:
            self._run(self._keep(row, found, drawn, seconds / row.shape))

    async def _keep(self, row: Row, found: Found, drawn: DrawnPicture, seconds: float) -> None:
        """Store a picture, tell of it, and end its job with the last one."""
        job = row.job

        # In a thread: encoding and writing would hold up every other client.
        def work() -> Picture:
            image, png = finished_picture(job, found, row.index, drawn)
            self.store.add_image(image, png)
            return picture_of(image)

        try:
            picture = await self.in_file_thread(work)
        except Exception as error:
            self.on_failed(job, error)
            return

        # It may have been cancelled while its picture was stored.
        if job.has_ended:
            return

        self.metrics.images.inc()
        job.images[row.index] = picture
        total = round(job.timings.drawn + seconds, 3)
        job.timings = job.timings.model_copy(update={"drawn": total})
        self.publish(job, "image.done", picture.to_json())

        if not job.num_left:
            self._end(job, "done")

    def on_failed(self, job: Job, error: Exception) -> None:
        """See JobProgress."""
        if not isinstance(error, RdmError):
            logger.error("job %s failed", job.id, exc_info=error)
        if not job.has_ended:
            job.problem = problem_of(error, job.id)
            self._end(job, "failed")

    def on_unable(self, error: RdmError) -> None:
        """See JobProgress."""
        self.failure = error
        self.failed.set()

    def cancel(self, job_id: str) -> JobView:
        """Cancel a job, within one step; its finished pictures stay.

        Raises:
            ServeError: there is no such job, or it ended in another way.
        """
        job = self.find(job_id)
        if isinstance(job, Job) and not job.has_ended:
            self._end(job, "cancelled")
        if job.state != "cancelled":
            raise ServeError(
                "job_ended", f"the job is {job.state} already", where=job_id, fix="nothing to do"
            )
        return self.view(job)

    def _end(self, job: Job, state: State) -> None:
        """End a job, once: its state, its place in the store, its last event."""
        assert not job.has_ended
        job.state = state
        self.metrics.jobs.labels(state).inc()

        # A full disk must not keep a job from ending: its readers would wait forever.
        try:
            self.store.end_job(self.view(job))
        except RdmError:
            logger.exception("the end of job %s is not stored", job.id)

        told: dict[str, Any] = {"images": len(job.images), "timings": job.timings.to_json()}
        if job.problem is not None:
            told["problem"] = job.problem.to_json()
        self.publish(job, f"job.{state}", told)
        self.dispatch.drop(job)
        job.found = None

    # Changes, start and end.

    def on_changed(self, change: DatabaseChange) -> None:
        """Look up again what waits with a photograph that was removed, and tell every session."""
        opened = self.lookups.databases.get(change.name)
        self.metrics.database_version.labels(change.name).set(change.version)
        for job in self._living():
            hit = any(
                one.database == change.name and one.patch_id in opened.removed
                for one in job.neighbors
            )
            if hit and self.dispatch.queue.remove(job):
                self._run(self._prepare(job))
        self.broadcast("database.changed", change)

    def resume(self) -> int:
        """Take up the jobs that an earlier process left, and return how many there are."""
        left = self.store.unfinished()
        for job_id, client, text, created in left:
            job = Job(job_id, client, JobRequest.model_validate_json(text), created)
            job.images = {image.index: picture_of(image) for image in self.store.images_of(job_id)}
            self._accept(job)
            if not job.num_left:
                self._end(job, "done")
        return len(left)

    async def drain(self, seconds: float) -> None:
        """Admit nothing more, and wait for what is being drawn; what waits stays in the store."""
        self.is_draining = self.dispatch.is_paused = True
        for ring in self._sessions.values():
            ring.add("server.draining", "{}")
        until = time.monotonic() + seconds
        while (self.dispatch.num_drawing or self._tasks) and time.monotonic() < until:
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Let go of threads."""
        self.lookups.close()
        self._files.shutdown(wait=False, cancel_futures=True)


def _takes_place(request: JobRequest, client: str, job: Job) -> bool:
    """Return whether a draft takes the place of a job."""
    return (
        request.supersede
        and job.request.supersede
        and job.client == client
        and job.request.client_tag == request.client_tag
    )
