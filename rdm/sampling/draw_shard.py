"""Batches of a request on workers: each opens the model and the databases once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from rdm.compute import ComputeConfig, compute_pool
from rdm.compute.device import DeviceName, describe_device, worker_device
from rdm.compute.pool import Pool
from rdm.compute.threads import torch_threads
from rdm.config import Config
from rdm.database import RetrievalDatabase
from rdm.errors import StorageError, UsageError
from rdm.generators.model_folder import Model, open_model
from rdm.sampling.drawing.attribution import AttributionKind
from rdm.sampling.output import picture_name
from rdm.sampling.request.sample_request import Request
from rdm.sampling.request_drawing import RecordedBatch, RequestDrawing
from rdm.sampling.retrieval.look_up import LookUp


class OpenedVersion(Config):
    """A version of a database, to be opened elsewhere."""

    name: str
    """Of the request."""
    url: str
    version: int


class DrawPlan(Config):
    """Everything that a worker needs to draw any batch of a request."""

    model: str
    databases: tuple[OpenedVersion, ...]
    request: Request
    attribution: tuple[AttributionKind, ...]
    shape: int
    threads: int
    device: DeviceName


@dataclass(frozen=True)
class DrawTask:
    """One batch of a request.

    Attributes:
        plan: a DrawPlan in JSON: one text for all tasks, by which a worker knows what is open.
        numbers: of the batch's pictures.
    """

    plan: str
    numbers: range


@contextmanager
def drawing_pool(dask: str, device: DeviceName) -> Iterator[Pool | None]:
    """Open the workers that draw; None where this process does.

    Args:
        dask: `inline`: this process; a number of worker processes; `local`: one per core; or a
            scheduler's address.
        device: what they draw on.

    Raises:
        UsageError: no scheduler answers at the address, or the number is 0.
    """
    if dask == "inline":
        yield None
        return
    config = ComputeConfig(dask=dask, device=device)
    if dask.isdecimal():
        if int(dask) == 0:
            raise UsageError("no worker would draw", where="--dask", fix="--dask 1 or more")
        config = ComputeConfig(dask="local", num_workers=int(dask), device=device)
    with compute_pool(config) as pool:
        yield pool


def describe_drawing(model: Model, pool: Pool | None) -> str:
    """Return in words what draws: the model's device, or the workers'."""
    return describe_device(model.device) if pool is None else pool.describe_device()


def draw_on_workers(
    drawing: RequestDrawing, missing: Sequence[range], pool: Pool
) -> Iterator[RecordedBatch]:
    """Yield batches as workers finish them, in any order; nothing is written here.

    Args:
        drawing: of the request, opened in this process.
        missing: numbers of the batches' pictures.
        pool: the workers.

    Raises:
        StorageError: a worker does not see the model, a database or a picture of the request.
    """
    # Checked before tasks are sent: a worker's own error would name no remedy.
    plan = _plan_of(drawing, pool.config.device)
    _require_seen(plan, pool)

    # As one text, which workers compare to see whether they have it open.
    text = plan.model_dump_json()
    tasks = [DrawTask(text, numbers) for numbers in missing]
    results = pool.map(
        draw_shard,
        tasks,
        stage="sample",
        unit="pictures",
        names=[f"{numbers.start}-{numbers.stop - 1}" for numbers in missing],
        sizes=[len(numbers) for numbers in missing],
        done_before=len(drawing.looked_up) - sum(map(len, missing)),
    )
    for _, batch in results:
        yield batch


def draw_shard(task: DrawTask) -> RecordedBatch:
    """Draw one batch."""
    plan = DrawPlan.model_validate_json(task.plan)
    # The number of threads decides last bits, so it is the plan's and not the worker's.
    with torch_threads(plan.threads):
        drawing = _opened(task.plan)
        batch = drawing.drawn(task.numbers)
        names = [picture_name(number) for number in task.numbers]
        return drawing.recorded(batch, names).without_tokens()


@lru_cache(maxsize=1)
def _opened(text: str) -> RequestDrawing:
    """Return what draws a plan; a worker opens it with its first batch."""
    plan = DrawPlan.model_validate_json(text)

    # A worker may have another device than this process; `auto` is decided there.
    device = worker_device(plan.device)
    model = open_model(plan.model, device)

    # By version: a database may be changed while a request is drawn.
    databases = {
        one.name: RetrievalDatabase.open(one.url, version=one.version, device=plan.device)
        for one in plan.databases
    }
    looked_up = LookUp(plan.request, model.info, databases)
    return RequestDrawing(model, looked_up, plan.attribution, plan.shape)


def _plan_of(drawing: RequestDrawing, device: DeviceName) -> DrawPlan:
    databases = tuple(
        OpenedVersion(name=name, url=_absolute(one.folder.url), version=one.version.number)
        for name, one in drawing.looked_up.databases.items()
    )
    return DrawPlan(
        model=str(drawing.model.directory.absolute()),
        databases=databases,
        request=_with_absolute_paths(drawing.looked_up.request),
        attribution=tuple(drawing.attribution),
        shape=drawing.shape,
        threads=torch.get_num_threads(),
        device=device,
    )


def _with_absolute_paths(request: Request) -> Request:
    """Return a request whose files are found from any folder; records have their names alone."""
    start, settings = request.start, request.settings
    if start is not None:
        names = {"image": start.image, "mask": start.mask}
        start = start.model_copy(
            update={key: None if name is None else _absolute(name) for key, name in names.items()}
        )
    if settings.autoguidance is not None:
        weaker = _absolute(settings.autoguidance)
        settings = settings.model_copy(update={"autoguidance": weaker})

    images = tuple(map(_absolute, request.images))
    return request.model_copy(update={"images": images, "start": start, "settings": settings})


def _absolute(name: str) -> str:
    # An asset or an address is no path.
    return name if "://" in name else str(Path(name).absolute())


def _require_seen(plan: DrawPlan, pool: Pool) -> None:
    """Raise StorageError where a worker does not see what it is to read."""
    request, start = plan.request, plan.request.start
    read = [plan.model, *(one.url for one in plan.databases), *request.images]
    read += [name for name in (request.settings.autoguidance,) if name]
    read += [name for name in (start.image, start.mask) if name] if start is not None else []

    # Names that are no files here, such as assets, are left to those who open them.
    if unseen := pool.unseen([path for path in read if os.path.exists(path)]):
        name, path = unseen[0]
        raise StorageError(
            f"the Dask worker {name} does not see what it is to draw from",
            where=path,
            fix="start the workers where they see the same folders, or draw without --dask",
        )
